//! Starts the tasks that run as long as the agent does.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, mpsc};

use super::fact::Fact;
use super::parts::Parts;
use super::{journal_stream, membership};
use crate::alerts::hooks::Hooks;
use crate::alerts::watch::Watcher;
use crate::copies::expiry::Expiry;
use crate::copies::follow::Follow;
use crate::copies::forgetting::Forgetting;
use crate::core::engine::Input;
use crate::core::journal::device_events::LogEvent;
use crate::folders::manager::Manager;
use crate::group::follow;
use crate::replica::catalogue::Catalogue;
use crate::replica::device::Publisher;
use crate::replica::disk::DiskWatch;
use crate::replica::journal::JournalWriter;
use crate::replica::metadata::Settler;
use crate::replica::replicate::Replication;
use crate::replica::scrub::Scrub;
use crate::replica::{events, folders};

/// The journal's tasks, which start together with the loop.
pub(super) struct Tellers {
    pub(super) writer: JournalWriter,
    pub(super) settler: Settler,
    pub(super) publisher: Publisher,
    pub(super) told: mpsc::Receiver<LogEvent>,
    pub(super) manager: Manager,
    pub(super) watcher: Watcher,
    pub(super) hooks: Hooks,
}

/// What the loop shares with its sources, to make them act.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    /// Makes the catalogue list the store at once.
    pub(super) nudge: Arc<Notify>,
    /// See [`Catalogue::gate`].
    pub(super) gate: Arc<Mutex<()>>,
    /// Makes the group's task send the group again.
    pub(super) regroup: Arc<Notify>,
}

/// Starts the tasks of the journal, of metadata and of folders.
pub(super) fn start_journal(parts: &mut Parts, tellers: Tellers) {
    let Tellers { writer, settler, publisher, told, manager, watcher, hooks } = tellers;
    let facts = parts.facts.clone();
    parts.tasks.spawn_blocking("journal writer", move || {
        if let Err(error) = writer.serve() {
            facts.blocking_send(Fact::Fatal(
                anyhow::Error::new(error).context("writing the journal"),
            ));
        }
    });
    let (journal, status) = (parts.journal.clone(), parts.status.subscribe());
    parts.tasks.spawn("metadata", settler.run());
    parts.tasks.spawn("event log", events::record(journal, told, status));
    let damages = parts.store.damages();
    parts.tasks.spawn("damage", events::tell_damages(damages, parts.events.clone()));
    parts.tasks.spawn("device state", publisher.run());
    parts.tasks.spawn("conflicts", folders::resolve_conflicts(parts.journal.clone()));
    parts.tasks.spawn("folders", manager.run());
    parts.tasks.spawn("alerts", watcher.run());
    parts.tasks.spawn("hooks", hooks.run());
    let (alerts, facts) = (parts.alerts.clone(), parts.facts.clone());
    parts.tasks.spawn("alerts in the status", async move {
        facts.pass_on(alerts, |_| Fact::Alerts).await;
    });
}

/// Starts the tasks that report what happens outside: connections, the network, the store, the
/// disks, the journal and the group.
pub(super) fn start_sources(parts: &mut Parts, replication: &Replication, wakers: &Wakers) {
    let acceptor = membership::admission(parts);
    let facts = parts.facts.clone();
    parts.tasks.spawn("accept", async move {
        let mut acceptor = acceptor;
        while let Some(accepted) = acceptor.next().await {
            facts.send(Fact::Accepted(accepted)).await;
        }
    });
    let (net, facts) = (parts.net.clone(), parts.facts.clone());
    parts.tasks.spawn("network events", async move {
        let mut events = net.events().await;
        loop {
            let input = match events.next().await {
                crate::net::NetEvent::Seen(node_id) => Input::Seen(node_id),
                crate::net::NetEvent::AddressesChanged => Input::NetworkChanged,
            };
            facts.send(Fact::Input(input)).await;
        }
    });
    let catalogue = Catalogue {
        store: parts.store.clone(),
        index: parts.ctx.index.clone(),
        events: parts.facts.sender(),
        backlog: parts.backlog.clone(),
        nudge: wakers.nudge.clone(),
        gate: wakers.gate.clone(),
    };
    parts.tasks.spawn("catalogue", catalogue.run());
    if let Some(store) = parts.embedded.clone() {
        let facts = parts.facts.clone();
        parts.tasks.spawn("store health", async move {
            let reason = store.failed().await;
            facts.send(Fact::Fatal(reason.into())).await;
        });
    }
    let shortage = parts.shortage.clone();
    let watched = shortage.subscribe();
    let facts = parts.facts.clone();
    parts.tasks.spawn("disk shortage", async move {
        facts.pass_on(watched, Fact::Shortage).await;
    });
    let disk_watch = DiskWatch {
        journal: parts.journal.clone(),
        folder: parts.home.state_dir().to_owned(),
        store: parts.store.clone(),
        shortage,
        nudge: wakers.nudge.clone(),
    };
    parts.tasks.spawn("disk watch", disk_watch.run());
    let scrub = Scrub {
        store: parts.store.clone(),
        embedded: parts.embedded.clone(),
        index: parts.ctx.index.clone(),
        home: parts.home.clone(),
        rate: parts.scrub_rate,
        status: parts.scrub.clone(),
        nudge: wakers.nudge.clone(),
    };
    parts.tasks.spawn("scrub", scrub.run());
    let (watched, facts) = (parts.scrub.subscribe(), parts.facts.clone());
    parts.tasks.spawn("scrub status", async move {
        facts.pass_on(watched, |_| Fact::Scrub).await;
    });
    let judge = parts.judge(wakers.gate.clone());
    let forgetting = Forgetting {
        journal: parts.journal.clone(),
        rule: parts.forgotten,
        evictor: parts.evictor(wakers.gate.clone(), wakers.nudge.clone()),
    };
    parts.tasks.spawn("forgetting", forgetting.run());
    let expiry = Expiry {
        journal: parts.journal.clone(),
        policy: parts.keep,
        evictor: parts.evictor(wakers.gate.clone(), wakers.nudge.clone()),
    };
    parts.tasks.spawn("expiry", expiry.run());
    let (journal, folders) = (parts.journal.clone(), parts.folders.clone());
    parts.tasks.spawn("copies", Follow { judge, journal, folders }.run());
    let (views, facts) = (parts.keeper.views(), parts.facts.clone());
    parts.tasks.spawn("copies in the status", async move {
        facts.pass_on(views, |_| Fact::Copies).await;
    });
    journal_stream::look_after(parts, replication);
    let again = wakers.regroup.clone();
    let (journal, facts) = (parts.journal.clone(), parts.facts.sender());
    parts.tasks.spawn("group", follow::follow(journal, parts.node_id, facts, again));
}
