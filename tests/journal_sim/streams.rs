//! Streams between devices: frames, effects, cuts, and lies.

use super::*;

impl World {
    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        let between = |link: &&[Side; 2]| {
            let ends = [link[0].node, link[1].node];
            ends == [a, b] || ends == [b, a]
        };
        let crowded = self.links.iter().filter(between).count() > 1;
        if a == b || !self.is_up(a) || !self.is_up(b) || crowded {
            return;
        }
        let sides = [self.side(a, b), self.side(b, a)];
        self.links.push(sides);
    }

    fn side(&mut self, node: usize, peer: usize) -> Side {
        let now = self.now(node);
        let jitter = self.rng.next();
        let me = self.nodes[node].identity.node_id;
        let reader = self.nodes[node].reader();
        let hello = Hello {
            version: VERSION,
            group: self.group,
            now_ms: now.wall_ms as i64,
            intro: reader.intro(&me).unwrap(),
            features: FEATURES,
        };
        let known = self.standing(node, peer) == Standing::Member;
        let repaired = self.nodes[node].repaired.get(&peer).cloned().unwrap_or_default();
        let mut pending = Vec::new();
        let start = Start { hello, known, repaired, jitter };
        let session = Session::start(start, now, &mut pending);
        Side { node, session, inbox: VecDeque::new(), pending, sent: BTreeMap::new() }
    }

    pub(super) fn feed(&mut self, link: usize, side: usize, input: Input) {
        let node = self.links[link][side].node;
        let now = self.now(node);
        let mut out = Vec::new();
        self.links[link][side].session.handle(now, input, &mut out);
        let peer = self.links[link][1 - side].node;
        for effect in out {
            match effect {
                Effect::Report(report @ (Report::Repairing | Report::Matching)) => {
                    self.count(Happened::Repair, (report == Report::Repairing).into());
                    let repaired = self.links[link][side].session.repaired().clone();
                    self.nodes[node].repaired.insert(peer, repaired);
                }
                Effect::Report(Report::Holding(op)) => match op.why {
                    Why::Quota => self.count(Happened::OverQuota, 1),
                    _ => self.count(Happened::HeldBack, 1),
                },
                Effect::Report(_) => {}
                order => self.links[link][side].pending.push(order),
            }
        }
        let orders = self.links[link][side].pending.len();
        if orders > ORDERS_MAX {
            self.blame(|| format!("I10: {orders} orders are outstanding"));
        }
    }

    pub(super) fn broadcast(&mut self, n: usize, own: bool, members: bool) {
        for link in 0..self.links.len() {
            for side in 0..2 {
                if self.links[link][side].node == n {
                    self.feed(link, side, Input::Committed { own, members });
                }
            }
        }
    }

    /// Delivers one frame or performs one effect; returns whether there was any.
    pub(super) fn turn(&mut self) -> bool {
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
                let mut message = self.meddle_with_message(node, message);
                if self.is_liar(node) && self.rng.chance(30) {
                    self.lie(&mut message);
                }
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
                let also = match self.mutant {
                    Some(Mutant::SentCountsAsHad) => self.links[link][side].sent.clone(),
                    Some(Mutant::ClockOfAnEarlierSession) => self.remember(node, peer, &has),
                    _ => BTreeMap::new(),
                };
                for (log, seq) in also {
                    let seen = has.entry(log).or_default();
                    *seen = (*seen).max(seq);
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
            Effect::TakeClock { jump, ack, compare, whole } => {
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
                self.count(Happened::Jump, moved.len());
                self.check(node);
                if self.crashes_now(node) {
                    return;
                }
                if !moved.is_empty() {
                    self.broadcast(node, false, false);
                }
                let compared = match compare.is_empty() {
                    true => Compared::default(),
                    false => self.nodes[node].reader().compare(&compare, whole).unwrap(),
                };
                self.feed(link, side, Input::Compared(compared));
            }
            Effect::Judge { intro } => {
                let known = self.standing(node, peer);
                if known != Standing::Member && !intro.is_empty() {
                    let intro = self.verify_all(&intro);
                    let wall_ms = self.wall_ms(node);
                    let taken = self.nodes[node].journal().introduce(&peer_id, &intro, wall_ms);
                    let Some(received) = self.unless_full(node, taken) else {
                        return self.cut(link);
                    };
                    if received.applied > 0 {
                        self.took(node, &intro, &received.refused);
                    }
                    if self.crashes_now(node) {
                        return;
                    }
                    self.broadcast(node, false, received.members_changed);
                }
                let standing = self.standing(node, peer);
                match standing {
                    Standing::Member => {}
                    Standing::Removed => self.count(Happened::LockedOut, 1),
                    Standing::Stranger => {
                        let facts = &self.nodes[node].memory.state;
                        let fell = facts
                            .is_member(&peer_id.0, Rules { keep_ignored: true, ..Rules::REAL });
                        self.count(Happened::FellWithItsInviter, fell.into());
                    }
                }
                self.feed(link, side, Input::Judged(standing));
            }
            Effect::Apply(ops) => self.receive(link, side, &ops),
            Effect::Report(_) => {}
            Effect::End { last, why } => {
                if let End::Protocol(what) = why
                    && !self.is_liar(peer)
                {
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
        let mut verified = self.verify_all(ops);
        let mut not_taken = Vec::new();
        if self.is(Mutant::RemovedAuthorsAreRefused) {
            let facts = self.nodes[node].memory.state.clone();
            verified.retain(|op| {
                let removed = facts.is_removed(&op.signed().log.author.0, Rules::REAL);
                let (log, seq) = (op.log(), op.body().seq);
                not_taken.extend(removed.then_some(NotTaken { log, seq, why: Why::Author }));
                !removed
            });
        }
        let peer_id = self.nodes[peer].identity.node_id;
        let is_member = self.nodes[node].memory.state.is_member(&peer_id.0, Rules::REAL);
        let wall_ms = self.wall_ms(node);
        let from = match self.standing(node, peer) {
            // Makes the journal accept it as well.
            Standing::Member if !is_member => self.nodes[node].identity.node_id,
            _ => peer_id,
        };
        let then_ms = if self.is(Mutant::FutureIsAdmitted) { wall_ms + DAY_MS } else { wall_ms };
        let received = self.nodes[node].journal().receive(&from, &verified, then_ms);
        let Some(received) = self.unless_full(node, received) else {
            return self.cut(link);
        };
        if !is_member && received.applied > 0 {
            self.blame(|| format!("I8: device {node} took ops from {peer}, which is no member"));
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
        self.count(Happened::Forked, received.forked.len());
        self.count(Happened::Rotated, received.rotated.into());
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
        not_taken.extend(received.refused.iter().map(NotTaken::from));
        match self.mutant {
            Some(Mutant::JumpAfterARefusal) => not_taken.clear(),
            Some(Mutant::HeldBackForGood) => {
                not_taken.iter_mut().for_each(|op| op.why = Why::Future { until_ms: u64::MAX });
            }
            _ => {}
        }
        self.feed(link, side, Input::Applied(not_taken));
    }

    /// The standing of a peer at a device.
    fn standing(&self, node: usize, peer: usize) -> Standing {
        let peer_id = self.nodes[peer].identity.node_id;
        let rules = match self.mutant {
            Some(Mutant::RemovedMayStillConnect) => return Standing::Member,
            Some(Mutant::KeepIgnored) => Rules { keep_ignored: true, ..Rules::REAL },
            Some(Mutant::KeepForgotten) => Rules { keep_forgotten: true, ..Rules::REAL },
            Some(Mutant::RemovalUndoneByAnAdd) => Rules { add_undoes: true, ..Rules::REAL },
            _ => return self.nodes[node].reader().standing(&peer_id).unwrap(),
        };
        let facts = &self.nodes[node].memory.state;
        match (facts.is_removed(&peer_id.0, rules), facts.is_member(&peer_id.0, rules)) {
            (true, _) => Standing::Removed,
            (false, true) => Standing::Member,
            (false, false) => Standing::Stranger,
        }
    }

    /// Records what a peer had by its clocks of this session and all before.
    fn remember(
        &mut self,
        node: usize,
        peer: usize,
        has: &BTreeMap<LogId, u64>,
    ) -> BTreeMap<LogId, u64> {
        let had = self.nodes[node].had.entry(peer).or_default();
        for (log, seq) in has {
            let most = had.entry(*log).or_default();
            *most = (*most).max(*seq);
        }
        had.clone()
    }

    fn meddle_with_message(&mut self, node: usize, mut message: JournalMessage) -> JournalMessage {
        if let JournalMessage::Clock(clock) = &mut message {
            let whole = self.nodes[node].reader().clock().unwrap();
            let gaps = whole.entries.iter().any(|entry| !entry.above.is_empty());
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

    /// Changes a message into any lie that the protocol can express.
    fn lie(&mut self, message: &mut JournalMessage) {
        match message {
            JournalMessage::Clock(clock) => match self.rng.below(4) {
                0 => clock.drained = true,
                1 => clock.restart = true,
                2 => clock.digest = Some(StateDigest { kinds: KINDS, sum: self.rng.set() }),
                _ => {
                    for entry in &mut clock.entries {
                        match self.rng.below(6) {
                            0 => entry.seq += 1 + self.rng.below(4),
                            1 => entry.seq = OP_SEQ_MAX,
                            2 => entry.head = self.rng.head(),
                            3 => entry.above = self.rng.set(),
                            4 => entry.forked = true,
                            _ => {}
                        }
                    }
                }
            },
            JournalMessage::Ops(ops) => {
                let kept = self.rng.index(ops.ops.len());
                ops.ops.truncate(kept);
            }
            JournalMessage::Hello(_) | JournalMessage::Refuse(_) => return,
        }
        self.deceived = true;
        self.count(Happened::Lie, 1);
    }

    /// Cuts every stream.
    pub(crate) fn disconnect(&mut self) {
        self.links.clear();
    }

    /// Runs until a device holds an op that its clock does not cover.
    pub(crate) fn until_there_is_a_gap(&mut self, n: usize) {
        let has_gap = |world: &Self| {
            let clock = world.nodes[n].reader().clock().unwrap();
            clock.entries.iter().any(|entry| !entry.above.is_empty())
        };
        for _ in 0..SETTLE_TURNS {
            if has_gap(self) {
                return;
            }
            if !self.turn() {
                self.wait(1);
            }
        }
        panic!("device {n} has no gap");
    }

    pub(super) fn cut_any(&mut self) {
        if !self.links.is_empty() {
            let link = self.rng.index(self.links.len());
            self.cut(link);
        }
    }

    pub(super) fn cut(&mut self, link: usize) {
        self.count(Happened::Cut, 1);
        self.links.remove(link);
    }
}
