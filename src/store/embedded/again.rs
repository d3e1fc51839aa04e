//! Which contents were put again a short while ago although the store had them, or are on hold. Whoever did
//! that is about to refer to them, so they must not be deleted as if nothing did.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::clock::boot_ms;
use crate::core::ids::Hash;

/// Longer than anybody takes between putting a content and telling of it.
const AGAIN_MS: u64 = 10 * 60 * 1000;

/// The most hashes that are remembered, twice; with more, every content counts as put again.
const AGAIN_MAX: usize = 64 * 1024;

/// The contents that were put again.
#[derive(Debug, Default)]
pub(super) struct Again(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: BTreeSet<Hash>,
    old: BTreeSet<Hash>,
    /// When the young ones began.
    since_ms: u64,
    /// Until then every content counts.
    all_until_ms: u64,
}

impl Again {
    /// Notes a content that was put again.
    pub(super) fn note(&self, hash: Hash) {
        self.0.lock().note(hash, boot_ms());
    }

    /// Whether a content was put again in the last [`AGAIN_MS`]; true also for some of before.
    pub(super) fn was(&self, hash: &Hash) -> bool {
        self.0.lock().was(hash, boot_ms())
    }
}

impl Generations {
    fn note(&mut self, hash: Hash, now_ms: u64) {
        self.turn(now_ms);
        if self.young.len() >= AGAIN_MAX {
            self.all_until_ms = now_ms + AGAIN_MS;
            return;
        }
        self.young.insert(hash);
    }

    fn was(&mut self, hash: &Hash, now_ms: u64) -> bool {
        self.turn(now_ms);
        now_ms < self.all_until_ms || self.young.contains(hash) || self.old.contains(hash)
    }

    fn turn(&mut self, now_ms: u64) {
        let age_ms = now_ms.saturating_sub(self.since_ms);
        if age_ms >= AGAIN_MS {
            let young = std::mem::take(&mut self.young);
            self.old = if age_ms >= 2 * AGAIN_MS { BTreeSet::new() } else { young };
            self.since_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Hash = Hash([1; 32]);

    #[test]
    fn what_was_put_again_is_remembered_for_ten_minutes_and_not_for_ever() {
        let mut again = Generations::default();
        again.note(ONE, AGAIN_MS + 5);
        assert!(again.was(&ONE, AGAIN_MS + 5));
        assert!(again.was(&ONE, 2 * AGAIN_MS + 4));
        assert!(again.was(&ONE, 2 * AGAIN_MS + 5), "it is old now");
        assert!(!again.was(&ONE, 4 * AGAIN_MS + 5));
        assert!(!again.was(&Hash([2; 32]), AGAIN_MS + 5));
    }

    #[test]
    fn beyond_the_bound_every_content_counts_as_put_again() {
        let mut again = Generations::default();
        for n in 0..=AGAIN_MAX {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_be_bytes());
            again.note(Hash(hash), AGAIN_MS);
        }
        assert!(again.was(&Hash([9; 32]), 2 * AGAIN_MS - 1));
        assert!(!again.was(&Hash([9; 32]), 2 * AGAIN_MS));
    }
}
