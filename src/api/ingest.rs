//! `POST /v1/ingest`: many small contents in one request and one durable commit, for programs that
//! add thousands of files. The body is a `PushBatchRequest` of `proto/store.proto` whose bundles
//! leave the digest out: the agent computes it, and finds attributes that are left out in the
//! contents. The answer is a `PushBatchResponse` with a result
//! for each bundle, in order; a bad bundle does not affect the others. Larger contents go to
//! `POST /assets`.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use utoipa::OpenApi;

use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::http::added::{added, claim};
use crate::http::describe::Binary;
use crate::http::people::written_by_people;
use crate::http::problem::{Problem, problem};
use crate::http::upload::{check_announced, check_type, collect_in_turn};
use crate::store::messages::{self, MESSAGE_REPEATED_MAX, PROTOBUF_TYPE};
use crate::store::{NewAsset, SMALL_BYTES_MAX, Store, StoreError, Stored, sniff};
use crate::wire::parse;
use crate::wire::proto::store::{Bundle, PushBatchRequest, PushBatchResponse, PushResult};

/// The most contents in one request: enough to share the cost of a commit.
pub const INGEST_ASSETS_MAX: usize = 512;

/// The largest body of a request.
pub const INGEST_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The most requests in memory at once, 32 MiB in all; others wait.
const INGESTS_MAX: usize = 4;

/// How long a request waits for memory; then it is answered 503.
const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// The route, over `store`.
pub(super) fn router(store: Arc<dyn Store>) -> Router {
    let turns = Arc::new(Semaphore::new(INGESTS_MAX));
    Router::new().route("/v1/ingest", post(ingest)).with_state(Ingest { store, turns })
}

/// The description of this route.
#[derive(OpenApi)]
#[openapi(paths(ingest))]
pub(super) struct Described;

#[derive(Clone)]
struct Ingest {
    store: Arc<dyn Store>,
    turns: Arc<Semaphore>,
}

