//! Founding and joining groups, admitting and removing devices.

use super::*;
use crate::core::journal::device_events::DeviceState;
use crate::core::journal::op::MemberChange;
use crate::core::journal::session::Standing;
use crate::core::limits::FACTS_PER_AUTHOR_MAX;
use crate::core::pairing::{TicketSecret, pair_proof, ticket_key};

pub(super) const SECRET: TicketSecret = [6; 16];
pub(super) const MINUTE_MS: u64 = 60_000;

pub(super) fn invite(device: &mut Device) {
    device
        .journal
        .create_token(&ticket_key(&SECRET), false, NOW_MS, NOW_MS + 10 * MINUTE_MS)
        .unwrap();
}

pub(super) fn redeem(
    inviter: &mut Device,
    joiner: &Device,
    secret: &TicketSecret,
    at_ms: u64,
) -> std::result::Result<Admitted, TokenError> {
    let proof = pair_proof(secret, &inviter.id(), &joiner.id());
    inviter.journal.redeem(&joiner.id(), &proof, "joiner", at_ms).unwrap()
}

/// Joins with the inviter's answer, and confirms it to the inviter.
pub(super) fn join(inviter: &mut Device, joiner: &mut Device, admitted: &Admitted) {
    let intro = verified(admitted);
    joiner.journal.join(admitted.group, &intro, NOW_MS).unwrap();
    let add = verify(&admitted.group, admitted.add.clone()).unwrap();
    assert!(inviter.journal.admit(&joiner.id(), &add, NOW_MS).unwrap());
}

pub(super) fn verified(admitted: &Admitted) -> Vec<VerifiedOp> {
    admitted.intro.iter().map(|op| verify(&admitted.group, op.clone()).unwrap()).collect()
}

#[test]
fn a_joiner_is_a_member_only_when_it_has_joined() {
    let mut inviter = Device::founder();
    let (lost, mut joiner) = (Device::new(2), Device::new(3));
    let before = (inviter.clock(), inviter.reader.members().unwrap());
    invite(&mut inviter);
    redeem(&mut inviter, &lost, &SECRET, NOW_MS).unwrap();
    assert_eq!((inviter.clock(), inviter.reader.members().unwrap()), before);
    assert_eq!(inviter.journal.roster().standing(&lost.id()), Standing::Stranger);
    inviter.restart();
    assert_eq!(inviter.reader.members().unwrap(), before.1);
    invite(&mut inviter);
    let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
    join(&mut inviter, &mut joiner, &admitted);
    assert_eq!(inviter.journal.roster().standing(&joiner.id()), Standing::Member);
    assert_eq!(inviter.journal.roster().standing(&lost.id()), Standing::Stranger);
    sync(&mut inviter, &mut joiner);
    inviter.fsck();
    joiner.fsck();
}

#[test]
fn a_joiner_of_which_the_inviter_heard_no_more_is_let_in_by_its_introduction() {
    let mut inviter = Device::founder();
    let (mut lost, mut joiner) = (Device::new(2), Device::new(3));
    invite(&mut inviter);
    let unheard = redeem(&mut inviter, &lost, &SECRET, NOW_MS).unwrap();
    lost.journal.join(unheard.group, &verified(&unheard), NOW_MS).unwrap();
    // The inviter continues: it writes, restarts, and admits another device.
    inviter.set("1", "f", 1);
    inviter.restart();
    invite(&mut inviter);
    let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
    join(&mut inviter, &mut joiner, &admitted);
    let intro = lost.reader.intro(&lost.id()).unwrap();
    let group = inviter.group_id();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    let received = inviter.journal.introduce(&lost.id(), &intro, NOW_MS).unwrap();
    assert_eq!((received.forked, received.rotated), (Vec::new(), false));
    for device in [&lost, &joiner] {
        assert_eq!(inviter.journal.roster().standing(&device.id()), Standing::Member);
    }
    sync(&mut inviter, &mut lost);
    sync(&mut inviter, &mut joiner);
    assert_eq!(lost.field("1", "f"), Some(1));
    assert_eq!(inviter.reader.members().unwrap(), joiner.reader.members().unwrap());
    assert!(inviter.reader.clock().unwrap().entries.iter().all(|entry| !entry.forked));
    inviter.fsck();
}

