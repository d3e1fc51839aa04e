//! What `add` finds: files, and folders with all that is in them, cut into [`Unit`]s.
//!
//! W1  Symbolic links inside folders are not followed, and nothing but regular files is read there.
//! W2  The agent's own folders (its key is there) are never added.
//! W3  Everything comes in the order of the arguments, folders sorted by name.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use walkdir::{DirEntryExt as _, WalkDir};

use crate::api::ingest::INGEST_ASSETS_MAX;
use crate::state::home::Home;
use crate::store::SMALL_BYTES_MAX;

/// A batch is sent when it holds this many bytes; below the API's bound by one small file at least.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// What is uploaded with one request.
pub(crate) enum Unit {
    /// Files that were small when they were seen.
    Small(Vec<PathBuf>),
    /// A file to stream.
    Large(PathBuf),
    Stdin,
    /// Something that was to be added and cannot be.
    Unreadable(PathBuf, anyhow::Error),
    /// Something in a folder that is left out on purpose.
    Skipped(PathBuf, &'static str),
}

/// The folders that hold the agent's key and store.
pub(crate) struct OwnFolders(Vec<(u64, u64, PathBuf)>);

impl OwnFolders {
    pub(crate) fn of(home: &Home) -> Self {
        let folders = [home.key_path(), home.store_dir()];
        let identify = |inside: PathBuf| {
            let folder = inside.parent()?.canonicalize().ok()?;
            let found = folder.metadata().ok()?;
            Some((found.dev(), found.ino(), folder))
        };
        Self(folders.into_iter().filter_map(identify).collect())
    }

    /// Whether this entry of a folder is one of them.
    fn are(&self, entry: &walkdir::DirEntry) -> bool {
        entry.file_type().is_dir()
            && self.0.iter().any(|(dev, ino, _)| {
                // The inode comes with the listing; the device takes a call.
                entry.ino() == *ino && entry.metadata().is_ok_and(|found| found.dev() == *dev)
            })
    }

    /// Whether this path is in one of them.
    fn contain(&self, path: &Path) -> bool {
        let real = path.canonicalize();
        real.is_ok_and(|real| self.0.iter().any(|(.., folder)| real.starts_with(folder)))
    }
}

/// Adds up the bytes to come, for the bar; ends early when the bar does.
pub(crate) fn count_bytes(paths: &[PathBuf], progress: &ProgressBar) {
    for path in paths.iter().filter(|path| path.as_os_str() != "-") {
        for entry in WalkDir::new(path).into_iter().filter_map(Result::ok) {
            if progress.is_finished() {
                return;
            }
            if entry.file_type().is_file() {
                progress.inc_length(entry.metadata().map_or(0, |found| found.len()));
            }
        }
    }
}

/// Cuts what is under `paths` into units. Returns early when nobody takes them any more.
pub(crate) fn walk(paths: &[PathBuf], own_folders: &OwnFolders, units: &mpsc::Sender<Unit>) {
    let mut walk = Walk { batch: Vec::new(), batch_bytes: 0, units };
    for path in paths {
        if walk.path(path, own_folders).is_err() {
            return;
        }
    }
    // The receiver being gone means that nothing more is wanted.
    let _ = walk.flush();
}

struct Walk<'a> {
    batch: Vec<PathBuf>,
    batch_bytes: u64,
    units: &'a mpsc::Sender<Unit>,
}

/// Nobody takes units any more.
struct Unwanted;

impl Walk<'_> {
    fn path(&mut self, path: &Path, own_folders: &OwnFolders) -> Result<(), Unwanted> {
        if path.as_os_str() == "-" {
            return self.send(Unit::Stdin);
        }
        if own_folders.contain(path) {
            let error = anyhow!("the agent's own folder is never added");
            return self.send(Unit::Unreadable(path.to_owned(), error));
        }
        let found = match path.metadata() {
            Ok(found) => found,
            Err(error) => return self.send(Unit::Unreadable(path.to_owned(), error.into())),
        };
        if found.is_dir() {
            return self.folder(path, own_folders);
        }
        if found.is_file() {
            return self.file(path.to_owned(), found.len());
        }
        // A pipe or device that is named outright is meant.
        self.send(Unit::Large(path.to_owned()))
    }

    fn folder(&mut self, folder: &Path, own_folders: &OwnFolders) -> Result<(), Unwanted> {
        let mut entries = WalkDir::new(folder).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    self.send(Unit::Unreadable(path, error.into()))?;
                    continue;
                }
            };
            let kind = entry.file_type();
            if own_folders.are(&entry) {
                entries.skip_current_dir();
                self.skip(entry.into_path(), "the agent's own folder")?;
            } else if kind.is_file() {
                match entry.metadata() {
                    Ok(found) => self.file(entry.into_path(), found.len())?,
                    Err(error) => self.send(Unit::Unreadable(entry.into_path(), error.into()))?,
                }
            } else if kind.is_symlink() {
                self.skip(entry.into_path(), "a symbolic link")?;
            } else if !kind.is_dir() {
                self.skip(entry.into_path(), "no regular file")?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, size_bytes: u64) -> Result<(), Unwanted> {
        if size_bytes > SMALL_BYTES_MAX {
            return self.send(Unit::Large(path));
        }
        self.batch.push(path);
        self.batch_bytes += size_bytes;
        if self.batch.len() >= INGEST_ASSETS_MAX || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn skip(&mut self, path: PathBuf, why: &'static str) -> Result<(), Unwanted> {
        self.send(Unit::Skipped(path, why))
    }

    /// Sends `unit` after what was found before it.
    fn send(&mut self, unit: Unit) -> Result<(), Unwanted> {
        self.flush()?;
        self.units.blocking_send(unit).map_err(|_| Unwanted)
    }

    fn flush(&mut self) -> Result<(), Unwanted> {
        self.batch_bytes = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.units.blocking_send(Unit::Small(batch)).map_err(|_| Unwanted)
    }
}
