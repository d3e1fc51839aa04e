//! Converts records, values and events of the journal from and to JSON. Pure. Malformed JSON is
//! refused here, with status 400.
//!
//! Values are JSON values: `true`, `7`, `7.5`, `"text"`, `null`; bytes are
//! `{"bytes": "<base64>"}`. Ids are text; in the shared models `asset`,
//! `file` and `folder` they are bytes in hex.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::answers::{DeletedRecord, Event, Record, WatchedRecord};
use crate::core::folder::{FILE_ID_BYTES, FILE_MODEL, FOLDER_MODEL};
use crate::core::ids::{FolderId, Hash, LogId, NodeId};
use crate::core::journal::asset::ASSET_MODEL;
use crate::core::journal::draft::DraftPut;
use crate::core::journal::op::{Elem, Key, Value};
use crate::core::journal::stamp::Hlc;
use crate::http::problem::{Problem, bad_request};
use crate::state::journal::{self, Change, Cursor, EventRow, Owner};

/// The only member of an object that represents bytes.
const BYTES: &str = "bytes";

// ---- values --------------------------------------------------------------------------------------

/// The schema of a field's value.
pub(super) struct FieldValue;

impl PartialSchema for FieldValue {
    fn schema() -> RefOr<Schema> {
        let one = |kind| ObjectBuilder::new().schema_type(kind);
        let bytes = one(Type::Object)
            .property(BYTES, one(Type::String).content_encoding("base64"))
            .required(BYTES)
            .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)));
        let kinds = [Type::Null, Type::Boolean, Type::Number, Type::String];
        let plain = kinds.into_iter().fold(OneOfBuilder::new(), |any, kind| any.item(one(kind)));
        let description =
            "A field's value, at most 16 KiB. Whole numbers have 64 bits with a sign.";
        plain.item(bytes).description(Some(description)).into()
    }
}

impl ToSchema for FieldValue {
    fn name() -> std::borrow::Cow<'static, str> {
        "FieldValue".into()
    }
}

/// A field's value as JSON.
fn value_json(value: Option<&Value>) -> Json {
    match value {
        None => Json::Null,
        Some(Value::Bool(b)) => json!(b),
        Some(Value::Int(i)) => json!(i),
        // NaN and infinity have no JSON; only other programs can write them.
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
            _ => {
                return Err(bad_request(format!(
                    "{number} does not fit into a signed 64-bit integer"
                )));
            }
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(members) => Value::Bytes(parse_bytes(members)?),
        Json::Array(_) => {
            return Err(bad_request(
                "a value must not be an array: use a set, or a text that contains JSON",
            ));
        }
    }))
}

fn parse_bytes(members: &Map<String, Json>) -> Result<Vec<u8>, Problem> {
    let text = members.get(BYTES).and_then(Json::as_str).filter(|_| members.len() == 1);
    let text = text.ok_or_else(|| {
        bad_request("the only object allowed as a value is {\"bytes\": \"<base64>\"}")
    })?;
    BASE64.decode(text.as_bytes()).map_err(|error| bad_request(format!("bytes: {error}")))
}

// ---- records -------------------------------------------------------------------------------------

/// The writes of a request to one record.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Writes {
    /// Fields to set.
    #[schema(value_type = BTreeMap<String, FieldValue>)]
    pub set: BTreeMap<String, Json>,
    /// Elements to add to sets, by field.
    pub add: BTreeMap<String, BTreeSet<String>>,
    /// Elements to remove from sets, by field.
    pub remove: BTreeMap<String, BTreeSet<String>>,
}

