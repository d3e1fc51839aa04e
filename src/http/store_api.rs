//! The `/sync/*` calls of `proto/store.proto` over the embedded store, with the people's endpoints.
//!
//! Messages are bounded before they are read, and few are in memory at once; `blobs` has the
//! streamed contents. The guard decides who may call.

mod blobs;
mod feed;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use utoipa::{IntoParams, OpenApi};

use self::blobs::Uploads;
use self::feed::EVENT_STREAMS_MAX;
use crate::core::ids::{Digest, Hash};
use crate::core::limits::EDIT_TRIES_MAX;
use crate::http::describe::Binary;
use crate::http::extract::Query;
use crate::http::people;
use crate::http::problem::{Problem, bad_request, problem};
use crate::http::upload::{
    check_announced, check_largest, check_type, collect, collect_in_turn, receive,
};
use crate::store::embedded::EmbeddedStore;
use crate::store::messages::{
    self, MESSAGE_BYTES_MAX, MESSAGE_ENTRIES_MAX, MESSAGE_REPEATED_MAX, PROTOBUF_TYPE,
};
use crate::store::{
    Asset, Changes, Cursor, Metadata, NewAsset, PAGE_ENTRIES_MAX, READ_BYTES_MAX, SMALL_BYTES_MAX,
    Store, StoreError, Stored,
};
use crate::wire::parse;
use crate::wire::proto::store as proto;

/// The features that the router offers beyond the core: all of them, except in tests of a smaller
/// store.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// `GET /sync/info`; without it the store offers the core only.
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
        let offered = [
            (self.blobs, "blobs"),
            (self.batch, "batch"),
            (self.assets, "assets"),
            (self.assets, "attributes"),
            (self.blobs, "repair"),
        ];
        let names = offered.into_iter().filter(|(is_offered, _)| *is_offered);
        names.map(|(_, name)| name.to_owned()).collect()
    }
}

/// The most messages of up to 16 MiB in memory; more wait. 64 MiB in all.
const MESSAGES_AT_ONCE_MAX: usize = 4;

/// How long a message waits for its turn; then the answer is 503.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// The router of the store API over `store`. It checks no key: put it behind a
/// [`Guard`](crate::http::guard::Guard).
pub fn router(store: EmbeddedStore, features: Features) -> Router {
    let staging_dir = store.staging_dir().to_owned();
    let server = Server {
        store: store.clone(),
        features,
        turns: Arc::new(Semaphore::new(MESSAGES_AT_ONCE_MAX)),
        event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        uploads: Uploads::new(staging_dir.join("uploads")),
    };
    let mut router = Router::new()
        .route("/sync/hashes", post(hashes))
        .route("/sync/pull", post(pull))
        .route("/sync/push", post(push))
        .route("/sync/meta", post(meta))
        .route("/sync/events", get(feed::events));
    if features.info {
        router = router.route("/sync/info", get(info));
    }
    if features.blobs {
        router = router.route("/sync/blobs/{hash}", get(blobs::fetch).put(blobs::upload));
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

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(
    info,
    hashes,
    pull,
    push,
    push_batch,
    meta,
    feed::events,
    blobs::fetch,
    blobs::upload
))]
pub(crate) struct Described;

#[derive(Clone)]
struct Server {
    store: EmbeddedStore,
    features: Features,
    turns: Arc<Semaphore>,
    event_streams: Arc<Semaphore>,
    uploads: Uploads,
}

impl Server {
    /// Reads a request's message. The turn is held until the answer is made, because both are
    /// large.
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
        let body = collect_in_turn(body, MESSAGE_BYTES_MAX).await?;
        let message = parse("the message", body, MESSAGE_REPEATED_MAX);
        Ok((message.map_err(|error| bad_request(error.to_string()))?, turn))
    }
}

/// A message as an answer.
fn protobuf(message: &impl Message) -> Response {
    ([(header::CONTENT_TYPE, PROTOBUF_TYPE)], message.encode_to_vec()).into_response()
}

/// What the store is and holds
#[utoipa::path(
    get,
    path = "/sync/info",
    operation_id = "storeInfo",
    tag = "store",
    responses(
        (status = 200, description = "StoreInfo of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
    )
)]
async fn info(State(server): State<Server>) -> Result<Response, Problem> {
    let info = server.store.info().await?;
    Ok(protobuf(&messages::info_message(&info, server.features.names())))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct HashesQuery {
    /// Only of this time or later, milliseconds since the Unix epoch.
    since: Option<i64>,
    /// Only after this cursor.
    after: Option<Cursor>,
    /// The most entries in the answer.
    limit: Option<usize>,
}

/// Lists digests
#[utoipa::path(
    post,
    path = "/sync/hashes",
    operation_id = "storeHashes",
    tag = "store",
    params(
        HashesQuery,
    ),
    responses(
        (status = 200, description = "HashesResponse of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
        (status = 413),
        (status = 415),
    )
)]
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
        // A store without cursors has no pages either: it lists everything at once.
        false => (0, usize::MAX),
    };
    let (mut digests, mut gone) = (Vec::new(), Vec::new());
    let mut has_more = true;
    while has_more && digests.len() + gone.len() < limit {
        let room = (limit - digests.len() - gone.len()).min(PAGE_ENTRIES_MAX);
        let page = server.store.changes(next, room).await?;
        let Changes { entries, gone: page_gone, next: page_next, has_more: page_has_more } = page;
        gone.extend(page_gone.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())));
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
    Ok(protobuf(&proto::HashesResponse { digests, has_more, next_cursor: next, gone }))
}

