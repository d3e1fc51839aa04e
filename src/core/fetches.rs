//! Fetches: requests for assets that a user or program waits for. Decides from which peer an asset
//! is requested, and which fetches go first.
//!
//! F1  An asset that no peer is known to hold is requested from every connected peer, one after
//!     another, and from each once. When all have denied it, it is nowhere.
//! F2  A fetch marked `at_once` is requested before everything queued, however much a peer owes
//!     already.
//! F3  The waiting side repeats its request. A fetch that was not repeated for [`FETCH_MS_MAX`] is
//!     over; its asset is then wanted like any other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::ids::{Hash, NodeId};
use crate::core::limits::FETCHES_MAX;
use crate::core::lookup::HashPrefix;
use crate::core::wants::{Standing, Wants};

/// Many times the interval at which the waiting side repeats its request.
const FETCH_MS_MAX: u64 = 30_000;

/// The state of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FetchState {
    /// In the store.
    Here,
    /// A peer is sending it.
    Arriving,
    /// The asset is in a queue, here or at a peer.
    Waiting,
    /// The asset is not requested for a while: its content was wrong, or there is no space for it.
    Resting,
    /// No connected peer holds it.
    Nowhere,
    /// No peer is connected.
    NoPeer,
    /// Too many fetches are under way: it is fetched once others are complete.
    TooMany,
}

impl FetchState {
    /// Whether waiting will not change the state any more, or not soon.
    pub fn is_over(self) -> bool {
        match self {
            Self::Here | Self::Resting | Self::Nowhere => true,
            Self::Arriving | Self::Waiting | Self::NoPeer | Self::TooMany => false,
        }
    }
}

/// A request for assets. The agent remembers it for half a minute: a caller that still waits
/// repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchRequest {
    /// Whole hashes in hex, or unique prefixes of the hashes of assets known to be missing; at most
    /// [`FETCHES_MAX`].
    #[schema(max_items = 256)]
    pub hashes: Vec<HashPrefix>,
    /// Whether to fetch them before all other assets.
    #[serde(default)]
    pub now: bool,
}

/// The states of the requested assets, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FetchReply {
    /// One state per asset.
    pub assets: Vec<FetchView>,
}

/// The state of a fetched asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FetchView {
    /// The full hash of the asset.
    pub hash: Hash,
    /// How far the fetch is.
    pub state: FetchState,
    /// For a large asset that is arriving: the bytes that are still missing.
    #[schema(required)]
    pub left_bytes: Option<u64>,
}

#[derive(Debug, Clone)]
struct Fetch {
    looked_ms: u64,
    at_once: bool,
    /// The peer that was last asked to send it first.
    urged: Option<NodeId>,
    /// The peers that do not have it.
    denied: Vec<NodeId>,
}

/// The assets that somebody waits for.
#[derive(Debug, Clone, Default)]
pub struct Fetches {
    fetches: BTreeMap<Hash, Fetch>,
}

impl Fetches {
    /// Somebody waits for `hash`, which the index does not hold; `peers` can be asked for it. Once
    /// marked `at_once`, a fetch stays so. Beyond [`FETCHES_MAX`] fetches nothing is noted.
    pub fn fetch(
        &mut self,
        now_ms: u64,
        wants: &mut Wants,
        peers: &[NodeId],
        hash: Hash,
        at_once: bool,
    ) {
        self.fetches.retain(|_, fetch| now_ms < fetch.looked_ms + FETCH_MS_MAX);
        if !self.fetches.contains_key(&hash) {
            if self.fetches.len() >= FETCHES_MAX {
                return;
            }
            // The user who asks now may know that another try can succeed.
            wants.wake(&hash);
        }
        let fetch = self.fetches.entry(hash).or_insert_with(|| Fetch {
            looked_ms: now_ms,
            at_once,
            urged: None,
            denied: Vec::new(),
        });
        fetch.looked_ms = now_ms;
        fetch.at_once |= at_once;
        if !matches!(wants.standing(now_ms, &hash), Standing::Unknown | Standing::Resting) {
            return;
        }
        for peer in peers.iter().filter(|peer| !fetch.denied.contains(peer)) {
            wants.suppose(now_ms, *peer, hash);
        }
    }

