//! One journal stream with one peer, both ways: facts in, orders out. It sends what the peer lacks
//! and takes in what we lack; what is in the journal it asks for, and never keeps.
//!
//! N1  Nothing of the journal is sent before the peer is judged a member, and nothing more after it
//!     is not. Of ours it is told who we are ([`Hello`]) only then, too.
//! N2  Everything held is sent, in the order of its arrival, but what the peer's clocks of this very
//!     session cover. Having sent an op covers nothing: the one before it may still arrive here.
//! N3  A clock that says `drained` is of the snapshot in which nothing was left to send.
//! N4  A gap is jumped only on a drained clock, with everything before it on the stream taken in,
//!     and never once an op was refused in this session. One for which the disk had no room forbids
//!     it for its log until it has come again.
//! N5  One batch of ops at most is under way in each direction, and one order of each kind.
//! N6  Equal clocks with unequal digests end in sending everything again, and a forked log that does
//!     not match in sending all of that: at most once in [`REPAIR_PAUSE_MS`] per peer, and only when
//!     the peer has answered what was sent before.
//! N7  Of a log of which the peer refused an op nothing is sent, and our clock says so, until the peer
//!     has that op or asks for what it refused; over its sessions too where it was for want of room,
//!     for [`WITHHOLD_MS`].
//! N8  What a small clock can make us read and write is bounded by time: what is dear is put off and
//!     done together ([`incoming`]).
//!
//! The caller performs every [`Effect`] and hands its outcome back as the [`Input`] named with it.
//! Reading and writing the stream must not wait for each other. An error of our own journal ends the
//! session from outside: drop it.

use std::collections::BTreeMap;

use crate::core::ids::{GroupId, LogId};
use crate::core::journal::message::{
    Clock, ClockEntry, Hello, JournalMessage, Ops, Refuse, RefuseCode, VERSION,
};
use crate::core::journal::op::SignedOp;
use crate::core::limits::FUTURE_MS_MAX;

mod incoming;
mod outgoing;
mod standing;

use incoming::{HOLD_MS_MIN, Hold, Incoming};
use outgoing::Outgoing;

pub use standing::{Here, Need, need};

/// A peer that says nothing for so long after the stream began is not one.
pub const HELLO_WAIT_MS: u64 = 10_000;

/// Acknowledgements, and news of others, wait so long for company.
pub const COALESCE_MS: u64 = 200;

/// A clock is sent this often even when there is no news.
pub const CLOCK_EVERY_MS: u64 = 60_000;

/// The same is sent again at most this often per peer.
pub const REPAIR_PAUSE_MS: u64 = 10 * 60 * 1000;

/// Ops of a log that a peer refused are not sent again for so long, unless it takes them, or asks.
pub const WITHHOLD_MS: u64 = 60 * 60 * 1000;

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: for pauses.
    pub mono_ms: u64,
    /// Since the Unix epoch: for stamps.
    pub wall_ms: u64,
}

/// What a session starts from.
#[derive(Debug, Clone)]
pub struct Start {
    /// What we say of ourselves.
    pub hello: Hello,
    /// Whether the peer is a member by what we know now. One that is not must speak first.
    pub known: bool,
    /// What was sent again to this peer, of its last session.
    pub repaired: Repaired,
    /// Random: spreads what is passed on.
    pub jitter: u64,
}

/// When something was last sent again to a peer, monotonic ms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Everything, for unequal digests.
    pub everything_ms: Option<u64>,
    /// All of a forked log, as the peer did not hold the same of it.
    pub forked_ms: BTreeMap<LogId, u64>,
    /// Logs of which the peer refused an op.
    pub withheld: BTreeMap<LogId, Withheld>,
}

/// An op that a peer refused. Nothing of its log is sent until the peer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withheld {
    /// Its number.
    pub seq: u64,
    /// When it was refused, monotonic ms.
    pub since_ms: u64,
    /// Why. Only [`RefuseCode::Quota`] holds over sessions.
    pub code: RefuseCode,
}

