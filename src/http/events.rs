//! Answers that are streams of events: how an event is written, and what keeps a quiet stream alive.

use std::error::Error;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde::Serialize;

/// How often a quiet stream gets a comment line, so that neither side takes it for dead;
/// `proto/store.proto` states it.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

/// An event with JSON as its data.
pub(crate) fn event(name: &str, data: &impl Serialize) -> Event {
    // Maps have texts for keys, and numbers are finite: this cannot fail.
    Event::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}

/// The events as an answer; an error ends it.
pub(crate) fn answer<E>(events: impl Stream<Item = Result<Event, E>> + Send + 'static) -> Response
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY)).into_response()
}
