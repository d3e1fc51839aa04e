//! Connections and sessions: decides on which connection a session runs, when it begins and ends,
//! and which part of the engine handles a peer's message.

use std::collections::BTreeMap;

use super::sets::Scans;
use super::talk::Talk;
use super::{Belief, Effect, Engine, Peer, SETTLE_MS, close};
use crate::core::close::CloseCode;
use crate::core::ids::NodeId;
use crate::core::limits::SOLICITED_PER_PEER_MAX;
use crate::core::message::{Hello, Message};
use crate::core::pairing::{Member, Members, device_name};
use crate::core::peers::{Change, Conn, ConnId, Link, Placed};
use crate::core::reconcile::ReconcileMessage;
use crate::core::session::Session;

impl Engine {
    pub(super) fn take_members(&mut self, now_ms: u64, members: Members, out: &mut Vec<Effect>) {
        if members == self.members {
            return;
        }
        let me = self.identity.node_id;
        let others: BTreeMap<NodeId, &Member> = members
            .members
            .iter()
            .filter(|member| member.node_id != me)
            .map(|member| (member.node_id, member))
            .collect();
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|node_id| !others.contains_key(node_id)).copied().collect();
        for node_id in gone {
            let conns: Vec<ConnId> =
                self.conns.iter().filter(|(_, n)| **n == node_id).map(|(conn, _)| *conn).collect();
            // A device that is no member of the group that this device just joined was not removed
            // from it.
            let code = match members.removed.contains(&node_id) {
                true => CloseCode::Removed,
                false => CloseCode::NotMember,
            };
            for conn in conns {
                self.close(conn, code, "", out);
                self.conns.remove(&conn);
            }
            self.end_session(node_id);
            self.peers.remove(&node_id);
        }
        for (node_id, member) in others {
            let peer = self.peers.entry(node_id).or_insert_with(|| Peer {
                name: String::new(),
                link: Link::new(now_ms, me < node_id),
                session: None,
                standby_hello: None,
                since: None,
                scans: Scans::default(),
                belief: Belief::default(),
                talk: Talk::default(),
                last_error: None,
                lost_ms: None,
            });
            peer.name.clone_from(&member.name);
        }
        self.members = members;
    }

    pub(super) fn on_seen(&mut self, now_ms: u64, node_id: NodeId) {
        let random = self.dice.next_u64();
        if let Some(peer) = self.peers.get_mut(&node_id) {
            peer.link.announced(now_ms, random);
        }
    }

    pub(super) fn on_connected(
        &mut self,
        now_ms: u64,
        conn: Conn,
        node_id: NodeId,
        out: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get_mut(&node_id) else {
            out.push(close(conn.id, CloseCode::NotMember, ""));
            return;
        };
        self.conns.insert(conn.id, node_id);
        match peer.link.connected(conn) {
            Placed::Current { close } => {
                self.follow_link(now_ms, node_id, Change { run: Some(conn), close }, out);
            }
            Placed::Standby { close } => {
                self.follow_link(now_ms, node_id, Change { run: None, close }, out);
            }
            Placed::Duplicate => out.push(close(conn.id, CloseCode::Duplicate, "")),
        }
    }

    pub(super) fn follow_link(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        change: Change,
        out: &mut Vec<Effect>,
    ) {
        out.extend(change.close.map(|conn| close(conn, CloseCode::Duplicate, "")));
        if let Some(conn) = change.run {
            self.begin_session(now_ms, node_id, conn, out);
        }
    }

    fn begin_session(&mut self, now_ms: u64, node_id: NodeId, conn: Conn, out: &mut Vec<Effect>) {
        self.end_session(node_id);
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        peer.session = Some(Session::new(now_ms, conn.id, conn.dialed, conn.plain));
        peer.talk = Talk::default();
        let hello = Hello {
            group_id: self.identity.group_id,
            device_name: self.identity.device_name.clone(),
            store_id: self.identity.store_id,
            algorithm: self.identity.algorithm,
            build: self.identity.build.clone(),
            journal: true,
            proofs: true,
            thumbnails: true,
            copies: true,
            chooses: self.own.chooses,
            metadata: true,
        };
        out.push(Effect::Send { conn: conn.id, message: Message::Hello(hello) });
        if let Some((_, hello)) = peer.standby_hello.take_if(|(said_on, _)| *said_on == conn.id) {
            self.on_hello(now_ms, node_id, conn.id, hello, out);
        }
    }

    /// Drops the session and everything under way in it. The connection may live on.
    fn end_session(&mut self, node_id: NodeId) {
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = peer.session.take() else { return };
        self.sending.retain(|(conn, _), _| *conn != session.conn);
        self.wants.peer_gone(node_id);
    }

    /// Dials every peer that is away, and sends every other one a message: its acknowledgement shows
    /// that the path still works, and the message shows the peer a new address of this device.
    pub(super) fn on_network_changed(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        self.peers.values_mut().for_each(|peer| peer.link.hurry(now_ms));
        for peer in self.peers.values() {
            let Some(session) = &peer.session else { continue };
            let is_ready = session.hello.is_some() && session.closing.is_none();
            if is_ready && session.plain.is_none() {
                let message = Message::Summary(Box::new(self.summary(peer.since)));
                out.push(Effect::Send { conn: session.conn, message });
            }
        }
    }

    pub(super) fn on_dial_failed(&mut self, now_ms: u64, node_id: NodeId, reason: String) {
        let random = self.dice.next_u64();
        if let Some(peer) = self.peers.get_mut(&node_id) {
            peer.link.dial_failed(now_ms, random);
            peer.last_error = Some(reason);
        }
    }

    pub(super) fn on_disconnected(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        reason: String,
        violation: bool,
        out: &mut Vec<Effect>,
    ) {
        let random = self.dice.next_u64();
        let Some(node_id) = self.conns.remove(&conn) else { return };
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let was_current = peer.link.current().is_some_and(|current| current.id == conn);
        let own = peer.session.as_ref().filter(|session| session.conn == conn);
        let closed = own.and_then(|session| session.closing);
        let violation = violation || closed.is_some_and(CloseCode::is_violation);
        let change = peer.link.ended(conn, now_ms, violation, random);
        if !was_current {
            return;
        }
        (peer.last_error, peer.lost_ms) = (Some(reason), Some(now_ms));
        self.end_session(node_id);
        self.follow_link(now_ms, node_id, change, out);
    }

    pub(super) fn on_message(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        message: Message,
        out: &mut Vec<Effect>,
    ) {
        let Some((node_id, session)) = self.session_of(conn) else {
            self.note_standby(conn, message);
            return;
        };
        session.heard(now_ms);
        if let Message::Hello(hello) = message {
            if session.hello.is_some() {
                self.close(conn, CloseCode::Protocol, "a second Hello", out);
            } else {
                self.on_hello(now_ms, node_id, conn, hello, out);
            }
            return;
        }
        if session.hello.is_none() || session.plain.is_some() {
            self.close(conn, CloseCode::Protocol, "a message before Hello", out);
            return;
        }
        match message {
            Message::Hello(_) => {}
            Message::Summary(summary) => session.compare.theirs = Some(*summary),
            Message::Reconcile(ReconcileMessage::Compare { round, summary }) => {
                self.on_compare(now_ms, conn, round, summary, out);
            }
            Message::Reconcile(message) => {
                self.drive(now_ms, conn, out, |reconciler, out| {
                    reconciler.on_message(message, out)
                });
            }
            Message::Absent(absent) => self.on_absent(conn, absent),
            Message::AbsentPull { log, after_turn } => {
                self.on_absent_pull(conn, log, after_turn, out);
            }
            Message::SizePull(hashes) => self.on_size_pull(conn, hashes, out),
            Message::Sizes(sizes) => self.on_sizes_told(conn, sizes, out),
            Message::AbsentPage(page) => self.on_absent_page(conn, *page, out),
            Message::Solicit(hashes) => {
                if session.lanes.solicited() + hashes.len() > SOLICITED_PER_PEER_MAX {
                    self.close(conn, CloseCode::TooLarge, "too much solicited at once", out);
                    return;
                }
                session.lanes.push_to_size(hashes.clone());
                self.doubt(node_id, &hashes, out);
                self.ask_sizes(conn, out);
            }
            Message::SolicitNow(hashes) => {
                if session.lanes.solicited() + hashes.len() > SOLICITED_PER_PEER_MAX {
                    self.close(conn, CloseCode::TooLarge, "too much solicited at once", out);
                    return;
                }
                session.lanes.push_now(hashes.clone());
                self.doubt(node_id, &hashes, out);
                self.ask_sizes(conn, out);
            }
            Message::Lacking(hashes) => {
                session.compare.touch(now_ms + SETTLE_MS);
                self.doubt(node_id, &hashes, out);
                for hash in hashes {
                    self.fetches.denied(node_id, &hash);
                    self.wants.unavailable(node_id, hash);
                }
            }
        }
    }

    /// Keeps the Hello that arrives on a standby connection. Any other message there is ignored,
    /// because no session answers on it.
    fn note_standby(&mut self, conn: ConnId, message: Message) {
        let Some(node_id) = self.conns.get(&conn) else { return };
        let Some(peer) = self.peers.get_mut(node_id) else { return };
        if let Message::Hello(hello) = message
            && peer.link.standby().is_some_and(|standby| standby.id == conn)
        {
            peer.standby_hello = Some((conn, hello));
        }
    }

    fn on_hello(
        &mut self,
        now_ms: u64,
        node_id: NodeId,
        conn: ConnId,
        hello: Hello,
        out: &mut Vec<Effect>,
    ) {
        if hello.group_id != self.identity.group_id {
            self.close(conn, CloseCode::WrongGroup, "", out);
            return;
        }
        if hello.algorithm != self.identity.algorithm {
            let ours = self.identity.algorithm.name();
            let detail = format!("{ours} here, {} there", hello.algorithm.name());
            self.close(conn, CloseCode::HashAlgorithm, &detail, out);
            return;
        }
        let Some(peer) = self.peers.get_mut(&node_id) else { return };
        let Some(session) = &mut peer.session else { return };
        peer.last_error = None;
        peer.name = device_name(&hello.device_name);
        let opens_journal = hello.journal && session.dialed;
        session.hello = Some(hello);
        session.heard(now_ms);
        let is_plain = session.plain.is_some();
        self.look_for_missing(now_ms, node_id);
        if is_plain {
            out.push(Effect::RunPlain { conn });
        } else if opens_journal {
            out.push(Effect::OpenJournal { conn });
        }
    }
}
