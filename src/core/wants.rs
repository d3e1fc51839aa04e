//! Decides which asset is requested from which peer, so that each asset crosses the network once.
//!
//! I1  A hash is requested from one peer at a time: from another only when the first failed, or has
//!     owed it for longer than [`ASK_MS_MAX`]. Until then an unsolicited offer by another peer is
//!     accepted only if both can send the asset together: once a shared asset (a large one, with
//!     BLAKE3) is arriving, it is requested from its other holders too, and up to
//!     [`crate::core::limits::SOURCES_MAX`] send it. [`crate::core::spans`] decides which part each
//!     sends, so that no byte crosses twice.
//! I2  When the last source of an asset fails, it is requested from another holder. When none is
//!     left the want is forgotten, and the next reconcile finds it again.
//! I3  An asset that failed, found no room or was interrupted is not accepted again from the same
//!     peer for a while, which doubles each time. This holds up no other asset and no other peer:
//!     content and size are what that peer claims they are.
//! I4  No source keeps another holder out for long, whatever size it claims. A holder that claims
//!     another size sends beside it. When an asset takes longer than [`sources::patience_ms`], it
//!     is requested from all its other holders too.
//! I5  Memory is bounded per peer by [`WANTS_PER_PEER_MAX`], whatever peers announce: a peer is a
//!     holder of at most this many wants, and only those are in its queue, each once. Assets that
//!     somebody waits for ([`crate::core::fetches`]) come on top and have a bound of their own.

mod feed;
mod queue;
mod rests;
mod sources;
mod waited;

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::limits::{SOLICIT_WINDOW, WANTS_PER_PEER_MAX};

use self::feed::Feed;
use self::queue::Queue;
use self::rests::{Cause, Rests};
use self::sources::Sources;

/// How often an asset is tried from its only holder before it is forgotten.
const ATTEMPTS_MAX: u8 = 3;

/// After this time an asset that was requested from a peer may be requested from another holder too.
/// A peer that is merely slow still sends the parts that no other peer has sent by then.
const ASK_MS_MAX: u64 = 30_000;

/// The agent's number for a batch, sent or received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// The outcome of an asset that a peer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// This transfer made it durable in our store. The feed shows it soon, or has just done so.
    Stored,
    /// The store held it before.
    Held,
    /// The stream ended early, or our store was unreachable: it can be tried again.
    Interrupted,
    /// The peer cannot send it: it is gone or damaged there.
    Unavailable,
    /// The content is wrong, or our store refuses the asset.
    Refused,
    /// Our store cannot store an asset of this size now, from any peer.
    NoRoom,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Queued,
    /// Requested from this peer at this time.
    Asked(NodeId, u64),
    Arriving(Sources),
}

#[derive(Debug, Clone)]
struct Want {
    state: State,
    /// Peers that hold it, in the order in which they said so.
    holders: Vec<NodeId>,
    attempts: u8,
    /// Whether the store's change feed has announced the asset.
    indexed: bool,
}

impl Want {
    /// Whether its holders may be asked, except those that owe it.
    fn may_be_asked(&self) -> bool {
        match &self.state {
            State::Queued => true,
            State::Asked(..) => false,
            State::Arriving(sources) => sources.asks_others() && !self.indexed,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Source {
    /// The wants that can be requested from this peer and have not been.
    queue: Queue,
    /// Hashes solicited from this peer and not answered, even if they arrived from another peer
    /// meanwhile, because this one keeps them queued for us; and hashes arriving from this peer,
    /// solicited or not.
    owed: BTreeSet<Hash>,
    /// The number of wants that it holds.
    held: usize,
}

/// The state of an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A transfer stored the asset, or the store's change feed has just announced it.
    Here,
    /// A peer is sending it.
    Arriving,
    /// The asset was requested from this peer.
    Asked(NodeId),
    /// The asset waits in the queues of its holders.
    Queued,
    /// It rests: it is not requested from the peers that are known to hold it for a while.
    Resting,
    /// The asset is not known to be missing; perhaps it was stored long ago.
    Unknown,
}

/// All assets that this device lacks and of which it knows a holder.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    wants: BTreeMap<Hash, Want>,
    sources: BTreeMap<NodeId, Source>,
    /// When to look for requests and transfers that take too long; `None` while there are none.
    look_at_ms: Option<u64>,
    feed: Feed,
    rests: Rests,
}

impl Wants {
    /// `peer` holds `hash` and we lack it.
    pub fn lacking(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        self.feed.add_holder(&hash, peer);
        if !self.feed.is_here(&hash) && !self.rests.last(now_ms, peer, &hash) && self.room(peer) > 0
        {
            self.hold(peer, hash);
        }
    }

