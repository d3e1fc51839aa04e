//! What is known about one asset at one moment: by the engine ([`Facts`], with monotonic times) and by
//! the shell ([`Seen`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::ids::NodeId;

/// What the engine knows about one asset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the group removed this device.
    pub is_removed: bool,
    /// Whether the store answers.
    pub store_up: bool,
    /// Until then nothing is requested, because the store could not take what came.
    pub paused_until_ms: Option<u64>,
    /// How far the request for the asset is.
    pub want: Wanted,
    /// The peers from which it is not accepted for now.
    pub rests: Vec<Rest>,
    /// Every other device of the group.
    pub peers: Vec<PeerFacts>,
}

/// How far the request for an asset that is not here is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing requests the asset.
    #[default]
    Not,
    /// The asset was stored a moment ago.
    Stored,
    /// These peers send it.
    Arriving(Vec<NodeId>),
    /// The asset was requested from a peer.
    Requested {
        /// From this peer.
        from: NodeId,
        /// At this time.
        at_ms: u64,
        /// How many other assets were requested from that peer and have not arrived.
        others: u64,
    },
    /// The asset waits to be requested.
    Queued {
        /// The peers that hold it.
        holders: Vec<NodeId>,
        /// How many other assets are requested from the first of them before it.
        ahead: u64,
    },
}

/// A peer from which an asset is not accepted for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// The peer.
    pub peer: NodeId,
    /// Why it is not accepted.
    pub cause: RestCause,
    /// Until then.
    pub until_ms: u64,
}

/// Why an asset is not accepted from a peer for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestCause {
    /// The bytes were not those of the hash, or the store refuses the asset.
    WrongBytes,
    /// There was no space for it.
    NoSpace,
    /// The transfer broke off.
    Interrupted,
}

/// What the engine knows about one asset and one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// The peer.
    pub node_id: NodeId,
    /// The peer's name.
    pub name: String,
    /// The connection.
    pub link: LinkFacts,
    /// Whether the peer reported that it holds the asset.
    pub holds: bool,
    /// Whether the peer reports which assets it lacks on purpose. Then equal sets do not mean that
    /// it holds all of them.
    pub tells_absent: bool,
    /// Whether this device is sending the asset to the peer.
    pub sending: Sending,
}

/// The connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkFacts {
    /// There is none.
    Offline {
        /// When the last connection ended; `None`: there was none since this agent started.
        since_ms: Option<u64>,
        /// Why the last connection or dial ended.
        error: Option<String>,
        /// When it is dialled next; `None` while it is being dialled.
        retry_at_ms: Option<u64>,
    },
    /// The devices have not greeted each other yet.
    Greeting,
    /// The devices talk.
    Connected {
        /// Whether both hold the same set.
        in_sync: bool,
        /// When the sets are compared next, as far as known.
        compare_at_ms: Option<u64>,
    },
}

/// Whether an asset is on its way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// The asset is not being sent to the peer.
    No,
    /// The asset is queued in its lane behind others.
    Queued {
        /// How many.
        ahead: u64,
        /// Their bytes, as far as known.
        ahead_bytes: u64,
    },
    /// The asset is in a batch under way.
    Under,
}

/// What the shell saw of the asset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The state of the asset's content in this device's store.
    pub here: Here,
    /// One sentence for each disk that is full; empty when there is space.
    pub shortage: Vec<String>,
    /// Why the store does not answer.
    pub store_error: Option<String>,
    /// The bytes that are still missing of a large asset under way.
    pub left_bytes: Option<u64>,
    /// Why it is not wanted here, if so.
    pub unwanted: Option<Unwanted>,
    /// The peers that were known to hold it, and when that was confirmed, ms since the Unix epoch.
    pub holders: BTreeMap<NodeId, u64>,
    /// The device that added it, as the journal has it, with its name.
    pub added_by: Option<(NodeId, String)>,
    /// The rate limits in force, in bytes per second.
    pub limits: Limits,
    /// What each connected peer reported about the asset.
    pub peers: BTreeMap<NodeId, PeerSeen>,
    /// When each peer that is not connected was last seen, ms since the Unix epoch, also before this
    /// agent started.
    pub last_seen: BTreeMap<NodeId, u64>,
}

/// The state of an asset's content in this device's store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Here {
    /// The store does not know it.
    #[default]
    Absent,
    /// Bytes that are known to be damaged.
    Damaged,
    /// All of it.
    Whole,
}

/// Why an asset is not wanted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unwanted {
    /// This device's want expression leaves the asset out.
    Expression,
    /// The copy of the asset here was evicted.
    Evicted,
}

/// The rate limits in force, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// For sending.
    pub up_bytes: Option<u64>,
    /// For receiving.
    pub down_bytes: Option<u64>,
}

/// What the shell saw of a connected peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSeen {
    /// Why it takes no assets for now.
    pub put_off: Option<String>,
    /// When it refused this asset in this connection, by the monotonic clock, and why.
    pub refused: Option<(u64, String)>,
    /// The bytes that it is still to send in batches under way.
    pub left_bytes: u64,
}

/// The same moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// On the clock that only goes forward.
    pub mono_ms: u64,
    /// Since the Unix epoch.
    pub wall_ms: u64,
}

impl Moment {
    pub(super) fn wall(self, mono_ms: u64) -> u64 {
        (self.wall_ms + mono_ms).saturating_sub(self.mono_ms)
    }
}
