//! The shell around the engine: one loop that turns facts into inputs and performs the effects.
//!
//! [`Agent::start`] opens what is on disk, binds the network and starts the loop; the rest of the
//! process uses [`Agent::handle`]; [`Agent::stop`] ends the agent in order.
//!
//! Reading order: `run` (the loop), `fact` and `link` (its inputs, and a peer's connection), `effects`
//! (what the engine has it do), then `requests`. `parts` holds the subsystems, `start` and `stop` begin and
//! end the tasks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::alerts::hooks::{self, Hooks};
use crate::alerts::watch::Watcher;
use crate::alerts::{Alerts, MemoryFile};
use crate::clock::{Clock, wall_ms, wall_now};
use crate::copies::evicting;
use crate::copies::gathered::WrongProofs;
use crate::core::forgetting::ForgottenRule;
use crate::core::ids::{Hash, NodeId};
use crate::core::pairing::shown_name;
use crate::core::scrub::ScrubRate;
use crate::folders;
use crate::folders::handle::Ingredients;
use crate::net::{NamedPeers, Net, NetConfig, Relay};
use crate::state::copies::Copies;
use crate::state::home::{Home, Lock};
use crate::state::identity::Identity;
use crate::state::index::Index;
use crate::state::journal::Journal;
use crate::state::partials::Partials;
use crate::store::Store;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::http::{HttpStore, Stated};

use self::fact::Facts;
use self::handle::Handle;
use self::parts::{Ids, Parts};
use self::tasks::Tasks;
pub use self::tuning::Tuning;
use crate::replica::catalogue::Backlog;
use crate::replica::copies::Keeper;
use crate::replica::metadata::{Arrivals, Settler};
use crate::replica::picture::{Picture, Sources};
use crate::replica::status::{ScrubStatus, Status};
use crate::replica::{device, disk, events, journal, metadata};
use crate::transfer;
use crate::transfer::prove::Prover;
use crate::transfer::throttle::Throttle;

mod copies;
mod effects;
mod fact;
mod fault;
pub mod handle;
mod journal_stream;
mod link;
mod live;
mod load;
mod membership;
mod parts;
mod plain;
mod proofs;
mod requests;
mod run;
mod start;
mod stop;
mod tasks;
#[cfg(test)]
mod tests;
mod tuning;
mod why;

/// At the end, calls of the store that are under way get this long to complete.
const STORE_CLOSE_WAIT: Duration = Duration::from_secs(10);

/// The configuration of an agent.
#[derive(Debug)]
pub struct Config {
    /// The folder of its files.
    pub home: Home,
    /// The store to sync.
    pub store: StoreChoice,
    /// Use the local network alone.
    pub offline: bool,
    /// The relay to use.
    pub relay: Relay,
    /// What may change while it runs.
    pub tuning: Tuning,
    /// How fast the store is read again to find damage.
    pub scrub_rate: ScrubRate,
    /// What to do with the bytes of forgotten assets.
    pub forgotten: ForgottenRule,
    /// Settings that users cannot change.
    pub net: NetOverrides,
}

/// Settings of the network that tests and benchmarks need.
#[derive(Debug, Clone, Default)]
pub struct NetOverrides {
    /// Bind only this UDP address.
    pub bind: Option<std::net::SocketAddr>,
    /// Speak only the plain protocol.
    pub plain_only: bool,
    /// Devices whose addresses are never used.
    pub unreachable: Vec<NodeId>,
    /// Makes the QUIC library panic when a test demands it.
    #[cfg(test)]
    pub(crate) panics: Option<Arc<crate::net::inject::Panics>>,
}

/// The store that an agent syncs.
#[derive(Debug)]
pub enum StoreChoice {
    /// The built-in store.
    Embedded,
    /// The store of another program.
    Foreign {
        /// Its base URL, on a loopback address.
        url: String,
        /// The file that holds its key.
        key_file: PathBuf,
        /// What the configuration says of it.
        stated: Stated,
    },
}

/// A running agent.
pub struct Agent {
    handle: Handle,
    embedded: Option<EmbeddedStore>,
    stop: CancellationToken,
    /// `None` once the loop has ended.
    running: Option<JoinHandle<Result<()>>>,
}

/// What is on disk, opened.
struct Opened {
    journal: Journal,
    index: Index,
    partials: Partials,
    copies: Copies,
}

impl Agent {
    /// Starts the agent of the home that `lock` locks. Waits for no network and no foreign store.
    ///
    /// # Errors
    /// Something on disk is unusable or the network cannot be bound; the error names it.
    pub async fn start(config: Config, lock: &Lock) -> Result<Self> {
        let folder = config.home.state_dir().to_owned();
        // SQLite names a full disk by many errors, most of them "disk I/O error".
        Self::start_all(config, lock).await.map_err(|error| match disk::is_full(&folder) {
            true => error.context(disk::no_room_to_start(&folder)),
            false => error,
        })
    }

