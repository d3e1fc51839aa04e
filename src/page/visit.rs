//! The page's shared state, and a request of a browser that is signed in.

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect, Response};
use maud::Markup;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::agent::Agent;
use super::layout::{self, PageError, View};
use super::throughput::Throughput;
use crate::agent::handle::Handle;
use crate::api::page::NetworkPage;
use crate::dav::Dav;
use crate::http::problem::problem;
use crate::http::sessions::{Session, Sessions};
use crate::replica::status::Status;

/// The header that the script sets when it requests the live parts of a view.
const REFRESH_HEADER: &str = "x-refresh";

/// The most open streams of notices: tabs that are looked at. Fewer than a server's connections.
pub(super) const STREAMS_MAX: usize = 16;

/// The page of one agent. Clones share it.
#[derive(Clone)]
pub struct Page {
    pub(super) agent: Agent,
    pub(super) handle: Handle,
    pub(super) sessions: Sessions,
    pub(super) throughput: Throughput,
    /// Bounds the open streams of [`super::live`].
    pub(super) streams: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
    /// What directories of folders hold.
    pub(super) dav: Dav,
    /// Where the network reaches the page.
    pub(super) network: Option<NetworkPage>,
}

impl Page {
    /// The page over the agent's own routes, which must have no guard.
    pub fn new(
        routes: Router,
        handle: Handle,
        sessions: Sessions,
        stop: CancellationToken,
        dav: Dav,
        network: Option<NetworkPage>,
    ) -> Self {
        let agent = Agent::new(routes);
        let throughput = Throughput::default();
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        Self { agent, handle, sessions, throughput, streams, stop, dav, network }
    }

    /// Counts the transferred bytes while it is polled. Never returns.
    pub async fn watch_throughput(&self) {
        self.throughput.watch(&self.handle).await;
    }
}

/// A request with a session.
pub(super) struct Visit {
    pub(super) page: Page,
    pub(super) session: Session,
    pub(super) status: Status,
    /// Whether the script requests the live parts only.
    is_refresh: bool,
}

impl FromRequestParts<Page> for Visit {
    type Rejection = PageError;

    async fn from_request_parts(parts: &mut Parts, page: &Page) -> Result<Self, PageError> {
        let session = parts.extensions.get::<Session>().cloned();
        let session =
            session.ok_or_else(|| problem(StatusCode::UNAUTHORIZED, "nobody is signed in"))?;
        let is_refresh = parts.headers.contains_key(REFRESH_HEADER);
        Ok(Self { status: page.handle.status(), page: page.clone(), session, is_refresh })
    }
}

impl Visit {
    /// A whole page.
    pub(super) fn show(&self, view: View, title: &str, content: Markup) -> Markup {
        let note = match self.is_refresh {
            true => None,
            false => self.page.sessions.take_note(&self.session),
        };
        layout::whole(
            &self.status.device.name,
            &self.session,
            view,
            title,
            note.as_deref(),
            content,
        )
    }

    /// The answer to a form that did something: another page, which says so.
    pub(super) fn done(&self, note: impl Into<String>, to: &str) -> Response {
        self.page.sessions.leave_note(&self.session, note.into());
        Redirect::to(to).into_response()
    }
}
