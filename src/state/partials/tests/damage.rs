//! Damage in transit, at the sender or on the disk is found, and costs no more than it must.

use super::*;

#[test]
fn a_flipped_bit_is_caught_at_its_group_and_the_groups_before_are_kept() {
    let sender = Sender::new(PIECE + 5 * GROUP + 100);
    let groups = sender.content.len().div_ceil(GROUP);
    for group in 0..groups {
        let folder = Folder::new();
        let partial = start(&folder.open(), sender.digest);
        let wrong = group * GROUP;
        let piece = wrong / PIECE * PIECE;
        while (prefix_bytes(&partial) as usize) < piece {
            sender.send(&partial, PIECE).unwrap();
        }
        let mut encoded = sender.encode(piece, PIECE);
        let length = sender.end(piece, PIECE) - piece;
        let good = &sender.content[wrong..sender.end(wrong, 64)];
        let at = encoded.windows(good.len()).position(|w| w == good).unwrap();
        encoded[at] ^= 0x10;
        let refused = partial.write_piece(piece as u64, length as u64, &encoded);
        match refused {
            Err(PieceError::Corrupt { offset_bytes }) => assert_eq!(offset_bytes, wrong as u64),
            other => panic!("group {group}: {other:?}"),
        }
        assert_eq!(prefix_bytes(&partial), wrong as u64);
        let held = fs::read(folder.file(&sender.digest, CONTENT_SUFFIX)).unwrap();
        assert_eq!(held, sender.content[..wrong], "nothing unverified is written");
        sender.send_all(&partial, PIECE);
        sender.assert_finishes(partial);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_piece_is_caught() {
    let sender = Sender::new(4 * GROUP + 10);
    let encoded = sender.encode(2 * GROUP, 2 * GROUP);
    for byte in (0..encoded.len()).step_by(61).chain(0..256) {
        let folder = Folder::new();
        let partial = start(&folder.open(), sender.digest);
        sender.send(&partial, 2 * GROUP).unwrap();
        let mut wrong = encoded.clone();
        wrong[byte] ^= 1;
        let refused = partial.write_piece(2 * GROUP_BYTES, 2 * GROUP_BYTES, &wrong);
        assert!(matches!(refused, Err(PieceError::Corrupt { .. })), "{byte}");
        let held = prefix_bytes(&partial) as usize;
        let content = fs::read(folder.file(&sender.digest, CONTENT_SUFFIX)).unwrap();
        assert_eq!(content, sender.content[..held], "{byte}");
    }
}

#[test]
fn pieces_cut_short_padded_or_of_another_asset_are_corrupt() {
    let sender = Sender::new(PIECE);
    let other = Sender::of(vec![7; PIECE].into());
    let good = sender.encode(0, PIECE);
    let padded = [&good[..], &[0]].concat();
    for (wrong, held) in [
        (&good[..0], 0),
        (&good[..good.len() - 1], PIECE - GROUP),
        (&padded[..], PIECE),
        (&other.encode(0, PIECE)[..], 0),
    ] {
        let folder = Folder::new();
        let partial = start(&folder.open(), sender.digest);
        let refused = partial.write_piece(0, PIECE as u64, wrong);
        assert!(matches!(refused, Err(PieceError::Corrupt { .. })));
        assert_eq!(prefix_bytes(&partial), held as u64);
    }
}

#[test]
fn a_lie_about_the_size_never_completes() {
    let sender = Sender::new(6 * GROUP);
    for size_bytes in [1, 4, 5, 7, 8, 100].map(|groups| groups * GROUP_BYTES) {
        let folder = Folder::new();
        let lie = Digest { size_bytes, ..sender.digest };
        let partial = start(&folder.open(), lie);
        while sender.send(&partial, GROUP).is_ok() && !partial.is_complete() {}
        assert!(!partial.is_complete(), "{size_bytes}");
    }
    let true_size = sender.digest.size_bytes;
    for size_bytes in [true_size - 1, true_size + 1] {
        let folder = Folder::new();
        let lie = Digest { size_bytes, ..sender.digest };
        let partial = start(&folder.open(), lie);
        sender.send(&partial, GROUP).unwrap();
        let rest = sender.encode(GROUP, 5 * GROUP);
        let refused = partial.write_piece(GROUP_BYTES, size_bytes - GROUP_BYTES, &rest);
        assert!(matches!(refused, Err(PieceError::Corrupt { .. })));
        assert!(!partial.is_complete());
    }
}

#[test]
fn a_lie_about_the_size_costs_nothing_of_what_is_held() {
    let folder = Folder::new();
    let sender = Sender::new(6 * PIECE);
    let true_size = sender.digest.size_bytes;
    sender.send(&start(&folder.open(), sender.digest), 3 * PIECE).unwrap();
    for size_bytes in [1, GROUP_BYTES, true_size - 1, true_size + 1, 100 * true_size] {
        drop(start(&folder.open(), Digest { size_bytes, ..sender.digest }));
        let held_bytes = prefix_bytes(&start(&folder.open(), sender.digest));
        assert_eq!(held_bytes, 3 * PIECE as u64, "after a lie of {size_bytes}");
    }
}

#[test]
fn pieces_out_of_place_are_refused() {
    let sender = Sender::new(4 * GROUP + 10);
    let folder = Folder::new();
    let partial = start(&folder.open(), sender.digest);
    sender.send(&partial, GROUP).unwrap();
    let piece = sender.encode(2 * GROUP, GROUP);
    for (offset, length) in [
        (GROUP_BYTES + 1, GROUP_BYTES),
        (GROUP_BYTES, 100),
        (GROUP_BYTES, 0),
        (GROUP_BYTES, u64::MAX),
        (GROUP_BYTES, 4 * GROUP_BYTES),
    ] {
        let refused = partial.write_piece(offset, length, &piece);
        assert!(matches!(refused, Err(PieceError::Misplaced { .. })), "{offset} {length}");
    }
    assert_eq!(prefix_bytes(&partial), GROUP_BYTES);
    let refused = partial.finish();
    assert!(matches!(refused, Err(FinishError::Incomplete { .. })));
    assert_eq!(prefix_bytes(&start(&folder.open(), sender.digest)), GROUP_BYTES);
}

#[test]
fn of_what_was_damaged_in_the_middle_the_rest_stays() {
    let sender = Sender::new(4 * PIECE);
    let folder = Folder::new();
    let partial = start(&folder.open(), sender.digest);
    for piece in [3, 1] {
        sender.send_at(&partial, piece * PIECE, PIECE).unwrap();
    }
    drop(partial);
    let wrong = (PIECE + 5 * GROUP) as u64;
    flip(&folder.file(&sender.digest, CONTENT_SUFFIX), wrong + 7);
    let partial = start(&folder.open(), sender.digest);
    let piece = PIECE as u64;
    let missing: Vec<_> = partial.missing().iter().collect();
    assert_eq!(missing, [0..piece, wrong..wrong + GROUP_BYTES, 2 * piece..3 * piece]);
    sender.send_all(&partial, PIECE);
    sender.assert_finishes(partial);
}

#[test]
fn a_damaged_file_brings_all_its_right_groups_and_nothing_else() {
    let sender = Sender::new(4 * PIECE + 3);
    let kept = Folder::new();
    let partial = start(&kept.open(), sender.digest);
    sender.send_all(&partial, PIECE);
    drop(partial);
    let wrong = (PIECE + 5 * GROUP) as u64;
    flip(&kept.file(&sender.digest, CONTENT_SUFFIX), wrong + 7);
    let cut_bytes = 4 * PIECE as u64 - 1;
    let content = kept.file(&sender.digest, CONTENT_SUFFIX);
    std::fs::File::options().write(true).open(&content).unwrap().set_len(cut_bytes).unwrap();
    let open = |suffix| std::fs::File::open(kept.file(&sender.digest, suffix)).unwrap();

    let folder = Folder::new();
    let partial = start(&folder.open(), sender.digest);
    sender.send_at(&partial, 2 * PIECE, PIECE).unwrap();
    for _ in 0..2 {
        partial.take_from(&open(CONTENT_SUFFIX), &open(OUTBOARD_SUFFIX)).unwrap();
        let missing: Vec<_> = partial.missing().iter().collect();
        let tail = 4 * PIECE as u64 - GROUP_BYTES..sender.digest.size_bytes;
        assert_eq!(missing, [wrong..wrong + GROUP_BYTES, tail]);
    }
    // It is verified like everything else after a restart.
    drop(partial);
    let partial = start(&folder.open(), sender.digest);
    assert_eq!(partial.missing().bytes(), 2 * GROUP_BYTES + 3);
    sender.send_all(&partial, PIECE);
    sender.assert_finishes(partial);
}

#[test]
fn a_wrong_group_in_the_middle_costs_what_follows_it_in_its_piece_and_nothing_else() {
    let sender = Sender::new(4 * PIECE);
    let folder = Folder::new();
    let partial = start(&folder.open(), sender.digest);
    sender.send_at(&partial, 3 * PIECE, PIECE).unwrap();
    let mut encoded = sender.encode(PIECE, PIECE);
    let wrong = PIECE + 6 * GROUP;
    let good = &sender.content[wrong..wrong + 64];
    let at = encoded.windows(good.len()).position(|window| window == good).unwrap();
    encoded[at] ^= 1;
    let refused = partial.write_piece(PIECE as u64, PIECE as u64, &encoded);
    assert!(
        matches!(refused, Err(PieceError::Corrupt { offset_bytes }) if offset_bytes == wrong as u64)
    );
    let missing: Vec<_> = partial.missing().iter().collect();
    assert_eq!(missing, [0..PIECE as u64, wrong as u64..3 * PIECE as u64]);
    // The partial lacks the same ranges after a restart, and other senders complete it.
    drop(partial);
    let partial = start(&folder.open(), sender.digest);
    assert_eq!(partial.missing().iter().collect::<Vec<_>>(), missing);
    sender.send_all(&partial, PIECE);
    sender.assert_finishes(partial);
}

#[test]
fn what_was_damaged_between_sessions_is_found_and_fetched_again() {
    let sender = Sender::new(2 * PIECE + 3);
    let groups = (2 * PIECE / GROUP) as u64;
    let mut damages: Vec<(&str, u64, Option<u64>)> = (0..groups)
        .map(|group| (CONTENT_SUFFIX, group * GROUP_BYTES + 5, Some(group * GROUP_BYTES)))
        .collect();
    let outboard = outboard_bytes(sender.digest.size_bytes);
    damages.extend((0..outboard).step_by(32).map(|at| (OUTBOARD_SUFFIX, at, None)));
    for (suffix, at, expected) in damages {
        let folder = Folder::new();
        let partial = start(&folder.open(), sender.digest);
        sender.send_all(&partial, PIECE);
        drop(partial);
        flip(&folder.file(&sender.digest, suffix), at);
        let partial = start(&folder.open(), sender.digest);
        let held = prefix_bytes(&partial);
        assert!(!partial.is_complete(), "{suffix} {at}");
        assert!(held.is_multiple_of(GROUP_BYTES));
        assert!(expected.is_none_or(|expected| held == expected), "{suffix} {at}: {held}");
        sender.send_all(&partial, PIECE);
        sender.assert_finishes(partial);
    }
}

#[test]
fn files_cut_or_lengthened_between_sessions_are_used_as_far_as_they_are_good() {
    let sender = Sender::new(2 * PIECE + 3);
    for suffix in [CONTENT_SUFFIX, OUTBOARD_SUFFIX] {
        for length in [0, 1, 63, 65, 1000, GROUP + 1, PIECE, PIECE + GROUP - 1, 9 * PIECE] {
            let folder = Folder::new();
            let partial = start(&folder.open(), sender.digest);
            sender.send(&partial, PIECE).unwrap();
            sender.send(&partial, 2 * GROUP).unwrap();
            drop(partial);
            let file =
                OpenOptions::new().write(true).open(folder.file(&sender.digest, suffix)).unwrap();
            file.set_len(length as u64).unwrap();
            let partial = start(&folder.open(), sender.digest);
            let held = prefix_bytes(&partial) as usize;
            assert!(held <= PIECE + 2 * GROUP);
            if suffix == CONTENT_SUFFIX {
                assert_eq!(held, (length / GROUP * GROUP).min(PIECE + 2 * GROUP));
            }
            sender.send_all(&partial, PIECE);
            sender.assert_finishes(partial);
        }
    }
}

#[test]
fn what_rotted_at_the_sender_is_not_sent() {
    let sender = Sender::new(4 * PIECE);
    let mut content = sender.content[PIECE..2 * PIECE].to_vec();
    content[3 * GROUP + 5] ^= 1;
    let offset = PIECE as u64;
    let refused = encode_piece(&sender.digest, offset, &content, Some(&sender.outboard));
    let rotten = offset + 3 * GROUP_BYTES;
    match refused {
        Err(EncodeError::Damaged { offset_bytes }) => assert_eq!(offset_bytes, rotten),
        other => panic!("{other:?}"),
    }
    for at in (0..outboard_bytes(sender.digest.size_bytes)).step_by(32) {
        let mut byte = [0];
        sender.outboard.read_exact_at(&mut byte, at).unwrap();
        sender.outboard.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let any_refused = (0..4).any(|piece| {
            let content = &sender.content[piece * PIECE..(piece + 1) * PIECE];
            let offset = (piece * PIECE) as u64;
            let encoded = encode_piece(&sender.digest, offset, content, Some(&sender.outboard));
            matches!(encoded, Err(EncodeError::Damaged { .. }))
        });
        assert!(any_refused, "{at}");
        sender.outboard.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn a_link_in_place_of_a_partial_is_not_followed() {
    let folder = Folder::new();
    let victim = tempfile::NamedTempFile::new().unwrap();
    fs::write(victim.path(), "precious").unwrap();
    let sender = Sender::new(GROUP);
    let link = folder.file(&sender.digest, CONTENT_SUFFIX);
    std::os::unix::fs::symlink(victim.path(), link).unwrap();
    let refused = folder.open().start(sender.digest, HashAlgorithm::Blake3);
    assert!(matches!(refused, Err(OpenError::Io { .. })));
    assert_eq!(fs::read(victim.path()).unwrap(), b"precious");
}
