//! Decides in which way a difference is found, and how many coded cells to send at a time.
//!
//! The costs are bytes on the wire: a hash in a page or in a delta is 32, a difference found by
//! coded cells about 62 (1.4 to 1.5 cells of 42 bytes each).

use crate::core::limits::{SHARD_BITS_MAX, SKETCH_CELLS};
use crate::core::reconcile::SetSummary;
use crate::core::sketch::COUNTERS;

/// How a difference is found. The numbers on the wire are `Plan.Way`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The sets are equal.
    Equal,
    /// Each side pulls what the other added since its cursor.
    Delta,
    /// The dialer decodes the acceptor's coded cells.
    Cells,
    /// Each side pulls the other's whole list.
    List,
    /// The dialer decodes coded cells of shards under a fresh key: a full scan on both sides.
    Shards,
    /// The acceptor cannot do a full scan now.
    Busy,
}

const HASH_BYTES: u64 = 32;
const BYTES_PER_DIFFERENCE: u64 = 62;
const CELLS_OVERHEAD_BYTES: u64 = 100;
const SHARD_OVERHEAD_BYTES: u64 = 400;

/// The number of differences that a whole sketch decodes with room to spare: 0.7 of its cells.
const DECODABLE_MAX: u64 = (SKETCH_CELLS * 7 / 10) as u64;

/// By how much the estimate may exceed the largest possible difference, as the cursors show it, by
/// chance alone.
const ESTIMATE_SLACK: u64 = 64;

/// Estimates from the counters how many hashes differ: exact on average, typically 12.5 % off.
/// Clamped to what the counts allow.
pub(super) fn estimate(
    ours: &[i32; COUNTERS],
    theirs: &[i32; COUNTERS],
    counts: (u64, u64),
) -> u64 {
    let squares = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / COUNTERS as f64;
    (mean.round() as u64).clamp(counts.0.abs_diff(counts.1), counts.0.saturating_add(counts.1))
}

/// The cheapest way in which the acceptor (`ours`) can answer the dialer (`theirs`).
pub(super) fn cheapest(ours: &SetSummary, theirs: &SetSummary, estimate: u64) -> Way {
    if ours.fingerprint == theirs.fingerprint {
        return Way::Equal;
    }
    let list = HASH_BYTES.saturating_mul(ours.count.saturating_add(theirs.count));
    let mut best = (list, Way::List);
    let mut offer = |cost: u64, way: Way| {
        if cost < best.0 {
            best = (cost, way);
        }
    };
    if estimate <= DECODABLE_MAX {
        offer(BYTES_PER_DIFFERENCE * estimate + CELLS_OVERHEAD_BYTES, Way::Cells);
    } else if let Some(bits) = shard_bits(estimate) {
        offer(shards_cost(estimate, bits), Way::Shards);
    }
    if let (Some(to_them), Some(to_us)) =
        (ours.added_since(theirs.since), theirs.added_since(ours.since))
    {
        let added = to_them.saturating_add(to_us);
        // If nothing was added but the sets differ, or more differs than was added, a cursor is
        // wrong.
        let explains = estimate <= added.saturating_mul(2).saturating_add(ESTIMATE_SLACK);
        if added > 0 && explains {
            offer(HASH_BYTES.saturating_mul(added), Way::Delta);
        }
    }
    best.1
}

/// Whether shards for an estimated difference are cheaper than lists of `count` hashes in all.
pub(super) fn shards_beat_list(estimate: u64, bits: u32, count: u64) -> bool {
    shards_cost(estimate, bits) < HASH_BYTES.saturating_mul(count)
}

fn shards_cost(estimate: u64, bits: u32) -> u64 {
    BYTES_PER_DIFFERENCE.saturating_mul(estimate).saturating_add(SHARD_OVERHEAD_BYTES << bits)
}

/// The number of shards, as a power of two, at which each shard decodes from a sketch.
pub(super) fn shard_bits(estimate: u64) -> Option<u32> {
    (0..=SHARD_BITS_MAX).find(|bits| estimate >> bits <= DECODABLE_MAX)
}

/// How many cells to send first for `estimate` differences: enough in six of seven rounds.
pub(super) fn first_cells(estimate: u64) -> usize {
    let estimate = estimate as f64;
    cells(1.5 * estimate + 4.0 * estimate.sqrt() + 4.0)
}

