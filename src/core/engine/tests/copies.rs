//! Who is confirmed as a holder of what, what is judged, and what is asked for because it is missing.

use super::*;
use crate::core::copies::{AbsentPage, AbsentSet, MissingPlace};
use crate::core::engine::{Belief, OwnCopies};
use crate::core::journal::set_hash::SetDigest;

const NONE: AbsentSet = AbsentSet { log: [0; 16], turn: 0, digest: SetDigest([0; 32]) };

fn absent(n: u8) -> AbsentSet {
    AbsentSet { log: [n; 16], turn: u64::from(n), digest: SetDigest([n; 32]) }
}

/// A device with these copies, connected to `A`, which tells which hashes it does not hold.
fn bench(own: OwnCopies, belief: Belief) -> Bench {
    let mut bench = Bench::new();
    let empty = Bench::new();
    bench.engine = empty.engine.with_copies(own, vec![(A, belief)]);
    bench.tell(Input::Connected { conn: A_CONN, peer: A, dialed: false, plain: false });
    let hello = Hello {
        group_id: GROUP,
        device_name: "a".into(),
        store_id: StoreId([1; 16]),
        algorithm: HashAlgorithm::Blake3,
        build: "test".into(),
        journal: false,
        proofs: false,
        thumbnails: false,
        copies: true,
        chooses: true,
        metadata: true,
    };
    bench.hear(Message::Hello(hello));
    bench
}

impl Bench {
    fn hear(&mut self, message: Message) {
        self.tell(Input::Message { conn: A_CONN, message });
    }

    /// `A` tells that it knows the same hashes as this device, and which it does not hold.
    fn hear_same_set(&mut self, absent: AbsentSet) {
        self.hear(Message::Absent(absent));
        let known = self.engine.known();
        let (sketch, epoch) = (known.sketch.clone(), [1; 16]);
        let summary = Snapshot::new(sketch, epoch, 7, None, false).summary.announced();
        self.hear(Message::Summary(Box::new(summary)));
    }

    fn sent(&self) -> Vec<&Message> {
        let effects = self.effects.iter();
        effects
            .filter_map(|effect| match effect {
                Effect::Send { message, .. } => Some(message),
                _ => None,
            })
            .collect()
    }

    fn confirmations(&self) -> Vec<(u64, AbsentSet)> {
        let of = |effect: &Effect| match effect {
            Effect::Confirm { to_seq, absent, .. } => Some((*to_seq, *absent)),
            _ => None,
        };
        self.effects.iter().filter_map(of).collect()
    }

    fn asks_for_missing(&self) -> usize {
        let asks = |effect: &&Effect| matches!(effect, Effect::AskMissing { .. });
        self.effects.iter().filter(asks).count()
    }
}

#[test]
fn what_is_not_held_is_told_before_the_set_that_it_belongs_to() {
    let own = OwnCopies { absent: absent(3), missing: 0, chooses: true };
    let mut bench = bench(own, Belief::default());
    let sent = bench.sent();
    let place = |of: fn(&Message) -> bool| sent.iter().position(|message| of(message)).unwrap();
    let told = place(|message| *message == Message::Absent(absent(3)));
    assert!(told < place(|message| matches!(message, Message::Summary(_))));
    bench.effects.clear();
    bench.wait(TELL_PAUSE_MS);
    let (entries, missing) = (vec![(1, asset(1, 1).hash)], 0);
    bench.tell(Input::Noted { entries, absent: absent(4), missing });
    let sent = bench.sent();
    assert_eq!(*sent[0], Message::Absent(absent(4)));
    assert!(matches!(sent[1], Message::Summary(_)), "{sent:?}");
}

/// Longer than the engine pauses before it tells again.
const TELL_PAUSE_MS: u64 = 10_000;

#[test]
fn what_a_page_told_is_corrected_when_it_is_no_longer_so() {
    let own = OwnCopies { absent: absent(3), missing: 0, chooses: true };
    let mut bench = bench(own, Belief::default());
    bench.hear(Message::AbsentPull { log: [0; 16], after_turn: 0 });
    bench.effects.clear();
    let (hashes, held, now) = (Vec::new(), Vec::new(), absent(4));
    let page = AbsentPage { now, is_start: true, absent: hashes, held, next: 4, more: false };
    bench.tell(Input::AbsentRead { conn: A_CONN, page: Some(page) });
    // It is as it was told at first, and the page tells something else after that.
    bench.wait(TELL_PAUSE_MS);
    let sent = bench.sent();
    let place = |of: fn(&Message) -> bool| sent.iter().position(|message| of(message));
    let page = place(|message| matches!(message, Message::AbsentPage(_)));
    let told = place(|message| *message == Message::Absent(absent(3)));
    assert!(page.is_some() && page < told, "{sent:?}");
}

