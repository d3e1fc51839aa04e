//! Counts the content bytes of a connection: moved, and still to move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Content bytes moved, and still to be moved by transfers under way. All streams of a peer share
/// them.
#[derive(Debug, Default)]
pub struct Counters {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    left_to_send_bytes: AtomicU64,
    left_to_receive_bytes: AtomicU64,
}

impl Counters {
    /// The content bytes written to streams.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The content bytes read from streams.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// The content bytes that transfers under way have yet to write.
    pub fn left_to_send_bytes(&self) -> u64 {
        self.left_to_send_bytes.load(Ordering::Relaxed)
    }

    /// The content bytes that transfers under way have yet to read.
    pub fn left_to_receive_bytes(&self) -> u64 {
        self.left_to_receive_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn sending(self: &Arc<Self>) -> Meter {
        Meter { counters: self.clone(), direction: Direction::Send, left: 0 }
    }

    pub(super) fn receiving(self: &Arc<Self>) -> Meter {
        Meter { counters: self.clone(), direction: Direction::Receive, left: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Send,
    Receive,
}

/// One transfer's share of the [`Counters`]; when dropped it subtracts what was left to move.
#[derive(Debug)]
pub(super) struct Meter {
    counters: Arc<Counters>,
    direction: Direction,
    left: u64,
}

impl Meter {
    pub(super) fn expect(&mut self, bytes: u64) {
        self.left += bytes;
        self.left_total().fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn moved(&mut self, bytes: u64) {
        match self.direction {
            Direction::Send => &self.counters.sent_bytes,
            Direction::Receive => &self.counters.received_bytes,
        }
        .fetch_add(bytes, Ordering::Relaxed);
        self.forget(bytes);
    }

    /// Subtracts bytes that were expected but will not move.
    pub(super) fn forget(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        self.left_total().fetch_sub(bytes, Ordering::Relaxed);
    }

    fn left_total(&self) -> &AtomicU64 {
        match self.direction {
            Direction::Send => &self.counters.left_to_send_bytes,
            Direction::Receive => &self.counters.left_to_receive_bytes,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.forget(self.left);
    }
}
