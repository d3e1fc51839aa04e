//! The log on standard error, written by a thread of its own.
//!
//! L1  Nothing that logs waits for standard error or fails with it. A closed pipe, a full disk and a
//!     reader that has stopped reading cost log lines, and nothing else.
//! L2  When standard error takes lines again, the first one says how many are missing.
//! L3  A line of JSON holds no character that acts on a terminal. (Of text lines, the library that
//!     writes them sees to it.)

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::text::{counted, shown_json};
use crate::clock::instant_now;

/// The most lines that wait to be written; further ones are lost. Enough for a burst, and a few
/// hundred KiB.
const LINES_MAX: usize = 1024;

/// How long waiting lines may take to be written at the end of the program.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// How often a full queue is tried meanwhile.
const FLUSH_AGAIN: Duration = Duration::from_millis(1);

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for programs
    Json,
}

/// Takes log lines for the writing thread. Cheap to clone.
#[derive(Clone)]
pub(super) struct LogOutput {
    entries: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it was written.
    Flush(SyncSender<()>),
}

impl LogOutput {
    /// Starts the thread, which writes to `target` and ends with the last handle.
    ///
    /// # Errors
    /// The system has no more threads.
    pub(super) fn start(
        target: impl Write + Send + 'static,
        format: LogFormat,
    ) -> io::Result<Self> {
        let (entries, queue) = mpsc::sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&queue, target, format, &counted))?;
        Ok(Self { entries, lost })
    }

    /// Returns when the lines logged so far were written, at the latest after [`FLUSH_WAIT`].
    pub(super) fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        let mut flush = Entry::Flush(done);
        let deadline = instant_now() + FLUSH_WAIT;
        // The queue is full of lines.
        while let Err(TrySendError::Full(again)) = self.entries.try_send(flush) {
            if instant_now() > deadline {
                return;
            }
            flush = again;
            thread::sleep(FLUSH_AGAIN);
        }
        // On a timeout, or after the thread has ended, nobody can be told.
        let _ = written.recv_timeout(FLUSH_WAIT);
    }
}

/// One event of the log arrives as one write. It always succeeds: see L1.
impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogOutput {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write_lines(
    queue: &Receiver<Entry>,
    mut target: impl Write,
    format: LogFormat,
    lost: &AtomicU64,
) {
    for entry in queue {
        let line = match entry {
            Entry::Line(line) => shown_line(line, format),
            Entry::Flush(done) => {
                // Whoever waited may have given up.
                let _ = done.send(());
                continue;
            }
        };
        let missing = lost.swap(0, Ordering::Relaxed);
        let notice = match missing {
            0 => Ok(()),
            _ => target.write_all(missing_notice(missing, format).as_bytes()),
        };
        let written = notice.and_then(|()| target.write_all(&line).and_then(|()| target.flush()));
        if written.is_err() {
            lost.fetch_add(missing + 1, Ordering::Relaxed);
        }
    }
}

/// The line that says how many are missing before it.
fn missing_notice(missing: u64, format: LogFormat) -> String {
    let lines = counted(missing, "log line", "log lines");
    let text = format!("{lines} could not be written");
    match format {
        LogFormat::Text => format!("can-sync: {text}\n"),
        LogFormat::Json => format!("{}\n", serde_json::json!({ "level": "WARN", "message": text })),
    }
}

/// See L3. JSON escapes C0 by itself, and not what turns text around or hides it.
fn shown_line(line: Vec<u8>, format: LogFormat) -> Vec<u8> {
    if format == LogFormat::Text {
        return line;
    }
    let text = String::from_utf8_lossy(&line);
    format!("{}\n", shown_json(text.trim_end_matches('\n'))).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Mutex, MutexGuard};

    use super::*;

    /// Standard error of a test, which may be broken.
    #[derive(Clone, Default)]
    struct Target(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        broken: bool,
        text: String,
    }

    impl Target {
        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }
    }

    impl Write for Target {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.state();
            if state.broken {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.text.push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_could_not_be_written_are_counted_and_the_log_goes_on() {
        let target = Target::default();
        let mut log = LogOutput::start(target.clone(), LogFormat::Text).unwrap();
        for (line, broken) in [("a\n", false), ("b\n", true), ("c\n", true), ("d\n", false)] {
            target.state().broken = broken;
            log.write_all(line.as_bytes()).unwrap();
            LogOutput::flush(&log);
        }
        let expected = "a\ncan-sync: 2 log lines could not be written\nd\n";
        assert_eq!(target.state().text, expected);
    }

    #[test]
    fn a_reader_that_has_stopped_reading_holds_up_nobody() {
        let target = Target::default();
        let mut log = LogOutput::start(target.clone(), LogFormat::Text).unwrap();
        let stuck = target.state();
        for _ in 0..LINES_MAX + 50 {
            log.write_all(b"x\n").unwrap();
        }
        drop(stuck);
        LogOutput::flush(&log);
        log.write_all(b"end\n").unwrap();
        LogOutput::flush(&log);
        let text = target.state().text.clone();
        let written = text.matches("x\n").count();
        // One line more than wait was in the thread's hands.
        assert!((LINES_MAX..=LINES_MAX + 1).contains(&written), "{written}");
        let missing = LINES_MAX + 50 - written;
        assert!(text.contains(&missing_notice(missing as u64, LogFormat::Text)));
    }

    #[test]
    fn every_line_of_json_is_json_and_acts_on_no_terminal() {
        let target = Target::default();
        let mut log = LogOutput::start(target.clone(), LogFormat::Json).unwrap();
        let line = "{\"message\":\"ph\u{202e}one\"}\n";
        for broken in [false, true, false] {
            target.state().broken = broken;
            log.write_all(line.as_bytes()).unwrap();
            LogOutput::flush(&log);
        }
        let text = target.state().text.clone();
        let messages: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line["message"].as_str().unwrap().to_owned())
            .collect();
        let phone = "ph\u{202e}one";
        assert_eq!(messages, [phone, "1 log line could not be written", phone]);
        assert!(!text.contains('\u{202e}'), "{text}");
    }
}
