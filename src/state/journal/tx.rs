//! A transaction of the writer: rows that were changed but not written yet, and the counts that are
//! stored beside the ops.
//!
//! T1  Dropping it without [`Tx::commit`] leaves the database, and everything in memory, as it was.
//! T2  `refs` counts what an op holds, `above` sums the live ops that the clock does not cover, and
//!     `bytes` is the size of a log: all three change together with the rows that they describe.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::clock::instant_now;
use crate::core::ids::{GroupId, LogId, NodeId, OpHash};
use crate::core::journal::cell::{CellKey, CellValue};
use crate::core::journal::members::Ledger;
use crate::core::journal::op::LogInfo;
use crate::core::journal::set_hash::{Element, SetHash};
use crate::core::journal::stamp::Hlc;
use crate::core::limits::LOGS_PER_AUTHOR_MAX;
use crate::state::identity::Identity;

use super::budget::Budget;
use super::roster::Roster;
use super::schema::{
    GROUP_KEYS, GROUP_TABLES, delete_meta, int, key, meta_array, meta_set, meta_u64, row_set,
    row_u64, set_meta,
};
use super::{JournalError, News, Result};

/// The random source of log and group nonces.
#[derive(Debug)]
pub(super) struct Nonces {
    seed: [u8; 32],
    drawn: u64,
}

/// A value that lost its cell.
pub(super) struct Lost {
    pub(super) id: Vec<u8>,
    pub(super) value: CellValue,
}

impl Lost {
    pub(super) fn new(key: &CellKey, value: CellValue) -> Self {
        Self { id: key.record.id.clone(), value }
    }
}

/// A transaction of the writer. See the head of this file.
pub(super) struct Tx<'a> {
    pub(super) db: Transaction<'a>,
    pub(super) identity: &'a Identity,
    nonces: &'a mut Nonces,
    pub(super) roster: Roster,
    pub(super) now_ms: u64,
    /// The current time for the deadlines of tokens.
    pub(super) now: Instant,
    pub(super) group: Option<GroupId>,
    /// The log that this device writes; `None` until it writes.
    pub(super) open_log: Option<LogId>,
    /// See [`key::FEED_EPOCH`].
    pub(super) feed_epoch: Option<LogId>,
    pub(super) hlc_max: Hlc,
    /// The greatest time of ops by other devices.
    pub(super) hlc_others: Hlc,
    pub(super) digest: SetHash,
    /// The rows of `logs` in use, each with its content in the table.
    pub(super) logs: BTreeMap<i64, (LogRow, LogRow)>,
    log_nums: BTreeMap<LogId, i64>,
    devices: BTreeMap<NodeId, i64>,
    models: BTreeMap<String, i64>,
    device_bytes: BTreeMap<i64, u64>,
    /// Loaded when a device has used enough bytes for it to matter.
    pub(super) budget: Option<Budget>,
    /// Whether the disk is too full to receive ops from peers.
    pub(super) is_disk_low: bool,
    /// The membership facts; `None` until they are read.
    pub(super) ledger: Option<Arc<Ledger>>,
    /// Whether facts or tokens changed, so that the roster must be replaced.
    pub(super) roster_changed: bool,
    pub(super) news: News,
    /// The versions of paths that lost their cells since the last [`Tx::keep_lost`].
    pub(super) lost: Vec<Lost>,
    /// Receives `news` at the commit.
    told: &'a mut News,
    /// Receives `ledger` at the commit.
    kept: &'a mut Option<Arc<Ledger>>,
    before: Kept,
}

/// The group's values in the table `meta`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Kept {
    group: Option<GroupId>,
    open_log: Option<LogId>,
    feed_epoch: Option<LogId>,
    hlc_max: Hlc,
    hlc_others: Hlc,
    digest: Option<SetHash>,
}

/// A row of `logs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogRow {
    pub(super) num: i64,
    pub(super) id: LogId,
    pub(super) dev: i64,
    pub(super) seq: u64,
    pub(super) head: Option<OpHash>,
    pub(super) forked: bool,
    pub(super) above: SetHash,
    pub(super) bytes: u64,
}

impl Nonces {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    pub(super) fn draw(&mut self) -> [u8; 16] {
        self.drawn += 1;
        let mut nonce = [0; 16];
        let mut hasher = blake3::Hasher::new_keyed(&self.seed);
        hasher.update(&self.drawn.to_be_bytes()).finalize_xof().fill(&mut nonce);
        nonce
    }
}

impl LogRow {
    /// Whether a live op with this number is part of `above`.
    pub(super) fn is_above(&self, seq: u64) -> bool {
        self.forked || seq > self.seq
    }
}

