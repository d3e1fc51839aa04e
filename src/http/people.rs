//! The HTTP endpoints for people and other programs (`/assets` of `proto/store.proto`), over any
//! store: add, list, fetch, describe, trash.
//!
//! Contents are data of unknown origin. A browser must never show them as something that can run:
//! content types come from a fixed list, every answer has `nosniff` and a sandbox, and everything
//! but pictures, sound, film and plain text is a download. Adding uses constant memory; deleting
//! moves into the trash.

use std::any::Any;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;

use super::added::{added, claim};
use super::asset::{AddedAsset, AssetEdit, AssetRow, AssetsPage, CheckedEdit, checked_attribute};
use super::content::{self, insert, lists_etag};
use super::describe::Binary;
use super::extract::{Path, json_body};
use super::problem::{Problem, bad_request, problem};
use super::served::{content_disposition, served_type};
use super::upload::{Received, announced_bytes, check_largest, receive};
use crate::core::attributes::{Attribute, AttributeValue, Attributes};
use crate::core::ids::{Digest, Hash};
use crate::core::limits::{EDIT_JSON_BYTES_MAX, EDIT_TRIES_MAX, PAGE_ROWS_MAX};
use crate::core::names::NamePattern;
use crate::store::messages::{at_most, canonical};
use crate::store::{
    Asset, Condition, Cursor, Filter, Metadata, NewAsset, Store, StoreError, Stored, VerifiedFile,
    sniff,
};

/// The rows of a listing when the request does not set a limit.
const LIST_ROWS_DEFAULT: usize = 100;

/// The longest filter text; longer than any useful tag, type or name.
const FILTER_BYTES_MAX: usize = 1024;

/// The longest description; a longer one belongs into an asset of its own.
const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;

/// The most tags of one asset, and the longest tag.
const TAGS_MAX: usize = 256;
const TAG_BYTES_MAX: usize = 128;

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

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, add, fetch, trash, describe, edit))]
pub(crate) struct Described;

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

/// Stores a content of any size
#[utoipa::path(
    post,
    path = "/assets",
    operation_id = "addAsset",
    tag = "assets",
    params(
        ("name" = Option<String>, Query, description = "Its file name."),
        ("path" = Option<String>, Query, description = "The folder it comes from, such as `pictures/2024`."),
        ("type" = Option<String>, Query, description = "Its media type. If left out: the request's content type, else a guess from name and content."),
        ("modified_ms" = Option<i64>, Query, description = "When the file was last modified, milliseconds since the Unix epoch."),
        ("captured_ms" = Option<i64>, Query, description = "When the picture was taken, milliseconds since the Unix epoch. If left out: the time that the picture itself records."),
        ("application" = Option<String>, Query, description = "The program it comes from. If left out: `can-sync`."),
        ("user" = Option<String>, Query, description = "The user of that program."),
        ("description" = Option<String>, Query, description = "Its description."),
        ("tag" = Option<Vec<String>>, Query, description = "A tag; may be given many times."),
    ),
    request_body(content = Binary, content_type = "*/*"),
    responses(
        (status = 200, description = "It was held already. It keeps its metadata and leaves the trash.", body = AddedAsset),
        (status = 201, description = "Stored.", body = AddedAsset),
        (status = 413),
        (status = 415),
        (status = 422),
        (status = 502),
        (status = 507),
    )
)]
async fn add(
    State(People { store, staging_dir }): State<People>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let metadata = metadata_given(&uri, &headers)?;
    let info = store.info().await?;
    // A too large upload is refused before its first byte: a client that waits for `100 Continue`
    // has sent none.
    if let Some(size_bytes) = announced_bytes(&headers) {
        check_largest(size_bytes, info.largest_asset_bytes)?;
        store.check_space(size_bytes).await?;
    }
    let received =
        receive(body, &staging_dir, info.hash_algorithm, store.as_ref(), info.largest_asset_bytes)
            .await?;
    let (received, attributes) = sniffed(received, metadata.attributes).await?;
    let metadata = Metadata { attributes: added(attributes), ..metadata };
    let (digest, stored) = keep(store.as_ref(), received, metadata).await?;
    if stored == Stored::Existed {
        claim(store.as_ref(), digest.hash).await?;
    }
    let status = match stored {
        Stored::New => StatusCode::CREATED,
        Stored::Existed => StatusCode::OK,
    };
    let added = AddedAsset {
        hash: digest.hash,
        size: digest.size_bytes,
        existed: stored == Stored::Existed,
    };
    let mut response = (status, Json(added)).into_response();
    insert(response.headers_mut(), header::LOCATION, &format!("/assets/{}", digest.hash));
    Ok(response)
}

