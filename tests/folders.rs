//! Shared folders between real agents: directories that are edited on both sides, at once or apart.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use can_sync::folders::status::{BindRequest, BindingState, FolderStatus};
use can_sync::folders::{Keep, Mode};
use tempfile::TempDir;

mod common;

#[path = "common/agent.rs"]
mod agent;

use common::content;
use common::group::{Device, pair, until};

#[path = "folders/bind.rs"]
mod bind;
#[path = "folders/cut_short.rs"]
mod cut_short;
#[path = "folders/expired.rs"]
mod expired;
#[path = "folders/forgotten.rs"]
mod forgotten;
#[path = "folders/guards.rs"]
mod guards;
#[path = "folders/habits.rs"]
mod habits;
#[path = "folders/killed.rs"]
mod killed;
#[path = "folders/mounts.rs"]
mod mounts;
#[path = "folders/past.rs"]
mod past;

// ---- fixtures --------------------------------------------------------------------------------

/// A device with a directory that is bound to a folder.
struct Bound {
    device: Device,
    dir: PathBuf,
    _scratch: TempDir,
}

const NAME: &str = "shared";

fn request(dir: &Path) -> BindRequest {
    BindRequest {
        dir: dir.to_str().unwrap().to_owned(),
        name: Some(NAME.to_owned()),
        mode: Mode::TwoWay,
        keep: Keep::Copy,
        symlinks: false,
        dry_run: false,
    }
}

impl Bound {
    /// A device with an empty directory that is not bound yet.
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().canonicalize().unwrap().join("dir");
        fs::create_dir(&dir).unwrap();
        Self { device: Device::start().await, dir, _scratch: scratch }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    /// All that is in the directory but our own files: content, links and modes.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        list(&self.dir, &self.dir, &mut tree);
        tree
    }

    async fn status(&self) -> FolderStatus {
        self.device.handle().folders().status(NAME).await.unwrap()
    }

    async fn state(&self) -> BindingState {
        self.status().await.folder.binding.unwrap().state
    }

    async fn problems(&self) -> String {
        self.status().await.folder.binding.unwrap().problems.join("\n")
    }
}

fn list(top: &Path, dir: &Path, tree: &mut BTreeMap<String, String>) {
    // What is listed may be replaced meanwhile.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(".can-sync") {
            continue;
        }
        let Ok(found) = path.symlink_metadata() else { continue };
        let name = path.strip_prefix(top).unwrap().to_string_lossy().into_owned();
        if found.is_dir() {
            if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none()) {
                tree.insert(name, "empty".into());
            }
            list(top, &path, tree);
        } else if found.is_symlink() {
            tree.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
        } else {
            let hash = fs::read(&path).map(|content| blake3::hash(&content).to_string());
            let executable = found.mode() & 0o100 != 0;
            tree.insert(name, format!("{} {executable}", hash.unwrap_or_default()));
        }
    }
}

