//! The one loop: facts in, effects out. It owns every task and every queue's far end, and never
//! waits for a peer, the disk or the store.
//!
//! I1  Facts reach the engine in the order they were told; effects are carried out in the order the
//!     engine gave them.
//! I2  Every task stands in one [`JoinSet`], with a name; one that panics stops the agent in order.
//! I3  Stopping: no new work, the batches under way, the connections, the tasks, the index, the
//!     endpoint; each step with a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SleepWatch, wall_ms};
use crate::core::close::CloseCode;
use crate::core::engine::{Effect, Engine, Identity, Input, KnownSet, Sent};
use crate::core::ids::{Digest, HashAlgorithm, NodeId, StoreId};
use crate::core::journal::log::LogEvent;
use crate::core::message::Members;
use crate::core::peers::ConnId;
use crate::core::reconcile::Since;
use crate::core::session::Lane;
use crate::core::wants::{Arrival, BatchId};
use crate::net::Accepted;
use crate::net::Net;
use crate::net::{Connection, Ended, Protocol, RecvStream, SendStream};
use crate::state::group::Group;
use crate::store::{Cursor, Store, StoreInfo};

use super::device::Publisher;
use super::events::{self, EventLog};
use super::fact::{Fact, Facts};
use super::handle::Request;
use super::journal::{JournalHandle, JournalWriter};
use super::link::{CONTROL_QUEUE, Order};
use super::metadata::Settler;
use super::picture::{LinkFigures, Picture};
use super::status::Status;
use super::transfer::{self, Context, Counters, Outcome, TransferError, plain};
use super::{follow, link, orders, query};

/// Facts handled before the loop looks at its other sources again.
const FACTS_PER_TURN: usize = 64;

/// The sketch is saved after this many new assets ...
const SAVE_ASSETS: u64 = 10_000;

/// ... or this long after the last change that was not saved.
const SAVE_MS: u64 = 30_000;

/// Status is made anew at most this often while facts pour in, and this often while bytes flow.
const STATUS_MS_MIN: u64 = 20;
const STATUS_MS_ACTIVE: u64 = 500;

/// How often the loop looks whether the device slept.
const SLEEP_LOOK_MS: u64 = 5_000;

/// What the loop works with.
pub(super) struct Parts {
    pub(super) node_id: NodeId,
    pub(super) net: Net,
    pub(super) store: Arc<dyn Store>,
    pub(super) store_location: String,
    pub(super) group: Arc<Group>,
    pub(super) journal: JournalHandle,
    pub(super) ctx: Context,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) status: watch::Sender<Status>,
    pub(super) stop: CancellationToken,
    pub(super) unreachable: Vec<NodeId>,
    pub(super) events: EventLog,
    /// How many assets' metadata is held back.
    pub(super) frozen: watch::Receiver<usize>,
}

/// Tasks around the journal, to be started with the loop.
pub(super) struct Tellers {
    pub(super) writer: JournalWriter,
    pub(super) settler: Settler,
    pub(super) publisher: Publisher,
    pub(super) told: mpsc::Receiver<LogEvent>,
}

/// A live connection and what belongs to it.
struct Live {
    connection: Connection,
    orders: mpsc::Sender<Order>,
    counters: Arc<Counters>,
    figures: LinkFigures,
}

/// The store as last seen.
#[derive(Default)]
pub(super) struct StoreView {
    pub(super) up: bool,
    pub(super) error: Option<String>,
}

/// How far the store's feed has been taken in, and how often it was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TakenIn {
    pub(super) cursor: Cursor,
    pub(super) passes: u64,
}

pub(super) struct Loop {
    pub(super) parts: Parts,
    pub(super) tasks: JoinSet<()>,
    task_names: BTreeMap<String, &'static str>,
    pub(super) facts: Facts,
    clock: Clock,
    engine: Engine,
    effects: Vec<Effect>,
    live: BTreeMap<ConnId, Live>,
    decisions: BTreeMap<BatchId, oneshot::Sender<Vec<bool>>>,
    last_id: u64,
    addresses: BTreeMap<NodeId, Vec<String>>,
    store: StoreView,
    pub(super) nudge: Arc<Notify>,
    pub(super) taken_in: watch::Sender<TakenIn>,
    saved_seq: u64,
    save_at_ms: Option<u64>,
    picture: Picture,
    publish_at_ms: Option<u64>,
    stopped: bool,
}

