//! The live connections, and the engine's effects on them: dials and closes connections, sends
//! messages, sends and receives batches. Each takes place in a task of the loop, whose end is a fact.
//!
//! E1  An effect is started at once and waits for nothing: what takes time runs in a task.
//! E2  The result of a batch is reported to the engine once, however the batch ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::core::close::CloseCode;
use crate::core::engine::{Effect, Engine, Input};
use crate::core::ids::{Digest, NodeId};
use crate::core::journal::device_events::LogEvent;
use crate::core::pairing::Members;
use crate::core::peers::ConnId;
use crate::core::reconcile::Since;
use crate::core::session::Lane;
use crate::core::wants::BatchId;
use crate::net::frame::peek;
use crate::net::{Connection, Protocol, RecvStream, SendStream};
use crate::wire::frame::Kind;

use super::copies;
use super::fact::Fact;
use super::journal_stream;
use super::live::{Command, Live};
use super::parts::Parts;
use crate::replica::query;
use crate::replica::replicate::Replication;
use crate::transfer::{self, Receipt, TransferError, outgoing, plain, report, told};

/// The deadline of the first byte of a stream that a peer opened.
const FIRST_BYTE_WAIT: Duration = Duration::from_secs(5);

/// The live connections and what belongs to them.
pub(super) struct Links {
    pub(super) live: BTreeMap<ConnId, Live>,
    /// The batches offered to this device whose receivers wait for the engine's answer.
    pub(super) decisions: BTreeMap<BatchId, oneshot::Sender<Vec<bool>>>,
    /// The addresses at which members are dialled.
    pub(super) addresses: BTreeMap<NodeId, Vec<String>>,
    pub(super) replication: Replication,
    /// The gate of the catalogue.
    gate: Arc<Mutex<()>>,
}

impl Links {
    /// `gate` is the catalogue's.
    pub(super) fn new(parts: &Parts, gate: Arc<Mutex<()>>) -> Self {
        let replication = Replication::new(parts.journal.clone(), parts.node_id, parts.clock);
        Self {
            live: BTreeMap::new(),
            decisions: BTreeMap::new(),
            addresses: BTreeMap::new(),
            replication,
            gate,
        }
    }

    /// Takes the addresses of the members, except of those that are never dialled.
    pub(super) fn set_addresses(&mut self, parts: &Parts, members: &Members) {
        let dialled = members.members.iter();
        let dialled = dialled.filter(|member| !parts.unreachable.contains(&member.node_id));
        self.addresses = dialled.map(|member| (member.node_id, member.addresses.clone())).collect();
        parts.net.set_member_addresses(self.addresses.values().flatten());
    }

    /// Starts an effect of the engine. [`Effect::Stopped`] is left to the loop.
    pub(super) fn perform(&mut self, parts: &mut Parts, engine: &Engine, effect: Effect) {
        match effect {
            Effect::Dial(peer) => self.dial(parts, peer),
            Effect::Close { conn, code, detail } => {
                if let Some(live) = self.live.get(&conn) {
                    tracing::debug!(peer = %live.connection.peer().short(), %code, detail, "closing");
                    live.connection.close(code, &detail);
                }
            }
            Effect::Send { conn, message } => self.command(conn, Command::Send(message)),
            Effect::RunPlain { conn } => self.command(conn, Command::RunPlain),
            Effect::OpenJournal { conn } => {
                if let Some(live) = self.live.get_mut(&conn) {
                    journal_stream::open(parts, &self.replication, conn, live);
                }
            }
            Effect::Ask { conn, round, query } => {
                let (index, facts) = (parts.ctx.index.clone(), parts.facts.clone());
                parts.tasks.spawn_blocking("index query", move || {
                    let answer = query::answer(&index, query);
                    facts.blocking_send(Fact::Input(Input::Answer { conn, round, answer }));
                });
            }
            Effect::AskSizes { conn, hashes } => {
                let (index, facts) = (parts.ctx.index.clone(), parts.facts.clone());
                parts.tasks.spawn_blocking("index query", move || {
                    let (held, missing) = query::sizes(&index, hashes);
                    facts.blocking_send(Fact::Input(Input::Sizes { conn, held, missing }));
                });
            }
            Effect::SendBatch { conn, batch, digests, lane, inline } => {
                self.send_batch(parts, conn, batch, digests, lane, inline);
            }
            Effect::Decide { batch, wanted } => {
                if let Some(reply) = self.decisions.remove(&batch) {
                    // A receiver that ended meanwhile reports its end by a fact of its own.
                    let _ = reply.send(wanted);
                }
            }
            Effect::SaveCursor { peer, since } => {
                let index = parts.ctx.index.clone();
                let own_epoch = engine.known().epoch;
                parts.tasks.spawn_blocking("save cursor", move || {
                    let Since { epoch, seq } = since;
                    if let Err(error) = index.set_peer_cursor(&own_epoch, &peer, &epoch, seq) {
                        tracing::warn!("saving a peer's cursor: {error:#}");
                    }
                });
            }
            Effect::RebuildSketch => {
                tracing::warn!("the sketch does not match the index: rebuilding it");
                let (index, facts) = (parts.ctx.index.clone(), parts.facts.clone());
                let group_id = engine.identity().group_id;
                parts.tasks.spawn_blocking("rebuild sketch", move || {
                    let scanned = query::scan(&index, &group_id);
                    let input = scanned.map(Input::Rebuilt).unwrap_or_else(|error| {
                        tracing::error!("rebuilding the sketch: {error:#}");
                        Input::RebuildFailed
                    });
                    facts.blocking_send(Fact::Input(input));
                });
            }
            Effect::Stopped => {}
            Effect::ReadAbsent { .. }
            | Effect::ReadSizes { .. }
            | Effect::TakeAbsent { .. }
            | Effect::AskMissing { .. }
            | Effect::Judge { .. }
            | Effect::Confirm { .. }
            | Effect::Doubt { .. } => {
                let judge = parts.judge(self.gate.clone());
                let own_epoch = engine.known().epoch;
                copies::perform(effect, judge, own_epoch, &parts.facts, &mut parts.tasks);
            }
        }
    }

