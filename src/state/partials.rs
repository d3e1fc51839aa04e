//! Large assets on their way in: files that fill up, in any order, and survive restarts.
//!
//! P1  With BLAKE3 nothing unverified is written, and what a file holds is verified anew before it
//!     is built upon after a restart: content and outboard say which ranges are good. So nothing here
//!     needs an fsync, or a list of ranges on disk, before the asset is whole.
//! P2  With SHA-256 the content can be verified only when whole; a wrong one is deleted then. It
//!     fills up from the start, and from one source: what another made up is never built upon.
//! P3  A partial is opened once at a time; all its transfers share the one [`Partial`]. Of every held
//!     group, all hash pairs on the way from the root are in the outboard. Who says another size of
//!     an asset has a partial of its own.
//! P4  What each transfer has yet to write is known, so that no two count on the same free space.

mod folder;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use self::folder::{CONTENT_SUFFIX, Claim, Files, Found, Name, Shared, asset_of};
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::core::limits::{ASSET_BYTES_MAX, FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION};
use crate::core::ranges::Ranges;
use crate::state::bao::{Decoded, GROUP_BYTES, decode_piece, outboard_bytes, verified_ranges};

/// Which partial: of an asset of that size and, with SHA-256, from that device alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The asset, as it was announced.
    pub digest: Digest,
    /// The device that its content comes from; `None`: from any.
    pub source: Option<NodeId>,
}

impl From<Digest> for Key {
    fn from(digest: Digest) -> Self {
        Self { digest, source: None }
    }
}

/// The folder of partial transfers. Clones share it.
#[derive(Debug, Clone)]
pub struct Partials {
    shared: Arc<Shared>,
}

/// One asset under way; nobody else can open it meanwhile. Several threads may write to it at a
/// time. Dropped, it stays for a later resume.
#[derive(Debug)]
pub struct Partial {
    digest: Digest,
    files: Files,
    content: File,
    /// With BLAKE3 only.
    outboard: Option<File>,
    held: Mutex<Ranges>,
    space_needed_bytes: u64,
    claim: Arc<Claim>,
}

/// A whole and verified content, durable in its file. Hold on to it until the store has adopted the
/// files: while it lives, nobody opens them as a partial.
#[derive(Debug)]
pub struct CompleteFile {
    /// The hash and size it has.
    pub digest: Digest,
    /// The content.
    pub path: PathBuf,
    /// Its outboard; none with SHA-256 and for an asset of one group.
    pub outboard: Option<PathBuf>,
    _claim: Arc<Claim>,
}

/// Why a partial cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// See P3.
    #[error("asset {0} is being transferred already")]
    InUse(Hash),
    /// As many transfers are under way as there can be.
    #[error("{PARTIALS_MAX} large assets are under way, the most there can be")]
    TooMany,
    /// See [`ASSET_BYTES_MAX`].
    #[error("an asset of {0} bytes is larger than any there can be")]
    TooLarge(u64),
    /// The disk failed.
    #[error("opening {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why there is no room for more.
#[derive(Debug, Error)]
pub enum SpaceError {
    /// The disk would be filled beyond what is left free.
    #[error(
        "the disk of {folder} has {free_bytes} bytes free, {needed_bytes} more are needed and \
         {floor_bytes} are kept free: free some space"
    )]
    Full {
        /// Where partial assets are.
        folder: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What is needed.
        needed_bytes: u64,
        /// What stays free.
        floor_bytes: u64,
    },
    /// It cannot be measured.
    #[error("measuring the disk")]
    Io(#[from] io::Error),
}

