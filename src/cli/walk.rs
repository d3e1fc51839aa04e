//! What `add` finds: files, and folders with all that is in them, cut into [`Unit`]s.
//!
//! W1  Symbolic links inside folders are not followed, and nothing but regular files is read there.
//! W2  No folder of a home is entered, and no path into one is taken: not of this agent's home, nor of
//!     another agent's, nor of a copy. Secret keys are there.
//! W3  Everything comes in the order of the arguments, folders sorted by name.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use walkdir::WalkDir;

use super::source::ReadError;
use crate::api::ingest::INGEST_ASSETS_MAX;
use crate::state::home::{Home, is_home};
use crate::store::SMALL_BYTES_MAX;

/// A batch is sent when it holds this many bytes; below the API's bound by one small file at least.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// Opening a named pipe waits until a program writes into it, perhaps for ever.
const NAMED_PIPE: &str = "a named pipe: to add what comes out of it, run `can-sync add - < PIPE`";

/// A file that is to be added.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// The file's folder, starting with the folder that was named: `pictures/2024`. Empty for a file that
    /// was named itself.
    pub(crate) folder: String,
}

/// The files of one upload request.
pub(crate) enum Unit {
    /// Files that were small when they were seen.
    Small(Vec<Found>),
    /// A file to stream.
    Large(Found),
    Stdin,
    /// A path that should be added but cannot be read.
    Unreadable(PathBuf, anyhow::Error),
    /// A path in a folder that is left out on purpose.
    Skipped(PathBuf, &'static str),
}

/// What must not be added: the files and folders of homes.
#[derive(Default)]
pub(crate) struct Homes {
    /// The real paths of this agent's folders.
    folders: Vec<PathBuf>,
    /// Device and inode of these folders and of what is directly in them.
    own: BTreeSet<(u64, u64)>,
}

impl Homes {
    pub(crate) fn of(home: &Home) -> Self {
        let inside = [home.key_path(), home.store_dir()];
        let folders = inside.iter().filter_map(|path| path.parent()?.canonicalize().ok());
        let mut homes = Self { folders: folders.collect(), own: BTreeSet::new() };
        for folder in homes.folders.iter().chain([&home.store_dir(), &home.partials_dir()]) {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let paths = entries.map(|entry| entry.path()).chain([folder.clone()]);
            let found = paths.filter_map(|path| path.symlink_metadata().ok());
            homes.own.extend(found.map(|found| (found.dev(), found.ino())));
        }
        homes
    }

    /// Whether this file or folder belongs to this agent's home, whatever its path.
    pub(crate) fn own(&self, found: &Metadata) -> bool {
        self.own.contains(&(found.dev(), found.ino()))
    }

    /// Whether this folder, found by the walk, is part of a home. A listing gives the inode below a
    /// mount point, so the folder itself is examined.
    fn include(&self, entry: &walkdir::DirEntry) -> bool {
        entry.file_type().is_dir()
            && (entry.metadata().is_ok_and(|found| self.own(&found)) || is_home(entry.path()))
    }

    /// Whether this path leads into a home.
    fn contain(&self, path: &Path) -> bool {
        path.canonicalize().is_ok_and(|real| {
            self.folders.iter().any(|folder| real.starts_with(folder))
                || real.ancestors().any(is_home)
        })
    }
}

/// Adds up the bytes to upload, for the progress bar. Ends early when the bar is finished.
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
pub(crate) fn walk(paths: &[PathBuf], homes: &Homes, units: &mpsc::Sender<Unit>) {
    let mut walk = Walk { homes, batch: Vec::new(), batch_bytes: 0, units };
    for path in paths {
        if walk.path(path).is_err() {
            return;
        }
    }
    // A dropped receiver wants no more units.
    let _ = walk.flush();
}

impl Found {
    fn named(path: &Path) -> Self {
        Self { path: path.to_owned(), folder: String::new() }
    }

    /// A file below the folder `top`. `.` and `/` have no name, so their part of the path is left
    /// out.
    fn below(top: &Path, path: PathBuf) -> Self {
        let inside = path.parent().and_then(|parent| parent.strip_prefix(top).ok());
        let parts = top.file_name().into_iter().chain(inside.into_iter().flat_map(Path::iter));
        let parts: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
        Self { folder: parts.join("/"), path }
    }
}

struct Walk<'a> {
    homes: &'a Homes,
    batch: Vec<Found>,
    batch_bytes: u64,
    units: &'a mpsc::Sender<Unit>,
}

/// Nobody takes units any more.
struct Unwanted;

impl Walk<'_> {
    fn path(&mut self, path: &Path) -> Result<(), Unwanted> {
        if path.as_os_str() == "-" {
            return self.send(Unit::Stdin);
        }
        if self.homes.contain(path) {
            return self.send(Unit::Unreadable(path.to_owned(), anyhow!(ReadError::OfAHome)));
        }
        let found = match path.metadata() {
            Ok(found) => found,
            Err(error) => return self.send(Unit::Unreadable(path.to_owned(), error.into())),
        };
        if found.is_dir() {
            return self.folder(path);
        }
        if found.is_file() {
            return self.file(Found::named(path), found.len());
        }
        // What a shell passes for `<(command)` is below `/dev/fd`, and has its writer already.
        if found.file_type().is_fifo() && !path.starts_with("/dev") && !path.starts_with("/proc") {
            return self.send(Unit::Unreadable(path.to_owned(), anyhow!(NAMED_PIPE)));
        }
        // A pipe or device is read only when it is named as an argument.
        self.send(Unit::Large(Found::named(path)))
    }

    fn folder(&mut self, folder: &Path) -> Result<(), Unwanted> {
        let mut entries = WalkDir::new(folder).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    self.send(Unit::Unreadable(path, cause(error)))?;
                    continue;
                }
            };
            let kind = entry.file_type();
            if self.homes.include(&entry) {
                entries.skip_current_dir();
                self.skip(entry.into_path(), "the folder of a can-sync agent")?;
            } else if kind.is_file() {
                match entry.metadata() {
                    Ok(found) => self.file(Found::below(folder, entry.into_path()), found.len())?,
                    Err(error) => self.send(Unit::Unreadable(entry.into_path(), cause(error)))?,
                }
            } else if kind.is_symlink() {
                self.skip(entry.into_path(), "a symbolic link")?;
            } else if !kind.is_dir() {
                self.skip(entry.into_path(), "no regular file")?;
            }
        }
        Ok(())
    }

    fn file(&mut self, found: Found, size_bytes: u64) -> Result<(), Unwanted> {
        if size_bytes > SMALL_BYTES_MAX {
            return self.send(Unit::Large(found));
        }
        self.batch.push(found);
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

/// The cause without the path, which the caller adds.
fn cause(error: walkdir::Error) -> anyhow::Error {
    match error.into_io_error() {
        Some(error) => error.into(),
        None => anyhow!("the folder contains itself"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_in_the_folder_that_was_named_and_those_below() {
        for (top, path, folder) in [
            ("pictures", "pictures/sea.jpg", "pictures"),
            ("pictures/", "pictures/2024/may/sea.jpg", "pictures/2024/may"),
            ("/home/me/pictures", "/home/me/pictures/2024/sea.jpg", "pictures/2024"),
            (".", "./2024/sea.jpg", "2024"),
            ("..", "../sea.jpg", ""),
            ("/", "/etc/fstab", "etc"),
        ] {
            assert_eq!(Found::below(Path::new(top), path.into()).folder, folder, "{top}");
        }
        assert_eq!(Found::named(Path::new("pictures/sea.jpg")).folder, "");
    }
}
