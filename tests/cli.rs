//! The program as people and scripts use it: the real binary, a real agent, a home of its own.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use can_sync::core::ids::HashAlgorithm;
use can_sync::replica::status::Status;
use serde_json::json;

#[path = "common/agent.rs"]
mod agent;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/names.rs"]
mod names;

use agent::{Agent, program, until};

fn blake3(content: &[u8]) -> String {
    HashAlgorithm::Blake3.hash(content).to_string()
}

fn write(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Content that neither compresses nor repeats nor fits into a batch.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; bytes];
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    blake3::Hasher::new_keyed(&key).finalize_xof().fill(&mut content);
    content
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_ready_line_names_the_device_and_the_api_and_the_status_is_one() {
    let agent = Agent::start();
    assert_eq!(agent.ready()["ready"], true);
    let status: Status = serde_json::from_str(&agent.output(&["--json", "status"])).unwrap();
    assert_eq!(agent.ready()["node_id"], status.device.node_id.to_string());
    assert_eq!(status.store.location, "embedded");
    assert!(agent.output(&["status"]).contains(&status.device.node_id.to_string()));
}

#[test]
fn what_is_added_is_listed_shown_and_comes_back_the_same() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let large = noise(3_000_000, 1);
    let paths = [
        write(folder.path(), "empty.txt", b""),
        write(folder.path(), "a.txt", b"hello"),
        write(folder.path(), "large.bin", &large),
    ];
    let printed = agent.output(&["add", &paths[0], &paths[1], &paths[2]]);
    let expected = [&b""[..], b"hello", &large]
        .iter()
        .zip(&paths)
        .map(|(content, path)| format!("{}  {path}\n", blake3(content)))
        .collect::<String>();
    assert_eq!(printed, expected);

    let rows = agent.json(&["ls"]);
    let sizes: Vec<_> = rows.iter().map(|row| row["size"].as_u64().unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert!([0, 5, 3_000_000].iter().all(|size| sizes.contains(size)));

    for content in [&b""[..], b"hello", &large] {
        let hash = blake3(content);
        let cat = agent.command(&["cat", &hash]).assert().success();
        assert_eq!(cat.get_output().stdout, content);
        let target = folder.path().join("out");
        agent.output(&["get", &hash[..12], "-o", target.to_str().unwrap()]);
        assert_eq!(fs::read(&target).unwrap(), content);
    }
    let info = &agent.json(&["info", &blake3(b"hello")])[0];
    assert_eq!(info["name"], "a.txt");
    assert_eq!(info["tags"], serde_json::json!([]));
    assert_eq!(info["description"], "");
    assert_eq!(info["trashed"], false);
}

#[test]
fn a_damaged_asset_has_an_exit_status_of_its_own_and_a_good_file_added_again_mends_it() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let content = noise(3_000_000, 1);
    let path = write(folder.path(), "large.bin", &content);
    let hash = agent.output(&["add", &path])[..64].to_owned();
    let stored = agent.home().join("store/content").join(&hash[..2]).join(&hash);
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let mut rotten = content.clone();
    rotten[2_900_000] ^= 1;
    for damage in [Some(rotten), Some(content[..1_000_000].to_vec()), None] {
        match damage {
            Some(bytes) => fs::write(&stored, bytes).unwrap(),
            None => fs::remove_file(&stored).unwrap(),
        }
        for _ in 0..2 {
            let get = agent.command(&["get", &hash, "-o", out]).assert().code(7);
            let said = String::from_utf8_lossy(&get.get_output().stderr).into_owned();
            assert!(said.contains("damaged on this device"), "{said}");
            assert!(!Path::new(out).exists());
        }
        agent.command(&["cat", &hash]).assert().code(7);
        until_status(&agent, |status| status.contains("1 DAMAGED"));
        assert_eq!(agent.json(&["ls"])[0]["damaged"], true);
        agent.output(&["add", &path]);
        agent.output(&["get", &hash, "-o", out]);
        assert_eq!(fs::read(out).unwrap(), content);
        fs::remove_file(out).unwrap();
        until_status(&agent, |status| !status.contains("DAMAGED"));
    }
    // Nothing has checked the asset; `add` does.
    fs::write(&stored, vec![0; 3_000_000]).unwrap();
    agent.output(&["add", &path]);
    assert_eq!(fs::read(&stored).unwrap(), content);
    let log = agent.output(&["--json", "log"]);
    assert!(log.contains("integrity-alarm") && log.contains(&hash), "{log}");
}

#[test]
fn verify_says_what_is_damaged_and_whether_another_device_has_mended_it() {
    let (a, b) = (Agent::start(), Agent::start());
    let folder = tempfile::tempdir().unwrap();
    let lost = write(folder.path(), "lost", &noise(600_000, 1));
    let fine = write(folder.path(), "fine", &noise(600_000, 2));
    let (lost_hash, fine_hash) = (blake3(&noise(600_000, 1)), blake3(&noise(600_000, 2)));
    a.output(&["add", &lost, &fine]);
    let all = a.command(&["verify", "--all"]).assert().success().stdout("");
    let said = String::from_utf8_lossy(&all.get_output().stderr).into_owned();
    assert!(said.contains("2 assets") && said.contains("0 damaged, 0 repaired"), "{said}");

    let stored = a.home().join("store/content").join(&lost_hash[..2]).join(&lost_hash);
    let mut bytes = fs::read(&stored).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&stored, bytes).unwrap();
    let all = a.command(&["verify", "--all", "--json", "--jobs", "3"]).assert().code(7);
    let text = String::from_utf8_lossy(&all.get_output().stdout).into_owned();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |hash: &str| lines.iter().find(|line| line["hash"] == *hash).unwrap();
    assert_eq!(of(&fine_hash)["condition"], "whole");
    assert_eq!(of(&lost_hash)["condition"], "damaged");
    assert_eq!(of(&lost_hash)["repaired"], false);
    assert_eq!(of(&lost_hash)["wrong"], json!([[98_304, 114_688]]));

    b.output(&["add", &lost]);
    let ticket = a.output(&["ticket"]).trim().to_owned();
    b.output(&["pair", &ticket]);
    until_status(&a, |status| !status.contains("DAMAGED"));
    a.command(&["verify", &lost_hash[..12]]).assert().success();
    let mut bytes = fs::read(&stored).unwrap();
    bytes[500_000] ^= 1;
    fs::write(&stored, bytes).unwrap();
    let found = a.command(&["verify", &lost_hash[..12]]).assert().success();
    let said = String::from_utf8_lossy(&found.get_output().stdout).into_owned();
    assert!(said.starts_with(&lost_hash) && said.contains("repaired  16.0 KiB of"), "{said}");
    a.command(&["verify"]).assert().code(2);
    a.command(&["verify", "0123456789"]).assert().code(4);
}

