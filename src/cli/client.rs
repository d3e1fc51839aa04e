//! The command line's side of the agent's API: finds the agent of a home, speaks HTTP with it, and
//! turns its refusals into exit statuses.
//!
//! C1  Everything goes over the Unix socket of the home, on which only this user and root can listen:
//!     each connection is checked. No token is needed, so none can reach a stranger.
//! C2  A part of a path reaches the agent byte for byte, see [`crate::http::target`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum::body::{Body, BodyDataStream};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, StatusCode, Uri, request};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tower::Service;

use super::exit::{Exit, Failure};
use crate::agent::handle::REQUEST_TIMEOUT;
use crate::http::problem::ProblemBody;
use crate::http::target::path_and_query;
use crate::replica::status::Status;
use crate::state::home::Home;
use crate::wire::event_stream::{Event, Parser, TooLong};

/// The agent's own deadline ends first, with a better message.
const ANSWER_DEADLINE: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 10);

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The longest pause between two pieces of an answer.
const READ_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The longest problem document that is read; ours are a few hundred bytes.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// The longest event: a record of very many fields.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A connection to the running agent.
pub(crate) struct Client {
    http: legacy::Client<SocketConnector, Body>,
    home: Home,
}

/// The body of a successful answer.
pub(crate) struct Answer(BodyDataStream);

impl Client {
    /// A client of the agent of `home`. Does not check that the agent answers.
    pub(crate) async fn connect(home: Option<PathBuf>) -> Result<Self, Failure> {
        let home = Home::find(home)?.ok_or_else(not_running)?;
        let address = home.api_address()?.ok_or_else(not_running)?;
        let socket = home.command_socket(&address)?.ok_or_else(too_old)?;
        match connect(&socket).await {
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                return Err(not_running());
            }
            Err(error) => {
                let tried = format!("connecting to the agent at {}", socket.display());
                return Err(anyhow::Error::new(error).context(tried).into());
            }
        }
        let connector = SocketConnector(socket.into());
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { http, home })
    }

    /// Where the agent's files are.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// The agent's status.
    pub(crate) async fn status(&self) -> Result<Status, Failure> {
        self.get(&["v1", "status"], &[]).await
    }

    /// `GET`, answered in JSON.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let request = finish(self.request(Method::GET, path, query), Body::empty())?;
        self.answered(request).await
    }

    /// `POST` of JSON, answered in JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answered(self.with_json(Method::POST, path, body)?).await
    }

    /// `PUT` of JSON, answered in JSON.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answered(self.with_json(Method::PUT, path, body)?).await
    }

    /// `PATCH` of JSON, answered in JSON.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answered(self.with_json(Method::PATCH, path, body)?).await
    }

    /// `DELETE`, answered in JSON.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.delete_with(path, &[]).await
    }

    /// `DELETE` with a query, answered in JSON.
    pub(crate) async fn delete_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let request = finish(self.request(Method::DELETE, path, query), Body::empty())?;
        self.answered(request).await
    }

    /// `POST` of JSON, answered in JSON. Has no deadline.
    pub(crate) async fn post_unhurried<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.send(self.with_json(Method::POST, path, body)?).await?.json().await
    }

    /// An event stream.
    pub(crate) async fn events(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Events, Failure> {
        let request = finish(self.request(Method::GET, path, query), Body::empty())?;
        Ok(Events::new(self.send(request).await?))
    }

    /// `POST` of JSON, answered by an event stream.
    pub(crate) async fn post_for_events(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Events, Failure> {
        let request = self.with_json(Method::POST, path, body)?;
        Ok(Events::new(self.send(request).await?))
    }

    fn with_json(
        &self,
        method: Method,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Request<Body>, Failure> {
        let body = serde_json::to_vec(body).context("writing a request as JSON")?;
        let request = self.request(method, path, &[]).header(CONTENT_TYPE, "application/json");
        finish(request, body.into())
    }

    /// Begins a request to `path`, whose parts may contain any bytes. [`finish`] adds the body.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> request::Builder {
        let uri = format!("http://localhost{}", path_and_query(path, query));
        Request::builder().method(method).uri(uri)
    }

    /// Sends a request. An answer other than a success becomes a failure with the agent's message.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Answer, Failure> {
        self.send_for(request, exit_for).await
    }

    /// Sends a request for content, as [`Self::send`]. A damaged asset has an exit status of its
    /// own.
    pub(crate) async fn send_for_content(&self, request: Request<Body>) -> Result<Answer, Failure> {
        let exit_for = |status| match status {
            StatusCode::GONE => Exit::Damaged,
            other => exit_for(other),
        };
        self.send_for(request, exit_for).await
    }

    async fn send_for(
        &self,
        request: Request<Body>,
        exit_for: impl Fn(StatusCode) -> Exit,
    ) -> Result<Answer, Failure> {
        let response = match self.http.request(request).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Err(not_running()),
            Err(error) => return Err(broken(error)),
        };
        let status = response.status();
        let answer = Answer(Body::new(response.into_body()).into_data_stream());
        if status.is_success() {
            return Ok(answer);
        }
        let problem = problem_detail(answer).await;
        let detail = problem.unwrap_or_else(|| format!("the agent answered {status}"));
        Err(Failure::new(exit_for(status), detail))
    }

    /// Sends a request and reads the answer as JSON, within [`ANSWER_DEADLINE`].
    async fn answered<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<T, Failure> {
        let answered = async { self.send(request).await?.json().await };
        timeout(ANSWER_DEADLINE, answered).await.unwrap_or_else(|_| {
            let seconds = ANSWER_DEADLINE.as_secs();
            Err(Failure::new(
                Exit::Temporary,
                format!("the agent did not answer within {seconds} s"),
            ))
        })
    }
}

