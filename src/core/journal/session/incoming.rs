//! The half of a session that takes in: the peer's clock, its ops, and what of them is held back.

use std::collections::{BTreeMap, BTreeSet};

use super::{COALESCE_MS, Effect};
use crate::core::ids::{GroupId, LogId, OpHash};
use crate::core::journal::message::{Clock, ClockEntry, Ops, StateDigest};
use crate::core::journal::op::{LogInfo, SignedOp, op_hash};
use crate::core::limits::LOGS_MAX;

/// Where the peer stands by all it has told in this session.
#[derive(Debug, Default)]
pub(super) struct PeerClock {
    pub(super) entries: BTreeMap<LogId, ClockEntry>,
    pub(super) digest: Option<StateDigest>,
    /// Its last word was that nothing is left to send.
    pub(super) drained: bool,
}

#[derive(Debug, Default)]
pub(super) struct Incoming {
    peer: PeerClock,
    begun: bool,
    busy: Busy,
    /// Logs told of since gaps were last jumped.
    jumpable: BTreeSet<LogId>,
    /// Logs told of since the peer's place was last noted.
    unacked: BTreeSet<LogId>,
    acked_ms: Option<u64>,
    /// Logs told of and not compared yet, as that takes reading.
    uncompared: BTreeSet<LogId>,
    /// The peer has asked for everything to be compared anew.
    asked: bool,
    /// No comparing that takes reading before this; see [`COMPARE_DUTY`].
    compare_ms: u64,
    holds: BTreeMap<LogId, Hold>,
    /// See N4.
    refused: bool,
    /// Logs for which the disk had no room, each with the last op of the first batch not taken.
    full: BTreeMap<LogId, OpHash>,
}

/// What must be answered before the next frame is read.
#[derive(Debug, Default)]
enum Busy {
    #[default]
    No,
    Clock {
        whole: bool,
        /// Since when something is compared that takes reading, but for the first clock.
        costs_since_ms: Option<u64>,
    },
    Ops(Vec<(LogId, OpHash)>),
}

/// Why no ops of a log are taken in for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Wall-clock time.
    UntilMs(u64),
    Author,
}

/// The peer's place is noted on disk at most this often while it is still sending, and else at most
/// every [`COALESCE_MS`], as often as honest peers tell.
pub(super) const ACK_MS: u64 = 1_000;

/// Of a session's time at most one part in so many is spent on comparing: for a clock of a hundred
/// bytes all of a log may have to be read, and all of the journal where the peer asks for it.
pub(super) const COMPARE_DUTY: u64 = 10;

/// And it is not done more often than this.
pub(super) const COMPARE_MS_MIN: u64 = 1_000;

/// A log is held back at least this long: each release makes the peer send anew.
pub(super) const HOLD_MS_MIN: u64 = 30_000;

impl Incoming {
    pub(super) fn busy(&self) -> bool {
        !matches!(self.busy, Busy::No)
    }

    pub(super) fn peer(&self) -> &PeerClock {
        &self.peer
    }

    /// Takes in a clock. The answer is an order, or what is wrong with it.
    pub(super) fn on_clock(
        &mut self,
        clock: Clock,
        now_ms: u64,
    ) -> Result<Option<Effect>, &'static str> {
        let is_first = !std::mem::replace(&mut self.begun, true);
        self.asked |= clock.restart && !is_first;
        for entry in &clock.entries {
            self.peer.entries.insert(entry.log, *entry);
            match entry.withheld {
                false => self.jumpable.insert(entry.log),
                true => self.jumpable.remove(&entry.log),
            };
            self.unacked.insert(entry.log);
        }
        if self.peer.entries.len() > LOGS_MAX {
            return Err("clocks of more logs than a group may have");
        }
        self.peer.digest = clock.digest;
        self.peer.drained = clock.drained;

