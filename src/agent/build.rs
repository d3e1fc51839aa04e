//! Builds an agent: opens what is on disk and the network, makes every subsystem once, and ties them
//! together by their channels. Nothing runs yet.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::alerts::hooks::{self, Hooks};
use crate::alerts::watch::Watcher;
use crate::alerts::{Alerts, MemoryFile};
use crate::clock::Clock;
use crate::copies::evicting;
use crate::copies::gathered::WrongProofs;
use crate::core::hooks::Hook;
use crate::core::ids::Hash;
use crate::folders;
use crate::folders::handle::Folders;
use crate::folders::manager::Manager;
use crate::net::{NamedPeers, Net, NetConfig, Protocol, Relay};
use crate::replica::catalogue::Backlog;
use crate::replica::copies::Keeper;
use crate::replica::journal::{self, JournalHandle, JournalWriter};
use crate::replica::metadata::{self, Arrivals, Settler};
use crate::replica::picture::{self, Picture, Sources};
use crate::replica::status::{ScrubStatus, Status};
use crate::replica::{device, events};
use crate::state::copies::Copies;
use crate::state::databases::Databases;
use crate::state::home::{Home, Lock};
use crate::state::identity::Identity;
use crate::state::index::Index;
use crate::state::partials::Partials;
use crate::store::choice::{OpenStore, StoreChoice};
use crate::store::embedded::EmbeddedStore;
use crate::thumbnails::Thumbnails;
use crate::transfer;
use crate::transfer::prove::Prover;
use crate::transfer::throttle::Throttle;

use super::fact::{Fact, Facts};
use super::handle::{self, Handle};
use super::parts::{Ids, Parts};
use super::start::Tellers;
use super::tasks::Tasks;
use super::{Config, NetOverrides};

/// An agent that does not run yet.
pub(super) struct Built {
    pub(super) handle: Handle,
    pub(super) embedded: Option<EmbeddedStore>,
    pub(super) parts: Parts,
    pub(super) inbox: mpsc::Receiver<Fact>,
    pub(super) tellers: Tellers,
    pub(super) picture: Picture,
}

/// What is on disk, opened, and the status that is shown first.
struct Base {
    identity: Identity,
    home: Home,
    journal: JournalHandle,
    index: Index,
    copies: Copies,
    store: OpenStore,
    status: watch::Receiver<Status>,
}

/// Builds the agent of the home that `lock` locks.
pub(super) async fn build(config: Config, lock: &Lock) -> Result<Built> {
    let Config {
        home,
        store,
        offline,
        relay,
        tuning,
        thumbnailer,
        scrub_rate,
        forgotten,
        keep,
        net: overrides,
    } = config;
    let (base, partials, journal_writer, status) = open(home, store, lock).await?;
    evicting::restart(&base.copies, &*base.store.store)
        .await
        .context("settling interrupted evictions")?;
    let net = bind(&base, lock, offline, relay, &overrides).await?;
    let algorithm = base.index.bound()?.map_or_else(Default::default, |(_, algorithm)| algorithm);

    let (listed, watched_listed) = watch::channel(0);
    let (folders, manager) = open_folders(&base, watched_listed).await?;
    let keeper = keeper(&base, &folders)?;
    let (hooks_set, watched_hooks) = watch::channel(tuning.hooks);
    let hooks = open_hooks(&base, watched_hooks).await?;
    let (alerts, watcher_ends) = Alerts::channel(hooks.clone());
    let alerts_told = alerts.told();
    let (settles, to_settle) = mpsc::channel(metadata::SETTLES_MAX);
    let store = base.store.store.clone();
    let thumbnails = Thumbnails::new(base.home.thumbnails_dir(), thumbnailer, store.clone());
    let (handle, requests) = handle::channel(
        (store, base.store.staging_dir.clone(), thumbnails.clone()),
        base.journal.clone(),
        settles,
        folders.clone(),
        keeper.clone(),
        alerts,
        base.status.clone(),
    );

    let (events, told) = events::channel();
    let (frozen, watched_frozen) = watch::channel(0);
    let arrivals = Arrivals::new(base.journal.clone());
    let backlog = Backlog::new(metadata::read_to(&base.journal).await?);
    let settler = Settler::new(
        base.store.store.clone(),
        backlog.clone(),
        base.journal.clone(),
        arrivals.clone(),
        events.clone(),
        to_settle,
        frozen,
    );
    let (twin, watched_twin) = watch::channel(None);
    let publisher = device::Publisher {
        node_id: base.identity.node_id,
        journal: base.journal.clone(),
        store: base.store.store.clone(),
        status: base.status.clone(),
        folder: base.store.staging_dir.clone(),
        twin,
        twin_seen_ms: None,
    };
    let alerts_file = MemoryFile::new(base.home.clone());
    let (thresholds, watched_thresholds) = watch::channel(tuning.alerts);
    let (shortage, watched_shortage) = watch::channel(Vec::new());
    let watcher = Watcher {
        home: base.home.clone(),
        file: alerts_file.clone(),
        journal: base.journal.clone(),
        folders: folders.clone(),
        status: base.status.clone(),
        thresholds: watched_thresholds,
        shortage: watched_shortage,
        twin: watched_twin.clone(),
        hooks: hooks.troubles(),
        ends: watcher_ends,
    };
    let (scrub, watched_scrub) = watch::channel(ScrubStatus::default());
    let Base { identity, home, journal, index, copies, store, status: _ } = base;
    let picture = Picture::new(Sources {
        node_id: identity.node_id,
        net: net.clone(),
        store: store.store.clone(),
        store_location: store.location,
        journal: journal.clone(),
        keeper: keeper.clone(),
        scrub: watched_scrub,
        frozen: watched_frozen,
        twin: watched_twin,
    });
    let (facts, inbox) = Facts::channel();
    let parts = Parts {
        node_id: identity.node_id,
        net,
        store: store.store.clone(),
        embedded: store.embedded.clone(),
        journal,
        ctx: transfer::Context {
            store: store.store.clone(),
            index,
            partials,
            gatherings: transfer::Gatherings::default(),
            damaged: transfer::Damaged::default(),
            algorithm,
            scratch_folder: home.partials_dir(),
            arrivals: Some(arrivals),
            source: None,
        },
        home,
        throttle: Throttle::new(tuning.rate_limits),
        named_peers: NamedPeers::new(tuning.named_peers),
        scrub_rate,
        forgotten,
        keep,
        scrub,
        events,
        backlog,
        requests,
        status,
        stop: CancellationToken::new(),
        unreachable: overrides.unreachable,
        shortage,
        alerts: alerts_told,
        alerts_file,
        thresholds,
        hooks: hooks_set,
        folders,
        prover: Prover::new(
            identity.node_id,
            store.store,
            copies.clone(),
            store.embedded.is_some(),
        ),
        wrong_proofs: WrongProofs::default(),
        thumbnails,
        copies,
        keeper,
        listed,
        tasks: Tasks::default(),
        facts,
        clock: Clock::start(),
        ids: Ids::default(),
    };
    let tellers =
        Tellers { writer: journal_writer, settler, publisher, told, manager, watcher, hooks };
    Ok(Built { handle, embedded: store.embedded, parts, inbox, tellers, picture })
}

