//! What a joiner and an inviter say to each other while they pair, and the digits people compare.
//!
//! D1  The digits are the same on both devices only if each talks to the other, and nobody can search
//!     for a connection that makes them so: the joiner sends the hash of its nonce before it sees the
//!     inviter's nonce, and reveals its own after it. So whoever stands in between has bound himself
//!     on one side before he knows what he needs on the other, and guesses right once in 10^12.

use crate::core::ids::{GroupId, HashAlgorithm, NodeId};
use crate::core::journal::op::SignedOp;

/// Separates the digits from every other use of BLAKE3 here.
const SHORT_CODE_CONTEXT: &str = "can-sync short code v2";

/// Separates commitments from every other use of BLAKE3 here.
const COMMITMENT_CONTEXT: &str = "can-sync pairing commitment v1";

/// A device's share of the digits: random, and new in every pairing.
pub type PairNonce = [u8; 32];

/// What a joiner asks with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairRequest {
    /// Who asks; from the handshake, not from the message.
    pub joiner: NodeId,
    /// Proves that it knows a ticket's secret; see [`crate::core::pairing::proof_matches`].
    pub proof: [u8; 32],
    /// The joiner's name, fit for people.
    pub device_name: String,
    /// Where the joiner can be reached; hints.
    pub addresses: Vec<String>,
    /// How the joiner's store names assets.
    pub hash_algorithm: HashAlgorithm,
    /// The [`commitment`] to the joiner's nonce.
    pub commitment: [u8; 32],
    /// The joiner wants people to compare the digits before anything is shared.
    pub verify: bool,
}

/// What an inviter answers a joiner whose proof is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairOffer {
    /// The group that the joiner is about to join.
    pub group_id: GroupId,
    /// The inviter's nonce.
    pub nonce: PairNonce,
    /// How many devices the group will have, the joiner included.
    pub members: u32,
    /// The inviter's name, fit for people.
    pub device_name: String,
    /// The inviter's wall clock, ms since the Unix epoch: ops of a clock that is far ahead would not
    /// be admitted.
    pub now_ms: u64,
    /// People must compare the digits: the joiner asked for it, or the ticket was made so.
    pub verify: bool,
}

/// What makes the joiner a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairAccept {
    /// The ops that add the joiner to the group, the founder's first. Not verified yet.
    pub intro: Vec<SignedOp>,
}

/// What a newcomer shows a member that has not heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The group.
    pub group_id: GroupId,
    /// The ops that make the newcomer a member of it, the founder's first. Not verified yet.
    pub intro: Vec<SignedOp>,
}

/// What a member answers a device that introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduced {
    /// It is a member, and may dial again.
    LetIn,
    /// The group has removed it, by these ops. Not verified yet.
    Removed(Vec<SignedOp>),
    /// Neither, and no reason is given.
    Refused,
}

/// What binds a joiner to its nonce without showing it.
pub fn commitment(nonce: &PairNonce) -> [u8; 32] {
    blake3::derive_key(COMMITMENT_CONTEXT, nonce)
}

/// One pairing, as both of its devices see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// Who made the ticket.
    pub inviter: NodeId,
    /// Who redeems it.
    pub joiner: NodeId,
    /// The group.
    pub group_id: GroupId,
    /// See [`PairOffer::nonce`].
    pub inviter_nonce: PairNonce,
    /// The one that the joiner committed to.
    pub joiner_nonce: PairNonce,
    /// Keying material of the TLS session (RFC 5705): differs on the two connections of somebody who
    /// stands in between.
    pub channel: [u8; 32],
}

impl Handshake {
    /// The twelve digits that both devices show, for people to compare. See D1.
    pub fn short_code(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key(SHORT_CODE_CONTEXT);
        for part in [
            self.inviter.as_bytes(),
            self.joiner.as_bytes(),
            self.group_id.as_bytes(),
            &self.inviter_nonce,
            &self.joiner_nonce,
            &self.channel,
        ] {
            hasher.update(part);
        }
        let hash = hasher.finalize();
        let groups: Vec<_> = hash.as_bytes().as_chunks::<4>().0[..3]
            .iter()
            .map(|bytes| format!("{:04}", u32::from_le_bytes(*bytes) % 10_000))
            .collect();
        groups.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake() -> Handshake {
        Handshake {
            inviter: NodeId([1; 32]),
            joiner: NodeId([2; 32]),
            group_id: GroupId([3; 32]),
            inviter_nonce: [4; 32],
            joiner_nonce: [5; 32],
            channel: [6; 32],
        }
    }

    #[test]
    fn the_digits_depend_on_every_part_of_the_handshake() {
        let code = handshake().short_code();
        assert_eq!(code.split(' ').map(str::len).collect::<Vec<_>>(), [4, 4, 4]);
        assert_eq!(handshake().short_code(), code);
        for other in [
            Handshake { inviter: NodeId([9; 32]), ..handshake() },
            Handshake { joiner: NodeId([9; 32]), ..handshake() },
            Handshake { group_id: GroupId([9; 32]), ..handshake() },
            Handshake { inviter_nonce: [9; 32], ..handshake() },
            Handshake { joiner_nonce: [9; 32], ..handshake() },
            Handshake { channel: [9; 32], ..handshake() },
            Handshake { inviter: NodeId([2; 32]), joiner: NodeId([1; 32]), ..handshake() },
        ] {
            assert_ne!(other.short_code(), code, "{other:?}");
        }
    }

    #[test]
    fn a_commitment_fits_its_nonce_alone_and_does_not_show_it() {
        let nonce = [5; 32];
        assert_eq!(commitment(&nonce), commitment(&nonce));
        assert_ne!(commitment(&nonce), commitment(&[6; 32]));
        assert_ne!(commitment(&nonce), nonce);
    }
}
