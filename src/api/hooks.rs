//! The hooks of `config.toml`: how they do, tried by hand, and the secrets of their requests. They are
//! changed in the file alone: a program that may use the API must not have others run.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::requests::NoArguments;
use super::{Api, request};
use crate::alerts::hooks::{HookSecretReply, HookTestReply, HookView};
use crate::core::lookup::LookupError;
use crate::http::extract::Path;
use crate::http::problem::{Problem, problem};

/// The hooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HooksPage {
    /// The hooks, in the order of the file.
    pub hooks: Vec<HookView>,
}

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/hooks", get(list))
        .route("/v1/hooks/{hook}/test", post(test))
        .route("/v1/hooks/{hook}/secret", get(secret))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, test, secret))]
pub(super) struct Described;

fn unknown(error: LookupError) -> Problem {
    problem(StatusCode::NOT_FOUND, error.to_string())
}

/// The hooks of the configuration, and how each does
#[utoipa::path(
    get,
    path = "/v1/hooks",
    operation_id = "listHooks",
    tag = "agent",
    responses((status = 200, description = "Done.", body = HooksPage))
)]
async fn list(State(api): State<Api>) -> Json<HooksPage> {
    Json(HooksPage { hooks: api.handle.alerts().hooks().list() })
}

/// Calls a hook once, now, with an event of the type `test`
#[utoipa::path(
    post,
    path = "/v1/hooks/{hook}/test",
    operation_id = "testHook",
    tag = "agent",
    params(("hook" = String, Path, description = "Its name.")),
    request_body = NoArguments,
    responses(
        (status = 200, description = "It was called.", body = HookTestReply),
        (status = 404),
    )
)]
async fn test(
    State(api): State<Api>,
    Path(hook): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HookTestReply>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(api.handle.alerts().hooks().test(&hook).await.map_err(unknown)?))
}

/// The secret with which the receiver of a hook checks its requests
#[utoipa::path(
    get,
    path = "/v1/hooks/{hook}/secret",
    operation_id = "hookSecret",
    tag = "agent",
    params(("hook" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "Done.", body = HookSecretReply),
        (status = 404),
    )
)]
async fn secret(
    State(api): State<Api>,
    Path(hook): Path<String>,
) -> Result<Json<HookSecretReply>, Problem> {
    Ok(Json(api.handle.alerts().hooks().secret(&hook).map_err(unknown)?))
}
