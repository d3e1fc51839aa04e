//! Reading the journal: records, changes, events and members.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::ids::{GroupId, LogId, NodeId};
use crate::core::journal::members::Verdicts;
use crate::core::journal::op::{Value, value_from_bytes};
use crate::core::journal::stamp::{Hlc, Stamp};
use crate::core::limits::{CELL_BYTES, RECORD_BYTES_MAX, RECORDS_PAGE_BYTES};
use crate::db::open_reader;

use super::facts::{facts, member_rows};
use super::rows::row_cell;
use super::schema::{SPEC, int, key, meta_array, row_u64};
use super::{JournalError, Result};

/// Reads the journal on a connection of its own; it sees committed data only.
#[derive(Debug)]
pub struct JournalReader {
    pub(super) connection: Connection,
}

/// The owner of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// All devices: each may write it.
    Shared,
    /// One device.
    Device(NodeId),
}

/// A record that exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The kind of record.
    pub model: String,
    /// The record's owner.
    pub owner: Owner,
    /// The record's name within its model.
    pub id: Vec<u8>,
    /// The fields that were set; `None` is null.
    pub fields: BTreeMap<String, Option<Value>>,
    /// The sets that are not empty.
    pub sets: BTreeMap<String, BTreeSet<String>>,
    /// Whether the record has more data than is ever read; `fields` and `sets` are then empty.
    pub is_too_large: bool,
    /// The newest stamp of its cells: the time and log of its last write.
    pub newest: Stamp,
    /// The arrival number of its last change; it changes with every change of the record.
    pub arr: u64,
}

/// A page of records, ascending by owner and id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecordsPage {
    /// The records.
    pub records: Vec<Record>,
    /// The owner and id after which the next page starts.
    pub next: Option<(Owner, Vec<u8>)>,
}

/// A position in the order of arrival. Cursors of another epoch are invalid: read from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The epoch. A new one means that arrival numbers may have been reused.
    pub epoch: LogId,
    /// The arrival number up to which everything was read.
    pub arr: u64,
}

/// A record that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The kind of record.
    pub model: String,
    /// The record's owner.
    pub owner: Owner,
    /// The record's name within its model.
    pub id: Vec<u8>,
    /// The arrival number of its last change.
    pub arr: u64,
    /// The record now; `None` when it does not exist.
    pub record: Option<Record>,
}

/// A page of changes in order of arrival. Several changes of one record appear as one.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangesPage {
    /// The changes.
    pub changes: Vec<Change>,
    /// The cursor for the next page.
    pub cursor: Cursor,
    /// Whether there are more now.
    pub more: bool,
}

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// The event's author.
    pub author: NodeId,
    /// The event's log.
    pub log: LogId,
    /// The event's number in the stream and log, from 0.
    pub event_seq: u64,
    /// The time of writing.
    pub hlc: Hlc,
    /// The event's type.
    pub kind: String,
    /// The event's data.
    pub data: Vec<u8>,
    /// The event's arrival number on this device.
    pub arr: u64,
}

/// A page of a stream, in order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsPage {
    /// The events.
    pub events: Vec<EventRow>,
    /// The position of the next page: an arrival number and an index within that op.
    pub next: (u64, u64),
    /// Whether there are more now.
    pub more: bool,
}

/// A device of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// The device's node ID.
    pub device: NodeId,
    /// The name under which it was added.
    pub name: String,
    /// Whether the device is a member now; false when it was removed.
    pub member: bool,
}

