//! `records`: the shared database of small records, by hand and from scripts.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Client, read_event};
use super::devices;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;
use crate::api::answers::{DeletedRecord, Record, RecordsPage, WatchedRecord, Written};
use crate::api::json::Writes;
use crate::core::ids::NodeId;

/// Records asked for at once.
const PAGE_RECORDS: &str = "1000";

/// The arguments of `can-sync records`.
#[derive(Debug, Args)]
pub(crate) struct RecordsArgs {
    #[command(subcommand)]
    command: RecordsCommand,
    /// This device's own records, which other devices can only read
    #[arg(long, global = true)]
    own: bool,
    /// Another device's own records: its name, node ID or the start of it; `any` for all
    #[arg(long, global = true, value_name = "DEVICE", conflicts_with = "own")]
    owner: Option<String>,
}

#[derive(Debug, Subcommand)]
enum RecordsCommand {
    /// List the records of a model
    Ls {
        /// The kind of records
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        model: String,
        /// Only ids that start with this
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Show a record
    Get {
        /// The kind of record
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        model: String,
        /// The record's name among its kind
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Write to a record; create it if it does not exist
    Put {
        /// The kind of record
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        model: String,
        /// The record's name among its kind
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// FIELD=VALUE sets a field: JSON when it is a value of JSON (7, true, null, "7"), else text;
        /// FIELD+=TEXT and FIELD-=TEXT put an element into a set and take it out
        #[arg(value_name = "FIELD=VALUE")]
        writes: Vec<String>,
    },
    /// Delete a record
    Delete {
        /// The kind of record
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        model: String,
        /// The record's name among its kind
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Show records, then their changes as they come, until stopped
    Watch {
        /// The kind of records [default: all]
        model: Option<String>,
        /// Only changes after this cursor; `now` for those to come
        #[arg(long, value_name = "CURSOR")]
        since: Option<String>,
    },
}

/// Whose own records are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Any,
    Device(NodeId),
}

/// `can-sync records`
pub(crate) async fn records(
    client: &Client,
    args: RecordsArgs,
    output: Output,
) -> Result<Exit, Failure> {
    let RecordsArgs { command, own, owner } = args;
    let writes = matches!(command, RecordsCommand::Put { .. } | RecordsCommand::Delete { .. });
    if owner.is_some() && writes {
        return Err(Failure::new(Exit::Usage, "only its owner writes an owned record"));
    }
    let scope = if own || owner.is_some() { "own" } else { "records" };
    let owner = match owner.as_deref() {
        None => None,
        Some("any") => Some(Whose::Any),
        Some(text) => Some(Whose::Device(devices::node_id(&devices::all(client).await?, text)?)),
    };
    let owner_text = owner.map(|owner| match owner {
        Whose::Any => "any".to_owned(),
        Whose::Device(device) => device.to_string(),
    });
    let whose: Vec<(&str, &str)> = owner_text.iter().map(|owner| ("owner", &owner[..])).collect();
    match command {
        RecordsCommand::Ls { model, prefix } => {
            let mut after: Option<String> = None;
            loop {
                let filters = [("prefix", prefix.as_str()), ("limit", PAGE_RECORDS)];
                let mut query = [&whose[..], &filters].concat();
                query.extend(after.as_deref().map(|after| ("after", after)));
                let page: RecordsPage = client.get(&["v1", scope, &model], &query).await?;
                output.values(&page.records, line)?;
                after = Some(match page.next {
                    Some(next) => next.to_string(),
                    None => return Ok(Exit::Ok),
                });
            }
        }
        RecordsCommand::Get { model, id } => {
            let record: Record = client.get(&["v1", scope, &model, &id], &whose).await?;
            output.value(&record, line)?;
        }
        RecordsCommand::Put { model, id, writes } => {
            let written: Written =
                client.put(&["v1", scope, &model, &id], &parse_writes(&writes)?).await?;
            answer(&written, output)?;
        }
        RecordsCommand::Delete { model, id } => {
            let written: Written = client.delete(&["v1", scope, &model, &id]).await?;
            answer(&written, output)?;
        }
        RecordsCommand::Watch { model, since } => {
            let owner = match own {
                true => Some(Whose::Device(client.status().await?.device.node_id)),
                false => owner,
            };
            let given = [("model", &model), ("since", &since)];
            let query: Vec<(&str, &str)> =
                given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
            let mut events = client.events(&["v1", "watch"], &query).await?;
            loop {
                let (name, data) = events.next().await?;
                if name != "record" {
                    continue;
                }
                let record: WatchedRecord = read_event(&data)?;
                if owner.is_none_or(|owner| is_of(&record, owner)) {
                    output.value(&record, watched_line)?;
                }
            }
        }
    }
    Ok(Exit::Ok)
}

/// Whether a record is a device's own.
fn is_of(record: &WatchedRecord, owner: Whose) -> bool {
    match owner {
        Whose::Any => record.owner().is_some(),
        Whose::Device(device) => record.owner() == Some(device),
    }
}

/// Prints the answer to a write, which only programs need.
fn answer(written: &Written, output: Output) -> Result<(), Failure> {
    if output.json { output.json(written) } else { Ok(()) }
}

/// Parses the writes `FIELD=VALUE`, `FIELD+=TEXT` and `FIELD-=TEXT`.
fn parse_writes(given: &[String]) -> Result<Writes, Failure> {
    let mut writes = Writes::default();
    for write in given {
        let Some((field, value)) = write.split_once('=') else {
            let message =
                format!("expected FIELD=VALUE, FIELD+=TEXT or FIELD-=TEXT, got {write:?}");
            return Err(Failure::new(Exit::Usage, message));
        };
        if let Some(field) = field.strip_suffix('+') {
            writes.add.entry(field.to_owned()).or_default().insert(value.to_owned());
        } else if let Some(field) = field.strip_suffix('-') {
            writes.remove.entry(field.to_owned()).or_default().insert(value.to_owned());
        } else {
            let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            writes.set.insert(field.to_owned(), value);
        }
    }
    Ok(writes)
}

/// A record for people.
fn line(record: &Record) -> String {
    let mut parts = named(&record.model, &record.id, record.owner);
    if record.too_large {
        parts.push("(too large to be shown)".into());
    }
    for (name, value) in &record.fields {
        parts.push(format!("{}={}", shown(name), shown(&value.to_string())));
    }
    for (name, elems) in &record.sets {
        let elems: Vec<_> = elems.iter().map(String::as_str).collect();
        parts.push(format!("{}={{{}}}", shown(name), shown(&elems.join(", "))));
    }
    parts.join("  ")
}

/// A record for people, as it was written or deleted.
fn watched_line(record: &WatchedRecord) -> String {
    match record {
        WatchedRecord::Written(record) => line(record),
        WatchedRecord::Deleted(DeletedRecord { model, id, owner, .. }) => {
            let mut parts = named(model, id, *owner);
            parts.push("(deleted)".into());
            parts.join("  ")
        }
    }
}

fn named(model: &str, id: &str, owner: Option<NodeId>) -> Vec<String> {
    let mut parts = vec![format!("{}/{}", shown(model), shown(id))];
    parts.extend(owner.map(|owner| format!("of {}", owner.short())));
    parts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_fields_of_json_or_text_and_elements_of_sets() {
        let writes =
            ["n=7", "t=milk", "q=\"7\"", "e=", "z=null", "tags+=a=b", "tags-=c", "tags+=d"];
        let parsed = parse_writes(&writes.map(str::to_owned)).unwrap();
        let set = json!({ "n": 7, "t": "milk", "q": "7", "e": "", "z": null });
        let expected =
            json!({ "set": set, "add": { "tags": ["a=b", "d"] }, "remove": { "tags": ["c"] } });
        assert_eq!(serde_json::to_value(parsed).unwrap(), expected);
        assert!(parse_writes(&["field".into()]).is_err());
    }

    #[test]
    fn a_record_is_a_line() {
        let record = json!({
            "model": "note", "id": "1", "owner": null,
            "fields": { "n": 7, "t": "a\u{1b}" }, "sets": { "tags": ["x", "y"] },
            "changed_ms": 0, "etag": format!("{}-1", "ab".repeat(16)),
        });
        let record: Record = serde_json::from_value(record).unwrap();
        assert_eq!(line(&record), "note/1  n=7  t=\"a\\u001b\"  tags={x, y}");
    }
}
