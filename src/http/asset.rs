//! Assets as JSON: what the routes of `/assets` answer and the command line reads, and how an edit of
//! metadata is said. An edit means the same at every route that takes one, and is judged here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::people::written_by_people;
use super::problem::{Problem, bad_request};
use crate::core::attributes::{Attribute, AttributeValue, Attributes, canonical_text};
use crate::core::ids::{Hash, NodeId};
use crate::core::names::full_name;
use crate::store::{Asset, Cursor, Metadata};

/// An asset of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Asset)]
pub struct AssetRow {
    /// The asset's hash.
    pub hash: Hash,
    /// The asset's size in bytes.
    pub size: u64,
    /// The name of the file; empty when unknown.
    pub name: String,
    /// The folder it was added from, such as `pictures/2024`; empty when unknown.
    pub path: String,
    /// The asset's media type; empty when unknown.
    #[serde(rename = "type")]
    pub media_type: String,
    /// When the file was last modified, milliseconds since the Unix epoch. Null: not known.
    #[schema(required)]
    pub modified_ms: Option<i64>,
    /// When the picture was taken, milliseconds since the Unix epoch. Null: not known.
    #[schema(required)]
    pub captured_ms: Option<i64>,
    /// The program it comes from; empty when unknown.
    pub application: String,
    /// The user of that program; empty when unknown.
    pub user: String,
    /// The asset's description.
    pub description: String,
    /// The asset's tags, sorted.
    pub tags: Vec<String>,
    /// The asset is in the trash.
    pub trashed: bool,
    /// The asset's bytes on this device are lost or not those of its hash.
    pub damaged: bool,
    /// The asset's bytes were deleted on this device on purpose.
    #[serde(default)]
    pub evicted: bool,
    /// When the asset was added to this store, milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The asset's place in the store's feed.
    pub cursor: Cursor,
    /// Changes with every edit; also the ETag.
    pub version: u64,
    /// The device that added it. Only at `/v1/assets`, and where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub added_by: Option<NodeId>,
}

impl AssetRow {
    /// Path and name together; empty when the name is unknown.
    pub fn full_name(&self) -> String {
        if self.name.is_empty() { String::new() } else { full_name(&self.path, &self.name) }
    }
}

impl From<&Asset> for AssetRow {
    fn from(Asset { entry, metadata, is_damaged, is_evicted }: &Asset) -> Self {
        Self {
            hash: entry.digest.hash,
            size: entry.digest.size_bytes,
            name: metadata.attributes.name().to_owned(),
            path: metadata.attributes.path().to_owned(),
            media_type: metadata.attributes.media_type().to_owned(),
            modified_ms: metadata.attributes.time_ms(Attribute::ModifiedMs),
            captured_ms: metadata.attributes.time_ms(Attribute::CapturedMs),
            application: metadata.attributes.text(Attribute::Application).to_owned(),
            user: metadata.attributes.text(Attribute::User).to_owned(),
            description: metadata.description.clone(),
            tags: metadata.tags.clone(),
            trashed: metadata.trashed,
            damaged: *is_damaged,
            evicted: *is_evicted,
            timestamp: entry.timestamp_ms,
            cursor: entry.cursor,
            version: metadata.version,
            added_by: None,
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
    /// The asset's hash.
    pub hash: Hash,
    /// The asset's size in bytes.
    pub size: u64,
    /// The asset was held already, and keeps its metadata.
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
    /// Whether the asset is in the trash.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub trashed: Option<bool>,
    /// The name of the file; empty to clear it. So are the other texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
    /// The folder it was added from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub path: Option<String>,
    /// The asset's media type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub media_type: Option<String>,
    /// When the file was last modified, milliseconds since the Unix epoch; null to clear it.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub modified_ms: Option<Option<i64>>,
    /// When the picture was taken, milliseconds since the Unix epoch; null to clear it.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub captured_ms: Option<Option<i64>>,
    /// The program it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub application: Option<String>,
    /// The user of that program.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user: Option<String>,
}

/// Distinguishes null from a missing member.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// An [`AssetEdit`] that makes sense, its texts in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedEdit {
    pub(crate) description: Option<String>,
    pub(crate) tags: TagEdit,
    pub(crate) trashed: Option<bool>,
    /// `None`: to be cleared.
    pub(crate) attributes: BTreeMap<Attribute, Option<AttributeValue>>,
}

/// What an edit does to tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TagEdit {
    /// These are all.
    Replace(BTreeSet<String>),
    /// Adds some tags and removes others. No tag is in both sets.
    Change { add: BTreeSet<String>, remove: BTreeSet<String> },
}

