//! What the embedded store acknowledged survives `kill -9` at any moment, and nothing is left half
//! done. The test starts itself as the process to kill.
//!
//! `CAN_SYNC_CRASH_ROUNDS` sets the number of rounds, `CAN_SYNC_CRASH_SEED` repeats a run.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use can_sync::core::ids::{Digest, HashAlgorithm};
use can_sync::store::embedded::{EmbeddedStore, Options};
use can_sync::store::{Metadata, NewAsset, READ_BYTES_MAX, Store};
use common::{asset, content, digest, file};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const CHILD: &str = "CAN_SYNC_CRASH_CHILD";

/// After this many rounds a new store begins, because every check reads all that earlier rounds
/// left.
const ROUNDS_A_STORE: u64 = 15;

fn open(dir: &Path) -> EmbeddedStore {
    let options = Options { hash_algorithm: BLAKE3, free_floor_bytes: Some(0) };
    EmbeddedStore::open(dir, options).unwrap()
}

/// The length of the content with this seed: mostly small; every seventh one is stored in a file.
fn length(seed: u64) -> usize {
    match seed % 7 {
        0 => 300_000 + (seed % 5) as usize * 200_000,
        n => (n * n * n) as usize * 37,
    }
}

/// The child: stores without end and prints a line for each acknowledged write: `a SEED` for an
/// asset, `m SEED TEXT` for an edit, `e SEED` for an eviction, `c CURSOR` for the newest cursor seen.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let (dir, start) = dir.split_once('@').unwrap();
    let start: u64 = start.parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(Path::new(dir));
        let lane = async |lane: u64| {
            for step in 0.. {
                let seed = start + lane * 10_000 + step * 20;
                let batch: Vec<u64> = (seed..seed + 20).collect();
                let (large, small): (Vec<u64>, _) = batch.iter().partition(|s| **s % 7 == 0);
                let assets: Vec<NewAsset> =
                    small.iter().map(|seed| asset(BLAKE3, content(*seed, length(*seed)))).collect();
                for result in store.put(assets).await.unwrap() {
                    result.unwrap();
                }
                small.iter().for_each(|seed| println!("\na {seed}"));
                for seed in large {
                    let content = content(seed, length(seed));
                    let new = file(BLAKE3, store.staging_dir(), &content);
                    store.adopt(new).await.unwrap();
                    println!("\na {seed}");
                }
                let hash = BLAKE3.hash(&content(small[0], length(small[0])));
                let edit = Metadata {
                    description: format!("edit{step}"),
                    tags: vec![format!("tag{step}")],
                    ..Metadata::default()
                };
                store.set_metadata(hash, &edit, None).await.unwrap();
                println!("\nm {} edit{step}", small[0]);
                let evicted = [small[1], seed + (7 - seed % 7)];
                let hashes = evicted.map(|seed| BLAKE3.hash(&content(seed, length(seed))));
                store.evict(hashes.into(), Box::new(|| true)).await.unwrap();
                evicted.iter().for_each(|seed| println!("\ne {seed}"));
                println!("\nc {}", store.info().await.unwrap().newest_cursor);
            }
        };
        futures_util::future::join3(lane(0), lane(1), lane(2)).await;
    });
}