        let jumps = clock.drained && !self.refused;
        let jump = if jumps { self.take_jumpable() } else { BTreeSet::new() };
        let jump = self.entries(jump);
        let (dear, cheap): (Vec<_>, Vec<_>) = clock.entries.into_iter().partition(takes_reading);
        for entry in &cheap {
            self.uncompared.remove(&entry.log);
        }
        self.uncompared.extend(dear.iter().map(|entry| entry.log));
        let ack_ms = if clock.drained { COALESCE_MS } else { ACK_MS };
        Ok(self.take(jump, cheap, is_first, ack_ms, now_ms))
    }

    /// Logs whose gaps may be jumped. What the disk had no room for has to come again first.
    fn take_jumpable(&mut self) -> BTreeSet<LogId> {
        let (waiting, jump) = std::mem::take(&mut self.jumpable)
            .into_iter()
            .partition(|log| self.full.contains_key(log));
        self.jumpable = waiting;
        jump
    }

    /// What was put off and is due.
    pub(super) fn overdue(&mut self, now_ms: u64) -> Option<Effect> {
        let is_due = self.due_ms().is_some_and(|at| at <= now_ms);
        is_due.then(|| self.take(Vec::new(), Vec::new(), false, ACK_MS, now_ms)).flatten()
    }

    /// When [`Self::overdue`] has something, if nothing is under way.
    pub(super) fn due_ms(&self) -> Option<u64> {
        if self.busy() {
            return None;
        }
        let ack_ms = self.acked_ms.filter(|_| !self.unacked.is_empty()).map(|at| at + ACK_MS);
        let compares = self.asked || !self.uncompared.is_empty();
        [ack_ms, compares.then_some(self.compare_ms)].into_iter().flatten().min()
    }

    /// Takes in what a clock told, and what of earlier ones was put off and is due.
    fn take(
        &mut self,
        jump: Vec<ClockEntry>,
        mut compare: Vec<ClockEntry>,
        is_first: bool,
        ack_ms: u64,
        now_ms: u64,
    ) -> Option<Effect> {
        let acks = self.acked_ms.is_none_or(|at| now_ms >= at + ack_ms);
        let ack = if acks { std::mem::take(&mut self.unacked) } else { BTreeSet::new() };
        let ack = self.entries(ack);
        if !ack.is_empty() {
            self.acked_ms = Some(now_ms);
        }
        let mut whole = is_first;
        let mut costs_since_ms = None;
        if is_first || now_ms >= self.compare_ms {
            whole |= std::mem::take(&mut self.asked);
            let put_off = std::mem::take(&mut self.uncompared);
            let costs = !is_first && (whole || !put_off.is_empty());
            costs_since_ms = costs.then_some(now_ms);
            match whole {
                true => compare = self.peer.entries.values().copied().collect(),
                false => compare.extend(self.entries(put_off)),
            }
        }
        if !whole && compare.is_empty() && ack.is_empty() && jump.is_empty() {
            return None;
        }
        self.busy = Busy::Clock { whole, costs_since_ms };
        Some(Effect::TakeClock { jump, ack, compare, whole })
    }

    fn entries(&self, logs: BTreeSet<LogId>) -> Vec<ClockEntry> {
        logs.iter().filter_map(|log| self.peer.entries.get(log).copied()).collect()
    }

    /// The clock is dealt with; whether all of it was compared.
    pub(super) fn on_compared(&mut self, unjumped: &[LogId], now_ms: u64) -> bool {
        // The next clock that says `drained` has them jumped.
        self.jumpable.extend(unjumped);
        let Busy::Clock { whole, costs_since_ms } = std::mem::take(&mut self.busy) else {
            return false;
        };
        if let Some(since_ms) = costs_since_ms {
            let pause_ms = now_ms.saturating_sub(since_ms) * COMPARE_DUTY;
            self.compare_ms = now_ms + pause_ms.max(COMPARE_MS_MIN);
        }
        whole
    }

    /// Takes in a batch; what is left of it without the logs held back.
    pub(super) fn on_ops(
        &mut self,
        ops: Ops,
        group: &GroupId,
    ) -> Result<Vec<SignedOp>, &'static str> {
        if !self.begun {
            return Err("ops before the first clock");
        }
        self.peer.drained = false;
        let mut ids: BTreeMap<LogInfo, LogId> = BTreeMap::new();
        let mut hashes = Vec::with_capacity(ops.ops.len());
        let mut taken = Vec::with_capacity(ops.ops.len());
        for op in ops.ops {
            let log = *ids.entry(op.log).or_insert_with(|| op.log.id(group));
            if !self.holds.contains_key(&log) {
                hashes.push((log, op_hash(&log, &op.body)));
                taken.push(op);
            }
        }
        if !taken.is_empty() {
            self.busy = Busy::Ops(hashes);
        }
        Ok(taken)
    }

    /// The batch is dealt with: the hashes of its ops. `full` are logs for which there was no room.
    pub(super) fn on_applied(&mut self, full: &BTreeSet<LogId>) -> Vec<OpHash> {
        let Busy::Ops(ops) = std::mem::take(&mut self.busy) else { return Vec::new() };
        let mut last = BTreeMap::new();
        for (log, hash) in &ops {
            if full.contains(log) {
                last.insert(*log, *hash);
            } else if self.full.get(log) == Some(hash) {
                // The peer sends in one order: what came before it came again, what followed will.
                self.full.remove(log);
            }
        }
        for (log, hash) in last {
            self.full.entry(log).or_insert(hash);
        }
        ops.into_iter().map(|(_, hash)| hash).collect()
    }

    /// Holds a log back for want of space, until this wall-clock time. See [`Self::hold`].
    pub(super) fn hold_for_space(
        &mut self,
        log: LogId,
        until_ms: u64,
    ) -> Result<bool, &'static str> {
        let refused = self.refused;
        let held = self.hold(log, Hold::UntilMs(until_ms));
        self.refused = refused;
        held
    }

    /// Holds a log back from now on. Whether that is news.
    pub(super) fn hold(&mut self, log: LogId, hold: Hold) -> Result<bool, &'static str> {
        self.refused = true;
        let news = !self.holds.contains_key(&log);
        self.holds.entry(log).or_insert(hold);
        if self.holds.len() > LOGS_MAX {
            return Err("ops that cannot be taken, of more logs than a group may have");
        }
        Ok(news)
    }

    pub(super) fn holds(&self, log: &LogId) -> bool {
        self.holds.contains_key(log)
    }

    /// The first wall-clock time at which a log is released.
    pub(super) fn hold_ends_ms(&self) -> Option<u64> {
        let until = |hold: &Hold| match hold {
            Hold::UntilMs(at) => Some(*at),
            Hold::Author => None,
        };
        self.holds.values().filter_map(until).min()
    }

    /// Releases the logs whose time has come. Whether there were any.
    pub(super) fn release_due(&mut self, wall_ms: u64) -> bool {
        self.release(|hold| matches!(hold, Hold::UntilMs(at) if *at <= wall_ms))
    }

    /// Releases the logs of authors that were not known. Whether there were any.
    pub(super) fn release_authors(&mut self) -> bool {
        self.release(|hold| *hold == Hold::Author)
    }

    fn release(&mut self, over: impl Fn(&Hold) -> bool) -> bool {
        let before = self.holds.len();
        self.holds.retain(|_, hold| !over(hold));
        self.holds.len() < before
    }
}

/// Whether comparing an entry takes reading the ops above it.
fn takes_reading(entry: &ClockEntry) -> bool {
    !entry.forked && !entry.above.is_empty()
}
