//! The content store beside the agent: the one trait of the house, and its contract.
//!
//! [`Store`] has two implementations: [`embedded`] (SQLite + files, in this process) and [`http`]
//! (any service that speaks `proto/store.proto`). One suite, `tests/store_conformance.rs`, holds
//! both to the contract below. `http/` serves it over HTTP, for other programs and for people.
//!
//! I1  An asset that [`Store::put`] or [`Store::adopt`] reports as stored survives a power cut.
//! I2  Bytes are stored only under the hash they have; a mismatch keeps nothing. An asset whose bytes
//!     turn out damaged is not held from then on, until its bytes come anew ([`Store::verify`]).
//! I3  Cursors rise strictly and are never reused; [`Store::changes`] after a cursor misses nothing.
//! I4  Bytes are never deleted by this trait. Trashing is metadata.
//! I5  No call blocks for ever: every one ends, with an error if need be, within its own deadline.
//! I6  Dropping a call's future is safe: the work is then done whole or not at all.

use std::any::Any;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bao_tree::BlockSize;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use thiserror::Error;
use tokio::sync::watch;

use crate::core::ids::{Digest, Hash, HashAlgorithm, StoreId};
pub use crate::core::limits::SMALL_BYTES_MAX;

pub mod embedded;
pub(crate) mod hasher;
pub mod http;
pub mod key;
pub(crate) mod messages;

/// A place in a store's change feed; 0 is before the first change. Meaningful only to the store
/// (and store id) that gave it.
pub type Cursor = u64;

/// The group of chunks an outboard's leaves stand for: 16 KiB.
pub(crate) const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// The longest range one [`Store::read`] returns.
pub const READ_BYTES_MAX: u64 = 1024 * 1024;

/// The most entries one [`Store::changes`] or [`Store::list`] page returns.
pub const PAGE_ENTRIES_MAX: usize = 10_000;

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInfo {
    /// The store's identity; another id at the same address is another store.
    pub store_id: StoreId,
    /// How its assets are named.
    pub hash_algorithm: HashAlgorithm,
    /// The newest cursor given out.
    pub newest_cursor: Cursor,
    /// Assets held, trashed ones included. A core-only store does not tell: 0, and 0 bytes.
    pub asset_count: u64,
    /// Their bytes.
    pub asset_bytes: u64,
    /// The largest asset it takes; `None` = no limit but the disk.
    pub largest_asset_bytes: Option<u64>,
}

/// One line of the change feed: an asset that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which asset.
    pub digest: Digest,
    /// When this store took it in, ms since the Unix epoch. Never compared across devices.
    pub timestamp_ms: i64,
    /// Its place in the feed.
    pub cursor: Cursor,
}

/// A page of the change feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In cursor order. An asset may show more than once over a feed's life.
    pub entries: Vec<Entry>,
    /// Assets that are not held any more: their bytes were found to be damaged.
    pub gone: Vec<Hash>,
    /// Where to ask on from, also when nothing is listed.
    pub next: Cursor,
    /// More is there now.
    pub has_more: bool,
}

/// A hint that [`Store::changes`] has something new. Hints may be merged, repeated or late; the
/// listing is the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedEvent {
    /// Something was added or changed.
    Changed,
    /// The cursor asked for is unknown to the store: list from the start.
    Reset,
}

/// What [`Store::touched`] says: the feed as it is, where [`FeedEvent`] only hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    /// The asset was stored, or its metadata edited.
    Asset {
        /// The asset.
        hash: Hash,
        /// Where in the feed; 0 from a store that gives no cursors.
        cursor: Cursor,
    },
    /// What came before this is not all told: look at every asset.
    Gap,
}

/// What people wrote about an asset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Free text.
    pub description: String,
    /// Sorted, no duplicates.
    pub tags: Vec<String>,
    /// In the trash.
    pub trashed: bool,
    /// Changes with every edit; compared by [`Store::set_metadata`].
    pub version: u64,
    /// The name it was added under; empty when unknown. Set by ingest only.
    pub file_name: String,
    /// The media type given at ingest; empty when unknown. Set by ingest only.
    pub media_type: String,
}

/// An asset with what people wrote about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Its line in the feed.
    pub entry: Entry,
    /// Its metadata.
    pub metadata: Metadata,
    /// Its bytes were found to be damaged: it has a row, and is not held.
    pub is_damaged: bool,
}

