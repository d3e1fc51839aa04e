#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::*;
use crate::agent::events;
use crate::agent::journal::share;
use crate::core::ids::Digest;
use crate::core::journal::asset::JournalRow;
use crate::state::identity::Identity;
use crate::state::journal::Journal;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::{Metadata, NewAsset};

#[tokio::test]
async fn a_row_written_for_a_group_that_was_left_meanwhile_is_not_remembered_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("store"), Options::default()).unwrap();
    let identity = Identity::from_bytes(&[1; 32]);
    let journal = Journal::open(&dir.path().join("journal.db"), &identity, [1; 32]).unwrap();
    let (journal, writer) = share(journal).unwrap();
    let writer = std::thread::spawn(move || writer.serve());
    let content = Bytes::from_static(b"content");
    let hash = Hash(*blake3::hash(&content).as_bytes());
    let digest = Digest { hash, size_bytes: content.len() as u64 };
    store.put(vec![NewAsset { digest, content, metadata: Metadata::default() }]).await.unwrap();
    let (_settles, to_settle) = mpsc::channel(1);
    let mut settler = Settler::new(
        Arc::new(store.clone()),
        journal.clone(),
        Arrivals::new(journal.clone()),
        events::channel().0,
        to_settle,
        watch::channel(0).0,
    );
    let group = journal.run(|journal, now_ms| journal.found("one", now_ms)).await.unwrap();
    settler.at.group = Some(group);
    let asset = store.lookup(hash).await.unwrap().unwrap();
    let asked = Asked { asset, frozen: false, is_brought: false, from: None };
    let theirs = JournalRow { description: Some("theirs".into()), ..JournalRow::default() };
    let look = asked.judge(None, &theirs).unwrap();
    assert!(look.write.is_some());

    journal.run(|journal, now_ms| journal.start_over("one", now_ms)).await.unwrap();
    let error = settler.write_to_store(vec![look]).await.unwrap_err();
    assert!(error.is::<BegunAnew>(), "{error:#}");
    assert_eq!(store.lookup(hash).await.unwrap().unwrap().metadata.description, "theirs");
    let shadow = journal.read(move |reader| reader.shadow(&hash)).await.unwrap();
    assert_eq!(shadow, None, "what the store has is looked at as for the first time");
    journal.close().await;
    writer.join().unwrap().unwrap();
}