fn until_status(agent: &Agent, is_so: impl Fn(&str) -> bool) {
    let mut status = String::new();
    until("the status says so", || {
        status = agent.output(&["status"]);
        is_so(&status)
    });
}

#[test]
fn a_folder_is_added_with_all_that_is_in_it_in_order_and_links_are_not_followed() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "secret", b"outside");
    for number in 0..700 {
        let content = format!("file {number}");
        write(folder.path(), &format!("{}/{number:04}.txt", number % 7), content.as_bytes());
    }
    symlink(outside.path(), folder.path().join("link")).unwrap();
    symlink(outside.path().join("secret"), folder.path().join("link.txt")).unwrap();
    let added = agent.json(&["add", folder.path().to_str().unwrap()]);
    let paths: Vec<_> = added.iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 700);
    assert!(paths.is_sorted());
    assert_eq!(agent.json(&["ls"]).len(), 700);
    agent.command(&["info", &blake3(b"outside")]).assert().code(4);

    let again = agent.json(&["add", folder.path().to_str().unwrap()]);
    assert!(again.iter().all(|row| row["existed"] == true));
}

#[test]
fn standard_input_is_added_whatever_its_size() {
    let agent = Agent::start();
    for content in [vec![], b"typed".to_vec(), noise(2_000_000, 2)] {
        let add = agent.command(&["add", "-"]).write_stdin(content.clone()).assert().success();
        let printed = String::from_utf8_lossy(&add.get_output().stdout).into_owned();
        assert_eq!(printed, format!("{}  -\n", blake3(&content)));
    }
}

#[test]
fn what_cannot_be_read_is_named_and_the_others_go_on() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let good = write(folder.path(), "good", b"good");
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let add = agent.command(&["add", missing, &good]).assert().code(1);
    assert!(String::from_utf8_lossy(&add.get_output().stderr).contains(missing));
    assert!(String::from_utf8_lossy(&add.get_output().stdout).contains(&blake3(b"good")));
}

#[test]
fn a_name_that_is_no_text_is_added_all_the_same() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"caf\xe9.txt");
    fs::write(folder.path().join(name), b"latin").unwrap();
    let added = agent.json(&["add", folder.path().to_str().unwrap()]);
    assert_eq!(added[0]["hash"], blake3(b"latin").as_str());
    assert_eq!(agent.json(&["ls"])[0]["name"], "caf\u{fffd}.txt");
}

#[test]
fn a_damaged_asset_is_never_handed_out() {
    let agent = Agent::start();
    let content = noise(400_000, 4);
    agent.command(&["add", "-"]).write_stdin(content.clone()).assert().success();
    let hash = blake3(&content);
    let stored = find_file(&agent.home().join("store"), &hash);
    let mut damaged = content;
    damaged[200_000] ^= 1;
    fs::set_permissions(&stored, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&stored, damaged).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let get = agent.command(&["get", &hash, "-o", target.to_str().unwrap()]).output().unwrap();
    assert!(!get.status.success());
    assert!(names_in(folder.path()).is_empty());
    assert!(!agent.command(&["cat", &hash]).output().unwrap().status.success());
}

/// The file below `folder` whose name is `hash`.
fn find_file(folder: &Path, hash: &str) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let joined = path.to_str().unwrap().replace('/', "");
            if path.is_dir() {
                folders.push(path);
            } else if joined.ends_with(hash) {
                return path;
            }
        }
    }
    panic!("no file holds {hash}");
}

#[test]
fn the_agents_own_folder_is_never_added() {
    let agent = Agent::start();
    let around = agent.home().parent().unwrap();
    write(around, "beside", b"beside");
    let added = agent.json(&["add", around.to_str().unwrap()]);
    let paths: Vec<_> = added.iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert!(paths.iter().any(|path| path.ends_with("/beside")));
    assert!(!paths.iter().any(|path| Path::new(path).starts_with(agent.home())), "{paths:?}");
    let token = agent.home().join("api-token");
    agent.command(&["add", token.to_str().unwrap()]).assert().code(1);
}

#[test]
fn metadata_given_with_add_is_found_by_the_filters_of_ls() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "cat.png", b"meow");
    write(folder.path(), "dog.txt", b"woof");
    let about = ["--tag", "pets", "--tag", "cats", "--description", "Mia", "--type", "image/png"];
    agent.output(&[&["add", &path][..], &about].concat());
    agent.output(&["add", folder.path().join("dog.txt").to_str().unwrap()]);
    for filter in [["--tag", "cats"], ["--type", "image/"], ["--query", "mia"]] {
        let rows = agent.json(&[&["ls"][..], &filter].concat());
        assert_eq!(rows.len(), 1, "{filter:?}");
        assert_eq!(rows[0]["name"], "cat.png");
    }
    assert_eq!(agent.json(&["ls", "--tag", "none"]).len(), 0);
    assert_eq!(agent.json(&["ls", "--trashed"]).len(), 0);
    assert_eq!(agent.json(&["ls", "--all"]).len(), 2);
}