impl<'a> Tx<'a> {
    pub(super) fn begin(
        connection: &'a mut Connection,
        identity: &'a Identity,
        nonces: &'a mut Nonces,
        told: &'a mut News,
        kept: &'a mut Option<Arc<Ledger>>,
        roster: Roster,
        now_ms: u64,
    ) -> Result<Self> {
        let db = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(JournalError::of_begin)?;
        let hlc = |key| Ok::<_, JournalError>(Hlc(meta_u64(&db, key)?.unwrap_or(0)));
        let before = Kept {
            group: meta_array(&db, key::GROUP)?.map(GroupId),
            open_log: meta_array(&db, key::OPEN_LOG)?.map(LogId),
            feed_epoch: meta_array(&db, key::FEED_EPOCH)?.map(LogId),
            hlc_max: hlc(key::HLC_MAX)?,
            hlc_others: hlc(key::HLC_OTHERS)?,
            digest: meta_set(&db, key::DIGEST)?,
        };
        Ok(Self {
            group: before.group,
            open_log: before.open_log,
            feed_epoch: before.feed_epoch,
            hlc_max: before.hlc_max,
            hlc_others: before.hlc_others,
            digest: before.digest.clone().unwrap_or_default(),
            db,
            identity,
            nonces,
            roster,
            now_ms,
            now: instant_now(),
            logs: BTreeMap::new(),
            log_nums: BTreeMap::new(),
            devices: BTreeMap::new(),
            models: BTreeMap::new(),
            device_bytes: BTreeMap::new(),
            budget: None,
            is_disk_low: false,
            ledger: kept.clone(),
            kept,
            roster_changed: false,
            news: News::default(),
            lost: Vec::new(),
            told,
            before,
        })
    }

    /// Writes the changed rows and makes everything durable. If nothing changed, nothing is written
    /// and the disk is not waited for.
    pub(super) fn commit(mut self) -> Result<()> {
        let roster = self.roster_changed.then(|| self.next_roster()).transpose()?;
        self.news.devices |= self.roster_changed;
        for (log, _) in self.logs.values().filter(|(log, before)| log != before) {
            self.db
                .prepare_cached(
                    "UPDATE logs SET seq = ?2, head = ?3, forked = ?4, above = ?5, bytes = ?6
                     WHERE log = ?1",
                )?
                .execute(params![
                    log.num,
                    int(log.seq),
                    log.head.map(|head| head.0),
                    log.forked,
                    log.above.to_bytes(),
                    int(log.bytes)
                ])?;
        }
        self.keep()?;
        self.db.commit()?;
        self.told.add(self.news);
        *self.kept = self.ledger;
        if let Some(roster) = roster {
            self.roster.set(roster);
        }
        Ok(())
    }

