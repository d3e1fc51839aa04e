//! What is done about one path, from three versions of it: the base, which was last equal on disk
//! and in the journal; what is on the disk; and what is in the journal.
//!
//! W1  Decisions compare values, and absence is a value. Where an event came from never counts, so
//!     what this device wrote itself is no edit.
//! W2  A file is never removed from the disk because the journal has no version of it.
//! W3  A time of modification alone makes neither an event of the history nor a conflict, and an
//!     edit or removal elsewhere wins over it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::resolve::may_be_forgotten;
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
    /// A content that differs from the base.
    Content(Content),
    /// A directory with entries. It counts as an empty directory, or as nothing if the path has no
    /// version in the journal: such a directory exists only because of its entries.
    Occupied,
}

/// What to do about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "an action is decided and carried out at once")]
pub enum Action {
    /// Nothing has to change.
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

impl Action {
    /// Whether the journal must be told of the base before this action replaces it: the journal may
    /// have forgotten it, and the action does not write it. What an action writes must not be told
    /// beside it: another device's version that comes in between would make a conflict copy of it.
    pub fn must_keep(&self, base: &Version, journal: &Version) -> bool {
        let is_written = match self {
            Self::Nothing | Self::Hold | Self::LeaveExtra | Self::WriteBase => true,
            Self::Write(edit) => edit.before.as_ref().is_some_and(|before| before.is_same(base)),
            Self::Adopt | Self::Touch | Self::Apply | Self::SetAside => false,
        };
        !is_written && may_be_forgotten(base, journal)
    }
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
        DiskSays::Occupied => occupied(base, was, journal),
    };
    let action = match journal {
        None => journal_knows_nothing(base, was, disk),
        Some(journal) => both(base, was, disk, journal),
    };
    in_mode(mode, action, disk, journal)
}

