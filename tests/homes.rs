//! Homes of released versions open with this one, with all their content.
//!
//! Each folder of `tests/homes/` has the homes of two paired devices as the version in its name
//! stopped them or was killed, and `expected.json`, the content by that version's own report.
//! `make.py` there made them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, until};

const VERSIONS: [&str; 1] = ["0.1.0"];

fn frozen(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/homes").join(version)
}

/// A writable copy of the home.
fn thawed(version: &str, device: &str, into: &TempDir) -> PathBuf {
    let archive = frozen(version).join(format!("{device}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(into.path()).arg("--no-same-owner");
    assert!(tar.status().unwrap().success());
    into.path().join(device)
}

/// The parts of assets that must not change with the version: not the time or order of their rows.
fn lasting(assets: &Value) -> Vec<Value> {
    let parts = |asset: &Value| {
        let part = |name: &str| asset[name].clone();
        json!([part("hash"), part("size"), part("description"), part("tags"), part("trashed")])
    };
    let mut lasting: Vec<_> = assets.as_array().unwrap().iter().map(parts).collect();
    lasting.sort_by_key(Value::to_string);
    lasting
}

fn records(agent: &Agent) -> Vec<Value> {
    let parts = |record: &Value| {
        let part = |name: &str| record[name].clone();
        json!([part("id"), part("fields"), part("sets"), part("owner")])
    };
    agent.json(&["records", "ls", "shopping"]).iter().map(parts).collect()
}

fn expected_records(device: &Value) -> Vec<Value> {
    let parts = |record: &Value| {
        let part = |name: &str| record[name].clone();
        json!([part("id"), part("fields"), part("sets"), part("owner")])
    };
    device["records"].as_array().unwrap().iter().map(parts).collect()
}

/// The hash and the name of each asset that has one.
fn names_of(assets: &Value) -> BTreeSet<(String, String)> {
    let text = |asset: &Value, part: &str| asset[part].as_str().unwrap().to_owned();
    let assets = assets.as_array().unwrap().iter();
    let named = assets.filter(|asset| asset["name"] != "");
    named.map(|asset| (text(asset, "hash"), text(asset, "name"))).collect()
}

fn expected(version: &str) -> Value {
    let text = std::fs::read_to_string(frozen(version).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_home_of_an_earlier_version_opens_with_everything_in_it() {
    for version in VERSIONS {
        let expected = expected(version);
        for device in ["desk", "phone"] {
            let folder = tempfile::tempdir().unwrap();
            let agent = Agent::start_in(&thawed(version, device, &folder));
            let held = &expected[device];
            let status = &agent.json(&["status"])[0];
            assert_eq!(status["device"]["node_id"], held["node_id"], "{version} {device}");
            let assets = Value::Array(agent.json(&["ls", "--all"]));
            assert_eq!(lasting(&assets), lasting(&held["assets"]), "{version} {device}");
            assert_eq!(records(&agent), expected_records(held), "{version} {device}");
            let events = agent.json(&["log"]).len() as u64;
            assert!(events >= held["events"].as_u64().unwrap(), "{version} {device}: {events}");
            agent.output(&["journal", "fsck"]);
            let log = agent.log();
            assert!(!log.contains("ERROR"), "{version} {device}: {log}");
        }
    }
}

#[test]
fn devices_of_an_earlier_version_go_on_where_they_were_after_an_upgrade() {
    for version in VERSIONS {
        let expected = expected(version);
        let folder = tempfile::tempdir().unwrap();
        let desk = Agent::start_in(&thawed(version, "desk", &folder));
        let phone = Agent::start_in(&thawed(version, "phone", &folder));
        // They are still in one group, and the removed device is still removed.
        assert_eq!(desk.json(&["peers"]).len(), 1, "{version}");
        let partial = expected["partial"].as_str().unwrap();
        until(&format!("{version}: the partial asset is finished"), || {
            phone.json(&["ls", "--all"]).iter().any(|row| row["hash"] == partial)
        });
        phone.output(&["get", partial, "-o", folder.path().join("partial").to_str().unwrap()]);
        // A name that was given on one device before names travelled reaches the other.
        let names = names_of(&expected["desk"]["assets"]);
        assert!(names.len() > 10, "{version}: {names:?}");
        until(&format!("{version}: the phone has the names"), || {
            names_of(&Value::Array(phone.json(&["ls", "--all"]))).is_superset(&names)
        });
        assert!(
            names_of(&Value::Array(desk.json(&["ls", "--all"]))).is_superset(&names),
            "{version}"
        );
        // It is no edit of a user.
        let changed = |event: &&Value| event["data"]["fields"].to_string().contains("name");
        for agent in [&desk, &phone] {
            assert_eq!(agent.json(&["log"]).iter().filter(changed).count(), 0, "{version}");
        }
        for agent in [&desk, &phone] {
            agent.output(&["journal", "fsck"]);
            assert!(!agent.log().contains("ERROR"), "{version}: {}", agent.log());
        }
    }
}
