//! Repairs the effect of a wrong clock: own ops stamped so far ahead that no device admits them.
//!
//! These ops are taken out of the journal and rewritten into a new log, stamped now. This is the
//! only place where a log's clock and the greatest time go back. It is safe because no other device
//! has these ops: none is acknowledged, and only a device with an equally wrong clock would have
//! admitted one. A log's clock goes back to an op that is still stored, so that it does not cover
//! ops that were taken out.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::journal::cell::{CellKey, CellValue, cell_digest, event_digest, fact_digest};
use crate::core::journal::op::{Body, Change, Key, STREAM_MODEL};
use crate::core::journal::stamp::{Hlc, Stamp};
use crate::core::limits::FUTURE_MS_MAX;

use super::rows::{live_above, read_body, row_cell};
use super::schema::int;
use super::tx::Tx;
use super::{Journal, JournalError, Rebased, Result};

impl Journal {
    /// Rewrites own ops that are too far in the future into a new log, stamped now.
    pub fn rebase(&mut self, now_ms: u64) -> Result<Rebased> {
        let mut tx = self.begin(now_ms)?;
        tx.group()?;
        let outcome = tx.rebase()?;
        if matches!(outcome, Rebased::Done { .. }) {
            tx.commit()?;
        }
        Ok(outcome)
    }
}

/// An op to remove.
pub(super) struct Held {
    pub(super) arr: i64,
    pub(super) log: i64,
    pub(super) log_id: LogId,
    pub(super) hash: OpHash,
    pub(super) opaque: bool,
    pub(super) body: Body,
}

/// The key of a record in the database: model, scope and id.
type Place = (i64, i64, Vec<u8>);

