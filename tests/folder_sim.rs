//! Devices with a directory each that is bound to one folder: whatever users, cuts, crashes, lost
//! bases and restored backups do, at quiet all directories are equal and every version that was in
//! the journal is at a path or in the history.
//!
//! The decisions are the real ones (`core/folder`); journal, network and disk are models. This is the
//! model of the folders' design, with crashes between any two steps, renames, directories, case
//! folding and restores beside it. Each mutant is a mistake that the runs must find.
//!
//! A failure prints its seed. `SEED=n cargo test --test folder_sim` replays it, `SEEDS=n` runs more,
//! `FIRST=n` others: the long run is `SEEDS=50000 cargo test --release --test folder_sim`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};

use can_sync::core::folder::collide::Folding;
use can_sync::core::folder::names::is_conflict_path;
use can_sync::core::folder::path::FolderPath;
use can_sync::core::folder::version::{Content, Version};
use can_sync::core::ids::Hash;

#[path = "folder_sim/device.rs"]
mod device;
#[path = "folder_sim/disk.rs"]
mod disk;
#[path = "folder_sim/journal.rs"]
mod journal;

use device::{Device, Middle, User, hash};
use disk::Disk;
use journal::HISTORY_WAIT_MS;

/// A mistake in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mutant {
    #[default]
    None,
    /// Versions do not say what they contain.
    NoVectors,
    /// A version with a greater stamp stays although another contains it.
    StampsOnly,
    /// Nobody resolves.
    LosersDropped,
    /// A version that finds a greater one in its cell is forgotten.
    RefusedDropped,
    /// Who resolves a conflict counts that as a change of its own.
    ResolversCount,
    /// A counter is one more than the base's, so that a lost base leads to the same one again.
    CountersOfTheBase,
    /// The base is recorded before the disk is written.
    BaseFirst,
    /// What came out of the exchange is not looked at.
    BlindExchange,
    /// What the journal does not know is removed from the disk.
    UnknownRemoved,
    /// A file that is in the way of a directory stays there.
    NobodyMakesWay,
    /// Every change is believed to have its event.
    EventsTrusted,
    /// The journal is believed to know every base.
    BasesTrusted,
}

const NAMES: [&str; 10] = ["a", "A", "b", "d", "d/a", "d/A", "D/b", "d/e", "d/e/a", "b/c"];

/// A seeded random source.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn path(&mut self) -> FolderPath {
        FolderPath::from_text(NAMES[self.below(NAMES.len())]).unwrap()
    }
}

/// How often what happens, in percent of the steps.
struct Odds {
    kill: usize,
    lose_bases: usize,
    restore: usize,
    edit_in_the_middle: usize,
}

struct World {
    rng: Rng,
    devices: Vec<Device>,
    now_ms: u64,
    serial: u64,
    logs: usize,
    /// The contents that were ever in a journal.
    journaled: BTreeSet<Hash>,
    backups: Vec<Option<journal::Journal>>,
    /// The contents of each disk whose journal was restored: the bases know them.
    on_disk: Vec<BTreeSet<Hash>>,
    odds: Odds,
}

fn content(rng: &mut Rng, serial: &mut u64) -> Content {
    // Some are the same as others.
    *serial += 1;
    let n = if rng.chance(15) { rng.next() % 3 } else { 1000 + *serial };
    let bytes = n.to_be_bytes();
    if rng.chance(10) {
        return Content::Symlink { target: bytes.iter().map(|byte| byte | 1).collect() };
    }
    Content::File {
        hash: Hash(*blake3::hash(&bytes).as_bytes()),
        size_bytes: n,
        modified_ms: i64::try_from(rng.next() % 4).unwrap(),
        is_executable: false,
    }
}

fn user(rng: &mut Rng, serial: &mut u64, disk: &mut Disk) {
    let there: Vec<FolderPath> = disk.nodes.keys().cloned().collect();
    let any = |rng: &mut Rng| {
        if there.is_empty() { rng.path() } else { there[rng.below(there.len())].clone() }
    };
    match rng.below(20) {
        0..9 => {
            let path = if rng.chance(50) { any(rng) } else { rng.path() };
            disk.user_puts(&path, content(rng, serial));
        }
        9..12 => disk.remove(&any(rng)),
        12..15 => {
            let (from, to) = (any(rng), rng.path());
            disk.user_renames(&from, &to);
        }
        15..17 => disk.user_puts(&rng.path(), Content::Directory),
        _ => {
            let path = any(rng);
            if let Some(Content::File { modified_ms, .. }) = disk.nodes.get_mut(&path) {
                *modified_ms += 1;
            }
        }
    }
}

