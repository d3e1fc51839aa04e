//! The HTTP endpoints for people and other programs (`/assets` of `proto/store.proto`), over any
//! store: add, list, fetch, describe, trash.
//!
//! Contents are data of unknown origin. A browser must never show them as something that can run:
//! content types come from a fixed list, every answer has `nosniff` and a sandbox, and everything
//! but pictures, sound, film and plain text is a download. Adding uses constant memory; deleting
//! moves into the trash.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::content::{self, insert, lists_etag};
use super::problem::{Problem, problem};
use super::upload::{
    Received, announced_bytes, check_announced, check_largest, check_type, collect, receive,
};
use crate::core::ids::{Digest, Hash};
use crate::store::messages::{at_most, canonical};
use crate::store::{
    Asset, Condition, Filter, Metadata, NewAsset, Store, StoreError, Stored, VerifiedFile,
};

/// The rows of a listing when the request does not set a limit.
const LIST_ROWS_DEFAULT: usize = 100;

/// The most rows of one listing: with the longest descriptions it stays below 64 MiB.
const LIST_ROWS_MAX: usize = 1000;

/// The longest filter text; longer than any useful tag, type or name.
const FILTER_BYTES_MAX: usize = 1024;

/// The longest JSON document of an edit: the longest description and tags, every byte escaped.
const EDIT_BYTES_MAX: u64 = 512 * 1024;

/// The longest description; a longer one belongs into an asset of its own.
const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;

/// The most tags of one asset, and the longest tag.
const TAGS_MAX: usize = 256;
const TAG_BYTES_MAX: usize = 128;

/// The longest file name: what common file systems allow, times four for UTF-8.
const FILE_NAME_BYTES_MAX: usize = 1020;

/// The longest media type, by RFC 6838 4.2: twice 127 and a slash.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// How often an edit is tried again after another one came first.
const EDIT_TRIES_MAX: usize = 8;

/// The router of the `/assets` endpoints. Large uploads pass through `staging_dir`. It must exist,
/// be private, and for the embedded store be on the store's volume; its owner removes what a crash
/// leaves there.
pub fn router(store: Arc<dyn Store>, staging_dir: PathBuf) -> Router {
    Router::new()
        .route("/assets", get(list).post(add))
        .route("/assets/{hash}", get(fetch).delete(trash))
        .route("/assets/{hash}/meta", get(describe).patch(edit))
        .with_state(People { store, staging_dir })
}

#[derive(Clone)]
struct People {
    store: Arc<dyn Store>,
    staging_dir: PathBuf,
}

/// The query's parameters in order; names may repeat.
fn parameters(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    Query::try_from_uri(uri)
        .map(|Query(pairs)| pairs)
        .map_err(|error| bad_request(format!("the query cannot be read: {error}")))
}

fn bad_request(detail: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, detail)
}

fn parse_hash(text: &str) -> Result<Hash, Problem> {
    text.parse().map_err(|error| bad_request(format!("this is no hash: {error}")))
}

fn parse_bool(name: &str, text: &str) -> Result<bool, Problem> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(bad_request(format!("{name} must be true or false, got {text:?}"))),
    }
}

fn parse_number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| bad_request(format!("{name} must be a number, got {text:?}")))
}

/// `POST /assets`: stores a content.
async fn add(
    State(People { store, staging_dir }): State<People>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let metadata = metadata_given(&uri, &headers)?;
    let info = store.info().await?;
    // Refused before the first byte: a client that waits for `100 Continue` has sent none.
    if let Some(size_bytes) = announced_bytes(&headers) {
        check_largest(size_bytes, info.largest_asset_bytes)?;
        store.check_space(size_bytes).await?;
    }
    let received =
        receive(body, &staging_dir, info.hash_algorithm, store.as_ref(), info.largest_asset_bytes)
            .await?;
    let (digest, stored) = keep(store.as_ref(), received, metadata).await?;
    let status = match stored {
        Stored::New => StatusCode::CREATED,
        Stored::Existed => StatusCode::OK,
    };
    let body = Json(json!({
        "hash": digest.hash.to_string(),
        "size": digest.size_bytes,
        "existed": stored == Stored::Existed,
    }));
    let mut response = (status, body).into_response();
    insert(response.headers_mut(), header::LOCATION, &format!("/assets/{}", digest.hash));
    Ok(response)
}

