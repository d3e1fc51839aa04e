//! Writing ops of this device: drafts become changes, changes become a signed op, and the op is
//! applied like one that arrived.

use std::collections::BTreeMap;

use crate::core::ids::NodeId;
use crate::core::journal::cell::CellKey;
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut, Expect};
use crate::core::journal::op::{
    Body, Change, Event, KEEP_DAYS, Key, LogInfo, Put, Removal, STREAM_MODEL, Value,
};
use crate::core::journal::stamp::{CLOCK_FLOOR_MS, Hlc, Stamp};
use crate::core::limits::{LOGGED_QUOTA_FRACTION, OP_BODY_BYTES_MAX, RETENTION_CHANGE_BYTES_MAX};
use crate::wire::WireError;

use super::apply::Applied;
use super::schema::row_u64;
use super::tx::Tx;
use super::verify::VerifiedOp;
use super::{Journal, JournalError, Result, Written};
use rusqlite::{OptionalExtension, params};

/// The result of one draft among several.
pub type DraftResult = std::result::Result<Option<Written>, DraftError>;

impl Journal {
    /// T1: writes drafts in one transaction; each becomes an op or an error of its own. `None` for
    /// a draft without effect. What is returned is durable.
    pub fn write(&mut self, drafts: &[Draft], now_ms: u64) -> Result<Vec<DraftResult>> {
        let mut tx = self.begin(now_ms)?;
        let mut results = Vec::with_capacity(drafts.len());
        for draft in drafts {
            results.push(tx.write(draft, None)?);
        }
        tx.commit()?;
        Ok(results)
    }
}

