//! One side against a peer that breaks the protocol: scripted, silent, gone or random.

use proptest::prelude::*;
use prost::Message;
use tokio::io::AsyncReadExt;

use super::*;
use crate::bao;
use crate::core::limits::OFFER_ENTRIES_MAX;
use crate::transfer::outcome::is_large;
use crate::wire::batch::{
    Content, Label, Offer, OfferEntry, Piece, Want, WantEntry, encode_ack, encode_contents,
    encode_drop,
};
use crate::wire::frame::Header;
use crate::wire::proto::peer;

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const GROUP: u64 = 16 * 1024;
const LARGE: u64 = 2 * PIECE_BYTES + GROUP + 7;

/// A peer that writes and reads the frames of a test's script.
pub(super) struct Script {
    pub(super) reader: FrameReader<DuplexStream>,
    pub(super) writer: FrameWriter<DuplexStream>,
}

impl Script {
    pub(super) fn new((reader, writer): Ends) -> Self {
        let reader = FrameReader::new(reader, None);
        Self { reader, writer: FrameWriter::new(writer, WRITE_STALL) }
    }

    /// Ignores errors, because the other side may have given up: tests check that side's result.
    pub(super) async fn write(&mut self, kind: Kind, message: &impl Message) {
        let _ = self.writer.write(kind, message).await;
        let _ = self.writer.flush().await;
    }

    pub(super) async fn offer(&mut self, digests: &[(Digest, bool)]) {
        let entries =
            digests.iter().map(|&(digest, inline)| OfferEntry { digest, inline }).collect();
        self.write(Kind::Offer, &Offer { entries, solicited: false }.encode()).await;
    }

    async fn content(&mut self, index: usize, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        let content = Content { label: Label::Entry(index), bytes };
        self.write(Kind::Contents, &encode_contents(vec![content])).await;
    }

    /// Sends the piece of `content` from `start` to `end` with its proof, after `spoil` has changed
    /// it.
    pub(super) async fn piece(
        &mut self,
        index: usize,
        content: &[u8],
        start: u64,
        end: u64,
        spoil: impl FnOnce(&mut Piece),
    ) {
        let digest = digest(BLAKE3, content);
        let mut outboard = tempfile::tempfile().unwrap();
        bao::build_outboard(content, digest.size_bytes, &mut outboard).unwrap();
        let bytes = &content[start as usize..end as usize];
        let encoded = bao::encode_piece(&digest, start, bytes, Some(&outboard)).unwrap();
        let mut piece = Piece {
            label: Label::Entry(index),
            offset_bytes: start,
            length_bytes: bytes.len() as u32,
            encoded: encoded.into(),
        };
        spoil(&mut piece);
        self.write(Kind::Piece, &piece.encode()).await;
    }

    async fn done(mut self) -> Option<Frame> {
        self.write(Kind::Done, &peer::Done {}).await;
        let Self { mut reader, writer } = self;
        let _ = writer.finish().await;
        loop {
            match reader.read().await {
                Ok(Some(frame)) if frame.kind == Kind::Ack => return Some(frame),
                Ok(Some(_)) => {}
                _ => return None,
            }
        }
    }
}

/// Runs a scripted sender against the receiver `to`, which wants everything, and returns the
/// receiver's result.
pub(super) async fn receive_from<F: Future>(
    to: &Side,
    script: impl FnOnce(Script) -> F,
) -> Receipt {
    let (ours, theirs) = pipe();
    let (r, w) = theirs;
    let receiving = receive_batch(&to.ctx, r, w, all, &to.counters);
    tokio::join!(receiving, script(Script::new(ours))).0
}

fn assert_violation(receipt: &Receipt, what: &str) {
    match &receipt.end {
        Err(e) => assert!(e.is_violation(), "{what}: {e}"),
        Ok(()) => panic!("{what} was accepted"),
    }
}

