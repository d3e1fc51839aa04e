//! A world of journals: the real database, session and codec, and around them a network, disks and
//! clocks that delay, cut, crash, restore and step as a seed says.
//!
//! Frames of a stream come in order, as QUIC delivers them, and a stream takes only so many. What a
//! session orders is done one order at a time, in any order, between anything that others do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use can_sync::core::ids::{GroupId, LogId, NodeId, OpHash};
use can_sync::core::journal::draft::Draft;
use can_sync::core::journal::message::{Clock, Hello, JournalMessage, VERSION};
use can_sync::core::journal::op::{Body, Change, LogInfo, SignedOp, op_hash};
use can_sync::core::journal::session::{
    Compared, Effect, End, Input, NotTaken, Now, Report, Session, Standing, Start,
};
use can_sync::core::limits::FUTURE_MS_MAX;
use can_sync::core::pairing::{pair_proof, ticket_key};
use can_sync::state::identity::Identity;
use can_sync::state::journal::{DbIdent, Journal, JournalError, JournalReader, VerifiedOp, verify};
use can_sync::wire::frame::Kind;
use can_sync::wire::journal::{decode_body, decode_message, encode_message};
use tempfile::TempDir;

use crate::model::{State, Tables};
use crate::writes::{draft, overwrite};

/// The wall clock when a world begins.
const WALL_MS: u64 = 1_800_000_000_000;

/// Frames that a stream takes before its reader must take one.
const WINDOW: usize = 3;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Random numbers of one seed (SplitMix64, Steele et al. 2014).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_be_bytes()));
        bytes
    }
}

/// What happens in a world beside writes, cuts and prunes, which always do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Devices lose everything but what is on their disks, right after commits too.
    pub(crate) crashes: bool,
    /// Backups put back without anybody noticing.
    pub(crate) silent_restores: bool,
    /// Backups put back and noticed.
    pub(crate) restores: bool,
    /// Clocks that are up to a quarter of an hour off, and step.
    pub(crate) skew: bool,
    /// A member is removed.
    pub(crate) removal: bool,
    /// Devices are lost for good.
    pub(crate) loss: bool,
    /// Disks that are full for a while.
    pub(crate) full_disks: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        crashes: false,
        silent_restores: false,
        restores: false,
        skew: false,
        removal: false,
        loss: false,
        full_disks: false,
    };
}

/// A rule turned off, where the parts of the real code meet. See each where it meddles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    SendOnlyWhatTheClockCovers,
    SentCountsAsHad,
    DrainedFromTheStart,
    DrainedClockOfALaterSnapshot,
    ClockAcrossGaps,
    JumpAfterARefusal,
    HeadPruned,
    ClearsForgotten,
    NoDigest,
    NoDigestWhileThereAreGaps,
    NoNewLogAfterARestore,
    RemovedMayStillConnect,
    FutureIsAdmitted,
    TokenWorksTwice,
}

/// What happened in a world, to see that it was worth simulating.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) ops: usize,
    pub(crate) jumps: usize,
    pub(crate) repairs: usize,
    pub(crate) crashes: usize,
    pub(crate) restores: usize,
    pub(crate) silent: usize,
    pub(crate) refused: usize,
    pub(crate) pruned: usize,
    pub(crate) rotated: usize,
    pub(crate) forked: usize,
    pub(crate) locked_out: usize,
    pub(crate) disk_full: usize,
    pub(crate) cut: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.jumps += other.jumps;
        self.repairs += other.repairs;
        self.crashes += other.crashes;
        self.restores += other.restores;
        self.silent += other.silent;
        self.refused += other.refused;
        self.pruned += other.pruned;
        self.rotated += other.rotated;
        self.forked += other.forked;
        self.locked_out += other.locked_out;
        self.disk_full += other.disk_full;
        self.cut += other.cut;
    }

    /// Whether everything came up; repairs are too rare to be asked for here.
    pub(crate) fn all_happened(&self) -> bool {
        let Self { ops, jumps, crashes, restores, refused, .. } = self;
        let Self { silent, pruned, rotated, forked, locked_out, disk_full, cut, .. } = self;
        let counts = [ops, jumps, crashes, restores, refused];
        let more = [silent, pruned, rotated, forked, locked_out, disk_full, cut];
        counts.into_iter().chain(more).all(|count| *count > 0)
    }
}

struct Open {
    journal: Journal,
    reader: JournalReader,
    tables: Tables,
}

/// What a disk holds, and what it should come to.
#[derive(Clone)]
struct Memory {
    state: State,
    committed: BTreeSet<OpHash>,
    clock: BTreeMap<LogId, u64>,
    arr: i64,
    joined: bool,
}

struct Node {
    identity: Identity,
    path: PathBuf,
    generation: u64,
    ident: u64,
    open: Option<Open>,
    memory: Memory,
    backups: Vec<(PathBuf, Memory)>,
    offset_ms: i64,
    gone: bool,
    full: bool,
    silently_restored: bool,
    repaired_ms: BTreeMap<usize, u64>,
}

