//! The requests about folders from the rest of the process. Every call ends within its deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Binding;
use super::db::{FoldersDb, StoredBinding};
use super::driver::Command;
use super::manager::{Manager, Request};
use super::shared::{Reports, Shared, blocking};
use super::status::{
    BindingState, BindingView, BoundElsewhere, EXAMPLES_MAX, FolderStatus, FolderView, FoldersPage,
    Located,
};
use crate::core::folder::names::is_conflict_path;
use crate::core::folder::path::FolderPath;
use crate::core::ids::{FolderId, Hash, NodeId};
use crate::db;
use crate::replica::folders::{Folder, FolderJournal, ToldBinding};
use crate::replica::journal::{AskError, JournalHandle};
use crate::state::home::Home;
use crate::state::index::Index;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;

/// The deadline of a command to a driver: it may be in the middle of a round.
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// The deadline of taking in a whole directory.
const TAKE_IN_WAIT: Duration = Duration::from_secs(3600);

/// Candidates for conflict copies that are read for a status.
const CONFLICTS_MAX: usize = 100_000;

/// Why something about folders was not done; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FolderError {
    /// There is no such folder, path or version.
    #[error("{0}")]
    Unknown(String),
    /// A rule says no.
    #[error("{0}")]
    Refused(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The same request may succeed later.
    #[error("{0}")]
    Temporary(String),
    /// The agent failed.
    #[error("{0}")]
    Internal(String),
}

impl From<anyhow::Error> for FolderError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<AskError>() {
            Ok(error) => error.into(),
            Err(error) => Self::Internal(format!("{error:#}")),
        }
    }
}

impl From<AskError> for FolderError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Closed => Self::Temporary(error.to_string()),
            AskError::Journal(_) => Self::Temporary(format!("the journal: {error}")),
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, FolderError>;

/// A handle to the folders of this device. Cheap to clone.
#[derive(Clone)]
pub struct Folders {
    pub(super) shared: Shared,
    requests: mpsc::Sender<Request>,
    /// Held while a directory is bound, so that two cannot be bound into each other.
    pub(super) binding: Arc<Mutex<()>>,
}

/// The parts of the agent that folders need.
pub(crate) struct Ingredients {
    pub(crate) me: NodeId,
    pub(crate) home: Home,
    pub(crate) journal: JournalHandle,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) embedded: Option<EmbeddedStore>,
    pub(crate) index: Index,
    pub(crate) staging_dir: PathBuf,
    /// Changes when the index has taken up what is new in the store.
    pub(crate) listed: watch::Receiver<u64>,
}

/// Opens `folders.db`, and makes the handle and the task that runs the drivers. Blocks.
///
/// # Errors
/// The database cannot be opened.
pub(crate) fn open(ingredients: Ingredients) -> anyhow::Result<(Folders, Manager)> {
    let Ingredients { me, home, journal, store, embedded, index, staging_dir, listed } =
        ingredients;
    let shared = Shared {
        me,
        db: FoldersDb::open(&home.folders_db_path())?,
        journal: FolderJournal::new(journal, me),
        home,
        store,
        embedded,
        index,
        staging_dir,
        listed,
        reports: Reports::default(),
    };
    let (manager, requests) = Manager::new(shared.clone());
    Ok((Folders { shared, requests, binding: Arc::default() }, manager))
}

impl Folders {
    /// Closes the database. Blocks.
    pub(crate) fn close(&self) {
        self.shared.db.close();
    }

