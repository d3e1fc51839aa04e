//! What becomes of a version that lost its cell to another one.
//!
//! The journal keeps the version with the greater stamp. Stamps alone cannot tell whether its author
//! had seen the other one: the vectors do. Whoever sees both versions applies these rules.
//!
//! R1  A version that the current one does not contain is never dropped: it is written again at its
//!     path, or beside it under its conflict name.
//! R2  What is written is a function of the two versions alone, with no counter of the writer. So
//!     many devices may resolve one conflict: they write equal values, and then there is nothing
//!     left to resolve.
//! R3  An edit wins over a removal that its author had not seen.

use super::names::conflict_path;
use super::version::{Content, Relation, Version};

/// What to do about a version that lost its cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Nothing: nothing is lost.
    Nothing,
    /// The current version replaced it knowingly: the history must have it.
    Remember,
    /// This version must be written.
    Write(Version),
}

/// Decides about `other`, which is not in the cell of its path, where `current` is in the cell.
/// `None`: the cell is empty, or holds what nobody can read.
pub fn resolve(current: Option<&Version>, other: &Version) -> Resolution {
    let Some(current) = current else {
        return Resolution::Write(other.clone());
    };
    if current.is_same(other) {
        return Resolution::Nothing;
    }
    match current.vector.relation(&other.vector) {
        Relation::Newer if needs_history(other, current) => Resolution::Remember,
        Relation::Newer => Resolution::Nothing,
        // The current version won by its later stamp, although the other one contains it.
        Relation::Older => Resolution::Write(other.clone()),
        // Times of modification alone: the current ones stay.
        Relation::Same if current.content.is_like(&other.content) => Resolution::Nothing,
        Relation::Same | Relation::Concurrent => concurrent(current, other),
    }
}

/// Whether the history of the path must have `before`, which `after` replaced.
pub fn needs_history(before: &Version, after: &Version) -> bool {
    !before.is_absent() && !before.content.is_like(&after.content)
}

/// Whether the journal may not know `base`, which is about to be replaced as the base of a directory
/// by `next`. If `next` does not contain it, either it lost its place and was kept, or the journal
/// was restored from a backup and only this device knows it.
pub fn may_be_forgotten(base: &Version, next: &Version) -> bool {
    let is_contained = base.vector.relation(&next.vector) == Relation::Older;
    !base.is_absent() && !base.is_same(next) && !is_contained
}

fn concurrent(current: &Version, other: &Version) -> Resolution {
    if current.content.is_like(&other.content) {
        return Resolution::Write(joined(newest(current, other), current, other));
    }
    match (&current.content, &other.content) {
        // An empty directory is no work that could be lost.
        (_, Content::Absent) => Resolution::Nothing,
        (Content::Absent, _) => Resolution::Write(joined(other, current, other)),
        (_, Content::Directory) => Resolution::Nothing,
        _ => Resolution::Write(conflict_copy(other)),
    }
}

/// The loser of a conflict as it is kept beside the winner.
fn conflict_copy(loser: &Version) -> Version {
    Version { path: conflict_path(loser), ..loser.clone() }
}

/// What makes room where `version`, a file or link, is in the way of a directory with entries: its
/// conflict copy, and its removal. Both are functions of the version alone.
pub fn make_way(version: &Version) -> [Version; 2] {
    let mut removal = Version { content: Content::Absent, ..version.clone() };
    if let Some((device, hlc)) = version.vector.newest() {
        removal.vector.0.insert(device, hlc.0.saturating_add(1));
    }
    [conflict_copy(version), removal]
}

/// The content of `content` under a vector that contains both.
fn joined(content: &Version, one: &Version, other: &Version) -> Version {
    Version { vector: one.vector.joined(&other.vector), ..content.clone() }
}

