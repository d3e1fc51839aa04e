//! A member that takes part badly in sending a large asset, beside an honest one. The asset arrives
//! as a whole, soon, and without being sent twice.

use std::fs::File;

use can_sync::bao;
use can_sync::core::ids::Digest;
use can_sync::store::{Metadata, VerifiedFile};
use tokio::time::Instant;

use super::*;

const SIZE: usize = 64 * 1024 * 1024;
const PIECE: usize = 256 * 1024;

/// A large asset and the devices of the scene.
struct Scene {
    victim: Device,
    honest: Device,
    bytes: Bytes,
    digest: Digest,
    outboard: File,
}

/// A hand-made batch of the member.
struct Batch {
    control: Control,
    send: SendStream,
    reader: FrameReader<RecvStream>,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let (victim, honest) = victim_and_honest().await;
        let bytes = content((1 << 60) + seed, SIZE);
        let digest = digest(HashAlgorithm::Blake3, &bytes);
        let mut outboard = tempfile::tempfile().unwrap();
        bao::build_outboard(&bytes[..], digest.size_bytes, &mut outboard).unwrap();
        Self { victim, honest, bytes, digest, outboard }
    }

    /// The member offers the asset; returns when a part is requested, and which one.
    async fn offer(&self, member: &Member) -> (Batch, peer::WantEntry) {
        let control = member.greet().await;
        let (mut send, recv) = control.connection.open_stream(0).await.unwrap();
        let entry = peer::OfferEntry {
            hash: Bytes::copy_from_slice(self.digest.hash.as_bytes()),
            size_bytes: self.digest.size_bytes,
            inline: false,
        };
        let offer = peer::Offer { entries: vec![entry], solicited: false };
        send.write_all(&frame(Kind::Offer, &offer.encode_to_vec())).await.unwrap();
        let mut reader = FrameReader::new(recv, Some(SOON));
        let want = reader.read().await.unwrap().unwrap();
        assert_eq!(want.kind, Kind::Want);
        let want = peer::Want::decode(want.payload).unwrap();
        assert!(want.more, "a part is asked for, not all");
        let entry = want.entries[0];
        assert!(entry.length_bytes < self.digest.size_bytes / 2);
        (Batch { control, send, reader }, entry)
    }

    /// Lets the honest device hold the asset as well.
    async fn honest_has_it(&self) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asset");
        std::fs::write(&path, &self.bytes).unwrap();
        let (digest, metadata) = (self.digest, Metadata::default());
        let file = VerifiedFile { digest, path, outboard: None, metadata, guard: None };
        self.honest.store().adopt(file).await.unwrap();
    }

    fn piece(&self, offset: usize) -> peer::Piece {
        let bytes = &self.bytes[offset..offset + PIECE];
        let encoded =
            bao::encode_piece(&self.digest, offset as u64, bytes, Some(&self.outboard)).unwrap();
        peer::Piece {
            index: 0,
            offset_bytes: offset as u64,
            length_bytes: PIECE as u32,
            encoded: encoded.into(),
            hash: Bytes::new(),
            size_bytes: 0,
        }
    }

    /// Checks that the victim gets the asset, with this many bytes from the honest device.
    async fn victim_gets_it(&self, from_honest: usize) {
        let (victim, honest) = (&self.victim, &self.honest);
        until("the asset arrives", &[victim, honest], async || {
            victim.hashes().await.contains(&self.digest.hash)
        })
        .await;
        common::group::quiet(&[victim, honest]).await;
        victim.verify().await;
        let received = victim.sees(honest).received_bytes as usize;
        let most = from_honest + SIZE / 20;
        assert!((from_honest..=most).contains(&received), "{received}, not {from_honest}");
    }
}

impl Batch {
    async fn piece(&mut self, piece: &peer::Piece) {
        self.send.write_all(&frame(Kind::Piece, &piece.encode_to_vec())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stalls_is_left_behind() {
    let _shared = PROCESS.read().await;
    let scene = Scene::new(1).await;
    let member = Member::join(&scene.victim).await;
    let (mut batch, _) = scene.offer(&member).await;
    let began = Instant::now();
    scene.honest_has_it().await;
    // Its stream ends long before it would be given up for silence, and it is not accused.
    while let Ok(Some(_)) = batch.reader.read().await {}
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(batch.control.connection.ended(), None);
    batch.control.connection.close(CloseCode::Ok, "");
    scene.victim_gets_it(SIZE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_member_that_breaks_off_what_it_sent_stays() {
    let _shared = PROCESS.read().await;
    let scene = Scene::new(2).await;
    let member = Member::join(&scene.victim).await;
    let (mut batch, wanted) = scene.offer(&member).await;
    for n in 0..3 {
        let piece = scene.piece(wanted.offset_bytes as usize + n * PIECE);
        batch.piece(&piece).await;
    }
    until("it has arrived", &[&scene.victim], async || {
        scene.victim.sees_node(member.net.node_id()).received_bytes == 3 * PIECE as u64
    })
    .await;
    scene.honest_has_it().await;
    until("the honest one takes part", &[&scene.victim], async || {
        scene.victim.sees(&scene.honest).received_bytes > 0
    })
    .await;
    batch.control.connection.close(CloseCode::Internal, "gone");
    scene.victim_gets_it(SIZE - 3 * PIECE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_sends_wrong_bytes_is_closed_and_the_good_ones_stay() {
    let _shared = PROCESS.read().await;
    let scene = Scene::new(3).await;
    let member = Member::join(&scene.victim).await;
    let (mut batch, wanted) = scene.offer(&member).await;
    scene.honest_has_it().await;
    let start = wanted.offset_bytes as usize;
    batch.piece(&scene.piece(start)).await;
    let mut wrong = scene.piece(start + PIECE);
    let mut encoded = wrong.encoded.to_vec();
    *encoded.last_mut().unwrap() ^= 1;
    wrong.encoded = encoded.into();
    batch.piece(&wrong).await;
    batch.control.closed_with(CloseCode::Protocol, "wrong bytes").await;
    // Everything in the second piece except its last group was right.
    scene.victim_gets_it(SIZE - 2 * PIECE + 16 * 1024).await;
    assert!(was_logged(&["the peer sent wrong bytes"]));
}
