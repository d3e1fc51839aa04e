//! The comparison of sets with one peer: what each side has announced, the round under way, and when
//! the next one may begin.

use crate::core::peers::Backoff;
use crate::core::reconcile::{Reconciler, SetSummary, Since};

/// The shortest pause between two saves of a peer's cursor. An older cursor costs a longer delta.
const SAVE_CURSOR_MS: u64 = 1_000;

/// The most open queries to the index for one connection: one of the current round, and those of
/// rounds that just ended.
const QUERIES_MAX: usize = 4;

/// The comparison of sets on one connection.
#[derive(Default)]
pub(crate) struct Compare {
    /// The peer's set by its last message.
    pub(crate) theirs: Option<SetSummary>,
    /// Our fingerprint, and whether our index was behind, as last announced.
    pub(crate) announced: Option<([u8; 32], bool)>,
    /// The round under way.
    pub(crate) reconciler: Option<Reconciler>,
    round: u64,
    /// Whether the last round used a cursor. If the sets differ after it, the cursor is wrong.
    was_delta: bool,
    /// The last round that read the whole index.
    scanned_round: u64,
    not_before_ms: u64,
    pub(crate) backoff: Backoff,
    /// While something is under way: when the sets may be compared beside it.
    pub(crate) beside_at_ms: Option<u64>,
    /// How many index queries of this connection's comparisons have no answer yet.
    queries: usize,
    save_cursor_at_ms: u64,
}

impl Compare {
    /// The number of the last round.
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// Whether a round may begin by now: the first one at once, later ones after their pause.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.round == 0 || now_ms >= self.not_before_ms
    }

    /// When the next round may begin.
    pub(crate) fn not_before_ms(&self) -> u64 {
        self.not_before_ms
    }

    /// Notes that something moved: a comparison before `until_ms` would only find what is under
    /// way.
    pub(crate) fn touch(&mut self, until_ms: u64) {
        self.not_before_ms = self.not_before_ms.max(until_ms);
    }

    /// Whether the peer's set differs from ours, and the peer is ready to compare.
    pub(crate) fn differs_from(&self, fingerprint: &[u8; 32]) -> bool {
        self.theirs.as_ref().is_some_and(|set| set.fingerprint != *fingerprint && !set.busy)
    }

    /// The peer's cursor if its set equals ours.
    pub(crate) fn equal_since(&self, fingerprint: &[u8; 32]) -> Option<Since> {
        let equal = |set: &&SetSummary| set.fingerprint == *fingerprint && !set.busy;
        let theirs = self.theirs.as_ref().filter(equal)?;
        Some(Since { epoch: theirs.epoch, seq: theirs.head_seq })
    }

    /// Records that the sets are equal. Returns whether it is time to save the peer's cursor.
    pub(crate) fn note_equal(&mut self, now_ms: u64) -> bool {
        self.backoff = Backoff::default();
        self.was_delta = false;
        now_ms >= self.save_cursor_at_ms
    }

    /// Records that the peer's cursor is saved.
    pub(crate) fn note_saved_cursor(&mut self, now_ms: u64) {
        self.save_cursor_at_ms = now_ms + SAVE_CURSOR_MS;
    }

    /// Whether the last round used a cursor and that was not noted yet.
    pub(crate) fn take_was_delta(&mut self) -> bool {
        std::mem::take(&mut self.was_delta)
    }

    /// Begins a round of our own and returns its number.
    pub(crate) fn begin_round(&mut self, now_ms: u64, random: u64) -> u64 {
        self.round += 1;
        let pause_ms = self.backoff.next_ms(random);
        self.touch(now_ms + pause_ms);
        self.round
    }

    /// Begins a round of the peer.
    pub(crate) fn follow_round(&mut self, round: u64) {
        (self.round, self.reconciler) = (round, None);
    }

    /// Ends a round. `retry_ms`: the peer asks not to compare again sooner.
    pub(crate) fn end_round(&mut self, now_ms: u64, was_delta: bool, retry_ms: Option<u64>) {
        self.reconciler = None;
        self.was_delta = was_delta;
        self.beside_at_ms = retry_ms.map(|retry_ms| now_ms + retry_ms);
    }

    /// Counts a query to the index. Returns whether it may be made.
    pub(crate) fn begin_query(&mut self) -> bool {
        self.queries += 1;
        self.queries <= QUERIES_MAX
    }

    /// Counts the answer to a query.
    pub(crate) fn end_query(&mut self) {
        self.queries = self.queries.saturating_sub(1);
    }

    /// Notes that this round reads the whole index. Returns whether it did not before.
    pub(crate) fn begin_scan(&mut self) -> bool {
        std::mem::replace(&mut self.scanned_round, self.round) != self.round
    }
}
