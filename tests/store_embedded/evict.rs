//! Contents that are deleted on purpose: what stays, and what a crash at any step leaves.

use std::collections::BTreeSet;

use super::*;

async fn evict(store: &EmbeddedStore, hash: Hash) -> Vec<Hash> {
    store.evict(BTreeSet::from([hash]), Box::new(|| true)).await.unwrap()
}

async fn described(store: &EmbeddedStore, hash: Hash) {
    let metadata = Metadata { description: "kept".into(), ..Metadata::default() };
    store.set_metadata(hash, &metadata, None).await.unwrap();
}

#[tokio::test]
async fn an_evicted_asset_is_not_held_and_keeps_what_people_wrote_until_its_bytes_come_again() {
    for is_small in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (digest, _) = take_in(&store, 1, is_small).await;
        let (other, _) = take_in(&store, 2, is_small).await;
        described(&store, digest.hash).await;
        let before = store.info().await.unwrap();

        assert_eq!(evict(&store, digest.hash).await, [digest.hash]);
        let row = store.lookup(digest.hash).await.unwrap().unwrap();
        assert!(row.is_evicted && !row.is_damaged && !row.is_held());
        assert_eq!(row.metadata.description, "kept");
        assert_eq!(store.read(digest.hash, 0..1).await.unwrap(), None);
        assert!(store.bao_files(digest.hash).await.unwrap().is_none());
        assert!(store.remains(digest.hash).await.unwrap().is_none());
        assert_eq!(store.verify(digest.hash).await.unwrap(), Condition::Absent);
        assert_eq!(store.damages().borrow().count, 0, "it is no damage");
        assert!(store.marked(0, 9).await.unwrap().is_empty());
        let changes = store.changes(before.newest_cursor, 9).await.unwrap();
        assert_eq!(changes.gone, [digest.hash], "the feed says that it is gone");
        let info = store.info().await.unwrap();
        assert_eq!((info.asset_count, info.asset_bytes), (1, other.size_bytes));
        assert!(is_whole(&store, other, 2).await, "another asset is untouched");
        let files = if is_small { 0 } else { 2 };
        assert_eq!(content_files(dir.path()).len(), files);
        assert_eq!(evict(&store, digest.hash).await, [], "a second time it was not held");

        let (_, stored) = take_in(&store, 1, is_small).await;
        assert_eq!(stored, Stored::New);
        let row = store.lookup(digest.hash).await.unwrap().unwrap();
        assert!(row.is_held() && row.metadata.description == "kept");
        assert!(is_whole(&store, digest, 1).await);
        assert_eq!(store.info().await.unwrap().asset_count, 2);
        store.close().await;
    }
}

#[tokio::test]
async fn nothing_is_deleted_when_the_permit_has_ended_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (seed, is_small) in [(1, true), (2, false)] {
        let (digest, _) = take_in(&store, seed, is_small).await;
        let hashes = BTreeSet::from([digest.hash]);
        assert!(store.evict(hashes, Box::new(|| false)).await.unwrap().is_empty());
        assert!(is_whole(&store, digest, seed).await);
    }
    store.close().await;
}

#[tokio::test]
async fn a_damaged_asset_is_not_evicted_because_what_is_left_of_it_may_be_needed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (digest, _) = take_in(&store, 1, false).await;
    flip(&content_path(dir.path(), digest.hash), 5);
    assert!(matches!(store.verify(digest.hash).await.unwrap(), Condition::Damaged(_)));
    assert_eq!(evict(&store, digest.hash).await, []);
    assert_eq!(content_files(dir.path()).len(), 2);
    store.close().await;
}

#[tokio::test]
async fn whatever_a_kill_leaves_of_an_eviction_is_whole_or_gone() {
    // What is on the disk: before the commit; after it with both files, one, and none; at the end.
    for (is_committed, files_left, is_reserved) in
        [(false, 2, false), (true, 2, true), (true, 1, true), (true, 0, true), (true, 0, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (digest, _) = take_in(&store, 1, false).await;
        store.close().await;
        drop(store);
        let path = content_path(dir.path(), digest.hash);
        if is_committed {
            let conn = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
            conn.execute_batch(
                "UPDATE assets SET damaged = 2, evicted = 1;
                 UPDATE store SET newest_cursor = 2, asset_count = 0, asset_bytes = 0",
            )
            .unwrap();
        }
        if is_reserved {
            pend(dir.path(), digest.hash);
        }
        if files_left < 2 {
            fs::remove_file(&path).unwrap();
        }
        if files_left < 1 {
            fs::remove_file(path.with_extension("outboard")).unwrap();
        }
        let store = open(dir.path());
        let row = store.lookup(digest.hash).await.unwrap().unwrap();
        assert_eq!(row.is_evicted, is_committed);
        assert_eq!(content_files(dir.path()).len(), if is_committed { 0 } else { 2 });
        match is_committed {
            true => assert_eq!(store.read(digest.hash, 0..1).await.unwrap(), None),
            false => assert!(is_whole(&store, digest, 1).await),
        }
        take_in(&store, 1, false).await;
        assert!(is_whole(&store, digest, 1).await, "it can be stored again");
        store.close().await;
    }
}

#[tokio::test]
async fn a_foreign_store_without_the_feature_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let store = can_sync::store::http::HttpStore::new("http://127.0.0.1:9", &key).unwrap();
    let refused = store.evict(BTreeSet::from([Hash([1; 32])]), Box::new(|| true)).await;
    assert!(matches!(refused, Err(StoreError::Unsupported(_))));
}
