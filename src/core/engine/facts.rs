//! What the engine is told and what it orders: its whole border. Facts are in the past tense and
//! orders in the imperative; what is told to be answered by another names it.

use crate::core::close::CloseCode;
use crate::core::ids::{Digest, GroupId, Hash, HashAlgorithm, NodeId, StoreId};
use crate::core::message::Message;
use crate::core::pairing::Members;
use crate::core::peers::ConnId;
use crate::core::reconcile::{Answer, Query, Since};
use crate::core::session::Lane;
use crate::core::sketch::Sketch;
use crate::core::wants::{Arrival, BatchId};

/// What this device says of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its node ID.
    pub node_id: NodeId,
    /// Its group.
    pub group_id: GroupId,
    /// Its name.
    pub device_name: String,
    /// Its store.
    pub store_id: StoreId,
    /// How the store names assets.
    pub algorithm: HashAlgorithm,
    /// Program version.
    pub build: String,
}

/// The index as it was loaded: the set of known hashes in sketch form.
#[derive(Debug, Clone)]
pub struct KnownSet {
    /// The sketch of all hashes up to `head_seq`.
    pub sketch: Sketch,
    /// The index's epoch.
    pub epoch: [u8; 16],
    /// Its newest sequence number.
    pub head_seq: u64,
}

