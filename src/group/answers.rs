//! What requests about the group ask and answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::ids::NodeId;

/// What an invitation is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketTerms {
    /// How long it is valid.
    pub ttl: Duration,
    /// Whether people must compare the digits.
    pub verify: bool,
    /// How many devices the ticket lets in.
    pub uses: u16,
}

/// The invitations that were ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokeReply {
    /// Their names.
    pub revoked: Vec<String>,
}

/// A fresh invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TicketReply {
    /// The ticket's name, by which it is listed and revoked. No secret.
    pub id: String,
    /// The ticket. A secret until it is used up.
    pub ticket: String,
    /// When it ends, milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// How many devices the ticket lets in.
    pub uses: u16,
}

/// The device that let this one in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PairReply {
    /// The device's node ID.
    pub node_id: NodeId,
    /// The device's name.
    pub name: String,
    /// Shown on both devices, to compare by eye.
    pub short_code: String,
    /// Devices in the group now, this one included.
    pub members: usize,
}

/// A request to remove a device from the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveRequest {
    /// The device's name, its node ID or a unique prefix of it.
    pub device: String,
    /// Also remove the devices that it let in, except those through which this device is a member.
    pub with_introduced: bool,
    /// Only report what would happen.
    pub dry_run: bool,
}

impl From<String> for RemoveRequest {
    /// A request that removes that device alone.
    fn from(device: String) -> Self {
        Self { device, with_introduced: false, dry_run: false }
    }
}

/// The device that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoveReply {
    /// The device's node ID.
    pub node_id: NodeId,
    /// The device's name.
    pub name: String,
    /// The devices that are removed with it.
    pub also: Vec<RemovedToo>,
    /// The number of devices in the group afterwards, this one included.
    pub members: usize,
}

/// A device that is removed together with another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedToo {
    /// The device's node ID.
    pub node_id: NodeId,
    /// The device's name.
    pub name: String,
    /// The name of the device that let it in.
    pub introducer: String,
}

/// The result of leaving the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaveReply {
    /// Whether this device becomes a new one: the group had removed it, and a removal is final for
    /// its key. The agent stops, and its next start makes a new device.
    pub new_device: bool,
}

/// The new name of this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenameReply {
    /// The requested name, cleaned for display.
    pub name: String,
}
