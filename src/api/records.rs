//! Records: shared ones under `/v1/records`, a device's own under `/v1/own`, several at once under
//! `/v1/batch`. A write is one op of the journal, durable when it is answered; it reaches the other
//! devices by itself. `If-Match` with a record's ETag makes a write conditional: it is refused if the
//! record has changed on this device. Writes of several devices are never refused; the latest wins.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::openapi::path::{Parameter, PathItem};
use utoipa::openapi::{OpenApi, RefOr};
use utoipa::{IntoParams, OpenApi as _, ToSchema};

use super::Api;
use super::answers::{ModelView, ModelsPage, Record, RecordsPage, Written};
use super::json::{FieldValue, Writes, event_data, hlc_text, key, parse_prefix, record};
use super::places::RecordPlace;
use crate::core::ids::NodeId;
use crate::core::journal::draft::{Draft, DraftChange, Expect};
use crate::core::journal::op::Key;
use crate::core::limits::{PAGE_ROWS_MAX, RECORD_BYTES_MAX, RECORD_ID_BYTES_MAX};
use crate::http::extract::{Path, Query, json_body};
use crate::http::problem::{Problem, bad_request, problem};
use crate::state::journal::{Cursor, JournalError, JournalReader, Owner};

/// The largest body with writes: the longest op with every byte escaped as JSON.
const WRITES_BYTES_MAX: u64 = 512 * 1024;

/// The default and the largest number of records in a page.
const LIST_DEFAULT: usize = 100;
/// Whether a path is about own records or shared ones.
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
    shared.merge(own).route("/v1/records", get(models)).route("/v1/batch", post(batch))
}

/// The key of the record that a path names.
struct RecordKey(Key);

impl<S: Send + Sync> FromRequestParts<S> for RecordKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let owned = parts.extensions.get::<Owned>().is_some_and(|owned| owned.0);
        let Path((model, id)) = Path::<(String, String)>::from_request_parts(parts, state).await?;
        Ok(Self(key(model, &id, owned)?))
    }
}

/// The description of these routes. Each path of shared records also exists for own records.
pub(super) fn described() -> OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(paths(models, list, read, put, patch, remove, batch))]
    struct Described;

    let mut described = Described::openapi();
    let paths = &mut described.paths.paths;
    let shared = paths.iter_mut().filter(|(path, _)| path.starts_with("/v1/records/"));
    let own: Vec<_> = shared
        .map(|(path, item)| {
            let own = (path.replacen("records", "own", 1), own_records(item.clone()));
            let reads = item.get.iter_mut().filter_map(|read| read.parameters.as_mut());
            reads.for_each(|parameters| parameters.retain(|it| !is_owner(it)));
            own
        })
        .collect();
    paths.extend(own);
    described
}

fn is_owner(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.name == "owner")
}

/// Derives the operations on own records from those on shared records.
fn own_records(mut item: PathItem) -> PathItem {
    let PathItem { get, put, patch, delete, .. } = &mut item;
    for operation in [get, put, patch, delete].into_iter().flatten() {
        let name = operation.operation_id.take().unwrap_or_default();
        operation.operation_id = Some(name.replacen("Record", "OwnRecord", 1));
        operation.tags = Some(vec!["own records".into()]);
    }
    item
}

/// The owner of the requested own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// All devices.
    Any,
    /// One device.
    Device(NodeId),
}

impl<'de> Deserialize<'de> for Whose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "any" {
            return Ok(Self::Any);
        }
        text.parse().map(Self::Device).map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only ids that start with this; for the shared models `asset`, `file` and `folder` an even
    /// number of hex characters.
    prefix: Option<String>,
    /// `next` of the page before.
    after: Option<RecordPlace>,
    /// The size of the page; default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The node ID of the owner, or `any` for all devices; default: this device.
    #[param(value_type = Option<String>, pattern = "^([0-9a-f]{64}|any)$")]
    owner: Option<Whose>,
    /// Only records last written to since then, by the writer's clock, milliseconds since the Unix
    /// epoch. A page may then have few records or none and go on.
    since_ms: Option<u64>,
}

/// Lists the models that have records
#[utoipa::path(
    get,
    path = "/v1/records",
    operation_id = "listModels",
    tag = "records",
    responses((status = 200, description = "Done.", body = ModelsPage), (status = 409))
)]
async fn models(State(api): State<Api>) -> Result<Json<ModelsPage>, Problem> {
    let models = api.handle.journal().read(|journal| journal.models()).await?;
    let view = |(model, shared, own)| ModelView { model, shared, own };
    Ok(Json(ModelsPage { models: models.into_iter().map(view).collect() }))
}

