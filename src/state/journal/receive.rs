//! Receiving from peers: ops, and claims about their progress.
//!
//! R1  An op is admitted when it comes from a member, the group trusted its author at some time,
//!     its stamp is not too far in the future, and there is room, on the disk too
//!     ([`super::budget`]). Its signature was checked before.
//! R2  A refused op leaves no trace, and is requested again in a later session. Therefore no gap is
//!     jumped in a session in which an op was refused.
//! R3  No author uses up the room of another: the bounds on bytes, logs and facts are each author's
//!     own, and only an author of whom nothing is stored yet may find that there are too many
//!     authors. What an author has beyond its bounds, and what devices that it added there write,
//!     may differ between devices, because it depends on what came first. Nothing else does (see
//!     [`crate::core::journal::members`] for who is a member).
//! R4  An op that this device signed for the log that it writes, and that is unknown here, proves
//!     that the end of that log was forgotten (J3). The log is closed in the same transaction, and
//!     the next op begins another.

use rusqlite::{OptionalExtension, params};

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::journal::message::ClockEntry;
use crate::core::journal::op::{Change, MemberChange, group_id};
use crate::core::limits::{AUTHORS_MAX, FACTS_PER_AUTHOR_MAX, LOGS_MAX, LOGS_PER_AUTHOR_MAX};

use super::apply::Applied;
use super::rows::tells_facts;
use super::schema::{int, row_u64};
use super::tx::Tx;
use super::verify::VerifiedOp;
use super::{Journal, Received, Refused, RefusedWhy, Result};

impl Journal {
    /// T2: receives a batch over a connection with `from`, at most
    /// [`crate::core::limits::OPS_PER_FRAME_MAX`] ops. What is returned is durable.
    pub fn receive(&mut self, from: &NodeId, ops: &[VerifiedOp], now_ms: u64) -> Result<Received> {
        let is_disk_low = self.is_disk_low();
        let mut tx = self.begin(now_ms)?;
        tx.is_disk_low = is_disk_low;
        // Judged once for the whole batch: a later op in it may show that a fact against the member
        // is void.
        let unwelcome = tx.why_unwelcome(from)?;
        let received = tx.receive(ops, |_, _| Ok(unwelcome))?;
        tx.commit()?;
        Ok(received)
    }

    /// Receives the membership facts that a device presents which is not a member here: the adds that
    /// lead to it, and the removals that void facts against it. They are stored only if they make
    /// some device a member, the presenter or another, so that a stranger cannot fill the journal.
    /// The presenter may stay out: a thief that it removed has removed it in return.
    pub fn introduce(
        &mut self,
        presenter: &NodeId,
        intro: &[VerifiedOp],
        now_ms: u64,
    ) -> Result<Received> {
        let mut tx = self.begin(now_ms)?;
        let before = tx.verdicts()?.clone();
        if before.member(presenter) {
            return Ok(Received::default());
        }
        let received = tx.receive(intro, Tx::why_no_introduction)?;
        if !tx.verdicts()?.restores_members(&before) {
            return Ok(Received { refused: received.refused, ..Received::default() });
        }
        tx.commit()?;
        Ok(received)
    }

    /// Receives the removals of this device that `from`, a member, presents: ops that only add and
    /// remove devices, by authors of the group. They count by the same rules as all facts.
    pub fn take_removal(
        &mut self,
        from: &NodeId,
        ops: &[VerifiedOp],
        now_ms: u64,
    ) -> Result<Received> {
        let mut tx = self.begin(now_ms)?;
        // The sender's membership is checked once for the whole batch, as in [`Self::receive`].
        let unwelcome = tx.why_unwelcome(from)?;
        let received = tx.receive(ops, |_, op| match says_who_is_in(op) {
            true => Ok(unwelcome),
            false => Ok(Some(RefusedWhy::NotFromMember)),
        })?;
        tx.commit()?;
        Ok(received)
    }

    /// T3: jumps to the clock of a drained peer, up to ops that we store. Returns the logs whose
    /// clocks moved. Never call it after an op was refused in the session.
    pub fn jump(&mut self, entries: &[ClockEntry]) -> Result<Vec<LogId>> {
        let mut tx = self.begin(0)?;
        let moved = tx.jump(entries)?;
        tx.commit()?;
        Ok(moved)
    }

