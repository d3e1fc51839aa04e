//! `ls` and `info`: what is in the store. Also finds the asset that an argument names.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, shown};
use super::time::{Since, parse_since, utc_signed};
use super::{copies, devices};
use crate::api::answers::FoundAsset;
use crate::api::copies::Holders;
use crate::clock::wall_ms;
use crate::core::ids::NodeId;
use crate::http::asset::{AssetRow, AssetsPage};
use crate::store::Cursor;

/// Rows asked for at once.
pub(crate) const PAGE_ROWS: &str = "1000";

/// Sorted rows printed at once.
const SHOWN_ROWS: usize = 1000;

/// The most rows that are sorted. Sorting holds all of them in memory, some hundred bytes each.
const SORTED_ROWS_MAX: usize = 2_000_000;

/// The arguments of `can-sync ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only assets whose name matches; a pattern with a `/` is compared with path and name:
    /// `*.jpg`, `pictures/2024/*`
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// Only assets with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only this media type; `image/` for all images
    #[arg(long = "type", value_name = "TYPE")]
    media_type: Option<String>,
    /// Only assets whose name or description contains this
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
    /// Only assets that this device stored since then: `2h`, `7d` or a time such as
    /// `2026-01-31T15:04:05Z`
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Since>,
    /// Only assets that this device stored before then
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    until: Option<Since>,
    /// Only what was added on this device: its name, node ID or the start of it
    #[arg(long)]
    device: Option<String>,
    /// Only trashed assets
    #[arg(long)]
    trashed: bool,
    /// Trashed assets too
    #[arg(long, conflicts_with = "trashed")]
    all: bool,
    /// Sort by this [default: the order in which this device stored them]
    #[arg(long, value_name = "BY")]
    sort: Option<SortBy>,
    /// Show everything that is known of each
    #[arg(short, long)]
    long: bool,
}

/// What `ls` sorts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortBy {
    /// Path and name
    Name,
    /// The largest first
    Size,
    /// The media type
    Type,
    /// The last modified first
    Modified,
    /// By the time when the picture was taken, or else the file modified, the latest first
    Captured,
    /// By the time when this device stored them, the latest first
    Added,
}

/// `can-sync ls`
pub(crate) async fn ls(client: &Client, args: LsArgs, output: Output) -> Result<Exit, Failure> {
    let devices: BTreeMap<NodeId, String> = match args.long || args.device.is_some() {
        true => devices::all(client).await?.into_iter().map(|d| (d.node_id, d.name)).collect(),
        false => BTreeMap::new(),
    };
    let show = |row: &AssetRow| if args.long { long_line(row, &devices) } else { line(row) };
    let mut pages = Pages::new(client, filters(client, &args).await?);
    let mut sorted: Vec<AssetRow> = Vec::new();
    while let Some(rows) = pages.next().await? {
        if args.sort.is_none() {
            output.values(&rows, show)?;
            continue;
        }
        sorted.extend(rows);
        if sorted.len() > SORTED_ROWS_MAX {
            let message = format!("over {SORTED_ROWS_MAX} assets cannot be sorted: ask for fewer");
            return Err(Failure::new(Exit::Error, message));
        }
    }
    if let Some(by) = args.sort {
        sort(&mut sorted, by);
    }
    for rows in sorted.chunks(SHOWN_ROWS) {
        output.values(rows, show)?;
    }
    Ok(Exit::Ok)
}

/// The conditions of a listing, as parameters of the request.
async fn filters(client: &Client, args: &LsArgs) -> Result<Vec<(&'static str, String)>, Failure> {
    let device = match &args.device {
        Some(text) => Some(devices::node_id(&devices::all(client).await?, text)?.to_string()),
        None => None,
    };
    let now_ms = wall_ms();
    let time = |since: Option<Since>| since.map(|since| since.ms(now_ms).to_string());
    let filters = [
        ("name", args.name.clone()),
        ("tag", args.tag.clone()),
        ("type", args.media_type.clone()),
        ("q", args.query.clone()),
        ("since_ms", time(args.since)),
        ("until_ms", time(args.until)),
        ("device", device),
        ("trashed", (!args.all).then(|| args.trashed.to_string())),
    ];
    Ok(filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// A listing, page by page.
pub(crate) struct Pages<'a> {
    client: &'a Client,
    filters: Vec<(&'static str, String)>,
    /// `None`: at its end.
    after: Option<Cursor>,
}

impl<'a> Pages<'a> {
    /// The assets that meet all conditions, which are parameters of the request.
    pub(crate) fn new(client: &'a Client, filters: Vec<(&'static str, String)>) -> Self {
        Self { client, filters, after: Some(0) }
    }

    /// The next page, which may be empty; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<AssetRow>>, Failure> {
        let Some(after) = self.after else { return Ok(None) };
        let after_text = after.to_string();
        let mut query = vec![("limit", PAGE_ROWS), ("after", after_text.as_str())];
        query.extend(self.filters.iter().map(|(name, value)| (*name, value.as_str())));
        let page: AssetsPage = self.client.get(&["v1", "assets"], &query).await?;
        // A cursor that does not rise would list for ever.
        self.after = page.next.filter(|next| *next > after);
        Ok(Some(page.assets))
    }
}

fn sort(rows: &mut [AssetRow], by: SortBy) {
    let newest_first = |ms: Option<i64>| Reverse(ms.unwrap_or(i64::MIN));
    match by {
        SortBy::Name => rows.sort_by_cached_key(AssetRow::full_name),
        SortBy::Size => rows.sort_by_key(|row| Reverse(row.size)),
        SortBy::Type => rows.sort_by_cached_key(|row| row.media_type.clone()),
        SortBy::Modified => rows.sort_by_key(|row| newest_first(row.modified_ms)),
        SortBy::Captured => {
            rows.sort_by_key(|row| newest_first(row.captured_ms.or(row.modified_ms)));
        }
        SortBy::Added => rows.sort_by_key(|row| Reverse((row.timestamp, row.cursor))),
    }
}