#[tokio::test]
async fn wrong_content_under_a_right_hash_is_refused_and_the_rest_stored() {
    for algorithm in [HashAlgorithm::Blake3, HashAlgorithm::Sha256] {
        let to = Side::new(algorithm);
        let [a, b, c] = [1, 2, 3].map(|seed| content(seed, 1000));
        let digests = [&a, &b, &c].map(|content| (digest(algorithm, content), true));
        let receipt = receive_from(&to, async |mut script| {
            script.offer(&digests).await;
            script.content(0, &a).await;
            script.content(1, &a).await;
            script.content(2, &c).await;
            let ack = script.done().await.unwrap();
            let ack = peer::Ack::decode(ack.payload).unwrap();
            let outcomes: Vec<_> = ack.entries.iter().map(peer::AckEntry::outcome).collect();
            use peer::ack::Outcome::{Refused, Stored};
            assert_eq!(outcomes, [Stored, Refused, Stored]);
        })
        .await;
        assert_violation(&receipt, "wrong content");
        assert!(matches!(
            outcomes(&receipt)[..],
            [Outcome::Stored, Outcome::Refused(_), Outcome::Stored]
        ));
        assert!(to.holds_whole(&digests[0].0).await && to.holds_whole(&digests[2].0).await);
        assert!(!to.holds(&digests[1].0).await);
    }
}

#[tokio::test]
async fn a_content_shorter_or_longer_than_offered_is_refused() {
    for lie in [-1, 1] {
        let to = Side::new(BLAKE3);
        let bytes = content(1, 1000);
        let mut offered = digest(BLAKE3, &bytes);
        offered.size_bytes = offered.size_bytes.strict_add_signed(lie);
        let receipt = receive_from(&to, async |mut script| {
            script.offer(&[(offered, true)]).await;
            script.content(0, &bytes).await;
            script.done().await
        })
        .await;
        assert_violation(&receipt, "a size lie");
        assert!(!to.holds(&offered).await);
    }
}

#[tokio::test]
async fn a_bit_flipped_in_any_group_stops_the_asset_there_and_good_groups_are_kept() {
    let large = content(9, LARGE);
    let small = content(10, 50);
    let digests = [(digest(BLAKE3, &large), false), (digest(BLAKE3, &small), true)];
    for group in 0..LARGE.div_ceil(GROUP) {
        let to = Side::new(BLAKE3);
        let receipt = receive_from(&to, async |mut script| {
            script.offer(&digests).await;
            for start in (0..LARGE).step_by(PIECE_BYTES as usize) {
                let end = LARGE.min(start + PIECE_BYTES);
                let hit = (start..end).contains(&(group * GROUP));
                let flip = |piece: &mut Piece| {
                    if hit {
                        // Groups are in order with hash pairs between them: count from the end.
                        let from_end = (end - LARGE.min(group * GROUP + GROUP)) as usize;
                        let pairs = piece.encoded.len() - piece.length_bytes as usize;
                        let mut encoded = piece.encoded.to_vec();
                        let last = encoded.len() - 1 - from_end;
                        encoded[last.saturating_sub(if from_end > 0 { pairs } else { 0 })] ^= 1;
                        piece.encoded = encoded.into();
                    }
                };
                script.piece(0, &large, start, end, flip).await;
            }
            script.content(1, &small).await;
            script.done().await.unwrap()
        })
        .await;
        assert_violation(&receipt, "a flipped bit");
        assert!(matches!(outcomes(&receipt)[..], [Outcome::Refused(_), Outcome::Stored]));
        assert!(!to.holds(&digests[0].0).await);
        // What is kept is right: the pieces before the flipped bit and some groups.
        let partial = to.ctx.partials.start(digests[0].0, BLAKE3).unwrap();
        let kept = partial.missing().first().unwrap().start;
        let piece_start = group * GROUP / PIECE_BYTES * PIECE_BYTES;
        assert!((piece_start..=group * GROUP).contains(&kept), "group {group}: {kept}");
    }
}

