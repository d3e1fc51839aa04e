//! Runs a store through what its contract promises, for `doctor`: reading alone, or with a small asset
//! that is stored and trashed again. The whole contract is tested by `tests/store_conformance.rs`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::core::limits::SMALL_BYTES_MAX;
use crate::store::{Entry, Metadata, NewAsset, Store, StoreError, Stored, Touched};

/// The deadline of each check.
const CHECK_WAIT: Duration = Duration::from_secs(30);

/// How many assets are read and hashed.
const SAMPLE: usize = 8;

/// How many entries of the feed are looked at.
const FEED_ENTRIES: usize = 1000;

/// A promise of the contract, and whether the store kept it: what was seen, or what was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The promise.
    pub promise: &'static str,
    /// What the check saw: a text, or an error if the store broke the promise.
    pub kept: Result<String, String>,
}

/// Checks the promises. With `write`, `nonce` makes the content of the asset that is stored; it stays
/// in the store's trash.
pub async fn check(store: &dyn Store, write: Option<[u8; 32]>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let info = within(async { store.info().await.map_err(text) }).await;
    let algorithm = info.as_ref().map_or_else(|_| HashAlgorithm::default(), |i| i.hash_algorithm);
    let told = info.map(|info| {
        format!("store {}, {}, {} assets", info.store_id, algorithm.name(), info.asset_count)
    });
    let is_up = told.is_ok();
    findings.push(Finding { promise: "it reports its id and its hash algorithm", kept: told });
    if !is_up {
        return findings;
    }
    let feed = within(async { feed(store).await }).await;
    let entries = feed.as_ref().map_or_else(|_| Vec::new(), Clone::clone);
    let seen = feed.map(|entries| format!("{} entries, in order", entries.len()));
    findings.push(Finding { promise: "its feed lists assets in the order of cursors", kept: seen });
    let sample = sample(&entries);
    let read = within(async { contents(store, algorithm, &sample).await }).await;
    findings
        .push(Finding { promise: "contents have the hashes they are listed under", kept: read });
    let parts = within(async { ranges(store, &sample).await }).await;
    findings.push(Finding { promise: "a range is answered with exactly its bytes", kept: parts });
    let absent = within(async { absent(store, algorithm).await }).await;
    findings
        .push(Finding { promise: "it does not find an asset that it does not hold", kept: absent });
    let gap = within(async { gap(store).await }).await;
    findings.push(Finding { promise: "an unknown cursor is answered with a gap", kept: gap });
    if let Some(nonce) = write {
        let written = within(async { written(store, algorithm, nonce).await }).await;
        findings.push(Finding {
            promise: "it keeps what it acknowledges, and nothing else",
            kept: written,
        });
    }
    findings
}

async fn within<T>(check: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let seconds = CHECK_WAIT.as_secs();
    timeout(CHECK_WAIT, check)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {seconds} s")))
}

fn text(error: StoreError) -> String {
    error.to_string()
}

async fn feed(store: &dyn Store) -> Result<Vec<Entry>, String> {
    let page = store.changes(0, FEED_ENTRIES).await.map_err(text)?;
    let cursors: Vec<u64> = page.entries.iter().map(|entry| entry.cursor).collect();
    if !cursors.is_sorted() {
        return Err("the cursors of a page do not rise".into());
    }
    if let Some(last) = cursors.last()
        && page.next < *last
    {
        return Err(format!("the next cursor, {}, is before the last entry's, {last}", page.next));
    }
    Ok(page.entries)
}

/// Some of the small assets of the feed, spread over it.
fn sample(entries: &[Entry]) -> Vec<Digest> {
    let small = entries.iter().filter(|entry| entry.digest.size_bytes <= SMALL_BYTES_MAX);
    let small: Vec<Digest> = small.map(|entry| entry.digest).collect();
    let step = small.len().div_ceil(SAMPLE).max(1);
    small.into_iter().step_by(step).collect()
}

async fn contents(
    store: &dyn Store,
    algorithm: HashAlgorithm,
    sample: &[Digest],
) -> Result<String, String> {
    let contents = store.read_small(sample).await.map_err(text)?;
    if contents.len() != sample.len() {
        return Err(format!("{} contents for {} assets", contents.len(), sample.len()));
    }
    for (digest, content) in sample.iter().zip(contents) {
        let hash = digest.hash;
        let Some(content) = content else { return Err(format!("{hash} is listed and not there")) };
        if content.len() as u64 != digest.size_bytes {
            return Err(format!(
                "{hash} has {} bytes, listed with {}",
                content.len(),
                digest.size_bytes
            ));
        }
        if algorithm.hash(&content) != hash {
            let name = algorithm.name();
            return Err(format!("the content of {hash} does not have that {name} hash"));
        }
    }
    Ok(format!("{} assets read", sample.len()))
}

