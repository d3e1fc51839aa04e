//! Content that is damaged behind the store's back, and how a device gets it again.

use std::path::PathBuf;

use can_sync::core::ids::Digest;
use can_sync::store::{Condition, Metadata, StoreError, Stored, VerifiedFile};

use super::*;

const LARGE: usize = 3 * KIB * KIB;

pub(super) fn content_file(device: &Device, digest: &Digest) -> PathBuf {
    let hex = digest.hash.to_string();
    device.home.store_dir().join("content").join(&hex[..2]).join(hex)
}

pub(super) fn flip(device: &Device, digest: &Digest, at: usize) {
    let path = content_file(device, digest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

pub(super) async fn is_whole(device: &Device, digest: &Digest) -> bool {
    device.store().verify(digest.hash).await.unwrap() == Condition::Whole
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_or_rotten_here_is_said_and_comes_back_from_another_device() {
    let (mut a, b) = (Device::start().await, Device::start().await);
    let assets = a.add([LARGE, LARGE, 1000]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    a.down().await;
    std::fs::remove_file(content_file(&a, &assets[0])).unwrap();
    flip(&a, &assets[1], LARGE / 2);
    let rows = rusqlite::Connection::open(a.home.store_dir().join("store.db")).unwrap();
    assert_eq!(rows.execute("UPDATE contents SET content = zeroblob(1000)", []).unwrap(), 1);
    drop(rows);
    a.up().await;
    all_in_sync(&[&a, &b], 1).await;

    // Nothing has checked the assets yet. Reading finds lost content, verifying finds wrong
    // content.
    let read = a.store().read(assets[0].hash, 0..1).await;
    assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
    for digest in &assets[1..] {
        assert!(!is_whole(&a, digest).await);
    }
    assert_eq!(a.store().damages().borrow().found, 3);
    until("all of them whole again", &[&a, &b], async || {
        a.status().store.damaged == 0 && a.status().store.assets == 3
    })
    .await;
    for digest in &assets {
        assert!(is_whole(&a, digest).await);
    }
    all_in_sync(&[&a, &b], 1).await;
    let told = was_logged(&["bytes of a stored asset are damaged", &assets[0].hash.to_string()]);
    assert!(told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_large_asset_only_the_group_that_is_wrong_is_sent_again() {
    let (a, b) = (Device::start().await, Device::start().await);
    let asset = a.add([8 * LARGE]).await.remove(0);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    quiet(&[&a, &b]).await;
    flip(&a, &asset, 5 * LARGE);
    assert!(!is_whole(&a, &asset).await);
    // The asset is marked at once: no other device hears that it is here.
    assert!(!a.hashes().await.contains(&asset.hash));
    until("whole again", &[&a, &b], async || is_whole(&a, &asset).await).await;
    all_in_sync(&[&a, &b], 1).await;
    // The loss has ended the connection, and this one has brought the group alone.
    assert_eq!(a.received_bytes(), 16 * KIB as u64, "{}", tell(&[&a]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_asset_is_kept_and_mended_when_a_device_with_a_good_copy_comes() {
    let (a, b) = (Device::start().await, Device::start().await);
    let asset = a.add([LARGE]).await.remove(0);
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    flip(&a, &asset, 10);
    let kept = std::fs::read(content_file(&a, &asset)).unwrap();
    assert!(!is_whole(&a, &asset).await);
    flip(&b, &asset, LARGE - 10);
    assert!(!is_whole(&b, &asset).await);
    until("said on both", &[&a, &b], async || {
        a.status().store.damaged == 1 && b.status().store.damaged == 1
    })
    .await;
    assert_eq!(std::fs::read(content_file(&a, &asset)).unwrap(), kept, "what is left is kept");

    // A third device has a good copy.
    let c = Device::start().await;
    flip(&a, &asset, 10);
    let whole = std::fs::read(content_file(&a, &asset)).unwrap();
    flip(&a, &asset, 10);
    let path = c.home.store_dir().join("good");
    std::fs::write(&path, whole).unwrap();
    let metadata = Metadata::default();
    let good = VerifiedFile { digest: asset, path, outboard: None, metadata, guard: None };
    assert_eq!(c.store().adopt(good).await.unwrap(), Stored::New);
    pair(&a, &c).await;
    until("whole on all", &[&a, &b, &c], async || {
        a.status().store.damaged == 0 && b.status().store.damaged == 0
    })
    .await;
    for device in [&a, &b, &c] {
        assert!(is_whole(device, &asset).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_copies_damaged_in_two_places_the_third_is_used_and_all_are_whole_in_the_end() {
    let (a, b, c) = (Device::start().await, Device::start().await, Device::start().await);
    let asset = a.add([LARGE]).await.remove(0);
    pair(&a, &b).await;
    pair(&a, &c).await;
    all_in_sync(&[&a, &b, &c], 2).await;
    flip(&a, &asset, 10);
    flip(&b, &asset, LARGE - 10);

    let d = Device::start().await;
    pair(&a, &d).await;
    until("the newcomer has it", &[&a, &b, &c, &d], async || d.status().store.assets == 1).await;
    assert!(is_whole(&d, &asset).await);
    // A device from which it was requested has found the damage; the others find it when they
    // verify the asset.
    for device in [&a, &b] {
        let _ = device.store().verify(asset.hash).await.unwrap();
    }
    until("all whole", &[&a, &b, &c, &d], async || {
        is_whole(&a, &asset).await && is_whole(&b, &asset).await
    })
    .await;
    all_in_sync(&[&a, &b, &c, &d], 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_asset_that_nobody_else_holds_is_an_obstacle_until_it_is_added_again() {
    let a = Device::start().await;
    let asset = a.add([LARGE]).await.remove(0);
    let path = content_file(&a, &asset);
    let whole = std::fs::read(&path).unwrap();
    flip(&a, &asset, 10);
    assert!(!is_whole(&a, &asset).await);
    let names_it = |text: &String| text.starts_with("1 asset of the store is damaged");
    until("it is said", &[&a], async || a.status().device.obstacles.iter().any(names_it)).await;
    assert_eq!(a.status().store.damaged, 1);

    let path = a.home.store_dir().join("again");
    std::fs::write(&path, whole).unwrap();
    let metadata = Metadata::default();
    let again = VerifiedFile { digest: asset, path, outboard: None, metadata, guard: None };
    assert_eq!(a.store().adopt(again).await.unwrap(), Stored::New);
    until("it is well", &[&a], async || a.status().device.obstacles.is_empty()).await;
}
