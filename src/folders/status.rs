//! The status of folders for people and programs. Plain data, written by the manager and the
//! drivers, read by the API and the command line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Keep, Mode};
use crate::core::ids::{FolderId, Hash, NodeId};

/// The most examples of one kind in a status: enough to see what is meant.
pub const EXAMPLES_MAX: usize = 20;

/// The most paths of one reason that are kept between two scans.
pub(crate) const LATER_MAX: usize = 1000;

/// All folders of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FoldersPage {
    /// The folders, by name.
    pub folders: Vec<FolderView>,
}

/// A folder of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FolderView {
    /// The folder's id.
    pub id: FolderId,
    /// The folder's name. Several folders may have the same.
    pub name: String,
    /// The device that made it. Null: it does not say so.
    #[schema(required)]
    pub created_by: Option<NodeId>,
    /// The directory of this device that is bound to it. Null: none.
    #[schema(required)]
    pub binding: Option<BindingView>,
    /// The directories that other devices have bound to it, as they say.
    #[serde(default)]
    pub elsewhere: Vec<BoundElsewhere>,
}

/// A directory of another device that is bound to a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BoundElsewhere {
    /// The device.
    pub device: NodeId,
    /// The device's name.
    pub device_name: String,
    /// The directory there.
    pub dir: String,
    /// Which way changes go there, such as `two-way`.
    pub mode: String,
}

/// A directory that is bound to a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BindingView {
    /// The directory. Bytes that are no UTF-8 are replaced.
    pub dir: String,
    /// Which way changes go.
    pub mode: Mode,
    /// How the directory keeps contents.
    pub keep: Keep,
    /// Whether symbolic links are synced.
    pub symlinks: bool,
    /// The state of the binding on this device.
    pub state: BindingState,
    /// Why it is not kept equal, or what else is wrong; empty when all is well.
    pub problems: Vec<String>,
}

/// The state of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BindingState {
    /// The directory is being read for the first time since the start.
    Scanning,
    /// Changes are under way, or assets are missing.
    Syncing,
    /// Directory and folder are equal, but for what is skipped.
    UpToDate,
    /// The user paused it.
    Paused,
    /// Very many changes at once are held back until the user decides.
    Held,
    /// The directory cannot be used; see the problems.
    Stopped,
}

/// A folder with its figures on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FolderStatus {
    /// The folder.
    pub folder: FolderView,
    /// Files, links and empty directories that are equal in the directory and in the folder.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files whose content is not on this device yet.
    pub missing: u64,
    /// Paths that wait for something else: the problems and the skipped say for what.
    pub waiting: u64,
    /// Conflict copies in the folder.
    pub conflicts: u64,
    /// The paths of some conflict copies.
    pub conflict_examples: Vec<String>,
    /// What is left out, and why.
    pub skipped: Vec<Skipped>,
}

/// Paths that are left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Skipped {
    /// Why they are left out.
    pub reason: String,
    /// How many paths.
    pub count: u64,
    /// Some examples of these paths, in their text form.
    pub examples: Vec<String>,
}

/// A request to bind a directory of this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindRequest {
    /// The directory; absolute.
    pub dir: String,
    /// The name of a folder to make; the directory's own name when left out. Not for an existing
    /// folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which way changes go.
    #[serde(default)]
    pub mode: Mode,
    /// How the directory keeps contents.
    #[serde(default)]
    pub keep: Keep,
    /// Whether to sync symbolic links, as links.
    #[serde(default)]
    pub symlinks: bool,
    /// Only say what it would cost.
    #[serde(default)]
    pub dry_run: bool,
}

/// A directory that was bound, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Bound {
    /// The folder; of a folder that would be made the id is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<FolderId>,
    /// The folder's name.
    pub name: String,
    /// The directory.
    pub dir: String,
    /// Files in the directory now.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes that the store will need for them beside the directory's own.
    pub needed_bytes: u64,
    /// The directory and the store can share blocks: then nothing is kept twice.
    pub shares_blocks: bool,
    /// Files of an existing folder that the directory does not have.
    #[serde(default)]
    pub arriving_files: u64,
    /// Their bytes.
    #[serde(default)]
    pub arriving_bytes: u64,
    /// Files of an existing folder at whose path the directory has something. Where the two differ,
    /// both are kept.
    #[serde(default)]
    pub in_both: u64,
    /// What is left out, and why.
    pub skipped: Vec<Skipped>,
}

/// Which version of a path to bring back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// The path within the folder, in its text form.
    pub path: String,
    /// The number of the version, as `history` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The version that was current then, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// The versions of a path, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathHistory {
    /// The path, in its text form.
    pub path: String,
    /// The versions. The first one is the current version.
    pub versions: Vec<PastVersion>,
    /// There are older ones than those listed.
    pub more: bool,
}

