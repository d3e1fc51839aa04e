//! Holds a folder when very much of it changes at once: ransomware, `rm -rf`, a broken tool.
//!
//! B1  More than [`HELD_PATHS_MIN`] paths *and* more than one in [`HELD_FRACTION`] of a folder's
//!     files, gone or changed within [`WINDOW_MS`] by one source, are over the limit. New files do
//!     not count.
//! B2  The counts of sources are bounded, and so is the memory of each: a window is counted in
//!     steps of time, not path by path.
//! B3  A path counts once in a window, however often it is saved. Of more than [`COUNTED_MAX`] paths
//!     some count again.

use std::collections::{BTreeMap, VecDeque};

use super::path::PathKey;
use crate::core::ids::NodeId;

/// The changes within this time count together.
pub const WINDOW_MS: u64 = 5 * 60 * 1000;

/// Fewer paths are never held.
pub const HELD_PATHS_MIN: u64 = 50;

/// Of a folder's files more than one in this many must have changed.
pub const HELD_FRACTION: u64 = 10;

/// The steps in which a window is counted.
const STEP_MS: u64 = WINDOW_MS / 60;

/// The most sources that are counted at a time, as many as there are members; beyond, the one that
/// was quiet longest is forgotten.
const SOURCES_MAX: usize = 129;

/// The most counted paths that are remembered, some 100 bytes each. So many are over the limit of
/// every folder with fewer than ten times as many files.
const COUNTED_MAX: usize = 4096;

/// Where changes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The directory on this device.
    Disk,
    /// Another device.
    Device(NodeId),
}

/// Counts the changes of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Brake {
    steps: BTreeMap<Source, VecDeque<Step>>,
    /// When each path was counted last.
    counted: BTreeMap<(Source, PathKey), u64>,
}

/// The changes in one step of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    since_ms: u64,
    changed: u64,
}

impl Brake {
    /// Whether a change of a path is to be counted now, see B3. If so it is taken for counted.
    pub fn counts(&mut self, now_ms: u64, source: Source, path: PathKey) -> bool {
        // A clock that was set back begins a new window.
        let is_recent = |at_ms: &u64| *at_ms <= now_ms && now_ms - at_ms < WINDOW_MS;
        if self.counted.get(&(source, path)).is_some_and(is_recent) {
            return false;
        }
        if self.counted.len() >= COUNTED_MAX {
            self.counted.retain(|_, at_ms| is_recent(at_ms));
        }
        if self.counted.len() < COUNTED_MAX {
            self.counted.insert((source, path), now_ms);
        }
        true
    }

    /// Counts `changed` paths, gone or changed, of a folder that has `folder_files` files; those
    /// gone included. Returns whether the source is over the limit now.
    pub fn count(
        &mut self,
        now_ms: u64,
        source: Source,
        changed: usize,
        folder_files: u64,
    ) -> bool {
        self.forget_quiet(source);
        let steps = self.steps.entry(source).or_default();
        // A clock that was set back begins a new window.
        steps.retain(|step| step.since_ms <= now_ms && now_ms - step.since_ms < WINDOW_MS);
        match steps.back_mut() {
            Some(step) if now_ms - step.since_ms < STEP_MS => step.changed += changed as u64,
            _ => steps.push_back(Step { since_ms: now_ms, changed: changed as u64 }),
        }
        let counted: u64 = steps.iter().map(|step| step.changed).sum();
        counted > HELD_PATHS_MIN && counted > folder_files / HELD_FRACTION
    }

    /// When the changes of a source that count now began.
    pub fn begun_ms(&self, source: Source) -> Option<u64> {
        self.steps.get(&source)?.front().map(|step| step.since_ms)
    }

