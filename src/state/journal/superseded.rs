//! Versions of paths that lost their cells.
//!
//! The journal merges by stamp and drops the older value. A version must not be dropped if the author
//! of the newer one had not seen it: `core::folder::resolve` decides whether it is kept, and how.
//!
//! U1  A version leaves the cells, or is refused because a greater one is there, in the same
//!     transaction in which it enters the table `superseded`; and it leaves that table in the
//!     transaction that writes what becomes of it. So at any moment it is in one of them, on every
//!     device that ever held it.
//! U2  A version that its successor contains needs to be in the history. Its author writes the event
//!     in the op of the change. An op that arrives earlier than others may bring it later, so this
//!     device waits for [`HISTORY_WAIT_MS`] before it writes the event itself: then the author has
//!     not, by mistake or on purpose.
//! U3  What is written is decided anew from the cell as it is then, so that work which a crash
//!     repeats, or another device has done, has no effect.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use crate::core::folder::resolve::{Resolution, resolve};
use crate::core::folder::version::{Relation, Version};
use crate::core::folder::{
    FILE_MODEL, FILE_VERSION, file_id, history_kind, history_stream, split_file_id,
};
use crate::core::ids::{FolderId, LogId, NodeId};
use crate::core::journal::cell::{CellKey, CellValue};
use crate::core::journal::draft::DraftError;
use crate::core::journal::op::Key;
use crate::core::journal::stamp::Hlc;
use crate::wire::folder::{HistoryEvent, version_from_bytes, version_to_bytes};

use super::folders::{PathWrite, draft, history_entry, ops, read_version};
use super::schema::{int, row_u64};
use super::tx::{Lost, Tx};
use super::{Journal, JournalReader, Result};

/// How long the event of a change may arrive after the change.
pub const HISTORY_WAIT_MS: u64 = 10 * 60 * 1000;

/// What [`Journal::resolve_superseded`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resolved {
    /// The number of versions looked at.
    pub versions: usize,
    /// The number of ops written.
    pub ops: usize,
}

/// A row of `superseded`.
struct Row {
    id: Vec<u8>,
    bytes: Vec<u8>,
    is_replaced: bool,
    by: (u64, NodeId),
}

/// Whether a cell holds the version of a path.
pub(super) fn is_version(key: &CellKey) -> bool {
    let Key { model, owned, .. } = &key.record;
    model == FILE_MODEL && !owned && key.field == FILE_VERSION && key.elem.is_empty()
}

