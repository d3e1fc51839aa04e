//! The agent's API on loopback: JSON for the command line and other programs of this user.
//!
//! | call | does |
//! |---|---|
//! | `GET /healthz` | 204 while the agent runs; no data, no token |
//! | `GET /v1/status[?revision=N&timeout_ms=T]` | the [`Status`]; with `revision`, as soon as it is newer than that, or after `timeout_ms` |
//! | `POST /v1/check` `{}` | answers once all that the store held at the call shows in the status |
//! | `POST /v1/ticket` `{"ttl_ms", "verify"}` | a [`TicketReply`] |
//! | `POST /v1/pair` `{"ticket", "verify"}` | a [`PairReply`] |
//! | `POST /v1/pair/confirm` `{"short_code", "same"}` | a [`PairingStatus`] |
//! | `DELETE /v1/peers/{device}` | a [`RemoveReply`]; name, node ID or unique start of it; `?dry_run=true`, `?with_introduced=true` |
//! | `POST /v1/rename` `{"name"}` | gives this device another name; a [`RenameReply`] |
//! | `POST /v1/fetch` `{"hashes","now"}` | has assets of other devices sent here; a [`FetchReply`] tells how they stand |
//! | `POST /v1/ingest` | many small assets at once, see [`ingest`] |
//! | `PATCH /v1/assets/{hash}/meta` | edits an asset's metadata, see `assets` |
//! | `/v1/records/…`, `/v1/own/…`, `POST /v1/batch` | records, see `records` |
//! | `/v1/events/…` | event streams, see `events` |
//! | `GET /v1/watch` | records as they change, see `watch` |
//! | `GET /v1/members`, `/v1/journal/…` | the journal as a whole, see `journal` |
//! | `GET /openapi.json` | all of this and of the store's API, as OpenAPI 3.1 |
//!
//! Beside them, `up` serves the people's endpoints ([`crate::http::people`]), and with the embedded
//! store the whole store API ([`crate::http::store_api`]).
//!
//! Errors are problem documents (RFC 9457). `Host`, `Origin`, `Referer` and the token are judged
//! before any of this is reached, by [`crate::http::guard`]. A body is read only when its content
//! type is exactly the one expected, which keeps web forms out; `GET` and `HEAD` change nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::agent::handle::{
    FetchOrder, FetchReply, Handle, LeaveReply, PairReply, RemoveOrder, RemoveReply, RenameReply,
    RequestError, TicketReply,
};
use crate::http::problem::{Problem, problem};
use crate::http::upload::{check_announced, check_type, collect};
use crate::replica::status::{PairingStatus, Status};

use watch::WATCHERS_MAX;

mod assets;
mod events;
pub mod ingest;
mod journal;
mod json;
mod records;
mod watch;

/// The description of every route that an agent serves; `tests/api.rs` holds the two together.
const OPENAPI: &str = include_str!("openapi.json");

/// Orders are a name or a ticket.
const ORDER_BYTES_MAX: u64 = 64 * 1024;

/// A watcher asks anew at least this often, so that a lost one does not hold its place for ever.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(60);

const TICKET_TTL_DEFAULT: Duration = Duration::from_secs(600);

