//! The journal of a device, as far as folders are concerned: logs of ops, the cell of each path by
//! the greatest stamp, the versions that lost, and the history.

use std::collections::BTreeMap;
use std::rc::Rc;

use can_sync::core::folder::path::FolderPath;
use can_sync::core::folder::resolve::{Resolution, resolve};
use can_sync::core::folder::version::{Relation, ShortId, Version};
use can_sync::core::journal::stamp::Hlc;

use super::Mutant;

/// How long the event of a change may arrive after the change; shorter than it really is.
pub(crate) const HISTORY_WAIT_MS: u64 = 20_000;

/// (time, log, number): the order of all writes.
pub(crate) type Stamp = (u64, usize, usize);

#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) stamp: Stamp,
    pub(crate) writes: Vec<Version>,
    pub(crate) events: Vec<Version>,
}

/// What is durable together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    pub(crate) cells: BTreeMap<FolderPath, (Stamp, Version)>,
    /// The ops of each log, as far as they are known: `None` for one that a peer has dropped.
    pub(crate) logs: BTreeMap<usize, Vec<Option<Rc<Op>>>>,
    pub(crate) events: BTreeMap<FolderPath, Vec<Version>>,
    /// Versions that lost, each with the time from when on its event counts as missing.
    pub(crate) superseded: Vec<(Version, u64)>,
    hlc_max: u64,
}

impl Journal {
    /// Writes an op of this device. `changes` get its counter.
    pub(crate) fn write(
        &mut self,
        (log, me): (usize, ShortId),
        now_ms: u64,
        mut writes: Vec<Version>,
        are_changes: bool,
        events: Vec<Version>,
        mutant: Mutant,
    ) -> Vec<Version> {
        let counters = writes.iter().filter_map(|version| version.vector.newest());
        let newest = counters.map(|(_, hlc)| hlc.0).max().unwrap_or(0);
        if mutant != Mutant::CountersOfTheBase {
            self.hlc_max = self.hlc_max.max(newest);
        }
        let hlc = Hlc(self.hlc_max).next(now_ms).unwrap();
        for version in writes.iter_mut().filter(|_| are_changes) {
            version.vector = match mutant {
                Mutant::CountersOfTheBase => {
                    let own = version.vector.0.get(&me).copied().unwrap_or(0);
                    version.vector.grown(me, Hlc(own + 1))
                }
                _ => version.vector.grown(me, hlc),
            };
        }
        let number = self.logs.get(&log).map_or(0, Vec::len);
        let op = Op { stamp: (hlc.0, log, number), writes: writes.clone(), events };
        self.take(Some(Rc::new(op)), log, now_ms, mutant);
        writes
    }

    /// Takes the next op of a log.
    pub(crate) fn take(&mut self, op: Option<Rc<Op>>, log: usize, now_ms: u64, mutant: Mutant) {
        self.logs.entry(log).or_default().push(op.clone());
        self.merge(op, now_ms, mutant);
    }

    fn merge(&mut self, op: Option<Rc<Op>>, now_ms: u64, mutant: Mutant) {
        let Some(op) = op else { return };
        self.hlc_max = self.hlc_max.max(op.stamp.0);
        let mut lost = Vec::new();
        for version in &op.writes {
            match self.cells.get(&version.path) {
                Some((stamp, _)) if *stamp > op.stamp => lost.push(version.clone()),
                _ => {
                    let cell = (op.stamp, version.clone());
                    let old = self.cells.insert(version.path.clone(), cell);
                    lost.extend(old.map(|(_, version)| version));
                }
            }
        }
        for event in &op.events {
            self.events.entry(event.path.clone()).or_default().push(event.clone());
        }
        for version in lost {
            let is_older = self
                .at(&version.path)
                .is_some_and(|current| current.vector.relation(&version.vector) == Relation::Older);
            let is_dropped = match mutant {
                Mutant::StampsOnly => is_older,
                Mutant::LosersDropped => true,
                Mutant::RefusedDropped => op.writes.iter().any(|write| write.is_same(&version)),
                _ => false,
            };
            if !is_dropped {
                self.keep(version, now_ms, mutant);
            }
        }
    }

