//! The requests and answers of [`super::gatherer`]: why proofs are gathered, and the outcome for each
//! asset.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::ids::{Hash, NodeId};
use crate::core::limits::PROVE_HASHES_MAX;

/// The most assets of one request.
pub const GATHER_ASSETS_MAX: usize = PROVE_HASHES_MAX;

/// What proofs are gathered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To say whether enough other devices hold the asset. Saved proofs may be reused.
    Safe {
        /// The greatest age of a saved proof, in milliseconds; 0 for none.
        within_ms: u64,
    },
    /// To delete the copy here.
    Evict {
        /// Only say whether the copy would be deleted.
        dry_run: bool,
    },
}

/// A request to gather proofs.
#[derive(Debug, Clone)]
pub struct GatherRequest {
    /// The assets, at most [`GATHER_ASSETS_MAX`].
    pub hashes: Vec<Hash>,
    /// The number of other devices that must prove it.
    pub copies: usize,
    /// The number of different sites on which these must be.
    pub sites: usize,
    /// What the proofs are for.
    pub purpose: Purpose,
}

/// The result for one asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gathered {
    /// The asset.
    pub hash: Hash,
    /// Its size in bytes; 0 if it is unknown.
    pub size: u64,
    /// The outcome.
    pub outcome: GatherOutcome,
    /// The other devices that have proven that they hold it.
    pub proven: Vec<ProvenBy>,
    /// The other devices that have not proven it, each with the reason.
    pub lacking: Vec<LackingAt>,
    /// Why it was refused, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
}

/// The outcome for an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GatherOutcome {
    /// Enough other devices have proven that they hold it.
    Proven,
    /// The copy here was deleted.
    Evicted,
    /// The copy here would be deleted.
    WouldEvict,
    /// Too few devices have proven that they hold it, or something else stands against it.
    Refused,
}

/// A device that has proven that it holds an asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProvenBy {
    /// The device.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// When it proved that, milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// A device that has not proven that it holds an asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LackingAt {
    /// The device.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Why not, in words.
    pub why: String,
}

/// The wrong proofs of each device since the start; at most as many devices as the group has.
pub(crate) type WrongProofs = Arc<Mutex<BTreeMap<NodeId, u32>>>;
