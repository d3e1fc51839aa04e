//! What the engine knows about one asset, for [`crate::core::why`] to explain.

use super::{Engine, Peer};
use crate::core::ids::{Hash, NodeId};
use crate::core::why::{Facts, LinkFacts, PeerFacts, Sending};

impl Engine {
    /// What is known about `hash` now.
    pub fn explain(&self, now_ms: u64, hash: &Hash) -> Facts {
        let (want, rests) = self.wants.explain(now_ms, hash);
        let holders = self.wants.holders(hash);
        let fingerprint = self.known.sketch.fingerprint();
        let mut peers: Vec<PeerFacts> = self
            .peers
            .iter()
            .map(|(node_id, peer)| PeerFacts {
                node_id: *node_id,
                name: peer.name.clone(),
                link: self.link_facts(*node_id, peer, &fingerprint),
                holds: holders.contains(node_id),
                tells_absent: tells_absent(peer),
                sending: self.sending_to(peer, hash),
            })
            .collect();
        peers.sort_by(|a, b| (&a.name, &a.node_id).cmp(&(&b.name, &b.node_id)));
        Facts {
            is_removed: self.is_removed(),
            store_up: self.store_up,
            paused_until_ms: self.store_paused_until_ms.filter(|until_ms| *until_ms > now_ms),
            want,
            rests,
            peers,
        }
    }

    fn link_facts(&self, node_id: NodeId, peer: &Peer, fingerprint: &[u8; 32]) -> LinkFacts {
        if peer.link.current().is_none() {
            return LinkFacts::Offline {
                since_ms: peer.lost_ms,
                error: peer.last_error.clone(),
                retry_at_ms: peer.link.retry_at_ms(),
            };
        }
        let session = peer.session.as_ref();
        let Some(session) = session.filter(|session| session.hello.is_some()) else {
            return LinkFacts::Greeting;
        };
        let in_sync = self.is_in_sync(node_id, session, fingerprint);
        let is_due = !in_sync && session.plain.is_none() && self.is_quiet(node_id, session);
        let compare_at_ms = is_due.then_some(session.compare.not_before_ms());
        LinkFacts::Connected { in_sync, compare_at_ms }
    }

    fn sending_to(&self, peer: &Peer, hash: &Hash) -> Sending {
        let Some(session) = &peer.session else { return Sending::No };
        let mut batches = self.sending.iter().filter(|((conn, _), _)| *conn == session.conn);
        if batches.any(|(_, sending)| sending.hashes.contains(hash)) {
            return Sending::Under;
        }
        match session.lanes.ahead(hash) {
            Some((ahead, ahead_bytes)) => Sending::Queued { ahead, ahead_bytes },
            None => Sending::No,
        }
    }
}

/// Whether a connected peer tells which assets it lacks on purpose.
fn tells_absent(peer: &Peer) -> bool {
    let hello = peer.session.as_ref().and_then(|session| session.hello.as_ref());
    hello.is_some_and(|hello| hello.copies)
}
