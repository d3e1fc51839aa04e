//! Why an asset is where it is: brings each reason about in an engine, and reads the sentence.

use super::*;
use crate::core::why::{AssetWhy, Here, HereReason, Limits, Moment, PeerSeen, Seen, Unwanted, why};

/// The wall clock when the engine's clock is 0: 2026-11-30T12:00:00Z.
const NOON_MS: u64 = 1_796_040_000_000;

impl Bench {
    fn why(&self, digest: Digest, seen: &Seen) -> AssetWhy {
        let moment = Moment { mono_ms: self.now_ms, wall_ms: NOON_MS + self.now_ms };
        let facts = self.engine.explain(self.now_ms, &digest.hash);
        why(digest.hash, moment, &facts, seen)
    }

    fn text(&self, digest: Digest, seen: &Seen) -> String {
        self.why(digest, seen).text
    }
}

fn name() -> String {
    A.short()
}

fn whole() -> Seen {
    Seen { here: Here::Whole, ..Seen::default() }
}

#[test]
fn wrong_bytes_are_quarantined_until_a_time_that_is_said() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let photo = asset(1, 10);
    bench.lacks(A, &[photo]);
    assert_eq!(bench.offer(A_CONN, BatchId(1), &[photo]), [true]);
    bench.received(A_CONN, BatchId(1), &[(photo, Arrival::Refused)]);
    let said = bench.text(photo, &Seen::default());
    let a = name();
    let start = format!(
        "It is not here: what came from {a} had the wrong bytes, or the store refused them, so it is \
         quarantined until 2026-11-30T12:00:30Z (in 30s)."
    );
    assert!(said.starts_with(&start), "{said}");
    let end = "Next: it is requested again at 2026-11-30T12:00:30Z (in 30s), as soon as a device offers it.";
    assert!(said.ends_with(end), "{said}");
    bench.wait(31_000);
    let over = bench.why(photo, &Seen::default());
    assert!(!matches!(over.here, HereReason::Resting { .. }), "{}", over.text);
}

#[test]
fn what_finds_no_space_waits_for_space() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let video = asset(1, 1 << 40);
    bench.offer(A_CONN, BatchId(1), &[video]);
    bench.received(A_CONN, BatchId(1), &[(video, Arrival::NoRoom)]);
    let said = bench.text(video, &Seen::default());
    assert!(said.starts_with("It is not here: it waits for space."), "{said}");
    assert!(said.contains("tried again at 2026-11-30T12:00:30Z (in 30s); make space"), "{said}");
    let shortage = vec!["the store's disk has 1.0 GiB left".to_owned()];
    let said = bench.text(video, &Seen { shortage, ..Seen::default() });
    let start = "It is not here: it waits for space. The store's disk has 1.0 GiB left.";
    assert!(said.starts_with(start), "{said}");
}

#[test]
fn an_interrupted_transfer_rests() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let photo = asset(1, 10);
    for batch in 1..=3 {
        bench.offer(A_CONN, BatchId(batch), &[photo]);
        bench.received(A_CONN, BatchId(batch), &[(photo, Arrival::Interrupted)]);
    }
    let said = bench.text(photo, &Seen::default());
    assert!(said.contains("broke off, so it rests until 2026-11-30T12:00:30Z"), "{said}");
}

#[test]
fn what_is_requested_or_queued_says_behind_how_much() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let photos: Vec<Digest> = (0..5_000).map(|n| asset(n, 10)).collect();
    bench.lacks(A, &photos);
    let mut sorted = photos.clone();
    sorted.sort_by_key(|digest| digest.hash);
    let a = name();
    let under = PeerSeen { left_bytes: 3 << 30, ..PeerSeen::default() };
    let peers = [(A, under)].into();
    let limits = Limits { down_bytes: Some(512 * 1024), up_bytes: None };
    let seen = Seen { peers, limits, ..Seen::default() };
    let why = |digest: &Digest| bench.why(*digest, &seen);
    let asked = photos.iter().map(why).find(|w| matches!(w.here, HereReason::Requested { .. }));
    let asked = asked.unwrap().text;
    let start = format!("It is not here yet: it was requested from {a} at 2026-11-30T12:00:00Z");
    assert!(asked.starts_with(&start), "{asked}");
    assert!(asked.contains("4095 other assets in the queue, 3.0 GiB"), "{asked}");
    assert!(asked.contains("a rate limit of 512.0 KiB/s is in force"), "{asked}");
    let queued = photos.iter().map(why).filter(|w| matches!(w.here, HereReason::Queued { .. }));
    let queued: Vec<String> = queued.map(|why| why.text).collect();
    assert_eq!(queued.len(), 5_000 - 4_096);
    assert!(queued.iter().any(|said| said.contains("behind 4096 other assets")), "{queued:?}");
    assert!(queued[0].contains(&format!("Next: it is requested from {a} when its turn")));
}

#[test]
fn a_store_that_takes_nothing_and_one_that_is_gone_are_the_reason() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let photo = asset(1, 10);
    bench.lacks(A, &[photo]);
    let (conn, arrivals) = (A_CONN, Vec::new());
    let (store_failed, violation) = (true, false);
    bench.tell(Input::Received { conn, batch: BatchId(1), arrivals, store_failed, violation });
    let said = bench.text(photo, &Seen::default());
    assert!(said.contains("nothing is requested until 2026-11-30T12:00:30Z (in 30s)"), "{said}");
    bench.tell(Input::Store { up: false });
    let store_error = Some("connection refused".to_owned());
    let said = bench.text(photo, &Seen { store_error, ..Seen::default() });
    let start = "It is not here: the store does not answer: connection refused.";
    assert!(said.starts_with(start), "{said}");
    assert!(said.ends_with("Next: the store is tried again, every few seconds."), "{said}");
}

