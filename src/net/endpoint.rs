//! The device's one QUIC endpoint: what it binds, what it lets a peer hold, how it dials.
//!
//! I1  Every limit that QUIC has is set here; the library's defaults trust the peer.
//! I2  Starting never waits for the internet, and offline nobody beyond the local network is dialled.
//! I3  Every dial has a deadline.
//!
//! Servers of third parties (relays and address lookup) are used with [`Relay::Default`] only. With
//! an own relay or none, devices find each other by the addresses they tell each other and by mDNS.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use iroh::endpoint::{
    BindOpts, ConnectOptions, ConnectWithOptsError, ConnectingError, ConnectionError, IdleTimeout,
    MtuDiscoveryConfig, PortmapperConfig, QuicTransportConfig, QuicTransportConfigBuilder,
    ServerConfig, VarInt, WeakConnectionHandle, presets,
};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, RelayUrl, SecretKey, TransportAddr};
use thiserror::Error;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;
use crate::core::limits::PAIR_REQUEST_FRAME_BYTES_MAX;
use crate::core::pairing::ADDRESSES_MAX;
use crate::wire::frame::HEADER_BYTES;

use super::address::{Reach, address_text, canonical, parse_addresses};
use super::connection::{Connection, Ended, Protocol, quic_code};
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
const STRANGER_WINDOW_BYTES: u32 = PAIR_REQUEST_FRAME_BYTES_MAX + HEADER_BYTES as u32;

/// The search for the longest packets begins with the longest that Ethernet carries, where nearly
/// every network is done, and then tries the middle once; the library's default takes five probes.
const MTU_STEP_BYTES: u16 = 127;

/// Keeps NAT mappings open; the commonest short one is 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Silence after which a connection is lost: six keep-alives.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a dial may take where only direct paths are tried.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// The same where a relay may have to be reached first.
const DIAL_DEADLINE_RELAY: Duration = Duration::from_secs(10);

/// How long stopping may take to tell the peers.
const CLOSE_DEADLINE: Duration = Duration::from_secs(4);

/// Live connections in total; bounds memory together with the windows. The largest group meant to
/// be connected all to all is 20 devices.
const CONNECTIONS_MAX: usize = 64;

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
        }
    }
}

/// Why a peer could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialError {
    /// The node ID is this device's.
    #[error("that is this device itself")]
    Itself,
    /// Not the ID of any device.
    #[error("{0} is not a node ID: no such public key exists")]
    NotANodeId(NodeId),
    /// This device is at its limit.
    #[error("{CONNECTIONS_MAX} connections are open already, which is the limit")]
    TooManyConnections,
    /// Nothing is known of where it is.
    #[error("no address of the device is known, and it is not seen on the local network")]
    NoAddress,
    /// Nobody answered.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// It answered, and is too busy.
    #[error("the device is busy: it refused the connection")]
    Busy,
    /// It speaks nothing this device speaks.
    #[error("the device speaks no protocol version this one knows: one of them is outdated")]
    NoCommonProtocol,
    /// This device is stopping.
    #[error("this device is stopping")]
    Stopping,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The endpoint. Clones are the same endpoint. End it with [`Net::close`], or peers notice only at
/// their idle timeout.
#[derive(Debug, Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    protocols: Vec<Protocol>,
    lan_only: bool,
    relay: bool,
    lan: Option<Lan>,
    live: Mutex<Vec<Live>>,
    /// Where members are known to be; as many as the member list holds.
    member_addresses: Mutex<BTreeSet<SocketAddr>>,
}

