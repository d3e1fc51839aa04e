//! Names, paths and times of files: they travel, they find assets, and they come back as files.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::agent::{Agent, until};
use super::{blake3, names_in, noise, request, write};

/// Two devices of one group.
fn pair() -> (Agent, Agent) {
    let (desk, phone) = (Agent::start(), Agent::start());
    phone.command(&["pair"]).write_stdin(desk.output(&["ticket"])).assert().success();
    desk.output(&["rename", "desk"]);
    phone.output(&["rename", "phone"]);
    (desk, phone)
}

/// A picture that was taken on 2024-02-29 at 12:34:56 UTC.
fn picture() -> Vec<u8> {
    let tiff = b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\
                 \x01\0\x03\x90\x02\0\x14\0\0\0\x2c\0\0\0\0\0\0\0\
                 2024:02:29 12:34:56\0";
    let length = (tiff.len() as u16 + 8).to_be_bytes();
    [b"\xff\xd8\xff\xe1", &length[..], b"Exif\0\0", &tiff[..], b"\xff\xd9"].concat()
}

/// When [`picture`] was taken.
const CAPTURED_MS: i64 = 1_709_210_096_000;

fn set_modified(path: &str, ms: i64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(ms as u64);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn modified_ms(path: &Path) -> i64 {
    let since = fs::metadata(path).unwrap().modified().unwrap();
    since.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
}

fn full_names(rows: &[Value]) -> Vec<String> {
    let text = |row: &Value, part: &str| row[part].as_str().unwrap().to_owned();
    let full = |row: &Value| format!("{}/{}", text(row, "path"), text(row, "name"));
    rows.iter().map(|row| full(row).trim_start_matches('/').to_owned()).collect()
}

#[test]
fn a_file_has_its_name_its_folder_and_its_times_on_every_device() {
    let (desk, phone) = pair();
    let folder = tempfile::tempdir().unwrap();
    let note = write(folder.path(), "note.txt", b"buy milk");
    let sea = write(folder.path(), "pictures/2024/sea.jpg", &picture());
    let film = write(folder.path(), "pictures/film.mp4", &noise(300_000, 1));
    for path in [&note, &sea, &film] {
        set_modified(path, 1_600_000_000_000);
    }
    let pictures = folder.path().join("pictures");
    desk.output(&["add", &note, pictures.to_str().unwrap()]);
    desk.output(&["wait", "--timeout", "20s"]);

    until("names are there", || {
        full_names(&phone.json(&["ls", "--sort", "name"]))
            == ["note.txt", "pictures/2024/sea.jpg", "pictures/film.mp4"]
    });
    for agent in [&desk, &phone] {
        let row = &agent.json(&["info", "sea.jpg"])[0];
        assert_eq!((&row["path"], &row["type"]), (&"pictures/2024".into(), &"image/jpeg".into()));
        assert_eq!(row["captured_ms"], CAPTURED_MS);
        assert_eq!(row["modified_ms"], 1_600_000_000_000_i64);
        assert_eq!(row["added_by"], desk.ready()["node_id"]);
        let film = &agent.json(&["info", "film.mp4"])[0];
        assert_eq!((&film["path"], &film["type"]), (&"pictures".into(), &"video/mp4".into()));
        let shown = agent.output(&["info", "sea.jpg"]);
        assert!(shown.contains("captured     2024-02-29T12:34:56Z"), "{shown}");
        assert!(shown.contains("added on     desk"), "{shown}");
        let shown = agent.output(&["ls", "-l", "--name", "sea*"]);
        assert!(shown.contains("desk") && shown.contains("pictures/2024/sea.jpg"), "{shown}");
    }
    assert_eq!(phone.output(&["cat", "note.txt"]), "buy milk");
    let log = phone.output(&["log", "--asset", "sea.jpg"]);
    assert!(log.lines().count() == 2 && log.contains("  pictures/2024/sea.jpg  "), "{log}");

    let out = tempfile::tempdir().unwrap();
    let mut get = phone.command(&["get", "2024/sea.jpg"]);
    get.current_dir(out.path()).assert().success().stdout("sea.jpg\n");
    assert_eq!(fs::read(out.path().join("sea.jpg")).unwrap(), picture());
    assert_eq!(modified_ms(&out.path().join("sea.jpg")), 1_600_000_000_000);

    phone.output(&["trash", "note.txt"]);
    phone.output(&["restore", "note.txt"]);
    let row = &phone.json(&["info", "note.txt"])[0];
    assert_eq!(row["added_by"], desk.ready()["node_id"], "who edits it has not added it");
}

#[test]
fn content_that_is_here_already_keeps_its_name_whoever_adds_it_again() {
    let (desk, phone) = pair();
    let folder = tempfile::tempdir().unwrap();
    desk.output(&["add", &write(folder.path(), "first.txt", b"same")]);
    desk.output(&["wait", "--timeout", "20s"]);
    phone.output(&["add", &write(folder.path(), "second.txt", b"same")]);
    phone.output(&["wait", "--timeout", "20s"]);
    for agent in [&desk, &phone] {
        until("the first name", || full_names(&agent.json(&["ls"])) == ["first.txt"]);
    }
}

#[test]
fn a_name_that_is_changed_on_one_device_changes_on_the_other() {
    let (desk, phone) = pair();
    let folder = tempfile::tempdir().unwrap();
    desk.output(&["add", &write(folder.path(), "a.txt", b"a")]);
    desk.output(&["wait", "--timeout", "20s"]);
    let path = format!("/v1/assets/{}/meta", blake3(b"a"));
    let body = r#"{"name":"b.txt","path":"x/y","modified_ms":null}"#;
    let key = format!("Authorization: Bearer {}", phone.token());
    let headers = ["Host: 127.0.0.1".into(), key, "Content-Type: application/json".into()];
    let (status, answer) = phone.http(&request("PATCH", &path, &headers, body));
    assert_eq!(status, 200, "{answer}");
    phone.output(&["wait", "--timeout", "20s"]);
    for agent in [&desk, &phone] {
        until("the name is another", || full_names(&agent.json(&["ls"])) == ["x/y/b.txt"]);
        assert_eq!(agent.json(&["info", "y/b.txt"])[0]["modified_ms"], Value::Null);
        agent.command(&["info", "a.txt"]).assert().code(4);
    }
    let log = desk.output(&["log", "--asset", "b.txt"]);
    assert!(log.contains("name: \"a.txt\" -> \"b.txt\"  path: nothing -> \"x/y\""), "{log}");
}

#[test]
fn a_name_the_start_of_one_and_a_glob_mean_the_only_asset_they_fit() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in [
        ("d/one/readme", "1"),
        ("d/two/readme", "2"),
        ("d/notes.txt", "3"),
        ("d/notes.txt.old", "4"),
        ("d/50% [x]", "5"),
    ] {
        write(folder.path(), path, content.as_bytes());
    }
    agent.output(&["add", folder.path().join("d").to_str().unwrap()]);
    for (text, content) in [
        ("notes.txt", "3"),
        ("notes.txt.", "4"),
        ("*.old", "4"),
        ("one/readme", "1"),
        ("d/two/readme", "2"),
        ("50% [x]", "5"),
        ("50", "5"),
    ] {
        assert_eq!(agent.output(&["cat", text]), content, "{text}");
    }
    for text in ["readme", "note", "d/*", "*e*"] {
        let refused = agent.command(&["cat", text]).assert().code(4);
        let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(said.contains("could be any of these") && said.contains("d/"), "{text}: {said}");
    }
    agent.command(&["cat", "adme"]).assert().code(4);

    agent.output(&["tag", "one/readme", "+first"]);
    agent.output(&["describe", "notes.txt", "to do"]);
    assert_eq!(agent.json(&["info", "notes.txt"])[0]["description"], "to do");
    // Of two that fit, the one in the trash is meant only where that is the sense of the command.
    agent.output(&["trash", "one/readme"]);
    assert_eq!(agent.output(&["cat", "readme"]), "2");
    agent.output(&["restore", "readme"]);
    agent.command(&["cat", "readme"]).assert().code(4);
}

