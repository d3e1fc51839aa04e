//! File systems that fill or cannot be written, under a bound directory. Each test needs to mount, and
//! says so where that is not allowed.

use std::process::{Command, Stdio};

use super::*;

/// A small file system in memory; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None` where mounting is not allowed.
    fn over(dir: &Path, options: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir);
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            println!("left out: mount is not allowed here");
        }
        mounted.then(|| Self(dir.to_owned()))
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount.arg("-o").arg(format!("remount,{how}")).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn told(bound: &Bound, text: &str) -> bool {
    let status = bound.status().await;
    let problems = status.folder.binding.unwrap().problems;
    let skipped = status.skipped.into_iter().map(|skipped| skipped.reason);
    problems.into_iter().chain(skipped).any(|told| told.contains(text))
}

/// Two devices; the directory of the second is a file system of its own.
async fn two_on_a_mount(options: &str) -> Option<(Bound, Bound, Mount)> {
    let (a, b) = (Bound::new().await, Bound::new().await);
    let mount = Mount::over(&b.dir, options)?;
    pair(&a.device, &b.device).await;
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    Some((a, b, mount))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_under_the_directory_is_told_and_the_rest_goes_on() {
    let Some((a, b, mount)) = two_on_a_mount("size=4m,mode=0700").await else { return };
    let devices = [&a.device, &b.device];
    a.write("large.bin", &content(1, 8 << 20));
    until("b tells that its disk is full", &devices, async || told(&b, "disk is full").await).await;
    a.write("small.txt", b"small");
    until("b has the small file", &devices, async || b.read("small.txt").is_some()).await;
    assert!(!b.path("large.bin").exists());
    mount.remount("size=32m");
    equal(&a, &b, 2).await;
    assert!(!told(&b, "disk is full").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_written_is_told_and_catches_up_later() {
    let Some((a, b, mount)) = two_on_a_mount("size=16m,mode=0700").await else { return };
    let devices = [&a.device, &b.device];
    a.write("before.txt", b"before");
    equal(&a, &b, 1).await;
    mount.remount("ro");
    a.write("after.txt", b"after");
    fs::remove_file(a.path("before.txt")).unwrap();
    until("b tells why", &devices, async || told(&b, "read-only").await).await;
    assert!(b.path("before.txt").exists());
    mount.remount("rw");
    equal(&a, &b, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fills_is_told_and_the_rest_goes_on() {
    let mut device = Device::new();
    let store_dir = device.home.store_dir();
    fs::create_dir_all(&store_dir).unwrap();
    let Some(mount) = Mount::over(&store_dir, "size=16m,mode=0700") else { return };
    device.up().await;
    let (mut a, b) = (Bound::new().await, Bound::new().await);
    a.device = device;
    pair(&a.device, &b.device).await;
    a.write("large.bin", &content(1, 24 << 20));
    a.write("small.txt", b"small");
    // What will not fit is refused before.
    let refused = a.device.handle().folders().add(request(&a.dir)).await.unwrap_err();
    assert!(refused.to_string().contains("the store keeps a copy of each"), "{refused}");
    fs::rename(a.path("large.bin"), a.dir.with_extension("large")).unwrap();
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    equal(&a, &b, 1).await;
    fs::rename(a.dir.with_extension("large"), a.path("large.bin")).unwrap();
    let devices = [&a.device, &b.device];
    until("a tells that its store is full", &devices, async || {
        told(&a, "files wait to be stored").await
    })
    .await;
    a.write("small too.txt", b"small too");
    until("b has the small file", &devices, async || b.read("small too.txt").is_some()).await;
    assert_eq!(a.read("large.bin").unwrap().len(), 24 << 20);
    mount.remount("size=128m");
    equal(&a, &b, 3).await;
    assert!(!told(&a, "files wait to be stored").await);
}

/// Opens a directory below another one, made if it is not there. By steps, because a path may be longer
/// than one call takes.
fn open_below(dir: &Path, names: &[String], create: bool) -> rustix::fd::OwnedFd {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut open = openat(CWD, dir, flags, Mode::empty()).unwrap();
    for name in names {
        if create {
            mkdirat(&open, name, Mode::RWXU).unwrap();
        }
        open = openat(&open, name, flags, Mode::empty()).unwrap();
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_of_four_thousand_bytes_is_synced_and_one_beyond_the_limit_is_told() {
    use rustix::fs::{Mode, OFlags, openat};
    use std::io::{Read as _, Write as _};
    let (a, b) = two().await;
    let mut names: Vec<String> = (0..15).map(|_| "d".repeat(250)).collect();
    let file = "f".repeat(4_000 - 15 * 251);
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let create = |dir: &rustix::fd::OwnedFd, name: &str| {
        let made = openat(dir, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
        fs::File::from(made).write_all(b"deep").unwrap();
    };
    let deep = open_below(&a.dir, &names, true);
    create(&deep, &file);
    a.write("beside", b"beside");
    let devices = [&a.device, &b.device];
    until("b has both", &devices, async || b.status().await.files == 2).await;
    let there = open_below(&b.dir, &names, false);
    let mut found = String::new();
    let opened = openat(&there, &file, OFlags::RDONLY, Mode::empty()).unwrap();
    fs::File::from(opened).read_to_string(&mut found).unwrap();
    assert_eq!(found, "deep");
    // Two more directories are beyond what a path may have.
    names.extend(["e".repeat(250), "e".repeat(250)]);
    let beyond = open_below(&a.dir, &names[..15], false);
    rustix::fs::mkdirat(&beyond, &names[15], Mode::RWXU).unwrap();
    let beyond = openat(&beyond, &names[15], OFlags::RDONLY, Mode::empty()).unwrap();
    create(&beyond, &"g".repeat(250));
    a.write("after", b"after");
    until("a tells it", &devices, async || told(&a, "too long").await).await;
    until("the rest goes on", &devices, async || b.read("after").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_in_a_circle_and_out_of_the_directory_are_counted_and_hold_up_nothing() {
    let (a, b) = two().await;
    // After the first scan, which counts what it sees.
    equal(&a, &b, 0).await;
    fs::create_dir(a.path("in")).unwrap();
    std::os::unix::fs::symlink("..", a.path("in/up")).unwrap();
    std::os::unix::fs::symlink(".", a.path("in/here")).unwrap();
    std::os::unix::fs::symlink("other", a.path("one")).unwrap();
    std::os::unix::fs::symlink("one", a.path("other")).unwrap();
    std::os::unix::fs::symlink(a.device.home.state_dir(), a.path("home")).unwrap();
    a.write("in/file", b"1");
    let devices = [&a.device, &b.device];
    until("b has the file alone", &devices, async || b.read("in/file").is_some()).await;
    until("the links are counted once each", &devices, async || {
        let skipped = a.status().await.skipped;
        skipped
            .iter()
            .any(|skipped| skipped.reason.contains("symbolic links") && skipped.count == 5)
    })
    .await;
    assert_eq!(b.status().await.files, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and ntfs-3g: cargo test --test folders -- --ignored mounted_"]
async fn mounted_without_case_twins_are_kept_apart_and_told_and_none_replaces_the_other() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mkfs.ntfs").args(["-F", "-Q", "-q"]).arg(&image).stdout(Stdio::null()));
    let options = ["-t", "lowntfs-3g", "-o", "loop,ignore_case"];
    run(Command::new("mount").args(options).arg(&image).arg(&b.dir));
    let _mount = Mount(b.dir.clone());
    pair(&a.device, &b.device).await;
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    let devices = [&a.device, &b.device];
    a.write("Readme", b"first");
    until("b has the first", &devices, async || b.read("Readme").is_some()).await;
    a.write("README", b"second");
    a.write("other", b"other");
    until("b tells the twin", &devices, async || {
        told(&b, "takes for the name of another file").await && b.read("other").is_some()
    })
    .await;
    assert_eq!(b.read("Readme").unwrap(), b"first");
    assert_eq!(
        (a.read("Readme").unwrap(), a.read("README").unwrap()),
        (b"first".to_vec(), b"second".to_vec())
    );
    // Edits of the one that is there go on.
    b.write("Readme", b"edited");
    until("a has the edit", &devices, async || a.read("Readme").as_deref() == Some(b"edited"))
        .await;
    assert_eq!(a.read("README").unwrap(), b"second");
    // When the first is gone, the second takes its place.
    fs::remove_file(a.path("Readme")).unwrap();
    until("b has the second", &devices, async || b.read("README").as_deref() == Some(b"second"))
        .await;
    assert_eq!(a.read("README").unwrap(), b"second");
}

/// With a low limit this is run by `few_watches_are_told_with_what_to_do_and_everything_is_still_synced`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_few_watches_everything_is_still_synced() {
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    for n in 0..40 {
        a.write(&format!("{n}/file"), b"1");
    }
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    join(&b).await;
    equal(&a, &b, 40).await;
    let is_limited = std::env::var_os("FEW_WATCHES").is_some();
    assert_eq!(told(&a, "sysctl -w fs.inotify.max_user_watches").await, is_limited);
}

/// In a user namespace of its own, because the limit is the user's.
#[test]
#[ignore = "needs root: cargo test --test folders -- --ignored few_watches"]
fn few_watches_are_told_with_what_to_do_and_everything_is_still_synced() {
    let limited = "echo 30 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "sh", "-c", limited]);
    unshare.arg(std::env::current_exe().unwrap());
    unshare.args(["--exact", "mounts::with_few_watches_everything_is_still_synced"]);
    let status = unshare.env("FEW_WATCHES", "1").stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
}