impl JournalReader {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { connection: open_reader(path, &SPEC)? })
    }

    /// Opens another reader of the same file.
    pub fn another(&self) -> Result<Self> {
        let path = self.connection.path().unwrap_or_default();
        Self::open(Path::new(path))
    }

    /// The group; `None` when this device is in none.
    pub fn group(&self) -> Result<Option<GroupId>> {
        Ok(meta_array(&self.connection, key::GROUP)?.map(GroupId))
    }

    /// A record; `None` if it does not exist.
    pub fn record(&self, model: &str, owner: Owner, id: &[u8]) -> Result<Option<Record>> {
        let tx = self.connection.unchecked_transaction()?;
        let (model_num, scope) = (model_num(&tx, model)?, scope_num(&tx, owner)?);
        let (Some(model_num), Some(scope)) = (model_num, scope) else { return Ok(None) };
        let row = Row { model_num, model: model.to_owned(), scope, owner, id: id.to_vec() };
        record(&tx, &row, &mut 0)
    }

    /// Records of a model whose ids start with `prefix`, of one owner or of all, after a position.
    /// At most `limit`; the page also ends after [`RECORDS_PAGE_BYTES`].
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

    /// The position of the newest change; `None` without a group.
    pub fn cursor_now(&self) -> Result<Option<Cursor>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(epoch) = meta_array(&tx, key::FEED_EPOCH)?.map(LogId) else {
            return Ok(None);
        };
        let newest = "SELECT ifnull(max(arr), 0) FROM records";
        let arr = tx.query_row(newest, [], |row| row_u64(row, 0))?;
        Ok(Some(Cursor { epoch, arr }))
    }

    /// Whether this journal issued the cursor. It did not if the cursor is of an earlier group, or
    /// beyond the newest op because an older journal was restored since.
    pub fn knows(&self, cursor: &Cursor) -> Result<bool> {
        let tx = self.connection.unchecked_transaction()?;
        knows(&tx, cursor)
    }

    /// Records of one model or of all that changed since a cursor; from the start without one.
    /// `None` when this journal does not know the cursor, or without a group. The records of one op
    /// are never split, so a page may exceed `limit` and [`RECORDS_PAGE_BYTES`] by them.
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
        // Up to the last arrival number that fits into the limit: a page never ends inside an op.
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

    /// At most `limit` events of a stream after a position ([`EventsPage::next`], or `(0, 0)`).
    pub fn events(&self, stream: &str, after: (u64, u64), limit: usize) -> Result<EventsPage> {
        self.events_that(stream, after, limit, usize::MAX, |_| true)
    }

    /// Like [`Self::events`], but only events that `fits` accepts. Reads at most `read_max` events, so
    /// a page may hold few or none though there are more.
    pub fn events_that(
        &self,
        stream: &str,
        after: (u64, u64),
        limit: usize,
        read_max: usize,
        fits: impl Fn(&EventRow) -> bool,
    ) -> Result<EventsPage> {
        let mut query = self.connection.prepare_cached(
            "SELECT e.arr, e.idx, d.id, l.log_id, e.event_seq, e.hlc, e.type, e.data
             FROM events e JOIN logs l USING (log) JOIN devices d USING (dev)
             WHERE e.stream = ?1 AND (e.arr, e.idx) > (?2, ?3) ORDER BY e.arr, e.idx",
        )?;
        let mut rows = query.query(params![stream, int(after.0), int(after.1)])?;
        let mut page = EventsPage { events: Vec::new(), next: after, more: false };
        let mut read = 0;
        while let Some(row) = rows.next()? {
            if page.events.len() == limit || read == read_max {
                page.more = true;
                break;
            }
            read += 1;
            let event = EventRow {
                author: NodeId(row.get(2)?),
                log: LogId(row.get(3)?),
                event_seq: row_u64(row, 4)?,
                hlc: Hlc(row_u64(row, 5)?),
                kind: row.get(6)?,
                data: row.get(7)?,
                arr: row_u64(row, 0)?,
            };
            page.next = (event.arr, row_u64(row, 1)?);
            if fits(&event) {
                page.events.push(event);
            }
        }
        Ok(page)
    }

    /// The logs in which a device wrote to a stream, the oldest first, each with the number that its
    /// next event there has.
    pub fn event_logs(&self, stream: &str, device: &NodeId) -> Result<Vec<(LogId, u64)>> {
        let mut query = self.connection.prepare_cached(
            "SELECT l.log_id, s.next FROM streams s JOIN logs l USING (log) JOIN devices d USING (dev)
             WHERE s.stream = ?1 AND d.id = ?2 ORDER BY l.log",
        )?;
        let rows = query.query_map(params![stream, device.0], |row| {
            Ok((LogId(row.get(0)?), row_u64(row, 1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// At most `limit` events of a log in a stream, from a number on, in the order of their numbers.
    pub fn numbered_events(
        &self,
        stream: &str,
        log: &LogId,
        from_seq: u64,
        limit: usize,
    ) -> Result<Vec<EventRow>> {
        let mut query = self.connection.prepare_cached(
            "SELECT e.arr, d.id, l.log_id, e.event_seq, e.hlc, e.type, e.data
             FROM events e JOIN logs l USING (log) JOIN devices d USING (dev)
             WHERE e.stream = ?1 AND l.log_id = ?2 AND e.event_seq >= ?3
             ORDER BY e.event_seq, e.arr, e.idx LIMIT ?4",
        )?;
        let bounds = params![stream, log.0, int(from_seq), int(limit as u64)];
        let rows = query.query_map(bounds, |row| {
            Ok(EventRow {
                arr: row_u64(row, 0)?,
                author: NodeId(row.get(1)?),
                log: LogId(row.get(2)?),
                event_seq: row_u64(row, 3)?,
                hlc: Hlc(row_u64(row, 4)?),
                kind: row.get(5)?,
                data: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The models that have records, by name: how many are shared, and how many are owned.
    pub fn models(&self) -> Result<Vec<(String, u64, u64)>> {
        let mut query = self.connection.prepare_cached(
            "SELECT m.name, sum(r.scope = 0), sum(r.scope != 0) FROM records r
             JOIN models m USING (model) WHERE r.alive = 1 GROUP BY m.name ORDER BY m.name",
        )?;
        let rows =
            query.query_map([], |row| Ok((row.get(0)?, row_u64(row, 1)?, row_u64(row, 2)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Every device that was ever a member as far as is known, ascending.
    pub fn members(&self) -> Result<Vec<MemberRow>> {
        let tx = self.connection.unchecked_transaction()?;
        member_rows(&tx, &Verdicts::of(&facts(&tx)?))
    }

    /// The verdicts over all committed facts.
    pub fn verdicts(&self) -> Result<Verdicts> {
        Ok(Verdicts::of(&facts(&self.connection)?))
    }
}

/// The key of a record in the database.
struct Row {
    model_num: i64,
    model: String,
    scope: i64,
    owner: Owner,
    id: Vec<u8>,
}

/// The value of one cell of a record. Reads nothing else of the record.
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

/// Reads a record from its cells; `None` when it does not exist. Adds the bytes read to
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

/// The scopes to read, ascending.
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

/// The first id after all those that start with `prefix`; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// See [`JournalReader::knows`].
pub(super) fn knows(connection: &Connection, cursor: &Cursor) -> Result<bool> {
    let epoch = meta_array(connection, key::FEED_EPOCH)?.map(LogId);
    let newest = "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'ops'";
    let newest = connection.prepare_cached(newest)?.query_row([], |row| row_u64(row, 0))?;
    Ok(epoch == Some(cursor.epoch) && cursor.arr <= newest)
}
