//! What WebDAV works with, and how it changes a folder.
//!
//! W1  A content is in the store before its version is in the journal, and both are durable before
//!     the client is answered.
//! W2  What a write replaces stays in the folder's history, so that a client's mistake can be undone.
//!     The bytes are never deleted.
//! W3  A directory stays when its last entry goes, as WebDAV clients expect: it gets a version of its
//!     own.

use std::sync::Arc;

use anyhow::Result;
use dav_server::fs::FsError;

use crate::agent::handle::Handle;
use crate::clock::wall_ms_signed;
use crate::core::attributes::{Attribute, Attributes};
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::Content;
use crate::core::ids::{Digest, FolderId};
use crate::http::people::{keep, sniffed};
use crate::http::problem::Problem;
use crate::http::upload::{Receiving, check_largest};
use crate::replica::folders::{FolderJournal, WriteError};
use crate::replica::journal::JournalHandle;
use crate::store::{Metadata, Store};

use super::index::{EntryKind, FileFacts, Index, Part};
use super::place;
use super::properties::Properties;

/// What every request works with. Clones share it.
#[derive(Clone)]
pub(super) struct Share {
    pub(super) handle: Handle,
    pub(super) store: Arc<dyn Store>,
    pub(super) index: Index,
    pub(super) properties: Properties,
    folders: FolderJournal,
}

/// Where in a folder something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    pub(super) folder: FolderId,
    pub(super) path: FolderPath,
}

impl Share {
    pub(super) fn new(handle: Handle) -> Self {
        let journal: JournalHandle = handle.journal();
        let folders = FolderJournal::new(journal.clone(), handle.status().device.node_id);
        Self {
            store: handle.store(),
            index: Index::new(journal.clone(), folders.clone()),
            properties: Properties::new(journal),
            folders,
            handle,
        }
    }

    /// The folders under the names that they are shown under.
    pub(super) async fn folders(&self) -> Result<Vec<(String, FolderId)>> {
        Ok(place::shown(self.folders.folders().await?))
    }

    /// The folder that is shown under a name.
    pub(super) async fn folder(&self, name: &str) -> Result<Option<FolderId>> {
        let mut folders = self.folders().await?.into_iter();
        Ok(folders.find(|(shown, _)| shown == name).map(|(_, id)| id))
    }

    /// Whether something can be created at a path: the directory that it is to be in exists.
    pub(super) async fn has_parent(&self, at: &At) -> Result<bool> {
        let Some(parent) = at.path.parent() else { return Ok(true) };
        let found = self.index.entry(at.folder, parent).await?;
        Ok(found == Some(EntryKind::Directory))
    }

    /// Begins to take in a content. Refuses one whose announced size does not fit.
    pub(super) async fn receive(&self, expected_bytes: Option<u64>) -> Result<Receiving, Problem> {
        let info = self.store.info().await?;
        if let Some(size_bytes) = expected_bytes {
            check_largest(size_bytes, info.largest_asset_bytes)?;
            self.store.check_space(size_bytes).await?;
        }
        let staging_dir = self.handle.staging_dir();
        Ok(Receiving::new(staging_dir, info.hash_algorithm, info.largest_asset_bytes))
    }

    /// Stores a received content, and puts it at a path.
    pub(super) async fn put(
        &self,
        at: &At,
        receiving: Receiving,
        modified_ms: Option<i64>,
    ) -> Result<FileFacts, FsError> {
        let modified_ms = modified_ms.unwrap_or_else(wall_ms_signed);
        let replaced = self.index.entry(at.folder, at.path.clone()).await.map_err(internal)?;
        let is_executable =
            matches!(replaced, Some(EntryKind::File(FileFacts { is_executable: true, .. })));
        let Digest { hash, size_bytes } =
            self.keep(at, receiving, modified_ms).await.map_err(|problem| fs_error(&problem))?;
        let content = Content::File { hash, size_bytes, modified_ms, is_executable };
        self.write(at.folder, vec![(at.path.clone(), content)]).await?;
        Ok(FileFacts { hash, size_bytes, modified_ms, is_executable })
    }

    async fn keep(
        &self,
        at: &At,
        receiving: Receiving,
        modified_ms: i64,
    ) -> Result<Digest, Problem> {
        let received = receiving.finish().await?;
        let name = String::from_utf8_lossy(at.path.name());
        let parent = at.path.parent().map(|parent| parent.to_string()).unwrap_or_default();
        let attributes = Attributes::named(&name)
            .with_text(Attribute::Path, &parent)
            .with_time(Attribute::ModifiedMs, Some(modified_ms));
        let (received, attributes) = sniffed(received, attributes).await?;
        let metadata = Metadata { attributes, ..Metadata::default() };
        let (digest, _) = keep(self.store.as_ref(), received, metadata).await?;
        Ok(digest)
    }

    /// Writes contents over what is at their paths, durably.
    pub(super) async fn write(
        &self,
        folder: FolderId,
        contents: Vec<(FolderPath, Content)>,
    ) -> Result<(), FsError> {
        self.folders.replace(folder, contents).await.map_err(|error| match error {
            WriteError::Ask(error) if error.is_disk_full() => FsError::InsufficientStorage,
            error => internal(error.into()),
        })?;
        // The next step of this request sees it.
        self.catch_up().await
    }

