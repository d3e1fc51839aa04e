//! The past of paths: their versions, bringing one back, and why a path is as it is.
//!
//! H1  Bringing a version back is a change like any other: the version that it replaces stays in the
//!     history.

use anyhow::Context as _;

use super::db::Base;
use super::disk::{Root, Rules};
use super::handle::{FolderError, Folders, Result};
use super::ingest;
use super::look::{Disk, Looker};
use super::reconcile::change;
use super::shared::blocking;
use super::status::{ContentView, PastVersion, PathHistory, RestoreRequest, Restored, Why};
use crate::core::folder::collide::Folding;
use crate::core::folder::path::FolderPath;
use crate::core::folder::resolve::needs_history;
use crate::core::folder::three_way::Edit;
use crate::core::folder::version::{Content, Version};
use crate::core::ids::{FolderId, Hash};
use crate::replica::folders::{FileChange, FileRow, Folder, HistoryEntry};

/// The most versions of a path that are listed.
const VERSIONS_MAX: usize = 1000;

impl Folders {
    /// The versions of a path, the newest first.
    pub async fn history(&self, folder: &str, path: &str) -> Result<PathHistory> {
        let folder = self.find(folder).await?;
        let path = parse(path)?;
        let (current, past, more) = self.versions(&folder, &path).await?;
        let contents: Vec<Content> = std::iter::once(&current.version)
            .chain(past.iter().map(|entry| &entry.version))
            .map(|version| version.content.clone())
            .collect();
        let mut views = self.views(&contents).await?.into_iter();
        let mut versions = Vec::with_capacity(contents.len());
        versions.extend(views.next().map(|content| PastVersion {
            number: 0,
            until_ms: None,
            device: current.device,
            content,
        }));
        versions.extend((1..).zip(past).zip(views).map(|((number, entry), content)| PastVersion {
            number,
            until_ms: Some(entry.changed_at_ms),
            device: entry.device,
            content,
        }));
        Ok(PathHistory { path: path.to_text(), versions, more })
    }

    /// The current version of a path and those before, the newest first.
    async fn versions(
        &self,
        folder: &Folder,
        path: &FolderPath,
    ) -> Result<(FileRow, Vec<HistoryEntry>, bool)> {
        let current = self.shared.journal.versions_at(folder.id, vec![path.clone()]).await?;
        let current = current.into_iter().flatten().next().ok_or_else(|| {
            FolderError::Unknown(format!(
                "{:?} has no file {}: files have versions, directories have none",
                folder.name,
                path.to_text()
            ))
        })?;
        let mut past = Vec::new();
        let mut after = None;
        loop {
            let left = VERSIONS_MAX - past.len();
            let page =
                self.shared.journal.history(folder.id, Some(path), None, after, left).await?;
            past.extend(page.entries);
            after = page.next;
            if after.is_none() || past.len() >= VERSIONS_MAX {
                break;
            }
        }
        past.sort_by_key(|entry| std::cmp::Reverse(entry.changed_at_ms));
        Ok((current, past, after.is_some()))
    }

    /// Brings a version of a path back.
    pub async fn restore(&self, folder: &str, request: RestoreRequest) -> Result<Restored> {
        let folder = self.find(folder).await?;
        let path = parse(&request.path)?;
        let (current, past, _) = self.versions(&folder, &path).await?;
        let content = match (request.version, request.at_ms) {
            (Some(0), None) => current.version.content.clone(),
            (Some(number), None) => {
                let at = usize::try_from(number - 1).unwrap_or(usize::MAX);
                let entry = past.get(at).ok_or_else(|| {
                    FolderError::Unknown(format!(
                        "{} has the versions 0 to {}, got {number}",
                        path.to_text(),
                        past.len()
                    ))
                })?;
                entry.version.content.clone()
            }
            (None, Some(at_ms)) => match content_at(&current, &past, at_ms) {
                Content::Absent => {
                    return Err(FolderError::Unknown(format!(
                        "{} was not there at that time, so nothing was changed: `can-sync history` \
                         lists its versions",
                        path.to_text()
                    )));
                }
                content => content,
            },
            // Without a version and a time: the content before the last change.
            (None, None) => {
                let is_absent = |entry: &&HistoryEntry| entry.version.is_absent();
                let before = past.iter().find(|entry| !is_absent(entry)).ok_or_else(|| {
                    FolderError::Unknown(format!("{} has no earlier version", path.to_text()))
                })?;
                before.version.content.clone()
            }
            (Some(_), Some(_)) => {
                let text = "give a version or a time, not both";
                return Err(FolderError::Invalid(text.into()));
            }
        };
        let changed = !current.version.content.is_like(&content);
        if changed {
            if self.are_nowhere(ingest::hash(&content).into_iter().collect()).await? == [true] {
                return Err(FolderError::Refused(format!(
                    "no device is known to have the content of that version of {} any more, so nothing \
                     was changed: connect the device that may have it, and try again",
                    path.to_text()
                )));
            }
            let change = put_back(&path, &current.version, content.clone());
            let written = self.shared.journal.write(folder.id, vec![change]).await;
            written.map_err(|error| FolderError::Temporary(error.to_string()))?;
        }
        let content = self.views(&[content]).await?.pop().unwrap_or(ContentView::Absent);
        Ok(Restored { path: path.to_text(), content, changed })
    }