#[test]
fn joiners_that_joined_cost_one_log_together() {
    let mut inviter = Device::founder();
    for n in 2..6 {
        let mut joiner = Device::new(n);
        invite(&mut inviter);
        let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
        join(&mut inviter, &mut joiner, &admitted);
    }
    let stats = inviter.reader.stats().unwrap();
    assert_eq!(stats.logs.iter().filter(|log| log.author == inviter.id()).count(), 2);
    inviter.fsck();
}

#[test]
fn a_restored_journal_signs_no_number_of_its_log_for_joiners_again() {
    let mut inviter = Device::founder();
    let mut first = Device::new(2);
    invite(&mut inviter);
    let admitted = redeem(&mut inviter, &first, &SECRET, NOW_MS).unwrap();
    join(&mut inviter, &mut first, &admitted);
    let log = verified(&admitted).last().unwrap().log();
    inviter.journal.restored().unwrap();
    invite(&mut inviter);
    let admitted = redeem(&mut inviter, &Device::new(3), &SECRET, NOW_MS).unwrap();
    assert_ne!(verified(&admitted).last().unwrap().log(), log);
}

/// A device at the end of a chain of this many ops, each of which adds the next device.
fn at_the_end_of(ops: u8) -> Device {
    let identity = |n: u8| Identity::from_bytes(&[n; 32]);
    let group = crate::core::journal::op::group_id(&identity(1).node_id, &[9; 16]);
    let hlc = crate::core::journal::stamp::Hlc::from_ms(NOW_MS);
    let add = |n: u8| {
        let mut changes = vec![OpChange::Member(MemberChange::Add {
            device: identity(n + 1).node_id,
            name: n.to_string(),
        })];
        if n == 1 {
            let genesis = MemberChange::Genesis { nonce: [9; 16], name: "one".into() };
            changes.insert(0, OpChange::Member(genesis));
        }
        craft(&identity(n), &group, 1, Body { seq: 1, prev: None, hlc, changes })
    };
    let chain: Vec<_> = (1..=ops).map(add).collect();
    let mut device = Device::new(ops + 1);
    device.journal.join(group, &chain, NOW_MS).unwrap();
    device
}

#[test]
fn a_chain_that_would_be_too_long_uses_up_no_ticket_and_adds_nobody() {
    let most = u8::try_from(crate::core::limits::INTRO_OPS_MAX).unwrap();
    let joiner = Device::new(200);
    let mut last = at_the_end_of(most);
    invite(&mut last);
    for _ in 0..2 {
        let refused = redeem(&mut last, &joiner, &SECRET, NOW_MS);
        assert_eq!(refused, Err(TokenError::ChainTooLong));
    }
    assert!(last.journal.roster().is_pairing_open(NOW_MS));
    let mut before = at_the_end_of(most - 1);
    invite(&mut before);
    let admitted = redeem(&mut before, &joiner, &SECRET, NOW_MS).unwrap();
    assert_eq!(admitted.intro.len(), usize::from(most));
}

#[test]
fn a_device_alone_whose_clock_was_ahead_is_joined_once_its_clock_is_right() {
    let hours = 60 * MINUTE_MS;
    let mut inviter = Device::new(1);
    inviter.journal.found("one", NOW_MS + 3 * hours).unwrap();
    inviter.now_ms = NOW_MS + 3 * hours;
    inviter.set("1", "f", 1);
    inviter.now_ms = NOW_MS;
    let group = inviter.group_id();
    invite(&mut inviter);
    let mut joiner = Device::new(2);
    let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
    join(&mut inviter, &mut joiner, &admitted);
    assert_eq!(inviter.group_id(), group);
    sync(&mut inviter, &mut joiner);
    assert_eq!(joiner.field("1", "f"), Some(1));
    inviter.fsck();
    joiner.fsck();
}