/// A version of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PastVersion {
    /// The version's number: 0 is the current version, 1 the one before.
    pub number: u64,
    /// When it ceased to be current, milliseconds since the Unix epoch; null for the current one.
    #[schema(required)]
    pub until_ms: Option<u64>,
    /// The device that replaced it; for the current version the device that wrote it.
    pub device: NodeId,
    /// What was at the path.
    pub content: ContentView,
}

/// What is or was at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ContentView {
    /// Nothing is at the path.
    Absent,
    /// A file.
    File {
        /// The file's asset.
        hash: Hash,
        /// The file's size.
        size_bytes: u64,
        /// When it was modified, milliseconds since the Unix epoch.
        modified_ms: i64,
        /// Whether the file's owner may execute it.
        executable: bool,
        /// Whether the file's asset is in the store of this device.
        here: bool,
    },
    /// A symbolic link.
    Symlink {
        /// The link's target. Bytes that are no UTF-8 are replaced.
        target: String,
    },
    /// An empty directory.
    Directory,
    /// Something that only a later version of can-sync knows.
    Unknown,
}

/// A path that was brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    /// The path, in its text form.
    pub path: String,
    /// What is there now.
    pub content: ContentView,
    /// Whether something changed; false if it was like that before.
    pub changed: bool,
}

/// A request to put a folder back to what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// Milliseconds since the Unix epoch: later changes are undone. If left out: the changes in the
    /// directory of this device that are held back, and those that passed just before them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Only changes by the device with this node ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<NodeId>,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an undo changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Undone {
    /// Paths that get an earlier content back.
    pub brought_back: u64,
    /// Paths that are removed, because they were made since.
    pub removed: u64,
    /// Paths that are as they were already.
    pub unchanged: u64,
    /// Paths whose earlier content no reachable store holds on this device: they come back once
    /// another device sends it.
    pub missing: u64,
    /// Paths whose earlier content no device is known to have any more: they stay as they are.
    pub nowhere: u64,
    /// Changes in the directory that are held back and that the undo takes in first.
    pub held: bool,
    /// Some of the paths, each with what happens to it.
    pub examples: Vec<UndoStep>,
}

/// What an undo does to a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UndoStep {
    /// The path, in its text form.
    pub path: String,
    /// What is there before.
    pub from: ContentView,
    /// What is there after.
    pub to: ContentView,
}

/// Where a path of this device belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Located {
    /// The folder.
    pub id: FolderId,
    /// The folder's name.
    pub name: String,
    /// The path within the folder, in its text form; empty for the directory itself.
    pub path: String,
}

/// Why a path is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// The path, in its text form.
    pub path: String,
    /// Sentences that explain the state, the most important first.
    pub lines: Vec<String>,
    /// What the folder holds; null: it never held anything.
    #[schema(required)]
    pub folder: Option<ContentView>,
    /// What was last equal in both; null: nothing.
    #[schema(required)]
    pub base: Option<ContentView>,
    /// What is in the directory of this device.
    pub directory: String,
}

/// Counts what is left out by reason.
#[derive(Debug, Clone)]
pub(crate) struct SkipCount {
    by_reason: BTreeMap<String, (u64, Vec<String>)>,
    /// The most paths of one reason that are named.
    named_max: usize,
}

impl Default for SkipCount {
    fn default() -> Self {
        Self::naming(EXAMPLES_MAX)
    }
}

impl SkipCount {
    /// Counts nothing yet, and names at most `named_max` paths of one reason.
    pub(crate) fn naming(named_max: usize) -> Self {
        Self { by_reason: BTreeMap::new(), named_max }
    }

    /// Adds a path.
    pub(crate) fn add(&mut self, reason: &str, path: String) {
        let (count, named) = self.by_reason.entry(reason.to_owned()).or_default();
        *count += 1;
        if named.len() < self.named_max && !named.contains(&path) {
            named.push(path);
        }
    }

    /// The paths that are named, each with its reason.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_reason.iter().flat_map(|(reason, (_, named))| {
            named.iter().map(move |path| (reason.as_str(), path.as_str()))
        })
    }

    /// The paths left out, as the status shows them: each reason with a count and some examples.
    pub(crate) fn told(&self) -> Vec<Skipped> {
        let skipped = self.by_reason.iter().map(|(reason, (count, named))| Skipped {
            reason: reason.clone(),
            count: *count,
            examples: named.iter().take(EXAMPLES_MAX).cloned().collect(),
        });
        skipped.collect()
    }
}
