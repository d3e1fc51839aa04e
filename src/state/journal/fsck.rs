//! Checks the journal's consistency: everything that is stored twice is computed again from the
//! tables.
//!
//! That is reference counts of ops, clocks and heads, chains, sums, digests and records; and for
//! each stored op, that the cells are at least what it wrote (J1).

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use crate::core::ids::{GroupId, LogId, NodeId, OpHash};
use crate::core::journal::cell::{ALIVE, CLEAR, CellKey, CellValue, writes};
use crate::core::journal::op::{Change, LogInfo, SignedOp, op_hash};
use crate::core::journal::set_hash::{Element, SetHash};

use super::digest::state_digest;
use super::rows::{read_body, row_cell};
use super::schema::{key, meta, meta_array, meta_set, row_set, row_u64, seq_key};
use super::verify::verify;
use super::{JournalReader, Result};

/// The most findings: nobody reads on after this many.
const FINDINGS_MAX: usize = 100;

impl JournalReader {
    /// Recomputes in one snapshot everything that is stored twice. Empty when nothing is wrong. It
    /// reads the whole journal, which takes a while on a large one: use a reader for it alone.
    pub fn fsck(&self) -> Result<Vec<String>> {
        let tx = self.connection.unchecked_transaction()?;
        let mut check = Check { db: &tx, findings: Vec::new() };
        check.pages()?;
        check.logs()?;
        check.ops()?;
        check.digest()?;
        check.records()?;
        check.streams()?;
        check.open_log()?;
        Ok(check.findings)
    }

    /// Verifies the signature of every stored op: about ten thousand per second.
    pub fn check_signatures(&self) -> Result<Vec<String>> {
        let tx = self.connection.unchecked_transaction()?;
        let mut check = Check { db: &tx, findings: Vec::new() };
        check.signatures()?;
        Ok(check.findings)
    }
}

struct Check<'a> {
    db: &'a Connection,
    findings: Vec<String>,
}

/// What a log's row should contain, computed from its ops.
#[derive(Default)]
struct Sums {
    above: SetHash,
    bytes: u64,
    at_clock: Vec<OpHash>,
    /// The number and hashes of the ops read last.
    last: (u64, Vec<OpHash>),
    past: Vec<OpHash>,
}

