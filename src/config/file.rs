//! The text of `config.toml`: read with the line of each value, and edited in place.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{Key, Value, find};
use super::{ConfigError, Given, Layer, Source};
use crate::state::home::replace_private;

/// The largest file that is read; one with every key is below 4 KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The permission bits of other users that must not be set, because the file controls the agent.
const OTHERS_WRITE: u32 = 0o022;

/// The file's text.
#[derive(Debug)]
pub(super) struct Text(String);

/// What is wrong with a line.
#[derive(Debug)]
pub(super) struct LineError {
    line: usize,
    text: String,
}

/// A key in the text, with its value.
struct Entry {
    name: String,
    value: Value,
    key_span: Range<usize>,
    value_span: Range<usize>,
}

impl LineError {
    /// For people, with the file's path.
    pub(super) fn at(&self, path: &Path) -> String {
        format!("{} line {}, {}", path.display(), self.line, self.text)
    }
}

impl Text {
    /// Reads the file. A missing one is empty.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |error| ConfigError::File(format!("reading {}: {error}", path.display()));
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self(String::new())),
            opened => opened.map_err(failed)?,
        };
        let found = file.metadata().map_err(failed)?;
        let refused = |text: &str| Err(ConfigError::File(format!("{} {text}", path.display())));
        if !found.is_file() {
            return refused("is not a file: move it out of the way");
        }
        if found.mode() & OTHERS_WRITE != 0 {
            let text = format!(
                "can be written by others, who could tell the agent what to do: check what is in \
                 it, then run `chmod go-w '{}'`",
                path.display()
            );
            return refused(&text);
        }
        let us = rustix::process::geteuid().as_raw();
        if found.uid() != us && found.uid() != 0 {
            return refused(&format!(
                "belongs to user {}, expected user {us} or root",
                found.uid()
            ));
        }
        if found.len() > FILE_BYTES_MAX {
            return refused("is larger than 256 KiB, which no configuration is");
        }
        let mut text = String::new();
        (&mut file).take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Ok(Self(text))
    }

    /// The values that it sets.
    pub(super) fn layer(&self) -> Result<Layer, LineError> {
        let mut layer = Layer::new();
        for entry in self.entries()? {
            let line = self.line(entry.key_span.start);
            let name = &entry.name;
            let key = find(name).map_err(|text| LineError { line, text })?;
            layer.insert(key.name, Given { value: entry.value, source: Source::File(line) });
        }
        Ok(layer)
    }

    /// Sets the value of a key; `None` takes the key out.
    pub(super) fn set(&mut self, key: &Key, value: Option<&Value>) -> Result<(), LineError> {
        let entry = self.entries()?.into_iter().find(|entry| entry.name == key.name);
        match (entry, value.map(toml_text)) {
            (Some(entry), Some(value)) => self.0.replace_range(entry.value_span, &value),
            (Some(entry), None) => {
                let start = self.0[..entry.key_span.start].rfind('\n').map_or(0, |at| at + 1);
                let rest = &self.0[entry.value_span.end..];
                let end = rest.find('\n').map_or(self.0.len(), |at| entry.value_span.end + at + 1);
                self.0.replace_range(start..end, "");
            }
            (None, Some(value)) => {
                if !self.0.is_empty() && !self.0.ends_with('\n') {
                    self.0.push('\n');
                }
                self.0 += &format!("{} = {value}\n", key.name);
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Writes the text to the file at `path`, or to the file that a link at `path` leads to.
    pub(super) fn write(&self, path: &Path) -> Result<(), ConfigError> {
        let failed = |error: &dyn std::fmt::Display| {
            ConfigError::File(format!("writing {}: {error}", path.display()))
        };
        let target: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Some(folder) = target.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|error| failed(&error))?;
        }
        replace_private(&target, self.0.as_bytes()).map_err(|error| failed(&format!("{error:#}")))
    }

    fn entries(&self) -> Result<Vec<Entry>, LineError> {
        let table = DeTable::parse(&self.0).map_err(|error| self.syntax_error(&error))?;
        let mut entries = Vec::new();
        for (key, spanned) in table.get_ref() {
            let name = key.get_ref().to_string();
            let line = self.line(key.span().start);
            let expected = match find(&name) {
                Ok(key) => key.kind.expected(),
                Err(text) => return Err(LineError { line, text }),
            };
            let value = value(spanned.get_ref()).ok_or_else(|| {
                let text = format!("{name}: expected {expected}");
                LineError { line, text }
            })?;
            entries.push(Entry { name, value, key_span: key.span(), value_span: spanned.span() });
        }
        Ok(entries)
    }

    fn syntax_error(&self, error: &toml::de::Error) -> LineError {
        let at = error.span().map_or(0, |span| span.start.min(self.0.len()));
        let line = self.line(at);
        let written = self.0.lines().nth(line - 1).unwrap_or_default();
        let text = match written.split_once('=') {
            None => format!("{}: expected a line such as bwlimit = \"10M\"", error.message()),
            Some((key, _)) => {
                let (key, message) = (key.trim(), error.message());
                let expected = find(key).map(|key| key.kind.expected()).unwrap_or("a key = value");
                format!("{key}: {message}; expected {expected}")
            }
        };
        LineError { line, text }
    }

    /// The number of the line at a byte, from 1.
    fn line(&self, at: usize) -> usize {
        self.0.as_bytes()[..at.min(self.0.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

fn value(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::Text(text.to_string())),
        DeValue::Boolean(is_on) => Some(Value::Switch(*is_on)),
        DeValue::Array(values) => {
            let texts = values.iter().map(|value| value.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<_>>().map(Value::List)
        }
        _ => None,
    }
}

fn toml_text(value: &Value) -> String {
    match value {
        Value::Switch(is_on) => is_on.to_string(),
        Value::Text(text) => toml::Value::String(text.clone()).to_string(),
        Value::List(texts) => {
            toml::Value::Array(texts.iter().cloned().map(toml::Value::String).collect()).to_string()
        }
    }
}
