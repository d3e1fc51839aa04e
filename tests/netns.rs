//! Networks that change, in network namespaces: what is new arrives soon after the path is back, also
//! when the old connection looked alive; and networks that have no more than a cable.
//!
//! These need root and `ip` (Debian package iproute2). Elsewhere each says in one line that it did not
//! run.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, DEADLINE, until, until_within};

/// Within this time of the path being back, what is new arrives. It takes less than a second, and up to two
/// where other programs use all cores.
const SOON: Duration = Duration::from_secs(3);

/// Within this time the devices choose one of two connections that both dialled at once, see
/// `core/peers.rs`.
const CROSSING: Duration = Duration::from_secs(12);

/// The interface of the switch.
const SWITCH: &str = "sw0";

/// Lives in a namespace of its own: a switch, and devices that are plugged into it.
struct Lab {
    name: String,
    folder: TempDir,
}

static LABS: AtomicU32 = AtomicU32::new(0);

fn ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip").args(args.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

impl Lab {
    /// `None`, with a line that says so, where network namespaces are not allowed.
    fn set_up() -> Option<Self> {
        let name = format!("cs{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let made = ip(&format!("netns add {name}-sw"))
            .and_then(|()| ip(&format!("-n {name}-sw link add name {SWITCH} type bridge")))
            .and_then(|()| ip(&format!("-n {name}-sw link set {SWITCH} up")));
        if let Err(why) = made {
            println!("not run: network namespaces are not allowed here: {}", why.trim());
            let _ = ip(&format!("netns del {name}-sw"));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        Some(Self { name, folder })
    }

    /// The namespace of a device.
    fn of(&self, device: &str) -> String {
        format!("{}-{device}", self.name)
    }

    fn add_device(&self, device: &str) {
        let namespace = self.of(device);
        ip(&format!("netns add {namespace}")).unwrap();
        ip(&format!("-n {namespace} link set lo up")).unwrap();
    }

    /// Connects an interface of a device to the switch.
    fn plug(&self, device: &str, interface: &str) {
        let (namespace, switch) = (self.of(device), self.of("sw"));
        let port = format!("p{device}{interface}");
        ip(&format!(
            "link add {interface} netns {namespace} type veth peer name {port} netns {switch}"
        ))
        .unwrap();
        ip(&format!("-n {switch} link set {port} master {SWITCH}")).unwrap();
        ip(&format!("-n {switch} link set {port} up")).unwrap();
        ip(&format!("-n {namespace} link set {interface} up")).unwrap();
    }

    /// Does something to a device's network.
    fn at(&self, device: &str, args: &str) {
        ip(&format!("-n {} {args}", self.of(device))).unwrap();
    }

    /// Starts the device's agent.
    fn start(&self, device: &str, args: &[&str]) -> Agent {
        let home = self.folder.path().join(device);
        Agent::start_in_namespace(&self.of(device), &home, &[&["up"], args].concat())
    }

    /// A new file.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for part in ["a", "b", "sw"] {
            let _ = ip(&format!("netns del {}", self.of(part)));
        }
    }
}

fn assets(agent: &Agent) -> u64 {
    agent.json(&["status"])[0]["store"]["assets"].as_u64().unwrap()
}

fn pair(inviter: &Agent, joiner: &Agent) {
    let ticket = inviter.output(&["ticket"]);
    joiner.command(&["pair"]).write_stdin(ticket).assert().success();
}

/// Adds a file on one device and waits until the other one has it; says how long that took.
fn crosses(lab: &Lab, what: &str, from: &Agent, to: &Agent) -> Duration {
    let begun = Instant::now();
    let path = lab.file(&what.replace(' ', "-"));
    let expected = assets(to) + 1;
    from.output(&["add", path.to_str().unwrap()]);
    until(what, || assets(to) == expected);
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    begun.elapsed()
}

/// Two paired devices on a switch, with IPv4 addresses and no route beyond.
fn two_devices(lab: &Lab) -> (Agent, Agent) {
    for (device, interface, address) in [("a", "eth", "10.9.0.1/24"), ("b", "wifi", "10.9.0.2/24")]
    {
        lab.add_device(device);
        lab.plug(device, interface);
        lab.at(device, &format!("addr add {address} dev {interface}"));
    }
    let (a, b) = (lab.start("a", &["--offline"]), lab.start("b", &["--offline"]));
    pair(&a, &b);
    crosses(lab, "the first file", &a, &b);
    // Of connections that are younger, two may have crossed, and which stays takes a while.
    let begun = Instant::now();
    until("the connection is no new one", || begun.elapsed() > CROSSING);
    (a, b)
}

