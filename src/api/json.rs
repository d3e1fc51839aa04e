//! The journal's things as JSON. Pure: what is malformed is refused here, once, with 400.
//!
//! Values are JSON's own: `true`, `7`, `7.5`, `"text"`, `null`; bytes are `{"bytes": "<base64>"}`.
//! Ids are text, those of the model `asset` the asset's hash in hex. A cursor is
//! `<epoch>-<number of arrival>`; an ETag is the cursor of a record's last change.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::core::ids::{Hash, LogId, NodeId};
use crate::core::journal::asset::ASSET_MODEL;
use crate::core::journal::draft::DraftPut;
use crate::core::journal::op::{Elem, Key, Value};
use crate::http::problem::{Problem, problem};
use crate::state::journal::{Change, Cursor, EventRow, Owner, Record};

/// The one member of an object that stands for bytes.
const BYTES: &str = "bytes";

pub(super) fn bad_request(detail: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, detail)
}

// ---- values --------------------------------------------------------------------------------------

/// A field's value as JSON.
fn value_json(value: Option<&Value>) -> Json {
    match value {
        None => Json::Null,
        Some(Value::Bool(b)) => json!(b),
        Some(Value::Int(i)) => json!(i),
        // What is no number has no JSON: it can only come from another program than this one.
        Some(Value::Double(d)) => serde_json::Number::from_f64(*d)
            .map_or_else(|| json!({ "double": d.to_string() }), Json::Number),
        Some(Value::Text(text)) => json!(text),
        Some(Value::Bytes(bytes)) => bytes_json(bytes),
    }
}

fn bytes_json(bytes: &[u8]) -> Json {
    json!({ BYTES: BASE64.encode(bytes) })
}

/// Reads a field's value; the inner `None` is null.
fn parse_value(value: &Json) -> Result<Option<Value>, Problem> {
    Ok(Some(match value {
        Json::Null => return Ok(None),
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(i), _) => Value::Int(i),
            (None, Some(d)) if number.is_f64() => Value::Double(d),
            _ => return Err(bad_request(format!("{number} does not fit 64 bits with a sign"))),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(members) => Value::Bytes(parse_bytes(members)?),
        Json::Array(_) => {
            return Err(bad_request("a value is no array: use a set, or text that holds JSON"));
        }
    }))
}

fn parse_bytes(members: &Map<String, Json>) -> Result<Vec<u8>, Problem> {
    let text = members.get(BYTES).and_then(Json::as_str).filter(|_| members.len() == 1);
    let text = text.ok_or_else(|| bad_request("the only object is {\"bytes\": \"<base64>\"}"))?;
    BASE64.decode(text.as_bytes()).map_err(|error| bad_request(format!("bytes: {error}")))
}

// ---- records -------------------------------------------------------------------------------------

/// What a request writes to a record.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Writes {
    pub(super) set: BTreeMap<String, Json>,
    pub(super) add: BTreeMap<String, BTreeSet<String>>,
    pub(super) remove: BTreeMap<String, BTreeSet<String>>,
}

impl Writes {
    /// The writes to a record.
    pub(super) fn into_put(self, key: Key, create: bool) -> Result<DraftPut, Problem> {
        let value = |(field, value): (String, Json)| Ok((field, parse_value(&value)?));
        let set = self.set.into_iter().map(value).collect::<Result<_, Problem>>()?;
        Ok(DraftPut { key, create, set, add: elems(self.add), remove: elems(self.remove) })
    }
}

fn elems(sets: BTreeMap<String, BTreeSet<String>>) -> BTreeSet<Elem> {
    let elems = |(field, elems): (String, BTreeSet<String>)| {
        elems.into_iter().map(move |elem| Elem { field: field.clone(), elem })
    };
    sets.into_iter().flat_map(elems).collect()
}

/// The record of a path or a batch.
pub(super) fn key(model: String, id: &str, owned: bool) -> Result<Key, Problem> {
    let id = match model.as_str() {
        ASSET_MODEL if !owned => parse_hash(id)?.0.to_vec(),
        _ => id.as_bytes().to_vec(),
    };
    Ok(Key { model, id, owned })
}

