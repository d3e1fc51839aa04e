//! Alerts that need two whole agents: each is brought about, and ends when its cause is mended.

use std::time::Duration;

use can_sync::core::alerts::{Kind, Thresholds};
use can_sync::core::expression::Expression;
use can_sync::core::want::Want;

use super::*;
use common::group::alert;

/// A running device that alerts after a second of what takes a day otherwise.
async fn impatient() -> Device {
    let mut device = Device::new();
    let after_ms = Some(1_000);
    device.tuning.alerts =
        Thresholds { out_of_sync_ms: after_ms, one_copy_ms: after_ms, ..Thresholds::default() };
    device.up().await;
    device
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_sync_is_at_no_time_told_as_assets_on_one_device_alone() {
    let (a, b) = (impatient().await, Device::start().await);
    let mut added = 0;
    for _ in 0..3 {
        a.add([KIB; 100]).await;
        added += 100;
        if added == 100 {
            pair(&a, &b).await;
        }
        let whole = async || {
            let census = a.status().copies.census;
            census.is_some_and(|census| census.known == added && census.unconfirmed == 0)
        };
        let watched = async {
            loop {
                let status = a.status();
                let census = status.copies.census.unwrap_or_default();
                assert_eq!((census.one_copy, census.nowhere), (0, 0), "{census:?}");
                assert_eq!(alert(&a, Kind::OneCopy), None);
                if whole().await {
                    return;
                }
                let _ =
                    timeout(Duration::from_millis(50), a.handle().changed(status.revision)).await;
            }
        };
        timeout(SOON, watched).await.expect("b is confirmed as a holder of all");
        assert_eq!(b.hashes().await.len(), added as usize);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_that_the_other_device_does_not_want_are_an_alert_until_it_takes_them() {
    let (a, b) = (impatient().await, Device::start().await);
    let nothing = Some(Expression::parse("tag=keep").unwrap());
    b.handle().set_want(Want { expression: nothing }).await.unwrap();
    a.add([KIB; 3]).await;
    pair(&a, &b).await;
    until("it is an alert", &[&a, &b], async || alert(&a, Kind::OneCopy).is_some()).await;
    let text = alert(&a, Kind::OneCopy).unwrap().text;
    assert!(text.starts_with("3 assets are on one device alone"), "{text}");
    b.handle().set_want(Want { expression: None }).await.unwrap();
    until("it has ended", &[&a, &b], async || alert(&a, Kind::OneCopy).is_none()).await;
    assert_eq!(b.hashes().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_connected_and_takes_nothing_is_out_of_sync_until_it_takes_all() {
    let mut store = Foreign::start(HashAlgorithm::Blake3).await;
    let (a, b) = (impatient().await, Device::beside(&store).await);
    until("the store is up", &[&b], async || b.status().store.up).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    store.down().await;
    until("the store is missed", &[&b], async || !b.status().store.up).await;
    let added = a.add([KIB; 3]).await;
    until("it is an alert", &[&a, &b], async || alert(&a, Kind::OutOfSync).is_some()).await;
    let out_of_sync = alert(&a, Kind::OutOfSync).unwrap();
    assert_eq!(out_of_sync.device, Some(b.node_id));
    assert!(out_of_sync.text.contains("without becoming the same"), "{}", out_of_sync.text);
    store.up().await;
    until("it has ended", &[&a, &b], async || alert(&a, Kind::OutOfSync).is_none()).await;
    assert_eq!(store.hashes().await, hashes_of(&added));
}
