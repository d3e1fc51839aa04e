//! Who belongs to the group: three verdicts over facts that are only ever added.
//!
//! M1  The verdicts depend on the set of facts alone, so devices that know the same agree.
//! M2  `author_ok` never turns from yes to no: ops once admitted stay admitted everywhere.
//! M3  A removal is final for that key, and takes along whom the removed device added, except those
//!     the remover kept. Two devices that remove each other are both out.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::NodeId;

/// Something a device said about the group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// Who said it.
    pub by: NodeId,
    /// What.
    pub what: FactKind,
}

/// What a fact says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FactKind {
    /// The group was founded; its id proves by whom.
    Genesis,
    /// A device was added.
    Add(NodeId),
    /// A device was removed; those it had added and who stay.
    Remove(NodeId, BTreeSet<NodeId>),
}

/// The verdicts over a set of facts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    authors: BTreeSet<NodeId>,
    legit: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    introducer: BTreeMap<NodeId, NodeId>,
}

impl Verdicts {
    /// Judges the facts; their order does not matter.
    pub fn of(facts: &[Fact]) -> Self {
        let _ = facts;
        Self::default()
    }

    /// Whether its ops are admitted.
    pub fn author_ok(&self, device: &NodeId) -> bool {
        self.authors.contains(device)
    }

    /// Whether it was brought in by a chain that still stands. See M3.
    pub fn legit(&self, device: &NodeId) -> bool {
        self.legit.contains(device)
    }

    /// Whether somebody of the group removed it.
    pub fn removed(&self, device: &NodeId) -> bool {
        self.removed.contains(device)
    }

    /// Whether its connections are admitted.
    pub fn member(&self, device: &NodeId) -> bool {
        self.legit(device) && !self.removed(device)
    }

    /// The members, ascending.
    pub fn members(&self) -> impl Iterator<Item = &NodeId> {
        self.legit.difference(&self.removed)
    }

    /// Those who were removed, ascending.
    pub fn all_removed(&self) -> impl Iterator<Item = &NodeId> {
        self.removed.iter()
    }

    /// The chain that makes a device legit: the founder first, then who was added by whom, the
    /// device last. Empty when it is not.
    pub fn chain(&self, device: &NodeId) -> Vec<NodeId> {
        let _ = (&self.introducer, device);
        Vec::new()
    }
}
