//! Which asset is requested from which peer, in scripted and in random sequences of events.

use super::rests::REST_MS_MIN;
use super::sources::patience_ms;
use super::*;
use crate::core::limits::{SHARED_BYTES_MIN, SOURCES_MAX};
use proptest::prelude::*;

const A: NodeId = NodeId([1; 32]);
const B: NodeId = NodeId([2; 32]);
const C: NodeId = NodeId([3; 32]);
const BATCH: BatchId = BatchId(1);

fn hash(n: u8) -> Hash {
    Hash([n; 32])
}

fn many(n: usize) -> Hash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Hash(bytes)
}

impl Wants {
    fn offered_small(&mut self, now_ms: u64, peer: NodeId, batch: BatchId, hash: Hash) -> bool {
        self.offered(now_ms, peer, batch, Digest { hash, size_bytes: 1 }, false)
    }

    fn offered_shared(&mut self, peer: NodeId, batch: u64, size_bytes: u64) -> bool {
        self.offered(0, peer, BatchId(batch), Digest { hash: hash(1), size_bytes }, true)
    }
}

#[test]
fn a_shared_asset_is_asked_of_its_other_holders_once_it_is_on_its_way() {
    let mut wants = Wants::default();
    for peer in [A, B, C] {
        wants.lacking(0, peer, hash(1));
    }
    assert_eq!(wants.ask(0, A), [hash(1)]);
    assert!(wants.ask(0, B).is_empty());
    assert!(wants.offered_shared(A, 1, 100));
    assert_eq!(wants.ask(0, B), [hash(1)]);
    assert!(wants.offered_shared(B, 2, 100));
    assert!(wants.ask(0, B).is_empty());
    assert_eq!(wants.ask(0, C), [hash(1)]);
    // The one that failed is not requested again; the others go on.
    wants.batch_ended(0, A, BatchId(1));
    assert!(wants.ask(0, A).is_empty());
    wants.arrived(0, B, BatchId(2), hash(1), Arrival::Refused);
    assert_eq!((wants.owed(B), wants.owed(C)), (0, 1));
    assert_eq!(wants.quarantined(0), 0);
    assert!(wants.offered_shared(C, 3, 100), "the last one carries it on alone");
    wants.arrived(0, C, BatchId(3), hash(1), Arrival::Stored);
    assert_eq!(wants.indexed(hash(1)), [C]);
    assert_eq!([A, B, C].map(|peer| wants.source_load(peer)), [0; 3]);
}

#[test]
fn a_holder_that_comes_while_a_shared_asset_is_on_its_way_is_asked_too() {
    let mut wants = Wants::default();
    assert!(wants.offered_shared(A, 1, 100));
    wants.lacking(0, B, hash(1));
    assert_eq!(wants.ask(0, B), [hash(1)]);
    wants.turned_away(0, B, hash(1));
    assert_eq!(wants.ask(0, B), [hash(1)], "when there was no time for it, again");
}

#[test]
fn who_says_another_size_than_the_first_sends_beside_it() {
    for (lie, truth) in [(1 << 40, 100), (100, 1 << 40)] {
        let mut wants = Wants::default();
        wants.lacking(0, B, hash(1));
        let offered = |wants: &mut Wants, peer, batch, size_bytes| {
            let is_shared = size_bytes >= SHARED_BYTES_MIN;
            wants.offered(0, peer, batch, Digest { hash: hash(1), size_bytes }, is_shared)
        };
        assert!(offered(&mut wants, A, BATCH, lie));
        assert!(offered(&mut wants, B, BatchId(2), truth));
        wants.arrived(0, B, BatchId(2), hash(1), Arrival::Stored);
        assert_eq!(wants.standing(0, &hash(1)), Standing::Here);
        assert_eq!((wants.owed(A), wants.owed(B)), (0, 0));
    }
}

#[test]
fn an_unasked_offer_does_not_displace_a_fresh_ask() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    assert_eq!(wants.ask(0, A), [hash(1)]);
    assert!(!wants.offered_small(ASK_MS_MAX - 1, B, BATCH, hash(1)));
    assert!(wants.ask(ASK_MS_MAX - 1, B).is_empty());
    assert!(wants.offered_small(ASK_MS_MAX - 1, A, BATCH, hash(1)));
    // Each holder can send a part of a shared asset, so none is kept out.
    wants.batch_ended(0, A, BATCH);
    assert_eq!(wants.ask(0, B), [hash(1)]);
    assert!(wants.offered_shared(C, 3, 1 << 30));
    assert!(wants.offered_shared(B, 4, 1 << 30));
}

