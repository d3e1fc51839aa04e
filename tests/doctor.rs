//! `doctor` and `why` as people and scripts use them.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, program, until};

/// What `doctor` prints as JSON, and whether it ended with 0.
fn doctor(home: &Path, settings: &[(&str, &str)], args: &[&str]) -> (Vec<Value>, bool) {
    let mut command: Command = program();
    command.arg("--home").arg(home).args(["--json", "doctor"]).args(args);
    command.env("CAN_SYNC_OFFLINE", "true").envs(settings.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let checks = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (checks, output.status.success())
}

fn verdict<'a>(checks: &'a [Value], name: &str) -> &'a str {
    let check = checks.iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no {name} in {checks:#?}"))["verdict"].as_str().unwrap()
}

#[test]
fn a_home_is_checked_with_an_agent_and_without_and_what_is_wrong_has_a_remedy() {
    let mut agent = Agent::start();
    let home = agent.home().to_owned();
    for is_running in [true, false] {
        let (checks, is_well) = doctor(&home, &[], &[]);
        for name in
            ["modes", "config", "state-space", "database-journal", "database-store", "store"]
        {
            assert_eq!(verdict(&checks, name), "ok", "{name}");
        }
        for name in ["clock", "inotify", "state-disk", "state-file-system", "udp-in", "mdns"] {
            verdict(&checks, name);
        }
        for name in ["udp-out", "nat", "relay", "port-mapping"] {
            assert_eq!(
                verdict(&checks, name),
                "skipped",
                "nothing is sent beyond the local network"
            );
        }
        assert_eq!(verdict(&checks, "agent"), if is_running { "ok" } else { "skipped" });
        for check in &checks {
            let is_wrong = matches!(check["verdict"].as_str(), Some("warning" | "failed"));
            assert_eq!(check["remedy"].is_string(), is_wrong, "{check}");
        }
        assert_eq!(is_well, checks.iter().all(|check| check["verdict"] != "failed"));
        if is_running {
            agent.stop_with("-TERM");
        }
    }

    let database = home.join("index.db");
    let mut bytes = fs::read(&database).unwrap();
    bytes[100..4000].fill(0xa5);
    fs::write(&database, bytes).unwrap();
    let (checks, is_well) = doctor(&home, &[], &[]);
    assert_eq!((verdict(&checks, "database-index"), is_well), ("failed", false));

    fs::set_permissions(home.join("key"), Permissions::from_mode(0o644)).unwrap();
    let (checks, is_well) = doctor(&home, &[], &[]);
    assert_eq!((verdict(&checks, "modes"), is_well), ("failed", false));
    assert!(checks[0]["found"].as_str().unwrap().contains("chmod"), "{checks:#?}");
}

#[test]
fn a_home_that_never_was_is_told_apart_from_one_that_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let (checks, _) = doctor(&folder.path().join("none"), &[], &[]);
    assert_eq!(verdict(&checks, "modes"), "skipped");
    assert!(!folder.path().join("none").exists(), "nothing is made");
    let (checks, is_well) = doctor(&folder.path().join("none"), &[("CAN_SYNC_BWLIMIT", "x")], &[]);
    assert_eq!((verdict(&checks, "config"), is_well), ("failed", false));
}

