//! The content store that the agent syncs: the only trait here with several implementations, and
//! its contract.
//!
//! [`Store`] has two implementations: [`embedded`] (SQLite + files, in this process) and [`http`]
//! (any service that speaks `proto/store.proto`). One suite, `tests/store_conformance.rs`, holds
//! both to the contract below. `http/` serves it over HTTP, for other programs and for people.
//!
//! I1  An asset that [`Store::put`] or [`Store::adopt`] reports as stored survives a power cut.
//! I2  Content is stored only under its hash; content that does not match is not kept. An asset
//!     whose content turns out damaged is not held until the content is stored again or is found
//!     whole after all ([`Store::verify`]).
//! I3  Cursors rise strictly and are never reused; [`Store::changes`] after a cursor misses
//!     nothing.
//! I4  Only [`Store::evict`] deletes bytes, when its caller still permits it at that moment. Trashing
//!     is metadata.
//! I5  No call blocks for ever: each ends within its own deadline, if need be with an error.
//! I6  Dropping a call's future is safe: the work is then done as a whole or not at all.

use std::any::Any;
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bao_tree::BlockSize;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use thiserror::Error;
use tokio::sync::watch;

use crate::core::attributes::Attributes;
use crate::core::ids::{Digest, Hash, HashAlgorithm, StoreId};
pub use crate::core::limits::SMALL_BYTES_MAX;
use crate::core::names::NamePattern;
use crate::core::ranges::Ranges;

pub mod choice;
pub mod contract;
pub mod embedded;
pub(crate) mod hasher;
pub mod http;
pub mod key;
pub(crate) mod messages;
pub mod reading;
pub mod sniff;

/// A position in a store's change feed; 0 is before the first change. It is valid only for the
/// store (and store id) that returned it.
pub type Cursor = u64;

/// The number of chunks that a leaf of an outboard covers: 16 KiB.
pub(crate) const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// The longest range one [`Store::read`] returns.
pub const READ_BYTES_MAX: u64 = 1024 * 1024;

/// The most entries one [`Store::changes`] or [`Store::list`] page returns.
pub const PAGE_ENTRIES_MAX: usize = 10_000;

/// What a store reports about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInfo {
    /// The identity of the store; a different id at the same address means a different store.
    pub store_id: StoreId,
    /// The algorithm of its assets' hashes.
    pub hash_algorithm: HashAlgorithm,
    /// The newest cursor.
    pub newest_cursor: Cursor,
    /// The number of held assets, trashed ones included. A core-only store reports neither this nor
    /// the bytes: both are 0.
    pub asset_count: u64,
    /// The total size of the held assets.
    pub asset_bytes: u64,
    /// The largest asset that it accepts; `None`: only the disk limits it.
    pub largest_asset_bytes: Option<u64>,
}

/// One line of the change feed: an asset that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The asset.
    pub digest: Digest,
    /// When this store stored it, ms since the Unix epoch. Never compared across devices.
    pub timestamp_ms: i64,
    /// The asset's position in the feed.
    pub cursor: Cursor,
}

/// A page of the change feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In cursor order. An asset may show more than once over a feed's life.
    pub entries: Vec<Entry>,
    /// Assets that are not held any more: their bytes were found to be damaged.
    pub gone: Vec<Hash>,
    /// The cursor for the next call, also when nothing is listed.
    pub next: Cursor,
    /// Whether more can be listed now.
    pub has_more: bool,
}

/// A line of the change feed. Lines may be repeated or late; only [`Store::changes`] says which
/// assets are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    /// An asset was stored.
    Stored {
        /// The asset.
        hash: Hash,
        /// The asset's position in the feed; 0 if the store gives no cursors.
        cursor: Cursor,
    },
    /// An asset's metadata was edited.
    Edited {
        /// The asset.
        hash: Hash,
        /// The position of the edit in the feed; 0 if the store gives no cursors.
        cursor: Cursor,
    },
    /// [`Store::changes`] may have something new. A store may report this before the line itself.
    Changed,
    /// Lines before this one are missing: list from the start, and look at every asset.
    Gap,
}

/// What is known about an asset.
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
    /// The attributes of the file that the asset was added from: name, path, type, times.
    pub attributes: Attributes,
}

/// An asset with its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// The asset's line in the feed.
    pub entry: Entry,
    /// The asset's metadata.
    pub metadata: Metadata,
    /// The asset's content is known to be damaged: it has a row but is not held.
    pub is_damaged: bool,
    /// The asset's content was evicted: it has a row but is not held.
    pub is_evicted: bool,
}

impl Asset {
    /// Whether the content is there as far as is known.
    pub fn is_held(&self) -> bool {
        !self.is_damaged && !self.is_evicted
    }
}

/// The result of comparing an asset's content with its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The content matches the hash.
    Whole,
    /// The content does not match or cannot be read. The ranges that are wrong, in whole groups of
    /// 16 KiB where an outboard shows them, else the whole content. None if only the length is
    /// wrong.
    Damaged(Ranges),
    /// The store has no such asset.
    Absent,
}