#[test]
fn what_arrives_too_slowly_for_its_size_is_asked_of_others_too() {
    const SIZE: u64 = 5_000_000;
    let digest = Digest { hash: hash(1), size_bytes: SIZE };
    let mut wants = Wants::default();
    wants.lacking(0, B, hash(1));
    assert!(wants.offered(0, A, BATCH, digest, false));
    let look = |wants: &mut Wants, until_ms: u64| {
        while let Some(at_ms) = wants.deadline_ms().filter(|at_ms| *at_ms <= until_ms) {
            wants.pass_over_slow_peers(at_ms);
        }
    };
    let slow_ms = patience_ms(SIZE);
    look(&mut wants, slow_ms - 1);
    assert!(wants.ask(slow_ms - 1, B).is_empty());
    assert!(!wants.offered(slow_ms - 1, C, BATCH, digest, false), "nor is it taken unasked");
    look(&mut wants, slow_ms + ASK_MS_MAX);
    let now_ms = slow_ms + ASK_MS_MAX;
    assert_eq!((wants.ask(now_ms, B), wants.ask(now_ms, C)), (vec![hash(1)], vec![hash(1)]));
    assert!(wants.offered(now_ms, B, BatchId(2), digest, false));
    wants.arrived(now_ms, B, BatchId(2), hash(1), Arrival::Stored);
    assert_eq!(wants.standing(now_ms, &hash(1)), Standing::Here);
    look(&mut wants, now_ms + ASK_MS_MAX);
    assert_eq!(wants.deadline_ms(), None, "nothing is waited for");
}

#[test]
fn a_huge_size_is_believed_when_a_second_holder_says_the_same() {
    const SIZE: u64 = 1 << 30;
    let digest = Digest { hash: hash(1), size_bytes: SIZE };
    let first_look_ms = patience_ms(SHARED_BYTES_MIN) + ASK_MS_MAX;
    let begun = || {
        let mut wants = Wants::default();
        wants.lacking(0, B, hash(1));
        assert!(wants.offered(0, A, BATCH, digest, false));
        while let Some(at_ms) = wants.deadline_ms().filter(|at_ms| *at_ms <= first_look_ms) {
            wants.pass_over_slow_peers(at_ms);
        }
        assert_eq!(wants.ask(first_look_ms, B), [hash(1)]);
        wants
    };
    let mut wants = begun();
    assert!(wants.offered(first_look_ms, B, BATCH, Digest { size_bytes: 5, ..digest }, false));
    let mut wants = begun();
    assert!(!wants.offered(first_look_ms, B, BATCH, digest, false));
    let mut asked_ms = None;
    while let (None, Some(at_ms)) = (asked_ms, wants.deadline_ms()) {
        wants.pass_over_slow_peers(at_ms);
        asked_ms = (!wants.ask(at_ms, B).is_empty()).then_some(at_ms);
    }
    let slow_ms = patience_ms(SIZE);
    assert!((slow_ms..=slow_ms + ASK_MS_MAX).contains(&asked_ms.unwrap_or_default()));
    assert!(wants.offered(slow_ms + ASK_MS_MAX, B, BATCH, digest, false));
}

#[test]
fn an_interrupted_asset_rests_while_another_holder_has_its_turn() {
    let mut wants = Wants::default();
    wants.lacking(0, B, hash(1));
    assert!(wants.offered_small(0, A, BATCH, hash(1)));
    wants.batch_ended(0, A, BATCH);
    assert!(!wants.offered_small(REST_MS_MIN - 1, A, BATCH, hash(1)));
    assert_eq!(wants.quarantined(0), 0, "its content is not known to be wrong");
    assert_eq!(wants.ask(REST_MS_MIN, B), [hash(1)]);
    assert!(!wants.offered_small(REST_MS_MIN, A, BATCH, hash(1)), "the ask is fresh");
}