#[tokio::test]
async fn with_sha256_a_wrong_large_content_is_refused_when_whole_and_nothing_is_kept() {
    let to = Side::new(HashAlgorithm::Sha256);
    let mut bytes = content(1, LARGE);
    let offered = digest(HashAlgorithm::Sha256, &bytes);
    bytes[5] ^= 1;
    let receipt = receive_from(&to, async |mut script| {
        script.offer(&[(offered, false)]).await;
        for (n, chunk) in bytes.chunks(PIECE_BYTES as usize).enumerate() {
            let piece = Piece {
                label: Label::Entry(0),
                offset_bytes: n as u64 * PIECE_BYTES,
                length_bytes: chunk.len() as u32,
                encoded: Bytes::copy_from_slice(chunk),
            };
            script.write(Kind::Piece, &piece.encode()).await;
        }
        script.done().await.unwrap()
    })
    .await;
    assert_violation(&receipt, "a wrong content");
    let partial = to.ctx.partials.start(offered, HashAlgorithm::Sha256).unwrap();
    assert_eq!(partial.missing().bytes(), LARGE);
}

#[tokio::test]
async fn frames_out_of_place_end_the_stream_and_what_arrived_is_stored() {
    let [a, b] = [1, 2].map(|seed| content(seed, 1000));
    let large = content(3, LARGE);
    let [da, db, dl] = [&a, &b, &large].map(|content| digest(BLAKE3, content));
    for case in 0..14 {
        let to = Side::new(BLAKE3);
        to.note(&[db]);
        let receipt = receive_from(&to, async |mut script| {
            if case == 0 {
                script.content(0, &a).await;
            }
            // `b` is known, so it is neither inline nor wanted.
            script.offer(&[(da, true), (db, false), (dl, false)]).await;
            script.content(0, &a).await;
            match case {
                0 => {}
                1 => script.offer(&[(da, true)]).await,
                2 => script.content(0, &a).await,
                3 => script.content(1, &b).await,
                4 => script.content(2, &a).await,
                5 => script.content(3, &a).await,
                6 => script.piece(0, &large, 0, PIECE_BYTES, |_| {}).await,
                7 => script.piece(2, &large, PIECE_BYTES, 2 * PIECE_BYTES, |_| {}).await,
                8 => {
                    script.piece(2, &large, 0, PIECE_BYTES, |_| {}).await;
                    script.piece(2, &large, 0, PIECE_BYTES, |_| {}).await;
                }
                9 => {
                    let beyond = |piece: &mut Piece| piece.length_bytes += 1;
                    script.piece(2, &large, 0, PIECE_BYTES, beyond).await;
                }
                10 => script.write(Kind::Drop, &encode_drop(0)).await,
                11 => script.write(Kind::Drop, &encode_drop(3)).await,
                12 => script.write(Kind::Want, &Want::default().encode()).await,
                // Done, although the large asset was not sent.
                _ => {}
            }
            script.done().await
        })
        .await;
        assert_violation(&receipt, &format!("case {case}"));
        assert_eq!(to.holds(&da).await, case != 0, "case {case}");
        assert_eq!(to.counters.left_to_receive_bytes(), 0);
    }
}

#[tokio::test]
async fn what_follows_done_is_a_violation_and_what_came_before_it_stored() {
    let to = Side::new(BLAKE3);
    let bytes = content(1, 1000);
    let offered = digest(BLAKE3, &bytes);
    let receipt = receive_from(&to, async |mut script| {
        script.offer(&[(offered, true)]).await;
        script.content(0, &bytes).await;
        script.write(Kind::Done, &peer::Done {}).await;
        script.done().await
    })
    .await;
    assert_violation(&receipt, "a frame after Done");
    assert!(to.holds_whole(&offered).await);
}

#[tokio::test]
async fn a_stream_that_ends_before_done_is_no_violation_and_keeps_what_arrived() {
    let to = Side::new(BLAKE3);
    let bytes = content(1, 1000);
    let offered = digest(BLAKE3, &bytes);
    let receipt = receive_from(&to, async |mut script| {
        script.offer(&[(offered, true)]).await;
        script.content(0, &bytes).await;
    })
    .await;
    assert!(matches!(receipt.end, Err(TransferError::Ended("Done"))));
    assert!(to.holds_whole(&offered).await);
}

