//! What the manager, the drivers and the API work with, and what drivers report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::db::{FoldersDb, StoredBinding};
use super::disk::Root;
use super::scan::OF_SCANS;
use super::status::{BindingState, LATER_MAX, SkipCount, Skipped};
use crate::core::folder::brake::Source;
use crate::core::folder::path::FolderPath;
use crate::core::ids::{FolderId, HashAlgorithm, NodeId};
use crate::replica::folders::FolderJournal;
use crate::state::home::Home;
use crate::state::index::Index;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;

/// What everything about folders works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) me: NodeId,
    pub(crate) home: Home,
    pub(crate) db: FoldersDb,
    pub(crate) journal: FolderJournal,
    pub(crate) store: Arc<dyn Store>,
    /// `store` as the embedded store; `None` if another program serves the store.
    pub(crate) embedded: Option<EmbeddedStore>,
    pub(crate) index: Index,
    /// A folder for files that the store adopts.
    pub(crate) staging_dir: PathBuf,
    /// Changes when the index has taken up what is new in the store.
    pub(crate) listed: watch::Receiver<u64>,
    pub(crate) reports: Reports,
}

impl Shared {
    /// Finishes a binding that was begun when the agent ended, or takes it back where its folder does
    /// not exist.
    pub(crate) async fn settle_begun(
        &self,
        stored: StoredBinding,
    ) -> Result<Option<StoredBinding>> {
        if !stored.is_begun {
            return Ok(Some(stored));
        }
        let folders = self.journal.folders().await?;
        if !folders.iter().any(|folder| folder.id == stored.binding.folder) {
            self.take_back(stored).await?;
            return Ok(None);
        }
        let (db, mark) = (self.db.clone(), stored.binding.mark(self.me));
        blocking(move || {
            // If the directory is missing, the driver reports it.
            if let Err(error) = Root::mark(&stored.binding.dir, mark) {
                tracing::warn!("{error}");
            }
            db.finish(stored.id)?;
            Ok(Some(StoredBinding { is_begun: false, ..stored }))
        })
        .await
    }

    /// Takes back a binding that was begun.
    pub(crate) async fn take_back(&self, stored: StoredBinding) -> Result<()> {
        let (db, mark) = (self.db.clone(), stored.binding.mark(self.me));
        blocking(move || {
            // A directory that is not there keeps its marker, which does no harm.
            let _ = Root::unmark(&stored.binding.dir, mark);
            db.remove(stored.id)
        })
        .await
    }

    /// A sentence for people that says which changes are held back and where they came from.
    pub(crate) async fn held_text(&self, source: &Source) -> Result<String> {
        let (by, back) = match source {
            Source::Device(device) => {
                let name = self.journal.device_name(*device).await?;
                (format!("came from {name}"), "`can-sync folder undo --since TIME`")
            }
            Source::Disk => ("were made in this directory".into(), "`can-sync folder undo`"),
        };
        Ok(format!(
            "very many files were changed or removed within five minutes; the changes {by}. Nothing is \
             synced until you decide: `can-sync folder confirm` lets them pass, {back} puts the folder \
             back"
        ))
    }

    /// The hash function of the store.
    pub(crate) fn algorithm(&self) -> Result<HashAlgorithm> {
        let bound = self.index.bound().context("reading the index")?;
        Ok(bound.map_or_else(HashAlgorithm::default, |(_, algorithm)| algorithm))
    }
}

/// Runs work that blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("a background task of the folders did not finish")?
}

/// The latest report of each driver, by folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Mutex<BTreeMap<FolderId, Report>>>);

/// The state of a binding.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) state: BindingState,
    /// The problems of the binding, one text for each kind.
    pub(crate) problems: BTreeMap<&'static str, String>,
    pub(crate) skipped: SkipCount,
    /// Paths left out since the last scan, by reason.
    pub(crate) later: BTreeMap<String, BTreeSet<String>>,
    /// The directory was scanned since the start.
    pub(crate) is_scanned: bool,
}

impl Report {
    /// Notes a path that is left out.
    pub(crate) fn skip(&mut self, reason: &str, path: &FolderPath) {
        self.done(path);
        let paths = self.later.entry(reason.to_owned()).or_default();
        if paths.len() < LATER_MAX {
            paths.insert(path.to_text());
        }
    }

    /// Notes that a path is not left out any more.
    pub(crate) fn done(&mut self, path: &FolderPath) {
        if self.later.is_empty() {
            return;
        }
        let text = path.to_text();
        self.later.retain(|_, paths| {
            paths.remove(&text);
            !paths.is_empty()
        });
    }

    /// Takes up what a scan of a part of the directory left out.
    pub(crate) fn scanned_part(&mut self, skipped: &SkipCount) {
        for (reason, path) in skipped.named() {
            let paths = self.later.entry(reason.to_owned()).or_default();
            if paths.len() < LATER_MAX {
                paths.insert(path.to_owned());
            }
        }
    }

    /// Takes up what a scan of the whole directory left out.
    pub(crate) fn scanned(&mut self, skipped: SkipCount) {
        self.later.retain(|reason, _| !OF_SCANS.contains(&reason.as_str()));
        self.skipped = skipped;
        self.is_scanned = true;
    }

    /// Everything that is left out.
    pub(crate) fn skipped(&self) -> Vec<Skipped> {
        let mut all = self.skipped.clone();
        for (reason, paths) in &self.later {
            paths.iter().for_each(|path| all.add(reason, path.clone()));
        }
        all.told()
    }
}

impl Default for Report {
    fn default() -> Self {
        Self {
            state: BindingState::Scanning,
            problems: BTreeMap::new(),
            skipped: SkipCount::default(),
            later: BTreeMap::new(),
            is_scanned: false,
        }
    }
}

impl Reports {
    /// The report about a binding.
    pub(crate) fn get(&self, folder: &FolderId) -> Report {
        self.lock().get(folder).cloned().unwrap_or_default()
    }

    /// Changes the report about a binding.
    pub(crate) fn change(&self, folder: FolderId, change: impl FnOnce(&mut Report)) {
        change(self.lock().entry(folder).or_default());
    }

    /// Forgets a binding.
    pub(crate) fn remove(&self, folder: &FolderId) {
        self.lock().remove(folder);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FolderId, Report>> {
        self.0.lock()
    }
}
