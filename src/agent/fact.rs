//! What tasks tell the loop. One bounded queue, which senders wait for: a peer that tells too much
//! is slowed by QUIC, not buffered.

use tokio::sync::{mpsc, oneshot};

use crate::core::engine::{Engine, Input};
use crate::core::ids::{Digest, Hash, LogId, NodeId};
use crate::core::peers::ConnId;
use crate::core::wants::BatchId;
use crate::net::Accepted;
use crate::net::frame::Peeked;
use crate::net::{Connection, Ended, RecvStream, SendStream};
use crate::state::journal::GroupState;
use crate::store::{Cursor, StoreInfo};

use super::handle::{FetchReply, LeaveReply, PairReply, Reply, RequestError};
use crate::replica::status::{JournalPeerStatus, PairingStatus};
use crate::transfer::plain::PlainReport;

/// Facts waiting for the loop, each handled in microseconds; deep enough for a burst of every task.
const FACTS_MAX: usize = 1024;

/// Something that happened.
pub(super) enum Fact {
    /// For the engine as it is.
    Input(Input),
    /// A peer came in.
    Accepted(Accepted),
    /// A dial succeeded.
    Dialed(Connection),
    /// A connection ended.
    Ended { conn: ConnId, ended: Ended },
    /// A peer opened a stream.
    Stream { conn: ConnId, send: SendStream, recv: RecvStream },
    /// It is the journal's.
    JournalStream { conn: ConnId, recv: Peeked<RecvStream>, send: SendStream },
    /// How the journal stands with the peer of a connection.
    Journal { conn: ConnId, status: JournalPeerStatus },
    /// Logs that are forked; all of them.
    Forked(Vec<LogId>),
    /// A peer offers a batch.
    Offered {
        conn: ConnId,
        batch: BatchId,
        digests: Vec<Digest>,
        reply: oneshot::Sender<Vec<bool>>,
    },
    /// Somebody waits for assets; which of them the index knows.
    Fetch { assets: Vec<(Hash, bool)>, now: bool, reply: Reply<FetchReply> },
    /// The plain exchange is through.
    PlainDone { conn: ConnId, report: PlainReport },
    /// The store answered, and the index is bound to it; the reply says that the engine is, too.
    StoreUp { info: StoreInfo, reply: oneshot::Sender<()> },
    /// The store does not answer.
    StoreDown { error: String },
    /// For what the disks have no room now, in words; empty when there is room.
    Shortage(Vec<String>),
    /// Why the peer of a connection takes no assets for now; `None` when it has taken some.
    PutOff { conn: ConnId, reason: Option<String> },
    /// The store's feed was taken in up to here.
    TakenIn { cursor: Cursor },
    /// The engine is to be made anew.
    Reload(Reload),
    /// It has been.
    Loaded { engine: Box<Engine>, reload: Reload },
    /// The agent cannot go on.
    Fatal(anyhow::Error),
    /// The next start is to make a new device of this one: the agent stops, as it was asked to.
    StartOver,
    /// The group as it stands on disk.
    Group(GroupState),
    /// This device is in a group of its own now.
    Left { reply: Reply<LeaveReply> },
    /// A device without a right proof tried to pair.
    NotPaired { joiner: NodeId, source: String, why: String },
    /// The digits of a pairing are to be compared; `decided` hears whether they agree.
    Compare { id: u64, pairing: PairingStatus, decided: oneshot::Sender<bool> },
    /// A pairing ended; what is shown of it when it ended well.
    PairingEnded { id: u64, paired: Option<PairingStatus> },
    /// Pairing ended; the answer goes to who asked.
    Joined { result: Result<PairReply, RequestError>, reply: Reply<PairReply> },
}

/// How far the store's feed has been taken in, and how often it was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TakenIn {
    pub(super) cursor: Cursor,
    pub(super) passes: u64,
}

/// Why the engine is made anew from what is on disk, and who waits for it.
#[derive(Debug)]
pub(super) enum Reload {
    /// Another store answers.
    OtherStore { info: StoreInfo, reply: oneshot::Sender<()> },
    /// The store holds less than the index knew of.
    StoreLost { reply: oneshot::Sender<()> },
    /// This device is in another group now.
    Joined { joined: PairReply, reply: Reply<PairReply> },
    /// This device is in a group of its own now.
    Left { reply: Reply<LeaveReply> },
}

impl Reload {
    /// For the log, and the peers whose connections end.
    pub(super) fn why(&self) -> &'static str {
        match self {
            Self::OtherStore { .. } => "another store",
            Self::StoreLost { .. } => "the store changed",
            Self::Joined { .. } => "joined a group",
            Self::Left { .. } => "left the group",
        }
    }
}

/// The sending end.
#[derive(Debug, Clone)]
pub(super) struct Facts(mpsc::Sender<Fact>);

impl Facts {
    /// A queue and its ends.
    pub(super) fn channel() -> (Self, mpsc::Receiver<Fact>) {
        let (sender, receiver) = mpsc::channel(FACTS_MAX);
        (Self(sender), receiver)
    }

    /// Waits for room. When the loop has ended the fact is of no use to anybody.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the fact was not told.
    pub(super) async fn send(&self, fact: Fact) {
        let _ = self.0.send(fact).await;
    }

    /// The same from a blocking thread.
    pub(super) fn blocking_send(&self, fact: Fact) {
        let _ = self.0.blocking_send(fact);
    }
}
