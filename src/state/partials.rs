//! Partials: large assets on their way in. Their files fill up in any order and survive restarts.
//!
//! P1  With BLAKE3 nothing unverified is written, and after a restart the content of a file is
//!     verified again before it is used: content and outboard show which ranges are right. So
//!     before the asset is whole, nothing here needs an fsync or a list of ranges on disk.
//! P2  With SHA-256 the content can be verified only when it is whole; wrong content is then
//!     deleted. It fills up from the start and from one source, so that nothing is built on content
//!     that another source made up.
//! P3  A partial is opened once at a time; all its transfers share one [`Partial`]. For every group
//!     held, all hash pairs on the path from the root are in the outboard. A source that claims
//!     another size for an asset gets a partial of its own.
//! P4  What each transfer still has to write is known, so that no two count on the same free space.

mod folder;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use self::folder::{CONTENT_SUFFIX, Claim, Files, Found, Name, Shared, asset_of};
use crate::bao::{
    Decoded, GROUP_BYTES, decode_piece, encode_piece_of_file, outboard_bytes, verified_ranges,
};
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use crate::core::limits::{ASSET_BYTES_MAX, FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION};
use crate::core::ranges::Ranges;

/// The key of a partial: an asset of one size and, with SHA-256, from one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The asset as it was announced.
    pub digest: Digest,
    /// The device that its content comes from; `None`: any device.
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

/// A partial that is open; nobody else can open it meanwhile. Several threads may write to it at a
/// time. When dropped it stays on disk for a later resume.
#[derive(Debug)]
pub struct Partial {
    digest: Digest,
    files: Files,
    content: File,
    /// `None` with SHA-256.
    outboard: Option<File>,
    held: Mutex<Ranges>,
    space_needed_bytes: u64,
    claim: Arc<Claim>,
}

/// A whole and verified content, durable in its file. Keep it until the store has adopted the
/// files: while it lives, nobody can open them as a partial.
#[derive(Debug)]
pub struct CompleteFile {
    /// The content's hash and size.
    pub digest: Digest,
    /// The content.
    pub path: PathBuf,
    /// The outboard; `None` with SHA-256 and for an asset of one group.
    pub outboard: Option<PathBuf>,
    _claim: Arc<Claim>,
}

/// Why a partial cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The partial is open already. See P3.
    #[error("asset {0} is being transferred already")]
    InUse(Hash),
    /// The most transfers are under way.
    #[error("{PARTIALS_MAX} large assets are under way, the most there can be")]
    TooMany,
    /// The size is above [`ASSET_BYTES_MAX`].
    #[error("an asset of {0} bytes is larger than any there can be")]
    TooLarge(u64),
    /// The disk failed.
    #[error("opening {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Why there is no space.
#[derive(Debug, Error)]
pub enum SpaceError {
    /// The disk would be filled into the space that stays free.
    #[error(
        "the disk of {folder} has {free_bytes} bytes free, {needed_bytes} more are needed and \
         {floor_bytes} are kept free: free some space"
    )]
    Full {
        /// The folder of partials.
        folder: PathBuf,
        /// The bytes that are free.
        free_bytes: u64,
        /// The bytes that are needed.
        needed_bytes: u64,
        /// The bytes that stay free.
        floor_bytes: u64,
    },
    /// The disk cannot be measured.
    #[error("measuring the disk")]
    Io(#[from] io::Error),
}

/// Why a piece was not accepted as a whole.
#[derive(Debug, Error)]
pub enum PieceError {
    /// The groups before `offset_bytes` were right and are kept; request the rest from another
    /// device.
    #[error("the content received is wrong at byte {offset_bytes}")]
    Corrupt {
        /// The start of the first wrong group.
        offset_bytes: u64,
    },
    /// The piece does not consist of whole chunk groups, or, with SHA-256, does not begin where the
    /// last one ended.
    #[error("a piece of {length_bytes} bytes at byte {offset_bytes} has no place here")]
    Misplaced {
        /// The start that the piece claims.
        offset_bytes: u64,
        /// The length that the piece claims.
        length_bytes: u64,
    },
    /// The disk failed or is full; the piece can be sent again.
    #[error("writing a partial asset")]
    Io(#[from] io::Error),
}

/// Why a transfer is not complete.
#[derive(Debug, Error)]
pub enum FinishError {
    /// Pieces are missing; the partial stays.
    #[error("{held_bytes} of {size_bytes} bytes are here")]
    Incomplete {
        /// The bytes held.
        held_bytes: u64,
        /// The size of the asset.
        size_bytes: u64,
    },
    /// The content is wrong, and the partial was deleted. With BLAKE3 this can happen to an empty
    /// content only.
    #[error("the content received for {expected} has the hash {got}")]
    Mismatch {
        /// The asset's hash.
        expected: Hash,
        /// The hash of the content.
        got: Hash,
    },
    /// The disk failed.
    #[error("completing a partial asset")]
    Io(#[from] io::Error),
}

impl Partials {
    /// Opens the existing folder and removes partials that were idle for too long. Other files with
    /// the suffix of a partial are uploads that the last run did not finish; they are removed too.
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

    /// Fails when `needed_bytes` more would leave too little free space on the disk.
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

