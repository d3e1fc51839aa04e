//! The `/sync/*` calls of `proto/store.proto` over the embedded store, with the people's endpoints.
//!
//! Messages are bounded before they are read, and few are in memory at once; streamed uploads go to
//! a file that outlives a broken connection, is resumed by offset, and becomes an asset only when
//! its hash is right. Who may call is the guard's affair.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use prost::Message;
use serde::Deserialize;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{EmbeddedStore, FeedKind, FeedLine};
use crate::clock::wall_now;
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::store::messages::{
    self, MESSAGE_BYTES_MAX, MESSAGE_ENTRIES_MAX, METADATA_HEADER, PROTOBUF_TYPE,
    UPLOAD_OFFSET_HEADER,
};
use crate::store::people;
use crate::store::problem::{Problem, problem};
use crate::store::upload::{
    Hasher, SPACE_CHECK_BYTES, announced_bytes, check_announced, check_largest, check_type,
    collect, next_chunk, receive, write_failed,
};
use crate::store::{
    Asset, Changes, Cursor, Metadata, NewAsset, PAGE_ENTRIES_MAX, READ_BYTES_MAX, SMALL_BYTES_MAX,
    Store, StoreError, Stored, VerifiedFile, content,
};
use crate::wire::proto::store as proto;

/// What the router offers beyond the core. All of it, unless a test plays a lesser store.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// `GET /sync/info`; without it the store is a core-only one.
    pub info: bool,
    /// Cursors in listings, and `?after`.
    pub after: bool,
    /// Streamed contents.
    pub blobs: bool,
    /// `POST /sync/push-batch`.
    pub batch: bool,
    /// The people's endpoints.
    pub assets: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self { info: true, after: true, blobs: true, batch: true, assets: true }
    }
}

