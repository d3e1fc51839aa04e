//! What the index guarantees, and what it costs (ignored by default).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::core::ids::HashAlgorithm;

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const STORE: StoreId = StoreId([1; 16]);
const PEER: NodeId = NodeId([2; 32]);

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.db");
    Fixture { _dir: dir, path }
}

impl Fixture {
    fn open(&self) -> Index {
        Index::open(&self.path).unwrap()
    }

    fn open_bound(&self) -> Index {
        let index = self.open();
        index.bind(&STORE, BLAKE3).unwrap();
        index
    }
}

fn digest(n: u64) -> Digest {
    Digest { hash: HashAlgorithm::Blake3.hash(&n.to_le_bytes()), size_bytes: n }
}

fn digests(range: std::ops::Range<u64>) -> Vec<Digest> {
    range.map(digest).collect()
}

#[test]
fn only_new_hashes_get_a_number_and_the_cursor_moves_with_them() {
    let fixture = fixture();
    let index = fixture.open_bound();
    let added = index.insert(&digests(0..3), 10).unwrap();
    assert_eq!(added, [(1, digest(0)), (2, digest(1)), (3, digest(2))]);
    let twice = [digest(2), digest(7), digest(7), digest(0)];
    assert_eq!(index.insert(&twice, 12).unwrap(), [(4, digest(7))]);
    assert_eq!(index.insert(&[], 20).unwrap(), []);
    let head = index.head();
    assert_eq!((head.seq, head.count, head.store_cursor), (4, 4, 20));
}

#[test]
fn an_index_that_is_opened_again_keeps_everything_but_its_epoch() {
    for is_closed in [true, false] {
        let fixture = fixture();
        let index = fixture.open_bound();
        index.insert(&digests(0..5), 5).unwrap();
        index.set_peer_cursor(&index.head().epoch, &PEER, &[7; 16], 99).unwrap();
        index.save_sketch(&index.head().epoch, b"cells", 4).unwrap();
        let head = index.head();
        if is_closed {
            index.close().unwrap();
            assert!(index.insert(&digests(9..10), 9).is_err(), "it is closed");
            assert_eq!(index.head(), head);
        }
        drop(index);
        let index = fixture.open();
        assert!(index.bind(&STORE, BLAKE3).unwrap().same);
        let now = index.head();
        assert_ne!(now.epoch, head.epoch);
        assert_eq!(Head { epoch: head.epoch, ..now }, head);
        assert_eq!(index.peer_cursor(&PEER).unwrap(), Some(([7; 16], 99)));
        assert_eq!(index.load_sketch().unwrap(), Some((b"cells".to_vec(), 4)));
        assert_eq!(index.insert(&digests(4..6), 6).unwrap(), [(6, digest(5))]);
    }
}

#[test]
fn an_older_copy_of_an_index_never_repeats_a_number_of_an_epoch() {
    // As after a restored backup (another file), and after a snapshot or `dd` (the same file with
    // older content).
    for is_same_file in [false, true] {
        let fixture = fixture();
        fixture.open_bound().close().unwrap();
        let copy = fs::read(&fixture.path).unwrap();
        let mut numbered = std::collections::BTreeSet::new();
        for n in 0..3 {
            let index = fixture.open_bound();
            let epoch = index.head().epoch;
            for (seq, _) in index.insert(&digests(n * 10..n * 10 + 5), 5).unwrap() {
                assert!(numbered.insert((epoch, seq)), "number {seq} again");
            }
            index.close().unwrap();
            drop(index);
            if !is_same_file {
                fs::remove_file(&fixture.path).unwrap();
                private_database_file(&fixture.path).unwrap();
            }
            fs::write(&fixture.path, &copy).unwrap();
        }
    }
}

