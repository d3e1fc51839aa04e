//! The messages of the journal's stream between two devices. `proto/journal.proto` has the rules.

use crate::core::ids::{GroupId, LogId};
use crate::core::journal::op::SignedOp;
use crate::core::journal::set_hash::SetDigest;

/// The version of the journal's protocol. Devices with different versions synchronise assets only.
pub const VERSION: u32 = 2;

/// The features of the journal's protocol that this version knows, one bit each. A feature newer
/// than [`VERSION`] may be used only towards a peer that sets its bit.
pub const FEATURES: u64 = 0;

/// The first half of an op's hash; zero where there is no op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head(pub [u8; 16]);

/// A message of the journal's stream.
#[derive(Debug, Clone, PartialEq)]
pub enum JournalMessage {
    /// The first message on the stream.
    Hello(Hello),
    /// The sender's progress in each log.
    Clock(Clock),
    /// A batch of ops.
    Ops(Ops),
    /// The sender refused something.
    Refuse(Refuse),
}

/// The first message, once in each direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The sender's group.
    pub group: GroupId,
    /// The sender's wall clock, ms since the Unix epoch.
    pub now_ms: i64,
    /// The ops that made the sender a member, the founder's first.
    pub intro: Vec<SignedOp>,
    /// The sender's [`FEATURES`].
    pub features: u64,
}

/// A device's progress in every log; later in a session, in the logs that changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clock {
    /// One entry per log.
    pub entries: Vec<ClockEntry>,
    /// The sender has nothing left to send.
    pub drained: bool,
    /// Ops that the sender refused may be admitted now.
    pub restart: bool,
    /// The digest of the sender's whole state; `None` when it has none.
    pub digest: Option<StateDigest>,
}

/// The digest of a state, made of the kinds of changes that its sender can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateDigest {
    /// The sender's [`crate::core::journal::op::KINDS`].
    pub kinds: u32,
    /// The digest over all cells, facts, and events of streams that are kept for ever.
    pub sum: SetDigest,
}

/// A device's progress in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockEntry {
    /// The log.
    pub log: LogId,
    /// The device has the effects of all ops up to this number.
    pub seq: u64,
    /// The start of the hash of the op at `seq`; zero when `seq` is 0.
    pub head: Head,
    /// The digest of the live ops above `seq`; of all ops of the log when it is forked.
    pub above: SetDigest,
    /// Two different ops with one number are known.
    pub forked: bool,
    /// The receiver refused ops of this log, so the sender withholds them: the receiver must not
    /// jump the gap.
    pub withheld: bool,
}

/// Ops, in the order in which they arrived at the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ops {
    /// The ops, at most [`crate::core::limits::OPS_PER_FRAME_MAX`].
    pub ops: Vec<SignedOp>,
    /// More ops follow at once.
    pub has_more: bool,
}

/// Says why the sender refused something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The reason as a code.
    pub code: RefuseCode,
    /// The reason as text for people.
    pub text: String,
    /// The refused op.
    pub op: Option<(LogId, u64)>,
}

/// The reasons; `proto/journal.proto` explains them.
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
    /// A code of a later version.
    Other(i32),
}

impl StateDigest {
    /// Whether two states agree, as far as this can be known. Devices that read different kinds of
    /// changes make different states of the same ops, so their sums are not compared.
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

    /// Whether this is the head of an empty log.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}
