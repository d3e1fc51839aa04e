//! A connection to one peer and its streams, without types of the QUIC library.
//!
//! I1  Text from a peer is shown only after it was cut and invisible characters were removed.
//! I2  Every use of a handle of the QUIC library goes through `contain`: after a panic in the
//!     library a connection is lost like any other.
//! I3  A stream is an `AsyncRead` and an `AsyncWrite`; bytes move under QUIC's flow control alone.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use iroh::TransportAddr;
use iroh::endpoint::{ConnectionError, LocalTransportAddr, Side, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::close::CloseCode;
use crate::core::foreign_text::visible;
use crate::core::ids::NodeId;
use crate::core::limits::ADDRESSES_MAX;

use super::address::{address_text, is_near};
use super::contain::{Contained, Fate, Panicked, run};
use super::endpoint::IDLE_TIMEOUT;
use super::frame::TakeBytes;

/// The longest text sent or shown with a close, in bytes. A longer one may not fit one packet.
const CLOSE_TEXT_BYTES_MAX: usize = 200;

/// The label under which keying material is exported (RFC 5705).
const CHANNEL_BINDING_LABEL: &[u8] = b"EXPORTER-can-sync-pairing";

/// The protocol of a connection, chosen by ALPN during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `can-sync/2`, the peer protocol.
    Two,
    /// `can-sync/1`, the plain protocol.
    Plain,
    /// `can-sync/pair/2`: a device requests to join.
    Pairing,
    /// `can-sync/intro/1`: a new member presents the ops that added it.
    Introduction,
}

impl Protocol {
    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Two => b"can-sync/2",
            Self::Plain => b"can-sync/1",
            Self::Pairing => b"can-sync/pair/2",
            Self::Introduction => b"can-sync/intro/1",
        }
    }

    /// Whether any device may use it, so that it gets few resources.
    pub(super) fn is_for_strangers(self) -> bool {
        match self {
            Self::Two | Self::Plain => false,
            Self::Pairing | Self::Introduction => true,
        }
    }

    pub(super) fn from_alpn(alpn: &[u8]) -> Option<Self> {
        let all = [Self::Two, Self::Plain, Self::Pairing, Self::Introduction];
        all.into_iter().find(|p| p.alpn() == alpn)
    }
}

/// A live connection. Clones are the same connection; dropping the last one closes it.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Shared>);

/// What the clones of a connection and its streams share.
#[derive(Debug)]
struct Shared {
    quic: Contained<iroh::endpoint::Connection>,
    /// A second handle, see P2 of `contain`. Both are dropped separately, because either may panic.
    _spare: Contained<iroh::endpoint::Connection>,
    fate: Fate,
    peer: NodeId,
    dialed: bool,
    protocol: Protocol,
    /// Dropped last, after the handles.
    held: Arc<()>,
}

/// A reference to a connection that may be gone.
#[derive(Debug)]
pub(super) struct WeakConnection {
    shared: Weak<Shared>,
    held: Weak<()>,
}

impl WeakConnection {
    /// Whether its handles were dropped.
    pub(super) fn is_gone(&self) -> bool {
        self.held.strong_count() == 0
    }

    pub(super) fn upgrade(&self) -> Option<Connection> {
        self.shared.upgrade().map(Connection)
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Whether the peer closed it; otherwise this device or the network did.
    pub by_peer: bool,
    /// The close code; `None` when the connection was lost rather than closed.
    pub code: Option<CloseCode>,
    /// What happened, for people, with the text of the side that closed it.
    pub text: String,
    /// The text of the peer alone, made fit for people; usually empty.
    pub words: String,
}

/// The kind of path that a connection's packets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Within the local network or machine.
    Lan,
    /// Directly to the peer through the internet.
    Direct,
    /// Through a relay, which sees only ciphertext.
    Relay,
}

impl PathKind {
    /// The word that status shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}

/// The bytes of all datagrams of a connection so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// Sent to the peer.
    pub sent: u64,
    /// Received from the peer.
    pub received: u64,
}

/// QUIC's own counters of a connection, over all its paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicStats {
    /// Bytes of all datagrams sent.
    pub sent_bytes: u64,
    /// Bytes of all datagrams received.
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that were sent and lost.
    pub lost_packets: u64,
    /// Bytes in packets that were sent and lost.
    pub lost_bytes: u64,
}