#[test]
fn another_store_empties_the_index_and_changes_its_epoch() {
    let fixture = fixture();
    let index = fixture.open();
    assert!(!index.bind(&STORE, BLAKE3).unwrap().same);
    index.insert(&digests(0..5), 5).unwrap();
    index.set_peer_cursor(&index.head().epoch, &PEER, &[7; 16], 99).unwrap();
    index.save_sketch(&index.head().epoch, b"cells", 4).unwrap();
    let before = index.head();
    assert!(index.bind(&STORE, BLAKE3).unwrap().same);
    assert_eq!(index.head(), before);
    assert!(!index.bind(&StoreId([2; 16]), BLAKE3).unwrap().same);
    let head = index.head();
    assert_eq!((head.seq, head.count, head.store_cursor), (0, 0, 0));
    assert_ne!(head.epoch, before.epoch);
    assert_eq!(index.peer_cursor(&PEER).unwrap(), None);
    assert_eq!(index.load_sketch().unwrap(), None);
    assert_eq!(index.held(&[digest(1).hash]).unwrap(), [false]);
    assert_eq!(index.insert(&digests(3..4), 1).unwrap(), [(1, digest(3))]);
}

#[test]
fn a_whole_listing_that_does_not_show_a_hash_makes_the_index_forget_it() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..100), 100).unwrap();
    let epoch = index.head().epoch;
    index.set_peer_cursor(&epoch, &PEER, &[7; 16], 99).unwrap();
    index.save_sketch(&epoch, b"cells", 100).unwrap();

    let mut listing = Listing::default();
    assert_eq!(index.insert_listed(&mut listing, &digests(10..60)).unwrap(), []);
    let new = index.insert_listed(&mut listing, &digests(50..70)).unwrap();
    assert_eq!(new, []);
    let new = index.insert_listed(&mut listing, &[digest(200)]).unwrap();
    assert_eq!(new, [(101, digest(200))]);
    assert_eq!(index.head().store_cursor, 100, "the listing is not through");
    assert_eq!(index.finish_listing(&listing, 61).unwrap(), 40);
    let head = index.head();
    assert_eq!((head.seq, head.count, head.store_cursor), (101, 61, 61));
    assert_ne!(head.epoch, epoch, "a peer must not go on from the old numbers");
    let known = [digest(9), digest(10), digest(69), digest(70), digest(200)].map(|d| d.hash);
    assert_eq!(index.held(&known).unwrap(), [false, true, true, false, true]);
    assert_eq!(index.peer_cursor(&PEER).unwrap(), None);
    assert_eq!(index.load_sketch().unwrap(), None);

    // Writes that name the old epoch come too late and change nothing.
    index.set_peer_cursor(&epoch, &PEER, &[7; 16], 99).unwrap();
    index.save_sketch(&epoch, b"cells", 100).unwrap();
    assert_eq!(index.peer_cursor(&PEER).unwrap(), None);
    assert_eq!(index.load_sketch().unwrap(), None);
    index.close().unwrap();
    drop(index);
    let now = fixture.open().head();
    assert_eq!(Head { epoch: head.epoch, ..now }, head);
}

#[test]
fn hashes_that_are_gone_are_forgotten_and_what_was_known_of_peers_with_them() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..10), 10).unwrap();
    let before = index.head();
    index.set_peer_cursor(&before.epoch, &PEER, &[7; 16], 99).unwrap();
    assert_eq!(index.forget(&[digest(50).hash]).unwrap(), 0);
    assert_eq!(index.head(), before);
    assert_eq!(index.peer_cursor(&PEER).unwrap(), Some(([7; 16], 99)));

    let gone = [3, 9, 50].map(|n| digest(n).hash);
    assert_eq!(index.forget(&gone).unwrap(), 2);
    let head = index.head();
    assert_eq!((head.seq, head.count, head.store_cursor), (10, 8, 10));
    assert_ne!(head.epoch, before.epoch);
    assert_eq!(index.held(&gone).unwrap(), [false, false, false]);
    assert_eq!(index.peer_cursor(&PEER).unwrap(), None);
    // A forgotten hash that is stored again is new.
    assert_eq!(index.insert(&[digest(9)], 12).unwrap(), [(11, digest(9))]);
}

