//! One large asset from several peers at once.

use super::batch::Cut;
use super::hostile::{Script, receive_from};
use super::*;
use crate::core::limits::SHARED_BYTES_MIN;
use crate::wire::batch::{Label, Offer, OfferEntry, Piece, Want};

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const SIZE: u64 = SHARED_BYTES_MIN + 8 * 1024 * 1024 + 12_345;

/// Two devices that hold the asset, and one that lacks it.
async fn three() -> ([Side; 2], Side, Digest) {
    let bytes = content(1, SIZE);
    let sources = [Side::new(BLAKE3), Side::new(BLAKE3)];
    sources[0].hold(bytes.clone()).await;
    let digest = sources[1].hold(bytes).await;
    (sources, Side::new(BLAKE3), digest)
}

async fn send(
    from: &Side,
    to: &Side,
    digest: Digest,
) -> (Result<Vec<Outcome>, TransferError>, Receipt) {
    exchange(from, to, &[digest], false).await
}

/// `from` sends to `to`, and its stream breaks after this many bytes.
async fn send_cut(
    from: &Side,
    to: &Side,
    digest: Digest,
    cut: usize,
) -> (Result<Vec<Outcome>, TransferError>, Receipt) {
    let ((r, w), (r2, w2)) = pipe();
    let w = Cut { to: w, left: cut };
    let digests = [digest];
    tokio::join!(
        send_batch(&from.ctx, r, w, &digests, true, false, &from.counters),
        receive_batch(&to.ctx, r2, w2, all, &to.counters),
    )
}

/// A scripted source beside an honest one; returns the result of each.
async fn beside_honest<F: Future>(
    honest: &Side,
    to: &Side,
    digest: Digest,
    script: impl FnOnce(Script) -> F,
) -> (Receipt, (Result<Vec<Outcome>, TransferError>, Receipt)) {
    let (ours, (r, w)) = pipe();
    let scripted = receive_batch(&to.ctx, r, w, all, &to.counters);
    let (receipt, _, sent) =
        tokio::join!(scripted, script(Script::new(ours)), send(honest, to, digest),);
    (receipt, sent)
}

async fn wanted(script: &mut Script, digest: Digest) -> Want {
    let offer = Offer { entries: vec![OfferEntry { digest, inline: false }], solicited: false };
    let frame = script.reader.read().await.unwrap().unwrap();
    assert_eq!(frame.kind, Kind::Want);
    Want::decode(frame.payload, &offer).unwrap()
}

#[tokio::test]
async fn two_sources_each_send_a_part() {
    let ([a, b], to, digest) = three().await;
    let ((sent_a, receipt_a), (sent_b, receipt_b)) =
        tokio::join!(send(&a, &to, digest), send(&b, &to, digest));
    assert_eq!(sent_a.unwrap(), [Outcome::Stored]);
    assert_eq!(sent_b.unwrap(), [Outcome::Stored]);
    receipt_a.end.unwrap();
    receipt_b.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    let (of_a, of_b) = (a.counters.sent_bytes(), b.counters.sent_bytes());
    assert_eq!(of_a + of_b, SIZE);
    assert!(of_a.min(of_b) > SIZE / 8, "{of_a} and {of_b}");
    assert_eq!(to.counters.received_bytes(), SIZE);
    for side in [&a, &b, &to] {
        let counters = &side.counters;
        assert_eq!((counters.left_to_send_bytes(), counters.left_to_receive_bytes()), (0, 0));
    }
}

#[tokio::test]
async fn one_source_alone_sends_all_in_spans_also_from_a_store_without_outboards() {
    for is_foreign in [false, true] {
        let ([a, _], to, digest) = three().await;
        a.store.is_foreign.store(is_foreign, Ordering::SeqCst);
        let (sent, receipt) = send(&a, &to, digest).await;
        assert_eq!(sent.unwrap(), [Outcome::Stored]);
        receipt.end.unwrap();
        assert!(to.holds_whole(&digest).await);
        assert_eq!(a.counters.sent_bytes(), SIZE);
    }
}

