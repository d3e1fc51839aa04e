//! Local faults of a real agent: a full disk, no file descriptors left, a read-only disk, one that
//! fails, no log left to write to. Each is caused, and then removed where that can be: the agent
//! serves what it can, reports the fault, and loses nothing. Tests that need `mount` are skipped,
//! with a line that says so, unless run by root.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
#[cfg(target_os = "linux")]
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Key, Value};
use can_sync::core::limits::LOGS_PER_AUTHOR_MAX;
use can_sync::replica::status::{PeerState, Status};
use can_sync::state::home::Home;
use can_sync::state::identity::Identity;
use can_sync::state::journal::Journal;
#[cfg(target_os = "linux")]
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, until_within};

/// Refused edits are tried again after 30 s.
const DEADLINE: Duration = Duration::from_secs(90);

fn status(agent: &Agent) -> Status {
    serde_json::from_str(&agent.output(&["--json", "status"])).unwrap()
}

fn held(agent: &Agent) -> BTreeSet<String> {
    let rows = agent.json(&["ls"]);
    rows.iter().map(|row| row["hash"].as_str().unwrap().to_owned()).collect()
}

/// Adds content that neither compresses nor repeats; returns its hash.
fn add(agent: &Agent, bytes: usize, seed: u8) -> String {
    let mut content = vec![0; bytes];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut content);
    agent.command(&["add", "-"]).write_stdin(content.clone()).assert().success();
    blake3::hash(&content).to_string()
}

fn pair(inviter: &Agent, joiner: &Agent) {
    let ticket = inviter.output(&["--quiet", "ticket"]);
    joiner.command(&["pair"]).write_stdin(ticket).assert().success();
}

/// A small file system, in memory unless it is to fail; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None` where mounting is not allowed.
    fn new(folder: &Path) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs"]).arg(folder);
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            println!("left out: mount is not allowed here");
        }
        mounted.then(|| Self(folder.to_owned()))
    }

    /// A file system in a file, which becomes read-only when it finds an error.
    fn of_image(image: &Path, folder: &Path) -> Option<Self> {
        let run = |command: &mut Command| {
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        if !image.exists() {
            File::create(image).unwrap().set_len(128 * 1024 * 1024).unwrap();
            run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image));
        }
        fs::create_dir_all(folder).unwrap();
        let options = ["-t", "ext4", "-o", "loop,errors=remount-ro"];
        let mounted = run(Command::new("mount").args(options).arg(image).arg(folder));
        if !mounted {
            println!("left out: an image cannot be mounted here");
        }
        mounted.then(|| Self(folder.to_owned()))
    }

    /// Makes the kernel find an error in it.
    fn fail(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let here = self.0.to_str().unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(1) == Some(here)).unwrap();
        let device = Path::new(mount.split(' ').next().unwrap()).file_name().unwrap();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(trigger, "a test").unwrap();
        until_within(DEADLINE, "nothing can be written", || {
            File::create(self.0.join("probe")).is_err()
        });
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount.arg("-o").arg(format!("remount,{how}")).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }

    /// Fills it to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut filler = File::create(&path).unwrap();
        for piece_bytes in [1 << 16, 1] {
            while filler.write_all(&vec![0; piece_bytes]).is_ok() {}
        }
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn start_on(mount: &Mount, log: &Path) -> Agent {
    let log = File::create(log).unwrap();
    Agent::serve_with(&mount.0.join("home"), &["up", "--offline"], log.into())
}

