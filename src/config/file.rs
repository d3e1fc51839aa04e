//! The text of `config.toml`: read with the line of each value, and edited in place.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{Key, Kind, Value, find};
use super::{ConfigError, Given, Layer, Source};
use crate::core::hooks::{HOOKS_MAX, Hook};
use crate::state::home::replace_private;

/// The largest file that is read; one with every key is below 4 KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// What the sections of hooks begin with.
const HOOK: &str = "hook";

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
        let mut entries = self.entries()?;
        let last_end = entries.iter().map(|entry| entry.value_span.end).max();
        let at = entries.iter().position(|entry| entry.name == key.name);
        let entry = at.map(|at| entries.swap_remove(at));
        match (entry, value.map(toml_text)) {
            (Some(entry), Some(value)) => self.0.replace_range(entry.value_span, &value),
            (Some(entry), None) => {
                let start = self.0[..entry.key_span.start].rfind('\n').map_or(0, |at| at + 1);
                let rest = &self.0[entry.value_span.end..];
                let end = rest.find('\n').map_or(self.0.len(), |at| entry.value_span.end + at + 1);
                self.0.replace_range(start..end, "");
            }
            (None, Some(value)) => {
                let at = match (self.has_hooks(), last_end) {
                    (false, _) => self.0.len(),
                    // Behind the first section it would be a key of that.
                    (true, None) => 0,
                    (true, Some(end)) => {
                        self.0[end..].find('\n').map_or(self.0.len(), |at| end + at + 1)
                    }
                };
                let gap = if at > 0 && !self.0[..at].ends_with('\n') { "\n" } else { "" };
                self.0.insert_str(at, &format!("{gap}{} = {value}\n", key.name));
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
            if name == HOOK {
                continue;
            }
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

    /// The hooks: sections `[hook.NAME]`.
    pub(super) fn hooks(&self) -> Result<Vec<Hook>, LineError> {
        let table = DeTable::parse(&self.0).map_err(|error| self.syntax_error(&error))?;
        let Some((key, sections)) = table.get_ref().get_key_value(HOOK) else {
            return Ok(Vec::new());
        };
        let no_section = |line, name: &str| LineError {
            line,
            text: format!("{name}: expected a section [hook.NAME]"),
        };
        let DeValue::Table(sections) = sections.get_ref() else {
            return Err(no_section(self.line(key.span().start), HOOK));
        };
        let mut hooks = Vec::new();
        for (name, section) in sections {
            let line = self.line(name.span().start);
            let at = format!("{HOOK}.{}", name.get_ref());
            let DeValue::Table(section) = section.get_ref() else {
                return Err(no_section(line, &at));
            };
            hooks.push((line, self.hook(name.get_ref(), &at, line, section)?));
        }
        // In the order in which they stand in the file.
        hooks.sort_by_key(|(line, _)| *line);
        if let Some((line, _)) = hooks.get(HOOKS_MAX) {
            let text = format!("{HOOK}: expected at most {HOOKS_MAX} hooks");
            return Err(LineError { line: *line, text });
        }
        Ok(hooks.into_iter().map(|(_, hook)| hook).collect())
    }

    fn hook(
        &self,
        name: &str,
        at: &str,
        line: usize,
        section: &DeTable<'_>,
    ) -> Result<Hook, LineError> {
        let (mut on, mut exec, mut url) = (None, None, None);
        for (key, spanned) in section {
            let wrong = |expected: &str| LineError {
                line: self.line(key.span().start),
                text: format!("{at}.{}: expected {expected}", key.get_ref()),
            };
            match (key.get_ref().as_ref(), value(spanned.get_ref())) {
                ("on", Some(Value::List(texts))) => on = Some(texts),
                ("exec", Some(Value::List(texts))) => exec = Some(texts),
                ("url", Some(Value::Text(text))) => url = Some(text),
                ("on" | "exec", _) => return Err(wrong(Kind::List.expected())),
                ("url", _) => return Err(wrong(Kind::Text.expected())),
                _ => return Err(wrong("on, exec or url")),
            }
        }
        Hook::new(name, on, exec, url).map_err(|(key, text)| {
            let span = section.get_key_value(key).map(|(key, _)| key.span());
            let line = span.map_or(line, |span| self.line(span.start));
            let dot = if key.is_empty() { "" } else { "." };
            LineError { line, text: format!("{at}{dot}{key}: {text}") }
        })
    }

    fn has_hooks(&self) -> bool {
        DeTable::parse(&self.0).is_ok_and(|table| table.get_ref().contains_key(HOOK))
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
