//! The device's one QUIC endpoint: what it binds and what it lets a peer hold.
//!
//! I1  Every limit that QUIC has is set here; the library's defaults trust the peer.
//! I2  Starting never waits for the internet, and offline nobody beyond the local network is dialled.
//! I3  An endpoint that the QUIC library has failed is bound anew in this process, and every
//!     connection of the old one is lost.
//!
//! Servers of third parties (relays and address lookup) are used with [`Relay::Default`] only. With
//! an own relay or none, devices find each other by the addresses they tell each other and by mDNS.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{self, BoxStream, StreamExt};
use iroh::endpoint::{
    BindOpts, IdleTimeout, Incoming, MtuDiscoveryConfig, PortmapperConfig, QuicTransportConfig,
    QuicTransportConfigBuilder, ServerConfig, VarInt, presets,
};
use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayMode, RelayUrl, SecretKey, TransportAddr, Watcher,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;
use crate::core::limits::PAIR_FRAME_BYTES_MAX;
use crate::core::pairing::ADDRESSES_MAX;
use crate::wire::frame::HEADER_BYTES;

use super::address::{address_text, canonical};
use super::connection::{Connection, Protocol, WeakConnection};
use super::contain::{self, Contained, Fate};
use super::discovery::Lan;

/// Streams a peer may have open at once: the control stream, the journal's, and batches. The QUIC
/// library grants ended ones anew by eighths, so plan with two fewer.
const STREAMS_MAX: u32 = 16;

/// Unread bytes of one stream. Below the size where a stalled reader of small pieces makes the
/// QUIC library give up the connection (it keeps at most 1,024 pieces).
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Unread bytes of one connection: 1 Gbit/s at a round trip of 64 ms, and all that a hostile
/// member can make this device hold.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Bytes sent and not acknowledged yet, for one connection, whatever window the peer offers.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Unread bytes of a connection of a protocol for strangers: the longest request of a joiner.
const STRANGER_WINDOW_BYTES: u32 = PAIR_FRAME_BYTES_MAX + HEADER_BYTES as u32;

/// The search for the longest packets begins with the longest that Ethernet carries, where nearly
/// every network is done, and then tries the middle once; the library's default takes five probes.
const MTU_STEP_BYTES: u16 = 127;

/// Keeps NAT mappings open; the commonest short one is 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Silence after which a connection is lost: six keep-alives.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long stopping may take to tell the peers.
const CLOSE_DEADLINE: Duration = Duration::from_secs(4);

/// How often binding anew tries the same port: the failed endpoint gives it back within moments.
const SAME_PORT_ATTEMPTS: u32 = 20;

/// How long a failed endpoint waits for its lost connections to be let go of, and how often it looks.
const HANDLES_WAIT: Duration = Duration::from_secs(2);
const HANDLES_LOOK: Duration = Duration::from_millis(2);

/// The pause between two attempts to bind anew.
const REBIND_PAUSE: Duration = Duration::from_millis(50);

/// Live connections in total; bounds memory together with the windows. The largest group meant to
/// be connected all to all is 20 devices.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// Live connections with one peer: two when both dial at once.
const CONNECTIONS_PER_PEER_MAX: usize = 2;

/// Live connections of each protocol for strangers.
const STRANGER_CONNECTIONS_MAX: usize = 4;

/// Which relay helps when no direct path is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Relay {
    /// The public relays and address lookup of the iroh project.
    #[default]
    Default,
    /// None.
    Off,
    /// One's own, by its `https://` URL.
    Url(String),
}

/// How to bind.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The device's identity.
    pub secret_key: SecretKey,
    /// Which relay to use.
    pub relay: Relay,
    /// Nothing is sent beyond the local network, but for the probes by which QUIC tries the other
    /// addresses that a connected member names; overrides `relay`.
    pub offline: bool,
    /// One UDP address to bind instead of all interfaces. With a loopback address only devices of
    /// the same machine are reached, and nothing is announced.
    pub bind: Option<SocketAddr>,
    /// The UDP port of last time, of IPv4, where the others look first; another is taken when it is in use.
    pub port: Option<u16>,
    /// What to speak in a session, newest first: [`Protocol::Two`], [`Protocol::Plain`] or both.
    pub protocols: Vec<Protocol>,
    /// Where the QUIC library panics when a test demands it.
    #[cfg(test)]
    pub(crate) panics: Option<Arc<super::inject::Panics>>,
}

impl NetConfig {
    /// The ordinary configuration of a device.
    pub fn new(secret_key: SecretKey) -> Self {
        Self {
            secret_key,
            relay: Relay::Default,
            offline: false,
            bind: None,
            port: None,
            protocols: vec![Protocol::Two, Protocol::Plain],
            #[cfg(test)]
            panics: None,
        }
    }
}

