//! Encodes the reconcile messages (control stream types 3 to 12).
//!
//! Checks what a message shows by itself: lengths, counts, numbers in range.
//! [`crate::core::reconcile`] checks what depends on the round: order, repeats, whether it was
//! requested.

use bytes::Bytes;
use prost::Message;

use crate::core::ids::Hash;
use crate::core::limits::{
    CELLS_PER_FRAME_MAX, HASHES_PER_FRAME_MAX, SET_COUNT_MAX, SHARD_BITS_MAX, SKETCH_CELLS,
};
use crate::core::reconcile::{Cursor, ReconcileMessage, SetSummary, Since, Way};
use crate::core::sketch::{COUNTERS, Cell};
use crate::wire::frame::Kind;
use crate::wire::proto::peer;
use crate::wire::{WireError, parse};

/// The encoded bytes of a cell's hash sum and check sum.
const CELL_SUM_BYTES: usize = 40;

/// Encodes a set summary as the payload of [`Kind::SetSummary`].
pub fn encode_set_summary(summary: &SetSummary) -> Bytes {
    summary_to_proto(summary).encode_to_vec().into()
}

/// Decodes the payload of [`Kind::SetSummary`].
///
/// # Errors
/// [`WireError`].
pub fn decode_set_summary(payload: Bytes) -> Result<SetSummary, WireError> {
    summary_from_proto(decode("SetSummary", payload)?)
}

/// Encodes a reconcile message as a frame's kind and payload.
pub fn encode_reconcile(message: &ReconcileMessage) -> (Kind, Bytes) {
    match message {
        ReconcileMessage::Compare { round, summary } => {
            let summary = Some(summary_to_proto(summary));
            (Kind::Compare, bytes(&peer::Compare { round: *round, summary }))
        }
        ReconcileMessage::Plan { round, way, summary, retry_ms, nonce, estimate } => {
            let message = peer::Plan {
                round: *round,
                way: way_to_proto(*way).into(),
                summary: Some(summary_to_proto(summary)),
                retry_ms: *retry_ms,
                nonce: nonce.map(|nonce| Bytes::copy_from_slice(&nonce)).unwrap_or_default(),
                estimate: *estimate,
            };
            (Kind::Plan, bytes(&message))
        }
        ReconcileMessage::Cells { round, shard, first, cells } => {
            let mut sums = Vec::with_capacity(cells.len() * CELL_SUM_BYTES);
            for cell in cells {
                sums.extend(cell.sum.iter().flat_map(|lane| lane.to_le_bytes()));
                sums.extend_from_slice(&cell.check.to_le_bytes());
            }
            let message = peer::Cells {
                round: *round,
                shard: *shard,
                first: *first,
                sums: sums.into(),
                counts: cells.iter().map(|cell| cell.count).collect(),
            };
            (Kind::Cells, bytes(&message))
        }
        ReconcileMessage::More { round, shard, first, n } => {
            let message = peer::More { round: *round, shard: *shard, first: *first, n: *n };
            (Kind::More, bytes(&message))
        }
        ReconcileMessage::Decoded { round, lacking } => {
            let message = peer::Decoded { round: *round, lacking: hashes_to_proto(lacking) };
            (Kind::Decoded, bytes(&message))
        }
        ReconcileMessage::Rekey { round, nonce, shard_bits } => {
            let nonce = Bytes::copy_from_slice(nonce);
            (Kind::Rekey, bytes(&peer::Rekey { round: *round, nonce, shard_bits: *shard_bits }))
        }
        ReconcileMessage::Pull { round, from } => {
            let from = Some(match from {
                Cursor::Seq(seq) => peer::pull::From::AfterSeq(*seq),
                Cursor::Hash(None) => peer::pull::From::AfterHash(Bytes::new()),
                Cursor::Hash(Some(hash)) => peer::pull::From::AfterHash(hash_to_proto(hash)),
            });
            (Kind::Pull, bytes(&peer::Pull { round: *round, from }))
        }
        ReconcileMessage::Page { round, hashes, more, next_seq } => {
            let hashes = hashes_to_proto(hashes);
            let message = peer::Page { round: *round, hashes, more: *more, next_seq: *next_seq };
            (Kind::Page, bytes(&message))
        }
        ReconcileMessage::Done { round, incomplete } => {
            let message = peer::ReconcileDone { round: *round, incomplete: *incomplete };
            (Kind::ReconcileDone, bytes(&message))
        }
    }
}

