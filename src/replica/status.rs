//! The status that the agent publishes: a snapshot for the API, the command line and tests. Plain
//! data; the loop fills it in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::alerts::Alert;
use crate::core::ids::{GroupId, LogId, NodeId, StoreId};

/// The status of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// What needs the user's attention, the most pressing first; acknowledged alerts last.
    #[serde(default)]
    pub alerts: Vec<Alert>,
    /// This device.
    pub device: DeviceStatus,
    /// This device's store.
    pub store: StoreStatus,
    /// Every other device of the group, connected or not, by name.
    pub peers: Vec<PeerStatus>,
    /// The journal.
    pub journal: JournalStatus,
    /// Pairings whose digits people compare now, and recent ones; the newest last.
    #[serde(default)]
    pub pairings: Vec<PairingStatus>,
    /// The limits of the transfer rates in force; `None` when no limit is set.
    pub rate_limits: Option<RateLimitStatus>,
    /// How the store is read again in the background, to find what has rotted.
    #[serde(default)]
    pub scrub: ScrubStatus,
    /// What this device wants, and how many copies there are.
    #[serde(default)]
    pub copies: CopiesStatus,
    /// This device holds what it wants of what the connected peers hold, they know the same assets and
    /// edits as this device, and the whole store is indexed.
    pub in_sync: bool,
    /// Increases with every change of the status other than rates and times.
    pub revision: u64,
}

impl Status {
    /// The status before the first one is built, with revision 0.
    pub fn starting(node_id: NodeId, group_id: GroupId) -> Self {
        Self {
            alerts: Vec::new(),
            device: DeviceStatus {
                node_id,
                name: String::new(),
                group_id,
                version: String::new(),
                addresses: Vec::new(),
                removed: false,
                warnings: Vec::new(),
                obstacles: Vec::new(),
            },
            store: StoreStatus {
                location: String::new(),
                up: false,
                store_id: StoreId([0; 16]),
                hash_algorithm: String::new(),
                assets: 0,
                quarantined: 0,
                damaged: 0,
                last_error: None,
            },
            peers: Vec::new(),
            journal: JournalStatus::default(),
            pairings: Vec::new(),
            rate_limits: None,
            scrub: ScrubStatus::default(),
            copies: CopiesStatus::default(),
            in_sync: false,
            revision: 0,
        }
    }

    /// Whether a peer has the same edits as this device, as far as both have reported.
    pub fn has_same_edits(&self, peer: &PeerStatus) -> bool {
        let with_peer = |journal: &&JournalPeerStatus| journal.node_id == peer.node_id;
        let journals = self.journal.peers.iter().filter(with_peer);
        journals.into_iter().all(|journal| journal.state == JournalPeerState::InSync)
    }
}

/// This device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStatus {
    /// The device's node ID.
    pub node_id: NodeId,
    /// The device's name.
    pub name: String,
    /// The group's id.
    pub group_id: GroupId,
    /// Program version.
    pub version: String,
    /// Where other devices can reach it, as text.
    pub addresses: Vec<String>,
    /// This device was removed from the group: it syncs with nobody, and starts over as a new one.
    pub removed: bool,
    /// Warnings that a user can act on; empty when all is well.
    pub warnings: Vec<String>,
    /// Reasons why this device does not accept what others have, in words; empty when there are
    /// none.
    #[serde(default)]
    pub obstacles: Vec<String>,
}

/// A pairing with another device, on either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PairingStatus {
    /// The other device's node ID.
    pub node_id: NodeId,
    /// The name that it reports.
    pub name: String,
    /// The twelve digits. The other device shows the same, unless an attacker stands between the
    /// two.
    pub short_code: String,
    /// The state of the pairing.
    pub state: PairingState,
}

/// The state of a pairing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairingState {
    /// A user has to confirm here whether the other device shows the same digits.
    Compare,
    /// A user has confirmed here, but not yet on the other device.
    Confirmed,
    /// The devices are paired.
    Paired,
}

/// The state of the store that the agent syncs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `embedded` or the URL of a foreign store.
    pub location: String,
    /// Whether the store answers.
    pub up: bool,
    /// The store's id.
    pub store_id: StoreId,
    /// `blake3` or `sha256`.
    pub hash_algorithm: String,
    /// The number of assets that it holds, trashed ones included.
    pub assets: u64,
    /// Assets that are not transferred for now: peers sent wrong content, or this store refused
    /// them. Each is retried later.
    pub quarantined: u64,
    /// Assets of this store whose content is lost or does not match the hash. Each is requested
    /// from the other devices; if none has it, its file must be added again.
    pub damaged: u64,
    /// The last failure, for people; `None` when the store answers.
    pub last_error: Option<String>,
}