#[test]
fn stamps_ahead_are_left_where_another_device_may_have_them() {
    let mut devices = Device::group(2);
    let [a, _] = &mut devices[..] else { unreachable!() };
    a.now_ms = NOW_MS + 180 * MINUTE_MS;
    a.set("1", "f", 1);
    let before = a.clock();
    invite(a);
    assert_eq!(a.clock(), before);
}

#[test]
fn nothing_comes_from_a_device_that_was_removed_and_what_others_had_of_it_counts() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    b.set("1", "f", 1);
    push(b, c);
    b.set("2", "f", 2);
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    assert!(push(b, a).iter().all(|r| r.why == RefusedWhy::FromRemoved));
    assert_eq!(a.field("1", "f"), None);
    sync(a, c);
    assert_eq!((a.field("1", "f"), a.field("2", "f")), (Some(1), None));
    assert!(!c.reader.verdicts().unwrap().member(&b.id()));
    push(a, b);
    let draft = Draft { changes: vec![DraftChange::Delete(put("1").key)], expect: vec![] };
    let refused = b.journal.write(&[draft], NOW_MS).unwrap().remove(0);
    assert_eq!(refused, Err(crate::core::journal::draft::DraftError::NotMember));
    a.fsck();
    c.fsck();
}

#[test]
fn what_comes_for_a_group_that_was_left_says_nothing_of_its_sender() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    b.set("1", "f", 1);
    let under_way: Vec<_> = b.ops().into_iter().filter(|op| op.log() == b.open_log()).collect();
    a.journal.start_over("one", NOW_MS).unwrap();
    let received = a.journal.receive(&b.id(), &under_way, NOW_MS).unwrap();
    let why: Vec<_> = received.refused.iter().map(|refused| refused.why).collect();
    assert_eq!(why, [RefusedWhy::OtherGroup]);
}

#[test]
fn a_stranger_is_not_told_that_it_was_removed() {
    let mut device = Device::founder();
    let op = device.ops().remove(0);
    let elsewhere = Device::new(2);
    let newer = Body { seq: 2, prev: Some(op.hash()), ..op.body().clone() };
    let newer = craft(&device.identity, &device.group_id(), 9, newer);
    let received = device.journal.receive(&elsewhere.id(), &[newer], NOW_MS).unwrap();
    assert_eq!(received.refused[0].why, RefusedWhy::NotFromMember);
}

#[test]
fn a_device_learns_of_its_removal_from_signed_ops_alone() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    // The remover is a device that b does not know of.
    let mut d = c.admit(4);
    push(&d, c);
    d.journal.remove(&b.id(), NOW_MS).unwrap();
    sync(&mut d, c);
    let group = c.group_id();
    let shown = c.reader.removal(&b.id()).unwrap();
    let removal: Vec<_> = shown.iter().map(|op| verify(&group, op.clone()).unwrap()).collect();
    // Ops that a device outside the group presents do not count.
    b.journal.take_removal(&NodeId([9; 32]), &removal, NOW_MS).unwrap();
    assert_eq!(b.journal.roster().standing(&b.id()), Standing::Member);
    // Nor does an op that contains more than membership facts.
    c.set("1", "f", 1);
    let others: Vec<_> = c.ops().into_iter().filter(|op| op.log() == c.open_log()).collect();
    b.journal.take_removal(&c.id(), &others, NOW_MS).unwrap();
    assert_eq!((b.field("1", "f"), b.journal.roster().standing(&b.id())), (None, Standing::Member));

    b.journal.take_removal(&c.id(), &removal, NOW_MS).unwrap();
    assert_eq!(b.journal.roster().standing(&b.id()), Standing::Removed);
    assert_eq!(b.reader.group_state(&b.id()).unwrap().unwrap().members.removed, [b.id()]);
    assert!(a.reader.removal(&b.id()).unwrap().is_empty(), "it has not heard");
    b.fsck();
}