#[test]
fn an_agent_whose_disk_is_full_says_so_sends_what_it_has_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(&folder.path().join("mount")) else { return };
    let mut full = start_on(&mount, &folder.path().join("full.log"));
    let home = folder.path().join("other");
    let mut other = Agent::start_in(&home);
    pair(&full, &other);
    let id = status(&full).device.node_id;
    other.output(&["wait", "--timeout", "30s", "--peer", &id.to_string()]);
    other.stop_with("-TERM");
    let before = add(&full, 200_000, 1);

    let filler = mount.fill();
    until_within(DEADLINE, "its status names the disk", || {
        status(&full).device.obstacles.iter().any(|text| text.contains("full"))
    });
    let other = Agent::start_in(&home);
    until_within(DEADLINE, "what it holds is sent", || held(&other).contains(&before));
    let after = add(&other, 200_000, 2);
    let fields = ["a", "b", "c"].map(|name| format!("{name}={}", "x".repeat(16_000)));
    for number in 0..30 {
        let put = ["records", "put", "note", &number.to_string()];
        other.output(&[&put[..], &fields.each_ref().map(String::as_str)].concat());
    }
    let of_peer = || status(&other).peers.remove(0);
    until_within(DEADLINE, "the other device is told why edits do not arrive", || {
        of_peer().obstacles.iter().any(|text| text.contains("disk is full"))
    });
    assert!(matches!(of_peer().state, PeerState::Idle | PeerState::Syncing));
    let waited = full.command(&["wait", "--timeout", "1s"]).assert().code(6);
    let said = String::from_utf8_lossy(&waited.get_output().stderr).into_owned();
    assert!(said.contains("full"), "{said}");
    full.command(&["add", "-"]).write_stdin(vec![7; 300_000]).assert().code(5);
    full.command(&["cat", &before]).assert().success();

    fs::remove_file(filler).unwrap();
    until_within(DEADLINE, "it sees that there is room", || {
        status(&full).device.obstacles.is_empty()
    });
    until_within(DEADLINE, "assets arrive", || held(&full).contains(&after));
    until_within(DEADLINE, "edits arrive", || {
        full.command(&["records", "get", "note", "29"]).ok().is_ok()
    });
    until_within(DEADLINE, "both say so", || {
        [&full, &other].iter().all(|agent| {
            let status = status(agent);
            status.in_sync && status.peers.iter().all(|peer| peer.obstacles.is_empty())
        })
    });
    assert_eq!(full.stop_with("-TERM").code(), Some(0));
}

#[test]
fn an_agent_that_begins_on_a_full_disk_says_so_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(&folder.path().join("mount")) else { return };
    let log = folder.path().join("log");
    let refused = || {
        let home = mount.0.join("home");
        let mut up = assert_cmd::Command::from_std(agent::program());
        up.args(["up", "--offline", "--listen", "127.0.0.1:0", "--home"]).arg(home);
        let refused = up.timeout(DEADLINE).assert().code(1);
        let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(said.contains("no room") && said.contains("free some space"), "{said}");
        assert!(said.contains(mount.0.to_str().unwrap()), "{said}");
    };
    // A home that is about to be made; it has a folder, a token and a key, as after an attempt.
    let filler = mount.fill();
    fs::remove_file(&filler).unwrap();
    fs::write(&filler, vec![0; 64 * 1024 * 1024 - 100_000]).unwrap();
    refused();
    fs::remove_file(filler).unwrap();
    let mut agent = start_on(&mount, &log);
    let hash = add(&agent, 200_000, 1);
    for signal in ["-TERM", "-KILL"] {
        agent.output(&["records", "put", "note", signal.trim_matches('-'), "v=1"]);
        agent.stop_with(signal);
        let filler = mount.fill();
        refused();
        fs::remove_file(filler).unwrap();
        agent = start_on(&mount, &log);
        agent.output(&["records", "get", "note", signal.trim_matches('-')]);
        agent.output(&["journal", "fsck"]);
        agent.command(&["cat", &hash]).assert().success();
    }
    let more = add(&agent, 200_000, 2);
    assert_eq!(held(&agent), BTreeSet::from([hash, more]));
}

