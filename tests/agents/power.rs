//! Simulated power cuts of an eviction and of a repair: at every step an image is made of what a disk
//! could hold then, and an agent is started on it. The write-ahead logs are cut off within and after every
//! frame; renames and removals that no fsync has followed yet are on the disk in any combination.
//!
//! Each image costs a start of an agent, so a usual run tries one in [`ONE_IN`] of each kind.
//! `EVERY_CUT=1` in the environment has it try all.

use std::fs;
use std::path::PathBuf;

use can_sync::copies::gathered::{GatherOutcome, Purpose};
use can_sync::core::ids::Digest;
use can_sync::state::copies::Copies;
use common::wal::{WAL_HEADER_BYTES, frames, pin, wal_of};

use super::damage::{content_file, flip, is_whole};
use super::evict::outcome;
use super::*;

const LARGE: usize = 400 * KIB;

/// The share of the images that a usual run tries.
const ONE_IN: usize = 6;

/// Counts the images of each kind, and says which to try.
struct Tries<const KINDS: usize>([usize; KINDS]);

impl<const KINDS: usize> Tries<KINDS> {
    fn is_next(&mut self, kind: usize) -> bool {
        let one_in = if std::env::var_os("EVERY_CUT").is_some() { 1 } else { ONE_IN };
        let count = self.0[kind];
        self.0[kind] += 1;
        count.is_multiple_of(one_in)
    }
}

/// How much of a write-ahead log is on the disk, in bytes, and how many of its commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    bytes: usize,
    commits: usize,
}

/// Where the log may be cut off: within each frame, and after it.
fn cuts(wal: &[u8]) -> Vec<Cut> {
    let mut cuts = vec![Cut { bytes: 0, commits: 0 }];
    let (mut start, mut commits) = (WAL_HEADER_BYTES, 0);
    for (end, is_commit) in frames(wal) {
        cuts.push(Cut { bytes: (start + end) / 2, commits });
        commits += usize::from(is_commit);
        cuts.push(Cut { bytes: end, commits });
        start = end;
    }
    cuts
}

fn store_db(device: &Device) -> PathBuf {
    device.home.store_dir().join("store.db")
}

fn outboard_file(device: &Device, digest: &Digest) -> PathBuf {
    content_file(device, digest).with_extension("outboard")
}

/// An image of a device's disk: a copy of `base` with this much of a log of a database.
fn cut_off(image: &Device, database: fn(&Device) -> PathBuf, wal: &[u8], cut: Cut) {
    let path = database(image);
    fs::write(wal_of(&path), &wal[..cut.bytes]).unwrap();
    // The index of the log is made anew from it.
    let _ = fs::remove_file(PathBuf::from(format!("{}-shm", path.display())));
}

/// How many commits of a log it takes until the query of its database finds something.
fn first_commit(
    base: &Device,
    database: fn(&Device) -> PathBuf,
    wal: &[u8],
    query: &str,
) -> Option<usize> {
    cuts(wal).into_iter().find_map(|cut| {
        let image = base.copied();
        cut_off(&image, database, wal, cut);
        let found = rusqlite::Connection::open(database(&image)).unwrap();
        found.prepare(query).unwrap().exists([]).unwrap().then_some(cut.commits)
    })
}

