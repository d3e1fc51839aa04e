//! The damage campaign: bits rot on one of two devices again and again, under load. Every damage has
//! to be found within a cycle of the scrub, and mended by the other device. Runs for long when asked;
//! see CONTRIBUTING.md.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use can_sync::core::ids::Digest;
use can_sync::core::scrub::ScrubRate;
use can_sync::replica::status::ScrubState;

use super::damage::content_file;
use super::*;

const GROUP: u64 = 16 * 1024;

/// A seeded source of numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What was done to an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rot {
    Flip,
    Sector,
    Cut,
    Lost,
    Page,
    Outboard,
}

const OF_LARGE: [Rot; 5] = [Rot::Flip, Rot::Sector, Rot::Cut, Rot::Lost, Rot::Outboard];

fn flip_at(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Damages a large asset. Returns how many bytes of content are wrong, in whole groups.
fn rot_large(device: &Device, digest: &Digest, rot: Rot, dice: &mut Dice) -> u64 {
    let (path, size) = (content_file(device, digest), digest.size_bytes);
    let at = dice.below(size);
    let group = |at: u64| (at / GROUP * GROUP + GROUP).min(size) - at / GROUP * GROUP;
    match rot {
        Rot::Flip => {
            flip_at(&path, at);
            group(at)
        }
        Rot::Sector => {
            let at = at / 4096 * 4096;
            let zeros = vec![0; 4096.min(size - at) as usize];
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&zeros, at).unwrap();
            group(at)
        }
        Rot::Cut => {
            std::fs::File::options().write(true).open(&path).unwrap().set_len(at).unwrap();
            size - at / GROUP * GROUP
        }
        Rot::Lost => {
            std::fs::remove_file(&path).unwrap();
            size
        }
        Rot::Outboard => {
            let path = path.with_extension("outboard");
            let bytes = std::fs::metadata(&path).unwrap().len();
            flip_at(&path, dice.below(bytes));
            0
        }
        Rot::Page => unreachable!("a large asset is in no page"),
    }
}

/// Flips a bit of a small content in the pages of the database. Free pages hold copies of contents
/// that were replaced, so all copies get it.
fn rot_page(pages: &mut [u8], content: &[u8], dice: &mut Dice) -> bool {
    let middle = &content[10_000..10_048];
    let copies: Vec<usize> = pages
        .windows(middle.len())
        .enumerate()
        .filter_map(|(at, window)| (window == middle).then_some(at))
        .collect();
    let offset = dice.below(48) as usize;
    for at in &copies {
        pages[at + offset] ^= 1;
    }
    !copies.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the damage campaign, run by hand before a release; CONTRIBUTING has the command"]
async fn whatever_rots_again_and_again_is_found_in_each_cycle_and_mended() {
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (seconds, seed): (u64, u64) = (number("ROT_SECONDS", 60), number("ROT_SEED", 1));
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut a, b) = (Device::start().await, Device::start().await);
    let sizes = (0..30).map(|_| 300_000 + dice.below(3_000_000) as usize).collect::<Vec<_>>();
    let large = a.add(sizes).await;
    let small = a.add([20_000; 60]).await;
    let mut contents = Vec::new();
    for digest in &small {
        contents.push(a.store().read(digest.hash, 0..digest.size_bytes).await.unwrap().unwrap());
    }
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    a.scrub_rate = ScrubRate::Bytes(1 << 40);
    let (mut rounds, mut inflicted, mut found, mut wrong, mut came, mut read) = (0, 0, 0, 0, 0, 0);
    let mut by_kind = std::collections::BTreeMap::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        a.down().await;
        let (mut damaged, mut wrong_bytes) = (0, 0);
        for digest in &large {
            if dice.below(3) == 0 {
                let rot = OF_LARGE[dice.below(OF_LARGE.len() as u64) as usize];
                wrong_bytes += rot_large(&a, digest, rot, &mut dice);
                damaged += u64::from(rot != Rot::Outboard);
                *by_kind.entry(rot).or_insert(0) += 1;
            }
        }
        let database = a.home.store_dir().join("store.db");
        let mut pages = std::fs::read(&database).unwrap();
        for content in &contents {
            if dice.below(6) == 0 && rot_page(&mut pages, content, &mut dice) {
                wrong_bytes += content.len() as u64;
                damaged += 1;
                *by_kind.entry(Rot::Page).or_insert(0) += 1;
            }
        }
        std::fs::write(&database, pages).unwrap();
        // A cycle begins anew only after 30 days.
        let _ = std::fs::remove_file(a.home.state_dir().join("scrub"));
        a.up().await;
        let load = async {
            b.add((0..20).map(|n| 1_000 + n * 20_000)).await;
        };
        let both = [&a, &b];
        let scrubbed = until("the cycle is done", &both, async || {
            a.status().scrub.state == ScrubState::Resting
        });
        tokio::join!(load, scrubbed);
        let scrub = a.status().scrub;
        // A lookup shows that a file is lost, and may come first.
        let found_now = a.store().damages().borrow().found;
        assert_eq!(found_now, damaged, "seed {seed}, round {rounds}: {scrub:?}");
        until("all is whole again", &[&a, &b], async || a.status().store.damaged == 0).await;
        all_in_sync(&[&a, &b], 1).await;
        assert_eq!(a.status().store.assets, b.status().store.assets);
        a.verify().await;
        (rounds, inflicted, found) = (rounds + 1, inflicted + damaged, found + found_now);
        (wrong, came, read) =
            (wrong + wrong_bytes, came + a.received_bytes(), read + scrub.read_bytes);
    }
    b.verify().await;
    println!(
        "seed {seed}: {rounds} rounds in {:?}, {inflicted} assets damaged, {found} found, all mended; \
         {wrong} bytes were wrong, {came} came on the last connections (load included); {read} bytes \
         read by the scrub; {by_kind:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, run by hand on a quiet machine: cargo test --release --test agents live_push -- --ignored --nocapture"]
async fn how_long_a_live_push_takes_beside_a_scrub() {
    let (mut a, b) = (Device::start().await, Device::start().await);
    a.add([8 * KIB * KIB; 100]).await;
    a.add([50_000; 2000]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    for rate in
        [ScrubRate::Off, ScrubRate::Bytes(8 << 20), ScrubRate::Off, ScrubRate::Bytes(32 << 20)]
    {
        a.down().await;
        let _ = std::fs::remove_file(a.home.state_dir().join("scrub"));
        a.scrub_rate = rate;
        a.up().await;
        all_in_sync(&[&a, &b], 1).await;
        let mut took = Vec::new();
        let began = Instant::now();
        for _ in 0..400 {
            let pushed = Instant::now();
            let digest = b.add([4_000]).await.remove(0);
            while a.store().lookup(digest.hash).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            took.push(pushed.elapsed());
        }
        took.sort();
        let scrub = a.status().scrub;
        println!(
            "{rate:?}: p50 {:?}, p99 {:?}, most {:?}; the scrub read {} bytes in {:?} ({:?})",
            took[200],
            took[396],
            took[399],
            scrub.read_bytes,
            began.elapsed(),
            scrub.state
        );
    }
}
