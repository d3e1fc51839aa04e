//! A version of a path, and the order of two versions by their vectors.
//!
//! V1  The counter of a device in a version that it writes is the time of the op that carries the
//!     version. A device's next op is later than every op that it wrote or admitted, so a counter is
//!     never used twice, whatever a device forgot.
//! V2  No counter is later than the op that carries the version: what is above counts as the op's
//!     time ([`Vector::clamped`]). So no member can use up the counters of another device.

use std::collections::BTreeMap;

use crate::core::ids::{Hash, NodeId};
use crate::core::journal::stamp::Hlc;

use super::path::FolderPath;

/// The most devices in a vector: as many as write in a group at a time. Beyond, the device with the
/// oldest change is left out: versions may then count as concurrent that are not, and both stay.
pub const VECTOR_DEVICES_MAX: usize = 128;

/// A device in a version vector: the first 8 bytes of its node ID, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId(pub u64);

impl From<&NodeId> for ShortId {
    fn from(node_id: &NodeId) -> Self {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&node_id.0[..8]);
        Self(u64::from_be_bytes(bytes))
    }
}

/// For each device the time ([`Hlc`]) of its last change that is contained in a version. A device
/// that is absent counts as 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Vector(pub BTreeMap<ShortId, u64>);

/// How two versions of a path stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The vectors are equal.
    Same,
    /// The first contains the second.
    Newer,
    /// The second contains the first.
    Older,
    /// Neither contains the other.
    Concurrent,
}

impl Vector {
    /// The relation of `self` to `other`.
    pub fn relation(&self, other: &Self) -> Relation {
        match (self.contains(other), other.contains(self)) {
            (true, true) => Relation::Same,
            (true, false) => Relation::Newer,
            (false, true) => Relation::Older,
            (false, false) => Relation::Concurrent,
        }
    }

    /// Whether no entry of `other` is above the entry here.
    pub fn contains(&self, other: &Self) -> bool {
        other.0.iter().all(|(device, n)| self.0.get(device).is_some_and(|own| own >= n))
    }

    /// The least vector that contains both.
    pub fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for (device, n) in &other.0 {
            let own = joined.0.entry(*device).or_default();
            *own = (*own).max(*n);
        }
        joined.trimmed()
    }

    /// This vector with a change of `device` at `hlc`.
    pub fn grown(&self, device: ShortId, hlc: Hlc) -> Self {
        let mut grown = self.clone();
        grown.0.insert(device, hlc.0);
        grown.trimmed()
    }

    /// This vector as carried by an op of `hlc`. See V2.
    pub fn clamped(mut self, hlc: Hlc) -> Self {
        self.0.values_mut().for_each(|n| *n = (*n).min(hlc.0));
        self
    }

    /// The device of the newest change, and the time of that change.
    pub fn newest(&self) -> Option<(ShortId, Hlc)> {
        let newest = self.0.iter().max_by_key(|(device, n)| (**n, **device))?;
        Some((*newest.0, Hlc(*newest.1)))
    }

    /// Without the oldest changes beyond [`VECTOR_DEVICES_MAX`].
    fn trimmed(mut self) -> Self {
        while self.0.len() > VECTOR_DEVICES_MAX {
            let oldest = self.0.iter().min_by_key(|(device, n)| (**n, **device));
            let Some(device) = oldest.map(|(device, _)| *device) else { break };
            self.0.remove(&device);
        }
        self
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Nothing: the path was removed.
    Absent,
    /// A regular file.
    File {
        /// The asset with its bytes.
        hash: Hash,
        /// The file's size.
        size_bytes: u64,
        /// When it was last modified, milliseconds since the Unix epoch.
        modified_ms: i64,
        /// Whether the file's owner may execute it.
        is_executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// The link's target as text of the link; never followed.
        target: Vec<u8>,
    },
    /// A directory that was empty. Others exist by what is in them.
    Directory,
    /// Something of a later version of this program, as it is encoded. It is kept and passed on, and
    /// never brought to a disk.
    Later(Vec<u8>),
}

impl Content {
    /// Whether both are the same to people: times of modification do not count.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::File { hash, is_executable, .. },
                Self::File { hash: other, is_executable: executable, .. },
            ) => hash == other && is_executable == executable,
            _ => self == other,
        }
    }
}