/// The most hashes that [`Damages::recent`] keeps. A follower looks before so many are found.
const RECENT_DAMAGES_MAX: usize = 64;

/// The known damage of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damages {
    /// Assets that are damaged now.
    pub count: u64,
    /// How often damage was found since the store was opened.
    pub found: u64,
    /// The most recently found ones, the newest last.
    pub recent: Vec<Hash>,
}

impl Damages {
    /// Records what was found. Returns whether anything changed.
    pub(crate) fn set(&mut self, count: u64, found: &[Hash]) -> bool {
        let is_news = self.count != count || !found.is_empty();
        self.count = count;
        self.found += found.len() as u64;
        self.recent.extend(found);
        let surplus = self.recent.len().saturating_sub(RECENT_DAMAGES_MAX);
        self.recent.drain(..surplus);
        is_news
    }

    /// The damaged assets found after the first `seen`, as far as they are kept.
    pub fn since(&self, seen: u64) -> &[Hash] {
        let news = usize::try_from(self.found.saturating_sub(seen)).unwrap_or(usize::MAX);
        &self.recent[self.recent.len().saturating_sub(news)..]
    }
}

/// Which assets [`Store::list`] returns: those that satisfy every condition given.
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
    /// The name is of these.
    pub name: Option<NamePattern>,
    /// Stored here at this time or later, ms since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Stored here before this time, ms since the Unix epoch.
    pub until_ms: Option<i64>,
    /// In descending cursor order, so that a page ends before `after`, and 0 is beyond the newest. A
    /// foreign store cannot do this.
    pub newest_first: bool,
}

/// A small content to store, with the metadata known at ingest.
#[derive(Debug, Clone)]
pub struct NewAsset {
    /// The hash and size it must have.
    pub digest: Digest,
    /// At most [`SMALL_BYTES_MAX`].
    pub content: Bytes,
    /// The asset's metadata. The store ignores it if it already holds the asset.
    pub metadata: Metadata,
}

/// A complete file whose content the caller has verified in this process against its digest, on a
/// path that only the caller writes to. [`Store::adopt`] consumes the file: whatever the outcome,
/// it is gone from `path` afterwards, unless the error [is temporary](StoreError::is_temporary). A
/// file that failed for lack of space is gone too: its content has to be transferred again.
#[derive(Debug)]
pub struct VerifiedFile {
    /// The hash and size it has.
    pub digest: Digest,
    /// Where it is.
    pub path: PathBuf,
    /// The file's BLAKE3 outboard (bao pre-order, 16 KiB groups) if the caller has one; consumed too.
    pub outboard: Option<PathBuf>,
    /// The asset's metadata. The store ignores it if it already holds the asset.
    pub metadata: Metadata,
    /// Keeps others from the files. The store drops it when it no longer uses them, which may be
    /// after the call: a call that was dropped or timed out ends its wait, not its work.
    pub guard: Option<Box<dyn Any + Send + Sync>>,
}

/// A large content and the hash pairs that prove its parts.
#[derive(Debug)]
pub struct BaoFiles {
    /// The content; not verified.
    pub content: File,
    /// The content's BLAKE3 outboard: bao pre-order, 16 KiB groups.
    pub outboard: File,
}

/// Whether contents may still be deleted. Called once, on a blocking thread.
pub type Permit = Box<dyn FnOnce() -> bool + Send>;

/// The outcome for a content that is now held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The asset is new and durable.
    New,
    /// The asset was held already.
    Existed,
}

/// Why a store call failed, sorted by what the caller can do.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// The store is down, slow, restarting or busy: try again later.
    #[error("the store did not answer: {0}")]
    Unreachable(String),
    /// There is no key, the store does not accept it, or it must not be sent to that address.
    #[error("{0}")]
    Unauthorized(String),
    /// No space, or below the free-space floor: pause until there is space.
    #[error("the store is full: {0}")]
    Full(String),
    /// The content does not match the announced hash; nothing was kept.
    #[error("content does not match its hash: expected {expected}, got {got}")]
    Mismatch {
        /// The announced hash.
        expected: Hash,
        /// The hash of the content.
        got: Hash,
    },
    /// The asset is larger than the store accepts.
    #[error("the asset is too large for the store: {0}")]
    TooLarge(String),
    /// No such asset.
    #[error("the store has no asset {0}")]
    NotFound(Hash),
    /// The asset's content is gone, unreadable or does not match its hash.
    #[error(
        "the bytes of asset {0} are damaged on this device: it comes back from another device that \
         has it, or when the file is added again"
    )]
    Damaged(Hash),
    /// `expected_version` is not current; nothing was written.
    #[error("the metadata was changed meanwhile, its version is now {}", .0.version)]
    Conflict(Box<Metadata>),
    /// The store does not support the call.
    #[error("the store cannot do this: {0}")]
    Unsupported(String),
    /// The store's answer violates the contract.
    #[error("the store broke its contract: {0}")]
    Contract(String),
    /// The disk failed. After a failed fsync nothing is retried: restart and recover.
    #[error("the store's disk failed: {0}")]
    Disk(String),
}

