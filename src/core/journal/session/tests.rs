#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use bytes::Bytes;

use super::*;
use crate::core::ids::NodeId;
use crate::core::journal::message::{FEATURES, Head, StateDigest};
use crate::core::journal::op::{KINDS, LogInfo};
use crate::core::journal::set_hash::SetDigest;

const GROUP: GroupId = GroupId([9; 32]);
const WALL_MS: u64 = 1_800_000_000_000;

/// A session, with its peer and its journal played by the test.
struct Stage {
    session: Session,
    now: Now,
    out: Vec<Effect>,
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        group: GROUP,
        now_ms: WALL_MS as i64,
        intro: Vec::new(),
        features: FEATURES,
    }
}

fn log_info(n: u8) -> LogInfo {
    LogInfo { author: NodeId([n; 32]), nonce: [n; 16] }
}

fn log(n: u8) -> LogId {
    log_info(n).id(&GROUP)
}

fn op(n: u8, body: u8) -> SignedOp {
    SignedOp { log: log_info(n), body: Bytes::from(vec![body]), sig: [0; 64] }
}

fn entry(n: u8, seq: u64) -> ClockEntry {
    let head = Head([u8::try_from(seq).unwrap(); 16]);
    let above = SetDigest::default();
    ClockEntry { log: log(n), seq, head, above, forked: false, withheld: false }
}

fn clock(entries: &[ClockEntry], drained: bool, digest: u8) -> Clock {
    let digest = Some(StateDigest { kinds: KINDS, sum: SetDigest([digest; 32]) });
    Clock { entries: entries.to_vec(), drained, restart: false, digest }
}

fn ops(ops: Vec<SignedOp>) -> Input {
    Input::Received(JournalMessage::Ops(Ops { ops, has_more: false }))
}

fn told(clock: Clock) -> Input {
    Input::Received(JournalMessage::Clock(clock))
}

impl Stage {
    fn new(known: bool) -> Self {
        let now = Now { mono_ms: 1_000, wall_ms: WALL_MS };
        let mut out = Vec::new();
        let start = Start { hello: hello(), known, repaired: Repaired::default(), jitter: 1 };
        let session = Session::start(start, now, &mut out);
        Self { session, now, out }
    }

