//! Which assets move: decides what is solicited from each peer, what is sent, what is accepted, and
//! what the end of a batch means.

use std::collections::BTreeSet;

use super::{Effect, Engine, SETTLE_MS, Sent};
use crate::core::close::CloseCode;
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::limits::HASHES_PER_FRAME_MAX;
use crate::core::message::Message;
use crate::core::peers::ConnId;
use crate::core::session::Lane;
use crate::core::spans::is_shared;
use crate::core::wants::{Arrival, BatchId};

/// A batch under way to a peer.
#[derive(Debug)]
pub(super) struct Sending {
    lane: Lane,
    pub(super) hashes: BTreeSet<Hash>,
}

impl Engine {
    /// Solicits and sends as much as there is room for.
    pub(super) fn settle_assets(&mut self, now_ms: u64, node_id: NodeId, out: &mut Vec<Effect>) {
        if !self.store_up {
            return;
        }
        // All of it may be wanted.
        let judging = self.judging(node_id);
        let Some(session) = self.peers.get_mut(&node_id).and_then(|peer| peer.session.as_mut())
        else {
            return;
        };
        let conn = session.conn;
        // A plain peer cannot say what it wants, so what it is sending must be known first.
        if session
            .plain
            .as_ref()
            .is_some_and(|plain| !plain.is_exchanged() || !session.receiving.is_empty())
        {
            return;
        }
        if self.store_paused_until_ms.is_none() && session.plain.is_none() {
            let urgent = self.fetches.urge(now_ms, &mut self.wants, node_id);
            for chunk in urgent.chunks(HASHES_PER_FRAME_MAX) {
                out.push(Effect::Send { conn, message: Message::SolicitNow(chunk.to_vec()) });
            }
            let asking = self.wants.ask(now_ms, node_id);
            if !asking.is_empty() || !urgent.is_empty() {
                session.heard(now_ms);
            }
            for chunk in asking.chunks(HASHES_PER_FRAME_MAX) {
                out.push(Effect::Send { conn, message: Message::Solicit(chunk.to_vec()) });
            }
        }
        while let Some(load) = session.lanes.next_batch() {
            let batch = BatchId(self.next_batch);
            self.next_batch += 1;
            let hashes = load.digests.iter().map(|digest| digest.hash).collect();
            self.sending.insert((conn, batch), Sending { lane: load.lane, hashes });
            out.push(Effect::SendBatch {
                conn,
                batch,
                digests: load.digests,
                lane: load.lane,
                inline: load.inline,
            });
        }
        let room = self.wants.room(node_id).saturating_sub(judging);
        let mut outputs = Vec::new();
        if let Some(reconciler) = &mut session.compare.reconciler {
            reconciler.resume(room, &mut outputs);
        }
        self.carry_out(now_ms, conn, outputs, out);
    }

    pub(super) fn on_indexed(&mut self, now_ms: u64, entries: &[(u64, Digest)], behind: bool) {
        self.store_up = true;
        self.behind = behind;
        for (seq, digest) in entries {
            // A scan may have seen an entry before the engine learns of it.
            let is_new = *seq > self.known.head_seq;
            if is_new {
                self.known.sketch.insert(&digest.hash);
                self.known.head_seq = *seq;
            }
            if let Some(rebuild) = &mut self.rebuilding {
                rebuild.note(*seq, digest.hash);
            }
            let holders = self.wants.indexed(digest.hash);
            // Peers know the hash, which was absent here, and learn that it is held now.
            if behind || !is_new {
                continue;
            }
            for (node_id, peer) in &mut self.peers {
                let Some(session) = &mut peer.session else { continue };
                if session.hello.is_some() && !holders.contains(node_id) {
                    // Contents are sent uninvited only to who wants all.
                    let chooses = session.hello.as_ref().is_some_and(|hello| hello.chooses);
                    session.lanes.push_live(*digest, holders.is_empty() && !chooses);
                }
            }
        }
        if !behind {
            self.wants.feed_read();
        }
        if entries.is_empty() {
            return;
        }
        for session in self.peers.values_mut().filter_map(|peer| peer.session.as_mut()) {
            session.compare.touch(now_ms + SETTLE_MS);
        }
    }

    pub(super) fn on_fetch(&mut self, now_ms: u64, hashes: Vec<Hash>, at_once: bool) {
        let ready = self.ready_sessions().filter(|(_, session)| session.plain.is_none());
        let peers: Vec<NodeId> = ready.map(|(node_id, _)| node_id).collect();
        for hash in hashes {
            self.fetches.fetch(now_ms, &mut self.wants, &peers, hash, at_once);
        }
    }