#[test]
fn ls_shows_what_its_filters_leave_in_the_order_that_is_asked_for() {
    let (desk, phone) = pair();
    let folder = tempfile::tempdir().unwrap();
    for (name, content, ms) in
        [("b.txt", &b"22"[..], 2_000), ("a.txt", b"1", 3_000), ("c.md", b"333", 1_000)]
    {
        set_modified(&write(folder.path(), &format!("d/{name}"), content), ms);
    }
    desk.output(&["add", folder.path().join("d").to_str().unwrap()]);
    phone.output(&["add", &write(folder.path(), "p.txt", b"4444")]);
    desk.output(&["wait", "--timeout", "20s"]);
    phone.output(&["wait", "--timeout", "20s"]);

    until("names are there", || {
        full_names(&desk.json(&["ls"])).iter().all(|name| !name.is_empty())
    });
    let ls = |args: &[&str]| full_names(&desk.json(&[&["ls"][..], args].concat()));
    assert_eq!(ls(&["--sort", "name"]), ["d/a.txt", "d/b.txt", "d/c.md", "p.txt"]);
    assert_eq!(ls(&["--sort", "size"]), ["p.txt", "d/c.md", "d/b.txt", "d/a.txt"]);
    assert_eq!(ls(&["--sort", "modified"])[1..], ["d/a.txt", "d/b.txt", "d/c.md"]);
    assert_eq!(ls(&["--name", "[ab].txt", "--sort", "name"]), ["d/a.txt", "d/b.txt"]);
    assert_eq!(ls(&["--name", "d/*.md"]), ["d/c.md"]);
    assert_eq!(ls(&["--type", "text/markdown"]), ["d/c.md"]);
    assert_eq!(ls(&["--device", "phone"]), ["p.txt"]);
    assert_eq!(ls(&["--device", "desk", "--name", "a*"]), ["d/a.txt"]);
    assert_eq!(ls(&["--since", "1h"]).len(), 4);
    assert_eq!(ls(&["--until", "1h"]).len(), 0);
    desk.command(&["ls", "--device", "nobody"]).assert().code(4);
    desk.command(&["ls", "--sort", "colour"]).assert().code(2);
}

