//! Keeps what was replaced or removed until nobody writes to it any more.
//!
//! A program that opened a file before it was replaced may go on writing to the old file. So the old
//! file is kept in `.can-sync-kept` for a while, and checked for changes.
//!
//! K1  Kept content is removed only when it is accounted for: it is the expected content, or the
//!     caller released it. And only after it had the same stat for [`KEPT_MS`]; less if more than
//!     [`KEPT_MAX`] files are kept.
//! K2  It is kept for as long as a process has it open for writing, as far as the operating system
//!     tells: on Linux, and of processes of the same user.
//! K3  What changed while it was kept is an edit and is returned, when it has been quiet for
//!     [`QUIET_MS`].
//! K4  What is kept when the agent ends is reported by the first scan of the next run
//!     ([`Scanned::Leftover`]).
//!
//! Writes are lost in one case only: a process opened the file before it was replaced, did not write
//! for ten seconds and then writes again; and the process belongs to another user, or it has closed
//! the file and writes through a memory map.
//!
//! [`Scanned::Leftover`]: super::Scanned::Leftover

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use parking_lot::MutexGuard;
use rustix::fs::{AtFlags, Mode, mkdirat, renameat, unlinkat};
use rustix::io::Errno;

use super::names::{KEPT, kept_name};
use super::root::{Root, open_child, stat_at};
use super::seen::Seen;
use crate::core::folder::path::{FolderPath, PathKey};

/// How long replaced content is kept without a change.
pub const KEPT_MS: u64 = 10_000;

/// How long changed content must stay the same before it is returned as an edit.
pub const QUIET_MS: u64 = 1_000;

/// The most files that are kept. Beyond that number the oldest is removed early, if it is known to
/// hold no edit (K1).
pub const KEPT_MAX: usize = 4096;

/// Content that was at a path and is not any more: a file or a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displaced {
    /// Where it is now. It is read like any path of the folder, and is never synchronised.
    pub kept: FolderPath,
    /// The key of the path that it was at.
    pub key: PathKey,
    /// The stat of the kept file now.
    pub seen: Seen,
}

/// The kept contents of a directory.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    entries: VecDeque<Entry>,
    count: u64,
}

#[derive(Debug)]
struct Entry {
    displaced: Displaced,
    /// Since when its stat is the same, by the clock of [`Root::settle`].
    quiet_since_ms: Option<u64>,
    /// Whether the kept file changed after it was known to hold no edit (K1).
    is_edit: bool,
}

impl Root {
    /// Removes kept content as K1 and K2 say, and returns the edits among it (K3): each was at the
    /// path with its key, and is to be read and then released. Call it every second or so; `now_ms`
    /// is of a monotonic clock.
    pub fn settle(&self, now_ms: u64) -> Vec<Displaced> {
        let entries = std::mem::take(&mut self.keeping().entries);
        let (mut edits, mut due, mut later) = (Vec::new(), Vec::new(), VecDeque::new());
        for mut entry in entries {
            match self.stat(&entry.displaced.kept) {
                Ok(Some(now)) if now == entry.displaced.seen => {}
                Ok(Some(now)) => {
                    entry.displaced.seen = now;
                    entry.is_edit = true;
                    entry.quiet_since_ms = Some(now_ms);
                }
                // Somebody removed it.
                Ok(None) => continue,
                Err(_) => {
                    later.push_back(entry);
                    continue;
                }
            }
            let quiet_ms = now_ms.saturating_sub(*entry.quiet_since_ms.get_or_insert(now_ms));
            if entry.is_edit && quiet_ms >= QUIET_MS {
                edits.push(entry.displaced);
            } else if !entry.is_edit && quiet_ms >= KEPT_MS {
                due.push(entry);
            } else {
                later.push_back(entry);
            }
        }
        let names = due.iter().map(|entry| entry.displaced.kept.name().to_vec()).collect();
        let busy = open_for_writing(&names);
        for mut entry in due {
            let is_busy = busy.contains(entry.displaced.kept.name());
            if is_busy || !self.remove_kept(&entry.displaced) {
                entry.quiet_since_ms = Some(now_ms);
                later.push_back(entry);
            }
        }
        let mut keeping = self.keeping();
        later.append(&mut keeping.entries);
        keeping.entries = later;
        edits
    }

