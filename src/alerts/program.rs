//! Runs the program of a hook: the event on its standard input, no shell, a process group of its
//! own, a time limit.
//!
//! P1  After the call no process of the group is left: not when it ends, not when it runs too long
//!     or writes too much, and not when the call is dropped because the agent stops.
//! P2  Nothing that the program does or leaves undone blocks the agent: the event fits into the pipe
//!     whether it is read or not, its output goes nowhere, and of its errors a bounded part is read.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::core::foreign_text::visible;
use crate::core::limits::REASON_CHARS_MAX;

/// How long a program may run. Whoever needs longer starts something that goes on by itself, as a
/// service.
pub(super) const RUN_MAX: Duration = Duration::from_secs(30);

/// How much of a program's standard error is kept for the log.
const ERRORS_KEPT_BYTES: usize = 1024;

/// The most that a program may write to standard error: more than any useful message.
const ERRORS_BYTES_MAX: usize = 1024 * 1024;

/// How long standard error is read after the program has ended. A child process that it started may
/// hold the stream open.
const ERRORS_WAIT: Duration = Duration::from_millis(100);

/// Variables of the agent's environment that a program does not get: with them it could send messages
/// to the service manager in the agent's name.
const HIDDEN_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Ends the process group when dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // Usually it has ended already. Its number is not given to others while a process of the
        // group is left, and after that not within this moment.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// Runs a program with `input` on its standard input. An error says what failed, for people.
