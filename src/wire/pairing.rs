//! The messages of pairing and of introductions.

use prost::Message as _;

use crate::core::ids::{GroupId, HashAlgorithm, NodeId};
use crate::core::joining::{Introduction, PairAccept, PairNonce, PairOffer, PairRequest};
use crate::core::journal::op::SignedOp;
use crate::core::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX};
use crate::core::pairing::device_name;

use super::WireError;
use super::journal::{decode_intro, intro_to_wire};
use super::proto::peer;

/// Writes a request.
pub fn pair_request_to_wire(request: &PairRequest) -> peer::PairRequest {
    peer::PairRequest {
        proof: request.proof.to_vec().into(),
        device_name: device_name(&request.device_name),
        addresses: hints(&request.addresses),
        hash_algorithm: request.hash_algorithm.name().to_owned(),
        commitment: request.commitment.to_vec().into(),
        verify: request.verify,
    }
}

/// Reads a request of `joiner`.
///
/// # Errors
/// [`WireError`].
pub fn pair_request_from_wire(
    joiner: NodeId,
    request: &peer::PairRequest,
) -> Result<PairRequest, WireError> {
    let proof = bytes32("proof", &request.proof)?;
    let commitment = bytes32("commitment", &request.commitment)?;
    let hash_algorithm = HashAlgorithm::from_name(&request.hash_algorithm)
        .ok_or_else(|| malformed("hash_algorithm", "\"blake3\" or \"sha256\""))?;
    Ok(PairRequest {
        joiner,
        proof,
        device_name: device_name(&request.device_name),
        addresses: hints(&request.addresses),
        hash_algorithm,
        commitment,
        verify: request.verify,
    })
}

/// Writes an offer.
pub fn pair_offer_to_wire(offer: &PairOffer) -> peer::PairOffer {
    peer::PairOffer {
        group_id: offer.group_id.as_bytes().to_vec().into(),
        nonce: offer.nonce.to_vec().into(),
        members: offer.members,
        device_name: device_name(&offer.device_name),
        now_ms: offer.now_ms,
        verify: offer.verify,
    }
}

/// Reads an offer.
///
/// # Errors
/// [`WireError`].
pub fn pair_offer_from_wire(offer: &peer::PairOffer) -> Result<PairOffer, WireError> {
    Ok(PairOffer {
        group_id: group(&offer.group_id)?,
        nonce: bytes32("nonce", &offer.nonce)?,
        members: offer.members,
        device_name: device_name(&offer.device_name),
        now_ms: offer.now_ms,
        verify: offer.verify,
    })
}

/// Writes a joiner's nonce.
pub fn pair_reveal_to_wire(nonce: &PairNonce) -> peer::PairReveal {
    peer::PairReveal { nonce: nonce.to_vec().into() }
}

/// Reads a joiner's nonce.
///
/// # Errors
/// [`WireError`].
pub fn pair_reveal_from_wire(reveal: &peer::PairReveal) -> Result<PairNonce, WireError> {
    bytes32("nonce", &reveal.nonce)
}

/// Writes an accept.
pub fn pair_accept_to_wire(accept: &PairAccept) -> peer::PairAccept {
    peer::PairAccept { intro: intro_to_wire(&accept.intro).encode_to_vec().into() }
}

/// Reads an accept.
///
/// # Errors
/// [`WireError`].
pub fn pair_accept_from_wire(accept: &peer::PairAccept) -> Result<PairAccept, WireError> {
    Ok(PairAccept { intro: intro(&accept.intro)? })
}

/// Writes an introduction.
pub fn introduction_to_wire(introduction: &Introduction) -> peer::Introduction {
    peer::Introduction {
        group_id: introduction.group_id.as_bytes().to_vec().into(),
        intro: intro_to_wire(&introduction.intro).encode_to_vec().into(),
    }
}

/// Reads an introduction.
///
/// # Errors
/// [`WireError`].
pub fn introduction_from_wire(
    introduction: &peer::Introduction,
) -> Result<Introduction, WireError> {
    Ok(Introduction {
        group_id: group(&introduction.group_id)?,
        intro: intro(&introduction.intro)?,
    })
}

/// Writes the ops by which a device was removed.
pub fn removal_to_wire(ops: &[SignedOp]) -> peer::Removal {
    peer::Removal { ops: intro_to_wire(ops).encode_to_vec().into() }
}

/// Reads the ops by which a device was removed.
///
/// # Errors
/// [`WireError`].
pub fn removal_from_wire(removal: &peer::Removal) -> Result<Vec<SignedOp>, WireError> {
    intro(&removal.ops)
}

fn bytes32(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], WireError> {
    bytes.try_into().map_err(|_| malformed(what, "32 bytes"))
}

fn group(bytes: &[u8]) -> Result<GroupId, WireError> {
    GroupId::from_slice(bytes).ok_or_else(|| malformed("group_id", "32 bytes"))
}

fn intro(bytes: &[u8]) -> Result<Vec<SignedOp>, WireError> {
    decode_intro(bytes)
}

/// Keeps the usable addresses: as they are hints, too many or too long ones are dropped silently.
fn hints(addresses: &[String]) -> Vec<String> {
    let usable = addresses.iter().filter(|address| address.len() <= ADDRESS_BYTES_MAX);
    usable.take(ADDRESSES_MAX).cloned().collect()
}

