//! Records: shared ones under `/v1/records`, a device's own under `/v1/own`, several at once under
//! `/v1/batch`. A write is one op of the journal, durable when it is answered; it reaches the other
//! devices by itself. `If-Match` with a record's ETag ties a write to what its writer saw on this
//! device; between devices nothing is ever refused, the later write stays.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::json::{
    Writes, bad_request, cursor_text, event_data, key, page_text, parse_cursor, parse_device,
    parse_page, parse_prefix, record_json,
};
use super::{Api, json_body};
use crate::core::ids::NodeId;
use crate::core::journal::draft::{Draft, DraftChange, Expect};
use crate::core::journal::op::Key;
use crate::core::limits::{RECORD_BYTES_MAX, RECORD_ID_BYTES_MAX};
use crate::http::problem::{Problem, problem};
use crate::state::journal::{JournalError, JournalReader, Owner, Written};

/// A body of writes: the longest op, every byte escaped.
const WRITES_BYTES_MAX: u64 = 512 * 1024;

/// Records of a listing when the request does not say how many, and the most of them.
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1000;

/// Whose records a path is about.
#[derive(Debug, Clone, Copy)]
struct Owned(bool);

/// The routes.
pub(super) fn router() -> Router<Api> {
    let shared = Router::new()
        .route("/v1/records/{model}", get(list))
        .route("/v1/records/{model}/{id}", get(read).put(put).patch(patch).delete(remove))
        .layer(Extension(Owned(false)));
    let own = Router::new()
        .route("/v1/own/{model}", get(list))
        .route("/v1/own/{model}/{id}", get(read).put(put).patch(patch).delete(remove))
        .layer(Extension(Owned(true)));
    shared.merge(own).route("/v1/batch", post(batch))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
    owner: Option<String>,
}