/// Adds the attributes that are found in the content itself.
pub(crate) async fn sniffed(
    received: Received,
    mut attributes: Attributes,
) -> Result<(Received, Attributes), Problem> {
    let sniff = move || {
        match &received {
            Received::Small(_, content) => {
                sniff::fill_in(&mut attributes, &mut io::Cursor::new(content));
            }
            // A file that cannot be read here fails when it is stored.
            Received::Large(_, temp) => {
                if let Ok(mut file) = File::open(temp.path()) {
                    sniff::fill_in(&mut attributes, &mut file);
                }
            }
        }
        (received, attributes)
    };
    let failed = |_| problem(StatusCode::INTERNAL_SERVER_ERROR, "reading the content failed");
    tokio::task::spawn_blocking(sniff).await.map_err(failed)
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
                && matches!(store.verify(hash).await?, Condition::Damaged(_));
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
        let text = |value| AttributeValue::Text(value);
        let (attribute, value) = match name.as_str() {
            "description" => {
                metadata.description = value;
                continue;
            }
            "tag" => {
                metadata.tags.push(value);
                continue;
            }
            "name" => (Attribute::Name, text(value)),
            "path" => (Attribute::Path, text(value)),
            "type" => (Attribute::MediaType, text(value)),
            "application" => (Attribute::Application, text(value)),
            "user" => (Attribute::User, text(value)),
            "modified_ms" => {
                (Attribute::ModifiedMs, AttributeValue::TimeMs(parse_number(&name, &value)?))
            }
            "captured_ms" => {
                (Attribute::CapturedMs, AttributeValue::TimeMs(parse_number(&name, &value)?))
            }
            _ => {
                return Err(bad_request(format!(
                    "unknown parameter {name:?}; there are name, path, type, modified_ms, \
                     captured_ms, application, user, description and tag"
                )));
            }
        };
        metadata.attributes.set(attribute, checked_attribute(attribute, value)?);
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
    if metadata.attributes.media_type().is_empty() && essence != "application/octet-stream" {
        let sent_as = AttributeValue::Text(sent_as.to_owned());
        let media_type = checked_attribute(Attribute::MediaType, sent_as)?;
        metadata.attributes.set(Attribute::MediaType, media_type);
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
    let Metadata { description, tags, .. } = &metadata;
    for (what, got, limit) in [
        ("the number of tags", tags.len(), TAGS_MAX),
        ("the description's length in bytes", description.len(), DESCRIPTION_BYTES_MAX),
    ] {
        at_most(what, got, limit).map_err(bad_request)?;
    }
    Ok(metadata)
}

/// Lists assets
#[utoipa::path(
    get,
    path = "/assets",
    operation_id = "listAssets",
    tag = "assets",
    params(
        ("after" = Option<u64>, Query, description = "`next` of an earlier page."),
        ("limit" = Option<u16>, Query, description = "The most assets in the answer; 100 if left out.", minimum = 1, maximum = 1000),
        ("tag" = Option<String>, Query, description = "Only with this tag."),
        ("type" = Option<String>, Query, description = "Only of this media type, or of those that start with it when it ends in `/`."),
        ("q" = Option<String>, Query, description = "Only with this in the name or description."),
        ("trashed" = Option<bool>, Query, description = "Only those in the trash, or only the others."),
        ("hash" = Option<String>, Query, description = "Only hashes that start with this.", pattern = "^[0-9a-f]{1,64}$"),
        ("name" = Option<String>, Query, description = "Only names that match this glob (`*`, `?`, `[a-z]`); with a `/` in it path and name."),
        ("since_ms" = Option<i64>, Query, description = "Only those stored here since then, milliseconds since the Unix epoch."),
        ("until_ms" = Option<i64>, Query, description = "Only those stored here before then, milliseconds since the Unix epoch."),
        ("order" = Option<String>, Query, description = "`newest` or `oldest` first, as this store took them in; oldest when left out. A store beside the agent may not offer the newest: 501.", pattern = "^(newest|oldest)$"),
    ),
    responses((status = 200, description = "Done.", body = AssetsPage), (status = 502))
)]
async fn list(State(people): State<People>, uri: Uri) -> Result<Json<AssetsPage>, Problem> {
    let (Listing { filter, after, limit }, _) = Listing::parse(&uri, &[])?;
    let assets = people.store.list(&filter, after, limit).await?;
    let next =
        (assets.len() >= limit).then(|| assets.last().map(|asset| asset.entry.cursor)).flatten();
    Ok(Json(AssetsPage { assets: assets.iter().map(AssetRow::from).collect(), next }))
}

