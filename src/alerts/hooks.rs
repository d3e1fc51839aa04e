//! Calls the hooks with the events of this device.
//!
//! K1  The journal is the queue: each hook has a place in the device's own event stream, which moves
//!     on when a call has succeeded. So nothing is kept twice, a dead receiver costs no space, and a
//!     restart goes on where it was. An event may be delivered twice, never not at all; its id tells.
//! K2  What cannot be delivered within [`GIVE_UP_MS`] is given up, and counted.
//! K3  Each hook waits for itself alone: one that hangs, fails or floods holds up no other one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use utoipa::ToSchema;

use super::post::{Secret, post};
use super::program::{RUN_MAX, run};
use crate::clock::wall_ms;
use crate::core::alerts::HookTrouble;
use crate::core::hooks::{GIVE_UP_MS, Hook, Target, backoff_ms};
use crate::core::ids::{LogId, NodeId};
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::lookup::LookupError;
use crate::replica::journal::{AskError, JournalHandle};
use crate::replica::status::Status;
use crate::state::home::Home;
use crate::state::journal::{EventRow, JournalReader};

/// The most events read at once to find one that a hook is for.
const READ_MAX: usize = 1000;

/// A hook fails, and that is an alert, when so many calls after each other have failed.
const FAILURES_MIN: u32 = 3;

/// Before the next try when the journal cannot be read.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// A hook and how it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookView {
    /// The hook's name.
    pub name: String,
    /// The types of the events that it is for.
    pub on: Vec<String>,
    /// What it calls.
    pub target: Target,
    /// Events delivered.
    pub delivered: u64,
    /// Events given up because they could not be delivered for three days.
    pub given_up: u64,
    /// Since when every call has failed, ms since the Unix epoch; null: the last one succeeded.
    #[schema(required)]
    pub failing_since_ms: Option<u64>,
    /// Why the last call failed; null: it succeeded.
    #[schema(required)]
    pub last_error: Option<String>,
}

/// The result of trying a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookTestReply {
    /// Why it failed; null: it succeeded.
    #[schema(required)]
    pub error: Option<String>,
}

/// The secret that a hook's requests are signed with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookSecretReply {
    /// The secret, for the receiver.
    pub secret: String,
}

/// A handle to the hooks. Cheap to clone.
#[derive(Clone)]
pub struct Hooks(Arc<Shared>);

struct Shared {
    home: Home,
    me: NodeId,
    /// The key from which each hook's secret is derived.
    key: [u8; 32],
    hooks: watch::Receiver<Vec<Hook>>,
    journal: JournalHandle,
    status: watch::Receiver<Status>,
    states: Mutex<BTreeMap<String, HookState>>,
    /// Held while the file is written, so that the last state is the last one written.
    writing: AsyncMutex<()>,
    troubles: watch::Sender<Vec<HookTrouble>>,
}

/// The saved state of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HookState {
    /// Its place in the event stream: the journal's epoch, an arrival number and an index.
    place: (LogId, u64, u64),
    #[serde(default)]
    delivered: u64,
    #[serde(default)]
    given_up: u64,
    #[serde(default)]
    failing_since_ms: Option<u64>,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    last_error: Option<String>,
}

/// The event that a hook gets, as JSON.
#[derive(Debug, Serialize)]
struct Event<'a> {
    /// Names it: the same however often it is delivered.
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    time_ms: u64,
    device: Device<'a>,
    data: serde_json::Value,
}

#[derive(Debug, Serialize)]
struct Device<'a> {
    node_id: NodeId,
    name: &'a str,
}

/// The parts of the agent that hooks need.
pub(crate) struct Ingredients {
    pub(crate) home: Home,
    pub(crate) me: NodeId,
    pub(crate) key: [u8; 32],
    pub(crate) hooks: watch::Receiver<Vec<Hook>>,
    pub(crate) journal: JournalHandle,
    pub(crate) status: watch::Receiver<Status>,
}

impl Hooks {
    /// Reads what is remembered. Blocks.
    pub(crate) fn open(ingredients: Ingredients) -> Self {
        let Ingredients { home, me, key, hooks, journal, status } = ingredients;
        let states = home.hooks().map(|json| serde_json::from_slice(&json));
        let states = states.and_then(|states| match states {
            Ok(states) => Some(states),
            Err(error) => {
                tracing::warn!(%error, "cannot read the saved state of the hooks: starting without it");
                None
            }
        });
        let (states, writing) = (Mutex::new(states.unwrap_or_default()), AsyncMutex::default());
        let (troubles, _) = watch::channel(Vec::new());
        let shared = Shared { home, me, key, hooks, journal, status, states, writing, troubles };
        Self(Arc::new(shared))
    }

