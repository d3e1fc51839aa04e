//! Two devices find exactly what each lacks, in every way and whatever happens meanwhile; and a
//! hostile peer gets no further than the protocol's bounds.

#![allow(clippy::unwrap_used)]

#[path = "reconcile/two_devices.rs"]
#[allow(dead_code)] // The benchmark uses the rest.
mod two_devices;

use can_sync::core::ids::Hash;
use can_sync::core::limits::{HASHES_PER_FRAME_MAX, SKETCH_CELLS};
use can_sync::core::reconcile::{
    Answer, Cursor, Output, Query, ReconcileError, ReconcileMessage, Reconciler, Since, Way,
};
use can_sync::core::sketch::Cell;
use proptest::prelude::*;
use two_devices::{Course, Device, ROUND, Run, hash, reconcile_by};

const HERE: u8 = 1;
const THERE: u8 = 2;

/// Runs a round by `way` and checks that both sides learned exactly what they lack.
fn learns_all(way: Option<Way>, dialer: &mut Device, acceptor: &mut Device) -> Run {
    let course = Course { way, ..Course::default() };
    let run = reconcile_by(course, dialer, acceptor).unwrap();
    assert_exact(&run, dialer, acceptor);
    run
}

fn assert_exact(run: &Run, dialer: &Device, acceptor: &Device) {
    assert!(run.dialer.lacks == dialer.lacking_of(acceptor), "by {:?}", run.ways);
    assert!(run.acceptor.lacks == acceptor.lacking_of(dialer), "by {:?}", run.ways);
    for (side, other) in [(&run.dialer, acceptor), (&run.acceptor, dialer)] {
        let outcome = side.outcome.as_ref().expect("the round ends on both sides");
        assert!(outcome.complete, "{outcome:?}");
        assert!(!outcome.stale_sketch);
        assert_eq!(outcome.peer, Since { epoch: other.epoch, seq: other.head_seq() });
    }
}

/// Two devices with `common` hashes in common and some of their own.
fn devices(common: u64, dialer_only: u64, acceptor_only: u64) -> (Device, Device) {
    let mut dialer = Device::new(HERE, 0..common);
    let mut acceptor = dialer.clone();
    acceptor.epoch = [THERE; 16];
    (1_000_000..1_000_000 + dialer_only).for_each(|n| dialer.insert(hash(n)));
    (2_000_000..2_000_000 + acceptor_only).for_each(|n| acceptor.insert(hash(n)));
    (dialer, acceptor)
}

/// Gives both devices the cursor from when they had the first `common` hashes in common.
fn remember(dialer: &mut Device, acceptor: &mut Device, common: u64) {
    dialer.since = Some(Since { epoch: acceptor.epoch, seq: common });
    acceptor.since = Some(Since { epoch: dialer.epoch, seq: common });
}

mod ways {
    use super::*;

    #[test]
    fn equal_sets_agree_in_one_small_round_trip() {
        let (mut dialer, mut acceptor) = devices(1000, 0, 0);
        let run = learns_all(None, &mut dialer, &mut acceptor);
        assert_eq!((run.way, run.round_trips), (Some(Way::Equal), 1));
        assert!(run.bytes_to_know <= 400, "{} bytes", run.bytes_to_know);
    }

    #[test]
    fn few_differences_of_many_hashes_are_found_by_cells() {
        let (mut dialer, mut acceptor) = devices(5000, 40, 60);
        let run = learns_all(None, &mut dialer, &mut acceptor);
        assert_eq!(run.way, Some(Way::Cells));
        assert!(run.bytes_to_know < 12_000, "{} bytes", run.bytes_to_know);
    }

    #[test]
    fn small_sets_and_new_devices_send_lists() {
        for (common, a, b) in [(2, 3, 2), (0, 0, 3000), (0, 3000, 0), (0, 700, 800)] {
            let (mut dialer, mut acceptor) = devices(common, a, b);
            let run = learns_all(None, &mut dialer, &mut acceptor);
            assert_eq!(run.way, Some(Way::List));
        }
    }

    #[test]
    fn what_was_added_since_the_last_time_is_sent_as_a_delta() {
        let (mut dialer, mut acceptor) = devices(5000, 40, 3000);
        remember(&mut dialer, &mut acceptor, 5000);
        let run = learns_all(None, &mut dialer, &mut acceptor);
        assert_eq!(run.way, Some(Way::Delta));
        assert!(run.bytes_to_know < 3040 * 37, "{} bytes", run.bytes_to_know);
    }