impl Features {
    /// The names of `StoreInfo.features`.
    fn names(self) -> Vec<String> {
        [(self.blobs, "blobs"), (self.batch, "batch"), (self.assets, "assets")]
            .into_iter()
            .filter(|(offered, _)| *offered)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}

/// Messages of up to 16 MiB in memory at once; more wait. 64 MiB in all.
const MESSAGES_AT_ONCE_MAX: usize = 4;

/// So long a message waits for its turn, then 503.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// Event streams at once: half of the connections, so that they never take all.
const EVENT_STREAMS_MAX: usize = 32;

/// A comment line so often on a quiet event stream (named in the proto file).
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Feed rows fetched at once for an event stream.
const EVENT_PAGE_ROWS: usize = 256;

/// Unfinished uploads kept for resuming: more than any agent has under way.
const UNFINISHED_UPLOADS_MAX: usize = 64;

/// An unfinished upload that nobody went on with for so long is dropped.
const UNFINISHED_UPLOAD_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The router of the store API over `store`. It answers whoever asks: put it behind a
/// [`Guard`](crate::store::guard::Guard).
pub fn router(store: EmbeddedStore, features: Features) -> Router {
    let staging_dir = store.staging_dir().to_owned();
    let server = Server {
        uploads_dir: staging_dir.join("uploads"),
        store: store.clone(),
        features,
        turns: Arc::new(Semaphore::new(MESSAGES_AT_ONCE_MAX)),
        event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        uploading: Arc::default(),
    };
    let mut router = Router::new()
        .route("/sync/hashes", post(hashes))
        .route("/sync/pull", post(pull))
        .route("/sync/push", post(push))
        .route("/sync/meta", post(meta))
        .route("/sync/events", get(events));
    if features.info {
        router = router.route("/sync/info", get(info));
    }
    if features.blobs {
        router = router.route("/sync/blobs/{hash}", get(get_blob).put(put_blob));
    }
    if features.batch {
        router = router.route("/sync/push-batch", post(push_batch));
    }
    let router = router.with_state(server);
    if features.assets {
        return router.merge(people::router(Arc::new(store), staging_dir));
    }
    router
}

#[derive(Clone)]
struct Server {
    store: EmbeddedStore,
    features: Features,
    /// Where unfinished uploads lie, each under its hash.
    uploads_dir: PathBuf,
    turns: Arc<Semaphore>,
    event_streams: Arc<Semaphore>,
    uploading: Arc<Mutex<BTreeSet<Hash>>>,
}

impl Server {
    /// Reads a request's message. The turn is held until the answer is made, since both are large.
    async fn message<T: Message + Default>(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(T, OwnedSemaphorePermit), Problem> {
        check_type(headers, PROTOBUF_TYPE)?;
        check_announced(headers, MESSAGE_BYTES_MAX)?;
        let busy = || problem(StatusCode::SERVICE_UNAVAILABLE, "busy: try again");
        let turn = timeout(TURN_DEADLINE, self.turns.clone().acquire_owned())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let body = collect(body, MESSAGE_BYTES_MAX).await?;
        let message = T::decode(body)
            .map_err(|error| bad_request(format!("the message cannot be decoded: {error}")))?;
        Ok((message, turn))
    }

    async fn algorithm(&self) -> Result<HashAlgorithm, Problem> {
        Ok(self.store.info().await?.hash_algorithm)
    }
}

fn bad_request(detail: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, detail)
}

/// A message as an answer.
fn protobuf(message: &impl Message) -> Response {
    ([(header::CONTENT_TYPE, PROTOBUF_TYPE)], message.encode_to_vec()).into_response()
}

fn parse_hash(text: &str) -> Result<Hash, Problem> {
    text.parse().map_err(|error| bad_request(format!("this is no hash: {error}")))
}

/// `GET /sync/info`.
async fn info(State(server): State<Server>) -> Result<Response, Problem> {
    let info = server.store.info().await?;
    Ok(protobuf(&messages::info_message(&info, server.features.names())))
}

#[derive(Debug, Default, Deserialize)]
struct HashesQuery {
    since: Option<i64>,
    after: Option<Cursor>,
    limit: Option<usize>,
}

/// `POST /sync/hashes`.
async fn hashes(
    State(server): State<Server>,
    Query(query): Query<HashesQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if headers.contains_key(header::CONTENT_TYPE) {
        check_type(&headers, PROTOBUF_TYPE)?;
    }
    collect(body, 0).await?;
    let is_listed = |timestamp_ms| query.since.is_none_or(|since| timestamp_ms >= since);
    let knows_after = server.features.after;
    let (mut next, limit) = match knows_after {
        true => (
            query.after.unwrap_or(0),
            query.limit.unwrap_or(PAGE_ENTRIES_MAX).min(PAGE_ENTRIES_MAX),
        ),
        // A store without cursors knows no pages either: it lists everything at once.
        false => (0, usize::MAX),
    };
    let mut digests = Vec::new();
    let mut has_more = true;
    while has_more && digests.len() < limit {
        let room = (limit - digests.len()).min(PAGE_ENTRIES_MAX);
        let Changes { entries, next: page_next, has_more: page_has_more } =
            server.store.changes(next, room).await?;
        let listed = entries.iter().filter(|entry| is_listed(entry.timestamp_ms));
        digests.extend(listed.map(messages::entry_message));
        (next, has_more) = (page_next, page_has_more);
    }
    if !knows_after {
        for digest in &mut digests {
            digest.cursor = 0;
        }
        next = 0;
    }
    Ok(protobuf(&proto::HashesResponse { digests, has_more, next_cursor: next }))
}

/// `POST /sync/pull`.
async fn pull(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (request, _turn) = server.message::<proto::PullRequest>(&headers, body).await?;
    at_most_entries(request.hashes.len())?;
    let mut response = proto::PullResponse::default();
    let mut bundles = Vec::new();
    let mut room = MESSAGE_BYTES_MAX;
    for raw in &request.hashes {
        let hash = messages::hash(raw).map_err(bad_request)?;
        let Some(asset) = server.store.lookup(hash).await? else {
            response.missing.push(raw.clone());
            continue;
        };
        let bundle = proto::Bundle {
            digest: Some(messages::entry_message(&asset.entry)),
            content: Bytes::new(),
            metadata: Some(messages::metadata_message(&asset.metadata)),
        };
        let content_bytes = match request.metadata_only {
            true => 0,
            false => asset.entry.digest.size_bytes,
        };
        let needed = content_bytes.saturating_add(bundle.encoded_len() as u64);
        if needed > room {
            if request.hashes.len() == 1 {
                return Err(problem(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("{content_bytes} bytes do not fit into a message: use /sync/blobs"),
                ));
            }
            // In neither list: to be asked for again.
            continue;
        }
        room -= needed;
        bundles.push((asset, bundle));
    }
    if !request.metadata_only {
        fill_in(&server.store, &mut bundles).await?;
    }
    response.bundles = bundles.into_iter().map(|(_, bundle)| bundle).collect();
    Ok(protobuf(&response))
}

/// Reads the contents of bundles, the small ones all at once.
async fn fill_in(
    store: &EmbeddedStore,
    bundles: &mut [(Asset, proto::Bundle)],
) -> Result<(), Problem> {
    let is_small = |asset: &Asset| asset.entry.digest.size_bytes <= SMALL_BYTES_MAX;
    let small: Vec<Digest> = bundles
        .iter()
        .filter(|(asset, _)| is_small(asset))
        .map(|(asset, _)| asset.entry.digest)
        .collect();
    let mut contents = store.read_small(&small).await?.into_iter();
    for (asset, bundle) in bundles {
        let digest = asset.entry.digest;
        let content = match is_small(asset) {
            true => contents.next().flatten(),
            false => read_whole(store, digest).await?,
        };
        bundle.content = content.ok_or(StoreError::NotFound(digest.hash))?;
    }
    Ok(())
}

async fn read_whole(store: &EmbeddedStore, digest: Digest) -> Result<Option<Bytes>, StoreError> {
    let mut whole = Vec::new();
    let mut at = 0;
    while at < digest.size_bytes {
        let end = digest.size_bytes.min(at + READ_BYTES_MAX);
        let Some(piece) = store.read(digest.hash, at..end).await? else {
            return Ok(None);
        };
        whole.extend_from_slice(&piece);
        at = end;
    }
    Ok(Some(whole.into()))
}

fn at_most_entries(count: usize) -> Result<(), Problem> {
    if count > MESSAGE_ENTRIES_MAX {
        return Err(bad_request(format!(
            "the message has {count} entries, at most {MESSAGE_ENTRIES_MAX} are taken"
        )));
    }
    Ok(())
}

/// What a bundle brings.
fn bundle_parts(bundle: proto::Bundle) -> Result<NewAsset, Problem> {
    let Asset { entry, metadata } = messages::asset(&bundle).map_err(bad_request)?;
    let got = bundle.content.len() as u64;
    if got != entry.digest.size_bytes {
        let said = entry.digest.size_bytes;
        return Err(problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("the digest says {said} bytes, the content has {got}"),
        ));
    }
    Ok(NewAsset { digest: entry.digest, content: bundle.content, metadata })
}

