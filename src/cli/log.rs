//! `log`: what happened, on which device.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::assets;
use super::client::{Client, read_event};
use super::devices;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{bytes, parse_duration, shown};
use super::time::{Since, parse_since, utc};
use crate::api::answers::{Event, EventsPage, Gap, NumberedEvents, NumberedLog};
use crate::clock::wall_ms;
use crate::core::ids::NodeId;
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::journal::op::{KEEP_DAYS, STREAM_MODEL};

/// Events asked for at once.
const PAGE_EVENTS: &str = "1000";

/// The arguments of `can-sync log`.
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
    #[arg(long, short, conflicts_with = "order")]
    follow: bool,
    /// In which order: as it arrived here, or each device's own by its numbers, with what is missing
    #[arg(long, value_enum, value_name = "ORDER", conflicts_with_all = ["since", "asset"])]
    order: Option<Order>,
    /// With `--order device`: only events with a greater number
    #[arg(long, value_name = "N", requires = "order")]
    after_seq: Option<u64>,
    /// From now on keep events this long, on all devices: `90d`; `forever` for ever
    #[arg(long, value_name = "TIME", value_parser = parse_keep,
        conflicts_with_all = ["device", "since", "asset", "follow", "order"])]
    keep: Option<Keep>,
}

/// The order of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// As they arrived on this device
    Arrival,
    /// Each device's by its numbers
    Device,
}

/// How long events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keep(Option<u64>);

fn parse_keep(text: &str) -> Result<Keep, String> {
    if text == "forever" {
        return Ok(Keep(None));
    }
    let expected = || format!("expected whole days such as 90d, or forever; got {text:?}");
    let time = parse_duration(text).map_err(|_| expected())?;
    let days = time.as_secs() / DAY_S;
    (days > 0 && time.as_secs() % DAY_S == 0).then_some(Keep(Some(days))).ok_or_else(expected)
}

const DAY_S: u64 = 24 * 60 * 60;

/// `can-sync log`
pub(crate) async fn log(client: &Client, args: LogArgs, output: Output) -> Result<Exit, Failure> {
    if let Some(Keep(days)) = args.keep {
        return keep(client, days, output).await;
    }
    let devices = devices::all(client).await?;
    if args.order == Some(Order::Device) {
        return by_number(client, devices, args, output).await;
    }
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

/// Sets how long the events of devices are kept, on all devices.
async fn keep(client: &Client, days: Option<u64>, output: Output) -> Result<Exit, Failure> {
    let writes = json!({ "set": { KEEP_DAYS: days } });
    let written: Value =
        client.put(&["v1", "records", STREAM_MODEL, DEVICE_STREAM], &writes).await?;
    if output.json {
        output.json(&written)?;
    }
    output.note(match days {
        Some(days) => format!(
            "Events are kept for {days} days on all devices; older ones are dropped within a day."
        ),
        None => "Events are kept for ever from now on; dropped ones do not come back.".to_owned(),
    });
    Ok(Exit::Ok)
}

/// Shows each device's events by their numbers, and which are missing.
async fn by_number(
    client: &Client,
    devices: Vec<devices::Device>,
    args: LogArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let meant = match &args.device {
        Some(text) => vec![devices::node_id(&devices, text)?],
        None => devices.iter().map(|device| device.node_id).collect(),
    };
    let names: BTreeMap<_, _> =
        devices.into_iter().map(|device| (device.node_id, device.name)).collect();
    for device in meant.iter().map(ToString::to_string) {
        let route = ["v1", "events", DEVICE_STREAM, "numbered"];
        let found: NumberedEvents =
            client.get(&route, &[("device", &device), ("limit", "1")]).await?;
        for NumberedLog { log, .. } in found.logs {
            let log = log.to_string();
            let mut after_seq = args.after_seq;
            loop {
                let after = after_seq.map(|seq| seq.to_string());
                let mut query =
                    vec![("device", &device[..]), ("log", &log), ("limit", PAGE_EVENTS)];
                query.extend(after.as_deref().map(|after| ("after_seq", after)));
                let page: NumberedEvents = client.get(&route, &query).await?;
                show_numbered(&page, &names, output)?;
                if !page.more {
                    break;
                }
                after_seq = page.last_seq;
            }
        }
    }
    Ok(Exit::Ok)
}

fn show_numbered(
    page: &NumberedEvents,
    names: &BTreeMap<NodeId, String>,
    output: Output,
) -> Result<(), Failure> {
    if output.json {
        return output.json(page);
    }
    let mut gaps = page.gaps.iter().peekable();
    for event in &page.events {
        while let Some(gap) = gaps.next_if(|gap| gap.to_seq < event.event_seq) {
            output.line(gap_line(gap))?;
        }
        output.line(format!("#{}  {}", event.event_seq, line(event, names)))?;
    }
    gaps.try_for_each(|gap| output.line(gap_line(gap)))
}

fn gap_line(Gap { from_seq, to_seq }: &Gap) -> String {
    format!("#{from_seq} to #{to_seq} are missing: dropped after their time, or not here yet")
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
    if let (Some(Value::Object(before)), Some(Value::Object(after))) =
        (data.get("before").cloned(), data.get("after").cloned())
    {
        for known in ["fields", "before", "after"] {
            data.remove(known);
        }
        parts.extend(after.iter().map(|(field, now)| {
            let stood = before.get(field).map_or_else(|| "nothing".into(), held);
            format!("{}: {stood} -> {}", shown(field), held(now))
        }));
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

/// The text of a field's value.
fn held(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::String(text) => format!("\"{}\"", shown(text)),
        Value::Array(tags) => {
            let tags: Vec<_> = tags.iter().filter_map(Value::as_str).collect();
            format!("[{}]", shown(&tags.join(", ")))
        }
        other => shown(&other.to_string()),
    }
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
