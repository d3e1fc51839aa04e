//! What the batch codec decodes, and what it refuses.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::core::limits::{CONTENT_FRAME_BYTES_MAX, CONTROL_FRAME_BYTES_MAX};
use proptest::prelude::*;

const SMALL: u64 = 256 * 1024;

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn digest(n: u64, size_bytes: u64) -> Digest {
    let mut hash = [0; 32];
    hash[24..].copy_from_slice(&n.to_be_bytes());
    Digest { hash: Hash(hash), size_bytes }
}

fn offer(sizes: &[u64]) -> Offer {
    let entries = sizes.iter().enumerate();
    let entries =
        entries.map(|(n, size)| OfferEntry { digest: digest(n as u64, *size), inline: *size < 9 });
    Offer { entries: entries.collect(), solicited: true }
}

#[test]
fn an_offer_comes_back_as_it_was() {
    let offer = offer(&[0, 1, SMALL, SMALL + 1, ASSET_BYTES_MAX]);
    assert_eq!(Offer::decode(bytes(&offer.encode()), SMALL), Ok(offer));
}

#[test]
fn an_offer_at_each_bound_is_read_and_one_beyond_it_is_refused() {
    let read = |offer: &Offer| Offer::decode(bytes(&offer.encode()), SMALL).is_ok();
    assert!(read(&offer(&[100; OFFER_ENTRIES_MAX])));
    assert!(!read(&offer(&[100; OFFER_ENTRIES_MAX + 1])));
    assert!(read(&offer(&[SMALL + 1; OFFER_LARGE_MAX])));
    assert!(!read(&offer(&[SMALL + 1; OFFER_LARGE_MAX + 1])));
    assert!(!read(&offer(&[ASSET_BYTES_MAX + 1])));
    let mut inline = offer(&[SMALL; (INLINE_BYTES_MAX / SMALL) as usize]);
    inline.entries.iter_mut().for_each(|e| e.inline = true);
    assert!(read(&inline));
    inline.entries.push(OfferEntry { digest: digest(9999, 1), inline: true });
    assert!(!read(&inline));
    let mut large = offer(&[SMALL + 1]);
    large.entries[0].inline = true;
    assert!(!read(&large));
}

#[test]
fn an_offer_that_names_an_asset_twice_or_not_at_all_is_refused() {
    let mut twice = offer(&[5, 5]);
    twice.entries[1].digest.hash = twice.entries[0].digest.hash;
    assert!(Offer::decode(bytes(&twice.encode()), SMALL).is_err());
    let mut nameless = offer(&[5]).encode();
    nameless.entries[0].hash = Bytes::from_static(&[1; 31]);
    assert!(Offer::decode(bytes(&nameless), SMALL).is_err());
}

#[test]
fn only_what_was_offered_can_be_wanted_and_only_once() {
    let offer = offer(&[5, 100, SMALL * 2 + 5]);
    let want =
        |entries: &[(usize, u64, u64)]| {
            let entries = entries.iter().map(|&(index, offset_bytes, length_bytes)| {
                peer::WantEntry { index: index as u32, offset_bytes, length_bytes }
            });
            let want = peer::Want { entries: entries.collect(), more: true };
            Want::decode(bytes(&want), &offer).is_ok()
        };
    const GROUP: u64 = PIECE_ALIGN_BYTES;
    assert!(want(&[(1, 0, 0), (2, GROUP, 0)]));
    assert!(want(&[(2, GROUP, 3 * GROUP)]));
    assert!(want(&[(2, GROUP, SMALL * 2 + 5 - GROUP)]), "to its end");
    assert!(want(&[]));
    assert!(!want(&[(0, 0, 0)]), "inline");
    assert!(!want(&[(1, 0, 0), (1, 0, 0)]), "twice");
    assert!(!want(&[(3, 0, 0)]), "not offered");
    assert!(!want(&[(2, 1, 0)]), "not aligned");
    assert!(!want(&[(2, GROUP, GROUP + 1)]), "not aligned at its end");
    assert!(!want(&[(2, SMALL * 2 + 5, 0)]), "past the end");
    assert!(!want(&[(2, GROUP, SMALL * 2)]), "beyond the end");
    assert!(!want(&[(2, GROUP, u64::MAX)]), "beyond the end");
}

#[test]
fn a_want_comes_back_as_it_was() {
    let offer = offer(&[5, 100, SMALL * 2 + 5]);
    let group = PIECE_ALIGN_BYTES;
    for (range, more) in [(0..SMALL * 2 + 5, false), (group..2 * group, true)] {
        let entries = vec![WantEntry { index: 2, range }, WantEntry { index: 1, range: 0..100 }];
        let want = Want { entries, more };
        assert_eq!(Want::decode(bytes(&want.encode()), &offer), Ok(want));
    }
}

#[test]
fn contents_and_pieces_come_back_under_both_namings() {
    let named = Label::Named(digest(7, 3));
    for (label, naming) in [(Label::Entry(4), Naming::Offered(5)), (named, Naming::Plain)] {
        let content = Content { label, bytes: Bytes::from_static(b"abc") };
        let message = encode_contents(vec![content.clone()]);
        assert_eq!(decode_contents(bytes(&message), naming), Ok(vec![content]));
        let piece = Piece {
            label,
            offset_bytes: 3 * PIECE_ALIGN_BYTES,
            length_bytes: 3,
            encoded: Bytes::from_static(b"abc"),
        };
        assert_eq!(Piece::decode(bytes(&piece.clone().encode()), naming), Ok(piece.clone()));
        let (head, encoded) = piece.clone().encode_apart();
        let apart = Bytes::from([&head[..], &encoded].concat());
        assert_eq!(Piece::decode(apart, naming), Ok(piece.clone()));
        assert_eq!(piece.end_bytes(), 3 * PIECE_ALIGN_BYTES + 3);
    }
}