/// `POST /sync/push`.
async fn push(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (bundle, _turn) = server.message::<proto::Bundle>(&headers, body).await?;
    let asset = bundle_parts(bundle)?;
    let digest = asset.digest;
    // Through the same path as a streamed upload: hashed here, by file when it is not small.
    let info = server.store.info().await?;
    check_largest(digest.size_bytes, info.largest_asset_bytes)?;
    let received = receive(
        Body::from(asset.content),
        server.store.staging_dir(),
        info.hash_algorithm,
        &server.store,
        info.largest_asset_bytes,
    )
    .await?;
    received.check(digest.hash)?;
    let (_, stored) = people::keep(&server.store, received, asset.metadata).await?;
    Ok(protobuf(&proto::PushResponse {
        hash: digest.hash.as_bytes().to_vec().into(),
        already_existed: stored == Stored::Existed,
    }))
}

/// `POST /sync/push-batch`.
async fn push_batch(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (request, _turn) = server.message::<proto::PushBatchRequest>(&headers, body).await?;
    at_most_entries(request.bundles.len())?;
    let mut results = Vec::with_capacity(request.bundles.len());
    let mut assets = Vec::new();
    for bundle in request.bundles {
        let raw_hash = bundle.digest.as_ref().map(|digest| digest.hash.clone()).unwrap_or_default();
        let refusal = match bundle_parts(bundle) {
            Err(refusal) => Some(refusal),
            Ok(asset) if asset.digest.size_bytes > SMALL_BYTES_MAX => Some(problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a batch takes contents of up to {SMALL_BYTES_MAX} bytes"),
            )),
            Ok(asset) => {
                assets.push(asset);
                None
            }
        };
        results.push((raw_hash, refusal));
    }
    let mut stored = server.store.put(assets).await?.into_iter();
    let results = results
        .into_iter()
        .map(|(hash, refusal)| {
            let outcome = match refusal {
                Some(refusal) => Err(refusal),
                None => stored
                    .next()
                    .unwrap_or_else(|| Err(StoreError::Disk("no result came".into())))
                    .map_err(Problem::from),
            };
            let (status, detail) = match outcome {
                Ok(Stored::New) => (StatusCode::OK, String::new()),
                Ok(Stored::Existed) => (StatusCode::ALREADY_REPORTED, String::new()),
                Err(problem) => (problem.status, problem.detail),
            };
            proto::PushResult { hash, status: status.as_u16().into(), detail }
        })
        .collect();
    Ok(protobuf(&proto::PushBatchResponse { results }))
}