/// Adds many small assets in one durable commit
#[utoipa::path(
    post,
    path = "/v1/ingest",
    operation_id = "ingest",
    tag = "assets",
    request_body(content = Binary, content_type = PROTOBUF_TYPE, description = "PushBatchRequest of `proto/store.proto`, digests left out."),
    responses(
        (status = 200, description = "PushBatchResponse of `proto/store.proto`.", body = Binary, content_type = PROTOBUF_TYPE),
        (status = 408),
        (status = 502),
        (status = 507),
    )
)]
async fn ingest(
    State(Ingest { store, turns }): State<Ingest>,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Problem> {
    check_type(&headers, PROTOBUF_TYPE)?;
    check_announced(&headers, INGEST_BYTES_MAX)?;
    let busy = || problem(StatusCode::SERVICE_UNAVAILABLE, "too many uploads at once: try again");
    let turn = timeout(TURN_DEADLINE, turns.acquire()).await;
    let _turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
    let body = collect_in_turn(body, INGEST_BYTES_MAX).await?;
    let request: PushBatchRequest = parse("PushBatchRequest", body, MESSAGE_REPEATED_MAX)
        .map_err(|error| problem(StatusCode::BAD_REQUEST, error.to_string()))?;
    let bundles = request.bundles;
    if bundles.len() > INGEST_ASSETS_MAX {
        let got = bundles.len();
        let detail = format!("{got} assets in one request, the limit is {INGEST_ASSETS_MAX}");
        return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let info = store.info().await?;
    let largest_bytes = info.largest_asset_bytes.unwrap_or(u64::MAX).min(SMALL_BYTES_MAX);
    let algorithm = info.hash_algorithm;
    let judge = move || bundles.into_iter().map(|b| judge(b, algorithm, largest_bytes)).collect();
    let judged: Vec<_> = tokio::task::spawn_blocking(judge)
        .await
        .map_err(|_| problem(StatusCode::INTERNAL_SERVER_ERROR, "hashing failed"))?;

    let good: Vec<NewAsset> =
        judged.iter().filter_map(|judged| judged.as_ref().ok().cloned()).collect();
    let hashes: Vec<Hash> = good.iter().map(|asset| asset.digest.hash).collect();
    let stored = store.put(good).await?;
    for (hash, stored) in hashes.into_iter().zip(&stored) {
        if matches!(stored, Ok(Stored::Existed)) {
            claim(&*store, hash).await?;
        }
    }
    let mut stored = stored.into_iter();
    let results = judged.into_iter().map(|judged| match judged {
        Err(refused) => Ok(refused),
        Ok(asset) => stored.next().map(|stored| result(&asset.digest, stored)).ok_or_else(|| {
            StoreError::Contract("it gave fewer results than assets were put".into())
        }),
    });
    let response = PushBatchResponse { results: results.collect::<Result<_, _>>()? };
    Ok(([(header::CONTENT_TYPE, PROTOBUF_TYPE)], response.encode_to_vec()))
}

/// Converts a bundle to an asset, or to the result that says why it is refused.
fn judge(
    bundle: Bundle,
    algorithm: HashAlgorithm,
    largest_bytes: u64,
) -> Result<NewAsset, PushResult> {
    let size_bytes = bundle.content.len() as u64;
    if size_bytes > largest_bytes {
        let detail = format!(
            "the content has {size_bytes} bytes, the limit is {largest_bytes}: send it to POST /assets"
        );
        return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    if bundle.digest.is_some() {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "leave the digest out: the agent computes it".into(),
        ));
    }
    let metadata = messages::metadata(bundle.metadata)
        .map_err(|detail| refusal(StatusCode::BAD_REQUEST, detail))?;
    let mut metadata = written_by_people(metadata)
        .map_err(|Problem { status, detail }| refusal(status, detail))?;
    sniff::fill_in(&mut metadata.attributes, &mut Cursor::new(&bundle.content));
    metadata.attributes = added(metadata.attributes);
    let digest = Digest { hash: algorithm.hash(&bundle.content), size_bytes };
    Ok(NewAsset { digest, content: bundle.content, metadata })
}

fn refusal(status: StatusCode, detail: String) -> PushResult {
    PushResult { hash: Bytes::new(), status: status.as_u16().into(), detail }
}

fn result(digest: &Digest, stored: Result<Stored, StoreError>) -> PushResult {
    let hash = Bytes::copy_from_slice(digest.hash.as_bytes());
    match stored {
        Ok(Stored::New) => PushResult { hash, status: 200, detail: String::new() },
        Ok(Stored::Existed) => PushResult { hash, status: 208, detail: String::new() },
        Err(error) => {
            let Problem { status, detail } = error.into();
            PushResult { hash, status: status.as_u16().into(), detail }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::proto::store::{self as proto, Metadata};

    fn bundle(content: &'static [u8]) -> Bundle {
        Bundle { digest: None, content: Bytes::from_static(content), metadata: None }
    }

    fn status(bundle: Bundle) -> u32 {
        judge(bundle, HashAlgorithm::Blake3, 4).map_or_else(|refused| refused.status, |_| 200)
    }

    #[test]
    fn a_content_is_named_by_the_hash_it_has() {
        let asset = judge(bundle(b"abc"), HashAlgorithm::Sha256, 4).unwrap();
        let digest = Digest { hash: HashAlgorithm::Sha256.hash(b"abc"), size_bytes: 3 };
        assert_eq!(asset.digest, digest);
    }

    #[test]
    fn what_is_too_large_claims_a_digest_or_says_too_much_is_refused() {
        assert_eq!(status(bundle(b"abcd")), 200);
        assert_eq!(status(bundle(b"abcde")), 413);
        assert_eq!(status(Bundle { digest: Some(proto::Digest::default()), ..bundle(b"a") }), 400);
        let metadata = Metadata { description: "x".repeat(1 << 20), ..Metadata::default() };
        assert_eq!(status(Bundle { metadata: Some(metadata), ..bundle(b"a") }), 400);
    }
}
