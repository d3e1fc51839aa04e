//! The agent's loop: facts in, effects out. It owns every task and the receiving end of every
//! queue, and never waits for a peer, the disk or the store.
//!
//! I1  Facts reach the engine in the order in which they were sent; effects are performed in the
//!     order in which the engine returned them.
//! I2  Every task is in one `JoinSet`, with a name. A task that panics stops the agent in order,
//!     and so does a failing disk, because only a restart shows what it holds.
//! I3  Stopping: no new work, the batches under way, the connections, the tasks, the endpoint, the
//!     index; each step with a deadline.

use anyhow::Result;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;

use crate::clock::{SleepWatch, wall_ms};
use crate::core::close::CloseCode;
use crate::core::engine::{Effect, Engine, Input, KnownSet};
use crate::core::ids::{Hash, LogId};
use crate::core::peers::ConnId;
use crate::net::Accepted;
use crate::state::journal::GroupState;
use crate::store::StoreInfo;

use super::copies;
use super::effects::Links;
use super::fact::{Fact, Reload, TakenIn};
use super::handle::{LeaveReply, Reply, Request};
use super::live::Live;
use super::parts::Parts;
use super::start::{Tellers, Wakers, start_journal, start_sources};
use super::tuning::Tuning;
use super::{journal_stream, load, membership, proofs, requests, stop, telling, thumbnails, why};
use crate::core::fetches::FetchReply;
use crate::group::comparing::Comparing;
use crate::group::knocks::Knocks;
use crate::group::pairing;
use crate::replica::loading::NO_STORE;
use crate::replica::picture::{Picture, StoreView, Told};
use crate::replica::query;
use crate::replica::status::{JournalStatus, PeerState};
use crate::transfer::totals::Totals;

mod connections;

/// The most facts handled before the loop looks at its other sources again.
const FACTS_PER_TURN: usize = 64;

/// The sketch is saved after this many new assets ...
const SAVE_ASSETS: u64 = 10_000;

/// ... or this long after the last change that was not saved.
const SAVE_MS: u64 = 30_000;

/// The status is built at most this often while facts pour in, and this often while bytes flow.
const STATUS_MS_MIN: u64 = 20;
const STATUS_MS_ACTIVE: u64 = 500;

/// How often the loop checks whether the device slept, and which connections are silent.
const LOOK_MS: u64 = 1_000;

