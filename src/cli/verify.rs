//! `verify`: reads assets now, and waits until the other devices have mended what is damaged.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures_util::stream::{self, StreamExt as _};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::assets::{PAGE_ROWS, find};
use super::client::{Client, Events, read_event};
use super::exit::{Exit, Failure};
use super::output::{Output, Results};
use super::text::{bytes, counted};
use crate::api::answers::Done;
use crate::api::requests::NoArguments;
use crate::api::verify::{
    VERIFY_ASSETS_MAX, Verified, VerifiedCondition, VerifyReading, VerifyRequest,
};
use crate::core::fetches::{FetchReply, FetchRequest, FetchState};
use crate::core::ids::Hash;
use crate::http::asset::{AssetRow, AssetsPage};

/// The most bytes of one request: so all jobs have something to do until the end.
const REQUEST_BYTES: u64 = 16 * 1024 * 1024;

/// The interval of requests to the agent whether an asset was repaired.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long to wait for an asset that no device seems to hold. After damage is found, the sets of
/// all devices are compared again.
const HOPE: Duration = Duration::from_secs(20);

/// The arguments of `can-sync verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Their names or hashes, or the unique start of either
    #[arg(value_name = "ASSET", required_unless_present = "all")]
    hashes: Vec<String>,
    /// Every asset of the store
    #[arg(long, conflicts_with = "hashes")]
    all: bool,
    /// How many assets are read at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    jobs: u8,
}

/// The line of an asset that was not whole.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    verified: Verified,
    /// Whether the asset was repaired with the content of another device.
    repaired: bool,
}

/// `can-sync verify`
pub(crate) async fn verify(
    client: &Client,
    args: VerifyArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let rows = match args.all {
        true => all(client).await?,
        false => {
            let mut rows = Vec::new();
            for hash in &args.hashes {
                rows.push(find(client, hash).await?);
            }
            rows
        }
    };
    let (count, total_bytes) = (rows.len(), rows.iter().map(|row| row.size).sum());
    let bar = output.progress(total_bytes);
    let requests = stream::iter(requests(rows));
    let mut answers = requests
        .map(|rows| verify_some(client, rows, &bar))
        .buffer_unordered(usize::from(args.jobs));
    let mut results = Results::new(output);
    let (mut exit, mut damaged) = (Exit::Ok, Vec::new());
    while let Some(answer) = answers.next().await {
        for verified in answer? {
            match verified.condition {
                VerifiedCondition::Damaged => damaged.push(verified),
                VerifiedCondition::Whole => {
                    if output.json {
                        let line = Line { verified, repaired: false };
                        bar.suspend(|| results.value(&line, |_| String::new()))?;
                    }
                }
                VerifiedCondition::Absent | VerifiedCondition::Unknown => {
                    exit = Exit::Temporary;
                    let why = verified.error.as_deref().unwrap_or("it is not in the store");
                    bar.suspend(|| output.error(format_args!("{}: {why}", verified.hash)));
                }
            }
        }
    }
    bar.finish_and_clear();
    let found = damaged.len();
    if found > 0 {
        // Makes the agent read the store's feed, which names the damaged assets.
        let _: Done = client.post(&["v1", "check"], &NoArguments {}).await?;
        output
            .note(format_args!("{found} damaged: fetching the damaged parts from other devices."));
    }
    let mended = wait_until_mended(client, damaged, &mut results, output).await?;
    let read = bytes(total_bytes);
    output.note(format_args!(
        "{}, {read}: {found} damaged, {mended} repaired.",
        counted(count as u64, "asset", "assets")
    ));
    Ok(if mended < found { Exit::Damaged } else { exit })
}

async fn all(client: &Client) -> Result<Vec<AssetRow>, Failure> {
    let (mut rows, mut after) = (Vec::new(), 0_u64);
    loop {
        let after_text = after.to_string();
        let query = [("limit", PAGE_ROWS), ("after", after_text.as_str())];
        let page: AssetsPage = client.get(&["assets"], &query).await?;
        rows.extend(page.assets.into_iter().filter(|row| !row.evicted));
        match page.next {
            Some(next) if next > after => after = next,
            _ => return Ok(rows),
        }
    }
}

