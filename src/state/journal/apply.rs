//! Applying an op to the state: the chain of its log, its cells, events and facts.
//!
//! Applying is idempotent, also for ops that were dropped: when a dead op arrives again, every cell
//! already has its value or a greater one, and it is dropped again.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, params};

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::journal::cell::{ALIVE, CellKey, CellValue, cell_digest, fact_digest, writes};
use crate::core::journal::members::MemberFact;
use crate::core::journal::op::{Body, Change, Key, MemberChange, STREAM_MODEL, group_id};
use crate::core::journal::set_hash::Element;
use crate::core::journal::stamp::Stamp;

use super::Result;
use super::rows::{ADD, GENESIS, REMOVE, fact_kind, live_above, read_body, row_cell, tells_facts};
use super::schema::{int, seq_key};
use super::superseded::is_version;
use super::tx::{Lost, Tx};
use super::verify::VerifiedOp;

/// How many cells of a record are in memory at a time while it is cleared: a record has no bound of
/// its own.
const CLEARED_AT_ONCE: i64 = 256;

/// The result of applying an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// The op is stored now, with this arrival number.
    New(i64),
    /// The op was stored already.
    Known,
    /// Nothing in the op counts any more, so it was not stored.
    Dead,
}

/// A cell as it is stored.
pub(super) struct Held {
    pub(super) value: CellValue,
    /// The arrival number of the op that holds the cell.
    pub(super) op: i64,
}

/// The key of a cell in the database.
struct Place<'a> {
    model: i64,
    scope: i64,
    owner: Option<NodeId>,
    key: &'a CellKey,
}

