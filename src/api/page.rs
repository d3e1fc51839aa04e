//! Signing in to the page: a program of this user asks for a link, or ends all sessions.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::request;
use super::requests::NoArguments;
use crate::clock::wall_ms;
use crate::http::problem::Problem;
use crate::http::sessions::Sessions;

/// A link that signs a browser in. Not `Debug`: it is a secret until it is used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PageLink {
    /// The link; good once.
    pub url: String,
    /// When it ends, milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// The sessions that were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndedSessions {
    /// How many.
    pub sessions: usize,
}

#[derive(Clone)]
struct Doors {
    sessions: Sessions,
    /// The page's URL, without a path.
    base: String,
}

/// The routes; `base` is the URL of the page's server.
pub fn router(sessions: Sessions, base: String) -> Router {
    Router::new()
        .route("/v1/page/link", post(link))
        .route("/v1/page/revoke", post(revoke))
        .with_state(Doors { sessions, base })
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(link, revoke))]
pub(super) struct Described;

/// Makes a link that signs one browser in to the page
#[utoipa::path(
    post,
    path = "/v1/page/link",
    operation_id = "pageLink",
    tag = "agent",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = PageLink))
)]
async fn link(
    State(doors): State<Doors>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PageLink>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    let code = doors.sessions.make_code(wall_ms());
    let url = format!("{}/open?code={}", doors.base, code.text);
    Ok(Json(PageLink { url, expires_ms: code.expires_ms }))
}

/// Signs every browser out of the page, and makes links that were not used worthless
#[utoipa::path(
    post,
    path = "/v1/page/revoke",
    operation_id = "revokePage",
    tag = "agent",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = EndedSessions))
)]
async fn revoke(
    State(doors): State<Doors>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EndedSessions>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(EndedSessions { sessions: doors.sessions.revoke_all(wall_ms()) }))
}
