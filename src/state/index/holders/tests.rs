//! Who holds what, between the indexes of two devices.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::*;
use crate::core::copies::{Census, CopiesGoal};
use crate::core::ids::{Digest, HashAlgorithm, StoreId};

const HERE: NodeId = NodeId([1; 32]);
const THERE: NodeId = NodeId([2; 32]);
const NOW_MS: u64 = 77;

struct Device {
    dir: tempfile::TempDir,
    index: Index,
}

impl Device {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let index = open(&dir);
        Self { dir, index }
    }

    fn reopen(&mut self) {
        self.index.close().unwrap();
        self.index = open(&self.dir);
    }

    /// Pulls the absent hashes of `peer`, a few at a time. Unknown ones are not wanted here. Returns
    /// how often it started over.
    fn learn(&self, peer: &NodeId, of: &Device) -> u32 {
        let mut restarts = 0;
        loop {
            let (belief, _) = self.index.belief(peer).unwrap();
            let page = of.index.absent_page(belief.log, belief.turn, 3).unwrap();
            let why = vec![Absence::Unwanted; page.absent.len()];
            let believed = self.index.believe(peer, &page, &why).unwrap();
            restarts += u32::from(believed.restarts);
            if !page.more && !believed.restarts {
                assert_eq!(believed.belief.digest, of.index.head().absent.digest);
                return restarts;
            }
            assert!(restarts < 3, "it never ends");
        }
    }

    /// Confirms a peer that holds all it knows.
    fn confirm(&self, peer: &NodeId) -> bool {
        self.confirm_as(peer, &AbsentSet::default())
    }

    /// Confirms a peer that told that these are its absent hashes.
    fn confirm_as(&self, peer: &NodeId, told: &AbsentSet) -> bool {
        let head = self.index.head();
        self.index.confirm(&head.epoch, peer, head.seq, told, NOW_MS).unwrap()
    }

    fn told(&self) -> AbsentSet {
        self.index.head().absent
    }

    fn holders(&self, n: u64) -> Vec<NodeId> {
        let holders = self.index.holders(&hash(n)).unwrap();
        holders.into_iter().map(|holder| holder.node_id).collect()
    }

    fn note(&self, range: std::ops::Range<u64>, why: Absence) {
        let hashes: Vec<_> = range.map(|n| ((hash(n), Some(n)), why)).collect();
        self.index.note(&hashes).unwrap();
    }

    fn hold(&self, range: std::ops::Range<u64>) -> Vec<(u64, Digest)> {
        let digests: Vec<_> = range.map(digest).collect();
        self.index.insert(&digests, 1).unwrap()
    }
}

fn open(dir: &tempfile::TempDir) -> Index {
    let index = Index::open(&dir.path().join("index.db")).unwrap();
    index.bind(&StoreId([1; 16]), HashAlgorithm::Blake3).unwrap();
    index
}

fn hash(n: u64) -> Hash {
    HashAlgorithm::Blake3.hash(&n.to_le_bytes())
}

fn digest(n: u64) -> Digest {
    Digest { hash: hash(n), size_bytes: n }
}

#[test]
fn a_peer_is_claimed_to_hold_what_it_was_confirmed_for_and_nothing_newer() {
    let device = Device::new();
    device.hold(0..3);
    assert_eq!(device.holders(0), [], "nothing was told");
    assert!(device.confirm(&THERE));
    device.hold(3..4);
    assert_eq!((device.holders(0), device.holders(3)), (vec![THERE], vec![]));
    assert_eq!(device.index.holders(&hash(2)).unwrap()[0].confirmed_ms, NOW_MS);
    assert_eq!(device.holders(9), [], "it is not known");
    let rows: i64 =
        device.index.read(|c| c.query_row("SELECT count(*) FROM lacks", [], |r| r.get(0))).unwrap();
    assert_eq!(rows, 0, "a peer that holds everything costs nothing");
}

