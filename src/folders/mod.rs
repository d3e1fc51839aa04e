//! Shared folders on this device: a directory that is bound to a folder of the journal is kept equal
//! to it, both ways.
//!
//! `core::folder` decides, [`disk`] touches the directory, `replica::folders` reads and writes the
//! journal, the store keeps the bytes. Here these are brought together:
//!
//! | file | does |
//! |---|---|
//! | `handle` | the requests from the rest of the process |
//! | `bind` | binding a directory, and what that costs |
//! | `manager` | owns the bindings: one driver each |
//! | `driver` | waits for hints, changes of the journal and arrived assets, and reconciles paths |
//! | `news` | what is new in the journal and in the store, and what is to be tried again |
//! | `hints` | what the hints of the watch lead to |
//! | `scan` | compares the whole directory with the base |
//! | `look` | what is at a path: base, directory, content |
//! | `reconcile` | performs what `core::folder::three_way` decides about paths |
//! | `order` | the order of the changes of a round |
//! | `under_way` | paths that a crash left half written |
//! | `displaced` | edits that came out of the directory when a version was brought to it |
//! | `guard` | the brake |
//! | `ingest` | contents into the store, versions into the journal |
//! | `apply` | versions of the journal into the directory |
//! | `undo`, `past` | history, restore and undo |
//! | `db` | `folders.db` |
//! | `status` | the status for people and programs |

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::core::folder::three_way::Mode;
use crate::core::ids::{FolderId, NodeId};
use disk::Mark;

mod apply;
mod bind;
pub(crate) mod db;
pub mod disk;
mod displaced;
mod driver;
mod guard;
pub mod handle;
mod hints;
mod ingest;
mod look;
pub(crate) mod manager;
mod news;
mod order;
mod past;
mod quiet;
mod reconcile;
mod scan;
mod shared;
pub mod status;
mod under_way;
mod undo;

/// How the directory keeps a content that the store keeps too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// As a copy, which shares its blocks with the store where the file system can do that.
    #[default]
    Copy,
    /// As a hard link to the store's file, read-only. Only for large files.
    Link,
}

impl Keep {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Link => "link",
        }
    }

    /// The way to keep contents with this word.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Copy, Self::Link].into_iter().find(|keep| keep.name() == name)
    }
}

/// A directory of this device that is kept equal to a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The folder.
    pub folder: FolderId,
    /// The directory; absolute.
    pub dir: PathBuf,
    /// Which way changes go.
    pub mode: Mode,
    /// How the directory keeps contents.
    pub keep: Keep,
    /// Whether symbolic links are synced, as links.
    pub symlinks: bool,
}

impl Binding {
    /// What the marker of the directory says when the device `device` has bound it.
    fn mark(&self, device: NodeId) -> Mark {
        Mark { folder: self.folder, device }
    }
}
