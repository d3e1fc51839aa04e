//! Decodes the difference of two sets from their coded cells: the peeling decoder of rateless
//! IBLTs. It takes any number of cells at a time.
//!
//! A cell that holds one symbol reveals it. Removing that symbol from its other cells may leave one
//! symbol in some of those, and so on. From cells that arrive later the recovered symbols are
//! removed first.
//!
//! I1  No more symbols are recovered than cells were received, whatever those cells contain.
//! I2  `is_solved` means that every cell received is exactly the sum of what was recovered.

use crate::core::ids::Hash;
use crate::core::sketch::{Cell, CodedCells, Indices, SketchKey, Symbol};

/// Two lists of hashes, ascending without repeats: the difference of two sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// The hashes in the other set only.
    pub(super) theirs: Vec<Hash>,
    /// The hashes in this set only.
    pub(super) ours: Vec<Hash>,
}

/// The difference of two sets' cells, while it is being decoded.
pub(super) struct Decoder {
    key: SketchKey,
    cells: Vec<Cell>,
    recovered: Vec<Recovered>,
    net: f64,
    spread: f64,
    spread_per_difference: f64,
}

struct Recovered {
    hash: Hash,
    symbol: Symbol,
    is_theirs: bool,
    /// The symbol's next index that was not received yet.
    indices: Indices,
}

impl Decoder {
    /// A decoder with no cells yet.
    pub(super) fn new(key: SketchKey) -> Self {
        Self {
            key,
            cells: Vec::new(),
            recovered: Vec::new(),
            net: 0.0,
            spread: 0.0,
            spread_per_difference: 0.0,
        }
    }

    /// The number of cells received so far, which is the index of the next one.
    pub(super) fn received(&self) -> usize {
        self.cells.len()
    }

    /// Adds the next cells of the other set and recovers symbols from them.
    pub(super) fn push(&mut self, theirs: &[Cell], ours: &CodedCells) {
        let first = self.cells.len();
        for (index, cell) in (first..).zip(theirs) {
            let difference = cell.minus(ours.cell(index));
            self.weigh(index, difference.count as f64);
            self.cells.push(difference);
        }
        let end = self.cells.len() as u64;
        for known in &mut self.recovered {
            remove(&mut self.cells, known, end, |_| {});
        }
        self.peel((first..self.cells.len()).collect());
    }

    /// Whether all cells received are accounted for.
    pub(super) fn is_solved(&self) -> bool {
        !self.cells.is_empty() && self.cells.iter().all(Cell::is_zero)
    }

    /// Estimates how many hashes differ from the counts of the cells: where n is the surplus of one
    /// side, d the number of differences and p the share of hashes in a cell, its count is n p on
    /// average with a variance of d p (1 - p).
    pub(super) fn estimate(&self) -> f64 {
        if self.spread_per_difference == 0.0 {
            return self.net.abs();
        }
        (self.spread / self.spread_per_difference).max(self.net.abs())
    }

    /// The hashes recovered. `None` when one was recovered twice, which honest cells never cause.
    pub(super) fn difference(&self) -> Option<Difference> {
        let side = |is_theirs: bool| {
            let side = self.recovered.iter().filter(|known| known.is_theirs == is_theirs);
            let mut hashes: Vec<Hash> = side.map(|known| known.hash).collect();
            hashes.sort_unstable();
            hashes
        };
        let difference = Difference { theirs: side(true), ours: side(false) };
        let mut all = [difference.theirs.as_slice(), &difference.ours].concat();
        all.sort_unstable();
        all.is_sorted_by(|a, b| a < b).then_some(difference)
    }

    fn weigh(&mut self, index: usize, count: f64) {
        if index == 0 {
            self.net = count;
        }
        let share = 2.0 / (index as f64 + 2.0);
        self.spread += (count - self.net * share).powi(2);
        self.spread_per_difference += share * (1.0 - share);
    }

    fn peel(&mut self, mut doubtful: Vec<usize>) {
        let end = self.cells.len() as u64;
        while let Some(index) = doubtful.pop() {
            let Some((hash, symbol, is_theirs)) = self.cells[index].pure(&self.key) else {
                continue;
            };
            if self.recovered.len() == self.cells.len() {
                return;
            }
            let mut known = Recovered { hash, symbol, is_theirs, indices: symbol.indices() };
            remove(&mut self.cells, &mut known, end, |index| doubtful.push(index));
            self.recovered.push(known);
        }
    }
}