#[tokio::test]
async fn frames_that_break_the_framing_or_the_encoding_are_violations() {
    let mut unknown = Header::encode(Kind::Offer, 1).to_vec();
    unknown[0] = 99;
    unknown.push(0);
    let mut malformed = Header::encode(Kind::Offer, 3).to_vec();
    malformed.extend([0xff; 3]);
    let mut flood = Header::encode(Kind::Offer, 1024 * 1024).to_vec();
    flood.extend([0x0a, 0].repeat(512 * 1024));
    let too_long = Header::encode(Kind::Offer, u32::MAX).to_vec();
    for bytes in [unknown, malformed, flood, too_long] {
        let to = Side::new(BLAKE3);
        let (r, w) = (&bytes[..], tokio::io::sink());
        let receipt = receive_batch(&to.ctx, r, w, all, &to.counters).await;
        assert_violation(&receipt, "broken bytes");
        assert!(receipt.received.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_opened_and_left_silent_is_given_up_soon() {
    let to = Side::new(BLAKE3);
    let began = tokio::time::Instant::now();
    let receipt = receive_from(&to, async |mut script| {
        // Keeps the stream open until the receiver gives up.
        let _ = script.reader.read().await;
    })
    .await;
    assert!(matches!(receipt.end, Err(TransferError::Overdue { what: "Offer", .. })));
    assert_eq!(began.elapsed(), OFFER_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_falls_silent_in_a_batch_is_given_up_and_what_came_is_stored() {
    let to = Side::new(BLAKE3);
    let bytes = content(1, 1000);
    let (offered, missing) = (digest(BLAKE3, &bytes), digest(BLAKE3, b"missing"));
    let receipt = receive_from(&to, async |mut script| {
        script.offer(&[(offered, true), (missing, true)]).await;
        script.content(0, &bytes).await;
        while let Ok(Some(_)) = script.reader.read().await {}
    })
    .await;
    assert!(matches!(receipt.end, Err(TransferError::Frame(FrameError::Stalled(_)))));
    assert!(to.holds_whole(&offered).await);
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_only_says_it_is_alive_is_given_up_in_the_end() {
    let to = Side::new(BLAKE3);
    let bytes = content(1, 1000);
    let digests = [(digest(BLAKE3, &bytes), true)];
    let receipt = receive_from(&to, async |mut script| {
        script.offer(&digests).await;
        // The pipe breaks when the other side gives up.
        while keep_alive(&mut script.writer).await.is_ok() {
            tokio::time::sleep(KEEP_ALIVE).await;
        }
    })
    .await;
    assert!(matches!(receipt.end, Err(TransferError::Overdue { .. })), "{:?}", receipt.end);
    assert_eq!(outcomes(&receipt), [Outcome::Interrupted]);
}

#[tokio::test]
async fn a_failed_asset_is_read_to_its_end_only_when_that_is_short() {
    let to = Side::new(BLAKE3);
    let large = content(1, DISCARD_BYTES_MAX + 3 * PIECE_BYTES);
    let receipt = receive_from(&to, async |mut script| {
        script.offer(&[(digest(BLAKE3, &large), false)]).await;
        let flip = |piece: &mut Piece| piece.encoded = vec![0; piece.encoded.len()].into();
        script.piece(0, &large, 0, PIECE_BYTES, flip).await;
        // Nothing is verified any more: only the length counts.
        for start in (PIECE_BYTES..large.len() as u64).step_by(PIECE_BYTES as usize) {
            let piece = Piece {
                label: Label::Entry(0),
                offset_bytes: start,
                length_bytes: PIECE_BYTES as u32,
                encoded: Bytes::new(),
            };
            script.write(Kind::Piece, &piece.encode()).await;
        }
    })
    .await;
    assert!(matches!(receipt.end, Err(TransferError::Corrupt(_))), "{:?}", receipt.end);
    assert!(to.counters.received_bytes() <= DISCARD_BYTES_MAX + 3 * PIECE_BYTES);
}

// --- the sender's side --------------------------------------------------------------------------

/// The result of a sender of `digests` against a scripted receiver.
async fn send_to<F: Future>(
    from: &Side,
    digests: &[Digest],
    script: impl FnOnce(Script) -> F,
) -> Result<Vec<Outcome>, TransferError> {
    let ((r, w), theirs) = pipe();
    let sending = send_batch(&from.ctx, r, w, digests, false, true, &from.counters);
    tokio::join!(sending, script(Script::new(theirs))).0
}

#[tokio::test]
async fn a_want_of_what_was_not_offered_is_a_violation() {
    let (from, digests) = Side::holding(BLAKE3, &[10, LARGE]).await;
    let want = |index, offset_bytes| peer::WantEntry { index, offset_bytes, length_bytes: 0 };
    for entries in [
        vec![want(2, 0)],
        vec![want(0, 0)],
        vec![want(1, 0), want(1, 0)],
        vec![want(1, LARGE)],
        vec![want(1, GROUP - 1)],
        vec![want(1, 0); OFFER_ENTRIES_MAX + 1],
    ] {
        let sent = send_to(&from, &digests, async |mut script| {
            let want = peer::Want { entries: entries.clone(), more: false };
            script.write(Kind::Want, &want).await;
            while let Ok(Some(_)) = script.reader.read().await {}
        })
        .await;
        assert!(sent.unwrap_err().is_violation(), "{:?}", &entries[..1]);
    }
}

#[tokio::test]
async fn an_ack_that_is_too_short_too_long_or_too_early_is_a_violation() {
    let (from, digests) = Side::holding(BLAKE3, &[10, 20, LARGE]).await;
    for (verdicts, is_early) in [(2, false), (4, false), (3, true)] {
        let sent = send_to(&from, &digests, async |mut script| {
            if !is_early {
                script.write(Kind::Want, &Want::default().encode()).await;
                while script.reader.read().await.unwrap().unwrap().kind != Kind::Done {}
            }
            let verdicts = vec![Verdict::Stored; verdicts];
            script.write(Kind::Ack, &encode_ack(verdicts.iter().map(|v| (None, v)))).await;
            while let Ok(Some(_)) = script.reader.read().await {}
        })
        .await;
        assert!(sent.unwrap_err().is_violation());
    }
}

#[tokio::test]
async fn without_an_ack_nothing_counts_as_sent() {
    let (from, digests) = Side::holding(BLAKE3, &[10]).await;
    let sent = send_to(&from, &digests, async |mut script| {
        while script.reader.read().await.unwrap().unwrap().kind != Kind::Done {}
    })
    .await;
    assert!(matches!(sent, Err(TransferError::Ended("Ack"))));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_takes_or_answers_nothing_is_given_up() {
    let (from, digests) = Side::holding(BLAKE3, &[10, LARGE]).await;
    for takes_the_offer in [true, false] {
        let began = tokio::time::Instant::now();
        let ((r, w), (mut r2, w2)) = pipe();
        let script = async {
            let _w2 = w2;
            if takes_the_offer {
                let mut sink = Vec::new();
                let _ = r2.read_to_end(&mut sink).await;
            } else {
                tokio::time::sleep(READ_STALL + WRITE_STALL).await;
            }
        };
        let sending = send_batch(&from.ctx, r, w, &digests, false, true, &from.counters);
        let (sent, ()) = tokio::join!(
            async {
                let sent = sending.await;
                assert!(began.elapsed() <= WRITE_STALL);
                sent
            },
            script
        );
        let stalled = sent.unwrap_err();
        assert!(matches!(stalled, TransferError::Frame(FrameError::Stalled(_))), "{stalled}");
    }
}

// --- random bytes -------------------------------------------------------------------------------

/// The bytes that an honest sender of these assets writes when everything is wanted.
async fn recorded(digests: &[Digest], from: &Side) -> Vec<u8> {
    let ((r, w), (mut r2, w2)) = pipe();
    let sending = send_batch(&from.ctx, r, w, digests, false, true, &from.counters);
    let recording = async {
        let mut writer = FrameWriter::new(w2, WRITE_STALL);
        let entries = digests
            .iter()
            .enumerate()
            .filter(|(_, digest)| is_large(digest))
            .map(|(index, digest)| WantEntry { index, range: 0..digest.size_bytes })
            .collect();
        let want = Want { entries, more: false };
        writer.write(Kind::Want, &want.encode()).await.unwrap();
        writer.flush().await.unwrap();
        let mut bytes = Vec::new();
        r2.read_to_end(&mut bytes).await.unwrap();
        bytes
    };
    tokio::join!(sending, recording).1
}

#[derive(Debug, Clone)]
enum Harm {
    Flip(usize, u8),
    Cut(usize),
    Swap(usize, usize, usize),
    Insert(usize, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<usize>();
    prop_oneof![
        4 => (at, 0u8..8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        1 => at.prop_map(Harm::Cut),
        2 => (at, at, 1usize..5000).prop_map(|(a, b, n)| Harm::Swap(a, b, n)),
        2 => (at, proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, new)| Harm::Insert(at, new)),
    ]
}

fn apply(bytes: &mut Vec<u8>, harm: Harm) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match harm {
        // Most of a session is content, so every second flip is in its first kilobyte.
        Harm::Flip(at, bit) if at % 2 == 0 => bytes[at / 2 % length.min(1000)] ^= 1 << bit,
        Harm::Flip(at, bit) => bytes[at % length] ^= 1 << bit,
        Harm::Cut(at) => bytes.truncate(at % length),
        Harm::Swap(a, b, n) => {
            let n = n.min(length / 2);
            let (a, b) = (a % (length - n + 1), b % (length - n + 1));
            let moved: Vec<u8> = bytes[a..a + n].to_vec();
            bytes.copy_within(b..b + n, a);
            bytes[b..b + n].copy_from_slice(&moved);
        }
        Harm::Insert(at, new) => {
            let at = at % length;
            bytes.splice(at..at, new);
        }
    }
}

#[test]
fn a_session_harmed_at_random_stores_only_right_bytes_and_never_panics() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (from, digests) = runtime.block_on(Side::holding(BLAKE3, &[0, 10, 500, LARGE]));
    let session = runtime.block_on(recorded(&digests, &from));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(48));
    let harms = proptest::collection::vec(harm(), 1..4);
    runner
        .run(&harms, |harms| {
            let mut bytes = session.clone();
            harms.into_iter().for_each(|harm| apply(&mut bytes, harm));
            runtime.block_on(async {
                let to = Side::new(BLAKE3);
                let reader = &bytes[..];
                let receipt =
                    receive_batch(&to.ctx, reader, tokio::io::sink(), all, &to.counters).await;
                for received in &receipt.received {
                    let is_stored = received.outcome == Outcome::Stored;
                    assert_eq!(is_stored, to.holds_whole(&received.digest).await);
                }
                assert_eq!(to.counters.left_to_receive_bytes(), 0);
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_bytes_never_panic_a_sender_or_a_receiver() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (side, digests) = runtime.block_on(Side::holding(BLAKE3, &[10, LARGE]));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    // A plausible first byte and length, so that payloads are decoded.
    let frame =
        (32u8..39, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(kind, body)| {
            let mut bytes = vec![kind, 0, 0, 0, body.len() as u8];
            bytes.extend(body);
            bytes
        });
    let frames = proptest::collection::vec(frame, 0..6);
    runner
        .run(&frames, |frames| {
            let bytes = frames.concat();
            runtime.block_on(async {
                let Side { ctx, counters, .. } = &side;
                let _ = receive_batch(ctx, &bytes[..], tokio::io::sink(), all, counters).await;
                let sink = super::batch::Cut { to: tokio::io::sink(), left: usize::MAX };
                let sent = send_batch(ctx, &bytes[..], sink, &digests, false, true, counters).await;
                drop(sent);
            });
            Ok(())
        })
        .unwrap();
}