/// Which assets a listing shows.
pub(crate) struct Listing {
    pub(crate) filter: Filter,
    pub(crate) after: Cursor,
    pub(crate) limit: usize,
}

impl Listing {
    /// Parses a query. Returns the parameters that only the caller knows separately.
    pub(crate) fn parse(
        uri: &Uri,
        others: &[&str],
    ) -> Result<(Self, Vec<(String, String)>), Problem> {
        let mut listing = Self { filter: Filter::default(), after: 0, limit: LIST_ROWS_DEFAULT };
        let filter = &mut listing.filter;
        let mut apart = Vec::new();
        for (name, value) in parameters(uri)? {
            if value.len() > FILTER_BYTES_MAX {
                return Err(bad_request(format!("{name} is longer than {FILTER_BYTES_MAX} bytes")));
            }
            match name.as_str() {
                "after" => listing.after = parse_number("after", &value)?,
                "limit" => listing.limit = parse_number("limit", &value)?,
                "tag" => filter.tag = Some(value),
                "type" => filter.media_type = Some(value),
                "q" => filter.query = Some(value),
                "trashed" => filter.trashed = Some(parse_bool("trashed", &value)?),
                "hash" => filter.hash_prefix = Some(parse_prefix(value)?),
                "name" => filter.name = Some(NamePattern::glob(&value)),
                "since_ms" => filter.since_ms = Some(parse_number("since_ms", &value)?),
                "until_ms" => filter.until_ms = Some(parse_number("until_ms", &value)?),
                "order" => filter.newest_first = parse_order(&value)?,
                _ if others.contains(&name.as_str()) => apart.push((name, value)),
                _ => {
                    let others: String = others.iter().map(|other| format!(", {other}")).collect();
                    return Err(bad_request(format!(
                        "unknown parameter {name:?}; there are after, limit, tag, type, q, trashed, \
                         name, since_ms, until_ms, order{others} and hash"
                    )));
                }
            }
        }
        if !(1..=PAGE_ROWS_MAX).contains(&listing.limit) {
            let limit = listing.limit;
            return Err(bad_request(format!("limit must be 1 to {PAGE_ROWS_MAX}, got {limit}")));
        }
        Ok((listing, apart))
    }
}

