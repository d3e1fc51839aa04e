//! The order in which the changes of a round are made.
//!
//! O1  A removal goes before the change that needs its name. Every other removal goes last, so that a
//!     renamed file has its new name before it loses the old one.

use std::collections::{BTreeSet, VecDeque};

use crate::core::folder::path::FolderPath;

/// Sorts changes, of which some are removals: what frees a name that another one needs as a file or
/// as a directory is first, the innermost before all; other removals are last.
pub(super) fn in_safe_order<T>(changes: &mut Vec<T>, of: impl Fn(&T) -> (&FolderPath, bool)) {
    let mut needed_as_dir = BTreeSet::new();
    let mut new = BTreeSet::new();
    for change in changes.iter() {
        let (path, is_removal) = of(change);
        if is_removal {
            continue;
        }
        new.insert(path.clone());
        let mut next = path.parent();
        while let Some(dir) = next {
            next = dir.parent();
            if !needed_as_dir.insert(dir) {
                break;
            }
        }
    }
    let frees = |path: &FolderPath| {
        let mut above = std::iter::successors(path.parent(), FolderPath::parent);
        needed_as_dir.contains(path) || above.any(|dir| new.contains(&dir))
    };
    let mut ranked: VecDeque<(u8, T)> = VecDeque::with_capacity(changes.len());
    for change in changes.drain(..) {
        let (path, is_removal) = of(&change);
        let rank = match is_removal {
            true if frees(path) => 0,
            false => 1,
            true => 2,
        };
        ranked.push_back((rank, change));
    }
    let mut ranked = Vec::from(ranked);
    ranked.sort_by(|(rank, one), (other_rank, other)| {
        let (one, is_removal) = of(one);
        let (other, _) = of(other);
        rank.cmp(other_rank).then_with(|| match is_removal {
            // Remove the entries of a directory before the directory.
            true => other.cmp(one),
            false => one.cmp(other),
        })
    });
    changes.extend(ranked.into_iter().map(|(_, change)| change));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_frees_a_name_goes_first_and_a_rename_is_never_without_a_name() {
        let path = |text: &str| FolderPath::from_text(text).unwrap();
        let mut changes: Vec<(FolderPath, bool)> = [
            ("z", true),
            ("new", false),
            ("d/x", false),
            ("d", true),
            ("f/a/b", true),
            ("f/a", true),
            ("f", false),
            ("old", true),
        ]
        .into_iter()
        .map(|(text, is_removal)| (path(text), is_removal))
        .collect();
        in_safe_order(&mut changes, |(path, is_removal)| (path, *is_removal));
        let order: Vec<String> = changes.iter().map(|(path, _)| path.to_text()).collect();
        assert_eq!(order, ["f/a/b", "f/a", "d", "d/x", "f", "new", "z", "old"]);
    }
}
