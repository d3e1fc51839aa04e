//! In which order the scrub reads the store again, how fast, and when a cycle is over.
//!
//! S1  A cycle visits each hash of the store once. The hashes are split by their first bits, and the
//!     parts are visited in an order that the cycle's seed decides: so a place on the disk is read
//!     at another time in each cycle, and no list of hashes is kept.
//! S2  What a cycle has visited is a few numbers, which are saved: a restart goes on there, also in
//!     the middle of a large asset.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::Hash;
use super::rate::parse_rate;

/// How long a cycle takes: each asset is read again this often.
pub const CYCLE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// The lowest rate of `auto`, bytes per second: it reads a small store in hours, and hardly loads any
/// disk.
const RATE_BYTES_MIN: u64 = 1024 * 1024;

/// The bits of a hash that say which part it is in.
const PART_BITS: u32 = 12;

/// The number of parts.
pub const PARTS: u16 = 1 << PART_BITS;

/// How fast the scrub reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ScrubRate {
    /// Not at all.
    Off,
    /// As fast as a cycle needs, and never slower than 1 MiB/s.
    #[default]
    Auto,
    /// So many bytes per second.
    Bytes(u64),
}

impl ScrubRate {
    /// The bytes per second for a store that holds `held_bytes`; `None`: no scrub.
    pub fn bytes_per_s(self, held_bytes: u64) -> Option<u64> {
        match self {
            Self::Off => None,
            // A quarter of the cycle is left for the times when the device is off.
            Self::Auto => Some((held_bytes / (CYCLE_MS / 1000 * 3 / 4)).max(RATE_BYTES_MIN)),
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

impl FromStr for ScrubRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        let rate = parse_rate(text).map_err(|error| error.to_string())?;
        Ok(rate.map_or(Self::Off, Self::Bytes))
    }
}

/// One pass over the whole store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// When it began, ms since the Unix epoch.
    pub begun_ms: u64,
    seed: u32,
    parts_visited: u16,
    /// The last asset visited in the current part.
    after: Option<Hash>,
    /// A large asset that is being read, and how far it was right.
    within: Option<(Hash, u64)>,
    /// The bytes read.
    pub read_bytes: u64,
    /// The assets read to their end.
    pub assets: u64,
    /// The assets found damaged.
    pub damaged: u64,
}

impl Cycle {
    /// A new cycle.
    pub fn begin(begun_ms: u64, seed: u32) -> Self {
        Self {
            begun_ms,
            seed,
            parts_visited: 0,
            after: None,
            within: None,
            read_bytes: 0,
            assets: 0,
            damaged: 0,
        }
    }

    /// The part to visit now; `None` when all were visited.
    pub fn part(&self) -> Option<u16> {
        // An odd factor makes a permutation of the parts.
        let (factor, first) = ((self.seed as u16) | 1, (self.seed >> 16) as u16);
        let part = self.parts_visited.wrapping_mul(factor).wrapping_add(first) % PARTS;
        (self.parts_visited < PARTS).then_some(part)
    }

    /// The hash after which the next asset of the part follows; `None`: from the first hash on.
    pub fn after(&self) -> Option<Hash> {
        self.after.or_else(|| self.part().and_then(last_before))
    }

    /// How far the asset was read and found right earlier.
    pub fn read_to(&self, hash: &Hash) -> u64 {
        self.within.filter(|(within, _)| within == hash).map_or(0, |(_, bytes)| bytes)
    }

    /// Notes how far an asset was read and found right.
    pub fn reading(&mut self, hash: Hash, to_bytes: u64) {
        self.within = Some((hash, to_bytes));
    }

    /// Notes that an asset was visited.
    pub fn visited(&mut self, hash: Hash) {
        (self.after, self.within) = (Some(hash), None);
        self.assets += 1;
    }

    /// Goes on to the next part.
    pub fn leave_part(&mut self) {
        (self.after, self.within) = (None, None);
        self.parts_visited += 1;
    }

    /// The share that was visited, in thousandths.
    pub fn done_permille(&self) -> u64 {
        u64::from(self.parts_visited) * 1000 / u64::from(PARTS)
    }
}