struct Loop {
    parts: Parts,
    engine: Engine,
    effects: Vec<Effect>,
    links: Links,
    totals: Totals,
    forked: Vec<LogId>,
    knocks: Knocks,
    comparing: Comparing,
    store: StoreView,
    taken_in: watch::Sender<TakenIn>,
    wakers: Wakers,
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
pub(super) async fn run(
    parts: Parts,
    mut inbox: mpsc::Receiver<Fact>,
    tellers: Tellers,
    picture: Picture,
) -> Result<()> {
    let engine = parts.loading().load().await?;
    let saved_seq = engine.known().head_seq;
    let (taken_in, _) = watch::channel(TakenIn::default());
    let wakers = Wakers::default();
    let mut this = Loop {
        engine,
        effects: Vec::new(),
        links: Links::new(&parts, wakers.gate.clone()),
        totals: Totals::default(),
        forked: Vec::new(),
        knocks: Knocks::default(),
        comparing: Comparing::default(),
        store: StoreView::default(),
        taken_in,
        wakers,
        saved_seq,
        save_at_ms: None,
        picture,
        publish_at_ms: Some(0),
        stopping: false,
        stopped: false,
        fatal: None,
        parts,
    };
    this.links.set_addresses(&this.parts, this.engine.members());
    start_journal(&mut this.parts, tellers);
    start_sources(&mut this.parts, &this.links.replication, &this.wakers);
    this.turn_until_stopped(&mut inbox).await;
    drop(inbox);
    stop::wind_up(&mut this.parts, &this.engine, this.fatal.is_none()).await;
    this.fatal.map_or(Ok(()), Err)
}

impl Loop {
    async fn turn_until_stopped(&mut self, inbox: &mut mpsc::Receiver<Fact>) {
        let mut sleep_watch = SleepWatch::new(self.parts.clock.now_ms(), wall_ms());
        let mut look_at_ms = LOOK_MS;
        let stop = self.parts.stop.clone();
        self.handle(Input::Tick);
        while !self.stopped {
            let wake_ms = [self.engine.deadline_ms(), self.save_at_ms, self.publish_at_ms]
                .into_iter()
                .flatten()
                .chain([look_at_ms])
                .min()
                .unwrap_or(look_at_ms);
            let wake = sleep_until(self.parts.clock.instant(wake_ms).into());
            tokio::select! {
                biased;
                () = stop.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    self.handle(Input::Stop);
                }
                Some(Err(panic)) = self.parts.tasks.join_next() => self.fail(panic.into()),
                Some(request) = self.parts.requests.recv() => self.on_request(request),
                Some(fact) = inbox.recv() => {
                    self.on_fact(fact);
                    for _ in 1..FACTS_PER_TURN {
                        let Ok(fact) = inbox.try_recv() else { break };
                        self.on_fact(fact);
                    }
                }
                () = wake => self.handle(Input::Tick),
            }
            let now_ms = self.parts.clock.now_ms();
            if now_ms >= look_at_ms {
                look_at_ms = now_ms + LOOK_MS;
                self.look_at_connections(now_ms);
                if !self.parts.throttle.limits().is_empty() {
                    // A schedule of the rate limits may have reached its next entry.
                    self.publish_soon();
                }
                if sleep_watch.slept(now_ms, wall_ms()) {
                    tracing::info!("the device slept: dialling all members again");
                    self.on_network_changed();
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

    /// Stops the agent in order because it cannot continue.
    fn fail(&mut self, reason: anyhow::Error) {
        tracing::error!("{reason:#}: stopping");
        self.fatal.get_or_insert(reason);
        self.parts.stop.cancel();
    }

    // ---- facts in ----------------------------------------------------------------------------

    fn on_fact(&mut self, fact: Fact) {
        match fact {
            Fact::Input(Input::NetworkChanged) => self.on_network_changed(),
            Fact::Input(input) => {
                let has_entries = match &input {
                    Input::Indexed { entries, .. } => !entries.is_empty(),
                    Input::Noted { entries, .. } => !entries.is_empty(),
                    _ => false,
                };
                if has_entries {
                    self.note_unsaved();
                }
                self.handle(input);
            }
            Fact::Accepted(
                Accepted::Session(connection)
                | Accepted::Pairing(connection)
                | Accepted::Introduction(connection),
            )
            | Fact::Dialed(connection)
                if self.stopping =>
            {
                connection.close(CloseCode::Shutdown, "");
            }
            Fact::Accepted(Accepted::Session(connection)) | Fact::Dialed(connection) => {
                self.on_connection(connection);
            }
            Fact::Accepted(Accepted::Pairing(connection)) => {
                membership::host(&mut self.parts, connection);
            }
            Fact::Accepted(Accepted::Introduction(connection)) => {
                membership::be_introduced(&mut self.parts, connection);
            }
            Fact::Ended { conn, ended } => self.on_ended(conn, ended),
            Fact::Stream { conn, send, recv } => self.on_stream(conn, send, recv),
            Fact::JournalStream { conn, recv, send } => {
                if let Some(live) = self.links.live.get_mut(&conn) {
                    let streams = (recv, send);
                    journal_stream::accept(
                        &mut self.parts,
                        &self.links.replication,
                        conn,
                        live,
                        streams,
                    );
                }
            }
            Fact::Journal { conn, status } => {
                if let Some(live) = self.links.live.get_mut(&conn) {
                    live.journal = Some(status);
                    self.publish_soon();
                }
            }
            Fact::Forked(logs) => {
                self.forked = logs;
                self.publish_soon();
            }
            Fact::Offered { conn, batch, digests, reply } => {
                self.links.decisions.insert(batch, reply);
                self.handle(Input::Offered { conn, batch, digests });
            }
            Fact::Fetch { assets, now, reply } => self.fetch_lacking(assets, now, reply),
            Fact::Why { hash, seen, reply } => {
                // The requester may have gone.
                let _ = reply.send(Ok(why::explain(
                    &self.parts,
                    &self.engine,
                    &self.store,
                    &self.links.live,
                    hash,
                    seen,
                )));
            }
            Fact::Hears(conn) => {
                if let Some(live) = self.links.live.get(&conn) {
                    telling::start(&mut self.parts, live);
                }
            }
            Fact::StoreUp { info, reply } => self.on_store_up(info, reply),
            Fact::StoreDown { error } => {
                if self.store.up {
                    tracing::warn!(error, "the store does not answer");
                }
                (self.store.up, self.store.error) = (false, Some(error));
                self.handle(Input::Store { up: false });
            }
            Fact::Shortage(shortage) => {
                self.store.shortage = shortage;
                self.publish_soon();
            }
            Fact::Scrub | Fact::Copies | Fact::Alerts => self.publish_soon(),
            Fact::PutOff { conn, reason } => {
                if let Some(live) = self.links.live.get_mut(&conn) {
                    live.put_off = reason;
                    self.publish_soon();
                }
            }
            Fact::Refused { conn, refused } => {
                let now_ms = self.parts.clock.now_ms();
                if let Some(live) = self.links.live.get_mut(&conn) {
                    live.note_refused(now_ms, refused);
                }
            }
            Fact::TakenIn { cursor } => {
                self.publish();
                self.parts.listed.send_modify(|listed| *listed += 1);
                self.taken_in.send_modify(|taken_in| {
                    *taken_in = TakenIn { cursor, passes: taken_in.passes + 1 };
                });
            }
            Fact::Group(state) => self.on_group(state),
            Fact::Joined { result: Ok(joined), reply } => {
                self.rebuild(Reload::Joined { joined, reply });
            }
            Fact::Joined { result, reply } => {
                // The requester may have gone.
                let _ = reply.send(result);
            }
            Fact::Pairing(event) => {
                self.comparing.note(self.parts.clock.now_ms(), event);
                self.publish_soon();
            }
            Fact::NotPaired { joiner, source, why } => {
                let now_ms = self.parts.clock.now_ms();
                pairing::log_try(&mut self.knocks, now_ms, joiner, &source, &why);
            }
            Fact::Left { reply } => self.rebuild(Reload::Left { reply }),
            Fact::Reload(reload) => self.rebuild(reload),
            Fact::Loaded { engine, reload } => self.on_loaded(*engine, reload),
            Fact::Fatal(reason) => self.fail(reason),
            Fact::StartOver => {
                tracing::info!("left the group that had removed this device: stopping");
                self.parts.stop.cancel();
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        if self.stopping {
            // A dropped request is answered with "the agent is stopping".
            return;
        }
        let parts = &mut self.parts;
        match request {
            Request::Ticket(terms, reply) => membership::ticket(parts, terms, reply),
            Request::Revoke(id, reply) => membership::revoke(parts, id, reply),
            Request::Pair(ticket, verify, reply) => membership::pair(parts, ticket, verify, reply),
            Request::Confirm(short_code, same, reply) => {
                let confirmed = pairing::confirm(&mut self.comparing, &short_code, same);
                self.publish_soon();
                // The requester may have gone.
                let _ = reply.send(confirmed);
            }
            Request::Remove(request, reply) => membership::remove(parts, request, reply),
            Request::Rename(name, reply) => membership::rename(parts, name, reply),
            Request::Leave(reply) => membership::leave(parts, reply),
            Request::Want(want, reply) => {
                copies::set_want(parts, want, reply);
            }
            Request::Fetch(request, reply) => {
                let judge = parts.judge(self.wakers.gate.clone());
                requests::fetch(parts, &self.engine, judge, request, reply);
            }
            Request::Why(hash, reply) => why::look(parts, &self.engine, &hash, reply),
            Request::Check(reply) => {
                let (nudge, taken_in) = (self.wakers.nudge.clone(), self.taken_in.subscribe());
                requests::check(parts, nudge, taken_in, reply);
            }
            Request::Tune(Tuning { rate_limits, named_peers, alerts, hooks }, reply) => {
                parts.throttle.set_limits(rate_limits);
                parts.named_peers.set(named_peers);
                parts.thresholds.send_replace(alerts);
                parts.hooks.send_if_modified(|known| {
                    let changed = *known != hooks;
                    *known = hooks;
                    changed
                });
                // The status shows the limits in force, so it is newer than the answer.
                self.publish();
                // The requester may have gone.
                let _ = reply.send(Ok(()));
            }
            Request::Gather(request, tell) => {
                let live = &self.links.live;
                proofs::start(parts, &self.engine, live, &self.wakers, request, tell);
            }
            Request::Thumbnail(hash, reply) => {
                thumbnails::ask(parts, &self.engine, &self.links.live, hash, reply);
            }
            Request::Measure(reply) => requests::measure(parts, reply),
            Request::Totals(reply) => {
                let live = self.links.live.values().map(|live| (&live.connection, &*live.counters));
                // The requester may have gone.
                let _ = reply.send(Ok(self.totals.now(live)));
            }
            Request::Ping(reply) => {
                // The requester may have gone.
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// Completes [`Request::Fetch`] once the index has reported which of the assets it holds.
    fn fetch_lacking(&mut self, assets: Vec<(Hash, bool)>, now: bool, reply: Reply<FetchReply>) {
        let lacking = assets.iter().filter(|(_, known)| !known).map(|(hash, _)| *hash);
        self.handle(Input::Fetch { hashes: lacking.collect(), at_once: now });
        // The requester may have gone.
        let _ = reply.send(Ok(requests::fetch_views(&self.parts, &self.engine, assets)));
    }

    fn handle(&mut self, input: Input) {
        let now_ms = self.parts.clock.now_ms();
        self.engine.handle(now_ms, input, &mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.stopped |= effect == Effect::Stopped;
            self.links.perform(&mut self.parts, &self.engine, effect);
        }
        self.effects = effects;
        self.publish_soon();
    }

    fn publish_soon(&mut self) {
        if self.publish_at_ms.is_none_or(|at| at > self.parts.clock.now_ms() + STATUS_MS_MIN) {
            self.publish_at_ms = Some(self.picture.published_ms() + STATUS_MS_MIN);
        }
    }

    fn on_store_up(&mut self, info: StoreInfo, reply: oneshot::Sender<()>) {
        let bound = self.engine.identity();
        if (bound.store_id, bound.algorithm) != (info.store_id, info.hash_algorithm) {
            if bound.store_id != NO_STORE {
                let (old, new) = (bound.store_id, info.store_id);
                tracing::warn!(%old, %new, "another store answers: listing all its assets");
            }
            self.rebuild(Reload::OtherStore { info, reply });
            return;
        }
        self.greet_store(&info);
        // The catalogue may have been told to stop.
        let _ = reply.send(());
    }

    fn greet_store(&mut self, info: &StoreInfo) {
        if !self.store.up {
            tracing::info!(assets = info.asset_count, "the store answers");
        }
        (self.store.up, self.store.error) = (true, None);
        self.handle(Input::Store { up: true });
    }

    fn rebuild(&mut self, reload: Reload) {
        load::reload(&mut self.parts, self.wakers.gate.clone(), reload);
    }

    fn on_loaded(&mut self, engine: Engine, reload: Reload) {
        // A stopping engine must not be replaced by one that does not know that it is to stop.
        if !self.stopping {
            for (_, live) in std::mem::take(&mut self.links.live) {
                live.connection.close(CloseCode::Ok, reload.why());
            }
            self.links.decisions.clear();
            let behind = std::mem::replace(&mut self.engine, engine).is_behind();
            self.parts.ctx.algorithm = self.engine.identity().algorithm;
            self.note_unsaved();
            self.wakers.regroup.notify_one();
            self.handle(Input::Store { up: self.store.up });
            let is_same_store = matches!(
                reload,
                Reload::Joined { .. } | Reload::Left { .. } | Reload::OtherWant { .. }
            );
            if is_same_store && self.store.up {
                self.handle(Input::Indexed { entries: Vec::new(), behind });
            }
        }
        // The requester may have gone.
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
            Reload::OtherWant { reply } => {
                let _ = reply.send(Ok(()));
            }
            Reload::Left { reply } => {
                let _ = reply.send(Ok(LeaveReply { new_device: false }));
            }
        }
    }

    // ---- the group ---------------------------------------------------------------------------

    /// Applies a change of the group on disk.
    fn on_group(&mut self, state: GroupState) {
        let GroupState { group, name, members } = state;
        if group != self.engine.identity().group_id {
            // An engine for that group is being built, and will request the group again.
            return;
        }
        self.links.set_addresses(&self.parts, &members);
        self.handle(Input::Renamed(name));
        self.handle(Input::Members(members));
    }

    // ---- saving and showing ------------------------------------------------------------------

    fn note_unsaved(&mut self) {
        let now_ms = self.parts.clock.now_ms();
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
        self.parts.tasks.spawn_blocking("save sketch", move || {
            if let Err(error) = query::save(&index, &group_id, &known) {
                tracing::warn!("{error:#}");
            }
        });
    }

    fn publish(&mut self) {
        let now_ms = self.parts.clock.now_ms();
        for live in self.links.live.values_mut() {
            live.measure(now_ms);
        }
        let link = |conn: ConnId| self.links.live.get(&conn).map(Live::view);
        let journals = self.links.live.values().filter_map(|live| live.journal.as_ref());
        let journal = JournalStatus::of(journals, &self.forked, self.links.replication.repairs());
        let pairings = self.comparing.shown(now_ms);
        let rate_limits = self.parts.throttle.status();
        let (alerts, last_seen) = {
            let told = self.parts.alerts.borrow();
            (told.alerts.clone(), told.last_seen.clone())
        };
        let told = Told { journal, pairings, rate_limits, alerts, last_seen };
        let status = self.picture.draw(now_ms, &self.engine, &self.store, told, link);
        let active = status.peers.iter().any(|peer| {
            peer.state == PeerState::Syncing || peer.send_rate_bytes + peer.receive_rate_bytes > 0.0
        });
        self.publish_at_ms = active.then_some(now_ms + STATUS_MS_ACTIVE);
        self.parts.status.send_replace(status);
    }
}
