//! The streams of proofs: [`Prove`], its answers, and the groups for an asker without the bytes.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::core::ids::Hash;
use crate::core::leases::Lack;
use crate::core::limits::{
    ASSET_BYTES_MAX, PIECE_ALIGN_BYTES, PROOF_GROUPS_MAX, PROVE_HASHES_MAX, SMALL_BYTES_MAX,
};
use crate::core::proof::{Proof, Prove};
use crate::wire::proto::peer::{self, proof_entry::Outcome};
use crate::wire::{WireError, parse};

/// Lacks that cross the wire, by their outcome. The others are conclusions of the asker.
const LACKS: [(Outcome, Lack); 4] = [
    (Outcome::NotHeld, Lack::NotHeld),
    (Outcome::Damaged, Lack::Damaged),
    (Outcome::Evicting, Lack::Evicting),
    (Outcome::Busy, Lack::Busy),
];

/// Encodes a request.
pub fn encode_prove(prove: &Prove) -> peer::Prove {
    peer::Prove {
        nonce: Bytes::copy_from_slice(&prove.nonce),
        hashes: prove.hashes.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect(),
        lease: prove.lease,
        groups: prove.groups.clone(),
    }
}

/// Reads a request.
///
/// # Errors
/// [`WireError`] for anything out of bounds.
pub fn decode_prove(payload: Bytes) -> Result<Prove, WireError> {
    let message: peer::Prove = parse("Prove", payload, PROVE_HASHES_MAX + PROOF_GROUPS_MAX)?;
    bounded("Prove.hashes", message.hashes.len(), PROVE_HASHES_MAX)?;
    bounded("Prove.groups", message.groups.len(), PROOF_GROUPS_MAX)?;
    let hashes = message.hashes.iter().map(|bytes| {
        Hash::from_slice(bytes).ok_or_else(|| malformed("Prove.hashes", "not 32 bytes"))
    });
    let hashes: Vec<Hash> = hashes.collect::<Result<_, _>>()?;
    if hashes.is_empty() || hashes.iter().collect::<BTreeSet<_>>().len() != hashes.len() {
        return Err(malformed("Prove.hashes", "none, or one twice"));
    }
    let is_place = |at: &u64| at.is_multiple_of(PIECE_ALIGN_BYTES) && *at < ASSET_BYTES_MAX;
    if !message.groups.is_empty() && (hashes.len() != 1 || !message.groups.iter().all(is_place)) {
        return Err(malformed("Prove.groups", "not offsets of groups of one asset"));
    }
    let nonce = message.nonce.as_ref().try_into();
    let nonce = nonce.map_err(|_| malformed("Prove.nonce", "not 32 bytes"))?;
    Ok(Prove { nonce, hashes, lease: message.lease, groups: message.groups })
}

/// Encodes the answer, in the order of the request's hashes.
pub fn encode_proofs(proofs: &[Proof]) -> peer::Proofs {
    let entry = |proof: &Proof| match proof {
        Proof::Holds { proof, lease_ms } => peer::ProofEntry {
            outcome: Outcome::Holds.into(),
            proof: Bytes::copy_from_slice(proof),
            lease_ms: *lease_ms,
        },
        Proof::Lacks(lack) => {
            let found = LACKS.iter().find(|(_, known)| known == lack);
            let outcome = found.map_or(Outcome::Busy, |(outcome, _)| *outcome);
            peer::ProofEntry { outcome: outcome.into(), ..peer::ProofEntry::default() }
        }
    };
    peer::Proofs { entries: proofs.iter().map(entry).collect() }
}

