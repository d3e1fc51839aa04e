//! The messages of pairing, and the members list they share with the session.

use crate::core::ids::{GroupId, HashAlgorithm, NodeId};
use crate::core::joining::{PairAccept, PairRequest};
use crate::core::limits::CONTROL_FRAME_BYTES_MAX;
use crate::core::pairing::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, GROUP_ENTRIES_MAX, Member, device_name,
};

use super::WireError;
use super::proto::peer;

/// The share of a frame that addresses may take; the rest has room for the longest list of ids and
/// names. Addresses beyond it are left out: they are hints.
const ADDRESSES_BYTES_MAX: usize = CONTROL_FRAME_BYTES_MAX as usize / 2;

/// Writes a request.
pub fn pair_request_to_wire(request: &PairRequest) -> peer::PairRequest {
    peer::PairRequest {
        proof: request.proof.to_vec().into(),
        device_name: device_name(&request.device_name),
        addresses: hints(&request.addresses),
        hash_algorithm: request.hash_algorithm.name().to_owned(),
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
    let proof = request.proof.as_ref().try_into().map_err(|_| malformed("proof", "32 bytes"))?;
    let hash_algorithm = HashAlgorithm::from_name(&request.hash_algorithm)
        .ok_or_else(|| malformed("hash_algorithm", "\"blake3\" or \"sha256\""))?;
    Ok(PairRequest {
        joiner,
        proof,
        device_name: device_name(&request.device_name),
        addresses: hints(&request.addresses),
        hash_algorithm,
    })
}

/// Writes an accept; it fits a frame.
pub fn pair_accept_to_wire(accept: &PairAccept) -> peer::PairAccept {
    peer::PairAccept {
        group_id: accept.group_id.as_bytes().to_vec().into(),
        members: Some(members_to_wire(&accept.members, &accept.removed)),
        device_name: device_name(&accept.device_name),
    }
}

/// Reads an accept.
///
/// # Errors
/// [`WireError`].
pub fn pair_accept_from_wire(accept: &peer::PairAccept) -> Result<PairAccept, WireError> {
    let group_id =
        GroupId::from_slice(&accept.group_id).ok_or_else(|| malformed("group_id", "32 bytes"))?;
    let list = accept.members.as_ref().ok_or_else(|| malformed("members", "a members list"))?;
    let (members, removed) = members_from_wire(list)?;
    Ok(PairAccept { group_id, members, removed, device_name: device_name(&accept.device_name) })
}

/// Writes a members list, at most [`GROUP_ENTRIES_MAX`] entries of it; it fits a frame.
pub fn members_to_wire(members: &[Member], removed: &[NodeId]) -> peer::Members {
    let mut room_bytes = ADDRESSES_BYTES_MAX;
    let mut fits = |address: &String| {
        // Tag and length take two or three bytes.
        let left = room_bytes.checked_sub(address.len() + 3);
        room_bytes = left.unwrap_or(room_bytes);
        left.is_some()
    };
    let removed = &removed[..removed.len().min(GROUP_ENTRIES_MAX)];
    let members =
        members.iter().take(GROUP_ENTRIES_MAX - removed.len()).map(|member| peer::Member {
            node_id: member.node_id.as_bytes().to_vec().into(),
            name: device_name(&member.name),
            addresses: hints(&member.addresses).into_iter().filter(&mut fits).collect(),
            named_ms: member.named_ms.max(0).unsigned_abs(),
        });
    let removed = removed.iter().map(|node| node.as_bytes().to_vec().into());
    peer::Members { members: members.collect(), removed: removed.collect() }
}

/// Reads a members list: the members and the removed.
///
/// # Errors
/// [`WireError`].
pub fn members_from_wire(list: &peer::Members) -> Result<(Vec<Member>, Vec<NodeId>), WireError> {
    let entries = list.members.len() + list.removed.len();
    if entries > GROUP_ENTRIES_MAX {
        let (got, limit) = (entries as u64, GROUP_ENTRIES_MAX as u64);
        return Err(WireError::OutOfBounds { what: "members", got, limit });
    }
    let node = |id: &[u8]| NodeId::from_slice(id).ok_or_else(|| malformed("node_id", "32 bytes"));
    let members = list.members.iter().map(|member| {
        Ok(Member {
            node_id: node(&member.node_id)?,
            name: device_name(&member.name),
            // A stamp beyond the clock's range is judged by the group's state like any other.
            named_ms: i64::try_from(member.named_ms).unwrap_or(i64::MAX),
            addresses: hints(&member.addresses),
        })
    });
    let removed = list.removed.iter().map(|id| node(id));
    Ok((members.collect::<Result<_, WireError>>()?, removed.collect::<Result<_, WireError>>()?))
}

/// Addresses are hints: too many or too long ones are left out without complaint.
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
    use crate::core::limits::PAIR_REQUEST_FRAME_BYTES_MAX;
    use crate::core::pairing::NAME_CHARS_MAX;
    use prost::Message;

    fn longest_member(i: usize) -> Member {
        let mut node_id = NodeId([0; 32]);
        node_id.0[..8].copy_from_slice(&i.to_le_bytes());
        let addresses = vec!["a".repeat(ADDRESS_BYTES_MAX); ADDRESSES_MAX];
        Member { node_id, name: "\u{10348}".repeat(NAME_CHARS_MAX), named_ms: i64::MAX, addresses }
    }

    fn request() -> PairRequest {
        PairRequest {
            joiner: NodeId([1; 32]),
            proof: [2; 32],
            device_name: "laptop".to_owned(),
            addresses: vec!["10.0.0.1:7".to_owned()],
            hash_algorithm: HashAlgorithm::Sha256,
        }
    }

    #[test]
    fn a_request_and_an_accept_come_back_as_they_were_sent() {
        let request = request();
        let back = pair_request_from_wire(request.joiner, &pair_request_to_wire(&request));
        assert_eq!(back, Ok(request));
        let accept = PairAccept {
            group_id: GroupId([3; 32]),
            members: vec![longest_member(1), longest_member(2)],
            removed: vec![NodeId([9; 32])],
            device_name: "desk".to_owned(),
        };
        assert_eq!(pair_accept_from_wire(&pair_accept_to_wire(&accept)), Ok(accept));
    }

    #[test]
    fn the_longest_messages_fit_their_frames() {
        let request = PairRequest {
            device_name: longest_member(0).name,
            addresses: longest_member(0).addresses,
            ..request()
        };
        let bytes = pair_request_to_wire(&request).encoded_len();
        assert!(bytes <= PAIR_REQUEST_FRAME_BYTES_MAX as usize, "{bytes}");
        let accept = PairAccept {
            group_id: GroupId([3; 32]),
            members: (0..GROUP_ENTRIES_MAX).map(longest_member).collect(),
            removed: vec![NodeId([9; 32]); 5],
            device_name: longest_member(0).name,
        };
        let wire = pair_accept_to_wire(&accept);
        let bytes = wire.encoded_len();
        assert!(bytes <= CONTROL_FRAME_BYTES_MAX as usize, "{bytes}");
        assert_eq!(pair_accept_from_wire(&wire).unwrap().members.len(), GROUP_ENTRIES_MAX - 5);
    }

    #[test]
    fn each_bound_is_held_from_the_other_side_too() {
        let good = pair_request_to_wire(&request());
        for bad in [
            peer::PairRequest { proof: vec![0; 31].into(), ..good.clone() },
            peer::PairRequest { hash_algorithm: "md5".to_owned(), ..good.clone() },
        ] {
            assert!(pair_request_from_wire(NodeId([1; 32]), &bad).is_err());
        }
        let member = peer::Member { node_id: vec![1; 32].into(), ..Default::default() };
        let many = peer::Members {
            members: vec![member; GROUP_ENTRIES_MAX],
            removed: vec![vec![1; 32].into()],
        };
        assert!(matches!(members_from_wire(&many), Err(WireError::OutOfBounds { .. })));
        let short = peer::Members { members: vec![], removed: vec![vec![1; 31].into()] };
        assert!(matches!(members_from_wire(&short), Err(WireError::Malformed { .. })));
    }
}
