//! How the rest of the process uses the agent: reads come from the latest [`Status`], and requests
//! cross a bounded queue of [`Request`]s to the loop, which answers each once.
//!
//! I1  Every call ends: with the loop's answer, or with [`RequestError::Temporary`] when the agent
//!     stops or does not answer within [`REQUEST_TIMEOUT`].
//! I2  Dropping a call's future is safe. The loop still carries out a request that it has received;
//!     only the answer is lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::tuning::Tuning;
use crate::alerts::Alerts;
use crate::copies::gathered::{GATHER_ASSETS_MAX, GatherRequest, Gathered};
use crate::core::doctor::NetworkFacts;
use crate::core::fetches::{FetchReply, FetchRequest};
use crate::core::ids::{Hash, NodeId};
use crate::core::lookup::HashPrefix;
use crate::core::thumbnail::Answer as ThumbnailAnswer;
use crate::core::want::Want;
use crate::core::why::AssetWhy;
use crate::folders::handle::Folders;
pub use crate::group::{
    LeaveReply, PairReply, RemoveReply, RemoveRequest, RemovedToo, RenameReply, RequestError,
    RevokeReply, TicketReply, TicketTerms,
};
use crate::net::pairing::COMPARE_DEADLINE;
use crate::replica::copies::Keeper;
use crate::replica::journal::JournalHandle;
use crate::replica::metadata::Settle;
use crate::replica::status::{PairingStatus, Status};
use crate::store::Store;
use crate::thumbnails::Thumbnails;
use crate::transfer::totals::PeerTotals;

/// The most requests that wait for the loop. People and scripts make them one by one; a full queue
/// makes the next caller wait.
const REQUESTS_MAX: usize = 16;

/// The deadline of a request. Pairing is the slowest one: it dials, and the network's own deadlines
/// fit in this one.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// The deadline of a pairing in which people may have to compare the digits.
pub const PAIR_TIMEOUT: Duration =
    Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 2 * COMPARE_DEADLINE.as_secs());

/// A handle to a running agent. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    store: Arc<dyn Store>,
    staging_dir: Arc<Path>,
    journal: JournalHandle,
    settles: mpsc::Sender<Settle>,
    folders: Folders,
    keeper: Keeper,
    alerts: Alerts,
    thumbnails: Thumbnails,
}

/// Where the loop sends the answer to a [`Request`].
pub type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// A request to the loop. Not `Debug`: it carries tickets.
pub enum Request {
    /// Make an invitation.
    Ticket(TicketTerms, Reply<TicketReply>),
    /// End the invitation of this name, or all.
    Revoke(Option<String>, Reply<RevokeReply>),
    /// Redeem an invitation; with `true`, people must compare the digits.
    Pair(String, bool, Reply<PairReply>),
    /// Record whether the device that is pairing with this one shows the same digits.
    Confirm(String, bool, Reply<PairingStatus>),
    /// Remove a device from the group.
    Remove(RemoveRequest, Reply<RemoveReply>),
    /// Give this device another name.
    Rename(String, Reply<RenameReply>),
    /// Leave the group.
    Leave(Reply<LeaveReply>),
    /// Want these assets from now on.
    Want(Want, Reply<()>),
    /// Fetch assets, and report the state of each.
    Fetch(FetchRequest, Reply<FetchReply>),
    /// Explain how an asset stands on each device.
    Why(HashPrefix, Reply<AssetWhy>),
    /// Answer once the status includes everything that the store held when the request was made.
    Check(Reply<()>),
    /// Work by this tuning from now on.
    Tune(Tuning, Reply<()>),
    /// Ask the other devices for a thumbnail.
    Thumbnail(Hash, Reply<ThumbnailAnswer>),
    /// Gather proofs of other devices, and tell what came of each asset.
    Gather(GatherRequest, mpsc::Sender<Gathered>),
    /// Measure the network.
    Measure(Reply<NetworkFacts>),
    /// Report what moved between this device and each member since the start.
    Totals(Reply<BTreeMap<NodeId, PeerTotals>>),
    /// Answer at once: the loop turns.
    Ping(Reply<()>),
}