#[test]
fn a_report_for_others_holds_no_name_key_token_hash_address_or_path() {
    let mut agent = Agent::start();
    let home = agent.home().to_owned();
    let name = "Zoe's very secret phone";
    agent.output(&["rename", name]);
    let folder = tempfile::tempdir().unwrap();
    let secret_folder = folder.path().join("divorce papers");
    fs::create_dir(&secret_folder).unwrap();
    fs::write(secret_folder.join("letter to the lawyer.txt"), "x").unwrap();
    agent.output(&["folder", "add", secret_folder.to_str().unwrap()]);
    let file = folder.path().join("diary of zoe.txt");
    fs::write(&file, "dear diary").unwrap();
    let hash = agent.json(&["add", file.to_str().unwrap()])[0]["hash"].as_str().unwrap().to_owned();
    let ticket = agent.json(&["ticket"])[0]["ticket"].as_str().unwrap().to_owned();
    let status = &agent.json(&["status"])[0];
    let node_id = status["device"]["node_id"].as_str().unwrap().to_owned();
    let group_id = status["device"]["group_id"].as_str().unwrap().to_owned();
    let addresses = status["device"]["addresses"].as_array().unwrap().clone();

    let mut secrets = vec![
        name.to_owned(),
        "divorce".into(),
        "lawyer".into(),
        "diary".into(),
        hash[..10].to_owned(),
        ticket,
        node_id[..10].to_owned(),
        group_id[..10].to_owned(),
        agent.token(),
        home.display().to_string(),
        folder.path().display().to_string(),
    ];
    secrets.extend(addresses.iter().filter_map(|address| {
        let address: std::net::SocketAddr = address.as_str()?.parse().ok()?;
        Some(address.ip().to_string())
    }));
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for with_agent in [true, false] {
        let bundle = folder.path().join(format!("bundle-{with_agent}.json"));
        doctor(&home, &[], &["--bundle", bundle.to_str().unwrap()]);
        let text = fs::read_to_string(&bundle).unwrap();
        for secret in &secrets {
            assert!(!text.contains(secret), "{secret:?} is in {text}");
        }
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
        assert!(host.len() < 4 || !words.into_iter().any(|word| word == host), "{host}: {text}");
        let report: Value = serde_json::from_str(&text).unwrap();
        assert!(report["checks"].as_array().unwrap().len() > 10, "it still tells something");
        assert_eq!(report["status"]["store"]["assets"].is_u64(), with_agent);
        assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);
        let again = program()
            .arg("--home")
            .arg(&home)
            .args(["doctor", "--bundle", bundle.to_str().unwrap()])
            .env("CAN_SYNC_OFFLINE", "true")
            .output()
            .unwrap();
        assert!(!again.status.success(), "a file that is there is not replaced");
        if with_agent {
            agent.stop_with("-TERM");
        }
    }
}

