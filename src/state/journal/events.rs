//! Event streams: storing events as they arrive, and how long they are kept.
//!
//! E1  The numbers of a stream are contiguous from 0 in every log of an honest author: a number is
//!     read from the row that the event advances.
//! E2  Whether an event is too old is judged by the stamps of other devices where not all members
//!     have it yet, or where it arrives from another device.
//! E3  A stream is part of the state digest until its retention is set for the first time, and
//!     never again: devices drop old events at different moments.

use rusqlite::{OptionalExtension, params};

use crate::core::ids::OpHash;
use crate::core::journal::cell::{CLEAR, event_digest};
use crate::core::journal::op::{Event, KEEP_DAYS, Value, value_from_bytes};
use crate::core::journal::stamp::Hlc;

use super::Result;
use super::schema::{int, row_u64};
use super::tx::Tx;

/// One day: retention periods are whole days.
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
        let me = self.device(&self.me())?;
        let is_own = self.log(log)?.dev == me;
        let now_ms = if is_own { self.now_ms } else { self.settled_ms() };
        if let Some(Some(days)) = keep_days
            && hlc.ms() < now_ms.saturating_sub(days.saturating_mul(DAY_MS))
        {
            // The event is past its retention. Storing it would bring back what was dropped here.
            return self.note_event(log, event);
        }
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
            self.digest.add(&event_digest(hash, index));
        }
        self.note_event(log, event)
    }

    /// A time that has passed for other devices too. Our clock alone may have jumped ahead, and
    /// events that no other device has must not be dropped because of that.
    pub(super) fn settled_ms(&self) -> u64 {
        self.now_ms.min(self.hlc_others.ms())
    }

    /// Advances the next number of a stream.
    fn note_event(&mut self, log: i64, event: &Event) -> Result<()> {
        let next = event.event_seq.saturating_add(1);
        self.db
            .prepare_cached(
                "INSERT INTO streams (stream, log, next) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET next = max(next, excluded.next)",
            )?
            .execute(params![event.stream, log, int(next)])?;
        Ok(())
    }

    /// The retention of a stream: `None` when it was never set (the stream is part of the digest),
    /// `Some(None)` when it is for ever again.
    fn retention(&self, stream: &str) -> Result<Option<Option<u64>>> {
        let mut query =
            self.db.prepare_cached("SELECT keep_days FROM retention WHERE stream = ?1")?;
        let row = query.query_row([stream], |row| row.get::<_, Option<i64>>(0)).optional()?;
        Ok(row.map(|days| days.map(|days| u64::try_from(days).unwrap_or(0))))
    }

    /// Applies a change of a stream's record. A stream whose retention was ever set leaves the
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
            return self.forget_retention(stream);
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
            self.move_in_digest(stream, false)?;
        }
        self.db
            .prepare_cached(
                "INSERT INTO retention (stream, keep_days) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET keep_days = excluded.keep_days",
            )?
            .execute(params![stream, days])?;
        Ok(())
    }

    /// Forgets a stream's retention after the ops that set it are gone, as if it was never set.
    fn forget_retention(&mut self, stream: &str) -> Result<()> {
        let forgot =
            self.db.prepare_cached("DELETE FROM retention WHERE stream = ?1")?.execute([stream])?;
        if forgot > 0 {
            self.move_in_digest(stream, true)?;
        }
        Ok(())
    }

    /// Adds the events of a stream to the digest, or removes them. Reads all of them.
    fn move_in_digest(&mut self, stream: &str, is_in: bool) -> Result<()> {
        let mut query = self.db.prepare_cached(
            "SELECT o.hash, e.idx FROM events e JOIN ops o USING (arr) WHERE e.stream = ?1",
        )?;
        let mut rows = query.query([stream])?;
        while let Some(row) = rows.next()? {
            let index = usize::try_from(row_u64(row, 1)?).unwrap_or(usize::MAX);
            self.digest.toggle(&event_digest(&OpHash(row.get(0)?), index), is_in);
        }
        Ok(())
    }
}
