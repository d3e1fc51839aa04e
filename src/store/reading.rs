//! Reads a stored asset in small steps and says whether it is right: the first look at an asset,
//! which can be slowed down and interrupted. [`Store::verify`] is the second, and acts.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use tokio::task::spawn_blocking;

use super::hasher::Hasher;
use super::{BaoFiles, READ_BYTES_MAX, Store, StoreError};
use crate::bao::encode_piece_of_file;
use crate::core::ids::{Digest, Hash, HashAlgorithm};

/// How much one step reads: little enough that nobody waits long for the disk.
pub const STEP_BYTES: u64 = 256 * 1024;

/// The result of the first reading of an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The content has its hash.
    Right,
    /// The content does not have its hash, or cannot be read: the store should verify it.
    Wrong,
    /// The store does not hold the asset.
    Gone,
}

/// The result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It read so many bytes, and they are right as far as can be known.
    Read(u64),
    /// The asset was read to its end, or to where it is wrong.
    End(Verdict),
}

/// An asset that is being read.
pub struct Reading {
    store: Arc<dyn Store>,
    digest: Digest,
    at_bytes: u64,
    proof: Proof,
}

enum Proof {
    /// Each group is proven by itself.
    Groups(Arc<BaoFiles>),
    /// The end shows whether the whole is right.
    Whole(Hasher),
    /// The store has said already.
    Said(Verdict),
}

impl Reading {
    /// Begins to read an asset. An asset whose groups are proven one by one is read from
    /// `from_bytes` on; any other from its start.
    ///
    /// # Errors
    /// The store cannot tell now.
    pub async fn begin(
        store: Arc<dyn Store>,
        algorithm: HashAlgorithm,
        digest: Digest,
        from_bytes: u64,
    ) -> Result<Self, StoreError> {
        let (at_bytes, proof) = match store.bao_files(digest.hash).await {
            Ok(Some(files)) => (from_bytes, Proof::Groups(Arc::new(files))),
            Ok(None) => (0, Proof::Whole(Hasher::new(algorithm))),
            Err(error) => (0, Proof::Said(judged(error)?)),
        };
        Ok(Self { store, digest, at_bytes, proof })
    }

    /// How far the asset was read.
    pub fn at_bytes(&self) -> u64 {
        self.at_bytes
    }

    /// Reads on.
    ///
    /// # Errors
    /// The store cannot tell now.
    pub async fn step(&mut self) -> Result<Step, StoreError> {
        let Digest { hash, size_bytes } = self.digest;
        let range = self.at_bytes..size_bytes.min(self.at_bytes + STEP_BYTES);
        let bytes = range.end.saturating_sub(range.start);
        match &mut self.proof {
            Proof::Said(verdict) => return Ok(Step::End(*verdict)),
            Proof::Whole(hasher) if bytes == 0 => {
                let is_right = hasher.hash() == hash;
                return Ok(Step::End(if is_right { Verdict::Right } else { Verdict::Wrong }));
            }
            Proof::Groups(_) if bytes == 0 => return Ok(Step::End(Verdict::Right)),
            Proof::Groups(files) => {
                let (files, digest) = (files.clone(), self.digest);
                let look = spawn_blocking(move || are_right(&digest, range, &files));
                let ended = |error| StoreError::Disk(format!("reading an asset ended: {error}"));
                if !look.await.map_err(ended)? {
                    return Ok(Step::End(Verdict::Wrong));
                }
            }
            Proof::Whole(hasher) => match self.store.read(hash, range).await {
                Ok(Some(read)) => hasher.update(&read),
                Ok(None) => return Ok(Step::End(Verdict::Gone)),
                Err(error) => return Ok(Step::End(judged(error)?)),
            },
        }
        self.at_bytes += bytes;
        Ok(Step::Read(bytes))
    }
}

/// Looks at assets of at most [`super::SMALL_BYTES_MAX`] bytes, in the order of `digests`.
///
/// # Errors
/// The store cannot tell now.
pub async fn look_at_small(
    store: &dyn Store,
    algorithm: HashAlgorithm,
    digests: &[Digest],
) -> Result<Vec<Verdict>, StoreError> {
    let contents = match store.read_small(digests).await {
        Ok(contents) => contents,
        Err(error) if digests.len() == 1 => return Ok(vec![judged(error)?]),
        Err(error) if error.is_temporary() => return Err(error),
        Err(_) => {
            let mut verdicts = Vec::with_capacity(digests.len());
            for digest in digests {
                let one = store.read_small(std::slice::from_ref(digest)).await;
                verdicts.push(match one {
                    Ok(mut one) => judge(algorithm, digest, one.pop().flatten().as_deref()),
                    Err(error) => judged(error)?,
                });
            }
            return Ok(verdicts);
        }
    };
    let looked = digests.iter().zip(contents);
    Ok(looked.map(|(digest, read)| judge(algorithm, digest, read.as_deref())).collect())
}

fn judge(algorithm: HashAlgorithm, digest: &Digest, content: Option<&[u8]>) -> Verdict {
    match content {
        None => Verdict::Gone,
        Some(content) if algorithm.hash(content) == digest.hash => Verdict::Right,
        Some(_) => Verdict::Wrong,
    }
}