#[test]
fn a_device_that_has_used_up_its_logs_says_so_and_refuses_edits_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut agent = Agent::start_in(&home);
    let hash = add(&agent, 200_000, 1);
    assert_eq!(agent.stop_with("-TERM").code(), Some(0));
    let opened = Home::open(Some(home.clone())).unwrap();
    let lock = opened.lock().unwrap();
    let identity = Identity::load_or_create(&opened, &lock).unwrap();
    let mut journal = Journal::open(&opened.journal_db_path(), &identity, rand::random()).unwrap();
    let used = |journal: &Journal| journal.reader().unwrap().stats().unwrap().logs.len();
    for number in used(&journal)..LOGS_PER_AUTHOR_MAX {
        journal.restored().unwrap();
        let key = Key { model: "note".into(), id: number.to_string().into(), owned: false };
        let set = BTreeMap::from([("v".into(), Some(Value::Int(1)))]);
        let put = DraftPut {
            key,
            create: true,
            set,
            add: Default::default(),
            remove: Default::default(),
        };
        let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
        let written = journal.write(&[draft], can_sync::clock::wall_ms()).unwrap();
        assert!(written.iter().all(Result::is_ok), "{written:?}");
    }
    assert_eq!(used(&journal), LOGS_PER_AUTHOR_MAX);
    journal.restored().unwrap();
    journal.close().unwrap();
    drop(lock);

    let agent = Agent::start_in(&home);
    let warnings = status(&agent).device.warnings;
    assert!(warnings.iter().any(|said| said.contains("can be edited")), "{warnings:?}");
    let refused = agent.command(&["records", "put", "note", "more", "v=1"]).assert().code(9);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.contains("64 logs of one device"), "{said}");
    agent.output(&["records", "get", "note", "63"]);
    agent.command(&["cat", &hash]).assert().success();
    // An asset is not an edit, so it is stored.
    let more = add(&agent, 200_000, 2);
    assert_eq!(held(&agent), BTreeSet::from([hash, more]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fails_under_a_running_agent_stops_it_with_the_reason_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (image, place) = (folder.path().join("image"), folder.path().join("mount"));
    let log = folder.path().join("log");
    let Some(mount) = Mount::of_image(&image, &place) else { return };
    let mut failing = start_on(&mount, &log);
    let hash = add(&failing, 200_000, 1);
    failing.output(&["records", "put", "note", "before", "v=1"]);
    mount.fail();
    // There is no answer or a refusal, but no acknowledgement.
    failing.command(&["records", "put", "note", "after", "v=1"]).assert().failure();
    assert_eq!(failing.ended().code(), Some(1));
    let said = fs::read_to_string(&log).unwrap();
    let last = said.lines().last().unwrap();
    assert!(last.contains("see to the disk, and start again"), "{last}");
    drop(mount);

    let mount = Mount::of_image(&image, &place).unwrap();
    let agent = start_on(&mount, &log);
    agent.output(&["records", "get", "note", "before"]);
    agent.output(&["journal", "fsck"]);
    agent.command(&["cat", &hash]).assert().success();
}

#[cfg(target_os = "linux")]
#[test]
fn an_agent_without_file_descriptors_lives_and_answers_again_when_there_are_some() {
    let mut agent = Agent::start();
    let hash = add(&agent, 200_000, 1);
    let pid = Pid::from_raw(i32::try_from(agent.pid()).unwrap());
    // Open files stay open; no more can be opened.
    let none = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    let address = agent.ready()["api"].as_str().unwrap().strip_prefix("http://").unwrap();
    let waiting = TcpStream::connect(address).unwrap();
    until_within(DEADLINE, "the log says so", || {
        agent.log().contains("cannot accept a connection")
    });
    prlimit(pid, Resource::Nofile, before).unwrap();
    drop(waiting);
    agent.command(&["cat", &hash]).assert().success();
    let more = add(&agent, 200_000, 2);
    assert!(held(&agent).contains(&more));
    assert_eq!(agent.stop_with("-TERM").code(), Some(0));
}

#[test]
fn a_home_on_a_read_only_disk_is_refused_with_its_name_and_starts_once_it_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(&folder.path().join("mount")) else { return };
    let log = folder.path().join("log");
    let mut agent = start_on(&mount, &log);
    let hash = add(&agent, 200_000, 1);
    assert_eq!(agent.stop_with("-TERM").code(), Some(0));
    mount.remount("ro");
    let refused = agent.command(&["up", "--offline", "--listen", "127.0.0.1:0"]).assert().code(1);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.contains("Read-only") && said.contains(mount.0.to_str().unwrap()), "{said}");
    mount.remount("rw");
    let agent = start_on(&mount, &log);
    assert!(held(&agent).contains(&hash));
}