    /// Why a path is as it is on this device.
    pub async fn why(&self, folder: &str, path: &str) -> Result<Why> {
        let folder = self.find(folder).await?;
        let path = parse(path)?;
        let rows = self.shared.journal.versions_at(folder.id, vec![path.clone()]).await?;
        let row = rows.into_iter().flatten().next();
        let mut lines = Vec::new();
        let (mut base, mut directory) = (None, "no directory is bound here".to_owned());
        match self.bound(folder.id).await? {
            None => lines.push("no directory of this device is bound to the folder".into()),
            Some(bound) => {
                if let Some(held) = &bound.held {
                    lines.push(self.shared.held_text(held).await?);
                }
                if bound.is_paused {
                    lines.push("the folder is paused: `can-sync folder resume`".into());
                }
                let report = self.shared.reports.get(&folder.id);
                lines.extend(report.problems.into_values());
                let looked = self.look_at(&bound, &path).await?;
                base = looked.base;
                directory = looked.directory;
                lines.extend(looked.lines);
            }
        }
        let journal = row.as_ref().map(|row| &row.version.content);
        if let Some(hash) = journal.and_then(ingest::hash)
            && !self.are_here(vec![hash]).await?[0]
        {
            lines.push("its content is not on this device yet".into());
        }
        if row.is_none() {
            lines.push("the folder never held anything at this path".into());
        }
        if lines.is_empty() {
            let is_equal = base.as_ref().map(|base| &base.version.content) == journal;
            lines.push(match (journal, is_equal) {
                (Some(Content::Absent), _) => "it was removed".into(),
                (_, true) => "directory and folder are equal".into(),
                _ => "it is about to be synced".into(),
            });
        }
        let folder_view = match journal {
            Some(content) => self.views(std::slice::from_ref(content)).await?.pop(),
            None => None,
        };
        let base_view = match &base {
            Some(base) => self.views(std::slice::from_ref(&base.version.content)).await?.pop(),
            None => None,
        };
        Ok(Why { path: path.to_text(), lines, folder: folder_view, base: base_view, directory })
    }

    async fn look_at(
        &self,
        bound: &super::db::StoredBinding,
        path: &FolderPath,
    ) -> Result<LookedAt> {
        let (db, algorithm) = (self.shared.db.clone(), self.shared.algorithm()?);
        let (id, binding, path) = (bound.id, bound.binding.clone(), path.clone());
        let mark = binding.mark(self.shared.me);
        let looked = blocking(move || {
            let root = match Root::open(&binding.dir, mark) {
                Ok(root) => root,
                Err(error) => {
                    let (lines, directory) = (Vec::new(), error.to_string());
                    return Ok(LookedAt { base: None, directory, lines });
                }
            };
            let rules = Rules::load(&root).context("reading .cansyncignore")?;
            let mut lines = Vec::new();
            if rules.is_ignored(&path, false) {
                lines.push("it is ignored, by .cansyncignore or as litter of programs".into());
            }
            let none = Rules::from_text("");
            let (symlinks, folding) = (binding.symlinks, Folding::default());
            let looker =
                Looker { root: &root, rules: &none, db: &db, id, symlinks, folding, algorithm };
            let mut queue = [path].into();
            let look = looker.look(&mut queue, 1)?.pop();
            let Some(look) = look else {
                let directory = "a file of can-sync, which is never synced".into();
                return Ok(LookedAt { base: None, directory, lines });
            };
            let directory = match look.disk {
                Disk::Same(_) => "as it was last synced".into(),
                Disk::Occupied(_) => "a directory with entries".into(),
                Disk::Found { content, .. } => described(&content),
                Disk::Gone => "nothing".into(),
                Disk::Skipped(reason) => {
                    lines.push(format!("it is not synced: {reason}"));
                    reason.to_owned()
                }
                Disk::Unstable => "a file that is being written".into(),
                Disk::Failed(why) => {
                    lines.push(format!("it cannot be read: {why}"));
                    format!("cannot be read: {why}")
                }
            };
            Ok(LookedAt { base: look.base, directory, lines })
        });
        Ok(looked.await?)
    }

