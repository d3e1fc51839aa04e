//! A hash of a set to which elements can be added and from which they can be subtracted in any order:
//! LtHash (Lewi et al., "Securing Update Propagation with Homomorphic Hashing", 2019).

use crate::core::ids::Hash;

pub(super) const LANES: usize = 1024;

/// A hash of a set to which elements can be added and subtracted: LtHash with 1,024 lanes of 16
/// bits.
#[derive(Clone, PartialEq, Eq)]
pub struct LtHash {
    pub(super) lanes: Box<[u16; LANES]>,
    pub(super) count: u64,
}

impl Default for LtHash {
    fn default() -> Self {
        Self { lanes: Box::new([0; LANES]), count: 0 }
    }
}

impl LtHash {
    /// The length of [`Self::to_bytes`].
    pub const BYTES: usize = 2 * LANES + 8;

    /// Adds a hash.
    pub fn add(&mut self, hash: &Hash) {
        self.apply(hash, u16::wrapping_add);
        self.count = self.count.wrapping_add(1);
    }

    /// Subtracts a hash.
    pub fn subtract(&mut self, hash: &Hash) {
        self.apply(hash, u16::wrapping_sub);
        self.count = self.count.wrapping_sub(1);
    }

    /// The number of hashes added minus those subtracted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The BLAKE3 hash of lanes and count.
    pub fn fingerprint(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }

    /// Lanes and count, little-endian.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (bytes, lane) in bytes.chunks_exact_mut(2).zip(self.lanes.iter()) {
            bytes.copy_from_slice(&lane.to_le_bytes());
        }
        bytes[2 * LANES..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut hash = Self::default();
        let (numbers, _) = bytes.as_chunks::<2>();
        for (lane, bytes) in hash.lanes.iter_mut().zip(numbers) {
            *lane = u16::from_le_bytes(*bytes);
        }
        let mut count = [0; 8];
        count.copy_from_slice(&bytes[2 * LANES..]);
        hash.count = u64::from_le_bytes(count);
        hash
    }

    fn apply(&mut self, hash: &Hash, change: impl Fn(u16, u16) -> u16) {
        let mut expanded = [0; 2 * LANES];
        blake3::Hasher::new().update(hash.as_bytes()).finalize_xof().fill(&mut expanded);
        for (lane, bytes) in self.lanes.iter_mut().zip(expanded.chunks_exact(2)) {
            *lane = change(*lane, u16::from_le_bytes([bytes[0], bytes[1]]));
        }
    }
}
