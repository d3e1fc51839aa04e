//! The embedded store's folder: which process may open it, what a crash may leave in it, and what a
//! full disk does.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;
#[path = "store_embedded/evict.rs"]
mod evict;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use can_sync::bao::GROUP_BYTES;
use can_sync::core::attributes::{Attribute, Attributes};
use can_sync::core::ids::{Digest, Hash, HashAlgorithm};
use can_sync::core::ranges::Ranges;
use can_sync::store::embedded::{EmbeddedStore, FeedKind, Options};
use can_sync::store::{
    Condition, Damages, Filter, Metadata, SMALL_BYTES_MAX, Store, StoreError, Stored,
};
use common::{asset, content, file};
use futures_util::StreamExt as _;

const BLAKE3: HashAlgorithm = HashAlgorithm::Blake3;
const LARGE: usize = SMALL_BYTES_MAX as usize + 1000;

fn options() -> Options {
    Options { hash_algorithm: BLAKE3, free_floor_bytes: Some(0) }
}

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, options()).unwrap()
}

/// The whole error text of an open that must fail.
fn refusal(dir: &Path, options: Options) -> String {
    let Err(error) = EmbeddedStore::open(dir, options) else {
        panic!("{} opened", dir.display());
    };
    format!("{error:#}")
}

fn content_path(dir: &Path, hash: Hash) -> PathBuf {
    let hex = hash.to_string();
    dir.join("content").join(&hex[..2]).join(hex)
}

/// Every file under `content/`.
fn content_files(dir: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(dir.join("content"))
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect()
}

fn pend(dir: &Path, hash: Hash) {
    let conn = rusqlite::Connection::open(dir.join("store.db")).unwrap();
    conn.execute("INSERT INTO pending VALUES (?1)", [hash.as_bytes()]).unwrap();
}

async fn adopt(store: &EmbeddedStore, seed: u64, length: usize) -> Digest {
    let new = file(BLAKE3, store.staging_dir(), &content(seed, length));
    let digest = new.digest;
    assert_eq!(store.adopt(new).await.unwrap(), Stored::New);
    digest
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("deep/store");
    let store = open(&dir);
    let small = asset(BLAKE3, content(1, 5000));
    let small_digest = small.digest;
    store.put(vec![small]).await.unwrap();
    let large = adopt(&store, 2, LARGE).await;
    let edit = Metadata { tags: vec!["kept".into()], ..Metadata::default() };
    let edited = store.set_metadata(large.hash, &edit, None).await.unwrap();
    let before = store.info().await.unwrap();
    store.close().await;
    let refused = store.info().await;
    assert!(matches!(refused, Err(StoreError::Unreachable(_))));
    assert!(store.put(Vec::new()).await.is_err());

    let store = open(&dir);
    assert_eq!(store.info().await.unwrap(), before);
    let row = store.lookup(large.hash).await.unwrap().unwrap();
    assert_eq!(row.metadata, edited);
    let small = store.read_small(&[small_digest]).await.unwrap().remove(0);
    assert_eq!(small.unwrap(), content(1, 5000));
    let range = 0..large.size_bytes;
    let read = store.read(large.hash, range).await.unwrap().unwrap();
    assert!(read == content(2, LARGE));
    // A cursor is never reused.
    store.put(vec![asset(BLAKE3, content(3, 1))]).await.unwrap();
    let newest = store.info().await.unwrap().newest_cursor;
    assert_eq!(newest, before.newest_cursor + 1);
}

#[test]
fn a_second_open_is_refused_and_names_the_process() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let text = refusal(tmp.path(), options());
    let process = format!("in use by process {}", std::process::id());
    assert!(text.contains(&process), "{text}");
    drop(store);
    open(tmp.path());
}

#[test]
fn another_algorithm_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()));
    let sha256 = Options { hash_algorithm: HashAlgorithm::Sha256, ..options() };
    let text = refusal(tmp.path(), sha256);
    assert!(text.contains("blake3") && text.contains("sha256"), "{text}");
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let plain = tmp.path().join("plain");
    fs::write(&plain, "text").unwrap();
    assert!(refusal(&plain, options()).contains("not a folder"));
    assert!(!refusal(&plain.join("below"), options()).is_empty());

    let full = tmp.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter.txt"), "dear").unwrap();
    let mode = fs::metadata(&full).unwrap().mode();
    assert!(refusal(&full, options()).contains("no store"));
    assert_eq!(fs::metadata(&full).unwrap().mode(), mode);
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
}

