//! Writes to a bound directory: content, links, empty directories, removals.
//!
//! P1  New content is complete and durable under a temporary name before it gets its name. A crash
//!     leaves the old content or the new one.
//! P2  Nothing is replaced that is not the expected thing. It is compared before (with the time of the
//!     last change of its inode) and, because somebody may write in between, again when it came out of
//!     the exchange. What came out is kept, see `keep.rs`; if it is another thing, it is an edit and
//!     is returned.
//! P3  The stat that is returned is of the content that was placed: an edit after that differs from
//!     it, even one in the same moment.
//! P4  What is returned as done is durable, the name too.
//! P5  Where a file system cannot exchange two names, the old content is moved away and the new one is
//!     then given the name unless somebody took it. A crash in between leaves nothing at the name,
//!     which counts as a removal here against an edit elsewhere, and the edit wins.
//!
//! One edit is not noticed: a program that writes to the file in place within the microseconds between
//! the comparison and the exchange, and sets the time of the file back in the same moments.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;
use thiserror::Error;

use super::fresh::{Fresh, FreshFile};
use super::keep::Displaced;
use super::moves::{
    exchange, file_mode, make_dir, rename_back, rename_new, show_directory, stat_name,
    sync_file_system,
};
use super::names::{Stage, Temp};
use super::root::{Root, is_absence, open_child, stat_at};
use super::seen::{Seen, SeenKind};
use crate::core::folder::path::FolderPath;

/// The most changes that are made durable together. Each may hold a directory open.
const CHUNK_MAX: usize = 256;

/// Up to this many files are written back one by one; more by writing back the whole file system, which
/// takes about as long as a few files.
const SYNC_EACH_MAX: usize = 8;

/// Where the content of a file comes from.
pub enum Source<'a> {
    /// A reader, read to its end. When it fails, nothing is placed.
    Reader(&'a mut (dyn io::Read + Send)),
    /// A file: its blocks are shared where possible, else copied.
    File(&'a File),
    /// A file of the home that the name shall share (a hard link), read-only from then on; its time
    /// is the time of that file. Where that is not possible, a copy.
    Link(&'a Path),
}

/// What [`Root::place`] puts at a path.
pub enum Place<'a> {
    /// A regular file.
    File {
        /// The file's content.
        source: Source<'a>,
        /// The size that it must have.
        size_bytes: u64,
        /// When it was last modified, milliseconds since the Unix epoch.
        modified_ms: i64,
        /// Whether its owner may execute it.
        is_executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// The link's target.
        target: &'a [u8],
    },
    /// An empty directory.
    Directory,
    /// Nothing: what is at the path is removed.
    Nothing,
}

/// One change of the directory.
pub struct Placement<'a> {
    /// The path.
    pub path: &'a FolderPath,
    /// What to put there.
    pub what: Place<'a>,
    /// What is there now. Anything else is left alone, or kept.
    pub expected: Option<Seen>,
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Placed {
    /// The change was made; the stat of the path now. See P3.
    Done(Option<Seen>),
    /// The change was made, but another process wrote to the path meanwhile. That edit is kept: read
    /// it, then [`Root::release`] it.
    Displaced {
        /// What was placed.
        seen: Option<Seen>,
        /// The edit.
        edit: Displaced,
    },
}

/// Why a change was not made. The directory is as before.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// Something else than expected is there.
    #[error("the path changed meanwhile")]
    Changed,
    /// A directory on the way to the path is a file or a link.
    #[error("{0} is not a directory")]
    ParentIsNoDirectory(FolderPath),
    /// A directory cannot be removed or replaced while something is in it, perhaps ignored files.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The disk, or the user's share of it, is full.
    #[error("the disk is full")]
    NoSpace,
    /// The file system is mounted read-only.
    #[error("the file system is read-only")]
    ReadOnly,
    /// The user that the agent runs as may not write to the directory.
    #[error("permission denied")]
    NotPermitted,
    /// The file system cannot hold the name, or not under this length.
    #[error("this file system cannot hold the name")]
    NameRefused,
    /// The content ended early or was too long.
    #[error("the content has {got_bytes} bytes, expected {expected_bytes}")]
    WrongSize {
        /// The content's size.
        got_bytes: u64,
        /// The size that it must have.
        expected_bytes: u64,
    },
    /// The source cannot be read, or the disk fails.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace,
            Some(Errno::ROFS) => Self::ReadOnly,
            Some(Errno::ACCESS | Errno::PERM) => Self::NotPermitted,
            Some(Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ) => Self::NameRefused,
            Some(Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => Self::Changed,
            Some(Errno::NOTEMPTY) => Self::NotEmpty,
            _ => Self::Io(error),
        }
    }
}