    async fn start_all(config: Config, lock: &Lock) -> Result<Self> {
        let Config {
            home,
            store,
            offline,
            relay,
            tuning,
            scrub_rate,
            forgotten,
            net: net_overrides,
        } = config;
        let partials_dir = home.partials_dir();
        let scratch_folder = partials_dir.clone();
        let store_dir = home.store_dir();
        let is_journal_lost = home.is_journal_lost();
        let identity = Identity::load_or_create(&home, lock)?;
        let (opened, own) = (home.clone(), identity.clone());
        let opening = tokio::task::spawn_blocking(move || open(&opened, &own, is_journal_lost));
        let Opened { journal, index, partials, copies } = opening.await??;
        let (store, embedded, store_location, staging_dir) = match store {
            StoreChoice::Embedded => {
                let embedded = tokio::task::spawn_blocking(move || {
                    EmbeddedStore::open(&store_dir, Options::default())
                })
                .await??;
                let staging_dir = embedded.staging_dir().to_owned();
                let store: Arc<dyn Store> = Arc::new(embedded.clone());
                (store, Some(embedded), "embedded".to_owned(), staging_dir)
            }
            StoreChoice::Foreign { url, key_file, stated } => {
                let store = HttpStore::with_stated(&url, &key_file, stated)?;
                let store: Arc<dyn Store> = Arc::new(store);
                (store, None, url, partials_dir)
            }
        };
        evicting::restart(&copies, &*store).await.context("settling interrupted evictions")?;
        let hook_key = identity.hook_key();
        let mut net_config = NetConfig::new(identity.secret_key);
        (net_config.offline, net_config.relay, net_config.bind) =
            (offline, relay, net_overrides.bind);
        net_config.port = home.udp_port();
        if net_overrides.plain_only {
            net_config.protocols = vec![crate::net::Protocol::Plain];
        }
        #[cfg(test)]
        {
            net_config.panics = net_overrides.panics.clone();
        }
        let net = Net::bind(net_config).await.context("binding the network")?;
        if let Some(port) = net.port().filter(|port| home.udp_port() != Some(*port)) {
            home.write_udp_port(lock, port)?;
        }
        let algorithm = index.bound()?.map_or_else(Default::default, |(_, algorithm)| algorithm);
        let group_id = journal.group().context("the journal has no group")?;
        let (status, watched) = watch::channel(Status::starting(identity.node_id, group_id));
        let (journal, journal_writer) = journal::share(journal)?;
        let (settles, to_settle) = mpsc::channel(metadata::SETTLES_MAX);
        let folder = staging_dir.clone();
        let (listed, watched_listed) = watch::channel(0);
        let ingredients = Ingredients {
            me: identity.node_id,
            home: home.clone(),
            journal: journal.clone(),
            store: store.clone(),
            embedded: embedded.clone(),
            index: index.clone(),
            staging_dir: staging_dir.clone(),
            listed: watched_listed,
        };
        let opening = tokio::task::spawn_blocking(move || folders::handle::open(ingredients));
        let (folders, manager) = opening.await??;
        let waiting = {
            let folders = folders.clone();
            Arc::new(move |hashes: &[Hash]| Ok(folders.are_waited_for(hashes)?))
        };
        let keeper =
            Keeper::new(identity.node_id, index.clone(), copies.clone(), journal.clone(), waiting)?;
        let (hooks_set, watched_hooks) = watch::channel(tuning.hooks);
        let ingredients = hooks::Ingredients {
            home: home.clone(),
            me: identity.node_id,
            key: hook_key,
            hooks: watched_hooks,
            journal: journal.clone(),
            status: watched.clone(),
        };
        let hooks = tokio::task::spawn_blocking(move || Hooks::open(ingredients)).await?;
        let (alerts, watcher_ends) = Alerts::channel(hooks.clone());
        let alerts_told = alerts.told();
        let (handle, requests) = handle::channel(
            (store.clone(), staging_dir),
            journal.clone(),
            settles,
            folders.clone(),
            keeper.clone(),
            alerts,
            watched,
        );
        let (events, told) = events::channel();
        let (frozen, watched_frozen) = watch::channel(0);
        let arrivals = Arrivals::new(journal.clone());
        let backlog = Backlog::new(metadata::read_to(&journal).await?);
        let settler = Settler::new(
            store.clone(),
            backlog.clone(),
            journal.clone(),
            arrivals.clone(),
            events.clone(),
            to_settle,
            frozen,
        );
        let (twin, watched_twin) = watch::channel(None);
        let publisher = device::Publisher {
            node_id: identity.node_id,
            journal: journal.clone(),
            store: store.clone(),
            status: handle.watch(),
            folder,
            twin,
            twin_seen_ms: None,
        };
        let alerts_file = MemoryFile::new(home.clone());
        let (thresholds, watched_thresholds) = watch::channel(tuning.alerts);
        let (shortage, watched_shortage) = watch::channel(Vec::new());
        let watcher = Watcher {
            home: home.clone(),
            file: alerts_file.clone(),
            journal: journal.clone(),
            folders: folders.clone(),
            status: handle.watch(),
            thresholds: watched_thresholds,
            shortage: watched_shortage,
            twin: watched_twin.clone(),
            hooks: hooks.troubles(),
            ends: watcher_ends,
        };
        let (scrub, watched_scrub) = watch::channel(ScrubStatus::default());
        let picture = Picture::new(Sources {
            node_id: identity.node_id,
            net: net.clone(),
            store: store.clone(),
            store_location,
            journal: journal.clone(),
            keeper: keeper.clone(),
            scrub: watched_scrub,
            frozen: watched_frozen,
            twin: watched_twin,
        });
        let stop = CancellationToken::new();
        let (facts, inbox) = Facts::channel();
        let parts = Parts {
            node_id: identity.node_id,
            home,
            net,
            store: store.clone(),
            embedded: embedded.clone(),
            journal,
            ctx: transfer::Context {
                store,
                index,
                partials,
                gatherings: transfer::Gatherings::default(),
                damaged: transfer::Damaged::default(),
                algorithm,
                scratch_folder,
                arrivals: Some(arrivals),
                source: None,
            },
            throttle: Throttle::new(tuning.rate_limits),
            named_peers: NamedPeers::new(tuning.named_peers),
            scrub_rate,
            forgotten,
            scrub,
            events,
            backlog,
            requests,
            status,
            stop: stop.clone(),
            unreachable: net_overrides.unreachable,
            shortage,
            alerts: alerts_told,
            alerts_file,
            thresholds,
            hooks: hooks_set,
            folders,
            prover: Prover::new(
                identity.node_id,
                handle.store(),
                copies.clone(),
                embedded.is_some(),
            ),
            wrong_proofs: WrongProofs::default(),
            copies,
            keeper,
            listed,
            tasks: Tasks::default(),
            facts,
            clock: Clock::start(),
            ids: Ids::default(),
        };
        let tellers = start::Tellers {
            writer: journal_writer,
            settler,
            publisher,
            told,
            manager,
            watcher,
            hooks,
        };
        let running = tokio::spawn(run::run(parts, inbox, tellers, picture));
        let running = Some(running);
        let mut agent = Self { handle, embedded, stop, running };
        // The first status is ready before the first request is answered.
        let handle = agent.handle();
        tokio::select! {
            () = handle.changed(0) => {}
            ended = agent.ended() => ended?,
        }
        Ok(agent)
    }