/// Runs the agent until `stop` is cancelled and everything has ended.
///
/// # Errors
/// The index cannot be read at start, or a task panicked.
pub(super) async fn run(parts: Parts, tellers: Tellers) -> Result<()> {
    let (facts, mut inbox) = Facts::channel();
    let clock = Clock::start();
    let engine = load_engine(&parts).await?;
    let saved_seq = engine.known().head_seq;
    let (taken_in, _) = watch::channel(TakenIn::default());
    let mut this = Loop {
        tasks: JoinSet::new(),
        task_names: BTreeMap::new(),
        facts,
        clock,
        engine,
        effects: Vec::new(),
        live: BTreeMap::new(),
        decisions: BTreeMap::new(),
        last_id: 0,
        addresses: BTreeMap::new(),
        store: StoreView::default(),
        nudge: Arc::new(Notify::new()),
        taken_in,
        saved_seq,
        save_at_ms: None,
        picture: Picture::default(),
        publish_at_ms: Some(0),
        stopped: false,
        parts,
    };
    this.start_journal(tellers);
    this.start_sources();
    let ended = this.turn_until_stopped(&mut inbox).await;
    drop(inbox);
    this.wind_up().await;
    ended
}

async fn load_engine(parts: &Parts) -> Result<Engine> {
    let (index, group) = (parts.ctx.index.clone(), parts.group.clone());
    let node_id = parts.node_id;
    tokio::task::spawn_blocking(move || {
        let group_id = group.group_id()?;
        let known = query::load(&index, &group_id)?;
        let (store_id, algorithm) =
            index.bound()?.unwrap_or((StoreId([0; 16]), HashAlgorithm::default()));
        let members = group.all()?;
        let mut cursors = BTreeMap::new();
        for member in &members.members {
            if let Some((epoch, seq)) = index.peer_cursor(&member.node_id)? {
                cursors.insert(member.node_id, Since { epoch, seq });
            }
        }
        let identity = Identity {
            node_id,
            group_id,
            device_name: group.name()?,
            store_id,
            algorithm,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Engine::new(identity, known, members, cursors, rand::random()))
    })
    .await?
}

impl Loop {
    fn start_journal(&mut self, tellers: Tellers) {
        let Tellers { writer, settler, publisher, told } = tellers;
        let stop = self.parts.stop.clone();
        self.spawn_blocking("journal writer", move || {
            if let Err(error) = writer.serve() {
                tracing::error!(%error, "the journal's database failed: stopping");
                stop.cancel();
            }
        });
        let (journal, status) = (self.parts.journal.clone(), self.parts.status.subscribe());
        self.spawn("metadata", settler.run());
        self.spawn("event log", events::record(journal, told, status));
        self.spawn("device state", publisher.run());
    }

    fn start_sources(&mut self) {
        let acceptor = orders::admission(&self.parts);
        let facts = self.facts.clone();
        self.spawn("accept", async move {
            let mut acceptor = acceptor;
            while let Some(accepted) = acceptor.next().await {
                facts.send(Fact::Accepted(accepted)).await;
            }
        });
        let (net, facts) = (self.parts.net.clone(), self.facts.clone());
        self.spawn("network events", async move {
            let mut events = net.events().await;
            loop {
                let input = match events.next().await {
                    crate::net::NetEvent::Seen(node_id) => Input::Seen(node_id),
                    crate::net::NetEvent::AddressesChanged => Input::NetworkChanged,
                };
                facts.send(Fact::Input(input)).await;
            }
        });
        let store = self.parts.store.clone();
        let (index, facts) = (self.parts.ctx.index.clone(), self.facts.clone());
        let nudge = self.nudge.clone();
        self.spawn("store follower", follow::follow(store, index, facts, nudge));
        self.read_group();
    }