#[test]
fn a_member_that_a_thief_deceived_first_hears_of_the_thiefs_removal_from_the_device_it_removed_in_return()
 {
    let mut devices = Device::group(3);
    let [founder, thief, remover] = &mut devices[..] else { unreachable!() };
    remover.journal.remove(&thief.id(), NOW_MS).unwrap();
    for member in [&*founder, &*remover] {
        thief.journal.remove(&member.id(), NOW_MS).unwrap();
    }
    push(thief, founder);
    let standings =
        |at: &Device, of: [&Device; 3]| of.map(|of| at.journal.roster().standing(&of.id()));
    let at_founder = standings(founder, [&*founder, &*thief, &*remover]);
    assert_eq!(at_founder, [Standing::Removed, Standing::Member, Standing::Removed], "deceived");

    let group = remover.group_id();
    let intro = remover.reader.intro(&remover.id()).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    founder.journal.introduce(&remover.id(), &intro, NOW_MS).unwrap();
    let at_founder = standings(founder, [&*founder, &*thief, &*remover]);
    assert_eq!(at_founder, [Standing::Member, Standing::Removed, Standing::Removed]);
    founder.fsck();
}

#[test]
fn whom_the_remover_knew_stays_and_whom_it_did_not_goes() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let known = b.admit(3);
    sync(a, b);
    let unseen = b.admit(4);
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let verdicts = a.reader.verdicts().unwrap();
    assert!(verdicts.member(&known.id()) && !verdicts.member(&unseen.id()));
    // Its introduction does not help: the author is not a member.
    let group = a.group_id();
    let intro = unseen.reader.intro(&unseen.id()).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    a.journal.introduce(&unseen.id(), &intro, NOW_MS).unwrap();
    assert!(!a.reader.verdicts().unwrap().member(&unseen.id()));
    a.fsck();
}

#[test]
fn a_device_met_first_through_its_introduction_is_a_member() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let mut new = a.admit(3);
    assert!(!b.reader.verdicts().unwrap().member(&new.id()));
    let group = a.group_id();
    let intro = new.reader.intro(&new.id()).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    let received = b.journal.introduce(&new.id(), &intro, NOW_MS).unwrap();
    assert!(received.members_changed);
    new.set("1", "f", 1);
    push(&new, b);
    assert_eq!(b.field("1", "f"), Some(1));
    b.fsck();
}

#[test]
fn two_devices_that_remove_each_other_are_both_out() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    b.journal.remove(&a.id(), NOW_MS).unwrap();
    push(a, c);
    // c has not heard of b's removal when b speaks first.
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    b.journal.remove(&a.id(), NOW_MS).unwrap();
    let by_b = b.ops();
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let both: Vec<_> = by_b.into_iter().chain(a.ops()).collect();
    let itself = c.id();
    c.journal.receive(&itself, &both, NOW_MS).unwrap();
    let verdicts = c.reader.verdicts().unwrap();
    assert!(!verdicts.member(&a.id()) && !verdicts.member(&b.id()) && verdicts.member(&c.id()));
}

#[test]
fn an_introduction_that_leads_elsewhere_is_refused_and_leaves_nothing() {
    let mut a = Device::founder();
    let invited = a.admit(2);
    let intro = a.reader.intro(&invited.id()).unwrap();
    let group = a.group_id();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    let mut thief = Device::new(3);
    let refused = thief.journal.join(group, &intro, NOW_MS);
    assert!(matches!(refused, Err(JournalError::BadIntro)));
    assert_eq!((thief.journal.group(), thief.reader.group().unwrap()), (None, None));
    assert!(thief.reader.logs().unwrap().is_empty());
    assert!(matches!(a.journal.found("again", NOW_MS), Err(JournalError::InGroup)));
}

#[test]
fn strangers_that_introduce_each_other_in_a_circle_stay_strangers() {
    let mut a = Device::group(2).remove(0);
    let group = a.group_id();
    let strangers = [Identity::from_bytes(&[71; 32]), Identity::from_bytes(&[72; 32])];
    let add = |by: &Identity, device: NodeId| {
        let fact = MemberChange::Add { device, name: "friend".into() };
        let hlc = crate::core::journal::stamp::Hlc::from_ms(NOW_MS);
        let body = Body { seq: 1, prev: None, hlc, changes: vec![OpChange::Member(fact)] };
        craft(by, &group, 1, body)
    };
    let [one, two] = &strangers;
    let circle = [add(one, two.node_id), add(two, one.node_id)];
    let before = (a.clock(), a.reader.members().unwrap());
    let _ = a.journal.introduce(&one.node_id, &circle, NOW_MS);
    assert_eq!((a.clock(), a.reader.members().unwrap()), before);
    for stranger in &strangers {
        assert_eq!(a.journal.roster().standing(&stranger.node_id), Standing::Stranger);
    }
    a.fsck();
}

