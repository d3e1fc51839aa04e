//! The names of conflict copies: `name (conflict, DEVICE, DATE TIME).ext`.
//!
//! C1  The name is a function of the losing version alone, so all devices that resolve a conflict
//!     write one copy. Device and time are those of the newest change in the version.
//! C2  Conflicts of conflict copies end: each name is longer than the one before, or has a hash of
//!     its version in it.

use chrono::DateTime;

use crate::core::pairing::device_name;

use super::path::{COMPONENT_BYTES_MAX, FolderPath, PATH_BYTES_MAX};
use super::version::{Content, Version};

/// What a conflict copy has in its name before the device.
const MARK: &[u8] = b" (conflict, ";

/// The longest extension that is kept at the end of a name; a longer one is no extension.
const EXTENSION_BYTES_MAX: usize = 16;

/// The longest name of a device in the name of a file.
const DEVICE_BYTES_MAX: usize = 48;

/// The room that a conflict copy's name needs at least: mark, device, time, hash and extension. It
/// is kept in a directory further up where a path would become too long.
const NAME_BYTES_MIN: usize = 128;

/// The path at which the loser of a conflict is kept.
pub fn conflict_path(loser: &Version) -> FolderPath {
    let name = loser.path.name();
    let mut parent = loser.path.parent();
    let room = |parent: &Option<FolderPath>| {
        let used = parent.as_ref().map_or(0, |parent| parent.as_bytes().len() + 1);
        PATH_BYTES_MAX.saturating_sub(used).min(COMPONENT_BYTES_MAX)
    };
    while room(&parent) < NAME_BYTES_MIN {
        parent = parent.and_then(|parent| parent.parent());
    }
    let room = room(&parent);
    let (stem, extension) = split(name);
    let (device, time) = (shown_device(loser), shown_time(loser));
    let mut end = [MARK, format!("{device}, {time})").as_bytes(), extension].concat();
    let mut kept = stem;
    let is_moved = parent != loser.path.parent();
    if is_moved || stem.len() + end.len() > room {
        let tag = tag(loser);
        end = [MARK, format!("{device}, {time}, {tag})").as_bytes(), extension].concat();
        kept = cut(stem, room.saturating_sub(end.len()));
    }
    let name = [kept, &end].concat();
    let path = match &parent {
        Some(parent) => parent.join(&name),
        None => FolderPath::from_bytes(&name),
    };
    // A path of checked parts within all bounds.
    path.unwrap_or_else(|_| loser.path.clone())
}

/// Whether the path looks like that of a conflict copy.
pub fn is_conflict_path(path: &FolderPath) -> bool {
    let (stem, _) = split(path.name());
    let stem = stem.strip_suffix(b")");
    stem.is_some_and(|stem| stem.windows(MARK.len()).any(|window| window == MARK))
}

/// A name before its extension, and the extension with its dot.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 && name.len() - dot <= EXTENSION_BYTES_MAX => name.split_at(dot),
        _ => (name, &[]),
    }
}

/// The start of `text` with at most `bytes_max` bytes, without a part of a UTF-8 character.
fn cut(text: &[u8], bytes_max: usize) -> &[u8] {
    let mut end = bytes_max.min(text.len());
    let is_inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    // Bytes that are no UTF-8 are cut anywhere.
    let start = end.saturating_sub(3);
    while end > start && is_inside(end) {
        end -= 1;
    }
    &text[..end]
}

/// The name of the device, fit for a file name on every system.
fn shown_device(version: &Version) -> String {
    let harmless = |c| if r#"/\:*?"<>|()"#.contains(c) { '-' } else { c };
    let name: String = device_name(&version.device_name).chars().map(harmless).collect();
    if name.is_empty() {
        let author = version.vector.newest().map_or(0, |(device, _)| device.0);
        return format!("{:010x}", author >> 24);
    }
    name[..name.floor_char_boundary(DEVICE_BYTES_MAX)].to_owned()
}

/// The time of the newest change, in UTC: devices are in different zones.
fn shown_time(version: &Version) -> String {
    let ms = i64::try_from(version.written_at_ms()).unwrap_or(0);
    let time = DateTime::from_timestamp_millis(ms).unwrap_or_default();
    time.format("%Y-%m-%d %H-%M-%S").to_string()
}