#[test]
fn a_foreign_newer_or_broken_database_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let database = tmp.path().join("store.db");
    drop(open(tmp.path()));
    let set = |pragma: &str| {
        let conn = rusqlite::Connection::open(&database).unwrap();
        conn.execute_batch(pragma).unwrap();
    };
    set("PRAGMA user_version = 99");
    let before = fs::read(&database).unwrap();
    let text = refusal(tmp.path(), options());
    assert!(fs::read(&database).unwrap() == before, "a newer database is changed");
    assert!(text.contains("version 99") && text.contains("store.db"));
    set("PRAGMA user_version = 1; PRAGMA application_id = 5");
    assert!(refusal(tmp.path(), options()).contains("another program"));
    fs::write(&database, vec![b'x'; 8192]).unwrap();
    let text = refusal(tmp.path(), options());
    assert!(text.contains("store.db"), "{text}");
}

#[test]
fn a_folder_that_cannot_be_read_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()));
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o000)).unwrap();
    // The tests may run as root, whom no permission stops.
    if fs::read_dir(tmp.path()).is_err() {
        assert!(refusal(tmp.path(), options()).contains("cannot open the store folder"));
    }
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn the_folder_is_private_whatever_the_umask() {
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("store");
    let store = open(&dir);
    store.put(vec![asset(BLAKE3, content(1, 100))]).await.unwrap();
    adopt(&store, 2, LARGE).await;
    let mut files = 0;
    for entry in walkdir::WalkDir::new(&dir) {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode() & 0o777;
        let expected = if entry.file_type().is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, expected, "{}", entry.path().display());
        files += usize::from(entry.file_type().is_file());
    }
    // lock, database with log and index, content, outboard
    assert_eq!(files, 6);
    rustix::process::umask(before);
}

#[test]
fn an_open_folder_is_made_private_again() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()));
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(tmp.path()));
    assert_eq!(fs::metadata(tmp.path()).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn temporary_and_staged_files_are_swept() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let staging = store.staging_dir().to_owned();
    drop(store);
    fs::write(tmp.path().join("temp/7"), "half").unwrap();
    fs::write(staging.join("upload"), "half").unwrap();
    fs::create_dir(staging.join("folder")).unwrap();
    fs::write(staging.join("folder/upload"), "half").unwrap();
    let store = open(tmp.path());
    assert_eq!(fs::read_dir(tmp.path().join("temp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);
    adopt(&store, 1, LARGE).await;
}

#[tokio::test]
async fn a_crash_before_the_files_are_named_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()));
    let hash = BLAKE3.hash(&content(1, LARGE));
    pend(tmp.path(), hash);
    let store = open(tmp.path());
    assert_eq!(store.lookup(hash).await.unwrap(), None);
    adopt(&store, 1, LARGE).await;
}

#[tokio::test]
async fn a_crash_between_the_name_and_the_record_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()));
    let hash = BLAKE3.hash(&content(1, LARGE));
    pend(tmp.path(), hash);
    let path = content_path(tmp.path(), hash);
    fs::write(&path, content(1, LARGE)).unwrap();
    fs::write(path.with_extension("outboard"), "torn").unwrap();
    let store = open(tmp.path());
    assert_eq!(content_files(tmp.path()), Vec::<PathBuf>::new());
    assert_eq!(store.lookup(hash).await.unwrap(), None);
    assert_eq!(store.info().await.unwrap().asset_count, 0);
    adopt(&store, 1, LARGE).await;
    drop(store);
    // What is recorded stays, even with a leftover note.
    pend(tmp.path(), hash);
    let store = open(tmp.path());
    assert_eq!(content_files(tmp.path()).len(), 2);
    let read = store.read(hash, 0..LARGE as u64).await.unwrap().unwrap();
    assert!(read == content(1, LARGE));
}

