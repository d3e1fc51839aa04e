//! `open`: signs a browser in to the page of the running agent.
//!
//! The link is a secret until it is used, and other users of the machine can read the arguments of a
//! process. So a browser is started with the name of a private file that leads to the link.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use crate::api::page::{EndedSessions, PageLink};
use crate::api::requests::NoArguments;
use crate::state::home::replace_private;

/// How long the starter of a browser is waited for; some stay until the browser ends.
const START_WAIT: Duration = Duration::from_secs(2);

/// The private file, in the agent's home.
const LINK_FILE: &str = "open.html";

/// The arguments of `can-sync open`.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Sign every browser out instead
    #[arg(long)]
    revoke: bool,
    /// Print the link and start no browser
    #[arg(long, conflicts_with = "revoke")]
    no_browser: bool,
}

/// `can-sync open`
pub(crate) async fn open(client: &Client, args: OpenArgs, output: Output) -> Result<Exit, Failure> {
    if args.revoke {
        let ended: EndedSessions = client.post(&["v1", "page", "revoke"], &NoArguments {}).await?;
        output.value(&ended, |ended| format!("browsers signed out: {}", ended.sessions))?;
        return Ok(Exit::Ok);
    }
    let link: PageLink = client.post(&["v1", "page", "link"], &NoArguments {}).await?;
    output.value(&link, |link| link.url.clone())?;
    if let Some(network) = &link.network {
        output.note(format!(
            "For a device of the network, in place of the link above: {}\nIts browser warns of a \
             certificate that nobody has signed; go on when its SHA-256 fingerprint is\n{}",
            network.url, network.fingerprint
        ));
    }
    let is_watched = !output.json && std::io::stderr().is_terminal();
    let starter = browser_starter().filter(|_| is_watched && !args.no_browser);
    let has_started = match starter {
        Some(starter) => start(starter, client.home().state_dir(), &link.url).await,
        None => false,
    };
    output.note(match has_started {
        true => "A browser opens the page. If none does: open the link above.",
        false => "Open this link in a browser on this machine. It is good once, for two minutes.",
    });
    Ok(Exit::Ok)
}

/// The program that opens a file in the user's browser, where there is a desktop.
fn browser_starter() -> Option<OsString> {
    if cfg!(target_os = "macos") {
        return Some("open".into());
    }
    let has_desktop = ["WAYLAND_DISPLAY", "DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    has_desktop.then(|| "xdg-open".into())
}

/// Returns whether the starter did not fail.
async fn start(starter: OsString, home: &Path, url: &str) -> bool {
    let Ok(file) = write_link(home, url) else { return false };
    let mut command = Command::new(starter);
    command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match timeout(START_WAIT, spawn_blocking(move || command.status())).await {
        Ok(Ok(ended)) => ended.is_ok_and(|status| status.success()),
        Ok(Err(_)) => false,
        Err(_) => true,
    }
}

fn write_link(home: &Path, url: &str) -> anyhow::Result<PathBuf> {
    let file = home.join(LINK_FILE);
    let page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>can-sync</title>\
         <meta http-equiv=\"refresh\" content=\"0;url={url}\"><a href=\"{url}\">Open the page</a>\n"
    );
    replace_private(&file, page.as_bytes())?;
    Ok(file)
}