/// The journal stream with one peer.
#[derive(Debug)]
pub struct Session {
    group: GroupId,
    hello: Option<Hello>,
    peer_hello: bool,
    judging: Judging,
    began_ms: u64,
    wall_ms: u64,
    outgoing: Outgoing,
    incoming: Incoming,
    ended: bool,
}

/// Whether the peer may hear and say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judging {
    /// It has not been asked for.
    Not,
    /// It was asked for.
    Asked,
    /// It was asked for, and facts have changed since.
    Stale,
    /// A member.
    Member,
}

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A frame, read while [`Session::reads`].
    Received(JournalMessage),
    /// Of [`Effect::Judge`].
    Judged(Standing),
    /// Of [`Effect::Send`]: the stream took all of it.
    Sent,
    /// Of [`Effect::ReadClock`].
    ClockRead(Clock),
    /// Of [`Effect::TakeClock`].
    Compared(Compared),
    /// Of [`Effect::Scan`].
    Scanned(Scanned),
    /// Of [`Effect::Apply`]: what was not taken.
    Applied(Vec<NotTaken>),
    /// Of [`Effect::Apply`] too: an op is not what its author signed, or out of bounds.
    Forged,
    /// The journal was written to, by whomever: this session's own batches and jumps too.
    Committed {
        /// By a writer of this device.
        own: bool,
        /// Facts about members changed.
        members: bool,
    },
    /// [`Session::deadline_ms`] has come.
    Tick,
}

/// An order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Take in the introduction if the peer is not a member without it, then judge: [`Input::Judged`].
    Judge {
        /// From the peer's Hello; empty when it is judged again.
        intro: Vec<SignedOp>,
    },
    /// Write to the stream: [`Input::Sent`].
    Send(JournalMessage),
    /// Read the whole clock: [`Input::ClockRead`].
    ReadClock,
    /// Jump, acknowledge, and then compare, each when it is not empty: [`Input::Compared`].
    TakeClock {
        /// Gaps that may be jumped.
        jump: Vec<ClockEntry>,
        /// How far the peer is, for pruning.
        ack: Vec<ClockEntry>,
        /// Where it may lack something.
        compare: Vec<ClockEntry>,
        /// These are all of its entries: [`Compared::start`] is asked for.
        whole: bool,
    },
    /// Read what the peer lacks: [`Input::Scanned`].
    Scan {
        /// From there; `None`: from the first op that `has` does not cover.
        cursor: Option<u64>,
        /// What the peer has of each log; nothing of those not named.
        has: BTreeMap<LogId, u64>,
    },
    /// Verify the ops and take them in: [`Input::Applied`] or [`Input::Forged`].
    Apply(Vec<SignedOp>),
    /// For the log and the status.
    Report(Report),
    /// Send this if the stream takes it soon, and close it. Nothing follows.
    End {
        /// What to tell the peer.
        last: Option<Refuse>,
        /// The reason.
        why: End,
    },
}

/// How a device stands by the facts known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Standing {
    Member,
    Stranger,
    Removed,
}

/// What a peer lacks by its clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// What it has of each log asked about.
    pub has: Vec<(LogId, u64)>,
    /// Logs of which it needs everything: its ops are not ours.
    pub all: Vec<LogId>,
    /// Where to scan from, if all of its logs were asked about.
    pub start: u64,
    /// Logs that the peer withholds, as we refused them before, and that there is room for now.
    pub welcome: Vec<LogId>,
    /// Logs whose gaps were not jumped, as the disk is full.
    pub unjumped: Vec<LogId>,
}

/// A stretch of the journal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scanned {
    /// In order of arrival.
    pub ops: Vec<(LogId, SignedOp)>,
    /// Scan on from here.
    pub cursor: u64,
    /// Nothing is left: the whole clock of the same snapshot.
    pub drained: Option<Clock>,
}

/// An op that was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTaken {
    /// Its log.
    pub log: LogId,
    /// Its number.
    pub seq: u64,
    /// The reason.
    pub why: Why,
}