    /// The handle for the rest of the process.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The embedded store, if it is in use.
    pub fn embedded_store(&self) -> Option<EmbeddedStore> {
        self.embedded.clone()
    }

    /// Returns when the agent has ended by itself.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let ended = running.await;
        self.running = None;
        ended.context("the agent's loop panicked")?
    }

    /// Stops the agent in order. Returns when all its tasks have ended.
    ///
    /// # Errors
    /// What failed on the way; the agent has ended nevertheless.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        let ended = self.ended().await;
        if let Some(store) = self.embedded
            && timeout(STORE_CLOSE_WAIT, store.close()).await.is_err()
        {
            tracing::warn!("the store was not closed in time: the next start recovers it");
        }
        ended
    }
}

fn open(home: &Home, identity: &Identity, is_journal_lost: bool) -> Result<Opened> {
    let mut journal = Journal::open(&home.journal_db_path(), identity, rand::random())
        .context("opening the journal")?;
    if journal.group().is_none() {
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = shown_name(&host_name, &identity.node_id);
        match is_journal_lost {
            false => journal.found(&name, wall_ms()),
            true => journal.found_anew(&name, wall_ms()),
        }
        .context("beginning the journal")?;
    }
    if journal.roster().is_founded_anew() {
        tracing::warn!("{}", crate::replica::picture::founded_anew(&identity.node_id));
    }
    let index = Index::open(&home.index_db_path())?;
    let partials = Partials::open(&home.partials_dir(), wall_now())
        .with_context(|| format!("opening {}", home.partials_dir().display()))?;
    let copies = Copies::open(&home.copies_db_path())?;
    Ok(Opened { journal, index, partials, copies })
}
