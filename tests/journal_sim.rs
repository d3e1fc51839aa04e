//! Journals in a seeded world: whatever a network, crashes, clocks, backups and prunes do, what a
//! device claims to have it has at every moment, and once all is mended all have the same.
//!
//! A failure prints its seed. `SEED=n cargo test --test journal_sim` replays it, `SEEDS=n` runs more:
//! the long run is `SEEDS=50000 cargo test --release --test journal_sim whatever_happens`.

#![allow(clippy::unwrap_used)]

#[path = "journal_sim/model.rs"]
mod model;
#[path = "journal_sim/world.rs"]
mod world;
#[path = "journal_sim/writes.rs"]
mod writes;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use world::{Faults, Mutant, Tally, World};

/// Steps of a life.
const STEPS: u64 = 500;

fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SEEDS").unwrap_or(default)).collect(),
    }
}

/// The faults of a seed: each number of them, and none, comes up.
fn faults(seed: u64) -> Faults {
    let bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    Faults {
        crashes: true,
        silent_restores: seed % 3 == 2,
        restores: bits & 1 != 0,
        skew: bits & 2 != 0,
        removal: bits & 4 != 0,
        loss: bits & 8 != 0,
        full_disks: bits & 16 != 0,
    }
}

/// One life. What went wrong in it, or what happened.
fn live(seed: u64, faults: Faults, mutant: Option<Mutant>) -> Result<Tally, String> {
    let devices = 2 + (seed % 4) as usize;
    let mut world = World::new(seed, devices, faults, mutant);
    for _ in 0..STEPS {
        world.step();
        if world.wrong().is_some() {
            break;
        }
    }
    world.heal();
    match world.wrong() {
        Some(what) => Err(what.clone()),
        None => Ok(world.tally),
    }
}

/// Lives through the seeds on all cores: the first that went wrong, or what happened in all.
fn live_all(seeds: &[u64], faults: fn(u64) -> Faults, mutant: Option<Mutant>) -> Outcome {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Outcome { wrong: None, tally: Tally::default() });
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let lived = live(*seed, faults(*seed), mutant);
                    let mut outcome = outcome.lock().unwrap();
                    match lived {
                        Ok(tally) => outcome.tally.add(&tally),
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
    let seeds = seeds(500);
    let Outcome { wrong, tally } = live_all(&seeds, faults, None);
    if let Some((seed, what)) = wrong {
        panic!("SEED={seed} ({:?}): {what}", faults(seed));
    }
    let all = seeds.len() < 500 || tally.all_happened();
    assert!(all, "not all that should happen did: {tally:?}");
}

#[test]
fn a_device_that_does_nothing_delays_nobody() {
    let mut world = World::new(5, 3, Faults::NONE, None);
    world.join(1, 0);
    world.join(2, 0);
    world.connect(0, 1);
    world.connect(0, 2);
    world.settle();
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

/// With a rule turned off something goes wrong within so many seeds, and it is what it should be.
/// Returns the seed.
fn must_fail(mutant: Mutant, seeds: u64, faults: fn(u64) -> Faults, expected: &str) -> u64 {
    let seeds: Vec<u64> = (0..seeds).collect();
    let Some((seed, what)) = live_all(&seeds, faults, Some(mutant)).wrong else {
        panic!("{mutant:?} is not noticed");
    };
    assert!(what.contains(expected), "SEED={seed}: {mutant:?} shows as: {what}");
    seed
}

const SKEW: Faults = Faults { skew: true, ..Faults::NONE };
const SILENT: Faults = Faults { silent_restores: true, ..Faults::NONE };

#[test]
fn sending_only_what_our_clock_covers_is_noticed() {
    must_fail(Mutant::SendOnlyWhatTheClockCovers, 500, |_| Faults::NONE, "I");
}

#[test]
fn taking_what_was_sent_for_what_the_peer_has_is_noticed() {
    must_fail(Mutant::SentCountsAsHad, 500, |_| Faults::NONE, "I");
}

#[test]
fn claiming_to_be_drained_from_the_start_is_noticed() {
    must_fail(Mutant::DrainedFromTheStart, 200, |_| Faults::NONE, "I1");
}

#[test]
fn a_drained_clock_of_a_later_snapshot_is_noticed() {
    must_fail(Mutant::DrainedClockOfALaterSnapshot, 500, |_| Faults::NONE, "I1");
}

#[test]
fn a_clock_that_moves_across_gaps_is_noticed() {
    must_fail(Mutant::ClockAcrossGaps, 200, |_| Faults::NONE, "I1");
}

#[test]
fn jumping_after_a_refusal_is_noticed() {
    must_fail(Mutant::JumpAfterARefusal, 500, |_| SKEW, "I1");
}

#[test]
fn dropping_the_op_at_the_clock_is_noticed() {
    must_fail(Mutant::HeadPruned, 200, |_| Faults::NONE, "clock");
}

#[test]
fn forgetting_what_was_deleted_is_noticed() {
    must_fail(Mutant::ClearsForgotten, 100, |_| Faults::NONE, "I5");
}

#[test]
fn doing_without_digests_is_noticed_and_with_them_all_is_healed() {
    let seed = must_fail(Mutant::NoDigest, 2_000, |_| SILENT, "I2");
    let tally = live(seed, SILENT, None).unwrap();
    assert!(tally.repairs > 0, "SEED={seed}: {tally:?}");
}

#[test]
#[ignore = "takes thousands of seeds"]
fn doing_without_digests_while_there_are_gaps_is_noticed() {
    must_fail(Mutant::NoDigestWhileThereAreGaps, 50_000, |_| SILENT, "I2");
}

#[test]
fn writing_on_in_the_old_log_after_a_restore_is_noticed() {
    let restores = |_| Faults { restores: true, ..Faults::NONE };
    must_fail(Mutant::NoNewLogAfterARestore, 200, restores, "I4");
}

#[test]
fn listening_to_a_removed_device_is_noticed() {
    let removal = |_| Faults { removal: true, ..Faults::NONE };
    must_fail(Mutant::RemovedMayStillConnect, 200, removal, "I8");
}

#[test]
fn admitting_the_future_is_noticed() {
    must_fail(Mutant::FutureIsAdmitted, 100, |_| SKEW, "too far in the future");
}

#[test]
fn a_ticket_that_works_twice_is_noticed() {
    must_fail(Mutant::TokenWorksTwice, 10, |_| Faults::NONE, "two devices");
}
