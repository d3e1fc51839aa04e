#![allow(clippy::unwrap_used)]

use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::{Metadata, NewAsset};

/// The deadline of an event.
const WAIT: Duration = Duration::from_secs(20);

/// After this time without an event none is under way.
const QUIET: Duration = Duration::from_millis(500);

/// A catalogue of an embedded store, and its events.
struct Fixture {
    store: EmbeddedStore,
    backlog: Backlog,
    events: mpsc::Receiver<StoreEvent>,
    running: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn catalogue(
    folder: &Path,
    store: &EmbeddedStore,
) -> (Catalogue<StoreEvent>, mpsc::Receiver<StoreEvent>) {
    let (sender, events) = mpsc::channel(16);
    let catalogue = Catalogue {
        store: Arc::new(store.clone()),
        index: Index::open(&folder.join("index.db")).unwrap(),
        events: sender,
        backlog: Backlog::new(None),
        nudge: Arc::default(),
        gate: Arc::default(),
    };
    (catalogue, events)
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store"), Options::default()).unwrap();
        let (catalogue, events) = catalogue(dir.path(), &store);
        let backlog = catalogue.backlog.clone();
        let running = tokio::spawn(catalogue.run());
        Self { store, backlog, events, running, _dir: dir }
    }

    async fn put(&self, content: &'static str) -> Hash {
        let content = Bytes::from_static(content.as_bytes());
        let hash = Hash(*blake3::hash(&content).as_bytes());
        let digest = Digest { hash, size_bytes: content.len() as u64 };
        let new = NewAsset { digest, content, metadata: Metadata::default() };
        self.store.put(vec![new]).await.unwrap().remove(0).unwrap();
        hash
    }

    /// Returns when the store is listed once more.
    async fn listed(&mut self) {
        while !matches!(self.events.recv().await.unwrap(), StoreEvent::Listed { .. }) {}
    }

    /// Returns when the feed was read to its end and nothing more is listed.
    async fn quiet(&mut self) {
        let newest = self.store.info().await.unwrap().newest_cursor;
        let quiet = async {
            while self.backlog.read_to() < newest {
                tokio::task::yield_now().await;
            }
            while timeout(QUIET, self.events.recv()).await.is_ok() {}
        };
        timeout(WAIT, quiet).await.unwrap();
    }

    /// The assets of the next event that has some. Replies that the engine is bound where the
    /// catalogue waits for that.
    async fn indexed(&mut self) -> Vec<Hash> {
        let next = async {
            loop {
                match self.events.recv().await.unwrap() {
                    StoreEvent::Up { reply, .. } => reply.send(()).unwrap(),
                    StoreEvent::Indexed { entries, .. } if !entries.is_empty() => {
                        return entries.iter().map(|(_, digest)| digest.hash).collect();
                    }
                    StoreEvent::Indexed { .. } | StoreEvent::Listed { .. } => {}
                    event => panic!("{event:?}"),
                }
            }
        };
        timeout(WAIT, next).await.unwrap()
    }
}

#[tokio::test]
async fn new_assets_reach_the_loop_while_the_metadata_stage_stands_still() {
    let mut f = Fixture::new();
    let first = f.put("first").await;
    assert_eq!(f.indexed().await, [first]);
    // The test takes nothing out of the backlog.
    for _ in 0..BACKLOG_LINES_MAX {
        f.backlog.add(Touched::Stored { hash: first, cursor: 1 });
    }
    for content in ["second", "third"] {
        let hash = f.put(content).await;
        assert_eq!(f.indexed().await, [hash]);
    }
    f.running.abort();
}

#[tokio::test]
async fn lines_that_were_listed_are_handed_over_and_have_nothing_listed_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("store"), Options::default()).unwrap();
    let (catalogue, _events) = catalogue(dir.path(), &store);
    catalogue.backlog.open(&store.info().await.unwrap());
    let hash = Hash([1; 32]);
    let stored = |cursor| Ok(Touched::Stored { hash, cursor });
    let edited = |cursor| Ok(Touched::Edited { hash, cursor });
    for (lines, listed, list_from) in [
        (vec![stored(4), edited(5)], 5, None),
        (vec![stored(4), edited(6)], 5, Some(5)),
        (vec![stored(0)], 5, Some(5)),
        (vec![Ok(Touched::Changed)], 5, Some(5)),
        (vec![Ok(Touched::Gap), edited(9)], 5, Some(0)),
    ] {
        assert_eq!(catalogue.hand_over(lines, listed).unwrap(), list_from);
    }
    let lost = Err(StoreError::Unreachable("gone".into()));
    assert!(catalogue.hand_over(vec![stored(10), lost], 5).is_err());
    assert_eq!(catalogue.backlog.read_to(), 10, "lines before the error count");
}

#[tokio::test]
async fn a_silent_feed_is_opened_again_and_the_whole_store_is_listed_every_hour() {
    let mut f = Fixture::new();
    let first = f.put("first").await;
    assert_eq!(f.indexed().await, [first]);
    f.quiet().await;
    let number = f.backlog.answer().borrow().clone().unwrap().unwrap().number;
    f.backlog.take(number, usize::MAX).unwrap();
    tokio::time::pause();
    let paused = Instant::now();
    f.listed().await;
    let silent_s = paused.elapsed().as_secs();
    assert!(silent_s.abs_diff(FEED_QUIET_MAX.as_secs()) <= 5, "{silent_s} s");
    tokio::time::resume();
    let second = f.put("second").await;
    assert_eq!(f.indexed().await, [second]);
    f.quiet().await;
    f.backlog.take(number, usize::MAX).unwrap();

    tokio::time::pause();
    while !f.backlog.take(number, usize::MAX).unwrap().is_gap {
        f.listed().await;
    }
    let whole_s = paused.elapsed().as_secs();
    assert!(whole_s.abs_diff(RELIST_EVERY.as_secs()) <= WAIT.as_secs(), "{whole_s} s");
    f.running.abort();
}
