//! New content under a temporary name, complete before it gets its own.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, chmodat, linkat, openat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::names::{Stage, Temp};
use super::place::{PlaceError, Source};
use super::root::stat_at;
use super::seen::{Seen, SeenKind};
use super::share::reflink_or_copy;
use crate::core::folder::path::PathKey;

/// How much is read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// The permissions of a file that is a link to a file of the home.
const LINKED_MODE: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);

/// A file to write.
pub(super) struct FreshFile<'a> {
    pub(super) source: Source<'a>,
    pub(super) size_bytes: u64,
    pub(super) modified_ms: i64,
    pub(super) mode: u32,
    /// Make it durable at once.
    pub(super) sync: bool,
}

/// New content for a path. It is written under the name `temp`, renamed to `complete` when all is on
/// disk, and then renamed to the name of the path.
pub(super) struct Fresh {
    pub(super) temp: String,
    pub(super) complete: String,
    seen: Seen,
}

impl Fresh {
    pub(super) fn file(
        dir: &OwnedFd,
        run: u64,
        key: PathKey,
        file: FreshFile<'_>,
    ) -> Result<Self, PlaceError> {
        let temp = Temp { run, key, stage: Stage::New }.name();
        let written = write(dir, &temp, file).and_then(|()| Ok(stat_at(dir, temp.as_bytes())?));
        if written.is_err() {
            let _ = unlinkat(dir, &temp, AtFlags::empty());
        }
        Ok(Self::of(run, key, temp, written?))
    }

    pub(super) fn symlink(
        dir: &OwnedFd,
        run: u64,
        key: PathKey,
        target: &[u8],
    ) -> Result<Self, PlaceError> {
        let temp = Temp { run, key, stage: Stage::New }.name();
        symlinkat(target, dir, &temp).map_err(io::Error::from)?;
        Ok(Self::of(run, key, temp.clone(), stat_at(dir, temp.as_bytes())?))
    }

    fn of(run: u64, key: PathKey, temp: String, seen: Seen) -> Self {
        let complete = Temp { run, key, stage: Stage::Complete(seen.inode) }.name();
        Self { temp, complete, seen }
    }

    /// The stat of the new content under its own name. If somebody wrote to it already, or replaced
    /// it, an older stat, which differs from what is there.
    pub(super) fn seen_at(&self, dir: &OwnedFd, name: &[u8]) -> Seen {
        match stat_at(dir, name) {
            Ok(now) if now.is_same_file(&self.seen) => now,
            _ => self.seen,
        }
    }

    /// Whether what is at a name is still as expected. If the new content is a link to the same file,
    /// making it changed the time of the inode.
    pub(super) fn is_still(&self, now: Option<Seen>, expected: &Seen) -> bool {
        now == Some(*expected)
            || self.seen.inode == expected.inode
                && now.is_some_and(|now| now.is_same_file(expected))
    }

    /// Removes the temporary file, as long as it is this one.
    pub(super) fn discard(&self, dir: &OwnedFd) {
        for name in [&self.temp, &self.complete] {
            if stat_at(dir, name.as_bytes()).is_ok_and(|seen| seen.inode == self.seen.inode) {
                let _ = unlinkat(dir, name, AtFlags::empty());
            }
        }
    }
}

fn write(dir: &OwnedFd, temp: &str, file: FreshFile<'_>) -> Result<(), PlaceError> {
    let FreshFile { source, size_bytes, modified_ms, mode, sync } = file;
    if let Source::Link(path) = source
        && link(path, dir, temp, size_bytes)?
    {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let into = openat(dir, temp, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
    let mut into = File::from(into);
    let got_bytes = match source {
        Source::Reader(reader) => {
            // One byte more, so that a reader that is too long does not fill the disk.
            let limited = reader.take(size_bytes.saturating_add(1));
            copy(&mut BufReader::with_capacity(BUFFER_BYTES, limited), &mut into)?
        }
        Source::File(from) => reflink_or_copy(from, &into)?,
        Source::Link(path) => {
            let from = File::open(path).map_err(PlaceError::Io)?;
            reflink_or_copy(&from, &into)?
        }
    };
    if got_bytes != size_bytes {
        return Err(PlaceError::WrongSize { got_bytes, expected_bytes: size_bytes });
    }
    let set = || -> io::Result<()> {
        rustix::fs::fchmod(&into, Mode::from_raw_mode(mode as _))?;
        rustix::fs::futimens(&into, &modified(modified_ms))?;
        if sync { into.sync_all() } else { Ok(()) }
    };
    Ok(set()?)
}

/// Copies to the end. An error of the source is not one of the directory.
fn copy(from: &mut impl io::BufRead, into: &mut File) -> Result<u64, PlaceError> {
    let mut copied_bytes = 0;
    loop {
        let buffer = match from.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(PlaceError::Io)?,
        };
        let length = buffer.len();
        if length == 0 {
            return Ok(copied_bytes);
        }
        io::Write::write_all(into, buffer)?;
        from.consume(length);
        copied_bytes += length as u64;
    }
}

/// Makes `temp` a hard link to a file of the home. Returns false if the file system cannot.
fn link(path: &Path, dir: &OwnedFd, temp: &str, size_bytes: u64) -> Result<bool, PlaceError> {
    match linkat(CWD, path, dir, temp, AtFlags::empty()) {
        Ok(()) => {}
        Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => return Ok(false),
        Err(error) => return Err(PlaceError::Io(error.into())),
    }
    let seen = stat_at(dir, temp.as_bytes())?;
    if seen.kind != SeenKind::File || seen.size_bytes != size_bytes {
        let got_bytes = seen.size_bytes;
        return Err(PlaceError::WrongSize { got_bytes, expected_bytes: size_bytes });
    }
    chmodat(dir, temp, LINKED_MODE, AtFlags::empty()).map_err(io::Error::from)?;
    Ok(true)
}

fn modified(modified_ms: i64) -> Timestamps {
    let nanos = modified_ms.rem_euclid(1000) * 1_000_000;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified_ms.div_euclid(1000), tv_nsec: nanos as _ },
    }
}
