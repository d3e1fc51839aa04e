//! Engines in a seeded world: whatever network, crashes and late joiners do, once the faults end
//! all sets are equal and nothing moves.
//!
//! A failure prints its seed. `SEED=n cargo test --test sim` replays it, `SEEDS=n` runs more,
//! `FIRST=n` others: the long run is `SEEDS=50000 cargo test --release --test sim`.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use can_sync::core::engine::{Effect, Engine, Identity, Input, KnownSet};
use can_sync::core::fetches::FetchState;
use can_sync::core::ids::{Digest, GroupId, Hash, HashAlgorithm, NodeId, StoreId};
use can_sync::core::message::{Hello, Message};
use can_sync::core::pairing::{Member, Members};
use can_sync::core::peers::ConnId;
use can_sync::core::sketch::{Sketch, SketchKey};

#[path = "sim/world.rs"]
mod world;

use world::{Faults, Rng, World};

/// After the last fault all devices reconnect within the longest redial pause, and settle.
const HEAL_MS: u64 = 240_000;

/// How long nothing may move once all sets are equal.
const QUIET_MS: u64 = 1_200_000;

fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let first = number("FIRST").unwrap_or(0);
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (first..first + number("SEEDS").unwrap_or(default)).collect(),
    }
}

fn asset(n: u64) -> Digest {
    let hash = Hash(*blake3::hash(&n.to_le_bytes()).as_bytes());
    let size_bytes = match n {
        // Some are large and are sent alone; some of these are sent by all holders.
        _ if n.is_multiple_of(34) => 50_000_000,
        _ if n.is_multiple_of(17) => 5_000_000,
        _ => 1 + n % 9_000,
    };
    Digest { hash, size_bytes }
}

/// Adds assets `range` to random nodes, some to several.
fn scatter(world: &mut World, range: std::ops::Range<u64>, added: &mut BTreeSet<Hash>) {
    for n in range {
        let copies = 1 + world.rng.below(2);
        for _ in 0..copies {
            let node = world.rng.below(world.nodes.len() as u64) as usize;
            world.add(node, asset(n));
        }
        added.insert(asset(n).hash);
    }
}

fn assert_all_hold(world: &World, added: &BTreeSet<Hash>, seed: u64) {
    for n in 0..world.nodes.len() {
        let set = world.set(n);
        assert!(
            set == *added,
            "SEED={seed}: node {n} holds {} of {} assets",
            set.len(),
            added.len()
        );
    }
    let not_in_sync = world.not_in_sync();
    assert!(not_in_sync.is_empty(), "SEED={seed}: not seen as equal: {not_in_sync:#?}");
}

fn assert_nothing_moves(world: &mut World, seed: u64) {
    let before = world.moves;
    world.run(world.now_ms + QUIET_MS);
    assert_eq!(world.moves, before, "SEED={seed}: something moves although all is equal");
}

/// A life full of faults, then peace. Returns the set that every node must hold.
fn live_through(world: &mut World, seed: u64) -> BTreeSet<Hash> {
    let mut added = BTreeSet::new();
    let mut next = 0;
    let count = world.nodes.len();
    scatter(world, 0..40, &mut added);
    // One node joins late.
    for n in 0..count - 1 {
        world.start(n);
    }
    let steps = 6 + Rng::new(seed ^ 0xabcd).below(10);
    for step in 0..steps {
        let now = world.now_ms;
        match world.rng.below(7) {
            6 => {
                for _ in 0..world.rng.below(40) {
                    let n = world.rng.below(count as u64) as usize;
                    // Some that exist, some that come later, some that never do.
                    let hash = asset(world.rng.below(next / 1000 + 2) * 1000 + step % 120).hash;
                    let at_once = world.rng.chance(50);
                    world.fetch(n, hash, at_once);
                }
            }
            0 | 1 => {
                let batch = 1 + world.rng.below(120);
                next += 1000;
                scatter(world, next..next + batch, &mut added);
            }
            2 => {
                let (a, b) = (world.rng.below(count as u64), world.rng.below(count as u64));
                world.cut(a as usize, b as usize);
            }
            3 => world.connect_all(),
            4 => {
                let n = world.rng.below(count as u64) as usize;
                if world.is_up(n) {
                    world.crash(n);
                } else {
                    world.start(n);
                }
            }
            _ => {}
        }
        if step == steps / 2 && !world.is_up(count - 1) {
            world.start(count - 1);
        }
        let pause = 1 + world.rng.below(20_000);
        world.run(now + pause);
    }
    world.connect_all();
    for n in 0..count {
        if !world.is_up(n) {
            world.start(n);
        }
    }
    world.run(world.now_ms + HEAL_MS);
    added
}

