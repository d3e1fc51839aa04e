//! The simulated devices: one asset, its copies, and the shell around `core::leases`, with a point
//! at which it may crash between any two steps.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use can_sync::core::ids::NodeId;
use can_sync::core::leases::{Gathering, Keeping, LEASE_MS, Lack, Standing, Verdict};

/// How long a run lasts.
const RUN_MS: u64 = 24 * 3600 * 1000;

/// How a shell may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    NoLease,
    CachedProof,
    DamagedCounts,
    LeaseNotDurable,
    IntentNotDurable,
    NoIntent,
    CountedFromReceipt,
    LeaseAfterReboot,
}

/// What happened in a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) evicted: u64,
    pub(crate) refused: u64,
    pub(crate) promised: u64,
    pub(crate) safe: u64,
    pub(crate) crashes: u64,
    pub(crate) wrong: u64,
    pub(crate) fetched: u64,
    pub(crate) restored: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.evicted += other.evicted;
        self.refused += other.refused;
        self.promised += other.promised;
        self.safe += other.safe;
        self.crashes += other.crashes;
        self.wrong += other.wrong;
        self.fetched += other.fetched;
        self.restored += other.restored;
    }
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Mostly short, sometimes as long as `most`.
    fn delay(&mut self, most: u64) -> u64 {
        match self.chance(70) {
            true => self.below(most / 50 + 1),
            false => self.below(most + 1),
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// Begin to evict, or to answer whether the asset is safe.
    Gather {
        is_eviction: bool,
    },
    /// A request arrives.
    Prove {
        from: usize,
        nonce: u64,
    },
    /// A prover has read its whole copy.
    Read {
        asker: usize,
        nonce: u64,
        received_ms: u64,
    },
    /// An answer arrives.
    Answer {
        from: usize,
        nonce: u64,
        proof: Result<u64, Lack>,
    },
    /// The gathering looks at what it has.
    Decide {
        gathering: u64,
    },
    /// The gathering has waited long enough.
    Late {
        gathering: u64,
    },
    /// The deletion is durable.
    Deleted {
        gathering: u64,
    },
    /// What a mutant forgot to write is written.
    Flush,
    Crash,
    Restart {
        is_reboot: bool,
    },
    Fetch,
    Damage,
    /// The database of leases is replaced by an older one.
    RestoreDb,
    /// A liar deletes its copy.
    Drop,
    /// The device is cut off, or no longer.
    Cut,
}

struct Queued {
    at: u64,
    order: u64,
    device: usize,
    /// The run of the process that it belongs to; `None` for what comes from outside.
    run: Option<u64>,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

struct Work {
    id: u64,
    is_eviction: bool,
    began_at: u64,
    gathering: Gathering,
    nonces: BTreeMap<usize, u64>,
    asked_again: bool,
    relied_on: Option<Vec<NodeId>>,
}

struct Device {
    is_liar: bool,
    has_bytes: bool,
    is_damaged: bool,
    /// When its disk last failed it: damage and restored databases.
    fault_at: u64,
    /// Whether its database was replaced since it last evicted or fetched.
    is_forgetful: bool,
    memory: Standing,
    disk: Standing,
    backup: Standing,
    /// Whether it evicts once the leases that it gave have ended.
    tries_again: bool,
    is_up: bool,
    is_cut: bool,
    run: u64,
    /// Its clock: what it showed at a moment, and its rate in parts per thousand.
    clock: (u64, u64),
    rate: u64,
    work: Option<Work>,
    proved_once: BTreeSet<usize>,
}

struct World {
    now: u64,
    order: u64,
    rng: Rng,
    queue: BinaryHeap<Queued>,
    devices: Vec<Device>,
    mutant: Option<Mutant>,
    copies: usize,
    has_faults: bool,
    tally: Tally,
}

fn id(device: usize) -> NodeId {
    NodeId([device as u8 + 1; 32])
}

fn index(id: &NodeId) -> usize {
    usize::from(id.0[0]) - 1
}

/// Runs a world; an error says which property broke.
pub(crate) fn run(seed: u64, mutant: Option<Mutant>) -> Result<Tally, String> {
    let mut rng = Rng(seed);
    let count = 3 + rng.below(3) as usize;
    let copies = 1 + rng.below(2) as usize;
    let has_liar = rng.chance(30);
    let has_faults = rng.chance(40);
    let devices = (0..count).map(|n| Device {
        is_liar: has_liar && n == 0,
        has_bytes: true,
        is_damaged: false,
        fault_at: 0,
        is_forgetful: false,
        memory: Standing::default(),
        disk: Standing::default(),
        backup: Standing::default(),
        tries_again: false,
        is_up: true,
        is_cut: false,
        run: 0,
        clock: (0, rng.below(1_000_000)),
        rate: 970 + rng.below(61),
        work: None,
        proved_once: BTreeSet::new(),
    });
    let devices = devices.collect();
    let queue = BinaryHeap::new();
    let tally = Tally::default();
    let mut world =
        World { now: 0, order: 0, rng, queue, devices, mutant, copies, has_faults, tally };
    for device in 0..count {
        world.plan(device);
    }
    // Jobs of the same minute on all devices.
    for _ in 0..world.rng.below(40) {
        let at = world.rng.below(RUN_MS);
        for device in 0..count {
            let at = at + world.rng.below(1000);
            world.push(at, device, None, Event::Gather { is_eviction: true });
        }
    }
    while let Some(queued) = world.queue.pop() {
        world.now = queued.at;
        if world.now > RUN_MS {
            break;
        }
        let device = &world.devices[queued.device];
        let is_stale = queued.run.is_some_and(|run| run != device.run || !device.is_up);
        if !is_stale {
            world.step(queued.device, queued.event)?;
        }
        world.check()?;
    }
    Ok(world.tally)
}

impl World {
    /// Plans what happens to a device from outside.
    fn plan(&mut self, device: usize) {
        let every = |world: &mut Self, mean_ms: u64, event: Event| {
            let mut at = world.rng.below(2 * mean_ms);
            while at < RUN_MS {
                world.push(at, device, None, event.clone());
                at += 1 + world.rng.below(2 * mean_ms);
            }
        };
        const HOUR: u64 = 3_600_000;
        let hurry = 1 + self.rng.below(4);
        every(self, HOUR / hurry, Event::Gather { is_eviction: true });
        every(self, HOUR, Event::Gather { is_eviction: false });
        every(self, HOUR / hurry, Event::Fetch);
        every(self, 2 * HOUR / hurry, Event::Crash);
        every(self, 2 * HOUR, Event::Cut);
        if self.devices[device].is_liar {
            every(self, HOUR, Event::Drop);
        }
        if self.has_faults {
            every(self, 8 * HOUR, Event::Damage);
            every(self, 8 * HOUR, Event::RestoreDb);
        }
    }

    fn push(&mut self, at: u64, device: usize, run: Option<u64>, event: Event) {
        self.order += 1;
        self.queue.push(Queued { at, order: self.order, device, run, event });
    }

    /// Something that the device itself does later, if it still runs then.
    fn later(&mut self, device: usize, after: u64, event: Event) {
        let (at, run) = (self.now + after, self.devices[device].run);
        self.push(at, device, Some(run), event);
    }

    fn clock(&self, device: usize) -> u64 {
        let Device { clock: (from, shown), rate, .. } = self.devices[device];
        shown + (self.now - from) * rate / 1000
    }

    fn send(&mut self, from: usize, to: usize, event: Event) {
        if self.devices[from].is_cut || self.devices[to].is_cut || self.rng.chance(5) {
            return;
        }
        let after = self.rng.delay(LEASE_MS);
        self.push(self.now + after, to, None, event);
    }

    /// Writes the standing to the disk, unless a mutant puts that off.
    fn commit(&mut self, device: usize, put_off: bool) {
        if put_off {
            return self.later(device, LEASE_MS, Event::Flush);
        }
        self.devices[device].disk = self.devices[device].memory.clone();
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn crash_here(&mut self, device: usize) -> bool {
        let crashes = self.rng.chance(3);
        if crashes {
            self.crash(device);
        }
        crashes
    }

    fn crash(&mut self, device: usize) {
        if !self.devices[device].is_up {
            return;
        }
        self.tally.crashes += 1;
        let (is_reboot, after) = (self.rng.chance(40), self.rng.delay(LEASE_MS));
        let this = &mut self.devices[device];
        (this.is_up, this.work, this.tries_again) = (false, None, false);
        this.run += 1;
        self.push(self.now + after, device, None, Event::Restart { is_reboot });
    }

    fn step(&mut self, device: usize, event: Event) -> Result<(), String> {
        let is_up = self.devices[device].is_up;
        match event {
            Event::Restart { is_reboot } if !is_up => return self.restart(device, is_reboot),
            Event::Damage if self.devices[device].has_bytes => {
                let this = &mut self.devices[device];
                (this.is_damaged, this.fault_at) = (true, self.now);
            }
            Event::RestoreDb => {
                self.tally.restored += 1;
                self.crash(device);
                let this = &mut self.devices[device];
                (this.disk, this.fault_at) = (this.backup.clone(), self.now);
                this.is_forgetful = true;
            }
            Event::Cut => self.devices[device].is_cut ^= true,
            _ if !is_up => {}
            Event::Crash => self.crash(device),
            Event::Flush => self.devices[device].disk = self.devices[device].memory.clone(),
            Event::Drop => self.devices[device].has_bytes = false,
            Event::Fetch => self.fetch(device),
            Event::Gather { is_eviction } => self.gather(device, is_eviction),
            Event::Prove { from, nonce } => self.prove(device, from, nonce),
            Event::Read { asker, nonce, received_ms } => {
                self.proven(device, asker, nonce, received_ms);
            }
            Event::Answer { from, nonce, proof } => self.answered(device, from, nonce, proof),
            Event::Decide { gathering } => {
                let this = &self.devices[device];
                if this.work.as_ref().is_some_and(|work| work.id == gathering) {
                    self.decide(device);
                }
            }
            Event::Late { gathering } => self.late(device, gathering),
            Event::Deleted { gathering } => return self.deleted(device, gathering),
            Event::Restart { .. } | Event::Damage => {}
        }
        Ok(())
    }

    fn restart(&mut self, device: usize, is_reboot: bool) -> Result<(), String> {
        if is_reboot {
            self.devices[device].clock = (self.now, 0);
        }
        let now_ms = self.clock(device);
        let is_wrong = self.is(Mutant::LeaseAfterReboot);
        let this = &mut self.devices[device];
        (this.is_up, this.memory) = (true, this.disk.clone());
        if is_wrong {
            this.memory.leases.retain(|_, until_ms| now_ms + LEASE_MS > *until_ms);
            this.memory.end(this.has_bytes);
        } else {
            this.memory.restart(now_ms, this.has_bytes);
        }
        this.disk = this.memory.clone();
        let is_gone = !this.has_bytes && this.memory.keeping == Keeping::Kept;
        match is_gone && !this.is_forgetful && !this.is_liar {
            true => Err(format!("device {device} wants back what it evicted")),
            false => Ok(()),
        }
    }

    fn fetch(&mut self, device: usize) {
        let is_whole = |other: &Device| other.is_up && other.has_bytes && !other.is_damaged;
        let from = self.devices.iter().position(is_whole);
        let this = &self.devices[device];
        let lacks = !this.has_bytes || this.is_damaged;
        if from.is_none() || !lacks || this.work.is_some() || this.is_cut {
            return;
        }
        self.tally.fetched += 1;
        let this = &mut self.devices[device];
        this.memory.take_back();
        this.disk = this.memory.clone();
        (this.has_bytes, this.is_damaged) = (true, false);
        this.is_forgetful = false;
        if self.rng.chance(30) {
            self.devices[device].backup = self.devices[device].disk.clone();
        }
    }

    // ---- the evictor -------------------------------------------------------------------------

    fn gather(&mut self, device: usize, is_eviction: bool) {
        let now_ms = self.clock(device);
        let this = &mut self.devices[device];
        // It checks proofs against its own bytes, so it reads them.
        if this.work.is_some() || !this.has_bytes || this.is_damaged || this.is_liar {
            return;
        }
        if is_eviction {
            if let Err(promised) = this.memory.begin(now_ms) {
                self.tally.promised += 1;
                let after = promised.until_ms - now_ms + self.rng.below(1 + LEASE_MS / 100);
                if !std::mem::replace(&mut self.devices[device].tries_again, true) {
                    self.later(device, after, Event::Gather { is_eviction: true });
                }
                return;
            }
            this.tries_again = false;
            if self.mutant == Some(Mutant::NoIntent) {
                self.devices[device].memory.keeping = Keeping::Kept;
            }
            self.commit(device, self.is(Mutant::IntentNotDurable));
            if self.crash_here(device) {
                return;
            }
        }
        let gathering = Gathering::new(self.copies, 1);
        self.order += 1;
        let work = Work {
            id: self.order,
            is_eviction,
            began_at: self.now,
            gathering,
            nonces: BTreeMap::new(),
            asked_again: false,
            relied_on: None,
        };
        let (gathering, others) = (work.id, self.devices.len());
        self.devices[device].work = Some(work);
        for other in (0..others).filter(|other| *other != device) {
            self.ask(device, other);
        }
        let wait = self.rng.delay(2 * LEASE_MS);
        self.later(device, wait, Event::Late { gathering });
        self.decide(device);
    }

    fn ask(&mut self, device: usize, other: usize) {
        let (now_ms, nonce) = (self.clock(device), self.rng.next());
        let is_cached =
            self.is(Mutant::CachedProof) && self.devices[device].proved_once.contains(&other);
        let Some(work) = &mut self.devices[device].work else { return };
        work.gathering.asked(now_ms, id(other));
        work.nonces.insert(other, nonce);
        if is_cached {
            return work.gathering.proven(id(other), "", LEASE_MS);
        }
        self.send(device, other, Event::Prove { from: device, nonce });
    }

    fn answered(&mut self, device: usize, from: usize, nonce: u64, proof: Result<u64, Lack>) {
        let now_ms = self.clock(device);
        let from_receipt = self.is(Mutant::CountedFromReceipt);
        let this = &mut self.devices[device];
        let Some(work) = &mut this.work else { return };
        if work.nonces.get(&from) != Some(&nonce) || work.relied_on.is_some() {
            return;
        }
        match proof {
            Ok(lease_ms) => {
                if from_receipt {
                    work.gathering.asked(now_ms, id(from));
                }
                work.gathering.proven(id(from), "", lease_ms);
                this.proved_once.insert(from);
            }
            Err(lack) => {
                self.tally.wrong += u64::from(lack == Lack::WrongProof);
                work.gathering.lacking(id(from), lack);
            }
        }
        // It may be busy with reading its own copy.
        match self.rng.chance(60) {
            true => self.decide(device),
            false => {
                let gathering = work_id(&self.devices[device]);
                let after = self.rng.below(LEASE_MS);
                self.later(device, after, Event::Decide { gathering });
            }
        }
    }

    fn late(&mut self, device: usize, gathering: u64) {
        let Some(work) = self.devices[device].work.as_mut().filter(|work| work.id == gathering)
        else {
            return;
        };
        if work.relied_on.is_some() {
            return;
        }
        work.gathering.give_up();
        self.decide(device);
    }

    fn decide(&mut self, device: usize) {
        let now_ms = self.clock(device);
        let Some(work) = &mut self.devices[device].work else { return };
        if work.relied_on.is_some() {
            return;
        }
        let gathering = work.id;
        match work.gathering.verdict(now_ms) {
            Verdict::Wait => {}
            Verdict::Delete { by, .. } => {
                work.relied_on = Some(by);
                // Less than what the margin leaves beside clocks that run apart.
                let takes = match work.is_eviction {
                    true => self.rng.below(LEASE_MS / 34),
                    false => 0,
                };
                self.later(device, takes, Event::Deleted { gathering });
            }
            Verdict::Short { .. } => {
                let again = work.gathering.run_out(now_ms);
                if !again.is_empty() && !work.asked_again {
                    work.asked_again = true;
                    for other in again {
                        self.ask(device, index(&other));
                    }
                    let wait = self.rng.delay(LEASE_MS);
                    return self.later(device, wait, Event::Late { gathering });
                }
                self.tally.refused += 1;
                self.finish(device);
            }
        }
    }

    fn deleted(&mut self, device: usize, gathering: u64) -> Result<(), String> {
        let Some(work) = self.devices[device].work.as_ref().filter(|work| work.id == gathering)
        else {
            return Ok(());
        };
        let (is_eviction, began_at) = (work.is_eviction, work.began_at);
        let by = work.relied_on.clone().unwrap_or_default();
        if by.len() < self.copies {
            return Err(format!("device {device} relied on {} devices", by.len()));
        }
        for other in by.iter().map(index) {
            let prover = &self.devices[other];
            let failed_since = prover.fault_at >= began_at;
            let is_whole = prover.has_bytes && !prover.is_damaged;
            if !prover.is_liar && !is_whole && !failed_since {
                return Err(format!(
                    "device {device} relied on {other}, which holds no whole copy"
                ));
            }
        }
        if !is_eviction {
            self.tally.safe += 1;
            self.devices[device].work = None;
            return Ok(());
        }
        self.tally.evicted += 1;
        let this = &mut self.devices[device];
        (this.has_bytes, this.is_damaged, this.is_forgetful) = (false, false, false);
        if !self.crash_here(device) {
            self.finish(device);
        }
        Ok(())
    }

    fn finish(&mut self, device: usize) {
        let is_wrong = self.is(Mutant::IntentNotDurable);
        let this = &mut self.devices[device];
        let is_eviction = this.work.take().is_some_and(|work| work.is_eviction);
        if !is_eviction {
            return;
        }
        if self.mutant == Some(Mutant::NoIntent) && !this.has_bytes {
            this.memory.keeping = Keeping::Evicting;
        }
        this.memory.end(this.has_bytes);
        self.commit(device, is_wrong);
    }

    // ---- the prover --------------------------------------------------------------------------

    fn prove(&mut self, device: usize, from: usize, nonce: u64) {
        let this = &self.devices[device];
        let lack = match this.memory.keeping {
            _ if this.is_liar => None,
            _ if !this.has_bytes => Some(Lack::NotHeld),
            Keeping::Evicting => Some(Lack::Evicting),
            Keeping::Kept | Keeping::Evicted => None,
        };
        if let Some(lack) = lack {
            return self.send(
                device,
                from,
                Event::Answer { from: device, nonce, proof: Err(lack) },
            );
        }
        let (takes, received_ms) = (self.rng.delay(LEASE_MS), self.clock(device));
        self.later(device, takes, Event::Read { asker: from, nonce, received_ms });
    }

    fn proven(&mut self, device: usize, asker: usize, nonce: u64, received_ms: u64) {
        let now_ms = self.clock(device);
        let counts_damaged = self.is(Mutant::DamagedCounts);
        let gives_none = self.is(Mutant::NoLease);
        let this = &mut self.devices[device];
        let is_whole = this.has_bytes && (!this.is_damaged || counts_damaged);
        if this.is_liar {
            // It claims what it likes; only a copy makes a proof that is right.
            let proof = if is_whole { Ok(100 * LEASE_MS) } else { Err(Lack::WrongProof) };
            return self.send(device, asker, Event::Answer { from: device, nonce, proof });
        }
        if !is_whole {
            let proof = Err(if this.has_bytes { Lack::Damaged } else { Lack::NotHeld });
            return self.send(device, asker, Event::Answer { from: device, nonce, proof });
        }
        let before = this.memory.clone();
        if this.memory.grant(now_ms, id(asker)).is_err() {
            let proof = Err(Lack::Evicting);
            return self.send(device, asker, Event::Answer { from: device, nonce, proof });
        }
        if gives_none {
            this.memory = before;
        }
        self.commit(device, self.is(Mutant::LeaseNotDurable));
        if !self.crash_here(device) {
            let proof = Ok(LEASE_MS + (now_ms - received_ms));
            self.send(device, asker, Event::Answer { from: device, nonce, proof });
        }
    }

    // ---- the property ------------------------------------------------------------------------

    /// The last copy stays. Only disks that fail and liars may take copies besides evictions.
    fn check(&self) -> Result<(), String> {
        if self.has_faults || self.devices.iter().any(|device| device.is_liar) {
            return Ok(());
        }
        let held = self.devices.iter().filter(|device| device.has_bytes).count();
        match held < self.copies {
            true if held == 0 => Err("there is no copy left".to_owned()),
            true => Err(format!("{held} copies are left of {}", self.copies)),
            false => Ok(()),
        }
    }
}

fn work_id(device: &Device) -> u64 {
    device.work.as_ref().map_or(0, |work| work.id)
}
