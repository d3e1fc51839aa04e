//! The agent's API on loopback: JSON for the command line and other programs of this user.
//!
//! | call | does |
//! |---|---|
//! | `GET /healthz` | 204 while the agent runs; no data, no token |
//! | `GET /readyz` | 200 when the agent can work, else 503; no token, see [`ready`] |
//! | `GET /metrics` | the agent in numbers, for Prometheus, see `metrics` |
//! | `GET /v1/status[?revision=N&timeout_ms=T]` | the [`Status`]; with `revision`, as soon as it is newer than that, or after `timeout_ms` |
//! | `POST /v1/check` `{}` | answers once the status includes everything that the store held at the call |
//! | `POST /v1/ticket` `{"ttl_ms", "verify", "uses"}` | a [`TicketReply`] |
//! | `GET /v1/tickets`, `DELETE /v1/tickets/{id}` | the tickets that still let somebody in; ends one, or `all` |
//! | `POST /v1/pair` `{"ticket", "verify"}` | a [`PairReply`] |
//! | `POST /v1/pair/confirm` `{"short_code", "same"}` | a [`PairingStatus`] |
//! | `DELETE /v1/peers/{device}` | a [`RemoveReply`]; removes a device, given by name, node ID or a unique start of either; `?dry_run=true`, `?with_introduced=true` |
//! | `POST /v1/rename` `{"name"}` | gives this device another name; a [`RenameReply`] |
//! | `GET /v1/checkup` | checks of the network and of the clock, for `doctor`; a [`Checkup`](answers::Checkup) |
//! | `GET /v1/alerts`, `POST /v1/alerts/{alert}/ack` `{}` | what needs attention, see [`alerts`] |
//! | `GET /v1/hooks`, `POST /v1/hooks/{hook}/test` `{}`, `GET /v1/hooks/{hook}/secret` | what is called with events, see [`hooks`] |
//! | `GET`, `PATCH /v1/config` | the configuration, see [`config`] |
//! | `POST /v1/fetch` `{"hashes","now"}` | requests assets from other devices; a [`FetchReply`] reports the state of each |
//! | `GET`, `POST /v1/want`, `POST /v1/copies`, `POST /v1/site`, `GET /v1/assets/{hash}/holders` | what this device wants and who holds what, see [`copies`] |
//! | `POST /v1/verify` `{"hashes"}` | reads assets now, see [`verify`] |
//! | `POST /v1/safe` `{"hashes","copies","sites","within_ms"}` | asks other devices for proofs, see [`proofs`] |
//! | `POST /v1/evict` `{"hashes","copies","sites","dry_run"}` | deletes copies here that others keep, see [`proofs`] |
//! | `GET`, `POST /v1/forget` `{"hash","reason"}` or `{"hash","undo":true}` | wishes to forget assets, see [`forgetting`] |
//! | `POST /v1/ingest` | many small assets at once, see [`ingest`] |
//! | `GET /v1/assets`, `GET /v1/assets/find` | lists assets, finds the one that a text names, see `assets` |
//! | `PATCH /v1/assets/{hash}/meta` | edits an asset's metadata, see `assets` |
//! | `GET /v1/assets/{hash}/why` | why an asset is, or is not, on each device; an [`AssetWhy`](crate::core::why::AssetWhy) |
//! | `/v1/records/…`, `/v1/own/…`, `POST /v1/batch` | records, see `records` |
//! | `/v1/events/…` | event streams, see `events` |
//! | `/v1/folders/…`, `GET /v1/locate` | shared folders, see `folders` |
//! | `GET /v1/watch`, `GET /v1/changes` | records as they change, see `watch` |
//! | `GET /v1/members`, `/v1/journal/…` | the journal as a whole, see `journal` |
//! | `POST /v1/page/link`, `POST /v1/page/revoke` | sign browsers in to the page and out of it, see [`page`] |
//! | `GET`, `DELETE /v1/dav`, `POST /v1/dav/password` `{}` | WebDAV and its password, see [`dav`] |
//! | `GET /openapi.json` | all of this and of the store's API, as OpenAPI 3.1 |
//!
//! Beside them, `up` serves the people's endpoints ([`crate::http::people`]), and with the embedded
//! store the whole store API ([`crate::http::store_api`]).
//!
//! Errors are problem documents (RFC 9457). [`crate::http::guard`] checks `Host`, `Origin`,
//! `Referer` and the token before any route. A body is read only when its content type is exactly
//! the one expected, which keeps web forms out; `GET` and `HEAD` change nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, OpenApi};

use crate::agent::handle::{
    Handle, LeaveReply, PairReply, RemoveReply, RemoveRequest, RenameReply, RequestError,
    RevokeReply, TicketReply, TicketTerms,
};
use crate::clock::wall_ms;
use crate::core::fetches::{FetchReply, FetchRequest};
use crate::http::extract::{Path, Query, json_body, secret_json_body};
use crate::http::problem::{Problem, problem};
use crate::replica::status::{PairingStatus, Status};