#[test]
fn whatever_happens_all_end_with_the_same_set_and_then_nothing_moves() {
    for seed in seeds(20) {
        let faults =
            Faults { delay_ms_max: 1 + seed % 400, broken_batches: seed % 30, plain: false };
        let nodes = 2 + (seed % 4) as usize;
        let mut world = World::new(seed, nodes, faults);
        world.connect_all();
        let added = live_through(&mut world, seed);
        assert_all_hold(&world, &added, seed);
        assert_nothing_moves(&mut world, seed);
    }
}

#[test]
fn whatever_devices_want_and_evict_each_ends_with_what_it_wants_and_knows_who_holds_what() {
    for seed in seeds(12) {
        let faults =
            Faults { delay_ms_max: 1 + seed % 300, broken_batches: seed % 20, plain: false };
        let count = 3 + (seed % 3) as usize;
        let mut world = World::new(seed, count, faults);
        world.let_choose();
        world.connect_all();
        let mut added = BTreeSet::new();
        (0..count).for_each(|n| world.start(n));
        for step in 0..14_u64 {
            // The first one wants everything and keeps it, so that no copy that is evicted was the last.
            let n = 1 + world.rng.below(count as u64 - 1) as usize;
            match world.rng.below(8) {
                0..=2 => {
                    let batch = 1 + world.rng.below(60);
                    for asset_n in step * 1000..step * 1000 + batch {
                        let at = world.rng.below(count as u64) as usize;
                        world.add_own(at, asset(asset_n));
                        added.insert(asset(asset_n).hash);
                    }
                }
                3 | 4 => {
                    let wants_below = [0, 64, 128, 200, 256][world.rng.below(5) as usize];
                    world.want(n, wants_below);
                }
                5 => {
                    let kept = world.set(0);
                    let held = world.set(n).into_iter().filter(|hash| kept.contains(hash));
                    let evicted: Vec<Hash> = held.take(world.rng.below(20) as usize).collect();
                    evicted.into_iter().for_each(|hash| world.evict(n, hash));
                }
                6 => {
                    let other = world.rng.below(count as u64) as usize;
                    world.cut(n, other);
                }
                _ if world.is_up(n) => world.crash(n),
                _ => world.start(n),
            }
            let pause = 1 + world.rng.below(15_000);
            world.run(world.now_ms + pause);
        }
        world.connect_all();
        for n in 0..count {
            if !world.is_up(n) {
                world.start(n);
            }
        }
        world.run(world.now_ms + HEAL_MS);
        let not_in_sync = world.not_in_sync();
        assert!(not_in_sync.is_empty(), "SEED={seed}: not seen as equal: {not_in_sync:#?}");
        let wrong = world.wrong_copies(&added);
        assert!(wrong.is_none(), "SEED={seed}: {}", wrong.unwrap_or_default());
        assert_eq!(world.set(0), added, "SEED={seed}: nothing was lost");
        assert_nothing_moves(&mut world, seed);
    }
}

