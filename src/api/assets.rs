//! `PATCH /v1/assets/{hash}/meta`: edits of an asset's metadata, written to the journal first, so
//! that edits of several devices merge tag by tag. The store shows them when this is answered.

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::patch;
use utoipa::OpenApi;

use super::Api;
use super::answers::Written;
use super::records::{conditions, write};
use crate::core::ids::Hash;
use crate::core::journal::asset::{
    ASSET_MODEL, DESCRIPTION, JournalRow, TAGS, TRASHED, asset_key, canonical_text,
};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::op::{Elem, Value};
use crate::http::asset::{AssetEdit, CheckedEdit, TagEdit};
use crate::http::extract::{Path, json_body};
use crate::http::problem::{Problem, problem};
use crate::store::StoreError;

/// A body: the longest description and many tags, every byte escaped.
const EDIT_BYTES_MAX: u64 = 512 * 1024;

/// The route.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/assets/{hash}/meta", patch(edit))
}

/// What the document of the API says of this route.
#[derive(OpenApi)]
#[openapi(paths(edit))]
pub(super) struct Described;

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
    let edit: AssetEdit = json_body(&headers, body, EDIT_BYTES_MAX).await?;
    let edit = edit.checked()?;
    if api.handle.store().lookup(hash).await?.is_none() {
        return Err(StoreError::NotFound(hash).into());
    }
    // What stands in the store goes first: a tag that is still on its way into the journal could
    // not be taken out of it, and would come back.
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
        LogEvent::of_edit(hash, &put).iter().map(LogEvent::to_change).collect();
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

/// The writes to the asset's record, which the journal has so.
fn writes(edit: CheckedEdit, hash: &Hash, journal: &JournalRow) -> DraftPut {
    let CheckedEdit { description, tags, trashed } = edit;
    let mut set = BTreeMap::new();
    if let Some(trashed) = trashed {
        set.insert(TRASHED.to_owned(), Some(Value::Bool(trashed)));
    }
    if let Some(description) = description {
        set.insert(DESCRIPTION.to_owned(), Some(Value::Text(description)));
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
    DraftPut { key: asset_key(hash), create: true, set, add: elems(add), remove: elems(remove) }
}

/// Leaves out of an edit what would change nothing.
fn drop_what_is_so(put: &mut DraftPut, journal: &JournalRow) {
    put.set.retain(|field, value| match value {
        Some(Value::Text(text)) if field == DESCRIPTION => {
            *text != journal.description.as_deref().unwrap_or_default()
        }
        Some(Value::Bool(trashed)) if field == TRASHED => {
            *trashed != journal.trashed.unwrap_or_default()
        }
        _ => true,
    });
    put.add.retain(|tag| journal.spellings(&tag.elem).next().is_none());
    let here = put.remove.iter().flat_map(|tag| journal.spellings(&tag.elem));
    put.remove = here.cloned().map(elem).collect();
}

fn elem(tag: String) -> Elem {
    Elem { field: TAGS.to_owned(), elem: tag }
}
