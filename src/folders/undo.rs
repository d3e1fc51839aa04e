//! Undo: puts every path of a folder back to what it was at a time.
//!
//! U1  An undo only writes new versions. What it replaces stays in the history, so an undo can be
//!     undone.
//! U2  Before an undo everything in the directory is taken in, held or not: nothing that was written
//!     since is lost.
//!     A preview takes nothing in, and counts what would be taken in.
//! U3  What was made since has no event. A path without an event whose version is younger is such a
//!     path, unless its content is older and no path gets the same content back: then only its time
//!     of modification was changed. What was made since and then changed is removed, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use anyhow::Context as _;

use super::db::StoredBinding;
use super::disk::{Root, Rules};
use super::handle::{FolderError, Folders, Result};
use super::ingest;
use super::look::{Disk, Look, Looker};
use super::past::put_back;
use super::scan::{self, Found, Scan};
use super::shared::blocking;
use super::status::{BindingState, EXAMPLES_MAX, UndoRequest, UndoStep, Undone};
use crate::clock::wall_ms;
use crate::core::folder::brake::Source;
use crate::core::folder::collide::Folding;
use crate::core::folder::path::{FolderPath, PathKey};
use crate::core::folder::version::{Content, ShortId, Vector, Version};
use crate::core::ids::{FolderId, Hash, NodeId};
use crate::core::units::utc;
use crate::replica::folders::{FileChange, FileRow, Folder};

/// The most paths of one undo: as many as are kept in memory, some hundred bytes each.
const UNDO_PATHS_MAX: usize = 200_000;

/// Paths that are read or written at once.
const PAGE: usize = 512;

/// A path that changed since the time of an undo.
struct Changed {
    /// The time of the first change that is known.
    at_ms: u64,
    before: Version,
    /// A device that is not to be undone changed it too.
    is_mixed: bool,
}

impl Folders {
    /// Puts a folder back to what it was, or says what that would change.
    pub async fn undo(&self, folder: &str, request: UndoRequest) -> Result<Undone> {
        let folder = self.find(folder).await?;
        let bound = self.bound(folder.id).await?;
        let held = bound.as_ref().and_then(|bound| Some((bound.held?, bound.held_since_ms)));
        let since_ms = match request.since_ms {
            Some(since_ms) => since_ms,
            None => since_held(held)?,
        };
        self.must_have_begun(&folder, since_ms).await?;
        let mut not_taken_in = BTreeMap::new();
        if let Some(bound) = bound {
            let is_stopped = self.shared.reports.get(&folder.id).state == BindingState::Stopped;
            if request.dry_run && !is_stopped && bound.binding.mode.reads() {
                not_taken_in = self.not_taken_in(&bound).await?;
            }
            if bound.is_paused && !request.dry_run {
                let text = "the folder is paused: `can-sync folder resume` first, so that the undo \
                            can take in what is in the directory";
                return Err(FolderError::Refused(text.into()));
            }
            if !is_stopped && !request.dry_run {
                self.take_in(&folder).await?;
            }
        }
        let mut undo = Undo {
            folders: self,
            folder: &folder,
            since_ms,
            device: request.device,
            told: Undone { held: held.is_some(), ..Undone::default() },
            is_preview: request.dry_run,
            returning: BTreeSet::new(),
            not_taken_in,
        };
        let changed = undo.changed().await?;
        undo.bring_back(&changed).await?;
        undo.remove_new(&changed).await?;
        Ok(undo.told)
    }

