//! The invariants, checked after every commit and at the end.

use super::*;
use crate::model::Event;

impl World {
    /// Whether two devices hold the same state.
    pub(crate) fn alike(&self, a: usize, b: usize) -> bool {
        self.nodes[a].memory.state == self.nodes[b].memory.state
    }

    /// The honest members by the facts of the first device.
    fn members(&self) -> Vec<usize> {
        let facts = &self.nodes[0].memory.state;
        let is_member = |n: &usize| {
            let id = self.nodes[*n].identity.node_id.0;
            self.is_up(*n) && !self.is_liar(*n) && facts.is_member(&id, Rules::REAL)
        };
        (0..self.nodes.len()).filter(is_member).collect()
    }

    /// How members differ from each other and from the expected state.
    pub(super) fn disagreement(&self) -> Option<String> {
        let members = self.members();
        let mut expected = State::default();
        for n in &members {
            for hash in &self.nodes[*n].memory.committed {
                let op = &self.ops[hash];
                expected.apply(&op.author, op.log.0, hash, &op.body);
            }
        }
        // Devices may differ in what is left of a stream with retention.
        let spoken = expected.spoken_streams();
        let expected = expected.without(&spoken);
        let clock_of = |n: usize| self.nodes[n].reader().clock().unwrap();
        let first = clock_of(members[0]);
        for n in members {
            let state = self.nodes[n].memory.state.clone().without(&spoken);
            if let Some(what) = state.difference(&expected) {
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

    pub(super) fn check_the_end(&mut self) {
        if self.wrong.is_some() {
            return;
        }
        let members = self.members();
        self.check_thief(members[0]);
        let spoken = self.nodes[members[0]].memory.state.spoken_streams();
        let live = self.live_but(members[0], &spoken);
        for n in members {
            self.check(n);
            if self.live_but(n, &spoken) != live {
                self.blame(|| format!("I6: other ops are alive at device {n}"));
            }
            self.check_verdicts(n);
            let found = self.nodes[n].journal().reader().unwrap().fsck().unwrap();
            if !found.is_empty() && self.mutant.is_none() {
                self.blame(|| format!("I5: fsck finds at device {n}: {found:?}"));
            }
        }
    }

    /// The live ops, without those that only trimmed events may hold.
    fn live_but(&self, n: usize, spoken: &BTreeSet<String>) -> BTreeSet<[u8; 32]> {
        let mut live = self.nodes[n].tables().live();
        live.retain(|hash| {
            let changes = &self.ops[&OpHash(*hash)].body.changes;
            let trimmed = |change: &Change| match change {
                Change::Event(event) => spoken.contains(&event.stream),
                _ => false,
            };
            !changes.iter().any(trimmed)
        });
        live
    }

    /// Checks that the real verdicts equal the model's.
    fn check_verdicts(&mut self, n: usize) {
        let verdicts = self.nodes[n].reader().verdicts().unwrap();
        for of in 0..self.nodes.len() {
            let id = self.nodes[of].identity.node_id;
            let facts = &self.nodes[n].memory.state;
            let expected =
                (facts.is_member(&id.0, Rules::REAL), facts.is_removed(&id.0, Rules::REAL));
            if (verdicts.member(&id), verdicts.removed(&id)) != expected {
                self.blame(|| format!("device {n} judges device {of} otherwise"));
            }
        }
    }

    /// A device wrote ops of its own, or joined: reads them from its tables.
    pub(super) fn committed(&mut self, n: usize) {
        let author_here = self.nodes[n].identity.node_id;
        for (arr, author, nonce, bytes) in
            self.nodes[n].tables().ops_after(self.nodes[n].memory.arr)
        {
            let author = NodeId(author);
            let log = LogInfo { author, nonce }.id(&self.group);
            let (hash, body) = (op_hash(&log, &bytes), decode_body(&bytes).unwrap());
            if author == author_here
                && self.numbers.get(&(log, body.seq)).is_none_or(|h| *h != hash)
            {
                self.count(Happened::Op, 1);
                self.check_numbers(n, log, hash, &body);
            }
            let memory = &mut self.nodes[n].memory;
            memory.hlc_max = memory.hlc_max.max(body.hlc);
            memory.state.apply(&author, log.0, &hash, &body);
            memory.committed.insert(hash);
            memory.arr = arr;
            self.ops.insert(hash, OpInfo { log, author, body });
        }
        self.check(n);
    }

    /// Checks I4 and I7, and that a device that has seen a value can overwrite it.
    pub(super) fn check_numbers(&mut self, n: usize, log: LogId, hash: OpHash, body: &Body) {
        let honest = !self.nodes[n].silently_restored;
        if body.hlc <= self.nodes[n].memory.hlc_max {
            self.blame(|| format!("S1: device {n} wrote in a past it had seen"));
        }
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

    /// A device received ops and did not refuse them.
    pub(super) fn took(
        &mut self,
        n: usize,
        ops: &[VerifiedOp],
        refused: &[can_sync::state::journal::Refused],
    ) {
        let refused: BTreeSet<_> = refused.iter().map(|op| (op.log, op.seq)).collect();
        let memory = &mut self.nodes[n].memory;
        for op in ops {
            if !refused.contains(&(op.log(), op.body().seq)) {
                let author = op.signed().log.author;
                memory.state.apply(&author, op.log().0, &op.hash(), op.body());
                memory.committed.insert(op.hash());
                memory.hlc_max = memory.hlc_max.max(op.body().hlc);
            }
        }
        let arr = self.nodes[n].tables().last_arr();
        self.nodes[n].memory.arr = arr;
        match self.mutant {
            Some(Mutant::HeadPruned) => {
                self.nodes[n].tables().meddle("DELETE FROM ops WHERE refs = 0");
            }
            Some(Mutant::StampsForgetWhatWasSeen) => {
                self.nodes[n]
                    .tables()
                    .meddle("UPDATE meta SET v = zeroblob(8) WHERE k = 'hlc_max'");
            }
            _ => {}
        }
        self.check(n);
    }

    /// Checks I1 and I3, and that the tables equal the result of the ops received.
    pub(super) fn check(&mut self, n: usize) {
        if self.wrong.is_some() || !self.nodes[n].memory.joined {
            return;
        }
        let found = self.nodes[n].tables().state();
        let spoken = found.spoken_streams();
        self.accept_trimmed(n, &found, &spoken);
        if let Some(what) = found.difference(&self.nodes[n].memory.state) {
            return self.blame(|| format!("I5: device {n} has not what it took in: {what}"));
        }
        let clock = positions(&self.nodes[n].reader().clock().unwrap());
        let fell = self.nodes[n].memory.clock.iter().find(|(log, seq)| clock.get(log) < Some(seq));
        if let Some((log, seq)) = fell {
            let what = format!("I3: device {n}: the clock of {log} fell from {seq}");
            return self.blame(|| what);
        }
        if !self.forked && !self.deceived {
            let found = found.without(&spoken);
            let mut joined = found.clone();
            for (hash, op) in &self.ops {
                let covered = clock.get(&op.log).is_some_and(|seq| op.body.seq <= *seq);
                let has = self.nodes[n].memory.committed.contains(hash);
                if covered && !has && joined.apply(&op.author, op.log.0, hash, &op.body) {
                    joined = joined.without(&spoken);
                    if joined == found {
                        continue;
                    }
                    let what = format!("op {} of {}", op.body.seq, op.log);
                    return self.blame(|| format!("I1: device {n} claims {what} and lacks it"));
                }
            }
        }
        self.nodes[n].memory.clock = clock;
    }

    /// Checks that each of the events that a prune dropped was old enough.
    pub(super) fn trimmed(&mut self, n: usize, wall_ms: u64, events: usize) {
        let found = self.nodes[n].tables().state().events;
        let state = &self.nodes[n].memory.state;
        let gone: Vec<_> = state.events.difference(&found).collect();
        let old = |event: &Event| {
            let days = state.keep_days(&event.0);
            days.is_some_and(|days| Hlc(event.3).ms() + days * DAY_MS < wall_ms)
        };
        let wrong = gone.len() != events || !gone.iter().all(|event| old(event));
        let gone = format!("{gone:?}");
        self.nodes[n].memory.state.events = found;
        if wrong {
            self.blame(|| format!("device {n} trimmed {events} events, of which are gone: {gone}"));
        }
    }

    /// An event that arrives again in a stream with retention may be stored or not.
    fn accept_trimmed(&mut self, n: usize, found: &State, spoken: &BTreeSet<String>) {
        let here = |event: &&Event| spoken.contains(&event.0) && !found.events.contains(*event);
        let memory = &mut self.nodes[n].memory;
        let gone: Vec<Event> = memory.state.events.iter().filter(here).cloned().collect();
        for event in gone {
            memory.state.events.remove(&event);
        }
    }

    /// Verifies ops by the real check, each once.
    pub(super) fn verify_all(&mut self, ops: &[SignedOp]) -> Vec<VerifiedOp> {
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

/// The progress in a clock.
pub(super) fn positions(clock: &Clock) -> BTreeMap<LogId, u64> {
    clock.entries.iter().filter(|entry| entry.seq > 0).map(|e| (e.log, e.seq)).collect()
}
