//! Whole agents over real QUIC, real HTTP and real SQLite: what devices hold in the end, what is
//! sent on the way, and what devices outside the group get to know.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Duration;

use can_sync::agent::Agent;
use can_sync::agent::handle::RequestError;
use can_sync::core::ids::HashAlgorithm;
use can_sync::core::journal::device_events::{DEVICE_ID, DEVICE_MODEL};
use can_sync::replica::status::PeerState;
use can_sync::state::journal::Owner;
use tokio::time::{Instant, timeout};

mod common;

use common::group::{
    Device, Foreign, SOON, all_in_sync, all_in_sync_as_wanted, bytes_of, hashes_of, pair, quiet,
    tell, until,
};
use common::logs::{keep_secret, was_logged};

#[path = "agents/alerts.rs"]
mod alerts;
#[path = "agents/damage.rs"]
mod damage;
#[path = "agents/evict.rs"]
mod evict;
#[path = "agents/expiry.rs"]
mod expiry;
#[path = "agents/fetch.rs"]
mod fetch;
#[path = "agents/foreign.rs"]
mod foreign;
#[path = "agents/forget.rs"]
mod forget;
#[path = "agents/journal.rs"]
mod journal;
#[path = "agents/named.rs"]
mod named;
#[path = "agents/power.rs"]
mod power;
#[path = "agents/rate.rs"]
mod rate;
#[path = "agents/rot.rs"]
mod rot;
#[path = "agents/scrub.rs"]
mod scrub;
#[path = "agents/sources.rs"]
mod sources;
#[path = "agents/why.rs"]
mod why;

const KIB: usize = 1024;

/// Sizes on both sides of every bound that changes how a content is sent.
const MIXED: [usize; 9] = [
    0,
    1,
    16 * KIB - 1,
    16 * KIB,
    16 * KIB + 1,
    256 * KIB - 1,
    256 * KIB,
    256 * KIB + 1,
    3 * KIB * KIB,
];

/// The sizes of `MIXED` except the empty content, of which there is only one.
const MIXED_OWN: [usize; 8] = {
    let [_, own @ ..] = MIXED;
    own
};

