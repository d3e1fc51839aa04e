//! The queries of a round to the device's own index of hashes.

use std::ops::RangeInclusive;

use crate::core::ids::Hash;
use crate::core::sketch::{CodedCells, SketchKey};

/// A query to the device's own index. With `up_to_seq` it covers the hashes numbered up to that,
/// and no later ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The first `limit` above `after_seq`, in sequence order: [`Answer::Since`].
    Since {
        /// The number before the first.
        after_seq: u64,
        /// The last number that is covered.
        up_to_seq: u64,
        /// The most items to return.
        limit: usize,
    },
    /// The first `limit` above `after`, ascending: [`Answer::Above`].
    Above {
        /// Exclusive; `None`: from the first.
        after: Option<Hash>,
        /// The last number that is covered.
        up_to_seq: u64,
        /// The most items to return.
        limit: usize,
    },
    /// The sequence number of each hash: [`Answer::Known`].
    Known {
        /// At most [`HASHES_PER_FRAME_MAX`](crate::core::limits::HASHES_PER_FRAME_MAX).
        hashes: Vec<Hash>,
    },
    /// The cells of one shard ([`shard_range`]) under `key`: [`Answer::Shard`].
    Shard {
        /// The key for [`CodedCells::new`].
        key: SketchKey,
        /// There are `2^shard_bits` shards.
        shard_bits: u32,
        /// The number of the shard.
        shard: u32,
        /// The last number that is covered.
        up_to_seq: u64,
    },
}

/// The index's answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Answers [`Query::Since`].
    Since {
        /// Sequence numbers and hashes.
        items: Vec<(u64, Hash)>,
        /// Whether the limit cut the result.
        more: bool,
    },
    /// Answers [`Query::Above`].
    Above {
        /// The hashes.
        hashes: Vec<Hash>,
        /// Whether the limit cut the result.
        more: bool,
    },
    /// Answers [`Query::Known`] in its order: the sequence number, or `None` for an unknown hash.
    Known(Vec<Option<u64>>),
    /// Answers [`Query::Shard`].
    Shard(CodedCells),
    /// The index could not answer.
    Failed,
}

/// The hashes of one of `2^shard_bits` shards: those whose first bits are `shard`.
pub fn shard_range(shard_bits: u32, shard: u32) -> RangeInclusive<Hash> {
    let mut first = [0; Hash::LEN];
    let mut last = [0xff; Hash::LEN];
    if shard_bits > 0 {
        let prefix = shard << (32 - shard_bits);
        first[..4].copy_from_slice(&prefix.to_be_bytes());
        last[..4].copy_from_slice(&(prefix | u32::MAX >> shard_bits).to_be_bytes());
    }
    Hash(first)..=Hash(last)
}