struct Side {
    node: usize,
    session: Session,
    inbox: VecDeque<(Kind, Bytes)>,
    pending: Vec<Effect>,
    /// For a mutant.
    sent: BTreeMap<LogId, u64>,
}

struct OpInfo {
    log: LogId,
    author: NodeId,
    body: Body,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) tally: Tally,
    mutant: Option<Mutant>,
    mono_ms: u64,
    dir: TempDir,
    group: GroupId,
    nodes: Vec<Node>,
    links: Vec<[Side; 2]>,
    ops: BTreeMap<OpHash, OpInfo>,
    numbers: BTreeMap<(LogId, u64), OpHash>,
    /// Per stream and log: the next number.
    events: BTreeMap<(String, LogId), u64>,
    /// Two ops of one number were ever written.
    forked: bool,
    verified: BTreeMap<OpHash, VerifiedOp>,
    removed: bool,
    /// Steps of a hundred in which a stream moves.
    busy: u64,
    /// A device that does nothing of what its sessions order, and reads nothing.
    pub(crate) stalled: Option<usize>,
    wrong: Option<String>,
}

impl World {
    /// `count` devices; the first founds the group, others join as time goes by.
    pub(crate) fn new(seed: u64, count: usize, faults: Faults, mutant: Option<Mutant>) -> Self {
        let folder = Path::new("/dev/shm");
        let dir = match folder.is_dir() {
            true => TempDir::new_in(folder).unwrap(),
            false => TempDir::new().unwrap(),
        };
        let mut rng = Rng::new(seed);
        let nodes = (0..count).map(|n| {
            let path = dir.path().join(format!("{n}-0.db"));
            Node {
                identity: Identity::from_bytes(&rng.bytes()),
                path,
                generation: 0,
                ident: 1,
                open: None,
                memory: Memory {
                    state: State::default(),
                    committed: BTreeSet::new(),
                    clock: BTreeMap::new(),
                    arr: 0,
                    joined: false,
                },
                backups: Vec::new(),
                offset_ms: 0,
                gone: false,
                full: false,
                silently_restored: false,
                repaired_ms: BTreeMap::new(),
            }
        });
        let nodes: Vec<_> = nodes.collect();
        let mut world = Self {
            rng,
            faults,
            tally: Tally::default(),
            mutant,
            mono_ms: 0,
            dir,
            group: GroupId([0; 32]),
            nodes,
            links: Vec::new(),
            ops: BTreeMap::new(),
            numbers: BTreeMap::new(),
            events: BTreeMap::new(),
            forked: false,
            verified: BTreeMap::new(),
            removed: false,
            busy: 20 + 15 * (seed % 5),
            stalled: None,
            wrong: None,
        };
        for n in 0..count {
            world.open(n);
        }
        let wall_ms = world.wall_ms(0);
        world.group = world.nodes[0].journal().found("first", wall_ms).unwrap();
        world.nodes[0].memory.joined = true;
        world.committed(0);
        world
    }

    /// What went wrong, if anything did.
    pub(crate) fn wrong(&self) -> Option<&String> {
        self.wrong.as_ref()
    }

