//! The configuration of `up`: what can be set, where each value comes from, and what of it may
//! change while the agent runs.
//!
//! C1  A value comes from the first of these that has it: the command line, the environment, the
//!     file, the default. Each shows where it came from.
//! C2  A configuration is taken as a whole or not at all: one that cannot be used is an error that
//!     names the place, the key and what was expected, and changes nothing.
//! C3  The file is edited in place: what a person wrote around a changed value stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

mod file;
mod keys;

pub use keys::{KEYS, Key, Kind, Settings, Value, check};

use file::Text;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An option of the command line.
    Flag,
    /// An environment variable.
    Variable,
    /// This line of the file.
    File(usize),
    /// Nobody set it.
    Default,
}

/// A value as somebody set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The value.
    pub value: Value,
    /// Who set it.
    pub source: Source,
}

/// The values that one source sets, by key.
pub type Layer = BTreeMap<&'static str, Given>;

/// Why a configuration cannot be used; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A value or a text makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The command line or the environment sets the key, so a change of the file has no effect.
    #[error("{0}")]
    Overridden(String),
    /// The file cannot be read or written.
    #[error("{0}")]
    File(String),
}

/// The configuration of an agent: its sources, and the values that result.
#[derive(Debug, Clone)]
pub struct Configuration {
    path: PathBuf,
    above: [Layer; 2],
    given: Layer,
    settings: Settings,
}

impl Configuration {
    /// Reads the environment and the file at `path`, which may be missing. `flags` is what the
    /// command line says.
    ///
    /// # Errors
    /// A value makes no sense, or the file cannot be read.
    pub fn load(
        path: PathBuf,
        flags: Layer,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Self, ConfigError> {
        let above = [flags, variables(variable)?];
        let file = Text::read(&path)?;
        Self::from_file(path, above, &file)
    }

    fn from_file(path: PathBuf, above: [Layer; 2], file: &Text) -> Result<Self, ConfigError> {
        let mut given = file.layer().map_err(|error| ConfigError::Invalid(error.at(&path)))?;
        // The command line is above the environment.
        for layer in above.iter().rev() {
            given.extend(layer.iter().map(|(key, value)| (*key, value.clone())));
        }
        let hooks = file.hooks().map_err(|error| ConfigError::Invalid(error.at(&path)))?;
        let mut settings = Settings { hooks, ..Settings::default() };
        let folder = path.parent().unwrap_or(Path::new("/"));
        for (key, Given { value, source }) in &given {
            let place = place_name(key, *source, &path);
            settings
                .set(key, value, folder)
                .map_err(|wrong| ConfigError::Invalid(format!("{place}: {wrong}")))?;
        }
        settings.check_together().map_err(ConfigError::Invalid)?;
        Ok(Self { path, above, given, settings })
    }

    /// The values.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The file that it is read from, whether or not there is one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key as somebody set it; `None` when nobody did.
    pub fn given(&self, key: &str) -> Option<&Given> {
        self.given.get(key)
    }

    /// Reads the file anew.
    ///
    /// # Errors
    /// See [`Self::load`]; this configuration stays as it is.
    pub fn reloaded(&self) -> Result<Self, ConfigError> {
        Self::from_file(self.path.clone(), self.above.clone(), &Text::read(&self.path)?)
    }

    /// Writes these values into the file; `None` takes one out of it. Returns the configuration
    /// that results.
    ///
    /// # Errors
    /// A value makes no sense, something above the file sets the key, or the file cannot be
    /// written. Nothing has changed then.
    pub fn change(&self, changes: &BTreeMap<String, Option<Value>>) -> Result<Self, ConfigError> {
        let mut file = Text::read(&self.path)?;
        for (name, value) in changes {
            let key = keys::find(name).map_err(ConfigError::Invalid)?;
            if let Some(source) = self.above.iter().find_map(|layer| layer.get(key.name)) {
                let text = format!(
                    "{} was given as {} when the agent started, which goes before the file: start \
                     it without",
                    key.name,
                    place_name(key.name, source.source, &self.path)
                );
                return Err(ConfigError::Overridden(text));
            }
            file.set(key, value.as_ref())
                .map_err(|error| ConfigError::Invalid(error.at(&self.path)))?;
        }
        let changed = Self::from_file(self.path.clone(), self.above.clone(), &file)?;
        file.write(&self.path)?;
        Ok(changed)
    }
}

/// Names the place of a value, for messages.
fn place_name(key: &str, source: Source, path: &Path) -> String {
    match source {
        Source::Flag => keys::flag(key),
        Source::Variable => keys::variable(key),
        Source::File(line) => format!("{} line {line}, {key}", path.display()),
        Source::Default => key.to_owned(),
    }
}

/// What the environment says.
fn variables(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for key in KEYS {
        let name = keys::variable(key.name);
        // An empty variable counts as unset, as for the other variables of a shell.
        let Some(text) = variable(&name).filter(|text| !text.is_empty()) else { continue };
        let text = text.into_string().map_err(|text| {
            ConfigError::Invalid(format!("{name}: expected UTF-8, got {}", text.display()))
        })?;
        let value =
            key.read(&text).map_err(|wrong| ConfigError::Invalid(format!("{name}: {wrong}")))?;
        layer.insert(key.name, Given { value, source: Source::Variable });
    }
    Ok(layer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsString;
    use std::fs;

    use super::*;

    fn load(text: &str, flags: Layer, set: &[(&str, &str)]) -> Result<Configuration, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let variable =
            |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Configuration::load(path, flags, variable)
    }

    fn refused(text: &str) -> String {
        load(text, Layer::new(), &[]).unwrap_err().to_string()
    }

    fn flag(key: &'static str, value: &str) -> Layer {
        let value = keys::find(key).unwrap().read(value).unwrap();
        Layer::from([(key, Given { value, source: Source::Flag })])
    }

    #[test]
    fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
        let file = "relay = \"off\"\n\nbwlimit = \"1M\"\n";
        let config = load(file, Layer::new(), &[]).unwrap();
        assert_eq!(config.given("bwlimit").unwrap().source, Source::File(3));
        assert_eq!(config.given("offline"), None);
        let config = load(file, Layer::new(), &[("CAN_SYNC_BWLIMIT", "2M")]).unwrap();
        assert_eq!(config.given("bwlimit").unwrap().source, Source::Variable);
        assert_eq!(config.settings().bwlimit, Some("2M".parse().unwrap()));
        let config = load(file, flag("bwlimit", "3M"), &[("CAN_SYNC_BWLIMIT", "2M")]).unwrap();
        assert_eq!(config.given("bwlimit").unwrap().source, Source::Flag);
        assert_eq!(config.settings().bwlimit, Some("3M".parse().unwrap()));
        let config = load("offline = true\n", flag("offline", "false"), &[]).unwrap();
        assert!(!config.settings().offline);
    }

