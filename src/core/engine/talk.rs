//! The state of the exchange about copies on one connection, for both sides. [`super::copies`]
//! decides by it.

use std::collections::VecDeque;

use crate::core::copies::{AbsentSet, MissingPlace};
use crate::core::ids::Hash;
use crate::core::peers::Backoff;

/// What this device holds of what it knows, and what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnCopies {
    /// The hashes that are known and not held.
    pub absent: AbsentSet,
    /// How many of them are wanted.
    pub missing: u64,
    /// Whether it does not want everything.
    pub chooses: bool,
}

/// What is known of a peer's absent hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Belief {
    /// The absent hashes as far as they are known here.
    pub absent: AbsentSet,
    /// Whether it was ever confirmed as a holder.
    pub is_confirmed: bool,
}

/// What was said about absent hashes on one connection.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// Ours as last told.
    pub(super) told: Option<AbsentSet>,
    pub(super) tell_at_ms: u64,
    /// The peer's as last told.
    pub(super) theirs: Option<AbsentSet>,
    /// Whether a pull is open, or its answer is being written down.
    pub(super) is_pulling: bool,
    /// Whether the answer is being written down.
    pub(super) is_taking: bool,
    pub(super) restarts: u32,
    /// Whether the peer's pull is being answered.
    pub(super) is_serving: bool,
    /// Differences whose sizes the peer was asked for.
    pub(super) to_judge: VecDeque<Vec<Hash>>,
    /// Whether it was asked for the first of them.
    pub(super) is_size_pulled: bool,
    /// Differences that are being judged.
    pub(super) judging: usize,
    /// The peer's requests for sizes that are being answered.
    pub(super) sizing: usize,
    /// The sets that were confirmed last: our fingerprint and the peer's absent ones.
    pub(super) confirmed: Option<([u8; 32], AbsentSet)>,
    pub(super) confirm_at_ms: u64,
    pub(super) missing: MissingPass,
}

/// A pass over the missing assets that a peer holds.
#[derive(Debug, Default)]
pub(super) struct MissingPass {
    /// Whether the index is being asked.
    pub(super) is_asked: bool,
    pub(super) after: MissingPlace,
    /// Whether this pass found something.
    pub(super) found: bool,
    /// When to go on; `None` until something changes.
    pub(super) at_ms: Option<u64>,
    pub(super) backoff: Backoff,
}

impl Talk {
    /// Whether something is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.judging > 0 || !self.to_judge.is_empty() || self.missing.is_asked
    }

    /// Whether the peer owes an answer.
    pub(super) fn awaits(&self) -> bool {
        self.is_pulling && !self.is_taking || !self.to_judge.is_empty()
    }

    /// Whether the peer may hold more that is missing here.
    pub(super) fn has_missing(&self) -> bool {
        self.missing.is_asked || self.missing.at_ms.is_some()
    }
}
