//! Decides which asset is asked of which peer, so that each crosses once.
//!
//! I1  A hash is asked of one peer at a time: of another only when the first has failed, or owes it
//!     for longer than [`ASK_MS_MAX`]. Whoever offers it first may send it, alone; but once a shared
//!     asset (a large one, with BLAKE3) is on its way, all its other holders are asked as well, and
//!     up to [`SOURCES_MAX`] send it together. Which part each sends, [`crate::core::spans`] decides,
//!     so that it crosses once all the same.
//! I2  When the last of its sources fails, another peer that holds it is asked; when none is left it
//!     is forgotten, and the next reconcile finds it again.
//! I3  What failed for its content, or found no room, is not taken again from the peer it came from
//!     for a while that doubles from time to time. It holds up nothing else, and nobody else: bytes
//!     and size are what that peer says they are.
//! I4  Memory is bounded per peer by [`WANTS_PER_PEER_MAX`], whatever peers announce; what somebody
//!     waits for ([`crate::core::fetches`]) comes on top, and has a bound of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::limits::{RESTING_MAX, SOLICIT_WINDOW, SOURCES_MAX, WANTS_PER_PEER_MAX};

/// Attempts at one asset from the only peer that holds it before it is forgotten.
const ATTEMPTS_MAX: u8 = 3;

/// What a peer owes for this long may be asked of another that holds it too. A peer that is merely
/// slow still sends what nobody else has sent by then.
const ASK_MS_MAX: u64 = 30_000;

/// How long an asset rests that failed for its content or found no room; doubled each time.
const REST_MS_MIN: u64 = 30_000;

/// The longest rest of what failed for its content.
const QUARANTINE_MS_MAX: u64 = 3_600_000;

/// The longest rest of what found no room: people make room, and to ask again costs an offer.
const NO_ROOM_MS_MAX: u64 = 600_000;

/// Assets stored and not yet seen in the store's feed. The feed follows within moments; beyond
/// these the oldest is forgotten, which costs one needless offer to where it came from.
const ARRIVED_MAX: usize = 65_536;

/// Assets the feed has just shown. A question to the index that was asked before, and answered
/// after, would have them asked for once more.
const RECENT_MAX: usize = 8_192;

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
    /// It stands in the queue of each of its holders that does not owe it.
    Queued,
    /// Of whom, and when.
    Asked(NodeId, u64),
    Arriving(Sources),
}

/// Who sends an asset.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sources {
    /// As the first of them says; who says otherwise is none.
    size_bytes: u64,
    /// More may send it. It stands in the queue of each other holder that does not owe it, but for
    /// those that were turned away: for want of room, or for another size.
    is_shared: bool,
    batches: BTreeMap<NodeId, BatchId>,
}

impl Sources {
    fn takes(&self, digest: &Digest) -> bool {
        self.size_bytes == digest.size_bytes && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.is_shared && self.batches.len() < SOURCES_MAX
    }
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

#[derive(Debug, Clone, Default)]
struct Source {
    queue: VecDeque<Hash>,
    /// Solicited and not answered, even if it came from elsewhere meanwhile: what the peer keeps in
    /// a queue for us. And what arrives from it, solicited or not.
    owed: BTreeSet<Hash>,
}

#[derive(Debug, Clone)]
struct Rest {
    until_ms: u64,
    pause_ms: u64,
    /// For its content, not for want of room.
    is_bad: bool,
    /// Whose attempts failed. Any other peer may be asked.
    peers: Vec<NodeId>,
}

impl Rest {
    fn lasts(&self, now_ms: u64) -> bool {
        self.until_ms > now_ms
    }
}

/// Stored, and not yet seen in the store's feed.
#[derive(Debug, Clone)]
struct Arrived {
    holders: Vec<NodeId>,
    /// [`Wants::reading`] when it was stored.
    reading: u64,
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
    /// When to look for what is owed for too long; while something is.
    look_at_ms: Option<u64>,
    arrived: BTreeMap<Hash, Arrived>,
    /// When each was stored, as [`Arrived::reading`], the first of them first.
    arrived_order: VecDeque<(u64, Hash)>,
    /// The reading of the store's feed that is under way or comes next.
    reading: u64,
    recent: BTreeSet<Hash>,
    recent_order: VecDeque<Hash>,
    resting: BTreeMap<Hash, Rest>,
}

impl Wants {
    /// `peer` holds `hash` and we lack it.
    pub fn lacking(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if let Some(arrived) = self.arrived.get_mut(&hash) {
            add_holder(&mut arrived.holders, peer);
            return;
        }
        if self.recent.contains(&hash) || self.is_resting(now_ms, peer, &hash) {
            return;
        }
        if self.source_load(peer) < WANTS_PER_PEER_MAX {
            self.want(peer, hash);
        }
    }