#[test]
fn a_prefix_that_fits_several_assets_is_refused_and_names_them() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    for number in 0..600 {
        write(folder.path(), &number.to_string(), number.to_string().as_bytes());
    }
    let added = agent.json(&["add", folder.path().to_str().unwrap()]);
    let mut hashes: Vec<_> = added.iter().map(|row| row["hash"].as_str().unwrap()).collect();
    hashes.sort_unstable();
    // Among six hundred hashes two usually share their first four characters.
    let Some(twins) = hashes.windows(2).find(|pair| pair[0][..4] == pair[1][..4]) else {
        panic!("choose other contents: no two of them share a prefix");
    };
    let refused = agent.command(&["info", &twins[0][..4]]).assert().code(4);
    let message = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(twins.iter().all(|twin| message.contains(&twin[..10])), "{message}");
    agent.command(&["info", &twins[0].to_uppercase()]).assert().success();
}

#[test]
fn get_takes_a_free_name_and_replaces_only_the_file_that_is_named() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "in/photo.jpg", b"new");
    agent.output(&["add", &path]);
    let hash = blake3(b"new");
    let out = folder.path().join("out");
    write(&out, "photo.jpg", b"old");
    let get = |args: &[&str]| {
        let mut command = agent.command(&[&["get", hash.as_str()][..], args].concat());
        command.current_dir(&out).assert()
    };
    let other = format!("photo-{}.jpg", &hash[..10]);
    let said = get(&[]).success().get_output().stdout.clone();
    assert_eq!(String::from_utf8(said).unwrap(), format!("{other}\n"));
    get(&[]).code(1);
    assert_eq!(fs::read(out.join("photo.jpg")).unwrap(), b"old");
    assert_eq!(fs::read(out.join(&other)).unwrap(), b"new");

    get(&["-o", "photo.jpg"]).success();
    assert_eq!(fs::read(out.join("photo.jpg")).unwrap(), b"new");
    get(&["-o", "nowhere/photo.jpg"]).code(1);
    get(&["-o", "/dev/null"]).code(1);
    assert_eq!(names_in(&out), [other.as_str(), "photo.jpg"]);
}

#[test]
fn a_hostile_name_stays_in_the_folder_and_off_the_terminal() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "in/.\u{1b}[31m\u{202e}rc", b"hostile");
    agent.output(&["add", &path]);
    for args in [&["ls"][..], &["info", &blake3(b"hostile")], &["--json", "ls"]] {
        let text = agent.output(args);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    agent.output(&["get", &blake3(b"hostile"), "-o", out.to_str().unwrap()]);
    assert_eq!(names_in(&out), ["__[31m_rc"]);
}

#[test]
fn every_failure_has_its_exit_status() {
    let agent = Agent::start();
    let none = "0".repeat(64);
    let table: [(&[&str], i32); 17] = [
        (&["status"], 0),
        (&["status", "--check"], 0),
        (&["wait"], 0),
        (&["ls"], 0),
        (&["version"], 0),
        (&["get", &none, "-o", "/nonexistent-folder/x"], 4),
        (&["cat", &none], 4),
        (&["info", "abcd"], 4),
        (&["remove", "nobody"], 4),
        (&["wait", "--peer", "nobody"], 4),
        (&["info", "xyz"], 4),
        (&["info", ""], 2),
        (&["pair", "no-ticket"], 2),
        (&["wait", "--timeout", "soon"], 2),
        (&["nonsense"], 2),
        (&["up", "--listen", "0.0.0.0:0"], 2),
        (&["up"], 1),
    ];
    for (args, code) in table {
        agent.command(args).assert().code(code);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut up = program();
    up.arg("--home").arg(folder.path().join("home")).args(["up", "--listen", "0.0.0.0:0"]);
    assert_cmd::Command::from_std(up).assert().code(2);
}

#[test]
fn without_an_agent_commands_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let run = |args: &[&str]| {
        let mut command = program();
        command.arg("--home").arg(&home).args(args);
        assert_cmd::Command::from_std(command).assert()
    };
    for args in [&["status"][..], &["ls"], &["ticket"], &["wait"]] {
        run(args).code(3);
    }
    let mut agent = Agent::start_in(&home);
    run(&["status"]).success();
    assert_eq!(agent.stop_with("-TERM").code(), Some(0));
    run(&["status"]).code(3);

    // A killed agent leaves its address behind.
    let mut agent = Agent::start_in(&home);
    agent.stop_with("-KILL");
    run(&["status"]).code(3);
}

#[test]
fn commands_go_over_the_socket_whoever_holds_the_port() {
    let agent = Agent::start();
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let path = agent.home().join("api-address");
    let mut address: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    address["api"] = format!("http://{}", stranger.local_addr().unwrap()).into();
    fs::write(&path, address.to_string()).unwrap();
    // The commands need no token either.
    fs::remove_file(agent.home().join("api-token")).unwrap();
    agent.output(&["status"]);
    agent.command(&["add", "-"]).write_stdin("content").assert().success();
    let came = stranger.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(came, Err(std::io::ErrorKind::WouldBlock));

    // An address written by a version without a socket does not lead to the port either.
    address.as_object_mut().unwrap().remove("socket");
    fs::write(&path, address.to_string()).unwrap();
    let refused = agent.command(&["status"]).assert().code(3);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.contains("earlier version"), "{said}");
    assert!(stranger.accept().is_err());
}

#[test]
fn a_home_with_a_path_too_long_for_a_socket_is_reached_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("x".repeat(150));
    for _ in 0..2 {
        let mut agent = Agent::start_in(&home);
        agent.output(&["status"]);
        agent.stop_with("-KILL");
    }
}

