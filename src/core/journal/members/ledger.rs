//! All membership facts and the verdicts over them, updated with each new fact.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::ids::{NodeId, OpHash};
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

use super::judge::judge;
use super::{FactKind, MemberFact, Removal, Verdicts};

/// All facts that are known, and the verdicts over them.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    said: BTreeMap<NodeId, Arc<Said>>,
    /// The devices that some fact removes.
    targets: BTreeSet<NodeId>,
    verdicts: Arc<Verdicts>,
    /// Whether facts were added that the verdicts do not cover yet.
    is_stale: bool,
}

/// The facts of one author, by op and index in the op.
pub(super) type Said = BTreeMap<(OpHash, usize), FactKind>;

impl Ledger {
    /// Makes a ledger of these facts, in any order.
    pub fn of(facts: &[MemberFact]) -> Self {
        let mut ledger = Self::default();
        facts.iter().for_each(|fact| ledger.enter(fact, FactKind::bare(&fact.what)));
        facts.iter().for_each(|fact| ledger.fill(fact));
        ledger.is_stale = true;
        ledger.settle();
        ledger
    }

    /// Adds a fact. Returns true if the removals of its author must be passed to
    /// [`Ledger::retell`]: what they say about this fact was not kept before (M6).
    #[must_use]
    pub fn insert(&mut self, fact: &MemberFact) -> bool {
        self.is_stale = self.is_stale || !self.updates(fact);
        self.enter(fact, FactKind::bare(&fact.what));
        self.fill(fact);
        self.targets.contains(&fact.by)
    }

    /// Keeps from a known removal what was not needed before.
    pub fn retell(&mut self, fact: &MemberFact) {
        self.fill(fact);
        self.is_stale = true;
    }

    /// Whether [`Ledger::verdicts`] cover all facts.
    pub fn is_settled(&self) -> bool {
        !self.is_stale
    }

    /// Judges the facts again if new ones require it.
    pub fn settle(&mut self) {
        if self.is_stale {
            self.verdicts = Arc::new(judge(&self.said));
            self.is_stale = false;
        }
    }

    /// The verdicts over the facts as of the last [`Ledger::settle`].
    pub fn verdicts(&self) -> &Arc<Verdicts> {
        &self.verdicts
    }

    /// The number of facts of an author.
    pub fn told(&self, author: &NodeId) -> usize {
        self.said.get(author).map_or(0, |said| said.len())
    }

    /// Whether `author` removed `device` with a fence.
    pub fn has_fenced(&self, author: &NodeId, device: &NodeId) -> bool {
        let is_fence = |fact: &FactKind| matches!(fact, FactKind::Remove(removal) if removal.device == *device && removal.fence.is_some());
        self.said.get(author).is_some_and(|said| said.values().any(is_fence))
    }

    /// The removal of a device that a member with these facts writes. It keeps the members that the
    /// device added, and its fence names every op of the device that counts.
    pub fn removal(&self, device: &NodeId) -> Removal {
        let (mut keep, mut fence) = (BTreeSet::new(), BTreeSet::new());
        // No fact of an author with too many facts counts (M4).
        let said = self.said.get(device).filter(|said| said.len() <= FACTS_PER_AUTHOR_MAX);
        for ((op, _), fact) in said.iter().flat_map(|said| said.iter()) {
            if self.verdicts.void.contains(op) {
                continue;
            }
            fence.insert(*op);
            match fact {
                // A device that was removed may have introduced others who stay, so it is kept too.
                FactKind::Add(added) if added != device && self.verdicts.legit(added) => {
                    keep.insert(*added);
                }
                _ => {}
            }
        }
        Removal { device: *device, keep, fence: Some(fence) }
    }

    /// As [`Ledger::removal`], but of the devices that it added only those stay through which
    /// `remover` itself is a member.
    pub fn removal_with_introduced(&self, remover: &NodeId, device: &NodeId) -> Removal {
        let mut removal = self.removal(device);
        let chain = self.verdicts.chain(remover);
        removal.keep.retain(|kept| chain.contains(kept));
        removal
    }

    /// The number of facts, and of ops and devices that their fences and keeps name.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        let facts = self.said.values().flat_map(|said| said.values());
        let named = facts.clone().map(|what| match what {
            FactKind::Remove(Removal { keep, fence, .. }) => {
                keep.len() + fence.as_ref().map_or(0, BTreeSet::len)
            }
            _ => 0,
        });
        (facts.count(), named.sum())
    }

    fn enter(&mut self, fact: &MemberFact, what: FactKind) {
        if let FactKind::Remove(Removal { device, .. }) = &what {
            self.targets.insert(*device);
        }
        let said = Arc::make_mut(self.said.entry(fact.by).or_default());
        said.entry((fact.op, fact.index)).or_insert(what);
    }

    /// Adds to a removal what is known about its target (M6).
    fn fill(&mut self, fact: &MemberFact) {
        let FactKind::Remove(told) = &fact.what else { return };
        let nothing = Said::new();
        let target = self.said.get(&told.device).cloned();
        let target = target.as_deref().unwrap_or(&nothing);
        let is_told = |op: &&OpHash| target.range((**op, 0)..=(**op, usize::MAX)).next().is_some();
        let fence =
            told.fence.as_ref().map(|fence| fence.iter().filter(is_told).copied().collect());
        let added = target.values().filter_map(|what| match what {
            FactKind::Add(device) => Some(device),
            _ => None,
        });
        let keep = added.filter(|device| told.keep.contains(device)).copied().collect();
        let said = Arc::make_mut(self.said.entry(fact.by).or_default());
        let full = Removal { device: told.device, keep, fence };
        said.insert((fact.op, fact.index), FactKind::Remove(full));
    }

    /// Updates the verdicts with one new fact where that is simple. Returns false where all facts
    /// must be judged again.
    fn updates(&mut self, fact: &MemberFact) -> bool {
        let by = &fact.by;
        let is_plain = self.verdicts.member(by)
            && !self.targets.contains(by)
            && self.told(by) < FACTS_PER_AUTHOR_MAX;
        if self.is_stale || !is_plain {
            return false;
        }
        let is_new = |device: &NodeId| {
            !self.verdicts.author_ok(device)
                && !self.targets.contains(device)
                && !self.said.contains_key(device)
        };
        match &fact.what {
            FactKind::Add(device) if is_new(device) => {
                let verdicts = Arc::make_mut(&mut self.verdicts);
                let distance = verdicts.authors.get(by).map_or(0, |distance| distance + 1);
                verdicts.authors.insert(*device, distance);
                verdicts.legit.insert(*device);
                verdicts.introducer.insert(*device, *by);
                true
            }
            FactKind::Remove(removal) if is_new(&removal.device) => {
                Arc::make_mut(&mut self.verdicts).removed.insert(removal.device);
                true
            }
            _ => false,
        }
    }
}

impl FactKind {
    /// A fact without the parts that are kept only where they can change a verdict (M6).
    fn bare(&self) -> Self {
        match self {
            Self::Remove(Removal { device, fence, .. }) => Self::Remove(Removal {
                device: *device,
                keep: BTreeSet::new(),
                fence: fence.as_ref().map(|_| BTreeSet::new()),
            }),
            other => other.clone(),
        }
    }
}
