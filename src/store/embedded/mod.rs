//! The embedded store: a content store inside this process, SQLite and files in one folder.
//!
//! Contents up to [`SMALL_BYTES_MAX`] are in the database (there a whole batch costs one sync,
//! where files cost several each), larger ones in files beside it. [`ingest`] has the order in
//! which a content reaches the disk, [`db`] the writer of the database, [`files`] the layout of the
//! folder, [`rows`] the statements, [`schema`] the tables, and [`feed`] the followers of their
//! changes.
//!
//! A row alone does not make an asset held. Its content file is checked when the asset is looked
//! up, and by every put and adopt (not by listings, which would touch a million files); content
//! that is read and found wrong is hashed once more as a whole and then marked ([`Store::verify`],
//! [`mod@verify`]).
//!
//! All work that touches the disk runs on blocking threads, and the gates below limit how many. A
//! call that has started there is completed even if its future is dropped.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use rusqlite::{Connection, InterruptHandle};
use tokio::sync::{Semaphore, watch};

use self::again::Again;
use self::db::{Database, READERS, closed};
use self::feed::Touching;
use self::files::Files;
use self::health::Health;
use self::ingest::{Claims, Ingest};
pub use self::listing::{FeedKind, FeedLine};
use self::rows::{Content, Recorded};
use super::{
    Asset, BaoFiles, Changes, Condition, Cursor, Damages, Filter, Metadata, NewAsset,
    PAGE_ENTRIES_MAX, Permit, READ_BYTES_MAX, SMALL_BYTES_MAX, Store, StoreError, StoreInfo,
    Stored, Touched, VerifiedFile,
};
use crate::core::ids::{Digest, Hash, HashAlgorithm};

mod again;
mod db;
mod feed;
mod files;
mod health;
mod ingest;
mod listing;
mod rows;
mod schema;
mod verify;

/// The most writes at once. They wait for one disk; up to a point, more of them make a commit
/// larger.
const WRITES: usize = 8;

/// Large files hashed at once: some can hash while others wait for the disk.
const HASHINGS: usize = 4;

/// The most large files with outboards stored at once. Apart from the hashings, which take minutes
/// where these take milliseconds.
const ADOPTIONS: usize = 4;

/// The longest a call takes, and the slowest disk that a large file may come from.
const DEADLINE: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_S: u64 = 4 << 20;

/// How a store is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The algorithm of the hashes. Fixed when the store is made; opening it with another one
    /// fails.
    pub hash_algorithm: HashAlgorithm,
    /// The bytes to leave free on the disk; new assets are refused below that. By default 1 GiB, or
    /// 1 % of a disk smaller than 100 GiB.
    pub free_floor_bytes: Option<u64>,
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct EmbeddedStore(Arc<Shared>);

struct Shared {
    options: Options,
    staging: PathBuf,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    hashings: Arc<Semaphore>,
    adoptions: Arc<Semaphore>,
    claims: Claims,
    again: Arc<Again>,
    health: Arc<Health>,
    // Dropped in this order: the lock goes last.
    database: Database,
    files: Files,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, or makes one there, and removes what a crash left unfinished.
    /// Fails with a text that names the remedy: when another process has the store open, when it
    /// was made for another algorithm or by a newer program, or when the folder cannot be used.
    /// Blocks.
    pub fn open(dir: &Path, options: Options) -> anyhow::Result<Self> {
        let health = Arc::new(Health::default());
        let files = Files::open(dir, options.free_floor_bytes, health.clone())?;
        let database = Database::open(&files.database(), options.hash_algorithm, health.clone())?;
        sweep(&database, &files)
            .with_context(|| format!("cannot clean up the store {}", dir.display()))?;
        Ok(Self(Arc::new(Shared {
            options,
            staging: files.staging(),
            reads: Arc::new(Semaphore::new(READERS)),
            writes: Arc::new(Semaphore::new(WRITES)),
            hashings: Arc::new(Semaphore::new(HASHINGS)),
            adoptions: Arc::new(Semaphore::new(ADOPTIONS)),
            claims: Claims::default(),
            again: Arc::default(),
            health,
            database,
            files,
        })))
    }

