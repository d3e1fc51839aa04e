//! `hooks`: shows how the hooks of `config.toml` do, and tries one.

use clap::Subcommand;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;
use super::time::utc;
use crate::alerts::hooks::{HookSecretReply, HookTestReply, HookView};
use crate::api::hooks::HooksPage;
use crate::api::requests::NoArguments;
use crate::core::hooks::Target;

#[derive(Debug, Subcommand)]
pub(crate) enum HooksCommand {
    /// Call a hook now, with an event of the type `test`
    Test {
        /// The hook's name, as in `[hook.NAME]`
        hook: String,
    },
    /// Print the secret with which the receiver of a hook checks the signature of its requests
    Secret {
        /// The hook's name, as in `[hook.NAME]`
        hook: String,
    },
}

/// `can-sync hooks`
pub(crate) async fn hooks(
    client: &Client,
    command: Option<HooksCommand>,
    output: Output,
) -> Result<Exit, Failure> {
    match command {
        None => {
            let page: HooksPage = client.get(&["v1", "hooks"], &[]).await?;
            if page.hooks.is_empty() {
                output.note("config.toml has no hooks: a section [hook.NAME] makes one.");
            }
            output.values(&page.hooks, line)?;
        }
        Some(HooksCommand::Test { hook }) => {
            let path = ["v1", "hooks", &hook, "test"];
            let reply: HookTestReply = client.post(&path, &NoArguments {}).await?;
            if output.json {
                output.json(&reply)?;
            }
            match reply.error {
                Some(error) => return Err(Failure::new(Exit::Error, error)),
                None => output.note(format_args!("{} was called, and succeeded.", shown(&hook))),
            }
        }
        Some(HooksCommand::Secret { hook }) => {
            let reply: HookSecretReply = client.get(&["v1", "hooks", &hook, "secret"], &[]).await?;
            output.value(&reply, |reply| reply.secret.clone())?;
        }
    }
    Ok(Exit::Ok)
}

fn line(hook: &HookView) -> String {
    let target = match &hook.target {
        Target::Exec(words) => words.join(" "),
        Target::Url(url) => url.clone(),
    };
    let mut text = format!(
        "{}  on {}  {}  {} delivered",
        shown(&hook.name),
        hook.on.join(", "),
        shown(&target),
        hook.delivered
    );
    if hook.given_up > 0 {
        text += &format!(", {} given up", hook.given_up);
    }
    if let (Some(since_ms), Some(error)) = (hook.failing_since_ms, &hook.last_error) {
        text += &format!("\n  fails since {}: {}", utc(since_ms), shown(error));
    }
    text
}
