//! `/v1/forget`: the wishes of the group to forget assets.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::answers::Done;
use super::{Api, request};
use crate::copies::forgetting::{Wish, wish, wishes};
use crate::core::ids::Hash;
use crate::http::problem::{Problem, bad_request, problem};

/// The route.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/forget", get(list).post(forget))
}

/// The OpenAPI description of this route.
#[derive(OpenApi)]
#[openapi(paths(list, forget))]
pub(super) struct Described;

/// A wish, or one to take back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgetRequest {
    /// The asset.
    pub hash: Hash,
    /// Why, for the people of the group; at most 1,000 bytes. Needed unless `undo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    /// Take the wish back.
    #[serde(default)]
    pub undo: bool,
}

/// A wish of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WishView {
    /// The asset.
    pub hash: Hash,
    /// Why it is to be forgotten, as the user gave it.
    pub reason: String,
}

/// All wishes of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WishesView {
    /// The wishes.
    pub wishes: Vec<WishView>,
}

/// The wishes of the group to forget assets
#[utoipa::path(
    get,
    path = "/v1/forget",
    operation_id = "listForgotten",
    tag = "assets",
    responses((status = 200, description = "Done.", body = WishesView))
)]
async fn list(State(api): State<Api>) -> Result<Json<WishesView>, Problem> {
    let found = wishes(&api.handle.journal()).await;
    let found =
        found.map_err(|error| problem(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let view = |Wish { hash, reason }| WishView { hash, reason };
    Ok(Json(WishesView { wishes: found.into_iter().map(view).collect() }))
}

/// Wishes that an asset be forgotten, or takes the wish back
///
/// All devices see the wish. It can be taken back for 30 days; then each device follows it by its own
/// rule.
#[utoipa::path(
    post,
    path = "/v1/forget",
    operation_id = "forgetAsset",
    tag = "assets",
    request_body = ForgetRequest,
    responses((status = 200, description = "Done.", body = Done))
)]
async fn forget(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, Problem> {
    let ForgetRequest { hash, reason, undo } = request(&headers, body).await?;
    if undo == reason.is_some() {
        return Err(bad_request("expected either a reason or undo".to_owned()));
    }
    wish(&api.handle.journal(), hash, reason).await?;
    Ok(Json(Done {}))
}
