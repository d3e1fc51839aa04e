//! Decides which asset is asked of which peer, so that each crosses once.
//!
//! I1  A hash is asked of, or arriving from, at most one peer at a time.
//! I2  When that peer fails, another that holds it is asked; when none is left it is forgotten, and
//!     the next reconcile finds it again.
//! I3  What failed for its content, or found no room, rests for a while that doubles from time to
//!     time, alone: it holds up nothing else.
//! I4  Memory is bounded per peer by [`WANTS_PER_PEER_MAX`], whatever peers announce.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::ids::{Hash, NodeId};
use crate::core::limits::{RESTING_MAX, SOLICIT_WINDOW, WANTS_PER_PEER_MAX};

/// Attempts at one asset from one peer before it counts as failed.
const ATTEMPTS_PER_SOURCE: u8 = 3;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Asked(NodeId),
    Arriving(NodeId, BatchId),
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
    asked: BTreeSet<Hash>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    until_ms: u64,
    pause_ms: u64,
    /// For its content, not for want of room.
    is_bad: bool,
}

/// All assets this device lacks and knows a holder of.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    wants: BTreeMap<Hash, Want>,
    sources: BTreeMap<NodeId, Source>,
    arrived: BTreeMap<Hash, Vec<NodeId>>,
    arrived_order: VecDeque<Hash>,
    recent: BTreeSet<Hash>,
    recent_order: VecDeque<Hash>,
    resting: BTreeMap<Hash, Rest>,
}

impl Wants {
    /// `peer` holds `hash` and we lack it.
    pub fn lacking(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if let Some(holders) = self.arrived.get_mut(&hash) {
            add_holder(holders, peer);
            return;
        }
        if self.recent.contains(&hash) || self.is_resting(now_ms, &hash) {
            return;
        }
        let source = self.sources.entry(peer).or_default();
        if source.queue.len() + source.asked.len() >= WANTS_PER_PEER_MAX {
            return;
        }
        let want = self.wants.entry(hash).or_insert_with(|| Want {
            state: State::Queued,
            holders: Vec::new(),
            attempts: 0,
            indexed: false,
        });
        add_holder(&mut want.holders, peer);
        if want.state == State::Queued {
            source.queue.push_back(hash);
        }
    }

    /// The next hashes to solicit from `peer`: none while most of the window is still under way, so
    /// that requests are few and large.
    pub fn ask(&mut self, peer: NodeId) -> Vec<Hash> {
        let Some(source) = self.sources.get_mut(&peer) else { return Vec::new() };
        if source.queue.is_empty() || source.asked.len() > SOLICIT_WINDOW / 2 {
            return Vec::new();
        }
        let mut asking = Vec::new();
        while source.asked.len() < SOLICIT_WINDOW {
            let Some(hash) = source.queue.pop_front() else { break };
            let Some(want) = self.wants.get_mut(&hash) else { continue };
            if want.state == State::Queued && want.holders.contains(&peer) {
                want.state = State::Asked(peer);
                source.asked.insert(hash);
                asking.push(hash);
            }
        }
        asking
    }

    /// `peer` offers `hash`, which the index does not know. True: take it.
    pub fn offered(&mut self, now_ms: u64, peer: NodeId, batch: BatchId, hash: Hash) -> bool {
        if let Some(holders) = self.arrived.get_mut(&hash) {
            add_holder(holders, peer);
            return false;
        }
        if self.recent.contains(&hash) || self.is_resting(now_ms, &hash) {
            return false;
        }
        let full = self.source_load(peer) >= WANTS_PER_PEER_MAX;
        let Some(want) = self.wants.get_mut(&hash) else {
            if full {
                return false;
            }
            let state = State::Arriving(peer, batch);
            let want = Want { state, holders: vec![peer], attempts: 0, indexed: false };
            self.wants.insert(hash, want);
            self.sources.entry(peer).or_default().asked.insert(hash);
            return true;
        };
        add_holder(&mut want.holders, peer);
        let take = match want.state {
            State::Queued => true,
            State::Asked(asked) => asked == peer,
            State::Arriving(..) => false,
        };
        if take {
            want.state = State::Arriving(peer, batch);
            self.sources.entry(peer).or_default().asked.insert(hash);
        }
        take
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
        let Some(want) = self.wants.get_mut(&hash) else { return };
        let is_here = matches!(arrival, Arrival::Stored | Arrival::Held);
        if want.state != State::Arriving(peer, batch) && !is_here {
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
            Arrival::Refused => {
                if self.failed(peer, hash, true) {
                    self.rest(now_ms, hash, true);
                }
            }
            Arrival::NoRoom => {
                self.take(&hash);
                self.rest(now_ms, hash, false);
            }
        }
    }

