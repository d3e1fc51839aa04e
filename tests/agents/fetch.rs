//! Assets that somebody waits for.

use can_sync::core::fetches::{FetchRequest, FetchState};
use can_sync::core::ids::{Digest, Hash};
use can_sync::core::lookup::HashPrefix;
use can_sync::core::rate::RateLimits;

use super::*;

async fn fetch(device: &Device, hash: Hash, now: bool) -> FetchState {
    let request = FetchRequest { hashes: vec![hash.into()], now };
    device.handle().fetch(request).await.unwrap().assets[0].state
}

/// Fetches an asset with `now` until it is held, and returns how long that took.
async fn fetched_at_once(device: &Device, hash: Hash) -> Duration {
    let start = Instant::now();
    until("it is here", &[device], async || fetch(device, hash, true).await == FetchState::Here)
        .await;
    assert!(device.hashes().await.contains(&hash));
    start.elapsed()
}

/// The assets that are not held yet.
async fn missing(device: &Device, of: &[Digest]) -> Vec<Hash> {
    let held = device.hashes().await;
    of.iter().map(|digest| digest.hash).filter(|hash| !held.contains(hash)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_at_once_comes_before_a_backlog_of_thousands() {
    let mut a = Device::new();
    a.tuning.rate_limits = RateLimits { all: Some("2M".parse().unwrap()), ..RateLimits::default() };
    a.up().await;
    let b = Device::start().await;
    let small = a.add([4 * KIB; 5_000]).await;
    let large = a.add([1024 * KIB; 30]).await;
    pair(&a, &b).await;
    until("the backlog is under way", &[&b], async || b.status().store.assets > 200).await;
    // The assets that would be requested last, as they are requested in the order of their hashes.
    for backlog in [&small, &large] {
        let mut last = missing(&b, backlog).await;
        last.sort_unstable();
        let left = last.len();
        let took = fetched_at_once(&b, last.pop().unwrap()).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        let still = missing(&b, backlog).await.len();
        assert!(still > left / 2, "{still} of {left} are left after {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_says_when_nobody_has_it_and_ends_when_somebody_does() {
    let (a, b) = (Device::start().await, Device::start().await);
    let mine = a.add([10]).await[0].hash;
    until("it is taken in", &[&a], async || a.status().store.assets == 1).await;
    assert_eq!(fetch(&a, mine, false).await, FetchState::Here);
    let nobodys = Hash([7; 32]);
    assert_eq!(fetch(&b, nobodys, true).await, FetchState::NoPeer);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    for now in [false, true] {
        let gone = async || fetch(&b, nobodys, now).await == FetchState::Nowhere;
        until("it is nowhere", &[&b], gone).await;
    }
    assert_eq!(fetch(&b, mine, true).await, FetchState::Here);
    quiet(&[&a, &b]).await;
    let request = |hashes: Vec<HashPrefix>| FetchRequest { hashes, now: false };
    let start = HashPrefix::parse("0707").unwrap();
    let unknown = b.handle().fetch(request(vec![start])).await;
    assert!(matches!(unknown, Err(RequestError::Unknown(_))), "{unknown:?}");
    let many = b.handle().fetch(request(vec![nobodys.into(); 257])).await;
    assert!(matches!(many, Err(RequestError::Invalid(_))), "{many:?}");
}