use answers::{Done, TicketView, TicketsPage};
use requests::{ConfirmRequest, NoArguments, RedeemRequest, RenameRequest, TicketRequest};
use watch::WATCHERS_MAX;

pub mod alerts;
pub mod answers;
mod assets;
mod checkup;
pub mod config;
pub mod copies;
pub mod dav;
mod events;
mod filter;
mod folders;
pub mod forgetting;
pub mod hooks;
pub mod ingest;
mod journal;
pub mod json;
mod metrics;
mod openapi;
pub mod page;
pub mod places;
pub mod proofs;
pub mod ready;
mod records;
pub mod requests;
pub mod sentence;
pub mod verify;
mod watch;

/// The largest body of a request: a name, a ticket or hashes.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

/// The longest wait for a new status. A watcher then asks again. So a watcher that is gone does not
/// occupy a connection for ever.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(60);

const TICKET_TTL_DEFAULT: Duration = Duration::from_secs(600);

/// The routes of a running agent, without those of [`crate::http::people`]. When `stop` is cancelled,
/// waiting requests are answered. Must be served behind a [`crate::http::guard::Guard`].
pub fn router(handle: Handle, stop: CancellationToken) -> Router {
    let ingest = ingest::router(handle.store());
    Router::new()
        .route("/healthz", get(async || health()))
        .route("/openapi.json", get(async || description()))
        .route("/v1/status", get(status))
        .route("/v1/check", post(check))
        .route("/v1/ticket", post(ticket))
        .route("/v1/tickets", get(tickets))
        .route("/v1/tickets/{id}", delete(revoke))
        .route("/v1/pair", post(pair))
        .route("/v1/pair/confirm", post(confirm))
        .route("/v1/peers/{device}", delete(remove))
        .route("/v1/rename", post(rename))
        .route("/v1/leave", post(leave))
        .route("/v1/fetch", post(fetch))
        .merge(assets::router())
        .merge(copies::router())
        .merge(checkup::router())
        .merge(records::router())
        .merge(events::router())
        .merge(watch::router())
        .merge(journal::router())
        .merge(verify::router())
        .merge(proofs::router())
        .merge(forgetting::router())
        .merge(folders::router())
        .merge(alerts::router())
        .merge(hooks::router())
        .merge(metrics::router())
        .merge(ready::router())
        .with_state(Api {
            handle,
            stop,
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            verifies: Arc::new(Semaphore::new(verify::VERIFIES_MAX)),
            gathers: Arc::new(Semaphore::new(proofs::GATHERS_MAX)),
            probe: ready::DiskProbe::default(),
        })
        .merge(ingest)
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(
    health,
    description,
    status,
    check,
    ticket,
    tickets,
    revoke,
    pair,
    confirm,
    remove,
    rename,
    leave,
    fetch
))]
struct Described;

#[derive(Clone)]
struct Api {
    handle: Handle,
    stop: CancellationToken,
    watchers: Arc<Semaphore>,
    verifies: Arc<Semaphore>,
    gathers: Arc<Semaphore>,
    probe: ready::DiskProbe,
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

/// Reports that the agent runs
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "health",
    tag = "agent",
    security(()),
    responses((status = 204, description = "The agent runs."))
)]
fn health() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// This document
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "describe",
    tag = "agent",
    responses((status = 200, description = "Done.", body = serde_json::Value))
)]
fn description() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], openapi::document())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct StatusQuery {
    /// Answer as soon as the status is newer than this revision.
    revision: Option<u64>,
    /// Answer after this time at the latest; at most 60,000.
    timeout_ms: Option<u64>,
}

/// The current status
#[utoipa::path(
    get,
    path = "/v1/status",
    operation_id = "status",
    tag = "agent",
    params(StatusQuery),
    responses(
        (status = 200, description = "Done.", body = Status),
    )
)]
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

/// Reads and checks a request's body.
async fn request<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    json_body(headers, body, REQUEST_BYTES_MAX).await
}

/// The problem for a cursor that the journal does not know.
fn gone() -> Problem {
    let detail = "the journal does not know this cursor: it began anew or was put back to an \
                  earlier state since, so read everything again";
    problem(StatusCode::GONE, detail)
}

/// Answers once the status includes everything that the store held at the call
#[utoipa::path(
    post,
    path = "/v1/check",
    operation_id = "check",
    tag = "agent",
    request_body = NoArguments,
    responses(
        (status = 200, description = "Done.", body = Done),
    )
)]
async fn check(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    api.handle.check().await?;
    Ok(Json(Done {}))
}