#[tokio::test]
async fn a_missing_or_torn_outboard_is_computed_anew() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let digest = adopt(&store, 1, LARGE).await;
    let path = content_path(tmp.path(), digest.hash).with_extension("outboard");
    let whole = fs::read(&path).unwrap();
    let torn = [Vec::new(), vec![0; whole.len()], whole[..64].to_vec()];
    for torn in torn {
        fs::write(&path, torn).unwrap();
        assert!(store.bao_files(digest.hash).await.unwrap().is_some());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    fs::remove_file(&path).unwrap();
    assert!(store.bao_files(digest.hash).await.unwrap().is_some());
    assert_eq!(fs::read(&path).unwrap(), whole);

    // For a damaged content there must be no outboard that makes it look right.
    let mut damaged = content(1, LARGE).to_vec();
    damaged[100_000] ^= 1;
    fs::write(content_path(tmp.path(), digest.hash), damaged).unwrap();
    fs::remove_file(&path).unwrap();
    let result = store.bao_files(digest.hash).await;
    assert!(matches!(result, Err(StoreError::Damaged(_))));
    assert_eq!(store.verify(digest.hash).await.unwrap(), wrong(0..digest.size_bytes));
}

#[tokio::test]
async fn an_outboard_that_has_rotted_within_is_made_anew_when_its_asset_is_verified() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let digest = adopt(&store, 1, LARGE).await;
    let path = content_path(tmp.path(), digest.hash).with_extension("outboard");
    let whole = fs::read(&path).unwrap();
    let mut rotten = whole.clone();
    *rotten.last_mut().unwrap() ^= 1;
    fs::write(&path, rotten).unwrap();
    assert_eq!(store.verify(digest.hash).await.unwrap(), Condition::Whole);
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(*store.damages().borrow(), Damages::default());
}

/// The condition of an asset in which these bytes are wrong.
fn wrong(bytes: std::ops::Range<u64>) -> Condition {
    let mut ranges = Ranges::default();
    ranges.insert(bytes);
    Condition::Damaged(ranges)
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn the_groups_that_are_wrong_are_named_as_often_as_one_asks_and_what_is_left_is_kept() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let digest = adopt(&store, 1, LARGE).await;
    let path = content_path(tmp.path(), digest.hash);
    assert!(store.remains(digest.hash).await.unwrap().is_none(), "a whole asset");
    flip(&path, 3 * GROUP_BYTES + 7);
    let rotten = fs::read(&path).unwrap();
    for _ in 0..2 {
        let group = 3 * GROUP_BYTES..4 * GROUP_BYTES;
        assert_eq!(store.verify(digest.hash).await.unwrap(), wrong(group));
    }
    fs::File::options().write(true).open(&path).unwrap().set_len(5 * GROUP_BYTES + 1).unwrap();
    let mut ranges = Ranges::default();
    ranges.insert(3 * GROUP_BYTES..4 * GROUP_BYTES);
    ranges.insert(5 * GROUP_BYTES..digest.size_bytes);
    assert_eq!(store.verify(digest.hash).await.unwrap(), Condition::Damaged(ranges));
    assert_eq!(store.damages().borrow().found, 1, "found once");
    assert!(store.remains(digest.hash).await.unwrap().is_some());
    assert!(fs::read(&path).unwrap() == rotten[..5 * GROUP_BYTES as usize + 1]);
    fs::remove_file(&path).unwrap();
    assert_eq!(store.verify(digest.hash).await.unwrap(), wrong(0..digest.size_bytes));
    assert!(store.remains(digest.hash).await.unwrap().is_none());
}

