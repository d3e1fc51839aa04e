//! An asset's metadata exists twice: in the store, where the user edits it, and in the journal.
//! This merges the two by a three-way comparison. The merge base is the shadow: what the agent last
//! saw in the store.
//!
//! A1  Decisions compare values and never ask where an event came from. So an edit is never
//!     mistaken for an echo, nor our own write for an edit. Texts that look the same count as
//!     equal: both sides are compared as [`canonical_text`].
//! A2  `pending` is durable before a row is written to the store. Otherwise a crash in between
//!     would make another device's value look like an edit of this user.
//! A3  Attributes are filled in where the journal has none, and only a value that this user changed
//!     overwrites another. A row that lacks an attribute never clears it: some stores do not keep
//!     attributes, and older versions of this program did not.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::attributes::{Attribute, AttributeValue, Attributes, canonical_text};
use crate::core::ids::Hash;
use crate::core::journal::draft::DraftPut;
use crate::core::journal::op::{Elem, Key, Value};
use crate::core::limits::{SET_ELEM_BYTES_MAX, VALUE_BYTES_MAX};

/// The model of the records that hold assets' metadata.
pub const ASSET_MODEL: &str = "asset";

/// The field of [`Row::description`].
pub const DESCRIPTION: &str = "description";

/// The field of [`Row::trashed`].
pub const TRASHED: &str = "trashed";

/// The field of [`Row::tags`].
pub const TAGS: &str = "tags";

/// The most bytes of encoded tags in one op, so that an op with the longest description stays within
/// its bounds. The next comparison of the asset writes the tags that do not fit.
const TAGS_PER_EDIT_BYTES: usize = 40 * 1024;

/// What a set element takes beside its text: field names and a stamp.
const ELEM_BYTES: usize = 64;

/// The metadata of an asset. Rows are compared in canonical form only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Row {
    /// Free text.
    pub description: String,
    /// Whether the asset is in the trash.
    pub trashed: bool,
    /// The tags that are set.
    pub tags: BTreeSet<String>,
    /// The attributes of the file that the asset was added from: name, path, type, times.
    pub attributes: Attributes,
}

/// What the journal holds about an asset; `None` in fields that were never written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalRow {
    /// Whether the record exists.
    pub alive: bool,
    /// Free text.
    pub description: Option<String>,
    /// Whether the asset is in the trash.
    pub trashed: Option<bool>,
    /// The tags that are set.
    pub tags: BTreeSet<String>,
    /// Tags that were removed. The first look at an asset in the store does not add them again.
    pub removed_tags: BTreeSet<String>,
    /// Attributes that were ever written; `None`: cleared, or a value that no store can show.
    pub attributes: BTreeMap<Attribute, Option<AttributeValue>>,
    /// The record has more tags than the journal reads, so `tags` and `removed_tags` are empty.
    pub is_too_large: bool,
}

/// What the agent remembers of an asset between two looks at the store: the base of the merge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shadow {
    /// The row last read from the store, without the edits that are still to be issued.
    pub base: Row,
    /// The row about to be written to the store.
    pub pending: Option<Row>,
    /// The value last written to the store, or found equal there.
    pub written: Option<Row>,
    /// The store's version of the row.
    pub version: u64,
    /// Whether the rows include attributes. An earlier version of this program did not record them;
    /// then the row's attributes are seen for the first time.
    pub knows_attributes: bool,
}

/// The [`Shadow::version`] of an asset whose current row in the store has not been read yet.
pub const UNSEEN: u64 = 0;

/// What to do about an asset.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Attributes that the journal lacks, of an asset that was seen before: to write into the journal
    /// so that they overwrite nothing.
    pub fill: Option<DraftPut>,
    /// The user's edits, and at first sight whatever the journal lacks, to write into the journal.
    pub edit: Option<DraftPut>,
    /// The shadow to write in the same transaction.
    pub shadow: Shadow,
    /// What to write to the store then, expecting the version of the row that was read.
    pub write: Option<Row>,
    /// One op could not hold all edits: look at the asset again at once.
    pub again: bool,
}