impl World {
    fn new(seed: u64, mutant: Mutant, odds: Odds) -> Self {
        let mut rng = Rng(seed);
        let count = [2, 3, 3, 4][rng.below(4)];
        let folds = rng.chance(30);
        let device = |n: usize, rng: &mut Rng| {
            let is_folding = folds && n == 0;
            let folding = Folding { case: is_folding, normalisation: is_folding };
            Device {
                id: n as u64 + 1,
                log: n,
                disk: Disk { folding, ..Disk::default() },
                skew_ms: rng.next() % 3000,
                mutant,
                ..Device::default()
            }
        };
        let devices: Vec<_> = (0..count).map(|n| device(n, &mut rng)).collect();
        Self {
            rng,
            backups: vec![None; devices.len()],
            on_disk: vec![BTreeSet::new(); devices.len()],
            logs: devices.len(),
            devices,
            now_ms: 1_900_000_000_000,
            serial: 0,
            journaled: BTreeSet::new(),
            odds,
        }
    }

    /// One device does one thing about one path. Returns whether there was anything to do.
    fn act(&mut self, n: usize, is_quiet: bool) -> bool {
        let odds = &self.odds;
        if self.devices[n].resolve(self.now_ms) {
            return true;
        }
        let mut paths = self.devices[n].paths();
        while !paths.is_empty() {
            let path = paths.swap_remove(self.rng.below(paths.len()));
            let is_killed = !is_quiet && self.rng.chance(odds.kill);
            let edits = !is_quiet && self.rng.chance(odds.edit_in_the_middle);
            let (rng, serial) = (&mut self.rng, &mut self.serial);
            let mut edit = |disk: &mut Disk, path: &FolderPath| {
                if disk.nodes.get(path) != Some(&Content::Directory) {
                    disk.user_puts(path, content(rng, serial));
                }
            };
            let user: Option<User<'_>> = if edits { Some(&mut edit) } else { None };
            let middle = Middle { is_killed, user };
            if self.devices[n].step(&path, self.now_ms, &mut self.journaled, middle) {
                return true;
            }
        }
        false
    }

    fn sync(&mut self, to: usize, from: usize, limit: usize, drops: usize) {
        let mut receiver = std::mem::take(&mut self.devices[to].journal);
        let rng = &mut self.rng;
        let mutant = self.devices[to].mutant;
        let sender = &self.devices[from].journal;
        receiver.sync_from(sender, limit, self.now_ms, mutant, || rng.chance(drops));
        if drops == 0 {
            receiver.repair_from(sender, self.now_ms, mutant);
        }
        self.devices[to].journal = receiver;
    }

    fn anything(&mut self) {
        self.now_ms += self.rng.next() % 1500;
        let n = self.rng.below(self.devices.len());
        match self.rng.below(100) {
            0..30 => user(&mut self.rng, &mut self.serial, &mut self.devices[n].disk),
            30..65 => {
                self.act(n, false);
            }
            65..95 => {
                let other = self.rng.below(self.devices.len());
                if other != n {
                    let limit = [1, 2, 5, usize::MAX][self.rng.below(4)];
                    self.sync(n, other, limit, 50);
                }
            }
            _ if self.rng.chance(self.odds.lose_bases) => {
                self.devices[n].bases.clear();
                self.on_disk[n].clear();
            }
            _ if self.rng.chance(self.odds.restore) => match self.backups[n].take() {
                None => self.backups[n] = Some(self.devices[n].journal.clone()),
                Some(backup) => {
                    // A restored journal continues in a new log.
                    let device = &mut self.devices[n];
                    device.journal = backup;
                    device.log = self.logs;
                    let is_based = |(path, node): &(&FolderPath, &Content)| {
                        device.bases.get(path).is_some_and(|base| base.content == **node)
                    };
                    let there = device.disk.nodes.iter().filter(is_based);
                    self.on_disk[n] = there.filter_map(|(_, node)| hash(node)).collect();
                    self.logs += 1;
                }
            },
            _ => {}
        }
    }

