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

#[test]
fn whatever_happens_nobody_claims_what_it_lacks_and_all_end_with_the_same() {
    let seeds = seeds(500);
    let many = seeds.len() > 100;
    let mut sum = Tally::default();
    for seed in seeds {
        match live(seed, faults(seed), None) {
            Ok(tally) => sum.add(&tally),
            Err(what) => panic!("SEED={seed} ({:?}): {what}", faults(seed)),
        }
    }
    if many {
        assert!(sum.all_happened(), "not all that should happen did: {sum:?}");
    }
}
