//! The digest of a set that grows and shrinks one element at a time, over [`LtHash`].
//!
//! L1  The order of adding and removing does not matter, so devices with the same set have the same
//!     digest.
//! L2  Nobody can find two sets with one digest, although members choose what is in them. A XOR of
//!     hashes does not give that: among a few hundred hashes some cancel each other out, and finding
//!     them is linear algebra.

use crate::core::ids::Hash;
use crate::core::lt_hash::LtHash;

/// The hash of an element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element(pub [u8; 32]);

/// The digest of a set: all zero for the empty set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SetDigest(pub [u8; 32]);

/// The running sum over a set; the empty set takes no memory.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SetHash(Option<LtHash>);

impl SetDigest {
    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 32]
    }
}

impl SetHash {
    /// Adds an element.
    pub fn add(&mut self, element: &Element) {
        self.0.get_or_insert_default().add(&Hash(element.0));
        self.settle();
    }

    /// Removes an element that was added.
    pub fn remove(&mut self, element: &Element) {
        self.0.get_or_insert_default().subtract(&Hash(element.0));
        self.settle();
    }

    /// Adds or removes an element.
    pub fn toggle(&mut self, element: &Element, is_in: bool) {
        if is_in { self.add(element) } else { self.remove(element) }
    }

    /// The digest of the set.
    pub fn digest(&self) -> SetDigest {
        self.0.as_ref().map_or_else(SetDigest::default, |sum| SetDigest(sum.fingerprint()))
    }

    /// The sum as databases store it: no bytes for the empty set.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.as_ref().map_or_else(Vec::new, |sum| sum.to_bytes().to_vec())
    }

    /// Reads what [`Self::to_bytes`] wrote. `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        bytes.try_into().ok().map(|bytes| Self(Some(LtHash::from_bytes(bytes))))
    }

    fn settle(&mut self) {
        if self.0.as_ref().is_some_and(|sum| *sum == LtHash::default()) {
            self.0 = None;
        }
    }
}

impl std::fmt::Debug for SetHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.0.as_ref().map_or(0, LtHash::count);
        write!(f, "SetHash({count})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    fn element(n: u64) -> Element {
        Element(*blake3::hash(&n.to_be_bytes()).as_bytes())
    }

    fn sum(elements: impl IntoIterator<Item = u64>) -> SetHash {
        let mut sum = SetHash::default();
        elements.into_iter().for_each(|n| sum.add(&element(n)));
        sum
    }

    #[test]
    fn a_set_has_one_digest_whatever_came_and_went_in_whatever_order() {
        let mut other = sum([9, 3, 1, 7, 2]);
        other.remove(&element(9));
        other.toggle(&element(7), false);
        assert_eq!(other, sum([1, 2, 3]));
        assert_eq!(other.digest(), sum([3, 2, 1]).digest());
        assert_ne!(other.digest(), sum([1, 2]).digest());
        assert_ne!(other.digest(), sum([1, 2, 3, 3]).digest());
        for n in 1..=3 {
            other.remove(&element(n));
        }
        assert!(other.digest().is_empty() && other.to_bytes().is_empty());
    }

    #[test]
    fn a_sum_comes_back_from_its_bytes_and_from_no_others() {
        for sum in [sum([]), sum([1]), sum(0..100)] {
            assert_eq!(SetHash::from_bytes(&sum.to_bytes()), Some(sum));
        }
        for len in [1, 16, LtHash::BYTES - 1, LtHash::BYTES + 1] {
            assert_eq!(SetHash::from_bytes(&vec![1; len]), None);
        }
    }

    /// The attack on the XOR sum that this sum replaced: among more vectors than bits some subset
    /// has the XOR zero, and elimination finds it.
    #[test]
    fn elements_whose_hashes_cancel_out_do_not_cancel_out_here() {
        const BITS: u64 = 128;
        let mut rows: Vec<(u128, BTreeSet<u64>)> = Vec::new();
        let mut cancelling = BTreeSet::new();
        for n in 0..=BITS {
            let head = element(n).0[..16].try_into().unwrap();
            let mut row = (u128::from_be_bytes(head), BTreeSet::from([n]));
            for (pivot, members) in &rows {
                if row.0 ^ pivot < row.0 {
                    row.0 ^= pivot;
                    row.1 = row.1.symmetric_difference(members).copied().collect();
                }
            }
            if row.0 == 0 {
                cancelling = row.1;
                break;
            }
            rows.push(row);
            rows.sort_by_key(|row| std::cmp::Reverse(row.0));
        }
        let heads = cancelling.iter().fold([0; 16], |mut xor, n| {
            xor.iter_mut().zip(element(*n).0).for_each(|(a, b)| *a ^= b);
            xor
        });
        assert!(!cancelling.is_empty() && heads == [0; 16], "found what cancels out under XOR");
        assert!(!sum(cancelling).digest().is_empty());
    }
}
