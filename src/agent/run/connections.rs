//! What the loop does with connections: takes up a new one, ends one, and finds out which are silent.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Loop;
use crate::agent::link::{self, CONTROL_QUEUE};
use crate::agent::live::Live;
use crate::agent::membership;
use crate::core::close::CloseCode;
use crate::core::engine::Input;
use crate::core::ids::NodeId;
use crate::core::journal::session::Standing;
use crate::core::peers::ConnId;
use crate::core::silence::{Heard, Silence};
use crate::core::wants::BatchId;
use crate::net::{Connection, Ended, Protocol, RecvStream, SendStream};
use crate::replica::picture::LinkFigures;
use crate::transfer::Counters;

impl Loop {
    /// The network changed or the device woke up: no connection is believed to be alive until its peer
    /// has answered.
    pub(super) fn on_network_changed(&mut self) {
        let now_ms = self.parts.clock.now_ms();
        let is_stranded = self.parts.net.stranded();
        let mut silent = Vec::new();
        for (conn, live) in &mut self.links.live {
            live.look(now_ms);
            live.silence.asked(now_ms);
            if is_stranded(&live.connection) && live.silence.stranded().is_some() {
                silent.push(*conn);
            }
        }
        self.handle(Input::NetworkChanged);
        for conn in silent {
            self.handle(Input::Silent(conn));
        }
    }

    pub(super) fn look_at_connections(&mut self, now_ms: u64) {
        let looked: Vec<(ConnId, Heard)> = self
            .links
            .live
            .iter_mut()
            .filter_map(|(conn, live)| Some((*conn, live.look(now_ms)?)))
            .collect();
        for (conn, heard) in looked {
            self.handle(match heard {
                Heard::Silent => Input::Silent(conn),
                Heard::Again => Input::HeardAgain(conn),
            });
        }
    }

    pub(super) fn on_connection(&mut self, connection: Connection) {
        let conn = ConnId(self.parts.ids.next());
        let (commands, queue) = mpsc::channel(CONTROL_QUEUE);
        let counters = Arc::new(Counters::default());
        let throttle = self.parts.throttle.link(&connection);
        let (peer, dialed) = (connection.peer(), connection.dialed());
        let plain = connection.protocol() == Protocol::Plain;
        tracing::info!(peer = %peer.short(), dialed, plain, "connected");
        self.parts.tasks.spawn(
            "connection",
            link::run(
                conn,
                connection.clone(),
                queue,
                self.parts.facts.clone(),
                self.parts.ctx.with_peer(peer),
                counters.clone(),
                throttle.clone(),
            ),
        );
        membership::record_addresses(&mut self.parts, peer, connection.remote_addresses());
        let (figures, journal, put_off) = (LinkFigures::default(), None, None);
        let (refused, silence) = (BTreeMap::new(), Silence::begin(self.parts.clock.now_ms()));
        let live = Live {
            connection,
            commands,
            counters,
            throttle,
            figures,
            journal,
            silence,
            put_off,
            refused,
        };
        self.links.live.insert(conn, live);
        self.handle(Input::Connected { conn, peer, dialed, plain });
    }

    pub(super) fn on_ended(&mut self, conn: ConnId, ended: Ended) {
        let Some(live) = self.links.live.remove(&conn) else { return };
        tracing::info!(peer = %live.connection.peer().short(), reason = ended.text, "disconnected");
        let peer = live.connection.peer();
        let roster = self.parts.journal.roster();
        let is_member = |device: &NodeId| roster.standing(device) == Standing::Member;
        self.totals.ended(&live.connection, &live.counters, is_member);
        let is_unknown_there = match ended.code.filter(|_| ended.by_peer) {
            Some(CloseCode::NotMember) => live.connection.dialed(),
            Some(CloseCode::Removed) => !self.engine.is_removed(),
            _ => false,
        };
        if is_unknown_there {
            let addresses = self.links.addresses.get(&peer).cloned().unwrap_or_default();
            membership::introduce(&mut self.parts, peer, addresses);
        }
        let violation = ended.code.is_some_and(CloseCode::is_violation);
        self.handle(Input::Disconnected { conn, reason: ended.text, violation });
    }

    pub(super) fn on_stream(&mut self, conn: ConnId, send: SendStream, recv: RecvStream) {
        let Some(live) = self.links.live.get(&conn) else { return };
        let batch = BatchId(self.parts.ids.next());
        if live.connection.protocol() == Protocol::Plain {
            self.handle(Input::PlainStream { conn, batch });
        }
        self.links.receive(&mut self.parts, conn, batch, (send, recv));
    }
}
