//! The fuzz targets. A target takes any bytes and returns whether they were accepted. It panics
//! when a decoder breaks its promise: it must accept or refuse without a panic, and what it accepts
//! must be the same after encoding and decoding again.

#![allow(unreachable_pub, reason = "the fuzz targets are crates of their own")]

use std::fmt::Debug;

use bytes::Bytes;
use can_sync::bao::{GROUP_BYTES, decode_piece};
use can_sync::core::ids::{Digest, Hash, NodeId};
use can_sync::core::journal::op::Change;
use can_sync::core::limits::{PIECE_ALIGN_BYTES, SMALL_BYTES_MAX};
use can_sync::net::ticket::Ticket;
use can_sync::wire::batch::{self, Naming, Offer, OfferEntry, Piece, Want};
use can_sync::wire::folder::{
    history_from_bytes, history_to_bytes, version_from_bytes, version_to_bytes,
};
use can_sync::wire::frame::{HEADER_BYTES, Header, Kind};
use can_sync::wire::plain::{SetPage, decode_meta, decode_plain_ack, encode_meta};
use can_sync::wire::proto::peer;
use can_sync::wire::{control, journal, pairing, proof};
use prost::Message as _;

/// The assets that a request for proofs named.
pub const PROOFS: usize = 5;

/// A target by name; its corpus is in the folder with that name.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All targets.
#[allow(dead_code, reason = "each fuzz target names its own")]
pub const TARGETS: [Target; 10] = [
    ("frame", frame),
    ("control", control),
    ("batch", batch),
    ("pairing", pairing),
    ("proof", proof),
    ("journal", journal),
    ("op_body", op_body),
    ("folder", folder),
    ("ticket", ticket),
    ("piece", piece),
];

/// A stream of frames, each passed to its decoder.
pub fn frame(mut bytes: &[u8]) -> bool {
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let Ok(Header { kind, length }) = Header::decode(*header) else { return false };
        assert_eq!(Header::encode(kind, length as u32), *header);
        let Some((payload, rest)) = rest.split_at_checked(length) else { return false };
        let payload = Bytes::copy_from_slice(payload);
        let _ = control::decode_message(kind, payload.clone());
        let _ = journal::decode_message(kind, payload);
        bytes = rest;
    }
    bytes.is_empty()
}

/// The payload of a control frame, preceded by its kind.
pub fn control(bytes: &[u8]) -> bool {
    let Some((kind, payload)) = kind_and_payload(bytes) else { return false };
    let read = |(kind, payload)| control::decode_message(kind, payload);
    comes_back((kind, payload), read, control::encode_message)
}

/// The payload of a journal frame, preceded by its kind.
pub fn journal(bytes: &[u8]) -> bool {
    let Some((kind, payload)) = kind_and_payload(bytes) else { return false };
    let read = |(kind, payload)| journal::decode_message(kind, payload);
    comes_back((kind, payload), read, journal::encode_message)
}

/// The payload of a batch message, preceded by its number.
pub fn batch(bytes: &[u8]) -> bool {
    let Some((which, payload)) = bytes.split_first() else { return false };
    let payload = Bytes::copy_from_slice(payload);
    let offer = offer();
    let entries = offer.entries.len();
    let offered = Naming::Offered(entries);
    match which {
        0 => comes_back(
            payload,
            |bytes| Offer::decode(bytes, SMALL_BYTES_MAX),
            |offer| wire(&offer.encode()),
        ),
        1 => comes_back(payload, |bytes| Want::decode(bytes, &offer), |want| wire(&want.encode())),
        2 | 3 => comes_back(
            payload,
            |bytes| {
                batch::decode_contents(bytes, if *which == 2 { offered } else { Naming::Plain })
            },
            |contents| wire(&batch::encode_contents(contents.clone())),
        ),
        4 | 5 => comes_back(
            payload,
            |bytes| Piece::decode(bytes, if *which == 4 { offered } else { Naming::Plain }),
            |piece| wire(&piece.clone().encode()),
        ),
        6 => comes_back(
            payload,
            |bytes| batch::decode_drop(bytes, entries),
            |index| wire(&batch::encode_drop(*index)),
        ),
        7 => comes_back(
            payload,
            |bytes| batch::decode_ack(bytes, entries),
            |verdicts| wire(&batch::encode_ack(verdicts.iter().map(|verdict| (None, verdict)))),
        ),
        8 => comes_back(payload, decode_plain_ack, |verdicts| {
            wire(&batch::encode_ack(verdicts.iter().map(|(hash, verdict)| (Some(*hash), verdict))))
        }),
        9 => comes_back(payload, |bytes| SetPage::decode(bytes, None), |page| wire(&page.encode())),
        10 => comes_back(payload, decode_meta, |told| wire(&encode_meta(told))),
        _ => false,
    }
}

/// The payload of a message of a proof, preceded by its number.
pub fn proof(bytes: &[u8]) -> bool {
    let Some((which, payload)) = bytes.split_first() else { return false };
    let payload = Bytes::copy_from_slice(payload);
    match which {
        0 => comes_back(payload, proof::decode_prove, |prove| wire(&proof::encode_prove(prove))),
        1 => comes_back(
            payload,
            |bytes| proof::decode_proofs(bytes, PROOFS),
            |proofs| wire(&proof::encode_proofs(proofs)),
        ),
        2 => comes_back(payload, proof::decode_group, |(offset_bytes, encoded)| {
            wire(&proof::encode_group(*offset_bytes, encoded.to_vec()))
        }),
        _ => false,
    }
}

