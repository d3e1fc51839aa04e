//! Shared folders as the rest of the agent sees them: which folders there are, the version of each
//! path, and its history. The journal holds all of it.
//!
//! Every device resolves the conflicts that it sees, whether it has a directory for the folder or not:
//! [`resolve_conflicts`] is the task that does so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::clock::wall_ms;
use crate::core::folder::path::PATH_BYTES_MAX;
use crate::core::folder::path::{FolderPath, PathKey};
use crate::core::folder::version::{Content, Version};
use crate::core::folder::{
    BINDING_DIR, BINDING_MODE, BINDING_MODEL, FOLDER_CREATED_BY, FOLDER_MODEL, FOLDER_NAME,
    FOLDER_NAME_BYTES_MAX,
};
use crate::core::foreign_text::visible;
use crate::core::ids::{FolderId, NodeId};
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut, Expect};
use crate::core::journal::op::{Key, Value};
use crate::core::journal::session::Standing;
pub use crate::state::journal::{
    Cursor, FileChange, FileChangesPage, FileRow, HistoryEntry, HistoryPage, HistoryPlace,
    VersionsPage,
};
use crate::state::journal::{
    HISTORY_WAIT_MS, Journal, JournalError, JournalReader, Owner, Record, Stamping,
};

use super::journal::{AskError, Commits, JournalHandle};

/// The most folders that are shown. Any member can add more, and people look at a list of them.
pub const FOLDERS_MAX: usize = 1000;

/// The most versions that are resolved in one transaction of the journal's writer.
const RESOLVED_PER_WRITE: usize = 256;

/// The most directories of all devices that are shown. Any member can say that it has more.
pub const TOLD_BINDINGS_MAX: usize = 1000;

/// The longest word for a mode that is shown.
const MODE_BYTES_MAX: usize = 32;

/// How long versions that lose gather before they are resolved: those of one batch of ops, together.
const GATHER: Duration = Duration::from_millis(20);

/// How long to wait when they cannot be resolved now.
const RETRY: Duration = Duration::from_secs(30);

/// The most events of one path among which that of its current version is looked for: it is the last
/// but for what arrives late.
const ENTRIES_AT_ONCE: usize = 16;

/// The most changes in one transaction of the journal's writer, so that others get their turn.
const CHANGES_PER_WRITE: usize = 1024;

/// The folders of the group. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FolderJournal {
    journal: JournalHandle,
    node_id: NodeId,
}

/// A shared folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The folder's id.
    pub id: FolderId,
    /// The folder's name, fit for people; several folders may have one.
    pub name: String,
    /// The device that created it, if it says so.
    pub created_by: Option<NodeId>,
}

/// A directory that a member says it has bound to a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldBinding {
    /// The device.
    pub device: NodeId,
    /// The folder.
    pub folder: FolderId,
    /// The directory on that device, fit for people.
    pub dir: String,
    /// The word for which way changes go.
    pub mode: String,
}

/// Why nothing was written.
#[derive(Debug, Clone, Error)]
pub enum WriteError {
    /// The journal cannot write anything now.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The journal refuses the change.
    #[error(transparent)]
    Draft(#[from] DraftError),
}

impl FolderJournal {
    /// The folders in `journal`, that of the device `node_id`.
    pub fn new(journal: JournalHandle, node_id: NodeId) -> Self {
        Self { journal, node_id }
    }

    /// The folders of the group, by id; at most [`FOLDERS_MAX`].
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn folders(&self) -> Result<Vec<Folder>, AskError> {
        let read = |reader: &JournalReader| {
            reader.records(FOLDER_MODEL, Some(Owner::Shared), &[], None, FOLDERS_MAX)
        };
        Ok(self.journal.read(read).await?.records.iter().filter_map(folder).collect())
    }

