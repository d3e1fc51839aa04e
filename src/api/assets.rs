//! Assets as the store and the journal know them together: listing them with the devices that added
//! them, finding the one that a text names, and editing metadata. An edit is written to the journal
//! first, so that edits of several devices merge tag by tag; the store shows it when it is answered.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, patch};
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};

use super::Api;
use super::answers::{FoundAsset, Written};
use super::records::{conditions, write};
use crate::agent::handle::RequestError;
use crate::core::attributes::{Attribute, canonical_text};
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::asset::{
    ASSET_MODEL, DESCRIPTION, JournalRow, TAGS, TRASHED, asset_key, attribute_of_value,
    attribute_value,
};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::op::{Elem, Value};
use crate::core::limits::{EDIT_JSON_BYTES_MAX, PAGE_READS_MAX};
use crate::core::lookup::{AssetCandidate, AssetText, AssetTier, CANDIDATES_MAX, HashPrefix};
use crate::core::why::AssetWhy;
use crate::http::asset::{AssetEdit, AssetRow, AssetsPage, CheckedEdit, TagEdit};
use crate::http::extract::{Path, Query, json_body};
use crate::http::people::Listing;
use crate::http::problem::{Problem, bad_request, problem};
use crate::state::journal::JournalReader;
use crate::store::{Asset, Filter, Store, StoreError};

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/assets", get(list))
        .route("/v1/assets/find", get(find))
        .route("/v1/assets/{hash}/meta", patch(edit))
        .route("/v1/assets/{hash}/why", get(why))
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, find, edit, why))]
pub(super) struct Described;