#[test]
fn a_peer_that_offers_and_breaks_off_for_ever_fills_no_queue_and_costs_no_more_each_time() {
    const HASHES: usize = 100;
    let attack = |wants: &mut Wants, rounds: std::ops::Range<usize>| {
        let begun = std::time::Instant::now();
        for round in rounds {
            let now_ms = round as u64 * 120_000;
            let batch = BatchId(round as u64);
            for n in 0..HASHES {
                let digest = Digest { hash: many(n), size_bytes: 1 };
                assert!(wants.offered(now_ms, A, batch, digest, round % 2 == 0));
            }
            wants.batch_ended(now_ms, A, batch);
        }
        begun.elapsed()
    };
    let mut wants = Wants::default();
    (0..HASHES).for_each(|n| wants.lacking(0, B, many(n)));
    let first = attack(&mut wants, 0..200);
    let second = attack(&mut wants, 200..400);
    assert_eq!((wants.source_load(B), wants.held(B), wants.held(A)), (HASHES, HASHES, 0));
    assert_eq!(wants.ask(0, B).len(), HASHES, "each stands there once");
    let bound = first * 4 + std::time::Duration::from_millis(200);
    assert!(second < bound, "{first:?} and then {second:?}");
}

#[test]
fn no_peer_leaves_another_less_room() {
    let mut wants = Wants::default();
    for n in 0..2 * WANTS_PER_PEER_MAX {
        // B is the first known holder of half of the assets.
        let peer = if n % 2 == 0 { B } else { A };
        wants.lacking(0, peer, many(n));
        wants.offered(0, A, BatchId(n as u64), Digest { hash: many(n), size_bytes: 1 }, false);
        wants.batch_ended(0, A, BatchId(n as u64));
        wants.lacking(REST_MS_MIN * 4, A, many(n));
    }
    for peer in [A, B] {
        assert!(wants.held(peer) <= WANTS_PER_PEER_MAX);
        assert!(wants.source_load(peer) <= WANTS_PER_PEER_MAX);
    }
    assert_eq!(wants.held(B), WANTS_PER_PEER_MAX, "B was listened to");
}

#[test]
fn a_shared_asset_has_so_many_sources_and_no_more() {
    let mut wants = Wants::default();
    let peers = || (1..=SOURCES_MAX as u8 + 1).map(|n| NodeId([n; 32]));
    for peer in peers() {
        let is_last = peer == NodeId([SOURCES_MAX as u8 + 1; 32]);
        assert_eq!(wants.offered_shared(peer, 1, 100), !is_last);
    }
    assert!(peers().all(|peer| wants.ask(0, peer).is_empty()));
    wants.peer_gone(A);
    let asked: usize = peers().map(|peer| wants.ask(0, peer).len()).sum();
    assert_eq!(asked, 1, "there is room for it now");
}

#[test]
fn an_asset_two_peers_hold_is_asked_of_one_and_of_the_other_when_that_fails() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    wants.lacking(0, B, hash(1));
    assert_eq!(wants.ask(0, A), [hash(1)]);
    assert!(wants.ask(0, B).is_empty());
    wants.unavailable(A, hash(1));
    assert!(wants.ask(0, A).is_empty());
    assert_eq!(wants.ask(0, B), [hash(1)]);
}

#[test]
fn an_offer_is_taken_unless_another_peer_is_sending_it() {
    let mut wants = Wants::default();
    assert!(wants.offered_small(0, A, BATCH, hash(1)));
    assert!(!wants.offered_small(0, B, BatchId(2), hash(1)));
    wants.batch_ended(0, A, BATCH);
    assert_eq!(wants.ask(0, B), [hash(1)], "the one that was turned away is asked");
}

#[test]
fn what_was_stored_is_neither_taken_nor_asked_for_again() {
    let mut wants = Wants::default();
    assert!(wants.offered_small(0, A, BATCH, hash(1)));
    wants.arrived(0, A, BATCH, hash(1), Arrival::Stored);
    wants.lacking(0, B, hash(1));
    assert!(!wants.offered_small(0, B, BatchId(2), hash(1)));
    assert!(wants.ask(0, B).is_empty());
    assert_eq!(wants.indexed(hash(1)), [A, B]);
}

#[test]
fn what_a_store_acknowledged_and_lost_is_asked_for_again() {
    let mut wants = Wants::default();
    assert!(wants.offered_small(0, A, BATCH, hash(1)));
    wants.arrived(0, A, BATCH, hash(1), Arrival::Stored);
    // This reading may have begun before the asset was stored.
    wants.feed_read();
    wants.lacking(0, B, hash(1));
    assert!(wants.ask(0, B).is_empty());
    wants.feed_read();
    wants.lacking(0, B, hash(1));
    assert_eq!(wants.ask(0, B), [hash(1)]);
}