/// The total number of cells to request after `received` did not decode; by their counts `estimate`
/// hashes differ.
pub(super) fn next_cells(received: usize, estimate: f64) -> usize {
    let enough = cells(1.4 * estimate + 4.0 * estimate.sqrt() + 8.0);
    enough.max(received + received / 4 + 8).min(SKETCH_CELLS)
}

fn cells(wanted: f64) -> usize {
    (wanted.ceil() as usize).min(SKETCH_CELLS)
}

/// The average count of the cell at `index` in a set of `count` hashes. It is subtracted before
/// sending, so that the counts are small numbers.
pub(super) fn usual_count(count: u64, index: usize) -> i64 {
    (count.saturating_mul(2) / (index as u64 + 2)).cast_signed()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::reconcile::Since;

    const HERE: [u8; 16] = [1; 16];
    const THERE: [u8; 16] = [2; 16];

    fn summary(epoch: [u8; 16], count: u64, fingerprint: u8) -> SetSummary {
        SetSummary {
            epoch,
            head_seq: count,
            count,
            fingerprint: [fingerprint; 32],
            counters: None,
            since: None,
            busy: false,
        }
    }

    #[test]
    fn equal_fingerprints_need_no_way() {
        let way = cheapest(&summary(HERE, 5, 1), &summary(THERE, 5, 1), 0);
        assert_eq!(way, Way::Equal);
    }

    #[test]
    fn the_cheapest_way_follows_size_and_difference() {
        let ways = [
            (10, 10, 20, Way::List),
            (0, 1_000_000, 1_000_000, Way::List),
            (1_000_000, 1_000_000, 1, Way::Cells),
            (1_000_000, 1_000_000, DECODABLE_MAX, Way::Cells),
            (1_000_000, 1_000_000, DECODABLE_MAX + 1, Way::Shards),
            (1_000_000, 1_000_000, 1_900_000, Way::List),
            (1 << 39, 1 << 39, 1 << 38, Way::List),
        ];
        for (a, b, estimate, way) in ways {
            let chosen = cheapest(&summary(HERE, a, 1), &summary(THERE, b, 2), estimate);
            assert_eq!(chosen, way, "{a} {b} {estimate}");
        }
    }

    #[test]
    fn a_delta_is_taken_when_both_cursors_hold_and_explain_the_difference() {
        let mut ours = summary(HERE, 1000, 1);
        let mut theirs = summary(THERE, 1000, 2);
        theirs.since = Some(Since { epoch: HERE, seq: 990 });
        ours.since = Some(Since { epoch: THERE, seq: 1000 });
        assert_eq!(cheapest(&ours, &theirs, 10), Way::Delta);
        assert_eq!(cheapest(&ours, &theirs, 500), Way::Cells, "ten additions cannot explain 500");

        ours.since = Some(Since { epoch: THERE, seq: 1001 });
        assert_eq!(cheapest(&ours, &theirs, 10), Way::Cells, "their numbering went back");
        ours.since = Some(Since { epoch: HERE, seq: 1000 });
        assert_eq!(cheapest(&ours, &theirs, 10), Way::Cells, "another epoch's cursor");
        ours.since = None;
        assert_eq!(cheapest(&ours, &theirs, 10), Way::Cells, "no cursor");
    }

    #[test]
    fn a_delta_of_nothing_is_not_taken_for_sets_that_differ() {
        let mut ours = summary(HERE, 1000, 1);
        let mut theirs = summary(THERE, 1000, 2);
        theirs.since = Some(Since { epoch: HERE, seq: 1000 });
        ours.since = Some(Since { epoch: THERE, seq: 1000 });
        assert_eq!(cheapest(&ours, &theirs, 1), Way::Cells);
    }

    #[test]
    fn no_number_a_peer_can_send_overflows() {
        let extreme = summary(HERE, u64::MAX, 1);
        for estimate in [0, 1, u64::MAX] {
            cheapest(&extreme, &summary(THERE, u64::MAX, 2), estimate);
            assert!(first_cells(estimate) <= SKETCH_CELLS);
        }
        assert_eq!(estimate(&[i32::MIN; 128], &[i32::MAX; 128], (3, 4)), 7);
        for estimate in [0.0, f64::MAX, f64::INFINITY] {
            assert!(next_cells(SKETCH_CELLS, estimate) == SKETCH_CELLS);
        }
    }
}