/// A change that is prepared and can be made in one step.
struct Ready<'a> {
    path: &'a FolderPath,
    dir: Rc<OwnedFd>,
    expected: Option<Seen>,
    what: ReadyWhat,
}

enum ReadyWhat {
    /// The path already has the wanted content.
    AsOrdered,
    /// New content stands ready in the same directory.
    Fresh(Fresh),
    Directory,
    Nothing,
}

/// Changes that are made durable together.
struct Batch<'a> {
    root: &'a Root,
    /// The directories in which something changes.
    dirs: BTreeMap<Option<FolderPath>, Rc<OwnedFd>>,
    /// The directories that were created on the way, outermost first.
    made: Vec<FolderPath>,
    sync_each: bool,
}

impl Root {
    /// Makes several changes, durably, and returns the outcome of each, in order. They must be of
    /// different paths.
    pub fn place_all(&self, placements: Vec<Placement<'_>>) -> Vec<Result<Placed, PlaceError>> {
        let mut outcomes = Vec::with_capacity(placements.len());
        let mut waiting = placements.into_iter().peekable();
        while waiting.peek().is_some() {
            let chunk: Vec<_> = waiting.by_ref().take(CHUNK_MAX).collect();
            let sync_each = chunk.len() <= SYNC_EACH_MAX;
            let (dirs, made) = (BTreeMap::new(), Vec::new());
            outcomes.extend(Batch { root: self, dirs, made, sync_each }.run(chunk));
        }
        outcomes
    }

    /// Makes one change, durably.
    ///
    /// # Errors
    /// Nothing was changed at the path; the error says why.
    pub fn place(&self, placement: Placement<'_>) -> Result<Placed, PlaceError> {
        self.place_all(vec![placement]).pop().unwrap_or(Err(PlaceError::Changed))
    }

    /// Renames `from`, which must be as `expected`, to `to`, durably and without replacing anything.
    ///
    /// # Errors
    /// Something else is at `from`, or something is at `to`: [`PlaceError::Changed`].
    pub fn set_aside(
        &self,
        from: &FolderPath,
        to: &FolderPath,
        expected: &Seen,
    ) -> Result<(), PlaceError> {
        let mut batch =
            Batch { root: self, dirs: BTreeMap::new(), made: Vec::new(), sync_each: true };
        let moved = batch.set_aside(from, to, expected);
        batch.undo_parents(moved.is_err());
        moved?;
        Ok(batch.sync_directories()?)
    }
}

