//! The data plane of a session: how assets cross a stream.
//!
//! ```text
//! send_batch     Offer, small ones inline ->          receive_batch
//!                <- Want ...                          (asks `decide` what is wanted)
//!                Contents, Piece ... , Done ->        checks, stores while the stream goes on
//!                <- Ack                               after the store committed
//! ```
//! A large asset may come on several streams at once, of each a part ([`gather`]).
//! [`plain`] is the same over one stream for both directions, without Offer and Want. Everything
//! works on any byte stream; nothing here decides which assets move, or when.
//!
//! I1  A receiver acknowledges nothing that its store has not committed.
//! I2  A sender passes on no byte it has not checked against the asset's hash, and a receiver
//!     gives its store none. With SHA-256 a large asset's last piece waits until the whole is checked.
//! I3  Memory is bounded whatever the assets' sizes: a sender prepares [`PIECES_AHEAD`] pieces or
//!     frames of small contents ahead (3 MiB at most); a receiver holds one frame, one piece being
//!     written and two groups of [`PUT_BYTES_MAX`] and a content (5 MiB at most).
//! I4  No side is silent for longer than [`KEEP_ALIVE`] while it works, nor waits longer than
//!     [`READ_STALL`] for a silent one.
//! I5  Dropping a future here ends the stream and keeps what was verified: groups already given to
//!     the store are committed whole or not, partial large assets resumed by the next transfer, from
//!     whomever. A stream that breaks costs one chunk group that has to come again.

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

/// The first frame of a stream must be there by then: a kilobyte a second at least, as several
/// offers may share a rate limit.
const OFFER_WAIT: Duration = Duration::from_secs(20);

/// A peer that sends nothing for this long, working or not, is given up.
const READ_STALL: Duration = Duration::from_secs(30);

/// A peer that takes nothing for this long is given up. Longer than [`READ_STALL`]: a receiver does
/// not read while its store takes in a group, and each store call has a deadline of its own.
const WRITE_STALL: Duration = Duration::from_secs(90);

/// Who works this long without having something to say says [`KEEP_ALIVE_KIND`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// "Still working": an extension frame, empty, skipped by every reader.
const KEEP_ALIVE_KIND: Kind = Kind::Extension(128);

/// The longest wait for a Want, an Ack or content, keep-alives or not: a receiver may have to
/// re-verify a large partial asset before its Want, wait for what other senders leave before the
/// next, or hash and sync a large one before its Ack; a sender reads the whole of a large one before its first or its last piece.
const ANSWER_WAIT: Duration = Duration::from_secs(15 * 60);

/// The least a sender moves within [`ANSWER_WAIT`]: a kilobyte a second, slower than any link that
/// is of use.
const PROGRESS_BYTES_MIN: usize = 1024 * 1024;

/// Content bytes in one piece. Measured over a pipe, both ends: half of it costs a third more
/// processor time, twice of it saves a tenth and doubles memory and what a cut repeats.
const PIECE_BYTES: u64 = 256 * 1024;

/// Content bytes in one frame of small contents, unless a single one is larger.
const CONTENTS_BYTES: u64 = 256 * 1024;

/// Frames being read, checked and encoded while another is written. Two keep a local store's disk
/// and a stream busy; the third is for a store that answers over HTTP.
const PIECES_AHEAD: usize = 3;

/// A group of small contents is given to the store when it reaches this size ...
const PUT_BYTES_MAX: u64 = 1024 * 1024;

/// ... or this many, which make a commit's fixed cost small.
const PUT_ASSETS_MAX: usize = 512;

/// Groups the store works on while the next is collected.
const PUTS_IN_FLIGHT: usize = 1;

/// Bytes of a batch's large assets that are read only to be dropped, because something went wrong
/// after they were wanted: what is asked of one source at a time. Beyond that the stream is given up.
const DISCARD_BYTES_MAX: u64 = SPANS_AHEAD as u64 * SPAN_BYTES_MAX;

