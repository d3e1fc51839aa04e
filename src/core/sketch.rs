//! A sketch: a set of hashes folded into constant size, from which two devices find what differs.
//!
//! A [`Sketch`] is four linear sums over the set, so that the difference of two sketches is the
//! sketch of what the two sets do not share:
//! - *coded cells*, the first [`SKETCH_CELLS`] of a rateless IBLT (Yang, Gilad, Alizadeh,
//!   "Practical Rateless Set Reconciliation", SIGCOMM 2024): their difference decodes to the
//!   hashes that differ ([`crate::core::reconcile`]);
//! - an *LtHash* (Lewi et al., "Securing Update Propagation with Homomorphic Hashing", 2019), from
//!   which the fingerprint of the whole set is made: no way is known to make two sets with the same
//!   one;
//! - 128 signed *counters* (an AMS sketch): the mean of their squared differences estimates how
//!   many hashes differ;
//! - the *count*.
//!
//! I1  A sketch depends only on its key and its set, not on order or history.
//! I2  A clone is a snapshot: chunks of cells are copied on write.
//! I3  Inserting a hash that is in the set already corrupts the sketch. Callers must know.

use std::fmt;
use std::sync::Arc;

use siphasher::sip128::SipHasher24;
use thiserror::Error;

use crate::core::ids::{GroupId, Hash};
use crate::core::limits::SKETCH_CELLS;
use crate::core::lt_hash::LtHash;

/// The number of signed counters. The estimate's standard error is 12.5 % with this many.
pub const COUNTERS: usize = 128;

/// The number of cells copied together when a shared chunk is written: 12 KB.
const CHUNK_CELLS: usize = 256;
const CHUNKS: usize = SKETCH_CELLS / CHUNK_CELLS;

/// Everything that a device keeps to compare its set with others: about 0.8 MB, whatever the count.
///
/// `clone` makes a snapshot and is cheap; the first writes after it copy the chunks that they
/// touch.
#[derive(Clone, PartialEq, Eq)]
pub struct Sketch {
    cells: CodedCells,
    lt_hash: LtHash,
    counters: Box<[i64; COUNTERS]>,
}

impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sketch").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Sketch {
    /// The sketch of the empty set.
    pub fn new(key: SketchKey) -> Self {
        Self {
            cells: CodedCells::new(key),
            lt_hash: LtHash::default(),
            counters: Box::new([0; COUNTERS]),
        }
    }

    /// Adds a hash that is not in the set.
    pub fn insert(&mut self, hash: &Hash) {
        let symbol = self.cells.insert(hash);
        self.lt_hash.add(hash);
        symbol.count(&mut self.counters);
    }

    /// The number of hashes in the set.
    pub fn count(&self) -> u64 {
        self.lt_hash.count()
    }

    /// The fingerprint of the set: equal for equal sets; nobody can find two different sets with
    /// the same one. Each call computes one BLAKE3 of 2 KB.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.lt_hash.fingerprint()
    }

    /// The coded cells.
    pub fn cells(&self) -> &CodedCells {
        &self.cells
    }

    /// The whole-set hash.
    pub fn lt_hash(&self) -> &LtHash {
        &self.lt_hash
    }

    /// The counters as they are announced: clamped to 32 bits, which honest sets stay far below.
    pub fn counters(&self) -> Box<[i32; COUNTERS]> {
        let cut = |counter: i64| counter.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        Box::new(self.counters.map(cut))
    }

    /// The sketch as bytes with a checksum, for the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FILE_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FILE_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.cells.key.0);
        bytes.extend_from_slice(&self.lt_hash.count.to_le_bytes());
        bytes.extend(self.counters.iter().flat_map(|counter| counter.to_le_bytes()));
        bytes.extend(self.lt_hash.lanes.iter().flat_map(|lane| lane.to_le_bytes()));
        for cell in self.cells.chunks.iter().flat_map(|chunk| chunk.iter()) {
            bytes.extend(cell.sum.iter().flat_map(|lane| lane.to_le_bytes()));
            bytes.extend_from_slice(&cell.check.to_le_bytes());
            bytes.extend_from_slice(&cell.count.to_le_bytes());
        }
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads what [`Sketch::to_bytes`] wrote, if it was made under `key`.
    ///
    /// # Errors
    /// [`SketchBytesError`]; the remedy is always to rebuild the sketch from the set.
    pub fn from_bytes(key: SketchKey, bytes: &[u8]) -> Result<Self, SketchBytesError> {
        let mut rest = Reader(bytes);
        if rest.take() != Some(*MAGIC) {
            return Err(SketchBytesError::NotASketch);
        }
        let version = rest.take().map(u32::from_le_bytes).unwrap_or_default();
        if version != FILE_VERSION {
            return Err(SketchBytesError::Version { got: version });
        }
        if bytes.len() != FILE_BYTES {
            return Err(SketchBytesError::Length { got: bytes.len() });
        }
        let (content, checksum) = bytes.split_at(FILE_BYTES - CHECKSUM_BYTES);
        if blake3::hash(content).as_bytes() != checksum {
            return Err(SketchBytesError::Checksum);
        }
        if rest.take() != Some(key.0) {
            return Err(SketchBytesError::Key);
        }
        let mut sketch = Self::new(key);
        sketch.lt_hash.count = rest.u64();
        for counter in sketch.counters.iter_mut() {
            *counter = rest.u64().cast_signed();
        }
        for lane in sketch.lt_hash.lanes.iter_mut() {
            *lane = rest.take().map(u16::from_le_bytes).unwrap_or_default();
        }
        for chunk in &mut sketch.cells.chunks {
            for cell in Arc::make_mut(chunk) {
                cell.sum = std::array::from_fn(|_| rest.u64());
                cell.check = rest.u64();
                cell.count = rest.u64().cast_signed();
            }
        }
        Ok(sketch)
    }
}

