//! `POST /v1/safe` and `POST /v1/evict`: asks other devices to prove that they hold assets, and
//! deletes copies here that enough of them have promised to keep. `POST /v1/choose` says which assets
//! an expression means.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{Api, request};
use crate::agent::handle::RequestError;
use crate::copies::gathered::{GatherRequest, Gathered, Purpose};
use crate::core::expression::Expression;
use crate::core::ids::Hash;
use crate::http::events::{self, event};
use crate::http::problem::{Problem, bad_request, problem};
use crate::replica::copies::ChosenAsset;

/// The most requests at once: each reads disks on several devices.
pub(super) const GATHERS_MAX: usize = 8;

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/safe", post(safe))
        .route("/v1/evict", post(evict))
        .route("/v1/choose", post(choose))
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(safe, evict, choose), components(schemas(Gathered)))]
pub(super) struct Described;

/// Assets whose copies are to be proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SafeRequest {
    /// Their hashes, at most 64.
    #[schema(max_items = 64)]
    pub hashes: Vec<Hash>,
    /// The number of other devices that must prove it; when left out, as many as the group wants copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub copies: Option<usize>,
    /// The number of different sites on which these must be; when left out, as many as the group wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub sites: Option<usize>,
    /// Saved proofs that are not older than this count too, in milliseconds; 0 for none.
    #[serde(default)]
    pub within_ms: u64,
}

/// Assets whose copies here are to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvictRequest {
    /// Their hashes, at most 64.
    #[schema(max_items = 64)]
    pub hashes: Vec<Hash>,
    /// The number of other devices that must prove it; when left out, as many as the group wants copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub copies: Option<usize>,
    /// The number of different sites on which these must be; when left out, as many as the group wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub sites: Option<usize>,
    /// Delete nothing, only report what would be deleted.
    #[serde(default)]
    pub dry_run: bool,
}

/// An expression over the assets that are here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChooseRequest {
    /// The expression.
    pub expression: String,
    /// `next` of the page before.
    #[serde(default)]
    pub after: u64,
}

/// Assets here that an expression chooses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChosenPage {
    /// The assets. There may be none although there are more.
    pub assets: Vec<ChosenAsset>,
    /// Where the next page begins. Null: there are no more.
    #[schema(required)]
    pub next: Option<u64>,
}

/// Asks other devices to prove that they hold assets
///
/// `event: gathered`, data: a Gathered, once for each asset, in any order; then the stream ends.
/// Comment lines keep it alive. A device reads the whole content anew for each proof.
#[utoipa::path(
    post,
    path = "/v1/safe",
    operation_id = "proveAssets",
    tag = "assets",
    request_body = SafeRequest,
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
    )
)]
async fn safe(State(api): State<Api>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let SafeRequest { hashes, copies, sites, within_ms } = request(&headers, body).await?;
    let purpose = Purpose::Safe { within_ms };
    gather(api, hashes, (copies, sites), purpose).await
}

/// Deletes copies of assets here that other devices have proven and promised to keep
///
/// `event: gathered`, data: a Gathered, once for each asset, in any order; then the stream ends.
/// Comment lines keep it alive. What is known about an evicted asset stays; `POST /v1/fetch` brings its
/// content back.
#[utoipa::path(
    post,
    path = "/v1/evict",
    operation_id = "evictAssets",
    tag = "assets",
    request_body = EvictRequest,
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
    )
)]
async fn evict(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let EvictRequest { hashes, copies, sites, dry_run } = request(&headers, body).await?;
    let purpose = Purpose::Evict { dry_run };
    gather(api, hashes, (copies, sites), purpose).await
}

/// The assets here that an expression chooses, a page at a time
#[utoipa::path(
    post,
    path = "/v1/choose",
    operation_id = "chooseAssets",
    tag = "assets",
    request_body = ChooseRequest,
    responses((status = 200, description = "Done.", body = ChosenPage))
)]
async fn choose(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ChosenPage>, Problem> {
    let ChooseRequest { expression, after } = request(&headers, body).await?;
    let expression = Expression::parse(&expression)
        .map_err(|error| bad_request(format!("the expression: {error}")))?;
    let chosen = api.handle.keeper().choose(&expression, after).await;
    let (assets, next) = chosen.map_err(|error| RequestError::Internal(format!("{error:#}")))?;
    Ok(Json(ChosenPage { assets, next }))
}

async fn gather(
    api: Api,
    hashes: Vec<Hash>,
    (copies, sites): (Option<usize>, Option<usize>),
    purpose: Purpose,
) -> Result<Response, Problem> {
    let goal = api.handle.keeper().view().goal;
    let of_goal = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let copies = copies.unwrap_or_else(|| of_goal(goal.copies));
    let sites = sites.unwrap_or_else(|| of_goal(goal.sites));
    let request = GatherRequest { hashes, copies, sites, purpose };
    let permit = Arc::clone(&api.gathers).try_acquire_owned().map_err(|_| {
        let detail = format!("{GATHERS_MAX} requests for proofs are under way: try again");
        problem(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?;
    let told = api.handle.gather(request).await?;
    let answers = stream::unfold((told, permit), async |(mut told, permit)| {
        let gathered = told.recv().await?;
        Some((Ok::<_, Infallible>(event("gathered", &gathered)), (told, permit)))
    });
    Ok(events::answer(Box::pin(answers)))
}
