//! `tag`, `describe`, `trash`, `restore`: what people say about an asset, for all devices.

use clap::Args;

use super::assets::{find, find_trashed, line};
use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use crate::api::answers::Written;
use crate::core::ids::Hash;
use crate::http::asset::{AssetEdit, AssetRow};

/// The arguments of `can-sync tag`.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The asset: its name or hash, or the unique start of either
    asset: String,
    /// `+TAG` puts a tag on, `-TAG` takes it off. Options go before the asset; after `--` comes what
    /// looks like one, such as the tag q: `-- -q`
    #[arg(required = true, allow_hyphen_values = true, value_name = "+TAG|-TAG")]
    changes: Vec<String>,
}

/// `can-sync tag`
pub(crate) async fn tag(client: &Client, args: TagArgs, output: Output) -> Result<Exit, Failure> {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for change in &args.changes {
        match change.split_at_checked(1) {
            Some(("-", rest)) if is_option(rest) => {
                let message = format!("{change} comes after the asset: put options before it");
                return Err(Failure::new(Exit::Usage, message));
            }
            Some(("+", tag)) if !tag.is_empty() => add.push(tag.to_owned()),
            Some(("-", tag)) if !tag.is_empty() => remove.push(tag.to_owned()),
            _ => {
                let message = format!("expected +TAG or -TAG, got {change:?}");
                return Err(Failure::new(Exit::Usage, message));
            }
        }
    }
    let change = AssetEdit { add, remove, ..AssetEdit::default() };
    edit(client, find(client, &args.asset).await?.hash, &change, output).await
}

/// Whether this, after a hyphen, is one of the options that every command takes.
fn is_option(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default();
    ["-json", "-quiet", "-verbose", "-home", "-help"].contains(&name)
}

/// `can-sync describe`
pub(crate) async fn describe(
    client: &Client,
    asset: &str,
    text: &str,
    output: Output,
) -> Result<Exit, Failure> {
    let change = AssetEdit { description: Some(text.to_owned()), ..AssetEdit::default() };
    edit(client, find(client, asset).await?.hash, &change, output).await
}

/// `can-sync trash` and `can-sync restore`
pub(crate) async fn trash(
    client: &Client,
    asset: &str,
    trashed: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let change = AssetEdit { trashed: Some(trashed), ..AssetEdit::default() };
    let row =
        if trashed { find(client, asset).await? } else { find_trashed(client, asset).await? };
    edit(client, row.hash, &change, output).await
}

/// Makes an edit and shows the edited asset.
async fn edit(
    client: &Client,
    hash: Hash,
    edit: &AssetEdit,
    output: Output,
) -> Result<Exit, Failure> {
    let hash = hash.to_string();
    let _: Written = client.patch(&["v1", "assets", &hash, "meta"], edit).await?;
    let row: AssetRow = client.get(&["assets", &hash, "meta"], &[]).await?;
    output.value(&row, line)?;
    Ok(Exit::Ok)
}