///
/// # Cancel safety
/// A dropped call ends the program.
pub(super) async fn run(
    words: &[String],
    variables: &[(&'static str, String)],
    input: Vec<u8>,
    run_max: Duration,
) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("no program is named")?;
    let (errors, errors_of_child) =
        BlockingStream::pair().map_err(|error| format!("starting {program}: {error}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(OwnedFd::from(errors_of_child));
    for variable in HIDDEN_VARIABLES {
        command.env_remove(variable);
    }
    // A program on a disk that hangs must not hold up the others. A start whose caller has gone ends
    // with the group that is then dropped.
    let started = spawn_blocking(move || start(command)).await;
    let (mut child, group) = started
        .map_err(|error| error.to_string())
        .and_then(|started| started.map_err(|error| error.to_string()))
        .map_err(|error| format!("starting {program}: {error}"))?;
    let stdin = child.stdin.take();
    let ended = spawn_blocking(move || {
        if let Some(mut stdin) = stdin {
            // A program that ends or closes its input needs no more of it.
            let _ = stdin.write_all(&input);
        }
        child.wait()
    });
    let mut errors = Errors::new(errors)?;
    let status = timeout(run_max, async {
        tokio::select! {
            status = ended => Ok(status),
            () = errors.flood() => Err(format!(
                "{program} wrote more than {} MiB to standard error: ended",
                ERRORS_BYTES_MAX >> 20
            )),
        }
    });
    let status = status.await;
    // The waiting thread reaps it.
    drop(group);
    let status = match status {
        Err(_) => return Err(format!("{program} ran longer than {} s: ended", run_max.as_secs())),
        Ok(Err(flooded)) => return Err(flooded),
        Ok(Ok(status)) => status.map_err(|error| error.to_string())?,
    };
    let status = status.map_err(|error| format!("waiting for {program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = errors.rest().await;
    let said = if said.is_empty() { said } else { format!(": {said}") };
    Err(format!("{program} {}{said}", how(status)))
}

fn start(mut command: Command) -> io::Result<(Child, Group)> {
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the program has no usable process id"))?;
    Ok((child, Group(pid)))
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// Reads the standard error of a program.
struct Errors {
    stream: UnixStream,
    kept: Vec<u8>,
    bytes: usize,
}

impl Errors {
    fn new(stream: BlockingStream) -> Result<Self, String> {
        let open = || {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let stream = open().map_err(|error| error.to_string())?;
        Ok(Self { stream, kept: Vec::new(), bytes: 0 })
    }

    /// Reads until there are too many; never returns when it ends before.
    async fn flood(&mut self) {
        while self.read().await {
            if self.bytes > ERRORS_BYTES_MAX {
                return;
            }
        }
        std::future::pending().await
    }

    /// Reads a piece. Returns false at the end.
    ///
    /// # Cancel safety
    /// Safe.
    async fn read(&mut self) -> bool {
        let mut piece = [0; 8192];
        let Ok(bytes @ 1..) = self.stream.read(&mut piece).await else { return false };
        let room = ERRORS_KEPT_BYTES.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&piece[..bytes.min(room)]);
        self.bytes += bytes;
        true
    }

    /// The last line of what it said, fit for people.
    async fn rest(&mut self) -> String {
        let reading = async { while self.kept.len() < ERRORS_KEPT_BYTES && self.read().await {} };
        // A child process that the program started may go on writing.
        let _ = timeout(ERRORS_WAIT, reading).await;
        let text = String::from_utf8_lossy(&self.kept);
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        visible(line.trim(), REASON_CHARS_MAX)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::instant_now;

    /// A shell script as a hook: with it the shell is the program.
    async fn script(text: &str, input: &[u8], run_max: Duration) -> Result<(), String> {
        let words = ["/bin/sh", "-c", text].map(str::to_owned);
        run(&words, &[("CAN_SYNC_EVENT", "alert".into())], input.to_vec(), run_max).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_program_gets_the_event_and_its_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let text =
            format!("cat > '{0}'; printf %s \"$CAN_SYNC_EVENT$PWD\" >> '{0}'", out.display());
        script(&text, b"{\"x\":1}", LONG).await.unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "{\"x\":1}alert/");
        let failed = script("echo 'no \u{1b}[31mroute' >&2; exit 3", b"", LONG).await;
        assert_eq!(failed, Err("/bin/sh ended with status 3: no [31mroute".into()));
        let killed = script("kill -TERM $$", b"", LONG).await;
        assert_eq!(killed, Err("/bin/sh was ended by signal 15".into()));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let missing = run(&["/nowhere/tell".into()], &[], Vec::new(), LONG).await.unwrap_err();
        assert!(missing.starts_with("starting /nowhere/tell: No such file"), "{missing}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let text = format!("sleep 1000 & echo $! $$ > '{}'; wait", pids.display());
        let begun = instant_now();
        let hung = script(&text, b"unread", Duration::from_millis(500)).await.unwrap_err();
        assert!(hung.contains("ran longer than"), "{hung}");
        assert!(instant_now().duration_since(begun) < LONG);
        let pids = std::fs::read_to_string(pids).unwrap();
        for pid in pids.split_whitespace() {
            gone(pid).await;
        }
    }

    #[tokio::test]
    async fn what_a_program_leaves_in_the_background_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let text = format!("sleep 1000 & echo $! > '{}'", pids.display());
        script(&text, b"", LONG).await.unwrap();
        gone(std::fs::read_to_string(pids).unwrap().trim()).await;
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_ends_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let text = format!("echo $$ > '{}'; sleep 1000", pids.display());
        let mut call = Box::pin(script(&text, b"", LONG));
        let pid = tokio::select! {
            ended = &mut call => panic!("{ended:?}"),
            pid = written(&pids) => pid,
        };
        drop(call);
        gone(&pid).await;
    }

    #[tokio::test]
    async fn a_program_that_floods_is_ended_and_one_that_reads_nothing_is_not_waited_for() {
        let flood = "yes 'this is no message' >&2";
        let flooded = script(flood, b"", LONG).await.unwrap_err();
        assert!(flooded.contains("more than 1 MiB"), "{flooded}");
        script("yes | head -c 100000000; exit 0", b"", LONG).await.unwrap();
        let event = vec![b'x'; crate::core::limits::EVENT_DATA_BYTES_MAX + 1024];
        script("exit 0", &event, LONG).await.unwrap();
    }

    async fn written(path: &Path) -> String {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.ends_with('\n') {
                return text.trim().to_owned();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until a process is gone, or is left to be reaped.
    async fn gone(pid: &str) {
        let begun = instant_now();
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            assert!(instant_now().duration_since(begun) < LONG, "{stat}");
            tokio::task::yield_now().await;
        }
    }
}