impl QuicStats {
    /// Adds the counters of another connection.
    pub fn add(&mut self, other: &Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.sent_datagrams += other.sent_datagrams;
        self.received_datagrams += other.received_datagrams;
        self.sent_packets += other.sent_packets;
        self.lost_packets += other.lost_packets;
        self.lost_bytes += other.lost_bytes;
    }
}

/// The path a connection uses now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// The kind of path.
    pub kind: PathKind,
    /// Round-trip time, milliseconds.
    pub rtt_ms: f64,
}

impl Connection {
    pub(super) fn new(
        quic: iroh::endpoint::Connection,
        protocol: Protocol,
        fate: Fate,
    ) -> Result<Self, Panicked> {
        let peer = NodeId(*quic.remote_id().as_bytes());
        let spare = Contained::new(quic.clone(), fate.clone());
        let quic = Contained::new(quic, fate.clone());
        let dialed = quic.with(|quic| quic.side() == Side::Client)?;
        let held = Arc::new(());
        Ok(Self(Arc::new(Shared { quic, _spare: spare, fate, peer, dialed, protocol, held })))
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        WeakConnection { shared: Arc::downgrade(&self.0), held: Arc::downgrade(&self.0.held) }
    }

    /// The device at the other end, as proved by the handshake.
    pub fn peer(&self) -> NodeId {
        self.0.peer
    }

    /// Whether this device dialled.
    pub fn dialed(&self) -> bool {
        self.0.dialed
    }

    /// The protocol of the connection.
    pub fn protocol(&self) -> Protocol {
        self.0.protocol
    }

    /// Opens a stream. Of two streams with bytes to send, the one with the higher `priority` goes
    /// first. Waits while the peer allows no more streams: 16 at once; ended ones are replaced in
    /// threes, so that 14 are always possible. The peer notices the stream with its first byte, so
    /// the opener must write first.
    ///
    /// # Cancel safety
    /// Safe: a stream that was not returned was not opened.
    ///
    /// # Errors
    /// The connection is gone; [`Self::closed`] returns the reason.
    pub async fn open_stream(&self, priority: i32) -> io::Result<(SendStream, RecvStream)> {
        let opening = self.0.quic.with(|quic| quic.open_bi())?;
        let (send, recv) = run(&self.0.fate, opening).await??;
        Ok(self.streams(send, recv, priority))
    }

    /// Accepts the next stream that the peer opened. `priority` applies to what this side sends on
    /// it, as in [`Self::open_stream`]. Its first bytes may arrive later, because bytes of a later
    /// stream open it too.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// The connection is gone; [`Self::closed`] returns the reason.
    pub async fn accept_stream(&self, priority: i32) -> io::Result<(SendStream, RecvStream)> {
        let accepting = self.0.quic.with(|quic| quic.accept_bi())?;
        let (send, recv) = run(&self.0.fate, accepting).await??;
        Ok(self.streams(send, recv, priority))
    }

    fn streams(
        &self,
        send: iroh::endpoint::SendStream,
        recv: iroh::endpoint::RecvStream,
        priority: i32,
    ) -> (SendStream, RecvStream) {
        let fate = || self.0.fate.clone();
        let send = SendStream { quic: Contained::new(send, fate()), _connection: self.0.clone() };
        let recv = RecvStream { quic: Contained::new(recv, fate()), _connection: self.0.clone() };
        send.set_priority(priority);
        (send, recv)
    }

