//! `ls` and `info`: what is in the store. Also finds the asset that an argument names.

use clap::Args;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, shown};
use crate::core::lookup::{CANDIDATES_MAX, HashPrefix, LookupError};
use crate::http::asset::{AssetRow, AssetsPage};

/// Rows asked for at once.
pub(crate) const PAGE_ROWS: &str = "1000";

/// What `can-sync ls` takes.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only assets with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only this media type; `image/` for all images
    #[arg(long = "type", value_name = "TYPE")]
    media_type: Option<String>,
    /// Only assets whose name or description contains this
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
    /// Only trashed assets
    #[arg(long)]
    trashed: bool,
    /// Trashed assets too
    #[arg(long, conflicts_with = "trashed")]
    all: bool,
}

/// `can-sync ls`
pub(crate) async fn ls(client: &Client, args: LsArgs, output: Output) -> Result<Exit, Failure> {
    let mut filters = vec![("limit", PAGE_ROWS)];
    let given = [("tag", &args.tag), ("type", &args.media_type), ("q", &args.query)];
    filters.extend(given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
    if !args.all {
        filters.push(("trashed", if args.trashed { "true" } else { "false" }));
    }
    let mut after = 0_u64;
    loop {
        let after_text = after.to_string();
        let query = [&filters[..], &[("after", after_text.as_str())]].concat();
        let page: AssetsPage = client.get(&["assets"], &query).await?;
        output.values(&page.assets, line)?;
        match page.next {
            // A cursor that does not rise would list for ever.
            Some(next) if next > after => after = next,
            _ => return Ok(Exit::Ok),
        }
    }
}

/// A row as `ls` shows it.
pub(crate) fn line(row: &AssetRow) -> String {
    let mut line = format!("{}  {:>10}  {}", row.hash, bytes(row.size), shown(&row.name));
    if !row.tags.is_empty() {
        line.push_str(&format!("  [{}]", shown(&row.tags.join(", "))));
    }
    if row.trashed {
        line.push_str("  (trashed)");
    }
    if row.damaged {
        line.push_str("  (damaged)");
    }
    line.trim_end().to_owned()
}

/// `can-sync info`
pub(crate) async fn info(client: &Client, hash: &str, output: Output) -> Result<Exit, Failure> {
    let row = find(client, hash).await?;
    output.value(&row, details)?;
    Ok(Exit::Ok)
}

fn details(row: &AssetRow) -> String {
    let size = format!("{} ({} bytes)", bytes(row.size), row.size);
    let trashed = if row.trashed { "yes" } else { "" };
    let fields = [
        ("hash", row.hash.to_string()),
        ("size", size),
        ("name", shown(&row.name)),
        ("type", shown(&row.media_type)),
        ("description", shown(&row.description)),
        ("tags", shown(&row.tags.join(", "))),
        ("trashed", trashed.to_owned()),
    ];
    let lines = fields.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("{name:<12} {value}")).collect::<Vec<_>>().join("\n")
}

/// Finds the asset that `text` names.
pub(crate) async fn find(client: &Client, text: &str) -> Result<AssetRow, Failure> {
    Ok(lookup(client, &HashPrefix::parse(text)?).await??)
}

/// The asset whose hash starts so; the inner error says why it is no single asset of this store.
pub(crate) async fn lookup(
    client: &Client,
    prefix: &HashPrefix,
) -> Result<Result<AssetRow, LookupError>, Failure> {
    let limit = (CANDIDATES_MAX + 1).to_string();
    let query = [("hash", prefix.as_str()), ("limit", limit.as_str())];
    let found = client.get::<AssetsPage>(&["assets"], &query).await?.assets;
    Ok(prefix.only(found, |row| row.hash))
}