#[test]
fn whoever_leaves_forgets_all_and_is_alone_in_a_new_group() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    sync(a, b);
    let group = b.group_id();
    let arr = b.set("1", "f", 2).unwrap().arr;
    assert_ne!(b.journal.start_over("alone", NOW_MS).unwrap(), group);
    assert_eq!(b.record("1"), None);
    b.fsck();
    assert!(b.set("1", "f", 3).unwrap().arr > arr, "numbers of arrival are not used again");
    b.fsck();
}

#[test]
fn a_clock_that_was_never_set_authors_nothing() {
    let mut device = Device::new(1);
    assert!(matches!(device.journal.found("one", 1000), Err(JournalError::ClockNotSet)));
    let mut device = Device::founder();
    device.now_ms = 1000;
    let draft = Draft { changes: vec![DraftChange::Put(put("1"))], expect: vec![] };
    let refused = device.journal.write(&[draft], 1000).unwrap().remove(0);
    assert_eq!(refused, Err(crate::core::journal::draft::DraftError::ClockNotSet));
}

#[test]
fn the_roster_moves_with_each_commit_and_is_there_after_a_restart() {
    let mut inviter = Device::founder();
    let joiner = Device::new(2);
    let roster = inviter.journal.roster();
    assert_eq!(roster.standing(&inviter.id()), Standing::Member);
    assert_eq!(roster.standing(&joiner.id()), Standing::Stranger);
    assert!(!roster.is_pairing_open(NOW_MS));
    invite(&mut inviter);
    let proof = pair_proof(&SECRET, &inviter.id(), &joiner.id());
    assert!(roster.is_pairing_open(NOW_MS) && !roster.is_pairing_open(NOW_MS + 11 * MINUTE_MS));
    assert_eq!(roster.fits(&inviter.id(), &joiner.id(), &proof, NOW_MS), Some(false));
    assert_eq!(roster.fits(&inviter.id(), &joiner.id(), &[1; 32], NOW_MS), None);
    inviter.restart();
    let roster = inviter.journal.roster();
    assert!(roster.is_pairing_open(NOW_MS));
    let mut joiner = joiner;
    let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
    assert!(!roster.is_pairing_open(NOW_MS));
    join(&mut inviter, &mut joiner, &admitted);
    assert_eq!(roster.standing(&joiner.id()), Standing::Member);
    inviter.journal.remove(&joiner.id(), NOW_MS).unwrap();
    assert_eq!(roster.standing(&joiner.id()), Standing::Removed);
    inviter.restart();
    assert_eq!(inviter.journal.roster().standing(&joiner.id()), Standing::Removed);
}

#[test]
fn a_removed_device_writes_nothing_lets_nobody_in_and_may_join_another_group() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    invite(b);
    let group = a.group_id();
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let shown = a.reader.removal(&b.id()).unwrap();
    let removal: Vec<_> = shown.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    b.journal.take_removal(&a.id(), &removal, NOW_MS).unwrap();
    b.restart();
    assert_eq!(b.reader.group_state(&b.id()).unwrap().unwrap().members.removed, [b.id()]);
    let draft = Draft { changes: vec![DraftChange::Put(put("1"))], expect: vec![] };
    let written = b.journal.write(&[draft], NOW_MS).unwrap().remove(0);
    assert_eq!(written, Err(crate::core::journal::draft::DraftError::NotMember));
    let proof = pair_proof(&SECRET, &b.id(), &NodeId([3; 32]));
    let refused = b.journal.redeem(&NodeId([3; 32]), &proof, "three", NOW_MS);
    assert!(matches!(refused, Err(JournalError::Removed)));
    assert!(matches!(
        b.journal.create_token(&[1; 32], false, NOW_MS, NOW_MS + 1),
        Err(JournalError::Removed)
    ));

    let mut other = Device::new(4);
    other.journal.found("four", NOW_MS).unwrap();
    invite(&mut other);
    let admitted = redeem(&mut other, b, &SECRET, NOW_MS).unwrap();
    join(&mut other, b, &admitted);
    let state = b.reader.group_state(&b.id()).unwrap().unwrap();
    assert_eq!((state.group, state.members.removed.len()), (other.group_id(), 0));
    assert!(!b.reader.verdicts().unwrap().author_ok(&a.id()));
    b.fsck();
}

