//! The trash of each device, which is freed by its own rule alone.

use can_sync::core::expiry::KeepPolicy;
use can_sync::core::ids::Hash;
use can_sync::store::Metadata;

use super::*;

const DAY_MS: u64 = 24 * 3600 * 1000;

async fn holds(device: &Device, hash: Hash) -> bool {
    device.store().lookup(hash).await.unwrap().is_some_and(|asset| asset.is_held())
}

async fn is_trashed(device: &Device, hash: Hash) -> bool {
    device.store().lookup(hash).await.unwrap().is_some_and(|asset| asset.metadata.trashed)
}

/// Puts an asset into the trash on a device, or takes it out, as its user does.
async fn trash(device: &Device, hash: Hash, trashed: bool) {
    let before = device.store().lookup(hash).await.unwrap().unwrap().metadata;
    let row = Metadata { trashed, ..before };
    device.store().set_metadata(hash, &row, None).await.unwrap();
}

/// Changes `copies.db` of a device that is stopped.
fn in_copies_db(device: &Device, sql: &str, hash: Hash) {
    let database = rusqlite::Connection::open(device.home.copies_db_path()).unwrap();
    assert_eq!(database.execute(sql, [hash.as_bytes()]).unwrap(), 1);
}

/// Makes a device that is stopped have seen an asset in the trash long ago.
fn saw_long_ago(device: &Device, hash: Hash) {
    in_copies_db(device, "INSERT OR REPLACE INTO expiring VALUES (?1, 1, 0, 0, 0, 0)", hash);
}

/// The rows of `copies.db` about what nothing holds, of a device that is stopped.
fn expiring(device: &Device) -> u64 {
    let database = rusqlite::Connection::open(device.home.copies_db_path()).unwrap();
    let count = "SELECT count(*) FROM expiring";
    database.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
}

fn a_day() -> KeepPolicy {
    KeepPolicy { trash_ms: Some(DAY_MS), versions_ms: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trash_is_freed_by_the_rule_of_each_device_and_what_is_restored_comes_back() {
    let (a, mut b) = (Device::start().await, Device::start().await);
    let assets = a.add([1000, 400 * KIB, 500 * KIB]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let (old, new, kept) = (assets[1].hash, assets[0].hash, assets[2].hash);
    for hash in [old, new] {
        trash(&a, hash, true).await;
        until("b knows", &[&a, &b], async || is_trashed(&b, hash).await).await;
    }
    // By default all is kept, however old it is.
    b.down().await;
    saw_long_ago(&b, old);
    b.up().await;
    all_in_sync(&[&a, &b], 1).await;
    quiet(&[&a, &b]).await;
    b.down().await;
    saw_long_ago(&b, old);
    b.keep = a_day();
    b.up().await;
    until("it is gone", &[&a, &b], async || !holds(&b, old).await).await;
    assert!(holds(&b, new).await, "b has seen it in the trash for less than a day");
    assert!(holds(&b, kept).await, "it is not in the trash");
    assert!(holds(&a, old).await, "the rule of a is its own");
    all_in_sync_as_wanted(&[&a, &b], 1).await;
    quiet(&[&a, &b]).await;
    assert!(!holds(&b, old).await, "it is not taken in again");

    // Once it is out of the trash it comes back from the device that kept it.
    trash(&a, old, false).await;
    until("it is back", &[&a, &b], async || holds(&b, old).await).await;
    assert!(!is_trashed(&b, old).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_left_the_trash_while_a_device_was_off_is_not_deleted_there() {
    let (a, mut b) = (Device::start().await, Device::start().await);
    let assets = a.add([1000, 400 * KIB]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let hash = assets[1].hash;
    trash(&b, hash, true).await;
    until("a knows", &[&a, &b], async || is_trashed(&a, hash).await).await;
    trash(&b, hash, false).await;
    until("a knows", &[&a, &b], async || !is_trashed(&a, hash).await).await;
    b.down().await;
    saw_long_ago(&b, hash);
    b.keep = a_day();
    b.up().await;
    all_in_sync(&[&a, &b], 1).await;
    quiet(&[&a, &b]).await;
    assert!(holds(&b, hash).await);
    b.down().await;
    assert_eq!(expiring(&b), 0, "its time begins anew when it is trashed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_of_the_trash_that_was_cut_short_at_any_step_is_ended_by_the_next_start() {
    let (a, mut b) = (Device::start().await, Device::start().await);
    let assets = a.add([1000, 400 * KIB]).await;
    pair(&a, &b).await;
    all_in_sync(&[&a, &b], 1).await;
    let (begun, deleted) = (assets[0].hash, assets[1].hash);
    for hash in [begun, deleted] {
        trash(&a, hash, true).await;
        until("b knows", &[&a, &b], async || is_trashed(&b, hash).await).await;
    }
    let gone = b.store().evict([deleted].into(), Box::new(|| true)).await.unwrap();
    assert_eq!(gone, [deleted]);
    b.down().await;
    // The intent is written before a deletion, and so is that it is let go of.
    for hash in [begun, deleted] {
        in_copies_db(&b, "INSERT OR REPLACE INTO let_go VALUES (?1, 1, 0)", hash);
        in_copies_db(&b, "INSERT OR REPLACE INTO expiring VALUES (?1, 1, 0, 0, 0, 1)", hash);
    }
    b.keep = a_day();
    b.up().await;
    all_in_sync_as_wanted(&[&a, &b], 1).await;
    quiet(&[&a, &b]).await;
    assert!(holds(&b, begun).await, "of which nothing was deleted");
    assert!(!holds(&b, deleted).await, "and this is not taken in again");
    trash(&a, deleted, false).await;
    until("it is back", &[&a, &b], async || holds(&b, deleted).await).await;
}