    fn writes(&self) -> usize {
        self.devices.iter().map(|device| device.writes).sum()
    }

    /// No more faults: all sync and do what is to be done until nothing is.
    fn become_quiet(&mut self) -> Result<(), String> {
        let count = self.devices.len();
        for _ in 0..100 {
            let before = self.writes();
            for n in 0..count {
                let mut steps = 0;
                while self.act(n, true) {
                    steps += 1;
                    if steps > 3000 {
                        return Err("a device does not come to rest".into());
                    }
                }
                self.now_ms += HISTORY_WAIT_MS;
            }
            let known = |world: &Self| -> usize {
                let all = world.devices.iter().flat_map(|device| device.journal.logs.values());
                all.map(Vec::len).sum()
            };
            let ops = known(self);
            for to in 0..count {
                for from in 0..count {
                    self.sync(to, from, usize::MAX, 0);
                }
            }
            let waits = self.devices.iter().any(|device| !device.journal.superseded.is_empty());
            if self.writes() == before && known(self) == ops && !waits {
                return Ok(());
            }
        }
        Err(format!("a storm: {} writes", self.writes()))
    }

    /// Prints all ops in the order of their stamps, for a run that is repeated.
    fn show(&self) {
        let ops = self.devices.iter().flat_map(|device| device.journal.logs.values().flatten());
        let ops: BTreeMap<_, _> = ops.flatten().map(|op| (op.stamp, op)).collect();
        let line = |version: &Version| {
            let what = match hash(&version.content) {
                Some(hash) => hash.short(),
                None => format!("{:?}", version.content),
            };
            let vector = version.vector.0.iter();
            let vector: Vec<_> = vector
                .map(|(device, n)| format!("{}:{:x}", device.0, n & 0xfff_ffff_ffff))
                .collect();
            format!("{} = {what} {{{}}}", version.path, vector.join(" "))
        };
        for ((time, log, number), op) in ops {
            println!("{:x} log {log} op {number}", time & 0xfff_ffff_ffff);
            op.writes.iter().for_each(|version| println!("    {}", line(version)));
            op.events.iter().for_each(|version| println!("    before: {}", line(version)));
        }
    }

    fn check(&self) -> Result<(), String> {
        let first = &self.devices[0].journal;
        // Without what only a journal had that was replaced by its backup.
        let ops = self.devices.iter().flat_map(|device| device.journal.logs.values().flatten());
        let written = ops.flatten().flat_map(|op| &op.writes);
        let written = written.filter_map(|version| hash(&version.content));
        let written: BTreeSet<_> = written.chain(self.on_disk.iter().flatten().copied()).collect();
        for Device { id, journal, disk, .. } in &self.devices {
            for (path, (_, version)) in &journal.cells {
                let other = first.at(path);
                if !other.is_some_and(|other| other.is_same(version)) {
                    return Err(format!("cells differ: {version:?} {other:?}"));
                }
                let there = disk.nodes.get(path);
                let is_right = match &version.content {
                    Content::Absent => there.is_none_or(|node| *node == Content::Directory),
                    content => there == Some(content),
                };
                if !is_right && !disk.is_left_out(path) {
                    return Err(format!("device {id} has {there:?} for {version:?}"));
                }
            }
            for (path, node) in &disk.nodes {
                let version = journal.at(path);
                let is_known = version.is_some_and(|version| version.content == *node);
                let is_implied = *node == Content::Directory && disk.has_entries(path);
                if !is_known && !is_implied {
                    return Err(format!("device {id} has {path} that nobody knows: {version:?}"));
                }
            }
            for hash_of in &written {
                let is = |content: &Content| hash(content) == Some(*hash_of);
                let is_live = journal.cells.values().any(|(_, version)| is(&version.content));
                let mut past = journal.events.values().flatten();
                if !is_live && !past.any(|version| is(&version.content)) {
                    return Err(format!("device {id} has lost {}", hash_of.short()));
                }
            }
        }
        Ok(())
    }
}