/// Stores a received content. A copy that is held already is verified first, because a user who
/// adds a file must be able to delete it afterwards.
pub(crate) async fn keep(
    store: &dyn Store,
    received: Received,
    metadata: Metadata,
) -> Result<(Digest, Stored), StoreError> {
    match received {
        Received::Small(digest, content) => {
            let asset = NewAsset { digest, content, metadata };
            let result = store.put(vec![asset]).await?.pop();
            let none = || StoreError::Contract("it gave no result for an asset".into());
            Ok((digest, result.ok_or_else(none)??))
        }
        Received::Large(digest, temp) => {
            let hash = digest.hash;
            let was_damaged = store.lookup(hash).await?.is_some()
                && store.verify(hash).await? == Condition::Damaged;
            let path = temp.path().to_owned();
            // When dropped, it removes what a temporary failure leaves.
            let guard: Option<Box<dyn Any + Send + Sync>> = Some(Box::new(temp));
            let file = VerifiedFile { digest, path, outboard: None, metadata, guard };
            let stored = store.adopt(file).await?;
            if was_damaged && stored == Stored::Existed {
                // A foreign store did not replace its damaged copy.
                return Err(StoreError::Damaged(hash));
            }
            Ok((digest, stored))
        }
    }
}

/// The metadata in the request.
fn metadata_given(uri: &Uri, headers: &HeaderMap) -> Result<Metadata, Problem> {
    let mut metadata = Metadata::default();
    for (name, value) in parameters(uri)? {
        match name.as_str() {
            "name" => metadata.file_name = value,
            "type" => metadata.media_type = value,
            "description" => metadata.description = value,
            "tag" => metadata.tags.push(value),
            _ => {
                return Err(bad_request(format!(
                    "unknown parameter {name:?}; there are name, type, description and tag"
                )));
            }
        }
    }
    let sent_as =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = sent_as.split(';').next().unwrap_or_default().trim();
    // A form wraps the content; storing the wrapped form is never intended.
    if ["multipart/form-data", "application/x-www-form-urlencoded"]
        .iter()
        .any(|form| essence.eq_ignore_ascii_case(form))
    {
        return Err(problem(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "the body must be the content itself, not a form ({essence}): send it as its own \
                 type or as application/octet-stream"
            ),
        ));
    }
    if metadata.media_type.is_empty() && essence != "application/octet-stream" {
        metadata.media_type = sent_as.to_owned();
    }
    written_by_people(metadata)
}

/// Checks metadata written by people: trims tags and limits sizes.
pub(crate) fn written_by_people(mut metadata: Metadata) -> Result<Metadata, Problem> {
    for tag in &mut metadata.tags {
        *tag = tag.trim().to_owned();
        if tag.is_empty() {
            return Err(bad_request("a tag is empty"));
        }
        at_most("a tag's length in bytes", tag.len(), TAG_BYTES_MAX).map_err(bad_request)?;
    }
    let metadata = canonical(metadata).map_err(bad_request)?;
    let Metadata { description, tags, file_name, media_type, .. } = &metadata;
    for (what, got, limit) in [
        ("the number of tags", tags.len(), TAGS_MAX),
        ("the description's length in bytes", description.len(), DESCRIPTION_BYTES_MAX),
        ("the file name's length in bytes", file_name.len(), FILE_NAME_BYTES_MAX),
        ("the media type's length in bytes", media_type.len(), MEDIA_TYPE_BYTES_MAX),
    ] {
        at_most(what, got, limit).map_err(bad_request)?;
    }
    Ok(metadata)
}