#[test]
fn a_second_agent_for_the_same_home_is_refused_and_the_first_goes_on() {
    let agent = Agent::start();
    let second = agent.command(&["up", "--listen", "127.0.0.1:0"]).assert().code(1);
    let message = String::from_utf8_lossy(&second.get_output().stderr).into_owned();
    assert!(message.contains(&agent.pid().to_string()), "{message}");
    agent.output(&["status"]);
}

#[test]
fn signals_stop_the_agent_in_order_and_it_starts_again_with_everything() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let path = write(folder.path(), "kept", b"kept");
    for signal in ["-TERM", "-INT"] {
        let mut agent = Agent::start_in(&home);
        agent.output(&["add", &path]);
        assert_eq!(agent.stop_with(signal).code(), Some(0));
    }
    let mut agent = Agent::start_in(&home);
    agent.output(&["cat", &blake3(b"kept")]);
    agent.stop_with("-KILL");
    let agent = Agent::start_in(&home);
    assert_eq!(agent.json(&["ls"]).len(), 1);
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    for number in 0..300 {
        write(folder.path(), &number.to_string(), number.to_string().as_bytes());
    }
    agent.output(&["add", folder.path().to_str().unwrap()]);
    for args in [&["ls"][..], &["status"], &["completions", "bash"], &["cat", &blake3(b"7")]] {
        let mut command = program();
        let command = command.arg("--home").arg(agent.home()).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn completions_and_version_need_no_home() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = program();
        command.args(["completions", shell]);
        let output = assert_cmd::Command::from_std(command).assert().success();
        let script = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
        assert!(script.len() > 1000 && script.contains("complete-values --"), "{script}");
    }
    let mut command = program();
    command.arg("version");
    let output = assert_cmd::Command::from_std(command).assert().success();
    let expected = concat!("can-sync ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&output.get_output().stdout), expected);
}

/// What bash offers for the last word of a line, by the script that `completions` prints.
fn offered(words: &[&str], home: &Path) -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_can-sync");
    let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "source <({program} completions bash); COMP_WORDS=({program} {}); COMP_CWORD={}; \
         _can_sync_live {program} {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words.len(),
        words.last().map_or("", String::as_str)
    );
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", &line]).env("CAN_SYNC_HOME", home);
    let output = bash.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "completion is silent");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_shell_completes_devices_folders_tags_and_hashes_of_the_running_agent() {
    let (desk, phone) = (Agent::start(), Agent::start());
    phone.output(&["rename", "phone"]);
    phone.command(&["pair"]).write_stdin(desk.output(&["ticket"])).assert().success();
    desk.command(&["add", "-", "--tag", "holiday"]).write_stdin("a note").assert().success();
    let (hash, home) = (blake3(b"a note"), desk.home());
    phone.output(&["fetch", &hash, "--timeout", "20s"]);
    assert_eq!(offered(&["cat", &hash[..6]], home), [hash.as_str()]);
    assert_eq!(offered(&["remove", "ph"], home), ["phone"]);
    assert_eq!(offered(&["ls", "--tag", "h"], home), ["holiday"]);
    assert_eq!(offered(&["tag", &hash, "+h"], home), ["+holiday"]);
    assert_eq!(offered(&["config", "set", "bwlimit_p"], home), ["bwlimit_per_peer"]);
    assert_eq!(offered(&["stat"], home), ["status"], "commands as before");
    let photos = tempfile::tempdir().unwrap();
    desk.output(&["folder", "add", photos.path().to_str().unwrap(), "--name", "photos"]);
    assert_eq!(offered(&["folder", "pause", "ph"], home), ["photos"]);
    // The home that the line names goes before that of the environment.
    let named = ["--home", phone.home().to_str().unwrap(), "cat", &hash[..6]];
    let nowhere = Path::new("/nonexistent");
    assert_eq!(offered(&named, nowhere), [hash.as_str()]);
    assert_eq!(offered(&["cat", "a"], nowhere), [""; 0]);
}

#[test]
fn everything_is_for_this_user_alone_whatever_the_umask_was() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let home = folder.path().join("home");
    let wrapper = folder.path().join("wrapper.sh");
    fs::write(&wrapper, "umask 000; exec \"$@\"").unwrap();
    let mut child = std::process::Command::new("sh")
        .arg(&wrapper)
        .arg(program().get_program())
        .args(["up", "--offline", "--listen", "127.0.0.1:0", "--home"])
        .arg(&home)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it takes an asset", || {
        let mut add = program();
        add.arg("--home").arg(&home).args(["add", "-"]);
        let mut add = assert_cmd::Command::from_std(add);
        add.write_stdin(noise(1_000_000, 3)).ok().is_ok()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let mut folders = vec![home];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().mode();
            assert_eq!(mode & 0o077, 0, "{} {mode:o}", entry.path().display());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    assert!(files > 3);
}

/// A request as the command line sends it, with `headers` in place of its own.
fn request(method: &str, path: &str, headers: &[String], body: &str) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n\
         {body}"
    )
}

#[test]
fn requests_that_do_not_name_loopback_are_refused() {
    let agent = Agent::start();
    let key = format!("Authorization: Bearer {}", agent.token());
    let hosts =
        ["evil.com", "127.0.0.1.evil.com", "localhost.evil", "", "127.1", "127.0.0.1:1", "0.0.0.0"];
    for host in hosts {
        let headers = [format!("Host: {host}"), key.clone()];
        assert_eq!(agent.http(&request("GET", "/v1/status", &headers, "")).0, 403, "{host}");
    }
    let two = ["Host: 127.0.0.1".to_owned(), "Host: localhost".to_owned(), key.clone()];
    assert!([400, 403].contains(&agent.http(&request("GET", "/v1/status", &two, "")).0));
    let headers = ["Host: 127.0.0.1".to_owned(), key.clone()];
    let absolute = request("GET", "http://evil.com/v1/status", &headers, "");
    assert_eq!(agent.http(&absolute).0, 403);
    for host in ["127.0.0.1", "localhost", "[::1]"] {
        let headers = [format!("Host: {host}"), key.clone()];
        assert_eq!(agent.http(&request("GET", "/v1/status", &headers, "")).0, 200, "{host}");
    }
}