    async fn turn_until_stopped(&mut self, inbox: &mut mpsc::Receiver<Fact>) -> Result<()> {
        let mut sleep_watch = SleepWatch::new(self.clock.now_ms(), wall_ms());
        let mut look_at_ms = SLEEP_LOOK_MS;
        let stop = self.parts.stop.clone();
        let mut stopping = false;
        self.handle(Input::Tick);
        while !self.stopped {
            let wake_ms = [self.engine.deadline_ms(), self.save_at_ms, self.publish_at_ms]
                .into_iter()
                .flatten()
                .chain([look_at_ms])
                .min()
                .unwrap_or(look_at_ms);
            let wake = sleep_until(self.clock.instant(wake_ms).into());
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.handle(Input::Stop);
                }
                Some(ended) = self.tasks.join_next_with_id() => self.on_task_end(ended)?,
                Some(request) = self.parts.requests.recv() => orders::on_request(self, request),
                Some(fact) = inbox.recv() => {
                    self.on_fact(fact).await;
                    for _ in 1..FACTS_PER_TURN {
                        let Ok(fact) = inbox.try_recv() else { break };
                        self.on_fact(fact).await;
                    }
                }
                () = wake => self.handle(Input::Tick),
            }
            let now_ms = self.clock.now_ms();
            if now_ms >= look_at_ms {
                look_at_ms = now_ms + SLEEP_LOOK_MS;
                if sleep_watch.slept(now_ms, wall_ms()) {
                    tracing::info!("the device slept: dialling everyone anew");
                    self.handle(Input::NetworkChanged);
                }
            }
            if self.save_at_ms.is_some_and(|at| now_ms >= at) {
                self.save_sketch();
            }
            if self.publish_at_ms.is_some_and(|at| now_ms >= at) {
                self.publish();
            }
        }
        Ok(())
    }

    /// Ends what is left, in order. What was acknowledged is durable already.
    async fn wind_up(&mut self) {
        self.tasks.abort_all();
        self.parts.journal.close().await;
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a task panicked");
            }
        }
        self.parts.net.close().await;
        let (index, group, known) =
            (self.parts.ctx.index.clone(), self.parts.group.clone(), self.engine.known().clone());
        let closed = tokio::task::spawn_blocking(move || {
            query::save(&index, &group.group_id()?, &known)?;
            index.close().context("closing the index")
        })
        .await;
        match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("{error:#}"),
            Err(error) => tracing::error!(%error, "closing the index panicked"),
        }
    }

    // ---- tasks -------------------------------------------------------------------------------

    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.tasks.spawn(task).id();
        self.task_names.insert(id.to_string(), name);
    }

    pub(super) fn spawn_blocking(
        &mut self,
        name: &'static str,
        task: impl FnOnce() + Send + 'static,
    ) {
        let id = self.tasks.spawn_blocking(task).id();
        self.task_names.insert(id.to_string(), name);
    }

    fn on_task_end(&mut self, ended: Result<(Id, ()), JoinError>) -> Result<()> {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let name = self.task_names.remove(&id.to_string()).unwrap_or("unnamed");
        match ended {
            Ok(_) => Ok(()),
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(anyhow::anyhow!("the task {name:?} failed: {error}")),
        }
    }

    // ---- facts in ----------------------------------------------------------------------------

    async fn on_fact(&mut self, fact: Fact) {
        match fact {
            Fact::Input(input) => {
                if let Input::Indexed { entries, .. } = &input
                    && !entries.is_empty()
                {
                    self.note_unsaved();
                }
                self.handle(input);
            }
            Fact::Accepted(Accepted::Session(connection)) | Fact::Dialed(connection) => {
                self.on_connection(connection);
            }
            Fact::Accepted(Accepted::Pairing(connection)) => orders::host(self, connection),
            Fact::Ended { conn, ended } => self.on_ended(conn, ended),
            Fact::Stream { conn, send, recv } => self.receive(conn, send, recv),
            Fact::Offered { conn, batch, digests, reply } => {
                self.decisions.insert(batch, reply);
                self.handle(Input::Offered { conn, batch, digests });
            }
            Fact::PlainDone { conn, report } => {
                let sent = report.sent.iter().map(|(digest, _)| digest.hash);
                let received = report.received.iter().map(|received| received.digest.hash);
                let crossed = sent.chain(received).collect();
                self.handle(Input::PlainDone { conn, crossed });
                if !report.is_complete
                    && let Some(live) = self.live.get(&conn)
                {
                    // The next connection carries the rest.
                    live.connection.close(CloseCode::Ok, "more to send");
                }
            }
            Fact::StoreUp { info, reply } => self.on_store_up(info, reply).await,
            Fact::StoreDown { error } => {
                if self.store.up {
                    tracing::warn!(error, "the store does not answer");
                }
                self.store = StoreView { up: false, error: Some(error) };
                self.handle(Input::Store { up: false });
            }
            Fact::TakenIn { cursor } => {
                self.publish();
                self.taken_in.send_modify(|taken_in| {
                    *taken_in = TakenIn { cursor, passes: taken_in.passes + 1 };
                });
            }
            Fact::GroupChanged => self.read_group(),
            Fact::Group { members, name } => self.on_group(members, name),
            Fact::Joined { result, reply } => {
                if result.is_ok() {
                    self.restart_engine("joined a group").await;
                }
                // Who asked may have gone.
                let _ = reply.send(result);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now_ms = self.clock.now_ms();
        self.engine.handle(now_ms, input, &mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
        if self.publish_at_ms.is_none_or(|at| at > now_ms + STATUS_MS_MIN) {
            self.publish_at_ms = Some(self.picture.published_ms() + STATUS_MS_MIN);
        }
    }

    fn on_connection(&mut self, connection: Connection) {
        let conn = ConnId(self.next_id());
        let (orders, queue) = mpsc::channel(CONTROL_QUEUE);
        let counters = Arc::new(Counters::default());
        let (peer, dialed) = (connection.peer(), connection.dialed());
        let plain = connection.protocol() == Protocol::Plain;
        tracing::info!(peer = %peer.short(), dialed, plain, "connected");
        self.spawn(
            "connection",
            link::run(
                conn,
                connection.clone(),
                queue,
                self.facts.clone(),
                self.parts.ctx.with_peer(peer),
                counters.clone(),
            ),
        );
        orders::record_addresses(self, peer, connection.remote_addresses());
        let figures = LinkFigures::default();
        self.live.insert(conn, Live { connection, orders, counters, figures });
        self.handle(Input::Connected { conn, peer, dialed, plain });
    }

    fn on_ended(&mut self, conn: ConnId, ended: Ended) {
        let Some(live) = self.live.remove(&conn) else { return };
        tracing::info!(peer = %live.connection.peer().short(), reason = ended.text, "disconnected");
        let violation = ended.code.is_some_and(|code| match code {
            CloseCode::NotMember
            | CloseCode::Removed
            | CloseCode::WrongGroup
            | CloseCode::Version
            | CloseCode::HashAlgorithm
            | CloseCode::Protocol
            | CloseCode::TooLarge => true,
            CloseCode::Ok
            | CloseCode::Duplicate
            | CloseCode::Slow
            | CloseCode::Shutdown
            | CloseCode::Internal
            | CloseCode::Unknown(_) => false,
        });
        self.handle(Input::Disconnected { conn, reason: ended.text, violation });
    }

    async fn on_store_up(&mut self, info: StoreInfo, reply: oneshot::Sender<Cursor>) {
        let index = self.parts.ctx.index.clone();
        let (store_id, algorithm) = (info.store_id, info.hash_algorithm);
        let bound = tokio::task::spawn_blocking(move || {
            let before = index.bound()?;
            let now = Some((store_id, algorithm));
            if before != now {
                index.bind(&store_id, algorithm)?;
            }
            anyhow::Ok((before, before != now, index.head().store_cursor))
        })
        .await;
        let (before, is_other, cursor) = match bound {
            Ok(Ok(bound)) => bound,
            Ok(Err(error)) => {
                tracing::error!("binding the index to the store: {error:#}");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "binding the index panicked");
                return;
            }
        };
        if is_other {
            if let Some((old, _)) = before {
                tracing::warn!(%old, new = %store_id, "another store answers: its assets are taken in anew");
            }
            self.parts.ctx.algorithm = algorithm;
            self.restart_engine("another store").await;
        }
        if !self.store.up {
            tracing::info!(assets = info.asset_count, "the store answers");
        }
        self.store = StoreView { up: true, error: None };
        self.handle(Input::Store { up: true });
        // The follower may have been told to stop.
        let _ = reply.send(cursor);
    }

    /// Begins anew with what the disk says: another group, or another store.
    async fn restart_engine(&mut self, why: &str) {
        tracing::info!(why, "starting over");
        for live in self.live.values() {
            live.connection.close(CloseCode::Ok, why);
        }
        match load_engine(&self.parts).await {
            Ok(engine) => self.engine = engine,
            Err(error) => {
                tracing::error!("{error:#}");
                self.parts.stop.cancel();
                return;
            }
        }
        self.decisions.clear();
        self.note_unsaved();
        self.handle(Input::Store { up: self.store.up });
        self.handle(Input::Indexed { entries: Vec::new(), behind: !self.store.up });
        self.read_group();
    }

    // ---- the group ---------------------------------------------------------------------------

    /// Reads the group from disk; it comes back as [`Fact::Group`].
    fn read_group(&mut self) {
        let (group, facts) = (self.parts.group.clone(), self.facts.clone());
        self.spawn_blocking("read group", move || {
            let read = || anyhow::Ok((group.all()?, group.name()?));
            match read() {
                Ok((members, name)) => facts.blocking_send(Fact::Group { members, name }),
                Err(error) => tracing::error!("reading the group: {error:#}"),
            }
        });
    }

    fn on_group(&mut self, members: Members, name: String) {
        let reachable = |node_id: &NodeId| !self.parts.unreachable.contains(node_id);
        self.addresses = members
            .members
            .iter()
            .filter(|member| reachable(&member.node_id))
            .map(|member| (member.node_id, member.addresses.clone()))
            .collect();
        self.handle(Input::Renamed(name));
        self.handle(Input::Members(members));
    }

    // ---- effects out -------------------------------------------------------------------------

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Dial(peer) => self.dial(peer),
            Effect::Close { conn, code, detail } => {
                if let Some(live) = self.live.get(&conn) {
                    tracing::debug!(peer = %live.connection.peer().short(), %code, detail, "closing");
                    live.connection.close(code, &detail);
                }
            }
            Effect::Send { conn, message } => self.order(conn, Order::Send(message)),
            Effect::RunPlain { conn } => self.order(conn, Order::RunPlain),
            Effect::Ask { conn, query } => {
                let (index, facts) = (self.parts.ctx.index.clone(), self.facts.clone());
                self.spawn_blocking("index query", move || {
                    let answer = query::answer(&index, query);
                    facts.blocking_send(Fact::Input(Input::Answer { conn, answer }));
                });
            }
            Effect::AskSizes { conn, hashes } => {
                let (index, facts) = (self.parts.ctx.index.clone(), self.facts.clone());
                self.spawn_blocking("index query", move || {
                    let (held, missing) = query::sizes(&index, hashes);
                    facts.blocking_send(Fact::Input(Input::Sizes { conn, held, missing }));
                });
            }
            Effect::SendBatch { conn, batch, digests, lane, solicited, inline } => {
                self.send_batch(conn, batch, digests, lane, solicited, inline);
            }
            Effect::Decide { batch, wanted } => {
                if let Some(reply) = self.decisions.remove(&batch) {
                    // A receiver that ended meanwhile is told of by its own fact.
                    let _ = reply.send(wanted);
                }
            }
            Effect::SaveCursor { peer, since } => {
                let index = self.parts.ctx.index.clone();
                self.spawn_blocking("save cursor", move || {
                    if let Err(error) = index.set_peer_cursor(&peer, &since.epoch, since.seq) {
                        tracing::warn!("saving a peer's cursor: {error:#}");
                    }
                });
            }
            Effect::MergeMembers { peer, members } => orders::merge(self, peer, members),
            Effect::RebuildSketch => {
                tracing::warn!("the sketch does not match the index: rebuilding it");
                let (index, group) = (self.parts.ctx.index.clone(), self.parts.group.clone());
                let facts = self.facts.clone();
                self.spawn_blocking("rebuild sketch", move || {
                    let scan = || query::scan(&index, &group.group_id()?);
                    match scan() {
                        Ok(known) => facts.blocking_send(Fact::Input(Input::Rebuilt(known))),
                        Err(error) => tracing::error!("rebuilding the sketch: {error:#}"),
                    }
                });
            }
            Effect::Stopped => self.stopped = true,
        }
    }

    fn order(&mut self, conn: ConnId, order: Order) {
        let Some(live) = self.live.get(&conn) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = live.orders.try_send(order) {
            tracing::warn!(peer = %live.connection.peer().short(), "takes no messages: closing");
            live.connection.close(CloseCode::Slow, "takes no messages");
        }
    }

    fn dial(&mut self, peer: NodeId) {
        let addresses = self.addresses.get(&peer).cloned().unwrap_or_default();
        let (net, facts) = (self.parts.net.clone(), self.facts.clone());
        self.spawn("dial", async move {
            let fact = match net.dial(peer, &addresses).await {
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
        &mut self,
        conn: ConnId,
        batch: BatchId,
        digests: Vec<Digest>,
        lane: Lane,
        solicited: bool,
        inline: bool,
    ) {
        let Some(live) = self.live.get(&conn) else { return };
        let (connection, counters) = (live.connection.clone(), live.counters.clone());
        let (ctx, facts) = (self.parts.ctx.clone(), self.facts.clone());
        let events = self.parts.events.clone();
        let priority = match lane {
            Lane::Live => 20,
            Lane::Small => 10,
            Lane::Large => 0,
        };
        self.spawn("send batch", async move {
            let sent = async {
                let (send, recv) = connection
                    .open_stream(priority)
                    .await
                    .map_err(|error| TransferError::Frame(error.into()))?;
                match connection.protocol() {
                    Protocol::Plain => {
                        plain::send_plain_live(&ctx, recv, send, &digests, &counters).await
                    }
                    Protocol::Two | Protocol::Pairing => {
                        transfer::send_batch(
                            &ctx, recv, send, &digests, solicited, inline, &counters,
                        )
                        .await
                    }
                }
            };
            let input = match sent.await {
                Ok(outcomes) => {
                    let outcomes = digests.iter().zip(&outcomes);
                    let outcomes = outcomes.map(|(digest, outcome)| {
                        log_sent(digest, outcome, &events);
                        (digest.hash, sent_as(outcome))
                    });
                    Input::BatchSent { batch, outcomes: outcomes.collect() }
                }
                Err(error) => {
                    tracing::debug!(peer = %connection.peer().short(), %error, "a batch broke off");
                    Input::BatchFailed { batch, violation: error.is_violation() }
                }
            };
            facts.send(Fact::Input(input)).await;
        });
    }

    fn receive(&mut self, conn: ConnId, send: SendStream, recv: RecvStream) {
        let batch = BatchId(self.next_id());
        let Some(live) = self.live.get(&conn) else { return };
        let (counters, plain) =
            (live.counters.clone(), live.connection.protocol() == Protocol::Plain);
        let peer = live.connection.peer();
        if plain {
            self.handle(Input::PlainStream { conn });
        }
        let (ctx, facts) = (self.parts.ctx.with_peer(peer), self.facts.clone());
        let events = self.parts.events.clone();
        self.spawn("receive batch", async move {
            let receipt = if plain {
                plain::receive_plain_live(&ctx, recv, send, &counters).await
            } else {
                let decide = |digests: Vec<Digest>, _solicited| {
                    let facts = facts.clone();
                    async move {
                        let none = vec![false; digests.len()];
                        let (reply, wanted) = oneshot::channel();
                        facts.send(Fact::Offered { conn, batch, digests, reply }).await;
                        wanted.await.unwrap_or(none)
                    }
                };
                transfer::receive_batch(&ctx, recv, send, decide, &counters).await
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
            let store_failed = receipt
                .received
                .iter()
                .any(|received| matches!(received.outcome, Outcome::Later(_)));
            let arrivals = receipt
                .received
                .into_iter()
                .filter_map(|received| Some((received.digest.hash, arrival(&received.outcome)?)));
            let arrivals = arrivals.collect();
            let input = Input::Received { conn, batch, arrivals, store_failed, violation };
            facts.send(Fact::Input(input)).await;
        });
    }

    // ---- saving and showing ------------------------------------------------------------------

    fn note_unsaved(&mut self) {
        let now_ms = self.clock.now_ms();
        let unsaved = self.engine.known().head_seq.saturating_sub(self.saved_seq);
        let at_ms = if unsaved >= SAVE_ASSETS { now_ms } else { now_ms + SAVE_MS };
        self.save_at_ms = Some(self.save_at_ms.map_or(at_ms, |at| at.min(at_ms)));
    }

    fn save_sketch(&mut self) {
        self.save_at_ms = None;
        let known: KnownSet = self.engine.known().clone();
        self.saved_seq = known.head_seq;
        let (index, group) = (self.parts.ctx.index.clone(), self.parts.group.clone());
        self.spawn_blocking("save sketch", move || {
            let save = || query::save(&index, &group.group_id()?, &known);
            if let Err(error) = save() {
                tracing::warn!("{error:#}");
            }
        });
    }

    fn publish(&mut self) {
        let now_ms = self.clock.now_ms();
        for live in self.live.values_mut() {
            live.figures.measure(now_ms, &live.counters);
        }
        let figures = |conn: ConnId| {
            let live = self.live.get(&conn)?;
            Some((live.figures.clone(), live.connection.path()))
        };
        let status = self.picture.draw(now_ms, &self.parts, &self.engine, &self.store, figures);
        let active = status.peers.iter().any(|peer| {
            peer.state == super::status::PeerState::Syncing
                || peer.send_rate_bytes + peer.receive_rate_bytes > 0.0
        });
        self.publish_at_ms = active.then_some(now_ms + STATUS_MS_ACTIVE);
        self.parts.status.send_replace(status);
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

fn log_sent(digest: &Digest, outcome: &Outcome, events: &EventLog) {
    let hash = digest.hash.short();
    match outcome {
        Outcome::Damaged => {
            let what = "the store's bytes do not match the hash: not sent to anyone";
            tracing::warn!(hash, "{what}");
            let (what, hash) = (what.into(), Some(digest.hash));
            events.tell(LogEvent::IntegrityAlarm { what, hash, device: None });
        }
        Outcome::Refused(reason) => tracing::warn!(hash, reason, "a peer refuses an asset"),
        Outcome::Later(reason) => tracing::info!(hash, reason, "a peer takes an asset later"),
        Outcome::Stored
        | Outcome::AlreadyHeld
        | Outcome::Elsewhere
        | Outcome::Interrupted
        | Outcome::Unavailable => {}
    }
}

fn sent_as(outcome: &Outcome) -> Sent {
    match outcome {
        Outcome::Stored | Outcome::AlreadyHeld => Sent::Held,
        Outcome::Elsewhere | Outcome::Later(_) | Outcome::Interrupted => Sent::Elsewhere,
        Outcome::Refused(_) => Sent::Refused,
        Outcome::Unavailable | Outcome::Damaged => Sent::Unavailable,
    }
}

/// What an asset of a received batch means to the engine; `None`: it was not to come from here.
fn arrival(outcome: &Outcome) -> Option<Arrival> {
    match outcome {
        Outcome::Stored => Some(Arrival::Stored),
        Outcome::AlreadyHeld => Some(Arrival::Held),
        Outcome::Elsewhere => None,
        Outcome::Later(_) | Outcome::Interrupted => Some(Arrival::Interrupted),
        Outcome::Unavailable => Some(Arrival::Unavailable),
        Outcome::Refused(_) | Outcome::Damaged => Some(Arrival::Refused),
    }
}