#[test]
fn many_assets_get_their_folders_back_and_replace_nothing() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "d/a.txt", b"a");
    write(folder.path(), "d/sub/b.txt", b"b");
    write(folder.path(), "d/sub/deep/c.txt", b"c");
    agent.output(&["add", folder.path().join("d").to_str().unwrap(), "--tag", "all"]);
    agent.command(&["add", "-"]).write_stdin("nameless").assert().success();
    let out = folder.path().join("out");
    let out_text = out.to_str().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    // What is there already: another file, a link that leads away, a file in place of a folder.
    write(&out, "d/a.txt", b"mine");
    symlink(&outside, out.join("d/sub")).unwrap();

    agent.output(&["get", "--all", "-o", out_text]);
    let other = format!("a-{}.txt", &blake3(b"a")[..10]);
    assert_eq!(names_in(&out), [blake3(b"nameless"), "d".to_owned()]);
    assert_eq!(names_in(&out.join("d")), [other.as_str(), "a.txt", "sub", "sub_"]);
    assert_eq!(fs::read(out.join("d/a.txt")).unwrap(), b"mine");
    assert_eq!(fs::read(out.join("d").join(&other)).unwrap(), b"a");
    assert_eq!(fs::read(out.join("d/sub_/deep/c.txt")).unwrap(), b"c");
    assert!(names_in(&outside).is_empty());

    // Again, everything is there.
    let again = agent.output(&["get", "--tag", "all", "-o", out_text]);
    assert_eq!(again.matches("(here already)").count(), 3, "{again}");
    assert_eq!(names_in(&out.join("d")).len(), 4);
    agent.command(&["get", "--all", "-o", "-"]).assert().code(2);
    agent.command(&["get"]).assert().code(2);
    agent.command(&["get", "a.txt", "--all"]).assert().code(2);
}

#[test]
fn a_hostile_path_stays_in_the_folder_and_off_the_terminal() {
    let (desk, phone) = pair();
    // Written past every check, as a hostile device would.
    for (content, path, name) in [
        ("1", "../../../etc", "passwd"),
        ("2", "/root/.ssh", "authorized_keys"),
        ("3", "a\u{1b}[2J/..", "\u{202e}gpj.exe"),
        ("4", "", "../../../x"),
        ("5", "", ".."),
    ] {
        desk.command(&["add", "-"]).write_stdin(content).assert().success();
        let hash = blake3(content.as_bytes());
        let (path, name) = (format!("path={path}"), format!("name={name}"));
        desk.output(&["records", "put", "asset", &hash, &path, &name]);
    }
    desk.output(&["wait", "--timeout", "20s"]);
    until("names are there", || {
        phone.command(&["info", "passwd"]).output().unwrap().status.success()
    });
    until("names are there", || {
        full_names(&phone.json(&["ls"])).iter().filter(|n| !n.is_empty()).count() == 4
    });
    for args in [&["ls"][..], &["ls", "-l"], &["--json", "ls"], &["log"], &["info", "passwd"]] {
        let text = phone.output(args);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/b/c/out");
    phone.output(&["get", "--all", "-o", out.to_str().unwrap()]);
    let mut names = names_in(&out);
    names.sort();
    assert_eq!(names, ["a_[2J", &blake3(b"5"), "etc", "root", "x"]);
    assert_eq!(names_in(&out.join("a_[2J")), ["_gpj.exe"]);
    assert_eq!(names_in(&out.join("root")), ["_ssh"]);
    assert_eq!(names_in(&folder.path().join("a/b/c")), ["out"]);
}

#[test]
fn an_asset_that_is_not_here_yet_is_fetched_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let slow = ["up", "--offline", "--bwlimit", "1M:off"];
    let (desk, phone) = (Agent::serve(&folder.path().join("desk"), &slow), Agent::start());
    phone.command(&["pair"]).write_stdin(desk.output(&["ticket"])).assert().success();
    desk.output(&["add", &write(folder.path(), "film.mp4", &noise(8_000_000, 2))]);
    desk.output(&["log"]);
    let hash = blake3(&noise(8_000_000, 2));
    until("its name is known", || {
        phone.command(&["log", "--asset", "film.mp4"]).output().unwrap().status.success()
    });
    let early = phone.command(&["cat", "film.mp4"]).assert().code(4);
    let said = String::from_utf8_lossy(&early.get_output().stderr).into_owned();
    assert!(said.contains("can-sync fetch"), "{said}");
    assert_eq!(phone.output(&["fetch", "--now", "film.mp4", "--timeout", "30s"]).trim(), hash);
}
