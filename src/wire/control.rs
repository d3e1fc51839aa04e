//! The control stream: one message of the core is one frame, and every frame is checked here.

use bytes::Bytes;
use prost::Message as _;

use crate::core::copies::{AbsentPage, AbsentSet};
use crate::core::ids::{GroupId, Hash, HashAlgorithm, StoreId};
use crate::core::journal::set_hash::SetDigest;
use crate::core::limits::{DEVICE_NAME_BYTES_MAX, FEATURES_MAX, HASHES_PER_FRAME_MAX};
use crate::core::message::{Hello, Message};
use crate::core::pairing::device_name;
use crate::wire::frame::Kind;
use crate::wire::reconcile::{
    decode_reconcile, decode_set_summary, encode_reconcile, encode_set_summary,
};
use crate::wire::{WireError, parse, proto::peer};

/// How much of an unknown hash algorithm's name is shown.
const ALGORITHM_CHARS_SHOWN: usize = 32;

/// The name of [`Hello::journal`] in the list of features.
const JOURNAL_FEATURE: &str = "journal";

/// The name of [`Hello::proofs`] in the list of features.
const PROOFS_FEATURE: &str = "proofs";

/// The name of [`Hello::thumbnails`] in the list of features.
const THUMBNAILS_FEATURE: &str = "thumbnails";

/// The name of [`Hello::copies`] in the list of features.
const COPIES_FEATURE: &str = "copies";

/// The name of [`Hello::chooses`] in the list of features.
const CHOOSES_FEATURE: &str = "chooses";

/// The name of [`Hello::metadata`] in the list of features.
const METADATA_FEATURE: &str = "metadata";

/// Encodes a message as its frame: kind and payload.
pub fn encode_message(message: &Message) -> (Kind, Bytes) {
    let (kind, payload) = match message {
        Message::Hello(hello) => (Kind::Hello, hello_to_wire(hello).encode_to_vec()),
        Message::Summary(summary) => return (Kind::SetSummary, encode_set_summary(summary)),
        Message::Reconcile(message) => return encode_reconcile(message),
        Message::Solicit(hashes) => {
            (Kind::Solicit, peer::Solicit { hashes: raw(hashes), now: false }.encode_to_vec())
        }
        Message::SolicitNow(hashes) => {
            (Kind::Solicit, peer::Solicit { hashes: raw(hashes), now: true }.encode_to_vec())
        }
        Message::Lacking(hashes) => {
            (Kind::Lacking, peer::Lacking { hashes: raw(hashes) }.encode_to_vec())
        }
        Message::Absent(absent) => (Kind::Absent, absent_to_wire(absent).encode_to_vec()),
        Message::AbsentPull { log, after_turn } => {
            let log = Bytes::copy_from_slice(log);
            let pull = peer::AbsentPull { log, after_turn: *after_turn };
            (Kind::AbsentPull, pull.encode_to_vec())
        }
        Message::AbsentPage(page) => {
            let AbsentPage { now, is_start, absent, held, next, more } = &**page;
            let page = peer::AbsentPage {
                now: Some(absent_to_wire(now)),
                is_start: *is_start,
                absent: absent.iter().map(|(hash, _)| raw_hash(hash)).collect(),
                sizes: absent.iter().map(|(_, size)| raw_size(*size)).collect(),
                held: raw(held),
                next: *next,
                more: *more,
            };
            (Kind::AbsentPage, page.encode_to_vec())
        }
        Message::SizePull(hashes) => {
            (Kind::SizePull, peer::SizePull { hashes: raw(hashes) }.encode_to_vec())
        }
        Message::Sizes(sizes) => {
            let sizes = sizes.iter().map(|size| raw_size(*size)).collect();
            (Kind::Sizes, peer::Sizes { sizes }.encode_to_vec())
        }
    };
    (kind, payload.into())
}