fn malformed(what: &'static str, expected: &str) -> WireError {
    WireError::Malformed { what, detail: format!("expected {expected}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::core::journal::op::LogInfo;
    use crate::core::limits::NAME_CHARS_MAX;
    use crate::core::limits::{INTRO_OPS_MAX, INTRODUCTION_FRAME_BYTES_MAX, PAIR_FRAME_BYTES_MAX};

    const LONGEST_NAME: [char; NAME_CHARS_MAX] = ['\u{10348}'; NAME_CHARS_MAX];

    fn chain(ops: usize) -> Vec<SignedOp> {
        let log = |n| LogInfo { author: NodeId([n; 32]), nonce: [n; 16] };
        let op = |n| SignedOp { log: log(n as u8), body: vec![7; 300].into(), sig: [8; 64] };
        (0..ops).map(op).collect()
    }

    fn accept(ops: usize) -> PairAccept {
        PairAccept { intro: chain(ops) }
    }

    fn offer() -> PairOffer {
        PairOffer {
            group_id: GroupId([3; 32]),
            nonce: [4; 32],
            members: 7,
            device_name: "desk".to_owned(),
            now_ms: 1_800_000_000_000,
            verify: true,
        }
    }

    fn request() -> PairRequest {
        PairRequest {
            joiner: NodeId([1; 32]),
            proof: [2; 32],
            device_name: "laptop".to_owned(),
            addresses: vec!["10.0.0.1:7".to_owned()],
            hash_algorithm: HashAlgorithm::Sha256,
            commitment: [5; 32],
            verify: true,
        }
    }

    #[test]
    fn each_message_of_a_pairing_comes_back_as_it_was_sent() {
        let request = request();
        let back = pair_request_from_wire(request.joiner, &pair_request_to_wire(&request));
        assert_eq!(back, Ok(request));
        let accept = accept(2);
        assert_eq!(pair_accept_from_wire(&pair_accept_to_wire(&accept)), Ok(accept));
        assert_eq!(pair_offer_from_wire(&pair_offer_to_wire(&offer())), Ok(offer()));
        assert_eq!(pair_reveal_from_wire(&pair_reveal_to_wire(&[6; 32])), Ok([6; 32]));
    }

    #[test]
    fn the_longest_request_and_offer_fit_their_frames() {
        let request = PairRequest {
            device_name: LONGEST_NAME.iter().collect(),
            addresses: vec!["a".repeat(ADDRESS_BYTES_MAX); ADDRESSES_MAX],
            ..request()
        };
        let bytes = pair_request_to_wire(&request).encoded_len();
        assert!(bytes <= PAIR_FRAME_BYTES_MAX as usize, "{bytes}");
        let offer = PairOffer { device_name: LONGEST_NAME.iter().collect(), ..offer() };
        let bytes = pair_offer_to_wire(&offer).encoded_len();
        assert!(bytes <= PAIR_FRAME_BYTES_MAX as usize, "{bytes}");
    }

    #[test]
    fn an_introduction_comes_back_as_it_was_sent_and_fits_its_frame() {
        let introduction = Introduction { group_id: GroupId([3; 32]), intro: chain(INTRO_OPS_MAX) };
        let wire = introduction_to_wire(&introduction);
        let bytes = wire.encoded_len();
        assert!(bytes <= INTRODUCTION_FRAME_BYTES_MAX as usize, "{bytes}");
        assert_eq!(introduction_from_wire(&wire), Ok(introduction));
        let removal = removal_to_wire(&chain(INTRO_OPS_MAX));
        assert!(removal.encoded_len() <= INTRODUCTION_FRAME_BYTES_MAX as usize);
        assert_eq!(removal_from_wire(&removal), Ok(chain(INTRO_OPS_MAX)));
    }

    #[test]
    fn each_bound_is_held_from_the_other_side_too() {
        let good = pair_request_to_wire(&request());
        for bad in [
            peer::PairRequest { proof: vec![0; 31].into(), ..good.clone() },
            peer::PairRequest { commitment: vec![0; 33].into(), ..good.clone() },
            peer::PairRequest { hash_algorithm: "md5".to_owned(), ..good.clone() },
        ] {
            assert!(pair_request_from_wire(NodeId([1; 32]), &bad).is_err());
        }
        let many = pair_accept_to_wire(&accept(INTRO_OPS_MAX + 1));
        assert!(matches!(pair_accept_from_wire(&many), Err(WireError::OutOfBounds { .. })));
        let good = pair_accept_to_wire(&accept(INTRO_OPS_MAX));
        assert!(pair_accept_from_wire(&good).is_ok());
        let garbled = peer::PairAccept { intro: vec![0xff; 9].into() };
        assert!(pair_accept_from_wire(&garbled).is_err());
        let good = pair_offer_to_wire(&offer());
        for bad in [
            peer::PairOffer { group_id: vec![1; 31].into(), ..good.clone() },
            peer::PairOffer { nonce: vec![1; 31].into(), ..good },
        ] {
            assert!(pair_offer_from_wire(&bad).is_err());
        }
        assert!(pair_reveal_from_wire(&peer::PairReveal { nonce: vec![1; 31].into() }).is_err());
    }
}