async fn ranges(store: &dyn Store, sample: &[Digest]) -> Result<String, String> {
    let Some(digest) = sample.iter().find(|digest| digest.size_bytes >= 3) else {
        return Ok("no asset is large enough to try".into());
    };
    let (hash, size_bytes) = (digest.hash, digest.size_bytes);
    let whole = store.read(hash, 0..size_bytes).await.map_err(text)?.unwrap_or_default();
    let part = store.read(hash, 1..size_bytes - 1).await.map_err(text)?.unwrap_or_default();
    let expected = whole.get(1..whole.len().saturating_sub(1)).unwrap_or_default();
    match part == expected && whole.len() as u64 == size_bytes {
        true => Ok("the middle of an asset".into()),
        false => Err(format!("{} bytes of {hash} for {}", part.len(), size_bytes - 2)),
    }
}

/// A hash that no content of a store has: of a text that only this program hashes so.
fn hash_of_nothing(algorithm: HashAlgorithm) -> Hash {
    let mut hash = algorithm.hash(b"can-sync doctor: no content has this hash");
    hash.0[0] ^= 0xff;
    hash
}

async fn absent(store: &dyn Store, algorithm: HashAlgorithm) -> Result<String, String> {
    let hash = hash_of_nothing(algorithm);
    if store.lookup(hash).await.map_err(text)?.is_some() {
        return Err(format!("a row for {hash}, which nothing has"));
    }
    match store.read(hash, 0..1).await.map_err(text)? {
        Some(_) => Err(format!("bytes for {hash}, which nothing has")),
        None => Ok("neither row nor bytes".into()),
    }
}

async fn gap(store: &dyn Store) -> Result<String, String> {
    let first = store.touched(u64::MAX / 2).next().await;
    match first {
        Some(Ok(Touched::Gap)) => Ok("the feed begins with it".into()),
        Some(Ok(other)) => Err(format!("the feed begins with {other:?}")),
        Some(Err(StoreError::Unsupported(why))) => Ok(format!("it has no feed to resume: {why}")),
        Some(Err(error)) => Err(text(error)),
        None => Err("the feed ended".into()),
    }
}

async fn written(
    store: &dyn Store,
    algorithm: HashAlgorithm,
    nonce: [u8; 32],
) -> Result<String, String> {
    let content = Bytes::from([b"can-sync doctor ".as_slice(), &nonce].concat());
    let digest = Digest { hash: algorithm.hash(&content), size_bytes: content.len() as u64 };
    let metadata =
        Metadata { description: "made by can-sync doctor".into(), ..Metadata::default() };
    let asset = || NewAsset { digest, content: content.clone(), metadata: metadata.clone() };
    for expected in [Stored::New, Stored::Existed] {
        let stored = one(store.put(vec![asset()]).await.map_err(text)?)?.map_err(text)?;
        if stored != expected {
            return Err(format!("storing an asset was answered {stored:?}, not {expected:?}"));
        }
    }
    let back = one(store.read_small(&[digest]).await.map_err(text)?)?;
    if back.as_ref() != Some(&content) {
        return Err("what was stored does not come back".into());
    }
    let wrong = Digest { hash: hash_of_nothing(algorithm), ..digest };
    let refused = store.put(vec![NewAsset { digest: wrong, ..asset() }]).await.map_err(text)?;
    match one(refused)? {
        Err(StoreError::Mismatch { .. }) => {}
        other => return Err(format!("bytes under a wrong hash were answered {other:?}")),
    }
    let trashed = Metadata { trashed: true, ..metadata };
    match store.set_metadata(digest.hash, &trashed, None).await {
        Ok(_) | Err(StoreError::Unsupported(_)) => {}
        Err(error) => return Err(text(error)),
    }
    Ok(format!("asset {} was stored, and is in the trash", digest.hash))
}

fn one<T>(mut all: Vec<T>) -> Result<T, String> {
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err("another number of answers than of questions".into()),
    }
}