/// What a directory with entries counts as: an empty one, or nothing, whichever the journal or the
/// base says.
fn occupied<'a>(
    base: Option<&Version>,
    was: &'a Content,
    journal: Option<&'a Version>,
) -> &'a Content {
    let is_stale = |journal: &&Version| {
        base.is_some_and(|base| base.vector.relation(&journal.vector) == Relation::Newer)
    };
    let told = journal.filter(|journal| !is_stale(journal)).map(|journal| &journal.content);
    match told {
        Some(content @ (Content::Directory | Content::Absent)) => content,
        _ if *was == Content::Directory => was,
        _ => &Content::Absent,
    }
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
    // The disk was changed. What the next version contains: the journal's version too, if that
    // changed nothing but times.
    let own = || base.map_or_else(Vector::default, |base| base.vector.clone());
    let both = || own().joined(&journal.vector);
    if is_base || relation == Some(Relation::Newer) {
        return edit(disk, base, own());
    }
    if *disk == journal.content {
        return Action::Adopt;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::core::folder::path::FolderPath;
    use crate::core::folder::version::ShortId;
    use crate::core::ids::Hash;
    use crate::core::journal::stamp::Hlc;

    fn file(n: u8, modified_ms: i64) -> Content {
        Content::File { hash: Hash([n; 32]), size_bytes: 1, modified_ms, is_executable: false }
    }

    fn version(content: &Content, entries: &[(u64, u64)]) -> Version {
        let entries = entries.iter().map(|(device, n)| (ShortId(*device), *n));
        Version {
            path: FolderPath::from_bytes(b"plan").unwrap(),
            content: content.clone(),
            vector: Vector(entries.collect()),
            device_name: String::new(),
        }
    }

    fn contents() -> [Content; 5] {
        [Content::Absent, file(1, 0), file(1, 5), file(2, 0), Content::Directory]
    }

    /// `None`, and every version that can be made of a few vectors and contents.
    fn versions() -> Vec<Option<Version>> {
        let vectors: [&[(u64, u64)]; 5] =
            [&[(1, 1)], &[(1, 2)], &[(2, 1)], &[(1, 1), (2, 1)], &[(1, 2), (2, 1)]];
        let contents = contents();
        let some = contents
            .iter()
            .flat_map(|content| vectors.iter().map(move |vector| Some(version(content, vector))));
        std::iter::once(None).chain(some).collect()
    }

    /// All bases, disks and journals.
    fn every(mut check: impl FnMut(Option<&Version>, &DiskSays, Option<&Version>)) {
        let all = versions();
        let disks: Vec<DiskSays> = contents()
            .into_iter()
            .map(DiskSays::Content)
            .chain([DiskSays::Base, DiskSays::Occupied])
            .collect();
        for base in &all {
            for journal in &all {
                for disk in &disks {
                    check(base.as_ref(), disk, journal.as_ref());
                }
            }
        }
    }

    fn was(base: Option<&Version>) -> Content {
        base.map_or(Content::Absent, |base| base.content.clone())
    }

    #[test]
    fn the_table_of_the_design_holds() {
        let (base, edited) = (version(&file(1, 0), &[(1, 1)]), file(2, 0));
        let newer = version(&edited, &[(1, 1), (2, 2)]);
        let now = |content: &Content| DiskSays::Content(content.clone());
        let decide = |base: Option<&Version>, disk: &DiskSays, journal: Option<&Version>| {
            decide(Mode::TwoWay, base, disk, journal)
        };
        assert_eq!(decide(Some(&base), &DiskSays::Base, Some(&base)), Action::Nothing);
        assert_eq!(decide(Some(&base), &DiskSays::Base, Some(&newer)), Action::Apply);
        assert_eq!(decide(Some(&base), &now(&edited), Some(&newer)), Action::Adopt);
        let Action::Write(edit) = decide(Some(&base), &now(&edited), Some(&base)) else { panic!() };
        assert_eq!((edit.content, edit.vector), (edited, base.vector.clone()));
        assert_eq!(edit.before, Some(base.clone()));
        // Both changed: the edit contains the base, not what it has not seen.
        let Action::Write(edit) = decide(Some(&base), &now(&file(3, 0)), Some(&newer)) else {
            panic!()
        };
        assert_eq!(edit.vector, base.vector);
        assert_eq!(edit.before, Some(newer.clone()), "what is replaced at the name");
        // An edit here against a removal by another device, and the reverse.
        let removed = version(&Content::Absent, &[(1, 1), (2, 2)]);
        assert_eq!(decide(Some(&base), &now(&Content::Absent), Some(&newer)), Action::Apply);
        let Action::Write(edit) = decide(Some(&base), &now(&file(3, 0)), Some(&removed)) else {
            panic!()
        };
        assert_eq!(edit.vector, removed.vector, "it contains the removal, too");
    }

    #[test]
    fn what_the_journal_does_not_know_is_never_removed_or_replaced_on_the_disk() {
        every(|base, disk, journal| {
            if journal.is_none() {
                let action = decide(Mode::TwoWay, base, disk, None);
                let is_safe =
                    matches!(action, Action::Nothing | Action::Write(_) | Action::WriteBase);
                assert!(is_safe, "{base:?} {disk:?}: {action:?}");
            }
        });
    }

    #[test]
    fn a_base_that_the_journal_has_forgotten_reaches_it_once_by_the_action_or_beside_it() {
        let base = version(&file(1, 0), &[(1, 2)]);
        let older = version(&file(2, 0), &[(1, 1)]);
        let others = version(&file(3, 0), &[(1, 1), (2, 1)]);
        let edited = DiskSays::Content(file(4, 0));
        let is_kept = |disk: &DiskSays, journal: &Version| {
            decide(Mode::TwoWay, Some(&base), disk, Some(journal)).must_keep(&base, journal)
        };
        assert!(!is_kept(&DiskSays::Base, &older), "it is written as it is");
        assert!(!is_kept(&edited, &older), "the edit says that it replaces it");
        assert!(is_kept(&DiskSays::Base, &others), "the other version replaces it");
        assert!(is_kept(&edited, &others), "the edit says that it replaces the other version");
        assert!(!is_kept(&edited, &base), "the journal has it");
    }

    #[test]
    fn an_edit_on_the_disk_is_never_replaced_before_the_journal_has_it() {
        every(|base, disk, journal| {
            let DiskSays::Content(content) = disk else { return };
            let is_edit = !matches!(content, Content::Absent | Content::Directory)
                && !content.is_like(&was(base))
                && !journal.is_some_and(|journal| journal.content.is_like(content));
            let action = decide(Mode::TwoWay, base, disk, journal);
            let is_written = matches!(&action, Action::Write(edit) if edit.content == *content);
            assert_eq!(is_written, is_edit || is_written, "{base:?} {disk:?} {journal:?}");
            if is_edit {
                assert!(is_written, "{base:?} {disk:?} {journal:?}: {action:?}");
            }
        });
    }

    #[test]
    fn a_path_comes_to_rest_within_three_actions_with_disk_and_journal_equal() {
        every(|base, disk, journal| {
            let (mut base, mut journal) = (base.cloned(), journal.cloned());
            let mut disk = match disk {
                DiskSays::Base => was(base.as_ref()),
                DiskSays::Content(content) => content.clone(),
                DiskSays::Occupied => return,
            };
            let start = (base.clone(), disk.clone(), journal.clone());
            for time in 100.. {
                assert!(time < 104, "{start:?}");
                let says = DiskSays::Content(disk.clone());
                match decide(Mode::TwoWay, base.as_ref(), &says, journal.as_ref()) {
                    Action::Nothing => break,
                    Action::Adopt => base = journal.clone(),
                    Action::Touch | Action::Apply => {
                        disk = was(journal.as_ref());
                        base = journal.clone();
                    }
                    Action::Write(edit) => {
                        let vector = edit.vector.grown(ShortId(9), Hlc(time));
                        let written = Version { vector, ..version(&edit.content, &[]) };
                        (base, journal) = (Some(written.clone()), Some(written));
                    }
                    Action::WriteBase => journal = base.clone(),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(disk, was(journal.as_ref()), "{start:?}");
        });
    }

    #[test]
    fn mode_in_writes_no_disk_and_passes_on_no_removal_and_mode_out_writes_no_journal() {
        every(|base, disk, journal| {
            let action = decide(Mode::In, base, disk, journal);
            let is_removal =
                matches!(&action, Action::Write(edit) if edit.content == Content::Absent);
            let is_disk = matches!(action, Action::Apply | Action::Touch | Action::SetAside);
            assert!(!is_removal && !is_disk, "{base:?} {disk:?} {journal:?}: {action:?}");
            let action = decide(Mode::Out, base, disk, journal);
            assert!(!matches!(action, Action::Write(_)), "{base:?} {disk:?} {journal:?}");
        });
    }

    #[test]
    fn a_change_of_times_alone_has_no_event_and_gives_way_to_an_edit_elsewhere() {
        let base = version(&file(1, 0), &[(1, 1)]);
        let touched = DiskSays::Content(file(1, 5));
        let Action::Write(edit) = decide(Mode::TwoWay, Some(&base), &touched, Some(&base)) else {
            panic!()
        };
        assert_eq!((edit.content, edit.before), (file(1, 5), None));
        let edited = version(&file(2, 0), &[(1, 1), (2, 2)]);
        assert_eq!(decide(Mode::TwoWay, Some(&base), &touched, Some(&edited)), Action::Apply);
        let touched_there = version(&file(1, 7), &[(1, 1), (2, 2)]);
        let action = decide(Mode::TwoWay, Some(&base), &touched, Some(&touched_there));
        assert_eq!(action, Action::Touch);
    }

    #[test]
    fn a_directory_with_entries_is_an_empty_one_or_nothing_but_never_a_file() {
        let (file, directory) =
            (version(&file(1, 0), &[(1, 1)]), version(&Content::Directory, &[(1, 1)]));
        let decide = |base, journal| decide(Mode::TwoWay, base, &DiskSays::Occupied, journal);
        assert_eq!(decide(None, None), Action::Nothing);
        assert_eq!(decide(Some(&directory), Some(&directory)), Action::Nothing);
        assert_eq!(decide(None, Some(&directory)), Action::Adopt);
        let Action::Write(edit) = decide(Some(&file), Some(&file)) else { panic!() };
        assert_eq!(edit.content, Content::Absent, "a directory took the place of the file");
        let removed = version(&Content::Absent, &[(1, 2)]);
        assert_eq!(decide(Some(&directory), Some(&removed)), Action::Adopt);
        every(|base, disk, journal| {
            if *disk == DiskSays::Occupied && journal.is_some_and(Version::is_absent) {
                let action = super::decide(Mode::TwoWay, base, disk, journal);
                assert_ne!(action, Action::Apply, "{base:?} {journal:?}: it removes the entries");
            }
        });
    }

    #[test]
    fn a_version_of_a_later_program_leaves_the_path_alone() {
        let later = version(&Content::Later(vec![9]), &[(1, 1)]);
        every(|base, disk, _| {
            assert_eq!(decide(Mode::TwoWay, base, disk, Some(&later)), Action::Hold);
        });
    }
}
