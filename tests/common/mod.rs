//! Shared by the tests of the store: the conformance suite for `can_sync::store::Store`, and a
//! tracing subscriber that turns every ERROR event into a failed test.

#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

pub mod group;
pub mod http;
pub mod logs;
pub mod wal;

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use bytes::Bytes;
use can_sync::core::attributes::{Attribute, Attributes};
use can_sync::core::ids::{Digest, Hash, HashAlgorithm};
use can_sync::core::names::NamePattern;
use can_sync::store::{
    Asset, Condition, Filter, Metadata, NewAsset, READ_BYTES_MAX, SMALL_BYTES_MAX, Store,
    StoreError, Stored, Touched, VerifiedFile,
};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// An empty store under test, and its abilities beyond the core.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    pub algorithm: HashAlgorithm,
    /// Whether it keeps outboards of large BLAKE3 assets.
    pub outboards: bool,
    /// Whether it accepts assets larger than `SMALL_BYTES_MAX`.
    pub large: bool,
    /// Whether it answers `list`.
    pub lists: bool,
    /// Whether `check_space` refuses what no disk can hold.
    pub embedded: bool,
    /// A folder on the store's volume for files to adopt.
    pub scratch: PathBuf,
    /// The folder of the embedded store, tested directly or served.
    pub dir: PathBuf,
    /// Anything that must live as long as the store.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Runs every check of the contract, each on a fresh store.
pub async fn conforms(make: impl AsyncFn() -> Fixture) {
    fail_on_errors();
    macro_rules! checks {
        ($($check:ident),* $(,)?) => {$(
            println!("  {}", stringify!($check));
            tokio::time::timeout(Duration::from_secs(120), $check(&make().await))
                .await
                .unwrap_or_else(|_| panic!("{} hangs", stringify!($check)));
            assert_no_errors();
        )*};
    }
    checks![
        a_new_store_is_empty,
        what_is_put_can_be_read,
        putting_again_changes_nothing,
        a_bad_content_keeps_nothing_and_spoils_no_other,
        a_content_over_the_small_bound_is_refused_by_put,
        twins_in_one_batch_are_one_asset,
        changes_come_in_cursor_order_and_in_pages,
        a_cursor_beyond_the_feed_shows_nothing,
        metadata_is_kept_normalised_and_versioned,
        a_metadata_edit_of_an_old_version_is_a_conflict,
        an_edit_moves_the_feed_on_without_an_entry,
        the_feed_says_which_assets_were_stored_and_which_edited,
        a_feed_from_an_unknown_cursor_begins_with_a_gap_and_goes_on,
        what_is_not_held_is_none,
        reads_are_exact_and_bounded,
        a_file_of_any_size_is_adopted_and_consumed,
        a_file_already_held_is_consumed,
        a_file_adopted_by_many_at_once_is_new_once,
        a_file_of_the_wrong_length_is_refused_and_consumed,
        the_outboard_verifies_the_content,
        lists_filter_and_page,
        puts_at_once_all_count,
        a_dropped_put_is_whole_or_absent,
        a_damaged_asset_is_gone_until_its_bytes_come_anew,
        space_is_refused_when_no_disk_has_it,
    ];
}

/// Content that differs with the seed.
pub fn content(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    bytes.into()
}

pub fn digest(algorithm: HashAlgorithm, content: &[u8]) -> Digest {
    Digest { hash: algorithm.hash(content), size_bytes: content.len() as u64 }
}

pub fn asset(algorithm: HashAlgorithm, content: Bytes) -> NewAsset {
    NewAsset { digest: digest(algorithm, &content), content, metadata: Metadata::default() }
}

/// A file with the content, as `adopt` expects it.
pub fn file(algorithm: HashAlgorithm, folder: &Path, content: &[u8]) -> VerifiedFile {
    let digest = digest(algorithm, content);
    let path = folder.join(format!("{}.part", digest.hash.short()));
    std::fs::write(&path, content).unwrap();
    VerifiedFile { digest, path, outboard: None, metadata: Metadata::default(), guard: None }
}