#[test]
fn requests_of_web_pages_are_refused_and_told_nothing() {
    let agent = Agent::start();
    let key = format!("Authorization: Bearer {}", agent.token());
    let api = agent.ready()["api"].as_str().unwrap().to_owned();
    for value in ["null", "https://evil.com", &api] {
        for name in ["Origin", "Referer"] {
            for (method, path) in [
                ("GET", "/v1/status"),
                ("POST", "/assets"),
                ("OPTIONS", "/v1/pair"),
                ("GET", "/healthz"),
                ("GET", "/nothing"),
            ] {
                let headers =
                    ["Host: 127.0.0.1".to_owned(), key.clone(), format!("{name}: {value}")];
                let (status, answer) = agent.http(&request(method, path, &headers, "x"));
                assert_eq!(status, 403, "{method} {path} {name}: {value}");
                assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
            }
        }
    }
    assert_eq!(agent.json(&["ls"]).len(), 0);
}

#[test]
fn bodies_of_another_type_and_methods_of_another_kind_have_no_effect() {
    let agent = Agent::start();
    let send = |method: &str, path: &str, kind: Option<&str>, body: &str| {
        let mut headers = vec!["Host: 127.0.0.1".to_owned()];
        headers.push(format!("Authorization: Bearer {}", agent.token()));
        headers.extend(kind.map(|kind| format!("Content-Type: {kind}")));
        let (status, answer) = agent.http(&request(method, path, &headers, body));
        assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
        assert!(status < 400 || answer.contains("application/problem+json"), "{answer}");
        status
    };
    let name = "{\"name\":\"other\"}";
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
        Some("application/json;x"),
        Some("application/json; charset=utf-8"),
        Some("application/problem+json"),
    ] {
        for path in ["/v1/rename", "/v1/leave", "/v1/pair", "/v1/ticket", "/v1/check", "/v1/ingest"]
        {
            assert_eq!(send("POST", path, kind, name), 415, "{path} {kind:?}");
        }
    }
    let json = Some("application/json");
    assert_eq!(send("POST", "/v1/rename", json, "{\"name\":1}"), 400);
    assert_eq!(send("POST", "/v1/rename", json, "{\"name\":\"x\",\"other\":1}"), 400);
    assert_eq!(send("POST", "/v1/pair", json, &"x".repeat(100_000)), 413);
    assert_eq!(send("POST", "/v1/check", json, "{}"), 200);
    for path in ["/v1/rename", "/v1/leave", "/v1/pair", "/v1/ticket", "/v1/check", "/v1/ingest"] {
        for method in ["GET", "OPTIONS", "PUT", "PATCH", "TRACE"] {
            assert_eq!(send(method, path, None, ""), 405, "{method} {path}");
        }
    }
    assert_eq!(send("GET", "/v1/peers/x", None, ""), 405);
    assert_eq!(send("GET", "/v1/status?unknown=1", None, ""), 400);
    assert_eq!(send("GET", "/v1/nothing", None, ""), 404);
}

#[test]
fn every_way_not_to_have_the_token_is_answered_alike() {
    let agent = Agent::start();
    let token = agent.token();
    let host = "Host: 127.0.0.1".to_owned();
    let attempts = [
        vec![host.clone()],
        vec![host.clone(), "Authorization: Bearer wrong".into()],
        vec![host.clone(), format!("Authorization: Bearer {}", &token[..63])],
        vec![host.clone(), format!("Authorization: Basic {token}")],
        vec![host.clone(), format!("Cookie: token={token}; key={token}")],
    ];
    let bodies: Vec<_> = attempts
        .iter()
        .map(|headers| {
            let (status, answer) = agent.http(&request("GET", "/v1/status", headers, ""));
            assert_eq!(status, 401, "{headers:?}");
            answer.split_once("\r\n\r\n").unwrap().1.to_owned()
        })
        .collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    for name in ["key", "token", "access_token"] {
        let path = format!("/v1/status?{name}={token}");
        assert_eq!(agent.http(&request("GET", &path, std::slice::from_ref(&host), "")).0, 401);
    }
    // Without the key the server does not reveal whether a path exists either.
    let nothing = agent.http(&request("GET", "/v1/nothing", std::slice::from_ref(&host), ""));
    assert_eq!(nothing.0, 401);
    let (status, answer) = agent.http(&request("GET", "/healthz", &[host], ""));
    assert_eq!(status, 204);
    assert!(answer.split_once("\r\n\r\n").unwrap().1.is_empty());
    assert!(!agent.log().contains(&token));
}

#[test]
fn no_secret_is_in_a_command_line_an_answer_or_a_log() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "file", b"content");
    let token = agent.token();
    let mut said = String::new();
    for args in [
        &["-vv", "add", path.as_str()][..],
        &["-vv", "status"],
        &["-vv", "--json", "status"],
        &["-vv", "ls"],
        &["-vv", "cat", "0000"],
        &["-vv", "remove", "nobody"],
    ] {
        let output = agent.command(args).output().unwrap();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        said.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    said.push_str(&agent.log());
    said.push_str(&fs::read_to_string(format!("/proc/{}/cmdline", agent.pid())).unwrap());
    said.push_str(&fs::read_to_string(format!("/proc/{}/environ", agent.pid())).unwrap());
    assert!(!said.contains(&token));
}

