//! The one loop: facts in, effects out. It owns every task and every queue's far end, and never
//! waits for a peer, the disk or the store.
//!
//! I1  Facts reach the engine in the order they were told; effects are carried out in the order the
//!     engine gave them.
//! I2  Every task stands in one [`JoinSet`], with a name. One that panics, and a disk that fails
//!     (only a restart tells what it holds), stop the agent in order.
//! I3  Stopping: no new work, the batches under way, the connections, the tasks, the endpoint, the
//!     index; each step with a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet, spawn_blocking};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SleepWatch, wall_ms};
use crate::core::close::CloseCode;
use crate::core::engine::{Effect, Engine, Identity, Input, KnownSet, Sent};
use crate::core::ids::{Digest, HashAlgorithm, LogId, NodeId, StoreId};
use crate::core::journal::log::LogEvent;
use crate::core::pairing::Members;
use crate::core::peers::ConnId;
use crate::core::reconcile::Since;
use crate::core::session::Lane;
use crate::core::wants::{Arrival, BatchId};
use crate::net::Accepted;
use crate::net::Net;
use crate::net::{Connection, Ended, Protocol, RecvStream, SendStream};
use crate::state::home::Home;
use crate::state::index::Index;
use crate::state::journal::GroupState;
use crate::store::embedded::EmbeddedStore;
use crate::store::{Cursor, Store, StoreInfo};

use super::device::Publisher;
use super::events::{self, EventLog};
use super::fact::{Fact, Facts, Reload};
use super::follow::Follower;
use super::handle::{LeaveReply, Request};
use super::journal::{JournalHandle, JournalWriter};
use super::link::{CONTROL_QUEUE, Order};
use super::metadata::Settler;
use super::picture::{LinkFigures, LinkView, Picture};
use super::replicate::Replication;
use super::status::{JournalPeerStatus, Status};
use super::throttle::{LinkThrottle, Throttle};
use super::transfer::{self, Context, Counters, Outcome, Received, TransferError};
use super::transfer::{is_large, plain, plain::PlainReport};
use super::{group, journal_stream, link, orders, query};

/// Facts handled before the loop looks at its other sources again.
const FACTS_PER_TURN: usize = 64;

/// The sketch is saved after this many new assets ...
const SAVE_ASSETS: u64 = 10_000;

/// ... or this long after the last change that was not saved.
const SAVE_MS: u64 = 30_000;

/// Status is made anew at most this often while facts pour in, and this often while bytes flow.
const STATUS_MS_MIN: u64 = 20;
const STATUS_MS_ACTIVE: u64 = 500;

/// A stream that a peer opened comes with its first byte.
const FIRST_BYTE_WAIT: Duration = Duration::from_secs(5);

/// How often the loop looks whether the device slept.
const SLEEP_LOOK_MS: u64 = 5_000;

/// The id of the store before any has answered.
const NO_STORE: StoreId = StoreId([0; StoreId::LEN]);

/// At the end, tasks and then the index are given this long; what they leave undone a restart does.
const WIND_UP_WAIT: Duration = Duration::from_secs(10);

/// What the loop works with.
pub(super) struct Parts {
    pub(super) node_id: NodeId,
    pub(super) home: Home,
    pub(super) net: Net,
    pub(super) store: Arc<dyn Store>,
    /// The same, when it is the embedded one.
    pub(super) embedded: Option<EmbeddedStore>,
    pub(super) store_location: String,
    pub(super) journal: JournalHandle,
    pub(super) ctx: Context,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) status: watch::Sender<Status>,
    pub(super) stop: CancellationToken,
    pub(super) unreachable: Vec<NodeId>,
    pub(super) throttle: Throttle,
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
pub(super) struct Live {
    pub(super) connection: Connection,
    orders: mpsc::Sender<Order>,
    counters: Arc<Counters>,
    throttle: LinkThrottle,
    figures: LinkFigures,
    /// `Some` once the journal's stream is open.
    pub(super) journal: Option<JournalPeerStatus>,
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
    pub(super) clock: Clock,
    pub(super) engine: Engine,
    effects: Vec<Effect>,
    pub(super) live: BTreeMap<ConnId, Live>,
    pub(super) replication: Replication,
    forked: Vec<LogId>,
    decisions: BTreeMap<BatchId, oneshot::Sender<Vec<bool>>>,
    last_id: u64,
    addresses: BTreeMap<NodeId, Vec<String>>,
    store: StoreView,
    pub(super) nudge: Arc<Notify>,
    pub(super) taken_in: watch::Sender<TakenIn>,
    /// See [`Follower::gate`].
    gate: Arc<Mutex<()>>,
    /// Asks for the group as it stands to be told again.
    regroup: Arc<Notify>,
    saved_seq: u64,
    save_at_ms: Option<u64>,
    picture: Picture,
    publish_at_ms: Option<u64>,
    stopping: bool,
    stopped: bool,
    fatal: Option<anyhow::Error>,
}

