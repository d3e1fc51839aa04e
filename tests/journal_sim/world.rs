//! A world of journals: the real database, session and codec, with a simulated network, disks and
//! clocks that delay, cut, crash, restore and step according to a seed.
//!
//! Frames of a stream arrive in order, as with QUIC, and a stream holds only a few. The effects of
//! a session are performed one at a time, in any order, interleaved with everything else.
//!
//! | file | what |
//! |---|---|
//! | here | life, and time |
//! | [`streams`] | frames, effects, cuts, lies |
//! | [`group`] | writes, tickets, removals, prunes |
//! | [`disks`] | crashes, restored backups, full disks |
//! | [`checks`] | invariants |
//! | [`thief`] | a stolen device after its removal |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use can_sync::core::ids::{GroupId, LogId, NodeId, OpHash};
use can_sync::core::journal::draft::{Draft, DraftError};
use can_sync::core::journal::message::{
    Clock, FEATURES, Head, Hello, JournalMessage, StateDigest, VERSION,
};
use can_sync::core::journal::op::{Body, Change, KINDS, LogInfo, SignedOp, op_hash, signed_bytes};
use can_sync::core::journal::session::{
    Compared, Effect, End, Input, NotTaken, Now, Repaired, Report, Session, Standing, Start, Why,
};
use can_sync::core::journal::set_hash::SetDigest;
use can_sync::core::journal::stamp::Hlc;
use can_sync::core::limits::{FUTURE_MS_MAX, OP_SEQ_MAX};
use can_sync::core::pairing::{pair_proof, ticket_key};
use can_sync::state::identity::Identity;
use can_sync::state::journal::{
    DbIdent, Journal, JournalError, JournalReader, Rebased, TokenError, VerifiedOp, verify,
};
use can_sync::wire::frame::Kind;
use can_sync::wire::journal::{decode_body, decode_message, encode_message};
use tempfile::TempDir;

use crate::model::{Rules, State, Tables};
use crate::writes::{draft, keep_days, later_kind, overwrite};

mod checks;
mod disks;
mod group;
mod streams;
mod thief;

/// The wall clock when a world begins.
const WALL_MS: u64 = 1_800_000_000_000;

/// The most frames in a stream before its reader must read one.
const WINDOW: usize = 3;

/// Steps of a hundred in which a thief says something: it has little time until all know of it.
const CRIME_PERCENT: u64 = 5;

const HOUR_MS: u64 = 60 * 60 * 1000;

const DAY_MS: u64 = 24 * HOUR_MS;

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

    fn head(&mut self) -> Head {
        Head::of(&self.bytes())
    }

    fn set(&mut self) -> SetDigest {
        SetDigest(self.bytes())
    }
}

/// The faults of a world, beside writes, cuts and prunes, which always happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Devices lose everything but their disks, also right after commits.
    pub(crate) crashes: bool,
    /// Backups are restored unnoticed.
    pub(crate) silent_restores: bool,
    /// Backups are restored and noticed.
    pub(crate) restores: bool,
    /// Clocks are up to a quarter of an hour off, and step.
    pub(crate) skew: bool,
    /// Clocks are a day ahead for a while, and ops written then are rewritten.
    pub(crate) far_clocks: bool,
    /// Members are removed.
    pub(crate) removal: bool,
    /// The first device that is removed belongs to a thief who knows its key.
    pub(crate) thief: bool,
    /// Devices are lost for good.
    pub(crate) loss: bool,
    /// Disks are full for a while.
    pub(crate) full_disks: bool,
    /// Authors have no room for a while.
    pub(crate) quotas: bool,
    /// Streams have a retention of some days.
    pub(crate) retention: bool,
    /// Ops of a later version are written.
    pub(crate) later_kinds: bool,
    /// The last device lies about what it has.
    pub(crate) liar: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        crashes: false,
        silent_restores: false,
        restores: false,
        skew: false,
        far_clocks: false,
        removal: false,
        thief: false,
        loss: false,
        full_disks: false,
        quotas: false,
        retention: false,
        later_kinds: false,
        liar: false,
    };
}

