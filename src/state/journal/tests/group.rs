//! Founding, joining, letting in and shutting out.

use super::*;
use crate::core::pairing::{TicketSecret, pair_proof, ticket_key};

const SECRET: TicketSecret = [6; 16];
const MINUTE_MS: u64 = 60_000;

fn invite(device: &mut Device) {
    device.journal.create_token(&ticket_key(&SECRET), NOW_MS, NOW_MS + 10 * MINUTE_MS).unwrap();
}

fn redeem(
    inviter: &mut Device,
    joiner: &Device,
    secret: &TicketSecret,
    at_ms: u64,
) -> std::result::Result<Admitted, TokenError> {
    let proof = pair_proof(secret, &inviter.id(), &joiner.id());
    inviter.journal.redeem(&joiner.id(), &proof, "joiner", at_ms).unwrap()
}

fn verified(admitted: &Admitted) -> Vec<VerifiedOp> {
    admitted.intro.iter().map(|op| verify(&admitted.group, op.clone()).unwrap()).collect()
}

#[test]
fn a_token_lets_one_device_in_once() {
    let mut inviter = Device::founder();
    invite(&mut inviter);
    let (mut joiner, other) = (Device::new(2), Device::new(3));
    let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
    assert_eq!(redeem(&mut inviter, &other, &SECRET, NOW_MS), Err(TokenError::NoToken));
    joiner.journal.join(admitted.group, &verified(&admitted), NOW_MS).unwrap();
    assert!(joiner.reader.verdicts().unwrap().member(&inviter.id()));
    joiner.set("1", "f", 1);
    sync(&mut inviter, &mut joiner);
    assert_eq!(inviter.field("1", "f"), Some(1));
    assert_eq!(inviter.reader.members().unwrap(), joiner.reader.members().unwrap());
    inviter.fsck();
    joiner.fsck();
}

#[test]
fn wrong_proofs_use_a_token_up() {
    let mut inviter = Device::founder();
    invite(&mut inviter);
    let joiner = Device::new(2);
    for _ in 0..5 {
        let guessed = redeem(&mut inviter, &joiner, &[7; 16], NOW_MS);
        assert_eq!(guessed, Err(TokenError::WrongProof));
        inviter.restart();
    }
    assert_eq!(redeem(&mut inviter, &joiner, &SECRET, NOW_MS), Err(TokenError::NoToken));
}

#[test]
fn a_token_is_good_for_its_time_only() {
    for at_ms in [NOW_MS + 10 * MINUTE_MS, NOW_MS - 1] {
        let mut inviter = Device::founder();
        invite(&mut inviter);
        let joiner = Device::new(2);
        assert_eq!(redeem(&mut inviter, &joiner, &SECRET, at_ms), Err(TokenError::Expired));
        assert_eq!(redeem(&mut inviter, &joiner, &SECRET, NOW_MS), Err(TokenError::NoToken));
    }
}

#[test]
fn a_removed_device_comes_back_with_no_token() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    invite(a);
    assert_eq!(redeem(a, b, &SECRET, NOW_MS), Err(TokenError::JoinerRemoved));
    assert_eq!(redeem(a, &Device::new(1), &SECRET, NOW_MS), Err(TokenError::Ourselves));
}

#[test]
fn nothing_comes_from_a_device_that_was_removed_and_what_others_had_of_it_counts() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    b.set("1", "f", 1);
    push(b, c);
    b.set("2", "f", 2);
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    assert!(push(b, a).iter().all(|r| r.why == RefusedWhy::NotFromMember));
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
fn whom_the_remover_knew_stays_and_whom_it_did_not_goes() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    let known = b.admit(3);
    sync(a, b);
    let unseen = b.admit(4);
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let verdicts = a.reader.verdicts().unwrap();
    assert!(verdicts.member(&known.id()) && !verdicts.member(&unseen.id()));
    // Its introduction does not help: it is by somebody who is no member.
    let group = a.group_id();
    let intro = unseen.reader.intro(&unseen.id()).unwrap();
    let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
    a.journal.introduce(&intro, NOW_MS).unwrap();
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
    let received = b.journal.introduce(&intro, NOW_MS).unwrap();
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
fn whoever_leaves_forgets_all_and_may_found_or_join_again() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.set("1", "f", 1);
    sync(a, b);
    let group = b.group_id();
    let arr = b.set("1", "f", 2).unwrap().arr;
    b.journal.leave().unwrap();
    assert_eq!((b.journal.group(), b.record("1")), (None, None));
    assert!(matches!(
        b.journal.add(&a.id(), "a", NOW_MS),
        Err(JournalError::NoGroup | JournalError::Removed)
    ));
    b.fsck();
    assert_ne!(b.journal.found("alone", NOW_MS).unwrap(), group);
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
