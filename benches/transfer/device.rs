//! A `can-sync up` in a home of its own: started, ordered about, watched.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use can_sync::replica::status::{PeerState, Status};
use serde_json::Value;
use tempfile::TempDir;

/// What takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(600);

/// A running agent; killed when dropped.
pub(crate) struct Device {
    child: Running,
    folder: TempDir,
    address: String,
    token: String,
}

/// The program, with nothing of the tester's environment that it would read.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_can-sync"));
    for variable in ["CAN_SYNC_HOME", "CAN_SYNC_LOG", "RUST_LOG", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(variable);
    }
    command
}

/// A child that does not outlive its owner.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Device {
    pub(crate) fn start() -> Self {
        Self::start_in(super::folder())
    }

    /// In a folder that may have its home already.
    pub(crate) fn start_in(folder: TempDir) -> Self {
        let home = folder.path().join("home");
        let mut child = program()
            .args(["up", "--offline", "--json", "--listen", "127.0.0.1:0", "--home"])
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ready: Value = serde_json::from_str(&first_line(&mut child)).unwrap();
        let address = ready["api"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        let token = std::fs::read_to_string(home.join("api-token")).unwrap().trim().to_owned();
        Self { child: Running(child), folder, address, token }
    }

    /// Ends it in order; its folder stays.
    pub(crate) fn stop(mut self) -> TempDir {
        let pid = self.child.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(self.child.0.wait().unwrap().success());
        self.folder
    }

    /// As the agent sees itself now.
    pub(crate) fn status(&self) -> Status {
        let (_, body) = self.http().request("GET", "/v1/status", b"");
        serde_json::from_slice(&body).unwrap()
    }

    /// Runs a command that succeeds, and returns what it prints.
    pub(crate) fn run(&self, args: &[&str], input: &str) -> String {
        let mut child = program()
            .arg("--home")
            .arg(self.folder.path().join("home"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "can-sync {args:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// A connection to its API that is kept.
    pub(crate) fn http(&self) -> Http {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!("Host: {}\r\nAuthorization: Bearer {}", self.address, self.token);
        Http { stream: BufReader::new(stream), head }
    }

    /// Its store's feed from now on.
    pub(crate) fn events(&self) -> Events {
        let mut http = self.http();
        http.send("GET", "/sync/events", b"");
        let (status, _) = http.read_head();
        assert_eq!(status, 200);
        Events(http)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage::of(&self.child.0.id().to_string())
    }
}

/// A kept HTTP connection.
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    head: String,
}

impl Http {
    /// The answer's status and body.
    pub(crate) fn request(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        self.send(method, path, body);
        let (status, length) = self.read_head();
        let mut answer = vec![0; length.expect("the answer's length")];
        self.stream.read_exact(&mut answer).unwrap();
        (status, answer)
    }

    fn send(&mut self, method: &str, path: &str, body: &[u8]) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{}\r\nContent-Length: {}\r\n\r\n",
            self.head,
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        self.stream.get_mut().write_all(&request).unwrap();
    }

    fn read_head(&mut self) -> (u16, Option<usize>) {
        let (mut status, mut length) = (0, None);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = Some(value.parse().unwrap());
            } else if line.is_empty() {
                return (status, length);
            }
        }
    }
}

/// A store's feed.
pub(crate) struct Events(Http);

impl Events {
    pub(crate) fn wait_for(&mut self, hash: &str) {
        let mut line = String::new();
        while !(line.starts_with("data:") && line.contains(hash)) {
            line.clear();
            assert_ne!(self.0.stream.read_line(&mut line).unwrap(), 0, "the feed ended");
        }
    }
}

/// How two devices came to the same set, in seconds.
pub(crate) struct Course {
    /// From the start until both held everything.
    pub(crate) held: f64,
    /// From the first moment a device showed the session as up until then.
    pub(crate) connected: f64,
    /// From the start until both said that they are in sync.
    pub(crate) in_sync: f64,
    /// The same from the first moment a device showed the session as up.
    pub(crate) connected_in_sync: f64,
}