/// A rule that is turned off where parts of the real code meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    SendOnlyWhatTheClockCovers,
    SentCountsAsHad,
    ClockOfAnEarlierSession,
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
    RemovedAuthorsAreRefused,
    RemovalUndoneByAnAdd,
    KeepIgnored,
    KeepForgotten,
    NoFence,
    FutureIsAdmitted,
    HeldBackForGood,
    StampsForgetWhatWasSeen,
    TokenWorksTwice,
    TokenNeverExpires,
    ProofFitsAnybody,
}

/// Events in a world, to see that the simulation covers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Happened {
    Op,
    Jump,
    Repair,
    Crash,
    Restore,
    SilentRestore,
    HeldBack,
    OverQuota,
    Pruned,
    Trimmed,
    Rotated,
    Forked,
    LockedOut,
    FellWithItsInviter,
    DiskFull,
    Cut,
    Rebased,
    LaterKind,
    Lie,
    TicketMisused,
    /// A member that did not know of the removal believed the thief.
    SleeperDeceived,
    /// The thief removed the device that had removed it.
    RemoverAnswered,
}

impl Happened {
    /// All events except those too rare to be required.
    pub(crate) const COMMON: [Self; 16] = [
        Self::Op,
        Self::Jump,
        Self::Crash,
        Self::Restore,
        Self::SilentRestore,
        Self::HeldBack,
        Self::Pruned,
        Self::Trimmed,
        Self::Forked,
        Self::LockedOut,
        Self::DiskFull,
        Self::Cut,
        Self::Rebased,
        Self::LaterKind,
        Self::Lie,
        Self::TicketMisused,
    ];
}

/// How often each happened.
pub(crate) type Tally = BTreeMap<Happened, usize>;

struct Open {
    journal: Journal,
    reader: JournalReader,
    tables: Tables,
}

/// The content of a disk, and its expected state.
#[derive(Clone, Default)]
struct Memory {
    state: State,
    committed: BTreeSet<OpHash>,
    /// The greatest time in their stamps.
    hlc_max: Hlc,
    clock: BTreeMap<LogId, u64>,
    arr: i64,
    joined: bool,
    full: bool,
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
    silently_restored: bool,
    repaired: BTreeMap<usize, Repaired>,
    /// The number and hash of the last op of a later version, in its log.
    later: Option<(u64, OpHash)>,
    /// For a mutant: each peer's progress by its clocks of all sessions.
    had: BTreeMap<usize, BTreeMap<LogId, u64>>,
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
    /// The next number per stream and log.
    events: BTreeMap<(String, LogId), u64>,
    /// Whether two ops with one number were ever written.
    forked: bool,
    /// Whether a device was lied to.
    deceived: bool,
    verified: BTreeMap<OpHash, VerifiedOp>,
    removals: usize,
    stolen: Option<thief::Stolen>,
    /// In how many of a hundred steps a stream moves.
    busy: u64,
    /// A device that performs no effects and reads nothing.
    pub(crate) stalled: Option<usize>,
    wrong: Option<String>,
}