    /// Records the progress that a peer claims; used for pruning only.
    pub fn ack(&mut self, peer: &NodeId, entries: &[ClockEntry]) -> Result<()> {
        let mut tx = self.begin(0)?;
        tx.ack(peer, entries)?;
        tx.commit()
    }

    /// [`Self::jump`] and [`Self::ack`] in one transaction.
    pub fn take_clock(
        &mut self,
        peer: &NodeId,
        jump: &[ClockEntry],
        ack: &[ClockEntry],
    ) -> Result<()> {
        let mut tx = self.begin(0)?;
        tx.jump(jump)?;
        tx.ack(peer, ack)?;
        tx.commit()
    }
}

impl Tx<'_> {
    fn why_unwelcome(&mut self, from: &NodeId) -> Result<Option<RefusedWhy>> {
        let verdicts = self.verdicts()?;
        Ok(match (verdicts.removed(from), verdicts.member(from)) {
            (true, _) => Some(RefusedWhy::FromRemoved),
            (false, true) => None,
            (false, false) => Some(RefusedWhy::NotFromMember),
        })
    }

    /// Refuses an op unless it contains only membership facts, which count whoever brings them.
    pub(super) fn why_no_introduction(&mut self, op: &VerifiedOp) -> Result<Option<RefusedWhy>> {
        let is_fact = |change: &Change| matches!(change, Change::Member(_));
        let introduces = op.body().changes.iter().all(is_fact);
        Ok((!introduces).then_some(RefusedWhy::NotFromMember))
    }

    /// Receives ops, each unless `why_unwelcome` refuses it at its turn or it is stored already.
    pub(super) fn receive(
        &mut self,
        ops: &[VerifiedOp],
        why_unwelcome: impl Fn(&mut Self, &VerifiedOp) -> Result<Option<RefusedWhy>>,
    ) -> Result<Received> {
        let mut received = Received::default();
        let mut forgotten = false;
        for op in ops {
            let (log, author, seq) = (op.log(), op.signed().log.author, op.body().seq);
            let known = self.log_num(&log)?;
            let (held, was_forked, clock) = match known {
                Some(num) => {
                    let row = self.log(num)?;
                    let (forked, clock) = (row.forked, row.seq);
                    (self.hashes_at(num, seq)?, forked, clock)
                }
                None => (Vec::new(), false, 0),
            };
            if held.contains(&op.hash()) {
                received.known += 1;
                continue;
            }
            let ours = self.open_log == Some(log);
            // The group is checked first: the sender of another group's op need not be known in
            // this group.
            let why = if self.group != Some(*op.group()) {
                Some(RefusedWhy::OtherGroup)
            } else if let Some(why) = why_unwelcome(self, op)? {
                Some(why)
            } else {
                self.why_refused(op, known)?
            };
            if let Some(why) = why {
                let unwelcome = matches!(why, RefusedWhy::NotFromMember | RefusedWhy::FromRemoved);
                forgotten |= ours && !unwelcome && seq > clock;
                received.refused.push(Refused { log, author, seq, why });
                continue;
            }
            match self.apply(op)? {
                Applied::New(_) => {
                    received.applied += 1;
                    forgotten |= ours;
                }
                Applied::Known | Applied::Dead => received.known += 1,
            }
            let num = self.log_num(&log)?;
            let is_forked = num.map(|num| self.log(num).map(|row| row.forked)).transpose()?;
            if is_forked == Some(true) && !was_forked {
                forgotten |= ours;
                received.forked.push(log);
            }
        }
        if forgotten {
            self.close_log();
            tracing::warn!(
                "a peer has ops of this device that this device lost: it writes to a new log from now \
                 on"
            );
            received.rotated = true;
        }
        received.members_changed = self.news.members;
        Ok(received)
    }

    fn jump(&mut self, entries: &[ClockEntry]) -> Result<Vec<LogId>> {
        let mut moved = Vec::new();
        for entry in entries {
            let Some(log) = self.log_num(&entry.log)? else {
                continue;
            };
            let from = self.log(log)?.seq;
            // A claim moves our clock only to an op that its author signed and that we store. A
            // liar cannot push it further.
            let Some((seq, head)) = self.top_held(log, from, entry.seq)? else {
                continue;
            };
            self.advance(log, seq, head)?;
            self.absorb(log)?;
            moved.push(entry.log);
        }
        Ok(moved)
    }

    fn ack(&mut self, peer: &NodeId, entries: &[ClockEntry]) -> Result<()> {
        let dev = self.device(peer)?;
        for entry in entries {
            let Some(log) = self.log_num(&entry.log)? else {
                continue;
            };
            self.db
                .prepare_cached(
                    "INSERT INTO acks (dev, log, seq) VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET seq = excluded.seq WHERE seq != excluded.seq",
                )?
                .execute(params![dev, log, int(entry.seq)])?;
        }
        Ok(())
    }

    /// Why an op with a right signature, from a welcome source, is refused.
    fn why_refused(&mut self, op: &VerifiedOp, known: Option<i64>) -> Result<Option<RefusedWhy>> {
        let author = op.signed().log.author;
        let founds = op.body().changes.iter().any(|change| {
            matches!(change, Change::Member(MemberChange::Genesis { nonce, .. })
                if group_id(&author, nonce) == *op.group())
        });
        if !founds && !self.verdicts()?.author_ok(&author) {
            return Ok(Some(RefusedWhy::UnknownAuthor));
        }
        if let Some(until_ms) = op.body().hlc.held_back_until_ms(self.now_ms) {
            return Ok(Some(RefusedWhy::Future { until_ms }));
        }
        if self.is_disk_low {
            return Ok(Some(RefusedWhy::Full));
        }
        let bytes = (op.signed().body.len() + op.signed().sig.len()) as u64;
        let room = (known.is_some() || self.has_log_room(&author)?)
            && (!tells_facts(op)
                || self.facts_told(&author)? <= FACTS_PER_AUTHOR_MAX
                || self.is_named(&author, &op.hash())?)
            && self.has_room(&author, bytes)?;
        Ok((!room).then_some(RefusedWhy::Quota))
    }

    /// Whether there is room for another log of an author. Only members take up places: a device
    /// that was removed, or lost membership with its introducer, leaves its place to others. This
    /// device has a place before it has a log.
    pub(super) fn has_log_room(&mut self, author: &NodeId) -> Result<bool> {
        let dev = self.device(author)?;
        let (all, own) = self.db.query_row(
            "SELECT count(*), count(*) FILTER (WHERE dev = ?1) FROM logs",
            [dev],
            |row| Ok((row_u64(row, 0)?, row_u64(row, 1)?)),
        )?;
        if own >= LOGS_PER_AUTHOR_MAX as u64 || all >= LOGS_MAX as u64 {
            return Ok(false);
        }
        Ok(own > 0 || self.places_taken(author)? < AUTHORS_MAX)
    }

    /// The number of members that write except `author`, with this device, which may write any
    /// time.
    fn places_taken(&mut self, author: &NodeId) -> Result<usize> {
        let me = self.me();
        let authors: Vec<NodeId> = {
            let mut query = self
                .db
                .prepare_cached("SELECT id FROM devices WHERE dev IN (SELECT dev FROM logs)")?;
            let rows = query.query_map([], |row| row.get(0).map(NodeId))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let verdicts = self.verdicts()?;
        let others = authors.iter().filter(|other| **other != me && *other != author);
        let others = others.filter(|other| verdicts.member(other)).count();
        Ok(others + usize::from(*author != me))
    }

    /// The number of known facts by an author. The op that exceeds [`FACTS_PER_AUTHOR_MAX`] is
    /// still admitted, so that all devices learn that there are too many.
    pub(super) fn facts_told(&mut self, author: &NodeId) -> Result<usize> {
        Ok(self.ledger()?.told(author))
    }

    /// The highest stored op above `from` and up to `to`.
    pub(super) fn top_held(&self, log: i64, from: u64, to: u64) -> Result<Option<(u64, OpHash)>> {
        let mut query = self.db.prepare_cached(
            "SELECT seq, hash FROM ops WHERE log = ?1 AND seq > ?2 AND seq <= ?3
             ORDER BY seq DESC, hash LIMIT 1",
        )?;
        let top = query.query_row(params![log, int(from), int(to)], |row| {
            Ok((row_u64(row, 0)?, OpHash(row.get(1)?)))
        });
        Ok(top.optional()?)
    }
}

/// Whether an op only adds and removes devices.
fn says_who_is_in(op: &VerifiedOp) -> bool {
    let is_such = |change: &Change| {
        matches!(change, Change::Member(MemberChange::Add { .. } | MemberChange::Remove { .. }))
    };
    op.body().changes.iter().all(is_such)
}
