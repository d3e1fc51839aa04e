//! `up` and `store`: the two commands that serve, until a signal ends them.
//!
//! U1  `ready` is said once requests are served and the state folder tells where.
//! U2  The first SIGTERM or SIGINT stops in order; the second, or one during the start, leaves at
//!     once, which loses nothing that was acknowledged.
//! U3  SIGHUP reads the configuration anew, unless the terminal of the process was closed.
//! U4  All that is created is for this user alone, whatever the umask was.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::config;
use super::doors::Network;
use super::exit::{Exit, Failure};
use super::notify;
use super::options::{StoreArgs, UpArgs};
use super::output::Output;
use super::text::shown;
use crate::agent::{self, Agent};
use crate::api::dav::DavDoor;
use crate::api::{self, config::LiveConfig};
use crate::dav::{self, Dav};
use crate::http::basic::{BasicGuard, Password};
use crate::http::browser::Door;
use crate::http::guard::{Guard, own_user};
use crate::http::people;
use crate::http::serve::{serve, serve_own_user};
use crate::http::sessions::Sessions;
use crate::http::store_api::{self, Features};
use crate::net::outlive_panics;
use crate::page::{self, Page};
use crate::state::home::{ApiAddress, Home};
use crate::store::choice::StoreChoice;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::http::Stated;
use crate::store::key::StoreKey;

const PORT_DEFAULT: u16 = 5757;

/// Ports tried from [`PORT_DEFAULT`] on: one agent and one store for each of many users.
const PORTS_TRIED: u16 = 100;