#[test]
fn the_plain_protocol_ends_with_the_same_sets() {
    for seed in seeds(7) {
        let nodes = 2 + (seed % 3) as usize;
        let mut ends = Vec::new();
        for plain in [false, true] {
            let faults = Faults { delay_ms_max: 1 + seed % 100, broken_batches: 0, plain };
            let mut world = World::new(seed, nodes, faults);
            world.connect_all();
            let mut added = BTreeSet::new();
            scatter(&mut world, 0..200, &mut added);
            (0..nodes).for_each(|n| world.start(n));
            world.run(20_000);
            scatter(&mut world, 1000..1100, &mut added);
            world.run(HEAL_MS);
            assert_all_hold(&world, &added, seed);
            assert_nothing_moves(&mut world, seed);
            ends.push((0..nodes).map(|n| world.set(n)).collect::<Vec<_>>());
        }
        assert_eq!(ends[0], ends[1], "SEED={seed}");
    }
}

#[test]
fn what_nobody_holds_is_asked_for_once_and_is_nowhere() {
    for seed in seeds(7) {
        let mut world = World::new(seed, 4, Faults { delay_ms_max: 50, ..Faults::NONE });
        world.connect_all();
        (0..4).for_each(|n| world.start(n));
        world.run(5_000);
        let hash = asset(1).hash;
        for at_once in [false, true] {
            assert_eq!(world.fetch(0, hash, at_once), Some(FetchState::Waiting), "SEED={seed}");
            world.run(world.now_ms + 2_000);
            assert_eq!(world.fetch(0, hash, at_once), Some(FetchState::Nowhere), "SEED={seed}");
            let moves = world.moves;
            world.run(world.now_ms + 2_000);
            world.fetch(0, hash, at_once);
            assert_eq!(world.moves, moves, "SEED={seed}");
            world.run(world.now_ms + 60_000);
        }
        world.add(3, asset(1));
        world.run(world.now_ms + 5_000);
        assert_eq!(world.fetch(0, hash, true), None, "SEED={seed}");
    }
}

#[test]
fn in_a_chain_assets_travel_through_the_middle() {
    for seed in seeds(15) {
        let mut world = World::new(seed, 3, Faults::NONE);
        world.join(0, 1);
        world.join(1, 2);
        (0..3).for_each(|n| world.start(n));
        world.run(5_000);
        let mut added = BTreeSet::new();
        for n in 0..50 {
            world.add(if n % 2 == 0 { 0 } else { 2 }, asset(n));
            added.insert(asset(n).hash);
        }
        world.run(10_000);
        assert_all_hold(&world, &added, seed);
        assert_eq!(world.crossed, 100, "SEED={seed}: each asset crosses each link once");
    }
}

#[test]
fn in_a_mesh_each_asset_reaches_each_node_once() {
    for seed in seeds(4) {
        let mut world = World::new(seed, 5, Faults { delay_ms_max: 30, ..Faults::NONE });
        world.connect_all();
        (0..5).for_each(|n| world.start(n));
        world.run(5_000);
        let mut added = BTreeSet::new();
        for n in 0..300 {
            world.add((n % 5) as usize, asset(n));
            added.insert(asset(n).hash);
            world.run(world.now_ms + n % 7);
        }
        world.run(world.now_ms + 60_000);
        assert_all_hold(&world, &added, seed);
        assert_eq!(world.crossed, 300 * 4, "SEED={seed}");
    }
}

#[test]
fn a_device_that_comes_back_unchanged_agrees_in_one_round_trip() {
    let mut world = World::new(7, 2, Faults::NONE);
    world.connect_all();
    for n in 0..5_000 {
        world.add(0, asset(n));
        world.add(1, asset(n));
    }
    (0..2).for_each(|n| world.start(n));
    world.run(3_000);
    world.crash(1);
    world.run(60_000);
    let (bytes, moves) = (world.frame_bytes, world.moves);
    world.start(1);
    world.run(120_000);
    assert!(world.not_in_sync().is_empty());
    // Of each side Hello, SetSummary, and which of the hashes it does not hold.
    assert_eq!(world.moves - moves, 6);
    assert!(world.frame_bytes - bytes < 1024, "{} bytes", world.frame_bytes - bytes);
}