/// Why a piece was not, or not wholly, taken.
#[derive(Debug, Error)]
pub enum PieceError {
    /// The groups before `offset_bytes` were good and are kept; ask another device for the rest.
    #[error("the content received is wrong at byte {offset_bytes}")]
    Corrupt {
        /// Where the first wrong group starts.
        offset_bytes: u64,
    },
    /// Pieces are whole groups; with SHA-256 they also come one after another.
    #[error("a piece of {length_bytes} bytes at byte {offset_bytes} has no place here")]
    Misplaced {
        /// Where the piece claims to start.
        offset_bytes: u64,
        /// Its claimed length.
        length_bytes: u64,
    },
    /// The disk failed or is full; the piece may be sent again.
    #[error("writing a partial asset")]
    Io(#[from] io::Error),
}

/// Why a transfer is not complete.
#[derive(Debug, Error)]
pub enum FinishError {
    /// Pieces are missing; the partial stays.
    #[error("{held_bytes} of {size_bytes} bytes are here")]
    Incomplete {
        /// What is held.
        held_bytes: u64,
        /// What it takes.
        size_bytes: u64,
    },
    /// All for nothing; the partial is gone. With BLAKE3 only an empty content comes to this.
    #[error("the content received for {expected} has the hash {got}")]
    Mismatch {
        /// The asset's hash.
        expected: Hash,
        /// The content's.
        got: Hash,
    },
    /// The disk failed.
    #[error("completing a partial asset")]
    Io(#[from] io::Error),
}

impl Partials {
    /// Opens the folder, which exists, and removes what nobody went on with for long. Other files
    /// that end like partials were uploads on their way through when the last run ended: they go too.
    pub fn open(folder: &Path, now: SystemTime) -> io::Result<Self> {
        let shared = Shared { folder: folder.to_owned(), claimed: Mutex::default() };
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let is_like_one =
                path.as_os_str().as_encoded_bytes().ends_with(CONTENT_SUFFIX.as_bytes());
            if is_like_one && path.file_name().and_then(asset_of).is_none() {
                fs::remove_file(path)?;
            }
        }
        for Found { name, touched } in shared.list()? {
            let age = now.duration_since(touched).unwrap_or_default();
            if age > KEPT {
                shared.files(&name).remove()?;
            }
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins or resumes the transfer of an asset. Resuming reads and hashes what is held.
    pub fn start(
        &self,
        key: impl Into<Key>,
        algorithm: HashAlgorithm,
    ) -> Result<Partial, OpenError> {
        let key = key.into();
        let digest = key.digest;
        if digest.size_bytes > ASSET_BYTES_MAX {
            return Err(OpenError::TooLarge(digest.size_bytes));
        }
        let name = Name::of(&key);
        let claim = Arc::new(self.claim(name)?);
        let files = self.shared.files(&name);
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits() as i32)
                .open(path)
                .map_err(|source| OpenError::Io { path: path.to_owned(), source })
        };
        if algorithm == HashAlgorithm::Blake3 {
            self.shared.rename_unsized(&files, &digest.hash)?;
        }
        let content = open(&files.content)?;
        let outboard = match algorithm {
            HashAlgorithm::Blake3 => Some(open(&files.outboard)?),
            HashAlgorithm::Sha256 => None,
        };
        let held = resumable(&digest, &content, outboard.as_ref())
            .map_err(|source| OpenError::Io { path: files.content.clone(), source })?;
        let space_needed_bytes = claim.expect(digest.size_bytes - held.bytes());
        let held = Mutex::new(held);
        Ok(Partial { digest, files, content, outboard, held, space_needed_bytes, claim })
    }

    /// Refuses when `needed_bytes` more would leave too little of the disk free.
    pub fn check_space(&self, needed_bytes: u64) -> Result<(), SpaceError> {
        let folder = &self.shared.folder;
        let disk = rustix::fs::statvfs(folder).map_err(io::Error::from)?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        let total_bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
        let floor_bytes = FREE_FLOOR_BYTES.min(total_bytes / FREE_FLOOR_FRACTION);
        if needed_bytes == 0 || free_bytes >= floor_bytes.saturating_add(needed_bytes) {
            return Ok(());
        }
        let folder = folder.clone();
        Err(SpaceError::Full { folder, free_bytes, needed_bytes, floor_bytes })
    }

    /// What is yet to be written of an asset under way, by the transfer that has come furthest.
    pub fn left_bytes(&self, hash: &Hash) -> Option<u64> {
        let claimed = self.shared.claimed();
        claimed.iter().filter(|(name, _)| name.hash == *hash).map(|(_, left)| *left).min()
    }

    /// Removes every partial of an asset that is stored, those under way included: nobody can finish
    /// them any more.
    pub fn remove_all_of(&self, hash: &Hash) -> io::Result<()> {
        let mut found = self.shared.list()?.into_iter().filter(|found| found.name.hash == *hash);
        found.try_for_each(|found| self.shared.files(&found.name).remove())
    }