    /// Keeps a version that is not in its cell.
    pub(crate) fn keep(&mut self, version: Version, now_ms: u64, mutant: Mutant) {
        let is_kept = match resolve(self.at(&version.path), &version) {
            Resolution::Nothing => false,
            Resolution::Remember => mutant != Mutant::EventsTrusted && !self.has_history(&version),
            Resolution::Write(_) => true,
        };
        if is_kept {
            self.superseded.push((version, now_ms + HISTORY_WAIT_MS));
        }
    }

    pub(crate) fn at(&self, path: &FolderPath) -> Option<&Version> {
        self.cells.get(path).map(|(_, version)| version)
    }

    pub(crate) fn has_history(&self, version: &Version) -> bool {
        let events = self.events.get(&version.path);
        events.is_some_and(|events| events.iter().any(|event| event.is_same(version)))
    }

    /// Resolves what lost, in one transaction. Returns whether an op was written.
    pub(crate) fn resolve(&mut self, who: (usize, ShortId), now_ms: u64, mutant: Mutant) -> bool {
        let (mut writes, mut events) = (Vec::new(), Vec::<Version>::new());
        for (lost, due_ms) in std::mem::take(&mut self.superseded) {
            let mut version = match resolve(self.at(&lost.path), &lost) {
                Resolution::Nothing => continue,
                Resolution::Remember if self.has_history(&lost) => continue,
                Resolution::Remember if due_ms > now_ms => {
                    self.superseded.push((lost, due_ms));
                    continue;
                }
                Resolution::Remember => {
                    events.push(lost);
                    continue;
                }
                Resolution::Write(version) => version,
            };
            if version.path != lost.path {
                if !self.has_history(&lost) {
                    events.push(lost.clone());
                }
                let is_there = self.at(&version.path).is_some_and(|there| {
                    there.is_same(&version)
                        || there.vector.relation(&version.vector) == Relation::Newer
                });
                if is_there {
                    continue;
                }
            }
            if mutant == Mutant::ResolversCount {
                version.vector = version.vector.grown(who.1, Hlc(self.hlc_max + 1));
            }
            // An op writes a path once; what it would overwrite loses and is resolved later.
            match writes.iter().any(|write: &Version| write.path == version.path) {
                true => self.superseded.push((lost, due_ms)),
                false => writes.push(version),
            }
        }
        let is_something = !writes.is_empty() || !events.is_empty();
        if is_something {
            self.write(who, now_ms, writes, false, events, mutant);
        }
        is_something
    }

    /// Whether nothing of an op counts any more here, so that this device may have dropped it.
    fn is_dead(&self, op: &Op) -> bool {
        let holds = |version: &Version| {
            self.cells.get(&version.path).is_some_and(|(stamp, _)| *stamp == op.stamp)
        };
        op.events.is_empty() && !op.writes.iter().any(holds)
    }

    /// Takes the ops that a peer had dropped and `other` has: the repair after unequal digests.
    pub(crate) fn repair_from(&mut self, other: &Self, now_ms: u64, mutant: Mutant) {
        for (log, theirs) in &other.logs {
            let ours = self.logs.get(log).cloned().unwrap_or_default();
            for (at, (our, their)) in ours.iter().zip(theirs).enumerate() {
                if our.is_none() && their.is_some() {
                    self.logs.entry(*log).or_default()[at].clone_from(their);
                    self.merge(their.clone(), now_ms, mutant);
                }
            }
        }
    }

    /// Takes at most `limit` ops that `other` has. Dead ones that `drops` chooses are not sent.
    pub(crate) fn sync_from(
        &mut self,
        other: &Self,
        limit: usize,
        now_ms: u64,
        mutant: Mutant,
        mut drops: impl FnMut() -> bool,
    ) {
        let mut taken = 0;
        for (log, ops) in &other.logs {
            let known = self.logs.get(log).map_or(0, Vec::len);
            for op in ops.iter().skip(known) {
                if taken == limit {
                    return;
                }
                taken += 1;
                let sent = op.clone().filter(|op| !(drops() && other.is_dead(op)));
                self.take(sent, *log, now_ms, mutant);
            }
        }
    }
}