fn canonical_tags(tags: &BTreeSet<String>) -> BTreeSet<String> {
    tags.iter().map(|tag| canonical_text(tag)).filter(|tag| !tag.is_empty()).collect()
}

impl Row {
    /// The form in which rows are compared: texts canonical, empty tags left out.
    pub fn canonical(&self) -> Self {
        Self {
            description: canonical_text(&self.description),
            trashed: self.trashed,
            tags: canonical_tags(&self.tags),
            attributes: self.attributes.clone(),
        }
    }

    /// The length in bytes of the description, the tags and the attributes together.
    pub fn text_bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(String::len).sum();
        self.description.len() + tags + self.attributes.text_bytes()
    }
}

impl JournalRow {
    /// This row with its texts in canonical form.
    pub fn canonical(&self) -> Self {
        let tags = canonical_tags(&self.tags);
        let removed_tags = canonical_tags(&self.removed_tags);
        Self {
            description: self.description.as_deref().map(canonical_text),
            removed_tags: removed_tags.difference(&tags).cloned().collect(),
            tags,
            attributes: self.attributes.clone(),
            ..*self
        }
    }

    /// The spellings, as the journal holds them, of a tag in canonical form.
    pub fn spellings<'a>(&'a self, tag: &'a str) -> impl Iterator<Item = &'a String> {
        self.tags.iter().filter(move |spelling| canonical_text(spelling) == tag)
    }

    /// The row that this state of the journal means for a store.
    pub fn row(&self) -> Row {
        Row {
            description: self.description.clone().unwrap_or_default(),
            trashed: self.trashed.unwrap_or_default(),
            tags: self.tags.clone(),
            attributes: self
                .attributes
                .iter()
                .filter_map(|(attribute, value)| Some((*attribute, value.clone()?)))
                .collect(),
        }
    }

    /// The value of an attribute, if it has one.
    pub fn attribute(&self, attribute: Attribute) -> Option<&AttributeValue> {
        self.attributes.get(&attribute)?.as_ref()
    }
}

impl Shadow {
    /// The shadow of an asset that is about to be put into the store with this row. As long as it
    /// was not seen there, an empty row does not count as an edit: the asset may also arrive
    /// another way.
    pub fn expected(row: Row) -> Self {
        Self { pending: Some(row), version: UNSEEN, knows_attributes: true, ..Self::default() }
    }

    /// Whether this is a shadow made by [`Shadow::expected`] and the asset was not seen since.
    pub fn is_expected(&self) -> bool {
        self.version == UNSEEN && self.pending.is_some()
    }

    /// Whether the asset was known before and its row in the store is to be treated as seen for the
    /// first time.
    pub fn is_forgotten(&self) -> bool {
        self.version == UNSEEN && self.pending.is_none()
    }
}

