//! The shell around the engine: one loop that carries facts in and effects out.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::net::Relay;
use crate::state::home::{Home, Lock};
use crate::store::Store;
use crate::store::embedded::{EmbeddedStore, Options};

pub mod handle;
pub mod status;
pub mod transfer;

use handle::{Handle, Request, RequestError};
use status::{DeviceStatus, Status, StoreStatus};

/// What an agent is started with.
#[derive(Debug)]
pub struct Config {
    /// Where its files are.
    pub home: Home,
    /// Which store it keeps in step.
    pub store: StoreChoice,
    /// The local network alone.
    pub offline: bool,
    /// Which relay helps.
    pub relay: Relay,
}

/// Which store an agent keeps in step.
#[derive(Debug)]
pub enum StoreChoice {
    /// The one it brings along.
    Embedded,
    /// Another program's.
    Foreign {
        /// Its base URL, on a loopback address.
        url: String,
        /// The file that holds its key.
        key_file: PathBuf,
    },
}

/// A running agent.
pub struct Agent {
    handle: Handle,
    embedded: Option<EmbeddedStore>,
    stopping: watch::Sender<Status>,
    requests: JoinHandle<()>,
}

impl Agent {
    /// Starts the agent of the home that `lock` is for.
    pub async fn start(config: Config, _lock: &Lock) -> Result<Self> {
        let StoreChoice::Embedded = config.store else {
            bail!("only the embedded store can be used so far");
        };
        let store = EmbeddedStore::open(&config.home.store_dir(), Options::default())?;
        let info = store.info().await?;
        let status = Status {
            device: DeviceStatus {
                node_id: "00".repeat(32),
                name: "this device".into(),
                group_id: "00".repeat(32),
                version: env!("CARGO_PKG_VERSION").into(),
                addresses: Vec::new(),
                removed: false,
                warnings: Vec::new(),
            },
            store: StoreStatus {
                location: "embedded".into(),
                up: true,
                store_id: info.store_id.to_string(),
                hash_algorithm: info.hash_algorithm.name().into(),
                assets: info.asset_count,
                quarantined: 0,
                last_error: None,
            },
            peers: Vec::new(),
            in_sync: true,
            revision: 1,
        };
        let (stopping, status) = watch::channel(status);
        let staging_dir = store.staging_dir().to_owned();
        let (handle, queue) = handle::channel(Arc::new(store.clone()), staging_dir, status);
        let requests = tokio::spawn(answer(queue));
        Ok(Self { handle, embedded: Some(store), stopping, requests })
    }

    /// How to talk to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The embedded store, when that is the one in use.
    pub fn embedded_store(&self) -> Option<EmbeddedStore> {
        self.embedded.clone()
    }

    /// Returns when the agent has ended by itself, with the reason.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(&mut self) -> Result<()> {
        Ok((&mut self.requests).await?)
    }

    /// Stops in order; returns when nothing of it is left.
    pub async fn stop(self) -> Result<()> {
        drop(self.stopping);
        self.requests.abort();
        if let Some(store) = self.embedded {
            store.close().await;
        }
        Ok(())
    }
}

async fn answer(mut queue: mpsc::Receiver<Request>) {
    while let Some(request) = queue.recv().await {
        let cannot = || RequestError::Refused("this version cannot do that yet".into());
        match request {
            Request::Ticket(_, reply) => drop(reply.send(Err(cannot()))),
            Request::Pair(_, reply) => drop(reply.send(Err(cannot()))),
            Request::Remove(device, reply) => {
                let message = format!("no device is called {device}");
                drop(reply.send(Err(RequestError::Unknown(message))));
            }
            Request::Rename(_, reply) => drop(reply.send(Err(cannot()))),
            Request::Check(reply) => drop(reply.send(Ok(()))),
        }
    }
}
