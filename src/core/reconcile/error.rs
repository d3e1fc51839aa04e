//! How a peer breaks the protocol of a round.

use thiserror::Error;

/// How a peer broke the protocol. The caller closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReconcileError {
    /// A message is not expected at this point.
    #[error("reconcile: {message} out of place ({stage})")]
    Unexpected {
        /// The message.
        message: &'static str,
        /// The stage of the round.
        stage: &'static str,
    },
    /// There is more than was announced, requested or allowed.
    #[error("reconcile: {what}: {got}, the limit is {limit}")]
    TooMany {
        /// The thing counted.
        what: &'static str,
        /// The count.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// A number differs from its only possible value.
    #[error("reconcile: {what} is {got}, expected {expected}")]
    Mismatch {
        /// The field.
        what: &'static str,
        /// The value received.
        got: u64,
        /// The value expected.
        expected: u64,
    },
    /// A list is out of order or repeats an entry.
    #[error("reconcile: a list of hashes is not strictly ascending, or repeats one")]
    NotAscending,
    /// A message makes no progress, so the round could go on for ever.
    #[error("reconcile: an empty step that promises more")]
    NoProgress,
    /// A Compare lacks the counters by which the difference is estimated.
    #[error("reconcile: Compare without counters")]
    NoCounters,
    /// The peer calls sets equal whose fingerprints differ.
    #[error("reconcile: sets with unequal fingerprints are called equal")]
    NotEqual,
    /// A delta was chosen although one side has no cursor.
    #[error("reconcile: a delta without a cursor on both sides")]
    NoCursor,
    /// The peer's second Plan of a round describes another set than its first.
    #[error("reconcile: the set of a round was exchanged for another")]
    SetChanged,
}