pub(super) fn parse_hash(text: &str) -> Result<Hash, Problem> {
    text.parse().map_err(|error| bad_request(format!("this is no hash: {error}")))
}

pub(super) fn parse_device(text: &str) -> Result<NodeId, Problem> {
    text.parse().map_err(|error| bad_request(format!("this is no node ID: {error}")))
}

/// The start of ids.
pub(super) fn parse_prefix(model: &str, text: &str, owned: bool) -> Result<Vec<u8>, Problem> {
    match model {
        ASSET_MODEL if !owned => HEXLOWER.decode(text.as_bytes()).map_err(|_| {
            bad_request("of assets a prefix is an even number of lower-case hex characters")
        }),
        _ => Ok(text.as_bytes().to_vec()),
    }
}

fn id_text(model: &str, owner: Owner, id: &[u8]) -> String {
    match (model, owner) {
        (ASSET_MODEL, Owner::Shared) => HEXLOWER.encode(id),
        _ => String::from_utf8_lossy(id).into_owned(),
    }
}

fn owner_json(owner: Owner) -> Json {
    match owner {
        Owner::Shared => Json::Null,
        Owner::Device(device) => json!(device.to_string()),
    }
}

/// A record as it is.
pub(super) fn record_json(epoch: LogId, record: &Record) -> Json {
    let fields: Map<String, Json> =
        record.fields.iter().map(|(name, v)| (name.clone(), value_json(v.as_ref()))).collect();
    let mut json = json!({
        "model": record.model,
        "id": id_text(&record.model, record.owner, &record.id),
        "owner": owner_json(record.owner),
        "fields": fields,
        "sets": record.sets,
        "changed_ms": record.newest.hlc.ms(),
        "etag": cursor_text(epoch, record.arr),
    });
    if record.is_too_large {
        json["too_large"] = true.into();
    }
    json
}

/// A record as a watcher is told of it.
pub(super) fn change_json(epoch: LogId, change: &Change) -> Json {
    match &change.record {
        Some(record) => record_json(epoch, record),
        None => json!({
            "model": change.model,
            "id": id_text(&change.model, change.owner, &change.id),
            "owner": owner_json(change.owner),
            "deleted": true,
            "etag": cursor_text(epoch, change.arr),
        }),
    }
}

// ---- places --------------------------------------------------------------------------------------

/// A cursor as text.
pub(super) fn cursor_text(epoch: LogId, arr: u64) -> String {
    format!("{epoch}-{arr}")
}

/// Reads a cursor.
pub(super) fn parse_cursor(text: &str) -> Result<Cursor, Problem> {
    let parts = text.split_once('-');
    let parsed = parts.and_then(|(epoch, arr)| {
        Some(Cursor { epoch: epoch.parse().ok()?, arr: arr.parse().ok()? })
    });
    parsed.ok_or_else(|| bad_request(format!("{text:?} is no cursor or ETag of this API")))
}

/// A place in an event stream: after the op of a number of arrival, or after one of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventPlace {
    pub(super) epoch: LogId,
    pub(super) arr: u64,
    /// [`u64::MAX`]: after all of them.
    pub(super) index: u64,
}

impl EventPlace {
    /// As text: a cursor, with `.<index>` when it is inside an op.
    pub(super) fn text(self) -> String {
        let whole = cursor_text(self.epoch, self.arr);
        if self.index == u64::MAX { whole } else { format!("{whole}.{}", self.index) }
    }

    /// Reads a place.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let (whole, index) = match text.split_once('.') {
            None => (text, Some(u64::MAX)),
            Some((whole, index)) => (whole, index.parse().ok()),
        };
        let Cursor { epoch, arr } = parse_cursor(whole)?;
        let index = index.ok_or_else(|| bad_request(format!("{text:?} is no event cursor")))?;
        Ok(Self { epoch, arr, index })
    }
}

/// Where the next page of records starts; opaque to the caller.
pub(super) fn page_text((owner, id): &(Owner, Vec<u8>)) -> String {
    let owner: &[u8] = match owner {
        Owner::Shared => &[],
        Owner::Device(device) => &device.0,
    };
    let length = [u8::try_from(owner.len()).unwrap_or_default()];
    BASE64URL_NOPAD.encode(&[&length[..], owner, id].concat())
}