/// A short hash of the version.
fn tag(version: &Version) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(version.path.as_bytes());
    for (device, n) in &version.vector.0 {
        hasher.update(&device.0.to_be_bytes()).update(&n.to_be_bytes());
    }
    match &version.content {
        Content::File { hash, .. } => hasher.update(&hash.0),
        Content::Symlink { target: bytes } | Content::Later(bytes) => hasher.update(bytes),
        Content::Absent | Content::Directory => &mut hasher,
    };
    data_encoding::HEXLOWER.encode(&hasher.finalize().as_bytes()[..4])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;
    use crate::core::folder::version::{ShortId, Vector};
    use crate::core::ids::Hash;
    use crate::core::journal::stamp::Hlc;

    /// 2026-11-30 03:05:06 UTC.
    const WRITTEN_MS: u64 = 1_796_007_906_000;

    fn version(path: &[u8], device_name: &str) -> Version {
        Version {
            path: FolderPath::from_bytes(path).unwrap(),
            content: Content::File {
                hash: Hash([7; 32]),
                size_bytes: 1,
                modified_ms: 0,
                is_executable: false,
            },
            vector: Vector::default().grown(ShortId(0xab << 56), Hlc::from_ms(WRITTEN_MS)),
            device_name: device_name.into(),
        }
    }

    #[test]
    fn a_conflict_copy_is_named_by_file_device_and_time_before_its_extension() {
        for (path, device, copy) in [
            ("plan.txt", "laptop", "plan.txt"),
            ("a/b/plan.tar.gz", "laptop", "a/b/plan.tar.gz"),
            (".profile", "laptop", ".profile"),
            ("notes.a long sentence after a dot", "laptop", "notes.a long sentence after a dot"),
            ("plan.txt", "", "plan.txt"),
            ("plan.txt", "../Ann's\u{202e} PC: (old)", "plan.txt"),
        ] {
            let found = conflict_path(&version(path.as_bytes(), device)).to_text();
            let shown = match device {
                "" => "ab00000000",
                "laptop" => "laptop",
                _ => "..-Ann's PC- -old-",
            };
            let (stem, extension) = match copy.rfind('.') {
                Some(dot) if copy.ends_with("txt") || copy.ends_with("gz") => copy.split_at(dot),
                _ => (copy, ""),
            };
            let expected = format!("{stem} (conflict, {shown}, 2026-11-30 03-05-06){extension}");
            assert_eq!(found, expected);
            assert!(is_conflict_path(&FolderPath::from_text(&found).unwrap()));
        }
        for plain in ["plan.txt", "plan (conflict, old", " (conflict) .txt"] {
            assert!(!is_conflict_path(&FolderPath::from_text(plain).unwrap()), "{plain}");
        }
    }

    #[test]
    fn the_name_of_a_copy_of_any_path_fits_and_is_no_path_that_was_there_before() {
        let long = "\u{fc}".repeat(127);
        let deep = ["d".repeat(250).as_str(); 16].join("/");
        for path in [
            "x",
            &long,
            &format!("{}.jpeg", "a".repeat(250)),
            &format!("{deep}/{}", "b".repeat(70)),
            &format!("{deep}/b"),
        ] {
            let mut seen = BTreeSet::new();
            let mut loser = version(path.as_bytes(), &"\u{fc}".repeat(64));
            for _ in 0..100 {
                assert!(seen.insert(loser.path.clone()), "{}", loser.path);
                let copy = conflict_path(&loser);
                assert!(std::str::from_utf8(copy.as_bytes()).is_ok(), "no half characters");
                loser.path = copy;
            }
        }
    }

    #[test]
    fn copies_whose_names_were_cut_are_told_apart() {
        let [one, mut two] = [(); 2].map(|()| version("a".repeat(255).as_bytes(), "laptop"));
        two.content = Content::Symlink { target: b"elsewhere".to_vec() };
        assert_ne!(conflict_path(&one), conflict_path(&two));
        assert_eq!(conflict_path(&one), conflict_path(&one.clone()));
    }
}