    /// How many bytes of an asset under way are still missing; if several transfers receive it, the
    /// smallest number.
    pub fn left_bytes(&self, hash: &Hash) -> Option<u64> {
        let claimed = self.shared.claimed();
        claimed.iter().filter(|(name, _)| name.hash == *hash).map(|(_, left)| *left).min()
    }

    /// Removes every partial of an asset that is stored, including those under way, which cannot be
    /// finished any more.
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
    /// The asset that this is a part of.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The ranges that are missing, in whole groups. With BLAKE3 everything else is verified.
    pub fn missing(&self) -> Ranges {
        self.held().gaps(self.digest.size_bytes)
    }

    /// The bytes that this transfer and all others had left to write when this one began.
    pub fn space_needed_bytes(&self) -> u64 {
        self.space_needed_bytes
    }

    /// Whether every byte is held.
    pub fn is_complete(&self) -> bool {
        self.held().contains(&(0..self.digest.size_bytes))
    }

    /// Adds a piece. With BLAKE3 it is a bao encoding, of which only verified groups are written;
    /// with SHA-256 it is plain bytes that follow those held.
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

    /// Adds what `content` has and is missing here, as far as `outboard` proves it: a damaged file
    /// of the asset is one more source of verified pieces.
    pub fn take_from(&self, content: &File, outboard: &File) -> io::Result<()> {
        if self.outboard.is_none() {
            return Ok(());
        }
        for missing in self.missing().iter() {
            let mut start = missing.start;
            while start < missing.end {
                let end = missing.end.min(start - start % TAKEN_BYTES + TAKEN_BYTES);
                if !self.take_piece(start..end, content, outboard)? {
                    for start in (start..end).step_by(GROUP_BYTES as usize) {
                        let group = start..end.min(start + GROUP_BYTES);
                        self.take_piece(group, content, outboard)?;
                    }
                }
                start = end;
            }
        }
        Ok(())
    }

    /// Returns whether the piece was right.
    fn take_piece(&self, piece: Range<u64>, content: &File, outboard: &File) -> io::Result<bool> {
        let (start, length_bytes) = (piece.start, piece.end - piece.start);
        let Ok(encoded) = encode_piece_of_file(&self.digest, piece, content, Some(outboard)) else {
            return Ok(false);
        };
        match self.write_piece(start, length_bytes, &encoded) {
            Ok(()) => Ok(true),
            Err(PieceError::Io(error)) => Err(error),
            Err(PieceError::Corrupt { .. } | PieceError::Misplaced { .. }) => Ok(false),
        }
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
        self.held.lock()
    }

    /// Makes the whole content durable for the store to adopt. Nobody may write to it any more.
    pub fn finish(&self) -> Result<CompleteFile, FinishError> {
        if !self.is_complete() {
            return Err(FinishError::Incomplete {
                held_bytes: self.held().bytes(),
                size_bytes: self.digest.size_bytes,
            });
        }
        // Removes content beyond the size, left by a peer that lied about it.
        self.content.set_len(self.digest.size_bytes)?;
        // With BLAKE3 every group was verified. Only an empty content has no group.
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

    /// Waits until a file is on the disk. After a failed sync the page cache still shows the data,
    /// and the next sync succeeds although it is lost: so the files are removed and the asset is
    /// transferred again.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all().inspect_err(|_| {
            if let Err(error) = self.files.remove() {
                tracing::warn!(%error, "cannot remove a file that did not reach the disk");
            }
        })
    }

    /// Drops everything held, to be transferred again.
    pub fn empty(&self) -> Result<(), OpenError> {
        let io_error = |source| OpenError::Io { path: self.files.content.clone(), source };
        self.content.set_len(0).map_err(io_error)?;
        *self.held() = Ranges::default();
        self.claim.expect(self.digest.size_bytes);
        Ok(())
    }

    /// Removes the files if nothing was ever written to them.
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
            tracing::warn!(%error, "cannot remove an empty partial asset");
        }
    }
}

/// The most partials on disk: ten times what can be under way at once, so that interrupted ones of
/// several peers fit. The one idle for longest is removed first.
pub const PARTIALS_MAX: usize = 256;
/// How long an idle partial is kept: a device away for a month is probably gone with its asset.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const HASHING_BYTES: usize = 256 * 1024;
/// How much is taken from a damaged file at a time; a wrong piece is tried again group by group.
const TAKEN_BYTES: u64 = 256 * 1024;
/// The most page cache that one large asset uses while it arrives in order: what a slow disk writes
/// in a second.
const CACHED_BYTES: u64 = 64 * 1024 * 1024;
/// After how many bytes the system starts to write them to disk; divides [`CACHED_BYTES`].
const WRITE_STEP_BYTES: u64 = 2 * 1024 * 1024;
/// The most groups per system call; every system accepts this many.
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

/// Writes groups one after another in few calls.
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

/// Starts the writing of new data step by step, so that the final sync finds little to do, and
/// releases the page cache of data written [`CACHED_BYTES`] before: a large asset evicts nothing
/// else and reuses warm memory. Advice "not needed" makes the system write pages back, and drop
/// only those that are clean.
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
            // A hint: nothing depends on its success.
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