#[test]
fn a_device_alone_leaves_its_group_for_another_and_one_with_others_does_not() {
    let mut inviter = Device::founder();
    invite(&mut inviter);
    let mut alone = Device::new(2);
    alone.journal.found("two", NOW_MS).unwrap();
    alone.set("1", "f", 1);
    let admitted = redeem(&mut inviter, &alone, &SECRET, NOW_MS).unwrap();
    let intro = verified(&admitted);
    alone.journal.join(admitted.group, &intro, NOW_MS).unwrap();
    assert_eq!((alone.group_id(), alone.record("1")), (inviter.group_id(), None));
    assert!(alone.journal.roster().standing(&inviter.id()) == Standing::Member);
    alone.fsck();
    // Joining again is harmless: an answer may be lost and the ticket's owner may pair again.
    alone.journal.join(admitted.group, &intro, NOW_MS).unwrap();

    let mut elsewhere = Device::new(4);
    elsewhere.journal.found("four", NOW_MS).unwrap();
    let other = elsewhere.group_id();
    elsewhere.admit(5);
    invite(&mut inviter);
    let admitted = redeem(&mut inviter, &elsewhere, &SECRET, NOW_MS).unwrap();
    let refused = elsewhere.journal.join(admitted.group, &verified(&admitted), NOW_MS);
    assert!(matches!(refused, Err(JournalError::InGroup)));
    assert_eq!(elsewhere.group_id(), other);
    let next = elsewhere.journal.start_over("four", NOW_MS).unwrap();
    assert_ne!(next, other);
    elsewhere.journal.join(admitted.group, &verified(&admitted), NOW_MS).unwrap();
    elsewhere.fsck();
}

#[test]
fn a_member_that_floods_the_group_with_facts_is_out_everywhere_and_keeps_nobody_from_speaking() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    let (group, adds) = (a.group_id(), FACTS_PER_AUTHOR_MAX as u64 * 3 / 4);
    // Two logs, each within the limit by itself; the second one removes a member.
    let logs = [1, 2].map(|nonce: u8| {
        let mut prev = None;
        let ops = (1..=adds).map(|seq| {
            let mut device = [nonce; 32];
            device[..8].copy_from_slice(&seq.to_be_bytes());
            let device = NodeId(device);
            let fact = match (nonce, seq) {
                (2, 1) => {
                    MemberChange::Remove { device: c.id(), keep: vec![], fence: Some(vec![]) }
                }
                _ => MemberChange::Add { device, name: "x".into() },
            };
            let hlc = crate::core::journal::stamp::Hlc(NOW_MS << 16 | seq);
            let body = Body { seq, hlc, prev, changes: vec![OpChange::Member(fact)] };
            let op = craft(&b.identity, &group, nonce, body);
            prev = Some(op.hash());
            op
        });
        ops.collect::<Vec<_>>()
    });
    let mut expected = [a.id(), c.id()];
    expected.sort_unstable();
    let from = a.id();
    for (device, order) in [(&mut *a, [0, 1]), (&mut *c, [1, 0])] {
        for log in order {
            device.journal.receive(&from, &logs[log], NOW_MS).unwrap();
        }
        let verdicts = device.reader.verdicts().unwrap();
        assert_eq!(verdicts.members().copied().collect::<Vec<_>>(), expected);
    }
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let refused = push(a, c);
    assert!(!refused.is_empty() && refused.iter().all(|refused| refused.author == b.id()));
    assert!(c.reader.verdicts().unwrap().removed(&b.id()));
}