impl Writes {
    /// Converts to a draft put.
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

/// The length of the ids of a shared model whose ids are bytes; `None` for text.
fn id_bytes(model: &str) -> Option<usize> {
    match model {
        ASSET_MODEL => Some(Hash::LEN),
        FILE_MODEL => Some(FILE_ID_BYTES),
        FOLDER_MODEL => Some(FolderId::LEN),
        _ => None,
    }
}

/// The key of the record that a path or a batch names.
pub(super) fn key(model: String, id: &str, owned: bool) -> Result<Key, Problem> {
    let id = match id_bytes(&model) {
        Some(length) if !owned => {
            let bytes = HEXLOWER.decode(id.as_bytes()).ok().filter(|bytes| bytes.len() == length);
            bytes.ok_or_else(|| {
                let chars = 2 * length;
                let got: String = id.chars().take(80).collect();
                bad_request(format!(
                    "an id of the model {model:?} is {chars} lower-case hex characters, got {got:?}"
                ))
            })?
        }
        _ => id.as_bytes().to_vec(),
    };
    Ok(Key { model, id, owned })
}

/// Parses a prefix of ids.
pub(super) fn parse_prefix(model: &str, text: &str, owned: bool) -> Result<Vec<u8>, Problem> {
    if id_bytes(model).is_none() || owned {
        return Ok(text.as_bytes().to_vec());
    }
    HEXLOWER.decode(text.as_bytes()).map_err(|_| {
        bad_request(format!(
            "a prefix of {model} ids must be an even number of lower-case hex characters"
        ))
    })
}

fn id_text(model: &str, owner: Owner, id: &[u8]) -> String {
    match owner {
        Owner::Shared if id_bytes(model).is_some() => HEXLOWER.encode(id),
        _ => String::from_utf8_lossy(id).into_owned(),
    }
}

fn node_id(owner: Owner) -> Option<NodeId> {
    match owner {
        Owner::Shared => None,
        Owner::Device(device) => Some(device),
    }
}

/// A record as JSON.
pub(super) fn record(epoch: LogId, record: &journal::Record) -> Record {
    let fields = record.fields.iter();
    Record {
        model: record.model.clone(),
        id: id_text(&record.model, record.owner, &record.id),
        owner: node_id(record.owner),
        fields: fields.map(|(name, v)| (name.clone(), value_json(v.as_ref()))).collect(),
        sets: record.sets.clone(),
        changed_ms: record.newest.hlc.ms(),
        too_large: record.is_too_large,
        etag: Cursor { epoch, arr: record.arr },
    }
}

/// A changed record as JSON for a watcher.
pub(super) fn change(epoch: LogId, change: &Change) -> WatchedRecord {
    match &change.record {
        Some(written) => WatchedRecord::Written(record(epoch, written)),
        None => WatchedRecord::Deleted(DeletedRecord {
            model: change.model.clone(),
            id: id_text(&change.model, change.owner, &change.id),
            owner: node_id(change.owner),
            deleted: true,
            etag: Cursor { epoch, arr: change.arr },
        }),
    }
}

// ---- events --------------------------------------------------------------------------------------

/// An event as JSON. Data that is not JSON is represented as bytes. `names` are those of assets.
pub(super) fn event(row: &EventRow, names: &BTreeMap<Hash, String>) -> Event {
    Event {
        asset_name: event_hash(row).and_then(|hash| names.get(&hash).cloned()),
        author: row.author,
        log: row.log,
        event_seq: row.event_seq,
        hlc: hlc_text(row.hlc),
        time_ms: row.hlc.ms(),
        kind: row.kind.clone(),
        data: serde_json::from_slice(&row.data).unwrap_or_else(|_| bytes_json(&row.data)),
    }
}

/// The asset that an event's data names.
pub(super) fn event_hash(row: &EventRow) -> Option<Hash> {
    let data: Json = serde_json::from_slice(&row.data).ok()?;
    data["hash"].as_str()?.parse().ok()
}

/// A hybrid clock's time as text; later times sort after earlier ones.
pub(super) fn hlc_text(hlc: Hlc) -> String {
    format!("{:016x}", hlc.0)
}

/// Converts an event's data from JSON: bytes are stored as they are, other values as JSON text.
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
    fn assets_are_named_by_their_hash_and_other_records_by_text() {
        let hash = "ab".repeat(32);
        assert_eq!(key("asset".into(), &hash, false).unwrap().id, [0xab; 32]);
        assert!(key("asset".into(), "photo", false).is_err());
        assert_eq!(key("asset".into(), "photo", true).unwrap().id, b"photo");
        assert_eq!(key("file".into(), &hash, false).unwrap().id, [0xab; 32]);
        assert_eq!(key("folder".into(), &hash[..32], false).unwrap().id, [0xab; 16]);
        assert!(key("folder".into(), &hash, false).is_err());
        assert_eq!(parse_prefix("file", "abab", false).unwrap(), [0xab; 2]);
        assert_eq!(id_text("folder", Owner::Shared, &[0xab; 16]), hash[..32]);
        assert_eq!(key("note".into(), &hash, false).unwrap().id, hash.as_bytes());
    }

    #[test]
    fn data_of_events_is_json_or_bytes() {
        assert_eq!(event_data(&json!({ "bytes": "AP8=" })), [0, 255]);
        assert_eq!(event_data(&json!({ "a": 1 })), b"{\"a\":1}");
    }
}
