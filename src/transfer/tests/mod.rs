//! Two sides with real stores, joined by a pipe; and one side against a scripted peer.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tempfile::TempDir;
use tokio::io::DuplexStream;

use super::intake::{DISCARD_BYTES_MAX, PUT_BYTES_MAX};
use super::pace::{ANSWER_WAIT, KEEP_ALIVE, READ_STALL, WRITE_STALL, keep_alive};
use super::receive::OFFER_WAIT;
use super::send::PIECE_BYTES;
use super::*;
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::net::frame::{Frame, FrameError, FrameReader, FrameWriter};
use crate::state::index::Index;
use crate::state::partials::Partials;
use crate::store::embedded::{EmbeddedStore, Options};
use crate::store::{
    Asset, BaoFiles, Changes, Condition, Cursor, Damages, Filter, Metadata, NewAsset, Store,
    StoreError, StoreInfo, Stored, Touched, VerifiedFile,
};
use crate::wire::batch::Verdict;
use crate::wire::frame::Kind;

mod batch;
mod gather;
mod hostile;
mod plain;
mod told;

/// The capacity of a pipe: less than a frame, so that every wait for the other side happens.
const PIPE_BYTES: usize = 8 * 1024;

type Ends = (DuplexStream, DuplexStream);

/// Two ends, each a reader and a writer; a dropped writer ends the stream for its reader.
fn pipe() -> (Ends, Ends) {
    let (a_writes, b_reads) = tokio::io::duplex(PIPE_BYTES);
    let (b_writes, a_reads) = tokio::io::duplex(PIPE_BYTES);
    ((a_reads, a_writes), (b_reads, b_writes))
}

/// A device: a store that can be made to fail, an index, and partials.
struct Side {
    ctx: Context,
    store: Arc<FaultyStore>,
    counters: Arc<Counters>,
    dir: TempDir,
}

impl Side {
    fn new(algorithm: HashAlgorithm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let partials = dir.path().join("partials");
        std::fs::create_dir(&partials).unwrap();
        let options = Options { hash_algorithm: algorithm, free_floor_bytes: Some(0) };
        let embedded = EmbeddedStore::open(&dir.path().join("store"), options).unwrap();
        let store = Arc::new(FaultyStore::wrap(Arc::new(embedded)));
        let ctx = Context {
            store: store.clone(),
            index: Index::open(&dir.path().join("index.db")).unwrap(),
            partials: Partials::open(&partials, SystemTime::now()).unwrap(),
            gatherings: Gatherings::default(),
            damaged: Damaged::default(),
            scratch_folder: partials,
            algorithm,
            arrivals: None,
            source: None,
        };
        Self { ctx, store, counters: Arc::default(), dir }
    }

    /// Stores contents of the given sizes and adds them to the index.
    async fn holding(algorithm: HashAlgorithm, sizes: &[u64]) -> (Self, Vec<Digest>) {
        let side = Self::new(algorithm);
        let mut digests = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            digests.push(side.hold(content(n as u64, *size)).await);
        }
        (side, digests)
    }

    async fn hold(&self, content: Vec<u8>) -> Digest {
        let digest = digest(self.ctx.algorithm, &content);
        let path = self.dir.path().join(digest.hash.short());
        std::fs::write(&path, content).unwrap();
        let metadata = Metadata::default();
        let file = VerifiedFile { digest, path, outboard: None, metadata, guard: None };
        self.ctx.store.adopt(file).await.unwrap();
        self.note(&[digest]);
        digest
    }

    /// Adds assets to the index, as the agent does when its store has stored something new.
    fn note(&self, digests: &[Digest]) {
        self.ctx.index.insert(digests, 0).unwrap();
    }

    async fn holds(&self, digest: &Digest) -> bool {
        self.ctx.store.lookup(digest.hash).await.unwrap().is_some()
    }

    /// Reads an asset back and verifies every byte.
    async fn holds_whole(&self, digest: &Digest) -> bool {
        if !self.holds(digest).await {
            return false;
        }
        let mut content = Vec::new();
        while (content.len() as u64) < digest.size_bytes {
            let start = content.len() as u64;
            let end = digest.size_bytes.min(start + crate::store::READ_BYTES_MAX);
            let read = self.ctx.store.read(digest.hash, start..end).await.unwrap().unwrap();
            content.extend_from_slice(&read);
        }
        self::digest(self.ctx.algorithm, &content) == *digest
    }
}

