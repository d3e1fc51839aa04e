//! A foreign store over loopback HTTP, as a client of `proto/store.proto`. It is not trusted: every
//! answer is bounded, checked for shape, count, order and size, and given a deadline. The caller
//! verifies the hashes of contents.
//!
//! Nothing runs in the background, and nothing is retried here (the caller retries in one place),
//! except once with a key that was changed. A store without `GET /sync/info` is *core-only*: its id
//! is derived from its address, its algorithm is assumed to be BLAKE3, whole contents travel in
//! messages, and if it gives no cursors its timestamps (ms) serve as cursors.

mod connection;
mod follow;
mod list;
mod owner;
mod profile;
mod receive;
mod send;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use prost::Message;
use reqwest::header;
use reqwest::{Method, Response, StatusCode};
use tokio::sync::watch;

pub use self::connection::Deadlines;
use self::connection::{Connection, Request, RequestBody};
use self::profile::Profile;
use super::hasher::Hasher;
use super::messages::{self, MESSAGE_REPEATED_MAX, PROTOBUF_TYPE};
use super::{
    Asset, BaoFiles, Changes, Condition, Cursor, Damages, Entry, Filter, Metadata, NewAsset,
    PAGE_ENTRIES_MAX, READ_BYTES_MAX, Store, StoreError, StoreInfo, Stored, Touched, VerifiedFile,
};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::core::limits::RESTING_MAX;
use crate::core::ranges::Ranges;
use crate::wire::parse;
use crate::wire::proto::store as proto;

/// The largest content in one message to or from a store without "blobs". It is in memory as a
/// whole.
const WHOLE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The bytes of contents in one message when there are many. Small enough to be transferred within
/// seconds, large enough to be worth a durable commit.
const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Room for a bundle's metadata in a message: its bounds, encoded.
const BUNDLE_EXTRA_BYTES_MAX: u64 = 128 * 1024;

/// Room for one digest in a listing; it encodes to about 60 bytes.
const LISTED_BYTES_MAX: u64 = 128;

/// The fewest bytes of a digest in a listing: its hash.
const LISTED_BYTES_MIN: u64 = 32;

/// The largest listing by `since`, which is a single answer: about a million assets.
const LISTING_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The largest answer of calls that return little.
const SHORT_BYTES_MAX: u64 = 256 * 1024;

/// How far before the cursor a listing by `since` begins: an asset that a store stored while it
/// listed may have an earlier timestamp. Entries in this range are listed twice.
const SINCE_MARGIN_MS: i64 = 10_000;

/// A store that another program serves.
#[derive(Clone)]
pub struct HttpStore(Arc<Inner>);

struct Inner {
    connection: Connection,
    /// The algorithm that was stated for the store.
    stated: Option<HashAlgorithm>,
    /// The algorithm that was found out from an asset of a core-only store.
    found: Mutex<Option<HashAlgorithm>>,
    /// What the store reported about itself, if it did.
    profile: Mutex<Option<Profile>>,
    /// The newest cursor that a core-only store has returned.
    newest_seen: AtomicU64,
    /// Whether a core-only store gave no cursors, so that it is listed by `since`.
    lists_by_since: AtomicBool,
    /// The last content that was fetched whole, because callers read it in ranges.
    whole: Mutex<Option<(Hash, Bytes)>>,
    /// The assets found damaged, with their cursors. There is no call to mark them in the store.
    damaged: Mutex<BTreeMap<Hash, Cursor>>,
    /// Those of them that no listing has reported as gone yet; see [`Inner::leave_out_damaged`].
    untold: Mutex<Vec<Hash>>,
    damages: watch::Sender<Damages>,
}

fn contract(what: impl Into<String>) -> StoreError {
    StoreError::Contract(what.into())
}

/// What a person says of a foreign store that it does not say itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stated {
    /// The algorithm of its hashes. A store with an info says it; of another one it is found out from
    /// its first asset, and until there is one it must be stated.
    pub hash_algorithm: Option<HashAlgorithm>,
    /// The header that carries the key, instead of `Authorization: Bearer`.
    pub key_header: Option<String>,
}

impl HttpStore {
    /// [`HttpStore::new`] of a store of which something is stated.
    pub fn with_stated(url: &str, key_file: &Path, stated: Stated) -> Result<Self, StoreError> {
        Self::with_deadlines(url, key_file, Deadlines::default(), stated)
    }