    fn blame(&mut self, what: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    // ---- life --------------------------------------------------------------------------------

    /// One thing happens.
    pub(crate) fn step(&mut self) {
        let n = self.rng.index(self.nodes.len());
        if self.rng.chance(self.busy) {
            if !self.turn() {
                self.pass(1_000);
            }
            return;
        }
        match self.rng.below(100) {
            0..34 => self.write(n),
            34..52 => {
                let ms = if self.rng.chance(10) { 120_000 } else { 400 };
                self.pass(ms);
            }
            52..68 => {
                let other = self.rng.index(self.nodes.len());
                self.connect(n, other);
            }
            68..74 => self.cut_any(),
            74..82 => self.prune(n),
            82..84 => self.crash(n),
            84..88 => self.back_up(n),
            88..92 => self.restore(n),
            92..94 => self.step_clock(n),
            94..97 => {
                let inviter = self.rng.index(self.nodes.len());
                self.join(n, inviter);
            }
            97 => self.remove(n),
            98 => self.lose(n),
            _ => self.fill_disk(n),
        }
    }

    /// Everything is mended, and those who are members must agree.
    pub(crate) fn heal(&mut self) {
        for n in 0..self.nodes.len() {
            self.nodes[n].offset_ms = 0;
            if self.nodes[n].full {
                self.set_full(n, false);
            }
        }
        let mut pause_ms = 50 * 60 * 1000;
        for _ in 0..HEAL_ROUNDS {
            self.links.clear();
            self.mono_ms += pause_ms;
            pause_ms = 11 * 60 * 1000;
            for a in 0..self.nodes.len() {
                for b in 0..a {
                    self.connect(a, b);
                }
            }
            self.settle();
            if self.wrong.is_some() || self.disagreement().is_none() {
                break;
            }
        }
        if let Some(what) = self.disagreement() {
            self.blame(|| format!("I2: after all was mended {what}"));
        }
        self.check_the_end();
    }

    /// Until nothing moves, or it is clear that it never stops.
    pub(crate) fn settle(&mut self) {
        let from_ms = self.mono_ms;
        for _ in 0..SETTLE_TURNS {
            if self.wrong.is_some() || self.mono_ms > from_ms + SETTLE_MS {
                return;
            }
            if self.turn() {
                continue;
            }
            let in_sync = self.links.iter().flatten().all(|side| side.session.in_sync());
            let due = self.links.iter().flatten().filter_map(|side| side.session.deadline_ms());
            match due.min() {
                Some(due_ms) if !in_sync => {
                    self.mono_ms = self.mono_ms.max(due_ms);
                    self.tick();
                }
                Some(_) | None => return,
            }
        }
        self.blame(|| "it never comes to rest".into());
    }

    fn members(&self) -> Vec<usize> {
        let verdicts = self.nodes[0].reader().verdicts().unwrap();
        let is_member = |n: &usize| {
            let node = &self.nodes[*n];
            !node.gone && node.memory.joined && verdicts.member(&node.identity.node_id)
        };
        (0..self.nodes.len()).filter(is_member).collect()
    }

    /// How members differ from each other and from what they should have come to.
    fn disagreement(&self) -> Option<String> {
        let members = self.members();
        let mut expected = State::default();
        for n in &members {
            for hash in &self.nodes[*n].memory.committed {
                let op = &self.ops[hash];
                expected.apply(&op.author, op.log.0, &op.body);
            }
        }
        let clock_of = |n: usize| self.nodes[n].reader().clock().unwrap();
        let first = clock_of(members[0]);
        for n in members {
            if let Some(what) = self.nodes[n].memory.state.difference(&expected) {
                return Some(format!("device {n} lacks: {what}"));
            }
            let clock = clock_of(n);
            if clock.digest != first.digest {
                return Some(format!("device {n} has another digest"));
            }
            let (ours, theirs) = (positions(&clock), positions(&first));
            if !self.forked && ours != theirs {
                return Some(format!("device {n} has another clock: {ours:?}, not {theirs:?}"));
            }
        }
        None
    }

    fn check_the_end(&mut self) {
        if self.wrong.is_some() {
            return;
        }
        let members = self.members();
        let live = self.nodes[members[0]].tables().live();
        for n in members {
            self.check(n);
            if self.nodes[n].tables().live() != live {
                self.blame(|| format!("I6: other ops are alive at device {n}"));
            }
            let found = self.nodes[n].journal().fsck().unwrap();
            if !found.is_empty() && self.mutant.is_none() {
                self.blame(|| format!("I5: fsck finds at device {n}: {found:?}"));
            }
        }
    }

    // ---- time --------------------------------------------------------------------------------

    fn now(&self, n: usize) -> Now {
        Now { mono_ms: self.mono_ms, wall_ms: self.wall_ms(n) }
    }

    fn wall_ms(&self, n: usize) -> u64 {
        (WALL_MS + self.mono_ms).saturating_add_signed(self.nodes[n].offset_ms)
    }

    fn pass(&mut self, ms_max: u64) {
        self.mono_ms += 1 + self.rng.below(ms_max);
        self.tick();
    }

    fn tick(&mut self) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                let due = self.links[link][side].session.deadline_ms();
                if due.is_some_and(|at| at <= self.mono_ms) {
                    self.feed(link, side, Input::Tick);
                }
            }
        }
    }

    fn step_clock(&mut self, n: usize) {
        let most_ms = if self.faults.skew { 15 * 60 * 1000 } else { 5_000 };
        self.nodes[n].offset_ms = self.rng.below(2 * most_ms) as i64 - most_ms as i64;
    }

    // ---- streams -----------------------------------------------------------------------------

    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        let between = |link: &&[Side; 2]| {
            let ends = [link[0].node, link[1].node];
            ends == [a, b] || ends == [b, a]
        };
        let up = |n: usize| !self.nodes[n].gone && self.nodes[n].memory.joined;
        if a == b || !up(a) || !up(b) || self.links.iter().filter(between).count() > 1 {
            return;
        }
        let sides = [self.side(a, b), self.side(b, a)];
        self.links.push(sides);
    }

    fn side(&mut self, node: usize, peer: usize) -> Side {
        let now = self.now(node);
        let jitter = self.rng.next();
        let (me, peer_id) = (self.nodes[node].identity.node_id, self.nodes[peer].identity.node_id);
        let reader = self.nodes[node].reader();
        let hello = Hello {
            version: VERSION,
            group: self.group,
            now_ms: now.wall_ms as i64,
            intro: reader.intro(&me).unwrap(),
        };
        let known = reader.standing(&peer_id).unwrap() == Standing::Member;
        let repaired_ms = self.nodes[node].repaired_ms.get(&peer).copied();
        let mut pending = Vec::new();
        let start = Start { hello, known, repaired_ms, jitter };
        let session = Session::start(start, now, &mut pending);
        Side { node, session, inbox: VecDeque::new(), pending, sent: BTreeMap::new() }
    }

    fn feed(&mut self, link: usize, side: usize, input: Input) {
        let node = self.links[link][side].node;
        let now = self.now(node);
        let mut out = Vec::new();
        self.links[link][side].session.handle(now, input, &mut out);
        let peer = self.links[link][1 - side].node;
        for effect in out {
            match effect {
                Effect::Report(Report::Repairing) => {
                    self.tally.repairs += 1;
                    self.nodes[node].repaired_ms.insert(peer, now.mono_ms);
                }
                Effect::Report(Report::Holding(_)) => self.tally.refused += 1,
                Effect::Report(_) => {}
                order => self.links[link][side].pending.push(order),
            }
        }
        let orders = self.links[link][side].pending.len();
        if orders > ORDERS_MAX {
            self.blame(|| format!("I10: {orders} orders are outstanding"));
        }
    }

    fn broadcast(&mut self, n: usize, own: bool, members: bool) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                if self.links[link][side].node == n {
                    self.feed(link, side, Input::Committed { own, members });
                }
            }
        }
    }

    /// One frame is delivered or one order done; whether there was any.
    fn turn(&mut self) -> bool {
        let mut choices = Vec::new();
        for (link, sides) in self.links.iter().enumerate() {
            for side in 0..2 {
                if self.stalled == Some(sides[side].node) {
                    continue;
                }
                if sides[side].session.reads() && !sides[side].inbox.is_empty() {
                    choices.push((link, side, None));
                }
                let room = sides[1 - side].inbox.len() < WINDOW;
                for (index, effect) in sides[side].pending.iter().enumerate() {
                    if room || !matches!(effect, Effect::Send(_)) {
                        choices.push((link, side, Some(index)));
                    }
                }
            }
        }
        if choices.is_empty() {
            return false;
        }
        match choices[self.rng.index(choices.len())] {
            (link, side, None) => {
                let frame = self.links[link][side].inbox.pop_front();
                let (kind, payload) = frame.unwrap();
                let message = decode_message(kind, payload).unwrap();
                self.feed(link, side, Input::Received(message));
            }
            (link, side, Some(index)) => {
                let effect = self.links[link][side].pending.remove(index);
                self.perform(link, side, effect);
            }
        }
        true
    }

    fn perform(&mut self, link: usize, side: usize, effect: Effect) {
        let (node, peer) = (self.links[link][side].node, self.links[link][1 - side].node);
        let peer_id = self.nodes[peer].identity.node_id;
        match effect {
            Effect::Send(message) => {
                let message = self.meddle_with_message(node, message);
                let frame = encode_message(&message);
                let inbox = &mut self.links[link][1 - side].inbox;
                inbox.push_back(frame.clone());
                if self.rng.chance(5) && matches!(message, JournalMessage::Ops(_)) {
                    self.links[link][1 - side].inbox.push_back(frame);
                }
                self.feed(link, side, Input::Sent);
            }
            Effect::ReadClock => {
                let clock = self.nodes[node].reader().clock().unwrap();
                self.feed(link, side, Input::ClockRead(clock));
            }
            Effect::Scan { cursor, mut has } => {
                if self.is(Mutant::SentCountsAsHad) {
                    for (log, seq) in &self.links[link][side].sent {
                        let seen = has.entry(*log).or_default();
                        *seen = (*seen).max(*seq);
                    }
                }
                let mut scanned = self.nodes[node].reader().scan_for(cursor, &has).unwrap();
                if self.is(Mutant::SendOnlyWhatTheClockCovers) {
                    let clock = self.nodes[node].memory.clock.clone();
                    scanned.ops.retain(|(log, op)| {
                        let seq = decode_body(&op.body).unwrap().seq;
                        clock.get(log).is_some_and(|covered| seq <= *covered)
                    });
                }
                for (log, op) in &scanned.ops {
                    let seq = decode_body(&op.body).unwrap().seq;
                    let sent = self.links[link][side].sent.entry(*log).or_default();
                    *sent = (*sent).max(seq);
                }
                self.feed(link, side, Input::Scanned(scanned));
            }
            Effect::TakeClock { jump, ack, compare } => {
                let journal = self.nodes[node].journal();
                let taken = || -> Result<_, JournalError> {
                    let moved = if jump.is_empty() { Vec::new() } else { journal.jump(&jump)? };
                    if !ack.is_empty() {
                        journal.ack(&peer_id, &ack)?;
                    }
                    Ok(moved)
                }();
                let Some(moved) = self.unless_full(node, taken) else {
                    return self.cut(link);
                };
                self.tally.jumps += moved.len();
                self.check(node);
                if self.crashes_now(node) {
                    return;
                }
                if !moved.is_empty() {
                    self.broadcast(node, false, false);
                }
                let compared = match compare.is_empty() {
                    true => Compared::default(),
                    false => self.nodes[node].reader().compare(&compare).unwrap(),
                };
                self.feed(link, side, Input::Compared(compared));
            }
            Effect::Judge { intro } => {
                let known = self.nodes[node].reader().standing(&peer_id).unwrap();
                if known != Standing::Member && !intro.is_empty() {
                    let intro = self.verify_all(&intro);
                    let wall_ms = self.wall_ms(node);
                    let taken = self.nodes[node].journal().introduce(&intro, wall_ms);
                    let Some(received) = self.unless_full(node, taken) else {
                        return self.cut(link);
                    };
                    self.took(node, &intro, &received.refused);
                    if self.crashes_now(node) {
                        return;
                    }
                    self.broadcast(node, false, received.members_changed);
                }
                let mut standing = self.nodes[node].reader().standing(&peer_id).unwrap();
                if self.is(Mutant::RemovedMayStillConnect) {
                    standing = Standing::Member;
                }
                if standing == Standing::Removed {
                    self.tally.locked_out += 1;
                }
                self.feed(link, side, Input::Judged(standing));
            }
            Effect::Apply(ops) => self.receive(link, side, &ops),
            Effect::Report(_) => {}
            Effect::End { last, why } => {
                if let End::Protocol(what) = why {
                    self.blame(|| format!("an honest peer is blamed: {what}"));
                }
                if let Some(refuse) = last
                    && self.links[link][1 - side].session.reads()
                {
                    self.feed(link, 1 - side, Input::Received(JournalMessage::Refuse(refuse)));
                }
                self.cut(link);
            }
        }
    }

    fn receive(&mut self, link: usize, side: usize, ops: &[SignedOp]) {
        let (node, peer) = (self.links[link][side].node, self.links[link][1 - side].node);
        let verified = self.verify_all(ops);
        let peer_id = self.nodes[peer].identity.node_id;
        let standing = self.nodes[node].reader().standing(&peer_id).unwrap();
        let wall_ms = self.wall_ms(node);
        let from = match self.is(Mutant::RemovedMayStillConnect) {
            true => self.nodes[node].identity.node_id,
            false => peer_id,
        };
        let then_ms = if self.is(Mutant::FutureIsAdmitted) { wall_ms + DAY_MS } else { wall_ms };
        let received = self.nodes[node].journal().receive(&from, &verified, then_ms);
        let Some(received) = self.unless_full(node, received) else {
            return self.cut(link);
        };
        if standing == Standing::Removed && received.applied > 0 {
            self.blame(|| format!("I8: device {node} took ops from {peer}, which is removed"));
        }
        let refused: BTreeSet<_> = received.refused.iter().map(|op| (op.log, op.seq)).collect();
        for op in &verified {
            let (new, late) = (
                !self.nodes[node].memory.committed.contains(&op.hash())
                    && !refused.contains(&(op.log(), op.body().seq)),
                op.body().hlc.ms() > wall_ms + FUTURE_MS_MAX,
            );
            if new && late {
                self.blame(|| format!("device {node} took an op too far in the future"));
            }
        }
        self.tally.forked += received.forked.len();
        self.tally.rotated += usize::from(received.rotated.is_some());
        if self.is(Mutant::ClockAcrossGaps) {
            self.nodes[node].tables().meddle(
                "UPDATE logs SET seq = (SELECT max(o.seq) FROM ops o WHERE o.log = logs.log),
                     head = (SELECT o.hash FROM ops o WHERE o.log = logs.log ORDER BY o.seq DESC)
                 WHERE log IN (SELECT log FROM ops)",
            );
        }
        self.took(node, &verified, &received.refused);
        if self.crashes_now(node) {
            return;
        }
        self.broadcast(node, false, received.members_changed);
        let mut not_taken: Vec<NotTaken> = received.refused.iter().map(NotTaken::from).collect();
        if self.is(Mutant::JumpAfterARefusal) {
            not_taken.clear();
        }
        self.feed(link, side, Input::Applied(not_taken));
    }

    fn meddle_with_message(&mut self, node: usize, mut message: JournalMessage) -> JournalMessage {
        if let JournalMessage::Clock(clock) = &mut message {
            let gaps = clock.entries.iter().any(|entry| !entry.above.is_zero());
            match self.mutant {
                Some(Mutant::DrainedFromTheStart) => clock.drained = true,
                Some(Mutant::DrainedClockOfALaterSnapshot) if clock.drained => {
                    clock.entries = self.nodes[node].reader().clock().unwrap().entries;
                }
                Some(Mutant::NoDigest) => clock.digest = None,
                Some(Mutant::NoDigestWhileThereAreGaps) if gaps => clock.digest = None,
                _ => {}
            }
        }
        message
    }

    fn cut_any(&mut self) {
        if !self.links.is_empty() {
            let link = self.rng.index(self.links.len());
            self.cut(link);
        }
    }

    fn cut(&mut self, link: usize) {
        self.tally.cut += 1;
        self.links.remove(link);
    }

    // ---- devices -----------------------------------------------------------------------------

    pub(crate) fn write(&mut self, n: usize) {
        let drafts: Vec<_> = (0..1 + self.rng.below(3)).map(|_| draft(&mut self.rng)).collect();
        self.write_drafts(n, &drafts);
    }

    fn write_drafts(&mut self, n: usize, drafts: &[Draft]) {
        if self.nodes[n].gone || !self.nodes[n].memory.joined {
            return;
        }
        let wall_ms = self.wall_ms(n);
        let written = self.nodes[n].journal().write(drafts, wall_ms);
        if self.unless_full(n, written).is_none() {
            return;
        }
        self.committed(n);
        if !self.crashes_now(n) {
            self.broadcast(n, true, false);
        }
    }

    pub(crate) fn join(&mut self, n: usize, inviter: usize) {
        let node = &self.nodes[inviter];
        if self.nodes[n].memory.joined || self.nodes[n].gone || node.gone || !node.memory.joined {
            return;
        }
        let secret = self.rng.bytes()[..16].try_into().unwrap();
        let inviter_id = node.identity.node_id;
        let joiner = self.nodes[n].identity.node_id;
        let wall_ms = self.wall_ms(inviter);
        let key = ticket_key(&secret);
        let journal = self.nodes[inviter].journal();
        let made = journal.create_token(&key, wall_ms, wall_ms + 600_000);
        match made {
            Err(JournalError::Removed) => return,
            made => {
                if self.unless_full(inviter, made).is_none() {
                    return;
                }
            }
        }
        let proof = pair_proof(&secret, &inviter_id, &joiner);
        let redeemed = self.nodes[inviter].journal().redeem(&joiner, &proof, "late", wall_ms);
        let Some(Ok(admitted)) = self.unless_full(inviter, redeemed) else {
            return;
        };
        self.committed(inviter);
        if self.is(Mutant::TokenWorksTwice) {
            let journal = self.nodes[inviter].journal();
            journal.create_token(&key, wall_ms, wall_ms + 600_000).unwrap();
        }
        let stranger = Identity::from_bytes(&self.rng.bytes()).node_id;
        let proof = pair_proof(&secret, &inviter_id, &stranger);
        let again = self.nodes[inviter].journal().redeem(&stranger, &proof, "thief", wall_ms);
        if matches!(again, Ok(Ok(_))) {
            self.committed(inviter);
            self.blame(|| "a ticket let two devices in".into());
        }
        let crashed = self.crashes_now(inviter);
        if !crashed {
            self.broadcast(inviter, true, true);
        }
        let intro = self.verify_all(&admitted.intro);
        let wall_ms = self.wall_ms(n);
        match self.nodes[n].journal().join(admitted.group, &intro, wall_ms) {
            Ok(()) => {
                self.nodes[n].memory.joined = true;
                self.committed(n);
            }
            // Held back by a clock that is off: it will be tried again.
            Err(JournalError::BadIntro | JournalError::ClockBehind) if self.faults.skew => {}
            Err(error) => self.blame(|| format!("device {n} cannot join: {error}")),
        }
    }

    fn remove(&mut self, n: usize) {
        let other = 1 + self.rng.index(self.nodes.len() - 1);
        let up = |n: usize| !self.nodes[n].gone && self.nodes[n].memory.joined;
        if !self.faults.removal || self.removed || n == other || !up(n) || !up(other) {
            return;
        }
        let id = self.nodes[other].identity.node_id;
        let wall_ms = self.wall_ms(n);
        let removed = self.nodes[n].journal().remove(&id, wall_ms);
        let Some(removed) = self.unless_full(n, removed) else {
            return;
        };
        self.removed |= removed.is_some();
        self.committed(n);
        self.broadcast(n, true, true);
    }

    fn lose(&mut self, n: usize) {
        if self.faults.loss && n > 0 && !self.nodes[n].gone {
            self.nodes[n].gone = true;
            self.nodes[n].open = None;
            self.unplug(n);
        }
    }

    fn prune(&mut self, n: usize) {
        if self.nodes[n].gone || !self.nodes[n].memory.joined {
            return;
        }
        let aged_ms = if self.rng.chance(50) { 31 * DAY_MS } else { 0 };
        let wall_ms = self.wall_ms(n) + aged_ms;
        let before = self.nodes[n].reader().clock().unwrap();
        let pruned = self.nodes[n].journal().prune(wall_ms, 1_000);
        let Some(pruned) = self.unless_full(n, pruned) else {
            return;
        };
        self.tally.pruned += pruned.ops;
        if self.is(Mutant::ClearsForgotten) {
            let tables = self.nodes[n].tables();
            tables.meddle("DELETE FROM cells WHERE field = '' AND elem = 'x'");
        }
        let after = self.nodes[n].reader().clock().unwrap();
        if before != after {
            self.blame(|| format!("I6: pruning at device {n} changed its clock or digest"));
        }
        self.check(n);
        self.crashes_now(n);
    }

    fn fill_disk(&mut self, n: usize) {
        if self.faults.full_disks && !self.nodes[n].gone && self.nodes[n].memory.joined {
            let full = !self.nodes[n].full;
            self.set_full(n, full);
        }
    }

    fn set_full(&mut self, n: usize, full: bool) {
        if self.nodes[n].open.is_some() {
            self.nodes[n].journal().simulate_full_disk(full).unwrap();
            self.nodes[n].full = full;
        }
    }

    /// The outcome, unless the disk was full; any other error is wrong.
    fn unless_full<T>(&mut self, n: usize, outcome: Result<T, JournalError>) -> Option<T> {
        match outcome {
            Ok(outcome) => return Some(outcome),
            Err(JournalError::DiskFull) if self.nodes[n].full => {
                self.tally.disk_full += 1;
                self.check(n);
            }
            Err(JournalError::Removed) => {}
            Err(error) => self.blame(|| format!("device {n}: {error}")),
        }
        None
    }

    // ---- disks -------------------------------------------------------------------------------

    fn open(&mut self, n: usize) {
        let seed = self.rng.bytes();
        let node = &mut self.nodes[n];
        let ident = DbIdent { device: 1, inode: node.ident, born_ns: 0 };
        let journal = Journal::open_as(&node.path, &node.identity, seed, ident).unwrap();
        let reader = journal.reader().unwrap();
        node.open = Some(Open { journal, reader, tables: Tables::open(&node.path) });
        node.full = false;
    }

    /// Sometimes, right after a commit, before anybody hears of it.
    fn crashes_now(&mut self, n: usize) -> bool {
        let crashes = self.faults.crashes && self.rng.chance(1);
        if crashes {
            self.crash(n);
        }
        crashes
    }

    fn crash(&mut self, n: usize) {
        if self.nodes[n].gone || !self.faults.crashes {
            return;
        }
        self.tally.crashes += 1;
        let next = self.next_path(n);
        let torn = self.rng.bytes();
        let torn = &torn[..self.rng.index(33)];
        copy(&self.nodes[n].path, &next, torn);
        self.start_from(n, next);
        self.check(n);
    }

    fn back_up(&mut self, n: usize) {
        if !self.nodes[n].gone && self.nodes[n].memory.joined {
            let path = self.next_path(n);
            copy(&self.nodes[n].path, &path, &[]);
            let memory = self.nodes[n].memory.clone();
            self.nodes[n].backups.push((path, memory));
        }
    }

    fn restore(&mut self, n: usize) {
        if self.nodes[n].gone || self.nodes[n].backups.is_empty() {
            return;
        }
        let silent = match (self.faults.silent_restores, self.faults.restores) {
            (true, true) => self.rng.chance(50),
            (true, false) => true,
            (false, true) => false,
            (false, false) => return,
        };
        self.tally.restores += 1;
        let from = self.rng.index(self.nodes[n].backups.len());
        let (path, memory) = self.nodes[n].backups[from].clone();
        let next = self.next_path(n);
        copy(&path, &next, &[]);
        if silent {
            self.nodes[n].silently_restored = true;
            self.tally.silent += 1;
        } else if !self.is(Mutant::NoNewLogAfterARestore) {
            self.nodes[n].ident += 1;
        }
        self.nodes[n].memory = memory;
        self.start_from(n, next);
        self.check(n);
        if self.rng.chance(40) {
            // It meets others first, who know what it has forgotten.
            return;
        }
        // Before it meets anybody: so that logs fork, and prunes hide the forks.
        for _ in 0..self.rng.below(6) {
            self.write(n);
        }
        for _ in 0..self.rng.below(12) {
            let same = vec![overwrite(&mut self.rng)];
            self.write_drafts(n, &same);
        }
        if self.rng.chance(70) {
            self.prune(n);
        }
    }

    fn start_from(&mut self, n: usize, path: PathBuf) {
        self.unplug(n);
        self.nodes[n].open = None;
        self.nodes[n].path = path;
        self.open(n);
    }

    fn unplug(&mut self, n: usize) {
        self.links.retain(|link| link.iter().all(|side| side.node != n));
    }

    fn next_path(&mut self, n: usize) -> PathBuf {
        self.nodes[n].generation += 1;
        self.dir.path().join(format!("{n}-{}.db", self.nodes[n].generation))
    }

    /// Whether two devices hold the same.
    pub(crate) fn alike(&self, a: usize, b: usize) -> bool {
        self.nodes[a].memory.state == self.nodes[b].memory.state
    }

    // ---- what must hold ----------------------------------------------------------------------

    /// A device wrote ops of its own, or joined: they are read from its tables.
    fn committed(&mut self, n: usize) {
        let author_here = self.nodes[n].identity.node_id;
        for (arr, author, nonce, bytes) in
            self.nodes[n].tables().ops_after(self.nodes[n].memory.arr)
        {
            let author = NodeId(author);
            let log = LogInfo { author, nonce }.id(&self.group);
            let (hash, body) = (op_hash(&log, &bytes), decode_body(&bytes).unwrap());
            if author == author_here {
                self.tally.ops += 1;
                self.check_numbers(n, log, hash, &body);
            }
            let memory = &mut self.nodes[n].memory;
            memory.state.apply(&author, log.0, &body);
            memory.committed.insert(hash);
            memory.arr = arr;
            self.ops.insert(hash, OpInfo { log, author, body });
        }
        self.check(n);
    }

    /// I4 and I7.
    fn check_numbers(&mut self, n: usize, log: LogId, hash: OpHash, body: &Body) {
        let honest = !self.nodes[n].silently_restored;
        match self.numbers.insert((log, body.seq), hash) {
            Some(other) if other != hash => {
                self.forked = true;
                if honest {
                    self.blame(|| format!("I4: device {n} signed number {} twice", body.seq));
                }
            }
            Some(_) | None => {}
        }
        for change in &body.changes {
            let Change::Event(event) = change else { continue };
            let next = self.events.entry((event.stream.clone(), log)).or_default();
            let expected = std::mem::replace(next, event.event_seq + 1);
            if honest && event.event_seq != expected {
                let got = event.event_seq;
                self.blame(|| format!("I7: device {n} numbers an event {got}, not {expected}"));
            }
        }
    }

    /// A device took in what it did not refuse.
    fn took(
        &mut self,
        n: usize,
        ops: &[VerifiedOp],
        refused: &[can_sync::state::journal::Refused],
    ) {
        let refused: BTreeSet<_> = refused.iter().map(|op| (op.log, op.seq)).collect();
        let memory = &mut self.nodes[n].memory;
        for op in ops {
            if !refused.contains(&(op.log(), op.body().seq)) {
                memory.state.apply(&op.signed().log.author, op.log().0, op.body());
                memory.committed.insert(op.hash());
            }
        }
        let arr = self.nodes[n].tables().last_arr();
        self.nodes[n].memory.arr = arr;
        if self.is(Mutant::HeadPruned) {
            self.nodes[n].tables().meddle("DELETE FROM ops WHERE refs = 0");
        }
        self.check(n);
    }

    /// I1, I3, and that the tables are what the ops taken in come to.
    fn check(&mut self, n: usize) {
        if self.wrong.is_some() || !self.nodes[n].memory.joined {
            return;
        }
        let found = self.nodes[n].tables().state();
        if let Some(what) = found.difference(&self.nodes[n].memory.state) {
            return self.blame(|| format!("I5: device {n} has not what it took in: {what}"));
        }
        let clock = positions(&self.nodes[n].reader().clock().unwrap());
        let fell = self.nodes[n].memory.clock.iter().find(|(log, seq)| clock.get(log) < Some(seq));
        if let Some((log, seq)) = fell {
            let what = format!("I3: device {n}: the clock of {log} fell from {seq}");
            return self.blame(|| what);
        }
        if !self.forked {
            let mut joined = found.clone();
            for (hash, op) in &self.ops {
                let covered = clock.get(&op.log).is_some_and(|seq| op.body.seq <= *seq);
                let has = self.nodes[n].memory.committed.contains(hash);
                if covered && !has && joined.apply(&op.author, op.log.0, &op.body) {
                    let what = format!("op {} of {}", op.body.seq, op.log);
                    return self.blame(|| format!("I1: device {n} claims {what} and lacks it"));
                }
            }
        }
        self.nodes[n].memory.clock = clock;
    }

    /// By the real check, each op once.
    fn verify_all(&mut self, ops: &[SignedOp]) -> Vec<VerifiedOp> {
        let mut verified = Vec::with_capacity(ops.len());
        for op in ops {
            let hash = op_hash(&op.log.id(&self.group), &op.body);
            let known = self.verified.get(&hash).filter(|known| known.signed() == op);
            let good = match known {
                Some(known) => known.clone(),
                None => verify(&self.group, op.clone()).unwrap(),
            };
            self.verified.insert(hash, good.clone());
            verified.push(good);
        }
        verified
    }
}

