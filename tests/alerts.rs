//! Alerts, hooks, metrics, health and the log, as a person and other programs meet them: real agents.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, DEADLINE, program, until};

fn pair(inviter: &Agent, joiner: &Agent) {
    let ticket = inviter.output(&["--quiet", "ticket"]).trim().to_owned();
    joiner.command(&["pair"]).write_stdin(format!("{ticket}\n")).assert().success();
    until("each sees the other", || {
        [inviter, joiner].iter().all(|agent| !status(agent)["peers"].as_array().unwrap().is_empty())
    });
}

fn status(agent: &Agent) -> Value {
    agent.json(&["status"]).remove(0)
}

/// The ids of the alerts that stand.
fn alerts(agent: &Agent) -> Vec<String> {
    let all = agent.json(&["alerts"]);
    all.iter().map(|alert| alert["id"].as_str().unwrap().to_owned()).collect()
}

fn stands(agent: &Agent, start: &str) -> bool {
    alerts(agent).iter().any(|id| id.starts_with(start))
}

/// The types of the alerts' events so far, and about what.
fn events(agent: &Agent, start: &str) -> Vec<String> {
    let all = agent.json(&["log"]);
    let of_alerts = all.iter().filter(|event| {
        event["data"]["alert"].as_str().is_some_and(|alert| alert.starts_with(start))
            && event["author"] == status(agent)["device"]["node_id"]
    });
    of_alerts.map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// An answer of the API with the token.
fn get(agent: &Agent, path: &str) -> (u16, String) {
    let token = agent.token();
    agent.http(&format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n\r\n"
    ))
}

/// The value of a sample that begins so.
fn metric(agent: &Agent, series: &str) -> Option<f64> {
    let (status, page) = get(agent, "/metrics");
    assert_eq!(status, 200, "{page}");
    let line = page.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A home whose `config.toml` has this text.
fn home_with(folder: &Path, config: &str) -> PathBuf {
    let home = folder.join("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(home.join("config.toml"), config).unwrap();
    home
}

#[test]
fn a_device_that_is_away_is_told_everywhere_until_it_is_back_and_a_restart_tells_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let homes = ["a", "b"].map(|name| folder.path().join(name));
    let args = ["up", "--offline", "--alert-away", "1s"];
    let mut a = Agent::serve(&homes[0], &args);
    let mut b = Agent::start_in(&homes[1]);
    b.output(&["rename", "phone"]);
    pair(&a, &b);
    until("phone is known by its name", || status(&a)["peers"][0]["name"] == "phone");
    assert_eq!(alerts(&a), Vec::<String>::new());
    b.stop_with("-TERM");
    until("the alert is raised", || stands(&a, "device-away-"));
    let text = a.output(&["status"]);
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("ALERT   phone was last seen"), "{text}");
    assert!(first.contains("`can-sync remove phone`") && first.contains("[device-away-"), "{text}");
    assert_eq!(status(&a)["alerts"][0]["kind"], "device-away");
    let (code, page) = get(&a, "/v1/alerts");
    assert!(code == 200 && page.contains("\"acked_ms\":null"), "{page}");
    let open = "can_sync_alerts{acknowledged=\"false\",kind=\"device-away\"}";
    assert_eq!(metric(&a, open), Some(1.0));
    until("it is logged", || events(&a, "device-away-") == ["alert"]);

    a.command(&["alerts", "ack", "nonsense"]).assert().code(4);
    a.output(&["alerts", "ack", "device-away"]);
    assert_eq!(metric(&a, open), Some(0.0));
    let text = a.output(&["status"]);
    assert!(!text.contains("ALERT") && text.contains("1 acknowledged"), "{text}");
    a.stop_with("-TERM");
    a = Agent::serve(&homes[0], &args);
    until("it stands after the restart", || stands(&a, "device-away-"));
    assert!(!a.json(&["alerts"])[0]["acked_ms"].is_null());

    let b = Agent::start_in(&homes[1]);
    until("it has ended", || alerts(&a).is_empty());
    until("its end is logged", || events(&a, "device-away-") == ["alert", "alert-cleared"]);
    drop(b);
}

#[test]
fn a_threshold_is_heeded_while_the_agent_runs() {
    let agent = Agent::start();
    assert_eq!(alerts(&agent), Vec::<String>::new());
    agent.output(&["config", "set", "alert_free_space", "1000P"]);
    until("space is short", || stands(&agent, "low-space"));
    let text = agent.output(&["status"]);
    assert!(text.contains("are free on the disk of"), "{text}");
    agent.command(&["config", "set", "alert_free_space", "much"]).assert().code(2);
    agent.output(&["config", "unset", "alert_free_space"]);
    until("it has ended", || alerts(&agent).is_empty());
}