/// The payload of a pairing message, preceded by its number.
pub fn pairing(bytes: &[u8]) -> bool {
    let Some((which, payload)) = bytes.split_first() else { return false };
    let payload = Bytes::copy_from_slice(payload);
    match which {
        0 => comes_back(
            payload,
            |bytes| {
                let request = peer::PairRequest::decode(bytes).map_err(|_| ())?;
                pairing::pair_request_from_wire(NodeId([1; 32]), &request).map_err(|_| ())
            },
            |request| wire(&pairing::pair_request_to_wire(request)),
        ),
        1 => comes_back(
            payload,
            |bytes| {
                let accept = peer::PairAccept::decode(bytes).map_err(|_| ())?;
                pairing::pair_accept_from_wire(&accept).map_err(|_| ())
            },
            |accept| wire(&pairing::pair_accept_to_wire(accept)),
        ),
        2 => comes_back(
            payload,
            |bytes| {
                let introduction = peer::Introduction::decode(bytes).map_err(|_| ())?;
                pairing::introduction_from_wire(&introduction).map_err(|_| ())
            },
            |introduction| wire(&pairing::introduction_to_wire(introduction)),
        ),
        3 => comes_back(
            payload,
            |bytes| {
                let offer = peer::PairOffer::decode(bytes).map_err(|_| ())?;
                pairing::pair_offer_from_wire(&offer).map_err(|_| ())
            },
            |offer| wire(&pairing::pair_offer_to_wire(offer)),
        ),
        4 => comes_back(
            payload,
            |bytes| {
                let reveal = peer::PairReveal::decode(bytes).map_err(|_| ())?;
                pairing::pair_reveal_from_wire(&reveal).map_err(|_| ())
            },
            |nonce| wire(&pairing::pair_reveal_to_wire(nonce)),
        ),
        _ => false,
    }
}

/// The body of an op. Only one without unknown parts can be encoded again.
pub fn op_body(bytes: &[u8]) -> bool {
    let Ok(body) = journal::decode_body(bytes) else { return false };
    let written = journal::encode_body(&body);
    if body.changes.contains(&Change::Unknown) {
        assert!(written.is_err());
        return true;
    }
    let written = written.expect("what was read can be written");
    let again = journal::decode_body(&written).expect("what was written can be read");
    // Compared as text, because NaN is not equal to itself.
    assert_eq!(format!("{again:?}"), format!("{body:?}"));
    assert_eq!(journal::encode_body(&again), Ok(written));
    true
}

/// A version of a path, or an event of a folder's history, preceded by its number.
pub fn folder(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    match which {
        0 => comes_back(bytes.to_vec(), |bytes| version_from_bytes(&bytes), version_to_bytes),
        1 => comes_back(bytes.to_vec(), |bytes| history_from_bytes(&bytes), history_to_bytes),
        _ => false,
    }
}

/// A ticket's text, or its content without the checksum, which a fuzzer could not guess.
pub fn ticket(bytes: &[u8]) -> bool {
    let text = match str::from_utf8(bytes) {
        Ok(text) if text.starts_with("cansync") => text.to_owned(),
        _ => {
            let sum =
                blake3::Hasher::new_derive_key("can-sync ticket checksum").update(bytes).finalize();
            let sealed = [bytes, &sum.as_bytes()[..4]].concat();
            format!("cansync{}", data_encoding::BASE32_NOPAD.encode(&sealed))
        }
    };
    comes_back(text, |text| text.parse::<Ticket>(), ToString::to_string)
}

/// An encoded range of [`piece_content`]: its last group when the first byte is odd, otherwise
/// everything.
pub fn piece(bytes: &[u8]) -> bool {
    let Some((which, encoded)) = bytes.split_first() else { return false };
    let content = piece_content();
    let start = if which % 2 == 1 { GROUP_BYTES as usize } else { 0 };
    let range = start as u64..content.len() as u64;
    let decoded = decode_piece(&piece_digest(), range, encoded).expect("whole groups");
    let good = decoded.groups.concat();
    assert!(content[start..].starts_with(&good), "bytes that are not the asset's");
    assert!(!decoded.whole || good == content[start..], "it is not whole");
    decoded.whole
}

/// A group and a little more.
pub fn piece_content() -> Vec<u8> {
    (0..GROUP_BYTES + 100).map(|n| (n % 251) as u8).collect()
}

/// The name and size of [`piece_content`].
pub fn piece_digest() -> Digest {
    let content = piece_content();
    let hash = Hash(*blake3::hash(&content).as_bytes());
    Digest { hash, size_bytes: content.len() as u64 }
}

/// The offer that wants, contents, pieces and acks refer to.
pub fn offer() -> Offer {
    let entry = |(n, size_bytes): (u8, u64)| OfferEntry {
        digest: Digest { hash: Hash([n; 32]), size_bytes },
        inline: size_bytes < 10,
    };
    let sizes = [3, 100, SMALL_BYTES_MAX, 8 * PIECE_ALIGN_BYTES, 1 << 40];
    Offer { entries: (0..).zip(sizes).map(entry).collect(), solicited: false }
}

fn kind_and_payload(bytes: &[u8]) -> Option<(Kind, Bytes)> {
    let (number, payload) = bytes.split_first()?;
    let header = Header::decode([*number, 0, 0, 0, 0]).ok()?;
    Some((header.kind, Bytes::copy_from_slice(payload)))
}

fn wire(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Whether `bytes` are accepted. If so, they must be the same after encoding and decoding again,
/// and have only one encoding.
fn comes_back<B: Clone + Debug + PartialEq, T: Debug + PartialEq, E: Debug>(
    bytes: B,
    read: impl Fn(B) -> Result<T, E>,
    write: impl Fn(&T) -> B,
) -> bool {
    let Ok(first) = read(bytes) else { return false };
    let written = write(&first);
    let again = read(written.clone()).expect("what was written can be read");
    assert_eq!(again, first);
    assert_eq!(write(&again), written);
    true
}
