//! Shared folders in the journal: the versions of paths, and the history of changes.
//!
//! F1  The version of a path is read by its record's id, and only if it is of that path: what a
//!     member writes anywhere else, or what is no version, is ignored; pages of changes name it.
//! F2  A version is written as the op of this device that carries it is stamped: its own counter is
//!     the time of the op, later than every counter that this device has seen.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::core::folder::path::{FolderPath, PathKey};
use crate::core::folder::resolve::needs_history;
use crate::core::folder::version::{Content, ShortId, Version};
use crate::core::folder::{
    FILE_MODEL, FILE_VERSION, file_id, history_kind, history_stream, split_file_id,
};
use crate::core::ids::{FolderId, LogId, NodeId};
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut};
use crate::core::journal::op::{Key, Value, value_from_bytes};
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{FUTURE_MS_MAX, NAME_CHARS_MAX, OP_BODY_BYTES_MAX, OP_CHANGES_MAX};
use crate::core::pairing::shown_name;
use crate::wire::folder::{HistoryEvent, history_from_bytes, history_to_bytes};
use crate::wire::folder::{version_from_bytes, version_to_bytes};

use super::devices::name_of;
use super::read::{knows, model_num};
use super::schema::{int, key, meta_array, row_u64};
use super::tx::Tx;
use super::{Cursor, Journal, JournalReader, Result};

/// The bytes of a change in an op beside its version: key, names and lengths.
const CHANGE_BYTES: usize = 160;

/// The most events that are read for one page of a history.
const EVENTS_READ_MAX: usize = 100_000;

/// Cells with their authors. The log of a stored cell is never dropped; were it, the version must
/// still be found.
const FILES: &str = "SELECT c.id, c.hlc, c.value, d.id FROM cells c
    LEFT JOIN logs l ON l.log_id = c.log_id LEFT JOIN devices d ON d.dev = l.dev";

/// The version of a path, as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// The folder.
    pub folder: FolderId,
    /// The version.
    pub version: Version,
    /// When the op that carries it was written.
    pub changed_at_ms: u64,
    /// The author of that op. For a resolved conflict that is whoever resolved it.
    pub device: NodeId,
}

/// A page of the versions of a folder, ascending by the key of the path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionsPage {
    /// The versions; those of removed paths too.
    pub rows: Vec<FileRow>,
    /// The key after which the next page starts.
    pub next: Option<PathKey>,
}

/// A page of changed versions, of all folders, in order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChangesPage {
    /// The versions as they are now. Several changes of one path appear as one.
    pub rows: Vec<FileRow>,
    /// The cursor for the next page.
    pub cursor: Cursor,
    /// Whether there are more now.
    pub more: bool,
    /// Whether this page starts over, because this journal does not know the cursor.
    pub is_restart: bool,
    /// The records of the page that hold no version, each with its folder and what is wrong with it.
    pub unreadable: Vec<(FolderId, String)>,
}

/// A change of a path, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The new version. Its vector is that of the versions that it contains.
    pub version: Version,
    /// The version that the history must have; `None` for none.
    pub before: Option<Version>,
    /// A user asked to put the path back to an earlier version.
    pub is_undo: bool,
}

/// A version in the history of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The version before the change.
    pub version: Version,
    /// When it was changed or removed.
    pub changed_at_ms: u64,
    /// Who changed or removed it.
    pub device: NodeId,
    /// The change put the path back to an earlier version because a user asked for that.
    pub is_undo: bool,
}

/// A page of a history, newest arrivals first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HistoryPage {
    /// The entries.
    pub entries: Vec<HistoryEntry>,
    /// The place after which the next page starts.
    pub next: Option<HistoryPlace>,
}

/// A place in a history: an arrival number and an index within that op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryPlace(pub u64, pub u64);

/// How versions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamping {
    /// As changes of this device.
    AsChanges,
    /// As they are: they repeat what is known, or resolve a conflict.
    AsTheyAre,
}

