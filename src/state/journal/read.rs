//! What local readers see: records, changes, events, members, numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::Connection;

use crate::core::ids::{GroupId, Hash, LogId, NodeId};
use crate::core::journal::asset::Shadow;
use crate::core::journal::members::Verdicts;
use crate::core::journal::op::Value;
use crate::core::journal::stamp::{Hlc, Stamp};

use super::Result;

/// Reads the journal on a connection of its own; sees what is committed.
#[derive(Debug)]
pub struct JournalReader {
    connection: Connection,
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
    /// The newest stamp of its cells: changes whenever the record does.
    pub etag: Stamp,
    /// The number of arrival of its last change.
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
    /// The log this device writes: a new one means that arrivals may have been forgotten.
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
    /// When.
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
    /// Read on from here: the number of arrival and, within one op, how many of its events.
    pub next: (u64, u64),
    /// Whether there are more now.
    pub more: bool,
}

/// A device of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// Which.
    pub device: NodeId,
    /// The name it was added under.
    pub name: String,
    /// Whether it is a member, or was one and was removed.
    pub member: bool,
}

/// One log in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStats {
    /// Which.
    pub log: LogId,
    /// Its author.
    pub author: NodeId,
    /// The clock.
    pub seq: u64,
    /// Ops held.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Two ops of one number are known.
    pub forked: bool,
    /// The log this device writes.
    pub open: bool,
}

/// The journal in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Every log.
    pub logs: Vec<LogStats>,
    /// Ops that hold something.
    pub live_ops: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Ops of kinds this version cannot read.
    pub opaque_ops: u64,
    /// Cells kept.
    pub cells: u64,
    /// Bytes of their values; much less than `live_bytes` means large ops with little alive.
    pub cell_bytes: u64,
    /// Events kept.
    pub events: u64,
    /// The greatest time given or admitted.
    pub hlc_max: Hlc,
}

impl JournalReader {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { connection: Connection::open(path)? })
    }

    /// The group, if this device is in one.
    pub fn group(&self) -> Result<Option<GroupId>> {
        let _ = &self.connection;
        Ok(None)
    }

    /// A record, if it is there.
    pub fn record(&self, model: &str, owner: Owner, id: &[u8]) -> Result<Option<Record>> {
        let _ = (model, owner, id);
        Ok(None)
    }

    /// Records of a model whose id starts with `prefix`, of one owner or of all, after a place, at
    /// most `limit`.
    pub fn records(
        &self,
        model: &str,
        owner: Option<Owner>,
        prefix: &[u8],
        after: Option<&(Owner, Vec<u8>)>,
        limit: usize,
    ) -> Result<RecordsPage> {
        let _ = (model, owner, prefix, after, limit);
        Ok(RecordsPage::default())
    }

    /// The place after which there is nothing yet; `None` without a group.
    pub fn cursor_now(&self) -> Result<Option<Cursor>> {
        Ok(None)
    }

    /// Records changed since a cursor, of one model or of all; from the beginning without one.
    /// `None` when the cursor is of another epoch, or there is no group.
    pub fn changes(
        &self,
        model: Option<&str>,
        since: Option<&Cursor>,
        limit: usize,
    ) -> Result<Option<ChangesPage>> {
        let _ = (model, since, limit);
        Ok(None)
    }

    /// Events of a stream after a place ([`EventsPage::next`], or `(0, 0)`), at most `limit`.
    pub fn events(&self, stream: &str, after: (u64, u64), limit: usize) -> Result<EventsPage> {
        let _ = (stream, limit);
        Ok(EventsPage { events: Vec::new(), next: after, more: false })
    }

    /// Every device that was ever a member by what we know, ascending.
    pub fn members(&self) -> Result<Vec<MemberRow>> {
        Ok(Vec::new())
    }

    /// Who may author and who may connect.
    pub fn verdicts(&self) -> Result<Verdicts> {
        Ok(Verdicts::default())
    }

    /// The shadow of an asset.
    pub fn shadow(&self, hash: &Hash) -> Result<Option<Shadow>> {
        let _ = hash;
        Ok(None)
    }

    /// How far a local consumer has come.
    pub fn cursor(&self, name: &str) -> Result<Option<Cursor>> {
        let _ = name;
        Ok(None)
    }

    /// The journal in numbers. Reads the whole of the tables.
    pub fn stats(&self) -> Result<Stats> {
        Ok(Stats::default())
    }
}
