//! Actions of devices and their users: write, add, remove, lose, prune, rebase.

use can_sync::core::pairing::TicketSecret;

use super::checks::positions;
use super::*;

impl World {
    pub(crate) fn write(&mut self, n: usize) {
        let drafts: Vec<_> = (0..1 + self.rng.below(3)).map(|_| draft(&mut self.rng)).collect();
        self.write_drafts(n, &drafts);
    }

    pub(super) fn write_drafts(&mut self, n: usize, drafts: &[Draft]) {
        if !self.is_up(n) {
            return;
        }
        let wall_ms = self.wall_ms(n);
        let written = self.nodes[n].journal().write(drafts, wall_ms);
        let Some(written) = self.unless_full(n, written) else { return };
        for error in written.into_iter().filter_map(Result::err) {
            match error {
                DraftError::Quota { .. } if self.faults.quotas => {}
                DraftError::NotMember if self.faults.removal => {}
                error => self.blame(|| format!("device {n} cannot write: {error}")),
            }
        }
        self.committed(n);
        if !self.crashes_now(n) {
            self.broadcast(n, true, false);
        }
    }

    /// Writes the same field of this record this many times: all ops but the last are dead.
    pub(crate) fn overwrite(&mut self, n: usize, id: u8, times: u64) {
        for _ in 0..times {
            let same = vec![overwrite(&mut self.rng, id)];
            self.write_drafts(n, &same);
        }
    }

    pub(super) fn speak_of_retention(&mut self, n: usize) {
        if self.faults.retention {
            let draft = keep_days(&mut self.rng);
            self.write_drafts(n, &[draft]);
        }
    }

    /// Writes an op of which this version can read one half, in a log of its own.
    pub(super) fn write_later_kind(&mut self, n: usize) {
        if !self.faults.later_kinds || !self.is_up(n) {
            return;
        }
        let node = &self.nodes[n];
        let wall_ms = self.wall_ms(n);
        let last = node.later;
        let hlc = node.memory.hlc_max.next(wall_ms).unwrap();
        let seq = last.map_or(1, |(seq, _)| seq + 1);
        let body = later_kind(&mut self.rng, seq, hlc, last.map(|(_, hash)| hash));
        let node = &self.nodes[n];
        let mut nonce = [0x1a; 16];
        nonce[..8].copy_from_slice(&node.generation.to_be_bytes());
        let log = LogInfo { author: node.identity.node_id, nonce };
        let id = log.id(&self.group);
        let hash = op_hash(&id, &body);
        let sig = node.identity.sign(&signed_bytes(&id, &body));
        let ops = self.verify_all(&[SignedOp { log, body, sig }]);
        let me = self.nodes[n].identity.node_id;
        let received = self.nodes[n].journal().receive(&me, &ops, wall_ms);
        let Some(received) = self.unless_full(n, received) else { return };
        self.count(Happened::LaterKind, received.applied);
        if received.applied > 0 {
            self.nodes[n].later = Some((seq, hash));
            self.committed(n);
            self.broadcast(n, true, false);
        }
    }