    /// [`HttpStore::with_stated`] with other deadlines.
    pub fn with_deadlines(
        url: &str,
        key_file: &Path,
        deadlines: Deadlines,
        stated: Stated,
    ) -> Result<Self, StoreError> {
        let Stated { hash_algorithm, key_header } = stated;
        Ok(Self(Arc::new(Inner {
            connection: Connection::new(url, key_file, key_header.as_deref(), deadlines)?,
            stated: hash_algorithm,
            found: Mutex::default(),
            profile: Mutex::default(),
            newest_seen: AtomicU64::new(0),
            lists_by_since: AtomicBool::new(false),
            whole: Mutex::default(),
            damaged: Mutex::default(),
            untold: Mutex::default(),
            damages: watch::channel(Damages::default()).0,
        })))
    }

    /// A client of the store at `url` (a literal loopback `http://` address) with the key in
    /// `key_file`. Sends nothing yet.
    pub fn new(url: &str, key_file: &Path) -> Result<Self, StoreError> {
        Self::with_stated(url, key_file, Stated::default())
    }
}

impl HttpStore {
    /// Reads an asset as a whole. Returns the hash of what it got, `None` if the store has it not.
    async fn read_hash(
        &self,
        hash: Hash,
        size_bytes: u64,
        algorithm: HashAlgorithm,
    ) -> Result<Option<Hash>, StoreError> {
        self.0.set_whole(None);
        let mut hasher = Hasher::new(algorithm);
        let mut start = 0;
        while start < size_bytes {
            let end = size_bytes.min(start + READ_BYTES_MAX);
            let Some(bytes) = self.read(hash, start..end).await? else { return Ok(None) };
            hasher.update(&bytes);
            start = end;
        }
        Ok(Some(hasher.hash()))
    }
}

impl Inner {
    fn is_damaged(&self, hash: &Hash) -> bool {
        self.damaged.lock().contains_key(hash)
    }

    /// Records the condition of an asset that has this cursor.
    fn note(&self, hash: Hash, cursor: Cursor, condition: &Condition) {
        let mut damaged = self.damaged.lock();
        let found = match condition {
            Condition::Damaged(_) if damaged.len() < RESTING_MAX => {
                let is_new = damaged.insert(hash, cursor).is_none();
                if is_new {
                    self.untold.lock().push(hash);
                }
                is_new
            }
            Condition::Damaged(_) => false,
            Condition::Whole | Condition::Absent => {
                damaged.remove(&hash);
                false
            }
        };
        let found: &[Hash] = if found { &[hash] } else { &[] };
        self.damages.send_if_modified(|known| known.set(damaged.len() as u64, found));
    }

    /// Takes damaged assets out of a listing, and reports each as gone once: a store that can be
    /// repaired does not hold them until they come anew. One with a newer cursor has come anew.
    fn leave_out_damaged(&self, changes: &mut Changes) {
        let mut anew = Vec::new();
        changes.entries.retain(|entry| {
            let hash = entry.digest.hash;
            let known = self.damaged.lock().get(&hash).copied();
            let is_new = known.is_some_and(|cursor| entry.cursor > cursor);
            anew.extend(is_new.then_some(hash));
            known.is_none() || is_new
        });
        for hash in anew {
            self.note(hash, 0, &Condition::Whole);
        }
        if !changes.has_more {
            let untold = std::mem::take(&mut *self.untold.lock());
            changes.gone.extend(untold.into_iter().filter(|hash| self.is_damaged(hash)));
        }
    }

    fn set_whole(&self, whole: Option<(Hash, Bytes)>) {
        *self.whole.lock() = whole;
    }

    /// The error for an unexpected answer. If the store lacks a feature, its profile is requested
    /// again.
    async fn failure(&self, call: &str, answer: Response) -> StoreError {
        let error = self.connection.failure(call, answer).await;
        if matches!(error, StoreError::Unsupported(_)) {
            self.set_profile(None);
        }
        error
    }

    /// Sends a message.
    async fn post(&self, path: &str, message: &impl Message) -> Result<Response, StoreError> {
        let mut request =
            Request::new(Method::POST, path).header(header::CONTENT_TYPE, PROTOBUF_TYPE)?;
        request.body = RequestBody::Bytes(message.encode_to_vec().into());
        self.connection.send(&request).await
    }

    /// Reads an answer's message.
    async fn message<T: Message + Default>(
        &self,
        answer: Response,
        limit_bytes: u64,
        repeated_max: usize,
    ) -> Result<T, StoreError> {
        let body = self.connection.body(answer, limit_bytes).await?;
        parse("its answer", body, repeated_max).map_err(|error| contract(error.to_string()))
    }

