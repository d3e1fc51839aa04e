//! Who belongs to the group: verdicts over a set of facts that only grows. A removal contains a
//! fence: what the removed device said beyond it counts for nothing, whatever arrived first.
//!
//! M1  The verdicts depend on the set of facts alone, so devices that know the same agree.
//! M2  `author_ok` never turns from yes to no: ops once admitted stay admitted everywhere. All other
//!     verdicts may change with a fact that arrives late.
//! M3  A removal is final for that key. Of the devices that the removed device added, these stay:
//!     those that the remover keeps (in each of its removals of that device, if it wrote several),
//!     and those that another member added too.
//! M4  An author with more than [`FACTS_PER_AUTHOR_MAX`] facts is removed. Of its facts only those
//!     count that another author's fence names. Devices may store different subsets of the rest,
//!     but each sees that the limit was exceeded.
//! M5  A removal voids every fact of its target that its fence does not name, except the target's
//!     removal of the remover: two devices that remove each other are both out.
//! M6  Only what can change a verdict is kept in memory: of a fence the facts that are known, of
//!     `keep` the devices that the target added.
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
//! A removal that voids the introduction of its own author voids nothing and moves nobody else.
//!
//! What follows: once a device was removed by one at least as close to the founder, nothing that it
//! says afterwards, or the devices that it adds afterwards, changes who else is a member, except
//! its own removal of the remover. That removal puts out the remover too, and at equal distance
//! voids what this remover alone has said. If two devices removed it, it cannot answer either. A
//! stolen founder key is closer than everybody: if only one device removed it, it can remove that
//! one, and stays heard through devices that it adds, until a second device removes it. Such a
//! device can also undo a removal by removing the remover. If that is a risk, found a new
//! group.

mod judge;
mod ledger;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{NodeId, OpHash};
#[cfg(doc)]
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

pub use ledger::Ledger;

/// A statement by a device about the group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberFact {
    /// The fact's author.
    pub by: NodeId,
    /// The op that contains it.
    pub op: OpHash,
    /// The fact's index among the changes of the op.
    pub index: usize,
    /// The fact's content.
    pub what: FactKind,
}

/// The content of a fact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FactKind {
    /// The author founded the group; the group's id proves it.
    Genesis,
    /// A device was added.
    Add(NodeId),
    /// A device was removed.
    Remove(Removal),
}

/// A removal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removal {
    /// The removed device.
    pub device: NodeId,
    /// The devices added by it that stay members.
    pub keep: BTreeSet<NodeId>,
    /// The ops of the device that still count; `None`: all, as in a removal by version 0.1.0.
    pub fence: Option<BTreeSet<OpHash>>,
}

/// The verdicts over a set of facts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// The number of introductions between each author and the founder.
    authors: BTreeMap<NodeId, usize>,
    legit: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    /// The device that introduced each legit device; a founder introduced itself.
    introducer: BTreeMap<NodeId, NodeId>,
    /// The ops with facts that a fence excludes.
    void: BTreeSet<OpHash>,
}

impl Verdicts {
    /// Judges the facts; their order does not matter.
    pub fn of(facts: &[MemberFact]) -> Self {
        Verdicts::clone(Ledger::of(facts).verdicts())
    }

    /// Whether ops by the device are admitted.
    pub fn author_ok(&self, device: &NodeId) -> bool {
        self.authors.contains_key(device)
    }

    /// The number of devices whose ops are admitted.
    pub fn author_count(&self) -> usize {
        self.authors.len()
    }

    /// Whether a chain of introductions that still stands leads to it. See M3.
    pub fn legit(&self, device: &NodeId) -> bool {
        self.legit.contains(device)
    }

    /// Whether a member removed it.
    pub fn removed(&self, device: &NodeId) -> bool {
        self.removed.contains(device)
    }

    /// Whether its connections are admitted.
    pub fn member(&self, device: &NodeId) -> bool {
        self.legit(device) && !self.removed(device)
    }

    /// The members in ascending order.
    pub fn members(&self) -> impl Iterator<Item = &NodeId> {
        self.legit.difference(&self.removed)
    }

    /// Whether any device is a member now that was not a member by the verdicts `before`.
    pub fn restores_members(&self, before: &Self) -> bool {
        self.members().any(|device| !before.member(device))
    }

    /// The removed devices that once were in the group, in ascending order.
    pub fn all_removed(&self) -> impl Iterator<Item = &NodeId> {
        self.removed.iter().filter(|device| self.author_ok(device))
    }

    /// Whether a fence excludes an op with facts.
    pub fn is_void(&self, op: &OpHash) -> bool {
        self.void.contains(op)
    }

    /// The device that introduced a member; a founder introduced itself.
    pub fn introducer(&self, device: &NodeId) -> Option<&NodeId> {
        self.introducer.get(device)
    }

    /// The chain of introductions of a legit device, from the founder to the device itself. Empty
    /// when the device is not legit.
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
