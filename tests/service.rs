//! The agent as a service: what it tells the service manager, and what `service` has that do.
//! Programs of the system are played by scripts that write down how they were called.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[path = "common/agent.rs"]
mod agent;

use agent::{Agent, DEADLINE, program};

/// What arrives at the service manager's socket, up to the first message with this line.
fn told(socket: &UnixDatagram, line: &str) -> Vec<String> {
    let mut lines = Vec::new();
    while !lines.iter().any(|told| told == line) {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).unwrap_or_else(|_| panic!("no {line}: {lines:?}"));
        lines.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
    }
    lines
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It has ended if the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_service_manager_hears_that_it_serves_lives_reloads_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut child = Killed(
        program()
            .args(["up", "--offline", "--listen", "127.0.0.1:0", "--home"])
            .arg(folder.path().join("home"))
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env("WATCHDOG_USEC", "600000")
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let pid = child.0.id().to_string();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    let at_start = told(&socket, "READY=1");
    assert_eq!(at_start[0], "READY=1", "nothing comes before it");
    assert!(folder.path().join("home/api-address").exists(), "it serves");
    told(&socket, "STATUS=0 assets; 0 of 0 other devices connected; in sync");
    told(&socket, "WATCHDOG=1");
    signal("-HUP");
    let reloaded = told(&socket, "READY=1");
    assert!(reloaded.iter().any(|line| line == "RELOADING=1"), "{reloaded:?}");
    assert!(reloaded.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloaded:?}");
    signal("-TERM");
    told(&socket, "STOPPING=1");
    assert!(child.0.wait().unwrap().success());
}

/// Scripts that write down how they were called, and the home folder of a user who calls them.
struct System {
    folder: tempfile::TempDir,
}

impl System {
    fn new() -> Self {
        let system = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(system.path("bin")).unwrap();
        for name in ["systemctl", "systemd-run", "loginctl", "journalctl"] {
            system.script(name, "");
        }
        system
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.folder.path().join(below)
    }

    /// Makes a program that also does this.
    fn script(&self, name: &str, does: &str) {
        let calls = self.path("calls");
        let text = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{does}\n", calls.display());
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    fn run(&self, args: &[&str], status: i32) -> String {
        let mut command = program();
        command.args(args).env("PATH", self.path("bin")).env("HOME", self.path("user"));
        for variable in ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"] {
            command.env_remove(variable);
        }
        let ended = assert_cmd::Command::from_std(command).timeout(DEADLINE).assert().code(status);
        String::from_utf8_lossy(&ended.get_output().stderr).into_owned()
    }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.flat_map(|entry| match entry.path().is_dir() {
        true => files(&entry.path()),
        false => vec![entry.path().display().to_string()],
    });
    below.collect()
}

#[test]
fn a_service_is_installed_with_one_command_and_removed_without_a_trace() {
    let system = System::new();
    let said = system.run(&["service", "install"], 0);
    assert!(said.contains("loginctl enable-linger"), "{said}");
    let unit =
        fs::read_to_string(system.path("user/.config/systemd/user/can-sync.service")).unwrap();
    let program = env!("CARGO_BIN_EXE_can-sync");
    assert!(unit.contains(&format!("ExecStart=\"{program}\" up\n")), "{unit}");
    let calls = system.calls();
    let order = ["daemon-reload", "enable --quiet can-sync.service", "restart can-sync.service"];
    let at = order.map(|call| calls.find(&format!("systemctl --user {call}")).expect(call));
    assert!(at.is_sorted(), "{calls}");
    system.run(&["service", "logs"], 0);
    let asked = "journalctl --user --unit can-sync.service --lines 100\n";
    assert!(system.calls().contains(asked), "{}", system.calls());

    system.run(&["service", "uninstall"], 0);
    assert!(system.calls().contains("systemctl --user disable --now --quiet can-sync.service"));
    assert_eq!(files(&system.path("user")), [""; 0]);
    system.run(&["service", "uninstall"], 0);
}

#[test]
fn a_system_that_forbids_namespaces_gets_a_service_without_them_and_is_told_so() {
    let system = System::new();
    system.script("systemd-run", "exit 1");
    let said = system.run(&["service", "install"], 0);
    assert!(said.contains("namespaces"), "{said}");
    let drop_in = system.path("user/.config/systemd/user/can-sync.service.d/no-namespaces.conf");
    assert!(fs::read_to_string(&drop_in).unwrap().contains("PrivateUsers=no"));
    // Once it allows them, they are used.
    system.script("systemd-run", "");
    system.run(&["service", "install"], 0);
    assert!(!drop_in.exists());
}

#[test]
fn a_service_that_does_not_start_or_would_be_the_second_agent_is_an_error_with_the_next_step() {
    let system = System::new();
    system.script("systemctl", "case $2 in restart) echo went wrong >&2; exit 1;; esac");
    let said = system.run(&["service", "install"], 1);
    assert!(said.contains("went wrong") && said.contains("can-sync service logs"), "{said}");
    let agent = Agent::start();
    let home = agent.home().to_str().unwrap();
    let said = system.run(&["--home", home, "service", "install"], 9);
    assert!(said.contains(&format!("process {}", agent.pid())), "{said}");
    fs::remove_file(system.path("bin/systemctl")).unwrap();
    let said = system.run(&["service", "install"], 1);
    assert!(said.contains("systemctl is not on this machine"), "{said}");
}