#[test]
fn a_folder_that_is_paused_and_a_directory_that_is_gone_are_alerts() {
    let agent = Agent::start();
    let dir = agent.home().with_extension("papers");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.txt"), "hello").unwrap();
    agent.output(&["folder", "add", dir.to_str().unwrap(), "--name", "papers"]);
    agent.output(&["folder", "pause", "papers"]);
    until("it is an alert", || stands(&agent, "folder-paused-"));
    assert!(agent.output(&["alerts"]).contains("`can-sync folder resume papers`"));
    agent.output(&["folder", "resume", "papers"]);
    until("it has ended", || alerts(&agent).is_empty());
    let elsewhere = agent.home().with_extension("elsewhere");
    fs::rename(&dir, &elsewhere).unwrap();
    until("it is an alert", || stands(&agent, "folder-stopped-"));
    fs::rename(&elsewhere, &dir).unwrap();
    until("it has ended", || alerts(&agent).is_empty());
}

#[test]
fn a_folder_of_which_very_much_goes_at_once_is_an_alert_until_its_user_lets_the_changes_pass() {
    let agent = Agent::start();
    let dir = agent.home().with_extension("papers");
    fs::create_dir(&dir).unwrap();
    let path = |n: usize| dir.join(format!("{n}.txt"));
    (0..120).for_each(|n| fs::write(path(n), format!("paper {n}")).unwrap());
    agent.output(&["folder", "add", dir.to_str().unwrap(), "--name", "papers"]);
    until("all is taken in", || {
        agent.json(&["ls"]).len() == 120
            && get(&agent, "/v1/folders").1.contains("\"state\":\"up_to_date\"")
    });
    (0..100).for_each(|n| fs::remove_file(path(n)).unwrap());
    until("it is an alert", || stands(&agent, "folder-held-"));
    let text = agent.output(&["status"]);
    assert!(text.contains("`can-sync folder confirm papers` lets the changes pass"), "{text}");
    agent.output(&["folder", "confirm", "papers"]);
    until("it has ended", || alerts(&agent).is_empty());
}

#[test]
fn a_damaged_asset_is_an_alert_until_its_file_is_added_again() {
    let agent = Agent::start();
    let path = agent.home().with_extension("bin");
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(&path, &content).unwrap();
    let hash = agent.output(&["add", path.to_str().unwrap()])[..64].to_owned();
    let stored = agent.home().join("store/content").join(&hash[..2]).join(&hash);
    fs::remove_file(stored).unwrap();
    agent.command(&["cat", &hash]).assert().code(7);
    until("it is an alert", || stands(&agent, "damaged"));
    assert_eq!(metric(&agent, "can_sync_assets_damaged"), Some(1.0));
    agent.output(&["add", path.to_str().unwrap()]);
    until("it has ended", || alerts(&agent).is_empty());
}

#[test]
fn a_member_that_another_device_adds_or_removes_is_an_alert_and_what_one_does_oneself_is_none() {
    let [a, b, c] = [(); 3].map(|()| Agent::start());
    for (agent, name) in [(&a, "desk"), (&b, "nas"), (&c, "tv")] {
        agent.output(&["rename", name]);
    }
    pair(&a, &b);
    for agent in [&a, &b] {
        agent.output(&["wait", "--timeout", "30s"]);
        assert_eq!(alerts(agent), Vec::<String>::new());
    }
    // Both have compared their journals by now, and have looked.
    until("a has looked", || a.home().join("alerts").exists());
    pair(&b, &c);
    until("a is told of tv", || stands(&a, "member-added-"));
    let text = a.output(&["alerts"]);
    assert!(text.contains("nas added tv to the group"), "{text}");
    b.output(&["remove", "tv"]);
    until("a is told that it is gone", || stands(&a, "member-removed-"));
    assert!(!stands(&a, "member-added-"));
    assert!(!stands(&b, "member-"), "b did it itself");
    until("tv is told itself", || stands(&c, "member-removed-"));
}

#[test]
fn a_crash_is_an_alert_and_an_orderly_stop_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut agent = Agent::start_in(&home);
    until("the first look is saved", || home.join("alerts").exists());
    agent.stop_with("-TERM");
    agent = Agent::start_in(&home);
    until("the start is saved", || {
        fs::read_to_string(home.join("alerts")).unwrap().contains("\"is_running\":true")
    });
    assert!(!stands(&agent, "crashed"));
    agent.stop_with("-KILL");
    let agent = Agent::start_in(&home);
    until("it is an alert", || stands(&agent, "crashed"));
    agent.output(&["alerts", "ack", "--all"]);
    assert!(!agent.output(&["status"]).contains("ALERT"));
}