fn run(seed: u64, mutant: Mutant, odds: Odds) -> Result<(), String> {
    let mut world = World::new(seed, mutant, odds);
    let steps = 20 + world.rng.below(120);
    for _ in 0..steps {
        world.anything();
    }
    let end = world.become_quiet().and_then(|()| world.check());
    if end.is_err() && std::env::var("SEED").is_ok() {
        world.show();
    }
    end
}

/// Users act one after the other, each when all devices are at rest. With faults, bases get lost
/// before and processes are killed after.
fn run_in_turns(seed: u64, mutant: Mutant, has_faults: bool) -> Result<(), String> {
    let kill = if has_faults { 30 } else { 0 };
    let odds = Odds { kill, lose_bases: 0, restore: 0, edit_in_the_middle: 0 };
    let mut world = World::new(seed, mutant, odds);
    for _ in 0..20 {
        let n = world.rng.below(world.devices.len());
        if has_faults && world.rng.chance(30) {
            world.devices[n].bases.clear();
        }
        user(&mut world.rng, &mut world.serial, &mut world.devices[n].disk);
        let edited: Vec<_> = world.devices[n].disk.nodes.values().filter_map(hash).collect();
        for _ in 0..if has_faults { 30 } else { 0 } {
            let [to, from] = [(); 2].map(|()| world.rng.below(world.devices.len()));
            if to != from {
                world.sync(to, from, usize::MAX, 50);
            }
            world.act(to, false);
        }
        world.become_quiet()?;
        let cells = world.devices[0].journal.cells.values();
        let live: BTreeSet<_> = cells.filter_map(|(_, version)| hash(&version.content)).collect();
        if let Some(lost) = edited.iter().find(|edited| !live.contains(*edited)) {
            return Err(format!("the edit {} is gone", lost.short()));
        }
    }
    world.check()?;
    match world.devices[0].journal.cells.keys().find(|path| is_conflict_path(path)) {
        Some(path) if !has_faults => Err(format!("{path} though nobody acted at the same time")),
        _ => Ok(()),
    }
}

fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let first = number("FIRST").unwrap_or(0);
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (first..first + number("SEEDS").unwrap_or(default)).collect(),
    }
}

/// All faults.
const ALL: Odds = Odds { kill: 10, lose_bases: 10, restore: 30, edit_in_the_middle: 10 };

#[test]
fn whatever_happens_at_quiet_all_directories_are_equal_and_every_version_is_somewhere() {
    for seed in seeds(400) {
        if let Err(why) = run(seed, Mutant::None, ALL) {
            panic!("SEED={seed}: {why}");
        }
    }
}

#[test]
fn what_users_do_one_after_the_other_stays_and_makes_no_conflict_copy() {
    for seed in seeds(50) {
        for has_faults in [false, true] {
            if let Err(why) = run_in_turns(seed, Mutant::None, has_faults) {
                panic!("SEED={seed}: {why}");
            }
        }
    }
}

#[test]
fn every_mistake_is_found() {
    for mutant in [
        Mutant::StampsOnly,
        Mutant::LosersDropped,
        Mutant::RefusedDropped,
        Mutant::ResolversCount,
        Mutant::BlindExchange,
        Mutant::UnknownRemoved,
        Mutant::NobodyMakesWay,
        Mutant::EventsTrusted,
        Mutant::BasesTrusted,
    ] {
        is_found(mutant, |seed| run(seed, mutant, ALL));
    }
    is_found(Mutant::NoVectors, |seed| run_in_turns(seed, Mutant::NoVectors, false));
    for mutant in [Mutant::CountersOfTheBase, Mutant::BaseFirst] {
        is_found(mutant, |seed| run_in_turns(seed, mutant, true));
    }
}

/// Checks that a run fails, or panics, with the mistake.
fn is_found(mutant: Mutant, run: impl Fn(u64) -> Result<(), String> + std::panic::RefUnwindSafe) {
    let is_right = |seed| std::panic::catch_unwind(|| run(seed)).is_ok_and(|end| end.is_ok());
    assert!((0..3000).any(|seed| !is_right(seed)), "{mutant:?} is not found");
}