#[test]
fn a_device_whose_numbers_went_back_unnoticed_is_given_everything_and_gives_everything() {
    for seed in seeds(7) {
        let mut world = World::new(seed, 2, Faults::NONE);
        world.connect_all();
        let mut added = BTreeSet::new();
        let mut add = |world: &mut World, n: usize, assets: std::ops::Range<u64>| {
            for asset in assets.map(asset) {
                world.add(n, asset);
                added.insert(asset.hash);
            }
        };
        add(&mut world, 0, 1..50);
        (0..2).for_each(|n| world.start(n));
        world.run(20_000);
        let backup = world.back_up(0);
        add(&mut world, 0, 100..120);
        world.run(40_000);
        world.put_back(0, backup);
        // Before it meets the other device, as many sequence numbers are assigned to other assets
        // as were lost.
        world.cut(0, 1);
        world.start(0);
        add(&mut world, 0, 200..220);
        world.run(120_000);
        world.join(0, 1);
        world.run(120_000 + HEAL_MS);
        assert_all_hold(&world, &added, seed);
        assert_nothing_moves(&mut world, seed);
    }
}

#[test]
fn a_burst_of_small_assets_needs_few_batches() {
    let mut world = World::new(3, 2, Faults::NONE);
    world.connect_all();
    (0..2).for_each(|n| world.start(n));
    world.run(5_000);
    let moves = world.moves;
    for n in 0..10_000 {
        world.add(0, asset(17 * n + 1));
        if n % 10 == 0 {
            world.run(world.now_ms + 1);
        }
    }
    world.run(world.now_ms + 60_000);
    assert_eq!(world.set(1).len(), 10_000);
    assert!(world.moves - moves < 500, "{} messages and batches", world.moves - moves);
}

#[test]
fn a_new_device_gets_a_large_set_in_pages() {
    let mut world = World::new(5, 2, Faults::NONE);
    world.connect_all();
    for n in 0..40_000 {
        world.add(0, asset(17 * n + 1));
    }
    (0..2).for_each(|n| world.start(n));
    world.run(600_000);
    assert_eq!(world.set(1).len(), 40_000);
    assert!(world.not_in_sync().is_empty());
    assert_eq!(world.crossed, 40_000);
}

#[test]
fn a_peer_that_promises_and_does_not_deliver_is_passed_over_and_another_asked() {
    for seed in seeds(7) {
        let mut world = World::new(seed, 3, Faults::NONE);
        let mut added = BTreeSet::new();
        for n in 0..500 {
            world.add(0, asset(n));
            world.add(2, asset(n));
            added.insert(asset(n).hash);
        }
        world.nodes[0].withholds = true;
        (0..3).for_each(|n| world.start(n));
        world.join(0, 1);
        world.run(50_000);
        assert!(world.set(1).is_empty(), "SEED={seed}");
        world.join(1, 2);
        world.run(world.now_ms + 60_000);
        assert!(world.set(1) == added, "SEED={seed}: {} have come", world.set(1).len());
        assert_eq!(world.crossed, 500, "SEED={seed}");
    }
}

#[test]
fn whoever_offers_assets_for_ever_and_sends_none_keeps_nobody_from_giving_them() {
    // How long an asset that is not shared may take before it is requested from other holders,
    // plus the longest redial pause.
    const BOUND_MS: u64 = 7 * 60_000;
    for seed in seeds(3) {
        let mut world = World::new(seed, 3, Faults::NONE);
        let (victim, honest, hostile) = (0, 1, 2);
        let assets: Vec<Digest> = (1..40).map(asset).collect();
        assets.iter().for_each(|asset| world.add(honest, *asset));
        (0..3).for_each(|n| world.start(n));
        world.join(victim, hostile);
        world.run(20_000);
        for asset in &assets {
            // Offers with the true size, and with a false one.
            world.usurp(hostile, victim, vec![*asset]);
            world.usurp(hostile, victim, vec![Digest { size_bytes: 1 << 40, ..*asset }]);
        }
        world.run(world.now_ms + 1_000);
        world.join(victim, honest);
        world.run(world.now_ms + BOUND_MS);
        assert_eq!(world.set(victim).len(), assets.len(), "SEED={seed}");
    }
}