#[test]
fn what_a_peer_only_knows_is_not_claimed_for_it() {
    let (here, there) = (Device::new(), Device::new());
    here.hold(0..10);
    there.hold(0..2);
    there.note(2..10, Absence::Unwanted);
    assert_eq!(here.learn(&THERE, &there), 0);
    assert!(here.confirm_as(&THERE, &there.told()));
    assert_eq!((here.holders(1), here.holders(2), here.holders(9)), (vec![THERE], vec![], vec![]));
    // It comes, and later it is evicted again.
    assert_eq!(there.hold(2..3), [(3, digest(2))], "it keeps its number");
    here.learn(&THERE, &there);
    assert_eq!(here.holders(2), [THERE]);
    there.index.release(&[hash(2), hash(1)]).unwrap();
    here.learn(&THERE, &there);
    assert_eq!((here.holders(2), here.holders(1), here.holders(0)), (vec![], vec![], vec![THERE]));
}

#[test]
fn a_peer_whose_absent_hashes_are_others_than_those_known_is_not_confirmed() {
    let (here, there) = (Device::new(), Device::new());
    here.hold(0..3);
    there.hold(0..2);
    there.note(2..3, Absence::Unwanted);
    let (head, absent) = (here.index.head(), there.told());
    assert!(!here.confirm_as(&THERE, &absent));
    assert_eq!(here.holders(0), []);
    here.learn(&THERE, &there);
    let other_epoch = [9; 16];
    assert!(!here.index.confirm(&other_epoch, &THERE, head.seq, &absent, NOW_MS).unwrap());
    assert!(here.confirm_as(&THERE, &there.told()));
}

#[test]
fn a_peer_whose_index_went_back_is_read_from_the_start_and_nothing_wrong_is_claimed() {
    let (here, mut there) = (Device::new(), Device::new());
    here.hold(0..8);
    there.hold(0..4);
    there.note(4..8, Absence::Unwanted);
    there.index.close().unwrap();
    let path = there.dir.path().join("index.db");
    let backup = std::fs::read(&path).unwrap();
    there.index = open(&there.dir);
    // It fetches two, tells that, and is put back to the time before.
    there.hold(4..6);
    here.learn(&THERE, &there);
    assert!(here.confirm_as(&THERE, &there.told()));
    assert_eq!(here.holders(5), [THERE]);
    there.index.close().unwrap();
    std::fs::write(&path, backup).unwrap();
    there.index = open(&there.dir);
    // It fetches another one, so that its log is as long as before, and says something else.
    there.hold(6..8);
    assert_eq!(here.learn(&THERE, &there), 1);
    assert_eq!(here.holders(0), [], "it is to be confirmed anew");
    assert!(here.confirm_as(&THERE, &there.told()));
    assert_eq!((here.holders(5), here.holders(6)), (vec![], vec![THERE]));
}

#[test]
fn what_a_peer_asks_for_is_not_claimed_for_it_until_it_is_confirmed_again() {
    let device = Device::new();
    device.hold(0..3);
    device.confirm(&THERE);
    device.index.doubt(&THERE, &[hash(1), hash(7)]).unwrap();
    assert_eq!((device.holders(0), device.holders(1)), (vec![THERE], vec![]));
    device.confirm(&THERE);
    assert_eq!(device.holders(1), [THERE]);
}

#[test]
fn a_number_is_never_given_to_another_hash_also_after_a_restart() {
    let mut device = Device::new();
    device.hold(0..3);
    device.confirm(&THERE);
    device.index.forget(&[hash(2)]).unwrap();
    device.reopen();
    assert_eq!(device.hold(5..6), [(4, digest(5))]);
    assert_eq!(device.holders(5), [], "nobody told of it");
    assert_eq!(device.holders(1), [THERE], "it is still known after the restart");
}

#[test]
fn a_hash_that_was_lost_here_and_comes_back_is_not_claimed_for_who_lacks_it() {
    let (here, there) = (Device::new(), Device::new());
    here.hold(0..3);
    there.hold(0..2);
    there.note(2..3, Absence::Unwanted);
    here.learn(&THERE, &there);
    here.confirm_as(&THERE, &there.told());
    here.index.forget(&[hash(2)]).unwrap();
    here.hold(2..3);
    assert!(!here.confirm_as(&THERE, &there.told()));
    assert_eq!(here.holders(2), []);
    // The digest differs now, so it is learnt anew.
    assert_eq!(here.learn(&THERE, &there), 1);
    here.confirm_as(&THERE, &there.told());
    assert_eq!((here.holders(2), here.holders(1)), (vec![], vec![THERE]));
}