#[test]
fn a_whole_listing_that_shows_everything_changes_nothing_but_the_cursor() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..100), 100).unwrap();
    let before = index.head();
    index.set_peer_cursor(&before.epoch, &PEER, &[7; 16], 99).unwrap();
    let mut listing = Listing::default();
    index.insert_listed(&mut listing, &digests(0..100)).unwrap();
    assert_eq!(index.finish_listing(&listing, 120).unwrap(), 0);
    assert_eq!(index.head(), Head { store_cursor: 120, ..before });
    assert_eq!(index.peer_cursor(&PEER).unwrap(), Some(([7; 16], 99)));
}

#[test]
fn questions_are_answered_in_their_order() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..3), 3).unwrap();
    let asked = [digest(2).hash, digest(9).hash, digest(0).hash];
    assert_eq!(index.held(&asked).unwrap(), [true, false, true]);
    assert_eq!(index.sizes(&asked).unwrap(), [Some(2), None, Some(0)]);
    assert_eq!(index.peer_cursor(&PEER).unwrap(), None);
    index.set_peer_cursor(&index.head().epoch, &PEER, &[1; 16], 1).unwrap();
    index.set_peer_cursor(&index.head().epoch, &PEER, &[2; 16], 2).unwrap();
    assert_eq!(index.peer_cursor(&PEER).unwrap(), Some(([2; 16], 2)));
}

#[test]
fn pages_by_number_and_by_hash_cover_everything_once() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..10), 3).unwrap();
    let by_seq: Vec<(u64, Hash)> = (0..10).map(|n| (n + 1, digest(n).hash)).collect();
    for limit in [1, 3, 5, 9, 10, 11] {
        let (mut seen, mut after, mut more) = (vec![], 0, true);
        while more {
            let page;
            (page, more) = index.since(after, u64::MAX, limit).unwrap();
            assert!(page.len() <= limit);
            after = page.last().unwrap().0;
            seen.extend(page);
        }
        assert_eq!(seen, by_seq, "limit {limit}");

        let (mut seen, mut after, mut more) = (vec![], None, true);
        while more {
            let page;
            (page, more) = index.above(after, u64::MAX, limit).unwrap();
            after = page.last().copied();
            seen.extend(page);
        }
        let mut sorted: Vec<Hash> = by_seq.iter().map(|(_, hash)| *hash).collect();
        sorted.sort();
        assert_eq!(seen, sorted, "limit {limit}");
    }
    assert_eq!(index.since(10, u64::MAX, 5).unwrap(), (vec![], false));
    assert_eq!(index.since(u64::MAX, u64::MAX, usize::MAX).unwrap(), (vec![], false));
    assert_eq!(index.since(0, 8, usize::MAX).unwrap().0, by_seq[..8]);
    assert_eq!(index.above(None, 8, usize::MAX).unwrap().0.len(), 8);
    let mut seen = vec![];
    let all = Hash([0; 32])..=Hash([0xff; 32]);
    index.for_each_in(all, 8, |hash| seen.push(hash)).unwrap();
    assert_eq!(seen, index.above(None, 8, usize::MAX).unwrap().0);
    let asked = [by_seq[3].1, Hash([9; 32])];
    assert_eq!(index.seqs(&asked).unwrap(), [Some(4), None]);
}

#[test]
fn the_zero_hash_is_listed_too() {
    let fixture = fixture();
    let index = fixture.open_bound();
    let zero = Hash([0; 32]);
    let size_bytes = 1;
    index.insert(&[Digest { hash: zero, size_bytes }], 1).unwrap();
    assert_eq!(index.above(None, u64::MAX, 5).unwrap(), (vec![zero], false));
    assert_eq!(index.above(Some(zero), u64::MAX, 5).unwrap(), (vec![], false));
}

#[test]
fn a_reader_at_work_does_not_hold_up_the_writer() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..3), 3).unwrap();
    let mut seen = 0;
    let all = Hash([0; 32])..=Hash([0xff; 32]);
    index
        .for_each_in(all, u64::MAX, |_| {
            index.insert(&[digest(100 + seen)], 4).unwrap();
            seen += 1;
        })
        .unwrap();
    assert_eq!((seen, index.head().count), (3, 6));
}

