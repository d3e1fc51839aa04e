//! Watching records and events: changes as server-sent events.
//!
//! W1  Nothing is missed: a watcher reads from its cursor in the database, and a commit only wakes
//!     it. So a slow watcher costs no memory, and may reconnect with `Last-Event-ID`.
//! W2  Only the last event of an op carries an id, so that a watcher that resumes never skips half
//!     an op.
//! W3  A watch of records reports states, not steps: a record that changed twice may appear once.
//!
//! A stream starts with everything after the cursor, then `ready`, then each new change. `reset` means that
//! all earlier cursors are invalid, and ends the stream.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::response::sse::Event;
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{Stream, TryStreamExt as _, stream};
use serde::{Deserialize, Deserializer};
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::{IntoParams, OpenApi};

use super::answers::{Event as EventAnswer, Ready, RecordChanges, WatchedRecord};
use super::filter::{EventFilter, asset_names, epoch_for};
use super::json;
use super::places::EventPlace;
use super::{Api, gone};
use crate::core::ids::{Hash, LogId, NodeId};
use crate::http::events::{answer, event};
use crate::http::extract::{Path, Query};
use crate::http::problem::{Problem, bad_request, problem};
use crate::replica::journal::{AskError, Commits, JournalHandle};
use crate::state::journal::{ChangesPage, Cursor, EventsPage, JournalError, JournalReader};

/// The most watchers. Together with the store's event streams they are fewer than the connections.
pub(super) const WATCHERS_MAX: usize = 16;

/// The default and the largest number of changes in a page.
const CHANGES_DEFAULT: usize = 100;
const CHANGES_MAX: usize = 1000;

/// The most rows read at once for a watcher, which bounds its memory.
const PAGE_ROWS: usize = 256;

/// The route for records; the route for events is in [`super::events`].
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/watch", get(records)).route("/v1/changes", get(changes))
}

/// The description of this route.
#[derive(OpenApi)]
#[openapi(paths(records, changes), components(schemas(WatchedRecord, EventAnswer, Ready)))]
pub(super) struct Described;

