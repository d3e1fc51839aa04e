//! Wishes to forget assets, and what devices do about them.

use can_sync::copies::forgetting::{wish, wishes};
use can_sync::core::forgetting::ForgottenRule;
use can_sync::core::ids::Hash;
use can_sync::state::copies::Copies;

use super::*;

async fn holds(device: &Device, hash: Hash) -> bool {
    device.store().lookup(hash).await.unwrap().is_some_and(|asset| asset.is_held())
}

/// Makes a device that is down have seen the wish to forget an asset long ago.
fn saw_long_ago(device: &Device, hash: Hash) {
    // Makes the database.
    Copies::open(&device.home.copies_db_path()).unwrap().close();
    let database = rusqlite::Connection::open(device.home.copies_db_path()).unwrap();
    let insert = "INSERT OR REPLACE INTO wishes VALUES (?1, 0, 0)";
    assert_eq!(database.execute(insert, [hash.as_bytes()]).unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_is_seen_by_all_and_only_a_device_whose_own_rule_says_so_deletes_bytes_when_it_is_due()
 {
    let (a, mut b, mut c) = (Device::start().await, Device::start().await, Device::start().await);
    let assets = a.add([1000, 400 * KIB]).await;
    pair(&a, &b).await;
    pair(&a, &c).await;
    all_in_sync(&[&a, &b, &c], 2).await;
    let hash = assets[1].hash;
    let empty = wish(&a.handle().journal(), hash, Some(" ".into())).await;
    assert!(matches!(empty, Err(RequestError::Invalid(_))), "{empty:?}");
    wish(&a.handle().journal(), hash, Some("wrong scan".into())).await.unwrap();
    for device in [&a, &b, &c] {
        until("it is seen", &[&a, &b, &c], async || {
            let wishes = wishes(&device.handle().journal()).await.unwrap();
            wishes.len() == 1 && wishes[0].hash == hash && wishes[0].reason == "wrong scan"
        })
        .await;
    }
    // A new one has no effect, whatever the rule.
    b.down().await;
    b.forgotten = ForgottenRule::Delete;
    b.up().await;
    all_in_sync(&[&a, &b, &c], 2).await;
    assert!(holds(&b, hash).await);
    // One that is due has: on the device whose rule it is.
    for device in [&mut b, &mut c] {
        device.down().await;
        saw_long_ago(device, hash);
        device.up().await;
    }
    until("it is forgotten", &[&a, &b, &c], async || !holds(&b, hash).await).await;
    assert!(holds(&c, hash).await && holds(&a, hash).await, "by default bytes stay");
    assert!(holds(&b, assets[0].hash).await, "another asset is untouched");
    all_in_sync_as_wanted(&[&a, &b, &c], 2).await;
    quiet(&[&a, &b, &c]).await;
    assert!(!holds(&b, hash).await, "it is not taken in again");

    // Taken back, it is wanted again.
    wish(&a.handle().journal(), hash, None).await.unwrap();
    let again = wish(&a.handle().journal(), hash, None).await;
    assert!(matches!(again, Err(RequestError::Unknown(_))), "{again:?}");
    until("nobody wishes it", &[&a, &b], async || {
        wishes(&b.handle().journal()).await.unwrap().is_empty()
    })
    .await;
    b.down().await;
    b.up().await;
    until("it is back", &[&a, &b, &c], async || holds(&b, hash).await).await;
}
