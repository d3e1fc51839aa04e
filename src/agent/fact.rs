//! The facts that tasks report to the loop. They cross one bounded queue whose senders wait for
//! room: QUIC slows a peer that reports too much, and nothing is buffered for it.

use tokio::sync::{mpsc, oneshot, watch};

use crate::core::engine::{Engine, Input};
use crate::core::ids::{Digest, Hash, LogId, NodeId};
use crate::core::peers::ConnId;
use crate::core::wants::BatchId;
use crate::core::why::{AssetWhy, Seen};
use crate::net::Accepted;
use crate::net::frame::Peeked;
use crate::net::{Connection, Ended, RecvStream, SendStream};
use crate::state::journal::GroupState;
use crate::store::{Cursor, StoreInfo};

use super::handle::{LeaveReply, PairReply, Reply, RequestError};
use crate::core::fetches::FetchReply;
use crate::group::comparing::PairingEvent;
use crate::replica::catalogue::StoreEvent;
use crate::replica::status::JournalPeerStatus;

/// The most facts that wait for the loop. It handles each in microseconds, and the queue is deep
/// enough for a burst of every task.
const FACTS_MAX: usize = 1024;

/// Something that happened outside the loop.
pub(super) enum Fact {
    /// An input for the engine, passed on unchanged.
    Input(Input),
    /// A peer connected.
    Accepted(Accepted),
    /// A dial succeeded.
    Dialed(Connection),
    /// A connection ended.
    Ended { conn: ConnId, ended: Ended },
    /// A peer opened a stream.
    Stream { conn: ConnId, send: SendStream, recv: RecvStream },
    /// The stream that a peer opened carries the journal.
    JournalStream { conn: ConnId, recv: Peeked<RecvStream>, send: SendStream },
    /// The state of journal replication with the peer of a connection.
    Journal { conn: ConnId, status: JournalPeerStatus },
    /// All logs that are forked now.
    Forked(Vec<LogId>),
    /// A peer offers a batch.
    Offered {
        conn: ConnId,
        batch: BatchId,
        digests: Vec<Digest>,
        reply: oneshot::Sender<Vec<bool>>,
    },
    /// A request for assets; each hash with whether the index holds it.
    Fetch { assets: Vec<(Hash, bool)>, now: bool, reply: Reply<FetchReply> },
    /// A question about an asset; what the store and the journal have of it was looked up.
    Why { hash: Hash, seen: Seen, reply: Reply<AssetWhy> },
    /// The plain exchange on a connection ended, and the peer accepts metadata.
    Hears(ConnId),
    /// The store answered, and the index is bound to it. The receiver of the reply waits until the
    /// engine is bound to it too.
    StoreUp { info: StoreInfo, reply: oneshot::Sender<()> },
    /// The store does not answer.
    StoreDown { error: String },
    /// What the disks have no space for now, in words; empty when there is space.
    Shortage(Vec<String>),
    /// The state of the scrub changed.
    Scrub,
    /// What is known about copies changed.
    Copies,
    /// The alerts changed.
    Alerts,
    /// Why the peer of a connection accepts no assets for now; `None` when it has stored one.
    PutOff { conn: ConnId, reason: Option<String> },
    /// A peer refused these assets, each for a reason.
    Refused { conn: ConnId, refused: Vec<(Hash, String)> },
    /// The store was listed up to here.
    TakenIn { cursor: Cursor },
    /// Rebuild the engine.
    Reload(Reload),
    /// The engine was rebuilt.
    Loaded { engine: Box<Engine>, reload: Reload },
    /// The agent cannot go on.
    Fatal(anyhow::Error),
    /// The agent has to stop as requested, and its next start makes this device a new one.
    StartOver,
    /// The group as it is on disk.
    Group(GroupState),
    /// This device is in a group of its own now.
    Left { reply: Reply<LeaveReply> },
    /// A device without a valid proof tried to pair.
    NotPaired { joiner: NodeId, source: String, why: String },
    /// A pairing reports whether people have to compare its digits, or that it ended.
    Pairing(PairingEvent),
    /// The joiner's side of a pairing ended; `reply` answers the request.
    Joined { result: Result<PairReply, RequestError>, reply: Reply<PairReply> },
}