    /// Puts it in the queue of `peer`, which holds it.
    fn want(&mut self, peer: NodeId, hash: Hash) {
        let want = self.wants.entry(hash).or_insert_with(|| Want {
            state: State::Queued,
            holders: Vec::new(),
            attempts: 0,
            indexed: false,
        });
        let is_new = add_holder(&mut want.holders, peer);
        match &want.state {
            State::Queued if is_new => {
                self.sources.entry(peer).or_default().queue.push_back(hash);
            }
            State::Arriving(sources) if sources.is_shared => self.invite(hash),
            State::Queued | State::Asked(..) | State::Arriving(_) => {}
        }
    }

    /// The next hashes to solicit from `peer`: none while most of the window is still under way, so
    /// that requests are few and large.
    pub fn ask(&mut self, now_ms: u64, peer: NodeId) -> Vec<Hash> {
        let Some(source) = self.sources.get_mut(&peer) else { return Vec::new() };
        if source.queue.is_empty() || source.owed.len() > SOLICIT_WINDOW / 2 {
            return Vec::new();
        }
        let mut asking = Vec::new();
        while source.owed.len() < SOLICIT_WINDOW {
            let Some(hash) = source.queue.pop_front() else { break };
            let Some(want) = self.wants.get_mut(&hash) else { continue };
            let may_ask = match &want.state {
                State::Queued => true,
                State::Asked(..) => false,
                State::Arriving(sources) => sources.has_room(),
            };
            if !may_ask || !want.holders.contains(&peer) || !source.owed.insert(hash) {
                continue;
            }
            if want.state == State::Queued {
                want.state = State::Asked(peer, now_ms);
            }
            asking.push(hash);
        }
        if !asking.is_empty() {
            self.look_at_ms.get_or_insert(now_ms + ASK_MS_MAX);
        }
        asking
    }

