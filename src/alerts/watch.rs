//! Keeps the alerts: looks at the facts when they change, saves what is remembered, and writes what
//! was raised and what has ended into the device's event stream.
//!
//! W1  The alerts that stand are shown even while the disk takes nothing. What could not be saved or
//!     written is tried again at the next look.
//! W2  A change is saved before it is written as an event, and taken out of what waits afterwards: a
//!     crash in between writes the event twice, never not at all.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::facts::{Read, Sources};
use super::{Ack, AckError, MemoryFile, Told, WatcherEnds};
use crate::clock::wall_ms;
use crate::core::alerts::{Alert, Alerts, Change, HookTrouble, Thresholds};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::draft::Draft;
use crate::core::lookup;
use crate::folders::handle::Folders;
use crate::replica::journal::{AskError, JournalHandle};
use crate::replica::status::Status;
use crate::state::home::Home;

/// How often the facts are read that do not report their changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The pause after a look, while the status changes all the time.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// The task that keeps the alerts.
pub(crate) struct Watcher {
    pub(crate) home: Home,
    pub(crate) file: MemoryFile,
    pub(crate) journal: JournalHandle,
    pub(crate) folders: Folders,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) thresholds: watch::Receiver<Thresholds>,
    /// One sentence for each disk, of the store or of the journal, that is full.
    pub(crate) shortage: watch::Receiver<Vec<String>>,
    /// The addresses of another device with the key of this one.
    pub(crate) twin: watch::Receiver<Option<BTreeSet<String>>>,
    /// The hooks that fail.
    pub(crate) hooks: watch::Receiver<Vec<HookTrouble>>,
    pub(crate) ends: WatcherEnds,
}

impl Watcher {
    /// Runs until dropped, or until the agent stops.
    pub(crate) async fn run(self) {
        let Self { home, file, journal, folders, mut status, mut thresholds, .. } = self;
        let (mut shortage, mut twin, mut hooks) = (self.shortage, self.twin, self.hooks);
        let WatcherEnds { told, mut acks } = self.ends;
        // Before the first picture of the agent nothing is known.
        if status.wait_for(|status| status.revision > 0).await.is_err() {
            return;
        }
        let loading = file.clone();
        let memory = spawn_blocking(move || loading.load()).await.unwrap_or_default();
        let mut keeper =
            Keeper { alerts: Alerts::begin(memory, wall_ms()), file, journal, logged: 0 };
        let sources = Sources {
            journal: keeper.journal.clone(),
            folders,
            disks: vec![home.state_dir().to_owned(), home.store_dir()],
        };
        let mut read = Read::default();
        let mut read_at = Instant::now();
        loop {
            let seen = status.borrow_and_update().clone();
            if Instant::now() >= read_at {
                read.refresh(&sources, &seen).await;
                read_at = Instant::now() + LOOK_EVERY;
            }
            let facts = read.facts(
                &seen,
                shortage.borrow_and_update().clone(),
                twin.borrow_and_update().clone(),
                hooks.borrow_and_update().clone(),
            );
            let limits = *thresholds.borrow_and_update();
            keeper.alerts.look(wall_ms(), &facts, &limits);
            keeper.show(&told);
            keeper.save().await;
            if keeper.write_events().await.is_err() {
                return;
            }
            let changed = async {
                let changed = tokio::select! {
                    changed = status.changed() => changed,
                    changed = thresholds.changed() => changed,
                    changed = shortage.changed() => changed,
                    changed = twin.changed() => changed,
                    changed = hooks.changed() => changed,
                };
                sleep(LOOK_PAUSE).await;
                changed
            };
            tokio::select! {
                ack = acks.recv() => match ack {
                    Some(ack) => keeper.ack(ack, &told).await,
                    None => return,
                },
                changed = changed => if changed.is_err() { return },
                () = sleep_until(read_at) => {}
            }
        }
    }
}

/// The alerts, and where they are kept.
struct Keeper {
    alerts: Alerts,
    file: MemoryFile,
    journal: JournalHandle,
    /// The changes at the front of the outbox that are in the log of the program already.
    logged: usize,
}

impl Keeper {
    fn show(&self, told: &watch::Sender<Told>) {
        let now = Told { alerts: self.alerts.standing(), last_seen: self.alerts.last_seen() };
        told.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    /// Saves what is worth it. Returns whether everything is saved.
    async fn save(&mut self) -> bool {
        let Some(memory) = self.alerts.to_save() else { return true };
        let file = self.file.clone();
        let saving = spawn_blocking(move || file.save(&memory).map(|()| memory));
        match saving.await {
            Ok(Ok(memory)) => {
                self.alerts.saved(memory);
                true
            }
            Ok(Err(error)) => {
                tracing::debug!("cannot save the alerts now: {error:#}");
                false
            }
            Err(error) => {
                tracing::error!(%error, "saving the alerts panicked");
                false
            }
        }
    }

    /// Writes the changes that wait. An error means that the journal is closed.
    async fn write_events(&mut self) -> Result<(), AskError> {
        let changes = self.alerts.outbox();
        if changes.is_empty() {
            return Ok(());
        }
        // Once, though writing them may have to be tried again.
        for change in changes.iter().skip(self.logged) {
            match change.is_raised {
                true => tracing::warn!(alert = change.id, "{}", change.text),
                false => tracing::info!(alert = change.id, "the alert has ended"),
            }
        }
        self.logged = changes.len();
        let events = changes.iter().map(|change| event(change).to_change()).collect();
        match self.journal.write(Draft { changes: events, expect: Vec::new() }).await {
            Ok(Ok(_)) => {}
            // A device that was removed writes no more: the alerts still show.
            Ok(Err(error)) => tracing::debug!(%error, "alerts are not logged as events"),
            Err(AskError::Closed) => return Err(AskError::Closed),
            Err(error) => {
                tracing::debug!(%error, "cannot log alerts as events now");
                return Ok(());
            }
        }
        self.alerts.told(changes.len());
        self.logged = 0;
        self.save().await;
        Ok(())
    }

    async fn ack(&mut self, Ack { id, reply }: Ack, told: &watch::Sender<Told>) {
        let answer = self.acknowledge(&id).await;
        self.show(told);
        // The requester may have gone.
        let _ = reply.send(answer);
    }

    async fn acknowledge(&mut self, id: &str) -> Result<Alert, AckError> {
        let standing = self.alerts.standing();
        let found = lookup::start(id, "alert", &standing, |alert| &alert.id)?;
        let acked = self.alerts.ack(&found.id, wall_ms());
        let acked = acked.ok_or_else(|| AckError::Unknown("the alert has just ended".into()))?;
        match self.save().await {
            true => Ok(acked),
            false => Err(AckError::Temporary(
                "the disk does not take it, so it will be forgotten at the next start".into(),
            )),
        }
    }
}

fn event(change: &Change) -> LogEvent {
    let Change { is_raised, id, text, device, raised_ms } = change.clone();
    match is_raised {
        true => LogEvent::Alert { alert: id, what: text, device, raised_ms },
        false => LogEvent::AlertCleared { alert: id, what: text, device, raised_ms },
    }
}