#[test]
fn while_sets_are_compared_nothing_is_claimed() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.tell(Input::Indexed { entries: vec![(1, asset(2, 10))], behind: false });
    let a = name();
    let said = bench.text(asset(1, 10), &Seen::default());
    let start = format!("It is not here: this device and {a} are still comparing what they hold.");
    assert!(said.starts_with(&start), "{said}");
    let said = bench.text(asset(7, 10), &whole());
    assert!(said.contains(&format!("It is not known whether {a} has it")), "{said}");
}

#[test]
fn what_a_peer_refuses_or_has_no_space_for_is_told_in_its_words() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.tell(Input::Indexed { entries: vec![(1, asset(2, 10))], behind: false });
    bench.wait(2_000);
    let a = name();
    let refused = PeerSeen { refused: Some((0, "it is too large".into())), ..PeerSeen::default() };
    let said = bench.text(asset(7, 10), &Seen { peers: [(A, refused)].into(), ..whole() });
    let part = format!(
        "{a} does not have it: it refused it at 2026-11-30T12:00:00Z (2s ago): it is too large."
    );
    assert!(said.contains(&part), "{said}");
    let full = PeerSeen { put_off: Some("its disk is full".into()), ..PeerSeen::default() };
    let said = bench.text(asset(7, 10), &Seen { peers: [(A, full)].into(), ..whole() });
    let part = format!("{a} does not have it: it takes no assets for now: its disk is full.");
    assert!(said.contains(&part), "{said}");
}

#[test]
fn a_damaged_asset_counts_as_missing() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let photo = asset(1, 10);
    bench.lacks(A, &[photo]);
    bench.offer(A_CONN, BatchId(1), &[photo]);
    let seen = Seen { here: Here::Damaged, ..Seen::default() };
    let why = bench.why(photo, &seen);
    let start = format!(
        "Its bytes on this device are damaged, so it counts as missing. It is not here yet: it is \
         arriving from {}.",
        name()
    );
    assert!(why.damaged && why.text.starts_with(&start), "{}", why.text);
}

#[test]
fn an_offline_device_is_named_with_its_reason_and_its_next_dial() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.wait(5_000);
    let (conn, reason) = (A_CONN, "timed out".to_owned());
    bench.tell(Input::Disconnected { conn, reason, violation: false });
    bench.wait(100);
    let a = name();
    let said = bench.text(asset(1, 10), &whole());
    let part = format!(
        "It is not known whether {a} has it: {a} is offline since 2026-11-30T12:00:05Z (0s ago): \
         timed out."
    );
    assert!(said.contains(&part), "{said}");
    assert!(said.contains(&format!("Next: {a} is dialled at 2026-11-30T12:00:0")), "{said}");
    let added_by = Some((A, "old name".to_owned()));
    let said = bench.text(asset(1, 10), &Seen { added_by, ..Seen::default() });
    let start = format!("It is not here: it was added on {a}, which is offline since");
    assert!(said.starts_with(&start), "{said}");
    let mut fresh = Bench::new();
    fresh.tell(Input::DialFailed { peer: A, reason: "no route".into() });
    let said = fresh.text(asset(1, 10), &whole());
    assert!(said.contains("offline since before this agent started: no route"), "{said}");
    let noted_ms = NOON_MS - 60_000;
    let seen = Seen { last_seen: [(A, noted_ms)].into(), ..whole() };
    let said = fresh.text(asset(1, 10), &seen);
    assert!(said.contains("offline since 2026-11-30T11:59:00Z (1m 0"), "{said}");
}

#[test]
fn a_removed_device_says_so_and_so_does_one_that_is_alone() {
    let mut bench = Bench::new();
    bench.tell(Input::Members(Members { members: vec![member(US)], removed: vec![] }));
    let said = bench.text(asset(1, 10), &Seen::default());
    assert!(said.starts_with("It is not here, and no other device is in the group."), "{said}");
    bench.tell(Input::Members(Members { members: vec![], removed: vec![US] }));
    let said = bench.text(asset(1, 10), &Seen::default());
    assert!(said.starts_with("It is not here: the group removed this device"), "{said}");
}

#[test]
fn what_is_not_wanted_or_was_evicted_says_so_and_who_had_it_last() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let unwanted = Some(Unwanted::Expression);
    let said = bench.text(asset(1, 10), &Seen { unwanted, ..Seen::default() });
    assert!(said.starts_with("It is not here: what this device wants leaves it out."), "{said}");
    let unwanted = Some(Unwanted::Evicted);
    let said = bench.text(asset(1, 10), &Seen { unwanted, ..Seen::default() });
    assert!(said.starts_with("It is not here: its copy here was evicted."), "{said}");
    let (conn, reason) = (A_CONN, "timed out".to_owned());
    bench.tell(Input::Disconnected { conn, reason, violation: false });
    let a = name();
    let holders = [(A, NOON_MS - 60_000)].into();
    let said = bench.text(asset(1, 10), &Seen { holders, ..Seen::default() });
    let start =
        format!("It is not here: {a} had it at 2026-11-30T11:59:00Z (1m 00s ago), and is offline");
    assert!(said.starts_with(&start), "{said}");
    let holders = [(A, NOON_MS - 60_000)].into();
    let said = bench.text(asset(1, 10), &Seen { holders, ..whole() });
    assert!(said.contains(&format!("{a} had it at 2026-11-30T11:59:00Z")), "{said}");
}
