//! Why an asset is, or is not, on each device: the answer, with times of the wall clock.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::facts::{RestCause, Unwanted};
use crate::core::ids::{Hash, NodeId};

/// Why an asset is, or is not, on each device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssetWhy {
    /// The asset.
    pub hash: Hash,
    /// The time of the answer, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether this device has bytes of it that are damaged: it then counts as missing.
    pub damaged: bool,
    /// The state of the asset on this device.
    pub here: HereReason,
    /// The state of the asset on each other device, by name.
    pub devices: Vec<DeviceWhy>,
    /// What happens next; null: nothing, or it is not known.
    #[schema(required)]
    pub next: Option<Next>,
    /// All of it, in words.
    pub text: String,
}

/// A device in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedDevice {
    /// The device's node ID.
    pub node_id: NodeId,
    /// The device's name.
    pub name: String,
}

/// The state of an asset on this device. `limit_bytes` is the rate limit in force, in bytes per second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum HereReason {
    /// The content is here and matches its hash.
    Whole,
    /// The content has just arrived and is stored.
    Stored,
    /// This device does not want the asset.
    NotWanted {
        /// The rule that leaves the asset out.
        because: Unwanted,
    },
    /// The group removed this device.
    Removed,
    /// The store does not answer.
    StoreDown {
        /// What the store, or the connection to it, said.
        error: Option<String>,
    },
    /// The store failed to store the last asset, so nothing is requested for a while.
    StorePaused {
        /// Until then.
        until_ms: u64,
    },
    /// There is no space for it.
    NoSpace {
        /// One sentence for each disk that is full.
        what: Vec<String>,
        /// When it is tried again, if that is known.
        until_ms: Option<u64>,
    },
    /// The content is arriving from a peer.
    Arriving {
        /// From these devices.
        from: Vec<NamedDevice>,
        /// For a large asset: how many of its bytes have not arrived yet.
        left_bytes: Option<u64>,
        /// The rate limit.
        limit_bytes: Option<u64>,
    },
    /// The asset was requested from a peer.
    Requested {
        /// From this device.
        from: NamedDevice,
        /// At this time.
        at_ms: u64,
        /// How many other assets were requested from that device and have not arrived.
        others: u64,
        /// The bytes still to arrive from it, of the assets under way.
        left_bytes: u64,
        /// The rate limit.
        limit_bytes: Option<u64>,
    },
    /// The asset waits to be requested.
    Queued {
        /// The devices that hold it.
        from: Vec<NamedDevice>,
        /// How many others are requested before it.
        ahead: u64,
        /// The bytes still to arrive from the first device, of the assets under way.
        left_bytes: u64,
        /// The rate limit.
        limit_bytes: Option<u64>,
    },
    /// The asset is not accepted for a while from the devices that hold it.
    Resting {
        /// Why the asset is not accepted.
        cause: RestCause,
        /// The devices.
        from: Vec<NamedDevice>,
        /// Until then.
        until_ms: u64,
    },
    /// No connected device has it, and one that had it is offline.
    HolderOffline {
        /// The device.
        device: NamedDevice,
        /// When it was known to have it; absent: it added it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_at_ms: Option<u64>,
        /// When its last connection ended; absent: it was not connected since this agent started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
    },
    /// Connected devices may have it: this device and they are still comparing what they hold.
    Comparing {
        /// The devices.
        with: Vec<NamedDevice>,
    },
    /// No connected device has it.
    Nowhere {
        /// The connected devices, which hold what this device holds.
        asked: Vec<NamedDevice>,
        /// The devices that are offline and may have it.
        offline: Vec<NamedDevice>,
    },
    /// No other device is in the group.
    Alone,
}

/// The state of an asset on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceWhy {
    /// The device.
    #[serde(flatten)]
    pub device: NamedDevice,
    /// The state of the asset there.
    #[serde(flatten)]
    pub reason: ThereReason,
}

/// The state of an asset on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ThereReason {
    /// The peer has the asset.
    Has,
    /// The peer does not have the asset.
    Lacks,
    /// This device is sending the asset to the peer.
    Sending {
        /// The rate limit in force, in bytes per second.
        limit_bytes: Option<u64>,
    },
    /// The asset waits here to be sent to the peer.
    Queued {
        /// How many others of its kind are sent before it.
        ahead: u64,
        /// Their bytes, as far as known.
        ahead_bytes: u64,
        /// The rate limit in force, in bytes per second.
        limit_bytes: Option<u64>,
    },
    /// The device takes no assets for now.
    PutOff {
        /// What it says.
        why: String,
    },
    /// The device refused the asset.
    Refused {
        /// At this time.
        at_ms: u64,
        /// What it said.
        why: String,
    },
    /// The device is offline: it is not known whether it has it.
    Offline {
        /// When its last connection ended; absent: it was not connected since this agent started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
        /// When it was known to have the asset; absent: it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_at_ms: Option<u64>,
        /// Why the last connection or dial ended.
        error: Option<String>,
        /// When it is dialled next; absent: it is being dialled.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at_ms: Option<u64>,
    },
    /// The two devices are still comparing what they hold.
    Comparing {
        /// When the next comparison begins; absent if one is running or waits for a transfer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Next {
    /// The step that this device takes.
    pub step: NextStep,
    /// With which device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<NamedDevice>,
    /// When; absent: now, or as soon as its turn comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// See [`Next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NextStep {
    /// The transfer under way goes on to its end.
    Transfer,
    /// The asset is requested.
    Request,
    /// The asset is sent.
    Send,
    /// The device is dialled.
    Dial,
    /// The two devices compare what they hold.
    Compare,
    /// The store is tried again.
    TryStore,
    /// Nothing until there is free space.
    MakeSpace,
    /// Nothing until a device that has it is in the group, or the file is added again.
    AddFile,
}
