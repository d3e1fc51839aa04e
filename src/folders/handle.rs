//! What the rest of the process may ask about folders. Every call ends within its deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use thiserror::Error;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Binding;
use super::db::{FoldersDb, StoredBinding};
use super::disk::{MARKER, Root, RootError, Rules, Scanned, SeenKind};
use super::driver::Command;
use super::manager::{Manager, Request};
use super::shared::{Reports, Shared, blocking};
use super::status::{
    BindRequest, BindingState, BindingView, Bound, EXAMPLES_MAX, FolderStatus, FolderView,
    FoldersPage, Located, SkipCount,
};
use crate::core::folder::names::is_conflict_path;
use crate::core::folder::path::FolderPath;
use crate::core::ids::{FolderId, Hash, NodeId};
use crate::db;
use crate::replica::folders::{Folder, FolderJournal};
use crate::replica::journal::{AskError, JournalHandle};
use crate::state::home::Home;
use crate::state::index::Index;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;

/// The deadline of a command to a driver: it may be in the middle of a round.
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// The deadline of taking in a whole directory.
const TAKE_IN_WAIT: Duration = Duration::from_secs(3600);

/// The longest name of a folder, bytes.
const NAME_BYTES_MAX: usize = 200;

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
    /// The same may succeed later.
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
    binding: Arc<Mutex<()>>,
}

/// What the folders are made of.
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

    /// How a folder stands on this device.
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

    async fn view(&self, folder: Folder, bound: Option<&StoredBinding>) -> Result<FolderView> {
        let binding = match bound {
            Some(stored) => Some(self.binding_view(stored).await?),
            None => None,
        };
        let Folder { id, name, created_by } = folder;
        Ok(FolderView { id, name, created_by, binding })
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

    async fn bindings(&self) -> Result<Vec<StoredBinding>> {
        let db = self.shared.db.clone();
        Ok(blocking(move || Ok(db.bindings()?)).await?)
    }

    /// The binding of a folder on this device.
    pub(super) async fn bound(&self, folder: FolderId) -> Result<Option<StoredBinding>> {
        let bindings = self.bindings().await?;
        Ok(bindings.into_iter().find(|bound| bound.binding.folder == folder))
    }

    // ---- binding ---------------------------------------------------------------------------------

    /// Makes a folder of a directory.
    pub async fn add(&self, request: BindRequest) -> Result<Bound> {
        self.bind(None, request).await
    }

    /// Binds a directory to an existing folder.
    pub async fn join(&self, folder: &str, request: BindRequest) -> Result<Bound> {
        let folder = self.find(folder).await?;
        if self.bound(folder.id).await?.is_some() {
            return Err(FolderError::Refused(format!(
                "a directory of this device is bound to {:?} already",
                folder.name
            )));
        }
        self.bind(Some(folder), request).await
    }

    async fn bind(&self, folder: Option<Folder>, request: BindRequest) -> Result<Bound> {
        let _one_at_a_time = self.binding.lock().await;
        let given = absolute(&request.dir)?;
        let dir =
            blocking(move || Ok(std::fs::canonicalize(&given).map_err(|e| (given, e)))).await?;
        let dir = dir.map_err(|(given, error)| {
            FolderError::Invalid(format!("cannot open {}: {error}", given.display()))
        })?;
        self.check_place(&dir).await?;
        let name = match (&folder, &request.name) {
            (Some(folder), _) => folder.name.clone(),
            (None, Some(name)) => name.clone(),
            (None, None) => dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        check_name(&name)?;
        let id = folder.as_ref().map_or_else(|| FolderId(rand::random()), |folder| folder.id);
        let mut bound = self.survey(dir.clone(), request.symlinks).await?;
        bound.name = name.clone();
        bound.id = folder.as_ref().map(|folder| folder.id);
        if request.mode.reads() && bound.needed_bytes > 0 {
            let space = self.shared.store.check_space(bound.needed_bytes).await;
            space.map_err(|error| {
                FolderError::Refused(format!(
                    "the directory has {} bytes in {} files, and the store keeps a copy of each: \
                     {error}",
                    bound.bytes, bound.files
                ))
            })?;
        }
        if request.dry_run {
            return Ok(bound);
        }
        let BindRequest { mode, keep, symlinks, .. } = request;
        let binding = Binding { folder: id, dir, mode, keep, symlinks };
        let new_name = folder.is_none().then_some(name);
        let stored = self.begin(binding, new_name).await?;
        self.ask(|reply| Request::Start(Box::new(stored), reply)).await?;
        bound.id = Some(id);
        Ok(bound)
    }

    /// Binds a directory, all or nothing: the binding, the marker, and of a new folder its record.
    async fn begin(&self, binding: Binding, new_name: Option<String>) -> Result<StoredBinding> {
        let (folder, dir, mark) =
            (binding.folder, binding.dir.clone(), binding.mark(self.shared.me));
        let db = self.shared.db.clone();
        let stored = blocking(move || Ok(db.begin(binding)?)).await?;
        if let Err(error) = blocking(move || Ok(Root::mark(&dir, mark))).await? {
            self.shared.take_back(stored).await?;
            return Err(refused(error));
        }
        if let Some(name) = new_name
            && let Err(error) = self.shared.journal.create(folder, &name).await
        {
            let settled = self.shared.settle_begun(stored).await?;
            return settled.ok_or_else(|| temporary(error));
        }
        let (db, id) = (self.shared.db.clone(), stored.id);
        blocking(move || Ok(db.finish(id)?)).await?;
        Ok(StoredBinding { is_begun: false, ..stored })
    }

    /// Refuses a directory that overlaps with another bound one or with the agent's own files.
    async fn check_place(&self, dir: &Path) -> Result<()> {
        let home = self.shared.home.clone();
        let own = blocking(move || {
            let own = [home.state_dir().to_owned(), home.store_dir()];
            Ok(own.map(|dir| std::fs::canonicalize(&dir).unwrap_or(dir)))
        });
        let shown = dir.display();
        for own in own.await? {
            if own.starts_with(dir) || dir.starts_with(&own) {
                return Err(FolderError::Refused(format!(
                    "{shown} overlaps with {}, where can-sync keeps its own files: bind another \
                     directory",
                    own.display()
                )));
            }
        }
        for bound in self.bindings().await? {
            let other = &bound.binding.dir;
            if other == dir {
                return Err(FolderError::Refused(format!("{shown} is bound to a folder already")));
            }
            if other.starts_with(dir) || dir.starts_with(other) {
                return Err(FolderError::Refused(format!(
                    "{shown} overlaps with {}, which is bound to a folder: bind one of them only",
                    other.display()
                )));
            }
        }
        Ok(())
    }

    /// What is in a directory, and what it costs to bind it.
    async fn survey(&self, dir: PathBuf, symlinks: bool) -> Result<Bound> {
        let store_dir = self.shared.staging_dir.clone();
        let surveyed = blocking(move || {
            let root = match Root::open_unmarked(&dir) {
                Ok(root) => root,
                Err(error) => return Ok(Err(error)),
            };
            let rules = Rules::load(&root).context("reading .cansyncignore")?;
            let shares_blocks = root.traits(&store_dir).is_ok_and(|traits| traits.can_reflink);
            let (mut files, mut bytes, mut skipped) = (0, 0, SkipCount::default());
            root.scan(None, &rules, None, &mut |scanned| {
                match scanned {
                    Scanned::Entry(path, seen) => match seen.kind {
                        SeenKind::Symlink if !symlinks => {
                            skipped.add(super::scan::LINKS, path.to_text());
                        }
                        _ => {
                            files += 1;
                            bytes += seen.size_bytes;
                        }
                    },
                    Scanned::Skipped(path, skip) => super::scan::count(&mut skipped, &path, &skip),
                    Scanned::EmptyDirectory(..) | Scanned::Leftover(_) => {}
                }
                ControlFlow::Continue(())
            })?;
            let needed_bytes = if shares_blocks { 0 } else { bytes };
            Ok(Ok(Bound {
                id: None,
                name: String::new(),
                dir: dir.to_string_lossy().into_owned(),
                files,
                bytes,
                needed_bytes,
                shares_blocks,
                skipped: skipped.told(),
            }))
        });
        surveyed.await?.map_err(refused)
    }

    /// Ends a binding. The directory stays as it is, but for its marker.
    pub async fn remove(&self, folder: &str) -> Result<FolderView> {
        let folder = self.find(folder).await?;
        let Some(bound) = self.bound(folder.id).await? else { return Err(not_bound(&folder)) };
        let was = self.ask(|reply| Request::Remove(folder.id, reply)).await?;
        if !was {
            return Err(not_bound(&folder));
        }
        let mark = bound.binding.mark(self.shared.me);
        // A directory that is not there keeps its marker, which does no harm.
        blocking(move || Ok(Root::unmark(&bound.binding.dir, mark).is_ok())).await?;
        self.view(folder, None).await
    }

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

    /// Takes in all that is in the directory, held or not.
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

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let done = async {
            self.requests.send(request(reply)).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())
        };
        timeout(COMMAND_WAIT, done).await.map_err(|_| late(COMMAND_WAIT))?
    }
}

