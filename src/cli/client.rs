//! The command line's side of the agent's API: finds the agent of a home, speaks HTTP with it, and
//! turns its refusals into exit statuses.
//!
//! C1  The token goes to a literal loopback address that the home's own file names and on which only
//!     we or root listen, through no proxy and no redirect, and never into a log or a message.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::exit::{Exit, Failure};
use crate::agent::handle::REQUEST_TIMEOUT;
use crate::replica::status::Status;
use crate::state::home::Home;
use crate::store::StoreError;
use crate::store::http::owner;

/// The agent's own deadline ends first, with a better message.
const ANSWER_DEADLINE: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 10);

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The longest pause between two pieces of an answer.
const READ_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The longest problem document that is read; ours are a few hundred bytes.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// A line of an event stream: a record of very many fields.
const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A connection to the running agent.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    home: Home,
}

/// An error answer (RFC 9457).
#[derive(Deserialize)]
struct ProblemBody {
    detail: String,
}

impl Client {
    /// The agent of `home`. That it has answered is not known yet.
    pub(crate) async fn connect(home: Option<PathBuf>) -> Result<Self, Failure> {
        let home = Home::find(home)?.ok_or_else(not_running)?;
        let address = home.api_address()?.ok_or_else(not_running)?;
        let token = home.token()?.ok_or_else(not_running)?;
        let base: Url = address.api.parse().context("reading the agent's API address")?;
        check_listener(&base).await?;
        let mut authorization: HeaderValue =
            format!("Bearer {token}").parse().context("reading the API token")?;
        authorization.set_sensitive(true);
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)]))
            .build()
            .context("setting up HTTP")?;
        Ok(Self { http, base, home })
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
        let request = self.request(Method::GET, path, query).timeout(ANSWER_DEADLINE);
        self.json(self.send(request).await?).await
    }

    /// `POST` of JSON, answered in JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self.with_json(Method::POST, path, body)?.timeout(ANSWER_DEADLINE);
        self.json(self.send(request).await?).await
    }

    /// `PUT` of JSON, answered in JSON.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self.with_json(Method::PUT, path, body)?.timeout(ANSWER_DEADLINE);
        self.json(self.send(request).await?).await
    }

    /// `PATCH` of JSON, answered in JSON.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self.with_json(Method::PATCH, path, body)?.timeout(ANSWER_DEADLINE);
        self.json(self.send(request).await?).await
    }

    /// A request with a body of JSON, and no deadline.
    pub(crate) fn with_json(
        &self,
        method: Method,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<RequestBuilder, Failure> {
        let body = serde_json::to_vec(body).context("writing a request as JSON")?;
        let request = self.request(method, path, &[]);
        Ok(request.header(CONTENT_TYPE, "application/json").body(body))
    }

    /// An event stream.
    pub(crate) async fn events(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Events, Failure> {
        let response = self.send(self.request(Method::GET, path, query)).await?;
        Ok(Events { response, unread: Vec::new() })
    }

    /// `DELETE`, answered in JSON.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        let request = self.request(Method::DELETE, path, &[]).timeout(ANSWER_DEADLINE);
        self.json(self.send(request).await?).await
    }

    /// A request to `path`, whose parts may hold anything.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    /// Sends; an answer that is not a success is a failure that says what the agent said.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Err(not_running()),
            Err(error) => return Err(broken(error)),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem = problem_detail(response).await;
        let detail = problem.unwrap_or_else(|| format!("the agent answered {status}"));
        Err(Failure::new(exit_for(status), detail))
    }

    pub(crate) async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let body = response.bytes().await.map_err(broken)?;
        Ok(serde_json::from_slice(&body)
            .context("reading the agent's answer: is it of another version than this command?")?)
    }
}

/// An event stream of the agent, which sends one line of data to an event.
pub(crate) struct Events {
    response: Response,
    unread: Vec<u8>,
}

impl Events {
    /// The next event's name and data.
    ///
    /// # Errors
    /// [`Exit::Temporary`] when the agent has stopped or the journal began anew.
    pub(crate) async fn next(&mut self) -> Result<(String, String), Failure> {
        let mut name = String::new();
        loop {
            let line = self.line().await?;
            let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
            match field {
                "event" if value == "reset" => {
                    let message = "the journal of this device began anew: watch again";
                    return Err(Failure::new(Exit::Temporary, message));
                }
                "event" => name = value.to_owned(),
                "data" => return Ok((name, value.to_owned())),
                _ => {}
            }
        }
    }

    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let Some(piece) = next_piece(&mut self.response).await? else {
                return Err(Failure::new(Exit::Temporary, "the agent has stopped"));
            };
            self.unread.extend_from_slice(&piece);
            if self.unread.len() > LINE_BYTES_MAX {
                return Err(anyhow!("the agent sent a line longer than any record").into());
            }
        }
    }
}

/// The next piece of an answer's body, `None` at its end.
pub(crate) async fn next_piece(response: &mut Response) -> Result<Option<Bytes>, Failure> {
    match tokio::time::timeout(READ_PAUSE_MAX, response.chunk()).await {
        Ok(piece) => piece.map_err(broken),
        Err(_) => {
            let seconds = READ_PAUSE_MAX.as_secs();
            Err(Failure::new(Exit::Temporary, format!("the agent sent nothing for {seconds} s")))
        }
    }
}

/// Refuses to send the token where somebody else may listen: after the agent has gone, any user of
/// the machine can take its port.
async fn check_listener(base: &Url) -> Result<(), Failure> {
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = match (host.parse::<IpAddr>(), base.port_or_known_default()) {
        (Ok(ip), Some(port)) if ip.is_loopback() => SocketAddr::new(ip, port),
        _ => return Err(anyhow!("the API address {base} is not a loopback one").into()),
    };
    owner::check(address).await.map_err(|error| match error {
        StoreError::Unreachable(_) => not_running(),
        StoreError::Unauthorized(why) => Failure::new(Exit::Refused, why),
        error => Failure::new(Exit::Refused, error),
    })
}

async fn problem_detail(mut response: Response) -> Option<String> {
    let mut body = Vec::new();
    while let Some(piece) = next_piece(&mut response).await.ok()? {
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

/// The connection was lost on the way. The URL is left out: it is no news, and may hold names.
fn broken(error: reqwest::Error) -> Failure {
    let error = anyhow::Error::new(error.without_url());
    Failure::Report(Exit::Temporary, error.context("the connection to the agent broke"))
}
