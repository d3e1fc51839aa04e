//! Following a foreign store's events, as hints.
//!
//! Nothing here is remembered across a break: any trouble ends the stream with an error, and who
//! followed lists anew. A core-only store is also due for a listing every [`POLL_EVERY`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use reqwest::header::{self, HeaderName};
use reqwest::{Method, Response, StatusCode};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connection::{Request, describe};
use super::events::Parser;
use super::{Inner, contract};
use crate::store::{Cursor, FeedEvent, StoreError};

/// A core-only store is listed anew so often: its events may not resume, or may not exist.
const POLL_EVERY: Duration = Duration::from_secs(30);

/// The hints of `store` about changes after `after`.
pub(super) fn follow(
    store: Arc<Inner>,
    after: Cursor,
) -> BoxStream<'static, Result<FeedEvent, StoreError>> {
    let follower =
        Follower { store, after, state: State::Start, ready: VecDeque::new(), next_poll: None };
    stream::unfold(Some(follower), async |follower| {
        let mut follower = follower?;
        match follower.next().await {
            Ok(event) => Some((Ok(event), Some(follower))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// An event stream being followed.
struct Follower {
    store: Arc<Inner>,
    after: Cursor,
    state: State,
    ready: VecDeque<FeedEvent>,
    /// When a core-only store is due to be listed again.
    next_poll: Option<Instant>,
}

enum State {
    Start,
    Streaming(Box<Streaming>),
    /// There are no events: only the poll is left.
    Polling,
}

struct Streaming {
    answer: Response,
    parser: Parser,
    /// Between two lines.
    pause_max: Duration,
    /// The next line has come by then.
    deadline: Instant,
}

impl Streaming {
    /// The hints of the next piece of the stream. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Vec<FeedEvent>, StoreError> {
        let chunk = timeout_at(self.deadline, self.answer.chunk())
            .await
            .map_err(|_| {
                let seconds = self.pause_max.as_secs_f32();
                StoreError::Unreachable(format!("its event stream was silent for {seconds} s"))
            })?
            .map_err(|error| StoreError::Unreachable(describe(&error)))?
            .ok_or_else(|| StoreError::Unreachable("its event stream ended".into()))?;
        let lines = self.parser.lines();
        let events = self
            .parser
            .push(&chunk)
            .map_err(|_| contract("a line of its event stream is too long"))?;
        if self.parser.lines() > lines {
            self.deadline = Instant::now() + self.pause_max;
        }
        let mut hints: Vec<FeedEvent> = events
            .iter()
            .map(|event| match event.name.as_str() {
                "reset" => FeedEvent::Reset,
                // Whatever it is called: a hint too many costs a short listing.
                _ => FeedEvent::Changed,
            })
            .collect();
        hints.dedup();
        Ok(hints)
    }
}

impl Follower {
    async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match &mut self.state {
                State::Start => self.start().await?,
                State::Streaming(streaming) => {
                    let due = self.next_poll;
                    let hints = tokio::select! {
                        hints = streaming.next() => Some(hints?),
                        () = until(due) => None,
                    };
                    match hints {
                        Some(hints) => self.ready.extend(hints),
                        None => self.poll_is_due(),
                    }
                }
                State::Polling => {
                    until(self.next_poll).await;
                    self.poll_is_due();
                }
            }
        }
    }

    async fn start(&mut self) -> Result<(), StoreError> {
        let is_core_only = self.store.profile().await?.is_core_only;
        let request = Request::new(Method::GET, "/sync/events")
            .header(header::ACCEPT, "text/event-stream")?
            .header(HeaderName::from_static("last-event-id"), &self.after.to_string())?;
        let answer = self.store.connection.send(&request).await?;
        if is_core_only {
            // It may not resume: what happened before this moment is found by listing.
            self.poll_is_due();
        }
        let call = "GET /sync/events";
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if is_core_only => {
                self.state = State::Polling;
                return Ok(());
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
            parser: Parser::default(),
            pause_max,
            deadline: Instant::now() + pause_max,
        }));
        Ok(())
    }

    fn poll_is_due(&mut self) {
        self.ready.push_back(FeedEvent::Changed);
        self.next_poll = Some(Instant::now() + POLL_EVERY);
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