#[test]
fn what_is_stored_again_is_waited_for_anew() {
    let mut wants = Wants::default();
    for _ in 0..2 {
        wants.held_by(A, hash(1));
        wants.feed_read();
    }
    assert_eq!(wants.standing(0, &hash(1)), Standing::Here);
}

#[test]
fn the_feed_may_show_an_asset_before_its_batch_is_reported() {
    let mut wants = Wants::default();
    assert!(wants.offered_small(0, A, BATCH, hash(1)));
    assert_eq!(wants.indexed(hash(1)), [A]);
    wants.arrived(0, A, BATCH, hash(1), Arrival::Stored);
    assert_eq!(wants.indexed(hash(1)), [], "nothing is kept of it");
    assert_eq!(wants.source_load(A), 0);
}

#[test]
fn bad_content_rests_longer_from_failure_to_failure() {
    let mut wants = Wants::default();
    let mut now_ms = 0;
    for pause_ms in [REST_MS_MIN, REST_MS_MIN * 2] {
        assert!(wants.offered_small(now_ms, A, BATCH, hash(1)));
        wants.arrived(now_ms, A, BATCH, hash(1), Arrival::Refused);
        assert_eq!(wants.quarantined(now_ms), 1);
        now_ms += pause_ms - 1;
        assert!(!wants.offered_small(now_ms, A, BATCH, hash(1)));
        now_ms += 1;
    }
    assert!(wants.offered_small(now_ms, A, BATCH, hash(1)));
}

#[test]
fn a_peer_that_lies_keeps_an_asset_from_nobody() {
    for lie in [Arrival::Refused, Arrival::NoRoom] {
        let mut wants = Wants::default();
        assert!(wants.offered_shared(A, 1, 1 << 40));
        wants.arrived(0, A, BatchId(1), hash(1), lie);
        assert!(!wants.offered_small(0, A, BATCH, hash(1)));
        // Neither what another peer lists ...
        wants.lacking(0, A, hash(1));
        wants.lacking(0, B, hash(1));
        assert_eq!((wants.ask(0, A), wants.ask(0, B)), (vec![], vec![hash(1)]));
        wants.peer_gone(B);
        // ... nor what it offers.
        assert!(wants.offered_small(0, C, BatchId(2), hash(1)));
        assert_eq!(wants.quarantined(0), 0, "it is on its way");
    }
}

#[test]
fn a_peer_that_is_gone_is_asked_for_nothing_it_held() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    wants.lacking(0, B, hash(1));
    assert_eq!(wants.ask(0, A), [hash(1)]);
    assert!(wants.ask(0, B).is_empty(), "it stands in no queue of B's now");
    wants.peer_gone(B);
    wants.unavailable(A, hash(1));
    assert_eq!(wants.standing(0, &hash(1)), Standing::Unknown);
    assert_eq!(wants.source_load(B), 0);
}

#[test]
fn what_a_peer_owes_for_long_is_asked_of_another_that_holds_it() {
    let mut wants = Wants::default();
    for n in [1, 2] {
        wants.lacking(0, A, hash(n));
    }
    assert_eq!(wants.ask(0, A), [hash(1), hash(2)]);
    wants.lacking(5_000, B, hash(1));
    wants.pass_over_slow_peers(ASK_MS_MAX - 1);
    assert!(wants.ask(ASK_MS_MAX - 1, B).is_empty());
    wants.pass_over_slow_peers(ASK_MS_MAX);
    assert!(wants.ask(ASK_MS_MAX, A).is_empty(), "it has it in its queue already");
    assert_eq!(wants.ask(ASK_MS_MAX, B), [hash(1)]);
    assert_eq!(wants.owed(A), 2, "the other one nobody else holds");
    assert!(wants.offered_small(ASK_MS_MAX, A, BATCH, hash(1)), "who comes first may send it");
    assert!(!wants.offered_small(ASK_MS_MAX, B, BatchId(2), hash(1)));
    assert_eq!((wants.owed(A), wants.owed(B)), (2, 0));
}

