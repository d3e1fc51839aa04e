//! What partial transfers guarantee, and what they cost (ignored by default).

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;

use super::folder::OUTBOARD_SUFFIX;
use super::*;
use crate::bao::{EncodeError, build_outboard, encode_piece, encode_piece_of_file};

mod damage;

const GROUP: usize = GROUP_BYTES as usize;
const PIECE: usize = 256 * 1024;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Partials {
        Partials::open(self.0.path(), SystemTime::now()).unwrap()
    }

    fn file(&self, digest: &Digest, suffix: &str) -> PathBuf {
        self.0.path().join(format!("{}{suffix}", Name::of(&Key::from(*digest))))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// An asset and its outboard at the sender.
struct Sender {
    content: Bytes,
    digest: Digest,
    outboard: File,
}

impl Sender {
    fn new(size_bytes: usize) -> Self {
        let mut content = vec![0; size_bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        Self::of(content.into())
    }

    fn of(content: Bytes) -> Self {
        let mut outboard = tempfile::tempfile().unwrap();
        let size_bytes = content.len() as u64;
        let hash = build_outboard(&content[..], size_bytes, &mut outboard).unwrap();
        assert_eq!(hash, HashAlgorithm::Blake3.hash(&content));
        assert_eq!(outboard.metadata().unwrap().len(), outboard_bytes(size_bytes));
        Self { content, digest: Digest { hash, size_bytes }, outboard }
    }

    fn end(&self, offset: usize, length: usize) -> usize {
        (offset + length).min(self.content.len())
    }

    fn encode(&self, offset: usize, length: usize) -> Vec<u8> {
        let content = &self.content[offset..self.end(offset, length)];
        encode_piece(&self.digest, offset as u64, content, Some(&self.outboard)).unwrap()
    }

    /// Sends the beginning of the first missing range.
    fn send(&self, partial: &Partial, length: usize) -> Result<(), PieceError> {
        let missing = partial.missing().first().unwrap();
        self.send_at(
            partial,
            missing.start as usize,
            length.min((missing.end - missing.start) as usize),
        )
    }

    fn send_at(&self, partial: &Partial, offset: usize, length: usize) -> Result<(), PieceError> {
        let got = self.end(offset, length) - offset;
        partial.write_piece(offset as u64, got as u64, &self.encode(offset, length))
    }

    fn send_all(&self, partial: &Partial, length: usize) {
        while !partial.is_complete() {
            self.send(partial, length).unwrap();
        }
    }

    fn assert_finishes(&self, partial: Partial) {
        let complete = partial.finish().unwrap();
        drop(partial);
        assert_eq!(complete.digest, self.digest);
        assert_eq!(fs::read(&complete.path).unwrap(), self.content);
        let mut outboard = vec![];
        (&self.outboard).rewind().unwrap();
        (&self.outboard).read_to_end(&mut outboard).unwrap();
        match &complete.outboard {
            Some(path) => assert_eq!(fs::read(path).unwrap(), outboard),
            None => assert!(outboard.is_empty()),
        }
    }
}

fn start(partials: &Partials, digest: Digest) -> Partial {
    partials.start(digest, HashAlgorithm::Blake3).unwrap()
}

/// The offset of the first byte that is not held.
fn prefix_bytes(partial: &Partial) -> u64 {
    partial.missing().first().map_or(partial.digest().size_bytes, |missing| missing.start)
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn assets_of_all_sizes_arrive_whole_with_their_outboard() {
    let sizes = [
        1,
        1023,
        1025,
        GROUP - 1,
        GROUP,
        GROUP + 1,
        2 * GROUP,
        3 * GROUP - 1,
        PIECE - 1,
        PIECE,
        PIECE + 1,
        5 * PIECE + 3 * GROUP + 7,
        (4 << 20) + 1,
    ];
    for size in sizes {
        let sender = Sender::new(size);
        for length in [GROUP, 3 * GROUP, PIECE, 1 << 20] {
            let folder = Folder::new();
            let partial = start(&folder.open(), sender.digest);
            sender.send_all(&partial, length);
            sender.assert_finishes(partial);
        }
    }
}

#[test]
fn a_small_asset_needs_no_outboard_and_a_larger_one_does() {
    for (size, ok) in [(1, true), (GROUP, true), (GROUP + 1, false)] {
        let sender = Sender::new(size);
        let encoded = encode_piece(&sender.digest, 0, &sender.content, None);
        match encoded {
            Ok(encoded) => assert!(ok && encoded == sender.content),
            Err(EncodeError::NoOutboard(_)) => assert!(!ok),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn an_empty_content_is_complete_only_under_its_own_hash() {
    let folder = Folder::new();
    let empty = Sender::new(0);
    empty.assert_finishes(start(&folder.open(), empty.digest));
    let lie = Digest { hash: Hash([1; 32]), size_bytes: 0 };
    let refused = start(&folder.open(), lie).finish();
    assert!(matches!(refused, Err(FinishError::Mismatch { .. })));
}

#[test]
fn a_transfer_goes_on_after_a_restart() {
    let sender = Sender::new(5 * PIECE + 3);
    let folder = Folder::new();
    for pieces in 0..5 {
        let partial = start(&folder.open(), sender.digest);
        let held = (pieces * PIECE) as u64;
        assert_eq!(prefix_bytes(&partial), held);
        sender.send(&partial, PIECE).unwrap();
    }
    let partial = start(&folder.open(), sender.digest);
    sender.send_all(&partial, PIECE);
    drop(partial);
    let partial = start(&folder.open(), sender.digest);
    assert!(partial.is_complete());
    sender.assert_finishes(partial);
}

#[test]
fn several_write_to_one_asset_at_a_time() {
    let sender = Sender::new(64 * PIECE + 5);
    let folder = Folder::new();
    let partial = start(&folder.open(), sender.digest);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (sender, partial) = (&sender, &partial);
            scope.spawn(move || {
                for piece in (writer..65).step_by(4) {
                    sender.send_at(partial, piece * PIECE, PIECE).unwrap();
                }
            });
        }
    });
    assert!(partial.is_complete());
    sender.assert_finishes(partial);
}

#[test]
fn a_file_gives_the_same_pieces_as_its_bytes() {
    let sender = Sender::new(2 * PIECE + 10);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&sender.content, 0).unwrap();
    let encode = |range, file: &File| {
        encode_piece_of_file(&sender.digest, range, file, Some(&sender.outboard))
    };
    for start in (0..sender.content.len()).step_by(PIECE) {
        let range = start as u64..sender.end(start, PIECE) as u64;
        assert_eq!(encode(range, &file).unwrap(), sender.encode(start, PIECE));
    }
    file.set_len(PIECE as u64 + 5).unwrap();
    let cut_off = encode(PIECE as u64..2 * PIECE as u64, &file);
    assert!(
        matches!(cut_off, Err(EncodeError::Damaged { offset_bytes }) if offset_bytes == PIECE as u64)
    );
    let unreadable = File::options().write(true).open("/dev/null").unwrap();
    let unreadable = encode(0..PIECE as u64, &unreadable);
    assert!(matches!(unreadable, Err(EncodeError::Content(_))));
}

#[test]
fn ranges_that_are_no_whole_groups_are_not_encoded() {
    let sender = Sender::new(4 * GROUP + 10);
    for (offset, length) in [(1, GROUP), (0, GROUP - 1), (0, 0), (4 * GROUP, 9)] {
        let content = &sender.content[offset..offset + length];
        let refused = encode_piece(&sender.digest, offset as u64, content, Some(&sender.outboard));
        assert!(matches!(refused, Err(EncodeError::Misaligned(_))), "{offset} {length}");
    }
    let beyond = encode_piece(&sender.digest, u64::MAX - 16383, &[1; 3], Some(&sender.outboard));
    assert!(matches!(beyond, Err(EncodeError::Misaligned(_))));
}

#[test]
fn an_outboard_of_a_content_that_is_too_short_or_too_long_is_not_built() {
    let content = [1; 2 * GROUP];
    for claimed in [2 * GROUP_BYTES - 1, 2 * GROUP_BYTES + 1] {
        let mut file = tempfile::tempfile().unwrap();
        build_outboard(&content[..], claimed, &mut file).unwrap_err();
    }
}

#[test]
fn with_sha256_the_content_is_checked_when_it_is_whole() {
    let folder = Folder::new();
    let content = Sender::new(PIECE + 100).content;
    let digest =
        Digest { hash: HashAlgorithm::Sha256.hash(&content), size_bytes: content.len() as u64 };
    let partials = folder.open();
    let begin = || partials.start(digest, HashAlgorithm::Sha256).unwrap();
    let partial = begin();
    partial.write_piece(0, GROUP_BYTES, &content[..GROUP]).unwrap();
    partial.write_piece(GROUP_BYTES, 100, &content[GROUP..GROUP + 100]).unwrap();
    let refused = partial.write_piece(GROUP_BYTES + 100, 101, &content[..100]);
    assert!(matches!(refused, Err(PieceError::Misplaced { .. })));
    drop(partial);
    let partial = begin();
    assert_eq!(prefix_bytes(&partial), GROUP_BYTES, "whole groups are resumed");
    let rest = &content[GROUP..];
    partial.write_piece(GROUP_BYTES, rest.len() as u64, rest).unwrap();
    let complete = partial.finish().unwrap();
    assert_eq!(fs::read(&complete.path).unwrap(), content);
    assert_eq!(complete.outboard, None);
    drop((complete, partial));

    let path = folder.file(&digest, CONTENT_SUFFIX);
    fs::remove_file(&path).unwrap();
    let partial = begin();
    let wrong = vec![0; content.len()];
    partial.write_piece(0, wrong.len() as u64, &wrong).unwrap();
    assert!(matches!(partial.finish(), Err(FinishError::Mismatch { .. })));
    assert!(!path.exists());
}

#[test]
fn an_asset_is_transferred_once_at_a_time() {
    let folder = Folder::new();
    let sender = Sender::new(GROUP);
    let partials = folder.open();
    let again = || partials.clone().start(sender.digest, HashAlgorithm::Blake3);
    let partial = start(&partials, sender.digest);
    assert!(matches!(again(), Err(OpenError::InUse(_))));
    sender.send_all(&partial, GROUP);
    let complete = partial.finish().unwrap();
    drop(partial);
    assert!(matches!(again(), Err(OpenError::InUse(_))), "until the store has it");
    drop(complete);
    again().unwrap();
}

#[test]
fn what_a_crash_left_on_its_way_through_the_folder_is_removed() {
    let folder = Folder::new();
    let sender = Sender::new(2 * GROUP);
    sender.send(&start(&folder.open(), sender.digest), GROUP).unwrap();
    let upload = folder.0.path().join(format!("{}.part", "0f".repeat(16)));
    fs::write(&upload, "half of it").unwrap();
    assert_eq!(prefix_bytes(&start(&folder.open(), sender.digest)), GROUP_BYTES);
    assert!(!upload.exists());
}

#[test]
fn only_a_partial_that_holds_nothing_is_taken_away_again() {
    let folder = Folder::new();
    let sender = Sender::new(2 * GROUP);
    drop(start(&folder.open(), sender.digest));
    assert_eq!(folder.names(), [""; 0]);
    let partial = start(&folder.open(), sender.digest);
    sender.send(&partial, GROUP).unwrap();
    drop(partial);
    assert_eq!(prefix_bytes(&start(&folder.open(), sender.digest)), GROUP_BYTES);
}

#[test]
fn a_partial_of_version_0_1_0_whose_name_tells_no_size_is_gone_on_with() {
    let folder = Folder::new();
    let sender = Sender::new(4 * GROUP);
    sender.send(&start(&folder.open(), sender.digest), GROUP).unwrap();
    for suffix in [CONTENT_SUFFIX, OUTBOARD_SUFFIX] {
        let unsized_name = format!("{}{suffix}", sender.digest.hash);
        fs::rename(folder.file(&sender.digest, suffix), folder.0.path().join(unsized_name))
            .unwrap();
    }
    let partial = start(&folder.open(), sender.digest);
    assert_eq!(prefix_bytes(&partial), GROUP_BYTES);
    sender.send_all(&partial, GROUP);
    sender.assert_finishes(partial);
    assert_eq!(folder.names().len(), 2);
}

#[test]
fn who_says_another_size_and_with_sha256_each_source_has_a_partial_of_its_own() {
    let folder = Folder::new();
    let partials = folder.open();
    let sender = Sender::new(2 * GROUP);
    let begin = |source: Option<u8>, size_bytes: u64| {
        let source = source.map(|n| NodeId([n; 32]));
        let digest = Digest { size_bytes, ..sender.digest };
        partials.start(Key { digest, source }, HashAlgorithm::Sha256).unwrap()
    };
    let size_bytes = sender.digest.size_bytes;
    let all = [(None, size_bytes), (None, 5), (Some(1), size_bytes), (Some(2), size_bytes)];
    let under_way = all.map(|(source, size_bytes)| begin(source, size_bytes));
    under_way[2].write_piece(0, GROUP_BYTES, &[0; GROUP]).unwrap();
    assert_eq!(partials.left_bytes(&sender.digest.hash), Some(5));
    let needed_bytes = under_way.each_ref().map(Partial::space_needed_bytes);
    assert_eq!(needed_bytes, [size_bytes, 5, size_bytes, size_bytes], "one of them is stored");
    drop(under_way);
    assert_eq!(folder.names().len(), 1, "the others hold nothing");
    assert_eq!(prefix_bytes(&begin(Some(1), size_bytes)), GROUP_BYTES);
    assert_eq!(begin(Some(2), size_bytes).missing().bytes(), size_bytes);
    partials.remove_all_of(&sender.digest.hash).unwrap();
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_content_that_did_not_reach_the_disk_comes_anew() {
    let folder = Folder::new();
    let sender = Sender::new(GROUP);
    let partial = start(&folder.open(), sender.digest);
    sender.send_all(&partial, GROUP);
    partial.sync(&File::open("/dev/null").unwrap()).unwrap_err();
    drop(partial);
    assert!(!start(&folder.open(), sender.digest).is_complete());
}

#[test]
fn transfers_nobody_went_on_with_for_a_month_are_swept() {
    let folder = Folder::new();
    let (old, new) = (Sender::new(PIECE), Sender::new(PIECE + 1));
    let partials = folder.open();
    for sender in [&old, &new] {
        sender.send(&start(&partials, sender.digest), GROUP).unwrap();
    }
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    File::open(folder.file(&old.digest, CONTENT_SUFFIX))
        .unwrap()
        .set_modified(now - 31 * day)
        .unwrap();
    File::open(folder.file(&new.digest, CONTENT_SUFFIX))
        .unwrap()
        .set_modified(now - 29 * day)
        .unwrap();
    let orphan = folder.0.path().join(format!("{}{OUTBOARD_SUFFIX}", Hash([9; 32])));
    fs::write(&orphan, "x").unwrap();
    fs::write(folder.0.path().join("note"), "not ours").unwrap();
    folder.open();
    let name = Name::of(&new.digest.into());
    let kept = [format!("{name}.obao"), format!("{name}.part"), "note".into()];
    assert_eq!(folder.names(), kept);
}

#[test]
fn the_transfer_idle_for_longest_makes_room_for_a_new_one() {
    let folder = Folder::new();
    let partials = folder.open();
    let digest = |n: usize| Digest {
        hash: HashAlgorithm::Blake3.hash(&n.to_le_bytes()),
        size_bytes: GROUP_BYTES,
    };
    let now = SystemTime::now();
    let mut busy = vec![];
    for n in 0..PARTIALS_MAX {
        let partial = start(&partials, digest(n));
        let age = Duration::from_secs((PARTIALS_MAX - n) as u64);
        partial.content.set_len(GROUP_BYTES).unwrap();
        partial.content.set_modified(now - age).unwrap();
        if n != 1 {
            busy.push(partial);
        }
    }
    start(&partials, digest(PARTIALS_MAX));
    assert!(!folder.file(&digest(1), CONTENT_SUFFIX).exists());
    assert!(folder.file(&digest(0), CONTENT_SUFFIX).exists(), "it is in use");
    busy.push(start(&partials, digest(PARTIALS_MAX)));
    let refused = partials.start(digest(PARTIALS_MAX + 1), HashAlgorithm::Blake3);
    assert!(matches!(refused, Err(OpenError::TooMany)));
}

#[test]
fn an_absurd_size_is_refused_before_anything_is_made() {
    let folder = Folder::new();
    for size_bytes in [ASSET_BYTES_MAX + 1, u64::MAX] {
        let hash = Hash([1; 32]);
        let refused = folder.open().start(Digest { hash, size_bytes }, HashAlgorithm::Blake3);
        assert!(matches!(refused, Err(OpenError::TooLarge(_))));
    }
    let digest = Digest { hash: Hash([1; 32]), size_bytes: ASSET_BYTES_MAX };
    let partial = start(&folder.open(), digest);
    let refused = partial.write_piece(0, ASSET_BYTES_MAX, &[0; 1000]);
    assert!(matches!(refused, Err(PieceError::Corrupt { offset_bytes: 0 })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_of_any_lengths_give_the_content(
        size in 1usize..600_000,
        groups in prop::collection::vec(1usize..20, 1..8),
        restart in any::<bool>(),
    ) {
        let sender = Sender::new(size);
        let folder = Folder::new();
        let mut partial = start(&folder.open(), sender.digest);
        for groups in groups.iter().cycle() {
            if partial.is_complete() {
                break;
            }
            sender.send(&partial, groups * GROUP).unwrap();
            if restart {
                let held = prefix_bytes(&partial);
                drop(partial);
                partial = start(&folder.open(), sender.digest);
                prop_assert_eq!(prefix_bytes(&partial), held);
            }
        }
        sender.assert_finishes(partial);
    }

    #[test]
    fn pieces_in_any_order_are_held_across_restarts_and_give_the_content(
        size in 1usize..1_200_000,
        cuts in prop::collection::vec((0usize..75, 1usize..20, any::<bool>()), 0..12),
    ) {
        let sender = Sender::new(size);
        let folder = Folder::new();
        let mut partial = start(&folder.open(), sender.digest);
        for (group, groups, restart) in cuts {
            if group * GROUP < size {
                sender.send_at(&partial, group * GROUP, groups * GROUP).unwrap();
            }
            let missing = partial.missing();
            if restart {
                drop(partial);
                partial = start(&folder.open(), sender.digest);
                prop_assert_eq!(partial.missing(), missing);
            }
        }
        sender.send_all(&partial, PIECE);
        sender.assert_finishes(partial);
    }

    #[test]
    fn random_bytes_are_never_taken(
        offset in 0u64..3,
        length in any::<u64>(),
        junk in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let folder = Folder::new();
        let digest = Digest { hash: Hash([3; 32]), size_bytes: 5 * GROUP_BYTES + 1 };
        let partial = start(&folder.open(), digest);
        prop_assert!(partial.write_piece(offset * GROUP_BYTES, length, &junk).is_err());
        prop_assert_eq!(prefix_bytes(&partial), 0);
    }
}

#[test]
#[ignore = "hashes 5 GiB twice: cargo test --release beyond_four -- --ignored"]
fn offsets_beyond_four_gib_are_right() {
    const SIZE: u64 = (5 << 30) + 5;
    const HELD: u64 = (5 << 30) - GROUP_BYTES;
    let folder = Folder::new();
    let mut outboard = tempfile::tempfile().unwrap();
    let hash = build_outboard(io::repeat(0).take(SIZE), SIZE, &mut outboard).unwrap();
    let digest = Digest { hash, size_bytes: SIZE };
    // Everything but the end is held already, as a hole.
    let content = File::create(folder.file(&digest, CONTENT_SUFFIX)).unwrap();
    content.set_len(HELD).unwrap();
    let mut copy = File::create(folder.file(&digest, OUTBOARD_SUFFIX)).unwrap();
    outboard.rewind().unwrap();
    io::copy(&mut outboard, &mut copy).unwrap();
    let partial = start(&folder.open(), digest);
    assert_eq!(prefix_bytes(&partial), HELD);
    let rest = vec![0; (SIZE - HELD) as usize];
    let encoded = encode_piece(&digest, HELD, &rest, Some(&outboard)).unwrap();
    partial.write_piece(HELD, SIZE - HELD, &encoded).unwrap();
    let complete = partial.finish().unwrap();
    assert_eq!(fs::metadata(complete.path).unwrap().len(), SIZE);
}

#[test]
#[ignore = "a measurement: cargo test --release partials_bench -- --ignored --nocapture"]
#[allow(clippy::print_stdout)]
fn partials_bench() {
    let sender = Sender::new(256 << 20);
    let rate = |what: &str, since: Instant| {
        let mib = sender.content.len() as f64 / f64::from(1 << 20);
        println!("{what:<40}{:>8.0} MiB/s", mib / since.elapsed().as_secs_f64());
    };
    let from = Instant::now();
    blake3::hash(&sender.content);
    rate("hash, one thread", from);
    let from = Instant::now();
    build_outboard(
        &sender.content[..],
        sender.digest.size_bytes,
        &mut tempfile::tempfile().unwrap(),
    )
    .unwrap();
    rate("build_outboard", from);
    for length in [PIECE, 1 << 20] {
        let folder = Folder::new();
        let from = Instant::now();
        let pieces: Vec<Vec<u8>> = (0..sender.content.len())
            .step_by(length)
            .map(|offset| sender.encode(offset, length))
            .collect();
        rate(&format!("encode, {} KiB", length >> 10), from);
        let partial = start(&folder.open(), sender.digest);
        let from = Instant::now();
        for (n, encoded) in pieces.iter().enumerate() {
            partial.write_piece((n * length) as u64, length as u64, encoded).unwrap();
        }
        rate(&format!("verify and write, {} KiB", length >> 10), from);
        drop(partial);
        let from = Instant::now();
        let partial = start(&folder.open(), sender.digest);
        rate("resume", from);
        let from = Instant::now();
        partial.finish().unwrap();
        rate("finish (fsync)", from);
    }
}

#[test]
fn a_transfer_needs_room_for_what_it_and_those_under_way_have_yet_to_write() {
    let folder = Folder::new();
    let partials = folder.open();
    let (one, other) = (Sender::new(4 * PIECE), Sender::new(3 * PIECE));
    let (one_bytes, other_bytes) = (one.digest.size_bytes, other.digest.size_bytes);
    let first = partials.start(one.digest, HashAlgorithm::Blake3).unwrap();
    assert_eq!(first.space_needed_bytes(), one_bytes);
    one.send(&first, PIECE).unwrap();
    let second = partials.start(other.digest, HashAlgorithm::Blake3).unwrap();
    assert_eq!(second.space_needed_bytes(), other_bytes + one_bytes - PIECE as u64);
    drop((first, second));
    // What is on the disk already needs no space again.
    let first = partials.start(one.digest, HashAlgorithm::Blake3).unwrap();
    assert_eq!(first.space_needed_bytes(), one_bytes - PIECE as u64);
    partials.check_space(0).unwrap();
    assert!(matches!(partials.check_space(u64::MAX), Err(SpaceError::Full { .. })));
}
