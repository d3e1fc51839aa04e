//! What local readers see: records, changes, events, members, numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::core::ids::{GroupId, LogId, NodeId};
use crate::core::journal::members::Verdicts;
use crate::core::journal::op::{Value, value_from_bytes};
use crate::core::journal::stamp::{Hlc, Stamp};
use crate::core::limits::{CELL_BYTES, RECORD_BYTES_MAX, RECORDS_PAGE_BYTES};

use super::apply::row_cell;
use super::facts::facts;
use super::schema::{configure, int, key, meta_array, row_u64};
use super::{JournalError, Result};

/// Reads the journal on a connection of its own; sees what is committed.
#[derive(Debug)]
pub struct JournalReader {
    pub(super) connection: Connection,
}

/// Whose records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Everybody's.
    Shared,
    /// One device's own.
    Device(NodeId),
}

/// A record that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its kind.
    pub model: String,
    /// Whose it is.
    pub owner: Owner,
    /// Its name among its kind.
    pub id: Vec<u8>,
    /// Fields that were set; `None` is null.
    pub fields: BTreeMap<String, Option<Value>>,
    /// Sets that are not empty.
    pub sets: BTreeMap<String, BTreeSet<String>>,
    /// It has more than is ever read: neither fields nor sets are told here.
    pub is_too_large: bool,
    /// The newest stamp of its cells: when and in which log it was last written to.
    pub newest: Stamp,
    /// The number of arrival of its last change: moves whenever the record does.
    pub arr: u64,
}

/// A page of records, ascending by owner and id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecordsPage {
    /// The records.
    pub records: Vec<Record>,
    /// Where the next page starts: after this owner and id.
    pub next: Option<(Owner, Vec<u8>)>,
}

/// A place in the order of arrival. Cursors of another epoch mean nothing: read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Another one means that numbers of arrival may have been given anew.
    pub epoch: LogId,
    /// Everything up to this number of arrival was seen.
    pub arr: u64,
}

/// A record that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its kind.
    pub model: String,
    /// Whose it is.
    pub owner: Owner,
    /// Its name among its kind.
    pub id: Vec<u8>,
    /// The number of arrival of its last change.
    pub arr: u64,
    /// As it is now; `None` when it is not there.
    pub record: Option<Record>,
}

/// A page of changes, in order of arrival. Several changes of a record show once.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangesPage {
    /// The changes.
    pub changes: Vec<Change>,
    /// Read on from here.
    pub cursor: Cursor,
    /// Whether there are more now.
    pub more: bool,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Who wrote it.
    pub author: NodeId,
    /// In which log.
    pub log: LogId,
    /// Its number in the stream and log, from 0.
    pub event_seq: u64,
    /// The time it was written.
    pub hlc: Hlc,
    /// What happened.
    pub kind: String,
    /// With what.
    pub data: Vec<u8>,
    /// Its number of arrival here.
    pub arr: u64,
}

/// A page of a stream, in order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsPage {
    /// The events.
    pub events: Vec<EventRow>,
    /// Read on from here: a number of arrival and a place within that op.
    pub next: (u64, u64),
    /// Whether there are more now.
    pub more: bool,
}

/// A device of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// Its node ID.
    pub device: NodeId,
    /// The name it was added under.
    pub name: String,
    /// Whether it is a member, or was one and was removed.
    pub member: bool,
}

