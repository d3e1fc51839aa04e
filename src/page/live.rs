//! Notifies a page in a browser that something changed; the script then requests the live parts again.
//!
//! L1  A notice carries only a number. The script reads what changed from the view itself, behind the
//!     same guard.
//! L2  At most one notice each [`PAUSE`]; while contents move, one each [`BEAT`], because rates
//!     change without a new revision.
//! L3  A stream ends with its session and with the server.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;

use super::layout::PageError;
use super::visit::{STREAMS_MAX, Visit};
use crate::http::events::{answer, event};
use crate::http::problem::problem;
use crate::replica::journal::Commits;
use crate::replica::status::Status;

/// The least time between two notices.
const PAUSE: Duration = Duration::from_millis(500);

/// How often rates are updated while contents are transferred.
const BEAT: Duration = Duration::from_secs(2);

struct Watcher {
    visit: Visit,
    commits: watch::Receiver<Commits>,
    revision: u64,
    _permit: OwnedSemaphorePermit,
}

/// `GET /live`
pub(super) async fn stream(visit: Visit) -> Result<Response, PageError> {
    let permit = Arc::clone(&visit.page.streams).try_acquire_owned().map_err(|_| {
        let detail = format!("{STREAMS_MAX} pages are open already: close one");
        problem(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?;
    let commits = visit.page.handle.journal().commits();
    let revision = visit.status.revision;
    let watcher = Watcher { visit, commits, revision, _permit: permit };
    Ok(answer(stream::unfold(watcher, next)))
}

async fn next(mut watcher: Watcher) -> Option<(Result<Event, Infallible>, Watcher)> {
    let Watcher { visit, commits, revision, .. } = &mut watcher;
    let moves = is_moving(&visit.page.handle.status());
    let beat = async {
        match moves {
            true => sleep(BEAT).await,
            false => std::future::pending().await,
        }
    };
    let changed = async {
        sleep(PAUSE).await;
        tokio::select! {
            () = visit.page.handle.changed(*revision) => {}
            // The journal's end is the agent's, which `stop` tells.
            Ok(()) = commits.changed() => {}
            () = beat => {}
        }
    };
    tokio::select! {
        () = visit.session.ended.cancelled() => return None,
        () = visit.page.stop.cancelled() => return None,
        () = changed => {}
    }
    *revision = visit.page.handle.status().revision;
    Some((Ok(event("changed", revision)), watcher))
}

fn is_moving(status: &Status) -> bool {
    status.peers.iter().any(|peer| peer.receive_rate_bytes + peer.send_rate_bytes >= 1.0)
}
