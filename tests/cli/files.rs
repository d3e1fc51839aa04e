//! `add` and `get` beside everything else that can happen to a user's files.

use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::agent::{Agent, DEADLINE, program, until};
use super::{blake3, names_in, noise, write};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The names of the assets in the store.
fn stored(agent: &Agent) -> Vec<String> {
    agent.json(&["ls"]).iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_home_is_never_added_under_whatever_name_it_is_found() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    write(folder.path(), "d/good", b"good");
    // A copy of a home, as in a backup.
    for name in ["key", "api-token", "journal.db", "store/store.db", "store/content/ab/cd"] {
        write(folder.path(), &format!("d/backup/{name}"), name.as_bytes());
    }
    fs::hard_link(agent.home().join("key"), folder.path().join("d/linked")).unwrap();
    symlink(agent.home(), folder.path().join("way")).unwrap();

    let add = agent.command(&["add", &path("d")]).assert().code(1);
    let said = text(&add.get_output().stderr);
    assert!(said.contains("d/backup: the folder of a can-sync agent"), "{said}");
    assert!(said.contains("d/linked: it belongs to a can-sync agent"), "{said}");
    for name in
        ["way", "way/key", "d/linked", "d/backup", "d/backup/key", "d/backup/store/store.db"]
    {
        agent.command(&["add", &path(name)]).assert().code(1);
    }
    assert_eq!(stored(&agent), ["good"]);
}

#[test]
fn a_home_that_is_a_mount_point_is_not_entered() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "mode=700,size=64M", "tmpfs"]).arg(&home);
    if !mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        // Only root can mount.
        return;
    }
    let mut agent = Agent::start_in(&home);
    write(folder.path(), "beside", b"beside");
    let add = agent.command(&["add", folder.path().to_str().unwrap()]).output().unwrap();
    let names = stored(&agent);
    agent.stop_with("-TERM");
    assert!(Command::new("umount").arg("-l").arg(&home).status().unwrap().success());
    assert!(text(&add.stderr).contains("the folder of a can-sync agent"), "{add:?}");
    assert!(names.contains(&"beside".to_owned()), "{names:?}");
    assert!(!names.contains(&"key".to_owned()), "{names:?}");
}

#[test]
fn a_file_that_changes_all_the_time_is_named_and_the_others_are_added() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a", b"first");
    write(folder.path(), "z", b"last");
    let path = folder.path().join("m");
    let mut file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let done = AtomicBool::new(false);
    let add = std::thread::scope(|scope| {
        scope.spawn(|| {
            for byte in (0..=255).cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                file.seek(SeekFrom::Start(u64::from(byte) << 10)).unwrap();
                file.write_all(&[byte]).unwrap();
            }
        });
        let add = agent.command(&["add", folder.path().to_str().unwrap()]).output();
        done.store(true, Ordering::Relaxed);
        add.unwrap()
    });
    assert_eq!(add.status.code(), Some(1));
    let said = text(&add.stderr);
    assert!(said.contains("m: it changed while it was read"), "{said}");
    assert!(!said.contains("connection"), "{said}");
    let mut names = stored(&agent);
    names.sort();
    assert_eq!(names, ["a", "z"]);
    // Nothing writes to the file any more.
    agent.output(&["add", path.to_str().unwrap()]);
}

#[test]
fn a_file_that_became_shorter_is_added_as_it_is_then() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let mut add = program();
    add.arg("--home").arg(agent.home()).arg("add").arg(&path);
    let add = add.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let uploads = agent.home().join("store/staging");
    until("the upload has begun", || fs::read_dir(&uploads).unwrap().next().is_some());
    fs::write(&path, b"rotated").unwrap();
    let add = add.wait_with_output().unwrap();
    assert_eq!(text(&add.stdout), format!("{}  {}\n", blake3(b"rotated"), path.display()));
    assert_eq!((add.status.code(), text(&add.stderr)), (Some(0), String::new()));
}

#[test]
fn add_goes_on_when_nobody_reads_what_it_prints() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    for number in 0..1200 {
        write(folder.path(), &number.to_string(), number.to_string().as_bytes());
    }
    let mut add = program();
    add.arg("--home").arg(agent.home()).arg("add").arg(folder.path());
    let mut add = add.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(add.stdout.take());
    let add = add.wait_with_output().unwrap();
    assert_eq!((add.status.code(), text(&add.stderr)), (Some(0), String::new()));
    assert_eq!(stored(&agent).len(), 1200);
}