#[test]
fn missing_assets_that_a_peer_holds_are_listed_the_most_endangered_first() {
    let (here, there) = (Device::new(), Device::new());
    there.hold(0..5);
    there.note(5..6, Absence::Unwanted);
    here.note(0..6, Absence::Missing);
    here.note(6..7, Absence::Unwanted);
    assert_eq!(here.index.head().missing, 6);
    here.learn(&THERE, &there);
    let all = |after| here.index.missing_at(&THERE, after, 2).unwrap();
    assert_eq!(all(MissingPlace::default()), (vec![], None), "it was not confirmed");
    here.confirm_as(&THERE, &there.told());
    let copies = [(0, 2), (1, 1), (2, 1), (3, 3), (4, 2)];
    let verdicts: Vec<_> =
        copies.iter().map(|(n, copies)| (hash(*n), Absence::Missing, *copies)).collect();
    here.index.judge(&verdicts).unwrap();
    let (mut listed, mut after) = (Vec::new(), MissingPlace::default());
    loop {
        let (hashes, next) = all(after);
        listed.extend(hashes);
        let Some(next) = next else { break };
        after = next;
    }
    assert_eq!(listed, [1, 2, 0, 4, 3].map(hash));
    let head = here.index.judge(&[(hash(1), Absence::Unwanted, 1)]).unwrap();
    assert_eq!(head.missing, 5);
    here.hold(2..3);
    assert_eq!(here.index.head().missing, 4);
    assert_eq!(here.index.held(&[hash(1), hash(2)]).unwrap(), [false, true]);
    assert_eq!(here.index.sizes(&[hash(1), hash(2)]).unwrap(), [None, Some(2)]);
}

#[test]
fn a_judgement_changes_nothing_about_what_is_held() {
    let device = Device::new();
    device.hold(0..1);
    let before = device.index.head();
    let after = device.index.judge(&[(hash(0), Absence::Unwanted, 0)]).unwrap();
    assert_eq!(before, after);
    device.note(0..1, Absence::Unwanted);
    assert_eq!(device.index.head(), before, "it is held, so it cannot be noted as absent");
}

#[test]
fn the_census_counts_devices_and_sites() {
    let (here, there) = (Device::new(), Device::new());
    here.hold(0..4);
    here.note(4..6, Absence::Unwanted);
    there.hold(0..2);
    there.note(2..4, Absence::Missing);
    there.hold(4..5);
    there.note(5..6, Absence::Unwanted);
    here.learn(&THERE, &there);
    here.confirm_as(&THERE, &there.told());
    here.index.doubt(&THERE, &[hash(1)]).unwrap();
    let nobody = BTreeSet::new();
    let census =
        |goal, sites: &[(NodeId, usize)]| here.index.census(goal, sites, 1, &nobody).unwrap();
    // On both: 0. Here alone: 1 (in doubt there), 2, 3. There alone: 4. Nowhere: 5.
    let goal = CopiesGoal::default();
    let expected = Census { known: 6, nowhere: 1, one_copy: 4, below_goal: 5, unconfirmed: 0 };
    assert_eq!(census(goal, &[(THERE, 2)]), expected);
    let two_sites = CopiesGoal { copies: 2, sites: 2 };
    assert_eq!(census(two_sites, &[(THERE, 1)]).below_goal, 6, "both are on one site");
    let alone = census(goal, &[]);
    assert_eq!((alone.nowhere, alone.one_copy), (2, 4), "who left the group does not count");
    assert_eq!(census(goal, &[(HERE, 7), (THERE, 2)]), expected, "nothing is known of it");
}

#[test]
fn what_a_connected_device_has_yet_to_confirm_is_not_counted_as_one_copy() {
    let (here, there) = (Device::new(), Device::new());
    here.hold(0..2);
    there.hold(0..1);
    there.note(1..2, Absence::Missing);
    let census = |awaited: &[NodeId]| {
        let awaited = awaited.iter().copied().collect();
        here.index.census(CopiesGoal::default(), &[(THERE, 2)], 1, &awaited).unwrap()
    };
    let undecided = Census { known: 2, unconfirmed: 2, ..Census::default() };
    assert_eq!(census(&[THERE]), undecided, "it was never confirmed");
    assert_eq!(census(&[]).one_copy, 2, "it is away, and nothing is known of it");
    here.learn(&THERE, &there);
    here.confirm_as(&THERE, &there.told());
    let decided = Census { known: 2, one_copy: 1, below_goal: 1, ..Census::default() };
    assert_eq!(census(&[THERE]), decided, "it lacks one of them");
    here.hold(2..3);
    let one_more = Census { known: 3, unconfirmed: 1, ..decided };
    assert_eq!(census(&[THERE]), one_more, "the new one is newer than the confirmation");
}