#[test]
fn a_store_alone_serves_its_api_under_its_own_key() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut store = Agent::serve(&home, &["store"]);
    assert_eq!(store.ready()["ready"], true);
    let key_file = store.ready()["key_file"].as_str().unwrap().to_owned();
    assert_eq!(fs::metadata(&key_file).unwrap().mode() & 0o777, 0o600);
    let key = fs::read_to_string(&key_file).unwrap();
    let headers = ["Host: 127.0.0.1".to_owned(), format!("Authorization: Bearer {}", key.trim())];
    assert_eq!(store.http(&request("GET", "/sync/info", &headers, "")).0, 200);
    assert_eq!(store.http(&request("POST", "/assets", &headers, "content")).0, 201);
    assert_eq!(store.http(&request("GET", "/sync/info", &headers[..1], "")).0, 401);
    assert_eq!(store.stop_with("-TERM").code(), Some(0));
}

#[test]
fn a_ticket_on_the_command_line_is_warned_about() {
    let (desk, phone) = (Agent::start(), Agent::start());
    let ticket = desk.output(&["ticket"]);
    let paired = phone.command(&["pair", ticket.trim()]).assert().success();
    let said = String::from_utf8(paired.get_output().stderr.clone()).unwrap();
    assert!(said.contains("shell's history"), "{said}");
    // The logs of both devices contain the digits that the command printed.
    let printed = String::from_utf8(paired.get_output().stdout.clone()).unwrap();
    let digits = printed.split(['(', ')']).nth(1).unwrap().to_owned();
    for agent in [&desk, &phone] {
        // The event is written a moment later.
        let logged = (0..200).any(|_| agent.output(&["log"]).contains(&digits));
        assert!(logged, "{digits}");
    }
}

#[test]
fn a_named_pipe_is_refused_and_not_waited_for() {
    let (agent, folder) = (Agent::start(), tempfile::tempdir().unwrap());
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let refused = agent.command(&["add", pipe.to_str().unwrap()]).assert().failure();
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(text.contains("a named pipe") && text.contains("can-sync add -"), "{text}");
}

#[test]
fn with_verify_the_digits_of_one_device_are_confirmed_on_the_other() {
    let (desk, phone) = (Agent::start(), Agent::start());
    let ticket = desk.json(&["ticket"])[0]["ticket"].as_str().unwrap().to_owned();
    let mut pairing = program();
    pairing.arg("--home").arg(phone.home()).args(["pair", "--verify", &ticket]);
    let mut pairing = pairing.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let digits = |agent: &Agent| {
        for _ in 0..200 {
            if let Some(waiting) = agent.json(&["confirm"]).first() {
                return waiting["short_code"].as_str().unwrap().to_owned();
            }
        }
        panic!("no digits are shown");
    };
    let (at_desk, at_phone) = (digits(&desk), digits(&phone));
    assert_eq!(at_desk, at_phone);
    desk.command(&["confirm", "0000 0000 0000"]).assert().failure();
    desk.command(&["confirm", &at_phone]).assert().success();
    assert!(pairing.try_wait().unwrap().is_none(), "the phone has not confirmed");
    assert_eq!(desk.json(&["peers"]).len(), 0);
    // As they are shown, without quotes.
    let words: Vec<&str> = at_desk.split(' ').collect();
    assert_eq!(words.len(), 3);
    phone.command(&[&["confirm"], words.as_slice()].concat()).assert().success();
    assert!(pairing.wait().unwrap().success());
    assert_eq!(desk.json(&["peers"]).len(), 1);
}

#[test]
fn two_devices_pair_by_a_ticket_on_standard_input_and_hold_the_same_set() {
    let (desk, phone) = (Agent::start(), Agent::start());
    let ticket = desk.output(&["ticket"]);
    assert_eq!(ticket.lines().count(), 1);
    phone.command(&["pair"]).write_stdin(ticket.clone()).assert().success();
    let again = Agent::start();
    again.command(&["pair"]).write_stdin(ticket.clone()).assert().code(9);

    desk.command(&["add", "-"]).write_stdin("from the desk").assert().success();
    phone.command(&["add", "-"]).write_stdin("from the phone").assert().success();
    for agent in [&desk, &phone] {
        agent.command(&["wait", "--timeout", "20s"]).assert().success();
    }
    for agent in [&desk, &phone] {
        agent.command(&["cat", &blake3(b"from the desk")]).assert().success();
        agent.command(&["cat", &blake3(b"from the phone")]).assert().success();
    }

    let phone_id = phone.ready()["node_id"].as_str().unwrap();
    phone.command(&["rename", "pocket"]).assert().success();
    desk.command(&["wait", "--peer", &phone_id[..12]]).assert().success();
    let preview = &desk.json(&["remove", "--dry-run", phone_id])[0];
    assert_eq!(
        (&preview["node_id"], &preview["members"]),
        (&serde_json::json!(phone_id), &serde_json::json!(1))
    );
    assert_eq!(preview["also"], serde_json::json!([]));
    assert_eq!(desk.json(&["peers"]).len(), 1);
    let removed = &desk.json(&["remove", phone_id])[0];
    assert_eq!(removed["node_id"], phone_id);
    assert_eq!(desk.json(&["peers"]).len(), 0);

    let secret = ticket.trim().strip_prefix("cansync").unwrap();
    for agent in [&desk, &phone, &again] {
        let log = agent.log().to_lowercase();
        assert!(!log.contains(&secret.to_lowercase()[8..40]), "a ticket is in the log");
    }
}