impl Tx<'_> {
    /// See [`Journal::rebase`].
    pub(super) fn rebase(&mut self) -> Result<Rebased> {
        let me = self.me();
        let dev = self.device(&me)?;
        let bound = int(Hlc::from_ms(self.now_ms.saturating_add(FUTURE_MS_MAX + 1)).0);
        // Stamps rise along a log, except those of fills, and a log's last op is never dropped. So
        // the ops that are stored show whether there are any.
        let others: bool = self.db.query_row(
            "SELECT EXISTS (SELECT 1 FROM ops JOIN logs USING (log) WHERE hlc >= ?1 AND dev != ?2)",
            params![bound, dev],
            |row| row.get(0),
        )?;
        let acked: bool = self.db.query_row(
            "SELECT EXISTS (SELECT 1 FROM ops o JOIN logs l USING (log)
                 JOIN acks a ON a.log = o.log AND a.seq >= o.seq AND a.dev != ?2
                 WHERE o.hlc >= ?1 AND l.dev = ?2)",
            params![bound, dev],
            |row| row.get(0),
        )?;
        let doomed = self.doomed(bound, dev)?;
        if doomed.is_empty() {
            return Ok(Rebased::Nothing);
        }
        if others || acked {
            return Ok(Rebased::OurClockIsSlow);
        }
        if doomed.iter().any(|op| op.body.changes.contains(&Change::Unknown)) {
            return Err(JournalError::Unreadable);
        }
        self.take_out(&doomed, &me)?;
        self.close_log();
        let log = self.begin_log()?;
        let mut moved: BTreeMap<(LogId, u64), Stamp> = BTreeMap::new();
        let ops = doomed.len();
        for Held { log_id, body, .. } in doomed {
            let seq = body.seq;
            let changes = self.anew(body.changes, &moved)?;
            let written = self.author(changes, None)?.map_err(|error| {
                JournalError::Damaged(format!("an op cannot be written anew: {error}"))
            })?;
            moved.insert((log_id, seq), written.stamp);
        }
        Ok(Rebased::Done { ops, log })
    }

    fn doomed(&self, bound: i64, dev: i64) -> Result<Vec<Held>> {
        let mut query = self.db.prepare(
            "SELECT o.arr, o.log, l.log_id, o.hash, o.body, o.opaque FROM ops o JOIN logs l USING (log)
             WHERE o.hlc >= ?1 AND l.dev = ?2 ORDER BY o.hlc, o.arr",
        )?;
        let rows = query.query_map(params![bound, dev], |row| {
            let body: Vec<u8> = row.get(4)?;
            let opaque = row.get(5)?;
            Ok((row.get(0)?, row.get(1)?, LogId(row.get(2)?), OpHash(row.get(3)?), body, opaque))
        })?;
        rows.map(|row| {
            let (arr, log, log_id, hash, body, opaque) = row?;
            Ok(Held { arr, log, log_id, hash, opaque, body: read_body(&body)? })
        })
        .collect()
    }

    /// Takes out ops with their writes, and moves their logs' clocks back before them.
    fn take_out(&mut self, doomed: &[Held], me: &NodeId) -> Result<()> {
        let mut first: BTreeMap<i64, u64> = BTreeMap::new();
        for op in doomed {
            self.take_out_op(op)?;
            let seq = first.entry(op.log).or_insert(op.body.seq);
            *seq = op.body.seq.min(*seq);
        }
        for (log, seq) in first {
            self.retreat(log, seq)?;
        }
        // Stays above all stamps ever admitted from others: such an op may have been dropped since
        // as dominated by an op taken out here, so the rewritten op must dominate it too.
        self.hlc_max = self.hlc_max.min(Hlc::from_ms(self.now_ms.saturating_add(FUTURE_MS_MAX)));
        tracing::warn!(device = %me.short(), ops = doomed.len(), "writing ops with a wrong clock again");
        Ok(())
    }

    /// Takes out an op with all its writes. Returns the records that changed.
    pub(super) fn take_out_op(&mut self, op: &Held) -> Result<BTreeSet<Place>> {
        let records = self.take_out_cells(op)?;
        self.take_out_events(op)?;
        for (index, change) in op.body.changes.iter().enumerate() {
            if !matches!(change, Change::Member(_)) {
                continue;
            }
            let gone = self.db.execute(
                "DELETE FROM members WHERE op = ?1 AND idx = ?2",
                params![op.arr, int(index as u64)],
            )?;
            if gone == 1 {
                self.digest.remove(&fact_digest(&op.hash, index));
                self.facts_lost();
                self.add_refs(op.arr, -1)?;
            }
        }
        if op.opaque {
            self.toggle_above(op.log, op.body.seq, &op.hash.0, false)?;
        }
        self.delete_op(op.arr)?;
        Ok(records)
    }

    /// Moves a log's clock back to the last stored op before `seq`. Ops stored above it stay: fills
    /// are stamped with the earliest time wherever they are in a log.
    fn retreat(&mut self, log: i64, seq: u64) -> Result<()> {
        if self.log(log)?.seq < seq {
            return Ok(());
        }
        let last = self.top_held(log, 0, seq - 1)?;
        let (to, head) = last.map_or((0, None), |(to, head)| (to, Some(head)));
        let above = live_above(&self.db, log, to)?;
        let row = self.log(log)?;
        (row.seq, row.head) = (to, head);
        if !row.forked {
            row.above = above;
        }
        self.absorb(log)
    }

    fn take_out_cells(&mut self, op: &Held) -> Result<BTreeSet<Place>> {
        let cells: Vec<(i64, i64, CellKey, Option<NodeId>, CellValue)> = {
            let mut query = self.db.prepare_cached(
                "SELECT c.hlc, c.log_id, c.seq, c.removed, c.value, c.model, c.scope, m.name, c.id,
                     c.field, c.elem, d.id
                 FROM cells c JOIN models m USING (model) LEFT JOIN devices d ON d.dev = c.scope
                 WHERE c.op = ?1",
            )?;
            let rows = query.query_map([op.arr], |row| {
                let owner = row.get::<_, Option<[u8; 32]>>(11)?.map(NodeId);
                let record = Key { model: row.get(7)?, id: row.get(8)?, owned: owner.is_some() };
                let key = CellKey { record, field: row.get(9)?, elem: row.get(10)? };
                Ok((row.get(5)?, row.get(6)?, key, owner, row_cell(row, 0)?))
            })?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let mut records = BTreeSet::new();
        let mut streams = BTreeSet::new();
        for (model, scope, key, owner, value) in cells {
            let CellKey { record, field, elem } = &key;
            self.db.execute(
                "DELETE FROM cells
                 WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem = ?5",
                params![model, scope, record.id, field, elem],
            )?;
            let gone = cell_digest(&record.model, owner.as_ref(), &record.id, field, elem, &value);
            self.digest.remove(&gone);
            self.add_refs(op.arr, -1)?;
            self.db.execute(
                "UPDATE records SET alive = EXISTS (SELECT 1 FROM cells
                     WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = '' AND elem = 'a')
                 WHERE model = ?1 AND scope = ?2 AND id = ?3",
                params![model, scope, record.id],
            )?;
            if record.model == STREAM_MODEL && !record.owned {
                streams.insert((model, record.id.clone()));
            }
            records.insert((model, scope, key.record.id));
        }
        for (model, id) in streams {
            self.reread_retention(model, &id)?;
        }
        Ok(records)
    }

    fn take_out_events(&mut self, op: &Held) -> Result<()> {
        for (index, change) in op.body.changes.iter().enumerate() {
            let Change::Event(event) = change else {
                continue;
            };
            let gone = self.db.execute(
                "DELETE FROM events WHERE stream = ?1 AND log = ?2 AND event_seq = ?3 AND arr = ?4
                     AND idx = ?5",
                params![event.stream, op.log, int(event.event_seq), op.arr, int(index as u64)],
            )?;
            if gone == 0 {
                continue;
            }
            self.add_refs(op.arr, -1)?;
            let counted: bool = self.db.query_row(
                "SELECT NOT EXISTS (SELECT 1 FROM retention WHERE stream = ?1)",
                [&event.stream],
                |row| row.get(0),
            )?;
            if counted {
                self.digest.remove(&event_digest(&op.hash, index));
            }
        }
        Ok(())
    }

    /// The changes of an op as they are rewritten: removals name the rewritten adds, and event
    /// numbers continue those in the new log.
    fn anew(
        &mut self,
        changes: Vec<Change>,
        moved: &BTreeMap<(LogId, u64), Stamp>,
    ) -> Result<Vec<Change>> {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        let mut anew = Vec::with_capacity(changes.len());
        for change in changes {
            anew.push(match change {
                Change::Put(mut put) => {
                    for removal in &mut put.remove {
                        let seen = (removal.observed.log, removal.observed.seq);
                        if let Some(stamp) = moved.get(&seen) {
                            removal.observed = *stamp;
                        } else if removal.observed.hlc > self.hlc_max {
                            // The add was dropped as dead, so the removal names a stamp later than
                            // anything that replaced it.
                            let log = LogId([0xff; LogId::LEN]);
                            removal.observed = Stamp { hlc: self.hlc_max, log, seq: 0 };
                        }
                    }
                    Change::Put(put)
                }
                Change::Event(mut event) => {
                    event.event_seq = match next.get(&event.stream) {
                        Some(seq) => *seq,
                        None => self.next_event(&event.stream)?,
                    };
                    next.insert(event.stream.clone(), event.event_seq + 1);
                    Change::Event(event)
                }
                other => other,
            });
        }
        Ok(anew)
    }
}