    #[test]
    fn too_many_differences_for_a_sketch_are_found_in_shards() {
        let (mut dialer, mut acceptor) = devices(15_000, 8000, 8500);
        let run = learns_all(None, &mut dialer, &mut acceptor);
        assert_eq!(run.ways, [Way::Shards, Way::Shards]);
        assert!(run.dialer.outcome.unwrap().scanned && run.acceptor.outcome.unwrap().scanned);
    }

    #[test]
    fn a_full_scan_too_soon_is_put_off() {
        for dialer_may in [true, false] {
            let (mut dialer, mut acceptor) = devices(300, 20, 20);
            dialer.scan_allowed = dialer_may;
            acceptor.scan_allowed = !dialer_may;
            let course = Course { way: Some(Way::Shards), ..Course::default() };
            let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
            let outcome = run.dialer.outcome.unwrap();
            assert!(!outcome.complete && outcome.retry_ms.unwrap() > 0);
            assert!(!run.acceptor.outcome.unwrap().complete);
        }
    }

    #[test]
    fn pages_wait_for_room() {
        let (mut dialer, mut acceptor) = devices(0, 0, 9000);
        let course = Course { room: HASHES_PER_FRAME_MAX - 1, ..Course::default() };
        let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
        assert!(run.dialer.lacks.is_empty() && run.dialer.outcome.is_none());
        let course = Course { room: HASHES_PER_FRAME_MAX, ..Course::default() };
        let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
        assert_exact(&run, &dialer, &acceptor);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn every_way_finds_exactly_the_difference(
            common in 0u64..300,
            dialer_only in 0u64..200,
            acceptor_only in 0u64..200,
        ) {
            let (mut dialer, mut acceptor) = devices(common, dialer_only, acceptor_only);
            remember(&mut dialer, &mut acceptor, common);
            learns_all(None, &mut dialer, &mut acceptor);
            for way in [Way::Delta, Way::Cells, Way::List, Way::Shards] {
                if dialer_only + acceptor_only > 0 {
                    learns_all(Some(way), &mut dialer, &mut acceptor);
                }
            }
        }
    }
}

mod meanwhile {
    use super::*;

    #[test]
    fn hashes_added_during_a_round_do_not_disturb_it() {
        for way in [Way::Delta, Way::Cells, Way::List, Way::Shards] {
            let (mut dialer, mut acceptor) = devices(1000, 2500, 2600);
            remember(&mut dialer, &mut acceptor, 1000);
            let (dialer_lacks, acceptor_lacks) =
                (dialer.lacking_of(&acceptor), acceptor.lacking_of(&dialer));
            let mut next = 5_000_000;
            let mut is_begun = false;
            let add = |dialer: &mut Device, acceptor: &mut Device| {
                if !std::mem::replace(&mut is_begun, true) {
                    return; // The acceptor takes its snapshot when it gets Compare.
                }
                for device in [dialer, acceptor] {
                    (0..20).for_each(|n| device.insert(hash(next + n)));
                    next += 20;
                }
            };
            let course = Course { way: Some(way), meanwhile: Box::new(add), ..Course::default() };
            let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
            assert!(run.dialer.lacks == dialer_lacks, "{way:?}");
            assert!(run.acceptor.lacks == acceptor_lacks, "{way:?}");
            assert!(run.dialer.outcome.unwrap().complete, "{way:?}");
            assert!(run.acceptor.outcome.unwrap().complete, "{way:?}");
        }
    }

    #[test]
    fn what_arrives_by_live_push_during_a_round_is_not_reported_and_not_taken_for_staleness() {
        let (mut dialer, mut acceptor) = devices(1500, 50, 50);
        let pushed = hash(2_000_000);
        let push = |dialer: &mut Device, _: &mut Device| {
            if !dialer.holds(&pushed) {
                dialer.insert(pushed);
            }
        };
        let course =
            Course { way: Some(Way::Cells), meanwhile: Box::new(push), ..Course::default() };
        let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
        assert_eq!(run.dialer.lacks, dialer.lacking_of(&acceptor));
        assert!(run.dialer.outcome.unwrap().complete);
    }

