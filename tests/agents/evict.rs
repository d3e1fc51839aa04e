//! Copies that are proven by other devices, and deleted here.

use std::sync::Arc;

use can_sync::clock::{boot_ms, wall_ms};
use can_sync::copies::gathered::{GatherOutcome, GatherRequest, Gathered, Purpose};
use can_sync::core::ids::{Digest, Hash};
use can_sync::state::copies::Copies;
use can_sync::store::Metadata;

use super::damage::flip;
use super::*;

const LARGE: usize = 3 * KIB * KIB;
const SAFE: Purpose = Purpose::Safe { within_ms: 0 };
const EVICT: Purpose = Purpose::Evict { dry_run: false };

async fn gather(
    device: &Device,
    assets: &[Digest],
    copies: usize,
    purpose: Purpose,
) -> Vec<Gathered> {
    let hashes = assets.iter().map(|digest| digest.hash).collect();
    let request = GatherRequest { hashes, copies, sites: 1, purpose };
    let mut told = device.handle().gather(request).await.unwrap();
    let mut gathered = Vec::new();
    while let Some(one) = timeout(SOON, told.recv()).await.expect("it ends") {
        gathered.push(one);
    }
    assert_eq!(gathered.len(), assets.len(), "one outcome for each");
    gathered
}

pub(super) async fn outcome(
    device: &Device,
    asset: Digest,
    copies: usize,
    purpose: Purpose,
) -> GatherOutcome {
    gather(device, &[asset], copies, purpose).await[0].outcome
}

/// Why it was refused, and why each device did not count.
async fn reasons(device: &Device, asset: Digest, copies: usize, purpose: Purpose) -> String {
    let gathered = gather(device, &[asset], copies, purpose).await.remove(0);
    assert_eq!(gathered.outcome, GatherOutcome::Refused, "{gathered:?}");
    let lacking = gathered.lacking.iter().map(|at| at.why.clone());
    gathered.reason.into_iter().chain(lacking).collect::<Vec<_>>().join("; ")
}

async fn holds(device: &Device, hash: Hash) -> bool {
    device.store().lookup(hash).await.unwrap().is_some_and(|asset| asset.is_held())
}