#[tokio::test]
async fn an_asset_that_was_found_damaged_and_is_whole_after_all_is_held_again() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let large = adopt(&store, 1, LARGE).await;
    let (small, _) = take_in(&store, 2, true).await;
    let before = store.info().await.unwrap();
    flip(&content_path(tmp.path(), large.hash), 100_000);
    on_row(tmp.path(), small, "UPDATE contents SET content = zeroblob(length(content))");
    for digest in [large, small] {
        let found = store.verify(digest.hash).await.unwrap();
        assert!(matches!(found, Condition::Damaged(_)), "{found:?}");
    }
    assert_eq!(store.info().await.unwrap().asset_count, 0);
    let seen = store.info().await.unwrap().newest_cursor;

    flip(&content_path(tmp.path(), large.hash), 100_000);
    let conn = rusqlite::Connection::open(tmp.path().join("store.db")).unwrap();
    let put_back = content(2, 5000);
    conn.execute("UPDATE contents SET content = ?1", [put_back.as_ref()]).unwrap();
    drop(conn);
    for digest in [large, small] {
        assert_eq!(store.verify(digest.hash).await.unwrap(), Condition::Whole);
    }
    let after = store.info().await.unwrap();
    assert_eq!((after.asset_count, after.asset_bytes), (2, before.asset_bytes));
    let page = store.changes(seen, 100).await.unwrap();
    let listed: Vec<_> = page.entries.iter().map(|entry| entry.digest).collect();
    assert_eq!((page.gone, listed), (vec![], vec![large, small]));
    assert_eq!(store.damages().borrow().count, 0);
}

#[tokio::test]
async fn whatever_a_kill_leaves_of_a_repair_is_kept_and_can_be_made_whole() {
    let whole = content(1, LARGE);
    // Before the new files have their names, between the two, and before the row is written.
    for step in 0..3 {
        let tmp = tempfile::tempdir().unwrap();
        let store = open(tmp.path());
        let digest = adopt(&store, 1, LARGE).await;
        let path = content_path(tmp.path(), digest.hash);
        let outboard = fs::read(path.with_extension("outboard")).unwrap();
        flip(&path, 100_000);
        flip(&path.with_extension("outboard"), outboard.len() as u64 - 1);
        assert!(matches!(store.verify(digest.hash).await.unwrap(), Condition::Damaged(_)));
        store.close().await;
        pend(tmp.path(), digest.hash);
        if step > 0 {
            fs::write(&path, &whole).unwrap();
        }
        if step > 1 {
            fs::write(path.with_extension("outboard"), &outboard).unwrap();
        }

        let store = open(tmp.path());
        assert_eq!(content_files(tmp.path()).len(), 2, "step {step}");
        assert!(store.lookup(digest.hash).await.unwrap().unwrap().is_damaged);
        let found = store.verify(digest.hash).await.unwrap();
        assert_eq!(found == Condition::Whole, step > 0, "step {step}: {found:?}");
        if step == 0 {
            assert_eq!(take_in(&store, 1, false).await.1, Stored::New);
        }
        assert!(is_whole(&store, digest, 1).await, "step {step}");
    }
}

/// A way to damage the content of an asset behind the store's back.
type Ruin = fn(&Path, Digest);

fn on_row(dir: &Path, digest: Digest, statement: &str) {
    let conn = rusqlite::Connection::open(dir.join("store.db")).unwrap();
    let of = "asset = (SELECT cursor FROM assets WHERE hash = ?1)";
    let changed = conn.execute(&format!("{statement} WHERE {of}"), [digest.hash.as_bytes()]);
    assert_eq!(changed.unwrap(), 1);
}

/// The ways for content in a file, and for content in a row.
const RUINS: [[Ruin; 3]; 2] = [
    [
        |dir, digest| {
            let path = content_path(dir, digest.hash);
            let mut bytes = fs::read(&path).unwrap();
            bytes[LARGE / 2] ^= 1;
            fs::write(&path, bytes).unwrap();
        },
        |dir, digest| {
            let path = content_path(dir, digest.hash);
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(digest.size_bytes / 2).unwrap();
        },
        |dir, digest| fs::remove_file(content_path(dir, digest.hash)).unwrap(),
    ],
    [
        |dir, digest| {
            on_row(dir, digest, "UPDATE contents SET content = zeroblob(length(content))");
        },
        |dir, digest| on_row(dir, digest, "UPDATE contents SET content = substr(content, 1, 10)"),
        |dir, digest| on_row(dir, digest, "DELETE FROM contents"),
    ],
];

/// Stores a content of the seed, small or large, as a transfer from a peer does.
async fn take_in(store: &EmbeddedStore, seed: u64, is_small: bool) -> (Digest, Stored) {
    if is_small {
        let new = asset(BLAKE3, content(seed, 5000));
        let digest = new.digest;
        (digest, store.put(vec![new]).await.unwrap().remove(0).unwrap())
    } else {
        let new = file(BLAKE3, store.staging_dir(), &content(seed, LARGE));
        (new.digest, store.adopt(new).await.unwrap())
    }
}

