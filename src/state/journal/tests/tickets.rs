//! Tickets: whom one lets in, how often, and until when.

use std::time::{Duration, Instant};

use super::group::{MINUTE_MS, SECRET, invite, join, redeem};
use super::*;
use crate::core::pairing::{pair_proof, ticket_id, ticket_key};

#[test]
fn a_token_lets_one_device_in_once() {
    let mut inviter = Device::founder();
    invite(&mut inviter);
    let (mut joiner, other) = (Device::new(2), Device::new(3));
    let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
    assert_eq!(redeem(&mut inviter, &other, &SECRET, NOW_MS), Err(TokenError::NoToken));
    join(&mut inviter, &mut joiner, &admitted);
    assert!(joiner.reader.verdicts().unwrap().member(&inviter.id()));
    joiner.set("1", "f", 1);
    sync(&mut inviter, &mut joiner);
    assert_eq!(inviter.field("1", "f"), Some(1));
    assert_eq!(inviter.reader.members().unwrap(), joiner.reader.members().unwrap());
    inviter.fsck();
    joiner.fsck();
}

#[test]
fn wrong_proofs_use_no_ticket_up() {
    let mut inviter = Device::founder();
    invite(&mut inviter);
    let joiner = Device::new(2);
    for guess in 7..107 {
        let guessed = redeem(&mut inviter, &joiner, &[guess; 16], NOW_MS);
        assert_eq!(guessed, Err(TokenError::WrongProof));
    }
    assert!(redeem(&mut inviter, &joiner, &SECRET, NOW_MS).is_ok());
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
fn a_wall_clock_set_back_does_not_lengthen_a_token() {
    let mut inviter = Device::founder();
    let (joiner, made) = (Device::new(2), Instant::now());
    let until_ms = NOW_MS + 10 * MINUTE_MS;
    inviter
        .journal
        .create_token_at(&ticket_key(&SECRET), false, 1, NOW_MS, made, until_ms)
        .unwrap();
    let proof = pair_proof(&SECRET, &inviter.id(), &joiner.id());
    let late = made + Duration::from_secs(601);
    let redeemed = inviter.journal.redeem_at(&joiner.id(), &proof, "joiner", NOW_MS + 1, late);
    assert_eq!(redeemed.unwrap(), Err(TokenError::Expired));
}

#[test]
fn a_ticket_whose_digits_must_be_compared_stays_so_through_a_restart() {
    let mut inviter = Device::founder();
    let joiner = Device::new(2);
    let until_ms = NOW_MS + 10 * MINUTE_MS;
    let other = [7; 16];
    inviter.journal.create_token(&ticket_key(&SECRET), true, NOW_MS, until_ms).unwrap();
    inviter.journal.create_token(&ticket_key(&other), false, NOW_MS, until_ms).unwrap();
    for _ in 0..2 {
        let roster = inviter.journal.roster();
        for (secret, verify) in [(SECRET, true), (other, false)] {
            let proof = pair_proof(&secret, &inviter.id(), &joiner.id());
            let fits = roster.fits(&inviter.id(), &joiner.id(), &proof, NOW_MS);
            assert_eq!(fits, Some(verify));
        }
        inviter.restart();
    }
}

#[test]
fn a_ticket_for_three_devices_lets_in_three_and_no_fourth_through_restarts() {
    let mut inviter = Device::founder();
    let until_ms = NOW_MS + 10 * MINUTE_MS;
    inviter.journal.create_token_for(&ticket_key(&SECRET), false, 3, NOW_MS, until_ms).unwrap();
    for (left, number) in [(2, 2), (1, 3)] {
        let mut joiner = Device::new(number);
        let admitted = redeem(&mut inviter, &joiner, &SECRET, NOW_MS).unwrap();
        join(&mut inviter, &mut joiner, &admitted);
        inviter.restart();
        let tickets = inviter.journal.roster().tickets(NOW_MS);
        assert_eq!((tickets[0].uses, tickets[0].left), (3, left));
    }
    // A pairing that broke off has used the ticket, too: its op may come back any time.
    redeem(&mut inviter, &Device::new(4), &SECRET, NOW_MS).unwrap();
    inviter.restart();
    assert_eq!(inviter.journal.roster().tickets(NOW_MS), []);
    assert!(!inviter.journal.roster().is_pairing_open(NOW_MS));
    let refused = redeem(&mut inviter, &Device::new(5), &SECRET, NOW_MS);
    assert_eq!(refused.unwrap_err(), TokenError::NoToken);
    inviter.fsck();
}

#[test]
fn a_ticket_for_many_devices_expires_for_all_of_them() {
    let mut inviter = Device::founder();
    let until_ms = NOW_MS + 10 * MINUTE_MS;
    inviter.journal.create_token_for(&ticket_key(&SECRET), false, 9, NOW_MS, until_ms).unwrap();
    redeem(&mut inviter, &Device::new(2), &SECRET, NOW_MS).unwrap();
    let late = redeem(&mut inviter, &Device::new(3), &SECRET, until_ms);
    assert_eq!(late.unwrap_err(), TokenError::Expired);
    assert_eq!(inviter.journal.roster().tickets(until_ms), []);
}

#[test]
fn a_revoked_ticket_lets_nobody_in_from_its_answer_on_and_others_stay_good() {
    let mut inviter = Device::founder();
    let until_ms = NOW_MS + 10 * MINUTE_MS;
    let other = [7; 16];
    inviter.journal.create_token_for(&ticket_key(&SECRET), false, 5, NOW_MS, until_ms).unwrap();
    inviter.journal.create_token_for(&ticket_key(&other), true, 1, NOW_MS + 1, until_ms).unwrap();
    let ids: Vec<String> =
        inviter.journal.roster().tickets(NOW_MS + 1).into_iter().map(|ticket| ticket.id).collect();
    assert_eq!(ids, [ticket_id(&ticket_key(&SECRET)), ticket_id(&ticket_key(&other))]);
    assert_eq!(inviter.journal.revoke_tokens(Some("00000000"), NOW_MS + 1).unwrap(), [""; 0]);
    let revoked = inviter.journal.revoke_tokens(Some(&ids[0]), NOW_MS + 1).unwrap();
    assert_eq!(revoked, ids[..1]);
    for _ in 0..2 {
        let joiner = Device::new(2);
        let proof = pair_proof(&SECRET, &inviter.id(), &joiner.id());
        let roster = inviter.journal.roster();
        assert_eq!(roster.fits(&inviter.id(), &joiner.id(), &proof, NOW_MS + 1), None);
        let refused = redeem(&mut inviter, &joiner, &SECRET, NOW_MS + 1);
        assert_eq!(refused.unwrap_err(), TokenError::WrongProof);
        assert_eq!(inviter.journal.roster().tickets(NOW_MS + 1).len(), 1);
        inviter.restart();
    }
    redeem(&mut inviter, &Device::new(3), &other, NOW_MS + 1).unwrap();
    assert_eq!(inviter.journal.revoke_tokens(None, NOW_MS + 1).unwrap(), [""; 0]);
}

#[test]
fn a_proof_made_for_other_devices_or_roles_is_wrong() {
    let mut inviter = Device::founder();
    invite(&mut inviter);
    let (joiner, other) = (Device::new(2), Device::new(3));
    for (to, by) in [(inviter.id(), other.id()), (joiner.id(), inviter.id())] {
        let proof = pair_proof(&SECRET, &to, &by);
        let redeemed = inviter.journal.redeem(&joiner.id(), &proof, "joiner", NOW_MS).unwrap();
        assert_eq!(redeemed, Err(TokenError::WrongProof));
    }
}
