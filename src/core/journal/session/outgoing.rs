//! The sending half of a session: the ops that the peer lacks, in order of arrival, and our clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::incoming::PeerClock;
use super::{
    CLOCK_EVERY_MS, COALESCE_MS, Compared, Effect, REPAIR_PAUSE_MS, Repaired, Report, Scanned,
    WITHHOLD_MS, Withheld,
};
use crate::core::ids::{LogId, OpHash};
use crate::core::journal::message::{
    Clock, ClockEntry, JournalMessage, Ops, Refuse, RefuseCode, StateDigest,
};
use crate::core::journal::op::{SignedOp, op_hash};
use crate::core::limits::{LOGS_MAX, OPS_PER_FRAME_MAX};

#[derive(Debug)]
pub(super) struct Outgoing {
    now_ms: u64,
    jitter: u64,
    sending: bool,
    reading: bool,
    refusals: VecDeque<Refuse>,
    ops: Option<Ops>,
    clock: Option<Clock>,

    /// The peer's progress by its clocks of this session. See N2.
    has: BTreeMap<LogId, u64>,
    /// The logs that are sent as if the peer had none of their ops.
    again: Again,
    /// The position of the scan; `None`: start where `has` ends.
    cursor: Option<u64>,
    /// Whether the peer's first clock was compared, so that a position to scan from is known.
    positioned: bool,
    /// Whether the position was changed while a scan was under way: its outcome is then discarded.
    moved: bool,
    scanning: bool,
    /// When to scan for more.
    look_ms: Option<u64>,

    told: Option<Told>,
    /// When to send our clock, even in the midst of a scan.
    tell_ms: u64,
    ask_again: bool,

    received: Recent,
    /// Logs that were sent as a whole because the peer holds other ops than we do.
    sent_whole: BTreeSet<LogId>,
    /// Whether the peer sent a clock after the last ops that we sent.
    peer_answered: bool,
    repaired: Repaired,
}

#[derive(Debug, PartialEq, Eq)]
enum Again {
    Nothing,
    Logs(BTreeSet<LogId>),
    Everything,
}

/// Our clock as the peer knows it.
#[derive(Debug)]
struct Told {
    at_ms: u64,
    entries: BTreeMap<LogId, ClockEntry>,
    digest: Option<StateDigest>,
    drained: bool,
    /// Whether a clock sent in this session was marked `drained`.
    ever_drained: bool,
}

/// Hashes of ops that the peer sent, so that they are not sent back before its clock covers them.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<OpHash>,
    set: BTreeSet<OpHash>,
}

/// The shortest wait, and half of the longest, before ops of other devices are passed on: the peer
/// may receive them from their author.
const RELAY_MS: u64 = 100;

/// How many hashes of received ops are remembered: sixteen batches. A forgotten op may be sent back
/// once.
const RECENT_MAX: usize = 16 * OPS_PER_FRAME_MAX;

/// The most refusals waiting to be sent. They inform people; more would add nothing.
const REFUSALS_MAX: usize = 16;

impl Outgoing {
    pub(super) fn new(jitter: u64, mut repaired: Repaired, now_ms: u64) -> Self {
        repaired.withheld.retain(|_, op| {
            op.code == RefuseCode::Quota && now_ms.saturating_sub(op.since_ms) < WITHHOLD_MS
        });
        Self {
            now_ms,
            jitter,
            sending: false,
            reading: false,
            refusals: VecDeque::new(),
            ops: None,
            clock: None,
            has: BTreeMap::new(),
            again: Again::Nothing,
            cursor: None,
            positioned: false,
            moved: false,
            scanning: false,
            look_ms: None,
            told: None,
            tell_ms: now_ms,
            ask_again: false,
            received: Recent::default(),
            sent_whole: BTreeSet::new(),
            peer_answered: false,
            repaired,
        }
    }

    pub(super) fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub(super) fn repaired(&self) -> &Repaired {
        &self.repaired
    }