/// What the scrub does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// Nothing: it was turned off.
    #[default]
    Off,
    /// It reads the store.
    Running,
    /// It waits for the store, which does not answer.
    Waiting,
    /// The cycle is done, and the next one begins later.
    Resting,
    /// It gave up until the next start, see `stopped`.
    Stopped,
}

/// How the store is read again in the background. The figures are of the cycle under way, or of the
/// last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// What it does now.
    pub state: ScrubState,
    /// How fast it may read, in bytes per second.
    pub rate_bytes: u64,
    /// When the cycle began, ms since the Unix epoch.
    pub begun_ms: Option<u64>,
    /// When a cycle last came to its end.
    pub finished_ms: Option<u64>,
    /// How much of the cycle is done, in thousandths.
    pub done_permille: u64,
    /// The bytes read.
    pub read_bytes: u64,
    /// The assets read.
    pub assets: u64,
    /// The assets found damaged.
    pub damaged: u64,
    /// Files in the store's folder that belong to no asset. They are named in the log and left
    /// alone.
    pub strays: u64,
    /// Why it gave up.
    pub stopped: Option<String>,
}

/// The rate limits in force now, in bytes per second; `None`: no limit at this time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateLimitStatus {
    /// For sending, to all peers together.
    pub up_bytes: Option<u64>,
    /// For receiving, from all peers together.
    pub down_bytes: Option<u64>,
    /// For sending, to each peer.
    pub up_per_peer_bytes: Option<u64>,
    /// For receiving, from each peer.
    pub down_per_peer_bytes: Option<u64>,
    /// Whether traffic within the local network is not limited.
    pub lan_exempt: bool,
}

/// What this device wants, and how many copies there are of the assets that it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopiesStatus {
    /// The expression of what this device wants; empty for everything.
    pub wants: String,
    /// Known assets that are wanted and not here.
    pub missing: u64,
    /// Known assets that are not here because they are not wanted.
    pub unwanted: u64,
    /// The site of this device; empty when it is one of its own.
    pub site: String,
    /// How many copies of each asset the group wants.
    pub goal_copies: u64,
    /// On how many sites.
    pub goal_sites: u64,
    /// How many assets have how many copies; `None` until they were counted, also after a device was
    /// added.
    pub census: Option<CensusStatus>,
    /// Since when there are assets with only one copy, as far as this agent has counted since its
    /// start, ms since the Unix epoch.
    pub one_copy_since_ms: Option<u64>,
}

/// How many assets have how many copies. Only what a device told counts, so there may be more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CensusStatus {
    /// The assets that this device knows.
    pub known: u64,
    /// Those that no device is known to hold.
    pub nowhere: u64,
    /// Those that one device is known to hold.
    pub one_copy: u64,
    /// Those with fewer copies, or on fewer sites, than the group wants.
    pub below_goal: u64,
    /// Those with too few known copies, while a connected device has yet to confirm which it holds.
    /// They are not counted in the other numbers.
    #[serde(default)]
    pub unconfirmed: u64,
}

/// Another device of the group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// The peer's node ID.
    pub node_id: NodeId,
    /// The peer's name.
    pub name: String,
    /// The state of the connection.
    pub state: PeerState,
    /// When it was last connected, ms since the Unix epoch; `None` while it is.
    #[serde(default)]
    pub last_seen_ms: Option<u64>,
    /// `lan`, `direct` or `relay`; `None` when not connected.
    pub path: Option<String>,
    /// Round-trip time, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Both sides hold the same assets, as far as both have reported. For edits see
    /// [`JournalStatus`].
    pub in_sync: bool,
    /// Assets that it has and this device lacks, as far as known.
    pub missing_here: u64,
    /// Assets that this device has and it lacks, as far as known.
    pub missing_there: u64,
    /// Asset bytes received in this connection.
    pub received_bytes: u64,
    /// Asset bytes sent in this connection.
    pub sent_bytes: u64,
    /// Bytes of all datagrams received in this connection.
    pub wire_received_bytes: u64,
    /// Bytes of all datagrams sent in this connection.
    pub wire_sent_bytes: u64,
    /// Asset bytes received per second, averaged over the last seconds.
    pub receive_rate_bytes: f64,
    /// Asset bytes sent per second, averaged over the last seconds.
    pub send_rate_bytes: f64,
    /// Seconds until the transfers under way are complete, if known.
    pub eta_s: Option<f64>,
    /// Why the last connection or attempt ended, for people.
    pub last_error: Option<String>,
    /// Reasons why the two devices do not become the same, in words, while they are connected.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// When the next attempt is made, in milliseconds from now; `None` when connected.
    pub next_retry_ms: Option<u64>,
    /// The peer's site; empty when it is one of its own.
    #[serde(default)]
    pub site: String,
    /// What it wants, as it tells; empty for everything.
    #[serde(default)]
    pub wants: String,
}