#[test]
fn a_peer_is_confirmed_only_when_both_know_the_same_and_what_it_lacks_is_known() {
    let mut bench = bench(OwnCopies::default(), Belief::default());
    bench.hear_same_set(absent(3));
    assert_eq!(bench.confirmations(), [], "its absent hashes are not known");
    let pull = Message::AbsentPull { log: [0; 16], after_turn: 0 };
    assert!(bench.sent().contains(&&pull));
    let page = AbsentPage {
        now: absent(3),
        is_start: true,
        absent: vec![(asset(1, 1).hash, None)],
        held: Vec::new(),
        next: 3,
        more: false,
    };
    bench.hear(Message::AbsentPage(Box::new(page.clone())));
    let takes = Effect::TakeAbsent { conn: A_CONN, peer: A, page: Box::new(page) };
    assert!(bench.effects.contains(&takes));
    bench.tell(Input::Believed { conn: A_CONN, peer: A, belief: Some(absent(3)), restarts: false });
    assert_eq!(bench.confirmations(), [(0, absent(3))]);
    // A hash more here: the sets differ, and nothing more is confirmed.
    bench.effects.clear();
    bench.tell(Input::Indexed { entries: vec![(1, asset(5, 10))], behind: false });
    bench.wait(60_000);
    assert_eq!(bench.confirmations(), []);
}

#[test]
fn a_peer_that_tells_something_else_again_and_again_is_not_confirmed_and_asked_no_more() {
    let mut bench = bench(OwnCopies::default(), Belief::default());
    bench.hear_same_set(absent(3));
    for _ in 0..10 {
        let pulls = |message: &&&Message| matches!(message, Message::AbsentPull { .. });
        if bench.sent().iter().filter(pulls).count() == 0 {
            assert_eq!(bench.confirmations(), []);
            return;
        }
        bench.effects.clear();
        let (absent_hashes, held) = (Vec::new(), Vec::new());
        let page = AbsentPage {
            now: absent(3),
            is_start: true,
            absent: absent_hashes,
            held,
            next: 3,
            more: false,
        };
        bench.hear(Message::AbsentPage(Box::new(page)));
        bench.tell(Input::Believed { conn: A_CONN, peer: A, belief: Some(NONE), restarts: true });
    }
    panic!("it pulls for ever");
}

#[test]
fn absent_hashes_that_were_not_pulled_and_pages_without_end_are_refused() {
    let page = |more, next| AbsentPage {
        now: absent(3),
        is_start: false,
        absent: Vec::new(),
        held: Vec::new(),
        next,
        more,
    };
    let mut unasked = bench(OwnCopies::default(), Belief::default());
    unasked.hear(Message::AbsentPage(Box::new(page(false, 3))));
    assert_eq!(unasked.closed(), Some((A_CONN, CloseCode::Protocol)));
    let belief = Belief { absent: absent(2), is_confirmed: true };
    let mut endless = bench(OwnCopies::default(), belief);
    endless.hear(Message::Absent(absent(3)));
    endless.hear(Message::AbsentPage(Box::new(page(true, 2))));
    assert_eq!(endless.closed(), Some((A_CONN, CloseCode::Protocol)));
}

#[test]
fn what_a_peer_has_is_judged_with_its_size_and_only_what_is_wanted_is_asked_for() {
    let own = OwnCopies { chooses: true, ..OwnCopies::default() };
    let mut bench = bench(own, Belief::default());
    bench.hear_same_set(NONE);
    let (photo, video) = (asset(1, 10), asset(2, 20));
    let hashes = vec![photo.hash, video.hash];
    let out = &mut bench.effects;
    bench.engine.on_difference(bench.now_ms, A_CONN, A, hashes.clone(), out);
    bench.tell(Input::Tick);
    assert!(bench.sent().contains(&&Message::SizePull(hashes)));
    assert_eq!(bench.solicited(A_CONN), []);
    bench.hear(Message::Sizes(vec![Some(10), Some(20)]));
    let sized = vec![(photo.hash, Some(10)), (video.hash, Some(20))];
    assert!(bench.effects.contains(&Effect::Judge { conn: A_CONN, hashes: sized }));
    assert!(!bench.engine.peer_views()[0].in_sync, "it is not known yet what is missing");
    bench.tell(Input::Noted { entries: vec![(1, video.hash)], absent: absent(1), missing: 0 });
    bench.tell(Input::Judged { conn: A_CONN, wanted: vec![photo.hash] });
    assert_eq!(bench.solicited(A_CONN), [photo.hash]);
    bench.hear(Message::Sizes(vec![None]));
    assert_eq!(bench.closed(), Some((A_CONN, CloseCode::Protocol)), "nobody asked");
}

