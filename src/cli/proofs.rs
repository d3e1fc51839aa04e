//! `safe` and `evict`: whether the copies here could be spared, and deleting them.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;

use super::assets::{PAGE_ROWS, find};
use super::client::{Client, Events, read_event};
use super::devices;
use super::exit::{Exit, Failure};
use super::output::{Output, Results};
use super::text::{bytes, parse_duration, shown};
use crate::api::proofs::{EvictRequest, SafeRequest};
use crate::clock::wall_ms;
use crate::copies::gathered::{GATHER_ASSETS_MAX, GatherOutcome, Gathered};
use crate::core::expression::{AssetFacts, Expression};
use crate::core::ids::Hash;
use crate::http::asset::{AssetRow, AssetsPage};

/// What is meant by the assets of both commands.
#[derive(Debug, Args)]
struct Chosen {
    /// An asset's name or hash, or the unique start of either; or an expression such as
    /// `type=video/* and size>1G`
    #[arg(value_name = "ASSET|EXPR", required_unless_present = "all")]
    assets: Vec<String>,
    /// Every asset that is here
    #[arg(long, conflicts_with = "assets")]
    all: bool,
    /// How many other devices must hold each [default: as many as the group wants]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    copies: Option<u16>,
    /// On how many sites they must be [default: as many as the group wants]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    sites: Option<u16>,
}

/// What `can-sync safe` takes.
#[derive(Debug, Args)]
pub(crate) struct SafeArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Also count proofs that are at most this old [default: only new ones]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    within: Option<Duration>,
}

/// What `can-sync evict` takes.
#[derive(Debug, Args)]
pub(crate) struct EvictArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
}

/// `can-sync safe`
pub(crate) async fn safe(client: &Client, args: SafeArgs, output: Output) -> Result<Exit, Failure> {
    let Chosen { copies, sites, .. } = args.chosen;
    let within = args.within.unwrap_or_default();
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let rows = rows(client, &args.chosen).await?;
    let mut told = Told::new(output);
    for hashes in hashes(&rows).chunks(GATHER_ASSETS_MAX) {
        let request = SafeRequest {
            hashes: hashes.to_vec(),
            copies: copies.map(usize::from),
            sites: sites.map(usize::from),
            within_ms,
        };
        let events = client.post_for_events(&["v1", "safe"], &request).await?;
        told.all(events, hashes.len()).await?;
    }
    told.end("proven")
}

/// `can-sync evict`
pub(crate) async fn evict(
    client: &Client,
    args: EvictArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let Chosen { copies, sites, .. } = args.chosen;
    let rows = rows(client, &args.chosen).await?;
    let mut told = Told::new(output);
    for hashes in hashes(&rows).chunks(GATHER_ASSETS_MAX) {
        let request = EvictRequest {
            hashes: hashes.to_vec(),
            copies: copies.map(usize::from),
            sites: sites.map(usize::from),
            dry_run: args.dry_run,
        };
        let events = client.post_for_events(&["v1", "evict"], &request).await?;
        told.all(events, hashes.len()).await?;
    }
    told.end(if args.dry_run { "would be evicted" } else { "evicted" })
}

/// The assets that are meant, those here first in an expression.
async fn rows(client: &Client, chosen: &Chosen) -> Result<Vec<AssetRow>, Failure> {
    if chosen.all {
        return all(client, |row| !row.evicted && !row.damaged).await;
    }
    let mut rows = Vec::new();
    for text in &chosen.assets {
        if !is_expression(text) {
            rows.push(find(client, text).await?);
            continue;
        }
        let expression = Expression::parse(text);
        let expression = expression.map_err(|error| Failure::new(Exit::Usage, error))?;
        let folders_or_copies = expression.depends_on_folders() || expression.depends_on_copies();
        if folders_or_copies {
            let message = "folder= and copies< cannot choose assets here";
            return Err(Failure::new(Exit::Usage, message));
        }
        let devices = devices::all(client).await?;
        let now_ms = wall_ms();
        let facts = |row: &AssetRow| AssetFacts {
            tags: Some(row.tags.iter().cloned().collect()),
            media_type: Some(row.media_type.clone()),
            name: Some(row.name.clone()),
            folders: None,
            added_by: row.added_by.map(|node_id| {
                let name = devices.iter().find(|device| device.node_id == node_id);
                name.map(|device| device.name.clone())
                    .into_iter()
                    .chain([node_id.to_string()])
                    .collect()
            }),
            size_bytes: Some(row.size),
            age_ms: Some(now_ms.saturating_sub(u64::try_from(row.timestamp).unwrap_or(0))),
            copies: None,
        };
        let fits = |row: &AssetRow| !row.evicted && !row.damaged && expression.matches(&facts(row));
        rows.extend(all(client, fits).await?);
    }
    Ok(rows)
}

