//! What the paths of WebDAV mean.
//!
//! | path | is |
//! |---|---|
//! | `/folders/NAME/...` | a shared folder of the group, as it is; the only place that can be written |
//! | `/by-date/2024/05/...` | the assets of a month, by when they were taken or else last modified |
//! | `/by-tag/TAG/...` | the assets with a tag |
//!
//! P1  A path leads to a place by its components, each compared as a whole. It never becomes a path
//!     of this machine's file system.

use crate::core::export_name::export_name;
use crate::core::folder::path::FolderPath;
use crate::core::ids::FolderId;
use crate::replica::folders::Folder;

use super::index::Part;
use super::shelves::Shelf;

/// The directories at the top.
pub(super) const FOLDERS: &str = "folders";
pub(super) const BY_DATE: &str = "by-date";
pub(super) const BY_TAG: &str = "by-tag";

/// What the files and directories of can-sync itself start with.
const OWN_PREFIX: &[u8] = b".can-sync";

/// What a path means, as far as its text says it. Whether there is such a thing is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Top,
    Folders,
    /// The top of the folder that is shown under this name.
    Folder(String),
    /// A path in a folder.
    Inside(String, FolderPath),
    Dates,
    Year(String),
    Tags,
    Shelf(Shelf),
    /// An asset in a shelf, by its name there.
    Asset(Shelf, String),
    /// Nothing can be there.
    Nowhere,
}

impl Place {
    /// What a path means: components separated by `/`, decoded.
    pub(super) fn of(path: &[u8]) -> Self {
        let components: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|component| !component.is_empty()).collect();
        let text = |at: usize| components.get(at).and_then(|part| std::str::from_utf8(part).ok());
        match (components.len(), text(0), text(1), text(2), text(3)) {
            (0, ..) => Self::Top,
            (1, Some(FOLDERS), ..) => Self::Folders,
            (2, Some(FOLDERS), Some(name), ..) => Self::Folder(name.to_owned()),
            (_, Some(FOLDERS), Some(name), ..) => {
                match FolderPath::from_bytes(&components[2..].join(&b'/')) {
                    Ok(path) => Self::Inside(name.to_owned(), path),
                    Err(_) => Self::Nowhere,
                }
            }
            (1, Some(BY_DATE), ..) => Self::Dates,
            (2, Some(BY_DATE), Some(year), ..) => Self::Year(year.to_owned()),
            (3, Some(BY_DATE), Some(year), Some(month), _) => Self::Shelf(month_of(year, month)),
            (4, Some(BY_DATE), Some(year), Some(month), Some(name)) => {
                Self::Asset(month_of(year, month), name.to_owned())
            }
            (1, Some(BY_TAG), ..) => Self::Tags,
            (2, Some(BY_TAG), Some(tag), ..) => Self::Shelf(Shelf::Tag(tag.to_owned())),
            (3, Some(BY_TAG), Some(tag), Some(name), _) => {
                Self::Asset(Shelf::Tag(tag.to_owned()), name.to_owned())
            }
            _ => Self::Nowhere,
        }
    }

    /// The path in a folder where something may be written.
    pub(super) fn writable(&self) -> Option<(&str, &FolderPath)> {
        let Self::Inside(folder, path) = self else { return None };
        let is_own = path.components().any(|component| component.starts_with(OWN_PREFIX));
        (!is_own).then_some((folder, path))
    }

    /// The name of a file, for the client that saves it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Inside(_, path) => String::from_utf8_lossy(path.name()).into_owned(),
            Self::Asset(_, name) => name.clone(),
            _ => String::new(),
        }
    }

    /// The part of the index that knows what is there.
    pub(super) fn part(&self) -> Option<Part> {
        match self {
            Self::Top | Self::Folders | Self::Nowhere => None,
            Self::Folder(_) | Self::Inside(..) => Some(Part::Folders),
            Self::Dates | Self::Year(_) | Self::Tags | Self::Shelf(_) | Self::Asset(..) => {
                Some(Part::Assets)
            }
        }
    }

    /// Whether one is within the other, or both are the same.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (Self::Inside(folder, one), Self::Inside(of, other)) = (self, other) else {
            return false;
        };
        let starts = |long: &FolderPath, short: &FolderPath| {
            let rest = long.as_bytes().strip_prefix(short.as_bytes());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        folder == of && (starts(one, other) || starts(other, one))
    }
}

fn month_of(year: &str, month: &str) -> Shelf {
    Shelf::Month(year.to_owned(), month.to_owned())
}

/// The folders under the names that they are shown under. Of several that are called the same each
/// has the start of its id in its name.
pub(super) fn shown(folders: Vec<Folder>) -> Vec<(String, FolderId)> {
    let name = |folder: &Folder| {
        let name = folder.name.replace(['/', '\\'], "-");
        export_name(&name).unwrap_or_else(|| folder.id.to_string())
    };
    let names: Vec<String> = folders.iter().map(name).collect();
    let is_alone = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
    let shown = folders.iter().zip(&names).map(|(folder, name)| match is_alone(name) {
        true => (name.clone(), folder.id),
        false => (format!("{name} ({})", folder.id.short()), folder.id),
    });
    shown.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_in_folders_can_be_written_and_none_of_the_agents_own_files() {
        for (path, is_writable) in [
            ("/", false),
            ("/folders", false),
            ("/folders/", false),
            ("/folders/home", false),
            ("/folders/home/", false),
            ("/folders/home/a", true),
            ("/folders/home/a/b/", true),
            ("/folders/home/.can-sync-folder", false),
            ("/folders/home/a/.can-sync-x/b", false),
            ("/by-date/2024/05/a.jpg", false),
            ("/by-tag/x/a.jpg", false),
            ("/by-tag/x/a/b.jpg", false),
            ("/elsewhere/a", false),
        ] {
            assert_eq!(Place::of(path.as_bytes()).writable().is_some(), is_writable, "{path}");
        }
        let long = format!("/folders/home/{}", "a".repeat(256));
        assert_eq!(Place::of(long.as_bytes()), Place::Nowhere);
        assert_eq!(Place::of(b"/folders/\xff/a"), Place::Nowhere);
        assert!(Place::of(b"/folders/home/\xff").writable().is_some(), "a name that is no UTF-8");
    }

    #[test]
    fn a_place_overlaps_with_what_is_in_it_and_not_with_what_starts_alike() {
        let place = |text: &str| Place::of(text.as_bytes());
        let a = place("/folders/f/a");
        for (other, does) in [
            ("/folders/f/a", true),
            ("/folders/f/a/b", true),
            ("/folders/f/ab", false),
            ("/folders/g/a", false),
        ] {
            assert_eq!(a.overlaps(&place(other)), does, "{other}");
            assert_eq!(place(other).overlaps(&a), does, "{other}");
        }
    }

    #[test]
    fn folders_of_one_name_are_told_apart() {
        let folder = |id: u8, name: &str| Folder {
            id: FolderId([id; 16]),
            name: name.into(),
            created_by: None,
        };
        let shown = shown(vec![folder(1, "a/b"), folder(2, "x"), folder(3, "x"), folder(4, "..")]);
        let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[0], "a-b");
        assert_eq!(names[1..3], ["x (0202020202)", "x (0303030303)"]);
        assert_eq!(names[3], FolderId([4; 16]).to_string());
    }
}
