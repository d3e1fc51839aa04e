//! Decides which asset is asked of which peer, so that each crosses once.
//!
//! I1  A hash is asked of one peer at a time: of another only when the first has failed, or owes it
//!     for longer than [`ASK_MS_MAX`]. Until then an unasked offer of another peer is taken only if
//!     both can send it together: once a shared asset (a large one, with BLAKE3) is on its
//!     way, all its other holders are asked as well, and up to [`crate::core::limits::SOURCES_MAX`] send it. Which part
//!     each sends, [`crate::core::spans`] decides, so that it crosses once all the same.
//! I2  When the last of its sources fails, another peer that holds it is asked; when none is left it
//!     is forgotten, and the next reconcile finds it again.
//! I3  What failed, found no room or was interrupted is not taken again from the peer it came from
//!     for a while that doubles from time to time. It holds up nothing else, and nobody else: bytes
//!     and size are what that peer says they are.
//! I4  No source keeps another holder out for long, whatever it says of the size. One that says
//!     another size sends beside it. When an asset takes longer than [`sources::patience_ms`], all its other
//!     holders are asked as well.
//! I5  Memory is bounded per peer by [`WANTS_PER_PEER_MAX`], whatever peers announce: a peer is a
//!     holder of at most so many wants, and only those stand in its queue, each once. What somebody
//!     waits for ([`crate::core::fetches`]) comes on top, and has a bound of its own.

mod feed;
mod queue;
mod rests;
mod sources;

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::limits::{SOLICIT_WINDOW, WANTS_PER_PEER_MAX};

use self::feed::Feed;
use self::queue::Queue;
use self::rests::{Cause, Rests};
use self::sources::Sources;

/// Attempts at one asset from the only peer that holds it before it is forgotten.
const ATTEMPTS_MAX: u8 = 3;

/// What a peer owes for this long may be asked of another that holds it too. A peer that is merely
/// slow still sends what nobody else has sent by then.
const ASK_MS_MAX: u64 = 30_000;

/// The agent's number for a batch, sent or received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// What became of an asset that a peer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Durable in our store by this transfer; the feed shows it soon, or has just done so.
    Stored,
    /// Held before.
    Held,
    /// The stream ended before it was whole, or our store was not to be reached: try again.
    Interrupted,
    /// The peer cannot provide it: gone or damaged there.
    Unavailable,
    /// The bytes are wrong, or our store refuses the asset.
    Refused,
    /// Our store cannot take an asset of its size now, whoever it is from.
    NoRoom,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Queued,
    /// Of whom, and when.
    Asked(NodeId, u64),
    Arriving(Sources),
}

#[derive(Debug, Clone)]
struct Want {
    state: State,
    /// Peers that hold it, in the order they said so.
    holders: Vec<NodeId>,
    attempts: u8,
    /// The store's feed has shown it already.
    indexed: bool,
}

impl Want {
    /// Its holders are to be asked, but for those that owe it.
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
    /// Of the wants that it holds, those it may be asked for and does not owe.
    queue: Queue,
    /// Solicited and not answered, even if it came from elsewhere meanwhile: what the peer keeps in
    /// a queue for us. And what arrives from it, solicited or not.
    owed: BTreeSet<Hash>,
    /// How many wants it is a holder of.
    held: usize,
}

/// How an asset stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Stored by a transfer or shown by the feed just now.
    Here,
    /// A peer sends it.
    Arriving,
    /// This peer is to send it.
    Asked(NodeId),
    /// To be asked of whoever holds it.
    Queued,
    /// Left alone for a while, as far as somebody is known to hold it.
    Resting,
    /// Not known to be lacking; held for long, perhaps.
    Unknown,
}

