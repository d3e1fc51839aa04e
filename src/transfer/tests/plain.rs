//! The plain protocol, between honest sides and against scripted ones.

use proptest::prelude::*;
use prost::Message;

use super::hostile::Script;
use super::*;
use crate::bao;
use crate::transfer::plain::{PlainReport, receive_plain_live, run_plain, send_plain_live};
use crate::wire::batch::{Content, Label, Piece, encode_ack, encode_contents};
use crate::wire::plain::SetPage;

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const BOTH: [HashAlgorithm; 2] = [HashAlgorithm::Blake3, HashAlgorithm::Sha256];

type PlainResult = Result<PlainReport, TransferError>;

async fn run(side: &Side, (r, w): Ends) -> PlainResult {
    let reader = FrameReader::new(r, Some(READ_STALL));
    let writer = FrameWriter::new(w, WRITE_STALL);
    run_plain(&side.ctx, reader, writer, &side.counters).await
}

/// Runs both sides of one stream; afterwards each index knows what its store has stored.
async fn meet(a: &Side, b: &Side) -> (PlainResult, PlainResult) {
    let (a_ends, b_ends) = pipe();
    let results = tokio::join!(run(a, a_ends), run(b, b_ends));
    for (side, result) in [(a, &results.0), (b, &results.1)] {
        for received in result.iter().flat_map(|report| &report.received) {
            if received.outcome == Outcome::Stored {
                side.note(&[received.digest]);
            }
        }
    }
    results
}

async fn set(side: &Side) -> Vec<Hash> {
    let mut hashes = Vec::new();
    for entry in side.ctx.store.changes(0, 10_000).await.unwrap().entries {
        hashes.push(entry.digest.hash);
    }
    hashes.sort();
    hashes
}

#[tokio::test]
async fn two_different_stores_end_equal_in_one_meeting() {
    for algorithm in BOTH {
        let sizes = [0, 1, 100, PIECE_BYTES + 1, 3 * PIECE_BYTES, 5 * PIECE_BYTES];
        let (a, _) = Side::holding(algorithm, &sizes).await;
        let b = Side::new(algorithm);
        for (seed, size) in [(1, 1), (100, 7), (101, PIECE_BYTES * 4), (102, PIECE_BYTES * 2 + 1)] {
            b.hold(content(seed, size)).await;
        }
        let (of_a, of_b) = meet(&a, &b).await;
        let (of_a, of_b) = (of_a.unwrap(), of_b.unwrap());
        assert!(of_a.is_complete && of_b.is_complete);
        assert_eq!((of_a.sent.len(), of_b.sent.len()), (5, 3));
        for report in [&of_a, &of_b] {
            assert!(report.sent.iter().all(|(_, outcome)| *outcome == Outcome::Stored));
            assert!(report.received.iter().all(|r| r.outcome == Outcome::Stored));
        }
        assert_eq!(set(&a).await, set(&b).await);
        for (digest, _) in &of_a.sent {
            assert!(b.holds_whole(digest).await);
        }
        // Equal sets cost a page each way.
        let again = meet(&a, &b).await.0.unwrap();
        assert_eq!((again.sent.len(), again.received.len()), (0, 0));
    }
}