#[test]
fn a_store_that_cannot_be_reached_is_an_alert_until_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let store_home = folder.path().join("store");
    let mut store = Agent::serve(&store_home, &["store"]);
    let url = store.ready()["api"].as_str().unwrap().to_owned();
    let key_file = store.ready()["key_file"].as_str().unwrap().to_owned();
    let home = folder.path().join("home");
    let agent =
        Agent::serve(&home, &["up", "--offline", "--store", &url, "--store-key-file", &key_file]);
    until("the store is up", || status(&agent)["store"]["up"] == true);
    assert_eq!(ready(&agent).0, 200);
    store.stop_with("-TERM");
    until("it is not ready", || ready(&agent).0 == 503);
    assert!(ready(&agent).1.contains("the store does not answer"));
    until("it is an alert", || stands(&agent, "store-down"));
    let address = url.strip_prefix("http://").unwrap();
    let mut again = program();
    again.args(["store", "--listen", address, "--home"]).arg(&store_home);
    let mut again = again.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it has ended", || alerts(&agent).is_empty());
    again.kill().unwrap();
    again.wait().unwrap();
}

/// Without the token.
fn ready(agent: &Agent) -> (u16, String) {
    agent.http("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
}

#[test]
fn health_needs_no_token_and_metrics_do() {
    let agent = Agent::start();
    until("it is ready", || ready(&agent).0 == 200);
    for (path, expected) in [("/healthz", 204), ("/metrics", 401), ("/v1/alerts", 401)] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        assert_eq!(agent.http(&request).0, expected, "{path}");
    }
    let begun = Instant::now();
    let (code, page) = get(&agent, "/metrics");
    assert!(begun.elapsed().as_secs() < 5);
    assert_eq!(code, 200);
    assert!(page.contains("content-type: text/plain; version=0.0.4"), "{page}");
    let body = page.split_once("\r\n\r\n").unwrap().1;
    // The tool is in the package prometheus; the format is also checked in `api/metrics.rs`.
    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else { return };
    promtool.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success(), "{body}");
}

#[test]
fn transfers_are_counted_over_all_connections() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("b");
    let a = Agent::start();
    let mut b = Agent::start_in(&home);
    pair(&a, &b);
    let received = || {
        let (_, page) = get(&a, "/metrics");
        let of = |name: &str, direction: &str| {
            let line = page.lines().find(|line| {
                line.starts_with(name) && line.contains(&format!("direction=\"{direction}\""))
            });
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        (
            of("can_sync_transfer_bytes_total", "received"),
            of("can_sync_quic_bytes_total", "received"),
        )
    };
    b.command(&["add", "-"]).write_stdin(vec![b'x'; 100_000]).assert().success();
    until("the bytes are counted", || received().0 >= 100_000.0);
    b.stop_with("-TERM");
    b = Agent::start_in(&home);
    until("it is connected again", || {
        get(&a, "/metrics")
            .1
            .lines()
            .any(|line| line.starts_with("can_sync_connections_total") && !line.ends_with(" 1"))
    });
    let (content, wire) = received();
    assert!(content >= 100_000.0 && wire > content, "{content} {wire}");
    drop(b);
}

#[test]
fn the_log_in_json_is_an_object_a_line_with_its_level_and_module() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut agent = Agent::serve(&home, &["--log-format", "json", "up", "--offline"]);
    agent.output(&["rename", "ph\u{202e}one"]);
    agent.stop_with("-TERM");
    let mut levels = Vec::new();
    for line in agent.log().lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["timestamp"].is_string() && line["target"].is_string(), "{line}");
        levels.push(line["level"].as_str().unwrap().to_owned());
    }
    assert!(levels.contains(&"INFO".to_owned()), "{}", agent.log());
    assert!(!agent.log().contains('\u{202e}'));
    assert!(!agent.log().contains(&agent.token()));
}

// ---- hooks -----------------------------------------------------------------------------------