    async fn hashes(
        &self,
        query: &str,
        limit_bytes: u64,
    ) -> Result<(Vec<Entry>, proto::HashesResponse), StoreError> {
        let answer = self
            .connection
            .send(&Request::new(Method::POST, format!("/sync/hashes?{query}")))
            .await?;
        if answer.status() != StatusCode::OK {
            return Err(self.failure("POST /sync/hashes", answer).await);
        }
        let digests_max = limit_bytes / LISTED_BYTES_MIN;
        let digests_max = usize::try_from(digests_max).unwrap_or(usize::MAX);
        let message: proto::HashesResponse = self.message(answer, limit_bytes, digests_max).await?;
        let entries: Result<Vec<Entry>, String> =
            message.digests.iter().map(messages::entry).collect();
        Ok((entries.map_err(contract)?, message))
    }

    /// Builds a page from a store that has cursors.
    fn page(
        &self,
        after: Cursor,
        entries: Vec<Entry>,
        message: &proto::HashesResponse,
    ) -> Result<Changes, StoreError> {
        let mut last = after;
        for entry in &entries {
            if entry.cursor <= last {
                return Err(contract(format!(
                    "its listing is not in cursor order: {} comes after {last}",
                    entry.cursor
                )));
            }
            last = entry.cursor;
        }
        let next = match message.next_cursor {
            0 => last,
            next => next,
        };
        if !entries.is_empty() && next < last {
            return Err(contract(format!(
                "its listing goes on from {next}, which is before its last cursor {last}"
            )));
        }
        if message.has_more && next <= after {
            return Err(contract("its listing says there is more and does not move on"));
        }
        let gone = message.gone.iter().map(|hash| messages::hash(hash)).collect::<Result<_, _>>();
        let gone = gone.map_err(contract)?;
        Ok(Changes { entries, gone, next, has_more: message.has_more })
    }

    /// Lists a page of a core-only store: by cursor if it gives any, else by timestamp.
    async fn core_only_changes(&self, after: Cursor, limit: usize) -> Result<Changes, StoreError> {
        if !self.lists_by_since.load(Ordering::Relaxed) {
            let query = format!("after={after}&limit={limit}");
            let (entries, message) = self.hashes(&query, LISTING_BYTES_MAX).await?;
            if entries.iter().all(|entry| entry.cursor > 0) {
                return self.page(after, entries, &message);
            }
            self.lists_by_since.store(true, Ordering::Relaxed);
        }
        let after_ms = i64::try_from(after).unwrap_or(i64::MAX);
        let since_ms = after_ms.saturating_sub(SINCE_MARGIN_MS).max(0);
        let query = format!("since={since_ms}");
        let (mut entries, message) = self.hashes(&query, LISTING_BYTES_MAX).await?;
        for entry in &mut entries {
            entry.cursor = entry.timestamp_ms.try_into().unwrap_or(0);
        }
        entries.sort_by_key(|entry| (entry.cursor, entry.digest.hash));
        let next = entries.last().map_or(after, |last| last.cursor.max(after));
        if message.has_more && next == after {
            return Err(contract(
                "its listing by timestamp says there is more and does not move on",
            ));
        }
        // The store determines where the answer ends; cutting it at `limit` could make no progress
        // among equal timestamps.
        Ok(Changes { entries, next, has_more: message.has_more, ..Changes::default() })
    }
}

