//! Rests: which assets are not accepted from which peer for a while, because they failed.
//!
//! R1  A rest concerns one asset from one peer: other peers can still send the asset.
//! R2  Memory is bounded per peer by [`RESTING_PER_PEER_MAX`]: a peer can only push out its own
//!     rests.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Hash, NodeId};
use crate::core::limits::RESTING_PER_PEER_MAX;
use crate::core::why;

/// The length of the first pause for an asset and a peer; it doubles with each failure.
pub(super) const REST_MS_MIN: u64 = 30_000;

/// The longest pause before an asset is requested again from a peer that sent wrong content for it.
const BAD_MS_MAX: u64 = 3_600_000;

/// The longest pause when there was no room. It is shorter, because users free space and another
/// try costs only an offer.
const NO_ROOM_MS_MAX: u64 = 600_000;

/// The longest pause after an interrupted transfer: enough time to request the asset from another
/// holder and for that transfer to begin.
const INTERRUPTED_MS_MAX: u64 = 60_000;

/// Why an asset rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The content does not match the hash, or the store refuses it.
    Bad,
    NoRoom,
    Interrupted,
}

impl Cause {
    fn longest_ms(self) -> u64 {
        match self {
            Self::Bad => BAD_MS_MAX,
            Self::NoRoom => NO_ROOM_MS_MAX,
            Self::Interrupted => INTERRUPTED_MS_MAX,
        }
    }
}

#[derive(Debug, Clone)]
struct Rest {
    until_ms: u64,
    pause_ms: u64,
    cause: Cause,
}

impl Rest {
    fn told(&self, peer: NodeId) -> why::Rest {
        let cause = match self.cause {
            Cause::Bad => why::RestCause::WrongBytes,
            Cause::NoRoom => why::RestCause::NoSpace,
            Cause::Interrupted => why::RestCause::Interrupted,
        };
        why::Rest { peer, cause, until_ms: self.until_ms }
    }
}

/// All rests. Ended ones are included, because the next rest of the same asset and peer is longer.
#[derive(Debug, Clone, Default)]
pub(super) struct Rests {
    rests: BTreeMap<(Hash, NodeId), Rest>,
    /// The rests of each peer, ordered by their end.
    by_end: BTreeMap<NodeId, BTreeSet<(u64, Hash)>>,
}

impl Rests {
    pub(super) fn begin(&mut self, now_ms: u64, peer: NodeId, hash: Hash, cause: Cause) {
        let last = self.remove(peer, hash);
        let doubled = last.map_or(REST_MS_MIN, |rest| rest.pause_ms * 2);
        let pause_ms = doubled.min(cause.longest_ms());
        let until_ms = now_ms + pause_ms;
        self.rests.insert((hash, peer), Rest { until_ms, pause_ms, cause });
        let ends = self.by_end.entry(peer).or_default();
        ends.insert((until_ms, hash));
        if ends.len() > RESTING_PER_PEER_MAX
            && let Some((_, first)) = ends.pop_first()
        {
            self.rests.remove(&(first, peer));
        }
    }

    /// Whether `hash` must not be accepted from `peer` now.
    pub(super) fn last(&self, now_ms: u64, peer: NodeId, hash: &Hash) -> bool {
        self.rests.get(&(*hash, peer)).is_some_and(|rest| rest.until_ms > now_ms)
    }

    /// Whether `hash` rests now for at least one peer.
    pub(super) fn last_for_any(&self, now_ms: u64, hash: &Hash) -> bool {
        self.of(hash).any(|(_, rest)| rest.until_ms > now_ms)
    }

    /// The rests of `hash` that have not ended, each with its peer.
    pub(super) fn lasting(&self, now_ms: u64, hash: &Hash) -> Vec<why::Rest> {
        let lasting = self.of(hash).filter(|(_, rest)| rest.until_ms > now_ms);
        lasting.map(|(peer, rest)| rest.told(peer)).collect()
    }

    /// Ends the rests of `hash` now. After another failure the next rest is still longer.
    pub(super) fn wake(&mut self, hash: &Hash) {
        let peers: Vec<NodeId> = self.of(hash).map(|(peer, _)| peer).collect();
        for peer in peers {
            if let Some(rest) = self.remove(peer, *hash) {
                self.rests.insert((*hash, peer), Rest { until_ms: 0, ..rest });
                self.by_end.entry(peer).or_default().insert((0, *hash));
            }
        }
    }

    /// Forgets the rests of `hash`, which was stored.
    pub(super) fn forget(&mut self, hash: &Hash) {
        let peers: Vec<NodeId> = self.of(hash).map(|(peer, _)| peer).collect();
        for peer in peers {
            self.remove(peer, *hash);
        }
    }

    /// The assets that rest because their content was wrong.
    pub(super) fn bad(&self, now_ms: u64) -> BTreeSet<&Hash> {
        let rests = self.rests.iter();
        let bad = rests.filter(|(_, rest)| rest.cause == Cause::Bad && rest.until_ms > now_ms);
        bad.map(|((hash, _), _)| hash).collect()
    }

    fn of(&self, hash: &Hash) -> impl Iterator<Item = (NodeId, &Rest)> {
        let all = (*hash, NodeId([0; 32]))..=(*hash, NodeId([0xff; 32]));
        self.rests.range(all).map(|((_, peer), rest)| (*peer, rest))
    }

    fn remove(&mut self, peer: NodeId, hash: Hash) -> Option<Rest> {
        let rest = self.rests.remove(&(hash, peer))?;
        if let Some(ends) = self.by_end.get_mut(&peer) {
            ends.remove(&(rest.until_ms, hash));
        }
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_pushes_out_its_own_rests_only() {
        let (a, b) = (NodeId([1; 32]), NodeId([2; 32]));
        let hash = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            Hash(bytes)
        };
        let mut rests = Rests::default();
        rests.begin(0, a, hash(0), Cause::Bad);
        for n in 0..=RESTING_PER_PEER_MAX {
            rests.begin(n as u64, b, hash(n), Cause::Interrupted);
        }
        assert_eq!(rests.rests.len(), 1 + RESTING_PER_PEER_MAX);
        assert!(rests.last(1, a, &hash(0)) && !rests.last(1, b, &hash(0)));
        for n in 0..=RESTING_PER_PEER_MAX {
            rests.forget(&hash(n));
        }
        assert!(rests.rests.is_empty() && rests.by_end.values().all(BTreeSet::is_empty));
    }
}
