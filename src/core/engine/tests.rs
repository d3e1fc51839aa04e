#![allow(clippy::unwrap_used)]

mod copies;

use super::*;
use crate::core::ids::{Digest, GroupId, Hash, HashAlgorithm, StoreId};
use crate::core::limits::{SCAN_RETRY_MS, SMALL_BYTES_MAX};
use crate::core::message::{Hello, Message};
use crate::core::pairing::Member;
use crate::core::reconcile::{Query, ReconcileMessage, SetSummary, Snapshot};
use crate::core::session::Lane;
use crate::core::sketch::{Sketch, SketchKey};
use crate::core::wants::Arrival;

mod why;

const US: NodeId = NodeId([5; 32]);
const A: NodeId = NodeId([1; 32]);
const A_CONN: ConnId = ConnId(1);
const GROUP: GroupId = GroupId([9; 32]);

#[test]
fn a_batch_of_known_assets_leaves_a_long_transfer_beside_it_alone() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let (video, next) = (asset(1, SMALL_BYTES_MAX + 1), asset(2, SMALL_BYTES_MAX + 1));
    bench.lacks(A, &[video, next]);
    bench.offer(A_CONN, BatchId(1), &[video]);
    // The index knew everything in batch 2, so it ended without an `Offered`.
    bench.received(A_CONN, BatchId(2), &[(asset(3, 1), Arrival::Held)]);
    bench.wait(SILENT_MS_MAX + 1);
    assert_eq!(bench.closed(), None);
    bench.received(A_CONN, BatchId(1), &[(video, Arrival::Stored)]);
    bench.wait(SILENT_MS_MAX + 1);
    assert_eq!(bench.closed(), Some((A_CONN, CloseCode::Slow)), "the other one never came");
}

#[test]
fn what_is_offered_while_the_store_takes_nothing_is_asked_for_when_it_does_again() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let (asked, news) = (asset(1, 10), asset(2, 10));
    bench.lacks(A, &[asked]);
    assert_eq!(bench.solicited(A_CONN), [asked.hash]);
    let (conn, arrivals) = (A_CONN, Vec::new());
    let (store_failed, violation) = (true, false);
    bench.tell(Input::Received { conn, batch: BatchId(1), arrivals, store_failed, violation });
    assert_eq!(bench.offer(A_CONN, BatchId(2), &[asked, news]), [false, false]);
    bench.received(A_CONN, BatchId(2), &[]);
    bench.wait(STORE_PAUSE_MS - 1);
    assert_eq!(bench.solicited(A_CONN), []);
    bench.wait(1);
    assert_eq!(bench.solicited(A_CONN), [asked.hash, news.hash]);
    assert_eq!(bench.closed(), None);
}

#[test]
fn an_asset_too_large_for_the_room_left_holds_up_no_other() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let (video, note) = (asset(1, 1 << 40), asset(2, 10));
    bench.lacks(A, &[video]);
    assert_eq!(bench.offer(A_CONN, BatchId(1), &[video]), [true]);
    bench.received(A_CONN, BatchId(1), &[(video, Arrival::NoRoom)]);
    assert_eq!(bench.offer(A_CONN, BatchId(2), &[video, note]), [false, true]);
    bench.received(A_CONN, BatchId(2), &[(note, Arrival::Stored)]);
    bench.wait(SILENT_MS_MAX * 2);
    assert_eq!(bench.closed(), None);
    assert_eq!(bench.offer(A_CONN, BatchId(3), &[video]), [true], "it has rested");
}

#[test]
fn a_store_that_comes_back_without_what_it_acknowledged_is_given_it_again() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let note = asset(1, 10);
    assert_eq!(bench.offer(A_CONN, BatchId(1), &[note]), [true]);
    bench.received(A_CONN, BatchId(1), &[(note, Arrival::Stored)]);
    bench.tell(Input::Store { up: false });
    bench.tell(Input::Store { up: true });
    assert_eq!(bench.offer(A_CONN, BatchId(2), &[note]), [false], "its feed has not been read");
    bench.received(A_CONN, BatchId(2), &[]);
    bench.tell(Input::Indexed { entries: Vec::new(), behind: false });
    assert_eq!(bench.offer(A_CONN, BatchId(3), &[note]), [true]);
}

