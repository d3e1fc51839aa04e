//! Who is asked for what, in a few hand-made courses and in random ones.

use super::*;
use proptest::prelude::*;

const A: NodeId = NodeId([1; 32]);
const B: NodeId = NodeId([2; 32]);
const C: NodeId = NodeId([3; 32]);
const BATCH: BatchId = BatchId(1);

fn hash(n: u8) -> Hash {
    Hash([n; 32])
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
    // One that fails is not asked again, and the others go on.
    wants.batch_ended(A, BatchId(1));
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
fn who_gives_another_size_than_the_first_is_heard_when_that_one_has_failed() {
    let mut wants = Wants::default();
    assert!(wants.offered_shared(A, 1, 1 << 40));
    assert!(!wants.offered_shared(B, 2, 100));
    wants.arrived(0, A, BatchId(1), hash(1), Arrival::Refused);
    assert_eq!(wants.ask(0, B), [hash(1)]);
    assert!(wants.offered_shared(B, 3, 100));
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
    wants.batch_ended(A, BATCH);
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
    // This reading may have begun before it was stored.
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
        // Neither what another lists ...
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
        wants.batch_ended(A, BATCH);
    }
    assert!(wants.ask(0, A).is_empty());
    assert_eq!(wants.source_load(A), 0);
}

#[test]
fn a_peer_cannot_make_us_keep_more_than_its_bound() {
    let mut wants = Wants::default();
    for n in 0..WANTS_PER_PEER_MAX as u64 + 100 {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        wants.lacking(0, A, Hash(bytes));
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
                    // Of half of them, all parts are asked of one peer.
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
                Step::Ended(p, b) => wants.batch_ended(node(p), BatchId(u64::from(b))),
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
            for (hash, want) in &wants.wants {
                let is_up = |holder: &NodeId| {
                    let source = wants.sources.get(holder);
                    source.is_some_and(|s| s.queue.contains(hash) || s.owed.contains(hash))
                };
                let is_owed = |peer: &NodeId| {
                    want.holders.contains(peer)
                        && wants.sources.get(peer).is_some_and(|s| s.owed.contains(hash))
                };
                let reachable = match &want.state {
                    State::Queued => {
                        !want.holders.is_empty() && want.holders.iter().all(is_up)
                    }
                    State::Asked(peer, _) => is_owed(peer),
                    State::Arriving(sources) => {
                        !sources.batches.is_empty()
                            && sources.batches.keys().all(is_owed)
                            && (!sources.is_shared
                                || want.indexed
                                || want.holders.iter().all(is_up))
                    }
                };
                prop_assert!(reachable, "{hash:?} {want:?}");
                if let State::Asked(..) = want.state {
                    prop_assert!(wants.deadline_ms().is_some());
                }
            }
        }
    }
}
