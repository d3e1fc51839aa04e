//! The outcome of each asset of a transfer, and why a transfer ends early.

use std::time::Duration;

use thiserror::Error;

use crate::core::ids::{Digest, Hash};
use crate::net::frame::FrameError;
use crate::store::StoreError;
use crate::wire::WireError;
use crate::wire::batch::Verdict;

/// The outcome of an asset of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver's store committed it.
    Stored,
    /// The receiver held it already.
    AlreadyHeld,
    /// The receiver receives it from another device.
    Elsewhere,
    /// The receiver cannot accept it now, for this reason: try again.
    Later(String),
    /// The receiver's store is unreachable, for this reason. A sender sees [`Outcome::Later`].
    StoreDown(String),
    /// The receiver does not accept it, for this reason.
    Refused(String),
    /// The sender's store does not hold it, or its content was wrong before.
    Unavailable,
    /// The stream ended before the asset was complete. Only a receiver sees this.
    Interrupted,
    /// The content in the sender's store does not match the hash. A receiver sees
    /// [`Outcome::Unavailable`].
    Damaged,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Stored => Self::Stored,
            Verdict::AlreadyHeld => Self::AlreadyHeld,
            Verdict::Elsewhere => Self::Elsewhere,
            Verdict::Later(reason) => Self::Later(reason),
            Verdict::Refused(reason) => Self::Refused(reason),
        }
    }
}

/// An asset of a received batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The asset as the peer announced it.
    pub digest: Digest,
    /// The asset's outcome here.
    pub outcome: Outcome,
}

/// The result of a received batch. What arrived before a stream broke is stored nevertheless.
#[derive(Debug)]
pub struct Receipt {
    /// The offered assets in order; empty when no offer arrived.
    pub received: Vec<Received>,
    /// How the stream ended, or the peer's worst fault in it.
    pub end: Result<(), TransferError>,
}

/// Why a transfer ended early, or a fault of the peer in it.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The stream broke, stalled or carried something that is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame's content is out of bounds.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A frame is not expected at this point.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer sent content that does not match the hash.
    #[error("the peer sent wrong bytes for {0}")]
    Corrupt(Hash),
    /// Other peers send the rest because this one was late.
    #[error("left behind with {0}: others are faster")]
    LeftBehind(Hash),
    /// The stream ended in order but too early: the other side gave up or stopped.
    #[error("the stream ended before {0}")]
    Ended(&'static str),
    /// The other side was alive but did not finish in time.
    #[error("no {what} within {after:?}")]
    Overdue {
        /// What was waited for.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This device's own disk, index or memory failed.
    #[error("{0}")]
    Local(String),
}

impl TransferError {
    /// Whether the peer broke the protocol, so that the caller has to close the connection.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Frame(e) => matches!(e, FrameError::Header(_)),
            Self::Wire(_) | Self::Protocol(_) | Self::Corrupt(_) => true,
            Self::LeftBehind(_)
            | Self::Ended(_)
            | Self::Overdue { .. }
            | Self::Store(_)
            | Self::Local(_) => false,
        }
    }
}

/// Formats an error with its causes on one line.
pub(super) fn with_causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

/// Whether the asset is sent in pieces, only after the peer wants it.
pub(crate) fn is_large(digest: &Digest) -> bool {
    digest.size_bytes > crate::store::SMALL_BYTES_MAX
}