impl World {
    /// `count` devices; the first founds the group, the others join over time.
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
                memory: Memory::default(),
                backups: Vec::new(),
                offset_ms: 0,
                gone: false,
                silently_restored: false,
                repaired: BTreeMap::new(),
                later: None,
                had: BTreeMap::new(),
            }
        });
        let nodes: Vec<_> = nodes.collect();
        let mut world = Self {
            rng,
            faults,
            tally: Tally::new(),
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
            deceived: false,
            verified: BTreeMap::new(),
            removals: 0,
            stolen: None,
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

    /// Members of one group, connected and at rest.
    pub(crate) fn of_members(
        seed: u64,
        count: usize,
        faults: Faults,
        mutant: Option<Mutant>,
    ) -> Self {
        let mut world = Self::new(seed, count, faults, mutant);
        for n in 1..count {
            while !world.nodes[n].memory.joined {
                world.join(n, 0);
            }
            world.connect(0, n);
        }
        world.settle();
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

    fn count(&mut self, what: Happened, times: usize) {
        if times > 0 {
            *self.tally.entry(what).or_default() += times;
        }
    }

    /// Whether a device may act.
    fn is_up(&self, n: usize) -> bool {
        !self.nodes[n].gone && self.nodes[n].memory.joined
    }

    fn is_liar(&self, n: usize) -> bool {
        self.faults.liar && n + 1 == self.nodes.len()
    }

    // ---- life --------------------------------------------------------------------------------

    /// Simulates one event.
    pub(crate) fn step(&mut self) {
        let n = self.rng.index(self.nodes.len());
        if self.rng.chance(self.busy) {
            if !self.turn() {
                self.pass(1_000);
            }
            return;
        }
        if self.stolen.is_some() && self.rng.chance(CRIME_PERCENT) {
            return self.commit_crime(n);
        }
        match self.rng.below(100) {
            0..32 => self.write(n),
            32..48 => {
                let ms = if self.rng.chance(10) { 120_000 } else { 400 };
                self.pass(ms);
            }
            48..64 => {
                let other = self.rng.index(self.nodes.len());
                self.connect(n, other);
            }
            64..70 => self.cut_any(),
            70..78 => {
                let days = if self.rng.chance(50) { 31 } else { 0 };
                self.prune(n, days);
            }
            78..80 => self.crash(n),
            80..84 => self.back_up(n),
            84..88 => self.restore(n),
            88..90 => self.step_clock(n),
            90..93 => {
                let inviter = self.rng.index(self.nodes.len());
                self.join(n, inviter);
            }
            93 => self.remove(n),
            94 if self.faults.loss => self.lose(n),
            94 => {}
            95 => self.fill_disk(n),
            96 => self.squeeze(n),
            97 => self.speak_of_retention(n),
            _ => self.write_later_kind(n),
        }
    }

    /// Ends all faults; then the members must agree.
    pub(crate) fn heal(&mut self) {
        self.links.clear();
        for n in 0..self.nodes.len() {
            self.nodes[n].offset_ms = 0;
            if self.nodes[n].gone {
                continue;
            }
            self.set_full(n, false);
            for of in 0..self.nodes.len() {
                let author = self.nodes[of].identity.node_id;
                self.nodes[n].set_quota(&author, None);
            }
            self.rebase(n);
        }
        // Ops that two devices with wrong clocks exchanged come of age.
        let mut pause_ms = if self.faults.far_clocks { DAY_MS + DAY_MS / 24 } else { HOUR_MS };
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

    /// Runs until nothing moves, or until it is clear that it never stops.
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

    // ---- time --------------------------------------------------------------------------------

    fn now(&self, n: usize) -> Now {
        Now { mono_ms: self.mono_ms, wall_ms: self.wall_ms(n) }
    }

    fn wall_ms(&self, n: usize) -> u64 {
        (WALL_MS + self.mono_ms).saturating_add_signed(self.nodes[n].offset_ms)
    }

    fn pass(&mut self, ms_max: u64) {
        let ms = 1 + self.rng.below(ms_max);
        self.wait(ms);
    }

    /// Advances the time.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.mono_ms += ms;
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
        let was_far = self.nodes[n].offset_ms == DAY_MS as i64;
        if self.faults.far_clocks && !was_far && self.rng.chance(30) {
            self.nodes[n].offset_ms = DAY_MS as i64;
            return;
        }
        let most_ms = if self.faults.skew { 15 * 60 * 1000 } else { 5_000 };
        let offset_ms = self.rng.below(2 * most_ms) as i64 - most_ms as i64;
        self.set_offset(n, offset_ms);
        if was_far && self.rng.chance(70) {
            self.rebase(n);
        }
    }

    /// Sets the offset of a device's clock from the right time.
    pub(crate) fn set_offset(&mut self, n: usize, offset_ms: i64) {
        self.nodes[n].offset_ms = offset_ms;
    }
}

impl Node {
    /// Sets how many bytes of ops the device keeps by an author; `None` for the default. An author
    /// that it does not know keeps the default.
    fn set_quota(&self, author: &NodeId, bytes: Option<i64>) {
        let set = "UPDATE devices SET quota_bytes = ?2 WHERE id = ?1";
        let connection = rusqlite::Connection::open(&self.path).unwrap();
        match connection.execute(set, rusqlite::params![author.0, bytes]) {
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {}
            set => assert!(set.is_ok(), "{set:?}"),
        }
    }

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

/// Reconnections until all must be in sync: clocks far off, and then digests that differ, each take
/// time.
const HEAL_ROUNDS: usize = 6;

/// The virtual time within which a round comes to rest.
const SETTLE_MS: u64 = 10 * 60 * 1000;

/// More turns than any world needs.
const SETTLE_TURNS: usize = 40_000;

/// The most effects under way: a frame to send, a read, a batch or clock to apply, and an end.
const ORDERS_MAX: usize = 4;