impl Tx<'_> {
    /// Applies an op that was admitted.
    pub(super) fn apply(&mut self, op: &VerifiedOp) -> Result<Applied> {
        let log = self.intern_log(&op.log(), &op.signed().log)?;
        let (seq, hash) = (op.body().seq, op.hash());
        let held = self.hashes_at(log, seq)?;
        if held.contains(&hash) {
            return Ok(Applied::Known);
        }
        if !tells_facts(op) && self.is_crowded_out(log, seq, &hash)? {
            return Ok(Applied::Dead);
        }
        if !self.log(log)?.forked && (!held.is_empty() || self.breaks_chain(log, op)?) {
            self.set_forked(log)?;
        }
        let opaque = op.body().changes.contains(&Change::Unknown);
        let bytes = op.signed().body.len() + op.signed().sig.len();
        self.db
            .prepare_cached(
                "INSERT INTO ops (log, seq, hash, hlc, refs, opaque, recv_ms, body, sig)
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                log,
                int(seq),
                hash.0,
                int(op.body().hlc.0),
                opaque,
                int(self.now_ms),
                &op.signed().body[..],
                op.signed().sig
            ])?;
        let arr = self.db.last_insert_rowid();
        self.news.ops = true;
        self.add_bytes(log, int(bytes as u64))?;
        if opaque {
            self.toggle_above(log, seq, &hash.0, true)?;
        }
        self.hlc_max = self.hlc_max.max(op.body().hlc);
        if op.signed().log.author != self.me() {
            self.hlc_others = self.hlc_others.max(op.body().hlc);
        }
        self.merge(arr, log, &op.signed().log.author, &op.log(), &hash, op.body())?;
        let row = self.log(log)?;
        if seq == row.seq + 1 {
            self.advance(log, seq, hash)?;
            self.absorb(log)?;
        }
        if !held.is_empty() {
            self.trim_branches(log, seq, arr)?;
        }
        let row = self.log(log)?;
        let droppable = seq < row.seq && !row.forked && !opaque;
        if droppable && self.refs(arr)? == 0 {
            self.delete_op(arr)?;
            return Ok(Applied::Dead);
        }
        Ok(Applied::New(arr))
    }

    /// Merges the changes of an op into the state. Merging the same op again is harmless.
    pub(super) fn merge(
        &mut self,
        arr: i64,
        log: i64,
        author: &NodeId,
        log_id: &LogId,
        hash: &OpHash,
        body: &Body,
    ) -> Result<()> {
        let mut touched = BTreeSet::new();
        for (key, value) in writes(body, *log_id) {
            let changed = match is_version(&key) {
                true => self.merge_version(arr, author, hash, &key, value)?,
                false => self.merge_cell(arr, author, hash, &key, value)?,
            };
            if changed {
                touched.insert(key.record);
            }
        }
        for record in touched {
            self.touch_record(&record, author, arr)?;
        }
        for (index, change) in body.changes.iter().enumerate() {
            match change {
                Change::Event(event) => {
                    self.append_event(arr, log, hash, index, body.hlc, event)?
                }
                Change::Member(fact) => self.add_fact(arr, author, hash, index, fact)?,
                Change::Put(_) | Change::Delete(_) | Change::Unknown => {}
            }
        }
        self.keep_lost(author, body.hlc)
    }

    /// Merges the version of a path, and notes the one that loses. Returns whether the record
    /// changed.
    fn merge_version(
        &mut self,
        arr: i64,
        author: &NodeId,
        hash: &OpHash,
        key: &CellKey,
        value: CellValue,
    ) -> Result<bool> {
        let before = self.cell(key, author)?.map(|held| held.value);
        let changed = self.merge_cell(arr, author, hash, key, value.clone())?;
        let loser = match (changed, before) {
            (true, before) => before,
            (false, Some(before)) if before == value => None,
            (false, _) => Some(value),
        };
        self.lost.extend(loser.map(|loser| Lost::new(key, loser)));
        Ok(changed)
    }

    fn refs(&self, arr: i64) -> Result<i64> {
        let mut query = self.db.prepare_cached("SELECT refs FROM ops WHERE arr = ?1")?;
        Ok(query.query_row([arr], |row| row.get(0))?)
    }

    // ---- the chain ---------------------------------------------------------------------------

    pub(super) fn hashes_at(&self, log: i64, seq: u64) -> Result<Vec<OpHash>> {
        let mut query = self
            .db
            .prepare_cached("SELECT hash FROM ops WHERE log = ?1 AND seq = ?2 ORDER BY hash")?;
        let rows = query.query_map(params![log, seq_key(seq)], |row| row.get(0).map(OpHash))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a stored neighbour contradicts the chain: another op in the new op's place or before
    /// it.
    fn breaks_chain(&mut self, log: i64, op: &VerifiedOp) -> Result<bool> {
        let (seq, hash) = (op.body().seq, op.hash());
        let row = self.log(log)?;
        let at_head = (seq == row.seq + 1).then_some(row.head).flatten();
        if at_head.is_some_and(|head| op.body().prev != Some(head)) {
            return Ok(true);
        }
        let before = if seq > 1 { self.hashes_at(log, seq - 1)? } else { Vec::new() };
        if !before.is_empty() && !before.iter().any(|hash| op.body().prev == Some(*hash)) {
            return Ok(true);
        }
        let after = self.prevs_at(log, seq + 1)?;
        Ok(!after.is_empty() && !after.contains(&Some(hash)))
    }

    /// The `prev` hashes of the ops with a number.
    fn prevs_at(&self, log: i64, seq: u64) -> Result<Vec<Option<OpHash>>> {
        let mut query =
            self.db.prepare_cached("SELECT body FROM ops WHERE log = ?1 AND seq = ?2")?;
        let rows = query.query_map(params![log, seq_key(seq)], |row| row.get::<_, Vec<u8>>(0))?;
        rows.map(|body| Ok(read_body(&body?)?.prev)).collect()
    }

    pub(super) fn set_forked(&mut self, log: i64) -> Result<()> {
        let above = live_above(&self.db, log, 0)?;
        let row = self.log(log)?;
        tracing::warn!(log = %row.id, "a log has two ops of one number: a device was copied or restored from a backup");
        row.forked = true;
        row.above = above;
        Ok(())
    }

    /// Moves a log's clock to a stored op. The ops that it covers now leave `above`.
    pub(super) fn advance(&mut self, log: i64, to: u64, head: OpHash) -> Result<()> {
        let row = self.log(log)?;
        let (from, forked) = (row.seq, row.forked);
        let mut covered = Vec::new();
        if !forked {
            let mut query = self.db.prepare_cached(
                "SELECT hash FROM ops
                 WHERE log = ?1 AND seq > ?2 AND seq <= ?3 AND (refs > 0 OR opaque = 1)",
            )?;
            let mut rows = query.query(params![log, int(from), int(to)])?;
            while let Some(row) = rows.next()? {
                covered.push(Element(row.get(0)?));
            }
        }
        let row = self.log(log)?;
        covered.iter().for_each(|op| row.above.remove(op));
        row.seq = to;
        row.head = Some(head);
        self.news.ops = true;
        Ok(())
    }

    /// Moves a log's clock over the stored ops that follow it.
    pub(super) fn absorb(&mut self, log: i64) -> Result<()> {
        loop {
            let row = self.log(log)?;
            let (next, head, forked) = (row.seq + 1, row.head, row.forked);
            let Some(hash) = self.hashes_at(log, next)?.first().copied() else {
                return Ok(());
            };
            if !forked && !self.prevs_at(log, next)?.contains(&head) {
                self.set_forked(log)?;
            }
            self.advance(log, next, hash)?;
        }
    }

    // ---- cells -------------------------------------------------------------------------------

    /// The scope of a record: the number of its owner, and the owner.
    pub(super) fn scope(&mut self, key: &Key, author: &NodeId) -> Result<(i64, Option<NodeId>)> {
        if key.owned { Ok((self.device(author)?, Some(*author))) } else { Ok((0, None)) }
    }

    /// A cell of a record, as named by `author`; `None` if it was never written.
    pub(super) fn cell(&mut self, key: &CellKey, author: &NodeId) -> Result<Option<Held>> {
        let (scope, owner) = self.scope(&key.record, author)?;
        let model = self.model(&key.record.model)?;
        self.held(&Place { model, scope, owner, key })
    }

    fn held(&self, place: &Place<'_>) -> Result<Option<Held>> {
        let mut query = self.db.prepare_cached(
            "SELECT hlc, log_id, seq, removed, value, op FROM cells
             WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem = ?5",
        )?;
        let CellKey { record, field, elem } = place.key;
        let row = query
            .query_row(params![place.model, place.scope, record.id, field, elem], |row| {
                Ok(Held { value: row_cell(row, 0)?, op: row.get(5)? })
            });
        Ok(row.optional()?)
    }

    /// Merges one value into its cell. Returns whether the record changed.
    fn merge_cell(
        &mut self,
        arr: i64,
        author: &NodeId,
        hash: &OpHash,
        key: &CellKey,
        value: CellValue,
    ) -> Result<bool> {
        let (scope, owner) = self.scope(&key.record, author)?;
        let model = self.model(&key.record.model)?;
        let place = Place { model, scope, owner, key };
        if !key.is_clear() {
            let clear = CellKey::clear(&key.record);
            let clear = self.held(&Place { model, scope, owner, key: &clear })?;
            if clear.is_some_and(|clear| value.stamp <= clear.value.stamp) {
                return Ok(false);
            }
        }
        match self.held(&place)? {
            Some(old) if old.value > value => return Ok(false),
            Some(old) if old.value == value => {
                self.hold_instead(arr, hash, &place, &old)?;
                return Ok(false);
            }
            Some(old) => {
                self.add_refs(old.op, -1)?;
                self.toggle_cell(&place, &old.value, false);
            }
            None => {}
        }
        self.toggle_cell(&place, &value, true);
        let CellKey { record, field, elem } = key;
        self.db
            .prepare_cached(
                "INSERT INTO cells
                     (model, scope, id, field, elem, hlc, log_id, seq, removed, value, op)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                 ON CONFLICT DO UPDATE SET hlc = excluded.hlc, log_id = excluded.log_id,
                     seq = excluded.seq, removed = excluded.removed, value = excluded.value,
                     op = excluded.op",
            )?
            .execute(params![
                model,
                scope,
                record.id,
                field,
                elem,
                int(value.stamp.hlc.0),
                value.stamp.log.0,
                int(value.stamp.seq),
                value.removed,
                value.bytes,
                arr
            ])?;
        self.add_refs(arr, 1)?;
        if key.is_clear() {
            self.clear_record(&place, value.stamp)?;
        }
        Ok(true)
    }

    /// Of several ops that write the same value, the one with the greatest hash holds the cell, so
    /// that the set of live ops does not depend on the order of arrival.
    fn hold_instead(
        &mut self,
        arr: i64,
        hash: &OpHash,
        place: &Place<'_>,
        old: &Held,
    ) -> Result<()> {
        let old_hash: [u8; 32] = self
            .db
            .prepare_cached("SELECT hash FROM ops WHERE arr = ?1")?
            .query_row([old.op], |row| row.get(0))?;
        if hash.0 <= old_hash {
            return Ok(());
        }
        let CellKey { record, field, elem } = place.key;
        self.db
            .prepare_cached(
                "UPDATE cells SET op = ?6
                 WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem = ?5",
            )?
            .execute(params![place.model, place.scope, record.id, field, elem, arr])?;
        self.add_refs(old.op, -1)?;
        self.add_refs(arr, 1)
    }

    /// Deletes the other cells of a record up to a stamp.
    fn clear_record(&mut self, place: &Place<'_>, clear: Stamp) -> Result<()> {
        // Starts before the first cell: only a register has an empty field, and its element has a
        // name.
        let mut after = CellKey { elem: String::new(), ..CellKey::clear(&place.key.record) };
        loop {
            let cells = self.cells_after(place, &after)?;
            let Some((last, _)) = cells.last() else {
                return Ok(());
            };
            after = last.clone();
            self.clear_cells(place, cells, clear)?;
        }
    }

    /// The next cells of a record, in order.
    fn cells_after(&self, place: &Place<'_>, after: &CellKey) -> Result<Vec<(CellKey, Held)>> {
        let CellKey { record, field, elem } = after;
        let mut query = self.db.prepare_cached(
            "SELECT hlc, log_id, seq, removed, value, op, field, elem FROM cells
             WHERE model = ?1 AND scope = ?2 AND id = ?3 AND (field, elem) > (?4, ?5)
             ORDER BY field, elem LIMIT ?6",
        )?;
        let rows = query.query_map(
            params![place.model, place.scope, record.id, field, elem, CLEARED_AT_ONCE],
            |row| {
                let held = Held { value: row_cell(row, 0)?, op: row.get(5)? };
                let key = CellKey { record: record.clone(), field: row.get(6)?, elem: row.get(7)? };
                Ok((key, held))
            },
        )?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn clear_cells(
        &mut self,
        place: &Place<'_>,
        cells: Vec<(CellKey, Held)>,
        clear: Stamp,
    ) -> Result<()> {
        let record = &place.key.record;
        for (key, held) in cells {
            if key.is_clear() || held.value.stamp > clear {
                continue;
            }
            self.db
                .prepare_cached(
                    "DELETE FROM cells
                     WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem = ?5",
                )?
                .execute(params![place.model, place.scope, record.id, key.field, key.elem])?;
            self.add_refs(held.op, -1)?;
            self.toggle_cell(&Place { key: &key, ..*place }, &held.value, false);
            if is_version(&key) {
                self.lost.push(Lost::new(&key, held.value));
            }
        }
        Ok(())
    }

    fn toggle_cell(&mut self, place: &Place<'_>, value: &CellValue, is_in: bool) {
        let CellKey { record: Key { model, id, .. }, field, elem } = place.key;
        let cell = cell_digest(model, place.owner.as_ref(), id, field, elem, value);
        self.digest.toggle(&cell, is_in);
    }

    fn touch_record(&mut self, record: &Key, author: &NodeId, arr: i64) -> Result<()> {
        let (scope, _) = self.scope(record, author)?;
        let model = self.model(&record.model)?;
        self.db
            .prepare_cached(
                "INSERT INTO records (model, scope, id, arr, alive)
                 VALUES (?1, ?2, ?3, ?4, EXISTS (SELECT 1 FROM cells
                     WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = '' AND elem = ?5))
                 ON CONFLICT DO UPDATE SET arr = excluded.arr, alive = excluded.alive",
            )?
            .execute(params![model, scope, record.id, arr, ALIVE])?;
        if record.model == STREAM_MODEL && !record.owned {
            self.reread_retention(model, &record.id)?;
        }
        Ok(())
    }

    // ---- facts -------------------------------------------------------------------------------

    fn add_fact(
        &mut self,
        arr: i64,
        author: &NodeId,
        hash: &OpHash,
        index: usize,
        fact: &MemberChange,
    ) -> Result<()> {
        let group = self.group()?;
        let (kind, device, name) = match fact {
            MemberChange::Genesis { nonce, name } => {
                if group_id(author, nonce) != group {
                    return Ok(());
                }
                (GENESIS, author, name.as_str())
            }
            MemberChange::Add { device, name } => (ADD, device, name.as_str()),
            MemberChange::Remove { device, .. } => (REMOVE, device, ""),
        };
        let (by_dev, dev) = (self.device(author)?, self.device(device)?);
        let added = self
            .db
            .prepare_cached(
                "INSERT INTO members (op, idx, by_dev, kind, dev, name)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
            )?
            .execute(params![arr, int(index as u64), by_dev, kind, dev, name])?;
        if added == 1 {
            self.add_refs(arr, 1)?;
            self.digest.add(&fact_digest(hash, index));
            self.tell_fact(&MemberFact { by: *author, op: *hash, index, what: fact_kind(fact) })?;
        }
        Ok(())
    }
}