#[test]
fn a_program_is_called_with_each_event_and_one_that_hangs_or_is_missing_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = folder.path().join("tell");
    fs::write(&script, format!("#!/bin/sh\ncat >> '{0}'; echo >> '{0}'\n", told.display()))
        .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let home = home_with(
        folder.path(),
        &format!(
            "[hook.tell]\non = [\"alert\", \"alert-cleared\"]\nexec = [\"{}\"]\n\
             [hook.hangs]\non = [\"alert\"]\nexec = [\"sleep\", \"1000\"]\n\
             [hook.missing]\non = [\"alert\"]\nexec = [\"/nowhere/tell\"]\n",
            script.display()
        ),
    );
    let events = || -> Vec<Value> {
        let text = fs::read_to_string(&told).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut agent = Agent::start_in(&home);
    let failed = agent.command(&["hooks", "test", "missing"]).assert().code(1);
    let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(said.contains("/nowhere/tell: No such file"), "{said}");
    agent.command(&["hooks", "test", "nothing"]).assert().code(4);
    agent.output(&["hooks", "test", "tell"]);
    assert_eq!(events()[0]["type"], "test");

    agent.output(&["config", "set", "alert_free_space", "1000P"]);
    until("it is called", || events().len() == 2);
    let event = &events()[1];
    assert_eq!((&event["type"], &event["data"]["alert"]), (&"alert".into(), &"low-space".into()));
    assert_eq!(event["device"]["node_id"], status(&agent)["device"]["node_id"]);
    until("the missing program is an alert", || stands(&agent, "hook-failing-missing"));
    assert!(agent.output(&["alerts"]).contains("/nowhere/tell: No such file"));
    let config = fs::read_to_string(home.join("config.toml")).unwrap();
    assert!(config.starts_with("alert_free_space = \"1000P\"\n[hook.tell]"), "{config}");

    // A stop does not wait for the hook that hangs, and an event that was delivered is not sent again.
    let before = events().len();
    let asked = Instant::now();
    agent.stop_with("-TERM");
    assert!(asked.elapsed().as_secs() < 10, "{:?}", asked.elapsed());
    agent = Agent::start_in(&home);
    until("the alert stands", || stands(&agent, "low-space"));
    agent.output(&["config", "unset", "alert_free_space"]);
    until("its end is told", || {
        events()
            .iter()
            .any(|event| event["type"] == "alert-cleared" && event["data"]["alert"] == "low-space")
    });
    let ids: Vec<_> = events().into_iter().map(|event| event["id"].clone()).collect();
    let distinct: std::collections::BTreeSet<_> = ids.iter().map(Value::to_string).collect();
    assert_eq!(ids.len(), distinct.len(), "an event was told twice: {ids:?}");
    assert!(ids.len() > before);
}

/// Takes one request, answers it with this status line, and returns it.
fn serve_one(listener: &TcpListener, answer: &str) -> (String, String) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    reader.into_inner().write_all(answer.as_bytes()).unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn header(head: &str, name: &str) -> String {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
    line.and_then(|line| line.split_once(": ")).unwrap().1.to_owned()
}

#[test]
fn a_receiver_that_was_dead_gets_every_event_signed_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let home = home_with(
        folder.path(),
        &format!("[hook.web]\non = [\"alert\", \"alert-cleared\"]\nurl = \"http://{address}/x\"\n"),
    );
    let mut agent = Agent::start_in(&home);
    // The hook has its place in the log before anything happens.
    until("the hook listens", || home.join("hooks").exists());
    drop(listener);
    agent.output(&["config", "set", "alert_free_space", "1000P"]);
    until("it fails", || {
        agent.json(&["hooks"])[0]["last_error"].as_str().is_some_and(|error| !error.is_empty())
    });
    agent.stop_with("-TERM");
    agent = Agent::start_in(&home);
    let secret = agent.output(&["hooks", "secret", "web"]).trim().to_owned();
    let listener = TcpListener::bind(address).unwrap();
    let (_, refused) = serve_one(&listener, "503 Busy");
    let (head, body) = serve_one(&listener, "204 No Content");
    assert_eq!(refused, body, "it is sent again");
    let event: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&event["type"], &event["data"]["alert"]), (&"alert".into(), &"low-space".into()));
    assert_eq!(event["id"], header(&head, "webhook-id"));
    let signed =
        format!("{}.{}.{body}", header(&head, "webhook-id"), header(&head, "webhook-timestamp"));
    let key = secret.strip_prefix("whsec_").unwrap();
    let key = data_encoding::BASE64.decode(key.as_bytes()).unwrap();
    assert_eq!(header(&head, "webhook-signature"), format!("v1,{}", hmac(&key, signed.as_bytes())));
    until("it is counted", || agent.json(&["hooks"])[0]["delivered"] == 1);
}

/// HMAC-SHA256 in base64, from its definition.
fn hmac(key: &[u8], message: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    let mut padded = [0_u8; 64];
    padded[..key.len()].copy_from_slice(key);
    let [inner, outer] = [0x36, 0x5c].map(|pad| padded.map(|byte| byte ^ pad));
    let inner = Sha256::new().chain_update(inner).chain_update(message).finalize();
    let outer = Sha256::new().chain_update(outer).chain_update(inner).finalize();
    data_encoding::BASE64.encode(&outer)
}
