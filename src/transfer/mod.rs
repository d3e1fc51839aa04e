//! The data plane of a session: how assets cross a stream.
//!
//! ```text
//! send_batch     Offer, small ones inline ->          receive_batch
//!                <- Want ...                          (`decide` says what is wanted)
//!                Contents, Piece ... , Done ->        verifies and stores meanwhile
//!                <- Ack                               after the store committed
//! ```
//! A large asset may arrive on several streams at once, a part on each ([`gather`]). [`plain`] does
//! the same over one stream for both directions, without Offer and Want. Everything works on any
//! byte stream; nothing here decides which assets move, or when.
//!
//! I1  A receiver acknowledges only what its store has committed.
//! I2  A sender sends only content that it has verified against the asset's hash, and a receiver
//!     stores only such content. With SHA-256 the last piece of a large asset waits until the whole
//!     is verified.
//! I3  Memory is bounded whatever the assets' sizes: a sender prepares [`PIECES_AHEAD`] pieces or
//!     frames of small contents ahead (at most 3 MiB); a receiver holds one frame, one piece being
//!     written and two groups of [`PUT_BYTES_MAX`] and a content (at most 5 MiB).
//! I4  No side is silent for longer than [`KEEP_ALIVE`] while it works, nor waits longer than
//!     [`READ_STALL`] for a silent peer.
//! I5  Dropping a future here ends the stream and keeps what was verified: groups already given to
//!     the store are committed as a whole or not at all, and partial large assets are resumed by
//!     the next transfer from any peer. A stream that breaks costs one chunk group that has to be
//!     sent again.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::core::spans::{SPAN_BYTES_MAX, SPANS_AHEAD};
use crate::net::frame::{Frame, FrameError, FrameReader, FrameWriter};
use crate::state::index::Index;
use crate::state::partials::Partials;
use crate::store::{Store, StoreError};
use crate::wire::WireError;
use crate::wire::batch::Verdict;
use crate::wire::frame::Kind;

mod damaged;
mod gather;
mod intake;
pub mod plain;
mod receive;
mod send;
mod slot;
pub(crate) mod throttle;

use crate::replica::metadata::{Arrivals, Expected};

pub use damaged::Damaged;
pub use gather::Gatherings;
pub use receive::{Receipt, Received, receive_batch};
pub use send::send_batch;

/// How long the first frame of a stream may take: a kilobyte per second at least, because several
/// offers may share a rate limit.
const OFFER_WAIT: Duration = Duration::from_secs(20);

/// A peer that sends nothing for this long, not even a keep-alive, is given up.
const READ_STALL: Duration = Duration::from_secs(30);

/// A peer that accepts nothing for this long is given up. Longer than [`READ_STALL`]: a receiver
/// does not read while its store commits a group, and each call to the store has a deadline of its
/// own.
const WRITE_STALL: Duration = Duration::from_secs(90);

/// A side that works for this long without anything to send sends [`KEEP_ALIVE_KIND`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The keep-alive: an empty extension frame, which every reader skips.
const KEEP_ALIVE_KIND: Kind = Kind::Extension(128);

/// The longest wait for a Want, an Ack or content, even with keep-alives. Before a Want a receiver
/// may have to verify a large partial again; before the next one, wait for what other senders
/// leave; before an Ack, hash and sync a large asset. A sender reads the whole of a large asset
/// before its first or its last piece.
const ANSWER_WAIT: Duration = Duration::from_secs(15 * 60);

/// The least that a sender must send within [`ANSWER_WAIT`]: a kilobyte per second, slower than any
/// usable link.
const PROGRESS_BYTES_MIN: usize = 1024 * 1024;

/// Content bytes in one piece. Measured over a pipe, both ends: half of it costs a third more
/// processor time; twice of it saves a tenth, and doubles memory and what must be sent again after
/// a cut.
const PIECE_BYTES: u64 = 256 * 1024;

/// Content bytes in one frame of small contents, unless a single content is larger.
const CONTENTS_BYTES: u64 = 256 * 1024;

/// How many frames are read, verified and encoded while another one is written. Two keep a local
/// store's disk and a stream busy; the third is for a store that answers over HTTP.
const PIECES_AHEAD: usize = 3;