/// `POST /sync/meta`.
async fn meta(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (request, _turn) = server.message::<proto::MetaRequest>(&headers, body).await?;
    let hash = messages::hash(&request.hash).map_err(bad_request)?;
    let metadata = messages::canonical(Metadata {
        description: request.description,
        tags: request.tags,
        trashed: request.is_trashed,
        ..Metadata::default()
    })
    .map_err(bad_request)?;
    let written = server.store.set_metadata(hash, &metadata, request.expected_version).await;
    let (status, standing) = match written {
        Ok(metadata) => (StatusCode::OK, metadata),
        Err(StoreError::Conflict(metadata)) => (StatusCode::CONFLICT, *metadata),
        Err(error) => return Err(error.into()),
    };
    let mut response = protobuf(&proto::MetaResponse {
        hash: request.hash,
        metadata: Some(messages::metadata_message(&standing)),
    });
    *response.status_mut() = status;
    Ok(response)
}

/// `GET /sync/events`.
async fn events(State(server): State<Server>, headers: HeaderMap) -> Result<Response, Problem> {
    let permit = server.event_streams.clone().try_acquire_owned().map_err(|_| {
        problem(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("all {EVENT_STREAMS_MAX} event streams are taken"),
        )
    })?;
    let newest = server.store.info().await?.newest_cursor;
    let (after, first) = match headers.get("last-event-id") {
        None => (newest, None),
        Some(id) => match id.to_str().ok().and_then(|text| text.parse::<Cursor>().ok()) {
            Some(cursor) if cursor <= newest => (cursor, None),
            // Never given out by this store: it was replaced, or restored from an older copy.
            _ => {
                let reset = Event::default().event("reset").id(newest.to_string());
                (newest, Some(reset.data("{}")))
            }
        },
    };
    let feed = feed(server.store.clone(), after);
    let feed = stream::iter(first.map(Ok)).chain(feed).map(move |event| {
        let _held = &permit;
        event
    });
    let sse = Sse::new(feed).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY));
    Ok(sse.into_response())
}

/// The feed after a cursor, for ever; ends with an error when the store fails or is closed.
fn feed(store: EmbeddedStore, after: Cursor) -> impl Stream<Item = Result<Event, StoreError>> {
    // Not before the first look at the feed: what is added in between wakes us again.
    let newest = store.subscribe();
    let pages = stream::try_unfold((store, newest, after), async |(store, mut newest, after)| {
        loop {
            newest.mark_unchanged();
            let lines = store.feed(after, EVENT_PAGE_ROWS).await?;
            if let Some(last) = lines.last() {
                let after = last.cursor;
                return Ok(Some((lines, (store, newest, after))));
            }
            let gone = |_| StoreError::Unreachable("the store is closed".into());
            newest.changed().await.map_err(gone)?;
        }
    });
    pages.map_ok(|lines| stream::iter(lines.into_iter().map(|line| Ok(event(&line))))).try_flatten()
}

/// A line of the feed as an event.
fn event(line: &FeedLine) -> Event {
    let (name, data) = match line.kind {
        FeedKind::Asset { digest, timestamp_ms } => (
            "asset",
            serde_json::json!({
                "hash": digest.hash.to_string(),
                "size": digest.size_bytes,
                "timestamp": timestamp_ms,
            }),
        ),
        FeedKind::Meta { hash, version } => {
            ("meta", serde_json::json!({ "hash": hash.to_string(), "version": version }))
        }
    };
    Event::default().event(name).id(line.cursor.to_string()).data(data.to_string())
}

/// `GET` and `HEAD /sync/blobs/{hash}`.
async fn get_blob(
    State(server): State<Server>,
    Path(hash): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let hash = parse_hash(&hash)?;
    let Some(asset) = server.store.lookup(hash).await? else {
        let mut response = Problem::from(StoreError::NotFound(hash)).into_response();
        if let Ok(status) = fs::symlink_metadata(server.upload_path(hash)).await {
            set_offset(&mut response, status.len());
        }
        return Ok(response);
    };
    let algorithm = server.algorithm().await?;
    let store: Arc<dyn Store> = Arc::new(server.store);
    let digest = asset.entry.digest;
    let mut response = content::answer(store, digest, algorithm, &method, &headers).await?;
    if response.status().is_success() {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    }
    Ok(response)
}

