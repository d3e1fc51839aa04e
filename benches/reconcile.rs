//! What reconciling costs: bytes, round trips and CPU by size of set and of difference, beside the
//! plain protocol's full list and negentropy (range-based reconciliation).
//!
//! `cargo bench --bench reconcile [-- --json PATH] [--large]`; `--large` adds sets of 10,000,000.
//!
//! "To know" counts until the dialer has both lists; telling the acceptor what it lacks costs every
//! method the same 32 bytes a hash. One thread; the index is in memory, its time is apart.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../tests/reconcile/two_devices.rs"]
#[allow(dead_code)]
mod two_devices;

use std::time::{Duration, Instant};

use can_sync::core::ids::{GroupId, Hash};
use can_sync::core::sketch::{Sketch, SketchKey};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use serde_json::{Value, json};
use two_devices::{Course, Device, hash, reconcile_by};

/// The last is beyond what one sketch decodes.
const DIFFERENCES: [u64; 7] = [0, 1, 10, 100, 1000, 10_000, 100_000];
const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];
const LARGE_SIZE: u64 = 10_000_000;

/// What one method cost.
struct Cost {
    to_acceptor_bytes: usize,
    to_dialer_bytes: usize,
    to_know_bytes: usize,
    round_trips: usize,
    dialer: Duration,
    acceptor: Duration,
    way: String,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let json_path = args.iter().position(|arg| arg == "--json").map(|i| &args[i + 1]);
    let is_large = args.iter().any(|arg| arg == "--large");
    let sizes = SIZES.into_iter().chain(is_large.then_some(LARGE_SIZE));