/// Reads the answer to a request for so many hashes.
///
/// # Errors
/// [`WireError`] for anything out of bounds.
pub fn decode_proofs(payload: Bytes, hashes: usize) -> Result<Vec<Proof>, WireError> {
    let message: peer::Proofs = parse("Proofs", payload, PROVE_HASHES_MAX)?;
    if message.entries.len() != hashes {
        return Err(malformed("Proofs.entries", "not one for each hash"));
    }
    let proof = |entry: &peer::ProofEntry| {
        let outcome = entry.outcome();
        if outcome == Outcome::Holds {
            let proof = entry.proof.as_ref().try_into();
            let proof = proof.map_err(|_| malformed("ProofEntry.proof", "not 32 bytes"))?;
            return Ok(Proof::Holds { proof, lease_ms: entry.lease_ms });
        }
        let found = LACKS.iter().find(|(known, _)| *known == outcome);
        // A later version may have other reasons.
        Ok(Proof::Lacks(found.map_or(Lack::NotHeld, |(_, lack)| *lack)))
    };
    message.entries.iter().map(proof).collect()
}

/// Encodes one group: the bao encoding of its range, or a small content as it is.
pub fn encode_group(offset_bytes: u64, encoded: Vec<u8>) -> peer::ProofGroup {
    peer::ProofGroup { offset_bytes, encoded: encoded.into() }
}

/// Reads one group.
///
/// # Errors
/// [`WireError`] for anything out of bounds.
pub fn decode_group(payload: Bytes) -> Result<(u64, Bytes), WireError> {
    let message: peer::ProofGroup = parse("ProofGroup", payload, 0)?;
    bounded("ProofGroup.encoded", message.encoded.len(), SMALL_BYTES_MAX as usize)?;
    Ok((message.offset_bytes, message.encoded))
}

fn malformed(what: &'static str, detail: &str) -> WireError {
    WireError::Malformed { what, detail: detail.to_owned() }
}

fn bounded(what: &'static str, got: usize, limit: usize) -> Result<(), WireError> {
    match got <= limit {
        true => Ok(()),
        false => Err(WireError::OutOfBounds { what, got: got as u64, limit: limit as u64 }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prost::Message as _;

    fn prove(count: u8) -> Prove {
        let hashes = (0..count).map(|n| Hash([n; 32])).collect();
        Prove { nonce: [9; 32], hashes, lease: true, groups: Vec::new() }
    }

    fn read(prove: &Prove) -> Result<Prove, WireError> {
        decode_prove(encode_prove(prove).encode_to_vec().into())
    }

    #[test]
    fn requests_and_answers_come_back_as_they_were() {
        let groups = Prove { groups: vec![0, PIECE_ALIGN_BYTES], ..prove(1) };
        for prove in [prove(1), prove(PROVE_HASHES_MAX as u8), groups] {
            assert_eq!(read(&prove).unwrap(), prove);
        }
        let mut proofs = vec![Proof::Holds { proof: [7; 32], lease_ms: 900_000 }];
        proofs.extend(LACKS.map(|(_, lack)| Proof::Lacks(lack)));
        let payload: Bytes = encode_proofs(&proofs).encode_to_vec().into();
        assert_eq!(decode_proofs(payload.clone(), proofs.len()).unwrap(), proofs);
        assert!(decode_proofs(payload, 1).is_err(), "one answer for each hash");
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let many = Prove { groups: vec![0; PROOF_GROUPS_MAX + 1], ..prove(1) };
        let of_two = Prove { groups: vec![0], ..prove(2) };
        let misplaced = Prove { groups: vec![1], ..prove(1) };
        let twice = Prove { hashes: vec![Hash([1; 32]); 2], ..prove(1) };
        for bad in [prove(0), prove(PROVE_HASHES_MAX as u8 + 1), many, of_two, misplaced, twice] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
        let short = peer::Prove { nonce: Bytes::from_static(b"short"), ..encode_prove(&prove(1)) };
        assert!(decode_prove(short.encode_to_vec().into()).is_err());
        let long = vec![0; SMALL_BYTES_MAX as usize + 1];
        assert!(decode_group(encode_group(0, long).encode_to_vec().into()).is_err());
    }
}
