//! Why an asset is, or is not, on each device: real agents bring the reasons about, and the sentence
//! is read.

use std::sync::atomic::Ordering;

use can_sync::core::ids::{Digest, Hash};
use can_sync::core::rate::RateLimits;
use can_sync::core::why::{AssetWhy, HereReason, ThereReason};

use super::damage::flip;
use super::*;

async fn why(device: &Device, hash: Hash) -> AssetWhy {
    device.handle().why(hash.into()).await.unwrap()
}

async fn text(device: &Device, hash: Hash) -> String {
    why(device, hash).await.text
}

fn name(of: &Device, on: &Device) -> String {
    on.sees(of).name
}

/// Waits until the text on `device` holds all of these parts.
async fn until_said(device: &Device, hash: Hash, parts: &[&str]) -> String {
    let mut said = String::new();
    until(&format!("{parts:?}"), &[device], async || {
        said = text(device, hash).await;
        parts.iter().all(|part| said.contains(part))
    })
    .await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_have_what_nobody_has_and_what_an_offline_device_may_lack_is_said() {
    let (a, mut b) = (Device::start().await, Device::start().await);
    let nobodys = Hash([7; 32]);
    let said = text(&a, nobodys).await;
    assert!(said.starts_with("It is not here, and no other device is in the group."), "{said}");
    pair(&a, &b).await;
    let photo = a.add([1000]).await[0].hash;
    all_in_sync(&[&a, &b], 1).await;
    let (of_a, of_b) = (name(&a, &b), name(&b, &a));
    for (device, other) in [(&a, &of_b), (&b, &of_a)] {
        let expected = format!("It is here and whole. {other} has it too.");
        assert_eq!(until_said(device, photo, &[&expected]).await, expected);
    }
    let said = text(&b, nobodys).await;
    let part =
        format!("no device of the group has it: {of_a} holds exactly what this device holds.");
    assert!(said.contains(&part), "{said}");
    assert!(
        said.ends_with("until a device that has it joins, or the file is added again."),
        "{said}"
    );

    b.down().await;
    let later = a.add([1000]).await[0].hash;
    let parts = [
        "It is here and whole.",
        &format!("It is not known whether {of_b} has it: {of_b} is offline since 20"),
        "SHUTDOWN",
        "Next: ",
    ];
    until_said(&a, later, &parts).await;
    let said = text(&a, nobodys).await;
    assert!(said.starts_with("It is not here, and no other device is connected."), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_says_from_whom_behind_what_and_at_which_limit() {
    let mut a = Device::new();
    let limit = Some("64K".parse().unwrap());
    a.tuning.rate_limits = RateLimits { all: limit, ..RateLimits::default() };
    a.up().await;
    let b = Device::start().await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let (of_a, of_b) = (name(&a, &b), name(&b, &a));
    let videos = a.add([3 * KIB * KIB; 6]).await;
    let mut on_its_way = None;
    until("one is on its way, and others wait for it", &[&a, &b], async || {
        let (mut sending, mut queued) = (None, None);
        for Digest { hash, .. } in &videos {
            let why = why(&a, *hash).await;
            match why.devices[0].reason {
                ThereReason::Sending { .. } => sending = Some(why),
                ThereReason::Queued { .. } => queued = Some(why),
                _ => {}
            }
        }
        on_its_way = sending.zip(queued);
        on_its_way.is_some()
    })
    .await;
    let (sending, queued) = on_its_way.unwrap();
    let limit = "; a rate limit of 64.0 KiB/s is in force.";
    let part = format!("It is being sent to {of_b}{limit}");
    assert!(sending.text.contains(&part), "{}", sending.text);
    assert!(
        queued.text.contains(&format!("{of_b} does not have it yet: it is ")),
        "{}",
        queued.text
    );
    let arriving = format!("It is not here yet: it is arriving from {of_a}, ");
    until_said(&b, sending.hash, &[&arriving, " left", "finish the transfer."]).await;

    // The journal names where it was added, so the device that has it is known once it is gone.
    until("the journal names the adder", &[&b], async || {
        let hash = sending.hash;
        let adders = b.handle().journal().read(move |journal| journal.adders(&[hash])).await;
        adders.unwrap()[0] == Some(a.node_id)
    })
    .await;
    let gone = a.node_id;
    a.down().await;
    let part = format!("It is not here: it was added on {of_a}, which is offline since 20");
    let said = until_said(&b, sending.hash, &[&part, "no connected device has it"]).await;
    assert!(said.contains(&format!("Next: {of_a} is ")), "{said}");
    let why = why(&b, sending.hash).await;
    assert!(
        matches!(&why.here, HereReason::HolderOffline { device, .. } if device.node_id == gone),
        "{why:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_full_or_gone_is_the_reason_on_both_devices() {
    let mut store = Foreign::start(HashAlgorithm::Blake3).await;
    let (a, b) = (Device::start().await, Device::beside(&store).await);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    store.faults.full.store(true, Ordering::Relaxed);
    let photo = a.add([1000]).await[0].hash;
    let of_b = name(&b, &a);
    until_said(&a, photo, &[&format!("{of_b} does not have it: it takes no assets for now: ")])
        .await;
    let said = text(&b, photo).await;
    assert!(said.starts_with("It is not here: "), "{said}");
    store.down().await;
    until_said(&b, photo, &["the store does not answer: ", "Next: the store is tried again"]).await;
    store.faults.full.store(false, Ordering::Relaxed);
    store.up().await;
    until_said(&b, photo, &["It is here and whole."]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bytes_and_a_removal_are_the_reason() {
    let (a, b) = (Device::start().await, Device::start().await);
    let video = a.add([3 * KIB * KIB]).await[0];
    flip(&a, &video, 5000);
    a.store().verify(video.hash).await.unwrap();
    let said = text(&a, video.hash).await;
    let start = "Its bytes on this device are damaged, so it counts as missing. It is not here, and no \
                 other device is in the group.";
    assert!(said.starts_with(start), "{said}");

    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    until_said(&a, video.hash, &["It was added on this device."]).await;
    a.handle().remove(b.node_id.to_string()).await.unwrap();
    until("b knows of it", &[&b], async || b.status().device.removed).await;
    let said = text(&b, video.hash).await;
    assert!(said.starts_with("It is not here: the group removed this device"), "{said}");
}