impl JournalReader {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        configure(&connection)?;
        Ok(Self { connection })
    }

    /// Another reader of the same file.
    pub fn another(&self) -> Result<Self> {
        let path = self.connection.path().unwrap_or_default();
        Self::open(Path::new(path))
    }

    /// The group, if this device is in one.
    pub fn group(&self) -> Result<Option<GroupId>> {
        Ok(meta_array(&self.connection, key::GROUP)?.map(GroupId))
    }

    /// A record, if it is there.
    pub fn record(&self, model: &str, owner: Owner, id: &[u8]) -> Result<Option<Record>> {
        let tx = self.connection.unchecked_transaction()?;
        let (model_num, scope) = (model_num(&tx, model)?, scope_num(&tx, owner)?);
        let (Some(model_num), Some(scope)) = (model_num, scope) else { return Ok(None) };
        let row = Row { model_num, model: model.to_owned(), scope, owner, id: id.to_vec() };
        record(&tx, &row, &mut 0)
    }

    /// Records of a model whose id starts with `prefix`, of one owner or of all, after a place, at
    /// most `limit`, and no more after [`RECORDS_PAGE_BYTES`].
    pub fn records(
        &self,
        model: &str,
        owner: Option<Owner>,
        prefix: &[u8],
        after: Option<&(Owner, Vec<u8>)>,
        limit: usize,
    ) -> Result<RecordsPage> {
        let tx = self.connection.unchecked_transaction()?;
        let mut page = RecordsPage::default();
        let Some(model_num) = model_num(&tx, model)? else {
            return Ok(page);
        };
        let after_scope = match after {
            Some((owner, _)) => scope_num(&tx, *owner)?.unwrap_or(0),
            None => 0,
        };
        let mut read_bytes = 0;
        for (scope, owner) in scopes(&tx, model_num, owner)? {
            if scope < after_scope {
                continue;
            }
            let above = after.filter(|_| scope == after_scope).map(|(_, id)| id.as_slice());
            let left = limit + 1 - page.records.len();
            for id in alive_ids(&tx, model_num, scope, prefix, above, left)? {
                if page.records.len() == limit || read_bytes >= RECORDS_PAGE_BYTES {
                    page.next = page.records.last().map(|last| (last.owner, last.id.clone()));
                    return Ok(page);
                }
                let row = Row { model_num, model: model.to_owned(), scope, owner, id };
                page.records.extend(record(&tx, &row, &mut read_bytes)?);
            }
        }
        Ok(page)
    }

    /// The place after which there is nothing yet; `None` without a group.
    pub fn cursor_now(&self) -> Result<Option<Cursor>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(epoch) = meta_array(&tx, key::FEED_EPOCH)?.map(LogId) else {
            return Ok(None);
        };
        let newest = "SELECT ifnull(max(arr), 0) FROM records";
        let arr = tx.query_row(newest, [], |row| row_u64(row, 0))?;
        Ok(Some(Cursor { epoch, arr }))
    }

    /// Whether this journal gave the cursor out. One of a group before this one did not, nor one that
    /// is beyond the newest op: the journal was put back to an earlier state since.
    pub fn knows(&self, cursor: &Cursor) -> Result<bool> {
        let tx = self.connection.unchecked_transaction()?;
        knows(&tx, cursor)
    }

    /// Records changed since a cursor, of one model or of all; from the beginning without one.
    /// `None` when this journal does not know the cursor, or there is no group. The page may be longer
    /// than `limit`, and than [`RECORDS_PAGE_BYTES`], by the records that one op changed.
    pub fn changes(
        &self,
        model: Option<&str>,
        since: Option<&Cursor>,
        limit: usize,
    ) -> Result<Option<ChangesPage>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(epoch) = meta_array(&tx, key::FEED_EPOCH)?.map(LogId) else {
            return Ok(None);
        };
        if let Some(cursor) = since
            && !knows(&tx, cursor)?
        {
            return Ok(None);
        }
        let after = since.map_or(0, |cursor| cursor.arr);
        // Up to the last number that is whole within the limit: a page never ends inside an op.
        let last: Option<u64> = tx
            .prepare_cached(
                "SELECT arr FROM records WHERE arr > ?1 ORDER BY arr LIMIT 1 OFFSET ?2",
            )?
            .query_row(params![int(after), int(limit.max(1) as u64 - 1)], |row| row_u64(row, 0))
            .optional()?;
        let up_to = last.unwrap_or(u64::MAX);
        let mut query = tx.prepare_cached(
            "SELECT r.model, m.name, r.scope, d.id, r.id, r.arr, r.alive FROM records r
             JOIN models m USING (model) LEFT JOIN devices d ON d.dev = r.scope
             WHERE r.arr > ?1 AND r.arr <= ?2 ORDER BY r.arr, r.model, r.scope, r.id",
        )?;
        let rows = query.query_map(params![int(after), int(up_to)], |row| {
            let owner: Option<[u8; 32]> = row.get(3)?;
            let owner = owner.map_or(Owner::Shared, |id| Owner::Device(NodeId(id)));
            let place = Row {
                model_num: row.get(0)?,
                model: row.get(1)?,
                scope: row.get(2)?,
                owner,
                id: row.get(4)?,
            };
            Ok((place, row_u64(row, 5)?))
        })?;
        let (mut arr, mut more) = (after, last.is_some());
        let mut changes = Vec::new();
        let mut read_bytes = 0;
        for row in rows {
            let (place, changed) = row?;
            if changed != arr && read_bytes >= RECORDS_PAGE_BYTES {
                more = true;
                break;
            }
            arr = changed;
            if model.is_some_and(|model| model != place.model) {
                continue;
            }
            let record = record(&tx, &place, &mut read_bytes)?;
            let Row { model, owner, id, .. } = place;
            changes.push(Change { model, owner, id, arr: changed, record });
        }
        let cursor = Cursor { epoch, arr };
        Ok(Some(ChangesPage { changes, cursor, more }))
    }

    /// Events of a stream after a place ([`EventsPage::next`], or `(0, 0)`), at most `limit`.
    pub fn events(&self, stream: &str, after: (u64, u64), limit: usize) -> Result<EventsPage> {
        let mut query = self.connection.prepare_cached(
            "SELECT e.arr, e.idx, d.id, l.log_id, e.event_seq, e.hlc, e.type, e.data
             FROM events e JOIN logs l USING (log) JOIN devices d USING (dev)
             WHERE e.stream = ?1 AND (e.arr, e.idx) > (?2, ?3) ORDER BY e.arr, e.idx LIMIT ?4",
        )?;
        let rows = query.query_map(
            params![stream, int(after.0), int(after.1), int(limit as u64).saturating_add(1)],
            |row| {
                let event = EventRow {
                    author: NodeId(row.get(2)?),
                    log: LogId(row.get(3)?),
                    event_seq: row_u64(row, 4)?,
                    hlc: Hlc(row_u64(row, 5)?),
                    kind: row.get(6)?,
                    data: row.get(7)?,
                    arr: row_u64(row, 0)?,
                };
                Ok((event, row_u64(row, 1)?))
            },
        )?;
        let mut found: Vec<(EventRow, u64)> = rows.collect::<rusqlite::Result<_>>()?;
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().map_or(after, |(event, index)| (event.arr, *index));
        Ok(EventsPage { events: found.into_iter().map(|(event, _)| event).collect(), next, more })
    }

    /// Every device that was ever a member by what we know, ascending.
    pub fn members(&self) -> Result<Vec<MemberRow>> {
        let tx = self.connection.unchecked_transaction()?;
        member_rows(&tx, &Verdicts::of(&facts(&tx)?))
    }

    /// Who may author and who may connect.
    pub fn verdicts(&self) -> Result<Verdicts> {
        Ok(Verdicts::of(&facts(&self.connection)?))
    }
}

