//! A bound directory, held open, and the safe way to a path in it.
//!
//! D1  A path is resolved below the open directory and never through a symbolic link: by `openat2`
//!     (RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS), or component by component with O_NOFOLLOW where the
//!     kernel lacks it or the path is too long for one call.
//! D2  A directory that is not there, or that is another one than before, is an error
//!     ([`Root::check`]), never an empty directory. What a stat does not find counts as removed only
//!     if a check after it succeeds.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use thiserror::Error;

use super::keep::Keeping;
use super::names::{MARKER, Stage, Temp};
use super::seen::{Seen, SeenKind};
use crate::core::folder::path::{FolderPath, PathKey};
use crate::core::ids::{FolderId, NodeId};

/// The longest marker that is read: an id and a few lines for people.
const MARKER_BYTES_MAX: u64 = 4096;

/// How often `openat2` is called again when renames elsewhere disturb it.
#[cfg(target_os = "linux")]
const TRIES_MAX: u32 = 16;

/// Reads a directory.
const READ_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(LOOK);

/// What every open here has: no link is followed, no FIFO is waited for.
const LOOK: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The word before the device in a marker.
const MARKER_DEVICE: &str = "device ";

/// What the marker of a directory says: which folder the directory is bound to, by which device. Two
/// devices that kept one directory in step would take each other's work for edits by the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The folder.
    pub folder: FolderId,
    /// The device.
    pub device: NodeId,
}

/// Why a directory cannot be used as a bound one.
#[derive(Debug, Error)]
pub enum RootError {
    /// Nothing is there, or a directory above it is missing.
    #[error("{0} is not there: its disk is not mounted, or it was moved or removed")]
    Missing(PathBuf),
    /// The marker is missing.
    #[error("{0} has no {MARKER}: it is not the directory that was bound")]
    Unmarked(PathBuf),
    /// The directory is bound to another folder.
    #[error("{dir} is bound to the folder {found}")]
    OtherFolder {
        /// The directory.
        dir: PathBuf,
        /// The folder named in its marker.
        found: FolderId,
    },
    /// Another device has bound it.
    #[error("{dir} is also bound by the device {}", .device.short())]
    OtherDevice {
        /// The directory.
        dir: PathBuf,
        /// The device named in its marker.
        device: NodeId,
    },
    /// Another directory took its place since it was opened.
    #[error("another directory is at {0} now")]
    Replaced(PathBuf),
    /// A file, or a link to nowhere.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// The operating system refuses.
    #[error("cannot {doing} {dir}: {error}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The directory.
        dir: PathBuf,
        /// The answer.
        error: io::Error,
    },
}

/// A bound directory, held open.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
    /// `None` while it is only looked at.
    mark: Option<Mark>,
    /// Device and inode.
    identity: (u64, u64),
    /// Tells the temporary files of this run from those of earlier ones.
    pub(super) run: u64,
    has_openat2: AtomicBool,
    pub(super) keeping: Mutex<Keeping>,
    /// See `traits.rs`.
    pub(super) fine_times: OnceLock<bool>,
}

impl Root {
    /// Opens the directory at `dir`, which must be marked.
    ///
    /// # Errors
    /// It is not there, not marked like that, or cannot be read.
    pub fn open(dir: &Path, mark: Mark) -> Result<Self, RootError> {
        let root = Self::open_as(dir, Some(mark))?;
        root.check_marker()?;
        Ok(root)
    }

    /// Opens the directory at `dir` to look at it before it is bound: no marker is needed.
    ///
    /// # Errors
    /// The directory does not exist or cannot be read.
    pub fn open_unmarked(dir: &Path) -> Result<Self, RootError> {
        Self::open_as(dir, None)
    }

    fn open_as(dir: &Path, mark: Option<Mark>) -> Result<Self, RootError> {
        let fd = open_top(dir)?;
        let identity = identity(&fd).map_err(|error| failed("look at", dir, error))?;
        Ok(Self {
            dir: fd,
            path: dir.to_owned(),
            mark,
            identity,
            run: rand::random(),
            has_openat2: AtomicBool::new(true),
            keeping: Mutex::default(),
            fine_times: OnceLock::new(),
        })
    }

