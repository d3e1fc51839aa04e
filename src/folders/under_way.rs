//! Paths that were being written when the agent was killed: after the journal or the directory had
//! the new version, and before its base was recorded. With the old base, a file that the user then
//! removed would come back, and a version that others then replaced would look like an edit.
//!
//! C1  A base is recorded only for what is found: an edit in the journal, a brought version in the
//!     directory.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::Keep;
use super::db::{Became, UnderWay};
use super::disk::{Root, Seen};
use super::driver::Driver;
use super::look::content_of;
use super::reconcile::ROUND_PATHS;
use super::shared::blocking;
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::{Content, ShortId, Version};
use crate::core::ids::HashAlgorithm;

/// The earlier versions of a path among which an edit of this device is looked for. An edit that
/// other devices changed more often than this meanwhile counts as not written: it becomes a
/// conflict copy, or what was removed comes back.
const PAST_MAX: usize = 1000;

impl Driver {
    /// Records the bases of the paths that are under way since an earlier run.
    pub(super) async fn settle_under_way(&mut self) -> Result<()> {
        loop {
            let (db, id, folding) = (self.shared.db.clone(), self.id, self.folding);
            let read = db.clone();
            let page = blocking(move || Ok(read.under_way(id, ROUND_PATHS)?)).await?;
            if page.is_empty() {
                return Ok(());
            }
            tracing::debug!(paths = page.len(), "settling what an earlier run left under way");
            let (edits, brought): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|under_way| under_way.is_edit);
            let mut settled = self.written(edits).await?;
            settled.extend(self.brought(brought).await?);
            blocking(move || db.settle(id, settled, folding).context("writing folders.db")).await?;
        }
    }

    /// Which edits are in the journal.
    async fn written(&self, edits: Vec<UnderWay>) -> Result<Vec<(FolderPath, Became)>> {
        let (journal, folder) = (&self.shared.journal, self.binding.folder);
        let me = ShortId::from(&self.shared.me);
        let paths = edits.iter().map(|edit| edit.version.path.clone()).collect();
        let rows = journal.versions_at(folder, paths).await?;
        let mut written = Vec::with_capacity(edits.len());
        for (edit, row) in edits.into_iter().zip(rows) {
            let Version { path, content, vector, .. } = edit.version;
            let is_it = |version: &Version| version.is_change_of(me, &content, &vector);
            let found = match row.map(|row| row.version) {
                Some(version) if is_it(&version) => Some(version),
                Some(_) => {
                    let past = journal.history(folder, Some(&path), None, None, PAST_MAX).await?;
                    past.entries.into_iter().map(|entry| entry.version).find(is_it)
                }
                None => None,
            };
            let became = match found {
                Some(version) if version.is_absent() => Became::Gone,
                Some(version) => Became::Equal(version, Seen::UNKNOWN),
                None => Became::Left,
            };
            written.push((path, became));
        }
        Ok(written)
    }

    /// Which versions are in the directory.
    async fn brought(&self, versions: Vec<UnderWay>) -> Result<Vec<(FolderPath, Became)>> {
        let root = self.root.clone().context("the directory is not open")?;
        let (algorithm, keep) = (self.shared.algorithm()?, self.binding.keep);
        blocking(move || {
            let became = |UnderWay { version, .. }: UnderWay| {
                (version.path.clone(), is_brought(&root, version, keep, algorithm))
            };
            Ok(versions.into_iter().map(became).collect())
        })
        .await
    }
}

fn is_brought(root: &Arc<Root>, version: Version, keep: Keep, algorithm: HashAlgorithm) -> Became {
    match root.stat(&version.path) {
        Ok(None) if version.is_absent() => Became::Gone,
        Ok(Some(seen)) => match content_of(root, &version.path, &seen, algorithm) {
            Ok((content, _)) if is_content(&content, &version.content, keep) => {
                Became::Equal(version, seen)
            }
            _ => Became::Left,
        },
        _ => Became::Left,
    }
}

/// A link to the store's file has the times of that file.
fn is_content(found: &Content, brought: &Content, keep: Keep) -> bool {
    found == brought || keep == Keep::Link && found.is_like(brought)
}