/// The endpoint. Clones are the same endpoint. End it with [`Net::close`], or peers notice only at
/// their idle timeout.
#[derive(Debug, Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: EndpointId,
    config: NetConfig,
    relay_mode: RelayMode,
    bound: Mutex<Bound>,
    /// How often the endpoint was bound anew.
    bindings: watch::Sender<u64>,
    /// The UDP port of the endpoint, of IPv4; 0 when it has none.
    port: AtomicU16,
    closing: AtomicBool,
    lan: Option<Lan>,
    live: Mutex<Vec<Live>>,
    /// Where members are known to be; as many as the member list holds.
    member_addresses: Mutex<BTreeSet<SocketAddr>>,
}

/// The endpoint in use.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    /// `None` while it is bound anew.
    pub(super) endpoint: Option<Endpoint>,
    pub(super) fate: Fate,
}

impl Bound {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint: Some(endpoint), fate: Fate::default() }
    }

    /// Asks the library something about the endpoint.
    pub(super) fn ask<'a, R>(&'a self, question: impl FnOnce(&'a Endpoint) -> R) -> Option<R> {
        let endpoint = self.endpoint.as_ref()?;
        self.fate.call(|| question(endpoint)).ok()
    }

    /// The next caller; `None` when the endpoint is closed or lost.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn accept(&self) -> Option<Incoming> {
        let accepting = self.ask(Endpoint::accept)?;
        contain::run(&self.fate, accepting).await.ok()?
    }
}

/// A connection that counts against the limits until it ends. Oldest first.
#[derive(Debug)]
struct Live {
    peer: NodeId,
    protocol: Protocol,
    connection: WeakConnection,
}

async fn bind_endpoint(
    config: &NetConfig,
    relay_mode: &RelayMode,
    port: Option<u16>,
) -> anyhow::Result<Endpoint> {
    let mut builder = match relay_mode {
        RelayMode::Default => Endpoint::builder(presets::N0),
        _ => Endpoint::builder(presets::Minimal),
    };
    if config.offline || config.bind.is_some_and(|address| address.ip().is_loopback()) {
        builder = builder.portmapper_config(PortmapperConfig::Disabled);
    }
    if let Some(mut address) = config.bind {
        if address.port() == 0 {
            address.set_port(port.unwrap_or(0));
        }
        builder = builder
            .clear_ip_transports()
            .bind_addr(address)
            .with_context(|| format!("binding UDP {address}"))?;
    } else if let Some(port) = port {
        // Not every machine has IPv6, and where it is, its socket may take the port for IPv4 too.
        let optional = BindOpts::default().set_is_required(false);
        builder = builder
            .clear_ip_transports()
            .bind_addr((Ipv4Addr::UNSPECIFIED, port))?
            .bind_addr_with_opts((Ipv6Addr::UNSPECIFIED, 0), optional)?;
    }
    let alpns = config.protocols.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    let transport = transport_limits(STREAMS_MAX, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES);
    #[cfg(test)]
    let transport = match &config.panics {
        Some(panics) => transport.congestion_controller_factory(panics.clone()),
        None => transport,
    };
    builder
        .relay_mode(relay_mode.clone())
        .secret_key(config.secret_key.clone())
        .alpns(alpns)
        .transport_config(transport.build())
        .bind()
        .await
        .context("binding the UDP sockets")
}

impl Net {
    /// Binds the sockets; does not wait for any network.
    ///
    /// # Errors
    /// The relay's URL or the bind address is of no use.
    pub async fn bind(config: NetConfig) -> anyhow::Result<Self> {
        let relay_mode = match (&config.relay, config.offline) {
            (_, true) | (Relay::Off, false) => RelayMode::Disabled,
            (Relay::Default, false) => RelayMode::Default,
            (Relay::Url(url), false) => RelayMode::custom([relay_url(url)?]),
        };
        let loopback = config.bind.is_some_and(|address| address.ip().is_loopback());
        let endpoint = match config.port {
            Some(port) => match bind_endpoint(&config, &relay_mode, Some(port)).await {
                Err(_) => bind_endpoint(&config, &relay_mode, None).await?,
                Ok(endpoint) => endpoint,
            },
            None => bind_endpoint(&config, &relay_mode, None).await?,
        };
        let lan = (!loopback).then(|| Lan::start(&endpoint)).transpose()?;
        Ok(Self {
            inner: Arc::new(Inner {
                id: endpoint.id(),
                config,
                relay_mode,
                port: AtomicU16::new(port_of(&endpoint).unwrap_or(0)),
                bound: Mutex::new(Bound::new(endpoint)),
                bindings: watch::Sender::new(0),
                closing: AtomicBool::new(false),
                lan,
                live: Mutex::new(Vec::new()),
                member_addresses: Mutex::default(),
            }),
        })
    }