/// A connection that counts against the limits until it ends. Oldest first.
#[derive(Debug)]
struct Live {
    peer: EndpointId,
    protocol: Protocol,
    handle: WeakConnectionHandle,
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
    if let Some(address) = config.bind {
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
    let transport =
        transport_limits(STREAMS_MAX, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES).build();
    builder
        .relay_mode(relay_mode.clone())
        .secret_key(config.secret_key.clone())
        .alpns(alpns)
        .transport_config(transport)
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
        let relay = relay_mode != RelayMode::Disabled;
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
                endpoint,
                protocols: config.protocols,
                lan_only: config.offline,
                relay,
                lan,
                live: Mutex::new(Vec::new()),
                member_addresses: Mutex::default(),
            }),
        })
    }

    /// The UDP port in use, of IPv4.
    pub fn port(&self) -> Option<u16> {
        let mut sockets = self.inner.endpoint.bound_sockets().into_iter();
        sockets.find(SocketAddr::is_ipv4).map(|socket| socket.port())
    }

    /// This device.
    pub fn node_id(&self) -> NodeId {
        NodeId(*self.inner.endpoint.id().as_bytes())
    }

    /// Where this device can be reached now, as text, for tickets and the members list. Empty
    /// without a network; loopback addresses only when there are no others.
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.inner.endpoint.addr().addrs;
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

    /// Dials a peer for a session. Of the protocols both know the newest by the acceptor's order
    /// is taken. Success means that the peer proved its key; whether it lets this device in shows
    /// with its first frame.
    ///
    /// # Cancel safety
    /// Safe: the attempt is given up.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, node: NodeId, addresses: &[String]) -> Result<Connection, DialError> {
        self.dial_for(&self.inner.protocols, node, addresses).await
    }

    pub(super) async fn dial_for(
        &self,
        protocols: &[Protocol],
        node: NodeId,
        addresses: &[String],
    ) -> Result<Connection, DialError> {
        if node == self.node_id() {
            return Err(DialError::Itself);
        }
        let id =
            EndpointId::from_bytes(node.as_bytes()).map_err(|_| DialError::NotANodeId(node))?;
        let [first, others @ ..] = protocols else { return Err(DialError::NoCommonProtocol) };
        let others = others.iter().map(|protocol| protocol.alpn().to_vec()).collect();
        let hints = parse_addresses(addresses, &self.reach());
        let address = EndpointAddr::from_parts(id, hints.iter().cloned());
        let deadline = if self.inner.relay { DIAL_DEADLINE_RELAY } else { DIAL_DEADLINE };
        let dial = async {
            let options = ConnectOptions::new().with_additional_alpns(others);
            let connecting =
                self.inner.endpoint.connect_with_opts(address, first.alpn(), options).await?;
            Ok::<_, DialError>(connecting.await?)
        };
        // Without a hint all the time went into looking for the device.
        let too_late =
            if hints.is_empty() { DialError::NoAddress } else { DialError::NoAnswer(deadline) };
        let quic = timeout(deadline, dial).await.map_err(|_| too_late)??;
        let protocol = Protocol::from_alpn(quic.alpn()).ok_or(DialError::NoCommonProtocol)?;
        let connection = Connection::new(quic, protocol);
        if !self.admit(&connection) {
            return Err(DialError::TooManyConnections);
        }
        if let Some(lan) = self.lan() {
            lan.proved(id);
        }
        Ok(connection)
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
        let live = std::mem::take(&mut *self.live());
        for connection in live.iter().filter_map(|live| live.handle.upgrade()) {
            connection.close(quic_code(CloseCode::Shutdown), b"");
        }
        if timeout(CLOSE_DEADLINE, self.inner.endpoint.close()).await.is_err() {
            tracing::debug!("some peers were not told that this device stops");
        }
    }

    /// Counts a connection in, unless a limit stands against it. Of more connections with one peer
    /// than the limit the oldest goes: a peer that restarted dials again while its old connection
    /// still looks alive here.
    pub(super) fn admit(&self, connection: &Connection) -> bool {
        let quic = connection.quic();
        let peer = quic.remote_id();
        let mut live = self.live();
        live.retain(|live| {
            live.handle.upgrade().is_some_and(|connection| connection.close_reason().is_none())
        });
        let of_peer = live.iter().filter(|live| live.peer == peer).count();
        if of_peer >= CONNECTIONS_PER_PEER_MAX
            && let Some(oldest) = live.iter().position(|live| live.peer == peer)
            && let Some(connection) = live.remove(oldest).handle.upgrade()
        {
            connection.close(quic_code(CloseCode::Duplicate), b"");
        }
        let protocol = connection.protocol();
        let alike = live.iter().filter(|live| live.protocol == protocol).count();
        if live.len() >= CONNECTIONS_MAX
            || (protocol.is_for_strangers() && alike >= STRANGER_CONNECTIONS_MAX)
        {
            return false;
        }
        live.push(Live { peer, protocol, handle: quic.weak_handle() });
        true
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// How to accept a connection of a protocol for strangers: it needs one stream for one small
    /// message, and may make this device hold no more than that.
    pub(super) fn stranger_config(&self) -> ServerConfig {
        let transport = transport_limits(1, STRANGER_WINDOW_BYTES, STRANGER_WINDOW_BYTES).build();
        self.inner
            .endpoint
            .create_server_config_builder(
                [Protocol::Pairing, Protocol::Introduction].map(|p| p.alpn().to_vec()).to_vec(),
            )
            .set_transport_config(transport)
            .build()
    }

    pub(super) fn lan(&self) -> Option<&Lan> {
        self.inner.lan.as_ref()
    }

    fn live(&self) -> MutexGuard<'_, Vec<Live>> {
        lock(&self.inner.live)
    }

    fn reach(&self) -> Reach {
        Reach {
            own: self.inner.endpoint.addr().ip_addrs().map(SocketAddr::ip).collect(),
            lan_only: self.inner.lan_only,
            relay: self.inner.relay,
        }
    }
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

impl From<ConnectWithOptsError> for DialError {
    fn from(error: ConnectWithOptsError) -> Self {
        match error {
            ConnectWithOptsError::SelfConnect { .. } => Self::Itself,
            ConnectWithOptsError::NoAddress { .. } => Self::NoAddress,
            ConnectWithOptsError::EndpointClosed { .. } => Self::Stopping,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// QUIC's code of a server that does not want another connection (RFC 9000, 20.1).
const QUIC_CONNECTION_REFUSED: u64 = 0x02;

/// TLS alert 120, "no application protocol", as a QUIC code (RFC 9001, 4.8 and 8.1).
const QUIC_NO_APPLICATION_PROTOCOL: u64 = 0x0178;

impl From<ConnectingError> for DialError {
    fn from(error: ConnectingError) -> Self {
        let ConnectingError::ConnectionError { source, .. } = error else {
            return Self::Failed(error.to_string());
        };
        match &source {
            ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
                QUIC_CONNECTION_REFUSED => Self::Busy,
                QUIC_NO_APPLICATION_PROTOCOL => Self::NoCommonProtocol,
                _ => Self::Failed(Ended::from(&source).text),
            },
            ConnectionError::LocallyClosed => Self::Stopping,
            other => Self::Failed(Ended::from(other).text),
        }
    }
}