    /// Puts up to be asked of others what a peer owes for too long, once [`Self::deadline_ms`] has
    /// come.
    pub fn pass_over_slow_peers(&mut self, now_ms: u64) {
        if self.look_at_ms.take_if(|at_ms| now_ms >= *at_ms).is_none() {
            return;
        }
        let mut is_asked = false;
        for (hash, want) in &mut self.wants {
            let State::Asked(peer, asked_ms) = want.state else { continue };
            if now_ms < asked_ms + ASK_MS_MAX || want.holders.iter().all(|holder| *holder == peer) {
                is_asked = true;
                continue;
            }
            want.state = State::Queued;
            for holder in want.holders.iter().filter(|holder| **holder != peer) {
                self.sources.entry(*holder).or_default().queue.push_back(*hash);
            }
        }
        self.look_at_ms = is_asked.then_some(now_ms + ASK_MS_MAX);
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
        let hash = digest.hash;
        if self.is_arriving(peer, &hash) {
            return false;
        }
        self.release(peer, &hash);
        if let Some(arrived) = self.arrived.get_mut(&hash) {
            add_holder(&mut arrived.holders, peer);
            return false;
        }
        if self.recent.contains(&hash) || self.is_resting(now_ms, peer, &hash) {
            return false;
        }
        let full = self.source_load(peer) >= WANTS_PER_PEER_MAX;
        let batches = BTreeMap::from([(peer, batch)]);
        let sources = Sources { size_bytes: digest.size_bytes, is_shared, batches };
        if let Some(want) = self.wants.get_mut(&hash) {
            add_holder(&mut want.holders, peer);
            match &mut want.state {
                State::Arriving(sources) if !sources.takes(&digest) => return false,
                State::Arriving(sources) => {
                    sources.batches.insert(peer, batch);
                }
                State::Queued | State::Asked(..) => want.state = State::Arriving(sources),
            }
        } else if full {
            return false;
        } else {
            let state = State::Arriving(sources);
            let want = Want { state, holders: vec![peer], attempts: 0, indexed: false };
            self.wants.insert(hash, want);
        }
        self.sources.entry(peer).or_default().owed.insert(hash);
        if is_shared {
            self.invite(hash);
        }
        true
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
            Arrival::Stored => self.stored(hash),
            Arrival::Held => {
                self.take(&hash);
            }
            Arrival::Interrupted => {
                self.failed(peer, hash, false);
            }
            Arrival::Unavailable => {
                self.failed(peer, hash, true);
            }
            Arrival::Refused | Arrival::NoRoom => {
                self.failed(peer, hash, true);
                self.rest(now_ms, peer, hash, arrival == Arrival::Refused);
            }
        }
    }

    /// `peer` offers `hash` while we can take nothing: it is asked for when we can.
    pub fn turned_away(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if self.is_arriving(peer, &hash) {
            return;
        }
        let was_owed = self.release(peer, &hash);
        match self.state(&hash) {
            Some(State::Asked(asked, _)) if *asked == peer => self.queue(hash),
            Some(State::Queued) if was_owed => {
                self.sources.entry(peer).or_default().queue.push_back(hash);
            }
            Some(_) | None => self.lacking(now_ms, peer, hash),
        }
    }

    /// `batch` from `peer` ended; whatever of it was not reported did not arrive.
    pub fn batch_ended(&mut self, peer: NodeId, batch: BatchId) {
        let Some(source) = self.sources.get(&peer) else { return };
        let open = source.owed.iter();
        let open = open.filter(|hash| self.is_arriving_in(peer, batch, hash));
        let open: Vec<Hash> = open.copied().collect();
        for hash in open {
            self.release(peer, &hash);
            self.failed(peer, hash, false);
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
        self.sources.remove(&peer);
        let held = self.wants.iter().filter(|(_, want)| want.holders.contains(&peer));
        let held: Vec<Hash> = held.map(|(hash, _)| *hash).collect();
        for hash in held {
            self.lost_holder(peer, hash);
        }
    }

    /// `peer` sent `hash` unasked, and it is stored: the feed may not have shown it yet.
    pub fn held_by(&mut self, peer: NodeId, hash: Hash) {
        let mut holders = self.take(&hash).map(|want| want.holders).unwrap_or_default();
        if !self.recent.contains(&hash) {
            add_holder(&mut holders, peer);
            self.expect_indexed(hash, holders);
        }
    }

    /// The store's feed shows `hash`. Returns the peers known to hold it; none: it is new here.
    pub fn indexed(&mut self, hash: Hash) -> Vec<NodeId> {
        self.resting.remove(&hash);
        if self.recent.insert(hash) {
            self.recent_order.push_back(hash);
        }
        if self.recent_order.len() > RECENT_MAX
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        if let Some(arrived) = self.arrived.remove(&hash) {
            return arrived.holders;
        }
        let Some(want) = self.wants.get_mut(&hash) else { return Vec::new() };
        if let State::Arriving(_) = want.state {
            want.indexed = true;
            return want.holders.clone();
        }
        self.take(&hash).map(|want| want.holders).unwrap_or_default()
    }

    /// The store's feed was read to its end, or is read anew. What was stored before that reading
    /// began and it did not show, the store has lost: it may be asked for again.
    pub fn feed_read(&mut self) {
        let began_with = self.reading;
        self.reading += 1;
        while self.arrived_order.front().is_some_and(|(reading, _)| *reading < began_with) {
            self.expect_oldest_no_more();
        }
    }

    /// Assets `peer` was asked for and has not answered, and those arriving from it.
    pub fn owed(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.owed.len())
    }

