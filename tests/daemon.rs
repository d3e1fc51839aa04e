//! Two real programs on one machine: paired on the command line, synced, killed and restarted.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use can_sync::core::ids::HashAlgorithm;
use can_sync::replica::status::Status;

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, DEADLINE, program, until};

/// Content that does not compress or repeat.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; bytes];
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    blake3::Hasher::new_keyed(&key).finalize_xof().fill(&mut content);
    content
}

fn hash(content: &[u8]) -> String {
    HashAlgorithm::Blake3.hash(content).to_string()
}

/// Pairs with a ticket on standard input, and returns the ticket.
fn pair(inviter: &Agent, joiner: &Agent) -> String {
    let ticket = inviter.output(&["--quiet", "ticket"]).trim().to_owned();
    joiner.command(&["pair"]).write_stdin(format!("{ticket}\n")).assert().success();
    ticket
}

fn status(agent: &Agent) -> Status {
    serde_json::from_str(&agent.output(&["--json", "status"])).unwrap()
}

fn held(agent: &Agent) -> BTreeSet<String> {
    let rows = agent.json(&["ls"]);
    rows.iter().map(|row| row["hash"].as_str().unwrap().to_owned()).collect()
}

/// Checks that no error and none of these secrets was logged.
fn judge_log(agent: &Agent, secrets: &[&str]) {
    let log = agent.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let key = fs::read_to_string(agent.home().join("key")).unwrap();
    for secret in [&[key.trim(), &agent.token()], secrets].concat() {
        assert!(!log.contains(secret), "a secret was logged");
    }
}

fn kill(agent: &mut Agent) {
    agent.stop_with("-KILL");
}

#[test]
fn two_programs_paired_by_one_paste_end_with_the_same() {
    let (mut a, mut b) = (Agent::start(), Agent::start());
    let ticket = pair(&a, &b);
    let folder = tempfile::tempdir().unwrap();
    let mut hashes = BTreeSet::new();
    for number in 0..300_u64 {
        let content = noise(100 + number as usize * 40, number);
        let path = folder.path().join(format!("{}/{number}.bin", number % 9));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &content).unwrap();
        hashes.insert(hash(&content));
    }
    let large = noise(20 * 1024 * 1024, 1_000);
    fs::write(folder.path().join("large.bin"), &large).unwrap();
    hashes.insert(hash(&large));
    a.output(&["add", folder.path().to_str().unwrap()]);
    a.output(&["wait", "--timeout", "30s", "--peer", &status(&b).device.node_id.to_string()]);
    b.output(&["wait", "--timeout", "30s", "--peer", &status(&a).device.node_id.to_string()]);
    assert_eq!(held(&a), hashes);
    assert_eq!(held(&b), hashes);
    let target = folder.path().join("out");
    for hash in [&hash(&large), &hash(&noise(100, 0))] {
        b.output(&["get", hash, "-o", target.to_str().unwrap()]);
        let content = fs::read(&target).unwrap();
        assert_eq!(HashAlgorithm::Blake3.hash(&content).to_string(), **hash);
    }
    for agent in [&mut a, &mut b] {
        judge_log(agent, &[&ticket]);
        let asked = Instant::now();
        assert_eq!(agent.stop_with("-TERM").code(), Some(0), "{}", agent.log());
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}

#[test]
fn a_receiver_killed_in_the_midst_of_a_large_asset_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (a, home) = (Agent::start(), folder.path().join("b"));
    let mut b = Agent::start_in(&home);
    pair(&a, &b);
    let mut hashes = BTreeSet::new();
    for number in 0..3_u64 {
        let content = noise(48 * 1024 * 1024, number);
        let path = folder.path().join(format!("{number}.bin"));
        fs::write(&path, &content).unwrap();
        hashes.insert(hash(&content));
        a.output(&["add", path.to_str().unwrap()]);
    }
    for _ in 0..2 {
        until("bytes flow", || partial_bytes(&home) > 0 || held(&b) == hashes);
        kill(&mut b);
        b = Agent::start_in(&home);
    }
    a.output(&["wait", "--timeout", "30s", "--peer", &status(&b).device.node_id.to_string()]);
    assert_eq!(held(&b), hashes);
    for hash in &hashes {
        let target = folder.path().join("out");
        b.output(&["get", hash, "-o", target.to_str().unwrap()]);
        assert_eq!(&self::hash(&fs::read(&target).unwrap()), hash);
    }
    judge_log(&a, &[]);
    judge_log(&b, &[]);
}