/// Requests assets from other devices and reports the state of each
///
/// A request is remembered for 30 s: repeat it until all assets are `here`. `nowhere`: no connected
/// device holds the asset. `resting`: it arrived damaged or there was no space; it is tried again
/// later. A unique prefix of a hash suffices if the asset is known to be missing.
#[utoipa::path(
    post,
    path = "/v1/fetch",
    operation_id = "fetch",
    tag = "agent",
    request_body = FetchRequest,
    responses(
        (status = 200, description = "The state of each, in the order of the request.", body = FetchReply),
        (status = 404),
    )
)]
async fn fetch(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FetchReply>, Problem> {
    let request: FetchRequest = request(&headers, body).await?;
    Ok(Json(api.handle.fetch(request).await?))
}

/// Makes a ticket that lets other devices join
#[utoipa::path(
    post,
    path = "/v1/ticket",
    operation_id = "invite",
    tag = "agent",
    request_body = TicketRequest,
    responses(
        (status = 200, description = "Done.", body = TicketReply),
    )
)]
async fn ticket(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TicketReply>, Problem> {
    let request: TicketRequest = request(&headers, body).await?;
    let ttl = request.ttl_ms.map_or(TICKET_TTL_DEFAULT, Duration::from_millis);
    let (verify, uses) = (request.verify, request.uses.unwrap_or(1));
    Ok(Json(api.handle.ticket_on(TicketTerms { ttl, verify, uses }).await?))
}

/// Lists the tickets of this device that still let somebody in
#[utoipa::path(
    get,
    path = "/v1/tickets",
    operation_id = "tickets",
    tag = "agent",
    responses((status = 200, description = "The tickets, the oldest first; their secrets are not kept.", body = TicketsPage))
)]
async fn tickets(State(api): State<Api>) -> Json<TicketsPage> {
    let tickets = api.handle.journal().roster().tickets(wall_ms());
    Json(TicketsPage { tickets: tickets.into_iter().map(TicketView::from).collect() })
}

/// Ends a ticket before its time
#[utoipa::path(
    delete,
    path = "/v1/tickets/{id}",
    operation_id = "revokeTicket",
    tag = "agent",
    params(("id" = String, Path, description = "Its name; `all` for all.")),
    responses(
        (status = 200, description = "Done, and durable.", body = RevokeReply),
        (status = 404),
    )
)]
async fn revoke(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<RevokeReply>, Problem> {
    let id = (id != "all").then_some(id);
    Ok(Json(api.handle.revoke(id).await?))
}

/// Joins the group of the device that made a ticket
#[utoipa::path(
    post,
    path = "/v1/pair",
    operation_id = "join",
    tag = "agent",
    request_body = RedeemRequest,
    responses(
        (status = 200, description = "Done.", body = PairReply),
    )
)]
async fn pair(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PairReply>, Problem> {
    let request: RedeemRequest = secret_json_body(&headers, body, REQUEST_BYTES_MAX).await?;
    Ok(Json(match request.verify {
        true => api.handle.pair_to_verify(request.ticket).await?,
        false => api.handle.pair(request.ticket).await?,
    }))
}

/// Confirms or denies that the device that is pairing with this one shows the same digits
#[utoipa::path(
    post,
    path = "/v1/pair/confirm",
    operation_id = "confirmPairing",
    tag = "agent",
    request_body = ConfirmRequest,
    responses(
        (status = 200, description = "Done.", body = PairingStatus),
        (status = 404),
    )
)]
async fn confirm(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PairingStatus>, Problem> {
    let ConfirmRequest { short_code, same } = request(&headers, body).await?;
    Ok(Json(api.handle.confirm(short_code, same).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    /// Also remove the devices that it added, except those through which this device is a member.
    #[serde(default)]
    with_introduced: bool,
    /// Only report which devices would be removed.
    #[serde(default)]
    dry_run: bool,
}

/// Removes a device from the group, for good
#[utoipa::path(
    delete,
    path = "/v1/peers/{device}",
    operation_id = "removeDevice",
    tag = "agent",
    params(("device" = String, Path, description = "Its name, its node ID or a unique start of either."), RemoveQuery),
    responses(
        (status = 200, description = "Done.", body = RemoveReply),
        (status = 404),
    )
)]
async fn remove(
    State(api): State<Api>,
    Path(device): Path<String>,
    Query(RemoveQuery { with_introduced, dry_run }): Query<RemoveQuery>,
) -> Result<Json<RemoveReply>, Problem> {
    Ok(Json(api.handle.remove(RemoveRequest { device, with_introduced, dry_run }).await?))
}

/// Leaves the group; a device that was removed starts over as a new one
#[utoipa::path(
    post,
    path = "/v1/leave",
    operation_id = "leave",
    tag = "agent",
    request_body = NoArguments,
    responses(
        (status = 200, description = "Done.", body = LeaveReply),
    )
)]
async fn leave(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LeaveReply>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(api.handle.leave().await?))
}

/// Gives this device another name
#[utoipa::path(
    post,
    path = "/v1/rename",
    operation_id = "rename",
    tag = "agent",
    request_body = RenameRequest,
    responses(
        (status = 200, description = "Done.", body = RenameReply),
    )
)]
async fn rename(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RenameReply>, Problem> {
    let request: RenameRequest = request(&headers, body).await?;
    Ok(Json(api.handle.rename(request.name).await?))
}
