//! The store's change feed as a stream of events.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::Server;
use crate::core::ids::Hash;
use crate::http::events::{answer, event};
use crate::http::problem::{Problem, problem};
use crate::store::embedded::{EmbeddedStore, FeedKind, FeedLine};
use crate::store::{Cursor, Store, StoreError};

/// The most event streams: half of the connections, so that they never take all.
pub(super) const EVENT_STREAMS_MAX: usize = 32;

/// The feed rows read at once for an event stream.
const EVENT_PAGE_ROWS: usize = 256;

/// The store's change feed
#[utoipa::path(
    get,
    path = "/sync/events",
    operation_id = "storeEvents",
    tag = "store",
    params(
        ("key" = Option<String>, Query, description = "The token, for browsers' EventSource."),
        ("Last-Event-ID" = Option<String>, Header, description = "The cursor of the last line seen."),
    ),
    responses(
        (status = 200, description = "`asset`, `meta`, `gone` and `reset` events; see `proto/store.proto`.", body = String, content_type = "text/event-stream"),
    )
)]
pub(super) async fn events(
    State(server): State<Server>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let permit = server.event_streams.clone().try_acquire_owned().map_err(|_| {
        problem(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("all {EVENT_STREAMS_MAX} event streams are taken"),
        )
    })?;
    let newest = server.store.info().await?.newest_cursor;
    let (after, first) = match headers.get("last-event-id") {
        None => (newest, None),
        Some(id) => match id.to_str().ok().and_then(|text| text.parse::<Cursor>().ok()) {
            Some(cursor) if cursor <= newest => (cursor, None),
            // A cursor that this store never gave out: it was replaced, or restored from an older
            // copy.
            _ => {
                let reset = Event::default().event("reset").id(newest.to_string());
                (newest, Some(reset.data("{}")))
            }
        },
    };
    let feed = feed(server.store.clone(), after);
    let feed = stream::iter(first.map(Ok)).chain(feed).map(move |event| {
        let _held = &permit;
        event
    });
    Ok(answer(feed))
}

/// The feed after a cursor, without end; it ends with an error when the store fails or is closed.
fn feed(store: EmbeddedStore, after: Cursor) -> impl Stream<Item = Result<Event, StoreError>> {
    // Subscribes before reading the feed, so that a later addition wakes it again.
    let newest = store.subscribe();
    let pages = stream::try_unfold((store, newest, after), async |(store, mut newest, after)| {
        loop {
            newest.mark_unchanged();
            let lines = store.feed(after, EVENT_PAGE_ROWS).await?;
            if let Some(last) = lines.last() {
                let after = last.cursor;
                return Ok(Some((lines, (store, newest, after))));
            }
            let gone = |_| StoreError::Unreachable("the store is closed".into());
            newest.changed().await.map_err(gone)?;
        }
    });
    pages
        .map_ok(|lines| stream::iter(lines.into_iter().map(|line| Ok(line_event(&line)))))
        .try_flatten()
}

/// The data of an event of the feed.
#[derive(Serialize)]
#[serde(untagged)]
enum FeedData {
    Asset { hash: Hash, size: u64, timestamp: i64 },
    Meta { hash: Hash, version: u64 },
    Gone { hash: Hash },
}

/// A line of the feed as an event.
fn line_event(line: &FeedLine) -> Event {
    let (name, data) = match line.kind {
        FeedKind::Asset { digest, timestamp_ms: timestamp } => {
            ("asset", FeedData::Asset { hash: digest.hash, size: digest.size_bytes, timestamp })
        }
        FeedKind::Meta { hash, version } => ("meta", FeedData::Meta { hash, version }),
        FeedKind::Gone { hash } => ("gone", FeedData::Gone { hash }),
    };
    event(name, &data).id(line.cursor.to_string())
}