#[async_trait]
impl Store for HttpStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        self.0.ask_info().await
    }

    async fn changes(&self, after: Cursor, limit: usize) -> Result<Changes, StoreError> {
        let inner = &self.0;
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX);
        if inner.profile().await?.is_core_only {
            let changes = inner.core_only_changes(after, limit).await?;
            inner.newest_seen.fetch_max(changes.next, Ordering::Relaxed);
            return Ok(changes);
        }
        let can_repair = inner.profile().await?.offers("repair");
        let limit_bytes = SHORT_BYTES_MAX + limit as u64 * LISTED_BYTES_MAX;
        let query = format!("after={after}&limit={limit}");
        let (entries, message) = inner.hashes(&query, limit_bytes).await?;
        if entries.len() + message.gone.len() > limit {
            return Err(contract(format!(
                "it listed {} assets, {limit} were asked for",
                entries.len()
            )));
        }
        let mut changes = inner.page(after, entries, &message)?;
        if can_repair {
            inner.leave_out_damaged(&mut changes);
        }
        Ok(changes)
    }

    fn touched(&self, after: Cursor) -> BoxStream<'static, Result<Touched, StoreError>> {
        follow::touched(self.0.clone(), after)
    }

    async fn lookup(&self, hash: Hash) -> Result<Option<Asset>, StoreError> {
        // A core-only store may not be able to leave out the content.
        let content_bytes = match self.0.profile().await?.is_core_only {
            true => WHOLE_BYTES_MAX,
            false => 0,
        };
        let asked = BTreeSet::from([hash]);
        let mut pulled = self.0.pull(&asked, true, content_bytes).await?;
        match pulled.bundles.remove(&hash) {
            Some((asset, _)) => {
                let is_damaged = self.0.is_damaged(&hash);
                Ok(Some(Asset { is_damaged, ..asset }))
            }
            None if pulled.missing.contains(&hash) => Ok(None),
            None => Err(contract(format!("it said nothing about asset {hash}"))),
        }
    }

    async fn list(
        &self,
        filter: &Filter,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<Asset>, StoreError> {
        self.0.list(filter, after, limit).await
    }

    async fn read(&self, hash: Hash, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        if range.start > range.end || range.end - range.start > READ_BYTES_MAX {
            return Err(StoreError::Unsupported(format!(
                "a read of {range:?}: at most {READ_BYTES_MAX} bytes are read at once"
            )));
        }
        match self.0.profile().await?.offers("blobs") {
            true => self.0.read_by_range(hash, range).await,
            false => self.0.read_by_pull(hash, range).await,
        }
    }

    async fn read_small(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.0.read_small(digests).await
    }

    async fn bao_files(&self, _hash: Hash) -> Result<Option<BaoFiles>, StoreError> {
        Ok(None)
    }

    async fn verify(&self, hash: Hash) -> Result<Condition, StoreError> {
        let profile = self.0.profile().await?;
        let Some(asset) = self.lookup(hash).await? else {
            self.0.note(hash, 0, &Condition::Absent);
            return Ok(Condition::Absent);
        };
        let size_bytes = asset.entry.digest.size_bytes;
        let mut got = self.read_hash(hash, size_bytes, profile.algorithm).await?;
        if got.is_some_and(|got| got != hash) {
            got = self.read_hash(hash, size_bytes, profile.algorithm).await?;
        }
        let condition = match got {
            None => Condition::Absent,
            Some(got) if got == hash => Condition::Whole,
            Some(_) => Condition::Damaged(Ranges::default().gaps(size_bytes)),
        };
        self.0.note(hash, asset.entry.cursor, &condition);
        Ok(condition)
    }

    fn damages(&self) -> watch::Receiver<Damages> {
        self.0.damages.subscribe()
    }

    async fn put(
        &self,
        assets: Vec<NewAsset>,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        self.0.send_small(assets).await
    }

    async fn adopt(&self, file: VerifiedFile) -> Result<Stored, StoreError> {
        let result = self.0.send_file(&file).await;
        if !result.as_ref().is_err_and(StoreError::is_temporary) {
            for path in [Some(&file.path), file.outboard.as_ref()].into_iter().flatten() {
                if let Err(error) = tokio::fs::remove_file(path).await {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a sent file");
                }
            }
        }
        result
    }

    async fn set_metadata(
        &self,
        hash: Hash,
        metadata: &Metadata,
        expected_version: Option<u64>,
    ) -> Result<Metadata, StoreError> {
        let request = proto::MetaRequest {
            hash: hash.as_bytes().to_vec().into(),
            description: metadata.description.clone(),
            tags: metadata.tags.clone(),
            is_trashed: metadata.trashed,
            expected_version,
            attributes: Some(messages::attributes_message(&metadata.attributes)),
        };
        let answer = self.0.post("/sync/meta", &request).await?;
        let status = answer.status();
        match status {
            StatusCode::OK | StatusCode::CONFLICT => {}
            // Every store has this path, so 404 means that the asset is missing.
            StatusCode::NOT_FOUND => return Err(StoreError::NotFound(hash)),
            _ => return Err(self.0.failure("POST /sync/meta", answer).await),
        }
        let said: proto::MetaResponse =
            self.0.message(answer, SHORT_BYTES_MAX, MESSAGE_REPEATED_MAX).await?;
        if messages::hash(&said.hash).map_err(contract)? != hash || said.metadata.is_none() {
            return Err(contract("POST /sync/meta answered without the asset's row"));
        }
        let standing = messages::metadata(said.metadata).map_err(contract)?;
        if status == StatusCode::CONFLICT {
            return Err(StoreError::Conflict(Box::new(standing)));
        }
        Ok(standing)
    }

    async fn check_space(&self, _size_bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }
}