    /// Refuses a time at which the folder had no file yet: an undo would remove all.
    async fn must_have_begun(&self, folder: &Folder, since_ms: u64) -> Result<()> {
        let journal = &self.shared.journal;
        let mut first_ms = u64::MAX;
        let mut after = None;
        loop {
            let page = journal.versions(folder.id, after, PAGE).await?;
            let written = page.rows.iter().map(|row| row.version.written_at_ms());
            first_ms = written.fold(first_ms, u64::min);
            after = page.next;
            if after.is_none() || first_ms < since_ms {
                break;
            }
        }
        let mut after = None;
        while first_ms >= since_ms {
            let page = journal.history(folder.id, None, Some(since_ms), after, PAGE).await?;
            let written = page.entries.iter().map(|entry| entry.version.written_at_ms());
            first_ms = written.fold(first_ms, u64::min);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // A folder without any version has nothing to lose.
        if first_ms < since_ms || first_ms == u64::MAX {
            return Ok(());
        }
        let first = utc(first_ms);
        Err(FolderError::Refused(format!(
            "the folder had no file yet at that time, so nothing was changed: its first one is of {first}; \
             give a later time"
        )))
    }

    /// The changes in a directory that the folder does not have yet.
    async fn not_taken_in(&self, bound: &StoredBinding) -> Result<BTreeMap<PathKey, Edited>> {
        let (id, binding, mark) =
            (bound.id, bound.binding.clone(), bound.binding.mark(self.shared.me));
        let opened = blocking(move || {
            let root = Root::open(&binding.dir, mark)?;
            let rules = Rules::load(&root).context("reading .cansyncignore")?;
            Ok((Arc::new(root), Arc::new(rules)))
        });
        let (root, rules) = opened.await?;
        let (db, symlinks) = (self.shared.db.clone(), bound.binding.symlinks);
        let algorithm = self.shared.algorithm()?;
        let mut found = scan::start(Scan {
            root: root.clone(),
            rules: rules.clone(),
            watch: None,
            db: db.clone(),
            id,
            symlinks,
            below: None,
        });
        let mut edited = BTreeMap::new();
        while let Some(found) = found.recv().await {
            let paths = match found {
                Found::Paths(paths) => paths,
                Found::Leftover(_) => continue,
                Found::End { skipped, .. } => {
                    skipped?;
                    break;
                }
            };
            let (root, rules, db) = (root.clone(), rules.clone(), db.clone());
            let looked = blocking(move || {
                let folding = Folding::default();
                let (root, rules, db) = (&*root, &*rules, &db);
                let looker = Looker { root, rules, db, id, symlinks, folding, algorithm };
                let (mut queue, mut looks) = (VecDeque::from(paths), Vec::new());
                while !queue.is_empty() {
                    looks.extend(looker.look(&mut queue, PAGE)?.into_iter().filter_map(edit));
                }
                Ok(looks)
            });
            edited.extend(looked.await?);
            if edited.len() > UNDO_PATHS_MAX {
                return Err(too_many("are not synced yet"));
            }
        }
        Ok(edited)
    }
}

/// When the changes began of which the rest is held: some passed before they were very many.
fn since_held(held: Option<(Source, Option<u64>)>) -> Result<u64> {
    let text = match held {
        Some((Source::Disk, since_ms)) => return Ok(since_ms.unwrap_or_else(wall_ms)),
        Some((Source::Device(_), _)) => {
            "the changes that are held come from another device: give a time \
                                    before they were made, such as --since 2h"
        }
        None => "no changes are held: give a time, such as --since 2h",
    };
    Err(FolderError::Invalid(text.into()))
}

/// A change in a directory that the folder does not have yet.
struct Edited {
    path: FolderPath,
    before: Option<Version>,
    content: Content,
}

fn edit(look: Look) -> Option<(PathKey, Edited)> {
    let before = look.base.map(|base| base.version);
    let content = match look.disk {
        Disk::Found { content, .. } => content,
        Disk::Gone => Content::Absent,
        Disk::Same(_) | Disk::Occupied(_) | Disk::Skipped(_) => return None,
        // A later scan records these as edits of their own.
        Disk::Unstable | Disk::Failed(_) => return None,
    };
    let was = before.as_ref().map_or(&Content::Absent, |before| &before.content);
    let is_changed = !content.is_like(was);
    is_changed.then(|| (look.path.key(), Edited { path: look.path, before, content }))
}

fn too_many(what: &str) -> FolderError {
    FolderError::Refused(format!(
        "more than {UNDO_PATHS_MAX} paths {what}, which is more than one undo can hold: give a later \
         time, and go back step by step"
    ))
}

struct Undo<'a> {
    folders: &'a Folders,
    folder: &'a Folder,
    since_ms: u64,
    device: Option<NodeId>,
    told: Undone,
    is_preview: bool,
    /// The contents that paths get back.
    returning: BTreeSet<Hash>,
    /// In a preview: the edits of the directory that the undo would record first.
    not_taken_in: BTreeMap<PathKey, Edited>,
}