    fn claim(&self, name: Name) -> Result<Claim, OpenError> {
        let mut claimed = self.shared.claimed();
        if claimed.contains_key(&name) {
            return Err(OpenError::InUse(name.hash));
        }
        let io_error = |source| OpenError::Io { path: self.shared.folder.clone(), source };
        let mut held = self.shared.list().map_err(io_error)?;
        if held.len() >= PARTIALS_MAX && held.iter().all(|found| found.name != name) {
            held.sort_by_key(|found| found.touched);
            let idle = held.iter().find(|found| !claimed.contains_key(&found.name));
            let idle = idle.ok_or(OpenError::TooMany)?;
            self.shared.files(&idle.name).remove().map_err(io_error)?;
        }
        claimed.insert(name, 0);
        Ok(Claim { shared: Arc::clone(&self.shared), name })
    }
}

impl Partial {
    /// Which asset.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What is yet to come: whole groups, or all that is left. With BLAKE3 the rest is verified.
    pub fn missing(&self) -> Ranges {
        self.held().gaps(self.digest.size_bytes)
    }

    /// What was yet to be written, when this transfer began, of it and all others under way.
    pub fn space_needed_bytes(&self) -> u64 {
        self.space_needed_bytes
    }

    /// Everything is here.
    pub fn is_complete(&self) -> bool {
        self.held().contains(&(0..self.digest.size_bytes))
    }

    /// Takes a piece: with BLAKE3 its bao encoding, of which only verified groups are written; with
    /// SHA-256 its bytes, which begin where those held end.
    pub fn write_piece(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        encoded: &[u8],
    ) -> Result<(), PieceError> {
        let misplaced = PieceError::Misplaced { offset_bytes, length_bytes };
        let range = offset_bytes..offset_bytes.saturating_add(length_bytes);
        let Some(outboard) = &self.outboard else {
            let follows = Some(range.start) == self.missing().first().map(|range| range.start);
            let is_whole = length_bytes == encoded.len() as u64;
            if !follows || !is_whole || range.end > self.digest.size_bytes {
                return Err(misplaced);
            }
            self.content.write_all_at(encoded, offset_bytes)?;
            self.hold(range);
            return Ok(());
        };
        let decoded = decode_piece(&self.digest, range, encoded).ok_or(misplaced)?;
        let good = offset_bytes..offset_bytes + decoded.bytes();
        self.write(outboard, &good, &decoded)?;
        let first_wrong = good.end;
        self.hold(good);
        if !decoded.whole {
            return Err(PieceError::Corrupt { offset_bytes: first_wrong });
        }
        Ok(())
    }

    fn write(&self, outboard: &File, good: &Range<u64>, decoded: &Decoded<'_>) -> io::Result<()> {
        let before = good.start.saturating_sub(GROUP_BYTES)..good.start;
        if !self.held().contains(&before) {
            for (offset_bytes, pair) in &decoded.above {
                outboard.write_all_at(pair, *offset_bytes)?;
            }
        }
        write_groups(&self.content, &decoded.groups, good.start)?;
        write_behind(&self.content, good);
        outboard.write_all_at(&decoded.outboard, decoded.outboard_offset_bytes)
    }

    fn hold(&self, range: Range<u64>) {
        let mut held = self.held();
        held.insert(range);
        self.claim.expect(self.digest.size_bytes - held.bytes());
    }

    fn held(&self) -> MutexGuard<'_, Ranges> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the whole content durable for the store to adopt. Nobody writes to it any more.
    pub fn finish(&self) -> Result<CompleteFile, FinishError> {
        if !self.is_complete() {
            return Err(FinishError::Incomplete {
                held_bytes: self.held().bytes(),
                size_bytes: self.digest.size_bytes,
            });
        }
        // What was there of another size, if a peer lied about it.
        self.content.set_len(self.digest.size_bytes)?;
        // With BLAKE3 every group was verified, which leaves the content without any.
        let got = match &self.outboard {
            None => sha256(&self.content)?,
            Some(_) if self.digest.size_bytes == 0 => HashAlgorithm::Blake3.hash(&[]),
            Some(_) => self.digest.hash,
        };
        if got != self.digest.hash {
            self.files.remove()?;
            return Err(FinishError::Mismatch { expected: self.digest.hash, got });
        }
        self.sync(&self.content)?;
        let length_bytes = outboard_bytes(self.digest.size_bytes);
        let outboard = match &self.outboard {
            None => None,
            Some(_) if length_bytes == 0 => {
                fs::remove_file(&self.files.outboard)?;
                None
            }
            Some(outboard) => {
                outboard.set_len(length_bytes)?;
                self.sync(outboard)?;
                Some(self.files.outboard.clone())
            }
        };
        Ok(CompleteFile {
            digest: self.digest,
            path: self.files.content.clone(),
            outboard,
            _claim: self.claim.clone(),
        })
    }

