//! What a joiner and an inviter say to each other while they pair, and the code people compare.

use crate::core::ids::{GroupId, HashAlgorithm, NodeId};
use crate::core::journal::op::SignedOp;

/// Separates short codes from every other use of BLAKE3 here.
const SHORT_CODE_CONTEXT: &str = "can-sync short code v1";

/// What a joiner asks with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairRequest {
    /// Who asks; from the handshake, not from the message.
    pub joiner: NodeId,
    /// That it knows a ticket's secret; see [`crate::core::pairing::proof_matches`].
    pub proof: [u8; 32],
    /// The joiner's name, fit for people.
    pub device_name: String,
    /// Where the joiner can be reached; hints.
    pub addresses: Vec<String>,
    /// How the joiner's store names assets.
    pub hash_algorithm: HashAlgorithm,
}

/// What the inviter tells a joiner that it has added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairAccept {
    /// The group, which is the joiner's from now on.
    pub group_id: GroupId,
    /// The ops that make the joiner a member of it, the founder's first. Not verified yet.
    pub intro: Vec<SignedOp>,
    /// How many devices are in it, the joiner included.
    pub members: u32,
    /// The inviter's name, fit for people.
    pub device_name: String,
}

/// What a newcomer shows a member that has not heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The group.
    pub group_id: GroupId,
    /// The ops that make the newcomer a member of it, the founder's first. Not verified yet.
    pub intro: Vec<SignedOp>,
}

/// Twelve digits that both devices of a pair print, for people to compare: they are the same only
/// when each really talks to the other. Too many for anyone to find a key with the same code while
/// a ticket lasts.
pub fn short_code(a: NodeId, b: NodeId) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(SHORT_CODE_CONTEXT);
    hasher.update(a.min(b).as_bytes()).update(a.max(b).as_bytes());
    let hash = hasher.finalize();
    let groups: Vec<_> = hash.as_bytes().as_chunks::<4>().0[..3]
        .iter()
        .map(|bytes| format!("{:04}", u32::from_le_bytes(*bytes) % 10_000))
        .collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_devices_print_the_same_short_code_and_others_another() {
        let [a, b, c] = [1, 2, 3].map(|n| NodeId([n; 32]));
        assert_eq!(short_code(a, b), short_code(b, a));
        assert_ne!(short_code(a, b), short_code(a, c));
        assert_eq!(short_code(a, b).split(' ').map(str::len).collect::<Vec<_>>(), [4, 4, 4]);
    }
}
