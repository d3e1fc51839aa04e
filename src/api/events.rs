//! Event streams under `/v1/events`: append-only, numbered from 0 for each stream and log, read in
//! the order of arrival. `device` is the stream in which every agent tells what happens on it.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::json::{EventPlace, bad_request, event_data, event_json, parse_device, parse_hash};
use super::records::write;
use super::{Api, gone, json_body, watch};
use crate::core::ids::{LogId, NodeId};
use crate::core::journal::draft::{Draft, DraftChange};
use crate::http::problem::Problem;
use crate::state::journal::{Cursor, EventRow, JournalError, JournalReader};

/// A body: the longest data, every byte escaped.
const EVENT_BODY_BYTES_MAX: u64 = 256 * 1024;

/// Events of a listing when the request does not say how many, and the most of them.
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1000;

/// Events looked at for one listing: a filter that fits few may end a page early.
const SCANNED_MAX: usize = 20_000;

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/events/{stream}", get(list).post(append))
        .route("/v1/events/{stream}/watch", get(watch::events))
}

/// Which events are wanted; all conditions given must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct EventFilter {
    since_ms: u64,
    author: Option<NodeId>,
    hash: Option<String>,
}

impl EventFilter {
    /// Reads the conditions of a query.
    pub(super) fn parse(
        since_ms: Option<u64>,
        author: Option<&str>,
        hash: Option<&str>,
    ) -> Result<Self, Problem> {
        Ok(Self {
            since_ms: since_ms.unwrap_or(0),
            author: author.map(parse_device).transpose()?,
            hash: hash.map(|hash| parse_hash(hash).map(|hash| hash.to_string())).transpose()?,
        })
    }

    pub(super) fn fits(&self, event: &EventRow) -> bool {
        event.hlc.ms() >= self.since_ms
            && self.author.is_none_or(|author| author == event.author)
            && self.hash.as_ref().is_none_or(|hash| {
                let data: Option<Value> = serde_json::from_slice(&event.data).ok();
                data.is_some_and(|data| data["hash"] == **hash)
            })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
    since_ms: Option<u64>,
    author: Option<String>,
    hash: Option<String>,
}

async fn list(
    State(api): State<Api>,
    Path(stream): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be 1 to {LIST_MAX}, got {limit}")));
    }
    let filter =
        EventFilter::parse(query.since_ms, query.author.as_deref(), query.hash.as_deref())?;
    let after = query.after.as_deref().map(EventPlace::parse).transpose()?;
    let read = move |journal: &JournalReader| {
        let Some(epoch) = epoch_for(journal, after)? else { return Ok(None) };
        let mut place = after.map_or((0, 0), |after| (after.arr, after.index));
        let (mut events, mut scanned, mut more) = (Vec::new(), 0, true);
        while more && events.len() < limit && scanned < SCANNED_MAX {
            let page = journal.events(&stream, place, limit - events.len())?;
            scanned += page.events.len();
            (place, more) = (page.next, page.more);
            events.extend(page.events.into_iter().filter(|event| filter.fits(event)));
        }
        let (arr, index) = place;
        Ok(Some((events, EventPlace { epoch, arr, index }, more)))
    };
    let (events, next, more) = api.handle.journal().read(read).await?.ok_or_else(gone)?;
    let events: Vec<_> = events.iter().map(event_json).collect();
    Ok(Json(json!({ "events": events, "next": next.text(), "more": more })))
}

/// The journal's epoch; `None` when the journal does not know the place to read on from.
pub(super) fn epoch_for(
    journal: &JournalReader,
    after: Option<EventPlace>,
) -> Result<Option<LogId>, JournalError> {
    let epoch = journal.cursor_now()?.ok_or(JournalError::NoGroup)?.epoch;
    let is_known = match after {
        Some(EventPlace { epoch, arr, .. }) => journal.knows(&Cursor { epoch, arr })?,
        None => true,
    };
    Ok(is_known.then_some(epoch))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Append {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

async fn append(
    State(api): State<Api>,
    Path(stream): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Append { kind, data } = json_body(&headers, body, EVENT_BODY_BYTES_MAX).await?;
    let event = DraftChange::Event { stream, kind, data: event_data(&data) };
    write(&api, Draft { changes: vec![event], expect: Vec::new() }).await
}
