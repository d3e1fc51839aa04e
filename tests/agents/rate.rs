//! Rate limits: how long contents take to send, and what does not wait for them.

use can_sync::agent::Tuning;
use can_sync::core::rate::{RateLimits, Timetable};
use can_sync::replica::status::RateLimitStatus;

use super::*;

const MIB: usize = 1024 * KIB;

fn at(rate: &str) -> Option<Timetable> {
    Some(rate.parse().unwrap())
}

async fn limited(rate_limits: RateLimits) -> Device {
    let mut device = Device::new();
    device.tuning.rate_limits = rate_limits;
    device.up().await;
    device
}

/// The time from pairing until `receiver` holds as many assets as were added.
async fn crossing(sender: &Device, receiver: &Device, assets: u64) -> Duration {
    let start = Instant::now();
    pair(sender, receiver).await;
    until("all has arrived", &[receiver], async || receiver.status().store.assets == assets).await;
    start.elapsed()
}

/// Checks that a transfer took as long as its limit asks for. On a busy machine it may take longer:
/// `core::rate` has the tests that a limit takes no more than it must.
fn assert_limited(took: Duration, expected: Duration) {
    assert!(took >= expected.mul_f64(0.85), "{took:?} instead of {expected:?}: not limited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_keep_to_the_limit_of_the_sender_and_to_that_of_the_receiver() {
    let sizes = || [2 * MIB, 2 * MIB].into_iter().chain([64 * KIB; 32]);
    let expected = Duration::from_secs(3);
    let none = RateLimits::default;
    for (up, down) in [
        (RateLimits { all: at("2M:off"), ..none() }, none()),
        (none(), RateLimits { all: at("off:2M"), ..none() }),
        (RateLimits { each: at("2M"), ..none() }, none()),
    ] {
        let (a, b) = (limited(up).await, limited(down).await);
        a.add(sizes()).await;
        assert_limited(crossing(&a, &b, 34).await, expected);
        b.verify().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_protocol_keeps_to_the_limit_too() {
    let mut a = Device::new();
    (a.net.plain_only, a.tuning.rate_limits.all) = (true, at("2M"));
    a.up().await;
    let b = Device::start().await;
    a.add([2 * MIB, 2 * MIB]).await;
    assert_limited(crossing(&a, &b, 2).await, Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_peer_has_a_limit_of_its_own() {
    let a = limited(RateLimits { each: at("2M"), ..RateLimits::default() }).await;
    let (mut b, mut c) = (Device::new(), Device::new());
    // No other path goes around the limit.
    (b.net.unreachable, c.net.unreachable) = (vec![c.node_id], vec![b.node_id]);
    tokio::join!(b.up(), c.up());
    a.add([2 * MIB, 2 * MIB]).await;
    let start = Instant::now();
    tokio::join!(crossing(&a, &b, 2), crossing(&a, &c, 2));
    assert_limited(start.elapsed(), Duration::from_secs(2));
    let expected = RateLimitStatus {
        up_per_peer_bytes: Some(2 << 20),
        down_per_peer_bytes: Some(2 << 20),
        ..RateLimitStatus::default()
    };
    assert_eq!(a.status().rate_limits, Some(expected));
    assert_eq!(b.status().rate_limits, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_network_is_free_when_it_is_exempt() {
    let all = at("64K");
    let a = limited(RateLimits { all, lan_exempt: true, ..RateLimits::default() }).await;
    let b = Device::start().await;
    a.add([4 * MIB]).await;
    let took = crossing(&a, &b, 1).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_new_asset_does_not_wait_for_a_limited_backlog() {
    let none = RateLimits::default;
    for (up, down) in [
        (RateLimits { all: at("1M"), ..none() }, none()),
        (none(), RateLimits { all: at("1M"), ..none() }),
    ] {
        let (a, b) = (limited(up).await, limited(down).await);
        a.add([3 * MIB; 4].into_iter().chain([128 * KIB; 16])).await;
        pair(&a, &b).await;
        let moving = async || b.received_bytes() > 2 * MIB as u64;
        until("the backlog is under way", &[&b], moving).await;
        for _ in 0..3 {
            let start = Instant::now();
            let note = a.add([4 * KIB]).await[0];
            let arrived = async || b.hashes().await.contains(&note.hash);
            until("the note is there", &[&b], arrived).await;
            let took = start.elapsed();
            // Behind what waits already it would take 14 s, behind one asset of it 3 s.
            assert!(took < Duration::from_secs(2), "{took:?}\n{}", tell(&[&a, &b]));
        }
        assert!(b.sees(&a).missing_here > 0, "the backlog is still under way");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_set_or_lifted_while_an_asset_crosses_holds_from_then_on() {
    let a = limited(RateLimits { all: at("256K"), ..RateLimits::default() }).await;
    let b = Device::start().await;
    a.add([8 * MIB]).await;
    pair(&a, &b).await;
    until("the transfer has begun", &[&a], async || a.sees(&b).sent_bytes > 0).await;
    let start = Instant::now();
    a.handle().tune(Tuning::default()).await.unwrap();
    assert_eq!(a.status().rate_limits, None);
    until("all of it is there", &[&a, &b], async || b.hashes().await.len() == 1).await;
    assert!(start.elapsed() < Duration::from_secs(8), "at 256 KiB/s it takes half a minute");
    // The other way about, on the same connection.
    let rate_limits = RateLimits { all: at("1M"), ..RateLimits::default() };
    a.handle().tune(Tuning { rate_limits, ..Tuning::default() }).await.unwrap();
    assert_eq!(a.status().rate_limits.unwrap().up_bytes, Some(MIB as u64));
    let start = Instant::now();
    a.add([3 * MIB]).await;
    until("the other is there", &[&a, &b], async || b.hashes().await.len() == 2).await;
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_stops_takes_no_requests_while_a_transfer_comes_to_its_end() {
    let mut a = limited(RateLimits { all: at("64K"), ..RateLimits::default() }).await;
    let b = Device::start().await;
    a.add([4 * MIB]).await;
    pair(&a, &b).await;
    let has_begun =
        || a.status().peers.iter().any(|peer| peer.node_id == b.node_id && peer.sent_bytes > 0);
    until("the transfer has begun", &[&a], async || has_begun()).await;
    let handle = a.handle();
    let refused = async {
        let start = Instant::now();
        while handle.ticket(Duration::from_secs(60)).await.is_ok() {}
        start.elapsed()
    };
    let (refused_after, ()) = tokio::join!(refused, a.down());
    // The transfer is given five seconds.
    assert!(refused_after < Duration::from_secs(2), "{refused_after:?}");
}