/// The routes of the API over a running agent, but the people's. When `stop` is cancelled, watchers
/// get their answer. Goes behind a [`crate::http::guard::Guard`].
pub fn router(handle: Handle, stop: CancellationToken) -> Router {
    let ingest = ingest::router(handle.store());
    Router::new()
        .route("/healthz", get(async || StatusCode::NO_CONTENT))
        .route("/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)))
        .route("/v1/status", get(status))
        .route("/v1/check", post(check))
        .route("/v1/ticket", post(ticket))
        .route("/v1/pair", post(pair))
        .route("/v1/pair/confirm", post(confirm))
        .route("/v1/peers/{device}", delete(remove))
        .route("/v1/rename", post(rename))
        .route("/v1/leave", post(leave))
        .route("/v1/fetch", post(fetch))
        .merge(assets::router())
        .merge(records::router())
        .merge(events::router())
        .merge(watch::router())
        .merge(journal::router())
        .with_state(Api { handle, stop, watchers: Arc::new(Semaphore::new(WATCHERS_MAX)) })
        .merge(ingest)
}

#[derive(Clone)]
struct Api {
    handle: Handle,
    stop: CancellationToken,
    watchers: Arc<Semaphore>,
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let status = match &error {
            RequestError::Unknown(_) => StatusCode::NOT_FOUND,
            RequestError::Refused(_) => StatusCode::FORBIDDEN,
            RequestError::Temporary(_) => StatusCode::SERVICE_UNAVAILABLE,
            RequestError::Invalid(_) => StatusCode::BAD_REQUEST,
            RequestError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, error.to_string())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusQuery {
    revision: Option<u64>,
    timeout_ms: Option<u64>,
}

async fn status(State(api): State<Api>, Query(query): Query<StatusQuery>) -> Json<Status> {
    if let Some(revision) = query.revision {
        let asked = query.timeout_ms.map_or(STATUS_WAIT_MAX, Duration::from_millis);
        tokio::select! {
            () = api.handle.changed(revision) => {}
            () = api.stop.cancelled() => {}
            () = tokio::time::sleep(asked.min(STATUS_WAIT_MAX)) => {}
        }
    }
    Json(api.handle.status())
}

/// An order's body, when it is what it must be.
async fn order<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    json_body(headers, body, ORDER_BYTES_MAX).await
}

/// A body that is a JSON object.
async fn json_body<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: u64,
) -> Result<T, Problem> {
    check_type(headers, "application/json")?;
    check_announced(headers, limit_bytes)?;
    let body = collect(body, limit_bytes).await?;
    // serde would take an array for an object's members in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(problem(StatusCode::BAD_REQUEST, "the body is not a JSON object"));
    }
    // serde's message may quote the body, and the body may hold a ticket.
    serde_json::from_slice(&body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        problem(StatusCode::BAD_REQUEST, format!("the body is not the JSON expected: {place}"))
    })
}

/// The cursor is none that the journal gave out.
fn gone() -> Problem {
    let detail = "the journal does not know this cursor: it began anew or was put back to an \
                  earlier state since, so read everything again";
    problem(StatusCode::GONE, detail)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

async fn check(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let NoArguments {} = order(&headers, body).await?;
    api.handle.check().await?;
    Ok(Json(json!({})))
}

async fn fetch(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FetchReply>, Problem> {
    let order: FetchOrder = order(&headers, body).await?;
    Ok(Json(api.handle.fetch(order).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TicketOrder {
    ttl_ms: Option<u64>,
    /// People must compare the digits.
    #[serde(default)]
    verify: bool,
}

async fn ticket(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TicketReply>, Problem> {
    let order: TicketOrder = order(&headers, body).await?;
    let ttl = order.ttl_ms.map_or(TICKET_TTL_DEFAULT, Duration::from_millis);
    Ok(Json(match order.verify {
        true => api.handle.ticket_to_verify(ttl).await?,
        false => api.handle.ticket(ttl).await?,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PairOrder {
    ticket: String,
    /// People must compare the digits.
    #[serde(default)]
    verify: bool,
}

async fn pair(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PairReply>, Problem> {
    let order: PairOrder = order(&headers, body).await?;
    Ok(Json(match order.verify {
        true => api.handle.pair_to_verify(order.ticket).await?,
        false => api.handle.pair(order.ticket).await?,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmOrder {
    short_code: String,
    same: bool,
}

async fn confirm(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PairingStatus>, Problem> {
    let ConfirmOrder { short_code, same } = order(&headers, body).await?;
    Ok(Json(api.handle.confirm(short_code, same).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    #[serde(default)]
    with_introduced: bool,
    #[serde(default)]
    dry_run: bool,
}

async fn remove(
    State(api): State<Api>,
    Path(device): Path<String>,
    Query(RemoveQuery { with_introduced, dry_run }): Query<RemoveQuery>,
) -> Result<Json<RemoveReply>, Problem> {
    Ok(Json(api.handle.remove(RemoveOrder { device, with_introduced, dry_run }).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaveOrder {}

async fn leave(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LeaveReply>, Problem> {
    let LeaveOrder {} = order(&headers, body).await?;
    Ok(Json(api.handle.leave().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenameOrder {
    name: String,
}

async fn rename(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RenameReply>, Problem> {
    let order: RenameOrder = order(&headers, body).await?;
    Ok(Json(api.handle.rename(order.name).await?))
}