/// Why an op was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Too far in the future, until this wall-clock time.
    Future {
        /// ms since the Unix epoch.
        until_ms: u64,
    },
    /// Nobody known has added its author.
    Author,
    /// Its author's space or number of logs is used up.
    Quota,
    /// The disk of this device is full.
    Full,
    /// The peer is no member.
    NotFromMember,
    /// The peer was removed.
    FromRemoved,
    /// We are in another group now.
    OtherGroup,
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The clocks are far apart: the peer's minus ours, ms.
    Skewed(i64),
    /// Unequal digests at equal clocks: all is sent again. A bug, or a backup restored unnoticed.
    Repairing,
    /// Forked logs that are not the same here and there: all of them is sent again.
    Matching,
    /// The peer did not take something.
    Refused(Refuse),
    /// Ops of a log are not taken in for now.
    Holding(NotTaken),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The peer is none of ours, or speaks another version.
    #[error("refused: {0:?}")]
    Refused(RefuseCode),
    /// We are none of the peer's.
    #[error("the peer refuses us: {0:?}")]
    RefusedByPeer(RefuseCode),
    /// The peer broke the protocol: so.
    #[error("{0}")]
    Protocol(&'static str),
    /// The peer never said who it is.
    #[error("no word from the peer")]
    Silent,
    /// We are in another group now.
    #[error("this device is in another group now")]
    LeftGroup,
}

impl Session {
    /// A session whose stream is open.
    pub fn start(start: Start, now: Now, out: &mut Vec<Effect>) -> Self {
        let mut session = Self {
            group: start.hello.group,
            hello: Some(start.hello),
            peer_hello: false,
            judging: Judging::Not,
            began_ms: now.mono_ms,
            wall_ms: now.wall_ms,
            outgoing: Outgoing::new(start.jitter, start.repaired, now.mono_ms),
            incoming: Incoming::default(),
            ended: false,
        };
        if start.known {
            session.say_hello(out);
        }
        session
    }

    /// Whether the next frame may be read from the stream. While not, the peer waits.
    pub fn reads(&self) -> bool {
        !self.ended && self.judging_allows_reading() && !self.incoming.busy()
    }