#[test]
fn a_damaged_index_is_kept_aside_and_begun_anew() {
    let garbage = |file: &mut std::fs::File| {
        file.write_all(&[0x5a; 8192]).unwrap();
    };
    let torn_page = |file: &mut std::fs::File| {
        file.seek(SeekFrom::Start(4096 * 4)).unwrap();
        file.write_all(&[0xff; 4096 * 3]).unwrap();
    };
    let damages: [&dyn Fn(&mut std::fs::File); 2] = [&garbage, &torn_page];
    for (n, damage) in damages.into_iter().enumerate() {
        let fixture = fixture();
        let index = fixture.open_bound();
        index.insert(&digests(0..500), 3).unwrap();
        let epoch = index.head().epoch;
        index.close().unwrap();
        drop(index);
        // The second kind of damage is found only by the check after an unclean stop.
        drop(fixture.open());
        damage(&mut std::fs::OpenOptions::new().write(true).open(&fixture.path).unwrap());

        let index = fixture.open();
        assert!(!index.bind(&STORE, BLAKE3).unwrap().same, "damage {n}");
        assert_eq!(index.head().count, 0);
        assert_ne!(index.head().epoch, epoch);
        index.insert(&digests(0..5), 1).unwrap();
        let mut kept = vec![];
        let aside = fixture.path.with_file_name("index.db.aside");
        std::fs::File::open(aside).unwrap().read_to_end(&mut kept).unwrap();
        assert!(kept.len() > 8000);
    }
}

#[test]
fn whatever_lies_where_the_index_should_be_the_index_opens() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let other_program = |path: &Path| {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("PRAGMA user_version = 1; CREATE TABLE x (y)").unwrap();
    };
    let newer = |path: &Path| {
        drop(Index::open(path).unwrap());
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
    };
    let folder = |path: &Path| fs::create_dir(path).unwrap();
    let link = |path: &Path| symlink("nowhere", path).unwrap();
    let open_to_all = |path: &Path| {
        fs::write(path, b"").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let made: [(&str, Make<'_>); 5] = [
        ("another program's", &other_program),
        ("a newer version's", &newer),
        ("a folder", &folder),
        ("a link", &link),
        ("readable by all", &open_to_all),
    ];
    for (what, make) in made {
        let fixture = fixture();
        make(&fixture.path);
        let before = fs::read(&fixture.path).ok();
        let index = fixture.open();
        assert!(!index.bind(&STORE, BLAKE3).unwrap().same, "{what}");
        assert_eq!(index.insert(&digests(0..2), 2).unwrap().len(), 2, "{what}");
        let aside = fixture.path.with_file_name("index.db.aside");
        assert!(aside.symlink_metadata().is_ok(), "{what} is kept");
        if what == "a newer version's" {
            assert!(fs::read(aside).ok() == before, "{what} is kept as it was");
        }
    }
}

#[test]
fn a_reader_waits_for_no_other_while_a_connection_is_idle() {
    let fixture = fixture();
    let index = fixture.open_bound();
    index.insert(&digests(0..1), 1).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let all = Hash([0; 32])..=Hash([0xff; 32]);
        let mut answers = 0;
        index
            .for_each_in(all, u64::MAX, |hash| {
                // This keeps one connection lent during the loop.
                for _ in 0..4 * READERS {
                    answers += usize::from(index.held(&[hash]).unwrap()[0]);
                }
            })
            .unwrap();
        done.send(answers).unwrap();
    });
    let answers = is_done.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(answers.expect("a reader waits for a busy connection"), 4 * READERS);
    reading.join().unwrap();
}

/// Runs until it is killed: inserts, and prints each number that was reported as inserted.
#[test]
#[ignore = "run by an_index_killed_at_work_holds_what_its_cursor_says"]
fn child_inserts_for_ever() {
    let Ok(path) = std::env::var("CAN_SYNC_TEST_INDEX") else {
        return;
    };
    let index = Index::open(path.as_ref()).unwrap();
    index.bind(&STORE, BLAKE3).unwrap();
    let mut out = std::io::stdout();
    for n in 0..100_000 {
        index.insert(&digests(n * 10..n * 10 + 10), n + 1).unwrap();
        writeln!(out, "{}", n + 1).unwrap();
    }
}

