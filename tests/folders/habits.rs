//! Habits of programs: how editors save, how files grow, what is cloned, built, copied and unpacked.

use std::io::{Seek as _, Write as _};
use std::process::{Command, Stdio};

use common::logs::was_logged;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn editors_save_by_rename_in_place_with_backups_and_with_locks() {
    let (a, b) = two().await;
    a.write("plan.md", b"one");
    equal(&a, &b, 1).await;
    let devices = [&a.device, &b.device];
    // In place, truncating first.
    a.write("plan.md", b"two, in place");
    until("in place", &devices, async || b.read("plan.md").unwrap() == b"two, in place").await;
    // By rename.
    a.write("plan.md.tmp", b"three, by rename");
    fs::rename(a.path("plan.md.tmp"), a.path("plan.md")).unwrap();
    until("by rename", &devices, async || b.read("plan.md").unwrap() == b"three, by rename").await;
    // With a backup.
    fs::rename(a.path("plan.md"), a.path("plan.md~")).unwrap();
    a.write("plan.md", b"four, with a backup");
    until("with a backup", &devices, async || {
        b.read("plan.md").as_deref() == Some(b"four, with a backup")
    })
    .await;
    // Beside lock and swap files, which stay here.
    a.write(".~lock.plan.md#", b"lock");
    a.write(".plan.md.swp", b"swap");
    a.write("plan.md", b"five, locked");
    until("locked", &devices, async || b.read("plan.md").as_deref() == Some(b"five, locked")).await;
    fs::remove_file(a.path("plan.md~")).unwrap();
    until("the backup is gone", &devices, async || !b.path("plan.md~").exists()).await;
    assert!(!b.path(".~lock.plan.md#").exists() && !b.path(".plan.md.swp").exists());
    assert_eq!(a.status().await.conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_grows_is_never_seen_in_part() {
    let (a, b) = two().await;
    let whole = content(5, 4 * 1024 * 1024);
    let mut file = fs::File::create(a.path("growing.bin")).unwrap();
    for piece in whole.chunks(64 * 1024) {
        file.write_all(piece).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        if let Some(seen) = b.read("growing.bin") {
            assert!(whole.starts_with(&seen));
        }
    }
    drop(file);
    until("b has it whole", &[&a.device, &b.device], async || {
        b.read("growing.bin").as_deref() == Some(&whole[..])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_files_at_once_arrive_and_one_edit_after_another_stays_in_order() {
    let (a, b) = two().await;
    for n in 0..600_u64 {
        a.write(&format!("d{}/{n}.txt", n % 13), &content(n, 700));
    }
    equal(&a, &b, 600).await;
    for n in 0..30_u64 {
        b.write("d1/1.txt", format!("edit {n}").as_bytes());
    }
    until("the last edit is there", &[&a.device, &b.device], async || {
        a.read("d1/1.txt").as_deref() == Some(b"edit 29")
    })
    .await;
    equal(&a, &b, 600).await;
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

/// Git with nothing of the tester's settings.
fn git(dir: &Path, args: &[&str]) {
    let mut git = Command::new("git");
    git.current_dir(dir).args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "gc.auto=0"]);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    run(git.args(args));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_is_cloned_built_and_committed_to_inside_is_whole_on_both_devices() {
    let (a, b) = two().await;
    let scratch = tempfile::tempdir().unwrap();
    let origin = scratch.path();
    fs::create_dir(origin.join("src")).unwrap();
    for n in 0..40 {
        let text = format!("int f{n}(void) {{ return {n}; }}\n");
        fs::write(origin.join(format!("src/f{n}.c")), text).unwrap();
    }
    let makefile = "OBJECTS = $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))\n\
                    all: $(OBJECTS)\n\
                    build/%.o: src/%.c\n\t@mkdir -p build\n\tcp $< $@.tmp\n\tmv $@.tmp $@\n";
    fs::write(origin.join("Makefile"), makefile).unwrap();
    git(origin, &["init", "-q"]);
    git(origin, &["add", "."]);
    git(origin, &["commit", "-q", "-m", "one"]);
    git(&a.dir, &["clone", "-q", "--no-hardlinks", origin.to_str().unwrap(), "project"]);
    run(Command::new("make").arg("-s").arg("-C").arg(a.path("project")));
    a.write("project/src/f1.c", b"int f1(void) { return 11; }\n");
    run(Command::new("make").arg("-s").arg("-C").arg(a.path("project")));
    git(&a.path("project"), &["commit", "-q", "-a", "-m", "two"]);
    let count = a.tree().len();
    equal(&a, &b, count).await;
    assert_eq!(b.status().await.conflicts, 0);
    let there = b.path("project");
    git(&there, &["fsck", "--strict"]);
    git(&there, &["diff", "--quiet", "HEAD"]);
    // Work goes on on the other device.
    git(&there, &["checkout", "-q", "-b", "topic"]);
    fs::write(there.join("src/f2.c"), "int f2(void) { return 22; }\n").unwrap();
    git(&there, &["commit", "-q", "-a", "-m", "three"]);
    let count = b.tree().len();
    equal(&a, &b, count).await;
    git(&a.path("project"), &["fsck", "--strict"]);
    git(&a.path("project"), &["diff", "--quiet", "topic"]);
    assert_eq!(a.status().await.conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_git_packs_is_not_held_and_one_that_is_removed_is() {
    let (a, b) = two().await;
    let project = a.path("project");
    fs::create_dir_all(project.join("src")).unwrap();
    for n in 0..150 {
        fs::write(project.join(format!("src/f{n}.c")), format!("int f{n}(void);\n")).unwrap();
    }
    git(&project, &["init", "-q"]);
    git(&project, &["add", "."]);
    git(&project, &["commit", "-q", "-m", "one"]);
    let count = a.tree().len();
    equal(&a, &b, count).await;
    git(&project, &["gc", "-q", "--prune=now"]);
    let packed = a.tree().len();
    assert!(packed + 100 < count, "{packed} of {count} files are left");
    // Each device says so at once when it holds something.
    equal(&a, &b, packed).await;
    for bound in [&a, &b] {
        assert!(!was_logged(&["very many files", bound.dir.to_str().unwrap()]));
    }
    git(&b.path("project"), &["fsck", "--strict"]);
    fs::remove_dir_all(&project).unwrap();
    let devices = [&a.device, &b.device];
    until("a is held", &devices, async || a.state().await == BindingState::Held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_is_copied_with_its_times_and_modes_arrives_with_them() {
    let (a, b) = two().await;
    let scratch = tempfile::tempdir().unwrap();
    let from = scratch.path().join("tree");
    for n in 0..60_u64 {
        let file = from.join(format!("{}/{n}", n % 7));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content(n, 1_000)).unwrap();
        fs::set_permissions(
            &file,
            fs::Permissions::from_mode(if n % 3 == 0 { 0o755 } else { 0o644 }),
        )
        .unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000 + n);
        fs::File::options().write(true).open(&file).unwrap().set_modified(then).unwrap();
    }
    fs::create_dir(from.join("empty")).unwrap();
    run(Command::new("cp").arg("-a").arg(&from).arg(a.path("copied")));
    equal(&a, &b, 61).await;
    for n in 0..60_u64 {
        let there = b.path(&format!("copied/{}/{n}", n % 7)).metadata().unwrap();
        let modified = there.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(modified.as_secs(), 1_000_000_000 + n);
        assert_eq!(there.mode() & 0o111 != 0, n % 3 == 0);
    }
}

/// Unpacks an archive of `files` small files on one device.
async fn unpack(files: u64) {
    let (a, b) = two().await;
    let scratch = tempfile::tempdir().unwrap();
    for n in 0..files {
        let file = scratch.path().join(format!("tree/{}/{n}.txt", n % 101));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content(n, 200)).unwrap();
    }
    let archive = scratch.path().join("tree.tar");
    run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(scratch.path()).arg("tree"));
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&a.dir));
    let arrived = async || b.status().await.files >= files;
    for _ in 0..files / 1_000 {
        // Each of these has its own deadline.
        if arrived().await {
            break;
        }
        let before = b.status().await.files;
        let devices = [&a.device, &b.device];
        until("more arrives", &devices, async || {
            b.status().await.files > before || arrived().await
        })
        .await;
    }
    until("all are there", &[&a.device, &b.device], arrived).await;
    let files = usize::try_from(files).unwrap();
    equal(&a, &b, files).await;
    // A rename is no removal, however long it takes to look through the new directory.
    fs::rename(a.path("tree"), a.path("renamed")).unwrap();
    until_long("it is renamed", &a, async || !b.path("tree").exists()).await;
    equal(&a, &b, files).await;
    for bound in [&a, &b] {
        assert!(!was_logged(&["very many files", bound.dir.to_str().unwrap()]));
    }
}

/// Waits until something holds, or ten minutes, unless `bound` is held.
async fn until_long(what: &str, bound: &Bound, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(600);
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        assert!(bound.state().await != BindingState::Held, "{:?}", bound.problems().await);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_of_two_thousand_small_files_is_unpacked_on_both_devices() {
    unpack(2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: cargo test --test folders -- --ignored habits"]
async fn an_archive_of_fifty_thousand_small_files_is_unpacked_on_both_devices() {
    unpack(50_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute, and 8 GB of disk: cargo test --test folders -- --ignored habits"]
async fn a_file_of_two_gigabytes_that_grows_for_a_minute_is_never_seen_in_part() {
    const PIECE_BYTES: usize = 16 << 20;
    const PIECES: u64 = 128;
    let (a, b) = two().await;
    let mut file = fs::File::create(a.path("growing.bin")).unwrap();
    let mut piece = content(5, PIECE_BYTES).to_vec();
    for n in 0..PIECES {
        piece[..8].copy_from_slice(&n.to_le_bytes());
        file.write_all(&piece).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(470)).await;
        if let Ok(seen) = b.path("growing.bin").metadata() {
            // What is seen is something that was whole for a moment, never half a piece.
            assert_eq!(seen.len() % PIECE_BYTES as u64, 0);
        }
    }
    drop(file);
    let bytes = PIECES * PIECE_BYTES as u64;
    // It is written back, hashed, copied and sent: each takes as long as the disk does.
    until_long("b has it whole", &a, async || {
        b.path("growing.bin").metadata().is_ok_and(|found| found.len() == bytes)
    })
    .await;
    let mut there = fs::File::open(b.path("growing.bin")).unwrap();
    for n in 0..PIECES {
        let mut found = [0; 8];
        there.seek(std::io::SeekFrom::Start(n * PIECE_BYTES as u64)).unwrap();
        std::io::Read::read_exact(&mut there, &mut found).unwrap();
        assert_eq!(found, n.to_le_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_keeps_links_shares_large_files_with_the_store_and_takes_saves_by_rename()
{
    let (a, b) = (Bound::new().await, Bound::new().await);
    pair(&a.device, &b.device).await;
    a.write("large.raw", &content(1, 3 << 20));
    a.write("small.txt", b"small");
    a.device.handle().folders().add(request(&a.dir)).await.unwrap();
    let devices = [&a.device, &b.device];
    until("b knows it", &devices, async || b.device.handle().folders().find(NAME).await.is_ok())
        .await;
    let linked = BindRequest { name: None, keep: Keep::Link, ..request(&b.dir) };
    b.device.handle().folders().join(NAME, linked).await.unwrap();
    equal(&a, &b, 2).await;
    let stored = files_below(&b.device.home.store_dir().join("content"));
    let inodes: Vec<u64> = stored.iter().map(|file| file.metadata().unwrap().ino()).collect();
    let there = b.path("large.raw").metadata().unwrap();
    assert!(inodes.contains(&there.ino()), "it is the file of the store");
    assert_eq!(there.mode() & 0o777, 0o444, "so it cannot be written in place");
    assert!(b.path("small.txt").metadata().unwrap().mode() & 0o200 != 0);
    // An editor that saves by rename.
    b.write("large.raw.tmp", &content(2, 3 << 20));
    fs::rename(b.path("large.raw.tmp"), b.path("large.raw")).unwrap();
    until("a has the new one", &devices, async || {
        a.read("large.raw") == Some(content(2, 3 << 20).to_vec())
    })
    .await;
    equal(&a, &b, 2).await;
    b.device.verify().await;
    // The old content is still there to be brought back.
    let folders = a.device.handle().folders();
    let back = can_sync::folders::status::RestoreRequest {
        path: "large.raw".into(),
        version: Some(1),
        at_ms: None,
    };
    folders.restore(NAME, back).await.unwrap();
    until("and is back", &devices, async || {
        b.read("large.raw") == Some(content(1, 3 << 20).to_vec())
    })
    .await;
    equal(&a, &b, 2).await;
}