    /// Gives the failed endpoint up, with all its connections, and binds another: at the same port,
    /// where the peers look, unless the failed one does not let go of it. Tries until it can or the
    /// device stops.
    ///
    /// # Cancel safety
    /// Safe: called again, it goes on.
    pub(super) async fn rebind(&self) {
        let port = self.inner.port.load(Ordering::Relaxed);
        self.bound().fate.lose();
        // The library's actors look at their connections when they are dropped, and panic in a
        // destructor where one is poisoned and still has a handle: the handles go first.
        let deadline = Instant::now() + HANDLES_WAIT;
        while Instant::now() < deadline && self.live().iter().any(|l| !l.connection.is_gone()) {
            sleep(HANDLES_LOOK).await;
        }
        let failed = {
            let mut bound = lock(&self.inner.bound);
            Contained::new(bound.endpoint.take(), bound.fate.clone())
        };
        drop(failed);
        self.live().clear();
        for attempt in 0_u32.. {
            if self.is_closing() {
                return;
            }
            let port = Some(port).filter(|port| *port != 0 && attempt < SAME_PORT_ATTEMPTS);
            match bind_endpoint(&self.inner.config, &self.inner.relay_mode, port).await {
                Ok(endpoint) => return self.install(endpoint),
                Err(error) => tracing::debug!("binding the endpoint anew: {error:#}"),
            }
            sleep(REBIND_PAUSE).await;
        }
    }

    fn install(&self, endpoint: Endpoint) {
        if let Some(lan) = self.lan() {
            // Refused only by an endpoint that is closed already.
            let _ = endpoint.address_lookup().map(|lookup| lookup.add(lan.clone()));
        }
        self.inner.port.store(port_of(&endpoint).unwrap_or(0), Ordering::Relaxed);
        *lock(&self.inner.bound) = Bound::new(endpoint);
        self.inner.bindings.send_modify(|count| *count += 1);
    }

    /// The UDP port in use, of IPv4.
    pub fn port(&self) -> Option<u16> {
        self.bound().ask(port_of)?
    }

    /// What to speak in a session.
    pub(super) fn protocols(&self) -> &[Protocol] {
        &self.inner.config.protocols
    }

    pub(super) fn is_lan_only(&self) -> bool {
        self.inner.config.offline
    }

    /// This device.
    pub fn node_id(&self) -> NodeId {
        NodeId(*self.inner.id.as_bytes())
    }

    /// Where this device can be reached now, as text, for tickets and the members list. Empty
    /// without a network; loopback addresses only when there are no others.
    pub fn addresses(&self) -> Vec<String> {
        let Some(addresses) = self.bound().ask(|endpoint| endpoint.addr().addrs) else {
            return Vec::new();
        };
        let only_loopback =
            !addresses.iter().any(|a| matches!(a, TransportAddr::Ip(s) if !s.ip().is_loopback()));
        addresses
            .iter()
            .filter(|address| match address {
                // Without its scope, which means nothing to others, a link-local address is none.
                TransportAddr::Ip(SocketAddr::V6(v6)) if v6.ip().is_unicast_link_local() => false,
                TransportAddr::Ip(socket) => only_loopback || !socket.ip().is_loopback(),
                _ => true,
            })
            .filter_map(address_text)
            .take(ADDRESSES_MAX)
            .collect()
    }

