//! Other file systems, mounted from images: btrfs and XFS (shared blocks), small and read-only ones, ones
//! that fold case, ones that cannot exchange names, and mounts within the folder. They need Linux and root:
//! `cargo test --test folder_disk -- --ignored --test-threads=1`. A file system whose tools or
//! kernel support is missing is named, and fails its test.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use can_sync::folders::disk::{Place, PlaceError, Source, Traits};

use crate::common::{Bound, content, done, path};
use crate::races;

/// An image, mounted until this is dropped.
struct Mounted {
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Mounted {
    fn new(mkfs: &[&str], mebibytes: u64) -> Self {
        Self::with(mkfs, mebibytes, &["-o", "loop"])
    }

    fn with(mkfs: &[&str], mebibytes: u64, options: &[&str]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (image, dir) = (temp.path().join("image"), temp.path().join("mount"));
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        std::fs::create_dir(&dir).unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        run(Command::new("mount").args(options).arg(&image).arg(&dir));
        Self { dir, _temp: temp }
    }

    fn bound(&self) -> Bound {
        Bound::within(&self.dir)
    }

    fn traits(&self) -> Traits {
        self.bound().root.traits(&self.dir).unwrap()
    }

    fn free_bytes(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(&self.dir));
        let disk = rustix::fs::statvfs(&self.dir).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    fn race(&self) {
        races::race(&self.dir, 300, &[races::append, races::hold_open]);
        races::race(&self.dir, 300, &[races::save_by_rename]);
        races::race(&self.dir, 300, &[races::rewrite]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

const BTRFS: &[&str] = &["mkfs.btrfs", "-q"];
const XFS: &[&str] = &["mkfs.xfs", "-q"];
const EXT4: &[&str] = &["mkfs.ext4", "-q"];
const NTFS: &[&str] = &["mkfs.ntfs", "-F", "-Q", "-q"];

/// A large content is on the disk once, whether it goes into the folder or out of it.
fn shares_blocks_both_ways(mkfs: &[&str]) {
    const SIZE_BYTES: u64 = 64 << 20;
    let mounted = Mounted::new(mkfs, 512);
    let bound = mounted.bound();
    let traits = mounted.traits();
    assert!(traits.can_reflink && traits.can_exchange && traits.can_link, "{traits:?}");
    let mut stored = File::create_new(mounted.dir.join("stored")).unwrap();
    for block in 0..SIZE_BYTES / 4096 {
        stored.write_all(&block.to_le_bytes().repeat(512)).unwrap();
    }
    let stored = File::open(mounted.dir.join("stored")).unwrap();
    let before_bytes = mounted.free_bytes();
    let source = Source::File(&stored);
    let what = Place::File { source, size_bytes: SIZE_BYTES, modified_ms: 5, is_executable: false };
    let seen = done(bound.place_other("file", what, None)).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let mut into = options.open(mounted.dir.join("into")).unwrap();
    bound.root.read_stable(&path("file"), &seen, &into).unwrap();
    let used_bytes = before_bytes.saturating_sub(mounted.free_bytes());
    assert!(used_bytes < SIZE_BYTES / 8, "{used_bytes} bytes more are used");
    into.rewind().unwrap();
    let read = |mut file: &File| {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut file, &mut hasher).unwrap();
        hasher.finalize()
    };
    let mut stored = &stored;
    stored.rewind().unwrap();
    assert_eq!(read(&into), read(stored));
    // An edit of one does not touch the other.
    std::fs::write(bound.dir.join("file"), "edited").unwrap();
    stored.rewind().unwrap();
    into.rewind().unwrap();
    assert_eq!(read(&into), read(stored));
    drop(bound);
    mounted.race();
}

#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn mounted_btrfs_shares_blocks_and_loses_no_line() {
    shares_blocks_both_ways(BTRFS);
}

#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn mounted_xfs_shares_blocks_and_loses_no_line() {
    shares_blocks_both_ways(XFS);
}

#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn mounted_ntfs_cannot_exchange_names_and_loses_no_line() {
    let mounted = Mounted::new(NTFS, 64);
    assert!(!mounted.traits().can_exchange, "{:?}", mounted.traits());
    let bound = mounted.bound();
    let seen = done(bound.place("file", "1", None));
    let seen = done(bound.place("file", "2", seen));
    assert_eq!(content(&bound.root, &path("file")), b"2");
    done(bound.place_other("file", Place::Directory, seen));
    drop(bound);
    mounted.race();
}