async fn list(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    Path(model): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be 1 to {LIST_MAX}, got {limit}")));
    }
    let prefix = parse_prefix(&model, query.prefix.as_deref().unwrap_or_default(), owned)?;
    let mut after = query.after.as_deref().map(parse_page).transpose()?;
    let owner = match query.owner.as_deref() {
        Some("any") if owned => None,
        owner => Some(whose(&api, owned, owner)?),
    };
    if owner.is_none() && after.is_none() {
        // Past the last shared record that there can be: ids are shorter.
        after = Some((Owner::Shared, vec![0xff; RECORD_ID_BYTES_MAX + 1]));
    }
    let (cursor, page) = api
        .handle
        .journal()
        .read(move |journal| {
            // The cursor first: what changes in between shows twice rather than never.
            let cursor = journal.cursor_now()?.ok_or(JournalError::NoGroup)?;
            Ok((cursor, journal.records(&model, owner, &prefix, after.as_ref(), limit)?))
        })
        .await?;
    let records: Vec<_> =
        page.records.iter().map(|record| record_json(cursor.epoch, record)).collect();
    let next = page.next.as_ref().map(page_text);
    let cursor = cursor_text(cursor.epoch, cursor.arr);
    Ok(Json(json!({ "records": records, "next": next, "cursor": cursor })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadQuery {
    owner: Option<String>,
}

async fn read(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    Path((model, id)): Path<(String, String)>,
    Query(query): Query<ReadQuery>,
) -> Result<Response, Problem> {
    let key = key(model, &id, owned)?;
    let owner = whose(&api, owned, query.owner.as_deref())?;
    let read = move |journal: &JournalReader| {
        let cursor = journal.cursor_now()?.ok_or(JournalError::NoGroup)?;
        Ok((cursor.epoch, journal.record(&key.model, owner, &key.id)?))
    };
    let (epoch, record) = api.handle.journal().read(read).await?;
    let record = record.ok_or_else(|| problem(StatusCode::NOT_FOUND, "there is no such record"))?;
    if record.is_too_large {
        let detail = format!(
            "the record has more than the {RECORD_BYTES_MAX} bytes that are read of one: take \
             something out of it, or delete it"
        );
        return Err(problem(StatusCode::CONFLICT, detail));
    }
    let mut response = Json(record_json(epoch, &record)).into_response();
    put_etag(&mut response, &cursor_text(epoch, record.arr));
    Ok(response)
}

/// Whose records are read: `owner` is a node ID, this device when left out.
fn whose(api: &Api, owned: bool, owner: Option<&str>) -> Result<Owner, Problem> {
    match (owned, owner) {
        (false, None) => Ok(Owner::Shared),
        (false, Some(_)) => Err(bad_request("shared records have no owner: see /v1/own")),
        (true, Some(device)) => Ok(Owner::Device(parse_device(device)?)),
        (true, None) => Ok(Owner::Device(this_device(api))),
    }
}

fn this_device(api: &Api) -> NodeId {
    api.handle.status().device.node_id
}

async fn put(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    Path((model, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writes: Writes = json_body(&headers, body, WRITES_BYTES_MAX).await?;
    let key = key(model, &id, owned)?;
    let expect = conditions(&api, &key, &headers).await?;
    let change = DraftChange::Put(writes.into_put(key, true)?);
    write(&api, Draft { changes: vec![change], expect }).await
}

async fn patch(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    Path((model, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writes: Writes = json_body(&headers, body, WRITES_BYTES_MAX).await?;
    let key = key(model, &id, owned)?;
    let mut expect = conditions(&api, &key, &headers).await?;
    expect.push(Expect::Alive(key.clone()));
    let change = DraftChange::Put(writes.into_put(key, false)?);
    write(&api, Draft { changes: vec![change], expect }).await
}

async fn remove(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    Path((model, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let key = key(model, &id, owned)?;
    let mut expect = conditions(&api, &key, &headers).await?;
    expect.push(Expect::Alive(key.clone()));
    write(&api, Draft { changes: vec![DraftChange::Delete(key)], expect }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    changes: Vec<BatchChange>,
}

/// A change of a batch.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum BatchChange {
    Put(BatchWrite),
    Patch(BatchWrite),
    Delete(BatchDelete),
    Event(BatchEvent),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchWrite {
    model: String,
    id: String,
    #[serde(default)]
    own: bool,
    if_match: Option<String>,
    #[serde(default)]
    if_absent: bool,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    add: BTreeMap<String, BTreeSet<String>>,
    #[serde(default)]
    remove: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchDelete {
    model: String,
    id: String,
    #[serde(default)]
    own: bool,
    if_match: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchEvent {
    stream: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

async fn batch(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Batch { changes } = json_body(&headers, body, WRITES_BYTES_MAX).await?;
    let mut draft = Draft::default();
    for change in changes {
        let change = match change {
            BatchChange::Put(write) => write.into_change(&api, true, &mut draft.expect).await?,
            BatchChange::Patch(write) => write.into_change(&api, false, &mut draft.expect).await?,
            BatchChange::Delete(BatchDelete { model, id, own, if_match }) => {
                let key = key(model, &id, own)?;
                if let Some(etag) = &if_match {
                    draft.expect.push(unchanged(&api, &key, etag).await?);
                }
                draft.expect.push(Expect::Alive(key.clone()));
                DraftChange::Delete(key)
            }
            BatchChange::Event(BatchEvent { stream, kind, data }) => {
                DraftChange::Event { stream, kind, data: event_data(&data) }
            }
        };
        draft.changes.push(change);
    }
    write(&api, draft).await
}

impl BatchWrite {
    /// The change; its conditions go to `expect`.
    async fn into_change(
        self,
        api: &Api,
        create: bool,
        expect: &mut Vec<Expect>,
    ) -> Result<DraftChange, Problem> {
        let Self { model, id, own, if_match, if_absent, set, add, remove } = self;
        let key = key(model, &id, own)?;
        if let Some(etag) = &if_match {
            expect.push(unchanged(api, &key, etag).await?);
        }
        if if_absent {
            expect.push(Expect::Absent(key.clone()));
        }
        if !create {
            expect.push(Expect::Alive(key.clone()));
        }
        Ok(DraftChange::Put(Writes { set, add, remove }.into_put(key, create)?))
    }
}

/// The conditions that the headers of a write make.
async fn conditions(api: &Api, key: &Key, headers: &HeaderMap) -> Result<Vec<Expect>, Problem> {
    let mut expect = Vec::new();
    if let Some(etag) = headers.get(header::IF_MATCH) {
        let quoted = etag.to_str().ok().and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
        let etag = quoted.ok_or_else(|| bad_request("If-Match takes one ETag in quotes"))?;
        expect.push(unchanged(api, key, etag).await?);
    }
    if let Some(condition) = headers.get(header::IF_NONE_MATCH) {
        if condition != "*" {
            return Err(bad_request("If-None-Match of a write is *: the record is not there yet"));
        }
        expect.push(Expect::Absent(key.clone()));
    }
    Ok(expect)
}

async fn unchanged(api: &Api, key: &Key, etag: &str) -> Result<Expect, Problem> {
    let seen = parse_cursor(etag)?;
    if !api.handle.journal().read(move |journal| journal.knows(&seen)).await? {
        let detail = "the ETag is from before this device began anew: read the record again";
        return Err(problem(StatusCode::PRECONDITION_FAILED, detail));
    }
    Ok(Expect::Unchanged(key.clone(), seen.arr))
}

/// Writes a draft and says where it stands.
pub(super) async fn write(api: &Api, draft: Draft) -> Result<Response, Problem> {
    let written = api.handle.journal().write(draft).await??;
    let Some(Written { stamp, epoch, arr, event_seqs }) = written else {
        return Ok(Json(json!({ "cursor": null, "event_seqs": [] })).into_response());
    };
    let cursor = cursor_text(epoch, arr);
    let answer = json!({
        "cursor": cursor,
        "author": this_device(api).to_string(),
        "log": stamp.log.to_string(),
        "hlc": format!("{:016x}", stamp.hlc.0),
        "event_seqs": event_seqs,
    });
    let mut response = Json(answer).into_response();
    put_etag(&mut response, &cursor);
    Ok(response)
}

fn put_etag(response: &mut Response, etag: &str) {
    // Hex and digits: always a header's value.
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
}
