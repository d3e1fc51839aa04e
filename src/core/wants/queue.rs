//! The hashes to request from one peer, in the order they were queued, each once.

use std::collections::BTreeMap;

use crate::core::ids::Hash;

/// A first-in, first-out queue without duplicates.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    by_turn: BTreeMap<u64, Hash>,
    turns: BTreeMap<Hash, u64>,
    next_turn: u64,
}

impl Queue {
    /// Adds `hash` at the end unless it is in the queue already.
    pub(super) fn push(&mut self, hash: Hash) {
        if self.turns.contains_key(&hash) {
            return;
        }
        self.turns.insert(hash, self.next_turn);
        self.by_turn.insert(self.next_turn, hash);
        self.next_turn += 1;
    }

    pub(super) fn pop(&mut self) -> Option<Hash> {
        let (_, hash) = self.by_turn.pop_first()?;
        self.turns.remove(&hash);
        Some(hash)
    }

    pub(super) fn remove(&mut self, hash: &Hash) {
        if let Some(turn) = self.turns.remove(hash) {
            self.by_turn.remove(&turn);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// How many are popped before `hash`; `None`: it is not in the queue.
    pub(super) fn ahead(&self, hash: &Hash) -> Option<usize> {
        let turn = self.turns.get(hash)?;
        Some(self.by_turn.range(..turn).count())
    }

    #[cfg(test)]
    pub(super) fn contains(&self, hash: &Hash) -> bool {
        self.turns.contains_key(hash)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Hash> {
        self.by_turn.values()
    }
}