#[test]
fn an_index_of_the_first_version_keeps_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.db");
    crate::state::home::private_database_file(&path).unwrap();
    let old = Connection::open(&path).unwrap();
    old.execute_batch(super::super::open::SCHEMA).unwrap();
    old.execute_batch(
        "PRAGMA user_version = 1;
         INSERT INTO state VALUES (1, zeroblob(16), 'blake3', zeroblob(16), 2, 9, 1);",
    )
    .unwrap();
    for n in 0..2_u64 {
        let row = params![int(n + 1), hash(n).0, int(n)];
        old.execute("INSERT INTO known VALUES (?1, ?2, ?3)", row).unwrap();
    }
    drop(old);
    let index = Index::open(&path).unwrap();
    let head = index.head();
    assert_eq!((head.seq, head.count, head.held, head.store_cursor), (2, 2, 2, 9));
    assert_eq!(index.held(&[hash(0), hash(1), hash(2)]).unwrap(), [true, true, false]);
    assert_eq!(index.seqs(&[hash(1)]).unwrap(), [Some(2)]);
}

/// Random histories of two devices. Whenever both know the same hashes and have reported their absent
/// ones, each knows exactly what the other holds. In between neither claims anything that was not so.
#[test]
fn whatever_happens_what_is_claimed_was_so_when_it_was_last_confirmed() {
    for seed in 0..6_u64 {
        let mut state = seed;
        let mut random = |bound: u64| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ (mixed >> 29)) % bound
        };
        let mut devices = [Device::new(), Device::new()];
        let ids = [HERE, THERE];
        let mut backups: [Option<Vec<u8>>; 2] = [None, None];
        // What the other one held when it was last confirmed, as each device should know it.
        let mut confirmed: [std::collections::BTreeSet<u64>; 2] = Default::default();
        const HASHES: u64 = 30;
        for step in 0..150 {
            let at = random(2) as usize;
            let n = random(HASHES);
            let device = &mut devices[at];
            match random(10) {
                0..=2 => drop(device.hold(n..n + 1)),
                3 => device.note(n..n + 1, Absence::Unwanted),
                4 => drop(device.index.release(&[hash(n)]).unwrap()),
                5 => drop(device.index.forget(&[hash(n)]).unwrap()),
                6 => device.reopen(),
                7 if random(4) == 0 => {
                    device.index.close().unwrap();
                    let path = device.dir.path().join("index.db");
                    match backups[at].take() {
                        // What it knew of the other one goes back with it.
                        Some(backup) => {
                            std::fs::write(&path, backup).unwrap();
                            confirmed[at].clear();
                        }
                        None => backups[at] = Some(std::fs::read(&path).unwrap()),
                    }
                    device.index = open(&device.dir);
                }
                // They meet: each learns which hashes the other knows, and notes them.
                _ => {
                    let known = |device: &Device| -> Vec<Hash> {
                        let (rows, _) = device.index.rows(false, 0, 1000).unwrap();
                        rows.into_iter().map(|row| row.hash).collect()
                    };
                    for (one, other) in [(0, 1), (1, 0)] {
                        let theirs = known(&devices[other]);
                        let note = |hash: Hash| ((hash, None), Absence::Unwanted);
                        let note: Vec<_> = theirs.into_iter().map(note).collect();
                        devices[one].index.note(&note).unwrap();
                    }
                    for (one, other) in [(0, 1), (1, 0)] {
                        devices[one].learn(&ids[other], &devices[other]);
                        let told = devices[other].told();
                        assert!(devices[one].confirm_as(&ids[other], &told), "{seed}/{step}");
                        let held = (0..HASHES)
                            .filter(|n| devices[other].index.held(&[hash(*n)]).unwrap()[0]);
                        confirmed[one] = held.collect();
                        for n in 0..HASHES {
                            let is_claimed = devices[one].holders(n).contains(&ids[other]);
                            assert_eq!(
                                is_claimed,
                                confirmed[one].contains(&n),
                                "{seed}/{step}/{n}"
                            );
                        }
                    }
                    backups = [None, None];
                }
            }
            for (one, other) in [(0, 1), (1, 0)] {
                if backups[one].is_some() || confirmed[one].is_empty() {
                    continue;
                }
                for n in 0..HASHES {
                    let is_claimed = devices[one].holders(n).contains(&ids[other]);
                    assert!(!is_claimed || confirmed[one].contains(&n), "{seed}/{step}: {n}");
                }
            }
        }
    }
}

