//! `config`: shows, checks and changes the configuration, by way of the running agent if there is
//! one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{causes, shown};
use crate::api::config::{ConfigReply, SettingView, SourceName};
use crate::config::{ConfigError, Configuration, KEYS, Layer, Value};
use crate::state::home::Home;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show each value, and where it comes from
    Show,
    /// Check the file and the environment
    Check,
    /// Set a value in the file; what can change while the agent runs does so at once
    Set {
        /// The key, as `config show` names it
        key: String,
        /// The value; several for a list
        #[arg(required = true, allow_hyphen_values = true)]
        values: Vec<String>,
    },
    /// Take a value out of the file
    Unset {
        /// The key, as `config show` names it
        key: String,
    },
}

/// `can-sync config`
pub(crate) async fn config(
    home: Option<PathBuf>,
    command: ConfigCommand,
    output: Output,
) -> Result<Exit, Failure> {
    let change = match command {
        ConfigCommand::Show => {
            let view = match agent(home.clone()).await? {
                Some(client) => client.get(&["v1", "config"], &[]).await?,
                None => {
                    output.note("No agent runs: this is what one would be started with.");
                    let config = load(home.clone(), Layer::new())?;
                    ConfigReply::of(&config, &config)
                }
            };
            output.note(format_args!("File: {}", shown(&view.file.to_string_lossy())));
            // A running agent keeps its values when the file becomes unusable.
            if let Err(Failure::Report(_, error)) = load(home, Layer::new()) {
                output.error(format_args!("the file is not in use: {}", causes(&error)));
            }
            if output.json {
                output.json(&view)?;
            } else {
                output.values(&view.settings, setting_text)?;
            }
            return Ok(Exit::Ok);
        }
        ConfigCommand::Check => {
            let config = load(home, Layer::new())?;
            let path = config.path().display().to_string();
            output.note(match config.path().exists() {
                true => format!("{path} is fine."),
                false => format!("There is no {path}: the defaults hold."),
            });
            return Ok(Exit::Ok);
        }
        ConfigCommand::Set { key, values } => (key.clone(), Some(value(&key, values)?)),
        ConfigCommand::Unset { key } => (key, None),
    };
    let (key, changes) = (change.0.clone(), BTreeMap::from([change]));
    let view: ConfigReply = match agent(home.clone()).await? {
        Some(client) => client.patch(&["v1", "config"], &changes).await?,
        None => {
            if home.is_some() {
                // The file may be the first in its home. The home is created here, so that it is
                // private.
                Home::open(home.clone())?;
            }
            let changed = load(home, Layer::new())?.change(&changes).map_err(refused)?;
            ConfigReply::of(&changed, &changed)
        }
    };
    let Some(setting) = view.settings.into_iter().find(|setting| setting.key == key) else {
        return Ok(Exit::Ok);
    };
    if setting.waits_for_restart {
        output.note(format_args!("{key} takes effect when the agent is started again."));
    }
    output.value(&setting, setting_text)?;
    Ok(Exit::Ok)
}

/// The running agent, if one runs.
async fn agent(home: Option<PathBuf>) -> Result<Option<Client>, Failure> {
    match Client::connect(home).await {
        Err(Failure::Report(Exit::NotRunning, _)) => Ok(None),
        connected => connected.map(Some),
    }
}

/// Loads the configuration of this home from the environment, the file and these options.
pub(super) fn load(home: Option<PathBuf>, flags: Layer) -> Result<Configuration, Failure> {
    let path = Home::config_path(home)?;
    Configuration::load(path, flags, |name| std::env::var_os(name)).map_err(refused)
}

fn refused(error: ConfigError) -> Failure {
    let exit = match error {
        ConfigError::Invalid(_) => Exit::Usage,
        ConfigError::Overridden(_) => Exit::Refused,
        ConfigError::File(_) => Exit::Error,
    };
    Failure::new(exit, error)
}

/// Parses words of the command line as the value of a key.
fn value(key: &str, mut words: Vec<String>) -> Result<Value, Failure> {
    // An unknown key is refused with a suggestion where the change is made.
    let Some(known) = KEYS.iter().find(|known| known.name == key) else {
        return Ok(Value::List(words));
    };
    let text = if words.len() == 1 { words.remove(0) } else { words.join(" ") };
    known.read(&text).map_err(|wrong| Failure::new(Exit::Usage, format!("{key}: {wrong}")))
}

fn setting_text(setting: &SettingView) -> String {
    let source = match (setting.source, setting.line) {
        (SourceName::File, Some(line)) => format!("file, line {line}"),
        (SourceName::File, None) => "file".into(),
        (SourceName::Flag, _) => "command line".into(),
        (SourceName::Variable, _) => "environment".into(),
        (SourceName::Default, _) => "default".into(),
    };
    let waits =
        if setting.waits_for_restart { "; the file has another, for the next start" } else { "" };
    format!("{:<19} {}  ({source}{waits})", setting.key, shown(&setting.text))
}
