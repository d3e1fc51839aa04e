//! The verdicts over facts written by hand, and properties of the verdicts over random ones.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

const fn dev(n: u8) -> NodeId {
    NodeId([n; 32])
}

/// Facts in the order in which they were stated, each in an op of its own.
#[derive(Debug, Clone, Default)]
struct Told(Vec<MemberFact>);

impl Told {
    /// Device 1 founds the group and adds the others.
    fn group(others: &[u8]) -> Self {
        let mut told = Self::default();
        told.tell(1, FactKind::Genesis);
        others.iter().for_each(|n| {
            told.add(1, *n);
        });
        told
    }

    fn tell(&mut self, by: u8, what: FactKind) -> OpHash {
        let mut op = [by; 32];
        op[..8].copy_from_slice(&(self.0.len() as u64).to_be_bytes());
        let fact = MemberFact { by: dev(by), op: OpHash(op), index: 0, what };
        self.0.push(fact);
        OpHash(op)
    }

    fn add(&mut self, by: u8, device: u8) -> OpHash {
        self.tell(by, FactKind::Add(dev(device)))
    }

    /// The removal that a device writes when it knows all facts so far.
    fn remove(&mut self, by: u8, device: u8) -> OpHash {
        let removal = Ledger::of(&self.0).removal(&dev(device));
        self.tell(by, FactKind::Remove(removal))
    }

    /// A removal by a device that lies about what it holds: it keeps `keep` and lets only the ops
    /// `fence` count.
    fn strike(&mut self, by: u8, device: u8, keep: &[u8], fence: &[OpHash]) -> OpHash {
        let keep = keep.iter().map(|n| dev(*n)).collect();
        let fence = Some(fence.iter().copied().collect());
        self.tell(by, FactKind::Remove(Removal { device: dev(device), keep, fence }))
    }

    /// A removal without a fence, as version 0.1.0 wrote it.
    fn remove_without_fence(&mut self, by: u8, device: u8, keep: &[u8]) {
        let keep = keep.iter().map(|n| dev(*n)).collect();
        self.tell(by, FactKind::Remove(Removal { device: dev(device), keep, fence: None }));
    }

    fn members(&self) -> Vec<u8> {
        Verdicts::of(&self.0).members().map(|id| id.0[0]).collect()
    }

    /// A ledger that learns the facts one by one in this order.
    fn learned(&self, order: &[usize]) -> Ledger {
        let mut ledger = Ledger::default();
        let mut heard: Vec<&MemberFact> = Vec::new();
        for at in order {
            let fact = &self.0[*at];
            heard.push(fact);
            if ledger.insert(fact) {
                let aims = |fact: &&&MemberFact, at: &NodeId| matches!(&fact.what, FactKind::Remove(removal) if removal.device == *at);
                let again = heard.iter().filter(|other| aims(other, &fact.by));
                again.for_each(|removal| ledger.retell(removal));
            }
            ledger.settle();
        }
        ledger
    }
}

// ---- without fences --------------------------------------------------------------------------