/// Decides what to do about an asset. `store` is the row just read and `version` its version,
/// `shadow` the merge base, `journal` the journal's state.
///
/// At first sight (no shadow) only values that the journal never had are issued. So a device that
/// joins a group with assets of its own overwrites nothing. Texts too long for the journal stay in
/// this store only.
pub fn reconcile(
    hash: &Hash,
    store: &Row,
    version: u64,
    shadow: Option<&Shadow>,
    journal: &JournalRow,
) -> Decision {
    let (store, canonical) = (store.canonical(), journal.canonical());
    let edits = match shadow {
        None => first_sight(&store, &canonical),
        Some(shadow) => edits(&store, shadow, &canonical),
    };
    let fills = match shadow {
        Some(shadow) if !shadow.knows_attributes || shadow.is_expected() => {
            unheard_attributes(&store, &canonical)
        }
        _ => Attributes::default(),
    };

    // The journal's row once the edits are applied, with the values that only this store can hold.
    let mut merged = canonical.row();
    if edits.description || !fits_value(&store.description) {
        merged.description.clone_from(&store.description);
    }
    if edits.trashed {
        merged.trashed = store.trashed;
    }
    merged.tags.retain(|tag| !edits.remove.contains(tag) && !edits.later.contains(tag));
    merged.tags.extend(edits.add.iter().cloned());
    let stays = |tag: &&String| edits.later.contains(*tag) || !fits_elem(tag);
    merged.tags.extend(store.tags.iter().filter(stays).cloned());
    for (attribute, value) in store.attributes.iter() {
        let is_edit = edits.attributes.get(attribute).is_some();
        if is_edit || !canonical.attributes.contains_key(&attribute) {
            merged.attributes.set(attribute, Some(value.clone()));
        }
    }

    let again = !edits.later.is_empty();
    // Whether the store keeps attributes is not known from a row without them.
    let written = shadow.filter(|shadow| shadow.knows_attributes);
    let written = written.and_then(|shadow| shadow.written.clone());
    let mut base = store.clone();
    for tag in &edits.later {
        // An edit that is still to be issued must differ from the base at the next look.
        if !base.tags.remove(tag) {
            base.tags.insert(tag.clone());
        }
    }
    let fill = Edits { attributes: fills, ..Edits::default() };
    let fill = (!fill.is_empty()).then(|| fill.into_put(hash, &store, journal));
    let edit = (!edits.is_empty()).then(|| edits.into_put(hash, &store, journal));
    let mut next = Shadow { base, pending: None, written, version, knows_attributes: true };
    if merged == store {
        next.written = Some(merged);
        return Decision { fill, edit, shadow: next, write: None, again };
    }
    if next.written.as_ref() == Some(&merged) {
        // The store was given this value before and chose another: do not write it again.
        return Decision { fill, edit, shadow: next, write: None, again };
    }
    next.pending = Some(merged.clone());
    Decision { fill, edit, shadow: next, write: Some(merged), again }
}

/// The shadow after the store took `row`, of which it kept the attributes `kept`, and gave it
/// `version`.
pub fn written(row: &Row, kept: Attributes, version: u64) -> Shadow {
    let row = row.canonical();
    let base = Row { attributes: kept, ..row.clone() };
    Shadow { base, pending: None, written: Some(row), version, knows_attributes: true }
}

/// What the user did to a row.
#[derive(Debug, Default)]
struct Edits {
    description: bool,
    trashed: bool,
    add: BTreeSet<String>,
    remove: BTreeSet<String>,
    attributes: Attributes,
    /// Added or removed tags that did not fit into this op.
    later: BTreeSet<String>,
}

impl Edits {
    fn is_empty(&self) -> bool {
        !self.description
            && !self.trashed
            && self.add.is_empty()
            && self.remove.is_empty()
            && self.attributes.iter().next().is_none()
    }

    fn with_tags(mut self, add: Vec<&String>, remove: Vec<&String>) -> Self {
        let mut room = TAGS_PER_EDIT_BYTES;
        let changes = add.into_iter().map(|tag| (tag, true));
        for (tag, is_add) in changes.chain(remove.into_iter().map(|tag| (tag, false))) {
            let bytes = tag.len() + ELEM_BYTES;
            let into = match (room >= bytes, is_add) {
                (false, _) => &mut self.later,
                (true, true) => &mut self.add,
                (true, false) => &mut self.remove,
            };
            into.insert(tag.clone());
            room = room.saturating_sub(bytes);
        }
        self
    }

    fn into_put(self, hash: &Hash, store: &Row, journal: &JournalRow) -> DraftPut {
        let mut set = BTreeMap::new();
        if self.description {
            set.insert(DESCRIPTION.to_owned(), Some(Value::Text(store.description.clone())));
        }
        if self.trashed {
            set.insert(TRASHED.to_owned(), Some(Value::Bool(store.trashed)));
        }
        for (attribute, value) in self.attributes.iter() {
            set.insert(attribute.field().to_owned(), Some(attribute_value(value)));
        }
        let elem = |elem: &String| Elem { field: TAGS.to_owned(), elem: elem.clone() };
        DraftPut {
            key: asset_key(hash),
            create: !journal.alive,
            set,
            add: self.add.iter().map(elem).collect(),
            remove: self.remove.iter().flat_map(|tag| journal.spellings(tag)).map(elem).collect(),
        }
    }
}