impl Fixture {
    fn asset(&self, seed: u64, length: usize) -> NewAsset {
        asset(self.algorithm, content(seed, length))
    }

    async fn put(&self, asset: NewAsset) -> Digest {
        let digest = asset.digest;
        assert_eq!(self.put_one(asset).await.unwrap(), Stored::New);
        digest
    }

    async fn put_one(&self, asset: NewAsset) -> Result<Stored, StoreError> {
        self.store.put(vec![asset]).await.unwrap().remove(0)
    }

    async fn newest(&self) -> u64 {
        self.store.info().await.unwrap().newest_cursor
    }

    async fn hashes(&self) -> Vec<Hash> {
        let changes = self.store.changes(0, 10_000).await.unwrap();
        changes.entries.iter().map(|e| e.digest.hash).collect()
    }
}

async fn a_new_store_is_empty(f: &Fixture) {
    let info = f.store.info().await.unwrap();
    assert_eq!(info.hash_algorithm, f.algorithm);
    assert_eq!((info.newest_cursor, info.asset_count, info.asset_bytes), (0, 0, 0));
    let changes = f.store.changes(0, 10).await.unwrap();
    assert_eq!((changes.entries.len(), changes.next), (0, 0));
    assert!(!changes.has_more);
    assert_eq!(f.store.put(Vec::new()).await.unwrap().len(), 0);
    assert_eq!(f.store.read_small(&[]).await.unwrap().len(), 0);
}

async fn what_is_put_can_be_read(f: &Fixture) {
    let kib = 1024;
    let sizes = [0, 1, 100, 4 * kib, 16 * kib, 64 * kib, 64 * kib + 1, 200 * kib, 256 * kib];
    let assets: Vec<NewAsset> = (0..).zip(sizes).map(|(i, n)| f.asset(i, n)).collect();
    let results = f.store.put(assets.clone()).await.unwrap();
    assert!(results.iter().all(|r| matches!(r, Ok(Stored::New))));
    let digests: Vec<Digest> = assets.iter().map(|a| a.digest).collect();
    let contents = f.store.read_small(&digests).await.unwrap();
    for (asset, content) in assets.iter().zip(contents) {
        assert_eq!(content.as_ref(), Some(&asset.content));
        let Digest { hash, size_bytes } = asset.digest;
        let whole = f.store.read(hash, 0..size_bytes).await.unwrap();
        assert_eq!(whole.as_ref(), Some(&asset.content));
        let row = f.store.lookup(hash).await.unwrap().unwrap();
        assert_eq!(row.entry.digest, asset.digest);
        assert!(row.entry.timestamp_ms > 1_600_000_000_000);
    }
    let info = f.store.info().await.unwrap();
    assert_eq!(info.asset_count, sizes.len() as u64);
    assert_eq!(info.asset_bytes, sizes.iter().sum::<usize>() as u64);
}

async fn putting_again_changes_nothing(f: &Fixture) {
    for length in [10, 100_000] {
        let asset = f.asset(1, length);
        f.put(asset.clone()).await;
        let before = f.store.info().await.unwrap();
        assert_eq!(f.put_one(asset).await.unwrap(), Stored::Existed);
        assert_eq!(f.store.info().await.unwrap(), before);
    }
}

async fn a_bad_content_keeps_nothing_and_spoils_no_other(f: &Fixture) {
    let mut wrong_hash = f.asset(2, 90_000);
    wrong_hash.digest.hash = Hash([7; 32]);
    let mut wrong_size = f.asset(3, 100);
    wrong_size.digest.size_bytes = 101;
    let batch = vec![f.asset(1, 10), wrong_hash, wrong_size, f.asset(4, 90_000)];
    let digests: Vec<Digest> = batch.iter().map(|a| a.digest).collect();
    let results = f.store.put(batch).await.unwrap();
    assert!(matches!(results[0], Ok(Stored::New)));
    assert!(matches!(results[1], Err(StoreError::Mismatch { .. })));
    assert!(matches!(results[2], Err(StoreError::Mismatch { .. })));
    assert!(matches!(results[3], Ok(Stored::New)));
    assert_eq!(f.hashes().await, vec![digests[0].hash, digests[3].hash]);
    assert_eq!(f.store.lookup(digests[2].hash).await.unwrap(), None);
}