/// Runs the agent until `stop` is cancelled, or it cannot go on, and everything has ended.
///
/// # Errors
/// The index cannot be read at start, a disk failed, or a task panicked.
pub(super) async fn run(parts: Parts, tellers: Tellers) -> Result<()> {
    let (facts, mut inbox) = Facts::channel();
    let clock = Clock::start();
    let engine = Loading::of(&parts).load().await?;
    let saved_seq = engine.known().head_seq;
    let (taken_in, _) = watch::channel(TakenIn::default());
    let mut this = Loop {
        tasks: JoinSet::new(),
        task_names: BTreeMap::new(),
        facts,
        clock,
        addresses: addresses(engine.members(), &parts.unreachable),
        engine,
        effects: Vec::new(),
        live: BTreeMap::new(),
        replication: Replication::new(parts.journal.clone(), parts.node_id, clock),
        forked: Vec::new(),
        decisions: BTreeMap::new(),
        last_id: 0,
        store: StoreView::default(),
        nudge: Arc::new(Notify::new()),
        taken_in,
        gate: Arc::default(),
        regroup: Arc::default(),
        saved_seq,
        save_at_ms: None,
        picture: Picture::default(),
        publish_at_ms: Some(0),
        stopping: false,
        stopped: false,
        fatal: None,
        parts,
    };
    this.start_journal(tellers);
    this.start_sources();
    this.turn_until_stopped(&mut inbox).await;
    drop(inbox);
    this.wind_up().await;
    this.fatal.map_or(Ok(()), Err)
}

/// What an engine is made from.
struct Loading {
    node_id: NodeId,
    index: Index,
    journal: JournalHandle,
}

impl Loading {
    fn of(parts: &Parts) -> Self {
        let (index, journal) = (parts.ctx.index.clone(), parts.journal.clone());
        Self { node_id: parts.node_id, index, journal }
    }

    async fn load(self) -> Result<Engine> {
        let Self { node_id, index, journal } = self;
        let group = journal.read(move |reader| reader.group_state(&node_id)).await?;
        let group = group.context("this device is in no group")?;
        spawn_blocking(move || Self::read(node_id, &index, group)).await?
    }

    fn read(node_id: NodeId, index: &Index, group: GroupState) -> Result<Engine> {
        let GroupState { group: group_id, name: device_name, members } = group;
        let known = query::load(index, &group_id)?;
        let (store_id, algorithm) = index.bound()?.unwrap_or((NO_STORE, HashAlgorithm::default()));
        let mut cursors = BTreeMap::new();
        for member in &members.members {
            if let Some((epoch, seq)) = index.peer_cursor(&member.node_id)? {
                cursors.insert(member.node_id, Since { epoch, seq });
            }
        }
        let identity = Identity {
            node_id,
            group_id,
            device_name,
            store_id,
            algorithm,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Engine::new(identity, known, members, cursors, rand::random()))
    }
}

/// Where members are dialled.
fn addresses(members: &Members, unreachable: &[NodeId]) -> BTreeMap<NodeId, Vec<String>> {
    let members = members.members.iter();
    members
        .filter(|member| !unreachable.contains(&member.node_id))
        .map(|member| (member.node_id, member.addresses.clone()))
        .collect()
}