/// Of two versions with like contents the one whose times are kept: the same in either order.
fn newest<'a>(one: &'a Version, other: &'a Version) -> &'a Version {
    let order = |version: &Version| (version.content.clone(), version.device_name.clone());
    if order(one) < order(other) { other } else { one }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::core::folder::path::FolderPath;
    use crate::core::folder::version::{ShortId, Vector};
    use crate::core::ids::Hash;

    fn file(n: u8, modified_ms: i64) -> Content {
        Content::File { hash: Hash([n; 32]), size_bytes: 1, modified_ms, is_executable: false }
    }

    fn version(content: Content, entries: &[(u64, u64)]) -> Version {
        let entries = entries.iter().map(|(device, n)| (ShortId(*device), *n));
        Version {
            path: FolderPath::from_bytes(b"a/plan.txt").unwrap(),
            content,
            vector: Vector(entries.collect()),
            device_name: "desk".into(),
        }
    }

    #[test]
    fn of_two_concurrent_edits_the_loser_is_kept_beside_the_winner() {
        let (winner, loser) = (version(file(1, 0), &[(1, 9)]), version(file(2, 0), &[(2, 5)]));
        let Resolution::Write(copy) = resolve(Some(&winner), &loser) else { panic!() };
        assert_eq!(copy.path, conflict_path(&loser));
        assert_eq!((copy.content, copy.vector), (loser.content.clone(), loser.vector.clone()));
    }

    #[test]
    fn an_edit_wins_over_a_removal_that_had_not_seen_it_whichever_is_stamped_later() {
        let (edit, removal) = (version(file(1, 0), &[(1, 9)]), version(Content::Absent, &[(2, 5)]));
        let Resolution::Write(again) = resolve(Some(&removal), &edit) else { panic!() };
        assert_eq!((again.path, again.content), (edit.path.clone(), edit.content.clone()));
        assert_eq!(again.vector, edit.vector.joined(&removal.vector));
        assert_eq!(resolve(Some(&edit), &removal), Resolution::Nothing);
    }

    #[test]
    fn what_contains_the_current_version_is_written_again_though_it_was_stamped_earlier() {
        let (old, new) = (version(file(1, 0), &[(1, 5)]), version(file(2, 0), &[(1, 5), (2, 7)]));
        assert_eq!(resolve(Some(&old), &new), Resolution::Write(new.clone()));
        assert_eq!(resolve(Some(&new), &old), Resolution::Remember, "for the history");
    }

    #[test]
    fn equal_contents_are_no_conflict_and_join_to_the_same_version_in_either_order() {
        let (one, two) = (version(file(1, 100), &[(1, 5)]), version(file(1, 200), &[(2, 6)]));
        let Resolution::Write(joined) = resolve(Some(&one), &two) else { panic!() };
        assert_eq!(resolve(Some(&two), &one), Resolution::Write(joined.clone()));
        assert_eq!(joined.vector, one.vector.joined(&two.vector));
        assert_eq!(resolve(Some(&joined), &one), Resolution::Nothing, "it needs no history");
    }

    #[test]
    fn two_contents_under_one_vector_are_a_conflict_and_neither_is_dropped() {
        let (one, two) = (version(file(1, 0), &[(1, 5)]), version(file(2, 0), &[(1, 5)]));
        let Resolution::Write(copy) = resolve(Some(&one), &two) else { panic!() };
        assert_eq!(copy.content, two.content);
        assert_ne!(copy.path, two.path);
    }

    #[test]
    fn a_version_is_written_again_where_its_cell_was_emptied() {
        let lost = version(file(1, 0), &[(1, 5)]);
        assert_eq!(resolve(None, &lost), Resolution::Write(lost.clone()));
    }

    #[test]
    fn an_empty_directory_makes_no_conflict_copy() {
        let (file, directory) = (file(1, 0), Content::Directory);
        let (file, directory) = (version(file, &[(1, 9)]), version(directory, &[(2, 5)]));
        assert_eq!(resolve(Some(&file), &directory), Resolution::Nothing);
        let Resolution::Write(copy) = resolve(Some(&directory), &file) else { panic!() };
        assert_eq!(copy.content, file.content);
    }

    #[test]
    fn a_file_in_the_way_of_a_directory_moves_aside_the_same_way_on_every_device() {
        let file = version(file(1, 0), &[(1, 9), (2, 7)]);
        let [copy, removal] = make_way(&file);
        assert_eq!((copy.path, copy.content), (conflict_path(&file), file.content.clone()));
        assert!(removal.is_absent());
        assert_eq!(removal.vector.relation(&file.vector), Relation::Newer);
        assert_eq!(make_way(&file.clone())[1], removal);
    }

    /// All pairs of small versions: resolving ends, and the two devices that resolve from either
    /// side agree.
    #[test]
    fn every_pair_of_versions_ends_in_one_version_per_path_and_loses_no_content() {
        let contents = [Content::Absent, file(1, 0), file(1, 5), file(2, 0), Content::Directory];
        let vectors: [&[(u64, u64)]; 6] =
            [&[], &[(1, 1)], &[(1, 2)], &[(2, 1)], &[(1, 1), (2, 1)], &[(1, 2), (2, 1)]];
        let all: Vec<Version> = contents
            .iter()
            .flat_map(|content| vectors.iter().map(|vector| version(content.clone(), vector)))
            .collect();
        for winner in &all {
            for loser in &all {
                // The cells after the conflict was resolved, each path with its last write.
                let mut cells = vec![winner.clone()];
                let mut lost = vec![loser.clone()];
                let mut remembered = Vec::new();
                let mut writes = 0;
                while let Some(other) = lost.pop() {
                    let cell = cells.iter_mut().find(|cell| cell.path == other.path);
                    match resolve(cell.as_deref(), &other) {
                        Resolution::Nothing => {}
                        Resolution::Remember => remembered.push(other),
                        Resolution::Write(version) => {
                            writes += 1;
                            assert!(writes < 5, "a storm: {winner:?} {loser:?}");
                            match cells.iter_mut().find(|cell| cell.path == version.path) {
                                Some(cell) => lost.push(std::mem::replace(cell, version)),
                                None => cells.push(version),
                            }
                        }
                    }
                }
                for version in [winner, loser] {
                    let is_kept = cells
                        .iter()
                        .chain(&remembered)
                        .any(|cell| cell.content.is_like(&version.content));
                    let is_nothing =
                        matches!(version.content, Content::Absent | Content::Directory);
                    assert!(is_kept || is_nothing, "lost: {winner:?} {loser:?}");
                }
            }
        }
    }
}
