//! The state machine of one journal stream with one peer, in both directions: inputs in, effects
//! out. It sends ops that the peer lacks and applies ops that we lack. It keeps no ops: it reads
//! them from the journal through effects.
//!
//! N1  No content of the journal is sent before the peer is judged a member, nor after it stops
//!     being one. We do not send our own [`Hello`] before that either.
//! N2  All ops held are sent in the order of their arrival, except those that the peer's clocks of
//!     this session cover. Sending an op does not cover the ops before it: one of them may still
//!     arrive here.
//! N3  A clock marked `drained` is read in the same snapshot that showed nothing left to send.
//! N4  A gap is jumped only on a drained clock, with everything before it on the stream applied,
//!     and never after an op was refused in this session. An op for which the disk had no space
//!     forbids it for its log until the op was received again.
//! N5  At most one batch of ops is under way in each direction, and one effect of each kind.
//! N6  Equal clocks with unequal digests end in sending everything again; a forked log that differs
//!     is sent again as a whole. Either happens at most once in [`REPAIR_PAUSE_MS`] per peer, and
//!     only after the peer has answered what was sent before.
//! N7  When the peer refuses an op, nothing more of that log is sent, and our clock says so, until
//!     the peer has the op or requests what it refused. If the peer refused for lack of space, this
//!     holds beyond the session, for [`WITHHOLD_MS`].
//! N8  The work that a small clock can cause is bounded in time: expensive reads and writes are put
//!     off and done together ([`incoming`]).
//!
//! The caller performs every [`Effect`] and hands its outcome back as the [`Input`] named with it.
//! Reading and writing the stream must not wait for each other. On an error of our own journal the
//! caller drops the session.

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

/// How long to wait for the peer's Hello after the stream opened.
pub const HELLO_WAIT_MS: u64 = 10_000;

/// How long acknowledgements, and ops passed on from other devices, wait to be sent together.
pub const COALESCE_MS: u64 = 200;

/// How often a clock is sent when nothing changed.
pub const CLOCK_EVERY_MS: u64 = 60_000;

/// The shortest time between two repairs (sending the same ops again) per peer.
pub const REPAIR_PAUSE_MS: u64 = 10 * 60 * 1000;

/// How long the ops of a log that a peer refused are withheld, unless it takes them or requests
/// them.
pub const WITHHOLD_MS: u64 = 60 * 60 * 1000;

/// The current time of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: for pauses, ms.
    pub mono_ms: u64,
    /// Since the Unix epoch: for stamps, ms.
    pub wall_ms: u64,
}

/// The parameters of a new session.
#[derive(Debug, Clone)]
pub struct Start {
    /// Our own Hello.
    pub hello: Hello,
    /// Whether the peer is a member by the facts known now. If not, it must send its Hello first.
    pub known: bool,
    /// The repairs and refusals of the last session with this peer.
    pub repaired: Repaired,
    /// A random number: spreads the times at which several devices pass ops on.
    pub jitter: u64,
}

/// When ops were last sent again to a peer, monotonic ms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repaired {
    /// When everything was sent again because the digests differed.
    pub everything_ms: Option<u64>,
    /// When all ops of a forked log were sent again because the peer did not hold the same ones.
    pub forked_ms: BTreeMap<LogId, u64>,
    /// Logs of which the peer refused an op.
    pub withheld: BTreeMap<LogId, Withheld>,
}

/// An op that a peer refused. Nothing of its log is sent until the peer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withheld {
    /// The op's number.
    pub seq: u64,
    /// When the peer refused the op, monotonic ms.
    pub since_ms: u64,
    /// The reason. Only [`RefuseCode::Quota`] is remembered beyond the session.
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

/// Whether the peer was judged a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judging {
    /// No judgement was requested.
    Not,
    /// A judgement is under way.
    Asked,
    /// A judgement is under way, and the facts have changed since it began.
    Stale,
    /// The peer is a member.
    Member,
}

/// An event that the session reacts to.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A message read from the stream while [`Session::reads`].
    Received(JournalMessage),
    /// The outcome of [`Effect::Judge`].
    Judged(Standing),
    /// The outcome of [`Effect::Send`]: the whole message was written to the stream.
    Sent,
    /// The outcome of [`Effect::ReadClock`].
    ClockRead(Clock),
    /// The outcome of [`Effect::TakeClock`].
    Compared(Compared),
    /// The outcome of [`Effect::Scan`].
    Scanned(Scanned),
    /// The outcome of [`Effect::Apply`]: the ops that were not applied.
    Applied(Vec<NotTaken>),
    /// The other outcome of [`Effect::Apply`]: an op has a wrong signature or is out of bounds.
    Forged,
    /// The journal was written to by anybody, this session's own batches and jumps included.
    Committed {
        /// Whether a writer of this device wrote it.
        own: bool,
        /// Whether membership facts changed.
        members: bool,
    },
    /// [`Session::deadline_ms`] has come.
    Tick,
}