/// Decodes a reconcile message. `None` for kinds of frames that are not reconcile's.
///
/// # Errors
/// [`WireError`].
pub fn decode_reconcile(kind: Kind, payload: Bytes) -> Result<Option<ReconcileMessage>, WireError> {
    let message = match kind {
        Kind::Compare => {
            let peer::Compare { round, summary } = decode("Compare", payload)?;
            let summary = summary_from_proto(present("Compare.summary", summary)?)?;
            ReconcileMessage::Compare { round, summary }
        }
        Kind::Plan => plan_from_proto(decode("Plan", payload)?)?,
        Kind::Cells => cells_from_proto(decode("Cells", payload)?)?,
        Kind::More => {
            let peer::More { round, shard, first, n } = decode("More", payload)?;
            within("More.first", first.into(), SKETCH_CELLS as u64)?;
            within("More.n", n.into(), SKETCH_CELLS as u64)?;
            ReconcileMessage::More { round, shard, first, n }
        }
        Kind::Decoded => {
            let peer::Decoded { round, lacking } = decode("Decoded", payload)?;
            let lacking = hashes_from_proto("Decoded.lacking", &lacking)?;
            ReconcileMessage::Decoded { round, lacking }
        }
        Kind::Rekey => {
            let peer::Rekey { round, nonce, shard_bits } = decode("Rekey", payload)?;
            within("Rekey.shard_bits", shard_bits.into(), SHARD_BITS_MAX.into())?;
            let nonce = exactly("Rekey.nonce", &nonce)?;
            ReconcileMessage::Rekey { round, nonce, shard_bits }
        }
        Kind::Pull => {
            let peer::Pull { round, from } = decode("Pull", payload)?;
            let from = match present("Pull.from", from)? {
                peer::pull::From::AfterSeq(seq) => Cursor::Seq(seq),
                peer::pull::From::AfterHash(hash) if hash.is_empty() => Cursor::Hash(None),
                peer::pull::From::AfterHash(hash) => {
                    Cursor::Hash(Some(Hash(exactly("Pull.after_hash", &hash)?)))
                }
            };
            ReconcileMessage::Pull { round, from }
        }
        Kind::Page => {
            let peer::Page { round, hashes, more, next_seq } = decode("Page", payload)?;
            let hashes = hashes_from_proto("Page.hashes", &hashes)?;
            ReconcileMessage::Page { round, hashes, more, next_seq }
        }
        Kind::ReconcileDone => {
            let peer::ReconcileDone { round, incomplete } = decode("ReconcileDone", payload)?;
            ReconcileMessage::Done { round, incomplete }
        }
        _ => return Ok(None),
    };
    Ok(Some(message))
}

fn plan_from_proto(message: peer::Plan) -> Result<ReconcileMessage, WireError> {
    let way = match message.way() {
        peer::plan::Way::Unspecified => {
            let detail = format!("unknown way {}", message.way);
            return Err(WireError::Malformed { what: "Plan.way", detail });
        }
        peer::plan::Way::Equal => Way::Equal,
        peer::plan::Way::Delta => Way::Delta,
        peer::plan::Way::Cells => Way::Cells,
        peer::plan::Way::List => Way::List,
        peer::plan::Way::Shards => Way::Shards,
        peer::plan::Way::Busy => Way::Busy,
    };
    let nonce = match message.nonce.is_empty() {
        true => None,
        false => Some(exactly("Plan.nonce", &message.nonce)?),
    };
    Ok(ReconcileMessage::Plan {
        round: message.round,
        way,
        summary: summary_from_proto(present("Plan.summary", message.summary)?)?,
        retry_ms: message.retry_ms,
        nonce,
        estimate: message.estimate,
    })
}