#[test]
fn without_fences_the_verdicts_are_these() {
    type Case = (&'static str, fn(&mut Told), &'static [u8], &'static [u8]);
    // The case, the facts after device 1 founded the group, the members, the authors.
    let table: [Case; 11] = [
        ("a founder alone", |_| {}, &[1], &[1]),
        (
            "an add by nobody known",
            |told| {
                told.add(7, 8);
            },
            &[1],
            &[1],
        ),
        (
            "a chain",
            |told| {
                told.add(2, 3);
                told.add(1, 2);
            },
            &[1, 2, 3],
            &[1, 2, 3],
        ),
        (
            "a removed device's ops still count",
            |told| {
                told.add(1, 2);
                told.remove_without_fence(1, 2, &[]);
            },
            &[1],
            &[1, 2],
        ),
        (
            "whom it added falls with it, unless kept",
            |told| {
                told.add(1, 2);
                told.add(2, 3);
                told.add(2, 4);
                told.remove_without_fence(1, 2, &[3]);
            },
            &[1, 3],
            &[1, 2, 3, 4],
        ),
        (
            "a second introducer holds a device",
            |told| {
                told.add(1, 2);
                told.add(2, 3);
                told.add(1, 3);
                told.remove_without_fence(1, 2, &[]);
            },
            &[1, 3],
            &[1, 2, 3],
        ),
        (
            "a duel removes both",
            |told| {
                told.add(1, 2);
                told.add(1, 3);
                told.remove_without_fence(2, 3, &[]);
                told.remove_without_fence(3, 2, &[]);
            },
            &[1],
            &[1, 2, 3],
        ),
        (
            "the founder removed, its devices kept",
            |told| {
                told.add(1, 2);
                told.add(1, 3);
                told.remove_without_fence(2, 1, &[2, 3]);
            },
            &[2, 3],
            &[1, 2, 3],
        ),
        (
            "a remover that is a member through the removed device alone keeps nobody beside others",
            |told| {
                told.add(1, 2);
                told.add(2, 3);
                told.add(2, 4);
                told.remove_without_fence(1, 2, &[3]);
                told.remove_without_fence(3, 2, &[4]);
            },
            &[1, 3],
            &[1, 2, 3, 4],
        ),
        (
            "a removal by a stranger is nothing",
            |told| {
                told.add(1, 2);
                told.remove_without_fence(9, 2, &[]);
            },
            &[1, 2],
            &[1, 2],
        ),
        (
            "removed for good, also when added again",
            |told| {
                told.add(1, 2);
                told.remove_without_fence(1, 2, &[]);
                told.add(1, 2);
            },
            &[1],
            &[1, 2],
        ),
    ];
    for (what, tell, members, authors) in table {
        let mut told = Told::group(&[]);
        tell(&mut told);
        for _ in 0..2 {
            assert_eq!(told.members(), members, "{what}");
            let verdicts = Verdicts::of(&told.0);
            for n in 0..10 {
                assert_eq!(verdicts.author_ok(&dev(n)), authors.contains(&n), "{what}: author {n}");
                assert_eq!(verdicts.member(&dev(n)), members.contains(&n), "{what}: {n}");
            }
            told.0.reverse();
        }
    }
    assert!(Told::default().members().is_empty());
}

#[test]
fn a_removal_without_a_fence_voids_nothing_until_it_is_said_again() {
    let mut told = Told::group(&[2, 3, 4]);
    told.remove_without_fence(1, 2, &[]);
    assert!(!Ledger::of(&told.0).has_fenced(&dev(1), &dev(2)));
    let mut fenced = told.clone();
    fenced.remove(1, 2);
    assert!(Ledger::of(&fenced.0).has_fenced(&dev(1), &dev(2)));
    for (mut told, members) in [(told, &[1, 4][..]), (fenced, &[1, 3, 4])] {
        told.strike(2, 3, &[], &[]);
        assert_eq!(told.members(), members);
    }
}

// ---- fences ----------------------------------------------------------------------------------

#[test]
fn a_removed_device_cannot_dissolve_the_group_by_removing_the_founder() {
    // This holds for each remover, whatever its fence names.
    for remover in [1, 3] {
        let mut told = Told::group(&[2, 3, 4]);
        let its_own_add = told.0[1].op;
        told.remove(remover, 2);
        for fence in [&[][..], &[its_own_add]] {
            let mut told = told.clone();
            told.strike(2, 1, &[], fence);
            let left: &[u8] = if remover == 1 { &[3, 4] } else { &[1, 3, 4] };
            assert_eq!(told.members(), left, "removed by {remover}");
        }
    }
}

#[test]
fn an_accomplice_that_a_removed_device_adds_has_no_say() {
    let mut told = Told::group(&[2, 3]);
    told.remove(3, 2);
    let accomplice = told.add(2, 9);
    told.strike(9, 2, &[9], &[accomplice]);
    told.strike(9, 3, &[9], &[]);
    told.strike(9, 1, &[9], &[]);
    told.add(9, 8);
    assert_eq!(told.members(), [1, 3]);
}

#[test]
fn a_fact_signed_anew_under_an_old_number_is_beyond_the_fence() {
    // The fence names ops by their hashes, so it does not matter where in the log the op stands.
    let mut told = Told::group(&[2]);
    told.add(2, 3);
    told.remove(1, 2);
    let real = told.0[2].clone();
    assert_eq!(told.members(), [1, 3]);
    told.0.push(MemberFact { op: OpHash([0xee; 32]), what: FactKind::Add(dev(9)), ..real });
    assert_eq!(told.members(), [1, 3]);
}

#[test]
fn a_removal_before_the_fence_stands() {
    let mut told = Told::group(&[2, 3, 4]);
    told.remove(2, 3);
    told.remove(1, 2);
    assert_eq!(told.members(), [1, 4]);
}

#[test]
fn two_devices_that_remove_each_other_are_out_and_the_elders_devices_stay() {
    let mut told = Told::group(&[2, 3]);
    told.remove(1, 2);
    told.strike(2, 1, &[], &[]);
    assert_eq!(told.members(), [3]);
    // At equal distance from the founder each voids what only the other has stated.
    let mut told = Told::group(&[2, 3, 4]);
    told.add(3, 5);
    told.remove(3, 2);
    told.strike(2, 3, &[], &[]);
    assert_eq!(told.members(), [1, 4]);
}

#[test]
fn a_stolen_founder_that_two_devices_remove_takes_nobody_along() {
    let mut told = Told::group(&[2, 3, 4]);
    let mut other = told.clone();
    told.remove(2, 1);
    assert_eq!(told.members(), [2, 3, 4]);
    // The second remover did not know of the first.
    other.0.push(told.0.last().cloned().expect("a removal"));
    let removal = Ledger::of(&other.0[..4]).removal(&dev(1));
    other.tell(3, FactKind::Remove(removal));
    for n in [2, 3, 4] {
        other.strike(1, n, &[], &[]);
    }
    other.add(1, 9);
    assert_eq!(other.members(), [2, 3, 4]);
}

#[test]
fn three_removals_in_a_circle_all_count() {
    let before = Told::group(&[2, 3, 4, 5]);
    let removal = |of: u8| Ledger::of(&before.0).removal(&dev(of));
    let mut told = before.clone();
    for (by, of) in [(2, 3), (3, 4), (4, 2)] {
        told.tell(by, FactKind::Remove(removal(of)));
    }
    assert_eq!(told.members(), [1, 5]);
}

#[test]
fn a_fence_that_denies_its_authors_own_introduction_puts_out_its_target_alone() {
    let mut told = Told::group(&[2, 3, 4]);
    told.strike(2, 1, &[], &[]);
    assert_eq!(told.members(), [2, 3, 4]);
}

#[test]
fn removing_the_founder_keeps_everyone_the_remover_knows() {
    let mut told = Told::group(&[2, 3, 4]);
    told.add(3, 5);
    told.remove(1, 4);
    told.remove(2, 1);
    assert_eq!(told.members(), [2, 3, 5]);
}

// ---- bounds ----------------------------------------------------------------------------------

fn far(n: usize) -> NodeId {
    let mut id = [0xee; 32];
    id[..8].copy_from_slice(&n.to_be_bytes());
    NodeId(id)
}

#[test]
fn whoever_tells_too_many_facts_is_out_whichever_of_them_a_device_has_heard() {
    let mut flood = Told::default();
    (0..2 * FACTS_PER_AUTHOR_MAX).for_each(|n| {
        flood.tell(2, FactKind::Add(far(n)));
    });
    flood.remove_without_fence(2, 3, &[]);
    flood.add(2, 4);
    let flood = flood.0;
    let group = Told::group(&[2, 3]).0;
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
    // A device that it had added stays out although a removal keeps it. It may be added again.
    let mut told = Told([&group[..], &flood].concat());
    told.remove_without_fence(1, 2, &[4]);
    assert!(!Verdicts::of(&told.0).member(&dev(4)));
    told.add(3, 4);
    assert!(Verdicts::of(&told.0).member(&dev(4)));
}

#[test]
fn a_thief_that_tells_too_many_facts_takes_none_of_those_along_that_a_fence_names() {
    let mut told = Told::group(&[2, 3]);
    told.add(2, 4);
    told.remove(3, 2);
    for n in 0..2 * FACTS_PER_AUTHOR_MAX {
        told.tell(2, FactKind::Add(far(n)));
    }
    assert_eq!(told.members(), [1, 3, 4]);
    told.0.reverse();
    assert_eq!(told.members(), [1, 3, 4]);
    // A removal that is written only now names no ops.
    assert_eq!(Ledger::of(&told.0).removal(&dev(2)).fence, Some(BTreeSet::new()));
}

#[test]
fn what_a_removal_names_and_nobody_told_is_not_kept() {
    let mut told = Told::group(&[2, 3]);
    let ops: Vec<OpHash> = (0..200).map(|n| OpHash([n; 32])).collect();
    let keep: Vec<u8> = (10..210).collect();
    told.strike(3, 2, &keep, &ops);
    let ledger = Ledger::of(&told.0);
    assert_eq!(ledger.size(), (4, 0));
    // The fact counts also when the device stated it later.
    let op = OpHash([7; 32]);
    told.0.push(MemberFact { by: dev(2), op, index: 0, what: FactKind::Add(dev(10)) });
    let order: Vec<usize> = (0..told.0.len()).collect();
    assert!(told.learned(&order).verdicts().member(&dev(10)));
    assert_eq!(told.learned(&order).size(), (5, 2));
}

#[test]
fn a_chain_leads_from_the_founder_over_introductions_that_stand() {
    let mut told = Told::group(&[2]);
    told.add(2, 3);
    told.add(3, 4);
    told.add(1, 4);
    told.remove_without_fence(1, 2, &[]);
    let verdicts = Verdicts::of(&told.0);
    assert_eq!(verdicts.chain(&dev(4)), [dev(1), dev(4)]);
    assert_eq!(verdicts.chain(&dev(3)), []);
    assert_eq!(verdicts.chain(&dev(1)), [dev(1)]);
}

// ---- properties ------------------------------------------------------------------------------

/// An action: by which device, on which device, which kind, and a choice (see [`act`]).
type Act = (u8, u8, u8, u64);

fn acts(most: usize) -> impl Strategy<Value = Vec<Act>> {
    proptest::collection::vec((1..8_u8, 1..8_u8, any::<u8>(), any::<u64>()), 0..most)
}

/// States any fact: an add, or a removal with any fence. `chosen` picks among the facts so far.
fn act(told: &mut Told, (by, of, how, chosen): Act) {
    let picks = |at: usize| chosen >> (at % 64) & 1 == 1;
    match how % 5 {
        0 | 1 => {
            told.add(by, of);
        }
        2 => {
            told.remove(by, of);
        }
        3 => {
            let keep: Vec<u8> = (1..8).filter(|n| picks(usize::from(*n))).collect();
            told.remove_without_fence(by, of, &keep);
        }
        _ => {
            let ops = told.0.iter().enumerate().filter(|(at, _)| picks(*at));
            let fence: Vec<OpHash> = ops.map(|(_, fact)| fact.op).collect();
            let keep: Vec<u8> = (1..8).filter(|n| picks(usize::from(*n) + 32)).collect();
            told.strike(by, of, &keep, &fence);
        }
    }
}

/// A group whose members know all facts when they act.
fn history(acts: &[Act]) -> Told {
    let mut told = Told::group(&[2, 3]);
    for (by, of, how, _) in acts {
        let verdicts = Verdicts::of(&told.0);
        if !verdicts.member(&dev(*by)) || by == of {
            continue;
        }
        match how % 4 {
            0 if verdicts.member(&dev(*of)) => {
                told.remove(*by, *of);
            }
            0 => {}
            _ if verdicts.removed(&dev(*of)) => {}
            _ => {
                told.add(*by, *of);
            }
        }
    }
    told
}

/// Two different members.
fn two_of(
    members: &[u8],
    (one, other): (prop::sample::Index, prop::sample::Index),
) -> Option<(u8, u8)> {
    let one = *members.get(one.index(members.len().max(1)))?;
    let rest: Vec<u8> = members.iter().copied().filter(|n| *n != one).collect();
    Some((one, *rest.get(other.index(rest.len().max(1)))?))
}

fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|at| (*at as u64 + 1).wrapping_mul(seed | 1).rotate_left(23));
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_same_facts_give_the_same_verdicts_in_every_order(acts in acts(24), seed: u64) {
        let mut told = Told::group(&[2]);
        acts.iter().for_each(|one| act(&mut told, *one));
        let expected = Verdicts::of(&told.0);
        let order = shuffled(told.0.len(), seed);
        let learned = told.learned(&order);
        prop_assert_eq!(&**learned.verdicts(), &expected);
    }

    #[test]
    fn whoever_may_author_may_for_ever(acts in acts(24)) {
        let mut told = Told::group(&[2]);
        acts.iter().for_each(|one| act(&mut told, *one));
        let mut before = BTreeSet::new();
        for n in 0..=told.0.len() {
            let verdicts = Verdicts::of(&told.0[..n]);
            let now: BTreeSet<NodeId> = verdicts.authors.keys().copied().collect();
            prop_assert!(now.is_superset(&before), "after {} facts", n);
            before = now;
        }
    }

    /// A device with a stolen key is removed by a device no further from the founder. Then it and
    /// the devices that it adds state any facts.
    #[test]
    fn what_a_removed_device_and_its_accomplices_say_changes_nobody_else(
        past in acts(12),
        pair: (prop::sample::Index, prop::sample::Index),
        crimes in acts(10),
    ) {
        let mut told = history(&past);
        let verdicts = Verdicts::of(&told.0);
        let distance = |n: u8| verdicts.authors.get(&dev(n)).copied();
        let Some((one, other)) = two_of(&told.members(), pair) else { return Ok(()) };
        let is_in_order = distance(one) <= distance(other);
        let (remover, thief) = if is_in_order { (one, other) } else { (other, one) };
        told.remove(remover, thief);
        let before = told.members();

        // What depends on the remover's facts alone, where neither is closer to the founder.
        let mut at_stake: BTreeSet<u8> = BTreeSet::from([remover, thief]);
        if distance(remover) == distance(thief) {
            for fact in &told.0 {
                match &fact.what {
                    FactKind::Add(device) if at_stake.contains(&fact.by.0[0]) => {
                        at_stake.insert(device.0[0]);
                    }
                    FactKind::Remove(removal) if fact.by == dev(remover) => {
                        at_stake.insert(removal.device.0[0]);
                    }
                    _ => {}
                }
            }
        }
        for (by, of, how, chosen) in crimes {
            // The thief, or one of three devices that it has added so far.
            let by = [thief, 20, 21, 22][usize::from(by % 4)];
            let of = if how % 5 < 2 { 20 + of % 3 } else { of };
            act(&mut told, (by, of, how, chosen));
        }
        let after = told.members();
        let changed: Vec<u8> = (1..30)
            .filter(|n| before.contains(n) != after.contains(n) && !at_stake.contains(n))
            .collect();
        prop_assert!(changed.is_empty(), "{:?} changed: {:?}, then {:?}", changed, before, after);
        prop_assert!(!after.contains(&thief));
    }

    /// As above, but a second device removed the thief too. Then the remover stays as well, and so
    /// do all others, unless the thief is the founder and has accomplices.
    #[test]
    fn a_thief_that_two_devices_removed_takes_nobody_along(
        (first, second, thief) in (1..6_u8, 1..6_u8, 1..6_u8),
        crimes in acts(10),
    ) {
        if first == second || first == thief || second == thief {
            return Ok(());
        }
        let mut told = Told::group(&[2, 3, 4, 5]);
        told.remove(first, thief);
        told.remove(second, thief);
        let before = told.members();
        for (_, of, how, chosen) in crimes {
            act(&mut told, (thief, of, how, chosen));
        }
        prop_assert_eq!(told.members(), before);
    }

    #[test]
    fn a_removal_by_somebody_who_knows_all_puts_out_its_target_alone(
        past in acts(16),
        pair: (prop::sample::Index, prop::sample::Index),
    ) {
        let mut told = history(&past);
        let Some((by, of)) = two_of(&told.members(), pair) else { return Ok(()) };
        let before: BTreeSet<u8> = told.members().into_iter().collect();
        told.remove(by, of);
        // Everybody knew all facts, so only the removed device goes.
        let after: BTreeSet<u8> = told.members().into_iter().collect();
        let gone: Vec<u8> = before.difference(&after).copied().collect();
        prop_assert_eq!(gone, [of]);
        prop_assert!(after.is_subset(&before));
    }
}

#[test]
fn adding_fresh_devices_is_judged_without_looking_at_other_facts() {
    let mut ledger = Ledger::of(&Told::group(&[2, 3]).0);
    for n in 0..FACTS_PER_AUTHOR_MAX {
        let what = match n % 2 {
            0 => FactKind::Add(far(n)),
            _ => FactKind::Remove(Removal { device: far(n), keep: BTreeSet::new(), fence: None }),
        };
        let mut op = [2; 32];
        op[..8].copy_from_slice(&n.to_be_bytes());
        assert!(!ledger.insert(&MemberFact { by: dev(2), op: OpHash(op), index: 0, what }));
        assert!(ledger.is_settled(), "fact {n} was judged with all others");
    }
    assert_eq!(ledger.verdicts().members().count(), 3 + FACTS_PER_AUTHOR_MAX / 2);
}