async fn a_content_over_the_small_bound_is_refused_by_put(f: &Fixture) {
    let result = f.put_one(f.asset(1, SMALL_BYTES_MAX as usize + 1)).await;
    assert!(matches!(result, Err(StoreError::TooLarge(_))), "{result:?}");
    assert_eq!(f.hashes().await, vec![]);
}

async fn twins_in_one_batch_are_one_asset(f: &Fixture) {
    for length in [50, 80_000] {
        let twin = f.asset(1, length);
        let results = f.store.put(vec![twin.clone(), twin.clone()]).await.unwrap();
        assert!(matches!(results[0], Ok(Stored::New)), "{results:?}");
        assert!(matches!(results[1], Ok(Stored::Existed)), "{results:?}");
        let read = f.store.read_small(&[twin.digest]).await.unwrap();
        assert_eq!(read[0].as_ref(), Some(&twin.content));
    }
    assert_eq!(f.store.info().await.unwrap().asset_count, 2);
}

async fn changes_come_in_cursor_order_and_in_pages(f: &Fixture) {
    let assets: Vec<NewAsset> = (0..25).map(|seed| f.asset(seed, 20)).collect();
    let put: BTreeSet<Hash> = assets.iter().map(|a| a.digest.hash).collect();
    f.store.put(assets).await.unwrap();
    let (mut after, mut seen, mut pages) = (0, Vec::new(), 0);
    loop {
        let page = f.store.changes(after, 10).await.unwrap();
        assert!(page.entries.len() <= 10);
        for entry in &page.entries {
            assert!(entry.cursor > after);
            after = entry.cursor;
            seen.push(entry.digest.hash);
        }
        assert!(page.next >= after);
        after = page.next;
        pages += 1;
        if !page.has_more {
            break;
        }
    }
    assert!(pages >= 3);
    assert_eq!(seen.len(), 25);
    assert_eq!(seen.into_iter().collect::<BTreeSet<Hash>>(), put);
    assert_eq!(after, f.newest().await);
}

async fn a_cursor_beyond_the_feed_shows_nothing(f: &Fixture) {
    f.put(f.asset(1, 10)).await;
    for after in [2, 1_000_000, u64::MAX] {
        let changes = f.store.changes(after, 10).await.unwrap();
        assert!(changes.entries.is_empty() && !changes.has_more);
    }
}

/// Every attribute, under this name.
pub fn all_attributes(name: &str) -> Attributes {
    Attributes::named(name)
        .with_text(Attribute::Path, "pets/2024")
        .with_text(Attribute::MediaType, "text/plain")
        .with_time(Attribute::ModifiedMs, Some(-1_500))
        .with_time(Attribute::CapturedMs, Some(1_700_000_000_123))
        .with_text(Attribute::Application, "camera")
        .with_text(Attribute::User, "m\u{fc}ller")
}

async fn metadata_is_kept_normalised_and_versioned(f: &Fixture) {
    let mut new = f.asset(1, 30);
    new.metadata = Metadata {
        description: "a \"cat\"\n\u{1f408}".into(),
        tags: vec!["zoo".into(), "cat".into(), "zoo".into()],
        trashed: false,
        version: 77,
        attributes: all_attributes("cat.txt"),
    };
    let hash = f.put(new.clone()).await.hash;
    let row = f.store.lookup(hash).await.unwrap().unwrap().metadata;
    assert_eq!(row.description, new.metadata.description);
    assert_eq!(row.tags, ["cat", "zoo"]);
    assert_eq!(row.attributes, new.metadata.attributes);

    let edit = Metadata {
        description: "a dog".into(),
        tags: vec!["dog".into(), "a".into(), "dog".into()],
        trashed: true,
        attributes: Attributes::named("dog.txt").with_time(Attribute::CapturedMs, Some(0)),
        ..Metadata::default()
    };
    let edited = f.store.set_metadata(hash, &edit, None).await.unwrap();
    assert_ne!(edited.version, row.version);
    assert_eq!(edited.tags, ["a", "dog"]);
    assert!(edited.trashed);
    assert_eq!(edited.attributes, edit.attributes, "what an edit leaves out is cleared");
    let stands = f.store.lookup(hash).await.unwrap().unwrap().metadata;
    assert_eq!(stands, edited);

    // Putting the asset again does not change what people wrote.
    assert_eq!(f.put_one(new).await.unwrap(), Stored::Existed);
    let stands = f.store.lookup(hash).await.unwrap().unwrap().metadata;
    assert_eq!(stands, edited);
    // Trashed is not deleted.
    assert!(f.store.read(hash, 0..30).await.unwrap().is_some());
}

