//! `PATCH /v1/assets/{hash}/meta`: edits of an asset's metadata, written to the journal first, so
//! that edits of several devices merge tag by tag. The store shows them when this is answered.

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::patch;
use serde::Deserialize;

use super::json::{bad_request, parse_hash};
use super::records::write;
use super::{Api, json_body};
use crate::core::ids::Hash;
use crate::core::journal::asset::{
    ASSET_MODEL, DESCRIPTION, JournalRow, TAGS, TRASHED, asset_key, canonical_text,
};
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::log::LogEvent;
use crate::core::journal::op::{Elem, Value};
use crate::http::people::written_by_people;
use crate::http::problem::{Problem, problem};
use crate::store::{Metadata, StoreError};

/// A body: the longest description and many tags, every byte escaped.
const EDIT_BYTES_MAX: u64 = 512 * 1024;

/// The route.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/assets/{hash}/meta", patch(edit))
}

/// What an edit changes; what it leaves out stays.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Edit {
    add: Vec<String>,
    remove: Vec<String>,
    description: Option<String>,
    trashed: Option<bool>,
}

async fn edit(
    State(api): State<Api>,
    Path(hash): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let edit: Edit = json_body(&headers, body, EDIT_BYTES_MAX).await?;
    let hash = parse_hash(&hash)?;
    if api.handle.store().lookup(hash).await?.is_none() {
        return Err(StoreError::NotFound(hash).into());
    }
    let mut put = edit.into_put(&hash)?;
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
    drop_what_is_so(&mut put, &journal);
    let mut changes: Vec<_> =
        LogEvent::of_edit(hash, &put).iter().map(LogEvent::to_change).collect();
    if !changes.is_empty() {
        changes.push(DraftChange::Put(put));
    }
    let answer = write(&api, Draft { changes, expect: Vec::new() }).await?;
    if let Err(error) = api.handle.settle(hash).await {
        tracing::warn!(hash = hash.short(), %error, "an edit has not reached the store yet");
    }
    Ok(answer)
}

impl Edit {
    /// The writes to the asset's record.
    fn into_put(self, hash: &Hash) -> Result<DraftPut, Problem> {
        let mut set = BTreeMap::new();
        if let Some(trashed) = self.trashed {
            set.insert(TRASHED.to_owned(), Some(Value::Bool(trashed)));
        }
        if let Some(description) = self.description {
            let metadata = written_by_people(Metadata { description, ..Metadata::default() })?;
            let description = canonical_text(&metadata.description);
            set.insert(DESCRIPTION.to_owned(), Some(Value::Text(description)));
        }
        let (add, remove) = (tags(self.add)?, tags(self.remove)?);
        if let Some(tag) = add.intersection(&remove).next() {
            return Err(bad_request(format!("the tag {:?} is both added and removed", tag.elem)));
        }
        if set.is_empty() && add.is_empty() && remove.is_empty() {
            let detail = "nothing to change: give add, remove, description or trashed";
            return Err(bad_request(detail));
        }
        Ok(DraftPut { key: asset_key(hash), create: true, set, add, remove })
    }
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

fn tags(tags: Vec<String>) -> Result<BTreeSet<Elem>, Problem> {
    let tags = written_by_people(Metadata { tags, ..Metadata::default() })?.tags;
    Ok(tags.iter().map(|tag| elem(canonical_text(tag))).collect())
}