#[test]
fn an_address_that_changes_holds_up_nothing_new_for_long() {
    let Some(lab) = Lab::set_up() else { return };
    let (a, b) = two_devices(&lab);
    for (number, from_a) in [(77, true), (78, false)] {
        lab.at("b", "addr flush dev wifi scope global");
        lab.at("b", &format!("addr add 10.9.0.{number}/24 dev wifi"));
        let (from, to) = if from_a { (&a, &b) } else { (&b, &a) };
        let took = crosses(&lab, &format!("after the address became {number}"), from, to);
        assert!(took < SOON, "{took:?}");
    }
}

#[test]
fn a_device_that_goes_from_one_network_card_to_another_is_soon_back() {
    let Some(lab) = Lab::set_up() else { return };
    let (a, b) = two_devices(&lab);
    lab.at("b", "link set wifi down");
    lab.plug("b", "cable");
    lab.at("b", "addr add 10.9.0.99/24 dev cable");
    let took = crosses(&lab, "after the change to the cable", &a, &b);
    assert!(took < SOON, "{took:?}");
}

#[test]
fn a_path_that_broke_unseen_and_is_back_is_soon_used_again() {
    let Some(lab) = Lab::set_up() else { return };
    let (a, b) = two_devices(&lab);
    // No device sees a link go down: the switch alone drops everything.
    for seconds in [10, 20] {
        lab.at("sw", "link set sw0 down");
        let gone = Instant::now();
        until("the outage", || gone.elapsed() > Duration::from_secs(seconds));
        lab.at("sw", "link set sw0 up");
        let took = crosses(&lab, &format!("after an outage of {seconds} s"), &a, &b);
        assert!(took < SOON, "{took:?}");
    }
}

#[test]
fn a_device_that_stood_still_for_longer_than_connections_live_is_soon_back() {
    let Some(lab) = Lab::set_up() else { return };
    let (a, b) = two_devices(&lab);
    let signal = |name: &str| {
        let pid = b.pid().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let expected = "offline";
    until_within(2 * DEADLINE, "a has lost b", || a.json(&["peers"])[0]["state"] == expected);
    let path = lab.file("added-meanwhile");
    a.output(&["add", path.to_str().unwrap()]);
    signal("-CONT");
    let took = until("what was added meanwhile", || assets(&b) == 2);
    println!("after it stood still: {:.1} s", took.as_secs_f64());
    assert!(took < SOON, "{took:?}");
}

#[test]
fn no_default_route_is_no_obstacle() {
    let Some(lab) = Lab::set_up() else { return };
    for (device, address) in [("a", "10.9.0.1/24"), ("b", "10.9.0.2/24")] {
        lab.add_device(device);
        lab.plug(device, "eth");
        lab.at(device, &format!("addr add {address} dev eth"));
    }
    // With the public relays, which are not reached.
    let (a, b) = (lab.start("a", &[]), lab.start("b", &[]));
    pair(&a, &b);
    crosses(&lab, "without a default route", &a, &b);
    drop(b);
    lab.at("b", "addr flush dev eth scope global");
    lab.at("b", "addr add 10.9.0.55/24 dev eth");
    let b = lab.start("b", &[]);
    crosses(&lab, "found again elsewhere", &a, &b);
}

#[test]
fn a_cable_with_link_local_addresses_alone_is_enough_to_pair_and_to_sync() {
    let Some(lab) = Lab::set_up() else { return };
    for device in ["a", "b"] {
        lab.add_device(device);
        lab.plug(device, "eth");
    }
    let (a, b) = (lab.start("a", &["--offline"]), lab.start("b", &["--offline"]));
    let addresses = |agent: &Agent| {
        let status = agent.json(&["status"]).remove(0);
        status["device"]["addresses"].as_array().unwrap().clone()
    };
    let has_link_local = |agent: &Agent| {
        addresses(agent).iter().any(|address| address.as_str().unwrap().starts_with("[fe80::"))
    };
    until("both have an address", || has_link_local(&a) && has_link_local(&b));
    pair(&a, &b);
    crosses(&lab, "over link-local addresses", &a, &b);
    drop(b);
    let b = lab.start("b", &["--offline"]);
    crosses(&lab, "over link-local addresses after a restart", &b, &a);
    // Once there is another address, no link-local one is told.
    for (device, agent, address) in [("a", &a, "10.9.0.1/24"), ("b", &b, "10.9.0.2/24")] {
        lab.at(device, &format!("addr add {address} dev eth"));
        until("the other address is told alone", || {
            !has_link_local(agent) && !addresses(agent).is_empty()
        });
    }
    crosses(&lab, "over the new addresses", &a, &b);
}
