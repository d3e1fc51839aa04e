//! Assets as JSON: what the routes of `/assets` answer and the command line reads, and how an edit of
//! metadata is said. An edit means the same at every route that takes one, and is judged here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::people::written_by_people;
use super::problem::{Problem, bad_request};
use crate::core::ids::Hash;
use crate::core::journal::asset::canonical_text;
use crate::store::{Asset, Cursor, Metadata};

/// An asset of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Asset)]
pub struct AssetRow {
    /// Its hash.
    pub hash: Hash,
    /// Its size in bytes.
    pub size: u64,
    /// The name it was added under; empty when unknown.
    pub name: String,
    /// Its media type; empty when unknown.
    #[serde(rename = "type")]
    pub media_type: String,
    /// Its description.
    pub description: String,
    /// Its tags, sorted.
    pub tags: Vec<String>,
    /// It is in the trash.
    pub trashed: bool,
    /// Its bytes on this device are lost or not those of its hash.
    pub damaged: bool,
    /// When this store took it in, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Its place in the store's feed.
    pub cursor: Cursor,
    /// Changes with every edit; also the ETag.
    pub version: u64,
}

impl From<&Asset> for AssetRow {
    fn from(Asset { entry, metadata, is_damaged }: &Asset) -> Self {
        Self {
            hash: entry.digest.hash,
            size: entry.digest.size_bytes,
            name: metadata.file_name.clone(),
            media_type: metadata.media_type.clone(),
            description: metadata.description.clone(),
            tags: metadata.tags.clone(),
            trashed: metadata.trashed,
            damaged: *is_damaged,
            timestamp: entry.timestamp_ms,
            cursor: entry.cursor,
            version: metadata.version,
        }
    }
}

/// A page of a listing, in the order of the store's feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssetsPage {
    /// The assets.
    pub assets: Vec<AssetRow>,
    /// Where the next page starts: `after`. Null at the end.
    #[schema(required)]
    pub next: Option<Cursor>,
}

/// A content that was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Added)]
pub struct AddedAsset {
    /// Its hash.
    pub hash: Hash,
    /// Its size in bytes.
    pub size: u64,
    /// It was held already, and keeps its metadata.
    pub existed: bool,
}

/// An edit of an asset's metadata. What it leaves out stays; one that changes nothing is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(min_properties = 1)]
pub struct AssetEdit {
    /// The description.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub description: Option<String>,
    /// All tags it has from now on; goes with neither `add` nor `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tags: Option<Vec<String>>,
    /// Tags to put on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// Tags to take off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Whether it is in the trash.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub trashed: Option<bool>,
}

/// An [`AssetEdit`] that makes sense, its texts in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedEdit {
    pub(crate) description: Option<String>,
    pub(crate) tags: TagEdit,
    pub(crate) trashed: Option<bool>,
}

/// What an edit does to tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TagEdit {
    /// These are all.
    Replace(BTreeSet<String>),
    /// Some come and some go; no tag does both.
    Change { add: BTreeSet<String>, remove: BTreeSet<String> },
}

impl AssetEdit {
    /// Judges what people have written.
    pub(crate) fn checked(self) -> Result<CheckedEdit, Problem> {
        let Self { description, tags, add, remove, trashed } = self;
        let changes_tags = !add.is_empty() || !remove.is_empty();
        if description.is_none() && tags.is_none() && trashed.is_none() && !changes_tags {
            let detail = "nothing to change: give description, tags, add, remove or trashed";
            return Err(bad_request(detail));
        }
        let tags = match tags {
            Some(_) if changes_tags => {
                let detail = "tags are all tags from now on: give them, or add and remove some";
                return Err(bad_request(detail));
            }
            Some(tags) => TagEdit::Replace(checked_tags(tags)?),
            None => {
                let (add, remove) = (checked_tags(add)?, checked_tags(remove)?);
                if let Some(tag) = add.intersection(&remove).next() {
                    let detail = format!("the tag {tag:?} is both added and removed");
                    return Err(bad_request(detail));
                }
                TagEdit::Change { add, remove }
            }
        };
        let description = description
            .map(|description| {
                let metadata = written_by_people(Metadata { description, ..Metadata::default() })?;
                Ok::<_, Problem>(canonical_text(&metadata.description))
            })
            .transpose()?;
        Ok(CheckedEdit { description, tags, trashed })
    }
}

impl TagEdit {
    /// The tags that come of those that stand. A tag that stays keeps its spelling.
    pub(crate) fn apply(&self, standing: Vec<String>) -> Vec<String> {
        let (add, stays): (_, &dyn Fn(&String) -> bool) = match self {
            Self::Replace(tags) => (tags, &|tag| tags.contains(tag)),
            Self::Change { add, remove } => (add, &|tag| !remove.contains(tag)),
        };
        let mut tags = standing;
        tags.retain(|tag| stays(&canonical_text(tag)));
        let has: BTreeSet<_> = tags.iter().map(|tag| canonical_text(tag)).collect();
        tags.extend(add.difference(&has).cloned());
        tags
    }
}

fn checked_tags(tags: Vec<String>) -> Result<BTreeSet<String>, Problem> {
    let tags = written_by_people(Metadata { tags, ..Metadata::default() })?.tags;
    Ok(tags.iter().map(|tag| canonical_text(tag)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn edit(json: serde_json::Value) -> Result<CheckedEdit, Problem> {
        serde_json::from_value::<AssetEdit>(json).unwrap().checked()
    }

    fn after(json: serde_json::Value) -> Vec<String> {
        edit(json).unwrap().tags.apply(vec!["a".into(), "u\u{308}".into()])
    }

    #[test]
    fn tags_are_replaced_or_added_and_removed_and_keep_their_spelling() {
        use serde_json::json;
        assert_eq!(after(json!({ "trashed": true })), ["a", "u\u{308}"]);
        assert_eq!(after(json!({ "tags": ["\u{fc}", " b "] })), ["u\u{308}", "b"]);
        assert_eq!(after(json!({ "tags": [] })), Vec::<String>::new());
        assert_eq!(after(json!({ "add": ["b", "a"], "remove": ["\u{fc}"] })), ["a", "b"]);
    }

    #[test]
    fn an_edit_that_changes_nothing_or_contradicts_itself_is_refused() {
        use serde_json::json;
        for bad in [
            json!({}),
            json!({ "add": [], "remove": [] }),
            json!({ "add": ["x"], "remove": [" x"] }),
            json!({ "tags": ["x"], "add": ["y"] }),
            json!({ "tags": [" "] }),
            json!({ "add": ["x".repeat(129)] }),
        ] {
            assert_eq!(edit(bad.clone()).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(edit(json!({ "tags": [] })).unwrap().tags, TagEdit::Replace(BTreeSet::new()));
    }
}