/// A version of a path: the value of one cell of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The path.
    pub path: FolderPath,
    /// The file, directory or link at the path, or that there is none.
    pub content: Content,
    /// Which earlier versions this one was made from: they no longer conflict with it.
    pub vector: Vector,
    /// The name of the device that wrote it, at that time: for the names of conflict copies.
    pub device_name: String,
}

impl Version {
    /// Whether both are one version. Names of devices do not count.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.path, &self.content, &self.vector) == (&other.path, &other.content, &other.vector)
    }

    /// Whether the path is removed.
    pub fn is_absent(&self) -> bool {
        self.content == Content::Absent
    }

    /// Whether this is what `device` wrote when it changed the path to `content`, knowing `known`.
    pub fn is_change_of(&self, device: ShortId, content: &Content, known: &Vector) -> bool {
        let counter = |vector: &Vector| vector.0.get(&device).copied();
        self.content == *content
            && self.vector.contains(known)
            && counter(&self.vector) > counter(known)
    }

    /// When it was written, milliseconds since the Unix epoch: the time of the newest change in it.
    /// A version that resolves a conflict is as old as the newest version in it.
    pub fn written_at_ms(&self) -> u64 {
        self.vector.newest().map_or(0, |(_, hlc)| hlc.ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(entries: &[(u64, u64)]) -> Vector {
        Vector(entries.iter().map(|(device, n)| (ShortId(*device), *n)).collect())
    }

    #[test]
    fn a_vector_is_newer_only_when_it_contains_every_change_of_the_other() {
        let (a, b) = (vector(&[(1, 5)]), vector(&[(1, 5), (2, 1)]));
        assert_eq!(a.relation(&b), Relation::Older);
        assert_eq!(b.relation(&a), Relation::Newer);
        assert_eq!(a.relation(&a.clone()), Relation::Same);
        assert_eq!(vector(&[(1, 6)]).relation(&b), Relation::Concurrent);
        assert_eq!(Vector::default().relation(&a), Relation::Older);
        assert_eq!(vector(&[(1, 6)]).joined(&b), vector(&[(1, 6), (2, 1)]));
    }

    #[test]
    fn a_vector_beyond_its_bound_leaves_out_the_oldest_change() {
        let full: Vec<_> = (0..VECTOR_DEVICES_MAX as u64).map(|n| (n, 100 + n)).collect();
        let grown = vector(&full).grown(ShortId(7777), Hlc(9999));
        assert_eq!(grown.0.len(), VECTOR_DEVICES_MAX);
        assert!(!grown.0.contains_key(&ShortId(0)));
        assert_eq!(grown.newest(), Some((ShortId(7777), Hlc(9999))));
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn the_change_of_a_device_is_told_from_what_was_there_and_from_changes_of_others() {
        let (content, other) = (Content::Directory, Content::Absent);
        let version = |content: &Content, entries: &[(u64, u64)]| Version {
            path: FolderPath::from_bytes(b"a").unwrap(),
            content: content.clone(),
            vector: vector(entries),
            device_name: String::new(),
        };
        let known = vector(&[(1, 5), (2, 7)]);
        let is_change = |version: &Version| version.is_change_of(ShortId(1), &content, &known);
        assert!(is_change(&version(&content, &[(1, 9), (2, 7)])));
        assert!(is_change(&version(&content, &[(1, 9), (2, 8)])), "with a later change in it");
        assert!(!is_change(&version(&content, &[(1, 5), (2, 7)])), "it was there");
        assert!(!is_change(&version(&content, &[(1, 5), (2, 9)])), "another device's");
        assert!(!is_change(&version(&content, &[(1, 9)])), "it does not know the same");
        assert!(!is_change(&version(&other, &[(1, 9), (2, 7)])), "another content");
    }

    #[test]
    fn a_counter_of_the_far_future_counts_as_the_time_of_its_op() {
        let forged = vector(&[(1, 1 << 63), (2, 3)]);
        assert_eq!(forged.clamped(Hlc(50)), vector(&[(1, 50), (2, 3)]));
    }
}
