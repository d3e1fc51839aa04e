//! The engine's whole interface: its inputs and effects. Inputs are named in the past tense and
//! effects in the imperative. An effect that is answered names the input that answers it.

use crate::core::close::CloseCode;
use crate::core::copies::{AbsentPage, AbsentSet, MissingPlace, SizedHash};
use crate::core::ids::{Digest, GroupId, Hash, HashAlgorithm, NodeId, StoreId};
use crate::core::message::Message;
use crate::core::pairing::Members;
use crate::core::peers::ConnId;
use crate::core::reconcile::{Answer, Query, Since};
use crate::core::session::Lane;
use crate::core::sketch::Sketch;
use crate::core::wants::{Arrival, BatchId};

/// How this device presents itself to peers.
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
    /// The hash algorithm that names the store's assets.
    pub algorithm: HashAlgorithm,
    /// Program version.
    pub build: String,
}

/// The set of known hashes as a sketch, loaded from the index.
#[derive(Debug, Clone)]
pub struct KnownSet {
    /// The sketch of all hashes up to `head_seq`.
    pub sketch: Sketch,
    /// The index's epoch.
    pub epoch: [u8; 16],
    /// Its newest sequence number.
    pub head_seq: u64,
}

/// A fact from outside for the engine to handle.
#[derive(Debug)]
pub enum Input {
    /// The members of the group, this device included, changed or are known now.
    Members(Members),
    /// This device was renamed.
    Renamed(String),
    /// A peer was seen on the network.
    Seen(NodeId),
    /// The network changed or the device woke up: every peer may be reachable now.
    NetworkChanged,
    /// A connection is up and its peer was admitted.
    Connected {
        /// The connection's number, never reused.
        conn: ConnId,
        /// The authenticated peer.
        peer: NodeId,
        /// Whether this device dialled.
        dialed: bool,
        /// Whether the peer speaks the plain protocol.
        plain: bool,
    },
    /// A connection has been silent for too long, see [`crate::core::silence`].
    Silent(ConnId),
    /// A silent connection is heard again.
    HeardAgain(ConnId),
    /// A dial failed.
    DialFailed {
        /// The dialled peer.
        peer: NodeId,
        /// The reason, for people.
        reason: String,
    },
    /// A connection ended; either side may have closed it.
    Disconnected {
        /// The connection.
        conn: ConnId,
        /// The reason, for people.
        reason: String,
        /// Whether it was closed for a violation that the engine did not find itself: redial
        /// slowly.
        violation: bool,
    },
    /// A message on the control stream.
    Message {
        /// The connection that it came on.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// The index answered [`Effect::Ask`].
    Answer {
        /// The connection of the request.
        conn: ConnId,
        /// The round of the request.
        round: u64,
        /// The answer.
        answer: Answer,
    },
    /// The index answered [`Effect::AskSizes`].
    Sizes {
        /// The connection of the request.
        conn: ConnId,
        /// The hashes that are held, with sizes.
        held: Vec<Digest>,
        /// The hashes that are not held.
        missing: Vec<Hash>,
    },
    /// The store became reachable or unreachable.
    Store {
        /// Whether the store is reachable.
        up: bool,
    },
    /// Changes in the store's feed were applied to the index. An index that loses them reads them
    /// again.
    Indexed {
        /// New entries with their sequence numbers.
        entries: Vec<(u64, Digest)>,
        /// Whether more changes wait to be applied: at start, or during a large import.
        behind: bool,
    },
    /// The index knows more hashes that are not held, or holds others of those.
    Noted {
        /// New entries with their sequence numbers.
        entries: Vec<(u64, Hash)>,
        /// The hashes that are known and not held.
        absent: AbsentSet,
        /// How many of them are wanted.
        missing: u64,
    },
    /// This device lets go of assets that the store's feed has shown.
    Released {
        /// Their hashes.
        hashes: Vec<Hash>,
    },
    /// The index answered [`Effect::ReadAbsent`].
    AbsentRead {
        /// The connection of the request.
        conn: ConnId,
        /// The page; `None` if the index could not be read.
        page: Option<AbsentPage>,
    },
    /// [`Effect::TakeAbsent`] was carried out.
    Believed {
        /// The connection of the page.
        conn: ConnId,
        /// The peer.
        peer: NodeId,
        /// Its absent hashes as known now; `None` if the index could not be written.
        belief: Option<AbsentSet>,
        /// Whether they have to be read from the start.
        restarts: bool,
    },
    /// The index answered [`Effect::AskMissing`].
    Missing {
        /// The connection of the request.
        conn: ConnId,
        /// Missing assets that the peer holds.
        hashes: Vec<Hash>,
        /// Where the next page starts, if there are more.
        next: Option<MissingPlace>,
    },
    /// [`Effect::Confirm`] was carried out.
    Confirmed {
        /// The peer.
        peer: NodeId,
    },
    /// The index answered [`Effect::ReadSizes`].
    SizesRead {
        /// The connection of the request.
        conn: ConnId,
        /// The sizes, in the order of the request; `None` for what is not held.
        sizes: Vec<Option<u64>>,
    },
    /// Assets that a peer offered are not wanted. They were noted before.
    Unwanted {
        /// The connection of the offer.
        conn: ConnId,
        /// The assets.
        hashes: Vec<Hash>,
    },
    /// Answers [`Effect::Judge`]. Those that are not wanted were noted before.
    Judged {
        /// The connection of the difference.
        conn: ConnId,
        /// The hashes that are wanted.
        wanted: Vec<Hash>,
    },
    /// [`Effect::RebuildSketch`] succeeded.
    Rebuilt(KnownSet),
    /// [`Effect::RebuildSketch`] failed: the index could not be read.
    RebuildFailed,
    /// The peer acknowledged a batch.
    BatchSent {
        /// The connection.
        conn: ConnId,
        /// The number of the batch.
        batch: BatchId,
        /// The outcome of each asset.
        outcomes: Vec<(Hash, Sent)>,
    },
    /// A batch ended without an acknowledgement.
    BatchFailed {
        /// The connection.
        conn: ConnId,
        /// The number of the batch.
        batch: BatchId,
        /// Whether the peer broke the protocol.
        violation: bool,
    },
    /// A peer opened a batch stream and offers assets. Answered by [`Effect::Decide`].
    Offered {
        /// The connection.
        conn: ConnId,
        /// The number that the shell gave the batch.
        batch: BatchId,
        /// The offered assets that the index does not hold.
        digests: Vec<Digest>,
    },
    /// A received batch ended, well or not. Wanted assets that are not named did not arrive.
    Received {
        /// The connection.
        conn: ConnId,
        /// The number of the batch.
        batch: BatchId,
        /// The outcome of each asset.
        arrivals: Vec<(Hash, Arrival)>,
        /// Whether the own store accepts nothing at the moment: full or unreachable.
        store_failed: bool,
        /// Whether the peer broke the protocol.
        violation: bool,
    },
    /// The plain exchange of whole sets ended.
    PlainDone {
        /// The connection.
        conn: ConnId,
        /// Assets that the peer turned out to hold: we sent them, or it sent what we held already.
        held_there: Vec<Hash>,
        /// Assets of the peer that our store stored.
        stored_here: Vec<Hash>,
        /// Whether something did not arrive on one of the sides.
        failed: bool,
        /// Whether one side lacks more than one exchange carries.
        more: bool,
    },
    /// A peer of the plain protocol opened a live stream. `Received` ends it.
    PlainStream {
        /// The connection.
        conn: ConnId,
        /// The number that the shell gave the batch.
        batch: BatchId,
    },
    /// Somebody waits for assets that the index does not hold. Repeated as long as somebody waits.
    /// [`super::Engine::fetching`] returns their state.
    Fetch {
        /// The assets waited for.
        hashes: Vec<Hash>,
        /// Whether to request them before all others.
        at_once: bool,
    },
    /// Time has passed.
    Tick,
    /// Finish what is under way and close all connections.
    Stop,
}

/// The outcome of an asset that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The peer holds it.
    Held,
    /// The peer receives it from another device, or does not want it now.
    Elsewhere,
    /// The peer does not accept it, now or ever.
    Refused,
    /// Our store does not have it, or only a part.
    Unavailable,
}