/// Opens what is on disk.
async fn open(
    home: Home,
    store: StoreChoice,
    lock: &Lock,
) -> Result<(Base, Partials, JournalWriter, watch::Sender<Status>)> {
    let is_journal_lost = home.is_journal_lost();
    let identity = Identity::load_or_create(&home, lock)?;
    let (opened, own) = (home.clone(), identity.clone());
    let opening = spawn_blocking(move || Databases::open(&opened, &own, is_journal_lost));
    let Databases { journal, index, partials, copies } = opening.await??;
    if journal.roster().is_founded_anew() {
        tracing::warn!("{}", picture::founded_anew(&identity.node_id));
    }
    let store = store.open(home.store_dir(), home.partials_dir()).await?;
    let group_id = journal.group().context("the journal has no group")?;
    let (publish, status) = watch::channel(Status::starting(identity.node_id, group_id));
    let (journal, writer) = journal::share(journal)?;
    let base = Base { identity, home, journal, index, copies, store, status };
    Ok((base, partials, writer, publish))
}

/// Binds the network, at the port of the last run if it is free.
async fn bind(
    base: &Base,
    lock: &Lock,
    offline: bool,
    relay: Relay,
    overrides: &NetOverrides,
) -> Result<Net> {
    let port = base.home.udp_port();
    let mut config = NetConfig::new(base.identity.secret_key.clone());
    (config.offline, config.relay, config.bind, config.port) =
        (offline, relay, overrides.bind, port);
    if overrides.plain_only {
        config.protocols = vec![Protocol::Plain];
    }
    #[cfg(test)]
    {
        config.panics = overrides.panics.clone();
    }
    let net = Net::bind(config).await.context("binding the network")?;
    if let Some(bound) = net.port().filter(|bound| port != Some(*bound)) {
        base.home.write_udp_port(lock, bound)?;
    }
    Ok(net)
}

async fn open_folders(base: &Base, listed: watch::Receiver<u64>) -> Result<(Folders, Manager)> {
    let ingredients = folders::handle::Ingredients {
        me: base.identity.node_id,
        home: base.home.clone(),
        journal: base.journal.clone(),
        store: base.store.store.clone(),
        embedded: base.store.embedded.clone(),
        index: base.index.clone(),
        staging_dir: base.store.staging_dir.clone(),
        listed,
    };
    spawn_blocking(move || folders::handle::open(ingredients)).await?
}

fn keeper(base: &Base, folders: &Folders) -> Result<Keeper> {
    let folders = folders.clone();
    let waiting = Arc::new(move |hashes: &[Hash]| Ok(folders.are_waited_for(hashes)?));
    let (index, copies) = (base.index.clone(), base.copies.clone());
    Keeper::new(base.identity.node_id, index, copies, base.journal.clone(), waiting)
}

async fn open_hooks(base: &Base, hooks: watch::Receiver<Vec<Hook>>) -> Result<Hooks> {
    let ingredients = hooks::Ingredients {
        home: base.home.clone(),
        me: base.identity.node_id,
        key: base.identity.hook_key(),
        hooks,
        journal: base.journal.clone(),
        status: base.status.clone(),
    };
    Ok(spawn_blocking(move || Hooks::open(ingredients)).await?)
}