const MAGIC: &[u8; 8] = b"cansketc";
const FILE_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;
const FILE_BYTES: usize =
    8 + 4 + 16 + 8 * COUNTERS + LtHash::BYTES + 48 * SKETCH_CELLS + CHECKSUM_BYTES;

/// Why bytes cannot be used as a sketch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SketchBytesError {
    /// The bytes are something else, or cut off at the start.
    #[error("these bytes are not a sketch")]
    NotASketch,
    /// The format is of another version of the program.
    #[error("a sketch of version {got}, this program writes version {FILE_VERSION}")]
    Version {
        /// The version found.
        got: u32,
    },
    /// The bytes are cut off or too many.
    #[error("a sketch of {got} bytes, expected {FILE_BYTES}")]
    Length {
        /// The number of bytes found.
        got: usize,
    },
    /// The checksum does not match.
    #[error("the sketch is damaged: its checksum does not match")]
    Checksum,
    /// The sketch belongs to another group.
    #[error("the sketch was made under another group's key")]
    Key,
}

/// Reads fixed-size numbers from the front of bytes whose length was checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn u64(&mut self) -> u64 {
        self.take().map(u64::from_le_bytes).unwrap_or_default()
    }
}

/// The key that maps hashes to cells. The devices that compare share it. Authors of content must
/// not know it, because they could aim at cells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SketchKey([u8; 16]);

impl fmt::Debug for SketchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is not printed: with it an attacker could aim at cells.
        f.write_str("SketchKey(..)")
    }
}

impl SketchKey {
    /// The key under which every device of a group keeps its sketch.
    pub fn derive(group: &GroupId) -> Self {
        Self::cut(blake3::derive_key("can-sync sketch key v1", group.as_bytes()))
    }

    /// A key for one reconcile that neither side could foresee.
    pub fn of_nonces(dialer: &[u8; 16], acceptor: &[u8; 16]) -> Self {
        Self::cut(*blake3::Hasher::new().update(dialer).update(acceptor).finalize().as_bytes())
    }

    fn cut(bytes: [u8; 32]) -> Self {
        Self(std::array::from_fn(|i| bytes[i]))
    }