impl Journal {
    /// Writes versions of paths of a folder, in the given order, each with its event. Nothing is
    /// written when one is refused. Returns the versions as written.
    pub fn write_files(
        &mut self,
        folder: FolderId,
        changes: Vec<FileChange>,
        stamping: Stamping,
        now_ms: u64,
    ) -> Result<std::result::Result<Vec<Version>, DraftError>> {
        let mut tx = self.begin(now_ms)?;
        match tx.write_files(folder, changes, stamping)? {
            Ok(written) => {
                tx.commit()?;
                Ok(Ok(written))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

impl Journal {
    /// Writes contents over whatever the journal holds at their paths, in the given order. Each new
    /// version contains the one that it replaces, which goes into the history. So no version is lost
    /// that was written between a caller's look and its write.
    pub fn replace_files(
        &mut self,
        folder: FolderId,
        contents: Vec<(FolderPath, Content)>,
        now_ms: u64,
    ) -> Result<std::result::Result<Vec<Version>, DraftError>> {
        let mut tx = self.begin(now_ms)?;
        let model = model_num(&tx.db, FILE_MODEL)?;
        let mut changes = Vec::with_capacity(contents.len());
        for (path, content) in contents {
            let current = match model {
                Some(model) => file_at(&tx.db, model, &file_id(folder, path.key()))?,
                None => None,
            };
            let current = current.map(|row| row.version);
            let vector = current.as_ref().map(|version| version.vector.clone()).unwrap_or_default();
            let version = Version { path, content, vector, device_name: String::new() };
            let before = current.filter(|current| needs_history(current, &version));
            changes.push(FileChange { version, before, is_undo: false });
        }
        match tx.write_files(folder, changes, Stamping::AsChanges)? {
            Ok(written) => {
                tx.commit()?;
                Ok(Ok(written))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

/// The changes that an op makes to one path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PathWrite {
    /// The version.
    pub(super) version: Option<Version>,
    /// The event of the history.
    pub(super) event: Option<HistoryEvent>,
}

impl From<FileChange> for PathWrite {
    fn from(FileChange { version, before, is_undo }: FileChange) -> Self {
        let event = before.map(|before| HistoryEvent { before, change: None, is_undo });
        Self { version: Some(version), event }
    }
}

impl PathWrite {
    fn versions(&self) -> impl Iterator<Item = &Version> {
        self.version.iter().chain(self.event.as_ref().map(|event| &event.before))
    }

    /// An upper bound of its size in an op: a counter and the device's name may be added.
    fn bytes(&self) -> usize {
        let spare = CHANGE_BYTES + 4 * NAME_CHARS_MAX;
        self.versions().map(|version| version_to_bytes(version).len() + spare).sum()
    }

    fn changes(&self, folder: FolderId) -> impl Iterator<Item = DraftChange> {
        let put = self.version.as_ref().map(|version| put_version(folder, version));
        let event = self.event.as_ref().map(|event| DraftChange::Event {
            stream: history_stream(folder),
            kind: history_kind(event.before.path.key()),
            data: history_to_bytes(event),
        });
        put.into_iter().chain(event)
    }
}

impl Tx<'_> {
    /// See [`Journal::write_files`].
    fn write_files(
        &mut self,
        folder: FolderId,
        changes: Vec<FileChange>,
        stamping: Stamping,
    ) -> Result<std::result::Result<Vec<Version>, DraftError>> {
        self.catch_up(&changes);
        let me = self.me();
        let name = name_of(&self.db, &me)?;
        let mut written = Vec::with_capacity(changes.len());
        for mut op in ops(changes.into_iter().map(PathWrite::from)) {
            let hlc = self.hlc_max.next(self.now_ms).unwrap_or(Hlc::MAX);
            if stamping == Stamping::AsChanges {
                for version in op.iter_mut().filter_map(|write| write.version.as_mut()) {
                    version.vector = version.vector.grown(ShortId::from(&me), hlc);
                    version.device_name.clone_from(&name);
                }
            }
            if let Err(error) = self.write(&draft(folder, &op), Some(hlc))? {
                return Ok(Err(error));
            }
            written.extend(op.into_iter().filter_map(|write| write.version));
        }
        Ok(Ok(written))
    }

    /// Stamps what is written next later than all counters in `changes`. Some are later than the
    /// journal when it was restored from a backup and the bases were not. As far as other devices
    /// admit it.
    fn catch_up(&mut self, changes: &[FileChange]) {
        let newest = changes.iter().filter_map(|change| change.version.vector.newest());
        let newest = newest.map(|(_, hlc)| hlc).max().unwrap_or_default();
        let limit = Hlc::from_ms(self.now_ms.saturating_add(FUTURE_MS_MAX));
        self.hlc_max = self.hlc_max.max(newest.min(limit));
    }
}

/// Splits writes into ops, in order. An op writes a path once.
pub(super) fn ops(writes: impl IntoIterator<Item = PathWrite>) -> Vec<Vec<PathWrite>> {
    let mut ops = Vec::new();
    let mut op: Vec<PathWrite> = Vec::new();
    let (mut paths, mut count, mut bytes) = (BTreeSet::new(), 0, 0);
    for write in writes {
        let (write_bytes, write_count) = (write.bytes(), write.versions().count());
        let path = write.version.as_ref().map(|version| version.path.clone());
        let is_full = count + write_count > OP_CHANGES_MAX
            || bytes + write_bytes > OP_BODY_BYTES_MAX - CHANGE_BYTES;
        if !op.is_empty() && (is_full || path.as_ref().is_some_and(|path| paths.contains(path))) {
            ops.push(std::mem::take(&mut op));
            (count, bytes) = (0, 0);
            paths.clear();
        }
        (count, bytes) = (count + write_count, bytes + write_bytes);
        paths.extend(path);
        op.push(write);
    }
    ops.extend(Some(op).filter(|op| !op.is_empty()));
    ops
}

/// The draft of an op.
pub(super) fn draft(folder: FolderId, op: &[PathWrite]) -> Draft {
    let changes = op.iter().flat_map(|write| write.changes(folder)).collect();
    Draft { changes, expect: Vec::new() }
}

fn put_version(folder: FolderId, version: &Version) -> DraftChange {
    let id = file_id(folder, version.path.key()).to_vec();
    let value = Value::Bytes(version_to_bytes(version));
    DraftChange::Put(DraftPut {
        key: Key { model: FILE_MODEL.into(), id, owned: false },
        create: true,
        set: [(FILE_VERSION.to_owned(), Some(value))].into(),
        add: BTreeSet::new(),
        remove: BTreeSet::new(),
    })
}

impl JournalReader {
    /// The name of a device, for people; the start of its node ID before it has one.
    pub fn device_name(&self, device: &NodeId) -> Result<String> {
        Ok(shown_name(&name_of(&self.connection, device)?, device))
    }

    /// The versions of paths, in the order of `paths`; `None` for a path that the journal does not
    /// know.
    pub fn versions_at(
        &self,
        folder: FolderId,
        paths: &[FolderPath],
    ) -> Result<Vec<Option<FileRow>>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(model) = model_num(&tx, FILE_MODEL)? else {
            return Ok(vec![None; paths.len()]);
        };
        let id = |path: &FolderPath| file_id(folder, path.key());
        paths.iter().map(|path| file_at(&tx, model, &id(path))).collect()
    }

    /// The version of the path with a key.
    pub fn version_of_key(&self, folder: FolderId, key: PathKey) -> Result<Option<FileRow>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(model) = model_num(&tx, FILE_MODEL)? else { return Ok(None) };
        file_at(&tx, model, &file_id(folder, key))
    }

    /// Versions of a folder after a key, at most `limit`.
    pub fn versions(
        &self,
        folder: FolderId,
        after: Option<PathKey>,
        limit: usize,
    ) -> Result<VersionsPage> {
        let tx = self.connection.unchecked_transaction()?;
        let mut page = VersionsPage::default();
        let Some(model) = model_num(&tx, FILE_MODEL)? else { return Ok(page) };
        let first = file_id(folder, after.unwrap_or(PathKey([0; 16])));
        let last = file_id(folder, PathKey([0xff; 16]));
        let mut query = tx.prepare_cached(&format!(
            "{FILES} WHERE c.model = ?1 AND c.scope = 0 AND c.id >= ?2 AND c.id <= ?3
                 AND c.field = ?6 AND c.elem = '' AND (?4 OR c.id > ?2)
             ORDER BY c.id LIMIT ?5"
        ))?;
        let limit_row = int(limit as u64);
        let mut rows =
            query.query(params![model, first, last, after.is_none(), limit_row, FILE_VERSION])?;
        let mut read = 0;
        while let Some(row) = rows.next()? {
            read += 1;
            let (id, file) = file_row(row)?;
            page.next = split_file_id(&id).map(|(_, key)| key);
            page.rows.extend(file);
        }
        if read < limit {
            page.next = None;
        }
        Ok(page)
    }

    /// Versions that changed since a cursor, in order of arrival; from the start without one, or
    /// when this journal does not know it. `None` without a group. The records of one op are never
    /// split, so a page may exceed `limit` by them.
    pub fn file_changes(
        &self,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Option<FileChangesPage>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(epoch) = meta_array(&tx, key::FEED_EPOCH)?.map(LogId) else { return Ok(None) };
        let known = match after {
            Some(cursor) if knows(&tx, cursor)? => Some(cursor),
            _ => None,
        };
        let newest: u64 =
            tx.query_row("SELECT ifnull(max(arr), 0) FROM records", [], |row| row_u64(row, 0))?;
        let mut page = FileChangesPage {
            rows: Vec::new(),
            cursor: Cursor { epoch, arr: newest },
            more: false,
            is_restart: after.is_some() && known.is_none(),
            unreadable: Vec::new(),
        };
        let after = known.map_or(0, |cursor| cursor.arr);
        let Some(model) = model_num(&tx, FILE_MODEL)? else { return Ok(Some(page)) };
        let last: Option<u64> = tx
            .prepare_cached(
                "SELECT arr FROM records WHERE arr > ?1 AND model = ?2 AND scope = 0
                 ORDER BY arr LIMIT 1 OFFSET ?3",
            )?
            .query_row(params![int(after), model, int(limit.max(1) as u64 - 1)], |row| {
                row_u64(row, 0)
            })
            .optional()?;
        if let Some(last) = last.filter(|last| *last < newest) {
            page.cursor.arr = last;
            page.more = true;
        }
        let mut query = tx.prepare_cached(
            "SELECT id FROM records WHERE arr > ?1 AND arr <= ?2 AND model = ?3 AND scope = 0
             ORDER BY arr, id",
        )?;
        let mut rows = query.query(params![int(after), int(page.cursor.arr), model])?;
        while let Some(row) = rows.next()? {
            let id: Vec<u8> = row.get(0)?;
            match (read_file_at(&tx, model, &id)?, split_file_id(&id)) {
                (Some(Ok(file)), _) => page.rows.push(file),
                (Some(Err(why)), Some((folder, _))) => page.unreadable.push((folder, why)),
                (Some(Err(_)), None) | (None, _) => {}
            }
        }
        Ok(Some(page))
    }

    /// The history of a path, or of all paths of a folder: changes made since a time, at most
    /// `limit`, newest arrivals first. Of equal entries a page has the oldest only.
    pub fn file_history(
        &self,
        folder: FolderId,
        path: Option<PathKey>,
        since_ms: u64,
        after: Option<HistoryPlace>,
        limit: usize,
    ) -> Result<HistoryPage> {
        let HistoryPlace(arr, idx) = after.unwrap_or(HistoryPlace(u64::MAX >> 1, 0));
        let columns = "SELECT e.arr, e.idx, d.id, e.hlc, e.data
             FROM events e JOIN logs l USING (log) JOIN devices d USING (dev)";
        let since = int(Hlc::from_ms(since_ms).0);
        let (arr, idx, limit_row) = (int(arr), int(idx), int(EVENTS_READ_MAX as u64));
        let mut page = HistoryPage::default();
        let stream = history_stream(folder);
        let mut query;
        let mut rows = match path {
            // The index `events_of_file`.
            Some(key) => {
                query = self.connection.prepare_cached(&format!(
                    "{columns} WHERE e.stream = ?1 AND e.type = ?2
                         AND e.stream >= 'folder/' AND e.stream < 'folder0'
                         AND (e.arr, e.idx) < (?3, ?4) AND e.hlc >= ?5
                     ORDER BY e.arr DESC, e.idx DESC LIMIT ?6"
                ))?;
                query.query(params![stream, history_kind(key), arr, idx, since, limit_row])?
            }
            None => {
                query = self.connection.prepare_cached(&format!(
                    "{columns} WHERE e.stream = ?1 AND (e.arr, e.idx) < (?2, ?3) AND e.hlc >= ?4
                     ORDER BY e.arr DESC, e.idx DESC LIMIT ?5"
                ))?;
                query.query(params![stream, arr, idx, since, limit_row])?
            }
        };
        let mut read = 0;
        while let Some(row) = rows.next()? {
            read += 1;
            let place = HistoryPlace(row_u64(row, 0)?, row_u64(row, 1)?);
            let (author, hlc) = (NodeId(row.get(2)?), Hlc(row_u64(row, 3)?));
            let data: Vec<u8> = row.get(4)?;
            let entry = history_entry(author, hlc, &data);
            let entry = entry.filter(|entry| entry.changed_at_ms >= since_ms);
            page.entries.extend(entry);
            if page.entries.len() == limit || read == EVENTS_READ_MAX {
                page.next = Some(place);
                break;
            }
        }
        page.entries.sort_by_key(|entry| entry.changed_at_ms);
        let mut kept: Vec<HistoryEntry> = Vec::new();
        let mut seen = BTreeSet::new();
        for entry in std::mem::take(&mut page.entries) {
            if seen.insert(version_to_bytes(&entry.version)) {
                kept.push(entry);
            }
        }
        kept.reverse();
        page.entries = kept;
        Ok(page)
    }
}

/// The version at a record's id.
fn file_at(connection: &Connection, model: i64, id: &[u8]) -> Result<Option<FileRow>> {
    Ok(read_file_at(connection, model, id)?.and_then(std::result::Result::ok))
}

/// The version in the record with this id; `None` if there is no such record.
fn read_file_at(
    connection: &Connection,
    model: i64,
    id: &[u8],
) -> Result<Option<std::result::Result<FileRow, String>>> {
    let mut query = connection.prepare_cached(&format!(
        "{FILES} WHERE c.model = ?1 AND c.scope = 0 AND c.id = ?2 AND c.field = ?3 AND c.elem = ''"
    ))?;
    let mut rows = query.query(params![model, id, FILE_VERSION])?;
    Ok(rows.next()?.map(file_row).transpose()?.map(|(_, file)| file))
}

/// Reads a row of [`FILES`]: its id, and the version that it holds, or why that is none.
fn file_row(row: &Row<'_>) -> Result<(Vec<u8>, std::result::Result<FileRow, String>)> {
    let (id, hlc, bytes): (Vec<u8>, _, Vec<u8>) = (row.get(0)?, row_u64(row, 1)?, row.get(2)?);
    let author: Option<[u8; 32]> = row.get(3)?;
    let file = read_version(&id, &bytes, Hlc(hlc)).map(|version| FileRow {
        folder: split_file_id(&id).map_or(FolderId([0; 16]), |(folder, _)| folder),
        version,
        changed_at_ms: Hlc(hlc).ms(),
        device: NodeId(author.unwrap_or_default()),
    });
    Ok((id, file))
}

/// Reads the event of a history; `None` when it is none.
pub(super) fn history_entry(author: NodeId, hlc: Hlc, data: &[u8]) -> Option<HistoryEntry> {
    let HistoryEvent { before, change, is_undo } = history_from_bytes(data).ok()?;
    let (changed_at_ms, device) = change.unwrap_or((hlc.ms(), author));
    let version = Version { vector: before.vector.clone().clamped(hlc), ..before };
    Some(HistoryEntry { version, changed_at_ms: changed_at_ms.min(hlc.ms()), device, is_undo })
}

/// Reads the version in a cell of the record `id`, of an op stamped `hlc`. See F1.
pub(super) fn read_version(
    id: &[u8],
    bytes: &[u8],
    hlc: Hlc,
) -> std::result::Result<Version, String> {
    let Some((_, key)) = split_file_id(id) else {
        return Err("its id is not that of a path in a folder".into());
    };
    let Some(Some(Value::Bytes(bytes))) = value_from_bytes(bytes) else {
        return Err("its value is not bytes".into());
    };
    let version = version_from_bytes(&bytes).map_err(|error| error.to_string())?;
    if version.path.key() != key {
        return Err("its id is that of another path".into());
    }
    Ok(Version { vector: version.vector.clamped(hlc), ..version })
}
