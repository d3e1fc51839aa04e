//! Who belongs to the group: verdicts over facts that are only ever added. A removal is a fence: what
//! the removed device says beyond it counts for nothing, whatever arrived first.
//!
//! M1  The verdicts depend on the set of facts alone, so devices that know the same agree.
//! M2  `author_ok` never turns from yes to no: ops once admitted stay admitted everywhere. All other
//!     verdicts may change with a fact that arrives late.
//! M3  A removal is final for that key. Of the devices that the removed device added, those stay that
//!     a remover keeps, in each of its removals of that device if it wrote several, and those that
//!     another member added too.
//! M4  Whoever tells more than [`FACTS_PER_AUTHOR_MAX`] facts is out, and of its facts those count
//!     alone that the fence of another author names. Each device takes in these, and so many of the
//!     others, and refuses the rest; that they are too many all of them see.
//! M5  A removal voids every fact of its target that its fence does not name, except the target's
//!     removal of the remover: two devices that remove each other are both out.
//! M6  Memory holds what can change a verdict: of a fence the facts that were told, of `keep` the
//!     devices that the target added.
//!
//! **The fence names ops by their hashes**: all ops with facts of the target that the remover held.
//! A number in a log would not do. The owner of a key can sign another op under an old number, and
//! the ops between two facts, which would prove that it is not on the chain, are dropped when they
//! are dead. Ops with facts are never dropped, so each device can tell by the hash alone.
//!
//! **A removal without a fence**, as version 0.1.0 wrote them, voids nothing: whoever was a member of
//! such a group stays one. Removing the device again adds a fence.
//!
//! **Conflicts.** A removal counts when its author is admitted: the founder, or added by an admitted
//! device with an add that is not void. Two removals may each undo the other: directly (it voids the
//! other removal) or through an introduction (it voids the add by which the other's author is
//! admitted). Facts alone cannot show which of the two was right, so
//!
//! 1. the author closer to the founder prevails, by the number of introductions between them;
//! 2. at equal distance the direct one prevails, so that a device strikes in vain at the member that
//!    introduced its remover;
//! 3. what is left stands in a cycle: all of these removals count, and void nothing;
//! 4. where two devices remove each other, both are out. If one is closer to the founder, and nobody
//!    else removes it, the removal by the other puts it out and does nothing more.
//!
//! A removal that voids the introduction of its own author voids nothing and moves nobody else: its
//! author knew better.
//!
//! What follows: once a device is removed by one at least as close to the founder, nothing that it or
//! those it adds afterwards say changes who else is a member, but for its answer: that puts out the
//! remover too, and at equal distance voids what this remover alone has said. If two devices removed
//! it, it cannot answer either. A stolen founder is closer than everybody: by an answer to its only
//! remover it stays heard through devices that it adds, until a second device removes it; and such a
//! device can undo a removal by striking at the remover. Where that is to be feared, a new group is
//! the remedy.

mod judge;
mod ledger;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{NodeId, OpHash};
#[cfg(doc)]
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

pub use ledger::Ledger;

/// Something a device said about the group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// Who said it.
    pub by: NodeId,
    /// The op that says it.
    pub op: OpHash,
    /// Its place among the changes of the op.
    pub index: usize,
    /// What it says.
    pub what: FactKind,
}

/// What a fact says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FactKind {
    /// The group was founded; its id proves by whom.
    Genesis,
    /// A device was added.
    Add(NodeId),
    /// A device was removed.
    Remove(Removal),
}

/// A removal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removal {
    /// The device that goes.
    pub device: NodeId,
    /// Those of the devices it added that stay.
    pub keep: BTreeSet<NodeId>,
    /// Its ops that count; `None`: all of them, in a removal by version 0.1.0.
    pub fence: Option<BTreeSet<OpHash>>,
}

/// The verdicts over a set of facts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// How many introductions stand between each author and the founder.
    authors: BTreeMap<NodeId, usize>,
    legit: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    /// Of every legit device; a founder is its own.
    introducer: BTreeMap<NodeId, NodeId>,
    /// The ops with facts that a fence excludes.
    void: BTreeSet<OpHash>,
}

impl Verdicts {
    /// Judges the facts; their order does not matter.
    pub fn of(facts: &[Fact]) -> Self {
        Verdicts::clone(Ledger::of(facts).verdicts())
    }

    /// Whether its ops are admitted.
    pub fn author_ok(&self, device: &NodeId) -> bool {
        self.authors.contains_key(device)
    }

    /// How many devices there are whose ops are admitted.
    pub fn author_count(&self) -> usize {
        self.authors.len()
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

    /// The devices that were in the group and were removed, ascending.
    pub fn all_removed(&self) -> impl Iterator<Item = &NodeId> {
        self.removed.iter().filter(|device| self.author_ok(device))
    }

    /// Whether a fence excludes an op with facts.
    pub fn is_void(&self, op: &OpHash) -> bool {
        self.void.contains(op)
    }

    /// Who introduced a member; a founder introduced itself.
    pub fn introducer(&self, device: &NodeId) -> Option<&NodeId> {
        self.introducer.get(device)
    }

    /// The chain that makes a device legit: the founder first, then who was added by whom, the
    /// device last. Empty when it is not.
    pub fn chain(&self, device: &NodeId) -> Vec<NodeId> {
        let mut chain = Vec::new();
        let mut at = *device;
        while let Some(by) = self.introducer.get(&at) {
            chain.push(at);
            if *by == at {
                break;
            }
            at = *by;
        }
        chain.reverse();
        chain
    }
}