    /// `peer` offers `hash` while we can take nothing: it is asked for when we can.
    pub fn turned_away(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        match self.wants.get(&hash).map(|want| want.state) {
            Some(State::Asked(asked)) if asked == peer => {
                self.release(peer, &hash);
                self.queue(hash);
            }
            Some(State::Arriving(..)) => {}
            Some(State::Asked(_) | State::Queued) | None => self.lacking(now_ms, peer, hash),
        }
    }

    /// `batch` from `peer` ended; whatever of it was not reported did not arrive.
    pub fn batch_ended(&mut self, peer: NodeId, batch: BatchId) {
        let Some(source) = self.sources.get(&peer) else { return };
        let open: Vec<Hash> = source
            .asked
            .iter()
            .filter(|hash| {
                self.wants.get(hash).map(|w| w.state) == Some(State::Arriving(peer, batch))
            })
            .copied()
            .collect();
        for hash in open {
            self.release(peer, &hash);
            self.failed(peer, hash, false);
        }
    }

    /// `peer` answered a solicitation: it does not have `hash`, or not whole.
    pub fn unavailable(&mut self, peer: NodeId, hash: Hash) {
        if self.wants.get(&hash).map(|want| want.state) == Some(State::Asked(peer)) {
            self.release(peer, &hash);
            self.failed(peer, hash, true);
        }
    }

    /// `peer` has not answered what was asked of it: ask again, or another.
    pub fn unanswered(&mut self, peer: NodeId) {
        let asked: Vec<Hash> = self.sources.get(&peer).map_or_else(Vec::new, |source| {
            let is_asked =
                |hash: &&Hash| self.wants.get(hash).map(|w| w.state) == Some(State::Asked(peer));
            source.asked.iter().filter(is_asked).copied().collect()
        });
        for hash in asked {
            self.release(peer, &hash);
            self.failed(peer, hash, false);
        }
    }

    /// The connection to `peer` is gone: what it alone holds is forgotten, the rest asked of others.
    pub fn peer_gone(&mut self, peer: NodeId) {
        let Some(source) = self.sources.remove(&peer) else { return };
        for hash in source.queue.into_iter().chain(source.asked) {
            let Some(want) = self.wants.get(&hash) else { continue };
            let ours = match want.state {
                State::Queued => true,
                State::Asked(from) | State::Arriving(from, _) => from == peer,
            };
            if ours {
                self.failed(peer, hash, true);
            } else if let Some(want) = self.wants.get_mut(&hash) {
                want.holders.retain(|holder| *holder != peer);
            }
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
        if let Some(holders) = self.arrived.remove(&hash) {
            return holders;
        }
        let Some(want) = self.wants.get_mut(&hash) else { return Vec::new() };
        if let State::Arriving(..) = want.state {
            want.indexed = true;
            return want.holders.clone();
        }
        self.take(&hash).map(|want| want.holders).unwrap_or_default()
    }

    /// Assets asked of `peer` or arriving from it.
    pub fn asked(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.asked.len())
    }

    /// Assets `peer` holds that are to be asked of it, or are.
    pub fn source_load(&self, peer: NodeId) -> usize {
        self.sources.get(&peer).map_or(0, |source| source.asked.len() + source.queue.len())
    }

    /// How many more hashes [`Self::lacking`] takes for `peer`.
    pub fn room(&self, peer: NodeId) -> usize {
        WANTS_PER_PEER_MAX.saturating_sub(self.source_load(peer))
    }

