//! Pages of hashes: pulling the other side's and serving ours. Both kinds of paging (by sequence
//! number after a cursor; by hash from the first) go strictly forward, one page at a time.
//!
//! I1  A puller accepts no more hashes than the summary announced, and calls a list whole only when
//!     it is the set whose fingerprint was announced.
//! I2  A server serves one pass over the set as of the summary, and no page twice.

use crate::core::ids::Hash;
use crate::core::limits::HASHES_PER_FRAME_MAX;
use crate::core::lt_hash::LtHash;
use crate::core::reconcile::{Answer, Cursor, Query, ReconcileError, SetSummary};

/// A page of the other side's hashes, as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) hashes: Vec<Hash>,
    pub(super) more: bool,
    pub(super) next_seq: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Waiting,
    Ended,
}

/// Pulls the other side's hashes page by page.
pub(super) struct Puller {
    cursor: Cursor,
    head_seq: u64,
    limit: u64,
    pulled: u64,
    lt_hash: LtHash,
    fingerprint: [u8; 32],
    state: State,
}

impl Puller {
    /// A puller of the whole set.
    pub(super) fn of_list(theirs: &SetSummary) -> Self {
        Self::new(Cursor::Hash(None), theirs, theirs.count)
    }

    /// A puller of the `added` hashes after `seq`.
    pub(super) fn of_delta(seq: u64, added: u64, theirs: &SetSummary) -> Self {
        Self::new(Cursor::Seq(seq), theirs, added)
    }

    fn new(cursor: Cursor, theirs: &SetSummary, limit: u64) -> Self {
        let SetSummary { head_seq, fingerprint, .. } = *theirs;
        let state = if limit == 0 { State::Ended } else { State::Ready };
        Self { cursor, head_seq, fingerprint, limit, pulled: 0, lt_hash: LtHash::default(), state }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether everything announced has arrived: the sequence up to its head, or the set with the
    /// announced fingerprint.
    pub(super) fn is_whole(&self) -> bool {
        match self.cursor {
            Cursor::Seq(seq) => seq == self.head_seq,
            Cursor::Hash(_) => self.lt_hash.fingerprint() == self.fingerprint,
        }
    }

    /// The start of the next page to pull; `None` while one is under way or after the last.
    pub(super) fn pull(&mut self) -> Option<Cursor> {
        if self.state != State::Ready {
            return None;
        }
        self.state = State::Waiting;
        Some(self.cursor)
    }

    /// Checks and counts a page that arrived. Its hashes are for the caller.
    pub(super) fn on_page(&mut self, page: &Page) -> Result<(), ReconcileError> {
        if self.state != State::Waiting {
            return Err(ReconcileError::Unexpected { message: "Page", stage: "no Pull is open" });
        }
        self.pulled += page.hashes.len() as u64;
        at_most("hashes in all pages", self.pulled, self.limit)?;
        if page.more && page.hashes.is_empty() {
            return Err(ReconcileError::NoProgress);
        }
        match &mut self.cursor {
            Cursor::Hash(after) => {
                ascending(*after, &page.hashes)?;
                *after = page.hashes.last().copied().or(*after);
                page.hashes.iter().for_each(|hash| self.lt_hash.add(hash));
            }
            Cursor::Seq(seq) => {
                distinct(&page.hashes)?;
                at_most("next_seq of a page", page.next_seq, self.head_seq)?;
                if page.next_seq < *seq || page.more && page.next_seq == *seq {
                    return Err(ReconcileError::NoProgress);
                }
                *seq = page.next_seq;
            }
        }
        self.state = if page.more { State::Ready } else { State::Ended };
        Ok(())
    }
}

/// Serves our hashes to the other side page by page.
pub(super) struct PageServer {
    cursor: Cursor,
    head_seq: u64,
    count: u64,
    served: u64,
    state: State,
}

impl PageServer {
    /// Serves the hashes between `cursor` and `head_seq`: `count` of them when paged by hash.
    pub(super) fn new(cursor: Cursor, head_seq: u64, count: u64) -> Self {
        Self { cursor, head_seq, count, served: 0, state: State::Ready }
    }

    /// Handles a Pull. Returns the query whose answer makes the page.
    pub(super) fn on_pull(&mut self, from: Cursor) -> Result<Query, ReconcileError> {
        if self.state != State::Ready || from != self.cursor {
            return Err(ReconcileError::Unexpected {
                message: "Pull",
                stage: "pages go strictly forward, one at a time",
            });
        }
        self.state = State::Waiting;
        let (up_to_seq, limit) = (self.head_seq, HASHES_PER_FRAME_MAX);
        Ok(match from {
            Cursor::Seq(after_seq) => Query::Since { after_seq, up_to_seq, limit },
            Cursor::Hash(after) => Query::Above { after, up_to_seq, limit },
        })
    }

    /// Makes the page from the index's answer. A failed index makes an empty last page, which the
    /// puller recognises as too early. The second value is false when index and sketch disagree
    /// about the number of hashes.
    pub(super) fn on_answer(&mut self, answer: Answer) -> (Page, bool) {
        let mut page = match (self.cursor, answer) {
            (Cursor::Seq(after), Answer::Since { items, more }) => {
                let last = items.last().map_or(after, |(seq, _)| *seq);
                Page {
                    next_seq: if more { last } else { self.head_seq },
                    hashes: items.into_iter().map(|(_, hash)| hash).collect(),
                    more,
                }
            }
            (Cursor::Hash(_), Answer::Above { hashes, more }) => Page { hashes, more, next_seq: 0 },
            (Cursor::Seq(after), _) => Page { hashes: vec![], more: false, next_seq: after },
            (Cursor::Hash(_), _) => Page { hashes: vec![], more: false, next_seq: 0 },
        };
        self.served += page.hashes.len() as u64;
        let mut agrees = true;
        match &mut self.cursor {
            Cursor::Seq(seq) => *seq = page.next_seq,
            Cursor::Hash(after) => {
                *after = page.hashes.last().copied().or(*after);
                if self.served > self.count {
                    let excess = (self.served - self.count) as usize;
                    page.hashes.truncate(page.hashes.len().saturating_sub(excess));
                    page.more = false;
                }
                agrees = page.more || self.served == self.count;
            }
        }
        self.state = if page.more { State::Ready } else { State::Ended };
        (page, agrees)
    }
}

/// Checks that `hashes` are strictly ascending and above `after`.
pub(super) fn ascending(after: Option<Hash>, hashes: &[Hash]) -> Result<(), ReconcileError> {
    let starts_above = hashes.first().copied() > after || hashes.is_empty();
    if starts_above && hashes.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    Err(ReconcileError::NotAscending)
}

fn distinct(hashes: &[Hash]) -> Result<(), ReconcileError> {
    let mut sorted = hashes.to_vec();
    sorted.sort_unstable();
    ascending(None, &sorted)
}

pub(super) fn at_most(what: &'static str, got: u64, limit: u64) -> Result<(), ReconcileError> {
    if got > limit {
        return Err(ReconcileError::TooMany { what, got, limit });
    }
    Ok(())
}