#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn mounted_ntfs_that_folds_case_never_replaces_a_twin_and_refuses_names_clearly() {
    let options = ["-t", "lowntfs-3g", "-o", "loop,ignore_case,windows_names"];
    let mounted = Mounted::with(NTFS, 64, &options);
    let bound = mounted.bound();
    let traits = mounted.traits();
    assert!(traits.folds_case && !traits.folds_normalisation, "{traits:?}");
    bound.write("readme", "mine");
    for twin in ["README", "Readme"] {
        assert!(matches!(bound.place(twin, "other", None), Err(PlaceError::Changed)));
    }
    assert_eq!(bound.read("readme"), "mine");
    assert_eq!(bound.listed(), ["readme"]);
    let refused = bound.place("a:b", "1", None);
    assert!(matches!(refused, Err(PlaceError::NameRefused)), "{refused:?}");
    assert_eq!(bound.own_names(""), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn mounted_full_and_read_only_disks_lose_nothing() {
    let mounted = Mounted::new(EXT4, 16);
    let bound = mounted.bound();
    let seen = done(bound.place("file", "old", None));
    let large = "x".repeat(64 << 20);
    for (at, expected) in [("file", seen), ("a/new", None)] {
        let full = bound.place(at, &large, expected);
        assert!(matches!(full, Err(PlaceError::NoSpace)), "{full:?}");
    }
    assert_eq!((bound.read("file").as_str(), bound.listed()), ("old", vec!["file".to_owned()]));
    assert_eq!(bound.own_names(""), Vec::<String>::new());
    let seen = done(bound.place("file", "new", bound.seen("file")));
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&mounted.dir));
    assert!(bound.root.traits(&std::env::temp_dir()).unwrap().is_read_only);
    let refused = bound.place("file", "newer", seen);
    assert!(matches!(refused, Err(PlaceError::ReadOnly)), "{refused:?}");
    let refused = bound.place_other("file", Place::Nothing, seen);
    assert!(matches!(refused, Err(PlaceError::ReadOnly)), "{refused:?}");
    assert_eq!(content(&bound.root, &path("file")), b"new");
}

#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn mounted_within_the_folder_another_file_system_loses_no_line() {
    let bound = Bound::new();
    let inner = bound.dir.join("inner");
    std::fs::create_dir(&inner).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner));
    let _unmount = Unmount(&inner);
    let seen = done(bound.place("inner/a", "1", None));
    let seen = done(bound.place("inner/a", "2", seen));
    assert_eq!(bound.own_names("inner").len(), 1, "it is kept where it was");
    done(bound.place_other("inner/a", Place::Nothing, seen));
    assert_eq!(bound.own_names("inner").len(), 2);
    assert_eq!(bound.root.settle(0), []);
    assert_eq!(bound.root.settle(can_sync::folders::disk::keep::KEPT_MS), []);
    assert_eq!(bound.own_names("inner"), Vec::<String>::new());
    symlink("/etc", inner.join("out")).unwrap();
    assert_eq!(bound.seen("inner/out/passwd"), None);
}

/// In a user namespace of its own, because the limit is the user's.
#[test]
#[ignore = "needs root: cargo test --test folder_disk -- --ignored --test-threads=1"]
fn too_few_watches_are_reported_once_with_what_to_do() {
    let limited = "echo 8 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    let this = std::env::current_exe().unwrap();
    run(Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", limited])
        .arg(this)
        .args(["--exact", "watch::with_few_watches_everything_is_still_listed"])
        .env("FEW_WATCHES", "1"));
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