/// Reads assets whole
#[utoipa::path(
    post,
    path = "/sync/pull",
    operation_id = "storePull",
    tag = "store",
    request_body(content = Binary, content_type = PROTOBUF_TYPE, description = "PullRequest of `proto/store.proto`."),
    responses(
        (status = 200, description = "PullResponse of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
    )
)]
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
        let Some(asset) = held(&server.store, hash).await? else {
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
            // It is in neither list of the answer, so the client requests it again.
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

/// Looks up an asset. A damaged or evicted one counts as missing, as it does for other devices.
async fn held(store: &EmbeddedStore, hash: Hash) -> Result<Option<Asset>, StoreError> {
    Ok(store.lookup(hash).await?.filter(Asset::is_held))
}

/// Reads the contents of bundles, all small ones at once. Wrong content is left out; when requested
/// again it is missing.
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
    let algorithm = store.info().await?.hash_algorithm;
    let mut contents = store.read_small(&small).await?.into_iter();
    for (asset, bundle) in bundles {
        let digest = asset.entry.digest;
        let content = match is_small(asset) {
            true => contents.next().flatten(),
            false => read_whole(store, digest).await?,
        };
        let content = content.ok_or(StoreError::NotFound(digest.hash))?;
        let hashed = content.clone();
        let got = tokio::task::spawn_blocking(move || algorithm.hash(&hashed)).await;
        if got.ok() != Some(digest.hash) {
            store.verify(digest.hash).await?;
            let detail = format!("asset {} was read wrong: ask again", digest.hash);
            return Err(StoreError::Unreachable(detail).into());
        }
        bundle.content = content;
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

/// The asset in a bundle.
fn bundle_parts(bundle: proto::Bundle) -> Result<NewAsset, Problem> {
    let Asset { entry, metadata, .. } = messages::asset(&bundle).map_err(bad_request)?;
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

/// Stores an asset
#[utoipa::path(
    post,
    path = "/sync/push",
    operation_id = "storePush",
    tag = "store",
    request_body(content = Binary, content_type = PROTOBUF_TYPE, description = "Bundle of `proto/store.proto`."),
    responses(
        (status = 200, description = "PushResponse of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
        (status = 422),
        (status = 507),
    )
)]
async fn push(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (bundle, _turn) = server.message::<proto::Bundle>(&headers, body).await?;
    let asset = bundle_parts(bundle)?;
    let digest = asset.digest;
    // Like a streamed upload: hashed here, through a file when it is not small.
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

/// Stores many small assets
#[utoipa::path(
    post,
    path = "/sync/push-batch",
    operation_id = "storePushBatch",
    tag = "store",
    request_body(content = Binary, content_type = PROTOBUF_TYPE, description = "PushBatchRequest of `proto/store.proto`."),
    responses(
        (status = 200, description = "PushBatchResponse of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
        (status = 507),
    )
)]
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

/// Sets an asset's metadata
#[utoipa::path(
    post,
    path = "/sync/meta",
    operation_id = "storeMeta",
    tag = "store",
    request_body(content = Binary, content_type = PROTOBUF_TYPE, description = "MetaRequest of `proto/store.proto`."),
    responses(
        (status = 200, description = "MetaResponse of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
        (status = 409, description = "`expected_version` is not current. MetaResponse of `proto/store.proto`, with the row that stands.", body = Binary, content_type = PROTOBUF_TYPE),
        (status = 404),
        (status = 507),
    )
)]
async fn meta(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (request, _turn) = server.message::<proto::MetaRequest>(&headers, body).await?;
    let hash = messages::hash(&request.hash).map_err(bad_request)?;
    let mut metadata = messages::canonical(Metadata {
        description: request.description,
        tags: request.tags,
        trashed: request.is_trashed,
        ..Metadata::default()
    })
    .map_err(bad_request)?;
    let written = match request.attributes {
        Some(attributes) => {
            metadata.attributes = messages::attributes(attributes);
            server.store.set_metadata(hash, &metadata, request.expected_version).await
        }
        None => {
            // The attributes stay as they are, also when another edit comes in between.
            let mut tries_left = EDIT_TRIES_MAX;
            loop {
                let standing =
                    server.store.lookup(hash).await?.ok_or(StoreError::NotFound(hash))?;
                metadata.attributes = standing.metadata.attributes;
                let expected = request.expected_version.or(Some(standing.metadata.version));
                let written = server.store.set_metadata(hash, &metadata, expected).await;
                tries_left -= 1;
                match written {
                    Err(StoreError::Conflict(_))
                        if request.expected_version.is_none() && tries_left > 0 => {}
                    other => break other,
                }
            }
        }
    };
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
