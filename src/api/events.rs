//! Event streams under `/v1/events`: append-only, numbered from 0 for each stream and log, read in
//! the order of arrival. Every agent writes what happens on its device to the stream `device`.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::answers::{EventsPage, Gap, NumberedEvents, NumberedLog, Written};
use super::filter::{EventFilter, asset_names, epoch_for};
use super::json::{event, event_data};
use super::places::EventPlace;
use super::records::write;
use super::{Api, gone, watch};
use crate::core::ids::{Hash, LogId, NodeId};
use crate::core::journal::draft::{Draft, DraftChange};
use crate::core::limits::{PAGE_READS_MAX, PAGE_ROWS_MAX};
use crate::http::extract::{Path, Query, json_body};
use crate::http::problem::{Problem, bad_request, problem};
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
        .route("/v1/events/{stream}/numbered", get(by_number))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, append, by_number, watch::events))]
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
    let limit = checked_limit(query.limit)?;
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct NumberQuery {
    /// The device that wrote the events.
    device: NodeId,
    /// Which of its logs; its newest when left out.
    log: Option<LogId>,
    /// Only events with a greater number; all when left out.
    after_seq: Option<u64>,
    /// The size of the page; default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Lists the events of one device in the order of their numbers, and says which are missing
#[utoipa::path(
    get,
    path = "/v1/events/{stream}/numbered",
    operation_id = "listEventsByNumber",
    tag = "events",
    params(("stream" = String, Path, description = "The stream's name, at most 64 bytes."), NumberQuery),
    responses((status = 200, description = "Done.", body = NumberedEvents), (status = 404), (status = 409))
)]
async fn by_number(
    State(api): State<Api>,
    Path(stream): Path<String>,
    Query(query): Query<NumberQuery>,
) -> Result<Json<NumberedEvents>, Problem> {
    let limit = checked_limit(query.limit)?;
    let NumberQuery { device, log, after_seq, .. } = query;
    let from_seq = after_seq.map_or(0, |after_seq| after_seq.saturating_add(1));
    let read = move |journal: &JournalReader| {
        let logs = journal.event_logs(&stream, &device)?;
        let log = log.or(logs.last().map(|(log, _)| *log));
        let Some(log) = log else { return Ok((logs, None, Vec::new(), BTreeMap::new())) };
        // One more tells whether there is more.
        let rows = journal.numbered_events(&stream, &log, from_seq, limit + 1)?;
        let names = asset_names(journal, &stream, &rows)?;
        Ok((logs, Some(log), rows, names))
    };
    let (logs, log, mut rows, names) = api.handle.journal().read(read).await?;
    let next_seq =
        log.map(|log| logs.iter().find(|(known, _)| *known == log).map(|(_, next)| *next));
    let Some(next_seq) = next_seq.unwrap_or(Some(0)) else {
        let detail = "the device has no such log in this stream";
        return Err(problem(StatusCode::NOT_FOUND, detail));
    };
    let more = rows.len() > limit;
    rows.truncate(limit);
    let numbers: Vec<u64> = rows.iter().map(|row| row.event_seq).collect();
    let end = if more { None } else { Some(next_seq) };
    Ok(Json(NumberedEvents {
        device,
        logs: logs.into_iter().map(|(log, next_seq)| NumberedLog { log, next_seq }).collect(),
        log,
        events: rows.iter().map(|row| event(row, &names)).collect(),
        gaps: gaps(from_seq, &numbers, end),
        last_seq: numbers.last().copied(),
        more,
    }))
}

/// The numbers from `from_seq` on that are not among `numbers`, which ascend; up to `end`, where the
/// log ends, if all is read.
fn gaps(from_seq: u64, numbers: &[u64], end: Option<u64>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut expected = from_seq;
    for number in numbers.iter().copied().chain(end) {
        if number > expected {
            gaps.push(Gap { from_seq: expected, to_seq: number - 1 });
        }
        expected = expected.max(number.saturating_add(1));
    }
    gaps
}

fn checked_limit(limit: Option<usize>) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(LIST_DEFAULT);
    match (1..=PAGE_ROWS_MAX).contains(&limit) {
        true => Ok(limit),
        false => Err(bad_request(format!("limit must be 1 to {PAGE_ROWS_MAX}, got {limit}"))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_numbers_are_told_before_between_and_at_the_end() {
        let of = |from_seq, numbers: &[u64], end| -> Vec<(u64, u64)> {
            gaps(from_seq, numbers, end).iter().map(|gap| (gap.from_seq, gap.to_seq)).collect()
        };
        assert_eq!(of(0, &[0, 1, 2], Some(3)), []);
        assert_eq!(of(0, &[2, 3, 7, 7], Some(10)), [(0, 1), (4, 6), (8, 9)]);
        assert_eq!(of(5, &[6], None), [(5, 5)], "there is more to read");
        assert_eq!(of(5, &[], Some(5)), []);
        assert_eq!(of(9, &[], Some(5)), []);
        assert_eq!(of(0, &[u64::MAX], None), [(0, u64::MAX - 1)]);
    }
}