/// The part that a hash is in.
pub fn part_of(hash: &Hash) -> u16 {
    u16::from_be_bytes([hash.0[0], hash.0[1]]) >> (16 - PART_BITS)
}

/// The last hash before a part.
fn last_before(part: u16) -> Option<Hash> {
    let before = (part << (16 - PART_BITS)).checked_sub(1)?;
    let mut hash = Hash([0xff; Hash::LEN]);
    hash.0[..2].copy_from_slice(&before.to_be_bytes());
    Some(hash)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Visits all that is left, as the agent does.
    fn visit(cycle: &mut Cycle, hashes: &BTreeSet<Hash>, visits: usize) -> Vec<Hash> {
        let mut seen = Vec::new();
        while let Some(part) = cycle.part() {
            let after = cycle.after();
            let mut next = hashes.iter().filter(|hash| after.is_none_or(|after| **hash > after));
            match next.next().filter(|hash| part_of(hash) == part) {
                Some(_) if seen.len() == visits => return seen,
                Some(hash) => {
                    cycle.visited(*hash);
                    seen.push(*hash);
                }
                None => cycle.leave_part(),
            }
        }
        seen
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn a_cycle_visits_each_asset_once_also_when_it_is_interrupted(
            seed in any::<u32>(),
            hashes in prop::collection::btree_set(any::<[u8; 32]>().prop_map(Hash), 0..60),
            stop in 0..60usize,
        ) {
            let mut hashes = hashes;
            hashes.extend([Hash([0; 32]), Hash([0xff; 32])]);
            let mut cycle = Cycle::begin(5, seed);
            let mut seen = visit(&mut cycle, &hashes, stop);
            let saved = serde_json::to_string(&cycle).unwrap();
            let mut cycle: Cycle = serde_json::from_str(&saved).unwrap();
            seen.extend(visit(&mut cycle, &hashes, usize::MAX));
            prop_assert_eq!(seen.len(), hashes.len());
            prop_assert_eq!(cycle.assets, seen.len() as u64);
            prop_assert_eq!(cycle.done_permille(), 1000);
            prop_assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), hashes);
        }
    }

    #[test]
    fn the_order_is_another_one_in_each_cycle() {
        let order = |seed| {
            let mut cycle = Cycle::begin(0, seed);
            let mut parts = Vec::new();
            while let Some(part) = cycle.part() {
                parts.push(part);
                cycle.leave_part();
            }
            parts
        };
        let (one, other) = (order(0x1234_5678), order(0x9abc_def1));
        assert_ne!(one, other);
        assert_eq!(one.iter().collect::<BTreeSet<_>>().len(), usize::from(PARTS));
    }

    #[test]
    fn a_large_asset_goes_on_where_it_was_left_and_another_begins_anew() {
        let mut cycle = Cycle::begin(0, 1);
        cycle.reading(Hash([1; 32]), 4096);
        assert_eq!(cycle.read_to(&Hash([1; 32])), 4096);
        assert_eq!(cycle.read_to(&Hash([2; 32])), 0);
        cycle.visited(Hash([1; 32]));
        assert_eq!(cycle.read_to(&Hash([1; 32])), 0);
    }

    #[test]
    fn a_rate_is_off_or_automatic_or_a_number_of_bytes() {
        assert_eq!("off".parse(), Ok(ScrubRate::Off));
        assert_eq!("auto".parse(), Ok(ScrubRate::Auto));
        assert_eq!("5M".parse(), Ok(ScrubRate::Bytes(5 << 20)));
        assert!("fast".parse::<ScrubRate>().is_err());
        assert_eq!(ScrubRate::Auto.bytes_per_s(0), Some(1 << 20));
        let ten_tb = ScrubRate::Auto.bytes_per_s(10 << 40).unwrap();
        assert!(ten_tb * CYCLE_MS / 1000 > 10 << 40, "{ten_tb}");
        assert_eq!(ScrubRate::Off.bytes_per_s(10 << 40), None);
    }
}
