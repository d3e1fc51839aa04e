//! What the shell offers beside commands and options: devices, folders, tags and hashes of the running
//! agent.
//! The scripts of `completions` ask for them by the hidden command `complete-values`.
//!
//! Q1  Completion is quick and silent: an agent that does not run or does not answer within
//!     [`DEADLINE`] offers nothing.
//! Q2  Only words that every shell takes as they are are offered: names come from other devices.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Command};
use clap_complete::Shell;
use tokio::time::timeout;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;
use crate::api::alerts::AlertsPage;
use crate::config::KEYS;
use crate::folders::status::FoldersPage;
use crate::http::asset::AssetsPage;

/// How long a shell waits for the agent.
const DEADLINE: Duration = Duration::from_millis(400);

/// The most hashes offered; with more, the user types another digit.
const HASHES_MAX: &str = "50";

/// The assets whose tags are offered: the first ones, so that a large store costs no more.
const ASSETS_READ: &str = "1000";

/// The bash code that runs before commands and options are completed.
const BASH: &str = r#"
_can_sync_live() {
    local word
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        COMPREPLY+=("$word")
    done < <("$1" complete-values -- "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -gt 0 ]] || _can__sync "$@"
}
complete -F _can_sync_live -o bashdefault -o default can-sync
"#;

/// The zsh code, at the start of the function that completes commands and options.
const ZSH: &str = r#"
    local word
    local -a offered
    for word in ${(f)"$($words[1] complete-values -- "${(@)words[1,CURRENT]}" 2>/dev/null)"}; do
        offered+=("${word%%$'\t'*}")
    done
    if (( $#offered )); then
        compadd -- $offered
        return
    fi
"#;

/// The fish code. Fish offers these words beside commands and options, and instead of files.
const FISH: &str = r#"
function __can_sync_live
    can-sync complete-values -- (commandline -opc) (commandline -ct) 2>/dev/null
end
complete -c can-sync -a '(__can_sync_live)'
complete -c can-sync -n 'test -n "$(__can_sync_live)"' -f
for option in tag device peer asset
    complete -c can-sync -l $option -x -a '(__can_sync_live)'
end
"#;

/// The script for a shell.
pub(super) fn script(shell: Shell, command: &mut Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "can-sync", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => script + BASH,
        Shell::Fish => script + FISH,
        Shell::Zsh => {
            let head = "_can-sync() {\n";
            script.replacen(head, &format!("{head}{}", ZSH.trim_start_matches('\n')), 1)
        }
        _ => script,
    }
}

/// `can-sync complete-values`: the words that may stand in place of the last of `words`, each with
/// an explanation behind a tab.
pub(super) async fn values(
    command: &Command,
    home: Option<PathBuf>,
    words: Vec<String>,
    output: Output,
) -> Result<Exit, Failure> {
    let Some((typed, before)) = words.split_last() else { return Ok(Exit::Ok) };
    let Some(kind) = kind(command, before.get(1..).unwrap_or_default(), typed) else {
        return Ok(Exit::Ok);
    };
    let home = home_of(before).or(home);
    // An agent that does not answer offers nothing.
    let offered = timeout(DEADLINE, candidates(kind, home, typed)).await;
    let offered = offered.ok().and_then(Result::ok).unwrap_or_default();
    for (word, help) in offered.iter().filter(|(word, _)| word.starts_with(typed.as_str())) {
        output.line(format_args!("{word}\t{help}"))?;
    }
    Ok(Exit::Ok)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device,
    Folder,
    Hash,
    Tag,
    /// A tag behind `+` or `-`.
    TagChange,
    Alert,
    ConfigKey,
}

/// The kind of the word being typed, given the words before it.
fn kind(program: &Command, before: &[String], typed: &str) -> Option<Kind> {
    let (mut command, mut name) = (program, String::new());
    let (mut position, mut option) = (0, None);
    for word in before {
        if option.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            option = takes_value(program, word).or_else(|| takes_value(command, word));
        } else if let Some(found) = command.find_subcommand(word).filter(|_| position == 0) {
            command = found;
            name = format!("{name} {word}").trim_start().to_owned();
        } else {
            position += 1;
        }
    }
    if let Some(option) = option {
        return match option {
            "tag" | "tags" => Some(Kind::Tag),
            "device" | "peer" if name != "up" => Some(Kind::Device),
            "asset" => Some(Kind::Hash),
            _ => None,
        };
    }
    match (name.as_str(), position) {
        ("tag", 1..) => Some(Kind::TagChange),
        _ if typed.starts_with('-') => None,
        ("cat" | "describe" | "forget" | "info" | "restore" | "tag" | "trash" | "why", 0) => {
            Some(Kind::Hash)
        }
        ("evict" | "fetch" | "get" | "safe" | "verify", _) => Some(Kind::Hash),
        ("remove", 0) => Some(Kind::Device),
        ("alerts ack", _) => Some(Kind::Alert),
        ("config set" | "config unset", 0) => Some(Kind::ConfigKey),
        (_, 0) if name.starts_with("folder ") => {
            let takes_folder = |argument: &Arg| argument.get_id() == "folder";
            command.get_positionals().any(takes_folder).then_some(Kind::Folder)
        }
        _ => None,
    }
}

/// The name of an option if the word is that option and a value follows.
fn takes_value<'a>(command: &'a Command, word: &str) -> Option<&'a str> {
    let argument = command.get_arguments().find(|argument| {
        let long = argument.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
        let short = argument.get_short().is_some_and(|short| *word == format!("-{short}"));
        (long || short) && argument.get_action().takes_values()
    });
    argument.map(|argument| argument.get_id().as_str())
}