/// `can-sync up`
pub(crate) async fn up(
    home: Option<PathBuf>,
    args: UpArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let home_option = home.as_ref().map(|home| format!("--home {} ", home.display()));
    let configuration = config::load(home.clone(), args.layer())?;
    let settings = configuration.settings().clone();
    outlive_panics();
    restrict_umask();
    let mut signals = Signals::listen()?;
    let home = Home::open(home)?;
    let lock = home.lock()?;
    let token = home.load_or_create_token(&lock)?;
    let tuning = api::config::tuning(&settings);
    let listener = bind(settings.listen).await?;
    let address = listener.local_addr().context("looking up the API's address")?;
    let network = Network::bind(&settings, &home, &lock).await?;
    let password = Password::of_hash(home.dav_password()?.as_deref());
    let store = match (settings.store, settings.store_key_file) {
        (Some(url), Some(key_file)) => {
            let (hash_algorithm, key_header) = (settings.store_hash, settings.store_key_header);
            let stated = Stated { hash_algorithm, key_header };
            StoreChoice::Foreign { url, key_file, stated }
        }
        _ => StoreChoice::Embedded,
    };
    let config = agent::Config {
        net: agent::NetOverrides::default(),
        home: home.clone(),
        store,
        offline: settings.offline,
        relay: settings.relay,
        tuning,
        thumbnailer: std::env::current_exe().context("finding this program")?,
        scrub_rate: settings.scrub_rate,
        forgotten: settings.forgotten,
        keep: settings.keep,
    };
    let mut agent = tokio::select! {
        started = Agent::start(config, &lock) => started?,
        // What has begun is left as after a crash, and the next start cleans it up.
        () = signals.stop() => return Ok(Exit::Ok),
    };

    let stop = CancellationToken::new();
    let handle = agent.handle();
    let store_routes = match agent.embedded_store() {
        Some(store) => store_api::router(store, Features::default()),
        None => people::router(handle.store(), handle.staging_dir().to_owned()),
    };
    let key = StoreKey::parse(&token).context("reading the API token")?;
    let config = LiveConfig::new(configuration, handle.clone());
    let api = format!("http://{address}");
    let sessions = Sessions::new(address.port());
    let router = api::router(handle.clone(), stop.clone())
        .merge(api::config::router(config.clone()))
        .merge(api::page::router(sessions.clone(), api.clone(), network.page()))
        .merge(api::dav::router(DavDoor {
            password: password.clone(),
            home: home.clone(),
            url: format!("{api}{}/", dav::PREFIX),
            listens: network.dav(),
        }))
        .merge(store_routes);
    let dav = Dav::new(handle.clone());
    let page = Page::new(
        router.clone(),
        handle.clone(),
        sessions,
        stop.clone(),
        dav.clone(),
        network.page(),
    );
    let socket = home.listen_for_commands(&lock)?;
    let commands = UnixListener::from_std(socket.listener).context("listening for commands")?;
    let mut serving = std::pin::pin!(async {
        let own_user = serve_own_user(commands, own_user(router.clone()), stop.clone());
        let guarded = Guard::new(key, address.port()).layer(router);
        let dav = dav.router();
        let port = address.port();
        let doors = page::router(page.clone(), Door::Loopback(port))
            .merge(BasicGuard::new(password.clone(), Some(port)).layer(dav.clone()))
            .fallback_service(guarded);
        let dav = BasicGuard::new(password, None).layer(dav);
        let network = network.serve(&page, &dav, &stop);
        let (served, (), ()) =
            tokio::join!(serve(listener, doors, stop.clone()), own_user, network);
        served
    });
    let pid = std::process::id();
    let api_address = ApiAddress { api: api.clone(), pid, socket: Some(socket.place) };
    home.write_api_address(&lock, &api_address)?;
    let status = agent.handle().status();
    let ready = json!({ "ready": true, "node_id": status.device.node_id, "api": api });
    say_ready(&ready, output, || {
        let device = &status.device;
        let permanent = match notify::is_managed() {
            true => String::new(),
            false => format!(
                "\nTo have it run by itself from now on: stop it, and `can-sync {}service install`.",
                home_option.unwrap_or_default()
            ),
        };
        format!(
            "can-sync {}: this device is {} ({})\nAPI: {api}\nTo pair another device, run \
             `can-sync ticket` here and `can-sync pair` there; to see it all in a browser, run \
             `can-sync open`.{permanent}",
            device.version,
            shown(&device.name),
            device.node_id
        )
    });

    notify::ready(&status);
    let mut alive = std::pin::pin!(notify::keep_alive(&handle));
    let mut measuring = std::pin::pin!(page.watch_throughput());
    let ended = loop {
        tokio::select! {
            () = &mut alive => {}
            () = &mut measuring => {}
            signalled = signals.next() => match signalled {
                Signalled::Stop => break Ok(()),
                Signalled::Reload => {
                    notify::reloading();
                    reload(&config).await;
                    notify::ready(&handle.status());
                }
            },
            served = &mut serving => break served.context("serving the API"),
            ended = agent.ended() => break ended,
        }
    };
    notify::stopping();
    let stopped = async {
        let removed = home.remove_api_address(&lock);
        stop.cancel();
        let served = serving.await.context("serving the API");
        agent.stop().await.and(served).and(removed)
    };
    let stopped = signals.or_leave(stopped).await;
    ended.and(stopped)?;
    Ok(Exit::Ok)
}

/// `can-sync store`
pub(crate) async fn store(
    home: Option<PathBuf>,
    args: StoreArgs,
    output: Output,
) -> Result<Exit, Failure> {
    restrict_umask();
    let mut signals = Signals::listen()?;
    let home = Home::open(home)?;
    // Opening the store locks it, so only one process creates the key.
    let store = EmbeddedStore::open(&home.store_dir(), Options::default())?;
    let key_file = home.store_key_path();
    let key = load_or_create_key(&key_file)?;
    let listener = bind(args.listen).await?;
    let address = listener.local_addr().context("looking up the API's address")?;

    let stop = CancellationToken::new();
    let router = store_api::router(store.clone(), Features::default());
    let router = Guard::new(key, address.port()).layer(router);
    let mut serving = std::pin::pin!(serve(listener, router, stop.clone()));
    let api = format!("http://{address}");
    let ready = json!({ "ready": true, "api": api, "key_file": key_file });
    say_ready(&ready, output, || {
        format!("can-sync store\nAPI: {api}\nKey file: {}", key_file.display())
    });

    let ended = tokio::select! {
        () = signals.stop() => Ok(()),
        served = &mut serving => served.context("serving the API"),
        failure = store.failed() => Err(failure.into()),
    };
    let stopped = async {
        stop.cancel();
        let served = serving.await.context("serving the API");
        store.close().await;
        served
    };
    let stopped = signals.or_leave(stopped).await;
    ended.and(stopped)?;
    Ok(Exit::Ok)
}