/// `GET /assets`: a page of assets.
async fn list(State(people): State<People>, uri: Uri) -> Result<Response, Problem> {
    let mut filter = Filter::default();
    let mut after = 0;
    let mut limit = LIST_ROWS_DEFAULT;
    for (name, value) in parameters(&uri)? {
        if value.len() > FILTER_BYTES_MAX {
            return Err(bad_request(format!("{name} is longer than {FILTER_BYTES_MAX} bytes")));
        }
        match name.as_str() {
            "after" => after = parse_number("after", &value)?,
            "limit" => limit = parse_number("limit", &value)?,
            "tag" => filter.tag = Some(value),
            "type" => filter.media_type = Some(value),
            "q" => filter.query = Some(value),
            "trashed" => filter.trashed = Some(parse_bool("trashed", &value)?),
            "hash" => filter.hash_prefix = Some(parse_prefix(value)?),
            _ => {
                return Err(bad_request(format!(
                    "unknown parameter {name:?}; there are after, limit, tag, type, q, trashed and \
                     hash"
                )));
            }
        }
    }
    if !(1..=LIST_ROWS_MAX).contains(&limit) {
        return Err(bad_request(format!("limit must be 1 to {LIST_ROWS_MAX}, got {limit}")));
    }
    let assets = people.store.list(&filter, after, limit).await?;
    let next =
        (assets.len() >= limit).then(|| assets.last().map(|asset| asset.entry.cursor)).flatten();
    let rows: Vec<_> = assets.iter().map(row).collect();
    Ok(Json(json!({ "assets": rows, "next": next })).into_response())
}

fn parse_prefix(text: String) -> Result<String, Problem> {
    let is_prefix = (1..=2 * Hash::LEN).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_prefix {
        return Err(bad_request(format!(
            "hash must be the first lower-case hex characters of a hash, got {text:?}"
        )));
    }
    Ok(text)
}

/// An asset as JSON.
fn row(asset: &Asset) -> serde_json::Value {
    let Asset { entry, metadata, is_damaged } = asset;
    json!({
        "hash": entry.digest.hash.to_string(),
        "size": entry.digest.size_bytes,
        "timestamp": entry.timestamp_ms,
        "cursor": entry.cursor,
        "name": metadata.file_name,
        "type": metadata.media_type,
        "description": metadata.description,
        "tags": metadata.tags,
        "trashed": metadata.trashed,
        "version": metadata.version,
        "damaged": is_damaged,
    })
}

/// An asset as JSON with its version as ETag.
fn row_answer(asset: &Asset) -> Response {
    let mut response = Json(row(asset)).into_response();
    insert(response.headers_mut(), header::ETAG, &version_etag(&asset.metadata));
    response
}

fn version_etag(metadata: &Metadata) -> String {
    format!("\"{}\"", metadata.version)
}

async fn find(store: &dyn Store, hash: Hash) -> Result<Asset, Problem> {
    Ok(store.lookup(hash).await?.ok_or(StoreError::NotFound(hash))?)
}