    /// Writes the group's values in `meta` that changed.
    fn keep(&self) -> Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        let before = &self.before;
        let keep = |key, has_changed: bool, value: Option<&[u8]>| match value {
            _ if !has_changed => Ok(()),
            Some(value) => set_meta(&self.db, key, value),
            None => delete_meta(&self.db, key),
        };
        let (open, epoch) = (self.open_log.map(|log| log.0), self.feed_epoch.map(|epoch| epoch.0));
        keep(key::GROUP, before.group != self.group, Some(&group.0))?;
        keep(key::OPEN_LOG, before.open_log != self.open_log, open.as_ref().map(|log| &log[..]))?;
        let has_changed = before.feed_epoch != self.feed_epoch;
        keep(key::FEED_EPOCH, has_changed, epoch.as_ref().map(|epoch| &epoch[..]))?;
        if before.digest.as_ref() != Some(&self.digest) {
            set_meta(&self.db, key::DIGEST, &self.digest.to_bytes())?;
        }
        for (key, before, now) in [
            (key::HLC_MAX, before.hlc_max, self.hlc_max),
            (key::HLC_OTHERS, before.hlc_others, self.hlc_others),
        ] {
            keep(key, before != now, Some(&now.0.to_be_bytes()))?;
        }
        Ok(())
    }

    pub(super) fn me(&self) -> NodeId {
        self.identity.node_id
    }

    pub(super) fn group(&self) -> Result<GroupId> {
        self.group.ok_or(JournalError::NoGroup)
    }

    // ---- logs --------------------------------------------------------------------------------

    /// Enters a group with a new log.
    pub(super) fn enter(&mut self, group: GroupId) {
        self.group = Some(group);
        self.close_log();
    }

    /// Begins a new log with the next op, because this device may have forgotten the end of the
    /// current one. Arrival numbers may have been forgotten with it, so their epoch changes too.
    pub(super) fn close_log(&mut self) {
        self.open_log = None;
        self.feed_epoch = Some(LogId(self.nonces.draw()));
        self.news.ops = true;
        self.roster_changed = true;
    }

    /// Begins a new log of this device, which it writes from now on.
    pub(super) fn begin_log(&mut self) -> Result<LogId> {
        let group = self.group()?;
        if !self.has_log_room(&self.me())? {
            self.drop_empty_logs()?;
        }
        if !self.has_log_room(&self.me())? {
            return Err(JournalError::UsedUp { what: "logs", limit: LOGS_PER_AUTHOR_MAX });
        }
        loop {
            let info = LogInfo { author: self.me(), nonce: self.nonces.draw() };
            let id = info.id(&group);
            if self.log_num(&id)?.is_none() {
                self.intern_log(&id, &info)?;
                self.open_log = Some(id);
                self.roster_changed = true;
                return Ok(id);
            }
        }
    }

    /// Whether the next op needs a new log, which other devices would refuse as one too many.
    pub(super) fn is_out_of_logs(&self) -> Result<bool> {
        if self.open_log.is_some() || self.group.is_none() {
            return Ok(false);
        }
        let written = self.db.query_row(
            "SELECT count(*) FROM logs WHERE dev = (SELECT dev FROM devices WHERE id = ?1)
                 AND (seq > 0 OR EXISTS (SELECT 1 FROM ops WHERE ops.log = logs.log))",
            [self.me().0],
            |row| row_u64(row, 0),
        )?;
        Ok(written >= LOGS_PER_AUTHOR_MAX as u64)
    }

    /// Drops the logs of this device that are empty. They are not reused, because a copy of this
    /// database may use them.
    fn drop_empty_logs(&mut self) -> Result<()> {
        let dev = self.device(&self.me())?;
        let empty: Vec<i64> = {
            let mut query = self.db.prepare_cached(
                "SELECT log FROM logs WHERE dev = ?1 AND seq = 0
                     AND NOT EXISTS (SELECT 1 FROM ops WHERE ops.log = logs.log)",
            )?;
            let rows = query.query_map([dev], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        for log in empty {
            for table in ["acks", "streams", "logs"] {
                self.db.execute(&format!("DELETE FROM {table} WHERE log = ?1"), [log])?;
            }
            self.logs.remove(&log);
        }
        self.log_nums.clear();
        Ok(())
    }

    /// Forgets the group and everything in the journal. Arrival numbers are not reused.
    pub(super) fn forget_group(&mut self) -> Result<()> {
        for table in GROUP_TABLES {
            self.db.execute(&format!("DELETE FROM {table}"), [])?;
        }
        for key in GROUP_KEYS {
            delete_meta(&self.db, key)?;
        }
        (self.group, self.open_log, self.feed_epoch) = (None, None, None);
        (self.hlc_max, self.hlc_others, self.digest) = (Hlc(0), Hlc(0), SetHash::default());
        self.before = Kept::default();
        self.logs.clear();
        self.log_nums.clear();
        self.devices.clear();
        self.models.clear();
        self.device_bytes.clear();
        self.news.ops = true;
        self.facts_lost();
        Ok(())
    }

    /// A nonce for a new group.
    pub(super) fn draw_nonce(&mut self) -> [u8; 16] {
        self.nonces.draw()
    }

    /// The row number of a known log.
    pub(super) fn log_num(&mut self, id: &LogId) -> Result<Option<i64>> {
        if let Some(num) = self.log_nums.get(id) {
            return Ok(Some(*num));
        }
        let num: Option<i64> = self
            .db
            .prepare_cached("SELECT log FROM logs WHERE log_id = ?1")?
            .query_row([id.0], |row| row.get(0))
            .optional()?;
        if let Some(num) = num {
            self.log_nums.insert(*id, num);
        }
        Ok(num)
    }

    /// The row number of a log, which is added if it is unknown.
    pub(super) fn intern_log(&mut self, id: &LogId, info: &LogInfo) -> Result<i64> {
        if let Some(num) = self.log_num(id)? {
            return Ok(num);
        }
        let dev = self.device(&info.author)?;
        self.db
            .prepare_cached(
                "INSERT INTO logs (log_id, dev, nonce, seq, head, forked, above, bytes)
                 VALUES (?1, ?2, ?3, 0, NULL, 0, x'', 0)",
            )?
            .execute(params![id.0, dev, info.nonce])?;
        let num = self.db.last_insert_rowid();
        self.log_nums.insert(*id, num);
        self.news.ops = true;
        Ok(num)
    }

    /// A log's row as changed by this transaction.
    pub(super) fn log(&mut self, num: i64) -> Result<&mut LogRow> {
        if !self.logs.contains_key(&num) {
            let row = self
                .db
                .prepare_cached(
                    "SELECT log_id, dev, seq, head, forked, above, bytes FROM logs WHERE log = ?1",
                )?
                .query_row([num], |row| {
                    Ok(LogRow {
                        num,
                        id: LogId(row.get(0)?),
                        dev: row.get(1)?,
                        seq: row_u64(row, 2)?,
                        head: row.get::<_, Option<[u8; 32]>>(3)?.map(OpHash),
                        forked: row.get(4)?,
                        above: row_set(row, 5)?,
                        bytes: row_u64(row, 6)?,
                    })
                })?;
            self.logs.insert(num, (row.clone(), row));
        }
        Ok(&mut self.logs.get_mut(&num).expect("it was just put there").0)
    }

    /// The row numbers of all known logs.
    pub(super) fn all_logs(&self) -> Result<Vec<i64>> {
        let mut query = self.db.prepare_cached("SELECT log FROM logs ORDER BY log")?;
        let rows = query.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    // ---- counts ------------------------------------------------------------------------------

    /// Adds to the references that an op holds, and tracks whether it is live.
    pub(super) fn add_refs(&mut self, arr: i64, by: i64) -> Result<()> {
        let (refs, opaque, log, seq, hash) = self
            .db
            .prepare_cached(
                "UPDATE ops SET refs = refs + ?2 WHERE arr = ?1
                 RETURNING refs, opaque, log, seq, hash",
            )?
            .query_row(params![arr, by], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, bool>(1)?,
                    row.get(2)?,
                    row_u64(row, 3)?,
                    row.get(4)?,
                ))
            })?;
        let was_live = opaque || refs - by > 0;
        if was_live != (opaque || refs > 0) {
            self.toggle_above(log, seq, &hash, !was_live)?;
        }
        Ok(())
    }

    /// Updates `above` for an op with this number that became live or dead.
    pub(super) fn toggle_above(
        &mut self,
        log: i64,
        seq: u64,
        hash: &[u8; 32],
        is_live: bool,
    ) -> Result<()> {
        let log = self.log(log)?;
        if log.is_above(seq) {
            log.above.toggle(&Element(*hash), is_live);
        }
        Ok(())
    }

    /// Deletes an op that holds nothing.
    pub(super) fn delete_op(&mut self, arr: i64) -> Result<()> {
        let (log, bytes) = self
            .db
            .prepare_cached(
                "DELETE FROM ops WHERE arr = ?1 RETURNING log, length(body) + length(sig)",
            )?
            .query_row([arr], |row| Ok((row.get(0)?, row_u64(row, 1)?)))?;
        self.add_bytes(log, -int(bytes))
    }

    /// Adds `by` bytes to the recorded size of a log, and to its author's.
    pub(super) fn add_bytes(&mut self, log: i64, by: i64) -> Result<()> {
        let row = self.log(log)?;
        row.bytes = row.bytes.saturating_add_signed(by);
        let dev = row.dev;
        if let Some(bytes) = self.device_bytes.get_mut(&dev) {
            *bytes = bytes.saturating_add_signed(by);
        }
        if let Some(budget) = &mut self.budget {
            budget.add(dev, by);
        }
        Ok(())
    }

    /// The size of all logs of a device.
    pub(super) fn device_bytes(&mut self, dev: i64) -> Result<u64> {
        if let Some(bytes) = self.device_bytes.get(&dev) {
            return Ok(*bytes);
        }
        let logs: Vec<i64> = {
            let mut query = self.db.prepare_cached("SELECT log FROM logs WHERE dev = ?1")?;
            let rows = query.query_map([dev], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let mut bytes = 0;
        for log in logs {
            bytes += self.log(log)?.bytes;
        }
        self.device_bytes.insert(dev, bytes);
        Ok(bytes)
    }

    // ---- names -------------------------------------------------------------------------------

    /// The row number of a device, above 0.
    pub(super) fn device(&mut self, id: &NodeId) -> Result<i64> {
        if let Some(dev) = self.devices.get(id) {
            return Ok(*dev);
        }
        self.db
            .prepare_cached("INSERT INTO devices (id) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([id.0])?;
        let dev = self
            .db
            .prepare_cached("SELECT dev FROM devices WHERE id = ?1")?
            .query_row([id.0], |row| row.get(0))?;
        self.devices.insert(*id, dev);
        Ok(dev)
    }

    /// The row number of a model.
    pub(super) fn model(&mut self, name: &str) -> Result<i64> {
        if let Some(model) = self.models.get(name) {
            return Ok(*model);
        }
        self.db
            .prepare_cached("INSERT INTO models (name) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([name])?;
        let model = self
            .db
            .prepare_cached("SELECT model FROM models WHERE name = ?1")?
            .query_row([name], |row| row.get(0))?;
        self.models.insert(name.to_owned(), model);
        Ok(model)
    }
}
