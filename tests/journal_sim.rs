//! Journals in a seeded world: whatever network, crashes, clocks, backups and prunes do, a device
//! has what it claims to have at every moment, and once all faults end all devices have the same.
//!
//! A failure prints its seed. `SEED=n cargo test --test journal_sim` replays it, `SEEDS=n` runs
//! more, `FIRST=n` starts at another one. The long run is `SEEDS=50000 cargo test --release --test
//! journal_sim whatever_happens`.

#![allow(clippy::unwrap_used)]

#[path = "journal_sim/model.rs"]
mod model;
#[path = "journal_sim/world.rs"]
mod world;
#[path = "journal_sim/writes.rs"]
mod writes;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use world::{Faults, Happened, Mutant, Tally, World};

/// The number of steps in a life.
const STEPS: u64 = 500;

fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let first = number("FIRST").unwrap_or(0);
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (first..first + number("SEEDS").unwrap_or(default)).collect(),
    }
}

/// The faults of a seed: all combinations occur, including none.
fn faults(seed: u64) -> Faults {
    let bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    Faults {
        crashes: true,
        silent_restores: seed % 3 == 2,
        restores: bits & 0x01 != 0,
        skew: bits & 0x02 != 0,
        removal: bits & 0x04 != 0,
        // Only where no device can forget the removal, or be lost with it.
        thief: bits & 0x80d == 0x804 && seed % 3 != 2,
        loss: bits & 0x08 != 0,
        full_disks: bits & 0x10 != 0,
        far_clocks: bits & 0x20 != 0,
        quotas: bits & 0x40 != 0,
        retention: bits & 0x80 != 0,
        later_kinds: bits & 0x400 != 0,
        liar: bits & 0x300 == 0x300,
    }
}

/// Simulates one life. Returns what went wrong, or what happened.
fn live(seed: u64, faults: Faults, mutant: Option<Mutant>) -> Result<Tally, String> {
    let devices = 2 + (seed % 4) as usize;
    // A thief lies to members: they have to know one another first.
    let mut world = match faults.thief {
        true => World::of_members(seed, devices.max(3), faults, mutant),
        false => World::new(seed, devices, faults, mutant),
    };
    for _ in 0..STEPS {
        world.step();
        if world.wrong().is_some() {
            break;
        }
    }
    end(world)
}

/// Ends all faults. Returns what went wrong, or what happened.
fn end(mut world: World) -> Result<Tally, String> {
    world.heal();
    match world.wrong() {
        Some(what) => Err(what.clone()),
        None => Ok(world.tally),
    }
}

/// Runs the seeds on all cores. Returns the first failure, or what happened in all of them.
fn live_all(seeds: &[u64], faults: fn(u64) -> Faults, mutant: Option<Mutant>) -> Outcome {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Outcome { wrong: None, tally: Tally::new() });
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let lived = live(*seed, faults(*seed), mutant);
                    let mut outcome = outcome.lock().unwrap();
                    match lived {
                        Ok(tally) => {
                            for (what, times) in tally {
                                *outcome.tally.entry(what).or_default() += times;
                            }
                        }
                        Err(what) => {
                            next.store(seeds.len(), Ordering::Relaxed);
                            outcome.wrong.get_or_insert((*seed, what));
                        }
                    }
                }
            });
        }
    });
    outcome.into_inner().unwrap()
}

struct Outcome {
    wrong: Option<(u64, String)>,
    tally: Tally,
}

#[test]
fn whatever_happens_nobody_claims_what_it_lacks_and_all_end_with_the_same() {
    let seeds = seeds(50);
    let Outcome { wrong, tally } = live_all(&seeds, faults, None);
    if let Some((seed, what)) = wrong {
        panic!("SEED={seed} ({:?}): {what}", faults(seed));
    }
    let never: Vec<_> = Happened::COMMON.iter().filter(|what| !tally.contains_key(what)).collect();
    assert!(seeds.len() < 500 || never.is_empty(), "{never:?} never happened: {tally:?}");
}

/// Seeds that once failed: the future branch of a log forked by a restore is rewritten.
const ONCE_WRONG: [u64; 2] = [521, 2153];

#[test]
fn what_went_wrong_once_does_not_again() {
    for seed in ONCE_WRONG {
        live(seed, faults(seed), None).unwrap();
    }
}

#[test]
fn a_device_that_does_nothing_delays_nobody() {
    let mut world = World::of_members(5, 3, Faults::NONE, None);
    world.stalled = Some(1);
    for _ in 0..200 {
        world.write(0);
    }
    world.settle();
    assert_eq!(world.wrong(), None);
    assert!(world.alike(0, 2), "the other is delayed");
    assert!(!world.alike(0, 1));
    world.stalled = None;
    world.settle();
    assert!(world.alike(0, 1));
    assert_eq!(world.wrong(), None);
}

