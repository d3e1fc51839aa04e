//! A live connection and the state that the loop keeps for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::net::Connection;
use crate::replica::status::JournalPeerStatus;
use crate::transfer::Counters;
use crate::transfer::throttle::LinkThrottle;

use crate::core::ids::Hash;
use crate::core::message::Message;
use crate::core::silence::{Heard, Silence};

use crate::replica::picture::{LinkFigures, LinkView, Moved};

/// The most refused assets remembered for a connection, for `why`. Others are refused again when
/// they are offered again.
const REFUSED_MAX: usize = 1024;

/// What the loop sends to the task of a connection.
#[derive(Debug)]
pub(super) enum Command {
    /// Write this message to the peer.
    Send(Message),
    /// Exchange whole sets by the plain protocol.
    RunPlain,
}

/// A live connection.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) counters: Arc<Counters>,
    pub(super) throttle: LinkThrottle,
    pub(super) figures: LinkFigures,
    /// `Some` once the journal's stream is open.
    pub(super) journal: Option<JournalPeerStatus>,
    /// How long the peer has been silent.
    pub(super) silence: Silence,
    /// Why the peer accepts no assets for now.
    pub(super) put_off: Option<String>,
    /// The assets that the peer refused, when and why; at most [`REFUSED_MAX`].
    pub(super) refused: BTreeMap<Hash, (u64, String)>,
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

    /// Looks whether the peer is heard.
    pub(super) fn look(&mut self, now_ms: u64) -> Option<Heard> {
        self.silence.look(now_ms, self.connection.heard_bytes())
    }

    /// Remembers that the peer refused assets.
    pub(super) fn note_refused(&mut self, now_ms: u64, refused: Vec<(Hash, String)>) {
        for (hash, reason) in refused {
            if self.refused.len() < REFUSED_MAX || self.refused.contains_key(&hash) {
                self.refused.insert(hash, (now_ms, reason));
            }
        }
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
