//! `log`: what happened, on which device.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Map, Value};

use super::assets;
use super::client::{Client, read_event};
use super::devices;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, shown};
use super::time::{Since, parse_since, utc};
use crate::api::answers::{Event, EventsPage};
use crate::clock::wall_ms;
use crate::core::ids::NodeId;
use crate::core::journal::device_events::DEVICE_STREAM;

/// Events asked for at once.
const PAGE_EVENTS: &str = "1000";

/// What `can-sync log` takes.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Only what happened on this device: its name, node ID or the start of it
    #[arg(long)]
    device: Option<String>,
    /// Only what happened since then: `2h`, `7d` or a time such as `2026-01-31T15:04:05Z`
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Since>,
    /// Only what happened to this asset: its name or hash, or the unique start of either
    #[arg(long)]
    asset: Option<String>,
    /// Go on showing what happens until stopped
    #[arg(long, short)]
    follow: bool,
}

/// `can-sync log`
pub(crate) async fn log(client: &Client, args: LogArgs, output: Output) -> Result<Exit, Failure> {
    let devices = devices::all(client).await?;
    let author = args.device.map(|text| devices::node_id(&devices, &text));
    let since_ms = args.since.map(|since| since.ms(wall_ms()).to_string());
    let hash = match args.asset {
        // A whole hash may name an asset that this device does not hold.
        Some(text) => Some(match text.parse() {
            Ok(hash) => hash,
            Err(_) => assets::lookup(client, &text, false).await?.hash,
        }),
        None => None,
    };
    let author = author.transpose()?.map(|author| author.to_string());
    let hash = hash.map(|hash| hash.to_string());
    let given = [("author", &author), ("since_ms", &since_ms), ("hash", &hash)];
    let filters: Vec<(&str, &str)> =
        given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let names: BTreeMap<_, _> =
        devices.into_iter().map(|device| (device.node_id, device.name)).collect();

    if args.follow {
        let mut events = client.events(&["v1", "events", DEVICE_STREAM, "watch"], &filters).await?;
        loop {
            let (name, data) = events.next().await?;
            if name == "event" {
                let event: Event = read_event(&data)?;
                output.value(&event, |event| line(event, &names))?;
            }
        }
    }
    let mut after = None;
    loop {
        let mut query = [&filters[..], &[("limit", PAGE_EVENTS)]].concat();
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page: EventsPage = client.get(&["v1", "events", DEVICE_STREAM], &query).await?;
        output.values(&page.events, |event| line(event, &names))?;
        if !page.more {
            return Ok(Exit::Ok);
        }
        after = Some(page.next.to_string());
    }
}

/// An event as a line for people: time, device, type and details.
fn line(event: &Event, names: &BTreeMap<NodeId, String>) -> String {
    let mut parts = vec![utc(event.time_ms), device_name(event.author, names), shown(&event.kind)];
    match &event.data {
        Value::Object(data) => parts.extend(details(data, event.asset_name.as_deref(), names)),
        Value::Null => {}
        other => parts.push(shown(&other.to_string())),
    }
    parts.join("  ")
}

/// The members of an event's data, the ones every reader knows first.
fn details(
    data: &Map<String, Value>,
    asset_name: Option<&str>,
    names: &BTreeMap<NodeId, String>,
) -> Vec<String> {
    let mut data = data.clone();
    let mut parts = Vec::new();
    if let Some(Value::String(hash)) = data.remove("hash") {
        parts.push(shown(&hash));
    }
    parts.extend(asset_name.map(shown));
    if let Some(size_bytes) = data.remove("size_bytes").and_then(|size| size.as_u64()) {
        parts.push(bytes(size_bytes));
    }
    let device = data.remove("device");
    match (data.remove("name"), device) {
        (Some(Value::String(name)), _) if !name.is_empty() => parts.push(shown(&name)),
        (_, Some(Value::String(device))) => parts.push(device_text(&device, names)),
        _ => {}
    }
    if let Some(Value::String(from)) = data.remove("from") {
        parts.push(format!("from {}", device_text(&from, names)));
    }
    for (name, value) in data {
        let value = match &value {
            Value::String(text) => shown(text),
            Value::Array(items) if items.iter().all(Value::is_string) => {
                let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                shown(&items.join(", "))
            }
            other => shown(&other.to_string()),
        };
        parts.push(format!("{}: {value}", shown(&name)));
    }
    parts
}

/// A device's name, or the start of its node ID.
fn device_name(node_id: NodeId, names: &BTreeMap<NodeId, String>) -> String {
    names.get(&node_id).map_or_else(|| node_id.short(), |name| shown(name))
}

/// A device named in an event's data, as text. Any program may have written it.
fn device_text(text: &str, names: &BTreeMap<NodeId, String>) -> String {
    text.parse().map_or_else(|_| shown(text), |node_id| device_name(node_id, names))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line_that_cannot_act_on_the_terminal() {
        let names = BTreeMap::from([(NodeId([0xaa; 32]), "desk".to_owned())]);
        let event = json!({
            "author": "aa".repeat(32),
            "log": "ee".repeat(16),
            "event_seq": 0,
            "hlc": "0",
            "time_ms": 1_795_273_924_000_u64,
            "type": "asset-received",
            "asset_name": "pictures/se\u{1b}a.jpg",
            "data": {
                "hash": "cd".repeat(32), "size_bytes": 2048, "from": "bb".repeat(32),
                "x": "\u{1b}[2J",
            },
        });
        let hash = "cd".repeat(32);
        assert_eq!(
            line(&serde_json::from_value(event).unwrap(), &names),
            format!(
                "2026-11-21T15:12:04Z  desk  asset-received  {hash}  pictures/se\\u{{1b}}a.jpg  \
                 2.0 KiB  from bbbbbbbbbb  x: \\u{{1b}}[2J"
            )
        );
    }
}
