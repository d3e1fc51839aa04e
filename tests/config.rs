//! The configuration as a person meets it: the file, the environment, `config`, signals, the API.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, DEADLINE, program, until};

fn setting(agent: &Agent, key: &str) -> Value {
    let view = agent.json(&["config", "show"]).remove(0);
    let settings = view["settings"].as_array().unwrap();
    settings.iter().find(|setting| setting["key"] == key).unwrap().clone()
}

fn up_bytes(agent: &Agent) -> Value {
    agent.json(&["status"])[0]["rate_limits"]["up_bytes"].clone()
}

fn hang_up(agent: &Agent) {
    let pid = agent.pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

/// What a command says on standard error when it ends with this status.
fn said(home: &Path, args: &[&str], set: &[(&str, &str)], status: i32) -> String {
    let mut command = program();
    command.arg("--home").arg(home).args(args).envs(set.iter().copied());
    let ended = assert_cmd::Command::from_std(command).timeout(DEADLINE).assert().code(status);
    String::from_utf8_lossy(&ended.get_output().stderr).into_owned()
}

#[test]
fn a_limit_follows_the_file_the_commands_and_the_api_while_the_agent_runs() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&home, mode).unwrap();
    let file = home.join("config.toml");
    fs::write(&file, "# at home\nbwlimit = \"1M\"\n").unwrap();
    let agent = Agent::start_in(&home);
    assert_eq!(up_bytes(&agent), 1 << 20);
    assert_eq!(setting(&agent, "bwlimit")["source"], "file");
    assert_eq!(setting(&agent, "bwlimit")["line"], 2);
    assert_eq!(setting(&agent, "offline")["source"], "flag");
    assert_eq!(setting(&agent, "relay")["source"], "default");

    agent.output(&["config", "set", "bwlimit", "2M"]);
    assert_eq!(up_bytes(&agent), 2 << 20);
    assert_eq!(fs::read_to_string(&file).unwrap(), "# at home\nbwlimit = \"2M\"\n");

    fs::write(&file, "bwlimit = \"3M\"\n").unwrap();
    hang_up(&agent);
    until("SIGHUP is heeded", || up_bytes(&agent) == 3 << 20);

    // A file that cannot be used changes nothing, and the log says what is wrong with it.
    fs::write(&file, "relay = \"off\"\nbwlimit = \"3X\"\n").unwrap();
    hang_up(&agent);
    until("the log says so", || agent.log().contains("config.toml line 2, bwlimit: "));
    assert_eq!(up_bytes(&agent), 3 << 20);
    agent.command(&["config", "set", "peer", "nas:1"]).assert().code(2);
    agent.command(&["config", "check"]).assert().code(2);
    fs::write(&file, "bwlimit = \"3M\"\n").unwrap();

    // What needs a restart waits for it, and what the command line says stays.
    agent.output(&["config", "set", "relay", "off"]);
    assert_eq!(setting(&agent, "relay")["waits_for_restart"], true);
    agent.command(&["config", "set", "offline", "false"]).assert().code(9);
    agent.command(&["config", "set", "bandwidth", "1M"]).assert().code(2);
    agent.output(&["config", "unset", "bwlimit"]);
    assert_eq!(up_bytes(&agent), Value::Null);
    assert_eq!(fs::read_to_string(&file).unwrap(), "relay = \"off\"\n");
}

#[test]
fn a_bad_configuration_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let wrong = said(&home, &["up"], &[("CAN_SYNC_LISTEN", "192.0.2.1:5757")], 2);
    assert!(wrong.contains("CAN_SYNC_LISTEN: expected a loopback address"), "{wrong}");
    let wrong = said(&home, &["up", "--store", "http://127.0.0.1:9"], &[], 2);
    assert!(wrong.contains("store_key_file"), "{wrong}");
    assert!(!home.exists());
    let config = folder.path().join("can-sync/config.toml");
    fs::create_dir(config.parent().unwrap()).unwrap();
    fs::write(&config, "\nofline = true\n").unwrap();
    let xdg = [("XDG_CONFIG_HOME", folder.path().to_str().unwrap())];
    let wrong = said(&home, &["up"], &xdg, 2);
    assert!(wrong.contains("line 2, unknown key \"ofline\": did you mean offline?"), "{wrong}");
    assert!(!home.exists());
    fs::write(&config, "offline = true\n").unwrap();
    assert!(said(&home, &["config", "check"], &xdg, 0).contains("is fine"));
}

#[test]
fn a_variable_goes_before_the_file_and_an_option_before_both() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let show = |set: &[(&str, &str)]| {
        let mut command = program();
        command.arg("--home").arg(&home).args(["config", "show"]).envs(set.iter().copied());
        let output = command.output().unwrap().stdout;
        let text = String::from_utf8(output).unwrap();
        text.lines().find(|line| line.starts_with("bwlimit ")).unwrap().to_owned()
    };
    said(&home, &["config", "set", "bwlimit", "1M"], &[], 0);
    said(&home, &["status"], &[], 3);
    assert!(show(&[]).ends_with("1M  (file, line 1)"), "{}", show(&[]));
    let set = [("CAN_SYNC_BWLIMIT", "2M")];
    assert!(show(&set).ends_with("2M  (environment)"), "{}", show(&set));
}
