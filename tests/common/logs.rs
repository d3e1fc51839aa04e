//! What the agents of a test process log, kept whole, so that tests can look into it.
//!
//! Agents log from all threads, a hundred megabytes in the larger test binaries. So the log is read
//! without its lock, and only what came since is judged again: whoever holds the lock holds up every
//! agent.

use std::sync::{Arc, Once};

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static LOG: Mutex<Log> = Mutex::new(Log {
    pieces: Vec::new(),
    last: String::new(),
    secrets: Vec::new(),
    judged_pieces: 0,
    judged_secrets: 0,
});

struct Log {
    /// All lines but those of `last`. No line is in two pieces.
    pieces: Vec<Arc<str>>,
    last: String,
    /// Texts that must not be logged.
    secrets: Vec<String>,
    /// So many of the first pieces were checked for the first `judged_secrets` secrets.
    judged_pieces: usize,
    judged_secrets: usize,
}

impl Log {
    fn all(&mut self) -> Vec<Arc<str>> {
        if !self.last.is_empty() {
            self.pieces.push(std::mem::take(&mut self.last).into());
        }
        self.pieces.clone()
    }
}

struct Keep;

impl std::io::Write for Keep {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        LOG.lock().last.push_str(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Keep {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Collects everything that is logged from now on, as `-vv` would show it.
pub fn keep_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = EnvFilter::new("debug,can_sync=trace");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(Keep).with_ansi(false).init();
    });
}

/// From now on this text must not be logged.
pub fn keep_secret(secret: &[u8]) {
    let secret = String::from_utf8_lossy(secret.trim_ascii()).into_owned();
    LOG.lock().secrets.push(secret);
}

/// Whether a logged line contains all of these.
pub fn was_logged(parts: &[&str]) -> bool {
    times_logged(parts) > 0
}

/// How many logged lines contain all of these.
pub fn times_logged(parts: &[&str]) -> usize {
    let pieces = LOG.lock().all();
    pieces.iter().map(|piece| lines_with(piece, parts).len()).sum()
}

/// Checks that no error and no secret was logged since this was last called.
pub fn judge_logs() {
    let (pieces, secrets, judged_pieces, judged_secrets) = {
        let mut log = LOG.lock();
        let (pieces, secrets) = (log.all(), log.secrets.clone());
        let judged = (log.judged_pieces, log.judged_secrets);
        (log.judged_pieces, log.judged_secrets) = (pieces.len(), secrets.len());
        (pieces, secrets, judged.0, judged.1)
    };
    for (at, piece) in pieces.iter().enumerate() {
        let is_new = at >= judged_pieces;
        if is_new {
            let errors = lines_with(piece, &[" ERROR "]);
            assert!(errors.is_empty(), "logged as ERROR: {errors:#?}");
        }
        for secret in if is_new { &secrets } else { &secrets[judged_secrets..] } {
            let lines = lines_with(piece, &[secret]);
            assert!(lines.is_empty(), "a secret was logged: {lines:?}");
        }
    }
}

fn lines_with<'a>(piece: &'a str, parts: &[&str]) -> Vec<&'a str> {
    // Most pieces have none, and a search of the whole is far faster than one of each line.
    if !parts.iter().all(|part| piece.contains(part)) {
        return Vec::new();
    }
    piece.lines().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
}
