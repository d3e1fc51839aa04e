//! `records`: the shared database of small records, by hand and from scripts.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::devices;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::shown;

/// Records asked for at once.
const PAGE_RECORDS: &str = "1000";

/// What `can-sync records` takes.
#[derive(Debug, Args)]
pub(crate) struct RecordsArgs {
    #[command(subcommand)]
    command: RecordsCommand,
    /// This device's own records: others can read and not write them
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
        /// Its name among its kind
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Write to a record, and make it when there is none
    Put {
        /// The kind of record
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        model: String,
        /// Its name among its kind
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
        /// Its name among its kind
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

#[derive(Deserialize)]
struct Page {
    records: Vec<Value>,
    next: Option<String>,
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
        None | Some("any") => owner,
        Some(text) => Some(devices::node_id(&devices::all(client).await?, text)?.to_string()),
    };
    let whose: Vec<(&str, &str)> = owner.iter().map(|owner| ("owner", owner.as_str())).collect();
    match command {
        RecordsCommand::Ls { model, prefix } => {
            let mut after: Option<String> = None;
            loop {
                let filters = [("prefix", prefix.as_str()), ("limit", PAGE_RECORDS)];
                let mut query = [&whose[..], &filters].concat();
                query.extend(after.as_deref().map(|after| ("after", after)));
                let page: Page = client.get(&["v1", scope, &model], &query).await?;
                output.values(&page.records, line)?;
                after = Some(match page.next {
                    Some(next) => next,
                    None => return Ok(Exit::Ok),
                });
            }
        }
        RecordsCommand::Get { model, id } => {
            let record: Value = client.get(&["v1", scope, &model, &id], &whose).await?;
            output.value(&record, line)?;
        }
        RecordsCommand::Put { model, id, writes } => {
            let written: Value =
                client.put(&["v1", scope, &model, &id], &parse_writes(&writes)?).await?;
            answer(&written, output)?;
        }
        RecordsCommand::Delete { model, id } => {
            let written: Value = client.delete(&["v1", scope, &model, &id]).await?;
            answer(&written, output)?;
        }
        RecordsCommand::Watch { model, since } => {
            let owner = match own {
                true => Some(client.status().await?.device.node_id.to_string()),
                false => owner,
            };
            let given = [("model", &model), ("since", &since)];
            let query: Vec<(&str, &str)> =
                given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
            let mut events = client.events(&["v1", "watch"], &query).await?;
            loop {
                let (name, data) = events.next().await?;
                let record: Value = serde_json::from_str(&data).unwrap_or_default();
                let is_wanted = owner.as_deref().is_none_or(|owner| is_of(&record, owner));
                if name == "record" && is_wanted {
                    output.value(&record, line)?;
                }
            }
        }
    }
    Ok(Exit::Ok)
}

/// Whether a record is a device's own.
fn is_of(record: &Value, owner: &str) -> bool {
    record["owner"].as_str().is_some_and(|whose| owner == "any" || owner == whose)
}

/// Prints the answer to a write, which only programs need.
fn answer(written: &Value, output: Output) -> Result<(), Failure> {
    if output.json { output.json(written) } else { Ok(()) }
}

/// What to write, from `FIELD=VALUE`, `FIELD+=TEXT` and `FIELD-=TEXT`.
fn parse_writes(writes: &[String]) -> Result<Value, Failure> {
    let mut set = Map::new();
    let (mut add, mut remove) = (Map::new(), Map::new());
    for write in writes {
        let Some((field, value)) = write.split_once('=') else {
            let message =
                format!("expected FIELD=VALUE, FIELD+=TEXT or FIELD-=TEXT, got {write:?}");
            return Err(Failure::new(Exit::Usage, message));
        };
        let sets = [(field.strip_suffix('+'), &mut add), (field.strip_suffix('-'), &mut remove)];
        match sets.into_iter().find_map(|(field, sets)| Some((field?, sets))) {
            Some((field, sets)) => {
                let elems = sets.entry(field).or_insert_with(|| json!([]));
                if let Value::Array(elems) = elems {
                    elems.push(json!(value));
                }
            }
            None => {
                let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
                set.insert(field.to_owned(), value);
            }
        }
    }
    Ok(json!({ "set": set, "add": add, "remove": remove }))
}

/// A record for people.
fn line(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().unwrap_or_default();
    let mut parts = vec![format!("{}/{}", shown(text("model")), shown(text("id")))];
    parts.extend(
        record["owner"]
            .as_str()
            .map(|owner| format!("of {}", shown(owner.get(..10).unwrap_or(owner)))),
    );
    if record["deleted"] == true {
        parts.push("(deleted)".into());
    }
    if record["too_large"] == true {
        parts.push("(too large to be shown)".into());
    }
    for (name, value) in record["fields"].as_object().into_iter().flatten() {
        parts.push(format!("{}={}", shown(name), shown(&value.to_string())));
    }
    for (name, elems) in record["sets"].as_object().into_iter().flatten() {
        let elems: Vec<_> =
            elems.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(format!("{}={{{}}}", shown(name), shown(&elems.join(", "))));
    }
    parts.join("  ")
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
        assert_eq!(parsed, expected);
        assert!(parse_writes(&["field".into()]).is_err());
    }

    #[test]
    fn a_record_is_a_line() {
        let record = json!({
            "model": "note", "id": "1", "owner": null,
            "fields": { "n": 7, "t": "a\u{1b}" }, "sets": { "tags": ["x", "y"] },
        });
        assert_eq!(line(&record), "note/1  n=7  t=\"a\\u001b\"  tags={x, y}");
    }
}
