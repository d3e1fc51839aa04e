//! What a bound directory shows: names, links, special files, ignored files, and whether it is the
//! right directory at all.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use can_sync::core::folder::path::FolderPath;
use can_sync::core::ids::{FolderId, NodeId};
use can_sync::folders::disk::{MARKER, Mark, Place, PlaceError, ReadError, Root, RootError, Rules};
use can_sync::folders::disk::{Scanned, SeenKind, Skip};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, mknodat, openat, symlinkat};

use crate::common::{Bound, ID, MARK, content, file, is_root, path, scratch};

const MARKED: NodeId = MARK.device;

#[test]
fn a_directory_that_is_not_the_bound_one_is_refused() {
    let bound = Bound::new();
    let other = Mark { folder: FolderId([8; 16]), ..MARK };
    let outside = bound.outside();
    assert!(matches!(Root::open(&bound.dir, other), Err(RootError::OtherFolder { found: ID, .. })));
    assert!(matches!(Root::mark(&bound.dir, other), Err(RootError::OtherFolder { found: ID, .. })));
    assert!(matches!(Root::open(&outside, MARK), Err(RootError::Unmarked(_))));
    assert!(matches!(Root::open(&outside.join("none"), MARK), Err(RootError::Missing(_))));
    let of_another = Mark { device: NodeId([9; 32]), ..MARK };
    for refused in
        [Root::open(&bound.dir, of_another).map(drop), Root::mark(&bound.dir, of_another)]
    {
        let error = refused.unwrap_err();
        assert!(matches!(error, RootError::OtherDevice { device: MARKED, .. }), "{error}");
    }
    assert!(!Root::unmark(&bound.dir, of_another).unwrap());
    let marker = bound.dir.join(MARKER);
    assert!(matches!(Root::open(&marker, MARK), Err(RootError::NotADirectory(_))));
    std::fs::write(&marker, "\0\u{fffd}").unwrap();
    assert!(matches!(Root::open(&bound.dir, MARK), Err(RootError::Unmarked(_))));
    std::fs::remove_file(&marker).unwrap();
    symlink("/etc/passwd", &marker).unwrap();
    assert!(matches!(Root::open(&bound.dir, MARK), Err(RootError::Unmarked(_))));
}

#[test]
fn a_directory_that_goes_away_is_an_error_and_not_an_empty_one() {
    let bound = Bound::new();
    bound.write("a", "1");
    let rules = Rules::from_text("");
    let mut each = |_| std::ops::ControlFlow::Continue(());
    bound.root.check().unwrap();
    std::fs::remove_file(bound.dir.join(MARKER)).unwrap();
    assert!(matches!(bound.root.check(), Err(RootError::Unmarked(_))));
    assert!(bound.root.scan(None, &rules, None, &mut each).is_err());
    let moved = bound.outside().join("moved");
    std::fs::rename(&bound.dir, &moved).unwrap();
    assert!(matches!(bound.root.check(), Err(RootError::Missing(_))));
    std::fs::create_dir(&bound.dir).unwrap();
    Root::mark(&bound.dir, MARK).unwrap();
    assert!(matches!(bound.root.check(), Err(RootError::Replaced(_))));
    assert!(bound.root.scan(None, &rules, None, &mut each).is_err());
}

#[test]
fn a_link_on_the_way_to_a_path_leads_nowhere() {
    let bound = Bound::new();
    let outside = bound.outside().join("secret");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "secret").unwrap();
    std::fs::create_dir(bound.dir.join("real")).unwrap();
    symlink(&outside, bound.dir.join("out")).unwrap();
    symlink("../../secret", bound.dir.join("real/up")).unwrap();
    symlink(outside.join("file"), bound.dir.join("direct")).unwrap();
    symlink("loop", bound.dir.join("loop")).unwrap();
    for at in ["out/file", "real/up/file", "loop/file", "direct/file"] {
        assert_eq!(bound.seen(at), None, "{at}");
        assert!(bound.root.open_file(&path(at)).is_err(), "{at}");
        let placed = bound.place(at, "overwritten", None);
        assert!(matches!(placed, Err(PlaceError::ParentIsNoDirectory(_))), "{at}: {placed:?}");
        let removed = bound.place_other(at, Place::Nothing, None);
        assert!(removed.is_ok(), "{at}: nothing is there: {removed:?}");
    }
    assert!(bound.root.open_file(&path("direct")).is_err(), "a link is not opened as a file");
    assert_eq!(bound.root.read_link(&path("loop")).unwrap(), b"loop");
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "secret");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(bound.listed(), ["direct", "loop", "out", "real/up"]);
}