#[test]
fn what_finds_no_room_rests_alone_and_is_not_called_bad() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    wants.lacking(0, B, hash(1));
    assert_eq!(wants.ask(0, A), [hash(1)]);
    assert!(wants.offered_small(0, A, BATCH, hash(1)));
    wants.arrived(0, A, BATCH, hash(1), Arrival::NoRoom);
    assert_eq!(wants.ask(0, B), [hash(1)], "the size is what the first said");
    assert!(wants.offered_small(0, B, BATCH, hash(1)));
    wants.arrived(0, B, BATCH, hash(1), Arrival::NoRoom);
    for peer in [A, B] {
        assert!(!wants.offered_small(REST_MS_MIN - 1, peer, BATCH, hash(1)));
    }
    assert!(wants.offered_small(REST_MS_MIN - 1, B, BATCH, hash(2)));
    assert_eq!(wants.quarantined(0), 0);
    assert!(wants.offered_small(REST_MS_MIN, A, BATCH, hash(1)));
}

#[test]
fn what_was_turned_away_is_asked_for_again() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    assert_eq!(wants.ask(0, A), [hash(1)]);
    wants.turned_away(0, A, hash(1));
    wants.turned_away(0, A, hash(2));
    assert_eq!(wants.owed(A), 0);
    assert_eq!(wants.ask(0, A), [hash(1), hash(2)]);
}

#[test]
fn what_came_unasked_from_one_peer_is_not_waited_for_from_another() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    assert_eq!(wants.ask(0, A), [hash(1)]);
    wants.held_by(B, hash(1));
    assert!(!wants.offered_small(0, A, BATCH, hash(1)));
    assert_eq!(wants.source_load(A), 0);
    assert_eq!(wants.indexed(hash(1)), [A, B]);
    wants.held_by(B, hash(1));
    assert_eq!(wants.indexed(hash(1)), [], "the feed had shown it before");
}

#[test]
fn an_interrupted_asset_is_asked_for_again_a_few_times() {
    let mut wants = Wants::default();
    wants.lacking(0, A, hash(1));
    for _ in 0..ATTEMPTS_MAX {
        assert_eq!(wants.ask(0, A), [hash(1)]);
        assert!(wants.offered_small(0, A, BATCH, hash(1)));
        wants.batch_ended(0, A, BATCH);
    }
    assert!(wants.ask(0, A).is_empty());
    assert_eq!(wants.source_load(A), 0);
}

#[test]
fn a_peer_cannot_make_us_keep_more_than_its_bound() {
    let mut wants = Wants::default();
    for n in 0..WANTS_PER_PEER_MAX + 100 {
        wants.lacking(0, A, many(n));
    }
    assert_eq!(wants.room(A), 0);
    assert_eq!(wants.wants.len(), WANTS_PER_PEER_MAX);
    assert!(!wants.offered_small(0, A, BATCH, hash(255)));
}

#[test]
fn what_is_lacking_is_found_by_the_start_of_its_hash() {
    let mut wants = Wants::default();
    for n in [0x12, 0x13, 0xff] {
        wants.lacking(0, A, hash(n));
    }
    assert_eq!(wants.lacked("12"), [hash(0x12)]);
    assert_eq!(wants.lacked("ffff"), [hash(0xff)]);
    assert_eq!(wants.lacked("1"), [hash(0x12), hash(0x13)]);
    assert_eq!(wants.lacked("14"), []);
    assert_eq!(wants.lacked("xyz"), []);
}