    /// Marks the directory at `dir`, durably. A directory that is marked like that already stays as it
    /// is.
    ///
    /// # Errors
    /// It is marked for another folder or by another device, is no directory, or cannot be written.
    pub fn mark(dir: &Path, mark: Mark) -> Result<(), RootError> {
        let fd = open_top(dir)?;
        if let Some(found) = read_marker(&fd, dir)? {
            found.agrees(dir, mark)?;
            if found.device.is_some() {
                return Ok(());
            }
        }
        let key = PathKey([0; 16]);
        let temp = Temp { run: rand::random(), key, stage: Stage::New }.name();
        let text = format!(
            "{}\n{MARKER_DEVICE}{}\n\n\
             can-sync on this device keeps this directory in step with the shared folder of this id.\n\
             Without this file it stops doing so: it takes the directory for another one.\n",
            mark.folder, mark.device
        );
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | LOOK;
            let mut file = File::from(openat(&fd, &temp, flags, Mode::from_raw_mode(0o644))?);
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            renameat(&fd, &temp, &fd, MARKER)?;
            Ok(rustix::fs::fsync(&fd)?)
        };
        write().map_err(|error| failed("mark", dir, error))
    }

    /// Removes the marker of the directory at `dir` if it is this one. Returns whether it did.
    ///
    /// # Errors
    /// The directory is not there, or cannot be written.
    pub fn unmark(dir: &Path, mark: Mark) -> Result<bool, RootError> {
        let fd = open_top(dir)?;
        match read_marker(&fd, dir)? {
            Some(found) if found.agrees(dir, mark).is_ok() => {}
            _ => return Ok(false),
        }
        let remove = || -> io::Result<()> {
            unlinkat(&fd, MARKER, AtFlags::empty())?;
            Ok(rustix::fs::fsync(&fd)?)
        };
        remove().map(|()| true).map_err(|error| failed("remove the marker of", dir, error))
    }

    /// The path that it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Proves that the directory is still at its path and still marked.
    ///
    /// # Errors
    /// The directory was replaced, or cannot be checked.
    pub fn check(&self) -> Result<(), RootError> {
        let now = open_top(&self.path)?;
        let identity = identity(&now).map_err(|error| failed("look at", &self.path, error))?;
        if identity != self.identity {
            return Err(RootError::Replaced(self.path.clone()));
        }
        self.check_marker()
    }

    fn check_marker(&self) -> Result<(), RootError> {
        let Some(mark) = self.mark else { return Ok(()) };
        match read_marker(&self.dir, &self.path)? {
            Some(found) => found.agrees(&self.path, mark),
            None => Err(RootError::Unmarked(self.path.clone())),
        }
    }

    /// What is at a path; `None` when nothing is there, or when the way to it is no directory. See
    /// D2.
    ///
    /// # Errors
    /// The way to it cannot be looked at.
    pub fn stat(&self, path: &FolderPath) -> io::Result<Option<Seen>> {
        let seen = self.open_parent(path).and_then(|dir| stat_at(&dir, path.name()));
        match seen {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a regular file for reading. Its content may change while it is read: [`Root::open_stable`].
    ///
    /// # Errors
    /// It is not there, is no regular file, or cannot be read.
    pub fn open_file(&self, path: &FolderPath) -> io::Result<File> {
        let dir = self.open_parent(path)?;
        // Opening a device can have effects, so the kind is looked at before.
        if stat_at(&dir, path.name())?.kind != SeenKind::File {
            return Err(Errno::INVAL.into());
        }
        let file = openat(&dir, path.name(), OFlags::RDONLY | LOOK, Mode::empty())?;
        if Seen::from(rustix::fs::fstat(&file)?).kind != SeenKind::File {
            return Err(Errno::INVAL.into());
        }
        Ok(File::from(file))
    }

    /// The target of a symbolic link, which is not followed.
    ///
    /// # Errors
    /// There is no symbolic link at the path.
    pub fn read_link(&self, path: &FolderPath) -> io::Result<Vec<u8>> {
        let dir = self.open_parent(path)?;
        Ok(rustix::fs::readlinkat(&dir, path.name(), Vec::new())?.into_bytes())
    }

    /// Removes the directories above a path that are empty, innermost first.
    pub fn remove_empty_parents(&self, path: &FolderPath) {
        let mut above = path.parent();
        while let Some(dir) = above {
            if !self.remove_empty_directory(&dir).unwrap_or(false) {
                return;
            }
            above = dir.parent();
        }
    }

    /// Whether there is a directory with nothing in it. Ignored files count.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_empty_directory(&self, path: &FolderPath) -> io::Result<bool> {
        let dir = match self.open_dir(Some(path)) {
            Ok(dir) => dir,
            Err(error) if is_absence(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in Dir::read_from(&dir)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes a directory if nothing is in it. Returns whether it did.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn remove_empty_directory(&self, path: &FolderPath) -> io::Result<bool> {
        let removed = self
            .open_parent(path)
            .and_then(|dir| Ok(unlinkat(&dir, path.name(), AtFlags::REMOVEDIR)?));
        match removed {
            Ok(()) => Ok(true),
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// The directory itself.
    pub(super) fn top(&self) -> &OwnedFd {
        &self.dir
    }

    /// Opens the directory that a path is in.
    pub(super) fn open_parent(&self, path: &FolderPath) -> io::Result<OwnedFd> {
        self.open_dir(path.parent().as_ref())
    }

    /// Opens a directory for reading; `None` is the top. See D1.
    pub(super) fn open_dir(&self, path: Option<&FolderPath>) -> io::Result<OwnedFd> {
        let Some(path) = path else {
            return Ok(openat(&self.dir, ".", READ_DIR, Mode::empty())?);
        };
        if self.has_openat2.load(Ordering::Relaxed) {
            match open_beneath(&self.dir, path.as_bytes()) {
                Err(Errno::NOSYS | Errno::PERM) => self.has_openat2.store(false, Ordering::Relaxed),
                Err(Errno::NAMETOOLONG | Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        self.open_stepwise(path)
    }

    /// Opens a directory component by component.
    fn open_stepwise(&self, path: &FolderPath) -> io::Result<OwnedFd> {
        let mut components = path.components();
        let first = components.next().unwrap_or_default();
        let mut dir = open_child(&self.dir, first)?;
        for component in components {
            dir = open_child(&dir, component)?;
        }
        Ok(dir)
    }
}

/// Opens a directory in another one.
pub(super) fn open_child(dir: &impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, READ_DIR, Mode::empty())?)
}

/// The stat of a name in a directory now. The kernel's cache is passed over: network and user-space
/// file systems have to answer anew.
#[cfg(target_os = "linux")]
pub(super) fn stat_at(dir: &impl AsFd, name: &[u8]) -> io::Result<Seen> {
    use rustix::fs::{StatxFlags, statx};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    match statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Ok(stat) => Ok(Seen::from(stat)),
        // A sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => remembered_stat_at(dir, name),
        Err(error) => Err(error.into()),
    }
}

/// The stat of a name in a directory now.
#[cfg(not(target_os = "linux"))]
pub(super) fn stat_at(dir: &impl AsFd, name: &[u8]) -> io::Result<Seen> {
    remembered_stat_at(dir, name)
}

/// What is in a directory under a name, perhaps as it was some seconds ago on a network file system.
/// For scans, which look at very many.
pub(super) fn remembered_stat_at(dir: &impl AsFd, name: &[u8]) -> io::Result<Seen> {
    Ok(Seen::from(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// The stat of an open file.
pub(super) fn stat_file(file: &impl AsFd) -> io::Result<Seen> {
    Ok(Seen::from(rustix::fs::fstat(file)?))
}

/// Whether an error means that nothing is at a path: the way to it is missing, or is no directory.
pub(super) fn is_absence(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)
    )
}

#[cfg(target_os = "linux")]
fn open_beneath(dir: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(dir, path, READ_DIR, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_: &OwnedFd, _: &[u8]) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOSYS)
}

/// Opens the directory to bind. Links on the way to it are the choice of whoever named it.
fn open_top(dir: &Path) -> Result<OwnedFd, RootError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, dir, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => RootError::Missing(dir.to_owned()),
        Errno::NOTDIR | Errno::LOOP => RootError::NotADirectory(dir.to_owned()),
        other => failed("open", dir, other.into()),
    })
}

/// A marker as it was read. Earlier ones name no device.
struct FoundMark {
    folder: FolderId,
    device: Option<NodeId>,
}

impl FoundMark {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let folder = lines.next()?.parse().ok()?;
        let device = lines.find_map(|line| line.strip_prefix(MARKER_DEVICE));
        Some(Self { folder, device: device.and_then(|device| device.parse().ok()) })
    }

    fn agrees(&self, dir: &Path, mark: Mark) -> Result<(), RootError> {
        let dir = dir.to_owned();
        match self.device {
            _ if self.folder != mark.folder => {
                Err(RootError::OtherFolder { dir, found: self.folder })
            }
            Some(device) if device != mark.device => Err(RootError::OtherDevice { dir, device }),
            _ => Ok(()),
        }
    }
}

/// What the marker of a directory says.
fn read_marker(fd: &OwnedFd, dir: &Path) -> Result<Option<FoundMark>, RootError> {
    let read = || -> io::Result<String> {
        let file = File::from(openat(fd, MARKER, OFlags::RDONLY | LOOK, Mode::empty())?);
        let mut text = String::new();
        file.take(MARKER_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let unmarked = || RootError::Unmarked(dir.to_owned());
    match read() {
        Ok(text) => FoundMark::parse(&text).map(Some).ok_or_else(unmarked),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(unmarked()),
        Err(error) => Err(failed("read the marker of", dir, error)),
    }
}

#[allow(clippy::unnecessary_cast)]
fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

fn failed(doing: &'static str, dir: &Path, error: io::Error) -> RootError {
    RootError::Io { doing, dir: dir.to_owned(), error }
}