    /// Whether anything is kept.
    pub fn keeps(&self) -> bool {
        !self.keeping().entries.is_empty()
    }

    /// Says that the content that `displaced` had when it was seen is safe elsewhere, or not wanted:
    /// it may be removed when it is quiet. If it changes before that, [`Root::settle`] returns it
    /// once more.
    pub fn release(&self, displaced: Displaced) {
        self.keep(displaced);
    }

    /// Keeps content that is accounted for.
    pub(super) fn keep(&self, displaced: Displaced) {
        let mut keeping = self.keeping();
        let oldest =
            (keeping.entries.len() >= KEPT_MAX).then(|| keeping.entries.pop_front()).flatten();
        keeping.entries.push_back(Entry { displaced, quiet_since_ms: None, is_edit: false });
        drop(keeping);
        if let Some(oldest) = oldest
            && (oldest.is_edit || !self.remove_kept(&oldest.displaced))
        {
            self.keeping().entries.push_back(oldest);
        }
    }

    /// Keeps an edit that could not be returned to the caller.
    pub(super) fn keep_edit(&self, displaced: Displaced) {
        let entry = Entry { displaced, quiet_since_ms: None, is_edit: true };
        self.keeping().entries.push_back(entry);
    }

    /// Moves what has the name `from` in `dir` to the kept content.
    pub(super) fn take_to_kept(
        &self,
        dir: &OwnedFd,
        from: &[u8],
        key: PathKey,
    ) -> io::Result<(FolderPath, io::Result<Seen>)> {
        let kept = self.open_kept()?;
        let name = kept_name(self.run, key, self.next_count());
        let path = FolderPath::from_bytes(format!("{KEPT}/{name}").as_bytes());
        let path = path.map_err(io::Error::other)?;
        renameat(dir, from, &kept, &name)?;
        Ok((path, stat_at(&kept, name.as_bytes())))
    }

    /// A number that no other kept file of this run has.
    pub(super) fn next_count(&self) -> u64 {
        let mut keeping = self.keeping();
        keeping.count += 1;
        keeping.count
    }

    pub(super) fn open_kept(&self) -> io::Result<OwnedFd> {
        match open_child(self.top(), KEPT.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        match mkdirat(self.top(), KEPT, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => open_child(self.top(), KEPT.as_bytes()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes kept content that is still as it was seen. Returns whether it is gone.
    fn remove_kept(&self, displaced: &Displaced) -> bool {
        let Ok(dir) = self.open_parent(&displaced.kept) else { return false };
        let name = displaced.kept.name();
        match stat_at(&dir, name) {
            Ok(now) if now == displaced.seen => unlinkat(&dir, name, AtFlags::empty()).is_ok(),
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn keeping(&self) -> MutexGuard<'_, Keeping> {
        self.keeping.lock()
    }
}

/// Those of these file names under which a process has a file open for writing.
#[cfg(target_os = "linux")]
fn open_for_writing(names: &BTreeSet<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    use std::fs::read_dir;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt as _;

    let mut busy = BTreeSet::new();
    if names.is_empty() {
        return busy;
    }
    let processes = read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|dir| dir.file_name().as_bytes()[0].is_ascii_digit()) {
        let files = read_dir(process.path().join("fd"));
        for file in files.into_iter().flatten().flatten() {
            // The kernel shows the name that a file has now.
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            let Some(name) = target.file_name().map(OsStrExt::as_bytes) else { continue };
            if names.contains(name)
                && file.metadata().is_ok_and(|metadata| metadata.mode() & 0o200 != 0)
            {
                busy.insert(name.to_vec());
            }
        }
    }
    busy
}

#[cfg(not(target_os = "linux"))]
fn open_for_writing(_: &BTreeSet<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    BTreeSet::new()
}