    /// The symbol of `hash` under this key: what it adds to cells, and to which.
    pub fn symbol(&self, hash: &Hash) -> Symbol {
        let (seed, check) = SipHasher24::new_with_key(&self.0).hash(hash.as_bytes()).as_u64();
        Symbol { lanes: lanes_of(hash), seed, check }
    }
}

/// What a hash adds to cells, and to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol {
    lanes: [u64; 4],
    seed: u64,
    check: u64,
}

impl Symbol {
    /// The indices of the cells that contain this symbol, ascending without end.
    pub fn indices(&self) -> Indices {
        Indices { state: self.seed, index: 0 }
    }

    /// Adds one to some counters and subtracts one from the others. The bits that choose are
    /// independent of the cells.
    fn count(&self, counters: &mut [i64; COUNTERS]) {
        let words = [mix(self.seed ^ SIGN_SALT), mix(self.check ^ SIGN_SALT)];
        for (word, counters) in words.into_iter().zip(counters.chunks_exact_mut(64)) {
            for (i, counter) in counters.iter_mut().enumerate() {
                // 1 for a set bit and -1 for a clear one, without a branch.
                let unit = 2 * (word >> i & 1).cast_signed() - 1;
                *counter = counter.wrapping_add(unit);
            }
        }
    }
}

/// Separates the bits for counters from the seed of the cells: "counters" in ASCII.
const SIGN_SALT: u64 = u64::from_be_bytes(*b"counters");

/// The ascending cell indices of one symbol; cell `i` is among them with probability
/// `1 / (1 + i / 2)` (the paper's mapping).
#[derive(Debug, Clone, Copy)]
pub struct Indices {
    state: u64,
    index: u64,
}

impl Indices {
    /// The current index; the first is 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Steps to the next index, saturating at the maximum.
    pub fn advance(&mut self) {
        self.state = self.state.wrapping_add(SPLITMIX_STEP);
        let uniform = mix(self.state) as f64 + 1.0;
        let jump = (self.index as f64 + 1.5) * (4_294_967_296.0 / uniform.sqrt() - 1.0);
        self.index = self.index.saturating_add((jump.ceil() as u64).max(1));
    }
}

const SPLITMIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood, 2014).
fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn lanes_of(hash: &Hash) -> [u64; 4] {
    std::array::from_fn(|i| {
        u64::from_le_bytes(std::array::from_fn(|byte| hash.as_bytes()[8 * i + byte]))
    })
}

/// A cell: the sum of the symbols that map to one index. All arithmetic wraps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cell {
    /// Sum of the hashes, as little-endian lanes.
    pub sum: [u64; 4],
    /// Sum of the checks.
    pub check: u64,
    /// The number of symbols.
    pub count: i64,
}

impl Cell {
    /// Adds one symbol.
    pub fn add(&mut self, symbol: &Symbol) {
        for (sum, lane) in self.sum.iter_mut().zip(symbol.lanes) {
            *sum = sum.wrapping_add(lane);
        }
        self.check = self.check.wrapping_add(symbol.check);
        self.count = self.count.wrapping_add(1);
    }

    /// Subtracts one symbol.
    pub fn subtract(&mut self, symbol: &Symbol) {
        for (sum, lane) in self.sum.iter_mut().zip(symbol.lanes) {
            *sum = sum.wrapping_sub(lane);
        }
        self.check = self.check.wrapping_sub(symbol.check);
        self.count = self.count.wrapping_sub(1);
    }