/// How far the store has been listed, and in how many passes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TakenIn {
    pub(super) cursor: Cursor,
    pub(super) passes: u64,
}

impl From<Input> for Fact {
    fn from(input: Input) -> Self {
        Self::Input(input)
    }
}

impl From<StoreEvent> for Fact {
    fn from(event: StoreEvent) -> Self {
        match event {
            StoreEvent::Up { info, reply } => Self::StoreUp { info, reply },
            StoreEvent::Down { error } => Self::StoreDown { error },
            StoreEvent::Indexed { entries, behind } => {
                Self::Input(Input::Indexed { entries, behind })
            }
            StoreEvent::Absent { absent, missing } => {
                Self::Input(Input::Noted { entries: Vec::new(), absent, missing })
            }
            StoreEvent::Listed { cursor } => Self::TakenIn { cursor },
            StoreEvent::Lost { reply } => Self::Reload(Reload::StoreLost { reply }),
        }
    }
}

impl From<PairingEvent> for Fact {
    fn from(event: PairingEvent) -> Self {
        Self::Pairing(event)
    }
}

impl From<GroupState> for Fact {
    fn from(state: GroupState) -> Self {
        Self::Group(state)
    }
}

/// Why the engine is rebuilt from disk, and where the rebuilt engine is reported.
#[derive(Debug)]
pub(super) enum Reload {
    /// The store is another one than before.
    OtherStore { info: StoreInfo, reply: oneshot::Sender<()> },
    /// The store holds fewer assets than the index.
    StoreLost { reply: oneshot::Sender<()> },
    /// This device is in another group now.
    Joined { joined: PairReply, reply: Reply<PairReply> },
    /// This device is in a group of its own now.
    Left { reply: Reply<LeaveReply> },
    /// This device wants other assets than before.
    OtherWant { reply: Reply<()> },
}

impl Reload {
    /// The reason in words, for the log and for the peers whose connections end.
    pub(super) fn why(&self) -> &'static str {
        match self {
            Self::OtherStore { .. } => "another store",
            Self::StoreLost { .. } => "the store changed",
            Self::Joined { .. } => "joined a group",
            Self::Left { .. } => "left the group",
            Self::OtherWant { .. } => "other assets are wanted",
        }
    }
}

/// The sending end of the queue of facts.
#[derive(Debug, Clone)]
pub(super) struct Facts(mpsc::Sender<Fact>);

impl Facts {
    /// Makes the queue of facts.
    pub(super) fn channel() -> (Self, mpsc::Receiver<Fact>) {
        let (sender, receiver) = mpsc::channel(FACTS_MAX);
        (Self(sender), receiver)
    }

    /// Sends a fact; waits while the queue is full. After the end of the loop the fact is dropped.
    ///
    /// # Cancel safety
    /// A future dropped before it completes has not sent the fact.
    pub(super) async fn send(&self, fact: Fact) {
        let _ = self.0.send(fact).await;
    }

    /// Sends every change of a watched value until its sender is gone.
    pub(super) async fn pass_on<T: Clone>(
        &self,
        mut watched: watch::Receiver<T>,
        fact: impl Fn(T) -> Fact,
    ) {
        while watched.changed().await.is_ok() {
            let value = watched.borrow_and_update().clone();
            self.send(fact(value)).await;
        }
    }

    /// The queue itself, for a task below the agent that makes facts of what it knows.
    pub(super) fn sender(&self) -> mpsc::Sender<Fact> {
        self.0.clone()
    }

    /// Sends a fact from a blocking thread.
    pub(super) fn blocking_send(&self, fact: Fact) {
        let _ = self.0.blocking_send(fact);
    }
}
