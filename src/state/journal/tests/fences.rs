//! Removals as fences, between devices: stolen ones, their accomplices, and members that slept.

use super::*;
use crate::core::ids::OpHash;
use crate::core::journal::op::MemberChange;
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{AUTHORS_MAX, FACTS_PER_AUTHOR_MAX};
use crate::core::pairing::{pair_proof, ticket_key};

/// A stolen device's key, in the hands of an attacker who signs anything with it.
struct Thief<'a> {
    identity: &'a Identity,
    group: GroupId,
    nonce: u8,
    last: Option<(u64, OpHash)>,
}

impl<'a> Thief<'a> {
    fn of(identity: &'a Identity, group: GroupId, nonce: u8) -> Self {
        Self { identity, group, nonce, last: None }
    }

    fn says(&mut self, fact: MemberChange) -> VerifiedOp {
        let (seq, prev) = self.last.map_or((1, None), |(seq, hash)| (seq + 1, Some(hash)));
        let hlc = Hlc(NOW_MS << 16 | seq);
        let body = Body { seq, hlc, prev, changes: vec![OpChange::Member(fact)] };
        let op = craft(self.identity, &self.group, self.nonce, body);
        self.last = Some((seq, op.hash()));
        op
    }

    fn removes(&mut self, device: NodeId, fence: Vec<OpHash>) -> VerifiedOp {
        self.says(MemberChange::Remove { device, keep: vec![], fence: Some(fence) })
    }

    fn adds(&mut self, device: NodeId) -> VerifiedOp {
        self.says(MemberChange::Add { device, name: "friend".into() })
    }
}

fn intro_of(of: &Device, by: &Device) -> Vec<VerifiedOp> {
    let ops = by.reader.intro(&of.id()).unwrap();
    ops.into_iter().map(|op| verify(&by.group_id(), op).unwrap()).collect()
}

fn members(device: &Device) -> Vec<NodeId> {
    device.reader.verdicts().unwrap().members().copied().collect()
}

fn ids(devices: &[&Device]) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = devices.iter().map(|device| device.id()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_stolen_device_that_tells_a_sleeper_to_remove_the_founder_dissolves_nothing() {
    let mut devices = Device::group(4);
    let [a, b, c, d] = &mut devices[..] else { unreachable!() };
    // The fence keeps the remover's own introduction, so that its removal counts where it arrives
    // first.
    let fence: Vec<OpHash> = intro_of(b, a).iter().map(VerifiedOp::hash).collect();
    c.journal.remove(&b.id(), NOW_MS).unwrap();
    let mut thief = Thief::of(&b.identity, a.group_id(), 9);
    let strike = [thief.removes(a.id(), fence)];
    d.journal.receive(&b.id(), &strike, NOW_MS).unwrap();
    assert!(!d.reader.verdicts().unwrap().member(&a.id()), "the sleeper believes it");

    // The sleeping device refuses ops by the others, but an introduction shows it that it was lied
    // to.
    let refused = push(c, d);
    assert!(!refused.is_empty());
    let intro = intro_of(c, c);
    d.journal.introduce(&c.id(), &intro, NOW_MS).unwrap();
    sync(c, d);
    sync(a, d);
    sync(a, c);
    for device in [&*a, c, d] {
        assert_eq!(members(device), ids(&[a, c, d]));
        assert!(device.reader.verdicts().unwrap().removed(&b.id()));
    }
    for device in [a, c, d] {
        device.restart();
        assert_eq!(members(device).len(), 3);
        device.fsck();
    }
}

#[test]
fn an_accomplice_that_a_stolen_device_added_is_a_member_nowhere() {
    let mut devices = Device::group(4);
    let [a, b, c, d] = &mut devices[..] else { unreachable!() };
    let group = a.group_id();
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let accomplice = Identity::from_bytes(&[66; 32]);
    let mut thief = Thief::of(&b.identity, group, 9);
    let mut friend = Thief::of(&accomplice, group, 9);
    let add = thief.adds(accomplice.node_id);
    let keeps_itself = friend.says(MemberChange::Remove {
        device: b.id(),
        keep: vec![accomplice.node_id],
        fence: Some(vec![add.hash()]),
    });
    let against_the_founder = friend.removes(a.id(), vec![]);
    let crime = [add, keeps_itself, against_the_founder];
    // The sleeping device receives the crime first, the others receive the removal first.
    d.journal.receive(&b.id(), &crime, NOW_MS).unwrap();
    assert!(d.reader.verdicts().unwrap().member(&accomplice.node_id), "the sleeper believes it");
    let intro = intro_of(a, a);
    d.journal.introduce(&a.id(), &intro, NOW_MS).unwrap();
    sync(a, c);
    sync(c, d);
    sync(a, d);
    for device in [&*a, c, d] {
        assert_eq!(members(device), ids(&[a, c, d]));
    }
    // An introduction does not bring it in either: one that is not believed leaves nothing.
    let (before, ops) = (c.clock(), c.ops().len());
    let crime: Vec<_> = d.ops().into_iter().filter(|op| crime.contains(op)).collect();
    c.journal.introduce(&accomplice.node_id, &crime, NOW_MS).unwrap();
    assert_eq!((c.clock(), c.ops().len()), (before, ops));
    sync_all(&mut devices);
    assert_eq!(devices[0].clock().digest, devices[3].clock().digest);
}

#[test]
fn the_facts_of_a_removed_device_are_judged_the_same_after_a_restart() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    let known = b.admit(4);
    push(b, a);
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    let mut thief = Thief::of(&b.identity, a.group_id(), 9);
    let crime = [thief.removes(c.id(), vec![]), thief.adds(NodeId([77; 32]))];
    a.journal.receive(&c.id(), &crime, NOW_MS).unwrap();
    for _ in 0..2 {
        assert_eq!(members(a), ids(&[a, c, &known]));
        assert_eq!(a.journal.roster().member_count(), 3);
        a.restart();
    }
}

