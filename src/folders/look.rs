//! What is at a path: the base, and the directory by stat. Content is read and hashed only where the
//! stat differs from the base.
//!
//! L1  A content that changed while it was read is not used: the path is looked at again later.
//! L2  What cannot be read is not absent.
//! L3  Before anything counts as gone, the directory is checked to be the one that was bound.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read as _};
use std::ops::ControlFlow;

use anyhow::{Context as _, Result};
use bytes::Bytes;

use super::db::{Base, BindingId, FoldersDb};
use super::disk::{ReadError, Root, RootError, Rules, Scanned, Seen, SeenKind};
use super::scan::{LINKS, SPECIAL};
use crate::core::folder::collide::Folding;
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::Content;
use crate::core::ids::{Hash, HashAlgorithm};
use crate::store::SMALL_BYTES_MAX;
use crate::store::hasher::Hasher;

/// The most bytes of small files that are in memory at once.
const READ_BYTES_MAX: u64 = 8 << 20;

/// A path with what is known of it.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) path: FolderPath,
    pub(crate) base: Option<Base>,
    pub(crate) disk: Disk,
}

/// What is in the directory at a path.
#[derive(Debug)]
pub(crate) enum Disk {
    /// What the base says.
    Same(Seen),
    /// A directory with entries: equal to an empty directory and to nothing.
    Occupied(Seen),
    /// Something else; the bytes of a small file come with it.
    Found { seen: Seen, content: Content, bytes: Option<Bytes> },
    /// Nothing is at the path.
    Gone,
    /// Something that is not synced, and why.
    Skipped(&'static str),
    /// It changes while it is read.
    Unstable,
    /// It cannot be read, and why.
    Failed(String),
}

/// Looks at paths. Blocks.
pub(crate) struct Looker<'a> {
    pub(crate) root: &'a Root,
    pub(crate) rules: &'a Rules,
    pub(crate) db: &'a FoldersDb,
    pub(crate) id: BindingId,
    pub(crate) symlinks: bool,
    /// Which names are the same to the directory's file system, such as `A` and `a`.
    pub(crate) folding: Folding,
    pub(crate) algorithm: HashAlgorithm,
}

impl Looker<'_> {
    /// Looks at the first of these paths, as many as their contents fit into memory, and takes them
    /// from the queue. Ignored paths are dropped.
    ///
    /// # Errors
    /// The database cannot be read, or the directory is not the one that was bound.
    pub(crate) fn look(&self, queue: &mut VecDeque<FolderPath>, max: usize) -> Result<Vec<Look>> {
        let mut paths: Vec<FolderPath> = Vec::new();
        while paths.len() < max
            && let Some(path) = queue.pop_front()
        {
            if !self.rules.is_ignored(&path, false) {
                paths.push(path);
            }
        }
        let bases = self.db.bases(self.id, &paths).context("reading folders.db")?;
        let (mut looks, mut read_bytes) = (Vec::with_capacity(paths.len()), 0);
        let mut left = paths.into_iter().zip(bases);
        for (path, base) in left.by_ref() {
            let disk = self.disk(&path, base.as_ref());
            if let Disk::Found { bytes: Some(bytes), .. } = &disk {
                read_bytes += bytes.len() as u64;
            }
            looks.push(Look { path, base, disk });
            if read_bytes >= READ_BYTES_MAX {
                break;
            }
        }
        for (path, _) in left.collect::<Vec<_>>().into_iter().rev() {
            queue.push_front(path);
        }
        let is_gone = |look: &Look| matches!(look.disk, Disk::Gone) && look.base.is_some();
        if looks.iter().any(is_gone) {
            self.root.check().map_err(Unusable)?;
        }
        Ok(looks)
    }

    fn disk(&self, path: &FolderPath, base: Option<&Base>) -> Disk {
        if base.is_none() {
            match self.db.twin(self.id, path, self.folding) {
                Ok(None) => {}
                Ok(Some(_)) => return Disk::Skipped(TWIN),
                Err(error) => return Disk::Failed(error.to_string()),
            }
        }
        let seen = match self.root.stat(path) {
            Ok(Some(seen)) => seen,
            Ok(None) => return Disk::Gone,
            Err(error) => return Disk::Failed(error.to_string()),
        };
        match seen.kind {
            SeenKind::Other => Disk::Skipped(SPECIAL),
            SeenKind::Symlink if !self.symlinks => Disk::Skipped(LINKS),
            SeenKind::Directory => self.directory(path, seen, base),
            SeenKind::File | SeenKind::Symlink => {
                if base.is_some_and(|base| base.seen == seen) {
                    return Disk::Same(seen);
                }
                let read = match seen.kind {
                    SeenKind::Symlink => self.link(path, seen).map_err(ReadError::Io),
                    _ => self.file(path, seen),
                };
                read.unwrap_or_else(|error| match error {
                    ReadError::Changed => Disk::Unstable,
                    ReadError::Io(error) => failed(&error),
                })
            }
        }
    }

    fn directory(&self, path: &FolderPath, seen: Seen, base: Option<&Base>) -> Disk {
        let was_directory = base.is_some_and(|base| base.version.content == Content::Directory);
        if was_directory {
            return Disk::Same(seen);
        }
        // The first thing below an empty directory is the directory itself.
        let mut is_empty = true;
        let scanned = self.root.scan(Some(path), self.rules, None, &mut |found| {
            is_empty = matches!(&found, Scanned::EmptyDirectory(empty, _) if empty == path);
            ControlFlow::Break(())
        });
        match (scanned, is_empty) {
            (Err(error), _) => Disk::Failed(error.to_string()),
            (Ok(()), true) => Disk::Found { seen, content: Content::Directory, bytes: None },
            (Ok(()), false) => Disk::Occupied(seen),
        }
    }

    fn link(&self, path: &FolderPath, seen: Seen) -> io::Result<Disk> {
        let target = self.root.read_link(path)?;
        if self.root.stat(path)? != Some(seen) {
            return Ok(Disk::Unstable);
        }
        Ok(Disk::Found { seen, content: Content::Symlink { target }, bytes: None })
    }

    fn file(&self, path: &FolderPath, seen: Seen) -> Result<Disk, ReadError> {
        let (hash, bytes) = match self.moved(&seen) {
            Some(hash) => (hash, None),
            None => read(self.root, path, &seen, self.algorithm)?,
        };
        Ok(Disk::Found { seen, content: file_content(&seen, hash), bytes })
    }

    /// The hash of a large file that has another name in the base, which is free now: it was renamed,
    /// and need not be read.
    fn moved(&self, seen: &Seen) -> Option<Hash> {
        if seen.size_bytes <= SMALL_BYTES_MAX {
            return None;
        }
        let bases = self.db.with_inode(self.id, seen.inode).ok()?;
        let same = bases.into_iter().find(|base| base.seen.is_same_file(seen))?;
        let there = self.root.stat(&same.version.path).ok()?;
        if there.is_some_and(|there| there.inode == seen.inode) {
            return None;
        }
        match same.version.content {
            Content::File { hash, .. } => Some(hash),
            _ => None,
        }
    }

    /// Adds the paths that change together with these: a file that stood where a directory is now,
    /// what was in a directory that is gone or replaced, and directories that may be empty now. Returns
    /// false when there are more than [`RELATIVES_MAX`]: a scan finds the rest.
    pub(crate) fn with_relatives(
        &self,
        paths: Vec<FolderPath>,
    ) -> Result<(VecDeque<FolderPath>, bool)> {
        let mut is_whole = true;
        let mut all: BTreeSet<FolderPath> = paths.iter().cloned().collect();
        let mut above = BTreeSet::new();
        for path in &paths {
            let mut next = path.parent();
            while let Some(dir) = next {
                next = dir.parent();
                if !above.insert(dir) {
                    break;
                }
            }
        }
        let above: Vec<_> = above.into_iter().collect();
        let bases = self.db.bases(self.id, &above).context("reading folders.db")?;
        all.extend(above.into_iter().zip(bases).filter_map(|(path, base)| {
            let content = base?.version.content;
            matches!(content, Content::File { .. } | Content::Symlink { .. }).then_some(path)
        }));
        for path in &paths {
            let kind = self.root.stat(path).ok().flatten().map(|seen| seen.kind);
            if kind == Some(SeenKind::Directory) {
                continue;
            }
            if kind.is_none() {
                all.extend(path.parent());
            }
            let mut after = None;
            loop {
                let page = self.db.below(self.id, path, after.as_ref(), BELOW_PAGE)?;
                let Some(last) = page.last() else { break };
                if all.len() >= RELATIVES_MAX {
                    is_whole = false;
                    break;
                }
                after = Some(last.version.path.clone());
                all.extend(page.into_iter().map(|base| base.version.path));
            }
        }
        Ok((all.into_iter().collect(), is_whole))
    }
}

