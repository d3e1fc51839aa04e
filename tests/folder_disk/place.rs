//! Changes of a bound directory, one after the other.

use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

use can_sync::folders::disk::{Place, PlaceError, Placement, SeenKind, Source};

use crate::common::{Bound, done, file, path};

#[test]
fn a_new_file_has_its_content_time_and_permissions() {
    let bound = Bound::new();
    std::fs::set_permissions(&bound.dir, PermissionsExt::from_mode(0o755)).unwrap();
    let seen = done(bound.place("a/b/file", "content", None)).unwrap();
    assert_eq!(bound.read("a/b/file"), "content");
    assert_eq!(bound.seen("a/b/file"), Some(seen));
    assert_eq!(seen.modified_ms(), 1_000_000_123);
    assert_eq!(seen.mode, 0o644, "as readable as its directory");
    assert_eq!(bound.dir.join("a/b").metadata().unwrap().mode() & 0o777, 0o755);
    let mut script: &[u8] = b"#!";
    let source = Source::Reader(&mut script);
    let what = Place::File { source, size_bytes: 2, modified_ms: -1, is_executable: true };
    let seen = done(bound.place_other("script", what, None)).unwrap();
    assert_eq!((seen.mode, seen.modified_ms()), (0o755, -1));
    assert!(seen.is_executable());
    assert_eq!(bound.own_names("a/b"), Vec::<String>::new());
}

#[test]
fn a_replaced_file_keeps_its_permissions() {
    let bound = Bound::new();
    bound.write("file", "old");
    std::fs::set_permissions(bound.dir.join("file"), PermissionsExt::from_mode(0o640)).unwrap();
    let seen = done(bound.place("file", "new", bound.seen("file"))).unwrap();
    assert_eq!((bound.read("file").as_str(), seen.mode), ("new", 0o640));
    assert_eq!(bound.listed(), ["file"]);
    assert_eq!(bound.own_names(""), [".can-sync-kept"]);
}

#[test]
fn what_is_not_expected_is_left_alone() {
    let bound = Bound::new();
    let old = bound.write("file", "old");
    let edited = bound.write("file", "edited");
    symlink("file", bound.dir.join("link")).unwrap();
    for expected in [None, Some(old)] {
        assert!(matches!(bound.place("file", "new", expected), Err(PlaceError::Changed)));
        let removed = bound.place_other("file", Place::Nothing, expected);
        assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
        let placed = bound.place_other("file", Place::Directory, expected);
        assert!(matches!(placed, Err(PlaceError::Changed)), "{placed:?}");
    }
    assert!(matches!(bound.place("gone", "new", Some(old)), Err(PlaceError::Changed)));
    assert!(matches!(bound.place("link", "new", Some(edited)), Err(PlaceError::Changed)));
    let below = bound.place("file/below", "new", None);
    assert!(matches!(below, Err(PlaceError::ParentIsNoDirectory(at)) if at == path("file")));
    // A change of the mode or the time alone is an edit too.
    std::fs::set_permissions(bound.dir.join("file"), PermissionsExt::from_mode(0o700)).unwrap();
    assert!(matches!(bound.place("file", "new", Some(edited)), Err(PlaceError::Changed)));
    assert_eq!(bound.read("file"), "edited");
    assert_eq!(bound.listed(), ["file", "link"]);
    assert_eq!(bound.own_names(""), Vec::<String>::new());
}

/// Gives some bytes, then fails.
struct Fails(bool);

impl Read for Fails {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.0 = true;
        buffer[..3].copy_from_slice(b"bad");
        Ok(3)
    }
}

#[test]
fn content_that_fails_its_check_or_has_the_wrong_size_is_not_placed() {
    let bound = Bound::new();
    let seen = bound.write("file", "old");
    let fails = |at: &str, expected| {
        let mut reader = Fails(false);
        let source = Source::Reader(&mut reader);
        let what = Place::File { source, size_bytes: 3, modified_ms: 0, is_executable: false };
        bound.place_other(at, what, expected)
    };
    for (at, expected) in [("file", Some(seen)), ("new", None), ("a/b", None)] {
        let failed = fails(at, expected);
        assert!(
            matches!(&failed, Err(PlaceError::Io(e)) if e.kind() == io::ErrorKind::InvalidData),
            "{failed:?}"
        );
        for size_bytes in [2, 4] {
            let mut content: &[u8] = b"new";
            let failed = bound.place_other(at, file(&mut content, size_bytes), expected);
            assert!(matches!(failed, Err(PlaceError::WrongSize { .. })), "{failed:?}");
        }
    }
    assert_eq!(bound.read("file"), "old");
    assert_eq!(bound.listed(), ["file"], "nor are directories left that nothing is in");
    assert_eq!(bound.own_names(""), Vec::<String>::new());
}

#[test]
fn a_failure_does_not_hold_up_the_others() {
    let bound = Bound::new();
    let paths: Vec<_> = (0..700).map(|n| path(&format!("{}/{n}", n % 7))).collect();
    bound.write("3/500", "taken");
    let mut contents: Vec<_> = (0..700).map(|n| format!("content {n}").into_bytes()).collect();
    let mut readers: Vec<&[u8]> = contents.iter_mut().map(|content| &content[..]).collect();
    let placements = paths.iter().zip(&mut readers);
    let placements = placements.map(|(path, reader)| {
        let size = reader.len();
        Placement { path, what: file(reader, size), expected: None }
    });
    let outcomes = bound.root.place_all(placements.collect());
    for (n, outcome) in outcomes.into_iter().enumerate() {
        if n == 500 {
            assert!(matches!(outcome, Err(PlaceError::Changed)));
            continue;
        }
        let at = format!("{}/{n}", n % 7);
        assert_eq!(bound.seen(&at), done(outcome), "{at}");
        assert_eq!(bound.read(&at), format!("content {n}"));
    }
    assert_eq!(bound.listed().len(), 700);
    assert_eq!(bound.read("3/500"), "taken");
}

