//! `GET /readyz`: whether the agent can do its work now. `GET /healthz` only says that it lives.
//!
//! R1  Anybody on the machine may ask, so the answer names nothing of this user, and asking often
//!     costs nothing: the disk is tried at most every [`TRY_EVERY`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use utoipa::{OpenApi, ToSchema};

use super::Api;
use crate::clock::instant_now;
use crate::http::problem::{Problem, problem};

/// The pause between two tries of the disk.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// The deadline of each check. A disk or a loop that takes longer is not ready.
const CHECK_WAIT: Duration = Duration::from_secs(2);

/// The bytes written to test the disk; all of them must fit.
const PROBE: [u8; 4096] = [0; 4096];

/// The agent can work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadyReply {
    /// Always true: an agent that is not ready answers with an error.
    pub ready: bool,
}

/// The last test write to the disk, and its result. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct DiskProbe(Arc<Mutex<Option<(Instant, bool)>>>);

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/readyz", get(ready))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(ready))]
pub(super) struct Described;

/// Reports whether the agent can work: its loop turns, its store answers, its disk takes writes
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "ready",
    tag = "agent",
    security(()),
    responses((status = 200, description = "It can.", body = ReadyReply))
)]
async fn ready(State(api): State<Api>) -> Result<Json<ReadyReply>, Problem> {
    let turns = timeout(CHECK_WAIT, api.handle.ping()).await.is_ok_and(|pinged| pinged.is_ok());
    let lacks = match turns {
        false => Some("the agent's loop does not answer"),
        true if !api.handle.status().store.up => Some("the store does not answer"),
        true if !api.probe.takes_writes(api.handle.staging_dir().to_owned()).await => {
            Some("the disk takes no writes")
        }
        true => None,
    };
    match lacks {
        None => Ok(Json(ReadyReply { ready: true })),
        Some(lacks) => Err(problem(StatusCode::SERVICE_UNAVAILABLE, lacks)),
    }
}

impl DiskProbe {
    async fn takes_writes(&self, folder: PathBuf) -> bool {
        // Requests that come meanwhile wait for the same answer.
        let mut last = self.0.lock().await;
        if let Some((at, takes)) = *last
            && instant_now().duration_since(at) < TRY_EVERY
        {
            return takes;
        }
        let tried = spawn_blocking(move || {
            let mut file = tempfile::tempfile_in(folder)?;
            std::io::Write::write_all(&mut file, &PROBE)?;
            file.sync_all()
        });
        let takes = matches!(timeout(CHECK_WAIT, tried).await, Ok(Ok(Ok(()))));
        *last = Some((instant_now(), takes));
        takes
    }
}
