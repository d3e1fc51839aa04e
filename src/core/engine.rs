//! The heart: facts in, orders out. Decides who is dialled, what two devices compare, what is asked
//! of whom, what is sent and when a peer is closed. Moves no bytes and waits for nothing.
//!
//! The agent's loop calls [`Engine::handle`] for each [`Input`] and carries out the [`Effect`]s in
//! order; when [`Engine::deadline_ms`] passes it calls with [`Input::Tick`]. Any input is legal at
//! any time: facts about connections and batches that are gone are ignored.
//!
//! I1  What a peer lacks is found by comparing sets, never by remembering what was sent: whatever is
//!     lost on the way, two quiet devices whose fingerprints differ compare again.
//! I2  An asset counts as held by a peer only by its acknowledgement or its own word.
//! I3  Everything kept per peer is bounded by `core::limits`; news beyond the bound is left to I1.
//! I4  No answer is awaited from one peer before another is served.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::close::CloseCode;
use crate::core::ids::{Digest, GroupId, Hash, HashAlgorithm, NodeId, StoreId};
use crate::core::limits::{HASHES_PER_FRAME_MAX, SCAN_RETRY_MS, SOLICITED_PER_PEER_MAX};
use crate::core::message::{Hello, Members, Message};
use crate::core::pairing::{Member, device_name};
use crate::core::peers::{Backoff, Conn, ConnId, Link, Placed};
use crate::core::reconcile::{
    Answer, Output, Query, ReconcileError, ReconcileMessage, Reconciler, SetSummary, Since,
    Snapshot,
};
use crate::core::session::{Lane, Session};
use crate::core::sketch::Sketch;
use crate::core::wants::{Arrival, BatchId, Wants};

/// A device that accepted a connection says Hello within this time.
const HELLO_MS_MAX: u64 = 10_000;

/// Two quiet devices with different fingerprints are given this long to tell each other of what is
/// under way before they compare again.
const SETTLE_MS: u64 = 1_000;

/// A peer that owes an answer to a reconcile step or a solicitation, and sends nothing at all.
const SILENT_MS_MAX: u64 = 120_000;

/// How long soliciting pauses when the own store could not take what arrived.
const STORE_PAUSE_MS: u64 = 30_000;

/// At shutdown, batches under way are given this long.
const STOP_MS_MAX: u64 = 5_000;

/// A peer's cursor is saved at most this often; an older one costs a longer delta.
const SAVE_CURSOR_MS: u64 = 1_000;

/// Questions to the index that the rounds of one connection may have open: one of the round under
/// way, and those of rounds that just ended.
const ASKS_MAX: usize = 4;