async fn is_whole(store: &EmbeddedStore, digest: Digest, seed: u64) -> bool {
    let read = store.read(digest.hash, 0..digest.size_bytes).await.unwrap().unwrap();
    read == content(seed, digest.size_bytes as usize)
        && store.verify(digest.hash).await.unwrap() == Condition::Whole
}

#[tokio::test]
async fn a_damaged_asset_is_not_held_until_its_bytes_come_anew_and_keeps_what_people_wrote() {
    for (is_small, ruins) in [false, true].into_iter().zip(RUINS) {
        for (seed, ruin) in ruins.into_iter().enumerate() {
            let (tmp, seed) = (tempfile::tempdir().unwrap(), seed as u64);
            let store = open(tmp.path());
            let other = adopt(&store, 77, LARGE).await;
            let (digest, _) = take_in(&store, seed, is_small).await;
            let edit = Metadata { tags: vec!["kept".into()], ..Metadata::default() };
            store.set_metadata(digest.hash, &edit, None).await.unwrap();
            let before = store.info().await.unwrap();

            ruin(tmp.path(), digest);
            let found = store.verify(digest.hash).await.unwrap();
            assert!(matches!(found, Condition::Damaged(_)), "{found:?}");
            assert_eq!(store.verify(other.hash).await.unwrap(), Condition::Whole);
            let read = store.read(digest.hash, 0..10).await;
            assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
            assert!(store.lookup(digest.hash).await.unwrap().unwrap().is_damaged);
            let info = store.info().await.unwrap();
            assert_eq!(info.asset_count, before.asset_count - 1);
            assert_eq!(info.asset_bytes, before.asset_bytes - digest.size_bytes);
            let page = store.changes(before.newest_cursor, 100).await.unwrap();
            assert_eq!((page.gone, page.entries.len()), (vec![digest.hash], 0));
            let listed = store.changes(0, 100).await.unwrap().entries;
            assert_eq!(listed.iter().map(|entry| entry.digest).collect::<Vec<_>>(), [other]);
            assert_eq!(store.damages().borrow().since(0), [digest.hash]);

            // The mark outlives a restart.
            store.close().await;
            let store = open(tmp.path());
            assert_eq!(store.damages().borrow().count, 1);
            assert_eq!(store.info().await.unwrap(), info);

            assert_eq!(take_in(&store, seed, is_small).await.1, Stored::New);
            assert!(is_whole(&store, digest, seed).await);
            let page = store.changes(info.newest_cursor, 100).await.unwrap();
            assert_eq!((page.gone, page.entries[0].digest), (vec![], digest));
            let row = store.lookup(digest.hash).await.unwrap().unwrap();
            assert!(!row.is_damaged && row.metadata.tags == ["kept"]);
            let after = store.info().await.unwrap();
            assert_eq!(after.asset_count, before.asset_count);
            assert_eq!(after.asset_bytes, before.asset_bytes);
            assert_eq!(store.damages().borrow().count, 0);
            assert_eq!(take_in(&store, seed, is_small).await.1, Stored::Existed);
        }
    }
}

#[tokio::test]
async fn bytes_that_nobody_has_missed_yet_are_made_good_when_they_come_again() {
    for (is_small, ruins) in [false, true].into_iter().zip(RUINS) {
        // Damage to a large file that only hashing shows is found by `verify`.
        for (seed, ruin) in ruins.into_iter().enumerate().skip(usize::from(!is_small)) {
            let (tmp, seed) = (tempfile::tempdir().unwrap(), seed as u64);
            let store = open(tmp.path());
            let (digest, _) = take_in(&store, seed, is_small).await;
            ruin(tmp.path(), digest);
            assert_eq!(take_in(&store, seed, is_small).await.1, Stored::New);
            assert!(is_whole(&store, digest, seed).await);
            assert_eq!(store.damages().borrow().since(0), [digest.hash]);
            assert_eq!(store.damages().borrow().count, 0);
        }
    }
}

