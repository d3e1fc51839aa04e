#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;

use super::*;
use crate::core::ids::Digest;
use crate::core::journal::asset::{JournalRow, Row};
use crate::replica::events;
use crate::replica::journal::share;
use crate::state::identity::Identity;
use crate::state::journal::Journal;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::messages::TAGS_MAX;
use crate::store::{Entry, Metadata, NewAsset};

/// An asset whose row in the store has this description.
fn asked(description: &str) -> Asked {
    let digest = Digest { hash: Hash([5; 32]), size_bytes: 1 };
    let entry = Entry { digest, timestamp_ms: 0, cursor: 1 };
    let metadata = Metadata { description: description.into(), version: 7, ..Metadata::default() };
    let asset = Asset { entry, metadata, is_damaged: false };
    Asked { asset, frozen: false, is_brought: false, from: None }
}

#[test]
fn an_asset_of_which_too_much_was_said_is_logged_once_and_left_alone() {
    let too_much = JournalRow { alive: true, is_too_large: true, ..JournalRow::default() };
    for before in [None, Some(Shadow::expected(Row::default()))] {
        let look = asked("mine").judge(before, &too_much).unwrap();
        assert_eq!((look.changes.len(), look.is_edit, &look.write), (1, false, &None));
        assert!(look.fill.is_none() && !look.again);
        assert!(asked("mine").judge(Some(look.shadow.clone()), &too_much).is_none());
        // Once the record is smaller, the asset is handled like a new one.
        let theirs = JournalRow { description: Some("theirs".into()), ..JournalRow::default() };
        let look = asked("mine").judge(Some(look.shadow), &theirs).unwrap();
        assert_eq!((look.changes.len(), look.write.unwrap().description), (0, "theirs".into()));
    }
    // An edit made while the record was too large counts as an edit once it is smaller.
    let seen = asked("before").judge(None, &JournalRow::default()).unwrap().shadow;
    assert!(asked("mine").judge(Some(seen.clone()), &too_much).is_none());
    assert!(asked("mine").judge(Some(seen), &JournalRow::default()).unwrap().is_edit);
}

#[test]
fn a_row_no_store_takes_is_not_written_to_one_and_edits_of_it_go_on() {
    let mut tags: BTreeSet<String> = (0..=TAGS_MAX).map(|n| n.to_string()).collect();
    let journal = |tags| JournalRow { alive: true, tags, ..JournalRow::default() };
    let look = asked("").judge(None, &journal(tags.clone())).unwrap();
    assert_eq!((look.write, look.shadow.pending), (None, None));
    let seen = Shadow { pending: None, ..look.shadow };
    assert!(asked("").judge(Some(seen.clone()), &journal(tags.clone())).is_none(), "at rest");
    assert!(asked("mine").judge(Some(seen.clone()), &journal(tags.clone())).unwrap().is_edit);
    tags.pop_last();
    assert!(asked("").judge(Some(seen), &journal(tags)).unwrap().write.is_some());
}

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