/// Reads a frame of the control stream.
///
/// # Errors
/// [`WireError`] for anything out of bounds, and for frames of other streams.
pub fn decode_message(kind: Kind, payload: Bytes) -> Result<Message, WireError> {
    match kind {
        Kind::Hello => Ok(Message::Hello(hello_from_wire(parse("Hello", payload, FEATURES_MAX)?)?)),
        Kind::SetSummary => Ok(Message::Summary(Box::new(decode_set_summary(payload)?))),
        Kind::Solicit => {
            let message: peer::Solicit = parse("Solicit", payload, HASHES_PER_FRAME_MAX)?;
            let hashes = hashes("Solicit.hashes", &message.hashes)?;
            Ok(if message.now { Message::SolicitNow(hashes) } else { Message::Solicit(hashes) })
        }
        Kind::Lacking => {
            let message: peer::Lacking = parse("Lacking", payload, HASHES_PER_FRAME_MAX)?;
            Ok(Message::Lacking(hashes("Lacking.hashes", &message.hashes)?))
        }
        Kind::Absent => {
            let message: peer::Absent = parse("Absent", payload, HASHES_PER_FRAME_MAX)?;
            Ok(Message::Absent(absent_from_wire(&message)?))
        }
        Kind::AbsentPull => {
            let message: peer::AbsentPull = parse("AbsentPull", payload, HASHES_PER_FRAME_MAX)?;
            let (log, after_turn) = (exactly("AbsentPull.log", &message.log)?, message.after_turn);
            Ok(Message::AbsentPull { log, after_turn })
        }
        Kind::AbsentPage => {
            let message: peer::AbsentPage = parse("AbsentPage", payload, HASHES_PER_FRAME_MAX)?;
            let missing = || malformed("AbsentPage.now", "missing");
            let count = message.absent.len() + message.held.len();
            bounded("AbsentPage", count, HASHES_PER_FRAME_MAX)?;
            let absent = hashes("AbsentPage.absent", &message.absent)?;
            if message.sizes.len() != absent.len() {
                return Err(malformed("AbsentPage.sizes", "not one for each hash"));
            }
            let sizes = message.sizes.iter().map(|size| size.checked_sub(1));
            Ok(Message::AbsentPage(Box::new(AbsentPage {
                now: absent_from_wire(message.now.as_ref().ok_or_else(missing)?)?,
                is_start: message.is_start,
                absent: absent.into_iter().zip(sizes).collect(),
                held: hashes("AbsentPage.held", &message.held)?,
                next: message.next,
                more: message.more,
            })))
        }
        Kind::SizePull => {
            let message: peer::SizePull = parse("SizePull", payload, HASHES_PER_FRAME_MAX)?;
            Ok(Message::SizePull(hashes("SizePull.hashes", &message.hashes)?))
        }
        Kind::Sizes => {
            let message: peer::Sizes = parse("Sizes", payload, HASHES_PER_FRAME_MAX)?;
            bounded("Sizes.sizes", message.sizes.len(), HASHES_PER_FRAME_MAX)?;
            Ok(Message::Sizes(message.sizes.iter().map(|size| size.checked_sub(1)).collect()))
        }
        other => match decode_reconcile(other, payload)? {
            Some(message) => Ok(Message::Reconcile(message)),
            None => {
                let detail = format!("a {other:?} frame does not belong on the control stream");
                Err(malformed("frame", &detail))
            }
        },
    }
}

fn hello_to_wire(hello: &Hello) -> peer::Hello {
    peer::Hello {
        group_id: Bytes::copy_from_slice(hello.group_id.as_bytes()),
        device_name: device_name(&hello.device_name),
        store_id: Bytes::copy_from_slice(hello.store_id.as_bytes()),
        hash_algorithm: hello.algorithm.name().to_owned(),
        build: hello.build.clone(),
        features: features(hello),
    }
}

