//! The contents of earlier versions, whose space each device frees by its own rule.

use can_sync::core::attributes::{Attribute, Attributes};
use can_sync::core::expiry::KeepPolicy;
use can_sync::core::ids::{Hash, HashAlgorithm};
use can_sync::folders::status::{ContentView, RestoreRequest};
use can_sync::store::Metadata;

use super::*;

async fn holds(bound: &Bound, hash: Hash) -> bool {
    let asset = bound.device.store().lookup(hash).await.unwrap();
    asset.is_some_and(|asset| asset.is_held())
}

fn hash(content: &[u8]) -> Hash {
    HashAlgorithm::Blake3.hash(content)
}

/// Starts a device anew that keeps earlier versions for a day, and has seen long ago that nothing holds
/// these contents.
async fn keeps_a_day(bound: &mut Bound, contents: &[Hash]) {
    let device = &mut bound.device;
    device.down().await;
    let database = rusqlite::Connection::open(device.home.copies_db_path()).unwrap();
    for hash in contents {
        let insert = "INSERT OR REPLACE INTO expiring VALUES (?1, 0, 1, 0, 0, 0)";
        database.execute(insert, [hash.as_bytes()]).unwrap();
    }
    // What came into the group before is an asset of its own for all that is known.
    database.execute("UPDATE tells_since SET at_ms = 0", []).unwrap();
    drop(database);
    device.keep = KeepPolicy { versions_ms: Some(24 * 3600 * 1000), trash_ms: None };
    device.up().await;
}

fn first() -> RestoreRequest {
    RestoreRequest { path: "plan".into(), version: Some(1), at_ms: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn earlier_versions_are_freed_by_the_rule_of_each_device_and_come_back_when_they_are_restored()
 {
    let (a, mut b) = two().await;
    let old = content(1, 300_000);
    for name in ["plan", "copied", "added"] {
        a.write(name, &[&old[..], name.as_bytes()].concat());
    }
    a.write("copied-too", &[&old[..], b"copied"].concat());
    equal(&a, &b, 4).await;
    let [plan, copied, added] =
        ["plan", "copied", "added"].map(|name| hash(&[&old[..], name.as_bytes()].concat()));
    for name in ["plan", "copied", "added"] {
        a.write(name, b"new");
    }
    equal(&a, &b, 4).await;
    until("b has the new ones", &[&a.device, &b.device], async || {
        ["plan", "copied", "added"].iter().all(|name| b.read(name).as_deref() == Some(b"new"))
    })
    .await;
    // One of them was added for itself, too.
    let before = a.device.store().lookup(added).await.unwrap().unwrap().metadata;
    let by = Attributes::default().with_text(Attribute::Application, "camera");
    let mut attributes = before.attributes.clone();
    attributes.fill(by);
    let row = Metadata { attributes, ..before };
    a.device.store().set_metadata(added, &row, None).await.unwrap();
    until("b knows", &[&a.device, &b.device], async || {
        let asset = b.device.store().lookup(added).await.unwrap().unwrap();
        asset.metadata.attributes.text(Attribute::Application) == "camera"
    })
    .await;

    keeps_a_day(&mut b, &[plan, copied, added]).await;
    until("the old plan is gone", &[&a.device, &b.device], async || !holds(&b, plan).await).await;
    assert!(holds(&b, copied).await, "another path has it");
    assert!(holds(&b, added).await, "it was added for itself");
    assert!(holds(&a, plan).await, "the rule of a is its own");
    assert!(holds(&b, hash(b"new")).await);

    b.device.handle().folders().restore(NAME, first()).await.unwrap();
    until("it is fetched from a", &[&a.device, &b.device], async || {
        let whole = [&old[..], b"plan"].concat();
        b.read("plan").as_ref() == Some(&whole) && a.read("plan").as_ref() == Some(&whole)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_nobody_keeps_any_more_is_named_as_such_when_it_is_restored() {
    let (mut a, mut b) = two().await;
    let old = content(2, 300_000);
    a.write("plan", &old);
    equal(&a, &b, 1).await;
    a.write("plan", b"new");
    until("b has the new one", &[&a.device, &b.device], async || {
        b.read("plan").as_deref() == Some(b"new")
    })
    .await;
    equal(&a, &b, 1).await;
    for bound in [&mut a, &mut b] {
        keeps_a_day(bound, &[hash(&old)]).await;
    }
    until("it is gone", &[&a.device, &b.device], async || {
        !holds(&a, hash(&old)).await && !holds(&b, hash(&old)).await
    })
    .await;
    until("both know", &[&a.device, &b.device], async || {
        let (_, holders) = b.device.handle().keeper().holders(hash(&old)).await.unwrap();
        holders.is_empty()
    })
    .await;
    let folders = b.device.handle().folders();
    let refused = folders.restore(NAME, first()).await.unwrap_err().to_string();
    assert!(refused.contains("no device is known to have"), "{refused}");
    assert_eq!(b.read("plan").unwrap(), b"new", "nothing was changed");
    let history = folders.history(NAME, "plan").await.unwrap();
    assert!(matches!(history.versions[1].content, ContentView::File { here: false, .. }));
}