    /// This cell minus another one.
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            sum: std::array::from_fn(|i| self.sum[i].wrapping_sub(other.sum[i])),
            check: self.check.wrapping_sub(other.check),
            count: self.count.wrapping_sub(other.count),
        }
    }

    /// This cell plus another one.
    pub fn plus(&self, other: &Self) -> Self {
        self.minus(&Self::default().minus(other))
    }

    /// Whether this is the sum of nothing.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The symbol in a cell that holds exactly one: added (true) or subtracted (false). `None` when
    /// the cell holds none or several.
    pub(crate) fn pure(&self, key: &SketchKey) -> Option<(Hash, Symbol, bool)> {
        let (cell, added) = match self.count {
            1 => (*self, true),
            -1 => (Self::default().minus(self), false),
            _ => return None,
        };
        let mut bytes = [0; Hash::LEN];
        for (bytes, lane) in bytes.chunks_exact_mut(8).zip(cell.sum) {
            bytes.copy_from_slice(&lane.to_le_bytes());
        }
        let hash = Hash(bytes);
        let symbol = key.symbol(&hash);
        (symbol.check == cell.check).then_some((hash, symbol, added))
    }
}

/// The first [`SKETCH_CELLS`] coded cells of a set, or of one shard of it.
#[derive(Clone, PartialEq, Eq)]
pub struct CodedCells {
    key: SketchKey,
    chunks: Vec<Arc<[Cell; CHUNK_CELLS]>>,
}

impl fmt::Debug for CodedCells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodedCells").finish_non_exhaustive()
    }
}

impl CodedCells {
    /// The cells of the empty set.
    pub fn new(key: SketchKey) -> Self {
        let zeros = Arc::new([Cell::default(); CHUNK_CELLS]);
        Self { key, chunks: (0..CHUNKS).map(|_| Arc::clone(&zeros)).collect() }
    }

    /// The key of these cells.
    pub fn key(&self) -> &SketchKey {
        &self.key
    }

    /// Adds a hash and returns its symbol.
    pub fn insert(&mut self, hash: &Hash) -> Symbol {
        let symbol = self.key.symbol(hash);
        let mut indices = symbol.indices();
        while indices.index() < SKETCH_CELLS as u64 {
            let index = indices.index() as usize;
            let chunk = Arc::make_mut(&mut self.chunks[index / CHUNK_CELLS]);
            chunk[index % CHUNK_CELLS].add(&symbol);
            indices.advance();
        }
        symbol
    }