#[test]
fn missing_assets_are_asked_of_a_confirmed_holder_until_they_are_here() {
    let own = OwnCopies { absent: absent(1), missing: 1, chooses: false };
    let mut bench = bench(own, Belief::default());
    assert_eq!(bench.asks_for_missing(), 0, "nothing is known of what it holds");
    bench.hear_same_set(NONE);
    assert_eq!(bench.confirmations(), [(0, NONE)]);
    bench.tell(Input::Confirmed { peer: A });
    assert_eq!(bench.asks_for_missing(), 1);
    let wanted = asset(1, 10);
    let (hashes, next) = (vec![wanted.hash], None::<MissingPlace>);
    bench.tell(Input::Missing { conn: A_CONN, hashes, next });
    assert_eq!(bench.solicited(A_CONN), [wanted.hash]);
    let (in_sync, missing) = (bench.engine.peer_views()[0].in_sync, bench.engine.missing());
    assert!(!in_sync && missing == 1);
    assert_eq!(bench.offer(A_CONN, BatchId(1), &[wanted]), [true]);
    bench.received(A_CONN, BatchId(1), &[(wanted, Arrival::Stored)]);
    bench.tell(Input::Noted { entries: Vec::new(), absent: absent(2), missing: 0 });
    bench.tell(Input::Indexed { entries: vec![(0, wanted)], behind: false });
    bench.wait(60_000);
    let told = |message: &&Message| **message == Message::Absent(absent(2));
    assert!(bench.sent().into_iter().any(|message| told(&message)), "it is held here now");
    assert!(bench.engine.peer_views()[0].in_sync);
}

#[test]
fn missing_assets_that_a_peer_does_not_hold_are_not_asked_for_again_and_again() {
    let own = OwnCopies { absent: absent(1), missing: 1, chooses: false };
    let belief = Belief { absent: NONE, is_confirmed: true };
    let mut bench = bench(own, belief);
    assert_eq!(bench.asks_for_missing(), 1);
    bench.tell(Input::Missing { conn: A_CONN, hashes: Vec::new(), next: None });
    bench.wait(3_600_000);
    assert_eq!(bench.asks_for_missing(), 1);
    // Something new is missing.
    bench.tell(Input::Noted { entries: Vec::new(), absent: absent(2), missing: 2 });
    assert_eq!(bench.asks_for_missing(), 2);
}

#[test]
fn what_a_peer_asks_for_is_in_doubt_there_if_it_was_confirmed() {
    let hash = asset(1, 10).hash;
    for is_confirmed in [false, true] {
        let belief = Belief { absent: NONE, is_confirmed };
        let mut bench = bench(OwnCopies::default(), belief);
        bench.hear(Message::Solicit(vec![hash]));
        let doubt = Effect::Doubt { peer: A, hashes: vec![hash] };
        assert_eq!(bench.effects.contains(&doubt), is_confirmed);
    }
}

#[test]
fn contents_are_not_sent_uninvited_to_a_peer_that_chooses_and_arrivals_are_no_news() {
    let mut bench = bench(OwnCopies::default(), Belief::default());
    bench.tell(Input::Indexed { entries: vec![(1, asset(1, 10))], behind: false });
    let inline = bench.effects.iter().find_map(|effect| match effect {
        Effect::SendBatch { inline, .. } => Some(*inline),
        _ => None,
    });
    assert_eq!(inline, Some(false));
    // It was known and absent, and is held now: its old number is not above the head.
    bench.effects.clear();
    bench.tell(Input::Indexed { entries: vec![(1, asset(7, 10))], behind: false });
    let offers = |effect: &Effect| matches!(effect, Effect::SendBatch { .. });
    assert!(!bench.effects.iter().any(offers), "the peer knows of it");
}