#[tokio::test]
async fn a_store_that_is_closed_is_one_file_beside_its_folders() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    adopt(&store, 1, LARGE).await;
    store.put(vec![asset(BLAKE3, content(2, 5000))]).await.unwrap();
    store.close().await;
    let mut names: Vec<_> =
        fs::read_dir(tmp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["content", "lock", "staging", "store.db", "temp"]);
}

#[tokio::test]
async fn a_file_is_its_owners_to_guard_until_the_store_is_done_with_it() {
    struct Guard(PathBuf, std::sync::mpsc::Sender<bool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.1.send(self.0.exists()).unwrap();
        }
    }
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let mut new = file(BLAKE3, store.staging_dir(), &content(1, 40 * LARGE));
    let (told, is_there) = std::sync::mpsc::channel();
    new.guard = Some(Box::new(Guard(new.path.clone(), told)));
    // The caller gives up: its future is dropped as soon as the work has begun.
    let mut adoption = store.adopt(new);
    assert!(futures_util::poll!(&mut adoption).is_pending());
    drop(adoption);
    let is_there = tokio::task::spawn_blocking(move || is_there.recv()).await.unwrap();
    assert!(!is_there.unwrap(), "the guard went before the file");
}

#[tokio::test]
async fn a_given_outboard_is_taken_when_it_can_be_right() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let group = bao_tree::BlockSize::from_chunk_log(4);
    for (seed, spoil) in [(1, false), (2, true)] {
        let content = content(seed, LARGE);
        let mut tree =
            bao_tree::io::outboard::PreOrderMemOutboard::create(&content[..], group).data;
        let right = tree.clone();
        tree[5] ^= u8::from(spoil);
        let given = store.staging_dir().join("outboard");
        fs::write(&given, tree).unwrap();
        let mut new = file(BLAKE3, store.staging_dir(), &content);
        new.outboard = Some(given.clone());
        let hash = new.digest.hash;
        store.adopt(new).await.unwrap();
        assert!(!given.exists());
        let kept = content_path(tmp.path(), hash).with_extension("outboard");
        assert_eq!(fs::read(kept).unwrap(), right);
    }
}

#[tokio::test]
async fn a_file_with_another_content_of_the_same_length_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let mut new = file(BLAKE3, store.staging_dir(), &content(1, LARGE));
    new.digest.hash = Hash([3; 32]);
    let path = new.path.clone();
    let result = store.adopt(new).await;
    assert!(matches!(result, Err(StoreError::Mismatch { .. })));
    assert!(!path.exists());
    assert_eq!(content_files(tmp.path()), Vec::<PathBuf>::new());
    assert_eq!(store.info().await.unwrap().newest_cursor, 0);
}

#[tokio::test]
async fn a_file_from_another_disk_is_copied() {
    let other = Path::new("/dev/shm");
    let tmp = tempfile::tempdir().unwrap();
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    if device(other).is_none() || device(other) == device(tmp.path()) {
        return;
    }
    let elsewhere = tempfile::tempdir_in(other).unwrap();
    let store = open(tmp.path());
    let new = file(BLAKE3, elsewhere.path(), &content(1, LARGE));
    let (hash, path) = (new.digest.hash, new.path.clone());
    assert_eq!(store.adopt(new).await.unwrap(), Stored::New);
    assert!(!path.exists());
    let read = store.read(hash, 0..LARGE as u64).await.unwrap().unwrap();
    assert!(read == content(1, LARGE));
    assert_eq!(fs::read_dir(tmp.path().join("temp")).unwrap().count(), 0);
}

#[tokio::test]
async fn below_the_floor_new_assets_are_refused_and_files_stay_with_their_owner() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let held = adopt(&store, 1, LARGE).await;
    drop(store);
    let full = Options { free_floor_bytes: Some(u64::MAX / 2), ..options() };
    let store = EmbeddedStore::open(tmp.path(), full).unwrap();
    let Err(StoreError::Full(text)) = store.check_space(1).await else {
        panic!("there is space");
    };
    assert!(text.contains(&*tmp.path().canonicalize().unwrap().to_string_lossy()));
    assert!(text.contains("free some space"), "{text}");
    let result = store.put(vec![asset(BLAKE3, content(2, 10))]).await;
    assert!(matches!(result, Err(StoreError::Full(_))));
    let new = file(BLAKE3, store.staging_dir(), &content(3, LARGE));
    let path = new.path.clone();
    assert!(matches!(store.adopt(new).await, Err(StoreError::Full(_))));
    assert!(path.exists());
    // Assets that are held can still be read and trashed.
    let trash = Metadata { trashed: true, ..Metadata::default() };
    store.set_metadata(held.hash, &trash, None).await.unwrap();
    assert!(store.read(held.hash, 0..10).await.unwrap().is_some());
}