impl Loop {
    fn start_journal(&mut self, tellers: Tellers) {
        let Tellers { writer, settler, publisher, told } = tellers;
        let facts = self.facts.clone();
        self.spawn_blocking("journal writer", move || {
            if let Err(error) = writer.serve() {
                facts.blocking_send(Fact::Fatal(
                    anyhow::Error::new(error).context("writing the journal"),
                ));
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
        let follower = Follower {
            store: self.parts.store.clone(),
            index: self.parts.ctx.index.clone(),
            facts: self.facts.clone(),
            nudge: self.nudge.clone(),
            gate: self.gate.clone(),
        };
        self.spawn("store follower", follower.run());
        if let Some(store) = self.parts.embedded.clone() {
            let facts = self.facts.clone();
            self.spawn("store health", async move {
                let reason = store.failed().await;
                facts.send(Fact::Fatal(reason.into())).await;
            });
        }
        journal_stream::look_after(self);
        let again = self.regroup.clone();
        let (journal, facts) = (self.parts.journal.clone(), self.facts.clone());
        self.spawn("group", group::follow(journal, self.parts.node_id, facts, again));
    }

    async fn turn_until_stopped(&mut self, inbox: &mut mpsc::Receiver<Fact>) {
        let mut sleep_watch = SleepWatch::new(self.clock.now_ms(), wall_ms());
        let mut look_at_ms = SLEEP_LOOK_MS;
        let stop = self.parts.stop.clone();
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
                () = stop.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    self.handle(Input::Stop);
                }
                Some(ended) = self.tasks.join_next_with_id() => self.on_task_end(ended),
                Some(request) = self.parts.requests.recv() => orders::on_request(self, request),
                Some(fact) = inbox.recv() => {
                    self.on_fact(fact);
                    for _ in 1..FACTS_PER_TURN {
                        let Ok(fact) = inbox.try_recv() else { break };
                        self.on_fact(fact);
                    }
                }
                () = wake => self.handle(Input::Tick),
            }
            let now_ms = self.clock.now_ms();
            if now_ms >= look_at_ms {
                look_at_ms = now_ms + SLEEP_LOOK_MS;
                if !self.parts.throttle.limits().is_empty() {
                    // A timetable may have come to its next entry.
                    self.publish_soon();
                }
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
    }

    /// Stops in order, because the agent cannot go on.
    fn fail(&mut self, reason: anyhow::Error) {
        tracing::error!("{reason:#}: stopping");
        self.fatal.get_or_insert(reason);
        self.parts.stop.cancel();
    }

    /// Ends what is left, in order. What was acknowledged is durable already.
    async fn wind_up(&mut self) {
        self.tasks.abort_all();
        self.parts.journal.close().await;
        let tasks = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(%error, "a task panicked");
                }
            }
        };
        if timeout(WIND_UP_WAIT, tasks).await.is_err() {
            let names: Vec<_> = self.task_names.values().collect();
            tracing::warn!(?names, "tasks that wait for the disk are left behind");
        }
        self.parts.net.close().await;
        let (index, known) = (self.parts.ctx.index.clone(), self.engine.known().clone());
        let group_id = self.engine.identity().group_id;
        let closing = spawn_blocking(move || {
            query::save(&index, &group_id, &known)?;
            index.close().context("closing the index")
        });
        match timeout(WIND_UP_WAIT, closing).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!("{error:#}"),
            Ok(Err(error)) => tracing::error!(%error, "closing the index panicked"),
            Err(_) => tracing::warn!("the index was not closed in time: the next start checks it"),
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

    fn on_task_end(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let name = self.task_names.remove(&id.to_string()).unwrap_or("unnamed");
        if let Err(error) = ended
            && error.is_panic()
        {
            self.fail(anyhow::anyhow!("the task {name:?} failed: {error}"));
        }
    }

    // ---- facts in ----------------------------------------------------------------------------

