//! How many bytes of ops the journal accepts from each device.
//!
//! A member may add devices that exist only to write. So what a device writes counts against its
//! own limit, against that of each device in the chain that added it, and against the group's:
//!
//! Q1  An author has [`AUTHOR_QUOTA_BYTES`], unless the user allows it more or less.
//! Q2  An author and all devices below it in the tree of introductions have [`SUBTREE_BYTES_MAX`]
//!     together. The founder is exempt: everybody is below it.
//! Q3  The group has [`GROUP_BYTES_MAX`].
//! Q4  Each author has [`AUTHOR_BYTES_MIN`] in any case, so that others cannot silence it.
//!
//! What the user allows one author beyond Q1 is added to Q2 and Q3.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[cfg(doc)]
use crate::core::limits::AUTHOR_BYTES_MIN;
use crate::core::limits::{AUTHOR_QUOTA_BYTES, GROUP_BYTES_MAX, SUBTREE_BYTES_MAX};

/// Who added whom, and how many bytes their ops take. Devices are database row ids here.
#[derive(Debug, Default)]
pub struct Budget {
    /// For each device the roots of all subtrees that contain it, itself included.
    above: BTreeMap<i64, Vec<i64>>,
    /// Bytes used per subtree, by its root.
    used_bytes: BTreeMap<i64, u64>,
    limit_bytes: BTreeMap<i64, u64>,
    group_used_bytes: u64,
    group_limit_bytes: u64,
}

impl Budget {
    /// The budget of a group: its founders, who added whom, and the quota and bytes of each device.
    pub fn new(
        founders: &BTreeSet<i64>,
        adds: &[(i64, i64)],
        devices: impl IntoIterator<Item = (i64, u64, u64)>,
    ) -> Self {
        let mut added: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for (by, device) in adds {
            added.entry(*by).or_default().push(*device);
        }
        // Breadth first: a device added by several counts under the shortest chain.
        let mut above: BTreeMap<i64, Vec<i64>> =
            founders.iter().map(|founder| (*founder, Vec::new())).collect();
        let mut queue: VecDeque<i64> = founders.iter().copied().collect();
        while let Some(by) = queue.pop_front() {
            for device in added.remove(&by).unwrap_or_default() {
                if above.contains_key(&device) {
                    continue;
                }
                let chain = [&above[&by][..], &[device]].concat();
                above.insert(device, chain);
                queue.push_back(device);
            }
        }
        let mut budget = Self { above, group_limit_bytes: GROUP_BYTES_MAX, ..Self::default() };
        for (device, quota_bytes, used_bytes) in devices {
            let extra = quota_bytes.saturating_sub(AUTHOR_QUOTA_BYTES);
            budget.group_limit_bytes += extra;
            for root in budget.above.get(&device).into_iter().flatten() {
                *budget.limit_bytes.entry(*root).or_insert(SUBTREE_BYTES_MAX) += extra;
            }
            budget.add(device, i64::try_from(used_bytes).unwrap_or(i64::MAX));
        }
        budget
    }

    /// Adds to the bytes that a device's ops take.
    pub fn add(&mut self, device: i64, bytes: i64) {
        for root in self.above.get(&device).into_iter().flatten() {
            let used = self.used_bytes.entry(*root).or_default();
            *used = used.saturating_add_signed(bytes);
        }
        self.group_used_bytes = self.group_used_bytes.saturating_add_signed(bytes);
    }

    /// Whether a device may write this many bytes more. See Q2 and Q3.
    pub fn has_room(&self, device: i64, bytes: u64) -> bool {
        let fits = |root: &i64| {
            let used = self.used_bytes.get(root).copied().unwrap_or(0);
            let limit = self.limit_bytes.get(root).copied().unwrap_or(SUBTREE_BYTES_MAX);
            used.saturating_add(bytes) <= limit
        };
        self.group_used_bytes.saturating_add(bytes) <= self.group_limit_bytes
            && self.above.get(&device).into_iter().flatten().all(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits::AUTHORS_MAX;

    const GIB: u64 = 1 << 30;

    /// Device 1 is the founder and added 2 and 3. Device 2 invents all from 10 on, in a chain.
    fn group(used: impl Fn(i64) -> u64) -> Budget {
        let invented = 10..AUTHORS_MAX as i64;
        let mut adds = vec![(1, 2), (1, 3), (2, 10)];
        adds.extend(invented.clone().map(|device| (device, device + 1)));
        let devices = [1, 2, 3].into_iter().chain(invented);
        let devices = devices.map(|device| (device, AUTHOR_QUOTA_BYTES, used(device)));
        Budget::new(&BTreeSet::from([1]), &adds, devices)
    }

    #[test]
    fn a_member_and_all_it_invents_share_what_a_member_has() {
        let budget = group(|device| if device < 10 { GIB } else { 9 << 20 });
        assert!(!budget.has_room(2, 1) && !budget.has_room(10, 1) && !budget.has_room(99, 1));
        assert!(budget.has_room(1, GIB) && budget.has_room(3, GIB));
    }

    #[test]
    fn space_comes_back_with_what_is_dropped_and_with_what_the_user_allows() {
        let mut budget = group(|device| if device == 2 { 2 * GIB } else { 0 });
        assert!(!budget.has_room(10, 1));
        budget.add(2, -5);
        assert!(budget.has_room(10, 5) && !budget.has_room(10, 6));
        let devices = [(2, AUTHOR_QUOTA_BYTES + 7, 2 * GIB), (10, AUTHOR_QUOTA_BYTES, 0)];
        let budget = Budget::new(&BTreeSet::from([1]), &[(1, 2), (2, 10)], devices);
        assert!(budget.has_room(10, 7) && !budget.has_room(10, 8));
    }

    #[test]
    fn the_group_has_a_total() {
        let adds: Vec<(i64, i64)> = (2..20).map(|device| (1, device)).collect();
        let devices = (2..20).map(|device| (device, AUTHOR_QUOTA_BYTES, GROUP_BYTES_MAX / 18));
        let budget = Budget::new(&BTreeSet::from([1]), &adds, devices);
        assert!(!budget.has_room(2, 1 << 20) && !budget.has_room(1, 1 << 20));
    }
}
