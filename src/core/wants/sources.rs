//! The peers that send an asset, and which others may join them.

use std::collections::BTreeMap;

use crate::core::ids::NodeId;
use crate::core::limits::{SHARED_BYTES_MIN, SOURCES_MAX};
use crate::core::wants::{ASK_MS_MAX, BatchId};

/// Bytes per second: an asset that takes longer than at this speed is requested from other holders
/// too. With BLAKE3 that costs almost nothing, because each sends a part; otherwise a second copy
/// may cross the network.
const SLOW_BYTES_PER_S: u64 = 64 * 1024;

/// The longest time for which two peers can keep others out by claiming the same huge size.
const PATIENCE_MS_MAX: u64 = 6 * 3_600_000;

/// How long an asset may take before it is requested from all its holders.
pub(super) fn patience_ms(size_bytes: u64) -> u64 {
    let moving_ms = size_bytes.saturating_mul(1000) / SLOW_BYTES_PER_S;
    (ASK_MS_MAX + moving_ms).min(PATIENCE_MS_MAX)
}

/// The peers that send an asset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) batches: BTreeMap<NodeId, BatchId>,
    /// When the first of them began.
    begun_ms: u64,
    /// The size that the first of them claims.
    size_bytes: u64,
    /// Whether a second holder claims the same size.
    is_size_agreed: bool,
    /// Whether all its holders may send it, a part each.
    pub(super) is_shared: bool,
    /// Whether it takes too long: all its holders may send it, in parts or each for itself.
    pub(super) is_open: bool,
}

impl Sources {
    pub(super) fn new(
        now_ms: u64,
        peer: NodeId,
        batch: BatchId,
        size_bytes: u64,
        is_shared: bool,
    ) -> Self {
        Self {
            batches: BTreeMap::from([(peer, batch)]),
            begun_ms: now_ms,
            size_bytes,
            is_size_agreed: false,
            is_shared,
            is_open: false,
        }
    }

    /// Whether the asset may be requested from other holders too.
    pub(super) fn asks_others(&self) -> bool {
        (self.is_shared || self.is_open) && self.batches.len() < SOURCES_MAX
    }

    /// Adds another source, unless the present sources are still within their time.
    pub(super) fn let_in(
        &mut self,
        now_ms: u64,
        peer: NodeId,
        batch: BatchId,
        size_bytes: u64,
        is_shared: bool,
    ) -> bool {
        let is_same_size = size_bytes == self.size_bytes;
        if is_same_size && !self.is_shared && !self.is_size_agreed {
            self.is_size_agreed = true;
            self.is_open &= now_ms >= self.slow_at_ms();
        }
        let is_welcome = self.is_shared || self.is_open || !is_same_size;
        if !is_welcome || self.batches.len() >= SOURCES_MAX {
            return false;
        }
        self.batches.insert(peer, batch);
        self.is_shared |= is_shared;
        true
    }

    /// When the asset becomes too slow. A large size is believed only if two holders claim it.
    pub(super) fn slow_at_ms(&self) -> u64 {
        let believed_bytes = match self.is_size_agreed {
            true => self.size_bytes,
            false => self.size_bytes.min(SHARED_BYTES_MIN),
        };
        self.begun_ms + patience_ms(believed_bytes)
    }
}