impl Tx<'_> {
    /// Writes one draft, stamped now or with the given time. An error leaves nothing of it.
    pub(super) fn write(&mut self, draft: &Draft, at: Option<Hlc>) -> Result<DraftResult> {
        let changes = match self.resolve(draft)? {
            Ok(changes) => changes,
            Err(error) => return Ok(Err(error)),
        };
        if changes.is_empty() {
            return Ok(Ok(None));
        }
        if let Some(error) = self.why_silent(&changes)? {
            return Ok(Err(error));
        }
        Ok(self.author(changes, at)?.map(Some))
    }

    /// Why this device must not write an op with these changes now.
    fn why_silent(&mut self, changes: &[Change]) -> Result<Option<DraftError>> {
        let me = self.me();
        if self.now_ms < CLOCK_FLOOR_MS {
            return Ok(Some(DraftError::ClockNotSet));
        }
        if self.group.is_none() || !self.verdicts()?.member(&me) {
            return Ok(Some(DraftError::NotMember));
        }
        let dev = self.device(&me)?;
        let is_logged = |change: &Change| matches!(change, Change::Event(event) if event.stream == DEVICE_STREAM);
        if changes.iter().any(is_logged) && !self.may_log()? {
            let limit_bytes = self.quota(dev)? / LOGGED_QUOTA_FRACTION;
            return Ok(Some(DraftError::Quota { got_bytes: self.device_bytes(dev)?, limit_bytes }));
        }
        let bytes = match changes.iter().all(sets_retention) {
            true => changes.len() * RETENTION_CHANGE_BYTES_MAX,
            false => OP_BODY_BYTES_MAX,
        };
        if !self.has_room(&me, bytes as u64)? {
            let (got_bytes, limit_bytes) = (self.device_bytes(dev)?, self.quota(dev)?);
            return Ok(Some(DraftError::Quota { got_bytes, limit_bytes }));
        }
        Ok(None)
    }

    /// Whether there is room for events that this device logs by itself: see
    /// [`LOGGED_QUOTA_FRACTION`].
    pub(super) fn may_log(&mut self) -> Result<bool> {
        let dev = self.device(&self.me())?;
        Ok(self.device_bytes(dev)? < self.quota(dev)? / LOGGED_QUOTA_FRACTION)
    }

    /// Makes, signs and applies an op of this device, stamped now unless another time is given.
    pub(super) fn author(
        &mut self,
        changes: Vec<Change>,
        at: Option<Hlc>,
    ) -> Result<std::result::Result<Written, DraftError>> {
        let group = self.group()?;
        let open = match self.open_log {
            Some(open) => open,
            None => self.begin_log()?,
        };
        let missing = || JournalError::Damaged("the log this device writes is missing".into());
        let num = self.log_num(&open)?.ok_or_else(missing)?;
        let row = self.log(num)?;
        let (seq, prev) = (row.seq + 1, row.head);
        let nonce = self.db.query_row("SELECT nonce FROM logs WHERE log = ?1", [num], |row| {
            row.get::<_, [u8; 16]>(0)
        })?;
        let end_of_time = || JournalError::Damaged("a stamp stands at the end of time".into());
        let hlc = at.or_else(|| self.hlc_max.next(self.now_ms)).ok_or_else(end_of_time)?;
        let event_seqs = changes.iter().filter_map(|change| match change {
            Change::Event(event) => Some(event.event_seq),
            _ => None,
        });
        let event_seqs = event_seqs.collect();
        let info = LogInfo { author: self.me(), nonce };
        let body = Body { seq, hlc, prev, changes };
        let op = match VerifiedOp::author(self.identity, &group, info, body) {
            Ok(op) => op,
            Err(error) => return Ok(Err(too_large(&error))),
        };
        let Applied::New(arr) = self.apply(&op)? else {
            return Err(JournalError::Damaged("a new op of our own is not new".into()));
        };
        self.news.own = true;
        let stamp = Stamp { hlc, log: open, seq };
        let epoch = self.feed_epoch.ok_or(JournalError::NoGroup)?;
        Ok(Ok(Written { stamp, epoch, arr: u64::try_from(arr).unwrap_or(0), event_seqs }))
    }

    /// Turns a draft into changes against the current state of the journal: removals name the adds
    /// that they saw, events get their numbers, changes without effect are left out.
    fn resolve(&mut self, draft: &Draft) -> Result<std::result::Result<Vec<Change>, DraftError>> {
        if let Err(error) = draft.check() {
            return Ok(Err(error));
        }
        for expect in &draft.expect {
            if let Some(error) = self.unmet(expect)? {
                return Ok(Err(error));
            }
        }
        let mut changes = Vec::with_capacity(draft.changes.len());
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for change in &draft.changes {
            match change {
                DraftChange::Put(put) => changes.extend(self.resolve_put(put)?.map(Change::Put)),
                DraftChange::Delete(key) => {
                    if self.has_cells(key)? {
                        changes.push(Change::Delete(key.clone()));
                    }
                }
                DraftChange::Event { stream, kind, data } => {
                    let event_seq = match next.get(stream.as_str()) {
                        Some(seq) => *seq,
                        None => self.next_event(stream)?,
                    };
                    next.insert(stream, event_seq + 1);
                    let (stream, kind, data) = (stream.clone(), kind.clone(), data.clone());
                    changes.push(Change::Event(Event { stream, event_seq, kind, data }));
                }
            }
        }
        Ok(Ok(changes))
    }

    fn resolve_put(&mut self, put: &DraftPut) -> Result<Option<Put>> {
        let me = self.me();
        let mut remove = Vec::new();
        for elem in &put.remove {
            let key = CellKey {
                record: put.key.clone(),
                field: elem.field.clone(),
                elem: elem.elem.clone(),
            };
            let seen = self.cell(&key, &me)?.filter(|held| !held.value.removed);
            if let Some(held) = seen {
                remove.push(Removal { elem: elem.clone(), observed: held.value.stamp });
            }
        }
        let put = Put {
            key: put.key.clone(),
            create: put.create,
            set: put.set.iter().map(|(field, value)| (field.clone(), value.clone())).collect(),
            add: put.add.iter().cloned().collect(),
            remove,
        };
        let something =
            put.create || !put.set.is_empty() || !put.add.is_empty() || !put.remove.is_empty();
        Ok(something.then_some(put))
    }

    /// The number of the next event of a stream in the log that this device writes.
    pub(super) fn next_event(&mut self, stream: &str) -> Result<u64> {
        let Some(open) = self.open_log else {
            return Ok(0);
        };
        let log = self.log_num(&open)?;
        let mut query =
            self.db.prepare_cached("SELECT next FROM streams WHERE stream = ?1 AND log = ?2")?;
        let next = query.query_row(params![stream, log], |row| row_u64(row, 0)).optional()?;
        Ok(next.unwrap_or(0))
    }

    fn unmet(&mut self, expect: &Expect) -> Result<Option<DraftError>> {
        let me = self.me();
        Ok(match expect {
            Expect::Alive(key) if !self.is_alive(key, &me)? => Some(DraftError::Absent),
            Expect::Absent(key) if self.is_alive(key, &me)? => Some(DraftError::Alive),
            Expect::Unchanged(key, seen) => {
                let now = match self.is_alive(key, &me)? {
                    true => self.last_change(key, &me)?,
                    false => None,
                };
                (now.as_ref() != Some(seen)).then_some(DraftError::Changed { now })
            }
            Expect::Alive(_) | Expect::Absent(_) => None,
        })
    }

    fn is_alive(&mut self, key: &Key, owner: &NodeId) -> Result<bool> {
        Ok(self.cell(&CellKey::alive(key), owner)?.is_some())
    }

    /// The arrival number of a record's last change.
    fn last_change(&mut self, key: &Key, owner: &NodeId) -> Result<Option<u64>> {
        let (scope, _) = self.scope(key, owner)?;
        let model = self.model(&key.model)?;
        let mut query = self.db.prepare_cached(
            "SELECT arr FROM records WHERE model = ?1 AND scope = ?2 AND id = ?3",
        )?;
        let arr =
            query.query_row(params![model, scope, key.id], |row| row_u64(row, 0)).optional()?;
        Ok(arr)
    }

    /// Whether a delete would remove anything.
    fn has_cells(&mut self, key: &Key) -> Result<bool> {
        let me = self.me();
        let (scope, _) = self.scope(key, &me)?;
        let model = self.model(&key.model)?;
        let mut query = self.db.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM cells WHERE model = ?1 AND scope = ?2 AND id = ?3
                 AND NOT (field = '' AND elem = ?4))",
        )?;
        Ok(query
            .query_row(params![model, scope, key.id, crate::core::journal::cell::CLEAR], |row| {
                row.get(0)
            })?)
    }
}

/// Whether a change only sets how long a stream is kept.
fn sets_retention(change: &Change) -> bool {
    let is_stream = |key: &Key| key.model == STREAM_MODEL && !key.owned;
    match change {
        Change::Put(put) => {
            let is_days = |(field, value): &(String, Option<Value>)| {
                field == KEEP_DAYS && matches!(value, None | Some(Value::Int(_)))
            };
            let is_plain = put.add.is_empty() && put.remove.is_empty();
            is_stream(&put.key) && is_plain && put.set.iter().all(is_days)
        }
        Change::Delete(key) => is_stream(key),
        Change::Event(_) | Change::Member(_) | Change::Unknown => false,
    }
}

/// Converts the only error left after [`Draft::check`]: the whole op is too large.
fn too_large(error: &WireError) -> DraftError {
    let (got, limit) = match error {
        WireError::OutOfBounds { got, limit, .. } => (*got, *limit),
        WireError::Malformed { .. } | WireError::UnknownAlgorithm(_) => (0, 0),
    };
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    DraftError::OutOfBounds { what: "an op in bytes", got: size(got), limit: size(limit) }
}