/// Lists the records of a model, ascending by owner and id
#[utoipa::path(
    get,
    path = "/v1/records/{model}",
    operation_id = "listRecords",
    tag = "records",
    params(("model" = String, Path, description = "The model, at most 64 bytes."), ListQuery),
    responses(
        (status = 200, description = "Done.", body = RecordsPage),
        (status = 409),
    )
)]
async fn list(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    Path(model): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<RecordsPage>, Problem> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be 1 to {PAGE_ROWS_MAX}, got {limit}")));
    }
    let prefix = parse_prefix(&model, query.prefix.as_deref().unwrap_or_default(), owned)?;
    let owner = match query.owner {
        Some(Whose::Any) if owned => None,
        Some(Whose::Device(device)) => Some(whose(&api, owned, Some(device))?),
        None => Some(whose(&api, owned, None)?),
        Some(Whose::Any) => return Err(shared_has_no_owner()),
    };
    let mut after = query.after.map(|RecordPlace(owner, id)| (owner, id));
    if owner.is_none() && after.is_none() {
        // Skips all shared records: their ids are shorter than this one.
        after = Some((Owner::Shared, vec![0xff; RECORD_ID_BYTES_MAX + 1]));
    }
    let (cursor, page) = api
        .handle
        .journal()
        .read(move |journal| {
            // Read the cursor first: a change in between then appears twice instead of never.
            let cursor = journal.cursor_now()?.ok_or(JournalError::NoGroup)?;
            Ok((cursor, journal.records(&model, owner, &prefix, after.as_ref(), limit)?))
        })
        .await?;
    let records = page.records.iter().map(|found| record(cursor.epoch, found));
    let is_new = |record: &Record| query.since_ms.is_none_or(|since| record.changed_ms >= since);
    let records = records.filter(is_new).collect();
    let next = page.next.map(|(owner, id)| RecordPlace(owner, id));
    Ok(Json(RecordsPage { records, next, cursor }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ReadQuery {
    /// The node ID of the owner; default: this device.
    owner: Option<NodeId>,
}

/// Reads a record
#[utoipa::path(
    get,
    path = "/v1/records/{model}/{id}",
    operation_id = "getRecord",
    tag = "records",
    params(
        ("model" = String, Path, description = "The model, at most 64 bytes."),
        ("id" = String, Path, description = "The record's id: 1 to 128 bytes of UTF-8, percent-encoded; for the shared models `asset` (the asset's hash), `file` and `folder` in hex."),
        ReadQuery,
    ),
    responses(
        (status = 200, description = "Done.", body = Record, headers(("ETag" = String, description = "The position of the record's last change."))),
        (status = 404),
        (status = 409),
    )
)]
async fn read(
    State(api): State<Api>,
    Extension(Owned(owned)): Extension<Owned>,
    RecordKey(key): RecordKey,
    Query(query): Query<ReadQuery>,
) -> Result<Response, Problem> {
    let owner = whose(&api, owned, query.owner)?;
    let read = move |journal: &JournalReader| {
        let cursor = journal.cursor_now()?.ok_or(JournalError::NoGroup)?;
        Ok((cursor.epoch, journal.record(&key.model, owner, &key.id)?))
    };
    let (epoch, found) = api.handle.journal().read(read).await?;
    let found = found.ok_or_else(|| problem(StatusCode::NOT_FOUND, "there is no such record"))?;
    if found.is_too_large {
        let detail = format!(
            "the record is larger than {RECORD_BYTES_MAX} bytes and cannot be read: remove fields \
             or set elements, or delete it"
        );
        return Err(problem(StatusCode::CONFLICT, detail));
    }
    let record: Record = record(epoch, &found);
    let etag = record.etag;
    let mut response = Json(record).into_response();
    put_etag(&mut response, etag);
    Ok(response)
}

/// The owner of the records to read; by default this device.
fn whose(api: &Api, owned: bool, owner: Option<NodeId>) -> Result<Owner, Problem> {
    match (owned, owner) {
        (false, None) => Ok(Owner::Shared),
        (false, Some(_)) => Err(shared_has_no_owner()),
        (true, Some(device)) => Ok(Owner::Device(device)),
        (true, None) => Ok(Owner::Device(this_device(api))),
    }
}