    #[test]
    fn a_file_that_cannot_be_used_names_the_line_the_key_and_what_was_expected() {
        for (text, parts) in [
            ("\nbwlimit = \"10X\"\n", ["config.toml line 2", "bwlimit", "expected off"]),
            ("bwlimit = 10\n", ["line 1", "bwlimit", "expected a text in quotes"]),
            ("\n\nbwlimit = 10M\n", ["line 3", "bwlimit", "in quotes"]),
            ("offline = \"yes\"\n", ["line 1", "offline", "expected true or false"]),
            ("peer = \"nas:1\"\n", ["line 1", "peer", "expected a list"]),
            ("peer = [\"nas\"]\n", ["line 1", "peer", "expected host:port"]),
            ("listen = \"0.0.0.0:1\"\n", ["line 1", "listen", "loopback"]),
            ("relay = \"off\"\nrelay = \"off\"\n", ["line 2", "relay", "duplicate"]),
            ("[alerts]\nx = 1\n", ["line 1", "alerts", "unknown key"]),
            ("alert_away = \"7 days\"\n", ["line 1", "alert_away", "such as 12h or 7d"]),
            ("alert_free_space = \"much\"\n", ["line 1", "alert_free_space", "such as 10G"]),
            ("hook = 1\n", ["line 1", "hook", "a section [hook.NAME]"]),
            ("[hook]\non = [\"alert\"]\n", ["line 2", "hook.on", "a section [hook.NAME]"]),
            ("\n[hook.a]\non = [\"alert\"]\n", ["line 2", "hook.a", "either exec or url"]),
            ("[hook.a]\non = \"alert\"\n", ["line 2", "hook.a.on", "expected a list"]),
            ("[hook.a]\nexec = [\"x\"]\n", ["line 1", "hook.a.on", "device-lost"]),
            ("[hook.a]\nrun = [\"x\"]\n", ["line 2", "hook.a.run", "expected on, exec or url"]),
            ("bw_limit = \"1M\"\n", ["line 1", "bw_limit", "did you mean bwlimit?"]),
            ("store-key-file = \"x\"\n", ["line 1", "store-key-file", "mean store_key_file?"]),
            ("store = \"http://127.0.0.1:1\"\n", ["store", "needs", "store_key_file"]),
        ] {
            let said = refused(text);
            assert!(parts.iter().all(|part| said.contains(part)), "{text:?}: {said}");
        }
    }

