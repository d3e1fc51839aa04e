//! `POST /v1/verify`: reads assets now and reports which of them are whole. A damaged one is read twice;
//! then the store no longer holds the asset, which is fetched from other devices like every missing one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::response::sse::Event;
use axum::routing::post;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::{OpenApi, ToSchema};

use super::{Api, request};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::http::events::{self, event};
use crate::http::problem::{Problem, bad_request, problem};
use crate::store::reading::{Reading, Step, Verdict};
use crate::store::{Condition, Store, StoreError};

/// The most requests at once: more of them would not make one disk faster.
pub(super) const VERIFIES_MAX: usize = 16;

/// The most assets of one request.
pub const VERIFY_ASSETS_MAX: usize = 256;

/// The most ranges named of one asset.
const WRONG_RANGES_MAX: usize = 100;

/// How often the progress of a large asset is reported.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// The route.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/verify", post(verify))
}

/// The OpenAPI description of this route.
#[derive(OpenApi)]
#[openapi(paths(verify), components(schemas(VerifyReading, Verified)))]
pub(super) struct Described;

/// Assets to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Their hashes, at most 256.
    #[schema(max_items = 256)]
    pub hashes: Vec<Hash>,
}

/// The progress of reading one asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReading {
    /// The asset.
    pub hash: Hash,
    /// The bytes read so far.
    pub read_bytes: u64,
}

/// The result of verifying one asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// The asset.
    pub hash: Hash,
    /// The asset's size; 0 if it is unknown.
    pub size: u64,
    /// Whether the content is whole, damaged or not held.
    pub condition: VerifiedCondition,
    /// The bytes that are wrong.
    pub wrong_bytes: u64,
    /// The first hundred ranges that are wrong, each with its end.
    pub wrong: Vec<[u64; 2]>,
    /// Why the condition is unknown, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<String>,
}

/// The condition of an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerifiedCondition {
    /// The content matches the asset's hash.
    Whole,
    /// The asset's content is lost or wrong.
    Damaged,
    /// The store has no such asset.
    Absent,
    /// The store cannot tell, see `error`.
    Unknown,
}

/// Reads assets now, and reports which are whole
///
/// `event: reading`, data: a VerifyReading, while a large asset is read. `event: verified`, data: a
/// Verified, once for each asset in their order; then the stream ends. Comment lines keep it alive.
#[utoipa::path(
    post,
    path = "/v1/verify",
    operation_id = "verifyAssets",
    tag = "assets",
    request_body = VerifyRequest,
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
    )
)]
async fn verify(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let VerifyRequest { hashes } = request(&headers, body).await?;
    if hashes.len() > VERIFY_ASSETS_MAX {
        let count = hashes.len();
        return Err(bad_request(format!("{count} assets, at most {VERIFY_ASSETS_MAX} at once")));
    }
    let permit = Arc::clone(&api.verifies).try_acquire_owned().map_err(|_| {
        let detail = format!("{VERIFIES_MAX} requests to verify are under way: try again");
        problem(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?;
    let store = api.handle.store();
    let algorithm = store.info().await?.hash_algorithm;
    let work = Work { store, algorithm, left: hashes.into(), reading: None, _permit: permit };
    let answers = stream::unfold(work, async |mut work| {
        let event = work.next().await?;
        Some((Ok::<_, Infallible>(event), work))
    });
    Ok(events::answer(Box::pin(answers)))
}

/// The assets of a request that are left to verify.
struct Work {
    store: Arc<dyn Store>,
    algorithm: HashAlgorithm,
    left: VecDeque<Hash>,
    reading: Option<(Digest, Reading)>,
    _permit: OwnedSemaphorePermit,
}

impl Work {
    async fn next(&mut self) -> Option<Event> {
        let hash = *self.left.front()?;
        let told = match self.read(hash).await {
            Ok(None) => {
                let read_bytes = self.reading.as_ref().map_or(0, |(_, reading)| reading.at_bytes());
                return Some(event("reading", &VerifyReading { hash, read_bytes }));
            }
            Ok(Some(verified)) => verified,
            Err(error) => Verified {
                error: Some(error.to_string()),
                ..verified(Digest { hash, size_bytes: 0 }, VerifiedCondition::Unknown)
            },
        };
        self.left.pop_front();
        self.reading = None;
        Some(event("verified", &told))
    }

    /// Reads the asset's next bytes. Returns the finding once the end is reached.
    async fn read(&mut self, hash: Hash) -> Result<Option<Verified>, StoreError> {
        let (digest, mut reading) = match self.reading.take() {
            Some(reading) => reading,
            None => {
                let absent = Digest { hash, size_bytes: 0 };
                let Some(asset) = self.store.lookup(hash).await? else {
                    return Ok(Some(verified(absent, VerifiedCondition::Absent)));
                };
                let digest = asset.entry.digest;
                if asset.is_evicted {
                    return Ok(Some(verified(absent, VerifiedCondition::Absent)));
                }
                if asset.is_damaged {
                    return self.look_again(digest).await.map(Some);
                }
                let store = self.store.clone();
                (digest, Reading::begin(store, self.algorithm, digest, 0).await?)
            }
        };
        let tell_at = Instant::now() + TELL_EVERY;
        while Instant::now() < tell_at {
            let Step::End(verdict) = reading.step().await? else { continue };
            return match verdict {
                Verdict::Right => Ok(Some(verified(digest, VerifiedCondition::Whole))),
                Verdict::Wrong | Verdict::Gone => self.look_again(digest).await.map(Some),
            };
        }
        self.reading = Some((digest, reading));
        Ok(None)
    }

    async fn look_again(&self, digest: Digest) -> Result<Verified, StoreError> {
        Ok(match self.store.verify(digest.hash).await? {
            Condition::Whole => verified(digest, VerifiedCondition::Whole),
            Condition::Absent => verified(digest, VerifiedCondition::Absent),
            Condition::Damaged(wrong) => Verified {
                wrong_bytes: wrong.bytes(),
                wrong: wrong
                    .iter()
                    .take(WRONG_RANGES_MAX)
                    .map(|range| [range.start, range.end])
                    .collect(),
                ..verified(digest, VerifiedCondition::Damaged)
            },
        })
    }
}

fn verified(digest: Digest, condition: VerifiedCondition) -> Verified {
    let Digest { hash, size_bytes } = digest;
    Verified { hash, size: size_bytes, condition, wrong_bytes: 0, wrong: Vec::new(), error: None }
}