#[test]
fn own_news_takes_no_room_from_what_a_peer_may_solicit() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let photos = (0..9_000).map(|n| (u64::from(n) + 1, asset(n, SMALL_BYTES_MAX + 1))).collect();
    bench.tell(Input::Indexed { entries: photos, behind: false });
    let hashes = (10_000..12_000).map(|n| asset(n, 1).hash).collect();
    bench.tell(Input::Message { conn: A_CONN, message: Message::Solicit(hashes) });
    assert_eq!(bench.closed(), None);
}

#[test]
fn what_nobody_is_known_to_hold_is_asked_for_and_is_nowhere_when_all_have_said_no() {
    let mut bench = Bench::new();
    let hash = asset(1, 1).hash;
    let fetch = || Input::Fetch { hashes: vec![hash], at_once: true };
    bench.tell(fetch());
    assert_eq!(bench.engine.fetching(bench.now_ms, &hash), FetchState::NoPeer);
    bench.connect(A, A_CONN);
    bench.tell(fetch());
    assert_eq!(bench.engine.fetching(bench.now_ms, &hash), FetchState::Waiting);
    let urged = Effect::Send { conn: A_CONN, message: Message::SolicitNow(vec![hash]) };
    assert_eq!(bench.effects.iter().filter(|effect| **effect == urged).count(), 1);
    bench.tell(Input::Message { conn: A_CONN, message: Message::Lacking(vec![hash]) });
    bench.tell(fetch());
    assert_eq!(bench.engine.fetching(bench.now_ms, &hash), FetchState::Nowhere);
    // An asset that it sends later is accepted.
    assert_eq!(bench.offer(A_CONN, BatchId(1), &[asset(1, 1)]), [true]);
    assert_eq!(bench.engine.fetching(bench.now_ms, &hash), FetchState::Arriving);
    bench.received(A_CONN, BatchId(1), &[(asset(1, 1), Arrival::Stored)]);
    assert_eq!(bench.engine.fetching(bench.now_ms, &hash), FetchState::Here);
}

#[test]
fn what_a_peer_wants_at_once_is_sent_although_every_lane_is_taken() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let backlog: Vec<Digest> = (0..3_000).map(|n| asset(n, SMALL_BYTES_MAX)).collect();
    let hashes = |digests: &[Digest]| digests.iter().map(|digest| digest.hash).collect::<Vec<_>>();
    bench.tell(Input::Message { conn: A_CONN, message: Message::Solicit(hashes(&backlog)) });
    let sizes = |held: &[Digest]| {
        let (held, missing) = (held.to_vec(), Vec::new());
        Input::Sizes { conn: A_CONN, held, missing }
    };
    let (first, rest) = backlog.split_at(2_048);
    bench.tell(sizes(first));
    bench.tell(sizes(rest));
    let wanted = [backlog[2_999], asset(9_999, SMALL_BYTES_MAX + 1)];
    bench.effects.clear();
    bench.tell(Input::Message { conn: A_CONN, message: Message::SolicitNow(hashes(&wanted)) });
    bench.tell(sizes(&wanted));
    let sent = bench.effects.iter().filter_map(|effect| match effect {
        Effect::SendBatch { lane, digests, .. } => Some((*lane, digests.clone())),
        _ => None,
    });
    let expected = [(Lane::Now, vec![wanted[0]]), (Lane::NowLarge, vec![wanted[1]])];
    assert_eq!(sent.collect::<Vec<_>>(), expected);
    assert_eq!(bench.closed(), None);
}

#[test]
fn a_plain_exchange_that_left_something_behind_is_not_in_sync_and_is_made_again() {
    let mut bench = Bench::new();
    bench.connect_plain(A, A_CONN);
    let (held_there, stored_here, more) = (Vec::new(), Vec::new(), false);
    let input = Input::PlainDone { conn: A_CONN, held_there, stored_here, failed: true, more };
    bench.tell(input);
    assert!(!bench.engine.peer_views()[0].in_sync);
    bench.wait(60_000);
    assert_eq!(bench.closed(), None, "new assets still go live");
    bench.wait(600_000);
    assert_eq!(bench.closed(), Some((A_CONN, CloseCode::Ok)));
}