/// Makes a handle, and the queue of requests that the loop reads. The store comes with the folder
/// for its uploads, and with the thumbnails of its assets.
pub fn channel(
    (store, staging_dir, thumbnails): (Arc<dyn Store>, PathBuf, Thumbnails),
    journal: JournalHandle,
    settles: mpsc::Sender<Settle>,
    folders: Folders,
    keeper: Keeper,
    alerts: Alerts,
    status: watch::Receiver<Status>,
) -> (Handle, mpsc::Receiver<Request>) {
    let (requests, queue) = mpsc::channel(REQUESTS_MAX);
    let staging_dir = staging_dir.into();
    let handle = Handle {
        requests,
        status,
        store,
        staging_dir,
        journal,
        settles,
        folders,
        keeper,
        alerts,
        thumbnails,
    };
    (handle, queue)
}

impl Handle {
    /// The latest status.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Returns once the status is newer than `revision`, or the agent has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&self, revision: u64) {
        let mut status = self.status.clone();
        // An error means that the loop has ended: no newer status will come.
        let _ = status.wait_for(|status| status.revision > revision).await;
    }

    /// Reconciles an asset's metadata between the store and the journal. Returns when each holds
    /// what was written to the other before the call. Does nothing for an asset that the store does
    /// not hold.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn settle(&self, hash: Hash) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.settles.send(Settle { hash, reply }).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?.map_err(RequestError::Temporary)
        };
        in_time(REQUEST_TIMEOUT, asked).await
    }

    /// The store that the agent syncs.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// The folder in which uploads are written before the store adopts them. It is on the store's
    /// volume.
    pub fn staging_dir(&self) -> &Path {
        &self.staging_dir
    }

    /// The journal of this device.
    pub fn journal(&self) -> JournalHandle {
        self.journal.clone()
    }

    /// The shared folders and the directories that are bound to them.
    pub fn folders(&self) -> Folders {
        self.folders.clone()
    }

    /// What this device wants, and how many copies there are.
    pub fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    /// Sets what this device wants; durable on return.
    pub async fn set_want(&self, want: Want) -> Result<(), RequestError> {
        self.ask(|reply| Request::Want(want, reply)).await
    }

    /// What needs the user's attention, and the hooks that are told of it.
    pub fn alerts(&self) -> Alerts {
        self.alerts.clone()
    }

    /// Makes an invitation for one device that is valid for `ttl`.
    pub async fn ticket(&self, ttl: Duration) -> Result<TicketReply, RequestError> {
        self.ticket_on(TicketTerms { ttl, verify: false, uses: 1 }).await
    }

    /// Makes an invitation on these terms.
    pub async fn ticket_on(&self, terms: TicketTerms) -> Result<TicketReply, RequestError> {
        self.ask(|reply| Request::Ticket(terms, reply)).await
    }

    /// Ends the invitation of this name, or all. What it returns is durable.
    pub async fn revoke(&self, id: Option<String>) -> Result<RevokeReply, RequestError> {
        self.ask(|reply| Request::Revoke(id, reply)).await
    }

    /// Redeems an invitation. Its inviter may require that people compare the digits on both
    /// devices.
    pub async fn pair(&self, ticket: String) -> Result<PairReply, RequestError> {
        self.ask_for(PAIR_TIMEOUT, |reply| Request::Pair(ticket, false, reply)).await
    }

    /// Redeems an invitation, and requires that people compare the digits on both devices.
    pub async fn pair_to_verify(&self, ticket: String) -> Result<PairReply, RequestError> {
        self.ask_for(PAIR_TIMEOUT, |reply| Request::Pair(ticket, true, reply)).await
    }

    /// Records whether the device that is pairing with this one shows the same digits.
    pub async fn confirm(
        &self,
        short_code: String,
        same: bool,
    ) -> Result<PairingStatus, RequestError> {
        self.ask(|reply| Request::Confirm(short_code, same, reply)).await
    }

    /// Removes a device from the group.
    pub async fn remove(
        &self,
        request: impl Into<RemoveRequest>,
    ) -> Result<RemoveReply, RequestError> {
        self.ask(|reply| Request::Remove(request.into(), reply)).await
    }

    /// Gives this device another name.
    pub async fn rename(&self, name: String) -> Result<RenameReply, RequestError> {
        self.ask(|reply| Request::Rename(name, reply)).await
    }

    /// Leaves the group: this device is then alone in a new one.
    pub async fn leave(&self) -> Result<LeaveReply, RequestError> {
        self.ask(Request::Leave).await
    }

    /// Requests assets of other devices, and reports the state of each now.
    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchReply, RequestError> {
        self.ask(|reply| Request::Fetch(request, reply)).await
    }

    /// Explains why an asset is, or is not, on each device. The hash may be the unique start of one
    /// that is known to be missing.
    pub async fn why(&self, hash: HashPrefix) -> Result<AssetWhy, RequestError> {
        self.ask(|reply| Request::Why(hash, reply)).await
    }

    /// Returns once [`Handle::status`] includes everything that the store held at the call, so that
    /// a later `in_sync` covers an asset added before.
    pub async fn check(&self) -> Result<(), RequestError> {
        self.ask(Request::Check).await
    }

    /// Changes the part of the configuration that may change while the agent runs.
    pub async fn tune(&self, tuning: Tuning) -> Result<(), RequestError> {
        self.ask(|reply| Request::Tune(tuning, reply)).await
    }

    /// Gathers proofs of other devices for assets, and deletes copies here if that is the purpose.
    /// The outcomes of the assets arrive in any order; then the channel is closed. Dropping the
    /// receiver ends it after the assets that are under way.
    pub async fn gather(
        &self,
        request: GatherRequest,
    ) -> Result<mpsc::Receiver<Gathered>, RequestError> {
        if request.hashes.len() > GATHER_ASSETS_MAX {
            let count = request.hashes.len();
            let text = format!("{count} assets are too many at once: at most {GATHER_ASSETS_MAX}");
            return Err(RequestError::Invalid(text));
        }
        let (tell, told) = mpsc::channel(GATHER_ASSETS_MAX);
        let asked = self.requests.send(Request::Gather(request, tell));
        let sent = async { asked.await.map_err(|_| stopping()) };
        in_time(REQUEST_TIMEOUT, sent).await?;
        Ok(told)
    }

    /// The thumbnail of an asset, made here or by a device that holds it.
    pub async fn thumbnail(&self, hash: Hash) -> Result<ThumbnailAnswer, RequestError> {
        match self.thumbnails.get(hash).await {
            ThumbnailAnswer::NotHeld => self.ask(|reply| Request::Thumbnail(hash, reply)).await,
            answer => Ok(answer),
        }
    }

    /// Measures the network; takes some seconds.
    pub async fn measure(&self) -> Result<NetworkFacts, RequestError> {
        self.ask(Request::Measure).await
    }

    /// What moved between this device and each member since the start.
    pub async fn totals(&self) -> Result<BTreeMap<NodeId, PeerTotals>, RequestError> {
        self.ask(Request::Totals).await
    }

    /// Returns once the loop has taken this request: it turns.
    pub async fn ping(&self) -> Result<(), RequestError> {
        self.ask(Request::Ping).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, RequestError> {
        self.ask_for(REQUEST_TIMEOUT, request).await
    }

    async fn ask_for<T>(
        &self,
        deadline: Duration,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.requests.send(request(reply)).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        };
        in_time(deadline, asked).await
    }
}

async fn in_time<T>(
    deadline: Duration,
    asked: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    let answered = tokio::time::timeout(deadline, asked).await;
    answered.unwrap_or_else(|_| {
        let seconds = deadline.as_secs();
        Err(RequestError::Temporary(format!("the agent did not answer within {seconds} s")))
    })
}

fn stopping() -> RequestError {
    RequestError::Temporary("the agent is stopping".into())
}