    /// Creates a folder. Its id must be new and random.
    ///
    /// # Errors
    /// The journal cannot write, or refuses: [`DraftError::Alive`] for an id that is taken.
    pub async fn create(&self, id: FolderId, name: &str) -> Result<(), WriteError> {
        let got = name.len();
        if name.is_empty() {
            return Err(DraftError::Empty("a folder's name").into());
        }
        if got > FOLDER_NAME_BYTES_MAX {
            let (what, limit) = ("a folder's name in bytes", FOLDER_NAME_BYTES_MAX);
            return Err(DraftError::OutOfBounds { what, got, limit }.into());
        }
        let key = Key { model: FOLDER_MODEL.into(), id: id.0.to_vec(), owned: false };
        let set = BTreeMap::from([
            (FOLDER_NAME.to_owned(), Some(Value::Text(name.to_owned()))),
            (FOLDER_CREATED_BY.to_owned(), Some(Value::Bytes(self.node_id.0.to_vec()))),
        ]);
        let (add, remove) = (BTreeSet::new(), BTreeSet::new());
        let put = DraftPut { key: key.clone(), create: true, set, add, remove };
        let draft =
            Draft { changes: vec![DraftChange::Put(put)], expect: vec![Expect::Absent(key)] };
        self.journal.write(draft).await??;
        Ok(())
    }

    /// Tells the group that this device has bound a directory to a folder.
    ///
    /// # Errors
    /// The journal cannot write.
    pub async fn tell_bound(
        &self,
        folder: FolderId,
        dir: &str,
        mode: &str,
    ) -> Result<(), WriteError> {
        let told = self.told_bindings().await?;
        let now = ToldBinding {
            device: self.node_id,
            folder,
            dir: visible(dir, PATH_BYTES_MAX),
            mode: mode.to_owned(),
        };
        if told.contains(&now) {
            return Ok(());
        }
        let set = BTreeMap::from([
            (BINDING_DIR.to_owned(), Some(Value::Text(now.dir))),
            (BINDING_MODE.to_owned(), Some(Value::Text(now.mode))),
        ]);
        let (key, add, remove) = (binding_key(folder), BTreeSet::new(), BTreeSet::new());
        let put = DraftChange::Put(DraftPut { key, create: true, set, add, remove });
        self.journal.write(Draft { changes: vec![put], expect: Vec::new() }).await??;
        Ok(())
    }

    /// Tells the group that this device has bound no directory to any folder but these.
    ///
    /// # Errors
    /// The journal cannot write.
    pub async fn tell_unbound_but(&self, folders: &[FolderId]) -> Result<(), WriteError> {
        let mut told = self.told_bindings().await?;
        told.retain(|told| told.device == self.node_id && !folders.contains(&told.folder));
        for told in told {
            let changes = vec![DraftChange::Delete(binding_key(told.folder))];
            self.journal.write(Draft { changes, expect: Vec::new() }).await??;
        }
        Ok(())
    }

    /// The directories that members have bound to folders, this device among them; at most
    /// [`TOLD_BINDINGS_MAX`].
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn told_bindings(&self) -> Result<Vec<ToldBinding>, AskError> {
        let read = |reader: &JournalReader| {
            reader.records(BINDING_MODEL, None, &[], None, TOLD_BINDINGS_MAX)
        };
        let page = self.journal.read(read).await?;
        let mut told: Vec<ToldBinding> = page.records.iter().filter_map(told_binding).collect();
        told.retain(|told| {
            let is_member = self.journal.roster().standing(&told.device) == Standing::Member;
            is_member || told.device == self.node_id
        });
        Ok(told)
    }

    /// The versions of paths, in the order of `paths`; `None` for a path that the journal does not
    /// know.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn versions_at(
        &self,
        folder: FolderId,
        paths: Vec<FolderPath>,
    ) -> Result<Vec<Option<FileRow>>, AskError> {
        self.journal.read(move |reader| reader.versions_at(folder, &paths)).await
    }

    /// Versions of a folder, ascending by key; `after` is [`VersionsPage::next`].
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn versions(
        &self,
        folder: FolderId,
        after: Option<PathKey>,
        limit: usize,
    ) -> Result<VersionsPage, AskError> {
        self.journal.read(move |reader| reader.versions(folder, after, limit)).await
    }