    /// The next hashes to solicit from `peer`. Returns none while most of the window is still owed,
    /// so that requests are few and large.
    pub fn ask(&mut self, now_ms: u64, peer: NodeId) -> Vec<Hash> {
        let Some(source) = self.sources.get_mut(&peer) else { return Vec::new() };
        if source.owed.len() > SOLICIT_WINDOW / 2 {
            return Vec::new();
        }
        let mut asking = Vec::new();
        while source.owed.len() < SOLICIT_WINDOW
            && let Some(hash) = source.queue.pop()
        {
            source.owed.insert(hash);
            asking.push(hash);
        }
        for hash in &asking {
            if let Some(Want { state: state @ State::Queued, .. }) = self.wants.get_mut(hash) {
                *state = State::Asked(peer, now_ms);
                self.queue(hash);
            }
        }
        if !asking.is_empty() {
            self.look_at_ms.get_or_insert(now_ms + ASK_MS_MAX);
        }
        asking
    }

    /// Lets other holders be asked for what takes too long, once [`Self::deadline_ms`] has come.
    pub fn pass_over_slow_peers(&mut self, now_ms: u64) {
        if self.look_at_ms.take_if(|at_ms| now_ms >= *at_ms).is_none() {
            return;
        }
        let mut passed_over = Vec::new();
        let mut is_waiting = false;
        for (hash, want) in &mut self.wants {
            match &mut want.state {
                State::Asked(peer, asked_ms)
                    if now_ms >= *asked_ms + ASK_MS_MAX
                        && want.holders.iter().any(|holder| holder != peer) =>
                {
                    want.state = State::Queued;
                    passed_over.push(*hash);
                }
                State::Arriving(sources) if sources.is_shared || sources.is_open => {}
                State::Arriving(sources) if now_ms >= sources.slow_at_ms() => {
                    sources.is_open = true;
                    passed_over.push(*hash);
                }
                State::Asked(..) | State::Arriving(_) => is_waiting = true,
                State::Queued => {}
            }
        }
        passed_over.iter().for_each(|hash| self.queue(hash));
        self.look_at_ms = is_waiting.then_some(now_ms + ASK_MS_MAX);
    }

    /// When to call [`Self::pass_over_slow_peers`].
    pub fn deadline_ms(&self) -> Option<u64> {
        self.look_at_ms
    }

    /// `peer` offers an asset that the index does not hold; `is_shared`: several peers may send it.
    /// Returns true to accept it.
    pub fn offered(
        &mut self,
        now_ms: u64,
        peer: NodeId,
        batch: BatchId,
        digest: Digest,
        is_shared: bool,
    ) -> bool {
        let Digest { hash, size_bytes } = digest;
        if self.is_arriving(peer, &hash) {
            return false;
        }
        let was_solicited = self.release(peer, &hash);
        self.feed.add_holder(&hash, peer);
        if self.feed.is_here(&hash) || self.rests.last(now_ms, peer, &hash) {
            return false;
        }
        if !self.is_holder(peer, &hash) && self.room(peer) == 0 {
            return false;
        }
        let want = self.hold(peer, hash);
        let is_taken = match &mut want.state {
            State::Asked(asked, asked_ms)
                if *asked != peer
                    && !was_solicited
                    && !is_shared
                    && now_ms < *asked_ms + ASK_MS_MAX =>
            {
                false
            }
            State::Queued | State::Asked(..) => {
                let sources = Sources::new(now_ms, peer, batch, size_bytes, is_shared);
                want.state = State::Arriving(sources);
                true
            }
            State::Arriving(sources) => sources.let_in(now_ms, peer, batch, size_bytes, is_shared),
        };
        if is_taken {
            self.sources.entry(peer).or_default().owed.insert(hash);
        }
        self.queue(&hash);
        self.look_at_ms.get_or_insert(now_ms + ASK_MS_MAX);
        is_taken
    }

    /// The outcome of `hash`, which came in `batch` from `peer`.
    pub fn arrived(
        &mut self,
        now_ms: u64,
        peer: NodeId,
        batch: BatchId,
        hash: Hash,
        arrival: Arrival,
    ) {
        let is_here = matches!(arrival, Arrival::Stored | Arrival::Held);
        if !self.is_arriving_in(peer, batch, &hash) && !is_here {
            return;
        }
        self.release(peer, &hash);
        match arrival {
            Arrival::Stored => {
                if let Some(want) = self.take(&hash)
                    && !want.indexed
                {
                    self.feed.expect(hash, want.holders);
                }
            }
            Arrival::Held => {
                self.take(&hash);
            }
            Arrival::Interrupted => self.interrupted(now_ms, peer, hash),
            Arrival::Unavailable => {
                self.failed(peer, hash, true);
            }
            Arrival::Refused => {
                self.failed(peer, hash, true);
                self.rests.begin(now_ms, peer, hash, Cause::Bad);
            }
            Arrival::NoRoom => {
                self.failed(peer, hash, true);
                self.rests.begin(now_ms, peer, hash, Cause::NoRoom);
            }
        }
    }

