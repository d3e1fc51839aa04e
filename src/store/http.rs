//! A foreign store over loopback HTTP, as a client of `proto/store.proto`. It is not trusted: every
//! answer is bounded, checked for shape, count, order and size, and given a deadline. Hashes of
//! bytes are the caller's to check.
//!
//! Nothing runs in the background and nothing is retried here (one place does that, above), except
//! once with a key that was changed. A store without `GET /sync/info` is a *core-only* one: its id
//! comes from its address, its algorithm is taken to be BLAKE3, whole contents travel in messages,
//! and where it gives no cursors its timestamps (ms) serve as such.

mod connection;
mod events;
mod follow;
pub(crate) mod owner;
mod send;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use prost::Message;
use reqwest::header;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

pub use self::connection::Deadlines;
use self::connection::{Connection, Request, RequestBody, announced_bytes};
use super::messages::{self, MESSAGE_BYTES_MAX, MESSAGE_ENTRIES_MAX, PROTOBUF_TYPE};
use super::{
    Asset, Changes, Cursor, Entry, FeedEvent, Filter, Metadata, NewAsset, PAGE_ENTRIES_MAX,
    READ_BYTES_MAX, SMALL_BYTES_MAX, Store, StoreError, StoreInfo, Stored, VerifiedFile,
};
use crate::core::ids::{Digest, Hash, HashAlgorithm, StoreId};
use crate::wire::proto::store as proto;

/// The largest content that travels as one message to or from a store without "blobs". It is in
/// memory whole.
const WHOLE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Contents asked for or sent in one message when there are many. Small enough to be on its way
/// within seconds, large enough to make a durable commit worth it.
const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Room for a bundle's metadata in a message: its bounds, encoded.
const BUNDLE_EXTRA_BYTES_MAX: u64 = 128 * 1024;

/// Room for one digest in a listing; it encodes to about 60 bytes.
const LISTED_BYTES_MAX: u64 = 128;

/// A listing by `since` comes in one piece: about a million assets.
const LISTING_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Room for an answer that holds little.
const SHORT_BYTES_MAX: u64 = 256 * 1024;

/// Rows of one `/assets` page, and the room for them.
const ROWS_PAGE: usize = 500;
const ROWS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A listing by `since` goes back so far behind the cursor: what a store took in while it listed may
/// carry an earlier timestamp. Entries within it come twice.
const SINCE_MARGIN_MS: i64 = 10_000;

/// A store that another program serves.
#[derive(Clone)]
pub struct HttpStore(Arc<Inner>);

struct Inner {
    connection: Connection,
    /// What the store is, as far as is known.
    profile: Mutex<Option<Profile>>,
    /// The newest cursor a core-only store has shown.
    newest_seen: AtomicU64,
    /// A core-only store gave no cursors: list it by `since`.
    lists_by_since: AtomicBool,
    /// The last content taken whole, since it is read in ranges.
    whole: Mutex<Option<(Hash, Bytes)>>,
}

/// What a store offers.
#[derive(Debug, Clone)]
struct Profile {
    store_id: StoreId,
    algorithm: HashAlgorithm,
    is_core_only: bool,
    features: BTreeSet<String>,
}

impl Profile {
    fn offers(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }
}

fn contract(what: impl Into<String>) -> StoreError {
    StoreError::Contract(what.into())
}

impl HttpStore {
    /// A client of the store at `url` (a literal loopback `http://` address) with the key in
    /// `key_file`. Nothing is sent yet.
    pub fn new(url: &str, key_file: &Path) -> Result<Self, StoreError> {
        Self::with_deadlines(url, key_file, Deadlines::default())
    }

    /// [`HttpStore::new`] with other deadlines.
    pub fn with_deadlines(
        url: &str,
        key_file: &Path,
        deadlines: Deadlines,
    ) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Inner {
            connection: Connection::new(url, key_file, deadlines)?,
            profile: Mutex::default(),
            newest_seen: AtomicU64::new(0),
            lists_by_since: AtomicBool::new(false),
            whole: Mutex::default(),
        })))
    }
}