    /// Versions of all folders that changed since a cursor, in order of arrival. Starts over with
    /// [`FileChangesPage::is_restart`] when the journal does not know the cursor.
    ///
    /// # Errors
    /// The journal cannot be read, or this device is in no group.
    pub async fn changes(
        &self,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<FileChangesPage, AskError> {
        let page = self.journal.read(move |reader| reader.file_changes(after.as_ref(), limit));
        page.await?.ok_or_else(|| JournalError::NoGroup.into())
    }

    /// Writes changes of this device, in the given order, in ops of up to 64 paths. Adds the counter
    /// of this device to each vector, and its name. Returns the versions as written; they are
    /// durable. What the journal holds by now is not compared: a concurrent version loses nothing.
    ///
    /// # Errors
    /// The journal cannot write, or refuses. Of many changes the first may be written.
    pub async fn write(
        &self,
        folder: FolderId,
        changes: Vec<FileChange>,
    ) -> Result<Vec<Version>, WriteError> {
        self.write_as(folder, changes, Stamping::AsChanges).await
    }

    /// Writes versions as they are, with their vectors: bases that the journal has forgotten, and
    /// what [`make_way`] says.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// [`make_way`]: crate::core::folder::resolve::make_way
    pub async fn write_as_they_are(
        &self,
        folder: FolderId,
        changes: Vec<FileChange>,
    ) -> Result<Vec<Version>, WriteError> {
        self.write_as(folder, changes, Stamping::AsTheyAre).await
    }

    /// Writes contents over whatever the journal holds at their paths, in the given order; what they
    /// replace goes into the history. For writers that keep no base of their own.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn replace(
        &self,
        folder: FolderId,
        mut contents: Vec<(FolderPath, Content)>,
    ) -> Result<Vec<Version>, WriteError> {
        let mut written = Vec::with_capacity(contents.len());
        while !contents.is_empty() {
            let rest = contents.split_off(contents.len().min(CHANGES_PER_WRITE));
            let now = std::mem::replace(&mut contents, rest);
            let work =
                move |journal: &mut Journal, now_ms| journal.replace_files(folder, now, now_ms);
            written.extend(self.journal.run(work).await??);
        }
        Ok(written)
    }

    /// Hands over bases that the journal may have forgotten, see [`may_be_forgotten`], before they are
    /// replaced. What the journal knows changes nothing.
    ///
    /// # Errors
    /// The journal cannot write.
    ///
    /// [`may_be_forgotten`]: crate::core::folder::resolve::may_be_forgotten
    pub async fn keep(&self, folder: FolderId, bases: Vec<Version>) -> Result<(), AskError> {
        let work =
            move |journal: &mut Journal, now_ms| journal.keep_versions(folder, &bases, now_ms);
        self.journal.run(work).await
    }

    /// The version of the path with a key.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn version_of_key(
        &self,
        folder: FolderId,
        key: PathKey,
    ) -> Result<Option<FileRow>, AskError> {
        self.journal.read(move |reader| reader.version_of_key(folder, key)).await
    }

    async fn write_as(
        &self,
        folder: FolderId,
        mut changes: Vec<FileChange>,
        stamping: Stamping,
    ) -> Result<Vec<Version>, WriteError> {
        let mut written = Vec::with_capacity(changes.len());
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(CHANGES_PER_WRITE));
            let now = std::mem::replace(&mut changes, rest);
            let work = move |journal: &mut Journal, now_ms| {
                journal.write_files(folder, now, stamping, now_ms)
            };
            written.extend(self.journal.run(work).await??);
        }
        Ok(written)
    }

    /// The history of a path, or of all paths of a folder without one: what was changed or removed
    /// since a time, newest arrivals first. `after` is [`HistoryPage::next`].
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn history(
        &self,
        folder: FolderId,
        path: Option<&FolderPath>,
        since_ms: Option<u64>,
        after: Option<HistoryPlace>,
        limit: usize,
    ) -> Result<HistoryPage, AskError> {
        let (key, since_ms) = (path.map(FolderPath::key), since_ms.unwrap_or(0));
        let read =
            move |reader: &JournalReader| reader.file_history(folder, key, since_ms, after, limit);
        self.journal.read(read).await
    }

    /// Of changes, each given by its path, its time and its device: whether a user of that device asked
    /// to put the path back to an earlier version.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn are_undone(
        &self,
        folder: FolderId,
        changes: Vec<(PathKey, u64, NodeId)>,
    ) -> Result<Vec<bool>, AskError> {
        let read = move |reader: &JournalReader| {
            let is_undone = |(key, changed_at_ms, device): &(PathKey, u64, NodeId)| {
                let since_ms = *changed_at_ms;
                let page =
                    reader.file_history(folder, Some(*key), since_ms, None, ENTRIES_AT_ONCE)?;
                Ok(page.entries.iter().any(|entry| {
                    let by = (entry.changed_at_ms, entry.device);
                    entry.is_undo && by == (since_ms, *device)
                }))
            };
            changes.iter().map(is_undone).collect()
        };
        self.journal.read(read).await
    }

    /// The name of a device, for people.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn device_name(&self, device: NodeId) -> Result<String, AskError> {
        self.journal.read(move |reader| reader.device_name(&device)).await
    }

    /// Changes with every commit of the journal.
    pub fn commits(&self) -> watch::Receiver<Commits> {
        self.journal.commits()
    }
}