/// All assets this device lacks and knows a holder of.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    wants: BTreeMap<Hash, Want>,
    sources: BTreeMap<NodeId, Source>,
    /// When to look for what takes too long; while something is asked or arrives.
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

    /// The next hashes to solicit from `peer`: none while most of the window is still under way, so
    /// that requests are few and large.
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

    /// Has others asked for what takes too long, once [`Self::deadline_ms`] has come.
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

    /// `peer` offers an asset, which the index does not know; `is_shared`: several may send it. True:
    /// take it.
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

    /// What became of `hash`, which came in `batch` from `peer`.
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

    /// `peer` offers `hash` while we can take nothing: it is asked for when we can.
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

    /// `batch` from `peer` ended; whatever of it was not reported did not arrive.
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

    /// `peer` answered a solicitation: it does not have `hash`, or not whole.
    pub fn unavailable(&mut self, peer: NodeId, hash: Hash) {
        if !self.is_arriving(peer, &hash) && self.release(peer, &hash) {
            self.lost_holder(peer, hash);
        }
    }

    /// The connection to `peer` is gone: what it alone holds is forgotten, the rest asked of others.
    pub fn peer_gone(&mut self, peer: NodeId) {
        let held = self.wants.iter().filter(|(_, want)| want.holders.contains(&peer));
        let held: Vec<Hash> = held.map(|(hash, _)| *hash).collect();
        for hash in held {
            self.lost_holder(peer, hash);
        }
        self.sources.remove(&peer);
    }

    /// `peer` sent `hash` unasked, and it is stored: the feed may not have shown it yet.
    pub fn held_by(&mut self, peer: NodeId, hash: Hash) {
        let mut holders = self.take(&hash).map(|want| want.holders).unwrap_or_default();
        if !self.feed.is_recent(&hash) {
            add_holder(&mut holders, peer);
            self.feed.expect(hash, holders);
        }
    }

    /// The store's feed shows `hash`. Returns the peers known to hold it; none: it is new here.
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

    /// The store's feed was read to its end, or is read anew. What was stored before that reading
    /// began and it did not show, the store has lost: it may be asked for again.
    pub fn feed_read(&mut self) {
        self.feed.was_read();
    }

    /// Assets `peer` was asked for and has not answered, and those arriving from it.
    pub fn owed(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.owed.len())
    }

    /// Assets that are to be asked of `peer`, or are.
    pub fn source_load(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.owed.len() + source.queue.len())
    }

    /// Assets known to be lacking that `peer` holds, whoever is asked for them.
    pub fn held(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.held)
    }

    /// How many more hashes [`Self::lacking`] takes for `peer`.
    pub fn room(&self, peer: NodeId) -> usize {
        WANTS_PER_PEER_MAX.saturating_sub(self.held(peer))
    }

    /// Assets left alone at the moment because their content failed.
    pub fn quarantined(&self, now_ms: u64) -> usize {
        let bad = self.rests.bad(now_ms).into_iter();
        bad.filter(|hash| !self.wants.contains_key(hash)).count()
    }

    // ---- what somebody waits for ---------------------------------------------------------------

    /// How `hash` stands.
    pub fn standing(&self, now_ms: u64, hash: &Hash) -> Standing {
        if self.feed.is_here(hash) {
            return Standing::Here;
        }
        match self.state(hash) {
            Some(State::Arriving(_)) => Standing::Arriving,
            Some(State::Asked(peer, _)) => Standing::Asked(*peer),
            Some(State::Queued) => Standing::Queued,
            None if self.rests.last_for_any(now_ms, hash) => Standing::Resting,
            None => Standing::Unknown,
        }
    }

    /// The first two assets known to be lacking whose hashes, in hex, start with `prefix`.
    pub fn lacked(&self, prefix: &str) -> Vec<Hash> {
        let Ok(first) = format!("{prefix:0<width$}", width = 2 * Hash::LEN).parse::<Hash>() else {
            return Vec::new();
        };
        let from_first = self.wants.range(first..).map(|(hash, _)| *hash);
        from_first.take_while(|hash| hash.to_string().starts_with(prefix)).take(2).collect()
    }

    /// Ends the rest of `hash`.
    pub fn wake(&mut self, hash: &Hash) {
        self.rests.wake(hash);
    }

    /// `peer` may hold `hash`, and is to be asked: beyond the bound of [`Self::lacking`], so the
    /// caller has one.
    pub fn suppose(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if !self.feed.is_here(&hash) && !self.rests.last(now_ms, peer, &hash) {
            self.hold(peer, hash);
        }
    }

    /// Asks `hash` of `peer` before all else, even if it was asked before. False: it is not known to
    /// hold it, or another is asked, or is to be because this one is slow.
    pub fn ask_first(&mut self, now_ms: u64, peer: NodeId, hash: Hash) -> bool {
        let Some(want) = self.wants.get_mut(&hash) else { return false };
        let source = self.sources.entry(peer).or_default();
        let is_due = match want.state {
            State::Queued => want.holders.contains(&peer) && !source.owed.contains(&hash),
            State::Asked(from, _) => from == peer,
            State::Arriving(_) => false,
        };
        if !is_due {
            return false;
        }
        want.state = State::Asked(peer, now_ms);
        source.owed.insert(hash);
        self.queue(&hash);
        self.look_at_ms.get_or_insert(now_ms + ASK_MS_MAX);
        true
    }

    // ---- holders, queues and failures ----------------------------------------------------------

    fn state(&self, hash: &Hash) -> Option<&State> {
        self.wants.get(hash).map(|want| &want.state)
    }

    /// In which batch `peer` is sending it.
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

    /// True when `peer` owed it. The caller brings the queues in order with [`Self::queue`].
    fn release(&mut self, peer: NodeId, hash: &Hash) -> bool {
        self.sources.get_mut(&peer).is_some_and(|source| source.owed.remove(hash))
    }

    /// Notes that `peer` holds `hash`, which is wanted from now on.
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

    /// `peer` is not to be asked for `hash` any more.
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

    /// Brings the queues in order: `hash` stands in that of each holder that may be asked for it and
    /// does not owe it.
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

    /// Removes the want. Who was asked for it still owes an answer.
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

    /// Takes `hash` back from its source `peer`. True when that one is not to be asked again: for
    /// good, or because others can be, or after enough attempts.
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

/// True when it was none yet.
fn add_holder(holders: &mut Vec<NodeId>, peer: NodeId) -> bool {
    let is_new = !holders.contains(&peer);
    if is_new {
        holders.push(peer);
    }
    is_new
}

#[cfg(test)]
mod tests;