    #[test]
    fn hooks_are_sections_and_a_setting_that_is_added_stays_before_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let hook = "\n# tell me\n[hook.tell]\non = [\"alert\"]\nexec = [\"/bin/tell\", \"me\"]\n";
        let web = "[hook.web]\non = [\"device-lost\"]\nurl = \"https://example.org/x\"\n";
        for (before, after) in [
            ("", "bwlimit = \"1M\"\n"),
            ("relay = \"off\"\n", "relay = \"off\"\nbwlimit = \"1M\"\n"),
            ("peer = [\n  \"nas:1\",\n]\n", "peer = [\n  \"nas:1\",\n]\nbwlimit = \"1M\"\n"),
        ] {
            fs::write(&path, format!("{before}{hook}{web}")).unwrap();
            let config = Configuration::load(path.clone(), Layer::new(), |_| None).unwrap();
            let names: Vec<_> = config.settings().hooks.iter().map(|hook| &hook.name).collect();
            assert_eq!(names, ["tell", "web"]);
            let limit = Some(Value::Text("1M".into()));
            let changed = config.change(&BTreeMap::from([("bwlimit".into(), limit)])).unwrap();
            assert_eq!(changed.settings().hooks, config.settings().hooks);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{after}{hook}{web}"));
            changed.change(&BTreeMap::from([("bwlimit".into(), None)])).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{before}{hook}{web}"));
        }
    }

    #[test]
    fn a_variable_that_makes_no_sense_is_named() {
        let said = load("", Layer::new(), &[("CAN_SYNC_OFFLINE", "maybe")]).unwrap_err();
        assert_eq!(said.to_string(), "CAN_SYNC_OFFLINE: expected true or false, got \"maybe\"");
        let config =
            load("", Layer::new(), &[("CAN_SYNC_PEER", "a:1, b:2"), ("CAN_SYNC_BWLIMIT", "")]);
        let config = config.unwrap();
        assert_eq!(config.settings().peers.len(), 2);
        assert_eq!(config.given("bwlimit"), None);
    }

    #[test]
    fn a_change_edits_its_value_alone_and_what_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let text = "# mine\nbwlimit = \"1M\" # at night\nrelay = \"off\"";
        fs::write(&path, text).unwrap();
        let config = Configuration::load(path.clone(), flag("offline", "true"), |_| None).unwrap();
        let change = |key: &str, value: Option<Value>| {
            config.reloaded().unwrap().change(&BTreeMap::from([(key.to_owned(), value)]))
        };
        let text_of = |text: &str| Some(Value::Text(text.to_owned()));
        assert!(change("bwlimit", text_of("1Z")).is_err());
        assert!(matches!(
            change("offline", Some(Value::Switch(false))),
            Err(ConfigError::Overridden(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "nothing has changed");
        let changed = change("bwlimit", text_of("2M")).unwrap();
        assert_eq!(changed.settings().bwlimit, Some("2M".parse().unwrap()));
        change("peer", Some(Value::List(vec!["nas:1".into()]))).unwrap();
        let expected = "# mine\nbwlimit = \"2M\" # at night\nrelay = \"off\"\npeer = [\"nas:1\"]\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        change("bwlimit", None).unwrap();
        assert_eq!(change("bwlimit", None).unwrap().given("bwlimit"), None);
        let expected = "# mine\nrelay = \"off\"\npeer = [\"nas:1\"]\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        let said = Configuration::load(path, Layer::new(), |_| None).unwrap_err().to_string();
        assert!(said.contains("chmod go-w"), "{said}");
    }
}
