//! One asset of a received batch: what may still arrive of it, and its outcome.

use std::collections::VecDeque;
use std::ops::Range;

use super::gather::Source;
use super::outcome::Outcome;
use crate::core::ids::Digest;
use crate::wire::batch::Verdict;

/// The bytes of an asset that may still arrive.
pub(super) enum Expects {
    Nothing,
    Whole,
    /// Pieces of a large asset. Without a `source` they are only read to be dropped.
    Pieces {
        /// The ranges requested that have not arrived, in order.
        asked: VecDeque<Range<u64>>,
        source: Option<Source>,
    },
}

/// An asset of the transfer.
pub(super) struct Slot {
    pub(super) digest: Digest,
    pub(super) expects: Expects,
    /// Set once. Content that arrives later is dropped.
    pub(super) outcome: Option<Outcome>,
    /// The bytes that the meter expects of it.
    pub(super) metered_bytes: u64,
}

impl Slot {
    pub(super) fn expecting(digest: Digest, expects: Expects) -> Self {
        Self { digest, expects, outcome: None, metered_bytes: 0 }
    }

    pub(super) fn settled(digest: Digest, expects: Expects, outcome: Outcome) -> Self {
        Self { outcome: Some(outcome), ..Self::expecting(digest, expects) }
    }

    /// Whether nothing that was requested is left to arrive.
    pub(super) fn is_done(&self) -> bool {
        match &self.expects {
            Expects::Nothing => true,
            Expects::Whole => false,
            Expects::Pieces { asked, .. } => asked.is_empty(),
        }
    }

    /// How many useful bytes will probably still arrive.
    pub(super) fn left_bytes(&self) -> u64 {
        match &self.expects {
            _ if self.outcome.is_some() => 0,
            Expects::Nothing | Expects::Pieces { source: None, .. } => 0,
            Expects::Whole => self.digest.size_bytes,
            Expects::Pieces { source: Some(source), .. } => source.share_bytes(),
        }
    }

    /// The source of an asset that can still be completed here.
    pub(super) fn source(&mut self) -> Option<&mut Source> {
        match &mut self.expects {
            Expects::Pieces { source, .. } => source.as_mut(),
            Expects::Nothing | Expects::Whole => None,
        }
    }

    /// Sets the outcome. The source, if there is one, leaves the rest to others.
    pub(super) fn conclude(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
        if let Expects::Pieces { source, .. } = &mut self.expects {
            *source = None;
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        match &self.outcome {
            Some(Outcome::Stored) => Verdict::Stored,
            Some(Outcome::AlreadyHeld) => Verdict::AlreadyHeld,
            Some(Outcome::Elsewhere) => Verdict::Elsewhere,
            // The reason is for this device only, because it may name its folders.
            Some(Outcome::Later(_) | Outcome::StoreDown(_)) => {
                Verdict::Later("the device cannot store it now".into())
            }
            Some(Outcome::Refused(_)) => Verdict::Refused("the device does not take it".into()),
            Some(Outcome::Unavailable | Outcome::Damaged) => {
                Verdict::Later("the sender could not go on with it".into())
            }
            Some(Outcome::Interrupted) | None => Verdict::Later("it did not arrive".into()),
        }
    }
}
