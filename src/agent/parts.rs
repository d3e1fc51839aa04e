//! What the loop and its tasks work with: the subsystems, the tasks, and the queue back to the
//! loop.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::alerts::{MemoryFile, Told};
use crate::clock::Clock;
use crate::copies::evicting::Evictor;
use crate::copies::gathered::WrongProofs;
use crate::copies::judge::Judge;
use crate::core::alerts::Thresholds;
use crate::core::expiry::KeepPolicy;
use crate::core::forgetting::ForgottenRule;
use crate::core::hooks::Hook;
use crate::core::ids::NodeId;
use crate::core::scrub::ScrubRate;
use crate::folders::handle::Folders;
use crate::net::{NamedPeers, Net};
use crate::replica::catalogue::Backlog;
use crate::replica::copies::Keeper;
use crate::replica::events::EventLog;
use crate::replica::journal::JournalHandle;
use crate::replica::loading::Loading;
use crate::replica::status::{ScrubStatus, Status};
use crate::state::copies::Copies;
use crate::state::home::Home;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::thumbnails::Thumbnails;
use crate::transfer::Context;
use crate::transfer::prove::Prover;
use crate::transfer::throttle::Throttle;

use super::fact::{Fact, Facts};
use super::handle::Request;
use super::tasks::Tasks;

/// What the loop and its tasks work with.
pub(super) struct Parts {
    pub(super) node_id: NodeId,
    pub(super) home: Home,
    pub(super) net: Net,
    pub(super) store: Arc<dyn Store>,
    /// The same store if it is the embedded one.
    pub(super) embedded: Option<EmbeddedStore>,
    pub(super) journal: JournalHandle,
    pub(super) ctx: Context,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) status: watch::Sender<Status>,
    pub(super) stop: CancellationToken,
    /// Members that are never dialled, see [`super::NetOverrides`].
    pub(super) unreachable: Vec<NodeId>,
    pub(super) throttle: Throttle,
    pub(super) named_peers: NamedPeers,
    pub(super) scrub_rate: ScrubRate,
    pub(super) forgotten: ForgottenRule,
    pub(super) keep: KeepPolicy,
    pub(super) scrub: watch::Sender<ScrubStatus>,
    pub(super) events: EventLog,
    /// The assets that the catalogue passes to the settler.
    pub(super) backlog: Backlog,
    /// What is not taken in for lack of space, in words.
    pub(super) shortage: watch::Sender<Vec<String>>,
    pub(super) alerts: watch::Receiver<Told>,
    pub(super) alerts_file: MemoryFile,
    pub(super) thresholds: watch::Sender<Thresholds>,
    pub(super) hooks: watch::Sender<Vec<Hook>>,
    pub(super) folders: Folders,
    pub(super) copies: Copies,
    /// Answers the proofs that peers request.
    pub(super) prover: Prover,
    pub(super) wrong_proofs: WrongProofs,
    pub(super) thumbnails: Thumbnails,
    pub(super) keeper: Keeper,
    /// Counts the listings of the store that the index has taken up.
    pub(super) listed: watch::Sender<u64>,
    pub(super) tasks: Tasks,
    pub(super) facts: Facts,
    pub(super) clock: Clock,
    pub(super) ids: Ids,
}

impl Parts {
    /// What deletes copies here. `gate` and `nudge` are the catalogue's.
    pub(super) fn evictor(&self, gate: Arc<Mutex<()>>, nudge: Arc<Notify>) -> Evictor<Fact> {
        Evictor {
            store: self.store.clone(),
            can_evict: self.embedded.is_some(),
            copies: self.copies.clone(),
            folders: self.folders.clone(),
            judge: self.judge(gate),
            nudge,
        }
    }

    /// What an engine is built from.
    pub(super) fn loading(&self) -> Loading {
        let (index, journal) = (self.ctx.index.clone(), self.journal.clone());
        Loading { node_id: self.node_id, index, journal, keeper: self.keeper.clone() }
    }

    /// What judges absent assets. `gate` is the catalogue's.
    pub(super) fn judge(&self, gate: Arc<Mutex<()>>) -> Judge<Fact> {
        let (index, inputs) = (self.ctx.index.clone(), self.facts.sender());
        Judge { keeper: self.keeper.clone(), index, gate, inputs }
    }
}

/// Numbers for connections, batches and pairings. None is used twice while the agent runs.
#[derive(Debug, Default)]
pub(super) struct Ids(u64);

impl Ids {
    pub(super) fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}