impl Inner {
    /// Asks the store what it is, and remembers.
    async fn ask_info(&self) -> Result<StoreInfo, StoreError> {
        let answer = self.connection.send(&Request::new(Method::GET, "/sync/info")).await?;
        let (info, profile) = match answer.status() {
            StatusCode::OK => {
                let message = self.message(answer, SHORT_BYTES_MAX).await?;
                let (info, features) = messages::info(message).map_err(contract)?;
                let profile = Profile {
                    store_id: info.store_id,
                    algorithm: info.hash_algorithm,
                    is_core_only: false,
                    features: features.into_iter().collect(),
                };
                (info, profile)
            }
            StatusCode::NOT_FOUND => self.core_only(),
            _ => return Err(self.connection.failure("GET /sync/info", answer).await),
        };
        let before = self.set_profile(Some(profile));
        if before.is_some_and(|before| before.store_id != info.store_id) {
            tracing::warn!(store = %info.store_id, "another store answers at {}", self.connection.url());
            self.lists_by_since.store(false, Ordering::Relaxed);
            self.set_whole(None);
        }
        Ok(info)
    }

    /// What is assumed of a store that says nothing of itself.
    fn core_only(&self) -> (StoreInfo, Profile) {
        let derived = blake3::derive_key(
            "can-sync 2026 id of a core-only store from its url",
            self.connection.url().as_bytes(),
        );
        let mut store_id = StoreId([0; StoreId::LEN]);
        store_id.0.copy_from_slice(&derived[..StoreId::LEN]);
        let algorithm = HashAlgorithm::Blake3;
        let info = StoreInfo {
            store_id,
            hash_algorithm: algorithm,
            newest_cursor: self.newest_seen.load(Ordering::Relaxed),
            asset_count: 0,
            asset_bytes: 0,
            largest_asset_bytes: Some(WHOLE_BYTES_MAX),
        };
        let profile =
            Profile { store_id, algorithm, is_core_only: true, features: BTreeSet::new() };
        (info, profile)
    }

    async fn profile(&self) -> Result<Profile, StoreError> {
        let known = self.lock_profile().clone();
        if let Some(profile) = known {
            return Ok(profile);
        }
        self.ask_info().await?;
        let known = self.lock_profile().clone();
        known.ok_or_else(|| StoreError::Unreachable("its profile was just forgotten".into()))
    }

