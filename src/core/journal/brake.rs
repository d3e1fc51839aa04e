//! The brake on metadata that is written back and forth. If a store alters what is written to it,
//! each of two devices takes the other's value for an edit by the user, for ever.
//!
//! Such a loop shows as a pattern: edited in the store, written to the store, edited in the store
//! again. Only writes to the store are held back, and only for a while: an edit is never lost.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::Hash;

/// The most writes to one asset within [`WINDOW_MS`] that each follow an edit in the store. The
/// next one is held back.
pub const WRITES_MAX: usize = 5;

/// The window in which [`WRITES_MAX`] writes are counted.
pub const WINDOW_MS: u64 = 60 * 1000;

/// How long an asset stays frozen.
pub const FREEZE_MS: u64 = 10 * 60 * 1000;

/// The most assets watched. No disk takes writes to more within [`WINDOW_MS`]; beyond it all counts
/// start again at zero.
const WATCHED_MAX: usize = 64 * 1024;

/// Counts writes per asset. All times are from one monotonic clock, in ms.
#[derive(Debug, Default)]
pub struct Brake {
    /// Assets that were edited in the store since the last write to them.
    edited: BTreeSet<Hash>,
    writes_ms: BTreeMap<Hash, Vec<u64>>,
    frozen_until_ms: BTreeMap<Hash, u64>,
}

impl Brake {
    /// Whether writes to the asset are held back.
    pub fn is_frozen(&self, hash: &Hash) -> bool {
        self.frozen_until_ms.contains_key(hash)
    }

    /// How many assets are frozen.
    pub fn frozen(&self) -> usize {
        self.frozen_until_ms.len()
    }

    /// Notes that the asset was edited in the store, or altered by it.
    pub fn edited(&mut self, hash: Hash) {
        if self.edited.len() >= WATCHED_MAX {
            self.edited.clear();
        }
        self.edited.insert(hash);
    }

    /// Counts a write if an edit in the store came before it. Writes without an edit between them
    /// only carry changes by other devices, however many there are. Returns true when the asset is
    /// frozen from now on.
    pub fn count(&mut self, hash: Hash, now_ms: u64) -> bool {
        if !self.edited.remove(&hash) {
            return false;
        }
        let is_recent = |at_ms: &u64| at_ms + WINDOW_MS > now_ms;
        if self.writes_ms.len() >= WATCHED_MAX {
            self.writes_ms.retain(|_, writes| writes.iter().any(is_recent));
            if self.writes_ms.len() >= WATCHED_MAX {
                self.writes_ms.clear();
            }
        }
        let writes = self.writes_ms.entry(hash).or_default();
        writes.retain(is_recent);
        writes.push(now_ms);
        if writes.len() < WRITES_MAX {
            return false;
        }
        self.writes_ms.remove(&hash);
        self.frozen_until_ms.insert(hash, now_ms + FREEZE_MS);
        true
    }

    /// Forgets the counts of an asset because a person asks for it now: what came before was no
    /// loop. Returns true if it was frozen.
    pub fn release(&mut self, hash: &Hash) -> bool {
        self.writes_ms.remove(hash);
        self.frozen_until_ms.remove(hash).is_some()
    }

    /// When the next asset thaws; `None` when none is frozen.
    pub fn next_thaw_ms(&self) -> Option<u64> {
        self.frozen_until_ms.values().copied().min()
    }

    /// Takes out the assets whose freeze is over: they may be written again.
    pub fn thaw(&mut self, now_ms: u64) -> Vec<Hash> {
        let due = self.frozen_until_ms.iter().filter(|(_, until_ms)| **until_ms <= now_ms);
        let due: Vec<Hash> = due.map(|(hash, _)| *hash).collect();
        for hash in &due {
            self.frozen_until_ms.remove(hash);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Hash = Hash([1; 32]);

    #[test]
    fn an_asset_written_too_often_is_frozen_and_thaws() {
        let mut brake = Brake::default();
        for n in 0..WRITES_MAX as u64 {
            assert!(!brake.is_frozen(&HASH));
            let last = n + 1 == WRITES_MAX as u64;
            brake.edited(HASH);
            assert_eq!(brake.count(HASH, n), last, "write {n}");
        }
        assert!(brake.is_frozen(&HASH) && !brake.is_frozen(&Hash([2; 32])));
        let thaws_ms = WRITES_MAX as u64 - 1 + FREEZE_MS;
        assert_eq!(brake.next_thaw_ms(), Some(thaws_ms));
        assert_eq!(brake.thaw(thaws_ms - 1), []);
        assert_eq!(brake.thaw(thaws_ms), [HASH]);
        assert!(!brake.is_frozen(&HASH));
        assert!(!brake.count(HASH, thaws_ms));
    }

    #[test]
    fn an_asset_written_now_and_then_is_not() {
        let mut brake = Brake::default();
        for n in 0..100 {
            brake.edited(HASH);
            assert!(!brake.count(HASH, n * WINDOW_MS / (WRITES_MAX as u64 - 1)), "write {n}");
        }
    }

    #[test]
    fn what_others_write_quickly_is_no_loop() {
        let mut brake = Brake::default();
        assert!((0..100).all(|n| !brake.count(HASH, n)));
        brake.edited(HASH);
        assert!((0..100).all(|n| !brake.count(HASH, n)));
    }

    #[test]
    fn what_a_person_asks_for_is_never_held_back() {
        let mut brake = Brake::default();
        for n in 0..100 {
            brake.release(&HASH);
            brake.edited(HASH);
            assert!(!brake.count(HASH, n), "write {n}");
        }
        for n in 0..WRITES_MAX as u64 {
            brake.edited(HASH);
            brake.count(HASH, n);
        }
        assert!(brake.is_frozen(&HASH) && brake.release(&HASH));
        assert!(!brake.is_frozen(&HASH) && !brake.release(&HASH));
    }

    #[test]
    fn what_is_watched_is_bounded() {
        let mut brake = Brake::default();
        for n in 0..2 * WATCHED_MAX as u64 {
            let mut hash = Hash([0; 32]);
            hash.0[..8].copy_from_slice(&n.to_be_bytes());
            brake.edited(hash);
            assert!(brake.edited.len() <= WATCHED_MAX);
            brake.count(hash, 0);
            assert!(brake.writes_ms.len() <= WATCHED_MAX);
        }
    }
}