    /// The cell at `index`, which is below [`SKETCH_CELLS`].
    pub fn cell(&self, index: usize) -> &Cell {
        &self.chunks[index / CHUNK_CELLS][index % CHUNK_CELLS]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SketchKey = SketchKey(*b"0123456789abcdef");

    fn hash(n: u64) -> Hash {
        Hash(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn sketch(numbers: impl IntoIterator<Item = u64>) -> Sketch {
        let mut sketch = Sketch::new(KEY);
        numbers.into_iter().for_each(|n| sketch.insert(&hash(n)));
        sketch
    }

    fn hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(bytes)
    }

    /// Computed without this program: the first ten indices and the 64th of eight seeds.
    const INDICES: [(u64, [u64; 10], u64); 8] = [
        (0, [0, 1, 3, 27, 28, 89, 157, 379, 432, 874], 231_634_104_220_137),
        (1, [0, 1, 2, 3, 6, 10, 12, 13, 19, 37], 2_040_740_293_636),
        (2, [0, 1, 2, 4, 5, 11, 20, 24, 29, 60], 90_416_499_081_610),
        (0xff, [0, 2, 3, 4, 6, 31, 61, 71, 163, 178], 32_726_331_877_611),
        (0xdead_beef, [0, 2, 3, 48, 72, 151, 186, 315, 377, 1862], 148_254_464_037_779),
        (
            0x0123_4567_89ab_cdef,
            [0, 4, 5, 14, 18, 278, 981, 1155, 1579, 1600],
            6_170_527_407_828_501,
        ),
        (1 << 63, [0, 2, 3, 6, 12, 60, 111, 155, 252, 300], 1_815_846_284_514),
        (u64::MAX, [0, 1, 2, 6, 10, 13, 15, 16, 34, 39], 8_056_122_370_988_313),
    ];

    #[test]
    fn the_mapping_gives_the_pinned_indices() {
        for (seed, first, last) in INDICES {
            let mut indices = Indices { state: seed, index: 0 };
            let mut seen = Vec::new();
            for _ in 0..64 {
                seen.push(indices.index());
                indices.advance();
            }
            assert_eq!(seen[..10], first, "seed {seed:#x}");
            assert_eq!(seen[63], last, "seed {seed:#x}");
        }
    }

    #[test]
    fn the_keyed_hash_gives_its_authors_test_vector() {
        let key: [u8; 16] = std::array::from_fn(|i| i as u8);
        let digest = SipHasher24::new_with_key(&key).hash(b"").as_bytes();
        assert_eq!(hex(&digest), "a3817f04ba25a8e66df67214c7550293");
    }

    #[test]
    fn fingerprints_are_the_pinned_ones() {
        let expected = [
            "2b4fe902413913259250e4d8e87c1c847b8b5cd481ffa30e2321ece8b819e4b7",
            "f789f5004a1e5028c8fcb71f72d0437bc017d9c81308e268cce1d1825c13b229",
            "4cd8845e213f9fd323046adc791a423c694b1420e79a9317d397903f587f7445",
        ];
        for (numbers, expected) in [0..0, 0..1, 0..1000].into_iter().zip(expected) {
            assert_eq!(hex(&sketch(numbers).fingerprint()), expected);
        }
    }

    #[test]
    fn cells_counters_and_keys_are_the_pinned_ones() {
        let sketch = sketch(0..1000);
        let mut bytes = sketch.to_bytes();
        let checksum = bytes.split_off(FILE_BYTES - CHECKSUM_BYTES);
        assert_eq!(
            hex(&checksum),
            "88c4b84c51c9be9cfbc2eb9eb3ee08328152cb6804d87e78b33405efe7b0d5eb"
        );
        assert_eq!(sketch.cells().cell(0).count, 1000);
        assert_eq!(
            hex(&SketchKey::derive(&GroupId([7; 32])).0),
            "d5d081a1dfb4c708150e1900f4406008"
        );
        assert_eq!(
            hex(&SketchKey::of_nonces(&[1; 16], &[2; 16]).0),
            "44b1e094fed26cba4ec6e3ff75664199"
        );
    }

    #[test]
    fn a_snapshot_does_not_follow_its_sketch() {
        let mut sketch = sketch(0..100);
        let snapshot = sketch.clone();
        let before = snapshot.to_bytes();
        sketch.insert(&hash(1000));
        assert_eq!(snapshot.to_bytes(), before);
        assert_ne!(sketch.to_bytes(), before);
    }

    #[test]
    fn saved_bytes_are_taken_back_only_whole_undamaged_and_under_their_key() {
        let sketch = sketch(0..100);
        let bytes = sketch.to_bytes();
        assert!(Sketch::from_bytes(KEY, &bytes).unwrap() == sketch);

        let refused = |bytes: &[u8]| Sketch::from_bytes(KEY, bytes).err().unwrap();
        assert_eq!(refused(&[]), SketchBytesError::NotASketch);
        assert_eq!(refused(&bytes[..4]), SketchBytesError::NotASketch);
        assert_eq!(refused(&bytes[..500]), SketchBytesError::Length { got: 500 });
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(refused(&longer), SketchBytesError::Length { got: FILE_BYTES + 1 });
        let mut other_version = bytes.clone();
        other_version[8] = 2;
        assert_eq!(refused(&other_version), SketchBytesError::Version { got: 2 });
        for at in [12, 30, 2000, 100_000, FILE_BYTES - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(refused(&damaged), SketchBytesError::Checksum, "byte {at}");
        }
        let other_key = SketchKey(*b"fedcba9876543210");
        let refused = Sketch::from_bytes(other_key, &bytes).err();
        assert_eq!(refused, Some(SketchBytesError::Key));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_sketch_depends_on_its_set_alone(
            mut numbers in proptest::collection::btree_set(0u64..1000, 0..60)
                .prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let shuffled = sketch(numbers.iter().copied());
            numbers.sort_unstable();
            prop_assert!(shuffled == sketch(numbers.iter().copied()));
            prop_assert_eq!(shuffled.count(), numbers.len() as u64);
        }
    }
}