/// Lists assets, with the devices that added them
#[utoipa::path(
    get,
    path = "/v1/assets",
    operation_id = "listAssetsOfGroup",
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
        ("device" = Option<NodeId>, Query, description = "Only those that this device added."),
    ),
    responses((status = 200, description = "Done. A page may have few rows or none and go on.", body = AssetsPage), (status = 502))
)]
async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<AssetsPage>, Problem> {
    let (Listing { filter, mut after, limit }, apart) = Listing::parse(&uri, &["device"])?;
    let mut device: Option<NodeId> = None;
    for (_, text) in apart {
        let wrong = |_| bad_request(format!("device must be a node ID, got {text:?}"));
        device = Some(text.parse().map_err(wrong)?);
    }
    let store = api.handle.store();
    let mut page = AssetsPage { assets: Vec::new(), next: None };
    let mut read = 0;
    while page.assets.len() < limit {
        let assets = store.list(&filter, after, limit).await?;
        let is_end = assets.len() < limit;
        read += assets.len();
        let hashes: Vec<Hash> = assets.iter().map(|asset| asset.entry.digest.hash).collect();
        let adders = api.handle.journal().read(move |journal| journal.adders(&hashes)).await?;
        page.next = None;
        for (asset, added_by) in assets.iter().zip(adders) {
            after = asset.entry.cursor;
            if device.is_none() || device == added_by {
                page.assets.push(AssetRow { added_by, ..AssetRow::from(asset) });
            }
            if page.assets.len() == limit {
                page.next = Some(after);
                break;
            }
        }
        if is_end && page.next.is_none() {
            break;
        }
        page.next = Some(after);
        if read >= PAGE_READS_MAX {
            break;
        }
    }
    Ok(Json(page))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct FindQuery {
    /// A hash or the start of one; a name, the start of one or a glob, with as much of the path before
    /// it as is needed.
    text: String,
    /// Of those that fit equally well, those in the trash go first.
    #[serde(default)]
    trashed: bool,
}

/// Finds the asset that a text names
///
/// A name or the start of a hash goes before the start of a name and a glob, what is here before
/// what is not. 404: there is none, or several, and then the detail lists some.
#[utoipa::path(
    get,
    path = "/v1/assets/find",
    operation_id = "findAsset",
    tag = "assets",
    params(FindQuery),
    responses((status = 200, description = "Done.", body = FoundAsset), (status = 404), (status = 502))
)]
async fn find(
    State(api): State<Api>,
    Query(FindQuery { text, trashed }): Query<FindQuery>,
) -> Result<Json<FoundAsset>, Problem> {
    let text = AssetText::parse(&text).map_err(RequestError::from)?;
    let store = api.handle.store();
    for tier in text.tiers() {
        for trashed in [trashed, !trashed] {
            let found = candidates(&*store, &tier, trashed).await?;
            if found.is_empty() {
                continue;
            }
            let only = text.only(found, |asset| {
                let attributes = &asset.metadata.attributes;
                let (path, name) = (attributes.path().to_owned(), attributes.name().to_owned());
                AssetCandidate { hash: asset.entry.digest.hash, path, name }
            });
            let asset = AssetRow::from(&only.map_err(RequestError::from)?);
            let (hash, path, name) = (asset.hash, asset.path.clone(), asset.name.clone());
            return Ok(Json(FoundAsset { hash, path, name, asset: Some(asset) }));
        }
    }
    // The journal names assets that have not arrived, and those of a store that cannot be searched.
    let tiers = text.tiers();
    let called = move |journal: &JournalReader| {
        for tier in &tiers {
            let found = journal.assets_called(tier, CANDIDATES_MAX + 1)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    };
    let mut found = api.handle.journal().read(called).await?;
    if let (Some(hash), true) = (text.whole_hash(), found.is_empty())
        && store.lookup(hash).await?.is_some()
    {
        found.push(AssetCandidate { hash, path: String::new(), name: String::new() });
    }
    let only = text.only(found, Clone::clone).map_err(RequestError::from)?;
    let AssetCandidate { hash, path, name } = only;
    let asset = store.lookup(hash).await?.as_ref().map(AssetRow::from);
    Ok(Json(FoundAsset { hash, path, name, asset }))
}

/// The assets of the store with such a name; none if the store cannot be searched.
async fn candidates(
    store: &dyn Store,
    tier: &AssetTier,
    trashed: bool,
) -> Result<Vec<Asset>, StoreError> {
    let any = Filter { trashed: Some(trashed), ..Filter::default() };
    let hash = tier.hash.as_ref().map(|prefix| prefix.as_str().to_owned());
    let of_hash = hash.map(|hash| Filter { hash_prefix: Some(hash), ..any.clone() });
    let of_name = Filter { name: Some(tier.name.clone()), ..any };
    let mut found = Vec::new();
    for filter in of_hash.into_iter().chain([of_name]) {
        match store.list(&filter, 0, CANDIDATES_MAX + 1).await {
            Ok(assets) => found.extend(assets),
            Err(StoreError::Unsupported(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Edits an asset's metadata for all devices
///
/// Tag edits of several devices merge tag by tag. The store shows the edit when this is answered.
/// It means the same as at `PATCH /assets/{hash}/meta`; this answers where the journal has it.
#[utoipa::path(
    patch,
    path = "/v1/assets/{hash}/meta",
    operation_id = "editAsset",
    tag = "assets",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("If-Match" = Option<String>, Header, description = "The ETag of the asset's record, as this route and `/v1/records/asset/{hash}` give it: edit only if it has not changed on this device since; else 412."),
    ),
    request_body = AssetEdit,
    responses(
        (status = 200, description = "Done.", body = Written, headers(("ETag" = String, description = "The place of the write."))),
        (status = 404),
        (status = 409),
        (status = 412),
        (status = 502),
        (status = 507),
    )
)]
async fn edit(
    State(api): State<Api>,
    Path(hash): Path<Hash>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let edit: AssetEdit = json_body(&headers, body, EDIT_JSON_BYTES_MAX).await?;
    let edit = edit.checked()?;
    if api.handle.store().lookup(hash).await?.is_none() {
        return Err(StoreError::NotFound(hash).into());
    }
    // The store's row is brought into the journal first. Otherwise a tag that is not in the journal
    // yet could not be removed from it, and would come back.
    api.handle.settle(hash).await?;
    let journal = api.handle.journal().read(move |journal| journal.asset(&hash)).await?;
    if journal.is_too_large {
        let detail = format!(
            "the asset has more tags, those taken out included, than are read: it can be edited \
             again once its record, {ASSET_MODEL}/{hash}, is deleted"
        );
        return Err(problem(StatusCode::CONFLICT, detail));
    }
    let mut put = writes(edit, &hash, &journal);
    drop_what_is_so(&mut put, &journal);
    let mut changes: Vec<_> =
        LogEvent::of_edit(hash, &put, &journal).iter().map(LogEvent::to_change).collect();
    if !changes.is_empty() {
        changes.push(DraftChange::Put(put));
    }
    let expect = conditions(&api, &asset_key(&hash), &headers).await?;
    let answer = write(&api, Draft { changes, expect }).await?;
    if let Err(error) = api.handle.settle(hash).await {
        tracing::warn!(hash = hash.short(), %error, "an edit has not reached the store yet");
    }
    Ok(answer)
}

/// Explains why an asset is, or is not, on each device
///
/// From the agent's own state at this moment, also for an asset that is not here.
#[utoipa::path(
    get,
    path = "/v1/assets/{hash}/why",
    operation_id = "explainAsset",
    tag = "assets",
    params(("hash" = String, Path, description = "Its hash, or the unique start of one that is known to be missing.", pattern = "^[0-9a-fA-F]{4,64}$")),
    responses((status = 200, description = "Done.", body = AssetWhy), (status = 404))
)]
async fn why(
    State(api): State<Api>,
    Path(hash): Path<HashPrefix>,
) -> Result<Json<AssetWhy>, Problem> {
    Ok(Json(api.handle.why(hash).await?))
}

/// The writes to the asset's record that the edit means, given the journal's row.
fn writes(edit: CheckedEdit, hash: &Hash, journal: &JournalRow) -> DraftPut {
    let CheckedEdit { description, tags, trashed, attributes } = edit;
    let mut set = BTreeMap::new();
    if let Some(trashed) = trashed {
        set.insert(TRASHED.to_owned(), Some(Value::Bool(trashed)));
    }
    if let Some(description) = description {
        set.insert(DESCRIPTION.to_owned(), Some(Value::Text(description)));
    }
    for (attribute, value) in attributes {
        set.insert(attribute.field().to_owned(), value.as_ref().map(attribute_value));
    }
    let (add, remove) = match tags {
        TagEdit::Change { add, remove } => (add, remove),
        TagEdit::Replace(tags) => {
            let standing: BTreeSet<_> =
                journal.tags.iter().map(|tag| canonical_text(tag)).collect();
            let remove = standing.difference(&tags).cloned().collect();
            (tags, remove)
        }
    };
    let elems = |tags: BTreeSet<String>| tags.into_iter().map(elem).collect();
    // To create it again would name this device as the one that added the asset.
    let create = !journal.alive;
    DraftPut { key: asset_key(hash), create, set, add: elems(add), remove: elems(remove) }
}

/// Removes the parts of an edit that would change nothing.
fn drop_what_is_so(put: &mut DraftPut, journal: &JournalRow) {
    put.set.retain(|field, value| match value {
        Some(Value::Text(text)) if field == DESCRIPTION => {
            *text != journal.description.as_deref().unwrap_or_default()
        }
        Some(Value::Bool(trashed)) if field == TRASHED => {
            *trashed != journal.trashed.unwrap_or_default()
        }
        value => Attribute::of_field(field).is_none_or(|attribute| {
            let value = attribute_of_value(attribute, value.clone());
            journal.attributes.get(&attribute) != Some(&value)
        }),
    });
    put.add.retain(|tag| journal.spellings(&tag.elem).next().is_none());
    let here = put.remove.iter().flat_map(|tag| journal.spellings(&tag.elem));
    put.remove = here.cloned().map(elem).collect();
}

fn elem(tag: String) -> Elem {
    Elem { field: TAGS.to_owned(), elem: tag }
}
