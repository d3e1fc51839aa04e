//! A user's file while `add` reads it.
//!
//! S1  No file of a home is read, whatever its path is: the device and inode of the open file are
//!     compared.
//! S2  A file that changes while it is read gives no content: half of the old and half of the new
//!     state would be a file that nobody ever wrote.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::AsyncReadExt as _;

use super::walk::Homes;
use crate::clock::wall_ms;
use crate::store::SMALL_BYTES_MAX;

/// How often a file that changes while it is read is read again.
pub(crate) const TRIES_MAX: usize = 3;

/// A large file is read in pieces of this size.
const PIECE_BYTES: u64 = 256 * 1024;

/// Local file systems date changes by a clock that ticks at least this often.
const TICK: Duration = Duration::from_millis(20);

/// Ticks waited for a file that is being written to.
const TICKS_MAX: usize = 3;

/// Why a file gives no content.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    /// An error of the system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file was written to while it was read.
    #[error("it changed while it was read: add it again when nothing writes to it")]
    Changed,
    /// The file belongs to the home of an agent.
    #[error("it belongs to a can-sync agent, whose own files are never added")]
    OfAHome,
}

/// An open file, as it was before it was read.
pub(crate) struct Source {
    file: File,
    before: Version,
}

/// What differs between two versions of a file: size, mtime and ctime in ns.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    size_bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Version {
    fn of(found: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Self {
            size_bytes: found.len(),
            modified_ns: ns(found.mtime(), found.mtime_nsec()),
            changed_ns: ns(found.ctime(), found.ctime_nsec()),
        }
    }

    /// Whether a write now could leave the modification time as it is.
    fn is_of_this_tick(&self) -> bool {
        let now_ns = i128::from(wall_ms()) * 1_000_000;
        (now_ns - self.modified_ns).unsigned_abs() <= TICK.as_nanos()
    }
}

/// A small file, read whole.
pub(crate) enum Small {
    /// The file's content, and when it was last modified, ms since the Unix epoch.
    Whole(Bytes, i64),
    /// The file has grown and is not small any more.
    Grown,
}

impl Source {
    /// Opens a file. If it was written just now, waits until a further write would change its
    /// modification time.
    pub(crate) fn open(path: &Path, homes: &Homes) -> Result<Self, ReadError> {
        let file = File::open(path)?;
        let mut found = file.metadata()?;
        if homes.own(&found) {
            return Err(ReadError::OfAHome);
        }
        for _ in 0..TICKS_MAX {
            if !found.is_file() || !Version::of(&found).is_of_this_tick() {
                break;
            }
            std::thread::sleep(TICK);
            found = file.metadata()?;
        }
        Ok(Self { file, before: Version::of(&found) })
    }

    /// The file's length; `None` for a pipe or a device, which ends when it ends.
    pub(crate) fn size_bytes(&self) -> io::Result<Option<u64>> {
        Ok(self.file.metadata()?.is_file().then_some(self.before.size_bytes))
    }

    /// When it was last modified, ms since the Unix epoch.
    pub(crate) fn modified_ms(&self) -> i64 {
        i64::try_from(self.before.modified_ns.div_euclid(1_000_000)).unwrap_or(i64::MAX)
    }

    /// The file, to be read until it ends.
    pub(crate) fn into_stream(self) -> tokio::fs::File {
        tokio::fs::File::from_std(self.file)
    }

    fn check(file: &File, before: Version) -> Result<(), ReadError> {
        match Version::of(&file.metadata()?) == before {
            true => Ok(()),
            false => Err(ReadError::Changed),
        }
    }

    /// The pieces of a file of `size_bytes`. The last one comes when the file is known to be the
    /// same as before. An error in between ends the request that carries it, and is put into `why`.
    pub(crate) fn pieces(self, size_bytes: u64, why: Why) -> impl Stream<Item = io::Result<Bytes>> {
        let file = tokio::fs::File::from_std(self.file);
        let before = self.before;
        stream::try_unfold((file, size_bytes), move |(mut file, left_bytes)| {
            let why = why.clone();
            async move {
                if left_bytes == 0 {
                    return Ok(None);
                }
                match next_piece(&mut file, left_bytes, before).await {
                    Ok(piece) => {
                        let left_bytes = left_bytes - piece.len() as u64;
                        Ok(Some((piece, (file, left_bytes))))
                    }
                    Err(error) => Err(why.tell(error)),
                }
            }
        })
    }
}

async fn next_piece(
    file: &mut tokio::fs::File,
    left_bytes: u64,
    before: Version,
) -> Result<Bytes, ReadError> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES as usize);
    let mut next = (&mut *file).take(left_bytes.min(PIECE_BYTES));
    if next.read_buf(&mut piece).await? == 0 {
        return Err(ReadError::Changed);
    }
    if piece.len() as u64 == left_bytes && Version::of(&file.metadata().await?) != before {
        return Err(ReadError::Changed);
    }
    Ok(piece.freeze())
}

/// Why reading ended early. The request that carried the content fails with another error.
#[derive(Clone, Default)]
pub(crate) struct Why(Arc<Mutex<Option<ReadError>>>);

impl Why {
    /// Keeps the reason, and returns the error that ends the request.
    pub(crate) fn tell(&self, error: ReadError) -> io::Error {
        *self.0.lock() = Some(error);
        io::Error::other("the file could not be read to its end")
    }

    /// The reason, if there is one.
    pub(crate) fn take(&self) -> Option<ReadError> {
        self.0.lock().take()
    }
}

/// Reads a small file, again if it changes meanwhile.
pub(crate) fn read_small(path: &Path, homes: &Homes) -> Result<Small, ReadError> {
    for _ in 0..TRIES_MAX {
        let source = Source::open(path, homes)?;
        let mut content = Vec::new();
        (&source.file).take(SMALL_BYTES_MAX + 1).read_to_end(&mut content)?;
        if content.len() as u64 > SMALL_BYTES_MAX {
            return Ok(Small::Grown);
        }
        match Source::check(&source.file, source.before) {
            Err(ReadError::Changed) => {}
            checked => {
                return checked.map(|()| Small::Whole(content.into(), source.modified_ms()));
            }
        }
    }
    Err(ReadError::Changed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use futures_util::TryStreamExt as _;

    use super::*;

    async fn read(path: &Path, meanwhile: impl FnOnce()) -> (io::Result<Vec<Bytes>>, Why) {
        let source = Source::open(path, &Homes::default()).unwrap();
        let size_bytes = source.size_bytes().unwrap().unwrap();
        meanwhile();
        let why = Why::default();
        (source.pieces(size_bytes, why.clone()).try_collect().await, why)
    }

    #[tokio::test]
    async fn a_file_that_stays_the_same_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content = vec![7; 2 * PIECE_BYTES as usize + 1];
        fs::write(&path, &content).unwrap();
        let (pieces, _) = read(&path, || {}).await;
        assert_eq!(pieces.unwrap().concat(), content);
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_gives_no_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content = vec![7; 2 * PIECE_BYTES as usize];
        let write = || fs::OpenOptions::new().write(true).open(&path).unwrap();
        let changes: [&dyn Fn(); 3] =
            [&|| write().set_len(5).unwrap(), &|| write().write_all(b"new").unwrap(), &|| {
                fs::write(&path, [&content[..], b"appended"].concat()).unwrap()
            }];
        for change in changes {
            fs::write(&path, &content).unwrap();
            let (pieces, why) = read(&path, change).await;
            assert!(pieces.is_err());
            assert!(matches!(why.take(), Some(ReadError::Changed)));
        }
    }
}