/// The state of the connection to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Not reachable; tried again at `next_retry_ms`.
    Offline,
    /// Being dialled, or the session is being set up.
    Connecting,
    /// Finding or moving the difference.
    Syncing,
    /// Connected, nothing to do.
    Idle,
}

/// The journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JournalStatus {
    /// The journal of every connected peer is the same as this device's, as far as both have
    /// reported.
    pub ready: bool,
    /// The peers whose journals are synced now.
    pub peers: Vec<JournalPeerStatus>,
    /// Logs that hold two ops with one number: a device was copied, or restored from a backup. Both
    /// branches count.
    pub forked_logs: Vec<LogId>,
    /// How often a whole journal was sent again because contents differed that should be equal,
    /// since the start.
    pub repairs: u64,
}

impl JournalStatus {
    /// The status of all streams.
    pub(crate) fn of<'a>(
        peers: impl Iterator<Item = &'a JournalPeerStatus>,
        forked: &[LogId],
        repairs: u64,
    ) -> Self {
        let mut peers: Vec<_> = peers.cloned().collect();
        peers.sort_by_key(|peer| peer.node_id);
        Self {
            ready: peers.iter().all(|peer| peer.state == JournalPeerState::InSync),
            peers,
            forked_logs: forked.to_vec(),
            repairs,
        }
    }
}

/// The state of the journal with a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JournalPeerStatus {
    /// The peer's node ID.
    pub node_id: NodeId,
    /// The state of the stream.
    pub state: JournalPeerState,
    /// How far its clock is ahead of this device's, in milliseconds, when that is too much.
    pub skew_ms: Option<i64>,
    /// How often a whole journal was sent again in this connection.
    pub repairs: u64,
    /// The number of logs whose ops are not applied for now.
    pub held_logs: u64,
    /// The first of them, each with the reason.
    pub held: Vec<JournalRefusal>,
    /// What the peer last refused in this connection.
    pub refused: Option<JournalRefusal>,
}

impl JournalPeerStatus {
    /// A stream that has just begun.
    pub fn begun(node_id: NodeId) -> Self {
        Self {
            node_id,
            state: JournalPeerState::Greeting,
            skew_ms: None,
            repairs: 0,
            held_logs: 0,
            held: Vec::new(),
            refused: None,
        }
    }

    /// The status of a stream that ended while its connection stays, because the two devices speak
    /// different versions of the journal's protocol.
    pub(crate) fn version_differs(self) -> Self {
        let reason =
            "the two devices have other versions of the journal's protocol, upgrade the older one";
        let refused = JournalRefusal { reason: reason.to_owned(), log: None, seq: None };
        Self { refused: Some(refused), ..self }
    }
}

/// The state of the journal's stream with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JournalPeerState {
    /// The two devices check whether the other is a member.
    Greeting,
    /// One of them lacks something, or it is not known yet.
    CatchingUp,
    /// Both have the same.
    InSync,
}

/// A part of the journal that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalRefusal {
    /// Why, for people.
    pub reason: String,
    /// The op's log.
    pub log: Option<LogId>,
    /// The op's number.
    pub seq: Option<u64>,
}

/// What tests show.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A peer of which nothing moves.
    pub(crate) fn peer(name: &str, node_id: u8, state: PeerState, in_sync: bool) -> PeerStatus {
        PeerStatus {
            node_id: NodeId([node_id; 32]),
            name: name.into(),
            state,
            last_seen_ms: None,
            path: None,
            rtt_ms: None,
            in_sync,
            missing_here: 0,
            missing_there: 0,
            received_bytes: 0,
            sent_bytes: 0,
            wire_received_bytes: 0,
            wire_sent_bytes: 0,
            receive_rate_bytes: 0.0,
            send_rate_bytes: 0.0,
            eta_s: None,
            last_error: None,
            obstacles: Vec::new(),
            next_retry_ms: None,
            site: String::new(),
            wants: String::new(),
        }
    }

    /// A device with three assets in its store.
    pub(crate) fn status(peers: Vec<PeerStatus>, in_sync: bool) -> Status {
        let mut status = Status::starting(NodeId([0xab; 32]), GroupId([0xcd; 32]));
        (status.device.name, status.device.version) = ("desk".into(), "0.1.0".into());
        (status.store.location, status.store.up) = ("embedded".into(), true);
        (status.store.store_id, status.store.assets) = (StoreId([0xef; 16]), 3);
        status.store.hash_algorithm = "blake3".into();
        Status { peers, in_sync, revision: 1, ..status }
    }
}
