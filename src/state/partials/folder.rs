//! The folder of partials: the names of their files, and which of them are open.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};

use super::{Key, OpenError};
use crate::core::ids::{Digest, Hash, NodeId};

pub(super) const CONTENT_SUFFIX: &str = ".part";
pub(super) const OUTBOARD_SUFFIX: &str = ".obao";

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    /// The bytes that each transfer under way still has to write.
    pub(super) claimed: Mutex<BTreeMap<Name, u64>>,
}

impl Shared {
    pub(super) fn claimed(&self) -> MutexGuard<'_, BTreeMap<Name, u64>> {
        self.claimed.lock()
    }

    pub(super) fn files(&self, name: &Name) -> Files {
        Files {
            content: self.folder.join(format!("{name}{CONTENT_SUFFIX}")),
            outboard: self.folder.join(format!("{name}{OUTBOARD_SUFFIX}")),
        }
    }

    /// Renames a partial of version 0.1.0, whose name contains no size, so that it can be resumed.
    pub(super) fn rename_unsized(&self, files: &Files, hash: &Hash) -> Result<(), OpenError> {
        let unsized_files = self.files(&Name { hash: *hash, size_bytes: None, source: None });
        if files.content.exists() || !unsized_files.content.exists() {
            return Ok(());
        }
        // The content is renamed last: as long as it has its old name, the next call tries again.
        for (from, to) in
            [(&unsized_files.outboard, &files.outboard), (&unsized_files.content, &files.content)]
        {
            match fs::rename(from, to) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OpenError::Io { path: from.clone(), source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The partials in the folder with the time of their last write. An outboard alone, which a
    /// crash between two removals leaves, is listed too, as the oldest.
    pub(super) fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            match asset_of(&entry.file_name()) {
                Some((name, CONTENT_SUFFIX)) => {
                    match entry.metadata().and_then(|metadata| metadata.modified()) {
                        Ok(touched) => found.push(Found { name, touched }),
                        // Another thread has just moved the file into the store.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                Some((name, _)) if !self.files(&name).content.exists() => {
                    found.push(Found { name, touched: SystemTime::UNIX_EPOCH });
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// A partial in the folder.
pub(super) struct Found {
    pub(super) name: Name,
    pub(super) touched: SystemTime,
}

/// The name of a partial's files: hash, and size and source where they matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) hash: Hash,
    /// `None` in a name made by version 0.1.0.
    pub(super) size_bytes: Option<u64>,
    pub(super) source: Option<NodeId>,
}

impl Name {
    pub(super) fn of(key: &Key) -> Self {
        let Digest { hash, size_bytes } = key.digest;
        Self { hash, size_bytes: Some(size_bytes), source: key.source }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let hash = parts.next()?.parse().ok()?;
        let size_bytes = parts.next().map(str::parse).transpose().ok()?;
        let source = parts.next().map(str::parse).transpose().ok()?;
        let name = Self { hash, size_bytes, source };
        // Any other spelling is not a name of ours.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.hash)?;
        if let Some(size_bytes) = self.size_bytes {
            write!(f, "-{size_bytes}")?;
        }
        if let Some(source) = self.source {
            write!(f, "-{source}")?;
        }
        Ok(())
    }
}

/// The partial that a file belongs to, and the file's suffix.
pub(super) fn asset_of(name: &OsStr) -> Option<(Name, &'static str)> {
    let name = name.to_str()?;
    let of = |suffix| Some((Name::parse(name.strip_suffix(suffix)?)?, suffix));
    of(CONTENT_SUFFIX).or_else(|| of(OUTBOARD_SUFFIX))
}

#[derive(Debug)]
pub(super) struct Files {
    pub(super) content: PathBuf,
    pub(super) outboard: PathBuf,
}

impl Files {
    pub(super) fn remove(&self) -> io::Result<()> {
        for path in [&self.content, &self.outboard] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Claim {
    pub(super) shared: Arc<Shared>,
    pub(super) name: Name,
}

impl Claim {
    /// Records the bytes still to be written, and returns the sum of all transfers under way. Only
    /// one partial of an asset will be finished, so one with another size of the same asset is not
    /// counted.
    pub(super) fn expect(&self, bytes: u64) -> u64 {
        let mut claimed = self.shared.claimed();
        claimed.insert(self.name, bytes);
        let others = claimed.iter().filter(|(name, _)| name.hash != self.name.hash);
        others.fold(bytes, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.claimed().remove(&self.name);
    }
}