#[test]
fn a_piece_out_of_bounds_is_refused() {
    let good = Piece {
        label: Label::Entry(0),
        offset_bytes: 0,
        length_bytes: PIECE_BYTES_MAX,
        encoded: Bytes::from(vec![0; PIECE_BYTES_MAX as usize + PIECE_PROOF_BYTES_MAX]),
    };
    let read = |piece: Piece| Piece::decode(bytes(&piece.encode()), Naming::Offered(1)).is_ok();
    assert!(read(good.clone()));
    assert!(!read(Piece { length_bytes: PIECE_BYTES_MAX + 1, ..good.clone() }));
    assert!(!read(Piece { length_bytes: 0, encoded: Bytes::new(), ..good.clone() }));
    assert!(!read(Piece { length_bytes: PIECE_BYTES_MAX - 1, ..good.clone() }));
    assert!(!read(Piece { offset_bytes: 1, ..good.clone() }));
    assert!(!read(Piece { offset_bytes: !(PIECE_ALIGN_BYTES - 1), ..good.clone() }));
    assert!(!read(Piece { label: Label::Entry(1), ..good }));
}

#[test]
fn a_piece_that_was_cut_off_is_read_as_far_as_it_came() {
    let piece = Piece {
        label: Label::Entry(300),
        offset_bytes: 7 * PIECE_ALIGN_BYTES,
        length_bytes: PIECE_BYTES_MAX,
        encoded: (0..1_000_u32).map(|n| n as u8).collect(),
    };
    let whole = bytes(&piece.clone().encode());
    for cut in 0..=whole.len() {
        let read = Piece::decode_cut_off(whole.slice(..cut), Naming::Offered(301));
        let came = 1_000_usize.saturating_sub(whole.len() - cut);
        match read {
            Some(read) => {
                let encoded = piece.encoded.slice(..came);
                assert_eq!(read, Piece { encoded, ..piece.clone() });
            }
            None => assert_eq!(came, 0, "{cut}"),
        }
    }
    assert_eq!(Piece::decode_cut_off(whole, Naming::Offered(300)), None, "not offered");
}

#[test]
fn the_longest_messages_fit_their_frames() {
    let long = "\u{10ffff}".repeat(REASON_CHARS_MAX + 10);
    let verdicts = vec![Verdict::Later(long); OFFER_ENTRIES_MAX];
    let batch = encode_ack(verdicts.iter().map(|v| (Some(digest(1, 0).hash), v)));
    assert!(batch.encoded_len() <= CONTROL_FRAME_BYTES_MAX as usize);
    let longest = offer(&[ASSET_BYTES_MAX; OFFER_ENTRIES_MAX]).encode();
    assert!(longest.encoded_len() <= CONTROL_FRAME_BYTES_MAX as usize);
    let piece = PIECE_BYTES_MAX as usize + PIECE_PROOF_BYTES_MAX + 100;
    assert!(piece <= CONTENT_FRAME_BYTES_MAX as usize);
}

#[test]
fn verdicts_come_back_in_order_and_a_peers_reason_is_safe_to_print() {
    let verdicts = [
        Verdict::Stored,
        Verdict::AlreadyHeld,
        Verdict::Elsewhere,
        Verdict::Later("disk full".into()),
        Verdict::Refused("\u{1b}[31mre\u{202e}d\u{200b}\n".into()),
    ];
    let ack = bytes(&encode_ack(verdicts.iter().map(|v| (None, v))));
    let read = decode_ack(ack.clone(), 5).unwrap();
    assert_eq!(read[..4], verdicts[..4]);
    assert_eq!(read[4], Verdict::Refused("[31mred".into()));
    assert!(decode_ack(ack.clone(), 4).is_err());
    assert!(decode_ack(ack, 6).is_err());
    let unknown = peer::AckEntry { outcome: 77, ..Default::default() };
    assert!(decode_ack(bytes(&peer::Ack { entries: vec![unknown] }), 1).is_err());
}

#[test]
fn a_frame_of_a_million_empty_elements_is_refused_before_they_are_decoded() {
    let flood = Bytes::from([0x0a, 0].repeat(512 * 1024));
    assert!(Offer::decode(flood.clone(), SMALL).is_err());
    assert!(decode_contents(flood.clone(), Naming::Plain).is_err());
    assert!(Piece::decode(flood, Naming::Plain).is_err());
}

proptest! {
    #[test]
    fn random_bytes_are_read_or_refused_and_never_panic(
        payload in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let payload = Bytes::from(payload);
        let _ = Offer::decode(payload.clone(), SMALL);
        let _ = Want::decode(payload.clone(), &offer(&[0, 100, SMALL * 2]));
        for naming in [Naming::Offered(3), Naming::Plain] {
            let _ = decode_contents(payload.clone(), naming);
            let _ = Piece::decode(payload.clone(), naming);
            let _ = Piece::decode_cut_off(payload.clone(), naming);
        }
        let _ = decode_drop(payload.clone(), 3);
        let _ = decode_ack(payload, 3);
    }
}