/// A fact.
#[derive(Debug)]
pub enum Input {
    /// The group as it stands now, this device included.
    Members(Members),
    /// This device has a new name.
    Renamed(String),
    /// A peer shows itself on the network.
    Seen(NodeId),
    /// The network changed or the device woke up: every peer may be reachable now.
    NetworkChanged,
    /// A connection is up and its peer admitted.
    Connected {
        /// Its number, never used before.
        conn: ConnId,
        /// The authenticated peer.
        peer: NodeId,
        /// We dialled it.
        dialed: bool,
        /// It speaks the plain protocol.
        plain: bool,
    },
    /// A dial failed.
    DialFailed {
        /// Who was dialled.
        peer: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// A connection ended, whoever closed it.
    Disconnected {
        /// The connection.
        conn: ConnId,
        /// Why, for people.
        reason: String,
        /// It was closed for a violation, as far as the engine did not itself: be slow to return.
        violation: bool,
    },
    /// A message on the control stream.
    Message {
        /// From where.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// The index's answer to [`Effect::Ask`].
    Answer {
        /// The connection it was asked for.
        conn: ConnId,
        /// The round it was asked for.
        round: u64,
        /// The answer.
        answer: Answer,
    },
    /// The index's answer to [`Effect::AskSizes`].
    Sizes {
        /// The connection it was asked for.
        conn: ConnId,
        /// Those held.
        held: Vec<Digest>,
        /// The others.
        missing: Vec<Hash>,
    },
    /// The store answers, or no longer does.
    Store {
        /// It answers.
        up: bool,
    },
    /// The store's feed was taken into the index, durably as far as the index goes.
    Indexed {
        /// New entries with their sequence numbers.
        entries: Vec<(u64, Digest)>,
        /// More is there to be taken in now: a start or a large import.
        behind: bool,
    },
    /// The answer to [`Effect::RebuildSketch`].
    Rebuilt(KnownSet),
    /// The other answer to [`Effect::RebuildSketch`]: the index could not be read.
    RebuildFailed,
    /// A batch was acknowledged.
    BatchSent {
        /// On which connection.
        conn: ConnId,
        /// The number of the batch.
        batch: BatchId,
        /// What became of each asset.
        outcomes: Vec<(Hash, Sent)>,
    },
    /// A batch broke off unacknowledged.
    BatchFailed {
        /// On which connection.
        conn: ConnId,
        /// The number of the batch.
        batch: BatchId,
        /// The peer broke the protocol.
        violation: bool,
    },
    /// A peer opened a batch stream; its offer, less what the index knows. Answered by
    /// [`Effect::Decide`].
    Offered {
        /// On which connection.
        conn: ConnId,
        /// The number the shell gave the batch.
        batch: BatchId,
        /// What we lack of it.
        digests: Vec<Digest>,
    },
    /// A received batch ended, well or not; what was wanted of it and is not named did not arrive.
    Received {
        /// On which connection.
        conn: ConnId,
        /// The number of the batch.
        batch: BatchId,
        /// What became of each asset.
        arrivals: Vec<(Hash, Arrival)>,
        /// The own store takes nothing at the moment: full, or not to be reached.
        store_failed: bool,
        /// The peer broke the protocol.
        violation: bool,
    },
    /// The plain exchange of whole sets is through.
    PlainDone {
        /// On which connection.
        conn: ConnId,
        /// What the peer turned out to hold: it got it from us, or sent what was held here.
        held_there: Vec<Hash>,
        /// What our store took of the peer's.
        stored_here: Vec<Hash>,
        /// Something did not arrive on one side or the other.
        failed: bool,
        /// One side lacks more than one exchange carries.
        more: bool,
    },
    /// A peer of the plain protocol opened a live stream; it ends with `Received`.
    PlainStream {
        /// On which connection.
        conn: ConnId,
        /// The number the shell gave it.
        batch: BatchId,
    },
    /// Somebody waits for these assets, which the index does not know; told again and again while
    /// that lasts. How they stand, [`super::Engine::fetching`] tells.
    Fetch {
        /// The assets waited for.
        hashes: Vec<Hash>,
        /// Before all else.
        at_once: bool,
    },
    /// Time has passed.
    Tick,
    /// Finish what is under way and close.
    Stop,
}

/// What became of an asset that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The peer holds it.
    Held,
    /// The peer gets it from another device, or does not want it now.
    Elsewhere,
    /// The peer will not take it, now or at all.
    Refused,
    /// Our store does not have it, or not whole.
    Unavailable,
}

/// An order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Dial the peer; answered by `Connected` or `DialFailed`.
    Dial(NodeId),
    /// Close the connection.
    Close {
        /// The connection.
        conn: ConnId,
        /// The reason given.
        code: CloseCode,
        /// More words for the peer's log; empty when the code says it all.
        detail: String,
    },
    /// Send a message on the control stream.
    Send {
        /// The connection.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// Ask the index on behalf of a reconcile.
    Ask {
        /// For which connection.
        conn: ConnId,
        /// For which round; to be named in the answer.
        round: u64,
        /// The question.
        query: Query,
    },
    /// Ask the index which of the hashes are held, and how large they are.
    AskSizes {
        /// For which connection.
        conn: ConnId,
        /// At most one frame's worth.
        hashes: Vec<Hash>,
    },
    /// Send these assets on a stream of their own.
    SendBatch {
        /// The connection.
        conn: ConnId,
        /// The batch's number, to be named in the answer.
        batch: BatchId,
        /// The assets to send.
        digests: Vec<Digest>,
        /// Which lane, for the stream's priority.
        lane: Lane,
        /// Send contents without waiting for the peer's word.
        inline: bool,
    },
    /// The answer to `Offered`: which of the digests to take.
    Decide {
        /// Which batch.
        batch: BatchId,
        /// One for each digest.
        wanted: Vec<bool>,
    },
    /// Exchange whole sets by the plain protocol on the stream that Hello came on.
    RunPlain {
        /// The connection.
        conn: ConnId,
    },
    /// Open the journal's stream; the peer knows of journals and waits for it.
    OpenJournal {
        /// The connection.
        conn: ConnId,
    },
    /// Remember how far a peer's set has been taken in.
    SaveCursor {
        /// Whose.
        peer: NodeId,
        /// How far.
        since: Since,
    },
    /// The sketch seems not to match the index: scan it anew; answered by `Rebuilt` or
    /// `RebuildFailed`.
    RebuildSketch,
    /// Everything is closed; the engine wants no more input.
    Stopped,
}

/// How a peer stands, for status.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// The node ID of the peer.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The connection in use.
    pub conn: Option<ConnId>,
    /// Hello has arrived.
    pub ready: bool,
    /// Being dialled.
    pub dialing: bool,
    /// Both sides hold the same set.
    pub in_sync: bool,
    /// Something is under way.
    pub active: bool,
    /// Assets to be had from it.
    pub missing_here: u64,
    /// Assets it is to be given.
    pub missing_there: u64,
    /// Why the last connection or attempt ended.
    pub last_error: Option<String>,
    /// When the next attempt is made, monotonic ms.
    pub retry_at_ms: Option<u64>,
}
