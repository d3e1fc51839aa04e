//! `fetch`: waits until assets of other devices are here.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::assets::lookup;
use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{Output, Results};
use super::text::{duration, parse_duration};
use crate::core::fetches::{FetchReply, FetchRequest, FetchState, FetchView};
use crate::core::ids::Hash;
use crate::core::lookup::HashPrefix;

/// How often the request is repeated. The agent drops a fetch that is not repeated for long.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The arguments of `can-sync fetch`.
#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// Their names or hashes, or the unique start of either
    #[arg(required = true, value_name = "ASSET")]
    assets: Vec<String>,
    /// Fetch them before all other assets
    #[arg(long)]
    now: bool,
    /// Give up after this long, with exit status 8 [default: wait as long as it takes]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// `can-sync fetch`
pub(crate) async fn fetch(
    client: &Client,
    args: FetchArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let start = Instant::now();
    let mut request = FetchRequest { hashes: Vec::new(), now: args.now };
    for text in &args.assets {
        request.hashes.push(full_hash(client, text).await?);
    }
    let mut bar = Bar { shown: output.progress(0), to_come: BTreeMap::new() };
    let mut results = Results::new(output);
    let mut exit = Exit::Ok;
    let mut told_alone = false;
    loop {
        let FetchReply { assets } = client.post(&["v1", "fetch"], &request).await?;
        bar.show(&assets);
        let (ended, open): (Vec<_>, Vec<_>) =
            assets.into_iter().partition(|asset: &FetchView| asset.state.is_over());
        for asset in ended {
            if let Some((worse, why)) = failure(&asset) {
                exit = worse;
                bar.shown.suspend(|| output.error(format_args!("{}: {why}", asset.hash)));
            }
            if output.json || asset.state == FetchState::Here {
                bar.shown.suspend(|| results.value(&asset, |asset| asset.hash.to_string()))?;
            }
        }
        if open.is_empty() {
            bar.shown.finish_and_clear();
            return Ok(exit);
        }
        if !told_alone && open.iter().any(|asset| asset.state == FetchState::NoPeer) {
            judge_alone(client).await?;
            bar.shown.suspend(|| output.note("No device is connected: waiting for one."));
            told_alone = true;
        }
        if let Some(timeout) = args.timeout
            && start.elapsed() >= timeout
        {
            let hashes: Vec<_> = open.iter().map(|asset| asset.hash.to_string()).collect();
            let message = format!("not here after {}: {}", duration(timeout), hashes.join(", "));
            return Err(Failure::new(Exit::Timeout, message));
        }
        request.hashes = open.into_iter().map(|asset| asset.hash.into()).collect();
        sleep(LOOK_AGAIN).await;
    }
}

/// Finds the hash of an asset that this device holds or knows of. Otherwise returns the start of a
/// hash, which the agent completes from the assets that other devices hold.
pub(crate) async fn full_hash(client: &Client, text: &str) -> Result<HashPrefix, Failure> {
    let prefix = HashPrefix::parse(text);
    if let Ok(prefix) = &prefix
        && prefix.whole().is_some()
    {
        return Ok(prefix.clone());
    }
    match (lookup(client, text, false).await, prefix) {
        (Ok(found), _) => Ok(found.hash.into()),
        (Err(Failure::Report(Exit::Unknown, _)), Ok(prefix)) => Ok(prefix),
        (Err(failure), _) => Err(failure),
    }
}

/// The reason why an asset cannot arrive; `None` if it can.
fn failure(asset: &FetchView) -> Option<(Exit, &'static str)> {
    match asset.state {
        FetchState::Nowhere => Some((Exit::Unknown, "no connected device holds it")),
        FetchState::Resting => {
            let why =
                "it came damaged, or there is no room for it; it is tried again after a while";
            Some((Exit::Temporary, why))
        }
        FetchState::Here
        | FetchState::Arriving
        | FetchState::Waiting
        | FetchState::NoPeer
        | FetchState::TooMany => None,
    }
}

/// Fails if no device is connected and none can connect.
async fn judge_alone(client: &Client) -> Result<(), Failure> {
    let status = client.status().await?;
    if status.device.removed {
        let message = "this device was removed from its group and syncs with nobody";
        return Err(Failure::new(Exit::NotInSync, message));
    }
    if status.peers.is_empty() {
        let message = "it is not here, and no other device is in the group";
        return Err(Failure::new(Exit::Unknown, message));
    }
    Ok(())
}

/// Progress of the large assets, from their first byte on.
struct Bar {
    shown: ProgressBar,
    /// For each hash, the bytes that were missing at first and those missing now.
    to_come: BTreeMap<Hash, (u64, u64)>,
}

impl Bar {
    fn show(&mut self, assets: &[FetchView]) {
        for FetchView { hash, state, left_bytes } in assets {
            let left_bytes = match state {
                FetchState::Here => Some(0),
                _ => *left_bytes,
            };
            if let Some(now) = left_bytes {
                let (first, left) = self.to_come.entry(*hash).or_insert((now, now));
                (*first, *left) = ((*first).max(now), now);
            }
        }
        let (first, left) =
            self.to_come.values().fold((0, 0), |sum, (first, left)| (sum.0 + first, sum.1 + left));
        // A bar over nothing would only flicker: small assets have no bytes to show.
        if first > 0 {
            self.shown.set_length(first);
            self.shown.set_position(first - left);
        }
    }
}