    /// The hooks that fail.
    pub(crate) fn troubles(&self) -> watch::Receiver<Vec<HookTrouble>> {
        self.0.troubles.subscribe()
    }

    /// The hooks, and how each does.
    pub fn list(&self) -> Vec<HookView> {
        let states = self.0.states.lock().clone();
        let view = |hook: &Hook| {
            let state = states.get(&hook.name);
            HookView {
                name: hook.name.clone(),
                on: hook.on.clone(),
                target: hook.target.clone(),
                delivered: state.map_or(0, |state| state.delivered),
                given_up: state.map_or(0, |state| state.given_up),
                failing_since_ms: state.and_then(|state| state.failing_since_ms),
                last_error: state.and_then(|state| state.last_error.clone()),
            }
        };
        self.0.hooks.borrow().iter().map(view).collect()
    }

    /// Calls a hook once, now, with an event of the type `test`. Ends within the hook's own deadline.
    ///
    /// # Errors
    /// No hook has this name. A call that fails is no error.
    pub async fn test(&self, name: &str) -> Result<HookTestReply, LookupError> {
        let hook = self.find(name)?;
        let now_ms = wall_ms();
        let id = format!("test-{now_ms}");
        let data = serde_json::json!({ "what": "This is a test of the hook." });
        let called = self.call(&hook, &id, "test", now_ms, data).await;
        Ok(HookTestReply { error: called.err() })
    }

    /// The secret that the receiver of a hook checks its requests with.
    ///
    /// # Errors
    /// No hook has this name.
    pub fn secret(&self, name: &str) -> Result<HookSecretReply, LookupError> {
        let hook = self.find(name)?;
        Ok(HookSecretReply { secret: Secret::of(&self.0.key, &hook.name).text() })
    }

    fn find(&self, name: &str) -> Result<Hook, LookupError> {
        let hooks = self.0.hooks.borrow();
        hooks.iter().find(|hook| hook.name == name).cloned().ok_or_else(|| {
            let names: Vec<&str> = hooks.iter().map(|hook| hook.name.as_str()).collect();
            LookupError::Unknown(match names.is_empty() {
                true => "config.toml has no hooks: a section [hook.NAME] makes one".into(),
                false => format!("no hook is called {name:?}: expected {}", names.join(", ")),
            })
        })
    }