    #[test]
    fn a_stale_sketch_is_noticed_by_its_own_device_whichever_side_it_is() {
        for way in [Way::Cells, Way::List, Way::Shards] {
            for dialer_is_stale in [true, false] {
                let (mut dialer, mut acceptor) = devices(1500, 20, 20);
                let stale = if dialer_is_stale { &mut dialer } else { &mut acceptor };
                (0..5).for_each(|n| stale.insert_into_index_only(hash(n + 1_000_000 - 5)));
                if way != Way::List {
                    let other = if dialer_is_stale { &mut acceptor } else { &mut dialer };
                    (0..5).for_each(|n| other.insert(hash(n + 1_000_000 - 5)));
                }
                let course = Course { way: Some(way), ..Course::default() };
                let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
                let (d, a) = (run.dialer.outcome.unwrap(), run.acceptor.outcome.unwrap());
                let stale = (d.stale_sketch, a.stale_sketch);
                assert_eq!(stale, (dialer_is_stale, !dialer_is_stale), "{way:?}");
                assert!(!d.complete, "{way:?}: the dialer checks the whole");
            }
        }
    }

    #[test]
    fn a_restored_backup_is_not_asked_for_a_delta() {
        let (mut dialer, mut acceptor) = devices(1500, 100, 100);
        remember(&mut dialer, &mut acceptor, 1500);
        dialer.since = Some(Since { epoch: acceptor.epoch, seq: acceptor.head_seq() + 1 });
        let run = learns_all(None, &mut dialer, &mut acceptor);
        assert_eq!(run.way, Some(Way::Cells));
    }

    #[test]
    fn a_wrong_cursor_is_outlived() {
        let (mut dialer, mut acceptor) = devices(1500, 0, 1);
        remember(&mut dialer, &mut acceptor, 1500);
        dialer.since = Some(Since { epoch: acceptor.epoch, seq: acceptor.head_seq() });
        let run = learns_all(None, &mut dialer, &mut acceptor);
        assert_eq!(run.way, Some(Way::Cells), "a delta of nothing explains nothing");
    }

    #[test]
    fn an_index_that_fails_ends_the_round_incomplete_on_both_sides() {
        for way in [Way::Delta, Way::Cells, Way::List, Way::Shards] {
            for dialer_fails in [true, false] {
                let (mut dialer, mut acceptor) = devices(1500, 20, 20);
                remember(&mut dialer, &mut acceptor, 1500);
                let failing = if dialer_fails { &mut dialer } else { &mut acceptor };
                failing.index_fails = true;
                let course = Course { way: Some(way), ..Course::default() };
                let run = reconcile_by(course, &mut dialer, &mut acceptor).unwrap();
                let (d, a) = (run.dialer.outcome.unwrap(), run.acceptor.outcome.unwrap());
                let failing = if dialer_fails { &d } else { &a };
                assert!(!failing.complete, "{way:?} {dialer_fails}");
                assert!(!d.stale_sketch && !a.stale_sketch, "{way:?} {dialer_fails}");
            }
        }
    }
}

mod bytes {
    use super::*;

    /// Over several pairs of sets: the mean bytes until the dialer knows the difference, and the
    /// most round trips.
    fn cost(common: u64, differences: u64) -> (usize, usize) {
        let shared = Device::new(HERE, 0..common);
        let mut bytes = 0;
        let mut round_trips = 0;
        const PAIRS: u64 = 5;
        for pair in 0..PAIRS {
            let (mut dialer, mut acceptor) = (shared.clone(), shared.clone());
            acceptor.epoch = [THERE; 16];
            for n in 0..differences {
                let device = if n % 2 == 0 { &mut dialer } else { &mut acceptor };
                device.insert(hash((pair + 1) * 10_000_000 + n));
            }
            let run = learns_all(None, &mut dialer, &mut acceptor);
            bytes += run.bytes_to_know;
            round_trips = round_trips.max(run.round_trips);
        }
        (bytes / PAIRS as usize, round_trips)
    }

    #[test]
    fn a_thousand_differences_cost_at_most_90_kb_and_three_round_trips() {
        let (bytes, round_trips) = cost(10_000, 1000);
        assert!(bytes <= 90_000 && round_trips <= 3, "{bytes} bytes, {round_trips} round trips");
    }

