//! The answers of the agent's routes about the journal, written by the server and read by the
//! command line. Answers about the agent itself: [`crate::replica::status`],
//! [`crate::agent::handle`]; about assets: [`crate::http::asset`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use utoipa::ToSchema;

use super::json::FieldValue;
use super::places::{EventPlace, RecordPlace};
use crate::core::doctor::Check;
use crate::core::ids::{Hash, LogId, NodeId};
use crate::http::asset::AssetRow;
use crate::state::journal::{Cursor, LogStats, MemberRow, OutstandingTicket, Stats};

/// Done; there is nothing to report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {}

/// The tickets of this device that still let somebody in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TicketsPage {
    /// The tickets, the oldest first.
    pub tickets: Vec<TicketView>,
}

/// A ticket, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TicketView {
    /// The ticket's name.
    pub id: String,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// How many devices the ticket was made for.
    pub uses: u16,
    /// How many more devices the ticket may admit.
    pub left: u16,
    /// Whether people must compare the digits.
    pub verify: bool,
}

impl From<OutstandingTicket> for TicketView {
    fn from(ticket: OutstandingTicket) -> Self {
        let OutstandingTicket { id, created_ms, expires_ms, uses, left, verify } = ticket;
        Self { id, created_ms, expires_ms, uses, left, verify }
    }
}

/// The checks of a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkup {
    /// The checks of the network, and of this device's clock against those of others.
    pub checks: Vec<Check>,
}

/// The position of a write in the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Written {
    /// The place of the write; also the record's ETag. Null: there was nothing to do, and `author`,
    /// `log` and `hlc` are absent.
    #[schema(required)]
    pub cursor: Option<Cursor>,
    /// This device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub author: Option<NodeId>,
    /// The log that contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub log: Option<LogId>,
    /// The hybrid time of the write, in hex; later is greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub hlc: Option<String>,
    /// The numbers of the written events, in order.
    pub event_seqs: Vec<u64>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// The record's model.
    pub model: String,
    /// The record's id within the model; for the shared models `asset`, `file` and `folder` in hex.
    pub id: String,
    /// The device that owns it. Null: it is shared.
    #[schema(required)]
    pub owner: Option<NodeId>,
    /// The record's fields.
    #[schema(value_type = BTreeMap<String, FieldValue>)]
    pub fields: BTreeMap<String, Json>,
    /// The record's sets that are not empty.
    pub sets: BTreeMap<String, BTreeSet<String>>,
    /// When it was last written to, by the writer's clock, milliseconds since the Unix epoch.
    pub changed_ms: u64,
    /// Only when true: the record is too large to read, and fields and sets are left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub too_large: bool,
    /// The position of its last change.
    pub etag: Cursor,
}

/// A record that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletedRecord {
    /// The record's model.
    pub model: String,
    /// The record's id within the model.
    pub id: String,
    /// The device that owned it. Null: it was shared.
    #[schema(required)]
    pub owner: Option<NodeId>,
    /// Always true: it tells a deletion from a change.
    pub deleted: bool,
    /// The position of its deletion.
    pub etag: Cursor,
}

/// A record in the stream of a watcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum WatchedRecord {
    /// The record was written to.
    Written(Record),
    /// The record was deleted.
    Deleted(DeletedRecord),
}

impl WatchedRecord {
    /// The device that owns it; `None` when it is shared.
    pub fn owner(&self) -> Option<NodeId> {
        match self {
            Self::Written(Record { owner, .. }) | Self::Deleted(DeletedRecord { owner, .. }) => {
                *owner
            }
        }
    }
}

/// A page of records, ascending by owner and id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RecordsPage {
    /// The records.
    pub records: Vec<Record>,
    /// Where the next page starts: `after`. Null at the end.
    #[schema(required)]
    pub next: Option<RecordPlace>,
    /// Changes after this place are not in this page: watch from here.
    pub cursor: Cursor,
}

/// The asset that a text names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = FoundAsset)]
pub struct FoundAsset {
    /// The asset's hash.
    pub hash: Hash,
    /// The folder it was added from; empty when unknown.
    pub path: String,
    /// The asset's name; empty when unknown.
    pub name: String,
    /// The asset in this device's store. Null: it is not here.
    #[schema(required)]
    pub asset: Option<AssetRow>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The device that wrote it.
    pub author: NodeId,
    /// In which log.
    pub log: LogId,
    /// Contiguous from 0 for each stream and log.
    pub event_seq: u64,
    /// The hybrid time it was written at, in hex; later is greater.
    pub hlc: String,
    /// The time of `hlc` in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The kind of the event.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the stream `device`: the path and name that the asset of `data.hash` has now, where they are
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub asset_name: Option<String>,
    /// The event's data: any JSON. Data that is not JSON appears as `{"bytes": "<base64>"}`.
    pub data: Json,
}