impl Undo<'_> {
    /// The paths that were changed or removed since, each with what was there before.
    async fn changed(&self) -> Result<BTreeMap<PathKey, Changed>> {
        let mut changed: BTreeMap<PathKey, Changed> = BTreeMap::new();
        let mut after = None;
        loop {
            let journal = &self.folders.shared.journal;
            let page =
                journal.history(self.folder.id, None, Some(self.since_ms), after, PAGE).await?;
            for entry in page.entries {
                let (at_ms, before) = (entry.changed_at_ms, entry.version);
                let is_other = !self.is_meant(entry.device);
                let key = before.path.key();
                match changed.get_mut(&key) {
                    Some(known) => {
                        known.is_mixed |= is_other;
                        if at_ms < known.at_ms {
                            (known.at_ms, known.before) = (at_ms, before);
                        }
                    }
                    None => {
                        changed.insert(key, Changed { at_ms, before, is_mixed: is_other });
                    }
                }
            }
            if changed.len() > UNDO_PATHS_MAX {
                return Err(too_many("changed since then"));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let is_other = !self.is_meant(self.folders.shared.me);
        for (key, edited) in &self.not_taken_in {
            let Some(before) = edited.before.clone() else { continue };
            let new = Changed { at_ms: u64::MAX, before, is_mixed: false };
            changed.entry(*key).or_insert(new).is_mixed |= is_other;
        }
        Ok(changed)
    }

    /// Whether the changes of a device are undone.
    fn is_meant(&self, device: NodeId) -> bool {
        self.device.is_none_or(|meant| meant == device)
    }

    async fn bring_back(&mut self, changed: &BTreeMap<PathKey, Changed>) -> Result<()> {
        let all: Vec<&Changed> = changed.values().collect();
        for page in all.chunks(PAGE) {
            let paths = page.iter().map(|changed| changed.before.path.clone()).collect();
            let current = self.folders.current(self.folder.id, paths).await?;
            let mut steps = Vec::new();
            for (changed, row) in page.iter().zip(current) {
                let Some(FileRow { version: mut current, .. }) = row else { continue };
                if let Some(edited) = self.not_taken_in.get(&current.path.key()) {
                    current.content = edited.content.clone();
                }
                let before = match self.is_made_since(&changed.before).await? {
                    true => &Content::Absent,
                    false => &changed.before.content,
                };
                if changed.is_mixed || current.content.is_like(before) {
                    self.told.unchanged += 1;
                    continue;
                }
                self.returning.extend(ingest::hash(before));
                match before {
                    Content::Absent => self.told.removed += 1,
                    _ => self.told.brought_back += 1,
                }
                steps.push((current, before.clone()));
            }
            self.carry_out(steps).await?;
        }
        Ok(())
    }

    /// Removes what was made since. See U3.
    async fn remove_new(&mut self, changed: &BTreeMap<PathKey, Changed>) -> Result<()> {
        let mut after = None;
        loop {
            let journal = &self.folders.shared.journal;
            let page = journal.versions(self.folder.id, after, PAGE).await?;
            let mut young: Vec<FileRow> = page.rows;
            young.retain(|row| {
                let key = row.version.path.key();
                let is_known = changed.contains_key(&key) || self.not_taken_in.contains_key(&key);
                row.changed_at_ms >= self.since_ms
                    && !row.version.is_absent()
                    && self.is_meant(row.device)
                    && !is_known
            });
            let mut steps = Vec::new();
            for row in young {
                if self.is_new(&row.version.content).await? {
                    self.told.removed += 1;
                    steps.push((row.version, Content::Absent));
                }
            }
            self.carry_out(steps).await?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let edited = std::mem::take(&mut self.not_taken_in).into_iter();
        let is_new = |(key, edited): &(PathKey, Edited)| {
            !changed.contains_key(key) && edited.content != Content::Absent
        };
        let mut steps = Vec::new();
        for (_, Edited { path, content, .. }) in edited.filter(is_new) {
            if self.is_meant(self.folders.shared.me) && self.is_new(&content).await? {
                self.told.removed += 1;
                let (vector, device_name) = (Vector::default(), String::new());
                let version = Version { path, content, vector, device_name };
                steps.push((version, Content::Absent));
            }
        }
        self.carry_out(steps).await
    }

    async fn is_new(&self, content: &Content) -> Result<bool> {
        let hash = ingest::hash(content);
        match hash.is_some_and(|hash| self.returning.contains(&hash)) {
            true => Ok(true),
            false => self.is_stored_since(hash).await,
        }
    }

    /// Whether the first version of a path that is known to have been changed was made since, by the
    /// device whose changes are undone.
    async fn is_made_since(&self, first: &Version) -> Result<bool> {
        let author = first.vector.newest().map(|(author, _)| author);
        let is_meant = self.device.is_none_or(|device| author == Some(ShortId::from(&device)));
        if !is_meant || first.written_at_ms() < self.since_ms {
            return Ok(false);
        }
        self.is_stored_since(ingest::hash(&first.content)).await
    }

    /// Whether a content came into the store since. What has no asset counts as new.
    async fn is_stored_since(&self, hash: Option<Hash>) -> Result<bool> {
        let Some(hash) = hash else { return Ok(true) };
        let found = self.folders.shared.store.lookup(hash).await;
        let asset = found.map_err(|error| FolderError::Temporary(error.to_string()))?;
        let stored_ms = asset.map_or(i64::MAX, |asset| asset.entry.timestamp_ms);
        Ok(u64::try_from(stored_ms).unwrap_or_default() >= self.since_ms)
    }

    /// Shows the steps, and writes them unless this is a preview. A path whose earlier content no device is
    /// known to have stays as it is.
    async fn carry_out(&mut self, steps: Vec<(Version, Content)>) -> Result<()> {
        let hashes = steps.iter().filter_map(|(_, to)| ingest::hash(to)).collect();
        let mut nowhere = self.folders.are_nowhere(hashes).await?.into_iter();
        let (all, is_somewhere) = (steps.len() as u64, |(_, to): &(Version, Content)| {
            ingest::hash(to).is_none() || nowhere.next() == Some(false)
        });
        let steps: Vec<_> = steps.into_iter().filter(is_somewhere).collect();
        let lost = all - steps.len() as u64;
        self.told.nowhere += lost;
        self.told.brought_back -= lost;
        if steps.is_empty() {
            return Ok(());
        }
        let hashes: Vec<Hash> = steps.iter().filter_map(|(_, to)| ingest::hash(to)).collect();
        let here = self.folders.are_here(hashes).await?;
        self.told.missing += here.iter().filter(|is_here| !**is_here).count() as u64;
        for (from, to) in &steps {
            if self.told.examples.len() >= EXAMPLES_MAX {
                break;
            }
            let mut views =
                self.folders.views(&[from.content.clone(), to.clone()]).await?.into_iter();
            if let (Some(before), Some(after)) = (views.next(), views.next()) {
                let path = from.path.to_text();
                self.told.examples.push(UndoStep { path, from: before, to: after });
            }
        }
        if self.is_preview {
            return Ok(());
        }
        self.write(self.folder.id, steps).await
    }

    async fn write(&self, folder: FolderId, steps: Vec<(Version, Content)>) -> Result<()> {
        let changes: Vec<FileChange> = steps
            .into_iter()
            .map(|(current, content)| {
                let path: FolderPath = current.path.clone();
                put_back(&path, &current, content)
            })
            .collect();
        let written = self.folders.shared.journal.write(folder, changes).await;
        written.map(|_| ()).map_err(|error| FolderError::Temporary(error.to_string()))
    }
}
