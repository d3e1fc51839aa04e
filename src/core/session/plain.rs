//! The plain protocol, `can-sync/1`, as the engine sees it: both whole sets are exchanged once on one
//! stream, then each new asset is sent on a stream of its own, without an offer. Such a connection
//! cannot compare sets again, so when something did not arrive a new connection takes its place.
//!
//! `wire/plain.rs` has its messages, `transfer/plain.rs` its streams, `agent/plain.rs` its task.

use super::Session;
use crate::core::ids::Hash;
use crate::core::wants::Arrival;

/// How soon assets that did not arrive are tried again. Each time both whole sets are exchanged.
const PLAIN_AGAIN_MS: u64 = 300_000;

/// The state of the plain protocol on one connection.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    is_exchanged: bool,
    again_ms: Option<u64>,
}

impl Plain {
    /// Whether the whole sets have been exchanged.
    pub(crate) fn is_exchanged(&self) -> bool {
        self.is_exchanged
    }

    /// Whether both sides hold the same assets, as far as this protocol shows.
    pub(crate) fn is_in_sync(&self) -> bool {
        self.is_exchanged && self.again_ms.is_none()
    }

    /// Notes that something did not arrive.
    pub(crate) fn repeat(&mut self, now_ms: u64) {
        self.again_ms.get_or_insert(now_ms + PLAIN_AGAIN_MS);
    }

    /// When to close the connection, so that a new one exchanges the sets again.
    pub(crate) fn again_ms(&self) -> Option<u64> {
        self.again_ms
    }
}

impl Session {
    /// Handles the end of the exchange of whole sets. `failed`: something did not arrive.
    pub(crate) fn plain_done(
        &mut self,
        now_ms: u64,
        held_there: &[Hash],
        stored_here: &[Hash],
        failed: bool,
    ) {
        self.lanes.forget_live(held_there);
        self.lanes.forget_live(stored_here);
        if let Some(plain) = &mut self.plain {
            plain.is_exchanged = true;
            if failed {
                plain.repeat(now_ms);
            }
        }
    }

    /// Handles the end of a stream of new assets that the peer opened. Returns those that were
    /// stored.
    pub(crate) fn plain_arrived(&mut self, now_ms: u64, arrivals: &[(Hash, Arrival)]) -> Vec<Hash> {
        let is_here = |arrival: Arrival| matches!(arrival, Arrival::Stored | Arrival::Held);
        if let Some(plain) = &mut self.plain
            && arrivals.iter().any(|(_, arrival)| !is_here(*arrival))
        {
            plain.repeat(now_ms);
        }
        let stored = arrivals.iter().filter(|(_, arrival)| *arrival == Arrival::Stored);
        let stored: Vec<Hash> = stored.map(|(hash, _)| *hash).collect();
        self.lanes.forget_live(&stored);
        stored
    }
}