/// An action for the shell to perform.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Dial the peer. Answered by `Connected` or `DialFailed`.
    Dial(NodeId),
    /// Close the connection.
    Close {
        /// The connection.
        conn: ConnId,
        /// The close code.
        code: CloseCode,
        /// Details for the peer's log; empty when the code says it all.
        detail: String,
    },
    /// Send a message on the control stream.
    Send {
        /// The connection.
        conn: ConnId,
        /// The message.
        message: Message,
    },
    /// Query the index for a reconcile. Answered by `Answer`.
    Ask {
        /// The connection of the reconcile.
        conn: ConnId,
        /// The round of the reconcile, to be named in the answer.
        round: u64,
        /// The query.
        query: Query,
    },
    /// Look up in the index which of the hashes are held, with sizes. Answered by `Sizes`.
    AskSizes {
        /// The connection that the answer is for.
        conn: ConnId,
        /// The hashes, at most one frame's worth.
        hashes: Vec<Hash>,
    },
    /// Send these assets on a stream of their own.
    SendBatch {
        /// The connection.
        conn: ConnId,
        /// The batch's number, to be named in `BatchSent` or `BatchFailed`.
        batch: BatchId,
        /// The assets to send.
        digests: Vec<Digest>,
        /// The lane, for the stream's priority.
        lane: Lane,
        /// Whether to send contents without waiting until the peer wants them.
        inline: bool,
    },
    /// Answers `Offered`: which of the digests to accept.
    Decide {
        /// The batch.
        batch: BatchId,
        /// For each digest in order, whether to accept it.
        wanted: Vec<bool>,
    },
    /// Exchange whole sets by the plain protocol, on the stream on which the Hello came.
    RunPlain {
        /// The connection.
        conn: ConnId,
    },
    /// Open the journal's stream. The peer keeps a journal and waits for it.
    OpenJournal {
        /// The connection.
        conn: ConnId,
    },
    /// Save how far a peer's set is known.
    SaveCursor {
        /// The peer.
        peer: NodeId,
        /// The position in the peer's index.
        since: Since,
    },
    /// Read changes of our absent hashes for the peer. Answered by `AbsentRead`.
    ReadAbsent {
        /// The connection.
        conn: ConnId,
        /// The log of the position.
        log: [u8; 16],
        /// The position.
        after_turn: u64,
    },
    /// Look up the sizes of hashes for the peer. Answered by `SizesRead`.
    ReadSizes {
        /// The connection.
        conn: ConnId,
        /// The hashes, at most one frame's worth.
        hashes: Vec<Hash>,
    },
    /// Write down which hashes the peer does not hold. Answered by `Noted` and `Believed`.
    TakeAbsent {
        /// The connection of the page.
        conn: ConnId,
        /// The peer.
        peer: NodeId,
        /// The page.
        page: Box<AbsentPage>,
    },
    /// Look up missing assets that the peer holds, a page at most. Answered by `Missing`.
    AskMissing {
        /// The connection.
        conn: ConnId,
        /// The peer.
        peer: NodeId,
        /// Where the page starts.
        after: MissingPlace,
    },
    /// Decide which of the hashes, which are not known here, are wanted. Answered by `Noted` and
    /// `Judged`.
    Judge {
        /// The connection of the difference.
        conn: ConnId,
        /// The hashes.
        hashes: Vec<SizedHash>,
    },
    /// Save that the peer holds all known hashes but its absent ones. Answered by `Confirmed`, unless
    /// the index is another by then.
    Confirm {
        /// The peer.
        peer: NodeId,
        /// The newest sequence number of the set.
        to_seq: u64,
        /// Its absent hashes.
        absent: AbsentSet,
    },
    /// Save that the peer does not hold these hashes.
    Doubt {
        /// The peer.
        peer: NodeId,
        /// The hashes.
        hashes: Vec<Hash>,
    },
    /// Scan the index for a new sketch because the sketch seems not to match it. Answered by
    /// `Rebuilt` or `RebuildFailed`.
    RebuildSketch,
    /// Everything is closed; the engine ignores all further input.
    Stopped,
}

/// The state of a peer, for the status.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// The node ID of the peer.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The connection in use.
    pub conn: Option<ConnId>,
    /// Whether its Hello has arrived.
    pub ready: bool,
    /// Whether it is being dialled.
    pub dialing: bool,
    /// Whether both sides hold the same set.
    pub in_sync: bool,
    /// Whether it is connected, or about to be for the first time, and will be confirmed as a holder of
    /// what both know.
    pub confirms: bool,
    /// Whether something is under way.
    pub active: bool,
    /// How many assets this device still wants from it.
    pub missing_here: u64,
    /// How many assets are still to be sent to it.
    pub missing_there: u64,
    /// Why the last connection or dial ended.
    pub last_error: Option<String>,
    /// When the next dial is due, monotonic ms.
    pub retry_at_ms: Option<u64>,
}
