//! A thief has the key of a removed device and adds an accomplice. Both send any facts to members
//! that do not know of the removal.

use can_sync::core::journal::members::{FactKind, MemberFact, Verdicts};
use can_sync::core::journal::op::MemberChange;
use can_sync::wire::journal::encode_body;

use super::*;

/// The stolen device, and the ops signed with its key.
pub(super) struct Stolen {
    thief: usize,
    remover: usize,
    accomplice: Identity,
    /// The thief removed the remover.
    answered: bool,
    /// The ops of the thief and of its accomplice.
    said: [Vec<VerifiedOp>; 2],
}

impl World {
    /// Marks a removed device as stolen, if its remover is as close to the founder.
    pub(super) fn steal(&mut self, thief: usize, remover: usize) {
        let verdicts = self.nodes[remover].reader().verdicts().unwrap();
        let distance = |n: usize| verdicts.chain(&self.nodes[n].identity.node_id).len();
        if self.faults.thief && self.stolen.is_none() && distance(remover) <= distance(thief) {
            let accomplice = Identity::from_bytes(&self.rng.bytes());
            let said = [Vec::new(), Vec::new()];
            let answered = false;
            self.stolen = Some(Stolen { thief, remover, accomplice, answered, said });
        }
    }

    /// The thief writes one more fact and sends all of its facts to a device.
    pub(super) fn commit_crime(&mut self, to: usize) {
        let Some(mut stolen) = self.stolen.take() else { return };
        if self.is_up(to) && to != stolen.thief {
            let who = self.rng.index(2);
            let fact = self.crime(&mut stolen, who);
            let op = self.sign_crime(&stolen, who, fact, to);
            stolen.said[who].push(op);
            let from = self.nodes[stolen.thief].identity.node_id;
            let before = self.nodes[to].reader().verdicts().unwrap();
            let ops: Vec<VerifiedOp> = stolen.said.iter().flatten().cloned().collect();
            let wall_ms = self.wall_ms(to);
            let received = self.nodes[to].journal().receive(&from, &ops, wall_ms);
            if let Some(received) = self.unless_full(to, received) {
                if !before.member(&from) && received.applied > 0 {
                    self.blame(|| format!("I8: device {to} takes ops from the thief"));
                }
                self.took(to, &ops, &received.refused);
                let after = self.nodes[to].reader().verdicts().unwrap();
                let deceived = before.members().ne(after.members());
                self.count(Happened::SleeperDeceived, deceived.into());
                if !self.crashes_now(to) {
                    self.broadcast(to, false, received.members_changed);
                }
            }
        }
        self.stolen = Some(stolen);
    }

    fn crime(&mut self, stolen: &mut Stolen, who: usize) -> MemberChange {
        if stolen.said[0].is_empty() || self.rng.chance(20) {
            let device = match who {
                0 => stolen.accomplice.node_id,
                _ => NodeId(self.rng.bytes()),
            };
            return MemberChange::Add { device, name: "friend".into() };
        }
        // The checks tell the members by the founder's facts, so the founder must stay one.
        let others = (0..self.nodes.len()).filter(|n| who == 1 || *n != stolen.remover || *n > 0);
        let others: Vec<usize> = others.collect();
        let of = others[self.rng.index(others.len())];
        if (who, of) == (0, stolen.remover) {
            stolen.answered = true;
            self.count(Happened::RemoverAnswered, 1);
        }
        let device = self.nodes[of].identity.node_id;
        let mut fence: Vec<OpHash> = self.ops.keys().copied().collect();
        let percent = [0, 50, 100][self.rng.index(3)];
        fence.retain(|_| self.rng.chance(percent));
        fence.truncate(200);
        let keep = if who == 1 { vec![stolen.accomplice.node_id] } else { Vec::new() };
        MemberChange::Remove { device, keep, fence: Some(fence) }
    }

    fn sign_crime(
        &mut self,
        stolen: &Stolen,
        who: usize,
        fact: MemberChange,
        to: usize,
    ) -> VerifiedOp {
        let identity = [&self.nodes[stolen.thief].identity, &stolen.accomplice][who].clone();
        let last = stolen.said[who].last();
        let seq = last.map_or(1, |op| op.body().seq + 1);
        let hlc = Hlc::from_ms(self.wall_ms(to) - HOUR_MS);
        let changes = vec![Change::Member(fact)];
        let body =
            encode_body(&Body { seq, hlc, prev: last.map(|op| op.hash()), changes }).unwrap();
        let log = LogInfo { author: identity.node_id, nonce: [0xc1; 16] };
        let id = log.id(&self.group);
        let sig = identity.sign(&signed_bytes(&id, &body));
        let op = verify(&self.group, SignedOp { log, body, sig }).unwrap();
        let info = OpInfo { log: id, author: identity.node_id, body: op.body().clone() };
        self.ops.insert(op.hash(), info);
        op
    }

    /// Checks that the thief's facts after its removal make no device a member or stop one from
    /// being one. Only its removal of the remover counts: it puts out the remover, and the devices
    /// that the remover alone added.
    pub(super) fn check_thief(&mut self, n: usize) {
        let Some(stolen) = &self.stolen else { return };
        let crimes: BTreeSet<OpHash> = stolen.said.iter().flatten().map(VerifiedOp::hash).collect();
        let mut facts: Vec<MemberFact> = self.nodes[n].memory.state.facts.iter().cloned().collect();
        if self.is(Mutant::NoFence) {
            for fact in &mut facts {
                let is_crime = crimes.contains(&fact.op);
                if let FactKind::Remove(removal) = &mut fact.what
                    && !is_crime
                {
                    removal.fence = None;
                }
            }
        }
        let all = Verdicts::of(&facts);
        facts.retain(|fact| !crimes.contains(&fact.op));
        let honest = Verdicts::of(&facts);
        let thief = self.nodes[stolen.thief].identity.node_id;
        let remover = self.nodes[stolen.remover].identity.node_id;
        let is_answer = |id: &NodeId| stolen.answered && honest.chain(id).contains(&remover);
        let differs =
            |id: &NodeId| *id != thief && !is_answer(id) && all.member(id) != honest.member(id);
        if !honest.member(&thief)
            && let Some(id) = all.members().chain(honest.members()).find(|id| differs(id))
        {
            let what = format!("the thief decides whether {} is a member", id.short());
            self.blame(|| what);
        }
    }
}
