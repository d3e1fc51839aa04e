//! The brake of a binding: counts what changes, and holds it when it is very much at once.
//!
//! G1  A rename is not counted: the content that is gone at one path is new at another.
//! G2  What another device brings back from the history is not counted either, nor what it removes of
//!     what it wrote itself not long ago: it undoes a loss.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::db::Base;
use super::driver::Driver;
use super::ingest;
use super::shared::blocking;
use crate::clock::wall_ms;
use crate::core::folder::brake::{HELD_PATHS_MIN, Source};
use crate::core::folder::path::{FolderPath, PathKey};
use crate::core::folder::version::{Content, ShortId, Version};
use crate::core::ids::{Hash, NodeId};
use crate::replica::folders::FileRow;

/// The most contents whose paths are remembered, 56 bytes each.
const FRESH_MAX: usize = 64 * 1024;

/// For how long a device may take back what it wrote without being counted.
const TAKEN_BACK_MS: u64 = 24 * 3600 * 1000;

/// The changes that are compared at once.
const PAGE: usize = 512;

/// The versions of a path among which one that is brought back is looked for.
const PAST_MAX: usize = 64;

/// The path that got a content last, for contents that are new at a path.
#[derive(Debug, Default)]
pub(super) struct Fresh(HashMap<Hash, PathKey>);

impl Fresh {
    fn add(&mut self, hash: Hash, path: &FolderPath) {
        if self.0.len() >= FRESH_MAX {
            self.0.clear();
        }
        self.0.insert(hash, path.key());
    }

    fn is_elsewhere(&self, hash: &Hash, path: &FolderPath) -> bool {
        self.0.get(hash).is_some_and(|key| *key != path.key())
    }
}

/// A change of a path, made here or by another device.
pub(super) struct Counted<'a> {
    pub(super) path: &'a FolderPath,
    pub(super) was: Option<&'a Content>,
    pub(super) now: &'a Content,
    pub(super) by: Source,
    /// See [`takes_back`].
    pub(super) is_taken_back: bool,
}

/// Whether `device` removes what it wrote itself not long ago, such as the files that an undo removes.
pub(super) fn takes_back(base: &Version, now: &Content, device: &NodeId) -> bool {
    let is_own = base.vector.newest().is_some_and(|(author, _)| author == ShortId::from(device));
    *now == Content::Absent
        && is_own
        && base.written_at_ms().saturating_add(TAKEN_BACK_MS) >= wall_ms()
}

impl Driver {
    /// Counts changes. Returns whose are so many at once that the user has to decide.
    pub(super) async fn over_limit(&mut self, changes: &[Counted<'_>]) -> Result<Option<Source>> {
        for change in changes.iter().filter(|change| change.was.is_none()) {
            if let Some(hash) = ingest::hash(change.now) {
                self.fresh.add(hash, change.path);
            }
        }
        let mut by: BTreeMap<Source, Vec<&Counted<'_>>> = BTreeMap::new();
        for change in changes {
            if change.by != Source::Device(self.shared.me) && self.counts(change) {
                by.entry(change.by).or_default().push(change);
            }
        }
        let mut over = None;
        for (source, changes) in by {
            if !self.brake.count(wall_ms(), source, changes.len(), self.files) || self.is_confirmed
            {
                continue;
            }
            if source != Source::Disk && self.is_undo(&changes).await? {
                self.brake.reset(source);
                continue;
            }
            over = Some(source);
        }
        Ok(over)
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
            let is_changed = |row: &FileRow, base: &Base| {
                let (was, now) = (&base.version, &row.version.content);
                !was.content.is_like(now) && !takes_back(was, now, &row.device)
            };
            let changes = rows.iter().zip(bases);
            changed += changes
                .filter(|(row, base)| base.as_ref().is_some_and(|base| is_changed(row, base)))
                .count() as u64;
            if changed > HELD_PATHS_MIN {
                return Ok(());
            }
            if !page.more {
                return self.let_pass(false).await;
            }
        }
    }

    fn counts(&self, change: &Counted<'_>) -> bool {
        let Some(was) = change.was.filter(|_| !change.is_taken_back) else { return false };
        match change.now {
            Content::Absent => {
                ingest::hash(was).is_some_and(|hash| !self.fresh.is_elsewhere(&hash, change.path))
            }
            now => !was.is_like(now),
        }
    }

    /// Whether most of these changes bring back what was at their paths before.
    async fn is_undo(&self, changes: &[&Counted<'_>]) -> Result<bool> {
        let mut known = 0;
        for change in changes {
            let (folder, path) = (self.binding.folder, change.path);
            let past =
                self.shared.journal.history(folder, Some(path), None, None, PAST_MAX).await?;
            let mut past = past.entries.iter();
            known += usize::from(past.any(|entry| entry.version.content.is_like(change.now)));
        }
        Ok(known * 10 >= changes.len() * 9)
    }
}