    fn lock_profile(&self) -> std::sync::MutexGuard<'_, Option<Profile>> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_profile(&self, profile: Option<Profile>) -> Option<Profile> {
        std::mem::replace(&mut *self.lock_profile(), profile)
    }

    fn set_whole(&self, whole: Option<(Hash, Bytes)>) {
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = whole;
    }

    /// The error of an unexpected answer. A store that lost a feature is asked anew what it is.
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
    ) -> Result<T, StoreError> {
        let body = self.connection.body(answer, limit_bytes).await?;
        T::decode(body).map_err(|error| contract(format!("its message cannot be decoded: {error}")))
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
        let message: proto::HashesResponse = self.message(answer, limit_bytes).await?;
        let entries: Result<Vec<Entry>, String> =
            message.digests.iter().map(messages::entry).collect();
        Ok((entries.map_err(contract)?, message))
    }

    /// A page of a store that has cursors.
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
        Ok(Changes { entries, next, has_more: message.has_more })
    }

    /// A page of a core-only store: by cursor if it gives any, else by timestamp.
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
        // The answer's end is where the store set it; cutting it at `limit` could stand still
        // within equal timestamps.
        Ok(Changes { entries, next, has_more: message.has_more })
    }

    /// Asks for bundles. The answer holds only what was asked for, each with a digest.
    async fn pull(
        &self,
        hashes: &BTreeSet<Hash>,
        metadata_only: bool,
        content_bytes: u64,
    ) -> Result<Pulled, StoreError> {
        let request = proto::PullRequest {
            hashes: hashes.iter().map(|hash| hash.as_bytes().to_vec().into()).collect(),
            metadata_only,
        };
        let answer = self.post("/sync/pull", &request).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.failure("POST /sync/pull", answer).await);
        }
        let limit_bytes = MESSAGE_BYTES_MAX.max(content_bytes) + BUNDLE_EXTRA_BYTES_MAX;
        let message: proto::PullResponse = self.message(answer, limit_bytes).await?;
        let mut pulled = Pulled::default();
        let unasked = |hash| contract(format!("it sent asset {hash}, which was not asked for"));
        for bundle in message.bundles {
            let asset = messages::asset(&bundle).map_err(contract)?;
            let Digest { hash, size_bytes } = asset.entry.digest;
            if !hashes.contains(&hash) {
                return Err(unasked(hash));
            }
            let got = bundle.content.len() as u64;
            // A store that does not know `metadata_only` sends the content anyway.
            if got != size_bytes && !(metadata_only && got == 0) {
                return Err(contract(format!(
                    "it says asset {hash} has {size_bytes} bytes and sent {got}"
                )));
            }
            pulled.bundles.insert(hash, (asset, bundle.content));
        }
        for raw in &message.missing {
            let hash = messages::hash(raw).map_err(contract)?;
            if !hashes.contains(&hash) {
                return Err(unasked(hash));
            }
            pulled.missing.insert(hash);
        }
        Ok(pulled)
    }

    /// A whole content from a store without "blobs".
    async fn read_whole(&self, hash: Hash) -> Result<Option<Bytes>, StoreError> {
        let kept = {
            let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
            whole.clone().filter(|(kept, _)| *kept == hash)
        };
        if let Some((_, content)) = kept {
            return Ok(Some(content));
        }
        let mut pulled = self.pull(&BTreeSet::from([hash]), false, WHOLE_BYTES_MAX).await?;
        let Some((_, content)) = pulled.bundles.remove(&hash) else {
            return match pulled.missing.contains(&hash) {
                true => Ok(None),
                false => Err(contract(format!("it said nothing about asset {hash}"))),
            };
        };
        if content.len() as u64 > READ_BYTES_MAX {
            self.set_whole(Some((hash, content.clone())));
        }
        Ok(Some(content))
    }

    async fn read_by_pull(
        &self,
        hash: Hash,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(content) = self.read_whole(hash).await? else {
            return Ok(None);
        };
        let size_bytes = content.len() as u64;
        if range.end > size_bytes {
            return Err(out_of_range(hash, &range, size_bytes));
        }
        if range.end == size_bytes {
            // Read to the end: it will not be asked for again soon.
            self.set_whole(None);
        }
        Ok(Some(slice(&content, range)))
    }

    async fn read_by_range(
        &self,
        hash: Hash,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        let call = "GET /sync/blobs";
        let path = format!("/sync/blobs/{hash}");
        let length = range.end - range.start;
        let request = match length {
            // A range cannot be empty.
            0 => Request::new(Method::HEAD, path),
            _ => Request::new(Method::GET, path)
                .header(header::RANGE, &format!("bytes={}-{}", range.start, range.end - 1))?,
        };
        let answer = self.connection.send(&request).await?;
        match answer.status() {
            StatusCode::OK if length == 0 => {
                let size_bytes = announced_bytes(&answer)
                    .ok_or_else(|| contract(format!("{call} announced no length")))?;
                if range.end > size_bytes {
                    return Err(out_of_range(hash, &range, size_bytes));
                }
                Ok(Some(Bytes::new()))
            }
            StatusCode::PARTIAL_CONTENT => {
                let begin = format!("bytes {}-{}/", range.start, range.end - 1);
                let given = answer.headers().get(header::CONTENT_RANGE);
                let given = given.map(|value| value.as_bytes()).unwrap_or_default();
                if !given.starts_with(begin.as_bytes()) {
                    return Err(contract(format!(
                        "{call} was asked for {begin} and answered {:?}",
                        String::from_utf8_lossy(given)
                    )));
                }
                let content = self.connection.body(answer, length).await?;
                exactly(length, content).map(Some)
            }
            // The whole content: right only when it was asked for.
            StatusCode::OK if range.start == 0 => {
                let content = self.connection.body(answer, length).await?;
                exactly(length, content).map(Some)
            }
            StatusCode::OK => Err(contract(format!("{call} does not honour ranges"))),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(StoreError::Unsupported(format!(
                "a read of {range:?} from {hash}, which is shorter"
            ))),
            _ => Err(self.failure(call, answer).await),
        }
    }
}