#[test]
fn a_plain_exchange_that_could_not_carry_all_goes_on_by_another_connection() {
    let mut bench = Bench::new();
    bench.connect_plain(A, A_CONN);
    let (held_there, stored_here, more) = (Vec::new(), Vec::new(), true);
    let input = Input::PlainDone { conn: A_CONN, held_there, stored_here, failed: false, more };
    bench.tell(input);
    assert!(!bench.engine.peer_views()[0].in_sync);
    assert_eq!(bench.closed(), Some((A_CONN, CloseCode::Ok)));
}

#[test]
fn a_batch_of_an_engine_that_was_replaced_is_not_taken_for_one_of_ours() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.tell(Input::Indexed { entries: vec![(1, asset(1, 10))], behind: false });
    let sent = bench.effects.iter().find_map(|effect| match effect {
        Effect::SendBatch { batch, .. } => Some(*batch),
        _ => None,
    });
    let batch = sent.unwrap();
    bench.tell(Input::BatchFailed { conn: ConnId(77), batch, violation: true });
    assert_eq!(bench.closed(), None);
    assert_eq!(bench.engine.peer_views()[0].missing_there, 1);
    bench.tell(Input::BatchSent { conn: A_CONN, batch, outcomes: Vec::new() });
    assert_eq!(bench.engine.peer_views()[0].missing_there, 0);
}

#[test]
fn a_peer_that_is_wrong_about_our_sketch_is_closed_and_does_not_keep_the_index_scanning() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.tell(Input::Indexed { entries: vec![(1, asset(1, 10))], behind: false });
    let scanned = bench.engine.known().clone();
    bench.accuse(A_CONN);
    assert_eq!(bench.rebuilds(), 1);
    bench.tell(Input::Rebuilt(scanned));
    assert_eq!(bench.closed(), Some((A_CONN, CloseCode::Protocol)));
    bench.accuse(A_CONN);
    assert_eq!(bench.rebuilds(), 1);
    bench.wait(SCAN_RETRY_MS);
    bench.accuse(A_CONN);
    assert_eq!(bench.rebuilds(), 2);
}

#[test]
fn a_peer_that_breaks_off_rounds_does_not_keep_the_index_scanning() {
    let mut bench = Bench::new();
    let mut theirs = bench.engine.known().sketch.clone();
    // With this many differences in this many assets, neither coded cells of the whole nor lists
    // are cheapest.
    for n in 0..40_000 {
        bench.engine.known.sketch.insert(&asset(n, 1).hash);
        theirs.insert(&asset(n + 8_000, 1).hash);
    }
    let summary = Snapshot::new(theirs, [1; 16], 40_000, None, false).summary;
    for n in 1..=20 {
        let conn = ConnId(n);
        bench.connect(A, conn);
        for round in [1, 2] {
            bench.has_us_scan(conn, round, &summary);
        }
    }
    assert_eq!(bench.scans(), 3);
    bench.wait(SCAN_RETRY_MS);
    bench.connect(A, ConnId(100));
    bench.has_us_scan(ConnId(100), 1, &summary);
    assert_eq!(bench.scans(), 4);
}

#[test]
fn a_sketch_that_was_wrong_is_replaced_and_nobody_blamed() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let mut scanned = bench.engine.known().clone();
    for (seq, n) in [(1, 1), (2, 2)] {
        scanned.sketch.insert(&asset(n, 10).hash);
        scanned.head_seq = seq;
    }
    bench.accuse(A_CONN);
    bench.tell(Input::Rebuilt(scanned.clone()));
    assert_eq!(bench.closed(), None);
    // The scan saw the entry before the engine learns of it.
    bench.tell(Input::Indexed { entries: vec![(2, asset(2, 10))], behind: false });
    assert_eq!(bench.engine.known().sketch.fingerprint(), scanned.sketch.fingerprint());
}

#[test]
fn a_rebuild_that_fails_is_tried_again() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.accuse(A_CONN);
    bench.tell(Input::RebuildFailed);
    bench.wait(SCAN_RETRY_MS);
    bench.accuse(A_CONN);
    assert_eq!(bench.rebuilds(), 2);
}