async fn bytes(device: &Device, digest: &Digest) -> Vec<u8> {
    let range = 0..digest.size_bytes;
    device.store().read(digest.hash, range).await.unwrap().expect("it is held").to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_of_an_eviction_leaves_the_copy_whole_or_gone_and_never_the_last() {
    let (mut a, b) = (Device::start().await, Device::start().await);
    let asset = a.add([LARGE]).await.remove(0);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let content = bytes(&a, &asset).await;
    quiet(&[&a, &b]).await;
    let copies_db = |device: &Device| device.home.copies_db_path();
    let pinned = (pin(&store_db(&a), "assets"), pin(&copies_db(&a), "let_go"));
    let base = a.copied();
    let evicted = outcome(&a, asset, 1, Purpose::Evict { dry_run: false }).await;
    assert_eq!(evicted, GatherOutcome::Evicted);
    let of_store = fs::read(wal_of(&store_db(&a))).unwrap();
    let of_copies = fs::read(wal_of(&copies_db(&a))).unwrap();
    drop(pinned);
    a.down().await;

    let first = |database, wal: &[u8], query| first_commit(&base, database, wal, query).unwrap();
    let intent = first(copies_db, &of_copies, "SELECT 1 FROM let_go WHERE keeping = 1");
    let ended = first(copies_db, &of_copies, "SELECT 1 FROM let_go WHERE keeping = 2");
    let gone = first(store_db, &of_store, "SELECT 1 FROM assets WHERE evicted");
    let (of_store_all, of_copies_all) = (cuts(&of_store), cuts(&of_copies));
    let last_of_store = *of_store_all.last().unwrap();
    // The intent is durable before the store deletes, and the store has deleted before it ends.
    let mut images = Vec::new();
    for copies in &of_copies_all {
        match copies.commits {
            n if n < intent => images.push((of_store_all[0], *copies)),
            n if n < ended => images.extend(of_store_all.iter().map(|store| (*store, *copies))),
            _ => images.push((last_of_store, *copies)),
        }
    }
    // A proof is written between: of the cuts within one commit the first and the last are enough there.
    images.dedup();
    let mut tries = Tries([0; 2]);
    for (store, copies) in images {
        let is_evicted = store.commits >= gone;
        let files: &[(bool, bool)] = match is_evicted {
            false => &[(true, true)],
            true if store == last_of_store => &[(false, false)],
            true => &[(true, true), (true, false), (false, true), (false, false)],
        };
        for (has_content, has_outboard) in files {
            if !tries.is_next(usize::from(is_evicted)) {
                continue;
            }
            let mut image = base.copied();
            cut_off(&image, store_db, &of_store, store);
            cut_off(&image, copies_db, &of_copies, copies);
            if !has_content {
                fs::remove_file(content_file(&image, &asset)).unwrap();
            }
            if !has_outboard {
                fs::remove_file(outboard_file(&image, &asset)).unwrap();
            }
            image.up().await;
            let why = format!("{store:?} {copies:?} {has_content} {has_outboard}");
            let row = image.store().lookup(asset.hash).await.unwrap().unwrap();
            assert_eq!(row.is_evicted, is_evicted, "{why}");
            assert!(!row.is_damaged, "{why}");
            match is_evicted {
                true => assert_eq!(image.store().read(asset.hash, 0..1).await.unwrap(), None),
                false => assert!(bytes(&image, &asset).await == content, "{why}"),
            }
            image.down().await;
            let settled = Copies::open(&copies_db(&image)).unwrap();
            assert!(settled.intents().unwrap().is_empty(), "{why}");
            let is_let_go = settled.are_evicted(&[asset.hash]).unwrap() == [true];
            assert_eq!(is_let_go, is_evicted, "it is wanted if and only if it is here: {why}");
            settled.close();
        }
    }
    assert!(tries.0.iter().all(|count| *count > 3), "{:?}", tries.0);
    assert!(bytes(&b, &asset).await == content, "the copy that it relied on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_of_a_repair_leaves_the_copy_marked_or_whole_and_it_is_mended() {
    let (mut a, b) = (Device::start().await, Device::start().await);
    let asset = a.add([LARGE]).await.remove(0);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let content = bytes(&b, &asset).await;
    quiet(&[&a, &b]).await;
    flip(&a, &asset, LARGE / 2);
    let pinned = pin(&store_db(&a), "assets");
    let base = a.copied();
    assert!(!is_whole(&a, &asset).await);
    until("it is mended", &[&a, &b], async || is_whole(&a, &asset).await).await;
    let wal = fs::read(wal_of(&store_db(&a))).unwrap();
    drop(pinned);
    a.down().await;

    let first = |query| first_commit(&base, store_db, &wal, query).unwrap();
    let marked = first("SELECT 1 FROM assets WHERE damaged IS NOT NULL");
    let reserved = first("SELECT 1 FROM pending");
    // It takes a place of its own in the feed when it is whole again.
    let whole = {
        let newest = "SELECT 1 FROM assets WHERE damaged IS NULL AND cursor > 1";
        first(newest)
    };
    assert!(marked <= reserved && reserved < whole, "{marked} {reserved} {whole}");
    let mut tries = Tries([0; 3]);
    for cut in cuts(&wal) {
        let files: &[(bool, bool)] = match cut.commits {
            n if n < reserved => &[(false, false)],
            n if n < whole => &[(false, false), (true, false), (false, true), (true, true)],
            _ => &[(true, true)],
        };
        let is_marked = cut.commits >= marked && cut.commits < whole;
        for (new_content, new_outboard) in files {
            if !tries.is_next(usize::from(is_marked) + 2 * usize::from(cut.commits >= whole)) {
                continue;
            }
            let mut image = base.copied();
            cut_off(&image, store_db, &wal, cut);
            if *new_content {
                fs::copy(content_file(&a, &asset), content_file(&image, &asset)).unwrap();
            }
            if *new_outboard {
                fs::copy(outboard_file(&a, &asset), outboard_file(&image, &asset)).unwrap();
            }
            let why = format!("{cut:?} {new_content} {new_outboard}");
            image.up().await;
            // Before it is marked nobody has seen the damage; once it is, it is held only when whole.
            let row = image.store().lookup(asset.hash).await.unwrap().unwrap();
            if cut.commits >= marked && row.is_held() {
                assert!(bytes(&image, &asset).await == content, "{why}");
            }
            until("it is mended", &[&image, &b], async || is_whole(&image, &asset).await).await;
            assert!(bytes(&image, &asset).await == content, "{why}");
            image.down().await;
        }
    }
    assert!(tries.0.iter().all(|count| *count > 0), "{:?}", tries.0);
    assert!(bytes(&b, &asset).await == content);
}