/// Checks that with one rule turned off one of the seeds fails in the expected way. Returns the
/// seed. Ranges begin shortly before the first seed that shows it, which saves minutes.
fn must_fail(mutant: Mutant, seeds: Range<u64>, faults: fn(u64) -> Faults, expected: &str) -> u64 {
    let seeds: Vec<u64> = seeds.collect();
    let Some((seed, what)) = live_all(&seeds, faults, Some(mutant)).wrong else {
        panic!("{mutant:?} is not noticed");
    };
    assert!(what.contains(expected), "SEED={seed}: {mutant:?} shows as: {what}");
    seed
}

const SKEW: Faults = Faults { skew: true, ..Faults::NONE };
const SILENT: Faults = Faults { silent_restores: true, ..Faults::NONE };
const RESTORES: Faults = Faults { restores: true, ..Faults::NONE };
const REMOVAL: Faults = Faults { removal: true, ..Faults::NONE };
const LIAR: Faults = Faults { liar: true, ..Faults::NONE };
const THIEF: Faults = Faults { removal: true, thief: true, ..Faults::NONE };

// ---- what is sent, and what of it is believed ------------------------------------------------

#[test]
fn sending_only_what_our_clock_covers_is_noticed() {
    must_fail(Mutant::SendOnlyWhatTheClockCovers, 160..660, |_| Faults::NONE, "I");
}

#[test]
#[ignore = "not run: no seed tried shows the mutant since joiners are added when they have joined"]
fn taking_what_was_sent_for_what_the_peer_has_is_noticed() {
    must_fail(Mutant::SentCountsAsHad, 0..500, |_| Faults::NONE, "I");
}

#[test]
fn going_by_a_clock_of_an_earlier_session_is_noticed() {
    must_fail(Mutant::ClockOfAnEarlierSession, 0..500, |_| RESTORES, "I");
}

#[test]
fn claiming_to_be_drained_from_the_start_is_noticed() {
    must_fail(Mutant::DrainedFromTheStart, 0..200, |_| Faults::NONE, "I1");
}

#[test]
#[ignore = "not run: no seed tried shows the mutant since joiners are added when they have joined"]
fn a_drained_clock_of_a_later_snapshot_is_noticed() {
    must_fail(Mutant::DrainedClockOfALaterSnapshot, 0..500, |_| Faults::NONE, "I1");
}

#[test]
fn a_clock_that_moves_across_gaps_is_noticed() {
    must_fail(Mutant::ClockAcrossGaps, 50..250, |_| Faults::NONE, "I1");
}

#[test]
fn jumping_after_a_refusal_is_noticed() {
    must_fail(Mutant::JumpAfterARefusal, 90..590, |_| SKEW, "I1");
}

// ---- what is kept ----------------------------------------------------------------------------

#[test]
fn dropping_the_op_at_the_clock_is_noticed() {
    must_fail(Mutant::HeadPruned, 0..200, |_| Faults::NONE, "clock");
}

#[test]
fn forgetting_what_was_deleted_is_noticed() {
    must_fail(Mutant::ClearsForgotten, 0..100, |_| Faults::NONE, "I5");
}

#[test]
fn writing_on_in_the_old_log_after_a_restore_is_noticed() {
    must_fail(Mutant::NoNewLogAfterARestore, 0..200, |_| RESTORES, "I4");
}

// ---- digests ---------------------------------------------------------------------------------

#[test]
fn doing_without_digests_is_noticed_and_with_them_all_is_healed() {
    let seed = must_fail(Mutant::NoDigest, 0..2_000, |_| SILENT, "I2");
    let tally = live(seed, SILENT, None).unwrap();
    assert!(tally.contains_key(&Happened::Repair), "SEED={seed}: {tally:?}");
}

#[test]
fn doing_without_digests_among_liars_is_noticed() {
    must_fail(Mutant::NoDigest, 0..500, |_| LIAR, "I2");
}

#[test]
#[ignore = "not run: schema 2 heals this course of events without a repair; it needs another course"]
fn doing_without_digests_while_there_are_gaps_is_noticed_and_with_them_all_is_healed() {
    let wrong = end(a_hidden_fork_beside_a_gap(Some(Mutant::NoDigestWhileThereAreGaps)));
    assert!(wrong.as_ref().is_err_and(|what| what.contains("I2")), "{wrong:?}");
    let tally = end(a_hidden_fork_beside_a_gap(None)).unwrap();
    assert!(tally.contains_key(&Happened::Repair), "{tally:?}");
}

