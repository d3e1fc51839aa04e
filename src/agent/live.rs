//! A live connection and the state that the loop keeps for it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::net::Connection;
use crate::replica::status::JournalPeerStatus;
use crate::transfer::Counters;
use crate::transfer::throttle::LinkThrottle;

use super::link::Command;
use super::picture::{LinkFigures, LinkView};

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