/// How an asset stands when its bytes are compared with its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Its bytes are those of its hash.
    Whole,
    /// They are not, or cannot be read.
    Damaged,
    /// The store has no such asset.
    Absent,
}

/// Hashes that [`Damages::recent`] keeps: whoever follows them looks sooner than so many are found.
const RECENT_DAMAGES_MAX: usize = 64;

/// The damage that is known of in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damages {
    /// Assets that are damaged now.
    pub count: u64,
    /// How often damage was found since the store was opened.
    pub found: u64,
    /// The last ones found, the newest last.
    pub recent: Vec<Hash>,
}

impl Damages {
    /// Takes in what was found; true when anything changed.
    pub(crate) fn set(&mut self, count: u64, found: &[Hash]) -> bool {
        let is_news = self.count != count || !found.is_empty();
        self.count = count;
        self.found += found.len() as u64;
        self.recent.extend(found);
        let surplus = self.recent.len().saturating_sub(RECENT_DAMAGES_MAX);
        self.recent.drain(..surplus);
        is_news
    }

    /// Those found after the first `seen`, as far as they are kept.
    pub fn since(&self, seen: u64) -> &[Hash] {
        let news = usize::try_from(self.found.saturating_sub(seen)).unwrap_or(usize::MAX);
        &self.recent[self.recent.len().saturating_sub(news)..]
    }
}

/// Which assets [`Store::list`] returns. All conditions given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Has this tag.
    pub tag: Option<String>,
    /// Media type equals this, or starts with it when it ends in `/`.
    pub media_type: Option<String>,
    /// File name or description contains this, ignoring ASCII case.
    pub query: Option<String>,
    /// `None`: both.
    pub trashed: Option<bool>,
    /// Hash in hex starts with this.
    pub hash_prefix: Option<String>,
}

/// A small content to store, with what is known about it at ingest.
#[derive(Debug, Clone)]
pub struct NewAsset {
    /// The hash and size it must have.
    pub digest: Digest,
    /// At most [`SMALL_BYTES_MAX`].
    pub content: Bytes,
    /// Kept only when the asset is new.
    pub metadata: Metadata,
}

/// A complete file whose content was checked against its digest by the caller in this process,
/// on a path only the caller writes to. [`Store::adopt`] consumes the file: afterwards it is gone
/// from `path`, whatever the outcome was, unless the error [is temporary](StoreError::is_temporary).
/// A file that a full disk did not take is gone then, too: its bytes have to come anew.
#[derive(Debug)]
pub struct VerifiedFile {
    /// The hash and size it has.
    pub digest: Digest,
    /// Where it is.
    pub path: PathBuf,
    /// Its BLAKE3 outboard (bao pre-order, 16 KiB groups) when the caller has it; consumed too.
    pub outboard: Option<PathBuf>,
    /// Kept only when the asset is new.
    pub metadata: Metadata,
    /// What keeps others from the files. The store drops it when it is done with them, which may be
    /// after the call: one that is given up, or late, ends its wait and not its work.
    pub guard: Option<Box<dyn Any + Send + Sync>>,
}

/// A large content and the hash pairs that prove its parts.
#[derive(Debug)]
pub struct BaoFiles {
    /// The content; not verified.
    pub content: File,
    /// Its BLAKE3 outboard: bao pre-order, 16 KiB groups.
    pub outboard: File,
}

/// What became of a content that is now held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is new and durable.
    New,
    /// It was held already.
    Existed,
}

/// Why a store call failed, sorted by what the caller can do.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Down, slow, restarting or busy: try again later.
    #[error("the store did not answer: {0}")]
    Unreachable(String),
    /// No key, one that the store does not take, or nobody to whom it may be sent.
    #[error("{0}")]
    Unauthorized(String),
    /// No space, or below the free-space floor: pause until there is space.
    #[error("the store is full: {0}")]
    Full(String),
    /// The content does not have the hash it was announced under; nothing was kept.
    #[error("content does not match its hash: expected {expected}, got {got}")]
    Mismatch {
        /// The hash announced.
        expected: Hash,
        /// The hash the bytes have.
        got: Hash,
    },
    /// Larger than the store takes.
    #[error("the asset is too large for the store: {0}")]
    TooLarge(String),
    /// No such asset.
    #[error("the store has no asset {0}")]
    NotFound(Hash),
    /// The asset's bytes are gone, cannot be read or are not those of its hash.
    #[error(
        "the bytes of asset {0} are damaged on this device: it comes back from another device that \
         has it, or when the file is added again"
    )]
    Damaged(Hash),
    /// `expected_version` is not current; nothing was written.
    #[error("the metadata was changed meanwhile, its version is now {}", .0.version)]
    Conflict(Box<Metadata>),
    /// The store does not offer what was asked for.
    #[error("the store cannot do this: {0}")]
    Unsupported(String),
    /// The store answered something the contract does not allow.
    #[error("the store broke its contract: {0}")]
    Contract(String),
    /// The disk failed. After a failed fsync nothing is retried: restart and recover.
    #[error("the store's disk failed: {0}")]
    Disk(String),
}

