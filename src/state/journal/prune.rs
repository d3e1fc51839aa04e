//! Dropping what is no longer needed. This saves space only; correctness never depends on it (J1,
//! J5).
//!
//! A dead op is dropped when all members have acknowledged it, or after [`DEAD_OP_KEPT_MS`]. Until
//! then it spares devices that were away a jump.

use rusqlite::params;

use crate::core::ids::NodeId;
use crate::core::limits::{BRANCHES_MAX, DEAD_OP_KEPT_MS};

use super::events::DAY_MS;
use super::schema::{int, row_u64};
use super::tx::Tx;
use super::{Journal, Pruned, Result};

impl Journal {
    /// T4: drops at most `limit` rows that are no longer needed.
    pub fn prune(&mut self, now_ms: u64, limit: usize) -> Result<Pruned> {
        let mut tx = self.begin(now_ms)?;
        let mut pruned = Pruned { merged: tx.remerge(limit)?, ..Pruned::default() };
        for log in tx.all_logs()? {
            let acked = tx.acked_by_all(log)?;
            let left = limit - pruned.events - pruned.ops;
            pruned.events += tx.drop_old_events(log, acked, left)?;
            let left = limit - pruned.events - pruned.ops;
            pruned.ops += tx.drop_dead(log, acked, left)?;
        }
        pruned.more = pruned.merged > 0 || pruned.events + pruned.ops >= limit;
        tx.commit()?;
        Ok(pruned)
    }
}

impl Tx<'_> {
    /// Up to which number all other members have acknowledged a log. All of it when there are none.
    fn acked_by_all(&mut self, log: i64) -> Result<u64> {
        let me = self.me();
        let others: Vec<NodeId> =
            self.verdicts()?.members().filter(|device| **device != me).copied().collect();
        let mut least = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
        for other in others {
            let dev = self.device(&other)?;
            let acked = self
                .db
                .prepare_cached("SELECT ifnull(max(seq), 0) FROM acks WHERE dev = ?1 AND log = ?2")?
                .query_row(params![dev, log], |row| row_u64(row, 0))?;
            least = least.min(acked);
        }
        Ok(least)
    }

    /// Drops dead ops that are acknowledged or old. Where [`BRANCHES_MAX`] ops have one number the
    /// dead ones stay, because they decide which others are kept; unless space is used up, when
    /// `acked` is the greatest number.
    fn drop_dead(&mut self, log: i64, acked: u64, limit: usize) -> Result<usize> {
        let row = self.log(log)?;
        let (seq, forked) = (row.seq, row.forked);
        let dead: Vec<i64> = {
            let mut query = self.db.prepare_cached(
                "SELECT arr FROM ops o WHERE log = ?1 AND refs = 0 AND opaque = 0 AND seq < ?2
                     AND (seq <= ?3 OR recv_ms < ?4)
                     AND (?6 OR (SELECT count(*) FROM ops p
                                 WHERE p.log = o.log AND p.seq = o.seq) < ?7)
                 ORDER BY seq LIMIT ?5",
            )?;
            let cut_ms = self.now_ms.saturating_sub(DEAD_OP_KEPT_MS);
            let rows = query.query_map(
                params![
                    log,
                    int(seq),
                    int(acked),
                    int(cut_ms),
                    int(limit as u64),
                    !forked || acked == u64::MAX,
                    int(BRANCHES_MAX as u64)
                ],
                |row| row.get(0),
            )?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        for arr in &dead {
            self.delete_op(*arr)?;
        }
        Ok(dead.len())
    }

    /// Drops all dead ops of a device, even unacknowledged ones, because its space is used up.
    pub(super) fn drop_dead_of(&mut self, dev: i64) -> Result<()> {
        let logs: Vec<i64> = {
            let mut query = self.db.prepare_cached("SELECT log FROM logs WHERE dev = ?1")?;
            let rows = query.query_map([dev], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        for log in logs {
            self.drop_dead(log, u64::MAX, usize::MAX)?;
        }
        Ok(())
    }

    /// Drops events of a log that are past their stream's retention.
    fn drop_old_events(&mut self, log: i64, acked: u64, limit: usize) -> Result<usize> {
        let streams: Vec<(String, u64)> = {
            let mut query = self.db.prepare_cached(
                "SELECT stream, keep_days FROM retention WHERE keep_days IS NOT NULL",
            )?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row_u64(row, 1)?)))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let mut dropped = 0;
        for (stream, days) in streams {
            let cut_ms = self.now_ms.saturating_sub(days.saturating_mul(DAY_MS));
            let kept_ms = self.settled_ms().saturating_sub(DEAD_OP_KEPT_MS);
            let old: Vec<(u64, i64, i64)> = {
                let mut query = self.db.prepare_cached(
                    "SELECT e.event_seq, e.arr, e.idx FROM events e JOIN ops o ON o.arr = e.arr
                     WHERE e.stream = ?1 AND e.log = ?2 AND e.hlc < ?3
                         AND (o.seq <= ?4 OR o.recv_ms < ?5) ORDER BY e.event_seq LIMIT ?6",
                )?;
                let rows = query.query_map(
                    params![
                        stream,
                        log,
                        int(crate::core::journal::stamp::Hlc::from_ms(cut_ms).0),
                        int(acked),
                        int(kept_ms),
                        int((limit - dropped) as u64)
                    ],
                    |row| Ok((row_u64(row, 0)?, row.get(1)?, row.get(2)?)),
                )?;
                rows.collect::<rusqlite::Result<_>>()?
            };
            for (event_seq, arr, idx) in &old {
                self.db
                    .prepare_cached(
                        "DELETE FROM events WHERE stream = ?1 AND log = ?2 AND event_seq = ?3
                             AND arr = ?4 AND idx = ?5",
                    )?
                    .execute(params![stream, log, int(*event_seq), arr, idx])?;
                self.add_refs(*arr, -1)?;
            }
            dropped += old.len();
        }
        Ok(dropped)
    }
}