    /// Waits for the calls under way, then closes the store and releases its lock. Refuses later
    /// calls. Dropping the last handle has the same effect.
    pub async fn close(&self) {
        let shared = &self.0;
        for (gate, size) in [
            (&shared.hashings, HASHINGS),
            (&shared.adoptions, ADOPTIONS),
            (&shared.writes, WRITES),
            (&shared.reads, READERS),
        ] {
            // An error means that it was already closed.
            let _all = gate.acquire_many(size as u32).await;
            gate.close();
        }
        let handle = self.clone();
        let closing = tokio::task::spawn_blocking(move || {
            handle.0.database.close();
            handle.0.files.unlock();
        });
        if let Err(error) = closing.await {
            tracing::error!(%error, "closing the store failed");
        }
    }

    /// Returns once the disk has failed: then nothing more is written, and only a restart shows
    /// what was kept.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn failed(&self) -> StoreError {
        self.0.health.failed().await
    }

    /// A folder on the store's volume for files on their way to [`Store::adopt`]. Emptied when the
    /// store is opened.
    pub fn staging_dir(&self) -> &Path {
        &self.0.staging
    }

    /// Where the content of a large asset is, if it is held.
    pub fn content_path(&self, hash: Hash) -> PathBuf {
        self.0.files.content(hash)
    }

    /// The newest cursor, as it changes. Its sender is dropped when the store is closed or fails.
    pub fn subscribe(&self) -> watch::Receiver<Cursor> {
        self.0.database.newest()
    }

    /// The feed after `after` in cursor order, at most `limit` lines (and [`PAGE_ENTRIES_MAX`]).
    pub async fn feed(&self, after: Cursor, limit: usize) -> Result<Vec<FeedLine>, StoreError> {
        let limit = limit.min(PAGE_ENTRIES_MAX);
        self.query(move |conn| listing::feed(conn, after, limit)).await
    }

    /// The files in one of the 256 folders of contents that belong to no asset. Nothing uses them,
    /// and nothing deletes them.
    pub async fn strays(&self, fan: u8) -> Result<Vec<PathBuf>, StoreError> {
        self.read_with(move |files, conn| {
            let mut strays = Vec::new();
            // Listed before the rows are read: what is stored in between has its row by then.
            for (path, hash) in files.names(fan)? {
                let has_asset = hash.map(|hash| rows::has_files(conn, hash)).transpose();
                if !has_asset.map_err(db::sql_error)?.unwrap_or(false) {
                    strays.push(path);
                }
            }
            Ok(strays)
        })
        .await
    }

    /// The assets that were marked as damaged after the cursor `after`, at most `limit`, each with
    /// the cursor of its mark.
    pub async fn marked(
        &self,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<(Cursor, Digest)>, StoreError> {
        let limit = limit.min(PAGE_ENTRIES_MAX);
        self.query(move |conn| rows::marked(conn, after, limit).map_err(db::sql_error)).await
    }

    /// Runs `work` on a blocking thread once the gate has a permit.
    async fn run<T: Send + 'static>(
        &self,
        gate: &Arc<Semaphore>,
        bytes: u64,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let deadline = DEADLINE + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S);
        let done = async {
            let permit = gate.clone().acquire_owned().await.map_err(|_| closed())?;
            let shared = self.0.clone();
            let work = tokio::task::spawn_blocking(move || {
                let result = work(&shared);
                // Dropped in this order: `close` waits for the permits and then takes the store
                // apart.
                drop(permit);
                result
            });
            let ended = |error| StoreError::Disk(format!("a task of the store ended: {error}"));
            work.await.map_err(ended)?
        };
        let late = |_| {
            let seconds = deadline.as_secs();
            StoreError::Unreachable(format!("its disk did not answer within {seconds} s"))
        };
        tokio::time::timeout(deadline, done).await.map_err(late)?
    }

    /// Verifies an asset that a read found damaged, and marks it.
    async fn sure<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        let hash = match read {
            Err(StoreError::Damaged(hash)) => hash,
            other => return other,
        };
        let confirmed = self.run(&self.0.hashings, 0, move |shared| shared.ingest().confirm(hash));
        match confirmed.await {
            Ok(Condition::Damaged(_)) => Err(StoreError::Damaged(hash)),
            Ok(Condition::Absent) => Err(StoreError::NotFound(hash)),
            Ok(Condition::Whole) => Err(StoreError::Unreachable(format!(
                "asset {hash} was read wrong once and right the next time: try again"
            ))),
            Err(error @ StoreError::Unreachable(_)) => Err(error),
            Err(error) => {
                tracing::warn!(%hash, %error, "cannot mark an asset as damaged");
                Err(StoreError::Damaged(hash))
            }
        }
    }

    /// Runs a query, and interrupts it when it takes too long.
    async fn query<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read_with(move |_, conn| work(conn)).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files, &Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let running = Arc::new(OnceLock::<InterruptHandle>::new());
        let stop = running.clone();
        let result = self
            .run(&self.0.reads, 0, move |shared| {
                let reader = shared.database.reader()?;
                let _ = running.set(reader.get_interrupt_handle());
                work(&shared.files, &reader)
            })
            .await;
        if let (Err(StoreError::Unreachable(_)), Some(query)) = (&result, stop.get()) {
            query.interrupt();
        }
        result
    }
}

