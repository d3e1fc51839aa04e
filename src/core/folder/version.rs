//! A version of a path, and the order of two versions by their vectors.

use std::collections::BTreeMap;

use crate::core::ids::{Hash, NodeId};

use super::path::FolderPath;

/// The most devices in a vector: as many as a group ever admits.
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

/// For each device the number of its last change that is contained in a version. A device that is
/// absent counts as 0.
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
    /// How `self` stands to `other`.
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
        joined
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
        /// Its size.
        size_bytes: u64,
        /// When it was last modified, milliseconds since the Unix epoch.
        modified_ms: i64,
        /// Its owner may execute it.
        is_executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Its target as text of the link; never followed.
        target: Vec<u8>,
    },
    /// A directory that is empty. Others exist by what is in them.
    Directory,
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
    /// What is there.
    pub content: Content,
    /// Which earlier versions it contains.
    pub vector: Vector,
}