/// Three devices that hold the same assets.
async fn three(sizes: &[usize]) -> (Device, Device, Device, Vec<Digest>) {
    let (a, b, c) = (Device::start().await, Device::start().await, Device::start().await);
    let assets = a.add(sizes.iter().copied()).await;
    pair(&a, &b).await;
    pair(&a, &c).await;
    all_in_sync(&[&a, &b, &c], 2).await;
    (a, b, c, assets)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_that_two_others_hold_are_evicted_stay_away_and_come_back_when_fetched() {
    let (a, b, c, assets) = three(&[0, 1000, 300 * KIB, LARGE]).await;
    let described = Metadata { description: "kept".into(), ..Metadata::default() };
    a.store().set_metadata(assets[3].hash, &described, None).await.unwrap();
    for gathered in gather(&a, &assets, 2, SAFE).await {
        assert_eq!(gathered.outcome, GatherOutcome::Proven, "{gathered:?}");
        assert_eq!(gathered.proven.len(), 2);
    }
    for gathered in gather(&a, &assets, 2, Purpose::Evict { dry_run: true }).await {
        assert_eq!(gathered.outcome, GatherOutcome::WouldEvict, "{gathered:?}");
    }
    assert_eq!(a.hashes().await.len(), 4, "a dry run deletes nothing");
    for gathered in gather(&a, &assets, 2, EVICT).await {
        assert_eq!(gathered.outcome, GatherOutcome::Evicted, "{gathered:?}");
    }
    for digest in &assets {
        let row = a.store().lookup(digest.hash).await.unwrap().unwrap();
        assert!(row.is_evicted, "a stub is left");
        let why = a.handle().why(digest.hash.into()).await.unwrap().text;
        assert!(why.contains("evicted"), "{why}");
        assert!(holds(&b, digest.hash).await && holds(&c, digest.hash).await);
    }
    let row = a.store().lookup(assets[3].hash).await.unwrap().unwrap();
    assert_eq!(row.metadata.description, "kept");
    all_in_sync_as_wanted(&[&a, &b, &c], 2).await;
    quiet(&[&a, &b, &c]).await;
    assert_eq!(a.hashes().await.len(), 0, "sync does not bring it back");

    for digest in &assets {
        let request =
            can_sync::core::fetches::FetchRequest { hashes: vec![digest.hash.into()], now: true };
        until("it is back", &[&a, &b, &c], async || {
            a.handle().fetch(request.clone()).await.unwrap();
            holds(&a, digest.hash).await
        })
        .await;
    }
    a.verify().await;
    assert_eq!(outcome(&b, assets[3], 2, SAFE).await, GatherOutcome::Proven);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_devices_that_each_rely_on_the_other_none_evicts_and_the_last_copy_stays() {
    let (a, b) = (Device::start().await, Device::start().await);
    let assets = a.add([1000, LARGE]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    for digest in &assets {
        let (of_a, of_b) =
            tokio::join!(outcome(&a, *digest, 1, EVICT), outcome(&b, *digest, 1, EVICT));
        let evicted = [&of_a, &of_b].iter().filter(|o| ***o == GatherOutcome::Evicted).count();
        assert!(evicted <= 1, "{of_a:?} {of_b:?}");
        let held = [holds(&a, digest.hash).await, holds(&b, digest.hash).await];
        assert_eq!(held.iter().filter(|held| **held).count(), 2 - evicted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_on_whose_copy_another_relies_keeps_it_and_says_for_whom() {
    let (a, b, c, assets) = three(&[LARGE]).await;
    assert_eq!(outcome(&a, assets[0], 2, EVICT).await, GatherOutcome::Evicted);
    for device in [&b, &c] {
        let why = reasons(device, assets[0], 1, EVICT).await;
        assert!(why.contains("relies on the copy here for another 15 min"), "{why}");
        assert!(holds(device, assets[0].hash).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_copies_than_asked_for_are_refused_with_who_lacks_what() {
    let (a, mut b, c, assets) = three(&[LARGE]).await;
    let why = reasons(&a, assets[0], 3, EVICT).await;
    assert!(why.contains("2 of 3 other devices"), "{why}");
    flip(&c, &assets[0], LARGE / 2);
    let why = reasons(&a, assets[0], 2, EVICT).await;
    assert!(why.contains("1 of 2") && why.contains("damaged copy"), "{why}");
    b.down().await;
    until("it is gone", &[&a], async || a.sees(&b).state == PeerState::Offline).await;
    let why = reasons(&a, assets[0], 2, EVICT).await;
    assert!(why.contains("is not connected"), "{why}");
    assert!(holds(&a, assets[0].hash).await);
    // It still proves for a reader who allows an older proof.
    let old = Purpose::Safe { within_ms: 3_600_000 };
    assert_eq!(outcome(&a, assets[0], 1, old).await, GatherOutcome::Proven);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_damaged_here_cannot_check_others_and_is_not_evicted() {
    let (a, _b, _c, assets) = three(&[LARGE]).await;
    flip(&a, &assets[0], 7);
    let why = reasons(&a, assets[0], 1, EVICT).await;
    assert!(why.contains("damaged"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_without_the_bytes_checks_random_groups_of_those_that_hold_them() {
    let (a, _b, c, assets) = three(&[1000, 40 * 16 * KIB + 1]).await;
    for digest in &assets {
        assert_eq!(outcome(&a, *digest, 2, EVICT).await, GatherOutcome::Evicted);
        let gathered = gather(&a, &[*digest], 2, SAFE).await.remove(0);
        assert_eq!(gathered.outcome, GatherOutcome::Proven, "{gathered:?}");
        let why = reasons(&a, *digest, 1, EVICT).await;
        assert!(why.contains("not here"), "{why}");
    }
    flip(&c, &assets[1], 100);
    let why = reasons(&a, assets[1], 2, SAFE).await;
    assert!(why.contains("damaged copy"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_that_a_crash_interrupted_ends_with_the_next_start() {
    let (mut a, b, c, assets) = three(&[LARGE, 1000]).await;
    // With the intent written, and nothing deleted.
    a.down().await;
    let copies = Copies::open(&a.home.copies_db_path()).unwrap();
    let hashes = assets.iter().map(|digest| digest.hash).collect();
    let begun = copies.begin_evictions(hashes, boot_ms(), wall_ms()).unwrap();
    assert_eq!(begun, [Ok(()), Ok(())]);
    copies.close();
    a.up().await;
    all_in_sync(&[&a, &b, &c], 2).await;
    for digest in &assets {
        assert!(holds(&a, digest.hash).await);
        assert_eq!(outcome(&b, *digest, 2, SAFE).await, GatherOutcome::Proven);
    }
    // With the bytes deleted, and nothing else recorded.
    a.down().await;
    let copies = Copies::open(&a.home.copies_db_path()).unwrap();
    let later = boot_ms() + 2 * can_sync::core::leases::LEASE_MS;
    assert_eq!(copies.begin_evictions(vec![assets[1].hash], later, 0).unwrap(), [Ok(())]);
    copies.close();
    let store = can_sync::store::embedded::EmbeddedStore::open(
        &a.home.store_dir(),
        can_sync::store::embedded::Options::default(),
    )
    .unwrap();
    let store: Arc<dyn can_sync::store::Store> = Arc::new(store);
    let gone = store.evict([assets[1].hash].into(), Box::new(|| true)).await.unwrap();
    assert_eq!(gone, [assets[1].hash]);
    drop(store);
    a.up().await;
    all_in_sync_as_wanted(&[&a, &b, &c], 2).await;
    quiet(&[&a, &b, &c]).await;
    assert!(!holds(&a, assets[1].hash).await, "it stays evicted");
    let why = reasons(&b, assets[1], 2, SAFE).await;
    assert!(why.contains("does not hold it"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_program_proves_and_promises_nothing() {
    let store = Foreign::start(HashAlgorithm::Blake3).await;
    let (a, b) = (Device::start().await, Device::beside(&store).await);
    let assets = a.add([LARGE, 1000]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    for digest in &assets {
        assert_eq!(outcome(&a, *digest, 1, SAFE).await, GatherOutcome::Proven);
        let why = reasons(&a, *digest, 1, EVICT).await;
        assert!(why.contains("store of another program"), "{why}");
        let dry = reasons(&a, *digest, 1, Purpose::Evict { dry_run: true }).await;
        assert_eq!(dry, why, "a dry run says the same");
        let why = reasons(&b, *digest, 1, EVICT).await;
        assert!(why.contains("delete it there"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_evictions_at_the_same_time_leave_each_asset_on_as_many_others_as_was_asked() {
    let (a, b, c, assets) = three(&[500; 40]).await;
    let devices = [&a, &b, &c];
    let all = devices.map(|device| gather(device, &assets, 1, EVICT));
    let all = futures_util::future::join_all(all).await;
    for digest in &assets {
        let mut held = 0;
        for device in devices {
            held += usize::from(holds(device, digest.hash).await);
        }
        let is_evicted = |gathered: &&Gathered| {
            gathered.hash == digest.hash && gathered.outcome == GatherOutcome::Evicted
        };
        let evicted = all.iter().flatten().filter(is_evicted).count();
        assert_eq!(held, 3 - evicted);
        assert!(held >= 1, "the last copy stays");
    }
}