    /// Assets left alone at the moment because their content failed.
    pub fn quarantined(&self, now_ms: u64) -> usize {
        self.resting.values().filter(|rest| rest.is_bad && rest.until_ms > now_ms).count()
    }

    fn is_resting(&self, now_ms: u64, hash: &Hash) -> bool {
        self.resting.get(hash).is_some_and(|rest| rest.until_ms > now_ms)
    }

    fn rest(&mut self, now_ms: u64, hash: Hash, is_bad: bool) {
        let pause_ms_max = if is_bad { QUARANTINE_MS_MAX } else { NO_ROOM_MS_MAX };
        let last = self.resting.get(&hash).map(|rest| rest.pause_ms * 2);
        let pause_ms = last.unwrap_or(REST_MS_MIN).min(pause_ms_max);
        self.resting.insert(hash, Rest { until_ms: now_ms + pause_ms, pause_ms, is_bad });
        if self.resting.len() > RESTING_MAX {
            let oldest = self.resting.iter().min_by_key(|(_, rest)| rest.until_ms);
            if let Some(oldest) = oldest.map(|(hash, _)| *hash) {
                self.resting.remove(&oldest);
            }
        }
    }

    fn release(&mut self, peer: NodeId, hash: &Hash) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.asked.remove(hash);
        }
    }

    fn stored(&mut self, hash: Hash) {
        if let Some(want) = self.take(&hash)
            && !want.indexed
        {
            self.expect_indexed(hash, want.holders);
        }
    }

    /// Removes the want, and the request for it.
    fn take(&mut self, hash: &Hash) -> Option<Want> {
        let want = self.wants.remove(hash)?;
        if let State::Asked(peer) | State::Arriving(peer, _) = want.state {
            self.release(peer, hash);
        }
        Some(want)
    }

    fn expect_indexed(&mut self, hash: Hash, holders: Vec<NodeId>) {
        self.arrived.insert(hash, holders);
        self.arrived_order.push_back(hash);
        while self.arrived_order.len() > ARRIVED_MAX {
            if let Some(oldest) = self.arrived_order.pop_front() {
                self.arrived.remove(&oldest);
            }
        }
    }

    /// Takes `hash` back from `peer`. True when nobody is left to ask.
    fn failed(&mut self, peer: NodeId, hash: Hash, for_good: bool) -> bool {
        let Some(want) = self.wants.get_mut(&hash) else { return false };
        want.attempts += 1;
        if for_good || want.attempts >= ATTEMPTS_PER_SOURCE {
            want.holders.retain(|holder| *holder != peer);
            want.attempts = 0;
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
            self.sources.entry(*holder).or_default().queue.push_back(hash);
        }
    }
}

