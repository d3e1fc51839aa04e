//! The shell around the engine: one loop that turns facts into inputs and performs the effects.
//!
//! [`Agent::start`] opens what is on disk, binds the network and starts the loop; the rest of the
//! process uses [`Agent::handle`]; [`Agent::stop`] ends the agent in order.
//!
//! Reading order: `run` (the loop), `fact` and `link` (its inputs, and a peer's connection), `effects`
//! (what the engine has it do), then `requests`. `parts` holds the subsystems, `start` and `stop` begin and
//! end the tasks, and `build` makes it all.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::core::expiry::KeepPolicy;
use crate::core::forgetting::ForgottenRule;
use crate::core::ids::NodeId;
use crate::core::scrub::ScrubRate;
use crate::net::Relay;
use crate::replica::disk;
use crate::state::home::{Home, Lock};
use crate::store::choice::StoreChoice;
use crate::store::embedded::EmbeddedStore;

use self::build::Built;
use self::handle::Handle;
pub use self::tuning::Tuning;

mod build;
mod copies;
mod effects;
mod fact;
mod fault;
pub mod handle;
mod journal_stream;
mod link;
mod live;
mod load;
mod membership;
mod parts;
mod plain;
mod proofs;
mod requests;
mod run;
mod start;
mod stop;
mod tasks;
mod telling;
#[cfg(test)]
mod tests;
mod thumbnails;
mod tuning;
mod why;

/// At the end, calls of the store that are under way get this long to complete.
const STORE_CLOSE_WAIT: Duration = Duration::from_secs(10);

/// The configuration of an agent.
#[derive(Debug)]
pub struct Config {
    /// The folder of its files.
    pub home: Home,
    /// The store to sync.
    pub store: StoreChoice,
    /// Use the local network alone.
    pub offline: bool,
    /// The relay to use.
    pub relay: Relay,
    /// What may change while it runs.
    pub tuning: Tuning,
    /// The program that makes a thumbnail when it is run with the argument `thumbnail`.
    pub thumbnailer: PathBuf,
    /// How fast the store is read again to find damage.
    pub scrub_rate: ScrubRate,
    /// What to do with the bytes of forgotten assets.
    pub forgotten: ForgottenRule,
    /// How long the trash and earlier versions of files are kept.
    pub keep: KeepPolicy,
    /// Settings that users cannot change.
    pub net: NetOverrides,
}

/// Settings of the network that tests and benchmarks need.
#[derive(Debug, Clone, Default)]
pub struct NetOverrides {
    /// Bind only this UDP address.
    pub bind: Option<std::net::SocketAddr>,
    /// Speak only the plain protocol.
    pub plain_only: bool,
    /// Devices whose addresses are never used.
    pub unreachable: Vec<NodeId>,
    /// Makes the QUIC library panic when a test demands it.
    #[cfg(test)]
    pub(crate) panics: Option<std::sync::Arc<crate::net::inject::Panics>>,
}

/// A running agent.
pub struct Agent {
    handle: Handle,
    embedded: Option<EmbeddedStore>,
    stop: CancellationToken,
    /// `None` once the loop has ended.
    running: Option<JoinHandle<Result<()>>>,
}

impl Agent {
    /// Starts the agent of the home that `lock` locks. Waits for no network and no foreign store.
    ///
    /// # Errors
    /// Something on disk is unusable or the network cannot be bound; the error names it.
    pub async fn start(config: Config, lock: &Lock) -> Result<Self> {
        let folder = config.home.state_dir().to_owned();
        // SQLite names a full disk by many errors, most of them "disk I/O error".
        Self::start_all(config, lock).await.map_err(|error| match disk::is_full(&folder) {
            true => error.context(disk::no_room_to_start(&folder)),
            false => error,
        })
    }

    async fn start_all(config: Config, lock: &Lock) -> Result<Self> {
        let Built { handle, embedded, parts, inbox, tellers, picture } =
            build::build(config, lock).await?;
        let stop = parts.stop.clone();
        let running = Some(tokio::spawn(run::run(parts, inbox, tellers, picture)));
        let mut agent = Self { handle, embedded, stop, running };
        // The first status is ready before the first request is answered.
        let handle = agent.handle();
        tokio::select! {
            () = handle.changed(0) => {}
            ended = agent.ended() => ended?,
        }
        Ok(agent)
    }

    /// The handle for the rest of the process.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The embedded store, if it is in use.
    pub fn embedded_store(&self) -> Option<EmbeddedStore> {
        self.embedded.clone()
    }

    /// Returns when the agent has ended by itself.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let ended = running.await;
        self.running = None;
        ended.context("the agent's loop panicked")?
    }

    /// Stops the agent in order. Returns when all its tasks have ended.
    ///
    /// # Errors
    /// What failed on the way; the agent has ended nevertheless.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        let ended = self.ended().await;
        if let Some(store) = self.embedded
            && timeout(STORE_CLOSE_WAIT, store.close()).await.is_err()
        {
            tracing::warn!("the store was not closed in time: the next start recovers it");
        }
        ended
    }
}