fn load_or_create_key(path: &Path) -> Result<StoreKey, Failure> {
    let key = if path.exists() { StoreKey::load(path) } else { StoreKey::create(path) };
    Ok(key.context("opening the store's key file")?)
}

/// One line for programs on standard output, a few for people on standard error. The only output of
/// a long run, so standard output that cannot be written does not end it.
fn say_ready(ready: &Value, output: Output, prose: impl FnOnce() -> String) {
    output.note(prose());
    if !output.json {
        return;
    }
    match output.json(ready) {
        Err(Failure::Report(_, error)) => {
            tracing::warn!("cannot print that the agent is ready: {error:#}")
        }
        Ok(()) | Err(Failure::OutputClosed) => {}
    }
}

fn restrict_umask() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Applies the configuration's file anew.
async fn reload(config: &LiveConfig) {
    match config.reload().await {
        Ok(view) => {
            let waiting = view.settings.iter().filter(|setting| setting.waits_for_restart);
            let waiting: Vec<_> = waiting.map(|setting| setting.key.as_str()).collect();
            tracing::info!(file = %view.file.display(), "the configuration was read again");
            if !waiting.is_empty() {
                tracing::warn!(
                    "changed, but in effect only after a restart: {}",
                    waiting.join(", ")
                );
            }
        }
        Err(error) => tracing::error!("the configuration stays as it was: {error}"),
    }
}

async fn bind(listen: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    if let Some(address) = listen {
        let listener = TcpListener::bind(address).await;
        return Ok(listener.with_context(|| format!("listening on {address}"))?);
    }
    for port in PORT_DEFAULT..PORT_DEFAULT + PORTS_TRIED {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return Ok(bound.with_context(|| format!("listening on {address}"))?),
        }
    }
    let last = PORT_DEFAULT + PORTS_TRIED - 1;
    Err(anyhow!("the ports {PORT_DEFAULT} to {last} are all taken: use --listen").into())
}

/// The terminal of a process that has one.
const TERMINAL: &str = "/dev/tty";

/// The meaning of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signalled {
    Stop,
    /// Read the configuration anew.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    had_terminal: bool,
}

impl Signals {
    /// From here on the signals do not end the process by themselves.
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            had_terminal: File::open(TERMINAL).is_ok(),
        })
    }

    /// # Cancel safety
    /// Safe.
    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::Stop,
            _ = self.interrupt.recv() => Signalled::Stop,
            // Sent by a person, or by the system because the terminal was closed.
            _ = self.hang_up.recv() => match self.had_terminal && File::open(TERMINAL).is_err() {
                true => Signalled::Stop,
                false => Signalled::Reload,
            },
        }
    }

    /// Returns when the process is to end.
    ///
    /// # Cancel safety
    /// Safe.
    async fn stop(&mut self) {
        while self.next().await != Signalled::Stop {}
    }

    /// Finishes `stopping`, unless another signal comes first: then the process ends here.
    async fn or_leave<T>(&mut self, stopping: impl Future<Output = T>) -> T {
        tokio::select! {
            stopped = stopping => stopped,
            () = self.stop() => std::process::exit(Exit::Error as i32),
        }
    }
}
