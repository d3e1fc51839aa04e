//! Event streams: entries as they arrive, and how long they are kept.
//!
//! E1  The numbers of a stream are contiguous from 0 in every log of an honest author: a number is
//!     read from the row that the entry moves on.
//! E2  A stream is part of the state digest until its length of keeping is spoken of for the first
//!     time, and never again: devices drop old entries at different moments.

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::ids::OpHash;
use crate::core::journal::cell::{CLEAR, event_digest};
use crate::core::journal::message::Xor16;
use crate::core::journal::op::{Event, KEEP_DAYS, Value, value_from_bytes};
use crate::core::journal::stamp::Hlc;

use super::Result;
use super::schema::int;
use super::tx::Tx;

/// A day of keeping.
pub(super) const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Tx<'_> {
    pub(super) fn append_event(
        &mut self,
        arr: i64,
        log: i64,
        hash: &OpHash,
        index: usize,
        hlc: Hlc,
        event: &Event,
    ) -> Result<()> {
        let keep_days = self.retention(&event.stream)?;
        if let Some(Some(days)) = keep_days
            && hlc.ms() < self.now_ms.saturating_sub(days.saturating_mul(DAY_MS))
        {
            // It has had its time. Taking it in again would bring back what was dropped here.
            return self.note_event(log, event, Xor16::default());
        }
        let digest = event_digest(hash, index);
        let added = self
            .db
            .prepare_cached(
                "INSERT INTO events (stream, log, event_seq, arr, idx, hlc, type, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                event.stream,
                log,
                int(event.event_seq),
                arr,
                int(index as u64),
                int(hlc.0),
                event.kind,
                event.data
            ])?;
        if added == 0 {
            return Ok(());
        }
        self.add_refs(arr, 1)?;
        if keep_days.is_none() {
            self.digest.toggle(digest);
        }
        self.note_event(log, event, digest)
    }

    /// Moves a stream's next number on, and its digest.
    fn note_event(&mut self, log: i64, event: &Event, digest: Xor16) -> Result<()> {
        let next = event.event_seq.saturating_add(1);
        let old: Option<[u8; 16]> = self
            .db
            .prepare_cached("SELECT digest FROM streams WHERE stream = ?1 AND log = ?2")?
            .query_row(params![event.stream, log], |row| row.get(0))
            .optional()?;
        let mut sum = Xor16(old.unwrap_or_default());
        sum.toggle(digest);
        self.db
            .prepare_cached(
                "INSERT INTO streams (stream, log, next, digest) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET next = max(next, excluded.next),
                     digest = excluded.digest",
            )?
            .execute(params![event.stream, log, int(next), sum.0])?;
        Ok(())
    }

    /// How long a stream is kept: `None` when nothing was ever said, and then it is part of the
    /// digest; `Some(None)` when it is for ever again.
    fn retention(&self, stream: &str) -> Result<Option<Option<u64>>> {
        let mut query =
            self.db.prepare_cached("SELECT keep_days FROM retention WHERE stream = ?1")?;
        let row = query.query_row([stream], |row| row.get::<_, Option<i64>>(0)).optional()?;
        Ok(row.map(|days| days.map(|days| u64::try_from(days).unwrap_or(0))))
    }

    /// Follows a change of a stream's record. A stream whose length was ever spoken of leaves the
    /// digest for good: devices drop its events at different moments.
    pub(super) fn reread_retention(&mut self, model: i64, id: &[u8]) -> Result<()> {
        let Ok(stream) = std::str::from_utf8(id) else {
            return Ok(());
        };
        let spoken: bool = self
            .db
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM cells WHERE model = ?1 AND scope = 0 AND id = ?2
                     AND ((field = ?3 AND elem = '') OR (field = '' AND elem = ?4)))",
            )?
            .query_row(params![model, id, KEEP_DAYS, CLEAR], |row| row.get(0))?;
        if !spoken {
            return Ok(());
        }
        let value: Option<Vec<u8>> = self
            .db
            .prepare_cached(
                "SELECT c.value FROM cells c JOIN records r USING (model, scope, id)
                 WHERE c.model = ?1 AND c.scope = 0 AND c.id = ?2 AND c.field = ?3
                     AND c.elem = '' AND r.alive = 1",
            )?
            .query_row(params![model, id, KEEP_DAYS], |row| row.get(0))
            .optional()?;
        let days = match value.as_deref().and_then(value_from_bytes).flatten() {
            Some(Value::Int(days)) if days > 0 => Some(days),
            _ => None,
        };
        if self.retention(stream)?.is_none() {
            let digest = stream_digest(&self.db, stream)?;
            self.digest.toggle(digest);
        }
        self.db
            .prepare_cached(
                "INSERT INTO retention (stream, keep_days) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET keep_days = excluded.keep_days",
            )?
            .execute(params![stream, days])?;
        Ok(())
    }
}

/// The sum over a stream's events.
fn stream_digest(connection: &Connection, stream: &str) -> Result<Xor16> {
    let mut query = connection.prepare_cached("SELECT digest FROM streams WHERE stream = ?1")?;
    let mut rows = query.query([stream])?;
    let mut sum = Xor16::default();
    while let Some(row) = rows.next()? {
        sum.toggle(Xor16(row.get(0)?));
    }
    Ok(sum)
}