/// Changes `folders.db` of a device that is stopped.
fn in_folders_db(device: &Device, sql: &str) -> usize {
    let connection = rusqlite::Connection::open(device.home.folders_db_path()).unwrap();
    connection.execute(sql, []).unwrap()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// Two paired devices, each with an empty directory bound to one folder.
async fn two() -> (Bound, Bound) {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    (a, b)
}

async fn join(bound: &Bound) {
    until("the folder is known", &[&bound.device], async || {
        bound.device.handle().folders().find(NAME).await.is_ok()
    })
    .await;
    let request = BindRequest { name: None, ..request(&bound.dir) };
    bound.device.handle().folders().join(NAME, request).await.unwrap();
}

/// Waits until both directories hold `count` things and are equal, and both say so.
async fn equal(a: &Bound, b: &Bound, count: usize) {
    let devices = [&a.device, &b.device];
    let mut last = String::new();
    until(&format!("both have {count}"), &devices, async || {
        let (of_a, of_b) = (a.tree(), b.tree());
        let states = (a.state().await, b.state().await);
        let found = format!("{states:?}\n{of_a:#?}\n{of_b:#?}");
        if found != last {
            // Shown if it is not in time.
            println!("{found}");
            last = found;
        }
        of_a.len() == count
            && of_a == of_b
            && states == (BindingState::UpToDate, BindingState::UpToDate)
    })
    .await;
}

// ---- two-way ---------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_in_one_directory_is_in_the_other_and_back() {
    let (a, b) = two().await;
    a.write("note.txt", b"buy milk");
    a.write("pictures/2024/sea.jpg", &content(1, 300_000));
    equal(&a, &b, 2).await;
    assert_eq!(b.read("note.txt").unwrap(), b"buy milk");

    b.write("note.txt", b"buy oat milk");
    b.write("pictures/tree.jpg", &content(2, 5_000));
    equal(&a, &b, 3).await;
    assert_eq!(a.read("note.txt").unwrap(), b"buy oat milk");

    fs::remove_file(a.path("note.txt")).unwrap();
    fs::remove_dir_all(b.path("pictures/2024")).unwrap();
    equal(&a, &b, 1).await;
    assert!(!a.path("pictures/2024").exists(), "an emptied directory goes too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_that_were_filled_before_are_joined_and_nothing_is_lost() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    a.write("same.txt", b"same");
    a.write("other.txt", b"of a");
    a.write("a.txt", b"a");
    b.write("same.txt", b"same");
    b.write("other.txt", b"of b");
    b.write("b/b.txt", b"b");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    equal(&a, &b, 5).await;
    let others: Vec<Vec<u8>> = a
        .tree()
        .keys()
        .filter(|name| name.starts_with("other"))
        .map(|name| a.read(name).unwrap())
        .collect();
    assert_eq!(others.len(), 2);
    assert!(others.contains(&b"of a".to_vec()) && others.contains(&b"of b".to_vec()));
    assert_eq!(b.status().await.conflicts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_made_apart_meet_and_the_loser_of_a_conflict_is_kept_beside() {
    let (a, mut b) = two().await;
    for name in ["both", "gone-there", "edited-here", "gone-here", "untouched"] {
        a.write(name, name.as_bytes());
    }
    equal(&a, &b, 5).await;
    b.device.down().await;
    a.write("both", b"by a");
    fs::remove_file(a.path("gone-here")).unwrap();
    a.write("edited-here", b"edited by a");
    a.write("new-here", b"new");
    b.write("both", b"by b");
    b.write("gone-here", b"edited by b");
    fs::remove_file(b.path("gone-there")).unwrap();
    b.device.up().await;
    equal(&a, &b, 6).await;
    let names: Vec<String> = a.tree().into_keys().collect();
    let copy = names.iter().find(|name| name.contains("(conflict, ")).unwrap();
    let both = [a.read("both").unwrap(), a.read(copy).unwrap()];
    assert!(both.contains(&b"by a".to_vec()) && both.contains(&b"by b".to_vec()), "{names:?}");
    assert_eq!(a.read("gone-here").unwrap(), b"edited by b", "an edit wins over a removal");
    assert_eq!(b.read("edited-here").unwrap(), b"edited by a");
    assert!(a.read("gone-there").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_times_and_empty_directories_travel() {
    let (a, b) = two().await;
    a.write("run.sh", b"#!/bin/sh\n");
    fs::create_dir_all(a.path("empty/deeper")).unwrap();
    equal(&a, &b, 2).await;
    fs::set_permissions(a.path("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    until("b can run it", &[&a.device, &b.device], async || {
        b.path("run.sh").metadata().unwrap().mode() & 0o100 != 0
    })
    .await;
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(b.path("run.sh")).unwrap().set_modified(then).unwrap();
    until("a has the time", &[&a.device, &b.device], async || {
        a.path("run.sh").metadata().unwrap().modified().unwrap() == then
    })
    .await;
    fs::remove_dir_all(a.path("empty")).unwrap();
    equal(&a, &b, 1).await;
    assert!(!b.path("empty").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_directory_moves_no_content() {
    let (a, b) = two().await;
    for n in 0..100_u64 {
        a.write(&format!("old/{}/{n}.bin", n % 7), &content(n, 2_000));
    }
    a.write("old/large.bin", &content(1_000, 600_000));
    equal(&a, &b, 101).await;
    let before = b.device.received_bytes();
    fs::rename(a.path("old"), a.path("new")).unwrap();
    until("b has the new name", &[&a.device, &b.device], async || !b.path("old").exists()).await;
    equal(&a, &b, 101).await;
    assert_eq!(b.device.received_bytes(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_becomes_a_directory_and_a_directory_a_file() {
    let (a, b) = two().await;
    a.write("x", b"a file");
    a.write("y/in", b"in a directory");
    equal(&a, &b, 2).await;
    fs::remove_file(a.path("x")).unwrap();
    a.write("x/in", b"now in a directory");
    fs::remove_dir_all(b.path("y")).unwrap();
    b.write("y", b"now a file");
    equal(&a, &b, 2).await;
    assert_eq!(b.read("x/in").unwrap(), b"now in a directory");
    assert_eq!(a.read("y").unwrap(), b"now a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_are_synced_as_links_where_asked_for_and_counted_elsewhere() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    std::os::unix::fs::symlink("note.txt", a.path("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", a.path("out")).unwrap();
    a.write("note.txt", b"x");
    let with_links = BindRequest { symlinks: true, ..request(&a.dir) };
    a.device.handle().folders().add(with_links).await.unwrap();
    join(&b).await;
    until("b has the file and counts the links", &[&a.device, &b.device], async || {
        let skipped: u64 = b.status().await.skipped.iter().map(|skipped| skipped.count).sum();
        b.tree().len() == 1 && skipped == 2
    })
    .await;
    b.device.handle().folders().remove(NAME).await.unwrap();
    let joined = BindRequest { name: None, symlinks: true, ..request(&b.dir) };
    b.device.handle().folders().join(NAME, joined).await.unwrap();
    equal(&a, &b, 3).await;
    assert_eq!(fs::read_link(b.path("out")).unwrap(), Path::new("/etc/passwd"));
}