/// An action for the caller to perform.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Apply the introduction if the peer is not a member without it, then judge:
    /// [`Input::Judged`].
    Judge {
        /// The introduction in the peer's Hello; empty when the peer is judged again.
        intro: Vec<SignedOp>,
    },
    /// Write to the stream: [`Input::Sent`].
    Send(JournalMessage),
    /// Read the whole clock: [`Input::ClockRead`].
    ReadClock,
    /// Jump gaps, record acknowledgements, then compare, each if its list is not empty:
    /// [`Input::Compared`].
    TakeClock {
        /// Gaps that may be jumped.
        jump: Vec<ClockEntry>,
        /// The peer's progress, for pruning.
        ack: Vec<ClockEntry>,
        /// Logs in which the peer may lack ops.
        compare: Vec<ClockEntry>,
        /// Whether `compare` holds all of the peer's logs, so that [`Compared::start`] is needed.
        whole: bool,
    },
    /// Read what the peer lacks: [`Input::Scanned`].
    Scan {
        /// The position to scan from; `None`: from the first op that `has` does not cover.
        cursor: Option<u64>,
        /// The peer's progress per log. It has nothing of logs that are not named.
        has: BTreeMap<LogId, u64>,
    },
    /// Verify the ops and take them in: [`Input::Applied`] or [`Input::Forged`].
    Apply(Vec<SignedOp>),
    /// Report this in the log and the status.
    Report(Report),
    /// Send `last` if the stream accepts it soon, then close the stream. No effect follows.
    End {
        /// The refusal to send to the peer.
        last: Option<Refuse>,
        /// The reason for our own log.
        why: End,
    },
}

/// A device's membership by the facts known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Standing {
    Member,
    Stranger,
    Removed,
}

/// The result of comparing the peer's clock with the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// The peer's progress in each compared log.
    pub has: Vec<(LogId, u64)>,
    /// Logs to send from the start, because the peer holds other ops than we do.
    pub all: Vec<LogId>,
    /// The position to scan from, if the clock was compared as a whole.
    pub start: u64,
    /// Logs that the peer withholds because we refused them before, and for which there is room
    /// now.
    pub welcome: Vec<LogId>,
    /// Logs whose gaps were not jumped because the disk is full.
    pub unjumped: Vec<LogId>,
}

/// A part of the journal's ops.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scanned {
    /// The ops in the order of their arrival.
    pub ops: Vec<(LogId, SignedOp)>,
    /// The position to continue from.
    pub cursor: u64,
    /// When nothing is left: the whole clock, read in the same snapshot.
    pub drained: Option<Clock>,
}

/// An op that was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTaken {
    /// The op's log.
    pub log: LogId,
    /// The op's number.
    pub seq: u64,
    /// The reason.
    pub why: Why,
}

/// Why an op was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The op's stamp is too far in the future until this wall-clock time.
    Future {
        /// ms since the Unix epoch.
        until_ms: u64,
    },
    /// No known device has added its author.
    Author,
    /// The op's author has used up its bytes or its number of logs.
    Quota,
    /// The disk of this device is full.
    Full,
    /// The peer is not a member.
    NotFromMember,
    /// The peer was removed.
    FromRemoved,
    /// This device is in another group now.
    OtherGroup,
}

/// Something for the log and the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The clocks are far apart: the peer's time minus ours, ms.
    Skewed(i64),
    /// Clocks are equal but digests differ: everything is sent again. A bug, or an unnoticed
    /// restore from a backup.
    Repairing,
    /// Forked logs differ between the two devices: all their ops are sent again.
    Matching,
    /// The peer refused something.
    Refused(Refuse),
    /// Ops of a log are not applied for now.
    Holding(NotTaken),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// We refused the peer: it is not a member, or its protocol version differs.
    #[error("refused: {0:?}")]
    Refused(RefuseCode),
    /// The peer refused us: it does not accept us as a member.
    #[error("the peer refuses us: {0:?}")]
    RefusedByPeer(RefuseCode),
    /// The peer broke the protocol in this way.
    #[error("{0}")]
    Protocol(&'static str),
    /// The peer sent no Hello in time.
    #[error("no word from the peer")]
    Silent,
    /// This device is in another group now.
    #[error("this device is in another group now")]
    LeftGroup,
}

impl Session {
    /// Starts a session on an open stream.
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

    /// Whether both had equal clocks and digests, and nothing to send, by their last messages.
    pub fn in_sync(&self) -> bool {
        let peer = self.incoming.peer();
        !self.ended && peer.drained && self.outgoing.equals(peer)
    }

    /// Whether the peer is a member and the session has not ended.
    pub fn is_open(&self) -> bool {
        !self.ended && self.judging == Judging::Member
    }

    /// Whether the peer was judged a member.
    pub fn is_member(&self) -> bool {
        self.judging == Judging::Member
    }

    /// Whether ops of this log are not applied for now.
    pub fn holds(&self, log: &LogId) -> bool {
        self.incoming.holds(log)
    }

    /// The repairs and refusals to pass on to the next session with this peer.
    pub fn repaired(&self) -> &Repaired {
        self.outgoing.repaired()
    }

    /// Handles an input and appends the effects to `out`.
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