fn cells_from_proto(message: peer::Cells) -> Result<ReconcileMessage, WireError> {
    let peer::Cells { round, shard, first, sums, counts } = message;
    within("Cells.first", first.into(), SKETCH_CELLS as u64)?;
    within("Cells.counts", counts.len() as u64, CELLS_PER_FRAME_MAX as u64)?;
    if sums.len() != counts.len() * CELL_SUM_BYTES {
        let detail = format!("{} bytes of sums for {} counts", sums.len(), counts.len());
        return Err(WireError::Malformed { what: "Cells", detail });
    }
    let lane = |bytes: &[u8]| {
        u64::from_le_bytes(bytes.try_into().expect("every slice below has eight bytes"))
    };
    let cell = |(sum, count): (&[u8], i64)| Cell {
        sum: std::array::from_fn(|i| lane(&sum[8 * i..8 * i + 8])),
        check: lane(&sum[32..40]),
        count,
    };
    let cells = sums.chunks_exact(CELL_SUM_BYTES).zip(counts).map(cell).collect();
    Ok(ReconcileMessage::Cells { round, shard, first, cells })
}

fn summary_to_proto(summary: &SetSummary) -> peer::SetSummary {
    let counters = summary.counters.iter().flat_map(|counters| counters.iter());
    peer::SetSummary {
        epoch: Bytes::copy_from_slice(&summary.epoch),
        head_seq: summary.head_seq,
        count: summary.count,
        fingerprint: Bytes::copy_from_slice(&summary.fingerprint),
        counters: counters.map(|counter| i64::from(*counter)).collect(),
        since: summary.since.map(|since| peer::Since {
            epoch: Bytes::copy_from_slice(&since.epoch),
            seq: since.seq,
        }),
        busy: summary.busy,
    }
}

fn summary_from_proto(message: peer::SetSummary) -> Result<SetSummary, WireError> {
    within("SetSummary.count", message.count, SET_COUNT_MAX)?;
    let counters = match message.counters.len() {
        0 => None,
        COUNTERS => {
            let mut counters = Box::new([0; COUNTERS]);
            for (counter, wide) in counters.iter_mut().zip(&message.counters) {
                *counter = i32::try_from(*wide).map_err(|_| WireError::OutOfBounds {
                    what: "SetSummary.counters",
                    got: wide.unsigned_abs(),
                    limit: i32::MAX.unsigned_abs().into(),
                })?;
            }
            Some(counters)
        }
        n => {
            let detail = format!("{n} counters, expected {COUNTERS} or none");
            return Err(WireError::Malformed { what: "SetSummary.counters", detail });
        }
    };
    let since = match message.since {
        None => None,
        Some(since) => Some(Since { epoch: exactly("Since.epoch", &since.epoch)?, seq: since.seq }),
    };
    Ok(SetSummary {
        epoch: exactly("SetSummary.epoch", &message.epoch)?,
        head_seq: message.head_seq,
        count: message.count,
        fingerprint: exactly("SetSummary.fingerprint", &message.fingerprint)?,
        counters,
        since,
        busy: message.busy,
    })
}

fn way_to_proto(way: Way) -> peer::plan::Way {
    match way {
        Way::Equal => peer::plan::Way::Equal,
        Way::Delta => peer::plan::Way::Delta,
        Way::Cells => peer::plan::Way::Cells,
        Way::List => peer::plan::Way::List,
        Way::Shards => peer::plan::Way::Shards,
        Way::Busy => peer::plan::Way::Busy,
    }
}

fn hash_to_proto(hash: &Hash) -> Bytes {
    Bytes::copy_from_slice(hash.as_bytes())
}

/// Encodes hashes; all of them share one allocation.
fn hashes_to_proto(hashes: &[Hash]) -> Vec<Bytes> {
    let all: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    let all = Bytes::from(all);
    (0..hashes.len()).map(|i| all.slice(i * Hash::LEN..(i + 1) * Hash::LEN)).collect()
}