fn add_holder(holders: &mut Vec<NodeId>, peer: NodeId) {
    if !holders.contains(&peer) {
        holders.push(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: NodeId = NodeId([1; 32]);
    const B: NodeId = NodeId([2; 32]);
    const BATCH: BatchId = BatchId(1);

    fn hash(n: u8) -> Hash {
        Hash([n; 32])
    }

    #[test]
    fn an_asset_two_peers_hold_is_asked_of_one_and_of_the_other_when_that_fails() {
        let mut wants = Wants::default();
        wants.lacking(0, A, hash(1));
        wants.lacking(0, B, hash(1));
        assert_eq!(wants.ask(A), [hash(1)]);
        assert!(wants.ask(B).is_empty());
        wants.unavailable(A, hash(1));
        assert!(wants.ask(A).is_empty());
        assert_eq!(wants.ask(B), [hash(1)]);
    }

    #[test]
    fn an_offer_is_taken_unless_another_peer_is_sending_it() {
        let mut wants = Wants::default();
        assert!(wants.offered(0, A, BATCH, hash(1)));
        assert!(!wants.offered(0, B, BatchId(2), hash(1)));
        wants.batch_ended(A, BATCH);
        assert_eq!(wants.ask(B), [hash(1)], "the one that was turned away is asked");
    }

    #[test]
    fn what_was_stored_is_neither_taken_nor_asked_for_again() {
        let mut wants = Wants::default();
        assert!(wants.offered(0, A, BATCH, hash(1)));
        wants.arrived(0, A, BATCH, hash(1), Arrival::Stored);
        wants.lacking(0, B, hash(1));
        assert!(!wants.offered(0, B, BatchId(2), hash(1)));
        assert!(wants.ask(B).is_empty());
        assert_eq!(wants.indexed(hash(1)), [A, B]);
    }

    #[test]
    fn the_feed_may_show_an_asset_before_its_batch_is_reported() {
        let mut wants = Wants::default();
        assert!(wants.offered(0, A, BATCH, hash(1)));
        assert_eq!(wants.indexed(hash(1)), [A]);
        wants.arrived(0, A, BATCH, hash(1), Arrival::Stored);
        assert_eq!(wants.indexed(hash(1)), [], "nothing is kept of it");
        assert_eq!(wants.source_load(A), 0);
    }

    #[test]
    fn bad_content_rests_longer_from_failure_to_failure() {
        let mut wants = Wants::default();
        let mut now_ms = 0;
        for pause_ms in [REST_MS_MIN, REST_MS_MIN * 2] {
            assert!(wants.offered(now_ms, A, BATCH, hash(1)));
            wants.arrived(now_ms, A, BATCH, hash(1), Arrival::Refused);
            assert_eq!(wants.quarantined(now_ms), 1);
            now_ms += pause_ms - 1;
            assert!(!wants.offered(now_ms, A, BATCH, hash(1)));
            now_ms += 1;
        }
        assert!(wants.offered(now_ms, A, BATCH, hash(1)));
    }

    #[test]
    fn what_finds_no_room_rests_alone_and_is_not_called_bad() {
        let mut wants = Wants::default();
        wants.lacking(0, A, hash(1));
        wants.lacking(0, B, hash(1));
        assert_eq!(wants.ask(A), [hash(1)]);
        assert!(wants.offered(0, A, BATCH, hash(1)));
        wants.arrived(0, A, BATCH, hash(1), Arrival::NoRoom);
        assert!(!wants.offered(REST_MS_MIN - 1, B, BATCH, hash(1)), "room is no matter of peers");
        assert!(wants.offered(REST_MS_MIN - 1, B, BATCH, hash(2)));
        assert_eq!(wants.quarantined(0), 0);
        assert!(wants.offered(REST_MS_MIN, A, BATCH, hash(1)));
    }

    #[test]
    fn what_was_turned_away_is_asked_for_again() {
        let mut wants = Wants::default();
        wants.lacking(0, A, hash(1));
        assert_eq!(wants.ask(A), [hash(1)]);
        wants.turned_away(0, A, hash(1));
        wants.turned_away(0, A, hash(2));
        assert_eq!(wants.asked(A), 0);
        assert_eq!(wants.ask(A), [hash(1), hash(2)]);
    }

    #[test]
    fn what_came_unasked_from_one_peer_is_not_waited_for_from_another() {
        let mut wants = Wants::default();
        wants.lacking(0, A, hash(1));
        assert_eq!(wants.ask(A), [hash(1)]);
        wants.held_by(B, hash(1));
        assert_eq!(wants.source_load(A), 0);
        assert_eq!(wants.indexed(hash(1)), [A, B]);
        wants.held_by(B, hash(1));
        assert_eq!(wants.indexed(hash(1)), [], "the feed had shown it before");
    }

    #[test]
    fn an_interrupted_asset_is_asked_for_again_a_few_times() {
        let mut wants = Wants::default();
        wants.lacking(0, A, hash(1));
        for _ in 0..ATTEMPTS_PER_SOURCE {
            assert_eq!(wants.ask(A), [hash(1)]);
            assert!(wants.offered(0, A, BATCH, hash(1)));
            wants.batch_ended(A, BATCH);
        }
        assert!(wants.ask(A).is_empty());
        assert_eq!(wants.source_load(A), 0);
    }

    #[test]
    fn a_peer_cannot_make_us_keep_more_than_its_bound() {
        let mut wants = Wants::default();
        for n in 0..WANTS_PER_PEER_MAX as u64 + 100 {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            wants.lacking(0, A, Hash(bytes));
        }
        assert_eq!(wants.room(A), 0);
        assert_eq!(wants.wants.len(), WANTS_PER_PEER_MAX);
        assert!(!wants.offered(0, A, BATCH, hash(255)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Lacking(u8, u8),
        Ask(u8),
        Offered(u8, u8, u8),
        Arrived(u8, u8, u8, u8),
        Ended(u8, u8),
        Unavailable(u8, u8),
        TurnedAway(u8, u8),
        Unanswered(u8),
        Gone(u8),
        Indexed(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (peer, hash, batch) = (|| 1..4u8, || 0..6u8, || 0..4u8);
        prop_oneof![
            (peer(), hash()).prop_map(|(p, h)| Step::Lacking(p, h)),
            peer().prop_map(Step::Ask),
            (peer(), batch(), hash()).prop_map(|(p, b, h)| Step::Offered(p, b, h)),
            (peer(), batch(), hash(), 0..6u8).prop_map(|(p, b, h, a)| Step::Arrived(p, b, h, a)),
            (peer(), batch()).prop_map(|(p, b)| Step::Ended(p, b)),
            (peer(), hash()).prop_map(|(p, h)| Step::Unavailable(p, h)),
            (peer(), hash()).prop_map(|(p, h)| Step::TurnedAway(p, h)),
            peer().prop_map(Step::Unanswered),
            peer().prop_map(Step::Gone),
            hash().prop_map(Step::Indexed),
        ]
    }

    proptest! {
        #[test]
        fn every_want_stays_reachable_and_every_ask_has_its_want(
            steps in proptest::collection::vec(step(), 0..80)
        ) {
            let mut wants = Wants::default();
            let node = |p: u8| NodeId([p; 32]);
            for step in steps {
                match step {
                    Step::Lacking(p, h) => wants.lacking(0, node(p), hash(h)),
                    Step::Ask(p) => drop(wants.ask(node(p))),
                    Step::Offered(p, b, h) => {
                        wants.offered(0, node(p), BatchId(u64::from(b)), hash(h));
                    }
                    Step::Arrived(p, b, h, a) => {
                        let arrival = [
                            Arrival::Stored,
                            Arrival::Held,
                            Arrival::Interrupted,
                            Arrival::Unavailable,
                            Arrival::Refused,
                            Arrival::NoRoom,
                        ][usize::from(a)];
                        wants.arrived(0, node(p), BatchId(u64::from(b)), hash(h), arrival);
                    }
                    Step::Ended(p, b) => wants.batch_ended(node(p), BatchId(u64::from(b))),
                    Step::Unavailable(p, h) => wants.unavailable(node(p), hash(h)),
                    Step::TurnedAway(p, h) => wants.turned_away(0, node(p), hash(h)),
                    Step::Unanswered(p) => wants.unanswered(node(p)),
                    Step::Gone(p) => wants.peer_gone(node(p)),
                    Step::Indexed(h) => drop(wants.indexed(hash(h))),
                }
                for (hash, want) in &wants.wants {
                    let reachable = match want.state {
                        State::Queued => want.holders.iter().any(|holder| {
                            wants.sources.get(holder).is_some_and(|s| s.queue.contains(hash))
                        }),
                        State::Asked(peer) | State::Arriving(peer, _) => {
                            wants.sources.get(&peer).is_some_and(|s| s.asked.contains(hash))
                        }
                    };
                    prop_assert!(reachable, "{hash:?} {want:?}");
                }
                for (peer, source) in &wants.sources {
                    for hash in &source.asked {
                        let state = wants.wants.get(hash).map(|want| want.state);
                        let ours = match state {
                            Some(State::Asked(p) | State::Arriving(p, _)) => p == *peer,
                            Some(State::Queued) | None => false,
                        };
                        prop_assert!(ours, "{peer:?} is asked for {hash:?}, which is {state:?}");
                    }
                }
            }
        }
    }
}