#[derive(Default)]
struct Acknowledged {
    assets: Vec<u64>,
    edits: BTreeMap<u64, String>,
    evicted: Vec<u64>,
    cursor: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let number = |name, default| {
        let value = std::env::var(name).ok();
        value.map_or(default, |value| value.parse::<u64>().unwrap())
    };
    let seed = number("CAN_SYNC_CRASH_SEED", rand::random());
    let rounds = number("CAN_SYNC_CRASH_ROUNDS", 15);
    println!("CAN_SYNC_CRASH_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut tmp = tempfile::tempdir().unwrap();
    let mut known = Acknowledged::default();
    for round in 0..rounds {
        if round % ROUNDS_A_STORE == 0 {
            tmp = tempfile::tempdir().unwrap();
            known = Acknowledged::default();
        }
        let dir = tmp.path().join("store");
        let lines = random.random_range(0..120);
        let pause = Duration::from_micros(random.random_range(0..40_000));
        run_and_kill(&dir, round * 100_000, lines, pause, &mut known);
        check(&dir, &known).await;
    }
    assert!(known.assets.len() > 10, "too little was stored");
}

fn run_and_kill(dir: &Path, start: u64, lines: u64, pause: Duration, known: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{}@{start}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut read = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["a", seed] => known.assets.push(seed.parse().unwrap()),
            ["m", seed, text] => {
                known.edits.insert(seed.parse().unwrap(), text.to_owned());
            }
            ["e", seed] => known.evicted.push(seed.parse().unwrap()),
            ["c", cursor] => known.cursor = known.cursor.max(cursor.parse().unwrap()),
            _ => continue,
        }
        read += 1;
        if read == lines + 1 {
            // This sleep waits for nothing: it moves the kill to a random place in the next step.
            std::thread::sleep(pause);
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(signal, Some(9), "the child was not killed: {status}");
}

async fn check(dir: &Path, known: &Acknowledged) {
    let store = open(dir);
    let mut cursor = 0;
    let mut bytes = 0;
    let mut entries = Vec::new();
    loop {
        let page = store.changes(cursor, 1000).await.unwrap();
        for entry in &page.entries {
            assert!(entry.cursor > cursor);
            cursor = entry.cursor;
            bytes += entry.digest.size_bytes;
        }
        entries.extend(page.entries);
        cursor = page.next;
        if !page.has_more {
            break;
        }
    }
    let info = store.info().await.unwrap();
    assert_eq!(info.asset_count, entries.len() as u64);
    assert_eq!(info.asset_bytes, bytes);
    assert_eq!(info.newest_cursor, cursor);
    assert!(cursor >= known.cursor, "the feed went back");

    for seed in &known.assets {
        let digest = digest(BLAKE3, &content(*seed, length(*seed)));
        let row = store.lookup(digest.hash).await.unwrap();
        assert!(row.is_some(), "asset {seed} was acknowledged and is gone");
    }
    for (seed, text) in &known.edits {
        let hash = BLAKE3.hash(&content(*seed, length(*seed)));
        let row = store.lookup(hash).await.unwrap().unwrap();
        assert_eq!(&row.metadata.description, text);
        assert_eq!(row.metadata.tags.len(), 1);
    }
    for seed in &known.evicted {
        let hash = BLAKE3.hash(&content(*seed, length(*seed)));
        assert!(store.lookup(hash).await.unwrap().unwrap().is_evicted);
    }
    // Every listed asset is complete, acknowledged or not.
    let mut files = 0;
    for entry in &entries {
        assert_eq!(read_all(&store, entry.digest).await, entry.digest.hash);
        files += usize::from(entry.digest.size_bytes >= 300_000);
    }
    let kept = walkdir::WalkDir::new(dir.join("content"))
        .into_iter()
        .filter(|entry| entry.as_ref().unwrap().file_type().is_file())
        .count();
    assert_eq!(kept, 2 * files, "a content and an outboard for each, no more");
    for name in ["temp", "staging"] {
        assert_eq!(std::fs::read_dir(dir.join(name)).unwrap().count(), 0);
    }
    store.close().await;
}

async fn read_all(store: &EmbeddedStore, digest: Digest) -> can_sync::core::ids::Hash {
    let mut content = Vec::new();
    while (content.len() as u64) < digest.size_bytes {
        let start = content.len() as u64;
        let end = (start + READ_BYTES_MAX).min(digest.size_bytes);
        let part = store.read(digest.hash, start..end).await.unwrap().unwrap();
        content.extend_from_slice(&part);
    }
    BLAKE3.hash(&content)
}
