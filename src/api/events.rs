//! Event streams under `/v1/events`: append-only, numbered from 0 for each stream and log, read in
//! the order of arrival. Every agent writes what happens on its device to the stream `device`.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::answers::{EventsPage, Written};
use super::filter::{EventFilter, asset_names, epoch_for};
use super::json::{event, event_data};
use super::places::EventPlace;
use super::records::write;
use super::{Api, gone, watch};
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::draft::{Draft, DraftChange};
use crate::core::limits::{PAGE_READS_MAX, PAGE_ROWS_MAX};
use crate::http::extract::{Path, Query, json_body};
use crate::http::problem::{Problem, bad_request};
use crate::state::journal::JournalReader;

/// The largest body: the longest data with every byte escaped as JSON.
const EVENT_BODY_BYTES_MAX: u64 = 256 * 1024;

/// The default and the largest number of events in a page.
const LIST_DEFAULT: usize = 100;
/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/events/{stream}", get(list).post(append))
        .route("/v1/events/{stream}/watch", get(watch::events))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, append, watch::events))]
pub(super) struct Described;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// `next` of the page before.
    after: Option<EventPlace>,
    /// Only events that arrived here up to this place.
    until: Option<EventPlace>,
    /// The size of the page; default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Only events written since this time, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
    /// Only events of this device.
    author: Option<NodeId>,
    /// Only events whose data has this `hash`.
    hash: Option<Hash>,
}

/// Lists a stream's events in the order of arrival here
#[utoipa::path(
    get,
    path = "/v1/events/{stream}",
    operation_id = "listEvents",
    tag = "events",
    params(("stream" = String, Path, description = "The stream's name, at most 64 bytes."), ListQuery),
    responses(
        (status = 200, description = "Done.", body = EventsPage),
        (status = 409),
        (status = 410),
    )
)]
async fn list(
    State(api): State<Api>,
    Path(stream): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<EventsPage>, Problem> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be 1 to {PAGE_ROWS_MAX}, got {limit}")));
    }
    let ListQuery { after, until, since_ms, author, hash, .. } = query;
    let until_arr = until.map(|until| until.arr);
    let filter = EventFilter { since_ms, author, hash, until_arr };
    let read = move |journal: &JournalReader| {
        let Some(epoch) = epoch_for(journal, after)? else { return Ok(None) };
        let place = after.map_or((0, 0), |after| (after.arr, after.index));
        let page =
            journal.events_that(&stream, place, limit, PAGE_READS_MAX, |row| filter.fits(row))?;
        let names = asset_names(journal, &stream, &page.events)?;
        let events = page.events.iter().map(|row| event(row, &names)).collect();
        let (arr, index) = page.next;
        let next = EventPlace { epoch, arr, index };
        Ok(Some(EventsPage { events, next, more: page.more }))
    };
    api.handle.journal().read(read).await?.ok_or_else(gone).map(Json)
}

/// An event to append.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewEvent {
    /// The event's type, at most 64 bytes.
    #[serde(rename = "type")]
    kind: String,
    /// Any JSON, at most 32 KiB; `{"bytes": "<base64>"}` is kept as bytes.
    #[serde(default)]
    #[schema(required = false)]
    data: Value,
}

/// Appends an event to a stream
#[utoipa::path(
    post,
    path = "/v1/events/{stream}",
    operation_id = "appendEvent",
    tag = "events",
    params(("stream" = String, Path, description = "The stream's name, at most 64 bytes.")),
    request_body = NewEvent,
    responses(
        (status = 200, description = "Done.", body = Written, headers(("ETag" = String, description = "The position of the write."))),
        (status = 409),
        (status = 507),
    )
)]
async fn append(
    State(api): State<Api>,
    Path(stream): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let NewEvent { kind, data } = json_body(&headers, body, EVENT_BODY_BYTES_MAX).await?;
    let event = DraftChange::Event { stream, kind, data: event_data(&data) };
    write(&api, Draft { changes: vec![event], expect: Vec::new() }).await
}