impl StoreError {
    /// Whether the same call may succeed later without any change here.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unauthorized(_) | Self::Full(_))
    }
}

/// A content store. See the module head for the invariants every implementation holds.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reports the store's identity and contents.
    async fn info(&self) -> Result<StoreInfo, StoreError>;

    /// Lists the assets stored after `after`, at most `limit` (and [`PAGE_ENTRIES_MAX`]). Changes
    /// of metadata move `next` on without an entry. A foreign store that lists by time alone
    /// returns its whole answer, whatever the limit, and repeats some entries.
    async fn changes(&self, after: Cursor, limit: usize) -> Result<Changes, StoreError>;

    /// The change feed after `after`, without end; several edits of one asset may be merged into
    /// the last. Begins with [`Touched::Gap`] when the store does not know the cursor `after`. A
    /// foreign store that cannot resume its feed at all does not report what it holds either, see
    /// [`StoreInfo::asset_count`]. When the store is lost, the stream ends with an error; call
    /// again.
    fn touched(&self, after: Cursor) -> BoxStream<'static, Result<Touched, StoreError>>;

    /// The asset's row, or `None`. An asset whose file is missing or truncated is damaged.
    async fn lookup(&self, hash: Hash) -> Result<Option<Asset>, StoreError>;

    /// The assets that match, in cursor order, after `after`, at most `limit`.
    async fn list(
        &self,
        filter: &Filter,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<Asset>, StoreError>;

    /// Reads a range of a content: exactly `range` bytes, at most [`READ_BYTES_MAX`] of them.
    /// `None`: not held. The bytes are not verified: a caller that passes them on checks them, and
    /// calls [`Self::verify`] when they are wrong.
    async fn read(&self, hash: Hash, range: Range<u64>) -> Result<Option<Bytes>, StoreError>;

    /// Reads many small contents whole, in the order of `digests`; `None` for those not held. For
    /// assets of at most [`SMALL_BYTES_MAX`]; not verified either.
    async fn read_small(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// Opens a large asset's content and the outboard that proves its parts; `None` when the store
    /// keeps no outboard (small assets, SHA-256, foreign stores): then the caller computes one and
    /// reads the content by [`Self::read`].
    async fn bao_files(&self, hash: Hash) -> Result<Option<BaoFiles>, StoreError>;

    /// Reads a whole asset and compares it with its hash, twice if it is found wrong. A damaged
    /// asset is marked, durably where the store can: from then on it is not held, appears in
    /// [`Changes::gone`], and the next put or adopt of its content exchanges it in one step and
    /// stores it like a new one. What is left of it is kept until then. A marked asset that is
    /// whole after all is held again, like a new one. A damaged outboard is rebuilt.
    async fn verify(&self, hash: Hash) -> Result<Condition, StoreError>;

    /// Opens what is left of a large asset that is marked as damaged, with the outboard that shows
    /// which groups of it are right; `None` when there is nothing that could be used.
    async fn remains(&self, hash: Hash) -> Result<Option<BaoFiles>, StoreError> {
        let _ = hash;
        Ok(None)
    }

    /// The known damage, updated as damage is found and repaired.
    fn damages(&self) -> watch::Receiver<Damages>;

    /// Stores small contents in one durable commit, and returns a result for each, in order. A bad
    /// content does not hold up the others; the outer error means that none was stored.
    async fn put(
        &self,
        assets: Vec<NewAsset>,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError>;

    /// Stores a content of any size from a verified file.
    async fn adopt(&self, file: VerifiedFile) -> Result<Stored, StoreError>;

    /// Deletes the contents of assets and keeps their rows, which are then not held
    /// ([`Asset::is_evicted`]) until the contents are stored again. Returns those that were held;
    /// of damaged ones everything stays. `permit` is called right before: if it returns false
    /// nothing is deleted. A crash before the call returns leaves each asset whole or evicted.
    async fn evict(&self, hashes: BTreeSet<Hash>, permit: Permit) -> Result<Vec<Hash>, StoreError> {
        let _ = (hashes, permit);
        Err(StoreError::Unsupported("deleting contents".into()))
    }

    /// Keeps a content, if it is held, from being deleted as one that nothing refers to: the caller is about
    /// to tell of its use. Lasts some minutes. Putting a content that is held does the same.
    async fn hold(&self, hash: Hash) -> Result<(), StoreError> {
        let _ = hash;
        Ok(())
    }

    /// Whether a content must not be deleted now because of [`Self::hold`].
    fn is_on_hold(&self, hash: &Hash) -> bool {
        let _ = hash;
        false
    }

    /// Replaces description, tags, trashed and attributes. If `expected_version` is not current:
    /// [`StoreError::Conflict`]. Returns the current row: a foreign store may keep no attributes.
    async fn set_metadata(
        &self,
        hash: Hash,
        metadata: &Metadata,
        expected_version: Option<u64>,
    ) -> Result<Metadata, StoreError>;

    /// Fails with [`StoreError::Full`] when `size_bytes` more would not fit above the free-space
    /// floor. A foreign store reports it only when the content arrives.
    async fn check_space(&self, size_bytes: u64) -> Result<(), StoreError>;
}