    /// When there is something to do, if nothing is under way.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let waits = self.sending || self.reading || !self.positioned;
        (!waits).then(|| self.look_ms.map_or(self.tell_ms, |at| at.min(self.tell_ms)))
    }

    /// Notes that a message was given to the stream.
    pub(super) fn sending(&mut self) {
        self.sending = true;
    }

    pub(super) fn on_sent(&mut self) {
        self.sending = false;
    }

    pub(super) fn refuse(&mut self, refuse: Refuse) {
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push_back(refuse);
        }
    }

    /// Tells the peer with the next clock that refused ops may be admitted now.
    pub(super) fn ask_again(&mut self) {
        self.ask_again = true;
    }

    pub(super) fn remember_received(&mut self, hashes: Vec<OpHash>) {
        for hash in hashes {
            self.received.insert(hash);
        }
    }

    pub(super) fn on_committed(&mut self, own: bool) {
        self.jitter = self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pause_ms = if own { 0 } else { RELAY_MS + (self.jitter >> 33) % RELAY_MS };
        self.look_within(pause_ms);
        self.tell_ms = self.tell_ms.min(self.now_ms + COALESCE_MS);
    }

    /// Records the peer's clock and compares at once whether the two differ.
    pub(super) fn on_peer_clock(&mut self, clock: &Clock) {
        self.peer_answered = true;
        self.look_within(0);
        let before = self.repaired.withheld.len();
        if clock.restart {
            self.repaired.withheld.clear();
        }
        for entry in &clock.entries {
            let has_it = |op: &Withheld| entry.seq >= op.seq;
            if self.repaired.withheld.get(&entry.log).is_some_and(has_it) {
                self.repaired.withheld.remove(&entry.log);
            }
        }
        if self.repaired.withheld.len() < before && self.positioned {
            self.cursor = None;
            self.moved = true;
            self.scanning = true;
        }
    }

    /// Withholds a log because the peer refused an op of it. See N7.
    pub(super) fn withhold(&mut self, log: LogId, seq: u64, code: RefuseCode) {
        if self.repaired.withheld.len() < LOGS_MAX {
            let op = Withheld { seq, since_ms: self.now_ms, code };
            self.repaired.withheld.entry(log).or_insert(op);
        }
    }

    pub(super) fn on_compared(&mut self, compared: Compared, whole: bool) {
        let mut fell = false;
        for (log, seq) in compared.has {
            fell |= self.has.insert(log, seq).is_some_and(|before| before > seq);
        }
        let all: BTreeSet<LogId> =
            compared.all.into_iter().filter(|log| self.sent_whole.insert(*log)).collect();
        if whole || fell || !all.is_empty() {
            let known = whole && self.again == Again::Nothing;
            self.cursor = known.then_some(compared.start);
            self.positioned |= whole;
            self.moved = true;
            self.scanning = true;
        }
        self.send_again(all);
    }

    pub(super) fn on_clock(&mut self, clock: Clock) {
        self.reading = false;
        let restart = std::mem::take(&mut self.ask_again);
        let clock = self.marked(clock);
        self.tell(Clock { drained: false, restart, ..clock });
        self.look_within(0);
    }

    /// Processes the result of a scan. Returns a report if ops have to be sent again.
    pub(super) fn on_scanned(&mut self, scanned: Scanned, peer: &PeerClock) -> Option<Report> {
        self.reading = false;
        if self.moved {
            return None;
        }
        self.cursor = Some(scanned.cursor);
        self.scanning = scanned.drained.is_none();
        let everything = self.again == Again::Everything;
        let new = |(log, op): &(LogId, SignedOp)| {
            !self.repaired.withheld.contains_key(log)
                && (everything || !self.received.contains(&op_hash(log, &op.body)))
        };
        let ops: Vec<_> = scanned.ops.into_iter().filter(new).map(|(_, op)| op).collect();
        if !ops.is_empty() {
            self.ops = Some(Ops { ops, has_more: scanned.drained.is_none() });
            self.peer_answered = false;
            if let Some(told) = &mut self.told {
                told.drained = false;
            }
        }
        self.on_drained(scanned.drained?, peer)
    }

    /// Nothing is left to send: decides whether a repair is due and whether to send our clock.
    fn on_drained(&mut self, clock: Clock, peer: &PeerClock) -> Option<Report> {
        self.again = Again::Nothing;
        let clock = self.marked(clock);
        // Whether a repair helped shows only in a clock that the peer sent after all of it.
        if self.peer_answered && peer.drained {
            let mut forked = unmatched_forks(&clock, peer);
            forked.retain(|log| !self.repaired.withheld.contains_key(log));
            forked.retain(|log| self.may_again(self.repaired.forked_ms.get(log).copied()));
            if !forked.is_empty() {
                self.repaired.forked_ms.extend(forked.iter().map(|log| (*log, self.now_ms)));
                self.send_again(forked);
                self.cursor = None;
                self.scanning = true;
                return Some(Report::Matching);
            }
            if digests_differ(&clock, peer) && self.may_again(self.repaired.everything_ms) {
                self.repaired.everything_ms = Some(self.now_ms);
                self.again = Again::Everything;
                self.cursor = Some(0);
                self.scanning = true;
                return Some(Report::Repairing);
            }
        }
        let told = self.told.as_ref()?;
        let news = !told.drained || told.digest != clock.digest || !told.delta(&clock).is_empty();
        let next_ms = told.at_ms + if news { COALESCE_MS } else { CLOCK_EVERY_MS };
        if self.now_ms >= next_ms || !told.ever_drained {
            self.tell(clock);
        } else {
            self.tell_ms = next_ms;
        }
        None
    }

    /// Whether a repair may happen again after one at `sent_ms`. If not, schedules a look at that
    /// time.
    fn may_again(&mut self, sent_ms: Option<u64>) -> bool {
        let again_ms = sent_ms.map_or(self.now_ms, |at| at + REPAIR_PAUSE_MS);
        if again_ms > self.now_ms {
            self.look_within(again_ms - self.now_ms);
        }
        again_ms <= self.now_ms
    }

    /// See [`super::Session::in_sync`].
    pub(super) fn equals(&self, peer: &PeerClock) -> bool {
        let Some(told) = &self.told else { return false };
        let looked = !self.scanning && self.look_ms.is_none();
        looked
            && told.drained
            && StateDigest::agree(told.digest, peer.digest)
            && same_clock(&told.entries, &peer.entries)
    }

    fn tell(&mut self, clock: Clock) {
        let before = self.told.take();
        let entries = match &before {
            Some(told) => told.delta(&clock),
            None => clock.entries.clone(),
        };
        self.told = Some(Told {
            at_ms: self.now_ms,
            entries: clock.entries.into_iter().map(|entry| (entry.log, entry)).collect(),
            digest: clock.digest,
            drained: clock.drained,
            ever_drained: clock.drained || before.is_some_and(|told| told.ever_drained),
        });
        self.tell_ms = self.now_ms + CLOCK_EVERY_MS;
        self.clock = Some(Clock { entries, ..clock });
    }

    fn send_again(&mut self, logs: BTreeSet<LogId>) {
        if logs.is_empty() {
            return;
        }
        match &mut self.again {
            Again::Nothing => self.again = Again::Logs(logs),
            Again::Logs(before) => before.extend(logs),
            Again::Everything => {}
        }
    }

    fn look_within(&mut self, pause_ms: u64) {
        let at_ms = self.now_ms + pause_ms;
        self.look_ms = Some(self.look_ms.map_or(at_ms, |before| before.min(at_ms)));
    }

    /// Appends the next effect to `out` if none is under way.
    pub(super) fn pump(&mut self, out: &mut Vec<Effect>) {
        if self.sending || self.reading {
            return;
        }
        let refusal = self.refusals.pop_front().map(JournalMessage::Refuse);
        let message = refusal
            .or_else(|| self.ops.take().map(JournalMessage::Ops))
            .or_else(|| self.clock.take().map(JournalMessage::Clock));
        if let Some(message) = message {
            self.sending = true;
            return out.push(Effect::Send(message));
        }
        let tell_due = self.tell_ms <= self.now_ms;
        if self.told.is_none() || self.ask_again || (self.scanning && tell_due) {
            self.reading = true;
            return out.push(Effect::ReadClock);
        }
        let look_due = self.look_ms.is_some_and(|at| at <= self.now_ms);
        if self.positioned && (self.scanning || look_due || tell_due) {
            self.reading = true;
            self.scanning = true;
            self.moved = false;
            self.look_ms = None;
            out.push(Effect::Scan { cursor: self.cursor, has: self.has_now() });
        }
    }

    /// Our clock with the logs marked that are withheld from the peer.
    fn marked(&self, mut clock: Clock) -> Clock {
        for entry in &mut clock.entries {
            entry.withheld = self.repaired.withheld.contains_key(&entry.log);
        }
        clock
    }

    fn has_now(&self) -> BTreeMap<LogId, u64> {
        let mut has = self.has_to_send();
        has.extend(self.repaired.withheld.keys().map(|log| (*log, u64::MAX)));
        has
    }

    fn has_to_send(&self) -> BTreeMap<LogId, u64> {
        match &self.again {
            Again::Nothing => self.has.clone(),
            Again::Logs(logs) => {
                self.has.iter().filter(|(l, _)| !logs.contains(l)).map(|(l, s)| (*l, *s)).collect()
            }
            Again::Everything => BTreeMap::new(),
        }
    }
}