/// The state of a watcher.
struct Watcher<P> {
    journal: JournalHandle,
    commits: watch::Receiver<Commits>,
    place: P,
    /// Whether `ready` was sent.
    is_ready: bool,
    /// Whether `reset` was sent.
    has_ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl<P> Watcher<P> {
    fn new(api: &Api, place: P) -> Result<Self, Problem> {
        let permit = Arc::clone(&api.watchers).try_acquire_owned().map_err(|_| {
            let detail = format!("there are {WATCHERS_MAX} watchers already, which is the limit");
            problem(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
        let journal = api.handle.journal();
        let commits = journal.commits();
        Ok(Self { journal, commits, place, is_ready: false, has_ended: false, _permit: permit })
    }
}

/// The first change that a watcher receives.
#[derive(Debug, Clone, Copy)]
enum Since {
    /// With the next change; nothing older.
    Now,
    /// With the change after this position.
    Place(Cursor),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "now" { Ok(Self::Now) } else { text.parse().map(Self::Place) }
    }
}

impl<'de> Deserialize<'de> for Since {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct RecordsQuery {
    /// Only records of this model.
    model: Option<String>,
    /// Only changes after this cursor; `now` for future ones only; default: from the beginning.
    #[param(value_type = Option<String>, pattern = "^([0-9a-f]{32}-[0-9]+|now)$")]
    since: Option<Since>,
}

/// Watches records: first their current states, then each change
///
/// `event: record`, data: a WatchedRecord; the id is a cursor. `event: ready`, data: a Ready, once
/// all current states have been sent. `event: reset` ends the stream when earlier cursors are invalid.
/// Comment lines keep the connection alive.
#[utoipa::path(
    get,
    path = "/v1/watch",
    operation_id = "watchRecords",
    tag = "records",
    params(
        RecordsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen; takes precedence over the cursor of the query."),
    ),
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
        (status = 409),
        (status = 410),
    )
)]
async fn records(
    State(api): State<Api>,
    Query(query): Query<RecordsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let RecordsQuery { model, since } = query;
    let since = match last_event_id(&headers)?.or(since) {
        Some(Since::Now) => api.handle.journal().read(|journal| journal.cursor_now()).await?,
        Some(Since::Place(cursor)) => Some(cursor),
        None => None,
    };
    // An invalid cursor is reported by the status code, not by the stream.
    let probe =
        move |journal: &JournalReader| since.map_or(Ok(true), |since| journal.knows(&since));
    if !api.handle.journal().read(probe).await? {
        return Err(gone());
    }
    let watcher = Watcher::new(&api, since)?;
    Ok(sse(stream::try_unfold(watcher, move |watcher| next_records(watcher, model.clone()))))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ChangesQuery {
    /// `cursor` of the page before; from the beginning when left out.
    after: Option<Cursor>,
    /// Only records of this model.
    model: Option<String>,
    /// The size of the page; default 100. The records of one write are never split, so a page may
    /// have some more. With a model it may have fewer or none and go on.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Lists the records that changed after a position, once
///
/// What `/v1/watch` tells as it happens, for programs that ask now and then.
#[utoipa::path(
    get,
    path = "/v1/changes",
    operation_id = "listChanges",
    tag = "records",
    params(ChangesQuery),
    responses((status = 200, description = "Done.", body = RecordChanges), (status = 409), (status = 410))
)]
async fn changes(
    State(api): State<Api>,
    Query(query): Query<ChangesQuery>,
) -> Result<Json<RecordChanges>, Problem> {
    let ChangesQuery { after, model, limit } = query;
    let limit = limit.unwrap_or(CHANGES_DEFAULT);
    if !(1..=CHANGES_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be 1 to {CHANGES_MAX}, got {limit}")));
    }
    let read =
        move |journal: &JournalReader| journal.changes(model.as_deref(), after.as_ref(), limit);
    let page = api.handle.journal().read(read).await?.ok_or_else(gone)?;
    let epoch = page.cursor.epoch;
    let changes = page.changes.iter().map(|change| json::change(epoch, change)).collect();
    Ok(Json(RecordChanges { changes, cursor: page.cursor, more: page.more }))
}

async fn next_records(
    mut watcher: Watcher<Option<Cursor>>,
    model: Option<String>,
) -> Result<Option<(Vec<Event>, Watcher<Option<Cursor>>)>, AskError> {
    loop {
        if watcher.has_ended {
            return Ok(None);
        }
        watcher.commits.mark_unchanged();
        let (since, wanted) = (watcher.place, model.clone());
        let read = move |journal: &JournalReader| {
            journal.changes(wanted.as_deref(), since.as_ref(), PAGE_ROWS)
        };
        let Some(page) = watcher.journal.read(read).await? else {
            watcher.has_ended = true;
            return Ok(Some((vec![reset()], watcher)));
        };
        let mut events = record_events(&page);
        watcher.place = Some(page.cursor);
        if !page.more && !watcher.is_ready {
            watcher.is_ready = true;
            events.push(ready(page.cursor.into()));
        }
        if !events.is_empty() {
            return Ok(Some((events, watcher)));
        }
        if !page.more {
            watcher.commits.changed().await.map_err(|_| AskError::Closed)?;
        }
    }
}

fn record_events(page: &ChangesPage) -> Vec<Event> {
    let epoch = page.cursor.epoch;
    let mut changes = page.changes.iter().peekable();
    let mut events = Vec::with_capacity(page.changes.len());
    while let Some(change) = changes.next() {
        let event = event("record", &json::change(epoch, change));
        let is_last = changes.peek().is_none_or(|next| next.arr != change.arr);
        events.push(if is_last {
            event.id(Cursor { epoch, arr: change.arr }.to_string())
        } else {
            event
        });
    }
    events
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only events after this cursor.
    after: Option<EventPlace>,
    /// Only events written since this time, in milliseconds since the Unix epoch.
    since_ms: Option<u64>,
    /// Only events of this device.
    author: Option<NodeId>,
    /// Only events whose data has this `hash`.
    hash: Option<Hash>,
}

/// Watches a stream: first its events so far, then each new one
///
/// `event: event`, data: an Event; the id is a cursor. `ready` and `reset` as in `/v1/watch`.
#[utoipa::path(
    get,
    path = "/v1/events/{stream}/watch",
    operation_id = "watchEvents",
    tag = "events",
    params(
        ("stream" = String, Path, description = "The stream's name, at most 64 bytes."),
        EventsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen; takes precedence over the cursor of the query."),
    ),
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
        (status = 409),
        (status = 410),
    )
)]
pub(super) async fn events(
    State(api): State<Api>,
    Path(stream): Path<String>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let EventsQuery { after, since_ms, author, hash } = query;
    let filter = EventFilter { since_ms, author, hash, until_arr: None };
    let after = last_event_id(&headers)?.or(after);
    let epoch = api.handle.journal().read(move |journal| epoch_for(journal, after)).await?;
    let epoch = epoch.ok_or_else(gone)?;
    let place = after.unwrap_or(EventPlace { epoch, arr: 0, index: 0 });
    let watcher = Watcher::new(&api, place)?;
    Ok(sse(stream::try_unfold(watcher, move |watcher| {
        next_events(watcher, stream.clone(), filter.clone())
    })))
}