impl Batch<'_> {
    fn run(mut self, placements: Vec<Placement<'_>>) -> Vec<Result<Placed, PlaceError>> {
        let mut ready: Vec<_> =
            placements.into_iter().map(|placement| self.prepare(placement)).collect();
        if !self.sync_each
            && let Err(error) = self.sync_file_systems()
        {
            for one in &mut ready {
                if let Ok(prepared) = one {
                    prepared.discard();
                    *one = Err(again(&error).into());
                }
            }
        }
        let mut outcomes: Vec<_> =
            ready.into_iter().map(|one| one.and_then(|ready| self.make(&ready))).collect();
        self.undo_parents(outcomes.iter().any(Result::is_err));
        if let Err(error) = self.sync_directories() {
            for outcome in &mut outcomes {
                if let Ok(Placed::Displaced { edit, .. }) = outcome {
                    self.root.keep_edit(edit.clone());
                }
                if outcome.is_ok() {
                    *outcome = Err(again(&error).into());
                }
            }
        }
        outcomes
    }

    /// Writes new content under a temporary name.
    fn prepare<'a>(&mut self, placement: Placement<'a>) -> Result<Ready<'a>, PlaceError> {
        let Placement { path, what, expected } = placement;
        let dir = match (&what, self.parent(path, !matches!(what, Place::Nothing))) {
            (_, Ok(dir)) => dir,
            // If the directory is missing, there is nothing at the path.
            (Place::Nothing, Err(_)) if expected.is_none() && self.is_absent(path)? => {
                let what = ReadyWhat::AsOrdered;
                return Ok(Ready { path, dir: self.top()?, expected, what });
            }
            (Place::Nothing, Err(PlaceError::ParentIsNoDirectory(_))) => {
                return Err(PlaceError::Changed);
            }
            (_, Err(error)) => return Err(error),
        };
        if stat_name(&dir, path.name())? != expected {
            return Err(PlaceError::Changed);
        }
        let what = match what {
            Place::File { source, size_bytes, modified_ms, is_executable } => {
                let replaced = expected.filter(|seen| seen.kind == SeenKind::File);
                let mode = file_mode(&dir, replaced, is_executable)?;
                let sync = self.sync_each;
                let file = FreshFile { source, size_bytes, modified_ms, mode, sync };
                ReadyWhat::Fresh(Fresh::file(&dir, self.root.run, path.key(), file)?)
            }
            Place::Symlink { target } => {
                ReadyWhat::Fresh(Fresh::symlink(&dir, self.root.run, path.key(), target)?)
            }
            Place::Directory if expected.is_some_and(|seen| seen.kind == SeenKind::Directory) => {
                ReadyWhat::AsOrdered
            }
            Place::Directory => ReadyWhat::Directory,
            Place::Nothing if expected.is_none() => ReadyWhat::AsOrdered,
            Place::Nothing => ReadyWhat::Nothing,
        };
        Ok(Ready { path, dir, expected, what })
    }

    fn is_absent(&self, path: &FolderPath) -> io::Result<bool> {
        Ok(self.root.stat(path)?.is_none())
    }

    fn top(&mut self) -> io::Result<Rc<OwnedFd>> {
        self.dir(None)
    }

    /// The directory that a path is in, created if it is missing and `create`.
    fn parent(&mut self, path: &FolderPath, create: bool) -> Result<Rc<OwnedFd>, PlaceError> {
        let parent = path.parent();
        match self.dir(parent.clone()) {
            Err(error) if is_absence(&error) => {}
            other => return Ok(other?),
        }
        let Some(parent) = parent else { return Err(PlaceError::Changed) };
        let mut steps: Vec<FolderPath> = vec![parent.clone()];
        while let Some(above) = steps.last().and_then(FolderPath::parent) {
            steps.push(above);
        }
        let mut dir = self.root.open_dir(None)?;
        for step in steps.into_iter().rev() {
            let next = match open_child(&dir, step.name()) {
                Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                    make_dir(&dir, step.name())?;
                    self.made.push(step.clone());
                    open_child(&dir, step.name())
                }
                other => other,
            };
            dir = next.map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::NOTDIR | Errno::LOOP) => PlaceError::ParentIsNoDirectory(step),
                _ => error.into(),
            })?;
        }
        let dir = Rc::new(dir);
        self.dirs.insert(Some(parent), Rc::clone(&dir));
        Ok(dir)
    }

    fn dir(&mut self, path: Option<FolderPath>) -> io::Result<Rc<OwnedFd>> {
        if let Some(dir) = self.dirs.get(&path) {
            return Ok(Rc::clone(dir));
        }
        let dir = Rc::new(self.root.open_dir(path.as_ref())?);
        self.dirs.insert(path, Rc::clone(&dir));
        Ok(dir)
    }

    /// Gives the new content its name, or takes the name away.
    fn make(&self, ready: &Ready<'_>) -> Result<Placed, PlaceError> {
        let made = match &ready.what {
            ReadyWhat::AsOrdered => Ok(Placed::Done(ready.expected)),
            ReadyWhat::Nothing => self.remove(ready),
            ReadyWhat::Directory => self.make_directory(ready),
            ReadyWhat::Fresh(fresh) => self.put(ready, fresh),
        };
        if made.is_err() {
            ready.discard();
        }
        made
    }

    fn make_directory(&self, ready: &Ready<'_>) -> Result<Placed, PlaceError> {
        if ready.expected.is_some()
            && let displaced @ Placed::Displaced { .. } = self.remove(ready)?
        {
            return Ok(displaced);
        }
        make_dir(&ready.dir, ready.path.name())?;
        Ok(Placed::Done(Some(stat_at(&ready.dir, ready.path.name())?)))
    }

    fn put(&self, ready: &Ready<'_>, fresh: &Fresh) -> Result<Placed, PlaceError> {
        let (dir, name) = (&*ready.dir, ready.path.name());
        let complete = fresh.complete.as_bytes();
        let beside = self.beside(ready, complete)?;
        rename_new(dir, fresh.temp.as_bytes(), dir, complete)?;
        match ready.expected {
            None => {}
            // A batch takes a while.
            Some(expected) if !fresh.is_still(stat_name(dir, name)?, &expected) => {
                return Err(PlaceError::Changed);
            }
            Some(expected) if expected.kind == SeenKind::Directory => remove_dir(dir, name)?,
            Some(expected) => match exchange(dir, complete, name) {
                Ok(()) => {
                    let seen = fresh.seen_at(dir, name);
                    return Ok(self.exchanged(ready, &expected, seen, complete, beside));
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    // See P5.
                    if let displaced @ Placed::Displaced { .. } = self.remove(ready)? {
                        fresh.discard(dir);
                        return Ok(displaced);
                    }
                }
                Err(error) => return Err(error.into()),
            },
        }
        rename_new(dir, complete, dir, name)?;
        Ok(Placed::Done(Some(fresh.seen_at(dir, name))))
    }

    /// The path that what comes out of an exchange has if it cannot be moved to the kept content.
    /// `None` if that is too long for a path but the move is possible.
    fn beside(&self, ready: &Ready<'_>, name: &[u8]) -> Result<Option<FolderPath>, PlaceError> {
        let beside = beside(ready.path, name);
        let device = |dir: BorrowedFd<'_>| rustix::fs::fstat(dir).map(|stat| stat.st_dev);
        if beside.is_none() && device(ready.dir.as_fd()) != device(self.root.open_kept()?.as_fd()) {
            return Err(PlaceError::NameRefused);
        }
        Ok(beside)
    }

    /// Keeps what came out of an exchange. Nothing here may fail: the exchange is made.
    fn exchanged(
        &self,
        ready: &Ready<'_>,
        expected: &Seen,
        seen: Seen,
        complete: &[u8],
        beside: Option<FolderPath>,
    ) -> Placed {
        let (dir, key) = (&*ready.dir, ready.path.key());
        let out = stat_at(dir, complete);
        if out.as_ref().is_ok_and(|out| out.kind == SeenKind::Directory) {
            show_directory(dir, complete, dir, ready.path.name());
            return Placed::Done(Some(seen));
        }
        let (kept, now) = match (self.root.take_to_kept(dir, complete, key), beside) {
            (Ok(kept), _) => kept,
            (Err(_), Some(beside)) => (beside, stat_at(dir, complete)),
            (Err(error), None) => {
                tracing::error!(%error, "cannot move a replaced file away: it stays under a temporary name");
                return Placed::Done(Some(seen));
            }
        };
        match (out, now) {
            (Ok(out), Ok(now)) if out.is_same_file(expected) && now.is_same_file(expected) => {
                self.root.keep(Displaced { kept, key, seen: now });
                Placed::Done(Some(seen))
            }
            (_, Ok(now)) => {
                Placed::Displaced { seen: Some(seen), edit: Displaced { kept, key, seen: now } }
            }
            // Somebody removed it already.
            (_, Err(_)) => Placed::Done(Some(seen)),
        }
    }

    /// Moves what is at a path out of the way; puts it back if it is not the expected thing.
    fn remove(&self, ready: &Ready<'_>) -> Result<Placed, PlaceError> {
        let (dir, name, key) = (&*ready.dir, ready.path.name(), ready.path.key());
        let Some(expected) = ready.expected else { return Ok(Placed::Done(None)) };
        // A batch takes a while.
        if stat_name(dir, name)? != Some(expected) {
            return Err(PlaceError::Changed);
        }
        if expected.kind == SeenKind::Directory {
            remove_dir(dir, name)?;
            return Ok(Placed::Done(None));
        }
        let (kept, now) = match self.root.take_to_kept(dir, name, key) {
            Ok(kept) => kept,
            Err(error) if is_absence(&error) => return Err(PlaceError::Changed),
            // Another file system is mounted here, or the top of the folder cannot be written.
            Err(error) => {
                let stage = Stage::Away(self.root.next_count());
                let away = Temp { run: self.root.run, key, stage }.name();
                let Some(beside) = beside(ready.path, away.as_bytes()) else {
                    return Err(error.into());
                };
                renameat(dir, name, dir, &away).map_err(io::Error::from)?;
                (beside, stat_at(dir, away.as_bytes()))
            }
        };
        let now = match now {
            Ok(now) if !now.is_same_file(&expected) => now,
            Ok(now) => {
                self.root.keep(Displaced { kept, key, seen: now });
                return Ok(Placed::Done(None));
            }
            Err(_) => return Ok(Placed::Done(None)),
        };
        let from = self.root.open_parent(&kept)?;
        if rename_back(&from, kept.name(), dir, name).is_ok() {
            return Err(PlaceError::Changed);
        }
        // Another process took the name meanwhile, or the file cannot be renamed back safely: keep
        // both edits.
        if now.kind == SeenKind::Directory {
            show_directory(&from, kept.name(), dir, name);
            return Err(PlaceError::Changed);
        }
        Ok(Placed::Displaced { seen: None, edit: Displaced { kept, key, seen: now } })
    }

    fn set_aside(
        &mut self,
        from: &FolderPath,
        to: &FolderPath,
        expected: &Seen,
    ) -> Result<(), PlaceError> {
        let from_dir = self.parent(from, false)?;
        let to_dir = self.parent(to, true)?;
        if stat_name(&from_dir, from.name())?.as_ref() != Some(expected)
            || stat_name(&to_dir, to.name())?.is_some()
        {
            return Err(PlaceError::Changed);
        }
        Ok(rename_new(&from_dir, from.name(), &to_dir, to.name())?)
    }

    /// Removes directories that were created for changes which then failed.
    fn undo_parents(&self, any_failed: bool) {
        if any_failed {
            for dir in self.made.iter().rev() {
                let _ = self.root.remove_empty_directory(dir);
            }
        }
    }

    /// Makes the names durable.
    fn sync_directories(&self) -> io::Result<()> {
        if !self.sync_each {
            return self.sync_file_systems();
        }
        for dir in self.dirs.values() {
            rustix::fs::fsync(&**dir)?;
        }
        for made in &self.made {
            match self.root.open_parent(made) {
                Ok(dir) => rustix::fs::fsync(&dir)?,
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes back the file systems in which something changes.
    fn sync_file_systems(&self) -> io::Result<()> {
        let mut systems: BTreeMap<_, BorrowedFd<'_>> = BTreeMap::new();
        for dir in self.dirs.values() {
            systems.insert(rustix::fs::fstat(&**dir)?.st_dev, dir.as_fd());
        }
        systems.into_values().try_for_each(sync_file_system)
    }
}

impl Ready<'_> {
    /// Removes the temporary file.
    fn discard(&self) {
        if let ReadyWhat::Fresh(fresh) = &self.what {
            fresh.discard(&self.dir);
        }
    }
}

/// The path of another name in the directory of `path`; `None` if it is too long.
fn beside(path: &FolderPath, name: &[u8]) -> Option<FolderPath> {
    match path.parent() {
        Some(parent) => parent.join(name).ok(),
        None => FolderPath::from_bytes(name).ok(),
    }
}

fn remove_dir(dir: &OwnedFd, name: &[u8]) -> Result<(), PlaceError> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::EXIST) => Err(PlaceError::NotEmpty),
        other => Ok(other.map_err(io::Error::from)?),
    }
}

/// A copy of an error; `io::Error` has no `Clone`.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