    /// `peer` offered `hash` while we cannot store anything: queues it for later.
    pub fn turned_away(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if self.is_arriving(peer, &hash) {
            return;
        }
        self.release(peer, &hash);
        if let Some(Want { state, .. }) = self.wants.get_mut(&hash)
            && matches!(state, State::Asked(asked, _) if *asked == peer)
        {
            *state = State::Queued;
        }
        self.queue(&hash);
        self.lacking(now_ms, peer, hash);
    }

    /// `batch` from `peer` ended: its assets without a reported outcome did not arrive.
    pub fn batch_ended(&mut self, now_ms: u64, peer: NodeId, batch: BatchId) {
        let Some(source) = self.sources.get(&peer) else { return };
        let open = source.owed.iter();
        let open = open.filter(|hash| self.is_arriving_in(peer, batch, hash));
        let open: Vec<Hash> = open.copied().collect();
        for hash in open {
            self.release(peer, &hash);
            self.interrupted(now_ms, peer, hash);
        }
    }

    /// `peer` answered a solicitation: it does not have all of `hash`.
    pub fn unavailable(&mut self, peer: NodeId, hash: Hash) {
        if !self.is_arriving(peer, &hash) && self.release(peer, &hash) {
            self.lost_holder(peer, hash);
        }
    }

    /// The connection to `peer` is gone: forgets what it alone holds and asks other holders for the
    /// rest.
    pub fn peer_gone(&mut self, peer: NodeId) {
        let held = self.wants.iter().filter(|(_, want)| want.holders.contains(&peer));
        let held: Vec<Hash> = held.map(|(hash, _)| *hash).collect();
        for hash in held {
            self.lost_holder(peer, hash);
        }
        self.sources.remove(&peer);
    }

    /// `peer` sent `hash` unsolicited and it is stored. The feed may not have shown it yet.
    pub fn held_by(&mut self, peer: NodeId, hash: Hash) {
        let mut holders = self.take(&hash).map(|want| want.holders).unwrap_or_default();
        if !self.feed.is_recent(&hash) {
            add_holder(&mut holders, peer);
            self.feed.expect(hash, holders);
        }
    }

    /// The store's feed shows `hash`. Returns the peers known to hold it; none means that the asset
    /// was added on this device.
    pub fn indexed(&mut self, hash: Hash) -> Vec<NodeId> {
        self.rests.forget(&hash);
        if let Some(holders) = self.feed.shows(hash) {
            return holders;
        }
        let Some(want) = self.wants.get_mut(&hash) else { return Vec::new() };
        if let State::Arriving(_) = want.state {
            want.indexed = true;
            let holders = want.holders.clone();
            self.queue(&hash);
            return holders;
        }
        self.take(&hash).map(|want| want.holders).unwrap_or_default()
    }

    /// The store's feed was read to its end, or is read from the start. What was stored before that
    /// reading began but did not appear in it was lost by the store, and may be requested again.
    pub fn feed_read(&mut self) {
        self.feed.was_read();
    }

    /// `hash`, which `peer` offered, is not wanted.
    pub fn discard(&mut self, peer: NodeId, hash: &Hash) {
        self.release(peer, hash);
        self.take(hash);
    }

    /// The number of assets that `peer` owes or is sending.
    pub fn owed(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.owed.len())
    }

