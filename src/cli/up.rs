//! `up` and `store`: the two commands that serve, until a signal ends them.
//!
//! U1  `ready` is said once requests are served and the state folder tells where.
//! U2  The first SIGTERM or SIGINT stops in order; the second, or one during the start, leaves at
//!     once, which loses nothing that was acknowledged.
//! U3  All that is created is for this user alone, whatever the umask was.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;
use crate::agent::{self, Agent, StoreChoice};
use crate::api;
use crate::core::rate::{RateLimits, Timetable};
use crate::http::guard::{Guard, own_user};
use crate::http::people;
use crate::http::serve::{serve, serve_own_user};
use crate::http::store_api::{self, Features};
use crate::net::{Relay, outlive_panics};
use crate::state::home::{ApiAddress, Home};
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::key::StoreKey;

const PORT_DEFAULT: u16 = 5757;

/// Ports tried from [`PORT_DEFAULT`] on: one agent and one store for each of many users.
const PORTS_TRIED: u16 = 100;

/// What `can-sync up` takes.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Sync this store instead of the embedded one: its URL on a loopback address
    #[arg(long, value_name = "URL", requires = "store_key_file")]
    store: Option<String>,
    /// The file that holds the store's key
    #[arg(long, value_name = "FILE", requires = "store")]
    store_key_file: Option<PathBuf>,
    #[command(flatten)]
    listen: ListenArgs,
    /// Use the local network alone: no relay, no discovery service
    #[arg(long)]
    offline: bool,
    /// Use this relay instead of the public ones; `off` for none
    #[arg(long, value_name = "URL", value_parser = parse_relay)]
    relay: Option<Relay>,
    #[command(flatten)]
    rate: RateArgs,
}

#[derive(Debug, Args)]
struct RateArgs {
    /// How fast contents may move, all peers together: `10M` bytes a second, `1M:500k` up and down,
    /// or a timetable, "08:00,512k 18:00,off" or "Mon-08:00,1M Fri-18:00,off", in local time
    #[arg(long, value_name = "LIMIT")]
    bwlimit: Option<Timetable>,
    /// The same for each peer alone; both limits hold
    #[arg(long, value_name = "LIMIT")]
    bwlimit_per_peer: Option<Timetable>,
    /// Do not limit what stays within the local network
    #[arg(long)]
    bwlimit_lan_exempt: bool,
}

/// What `can-sync store` takes.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(Debug, Args)]
struct ListenArgs {
    /// Where to serve the API, a loopback address; port 0 for any [default: 127.0.0.1:5757, or the
    /// next free port]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// `can-sync up`
pub(crate) async fn up(
    home: Option<PathBuf>,
    args: UpArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let rate_limits = args.rate.limits()?;
    outlive_panics();
    restrict_umask();
    let mut signals = Signals::listen()?;
    let home = Home::open(home)?;
    let lock = home.lock()?;
    let token = home.load_or_create_token(&lock)?;
    let listener = args.listen.bind().await?;
    let address = listener.local_addr().context("looking up the API's address")?;
    let store = match (args.store, args.store_key_file) {
        (Some(url), Some(key_file)) => StoreChoice::Foreign { url, key_file },
        _ => StoreChoice::Embedded,
    };
    let config = agent::Config {
        net: agent::NetOverrides::default(),
        home: home.clone(),
        store,
        offline: args.offline,
        relay: args.relay.unwrap_or_default(),
        tuning: agent::Tuning { rate_limits, ..agent::Tuning::default() },
    };
    let mut agent = tokio::select! {
        started = Agent::start(config, &lock) => started?,
        // Whatever was begun is like after a crash: the next start sees to it.
        () = signals.next() => return Ok(Exit::Ok),
    };

    let stop = CancellationToken::new();
    let handle = agent.handle();
    let store_routes = match agent.embedded_store() {
        Some(store) => store_api::router(store, Features::default()),
        None => people::router(handle.store(), handle.staging_dir().to_owned()),
    };
    let key = StoreKey::parse(&token).context("reading the API token")?;
    let router = api::router(handle, stop.clone()).merge(store_routes);
    let socket = home.listen_for_commands(&lock)?;
    let commands = UnixListener::from_std(socket.listener).context("listening for commands")?;
    let mut serving = std::pin::pin!(async {
        let own_user = serve_own_user(commands, own_user(router.clone()), stop.clone());
        let guarded = Guard::new(key, address.port()).layer(router);
        let (served, ()) = tokio::join!(serve(listener, guarded, stop.clone()), own_user);
        served
    });
    let api = format!("http://{address}");
    let pid = std::process::id();
    let api_address = ApiAddress { api: api.clone(), pid, socket: Some(socket.place) };
    home.write_api_address(&lock, &api_address)?;
    let status = agent.handle().status();
    let ready = json!({ "ready": true, "node_id": status.device.node_id, "api": api });
    say_ready(&ready, output, || {
        let device = &status.device;
        format!(
            "can-sync {}: this device is {} ({})\nAPI: {api}\nTo pair another device, run \
             `can-sync ticket` here and `can-sync pair` there.",
            device.version,
            shown(&device.name),
            device.node_id
        )
    });

    let ended = tokio::select! {
        () = signals.next() => Ok(()),
        served = &mut serving => served.context("serving the API"),
        ended = agent.ended() => ended,
    };
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
    // The store's own lock comes first: whoever holds it may make the key.
    let store = EmbeddedStore::open(&home.store_dir(), Options::default())?;
    let key_file = home.store_key_path();
    let key = load_or_create_key(&key_file)?;
    let listener = args.listen.bind().await?;
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
        () = signals.next() => Ok(()),
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
        Err(Failure::Report(_, error)) => tracing::warn!("saying that it is ready: {error:#}"),
        Ok(()) | Err(Failure::OutputClosed) => {}
    }
}

fn restrict_umask() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

fn parse_relay(text: &str) -> Result<Relay, String> {
    match text {
        "off" | "none" => Ok(Relay::Off),
        _ if text.starts_with("https://") || text.starts_with("http://") => {
            Ok(Relay::Url(text.to_owned()))
        }
        _ => Err("expected a URL, or `off`".into()),
    }
}

impl RateArgs {
    fn limits(self) -> Result<RateLimits, Failure> {
        let limits = RateLimits {
            all: self.bwlimit,
            each: self.bwlimit_per_peer,
            lan_exempt: self.bwlimit_lan_exempt,
        };
        if limits.lan_exempt && limits.is_empty() {
            let message = "--bwlimit-lan-exempt exempts from a limit: give --bwlimit or \
                           --bwlimit-per-peer, too";
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(limits)
    }
}

impl ListenArgs {
    async fn bind(&self) -> Result<TcpListener, Failure> {
        if let Some(address) = self.listen {
            if !address.ip().is_loopback() {
                let message = format!("--listen takes a loopback address, got {address}");
                return Err(Failure::new(Exit::Usage, message));
            }
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
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on the signals do not end the process by themselves.
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// # Cancel safety
    /// Safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Finishes `stopping`, unless another signal comes first: then the process ends here.
    async fn or_leave<T>(&mut self, stopping: impl Future<Output = T>) -> T {
        tokio::select! {
            stopped = stopping => stopped,
            () = self.next() => std::process::exit(Exit::Error as i32),
        }
    }
}