/// Resolves versions that lost their cells, as they appear and as they become due, until the journal
/// is closed.
pub async fn resolve_conflicts(journal: JournalHandle) {
    let mut commits = journal.commits();
    loop {
        commits.borrow_and_update();
        let wait = match resolve_due(&journal).await {
            Ok(wait) => wait,
            Err(WriteError::Ask(AskError::Closed)) => return,
            Err(error) => {
                tracing::debug!(%error, "cannot resolve conflicts of files now");
                sleep(RETRY).await;
                continue;
            }
        };
        // The end of the wait is also a reason to look.
        if let Ok(Err(_)) = timeout(wait, commits.changed()).await {
            return;
        }
        sleep(GATHER).await;
    }
}

/// Resolves what is due now. Returns the time until the next version is due.
async fn resolve_due(journal: &JournalHandle) -> Result<Duration, WriteError> {
    loop {
        let next_ms = journal.read(|reader| reader.next_superseded_ms()).await?;
        // A row that seems to be due later was written before the clock was set back.
        let wait_ms = match next_ms {
            Some(due_ms) => due_ms.saturating_sub(wall_ms()),
            None => return Ok(Duration::from_millis(HISTORY_WAIT_MS)),
        };
        if (1..=HISTORY_WAIT_MS).contains(&wait_ms) {
            return Ok(Duration::from_millis(wait_ms));
        }
        let work =
            |journal: &mut Journal, now_ms| journal.resolve_superseded(RESOLVED_PER_WRITE, now_ms);
        let resolved = journal.run(work).await??;
        if resolved.ops > 0 {
            tracing::debug!(versions = resolved.versions, ops = resolved.ops, "resolved conflicts");
        }
    }
}

/// Reads a folder's record. Returns `None` when its id is not one of a folder. Any member can write
/// anything into its fields.
pub(super) fn folder(record: &Record) -> Option<Folder> {
    let id = FolderId::from_slice(&record.id)?;
    let name = match record.fields.get(FOLDER_NAME) {
        Some(Some(Value::Text(name))) => visible(name, FOLDER_NAME_BYTES_MAX),
        _ => String::new(),
    };
    let created_by = match record.fields.get(FOLDER_CREATED_BY) {
        Some(Some(Value::Bytes(bytes))) => NodeId::from_slice(bytes),
        _ => None,
    };
    let name = if name.is_empty() { id.to_string() } else { name };
    Some(Folder { id, name, created_by })
}

fn binding_key(folder: FolderId) -> Key {
    Key { model: BINDING_MODEL.into(), id: folder.to_string().into_bytes(), owned: true }
}

/// Reads what a device says that it has bound. `None` when it is about no folder, or not by a device.
fn told_binding(record: &Record) -> Option<ToldBinding> {
    let Owner::Device(device) = record.owner else { return None };
    let folder = std::str::from_utf8(&record.id).ok()?.parse().ok()?;
    let text = |field: &str, bytes_max| match record.fields.get(field) {
        Some(Some(Value::Text(text))) => visible(text, bytes_max),
        _ => String::new(),
    };
    let (dir, mode) = (text(BINDING_DIR, PATH_BYTES_MAX), text(BINDING_MODE, MODE_BYTES_MAX));
    Some(ToldBinding { device, folder, dir, mode })
}
