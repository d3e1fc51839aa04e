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