#[test]
fn a_device_tells_no_more_facts_than_others_listen_to() {
    let mut device = Device::founder();
    for n in 1..FACTS_PER_AUTHOR_MAX as u64 {
        let mut id = [9; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        device.journal.add(&NodeId(id), "x", NOW_MS).unwrap();
    }
    let refused = device.journal.add(&NodeId([8; 32]), "x", NOW_MS);
    assert!(matches!(refused, Err(JournalError::UsedUp { .. })), "{refused:?}");
    invite(&mut device);
    let full = redeem(&mut device, &Device::new(2), &SECRET, NOW_MS);
    assert_eq!(full, Err(TokenError::GroupFull));
    assert!(device.reader.verdicts().unwrap().member(&device.id()));
}

#[test]
fn a_join_that_fails_leaves_the_group_as_it_was() {
    let mut a = Device::founder();
    let invited = a.admit(2);
    let group = a.group_id();
    let intro = a.reader.intro(&invited.id()).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    let mut thief = Device::new(3);
    thief.journal.found("three", NOW_MS).unwrap();
    thief.set("1", "f", 1);
    let own = thief.group_id();
    assert!(matches!(thief.journal.join(group, &intro, NOW_MS), Err(JournalError::BadIntro)));
    assert_eq!((thief.group_id(), thief.field("1", "f")), (own, Some(1)));
    assert_eq!(thief.reader.group().unwrap(), Some(own));
    thief.fsck();
    let mut slow = Device::new(2);
    let behind_ms = NOW_MS - 30 * MINUTE_MS;
    slow.journal.found("two", behind_ms).unwrap();
    assert!(matches!(slow.journal.join(group, &intro, behind_ms), Err(JournalError::ClockBehind)));
}

#[test]
fn names_and_addresses_are_a_devices_own_word_or_what_was_known_before() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let of_b = |a: &Device, b: &Device| {
        let state = a.reader.group_state(&a.id()).unwrap().unwrap();
        let member = state.members.members.into_iter().find(|m| m.node_id == b.id()).unwrap();
        (member.name, member.addresses)
    };
    assert_eq!(of_b(a, b), ("joiner".into(), vec![]));
    a.journal.reached(&b.id(), &["10.0.0.1:7".into(), "with a blank".into()]).unwrap();
    a.journal.reached(&NodeId([9; 32]), &["10.0.0.9:7".into()]).unwrap();
    assert_eq!(of_b(a, b), ("joiner".into(), vec!["10.0.0.1:7".into()]));
    let state = DeviceState {
        name: "b\u{1b}ed".into(),
        addresses: BTreeSet::from(["10.0.0.2:7".to_owned()]),
        ..DeviceState::default()
    };
    b.write(vec![DraftChange::Put(state.put_over(None).unwrap())]);
    sync(a, b);
    assert_eq!(of_b(a, b), ("bed".into(), vec!["10.0.0.1:7".into(), "10.0.0.2:7".into()]));
    assert_eq!(b.reader.group_state(&b.id()).unwrap().unwrap().name, "bed");
}

#[test]
fn a_device_that_lost_its_journal_says_so_until_it_is_in_a_group_with_others() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let mut lost = Device::new(2);
    assert_eq!(lost.id(), b.id(), "the key is there");
    lost.journal.found_anew("two", NOW_MS).unwrap();
    assert!(lost.journal.roster().is_founded_anew() && !b.journal.roster().is_founded_anew());
    lost.restart();
    assert!(lost.journal.roster().is_founded_anew(), "also after a restart");
    let intro = a.reader.intro(&lost.id()).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&a.group_id(), op).unwrap()).collect();
    lost.journal.join(a.group_id(), &intro, NOW_MS).unwrap();
    assert!(!lost.journal.roster().is_founded_anew());
    lost.restart();
    assert!(!lost.journal.roster().is_founded_anew());
}