#[test]
fn fetch_waits_for_an_asset_of_another_device_and_says_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let slow = ["up", "--offline", "--bwlimit", "1M:off"];
    let (desk, phone) = (Agent::serve(&folder.path().join("desk"), &slow), Agent::start());
    let nobodys = blake3(b"nobody has this");
    phone.command(&["fetch", &nobodys]).assert().code(4);
    let large = noise(30_000_000, 6);
    let path = write(folder.path(), "large", &large);
    desk.output(&["add", &path]);
    phone.command(&["pair"]).write_stdin(desk.output(&["ticket"])).assert().success();

    let waiting = phone.command(&["fetch", &blake3(&large), "--timeout", "1s"]).assert().code(8);
    let said = String::from_utf8_lossy(&waiting.get_output().stderr).into_owned();
    assert!(said.contains(&blake3(&large)), "{said}");
    desk.command(&["add", "-"]).write_stdin("a note").assert().success();
    let note = blake3(b"a note");
    assert_eq!(phone.output(&["fetch", "--now", &note, "--timeout", "10s"]).trim(), note);
    assert_eq!(phone.output(&["cat", &note]), "a note");
    assert_eq!(phone.json(&["fetch", &note[..16]])[0]["state"], "here", "at once when it is here");

    phone.command(&["fetch", &nobodys, "--timeout", "20s"]).assert().code(4);
    let both = phone.command(&["--json", "fetch", &note, &nobodys]).assert().code(4);
    let lines = String::from_utf8_lossy(&both.get_output().stdout).into_owned();
    assert!(lines.contains("\"here\"") && lines.contains("\"nowhere\""), "{lines}");
    phone.command(&["fetch", "abcdef0123"]).assert().code(4);
    phone.command(&["fetch", "no such name"]).assert().code(4);
    let status = desk.json(&["status"]).remove(0);
    assert_eq!(status["rate_limits"]["up_bytes"], 1 << 20);
    assert!(desk.output(&["status"]).contains("limit   up 1.0 MiB/s"));
}

#[test]
fn a_limit_that_is_none_is_refused_with_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().join("home");
    for (args, wrong) in [
        (&["--bwlimit", "08:00,512k 25:00,1M"][..], "25:00"),
        (&["--bwlimit-per-peer", "10X"], "10X"),
        (&["--bwlimit-lan-exempt"], "--bwlimit"),
    ] {
        let mut command = assert_cmd::Command::from_std(program());
        let refused = command.arg("--home").arg(&home).arg("up").args(args).assert().code(2);
        let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(said.contains(wrong), "{said}");
    }
    assert!(!home.exists());
}

#[test]
fn an_agent_beside_a_foreign_store_adds_to_it_and_reads_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Agent::serve(&folder.path().join("store"), &["store"]);
    let api = store.ready()["api"].as_str().unwrap();
    let key_file = store.ready()["key_file"].as_str().unwrap();
    let args = ["up", "--offline", "--store", api, "--store-key-file", key_file];
    let agent = Agent::serve(&folder.path().join("agent"), &args);
    agent.command(&["wait"]).assert().success();
    let large = noise(3_000_000, 5);
    let paths = [write(folder.path(), "small", b"small"), write(folder.path(), "large", &large)];
    agent.output(&["add", &paths[0], &paths[1]]);
    agent.command(&["wait"]).assert().success();
    assert_eq!(agent.json(&["status"])[0]["store"]["assets"], 2);
    assert_eq!(agent.command(&["cat", &blake3(&large)]).output().unwrap().stdout, large);
    assert_eq!(agent.json(&["ls", "--query", "small"])[0]["hash"], blake3(b"small").as_str());

    drop(store);
    agent.command(&["cat", &blake3(b"small")]).assert().code(5);
    agent.command(&["wait", "--timeout", "2s"]).assert().code(8);
    agent.command(&["add", &paths[0]]).assert().code(5);
}

#[test]
fn files_that_much_is_said_about_are_added_by_the_hundred_all_the_same() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    for number in 0..600 {
        write(folder.path(), &number.to_string(), number.to_string().as_bytes());
    }
    let description = "x".repeat(16 * 1024);
    let folder = folder.path().to_str().unwrap();
    assert_eq!(agent.json(&["add", "--description", &description, folder]).len(), 600);
    assert_eq!(agent.json(&["ls", "--query", "xxx"]).len(), 600);
    let too_long = "x".repeat(16 * 1024 + 1);
    agent.command(&["add", "--description", &too_long, folder]).assert().code(1);
}

#[test]
fn what_is_said_about_an_asset_shows_at_once_and_in_the_log() {
    let agent = Agent::start();
    agent.command(&["add", "-"]).write_stdin("hello").assert().success();
    let hash = blake3(b"hello");
    let info = || agent.json(&["info", &hash])[0].clone();
    agent.output(&["tag", &hash[..12], "+red", "+blue two", "-none"]);
    assert_eq!(info()["tags"], serde_json::json!(["blue two", "red"]));
    let shown = &agent.json(&["tag", &hash, "-red", "--", "-q", "+w"])[0];
    assert_eq!(shown["tags"], serde_json::json!(["blue two", "w"]));
    agent.output(&["describe", &hash, "a greeting"]);
    assert_eq!(info()["description"], "a greeting");
    agent.command(&["add", "-"]).write_stdin("waste").assert().success();
    let waste = blake3(b"waste");
    for (command, trashed) in [("trash", true), ("restore", false)] {
        agent.output(&[command, &waste]);
        assert_eq!(agent.json(&["info", &waste])[0]["trashed"], trashed);
        let record = &agent.json(&["records", "get", "asset", &waste])[0];
        assert_eq!(record["fields"]["trashed"], trashed);
    }

    let log = |asset: &str| -> Vec<(String, u64)> {
        let events = agent.json(&["log", "--asset", &asset[..12], "--since", "1h"]);
        let row = |event: &serde_json::Value| {
            (event["type"].as_str().unwrap().to_owned(), event["event_seq"].as_u64().unwrap())
        };
        events.iter().map(row).collect()
    };
    let rows = |rows: &[(&str, u64)]| -> Vec<(String, u64)> {
        rows.iter().map(|(kind, number)| ((*kind).to_owned(), *number)).collect()
    };
    let changed = [("asset-changed", 1), ("asset-changed", 2), ("asset-changed", 3)];
    assert_eq!(log(&hash), rows(&[&[("asset-added", 0)][..], &changed].concat()));
    let trashed = [("asset-added", 4), ("asset-trashed", 5), ("asset-restored", 6)];
    assert_eq!(log(&waste), rows(&trashed));
    let me = agent.ready()["node_id"].as_str().unwrap();
    assert_eq!(agent.json(&["log", "--device", &me[..10]]).len(), 7);
    assert_eq!(agent.json(&["log", "--since", "2100-01-01T00:00:00Z"]).len(), 0);
    let devices = agent.json(&["devices"]);
    assert_eq!((&devices[0]["node_id"], &devices[0]["this_device"]), (&me.into(), &true.into()));
    for (args, code) in [
        (&["tag", &hash, "red"][..], 2),
        (&["tag", &hash, "+x", "--json"], 2),
        (&["tag", &hash], 2),
        (&["tag", "0000", "+x"], 4),
        (&["trash", "xyz"], 4),
        (&["log", "--since", "yesterday"], 2),
        (&["log", "--device", "nobody"], 4),
    ] {
        agent.command(args).assert().code(code);
    }
}