    fn command(&self, conn: ConnId, command: Command) {
        let Some(live) = self.live.get(&conn) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = live.commands.try_send(command) {
            tracing::warn!(peer = %live.connection.peer().short(), "takes no messages: closing");
            live.connection.close(CloseCode::Slow, "takes no messages");
        }
    }

    fn dial(&self, parts: &mut Parts, peer: NodeId) {
        let addresses = self.addresses.get(&peer).cloned().unwrap_or_default();
        let named = parts.named_peers.next_for(peer);
        let (net, facts) = (parts.net.clone(), parts.facts.clone());
        parts.tasks.spawn("dial", async move {
            let dialed = match named {
                // The library looks the peer up beside that.
                Some(named) if addresses.is_empty() => net.dial_named(peer, &named).await,
                Some(named) => match net.dial(peer, &addresses).await {
                    Err(error) if error.is_unreachable() => net.dial_named(peer, &named).await,
                    dialed => dialed,
                },
                None => net.dial(peer, &addresses).await,
            };
            let fact = match dialed {
                Ok(connection) => Fact::Dialed(connection),
                Err(error) => {
                    tracing::debug!(peer = %peer.short(), %error, "dial failed");
                    Fact::Input(Input::DialFailed { peer, reason: error.to_string() })
                }
            };
            facts.send(fact).await;
        });
    }

    fn send_batch(
        &self,
        parts: &mut Parts,
        conn: ConnId,
        batch: BatchId,
        digests: Vec<Digest>,
        lane: Lane,
        inline: bool,
    ) {
        let Some(live) = self.live.get(&conn) else { return };
        let (connection, counters) = (live.connection.clone(), live.counters.clone());
        let throttle = live.throttle.clone();
        let (ctx, facts) = (parts.ctx.clone(), parts.facts.clone());
        parts.tasks.spawn("send batch", async move {
            let sent =
                outgoing::send(&connection, &throttle, &ctx, &digests, lane, inline, &counters);
            let input = match sent.await {
                Ok(outcomes) => {
                    let refused = report::refused(&digests, &outcomes);
                    if !refused.is_empty() {
                        facts.send(Fact::Refused { conn, refused }).await;
                    }
                    if let Some(reason) = report::put_off(&outcomes) {
                        facts.send(Fact::PutOff { conn, reason }).await;
                    }
                    let outcomes = digests.iter().zip(&outcomes);
                    let outcomes = outcomes
                        .map(|(digest, outcome)| (digest.hash, report::sent_as(outcome)))
                        .collect();
                    Input::BatchSent { conn, batch, outcomes }
                }
                Err(error) => {
                    tracing::debug!(peer = %connection.peer().short(), %error, "a batch broke off");
                    Input::BatchFailed { conn, batch, violation: error.is_violation() }
                }
            };
            facts.send(Fact::Input(input)).await;
        });
    }