    /// Whether somebody waits for `hash`.
    pub fn contains(&self, hash: &Hash) -> bool {
        self.fetches.contains_key(hash)
    }

    /// `peer` said that it does not have all of `hash`.
    pub fn denied(&mut self, peer: NodeId, hash: &Hash) {
        let Some(fetch) = self.fetches.get_mut(hash) else { return };
        if !fetch.denied.contains(&peer) {
            fetch.denied.push(peer);
        }
    }

    /// The assets to solicit from `peer` at once, whatever it owes already.
    pub fn urge(&mut self, now_ms: u64, wants: &mut Wants, peer: NodeId) -> Vec<Hash> {
        let mut asking = Vec::new();
        for (hash, fetch) in self.fetches.iter_mut().filter(|(_, fetch)| fetch.at_once) {
            let is_due = match wants.standing(now_ms, hash) {
                Standing::Queued => true,
                // The peer queues it behind everything requested before.
                Standing::Asked(from) => from == peer && fetch.urged != Some(peer),
                Standing::Here | Standing::Arriving | Standing::Resting | Standing::Unknown => {
                    false
                }
            };
            if is_due && wants.ask_first(now_ms, peer, *hash) {
                fetch.urged = Some(peer);
                asking.push(*hash);
            }
        }
        asking
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Digest;
    use crate::core::limits::{SOLICIT_WINDOW, WANTS_PER_PEER_MAX};
    use crate::core::wants::{Arrival, BatchId};

    const A: NodeId = NodeId([1; 32]);
    const B: NodeId = NodeId([2; 32]);

    fn hash(n: usize) -> Hash {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Hash(bytes)
    }

    /// `A` holds this many assets that this device lacks.
    fn backlog(assets: usize) -> Wants {
        let mut wants = Wants::default();
        (0..assets).for_each(|n| wants.lacking(0, A, hash(n)));
        wants
    }

    #[test]
    fn what_is_wanted_at_once_is_asked_for_although_the_window_is_full() {
        let mut wants = backlog(SOLICIT_WINDOW + 10);
        let mut fetches = Fetches::default();
        assert_eq!(wants.ask(0, A).len(), SOLICIT_WINDOW);
        let (queued, asked) = (hash(SOLICIT_WINDOW + 9), hash(SOLICIT_WINDOW - 1));
        for hash in [queued, asked] {
            fetches.fetch(0, &mut wants, &[A], hash, true);
        }
        assert_eq!(fetches.urge(0, &mut wants, B), []);
        assert_eq!(fetches.urge(0, &mut wants, A), [asked, queued]);
        assert_eq!(fetches.urge(0, &mut wants, A), [], "once is enough");
        assert_eq!(wants.owed(A), SOLICIT_WINDOW + 1);
        assert_eq!(wants.source_load(A), SOLICIT_WINDOW + 10, "it stands in no queue any more");
    }

    #[test]
    fn what_nobody_is_known_to_hold_is_asked_of_each_peer_once() {
        let (mut wants, mut fetches) = (Wants::default(), Fetches::default());
        for _ in 0..3 {
            fetches.fetch(0, &mut wants, &[A, B], hash(1), true);
            fetches.fetch(0, &mut wants, &[A, B], hash(2), false);
        }
        assert_eq!(fetches.urge(0, &mut wants, A), [hash(1)]);
        assert_eq!(wants.ask(0, A), [hash(2)]);
        for n in [1, 2] {
            fetches.denied(A, &hash(n));
            wants.unavailable(A, hash(n));
            fetches.fetch(0, &mut wants, &[A, B], hash(n), false);
        }
        assert_eq!((fetches.urge(0, &mut wants, A), wants.ask(0, A)), (vec![], vec![]));
        assert_eq!(fetches.urge(0, &mut wants, B), [hash(1)]);
        assert_eq!(wants.ask(0, B), [hash(2)]);
        for n in [1, 2] {
            fetches.denied(B, &hash(n));
            wants.unavailable(B, hash(n));
            fetches.fetch(0, &mut wants, &[A, B], hash(n), false);
            assert_eq!(wants.standing(0, &hash(n)), Standing::Unknown, "it is nowhere");
        }
        assert_eq!((wants.source_load(A), wants.source_load(B)), (0, 0));
    }

    #[test]
    fn a_peer_that_was_passed_over_is_not_urged_before_another() {
        let (mut wants, mut fetches) = (Wants::default(), Fetches::default());
        wants.lacking(0, A, hash(1));
        assert_eq!(wants.ask(0, A), [hash(1)]);
        wants.lacking(0, B, hash(1));
        let slow_ms = wants.deadline_ms().unwrap_or_default();
        wants.pass_over_slow_peers(slow_ms);
        fetches.fetch(slow_ms, &mut wants, &[A, B], hash(1), true);
        assert_eq!(fetches.urge(slow_ms, &mut wants, A), []);
        assert_eq!(fetches.urge(slow_ms, &mut wants, B), [hash(1)]);
    }

    #[test]
    fn a_full_queue_does_not_keep_out_what_is_wanted_at_once() {
        let mut wants = backlog(WANTS_PER_PEER_MAX + 1);
        let mut fetches = Fetches::default();
        let beyond = hash(WANTS_PER_PEER_MAX);
        assert_eq!(wants.standing(0, &beyond), Standing::Unknown);
        fetches.fetch(0, &mut wants, &[A], beyond, true);
        assert_eq!(fetches.urge(0, &mut wants, A), [beyond]);
    }

    #[test]
    fn what_failed_is_tried_again_at_the_first_word_and_then_rests() {
        let (mut wants, mut fetches) = (Wants::default(), Fetches::default());
        let refuse = |wants: &mut Wants| {
            let digest = Digest { hash: hash(1), size_bytes: 1 };
            assert!(wants.offered(0, A, BatchId(1), digest, false));
            wants.arrived(0, A, BatchId(1), hash(1), Arrival::Refused);
        };
        refuse(&mut wants);
        fetches.fetch(0, &mut wants, &[A], hash(1), false);
        assert_eq!(wants.standing(0, &hash(1)), Standing::Queued);
        refuse(&mut wants);
        fetches.fetch(0, &mut wants, &[A], hash(1), false);
        assert_eq!(wants.standing(0, &hash(1)), Standing::Resting);
    }

    #[test]
    fn what_one_peer_gave_wrong_is_asked_of_another_that_comes_later() {
        let (mut wants, mut fetches) = (Wants::default(), Fetches::default());
        fetches.fetch(0, &mut wants, &[A], hash(1), false);
        assert_eq!(wants.ask(0, A), [hash(1)]);
        let digest = Digest { hash: hash(1), size_bytes: 1 };
        assert!(wants.offered(0, A, BatchId(1), digest, false));
        wants.arrived(0, A, BatchId(1), hash(1), Arrival::Refused);
        fetches.fetch(0, &mut wants, &[A, B], hash(1), false);
        assert_eq!(wants.ask(0, A), []);
        assert_eq!(wants.ask(0, B), [hash(1)]);
    }

    #[test]
    fn fetches_are_bounded_and_end_when_nobody_asks_any_more() {
        let (mut wants, mut fetches) = (Wants::default(), Fetches::default());
        (0..=FETCHES_MAX).for_each(|n| fetches.fetch(0, &mut wants, &[A], hash(n), true));
        assert!(!fetches.contains(&hash(FETCHES_MAX)));
        assert_eq!(fetches.urge(0, &mut wants, A).len(), FETCHES_MAX);
        fetches.fetch(FETCH_MS_MAX, &mut wants, &[A], hash(FETCHES_MAX), true);
        assert!(fetches.contains(&hash(FETCHES_MAX)) && !fetches.contains(&hash(0)));
    }

    #[test]
    fn an_urgent_asset_that_arrives_in_any_batch_is_not_asked_for_again() {
        let mut wants = backlog(1);
        let mut fetches = Fetches::default();
        fetches.fetch(0, &mut wants, &[A], hash(0), true);
        assert_eq!(fetches.urge(0, &mut wants, A), [hash(0)]);
        wants.held_by(A, hash(0));
        wants.arrived(0, A, BatchId(1), hash(0), Arrival::Held);
        assert_eq!(wants.standing(0, &hash(0)), Standing::Here);
        assert_eq!(fetches.urge(0, &mut wants, A), []);
    }
}
