//! The half of a session that takes in: the peer's clock, its ops, and what of them is held back.

use std::collections::{BTreeMap, BTreeSet};

use super::Effect;
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
    holds: BTreeMap<LogId, Hold>,
    /// See N4.
    refused: bool,
}

/// What must be answered before the next frame is read.
#[derive(Debug, Default)]
enum Busy {
    #[default]
    No,
    Clock {
        whole: bool,
    },
    Ops(Vec<OpHash>),
}

/// Why no ops of a log are taken in for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Wall-clock time.
    UntilMs(u64),
    Author,
    Quota,
}

/// The peer's place is noted on disk at most this often while it is still sending.
const ACK_MS: u64 = 1_000;

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
        let whole = !self.begun || clock.restart;
        self.begun = true;
        for entry in &clock.entries {
            self.peer.entries.insert(entry.log, *entry);
            self.jumpable.insert(entry.log);
            self.unacked.insert(entry.log);
        }
        if self.peer.entries.len() > LOGS_MAX {
            return Err("clocks of more logs than a group may have");
        }
        self.peer.digest = clock.digest;
        self.peer.drained = clock.drained;

        let jumps = clock.drained && !self.refused;
        let acks = clock.drained || self.acked_ms.is_none_or(|at| now_ms >= at + ACK_MS);
        let entries = &self.peer.entries;
        let of =
            |logs: BTreeSet<LogId>| logs.iter().filter_map(|l| entries.get(l).copied()).collect();
        let jump: Vec<_> = if jumps { of(std::mem::take(&mut self.jumpable)) } else { Vec::new() };
        let ack: Vec<_> = if acks { of(std::mem::take(&mut self.unacked)) } else { Vec::new() };
        let compare = if whole { entries.values().copied().collect() } else { clock.entries };
        if !ack.is_empty() {
            self.acked_ms = Some(now_ms);
        }
        if !whole && compare.is_empty() && ack.is_empty() && jump.is_empty() {
            return Ok(None);
        }
        self.busy = Busy::Clock { whole };
        Ok(Some(Effect::TakeClock { jump, ack, compare }))
    }

    /// The clock is dealt with; whether all of it was compared.
    pub(super) fn on_compared(&mut self) -> bool {
        matches!(std::mem::take(&mut self.busy), Busy::Clock { whole: true })
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
                hashes.push(op_hash(&log, &op.body));
                taken.push(op);
            }
        }
        if !taken.is_empty() {
            self.busy = Busy::Ops(hashes);
        }
        Ok(taken)
    }

    /// The batch is dealt with: the hashes of its ops.
    pub(super) fn on_applied(&mut self) -> Vec<OpHash> {
        match std::mem::take(&mut self.busy) {
            Busy::Ops(hashes) => hashes,
            Busy::No | Busy::Clock { .. } => Vec::new(),
        }
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
            Hold::Author | Hold::Quota => None,
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