async fn a_metadata_edit_of_an_old_version_is_a_conflict(f: &Fixture) {
    let hash = f.put(f.asset(1, 30)).await.hash;
    let first = f.store.lookup(hash).await.unwrap().unwrap().metadata;
    let edit = |text: &str| Metadata { description: text.into(), ..Metadata::default() };
    let expected = Some(first.version);
    let second = f.store.set_metadata(hash, &edit("one"), expected).await;
    let second = second.unwrap();
    let result = f.store.set_metadata(hash, &edit("two"), expected).await;
    let Err(StoreError::Conflict(current)) = result else {
        panic!("expected a conflict, got {result:?}");
    };
    assert_eq!(*current, second);
    let expected = Some(second.version);
    let third = f.store.set_metadata(hash, &edit("two"), expected).await;
    assert_eq!(third.unwrap().description, "two");
    let unknown = Hash([9; 32]);
    let result = f.store.set_metadata(unknown, &edit(""), None).await;
    assert!(matches!(result, Err(StoreError::NotFound(hash)) if hash == unknown));
}

async fn an_edit_moves_the_feed_on_without_an_entry(f: &Fixture) {
    let hash = f.put(f.asset(1, 30)).await.hash;
    let before = f.store.changes(0, 10).await.unwrap();
    let edit = Metadata { description: "x".into(), ..Metadata::default() };
    f.store.set_metadata(hash, &edit, None).await.unwrap();
    let after = f.store.changes(before.next, 10).await.unwrap();
    assert!(after.entries.is_empty());
    assert!(after.next > before.next);
    assert_eq!(after.next, f.newest().await);
}