#[tokio::test]
async fn a_source_that_breaks_off_leaves_its_rest_to_the_other() {
    let ([a, b], to, digest) = three().await;
    let ((_, cut), (sent, receipt)) =
        tokio::join!(send_cut(&a, &to, digest, 3_000_000), send(&b, &to, digest));
    assert!(!cut.end.unwrap_err().is_violation());
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    assert!(a.counters.sent_bytes() > 0);
    assert_eq!(to.counters.received_bytes(), SIZE);
}

#[tokio::test]
async fn what_both_sources_left_is_fetched_from_either_after_a_restart() {
    let ([a, b], mut to, digest) = three().await;
    let ((_, one), (_, other)) =
        tokio::join!(send_cut(&a, &to, digest, 3_000_000), send_cut(&b, &to, digest, 5_000_000),);
    one.end.unwrap_err();
    other.end.unwrap_err();
    let first = to.counters.received_bytes();
    assert!(first > 7_000_000);
    let folder = to.dir.path().join("partials");
    to.ctx.partials = Partials::open(&folder, SystemTime::now()).unwrap();
    to.ctx.gatherings = Gatherings::default();
    let before = b.counters.sent_bytes();
    let (sent, receipt) = send(&b, &to, digest).await;
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    let second = b.counters.sent_bytes() - before;
    assert!(first + second <= SIZE, "{first} + {second}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_stalls_is_left_behind() {
    let ([a, b], to, digest) = three().await;
    let (stalled, (sent, receipt)) = beside_honest(&b, &to, digest, async |mut script| {
        script.offer(&[(digest, false)]).await;
        let want = wanted(&mut script, digest).await;
        assert!(want.more && want.entries.len() == 1);
        // It sends nothing until the other side gives up.
        while let Ok(Some(_)) = script.reader.read().await {}
    })
    .await;
    assert!(matches!(stalled.end, Err(TransferError::LeftBehind(_))), "{:?}", stalled.end);
    assert_eq!(outcomes(&stalled), [Outcome::Interrupted]);
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    assert_eq!((a.counters.sent_bytes(), b.counters.sent_bytes()), (0, SIZE));
}

#[tokio::test]
async fn of_a_source_that_sends_wrong_bytes_the_good_ones_are_kept_and_another_sends_the_rest() {
    let ([_, b], to, digest) = three().await;
    let bytes = content(1, SIZE);
    let began = tokio::time::Instant::now();
    let (liar, (sent, receipt)) = beside_honest(&b, &to, digest, async |mut script| {
        script.offer(&[(digest, false)]).await;
        let start = wanted(&mut script, digest).await.entries[0].range.start;
        script.piece(0, &bytes, start, start + PIECE_BYTES, |_| {}).await;
        let next = start + PIECE_BYTES;
        let spoil = |piece: &mut Piece| {
            let mut encoded = piece.encoded.to_vec();
            *encoded.last_mut().unwrap() ^= 1;
            piece.encoded = encoded.into();
        };
        script.piece(0, &bytes, next, next + PIECE_BYTES, spoil).await;
        while let Ok(Some(_)) = script.reader.read().await {}
    })
    .await;
    assert!(matches!(liar.end, Err(TransferError::Corrupt(_))), "{:?}", liar.end);
    assert!(matches!(outcomes(&liar)[..], [Outcome::Refused(_)]));
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    assert!(began.elapsed() < READ_STALL, "it is found out before it says more");
    let lied = 2 * PIECE_BYTES - 16 * 1024;
    assert_eq!(b.counters.sent_bytes(), SIZE - lied);
}

#[tokio::test]
async fn a_source_whose_copy_has_rotted_says_so_and_another_sends_the_rest() {
    let ([a, b], to, digest) = three().await;
    // At an offset that is requested late if one source is requested to send everything.
    a.store.rotten.lock().unwrap().insert(digest.hash, 3 * 1024 * 1024);
    let (rotten, _) = send(&a, &Side::new(BLAKE3), digest).await;
    assert_eq!(rotten.unwrap(), [Outcome::Damaged]);
    let ((rotten, receipt_a), (sent, receipt)) =
        tokio::join!(send(&a, &to, digest), send(&b, &to, digest));
    assert_eq!(rotten.unwrap(), [Outcome::Unavailable], "it rests");
    assert_eq!(outcomes(&receipt_a), [Outcome::Unavailable]);
    receipt_a.end.unwrap();
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
}

#[tokio::test(start_paused = true)]
async fn who_says_another_size_than_the_first_holds_up_nobody() {
    for lie_bytes in [SIZE + 1, SIZE / 4, 1 << 40] {
        let ([_, b], to, digest) = three().await;
        let lie = Digest { size_bytes: lie_bytes, ..digest };
        let (liar, (sent, receipt)) = beside_honest(&b, &to, digest, async |mut script| {
            script.offer(&[(lie, false)]).await;
            while let Ok(Some(_)) = script.reader.read().await {}
        })
        .await;
        assert_eq!(sent.unwrap(), [Outcome::Stored]);
        receipt.end.unwrap();
        assert!(!matches!(outcomes(&liar)[..], [Outcome::Stored]));
        assert!(to.holds_whole(&digest).await);
        assert_eq!(std::fs::read_dir(to.dir.path().join("partials")).unwrap().count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_asset_not_worth_two_sources_is_taken_over_from_one_that_stalls() {
    let bytes = content(7, SHARED_BYTES_MIN / 2);
    let (honest, to) = (Side::new(BLAKE3), Side::new(BLAKE3));
    let digest = honest.hold(bytes.clone()).await;
    let (ours, (r, w)) = pipe();
    let begun = tokio::sync::Notify::new();
    let script = async {
        let mut script = Script::new(ours);
        script.offer(&[(digest, false)]).await;
        let want = wanted(&mut script, digest).await;
        assert!(!want.more && want.entries[0].range == (0..digest.size_bytes));
        script.piece(0, &bytes, 0, PIECE_BYTES, |_| {}).await;
        begun.notify_one();
        while let Ok(Some(_)) = script.reader.read().await {}
    };
    let honest_sends = async {
        begun.notified().await;
        send(&honest, &to, digest).await
    };
    let scripted = receive_batch(&to.ctx, r, w, all, &to.counters);
    let (stalled, (), (sent, receipt)) = tokio::join!(scripted, script, honest_sends);
    assert_eq!(outcomes(&stalled), [Outcome::Interrupted]);
    assert!(!stalled.end.unwrap_err().is_violation());
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    assert_eq!(honest.counters.sent_bytes(), digest.size_bytes - PIECE_BYTES);
}

#[tokio::test]
async fn with_sha256_nobody_has_to_finish_what_a_liar_began() {
    let bytes = content(8, 4 * PIECE_BYTES);
    let (honest, mut to) = (Side::new(HashAlgorithm::Sha256), Side::new(HashAlgorithm::Sha256));
    let digest = honest.hold(bytes).await;
    let (liar, other) = (NodeId([1; 32]), NodeId([2; 32]));
    to.ctx = to.ctx.with_peer(liar);
    let lied = receive_from(&to, async |mut script| {
        script.offer(&[(digest, false)]).await;
        let encoded = bytes::Bytes::from(vec![7; PIECE_BYTES as usize]);
        let length_bytes = PIECE_BYTES as u32;
        let label = Label::Entry(0);
        let piece = Piece { label, offset_bytes: 0, length_bytes, encoded };
        script.write(Kind::Piece, &piece.encode()).await;
        // The scripted source's stream ends here.
        drop(script.writer);
        while let Ok(Some(_)) = script.reader.read().await {}
    })
    .await;
    assert_eq!(outcomes(&lied), [Outcome::Interrupted]);
    assert!(!lied.end.unwrap_err().is_violation());
    to.ctx = to.ctx.with_peer(other);
    let (sent, receipt) = send(&honest, &to, digest).await;
    assert_eq!(sent.unwrap(), [Outcome::Stored]);
    receipt.end.unwrap();
    assert!(to.holds_whole(&digest).await);
    assert_eq!(honest.counters.sent_bytes(), digest.size_bytes, "all of it is its own");
    assert_eq!(std::fs::read_dir(to.dir.path().join("partials")).unwrap().count(), 0);
}