    fn on_fact(&mut self, fact: Fact) {
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
            Fact::Accepted(Accepted::Introduction(connection)) => {
                orders::be_introduced(self, connection);
            }
            Fact::Ended { conn, ended } => self.on_ended(conn, ended),
            Fact::Stream { conn, send, recv } => self.receive(conn, send, recv),
            Fact::JournalStream { conn, recv, send } => {
                journal_stream::accept(self, conn, recv, send);
            }
            Fact::Journal { conn, status } => {
                if let Some(live) = self.live.get_mut(&conn) {
                    live.journal = Some(status);
                    self.publish_soon();
                }
            }
            Fact::Forked(logs) => {
                self.forked = logs;
                self.publish_soon();
            }
            Fact::Offered { conn, batch, digests, reply } => {
                self.decisions.insert(batch, reply);
                self.handle(Input::Offered { conn, batch, digests });
            }
            Fact::Fetch { assets, now, reply } => orders::fetch_lacking(self, assets, now, reply),
            Fact::PlainDone { conn, report } => {
                self.handle(plain_done(conn, report));
            }
            Fact::StoreUp { info, reply } => self.on_store_up(info, reply),
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
            Fact::Group(state) => self.on_group(state),
            Fact::Joined { result: Ok(joined), reply } => {
                self.reload(Reload::Joined { joined, reply });
            }
            Fact::Joined { result, reply } => {
                // Who asked may have gone.
                let _ = reply.send(result);
            }
            Fact::Left { reply } => self.reload(Reload::Left { reply }),
            Fact::Reload(reload) => self.reload(reload),
            Fact::Loaded { engine, reload } => self.on_loaded(*engine, reload),
            Fact::Fatal(reason) => self.fail(reason),
        }
    }

    pub(super) fn handle(&mut self, input: Input) {
        let now_ms = self.clock.now_ms();
        self.engine.handle(now_ms, input, &mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
        self.publish_soon();
    }

    fn publish_soon(&mut self) {
        if self.publish_at_ms.is_none_or(|at| at > self.clock.now_ms() + STATUS_MS_MIN) {
            self.publish_at_ms = Some(self.picture.published_ms() + STATUS_MS_MIN);
        }
    }

    fn on_connection(&mut self, connection: Connection) {
        let conn = ConnId(self.next_id());
        let (orders, queue) = mpsc::channel(CONTROL_QUEUE);
        let counters = Arc::new(Counters::default());
        let throttle = self.parts.throttle.link(&connection);
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
                throttle.clone(),
            ),
        );
        orders::record_addresses(self, peer, connection.remote_addresses());
        let (figures, journal) = (LinkFigures::default(), None);
        self.live.insert(conn, Live { connection, orders, counters, throttle, figures, journal });
        self.handle(Input::Connected { conn, peer, dialed, plain });
    }

    fn on_ended(&mut self, conn: ConnId, ended: Ended) {
        let Some(live) = self.live.remove(&conn) else { return };
        tracing::info!(peer = %live.connection.peer().short(), reason = ended.text, "disconnected");
        if ended.by_peer && ended.code == Some(CloseCode::Removed) && !self.engine.is_removed() {
            let group_id = self.engine.identity().group_id;
            orders::note_own_removal(self, group_id, live.connection.peer());
        }
        if ended.by_peer && ended.code == Some(CloseCode::NotMember) && live.connection.dialed() {
            let peer = live.connection.peer();
            let addresses = self.addresses.get(&peer).cloned().unwrap_or_default();
            orders::introduce(self, peer, addresses);
        }
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

    fn on_store_up(&mut self, info: StoreInfo, reply: oneshot::Sender<()>) {
        let bound = self.engine.identity();
        if (bound.store_id, bound.algorithm) != (info.store_id, info.hash_algorithm) {
            if bound.store_id != NO_STORE {
                let (old, new) = (bound.store_id, info.store_id);
                tracing::warn!(%old, %new, "another store answers: its assets are taken in anew");
            }
            self.reload(Reload::OtherStore { info, reply });
            return;
        }
        self.greet_store(&info);
        // The follower may have been told to stop.
        let _ = reply.send(());
    }

    fn greet_store(&mut self, info: &StoreInfo) {
        if !self.store.up {
            tracing::info!(assets = info.asset_count, "the store answers");
        }
        self.store = StoreView { up: true, error: None };
        self.handle(Input::Store { up: true });
    }

    // ---- beginning anew ----------------------------------------------------------------------

    /// Makes the engine anew from the disk; it comes back as [`Fact::Loaded`]. Until then the old
    /// one goes on: nothing it saves is taken for the new one's (X5 of the index).
    fn reload(&mut self, reload: Reload) {
        tracing::info!(why = reload.why(), "starting over");
        let (loading, gate) = (Loading::of(&self.parts), self.gate.clone());
        let facts = self.facts.clone();
        self.spawn("load", async move {
            let _gate = gate.lock().await;
            let fact = match loading.load().await {
                Ok(engine) => Fact::Loaded { engine: Box::new(engine), reload },
                Err(error) => Fact::Fatal(error.context("reading the index and the group")),
            };
            facts.send(fact).await;
        });
    }

    fn on_loaded(&mut self, engine: Engine, reload: Reload) {
        // An engine that has been told to stop is not replaced by one that has not.
        if !self.stopping {
            for (_, live) in std::mem::take(&mut self.live) {
                live.connection.close(CloseCode::Ok, reload.why());
            }
            self.decisions.clear();
            let behind = std::mem::replace(&mut self.engine, engine).is_behind();
            self.parts.ctx.algorithm = self.engine.identity().algorithm;
            self.note_unsaved();
            self.regroup.notify_one();
            self.handle(Input::Store { up: self.store.up });
            if matches!(reload, Reload::Joined { .. } | Reload::Left { .. }) && self.store.up {
                self.handle(Input::Indexed { entries: Vec::new(), behind });
            }
        }
        // Who asked may have gone.
        match reload {
            Reload::OtherStore { info, reply } => {
                self.greet_store(&info);
                let _ = reply.send(());
            }
            Reload::StoreLost { reply } => {
                let _ = reply.send(());
            }
            Reload::Joined { joined, reply } => {
                let _ = reply.send(Ok(joined));
            }
            Reload::Left { reply } => {
                let _ = reply.send(Ok(LeaveReply { new_device: false }));
            }
        }
    }

    // ---- the group ---------------------------------------------------------------------------

    /// The group changed on disk.
    fn on_group(&mut self, state: GroupState) {
        let GroupState { group, name, members } = state;
        if group != self.engine.identity().group_id {
            // An engine for that group is being made, and will ask again.
            return;
        }
        self.addresses = addresses(&members, &self.parts.unreachable);
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
            Effect::OpenJournal { conn } => journal_stream::open(self, conn),
            Effect::Ask { conn, round, query } => {
                let (index, facts) = (self.parts.ctx.index.clone(), self.facts.clone());
                self.spawn_blocking("index query", move || {
                    let answer = query::answer(&index, query);
                    facts.blocking_send(Fact::Input(Input::Answer { conn, round, answer }));
                });
            }
            Effect::AskSizes { conn, hashes } => {
                let (index, facts) = (self.parts.ctx.index.clone(), self.facts.clone());
                self.spawn_blocking("index query", move || {
                    let (held, missing) = query::sizes(&index, hashes);
                    facts.blocking_send(Fact::Input(Input::Sizes { conn, held, missing }));
                });
            }
            Effect::SendBatch { conn, batch, digests, lane, inline } => {
                self.send_batch(conn, batch, digests, lane, inline);
            }
            Effect::Decide { batch, wanted } => {
                if let Some(reply) = self.decisions.remove(&batch) {
                    // A receiver that ended meanwhile is told of by its own fact.
                    let _ = reply.send(wanted);
                }
            }
            Effect::SaveCursor { peer, since } => {
                let index = self.parts.ctx.index.clone();
                let own_epoch = self.engine.known().epoch;
                self.spawn_blocking("save cursor", move || {
                    let Since { epoch, seq } = since;
                    if let Err(error) = index.set_peer_cursor(&own_epoch, &peer, &epoch, seq) {
                        tracing::warn!("saving a peer's cursor: {error:#}");
                    }
                });
            }
            Effect::RebuildSketch => {
                tracing::warn!("the sketch does not match the index: rebuilding it");
                let (index, facts) = (self.parts.ctx.index.clone(), self.facts.clone());
                let group_id = self.engine.identity().group_id;
                self.spawn_blocking("rebuild sketch", move || {
                    let scanned = query::scan(&index, &group_id);
                    let input = scanned.map(Input::Rebuilt).unwrap_or_else(|error| {
                        tracing::error!("rebuilding the sketch: {error:#}");
                        Input::RebuildFailed
                    });
                    facts.blocking_send(Fact::Input(input));
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
        inline: bool,
    ) {
        let Some(live) = self.live.get(&conn) else { return };
        let (connection, counters) = (live.connection.clone(), live.counters.clone());
        let throttle = live.throttle.clone();
        let (ctx, facts) = (self.parts.ctx.clone(), self.facts.clone());
        let events = self.parts.events.clone();
        let priority = match lane {
            Lane::Live => 20,
            Lane::Now => 18,
            Lane::NowLarge => 16,
            Lane::LiveLarge => 15,
            Lane::Small => 10,
            Lane::Large => 0,
        };
        let solicited = lane.is_solicited();
        self.spawn("send batch", async move {
            let sent = async {
                let (send, recv) = connection
                    .open_stream(priority)
                    .await
                    .map_err(|error| TransferError::Frame(error.into()))?;
                let send = throttle.up(send, Some(lane));
                match connection.protocol() {
                    Protocol::Plain => {
                        plain::send_plain_live(&ctx, recv, send, &digests, &counters).await
                    }
                    Protocol::Two | Protocol::Pairing | Protocol::Introduction => {
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
                    Input::BatchSent { conn, batch, outcomes: outcomes.collect() }
                }
                Err(error) => {
                    tracing::debug!(peer = %connection.peer().short(), %error, "a batch broke off");
                    Input::BatchFailed { conn, batch, violation: error.is_violation() }
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
        let throttle = live.throttle.clone();
        let peer = live.connection.peer();
        if plain {
            self.handle(Input::PlainStream { conn, batch });
        }
        let (ctx, facts) = (self.parts.ctx.with_peer(peer), self.facts.clone());
        let events = self.parts.events.clone();
        self.spawn("receive batch", async move {
            let receipt = if plain {
                plain::receive_plain_live(&ctx, throttle.down(recv), send, &counters).await
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
                match journal_stream::peek(recv, FIRST_BYTE_WAIT).await {
                    Some((true, recv)) => {
                        return facts.send(Fact::JournalStream { conn, recv, send }).await;
                    }
                    Some((false, recv)) => {
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
            let store_failed = store_failed(&receipt.received);
            let arrivals = receipt.received.iter();
            let arrivals = arrivals
                .filter_map(|received| Some((received.digest.hash, arrival(received)?)))
                .collect();
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
        let index = self.parts.ctx.index.clone();
        let group_id = self.engine.identity().group_id;
        self.spawn_blocking("save sketch", move || {
            if let Err(error) = query::save(&index, &group_id, &known) {
                tracing::warn!("{error:#}");
            }
        });
    }

    fn publish(&mut self) {
        let now_ms = self.clock.now_ms();
        for live in self.live.values_mut() {
            live.figures.measure(now_ms, &live.counters);
        }
        let link = |conn: ConnId| {
            let Live { figures, connection, .. } = self.live.get(&conn)?;
            let (path, wire_bytes) = (connection.path(), connection.wire_bytes());
            Some(LinkView { figures: figures.clone(), path, wire_bytes })
        };
        let journals = self.live.values().filter_map(|live| live.journal.as_ref());
        let journal = journal_stream::status(journals, &self.forked, self.replication.repairs());
        let (parts, engine) = (&self.parts, &self.engine);
        let status = self.picture.draw(now_ms, parts, engine, &self.store, journal, link);
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
        Outcome::Later(reason) | Outcome::StoreDown(reason) => {
            tracing::info!(hash, reason, "a peer takes an asset later")
        }
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
        Outcome::Elsewhere | Outcome::Later(_) | Outcome::StoreDown(_) | Outcome::Interrupted => {
            Sent::Elsewhere
        }
        Outcome::Refused(_) => Sent::Refused,
        Outcome::Unavailable | Outcome::Damaged => Sent::Unavailable,
    }
}

/// The store takes nothing: it does not answer, or put off even a small asset, and took not one of
/// the batch.
fn store_failed(received: &[Received]) -> bool {
    let put_off = |one: &Received| match one.outcome {
        Outcome::StoreDown(_) => true,
        Outcome::Later(_) => !is_large(&one.digest),
        _ => false,
    };
    received.iter().any(put_off) && !received.iter().any(|one| one.outcome == Outcome::Stored)
}

/// What a plain exchange means to the engine.
fn plain_done(conn: ConnId, report: PlainReport) -> Input {
    let PlainReport { sent, received, is_complete } = report;
    let received = received.into_iter().map(|received| (received.digest, received.outcome));
    let (mut held_there, mut stored_here, mut failed) = (Vec::new(), Vec::new(), false);
    for (digest, outcome) in sent {
        match sent_as(&outcome) {
            Sent::Held => held_there.push(digest.hash),
            Sent::Elsewhere | Sent::Refused | Sent::Unavailable => failed = true,
        }
    }
    for (digest, outcome) in received {
        match outcome {
            Outcome::Stored => stored_here.push(digest.hash),
            Outcome::AlreadyHeld => held_there.push(digest.hash),
            Outcome::Elsewhere
            | Outcome::Later(_)
            | Outcome::StoreDown(_)
            | Outcome::Refused(_)
            | Outcome::Unavailable
            | Outcome::Interrupted
            | Outcome::Damaged => failed = true,
        }
    }
    Input::PlainDone { conn, held_there, stored_here, failed, more: !is_complete }
}

/// What an asset of a received batch means to the engine; `None`: it was not to come from here.
fn arrival(received: &Received) -> Option<Arrival> {
    match &received.outcome {
        Outcome::Stored => Some(Arrival::Stored),
        Outcome::AlreadyHeld => Some(Arrival::Held),
        Outcome::Elsewhere => None,
        Outcome::Later(_) if is_large(&received.digest) => Some(Arrival::NoRoom),
        Outcome::Later(_) | Outcome::StoreDown(_) | Outcome::Interrupted => {
            Some(Arrival::Interrupted)
        }
        Outcome::Unavailable => Some(Arrival::Unavailable),
        Outcome::Refused(_) | Outcome::Damaged => Some(Arrival::Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Hash;
    use crate::core::limits::SMALL_BYTES_MAX;

    fn received(size_bytes: u64, outcome: Outcome) -> Received {
        Received { digest: Digest { hash: Hash([1; 32]), size_bytes }, outcome }
    }

    #[test]
    fn what_did_not_arrive_in_a_plain_exchange_counts_as_held_by_nobody() {
        let of = |n: u8, outcome| {
            (Digest { hash: Hash([n; 32]), size_bytes: 1 }, outcome) as (Digest, Outcome)
        };
        let later = || Outcome::Later("full".into());
        let sent = vec![of(1, Outcome::Stored), of(2, later())];
        let received = [of(3, Outcome::Stored), of(4, later()), of(5, Outcome::Unavailable)];
        let received = received.map(|(digest, outcome)| Received { digest, outcome }).to_vec();
        let report = PlainReport { sent, received, is_complete: true };
        let Input::PlainDone { held_there, stored_here, failed, more, .. } =
            plain_done(ConnId(1), report)
        else {
            panic!("another input");
        };
        assert_eq!((held_there, stored_here), (vec![Hash([1; 32])], vec![Hash([3; 32])]));
        assert!(failed && !more);
    }

    #[test]
    fn only_a_store_that_takes_not_even_small_assets_has_failed() {
        let full = || Outcome::Later("full".into());
        let (small, large) = (1, SMALL_BYTES_MAX + 1);
        assert!(!store_failed(&[received(large, full())]));
        assert_eq!(arrival(&received(large, full())), Some(Arrival::NoRoom));
        assert!(store_failed(&[received(small, full())]));
        assert!(!store_failed(&[received(small, full()), received(small, Outcome::Stored)]));
        assert_eq!(arrival(&received(small, full())), Some(Arrival::Interrupted));
        // A store that does not answer takes large ones again as soon as it does.
        let down = || Outcome::StoreDown("nothing listens".into());
        assert!(store_failed(&[received(large, down())]));
        assert_eq!(arrival(&received(large, down())), Some(Arrival::Interrupted));
    }
}