    /// Assets `peer` holds that are to be asked of it, or are.
    pub fn source_load(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.owed.len() + source.queue.len())
    }

    /// How many more hashes [`Self::lacking`] takes for `peer`.
    pub fn room(&self, peer: NodeId) -> usize {
        WANTS_PER_PEER_MAX.saturating_sub(self.source_load(peer))
    }

    /// Assets left alone at the moment because their content failed.
    pub fn quarantined(&self, now_ms: u64) -> usize {
        let is_left_alone = |(hash, rest): &(&Hash, &Rest)| {
            rest.is_bad && rest.lasts(now_ms) && !self.wants.contains_key(hash)
        };
        self.resting.iter().filter(is_left_alone).count()
    }

    // ---- what somebody waits for ---------------------------------------------------------------

    /// How `hash` stands.
    pub fn standing(&self, now_ms: u64, hash: &Hash) -> Standing {
        if self.arrived.contains_key(hash) || self.recent.contains(hash) {
            return Standing::Here;
        }
        match self.state(hash) {
            Some(State::Arriving(_)) => Standing::Arriving,
            Some(State::Asked(peer, _)) => Standing::Asked(*peer),
            Some(State::Queued) => Standing::Queued,
            None if self.resting.get(hash).is_some_and(|rest| rest.lasts(now_ms)) => {
                Standing::Resting
            }
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
        if let Some(rest) = self.resting.get_mut(hash) {
            rest.until_ms = 0;
        }
    }

    /// `peer` may hold `hash`, and is to be asked: beyond the bound of [`Self::lacking`], so the
    /// caller has one.
    pub fn suppose(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if self.standing(now_ms, &hash) != Standing::Here && !self.is_resting(now_ms, peer, &hash) {
            self.want(peer, hash);
        }
    }

    /// Asks `hash` of `peer` before all else, even if it was asked before. False: it is not known to
    /// hold it, or another is asked, or is to be because this one is slow.
    pub fn ask_first(&mut self, now_ms: u64, peer: NodeId, hash: Hash) -> bool {
        let Some(want) = self.wants.get_mut(&hash) else { return false };
        let source = self.sources.entry(peer).or_default();
        let is_open = match want.state {
            State::Queued => want.holders.contains(&peer) && !source.owed.contains(&hash),
            State::Asked(from, _) => from == peer,
            State::Arriving(_) => false,
        };
        if !is_open {
            return false;
        }
        want.state = State::Asked(peer, now_ms);
        source.queue.retain(|queued| *queued != hash);
        source.owed.insert(hash);
        self.look_at_ms.get_or_insert(now_ms + ASK_MS_MAX);
        true
    }

    fn is_resting(&self, now_ms: u64, peer: NodeId, hash: &Hash) -> bool {
        let rest = self.resting.get(hash).filter(|rest| rest.lasts(now_ms));
        rest.is_some_and(|rest| rest.peers.contains(&peer))
    }

    /// Leaves `hash` alone as far as `peer` has it.
    fn rest(&mut self, now_ms: u64, peer: NodeId, hash: Hash, is_bad: bool) {
        let last = self.resting.remove(&hash);
        let rest = match last {
            Some(mut rest) if rest.lasts(now_ms) => {
                rest.is_bad |= is_bad;
                add_holder(&mut rest.peers, peer);
                rest
            }
            last => {
                let pause_ms_max = if is_bad { QUARANTINE_MS_MAX } else { NO_ROOM_MS_MAX };
                let doubled = last.map_or(REST_MS_MIN, |rest| rest.pause_ms * 2);
                let pause_ms = doubled.min(pause_ms_max);
                Rest { until_ms: now_ms + pause_ms, pause_ms, is_bad, peers: vec![peer] }
            }
        };
        self.resting.insert(hash, rest);
        if self.resting.len() > RESTING_MAX {
            let oldest = self.resting.iter().min_by_key(|(_, rest)| rest.until_ms);
            if let Some(oldest) = oldest.map(|(hash, _)| *hash) {
                self.resting.remove(&oldest);
            }
        }
    }

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

    /// True when `peer` owed it.
    fn release(&mut self, peer: NodeId, hash: &Hash) -> bool {
        self.sources.get_mut(&peer).is_some_and(|source| source.owed.remove(hash))
    }

    fn stored(&mut self, hash: Hash) {
        if let Some(want) = self.take(&hash)
            && !want.indexed
        {
            self.expect_indexed(hash, want.holders);
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
        Some(want)
    }

    fn expect_indexed(&mut self, hash: Hash, holders: Vec<NodeId>) {
        let reading = self.reading;
        self.arrived.insert(hash, Arrived { holders, reading });
        self.arrived_order.push_back((reading, hash));
        if self.arrived_order.len() > ARRIVED_MAX {
            self.expect_oldest_no_more();
        }
    }

    fn expect_oldest_no_more(&mut self) {
        let Some((reading, hash)) = self.arrived_order.pop_front() else { return };
        if self.arrived.get(&hash).is_some_and(|arrived| arrived.reading == reading) {
            self.arrived.remove(&hash);
        }
    }

    /// `peer` turned out not to hold `hash`.
    fn lost_holder(&mut self, peer: NodeId, hash: Hash) {
        let Some(want) = self.wants.get_mut(&hash) else { return };
        let is_source = match &want.state {
            State::Queued => false,
            State::Asked(from, _) => *from == peer,
            State::Arriving(sources) => sources.batches.contains_key(&peer),
        };
        if is_source {
            self.failed(peer, hash, true);
            return;
        }
        want.holders.retain(|holder| *holder != peer);
        if want.holders.is_empty() {
            self.wants.remove(&hash);
        }
    }

    /// Takes `hash` back from `peer`; another holder is asked before the same one again. True when
    /// nobody is left to ask.
    fn failed(&mut self, peer: NodeId, hash: Hash, for_good: bool) -> bool {
        let Some(want) = self.wants.get_mut(&hash) else { return false };
        want.attempts += 1;
        if for_good || want.attempts >= ATTEMPTS_MAX || want.holders.len() > 1 {
            want.holders.retain(|holder| *holder != peer);
            want.attempts = 0;
        }
        if let State::Arriving(sources) = &mut want.state {
            sources.batches.remove(&peer);
            if !sources.batches.is_empty() {
                self.invite(hash);
                return false;
            }
        }
        if want.indexed || want.holders.is_empty() {
            self.wants.remove(&hash);
            return true;
        }
        self.queue(hash);
        false
    }

    /// Puts `hash` up to be asked of any of its holders.
    fn queue(&mut self, hash: Hash) {
        let Some(want) = self.wants.get_mut(&hash) else { return };
        want.state = State::Queued;
        for holder in &want.holders {
            let source = self.sources.entry(*holder).or_default();
            if !source.owed.contains(&hash) {
                source.queue.push_back(hash);
            }
        }
    }

    /// Puts a shared asset, which is on its way, up to be asked of its other holders too.
    fn invite(&mut self, hash: Hash) {
        let Some(want) = self.wants.get(&hash) else { return };
        for holder in &want.holders {
            let source = self.sources.entry(*holder).or_default();
            if !source.owed.contains(&hash) && !source.queue.contains(&hash) {
                source.queue.push_back(hash);
            }
        }
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
