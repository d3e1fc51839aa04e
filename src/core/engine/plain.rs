//! Peers that speak the plain protocol, `can-sync/1`: what the exchange of whole sets and the
//! streams after it mean for what each side holds.

use super::Engine;
use crate::core::ids::Hash;
use crate::core::peers::ConnId;
use crate::core::wants::{Arrival, BatchId};

impl Engine {
    /// Handles the end of the exchange of whole sets.
    pub(super) fn on_plain_done(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        held_there: &[Hash],
        stored_here: &[Hash],
        failed: bool,
    ) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        session.lanes.forget_live(held_there);
        session.lanes.forget_live(stored_here);
        if let Some(plain) = &mut session.plain {
            plain.exchanged();
            if failed {
                plain.repeat(now_ms);
            }
        }
        stored_here.iter().for_each(|hash| self.wants.held_by(node_id, *hash));
    }

    /// Handles a stream of new assets that the peer opened. It offers nothing beforehand.
    pub(super) fn on_plain_stream(&mut self, conn: ConnId, batch: BatchId) {
        if let Some(session) = self.session(conn) {
            session.receiving.insert(batch);
        }
    }

    /// Notes the assets that such a stream brought.
    pub(super) fn note_plain_arrivals(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        arrivals: &[(Hash, Arrival)],
    ) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        let is_here = |arrival: Arrival| matches!(arrival, Arrival::Stored | Arrival::Held);
        if let Some(plain) = &mut session.plain
            && arrivals.iter().any(|(_, arrival)| !is_here(*arrival))
        {
            plain.repeat(now_ms);
        }
        let stored = arrivals.iter().filter(|(_, arrival)| *arrival == Arrival::Stored);
        let stored: Vec<Hash> = stored.map(|(hash, _)| *hash).collect();
        session.lanes.forget_live(&stored);
        stored.into_iter().for_each(|hash| self.wants.held_by(node_id, hash));
    }
}
