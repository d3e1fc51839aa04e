//! An agent beside another program's store, which starts, stops and misbehaves.

use std::sync::atomic::Ordering;

use can_sync::store::{Metadata, Store as _};

use super::*;

/// A device beside a foreign store, paired with an ordinary one.
async fn beside_foreign() -> (Foreign, Device, Device) {
    let store = Foreign::start(HashAlgorithm::Blake3).await;
    let (a, b) = (Device::beside(&store).await, Device::start().await);
    until("the store is up", &[&a], async || a.status().store.up).await;
    pair(&b, &a).await;
    all_in_sync(&[&a, &b], 1).await;
    (store, a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_comes_later_and_goes_for_a_while_is_caught_up_with() {
    let mut store = Foreign::new(HashAlgorithm::Blake3);
    let (a, b) = (Device::beside(&store).await, Device::start().await);
    pair(&b, &a).await;
    let of_b = b.add(MIXED).await;
    until("a says what is wrong", &[&a], async || {
        let status = a.status();
        !status.store.up && status.store.last_error.is_some() && !status.in_sync
    })
    .await;
    store.up().await;
    let of_store = store.add(MIXED_OWN).await;
    until("the store is found", &[&a], async || a.status().store.up).await;
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(store.hashes().await, hashes_of(of_b.iter().chain(&of_store)));

    store.down().await;
    until("the store is missed", &[&a], async || !a.status().store.up).await;
    let missed = b.add([40; 30]).await;
    store.up().await;
    let behind_its_back = store.add([50; 30]).await;
    until("the store is found again", &[&a], async || a.status().store.up).await;
    all_in_sync(&[&a, &b], 1).await;
    let held = b.hashes().await;
    assert!(held.is_superset(&hashes_of(missed.iter().chain(&behind_its_back))));
    assert_eq!(store.hashes().await, held);
    assert!(b.sees(&a).in_sync);
    b.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_serves_one_event_stream_for_assets_and_metadata_both() {
    let (mut store, a, b) = beside_foreign().await;
    let streams = |store: &Foreign| store.faults.event_streams.load(Ordering::Relaxed);
    for served in 1..=2 {
        let added = store.add(MIXED).await;
        b.add(MIXED_OWN).await;
        let edit = Metadata { description: format!("edit {served}"), ..Metadata::default() };
        store.store().set_metadata(added[0].hash, &edit, None).await.unwrap();
        all_in_sync(&[&a, &b], 1).await;
        until("the edit is at the other device", &[&a, &b], async || {
            let row = b.store().lookup(added[0].hash).await.unwrap().unwrap();
            row.metadata.description == edit.description
        })
        .await;
        assert_eq!(streams(&store), served, "one for each time the store was up");
        store.down().await;
        until("the store is missed", &[&a], async || !a.status().store.up).await;
        store.up().await;
        until("the store is found again", &[&a], async || a.status().store.up).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_goes_on_where_it_stood_in_the_stores_feed() {
    let (store, mut a, b) = beside_foreign().await;
    store.add([10; 200]).await;
    all_in_sync(&[&a, &b], 1).await;
    let listed = store.faults.listed_anew.load(Ordering::Relaxed);
    a.down().await;
    a.up().await;
    until("both in sync", &[&a, &b], async || {
        a.status().store.up && a.sees(&b).in_sync && b.sees(&a).in_sync
    })
    .await;
    assert_eq!(store.faults.listed_anew.load(Ordering::Relaxed), listed);
    assert_eq!(a.status().store.assets, 200);
    all_in_sync(&[&a, &b], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_killed_in_the_midst_of_taking_assets_ends_with_all() {
    let (mut store, a, b) = beside_foreign().await;
    for _ in 0..2 {
        let before = store.faults.writes.load(Ordering::Relaxed);
        b.add((0..300).map(|n| 1000 + n * 200)).await;
        b.add([2_000_000; 2]).await;
        until("the store takes some", &[&a, &b], async || {
            store.faults.writes.load(Ordering::Relaxed) > before
        })
        .await;
        store.kill().await;
        store.up().await;
        until("the store is up", &[&a], async || a.status().store.up).await;
        let expected = b.hashes().await;
        until("the store holds all", &[&a, &b], async || store.hashes().await == expected).await;
    }
    all_in_sync(&[&a, &b], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_store_at_the_same_address_is_taken_in_anew_and_takes_nothing_from_peers() {
    let (mut store, a, b) = beside_foreign().await;
    let old = store.add(MIXED).await;
    all_in_sync(&[&a, &b], 1).await;
    let old_id = a.status().store.store_id;
    store.down().await;
    store.replace();
    store.up().await;
    let new = store.add([60; 20]).await;
    until("the other store is noticed", &[&a], async || {
        a.status().store.up && a.status().store.store_id != old_id
    })
    .await;
    all_in_sync(&[&a, &b], 1).await;
    assert_eq!(store.hashes().await, hashes_of(old.iter().chain(&new)));
    assert!(was_logged(&[" WARN ", "another store answers", &old_id.to_string()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_for_one_asset_hold_up_no_other() {
    let (store, a, b) = beside_foreign().await;
    let wrong = store.add([900, 400 * KIB]).await;
    let sound = store.add([901, 401 * KIB, 902]).await;
    // The agent may not have read them before this, or read them correctly: add more.
    let later = {
        let digests = store.add([903]).await;
        store.faults.wrong.lock().extend(hashes_of(&wrong));
        digests
    };
    let expected = hashes_of(sound.iter().chain(&later));
    until("the others came", &[&a, &b], async || b.hashes().await.is_superset(&expected)).await;
    b.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_said_to_be_full_and_filled_once_there_is_space() {
    let (store, a, b) = beside_foreign().await;
    store.faults.full.store(true, Ordering::Relaxed);
    let refused = b.add([1_000; 20]).await;
    until("it was refused", &[&a, &b], async || store.faults.refused.load(Ordering::Relaxed) > 0)
        .await;
    // Assets that the full store holds are still sent.
    let held = store.add([70; 5]).await;
    until("b gets them", &[&a, &b], async || b.hashes().await.is_superset(&hashes_of(&held))).await;
    assert!(!b.sees(&a).in_sync);
    store.faults.full.store(false, Ordering::Relaxed);
    let expected = hashes_of(refused.iter().chain(&held));
    until("the store is filled", &[&a, &b], async || store.hashes().await == expected).await;
    all_in_sync(&[&a, &b], 1).await;
}
