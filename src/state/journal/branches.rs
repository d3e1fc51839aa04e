//! Forked logs: how many ops with one number are kept, and which.
//!
//! F1  If there are more than [`BRANCHES_MAX`] ops with one number, those with the smallest hashes
//!     are kept. None of these is ever dropped for another op, so each is passed on, and devices
//!     that received the ops in different orders end with the same ones.
//! F2  When an op is dropped its writes are undone. Values that it had replaced come back from the
//!     ops that are still stored ([`Tx::remerge`]), here or at peers whose digest then differs.
//! F3  Ops with membership facts neither count nor are dropped: facts are never removed, and their
//!     number per author is bounded.

use rusqlite::{OptionalExtension, params};

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::limits::BRANCHES_MAX;

use super::Result;
use super::rebase::Held;
use super::rows::read_body;
use super::schema::{delete_meta, int, key, meta_u64, row_u64, seq_key, set_meta};
use super::tx::Tx;

impl Tx<'_> {
    /// Whether enough ops with that number and smaller hashes are stored.
    pub(super) fn is_crowded_out(&self, log: i64, seq: u64, hash: &OpHash) -> Result<bool> {
        let mut query = self.db.prepare_cached(
            "SELECT count(*) FROM ops o WHERE log = ?1 AND seq = ?2 AND hash < ?3
                 AND NOT EXISTS (SELECT 1 FROM members m WHERE m.op = o.arr)",
        )?;
        let lesser = query.query_row(params![log, seq_key(seq), hash.0], |row| row_u64(row, 0))?;
        Ok(lesser >= BRANCHES_MAX as u64)
    }

    /// Drops the ops with a number beyond [`BRANCHES_MAX`]. `newest` is the op whose arrival made
    /// them too many: it counts as the last change of the records that change.
    pub(super) fn trim_branches(&mut self, log: i64, seq: u64, newest: i64) -> Result<()> {
        while let Some(op) = self.surplus(log, seq)? {
            for (model, scope, id) in self.take_out_op(&op)? {
                self.db
                    .prepare_cached(
                        "UPDATE records SET arr = ?4 WHERE model = ?1 AND scope = ?2 AND id = ?3",
                    )?
                    .execute(params![model, scope, id, newest])?;
            }
            let head = self.log(log)?.head;
            if head == Some(op.hash) {
                let least = self.hashes_at(log, seq)?.first().copied();
                self.log(log)?.head = least;
            }
            set_meta(&self.db, key::REMERGED, &0u64.to_be_bytes())?;
        }
        Ok(())
    }

    /// Of the ops with the number `seq`, the one to drop first.
    fn surplus(&self, log: i64, seq: u64) -> Result<Option<Held>> {
        let mut query = self.db.prepare_cached(
            "SELECT o.arr, l.log_id, o.hash, o.body, o.opaque FROM ops o JOIN logs l USING (log)
             WHERE o.log = ?1 AND o.seq = ?2
                 AND NOT EXISTS (SELECT 1 FROM members m WHERE m.op = o.arr)
             ORDER BY o.hash LIMIT 1 OFFSET ?3",
        )?;
        let found = query.query_row(params![log, seq_key(seq), int(BRANCHES_MAX as u64)], |row| {
            let body: Vec<u8> = row.get(3)?;
            Ok((row.get(0)?, LogId(row.get(1)?), OpHash(row.get(2)?), body, row.get(4)?))
        });
        let Some((arr, log_id, hash, body, opaque)) = found.optional()? else { return Ok(None) };
        Ok(Some(Held { arr, log, log_id, hash, opaque, body: read_body(&body)? }))
    }

    /// Merges some of the ops again, in order of arrival, after ops were dropped that may have
    /// replaced their writes (F2). Returns how many.
    pub(super) fn remerge(&mut self, limit: usize) -> Result<usize> {
        let Some(from) = meta_u64(&self.db, key::REMERGED)? else { return Ok(0) };
        let ops: Vec<(i64, i64, LogId, NodeId, OpHash, Vec<u8>)> = {
            let mut query = self.db.prepare_cached(
                "SELECT o.arr, o.log, l.log_id, d.id, o.hash, o.body
                 FROM ops o JOIN logs l USING (log) JOIN devices d USING (dev)
                 WHERE o.arr > ?1 ORDER BY o.arr LIMIT ?2",
            )?;
            let rows = query.query_map(params![int(from), int(limit as u64)], |row| {
                let (log_id, author) = (LogId(row.get(2)?), NodeId(row.get(3)?));
                Ok((row.get(0)?, row.get(1)?, log_id, author, OpHash(row.get(4)?), row.get(5)?))
            })?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let Some((last, ..)) = ops.last() else {
            delete_meta(&self.db, key::REMERGED)?;
            return Ok(0);
        };
        set_meta(&self.db, key::REMERGED, &last.to_be_bytes())?;
        for (arr, log, log_id, author, hash, body) in &ops {
            self.merge(*arr, *log, author, log_id, hash, &read_body(body)?)?;
        }
        Ok(ops.len())
    }
}