impl Shared {
    fn ingest(&self) -> Ingest<'_> {
        Ingest {
            database: &self.database,
            files: &self.files,
            health: &self.health,
            algorithm: self.options.hash_algorithm,
            claims: &self.claims,
            again: &self.again,
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        let store_id = self.0.database.store_id;
        let hash_algorithm = self.0.options.hash_algorithm;
        self.query(move |conn| {
            let totals = rows::totals(conn).map_err(db::sql_error)?;
            Ok(StoreInfo {
                store_id,
                hash_algorithm,
                newest_cursor: totals.newest_cursor,
                asset_count: totals.asset_count,
                asset_bytes: totals.asset_bytes,
                largest_asset_bytes: None,
            })
        })
        .await
    }

    async fn changes(&self, after: Cursor, limit: usize) -> Result<Changes, StoreError> {
        let limit = limit.min(PAGE_ENTRIES_MAX);
        self.query(move |conn| listing::changes(conn, after, limit)).await
    }

    fn touched(&self, after: Cursor) -> BoxStream<'static, Result<Touched, StoreError>> {
        // Holds no handle of the store: a reader of the feed does not keep it open.
        let touching = Touching {
            shared: Arc::downgrade(&self.0),
            newest: self.subscribe(),
            health: self.0.health.clone(),
            after,
            announced: 0,
        };
        stream::try_unfold(touching, Touching::next)
            .flat_map(|page| match page {
                Ok(page) => stream::iter(page.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .boxed()
    }

    async fn lookup(&self, hash: Hash) -> Result<Option<Asset>, StoreError> {
        let looked = self
            .read_with(move |files, conn| {
                let Some(asset) = rows::lookup(conn, hash)? else { return Ok(None) };
                let digest = asset.entry.digest;
                let is_lost = !asset.is_damaged
                    && !asset.is_evicted
                    && digest.size_bytes > SMALL_BYTES_MAX
                    && !files.has_content(digest)?;
                Ok(Some((asset, is_lost)))
            })
            .await?;
        let Some((mut asset, is_lost)) = looked else { return Ok(None) };
        if is_lost {
            asset.is_damaged = self.verify(hash).await? != Condition::Whole;
        }
        Ok(Some(asset))
    }

    async fn list(
        &self,
        filter: &Filter,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<Asset>, StoreError> {
        let filter = filter.clone();
        let limit = limit.min(PAGE_ENTRIES_MAX);
        self.query(move |conn| listing::list(conn, &filter, after, limit)).await
    }

    async fn read(&self, hash: Hash, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        if range.end.saturating_sub(range.start) > READ_BYTES_MAX {
            return Err(StoreError::Unsupported(format!(
                "a read of {range:?}: at most {READ_BYTES_MAX} bytes at once"
            )));
        }
        let read = self.read_with(move |files, conn| {
            let Some(recorded) = held(conn, hash)? else {
                return Ok(None);
            };
            let size = recorded.size_bytes;
            if range.start > range.end || range.end > size {
                return Err(StoreError::Unsupported(format!(
                    "a read of {range:?} from {hash}, which has {size} bytes"
                )));
            }
            read_content(files, hash, recorded.content, range).map(Some)
        });
        self.sure(read.await).await
    }

    async fn read_small(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let hashes: Vec<Hash> = digests.iter().map(|digest| digest.hash).collect();
        let read = self.read_with(move |files, conn| {
            let read_one = |hash| {
                let Some(recorded) = held(conn, hash)? else {
                    return Ok(None);
                };
                let size = recorded.size_bytes;
                if size > SMALL_BYTES_MAX {
                    return Err(StoreError::TooLarge(format!(
                        "{hash} has {size} bytes and is read in ranges"
                    )));
                }
                read_content(files, hash, recorded.content, 0..size).map(Some)
            };
            hashes.into_iter().map(read_one).collect()
        });
        self.sure(read.await).await
    }

    async fn bao_files(&self, hash: Hash) -> Result<Option<BaoFiles>, StoreError> {
        if self.0.options.hash_algorithm != HashAlgorithm::Blake3 {
            return Ok(None);
        }
        let opened = self.read_with(move |files, conn| {
            let Some(recorded) = held(conn, hash)? else { return Ok(None) };
            let digest = Digest { hash, size_bytes: recorded.size_bytes };
            if digest.size_bytes <= SMALL_BYTES_MAX {
                return Ok(None);
            }
            let content = files.open_content(digest)?;
            let path = files.outboard(hash);
            let is_kept = ingest::fits(digest, &path);
            let outboard = is_kept.then(|| files::open(&path)).transpose()?;
            Ok(Some((digest, content, outboard)))
        });
        let Some((digest, content, outboard)) = self.sure(opened.await).await? else {
            return Ok(None);
        };
        let outboard = match outboard {
            Some(outboard) => outboard,
            None => {
                tracing::info!(hash = %hash.short(), "computing a lost outboard again");
                let rebuild = move |shared: &Shared| shared.ingest().rebuild_outboard(digest);
                let rebuilt = self.run(&self.0.hashings, digest.size_bytes, rebuild).await;
                let rebuilt = rebuilt.map_err(|error| match error {
                    StoreError::Mismatch { .. } => StoreError::Damaged(hash),
                    other => other,
                });
                self.sure(rebuilt).await?
            }
        };
        Ok(Some(BaoFiles { content, outboard }))
    }

    async fn verify(&self, hash: Hash) -> Result<Condition, StoreError> {
        let recorded = self.query(move |conn| rows::recorded(conn, hash).map_err(db::sql_error));
        let size_bytes = recorded.await?.map_or(0, |recorded| recorded.size_bytes);
        self.run(&self.0.hashings, size_bytes, move |shared| shared.ingest().verify(hash)).await
    }

    async fn remains(&self, hash: Hash) -> Result<Option<BaoFiles>, StoreError> {
        if self.0.options.hash_algorithm != HashAlgorithm::Blake3 {
            return Ok(None);
        }
        self.read_with(move |files, conn| {
            let recorded = rows::recorded(conn, hash).map_err(db::sql_error)?;
            let is_left = recorded.is_some_and(|recorded| {
                recorded.is_damaged && recorded.size_bytes > SMALL_BYTES_MAX
            });
            if !is_left {
                return Ok(None);
            }
            let opened = files::open(&files.content(hash))
                .and_then(|content| Ok((content, files::open(&files.outboard(hash))?)));
            match opened {
                Ok((content, outboard)) => Ok(Some(BaoFiles { content, outboard })),
                Err(error) => {
                    tracing::debug!(%error, "nothing is left of a damaged asset");
                    Ok(None)
                }
            }
        })
        .await
    }

    fn damages(&self) -> watch::Receiver<Damages> {
        self.0.database.damages()
    }

    async fn put(
        &self,
        assets: Vec<NewAsset>,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        self.run(&self.0.writes, 0, move |shared| shared.ingest().put(assets)).await
    }

    async fn adopt(&self, file: VerifiedFile) -> Result<Stored, StoreError> {
        let bytes = file.digest.size_bytes;
        let gate = match file.outboard {
            Some(_) => &self.0.adoptions,
            None => &self.0.hashings,
        };
        self.run(gate, bytes, move |shared| shared.ingest().adopt(file)).await
    }

    async fn evict(&self, hashes: BTreeSet<Hash>, permit: Permit) -> Result<Vec<Hash>, StoreError> {
        self.run(&self.0.adoptions, 0, move |shared| shared.ingest().evict(&hashes, permit)).await
    }

    async fn hold(&self, hash: Hash) -> Result<(), StoreError> {
        self.run(&self.0.adoptions, 0, move |shared| shared.ingest().hold(hash)).await
    }

    fn is_on_hold(&self, hash: &Hash) -> bool {
        self.0.again.was(hash)
    }

    async fn set_metadata(
        &self,
        hash: Hash,
        metadata: &Metadata,
        expected_version: Option<u64>,
    ) -> Result<Metadata, StoreError> {
        ingest::check_metadata(metadata)?;
        let metadata = metadata.clone();
        self.run(&self.0.writes, 0, move |shared| {
            shared.database.write(move |txn| rows::edit(txn, hash, &metadata, expected_version))
        })
        .await
    }

    async fn check_space(&self, size_bytes: u64) -> Result<(), StoreError> {
        self.run(&self.0.reads, 0, move |shared| shared.files.check_space(size_bytes)).await
    }
}

/// The record of an asset's content, if it is recorded; an error if it is damaged.
fn held(conn: &Connection, hash: Hash) -> Result<Option<Recorded>, StoreError> {
    match rows::recorded(conn, hash).map_err(db::sql_error)? {
        Some(recorded) if recorded.is_damaged => Err(StoreError::Damaged(hash)),
        Some(recorded) if recorded.is_evicted => Ok(None),
        other => Ok(other),
    }
}

fn read_content(
    files: &Files,
    hash: Hash,
    content: Content,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    match content {
        Content::File => files.read(hash, range).map(Bytes::from),
        Content::Inline(content) => {
            let slice = usize::try_from(range.start)
                .ok()
                .zip(usize::try_from(range.end).ok())
                .filter(|(_, end)| *end <= content.len());
            let slice = slice.map(|(start, end)| content.slice(start..end));
            slice.ok_or(StoreError::Damaged(hash))
        }
    }
}

/// Removes what an earlier run left unfinished. The files of a damaged asset stay, whether they are
/// what is left of it or the whole ones that were about to replace that: [`Store::verify`] tells.
fn sweep(database: &Database, files: &Files) -> Result<(), StoreError> {
    let reader = database.reader()?;
    let unrecorded = || {
        let mut hashes = Vec::new();
        for hash in rows::pending(&reader)? {
            if !rows::is_recorded(&reader, hash)? {
                hashes.push(hash);
            }
        }
        Ok(hashes)
    };
    files.sweep(&unrecorded().map_err(db::sql_error)?)?;
    database.write(rows::forget_pending)
}
