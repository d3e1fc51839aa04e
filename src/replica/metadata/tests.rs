#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::look::Asked;
use super::*;
use crate::core::ids::Digest;
use crate::core::journal::asset::{JournalRow, Row, Shadow};
use crate::replica::catalogue::BACKLOG_LINES_MAX;
use crate::replica::events;
use crate::replica::journal::share;
use crate::state::identity::Identity;
use crate::state::journal::Journal;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::messages::TAGS_MAX;
use crate::store::{Asset, Entry, Metadata, NewAsset, Touched};

/// An asset whose row in the store has this description.
fn asked(description: &str) -> Asked {
    let digest = Digest { hash: Hash([5; 32]), size_bytes: 1 };
    let entry = Entry { digest, timestamp_ms: 0, cursor: 1 };
    let metadata = Metadata { description: description.into(), version: 7, ..Metadata::default() };
    let asset = Asset { entry, metadata, is_damaged: false, is_evicted: false };
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

/// A settler that nobody runs, between an empty store and an empty journal.
struct Fixture {
    store: EmbeddedStore,
    journal: JournalHandle,
    backlog: Backlog,
    settler: Settler,
    writer: std::thread::JoinHandle<Result<(), AskError>>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store"), Options::default()).unwrap();
        let identity = Identity::from_bytes(&[1; 32]);
        let journal = Journal::open(&dir.path().join("journal.db"), &identity, [1; 32]).unwrap();
        let (journal, writer) = share(journal).unwrap();
        let writer = std::thread::spawn(move || writer.serve());
        let backlog = Backlog::new(None);
        let mut settler = Settler::new(
            Arc::new(store.clone()),
            backlog.clone(),
            journal.clone(),
            Arrivals::new(journal.clone()),
            events::channel().0,
            mpsc::channel(1).1,
            watch::channel(0).0,
        );
        let group = journal.run(|journal, now_ms| journal.found("one", now_ms)).await.unwrap();
        settler.at.group = Some(group);
        Self { store, journal, backlog, settler, writer, _dir: dir }
    }

    /// Returns the asset's hash and its place in the store's feed.
    async fn put(&self, content: &'static str) -> (Hash, store::Cursor) {
        let content = Bytes::from_static(content.as_bytes());
        let hash = Hash(*blake3::hash(&content).as_bytes());
        let digest = Digest { hash, size_bytes: content.len() as u64 };
        let new = NewAsset { digest, content, metadata: Metadata::default() };
        self.store.put(vec![new]).await.unwrap().remove(0).unwrap();
        (hash, self.store.info().await.unwrap().newest_cursor)
    }

    async fn shadow(&self, hash: Hash) -> Option<Shadow> {
        self.journal.read(move |reader| reader.shadow(&hash)).await.unwrap()
    }

    /// A session in which everything was looked at already.
    async fn rest(&mut self) {
        self.backlog.open(&self.store.info().await.unwrap());
        let opened = self.settler.opened().await.unwrap();
        self.settler.take_place(opened).await.unwrap();
        self.settler.work_off().await.unwrap();
        self.scan_all().await;
    }

    /// What the settler does when a scan is due.
    async fn scan_all(&mut self) {
        self.settler.on_time().await.unwrap();
        while self.settler.at.scan.is_some() {
            self.settler.scan().await.unwrap();
        }
    }

    async fn end(self) {
        self.journal.close().await;
        self.writer.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_row_written_for_a_group_that_was_left_meanwhile_is_not_remembered_in_the_next() {
    let mut f = Fixture::new().await;
    let (hash, _) = f.put("content").await;
    let asset = f.store.lookup(hash).await.unwrap().unwrap();
    let asked = Asked { asset, frozen: false, is_brought: false, from: None };
    let theirs = JournalRow { description: Some("theirs".into()), ..JournalRow::default() };
    let look = asked.judge(None, &theirs).unwrap();
    assert!(look.write.is_some());

    f.journal.run(|journal, now_ms| journal.start_over("one", now_ms)).await.unwrap();
    let error = f.settler.write_to_store(vec![look]).await.unwrap_err();
    assert!(error.is::<BegunAnew>(), "{error:#}");
    assert_eq!(f.store.lookup(hash).await.unwrap().unwrap().metadata.description, "theirs");
    assert_eq!(f.shadow(hash).await, None, "what the store has is looked at as for the first time");
    f.end().await;
}

#[tokio::test]
async fn an_asset_that_did_not_fit_into_the_backlog_is_found_by_listing_the_store_from_its_place() {
    let mut f = Fixture::new().await;
    let (old, then) = f.put("old").await;
    f.rest().await;
    assert_eq!(f.settler.at.store.unwrap().arr, then);
    for _ in 0..BACKLOG_LINES_MAX {
        f.backlog.add(Touched::Stored { hash: old, cursor: then });
    }
    let (late, cursor) = f.put("late").await;
    f.backlog.add(Touched::Stored { hash: late, cursor });
    while f.backlog.ready().now_or_never().is_some() {
        f.settler.work_off().await.unwrap();
    }
    assert_eq!(f.shadow(late).await, None);
    let scan = f.settler.at.scan.as_ref().unwrap();
    assert_eq!((scan.after, scan.is_whole), (then, false));
    let (last, place) = f.put("last").await;
    f.backlog.add(Touched::Stored { hash: last, cursor: place });
    f.settler.work_off().await.unwrap();
    let noted = f.settler.at.store.unwrap().arr;
    assert_eq!(noted, then, "after a crash the late one would be read again");

    f.scan_all().await;
    assert!(f.shadow(late).await.is_some());
    assert_eq!(f.settler.at.store.unwrap().arr, place);
    f.end().await;
}

#[tokio::test]
async fn edits_that_did_not_fit_into_the_backlog_are_found_by_looking_at_everything() {
    let mut f = Fixture::new().await;
    let (hash, then) = f.put("content").await;
    f.rest().await;
    for _ in 0..BACKLOG_LINES_MAX {
        f.backlog.add(Touched::Stored { hash, cursor: then });
    }
    f.backlog.add(Touched::Edited { hash, cursor: then + 1 });
    while f.backlog.ready().now_or_never().is_some() {
        f.settler.work_off().await.unwrap();
    }
    let edit = Metadata { description: "mine".into(), ..Metadata::default() };
    f.store.set_metadata(hash, &edit, None).await.unwrap();
    assert!(f.settler.at.in_hand.is_gap && f.settler.at.scan.is_none());
    let again_ms = f.settler.scanned_ms.unwrap() + SCAN_AGAIN_MS;
    assert_eq!(f.settler.at.scan_at_ms, Some(again_ms), "no two scans in a row");

    f.settler.at.scan_at_ms = Some(0);
    f.scan_all().await;
    let row = f.journal.read(move |reader| reader.asset(&hash)).await.unwrap();
    assert_eq!(row.description.as_deref(), Some("mine"));
    assert!(!f.settler.at.in_hand.is_gap);
    f.end().await;
}

#[tokio::test]
async fn a_store_that_moved_on_since_its_feed_was_opened_is_not_taken_for_an_older_state() {
    let mut f = Fixture::new().await;
    let (hash, _) = f.put("content").await;
    f.rest().await;
    let (late, cursor) = f.put("late").await;
    f.backlog.add(Touched::Stored { hash: late, cursor });
    f.settler.work_off().await.unwrap();
    f.settler.save().await.unwrap();
    // A session that failed, as when the journal's disk is full for a while.
    f.settler.put_back();
    let opened = f.settler.opened().await.unwrap();
    f.settler.take_place(opened).await.unwrap();
    assert!(f.settler.at.is_whole && f.settler.at.scan.is_none());
    assert_eq!(f.settler.at.store.unwrap().arr, cursor);
    assert!(!f.shadow(hash).await.unwrap().is_forgotten());
    f.end().await;
}

#[tokio::test]
async fn what_a_session_did_not_finish_is_done_by_the_next() {
    let mut f = Fixture::new().await;
    f.rest().await;
    let (hash, cursor) = f.put("content").await;
    f.backlog.add(Touched::Stored { hash, cursor });
    f.store.close().await;
    f.settler.work_off().await.unwrap_err();
    f.settler.put_back();
    let number = f.settler.at.number;
    let work = f.backlog.take(number, usize::MAX).unwrap();
    assert_eq!(Vec::from(work.lines), [(hash, cursor)]);
    f.end().await;
}
