//! Damaged assets of the own store that are not read for a while. The embedded store marks a
//! damaged asset and no longer holds it; a foreign store still says that it holds it, and finding
//! damage means reading the whole asset. So the pause doubles each time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::core::ids::Hash;
use crate::core::limits::RESTING_MAX;

/// The first pause, doubled up to the longest. A user who has repaired the file waits a minute.
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The damaged assets. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Damaged(Arc<Mutex<BTreeMap<Hash, Rest>>>);

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    pause: Duration,
}

impl Damaged {
    /// Whether the asset must not be read yet.
    pub(super) fn is_resting(&self, hash: &Hash) -> bool {
        self.assets().get(hash).is_some_and(|rest| Instant::now() < rest.until)
    }

    /// Notes that the asset's content was wrong.
    pub(super) fn found(&self, hash: Hash) {
        let mut assets = self.assets();
        let before = assets.get(&hash);
        let pause = before.map_or(PAUSE_MIN, |rest| (rest.pause * 2).min(PAUSE_MAX));
        assets.insert(hash, Rest { until: Instant::now() + pause, pause });
        if assets.len() > RESTING_MAX
            && let Some(first) = assets.iter().min_by_key(|(_, rest)| rest.until)
        {
            let first = *first.0;
            assets.remove(&first);
        }
    }

    /// Notes that the whole asset was read and is right. Returns true if it was damaged before.
    pub(super) fn healed(&self, hash: &Hash) -> bool {
        self.assets().remove(hash).is_some()
    }

    fn assets(&self) -> MutexGuard<'_, BTreeMap<Hash, Rest>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_damaged_asset_rests_longer_from_time_to_time_until_it_is_whole() {
        let (damaged, hash) = (Damaged::default(), Hash([1; 32]));
        for pause in [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4] {
            damaged.found(hash);
            tokio::time::advance(pause - Duration::from_millis(1)).await;
            assert!(damaged.is_resting(&hash));
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!damaged.is_resting(&hash));
        }
        assert!(damaged.healed(&hash));
        assert!(!damaged.healed(&hash));
        damaged.found(hash);
        tokio::time::advance(PAUSE_MIN).await;
        assert!(!damaged.is_resting(&hash), "it begins with the shortest pause again");
    }
}