    pub(super) fn on_sizes(
        &mut self,
        conn: ConnId,
        held: Vec<Digest>,
        missing: Vec<Hash>,
        out: &mut Vec<Effect>,
    ) {
        let Some(session) = self.session(conn) else { return };
        session.lanes.push_solicited(held);
        self.ask_sizes(conn, out);
        for chunk in missing.chunks(HASHES_PER_FRAME_MAX) {
            out.push(Effect::Send { conn, message: Message::Lacking(chunk.to_vec()) });
        }
    }

    pub(super) fn ask_sizes(&mut self, conn: ConnId, out: &mut Vec<Effect>) {
        let Some(hashes) = self.session(conn).and_then(|session| session.lanes.next_to_size())
        else {
            return;
        };
        out.push(Effect::AskSizes { conn, hashes });
    }

    pub(super) fn on_sent(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        outcomes: Vec<(Hash, Sent)>,
        out: &mut Vec<Effect>,
    ) {
        let Some(sending) = self.sending.remove(&(conn, batch)) else { return };
        let Some(session) = self.session(conn) else { return };
        session.heard(now_ms);
        session.lanes.lane_freed(sending.lane);
        session.compare.touch(now_ms + SETTLE_MS);
        if outcomes.iter().any(|(_, sent)| *sent == Sent::Held) {
            session.compare.backoff.reset();
        }
        if let Some(plain) = &mut session.plain {
            if outcomes.iter().any(|(_, sent)| *sent != Sent::Held) {
                plain.repeat(now_ms);
            }
            return;
        }
        let missing: Vec<Hash> = outcomes
            .iter()
            .filter(|(hash, sent)| *sent == Sent::Unavailable && sending.hashes.contains(hash))
            .map(|(hash, _)| *hash)
            .collect();
        if !missing.is_empty() {
            out.push(Effect::Send { conn, message: Message::Lacking(missing) });
        }
    }

    pub(super) fn on_send_failed(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        violation: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(sending) = self.sending.remove(&(conn, batch)) else { return };
        let Some(session) = self.session(conn) else { return };
        session.lanes.lane_freed(sending.lane);
        session.compare.touch(now_ms + SETTLE_MS);
        if violation {
            self.close(conn, CloseCode::Protocol, "a batch broke the protocol", out);
        } else if session.plain.is_some() {
            // The plain protocol cannot compare sets again on a connection, but a new connection
            // can.
            self.close(conn, CloseCode::Internal, "a batch broke off", out);
        } else {
            // The peer may never have seen the offer, and may wait for assets in it that it
            // solicited.
            let hashes = sending.hashes.into_iter().collect();
            out.push(Effect::Send { conn, message: Message::Lacking(hashes) });
        }
    }

    pub(super) fn on_offered(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        digests: &[Digest],
        out: &mut Vec<Effect>,
    ) {
        let is_ready = self.store_up && self.store_paused_until_ms.is_none();
        let algorithm = self.identity.algorithm;
        let mut wanted = vec![false; digests.len()];
        if let Some((node_id, session)) = self.session_of(conn) {
            session.heard(now_ms);
            session.receiving.insert(batch);
            for (want, digest) in wanted.iter_mut().zip(digests) {
                if is_ready {
                    let is_shared = is_shared(digest, algorithm);
                    *want = self.wants.offered(now_ms, node_id, batch, *digest, is_shared);
                } else {
                    self.wants.turned_away(now_ms, node_id, digest.hash);
                }
            }
        }
        out.push(Effect::Decide { batch, wanted });
    }

    pub(super) fn on_received(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        batch: BatchId,
        arrivals: Vec<(Hash, Arrival)>,
    ) {
        let Some((node_id, session)) = self.session_of(conn) else { return };
        session.heard(now_ms);
        session.receiving.remove(&batch);
        session.compare.touch(now_ms + SETTLE_MS);
        if arrivals.iter().any(|(_, arrival)| *arrival == Arrival::Stored) {
            session.compare.backoff.reset();
        }
        if session.plain.is_some() {
            let stored = session.plain_arrived(now_ms, &arrivals);
            stored.into_iter().for_each(|hash| self.wants.held_by(node_id, hash));
            return;
        }
        for (hash, arrival) in arrivals {
            if arrival == Arrival::Unavailable {
                self.fetches.denied(node_id, &hash);
            }
            self.wants.arrived(now_ms, node_id, batch, hash, arrival);
        }
        self.wants.batch_ended(now_ms, node_id, batch);
    }
}