    /// Makes room for one more source.
    fn forget_quiet(&mut self, source: Source) {
        if self.steps.len() < SOURCES_MAX || self.steps.contains_key(&source) {
            return;
        }
        let last = |steps: &VecDeque<Step>| steps.back().map_or(0, |step| step.since_ms);
        let quiet = self.steps.iter().min_by_key(|(_, steps)| last(steps));
        if let Some(quiet) = quiet.map(|(source, _)| *source) {
            self.steps.remove(&quiet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Source = Source::Device(NodeId([1; 32]));
    const NOW_MS: u64 = 1_900_000_000_000;

    #[test]
    fn more_than_fifty_paths_and_a_tenth_of_a_folder_are_over_the_limit() {
        for (changed, files, is_over) in [
            (50, 50, false),
            (51, 100, true),
            (51, 509, true),
            (51, 510, false),
            (1000, 10_000, false),
            (1001, 10_000, true),
        ] {
            let over = Brake::default().count(NOW_MS, Source::Disk, changed, files);
            assert_eq!(over, is_over, "{changed} of {files}");
        }
    }

    #[test]
    fn a_path_that_is_saved_again_and_again_counts_once_in_five_minutes() {
        let mut brake = Brake::default();
        let (one, other) = (PathKey([1; 16]), PathKey([2; 16]));
        let counted = (0..200).filter(|n| brake.counts(NOW_MS + n * 2000, Source::Disk, one));
        assert_eq!(counted.count(), 2, "at the start, and after five minutes");
        assert!(brake.counts(NOW_MS, Source::Disk, other));
        assert!(brake.counts(NOW_MS, DEVICE, one), "each source by itself");
    }

    #[test]
    fn the_brake_remembers_a_bounded_number_of_paths_and_counts_the_rest() {
        let mut brake = Brake::default();
        for n in 0..2 * COUNTED_MAX as u64 {
            let path = PathKey(u128::from(n).to_be_bytes());
            assert!(brake.counts(NOW_MS, Source::Disk, path));
        }
        assert_eq!(brake.counted.len(), COUNTED_MAX);
        let later_ms = NOW_MS + WINDOW_MS;
        assert!(brake.counts(later_ms, Source::Disk, PathKey([9; 16])));
        assert_eq!(brake.counted.len(), 1, "the old ones are forgotten");
    }

    #[test]
    fn what_counts_begins_with_the_first_change_within_five_minutes() {
        let mut brake = Brake::default();
        assert_eq!(brake.begun_ms(Source::Disk), None);
        for second in [0, 200, 301, 310] {
            brake.count(NOW_MS + second * 1000, Source::Disk, 1, 1000);
        }
        assert_eq!(brake.begun_ms(Source::Disk), Some(NOW_MS + 200_000));
    }

    #[test]
    fn changes_spread_over_more_than_five_minutes_do_not_add_up() {
        let mut brake = Brake::default();
        for minute in 0..100 {
            let now_ms = NOW_MS + minute * 60_000;
            assert!(!brake.count(now_ms, Source::Disk, 10, 100), "minute {minute}");
        }
        let mut brake = Brake::default();
        let over: Vec<bool> = (0..60)
            .map(|second| brake.count(NOW_MS + second * 1000, Source::Disk, 1, 100))
            .collect();
        assert_eq!(over.iter().position(|over| *over), Some(50), "the 51st");
    }

    #[test]
    fn each_source_is_counted_by_itself() {
        let mut brake = Brake::default();
        assert!(!brake.count(NOW_MS, Source::Disk, 40, 100));
        assert!(!brake.count(NOW_MS, DEVICE, 40, 100));
        assert!(brake.count(NOW_MS, DEVICE, 11, 100));
        assert!(!brake.count(NOW_MS, Source::Disk, 10, 100));
    }

    #[test]
    fn the_brake_keeps_a_bounded_number_of_counts_whatever_comes() {
        let mut brake = Brake::default();
        for n in 0..10_000_u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            brake.count(NOW_MS + n * 7, Source::Device(NodeId(id)), 1, 1);
            brake.count(NOW_MS + n * 7, Source::Disk, 1, 1);
        }
        assert!(brake.steps.len() <= SOURCES_MAX);
        assert!(brake.steps.values().all(|steps| steps.len() <= 61));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_disarm_the_brake() {
        let mut brake = Brake::default();
        brake.count(NOW_MS, Source::Disk, 10, 100);
        assert!(brake.count(NOW_MS - 3_600_000, Source::Disk, 60, 100));
    }
}
