//! The receiving half of a session: the peer's clock, its ops, and the logs that are held back.

use std::collections::{BTreeMap, BTreeSet};

use super::{COALESCE_MS, Effect};
use crate::core::ids::{GroupId, LogId, OpHash};
use crate::core::journal::message::{Clock, ClockEntry, Ops, StateDigest};
use crate::core::journal::op::{LogInfo, SignedOp, op_hash};
use crate::core::limits::LOGS_MAX;

/// The peer's progress by all clocks that it sent in this session.
#[derive(Debug, Default)]
pub(super) struct PeerClock {
    pub(super) entries: BTreeMap<LogId, ClockEntry>,
    pub(super) digest: Option<StateDigest>,
    /// Whether its last clock said that nothing is left to send.
    pub(super) drained: bool,
}

#[derive(Debug, Default)]
pub(super) struct Incoming {
    peer: PeerClock,
    begun: bool,
    busy: Busy,
    /// Logs in the peer's clocks since gaps were last jumped.
    jumpable: BTreeSet<LogId>,
    /// Logs in the peer's clocks since its progress was last recorded.
    unacked: BTreeSet<LogId>,
    acked_ms: Option<u64>,
    /// Logs in the peer's clocks that are not compared yet, because comparing them reads the
    /// journal.
    uncompared: BTreeSet<LogId>,
    /// The peer requested that everything is compared again.
    asked: bool,
    /// The next comparison that reads the journal happens no earlier; see [`COMPARE_DUTY`].
    compare_ms: u64,
    holds: BTreeMap<LogId, Hold>,
    /// Whether an op was refused in this session. See N4.
    refused: bool,
    /// Logs for which the disk had no space, each with the last op of the first batch that was not
    /// applied.
    full: BTreeMap<LogId, OpHash>,
}

/// The effect whose outcome must arrive before the next frame is read.
#[derive(Debug, Default)]
enum Busy {
    #[default]
    No,
    Clock {
        whole: bool,
        /// When a comparison that reads the journal began; `None` for the first clock, which is
        /// free.
        costs_since_ms: Option<u64>,
    },
    Ops(Vec<(LogId, OpHash)>),
}

/// Why no ops of a log are applied for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Until this wall-clock time.
    UntilMs(u64),
    Author,
}

/// The shortest pause between two recordings of the peer's progress on disk while the peer is still
/// sending. Otherwise it is [`COALESCE_MS`], as often as an honest peer sends its clock.
pub(super) const ACK_MS: u64 = 1_000;

/// At most one part in this many of a session's time goes into comparing. A clock of a hundred
/// bytes may cause reading all of a log, and a request to compare again all of the journal.
pub(super) const COMPARE_DUTY: u64 = 10;

/// The shortest pause between two comparisons that read the journal.
pub(super) const COMPARE_MS_MIN: u64 = 1_000;

/// The shortest time for which a log is held back: each release makes the peer send it again.
pub(super) const HOLD_MS_MIN: u64 = 30_000;

impl Incoming {
    pub(super) fn busy(&self) -> bool {
        !matches!(self.busy, Busy::No)
    }

    pub(super) fn peer(&self) -> &PeerClock {
        &self.peer
    }

    /// Processes a clock of the peer. Returns an effect to perform, or the protocol error.
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

    /// Takes out the logs whose gaps may be jumped. A log for which the disk had no room has to
    /// arrive again first.
    fn take_jumpable(&mut self) -> BTreeSet<LogId> {
        let (waiting, jump) = std::mem::take(&mut self.jumpable)
            .into_iter()
            .partition(|log| self.full.contains_key(log));
        self.jumpable = waiting;
        jump
    }

    /// The effect that was put off and is due now.
    pub(super) fn overdue(&mut self, now_ms: u64) -> Option<Effect> {
        let is_due = self.due_ms().is_some_and(|at| at <= now_ms);
        is_due.then(|| self.take(Vec::new(), Vec::new(), false, ACK_MS, now_ms)).flatten()
    }

    /// When [`Self::overdue`] has an effect, if nothing else happens first.
    pub(super) fn due_ms(&self) -> Option<u64> {
        if self.busy() {
            return None;
        }
        let ack_ms = self.acked_ms.filter(|_| !self.unacked.is_empty()).map(|at| at + ACK_MS);
        let compares = self.asked || !self.uncompared.is_empty();
        [ack_ms, compares.then_some(self.compare_ms)].into_iter().flatten().min()
    }

    /// Makes one effect of what the new clock requires and what is due from earlier clocks.
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

    /// Ends the effect of a clock. Returns whether the whole clock was compared.
    pub(super) fn on_compared(&mut self, unjumped: &[LogId], now_ms: u64) -> bool {
        // The next drained clock has them jumped.
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

    /// Accepts a batch. Returns those of its ops whose logs are not held back.
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

    /// Ends the effect of a batch and returns the hashes of its ops. `full`: logs for which there
    /// was no room.
    pub(super) fn on_applied(&mut self, full: &BTreeSet<LogId>) -> Vec<OpHash> {
        let Busy::Ops(ops) = std::mem::take(&mut self.busy) else { return Vec::new() };
        let mut last = BTreeMap::new();
        for (log, hash) in &ops {
            if full.contains(log) {
                last.insert(*log, *hash);
            } else if self.full.get(log) == Some(hash) {
                // The peer sends in one order: the ops before this one arrived again, those after
                // it will.
                self.full.remove(log);
            }
        }
        for (log, hash) in last {
            self.full.entry(log).or_insert(hash);
        }
        ops.into_iter().map(|(_, hash)| hash).collect()
    }

    /// Holds a log back for lack of space until this wall-clock time. See [`Self::hold`].
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

    /// Holds the log back. Returns true if it was not held already.
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

    /// The first wall-clock time at which to release a log.
    pub(super) fn hold_ends_ms(&self) -> Option<u64> {
        let until = |hold: &Hold| match hold {
            Hold::UntilMs(at) => Some(*at),
            Hold::Author => None,
        };
        self.holds.values().filter_map(until).min()
    }

    /// Releases the logs whose time has come. Returns whether there were any.
    pub(super) fn release_due(&mut self, wall_ms: u64) -> bool {
        self.release(|hold| matches!(hold, Hold::UntilMs(at) if *at <= wall_ms))
    }

    /// Releases the logs of unknown authors. Returns whether there were any.
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
