//! The device's only QUIC endpoint: what it binds, and how much a peer may make it hold.
//!
//! I1  Every limit of QUIC is set here; the library's defaults trust the peer.
//! I2  Starting never waits for the internet, and offline no device beyond the local network is
//!     dialled.
//! I3  After a failure of the QUIC library the endpoint is bound again in this process; all its
//!     connections are lost.
//!
//! Servers of third parties (relays and address lookup) are used with [`Relay::Default`] only. With
//! an own relay or none, devices find each other by the addresses that they exchange and by mDNS.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
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
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;
use crate::core::limits::{
    ADDRESSES_MAX, CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, PAIR_FRAME_BYTES_MAX,
    STRANGER_CONNECTIONS_MAX, STREAMS_MAX,
};
use crate::wire::frame::HEADER_BYTES;

use super::address::{address_text, canonical, is_link_local};
use super::connection::{Connection, Protocol, WeakConnection};
use super::contain::{self, Contained, Fate};
use super::discovery::Lan;
use super::link_local;

/// The most unread bytes of one stream. Below the size at which a stalled reader of small pieces
/// makes the QUIC library give up the connection (it keeps at most 1,024 pieces).
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// The most unread bytes of one connection: 1 Gbit/s at a round trip of 64 ms, and the most that a
/// hostile member can make this device hold.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// The most unacknowledged bytes of one connection, whatever window the peer offers.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// The most unread bytes of a connection with a protocol for strangers: the longest request of a
/// joiner.
const STRANGER_WINDOW_BYTES: u32 = PAIR_FRAME_BYTES_MAX + HEADER_BYTES as u32;

/// The search for the packet size begins with Ethernet's maximum, which nearly every network
/// supports, and then tries the middle once; the library's default takes five probes.
const MTU_STEP_BYTES: u16 = 127;

/// Keeps NAT mappings open; the most common short timeout is 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long a connection may be silent before it is lost: six keep-alives.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long closing may take to notify the peers.
const CLOSE_DEADLINE: Duration = Duration::from_secs(4);

/// How often binding again tries the same port: the failed endpoint releases it within moments.
const SAME_PORT_ATTEMPTS: u32 = 20;

/// How long a failed endpoint waits until its lost connections are dropped, and how often it
/// checks.
const HANDLES_WAIT: Duration = Duration::from_secs(2);
const HANDLES_LOOK: Duration = Duration::from_millis(2);

/// The pause between two attempts to bind again.
const REBIND_PAUSE: Duration = Duration::from_millis(50);

/// Which relay is used when no direct path is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Relay {
    /// The public relays and address lookup of the iroh project.
    #[default]
    Default,
    /// No relay.
    Off,
    /// An own relay by its `https://` URL.
    Url(String),
}

/// The configuration of the endpoint.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The device's secret key.
    pub secret_key: SecretKey,
    /// The relay.
    pub relay: Relay,
    /// Whether to send nothing beyond the local network. Exception: the probes with which QUIC
    /// tries other addresses that a connected member names. Overrides `relay`.
    pub offline: bool,
    /// The UDP address to bind instead of all interfaces. With a loopback address only devices on
    /// the same machine are reached, and nothing is announced.
    pub bind: Option<SocketAddr>,
    /// The IPv4 UDP port of the last run, which other devices try first; if it is in use, another
    /// is taken.
    pub port: Option<u16>,
    /// The protocols of sessions, newest first: [`Protocol::Two`], [`Protocol::Plain`] or both.
    pub protocols: Vec<Protocol>,
    /// Lets tests make the QUIC library panic.
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

/// The endpoint. Clones share it. End it with [`Net::close`]; otherwise peers notice only at their
/// idle timeout.
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
    /// How often the endpoint was bound again.
    bindings: watch::Sender<u64>,
    /// The IPv4 UDP port of the endpoint; 0 when it has none.
    port: AtomicU16,
    closing: AtomicBool,
    lan: Option<Lan>,
    /// The link-local addresses that have sockets of their own.
    link_local: Mutex<Vec<SocketAddrV6>>,
    live: Mutex<Vec<Live>>,
    /// The known addresses of members, as many as the member list holds.
    member_addresses: Mutex<BTreeSet<SocketAddr>>,
}

/// The current endpoint.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    /// `None` while it is being bound again.
    pub(super) endpoint: Option<Endpoint>,
    pub(super) fate: Fate,
}

impl Bound {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint: Some(endpoint), fate: Fate::default() }
    }

    /// Queries the endpoint; `None` when it is lost.
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