#[test]
fn a_foreign_store_is_run_through_its_contract_by_reading_and_on_request_by_writing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Agent::serve(&folder.path().join("store"), &["store"]);
    let url = store.ready()["api"].as_str().unwrap().to_owned();
    let key_file = store.ready()["key_file"].as_str().unwrap().to_owned();
    let settings = [("CAN_SYNC_STORE", &url[..]), ("CAN_SYNC_STORE_KEY_FILE", &key_file)];
    let home = folder.path().join("home");
    let of_store = |checks: &[Value]| {
        let checks = checks.iter().filter(|check| check["name"] == "store");
        checks.map(|check| check["verdict"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (checks, _) = doctor(&home, &settings, &[]);
    assert_eq!(of_store(&checks), vec!["ok"; 6], "{checks:#?}");
    let (checks, _) = doctor(&home, &settings, &["--write"]);
    assert_eq!(of_store(&checks), vec!["ok"; 7], "{checks:#?}");
    let (checks, _) = doctor(&home, &settings, &[]);
    let read =
        checks.iter().any(|check| check["found"].as_str().unwrap().contains("1 assets read"));
    assert!(read, "what was written is there: {checks:#?}");

    let other_key = folder.path().join("other-key");
    fs::write(&other_key, "a key of somebody else").unwrap();
    fs::set_permissions(&other_key, Permissions::from_mode(0o600)).unwrap();
    let wrong =
        [("CAN_SYNC_STORE", &url[..]), ("CAN_SYNC_STORE_KEY_FILE", other_key.to_str().unwrap())];
    let (checks, is_well) = doctor(&home, &wrong, &[]);
    assert_eq!((of_store(&checks), is_well), (vec!["failed".to_owned()], false), "{checks:#?}");
}

#[test]
fn a_store_that_only_the_running_agent_was_told_of_is_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    let (home, key_file) = (folder.path().join("home"), folder.path().join("key"));
    fs::write(&key_file, "key-of-a-store-that-is-off").unwrap();
    fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    let store = ["--store", "http://127.0.0.1:9", "--store-key-file", key_file.to_str().unwrap()];
    let _agent = Agent::serve(&home, &[&["up", "--offline"][..], &store].concat());
    let (checks, is_well) = doctor(&home, &[], &[]);
    assert_eq!((verdict(&checks, "store"), is_well), ("failed", false), "{checks:#?}");
    let named = |check: &&Value| check["found"].as_str().unwrap().contains("http://127.0.0.1:9");
    assert!(checks.iter().any(|check| named(&check)), "{checks:#?}");
}

#[test]
fn why_takes_an_asset_or_a_path_and_says_the_same_in_words_and_as_json() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("note.txt");
    fs::write(&path, "a note").unwrap();
    let hash = agent.json(&["add", path.to_str().unwrap()])[0]["hash"].as_str().unwrap().to_owned();
    for what in ["note.txt", &hash, &hash[..12]] {
        assert_eq!(agent.output(&["why", what]), "It is here and whole.\n", "{what}");
    }
    let answer = &agent.json(&["why", &hash])[0];
    assert_eq!(answer["here"]["reason"], "whole");
    assert_eq!(answer["text"], "It is here and whole.");
    let nobodys = "7".repeat(64);
    let said = agent.output(&["why", &nobodys]);
    assert!(said.starts_with("It is not here, and no other device is in the group."), "{said}");
    agent.command(&["why", "7777"]).assert().code(4);
    agent.command(&["why", "no such name"]).assert().code(4);

    let bound = folder.path().join("bound");
    fs::create_dir(&bound).unwrap();
    fs::write(bound.join("plan.md"), "a plan").unwrap();
    agent.output(&["folder", "add", bound.to_str().unwrap()]);
    until("the directory is taken in", || {
        let said = agent.command(&["why", "bound:plan.md"]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        said.contains("directory and folder are equal") && said.contains("It is here and whole.")
    });
}

/// Runs `pair --ask` on a terminal of its own, and types these lines. Returns what was shown and the
/// exit status.
fn click(agent: &Agent, link: &str, typed: &str) -> (String, Option<i32>) {
    let program = program();
    let home = agent.home().to_str().unwrap();
    let command = format!(
        "{} --home {home} pair --ask {}",
        program.get_program().to_str().unwrap(),
        link.trim()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--echo", "never", "--command", &command, "/dev/null"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    script.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = script.wait_with_output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

/// `script` (of the package bsdutils) makes a terminal.
#[test]
fn a_link_that_was_clicked_pairs_with_nobody_unless_its_user_agrees() {
    let (a, b) = (Agent::start(), Agent::start());
    let link = a.output(&["ticket", "--link", "--no-wait"]);
    let inviter = a.ready()["node_id"].as_str().unwrap();
    b.command(&["pair", "--ask", link.trim()]).assert().code(2);
    b.command(&["pair", "--ask"]).assert().code(2);
    for no in ["n\n\n", "\n\n"] {
        let (shown, code) = click(&b, &link, no);
        assert_eq!(code, Some(9), "{shown}");
        let invites = format!("invitation by the device {}", &inviter[..10]);
        assert!(shown.contains(&invites) && shown.contains("Pair with it? [y/N]"), "{shown}");
        assert!(shown.contains("nothing was sent") && shown.contains("Press Enter"), "{shown}");
    }
    let (shown, code) = click(&b, "can-sync://pair/nonsense", "\n");
    assert!(shown.contains("not a ticket") && code == Some(2), "{shown}");
    assert_eq!(a.json(&["ticket", "ls"]).len(), 1, "the ticket is as good as before");
    // The digits are compared, and are the same on both sides.
    let (shown, code) = std::thread::scope(|scope| {
        let clicked = scope.spawn(|| click(&b, &link, "y\ny\n\n"));
        until("there are digits to compare", || !a.json(&["confirm"]).is_empty());
        a.output(&["confirm", a.json(&["confirm"])[0]["short_code"].as_str().unwrap()]);
        clicked.join().unwrap()
    });
    assert!(shown.contains("paired with") && code == Some(0), "{shown}");
}

#[test]
fn tickets_for_many_devices_are_listed_and_revoked() {
    let agent = Agent::start();
    let made = &agent.json(&["ticket", "--uses", "10", "--expires", "7d"])[0];
    let other = &agent.json(&["ticket"])[0];
    let listed = agent.json(&["ticket", "ls"]);
    assert_eq!(listed.len(), 2);
    assert_eq!((&listed[0]["id"], &listed[0]["left"]), (&made["id"], &10.into()));
    assert!(!listed[0].to_string().contains(made["ticket"].as_str().unwrap()));
    let id = made["id"].as_str().unwrap();
    assert_eq!(agent.output(&["ticket", "revoke", id]), format!("revoked {id}\n"));
    agent.command(&["ticket", "revoke", id]).assert().code(4);
    assert_eq!(agent.json(&["ticket", "ls"])[0]["id"], other["id"]);
    agent.output(&["ticket", "revoke", "--all"]);
    assert_eq!(agent.json(&["ticket", "ls"]), Vec::<Value>::new());
    for args in [["--expires", "8d"], ["--uses", "65"], ["--uses", "0"]] {
        agent.command(&[&["ticket"], &args[..]].concat()).assert().failure();
    }
    let link = agent.output(&["ticket", "--link"]);
    assert!(link.starts_with("can-sync://pair/cansync"), "{link}");
}

#[test]
fn a_ticket_that_waits_says_who_joined_and_the_digits() {
    let (inviter, joiner) = (Agent::start(), Agent::start());
    joiner.output(&["rename", "phone"]);
    let mut waiting = program()
        .arg("--home")
        .arg(inviter.home())
        .args(["ticket", "--wait", "--link"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ticket = String::new();
    let mut stdout = std::io::BufReader::new(waiting.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut ticket).unwrap();
    let said = joiner.command(&["pair"]).write_stdin(ticket).assert().success();
    let said = String::from_utf8(said.get_output().stdout.clone()).unwrap();
    let digits = said.split(['(', ')']).nth(1).unwrap().to_owned();
    let ended = waiting.wait_with_output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{told}");
    assert!(told.contains(&format!("paired with phone ({digits})")), "{told}");
}

#[test]
fn an_edit_tells_what_was_and_what_is_and_events_are_read_by_number() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("note.txt");
    fs::write(&path, "a note").unwrap();
    agent.output(&["add", path.to_str().unwrap(), "--tag", "red"]);
    agent.output(&["tag", "note.txt", "+blue", "-red"]);
    agent.output(&["describe", "note.txt", "mine"]);
    let log = agent.output(&["log", "--asset", "note.txt"]);
    assert!(log.contains("tags: [red] -> [blue]"), "{log}");
    assert!(log.contains("description: nothing -> \"mine\""), "{log}");
    let numbered = agent.output(&["log", "--order", "device"]);
    let numbers: Vec<&str> = numbered.lines().filter_map(|line| line.split("  ").next()).collect();
    let expected: Vec<String> = (0..numbers.len()).map(|number| format!("#{number}")).collect();
    assert_eq!(numbers, expected, "{numbered}");
    let after = agent.output(&["log", "--order", "device", "--after-seq", "0"]);
    assert_eq!(after.lines().count(), numbers.len() - 1);
    agent.output(&["log", "--keep", "90d"]);
    assert!(agent.output(&["records", "get", "sys.stream", "device"]).contains("keep_days=90"));
    for wrong in ["90m", "0d", "always"] {
        agent.command(&["log", "--keep", wrong]).assert().code(2);
    }
}
