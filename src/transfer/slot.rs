//! One asset of a received batch: what may still come for it, and what became of it.

use std::collections::VecDeque;
use std::ops::Range;

use super::Outcome;
use super::gather::Source;
use crate::core::ids::Digest;
use crate::wire::batch::Verdict;

/// What may still come for an asset.
pub(super) enum Expects {
    Nothing,
    Whole,
    /// Of a large asset. Without a `source` it is only read to be dropped.
    Pieces {
        /// What was asked for and has not come, in order.
        asked: VecDeque<Range<u64>>,
        source: Option<Source>,
    },
}

/// An asset of the transfer.
pub(super) struct Slot {
    pub(super) digest: Digest,
    pub(super) expects: Expects,
    /// Set once. Content that comes after it is dropped.
    pub(super) outcome: Option<Outcome>,
    /// What the meter was told to expect of it.
    pub(super) metered_bytes: u64,
}

impl Slot {
    pub(super) fn expecting(digest: Digest, expects: Expects) -> Self {
        Self { digest, expects, outcome: None, metered_bytes: 0 }
    }

    pub(super) fn settled(digest: Digest, expects: Expects, outcome: Outcome) -> Self {
        Self { outcome: Some(outcome), ..Self::expecting(digest, expects) }
    }

    /// Nothing more comes for it that was asked for.
    pub(super) fn is_done(&self) -> bool {
        match &self.expects {
            Expects::Nothing => true,
            Expects::Whole => false,
            Expects::Pieces { asked, .. } => asked.is_empty(),
        }
    }

    /// What is likely yet to come for it, and of use.
    pub(super) fn left_bytes(&self) -> u64 {
        match &self.expects {
            _ if self.outcome.is_some() => 0,
            Expects::Nothing | Expects::Pieces { source: None, .. } => 0,
            Expects::Whole => self.digest.size_bytes,
            Expects::Pieces { source: Some(source), .. } => source.share_bytes(),
        }
    }

    /// The source of an asset that may still come to its end here.
    pub(super) fn source(&mut self) -> Option<&mut Source> {
        match &mut self.expects {
            Expects::Pieces { source, .. } => source.as_mut(),
            Expects::Nothing | Expects::Whole => None,
        }
    }

    /// Its source, if it has one, leaves the rest to others.
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
            // Why is for this device alone: the reason may name its folders.
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
