//! A real `can-sync up` in a home of its own, for tests of the program.

// Each test program uses a part of it.
#![allow(unreachable_pub, dead_code)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Everything here is local; anything slower hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The pause between two looks at a condition. Without one, a test takes the time from the agents that
/// it waits for.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until it is so; says how long that took.
pub fn until(what: &str, is_so: impl FnMut() -> bool) -> Duration {
    until_within(DEADLINE, what, is_so)
}

/// [`until`], within this time.
pub fn until_within(deadline: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(PAUSE);
    }
    start.elapsed()
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    log: PathBuf,
    home: PathBuf,
    ready: Value,
    /// Holds the home's folder, unless the test does.
    _folder: Option<TempDir>,
}

/// The program without the parts of the tester's environment that it would read.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_can-sync"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("CAN_SYNC_") {
            command.env_remove(variable);
        }
    }
    for variable in ["RUST_LOG", "HTTP_PROXY", "http_proxy", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        command.env_remove(variable);
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

impl Agent {
    /// Starts it in a new home.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut agent = Self::start_in(&folder.path().join("home"));
        agent._folder = Some(folder);
        agent
    }

    /// Starts it in this home.
    pub fn start_in(home: &Path) -> Self {
        Self::serve(home, &["up", "--offline"])
    }

    /// Starts `up` or `store` with these arguments on a free port, and waits until it is ready.
    pub fn serve(home: &Path, args: &[&str]) -> Self {
        let log = std::fs::File::create(home.with_extension("log")).unwrap();
        Self::serve_with(home, args, log.into())
    }

    /// As [`Self::serve`], with a standard error other than the log file.
    pub fn serve_with(home: &Path, args: &[&str], stderr: Stdio) -> Self {
        Self::launch(program(), home, args, stderr)
    }

    /// Starts it within a network namespace.
    pub fn start_in_namespace(namespace: &str, home: &Path, args: &[&str]) -> Self {
        let log = std::fs::File::create(home.with_extension("log")).unwrap();
        let program = program();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program.get_program());
        for (variable, value) in program.get_envs() {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        Self::launch(command, home, args, log.into())
    }

    fn launch(mut command: Command, home: &Path, args: &[&str], stderr: Stdio) -> Self {
        let log = home.with_extension("log");
        let mut child = command
            .args(args)
            .args(["--json", "--listen", "127.0.0.1:0", "-vv", "--home"])
            .arg(home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = line.recv_timeout(DEADLINE).unwrap_or_default();
        let log_text = || std::fs::read_to_string(&log).unwrap_or_default();
        let ready = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("expected a ready line, got {line:?}; log: {}", log_text()));
        Self { child, log, home: home.to_owned(), ready, _folder: None }
    }

    /// The line that it printed when it was ready.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// Its home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it logged so far, at the highest level.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Its API token.
    pub fn token(&self) -> String {
        let token = std::fs::read_to_string(self.home.join("api-token")).unwrap();
        token.trim().to_owned()
    }

    /// A command for this agent.
    pub fn command(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = program();
        command.arg("--home").arg(&self.home).args(args);
        let mut command = assert_cmd::Command::from_std(command);
        command.timeout(DEADLINE);
        command
    }

    /// The output of a command that succeeds.
    pub fn output(&self, args: &[&str]) -> String {
        let output = self.command(args).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    }

    /// The lines of JSON that a command prints.
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.output(&[&["--json"], args].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The answer to a raw HTTP request: status and everything after the status line.
    pub fn http(&self, request: &str) -> (u16, String) {
        let address = self.ready["api"].as_str().unwrap().strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A refusal may come before the whole request was read, and may then end in a reset.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {answer:?}")), answer)
    }

    /// Sends a signal and returns how the process ended.
    pub fn stop_with(&mut self, signal: &str) -> ExitStatus {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        self.ended()
    }

    /// Waits for the end of the process and returns how it ended.
    pub fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > DEADLINE {
                return ExitStatus::from_raw(-1);
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