/// The home that the line names.
fn home_of(words: &[String]) -> Option<PathBuf> {
    let at = words.iter().position(|word| word == "--home");
    let named = at.and_then(|at| words.get(at + 1)).map(String::as_str);
    let named = named.or_else(|| words.iter().find_map(|word| word.strip_prefix("--home=")));
    named.map(PathBuf::from)
}

async fn candidates(
    kind: Kind,
    home: Option<PathBuf>,
    typed: &str,
) -> Result<Vec<(String, String)>, Failure> {
    if kind == Kind::ConfigKey {
        let keys = KEYS.iter().map(|key| (key.name.to_owned(), key.default.to_owned()));
        return Ok(keys.collect());
    }
    let client = Client::connect(home).await?;
    Ok(match kind {
        Kind::Device => {
            let peers = client.status().await?.peers.into_iter();
            let words = peers.map(|peer| match is_plain(&peer.name) {
                true => (peer.name, peer.node_id.to_string()),
                false => (peer.node_id.to_string(), shown(&peer.name)),
            });
            words.collect()
        }
        Kind::Folder => {
            let page: FoldersPage = client.get(&["v1", "folders"], &[]).await?;
            let words = page.folders.into_iter().map(|folder| match is_plain(&folder.name) {
                true => (folder.name, folder.id.to_string()),
                false => (folder.id.to_string(), shown(&folder.name)),
            });
            words.collect()
        }
        Kind::Hash => {
            let mut query = vec![("limit", HASHES_MAX)];
            query.extend((!typed.is_empty()).then_some(("hash", typed)));
            let page: AssetsPage = client.get(&["assets"], &query).await?;
            let assets = page.assets.into_iter();
            assets.map(|asset| (asset.hash.to_string(), shown(&asset.name))).collect()
        }
        Kind::Tag => tags(&client).await?.into_iter().map(|tag| (tag, String::new())).collect(),
        Kind::TagChange => {
            let sign = if typed.starts_with('-') { '-' } else { '+' };
            let tags = tags(&client).await?.into_iter();
            tags.map(|tag| (format!("{sign}{tag}"), String::new())).collect()
        }
        Kind::Alert => {
            let page: AlertsPage = client.get(&["v1", "alerts"], &[]).await?;
            let open = page.alerts.into_iter().filter(|alert| alert.acked_ms.is_none());
            open.filter(|alert| is_plain(&alert.id)).map(|alert| (alert.id, alert.text)).collect()
        }
        Kind::ConfigKey => Vec::new(),
    })
}

async fn tags(client: &Client) -> Result<BTreeSet<String>, Failure> {
    let page: AssetsPage = client.get(&["assets"], &[("limit", ASSETS_READ)]).await?;
    let tags = page.assets.into_iter().flat_map(|asset| asset.tags);
    Ok(tags.filter(|tag| is_plain(tag)).collect())
}

/// Whether every shell takes the text as one word.
fn is_plain(text: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.@".contains(c);
    text.starts_with(char::is_alphanumeric) && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn kind_of(line: &str) -> Option<Kind> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let (typed, before) = words.split_last()?;
        kind(&Cli::command(), before, typed)
    }

    #[test]
    fn each_place_of_a_line_offers_its_kind() {
        for (line, expected) in [
            ("cat ", Some(Kind::Hash)),
            ("--home /x --json cat ab", Some(Kind::Hash)),
            ("get -o /x ", Some(Kind::Hash)),
            ("get ab ", Some(Kind::Hash)),
            ("get -", None),
            ("fetch ab --timeout 5s cd", Some(Kind::Hash)),
            ("tag ab ", Some(Kind::TagChange)),
            ("tag ab -", Some(Kind::TagChange)),
            ("add --tag ", Some(Kind::Tag)),
            ("ls --tag", None),
            ("log --device ", Some(Kind::Device)),
            ("log --asset ", Some(Kind::Hash)),
            ("wait --peer ", Some(Kind::Device)),
            ("up --peer ", None),
            ("remove ", Some(Kind::Device)),
            ("folder remove ", Some(Kind::Folder)),
            ("folder add ", None),
            ("folder undo photos --device ", Some(Kind::Device)),
            ("alerts ack ", Some(Kind::Alert)),
            ("config set ", Some(Kind::ConfigKey)),
            ("config set peer ", None),
            ("", None),
        ] {
            assert_eq!(kind_of(line), expected, "{line:?}");
        }
    }

    #[test]
    fn every_argument_that_is_a_hash_or_a_device_is_completed() {
        let command = Cli::command();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            for argument in sub.get_arguments().filter(|argument| argument.is_positional()) {
                let expected = match argument.get_id().as_str() {
                    "asset" | "assets" | "hashes" => Kind::Hash,
                    "device" => Kind::Device,
                    _ => continue,
                };
                let line = format!("{} ", sub.get_name());
                assert_eq!(kind_of(&line), Some(expected), "{line}");
            }
        }
    }
}