    #[test]
    fn the_cost_follows_the_difference_and_not_the_sets() {
        let (small, _) = cost(2000, 100);
        let (large, _) = cost(20_000, 100);
        assert!(small.abs_diff(large) * 100 <= small * 15, "{small} and {large} bytes");
    }
}

mod adversaries {
    use super::*;

    /// An acceptor that answered Compare by `way`, and its outputs.
    fn acceptor(device: &Device, dialer: &Device, way: Way) -> (Reconciler, Vec<Output>) {
        let mut out = Vec::new();
        let summary = dialer.snapshot().summary;
        let this =
            Reconciler::respond_by(way, ROUND, device.snapshot(), summary, [4; 16], true, &mut out);
        (this.unwrap(), out)
    }

    /// A dialer that got the answer `way` from a peer that claims to be `peer`.
    fn dialer(device: &Device, peer: &Device, way: Way, estimate: u64) -> Reconciler {
        let mut out = Vec::new();
        let mut this = Reconciler::initiate(ROUND, device.snapshot(), [3; 16], true, &mut out);
        this.on_message(plan(peer, way, estimate), &mut out).unwrap();
        this.resume(100_000, &mut out);
        this
    }

    fn plan(peer: &Device, way: Way, estimate: u64) -> ReconcileMessage {
        ReconcileMessage::Plan {
            round: ROUND,
            way,
            summary: peer.snapshot().summary.announced(),
            retry_ms: 0,
            nonce: None,
            estimate,
        }
    }

    fn page(hashes: Vec<Hash>, more: bool) -> ReconcileMessage {
        ReconcileMessage::Page { round: ROUND, hashes, more, next_seq: 0 }
    }

    fn refused(this: &mut Reconciler, message: ReconcileMessage) -> ReconcileError {
        this.on_message(message, &mut Vec::new()).unwrap_err()
    }

    fn answer_known(this: &mut Reconciler, device: &Device, out: Vec<Output>) -> Vec<Hash> {
        let mut lacks = Vec::new();
        let mut out = std::collections::VecDeque::from(out);
        while let Some(output) = out.pop_front() {
            match output {
                Output::Ask(query) => {
                    let mut more = Vec::new();
                    this.on_answer(device.answer(query), &mut more);
                    out.extend(more);
                }
                Output::WeLack(hashes) => lacks.extend(hashes),
                Output::Send(_) | Output::Finished(_) => {}
            }
        }
        lacks
    }

    fn noise(seed: u64, n: usize) -> Vec<Cell> {
        let cell = |i: usize| {
            let word = |j: usize| {
                let bytes = hash(seed + (8 * i + j) as u64).0;
                u64::from_le_bytes(bytes[..8].try_into().unwrap())
            };
            Cell {
                sum: [word(0), word(1), word(2), word(3)],
                check: word(4),
                count: word(5).cast_signed() >> 40,
            }
        };
        (0..n).map(cell).collect()
    }

    #[test]
    fn random_cells_end_in_a_rekey_and_then_in_the_plain_list() {
        let (mut a, mut b) = devices(1500, 10, 10);
        let mut n = 0;
        let tamper = |from_dialer: bool, message: ReconcileMessage| match message {
            ReconcileMessage::Cells { round, shard, first, cells } if !from_dialer => {
                n += 1;
                let cells = noise(n * 1_000_000, cells.len());
                ReconcileMessage::Cells { round, shard, first, cells }
            }
            message => message,
        };
        let course =
            Course { way: Some(Way::Cells), tamper: Box::new(tamper), ..Course::default() };
        let run = reconcile_by(course, &mut a, &mut b).unwrap();
        assert_eq!(run.ways.first(), Some(&Way::Cells));
        assert_eq!(run.ways.last(), Some(&Way::List));
        assert_exact(&run, &a, &b);
    }