/// Two devices with equal clocks. One lacks something, and both hold an op that no clock covers or
/// ever will.
fn a_hidden_fork_beside_a_gap(mutant: Option<Mutant>) -> World {
    let mut world = World::of_members(7, 3, SILENT, mutant);
    // A device sends an op but not the dead one before it, and disappears before it can send its
    // clock.
    world.overwrite(2, 1, 2);
    world.disconnect();
    world.overwrite(2, 1, 2);
    world.prune(2, 31);
    world.connect(0, 2);
    world.until_there_is_a_gap(0);
    world.lose(2);
    world.connect(0, 1);
    world.settle();
    // Another device writes ops that it then forgets, and others with the same numbers; only the
    // last of those is left when the two meet.
    world.back_up(1);
    world.overwrite(1, 2, 1);
    world.settle();
    world.disconnect();
    world.put_back(1, 0, true);
    world.overwrite(1, 3, 3);
    world.prune(1, 31);
    assert_eq!(world.wrong(), None);
    world
}

// ---- clocks ----------------------------------------------------------------------------------

#[test]
fn admitting_the_future_is_noticed() {
    must_fail(Mutant::FutureIsAdmitted, 45..145, |_| SKEW, "too far in the future");
}

#[test]
fn stamps_that_do_not_rise_above_what_was_seen_are_noticed() {
    // In some lives before these it shows first as a write that is refused.
    must_fail(Mutant::StampsForgetWhatWasSeen, 40..100, |_| SKEW, "S1");
}

#[test]
fn what_was_held_back_comes_by_itself_when_its_time_has_come() {
    assert!(what_was_held_back_came(None));
    assert!(!what_was_held_back_came(Some(Mutant::HeldBackForGood)), "it is not noticed");
}

fn what_was_held_back_came(mutant: Option<Mutant>) -> bool {
    let mut world = World::of_members(3, 2, SKEW, mutant);
    world.set_offset(1, 12 * 60 * 1000);
    world.overwrite(1, 1, 1);
    world.wait(60_000);
    assert!(!world.alike(0, 1), "it is not held back");
    world.settle();
    assert_eq!(world.wrong(), None);
    world.alike(0, 1)
}

// ---- members ---------------------------------------------------------------------------------

#[test]
fn listening_to_a_removed_device_is_noticed() {
    must_fail(Mutant::RemovedMayStillConnect, 0..200, |_| REMOVAL, "I8");
}

#[test]
fn refusing_what_members_bring_of_a_removed_device_is_noticed() {
    must_fail(Mutant::RemovedAuthorsAreRefused, 45..545, |_| REMOVAL, "I");
}

#[test]
fn a_removal_that_a_new_add_undoes_is_noticed() {
    must_fail(Mutant::RemovalUndoneByAnAdd, 0..500, |_| REMOVAL, "I8");
}

#[test]
fn standing_by_whomever_a_removed_device_has_added_is_noticed() {
    must_fail(Mutant::KeepIgnored, 130..2_130, |_| REMOVAL, "I8");
}

#[test]
fn standing_by_none_whom_a_removed_device_has_added_is_noticed() {
    must_fail(Mutant::KeepForgotten, 45..545, |_| REMOVAL, "I2");
}

#[test]
fn what_a_thief_says_with_the_key_of_a_removed_device_changes_nobody_else() {
    let Outcome { wrong, tally } = live_all(&seeds(15), |_| THIEF, None);
    assert_eq!(wrong, None);
    assert!(tally.contains_key(&Happened::SleeperDeceived), "nobody believed it: {tally:?}");
    assert!(tally.contains_key(&Happened::RemoverAnswered), "no remover was struck: {tally:?}");
}

#[test]
fn removals_without_fences_are_noticed() {
    must_fail(Mutant::NoFence, 0..500, |_| THIEF, "the thief");
}

// ---- tickets ---------------------------------------------------------------------------------

#[test]
fn a_ticket_that_works_twice_is_noticed() {
    must_fail(Mutant::TokenWorksTwice, 0..10, |_| Faults::NONE, "two devices");
}

#[test]
fn a_ticket_that_never_expires_is_noticed() {
    must_fail(Mutant::TokenNeverExpires, 0..50, |_| Faults::NONE, "an expired ticket");
}

#[test]
fn a_proof_that_any_device_may_use_is_noticed() {
    must_fail(Mutant::ProofFitsAnybody, 0..50, |_| Faults::NONE, "a proof let another");
}