#[test]
fn whatever_a_peer_sends_one_question_of_it_is_under_way() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    let conn = A_CONN;
    for n in 0..100 {
        let hashes = vec![asset(n, 1).hash];
        bench.tell(Input::Message { conn, message: Message::Solicit(hashes) });
    }
    assert_eq!(bench.sizes_asked(), [1]);
    bench.tell(Input::Sizes { conn, held: Vec::new(), missing: vec![asset(0, 1).hash] });
    assert_eq!(bench.sizes_asked(), [1, 99]);
    assert_eq!(bench.closed(), None);
}

#[test]
fn a_peer_that_restarted_while_dials_could_cross_is_talked_to_in_seconds() {
    let mut bench = Bench::new();
    let (b, dialed, incoming) = (NodeId([9; 32]), ConnId(1), ConnId(2));
    bench.tell(Input::Members(Members { members: [US, b].map(member).to_vec(), removed: vec![] }));
    bench.tell(Input::Connected { conn: dialed, peer: b, dialed: true, plain: false });
    bench.say_hello(b, dialed);
    // The peer was killed and dials again. This side cannot know yet that the first connection is
    // dead.
    bench.wait(1_000);
    bench.connect(b, incoming);
    assert_eq!(bench.closed(), None);
    bench.wait(3_000);
    assert_eq!(bench.closed(), Some((dialed, CloseCode::Duplicate)));
    let view = &bench.engine.peer_views()[0];
    assert_eq!((view.conn, view.ready), (Some(incoming), true));
}

#[test]
fn a_connection_that_was_replaced_never_gets_a_second_session() {
    let mut bench = Bench::new();
    let (b, incoming, dialed) = (NodeId([9; 32]), ConnId(1), ConnId(2));
    bench.tell(Input::Members(Members { members: [US, b].map(member).to_vec(), removed: vec![] }));
    bench.connect(b, incoming);
    // Our own dial, which crossed the peer's, completes late.
    bench.wait(3_000);
    bench.tell(Input::Connected { conn: dialed, peer: b, dialed: true, plain: false });
    assert_eq!(bench.closed(), None, "it is the peer's to close");
    bench.say_hello(b, dialed);
    let (reason, violation) = (String::new(), false);
    bench.tell(Input::Disconnected { conn: dialed, reason, violation });
    assert_eq!(bench.closed(), Some((incoming, CloseCode::Duplicate)));
    assert_eq!((bench.hellos(incoming), bench.hellos(dialed)), (1, 1));
}

#[test]
fn who_broke_the_protocol_is_not_dialled_at_once() {
    let mut bench = Bench::new();
    bench.connect(A, A_CONN);
    bench.say_hello(A, A_CONN);
    assert_eq!(bench.closed(), Some((A_CONN, CloseCode::Protocol)), "a second Hello");
    let (reason, violation) = (String::new(), false);
    bench.tell(Input::Disconnected { conn: A_CONN, reason, violation });
    bench.effects.clear();
    bench.wait(10_000);
    assert!(!bench.effects.contains(&Effect::Dial(A)));
    bench.wait(35_000);
    assert!(bench.effects.contains(&Effect::Dial(A)));
}

#[test]
fn a_plain_connection_that_takes_over_stays_plain() {
    let mut bench = Bench::new();
    let (b, dialed, incoming) = (NodeId([9; 32]), ConnId(1), ConnId(2));
    bench.tell(Input::Members(Members { members: [US, b].map(member).to_vec(), removed: vec![] }));
    bench.tell(Input::Connected { conn: dialed, peer: b, dialed: true, plain: true });
    bench.say_hello(b, dialed);
    bench.connect_plain(b, incoming);
    bench.wait(3_000);
    assert_eq!(bench.closed(), Some((dialed, CloseCode::Duplicate)));
    assert!(bench.effects.contains(&Effect::RunPlain { conn: incoming }));
}