fn hello_from_wire(hello: peer::Hello) -> Result<Hello, WireError> {
    bounded("Hello.device_name", hello.device_name.len(), DEVICE_NAME_BYTES_MAX)?;
    bounded("Hello.build", hello.build.len(), DEVICE_NAME_BYTES_MAX)?;
    let algorithm = HashAlgorithm::from_name(&hello.hash_algorithm)
        .ok_or_else(|| unknown_algorithm(&hello.hash_algorithm))?;
    Ok(Hello {
        group_id: GroupId::from_slice(&hello.group_id)
            .ok_or_else(|| malformed("Hello.group_id", "not 32 bytes"))?,
        device_name: device_name(&hello.device_name),
        store_id: StoreId::from_slice(&hello.store_id)
            .ok_or_else(|| malformed("Hello.store_id", "not 16 bytes"))?,
        algorithm,
        build: hello.build,
        journal: hello.features.iter().any(|feature| feature == JOURNAL_FEATURE),
        proofs: hello.features.iter().any(|feature| feature == PROOFS_FEATURE),
        thumbnails: hello.features.iter().any(|feature| feature == THUMBNAILS_FEATURE),
        copies: hello.features.iter().any(|feature| feature == COPIES_FEATURE),
        chooses: hello.features.iter().any(|feature| feature == CHOOSES_FEATURE),
        metadata: hello.features.iter().any(|feature| feature == METADATA_FEATURE),
    })
}

fn features(hello: &Hello) -> Vec<String> {
    let features = [
        (hello.journal, JOURNAL_FEATURE),
        (hello.proofs, PROOFS_FEATURE),
        (hello.thumbnails, THUMBNAILS_FEATURE),
        (hello.copies, COPIES_FEATURE),
        (hello.chooses, CHOOSES_FEATURE),
        (hello.metadata, METADATA_FEATURE),
    ];
    features.iter().filter(|(has, _)| *has).map(|(_, name)| (*name).to_owned()).collect()
}

fn absent_to_wire(absent: &AbsentSet) -> peer::Absent {
    peer::Absent {
        log: Bytes::copy_from_slice(&absent.log),
        turn: absent.turn,
        digest: Bytes::copy_from_slice(&absent.digest.0),
    }
}

fn absent_from_wire(absent: &peer::Absent) -> Result<AbsentSet, WireError> {
    let digest = SetDigest(exactly("Absent.digest", &absent.digest)?);
    Ok(AbsentSet { log: exactly("Absent.log", &absent.log)?, turn: absent.turn, digest })
}

fn exactly<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| malformed(what, &format!("not {N} bytes")))
}

fn raw(hashes: &[Hash]) -> Vec<Bytes> {
    hashes.iter().map(raw_hash).collect()
}

fn raw_hash(hash: &Hash) -> Bytes {
    Bytes::copy_from_slice(hash.as_bytes())
}

/// A size as it is sent: 0 is "not known".
fn raw_size(size: Option<u64>) -> u64 {
    size.map_or(0, |size| size.saturating_add(1))
}

fn hashes(what: &'static str, raw: &[Bytes]) -> Result<Vec<Hash>, WireError> {
    bounded(what, raw.len(), HASHES_PER_FRAME_MAX)?;
    raw.iter()
        .map(|bytes| Hash::from_slice(bytes).ok_or_else(|| malformed(what, "not 32 bytes")))
        .collect()
}

fn unknown_algorithm(name: &str) -> WireError {
    let shown = name.chars().filter(|c| !c.is_control()).take(ALGORITHM_CHARS_SHOWN);
    WireError::UnknownAlgorithm(shown.collect())
}

fn malformed(what: &'static str, detail: &str) -> WireError {
    WireError::Malformed { what, detail: detail.to_owned() }
}