/// Why a path is left out whose name the file system takes for another one.
const TWIN: &str = "names that this file system takes for the name of another file here";

/// The most paths that are looked at because of others, in memory.
const RELATIVES_MAX: usize = 20_000;

/// Bases of paths below a directory that are read at once.
const BELOW_PAGE: usize = 1000;

/// The directory cannot be used as it is.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Unusable(pub(crate) RootError);

/// The content of a regular file with this hash.
pub(crate) fn file_content(seen: &Seen, hash: Hash) -> Content {
    Content::File {
        hash,
        size_bytes: seen.size_bytes,
        modified_ms: seen.modified_ms(),
        is_executable: seen.is_executable(),
    }
}

/// The hash of a file that is as `seen`, and the bytes of a small one.
pub(crate) fn read(
    root: &Root,
    path: &FolderPath,
    seen: &Seen,
    algorithm: HashAlgorithm,
) -> Result<(Hash, Option<Bytes>), ReadError> {
    let mut file = root.open_stable(path, seen)?;
    let mut hasher = Hasher::new(algorithm);
    let bytes = if seen.size_bytes <= SMALL_BYTES_MAX {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != seen.size_bytes {
            return Err(ReadError::Changed);
        }
        hasher.update(&bytes);
        Some(Bytes::from(bytes))
    } else {
        hasher.update_from(&mut file)?;
        None
    };
    file.finish()?;
    Ok((hasher.hash(), bytes))
}

/// Reads the content at a path whose stat is `seen`.
pub(crate) fn content_of(
    root: &Root,
    path: &FolderPath,
    seen: &Seen,
    algorithm: HashAlgorithm,
) -> Result<(Content, Option<Bytes>), ReadError> {
    match seen.kind {
        SeenKind::File => {
            let (hash, bytes) = read(root, path, seen, algorithm)?;
            Ok((file_content(seen, hash), bytes))
        }
        SeenKind::Symlink => Ok((Content::Symlink { target: root.read_link(path)? }, None)),
        SeenKind::Directory => Ok((Content::Directory, None)),
        SeenKind::Other => Err(ReadError::Changed),
    }
}

fn failed(error: &io::Error) -> Disk {
    match error.kind() {
        io::ErrorKind::NotFound => Disk::Unstable,
        _ => Disk::Failed(error.to_string()),
    }
}
