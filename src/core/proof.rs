//! The messages of a proof of possession. `proto/peer.proto` defines them; `wire::proof` encodes
//! them and refuses what is out of bounds.

use crate::core::ids::{Digest, Hash};
use crate::core::leases::Lack;
use crate::core::limits::{PIECE_ALIGN_BYTES, PROOF_GROUPS_MAX, SMALL_BYTES_MAX};

/// A request to prove that the receiver holds assets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prove {
    /// Fresh and random, so that nobody can have computed the proof before.
    pub nonce: [u8; 32],
    /// The assets, at most [`crate::core::limits::PROVE_HASHES_MAX`], each once.
    pub hashes: Vec<Hash>,
    /// Whether the prover is to keep the assets for a while.
    pub lease: bool,
    /// Offsets of groups to send as well, for an asker that does not hold the bytes. Only with one
    /// hash; at most [`PROOF_GROUPS_MAX`].
    pub groups: Vec<u64>,
}

/// The prover's answer about one asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The prover has just read the whole content.
    Holds {
        /// The hash of the content under the key of this proof.
        proof: [u8; 32],
        /// How long it keeps the asset, counted from when the request reached it; 0 for no promise.
        lease_ms: u64,
    },
    /// The prover cannot prove that it holds the asset.
    Lacks(Lack),
}

/// Chooses the groups that an asker without the bytes checks: distinct ones, all if there are few.
/// A small content is sent whole. `random` returns a number below its argument.
pub fn choose_groups(digest: &Digest, mut random: impl FnMut(u64) -> u64) -> Vec<u64> {
    if digest.size_bytes <= SMALL_BYTES_MAX {
        return vec![0];
    }
    let count = digest.size_bytes.div_ceil(PIECE_ALIGN_BYTES);
    let mut chosen = std::collections::BTreeSet::new();
    while (chosen.len() as u64) < count.min(PROOF_GROUPS_MAX as u64) {
        chosen.insert(random(count));
    }
    chosen.into_iter().map(|group| group * PIECE_ALIGN_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_distinct_and_within_the_asset() {
        let mut seed = 7_u64;
        for size_bytes in [SMALL_BYTES_MAX + 1, 20 * PIECE_ALIGN_BYTES + 1, 1 << 40] {
            let digest = Digest { hash: Hash([1; 32]), size_bytes };
            let groups = choose_groups(&digest, |below| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % below
            });
            assert_eq!(groups.len(), PROOF_GROUPS_MAX);
            assert!(groups.is_sorted() && groups.iter().all(|at| *at < size_bytes));
        }
        let small = Digest { hash: Hash([1; 32]), size_bytes: SMALL_BYTES_MAX };
        assert_eq!(choose_groups(&small, |_| 0), [0], "a small content is sent whole");
    }
}