#[test]
fn a_file_is_removed_and_a_directory_only_when_nothing_is_in_it() {
    let bound = Bound::new();
    let seen = bound.write("a/b/file", "1");
    bound.write("a/.DS_Store", "ignored");
    assert_eq!(done(bound.place_other("a/b/file", Place::Nothing, Some(seen))), None);
    assert_eq!(bound.seen("a/b/file"), None);
    assert_eq!(done(bound.place_other("a/b/file", Place::Nothing, None)), None);
    assert_eq!(done(bound.place_other("no/such", Place::Nothing, None)), None);
    let refused = bound.place_other("a", Place::Nothing, bound.seen("a"));
    assert!(matches!(refused, Err(PlaceError::NotEmpty)), "{refused:?}");
    bound.root.remove_empty_parents(&path("a/b/file"));
    assert_eq!(bound.seen("a/b"), None);
    assert_eq!(bound.read("a/.DS_Store"), "ignored");
    std::fs::create_dir(bound.dir.join("empty")).unwrap();
    assert_eq!(done(bound.place_other("empty", Place::Nothing, bound.seen("empty"))), None);
    assert_eq!(bound.seen("empty"), None);
}

#[test]
fn files_links_and_directories_take_each_others_place() {
    let bound = Bound::new();
    let kind = |at| bound.seen(at).map(|seen| seen.kind);
    let seen = done(bound.place("x", "1", None));
    let seen = done(bound.place_other("x", Place::Symlink { target: b"../any\xffwhere" }, seen));
    assert_eq!(bound.root.read_link(&path("x")).unwrap(), b"../any\xffwhere");
    assert_eq!(bound.seen("x"), seen);
    let seen = done(bound.place_other("x", Place::Directory, seen));
    assert_eq!((kind("x"), bound.seen("x")), (Some(SeenKind::Directory), seen));
    assert_eq!(done(bound.place_other("x", Place::Directory, seen)), seen);
    let seen = done(bound.place_other("x", Place::Symlink { target: b"t" }, seen));
    let seen = done(bound.place_other("x", Place::Directory, seen));
    let seen = done(bound.place("x", "2", seen));
    assert_eq!((bound.read("x").as_str(), bound.seen("x")), ("2", seen));
    bound.write("d/mine", "mine");
    let refused = bound.place("d", "1", bound.seen("d"));
    assert!(matches!(refused, Err(PlaceError::NotEmpty)), "{refused:?}");
    assert_eq!(bound.read("d/mine"), "mine");
    assert_eq!(bound.listed(), ["d/mine", "x"]);
    assert_eq!(bound.own_names(""), [".can-sync-kept"]);
}

#[test]
fn a_link_to_the_home_shares_its_content_and_is_read_only() {
    let bound = Bound::new();
    let stored = bound.outside().join("stored");
    std::fs::write(&stored, "content").unwrap();
    let what = |size_bytes| {
        let source = Source::Link(&stored);
        Place::File { source, size_bytes, modified_ms: 0, is_executable: false }
    };
    let wrong = bound.place_other("file", what(6), None);
    assert!(matches!(wrong, Err(PlaceError::WrongSize { got_bytes: 7, .. })), "{wrong:?}");
    let seen = done(bound.place_other("file", what(7), None)).unwrap();
    assert_eq!(seen.inode, stored.metadata().unwrap().ino());
    assert_eq!(seen.mode, 0o444);
    let again = done(bound.place_other("file", what(7), Some(seen))).unwrap();
    assert_eq!(again.inode, seen.inode);
    let seen = done(bound.place("file", "other", bound.seen("file"))).unwrap();
    assert_ne!(seen.inode, again.inode);
    assert_eq!(std::fs::read_to_string(&stored).unwrap(), "content");
    assert_eq!(bound.own_names(""), [".can-sync-kept"]);
}

#[test]
fn a_name_that_is_too_long_for_the_file_system_is_refused_clearly() {
    let bound = Bound::new();
    let at = "n".repeat(255);
    done(bound.place(&at, "1", None));
    assert_eq!(bound.read(&at), "1");
}

#[test]
fn a_file_is_set_aside_without_replacing_another() {
    let bound = Bound::new();
    let seen = bound.write("file", "mine");
    bound.write("taken", "taken");
    let set_aside = |to: &str| bound.root.set_aside(&path("file"), &path(to), &seen);
    assert!(matches!(set_aside("taken"), Err(PlaceError::Changed)));
    set_aside("aside/file").unwrap();
    assert_eq!(bound.read("aside/file"), "mine");
    assert!(matches!(set_aside("other"), Err(PlaceError::Changed)));
    assert_eq!(bound.listed(), ["aside/file", "taken"]);
}

#[test]
fn the_traits_of_the_file_system_are_found_and_leave_no_trace() {
    let bound = Bound::new();
    let home = bound.outside().join("home");
    std::fs::create_dir(&home).unwrap();
    let traits = bound.root.traits(&home).unwrap();
    assert!(!traits.is_read_only && traits.can_link && traits.free_bytes > 0, "{traits:?}");
    #[cfg(target_os = "linux")]
    assert!(traits.can_exchange && !traits.folds_case, "{traits:?}");
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(&bound.dir).unwrap().count(), 1, "the marker alone");
}
