//! What replicating the journal costs: ops a second from one journal to another, bytes on the wire
//! and on disk per op, how long a live op takes to the peer's commit, and what a new device needs.
//!
//! `cargo bench --bench journal [-- --json PATH] [--large]`; `--large` adds a journal of 1,000,000
//! records.
//!
//! Two journals in one process, each with every commit synced to disk, and a pipe in memory between
//! them: the network's own time is apart. Ops are signed, verified and applied as in an agent.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/journal_stream/node.rs"]
#[allow(dead_code)]
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Elem, Key, Value};
use node::{Link, Node, draft};
use serde_json::{Value as Json, json};

const SIZES: [u64; 2] = [10_000, 100_000];
const LARGE_SIZE: u64 = 1_000_000;

/// Live ops that are timed, one after the other.
const LIVE_OPS: u64 = 300;

/// What the largest join may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The text of a one-field record.
const TEXT_BYTES: usize = 60;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let json_path = args.iter().position(|arg| arg == "--json").map(|i| &args[i + 1]);
    let is_large = args.iter().any(|arg| arg == "--large");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let live = live().await;
        println!("a live op, from the call to write it to the peer's commit: {live:#}\n");
        println!(
            "{:>9} {:<22} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "records", "each", "write s", "join s", "ops/s", "wire B/op", "disk B/op", "peak MiB"
        );
        let mut rows = Vec::new();
        for size in SIZES.into_iter().chain(is_large.then_some(LARGE_SIZE)) {
            rows.push(join("one text", size, one_text).await);
            if size == SIZES[0] {
                rows.push(join("an asset's four cells", size, asset).await);
            }
        }
        if let Some(path) = json_path {
            let report = json!({ "live": live, "join": rows });
            std::fs::write(path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
            println!("\nwritten to {path}");
        }
    });
}

fn one_text(n: u64) -> Draft {
    draft(n, TEXT_BYTES)
}

/// Description, whether it is trashed, and two tags.
fn asset(n: u64) -> Draft {
    let id = blake3::hash(&n.to_be_bytes()).as_bytes().to_vec();
    let tag = |tag: &str| Elem { field: "tags".into(), elem: tag.into() };
    let put = DraftPut {
        key: Key { model: "asset".into(), id, owned: false },
        create: false,
        set: BTreeMap::from([
            ("description".into(), Some(Value::Text(format!("holiday picture number {n}")))),
            ("trashed".into(), Some(Value::Bool(false))),
        ]),
        add: BTreeSet::from([tag("holiday"), tag("lake")]),
        remove: BTreeSet::new(),
    };
    Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }
}

/// A new device joins a journal of `size` records.
async fn join(each: &str, size: u64, record: fn(u64) -> Draft) -> Json {
    let first = Node::founder();
    let drafts: Vec<Draft> = (0..size).map(record).collect();
    let writing = Instant::now();
    for drafts in drafts.chunks(256) {
        let drafts = drafts.to_vec();
        first.journal.run(move |journal, now_ms| journal.write(&drafts, now_ms)).await.unwrap();
    }
    let write = writing.elapsed();
    drop(drafts);
    let second = first.welcome().await;
    let before_bytes = forget_peak();
    let started = Instant::now();
    let link = Link::between(&first, &second);
    loop {
        let (ours, theirs) = tokio::join!(first.clock(), second.clock());
        if ours.digest == theirs.digest {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "the journals do not become equal");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let join = started.elapsed();
    let grown_bytes = peak_bytes().saturating_sub(before_bytes);
    let wire_bytes = link.bytes() as u64;
    link.close().await;
    let disk_bytes = second.sleep().await.database_bytes();
    let ops_per_s = size as f64 / join.as_secs_f64();
    println!(
        "{size:>9} {each:<22} {:>9.2} {:>9.2} {ops_per_s:>9.0} {:>9} {:>9} {:>9.1}",
        write.as_secs_f64(),
        join.as_secs_f64(),
        wire_bytes / size,
        disk_bytes / size,
        grown_bytes as f64 / (1024.0 * 1024.0),
    );
    json!({
        "records": size,
        "each": each,
        "write_s": write.as_secs_f64(),
        "join_s": join.as_secs_f64(),
        "ops_per_s": ops_per_s,
        "wire_bytes_per_op": wire_bytes / size,
        "disk_bytes_per_op": disk_bytes / size,
        "peak_grown_bytes": grown_bytes,
    })
}

/// Ops written one by one while the two are in step.
async fn live() -> Json {
    let first = Node::founder();
    let second = first.welcome().await;
    let link = Link::between(&first, &second);
    link.in_sync().await;
    let mut took_us = Vec::new();
    for n in 0..LIVE_OPS {
        let mut commits = second.journal.commits();
        let started = Instant::now();
        first.write(one_text(n)).await;
        while !second.has(n).await {
            commits.changed().await.unwrap();
        }
        took_us.push(u64::try_from(started.elapsed().as_micros()).unwrap());
    }
    took_us.sort_unstable();
    let at = |percent: usize| took_us[(took_us.len() - 1) * percent / 100];
    json!({ "ops": LIVE_OPS, "p50_us": at(50), "p99_us": at(99), "max_us": at(100) })
}

/// Forgets the greatest memory use so far, where the system can; returns the present one.
fn forget_peak() -> u64 {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    status_bytes("VmRSS:")
}

fn peak_bytes() -> u64 {
    status_bytes("VmHWM:")
}

fn status_bytes(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    let kib = found.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