impl Check<'_> {
    fn find(&mut self, finding: impl Into<String>) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding.into());
        }
    }

    fn pages(&mut self) -> Result<()> {
        let said: String = self.db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if said != "ok" {
            self.find(format!("the database file: {said}"));
        }
        Ok(())
    }

    fn logs(&mut self) -> Result<()> {
        let mut query =
            self.db.prepare("SELECT log, log_id, seq, head, forked, above, bytes FROM logs")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let id = LogId(row.get(1)?);
            let (seq, forked): (u64, bool) = (row_u64(row, 2)?, row.get(4)?);
            let head = row.get::<_, Option<[u8; 32]>>(3)?.map(OpHash);
            let sums = self.sum_log(row.get(0)?, id, seq, forked)?;
            if sums.above != row_set(row, 5)? {
                self.find(format!("log {id}: the sum above its clock is wrong"));
            }
            if sums.bytes != row_u64(row, 6)? {
                self.find(format!("log {id}: its size is wrong"));
            }
            if head.is_some() != (seq > 0) {
                self.find(format!("log {id}: clock {seq} and head do not fit"));
            }
            let held = head.is_some_and(|head| sums.at_clock.contains(&head));
            if seq > 0 && !held {
                self.find(format!("log {id}: the op at its clock, {seq}, is not held"));
            }
            if sums.last.0 > seq && self.is_held(row.get(0)?, seq + 1)? {
                self.find(format!("log {id}: op {} is held and not covered", seq + 1));
            }
        }
        Ok(())
    }

    fn is_held(&self, log: i64, seq: u64) -> Result<bool> {
        let query = "SELECT EXISTS (SELECT 1 FROM ops WHERE log = ?1 AND seq = ?2)";
        Ok(self.db.query_row(query, params![log, seq_key(seq)], |row| row.get(0))?)
    }

    /// Reads a log's ops in order, and checks their bytes and chain.
    fn sum_log(&mut self, log: i64, id: LogId, clock: u64, forked: bool) -> Result<Sums> {
        let mut query = self.db.prepare_cached(
            "SELECT seq, hash, hlc, refs > 0 OR opaque = 1, body, length(sig) FROM ops
             WHERE log = ?1 ORDER BY seq, hash",
        )?;
        let mut rows = query.query([log])?;
        let mut sums = Sums::default();
        while let Some(row) = rows.next()? {
            let (seq, hash) = (row_u64(row, 0)?, OpHash(row.get(1)?));
            let bytes: Vec<u8> = row.get(4)?;
            sums.bytes += bytes.len() as u64 + row_u64(row, 5)?;
            if (forked || seq > clock) && row.get::<_, bool>(3)? {
                sums.above.add(&Element(hash.0));
            }
            if seq == clock {
                sums.at_clock.push(hash);
            }
            if op_hash(&id, &bytes) != hash {
                self.find(format!("op {id}/{seq}: its bytes do not have its hash"));
                continue;
            }
            let body = read_body(&bytes)?;
            if body.seq != seq || body.hlc.0 != row_u64(row, 2)? {
                self.find(format!("op {id}/{seq}: its row says something else than its body"));
            }
            if sums.last.0 != seq {
                sums.past = match sums.last.0 + 1 == seq {
                    true => std::mem::take(&mut sums.last.1),
                    false => Vec::new(),
                };
                sums.last = (seq, Vec::new());
            } else if !forked {
                self.find(format!("op {id}/{seq}: two in a log that is not forked"));
            }
            let follows = body.prev.is_none_or(|prev| sums.past.contains(&prev));
            if !forked && !sums.past.is_empty() && !follows {
                self.find(format!("op {id}/{seq}: the chain breaks before it"));
            }
            sums.last.1.push(hash);
        }
        Ok(sums)
    }

    /// Checks the reference counts, and that cells are at least what ops wrote.
    fn ops(&mut self) -> Result<()> {
        let mut held: BTreeMap<i64, i64> = BTreeMap::new();
        for table in ["SELECT op FROM cells", "SELECT arr FROM events", "SELECT op FROM members"] {
            let mut query = self.db.prepare(table)?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                *held.entry(row.get(0)?).or_default() += 1;
            }
        }
        let mut query = self.db.prepare(
            "SELECT o.arr, o.refs, o.body, l.log_id, d.id, o.opaque, o.hlc FROM ops o
             JOIN logs l USING (log) JOIN devices d USING (dev)",
        )?;
        let mut rows = query.query([])?;
        let hlc_max = meta_array(self.db, key::HLC_MAX)?.map_or(0, u64::from_be_bytes);
        let remerges = meta(self.db, key::REMERGED)?.is_some();
        while let Some(row) = rows.next()? {
            let (arr, refs): (i64, i64) = (row.get(0)?, row.get(1)?);
            let holds = held.remove(&arr).unwrap_or(0);
            if holds != refs {
                self.find(format!("op {arr}: holds {holds} things, its count is {refs}"));
            }
            if row_u64(row, 6)? > hlc_max {
                self.find(format!("op {arr}: is later than the greatest time"));
            }
            let body = read_body(&row.get::<_, Vec<u8>>(2)?)?;
            if body.changes.contains(&Change::Unknown) != row.get::<_, bool>(5)? {
                self.find(format!("op {arr}: whether it can be read is marked wrong"));
            }
            let (log, author) = (LogId(row.get(3)?), NodeId(row.get(4)?));
            let mut exact = 0;
            for (key, value) in writes(&body, log) {
                match self.compare(arr, &author, &key, &value)? {
                    Some(true) => exact += 1,
                    Some(false) => {}
                    // The op that replaced it was dropped, and a remerge is pending.
                    None if remerges => {}
                    None => self.find(format!("op {arr}: what it wrote to {key:?} is lost")),
                }
            }
            let cells = "SELECT count(*) FROM cells WHERE op = ?1";
            if refs > 0 && exact != self.db.query_row(cells, [arr], |row| row.get::<_, i64>(0))? {
                self.find(format!("op {arr}: holds cells that it did not write"));
            }
        }
        for arr in held.keys() {
            self.find(format!("something is held by op {arr}, which is not there"));
        }
        Ok(())
    }

    /// Whether a cell has exactly the value that an op wrote and is held by it; `None` when it is
    /// less.
    fn compare(
        &self,
        arr: i64,
        author: &NodeId,
        key: &CellKey,
        value: &CellValue,
    ) -> Result<Option<bool>> {
        let held = self.cell(author, key)?;
        if let Some((now, op)) = held
            && now >= *value
        {
            return Ok(Some(op == arr));
        }
        let clear = self.cell(author, &CellKey::clear(&key.record))?;
        Ok(clear.filter(|(clear, _)| clear.stamp >= value.stamp).map(|_| false))
    }

    fn cell(&self, author: &NodeId, key: &CellKey) -> Result<Option<(CellValue, i64)>> {
        let owner = key.record.owned.then_some(author.0);
        let mut query = self.db.prepare_cached(
            "SELECT hlc, log_id, seq, removed, value, op FROM cells
             WHERE model = (SELECT model FROM models WHERE name = ?1)
                 AND scope = ifnull((SELECT dev FROM devices WHERE id = ?2), 0)
                 AND id = ?3 AND field = ?4 AND elem = ?5",
        )?;
        let mut rows =
            query.query(params![key.record.model, owner, key.record.id, key.field, key.elem])?;
        let row = rows.next()?;
        Ok(row.map(|row| Ok::<_, rusqlite::Error>((row_cell(row, 0)?, row.get(5)?))).transpose()?)
    }

    fn digest(&mut self) -> Result<()> {
        let kept = meta_set(self.db, key::DIGEST)?.unwrap_or_default();
        if kept != state_digest(self.db)? {
            self.find("the digest of the state is wrong");
        }
        Ok(())
    }

    fn records(&mut self) -> Result<()> {
        let strays: i64 = self.db.query_row(
            "SELECT count(*) FROM (SELECT DISTINCT model, scope, id FROM cells) c
             LEFT JOIN records r USING (model, scope, id) WHERE r.arr IS NULL",
            [],
            |row| row.get(0),
        )?;
        if strays > 0 {
            self.find(format!("{strays} records have cells and no row"));
        }
        let wrong: i64 = self.db.query_row(
            "SELECT count(*) FROM records r WHERE alive != EXISTS (SELECT 1 FROM cells c
                 WHERE c.model = r.model AND c.scope = r.scope AND c.id = r.id
                     AND c.field = '' AND c.elem = ?1)",
            [ALIVE],
            |row| row.get(0),
        )?;
        if wrong > 0 {
            self.find(format!("{wrong} records are marked wrong as there or not there"));
        }
        let late: i64 = self.db.query_row(
            "SELECT count(*) FROM cells c JOIN cells x USING (model, scope, id)
             WHERE x.field = '' AND x.elem = ?1 AND NOT (c.field = '' AND c.elem = ?1)
                 AND (c.hlc, c.log_id, c.seq) <= (x.hlc, x.log_id, x.seq)",
            [CLEAR],
            |row| row.get(0),
        )?;
        if late > 0 {
            self.find(format!("{late} cells should have gone with their record"));
        }
        Ok(())
    }

    fn streams(&mut self) -> Result<()> {
        let mut nexts: BTreeMap<(String, i64), u64> = BTreeMap::new();
        let mut query = self.db.prepare("SELECT stream, log, event_seq FROM events")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let next = nexts.entry((row.get(0)?, row.get(1)?)).or_default();
            *next = (*next).max(row_u64(row, 2)?.saturating_add(1).min(i64::MAX.cast_unsigned()));
        }
        let mut query = self.db.prepare("SELECT stream, log, next FROM streams")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let key = (row.get(0)?, row.get(1)?);
            let next = nexts.remove(&key).unwrap_or_default();
            if next > row_u64(row, 2)? {
                self.find(format!("stream {:?}: its next number was given before", key.0));
            }
        }
        for (stream, _) in nexts.keys() {
            self.find(format!("stream {stream:?}: events and no row"));
        }
        Ok(())
    }

    /// Checks that the last op of the log that this device writes has the number of the log's clock.
    fn open_log(&mut self) -> Result<()> {
        let me = meta(self.db, key::DEVICE)?;
        let Some(open) = meta_array::<16>(self.db, key::OPEN_LOG)? else {
            return Ok(());
        };
        let found: i64 = self.db.query_row(
            "SELECT count(*) FROM logs l JOIN devices d USING (dev)
             WHERE l.log_id = ?1 AND d.id = ?2 AND l.seq =
                 (SELECT ifnull(max(seq), 0) FROM ops o WHERE o.log = l.log)",
            params![open, me],
            |row| row.get(0),
        )?;
        if found != 1 {
            self.find(format!(
                "the log this device writes, {}, does not end at its clock",
                LogId(open)
            ));
        }
        Ok(())
    }

    fn signatures(&mut self) -> Result<()> {
        let Some(group) = meta_array(self.db, key::GROUP)?.map(GroupId) else {
            return Ok(());
        };
        let mut query = self.db.prepare(
            "SELECT o.arr, d.id, l.nonce, o.body, o.sig FROM ops o
             JOIN logs l USING (log) JOIN devices d USING (dev)",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let log = LogInfo { author: NodeId(row.get(1)?), nonce: row.get(2)? };
            let body = row.get::<_, Vec<u8>>(3)?.into();
            if let Err(error) = verify(&group, SignedOp { log, body, sig: row.get(4)? }) {
                self.find(format!("op {}: {error}", row.get::<_, i64>(0)?));
            }
        }
        Ok(())
    }
}