    /// Keying material of the TLS session: equal on both sides of this connection, and different on
    /// every other.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn channel_binding(&self) -> io::Result<[u8; 32]> {
        let mut key = [0; 32];
        self.0
            .quic
            .with(|quic| quic.export_keying_material(&mut key, CHANNEL_BINDING_LABEL, &[]))?
            .map_err(|_| io::Error::other("the connection has no keying material"))?;
        Ok(key)
    }

    /// Closes the connection at once; what the peer has not received is lost. `detail` goes to the
    /// peer's log.
    pub fn close(&self, code: CloseCode, detail: &str) {
        let detail = &detail[..detail.floor_char_boundary(CLOSE_TEXT_BYTES_MAX)];
        // A lost connection need not be closed.
        let _ = self.0.quic.with(|quic| quic.close(quic_code(code), detail.as_bytes()));
    }

    /// Waits until the connection has ended, whoever ended it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> Ended {
        let reason = match self.0.quic.with(|quic| quic.closed()) {
            Ok(closed) => run(&self.0.fate, closed).await,
            Err(panicked) => Err(panicked),
        };
        match reason {
            Ok(reason) => Ended::from(&reason),
            Err(panicked) => Ended::from(panicked),
        }
    }

    /// How the connection ended; `None` while it lives.
    pub fn ended(&self) -> Option<Ended> {
        match self.0.quic.with(|quic| quic.close_reason()) {
            Ok(reason) => reason.map(|reason| Ended::from(&reason)),
            Err(panicked) => Some(Ended::from(panicked)),
        }
    }

    /// The current path; `None` once the connection has ended.
    pub fn path(&self) -> Option<Path> {
        self.0.quic.with(path_of).ok().flatten()
    }

    /// The bytes of all datagrams so far; zero once the connection is lost by a fault of this
    /// device.
    pub fn wire_bytes(&self) -> WireBytes {
        let stats = self.0.quic.with(|quic| quic.stats());
        let bytes =
            stats.map(|stats| WireBytes { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes });
        bytes.unwrap_or_default()
    }

    /// The bytes received on the path that is in use; another path counts from anew. Probes of other
    /// paths do not show that this one works.
    pub fn heard_bytes(&self) -> u64 {
        let heard = self.0.quic.with(|quic| {
            let paths = quic.paths();
            let path = paths.iter().find(|path| path.is_selected());
            path.map_or_else(|| quic.stats().udp_rx.bytes, |path| path.stats().udp_rx.bytes)
        });
        heard.unwrap_or_default()
    }

    /// Whether the path that is in use leaves from an address other than `own`, so that nothing comes
    /// back on it. Loopback and link-local addresses are not judged: `own` need not name them.
    pub(super) fn is_stranded(&self, own: &[IpAddr]) -> bool {
        let local = self.0.quic.with(|quic| {
            let paths = quic.paths();
            let path =
                paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next())?;
            match path.local_addr() {
                LocalTransportAddr::Ip(ip) => ip.map(|ip| ip.to_canonical()),
                _ => None,
            }
        });
        local.ok().flatten().is_some_and(|ip| {
            let is_judged = match ip {
                IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
                IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
            };
            is_judged && !own.contains(&ip)
        })
    }

    /// QUIC's own counters so far; zero once the connection is lost by a fault of this device.
    pub fn quic_stats(&self) -> QuicStats {
        let stats = self.0.quic.with(|quic| quic.stats());
        let counters = stats.map(|stats| QuicStats {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_datagrams: stats.udp_tx.datagrams,
            received_datagrams: stats.udp_rx.datagrams,
            sent_packets: stats.sent_packets,
            lost_packets: stats.lost_packets,
            lost_bytes: stats.lost_bytes,
        });
        counters.unwrap_or_default()
    }

    /// The addresses at which the peer is reached now, as text.
    pub fn remote_addresses(&self) -> Vec<String> {
        let mut texts = self.0.quic.with(addresses_of).unwrap_or_default();
        texts.sort_unstable();
        texts.dedup();
        texts.truncate(ADDRESSES_MAX);
        texts
    }
}

fn path_of(quic: &iroh::endpoint::Connection) -> Option<Path> {
    let paths = quic.paths();
    let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next())?;
    let own = match path.local_addr() {
        LocalTransportAddr::Ip(Some(ip)) => vec![*ip],
        _ => Vec::new(),
    };
    let kind = match path.remote_addr() {
        TransportAddr::Ip(socket) if is_near(socket.ip(), &own) => PathKind::Lan,
        TransportAddr::Relay(_) => PathKind::Relay,
        _ => PathKind::Direct,
    };
    Some(Path { kind, rtt_ms: path.rtt().as_secs_f64() * 1000.0 })
}