/// An absolute path from its text form.
fn absolute(text: &str) -> Result<PathBuf> {
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
fn resolved(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    match std::fs::canonicalize(parent) {
        Ok(parent) => parent.join(name),
        Err(_) => resolved(parent).join(name),
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() || name.len() > NAME_BYTES_MAX {
        let text = format!("a folder's name has 1 to {NAME_BYTES_MAX} bytes, got {name:?}");
        return Err(FolderError::Invalid(text));
    }
    Ok(())
}

fn refused(error: RootError) -> FolderError {
    FolderError::Refused(match &error {
        RootError::OtherFolder { dir, found } => format!(
            "{} belongs to the folder {found} already: `can-sync folder join {found} DIR`, or remove \
             the file {MARKER} in it if that folder is gone",
            dir.display()
        ),
        RootError::OtherDevice { .. } => format!(
            "{error}: two devices that keep one directory in step would take each other's work for \
             yours. Bind another directory, or remove the file {MARKER} in it if that device does \
             not use it any more"
        ),
        _ => error.to_string(),
    })
}

/// A folder that the group does not have, by what its binding says.
fn nameless(bound: &StoredBinding) -> Folder {
    let id = bound.binding.folder;
    Folder { id, name: id.to_string(), created_by: None }
}

fn temporary(error: impl std::fmt::Display) -> FolderError {
    FolderError::Temporary(error.to_string())
}

fn not_bound(folder: &Folder) -> FolderError {
    FolderError::Unknown(format!("no directory of this device is bound to {:?}", folder.name))
}

fn stopping() -> FolderError {
    FolderError::Temporary("the agent is stopping".into())
}

fn late(wait: Duration) -> FolderError {
    FolderError::Temporary(format!("not done within {} s: try again", wait.as_secs()))
}
