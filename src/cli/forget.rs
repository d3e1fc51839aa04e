//! `forget`: the group's wishes to forget assets.

use clap::Args;

use super::assets::find;
use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;
use crate::api::answers::Done;
use crate::api::forgetting::{ForgetRequest, WishesView};

/// The arguments of `can-sync forget`.
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The asset: its name or hash, or the unique start of either
    #[arg(required_unless_present = "list")]
    asset: Option<String>,
    /// Why, for the people of the group
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["undo", "list"])]
    reason: Option<String>,
    /// Take the wish back
    #[arg(long, conflicts_with_all = ["reason", "list"])]
    undo: bool,
    /// Show all wishes
    #[arg(long, conflicts_with_all = ["asset", "reason"])]
    list: bool,
}

/// `can-sync forget`
pub(crate) async fn forget(
    client: &Client,
    args: ForgetArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let Some(text) = &args.asset else {
        let WishesView { wishes } = client.get(&["v1", "forget"], &[]).await?;
        output.values(&wishes, |wish| format!("{}  {}", wish.hash, shown(&wish.reason)))?;
        return Ok(Exit::Ok);
    };
    let hash = match text.parse() {
        Ok(hash) => hash,
        Err(_) => find(client, text).await?.hash,
    };
    let request = ForgetRequest { hash, reason: args.reason, undo: args.undo };
    let _: Done = client.post(&["v1", "forget"], &request).await?;
    output.note(match args.undo {
        true => "Taken back: the asset is wanted again.",
        false => {
            "All devices see the wish. It can be taken back for 30 days; then each device follows it \
             by its own rule."
        }
    });
    Ok(Exit::Ok)
}
