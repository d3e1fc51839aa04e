//! A connection to one peer and its streams, free of the QUIC library's types.
//!
//! I1  A peer's words reach people only cut to length and free of characters that cannot be seen.
//! I2  A stream is an `AsyncRead` and an `AsyncWrite`; bytes move under QUIC's flow control alone.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use iroh::TransportAddr;
use iroh::endpoint::{ConnectionError, LocalTransportAddr, Side, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::close::CloseCode;
use crate::core::foreign_text::visible;
use crate::core::ids::NodeId;
use crate::core::pairing::ADDRESSES_MAX;

use super::address::{address_text, is_near};
use super::endpoint::IDLE_TIMEOUT;
use super::frame::TakeBytes;

/// The longest text sent or shown with a close, bytes. More does not fit one packet with certainty.
const CLOSE_TEXT_BYTES_MAX: usize = 200;

/// What two devices speak on a connection; decided by ALPN while it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `can-sync/2`, the peer protocol.
    Two,
    /// `can-sync/1`, the plain protocol.
    Plain,
    /// `can-sync/pair/1`: a device asks to join.
    Pairing,
    /// `can-sync/intro/1`: a newcomer shows who added it.
    Introduction,
}

impl Protocol {
    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Two => b"can-sync/2",
            Self::Plain => b"can-sync/1",
            Self::Pairing => b"can-sync/pair/1",
            Self::Introduction => b"can-sync/intro/1",
        }
    }

    /// Who speaks it may be anyone: it gets little room.
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

/// A live connection. Clones are the same connection; when the last one is dropped, it closes.
#[derive(Debug, Clone)]
pub struct Connection {
    quic: iroh::endpoint::Connection,
    protocol: Protocol,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The peer closed it; otherwise this device or the network did.
    pub by_peer: bool,
    /// The reason it was closed with; `None` when it was lost rather than closed.
    pub code: Option<CloseCode>,
    /// For people: what happened, the closer's own words included.
    pub text: String,
}

/// Which way a connection's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Within the local network or machine.
    Lan,
    /// Straight to the peer through the internet.
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

/// What a connection has cost so far: the bytes of its datagrams, whatever was in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// To the peer.
    pub sent: u64,
    /// From it.
    pub received: u64,
}

/// The path a connection uses now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// Which way it goes.
    pub kind: PathKind,
    /// Round-trip time, milliseconds.
    pub rtt_ms: f64,
}

impl Connection {
    pub(super) fn new(quic: iroh::endpoint::Connection, protocol: Protocol) -> Self {
        Self { quic, protocol }
    }

    /// The device at the other end; the handshake has proved it.
    pub fn peer(&self) -> NodeId {
        NodeId(*self.quic.remote_id().as_bytes())
    }

    /// Whether this device dialled.
    pub fn dialed(&self) -> bool {
        self.quic.side() == Side::Client
    }

    /// What the two devices speak on it.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Opens a stream; of two streams with bytes to send the one of higher `priority` goes first.
    /// Waits while the peer allows no more streams: 16 at once, ended ones granted anew by threes, so
    /// that 14 can always be had. The peer sees it with its first byte only, so
    /// the opener writes first.
    ///
    /// # Cancel safety
    /// Safe: a stream nobody got is not opened.
    ///
    /// # Errors
    /// The connection is gone; [`Self::closed`] says why.
    pub async fn open_stream(&self, priority: i32) -> io::Result<(SendStream, RecvStream)> {
        let (send, recv) = self.quic.open_bi().await?;
        set_priority(&send, priority);
        Ok((SendStream(send), RecvStream(recv)))
    }

    /// The next stream the peer opened. What this side says on it has the `priority` that
    /// [`Self::open_stream`] speaks of. Its first bytes may be yet to come: a later stream's open it
    /// too.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// The connection is gone; [`Self::closed`] says why.
    pub async fn accept_stream(&self, priority: i32) -> io::Result<(SendStream, RecvStream)> {
        let (send, recv) = self.quic.accept_bi().await?;
        set_priority(&send, priority);
        Ok((SendStream(send), RecvStream(recv)))
    }

    /// Closes it at once; what the peer has not received is lost. `detail` goes to the peer's log.
    pub fn close(&self, code: CloseCode, detail: &str) {
        let detail = &detail[..detail.floor_char_boundary(CLOSE_TEXT_BYTES_MAX)];
        self.quic.close(quic_code(code), detail.as_bytes());
    }

    /// Waits until it has ended, by whomever.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> Ended {
        Ended::from(&self.quic.closed().await)
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.quic.close_reason().map(|reason| Ended::from(&reason))
    }

    /// The path it uses now; `None` once it has ended.
    pub fn path(&self) -> Option<Path> {
        let paths = self.quic.paths();
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

    /// What it has cost so far.
    pub fn wire_bytes(&self) -> WireBytes {
        let stats = self.quic.stats();
        WireBytes { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
    }

    /// The addresses the peer is reached at now, as text.
    pub fn remote_addresses(&self) -> Vec<String> {
        let paths = self.quic.paths();
        let mut texts: Vec<_> =
            paths.iter().filter_map(|path| address_text(path.remote_addr())).collect();
        texts.sort_unstable();
        texts.dedup();
        texts.truncate(ADDRESSES_MAX);
        texts
    }

    pub(super) fn quic(&self) -> &iroh::endpoint::Connection {
        &self.quic
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&ConnectionError> for Ended {
    fn from(error: &ConnectionError) -> Self {
        let lost = |text: String| Self { by_peer: false, code: None, text };
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::from_number(close.error_code.into());
                let words = shown(&String::from_utf8_lossy(&close.reason));
                let mut text = format!("closed by the peer: {} ({code})", code.sentence());
                if !words.is_empty() {
                    text = format!("{text}: {words}");
                }
                Self { by_peer: true, code: Some(code), text }
            }
            ConnectionError::ConnectionClosed(close) => Self {
                by_peer: true,
                code: None,
                text: format!("broken off by the peer: {}", shown(&close.to_string())),
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

fn set_priority(send: &iroh::endpoint::SendStream, priority: i32) {
    // A stream the peer has stopped already needs none.
    let _ = send.set_priority(priority);
}

pub(super) fn quic_code(code: CloseCode) -> VarInt {
    VarInt::from_u64(code.number()).unwrap_or(VarInt::MAX)
}

/// The sending half of a stream. `shutdown` ends it; dropped, it ends as well, so a reader tells
/// by the frames whether it has everything.
#[derive(Debug)]
pub struct SendStream(iroh::endpoint::SendStream);

impl SendStream {
    /// Changes what [`Connection::open_stream`] or [`Connection::accept_stream`] gave it.
    pub fn set_priority(&self, priority: i32) {
        set_priority(&self.0, priority);
    }

    /// Gives up sending: the peer's reads fail with `code`, and nothing more is delivered.
    pub fn reset(&mut self, code: CloseCode) {
        // A stream that is already over needs no reset.
        let _ = self.0.reset(quic_code(code));
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.0), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

impl TakeBytes for SendStream {
    async fn take(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        self.0.write_many_chunks(&mut std::slice::from_mut(bytes)).await?;
        Ok(())
    }
}

/// The receiving half of a stream. Dropped before its end, it tells the peer to stop.
#[derive(Debug)]
pub struct RecvStream(iroh::endpoint::RecvStream);

impl RecvStream {
    /// Refuses what is still to come: the peer's writes fail with `code`.
    pub fn stop(&mut self, code: CloseCode) {
        // A stream that is already over needs no stop.
        let _ = self.0.stop(quic_code(code));
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), cx, buffer)
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
