//! Who belongs to the group: three verdicts over facts that are only ever added.
//!
//! M1  The verdicts depend on the set of facts alone, so devices that know the same agree.
//! M2  `author_ok` never turns from yes to no: ops once admitted stay admitted everywhere.
//! M3  A removal is final for that key, and takes along whom the removed device added, except those
//!     the remover kept. Two devices that remove each other are both out.
//! M4  Whoever tells more than [`FACTS_PER_AUTHOR_MAX`] facts is out, and none of them counts for who
//!     is a member. Of such an author every device takes in so many and refuses the rest, each
//!     another rest; that they are too many all of them see.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::ids::NodeId;
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

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
    /// Of every legit device; a founder is its own.
    introducer: BTreeMap<NodeId, NodeId>,
}

impl Verdicts {
    /// Judges the facts; their order does not matter.
    pub fn of(facts: &[Fact]) -> Self {
        let mut founders = BTreeSet::new();
        let mut adds: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for fact in facts {
            match &fact.what {
                FactKind::Genesis => drop(founders.insert(fact.by)),
                FactKind::Add(device) => drop(adds.entry(fact.by).or_default().insert(*device)),
                FactKind::Remove(..) => {}
            }
        }
        let all_added = |by: &NodeId| adds.get(by).cloned().unwrap_or_default();
        let authors: BTreeSet<NodeId> = spread(&founders, all_added).into_keys().collect();

        let mut told: BTreeMap<NodeId, usize> = BTreeMap::new();
        facts.iter().for_each(|fact| *told.entry(fact.by).or_default() += 1);
        told.retain(|by, facts| *facts > FACTS_PER_AUTHOR_MAX && authors.contains(by));
        let too_many: BTreeSet<NodeId> = told.into_keys().collect();

        let mut kept: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        let counts = |by: &NodeId| authors.contains(by) && !too_many.contains(by);
        for fact in facts.iter().filter(|fact| counts(&fact.by)) {
            if let FactKind::Remove(device, keep) = &fact.what {
                kept.entry(*device).or_default().extend(keep);
            }
        }
        let introducer = spread(&founders, |by| {
            if too_many.contains(by) {
                return BTreeSet::new();
            }
            let mut added = all_added(by);
            if let Some(keep) = kept.get(by) {
                added.retain(|device| keep.contains(device));
            }
            added
        });
        Self {
            legit: introducer.keys().copied().collect(),
            removed: kept.into_keys().chain(too_many.iter().copied()).collect(),
            introducer,
            authors,
        }
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

/// Whom the founders reach, each with who reached it first. Breadth first, so chains are short and
/// have no loops.
fn spread(
    founders: &BTreeSet<NodeId>,
    added_by: impl Fn(&NodeId) -> BTreeSet<NodeId>,
) -> BTreeMap<NodeId, NodeId> {
    let mut reached: BTreeMap<NodeId, NodeId> = founders.iter().map(|f| (*f, *f)).collect();
    let mut queue: VecDeque<NodeId> = founders.iter().copied().collect();
    while let Some(by) = queue.pop_front() {
        for device in added_by(&by) {
            if let Entry::Vacant(free) = reached.entry(device) {
                free.insert(by);
                queue.push_back(device);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn dev(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    fn genesis(by: u8) -> Fact {
        Fact { by: dev(by), what: FactKind::Genesis }
    }

    fn add(by: u8, device: u8) -> Fact {
        Fact { by: dev(by), what: FactKind::Add(dev(device)) }
    }

    fn remove(by: u8, device: u8, keep: &[u8]) -> Fact {
        let keep = keep.iter().map(|n| dev(*n)).collect();
        Fact { by: dev(by), what: FactKind::Remove(dev(device), keep) }
    }

    #[test]
    fn the_verdicts_are_these() {
        // What it is about, the facts, the members, the authors.
        type Case = (&'static str, Vec<Fact>, &'static [u8], &'static [u8]);
        let table: [Case; 12] = [
            ("nobody", vec![], &[], &[]),
            ("a founder alone", vec![genesis(1)], &[1], &[1]),
            ("an add by nobody known", vec![genesis(1), add(7, 8)], &[1], &[1]),
            (
                "a chain, in any order",
                vec![add(2, 3), add(1, 2), genesis(1)],
                &[1, 2, 3],
                &[1, 2, 3],
            ),
            (
                "a removed device's ops still count",
                vec![genesis(1), add(1, 2), remove(1, 2, &[])],
                &[1],
                &[1, 2],
            ),
            (
                "whom it added falls with it, unless kept",
                vec![genesis(1), add(1, 2), add(2, 3), add(2, 4), remove(1, 2, &[3])],
                &[1, 3],
                &[1, 2, 3, 4],
            ),
            (
                "a second introducer holds a device",
                vec![genesis(1), add(1, 2), add(2, 3), add(1, 3), remove(1, 2, &[])],
                &[1, 3],
                &[1, 2, 3],
            ),
            (
                "a duel removes both",
                vec![genesis(1), add(1, 2), add(1, 3), remove(2, 3, &[]), remove(3, 2, &[])],
                &[1],
                &[1, 2, 3],
            ),
            (
                "the founder removed, its devices kept",
                vec![genesis(1), add(1, 2), add(1, 3), remove(2, 1, &[2, 3])],
                &[2, 3],
                &[1, 2, 3],
            ),
            (
                "two removals keep what either keeps",
                vec![
                    genesis(1),
                    add(1, 2),
                    add(2, 3),
                    add(2, 4),
                    remove(1, 2, &[3]),
                    remove(3, 2, &[4]),
                ],
                &[1, 3, 4],
                &[1, 2, 3, 4],
            ),
            (
                "a removal by a stranger is nothing",
                vec![genesis(1), add(1, 2), remove(9, 2, &[])],
                &[1, 2],
                &[1, 2],
            ),
            (
                "removed for good, also when added again",
                vec![genesis(1), add(1, 2), remove(1, 2, &[]), add(1, 2)],
                &[1],
                &[1, 2],
            ),
        ];
        for (what, mut facts, members, authors) in table {
            for _ in 0..2 {
                let verdicts = Verdicts::of(&facts);
                let expected: Vec<NodeId> = members.iter().map(|n| dev(*n)).collect();
                assert_eq!(verdicts.members().copied().collect::<Vec<_>>(), expected, "{what}");
                for n in 0..10 {
                    let (id, listed) = (dev(n), authors.contains(&n));
                    assert_eq!(verdicts.author_ok(&id), listed, "{what}: author {n}");
                    assert_eq!(verdicts.member(&id), members.contains(&n), "{what}: {n}");
                }
                facts.reverse();
            }
        }
    }

    #[test]
    fn whoever_tells_too_many_facts_is_out_whichever_of_them_a_device_has_heard() {
        let far = |n: usize| {
            let mut id = [0xee; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            NodeId(id)
        };
        let flood = (0..2 * FACTS_PER_AUTHOR_MAX)
            .map(|n| Fact { by: dev(2), what: FactKind::Add(far(n)) })
            .chain([remove(2, 3, &[]), add(2, 4)]);
        let flood: Vec<Fact> = flood.collect();
        let group = [genesis(1), add(1, 2), add(1, 3)];
        let (first, last) = flood.split_at(FACTS_PER_AUTHOR_MAX);
        for heard in [&first[1..], first, last, &flood] {
            let mut facts = [&group, heard].concat();
            for _ in 0..2 {
                let verdicts = Verdicts::of(&facts);
                let is_too_much = heard.len() > FACTS_PER_AUTHOR_MAX;
                assert_eq!(verdicts.member(&dev(2)), !is_too_much);
                assert_eq!(verdicts.members().count() > 2, !is_too_much);
                assert!(verdicts.member(&dev(1)) && verdicts.member(&dev(3)));
                assert!(verdicts.author_ok(&dev(2)));
                facts.reverse();
            }
        }
        // Whom it had added stays out also where a removal keeps it: it may be added again.
        let mut facts = [&group[..], &flood, &[remove(1, 2, &[4])]].concat();
        assert!(!Verdicts::of(&facts).member(&dev(4)));
        facts.push(add(3, 4));
        assert!(Verdicts::of(&facts).member(&dev(4)));
    }

    #[test]
    fn a_chain_leads_from_the_founder_over_introductions_that_stand() {
        let facts = [genesis(1), add(1, 2), add(2, 3), add(3, 4), add(1, 4), remove(1, 2, &[])];
        let verdicts = Verdicts::of(&facts);
        assert_eq!(verdicts.chain(&dev(4)), [dev(1), dev(4)]);
        assert_eq!(verdicts.chain(&dev(3)), []);
        assert_eq!(verdicts.chain(&dev(1)), [dev(1)]);
    }

    #[test]
    fn whoever_may_author_may_for_ever() {
        let facts = [
            genesis(1),
            add(1, 2),
            add(2, 3),
            remove(3, 1, &[]),
            remove(1, 3, &[]),
            remove(2, 2, &[]),
            add(3, 4),
        ];
        let mut before = BTreeSet::new();
        for n in 0..=facts.len() {
            let now = Verdicts::of(&facts[..n]).authors;
            assert!(now.is_superset(&before), "after {n} facts");
            before = now;
        }
    }
}