    /// When to call with [`Input::Tick`] if nothing happens before, monotonic ms.
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.ended {
            return None;
        }
        if !self.peer_hello {
            return Some(self.began_ms + HELLO_WAIT_MS);
        }
        if self.judging != Judging::Member {
            return None;
        }
        let hold_ms = self.incoming.hold_ends_ms();
        let hold_ms = hold_ms.map(|at| self.outgoing.now_ms() + at.saturating_sub(self.wall_ms));
        [self.outgoing.due_ms(), self.incoming.due_ms(), hold_ms].into_iter().flatten().min()
    }

    /// Whether the two had the same clock and digest, and nothing to send, when they last told.
    pub fn in_sync(&self) -> bool {
        let peer = self.incoming.peer();
        !self.ended && peer.drained && self.outgoing.equals(peer)
    }

    /// Whether the peer is a member, and the two tell each other what they have.
    pub fn is_open(&self) -> bool {
        !self.ended && self.judging == Judging::Member
    }

    /// Whether the peer was judged a member.
    pub fn is_member(&self) -> bool {
        self.judging == Judging::Member
    }

    /// Whether ops of a log are not taken in for now.
    pub fn holds(&self, log: &LogId) -> bool {
        self.incoming.holds(log)
    }

    /// What was sent again: for the peer's next session.
    pub fn repaired(&self) -> &Repaired {
        self.outgoing.repaired()
    }

    /// Takes a fact in. Orders are appended to `out`.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        if self.ended {
            return;
        }
        self.wall_ms = now.wall_ms;
        self.outgoing.set_now(now.mono_ms);
        match input {
            Input::Received(message) => self.on_message(now, message, out),
            Input::Judged(standing) => self.on_judged(standing, out),
            Input::Sent => self.outgoing.on_sent(),
            Input::ClockRead(clock) => self.outgoing.on_clock(clock),
            Input::Compared(compared) => {
                let whole = self.incoming.on_compared(&compared.unjumped, now.mono_ms);
                if compared.welcome.iter().any(|log| !self.incoming.holds(log)) {
                    self.outgoing.ask_again();
                }
                self.outgoing.on_compared(compared, whole);
            }
            Input::Scanned(scanned) => {
                let again = self.outgoing.on_scanned(scanned, self.incoming.peer());
                out.extend(again.map(Effect::Report));
            }
            Input::Applied(not_taken) => self.on_applied(now, &not_taken, out),
            Input::Forged => self.end(End::Protocol("an op its author did not sign so"), out),
            Input::Committed { own, members } => {
                self.outgoing.on_committed(own);
                if members {
                    self.on_members(out);
                }
            }
            Input::Tick => {
                if !self.peer_hello && now.mono_ms >= self.began_ms + HELLO_WAIT_MS {
                    self.end(End::Silent, out);
                }
            }
        }
        if !self.ended && self.judging == Judging::Member {
            if self.incoming.release_due(now.wall_ms) {
                self.outgoing.ask_again();
            }
            out.extend(self.incoming.overdue(now.mono_ms));
            self.outgoing.pump(out);
        }
    }

    fn on_message(&mut self, now: Now, message: JournalMessage, out: &mut Vec<Effect>) {
        if !self.reads() {
            return self.end(End::Protocol("a frame that was not to be read"), out);
        }
        match message {
            JournalMessage::Hello(_) if self.peer_hello => {
                self.end(End::Protocol("a second Hello"), out);
            }
            JournalMessage::Hello(hello) => self.on_hello(now, hello, out),
            JournalMessage::Refuse(refuse) => self.on_refuse(refuse, out),
            JournalMessage::Clock(_) | JournalMessage::Ops(_) if !self.peer_hello => {
                self.end(End::Protocol("something before Hello"), out);
            }
            JournalMessage::Clock(clock) => {
                self.outgoing.on_peer_clock(&clock);
                match self.incoming.on_clock(clock, now.mono_ms) {
                    Ok(effect) => out.extend(effect),
                    Err(what) => self.end(End::Protocol(what), out),
                }
            }
            JournalMessage::Ops(ops) => self.on_ops(ops, out),
        }
    }

    fn on_hello(&mut self, now: Now, hello: Hello, out: &mut Vec<Effect>) {
        self.peer_hello = true;
        if hello.version != VERSION {
            return self.end(End::Refused(RefuseCode::Version), out);
        }
        if hello.group != self.group {
            return self.end(End::Refused(RefuseCode::Group), out);
        }
        let ours_ms = i64::try_from(now.wall_ms).unwrap_or(i64::MAX);
        let skew_ms = hello.now_ms.saturating_sub(ours_ms);
        if skew_ms.unsigned_abs() > FUTURE_MS_MAX {
            out.push(Effect::Report(Report::Skewed(skew_ms)));
            self.outgoing.refuse(refusal(RefuseCode::ClockSkew, None));
        }
        self.judging = Judging::Asked;
        out.push(Effect::Judge { intro: hello.intro });
    }

    fn on_judged(&mut self, standing: Standing, out: &mut Vec<Effect>) {
        if self.judging == Judging::Stale {
            self.judging = Judging::Asked;
            return out.push(Effect::Judge { intro: Vec::new() });
        }
        match standing {
            Standing::Member => {
                self.judging = Judging::Member;
                self.say_hello(out);
            }
            Standing::Stranger => self.end(End::Refused(RefuseCode::NotMember), out),
            Standing::Removed => self.end(End::Refused(RefuseCode::Removed), out),
        }
    }

    fn on_members(&mut self, out: &mut Vec<Effect>) {
        match self.judging {
            Judging::Not => {}
            Judging::Asked | Judging::Stale => self.judging = Judging::Stale,
            Judging::Member => {
                self.judging = Judging::Asked;
                out.push(Effect::Judge { intro: Vec::new() });
            }
        }
        if self.incoming.release_authors() {
            self.outgoing.ask_again();
        }
    }

    fn on_refuse(&mut self, refuse: Refuse, out: &mut Vec<Effect>) {
        use RefuseCode::{
            Author, ClockSkew, Full, Future, Group, NotMember, Other, Quota, Removed, Version,
        };
        match refuse.code {
            NotMember | Removed | Group | Version => {
                self.end(End::RefusedByPeer(refuse.code), out);
            }
            ClockSkew | Future | Quota | Author | Full | Other(_) => {
                if let Some((log, seq)) = refuse.op {
                    self.outgoing.withhold(log, seq, refuse.code);
                }
                out.push(Effect::Report(Report::Refused(refuse)));
            }
        }
    }

    fn on_ops(&mut self, ops: Ops, out: &mut Vec<Effect>) {
        let ops = self.incoming.on_ops(ops, &self.group);
        match ops {
            Ok(ops) if ops.is_empty() => {}
            Ok(ops) => out.push(Effect::Apply(ops)),
            Err(what) => self.end(End::Protocol(what), out),
        }
    }

    fn on_applied(&mut self, now: Now, not_taken: &[NotTaken], out: &mut Vec<Effect>) {
        let full = not_taken.iter().filter(|op| op.why == Why::Full).map(|op| op.log);
        self.outgoing.remember_received(self.incoming.on_applied(&full.collect()));
        for op in not_taken {
            let hold_ends_ms = now.wall_ms.saturating_add(HOLD_MS_MIN);
            let (code, held) = match op.why {
                Why::Future { until_ms } => {
                    let hold = Hold::UntilMs(until_ms.max(hold_ends_ms));
                    (RefuseCode::Future, self.incoming.hold(op.log, hold))
                }
                Why::Author => (RefuseCode::Author, self.incoming.hold(op.log, Hold::Author)),
                Why::Quota => {
                    let hold = Hold::UntilMs(now.wall_ms.saturating_add(WITHHOLD_MS));
                    (RefuseCode::Quota, self.incoming.hold(op.log, hold))
                }
                Why::Full => (RefuseCode::Full, self.incoming.hold_for_space(op.log, hold_ends_ms)),
                Why::NotFromMember => return self.end(End::Refused(RefuseCode::NotMember), out),
                Why::FromRemoved => return self.end(End::Refused(RefuseCode::Removed), out),
                Why::OtherGroup => return self.end(End::LeftGroup, out),
            };
            match held {
                Ok(true) => {
                    self.outgoing.refuse(refusal(code, Some((op.log, op.seq))));
                    out.push(Effect::Report(Report::Holding(*op)));
                }
                Ok(false) => {}
                Err(what) => return self.end(End::Protocol(what), out),
            }
        }
    }

    fn judging_allows_reading(&self) -> bool {
        match self.judging {
            Judging::Not => true,
            Judging::Asked | Judging::Stale => false,
            Judging::Member => true,
        }
    }

    fn say_hello(&mut self, out: &mut Vec<Effect>) {
        if let Some(hello) = self.hello.take() {
            self.outgoing.sending();
            out.push(Effect::Send(JournalMessage::Hello(hello)));
        }
    }

    fn end(&mut self, why: End, out: &mut Vec<Effect>) {
        self.ended = true;
        let last = match why {
            End::Refused(code) => Some(refusal(code, None)),
            End::RefusedByPeer(_) | End::Protocol(_) | End::Silent | End::LeftGroup => None,
        };
        out.push(Effect::End { last, why });
    }
}

fn refusal(code: RefuseCode, op: Option<(LogId, u64)>) -> Refuse {
    let text = match code {
        RefuseCode::NotMember => "you are not a member of this group",
        RefuseCode::Removed => "you were removed from this group",
        RefuseCode::Group => "this is another group",
        RefuseCode::ClockSkew => "our clocks are too far apart: set yours, or I mine",
        RefuseCode::Future => "an op is too far in the future",
        RefuseCode::Quota => "the space or the number of logs of an author is used up",
        RefuseCode::Version => "this is another version of the journal's protocol",
        RefuseCode::Author => "nobody I know has added the author of an op",
        RefuseCode::Full => "my disk is full",
        RefuseCode::Other(_) => "refused",
    };
    Refuse { code, text: text.into(), op }
}

#[cfg(test)]
mod tests;