/// The bytes of partials.
fn partial_bytes(home: &Path) -> u64 {
    let entries = fs::read_dir(home.join("partials")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[test]
fn nothing_that_was_acknowledged_is_lost_by_ten_kills() {
    let folder = tempfile::tempdir().unwrap();
    let homes = ["a", "b"].map(|name| folder.path().join(name));
    let mut a = Agent::start_in(&homes[0]);
    let mut b = Agent::start_in(&homes[1]);
    pair(&a, &b);
    let mut acknowledged = BTreeSet::new();
    for round in 0..10_u64 {
        let batch = folder.path().join(format!("batch{round}"));
        fs::create_dir(&batch).unwrap();
        for number in 0..60_u64 {
            let size = if number % 20 == 0 { 400_000 } else { 1_000 };
            let content = noise(size, round * 1_000 + number);
            fs::write(batch.join(format!("{number}.bin")), content).unwrap();
        }
        // Killed while the batch is being added, three files later each round.
        let mut add = program();
        add.arg("--home").arg(&homes[0]).args(["--json", "add"]).arg(&batch);
        let mut add = add.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(add.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut added: Vec<String> = lines.by_ref().take(3 * round as usize).collect();
        kill(&mut a);
        added.extend(lines);
        add.wait().unwrap();
        for line in added {
            let row: serde_json::Value = serde_json::from_str(&line).unwrap();
            acknowledged.insert(row["hash"].as_str().unwrap().to_owned());
        }
        judge_log(&a, &[]);
        if round % 3 == 2 {
            kill(&mut b);
            judge_log(&b, &[]);
            b = Agent::start_in(&homes[1]);
        }
        a = Agent::start_in(&homes[0]);
        assert!(held(&a).is_superset(&acknowledged), "lost in round {round}");
    }
    assert!(!acknowledged.is_empty(), "no round got as far as one acknowledgement");
    a.output(&["wait", "--timeout", "30s", "--peer", &status(&b).device.node_id.to_string()]);
    assert_eq!(held(&a), held(&b));
    for hash in &acknowledged {
        let content = b.command(&["cat", hash]).assert().success().get_output().stdout.clone();
        assert_eq!(&self::hash(&content), hash);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut a = Agent::start();
    let pid = a.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let asked = Instant::now();
    a.stop_with("-TERM");
    assert!(asked.elapsed() < Duration::from_secs(5));
    judge_log(&a, &[]);
}

/// The log goes to standard error: a closed pipe for one agent, a full disk for the other.
#[test]
fn an_agent_whose_log_cannot_be_written_lives_on_and_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, closed_pipe) = std::io::pipe().unwrap();
    drop(reader);
    let full_disk = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let args = ["up", "--offline"];
    let mut agents = [
        Agent::serve_with(&folder.path().join("a"), &args, closed_pipe.into()),
        Agent::serve_with(&folder.path().join("b"), &args, full_disk.into()),
    ];
    pair(&agents[0], &agents[1]);
    agents[0].command(&["add", "-"]).write_stdin("content").assert().success();
    for agent in &agents {
        until("the asset is on both", || held(agent).len() == 1);
    }
    for agent in &mut agents {
        assert_eq!(agent.stop_with("-TERM").code(), Some(0));
    }
}

fn sabotage(database: &Path, statement: &str) {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.busy_timeout(DEADLINE).unwrap();
    connection.execute_batch(statement).unwrap();
}

#[test]
fn a_store_whose_disk_fails_ends_the_agent_with_an_error() {
    let mut a = Agent::start();
    let failing =
        "CREATE TRIGGER broken BEFORE UPDATE ON store BEGIN SELECT RAISE(ABORT, 'I/O'); END";
    sabotage(&a.home().join("store/store.db"), failing);
    let file = a.home().with_extension("txt");
    fs::write(&file, "cannot be kept").unwrap();
    a.command(&["add", file.to_str().unwrap()]).assert().failure();
    assert_eq!(a.ended().code(), Some(1), "{}", a.log());
    assert!(a.log().contains("disk failed"), "{}", a.log());
}

#[test]
fn a_group_that_cannot_be_written_ends_the_agent_with_an_error() {
    let mut a = Agent::start();
    sabotage(&a.home().join("journal.db"), "DROP TABLE tokens");
    a.command(&["ticket"]).assert().failure();
    assert_eq!(a.ended().code(), Some(1), "{}", a.log());
}

#[test]
fn a_signal_during_a_slow_start_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    Agent::start_in(&home).stop_with("-TERM");
    // The start waits for the process that holds the index.
    let holder = rusqlite::Connection::open(home.join("index.db")).unwrap();
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let up = ["up", "--offline", "--listen", "127.0.0.1:0", "--home"];
    let mut child = agent::program().args(up).arg(&home).spawn().unwrap();
    let pid = child.id().to_string();
    until("it has begun", || {
        fs::read_to_string(home.join("lock")).is_ok_and(|holder| holder.trim() == pid)
    });
    let asked = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[test]
fn what_happened_to_an_asset_and_how_each_device_is_shows_on_all_of_them() {
    let (a, b, mut c) = (Agent::start(), Agent::start(), Agent::start());
    pair(&a, &b);
    // c is paired by a device that is not the first.
    pair(&b, &c);
    let ids = [&a, &b, &c].map(|agent| agent.ready()["node_id"].as_str().unwrap().to_owned());
    for (agent, name) in [(&a, "desk"), (&b, "phone"), (&c, "attic")] {
        agent.output(&["rename", name]);
    }
    a.command(&["add", "-"]).write_stdin("shared").assert().success();
    let asset = hash(b"shared");
    until("all have it", || [&b, &c].iter().all(|agent| held(agent).contains(&asset)));
    b.output(&["tag", &asset, "+seen"]);
    a.output(&["trash", &asset]);
    let shown = |agent: &Agent| {
        let row = &agent.json(&["info", &asset])[0];
        (row["tags"].clone(), row["trashed"].clone())
    };
    until("all show it", || {
        [&a, &b, &c]
            .iter()
            .all(|agent| shown(agent) == (serde_json::json!(["seen"]), serde_json::json!(true)))
    });

    let expected: BTreeSet<(String, &str)> = [
        (0, "asset-added"),
        (1, "asset-received"),
        (2, "asset-received"),
        (1, "asset-changed"),
        (0, "asset-trashed"),
    ]
    .map(|(n, kind): (usize, _)| (ids[n].clone(), kind))
    .into();
    for agent in [&a, &b, &c] {
        let mut rows = Vec::new();
        until("all of it is in the log", || {
            rows = agent.json(&["log", "--asset", &asset]);
            rows.len() >= expected.len()
        });
        let happened: BTreeSet<(String, &str)> = rows
            .iter()
            .map(|row| (row["author"].as_str().unwrap().into(), row["type"].as_str().unwrap()))
            .collect();
        assert_eq!(happened, expected);
        assert_eq!(rows.len(), expected.len(), "each is logged once: {rows:#?}");
        let by_phone = agent.json(&["log", "--asset", &asset, "--device", "phone"]);
        assert!(by_phone.len() == 2 && by_phone.iter().all(|row| row["author"] == *ids[1]));
        let log = agent.json(&["log"]);
        for id in &ids {
            let mut numbers: Vec<u64> = log
                .iter()
                .filter(|row| row["author"] == **id)
                .map(|row| row["event_seq"].as_u64().unwrap())
                .collect();
            numbers.sort_unstable();
            assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
        }
    }

    assert_eq!(c.stop_with("-TERM").code(), Some(0));
    let of_attic = |agent: &Agent| {
        let devices = agent.json(&["devices"]);
        assert_eq!(devices.len(), 3);
        devices.into_iter().find(|device| device["node_id"] == *ids[2]).unwrap()
    };
    for agent in [&a, &b] {
        until("it is seen to be gone", || of_attic(agent)["connection"] == "offline");
        let first = of_attic(agent);
        assert_eq!((&first["name"], &first["this_device"]), (&"attic".into(), &false.into()));
        assert!(first["platform"].as_str().unwrap().contains('-'), "{first}");
        let age_ms = |device: &serde_json::Value| device["age_ms"].as_u64().unwrap();
        until("its state gets older", || age_ms(&of_attic(agent)) > age_ms(&first));
        let lines = agent.output(&["devices"]);
        let line = lines.lines().find(|line| line.contains("attic")).unwrap();
        // It is dialled again and again.
        let is_away = line.contains("offline") || line.contains("connecting");
        assert!(is_away && line.contains("told "), "{line}");
    }
}

#[test]
fn a_removed_device_is_told_to_start_over_and_comes_back_as_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let (a, mut b) = (Agent::start(), Agent::start_in(&home));
    pair(&a, &b);
    let removed = status(&b).device.node_id.to_string();
    a.output(&["wait", "--timeout", "30s", "--peer", &removed]);
    a.output(&["remove", &removed]);
    let waited = b.command(&["wait", "--timeout", "30s"]).assert().code(6);
    let said = String::from_utf8_lossy(&waited.get_output().stderr).into_owned();
    assert!(said.contains("start over as a new device"), "{said}");
    assert!(status(&b).device.removed);
    // A write acknowledged now would be lost when the device starts over.
    for write in [&["records", "put", "note", "x", "v=1"][..], &["rename", "attic"]] {
        let refused = b.command(write).assert().code(9);
        let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(said.contains("removed from its group"), "{write:?}: {said}");
    }

    b.command(&["leave"]).assert().code(2);
    b.output(&["leave", "--yes"]);
    assert_eq!(b.ended().code(), Some(0), "{}", b.log());
    assert!(!b.log().contains("ERROR"), "{}", b.log());
    let b = Agent::start_in(&home);
    let device = status(&b).device;
    assert!(device.node_id.to_string() != removed && !device.removed);
    pair(&a, &b);
    a.output(&["wait", "--timeout", "30s", "--peer", &device.node_id.to_string()]);
}