/// What a pull brought.
#[derive(Default)]
struct Pulled {
    bundles: BTreeMap<Hash, (Asset, Bytes)>,
    missing: BTreeSet<Hash>,
}

fn slice(content: &Bytes, range: Range<u64>) -> Bytes {
    // The caller has compared the range with the length, which fits a usize.
    content.slice(range.start as usize..range.end as usize)
}

fn exactly(length: u64, content: Bytes) -> Result<Bytes, StoreError> {
    let got = content.len() as u64;
    if got != length {
        return Err(contract(format!("it sent {got} bytes instead of {length}")));
    }
    Ok(content)
}

fn out_of_range(hash: Hash, range: &Range<u64>, size_bytes: u64) -> StoreError {
    StoreError::Unsupported(format!(
        "a read of {range:?} from {hash}, which has {size_bytes} bytes"
    ))
}

/// A row of `GET /assets`.
#[derive(Debug, Deserialize)]
struct Row {
    hash: String,
    size: u64,
    timestamp: i64,
    cursor: Cursor,
    name: String,
    #[serde(rename = "type")]
    media_type: String,
    description: String,
    tags: Vec<String>,
    trashed: bool,
    version: u64,
}

#[derive(Debug, Deserialize)]
struct Rows {
    assets: Vec<Row>,
    next: Option<Cursor>,
}

fn row_asset(row: Row) -> Result<Asset, StoreError> {
    let hash = row.hash.parse().map_err(|error| contract(format!("a row has no hash: {error}")))?;
    let metadata = messages::canonical(Metadata {
        description: row.description,
        tags: row.tags,
        trashed: row.trashed,
        version: row.version,
        file_name: row.name,
        media_type: row.media_type,
    })
    .map_err(contract)?;
    Ok(Asset {
        entry: Entry {
            digest: Digest { hash, size_bytes: row.size },
            timestamp_ms: row.timestamp,
            cursor: row.cursor,
        },
        metadata,
    })
}

