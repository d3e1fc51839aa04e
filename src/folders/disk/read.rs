//! Reads a file that does not change meanwhile.
//!
//! E1  What was read is the content that the file had while its stat was the expected one: the stat
//!     is the same before and after, through the open file and by the path.
//! E2  A later change shows in the stat, even one of the same length in the same tick of the clock:
//!     reading ends only when a new change would get another time.
//! E3  A program that writes through a memory map changes the time only with its first write to a
//!     page since the last write-back. A large file that changed in the last minute is therefore
//!     written back before it is read. Smaller ones are not: it costs milliseconds for each, and
//!     programs that map small files to write close them.

use std::fs::File;
use std::io::{self, Read, Take};

use thiserror::Error;

use super::root::{Root, is_absence, stat_at, stat_file};
use super::seen::{Seen, SeenKind};
use super::share::reflink;
use crate::clock;
use crate::core::folder::path::FolderPath;

/// The smallest file for which E3 is worth a write-back.
const MAPPED_BYTES_MIN: u64 = 256 * 1024;

/// How long the kernel may leave a written page in memory: 30 s, the flusher's interval of 5 s, and
/// time for a busy disk.
const WRITE_BACK_MS: i64 = 60_000;

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It is another one than expected, or changed while it was read: it is being written. Try again
    /// later.
    #[error("the file changes while it is read")]
    Changed,
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file being read that was seen with a certain stat. What was read counts only after
/// [`Stable::finish`].
#[derive(Debug)]
pub struct Stable<'a> {
    root: &'a Root,
    path: &'a FolderPath,
    expected: Seen,
    file: Take<File>,
}

impl Read for Stable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Stable<'_> {
    /// Checks that the file is unchanged. See E1, E2.
    ///
    /// # Errors
    /// The file changed while it was read.
    pub fn finish(self) -> Result<(), ReadError> {
        self.root.await_tick(self.file.get_ref(), &self.expected);
        let dir = self.root.open_parent(self.path).map_err(read_error)?;
        let there = stat_at(&dir, self.path.name()).map_err(read_error)?;
        if there == self.expected && stat_file(self.file.get_ref())? == self.expected {
            return Ok(());
        }
        Err(ReadError::Changed)
    }
}

impl Root {
    /// Opens a regular file that must be as `expected`. It reads no more than its size then.
    ///
    /// # Errors
    /// The file at the path is not `expected`, or cannot be read.
    pub fn open_stable<'a>(
        &'a self,
        path: &'a FolderPath,
        expected: &Seen,
    ) -> Result<Stable<'a>, ReadError> {
        let expected = *expected;
        if expected.kind != SeenKind::File {
            return Err(ReadError::Changed);
        }
        let file = self.open_file(path).map_err(read_error)?;
        if stat_file(&file)? != expected {
            return Err(ReadError::Changed);
        }
        if expected.size_bytes >= MAPPED_BYTES_MIN
            && expected.modified_ms().abs_diff(clock::wall_ms_signed())
                < WRITE_BACK_MS.unsigned_abs()
        {
            // See E3. A file system that cannot do it has no later moment to do it either.
            let _ = file.sync_data();
        }
        Ok(Stable { root: self, path, expected, file: file.take(expected.size_bytes) })
    }

    /// Copies a regular file that must be as `expected` into `into`, an empty file; by a reflink
    /// where possible.
    ///
    /// # Errors
    /// It is another one, changes meanwhile, or cannot be read; `into` cannot be written.
    pub fn read_stable(
        &self,
        path: &FolderPath,
        expected: &Seen,
        into: &File,
    ) -> Result<(), ReadError> {
        let mut stable = self.open_stable(path, expected)?;
        let copied_bytes = if reflink(stable.file.get_ref(), into).is_ok() {
            into.metadata()?.len()
        } else {
            let mut into = into;
            io::copy(&mut stable, &mut into)?
        };
        stable.finish()?;
        if copied_bytes == expected.size_bytes { Ok(()) } else { Err(ReadError::Changed) }
    }
}

fn read_error(error: io::Error) -> ReadError {
    if is_absence(&error) || error.kind() == io::ErrorKind::InvalidInput {
        return ReadError::Changed;
    }
    ReadError::Io(error)
}