impl Node {
    fn journal(&mut self) -> &mut Journal {
        &mut self.open.as_mut().unwrap().journal
    }

    fn reader(&self) -> &JournalReader {
        &self.open.as_ref().unwrap().reader
    }

    fn tables(&self) -> &Tables {
        &self.open.as_ref().unwrap().tables
    }
}

fn positions(clock: &Clock) -> BTreeMap<LogId, u64> {
    clock.entries.iter().filter(|entry| entry.seq > 0).map(|e| (e.log, e.seq)).collect()
}

/// What is on the disk at this moment, with a torn write at the end of the log that SQLite keeps.
fn copy(from: &Path, to: &Path, torn: &[u8]) {
    let wal = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    std::fs::copy(from, to).unwrap();
    if let Ok(mut bytes) = std::fs::read(wal(from)) {
        bytes.extend_from_slice(torn);
        std::fs::write(wal(to), bytes).unwrap();
    }
}

/// Reconnections until all must be well: clocks that are far off, then digests that differ, each
/// need their time.
const HEAL_ROUNDS: usize = 6;

/// Virtual time in which a round comes to rest.
const SETTLE_MS: u64 = 10 * 60 * 1000;

/// More than any world needs.
const SETTLE_TURNS: usize = 40_000;

/// A frame to send, something to read, something to take in, and an end.
const ORDERS_MAX: usize = 4;