    /// Which of these assets a bound directory of this device is made of, each with one path.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn uses(&self, hashes: BTreeSet<Hash>) -> Result<BTreeMap<Hash, FolderPath>> {
        let db = self.shared.db.clone();
        Ok(blocking(move || Ok(db.uses(&hashes)?)).await?)
    }

    /// Whether a file of a bound directory waits for each of the assets, in their order. Blocks.
    pub(crate) fn are_waited_for(&self, hashes: &[Hash]) -> db::Result<Vec<bool>> {
        self.shared.db.are_waited_for(hashes)
    }

    /// The assets above `after` that files of bound directories wait for. Blocks.
    pub(crate) fn waited_for(&self, after: Option<Hash>, limit: usize) -> db::Result<Vec<Hash>> {
        self.shared.db.waited_for(after, limit)
    }

    // ---- reading ---------------------------------------------------------------------------------

    /// All folders of the group.
    pub async fn list(&self) -> Result<FoldersPage> {
        let bindings = self.bindings().await?;
        let mut folders = self.shared.journal.folders().await?;
        // Of those that the group does not have the directory is still bound.
        let is_unknown =
            |bound: &&StoredBinding| folders.iter().all(|folder| folder.id != bound.binding.folder);
        let unknown: Vec<Folder> = bindings.iter().filter(is_unknown).map(nameless).collect();
        folders.extend(unknown);
        let mut views = Vec::with_capacity(folders.len());
        for folder in folders {
            let bound = bindings.iter().find(|bound| bound.binding.folder == folder.id);
            views.push(self.view(folder, bound).await?);
        }
        views.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        Ok(FoldersPage { folders: views })
    }

    /// A folder by its name, its id or the unique start of its id. One that the group does not have
    /// is found where a directory of this device is bound to it.
    pub async fn find(&self, text: &str) -> Result<Folder> {
        let mut folders = self.shared.journal.folders().await?;
        for bound in self.bindings().await? {
            if folders.iter().all(|folder| folder.id != bound.binding.folder) {
                folders.push(nameless(&bound));
            }
        }
        let named: Vec<&Folder> = folders.iter().filter(|folder| folder.name == text).collect();
        let found = match named.is_empty() {
            false => named,
            true if text.len() >= 4 => {
                let starts = |folder: &&Folder| folder.id.to_string().starts_with(text);
                folders.iter().filter(starts).collect()
            }
            true => Vec::new(),
        };
        match found.as_slice() {
            [folder] => Ok((*folder).clone()),
            [] => Err(FolderError::Unknown(format!(
                "no folder has the name or id {text:?}: `can-sync folder ls` lists them"
            ))),
            several => {
                let ids: Vec<String> = several.iter().map(|folder| folder.id.to_string()).collect();
                Err(FolderError::Unknown(format!(
                    "{} folders are called {text:?}: give the id, one of {}",
                    several.len(),
                    ids.join(", ")
                )))
            }
        }
    }

    /// The state of a folder on this device.
    pub async fn status(&self, text: &str) -> Result<FolderStatus> {
        let folder = self.find(text).await?;
        let bound = self.bound(folder.id).await?;
        let skipped = bound
            .as_ref()
            .map(|_| self.shared.reports.get(&folder.id).skipped())
            .unwrap_or_default();
        let mut status = FolderStatus {
            folder: self.view(folder, bound.as_ref()).await?,
            files: 0,
            bytes: 0,
            missing: 0,
            waiting: 0,
            conflicts: 0,
            conflict_examples: Vec::new(),
            skipped,
        };
        let Some(bound) = bound else { return Ok(status) };
        let db = self.shared.db.clone();
        let (figures, candidates) = blocking(move || {
            let candidates = db.containing(bound.id, b" (conflict, ", CONFLICTS_MAX)?;
            Ok((db.figures(bound.id)?, candidates))
        })
        .await?;
        (status.files, status.bytes) = (figures.paths, figures.bytes);
        (status.missing, status.waiting) = (figures.missing, figures.waiting);
        let conflicts = candidates.iter().filter(|path| is_conflict_path(path));
        let conflicts: Vec<String> = conflicts.map(FolderPath::to_text).collect();
        status.conflicts = conflicts.len() as u64;
        status.conflict_examples = conflicts.into_iter().take(EXAMPLES_MAX).collect();
        Ok(status)
    }

    /// The folder that an absolute path of this device is in, and its path there. The path is in the
    /// text form of paths.
    pub async fn locate(&self, text: &str) -> Result<Located> {
        let path = absolute(text)?;
        let asked = path.clone();
        let path = blocking(move || Ok(resolved(&asked))).await?;
        let bindings = self.bindings().await?;
        for bound in bindings {
            let Ok(rest) = path.strip_prefix(&bound.binding.dir) else { continue };
            let folders = self.shared.journal.folders().await?;
            let id = bound.binding.folder;
            let name = folders.into_iter().find(|folder| folder.id == id).map(|folder| folder.name);
            let path = match rest.as_os_str().is_empty() {
                true => String::new(),
                false => FolderPath::from_bytes(rest.as_os_str().as_bytes())
                    .map_err(|error| FolderError::Invalid(error.to_string()))?
                    .to_text(),
            };
            return Ok(Located { id, name: name.unwrap_or_default(), path });
        }
        Err(FolderError::Unknown(format!(
            "{} is in no directory that is bound to a folder: `can-sync folder ls` lists them",
            path.display()
        )))
    }

    pub(super) async fn view(
        &self,
        folder: Folder,
        bound: Option<&StoredBinding>,
    ) -> Result<FolderView> {
        let binding = match bound {
            Some(stored) => Some(self.binding_view(stored).await?),
            None => None,
        };
        let Folder { id, name, created_by } = folder;
        let mut told = self.shared.journal.told_bindings().await?;
        told.retain(|told| told.folder == id && told.device != self.shared.me);
        let mut elsewhere = Vec::with_capacity(told.len());
        for ToldBinding { device, dir, mode, .. } in told {
            let device_name = self.shared.journal.device_name(device).await?;
            elsewhere.push(BoundElsewhere { device, device_name, dir, mode });
        }
        Ok(FolderView { id, name, created_by, binding, elsewhere })
    }

    async fn binding_view(&self, stored: &StoredBinding) -> Result<BindingView> {
        let Binding { folder, dir, mode, keep, symlinks } = &stored.binding;
        let report = self.shared.reports.get(folder);
        let mut problems: Vec<String> = report.problems.into_values().collect();
        if let Some(held) = &stored.held {
            problems.push(self.shared.held_text(held).await?);
        }
        Ok(BindingView {
            dir: dir.to_string_lossy().into_owned(),
            mode: *mode,
            keep: *keep,
            symlinks: *symlinks,
            state: match stored {
                StoredBinding { held: Some(_), .. } => BindingState::Held,
                StoredBinding { is_paused: true, .. } => BindingState::Paused,
                _ => report.state,
            },
            problems,
        })
    }

    pub(super) async fn bindings(&self) -> Result<Vec<StoredBinding>> {
        let db = self.shared.db.clone();
        Ok(blocking(move || Ok(db.bindings()?)).await?)
    }

    /// The binding of a folder on this device.
    pub(super) async fn bound(&self, folder: FolderId) -> Result<Option<StoredBinding>> {
        let bindings = self.bindings().await?;
        Ok(bindings.into_iter().find(|bound| bound.binding.folder == folder))
    }

    // ---- commands -------------------------------------------------------------------------------

    /// Stops writing anything to the directory and to the folder.
    pub async fn pause(&self, folder: &str) -> Result<FolderView> {
        self.command(folder, COMMAND_WAIT, Command::Pause).await
    }

    /// Goes on after a pause.
    pub async fn resume(&self, folder: &str) -> Result<FolderView> {
        self.command(folder, COMMAND_WAIT, Command::Resume).await
    }

    /// Lets held changes pass.
    pub async fn confirm(&self, folder: &str) -> Result<FolderView> {
        self.command(folder, COMMAND_WAIT, Command::Confirm).await
    }

    /// Records all changes of the bound directory in the journal, also those that were held back for
    /// the user to confirm.
    pub(super) async fn take_in(&self, folder: &Folder) -> Result<FolderView> {
        let id = folder.id.to_string();
        self.command(&id, TAKE_IN_WAIT, Command::TakeIn).await
    }

    async fn command(
        &self,
        folder: &str,
        wait: Duration,
        command: impl FnOnce(oneshot::Sender<()>) -> Command,
    ) -> Result<FolderView> {
        let folder = self.find(folder).await?;
        if self.bound(folder.id).await?.is_none() {
            return Err(not_bound(&folder));
        }
        let (reply, answer) = oneshot::channel();
        let request = Request::Command(folder.id, command(reply));
        let done = async {
            self.requests.send(request).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())
        };
        timeout(wait, done).await.map_err(|_| late(wait))??;
        let bound = self.bound(folder.id).await?;
        self.view(folder, bound.as_ref()).await
    }

    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let done = async {
            self.requests.send(request(reply)).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())
        };
        timeout(COMMAND_WAIT, done).await.map_err(|_| late(COMMAND_WAIT))?
    }
}