#[test]
fn the_first_comparison_of_a_connection_does_not_wait_for_news_to_settle() {
    let mut empty = Bench::new();
    empty.connect(A, A_CONN);
    let summary = empty.effects.into_iter().find_map(|effect| match effect {
        Effect::Send { message: message @ Message::Summary(_), .. } => Some(message),
        _ => None,
    });
    let mut bench = Bench::new();
    bench.tell(Input::Connected { conn: A_CONN, peer: A, dialed: true, plain: false });
    // It is announced to nobody: the peer has not said Hello.
    bench.tell(Input::Indexed { entries: vec![(1, asset(1, 10))], behind: false });
    bench.say_hello(A, A_CONN);
    bench.tell(Input::Message { conn: A_CONN, message: summary.unwrap() });
    let compares =
        |effect: &Effect| matches!(effect, Effect::Send { message: Message::Reconcile(_), .. });
    assert!(bench.effects.iter().any(compares));
}

#[test]
fn what_was_taken_in_while_behind_is_told_and_compared_beside_a_large_transfer() {
    let mut empty = Bench::new();
    empty.connect(A, A_CONN);
    let summary = empty.effects.into_iter().find_map(|effect| match effect {
        Effect::Send { message: message @ Message::Summary(_), .. } => Some(message),
        _ => None,
    });
    let summary = summary.unwrap();
    let is_summary =
        |effect: &Effect| matches!(effect, Effect::Send { message: Message::Summary(_), .. });
    let is_compare =
        |effect: &Effect| matches!(effect, Effect::Send { message: Message::Reconcile(_), .. });
    for dialed in [false, true] {
        let mut bench = Bench::new();
        bench.tell(Input::Connected { conn: A_CONN, peer: A, dialed, plain: false });
        bench.say_hello(A, A_CONN);
        bench.tell(Input::Message { conn: A_CONN, message: summary.clone() });
        bench.offer(A_CONN, BatchId(1), &[asset(1, 1 << 40)]);
        bench.tell(Input::Indexed { entries: vec![(1, asset(2, 10))], behind: true });
        bench.tell(Input::Indexed { entries: Vec::new(), behind: false });
        bench.effects.clear();
        bench.wait(59_000);
        assert!(!bench.effects.iter().any(|effect| is_summary(effect) || is_compare(effect)));
        bench.wait(2_000);
        assert!(bench.effects.iter().any(is_summary));
        assert_eq!(bench.effects.iter().any(is_compare), dialed);
        bench.effects.clear();
        bench.wait(600_000);
        assert!(!bench.effects.iter().any(is_summary), "it has been told");
    }
}

/// An engine with an empty store that is up, its clock, and its effects since they were last read.
struct Bench {
    engine: Engine,
    now_ms: u64,
    effects: Vec<Effect>,
}

impl Bench {
    fn new() -> Self {
        let identity = Identity {
            node_id: US,
            group_id: GROUP,
            device_name: "us".into(),
            store_id: StoreId([5; 16]),
            algorithm: HashAlgorithm::Blake3,
            build: "test".into(),
        };
        let sketch = Sketch::new(SketchKey::derive(&GROUP));
        let known = KnownSet { sketch, epoch: [5; 16], head_seq: 0 };
        let members = Members { members: [US, A].map(member).to_vec(), removed: Vec::new() };
        let engine = Engine::new(identity, known, members, BTreeMap::new(), [7; 32]);
        let mut bench = Self { engine, now_ms: 0, effects: Vec::new() };
        bench.tell(Input::Store { up: true });
        bench.tell(Input::Indexed { entries: Vec::new(), behind: false });
        bench
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(self.now_ms, input, &mut self.effects);
    }

    /// Advances the clock, with ticks when the engine wants them.
    fn wait(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        while let Some(at_ms) = self.engine.deadline_ms().filter(|at_ms| *at_ms <= until_ms) {
            assert!(at_ms > self.now_ms, "a deadline of the past");
            self.now_ms = at_ms;
            self.tell(Input::Tick);
        }
        self.now_ms = until_ms;
        self.tell(Input::Tick);
    }

    /// `peer` connects and says Hello.
    fn connect(&mut self, peer: NodeId, conn: ConnId) {
        self.tell(Input::Connected { conn, peer, dialed: false, plain: false });
        self.say_hello(peer, conn);
    }