/// Whether a text is an expression rather than a name or a hash.
fn is_expression(text: &str) -> bool {
    let has_test = text.contains(['=', '<', '>']) && Expression::parse(text).is_ok();
    has_test || text.starts_with('(') || text.starts_with("not ")
}

async fn all(client: &Client, fits: impl Fn(&AssetRow) -> bool) -> Result<Vec<AssetRow>, Failure> {
    let (mut rows, mut after) = (Vec::new(), 0_u64);
    loop {
        let after_text = after.to_string();
        let query = [("limit", PAGE_ROWS), ("after", after_text.as_str())];
        let page: AssetsPage = client.get(&["v1", "assets"], &query).await?;
        rows.extend(page.assets.into_iter().filter(&fits));
        match page.next {
            Some(next) if next > after => after = next,
            _ => return Ok(rows),
        }
    }
}

/// Each once, in their order.
fn hashes(rows: &[AssetRow]) -> Vec<Hash> {
    let mut seen = BTreeSet::new();
    rows.iter().map(|row| row.hash).filter(|hash| seen.insert(*hash)).collect()
}

/// The results so far.
struct Told {
    output: Output,
    results: Results,
    done: usize,
    done_bytes: u64,
    refused: usize,
    weakest: Option<Gathered>,
}

impl Told {
    fn new(output: Output) -> Self {
        let results = Results::new(output);
        Self { output, results, done: 0, done_bytes: 0, refused: 0, weakest: None }
    }

    async fn all(&mut self, mut events: Events, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let (_, data) = events.next().await?;
            let gathered: Gathered = read_event(&data)?;
            self.results.value(&gathered, line)?;
            if gathered.outcome == GatherOutcome::Refused {
                self.refused += 1;
            } else {
                self.done += 1;
                self.done_bytes += gathered.size;
            }
            let is_weaker = |weakest: &Gathered| gathered.proven.len() < weakest.proven.len();
            if self.weakest.as_ref().is_none_or(is_weaker) {
                self.weakest = Some(gathered);
            }
        }
        Ok(())
    }

    fn end(self, done: &str) -> Result<Exit, Failure> {
        let (count, size) = (self.done, bytes(self.done_bytes));
        let assets = if count == 1 { "asset" } else { "assets" };
        match self.refused {
            0 => self.output.note(format_args!("{count} {assets} {done}, {size}.")),
            refused => self
                .output
                .note(format_args!("{count} {assets} {done}, {size}; {refused} refused.")),
        }
        if let Some(weakest) = &self.weakest {
            let (hash, proven) = (weakest.hash, weakest.proven.len());
            self.output
                .note(format_args!("Weakest: {hash}, proven on {proven} of the other devices."));
        }
        Ok(if self.refused == 0 { Exit::Ok } else { Exit::Refused })
    }
}

fn line(gathered: &Gathered) -> String {
    let Gathered { hash, outcome, proven, lacking, reason, .. } = gathered;
    let state = match outcome {
        GatherOutcome::Proven => "proven",
        GatherOutcome::Evicted => "evicted",
        GatherOutcome::WouldEvict => "would be evicted",
        GatherOutcome::Refused => "REFUSED",
    };
    let mut line = format!("{hash}  {state}");
    let names: Vec<String> = proven.iter().map(|by| shown(&by.name)).collect();
    if !names.is_empty() {
        line += &format!("  held by {}", names.join(", "));
    }
    if let Some(reason) = reason {
        line += &format!("  {}", shown(reason));
    }
    for at in lacking {
        line += &format!("; {} {}", shown(&at.name), shown(&at.why));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_sign_of_an_expression_is_still_a_name() {
        assert!(is_expression("type=image/*"));
        assert!(is_expression("size>1G and not tag=keep"));
        assert!(is_expression("(size>1G"), "so that it gets the place of its fault");
        assert!(!is_expression("a=b.jpg"));
        assert!(!is_expression("holiday.jpg"));
        assert!(!is_expression("3f1c"));
    }
}