#[test]
fn a_removal_that_did_not_commit_is_not_remembered() {
    let mut devices = Device::group(2);
    let [a, b] = &mut devices[..] else { unreachable!() };
    a.journal.group = None;
    let mut tx = a.journal.begin(NOW_MS).unwrap();
    let fact = MemberChange::Remove { device: b.id(), keep: vec![], fence: Some(vec![]) };
    tx.write_facts(vec![fact]).unwrap();
    assert!(!tx.verdicts().unwrap().member(&b.id()));
    drop(tx);
    assert!(a.journal.begin(NOW_MS).unwrap().verdicts().unwrap().member(&b.id()));
}

#[test]
fn a_group_that_junk_devices_filled_has_room_again_when_their_inviter_is_removed() {
    let mut devices = Device::group(3);
    let [a, b, c] = &mut devices[..] else { unreachable!() };
    let group = a.group_id();
    let mut inviter = Thief::of(&b.identity, group, 9);
    for n in 0..AUTHORS_MAX as u64 {
        let mut key = [0xaa; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        let junk = Identity::from_bytes(&key);
        let add = inviter.adds(junk.node_id);
        // Each writes, so that it takes up a place.
        let write = Thief::of(&junk, group, 9).adds(NodeId(key));
        a.journal.receive(&c.id(), &[add, write], NOW_MS).unwrap();
    }
    let new = Device::new(4);
    let secret = [5; 16];
    let redeem = |a: &mut Device| {
        a.journal.create_token(&ticket_key(&secret), false, NOW_MS, NOW_MS + 60_000).unwrap();
        let proof = pair_proof(&secret, &a.id(), &new.id());
        a.journal.redeem(&new.id(), &proof, "new", NOW_MS).unwrap()
    };
    assert_eq!(redeem(a).unwrap_err(), TokenError::GroupFull);
    // The devices that the removed one introduced stay, unless they are to go with it.
    a.journal.remove(&b.id(), NOW_MS).unwrap();
    assert_eq!(redeem(a).unwrap_err(), TokenError::GroupFull);
    a.journal.remove_with_introduced(&b.id(), NOW_MS).unwrap();
    assert!(redeem(a).is_ok());
    assert!(a.journal.begin(NOW_MS).unwrap().has_log_room(&new.id()).unwrap());
}

#[test]
fn a_local_write_reads_none_of_the_facts_that_hostile_members_told() {
    let work = |facts: usize| {
        let mut devices = Device::group(3);
        let [a, b, c] = &mut devices[..] else { unreachable!() };
        let mut thief = Thief::of(&b.identity, a.group_id(), 9);
        let keep: Vec<NodeId> = (0..AUTHORS_MAX as u8).map(|n| NodeId([n; 32])).collect();
        let ops: Vec<_> = (0..facts as u64)
            .map(|n| {
                let mut device = [0xbb; 32];
                device[..8].copy_from_slice(&n.to_be_bytes());
                let (device, fence) = (NodeId(device), Some(vec![OpHash([1; 32]); 256]));
                thief.says(MemberChange::Remove { device, keep: keep.clone(), fence })
            })
            .collect();
        for ops in ops.chunks(64) {
            a.journal.receive(&c.id(), ops, NOW_MS).unwrap();
        }
        assert_eq!(a.journal.begin(NOW_MS).unwrap().facts_told(&b.id()).unwrap(), facts);
        // Reading the facts meets ops that cannot be decoded.
        let spoil =
            "UPDATE ops SET body = x'00' WHERE arr IN (SELECT op FROM members WHERE kind = 2)";
        a.journal.connection.execute_batch(spoil).unwrap();
        assert!(a.reader.verdicts().is_err());
        a.set("1", "f", 1);
        assert_eq!(a.field("1", "f"), Some(1));
    };
    work(FACTS_PER_AUTHOR_MAX / 2);
    work(FACTS_PER_AUTHOR_MAX);
}