    let sketch = sketch_upkeep();
    println!("\nsketch: {sketch:#}\n");
    println!(
        "{:>10} {:>6} {:<11} {:>11} {:>11} {:>11} {:>7} {:>4} {:>11} {:>11}",
        "N",
        "d",
        "method",
        "to acc. B",
        "to dial. B",
        "to know B",
        "x limit",
        "RTT",
        "dialer us",
        "acceptor us"
    );
    let mut rows = Vec::new();
    for size in sizes {
        let common = Device::new(1, 0..size);
        for differences in DIFFERENCES.into_iter().filter(|d| *d <= size) {
            let (mut dialer, mut acceptor) = pair(&common, size, differences);
            let mut row = |method: &str, cost: Cost| {
                print_row(size, differences, method, &cost);
                rows.push(as_json(size, differences, method, &cost));
            };
            row("can-sync", ours(&mut dialer, &mut acceptor));
            row("full list", full_list(&dialer, &acceptor));
            if size <= SIZES[2] {
                row("negentropy", ranges(&dialer, &acceptor));
            }
        }
    }
    if let Some(path) = json_path {
        let report = json!({ "sketch": sketch, "rows": rows });
        std::fs::write(path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
        println!("\nwritten to {path}");
    }
}

/// Two devices of `size` hashes, give or take the half of `differences` that each has alone.
fn pair(common: &Device, size: u64, differences: u64) -> (Device, Device) {
    let (mut dialer, mut acceptor) = (common.clone(), common.clone());
    acceptor.epoch = [2; 16];
    for n in 0..differences {
        let device = if n % 2 == 0 { &mut dialer } else { &mut acceptor };
        device.insert(hash(1_000_000_000 + size + n));
    }
    (dialer, acceptor)
}

fn ours(dialer: &mut Device, acceptor: &mut Device) -> Cost {
    let run = reconcile_by(Course::default(), dialer, acceptor).unwrap();
    assert!(run.dialer.lacks == dialer.lacking_of(acceptor));
    assert!(run.acceptor.lacks == acceptor.lacking_of(dialer));
    let again = reconcile_by(Course::default(), dialer, acceptor).unwrap();
    Cost {
        to_acceptor_bytes: run.dialer.sent_bytes,
        to_dialer_bytes: run.acceptor.sent_bytes,
        to_know_bytes: run.bytes_to_know,
        round_trips: run.round_trips,
        dialer: run.dialer.work.min(again.dialer.work),
        acceptor: run.acceptor.work.min(again.acceptor.work),
        way: format!("{:?}", run.ways),
    }
}

/// The plain protocol: both lists cross whole, 32 bytes a hash, and are merged.
fn full_list(dialer: &Device, acceptor: &Device) -> Cost {
    let (ours, theirs) = (dialer.hashes(), acceptor.hashes());
    let start = Instant::now();
    let sent: Vec<u8> = ours.iter().flat_map(|hash| hash.0).collect();
    let received: Vec<Hash> =
        sent.chunks_exact(Hash::LEN).map(|bytes| Hash(bytes.try_into().unwrap())).collect();
    let lacks = missing(&theirs, &received);
    let work = start.elapsed();
    assert!(lacks == dialer.lacking_of(acceptor).len());
    Cost {
        to_acceptor_bytes: ours.len() * Hash::LEN,
        to_dialer_bytes: theirs.len() * Hash::LEN,
        to_know_bytes: (ours.len() + theirs.len()) * Hash::LEN,
        round_trips: 1,
        dialer: work,
        acceptor: work,
        way: String::new(),
    }
}

/// How many of `all` are not in `some`; both ascending.
fn missing(all: &[Hash], some: &[Hash]) -> usize {
    let mut some = some.iter().peekable();
    let mut missing = 0;
    for hash in all {
        while some.next_if(|other| *other < hash).is_some() {}
        missing += usize::from(some.next_if_eq(&hash).is_none());
    }
    missing
}

fn ranges(dialer: &Device, acceptor: &Device) -> Cost {
    let sealed = |device: &Device| {
        let mut storage = NegentropyStorageVector::new();
        for hash in device.hashes() {
            storage.insert(0, Id::from_byte_array(hash.0)).unwrap();
        }
        storage.seal().unwrap();
        storage
    };
    let mut client = Negentropy::owned(sealed(dialer), 0).unwrap();
    let mut server = Negentropy::owned(sealed(acceptor), 0).unwrap();
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let (mut to_acceptor, mut to_dialer, mut round_trips) = (0, 0, 0);
    let (mut client_work, mut server_work) = (Duration::ZERO, Duration::ZERO);
    let mut next = Some(timed(&mut client_work, || client.initiate().unwrap()));
    while let Some(query) = next {
        round_trips += 1;
        to_acceptor += query.len();
        let reply = timed(&mut server_work, || server.reconcile(&query).unwrap());
        to_dialer += reply.len();
        next = timed(&mut client_work, || {
            client.reconcile_with_ids(&reply, &mut have, &mut need).unwrap()
        });
    }
    assert_eq!(need.len(), dialer.lacking_of(acceptor).len());
    Cost {
        to_acceptor_bytes: to_acceptor,
        to_dialer_bytes: to_dialer,
        to_know_bytes: to_acceptor + to_dialer,
        round_trips,
        dialer: client_work,
        acceptor: server_work,
        way: String::new(),
    }
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}

/// What it costs to have the sketch.
fn sketch_upkeep() -> Value {
    const INSERTS: u64 = 200_000;
    let key = SketchKey::derive(&GroupId([1; 32]));
    let mut sketch = Sketch::new(key);
    let hashes: Vec<Hash> = (0..INSERTS).map(hash).collect();
    let mut insert = Duration::ZERO;
    timed(&mut insert, || hashes.iter().for_each(|hash| sketch.insert(hash)));

    const SNAPSHOTS: u32 = 1000;
    let mut snapshot = Duration::ZERO;
    let kept: Vec<Sketch> =
        timed(&mut snapshot, || (0..SNAPSHOTS).map(|_| sketch.clone()).collect());
    let mut after_snapshot = Duration::ZERO;
    timed(&mut after_snapshot, || (0..1000).for_each(|n| sketch.insert(&hash(INSERTS + n))));
    drop(kept);

    let (mut fingerprint, mut to_bytes, mut from_bytes) = Default::default();
    timed(&mut fingerprint, || sketch.fingerprint());
    let bytes = timed(&mut to_bytes, || sketch.to_bytes());
    timed(&mut from_bytes, || Sketch::from_bytes(key, &bytes).unwrap());
    json!({
        "insert_ns": insert.as_nanos() as u64 / INSERTS,
        "insert_beside_a_snapshot_ns": after_snapshot.as_nanos() as u64 / 1000,
        "snapshot_ns": snapshot.as_nanos() as u64 / u64::from(SNAPSHOTS),
        "fingerprint_ns": fingerprint.as_nanos() as u64,
        "to_bytes_us": to_bytes.as_micros() as u64,
        "from_bytes_us": from_bytes.as_micros() as u64,
        "memory_bytes": bytes.len(),
    })
}

fn x_limit(differences: u64, cost: &Cost) -> Option<f64> {
    (differences > 0).then(|| cost.to_know_bytes as f64 / (32.0 * differences as f64))
}

fn print_row(size: u64, differences: u64, method: &str, cost: &Cost) {
    let x_limit = x_limit(differences, cost).map(|x| format!("{x:.2}")).unwrap_or("-".into());
    println!(
        "{size:>10} {differences:>6} {method:<11} {:>11} {:>11} {:>11} {x_limit:>7} {:>4} {:>11} \
         {:>11}  {}",
        cost.to_acceptor_bytes,
        cost.to_dialer_bytes,
        cost.to_know_bytes,
        cost.round_trips,
        cost.dialer.as_micros(),
        cost.acceptor.as_micros(),
        cost.way,
    );
}

fn as_json(size: u64, differences: u64, method: &str, cost: &Cost) -> Value {
    json!({
        "n": size,
        "d": differences,
        "method": method,
        "to_acceptor_bytes": cost.to_acceptor_bytes,
        "to_dialer_bytes": cost.to_dialer_bytes,
        "to_know_bytes": cost.to_know_bytes,
        "x_limit": x_limit(differences, cost),
        "round_trips": cost.round_trips,
        "dialer_us": cost.dialer.as_micros() as u64,
        "acceptor_us": cost.acceptor.as_micros() as u64,
        "way": cost.way,
    })
}