fn shared_has_no_owner() -> Problem {
    bad_request("shared records have no owner: leave `owner` out, or use /v1/own")
}

fn this_device(api: &Api) -> NodeId {
    api.handle.status().device.node_id
}

/// Writes to a record; creates it if it does not exist
#[utoipa::path(
    put,
    path = "/v1/records/{model}/{id}",
    operation_id = "putRecord",
    tag = "records",
    params(
        ("model" = String, Path, description = "The model, at most 64 bytes."),
        ("id" = String, Path, description = "The record's id: 1 to 128 bytes of UTF-8, percent-encoded; for the shared models `asset` (the asset's hash), `file` and `folder` in hex."),
        ("If-Match" = Option<String>, Header, description = "The record's ETag: write only if the record has not changed on this device since; else 412."),
        ("If-None-Match" = Option<String>, Header, description = "`*`: write only if the record does not exist; else 412.", pattern = r"^\*$"),
    ),
    request_body = Writes,
    responses(
        (status = 200, description = "Done.", body = Written, headers(("ETag" = String, description = "The position of the write."))),
        (status = 404),
        (status = 409),
        (status = 412),
        (status = 507),
    )
)]
async fn put(
    State(api): State<Api>,
    RecordKey(key): RecordKey,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writes: Writes = json_body(&headers, body, WRITES_BYTES_MAX).await?;
    let expect = conditions(&api, &key, &headers).await?;
    let change = DraftChange::Put(writes.into_put(key, true)?);
    write(&api, Draft { changes: vec![change], expect }).await
}

/// Writes to an existing record
#[utoipa::path(
    patch,
    path = "/v1/records/{model}/{id}",
    operation_id = "patchRecord",
    tag = "records",
    params(
        ("model" = String, Path, description = "The model, at most 64 bytes."),
        ("id" = String, Path, description = "The record's id: 1 to 128 bytes of UTF-8, percent-encoded; for the shared models `asset` (the asset's hash), `file` and `folder` in hex."),
        ("If-Match" = Option<String>, Header, description = "The record's ETag: write only if the record has not changed on this device since; else 412."),
    ),
    request_body = Writes,
    responses(
        (status = 200, description = "Done.", body = Written, headers(("ETag" = String, description = "The position of the write."))),
        (status = 404),
        (status = 409),
        (status = 412),
        (status = 507),
    )
)]
async fn patch(
    State(api): State<Api>,
    RecordKey(key): RecordKey,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writes: Writes = json_body(&headers, body, WRITES_BYTES_MAX).await?;
    let mut expect = conditions(&api, &key, &headers).await?;
    expect.push(Expect::Alive(key.clone()));
    let change = DraftChange::Put(writes.into_put(key, false)?);
    write(&api, Draft { changes: vec![change], expect }).await
}

/// Deletes a record
///
/// Wins over concurrent writes on other devices; only a later `PUT` creates the record again.
#[utoipa::path(
    delete,
    path = "/v1/records/{model}/{id}",
    operation_id = "deleteRecord",
    tag = "records",
    params(
        ("model" = String, Path, description = "The model, at most 64 bytes."),
        ("id" = String, Path, description = "The record's id: 1 to 128 bytes of UTF-8, percent-encoded; for the shared models `asset` (the asset's hash), `file` and `folder` in hex."),
        ("If-Match" = Option<String>, Header, description = "The record's ETag: write only if the record has not changed on this device since; else 412."),
    ),
    responses(
        (status = 200, description = "Done.", body = Written, headers(("ETag" = String, description = "The position of the write."))),
        (status = 404),
        (status = 409),
        (status = 412),
        (status = 507),
        (status = 413),
    )
)]
async fn remove(
    State(api): State<Api>,
    RecordKey(key): RecordKey,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut expect = conditions(&api, &key, &headers).await?;
    expect.push(Expect::Alive(key.clone()));
    write(&api, Draft { changes: vec![DraftChange::Delete(key)], expect }).await
}

/// Changes to make in one op.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Batch {
    /// All of them are made or none.
    #[schema(max_items = 64)]
    changes: Vec<BatchChange>,
}

/// A change of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum BatchChange {
    /// Write to a record; create it if it does not exist.
    Put(BatchWrite),
    /// Write to an existing record.
    Patch(BatchWrite),
    /// Delete a record.
    Delete(BatchDelete),
    /// Append an event.
    Event(BatchEvent),
}