fn set_offset(response: &mut Response, offset: u64) {
    response.headers_mut().insert(UPLOAD_OFFSET_HEADER, HeaderValue::from(offset));
}

/// Which part of a content a PUT brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    first: u64,
    /// The part's length; `None` = until the body ends.
    length: Option<u64>,
    /// The whole content's length; `None` = what is there when the body ends.
    whole: Option<u64>,
}

impl Part {
    fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let announced = announced_bytes(headers);
        let Some(value) = headers.get(header::CONTENT_RANGE) else {
            return Ok(Self { first: 0, length: announced, whole: announced });
        };
        let part = parse_content_range(value.as_bytes()).ok_or_else(|| {
            bad_request("Content-Range must be `bytes FIRST-LAST/SIZE` within the size")
        })?;
        if announced.is_some() && announced != part.length {
            return Err(bad_request("Content-Range and Content-Length disagree"));
        }
        Ok(part)
    }
}

fn parse_content_range(value: &[u8]) -> Option<Part> {
    let text = std::str::from_utf8(value).ok()?.strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let [first, last, whole] = [first, last, whole].map(|number| {
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| number.parse::<u64>().ok()).flatten()
    });
    let (first, last, whole) = (first?, last?, whole?);
    if first > last || last >= whole {
        return None;
    }
    Some(Part { first, length: Some(last - first + 1), whole: Some(whole) })
}

/// `PUT /sync/blobs/{hash}`.
async fn put_blob(
    State(server): State<Server>,
    Path(hash): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let hash = parse_hash(&hash)?;
    check_type(&headers, "application/octet-stream")?;
    let part = Part::from_headers(&headers)?;
    let metadata = match headers.get(METADATA_HEADER) {
        Some(value) => messages::metadata_from_header(value.as_bytes()).map_err(bad_request)?,
        None => Metadata::default(),
    };
    if server.store.lookup(hash).await?.is_some() {
        return Ok(StatusCode::OK.into_response());
    }
    let info = server.store.info().await?;
    if let Some(whole) = part.whole {
        check_largest(whole, info.largest_asset_bytes)?;
        server.store.check_space(whole - part.first).await?;
    }
    let _uploading = server.begin_upload(hash)?;
    let path = server.upload_path(hash);
    let held = fs::symlink_metadata(&path).await.map_or(0, |status| status.len());
    let is_restart = !headers.contains_key(header::CONTENT_RANGE);
    if !is_restart && part.first != held {
        let detail = format!("{held} bytes are kept: go on there");
        let mut response = problem(StatusCode::CONFLICT, detail).into_response();
        set_offset(&mut response, held);
        return Ok(response);
    }
    let mut upload = server.open_upload(&path, part.first).await?;
    let mut hasher = hash_start(&path, part.first, info.hash_algorithm).await?;
    let largest = info.largest_asset_bytes;
    let written = append(&mut upload, &mut hasher, body, part, largest, &server.store).await;
    // What came is kept also when the connection broke: that is what resuming lives on.
    let flushed = upload.flush().await.map_err(|error| write_failed(&path, &error));
    drop(upload);
    let size_bytes = part.first + written.and_then(|bytes| flushed.map(|()| bytes))?;
    if part.whole.is_some_and(|whole| size_bytes < whole) {
        let mut response = StatusCode::ACCEPTED.into_response();
        set_offset(&mut response, size_bytes);
        return Ok(response);
    }
    let got = hasher.finish();
    if got != hash {
        remove_file(&path).await;
        let expected = hash;
        return Err(StoreError::Mismatch { expected, got }.into());
    }
    let file = VerifiedFile { digest: Digest { hash, size_bytes }, path, outboard: None, metadata };
    Ok(match server.store.adopt(file).await? {
        Stored::New => StatusCode::CREATED.into_response(),
        Stored::Existed => StatusCode::OK.into_response(),
    })
}

