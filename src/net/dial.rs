//! Dialling a peer: at which addresses, for how long, and why it failed.
//!
//! I1  Every dial has a deadline.
//! I2  Only addresses that this device's configuration admits are dialled.

use std::net::SocketAddr;
use std::time::Duration;

use iroh::endpoint::{ConnectOptions, ConnectWithOptsError, ConnectingError, ConnectionError};
use iroh::{Endpoint, EndpointAddr, EndpointId};
use thiserror::Error;
use tokio::time::timeout;

use crate::core::ids::NodeId;
use crate::core::limits::CONNECTIONS_MAX;

use super::address::{NamedAddress, Reach, parse_addresses};
use super::connection::{Connection, Ended, Protocol};
use super::contain::{self, Fate, Panicked};
use super::endpoint::{Bound, Net};

/// How long a dial may take when only direct paths are tried.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a dial may take when a relay may have to be reached first.
const DIAL_DEADLINE_RELAY: Duration = Duration::from_secs(10);

/// How long the lookup of a host name may take.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a peer could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialError {
    /// The node ID is that of this device.
    #[error("that is this device itself")]
    Itself,
    /// The node ID belongs to no possible device.
    #[error("{0} is not a node ID: no such public key exists")]
    NotANodeId(NodeId),
    /// This device has as many connections as allowed.
    #[error("{CONNECTIONS_MAX} connections are open already, which is the limit")]
    TooManyConnections,
    /// No address of the device is known.
    #[error("no address of the device is known, and it is not seen on the local network")]
    NoAddress,
    /// The device did not answer.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The device answered but is too busy.
    #[error("the device is busy: it refused the connection")]
    Busy,
    /// The devices have no protocol in common.
    #[error("the device speaks no protocol version this one knows: one of them is outdated")]
    NoCommonProtocol,
    /// This device is stopping.
    #[error("this device is stopping")]
    Stopping,
    /// The QUIC library failed, and the endpoint is being bound again.
    #[error("this device sets up its network anew after a fault")]
    Restarting,
    /// It failed for another reason.
    #[error("{0}")]
    Failed(String),
}

impl DialError {
    /// Whether another address may lead to the device.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::NoAddress | Self::NoAnswer(_) | Self::Failed(_))
    }
}

impl Net {
    /// Dials a peer at an address that a person named. Another device may answer there: then the
    /// dial fails, because that device does not have the peer's key.
    ///
    /// # Cancel safety
    /// Safe: the attempt is given up.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_named(
        &self,
        node: NodeId,
        named: &NamedAddress,
    ) -> Result<Connection, DialError> {
        let found = timeout(LOOKUP_DEADLINE, tokio::net::lookup_host(named.as_str())).await;
        let found = found.map_err(|_| DialError::NoAnswer(LOOKUP_DEADLINE))?;
        let found = found.map_err(|error| DialError::Failed(format!("{named}: {error}")))?;
        let addresses: Vec<String> = found.map(|address| address.to_string()).collect();
        self.dial(node, &addresses).await
    }

    /// Dials a peer for a session. Among the common protocols the acceptor's order decides. Success
    /// means that the peer proved its key; whether it admits this device shows with its first
    /// frame.
    ///
    /// # Cancel safety
    /// Safe: the attempt is given up.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, node: NodeId, addresses: &[String]) -> Result<Connection, DialError> {
        self.dial_for(self.protocols(), node, addresses).await
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
        let deadline = if self.has_relay() { DIAL_DEADLINE_RELAY } else { DIAL_DEADLINE };
        let Bound { endpoint, fate } = self.bound();
        let endpoint = endpoint.ok_or(DialError::Restarting)?;
        let dial = async {
            let options = ConnectOptions::new().with_additional_alpns(others);
            let connecting = endpoint.connect_with_opts(address, first.alpn(), options).await;
            let connecting = connecting.inspect_err(|error| {
                if let ConnectWithOptsError::InternalConsistencyError { .. } = error {
                    fate.lose();
                }
            })?;
            Ok::<_, DialError>(connecting.await.inspect_err(|error| lose_if_dead(&fate, error))?)
        };
        // Without an address, all the time went into looking for the device.
        let too_late =
            if hints.is_empty() { DialError::NoAddress } else { DialError::NoAnswer(deadline) };
        let dial = timeout(deadline, contain::run(&fate, dial)).await;
        let quic = dial.map_err(|_| too_late)???;
        let protocol = Protocol::from_alpn(quic.alpn()).ok_or(DialError::NoCommonProtocol)?;
        let connection = Connection::new(quic, protocol, fate)?;
        if !self.admit(&connection) {
            return Err(DialError::TooManyConnections);
        }
        if let Some(lan) = self.lan() {
            lan.proved(id);
        }
        Ok(connection)
    }

    fn reach(&self) -> Reach {
        let own = |endpoint: &Endpoint| endpoint.addr().ip_addrs().map(SocketAddr::ip).collect();
        Reach {
            own: self.bound().ask(own).unwrap_or_default(),
            lan_only: self.is_lan_only(),
            relay: self.has_relay(),
        }
    }
}

/// Marks the endpoint as lost if its actors have ended: it sets up no more connections.
pub(super) fn lose_if_dead(fate: &Fate, error: &ConnectingError) {
    if let ConnectingError::InternalConsistencyError { .. } = error {
        fate.lose();
    }
}

impl From<Panicked> for DialError {
    fn from(_: Panicked) -> Self {
        Self::Restarting
    }
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

/// The QUIC code of a server that refuses another connection (RFC 9000, 20.1).
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