    fn connect_plain(&mut self, peer: NodeId, conn: ConnId) {
        self.tell(Input::Connected { conn, peer, dialed: false, plain: true });
        self.say_hello(peer, conn);
    }

    fn say_hello(&mut self, peer: NodeId, conn: ConnId) {
        let hello = Hello {
            group_id: GROUP,
            device_name: peer.short(),
            store_id: StoreId([1; 16]),
            algorithm: HashAlgorithm::Blake3,
            build: "test".into(),
            journal: false,
            proofs: false,
            thumbnails: false,
            copies: false,
            chooses: false,
            metadata: true,
        };
        self.tell(Input::Message { conn, message: Message::Hello(hello) });
    }

    /// A reconcile found these assets that `peer` holds and this device lacks.
    fn lacks(&mut self, peer: NodeId, digests: &[Digest]) {
        for digest in digests {
            self.engine.wants.lacking(self.now_ms, peer, digest.hash);
        }
        self.tell(Input::Tick);
    }

    fn offer(&mut self, conn: ConnId, batch: BatchId, digests: &[Digest]) -> Vec<bool> {
        self.tell(Input::Offered { conn, batch, digests: digests.to_vec() });
        let decided = self.effects.iter().rev().find_map(|effect| match effect {
            Effect::Decide { batch: of, wanted } if *of == batch => Some(wanted.clone()),
            _ => None,
        });
        decided.unwrap()
    }

    fn received(&mut self, conn: ConnId, batch: BatchId, arrivals: &[(Digest, Arrival)]) {
        let arrivals = arrivals.iter().map(|(digest, arrival)| (digest.hash, *arrival)).collect();
        let (store_failed, violation) = (false, false);
        self.tell(Input::Received { conn, batch, arrivals, store_failed, violation });
    }

    /// A round over `conn` ended and the sketch looks wrong.
    fn accuse(&mut self, conn: ConnId) {
        self.engine.rebuild(self.now_ms, conn, &mut self.effects);
    }

    /// How many Hellos were sent on `conn`.
    fn hellos(&self, conn: ConnId) -> usize {
        let said = |effect: &&Effect| match effect {
            Effect::Send { conn: on, message: Message::Hello(_) } => *on == conn,
            _ => false,
        };
        self.effects.iter().filter(said).count()
    }

    /// Requests all our cells over `conn` and does nothing more.
    fn has_us_scan(&mut self, conn: ConnId, round: u64, summary: &SetSummary) {
        let rekey = ReconcileMessage::Rekey { round, nonce: [3; 16], shard_bits: 0 };
        let messages = [
            ReconcileMessage::Compare { round, summary: summary.clone() },
            rekey,
            ReconcileMessage::More { round, shard: 0, first: 0, n: 64 },
        ];
        for message in messages {
            self.tell(Input::Message { conn, message: Message::Reconcile(message) });
        }
    }

    fn scans(&self) -> usize {
        let is_scan =
            |effect: &&Effect| matches!(effect, Effect::Ask { query: Query::Shard { .. }, .. });
        self.effects.iter().filter(is_scan).count()
    }

    /// The number of hashes in each size query.
    fn sizes_asked(&self) -> Vec<usize> {
        let asked = self.effects.iter().filter_map(|effect| match effect {
            Effect::AskSizes { hashes, .. } => Some(hashes.len()),
            _ => None,
        });
        asked.collect()
    }

    fn rebuilds(&self) -> usize {
        self.effects.iter().filter(|effect| **effect == Effect::RebuildSketch).count()
    }

    /// What was solicited since the last call.
    fn solicited(&mut self, conn: ConnId) -> Vec<Hash> {
        let mut found = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send { conn: to, message: Message::Solicit(hashes) } if to == conn => {
                    found.extend(hashes);
                }
                _ => {}
            }
        }
        found
    }

    /// The first connection that was closed, and its code.
    fn closed(&self) -> Option<(ConnId, CloseCode)> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Close { conn, code, .. } => Some((*conn, *code)),
            _ => None,
        })
    }
}

fn member(node_id: NodeId) -> Member {
    Member { node_id, name: node_id.short(), addresses: Vec::new() }
}

fn asset(n: u32, size_bytes: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    Digest { hash: Hash(bytes), size_bytes }
}