#[test]
fn an_index_killed_at_work_holds_what_its_cursor_says() {
    for round in 0..6 {
        let fixture = fixture();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "state::index::tests::child_inserts_for_ever"])
            .args(["--ignored", "--nocapture"])
            .env("CAN_SYNC_TEST_INDEX", &fixture.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut said = vec![0; 64 + 40 * round];
        out.read_exact(&mut said).unwrap();
        child.kill().unwrap();
        out.read_to_end(&mut said).unwrap();
        child.wait().unwrap();
        let said = String::from_utf8(said).unwrap();
        // The last line may be incomplete.
        let whole = said.rfind('\n').unwrap();
        let told: u64 = said[..whole].lines().filter_map(|l| l.parse().ok()).max().unwrap();

        let index = fixture.open();
        assert!(index.bind(&STORE, BLAKE3).unwrap().same);
        let head = index.head();
        assert!(head.store_cursor >= told, "round {round}");
        assert_eq!((head.count, head.seq), (head.store_cursor * 10, head.store_cursor * 10));
        let rows = index.since(0, u64::MAX, usize::MAX).unwrap().0;
        let expected = (1..=head.count).map(|seq| (seq, digest(seq - 1).hash));
        assert!(rows.into_iter().eq(expected));
    }
}

#[test]
#[ignore = "a measurement: cargo test --release index_bench -- --ignored --nocapture"]
#[allow(clippy::print_stdout)]
fn index_bench() {
    const ROWS: u64 = 1_000_000;
    let fixture = fixture();
    let index = fixture.open_bound();
    let all = digests(0..ROWS);
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what:<48}{:>12.2?}", start.elapsed());
    };
    timed("insert 1 M, 10,000 to a transaction", &mut || {
        for (n, chunk) in all.chunks(10_000).enumerate() {
            index.insert(chunk, n as u64).unwrap();
        }
    });
    let fresh: Vec<Digest> = digests(ROWS..ROWS + 1000);
    timed("insert 1,000, one to a transaction", &mut || {
        for digest in &fresh {
            index.insert(&[*digest], 1).unwrap();
        }
    });
    let asked: Vec<Hash> = all.iter().step_by(100).map(|d| d.hash).collect();
    timed("known, 10,000 held", &mut || {
        assert!(index.held(&asked).unwrap().iter().all(|k| *k));
    });
    let unknown: Vec<Hash> = digests(2 * ROWS..2 * ROWS + 10_000).iter().map(|d| d.hash).collect();
    timed("known, 10,000 not held", &mut || {
        assert!(!index.held(&unknown).unwrap().iter().any(|k| *k));
    });
    timed("known, 1 held", &mut || assert!(index.held(&asked[..1]).unwrap()[0]));
    timed("since, the newest 2,048", &mut || {
        assert_eq!(index.since(ROWS + 1000 - 2048, u64::MAX, 2048).unwrap().0.len(), 2048);
    });
    timed("above, a page of 2,048", &mut || {
        assert_eq!(index.above(Some(asked[7]), u64::MAX, 2048).unwrap().0.len(), 2048);
    });
    timed("for_each_in, 1 M", &mut || {
        let mut rows = 0;
        let all = Hash([0; 32])..=Hash([0xff; 32]);
        index.for_each_in(all, u64::MAX, |_| rows += 1).unwrap();
        assert_eq!(rows, ROWS + 1000);
    });
    timed("save_sketch, 800 KB", &mut || {
        index.save_sketch(&index.head().epoch, &[1; 800_000], ROWS).unwrap()
    });
    timed("close", &mut || index.close().unwrap());
    drop(index);
    timed("open, after a clean stop", &mut || drop(fixture.open()));
    timed("open, after an unclean stop", &mut || drop(fixture.open()));
    let bytes = std::fs::metadata(&fixture.path).unwrap().len();
    println!("{:<48}{:>12}", "file, bytes per row", bytes / (ROWS + 1000));
}
