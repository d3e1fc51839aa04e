//! A process that changes a bound directory is killed at each of its system calls: old or new content
//! is at every name, what was acknowledged stays, and no edit is lost. The test starts itself as the
//! process to kill.
//!
//! `KILLS=1000 cargo test --test folder_disk killed` for more kills at any moment.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use can_sync::folders::disk::{Place, Placed, Placement, Root, Source, keep};
use rand::RngExt as _;

use crate::common::{Bound, MARK, content, path};

const CHILD: &str = "PLACED_BY_CHILD";

/// The calls that change a directory, or make a change durable.
const CALLS: [&str; 12] = [
    "renameat2",
    "renameat",
    "linkat",
    "unlinkat",
    "mkdirat",
    "symlinkat",
    "openat",
    "write",
    "fchmod",
    "utimensat",
    "fsync",
    "syncfs",
];

/// The files of the batch that is made durable by writing back the whole file system.
const BATCH: usize = 12;

fn batch(at: usize) -> String {
    format!("batch/{at}")
}

/// The steps of the child, in order: a path, what is there before, what after.
const STEPS: [(&str, Option<&str>, Option<&str>); 4] = [
    ("new/deep/file", None, Some("new")),
    ("replaced", Some("old"), Some("new, and longer")),
    ("removed", Some("old"), None),
    ("held open", Some("old"), Some("new")),
];

fn place(root: &Root, at: &str, new: Option<&str>) {
    let (at, mut reader) = (path(at), new.unwrap_or_default().as_bytes());
    let what = match new {
        None => Place::Nothing,
        Some(new) => Place::File {
            source: Source::Reader(&mut reader),
            size_bytes: new.len() as u64,
            modified_ms: 1_000_000_123,
            is_executable: false,
        },
    };
    let expected = root.stat(&at).unwrap();
    let placed = root.place(Placement { path: &at, what, expected }).unwrap();
    assert!(matches!(placed, Placed::Done(_)));
}

/// The child: makes the steps, and says so after each.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let dir = Path::new(&dir);
    let root = Root::open(dir, MARK).unwrap();
    let mut held_open = OpenOptions::new().append(true).open(dir.join("held open")).unwrap();
    for (step, (at, _, new)) in STEPS.into_iter().enumerate() {
        place(&root, at, new);
        println!("\nstep {step}");
    }
    held_open.write_all(b", late edit").unwrap();
    println!("\nlate edit");
    let names: Vec<_> = (0..BATCH).map(|at| path(&batch(at))).collect();
    let mut readers: Vec<&[u8]> = names.iter().map(|_| &b"new"[..]).collect();
    let placements = names.iter().zip(&mut readers).map(|(at, reader)| Placement {
        path: at,
        what: Place::File {
            source: Source::Reader(reader),
            size_bytes: 3,
            modified_ms: 1_000_000_123,
            is_executable: true,
        },
        expected: root.stat(at).unwrap(),
    });
    for placed in root.place_all(placements.collect()) {
        assert!(matches!(placed.unwrap(), Placed::Done(_)));
    }
    println!("\nbatch");
    std::thread::sleep(Duration::from_millis(20));
}

fn prepared() -> Bound {
    let bound = Bound::quick();
    for (at, old, _) in STEPS {
        if let Some(old) = old {
            bound.write(at, old);
        }
    }
    for at in 0..BATCH {
        bound.write(&batch(at), "old");
    }
    bound
}

fn start(command: &mut Command, bound: &Bound) -> std::process::Child {
    command.env(CHILD, &bound.dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What the child said before it ended.
fn said(child: &mut std::process::Child) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).collect();
    child.wait().unwrap();
    lines
}

/// Checks what a killed child left behind.
fn check(bound: Bound, said: &[String], when: &str) {
    let has_said = |line: &str| said.iter().any(|said| said == line);
    let Bound { root, dir, _temp: temp } = bound;
    drop(root);
    let bound = Bound { root: Root::open(&dir, MARK).unwrap(), dir, _temp: temp };
    let leftovers = bound.leftovers();
    for (step, (at, old, new)) in STEPS.into_iter().enumerate() {
        let there = bound.seen(at).map(|_| bound.read(at));
        let there = there.as_deref();
        let late = Some("old, late edit").filter(|_| at == "held open");
        let is_whole = there == old || there == new || there.is_some() && there == late;
        assert!(is_whole, "{when}: {at} holds {there:?}");
        if has_said(&format!("step {step}")) {
            assert_eq!(there, new, "{when}: {at} was acknowledged");
        }
    }
    for at in (0..BATCH).map(batch) {
        let there = bound.read(&at);
        assert!(there == "old" || there == "new", "{when}: {at} holds {there:?}");
        assert!(!has_said("batch") || there == "new", "{when}: {at} was acknowledged");
    }
    if has_said("late edit") {
        let kept = leftovers.iter().any(|leftover| {
            leftover.key == path("held open").key()
                && content(&bound.root, &leftover.kept) == b"old, late edit"
        });
        assert!(kept, "{when}: the late edit is lost");
    }
    leftovers.into_iter().for_each(|leftover| bound.root.release(leftover));
    assert_eq!(bound.root.settle(0), []);
    assert_eq!(bound.root.settle(keep::KEPT_MS), []);
    assert_eq!(bound.kept(), Vec::<String>::new(), "{when}");
    for folder in ["", "batch"] {
        let own = bound.own_names(folder);
        assert!(own.iter().all(|name| name == ".can-sync-kept"), "{when}: {own:?}");
    }
}

fn this(command: &mut Command) -> &mut Command {
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "killed::child", "--nocapture"])
}

#[test]
fn a_change_killed_at_any_moment_leaves_old_or_new_content_and_loses_no_edit() {
    let kills: u32 = std::env::var("KILLS").map_or(40, |text| text.parse().unwrap());
    let mut random = rand::rng();
    for kill in 0..kills {
        let bound = prepared();
        let mut child = start(this(Command::new("env").arg("--")), &bound);
        std::thread::sleep(Duration::from_micros(random.random_range(500..40_000)));
        child.kill().unwrap();
        let said = said(&mut child);
        check(bound, &said, &format!("kill {kill}"));
    }
}

#[test]
#[ignore = "needs strace, and may trace: cargo test --test folder_disk -- --ignored killed"]
fn a_change_killed_at_each_of_its_system_calls_leaves_old_or_new_content_and_loses_no_edit() {
    let mut kills = 0;
    for call in CALLS {
        // strace counts each call by itself.
        let mut at = 1;
        loop {
            let bound = prepared();
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:signal=KILL:when={at}")]);
            let mut child = start(this(&mut strace), &bound);
            let said = said(&mut child);
            let is_over = said.iter().any(|line| line == "batch")
                && said.iter().any(|line| line.contains("test result: ok"));
            check(bound, &said, &format!("{call} {at}"));
            if is_over {
                break;
            }
            at += 1;
            assert!(at < 5_000, "it never ends: {said:?}");
        }
        println!("killed at each of {} calls of {call}", at - 1);
        kills += at - 1;
    }
    assert!(kills > 60, "only {kills} kills: strace does not kill");
}