/// Reads what [`page_text`] made.
pub(super) fn parse_page(text: &str) -> Result<(Owner, Vec<u8>), Problem> {
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok();
    let parsed = bytes.as_deref().and_then(|bytes| match bytes.split_first()? {
        (0, id) => Some((Owner::Shared, id.to_vec())),
        (&length, rest) => {
            let (owner, id) = rest.split_at_checked(length.into())?;
            Some((Owner::Device(NodeId::from_slice(owner)?), id.to_vec()))
        }
    });
    parsed.ok_or_else(|| bad_request("after must be the `next` of an earlier page"))
}

// ---- events --------------------------------------------------------------------------------------

/// An event. Data that is JSON shows as it is, other data as bytes.
pub(super) fn event_json(event: &EventRow) -> Json {
    json!({
        "author": event.author.to_string(),
        "log": event.log.to_string(),
        "event_seq": event.event_seq,
        "hlc": format!("{:016x}", event.hlc.0),
        "time_ms": event.hlc.ms(),
        "type": event.kind,
        "data": serde_json::from_slice(&event.data).unwrap_or_else(|_| bytes_json(&event.data)),
    })
}

/// An event's data from JSON: bytes are kept as they are, anything else as its JSON.
pub(super) fn event_data(data: &Json) -> Vec<u8> {
    let bytes = data.as_object().and_then(|members| parse_bytes(members).ok());
    bytes.unwrap_or_else(|| data.to_string().into_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn back(value: Json) -> Json {
        value_json(parse_value(&value).unwrap().as_ref())
    }

    #[test]
    fn values_come_back_as_they_were_given() {
        for value in [
            json!(null),
            json!(true),
            json!(-7),
            json!(i64::MAX),
            json!(1.0),
            json!(-2.5e300),
            json!("ü \u{0}"),
            json!({ "bytes": "AP8=" }),
        ] {
            assert_eq!(back(value.clone()), value);
        }
        assert_eq!(parse_value(&json!(1.0)).unwrap(), Some(Value::Double(1.0)));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for value in [
            json!([]),
            json!({}),
            json!({ "bytes": 1 }),
            json!({ "bytes": "A" }),
            json!({ "bytes": "AP8=", "more": 1 }),
            json!(u64::MAX),
        ] {
            assert_eq!(parse_value(&value).unwrap_err().status, 400, "{value}");
        }
    }

    #[test]
    fn places_come_back_from_their_text() {
        let epoch = LogId([0xab; 16]);
        assert_eq!(parse_cursor(&cursor_text(epoch, 7)).unwrap(), Cursor { epoch, arr: 7 });
        for index in [0, 3, u64::MAX] {
            let place = EventPlace { epoch, arr: 7, index };
            assert_eq!(EventPlace::parse(&place.text()).unwrap(), place);
        }
        for page in [
            (Owner::Shared, b"x".to_vec()),
            (Owner::Shared, vec![]),
            (Owner::Device(NodeId([7; 32])), vec![0, 255]),
        ] {
            assert_eq!(parse_page(&page_text(&page)).unwrap(), page);
        }
        for text in ["", "-", "1-1", "x", &format!("{epoch}-"), &format!("{epoch}--1")] {
            assert!(parse_cursor(text).is_err() && EventPlace::parse(text).is_err(), "{text}");
        }
        for text in ["", "!", "BQ", "IAAA"] {
            assert!(parse_page(text).is_err(), "{text}");
        }
    }

    #[test]
    fn assets_are_named_by_their_hash_and_other_records_by_text() {
        let hash = "ab".repeat(32);
        assert_eq!(key("asset".into(), &hash, false).unwrap().id, [0xab; 32]);
        assert!(key("asset".into(), "photo", false).is_err());
        assert_eq!(key("asset".into(), "photo", true).unwrap().id, b"photo");
        assert_eq!(key("note".into(), &hash, false).unwrap().id, hash.as_bytes());
    }

    #[test]
    fn data_of_events_is_json_or_bytes() {
        assert_eq!(event_data(&json!({ "bytes": "AP8=" })), [0, 255]);
        assert_eq!(event_data(&json!({ "a": 1 })), b"{\"a\":1}");
    }
}
