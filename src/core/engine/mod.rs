//! The engine, the heart of the agent: inputs in, effects out. Decides which peers are dialled,
//! what two devices compare, what is requested from whom, what is sent, and when a peer is closed.
//! It moves no bytes and waits for nothing.
//!
//! The agent's loop calls [`Engine::handle`] for each [`Input`] and performs the [`Effect`]s in
//! order. When [`Engine::deadline_ms`] passes it calls with [`Input::Tick`]. Any input is legal at
//! any time: inputs about connections and batches that are gone are ignored.
//!
//! I1  What a peer lacks is found by comparing sets, never by remembering what was sent. Whatever
//!     is lost on the way, two devices with different fingerprints compare again: when all is
//!     quiet, and from time to time beside large transfers.
//! I2  An asset counts as held by a peer only when the peer acknowledged it or said that it holds
//!     it.
//! I3  Everything kept per peer is bounded by `core::limits`. New assets beyond the bound are left
//!     to I1.
//! I4  One peer never waits for the answer of another.

mod assets;
mod copies;
mod facts;
mod links;
mod sets;
mod talk;
mod why;

use std::collections::BTreeMap;

use crate::core::close::CloseCode;
use crate::core::fetches::{FetchState, Fetches};
use crate::core::ids::{Hash, NodeId};
use crate::core::message::Hello;
use crate::core::pairing::Members;
use crate::core::peers::{Conn, ConnId, Link};
use crate::core::reconcile::Since;
use crate::core::session::{Plain, Session};
use crate::core::wants::{BatchId, Standing, Wants};

use self::assets::Sending;
use self::sets::{Rebuild, Scans};
use self::talk::Talk;

pub use self::facts::{Effect, Identity, Input, KnownSet, PeerView, Sent};
pub use self::talk::{Belief, OwnCopies};

/// How long a peer may take to send its Hello after its connection was accepted.
const HELLO_MS_MAX: u64 = 10_000;

/// How long two quiet devices with different fingerprints wait before they compare again, so that
/// each can announce what is under way. The first comparison of a connection does not wait.
const SETTLE_MS: u64 = 1_000;

/// How long a peer that owes an answer to a reconcile step or a solicitation may send nothing at
/// all.
const SILENT_MS_MAX: u64 = 120_000;

/// How long soliciting pauses after the own store could not store what arrived.
const STORE_PAUSE_MS: u64 = 30_000;

/// How long batches under way may take at shutdown.
const STOP_MS_MAX: u64 = 5_000;

struct Peer {
    name: String,
    link: Link,
    session: Option<Session>,
    /// The Hello received on a standby connection.
    standby_hello: Option<(ConnId, Hello)>,
    since: Option<Since>,
    scans: Scans,
    belief: Belief,
    talk: Talk,
    last_error: Option<String>,
    /// When its last connection ended.
    lost_ms: Option<u64>,
}

impl Peer {
    /// See [`PeerView::confirms`].
    fn confirms(&self) -> bool {
        match &self.session {
            Some(session) if session.plain.is_some() => false,
            Some(session) if session.hello.is_some() => true,
            // One that was confirmed before may be dialled in vain for days.
            _ if self.belief.is_confirmed => false,
            _ => {
                let is_connecting = self.link.is_dialing() || self.link.current().is_some();
                is_connecting || self.last_error.is_none()
            }
        }
    }
}

/// See the module's head.
pub struct Engine {
    identity: Identity,
    known: KnownSet,
    own: OwnCopies,
    rebuilding: Option<Rebuild>,
    /// When the last rebuild ended.
    rebuilt_ms: Option<u64>,
    store_up: bool,
    behind: bool,
    /// Until then nothing is requested or accepted, because the own store failed.
    store_paused_until_ms: Option<u64>,
    members: Members,
    peers: BTreeMap<NodeId, Peer>,
    conns: BTreeMap<ConnId, NodeId>,
    wants: Wants,
    fetches: Fetches,
    /// Keyed by connection too: an engine that took over from another numbers batches from the
    /// start again, and batches of the other one may still be reported.
    sending: BTreeMap<(ConnId, BatchId), Sending>,
    next_batch: u64,
    dice: Dice,
    stop_at_ms: Option<u64>,
    stopped: bool,
}

impl Engine {
    /// An engine over a loaded index. `seed` is fresh randomness, `cursors` hold how far each
    /// peer's set is known.
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
            own: OwnCopies::default(),
            rebuilding: None,
            rebuilt_ms: None,
            store_up: false,
            behind: true,
            store_paused_until_ms: None,
            members: Members::default(),
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            wants: Wants::default(),
            fetches: Fetches::default(),
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