/// Entries indexed while the sketch is being rebuilt; beyond, the rebuild starts over.
const REBUILD_LOG_MAX: usize = 100_000;

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
        /// Which.
        conn: ConnId,
        /// Why, for people.
        reason: String,
        /// The peer broke the protocol or refused us: be slow to return.
        violation: bool,
    },
    /// A message on the control stream.
    Message {
        /// From where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// [`Effect::MergeMembers`] was carried out.
    Merged {
        /// The connection named in it.
        conn: ConnId,
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
        /// Which.
        batch: BatchId,
        /// What became of each asset.
        outcomes: Vec<(Hash, Sent)>,
    },
    /// A batch broke off unacknowledged.
    BatchFailed {
        /// On which connection.
        conn: ConnId,
        /// Which.
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
        /// Which.
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
        /// Which.
        conn: ConnId,
        /// The reason given.
        code: CloseCode,
        /// More words for the peer's log; empty when the code says it all.
        detail: String,
    },
    /// Send a message on the control stream.
    Send {
        /// Where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Ask the index on behalf of a reconcile.
    Ask {
        /// For which connection.
        conn: ConnId,
        /// For which round; to be named in the answer.
        round: u64,
        /// What.
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
        /// Where.
        conn: ConnId,
        /// The batch's number, to be named in the answer.
        batch: BatchId,
        /// What.
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
        /// Where.
        conn: ConnId,
    },
    /// Remember how far a peer's set has been taken in.
    SaveCursor {
        /// Whose.
        peer: NodeId,
        /// How far.
        since: Since,
    },
    /// Take in what a peer knows of the group; answered by `Merged`, and by `Members` when something
    /// changed.
    MergeMembers {
        /// On which connection; to be named in `Merged`.
        conn: ConnId,
        /// Who says so.
        peer: NodeId,
        /// What it knows.
        members: Members,
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
    /// Who.
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

struct Peer {
    name: String,
    link: Link,
    session: Option<Session>,
    since: Option<Since>,
    scanned_ms: Option<u64>,
    last_error: Option<String>,
}

impl Peer {
    /// True when a round with this peer may read the whole index.
    fn may_scan(&self, now_ms: u64) -> bool {
        self.scanned_ms.is_none_or(|at| now_ms >= at + SCAN_RETRY_MS)
    }
}

#[derive(Debug)]
struct Rebuild {
    /// What was indexed since it began.
    log: Vec<(u64, Hash)>,
    /// Whose messages made the sketch look wrong.
    accuser: ConnId,
}

#[derive(Debug)]
struct Sending {
    lane: Lane,
    hashes: BTreeSet<Hash>,
}

/// See the module's head.
pub struct Engine {
    identity: Identity,
    known: KnownSet,
    rebuilding: Option<Rebuild>,
    /// When the last rebuild ended.
    rebuilt_ms: Option<u64>,
    store_up: bool,
    behind: bool,
    /// Nothing is asked for or taken until then.
    store_paused_until_ms: Option<u64>,
    members: Members,
    peers: BTreeMap<NodeId, Peer>,
    conns: BTreeMap<ConnId, NodeId>,
    wants: Wants,
    /// A batch's number is good with its connection's only: an engine that took over from another
    /// numbers anew, and what that one had sent may still be reported.
    sending: BTreeMap<(ConnId, BatchId), Sending>,
    next_batch: u64,
    dice: Dice,
    stop_at_ms: Option<u64>,
    stopped: bool,
}

impl Engine {
    /// An engine over a loaded index. `seed` is fresh randomness, `cursors` how far each peer's set
    /// has been taken in.
    pub fn new(
        identity: Identity,
        known: KnownSet,
        members: Members,
        cursors: BTreeMap<NodeId, Since>,
        seed: [u8; 32],
    ) -> Self {
        let mut engine = Self {
            identity,
            known,
            rebuilding: None,
            rebuilt_ms: None,
            store_up: false,
            behind: true,
            store_paused_until_ms: None,
            members: Members::default(),
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            wants: Wants::default(),
            sending: BTreeMap::new(),
            next_batch: 1,
            dice: Dice { seed, drawn: 0 },
            stop_at_ms: None,
            stopped: false,
        };
        engine.take_members(0, members, &mut Vec::new());
        for (node_id, since) in cursors {
            if let Some(peer) = engine.peers.get_mut(&node_id) {
                peer.since = Some(since);
            }
        }
        engine
    }

    /// Takes in one fact at monotonic time `now_ms` and appends what is to be done.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Effect>) {
        if self.stopped {
            return;
        }
        self.store_paused_until_ms.take_if(|until_ms| now_ms >= *until_ms);
        match input {
            Input::Members(members) => self.take_members(now_ms, members, out),
            Input::Renamed(name) => self.identity.device_name = name,
            Input::Seen(node_id) => self.on_seen(now_ms, node_id),
            Input::NetworkChanged => {
                self.peers.values_mut().for_each(|peer| peer.link.hurry(now_ms));
            }
            Input::Connected { conn, peer, dialed, plain } => {
                self.on_connected(
                    now_ms,
                    Conn { id: conn, dialed, since_ms: now_ms },
                    peer,
                    plain,
                    out,
                );
            }
            Input::DialFailed { peer, reason } => self.on_dial_failed(now_ms, peer, reason),
            Input::Disconnected { conn, reason, violation } => {
                self.on_disconnected(now_ms, conn, reason, violation, out);
            }
            Input::Message { conn, message } => self.on_message(now_ms, conn, message, out),
            Input::Merged { conn } => self.on_merged(conn, out),
            Input::Answer { conn, round, answer } => {
                if let Some(session) = self.session(conn) {
                    session.asks = session.asks.saturating_sub(1);
                }
                self.drive(now_ms, conn, out, |reconciler, out| {
                    if reconciler.round() == round {
                        reconciler.on_answer(answer, out);
                    }
                    Ok(())
                });
            }
            Input::Sizes { conn, held, missing } => self.on_sizes(conn, held, missing, out),
            Input::Store { up } => (self.store_up, self.store_paused_until_ms) = (up, None),
            Input::Indexed { entries, behind } => self.on_indexed(now_ms, &entries, behind),
            Input::Rebuilt(known) => self.on_rebuilt(now_ms, known, out),
            Input::RebuildFailed => {
                self.rebuilding = None;
                self.rebuilt_ms = Some(now_ms);
            }
            Input::BatchSent { conn, batch, outcomes } => {
                self.on_sent(now_ms, conn, batch, outcomes, out);
            }
            Input::BatchFailed { conn, batch, violation } => {
                self.on_send_failed(now_ms, conn, batch, violation, out);
            }
            Input::Offered { conn, batch, digests } => {
                self.on_offered(now_ms, conn, batch, &digests, out);
            }
            Input::Received { conn, batch, arrivals, store_failed, violation } => {
                if store_failed {
                    self.store_paused_until_ms = Some(now_ms + STORE_PAUSE_MS);
                }
                self.on_received(now_ms, conn, batch, arrivals);
                if violation {
                    self.close(conn, CloseCode::Protocol, "a batch broke the protocol", out);
                }
            }
            Input::PlainDone { conn, held_there, stored_here, failed, more } => {
                let Some((node_id, session)) = self.session_of(conn) else { return };
                session.forget_live(&held_there);
                session.forget_live(&stored_here);
                session.plain_done = !more;
                if failed {
                    session.repeat_plain(now_ms);
                }
                stored_here.into_iter().for_each(|hash| self.wants.held_by(node_id, hash));
                if more {
                    self.close(conn, CloseCode::Ok, "the next connection carries the rest", out);
                }
            }
            Input::PlainStream { conn, batch } => {
                if let Some(session) = self.session(conn) {
                    session.receiving.insert(batch);
                }
            }
            Input::Tick => {}
            Input::Stop => {
                self.stop_at_ms.get_or_insert(now_ms + STOP_MS_MAX);
            }
        }
        self.settle(now_ms, out);
    }

    /// When to call with [`Input::Tick`] if nothing happens before, monotonic ms.
    pub fn deadline_ms(&self) -> Option<u64> {
        let peers = self.peers.values().filter_map(|peer| {
            let retry = peer.link.retry_at_ms().filter(|_| self.stop_at_ms.is_none());
            let session = peer.session.as_ref().and_then(|session| self.session_deadline(session));
            [retry, session].into_iter().flatten().min()
        });
        let ours = [self.stop_at_ms, self.store_paused_until_ms, self.wants.deadline_ms()];
        peers.chain(ours.into_iter().flatten()).min()
    }

    /// How every other device of the group stands.
    pub fn peer_views(&self) -> Vec<PeerView> {
        let fingerprint = self.known.sketch.fingerprint();
        let view = |(node_id, peer): (&NodeId, &Peer)| {
            let session = peer.session.as_ref();
            PeerView {
                node_id: *node_id,
                name: peer.name.clone(),
                conn: peer.link.current().map(|conn| conn.id),
                ready: session.is_some_and(|s| s.hello.is_some()),
                dialing: peer.link.is_dialing(),
                in_sync: session.is_some_and(|s| self.is_in_sync(*node_id, s, &fingerprint)),
                active: session.is_some_and(|s| !self.is_quiet(*node_id, s)),
                missing_here: self.wants.source_load(*node_id) as u64,
                missing_there: session.map_or(0, |s| s.missing_there() as u64),
                last_error: peer.last_error.clone(),
                retry_at_ms: peer.link.retry_at_ms(),
            }
        };
        self.peers.iter().map(view).collect()
    }

    /// What this device says of itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This device was removed from its group.
    pub fn is_removed(&self) -> bool {
        self.members.removed.contains(&self.identity.node_id)
    }

    /// The set of known hashes, for saving.
    pub fn known(&self) -> &KnownSet {
        &self.known
    }

    /// The store is being taken in.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Assets left alone because their content failed.
    pub fn quarantined(&self, now_ms: u64) -> usize {
        self.wants.quarantined(now_ms)
    }

    // ---- members and connections ------------------------------------------------------------

    fn take_members(&mut self, now_ms: u64, members: Members, out: &mut Vec<Effect>) {
        if members == self.members {
            return;
        }
        let me = self.identity.node_id;
        let others: BTreeMap<NodeId, &Member> = members
            .members
            .iter()
            .filter(|member| member.node_id != me)
            .map(|member| (member.node_id, member))
            .collect();
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|node_id| !others.contains_key(node_id)).copied().collect();
        for node_id in gone {
            let conns: Vec<ConnId> =
                self.conns.iter().filter(|(_, n)| **n == node_id).map(|(conn, _)| *conn).collect();
            for conn in conns {
                self.close(conn, CloseCode::Removed, "", out);
                self.conns.remove(&conn);
            }
            self.end_session(node_id);
            self.peers.remove(&node_id);
        }
        for (node_id, member) in others {
            let peer = self.peers.entry(node_id).or_insert_with(|| {
                let mut link = Link::default();
                link.hurry(now_ms);
                Peer {
                    name: String::new(),
                    link,
                    session: None,
                    since: None,
                    scanned_ms: None,
                    last_error: None,
                }
            });
            peer.name.clone_from(&member.name);
        }
        self.members = members;
        for peer in self.peers.values() {
            let Some(session) = &peer.session else { continue };
            if session.hello.is_some() && !session.plain {
                let message = Message::Members(self.members.clone());
                out.push(Effect::Send { conn: session.conn, message });
            }
        }
    }

    fn on_seen(&mut self, now_ms: u64, node_id: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node_id) {
            peer.link.hurry(now_ms);
        }
    }

    fn on_connected(
        &mut self,
        now_ms: u64,
        conn: Conn,
        node_id: NodeId,
        plain: bool,
        out: &mut Vec<Effect>,
    ) {
        let we_are_lower = self.identity.node_id < node_id;
        let Some(peer) = self.peers.get_mut(&node_id) else {
            out.push(close(conn.id, CloseCode::NotMember, ""));
            return;
        };
        self.conns.insert(conn.id, node_id);
        match peer.link.connected(conn, we_are_lower) {
            Placed::Current { close: replaced } => {
                if let Some(old) = replaced {
                    out.push(close(old, CloseCode::Duplicate, ""));
                }
                self.begin_session(now_ms, node_id, conn, plain, out);
            }
            Placed::Standby => {}
            Placed::Duplicate => out.push(close(conn.id, CloseCode::Duplicate, "")),
        }
    }

    fn begin_session(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        conn: Conn,
        plain: bool,
        out: &mut Vec<Effect>,
    ) {
        self.end_session(node_id);
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        peer.session = Some(Session::new(now_ms, conn.id, conn.dialed, plain));
        let hello = Hello {
            group_id: self.identity.group_id,
            device_name: self.identity.device_name.clone(),
            store_id: self.identity.store_id,
            algorithm: self.identity.algorithm,
            build: self.identity.build.clone(),
        };
        out.push(Effect::Send { conn: conn.id, message: Message::Hello(hello) });
    }

    /// Forgets the session and what was under way in it; the connection may live on.
    fn end_session(&mut self, node_id: NodeId) {
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = peer.session.take() else { return };
        self.sending.retain(|(conn, _), _| *conn != session.conn);
        self.wants.peer_gone(node_id);
    }

    fn on_dial_failed(&mut self, now_ms: u64, node_id: NodeId, reason: String) {
        let random = self.dice.next_u64();
        if let Some(peer) = self.peers.get_mut(&node_id) {
            peer.link.dial_failed(now_ms, random);
            peer.last_error = Some(reason);
        }
    }

    fn on_disconnected(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        reason: String,
        violation: bool,
        out: &mut Vec<Effect>,
    ) {
        let random = self.dice.next_u64();
        let Some(node_id) = self.conns.remove(&conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let was_current = peer.link.current().is_some_and(|current| current.id == conn);
        let next = peer.link.ended(conn, now_ms, violation, random);
        if !was_current {
            return;
        }
        peer.last_error = Some(reason);
        self.end_session(node_id);
        if let Some(next) = next {
            // A plain connection never stands by for long enough to matter; Hello tells otherwise.
            self.begin_session(now_ms, node_id, next, false, out);
        }
    }

    fn close(&mut self, conn: ConnId, code: CloseCode, detail: &str, out: &mut Vec<Effect>) {
        out.push(close(conn, code, detail));
        let Some(session) = self.session(conn) else { return };
        session.closing = true;
    }

    // ---- messages ----------------------------------------------------------------------------

    fn on_message(&mut self, now_ms: u64, conn: ConnId, message: Message, out: &mut Vec<Effect>) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        session.heard(now_ms);
        if let Message::Hello(hello) = message {
            if session.hello.is_some() {
                self.close(conn, CloseCode::Protocol, "a second Hello", out);
            } else {
                self.on_hello(now_ms, node_id, conn, hello, out);
            }
            return;
        }
        if session.hello.is_none() || session.plain {
            self.close(conn, CloseCode::Protocol, "a message before Hello", out);
            return;
        }
        match message {
            Message::Hello(_) => {}
            Message::Members(members) => {
                session.members.replace(members);
                self.merge_members(conn, out);
            }
            Message::Summary(summary) => session.theirs = Some(*summary),
            Message::Reconcile(ReconcileMessage::Compare { round, summary }) => {
                self.on_compare(now_ms, conn, round, summary, out);
            }
            Message::Reconcile(message) => {
                self.drive(now_ms, conn, out, |reconciler, out| {
                    reconciler.on_message(message, out)
                });
            }
            Message::Solicit(hashes) => {
                if session.solicited() + hashes.len() > SOLICITED_PER_PEER_MAX {
                    self.close(conn, CloseCode::TooLarge, "too much solicited at once", out);
                    return;
                }
                session.push_to_size(hashes);
                self.ask_sizes(conn, out);
            }
            Message::Lacking(hashes) => {
                session.touch(now_ms + SETTLE_MS);
                for hash in hashes {
                    self.wants.unavailable(node_id, hash);
                }
            }
        }
    }

    /// Has the newest word of a peer about the group taken in, one at a time.
    fn merge_members(&mut self, conn: ConnId, out: &mut Vec<Effect>) {
        let Some((peer, session)) = self.session_of(conn) else { return };
        if session.merging {
            return;
        }
        let Some(members) = session.members.take() else { return };
        session.merging = true;
        out.push(Effect::MergeMembers { conn, peer, members });
    }

    fn on_merged(&mut self, conn: ConnId, out: &mut Vec<Effect>) {
        let Some(session) = self.session(conn) else { return };
        session.merging = false;
        self.merge_members(conn, out);
    }

    fn on_hello(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        conn: ConnId,
        hello: Hello,
        out: &mut Vec<Effect>,
    ) {
        if hello.group_id != self.identity.group_id {
            self.close(conn, CloseCode::WrongGroup, "", out);
            return;
        }
        if hello.algorithm != self.identity.algorithm {
            let ours = self.identity.algorithm.name();
            let detail = format!("{ours} here, {} there", hello.algorithm.name());
            self.close(conn, CloseCode::HashAlgorithm, &detail, out);
            return;
        }
        let members = self.members.clone();
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &mut peer.session else { return };
        peer.last_error = None;
        peer.name = device_name(&hello.device_name);
        session.hello = Some(hello);
        session.heard(now_ms);
        if session.plain {
            out.push(Effect::RunPlain { conn });
        } else {
            out.push(Effect::Send { conn, message: Message::Members(members) });
        }
    }

    // ---- reconcile ---------------------------------------------------------------------------

    fn summary(&self, since: Option<Since>) -> SetSummary {
        self.snapshot_since(since).summary.announced()
    }

    fn snapshot(&self, node_id: NodeId) -> Snapshot {
        self.snapshot_since(self.peers.get(&node_id).and_then(|peer| peer.since))
    }

    fn snapshot_since(&self, since: Option<Since>) -> Snapshot {
        let KnownSet { sketch, epoch, head_seq } = self.known.clone();
        Snapshot::new(sketch, epoch, head_seq, since, self.behind)
    }

    fn start_compare(&mut self, now_ms: u64, node_id: NodeId, out: &mut Vec<Effect>) {
        let snapshot = self.snapshot(node_id);
        let (random, nonce) = (self.dice.next_u64(), self.dice.next_bytes());
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let scan_allowed = peer.may_scan(now_ms);
        let Some(session) = &mut peer.session else { return };
        session.round += 1;
        let pause_ms = session.compare_backoff.next_ms(random);
        session.touch(now_ms + pause_ms);
        let mut outputs = Vec::new();
        let reconciler =
            Reconciler::initiate(session.round, snapshot, nonce, scan_allowed, &mut outputs);
        session.reconciler = Some(reconciler);
        let conn = session.conn;
        self.carry_out(now_ms, conn, outputs, out);
    }

    fn on_compare(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        round: u64,
        theirs: SetSummary,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        if session.dialed {
            self.close(conn, CloseCode::Protocol, "Compare comes from the dialer", out);
            return;
        }
        if round <= session.round {
            self.close(conn, CloseCode::Protocol, "a round of the past", out);
            return;
        }
        session.round = round;
        session.reconciler = None;
        let scan_allowed = self.peers.get(&node_id).is_some_and(|peer| peer.may_scan(now_ms));
        let snapshot = self.snapshot(node_id);
        let nonce = self.dice.next_bytes();
        let mut outputs = Vec::new();
        match Reconciler::respond(round, snapshot, theirs, nonce, scan_allowed, &mut outputs) {
            Ok(reconciler) => {
                if let Some(session) = self.session(conn) {
                    session.reconciler = Some(reconciler);
                }
                self.carry_out(now_ms, conn, outputs, out);
            }
            Err(error) => self.close(conn, CloseCode::Protocol, &error.to_string(), out),
        }
    }

    /// Lets the connection's reconcile take a step and carries out what it says.
    fn drive(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        out: &mut Vec<Effect>,
        step: impl FnOnce(&mut Reconciler, &mut Vec<Output>) -> Result<(), ReconcileError>,
    ) {
        let Some(session) = self.session(conn) else { return };
        let Some(reconciler) = &mut session.reconciler else { return };
        let mut outputs = Vec::new();
        match step(reconciler, &mut outputs) {
            Ok(()) => self.carry_out(now_ms, conn, outputs, out),
            Err(error) => self.close(conn, CloseCode::Protocol, &error.to_string(), out),
        }
    }

    fn carry_out(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        outputs: Vec<Output>,
        out: &mut Vec<Effect>,
    ) {
        for output in outputs {
            let Some((node_id, session)) = self.session_of(conn) else { return };
            match output {
                Output::Send(message) => {
                    out.push(Effect::Send { conn, message: Message::Reconcile(message) });
                }
                Output::Ask(query) => {
                    session.asks += 1;
                    if session.asks > ASKS_MAX {
                        self.close(conn, CloseCode::TooLarge, "too many rounds at once", out);
                        return;
                    }
                    out.push(Effect::Ask { conn, round: session.round, query });
                }
                Output::WeLack(hashes) => {
                    for hash in hashes {
                        self.wants.lacking(now_ms, node_id, hash);
                    }
                }
                Output::Finished(outcome) => {
                    session.reconciler = None;
                    session.touch(now_ms + SETTLE_MS.max(outcome.retry_ms.unwrap_or(0)));
                    if outcome.scanned
                        && let Some(peer) = self.peers.get_mut(&node_id)
                    {
                        peer.scanned_ms = Some(now_ms);
                    }
                    if outcome.stale_sketch {
                        self.rebuild(now_ms, conn, out);
                    }
                }
            }
        }
    }

    /// Has the index scanned anew, unless that was done a short while ago: what `accuser` says may
    /// be a lie, and nobody is compared with meanwhile.
    fn rebuild(&mut self, now_ms: u64, accuser: ConnId, out: &mut Vec<Effect>) {
        let is_soon = self.rebuilt_ms.is_some_and(|at_ms| now_ms < at_ms + SCAN_RETRY_MS);
        if self.rebuilding.is_some() || is_soon {
            return;
        }
        self.rebuilding = Some(Rebuild { log: Vec::new(), accuser });
        out.push(Effect::RebuildSketch);
    }

    fn on_rebuilt(&mut self, now_ms: u64, known: KnownSet, out: &mut Vec<Effect>) {
        let Some(Rebuild { log, accuser }) = self.rebuilding.take() else { return };
        if log.len() > REBUILD_LOG_MAX {
            self.rebuilding = Some(Rebuild { log: Vec::new(), accuser });
            out.push(Effect::RebuildSketch);
            return;
        }
        self.rebuilt_ms = Some(now_ms);
        let before = self.known.sketch.fingerprint();
        let head_seq = self.known.head_seq.max(known.head_seq);
        let scanned = known.head_seq;
        self.known = KnownSet { head_seq, ..known };
        for (_, hash) in log.into_iter().filter(|(seq, _)| *seq > scanned) {
            self.known.sketch.insert(&hash);
        }
        if self.known.sketch.fingerprint() == before {
            self.close(accuser, CloseCode::Protocol, "what it says of our set is not so", out);
        }
    }

    // ---- assets ------------------------------------------------------------------------------

    fn on_indexed(&mut self, now_ms: u64, entries: &[(u64, Digest)], behind: bool) {
        self.store_up = true;
        self.behind = behind;
        for (seq, digest) in entries {
            // A scan may have seen an entry before we are told of it.
            if *seq > self.known.head_seq {
                self.known.sketch.insert(&digest.hash);
                self.known.head_seq = *seq;
            }
            if let Some(Rebuild { log, .. }) = &mut self.rebuilding
                && log.len() <= REBUILD_LOG_MAX
            {
                log.push((*seq, digest.hash));
            }
            let holders = self.wants.indexed(digest.hash);
            if behind {
                continue;
            }
            for (node_id, peer) in &mut self.peers {
                let Some(session) = &mut peer.session else { continue };
                if session.hello.is_some() && !holders.contains(node_id) {
                    session.push_live(*digest, holders.is_empty());
                }
            }
        }
        if entries.is_empty() {
            return;
        }
        for session in self.peers.values_mut().filter_map(|peer| peer.session.as_mut()) {
            session.touch(now_ms + SETTLE_MS);
        }
    }

    fn on_sizes(
        &mut self,
        conn: ConnId,
        held: Vec<Digest>,
        missing: Vec<Hash>,
        out: &mut Vec<Effect>,
    ) {
        let Some(session) = self.session(conn) else { return };
        session.push_solicited(held);
        self.ask_sizes(conn, out);
        for chunk in missing.chunks(HASHES_PER_FRAME_MAX) {
            out.push(Effect::Send { conn, message: Message::Lacking(chunk.to_vec()) });
        }
    }

    fn ask_sizes(&mut self, conn: ConnId, out: &mut Vec<Effect>) {
        let Some(hashes) = self.session(conn).and_then(Session::next_to_size) else { return };
        out.push(Effect::AskSizes { conn, hashes });
    }

    fn on_sent(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        outcomes: Vec<(Hash, Sent)>,
        out: &mut Vec<Effect>,
    ) {
        let Some(sending) = self.sending.remove(&(conn, batch)) else { return };
        let Some(session) = self.session(conn) else { return };
        session.heard(now_ms);
        session.lane_freed(sending.lane);
        session.touch(now_ms + SETTLE_MS);
        if outcomes.iter().any(|(_, sent)| *sent == Sent::Held) {
            session.compare_backoff.reset();
        }
        if session.plain && outcomes.iter().any(|(_, sent)| *sent != Sent::Held) {
            session.repeat_plain(now_ms);
        }
        let missing: Vec<Hash> = outcomes
            .iter()
            .filter(|(hash, sent)| *sent == Sent::Unavailable && sending.hashes.contains(hash))
            .map(|(hash, _)| *hash)
            .collect();
        if !missing.is_empty() && sending.lane.is_solicited() && !session.plain {
            out.push(Effect::Send { conn, message: Message::Lacking(missing) });
        }
    }

    fn on_send_failed(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        violation: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(sending) = self.sending.remove(&(conn, batch)) else { return };
        let Some(session) = self.session(conn) else { return };
        session.lane_freed(sending.lane);
        session.touch(now_ms + SETTLE_MS);
        if violation {
            self.close(conn, CloseCode::Protocol, "a batch broke the protocol", out);
        } else if session.plain {
            // The plain protocol cannot compare again on a connection: a new one starts over.
            self.close(conn, CloseCode::Internal, "a batch broke off", out);
        } else if sending.lane.is_solicited() {
            // The peer may never have seen the offer, and waits for what it asked for.
            let hashes = sending.hashes.into_iter().collect();
            out.push(Effect::Send { conn, message: Message::Lacking(hashes) });
        }
    }

    fn on_offered(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        digests: &[Digest],
        out: &mut Vec<Effect>,
    ) {
        let is_ready = self.store_up && self.store_paused_until_ms.is_none();
        let mut wanted = vec![false; digests.len()];
        if let Some((node_id, session)) = self.session_of(conn) {
            session.heard(now_ms);
            session.receiving.insert(batch);
            for (want, digest) in wanted.iter_mut().zip(digests) {
                if is_ready {
                    *want = self.wants.offered(now_ms, node_id, batch, digest.hash);
                } else {
                    self.wants.turned_away(now_ms, node_id, digest.hash);
                }
            }
        }
        out.push(Effect::Decide { batch, wanted });
    }

    fn on_received(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        arrivals: Vec<(Hash, Arrival)>,
    ) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        session.heard(now_ms);
        session.receiving.remove(&batch);
        session.touch(now_ms + SETTLE_MS);
        if arrivals.iter().any(|(_, arrival)| *arrival == Arrival::Stored) {
            session.compare_backoff.reset();
        }
        if session.plain {
            let is_here = |arrival: Arrival| matches!(arrival, Arrival::Stored | Arrival::Held);
            if arrivals.iter().any(|(_, arrival)| !is_here(*arrival)) {
                session.repeat_plain(now_ms);
            }
            let stored = arrivals.into_iter().filter(|(_, arrival)| *arrival == Arrival::Stored);
            let stored: Vec<Hash> = stored.map(|(hash, _)| hash).collect();
            session.forget_live(&stored);
            stored.into_iter().for_each(|hash| self.wants.held_by(node_id, hash));
            return;
        }
        for (hash, arrival) in arrivals {
            self.wants.arrived(now_ms, node_id, batch, hash, arrival);
        }
        self.wants.batch_ended(node_id, batch);
    }

    // ---- after every input: see what can be done now -----------------------------------------

    fn settle(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        if let Some(stop_at_ms) = self.stop_at_ms {
            self.settle_stop(now_ms, stop_at_ms, out);
            return;
        }
        self.wants.pass_over_slow_peers(now_ms);
        let fingerprint = self.known.sketch.fingerprint();
        let node_ids: Vec<NodeId> = self.peers.keys().copied().collect();
        for node_id in node_ids {
            let Some(peer) = self.peers.get_mut(&node_id) else { continue };
            if peer.link.take_dial(now_ms) {
                out.push(Effect::Dial(node_id));
            }
            let Some(session) = self.peers.get(&node_id).and_then(|peer| peer.session.as_ref())
            else {
                continue;
            };
            let conn = session.conn;
            if session.closing {
                continue;
            }
            if session.hello.is_none() {
                if now_ms >= session.since_ms + HELLO_MS_MAX {
                    self.close(conn, CloseCode::Slow, "no Hello", out);
                }
                continue;
            }
            if self.is_silent(now_ms, node_id, session) {
                self.close(conn, CloseCode::Slow, "no answer", out);
                continue;
            }
            if session.plain_again_ms.is_some_and(|at_ms| now_ms >= at_ms) {
                self.close(conn, CloseCode::Ok, "to try again what did not arrive", out);
                continue;
            }
            self.settle_assets(now_ms, node_id, out);
            self.settle_sets(now_ms, node_id, &fingerprint, out);
        }
    }

    fn settle_stop(&mut self, now_ms: u64, stop_at_ms: u64, out: &mut Vec<Effect>) {
        if !self.sending.is_empty() && now_ms < stop_at_ms {
            return;
        }
        for conn in self.conns.keys() {
            out.push(close(*conn, CloseCode::Shutdown, ""));
        }
        self.stopped = true;
        out.push(Effect::Stopped);
    }

    /// Solicits and sends what there is room for.
    fn settle_assets(&mut self, now_ms: u64, node_id: NodeId, out: &mut Vec<Effect>) {
        if !self.store_up {
            return;
        }
        let Some(session) = self.peers.get_mut(&node_id).and_then(|peer| peer.session.as_mut())
        else {
            return;
        };
        let conn = session.conn;
        // A plain peer cannot be asked what it wants: what it is sending must be known first.
        if session.plain && (!session.plain_done || !session.receiving.is_empty()) {
            return;
        }
        if self.store_paused_until_ms.is_none() && !session.plain {
            let asking = self.wants.ask(now_ms, node_id);
            if !asking.is_empty() {
                session.heard(now_ms);
            }
            for chunk in asking.chunks(HASHES_PER_FRAME_MAX) {
                out.push(Effect::Send { conn, message: Message::Solicit(chunk.to_vec()) });
            }
        }
        while let Some(load) = session.next_batch() {
            let batch = BatchId(self.next_batch);
            self.next_batch += 1;
            let hashes = load.digests.iter().map(|digest| digest.hash).collect();
            self.sending.insert((conn, batch), Sending { lane: load.lane, hashes });
            out.push(Effect::SendBatch {
                conn,
                batch,
                digests: load.digests,
                lane: load.lane,
                inline: load.inline,
            });
        }
        let room = self.wants.room(node_id);
        let mut outputs = Vec::new();
        if let Some(reconciler) = &mut session.reconciler {
            reconciler.resume(room, &mut outputs);
        }
        self.carry_out(now_ms, conn, outputs, out);
    }

    /// Tells the peer about our set when all is quiet, and compares when the sets differ.
    fn settle_sets(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        fingerprint: &[u8; 32],
        out: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get(&node_id) else { return };
        let Some(session) = &peer.session else { return };
        if session.plain || !self.is_quiet(node_id, session) {
            return;
        }
        let conn = session.conn;
        let told = (*fingerprint, self.behind);
        let tell = (session.told != Some(told)).then(|| self.summary(peer.since));
        let equal = session
            .theirs
            .as_ref()
            .filter(|theirs| theirs.fingerprint == *fingerprint && !theirs.busy && !self.behind)
            .map(|theirs| Since { epoch: theirs.epoch, seq: theirs.head_seq });
        let differ = session
            .theirs
            .as_ref()
            .is_some_and(|theirs| theirs.fingerprint != *fingerprint && !theirs.busy);
        let compare = session.dialed
            && differ
            && !self.behind
            && self.store_up
            && self.rebuilding.is_none()
            && now_ms >= session.compare_not_before_ms;
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &mut peer.session else { return };
        if let Some(summary) = tell {
            session.told = Some(told);
            out.push(Effect::Send { conn, message: Message::Summary(Box::new(summary)) });
        }
        if let Some(since) = equal {
            session.compare_backoff = Backoff::default();
            if peer.since != Some(since) && now_ms >= session.save_cursor_at_ms {
                session.save_cursor_at_ms = now_ms + SAVE_CURSOR_MS;
                peer.since = Some(since);
                out.push(Effect::SaveCursor { peer: node_id, since });
            }
        }
        if compare {
            self.start_compare(now_ms, node_id, out);
        }
    }

    fn is_quiet(&self, node_id: NodeId, session: &Session) -> bool {
        session.is_quiet() && self.wants.source_load(node_id) == 0
    }

    fn is_in_sync(&self, node_id: NodeId, session: &Session, fingerprint: &[u8; 32]) -> bool {
        if self.behind || session.hello.is_none() || !self.is_quiet(node_id, session) {
            return false;
        }
        if session.plain {
            return session.plain_done && session.plain_again_ms.is_none();
        }
        let told = session.told == Some((*fingerprint, false));
        let equal = |theirs: &SetSummary| theirs.fingerprint == *fingerprint && !theirs.busy;
        told && session.theirs.as_ref().is_some_and(equal)
    }

    /// The peer owes us an answer and has not said anything for too long.
    fn is_silent(&self, now_ms: u64, node_id: NodeId, session: &Session) -> bool {
        self.owes_answer(node_id, session) && now_ms >= session.heard_ms + SILENT_MS_MAX
    }

    fn owes_answer(&self, node_id: NodeId, session: &Session) -> bool {
        let idle = session.receiving.is_empty() && session.missing_there() == 0;
        idle && (self.wants.owed(node_id) > 0 || session.reconciler.is_some())
    }

    fn session_deadline(&self, session: &Session) -> Option<u64> {
        if session.closing {
            return None;
        }
        if session.hello.is_none() {
            return Some(session.since_ms + HELLO_MS_MAX);
        }
        let node_id = *self.conns.get(&session.conn)?;
        let silent = self.owes_answer(node_id, session).then_some(session.heard_ms + SILENT_MS_MAX);
        let differ = session.theirs.as_ref().is_some_and(|theirs| {
            theirs.fingerprint != self.known.sketch.fingerprint() && !theirs.busy
        });
        let compare = (session.dialed
            && !session.plain
            && differ
            && !self.behind
            && self.store_up
            && self.rebuilding.is_none()
            && self.is_quiet(node_id, session))
        .then_some(session.compare_not_before_ms);
        [silent, compare, session.plain_again_ms].into_iter().flatten().min()
    }

    fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.session_of(conn).map(|(_, session)| session)
    }

    /// The session that runs on `conn`, unless it is being closed.
    fn session_of(&mut self, conn: ConnId) -> Option<(NodeId, &mut Session)> {
        let node_id = *self.conns.get(&conn)?;
        let session = self.peers.get_mut(&node_id)?.session.as_mut()?;
        (session.conn == conn && !session.closing).then_some((node_id, session))
    }
}

fn close(conn: ConnId, code: CloseCode, detail: &str) -> Effect {
    Effect::Close { conn, code, detail: detail.to_owned() }
}

/// Random numbers from a seed: BLAKE3 in counter mode, so that a peer cannot guess the next.
#[derive(Debug)]
struct Dice {
    seed: [u8; 32],
    drawn: u64,
}

impl Dice {
    fn next_bytes(&mut self) -> [u8; 16] {
        self.drawn += 1;
        let hash = blake3::keyed_hash(&self.seed, &self.drawn.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        bytes
    }

    fn next_u64(&mut self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.next_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests;