/// The next line other than [`Touched::Changed`].
async fn next_line(touched: &mut BoxStream<'static, Result<Touched, StoreError>>) -> Touched {
    let next = async {
        loop {
            match touched.next().await.unwrap().unwrap() {
                Touched::Changed => {}
                line => return line,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.expect("a line in time")
}

async fn the_feed_says_which_assets_were_stored_and_which_edited(f: &Fixture) {
    let (first, second) = (f.put(f.asset(1, 30)).await.hash, f.put(f.asset(2, 30)).await.hash);
    let mut touched = f.store.touched(0);
    let stored = next_line(&mut touched).await;
    let Touched::Stored { hash, cursor } = stored else { panic!("{stored:?}") };
    assert_eq!((hash, cursor < f.newest().await), (first, true));
    let then = f.newest().await;
    let stored = next_line(&mut touched).await;
    assert_eq!(stored, Touched::Stored { hash: second, cursor: then });
    assert!(touched.next().now_or_never().is_none(), "that was all");
    let edit = Metadata { description: "x".into(), ..Metadata::default() };
    f.store.set_metadata(first, &edit, None).await.unwrap();
    let edited = Touched::Edited { hash: first, cursor: f.newest().await };
    assert_eq!(next_line(&mut touched).await, edited);

    // A later stream continues from a cursor and misses nothing.
    let mut touched = f.store.touched(then);
    assert_eq!(next_line(&mut touched).await, edited);
}

async fn a_feed_from_an_unknown_cursor_begins_with_a_gap_and_goes_on(f: &Fixture) {
    f.put(f.asset(1, 30)).await;
    let mut touched = f.store.touched(1_000);
    assert_eq!(next_line(&mut touched).await, Touched::Gap);
    let hash = f.put(f.asset(2, 30)).await.hash;
    let stored = Touched::Stored { hash, cursor: f.newest().await };
    assert_eq!(next_line(&mut touched).await, stored);
}

async fn what_is_not_held_is_none(f: &Fixture) {
    let digest = f.asset(1, 30).digest;
    assert_eq!(f.store.lookup(digest.hash).await.unwrap(), None);
    assert_eq!(f.store.read(digest.hash, 0..30).await.unwrap(), None);
    assert!(f.store.bao_files(digest.hash).await.unwrap().is_none());
    let held = f.put(f.asset(2, 30)).await;
    let read = f.store.read_small(&[digest, held, digest]).await.unwrap();
    let held: Vec<bool> = read.iter().map(Option::is_some).collect();
    assert_eq!(held, [false, true, false]);
}

async fn reads_are_exact_and_bounded(f: &Fixture) {
    for length in [1_000_u64, 100_000] {
        let asset = f.asset(length, length as usize);
        let hash = f.put(asset.clone()).await.hash;
        for range in [0..1, 5..5, 1..length, length - 1..length, 0..length, length..length] {
            let read = f.store.read(hash, range.clone()).await.unwrap().unwrap();
            let expected = &asset.content[range.start as usize..range.end as usize];
            assert_eq!(read, expected, "{range:?} of {length}");
        }
        let beyond = 0..length + 1;
        assert!(f.store.read(hash, beyond).await.is_err());
        let too_long = 0..READ_BYTES_MAX + 1;
        assert!(f.store.read(hash, too_long).await.is_err());
    }
}

async fn a_file_of_any_size_is_adopted_and_consumed(f: &Fixture) {
    let mut sizes = vec![0, 1, 65_536, 65_537, SMALL_BYTES_MAX as usize];
    if f.large {
        sizes.extend([SMALL_BYTES_MAX as usize + 1, 3_000_000]);
    }
    for (seed, size) in (0..).zip(sizes) {
        let content = content(seed, size);
        let mut new = file(f.algorithm, &f.scratch, &content);
        new.metadata.attributes = all_attributes("a.bin");
        let (digest, path) = (new.digest, new.path.clone());
        assert_eq!(f.store.adopt(new).await.unwrap(), Stored::New, "{size}");
        assert!(!path.exists());
        let row = f.store.lookup(digest.hash).await.unwrap().unwrap();
        assert_eq!(row.entry.digest, digest);
        assert_eq!(row.metadata.attributes, all_attributes("a.bin"));
        let mut read = Vec::new();
        while read.len() < size {
            let start = read.len() as u64;
            let end = (start + READ_BYTES_MAX).min(size as u64);
            let part = f.store.read(digest.hash, start..end).await.unwrap();
            read.extend_from_slice(&part.unwrap());
        }
        assert!(read == content, "{size} bytes come back changed");
    }
}

async fn a_file_already_held_is_consumed(f: &Fixture) {
    let sizes = [10, 100_000, 400_000];
    for size in &sizes[..if f.large { 3 } else { 2 }] {
        let content = content(1, *size);
        let first = file(f.algorithm, &f.scratch, &content);
        assert_eq!(f.store.adopt(first).await.unwrap(), Stored::New);
        let before = f.store.info().await.unwrap();
        let second = file(f.algorithm, &f.scratch, &content);
        let (hash, path) = (second.digest.hash, second.path.clone());
        assert_eq!(f.store.adopt(second).await.unwrap(), Stored::Existed);
        assert!(!path.exists());
        assert_eq!(f.store.info().await.unwrap(), before);
        let read = f.store.read(hash, 0..*size as u64).await.unwrap();
        assert_eq!(read.unwrap(), content);
    }
}

async fn a_file_adopted_by_many_at_once_is_new_once(f: &Fixture) {
    let length = if f.large { 500_000 } else { 50_000 };
    let content = content(1, length);
    let mut files = Vec::new();
    for n in 0..8 {
        let mut new = file(f.algorithm, &f.scratch, &content);
        let path = f.scratch.join(format!("twin{n}"));
        std::fs::rename(&new.path, &path).unwrap();
        new.path = path;
        files.push(new);
    }
    let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
    let hash = files[0].digest.hash;
    let adoptions = files.into_iter().map(|file| f.store.adopt(file));
    let results = futures_util::future::join_all(adoptions).await;
    let new = results.iter().filter(|r| matches!(r, Ok(Stored::New)));
    assert_eq!(new.count(), 1);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(paths.iter().all(|path| !path.exists()));
    assert_eq!(f.hashes().await, vec![hash]);
    let read = f.store.read(hash, 0..length as u64).await.unwrap();
    assert!(read.unwrap() == content);
}

async fn a_file_of_the_wrong_length_is_refused_and_consumed(f: &Fixture) {
    let sizes = [10, 400_000];
    for size in &sizes[..if f.large { 2 } else { 1 }] {
        let mut wrong = file(f.algorithm, &f.scratch, &content(1, *size));
        wrong.digest = digest(f.algorithm, &content(1, size + 1));
        let path = wrong.path.clone();
        let result = f.store.adopt(wrong).await;
        assert!(matches!(result, Err(StoreError::Mismatch { .. })), "{result:?}");
        assert!(!path.exists());
    }
    assert_eq!(f.hashes().await, vec![]);
}

async fn the_outboard_verifies_the_content(f: &Fixture) {
    let small = f.put(f.asset(9, 1000)).await;
    assert!(f.store.bao_files(small.hash).await.unwrap().is_none());
    if !f.outboards {
        return;
    }
    for size in [SMALL_BYTES_MAX as usize + 1, 16_384 * 70, 1_000_003] {
        let content = content(2, size);
        let new = file(f.algorithm, &f.scratch, &content);
        let hash = new.digest.hash;
        f.store.adopt(new).await.unwrap();
        let mut kept = Vec::new();
        let mut files = f.store.bao_files(hash).await.unwrap().unwrap();
        std::io::Read::read_to_end(&mut files.outboard, &mut kept).unwrap();
        let group = bao_tree::BlockSize::from_chunk_log(4);
        let computed = bao_tree::io::outboard::PreOrderMemOutboard::create(&content[..], group);
        assert_eq!(computed.root.as_bytes(), hash.as_bytes());
        assert!(kept == computed.data, "outboard of {size} bytes");
    }
}

async fn lists_filter_and_page(f: &Fixture) {
    if !f.lists {
        return;
    }
    let mut all = Vec::new();
    for seed in 0..12_u64 {
        let mut new = f.asset(seed, 10);
        new.metadata = Metadata {
            description: if seed == 3 { "The Sea".into() } else { String::new() },
            tags: (0..seed % 3).fold(Vec::new(), |mut tags, n| {
                tags.push(format!("tag{n}"));
                tags
            }),
            trashed: seed % 4 == 0,
            version: 0,
            attributes: Attributes::named(&format!("file{seed}.PNG"))
                .with_text(Attribute::Path, if seed % 3 == 0 { "a/b" } else { "b" })
                .with_text(
                    Attribute::MediaType,
                    if seed % 2 == 0 { "image/png" } else { "text/plain" },
                ),
        };
        let hash = f.put(new).await.hash;
        all.push(f.store.lookup(hash).await.unwrap().unwrap());
    }
    let matching = |keep: &dyn Fn(&Asset) -> bool| -> Vec<Asset> {
        all.iter().filter(|asset| keep(asset)).cloned().collect()
    };
    let text = |text: &str| Some(text.to_owned());
    let any = Filter::default;
    let list = |filter: Filter| async move { f.store.list(&filter, 0, 100).await.unwrap() };

    assert_eq!(list(any()).await, all);
    let tag = Filter { tag: text("tag0"), ..any() };
    let expected = matching(&|a| a.metadata.tags.contains(&"tag0".to_owned()));
    assert_eq!(list(tag).await, expected);
    let exact = Filter { media_type: text("image/png"), ..any() };
    let expected = matching(&|a| a.metadata.attributes.media_type() == "image/png");
    assert_eq!(list(exact).await, expected);
    let kind = Filter { media_type: text("image/"), ..any() };
    assert_eq!(list(kind).await, expected);
    assert!(list(Filter { media_type: text("image"), ..any() }).await.is_empty());
    let query = Filter { query: text("tHE s"), ..any() };
    assert_eq!(list(query).await, matching(&|a| a.metadata.description == "The Sea"));
    let query = Filter { query: text("e7.png"), ..any() };
    let named = |a: &Asset| a.metadata.attributes.name().to_owned();
    assert_eq!(list(query).await, matching(&|a| named(a) == "file7.PNG"));
    for pattern in [
        NamePattern::glob("*7.PNG"),
        NamePattern::exact("file7.PNG"),
        NamePattern::start("file7"),
        NamePattern::glob("file[67].P?G"),
        NamePattern::exact("b/file3.PNG"),
        NamePattern::glob("a/*"),
        NamePattern::exact("file"),
    ] {
        let fits = |a: &Asset| pattern.fits(a.metadata.attributes.path(), &named(a));
        let filter = Filter { name: Some(pattern.clone()), ..any() };
        assert_eq!(list(filter).await, matching(&fits), "{pattern:?}");
        let filter = Filter { name: Some(pattern.clone()), trashed: Some(false), ..any() };
        assert_eq!(list(filter).await, matching(&|a| fits(a) && !a.metadata.trashed));
    }
    let since_ms = all[3].entry.timestamp_ms;
    let since = Filter { since_ms: Some(since_ms), ..any() };
    assert_eq!(list(since).await, matching(&|a| a.entry.timestamp_ms >= since_ms));
    let until = Filter { until_ms: Some(since_ms), ..any() };
    assert_eq!(list(until).await, matching(&|a| a.entry.timestamp_ms < since_ms));
    assert!(list(Filter { query: text("%"), ..any() }).await.is_empty());
    for trashed in [true, false] {
        let filter = Filter { trashed: Some(trashed), ..any() };
        assert_eq!(list(filter).await, matching(&|a| a.metadata.trashed == trashed));
    }
    let hex = all[5].entry.digest.hash.to_string();
    for length in [1, 7, 64] {
        let filter = Filter { hash_prefix: text(&hex[..length]), ..any() };
        let starts = |a: &Asset| a.entry.digest.hash.to_string().starts_with(&hex[..length]);
        assert_eq!(list(filter).await, matching(&starts));
    }
    for prefix in ["xyz", &format!("{hex}0"), "é"] {
        assert!(list(Filter { hash_prefix: text(prefix), ..any() }).await.is_empty());
    }
    let both = Filter { tag: text("tag1"), trashed: Some(false), ..any() };
    let expected =
        matching(&|a| a.metadata.tags.contains(&"tag1".to_owned()) && !a.metadata.trashed);
    assert_eq!(list(both).await, expected);

    let newest_first = Filter { newest_first: true, ..any() };
    match f.store.list(&newest_first, 0, 5).await {
        Err(StoreError::Unsupported(_)) => assert!(!f.embedded),
        first => {
            let (mut page, mut paged) = (first.unwrap(), Vec::new());
            while let Some(last) = page.last() {
                let before = last.entry.cursor;
                paged.extend(page);
                page = f.store.list(&newest_first, before, 5).await.unwrap();
            }
            paged.reverse();
            assert_eq!(paged, all);
        }
    }
    let (mut after, mut paged) = (0, Vec::new());
    loop {
        let page = f.store.list(&any(), after, 5).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.entry.cursor;
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

async fn puts_at_once_all_count(f: &Fixture) {
    let batch = |seed: u64| {
        let own = (0..8).map(|n| f.asset(seed * 100 + n, 1000));
        // Every batch also contains these two.
        let shared = [f.asset(7_000, 500), f.asset(7_001, 70_000)];
        own.chain(shared).collect::<Vec<_>>()
    };
    let puts = (0..20).map(|seed| f.store.put(batch(seed)));
    let results = futures_util::future::join_all(puts).await;
    let new = results.into_iter().flat_map(Result::unwrap);
    let new = new.filter(|result| matches!(result, Ok(Stored::New))).count();
    assert_eq!(new, 20 * 8 + 2);
    let info = f.store.info().await.unwrap();
    assert_eq!(info.asset_count, 20 * 8 + 2);
    assert_eq!(f.hashes().await.len(), 20 * 8 + 2);
}

async fn a_dropped_put_is_whole_or_absent(f: &Fixture) {
    for seed in 0..20_u64 {
        let batch: Vec<NewAsset> = [20, 80_000, 30].map(|n| f.asset(seed, n)).into();
        let digests: Vec<Digest> = batch.iter().map(|a| a.digest).collect();
        let put = f.store.put(batch.clone());
        let _ = tokio::time::timeout(Duration::from_micros(seed * 200), put).await;
        // Whatever the outcome, the same put succeeds afterwards.
        for result in f.store.put(batch).await.unwrap() {
            result.unwrap();
        }
        let read = f.store.read_small(&digests).await.unwrap();
        assert!(read.iter().all(Option::is_some));
    }
}

async fn a_damaged_asset_is_gone_until_its_bytes_come_anew(f: &Fixture) {
    let large = file(f.algorithm, &f.scratch, &content(1, 300_000));
    let small = f.asset(2, 1000);
    let digests = [large.digest, small.digest];
    f.store.adopt(large).await.unwrap();
    f.put(small.clone()).await;
    let before = f.store.info().await.unwrap();

    let hex = digests[0].hash.to_string();
    let path = f.dir.join("content").join(&hex[..2]).join(hex);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let row = rusqlite::Connection::open(f.dir.join("store.db")).unwrap();
    let rotten = "UPDATE contents SET content = zeroblob(1000)";
    assert_eq!(row.execute(rotten, []).unwrap(), 1);
    drop(row);

    for digest in digests {
        // A store that serves it either stops midway or has found the damage by now.
        let found = f.store.verify(digest.hash).await;
        assert!(!matches!(found, Ok(Condition::Whole)), "{found:?}");
        let read = f.store.read(digest.hash, 0..10).await;
        assert!(!matches!(read, Ok(Some(_))), "{read:?}");
        assert!(f.store.lookup(digest.hash).await.unwrap().is_none_or(|asset| asset.is_damaged));
    }
    let page = f.store.changes(before.newest_cursor, 100).await.unwrap();
    assert_eq!((page.gone, page.entries), (digests.map(|digest| digest.hash).to_vec(), vec![]));
    assert_eq!(f.store.changes(0, 100).await.unwrap().entries, []);
    assert_eq!(f.store.info().await.unwrap().asset_count, 0);

    let large = file(f.algorithm, &f.scratch, &content(1, 300_000));
    assert_eq!(f.store.adopt(large).await.unwrap(), Stored::New);
    assert_eq!(f.put_one(small).await.unwrap(), Stored::New);
    for digest in digests {
        assert_eq!(f.store.verify(digest.hash).await.unwrap(), Condition::Whole);
    }
    let page = f.store.changes(page.next, 100).await.unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.digest).collect::<Vec<_>>(), digests);
    assert_eq!(f.store.damages().borrow().count, 0);
}

async fn space_is_refused_when_no_disk_has_it(f: &Fixture) {
    f.store.check_space(1).await.unwrap();
    if f.embedded {
        let result = f.store.check_space(u64::MAX).await;
        assert!(matches!(result, Err(StoreError::Full(_))), "{result:?}");
    }
}

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects ERROR events from now on; see [`assert_no_errors`].
pub fn fail_on_errors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::registry().with(CollectErrors).init();
    });
}

pub fn assert_no_errors() {
    let errors = ERRORS.lock().unwrap();
    assert!(errors.is_empty(), "logged as ERROR: {errors:#?}");
}

struct CollectErrors;

impl<S: Subscriber> Layer<S> for CollectErrors {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, "{field}={value:?} ");
            }
        }
        if *event.metadata().level() == Level::ERROR {
            let mut text = Text(format!("{}: ", event.metadata().target()));
            event.record(&mut text);
            ERRORS.lock().unwrap().push(text.0);
        }
    }
}