fn addresses_of(quic: &iroh::endpoint::Connection) -> Vec<String> {
    quic.paths().iter().filter_map(|path| address_text(path.remote_addr())).collect()
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Panicked> for Ended {
    fn from(panicked: Panicked) -> Self {
        let text = format!("connection lost: {panicked}");
        Self { by_peer: false, code: None, text, words: String::new() }
    }
}

impl From<&ConnectionError> for Ended {
    fn from(error: &ConnectionError) -> Self {
        let lost = |text: String| Self { by_peer: false, code: None, text, words: String::new() };
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::from_number(close.error_code.into());
                let words = shown(&String::from_utf8_lossy(&close.reason));
                let mut text = format!("closed by the peer: {} ({code})", code.sentence());
                if !words.is_empty() {
                    text = format!("{text}: {words}");
                }
                Self { by_peer: true, code: Some(code), text, words }
            }
            ConnectionError::ConnectionClosed(close) => Self {
                by_peer: true,
                code: None,
                text: format!("broken off by the peer: {}", shown(&close.to_string())),
                words: String::new(),
            },
            ConnectionError::TimedOut => {
                lost(format!("no sign of the peer for {} s", IDLE_TIMEOUT.as_secs()))
            }
            ConnectionError::Reset => lost("the peer restarted".to_owned()),
            ConnectionError::LocallyClosed => lost("closed by this device".to_owned()),
            other => lost(format!("connection lost: {}", shown(&other.to_string()))),
        }
    }
}

fn shown(words: &str) -> String {
    visible(words, CLOSE_TEXT_BYTES_MAX)
}

pub(super) fn quic_code(code: CloseCode) -> VarInt {
    VarInt::from_u64(code.number()).unwrap_or(VarInt::MAX)
}

/// The sending half of a stream. `shutdown` ends it; so does dropping it, so a reader tells from
/// the frames whether it has everything.
#[derive(Debug)]
pub struct SendStream {
    quic: Contained<iroh::endpoint::SendStream>,
    /// Dropped after the stream, so that the stream's handle is never the connection's last.
    _connection: Arc<Shared>,
}

impl SendStream {
    /// Changes the priority set by [`Connection::open_stream`] or [`Connection::accept_stream`].
    pub fn set_priority(&self, priority: i32) {
        // A stream that the peer has stopped needs no priority.
        let _ = self.quic.with(|quic| quic.set_priority(priority));
    }

    /// Aborts sending: the peer's reads fail with `code`, and nothing more is delivered.
    pub fn reset(&mut self, code: CloseCode) {
        // A stream that has ended needs no reset.
        let _ = self.quic.with_mut(|quic| quic.reset(quic_code(code)));
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written =
            self.quic.poll(cx, |quic, cx| AsyncWrite::poll_write(Pin::new(quic), cx, bytes));
        written.map(|written| written?)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.quic.poll(cx, |quic, cx| AsyncWrite::poll_flush(Pin::new(quic), cx));
        flushed.map(|flushed| flushed?)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.quic.poll(cx, |quic, cx| AsyncWrite::poll_shutdown(Pin::new(quic), cx));
        shut.map(|shut| shut?)
    }
}

impl TakeBytes for SendStream {
    async fn take(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        let taken = std::future::poll_fn(|cx| {
            // Dropping a pending future loses nothing, because it holds no state.
            let bytes = std::slice::from_mut(&mut *bytes);
            self.quic.poll(cx, |quic, cx| pin!(quic.write_many_chunks(&mut &mut *bytes)).poll(cx))
        });
        taken.await??;
        Ok(())
    }
}

/// The receiving half of a stream. Dropping it before its end makes the peer stop sending.
#[derive(Debug)]
pub struct RecvStream {
    quic: Contained<iroh::endpoint::RecvStream>,
    /// Dropped after the stream, so that the stream's handle is never the connection's last.
    _connection: Arc<Shared>,
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.quic.poll(cx, |quic, cx| AsyncRead::poll_read(Pin::new(quic), cx, buffer));
        read.map(|read| read?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_cannot_steer_the_terminal() {
        assert_eq!(shown("\u{1b}[31mred\nnext\u{202e}txt\0 für 3"), "[31mrednexttxt für 3");
    }

    #[test]
    fn every_protocol_comes_back_from_its_alpn() {
        for protocol in [Protocol::Two, Protocol::Plain, Protocol::Pairing] {
            assert_eq!(Protocol::from_alpn(protocol.alpn()), Some(protocol));
        }
        assert_eq!(Protocol::from_alpn(b"can-sync/3"), None);
    }
}
