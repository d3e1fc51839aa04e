//! `why`: why an asset is, or is not, on each device; and why a file of a folder is as it is here.

use std::path::Path;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::fetch::full_hash;
use super::folder;
use super::output::Output;
use super::text::escaped;
use crate::core::lookup::HashPrefix;
use crate::core::why::AssetWhy;

/// A paragraph names every device of a group.
const PARAGRAPH_CHARS_MAX: usize = 20_000;

/// `can-sync why`
pub(crate) async fn why(client: &Client, what: &Path, output: Output) -> Result<Exit, Failure> {
    if folder::means_path(client, what).await? {
        if let Some(hash) = folder::why(client, what, output).await? {
            asset(client, hash.into(), output).await?;
        }
        return Ok(Exit::Ok);
    }
    let text = what.to_string_lossy();
    let hash = full_hash(client, &text).await?;
    asset(client, hash, output).await?;
    Ok(Exit::Ok)
}

async fn asset(client: &Client, hash: HashPrefix, output: Output) -> Result<(), Failure> {
    let why: AssetWhy = client.get(&["v1", "assets", hash.as_str(), "why"], &[]).await?;
    output.value(&why, |why| escaped(&why.text, PARAGRAPH_CHARS_MAX))
}