/// What a transfer works with; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Where assets are read from and stored to.
    pub store: Arc<dyn Store>,
    /// Which hashes the store is known to hold.
    pub index: Index,
    /// Where large assets are collected until they are whole.
    pub partials: Partials,
    /// Those that are being collected.
    pub gatherings: Gatherings,
    /// Which of the store's assets are not read at the moment, because their bytes were wrong.
    pub damaged: Damaged,
    /// A folder of our own for outboards that live as long as one transfer.
    pub scratch_folder: PathBuf,
    /// How the group names its assets.
    pub algorithm: HashAlgorithm,
    /// Told of assets before they are put into the store; `None`: they are put in bare.
    pub arrivals: Option<Arrivals>,
    /// The device at the other end, in the context of one transfer.
    pub source: Option<NodeId>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Context {
    /// For transfers with this device.
    pub(super) fn with_peer(&self, peer: NodeId) -> Self {
        let arrivals = self.arrivals.as_ref().map(|arrivals| arrivals.from(peer));
        Self { arrivals, source: Some(peer), ..self.clone() }
    }

    /// What to put assets into the store with.
    async fn expect(&self, hashes: Vec<Hash>) -> Expected<'_> {
        match &self.arrivals {
            Some(arrivals) => arrivals.expect(hashes).await,
            None => Expected::bare(hashes.len()),
        }
    }

    /// Which of the hashes the index knows, in their order.
    async fn known(&self, hashes: Vec<Hash>) -> Result<Vec<bool>, TransferError> {
        let index = self.index.clone();
        blocking(move || index.known(&hashes)).await?.map_err(index_failed)
    }
}

fn index_failed(error: rusqlite::Error) -> TransferError {
    TransferError::Local(format!("the index failed: {}", with_causes(error)))
}

/// What became of an asset of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver's store committed it.
    Stored,
    /// The receiver held it already.
    AlreadyHeld,
    /// The receiver gets it from another device.
    Elsewhere,
    /// Not now, and why: try again.
    Later(String),
    /// The receiver's store does not answer, and how. A sender sees [`Outcome::Later`].
    StoreDown(String),
    /// The receiver will not take it, and why.
    Refused(String),
    /// The sender's store does not hold it, or only bytes that were wrong before.
    Unavailable,
    /// The stream ended before it was through. Only a receiver sees this.
    Interrupted,
    /// The bytes in the sender's store are not those of the hash. A receiver sees
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

/// Why a transfer ended early, or what the peer did wrong in it.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The stream broke, stalled or carried something that is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame's content is out of bounds.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A frame that has no place here.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer sent bytes that are not those of the hash.
    #[error("the peer sent wrong bytes for {0}")]
    Corrupt(Hash),
    /// Other peers send the rest: this one was late.
    #[error("left behind with {0}: others are faster")]
    LeftBehind(Hash),
    /// The stream ended in good order before the transfer did: the other side gave up or stopped.
    #[error("the stream ended before {0}")]
    Ended(&'static str),
    /// The other side was alive and did not come to an end.
    #[error("no {what} within {after:?}")]
    Overdue {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The store beside this agent failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This device's own disk, index or memory failed.
    #[error("{0}")]
    Local(String),
}

impl TransferError {
    /// True when the peer did what the protocol does not allow: the connection is to be closed.
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

/// Content bytes moved, and still to move in transfers under way. Shared by all streams of a peer.
#[derive(Debug, Default)]
pub struct Counters {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    left_to_send_bytes: AtomicU64,
    left_to_receive_bytes: AtomicU64,
}

impl Counters {
    /// Content bytes written to streams.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Content bytes read from streams.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Content bytes that running transfers have yet to write.
    pub fn left_to_send_bytes(&self) -> u64 {
        self.left_to_send_bytes.load(Ordering::Relaxed)
    }

    /// Content bytes that running transfers have yet to read.
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

/// One transfer's share of the [`Counters`]; takes what it left undone back when dropped.
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

    /// Takes back an expectation: what stays away, or was not expected.
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

/// Runs `work` on a blocking thread. Dropping the future lets the work run out; it is short.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TransferError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| TransferError::Local(format!("a worker thread failed: {e}")))
}

/// Runs `work` while telling the peer now and then that it goes on.
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

/// Reads the frame that must come now and be of `kind`, within `wait` all in all.
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

/// An error and what caused it, on one line.
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