/// A row as `ls` shows it.
pub(crate) fn line(row: &AssetRow) -> String {
    let name = shown(&row.name);
    let line = format!("{}  {:>10}  {name}{}", row.hash, bytes(row.size), marks(row));
    line.trim_end().to_owned()
}

/// A row as `ls -l` shows it: `-` stands for what is not known.
fn long_line(row: &AssetRow, devices: &BTreeMap<NodeId, String>) -> String {
    let time = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), utc_signed);
    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { shown(text) };
    let adder = |id: NodeId| devices.get(&id).map_or_else(|| id.short(), |name| shown(name));
    let mut line = format!(
        "{}  {:>10}  {:<20}  {:<20}  {:<10}  {:<24}  {}{}",
        row.hash,
        bytes(row.size),
        time(row.modified_ms),
        time(row.captured_ms),
        row.added_by.map_or_else(|| "-".to_owned(), adder),
        text(&row.media_type),
        text(&row.full_name()),
        marks(row),
    );
    for (label, value) in
        [("application: ", &row.application), ("user: ", &row.user), ("", &row.description)]
    {
        if !value.is_empty() {
            line.push_str(&format!("  {label}{}", shown(value)));
        }
    }
    line
}

fn marks(row: &AssetRow) -> String {
    let mut marks = String::new();
    if !row.tags.is_empty() {
        marks.push_str(&format!("  [{}]", shown(&row.tags.join(", "))));
    }
    if row.trashed {
        marks.push_str("  (trashed)");
    }
    if row.evicted {
        marks.push_str("  (evicted)");
    }
    if row.damaged {
        marks.push_str("  (damaged)");
    }
    marks
}

/// The JSON output of `info`.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    row: &'a AssetRow,
    copies: &'a Holders,
}

/// `can-sync info`
pub(crate) async fn info(client: &Client, text: &str, output: Output) -> Result<Exit, Failure> {
    let found = lookup(client, text, false).await?;
    let holders = copies::holders(client, &found.hash).await?;
    if found.asset.is_none() {
        let view = serde_json::json!({ "hash": found.hash, "name": found.name, "copies": holders });
        output.value(&view, |_| {
            let fields = [("hash", found.hash.to_string()), ("name", shown(&found.name))];
            let fields = fields.iter().filter(|(_, value)| !value.is_empty());
            let mut lines: Vec<_> =
                fields.map(|(name, value)| format!("{name:<12} {value}")).collect();
            lines.push(copies::holder_lines(&holders));
            lines.join("\n")
        })?;
        return Ok(Exit::Ok);
    }
    let hash = found.hash.to_string();
    let query = [("hash", hash.as_str())];
    let found = client.get::<AssetsPage>(&["v1", "assets"], &query).await;
    let row = match found.map(|page| page.assets.into_iter().next()) {
        Ok(Some(row)) => row,
        // A store that cannot be searched can still return one asset.
        _ => client.get(&["assets", &hash, "meta"], &[]).await?,
    };
    let device = match row.added_by {
        Some(node_id) => {
            let devices = devices::all(client).await?;
            let device = devices.into_iter().find(|device| device.node_id == node_id);
            device.map_or_else(|| node_id.short(), |device| device.name)
        }
        None => String::new(),
    };
    let view = Described { row: &row, copies: &holders };
    output.value(&view, |view| {
        format!("{}\n{}", details(view.row, &device), copies::holder_lines(view.copies))
    })?;
    Ok(Exit::Ok)
}

fn details(row: &AssetRow, device: &str) -> String {
    let size = format!("{} ({} bytes)", bytes(row.size), row.size);
    let time = |ms: Option<i64>| ms.map(utc_signed).unwrap_or_default();
    let trashed = if row.trashed { "yes" } else { "" };
    let fields = [
        ("hash", row.hash.to_string()),
        ("size", size),
        ("name", shown(&row.name)),
        ("path", shown(&row.path)),
        ("type", shown(&row.media_type)),
        ("modified", time(row.modified_ms)),
        ("captured", time(row.captured_ms)),
        ("application", shown(&row.application)),
        ("user", shown(&row.user)),
        ("added on", shown(device)),
        ("description", shown(&row.description)),
        ("tags", shown(&row.tags.join(", "))),
        ("trashed", trashed.to_owned()),
    ];
    let lines = fields.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("{name:<12} {value}")).collect::<Vec<_>>().join("\n")
}

/// Finds the asset of this device that `text` names.
pub(crate) async fn find(client: &Client, text: &str) -> Result<AssetRow, Failure> {
    here(lookup(client, text, false).await?)
}

/// Finds the asset that `text` names. Among equally good matches, one in the trash is preferred.
pub(crate) async fn find_trashed(client: &Client, text: &str) -> Result<AssetRow, Failure> {
    here(lookup(client, text, true).await?)
}

fn here(found: FoundAsset) -> Result<AssetRow, Failure> {
    let FoundAsset { hash, name, asset, .. } = found;
    asset.ok_or_else(|| {
        let message = format!(
            "{name:?} is not on this device: `can-sync fetch {hash}` waits until it is here"
        );
        Failure::new(Exit::Unknown, message)
    })
}

/// Finds the asset that `text` names, on this device or another one.
pub(crate) async fn lookup(
    client: &Client,
    text: &str,
    prefers_trashed: bool,
) -> Result<FoundAsset, Failure> {
    let trashed = prefers_trashed.to_string();
    let query = [("text", text), ("trashed", trashed.as_str())];
    client.get(&["v1", "assets", "find"], &query).await
}
