//! A live connection and the state that the loop keeps for it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::net::Connection;
use crate::replica::status::JournalPeerStatus;
use crate::transfer::Counters;
use crate::transfer::throttle::LinkThrottle;

use super::link::Command;
use crate::replica::picture::{LinkFigures, LinkView, Moved};

/// A live connection.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) counters: Arc<Counters>,
    pub(super) throttle: LinkThrottle,
    pub(super) figures: LinkFigures,
    /// `Some` once the journal's stream is open.
    pub(super) journal: Option<JournalPeerStatus>,
    /// Why the peer accepts no assets for now.
    pub(super) put_off: Option<String>,
}

impl Live {
    /// Updates the rates.
    pub(super) fn measure(&mut self, now_ms: u64) {
        let counters = &self.counters;
        let moved = Moved {
            sent_bytes: counters.sent_bytes(),
            received_bytes: counters.received_bytes(),
            left_bytes: counters.left_to_send_bytes() + counters.left_to_receive_bytes(),
        };
        self.figures.measure(now_ms, moved);
    }

    /// The connection as the status shows it.
    pub(super) fn view(&self) -> LinkView {
        LinkView {
            figures: self.figures.clone(),
            path: self.connection.path(),
            wire_bytes: self.connection.wire_bytes(),
            journal: self.journal.clone(),
            put_off: self.put_off.clone(),
        }
    }
}