fn parse_order(text: &str) -> Result<bool, Problem> {
    match text {
        "newest" => Ok(true),
        "oldest" => Ok(false),
        _ => Err(bad_request(format!("order must be newest or oldest, got {text:?}"))),
    }
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

/// An asset as JSON with its version as ETag.
fn row_answer(asset: &Asset) -> Response {
    let mut response = Json(AssetRow::from(asset)).into_response();
    insert(response.headers_mut(), header::ETAG, &version_etag(&asset.metadata));
    response
}

fn version_etag(metadata: &Metadata) -> String {
    format!("\"{}\"", metadata.version)
}

async fn find(store: &dyn Store, hash: Hash) -> Result<Asset, Problem> {
    Ok(store.lookup(hash).await?.ok_or(StoreError::NotFound(hash))?)
}

/// An asset's bytes
#[utoipa::path(
    get,
    path = "/assets/{hash}",
    operation_id = "fetchAsset",
    tag = "assets",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("inline" = Option<bool>, Query, description = "Let a browser show it when it is harmless."),
        ("Range" = Option<String>, Header, description = "A part of it."),
    ),
    responses(
        (status = 200, description = "All of it, under its media type when that is a known one.", body = Binary, content_type = "*/*"),
        (status = 206, description = "A part.", body = Binary, content_type = "*/*"),
        (status = 404),
        (status = 410),
        (status = 416),
        (status = 502),
    )
)]
async fn fetch(
    State(People { store, .. }): State<People>,
    Path(hash): Path<Hash>,
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
    let asset = find(store.as_ref(), hash).await?;
    let digest = asset.entry.digest;
    if asset.is_evicted {
        let detail = format!(
            "the content of {hash} was evicted from this device: `can-sync fetch {hash}` brings it back"
        );
        return Err(problem(StatusCode::NOT_FOUND, detail));
    }
    if asset.is_damaged && method == Method::HEAD {
        return Err(StoreError::Damaged(digest.hash).into());
    }
    let algorithm = store.info().await?.hash_algorithm;
    let mut response = content::answer(store, digest, algorithm, &method, &headers).await?;
    if !response.status().is_success() {
        return Ok(response);
    }
    let served = served_type(asset.metadata.attributes.media_type());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(served.content_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let disposition = if inline && served.is_inert { "inline" } else { "attachment" };
    insert(
        headers,
        header::CONTENT_DISPOSITION,
        &content_disposition(disposition, asset.metadata.attributes.name()),
    );
    Ok(response)
}

/// What is known about an asset
#[utoipa::path(
    get,
    path = "/assets/{hash}/meta",
    operation_id = "assetMeta",
    tag = "assets",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("If-None-Match" = Option<String>, Header, description = "The version known."),
    ),
    responses(
        (status = 200, description = "Done.", body = AssetRow, headers(("ETag" = String, description = "The version."))),
        (status = 304, description = "It is the version known."),
        (status = 404),
        (status = 502),
    )
)]
async fn describe(
    State(People { store, .. }): State<People>,
    Path(hash): Path<Hash>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asset = find(store.as_ref(), hash).await?;
    let etag = version_etag(&asset.metadata);
    if lists_etag(&headers, header::IF_NONE_MATCH, &etag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        insert(response.headers_mut(), header::ETAG, &etag);
        return Ok(response);
    }
    Ok(row_answer(&asset))
}

/// Edits an asset's metadata in the store
///
/// An agent takes the edit from the store and tells the other devices. It means the same as at
/// `PATCH /v1/assets/{hash}/meta`; this answers the asset as it is then.
#[utoipa::path(
    patch,
    path = "/assets/{hash}/meta",
    operation_id = "editAssetRow",
    tag = "assets",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("If-Match" = Option<String>, Header, description = "The version seen: edit only that one; else 412."),
    ),
    request_body = AssetEdit,
    responses(
        (status = 200, description = "Done.", body = AssetRow, headers(("ETag" = String, description = "The version."))),
        (status = 404),
        (status = 412),
        (status = 502),
        (status = 507),
    )
)]
async fn edit(
    State(People { store, .. }): State<People>,
    Path(hash): Path<Hash>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let edit: AssetEdit = json_body(&headers, body, EDIT_JSON_BYTES_MAX).await?;
    apply(store.as_ref(), hash, &headers, &edit.checked()?).await
}

/// Puts an asset into the trash
#[utoipa::path(
    delete,
    path = "/assets/{hash}",
    operation_id = "trashAsset",
    tag = "assets",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("If-Match" = Option<String>, Header, description = "The version seen: trash only that one; else 412."),
    ),
    responses(
        (status = 200, description = "Done.", body = AssetRow, headers(("ETag" = String, description = "The version."))),
        (status = 404),
        (status = 412),
        (status = 502),
        (status = 507),
    )
)]
async fn trash(
    State(People { store, .. }): State<People>,
    Path(hash): Path<Hash>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    apply(store.as_ref(), hash, &headers, &CheckedEdit::to_trash()).await
}

/// Applies an edit to the current metadata by compare-and-set, so that no other edit is lost.
/// `If-Match` binds it to the version that the caller saw.
async fn apply(
    store: &dyn Store,
    hash: Hash,
    headers: &HeaderMap,
    edit: &CheckedEdit,
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
            tags: edit.tags.apply(standing.tags),
            trashed: edit.trashed.unwrap_or(standing.trashed),
            attributes: edit.apply_to_attributes(standing.attributes),
            version,
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
        }
        assert!(!fits(&|m| m.tags = vec!["  ".into()]));
    }
}