/// Where a record is kept.
struct Row {
    model_num: i64,
    model: String,
    scope: i64,
    owner: Owner,
    id: Vec<u8>,
}

/// See [`JournalReader::members`].
pub(super) fn member_rows(connection: &Connection, verdicts: &Verdicts) -> Result<Vec<MemberRow>> {
    let mut query = connection.prepare_cached(
        "SELECT d.id, m.name FROM members m JOIN devices d USING (dev)
         WHERE m.kind != 2 ORDER BY d.id, m.op DESC, m.idx DESC",
    )?;
    let mut names: BTreeMap<NodeId, String> = BTreeMap::new();
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (device, name) = (NodeId(row.get(0)?), row.get(1)?);
        names.entry(device).or_insert(name);
    }
    let known = names.into_iter().filter(|(device, _)| verdicts.author_ok(device));
    let row = |(device, name)| MemberRow { device, name, member: verdicts.member(&device) };
    Ok(known.map(row).collect())
}

/// The value of one cell of a record: whatever else there may be of it, no more is read.
pub(super) fn cell_value(
    connection: &Connection,
    (model, scope, id): (i64, i64, &[u8]),
    field: &str,
    elem: &str,
) -> Result<Option<Vec<u8>>> {
    let mut query = connection.prepare_cached(
        "SELECT value FROM cells
         WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem = ?5",
    )?;
    Ok(query.query_row(params![model, scope, id, field, elem], |row| row.get(0)).optional()?)
}