#[test]
fn any_two_stores_end_equal() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(10));
    let sides = proptest::collection::btree_set(0u64..60, 0..30);
    runner
        .run(&(sides.clone(), sides), |(in_a, in_b)| {
            runtime.block_on(async {
                let (a, b) = (Side::new(BLAKE3), Side::new(BLAKE3));
                for (side, held) in [(&a, &in_a), (&b, &in_b)] {
                    for seed in held {
                        side.hold(content(*seed, seed * seed * 150)).await;
                    }
                }
                let (of_a, of_b) = meet(&a, &b).await;
                let (of_a, of_b) = (of_a.unwrap(), of_b.unwrap());
                assert_eq!(of_a.sent.len(), in_a.difference(&in_b).count());
                assert_eq!(of_b.sent.len(), in_b.difference(&in_a).count());
                for (_, outcome) in of_a.sent.iter().chain(&of_b.sent) {
                    assert_eq!(*outcome, Outcome::Stored);
                }
                assert_eq!(set(&a).await, set(&b).await);
                assert_eq!(set(&a).await.len(), in_a.union(&in_b).count());
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn sets_of_many_pages_are_merged_as_they_pass() {
    let (a, b) = (Side::new(BLAKE3), Side::new(BLAKE3));
    let shared: Vec<_> = (0..9000u64).map(|n| digest(BLAKE3, &n.to_le_bytes())).collect();
    a.note(&shared);
    b.note(&shared);
    let only_a = a.hold(content(1, 10)).await;
    let only_b = b.hold(content(2, 20)).await;
    let (of_a, of_b) = meet(&a, &b).await;
    assert_eq!(of_a.unwrap().sent, [(only_a, Outcome::Stored)]);
    assert_eq!(of_b.unwrap().sent, [(only_b, Outcome::Stored)]);
}

#[tokio::test]
async fn what_has_rotted_or_does_not_fit_does_not_hold_up_the_rest() {
    for algorithm in BOTH {
        let sizes = [10, 20, PIECE_BYTES * 3, PIECE_BYTES * 3 + 1, PIECE_BYTES * 3 + 2];
        let (a, digests) = Side::holding(algorithm, &sizes).await;
        a.store.rotten.lock().unwrap().insert(digests[1].hash, 3);
        a.store.rotten.lock().unwrap().insert(digests[2].hash, PIECE_BYTES + 3);
        let b = Side::new(algorithm);
        let only_b = b.hold(content(50, 30)).await;
        let (of_a, of_b) = meet(&a, &b).await;
        let (of_a, of_b) = (of_a.unwrap(), of_b.unwrap());
        let sent: BTreeMap<_, _> = of_a.sent.into_iter().collect();
        use Outcome::{Damaged, Stored};
        let expected = [Stored, Damaged, Damaged, Stored, Stored];
        for (digest, expected) in digests.iter().zip(expected) {
            assert_eq!(sent[digest], expected);
            assert_eq!(b.holds(digest).await, expected == Stored);
        }
        assert_eq!(of_b.sent, [(only_b, Stored)]);
    }
    let (a, digests) = Side::holding(BLAKE3, &[10, PIECE_BYTES * 3]).await;
    let b = Side::new(BLAKE3);
    b.store.space_bytes.store(PIECE_BYTES, Ordering::SeqCst);
    let sent: BTreeMap<_, _> = meet(&a, &b).await.0.unwrap().sent.into_iter().collect();
    assert_eq!(sent[&digests[0]], Outcome::Stored);
    assert!(matches!(sent[&digests[1]], Outcome::Later(_)));
}

#[tokio::test]
async fn a_partial_asset_of_before_is_no_hindrance() {
    for algorithm in BOTH {
        let bytes = content(5, PIECE_BYTES * 3 + 5);
        let a = Side::new(algorithm);
        let asset = a.hold(bytes.clone()).await;
        let b = Side::new(algorithm);
        let partial = b.ctx.partials.start(asset, algorithm).unwrap();
        let first = &bytes[..PIECE_BYTES as usize];
        let encoded = match algorithm {
            HashAlgorithm::Sha256 => first.to_vec(),
            HashAlgorithm::Blake3 => {
                let mut outboard = tempfile::tempfile().unwrap();
                bao::build_outboard(&bytes[..], asset.size_bytes, &mut outboard).unwrap();
                bao::encode_piece(&asset, 0, first, Some(&outboard)).unwrap()
            }
        };
        partial.write_piece(0, PIECE_BYTES, &encoded).unwrap();
        drop(partial);
        let (of_a, _) = meet(&a, &b).await;
        assert_eq!(of_a.unwrap().sent, [(asset, Outcome::Stored)]);
        assert!(b.holds_whole(&asset).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_side_that_is_through_waits_for_one_whose_store_is_slow() {
    let (a, _) = Side::holding(BLAKE3, &[10, PIECE_BYTES * 2]).await;
    let b = Side::new(BLAKE3);
    b.hold(content(50, 30)).await;
    b.store.commit_takes_ms.store(120_000, Ordering::SeqCst);
    let (of_a, of_b) = meet(&a, &b).await;
    assert!(of_a.unwrap().sent.iter().all(|(_, outcome)| *outcome == Outcome::Stored));
    of_b.unwrap();
}

#[tokio::test]
async fn live_assets_go_on_a_stream_of_their_own() {
    for algorithm in BOTH {
        let (a, digests) = Side::holding(algorithm, &[0, 10, 20, PIECE_BYTES * 2]).await;
        let b = Side::new(algorithm);
        b.note(&digests[1..2]);
        let ((r, w), (r2, w2)) = pipe();
        let (sent, receipt) = tokio::join!(
            send_plain_live(&a.ctx, r, w, &digests, &a.counters),
            receive_plain_live(&b.ctx, r2, w2, &b.counters),
        );
        use Outcome::{AlreadyHeld, Stored};
        assert_eq!(sent.unwrap(), [Stored, AlreadyHeld, Stored, Stored]);
        receipt.end.unwrap();
        for index in [0, 2, 3] {
            assert!(b.holds_whole(&digests[index]).await);
        }
    }
}

// --- scripted peers -----------------------------------------------------------------------------

/// The result of `side` against a peer that writes these frames and reads everything.
async fn against(side: &Side, frames: Vec<(Kind, Vec<u8>)>) -> PlainResult {
    let (ours, (theirs, mut to_us)) = pipe();
    let script = async move {
        use tokio::io::AsyncWriteExt;
        for (kind, payload) in frames {
            let header = crate::wire::frame::Header::encode(kind, payload.len() as u32);
            let _ = to_us.write_all(&header).await;
            let _ = to_us.write_all(&payload).await;
        }
        drop(to_us);
    };
    let drain = async move {
        let mut theirs = theirs;
        let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
    };
    tokio::join!(run(side, ours), script, drain).0
}

fn page(hashes: &[Hash]) -> (Kind, Vec<u8>) {
    let page = SetPage { hashes: hashes.to_vec(), more: false };
    (Kind::Page, page.encode().encode_to_vec())
}

fn named(digest: Digest, bytes: &[u8]) -> (Kind, Vec<u8>) {
    let bytes = Bytes::copy_from_slice(bytes);
    let content = Content { label: Label::Named(digest), bytes };
    (Kind::Contents, encode_contents(vec![content]).encode_to_vec())
}

/// Sends only keep-alives for a while.
async fn rest(script: &mut Script, time: Duration) -> Result<(), TransferError> {
    for _ in 0..time.as_secs() / KEEP_ALIVE.as_secs() {
        keep_alive(&mut script.writer).await?;
        tokio::time::sleep(KEEP_ALIVE).await;
    }
    Ok(())
}

fn done() -> (Kind, Vec<u8>) {
    (Kind::Done, Vec::new())
}

#[tokio::test]
async fn a_peer_that_breaks_the_plain_protocol_is_found_out_and_good_assets_are_kept() {
    let good = content(1, 1000);
    let asset = digest(BLAKE3, &good);
    let other = digest(BLAKE3, b"other");
    let large = Digest { hash: other.hash, size_bytes: PIECE_BYTES * 2 };
    let piece = |offset_bytes| {
        let label = Label::Named(large);
        let encoded = Bytes::from(vec![0; PIECE_BYTES as usize]);
        let piece = Piece { label, offset_bytes, length_bytes: PIECE_BYTES as u32, encoded };
        (Kind::Piece, piece.encode().encode_to_vec())
    };
    let ack = (Kind::Ack, encode_ack([(Some(asset.hash), &Verdict::Stored)]).encode_to_vec());
    let too_large = content(2, crate::store::SMALL_BYTES_MAX + 1);
    let first_page = || page(&[]);
    let one = || named(asset, &good);
    for (what, frames) in [
        ("wrong bytes", vec![first_page(), one(), named(other, b"not it"), done()]),
        ("a content twice", vec![first_page(), one(), one(), done()]),
        (
            "a large content whole",
            vec![first_page(), one(), named(digest(BLAKE3, &too_large), &too_large)],
        ),
        ("a wrong piece", vec![first_page(), one(), piece(0), done()]),
        ("a piece from the middle", vec![first_page(), one(), piece(PIECE_BYTES), done()]),
        ("a page too many", vec![first_page(), one(), first_page()]),
        ("an ack of what was not sent", vec![first_page(), one(), done(), ack.clone()]),
        ("a Drop", vec![first_page(), one(), (Kind::Drop, Vec::new())]),
    ] {
        let side = Side::new(BLAKE3);
        let result = against(&side, frames).await;
        assert!(result.unwrap_err().is_violation(), "{what}");
        assert!(side.holds_whole(&asset).await, "{what}");
    }
    let descending = page(&[Hash([9; 32]), Hash([8; 32])]);
    let side = Side::new(BLAKE3);
    assert!(against(&side, vec![descending]).await.unwrap_err().is_violation());
    let side = Side::new(BLAKE3);
    assert!(!against(&side, vec![first_page(), one()]).await.unwrap_err().is_violation());
    assert!(side.holds_whole(&asset).await);
}

#[tokio::test(start_paused = true)]
async fn a_plain_peer_that_leaves_a_large_asset_lying_is_given_up_in_the_end() {
    let side = Side::new(BLAKE3);
    let bytes = content(1, PIECE_BYTES * 2);
    let large = digest(BLAKE3, &bytes);
    let mut outboard = tempfile::tempfile().unwrap();
    bao::build_outboard(&bytes[..], large.size_bytes, &mut outboard).unwrap();
    let first = &bytes[..PIECE_BYTES as usize];
    let encoded = bao::encode_piece(&large, 0, first, Some(&outboard)).unwrap();
    let (label, length_bytes) = (Label::Named(large), PIECE_BYTES as u32);
    let piece = Piece { label, offset_bytes: 0, length_bytes, encoded: encoded.into() };
    let (ours, theirs) = pipe();
    let script = async {
        let mut script = Script::new(theirs);
        script.write(Kind::Page, &SetPage { hashes: Vec::new(), more: false }.encode()).await;
        // With nothing begun, the peer may be idle for as long as it likes.
        rest(&mut script, ANSWER_WAIT * 2).await.unwrap();
        script.write(Kind::Piece, &piece.encode()).await;
        rest(&mut script, ANSWER_WAIT * 2).await.unwrap_err();
        script
    };
    let (result, _script) = tokio::join!(run(&side, ours), script);
    assert!(matches!(result, Err(TransferError::Overdue { .. })), "{result:?}");
}

#[tokio::test]
async fn what_is_not_acknowledged_is_not_taken_for_delivered() {
    let (side, digests) = Side::holding(BLAKE3, &[10]).await;
    let report = against(&side, vec![page(&[]), done()]).await.unwrap();
    assert!(matches!(&report.sent[..], [(d, Outcome::Later(_))] if *d == digests[0]));
}

#[test]
fn random_frames_never_panic_a_plain_side() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (side, _) = runtime.block_on(Side::holding(BLAKE3, &[10]));
    let kinds = prop_oneof![
        Just(Kind::Page),
        Just(Kind::Contents),
        Just(Kind::Piece),
        Just(Kind::Done),
        Just(Kind::Ack)
    ];
    let frame = (kinds, proptest::collection::vec(any::<u8>(), 0..80));
    let frames = proptest::collection::vec(frame, 0..6);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    runner
        .run(&frames, |mut frames| {
            frames.insert(0, page(&[]));
            let _ = runtime.block_on(against(&side, frames));
            Ok(())
        })
        .unwrap();
}