/// The query of a filtered listing, without its paging.
fn filter_query(filter: &Filter) -> String {
    let mut query = String::new();
    let trashed = filter.trashed.map(|trashed| trashed.to_string());
    for (name, value) in [
        ("tag", &filter.tag),
        ("type", &filter.media_type),
        ("q", &filter.query),
        ("hash", &filter.hash_prefix),
        ("trashed", &trashed),
    ] {
        let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else {
            continue;
        };
        query.push_str(&format!("&{name}="));
        for byte in value.bytes() {
            match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' => {
                    query.push(char::from(byte));
                }
                _ => query.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    query
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
        let limit_bytes = SHORT_BYTES_MAX + limit as u64 * LISTED_BYTES_MAX;
        let query = format!("after={after}&limit={limit}");
        let (entries, message) = inner.hashes(&query, limit_bytes).await?;
        if entries.len() > limit {
            return Err(contract(format!(
                "it listed {} assets, {limit} were asked for",
                entries.len()
            )));
        }
        inner.page(after, entries, &message)
    }

    fn follow(&self, after: Cursor) -> BoxStream<'static, Result<FeedEvent, StoreError>> {
        follow::follow(self.0.clone(), after)
    }

    async fn lookup(&self, hash: Hash) -> Result<Option<Asset>, StoreError> {
        // A core-only store may not know how to leave the content out.
        let content_bytes = match self.0.profile().await?.is_core_only {
            true => WHOLE_BYTES_MAX,
            false => 0,
        };
        let asked = BTreeSet::from([hash]);
        let mut pulled = self.0.pull(&asked, true, content_bytes).await?;
        match pulled.bundles.remove(&hash) {
            Some((asset, _)) => Ok(Some(asset)),
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
        if !self.0.profile().await?.offers("assets") {
            return Err(StoreError::Unsupported(
                "it does not offer \"assets\", so it cannot be searched".into(),
            ));
        }
        let is_hex = |text: &String| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let prefix = filter.hash_prefix.as_ref();
        if prefix.is_some_and(|prefix| !is_hex(prefix) || prefix.len() > 2 * Hash::LEN) {
            // No hash begins so, and the store would refuse to look.
            return Ok(Vec::new());
        }
        let limit = limit.min(PAGE_ENTRIES_MAX);
        let query = filter_query(filter);
        let mut assets: Vec<Asset> = Vec::new();
        let mut after = after;
        while assets.len() < limit {
            let room = (limit - assets.len()).min(ROWS_PAGE);
            let path = format!("/assets?after={after}&limit={room}{query}");
            let request = Request::new(Method::GET, path);
            let answer = self.0.connection.send(&request).await?;
            if answer.status() != StatusCode::OK {
                return Err(self.0.failure("GET /assets", answer).await);
            }
            let body = self.0.connection.body(answer, ROWS_BYTES_MAX).await?;
            let rows: Rows = serde_json::from_slice(&body)
                .map_err(|error| contract(format!("its rows cannot be read: {error}")))?;
            if rows.assets.len() > room {
                return Err(contract("it listed more rows than were asked for"));
            }
            for row in rows.assets {
                let asset = row_asset(row)?;
                if asset.entry.cursor <= after {
                    return Err(contract("its rows are not in cursor order"));
                }
                after = asset.entry.cursor;
                assets.push(asset);
            }
            if rows.next.is_none_or(|next| next != after) {
                break;
            }
        }
        Ok(assets)
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
        let mut contents: BTreeMap<Hash, Option<Bytes>> = BTreeMap::new();
        let mut wanted: Vec<Digest> = digests.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(large) = wanted.iter().find(|one| one.size_bytes > SMALL_BYTES_MAX) {
            return Err(StoreError::TooLarge(format!(
                "asset {} has {} bytes, which is not small",
                large.hash, large.size_bytes
            )));
        }
        while !wanted.is_empty() {
            let mut asked = BTreeSet::new();
            let mut content_bytes = 0;
            for digest in &wanted {
                let is_full = content_bytes + digest.size_bytes > BATCH_BYTES_MAX
                    || asked.len() == MESSAGE_ENTRIES_MAX;
                if is_full {
                    break;
                }
                content_bytes += digest.size_bytes;
                asked.insert(digest.hash);
            }
            let mut pulled = self.0.pull(&asked, false, content_bytes).await?;
            let before = wanted.len();
            let mut refused = None;
            wanted.retain(|digest| {
                if let Some((asset, content)) = pulled.bundles.remove(&digest.hash) {
                    let got = asset.entry.digest.size_bytes;
                    if got != digest.size_bytes {
                        refused = Some(contract(format!(
                            "asset {} has {got} bytes instead of {}",
                            digest.hash, digest.size_bytes
                        )));
                    }
                    contents.insert(digest.hash, Some(content));
                    return false;
                }
                if pulled.missing.contains(&digest.hash) {
                    contents.insert(digest.hash, None);
                    return false;
                }
                true
            });
            if let Some(refused) = refused {
                return Err(refused);
            }
            // What is in neither list did not fit into the answer and is asked for again.
            if wanted.len() == before {
                return Err(contract("it was asked for small assets and sent nothing"));
            }
        }
        Ok(digests.iter().map(|digest| contents.get(&digest.hash).cloned().flatten()).collect())
    }

    async fn outboard(&self, _hash: Hash) -> Result<Option<File>, StoreError> {
        Ok(None)
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
        };
        let answer = self.0.post("/sync/meta", &request).await?;
        let status = answer.status();
        match status {
            StatusCode::OK | StatusCode::CONFLICT => {}
            // The path is a core one: what is not found is the asset.
            StatusCode::NOT_FOUND => return Err(StoreError::NotFound(hash)),
            _ => return Err(self.0.failure("POST /sync/meta", answer).await),
        }
        let said: proto::MetaResponse = self.0.message(answer, SHORT_BYTES_MAX).await?;
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