/// Removes a symbol from all cells below `end` that still contain it.
fn remove(cells: &mut [Cell], known: &mut Recovered, end: u64, mut touched: impl FnMut(usize)) {
    while known.indices.index() < end {
        let index = known.indices.index() as usize;
        if known.is_theirs {
            cells[index].subtract(&known.symbol);
        } else {
            cells[index].add(&known.symbol);
        }
        if matches!(cells[index].count, 1 | -1) {
            touched(index);
        }
        known.indices.advance();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::ids::GroupId;
    use crate::core::limits::SKETCH_CELLS;

    fn key() -> SketchKey {
        SketchKey::derive(&GroupId([9; 32]))
    }

    fn hash(n: u64) -> Hash {
        Hash(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn cells(hashes: impl IntoIterator<Item = Hash>) -> CodedCells {
        let mut cells = CodedCells::new(key());
        for hash in hashes {
            cells.insert(&hash);
        }
        cells
    }

    fn take(cells: &CodedCells, range: std::ops::Range<usize>) -> Vec<Cell> {
        range.map(|index| *cells.cell(index)).collect()
    }

    fn some_noise(n: usize) -> Vec<u64> {
        let mut noise = vec![0; 8 * n];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
        noise.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_difference_is_recovered_from_cells_in_any_portions(
            common in 0u64..200,
            theirs in 0u64..80,
            ours in 0u64..80,
            portion in 1usize..70,
        ) {
            let theirs_only: Vec<Hash> = (1000..1000 + theirs).map(hash).collect();
            let ours_only: Vec<Hash> = (2000..2000 + ours).map(hash).collect();
            let shared: Vec<Hash> = (0..common).map(hash).collect();
            let theirs = cells(shared.iter().chain(&theirs_only).copied());
            let ours = cells(shared.iter().chain(&ours_only).copied());
            let mut decoder = Decoder::new(key());
            while !decoder.is_solved() {
                let first = decoder.received();
                prop_assert!(first < 2000, "160 differences need far fewer cells");
                decoder.push(&take(&theirs, first..first + portion), &ours);
            }
            let mut expected = Difference { theirs: theirs_only, ours: ours_only };
            expected.theirs.sort_unstable();
            expected.ours.sort_unstable();
            prop_assert_eq!(decoder.difference(), Some(expected));
        }
    }

    #[test]
    fn the_estimate_from_cells_is_near_the_difference() {
        let theirs = cells((0..400).map(hash));
        let ours = cells((200..1000).map(hash));
        let mut decoder = Decoder::new(key());
        decoder.push(&take(&theirs, 0..500), &ours);
        let estimate = decoder.estimate();
        assert!((600.0..1600.0).contains(&estimate), "{estimate} for 1,000");
    }

    #[test]
    fn random_cells_recover_nothing() {
        let noise = some_noise(6 * SKETCH_CELLS);
        let random: Vec<Cell> = noise
            .chunks_exact(6)
            .map(|n| Cell {
                sum: [n[0], n[1], n[2], n[3]],
                check: n[4],
                count: n[5].cast_signed() % 3,
            })
            .collect();
        let mut decoder = Decoder::new(key());
        decoder.push(&random, &cells([]));
        assert!(!decoder.is_solved());
        assert_eq!(decoder.difference(), Some(Difference::default()));
    }

    #[test]
    fn forged_pure_cells_recover_no_more_than_were_sent() {
        let forged: Vec<Cell> =
            (0..SKETCH_CELLS as u64).map(|n| *cells([hash(n)]).cell(0)).collect();
        let mut decoder = Decoder::new(key());
        decoder.push(&forged, &cells([]));
        assert!(!decoder.is_solved());
        assert!(decoder.recovered.len() <= SKETCH_CELLS);
    }

    #[test]
    fn counts_at_the_ends_of_the_world_do_no_harm() {
        let extreme = |count| Cell { count, sum: [u64::MAX; 4], check: u64::MAX };
        let mut decoder = Decoder::new(key());
        decoder.push(&[extreme(i64::MIN), extreme(i64::MAX)], &cells([]));
        decoder.push(&[extreme(i64::MIN), extreme(-1), extreme(1)], &cells([hash(1)]));
        assert!(!decoder.is_solved());
        assert!(decoder.estimate() > 0.0);
    }
}