/// Splits assets into requests.
fn requests(rows: Vec<AssetRow>) -> Vec<Vec<AssetRow>> {
    let mut requests: Vec<Vec<AssetRow>> = Vec::new();
    let mut room_bytes = 0_u64;
    for row in rows {
        match requests.last_mut() {
            Some(last) if last.len() < VERIFY_ASSETS_MAX && row.size <= room_bytes => {
                room_bytes -= row.size;
                last.push(row);
            }
            _ => {
                room_bytes = REQUEST_BYTES.saturating_sub(row.size);
                requests.push(vec![row]);
            }
        }
    }
    requests
}

async fn verify_some(
    client: &Client,
    rows: Vec<AssetRow>,
    bar: &ProgressBar,
) -> Result<Vec<Verified>, Failure> {
    let request = VerifyRequest { hashes: rows.iter().map(|row| row.hash).collect() };
    let mut events: Events = client.post_for_events(&["v1", "verify"], &request).await?;
    let mut verified = Vec::new();
    let mut shown_bytes = 0;
    while let Some(row) = rows.get(verified.len()) {
        let (name, data) = events.next().await?;
        match name.as_str() {
            "reading" => {
                let reading: VerifyReading = read_event(&data)?;
                bar.inc(reading.read_bytes.saturating_sub(shown_bytes));
                shown_bytes = shown_bytes.max(reading.read_bytes);
            }
            "verified" => {
                bar.inc(row.size.saturating_sub(shown_bytes));
                shown_bytes = 0;
                verified.push(read_event(&data)?);
            }
            _ => {}
        }
    }
    Ok(verified)
}

/// Waits for each asset until it is repaired or no device can repair it. Prints each, and returns
/// the number of repaired ones.
async fn wait_until_mended(
    client: &Client,
    damaged: Vec<Verified>,
    results: &mut Results,
    output: Output,
) -> Result<usize, Failure> {
    let mut mended = 0;
    let hope_ends = Instant::now() + HOPE;
    let mut open: BTreeMap<Hash, (Verified, Instant)> =
        damaged.into_iter().map(|verified| (verified.hash, (verified, hope_ends))).collect();
    while !open.is_empty() {
        let hashes: Vec<Hash> = open.keys().take(VERIFY_ASSETS_MAX).copied().collect();
        let request =
            FetchRequest { hashes: hashes.iter().map(|hash| (*hash).into()).collect(), now: true };
        let FetchReply { assets } = client.post(&["v1", "fetch"], &request).await?;
        for asset in assets {
            let hash = asset.hash;
            let Some((verified, hope_ends)) = open.get_mut(&hash) else { continue };
            if matches!(asset.state, FetchState::Arriving | FetchState::Waiting) {
                *hope_ends = Instant::now() + HOPE;
            }
            let path = hash.to_string();
            let row: AssetRow = client.get(&["assets", &path, "meta"], &[]).await?;
            if row.damaged && Instant::now() < *hope_ends {
                continue;
            }
            let line = Line { verified: verified.clone(), repaired: !row.damaged };
            mended += usize::from(line.repaired);
            results.value(&line, text)?;
            if !line.repaired {
                output.error(format_args!("{hash}: damaged, and no connected device has it whole"));
            }
            open.remove(&hash);
        }
        if !open.is_empty() {
            sleep(LOOK_AGAIN).await;
        }
    }
    Ok(mended)
}

fn text(line: &Line) -> String {
    let Line { verified, repaired } = line;
    let state = if *repaired { "repaired" } else { "DAMAGED" };
    format!(
        "{}  {state}  {} of {} wrong",
        verified.hash,
        bytes(verified.wrong_bytes),
        bytes(verified.size)
    )
}