/// A write to a record.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BatchWrite {
    /// The model of the record.
    model: String,
    /// The record's id within the model.
    id: String,
    /// The record is owned by this device; else it is shared.
    #[serde(default)]
    own: bool,
    /// Only if the record has not changed on this device since this ETag.
    if_match: Option<Cursor>,
    /// Only if the record does not exist.
    #[serde(default)]
    if_absent: bool,
    /// Fields to set.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, FieldValue>)]
    set: BTreeMap<String, Value>,
    /// Elements to add to sets, by field.
    #[serde(default)]
    add: BTreeMap<String, BTreeSet<String>>,
    /// Elements to remove from sets, by field.
    #[serde(default)]
    remove: BTreeMap<String, BTreeSet<String>>,
}

/// A deletion of a record.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BatchDelete {
    /// The model of the record.
    model: String,
    /// The record's id within the model.
    id: String,
    /// The record is owned by this device; else it is shared.
    #[serde(default)]
    own: bool,
    /// Only if the record has not changed on this device since this ETag.
    if_match: Option<Cursor>,
}

/// An event to append.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BatchEvent {
    /// The stream's name, at most 64 bytes.
    stream: String,
    /// The event's type, at most 64 bytes.
    #[serde(rename = "type")]
    kind: String,
    /// Any JSON, at most 32 KiB; `{"bytes": "<base64>"}` is kept as bytes.
    #[serde(default)]
    #[schema(required = false)]
    data: Value,
}

/// Makes several changes in one op, all or none
#[utoipa::path(
    post,
    path = "/v1/batch",
    operation_id = "batch",
    tag = "records",
    request_body = Batch,
    responses(
        (status = 200, description = "Done.", body = Written, headers(("ETag" = String, description = "The position of the write."))),
        (status = 404),
        (status = 409),
        (status = 412),
        (status = 507),
    )
)]
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
                if let Some(seen) = if_match {
                    draft.expect.push(unchanged(&api, &key, seen).await?);
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
    /// Converts to a draft change; adds its conditions to `expect`.
    async fn into_change(
        self,
        api: &Api,
        create: bool,
        expect: &mut Vec<Expect>,
    ) -> Result<DraftChange, Problem> {
        let Self { model, id, own, if_match, if_absent, set, add, remove } = self;
        let key = key(model, &id, own)?;
        if let Some(seen) = if_match {
            expect.push(unchanged(api, &key, seen).await?);
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

/// The conditions in the headers of a write.
pub(super) async fn conditions(
    api: &Api,
    key: &Key,
    headers: &HeaderMap,
) -> Result<Vec<Expect>, Problem> {
    let mut expect = Vec::new();
    if let Some(etag) = headers.get(header::IF_MATCH) {
        let quoted = etag.to_str().ok().and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
        let etag =
            quoted.ok_or_else(|| bad_request("If-Match must be one ETag in double quotes"))?;
        expect.push(unchanged(api, key, etag.parse().map_err(bad_request)?).await?);
    }
    if let Some(condition) = headers.get(header::IF_NONE_MATCH) {
        if condition != "*" {
            return Err(bad_request(
                "If-None-Match must be `*` in a write: write only if the record does not exist",
            ));
        }
        expect.push(Expect::Absent(key.clone()));
    }
    Ok(expect)
}

async fn unchanged(api: &Api, key: &Key, seen: Cursor) -> Result<Expect, Problem> {
    if !api.handle.journal().read(move |journal| journal.knows(&seen)).await? {
        let detail = "the ETag is older than this device's journal: read the record again";
        return Err(problem(StatusCode::PRECONDITION_FAILED, detail));
    }
    Ok(Expect::Unchanged(key.clone(), seen.arr))
}

/// Writes a draft and answers its position in the journal.
pub(super) async fn write(api: &Api, draft: Draft) -> Result<Response, Problem> {
    let Some(written) = api.handle.journal().write(draft).await?? else {
        return Ok(Json(Written::default()).into_response());
    };
    let cursor = Cursor { epoch: written.epoch, arr: written.arr };
    let answer = Written {
        cursor: Some(cursor),
        author: Some(this_device(api)),
        log: Some(written.stamp.log),
        hlc: Some(hlc_text(written.stamp.hlc)),
        event_seqs: written.event_seqs,
    };
    let mut response = Json(answer).into_response();
    put_etag(&mut response, cursor);
    Ok(response)
}

fn put_etag(response: &mut Response, etag: Cursor) {
    // Hex characters, digits and dashes are always a valid header value.
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
}
