//! The journal between whole agents.

use std::collections::BTreeMap;

use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Key, Value};
use can_sync::replica::status::JournalPeerState;
use can_sync::state::journal::Owner;

use crate::common::group::{Device, pair, until};

fn note(id: &str) -> Draft {
    let key = Key { model: "note".into(), id: id.into(), owned: false };
    let set = BTreeMap::from([("text".into(), Some(Value::Text(id.into())))]);
    let (add, remove) = Default::default();
    let put = DraftPut { key, create: true, set, add, remove };
    Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }
}

async fn write(device: &Device, id: &str) {
    device.handle().journal().write(note(id)).await.unwrap().unwrap();
}

/// Waits until all of them have the record.
async fn all_have(devices: &[&Device], id: &str) {
    for device in devices {
        let journal = device.handle().journal();
        let mut commits = journal.commits();
        let wait = async {
            loop {
                commits.borrow_and_update();
                let id = id.to_owned();
                let record = journal
                    .read(move |reader| reader.record("note", Owner::Shared, id.as_bytes()))
                    .await;
                if record.unwrap().is_some() {
                    return;
                }
                commits.changed().await.unwrap();
            }
        };
        tokio::time::timeout(crate::common::group::SOON, wait).await.expect(id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_device_writes_all_have_and_one_that_was_away_catches_up() {
    let (a, b, mut c) = (Device::start().await, Device::start().await, Device::start().await);
    write(&a, "before pairing").await;
    pair(&a, &b).await;
    pair(&b, &c).await;
    all_have(&[&a, &b, &c], "before pairing").await;
    write(&c, "from the last").await;
    all_have(&[&a, &b], "from the last").await;
    c.down().await;
    write(&a, "meanwhile").await;
    all_have(&[&b], "meanwhile").await;
    c.up().await;
    all_have(&[&c], "meanwhile").await;
    until("journals in step", &[&a, &b, &c], async || {
        [&a, &b, &c].iter().all(|device| {
            let journal = device.status().journal;
            let in_sync = |state: JournalPeerState| state == JournalPeerState::InSync;
            journal.ready
                && !journal.peers.is_empty()
                && journal.peers.iter().all(|peer| in_sync(peer.state))
        })
    })
    .await;
}