impl AssetEdit {
    /// Checks an edit that a person has written.
    pub(crate) fn checked(self) -> Result<CheckedEdit, Problem> {
        let attributes = self.checked_attributes()?;
        let Self { description, tags, add, remove, trashed, .. } = self;
        let changes_tags = !add.is_empty() || !remove.is_empty();
        let changes_others = trashed.is_some() || !attributes.is_empty();
        if description.is_none() && tags.is_none() && !changes_tags && !changes_others {
            let detail = "nothing to change: give description, tags, add, remove, trashed, name, \
                          path, type, modified_ms, captured_ms, application or user";
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
        Ok(CheckedEdit { description, tags, trashed, attributes })
    }

    fn checked_attributes(&self) -> Result<BTreeMap<Attribute, Option<AttributeValue>>, Problem> {
        let text =
            |text: &Option<String>| text.clone().map(|text| Some(AttributeValue::Text(text)));
        let time = |ms: Option<Option<i64>>| ms.map(|ms| ms.map(AttributeValue::TimeMs));
        let given = [
            (Attribute::Name, text(&self.name)),
            (Attribute::Path, text(&self.path)),
            (Attribute::MediaType, text(&self.media_type)),
            (Attribute::ModifiedMs, time(self.modified_ms)),
            (Attribute::CapturedMs, time(self.captured_ms)),
            (Attribute::Application, text(&self.application)),
            (Attribute::User, text(&self.user)),
        ];
        let given = given.into_iter().filter_map(|(attribute, value)| Some((attribute, value?)));
        given
            .map(|(attribute, value)| {
                let value = value.map(|value| checked_attribute(attribute, value)).transpose()?;
                Ok((attribute, value.flatten()))
            })
            .collect()
    }
}

/// Checks an attribute that a person has written. Returns `None` if it is empty.
pub(crate) fn checked_attribute(
    attribute: Attribute,
    value: AttributeValue,
) -> Result<Option<AttributeValue>, Problem> {
    if matches!(&value, AttributeValue::Text(text) if text.trim().is_empty()) {
        return Ok(None);
    }
    let got = match &value {
        AttributeValue::Text(text) => format!("has {} bytes", text.len()),
        AttributeValue::TimeMs(ms) => format!("is {ms}"),
    };
    let fitting = attribute.fit(value).ok_or_else(|| {
        let field = attribute.field();
        bad_request(match attribute {
            Attribute::ModifiedMs | Attribute::CapturedMs => {
                format!("{field} {got}: expected milliseconds since 1970, of the years 1 to 9999")
            }
            _ => format!(
                "{field} {got}: expected at most {}, and more than dots and slashes",
                attribute.bytes_max()
            ),
        })
    })?;
    Ok(Some(fitting))
}

impl CheckedEdit {
    /// An edit that puts an asset into the trash.
    pub(crate) fn to_trash() -> Self {
        let tags = TagEdit::Change { add: BTreeSet::new(), remove: BTreeSet::new() };
        Self { description: None, tags, trashed: Some(true), attributes: BTreeMap::new() }
    }

    /// Applies the edit to an asset's attributes.
    pub(crate) fn apply_to_attributes(&self, mut standing: Attributes) -> Attributes {
        for (attribute, value) in &self.attributes {
            standing.set(*attribute, value.clone());
        }
        standing
    }
}

impl TagEdit {
    /// Applies the edit to an asset's tags. A tag that stays keeps its spelling.
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
            json!({ "name": "x".repeat(1021) }),
            json!({ "path": "../.." }),
            json!({ "modified_ms": i64::MAX }),
        ] {
            assert_eq!(edit(bad.clone()).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(edit(json!({ "tags": [] })).unwrap().tags, TagEdit::Replace(BTreeSet::new()));
    }

    #[test]
    fn an_attribute_is_set_cleared_or_left_alone() {
        use serde_json::json;
        let standing = Attributes::named("a").with_time(Attribute::ModifiedMs, Some(5));
        let after = |json| edit(json).unwrap().apply_to_attributes(standing.clone());
        assert_eq!(after(json!({ "name": "b" })).name(), "b");
        assert_eq!(after(json!({ "name": "" })).get(Attribute::Name), None);
        assert_eq!(after(json!({ "modified_ms": null })), Attributes::named("a"));
        assert_eq!(after(json!({ "trashed": true })), standing);
    }
}