fn judged(error: StoreError) -> Result<Verdict, StoreError> {
    match error {
        StoreError::Damaged(_) => Ok(Verdict::Wrong),
        StoreError::NotFound(_) => Ok(Verdict::Gone),
        error => Err(error),
    }
}

/// Reads from the disk and leaves nothing in the cache: the scrub must not push out what is used.
fn are_right(digest: &Digest, range: Range<u64>, files: &BaoFiles) -> bool {
    drop_cached(&files.content, &range);
    let read = encode_piece_of_file(digest, range.clone(), &files.content, Some(&files.outboard));
    drop_cached(&files.content, &range);
    read.is_ok()
}

/// Makes the system read a part of a file from the disk again, and not from memory. A hint.
pub(super) fn drop_cached(file: &File, range: &Range<u64>) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let length = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
        let _ = rustix::fs::fadvise(file, range.start, length, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, range);
}

/// How much is read between two looks at whether anybody still waits.
const FRESH_STEP_BYTES: u64 = 4 * 1024 * 1024;

/// A content that is hashed under its own algorithm and under keys.
struct Keyed {
    content: Hasher,
    keyed: Vec<blake3::Hasher>,
}

impl Keyed {
    fn new(algorithm: HashAlgorithm, keys: &[[u8; 32]]) -> Self {
        let keyed = keys.iter().map(blake3::Hasher::new_keyed).collect();
        Self { content: Hasher::new(algorithm), keyed }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.content.update(bytes);
        for hasher in &mut self.keyed {
            hasher.update(bytes);
        }
    }

    /// The keyed hashes, if the content had its own hash.
    fn end(self, hash: Hash) -> Result<Option<Vec<[u8; 32]>>, StoreError> {
        if self.content.hash() != hash {
            return Err(StoreError::Damaged(hash));
        }
        Ok(Some(self.keyed.iter().map(|hasher| *hasher.finalize().as_bytes()).collect()))
    }
}

/// Reads a whole content, from the disk where the system lets it, and hashes it under each of the
/// keys with BLAKE3. `None`: it is not held. `read_bytes` follows.
///
/// # Errors
/// The content is damaged, or the store does not answer.
pub async fn keyed_hashes(
    store: &Arc<dyn Store>,
    algorithm: HashAlgorithm,
    digest: Digest,
    keys: &[[u8; 32]],
    read_bytes: &AtomicU64,
) -> Result<Option<Vec<[u8; 32]>>, StoreError> {
    let mut hashing = Keyed::new(algorithm, keys);
    let files = store.bao_files(digest.hash).await?.map(Arc::new);
    let mut at = 0;
    while at < digest.size_bytes {
        let step = if files.is_some() { FRESH_STEP_BYTES } else { READ_BYTES_MAX };
        let range = at..digest.size_bytes.min(at + step);
        if let Some(files) = &files {
            let (files, range) = (files.clone(), range.clone());
            let read = spawn_blocking(move || {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                drop_cached(&files.content, &range);
                let read = files.content.read_exact_at(&mut bytes, range.start);
                drop_cached(&files.content, &range);
                read.map(|()| {
                    hashing.update(&bytes);
                    hashing
                })
            });
            let ended = |error| StoreError::Disk(format!("reading an asset ended: {error}"));
            hashing = read.await.map_err(ended)?.map_err(|_| StoreError::Damaged(digest.hash))?;
        } else {
            match store.read(digest.hash, range.clone()).await? {
                Some(bytes) => hashing.update(&bytes),
                None => return Ok(None),
            }
        }
        at = range.end;
        read_bytes.store(at, Ordering::Relaxed);
    }
    hashing.end(digest.hash)
}

/// The same of many assets of at most [`super::SMALL_BYTES_MAX`] bytes, in the order of `digests`.
///
/// # Errors
/// The store cannot tell now.
pub async fn keyed_hashes_of_small(
    store: &dyn Store,
    algorithm: HashAlgorithm,
    digests: &[Digest],
    keys: &[[u8; 32]],
) -> Result<Vec<Result<Option<Vec<[u8; 32]>>, StoreError>>, StoreError> {
    let hash = |digest: &Digest, content: Option<Bytes>| {
        let Some(content) = content else { return Ok(None) };
        let mut hashing = Keyed::new(algorithm, keys);
        hashing.update(&content);
        hashing.end(digest.hash)
    };
    if let Ok(contents) = store.read_small(digests).await {
        let read = digests.iter().zip(contents);
        return Ok(read.map(|(digest, content)| hash(digest, content)).collect());
    }
    let mut hashed = Vec::with_capacity(digests.len());
    for digest in digests {
        let read = store.read_small(std::slice::from_ref(digest)).await;
        hashed.push(match read {
            Ok(mut one) => hash(digest, one.pop().flatten()),
            Err(error) if error.is_temporary() => return Err(error),
            Err(error) => Err(error),
        });
    }
    Ok(hashed)
}