fn bounded(what: &'static str, got: usize, limit: usize) -> Result<(), WireError> {
    if got > limit {
        return Err(WireError::OutOfBounds { what, got: got as u64, limit: limit as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            group_id: GroupId([1; 32]),
            device_name: "laptop".to_owned(),
            store_id: StoreId([2; 16]),
            algorithm: HashAlgorithm::Sha256,
            build: "0.1.0".to_owned(),
            journal: true,
            proofs: true,
            thumbnails: true,
            copies: true,
            chooses: true,
            metadata: true,
        }
    }

    fn absent() -> AbsentSet {
        AbsentSet { log: [8; 16], turn: 5, digest: SetDigest([9; 32]) }
    }

    fn absent_page(count: usize) -> AbsentPage {
        let (hash, now, held) = (Hash([1; 32]), absent(), vec![Hash([2; 32])]);
        let mut absent = vec![(hash, Some(0)); count];
        absent[0].1 = None;
        AbsentPage { now, is_start: true, absent, held, next: 5, more: true }
    }

    fn there_and_back(message: &Message) -> Result<Message, WireError> {
        let (kind, payload) = encode_message(message);
        decode_message(kind, payload)
    }

    #[test]
    fn messages_come_back_as_they_were() {
        for message in [
            Message::Hello(hello()),
            Message::Solicit(vec![Hash([5; 32]); HASHES_PER_FRAME_MAX]),
            Message::SolicitNow(vec![Hash([5; 32])]),
            Message::Lacking(vec![Hash([6; 32])]),
            Message::Absent(absent()),
            Message::AbsentPull { log: [3; 16], after_turn: u64::MAX },
            Message::AbsentPage(Box::new(absent_page(HASHES_PER_FRAME_MAX - 1))),
            Message::SizePull(vec![Hash([6; 32])]),
            Message::Sizes(vec![None, Some(0), Some(7)]),
        ] {
            assert_eq!(there_and_back(&message).unwrap(), message);
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let many = vec![Hash([7; 32]); HASHES_PER_FRAME_MAX + 1];
        assert!(there_and_back(&Message::Solicit(many)).is_err());
        let page = absent_page(HASHES_PER_FRAME_MAX);
        assert!(there_and_back(&Message::AbsentPage(Box::new(page))).is_err());
        let short = peer::Absent { log: Bytes::from_static(b"short"), ..absent_to_wire(&absent()) };
        assert!(decode_message(Kind::Absent, short.encode_to_vec().into()).is_err());
        let short = peer::Lacking { hashes: vec![Bytes::from_static(b"short")] };
        assert!(decode_message(Kind::Lacking, short.encode_to_vec().into()).is_err());
        let mut long = hello_to_wire(&hello());
        long.device_name = "x".repeat(DEVICE_NAME_BYTES_MAX + 1);
        assert!(decode_message(Kind::Hello, long.encode_to_vec().into()).is_err());
    }

    #[test]
    fn a_name_is_shown_without_what_would_confuse_a_terminal() {
        let mut wire = hello_to_wire(&hello());
        wire.device_name = "a\u{1b}[31m\nb\u{202e}c\0".to_owned();
        let Message::Hello(hello) =
            decode_message(Kind::Hello, wire.encode_to_vec().into()).unwrap()
        else {
            panic!("a Hello")
        };
        assert!(!hello.device_name.contains(|c: char| c.is_control() || c == '\u{202e}'));
    }

    #[test]
    fn frames_of_other_streams_are_refused() {
        for kind in [Kind::Offer, Kind::Ack, Kind::PairRequest] {
            assert!(decode_message(kind, Bytes::new()).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            for kind in [Kind::Hello, Kind::SetSummary, Kind::Compare, Kind::Plan,
                         Kind::Cells, Kind::Page, Kind::Solicit, Kind::Lacking, Kind::Absent,
                         Kind::AbsentPull, Kind::AbsentPage, Kind::SizePull, Kind::Sizes] {
                let _ = decode_message(kind, Bytes::from(payload.clone()));
            }
        }
    }
}