    /// Contents as they are shown, in their order.
    pub(super) async fn views(&self, contents: &[Content]) -> Result<Vec<ContentView>> {
        let hashes: Vec<Hash> = contents.iter().filter_map(ingest::hash).collect();
        let mut here = self.are_here(hashes).await?.into_iter();
        let view = |content: &Content| match content {
            Content::Absent => ContentView::Absent,
            Content::File { hash, size_bytes, modified_ms, is_executable } => ContentView::File {
                hash: *hash,
                size_bytes: *size_bytes,
                modified_ms: *modified_ms,
                executable: *is_executable,
                here: here.next().unwrap_or(false),
            },
            Content::Symlink { target } => {
                ContentView::Symlink { target: String::from_utf8_lossy(target).into_owned() }
            }
            Content::Directory => ContentView::Directory,
            Content::Later(_) => ContentView::Unknown,
        };
        Ok(contents.iter().map(view).collect())
    }

    pub(super) async fn are_here(&self, hashes: Vec<Hash>) -> Result<Vec<bool>> {
        let index = self.shared.index.clone();
        Ok(blocking(move || Ok(index.held(&hashes)?)).await?)
    }

    /// Which of the contents are not here, and on no other device that is known.
    pub(super) async fn are_nowhere(&self, hashes: Vec<Hash>) -> Result<Vec<bool>> {
        let index = self.shared.index.clone();
        let read = move || {
            let held = index.held(&hashes)?;
            let nowhere = hashes.iter().zip(held).map(|(hash, is_held)| {
                Ok::<_, anyhow::Error>(!is_held && index.holders(hash)?.is_empty())
            });
            nowhere.collect()
        };
        Ok(blocking(read).await?)
    }

    /// The current version of a path of a folder.
    pub(super) async fn current(
        &self,
        folder: FolderId,
        paths: Vec<FolderPath>,
    ) -> Result<Vec<Option<FileRow>>> {
        Ok(self.shared.journal.versions_at(folder, paths).await?)
    }
}

struct LookedAt {
    base: Option<Base>,
    directory: String,
    lines: Vec<String>,
}

/// The change that puts a path back to `content`.
pub(super) fn put_back(path: &FolderPath, current: &Version, content: Content) -> FileChange {
    let after = Version { content: content.clone(), ..current.clone() };
    let before = needs_history(current, &after).then(|| current.clone());
    let edit = Edit { content, vector: current.vector.clone(), before };
    FileChange { is_undo: true, ..change(path, &edit) }
}

/// What was at a path at a time. `past` is sorted, the newest first.
fn content_at(current: &FileRow, past: &[HistoryEntry], at_ms: u64) -> Content {
    let changed_after = past.iter().rev().find(|entry| entry.changed_at_ms > at_ms);
    let version = changed_after.map_or(&current.version, |entry| &entry.version);
    match version.written_at_ms() > at_ms {
        true => Content::Absent,
        false => version.content.clone(),
    }
}

fn parse(path: &str) -> Result<FolderPath> {
    FolderPath::from_text(path).map_err(|error| {
        FolderError::Invalid(format!("expected a path within the folder, got {path:?}: {error}"))
    })
}

fn described(content: &Content) -> String {
    match content {
        Content::Absent => "nothing".into(),
        Content::File { hash, size_bytes, .. } => {
            format!("a file of {size_bytes} bytes, {}, which is not synced yet", hash.short())
        }
        Content::Symlink { .. } => "a symbolic link, which is not synced yet".into(),
        Content::Directory => "an empty directory, which is not synced yet".into(),
        Content::Later(_) => "something of a later version".into(),
    }
}
