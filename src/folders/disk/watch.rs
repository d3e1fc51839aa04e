//! Hints about changes in a bound directory, from the operating system. A hint says where to look, not
//! what happened; the truth is a scan.
//!
//! W1  The queue of hints is bounded. When it is full, what it holds is replaced by one
//!     [`Hint::Overflow`].
//! W2  On Linux each directory is watched by itself, and a scan watches it before listing it. So no
//!     change falls between the list and the watch, ignored directories take no watch, and no link is
//!     followed.
//! W3  A directory that cannot be watched is reported once for each reason.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{
    Config, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::names::{MARKER, OWN};
use super::root::Root;
use crate::core::folder::path::FolderPath;

/// The most hints that wait. See W1.
pub const HINTS_MAX: usize = 8192;

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Something happened to a path.
    Path {
        /// The path.
        path: FolderPath,
        /// A program closed the file after writing, or renamed it to this name: it is complete.
        is_final: bool,
    },
    /// A directory appeared: scan below it, with the watch.
    Below(FolderPath),
    /// Hints were lost, or the directory itself changed: check it and scan everything.
    Overflow,
    /// The directory is not watched, or not all of it: scan each minute. In words for people.
    Failed(String),
}

/// Watches directories. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    watcher: Mutex<RecommendedWatcher>,
    root: PathBuf,
    queue: Queue,
    /// No more watches can be had.
    is_exhausted: AtomicBool,
    told_too_long: AtomicBool,
    told_other: AtomicBool,
}

/// The hints of a [`Watch`].
#[derive(Debug)]
pub struct Hints {
    waiting: mpsc::Receiver<Hint>,
    has_overflowed: Arc<AtomicBool>,
}

/// The sending end of the hints.
#[derive(Debug, Clone)]
struct Queue {
    hints: mpsc::Sender<Hint>,
    has_overflowed: Arc<AtomicBool>,
}

impl Watch {
    /// Starts to watch nothing yet: [`Root::scan`] adds the directories.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn start(root: &Root) -> io::Result<(Self, Hints)> {
        let (hints, waiting) = mpsc::channel(HINTS_MAX);
        let has_overflowed = Arc::new(AtomicBool::new(false));
        let queue = Queue { hints, has_overflowed: Arc::clone(&has_overflowed) };
        let (sink, top) = (queue.clone(), root.path().to_owned());
        let handle = move |event: notify::Result<Event>| sink.take(&top, event);
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(handle, config).map_err(|error| {
            let text = format!("cannot watch {}: {}", root.path().display(), reason(&error));
            io::Error::other(text)
        })?;
        let watch = Self {
            watcher: Mutex::new(watcher),
            root: root.path().to_owned(),
            queue,
            is_exhausted: AtomicBool::new(false),
            told_too_long: AtomicBool::new(false),
            told_other: AtomicBool::new(false),
        };
        Ok((watch, Hints { waiting, has_overflowed }))
    }

    /// Watches a directory of the folder. See W2.
    pub(super) fn add(&self, dir: Option<&FolderPath>) {
        let mode = if cfg!(target_os = "linux") {
            RecursiveMode::NonRecursive
        } else if dir.is_none() {
            RecursiveMode::Recursive
        } else {
            return;
        };
        if self.is_exhausted.load(Ordering::Relaxed) {
            return;
        }
        let path = match dir {
            Some(dir) => self.root.join(OsStr::from_bytes(dir.as_bytes())),
            None => self.root.clone(),
        };
        let Err(error) = self.watcher.lock().watch(&path, mode) else { return };
        let told = match &error.kind {
            // The directory was removed meanwhile.
            ErrorKind::PathNotFound => return,
            ErrorKind::MaxFilesWatch => &self.is_exhausted,
            ErrorKind::Io(error) if error.kind() == io::ErrorKind::NotFound => return,
            ErrorKind::Io(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                &self.told_too_long
            }
            _ => &self.told_other,
        };
        if !told.swap(true, Ordering::Relaxed) {
            self.queue.push(Hint::Failed(format!(
                "{} is not watched as a whole: {}; it is scanned each minute instead",
                self.root.display(),
                reason(&error)
            )));
        }
    }
}

impl Hints {
    /// The next hint; `None` after the watch was dropped.
    pub async fn next(&mut self) -> Option<Hint> {
        if self.has_overflowed.swap(false, Ordering::AcqRel) {
            while self.waiting.try_recv().is_ok() {}
            return Some(Hint::Overflow);
        }
        self.waiting.recv().await
    }
}

impl Queue {
    fn push(&self, hint: Hint) {
        if self.hints.try_send(hint).is_err() {
            self.has_overflowed.store(true, Ordering::Release);
        }
    }

    /// Turns an event into hints.
    fn take(&self, top: &Path, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.push(Hint::Failed(reason(&error))),
        };
        if event.need_rescan() {
            return self.push(Hint::Overflow);
        }
        let Some((is_final, may_be_directory)) = meaning(event.kind) else { return };
        for path in &event.paths {
            let Ok(below) = path.strip_prefix(top) else { continue };
            let bytes = below.as_os_str().as_bytes();
            if bytes.is_empty() || bytes == MARKER.as_bytes() {
                self.push(Hint::Overflow);
                continue;
            }
            if bytes.split(|byte| *byte == b'/').any(|name| name.starts_with(OWN)) {
                continue;
            }
            let Ok(hinted) = FolderPath::from_bytes(bytes) else { continue };
            let is_directory =
                may_be_directory && path.symlink_metadata().is_ok_and(|found| found.is_dir());
            self.push(match is_directory {
                true => Hint::Below(hinted),
                false => Hint::Path { path: hinted, is_final },
            });
        }
    }
}

/// Whether an event says that a file is complete, and whether it may be about a directory that
/// appeared; `None` if nothing changed, or another event says the same.
fn meaning(kind: EventKind) -> Option<(bool, bool)> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some((true, false)),
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => None,
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some((false, false)),
        EventKind::Modify(ModifyKind::Name(_)) => Some((true, true)),
        EventKind::Create(CreateKind::File) => Some((false, false)),
        EventKind::Create(_) | EventKind::Any | EventKind::Other => Some((false, true)),
        EventKind::Modify(_) | EventKind::Remove(_) => Some((false, false)),
    }
}

/// Why something is not watched, and what to do about it.
fn reason(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => "the user's inotify watches are used up; raise \
             fs.inotify.max_user_watches (sysctl -w fs.inotify.max_user_watches=1048576)"
            .into(),
        ErrorKind::Io(error)
            if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            "the user's inotify instances are used up; raise fs.inotify.max_user_instances \
             (sysctl -w fs.inotify.max_user_instances=1024)"
                .into()
        }
        _ => error.to_string(),
    }
}
