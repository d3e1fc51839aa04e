//! `PATCH /v1/assets/{hash}/meta`: edits of an asset's metadata, written to the journal first, so
//! that edits of several devices merge tag by tag. The store shows them when this is answered.

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::patch;
use serde::Deserialize;

use super::json::{bad_request, parse_hash};
use super::records::write;
use super::{Api, json_body};
use crate::core::journal::asset::{DESCRIPTION, TAGS, TRASHED, asset_key};
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::op::{Elem, Value};
use crate::store::people::written_by_people;
use crate::store::problem::Problem;
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
    let mut set = BTreeMap::new();
    if let Some(trashed) = edit.trashed {
        set.insert(TRASHED.to_owned(), Some(Value::Bool(trashed)));
    }
    if let Some(description) = edit.description {
        let metadata = written_by_people(Metadata { description, ..Metadata::default() })?;
        set.insert(DESCRIPTION.to_owned(), Some(Value::Text(metadata.description)));
    }
    let (add, remove) = (tags(edit.add)?, tags(edit.remove)?);
    if set.is_empty() && add.is_empty() && remove.is_empty() {
        return Err(bad_request("nothing to change: give add, remove, description or trashed"));
    }
    let put = DraftPut { key: asset_key(&hash), create: true, set, add, remove };
    // What stands in the store goes first: a tag that is still on its way into the journal could
    // not be taken out of it, and would come back.
    api.handle.settle(&hash).await;
    let answer =
        write(&api, Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }).await?;
    api.handle.settle(&hash).await;
    Ok(answer)
}

fn tags(tags: Vec<String>) -> Result<BTreeSet<Elem>, Problem> {
    let tags = written_by_people(Metadata { tags, ..Metadata::default() })?.tags;
    Ok(tags.into_iter().map(|elem| Elem { field: TAGS.to_owned(), elem }).collect())
}
