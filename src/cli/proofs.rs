//! `safe` and `evict`: whether the copies here could be spared, and deleting them.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;

use super::assets::{PAGE_ROWS, find};
use super::client::{Client, Events, read_event};
use super::exit::{Exit, Failure};
use super::output::{Output, Results};
use super::text::{bytes, parse_duration, shown};
use crate::api::proofs::{ChooseRequest, ChosenPage, EvictRequest, SafeRequest};
use crate::copies::gathered::{GATHER_ASSETS_MAX, GatherOutcome, Gathered};
use crate::core::expression::Expression;
use crate::core::ids::Hash;
use crate::http::asset::{AssetRow, AssetsPage};
use crate::replica::copies::ChosenAsset;

/// The most assets that an error lists.
const LISTED_MAX: usize = 20;

/// The arguments of both commands that choose assets.
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

/// The arguments of `can-sync safe`.
#[derive(Debug, Args)]
pub(crate) struct SafeArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Also count proofs that are at most this old [default: only new ones]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    within: Option<Duration>,
}

/// The arguments of `can-sync evict`.
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
    let hashes = hashes(client, &args.chosen, false).await?;
    let mut told = Told::new(output);
    for hashes in hashes.chunks(GATHER_ASSETS_MAX) {
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
    let hashes = hashes(client, &args.chosen, true).await?;
    let mut told = Told::new(output);
    for hashes in hashes.chunks(GATHER_ASSETS_MAX) {
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

/// The assets that are meant, each once. `spares_last`: an expression that chooses an asset of which no
/// other device is known to have a copy is refused.
async fn hashes(client: &Client, chosen: &Chosen, spares_last: bool) -> Result<Vec<Hash>, Failure> {
    let mut hashes = Vec::new();
    if chosen.all {
        let rows = all(client, |row| !row.evicted && !row.damaged).await?;
        hashes.extend(rows.iter().map(|row| row.hash));
    }
    for text in &chosen.assets {
        if !is_expression(text) {
            hashes.push(find(client, text).await?.hash);
            continue;
        }
        // Checked here first: the error names the place of the mistake.
        Expression::parse(text).map_err(|error| Failure::new(Exit::Usage, error))?;
        let assets = choose(client, text).await?;
        if let Some(message) = last_copies(&assets).filter(|_| spares_last) {
            return Err(Failure::new(Exit::Refused, message));
        }
        hashes.extend(assets.iter().map(|asset| asset.hash));
    }
    let mut seen = BTreeSet::new();
    hashes.retain(|hash| seen.insert(*hash));
    Ok(hashes)
}

async fn choose(client: &Client, expression: &str) -> Result<Vec<ChosenAsset>, Failure> {
    let (mut chosen, mut after) = (Vec::new(), 0);
    loop {
        let request = ChooseRequest { expression: expression.to_owned(), after };
        let page: ChosenPage = client.post(&["v1", "choose"], &request).await?;
        chosen.extend(page.assets);
        match page.next {
            Some(next) if next > after => after = next,
            _ => return Ok(chosen),
        }
    }
}

/// The error for assets whose last known copy is here; `None` if there are none.
fn last_copies(assets: &[ChosenAsset]) -> Option<String> {
    let last: Vec<&ChosenAsset> = assets.iter().filter(|asset| asset.copies == 0).collect();
    if last.is_empty() {
        return None;
    }
    let (count, of) = (last.len(), assets.len());
    let mut message = format!(
        "nothing was evicted: of {count} of the {of} chosen assets no other device is known to have a \
         copy; add `and copies>=1` to leave them out"
    );
    for asset in last.iter().take(LISTED_MAX) {
        message += &format!("\n  {}", asset.hash);
    }
    if count > LISTED_MAX {
        message += &format!("\n  and {} more", count - LISTED_MAX);
    }
    Some(message)
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
            // Of what is refused for another reason nobody was asked.
            let is_asked = !gathered.proven.is_empty() || !gathered.lacking.is_empty();
            let is_weaker = |weakest: &Gathered| gathered.proven.len() < weakest.proven.len();
            if is_asked && self.weakest.as_ref().is_none_or(is_weaker) {
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
    fn an_expression_that_chooses_last_copies_is_refused_with_their_list() {
        let asset = |n: u8, copies| ChosenAsset { hash: Hash([n; 32]), copies };
        assert_eq!(last_copies(&[asset(1, 1), asset(2, 5)]), None);
        let message = last_copies(&[asset(1, 1), asset(2, 0)]).unwrap_or_default();
        assert!(message.contains("1 of the 2") && message.contains("copies>=1"), "{message}");
        assert!(message.contains(&asset(2, 0).hash.to_string()), "{message}");
        assert!(!message.contains(&asset(1, 0).hash.to_string()), "{message}");
        let many: Vec<ChosenAsset> = (0..50).map(|n| asset(n, 0)).collect();
        let message = last_copies(&many).unwrap_or_default();
        assert!(message.lines().count() == 22 && message.contains("and 30 more"), "{message}");
    }

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