/// An absolute path from its text form.
pub(super) fn absolute(text: &str) -> Result<PathBuf> {
    let invalid = || FolderError::Invalid(format!("expected an absolute path, got {text:?}"));
    let rest = text.strip_prefix('/').ok_or_else(invalid)?;
    let rest = rest.trim_end_matches('/');
    let path = FolderPath::from_text(rest).map_err(|error| {
        FolderError::Invalid(format!("expected an absolute path, got {text:?}: {error}"))
    })?;
    Ok(Path::new("/").join(OsStr::from_bytes(path.as_bytes())))
}

/// The path without symbolic links in what exists of its directories. Its last component is not
/// followed.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    match std::fs::canonicalize(parent) {
        Ok(parent) => parent.join(name),
        Err(_) => resolved(parent).join(name),
    }
}

/// A folder that the group does not have, by what its binding says.
fn nameless(bound: &StoredBinding) -> Folder {
    let id = bound.binding.folder;
    Folder { id, name: id.to_string(), created_by: None }
}

pub(super) fn temporary(error: impl std::fmt::Display) -> FolderError {
    FolderError::Temporary(error.to_string())
}

pub(super) fn not_bound(folder: &Folder) -> FolderError {
    FolderError::Unknown(format!("no directory of this device is bound to {:?}", folder.name))
}

fn stopping() -> FolderError {
    FolderError::Temporary("the agent is stopping".into())
}

fn late(wait: Duration) -> FolderError {
    FolderError::Temporary(format!("not done within {} s: try again", wait.as_secs()))
}
