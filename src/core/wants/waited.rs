//! Assets that somebody waits for, or asks about: how each stands, and requesting it before others.

use super::{ASK_MS_MAX, Standing, State, Wants};
use crate::core::ids::{Hash, NodeId};
use crate::core::why::{self, Wanted};

impl Wants {
    /// The state of `hash`.
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

    /// How far the request for `hash` is, and the rests that keep it from being requested.
    pub fn explain(&self, now_ms: u64, hash: &Hash) -> (Wanted, Vec<why::Rest>) {
        let owed = |peer| self.owed(peer) as u64;
        let wanted = match self.state(hash) {
            _ if self.feed.is_here(hash) => Wanted::Stored,
            None => Wanted::Not,
            Some(State::Arriving(sources)) => {
                Wanted::Arriving(sources.batches.keys().copied().collect())
            }
            Some(State::Asked(from, at_ms)) => {
                let others = owed(*from).saturating_sub(1);
                Wanted::Requested { from: *from, at_ms: *at_ms, others }
            }
            Some(State::Queued) => {
                let holders = self.holders(hash).to_vec();
                let ahead = holders.first().map_or(0, |first| {
                    let queue = self.sources.get(first).map(|source| &source.queue);
                    let ahead = queue.and_then(|queue| queue.ahead(hash)).unwrap_or_default();
                    owed(*first) + ahead as u64
                });
                Wanted::Queued { holders, ahead }
            }
        };
        (wanted, self.rests.lasting(now_ms, hash))
    }

    /// The peers that said that they hold `hash`, which is wanted.
    pub fn holders(&self, hash: &Hash) -> &[NodeId] {
        self.wants.get(hash).map_or(&[], |want| &want.holders)
    }

    /// The first two wanted assets whose hashes, in hex, start with `prefix`.
    pub fn lacked(&self, prefix: &str) -> Vec<Hash> {
        let Ok(first) = format!("{prefix:0<width$}", width = 2 * Hash::LEN).parse::<Hash>() else {
            return Vec::new();
        };
        let from_first = self.wants.range(first..).map(|(hash, _)| *hash);
        from_first.take_while(|hash| hash.to_string().starts_with(prefix)).take(2).collect()
    }

    /// Ends the rests of `hash` early.
    pub fn wake(&mut self, hash: &Hash) {
        self.rests.wake(hash);
    }

    /// `peer` may hold `hash` and should be asked. Not bounded as [`Self::lacking`] is: the caller
    /// has a bound.
    pub fn suppose(&mut self, now_ms: u64, peer: NodeId, hash: Hash) {
        if !self.feed.is_here(&hash) && !self.rests.last(now_ms, peer, &hash) {
            self.hold(peer, hash);
        }
    }

    /// Requests `hash` from `peer` before everything else, even if it was requested before. Returns
    /// false if `peer` is not known to hold it, or if the asset was or will be requested from
    /// another peer because this one is slow.
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
}
