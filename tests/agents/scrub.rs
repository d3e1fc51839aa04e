//! The scrub and `verify`: what they find, what comes of it, and what they leave alone.

use can_sync::core::ids::Digest;
use can_sync::core::scrub::ScrubRate;
use can_sync::replica::status::ScrubState;
use can_sync::store::{Condition, Store as _};

use super::damage::{content_file, flip, is_whole};
use super::*;

/// As fast as the disk is.
const FAST: ScrubRate = ScrubRate::Bytes(1 << 40);

/// One chunk group.
const GROUP: u64 = 16 * 1024;

const LARGE: usize = 1024 * KIB;

async fn until_rested(device: &Device, others: &[&Device]) {
    let all: Vec<&Device> = std::iter::once(device).chain(others.iter().copied()).collect();
    until("the cycle is done", &all, async || device.status().scrub.state == ScrubState::Resting)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_has_rotted_is_found_within_a_cycle_mended_by_others_and_nothing_is_deleted() {
    let (mut a, b) = (Device::start().await, Device::start().await);
    let large = a.add([LARGE; 5]).await;
    let small = a.add([5000; 40]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    a.down().await;
    flip(&a, &large[0], LARGE / 2);
    std::fs::File::options()
        .write(true)
        .open(content_file(&a, &large[1]))
        .unwrap()
        .set_len(99)
        .unwrap();
    std::fs::remove_file(content_file(&a, &large[2])).unwrap();
    let outboard = content_file(&a, &large[3]).with_extension("outboard");
    let pairs = std::fs::read(&outboard).unwrap();
    std::fs::write(&outboard, vec![7; pairs.len()]).unwrap();
    let rows = rusqlite::Connection::open(a.home.store_dir().join("store.db")).unwrap();
    let rot = "UPDATE contents SET content = zeroblob(5000) WHERE asset IN
               (SELECT cursor FROM assets WHERE hash IN (?1, ?2))";
    let rotten = [small[3].hash.as_bytes(), small[17].hash.as_bytes()];
    assert_eq!(rows.execute(rot, rotten).unwrap(), 2);
    drop(rows);
    let stray = content_file(&a, &large[0]).with_file_name("notes.txt");
    std::fs::write(&stray, "mine").unwrap();

    a.scrub_rate = FAST;
    a.up().await;
    until_rested(&a, &[&b]).await;
    let scrub = a.status().scrub;
    assert_eq!((scrub.damaged, scrub.strays, scrub.assets), (5, 1, 45), "{scrub:?}");
    assert_eq!(scrub.done_permille, 1000);
    until("all are whole again", &[&a, &b], async || {
        a.status().store.damaged == 0 && a.status().store.assets == 45
    })
    .await;
    for digest in large.iter().chain(&small) {
        assert!(is_whole(&a, digest).await);
    }
    assert_eq!(std::fs::read(&outboard).unwrap(), pairs, "computed anew");
    assert_eq!(std::fs::read(&stray).unwrap(), b"mine");
    assert_eq!(b.status().scrub.state, ScrubState::Off);
    all_in_sync(&[&a, &b], 1).await;
    // Of the flipped one a group; the others are gone, or too short to be of use.
    let lost = 2 * LARGE as u64 + 2 * 5000 + GROUP;
    assert!(a.received_bytes() <= lost, "{} of {lost}", a.received_bytes());

    // The next cycle is due in 30 days, also after a restart.
    let begun_ms = scrub.begun_ms;
    a.down().await;
    a.up().await;
    until_rested(&a, &[&b]).await;
    assert_eq!(a.status().scrub.begun_ms, begun_ms);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_store_that_offers_it_is_repaired_by_what_other_devices_hold() {
    let store = Foreign::start(HashAlgorithm::Blake3).await;
    let (mut a, b) = (Device::beside(&store).await, Device::start().await);
    until("the store is up", &[&a], async || a.status().store.up).await;
    pair(&b, &a).await;
    let assets = store.add([LARGE, 5000, LARGE, 70]).await;
    all_in_sync(&[&a, &b], 1).await;
    a.down().await;
    store.faults.wrong.lock().extend([assets[0].hash, assets[1].hash]);
    a.scrub_rate = FAST;
    a.up().await;
    until("both are replaced", &[&a, &b], async || {
        store.faults.repairs.load(std::sync::atomic::Ordering::Relaxed) == 2
            && a.status().store.damaged == 0
            && a.status().store.assets == 4
    })
    .await;
    assert_eq!(a.status().scrub.damaged, 2);
    for digest in &assets {
        assert_eq!(store.store().verify(digest.hash).await.unwrap(), Condition::Whole);
    }
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(store.hashes().await, b.hashes().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_under_the_scrub_stops_the_scrub_and_not_the_agent() {
    let mut a = Device::start().await;
    let assets: Vec<Digest> = a.add([300 * KIB; 70]).await;
    let kept = a.add([300 * KIB]).await.remove(0);
    a.down().await;
    // Of the right length: only reading shows it.
    for digest in &assets {
        flip(&a, digest, 1000);
    }
    a.scrub_rate = FAST;
    a.up().await;
    until("the scrub stops", &[&a], async || a.status().scrub.state == ScrubState::Stopped).await;
    let reason = a.status().scrub.stopped.unwrap();
    assert!(reason.contains("32 failures in a row"), "{reason}");
    let obstacles = a.status().device.obstacles;
    assert!(obstacles.iter().any(|text| text.contains("not checked for damage")), "{obstacles:?}");
    assert!(is_whole(&a, &kept).await);
    assert_eq!(a.add([300 * KIB]).await.len(), 1);
}