#[tokio::test]
async fn the_feed_merges_assets_and_the_last_edit_of_each() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let assets: Vec<_> = (0..3).map(|n| asset(BLAKE3, content(n, 10))).collect();
    let hashes: Vec<Hash> = assets.iter().map(|a| a.digest.hash).collect();
    store.put(assets).await.unwrap();
    for (n, text) in [(1, "a"), (0, "b"), (1, "c")] {
        let edit = Metadata { description: text.into(), ..Metadata::default() };
        store.set_metadata(hashes[n], &edit, None).await.unwrap();
    }
    // Writing the current values again is not a change.
    let same = store.lookup(hashes[1]).await.unwrap().unwrap().metadata;
    let kept = store.set_metadata(hashes[1], &same, None).await.unwrap();
    assert_eq!(kept.version, same.version);

    let lines = store.feed(0, 100).await.unwrap();
    let cursors: Vec<u64> = lines.iter().map(|line| line.cursor).collect();
    assert_eq!(cursors, [1, 2, 3, 5, 6]);
    let meta = |hash, version| FeedKind::Meta { hash, version };
    assert_eq!(lines[3].kind, meta(hashes[0], 5));
    assert_eq!(lines[4].kind, meta(hashes[1], 6));
    assert!(matches!(lines[2].kind, FeedKind::Asset { digest, .. } if digest.hash == hashes[2]));
    assert_eq!(store.feed(3, 1).await.unwrap(), lines[3..4]);
    assert_eq!(store.feed(6, 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_reader_of_the_feed_ends_with_an_error_when_the_store_closes() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let mut touched = store.touched(0);
    store.close().await;
    assert!(touched.next().await.unwrap().is_err());
    assert!(touched.next().await.is_none());
}

#[tokio::test]
async fn metadata_beyond_its_bound_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let mut new = asset(BLAKE3, content(1, 10));
    store.put(vec![new.clone()]).await.unwrap();
    let huge = Metadata { description: "x".repeat(70_000), ..Metadata::default() };
    let result = store.set_metadata(new.digest.hash, &huge, None).await;
    assert!(matches!(result, Err(StoreError::TooLarge(_))));
    new = asset(BLAKE3, content(2, 10));
    new.metadata = huge;
    let results = store.put(vec![new]).await.unwrap();
    assert!(matches!(results[0], Err(StoreError::TooLarge(_))));
}

#[tokio::test]
async fn any_text_comes_back_as_it_was() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let texts = ["", "a\0b", "\"\\\n\t", "\u{1f408}\u{202e}\u{301}", "'; DROP TABLE assets; --"];
    let mut tags: Vec<String> = texts.map(String::from).into();
    tags.sort();
    let mut new = asset(BLAKE3, content(1, 10));
    new.metadata = Metadata {
        description: texts.concat(),
        tags: tags.clone(),
        attributes: Attributes::named(&texts.concat())
            .with_text(Attribute::MediaType, &texts.concat())
            .with_text(Attribute::User, &texts.concat()),
        ..Metadata::default()
    };
    assert!(new.metadata.attributes.name().contains("DROP TABLE"));
    let hash = new.digest.hash;
    store.put(vec![new.clone()]).await.unwrap();
    let row = store.lookup(hash).await.unwrap().unwrap().metadata;
    let expected = Metadata { version: row.version, ..new.metadata };
    assert_eq!(row, expected);
    for tag in tags {
        let filter = Filter { tag: Some(tag.clone()), ..Filter::default() };
        let found = store.list(&filter, 0, 10).await.unwrap();
        assert_eq!(found.len(), 1, "{tag:?}");
    }
}