#[test]
fn what_is_said_about_content_that_is_here_already_is_not_dropped() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    agent.command(&["add", "-"]).write_stdin("pic").assert().success();
    let path = write(folder.path(), "holiday.jpg", b"pic");
    let hash = blake3(b"pic");
    let line = format!("{hash}  {path}  (here already)\n");
    let about = ["add", &path, "--tag", "summer", "--description", "sea"];
    assert_eq!(agent.output(&about), line);
    // The same once more is no error.
    assert_eq!(agent.output(&about), line);
    agent.output(&["add", &path, "--tag", "2026"]);
    let row = &agent.json(&["info", &hash])[0];
    assert_eq!(row["tags"], serde_json::json!(["2026", "summer"]));
    assert_eq!(row["description"], "sea");

    for other in [["--description", "mountains"], ["--type", "image/jpeg"]] {
        let add = agent.command(&[&["add", &path][..], &other].concat()).assert().code(1);
        assert_eq!(text(&add.get_output().stdout), line);
        let said = text(&add.get_output().stderr);
        assert!(said.contains("it is here already and keeps its"), "{said}");
    }
    assert_eq!(agent.json(&["info", &hash])[0]["description"], "sea");
}

#[test]
fn get_keeps_the_mode_and_the_links_of_what_it_replaces() {
    let agent = Agent::start();
    agent.command(&["add", "-"]).write_stdin("new").assert().success();
    let folder = tempfile::tempdir().unwrap();
    let private = write(folder.path(), "private", b"old");
    fs::set_permissions(&private, Permissions::from_mode(0o600)).unwrap();
    let target = write(folder.path(), "elsewhere/target", b"old");
    fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
    symlink("elsewhere/target", folder.path().join("link")).unwrap();
    symlink("nothing", folder.path().join("dangling")).unwrap();
    let get = |name: &str| {
        let mut command = agent.command(&["get", &blake3(b"new"), "-o", name]);
        command.current_dir(folder.path()).assert()
    };
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    get("private").success().stdout("private\n");
    assert_eq!((mode(&private), fs::read(&private).unwrap()), (0o600, b"new".to_vec()));
    get("link").success().stdout("link\n");
    assert_eq!(fs::read_link(folder.path().join("link")).unwrap(), Path::new("elsewhere/target"));
    assert_eq!((mode(&target), fs::read(&target).unwrap()), (0o640, b"new".to_vec()));
    get("dangling").code(1);
    get("-").success().stdout("new");
    assert_eq!(names_in(folder.path()), ["dangling", "elsewhere", "link", "private"]);
}

#[test]
fn a_get_that_is_ended_by_a_signal_leaves_no_file() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big");
    File::create(&big).unwrap().set_len(256 << 20).unwrap();
    let hash = agent.json(&["add", big.to_str().unwrap()])[0]["hash"].as_str().unwrap().to_owned();
    for signal in ["-INT", "-TERM", "-HUP"] {
        let out = tempfile::tempdir().unwrap();
        let mut get = program();
        get.arg("--home").arg(agent.home()).args(["get", &hash]).current_dir(out.path());
        let mut get = get.stderr(Stdio::null()).spawn().unwrap();
        until("the file has begun", || !names_in(out.path()).is_empty());
        let id = get.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert_eq!(get.wait().unwrap().code(), Some(1), "{signal}");
        assert!(names_in(out.path()).is_empty(), "{signal}");
    }
}

#[test]
fn an_error_names_the_path_once_and_the_cause_once() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing").to_str().unwrap().to_owned();
    let add = agent.command(&["add", &missing]).assert().code(1);
    let expected = format!("can-sync: {missing}: No such file or directory (os error 2)\n");
    assert_eq!(text(&add.get_output().stderr), expected);

    agent.command(&["add", "-"]).write_stdin(noise(100, 1)).assert().success();
    let target = folder.path().join("nowhere/x").to_str().unwrap().to_owned();
    let get = agent.command(&["get", &blake3(&noise(100, 1)), "-o", &target]).assert().code(1);
    let expected = format!(
        "can-sync: creating a file beside {target}: No such file or directory (os error 2)\n"
    );
    assert_eq!(text(&get.get_output().stderr), expected);

    let mut up = program();
    up.arg("--home").arg(folder.path().join("home"));
    up.args(["up", "--offline", "--store", "http://127.0.0.1:9", "--store-key-file", &missing]);
    let up = assert_cmd::Command::from_std(up).timeout(DEADLINE).assert().code(1);
    let said = text(&up.get_output().stderr);
    assert!(said.contains("--store-key-file must name"), "{said}");
    assert!(!said.contains("refused"), "{said}");
}