    fn handle(&mut self, input: Input) -> Vec<Effect> {
        self.session.handle(self.now, input, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn pass(&mut self, ms: u64) -> Vec<Effect> {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.handle(Input::Tick)
    }

    /// Handles an input and answers every clock effect until none is left. Returns the other
    /// effects.
    fn take_clocks(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = self.handle(input);
        let mut seen = 0;
        while let Some(at) =
            effects[seen..].iter().position(|effect| matches!(effect, Effect::TakeClock { .. }))
        {
            seen += at + 1;
            effects.extend(self.handle(Input::Compared(Compared::default())));
        }
        effects
    }

    /// A stage where the peer is a member and our first clock, with these entries, was sent.
    fn open(entries: &[ClockEntry]) -> Self {
        let mut stage = Self::new(true);
        assert!(matches!(stage.out[..], [Effect::Send(JournalMessage::Hello(_))]));
        stage.out.clear();
        assert_eq!(stage.handle(Input::Sent), []);
        let judge = stage.handle(Input::Received(JournalMessage::Hello(hello())));
        assert_eq!(judge, [Effect::Judge { intro: Vec::new() }]);
        assert_eq!(stage.handle(Input::Judged(Standing::Member)), [Effect::ReadClock]);
        let sent = stage.handle(Input::ClockRead(clock(entries, false, 0)));
        assert!(matches!(&sent[..], [Effect::Send(JournalMessage::Clock(c))] if !c.drained));
        assert_eq!(stage.handle(Input::Sent), []);
        stage
    }

    /// The peer sends its whole first clock, and we have nothing for it.
    fn settle(&mut self, theirs: Clock, ours: Clock) -> Vec<Effect> {
        let effects = self.handle(told(theirs));
        assert!(matches!(effects[..], [Effect::TakeClock { .. }]), "{effects:?}");
        let effects = self.handle(Input::Compared(Compared::default()));
        assert!(matches!(effects[..], [Effect::Scan { cursor: Some(0), .. }]), "{effects:?}");
        self.handle(Input::Scanned(drained(ours)))
    }
}

fn drained(clock: Clock) -> Scanned {
    Scanned { ops: Vec::new(), cursor: 7, drained: Some(clock) }
}

fn ended(effects: &[Effect]) -> Option<End> {
    effects.iter().find_map(|effect| match effect {
        Effect::End { why, .. } => Some(*why),
        _ => None,
    })
}

#[test]
fn a_stranger_hears_nothing_of_us_but_a_refusal() {
    let mut stage = Stage::new(false);
    assert_eq!(stage.out, []);
    let effects = stage.handle(Input::Received(JournalMessage::Hello(hello())));
    assert_eq!(effects, [Effect::Judge { intro: Vec::new() }]);
    assert!(!stage.session.reads());
    let effects = stage.handle(Input::Judged(Standing::Stranger));
    assert_eq!(ended(&effects), Some(End::Refused(RefuseCode::NotMember)));
    assert_eq!(effects.len(), 1);
}

#[test]
fn a_peer_of_another_group_or_version_or_without_a_word_is_refused() {
    for (theirs, why) in [
        (Hello { group: GroupId([8; 32]), ..hello() }, RefuseCode::Group),
        (Hello { version: VERSION + 1, ..hello() }, RefuseCode::Version),
    ] {
        let effects = Stage::new(false).handle(Input::Received(JournalMessage::Hello(theirs)));
        assert_eq!(ended(&effects), Some(End::Refused(why)));
    }
    let mut silent = Stage::new(false);
    assert_eq!(silent.session.deadline_ms(), Some(1_000 + HELLO_WAIT_MS));
    assert_eq!(ended(&silent.pass(HELLO_WAIT_MS)), Some(End::Silent));
}

#[test]
fn frames_out_of_order_end_the_session() {
    let early = Stage::new(true).handle(told(clock(&[], false, 0)));
    assert!(matches!(ended(&early), Some(End::Protocol(_))));
    let mut stage = Stage::open(&[]);
    let ops_first = stage.handle(ops(vec![op(1, 1)]));
    assert!(matches!(ended(&ops_first), Some(End::Protocol(_))));
    let mut stage = Stage::open(&[]);
    let twice = stage.handle(Input::Received(JournalMessage::Hello(hello())));
    assert!(matches!(ended(&twice), Some(End::Protocol(_))));
}

#[test]
fn one_batch_is_under_way_and_the_drained_clock_follows_the_last() {
    let mut stage = Stage::open(&[]);
    stage.handle(told(clock(&[], true, 0)));
    stage.handle(Input::Compared(Compared::default()));
    let some = |n| Scanned { ops: vec![(log(1), op(1, n))], cursor: u64::from(n), drained: None };
    let effects = stage.handle(Input::Scanned(some(1)));
    assert!(matches!(&effects[..], [Effect::Send(JournalMessage::Ops(o))] if o.has_more));
    assert_eq!(stage.handle(Input::Committed { own: true, members: false }), []);
    let effects = stage.handle(Input::Sent);
    assert!(matches!(effects[..], [Effect::Scan { cursor: Some(1), .. }]), "{effects:?}");
    let last = Scanned { drained: Some(clock(&[entry(1, 2)], true, 3)), ..some(2) };
    let effects = stage.handle(Input::Scanned(last));
    assert!(matches!(&effects[..], [Effect::Send(JournalMessage::Ops(o))] if !o.has_more));
    let effects = stage.handle(Input::Sent);
    let [Effect::Send(JournalMessage::Clock(sent))] = &effects[..] else { panic!("{effects:?}") };
    assert!(sent.drained && sent.entries == [entry(1, 2)]);
}

#[test]
fn a_gap_is_jumped_on_a_drained_clock_and_never_after_a_refusal() {
    let jump_of = |effects: Vec<Effect>| match &effects[..] {
        [Effect::TakeClock { jump, .. }, ..] => jump.clone(),
        other => panic!("{other:?}"),
    };
    let mut stage = Stage::open(&[]);
    assert_eq!(jump_of(stage.handle(told(clock(&[entry(1, 5)], false, 0)))), []);
    stage.handle(Input::Compared(Compared::default()));
    let both = jump_of(stage.handle(told(clock(&[entry(2, 4)], true, 0))));
    assert_eq!(both.len(), 2, "what was told before is jumped, too");
    stage.handle(Input::Compared(Compared::default()));

    stage.handle(ops(vec![op(3, 1)]));
    let why = Why::Future { until_ms: WALL_MS + 60_000 };
    stage.handle(Input::Applied(vec![NotTaken { log: log(3), seq: 1, why }]));
    assert_eq!(jump_of(stage.handle(told(clock(&[entry(1, 9)], true, 0)))), []);
}

#[test]
fn a_log_held_back_pauses_alone_and_is_asked_for_when_its_time_has_come() {
    let mut stage = Stage::open(&[]);
    stage.settle(clock(&[], true, 0), clock(&[], true, 0));
    stage.handle(Input::Sent);
    stage.handle(ops(vec![op(3, 1), op(4, 1)]));
    let why = Why::Future { until_ms: WALL_MS + 60_000 };
    let effects = stage.handle(Input::Applied(vec![NotTaken { log: log(3), seq: 1, why }]));
    let refused = effects.iter().any(|effect| {
        matches!(effect, Effect::Send(JournalMessage::Refuse(r)) if r.code == RefuseCode::Future)
    });
    assert!(refused, "{effects:?}");
    stage.handle(Input::Sent);
    let effects = stage.handle(ops(vec![op(3, 2), op(4, 2)]));
    assert_eq!(effects, [Effect::Apply(vec![op(4, 2)])]);
    stage.handle(Input::Applied(Vec::new()));
    assert!(stage.session.deadline_ms().unwrap() <= stage.now.mono_ms + 60_000);
    assert_eq!(stage.pass(60_000), [Effect::ReadClock]);
    let effects = stage.handle(Input::ClockRead(clock(&[], false, 0)));
    assert!(matches!(&effects[..], [Effect::Send(JournalMessage::Clock(c))] if c.restart));
    assert_eq!(stage.handle(ops(vec![op(3, 1)])), [Effect::Apply(vec![op(3, 1)])]);
}

#[test]
fn a_full_disk_refuses_asks_again_in_time_and_jumps_no_gap_until_all_has_come() {
    let jump_of = |effects: Vec<Effect>| match &effects[..] {
        [Effect::TakeClock { jump, .. }, ..] => jump.iter().map(|e| e.log).collect::<BTreeSet<_>>(),
        other => panic!("{other:?}"),
    };
    let mut stage = Stage::open(&[]);
    stage.settle(clock(&[], true, 0), clock(&[], true, 0));
    stage.handle(Input::Sent);
    stage.handle(ops(vec![op(3, 1)]));
    let full = NotTaken { log: log(3), seq: 1, why: Why::Full };
    let effects = stage.handle(Input::Applied(vec![full]));
    let refused = effects.iter().any(|effect| {
        matches!(effect, Effect::Send(JournalMessage::Refuse(r)) if r.code == RefuseCode::Full)
    });
    assert!(refused, "{effects:?}");
    stage.handle(Input::Sent);
    let told_all = || told(clock(&[entry(1, 5), entry(3, 2)], true, 0));
    assert_eq!(jump_of(stage.handle(told_all())), BTreeSet::from([log(1)]));
    // The disk was full for this jump as well.
    let unjumped = vec![log(1)];
    stage.handle(Input::Compared(Compared { unjumped, ..Compared::default() }));

    stage.pass(HOLD_MS_MIN);
    let effects = stage.handle(Input::ClockRead(clock(&[], false, 0)));
    assert!(
        matches!(&effects[..], [Effect::Send(JournalMessage::Clock(c))] if c.restart),
        "{effects:?}"
    );
    assert_eq!(stage.handle(ops(vec![op(3, 1)])), [Effect::Apply(vec![op(3, 1)])]);
    stage.handle(Input::Applied(Vec::new()));
    assert_eq!(jump_of(stage.handle(told_all())), BTreeSet::from([log(1), log(3)]));
}

#[test]
fn a_peer_that_asks_again_while_a_scan_is_under_way_is_not_missed() {
    let mut stage = Stage::open(&[entry(1, 3)]);
    stage.settle(clock(&[entry(1, 2)], false, 0), clock(&[entry(1, 3)], true, 0));
    stage.handle(Input::Sent);
    let asks = Clock { restart: true, ..clock(&[], false, 0) };
    let effects = stage.handle(told(asks));
    let [Effect::TakeClock { .. }, Effect::Scan { cursor: Some(7), .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    let compared = Compared { has: vec![(log(1), 2)], start: 2, ..Compared::default() };
    assert_eq!(stage.handle(Input::Compared(compared)), []);
    let effects = stage.handle(Input::Scanned(drained(clock(&[entry(1, 3)], true, 0))));
    assert!(matches!(effects[..], [Effect::Scan { cursor: Some(2), .. }]), "{effects:?}");
}

#[test]
fn what_the_peer_sent_does_not_go_back_to_it() {
    let mut stage = Stage::open(&[]);
    stage.settle(clock(&[], true, 0), clock(&[], true, 0));
    stage.handle(Input::Sent);
    stage.handle(ops(vec![op(1, 1)]));
    stage.handle(Input::Applied(Vec::new()));
    stage.handle(Input::Committed { own: false, members: false });
    let effects = stage.pass(COALESCE_MS);
    assert!(matches!(effects[..], [Effect::Scan { .. }]), "{effects:?}");
    let found = Scanned {
        ops: vec![(log(1), op(1, 1)), (log(2), op(2, 1))],
        cursor: 9,
        drained: Some(clock(&[], true, 0)),
    };
    let effects = stage.handle(Input::Scanned(found));
    let [Effect::Send(JournalMessage::Ops(sent))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(sent.ops, [op(2, 1)]);
}

#[test]
fn equal_clocks_with_unequal_digests_send_everything_once_in_a_while() {
    let mut stage = Stage::open(&[entry(1, 2)]);
    let (ours, theirs) = (clock(&[entry(1, 2)], true, 1), clock(&[entry(1, 2)], true, 2));
    let effects = stage.settle(theirs.clone(), ours.clone());
    let [Effect::Report(Report::Repairing), Effect::Scan { cursor: Some(0), has }] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert!(has.is_empty());
    assert_eq!(stage.session.repaired().everything_ms, Some(stage.now.mono_ms));
    let effects = stage.handle(Input::Scanned(drained(ours.clone())));
    assert!(matches!(effects[..], [Effect::Send(JournalMessage::Clock(_))]), "{effects:?}");
    stage.handle(Input::Sent);
    assert!(!stage.session.in_sync());
    stage.now.mono_ms += REPAIR_PAUSE_MS;
    let effects = stage.handle(Input::Tick);
    assert!(matches!(effects[..], [Effect::Scan { .. }]), "{effects:?}");
    let effects = stage.handle(Input::Scanned(drained(ours)));
    assert!(effects.contains(&Effect::Report(Report::Repairing)), "{effects:?}");
}

#[test]
fn unequal_clocks_or_another_reading_of_the_ops_are_no_reason_to_send_everything() {
    let later = Some(StateDigest { kinds: KINDS + 1, sum: SetDigest([3; 32]) });
    for (ours, theirs) in [
        (clock(&[entry(1, 3)], true, 1), clock(&[entry(1, 2)], true, 2)),
        (Clock { digest: None, ..clock(&[], true, 1) }, clock(&[], true, 2)),
        (clock(&[], true, 1), Clock { digest: later, ..clock(&[], true, 1) }),
    ] {
        let mut stage = Stage::open(&[]);
        let effects = stage.settle(theirs, ours);
        assert!(!effects.contains(&Effect::Report(Report::Repairing)), "{effects:?}");
    }
}

#[test]
fn a_forked_log_that_does_not_match_is_sent_whole_once_in_a_while() {
    let forked = |above| ClockEntry { forked: true, above: SetDigest([above; 32]), ..entry(1, 2) };
    let mut stage = Stage::open(&[]);
    let ours = clock(&[forked(1)], true, 1);
    let effects = stage.settle(clock(&[forked(2)], true, 1), ours.clone());
    let [Effect::Report(Report::Matching), Effect::Scan { cursor: None, has }] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert!(!has.contains_key(&log(1)));
    let sent_ms = stage.now.mono_ms;
    assert_eq!(stage.session.repaired().forked_ms, BTreeMap::from([(log(1), sent_ms)]));
    let effects = stage.handle(Input::Scanned(drained(ours.clone())));
    assert!(matches!(effects[..], [Effect::Send(JournalMessage::Clock(_))]), "{effects:?}");
    stage.handle(Input::Sent);
    let scans_again = |stage: &mut Stage| {
        let effects = stage.handle(Input::Tick);
        assert!(matches!(effects[..], [Effect::Scan { .. }]), "{effects:?}");
        let effects = stage.handle(Input::Scanned(drained(ours.clone())));
        let again = effects.contains(&Effect::Report(Report::Matching));
        if !again {
            stage.handle(Input::Sent);
        }
        again
    };
    stage.now.mono_ms = sent_ms + REPAIR_PAUSE_MS - 1;
    assert!(!scans_again(&mut stage));
    stage.now.mono_ms = sent_ms + REPAIR_PAUSE_MS;
    assert!(scans_again(&mut stage));
}

#[test]
fn a_new_op_in_a_forked_log_goes_alone_and_the_peer_is_heard_before_more_is_sent() {
    let forked = |above| ClockEntry { forked: true, above: SetDigest([above; 32]), ..entry(1, 2) };
    let mut stage = Stage::open(&[]);
    stage.settle(clock(&[forked(1)], true, 1), clock(&[forked(1)], true, 1));
    stage.handle(Input::Sent);
    assert!(stage.session.in_sync());
    stage.handle(Input::Committed { own: true, members: false });
    stage.pass(COALESCE_MS);
    let ours = clock(&[forked(3)], true, 2);
    let ops = vec![(log(1), op(1, 1))];
    let found = Scanned { ops, cursor: 9, drained: Some(ours.clone()) };
    let effects = stage.handle(Input::Scanned(found));
    assert!(matches!(effects[..], [Effect::Send(JournalMessage::Ops(_))]), "{effects:?}");
    stage.handle(Input::Sent);
    stage.handle(Input::Sent);
    let mut effects = stage.handle(told(ours.clone()));
    effects.extend(stage.handle(Input::Compared(Compared::default())));
    effects.extend(stage.handle(Input::Scanned(drained(ours))));
    assert!(!effects.contains(&Effect::Report(Report::Matching)), "{effects:?}");
    assert!(stage.session.repaired().forked_ms.is_empty());
}

#[test]
fn when_facts_change_the_peer_is_judged_again_before_anything_else_is_sent() {
    let mut stage = Stage::open(&[]);
    stage.settle(clock(&[], true, 0), clock(&[], true, 0));
    stage.handle(Input::Sent);
    let effects = stage.handle(Input::Committed { own: true, members: true });
    assert_eq!(effects, [Effect::Judge { intro: Vec::new() }]);
    assert!(!stage.session.reads());
    let effects = stage.handle(Input::Judged(Standing::Removed));
    assert_eq!(ended(&effects), Some(End::Refused(RefuseCode::Removed)));
    assert_eq!(stage.handle(Input::Tick), []);
    assert_eq!(stage.session.deadline_ms(), None);
}

#[test]
fn a_peer_hears_that_it_was_removed_only_when_it_was() {
    for (why, end) in [
        (Why::NotFromMember, End::Refused(RefuseCode::NotMember)),
        (Why::FromRemoved, End::Refused(RefuseCode::Removed)),
        (Why::OtherGroup, End::LeftGroup),
    ] {
        let mut stage = Stage::open(&[]);
        stage.settle(clock(&[], true, 0), clock(&[], true, 0));
        stage.handle(Input::Sent);
        stage.handle(ops(vec![op(1, 1)]));
        let effects = stage.handle(Input::Applied(vec![NotTaken { log: log(1), seq: 1, why }]));
        assert_eq!(ended(&effects), Some(end));
    }
}

#[test]
fn at_rest_a_clock_a_minute_is_all_that_is_said() {
    let mut stage = Stage::open(&[]);
    let same = clock(&[], true, 0);
    stage.settle(same.clone(), same.clone());
    stage.handle(Input::Sent);
    assert!(stage.session.in_sync());
    let mut said = 0;
    let end_ms = stage.now.mono_ms + 10 * CLOCK_EVERY_MS;
    loop {
        let due_ms = stage.session.deadline_ms().unwrap();
        if due_ms > end_ms {
            break;
        }
        stage.now.mono_ms = due_ms;
        let effects = stage.handle(Input::Tick);
        assert!(matches!(effects[..], [Effect::Scan { .. }]), "{effects:?}");
        let effects = stage.handle(Input::Scanned(drained(same.clone())));
        said += effects.len();
        if !effects.is_empty() {
            stage.handle(Input::Sent);
        }
    }
    assert!((9..=11).contains(&said), "{said} frames");
}

#[test]
fn a_session_never_orders_two_of_a_kind_at_once() {
    // What may be under way at one time: one frame, one read, one batch or clock to take in.
    let mut stage = Stage::open(&[]);
    stage.handle(told(clock(&[], true, 0)));
    for _ in 0..50 {
        assert_eq!(stage.handle(Input::Committed { own: true, members: false }), []);
        stage.now.mono_ms += 500;
        assert_eq!(stage.handle(Input::Tick), []);
    }
    let effects = stage.handle(Input::Compared(Compared::default()));
    assert_eq!(effects.len(), 1, "{effects:?}");
}

#[test]
fn a_peer_that_asks_again_and_again_is_answered_as_often_as_the_answer_is_cheap() {
    let mut stage = Stage::open(&[entry(1, 3)]);
    stage.settle(clock(&[entry(1, 2)], false, 0), clock(&[entry(1, 3)], true, 0));
    let asks = || told(Clock { restart: true, ..clock(&[entry(1, 2)], false, 0) });
    let effects = stage.handle(asks());
    assert!(matches!(effects[0], Effect::TakeClock { whole: true, .. }), "{effects:?}");
    stage.now.mono_ms += 700;
    stage.handle(Input::Compared(Compared::default()));
    let rests_ms = stage.now.mono_ms + 700 * incoming::COMPARE_DUTY;
    let mut answers = 0;
    while stage.now.mono_ms < rests_ms {
        let mut effects = stage.take_clocks(asks());
        stage.now.mono_ms += 100;
        effects.extend(stage.take_clocks(Input::Tick));
        let whole = |effect: &&Effect| matches!(effect, Effect::TakeClock { whole: true, .. });
        answers += effects.iter().filter(whole).count();
    }
    assert_eq!(answers, 1, "when it is due, and by itself");
}

#[test]
fn what_a_peer_holds_above_its_clock_is_compared_once_in_a_while() {
    let mut stage = Stage::open(&[entry(1, 3)]);
    stage.settle(clock(&[entry(1, 2)], false, 0), clock(&[entry(1, 3)], true, 0));
    let mut compared = 0;
    for n in 1..=100 {
        let above = ClockEntry { above: SetDigest([n; 32]), ..entry(1, 0) };
        for effect in stage.take_clocks(told(clock(&[above], false, 0))) {
            if let Effect::TakeClock { compare, .. } = effect {
                compared += compare.len();
            }
        }
        stage.now.mono_ms += 100;
    }
    assert!((9..=11).contains(&compared), "{compared} times in ten seconds");
}

#[test]
fn the_place_of_a_peer_is_noted_once_in_a_while_whatever_it_says_and_its_last_word_too() {
    let mut stage = Stage::open(&[entry(1, 3)]);
    stage.settle(clock(&[entry(1, 1)], true, 0), clock(&[entry(1, 3)], true, 0));
    let mut noted = Vec::new();
    for n in 0..=100 {
        let input = match n {
            100 => Input::Tick,
            _ => told(clock(&[entry(1, 1 + n % 4)], true, 0)),
        };
        for effect in stage.take_clocks(input) {
            if let Effect::TakeClock { ack, .. } = effect {
                noted.extend(ack);
            }
        }
        stage.now.mono_ms += if n == 99 { incoming::ACK_MS } else { 100 };
    }
    assert!((50..=52).contains(&noted.len()), "{} times in ten seconds", noted.len());
    assert_eq!(noted.last(), Some(&entry(1, 4)));
}

fn refuse(n: u8, seq: u64) -> Input {
    let op = Some((log(n), seq));
    Input::Received(JournalMessage::Refuse(Refuse {
        code: RefuseCode::Quota,
        text: String::new(),
        op,
    }))
}

fn scans(effects: &[Effect]) -> Vec<BTreeMap<LogId, u64>> {
    let has = |effect: &Effect| match effect {
        Effect::Scan { has, .. } => Some(has.clone()),
        _ => None,
    };
    effects.iter().filter_map(has).collect()
}

#[test]
fn of_a_log_that_the_peer_refused_nothing_is_sent_until_it_has_the_refused_op_or_asks() {
    for release in
        [told(clock(&[entry(1, 8)], true, 0)), told(Clock { restart: true, ..Clock::default() })]
    {
        let mut stage = Stage::open(&[entry(1, 9)]);
        stage.handle(told(clock(&[entry(1, 0)], true, 0)));
        stage.handle(Input::Compared(Compared::default()));
        stage.handle(Input::Scanned(Scanned {
            ops: vec![(log(1), op(1, 7))],
            cursor: 4,
            drained: None,
        }));
        stage.handle(refuse(1, 8));
        let effects = stage.handle(Input::Sent);
        assert_eq!(scans(&effects)[0].get(&log(1)), Some(&u64::MAX), "{effects:?}");
        // Ops that were read before the refusal came are not sent either.
        let rest =
            Scanned { ops: vec![(log(1), op(1, 8)), (log(2), op(2, 9))], cursor: 6, drained: None };
        let effects = stage.handle(Input::Scanned(rest));
        let sent = effects.iter().find_map(|effect| match effect {
            Effect::Send(JournalMessage::Ops(ops)) => Some(ops.ops.clone()),
            _ => None,
        });
        assert_eq!(sent, Some(vec![op(2, 9)]));
        stage.handle(Input::Sent);
        let ours = clock(&[entry(1, 9), entry(2, 1)], true, 0);
        let effects = stage.handle(Input::Scanned(drained(ours)));
        let told = effects.iter().find_map(|effect| match effect {
            Effect::Send(JournalMessage::Clock(clock)) => Some(clock.entries.clone()),
            _ => None,
        });
        let withheld = ClockEntry { withheld: true, ..entry(1, 9) };
        assert_eq!(told, Some(vec![withheld, entry(2, 1)]), "no gap may be jumped by it");
        stage.handle(Input::Sent);
        stage.pass(COMPARE_WAIT_MS);
        let mut effects = stage.take_clocks(release);
        effects.extend(stage.pass(0));
        assert!(stage.session.repaired().withheld.is_empty());
        let last = scans(&effects);
        assert_ne!(last.last().and_then(|has| has.get(&log(1))), Some(&u64::MAX), "{effects:?}");
    }
}

/// Longer than a comparison is put off.
const COMPARE_WAIT_MS: u64 = 60_000;

#[test]
fn a_refusal_holds_for_the_next_session_and_not_for_ever() {
    let withheld =
        BTreeMap::from([(log(1), Withheld { seq: 8, since_ms: 500, code: RefuseCode::Quota })]);
    for (now_ms, code, is_kept) in [
        (1_000, RefuseCode::Quota, true),
        (500 + WITHHOLD_MS, RefuseCode::Quota, false),
        (1_000, RefuseCode::Author, false),
    ] {
        let mut withheld = withheld.clone();
        withheld.values_mut().for_each(|op| op.code = code);
        let repaired = Repaired { withheld, ..Repaired::default() };
        let now = Now { mono_ms: now_ms, wall_ms: WALL_MS };
        let start = Start { hello: hello(), known: true, repaired, jitter: 1 };
        let session = Session::start(start, now, &mut Vec::new());
        assert_eq!(session.repaired().withheld.contains_key(&log(1)), is_kept);
    }
}

#[test]
fn a_gap_is_not_jumped_in_a_log_that_the_peer_withholds() {
    let mut stage = Stage::open(&[]);
    let withheld = ClockEntry { withheld: true, ..entry(1, 9) };
    let effects = stage.handle(told(clock(&[withheld, entry(2, 3)], true, 0)));
    let Some(Effect::TakeClock { jump, .. }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(*jump, [entry(2, 3)]);
}

#[test]
fn what_was_refused_for_want_of_room_is_asked_for_when_there_is_room() {
    let withheld = ClockEntry { withheld: true, ..entry(1, 9) };
    let mut stage = Stage::open(&[]);
    stage.handle(told(clock(&[withheld], true, 0)));
    let welcome = Compared { welcome: vec![log(1)], ..Compared::default() };
    let effects = stage.handle(Input::Compared(welcome));
    assert_eq!(effects, [Effect::ReadClock]);
    let effects = stage.handle(Input::ClockRead(clock(&[], false, 0)));
    let asks =
        |effect: &Effect| matches!(effect, Effect::Send(JournalMessage::Clock(c)) if c.restart);
    assert!(effects.iter().any(asks), "{effects:?}");
}