/// A page of a stream, in the order of arrival on this device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventsPage {
    /// The events.
    pub events: Vec<Event>,
    /// Read on from here: `after`.
    pub next: EventPlace,
    /// There is more now, also when this page has few events or none.
    pub more: bool,
}

/// A page of the events of one device, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NumberedEvents {
    /// The device.
    pub device: NodeId,
    /// Its logs in this stream, the oldest first. A device begins a new log when its journal was
    /// copied or restored; numbers begin at 0 in each.
    pub logs: Vec<NumberedLog>,
    /// The log of this page. Null: the device wrote nothing to this stream, as far as is known here.
    #[schema(required)]
    pub log: Option<LogId>,
    /// The events.
    pub events: Vec<Event>,
    /// The numbers that are missing in this page: dropped by the stream's retention, or not here yet.
    pub gaps: Vec<Gap>,
    /// The number of the last event in this page: `after_seq` of the next one. Null: there is none.
    #[schema(required)]
    pub last_seq: Option<u64>,
    /// There is more now.
    pub more: bool,
}

/// A log of a device in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumberedLog {
    /// The log.
    pub log: LogId,
    /// The number that its next event has, as far as is known here.
    pub next_seq: u64,
}

/// Numbers that are missing, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// The first number of the gap.
    pub from_seq: u64,
    /// The last number of the gap.
    pub to_seq: u64,
}

/// Records that changed after a position, in the order of arrival on this device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RecordChanges {
    /// The records as they are now; one that changed twice appears once.
    pub changes: Vec<WatchedRecord>,
    /// Read on from here: `after`.
    pub cursor: Cursor,
    /// There is more now.
    pub more: bool,
}

/// The models that have records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelsPage {
    /// The models, by name.
    pub models: Vec<ModelView>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelView {
    /// The model's name.
    pub model: String,
    /// How many shared records it has.
    pub shared: u64,
    /// How many records devices own in it.
    pub own: u64,
}

/// Reports to a watcher that it has received everything there was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// The position up to which it has received everything.
    pub cursor: EventPlace,
}

/// Every device that is or was a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Members {
    /// The devices.
    pub members: Vec<Member>,
}

/// A device that is or was a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The device's node ID.
    pub device: NodeId,
    /// The name it was added under.
    pub name: String,
    /// False: it was removed.
    pub member: bool,
}

impl From<MemberRow> for Member {
    fn from(MemberRow { device, name, member }: MemberRow) -> Self {
        Self { device, name, member }
    }
}

/// The journal in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalStats {
    /// Every log.
    pub logs: Vec<JournalLog>,
    /// Ops that hold something.
    pub live_ops: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Ops of kinds this version cannot read.
    pub opaque_ops: u64,
    /// Cells kept.
    pub cells: u64,
    /// Bytes of their values.
    pub cell_bytes: u64,
    /// Events kept.
    pub events: u64,
    /// The newest time given or taken in, milliseconds since the Unix epoch.
    pub newest_ms: u64,
    /// How far the newest time is ahead of this device's clock, milliseconds.
    pub ahead_ms: u64,
}

impl JournalStats {
    /// The numbers, told at `now_ms`.
    pub(super) fn new(stats: Stats, now_ms: u64) -> Self {
        let newest_ms = stats.hlc_max.ms();
        Self {
            logs: stats.logs.into_iter().map(JournalLog::from).collect(),
            live_ops: stats.live_ops,
            live_bytes: stats.live_bytes,
            opaque_ops: stats.opaque_ops,
            cells: stats.cells,
            cell_bytes: stats.cell_bytes,
            events: stats.events,
            newest_ms,
            ahead_ms: newest_ms.saturating_sub(now_ms),
        }
    }
}

/// A log of the journal in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalLog {
    /// The log.
    pub log: LogId,
    /// The device that writes it.
    pub author: NodeId,
    /// The number of its newest op.
    pub seq: u64,
    /// Ops held.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Two ops of one number are known.
    pub forked: bool,
    /// This device writes it.
    pub open: bool,
}

impl From<LogStats> for JournalLog {
    fn from(LogStats { log, author, seq, ops, bytes, forked, open }: LogStats) -> Self {
        Self { log, author, seq, ops, bytes, forked, open }
    }
}

/// What a check of the journal found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Findings {
    /// Empty when all is well.
    pub findings: Vec<String>,
}

/// The ops that were written again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Rebased)]
pub struct RebasedOps {
    /// How many ops were rewritten.
    pub ops: u64,
    /// The log that contains them now; absent when there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub log: Option<LogId>,
}