/// What it costs to know of a device with a tenth of a million assets, and of one with all of them.
/// `cargo test --lib -- --ignored --nocapture holders_of_a_million`
#[test]
#[ignore = "a measurement of minutes: cargo test --release --lib holders_of_a_million -- --ignored --nocapture"]
#[allow(clippy::print_stdout)]
fn holders_of_a_million_assets_take_little_memory_and_their_changes_few_bytes() {
    const ASSETS: u64 = 1_000_000;
    const PAGE: usize = crate::core::limits::HASHES_PER_FRAME_MAX;
    let timed = |what: &str, work: &mut dyn FnMut() -> String| {
        let start = std::time::Instant::now();
        let said = work();
        println!("{what}: {:.3} s {said}", start.elapsed().as_secs_f64());
    };
    let (here, there) = (Device::new(), Device::new());
    timed("the index of all", &mut || {
        (0..100).for_each(|n| drop(here.hold(n * ASSETS / 100..(n + 1) * ASSETS / 100)));
        String::new()
    });
    timed("the index of a tenth, the rest only known", &mut || {
        there.hold(0..ASSETS / 10);
        (10..100)
            .for_each(|n| there.note(n * ASSETS / 100..(n + 1) * ASSETS / 100, Absence::Unwanted));
        String::new()
    });
    let before = resident_bytes();
    let peers: Vec<NodeId> = (10..14).map(|n| NodeId([n; 32])).collect();
    let learn = |peer: &NodeId| {
        let mut bytes = 0;
        loop {
            let (belief, _) = here.index.belief(peer).unwrap();
            let page = there.index.absent_page(belief.log, belief.turn, PAGE).unwrap();
            let message = crate::core::message::Message::AbsentPage(Box::new(page.clone()));
            bytes += crate::wire::control::encode_message(&message).1.len();
            let why = vec![Absence::Unwanted; page.absent.len()];
            here.index.believe(peer, &page, &why).unwrap();
            if !page.more {
                return bytes;
            }
        }
    };
    timed("taking up what it lacks, once", &mut || format!("{} bytes", learn(&peers[0])));
    learn(&peers[1]);
    for peer in &peers[..2] {
        assert!(here.confirm_as(peer, &there.told()));
    }
    for peer in &peers[2..] {
        assert!(here.confirm(peer));
    }
    there.hold(ASSETS / 2..ASSETS / 2 + 100);
    timed("taking up 100 changes", &mut || format!("{} bytes", learn(&peers[0])));
    timed("confirming it", &mut || here.confirm_as(&peers[0], &there.told()).to_string());
    timed("10,000 times the holders of an asset", &mut || {
        let found: usize = (0..10_000).map(|n| here.holders(n * 100).len()).sum();
        format!("{found} found")
    });
    let sites: Vec<(NodeId, usize)> = peers.iter().zip(2..).map(|(peer, n)| (*peer, n)).collect();
    timed("the census", &mut || {
        format!(
            "{:?}",
            here.index.census(CopiesGoal::default(), &sites, 1, &BTreeSet::new()).unwrap()
        )
    });
    let after = resident_bytes();
    println!("memory: {} KiB more, {} KiB in all", (after - before) / 1024, after / 1024);
    let size = std::fs::metadata(here.dir.path().join("index.db")).unwrap().len();
    println!("index.db: {size} bytes");
    assert!(after - before < 32 << 20);
}

fn resident_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
}