    /// Waits until a file is on the disk. What a failed sync leaves in the page cache looks well for
    /// as long as it is there, and the next sync succeeds: the asset is to come anew.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all().inspect_err(|_| {
            if let Err(error) = self.files.remove() {
                tracing::warn!(%error, "a file that did not reach the disk stays");
            }
        })
    }

    /// Forgets what is held; it is to come anew.
    pub fn empty(&self) -> Result<(), OpenError> {
        let io_error = |source| OpenError::Io { path: self.files.content.clone(), source };
        self.content.set_len(0).map_err(io_error)?;
        *self.held() = Ranges::default();
        self.claim.expect(self.digest.size_bytes);
        Ok(())
    }

    /// Takes the files away again if nothing was ever written to them.
    fn discard_empty(&self) -> io::Result<()> {
        match self.content.metadata()?.len() {
            0 if !self.is_complete() => self.files.remove(),
            _ => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = self.discard_empty() {
            tracing::warn!(%error, "an empty partial asset stays");
        }
    }
}

/// Most partial assets on disk: ten times what can be in flight at once, so that the interrupted
/// ones of several peers fit. The one idle for longest makes room.
pub const PARTIALS_MAX: usize = 256;
/// A device away for a month is likely gone with its asset.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const HASHING_BYTES: usize = 256 * 1024;
/// What a large asset may hold of the page cache while it comes in, if it comes in order: what a
/// slow disk takes in a second.
const CACHED_BYTES: u64 = 64 * 1024 * 1024;
/// What the disk is told to begin with at once; divides [`CACHED_BYTES`].
const WRITE_STEP_BYTES: u64 = 2 * 1024 * 1024;
/// What one system call writes; every system takes as many.
const GATHERED_GROUPS_MAX: usize = 64;

fn resumable(digest: &Digest, content: &File, outboard: Option<&File>) -> io::Result<Ranges> {
    let length_bytes = content.metadata()?.len();
    match outboard {
        _ if length_bytes == 0 => Ok(Ranges::default()),
        Some(outboard) => Ok(verified_ranges(digest, content, outboard)),
        None => {
            let usable_bytes = length_bytes.min(digest.size_bytes);
            let mut held = Ranges::default();
            held.insert(0..usable_bytes - usable_bytes % GROUP_BYTES);
            Ok(held)
        }
    }
}

/// Writes one group after another, in few calls.
fn write_groups(file: &File, groups: &[&[u8]], mut offset_bytes: u64) -> io::Result<()> {
    let mut slices: Vec<_> = groups.iter().map(|group| IoSlice::new(group)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(GATHERED_GROUPS_MAX)];
        match rustix::io::pwritev(file, batch, offset_bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset_bytes += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Has the disk begin with what was written, a step at a time, so that the sync at the end finds
/// little to do, and gives back the page cache of what was written [`CACHED_BYTES`] before: a large
/// asset pushes nothing else out, and goes through memory that is warm. What is told to the system
/// as "not needed" it starts to write, and drops only once it is clean.
fn write_behind(file: &File, written: &Range<u64>) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let end = written.end - written.end % WRITE_STEP_BYTES;
        if end <= written.start {
            return;
        }
        for end in [Some(end), end.checked_sub(CACHED_BYTES)].into_iter().flatten() {
            let start = end.saturating_sub(WRITE_STEP_BYTES);
            let length = std::num::NonZeroU64::new(end - start);
            // A hint: nothing depends on it.
            let _ = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::DontNeed);
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, written);
}

fn sha256(mut content: &File) -> io::Result<Hash> {
    content.rewind()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASHING_BYTES];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(Hash(hasher.finalize().into())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests;