impl Told {
    fn delta(&self, clock: &Clock) -> Vec<ClockEntry> {
        let news = |entry: &&ClockEntry| self.entries.get(&entry.log) != Some(*entry);
        clock.entries.iter().filter(news).copied().collect()
    }
}

impl Recent {
    fn insert(&mut self, hash: OpHash) {
        if !self.set.insert(hash) {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn contains(&self, hash: &OpHash) -> bool {
        self.set.contains(hash)
    }
}

/// Forked logs of which the two devices do not hold the same ops.
fn unmatched_forks(clock: &Clock, peer: &PeerClock) -> BTreeSet<LogId> {
    let unmatched = clock.entries.iter().filter(|ours| {
        let theirs = peer.entries.get(&ours.log);
        let known = ours.forked || theirs.is_some_and(|entry| entry.forked);
        let same =
            theirs.is_some_and(|entry| entry.forked && ours.forked && entry.above == ours.above);
        known && !same
    });
    unmatched.map(|entry| entry.log).collect()
}

/// Whether the clocks are equal but the state digests differ.
fn digests_differ(clock: &Clock, peer: &PeerClock) -> bool {
    if StateDigest::agree(clock.digest, peer.digest) {
        return false;
    }
    let entries = clock.entries.iter().map(|entry| (entry.log, *entry)).collect();
    same_clock(&entries, &peer.entries)
}

/// Whether two clocks cover the same ops. The chain of a forked log is not compared.
fn same_clock(a: &BTreeMap<LogId, ClockEntry>, b: &BTreeMap<LogId, ClockEntry>) -> bool {
    let covers = |entries: &BTreeMap<LogId, ClockEntry>| -> usize {
        entries.values().filter(|entry| entry.seq > 0).count()
    };
    let same = |x: &ClockEntry, y: &ClockEntry| {
        x.seq == y.seq && (x.head == y.head || (x.forked && y.forked))
    };
    covers(a) == covers(b)
        && a.values().filter(|x| x.seq > 0).all(|x| b.get(&x.log).is_some_and(|y| same(x, y)))
}