    /// The number of assets that `peer` owes or may be asked for.
    pub fn source_load(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.owed.len() + source.queue.len())
    }

    /// The number of wants that `peer` holds, from whomever they are requested.
    pub fn held(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.held)
    }

    /// How many more hashes [`Self::lacking`] accepts for `peer`.
    pub fn room(&self, peer: NodeId) -> usize {
        WANTS_PER_PEER_MAX.saturating_sub(self.held(peer))
    }

    /// The number of assets that rest because their content was wrong.
    pub fn quarantined(&self, now_ms: u64) -> usize {
        let bad = self.rests.bad(now_ms).into_iter();
        bad.filter(|hash| !self.wants.contains_key(hash)).count()
    }

    /// This device lets go of `hash`, which the feed has shown.
    pub fn was_released(&mut self, hash: &Hash) {
        self.feed.was_released(hash);
    }

    fn state(&self, hash: &Hash) -> Option<&State> {
        self.wants.get(hash).map(|want| &want.state)
    }

    /// The batch in which `peer` is sending it.
    fn batch(&self, peer: NodeId, hash: &Hash) -> Option<BatchId> {
        match self.state(hash)? {
            State::Arriving(sources) => sources.batches.get(&peer).copied(),
            State::Queued | State::Asked(..) => None,
        }
    }

    fn is_arriving(&self, peer: NodeId, hash: &Hash) -> bool {
        self.batch(peer, hash).is_some()
    }

    fn is_arriving_in(&self, peer: NodeId, batch: BatchId, hash: &Hash) -> bool {
        self.batch(peer, hash) == Some(batch)
    }

    fn is_holder(&self, peer: NodeId, hash: &Hash) -> bool {
        self.wants.get(hash).is_some_and(|want| want.holders.contains(&peer))
    }

    /// Removes `hash` from what `peer` owes; returns whether it owed it. The caller must then call
    /// [`Self::queue`].
    fn release(&mut self, peer: NodeId, hash: &Hash) -> bool {
        self.sources.get_mut(&peer).is_some_and(|source| source.owed.remove(hash))
    }

    /// Adds `peer` as a holder of `hash`, which is wanted from now on.
    fn hold(&mut self, peer: NodeId, hash: Hash) -> &mut Want {
        let want = self.wants.entry(hash).or_insert_with(|| Want {
            state: State::Queued,
            holders: Vec::new(),
            attempts: 0,
            indexed: false,
        });
        let is_new = add_holder(&mut want.holders, peer);
        if is_new {
            let source = self.sources.entry(peer).or_default();
            source.held += 1;
            if want.may_be_asked() && !source.owed.contains(&hash) {
                source.queue.push(hash);
            }
        }
        want
    }

    /// Removes `peer` as a holder of `hash`.
    fn drop_holder(&mut self, peer: NodeId, hash: &Hash) {
        let Some(want) = self.wants.get_mut(hash) else { return };
        let Some(place) = want.holders.iter().position(|holder| *holder == peer) else { return };
        want.holders.remove(place);
        self.forget_held(peer, hash);
    }

    fn forget_held(&mut self, peer: NodeId, hash: &Hash) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.held -= 1;
            source.queue.remove(hash);
        }
    }

    /// Updates the queues: `hash` is in the queue of each holder that may be asked for it and does
    /// not owe it.
    fn queue(&mut self, hash: &Hash) {
        let Some(want) = self.wants.get(hash) else { return };
        let may_be_asked = want.may_be_asked();
        for holder in &want.holders {
            let source = self.sources.entry(*holder).or_default();
            if may_be_asked && !source.owed.contains(hash) {
                source.queue.push(*hash);
            } else {
                source.queue.remove(hash);
            }
        }
    }

    /// Removes the want. A peer from which it was requested still owes an answer.
    fn take(&mut self, hash: &Hash) -> Option<Want> {
        let want = self.wants.remove(hash)?;
        if let State::Arriving(sources) = &want.state {
            for peer in sources.batches.keys() {
                self.release(*peer, hash);
            }
        }
        want.holders.iter().for_each(|holder| self.forget_held(*holder, hash));
        Some(want)
    }

    /// `peer` turned out not to hold `hash`.
    fn lost_holder(&mut self, peer: NodeId, hash: Hash) {
        let is_source = match self.state(&hash) {
            None | Some(State::Queued) => false,
            Some(State::Asked(from, _)) => *from == peer,
            Some(State::Arriving(sources)) => sources.batches.contains_key(&peer),
        };
        if is_source {
            self.failed(peer, hash, true);
            return;
        }
        self.drop_holder(peer, &hash);
        if self.wants.get(&hash).is_some_and(|want| want.holders.is_empty()) {
            self.take(&hash);
        }
    }

    fn interrupted(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if self.failed(peer, hash, false) {
            self.rests.begin(now_ms, peer, hash, Cause::Interrupted);
        }
    }

    /// Takes `hash` back from its source `peer`. Returns true when this peer is not asked again:
    /// for good, because other holders can be asked, or after enough attempts.
    fn failed(&mut self, peer: NodeId, hash: Hash, for_good: bool) -> bool {
        let Some(want) = self.wants.get_mut(&hash) else { return false };
        want.attempts += 1;
        let is_over = for_good || want.attempts >= ATTEMPTS_MAX || want.holders.len() > 1;
        match &mut want.state {
            State::Arriving(sources) => {
                sources.batches.remove(&peer);
                if sources.batches.is_empty() {
                    want.state = State::Queued;
                }
            }
            State::Queued | State::Asked(..) => want.state = State::Queued,
        }
        let is_forgotten = want.indexed && want.state == State::Queued;
        if is_over {
            want.attempts = 0;
            self.drop_holder(peer, &hash);
        }
        if is_forgotten || self.wants.get(&hash).is_some_and(|want| want.holders.is_empty()) {
            self.take(&hash);
        }
        self.queue(&hash);
        is_over
    }
}

/// Returns whether the peer was added now.
fn add_holder(holders: &mut Vec<NodeId>, peer: NodeId) -> bool {
    let is_new = !holders.contains(&peer);
    if is_new {
        holders.push(peer);
    }
    is_new
}

#[cfg(test)]
mod tests;