    /// What a user should know about the network and can do something about; empty when all is
    /// well.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.lan.as_ref().and_then(Lan::warning).into_iter().collect()
    }

    /// Tells where members are known to be. Callers from there do not share the limits of all others.
    pub fn set_member_addresses<'a>(&self, addresses: impl Iterator<Item = &'a String>) {
        let addresses = addresses.filter_map(|text| text.parse().ok()).map(canonical).collect();
        *lock(&self.inner.member_addresses) = addresses;
    }

    pub(super) fn is_member_at(&self, address: SocketAddr) -> bool {
        lock(&self.inner.member_addresses).contains(&canonical(address))
    }

    /// Closes every connection with SHUTDOWN, then the endpoint; tells the peers as far as they
    /// can be reached within a few seconds.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
        let live = std::mem::take(&mut *self.live());
        for connection in live.iter().filter_map(|live| live.connection.upgrade()) {
            connection.close(CloseCode::Shutdown, "");
        }
        let Bound { endpoint: Some(endpoint), fate } = self.bound() else { return };
        if timeout(CLOSE_DEADLINE, contain::run(&fate, endpoint.close())).await.is_err() {
            tracing::debug!("some peers were not told that this device stops");
        }
    }

    /// Counts a connection in, unless a limit stands against it. Of more connections with one peer
    /// than the limit the oldest goes: a peer that restarted dials again while its old connection
    /// still looks alive here.
    pub(super) fn admit(&self, connection: &Connection) -> bool {
        let peer = connection.peer();
        let mut live = self.live();
        live.retain(|live| {
            live.connection.upgrade().is_some_and(|connection| connection.ended().is_none())
        });
        let of_peer = live.iter().filter(|live| live.peer == peer).count();
        if of_peer >= CONNECTIONS_PER_PEER_MAX
            && let Some(oldest) = live.iter().position(|live| live.peer == peer)
            && let Some(connection) = live.remove(oldest).connection.upgrade()
        {
            connection.close(CloseCode::Duplicate, "");
        }
        let protocol = connection.protocol();
        let alike = live.iter().filter(|live| live.protocol == protocol).count();
        if live.len() >= CONNECTIONS_MAX
            || (protocol.is_for_strangers() && alike >= STRANGER_CONNECTIONS_MAX)
        {
            return false;
        }
        live.push(Live { peer, protocol, connection: connection.downgrade() });
        true
    }

    pub(super) fn bound(&self) -> Bound {
        lock(&self.inner.bound).clone()
    }

    /// Changes when the endpoint was bound anew.
    pub(super) fn bindings(&self) -> watch::Receiver<u64> {
        self.inner.bindings.subscribe()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.inner.closing.load(Ordering::Relaxed)
    }

    /// Looks whether the library has failed in one of the connections: those who wait on such a
    /// connection are not woken by it.
    pub(super) fn look_for_failures(&self) {
        let live: Vec<_> =
            self.live().iter().filter_map(|live| live.connection.upgrade()).collect();
        for connection in live {
            // A failed one loses the endpoint when it is used.
            let _ = connection.ended();
        }
    }

    /// The changes of the endpoint's addresses, until it is bound anew.
    pub(super) fn watch_addresses(&self) -> BoxStream<'static, EndpointAddr> {
        let watch = |endpoint: &Endpoint| endpoint.watch_addr().stream_updates_only().boxed();
        self.bound().ask(watch).unwrap_or_else(|| stream::pending().boxed())
    }

    /// How to accept a connection of a protocol for strangers: it needs one stream for one small
    /// message, and may make this device hold no more than that.
    pub(super) fn stranger_config(&self) -> Option<Arc<ServerConfig>> {
        let alpns = [Protocol::Pairing, Protocol::Introduction].map(|p| p.alpn().to_vec()).to_vec();
        let transport = transport_limits(1, STRANGER_WINDOW_BYTES, STRANGER_WINDOW_BYTES).build();
        let config = self.bound().ask(|endpoint| endpoint.create_server_config_builder(alpns))?;
        Some(Arc::new(config.set_transport_config(transport).build()))
    }

    pub(super) fn lan(&self) -> Option<&Lan> {
        self.inner.lan.as_ref()
    }

    fn live(&self) -> MutexGuard<'_, Vec<Live>> {
        lock(&self.inner.live)
    }

    pub(super) fn has_relay(&self) -> bool {
        self.inner.relay_mode != RelayMode::Disabled
    }
}

fn port_of(endpoint: &Endpoint) -> Option<u16> {
    let sockets = endpoint.bound_sockets();
    sockets.into_iter().find(SocketAddr::is_ipv4).map(|socket| socket.port())
}

/// What is behind these locks is whole between any two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn relay_url(text: &str) -> anyhow::Result<RelayUrl> {
    anyhow::ensure!(
        text.starts_with("https://") || text.starts_with("http://"),
        "a relay is given by its URL, as in https://relay.example.org, got {text:?}"
    );
    text.parse().with_context(|| format!("reading the relay's URL {text:?}"))
}

fn transport_limits(
    streams: u32,
    stream_window_bytes: u32,
    connection_window_bytes: u32,
) -> QuicTransportConfigBuilder {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.minimum_change(MTU_STEP_BYTES);
    // No `ack_frequency_config`: with it noq-proto 1.4.0 panics when loss probes repeat the request
    // (docs/upstream/noq-frame-without-room.md).
    QuicTransportConfig::builder()
        .mtu_discovery_config(Some(mtu))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(stream_window_bytes))
        .receive_window(VarInt::from_u32(connection_window_bytes))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(KEEP_ALIVE)
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("30 s fit a QUIC varint"),
        ))
}