    /// Handles one input at monotonic time `now_ms` and appends the effects.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Effect>) {
        if self.stopped {
            return;
        }
        self.store_paused_until_ms.take_if(|until_ms| now_ms >= *until_ms);
        match input {
            Input::Members(members) => self.take_members(now_ms, members, out),
            Input::Renamed(name) => self.identity.device_name = name,
            Input::Seen(node_id) => self.on_seen(now_ms, node_id),
            Input::NetworkChanged => self.on_network_changed(now_ms, out),
            Input::Silent(conn) => {
                self.peers.values_mut().for_each(|peer| peer.link.doubt(now_ms, conn));
            }
            Input::HeardAgain(conn) => {
                self.peers.values_mut().for_each(|peer| peer.link.trust(conn));
            }
            Input::Connected { conn, peer, dialed, plain } => {
                let conn = Conn { id: conn, dialed, plain, since_ms: now_ms };
                self.on_connected(now_ms, conn, peer, out);
            }
            Input::DialFailed { peer, reason } => self.on_dial_failed(now_ms, peer, reason),
            Input::Disconnected { conn, reason, violation } => {
                self.on_disconnected(now_ms, conn, reason, violation, out);
            }
            Input::Message { conn, message } => self.on_message(now_ms, conn, message, out),
            Input::Answer { conn, round, answer } => {
                self.on_answer(now_ms, conn, round, answer, out);
            }
            Input::Sizes { conn, held, missing } => self.on_sizes(conn, held, missing, out),
            Input::Store { up } => {
                (self.store_up, self.store_paused_until_ms) = (up, None);
                if up {
                    self.wants.feed_read();
                }
            }
            Input::Indexed { entries, behind } => self.on_indexed(now_ms, &entries, behind),
            Input::Released { hashes } => {
                hashes.iter().for_each(|hash| self.wants.was_released(hash));
            }
            Input::Noted { entries, absent, missing } => {
                self.on_noted(now_ms, &entries, absent, missing);
            }
            Input::AbsentRead { conn, page } => self.on_absent_read(conn, page, out),
            Input::Believed { conn, peer, belief, restarts } => {
                self.on_believed(now_ms, conn, peer, belief, restarts);
            }
            Input::Missing { conn, hashes, next } => self.on_missing(now_ms, conn, hashes, next),
            Input::Confirmed { peer } => self.on_confirmed(now_ms, peer),
            Input::SizesRead { conn, sizes } => self.on_sizes_read(conn, sizes, out),
            Input::Unwanted { conn, hashes } => self.on_unwanted(conn, &hashes),
            Input::Judged { conn, wanted } => self.on_judged(now_ms, conn, wanted),
            Input::Rebuilt(known) => self.on_rebuilt(now_ms, known, out),
            Input::RebuildFailed => self.on_rebuild_failed(now_ms),
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
                if let Some((node_id, session)) = self.session_of(conn) {
                    session.plain_done(now_ms, &held_there, &stored_here, failed);
                    stored_here.iter().for_each(|hash| self.wants.held_by(node_id, *hash));
                }
                if more {
                    self.close(conn, CloseCode::Ok, "the next connection carries the rest", out);
                }
            }
            Input::PlainStream { conn, batch } => {
                if let Some(session) = self.session(conn) {
                    session.receiving.insert(batch);
                }
            }
            Input::Fetch { hashes, at_once } => self.on_fetch(now_ms, hashes, at_once),
            Input::Tick => {}
            Input::Stop => {
                self.stop_at_ms.get_or_insert(now_ms + STOP_MS_MAX);
            }
        }
        self.settle(now_ms, out);
    }

    /// When to call with [`Input::Tick`] if no input comes before, monotonic ms.
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.stop_at_ms.is_some() {
            return self.stop_at_ms;
        }
        let peers = self.peers.values().filter_map(|peer| {
            let link = [peer.link.dial_at_ms(), peer.link.standby_until_ms()];
            let session = peer.session.as_ref().and_then(|session| self.session_deadline(session));
            link.into_iter().chain([session]).flatten().min()
        });
        let ours = [self.store_paused_until_ms, self.wants.deadline_ms()];
        peers.chain(ours.into_iter().flatten()).min()
    }

    /// The state of every other device of the group.
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
                confirms: peer.confirms(),
                active: session.is_some_and(|s| !self.is_quiet(*node_id, s)),
                missing_here: self.wants.held(*node_id) as u64,
                missing_there: session.map_or(0, |s| s.missing_there() as u64),
                last_error: peer.last_error.clone(),
                retry_at_ms: peer.link.retry_at_ms(),
            }
        };
        self.peers.iter().map(view).collect()
    }

    /// The state of the fetch of `hash`, which the index does not hold.
    pub fn fetching(&self, now_ms: u64, hash: &Hash) -> FetchState {
        match self.wants.standing(now_ms, hash) {
            Standing::Here => return FetchState::Here,
            Standing::Arriving => return FetchState::Arriving,
            Standing::Asked(_) | Standing::Queued => return FetchState::Waiting,
            Standing::Resting => return FetchState::Resting,
            Standing::Unknown if !self.fetches.contains(hash) => return FetchState::TooMany,
            Standing::Unknown => {}
        }
        let mut ready = self.ready_sessions().peekable();
        if ready.peek().is_none() {
            return FetchState::NoPeer;
        }
        // A plain peer cannot be asked for an asset: it sends all that it has anyway.
        match ready
            .any(|(_, session)| session.plain.as_ref().is_some_and(|plain| !plain.is_exchanged()))
        {
            true => FetchState::Waiting,
            false => FetchState::Nowhere,
        }
    }

    /// The first two assets known to be missing here whose hashes start with `prefix` (hex).
    pub fn lacked(&self, prefix: &str) -> Vec<Hash> {
        self.wants.lacked(prefix)
    }

    fn ready_sessions(&self) -> impl Iterator<Item = (NodeId, &Session)> {
        let sessions = self.peers.iter();
        let sessions =
            sessions.filter_map(|(node_id, peer)| Some((*node_id, peer.session.as_ref()?)));
        sessions.filter(|(_, session)| session.hello.is_some() && session.closing.is_none())
    }

    /// The connected peers that may be asked for proofs and thumbnails, as far as the Hello of each says
    /// that its version can.
    pub fn greeted(&self) -> impl Iterator<Item = (NodeId, ConnId, &Hello)> {
        let ready = self.ready_sessions().filter(|(_, session)| session.plain.is_none());
        ready
            .filter_map(|(node_id, session)| Some((node_id, session.conn, session.hello.as_ref()?)))
    }

    /// How this device presents itself to peers.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The group as of the last [`Input::Members`].
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Whether this device was removed from its group.
    pub fn is_removed(&self) -> bool {
        self.members.removed.contains(&self.identity.node_id)
    }

    /// The set of known hashes, to be saved.
    pub fn known(&self) -> &KnownSet {
        &self.known
    }

    /// Whether the index is still behind the store.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// How many assets are quarantined because their content was wrong.
    pub fn quarantined(&self, now_ms: u64) -> usize {
        self.wants.quarantined(now_ms)
    }

    fn close(&mut self, conn: ConnId, code: CloseCode, detail: &str, out: &mut Vec<Effect>) {
        out.push(close(conn, code, detail));
        let Some(session) = self.session(conn) else { return };
        session.closing = Some(code);
    }

    // ---- after every input: what can be done now -------------------------------------------

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
            let change = peer.link.end_standby(now_ms);
            self.follow_link(now_ms, node_id, change, out);
            let Some(session) = self.peers.get(&node_id).and_then(|peer| peer.session.as_ref())
            else {
                continue;
            };
            let conn = session.conn;
            if session.closing.is_some() {
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
            if session.plain.as_ref().and_then(Plain::again_ms).is_some_and(|at_ms| now_ms >= at_ms)
            {
                self.close(conn, CloseCode::Ok, "to try again what did not arrive", out);
                continue;
            }
            self.settle_copies(now_ms, node_id, out);
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

    fn is_quiet(&self, node_id: NodeId, session: &Session) -> bool {
        let is_busy = self.peers.get(&node_id).is_some_and(|peer| peer.talk.is_busy());
        session.is_quiet() && self.wants.source_load(node_id) == 0 && !is_busy
    }

    /// Whether the peer owes an answer and has been silent for too long.
    fn is_silent(&self, now_ms: u64, node_id: NodeId, session: &Session) -> bool {
        self.owes_answer(node_id, session) && now_ms >= session.heard_ms + SILENT_MS_MAX
    }

    fn owes_answer(&self, node_id: NodeId, session: &Session) -> bool {
        let idle = session.receiving.is_empty() && session.missing_there() == 0;
        let awaits = self.peers.get(&node_id).is_some_and(|peer| peer.talk.awaits());
        idle && (self.wants.owed(node_id) > 0 || session.compare.reconciler.is_some() || awaits)
    }

    fn session_deadline(&self, session: &Session) -> Option<u64> {
        if session.closing.is_some() {
            return None;
        }
        if session.hello.is_none() {
            return Some(session.since_ms + HELLO_MS_MAX);
        }
        let node_id = *self.conns.get(&session.conn)?;
        let silent = self.owes_answer(node_id, session).then_some(session.heard_ms + SILENT_MS_MAX);
        let sets = self.sets_deadline(node_id, session);
        let fingerprint = self.known.sketch.fingerprint();
        let copies = self.copies_deadline(node_id, session, &fingerprint);
        let plain = session.plain.as_ref().and_then(Plain::again_ms);
        [silent, sets, copies, plain].into_iter().flatten().min()
    }

    fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.session_of(conn).map(|(_, session)| session)
    }

    /// The session on `conn`, unless it is being closed.
    fn session_of(&mut self, conn: ConnId) -> Option<(NodeId, &mut Session)> {
        let node_id = *self.conns.get(&conn)?;
        let session = self.peers.get_mut(&node_id)?.session.as_mut()?;
        (session.conn == conn && session.closing.is_none()).then_some((node_id, session))
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
