//! Assets that were committed to the store and that its change feed has not announced yet, or has
//! announced just now.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::ids::{Hash, NodeId};
use crate::core::wants::add_holder;

/// The most assets that are stored and not yet shown by the feed, which follows within moments.
/// Beyond, the oldest is forgotten, which costs one needless offer to its source.
const ARRIVED_MAX: usize = 65_536;

/// How many assets shown last by the feed are remembered. An index query made before the feed
/// showed an asset, and answered after, would otherwise cause a second request for it.
const RECENT_MAX: usize = 8_192;

/// An asset that is stored and not yet shown by the store's feed.
#[derive(Debug, Clone)]
struct Arrived {
    holders: Vec<NodeId>,
    /// The value of [`Feed::reading`] when the asset was stored.
    reading: u64,
}

/// See the file's head.
#[derive(Debug, Clone, Default)]
pub(super) struct Feed {
    arrived: BTreeMap<Hash, Arrived>,
    /// The stored assets with their [`Arrived::reading`], oldest first.
    arrived_order: VecDeque<(u64, Hash)>,
    /// The number of the reading of the feed that is under way or comes next.
    reading: u64,
    recent: BTreeSet<Hash>,
    recent_order: VecDeque<Hash>,
}

impl Feed {
    /// Whether `hash` is stored: the feed shows it soon, or has just shown it.
    pub(super) fn is_here(&self, hash: &Hash) -> bool {
        self.arrived.contains_key(hash) || self.is_recent(hash)
    }

    /// Whether the store's change feed has just announced `hash`.
    pub(super) fn is_recent(&self, hash: &Hash) -> bool {
        self.recent.contains(hash)
    }

    /// Adds `peer` as a holder of `hash` if that is stored and not yet shown.
    pub(super) fn add_holder(&mut self, hash: &Hash, peer: NodeId) {
        if let Some(arrived) = self.arrived.get_mut(hash) {
            add_holder(&mut arrived.holders, peer);
        }
    }

    /// `hash` was stored; `holders` are known to hold it.
    pub(super) fn expect(&mut self, hash: Hash, holders: Vec<NodeId>) {
        let reading = self.reading;
        self.arrived.insert(hash, Arrived { holders, reading });
        self.arrived_order.push_back((reading, hash));
        if self.arrived_order.len() > ARRIVED_MAX {
            self.expect_oldest_no_more();
        }
    }

    /// The feed shows `hash`. Returns the holders it was expected with.
    pub(super) fn shows(&mut self, hash: Hash) -> Option<Vec<NodeId>> {
        if self.recent.insert(hash) {
            self.recent_order.push_back(hash);
        }
        if self.recent_order.len() > RECENT_MAX
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        self.arrived.remove(&hash).map(|arrived| arrived.holders)
    }

    /// This device lets go of `hash`: that the feed has shown it counts no more.
    pub(super) fn was_released(&mut self, hash: &Hash) {
        self.recent.remove(hash);
    }

    /// The feed was read to its end, or is read from the start. What was stored before that reading
    /// began and did not appear in it was lost by the store.
    pub(super) fn was_read(&mut self) {
        let began_with = self.reading;
        self.reading += 1;
        while self.arrived_order.front().is_some_and(|(reading, _)| *reading < began_with) {
            self.expect_oldest_no_more();
        }
    }

    fn expect_oldest_no_more(&mut self) {
        let Some((reading, hash)) = self.arrived_order.pop_front() else { return };
        if self.arrived.get(&hash).is_some_and(|arrived| arrived.reading == reading) {
            self.arrived.remove(&hash);
        }
    }
}