async fn next_events(
    mut watcher: Watcher<EventPlace>,
    stream: String,
    filter: EventFilter,
) -> Result<Option<(Vec<Event>, Watcher<EventPlace>)>, AskError> {
    loop {
        if watcher.has_ended {
            return Ok(None);
        }
        watcher.commits.mark_unchanged();
        let (EventPlace { epoch, arr, index }, wanted) = (watcher.place, stream.clone());
        let read = move |journal: &JournalReader| {
            if journal.cursor_now()?.is_none_or(|now| now.epoch != epoch) {
                return Ok::<_, JournalError>(None);
            }
            let page = journal.events(&wanted, (arr, index), PAGE_ROWS)?;
            let names = asset_names(journal, &wanted, &page.events)?;
            Ok(Some((page, names)))
        };
        let Some((page, names)) = watcher.journal.read(read).await? else {
            watcher.has_ended = true;
            return Ok(Some((vec![reset()], watcher)));
        };
        let mut events = stream_events(epoch, &page, &filter, &names);
        let (arr, index) = page.next;
        watcher.place = EventPlace { epoch, arr, index };
        if !page.more && !watcher.is_ready {
            watcher.is_ready = true;
            events.push(ready(watcher.place));
        }
        if !events.is_empty() {
            return Ok(Some((events, watcher)));
        }
        if !page.more {
            watcher.commits.changed().await.map_err(|_| AskError::Closed)?;
        }
    }
}

fn stream_events(
    epoch: LogId,
    page: &EventsPage,
    filter: &EventFilter,
    names: &BTreeMap<Hash, String>,
) -> Vec<Event> {
    let mut rows = page.events.iter().filter(|event| filter.fits(event)).peekable();
    let mut events = Vec::new();
    while let Some(row) = rows.next() {
        let event = event("event", &json::event(row, names));
        // The op at the end of a page may continue on the next page.
        let place = match row.arr == page.next.0 {
            true => page.next,
            false => (row.arr, u64::MAX),
        };
        let is_last = rows.peek().is_none_or(|next| next.arr != row.arr);
        let (arr, index) = place;
        let id = EventPlace { epoch, arr, index }.to_string();
        events.push(if is_last { event.id(id) } else { event });
    }
    events
}

fn ready(cursor: EventPlace) -> Event {
    event("ready", &Ready { cursor }).id(cursor.to_string())
}

fn reset() -> Event {
    Event::default().event("reset").data("{}")
}

/// The position from which an interrupted watcher resumes.
fn last_event_id<T: FromStr<Err = String>>(headers: &HeaderMap) -> Result<Option<T>, Problem> {
    let Some(id) = headers.get("last-event-id") else { return Ok(None) };
    let text = id.to_str().map_err(|_| bad_request("Last-Event-ID is not a cursor of this API"))?;
    text.parse().map(Some).map_err(bad_request)
}

fn sse(batches: impl Stream<Item = Result<Vec<Event>, AskError>> + Send + 'static) -> Response {
    let events = batches
        .map_ok(|batch| stream::iter(batch.into_iter().map(Ok::<_, AskError>)))
        .try_flatten();
    answer(events)
}
