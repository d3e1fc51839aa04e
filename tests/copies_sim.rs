//! Devices that evict one asset, in a seeded world: whatever crashes, partitions, late answers,
//! clocks, rotten copies, restored databases and liars do, no schedule loses the last copy.
//!
//! A failure prints its seed. `SEED=n cargo test --test copies_sim` replays it, `SEEDS=n` runs more,
//! `FIRST=n` others: the long run is `SEEDS=5000000 cargo test --release --test copies_sim whatever`.

#![allow(clippy::unwrap_used)]

#[path = "copies_sim/world.rs"]
mod world;

use world::{Mutant, Tally, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn whatever_happens_each_eviction_leaves_as_many_copies_as_it_was_told() {
    let first = number("FIRST").unwrap_or(0);
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number("SEEDS").unwrap_or(1_500),
    };
    let single = seeds.end - seeds.start == 1;
    let mut tally = Tally::default();
    for seed in seeds {
        match run(seed, None) {
            Ok(seen) => tally.add(&seen),
            Err(why) => panic!("SEED={seed}: {why}"),
        }
    }
    if !single {
        let Tally { evicted, refused, promised, safe, crashes, wrong, fetched, restored } = tally;
        let all = [evicted, refused, promised, safe, crashes, wrong, fetched, restored];
        assert!(all.iter().all(|count| *count > 100), "everything happens: {tally:?}");
    }
}

/// Runs seeds until the mutant shows.
fn shows(mutant: Mutant) -> String {
    let seen = (0..20_000).find_map(|seed| run(seed, Some(mutant)).err());
    seen.unwrap_or_else(|| panic!("{mutant:?} was not caught"))
}

#[test]
fn a_device_that_gives_no_lease_is_caught() {
    let what = shows(Mutant::NoLease);
    assert!(what.contains("relied on"), "{what}");
}

#[test]
fn a_proof_used_for_a_second_eviction_is_caught() {
    let what = shows(Mutant::CachedProof);
    assert!(what.contains("relied on"), "{what}");
}

#[test]
fn a_damaged_copy_that_counts_is_caught() {
    let what = shows(Mutant::DamagedCounts);
    assert!(what.contains("relied on"), "{what}");
}

#[test]
fn a_lease_that_is_not_durable_before_the_answer_is_caught() {
    let what = shows(Mutant::LeaseNotDurable);
    assert!(what.contains("relied on"), "{what}");
}

#[test]
fn an_intent_that_is_not_durable_is_caught() {
    let what = shows(Mutant::IntentNotDurable);
    assert!(what.contains("wants back"), "{what}");
}

#[test]
fn a_device_that_gives_leases_while_it_evicts_is_caught() {
    let what = shows(Mutant::NoIntent);
    assert!(what.contains("relied on") || what.contains("no copy"), "{what}");
}

#[test]
fn a_lease_counted_from_the_receipt_of_the_answer_is_caught() {
    let what = shows(Mutant::CountedFromReceipt);
    assert!(what.contains("relied on"), "{what}");
}

#[test]
fn leases_that_a_reboot_measures_by_the_new_clock_are_caught() {
    let what = shows(Mutant::LeaseAfterReboot);
    assert!(what.contains("relied on"), "{what}");
}