    /// Runs the hooks until dropped; follows the configuration.
    pub(crate) async fn run(self) {
        let mut hooks = self.0.hooks.clone();
        loop {
            let now = hooks.borrow_and_update().clone();
            self.forget_others(&now);
            let runs = now.iter().map(|hook| self.run_one(hook));
            tokio::select! {
                // Never with hooks, at once without any.
                _ = join_all(runs), if !now.is_empty() => {}
                changed = hooks.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Forgets the state of hooks that are gone: one that is made anew begins anew.
    fn forget_others(&self, hooks: &[Hook]) {
        let is_known = |name: &String| hooks.iter().any(|hook| hook.name == *name);
        self.0.states.lock().retain(|name, _| is_known(name));
        self.tell_troubles();
    }

    /// Calls one hook with its events. Ends only when the journal is closed.
    async fn run_one(&self, hook: &Hook) {
        let mut commits = self.0.journal.commits();
        loop {
            commits.borrow_and_update();
            match self.next_event(hook).await {
                Ok(Next::Event(row, place)) => self.deliver(hook, &row, place).await,
                Ok(Next::More) => {}
                Ok(Next::Nothing) => {
                    if commits.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                }
                Err(AskError::Closed) => return std::future::pending().await,
                Err(error) => {
                    tracing::debug!(hook = hook.name, %error, "cannot read events now");
                    sleep(READ_AGAIN).await;
                }
            }
        }
    }

    /// The next event of this device that the hook is for. A hook that is new, or whose place the
    /// journal does not know any more, begins with what happens from now on.
    async fn next_event(&self, hook: &Hook) -> Result<Next, AskError> {
        let (me, on) = (self.0.me, hook.on.clone());
        let known = self.0.states.lock().get(&hook.name).map(|state| state.place);
        let read = move |journal: &JournalReader| {
            let Some(now) = journal.cursor_now()? else { return Ok(None) };
            let begin = (now.epoch, now.arr, u64::MAX);
            let place = known.filter(|place| place.0 == now.epoch).unwrap_or(begin);
            let fits = |row: &EventRow| row.author == me && on.contains(&row.kind);
            let page = journal.events_that(DEVICE_STREAM, (place.1, place.2), 1, READ_MAX, fits)?;
            Ok(Some((place.0, page)))
        };
        let Some((epoch, page)) = self.0.journal.read(read).await? else {
            return Ok(Next::Nothing);
        };
        let place = (epoch, page.next.0, page.next.1);
        if let Some(row) = page.events.into_iter().next() {
            return Ok(Next::Event(row, place));
        }
        let is_new = known.is_none_or(|known| known.0 != epoch);
        self.change(hook, place, |_| {});
        if is_new || page.more {
            // So that a restart does not read all of it again.
            self.save().await;
        }
        Ok(if page.more { Next::More } else { Next::Nothing })
    }

    /// Calls the hook with an event until it succeeds, or is given up.
    async fn deliver(&self, hook: &Hook, row: &EventRow, place: (LogId, u64, u64)) {
        let id = format!("{}-{}", row.log, row.event_seq);
        let data: serde_json::Value = serde_json::from_slice(&row.data).unwrap_or_default();
        let before = self.0.states.lock().get(&hook.name).map(|state| state.place);
        let before = before.unwrap_or((place.0, row.arr, 0));
        loop {
            let now_ms = wall_ms();
            if now_ms.saturating_sub(row.hlc.ms()) > GIVE_UP_MS {
                tracing::warn!(hook = hook.name, event = id, "an event is too old for its hook");
                self.change(hook, place, |state| state.given_up += 1);
                return self.save().await;
            }
            let called = self.call(hook, &id, &row.kind, row.hlc.ms(), data.clone()).await;
            let Err(error) = called else {
                tracing::debug!(hook = hook.name, event = id, "delivered");
                self.change(hook, place, |state| {
                    state.delivered += 1;
                    (state.failures, state.failing_since_ms, state.last_error) = (0, None, None);
                });
                self.tell_troubles();
                return self.save().await;
            };
            tracing::warn!(hook = hook.name, error, "a hook failed, and is called again later");
            let mut failures = 0;
            self.change(hook, before, |state| {
                state.failures = state.failures.saturating_add(1);
                failures = state.failures;
                state.failing_since_ms.get_or_insert(now_ms);
                state.last_error = Some(error);
            });
            self.tell_troubles();
            sleep(Duration::from_millis(backoff_ms(failures, rand::random()))).await;
        }
    }

    /// Calls the target of a hook. An error says what failed, for people.
    async fn call(
        &self,
        hook: &Hook,
        id: &str,
        kind: &str,
        time_ms: u64,
        data: serde_json::Value,
    ) -> Result<(), String> {
        let name = self.0.status.borrow().device.name.clone();
        let device = Device { node_id: self.0.me, name: &name };
        let event = Event { id, kind, time_ms, device, data };
        let body = serde_json::to_vec(&event).map_err(|error| error.to_string())?;
        match &hook.target {
            Target::Exec(words) => {
                let mut variables = vec![("CAN_SYNC_EVENT", kind.to_owned())];
                // So that commands in the program speak to this agent.
                let home = self.0.home.given();
                variables.extend(home.map(|home| ("CAN_SYNC_HOME", home.display().to_string())));
                run(words, &variables, body, RUN_MAX).await
            }
            Target::Url(url) => {
                let secret = Secret::of(&self.0.key, &hook.name);
                post(url, &secret, id, wall_ms() / 1000, body).await
            }
        }
    }

    fn change(&self, hook: &Hook, place: (LogId, u64, u64), change: impl FnOnce(&mut HookState)) {
        let mut states = self.0.states.lock();
        let state = states.entry(hook.name.clone()).or_insert_with(|| HookState {
            place,
            delivered: 0,
            given_up: 0,
            failing_since_ms: None,
            failures: 0,
            last_error: None,
        });
        state.place = place;
        change(state);
    }

    /// Writes what is remembered. What cannot be written now is delivered again after a restart.
    async fn save(&self) {
        let _writing = self.0.writing.lock().await;
        let json = serde_json::to_vec(&*self.0.states.lock()).unwrap_or_default();
        let home = self.0.home.clone();
        match spawn_blocking(move || home.write_hooks(&json)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("cannot save the hooks' places now: {error:#}"),
            Err(error) => tracing::error!(%error, "saving the hooks' places panicked"),
        }
    }

    fn tell_troubles(&self) {
        let states = self.0.states.lock();
        let failing = states.iter().filter(|(_, state)| state.failures >= FAILURES_MIN);
        let troubles = failing.filter_map(|(name, state)| {
            let since_ms = state.failing_since_ms?;
            let error = state.last_error.clone().unwrap_or_default();
            Some(HookTrouble { name: name.clone(), error, since_ms })
        });
        let troubles: Vec<HookTrouble> = troubles.collect();
        self.0.troubles.send_if_modified(|told| {
            let changed = *told != troubles;
            *told = troubles;
            changed
        });
    }
}

/// The next step of a hook.
enum Next {
    /// Deliver this event, and then go on from there.
    Event(EventRow, (LogId, u64, u64)),
    /// Read on.
    More,
    /// Wait for the next commit.
    Nothing,
}