    /// Receives a batch, or the journal, on a stream that a peer opened.
    pub(super) fn receive(
        &self,
        parts: &mut Parts,
        conn: ConnId,
        batch: BatchId,
        (send, recv): (SendStream, RecvStream),
    ) {
        let Some(live) = self.live.get(&conn) else { return };
        let (counters, plain) =
            (live.counters.clone(), live.connection.protocol() == Protocol::Plain);
        let throttle = live.throttle.clone();
        let (connection, prover) = (live.connection.clone(), parts.prover.clone());
        let (peer, thumbnails) = (connection.peer(), parts.thumbnails.clone());
        let (ctx, facts) = (parts.ctx.with_peer(peer), parts.facts.clone());
        let events = parts.events.clone();
        let judge = parts.judge(self.gate.clone());
        let journal = parts.journal.clone();
        parts.tasks.spawn("receive batch", async move {
            let receipt = if plain {
                match peek(recv, FIRST_BYTE_WAIT).await {
                    Some((kind, recv)) if kind == Kind::MetaUpdate.number() => {
                        let end = told::hear(&ctx, &journal, recv, send).await;
                        Receipt { received: Vec::new(), end }
                    }
                    Some((_, recv)) => {
                        let recv = throttle.down(recv);
                        plain::receive_plain_live(&ctx, recv, send, &counters).await
                    }
                    None => Receipt { received: Vec::new(), end: Ok(()) },
                }
            } else {
                let decide = |digests: Vec<Digest>, solicited: bool| {
                    let (facts, judge) = (facts.clone(), judge.clone());
                    async move {
                        let mut accepted = match solicited {
                            true => vec![true; digests.len()],
                            false => judge.offered(conn, &digests).await,
                        };
                        let asked = digests.iter().zip(&accepted).filter(|(_, wanted)| **wanted);
                        let digests: Vec<Digest> = asked.map(|(digest, _)| *digest).collect();
                        let none = vec![false; digests.len()];
                        let (reply, wanted) = oneshot::channel();
                        facts.send(Fact::Offered { conn, batch, digests, reply }).await;
                        let mut wanted = wanted.await.unwrap_or(none).into_iter();
                        for is_accepted in accepted.iter_mut().filter(|is| **is) {
                            *is_accepted = wanted.next().unwrap_or(false);
                        }
                        accepted
                    }
                };
                match peek(recv, FIRST_BYTE_WAIT).await {
                    Some((kind, recv)) if kind == Kind::JournalHello.number() => {
                        return facts.send(Fact::JournalStream { conn, recv, send }).await;
                    }
                    Some((kind, recv)) if kind == Kind::Prove.number() => {
                        return end_answer(&connection, prover.serve(peer, recv, send).await);
                    }
                    Some((kind, recv)) if kind == Kind::ThumbnailRequest.number() => {
                        return end_answer(&connection, thumbnails.serve(peer, recv, send).await);
                    }
                    Some((_, recv)) => {
                        let recv = throttle.down(recv);
                        transfer::receive_batch(&ctx, recv, send, decide, &counters).await
                    }
                    None => return,
                }
            };
            let violation = receipt.end.as_ref().err().is_some_and(TransferError::is_violation);
            if let Err(TransferError::Corrupt(hash)) = &receipt.end {
                let what = "a device sent bytes that are not those of the hash".into();
                let (hash, device) = (Some(*hash), Some(peer));
                events.tell(LogEvent::IntegrityAlarm { what, hash, device });
            }
            if let Err(error) = &receipt.end {
                tracing::debug!(peer = %peer.short(), %error, "a received batch broke off");
            }
            let store_failed = report::store_failed(&receipt.received);
            let arrivals = report::arrivals(&receipt.received);
            let input = Input::Received { conn, batch, arrivals, store_failed, violation };
            facts.send(Fact::Input(input)).await;
        });
    }
}

/// Closes the connection of a peer that broke the protocol while it was answered.
fn end_answer(connection: &Connection, answered: Result<(), TransferError>) {
    if let Err(error) = answered {
        tracing::debug!(peer = %connection.peer().short(), %error, "an answer broke off");
        if error.is_violation() {
            connection.close(CloseCode::Protocol, &error.to_string());
        }
    }
}