#[test]
fn records_are_written_read_watched_and_deleted_by_hand() {
    let agent = Agent::start();
    let put = ["records", "put", "note", "1", "n=7", "text=milk", "tags+=a", "tags+=b"];
    agent.output(&put);
    agent.output(&["records", "put", "--own", "note", "me", "n=1"]);
    assert_eq!(
        agent.output(&["records", "get", "note", "1"]),
        "note/1  n=7  text=\"milk\"  tags={a, b}\n"
    );
    agent.output(&["records", "put", "note", "1", "tags-=a", "n=null"]);
    let record = &agent.json(&["records", "ls", "note"])[0];
    assert_eq!(record["sets"], serde_json::json!({ "tags": ["b"] }));
    assert_eq!(agent.json(&["records", "ls", "note", "--owner", "any"]).len(), 1);

    let mut watch = program();
    watch.arg("--home").arg(agent.home()).args(["--json", "records", "watch", "note"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(watch.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()
    };
    assert_eq!([&next()["id"], &next()["id"]], ["me", "1"]);
    agent.output(&["records", "delete", "note", "1"]);
    assert_eq!(next()["deleted"], true);
    watch.kill().unwrap();
    watch.wait().unwrap();

    for (args, code) in [
        (&["records", "get", "note", "1"][..], 4),
        (&["records", "delete", "note", "1"], 4),
        (&["records", "put", "note", "1", "n"], 2),
        (&["records", "put", "note", "1", "--owner", "any"], 2),
        (&["records", "get", "note", "1", "--owner", "nobody"], 4),
        (&["journal", "fsck"], 0),
        (&["journal", "stats"], 0),
        (&["journal", "rebase"], 0),
    ] {
        agent.command(args).assert().code(code);
    }
}

#[test]
fn a_record_is_meant_by_its_id_byte_for_byte() {
    let agent = Agent::start();
    let ids = ["ab", "a\tb", "a\nb", "a\rb", ".", "..", "%2E%2E", "a/b", "a%2Fb", "ü ?#\\&=+"];
    for (number, id) in ids.iter().enumerate() {
        agent.output(&["records", "put", "m", id, &format!("n={number}")]);
        agent.output(&["records", "put", "..", id, &format!("n={number}")]);
    }
    for (number, id) in ids.iter().enumerate() {
        for model in ["m", ".."] {
            let record = &agent.json(&["records", "get", model, id])[0];
            assert_eq!((&record["id"], &record["fields"]["n"]), (&json!(id), &json!(number)));
        }
    }
    assert_eq!(agent.json(&["records", "ls", ".."]).len(), ids.len());
    for (number, id) in ids.iter().enumerate() {
        agent.output(&["records", "delete", "m", id]);
        assert_eq!(agent.json(&["records", "ls", "m"]).len(), ids.len() - 1 - number);
    }
    agent.command(&["records", "get", "m", ""]).assert().code(2);
}

#[test]
fn the_same_text_means_the_same_device_for_every_command() {
    let agent = Agent::start();
    let node_id = agent.ready()["node_id"].as_str().unwrap();
    for (text, code) in [(&node_id[..3], 4), ("nobody", 4), ("", 2)] {
        agent.command(&["log", "--device", text]).assert().code(code);
        agent.command(&["records", "ls", "m", "--owner", text]).assert().code(code);
        agent.command(&["remove", text]).assert().code(code);
        agent.command(&["wait", "--peer", text]).assert().code(code);
    }
    agent.output(&["log", "--device", &node_id[..4]]);
    agent.output(&["log", "--device", &node_id.to_uppercase()]);
    // The prefix is found and names this device itself.
    agent.command(&["remove", &node_id[..4]]).assert().code(2);
}

#[test]
fn rename_says_the_name_that_the_device_has() {
    let agent = Agent::start();
    let rename = agent.command(&["rename", &"x".repeat(200)]).assert().success();
    let has = agent.json(&["status"])[0]["device"]["name"].as_str().unwrap().to_owned();
    let said = String::from_utf8_lossy(&rename.get_output().stderr).into_owned();
    assert_eq!(said, format!("This device is now called {has}.\n"));
    assert_eq!(agent.json(&["rename", " desk\t"])[0]["name"], "desk");
}

#[test]
fn a_log_that_is_followed_shows_what_happens() {
    let agent = Agent::start();
    let mut follow = program();
    follow.arg("--home").arg(agent.home()).args(["--json", "log", "--follow"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    agent.command(&["add", "-"]).write_stdin("late").assert().success();
    let mut line = String::new();
    let mut lines = std::io::BufReader::new(follow.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["type"], "asset-added");
    assert_eq!(event["data"]["hash"], blake3(b"late").as_str());
    drop(agent);
    assert_eq!(follow.wait().unwrap().code(), Some(5));
}