    #[test]
    fn cells_with_a_crafted_pair_are_outlived_by_a_fresh_key() {
        // Two hashes with equal mappings stay together in every cell. Their sum imitates them here.
        let (mut a, mut b) = devices(8000, 10, 10);
        let tamper = |from_dialer: bool, message: ReconcileMessage| match message {
            ReconcileMessage::Cells { round, shard, first, mut cells } if !from_dialer => {
                if first == 0 && shard == 0 {
                    cells[0].count += 2;
                    cells[0].check ^= 1;
                }
                ReconcileMessage::Cells { round, shard, first, cells }
            }
            message => message,
        };
        let mut only_first = 0;
        let tamper_once = |from_dialer: bool, message: ReconcileMessage| {
            if matches!(message, ReconcileMessage::Plan { .. }) {
                only_first += 1;
            }
            if only_first == 1 { tamper(from_dialer, message) } else { message }
        };
        let course =
            Course { way: Some(Way::Cells), tamper: Box::new(tamper_once), ..Course::default() };
        let run = reconcile_by(course, &mut a, &mut b).unwrap();
        assert_eq!(run.ways, [Way::Cells, Way::Shards]);
        assert_exact(&run, &a, &b);
    }

    #[test]
    fn cells_of_another_set_than_the_fingerprints_are_not_believed() {
        let (device, peer) = devices(1500, 0, 5);
        let liar = Device::new(THERE, (0..1500).chain(7_000_000..7_000_005));
        let mut this = dialer(&device, &peer, Way::Cells, 5);
        let (_, out) = acceptor(&liar, &device, Way::Cells);
        let mut replies = Vec::new();
        for output in out {
            if let Output::Send(message @ ReconcileMessage::Cells { .. }) = output {
                this.on_message(message, &mut replies).ok();
            }
        }
        let lacks = answer_known(&mut this, &device, replies);
        assert!(lacks.is_empty());
    }

    #[test]
    fn more_cells_than_asked_for_are_refused() {
        let (device, peer) = devices(100, 5, 5);
        let mut this = dialer(&device, &peer, Way::Cells, 1);
        let cells = |first, n| ReconcileMessage::Cells {
            round: ROUND,
            shard: 0,
            first,
            cells: noise(1, n),
        };
        assert!(matches!(refused(&mut this, cells(0, 11)), ReconcileError::TooMany { .. }));
        let mut this = dialer(&device, &peer, Way::Cells, 1);
        assert!(matches!(refused(&mut this, cells(1, 1)), ReconcileError::Mismatch { .. }));
        assert!(matches!(refused(&mut this, cells(0, 0)), ReconcileError::NoProgress));
    }

    #[test]
    fn requests_for_more_are_counted_and_bounded() {
        let (device, peer) = devices(100, 5, 5);
        let more = |first, n| ReconcileMessage::More { round: ROUND, shard: 0, first, n };
        let (mut this, out) = acceptor(&device, &peer, Way::Cells);
        let mut sent = out
            .iter()
            .map(|output| match output {
                Output::Send(ReconcileMessage::Cells { cells, .. }) => cells.len() as u32,
                _ => 0,
            })
            .sum::<u32>();
        let wrong_place = refused(&mut this, more(sent + 1, 1));
        assert!(matches!(wrong_place, ReconcileError::Mismatch { .. }));

        let (mut this, _) = acceptor(&device, &peer, Way::Cells);
        for _ in 0..8 {
            this.on_message(more(sent, 1), &mut Vec::new()).unwrap();
            sent += 1;
        }
        assert!(matches!(refused(&mut this, more(sent, 1)), ReconcileError::TooMany { .. }));

        let (mut this, _) = acceptor(&device, &peer, Way::Cells);
        let too_many = more(sent - 8, SKETCH_CELLS as u32);
        assert!(matches!(refused(&mut this, too_many), ReconcileError::TooMany { .. }));
    }

    #[test]
    fn lists_out_of_order_with_repeats_or_too_long_are_refused() {
        let (device, peer) = devices(0, 0, 3);
        let mut sorted: Vec<Hash> = (0..4).map(hash).collect();
        sorted.sort_unstable();
        let lists = [
            (vec![sorted[1], sorted[0]], false, ReconcileError::NotAscending),
            (vec![sorted[0], sorted[0]], false, ReconcileError::NotAscending),
            (vec![], true, ReconcileError::NoProgress),
            (
                sorted.clone(),
                false,
                ReconcileError::TooMany { what: "hashes in all pages", got: 4, limit: 3 },
            ),
        ];
        for (hashes, more, error) in lists {
            let mut this = dialer(&device, &peer, Way::List, 3);
            assert_eq!(refused(&mut this, page(hashes, more)), error);
        }
        let mut this = dialer(&device, &peer, Way::List, 3);
        this.on_message(page(sorted[1..2].to_vec(), true), &mut Vec::new()).unwrap();
        let back = page(sorted[..1].to_vec(), false);
        assert_eq!(refused(&mut this, back), ReconcileError::NotAscending);
    }

