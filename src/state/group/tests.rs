//! What the group promises: tickets, members, removals, crashes.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Barrier;

use proptest::prelude::*;

use super::*;
use crate::core::pairing::{ADDRESS_BYTES_MAX, pair_proof};

const US: NodeId = NodeId([1; 32]);
const JOINER: NodeId = NodeId([2; 32]);
const OTHER: NodeId = NodeId([3; 32]);
const SECRET: TicketSecret = [9; 16];
const NOW: i64 = 1_700_000_000_000;
const TTL: i64 = 600_000;

struct Fixture {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    group: Group,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let group = Group::open(&path, US, "desk", NOW).unwrap();
    Fixture { _dir: dir, path, group }
}

fn with_ticket() -> Fixture {
    let fixture = fixture();
    fixture.group.create_ticket(&SECRET, NOW, TTL).unwrap();
    fixture
}

fn redeem(group: &Group, joiner: &NodeId) -> Result<Redeemed, RedeemError> {
    group.redeem(NOW, joiner, &pair_proof(&SECRET, &US, joiner), "phone", &[])
}

fn node(n: u16) -> NodeId {
    let mut bytes = [0xaa; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    NodeId(bytes)
}

fn told(n: u16, name: &str, named_ms: i64) -> Member {
    Member { node_id: node(n), name: name.into(), named_ms, addresses: vec![] }
}

/// In alphabetical order.
fn names(group: &Group) -> Vec<String> {
    let members = group.members().unwrap();
    let mut names: Vec<String> = members.into_iter().map(|m| m.name).collect();
    names.sort();
    names
}

#[test]
fn a_fresh_device_is_alone_in_a_group_of_its_own() {
    let (a, b) = (fixture(), fixture());
    assert_ne!(a.group.group_id().unwrap(), b.group.group_id().unwrap());
    assert_eq!(names(&a.group), ["desk"]);
    assert!(a.group.is_member(&US).unwrap());
    assert!(!a.group.is_member(&OTHER).unwrap());
    assert!(!a.group.outstanding_tickets(NOW).unwrap());
}

#[test]
fn everything_is_there_after_a_restart() {
    let Fixture { _dir, path, group } = with_ticket();
    group.rename("Desk\u{1b} 2", NOW + 1).unwrap();
    redeem(&group, &JOINER).unwrap();
    group.create_ticket(&[1; 16], NOW, TTL).unwrap();
    group.merge(&[], &[OTHER], NOW).unwrap();
    let before = (group.group_id().unwrap(), group.members().unwrap());
    drop(group);
    let group = Group::open(&path, US, "another name", NOW).unwrap();
    assert_eq!((group.group_id().unwrap(), group.members().unwrap()), before);
    assert_eq!(group.name().unwrap(), "Desk 2");
    assert_eq!(group.removed().unwrap(), [OTHER]);
    assert!(group.outstanding_tickets(NOW).unwrap());
}

#[test]
fn the_state_of_another_device_is_refused() {
    let fixture = fixture();
    drop(fixture.group);
    let said = Group::open(&fixture.path, OTHER, "x", NOW).unwrap_err();
    assert!(said.to_string().contains(&US.short()), "{said}");
}

#[test]
fn a_damaged_state_is_refused_and_left_as_it_is() {
    let fixture = fixture();
    drop(fixture.group);
    std::fs::write(&fixture.path, "no database, but long enough to be taken for one ".repeat(99))
        .unwrap();
    let before = std::fs::read(&fixture.path).unwrap();
    let said = Group::open(&fixture.path, US, "x", NOW).unwrap_err();
    assert!(said.to_string().contains("state.db cannot be used"), "{said}");
    assert_eq!(std::fs::read(&fixture.path).unwrap(), before);
}

#[test]
fn a_ticket_lets_one_device_in_once() {
    let Fixture { group, .. } = with_ticket();
    let redeemed = redeem(&group, &JOINER).unwrap();
    assert_eq!(redeemed.group_id, group.group_id().unwrap());
    let ids: Vec<NodeId> = redeemed.members.iter().map(|m| m.node_id).collect();
    assert_eq!(ids, [US, JOINER]);
    assert!(group.is_member(&JOINER).unwrap());
    assert!(!group.outstanding_tickets(NOW).unwrap());
    for joiner in [JOINER, OTHER] {
        assert!(matches!(redeem(&group, &joiner), Err(RedeemError::NoTicket)));
    }
    assert!(!group.is_member(&OTHER).unwrap());
}

#[test]
fn a_ticket_ends_at_its_expiry_and_when_the_clock_was_set_back_behind_its_start() {
    let proof = pair_proof(&SECRET, &US, &JOINER);
    for (now_ms, ok) in
        [(NOW + TTL - 1, true), (NOW + TTL, false), (NOW + TTL + 1000, false), (NOW - 1, false)]
    {
        let Fixture { group, .. } = with_ticket();
        assert_eq!(group.outstanding_tickets(now_ms).unwrap(), ok, "{now_ms}");
        let outcome = group.redeem(now_ms, &JOINER, &proof, "phone", &[]);
        match outcome {
            Ok(_) => assert!(ok, "{now_ms}"),
            Err(RedeemError::Expired) => assert!(!ok, "{now_ms}"),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(group.is_member(&JOINER).unwrap(), ok);
    }
}

#[test]
fn a_wall_clock_set_back_does_not_lengthen_a_ticket() {
    let Fixture { group, .. } = fixture();
    let start = Instant::now();
    group.create_ticket_at(&SECRET, NOW, start, TTL).unwrap();
    let ttl = Duration::from_millis(TTL as u64);
    let proof = pair_proof(&SECRET, &US, &JOINER);
    let refused = group.redeem_at(NOW + 1, start + ttl, &JOINER, &proof, "phone", &[]);
    assert!(matches!(refused, Err(RedeemError::Expired)));
}

#[test]
fn five_wrong_proofs_are_the_end_of_every_outstanding_ticket() {
    let Fixture { group, .. } = with_ticket();
    group.create_ticket(&[1; 16], NOW, TTL).unwrap();
    for attempt in 1..=5 {
        assert!(group.outstanding_tickets(NOW).unwrap(), "{attempt}");
        let refused = group.redeem(NOW, &JOINER, &[attempt; 32], "phone", &[]);
        assert!(matches!(refused, Err(RedeemError::WrongProof)), "{attempt}");
    }
    assert!(!group.outstanding_tickets(NOW).unwrap());
    assert!(matches!(redeem(&group, &JOINER), Err(RedeemError::NoTicket)));
}

#[test]
fn the_fifth_try_may_still_be_the_right_one() {
    let Fixture { group, .. } = with_ticket();
    for attempt in 1..=4 {
        group.redeem(NOW, &JOINER, &[attempt; 32], "phone", &[]).unwrap_err();
    }
    redeem(&group, &JOINER).unwrap();
}

#[test]
fn a_proof_made_for_other_devices_or_roles_is_wrong() {
    let Fixture { group, .. } = with_ticket();
    for proof in [
        pair_proof(&SECRET, &US, &OTHER),
        pair_proof(&SECRET, &JOINER, &US),
        pair_proof(&SECRET, &OTHER, &JOINER),
        pair_proof(&[0; 16], &US, &JOINER),
    ] {
        let refused = group.redeem(NOW, &JOINER, &proof, "phone", &[]);
        assert!(matches!(refused, Err(RedeemError::WrongProof)));
    }
    assert_eq!(names(&group), ["desk"]);
}

#[test]
fn of_two_joiners_racing_with_one_ticket_exactly_one_gets_in() {
    for _ in 0..20 {
        let Fixture { group, .. } = with_ticket();
        let start = Barrier::new(2);
        let joined = std::thread::scope(|scope| {
            let race = |joiner| {
                let (group, start) = (&group, &start);
                scope.spawn(move || {
                    start.wait();
                    redeem(group, &joiner).is_ok()
                })
            };
            let racers = [race(JOINER), race(OTHER)];
            racers.map(|racer| racer.join().unwrap())
        });
        assert!(joined[0] ^ joined[1], "{joined:?}");
        assert_eq!(group.is_member(&JOINER).unwrap(), joined[0]);
        assert_eq!(group.is_member(&OTHER).unwrap(), joined[1]);
    }
}

#[test]
fn a_removed_device_cannot_come_back_with_a_ticket_nor_spend_it() {
    let Fixture { group, .. } = with_ticket();
    group.merge(&[], &[JOINER], NOW).unwrap();
    for _ in 0..6 {
        assert!(matches!(redeem(&group, &JOINER), Err(RedeemError::JoinerRemoved)));
    }
    redeem(&group, &OTHER).unwrap();
}

#[test]
fn a_removed_device_lets_nobody_in_and_keeps_its_state() {
    let Fixture { group, .. } = with_ticket();
    let changes = group.merge(&[told(7, "a", 1)], &[US], NOW).unwrap();
    assert_eq!(changes.removed, [US]);
    assert!(group.we_are_removed().unwrap());
    assert_eq!((group.name().unwrap(), names(&group)), ("desk".into(), vec!["a".into()]));
    assert!(matches!(redeem(&group, &JOINER), Err(RedeemError::WeAreRemoved)));
    let refused = group.create_ticket(&[1; 16], NOW, TTL);
    assert!(matches!(refused, Err(TicketError::WeAreRemoved)));
}

#[test]
fn only_so_many_tickets_are_outstanding() {
    let Fixture { group, .. } = fixture();
    for n in 0..TICKETS_MAX {
        group.create_ticket(&[n as u8; 16], NOW, TTL).unwrap();
    }
    let refused = group.create_ticket(&[99; 16], NOW, TTL);
    assert!(matches!(refused, Err(TicketError::TooMany)));
    group.create_ticket(&[99; 16], NOW + TTL, TTL).unwrap();
}

#[test]
fn the_secret_itself_is_not_stored() {
    let Fixture { path, group, _dir } = with_ticket();
    drop(group);
    let stored = std::fs::read(path).unwrap();
    assert!(stored.windows(32).any(|w| w == ticket_key(&SECRET)));
    assert!(!stored.windows(16).any(|w| w == SECRET));
}

#[test]
fn a_device_alone_enters_the_group_of_its_inviter() {
    let (inviter, joiner) = (with_ticket().group, fixture());
    let told = redeem(&inviter, &JOINER).unwrap();
    let group = Group::open(&joiner.path, US, "x", NOW).unwrap();
    group.create_ticket(&[1; 16], NOW, TTL).unwrap();
    let changes = group.join(&told.group_id, &told.members, &[OTHER], NOW).unwrap();
    assert_eq!(changes.added.len(), 1);
    assert_eq!(group.group_id().unwrap(), told.group_id);
    assert_eq!(group.removed().unwrap(), [OTHER]);
    assert!(!group.outstanding_tickets(NOW).unwrap());
    // The answer may come twice.
    assert!(group.join(&told.group_id, &told.members, &[OTHER], NOW).unwrap().is_empty());
}

#[test]
fn a_device_with_a_group_of_its_own_joins_no_other() {
    let Fixture { group, .. } = with_ticket();
    redeem(&group, &JOINER).unwrap();
    let before = (group.group_id().unwrap(), group.members().unwrap());
    let next = GroupId([5; 32]);
    let refused = group.join(&next, &[told(7, "a", 1)], &[], NOW);
    assert!(matches!(refused, Err(JoinError::AlreadyInGroup { n: 1 })));
    assert_eq!((group.group_id().unwrap(), group.members().unwrap()), before);
}

#[test]
fn a_members_word_that_this_device_was_removed_counts_for_that_group_alone() {
    let Fixture { group, .. } = fixture();
    group.we_were_removed(&GroupId([5; 32]), NOW).unwrap();
    assert!(!group.we_are_removed().unwrap());
    group.we_were_removed(&group.group_id().unwrap(), NOW).unwrap();
    assert!(group.we_are_removed().unwrap());
    group.join(&GroupId([5; 32]), &[told(8, "b", 1)], &[], NOW).unwrap();
    assert!(!group.we_are_removed().unwrap());
}

#[test]
fn a_group_that_removed_this_device_is_not_joined() {
    let Fixture { group, .. } = fixture();
    let before = group.group_id().unwrap();
    let refused = group.join(&GroupId([5; 32]), &[told(7, "a", 1)], &[US], NOW);
    assert!(matches!(refused, Err(JoinError::RemovedThere)));
    assert_eq!(group.group_id().unwrap(), before);
}

#[test]
fn a_removed_device_may_join_another_group() {
    let Fixture { group, .. } = fixture();
    group.merge(&[told(7, "a", 1)], &[US], NOW).unwrap();
    group.join(&GroupId([5; 32]), &[told(8, "b", 1)], &[], NOW).unwrap();
    assert!(!group.we_are_removed().unwrap());
    assert_eq!(names(&group), ["b", "desk"]);
}

#[test]
fn removal_outweighs_every_later_addition() {
    let Fixture { group, .. } = with_ticket();
    redeem(&group, &JOINER).unwrap();
    let removed = group.remove("phone", NOW).unwrap();
    assert_eq!(removed.node_id, JOINER);
    let again = Member { node_id: JOINER, ..told(0, "phone", NOW) };
    assert!(group.merge(&[again], &[], NOW).unwrap().is_empty());
    assert!(!group.is_member(&JOINER).unwrap());
    assert_eq!(group.removed().unwrap(), [JOINER]);
}

#[test]
fn a_device_does_not_remove_itself() {
    let Fixture { group, .. } = fixture();
    assert!(matches!(group.remove("desk", NOW), Err(LookupError::Ourselves)));
    assert!(group.is_member(&US).unwrap());
}

fn found(group: &Group, who: &str) -> Result<Member, LookupError> {
    lookup(&group.db().connection, who)
}

#[test]
fn a_name_that_is_the_node_id_of_another_does_not_stand_for_it() {
    let Fixture { group, .. } = fixture();
    let phone = node(0x1234).to_string();
    group.merge(&[told(0x1234, "phone", 1), told(9, &phone, 1)], &[], NOW).unwrap();
    assert_eq!(found(&group, &phone).unwrap().node_id, node(0x1234));
    group.merge(&[told(10, "1234", 1)], &[], NOW).unwrap();
    assert!(matches!(found(&group, "1234"), Err(LookupError::Ambiguous { .. })));
}

#[test]
fn members_are_found_by_name_or_start_of_node_id() {
    let Fixture { group, .. } = fixture();
    let members = [told(0x1234, "phone", 1), told(0x1235, "tv", 1), told(9, "tv", 1)];
    group.merge(&members, &[], NOW).unwrap();
    for who in ["phone", "1234", "1234AAAA", &node(0x1234).to_string()] {
        assert_eq!(found(&group, who).unwrap().node_id, node(0x1234), "{who}");
    }
    for who in ["", "phon", "123", "ffff"] {
        assert!(matches!(found(&group, who), Err(LookupError::Unknown(_))), "{who}");
    }
    let said = found(&group, "tv").unwrap_err().to_string();
    assert!(said.contains(&node(9).short()) && said.contains(&node(0x1235).short()), "{said}");
}

#[test]
fn the_later_name_stands_in_whatever_order_it_is_heard() {
    let Fixture { group, .. } = fixture();
    let (old, new) = (told(7, "zeta", 1), told(7, "alpha", 2));
    group.merge(std::slice::from_ref(&old), &[], NOW).unwrap();
    assert_eq!(group.merge(std::slice::from_ref(&new), &[], NOW).unwrap().renamed, [new]);
    assert!(group.merge(&[old], &[], NOW).unwrap().is_empty());
    assert_eq!(found(&group, "alpha").unwrap().node_id, node(7));
}

#[test]
fn a_name_from_the_far_future_does_not_hold_for_ever() {
    let Fixture { group, .. } = fixture();
    group.merge(&[told(7, "true", 5)], &[], NOW).unwrap();
    assert!(group.merge(&[told(7, "false", i64::MAX)], &[], NOW).unwrap().is_empty());
    group.merge(&[told(8, "false", i64::MAX)], &[], NOW).unwrap();
    group.merge(&[told(8, "true", 5)], &[], NOW).unwrap();
    assert_eq!(names(&group), ["desk", "true", "true"]);
}

#[test]
fn what_others_say_about_this_device_does_not_rename_it() {
    let Fixture { group, .. } = fixture();
    let evil = Member { node_id: US, ..told(0, "evil", NOW + 5) };
    group.merge(&[evil], &[], NOW).unwrap();
    assert_eq!(group.name().unwrap(), "desk");
    let own = &group.members().unwrap()[0];
    group.rename("new", 0).unwrap();
    assert!(group.members().unwrap()[0].named_ms > own.named_ms, "a rename always wins");
}

#[test]
fn a_full_group_takes_no_more_but_still_removes_its_members() {
    let Fixture { group, .. } = with_ticket();
    let many: Vec<Member> = (0..1100).map(|n| told(n, "x", 1)).collect();
    let changes = group.merge(&many, &[], NOW).unwrap();
    assert_eq!(changes.added.len(), GROUP_ENTRIES_MAX - 1);
    assert_eq!(changes.ignored, 1100 - (GROUP_ENTRIES_MAX - 1));
    assert!(matches!(redeem(&group, &JOINER), Err(RedeemError::GroupFull)));
    assert_eq!(group.merge(&[], &[OTHER], NOW).unwrap().ignored, 1);
    assert_eq!(group.merge(&[], &[node(5)], NOW).unwrap().removed, [node(5)]);
    let entries = group.members().unwrap().len() + group.removed().unwrap().len();
    assert_eq!(entries, GROUP_ENTRIES_MAX);
}

#[test]
fn the_newest_addresses_come_first_and_bad_ones_are_dropped() {
    let Fixture { group, .. } = fixture();
    let addresses = |range: std::ops::Range<u32>| -> Vec<String> {
        range.map(|n| format!("192.0.2.{n}:1")).collect()
    };
    group.merge(&[told(7, "a", 1)], &[], NOW).unwrap();
    group.record_addresses(&node(7), &addresses(0..12)).unwrap();
    let bad = ["", "a\nb", "ü", &"x".repeat(ADDRESS_BYTES_MAX + 1)].map(String::from);
    group.record_addresses(&node(7), &bad).unwrap();
    group.record_addresses(&node(7), &addresses(11..20)).unwrap();
    group.record_addresses(&OTHER, &addresses(0..1)).unwrap();
    let kept = found(&group, "a").unwrap().addresses;
    assert_eq!(kept, [addresses(11..20), addresses(0..7)].concat());
    assert!(!group.is_member(&OTHER).unwrap());
}

#[test]
fn gossip_that_repeats_itself_is_no_change() {
    let Fixture { group, .. } = fixture();
    let mut a = told(7, "a", 1);
    a.addresses = vec!["192.0.2.1:1".into()];
    assert!(!group.merge(&[a.clone()], &[node(8)], NOW).unwrap().is_empty());
    assert!(group.merge(&[a], &[node(8)], NOW).unwrap().is_empty());
}

type Told = (Vec<Member>, Vec<NodeId>);

fn any_told() -> impl Strategy<Value = Told> {
    let member = (0u16..6, "[abc]", 0i64..4).prop_map(|(n, name, ms)| told(n, &name, ms));
    let removed = (0u16..8).prop_map(node);
    (prop::collection::vec(member, 0..6), prop::collection::vec(removed, 0..3))
}

fn after(messages: &[&Told]) -> (Vec<Member>, Vec<NodeId>) {
    let Fixture { group, .. } = fixture();
    for (members, removed) in messages {
        group.merge(members, removed, NOW).unwrap();
    }
    (group.members().unwrap(), group.removed().unwrap())
}

/// What a device in the middle passes on after hearing these.
fn passed_on(messages: &[&Told]) -> Told {
    let (members, removed) = after(messages);
    (members.into_iter().filter(|m| m.node_id != US).collect(), removed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        a in any_told(), b in any_told(), c in any_told()
    ) {
        let all = after(&[&a, &b, &c]);
        prop_assert_eq!(&after(&[&c, &a, &b]), &all);
        prop_assert_eq!(&after(&[&b, &a, &c, &b, &a]), &all);
        prop_assert_eq!(&after(&[&a, &passed_on(&[&c, &b])]), &all);
        prop_assert_eq!(&after(&[&passed_on(&[&b, &a]), &c]), &all);
    }
}

/// Runs until it is killed: makes a ticket and redeems it, again and again.
#[test]
#[ignore = "a child process of the test below"]
fn child_pairs_for_ever() {
    let Ok(path) = std::env::var("CAN_SYNC_TEST_STATE") else {
        return;
    };
    let group = Group::open(path.as_ref(), US, "desk", NOW).unwrap();
    let mut out = std::io::stdout();
    for n in 0..500u16 {
        let secret = secret_of(n);
        group.create_ticket(&secret, NOW, i64::MAX / 2).unwrap();
        writeln!(out, "made {n}").unwrap();
        let proof = pair_proof(&secret, &US, &node(n));
        group.redeem(NOW, &node(n), &proof, "phone", &[]).unwrap();
        writeln!(out, "in {n}").unwrap();
    }
}

fn secret_of(n: u16) -> TicketSecret {
    let mut secret = [0x55; 16];
    secret[..2].copy_from_slice(&n.to_be_bytes());
    secret
}

#[test]
fn an_agent_killed_while_pairing_has_the_ticket_or_the_member() {
    for round in 1..=12 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "state::group::tests::child_pairs_for_ever"])
            .args(["--ignored", "--nocapture"])
            .env("CAN_SYNC_TEST_STATE", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut made, mut admitted) = (None, None);
        let mut take = |line: String| {
            let number = |what: &str| line.strip_prefix(what)?.parse::<u16>().ok();
            made = number("made ").or(made);
            admitted = number("in ").or(admitted);
            made.is_some() as usize + admitted.is_some() as usize
        };
        for _ in 0..3 + 5 * round {
            take(lines.next().unwrap().unwrap());
        }
        child.kill().unwrap();
        for line in lines {
            take(line.unwrap());
        }
        child.wait().unwrap();
        let (made, admitted) = (made.unwrap(), admitted);

        let group = Group::open(&path, US, "desk", NOW).unwrap();
        let has_ticket = |n| {
            let kept = tickets(&group.db().connection).unwrap();
            kept.iter().any(|t| t.key == ticket_key(&secret_of(n)))
        };
        for n in 0..=made {
            let is_in = group.is_member(&node(n)).unwrap();
            assert!(is_in ^ has_ticket(n), "round {round}: {n} of {made}");
            assert!(is_in || Some(n) > admitted, "round {round}: {n} was told it is in");
        }
    }
}