/// Gives a request its body.
///
/// # Errors
/// The path and the query are longer than a request can say.
pub(crate) fn finish(request: request::Builder, body: Body) -> Result<Request<Body>, Failure> {
    request.body(body).map_err(|error| {
        let message = format!("what was given is too long for a request: {error}");
        Failure::new(Exit::Usage, message)
    })
}

impl Answer {
    /// The next piece, `None` at the end.
    pub(crate) async fn next_piece(&mut self) -> Result<Option<Bytes>, Failure> {
        match timeout(READ_PAUSE_MAX, self.0.next()).await {
            Ok(piece) => piece.transpose().map_err(broken),
            Err(_) => {
                let seconds = READ_PAUSE_MAX.as_secs();
                let message = format!("the agent sent nothing for {seconds} s");
                Err(Failure::new(Exit::Temporary, message))
            }
        }
    }

    /// All of it.
    pub(crate) async fn bytes(mut self) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next_piece().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// All of it, read as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, Failure> {
        Ok(serde_json::from_slice(&self.bytes().await?)
            .context("reading the agent's answer: is it of another version than this command?")?)
    }
}

/// An event stream of the agent.
pub(crate) struct Events {
    answer: Answer,
    parser: Parser,
    /// Events that arrived together with the last one returned.
    parsed: VecDeque<Event>,
}

impl Events {
    fn new(answer: Answer) -> Self {
        Self { answer, parser: Parser::new(EVENT_BYTES_MAX), parsed: VecDeque::new() }
    }

    /// The next event's name and data.
    ///
    /// # Errors
    /// [`Exit::Temporary`] when the agent has stopped or the journal began anew.
    pub(crate) async fn next(&mut self) -> Result<(String, String), Failure> {
        loop {
            match self.parsed.pop_front() {
                Some(event) if event.name == "reset" => {
                    let message = "the journal of this device began anew: watch again";
                    return Err(Failure::new(Exit::Temporary, message));
                }
                Some(event) => return Ok((event.name, event.data)),
                None => {}
            }
            let Some(piece) = self.answer.next_piece().await? else {
                return Err(Failure::new(Exit::Temporary, "the agent has stopped"));
            };
            let events = self.parser.push(&piece).map_err(|TooLong| {
                anyhow!("the agent sent an event of more than {EVENT_BYTES_MAX} bytes")
            })?;
            self.parsed.extend(events);
        }
    }
}

/// Connects to a socket on which this user or root listens.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    let (user, us) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if user != us && user != 0 {
        let text = format!("user {user} listens there, expected user {us} or root");
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    Ok(stream)
}

/// Connects every request of [`Client`] to the socket, whatever its URL names.
#[derive(Debug, Clone)]
struct SocketConnector(Arc<Path>);

impl Service<Uri> for SocketConnector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = self.0.clone();
        Box::pin(async move {
            let connected = timeout(CONNECT_DEADLINE, connect(&socket)).await;
            connected.map_err(|_| io::Error::from(ErrorKind::TimedOut))?.map(TokioIo::new)
        })
    }
}

/// Parses the data of an event.
pub(crate) fn read_event<T: DeserializeOwned>(data: &str) -> Result<T, Failure> {
    Ok(serde_json::from_str(data).context("reading an event of the agent's")?)
}

async fn problem_detail(mut answer: Answer) -> Option<String> {
    let mut body = Vec::new();
    while let Some(piece) = answer.next_piece().await.ok()? {
        if body.len() + piece.len() > PROBLEM_BYTES_MAX {
            return None;
        }
        body.extend_from_slice(&piece);
    }
    serde_json::from_slice(&body).ok().map(|problem: ProblemBody| problem.detail)
}

fn exit_for(status: StatusCode) -> Exit {
    match status {
        StatusCode::BAD_REQUEST => Exit::Usage,
        StatusCode::FORBIDDEN | StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => {
            Exit::Refused
        }
        StatusCode::NOT_FOUND => Exit::Unknown,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE => Exit::Temporary,
        _ => Exit::Error,
    }
}

fn not_running() -> Failure {
    let message = "no agent is running for this home: start it with `can-sync up`";
    Failure::new(Exit::NotRunning, message)
}

/// The failure for an agent of a version without a socket, and for what a killed agent left behind.
fn too_old() -> Failure {
    let message = "no agent of this version is running for this home: start it with `can-sync up`, \
                   after stopping one of an earlier version";
    Failure::new(Exit::NotRunning, message)
}

/// The connection was lost on the way.
fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    let error = anyhow::Error::new(error);
    Failure::Report(Exit::Temporary, error.context("the connection to the agent broke"))
}