    async fn catch_up(&self) -> Result<(), FsError> {
        match self.index.catch_up(Part::Folders).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(FsError::GeneralFailure),
            Err(error) => Err(internal(error)),
        }
    }

    /// Removes what is at a path; not what is below it.
    pub(super) async fn remove(&self, at: &At) -> Result<(), FsError> {
        let mut contents = vec![(at.path.clone(), Content::Absent)];
        contents.extend(self.stays(at).await?);
        self.write(at.folder, contents).await?;
        self.properties.remove(at.folder, &at.path).await.map_err(internal)
    }

    /// The version of the directory that would go together with its last entry, which goes.
    async fn stays(&self, at: &At) -> Result<Option<(FolderPath, Content)>, FsError> {
        let holds = self.index.holds_its_directory(at.folder, at.path.clone());
        Ok(match (holds.await.map_err(internal)?, at.path.parent()) {
            (true, Some(parent)) => Some((parent, Content::Directory)),
            _ => None,
        })
    }

    /// Moves what is at a path, and all that is below it. Each path comes to its new place before or
    /// in the same op as it goes from the old one: a crash leaves it at one of them or at both.
    pub(super) async fn rename(&self, from: &At, to: &At) -> Result<(), FsError> {
        let found = self.index.entry(from.folder, from.path.clone()).await.map_err(internal)?;
        let kind = found.ok_or(FsError::NotFound)?;
        if !self.has_parent(to).await.map_err(internal)? {
            return Err(FsError::NotFound);
        }
        let stays = self.stays(from).await?;
        let mut last = vec![(from.clone(), to.clone(), kind.clone())];
        if kind == EntryKind::Directory {
            // The new directory first, in which nothing may be.
            self.write(to.folder, vec![(to.path.clone(), Content::Directory)]).await?;
            loop {
                let below = self.index.below(from.folder, from.path.clone());
                let below = below.await.map_err(internal)?;
                if below.is_empty() {
                    break;
                }
                let moves = below.into_iter().map(|(path, kind)| {
                    let rest = &path.as_bytes()[from.path.as_bytes().len() + 1..];
                    let to = At { folder: to.folder, path: to.path.join(rest)? };
                    Ok((At { folder: from.folder, path }, to, kind))
                });
                let moves = moves.collect::<Result<Vec<_>>>().map_err(internal)?;
                self.move_all(moves).await?;
            }
            last.clear();
            self.properties
                .copy((from.folder, &from.path), (to.folder, &to.path))
                .await
                .map_err(internal)?;
            self.properties.remove(from.folder, &from.path).await.map_err(internal)?;
            self.write(from.folder, vec![(from.path.clone(), Content::Absent)]).await?;
        }
        self.move_all(last).await?;
        match stays {
            Some(directory) => self.write(from.folder, vec![directory]).await,
            None => Ok(()),
        }
    }

    async fn move_all(&self, moves: Vec<(At, At, EntryKind)>) -> Result<(), FsError> {
        let Some((first, to, _)) = moves.first().cloned() else { return Ok(()) };
        for (from, to, _) in &moves {
            self.properties
                .copy((from.folder, &from.path), (to.folder, &to.path))
                .await
                .map_err(internal)?;
        }
        let came = |(_, to, kind): &(At, At, EntryKind)| (to.path.clone(), content(kind));
        let went = |(from, ..): &(At, At, EntryKind)| (from.path.clone(), Content::Absent);
        if first.folder == to.folder {
            let both = moves.iter().flat_map(|one| [came(one), went(one)]).collect();
            self.write(first.folder, both).await?;
        } else {
            self.write(to.folder, moves.iter().map(came).collect()).await?;
            self.write(first.folder, moves.iter().map(went).collect()).await?;
        }
        for (from, ..) in &moves {
            self.properties.remove(from.folder, &from.path).await.map_err(internal)?;
        }
        Ok(())
    }
}

/// What a version says of an entry.
pub(super) fn content(kind: &EntryKind) -> Content {
    match kind {
        EntryKind::Directory => Content::Directory,
        EntryKind::File(FileFacts { hash, size_bytes, modified_ms, is_executable }) => {
            Content::File {
                hash: *hash,
                size_bytes: *size_bytes,
                modified_ms: *modified_ms,
                is_executable: *is_executable,
            }
        }
    }
}

/// Logs an error of ours, which a client is told without its text.
pub(super) fn internal(error: anyhow::Error) -> FsError {
    tracing::warn!("WebDAV: {error:#}");
    FsError::GeneralFailure
}

/// The error for a problem.
pub(super) fn fs_error(problem: &Problem) -> FsError {
    match problem.status.as_u16() {
        404 => FsError::NotFound,
        413 => FsError::TooLarge,
        507 => FsError::InsufficientStorage,
        _ => {
            tracing::warn!("WebDAV: {}", problem.detail);
            FsError::GeneralFailure
        }
    }
}