/// A record as its cells are now; `None` when it is not there. What was read of it is added to
/// `read_bytes`.
fn record(connection: &Connection, row: &Row, read_bytes: &mut usize) -> Result<Option<Record>> {
    let mut query = connection.prepare_cached(
        "SELECT hlc, log_id, seq, removed, value, field, elem FROM cells
         WHERE model = ?1 AND scope = ?2 AND id = ?3",
    )?;
    let mut rows = query.query(params![row.model_num, row.scope, row.id])?;
    let mut newest: Option<Stamp> = None;
    let mut alive = false;
    let mut fields = BTreeMap::new();
    let mut sets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut bytes = 0;
    while let Some(cell) = rows.next()? {
        let value = row_cell(cell, 0)?;
        let (field, elem): (String, String) = (cell.get(5)?, cell.get(6)?);
        newest = newest.max(Some(value.stamp));
        if field.is_empty() {
            alive |= elem == crate::core::journal::cell::ALIVE;
            continue;
        }
        if bytes <= RECORD_BYTES_MAX && !value.removed {
            bytes += field.len() + elem.len() + value.bytes.len() + CELL_BYTES;
        }
        if bytes > RECORD_BYTES_MAX {
            (fields, sets) = Default::default();
        } else if elem.is_empty() {
            let damaged = || JournalError::Damaged(format!("the value of a field {field:?}"));
            let read = value_from_bytes(&value.bytes).ok_or_else(damaged)?;
            fields.insert(field, read);
        } else if !value.removed {
            sets.entry(field).or_default().insert(elem);
        }
    }
    let Some(newest) = newest.filter(|_| alive) else {
        return Ok(None);
    };
    let arr = connection
        .prepare_cached("SELECT arr FROM records WHERE model = ?1 AND scope = ?2 AND id = ?3")?
        .query_row(params![row.model_num, row.scope, row.id], |found| row_u64(found, 0))?;
    *read_bytes += bytes;
    let Row { model, owner, id, .. } = row;
    Ok(Some(Record {
        model: model.clone(),
        owner: *owner,
        id: id.clone(),
        fields,
        sets,
        is_too_large: bytes > RECORD_BYTES_MAX,
        newest,
        arr,
    }))
}

pub(super) fn model_num(connection: &Connection, name: &str) -> Result<Option<i64>> {
    let mut query = connection.prepare_cached("SELECT model FROM models WHERE name = ?1")?;
    Ok(query.query_row([name], |row| row.get(0)).optional()?)
}

pub(super) fn scope_num(connection: &Connection, owner: Owner) -> Result<Option<i64>> {
    let Owner::Device(device) = owner else {
        return Ok(Some(0));
    };
    let mut query = connection.prepare_cached("SELECT dev FROM devices WHERE id = ?1")?;
    Ok(query.query_row([device.0], |row| row.get(0)).optional()?)
}

/// The scopes to look at, ascending.
fn scopes(connection: &Connection, model: i64, owner: Option<Owner>) -> Result<Vec<(i64, Owner)>> {
    if let Some(owner) = owner {
        return Ok(scope_num(connection, owner)?.map(|scope| (scope, owner)).into_iter().collect());
    }
    let mut query = connection.prepare_cached(
        "SELECT r.scope, d.id FROM (SELECT DISTINCT scope FROM records WHERE model = ?1) r
         LEFT JOIN devices d ON d.dev = r.scope ORDER BY r.scope",
    )?;
    let rows = query.query_map([model], |row| {
        let id: Option<[u8; 32]> = row.get(1)?;
        Ok((row.get(0)?, id.map_or(Owner::Shared, |id| Owner::Device(NodeId(id)))))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn alive_ids(
    connection: &Connection,
    model: i64,
    scope: i64,
    prefix: &[u8],
    above: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Vec<u8>>> {
    let mut query = connection.prepare_cached(
        "SELECT id FROM records WHERE model = ?1 AND scope = ?2 AND alive = 1
             AND id >= ?3 AND (?4 IS NULL OR id < ?4) AND (?5 IS NULL OR id > ?5)
         ORDER BY id LIMIT ?6",
    )?;
    let rows = query.query_map(
        params![model, scope, prefix, prefix_end(prefix), above, int(limit as u64)],
        |row| row.get(0),
    )?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The first id after all that start with `prefix`; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// See [`JournalReader::knows`].
fn knows(connection: &Connection, cursor: &Cursor) -> Result<bool> {
    let epoch = meta_array(connection, key::FEED_EPOCH)?.map(LogId);
    let newest = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'ops'";
    let newest = connection.prepare_cached(newest)?.query_row([], |row| row_u64(row, 0))?;
    Ok(epoch == Some(cursor.epoch) && cursor.arr <= newest)
}