#[test]
fn every_name_that_the_file_system_holds_is_listed_and_read() {
    let bound = Bound::new();
    let long = "n".repeat(255);
    let names: Vec<&[u8]> = vec![
        b"new\nline",
        b"\x1b[31mred",
        b"\xff\xfe invalid",
        "e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
        b"Case",
        b"case",
        b" lead and trail ",
        b"-rf",
        b"a\\b",
        b"...",
        b"*?<>|:\"",
        long.as_bytes(),
    ];
    for name in &names {
        std::fs::write(bound.dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut listed = Vec::new();
    for scanned in bound.scan() {
        let Scanned::Entry(path, seen) = scanned else { panic!("{scanned:?}") };
        assert_eq!(content(&bound.root, &path), path.as_bytes());
        assert_eq!(bound.root.stat(&path).unwrap(), Some(seen));
        listed.push(path.as_bytes().to_vec());
    }
    listed.sort();
    let mut expected: Vec<_> = names.iter().map(|name| name.to_vec()).collect();
    expected.sort();
    assert_eq!(listed, expected);
}

#[test]
fn fifos_sockets_and_devices_are_skipped_and_never_opened() {
    let bound = Bound::new();
    bound.write("file", "1");
    mknodat(CWD, bound.dir.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = UnixListener::bind(bound.dir.join("socket")).unwrap();
    let mut skipped: Vec<_> = bound
        .scan()
        .into_iter()
        .filter_map(|scanned| match scanned {
            Scanned::Skipped(path, Skip::Special) => Some(String::from_utf8(path).unwrap()),
            _ => None,
        })
        .collect();
    skipped.sort();
    assert_eq!(skipped, ["fifo", "socket"]);
    assert!(bound.root.open_file(&path("fifo")).is_err(), "an open would wait for a writer");
    let seen = bound.seen("fifo").unwrap();
    assert_eq!(seen.kind, SeenKind::Other);
    assert!(bound.root.open_stable(&path("fifo"), &seen).is_err());
    assert!(matches!(bound.place("fifo", "1", None), Err(PlaceError::Changed)));
}

/// Makes directories down to a path of `bytes` bytes below the folder, and returns it.
fn deep(bound: &Bound, bytes: usize) -> FolderPath {
    let mut dir = openat(CWD, &bound.dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (name, mut at) = ("d".repeat(100), Vec::new());
    while at.len() + 101 < bytes {
        mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = openat(&dir, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        at.extend_from_slice(name.as_bytes());
        at.push(b'/');
    }
    symlinkat("/etc", &dir, "l").unwrap();
    let rest = "f".repeat(bytes - at.len());
    let file = openat(&dir, &rest, OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    at.extend_from_slice(rest.as_bytes());
    FolderPath::from_bytes(&at).unwrap()
}

#[test]
fn paths_of_the_greatest_length_are_listed_read_replaced_and_removed() {
    let bound = Bound::new();
    let at = deep(&bound, 4096);
    let seen = bound.root.stat(&at).unwrap().unwrap();
    assert!(bound.scan().contains(&Scanned::Entry(at.clone(), seen)));
    assert_eq!(content(&bound.root, &at), b"deep");
    let mut new: &[u8] = b"new";
    let placement = can_sync::folders::disk::Placement {
        path: &at,
        what: file(&mut new, 3),
        expected: Some(seen),
    };
    let placed = bound.root.place(placement);
    let seen = crate::common::done(placed);
    assert_eq!(content(&bound.root, &at), b"new");
    let what = Place::Nothing;
    let removal = can_sync::folders::disk::Placement { path: &at, what, expected: seen };
    crate::common::done(bound.root.place(removal));
    assert_eq!(bound.root.stat(&at).unwrap(), None);
    let parent = at.parent().unwrap();
    let link = parent.join(b"l").unwrap();
    assert_eq!(bound.root.read_link(&link).unwrap(), b"/etc");
    let through = link.join(b"passwd").unwrap();
    assert_eq!(bound.root.stat(&through).unwrap(), None);
    assert!(bound.root.open_file(&through).is_err());
    // Longer than any path of a folder: one more directory with a file.
    let dir = rustix::fs::openat(CWD, &bound.dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut dir = dir;
    for component in parent.components() {
        dir = openat(&dir, component, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    openat(&dir, "g".repeat(250), OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    let skipped = bound.scan().into_iter().any(
        |scanned| matches!(scanned, Scanned::Skipped(path, Skip::TooLong) if path.len() > 4096),
    );
    assert!(skipped, "it is reported");
}

#[test]
fn a_directory_that_cannot_be_read_is_reported_and_the_rest_is_listed() {
    if is_root() {
        // Nothing is unreadable to root.
        return;
    }
    let bound = Bound::new();
    bound.write("closed/file", "1");
    bound.write("open/file", "2");
    let closed = bound.dir.join("closed");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    let scanned = bound.scan();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    assert!(scanned.iter().any(
        |one| matches!(one, Scanned::Skipped(path, Skip::Unreadable(_)) if path == b"closed")
    ));
    assert!(
        scanned.iter().any(|one| matches!(one, Scanned::Entry(at, _) if *at == path("open/file")))
    );
}

#[test]
fn directories_without_synchronised_content_count_as_empty() {
    let bound = Bound::new();
    for dir in ["empty", "nested/empty", "litter", "full"] {
        std::fs::create_dir_all(bound.dir.join(dir)).unwrap();
    }
    bound.write("litter/.DS_Store", "");
    bound.write("full/file", "");
    assert_eq!(bound.listed(), ["empty/", "full/file", "litter/", "nested/empty/"]);
    assert!(bound.root.is_empty_directory(&path("empty")).unwrap());
    assert!(!bound.root.is_empty_directory(&path("litter")).unwrap());
    assert!(!bound.root.is_empty_directory(&path("none")).unwrap());
    let seen = bound.seen("empty");
    bound.write("empty/file", "");
    assert_eq!(bound.seen("empty"), seen, "what is in a directory does not change it");
}

#[test]
fn litter_and_what_the_user_lists_is_ignored() {
    let bound = Bound::new();
    for at in [
        ".DS_Store",
        "Thumbs.db",
        "~$letter.docx",
        ".~lock.a.odt#",
        "a.swp",
        ".Trash-1000/files/a",
        "film.part",
        "file.crdownload",
        ".can-sync-tmp-0",
        "sub/.can-sync-folder",
        "target/debug/a",
        "a.log",
        "keep.log",
        "sub/a.log",
        "kept.swp",
        "build/a",
        "sub/build/a",
    ] {
        bound.write(at, "");
    }
    bound.write(
        ".cansyncignore",
        "\u{feff}# comment\ntarget/\n*.log\n!keep.log\n!kept.swp\n/build\n!.can-sync-tmp-0\n{a\n",
    );
    assert_eq!(bound.listed(), [".cansyncignore", "keep.log", "kept.swp", "sub/build/a"]);
    let rules = Rules::load(&bound.root).unwrap();
    assert!(rules.problems.len() == 1 && rules.problems[0].contains("line 8"), "{rules:?}");
    assert!(rules.is_ignored(&path("target"), true));
    assert!(!rules.is_ignored(&path("target"), false), "the rule is for directories");
    assert!(
        rules.is_ignored(&path("target/debug/keep.log"), false),
        "it is in an ignored directory"
    );
    assert!(rules.is_ignored(&FolderPath::from_bytes(b"\xff/target/\xff").unwrap(), false));
}

#[test]
fn a_file_that_changes_while_it_is_read_does_not_count() {
    let bound = Bound::new();
    let seen = bound.write("file", "first");
    let at = path("file");
    let stable = bound.root.open_stable(&at, &seen).unwrap();
    // The same length, and as fast as can be: the time alone tells.
    bound.write("file", "other");
    assert!(matches!(stable.finish(), Err(ReadError::Changed)));
    assert!(matches!(bound.root.open_stable(&at, &seen), Err(ReadError::Changed)));
    let seen = bound.seen("file").unwrap();
    let stable = bound.root.open_stable(&at, &seen).unwrap();
    let saved = bound.dir.join("saved");
    std::fs::write(&saved, "third").unwrap();
    std::fs::rename(saved, bound.dir.join("file")).unwrap();
    assert!(matches!(stable.finish(), Err(ReadError::Changed)), "another file has the name");
    let seen = bound.seen("file").unwrap();
    let into = scratch();
    bound.root.read_stable(&at, &seen, &into).unwrap();
    assert_eq!(into.metadata().unwrap().len(), 5);
}

#[test]
fn a_change_right_after_a_read_always_shows_in_the_stat() {
    let bound = Bound::new();
    let at = path("file");
    for round in 0..200 {
        let seen = bound.write("file", &format!("{round:05}"));
        bound.root.open_stable(&at, &seen).unwrap().finish().unwrap();
        bound.write("file", "XXXXX");
        assert_ne!(bound.seen("file"), Some(seen), "round {round}");
    }
}

#[test]
fn a_scan_below_a_directory_shows_only_that() {
    let bound = Bound::new();
    bound.write("a/b/c", "");
    bound.write("d", "");
    let rules = Rules::from_text("");
    let mut found = Vec::new();
    let mut each = |scanned| {
        if let Scanned::Entry(path, _) = scanned {
            found.push(path);
        }
        std::ops::ControlFlow::Continue(())
    };
    bound.root.scan(Some(&path("a")), &rules, None, &mut each).unwrap();
    assert!(bound.root.scan(Some(&path("none")), &rules, None, &mut each).is_err());
    assert_eq!(found, [path("a/b/c")]);
    let _: PathBuf = bound.dir;
}