#[derive(Debug, Clone)]
enum Step {
    Lacking(u8, u8),
    Ask(u8),
    Offered(u8, u8, u8),
    Arrived(u8, u8, u8, u8),
    Ended(u8, u8),
    Unavailable(u8, u8),
    TurnedAway(u8, u8),
    Gone(u8),
    Wait(u64),
    Indexed(u8),
    Suppose(u8, u8),
    AskFirst(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let (peer, hash, batch) = (|| 1..4u8, || 0..6u8, || 0..4u8);
    prop_oneof![
        (peer(), hash()).prop_map(|(p, h)| Step::Lacking(p, h)),
        peer().prop_map(Step::Ask),
        (peer(), batch(), hash()).prop_map(|(p, b, h)| Step::Offered(p, b, h)),
        (peer(), batch(), hash(), 0..6u8).prop_map(|(p, b, h, a)| Step::Arrived(p, b, h, a)),
        (peer(), batch()).prop_map(|(p, b)| Step::Ended(p, b)),
        (peer(), hash()).prop_map(|(p, h)| Step::Unavailable(p, h)),
        (peer(), hash()).prop_map(|(p, h)| Step::TurnedAway(p, h)),
        (0..40_000u64).prop_map(Step::Wait),
        peer().prop_map(Step::Gone),
        hash().prop_map(Step::Indexed),
        (peer(), hash()).prop_map(|(p, h)| Step::Suppose(p, h)),
        (peer(), hash()).prop_map(|(p, h)| Step::AskFirst(p, h)),
    ]
}

proptest! {
    #[test]
    fn every_want_stays_reachable_and_every_ask_has_its_want(
        steps in proptest::collection::vec(step(), 0..80)
    ) {
        let mut wants = Wants::default();
        let node = |p: u8| NodeId([p; 32]);
        let mut now_ms = 0;
        for step in steps {
            match step {
                Step::Lacking(p, h) => wants.lacking(now_ms, node(p), hash(h)),
                Step::Ask(p) => drop(wants.ask(now_ms, node(p))),
                Step::Offered(p, b, h) => {
                    // Several peers may send half of the assets.
                    let digest = Digest { hash: hash(h), size_bytes: 1 };
                    let batch = BatchId(u64::from(b));
                    wants.offered(now_ms, node(p), batch, digest, h % 2 == 0);
                }
                Step::Arrived(p, b, h, a) => {
                    let arrival = [
                        Arrival::Stored,
                        Arrival::Held,
                        Arrival::Interrupted,
                        Arrival::Unavailable,
                        Arrival::Refused,
                        Arrival::NoRoom,
                    ][usize::from(a)];
                    wants.arrived(now_ms, node(p), BatchId(u64::from(b)), hash(h), arrival);
                }
                Step::Ended(p, b) => {
                    wants.batch_ended(now_ms, node(p), BatchId(u64::from(b)));
                }
                Step::Unavailable(p, h) => wants.unavailable(node(p), hash(h)),
                Step::TurnedAway(p, h) => wants.turned_away(now_ms, node(p), hash(h)),
                Step::Wait(ms) => {
                    now_ms += ms;
                    wants.pass_over_slow_peers(now_ms);
                }
                Step::Gone(p) => wants.peer_gone(node(p)),
                Step::Indexed(h) => drop(wants.indexed(hash(h))),
                Step::Suppose(p, h) => wants.suppose(now_ms, node(p), hash(h)),
                Step::AskFirst(p, h) => drop(wants.ask_first(now_ms, node(p), hash(h))),
            }
            let mut held = BTreeMap::<NodeId, usize>::new();
            for (hash, want) in &wants.wants {
                let is_owed = |peer: &NodeId| {
                    wants.sources.get(peer).is_some_and(|s| s.owed.contains(hash))
                };
                for holder in &want.holders {
                    *held.entry(*holder).or_default() += 1;
                    let queue = &wants.sources[holder].queue;
                    let is_due = want.may_be_asked() && !is_owed(holder);
                    prop_assert_eq!(queue.contains(hash), is_due, "{:?} {:?}", hash, want);
                }
                let is_reachable = match &want.state {
                    State::Queued => !want.holders.is_empty(),
                    State::Asked(peer, _) => want.holders.contains(peer) && is_owed(peer),
                    State::Arriving(sources) => {
                        let mut peers = sources.batches.keys();
                        !sources.batches.is_empty()
                            && peers.all(|peer| want.holders.contains(peer) && is_owed(peer))
                    }
                };
                prop_assert!(is_reachable, "{hash:?} {want:?}");
                if let State::Asked(..) = want.state {
                    prop_assert!(wants.deadline_ms().is_some());
                }
                if let State::Arriving(sources) = &want.state {
                    let is_watched = sources.is_shared || sources.is_open || want.indexed;
                    prop_assert!(is_watched || wants.deadline_ms().is_some());
                }
            }
            for (peer, source) in &wants.sources {
                prop_assert_eq!(source.held, held.get(peer).copied().unwrap_or_default());
                let is_held = |hash: &Hash| wants.is_holder(*peer, hash);
                prop_assert!(source.queue.iter().all(is_held));
            }
        }
    }
}