impl StoreError {
    /// True when the same call may succeed later with nothing changed by us.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unauthorized(_) | Self::Full(_))
    }
}

/// A content store. See the module head for the invariants every implementation holds.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What the store is and holds.
    async fn info(&self) -> Result<StoreInfo, StoreError>;

    /// The assets stored after `after`, at most `limit` (and [`PAGE_ENTRIES_MAX`]). Metadata changes
    /// move `next` on and show no entry. A foreign store that lists by time alone gives its answer
    /// whole, whatever the limit, and some entries again.
    async fn changes(&self, after: Cursor, limit: usize) -> Result<Changes, StoreError>;

    /// Hints about changes after `after`, for ever; the stream ends with an error when the store is
    /// lost, and is then to be asked for again.
    fn follow(&self, after: Cursor) -> BoxStream<'static, Result<FeedEvent, StoreError>>;

    /// The assets stored or edited after `after`, for ever; of several changes of one the last alone
    /// may show. Begins with [`Touched::Gap`] when the store cannot go on from `after`. The stream
    /// ends with an error when the store is lost, and is then to be asked for again.
    fn touched(&self, after: Cursor) -> BoxStream<'static, Result<Touched, StoreError>>;

    /// The asset's row, or `None`. A file that is gone or cut short makes it a damaged one.
    async fn lookup(&self, hash: Hash) -> Result<Option<Asset>, StoreError>;

    /// The assets that match, in cursor order, after `after`, at most `limit`.
    async fn list(
        &self,
        filter: &Filter,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<Asset>, StoreError>;

    /// A range of a content: exactly `range` bytes, at most [`READ_BYTES_MAX`] of them. `None`: not
    /// held. The bytes are not verified: who passes them on checks them, and calls
    /// [`Self::verify`] when they are wrong.
    async fn read(&self, hash: Hash, range: Range<u64>) -> Result<Option<Bytes>, StoreError>;

    /// Many small contents whole, in the order asked; `None` for those not held. For assets of at
    /// most [`SMALL_BYTES_MAX`]; not verified either.
    async fn read_small(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// What proves parts of a large asset, open for reading; `None` when the store keeps no outboard
    /// (small assets, SHA-256, foreign stores): the caller computes one and reads the content by
    /// [`Self::read`].
    async fn bao_files(&self, hash: Hash) -> Result<Option<BaoFiles>, StoreError>;

    /// Reads an asset whole and compares it with its hash. One found damaged is marked so, durably
    /// where the store can: it is not held from then on, shows in [`Changes::gone`], and is stored
    /// like a new one by the next put or adopt of its bytes. A rotten outboard is made anew.
    async fn verify(&self, hash: Hash) -> Result<Condition, StoreError>;

    /// The damage known of, as it is found and mended.
    fn damages(&self) -> watch::Receiver<Damages>;

    /// Stores small contents in one durable commit, a result for each, in order. A bad one does not
    /// hold up the others; the outer error means that none was stored.
    async fn put(
        &self,
        assets: Vec<NewAsset>,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError>;

    /// Stores a content of any size from a verified file.
    async fn adopt(&self, file: VerifiedFile) -> Result<Stored, StoreError>;

    /// Replaces description, tags and trashed; the rest of `metadata` is ignored. With
    /// `expected_version` not current: [`StoreError::Conflict`]. Returns the row that stands.
    async fn set_metadata(
        &self,
        hash: Hash,
        metadata: &Metadata,
        expected_version: Option<u64>,
    ) -> Result<Metadata, StoreError>;

    /// Refuses with [`StoreError::Full`] when `size_bytes` more would not fit above the free-space
    /// floor. A foreign store answers when the content comes.
    async fn check_space(&self, size_bytes: u64) -> Result<(), StoreError>;
}