fn hashes_from_proto(what: &'static str, hashes: &[Bytes]) -> Result<Vec<Hash>, WireError> {
    within(what, hashes.len() as u64, HASHES_PER_FRAME_MAX as u64)?;
    hashes.iter().map(|hash| exactly(what, hash).map(Hash)).collect()
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn decode<M: Message + Default>(what: &'static str, payload: Bytes) -> Result<M, WireError> {
    parse(what, payload, HASHES_PER_FRAME_MAX)
}

fn present<T>(what: &'static str, field: Option<T>) -> Result<T, WireError> {
    field.ok_or(WireError::Malformed { what, detail: "missing".into() })
}

fn exactly<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::Malformed {
        what,
        detail: format!("{} bytes, expected {N}", bytes.len()),
    })
}

fn within(what: &'static str, got: u64, limit: u64) -> Result<(), WireError> {
    if got > limit {
        return Err(WireError::OutOfBounds { what, got, limit });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::limits::CONTROL_FRAME_BYTES_MAX;

    fn summary(counters: bool, since: Option<u64>) -> SetSummary {
        SetSummary {
            epoch: [1; 16],
            head_seq: 77,
            count: 70,
            fingerprint: [2; 32],
            counters: counters.then(|| Box::new(std::array::from_fn(|i| i as i32 - 64))),
            since: since.map(|seq| Since { epoch: [3; 16], seq }),
            busy: counters,
        }
    }

    fn hashes(n: usize) -> Vec<Hash> {
        (0..n).map(|i| Hash(*blake3::hash(&i.to_le_bytes()).as_bytes())).collect()
    }

    fn cell(n: u64) -> Cell {
        Cell { sum: [n, !n, n << 7, 0], check: !n >> 3, count: n.cast_signed() - 5 }
    }

    fn messages() -> Vec<ReconcileMessage> {
        let round = 9;
        let plan = |way, nonce| ReconcileMessage::Plan {
            round,
            way,
            summary: summary(false, None),
            retry_ms: 3,
            nonce,
            estimate: 1 << 40,
        };
        vec![
            ReconcileMessage::Compare { round, summary: summary(true, Some(5)) },
            plan(Way::Equal, None),
            plan(Way::Delta, None),
            plan(Way::Cells, None),
            plan(Way::List, None),
            plan(Way::Shards, Some([8; 16])),
            plan(Way::Busy, None),
            ReconcileMessage::Cells {
                round,
                shard: 3,
                first: 1024,
                cells: (0..CELLS_PER_FRAME_MAX as u64).map(cell).collect(),
            },
            ReconcileMessage::More { round, shard: 1, first: 5, n: SKETCH_CELLS as u32 },
            ReconcileMessage::Decoded { round, lacking: hashes(HASHES_PER_FRAME_MAX) },
            ReconcileMessage::Rekey { round, nonce: [7; 16], shard_bits: SHARD_BITS_MAX },
            ReconcileMessage::Pull { round, from: Cursor::Seq(0) },
            ReconcileMessage::Pull { round, from: Cursor::Hash(None) },
            ReconcileMessage::Pull { round, from: Cursor::Hash(Some(Hash([0; 32]))) },
            ReconcileMessage::Page { round, hashes: hashes(3), more: true, next_seq: u64::MAX },
            ReconcileMessage::Done { round, incomplete: true },
        ]
    }

    #[test]
    fn every_message_comes_back_as_itself_and_fits_its_frame() {
        for message in messages() {
            let (kind, payload) = encode_reconcile(&message);
            assert!(payload.len() <= CONTROL_FRAME_BYTES_MAX as usize / 8, "{kind:?}");
            assert_eq!(decode_reconcile(kind, payload), Ok(Some(message)));
        }
        for summary in [summary(true, None), summary(false, Some(1))] {
            assert_eq!(decode_set_summary(encode_set_summary(&summary)), Ok(summary));
        }
    }

    #[test]
    fn frames_of_other_kinds_are_left_to_others() {
        assert_eq!(decode_reconcile(Kind::Hello, Bytes::new()), Ok(None));
    }

    #[test]
    fn each_bound_is_refused_one_beyond_it() {
        let too_long_lists = [
            ReconcileMessage::Decoded { round: 1, lacking: hashes(HASHES_PER_FRAME_MAX + 1) },
            ReconcileMessage::Page {
                round: 1,
                hashes: hashes(HASHES_PER_FRAME_MAX + 1),
                more: false,
                next_seq: 0,
            },
            ReconcileMessage::Cells {
                round: 1,
                shard: 0,
                first: 0,
                cells: vec![cell(1); CELLS_PER_FRAME_MAX + 1],
            },
            ReconcileMessage::More { round: 1, shard: 0, first: 0, n: SKETCH_CELLS as u32 + 1 },
            ReconcileMessage::More { round: 1, shard: 0, first: SKETCH_CELLS as u32 + 1, n: 1 },
            ReconcileMessage::Rekey { round: 1, nonce: [0; 16], shard_bits: SHARD_BITS_MAX + 1 },
            ReconcileMessage::Compare {
                round: 1,
                summary: SetSummary { count: SET_COUNT_MAX + 1, ..summary(true, None) },
            },
        ];
        for message in too_long_lists {
            let (kind, payload) = encode_reconcile(&message);
            let refused = decode_reconcile(kind, payload);
            assert!(matches!(refused, Err(WireError::OutOfBounds { .. })), "{kind:?}");
        }
    }

    #[test]
    fn fields_of_a_wrong_length_or_missing_are_refused() {
        let good = summary_to_proto(&summary(true, Some(1)));
        let bad_summaries = [
            peer::SetSummary { epoch: vec![0; 15].into(), ..good.clone() },
            peer::SetSummary { epoch: vec![0; 17].into(), ..good.clone() },
            peer::SetSummary { fingerprint: vec![0; 31].into(), ..good.clone() },
            peer::SetSummary { counters: vec![0; COUNTERS - 1], ..good.clone() },
            peer::SetSummary { counters: vec![0; COUNTERS + 1], ..good.clone() },
            peer::SetSummary {
                since: Some(peer::Since { epoch: Bytes::new(), seq: 0 }),
                ..good.clone()
            },
        ];
        for bad in bad_summaries {
            let refused = decode_set_summary(bytes(&bad));
            assert!(matches!(refused, Err(WireError::Malformed { .. })), "{bad:?}");
        }
        let huge = peer::SetSummary { counters: vec![1 << 31; COUNTERS], ..good.clone() };
        let refused = decode_set_summary(bytes(&huge));
        assert!(matches!(refused, Err(WireError::OutOfBounds { .. })));

        let no_summary = peer::Compare { round: 1, summary: None };
        let unknown_way = peer::Plan { way: 7, summary: Some(good.clone()), ..Default::default() };
        let short_nonce = peer::Plan {
            way: peer::plan::Way::Shards.into(),
            summary: Some(good),
            nonce: vec![0; 15].into(),
            ..Default::default()
        };
        let short_hash = peer::Page { hashes: vec![vec![0; 31].into()], ..Default::default() };
        let uneven =
            peer::Cells { sums: vec![0; 79].into(), counts: vec![0; 2], ..Default::default() };
        for (kind, payload) in [
            (Kind::Compare, bytes(&no_summary)),
            (Kind::Plan, bytes(&unknown_way)),
            (Kind::Plan, bytes(&short_nonce)),
            (Kind::Page, bytes(&short_hash)),
            (Kind::Cells, bytes(&uneven)),
            (Kind::Pull, bytes(&peer::Pull { round: 1, from: None })),
        ] {
            let refused = decode_reconcile(kind, payload);
            assert!(matches!(refused, Err(WireError::Malformed { .. })), "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn cut_and_flipped_payloads_never_panic(
            which in 0usize..16,
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
            bits in 1u8..,
        ) {
            let (kind, payload) = encode_reconcile(&messages()[which]);
            let _ = decode_reconcile(kind, payload.slice(..cut.index(payload.len() + 1)));
            let mut flipped = payload.to_vec();
            let at = flip.index(flipped.len());
            flipped[at] ^= bits;
            let _ = decode_reconcile(kind, flipped.into());
        }
    }
}