/// The key of the record with an asset's metadata.
pub fn asset_key(hash: &Hash) -> Key {
    Key { model: ASSET_MODEL.to_owned(), id: hash.0.to_vec(), owned: false }
}

/// The write that makes an asset's record without telling anything.
pub fn new_record(hash: &Hash) -> DraftPut {
    let (add, remove) = (BTreeSet::new(), BTreeSet::new());
    DraftPut { key: asset_key(hash), create: true, set: BTreeMap::new(), add, remove }
}

/// An attribute's value as the journal holds it.
pub fn attribute_value(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Text(text) => Value::Text(text.clone()),
        AttributeValue::TimeMs(ms) => Value::Int(*ms),
    }
}

/// The attribute's value that a field of the journal holds. `None`: null, or nothing that a store
/// can show.
pub fn attribute_of_value(attribute: Attribute, value: Option<Value>) -> Option<AttributeValue> {
    match value? {
        Value::Text(text) => attribute.fit(AttributeValue::Text(text)),
        Value::Int(ms) => attribute.fit(AttributeValue::TimeMs(ms)),
        _ => None,
    }
}

/// The attributes of the row in the store for which the journal never had a value.
fn unheard_attributes(store: &Row, journal: &JournalRow) -> Attributes {
    let unheard = store.attributes.iter().filter(|(a, _)| !journal.attributes.contains_key(a));
    unheard.map(|(attribute, value)| (attribute, value.clone())).collect()
}

fn first_sight(store: &Row, journal: &JournalRow) -> Edits {
    let unheard = |tag: &&String| {
        !journal.tags.contains(*tag) && !journal.removed_tags.contains(*tag) && fits_elem(tag)
    };
    let known = journal.description.is_some();
    Edits {
        description: !known && !store.description.is_empty() && fits_value(&store.description),
        trashed: journal.trashed.is_none() && store.trashed,
        attributes: unheard_attributes(store, journal),
        ..Edits::default()
    }
    .with_tags(store.tags.iter().filter(unheard).collect(), Vec::new())
}

fn edits(store: &Row, shadow: &Shadow, journal: &JournalRow) -> Edits {
    let base = &shadow.base;
    let pending = shadow.pending.as_ref().unwrap_or(base);
    let in_either = |tag: &String| base.tags.contains(tag) || pending.tags.contains(tag);
    let added = store
        .tags
        .iter()
        .filter(|tag| !in_either(tag) && !journal.tags.contains(*tag) && fits_elem(tag));
    let removed = base
        .tags
        .intersection(&pending.tags)
        .filter(|tag| !store.tags.contains(*tag) && journal.tags.contains(*tag));
    let text = &store.description;
    let in_journal = journal.description.as_deref().unwrap_or_default();
    let knows_attributes = shadow.knows_attributes && !shadow.is_expected();
    let changed = store.attributes.iter().filter(|(attribute, value)| {
        let known = [
            base.attributes.get(*attribute),
            pending.attributes.get(*attribute),
            journal.attribute(*attribute),
        ];
        knows_attributes && !known.contains(&Some(*value))
    });
    Edits {
        attributes: changed.map(|(attribute, value)| (attribute, value.clone())).collect(),
        description: *text != base.description
            && *text != pending.description
            && text != in_journal
            && fits_value(text),
        trashed: store.trashed != base.trashed
            && store.trashed != pending.trashed
            && store.trashed != journal.trashed.unwrap_or_default(),
        ..Edits::default()
    }
    .with_tags(added.collect(), removed.collect())
}

fn fits_value(text: &str) -> bool {
    text.len() <= VALUE_BYTES_MAX
}

fn fits_elem(text: &str) -> bool {
    text.len() <= SET_ELEM_BYTES_MAX
}

#[cfg(test)]
mod tests;
