//! The end of the agent: its tasks, the journal, the endpoint and the databases end in order, each with
//! a deadline.

use std::time::Duration;

use anyhow::Context as _;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::wall_ms;
use crate::core::engine::Engine;
use crate::replica::query;

use super::parts::Parts;

/// At the end the tasks, and then the index, get this long to complete. A restart does what they
/// leave.
const WIND_UP_WAIT: Duration = Duration::from_secs(10);

/// Ends what is left, in order. What was acknowledged is already durable. `is_orderly`: nothing failed
/// that only a restart shows.
pub(super) async fn wind_up(parts: &mut Parts, engine: &Engine, is_orderly: bool) {
    parts.tasks.abort_all();
    if timeout(WIND_UP_WAIT, parts.journal.close()).await.is_err() {
        tracing::warn!("the journal was not closed in time: the next start checks it");
    }
    let tasks = async {
        while let Some(ended) = parts.tasks.join_next().await {
            if let Err(panic) = ended {
                tracing::error!("{panic}");
            }
        }
    };
    if timeout(WIND_UP_WAIT, tasks).await.is_err() {
        let names = parts.tasks.names();
        tracing::warn!(?names, "tasks still wait for the disk: stopping without them");
    }
    parts.net.close().await;
    if is_orderly {
        let file = parts.alerts_file.clone();
        let ending = spawn_blocking(move || file.end(wall_ms()));
        if !matches!(timeout(WIND_UP_WAIT, ending).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the next start will count as one after a crash");
        }
    }
    let folders = parts.folders.clone();
    if timeout(WIND_UP_WAIT, spawn_blocking(move || folders.close())).await.is_err() {
        tracing::warn!("folders.db was not closed in time: the next start recovers it");
    }
    let copies = parts.copies.clone();
    if timeout(WIND_UP_WAIT, spawn_blocking(move || copies.close())).await.is_err() {
        tracing::warn!("copies.db was not closed in time: the next start recovers it");
    }
    let (index, known) = (parts.ctx.index.clone(), engine.known().clone());
    let group_id = engine.identity().group_id;
    let closing = spawn_blocking(move || {
        query::save(&index, &group_id, &known)?;
        index.close().context("closing the index")
    });
    match timeout(WIND_UP_WAIT, closing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!("{error:#}"),
        Ok(Err(error)) => tracing::error!(%error, "closing the index panicked"),
        Err(_) => tracing::warn!("the index was not closed in time: the next start checks it"),
    }
}