    #[test]
    fn a_delta_longer_than_its_head_or_standing_still_is_refused() {
        let (mut device, mut peer) = devices(10, 0, 5);
        remember(&mut device, &mut peer, 10);
        let delta = |n: u64, more, next_seq| ReconcileMessage::Page {
            round: ROUND,
            hashes: (0..n).map(|n| hash(100 + n)).collect(),
            more,
            next_seq,
        };
        for (message, expected) in [
            (delta(6, false, 15), "hashes in all pages"),
            (delta(1, false, 16), "next_seq"),
            (delta(1, true, 10), "promises more"),
            (delta(1, false, 9), "promises more"),
        ] {
            let mut this = dialer(&device, &peer, Way::Delta, 5);
            let error = refused(&mut this, message).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn pages_are_served_once_and_in_order() {
        let (device, peer) = devices(5000, 5, 5);
        let pull = |from| ReconcileMessage::Pull { round: ROUND, from };
        let first = pull(Cursor::Hash(None));
        let (mut this, _) = acceptor(&device, &peer, Way::List);
        this.on_message(first.clone(), &mut Vec::new()).unwrap();
        refused(&mut this, first.clone());

        let (mut this, _) = acceptor(&device, &peer, Way::List);
        refused(&mut this, pull(Cursor::Hash(Some(hash(1)))));
        refused(&mut this, pull(Cursor::Seq(0)));

        let (mut this, _) = acceptor(&device, &peer, Way::List);
        let mut out = Vec::new();
        this.on_message(first.clone(), &mut out).unwrap();
        answer_known(&mut this, &device, out);
        refused(&mut this, first);
    }

    #[test]
    fn decoded_hashes_are_bounded_by_the_cells_that_were_sent() {
        let (device, peer) = devices(100, 0, 1);
        let decoded = |lacking| ReconcileMessage::Decoded { round: ROUND, lacking };
        let mut many: Vec<Hash> = (0..2000).map(hash).collect();
        many.sort_unstable();
        let (mut this, _) = acceptor(&device, &peer, Way::Cells);
        let error = refused(&mut this, decoded(many.clone()));
        assert!(matches!(error, ReconcileError::TooMany { .. }));

        let (mut this, _) = acceptor(&device, &peer, Way::Cells);
        this.on_message(decoded(many[1..3].to_vec()), &mut Vec::new()).unwrap();
        let again = refused(&mut this, decoded(many[..1].to_vec()));
        assert_eq!(again, ReconcileError::NotAscending);
    }

    #[test]
    fn a_lying_count_costs_bytes_and_nothing_else() {
        let (mut a, mut b) = devices(1500, 10, 10);
        let tamper = |_: bool, message: ReconcileMessage| match message {
            ReconcileMessage::Plan { round, way, mut summary, retry_ms, nonce, estimate } => {
                summary.count += 1000;
                ReconcileMessage::Plan { round, way, summary, retry_ms, nonce, estimate }
            }
            message => message,
        };
        for way in [Way::Cells, Way::List] {
            let course = Course { way: Some(way), tamper: Box::new(tamper), ..Course::default() };
            let run = reconcile_by(course, &mut a, &mut b).unwrap();
            assert_exact(&run, &a, &b);
        }
    }

    #[test]
    fn huge_counters_are_bounded_by_the_counts() {
        let (mut a, mut b) = devices(10_000, 10, 10);
        let tamper = |_: bool, message: ReconcileMessage| match message {
            ReconcileMessage::Compare { round, mut summary } => {
                summary.counters = Some(Box::new([i32::MAX; 128]));
                ReconcileMessage::Compare { round, summary }
            }
            message => message,
        };
        let course = Course { tamper: Box::new(tamper), ..Course::default() };
        let run = reconcile_by(course, &mut a, &mut b).unwrap();
        assert_eq!(run.way, Some(Way::List));
        assert_exact(&run, &a, &b);
    }

    #[test]
    fn messages_out_of_place_are_refused_and_those_of_another_round_ignored() {
        let (device, peer) = devices(10, 5, 5);
        let summary = peer.snapshot().summary;
        let (round, other) = (ROUND, ROUND - 1);
        for message in [
            ReconcileMessage::Compare { round, summary: summary.clone() },
            ReconcileMessage::More { round, shard: 0, first: 0, n: 1 },
            ReconcileMessage::Decoded { round, lacking: vec![] },
            ReconcileMessage::Rekey { round, nonce: [0; 16], shard_bits: 0 },
            ReconcileMessage::Pull { round, from: Cursor::Seq(0) },
            ReconcileMessage::Done { round, incomplete: false },
            plan(&peer, Way::Cells, 10),
        ] {
            let mut this = dialer(&device, &peer, Way::Cells, 10);
            let error = refused(&mut this, message);
            assert!(matches!(error, ReconcileError::Unexpected { .. }), "{error}");
        }
        let mut this = dialer(&device, &peer, Way::Cells, 10);
        for message in [
            ReconcileMessage::Compare { round: other, summary },
            ReconcileMessage::Pull { round: other, from: Cursor::Seq(0) },
            ReconcileMessage::Done { round: other, incomplete: false },
        ] {
            let mut out = Vec::new();
            this.on_message(message, &mut out).unwrap();
            assert!(out.is_empty());
        }
        let unequal =
            &mut Reconciler::initiate(ROUND, device.snapshot(), [3; 16], true, &mut Vec::new());
        assert_eq!(refused(unequal, plan(&peer, Way::Equal, 0)), ReconcileError::NotEqual);
        let delta = refused(unequal, plan(&peer, Way::Delta, 0));
        assert_eq!(delta, ReconcileError::NoCursor);
    }

    /// All messages of a round by `way`, of both sides.
    fn conversation(way: Way) -> Vec<ReconcileMessage> {
        let (mut a, mut b) = devices(40, 15, 15);
        remember(&mut a, &mut b, 40);
        let mut said = Vec::new();
        let tamper = |_, message: ReconcileMessage| {
            said.push(message.clone());
            message
        };
        let course = Course { way: Some(way), tamper: Box::new(tamper), ..Course::default() };
        reconcile_by(course, &mut a, &mut b).unwrap();
        said
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn messages_in_any_order_neither_panic_nor_end_a_round_twice(
            order in proptest::collection::vec(any::<prop::sample::Index>(), 1..30),
            is_dialer in any::<bool>(),
            way in 0usize..4,
            failing in any::<bool>(),
        ) {
            const WAYS: [Way; 4] = [Way::Delta, Way::Cells, Way::List, Way::Shards];
            static SAID: std::sync::OnceLock<Vec<ReconcileMessage>> = std::sync::OnceLock::new();
            let said = SAID.get_or_init(|| WAYS.into_iter().flat_map(conversation).collect());
            let (mut a, mut b) = devices(40, 15, 15);
            remember(&mut a, &mut b, 40);
            a.index_fails = failing;
            b.index_fails = failing;
            let mut finished = 0;
            let (device, mut this, mut out) = if is_dialer {
                let mut out = Vec::new();
                let this = Reconciler::initiate(ROUND, a.snapshot(), [3; 16], true, &mut out);
                (a, this, out)
            } else {
                let (this, out) = acceptor(&b, &a, WAYS[way]);
                (b, this, out)
            };
            this.resume(100_000, &mut out);
            for pick in order {
                let result = this.on_message(pick.get(said).clone(), &mut out);
                while let Some(output) = out.pop() {
                    match output {
                        Output::Ask(query) => this.on_answer(device.answer(query), &mut out),
                        Output::Finished(_) => finished += 1,
                        Output::Send(_) | Output::WeLack(_) => {}
                    }
                }
                if result.is_err() {
                    break;
                }
            }
            prop_assert!(finished <= 1);
        }
    }

    #[test]
    fn an_answer_nobody_asked_for_is_ignored() {
        let (device, peer) = devices(10, 5, 5);
        let mut this = dialer(&device, &peer, Way::Cells, 10);
        let mut out = Vec::new();
        this.on_answer(Answer::Known(vec![]), &mut out);
        assert!(out.is_empty());
        assert!(!matches!(device.answer(Query::Known { hashes: vec![] }), Answer::Failed));
    }
}