/// Pseudo-random bytes that differ in every group, so that a swap or shift of ranges is found.
fn content(seed: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn digest(algorithm: HashAlgorithm, content: &[u8]) -> Digest {
    Digest { hash: algorithm.hash(content), size_bytes: content.len() as u64 }
}

async fn all(digests: Vec<Digest>, _solicited: bool) -> Vec<bool> {
    vec![true; digests.len()]
}

async fn none(digests: Vec<Digest>, _solicited: bool) -> Vec<bool> {
    vec![false; digests.len()]
}

fn outcomes(receipt: &Receipt) -> Vec<Outcome> {
    receipt.received.iter().map(|r| r.outcome.clone()).collect()
}

/// Sends one batch from `from` to `to`, which wants everything that it lacks.
async fn exchange(
    from: &Side,
    to: &Side,
    digests: &[Digest],
    inline: bool,
) -> (Result<Vec<Outcome>, TransferError>, Receipt) {
    let ((r, w), (r2, w2)) = pipe();
    tokio::join!(
        send_batch(&from.ctx, r, w, digests, false, inline, &from.counters),
        receive_batch(&to.ctx, r2, w2, all, &to.counters),
    )
}

/// A store that fails, lies or returns wrong content on demand.
struct FaultyStore {
    inner: Arc<dyn Store>,
    /// Every call fails as if the store were down.
    down: AtomicBool,
    /// `put` and `adopt` fail for lack of space once this many bytes were stored.
    space_bytes: AtomicU64,
    /// Keeps no outboards, as a foreign store does.
    is_foreign: AtomicBool,
    /// Returns outboards of zeros.
    has_rotten_outboards: AtomicBool,
    /// `put` and `adopt` fail for lack of space although [`Store::check_space`] succeeded.
    commits_fail: AtomicBool,
    /// `put` says of every content that it does not match its hash.
    accuses: AtomicBool,
    /// How long `put` and `adopt` take.
    commit_takes_ms: AtomicU64,
    /// How long `read` and `read_small` take.
    read_takes_ms: AtomicU64,
    /// The largest asset that this store accepts; 0 = any.
    largest_bytes: AtomicU64,
    /// Assets of which one byte is read wrong, with its offset.
    rotten: Mutex<BTreeMap<Hash, u64>>,
    /// Assets whose bytes cannot be read.
    unreadable: Mutex<BTreeSet<Hash>>,
}

impl FaultyStore {
    fn wrap(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            down: AtomicBool::new(false),
            space_bytes: AtomicU64::new(u64::MAX),
            is_foreign: AtomicBool::new(false),
            has_rotten_outboards: AtomicBool::new(false),
            commits_fail: AtomicBool::new(false),
            accuses: AtomicBool::new(false),
            commit_takes_ms: AtomicU64::new(0),
            read_takes_ms: AtomicU64::new(0),
            largest_bytes: AtomicU64::new(0),
            rotten: Mutex::default(),
            unreadable: Mutex::default(),
        }
    }

    fn check_up(&self) -> Result<(), StoreError> {
        match self.down.load(Ordering::SeqCst) {
            true => Err(StoreError::Unreachable("down for a test".into())),
            false => Ok(()),
        }
    }

    async fn after(&self, ms: &AtomicU64) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(ms.load(Ordering::SeqCst))).await;
        self.check_up()
    }

    fn take_space(&self, bytes: u64) -> Result<(), StoreError> {
        let fails = self.commits_fail.load(Ordering::SeqCst);
        let full = |left: u64| left.checked_sub(bytes).filter(|_| !fails);
        self.space_bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, full)
            .map(|_| ())
            .map_err(|_| StoreError::Full("full for a test".into()))
    }

    fn rot(&self, hash: Hash, start: u64, bytes: Bytes) -> Result<Bytes, StoreError> {
        if self.unreadable.lock().unwrap().contains(&hash) {
            return Err(StoreError::Disk("unreadable for a test".into()));
        }
        let rotten = self.rotten.lock().unwrap().get(&hash).copied();
        let mut bytes = Vec::from(bytes);
        if let Some(at) = rotten.and_then(|offset| offset.checked_sub(start))
            && let Some(byte) = bytes.get_mut(at as usize)
        {
            *byte ^= 1;
        }
        Ok(bytes.into())
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        self.check_up()?;
        let largest = self.largest_bytes.load(Ordering::SeqCst);
        let info = self.inner.info().await?;
        Ok(StoreInfo { largest_asset_bytes: (largest > 0).then_some(largest), ..info })
    }

    async fn changes(&self, after: Cursor, limit: usize) -> Result<Changes, StoreError> {
        self.inner.changes(after, limit).await
    }

    fn touched(&self, after: Cursor) -> BoxStream<'static, Result<Touched, StoreError>> {
        self.inner.touched(after)
    }

    async fn lookup(&self, hash: Hash) -> Result<Option<Asset>, StoreError> {
        self.check_up()?;
        self.inner.lookup(hash).await
    }

    async fn list(
        &self,
        filter: &Filter,
        after: Cursor,
        limit: usize,
    ) -> Result<Vec<Asset>, StoreError> {
        self.inner.list(filter, after, limit).await
    }

    async fn read(&self, hash: Hash, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.after(&self.read_takes_ms).await?;
        let start = range.start;
        let read = self.inner.read(hash, range).await?;
        read.map(|bytes| self.rot(hash, start, bytes)).transpose()
    }

    async fn read_small(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.after(&self.read_takes_ms).await?;
        let read = self.inner.read_small(digests).await?;
        let read = digests.iter().zip(read);
        read.map(|(d, bytes)| bytes.map(|bytes| self.rot(d.hash, 0, bytes)).transpose()).collect()
    }

    async fn bao_files(&self, hash: Hash) -> Result<Option<BaoFiles>, StoreError> {
        self.check_up()?;
        if self.is_foreign.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let Some(mut files) = self.inner.bao_files(hash).await? else { return Ok(None) };
        if self.has_rotten_outboards.load(Ordering::SeqCst) {
            files.outboard = tempfile::tempfile().unwrap();
            files.outboard.set_len(1024 * 1024).unwrap();
        }
        let rotten = self.rotten.lock().unwrap().get(&hash).copied();
        if let Some(at) = rotten {
            let mut copy = tempfile::tempfile().unwrap();
            std::io::copy(&mut files.content, &mut copy).unwrap();
            let mut byte = [0];
            copy.read_exact_at(&mut byte, at).unwrap();
            copy.write_all_at(&[byte[0] ^ 1], at).unwrap();
            files.content = copy;
        }
        if self.unreadable.lock().unwrap().contains(&hash) {
            files.content = File::options().write(true).open("/dev/null").unwrap();
        }
        Ok(Some(files))
    }

    async fn verify(&self, hash: Hash) -> Result<Condition, StoreError> {
        if self.rotten.lock().unwrap().contains_key(&hash) {
            return Ok(Condition::Damaged(Default::default()));
        }
        self.inner.verify(hash).await
    }

    fn damages(&self) -> tokio::sync::watch::Receiver<Damages> {
        self.inner.damages()
    }

    async fn put(
        &self,
        assets: Vec<NewAsset>,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        self.after(&self.commit_takes_ms).await?;
        self.take_space(assets.iter().map(|a| a.digest.size_bytes).sum())?;
        if self.accuses.load(Ordering::SeqCst) {
            let accuse = |a: &NewAsset| {
                Err(StoreError::Mismatch { expected: a.digest.hash, got: Hash([0; 32]) })
            };
            return Ok(assets.iter().map(accuse).collect());
        }
        self.inner.put(assets).await
    }

    async fn adopt(&self, file: VerifiedFile) -> Result<Stored, StoreError> {
        self.after(&self.commit_takes_ms).await?;
        self.take_space(file.digest.size_bytes)?;
        self.inner.adopt(file).await
    }

    async fn set_metadata(
        &self,
        hash: Hash,
        metadata: &Metadata,
        expected_version: Option<u64>,
    ) -> Result<Metadata, StoreError> {
        self.inner.set_metadata(hash, metadata, expected_version).await
    }

    async fn check_space(&self, size_bytes: u64) -> Result<(), StoreError> {
        self.check_up()?;
        if size_bytes > self.space_bytes.load(Ordering::SeqCst) {
            return Err(StoreError::Full("full for a test".into()));
        }
        Ok(())
    }
}
