//! What the agent says of itself: one picture of a moment, as the API, the command line and tests
//! see it. Plain data; the loop fills it in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::ids::{GroupId, LogId, NodeId, StoreId};

/// The agent at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// This device.
    pub device: DeviceStatus,
    /// Its store.
    pub store: StoreStatus,
    /// Every other device of the group, connected or not, by name.
    pub peers: Vec<PeerStatus>,
    /// The journal.
    pub journal: JournalStatus,
    /// Pairings whose digits people compare now, and those of late; the newest last.
    #[serde(default)]
    pub pairings: Vec<PairingStatus>,
    /// How fast contents may move; `None` when no limit is set.
    pub rate_limits: Option<RateLimitStatus>,
    /// Every connected peer holds the same assets and edits as this device, and the store has been
    /// taken in.
    pub in_sync: bool,
    /// Rises with every change of this picture but rates and times.
    pub revision: u64,
}

impl Status {
    /// What is known before the first picture is drawn, with revision 0.
    pub fn starting(node_id: NodeId, group_id: GroupId) -> Self {
        Self {
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
            in_sync: false,
            revision: 0,
        }
    }

    /// Whether a peer has the same edits as this device, as far as both have said.
    pub fn has_same_edits(&self, peer: &PeerStatus) -> bool {
        let with_peer = |journal: &&JournalPeerStatus| journal.node_id == peer.node_id;
        let journals = self.journal.peers.iter().filter(with_peer);
        journals.into_iter().all(|journal| journal.state == JournalPeerState::InSync)
    }
}

/// This device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStatus {
    /// Its node ID.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The group's id.
    pub group_id: GroupId,
    /// Program version.
    pub version: String,
    /// Where other devices can reach it, as text.
    pub addresses: Vec<String>,
    /// This device was removed from the group: it syncs with nobody, and starts over as a new one.
    pub removed: bool,
    /// What a user should know and can do something about; empty when all is well.
    pub warnings: Vec<String>,
    /// What keeps this device from taking in what others have, in words; empty when nothing does.
    #[serde(default)]
    pub obstacles: Vec<String>,
}

/// A pairing with another device, on either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PairingStatus {
    /// The other device's node ID.
    pub node_id: NodeId,
    /// Its name, as it says itself.
    pub name: String,
    /// The twelve digits; the other device shows the same, unless somebody stands in between.
    pub short_code: String,
    /// How far it is.
    pub state: PairingState,
}

/// How far a pairing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairingState {
    /// Somebody has to say here whether the other device shows the same digits.
    Compare,
    /// Somebody has said so here, and has yet to say so there.
    Confirmed,
    /// The devices are paired.
    Paired,
}

/// The state of the store beside the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `embedded` or the URL of a foreign store.
    pub location: String,
    /// It answers.
    pub up: bool,
    /// Its id.
    pub store_id: StoreId,
    /// `blake3` or `sha256`.
    pub hash_algorithm: String,
    /// Hashes known, trashed assets included.
    pub assets: u64,
    /// Assets that do not move for now: peers sent them wrong, or this store refused them. Each is
    /// tried again after a while.
    pub quarantined: u64,
    /// Assets of this store whose bytes are lost or not those of their hash. Each is asked of the
    /// other devices; the rest need their files added again.
    pub damaged: u64,
    /// The last failure, for people; `None` when it answers.
    pub last_error: Option<String>,
}

/// The rate limits in force now, bytes a second; `None`: no limit at this time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateLimitStatus {
    /// Of what is sent, to all peers together.
    pub up_bytes: Option<u64>,
    /// Of what is received, from all peers together.
    pub down_bytes: Option<u64>,
    /// Of what is sent to each peer.
    pub up_per_peer_bytes: Option<u64>,
    /// Of what is received from each peer.
    pub down_per_peer_bytes: Option<u64>,
    /// What stays within the local network is not limited.
    pub lan_exempt: bool,
}

/// Another device of the group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// Its node ID.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Where the connection stands.
    pub state: PeerState,
    /// `lan`, `direct` or `relay`; `None` when not connected.
    pub path: Option<String>,
    /// Round-trip time, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Both sides hold the same assets, as far as both have said. Of edits, see [`JournalStatus`].
    pub in_sync: bool,
    /// Assets it has that this device lacks, as far as known.
    pub missing_here: u64,
    /// Assets this device has that it lacks, as far as known.
    pub missing_there: u64,
    /// Asset bytes received in this connection.
    pub received_bytes: u64,
    /// Asset bytes sent in this connection.
    pub sent_bytes: u64,
    /// Bytes of all datagrams received in this connection, whatever was in them.
    pub wire_received_bytes: u64,
    /// The same sent.
    pub wire_sent_bytes: u64,
    /// Asset bytes received a second, of late.
    pub receive_rate_bytes: f64,
    /// Asset bytes sent a second, of late.
    pub send_rate_bytes: f64,
    /// Seconds until what is under way is through, when it can be told.
    pub eta_s: Option<f64>,
    /// Why the last connection or attempt ended, for people.
    pub last_error: Option<String>,
    /// What keeps the two devices from being the same, in words, as long as they are connected.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// When the next attempt is made, in milliseconds from now; `None` when connected.
    pub next_retry_ms: Option<u64>,
}

/// Where the connection to a peer stands.
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
    /// The journal of every connected peer is the same as this device's, as far as both have said.
    pub ready: bool,
    /// The peers with which journals are kept in step now.
    pub peers: Vec<JournalPeerStatus>,
    /// Logs that hold two ops of one number: a device was copied, or its backup restored. Both
    /// branches count.
    pub forked_logs: Vec<LogId>,
    /// How often all was sent again because contents differed that should not, since the start.
    pub repairs: u64,
}

/// How the journal stands with a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JournalPeerStatus {
    /// Its node ID.
    pub node_id: NodeId,
    /// Where the stream stands.
    pub state: JournalPeerState,
    /// By how much its clock is ahead of this device's, when that is too much, milliseconds.
    pub skew_ms: Option<i64>,
    /// How often all was sent again in this connection.
    pub repairs: u64,
    /// Logs of which nothing is taken in for now.
    pub held_logs: u64,
    /// The first of them, and why.
    pub held: Vec<JournalRefusal>,
    /// What the peer refused last in this connection.
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
}

/// Where the journal's stream with a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JournalPeerState {
    /// Each finds out whether the other is a member.
    Greeting,
    /// One of them lacks something, or they do not know yet.
    CatchingUp,
    /// Both have the same.
    InSync,
}

/// Something of the journal that was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalRefusal {
    /// Why, for people.
    pub reason: String,
    /// The op's log.
    pub log: Option<LogId>,
    /// The op's number.
    pub seq: Option<u64>,
}
