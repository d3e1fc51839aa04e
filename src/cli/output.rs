//! The one place that prints. Data goes to standard output, prose and progress to standard error.
//!
//! O1  If the reader of the output is gone (`| head`), the command ends quietly:
//!     [`Failure::OutputClosed`].
//! O2  Nothing here panics when a stream is closed or full.
//! O3  Progress shows on a terminal only.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::exit::Failure;
use super::text::{escaped, shown_json};

/// A message may name several paths and hashes.
const ERROR_CHARS_MAX: usize = 4000;

/// Redraws a second; more is flicker.
const PROGRESS_HZ: u8 = 8;

/// Clears a terminal and puts the cursor at its start.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// How a command speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Data as JSON, one value a line.
    pub(crate) json: bool,
    /// No prose and no progress.
    pub(crate) quiet: bool,
}

impl Output {
    /// A line of data.
    pub(crate) fn line(self, line: impl Display) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Prints a value as a line of JSON.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        self.line(json_line(value)?)
    }

    /// Prints a value: as JSON with `--json`, otherwise as the text that `text` makes of it.
    pub(crate) fn value<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json { self.json(value) } else { self.line(text(value)) }
    }

    /// Prints values like [`Self::value`], all in one write.
    pub(crate) fn values<T: Serialize>(
        self,
        values: &[T],
        text: impl Fn(&T) -> String,
    ) -> Result<(), Failure> {
        let mut lines = String::new();
        for value in values {
            lines += &if self.json { json_line(value)? } else { text(value) };
            lines.push('\n');
        }
        self.bytes(lines.as_bytes())
    }

    /// Data as it is.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => anyhow::Error::new(error).context("writing to standard output").into(),
        })
    }

    /// Prints a picture of the status. On a terminal it replaces the previous one, elsewhere it
    /// follows below.
    pub(crate) fn picture(self, text: &str) -> Result<(), Failure> {
        let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
        self.bytes(format!("{clear}{text}\n").as_bytes())
    }

    /// Prints prose to standard error: what happened, what to do next.
    pub(crate) fn note(self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Prints an error, also with `--quiet`.
    pub(crate) fn error(self, text: impl Display) {
        let _ = writeln!(io::stderr(), "can-sync: {}", escaped(&text.to_string(), ERROR_CHARS_MAX));
    }

    /// A progress bar over `total_bytes`, with rate and remaining time. Invisible unless standard
    /// error is a terminal.
    pub(crate) fn progress(self, total_bytes: u64) -> ProgressBar {
        if self.quiet || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(
            "{bar:30} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
        )
        .expect("the template is a constant");
        let target = ProgressDrawTarget::stderr_with_hz(PROGRESS_HZ);
        ProgressBar::with_draw_target(Some(total_bytes), target).with_style(style)
    }
}

/// Prints the results of a command that has effects. The command goes on when its reader has gone,
/// so that the exit status is that of the effects.
pub(crate) struct Results {
    output: Output,
    is_read: bool,
}

impl Results {
    pub(crate) fn new(output: Output) -> Self {
        Self { output, is_read: true }
    }

    /// Like [`Output::value`], while there is a reader.
    pub(crate) fn value<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if !self.is_read {
            return Ok(());
        }
        match self.output.value(value, text) {
            Err(Failure::OutputClosed) => {
                self.is_read = false;
                Ok(())
            }
            printed => printed,
        }
    }
}

fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let json = serde_json::to_string(value).context("writing an answer as JSON")?;
    Ok(shown_json(&json))
}
