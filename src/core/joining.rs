//! The messages between joiner and inviter during pairing, and the digits that people compare.
//!
//! D1  The digits are equal on both devices only if they talk to each other directly. Nobody can
//!     search for a connection that makes them equal: the joiner sends the hash of its nonce before
//!     it sees the inviter's nonce, and reveals its own after it. So an attacker in between must
//!     commit to one side before he knows what the other side needs, and guesses right once in
//!     10^12.

use crate::core::ids::{GroupId, HashAlgorithm, NodeId};
use crate::core::journal::op::SignedOp;

/// Separates the digits from all other uses of BLAKE3 here.
const SHORT_CODE_CONTEXT: &str = "can-sync short code v2";

/// Separates commitments from all other uses of BLAKE3 here.
const COMMITMENT_CONTEXT: &str = "can-sync pairing commitment v1";

/// A device's share of the digits: random, and new in every pairing.
pub type PairNonce = [u8; 32];

/// The joiner's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairRequest {
    /// The joiner's node ID, from the handshake and not from the message.
    pub joiner: NodeId,
    /// Proves that it knows a ticket's secret; see [`crate::core::pairing::proof_matches`].
    pub proof: [u8; 32],
    /// The joiner's name, fit for people.
    pub device_name: String,
    /// Addresses at which the joiner may be reachable; hints.
    pub addresses: Vec<String>,
    /// The hash algorithm of the joiner's store.
    pub hash_algorithm: HashAlgorithm,
    /// The [`commitment`] to the joiner's nonce.
    pub commitment: [u8; 32],
    /// Whether the joiner wants people to compare the digits before anything is shared.
    pub verify: bool,
}

/// The inviter's answer to a joiner with a right proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairOffer {
    /// The group that the joiner is about to join.
    pub group_id: GroupId,
    /// The inviter's nonce.
    pub nonce: PairNonce,
    /// The number of devices in the group, the joiner included.
    pub members: u32,
    /// The inviter's name, fit for people.
    pub device_name: String,
    /// The inviter's wall clock, ms since the Unix epoch: ops from a clock far ahead would not be
    /// admitted.
    pub now_ms: u64,
    /// Whether people must compare the digits: the joiner requested it, or the ticket says so.
    pub verify: bool,
}

/// The message that makes the joiner a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairAccept {
    /// The ops that add the joiner to the group, the founder's first. Not verified yet.
    pub intro: Vec<SignedOp>,
}

/// How a new member introduces itself to a member that does not know it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The group.
    pub group_id: GroupId,
    /// The ops that make the newcomer a member of it, the founder's first. Not verified yet.
    pub intro: Vec<SignedOp>,
}

/// A member's answer to an [`Introduction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduced {
    /// The device is a member and may dial again.
    LetIn,
    /// The group removed the device by these ops. Not verified yet.
    Removed(Vec<SignedOp>),
    /// Refused without a reason.
    Refused,
}

/// The hash that commits a joiner to its nonce without revealing it.
pub fn commitment(nonce: &PairNonce) -> [u8; 32] {
    blake3::derive_key(COMMITMENT_CONTEXT, nonce)
}

/// One pairing, as seen by both devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The device that made the ticket.
    pub inviter: NodeId,
    /// The device that redeems the ticket.
    pub joiner: NodeId,
    /// The group.
    pub group_id: GroupId,
    /// The nonce in the [`PairOffer`].
    pub inviter_nonce: PairNonce,
    /// The nonce that the joiner committed to.
    pub joiner_nonce: PairNonce,
    /// Keying material of the TLS session (RFC 5705). An attacker in between has two connections,
    /// and it differs on them.
    pub channel: [u8; 32],
}

impl Handshake {
    /// The twelve digits that both devices show for people to compare. See D1.
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