/// A connection that counts against the limits until it ends.
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
    link_local: &[SocketAddrV6],
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
        // IPv6 is optional: not every machine has it, and its socket may take the port for IPv4
        // too.
        let optional = BindOpts::default().set_is_required(false);
        let of_link = optional.clone().set_prefix_len(64).set_is_default_route(false);
        builder = builder.clear_ip_transports().bind_addr((Ipv4Addr::UNSPECIFIED, port))?;
        // After the default address of a family the library takes no other one.
        for address in link_local {
            let mut address = *address;
            address.set_port(port);
            builder = builder.bind_addr_with_opts(address, of_link.clone())?;
        }
        builder = builder.bind_addr_with_opts((Ipv6Addr::UNSPECIFIED, 0), optional)?;
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
    /// Binds the sockets; waits for no network.
    ///
    /// # Errors
    /// The relay's URL or the bind address is unusable.
    pub async fn bind(config: NetConfig) -> anyhow::Result<Self> {
        let relay_mode = match (&config.relay, config.offline) {
            (_, true) | (Relay::Off, false) => RelayMode::Disabled,
            (Relay::Default, false) => RelayMode::Default,
            (Relay::Url(url), false) => RelayMode::custom([relay_url(url)?]),
        };
        let loopback = config.bind.is_some_and(|address| address.ip().is_loopback());
        let endpoint = match config.port {
            Some(port) => match bind_endpoint(&config, &relay_mode, Some(port), &[]).await {
                Err(_) => bind_endpoint(&config, &relay_mode, None, &[]).await?,
                Ok(endpoint) => endpoint,
            },
            None => bind_endpoint(&config, &relay_mode, None, &[]).await?,
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
                link_local: Mutex::default(),
                live: Mutex::new(Vec::new()),
                member_addresses: Mutex::default(),
            }),
        })
    }

    /// Gives up the failed endpoint with all its connections and binds another one: at the same
    /// port, which the peers know, unless the failed endpoint does not release it. Repeats until it
    /// succeeds or the device stops.
    ///
    /// # Cancel safety
    /// Safe: the next call continues.
    pub(super) async fn rebind(&self) {
        let port = self.inner.port.load(Ordering::Relaxed);
        self.bound().fate.lose();
        // The library's actors access their connections when they are dropped, and panic in a
        // destructor if a poisoned connection still has a handle. So the handles must go first.
        let deadline = Instant::now() + HANDLES_WAIT;
        while Instant::now() < deadline && self.live().iter().any(|l| !l.connection.is_gone()) {
            sleep(HANDLES_LOOK).await;
        }
        let failed = {
            let mut bound = self.inner.bound.lock();
            Contained::new(bound.endpoint.take(), bound.fate.clone())
        };
        drop(failed);
        self.live().clear();
        for attempt in 0_u32.. {
            if self.is_closing() {
                return;
            }
            let port = Some(port).filter(|port| *port != 0 && attempt < SAME_PORT_ATTEMPTS);
            let link_local = self.inner.link_local.lock().clone();
            let Inner { config, relay_mode, .. } = &*self.inner;
            match bind_endpoint(config, relay_mode, port, &link_local).await {
                Ok(endpoint) => return self.install(endpoint),
                Err(error) => tracing::debug!("cannot bind the endpoint again: {error:#}"),
            }
            sleep(REBIND_PAUSE).await;
        }
    }

    /// Whether sockets have to be bound for link-local addresses, because there are no others. Then
    /// [`Self::rebind`] binds them.
    pub(super) async fn lacks_link_local(&self) -> bool {
        let is_other = |addr: &SocketAddr| !addr.ip().is_loopback() && !is_link_local(addr.ip());
        let has_others =
            self.bound().ask(|endpoint| endpoint.addr().ip_addrs().any(is_other)).unwrap_or(true);
        if self.inner.config.bind.is_some() || has_others {
            return false;
        }
        let alone = link_local::alone().await;
        let mut known = self.inner.link_local.lock();
        let lacks = alone.iter().any(|address| !known.contains(address));
        if lacks {
            *known = alone;
        }
        lacks
    }

    fn install(&self, endpoint: Endpoint) {
        if let Some(lan) = self.lan() {
            // Fails only on an endpoint that is closed already.
            let _ = endpoint.address_lookup().map(|lookup| lookup.add(lan.clone()));
        }
        self.inner.port.store(port_of(&endpoint).unwrap_or(0), Ordering::Relaxed);
        *self.inner.bound.lock() = Bound::new(endpoint);
        self.inner.bindings.send_modify(|count| *count += 1);
    }

    /// The IPv4 UDP port in use.
    pub fn port(&self) -> Option<u16> {
        self.bound().ask(port_of)?
    }

    /// The protocols of sessions.
    pub(super) fn protocols(&self) -> &[Protocol] {
        &self.inner.config.protocols
    }

    pub(super) fn is_lan_only(&self) -> bool {
        self.inner.config.offline
    }

    /// The node ID of this device.
    pub fn node_id(&self) -> NodeId {
        NodeId(*self.inner.id.as_bytes())
    }

    /// The current addresses of this device as text, for tickets and the members list. Empty
    /// without a network; link-local and loopback addresses only when there are no others.
    pub fn addresses(&self) -> Vec<String> {
        let Some(addresses) = self.bound().ask(|endpoint| endpoint.addr().addrs) else {
            return Vec::new();
        };
        let best = addresses.iter().map(span_of).max().unwrap_or_default();
        addresses
            .iter()
            .filter(|address| {
                span_of(address) == best || matches!(address, TransportAddr::Relay(_))
            })
            .filter_map(address_text)
            .take(ADDRESSES_MAX)
            .collect()
    }

    /// Tells the connections whose address here is gone.
    pub fn stranded(&self) -> impl Fn(&Connection) -> bool + use<> {
        let own = self.own_addresses();
        move |connection| connection.is_stranded(&own)
    }

    /// Problems of the network that a user can fix; empty when there are none.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.lan.as_ref().and_then(Lan::warning).into_iter().collect()
    }

    /// Sets the known addresses of members. Callers from there do not share the limits of all
    /// others.
    pub fn set_member_addresses<'a>(&self, addresses: impl Iterator<Item = &'a String>) {
        let addresses = addresses.filter_map(|text| text.parse().ok()).map(canonical).collect();
        *self.inner.member_addresses.lock() = addresses;
    }

    pub(super) fn is_member_at(&self, address: SocketAddr) -> bool {
        self.inner.member_addresses.lock().contains(&canonical(address))
    }

    /// Closes every connection with SHUTDOWN, then the endpoint. Notifies the peers that can be
    /// reached within a few seconds.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
        let live = std::mem::take(&mut *self.live());
        for connection in live.iter().filter_map(|live| live.connection.upgrade()) {
            connection.close(CloseCode::Shutdown, "");
        }
        let Bound { endpoint: Some(endpoint), fate } = self.bound() else { return };
        if timeout(CLOSE_DEADLINE, contain::run(&fate, endpoint.close())).await.is_err() {
            tracing::debug!("some peers did not learn that this device stops");
            // A peer that is gone or far away keeps the endpoint open for three probe timeouts.
            // Dropped before that, the library logs an error; the process ends here in any case.
            std::mem::forget(endpoint);
        }
    }

    /// Counts a connection, unless a limit forbids it. If there are too many with one peer, the
    /// oldest is closed: a peer that restarted dials again while its old connection still seems
    /// alive here.
    pub(super) fn admit(&self, connection: &Connection) -> bool {
        let peer = connection.peer();
        let mut live = self.live();
        live.retain(|live| {
            live.connection.upgrade().is_some_and(|connection| connection.ended().is_none())
        });
        let protocol = connection.protocol();
        let is_alike = |live: &Live| {
            live.peer == peer && live.protocol.is_for_strangers() == protocol.is_for_strangers()
        };
        if live.iter().filter(|live| is_alike(live)).count() >= CONNECTIONS_PER_PEER_MAX
            && let Some(oldest) = live.iter().position(is_alike)
            && let Some(connection) = live.remove(oldest).connection.upgrade()
        {
            connection.close(CloseCode::Duplicate, "");
        }
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
        self.inner.bound.lock().clone()
    }

    /// Changes when the endpoint was bound again.
    pub(super) fn bindings(&self) -> watch::Receiver<u64> {
        self.inner.bindings.subscribe()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.inner.closing.load(Ordering::Relaxed)
    }

    /// Checks whether the library failed in one of the connections: it does not wake tasks that
    /// wait for such a connection.
    pub(super) fn look_for_failures(&self) {
        let live: Vec<_> =
            self.live().iter().filter_map(|live| live.connection.upgrade()).collect();
        for connection in live {
            // Using a failed connection marks the endpoint as lost.
            let _ = connection.ended();
        }
    }

    /// The changes of the endpoint's addresses until it is bound again.
    pub(super) fn watch_addresses(&self) -> BoxStream<'static, EndpointAddr> {
        let watch = |endpoint: &Endpoint| endpoint.watch_addr().stream_updates_only().boxed();
        self.bound().ask(watch).unwrap_or_else(|| stream::pending().boxed())
    }

    /// How to accept a connection with a protocol for strangers: it needs one stream for one small
    /// message, and may not make this device hold more.
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
        self.inner.live.lock()
    }

    pub(super) fn has_relay(&self) -> bool {
        self.inner.relay_mode != RelayMode::Disabled
    }
}

/// From how far an address is reached, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Span {
    #[default]
    Machine,
    /// An address without its scope, which has no meaning for others.
    Link,
    Network,
}

fn span_of(address: &TransportAddr) -> Span {
    match address {
        TransportAddr::Ip(socket) if socket.ip().is_loopback() => Span::Machine,
        TransportAddr::Ip(socket) if is_link_local(socket.ip()) => Span::Link,
        TransportAddr::Ip(_) => Span::Network,
        _ => Span::Machine,
    }
}

fn port_of(endpoint: &Endpoint) -> Option<u16> {
    let sockets = endpoint.bound_sockets();
    sockets.into_iter().find(SocketAddr::is_ipv4).map(|socket| socket.port())
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