/// `GET /assets/{hash}`: the content.
async fn fetch(
    State(People { store, .. }): State<People>,
    Path(hash): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut inline = false;
    for (name, value) in parameters(&uri)? {
        match name.as_str() {
            "inline" => inline = parse_bool("inline", &value)?,
            _ => {
                return Err(bad_request(format!("unknown parameter {name:?}; there is inline")));
            }
        }
    }
    let asset = find(store.as_ref(), parse_hash(&hash)?).await?;
    let digest = asset.entry.digest;
    if asset.is_damaged && method == Method::HEAD {
        return Err(StoreError::Damaged(digest.hash).into());
    }
    let algorithm = store.info().await?.hash_algorithm;
    let mut response = content::answer(store, digest, algorithm, &method, &headers).await?;
    if !response.status().is_success() {
        return Ok(response);
    }
    let served = served_type(&asset.metadata.media_type);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(served.content_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let disposition = if inline && served.is_inert { "inline" } else { "attachment" };
    insert(
        headers,
        header::CONTENT_DISPOSITION,
        &content_disposition(disposition, &asset.metadata.file_name),
    );
    Ok(response)
}

/// How a content is served.
#[derive(Debug, PartialEq, Eq)]
struct Served {
    content_type: &'static str,
    /// Whether a browser can show it and nothing in it can run.
    is_inert: bool,
}

/// Types served under their own name, and shown inline on request.
const INERT_TYPES: [&str; 23] = [
    "audio/aac",
    "audio/flac",
    "audio/mp4",
    "audio/mpeg",
    "audio/ogg",
    "audio/opus",
    "audio/wav",
    "audio/webm",
    "image/apng",
    "image/avif",
    "image/bmp",
    "image/gif",
    "image/heic",
    "image/jpeg",
    "image/jxl",
    "image/png",
    "image/tiff",
    "image/webp",
    "video/mp4",
    "video/ogg",
    "video/quicktime",
    "video/webm",
    "video/x-matroska",
];

/// Types served under their own name, as a download only.
const DOWNLOAD_TYPES: [&str; 6] = [
    "application/gzip",
    "application/json",
    "application/pdf",
    "application/zip",
    "text/csv",
    "text/markdown",
];

/// How a content of this media type is served. Never the stored type itself, which may be any text.
fn served_type(media_type: &str) -> Served {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let known = |types: &[&'static str]| {
        types.iter().copied().find(|known| known.eq_ignore_ascii_case(essence))
    };
    if essence.eq_ignore_ascii_case("text/plain") {
        return Served { content_type: "text/plain; charset=utf-8", is_inert: true };
    }
    if let Some(content_type) = known(&INERT_TYPES) {
        return Served { content_type, is_inert: true };
    }
    Served {
        content_type: known(&DOWNLOAD_TYPES).unwrap_or("application/octet-stream"),
        is_inert: false,
    }
}

/// The header by RFC 6266: an ASCII name for old clients and the real name, percent-encoded. Only
/// the last part of a path is used as the name.
fn content_disposition(disposition: &str, file_name: &str) -> String {
    let name = file_name.rsplit(['/', '\\']).next().unwrap_or_default();
    if name.is_empty() {
        return disposition.to_owned();
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.' | '-' | '_');
    let ascii: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'-' | b'_' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{disposition}; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

/// `GET /assets/{hash}/meta`: an asset's metadata.
async fn describe(
    State(People { store, .. }): State<People>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asset = find(store.as_ref(), parse_hash(&hash)?).await?;
    let etag = version_etag(&asset.metadata);
    if lists_etag(&headers, header::IF_NONE_MATCH, &etag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        insert(response.headers_mut(), header::ETAG, &etag);
        return Ok(response);
    }
    Ok(row_answer(&asset))
}

/// The changes of an edit; fields left out stay.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    description: Option<String>,
    tags: Option<Vec<String>>,
    trashed: Option<bool>,
}

/// `PATCH /assets/{hash}/meta`: edits an asset's metadata.
async fn edit(
    State(People { store, .. }): State<People>,
    Path(hash): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let hash = parse_hash(&hash)?;
    check_type(&headers, "application/json")?;
    check_announced(&headers, EDIT_BYTES_MAX)?;
    let body = collect(body, EDIT_BYTES_MAX).await?;
    let edit: Edit = serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the edit cannot be read: {error}")))?;
    apply(store.as_ref(), hash, &headers, &edit).await
}

/// `DELETE /assets/{hash}`: moves an asset into the trash.
async fn trash(
    State(People { store, .. }): State<People>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let edit = Edit { trashed: Some(true), ..Edit::default() };
    apply(store.as_ref(), parse_hash(&hash)?, &headers, &edit).await
}

/// Applies an edit to the current metadata by compare-and-set, so that no other edit is lost.
/// `If-Match` binds it to the version that the caller saw.
async fn apply(
    store: &dyn Store,
    hash: Hash,
    headers: &HeaderMap,
    edit: &Edit,
) -> Result<Response, Problem> {
    for _ in 0..EDIT_TRIES_MAX {
        let mut asset = find(store, hash).await?;
        let etag = version_etag(&asset.metadata);
        if headers.contains_key(header::IF_MATCH) && !lists_etag(headers, header::IF_MATCH, &etag) {
            let detail = format!("the row was changed meanwhile, its ETag is now {etag}");
            let mut response = problem(StatusCode::PRECONDITION_FAILED, detail).into_response();
            insert(response.headers_mut(), header::ETAG, &etag);
            return Ok(response);
        }
        let version = asset.metadata.version;
        let standing = asset.metadata.clone();
        let edited = written_by_people(Metadata {
            description: edit.description.clone().unwrap_or(standing.description),
            tags: edit.tags.clone().unwrap_or(standing.tags),
            trashed: edit.trashed.unwrap_or(standing.trashed),
            // Not part of an edit, and not limited as people's input is: the store keeps these
            // fields.
            ..Metadata::default()
        })?;
        match store.set_metadata(hash, &edited, Some(version)).await {
            Ok(metadata) => {
                asset.metadata = metadata;
                return Ok(row_answer(&asset));
            }
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "the row is being changed all the time: try again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_harmless_types_are_served_under_their_name() {
        for (stored, served, is_inert) in [
            ("image/png", "image/png", true),
            ("IMAGE/PNG; x=y", "image/png", true),
            ("text/plain; charset=latin1", "text/plain; charset=utf-8", true),
            ("application/pdf", "application/pdf", false),
            ("image/svg+xml", "application/octet-stream", false),
            ("text/html", "application/octet-stream", false),
            ("text/html;image/png", "application/octet-stream", false),
            ("image/png\r\nSet-Cookie: a=b", "application/octet-stream", false),
            ("", "application/octet-stream", false),
        ] {
            let expected = Served { content_type: served, is_inert };
            assert_eq!(served_type(stored), expected, "{stored}");
        }
    }

    #[test]
    fn what_people_write_is_bounded_on_both_sides_of_each_limit() {
        let text = |len| "x".repeat(len);
        let fits = |change: &dyn Fn(&mut Metadata)| {
            let mut metadata = Metadata::default();
            change(&mut metadata);
            written_by_people(metadata).is_ok()
        };
        for over in [0, 1] {
            let expected = over == 0;
            let description = text(DESCRIPTION_BYTES_MAX + over);
            assert_eq!(fits(&|m| m.description = description.clone()), expected);
            assert_eq!(fits(&|m| m.tags = vec![text(TAG_BYTES_MAX + over)]), expected);
            let tags = (0..TAGS_MAX + over).map(|tag| tag.to_string());
            assert_eq!(fits(&|m| m.tags = tags.clone().collect()), expected);
            assert_eq!(fits(&|m| m.file_name = text(FILE_NAME_BYTES_MAX + over)), expected);
            assert_eq!(fits(&|m| m.media_type = text(MEDIA_TYPE_BYTES_MAX + over)), expected);
        }
        assert!(!fits(&|m| m.tags = vec!["  ".into()]));
    }

    #[test]
    fn file_names_cannot_break_out_of_the_header() {
        for (name, expected) in [
            ("", "attachment"),
            ("..", "attachment; filename=\"..\"; filename*=UTF-8''.."),
            ("../../etc/", "attachment"),
            ("a/b c.txt", "attachment; filename=\"b c.txt\"; filename*=UTF-8''b%20c.txt"),
            ("x\"\r\nü", "attachment; filename=\"x____\"; filename*=UTF-8''x%22%0D%0A%C3%BC"),
        ] {
            assert_eq!(content_disposition("attachment", name), expected);
        }
    }
}