/// A group of small assets is passed to the store when it has this many bytes ...
const PUT_BYTES_MAX: u64 = 1024 * 1024;

/// ... or this many assets, which make the fixed cost of a commit small.
const PUT_ASSETS_MAX: usize = 512;

/// How many groups the store works on while the next is collected.
const PUTS_IN_FLIGHT: usize = 1;

/// How many bytes of a batch's large assets are read only to be dropped, because something failed
/// after they were wanted: what is requested from one source at a time. Beyond that the stream is
/// given up.
const DISCARD_BYTES_MAX: u64 = SPANS_AHEAD as u64 * SPAN_BYTES_MAX;

/// What a transfer works with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The store that assets are read from and written to.
    pub store: Arc<dyn Store>,
    /// The index of the hashes that the store holds.
    pub index: Index,
    /// The partials in which large assets are collected.
    pub partials: Partials,
    /// The large assets that are being received.
    pub gatherings: Gatherings,
    /// The store's assets that are not read for a while because their content was wrong.
    pub damaged: Damaged,
    /// A private folder for outboards that live as long as one transfer.
    pub scratch_folder: PathBuf,
    /// The group's hash algorithm.
    pub algorithm: HashAlgorithm,
    /// Told about assets before they are stored; `None`: they are stored without metadata.
    pub arrivals: Option<Arrivals>,
    /// The device at the other end; set for each transfer.
    pub source: Option<NodeId>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Context {
    /// The context of transfers with this peer.
    pub(super) fn with_peer(&self, peer: NodeId) -> Self {
        let arrivals = self.arrivals.as_ref().map(|arrivals| arrivals.from(peer));
        Self { arrivals, source: Some(peer), ..self.clone() }
    }

    /// The metadata to store the assets with.
    async fn expect(&self, hashes: Vec<Hash>) -> Expected<'_> {
        match &self.arrivals {
            Some(arrivals) => arrivals.expect(hashes).await,
            None => Expected::bare(hashes.len()),
        }
    }

    /// Whether the index holds each of the hashes, in their order.
    async fn known(&self, hashes: Vec<Hash>) -> Result<Vec<bool>, TransferError> {
        let index = self.index.clone();
        blocking(move || index.known(&hashes)).await?.map_err(index_failed)
    }
}

fn index_failed(error: rusqlite::Error) -> TransferError {
    TransferError::Local(format!("the index failed: {}", with_causes(error)))
}

/// The outcome of an asset of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver's store committed it.
    Stored,
    /// The receiver held it already.
    AlreadyHeld,
    /// The receiver receives it from another device.
    Elsewhere,
    /// The receiver cannot accept it now, for this reason: try again.
    Later(String),
    /// The receiver's store is unreachable, for this reason. A sender sees [`Outcome::Later`].
    StoreDown(String),
    /// The receiver does not accept it, for this reason.
    Refused(String),
    /// The sender's store does not hold it, or its content was wrong before.
    Unavailable,
    /// The stream ended before the asset was complete. Only a receiver sees this.
    Interrupted,
    /// The content in the sender's store does not match the hash. A receiver sees
    /// [`Outcome::Unavailable`].
    Damaged,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Stored => Self::Stored,
            Verdict::AlreadyHeld => Self::AlreadyHeld,
            Verdict::Elsewhere => Self::Elsewhere,
            Verdict::Later(reason) => Self::Later(reason),
            Verdict::Refused(reason) => Self::Refused(reason),
        }
    }
}

/// Why a transfer ended early, or a fault of the peer in it.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The stream broke, stalled or carried something that is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame's content is out of bounds.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A frame is not expected at this point.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer sent content that does not match the hash.
    #[error("the peer sent wrong bytes for {0}")]
    Corrupt(Hash),
    /// Other peers send the rest because this one was late.
    #[error("left behind with {0}: others are faster")]
    LeftBehind(Hash),
    /// The stream ended in order but too early: the other side gave up or stopped.
    #[error("the stream ended before {0}")]
    Ended(&'static str),
    /// The other side was alive but did not finish in time.
    #[error("no {what} within {after:?}")]
    Overdue {
        /// What was waited for.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This device's own disk, index or memory failed.
    #[error("{0}")]
    Local(String),
}

impl TransferError {
    /// Whether the peer broke the protocol, so that the connection is to be closed.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Frame(e) => matches!(e, FrameError::Header(_)),
            Self::Wire(_) | Self::Protocol(_) | Self::Corrupt(_) => true,
            Self::LeftBehind(_)
            | Self::Ended(_)
            | Self::Overdue { .. }
            | Self::Store(_)
            | Self::Local(_) => false,
        }
    }
}

