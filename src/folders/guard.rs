//! The brake of a binding: counts what changes, and holds it when it is very much at once.
//!
//! G1  A rename is not counted: the content that is gone at one path is new at another.
//! G2  What another device did because its user asked to put paths back, by `restore` or `folder undo`,
//!     is not counted: the history says so.
//! G3  What git moves into a new pack is not counted: objects that are gone from an object store which
//!     got a pack in the same five minutes.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::db::Base;
use super::driver::Driver;
use super::ingest;
use super::shared::blocking;
use crate::clock::wall_ms;
use crate::core::folder::brake::{HELD_PATHS_MIN, Source, WINDOW_MS};
use crate::core::folder::git::{GitFileKind, git_file};
use crate::core::folder::path::{FolderPath, PathKey};
use crate::core::folder::version::Content;
use crate::core::ids::{Hash, NodeId};
use crate::replica::folders::FileRow;

/// The most contents whose paths are remembered, 56 bytes each. A renamed directory with more files
/// than this is held.
const FRESH_MAX: usize = 256 * 1024;

/// The changes that are compared at once.
const PAGE: usize = 512;

/// The most object stores of git whose newest pack is remembered: one for each repository that is
/// packed within five minutes.
const STORES_MAX: usize = 1024;

/// Which contents appeared lately, and where: a removal is no loss if its content has moved.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The path that got a content last.
    paths: HashMap<Hash, PathKey>,
    /// When an object store of git got a pack last.
    packed_ms: HashMap<Vec<u8>, u64>,
}

impl Fresh {
    fn add(&mut self, path: &FolderPath, content: &Content, now_ms: u64) {
        if let Some(hash) = ingest::hash(content) {
            if self.paths.len() >= FRESH_MAX {
                self.paths.clear();
            }
            self.paths.insert(hash, path.key());
        }
        if let Some(file) = git_file(path).filter(|file| file.kind == GitFileKind::Pack) {
            if self.packed_ms.len() >= STORES_MAX {
                self.packed_ms.clear();
            }
            self.packed_ms.insert(file.store.to_vec(), now_ms);
        }
    }

    fn is_elsewhere(&self, hash: &Hash, path: &FolderPath) -> bool {
        self.paths.get(hash).is_some_and(|key| *key != path.key())
    }

    fn is_packed(&self, path: &FolderPath, now_ms: u64) -> bool {
        let packed_ms = git_file(path).and_then(|file| self.packed_ms.get(file.store));
        packed_ms.is_some_and(|packed_ms| now_ms.abs_diff(*packed_ms) < WINDOW_MS)
    }
}

/// A change of a path, made here or by another device.
pub(super) struct Counted<'a> {
    pub(super) path: &'a FolderPath,
    pub(super) was: Option<&'a Content>,
    pub(super) now: &'a Content,
    pub(super) by: Source,
    /// When another device made it.
    pub(super) changed_at_ms: u64,
}

impl Driver {
    /// Counts changes. Returns whose are so many at once that the user has to decide.
    pub(super) async fn over_limit(&mut self, changes: &[Counted<'_>]) -> Result<Option<Source>> {
        let now_ms = wall_ms();
        for change in changes.iter().filter(|change| change.was.is_none()) {
            self.fresh.add(change.path, change.now, now_ms);
        }
        let mut by: BTreeMap<Source, Vec<&Counted<'_>>> = BTreeMap::new();
        for change in changes {
            if change.by != Source::Device(self.shared.me)
                && self.counts(change, now_ms)
                && self.brake.counts(now_ms, change.by, change.path.key())
            {
                by.entry(change.by).or_default().push(change);
            }
        }
        let mut over = None;
        for (source, changes) in by {
            let counted = match source {
                Source::Disk => changes.len(),
                Source::Device(device) => {
                    let change =
                        |change: &&Counted<'_>| (change.path.key(), change.changed_at_ms, device);
                    self.count_not_undone(changes.iter().map(change).collect()).await?
                }
            };
            let is_over = self.brake.count(now_ms, source, counted, self.files);
            if is_over && !self.is_confirmed {
                over = Some(source);
            }
        }
        Ok(over)
    }

    /// The number of those changes of other devices that are not undone by their users. See G2.
    async fn count_not_undone(&self, changes: Vec<(PathKey, u64, NodeId)>) -> Result<usize> {
        let undone = self.shared.journal.are_undone(self.binding.folder, changes).await?;
        Ok(undone.into_iter().filter(|is_undone| !is_undone).count())
    }

    /// Lets the changes of another device pass that were very many and are not any more, because that
    /// device took them back.
    pub(super) async fn release(&mut self) -> Result<()> {
        let Some(Source::Device(_)) = self.held else { return Ok(()) };
        let (mut at, mut changed) = (self.cursor, 0);
        loop {
            let page = self.shared.journal.changes(at, PAGE).await?;
            at = Some(page.cursor);
            let folder = self.binding.folder;
            let rows: Vec<FileRow> =
                page.rows.into_iter().filter(|row| row.folder == folder).collect();
            let paths: Vec<FolderPath> = rows.iter().map(|row| row.version.path.clone()).collect();
            let (db, id) = (self.shared.db.clone(), self.id);
            let bases = blocking(move || Ok(db.bases(id, &paths)?)).await?;
            let is_changed =
                |row: &FileRow, base: &Base| !base.version.content.is_like(&row.version.content);
            let differ = rows
                .iter()
                .zip(bases)
                .filter(|(row, base)| base.as_ref().is_some_and(|base| is_changed(row, base)))
                .map(|(row, _)| (row.version.path.key(), row.changed_at_ms, row.device));
            changed += self.count_not_undone(differ.collect()).await? as u64;
            if changed > HELD_PATHS_MIN {
                return Ok(());
            }
            if !page.more {
                return self.let_pass(false).await;
            }
        }
    }

    fn counts(&self, change: &Counted<'_>, now_ms: u64) -> bool {
        let Some(was) = change.was else { return false };
        match change.now {
            Content::Absent => ingest::hash(was).is_some_and(|hash| {
                !self.fresh.is_elsewhere(&hash, change.path)
                    && !self.fresh.is_packed(change.path, now_ms)
            }),
            now => !was.is_like(now),
        }
    }
}
