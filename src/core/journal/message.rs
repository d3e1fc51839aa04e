//! What two devices say on the journal's stream. `proto/journal.proto` has the rules.

use crate::core::ids::{GroupId, LogId};
use crate::core::journal::op::SignedOp;
use crate::core::journal::set_hash::SetDigest;

/// The version of the journal's protocol. Devices of other versions keep only their assets the same.
pub const VERSION: u32 = 2;

/// The features of the journal's protocol that this version knows, one bit each. What came after
/// [`VERSION`] may be said only to a peer that has its bit, and must then be understood.
pub const FEATURES: u64 = 0;

/// The first half of an op's hash; zero where there is no op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head(pub [u8; 16]);

/// A message of the journal's stream.
#[derive(Debug, Clone, PartialEq)]
pub enum JournalMessage {
    /// Who speaks.
    Hello(Hello),
    /// Where the sender stands.
    Clock(Clock),
    /// Ops.
    Ops(Ops),
    /// Why something was not taken.
    Refuse(Refuse),
}

/// First, once, both ways.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// See [`VERSION`].
    pub version: u32,
    /// The sender's group.
    pub group: GroupId,
    /// The sender's wall clock, ms since the Unix epoch.
    pub now_ms: i64,
    /// How it came to be a member: the founder's op first.
    pub intro: Vec<SignedOp>,
    /// See [`FEATURES`].
    pub features: u64,
}

/// Where a device stands in every log; of later ones in a session, in those that changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clock {
    /// Per log, each once.
    pub entries: Vec<ClockEntry>,
    /// Nothing is left to send.
    pub drained: bool,
    /// What was refused may be admitted now.
    pub restart: bool,
    /// The digest of the whole state; `None` when the sender has none.
    pub digest: Option<StateDigest>,
}

/// The digest of a state, as its sender can read the ops that make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateDigest {
    /// See [`crate::core::journal::op::KINDS`].
    pub kinds: u32,
    /// Over all cells, facts, and events of streams kept for ever.
    pub sum: SetDigest,
}

/// Where a device stands in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockEntry {
    /// Which log.
    pub log: LogId,
    /// Its state is at least what all ops up to this one make.
    pub seq: u64,
    /// The start of the hash of the op at `seq`; zero for 0.
    pub head: Head,
    /// The digest of the live ops above `seq`, or of all of the log when forked.
    pub above: SetDigest,
    /// Two ops of one number are known.
    pub forked: bool,
    /// The receiver refused ops of this log, and they are not sent: no gap may be jumped.
    pub withheld: bool,
}

/// Ops, in the order in which they arrived at the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ops {
    /// At most [`crate::core::limits::OPS_PER_FRAME_MAX`].
    pub ops: Vec<SignedOp>,
    /// More will follow at once.
    pub has_more: bool,
}

/// Why something was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The reason, as a code.
    pub code: RefuseCode,
    /// For people.
    pub text: String,
    /// The op it is about.
    pub op: Option<(LogId, u64)>,
}

/// See `proto/journal.proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RefuseCode {
    NotMember,
    Removed,
    Group,
    ClockSkew,
    Future,
    Quota,
    Version,
    Author,
    Full,
    /// Of a later version.
    Other(i32),
}

impl StateDigest {
    /// Whether two states are the same, as far as can be told: who reads other kinds of changes makes
    /// another state of the same ops.
    pub fn agree(ours: Option<Self>, theirs: Option<Self>) -> bool {
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => ours.kinds != theirs.kinds || ours.sum == theirs.sum,
            (None, _) | (_, None) => true,
        }
    }
}

impl Head {
    /// The first half of a 32-byte hash.
    pub fn of(hash: &[u8; 32]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        Self(half)
    }

    /// Whether there is no op.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}