/// Content bytes moved, and still to be moved by transfers under way. All streams of a peer share
/// them.
#[derive(Debug, Default)]
pub struct Counters {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    left_to_send_bytes: AtomicU64,
    left_to_receive_bytes: AtomicU64,
}

impl Counters {
    /// The content bytes written to streams.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The content bytes read from streams.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// The content bytes that transfers under way have yet to write.
    pub fn left_to_send_bytes(&self) -> u64 {
        self.left_to_send_bytes.load(Ordering::Relaxed)
    }

    /// The content bytes that transfers under way have yet to read.
    pub fn left_to_receive_bytes(&self) -> u64 {
        self.left_to_receive_bytes.load(Ordering::Relaxed)
    }

    fn sending(self: &Arc<Self>) -> Meter {
        Meter { counters: self.clone(), direction: Direction::Send, left: 0 }
    }

    fn receiving(self: &Arc<Self>) -> Meter {
        Meter { counters: self.clone(), direction: Direction::Receive, left: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Send,
    Receive,
}

/// One transfer's share of the [`Counters`]; when dropped it subtracts what was left to move.
#[derive(Debug)]
struct Meter {
    counters: Arc<Counters>,
    direction: Direction,
    left: u64,
}

impl Meter {
    fn expect(&mut self, bytes: u64) {
        self.left += bytes;
        self.left_total().fetch_add(bytes, Ordering::Relaxed);
    }

    fn moved(&mut self, bytes: u64) {
        match self.direction {
            Direction::Send => &self.counters.sent_bytes,
            Direction::Receive => &self.counters.received_bytes,
        }
        .fetch_add(bytes, Ordering::Relaxed);
        self.forget(bytes);
    }

    /// Subtracts bytes that were expected but will not move.
    fn forget(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        self.left_total().fetch_sub(bytes, Ordering::Relaxed);
    }

    fn left_total(&self) -> &AtomicU64 {
        match self.direction {
            Direction::Send => &self.counters.left_to_send_bytes,
            Direction::Receive => &self.counters.left_to_receive_bytes,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.forget(self.left);
    }
}

/// Runs `work` on a blocking thread. Dropping the future does not stop the work, which is short.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TransferError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| TransferError::Local(format!("a worker thread failed: {e}")))
}

/// Runs `work` and sends keep-alives to the peer meanwhile.
async fn keeping_alive<W: AsyncWrite + Unpin, T>(
    writer: &mut FrameWriter<W>,
    work: impl Future<Output = T>,
) -> Result<T, TransferError> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(KEEP_ALIVE, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => keep_alive(writer).await?,
        }
    }
}

async fn keep_alive<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
) -> Result<(), TransferError> {
    writer.write(KEEP_ALIVE_KIND, &()).await?;
    Ok(writer.flush().await?)
}

/// Reads the next frame, which must be of `kind` and arrive within `wait`.
async fn expect_frame<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    kind: Kind,
    what: &'static str,
    wait: Duration,
) -> Result<Frame, TransferError> {
    let frame = timeout(wait, reader.read())
        .await
        .map_err(|_| TransferError::Overdue { what, after: wait })??
        .ok_or(TransferError::Ended(what))?;
    if frame.kind != kind {
        return Err(out_of_place(&frame, what));
    }
    Ok(frame)
}

/// Formats an error with its causes on one line.
fn with_causes(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

fn out_of_place(frame: &Frame, expected: &str) -> TransferError {
    TransferError::Protocol(format!("a {:?} frame where {expected} was expected", frame.kind))
}

pub(super) fn is_large(digest: &Digest) -> bool {
    digest.size_bytes > crate::store::SMALL_BYTES_MAX
}

#[cfg(test)]
mod tests;