impl Journal {
    /// Keeps versions that this device knows and the journal may not: it may have been restored from
    /// a backup. What it knows changes nothing.
    pub fn keep_versions(
        &mut self,
        folder: FolderId,
        versions: &[Version],
        now_ms: u64,
    ) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        tx.group()?;
        let (me, hlc) = (tx.me(), Hlc::from_ms(now_ms));
        for version in versions {
            tx.keep_version(&file_id(folder, version.path.key()), version, &me, hlc)?;
        }
        tx.news.ops |= !versions.is_empty();
        tx.commit()
    }

    /// Decides about at most `limit` versions that lost their cells, and writes what becomes of
    /// them, in one transaction. An error leaves all as it was.
    pub fn resolve_superseded(
        &mut self,
        limit: usize,
        now_ms: u64,
    ) -> Result<std::result::Result<Resolved, DraftError>> {
        let mut tx = self.begin(now_ms)?;
        match tx.resolve_superseded(limit)? {
            Ok(resolved) => {
                tx.commit()?;
                Ok(Ok(resolved))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

impl JournalReader {
    /// When the next version that lost its cell is to be decided about; `None` when there is none.
    pub fn next_superseded_ms(&self) -> Result<Option<u64>> {
        let mut query = self.connection.prepare_cached("SELECT min(due_ms) FROM superseded")?;
        let due: Option<i64> = query.query_row([], |row| row.get(0))?;
        Ok(due.map(|ms| u64::try_from(ms).unwrap_or(0)))
    }
}

impl Tx<'_> {
    /// Keeps what lost to an op of `author`, or because of what that op found (U1). To be called
    /// after the op's events are stored.
    pub(super) fn keep_lost(&mut self, author: &NodeId, hlc: Hlc) -> Result<()> {
        for Lost { id, value } in std::mem::take(&mut self.lost) {
            // A version that cannot be decoded holds no edit that could be kept.
            if let Ok(version) = read_version(&id, &value.bytes, value.stamp.hlc) {
                self.keep_version(&id, &version, author, hlc)?;
            }
        }
        Ok(())
    }

    /// Keeps a version that is not in its cell. `author` and `hlc` replaced it if the cell is empty.
    fn keep_version(
        &mut self,
        id: &[u8],
        version: &Version,
        author: &NodeId,
        hlc: Hlc,
    ) -> Result<()> {
        let cell = self.cell_of_file(id)?;
        let (is_replaced, due_ms) =
            match resolve(self.read_cell(id, cell.as_ref()).as_ref(), version) {
                Resolution::Nothing => return Ok(()),
                Resolution::Remember if self.has_history(id, version)? => return Ok(()),
                Resolution::Remember => (true, self.now_ms.saturating_add(HISTORY_WAIT_MS)),
                Resolution::Write(_) => (false, self.now_ms),
            };
        let (by_ms, by_dev) = match &cell {
            Some(cell) => (cell.stamp.hlc.ms(), self.dev_of_log(&cell.stamp.log)?),
            None => (hlc.ms(), self.device(author)?),
        };
        let bytes = version_to_bytes(version);
        self.db
            .prepare_cached(
                "INSERT INTO superseded (id, version, is_replaced, due_ms, by_ms, by_dev)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET is_replaced = excluded.is_replaced,
                     due_ms = excluded.due_ms
                 WHERE excluded.is_replaced < superseded.is_replaced",
            )?
            .execute(params![id, bytes, is_replaced, int(due_ms), int(by_ms), by_dev])?;
        Ok(())
    }

    fn resolve_superseded(
        &mut self,
        limit: usize,
    ) -> Result<std::result::Result<Resolved, DraftError>> {
        // A clock that was set back would make a version wait for that long.
        self.db
            .prepare_cached("UPDATE superseded SET due_ms = ?1 WHERE due_ms > ?2")?
            .execute(params![int(self.now_ms), int(self.now_ms + HISTORY_WAIT_MS)])?;
        let mut resolved = Resolved::default();
        // By folder. Decisions do not see the writes before them; merging those does (U1).
        let mut writes: BTreeMap<FolderId, Vec<PathWrite>> = BTreeMap::new();
        for row in self.due(limit)? {
            resolved.versions += 1;
            if let Some((folder, write)) = self.decide(&row)? {
                writes.entry(folder).or_default().push(write);
            }
        }
        for (folder, writes) in writes {
            for op in ops(writes) {
                if let Err(error) = self.write(&draft(folder, &op), None)? {
                    return Ok(Err(error));
                }
                resolved.ops += 1;
            }
        }
        Ok(Ok(resolved))
    }

    fn due(&self, limit: usize) -> Result<Vec<Row>> {
        let mut query = self.db.prepare_cached(
            "SELECT s.id, s.version, s.is_replaced, s.by_ms, d.id FROM superseded s
             LEFT JOIN devices d ON d.dev = s.by_dev
             WHERE s.due_ms <= ?1 ORDER BY s.due_ms, s.id LIMIT ?2",
        )?;
        let rows = query.query_map(params![int(self.now_ms), int(limit as u64)], |row| {
            let device: Option<[u8; 32]> = row.get(4)?;
            Ok(Row {
                id: row.get(0)?,
                bytes: row.get(1)?,
                is_replaced: row.get(2)?,
                by: (row_u64(row, 3)?, NodeId(device.unwrap_or_default())),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Decides about one version, and takes it out of the table unless it has to wait.
    fn decide(&mut self, row: &Row) -> Result<Option<(FolderId, PathWrite)>> {
        let read = split_file_id(&row.id).zip(version_from_bytes(&row.bytes).ok());
        let Some(((folder, _), version)) = read else {
            self.forget(row)?;
            return Ok(None);
        };
        let cell = self.cell_of_file(&row.id)?;
        let current = self.read_cell(&row.id, cell.as_ref());
        let event = |before| Some(HistoryEvent { before, change: Some(row.by), is_undo: false });
        let write = match resolve(current.as_ref(), &version) {
            Resolution::Nothing => PathWrite::default(),
            Resolution::Remember if self.has_history(&row.id, &version)? => PathWrite::default(),
            Resolution::Remember if !row.is_replaced => {
                self.wait_for_history(row)?;
                return Ok(None);
            }
            Resolution::Remember => PathWrite { version: None, event: event(version) },
            Resolution::Write(written) => {
                let is_moved = written.path != version.path;
                let is_told = !is_moved || self.has_history(&row.id, &version)?;
                let is_there = is_moved && self.is_there(folder, &written)?;
                PathWrite {
                    version: (!is_there).then_some(written),
                    event: event(version).filter(|_| !is_told),
                }
            }
        };
        self.forget(row)?;
        Ok(Some((folder, write)).filter(|(_, write)| *write != PathWrite::default()))
    }

    /// Whether the cell of a conflict copy contains it already.
    fn is_there(&mut self, folder: FolderId, copy: &Version) -> Result<bool> {
        let id = file_id(folder, copy.path.key());
        let cell = self.cell_of_file(&id)?;
        Ok(self.read_cell(&id, cell.as_ref()).is_some_and(|there| {
            there.is_same(copy) || there.vector.relation(&copy.vector) == Relation::Newer
        }))
    }

    fn forget(&self, row: &Row) -> Result<()> {
        self.db
            .prepare_cached("DELETE FROM superseded WHERE id = ?1 AND version = ?2")?
            .execute(params![row.id, row.bytes])?;
        Ok(())
    }

    /// See U2.
    fn wait_for_history(&self, row: &Row) -> Result<()> {
        self.db
            .prepare_cached(
                "UPDATE superseded SET is_replaced = 1, due_ms = ?3 WHERE id = ?1 AND version = ?2",
            )?
            .execute(params![row.id, row.bytes, int(self.now_ms + HISTORY_WAIT_MS)])?;
        Ok(())
    }

    /// The cell that holds the version of a path.
    fn cell_of_file(&mut self, id: &[u8]) -> Result<Option<CellValue>> {
        let record = Key { model: FILE_MODEL.into(), id: id.to_vec(), owned: false };
        let key = CellKey { record, field: FILE_VERSION.into(), elem: String::new() };
        let me = self.me();
        Ok(self.cell(&key, &me)?.map(|held| held.value))
    }

    fn read_cell(&self, id: &[u8], cell: Option<&CellValue>) -> Option<Version> {
        cell.and_then(|cell| read_version(id, &cell.bytes, cell.stamp.hlc).ok())
    }

    /// Whether the history of the path has the version.
    fn has_history(&self, id: &[u8], version: &Version) -> Result<bool> {
        let Some((folder, key)) = split_file_id(id) else { return Ok(false) };
        // The index `events_of_file`.
        let mut query = self.db.prepare_cached(
            "SELECT hlc, data FROM events WHERE stream = ?1 AND type = ?2
                 AND stream >= 'folder/' AND stream < 'folder0' ORDER BY arr DESC, idx DESC",
        )?;
        let mut rows = query.query(params![history_stream(folder), history_kind(key)])?;
        while let Some(row) = rows.next()? {
            let (hlc, data): (_, Vec<u8>) = (Hlc(row_u64(row, 0)?), row.get(1)?);
            let entry = history_entry(NodeId([0; 32]), hlc, &data);
            if entry.is_some_and(|entry| entry.version.is_same(version)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn dev_of_log(&self, log: &LogId) -> Result<i64> {
        let mut query = self.db.prepare_cached("SELECT dev FROM logs WHERE log_id = ?1")?;
        Ok(query.query_row([log.0], |row| row.get(0)).optional()?.unwrap_or(0))
    }
}