    pub(crate) fn join(&mut self, n: usize, inviter: usize) {
        if self.nodes[n].memory.joined || self.nodes[n].gone || !self.is_up(inviter) {
            return;
        }
        let secret = self.rng.bytes()[..16].try_into().unwrap();
        if !self.invite(inviter, &secret) {
            return;
        }
        match self.rng.below(12) {
            0 => return self.come_late(n, inviter, &secret),
            1 => self.guess(inviter),
            2 => self.replay(n, inviter, &secret),
            _ => {}
        }
        let joiner = self.nodes[n].identity.node_id;
        let proof = pair_proof(&secret, &self.nodes[inviter].identity.node_id, &joiner);
        let wall_ms = self.wall_ms(inviter);
        let redeemed = self.nodes[inviter].journal().redeem(&joiner, &proof, "late", wall_ms);
        let Some(Ok(admitted)) = self.unless_full(inviter, redeemed) else {
            return;
        };
        self.committed(inviter);
        // Signed now, it is applied later, when the inviter may have seen greater stamps.
        let add = self.verify_all(std::slice::from_ref(&admitted.add)).remove(0);
        self.check_numbers(inviter, add.log(), add.hash(), add.body());
        if self.is(Mutant::TokenWorksTwice) {
            self.invite(inviter, &secret);
        }
        let stranger = Identity::from_bytes(&self.rng.bytes()).node_id;
        let proof = pair_proof(&secret, &self.nodes[inviter].identity.node_id, &stranger);
        self.must_not_enter(inviter, &stranger, &proof, wall_ms, "a ticket let two devices in");
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
                // The inviter gets the confirmation, or later an introduction by a stranger.
                if !crashed && self.rng.below(4) > 0 {
                    self.admit(inviter, &joiner, &add);
                }
            }
            // Held back by a wrong clock: it will be tried again.
            Err(JournalError::BadIntro | JournalError::ClockBehind)
                if self.faults.skew || self.faults.far_clocks => {}
            Err(error) => self.blame(|| format!("device {n} cannot join: {error}")),
        }
    }

    fn admit(&mut self, inviter: usize, joiner: &NodeId, add: &VerifiedOp) {
        let wall_ms = self.wall_ms(inviter);
        let admitted = self.nodes[inviter].journal().admit(joiner, add, wall_ms);
        if self.unless_full(inviter, admitted).is_some() {
            self.committed(inviter);
            self.broadcast(inviter, true, true);
        }
    }

    /// Makes a ticket with this secret if the inviter may and can.
    fn invite(&mut self, inviter: usize, secret: &TicketSecret) -> bool {
        // A device that was always alone does this by itself before it makes a ticket.
        self.rebase(inviter);
        let wall_ms = self.wall_ms(inviter);
        let journal = self.nodes[inviter].journal();
        let made =
            journal.create_token_for(&ticket_key(secret), false, 1, wall_ms, wall_ms + TICKET_MS);
        self.unless_full(inviter, made).is_some()
    }

    /// The joiner comes after the ticket has expired.
    fn come_late(&mut self, n: usize, inviter: usize, secret: &TicketSecret) {
        let late_ms = self.wall_ms(inviter) + TICKET_MS;
        if self.is(Mutant::TokenNeverExpires) {
            self.nodes[inviter].tables().meddle("DELETE FROM tokens");
            let journal = self.nodes[inviter].journal();
            let expires_ms = late_ms + TICKET_MS;
            journal.create_token_for(&ticket_key(secret), false, 1, late_ms, expires_ms).unwrap();
        }
        let joiner = self.nodes[n].identity.node_id;
        let proof = pair_proof(secret, &self.nodes[inviter].identity.node_id, &joiner);
        self.must_not_enter(inviter, &joiner, &proof, late_ms, "an expired ticket let a device in");
    }

    /// An attacker tries secrets, which neither helps it nor harms the ticket.
    fn guess(&mut self, inviter: usize) {
        let wall_ms = self.wall_ms(inviter);
        for _ in 0..GUESSES {
            let thief = Identity::from_bytes(&self.rng.bytes()).node_id;
            let proof = self.rng.bytes();
            self.must_not_enter(inviter, &thief, &proof, wall_ms, "a guess let a device in");
        }
    }

    /// A thief uses the proof of the joiner.
    fn replay(&mut self, n: usize, inviter: usize, secret: &TicketSecret) {
        let (wall_ms, inviter_id) = (self.wall_ms(inviter), self.nodes[inviter].identity.node_id);
        let thief = Identity::from_bytes(&self.rng.bytes()).node_id;
        let proven = match self.is(Mutant::ProofFitsAnybody) {
            true => thief,
            false => self.nodes[n].identity.node_id,
        };
        let proof = pair_proof(secret, &inviter_id, &proven);
        self.must_not_enter(inviter, &thief, &proof, wall_ms, "a proof let another device in");
    }

    fn must_not_enter(
        &mut self,
        inviter: usize,
        who: &NodeId,
        proof: &[u8; 32],
        wall_ms: u64,
        what: &str,
    ) {
        let redeemed = self.nodes[inviter].journal().redeem(who, proof, "thief", wall_ms);
        let Some(redeemed) = self.unless_full(inviter, redeemed) else { return };
        match redeemed {
            Ok(_) => {
                self.committed(inviter);
                self.blame(|| what.to_owned());
            }
            Err(error) => {
                let kinds = [TokenError::NoToken, TokenError::WrongProof, TokenError::Expired];
                self.count(Happened::TicketMisused, kinds.contains(&error).into());
            }
        }
    }

    pub(super) fn remove(&mut self, n: usize) {
        let other = 1 + self.rng.index(self.nodes.len() - 1);
        if !self.faults.removal || n == other || !self.is_up(n) || !self.is_up(other) {
            return;
        }
        let id = self.nodes[other].identity.node_id;
        let wall_ms = self.wall_ms(n);
        if self.nodes[n].memory.state.is_removed(&id.0, Rules::REAL) {
            // A user tries to add a removed device again with its old key.
            let added = self.nodes[n].journal().add(&id, "again", wall_ms);
            if self.unless_full(n, added).is_none() {
                return;
            }
        } else if self.removals < if self.faults.thief { 1 } else { REMOVALS_MAX } {
            let removed = self.nodes[n].journal().remove(&id, wall_ms);
            let Some(removed) = self.unless_full(n, removed) else { return };
            self.removals += usize::from(removed.is_some());
            if removed.is_some() {
                self.steal(other, n);
            }
        }
        self.committed(n);
        self.broadcast(n, true, true);
    }

    /// Loses a device for good.
    pub(crate) fn lose(&mut self, n: usize) {
        if n > 0 && !self.nodes[n].gone {
            self.nodes[n].gone = true;
            self.nodes[n].open = None;
            self.unplug(n);
        }
    }

    /// Prunes as if this many days had passed since everything arrived.
    pub(crate) fn prune(&mut self, n: usize, days: u64) {
        if !self.is_up(n) {
            return;
        }
        let wall_ms = self.wall_ms(n) + days * DAY_MS;
        let before = self.nodes[n].reader().clock().unwrap();
        let pruned = self.nodes[n].journal().prune(wall_ms, 1_000);
        let Some(pruned) = self.unless_full(n, pruned) else {
            return;
        };
        self.count(Happened::Pruned, pruned.ops);
        self.count(Happened::Trimmed, pruned.events);
        self.trimmed(n, wall_ms, pruned.events);
        if self.is(Mutant::ClearsForgotten) {
            let tables = self.nodes[n].tables();
            tables.meddle("DELETE FROM cells WHERE field = '' AND elem = 'x'");
        }
        let after = self.nodes[n].reader().clock().unwrap();
        let standing = |clock: Clock| (positions(&clock), clock.digest);
        let same = match pruned.events {
            0 => before == after,
            // The ops of trimmed events are no longer live, which changes the sums above the
            // clocks.
            _ => standing(before) == standing(after),
        };
        if !same {
            self.blame(|| format!("I6: pruning at device {n} changed its clock or digest"));
        }
        self.check(n);
        self.crashes_now(n);
    }

    /// Rewrites ops that a wrong clock has stamped.
    pub(super) fn rebase(&mut self, n: usize) {
        if !self.is_up(n) {
            return;
        }
        let wall_ms = self.wall_ms(n);
        let rebased = match self.nodes[n].journal().rebase(wall_ms) {
            Err(JournalError::Unreadable) if self.faults.later_kinds => return,
            rebased => rebased,
        };
        let Some(Rebased::Done { ops, .. }) = self.unless_full(n, rebased) else { return };
        self.count(Happened::Rebased, ops);
        let me = self.nodes[n].identity.node_id;
        let doomed = |op: &OpInfo| op.author == me && op.body.hlc.ms() > wall_ms + FUTURE_MS_MAX;
        let node = &mut self.nodes[n];
        node.memory.committed.retain(|hash| !doomed(&self.ops[hash]));
        node.memory.state = State::default();
        node.memory.hlc_max = Hlc::default();
        for hash in &node.memory.committed {
            let op = &self.ops[hash];
            node.memory.state.apply(&op.author, op.log.0, hash, &op.body);
            node.memory.hlc_max = node.memory.hlc_max.max(op.body.hlc);
        }
        // The only case in which clocks go back: no other device knows the ops of these logs.
        node.memory
            .clock
            .retain(|log, _| self.ops.values().all(|op| op.log != *log || op.author != me));
        self.committed(n);
        self.broadcast(n, true, true);
    }

    /// Uses up an author's space at a device, or makes room again.
    pub(super) fn squeeze(&mut self, n: usize) {
        if !self.faults.quotas || !self.is_up(n) {
            return;
        }
        let of = self.rng.index(self.nodes.len());
        let author = self.nodes[of].identity.node_id;
        let bytes = self.rng.chance(50).then(|| self.rng.below(8_000).cast_signed());
        self.nodes[n].set_quota(&author, bytes);
    }
}

/// The validity of a ticket.
const TICKET_MS: u64 = 600_000;

/// The number of wrong proofs in a row.
const GUESSES: usize = 5;

/// The most removals in a world; the device removed first may have written the second one.
const REMOVALS_MAX: usize = 2;
