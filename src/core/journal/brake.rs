//! The brake on metadata that is written back and forth: a store that alters what it is given, on
//! two devices, would have each take the other's for the user's edit, for ever.
//!
//! Only writes to the store are held back, and only for a while: an edit is never lost, and what a
//! user does quickly is there when the asset thaws.

use std::collections::BTreeMap;

use crate::core::ids::Hash;

/// Writes to one asset within [`WINDOW_MS`]; another one is held back.
pub const WRITES_MAX: usize = 5;

/// See [`WRITES_MAX`].
pub const WINDOW_MS: u64 = 60 * 1000;

/// How long an asset stays frozen.
pub const FREEZE_MS: u64 = 10 * 60 * 1000;

/// Assets watched. More are not written within [`WINDOW_MS`] by any disk; if they are, all are
/// counted anew.
const WATCHED_MAX: usize = 64 * 1024;

/// Counts writes per asset. Times are of one clock that does not go back, in ms.
#[derive(Debug, Default)]
pub struct Brake {
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

    /// Counts a write. True when it was the last one for a while.
    pub fn count(&mut self, hash: Hash, now_ms: u64) -> bool {
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

    /// When the next asset thaws.
    pub fn next_thaw_ms(&self) -> Option<u64> {
        self.frozen_until_ms.values().copied().min()
    }

    /// The assets that may be written again, each told once.
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
            assert!(!brake.count(HASH, n * WINDOW_MS / (WRITES_MAX as u64 - 1)), "write {n}");
        }
    }

    #[test]
    fn what_is_watched_is_bounded() {
        let mut brake = Brake::default();
        for n in 0..2 * WATCHED_MAX as u64 {
            let mut hash = Hash([0; 32]);
            hash.0[..8].copy_from_slice(&n.to_be_bytes());
            brake.count(hash, 0);
            assert!(brake.writes_ms.len() <= WATCHED_MAX);
        }
    }
}
