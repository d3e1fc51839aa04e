//! Sets of bytes of one asset, as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch: inserting merges them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The end of each range by its start.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((&last, &last_end)) = self.ends.range(..=end).next_back()
            && last_end >= start
        {
            self.ends.remove(&last);
            (start, end) = (start.min(last), end.max(last_end));
        }
        self.ends.insert(start, end);
    }

    /// Removes a range.
    pub fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&last, &last_end)) = self.ends.range(..range.end).next_back()
            && last_end > range.start
        {
            self.ends.remove(&last);
            if last < range.start {
                self.ends.insert(last, range.start);
            }
            if last_end > range.end {
                self.ends.insert(range.end, last_end);
            }
        }
    }

    /// Whether every byte of `range` is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        let before = self.ends.range(..=range.start).next_back();
        range.is_empty() || before.is_some_and(|(_, end)| *end >= range.end)
    }

    /// The range with the lowest bytes.
    pub fn first(&self) -> Option<Range<u64>> {
        self.iter().next()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ends.iter().map(|(start, end)| *start..*end)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The number of bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// The bytes of `0..size_bytes` that are not in the set.
    pub fn gaps(&self, size_bytes: u64) -> Self {
        let mut gaps = Self::default();
        gaps.insert(0..size_bytes);
        self.iter().for_each(|range| gaps.remove(&range));
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_the_set_of_their_bytes(
            steps in prop::collection::vec((any::<bool>(), 0..40u64, 0..12u64), 0..30),
            (at, length) in (0..40u64, 0..12u64),
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 64];
            for (is_in, start, length) in steps {
                let range = start..start + length;
                if is_in { ranges.insert(range.clone()) } else { ranges.remove(&range) }
                range.for_each(|byte| bytes[byte as usize] = is_in);
            }
            let count = bytes.iter().filter(|is_in| **is_in).count() as u64;
            prop_assert_eq!(ranges.bytes(), count);
            prop_assert_eq!(ranges.is_empty(), count == 0);
            prop_assert!(ranges.iter().flatten().all(|byte| bytes[byte as usize]));
            let ends: Vec<_> = ranges.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start), "{ends:?}");
            prop_assert!(ends.iter().all(|range| !range.is_empty()));
            let asked = at..at + length;
            let all = asked.clone().all(|byte| bytes[byte as usize]);
            prop_assert_eq!(ranges.contains(&asked), all);
            let gaps = ranges.gaps(64);
            prop_assert_eq!(gaps.bytes(), 64 - count);
            prop_assert!(gaps.iter().flatten().all(|byte| !bytes[byte as usize]));
        }
    }
}
