//! Owns the bindings of this device: one driver for each, all in one task. A driver that is removed
//! has ended before its rows are.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::db::{BindingId, StoredBinding};
use super::driver::{COMMANDS_MAX, Command, Driver};
use super::shared::{Shared, blocking};
use crate::core::ids::FolderId;

/// The most requests that wait for the manager. People make them one by one.
const REQUESTS_MAX: usize = 16;

/// A request to the manager.
#[derive(Debug)]
pub(super) enum Request {
    /// Drive this binding, which is in the database.
    Start(Box<StoredBinding>, oneshot::Sender<()>),
    /// End the binding of a folder and forget it. The answer says whether there was one.
    Remove(FolderId, oneshot::Sender<bool>),
    /// Pass a command on to the driver of a folder; dropped where there is none.
    Command(FolderId, Command),
}

/// The task that runs the drivers.
pub(crate) struct Manager {
    shared: Shared,
    requests: mpsc::Receiver<Request>,
    drivers: BTreeMap<FolderId, (BindingId, mpsc::Sender<Command>)>,
    leaving: BTreeMap<FolderId, (BindingId, oneshot::Sender<bool>)>,
}

type Running = FuturesUnordered<Pin<Box<dyn Future<Output = FolderId> + Send>>>;

impl Manager {
    /// Makes the manager, and the sender of its queue of requests.
    pub(super) fn new(shared: Shared) -> (Self, mpsc::Sender<Request>) {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (drivers, leaving) = (BTreeMap::new(), BTreeMap::new());
        (Self { shared, requests, drivers, leaving }, sender)
    }

    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        let mut running = Running::new();
        let db = self.shared.db.clone();
        match blocking(move || Ok(db.bindings()?)).await {
            Ok(bindings) => {
                for stored in bindings {
                    let dir = stored.binding.dir.clone();
                    match self.shared.settle_begun(stored).await {
                        Ok(Some(stored)) => self.start(&mut running, stored),
                        Ok(None) => {
                            tracing::info!(dir = %dir.display(), "was not bound in the end")
                        }
                        Err(error) => {
                            tracing::error!(dir = %dir.display(), "a folder is left alone: {error:#}");
                        }
                    }
                }
            }
            Err(error) => tracing::error!("reading which folders are bound: {error:#}"),
        }
        self.tell_unbound().await;
        self.serve(running).await;
    }

    /// Reports to the group which folders are no longer bound to a directory on this device.
    async fn tell_unbound(&self) {
        let bound: Vec<FolderId> = self.drivers.keys().copied().collect();
        if let Err(error) = self.shared.journal.tell_unbound_but(&bound).await {
            tracing::debug!(%error, "cannot report to the group which directories are unbound");
        }
    }

    async fn serve(&mut self, mut running: Running) {
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.obey(&mut running, request),
                    None => return,
                },
                Some(folder) = running.next() => self.ended(folder).await,
            }
        }
    }

    fn start(&mut self, running: &mut Running, stored: StoredBinding) {
        let (folder, id) = (stored.binding.folder, stored.id);
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        let driver = Driver::new(self.shared.clone(), stored);
        self.drivers.insert(folder, (id, commands));
        running.push(Box::pin(async move {
            driver.run(queue).await;
            folder
        }));
    }

    fn obey(&mut self, running: &mut Running, request: Request) {
        match request {
            Request::Start(stored, reply) => {
                self.start(running, *stored);
                // The caller may have stopped waiting.
                let _ = reply.send(());
            }
            Request::Remove(folder, reply) => match self.drivers.remove(&folder) {
                // The driver sees that its commands have ended.
                Some((id, _)) => {
                    self.leaving.insert(folder, (id, reply));
                }
                None => {
                    let _ = reply.send(false);
                }
            },
            Request::Command(folder, command) => {
                if let Some((_, commands)) = self.drivers.get(&folder)
                    && commands.try_send(command).is_err()
                {
                    tracing::warn!(%folder, "a folder has too many commands waiting");
                }
            }
        }
    }

    async fn ended(&mut self, folder: FolderId) {
        let Some((id, reply)) = self.leaving.remove(&folder) else { return };
        let db = self.shared.db.clone();
        if let Err(error) = blocking(move || db.remove(id)).await {
            tracing::error!(%folder, "forgetting a folder: {error:#}");
        }
        self.shared.reports.remove(&folder);
        self.tell_unbound().await;
        // The caller may have stopped waiting.
        let _ = reply.send(true);
    }
}