/// Redeems a ticket.
pub(crate) fn pair(device: &Device, ticket: &str) {
    device.run(&["--quiet", "pair"], ticket);
}

/// When a device was first seen in a state, since the start.
struct Seen {
    connected: Duration,
    held: Duration,
    in_sync: Duration,
}

/// Runs `join` and watches until both devices hold `assets` and are in sync.
pub(crate) fn wait_for_both(devices: &[Device; 2], assets: u64, join: impl FnOnce()) -> Course {
    let start = Instant::now();
    let seen = std::thread::scope(|scope| {
        let watches = devices.each_ref().map(|device| scope.spawn(|| watch(device, assets, start)));
        join();
        watches.map(|watch| watch.join().unwrap())
    });
    course(seen)
}

/// Starts two devices that know each other, both at once, and watches the same.
pub(crate) fn start_both(folders: [TempDir; 2], assets: u64) -> ([Device; 2], Course) {
    let start = Instant::now();
    let started = folders.map(|folder| {
        std::thread::spawn(move || {
            let device = Device::start_in(folder);
            let seen = watch(&device, assets, start);
            (device, seen)
        })
    });
    let [(a, seen_a), (b, seen_b)] = started.map(|thread| thread.join().unwrap());
    ([a, b], course([seen_a, seen_b]))
}

fn course([a, b]: [Seen; 2]) -> Course {
    let connected = a.connected.min(b.connected);
    let (held, in_sync) = (a.held.max(b.held), a.in_sync.max(b.in_sync));
    Course {
        held: held.as_secs_f64(),
        connected: held.saturating_sub(connected).as_secs_f64(),
        in_sync: in_sync.as_secs_f64(),
        connected_in_sync: in_sync.saturating_sub(connected).as_secs_f64(),
    }
}

/// Waits until a device holds `assets`.
pub(crate) fn wait_until_held(device: &Device, assets: u64) {
    watch(device, assets, Instant::now());
}

fn watch(device: &Device, assets: u64, start: Instant) -> Seen {
    let mut http = device.http();
    let (mut revision, mut connected, mut held) = (0, None, None);
    loop {
        let path = format!("/v1/status?revision={revision}&timeout_ms=1000");
        let (_, body) = http.request("GET", &path, b"");
        let status: Status = serde_json::from_slice(&body).unwrap();
        let now = start.elapsed();
        assert!(now < DEADLINE, "not in sync: {status:?}");
        revision = status.revision;
        let Some(peer) = status.peers.first() else { continue };
        if matches!(peer.state, PeerState::Syncing | PeerState::Idle) {
            connected.get_or_insert(now);
        }
        let Some(connected) = connected else { continue };
        if status.store.assets == assets {
            let held = *held.get_or_insert(now);
            if status.in_sync && peer.in_sync {
                return Seen { connected, held, in_sync: now };
            }
        }
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) resident_bytes: f64,
    pub(crate) peak_bytes: f64,
    pub(crate) written_bytes: f64,
    /// How often its threads went to sleep and were woken.
    pub(crate) wakeups: f64,
}

impl Usage {
    /// Of a process ID, or of `self`.
    pub(crate) fn of(pid: &str) -> Self {
        /// Of `utime` and `stime`, for programs on every Linux.
        const TICKS_PER_S: f64 = 100.0;
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let stat = read("stat");
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).map(|t| t.parse::<f64>().unwrap()).sum();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let threads = threads
            .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok());
        Self {
            cpu_s: ticks / TICKS_PER_S,
            resident_bytes: number(&read("status"), "VmRSS:") * 1024.0,
            peak_bytes: number(&read("status"), "VmHWM:") * 1024.0,
            written_bytes: number(&read("io"), "write_bytes:"),
            wakeups: threads.map(|status| number(&status, "voluntary_ctxt_switches:")).sum(),
        }
    }
}

/// What was used since; a peak stays what it is.
impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            written_bytes: self.written_bytes - before.written_bytes,
            wakeups: self.wakeups - before.wakeups,
            resident_bytes: self.resident_bytes,
            peak_bytes: self.peak_bytes,
        }
    }
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// The first line that a child says; later ones go nowhere.
pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line
}
