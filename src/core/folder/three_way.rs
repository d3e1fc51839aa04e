//! What is done about one path, from three versions of it: the base, which was last equal on disk
//! and in the journal; what is on the disk; and what is in the journal.
//!
//! W1  Decisions compare values, and absence is a value. Where an event came from never counts, so
//!     what this device wrote itself is no edit.
//! W2  What the journal does not know is never removed from the disk for that.
//! W3  A time of modification alone makes neither an event of the history nor a conflict, and an
//!     edit or removal elsewhere wins over it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::version::{Content, Relation, Vector, Version};

/// How a directory takes part in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Changes go both ways.
    #[default]
    TwoWay,
    /// The directory feeds the folder: it is never written, and what is removed from it stays in the
    /// folder.
    In,
    /// The directory shows the folder: changes in it are set aside.
    Out,
}

impl Mode {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoWay => "two-way",
            Self::In => "in",
            Self::Out => "out",
        }
    }

    /// The mode with this word.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::TwoWay, Self::In, Self::Out].into_iter().find(|mode| mode.name() == name)
    }

    /// Whether changes in the directory become changes of the folder.
    pub fn reads(self) -> bool {
        matches!(self, Self::TwoWay | Self::In)
    }

    /// Whether changes of the folder become changes in the directory.
    pub fn writes(self) -> bool {
        matches!(self, Self::TwoWay | Self::Out)
    }
}

/// What is on the disk at the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSays {
    /// What the base says: the file's facts have not changed since.
    Base,
    /// This.
    Content(Content),
    /// A directory with entries. It counts as an empty one, or as nothing where the path has no
    /// version of its own: such directories exist by what is in them.
    Occupied,
}

/// What to do about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// The journal's version becomes the base: the disk has it already.
    Adopt,
    /// Set the file's times to those of the journal's version, which becomes the base: nothing else
    /// differs.
    Touch,
    /// Bring the journal's version to the disk, where what was just seen is expected. It becomes
    /// the base.
    Apply,
    /// Write what is on the disk into the journal.
    Write(Edit),
    /// Write the base into the journal as it is: the journal has forgotten it.
    WriteBase,
    /// Keep what is on the disk outside the folder's paths, then bring the journal's version to the
    /// disk. Mode `out` only.
    SetAside,
    /// The disk has what the folder does not. Mode `out` only.
    LeaveExtra,
    /// The journal's version is of a later version of this program: leave the path alone.
    Hold,
}

/// An edit on the disk, to be written into the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What is on the disk.
    pub content: Content,
    /// The versions that it contains; the counter of this device is added when it is written.
    pub vector: Vector,
    /// The version that it replaces, for the history; `None` where none is needed.
    pub before: Option<Version>,
}

/// Decides about a path.
pub fn decide(
    mode: Mode,
    base: Option<&Version>,
    disk: &DiskSays,
    journal: Option<&Version>,
) -> Action {
    if journal.is_some_and(|journal| matches!(journal.content, Content::Later(_))) {
        return Action::Hold;
    }
    let was = base.map_or(&Content::Absent, |base| &base.content);
    let disk = match disk {
        DiskSays::Base => was,
        DiskSays::Content(content) => content,
        DiskSays::Occupied => occupied(was, journal),
    };
    let action = match journal {
        None => journal_knows_nothing(base, was, disk),
        Some(journal) => both(base, was, disk, journal),
    };
    in_mode(mode, action, disk, journal)
}

/// What a directory with entries counts as.
fn occupied<'a>(was: &'a Content, journal: Option<&'a Version>) -> &'a Content {
    let is_directory = |content: &&Content| **content == Content::Directory;
    let told = journal.map(|journal| &journal.content);
    Some(was).filter(is_directory).or(told.filter(is_directory)).unwrap_or(&Content::Absent)
}

fn journal_knows_nothing(base: Option<&Version>, was: &Content, disk: &Content) -> Action {
    match base {
        _ if *disk == Content::Absent && *was == Content::Absent => Action::Nothing,
        Some(_) if disk == was => Action::WriteBase,
        _ => edit(disk, base, base.map_or_else(Vector::default, |base| base.vector.clone())),
    }
}

fn both(base: Option<&Version>, was: &Content, disk: &Content, journal: &Version) -> Action {
    let relation = base.map(|base| base.vector.relation(&journal.vector));
    let is_base = base.is_some_and(|base| base.is_same(journal));
    if disk == was {
        return match relation {
            _ if is_base => Action::Nothing,
            Some(Relation::Newer) => Action::WriteBase,
            _ => bring(disk, journal),
        };
    }
    // The disk was changed.
    if *disk == journal.content {
        return Action::Adopt;
    }
    // What the next version contains: the journal's version too if that changed nothing but times.
    let own = || base.map_or_else(Vector::default, |base| base.vector.clone());
    let both = || own().joined(&journal.vector);
    if is_base || relation == Some(Relation::Newer) {
        return edit(disk, base, own());
    }
    if disk.is_like(&journal.content) || disk.is_like(was) {
        return bring(disk, journal);
    }
    if journal.content.is_like(was) {
        return edit(disk, Some(journal), both());
    }
    match (disk, &journal.content) {
        // An edit elsewhere wins over a removal here, and an edit here over one elsewhere.
        (Content::Absent, _) => Action::Apply,
        (_, Content::Absent) => edit(disk, None, both()),
        // Concurrent: the journal's version is what the edit replaces at this path.
        _ => edit(disk, Some(journal), own()),
    }
}

/// Brings the journal's version to a disk that has `disk`.
fn bring(disk: &Content, journal: &Version) -> Action {
    match &journal.content {
        content if content == disk => Action::Adopt,
        content if content.is_like(disk) => Action::Touch,
        _ => Action::Apply,
    }
}

fn edit(content: &Content, before: Option<&Version>, vector: Vector) -> Action {
    let is_told = |before: &&Version| !before.is_absent() && !before.content.is_like(content);
    let before = before.filter(is_told).cloned();
    Action::Write(Edit { content: content.clone(), vector, before })
}

/// Turns the action of the mode two-way into that of another mode.
fn in_mode(mode: Mode, action: Action, disk: &Content, journal: Option<&Version>) -> Action {
    match (mode, action) {
        (Mode::In, Action::Apply | Action::Touch) => Action::Nothing,
        (Mode::In, Action::Write(edit)) if edit.content == Content::Absent => Action::Nothing,
        (Mode::Out, Action::Write(_)) => match journal {
            Some(journal) if !journal.is_absent() => match disk {
                Content::Absent => Action::Apply,
                _ => Action::SetAside,
            },
            _ if *disk == Content::Absent => Action::Nothing,
            _ => Action::LeaveExtra,
        },
        (_, action) => action,
    }
}