#[test]
fn what_was_missed_does_not_wait_for_the_end_of_a_large_transfer() {
    for seed in seeds(7) {
        for sender in [0, 1] {
            let mut world = World::new(seed, 2, Faults::NONE);
            world.large_ms = 6 * 3_600_000;
            world.connect_all();
            (0..2).for_each(|n| world.start(n));
            world.run(5_000);
            world.add(0, asset(17));
            world.run(world.now_ms + 1_000);
            // For a moment every batch fails.
            world.faults.broken_batches = 100;
            let missed = 1..17;
            missed.clone().for_each(|n| world.add(sender, asset(n)));
            world.run(world.now_ms + 1_000);
            world.faults.broken_batches = 0;
            world.run(world.now_ms + 130_000);
            let held = world.set(1 - sender);
            assert!(missed.into_iter().all(|n| held.contains(&asset(n).hash)), "SEED={seed}");
            let moves = world.moves;
            world.run(world.now_ms + 3_600_000);
            assert!(world.moves - moves < 60 * 10, "SEED={seed}: {}", world.moves - moves);
            world.run(world.now_ms + 6 * 3_600_000);
            assert_eq!(world.set(1).len(), 17, "SEED={seed}");
            assert_nothing_moves(&mut world, seed);
        }
    }
}

#[test]
fn a_stopping_engine_is_woken_for_its_end_alone() {
    let (group_id, algorithm) = (GroupId([1; 32]), HashAlgorithm::Blake3);
    let node = |n| NodeId([n; 32]);
    let member = |n| Member { node_id: node(n), name: String::new(), addresses: Vec::new() };
    let members = Members { members: (1..=3).map(member).collect(), removed: Vec::new() };
    let (device_name, build) = (String::new(), String::new());
    let store_id = StoreId([2; 16]);
    let hello = Hello {
        group_id,
        device_name,
        store_id,
        algorithm,
        build,
        journal: false,
        proofs: false,
        thumbnails: false,
        copies: false,
        chooses: false,
        metadata: true,
    };
    let identity = Identity {
        node_id: node(1),
        group_id,
        device_name: String::new(),
        store_id: StoreId([1; 16]),
        algorithm,
        build: String::new(),
    };
    let sketch = Sketch::new(SketchKey::derive(&group_id));
    let known = KnownSet { sketch, epoch: [0; 16], head_seq: 0 };
    let mut engine = Engine::new(identity, known, members, BTreeMap::new(), [0; 32]);
    let mut effects = Vec::new();
    // One peer is being sent something; the other one's Hello is awaited and does not come.
    for n in [2, 3] {
        let (conn, peer) = (ConnId(n.into()), node(n));
        engine.handle(0, Input::Connected { conn, peer, dialed: true, plain: false }, &mut effects);
    }
    let message = Message::Hello(hello);
    engine.handle(0, Input::Message { conn: ConnId(2), message }, &mut effects);
    let entries = vec![(1, asset(1))];
    engine.handle(0, Input::Indexed { entries, behind: false }, &mut effects);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::SendBatch { .. })));
    engine.handle(8_000, Input::Stop, &mut effects);
    for now_ms in [8_000, 10_000, 12_000] {
        engine.handle(now_ms, Input::Tick, &mut effects);
        assert!(engine.deadline_ms().is_some_and(|at| at > now_ms), "it would spin");
    }
    engine.handle(13_000, Input::Tick, &mut effects);
    assert!(effects.contains(&Effect::Stopped));
}