// ---- two -------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_end_with_the_same_and_nothing_crosses_twice() {
    let (a, b) = (Device::start().await, Device::start().await);
    let of_a = a.add(MIXED).await;
    let of_b = b.add(MIXED_OWN).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(a.hashes().await, hashes_of(of_a.iter().chain(&of_b)));
    quiet(&[&a, &b]).await;
    // A connection that was replaced right after pairing has its own count.
    assert!(a.received_bytes() <= bytes_of(&of_b), "{}", tell(&[&a]));
    assert!(b.received_bytes() <= bytes_of(&of_a), "{}", tell(&[&b]));

    // Assets added while they are connected.
    let (before_a, before_b) = (a.received_bytes(), b.received_bytes());
    let (live_a, live_b) = tokio::join!(a.add(MIXED_OWN), b.add(MIXED_OWN));
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(a.hashes().await, hashes_of(of_a.iter().chain(&of_b).chain(&live_a).chain(&live_b)));
    quiet(&[&a, &b]).await;
    assert_eq!(a.received_bytes() - before_a, bytes_of(&live_b), "{}", tell(&[&a]));
    assert_eq!(b.received_bytes() - before_b, bytes_of(&live_a), "{}", tell(&[&b]));
    for device in [&a, &b] {
        device.verify().await;
        assert_eq!(device.status().store.quarantined, 0);
    }
    assert_eq!(a.sees(&b).sent_bytes, b.sees(&a).received_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_away_gets_what_it_missed_and_gives_what_it_gathered() {
    let (a, mut b) = (Device::start().await, Device::start().await);
    a.add([10; 50]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    quiet(&[&a, &b]).await;

    b.down().await;
    until("a sees b go", &[&a], async || a.sees(&b).state == PeerState::Offline).await;
    assert!(a.sees(&b).last_error.unwrap().contains("SHUTDOWN"));
    let missed = a.add(MIXED_OWN).await;
    b.up().await;
    let gathered = b.add([20; 20]).await;
    all_in_sync(&[&a, &b], 1).await;
    assert!(b.hashes().await.is_superset(&hashes_of(&missed)));
    assert!(a.hashes().await.is_superset(&hashes_of(&gathered)));
    quiet(&[&a, &b]).await;
    assert!(b.received_bytes() <= bytes_of(&missed), "{}", tell(&[&b]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_equal_devices_moves_nothing() {
    let (mut a, mut b) = (Device::start().await, Device::start().await);
    a.add([100; 300]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    for _ in 0..2 {
        a.down().await;
        b.down().await;
        let started = Instant::now();
        tokio::join!(a.up(), b.up());
        all_in_sync(&[&a, &b], 1).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(a.received_bytes() + b.received_bytes(), 0);
        assert_eq!(a.status().store.assets, 300);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_backup_of_the_store_lacks_is_fetched_again() {
    let (mut a, b) = (Device::start().await, Device::start().await);
    pair(&a, &b).await;
    a.add([10; 20]).await;
    all_in_sync(&[&a, &b], 1).await;
    let (store, backup) = (a.home.store_dir(), a.home.store_dir().with_extension("backup"));
    a.down().await;
    copy_folder(&store, &backup);
    a.up().await;
    a.add(MIXED_OWN).await;
    b.add(MIXED_OWN).await;
    all_in_sync(&[&a, &b], 1).await;
    let all = b.hashes().await;

    a.down().await;
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::rename(&backup, &store).unwrap();
    a.up().await;
    assert_eq!(a.hashes().await.len(), 20);
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(a.hashes().await, all);
    assert_eq!(a.status().store.assets, all.len() as u64);
    a.verify().await;
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_is_in_use_is_not_started_twice() {
    let mut a = Device::start().await;
    let refused = a.home.lock().unwrap_err().to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    a.down().await;
    let lock = a.home.lock().unwrap();
    // A second agent on the same folders fails even if it got a lock that it should not have.
    let first = Agent::start(a.config(), &lock).await.unwrap();
    let second = timeout(SOON, Agent::start(a.config(), &lock)).await.unwrap();
    let Err(refused) = second else { panic!("two agents on one home") };
    assert!(format!("{refused:#}").contains("in use"), "{refused:#}");
    first.stop().await.unwrap();
}

// ---- the plain protocol ----------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_device_ends_with_the_same_as_a_full_one() {
    let (full, plain) = (Device::start().await, Device::start_plain().await);
    let of_full = full.add(MIXED).await;
    let of_plain = plain.add(MIXED_OWN).await;
    pair(&full, &plain).await;
    all_in_sync(&[&full, &plain], 1).await;
    assert_eq!(full.hashes().await, hashes_of(of_full.iter().chain(&of_plain)));
    quiet(&[&full, &plain]).await;

    let (before_full, before_plain) = (full.received_bytes(), plain.received_bytes());
    let (live_full, live_plain) = tokio::join!(full.add(MIXED_OWN), plain.add(MIXED_OWN));
    all_in_sync(&[&full, &plain], 1).await;
    quiet(&[&full, &plain]).await;
    assert_eq!(full.received_bytes() - before_full, bytes_of(&live_plain));
    assert_eq!(plain.received_bytes() - before_plain, bytes_of(&live_full));
    full.verify().await;
    plain.verify().await;
}

// ---- more than two ---------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_travel_through_the_middle_of_a_chain_that_is_restarted_meanwhile() {
    let (mut a, mut b, mut c) = (Device::new(), Device::new(), Device::new());
    a.net.unreachable = vec![c.node_id];
    c.net.unreachable = vec![a.node_id];
    tokio::join!(a.up(), b.up(), c.up());
    pair(&b, &a).await;
    pair(&b, &c).await;
    until("the group is known", &[&a, &c], async || {
        a.status().peers.len() == 2 && c.status().peers.len() == 2
    })
    .await;
    let adding = async {
        for _ in 0..10 {
            let _ = tokio::join!(a.add([700; 50]), c.add([70_000; 50]));
        }
    };
    let restarting = async {
        for _ in 0..2 {
            // On a busy machine all may have arrived before.
            let enough = (b.status().store.assets + 50).min(999);
            until("some assets came", &[&b], async || b.status().store.assets > enough).await;
            b.down().await;
            b.up().await;
        }
    };
    tokio::join!(adding, restarting);
    for device in [&a, &b, &c] {
        device.handle().check().await.unwrap();
    }
    let ends = [&a, &b, &c];
    until("all hold all", &ends, async || ends.iter().all(|d| d.status().store.assets == 1000))
        .await;
    assert_eq!(a.hashes().await, c.hashes().await);
    assert_eq!(a.hashes().await, b.hashes().await);
    assert_eq!(a.sees(&c).state, PeerState::Offline);
    assert_eq!(a.sees(&c).received_bytes + c.sees(&a).received_bytes, 0);
    c.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_devices_that_each_paired_with_the_first_all_hold_all() {
    let mut devices = Vec::new();
    for _ in 0..5 {
        devices.push(Device::start().await);
    }
    let all: Vec<&Device> = devices.iter().collect();
    for joiner in &all[1..] {
        pair(all[0], joiner).await;
    }
    all_in_sync(&all, 4).await;
    let mut total = 0;
    for round in 0..4 {
        let adding = all.iter().map(|device| device.add([5_000 + round; 10]));
        let added = futures_util::future::join_all(adding).await;
        total += added.iter().map(|digests| bytes_of(digests)).sum::<u64>();
    }
    all_in_sync(&all, 4).await;
    quiet(&all).await;
    assert_eq!(all[0].status().store.assets, 200);
    for device in &all {
        // Four fifths were missing. Unsolicited assets from their source may cross what another
        // device was just asked for. Without any coordination everything would arrive four times.
        let missing = total * 4 / 5;
        let received = device.received_bytes();
        assert!(received <= 2 * missing, "{received} of {missing}\n{}", tell(&all));
        device.verify().await;
    }
}

// ---- who belongs -----------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_is_cut_off_by_all() {
    let [a, b, mut c] = [Device::start().await, Device::start().await, Device::start().await];
    pair(&a, &b).await;
    pair(&a, &c).await;
    all_in_sync(&[&a, &b, &c], 2).await;

    let asked = Instant::now();
    a.handle().remove(c.node_id.to_string()).await.unwrap();
    until("c is cut", &[&c], async || {
        c.status().peers.iter().all(|peer| peer.state != PeerState::Idle)
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    until("c is told", &[&c], async || {
        let peers = c.status().peers;
        peers
            .iter()
            .all(|peer| peer.last_error.as_ref().is_some_and(|error| error.contains("REMOVED")))
    })
    .await;

    until("c knows", &[&c], async || c.status().device.removed).await;

    // It dials again after a restart, and all refuse it.
    let secret = c.add([33]).await;
    c.down().await;
    c.up().await;
    assert!(c.status().device.removed, "it has not forgotten");
    until("c is refused by all", &[&c], async || {
        let peers = c.status().peers;
        peers.len() == 2
            && peers
                .iter()
                .all(|peer| peer.last_error.as_ref().is_some_and(|error| error.contains("REMOVED")))
    })
    .await;
    let news = a.add([44]).await;
    all_in_sync(&[&a, &b], 1).await;
    assert!(a.hashes().await.is_disjoint(&hashes_of(&secret)));
    assert!(c.hashes().await.is_disjoint(&hashes_of(&news)));

    // Its key cannot be used any more.
    let ticket = a.handle().ticket(Duration::from_secs(60)).await.unwrap().ticket;
    keep_secret(ticket.as_bytes());
    let refused = c.handle().pair(ticket).await.unwrap_err();
    assert!(matches!(refused, RequestError::Refused(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_leaves_is_alone_keeps_its_assets_and_may_join_another_group() {
    let [a, mut b, c] = [Device::start().await, Device::start().await, Device::start().await];
    pair(&a, &b).await;
    a.add([7; 3]).await;
    all_in_sync(&[&a, &b], 1).await;
    let ticket = c.handle().ticket(Duration::from_secs(60)).await.unwrap().ticket;
    keep_secret(ticket.as_bytes());
    let refused = b.handle().pair(ticket.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("can-sync leave"), "{refused}");

    let before = b.status().device;
    assert!(!b.handle().leave().await.unwrap().new_device);
    until("b is alone", &[&b], async || b.status().peers.is_empty()).await;
    let alone = b.status().device;
    assert_eq!((&alone.node_id, &alone.name), (&before.node_id, &before.name));
    assert_ne!(alone.group_id, before.group_id);
    b.down().await;
    b.up().await;
    assert_eq!(b.status().device.group_id, alone.group_id);
    b.handle().pair(ticket).await.unwrap();
    all_in_sync(&[&b, &c], 1).await;
    assert_eq!(c.hashes().await.len(), 3);
    until("a is refused", &[&a], async || {
        a.sees(&b)
            .last_error
            .is_some_and(|error| error.contains("WRONG_GROUP") || error.contains("NOT_MEMBER"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_removed_in_the_middle_of_a_transfer_is_cut_off_within_a_second() {
    let [a, b] = [Device::start().await, Device::start().await];
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    a.add([64 * KIB * KIB]).await;
    until("b receives", &[&b], async || b.received_bytes() > 0).await;
    let asked = Instant::now();
    a.handle().remove(b.node_id.to_string()).await.unwrap();
    until("b is told", &[&b], async || b.status().device.removed).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert!(a.status().peers.is_empty());
    assert!(b.sees(&a).state != PeerState::Idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_device_knows_all_from_any_one_and_all_know_it() {
    let [a, b, c] = [Device::start().await, Device::start().await, Device::start().await];
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    // The joiner's introducer is neither the first device nor one that a ever met.
    pair(&b, &c).await;
    all_in_sync(&[&a, &b, &c], 2).await;
    let groups = [&a, &b, &c].map(|device| device.status().device.group_id);
    assert!(groups.iter().all(|group| *group == groups[0]), "{groups:?}");
    c.handle().rename("kitchen".into()).await.unwrap();
    until("the name is known", &[&a, &b], async || {
        [&a, &b].iter().all(|device| device.sees(&c).name == "kitchen")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_added_elsewhere_is_let_in_by_its_introduction() {
    let [mut a, mut b, c] = [Device::start().await, Device::start().await, Device::start().await];
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    // b's own record says where it is; without it c could not find b.
    let owner = Owner::Device(b.node_id);
    until("a has heard where b is", &[&a], async || {
        let journal = a.handle().journal();
        let told = journal.read(move |reader| reader.record(DEVICE_MODEL, owner, DEVICE_ID)).await;
        told.unwrap().is_some()
    })
    .await;
    b.down().await;
    pair(&a, &c).await;
    until("c knows b", &[&c], async || c.status().peers.len() == 2).await;
    all_in_sync(&[&a, &c], 1).await;
    a.down().await;
    b.up().await;
    assert_eq!(b.status().peers.len(), 1, "b has not heard of c");
    until("b and c meet", &[&b, &c], async || {
        let met = |device: &Device| {
            device.status().peers.iter().any(|peer| peer.state == PeerState::Idle)
        };
        met(&b) && met(&c)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_name_assets_differently_are_told_so() {
    let store = Foreign::start(HashAlgorithm::Sha256).await;
    let (a, b) = (Device::start().await, Device::beside(&store).await);
    until("the store is up", &[&b], async || b.status().store.up).await;
    let ticket = a.handle().ticket(Duration::from_secs(60)).await.unwrap().ticket;
    keep_secret(ticket.as_bytes());
    let refused = b.handle().pair(ticket).await.unwrap_err();
    let RequestError::Refused(text) = &refused else { panic!("{refused:?}") };
    assert!(text.contains("sha256"), "{text}");
    assert!(a.status().peers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_with_sha256_stores_end_with_the_same() {
    let one = Foreign::start(HashAlgorithm::Sha256).await;
    let other = Foreign::start(HashAlgorithm::Sha256).await;
    let (a, b) = (Device::beside(&one).await, Device::beside(&other).await);
    until("both up", &[&a, &b], async || a.status().store.up && b.status().store.up).await;
    one.add(MIXED).await;
    other.add(MIXED_OWN).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(one.hashes().await, other.hashes().await);
    assert_eq!(one.hashes().await.len(), MIXED.len() + MIXED_OWN.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_ticket_is_a_clear_error() {
    let a = Device::start().await;
    for text in ["", "nonsense", "cansync123"] {
        let refused = a.handle().pair(text.to_owned()).await.unwrap_err();
        assert!(matches!(refused, RequestError::Invalid(_)), "{refused:?}");
    }
    assert!(!was_logged(&["nonsense"]));
}
