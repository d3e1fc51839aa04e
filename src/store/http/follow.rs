//! Reads a foreign store's event stream.
//!
//! Nothing is remembered across a break: any error ends the stream, and the reader opens a new one.
//! A core-only store must be listed every [`POLL_EVERY`] as well.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{self, HeaderName};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connection::{Request, failed};
use super::{Inner, contract};
use crate::core::ids::Hash;
use crate::store::{Cursor, StoreError, Touched};
use crate::wire::event_stream::{Event, Parser};

/// How often a core-only store is listed: its events may not resume, or may not exist.
const POLL_EVERY: Duration = Duration::from_secs(30);

/// The longest event: real ones have a hundred bytes. After a longer one the stream is given up, and
/// the store is listed.
const EVENT_BYTES_MAX: usize = 64 * 1024;

/// The store's event stream after the cursor `after`.
pub(super) fn touched(
    store: Arc<Inner>,
    after: Cursor,
) -> BoxStream<'static, Result<Touched, StoreError>> {
    let follower = Follower { store, after, state: State::Start, next_poll: None };
    let pages = stream::try_unfold(follower, async |mut follower| {
        let lines = follower.next().await?;
        Ok(Some((lines, follower)))
    });
    pages.map_ok(|lines| stream::iter(lines).map(Ok)).try_flatten().boxed()
}

/// Converts an event to a line. The cursors of a core-only store are dropped, because its listing
/// may use others.
fn line(event: &Event, is_core_only: bool) -> Touched {
    #[derive(Deserialize)]
    struct Data {
        hash: Hash,
    }
    let name = event.name.as_str();
    match name {
        "reset" => Touched::Gap,
        "asset" | "meta" => match serde_json::from_str(&event.data) {
            Ok(Data { hash }) => {
                let cursor = if is_core_only { 0 } else { event.id.parse().unwrap_or(0) };
                match name {
                    "asset" => Touched::Stored { hash, cursor },
                    _ => Touched::Edited { hash, cursor },
                }
            }
            Err(error) => {
                tracing::debug!(%error, name, "an event of the store cannot be read");
                Touched::Changed
            }
        },
        // `gone`, and events that only later versions know: list the store again. A listing that
        // finds nothing new costs little.
        _ => Touched::Changed,
    }
}

/// An event stream being followed.
struct Follower {
    store: Arc<Inner>,
    after: Cursor,
    state: State,
    /// When to list a core-only store again.
    next_poll: Option<Instant>,
}

enum State {
    Start,
    Streaming(Box<Streaming>),
    /// The store has no events: it is only listed.
    Polling,
}

struct Streaming {
    answer: Response,
    parser: Parser,
    is_core_only: bool,
    /// The longest silence between two lines.
    pause_max: Duration,
    /// The time by which the next line must arrive.
    deadline: Instant,
}

impl Streaming {
    /// Reads the next piece of the stream. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Vec<Touched>, StoreError> {
        let chunk = timeout_at(self.deadline, self.answer.chunk())
            .await
            .map_err(|_| {
                let seconds = self.pause_max.as_secs_f32();
                StoreError::Unreachable(format!("its event stream was silent for {seconds} s"))
            })?
            .map_err(|error| failed(&error))?
            .ok_or_else(|| StoreError::Unreachable("its event stream ended".into()))?;
        let lines = self.parser.lines();
        let events = self
            .parser
            .push(&chunk)
            .map_err(|_| contract("a line of its event stream is too long"))?;
        if self.parser.lines() > lines {
            self.deadline = Instant::now() + self.pause_max;
        }
        Ok(events.iter().map(|event| line(event, self.is_core_only)).collect())
    }
}

impl Follower {
    async fn next(&mut self) -> Result<Vec<Touched>, StoreError> {
        loop {
            match &mut self.state {
                State::Start => {
                    if self.start().await? {
                        return Ok(self.due());
                    }
                }
                State::Streaming(streaming) => {
                    let due = self.next_poll;
                    tokio::select! {
                        lines = streaming.next() => return lines,
                        () = until(due) => return Ok(self.due()),
                    }
                }
                State::Polling => {
                    until(self.next_poll).await;
                    return Ok(self.due());
                }
            }
        }
    }

    /// Opens the stream. Returns whether the store must be listed because its events may not
    /// resume.
    async fn start(&mut self) -> Result<bool, StoreError> {
        let is_core_only = self.store.profile().await?.is_core_only;
        let request = Request::new(Method::GET, "/sync/events")
            .header(header::ACCEPT, "text/event-stream")?
            .header(HeaderName::from_static("last-event-id"), &self.after.to_string())?;
        let answer = self.store.connection.send(&request).await?;
        let call = "GET /sync/events";
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if is_core_only => {
                self.state = State::Polling;
                return Ok(true);
            }
            _ => return Err(self.store.failure(call, answer).await),
        }
        let kind = answer.headers().get(header::CONTENT_TYPE);
        if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
            return Err(contract(format!("{call} is no text/event-stream")));
        }
        let pause_max = self.store.connection.deadlines.body;
        self.state = State::Streaming(Box::new(Streaming {
            answer,
            parser: Parser::new(EVENT_BYTES_MAX),
            is_core_only,
            pause_max,
            deadline: Instant::now() + pause_max,
        }));
        Ok(is_core_only)
    }

    fn due(&mut self) -> Vec<Touched> {
        self.next_poll = Some(Instant::now() + POLL_EVERY);
        vec![Touched::Changed]
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