/// Writes the body's bytes behind those in the file; returns how many came.
async fn append(
    file: &mut File,
    hasher: &mut Hasher,
    body: Body,
    part: Part,
    largest: Option<u64>,
    store: &EmbeddedStore,
) -> Result<u64, Problem> {
    let mut stream = body.into_data_stream();
    let mut written = 0;
    let mut checked = 0;
    while let Some(chunk) = next_chunk(&mut stream).await? {
        written += chunk.len() as u64;
        if part.length.is_some_and(|length| written > length) {
            return Err(bad_request("the body is longer than announced"));
        }
        check_largest(part.first + written, largest)?;
        if part.whole.is_none() && written >= checked + SPACE_CHECK_BYTES {
            store.check_space(SPACE_CHECK_BYTES).await?;
            checked = written;
        }
        hasher.update(&chunk);
        file.write_all(&chunk)
            .await
            .map_err(|error| write_failed(FilePath::new("an upload"), &error))?;
    }
    Ok(written)
}

/// The hash of the bytes that earlier uploads left.
async fn hash_start(
    path: &FilePath,
    length: u64,
    algorithm: HashAlgorithm,
) -> Result<Hasher, Problem> {
    let mut hasher = Hasher::new(algorithm);
    if length == 0 {
        return Ok(hasher);
    }
    let path = path.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        hasher.update_from(std::fs::File::open(&path)?.take(length))?;
        Ok(hasher)
    });
    let failed = |error: std::io::Error| {
        problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot read what was uploaded before: {error}"),
        )
    };
    task.await.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)
}

async fn remove_file(path: &FilePath) {
    if let Err(error) = fs::remove_file(path).await {
        tracing::warn!(path = %path.display(), %error, "cannot remove an upload");
    }
}

/// While it lives, nobody else uploads this content.
struct Uploading {
    hash: Hash,
    all: Arc<Mutex<BTreeSet<Hash>>>,
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.hash);
    }
}

impl Server {
    fn upload_path(&self, hash: Hash) -> PathBuf {
        self.uploads_dir.join(hash.to_string())
    }

    fn begin_upload(&self, hash: Hash) -> Result<Uploading, Problem> {
        let mut all = self.uploading.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.insert(hash) {
            return Err(problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "another upload of this content is under way",
            ));
        }
        Ok(Uploading { hash, all: self.uploading.clone() })
    }

    /// The upload's file, cut to `length` and open for appending.
    async fn open_upload(&self, path: &FilePath, length: u64) -> Result<File, Problem> {
        let failed = |error| write_failed(path, &error);
        if length == 0 {
            self.sweep().await.map_err(failed)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .await
            .map_err(failed)?;
        file.set_len(length).await.map_err(failed)?;
        Ok(file)
    }

    /// Makes the folder, and room in it: drops what nobody went on with, and the oldest beyond the
    /// bound.
    async fn sweep(&self) -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.uploads_dir).await?;
        let mut kept = Vec::new();
        let mut folder = fs::read_dir(&self.uploads_dir).await?;
        while let Some(entry) = folder.next_entry().await? {
            let touched = entry.metadata().await.and_then(|status| status.modified());
            let name = entry.file_name().to_string_lossy().parse::<Hash>().ok();
            let is_under_way = name.is_some_and(|hash| {
                let all = self.uploading.lock().unwrap_or_else(PoisonError::into_inner);
                all.contains(&hash)
            });
            if !is_under_way {
                kept.push((touched.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
            }
        }
        kept.sort();
        let now = wall_now();
        let surplus = (kept.len() + 1).saturating_sub(UNFINISHED_UPLOADS_MAX);
        for (index, (touched, path)) in kept.iter().enumerate() {
            let age = now.duration_since(*touched).unwrap_or_default();
            if index < surplus || age > UNFINISHED_UPLOAD_KEPT {
                remove_file(path).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_must_name_a_part_within_the_size() {
        let part =
            |first, length, whole| Some(Part { first, length: Some(length), whole: Some(whole) });
        for (text, expected) in [
            ("bytes 0-9/10", part(0, 10, 10)),
            ("bytes 3-5/10", part(3, 3, 10)),
            ("bytes 9-9/10", part(9, 1, 10)),
            ("bytes 0-10/10", None),
            ("bytes 5-3/10", None),
            ("bytes 0-9/*", None),
            ("bytes */10", None),
            ("bytes +0-9/10", None),
            ("bytes 0-9", None),
            ("items 0-9/10", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("bytes 0-99999999999999999999/10", None),
        ] {
            assert_eq!(parse_content_range(text.as_bytes()), expected, "{text}");
        }
    }
}
