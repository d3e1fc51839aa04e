//! An asset's metadata exists twice: in the store, where the user edits it, and in the journal.
//! This merges the two by a three-way comparison. The merge base is the shadow: what the agent last
//! saw in the store.
//!
//! A1  Decisions compare values and never ask where an event came from. So an edit is never
//!     mistaken for an echo, nor our own write for an edit. Texts that look the same count as
//!     equal: both sides are compared as [`canonical_text`].
//! A2  `pending` is durable before a row is written to the store. Otherwise a crash in between
//!     would make another device's value look like an edit of this user.

use std::collections::{BTreeMap, BTreeSet};

use unicode_normalization::UnicodeNormalization;

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

/// The most bytes of tags in one op, encoded, so that an op with the longest description stays
/// within its bounds. The next look at the asset issues the tags that do not fit.
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
    /// Tags.
    pub tags: BTreeSet<String>,
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
    /// Tags.
    pub tags: BTreeSet<String>,
    /// Tags that were removed. The first look at an asset in the store does not add them again.
    pub removed_tags: BTreeSet<String>,
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
}

/// The [`Shadow::version`] of an asset whose current row in the store has not been read yet.
pub const UNSEEN: u64 = 0;

/// What to do about an asset.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The user's edits, to write into the journal.
    pub edit: Option<DraftPut>,
    /// The shadow to write in the same transaction.
    pub shadow: Shadow,
    /// What to write to the store then, expecting the version of the row that was read.
    pub write: Option<Row>,
    /// One op could not hold all edits: look at the asset again at once.
    pub again: bool,
}

/// The form in which texts are compared and written: trimmed, and composed (Unicode NFC, UAX #15),
/// because keyboards and file systems produce the same letter in several encodings.
pub fn canonical_text(text: &str) -> String {
    text.trim().nfc().collect()
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
        }
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
        }
    }
}

impl Shadow {
    /// The shadow of an asset that is about to be put into the store with this row. As long as it
    /// was not seen there, an empty row does not count as an edit: the asset may also arrive
    /// another way.
    pub fn expected(row: Row) -> Self {
        Self { base: Row::default(), pending: Some(row), written: None, version: UNSEEN }
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

    let again = !edits.later.is_empty();
    let written = shadow.and_then(|shadow| shadow.written.clone());
    let mut base = store.clone();
    for tag in &edits.later {
        // An edit that is still to be issued must differ from the base at the next look.
        if !base.tags.remove(tag) {
            base.tags.insert(tag.clone());
        }
    }
    let edit = (!edits.is_empty()).then(|| edits.into_put(hash, &store, journal));
    let mut next = Shadow { base, pending: None, written, version };
    if merged == store {
        next.written = Some(merged);
        return Decision { edit, shadow: next, write: None, again };
    }
    if next.written.as_ref() == Some(&merged) {
        // The store was given this value before and chose another: do not write it again.
        return Decision { edit, shadow: next, write: None, again };
    }
    next.pending = Some(merged.clone());
    Decision { edit, shadow: next, write: Some(merged), again }
}

/// The shadow after the store took `row` and gave it `version`.
pub fn written(row: &Row, version: u64) -> Shadow {
    let row = row.canonical();
    Shadow { base: row.clone(), pending: None, written: Some(row), version }
}

/// What the user did to a row.
#[derive(Debug, Default)]
struct Edits {
    description: bool,
    trashed: bool,
    add: BTreeSet<String>,
    remove: BTreeSet<String>,
    /// Added or removed tags that did not fit into this op.
    later: BTreeSet<String>,
}

impl Edits {
    fn is_empty(&self) -> bool {
        !self.description && !self.trashed && self.add.is_empty() && self.remove.is_empty()
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

fn first_sight(store: &Row, journal: &JournalRow) -> Edits {
    let unheard = |tag: &&String| {
        !journal.tags.contains(*tag) && !journal.removed_tags.contains(*tag) && fits_elem(tag)
    };
    let known = journal.description.is_some();
    Edits {
        description: !known && !store.description.is_empty() && fits_value(&store.description),
        trashed: journal.trashed.is_none() && store.trashed,
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
    Edits {
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HASH: Hash = Hash([3; 32]);

    fn tags(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    fn row(description: &str, trashed: bool, of: &[&str]) -> Row {
        Row { description: description.into(), trashed, tags: tags(of) }
    }

    fn has(description: &str, trashed: bool, of: &[&str]) -> JournalRow {
        JournalRow {
            alive: true,
            description: Some(description.into()),
            trashed: Some(trashed),
            tags: tags(of),
            ..JournalRow::default()
        }
    }

    fn settled(row: &Row) -> Shadow {
        written(row, 1)
    }

    /// Applies an edit to the journal's row.
    fn apply(journal: &mut JournalRow, edit: Option<&DraftPut>) {
        let Some(edit) = edit else { return };
        journal.alive |= edit.create;
        for (field, value) in &edit.set {
            match (field.as_str(), value) {
                (DESCRIPTION, Some(Value::Text(text))) => journal.description = Some(text.clone()),
                (TRASHED, Some(Value::Bool(trashed))) => journal.trashed = Some(*trashed),
                other => panic!("{other:?}"),
            }
        }
        for elem in &edit.add {
            journal.tags.insert(elem.elem.clone());
            journal.removed_tags.remove(&elem.elem);
        }
        for elem in &edit.remove {
            assert!(journal.tags.remove(&elem.elem), "{elem:?} was not in");
            journal.removed_tags.insert(elem.elem.clone());
        }
    }

    #[test]
    fn the_first_sight_fills_and_never_overwrites() {
        let store = row("mine", true, &["red", "old"]);
        let empty = reconcile(&HASH, &store, 1, None, &JournalRow::default());
        let edit = empty.edit.unwrap();
        assert!(edit.create && edit.set.len() == 2 && edit.add.len() == 2);
        assert_eq!(empty.write, None);

        let mut journal = has("theirs", false, &["blue"]);
        journal.removed_tags = tags(&["old"]);
        let decision = reconcile(&HASH, &store, 1, None, &journal);
        let edit = decision.edit.unwrap();
        assert!(!edit.create && edit.set.is_empty());
        assert_eq!(edit.add.iter().map(|e| e.elem.as_str()).collect::<Vec<_>>(), ["red"]);
        assert_eq!(decision.write, Some(row("theirs", false, &["blue", "red"])));
    }

    #[test]
    fn a_user_edit_is_issued_once_with_just_its_fields() {
        let before = row("a", false, &["x", "y"]);
        let mut journal = has("a", false, &["x", "y"]);
        let after = row("a", true, &["x", "z"]);
        let first = reconcile(&HASH, &after, 2, Some(&settled(&before)), &journal);
        let edit = first.edit.as_ref().unwrap();
        assert_eq!(edit.set.keys().collect::<Vec<_>>(), [TRASHED]);
        assert_eq!((edit.add.len(), edit.remove.len()), (1, 1));
        assert_eq!(first.write, None);
        apply(&mut journal, first.edit.as_ref());
        let second = reconcile(&HASH, &after, 2, Some(&first.shadow), &journal);
        assert_eq!((second.edit, second.write), (None, None));
    }

    #[test]
    fn our_own_write_that_comes_back_is_no_edit_also_after_a_crash_in_between() {
        let before = row("a", false, &["x"]);
        let journal = has("b", true, &["y"]);
        let first = reconcile(&HASH, &before, 1, Some(&settled(&before)), &journal);
        let pending = first.write.clone().unwrap();
        assert_eq!(pending, row("b", true, &["y"]));
        // The write succeeded, but a crash lost the answer. The journal has moved on meanwhile.
        let newer = has("c", true, &["y", "z"]);
        let second = reconcile(&HASH, &pending, 2, Some(&first.shadow), &newer);
        assert_eq!(second.edit, None);
        assert_eq!(second.write, Some(row("c", true, &["y", "z"])));
        // Or the write never reached the store.
        let third = reconcile(&HASH, &before, 1, Some(&first.shadow), &newer);
        assert_eq!(third.edit, None);
    }

    #[test]
    fn an_asset_put_with_the_journals_row_is_no_edit_whatever_becomes_of_it() {
        let put = row("theirs", false, &["x"]);
        let shadow = Shadow::expected(put.clone());
        assert!(shadow.is_expected() && !shadow.is_forgotten());
        let newer = has("newer", true, &[]);
        // Three cases: the asset arrived with the row; it arrived without; the user added it with a
        // row of his own.
        let arrived = reconcile(&HASH, &put, 1, Some(&shadow), &newer);
        assert_eq!((arrived.edit, arrived.write), (None, Some(row("newer", true, &[]))));
        let bare = reconcile(&HASH, &Row::default(), 1, Some(&shadow), &newer);
        assert_eq!((bare.edit, bare.write), (None, Some(row("newer", true, &[]))));
        let own = reconcile(&HASH, &row("mine", false, &["x"]), 1, Some(&shadow), &newer);
        assert_eq!(own.edit.unwrap().set.keys().collect::<Vec<_>>(), [DESCRIPTION]);
    }

    #[test]
    fn a_store_that_chooses_otherwise_is_asked_once() {
        let base = row("a", false, &[]);
        let journal = has("b", false, &[]);
        let first = reconcile(&HASH, &base, 1, Some(&settled(&base)), &journal);
        let shadow = written(first.write.as_ref().unwrap(), 2);
        // The store kept a third value. It may be an edit by the user, so it is issued.
        let odd = row("B", false, &[]);
        let second = reconcile(&HASH, &odd, 2, Some(&shadow), &journal);
        assert!(second.edit.is_some());
        // The store kept its old value. That would repeat for ever, so it is left alone.
        let same = Shadow { base: base.clone(), ..shadow };
        let third = reconcile(&HASH, &base, 2, Some(&same), &journal);
        assert_eq!((third.edit, third.write), (None, None));
    }

    #[test]
    fn more_tags_than_an_op_takes_are_issued_over_several_looks() {
        let names: Vec<String> = (0..900).map(|n| format!("{n:0>100}")).collect();
        let store = Row { tags: names.iter().cloned().collect(), ..Row::default() };
        let mut journal = JournalRow::default();
        let mut decision = reconcile(&HASH, &store, 1, None, &journal);
        let mut looks = 1;
        while decision.again {
            assert_eq!(decision.write, None, "nothing is taken from the store meanwhile");
            apply(&mut journal, decision.edit.as_ref());
            decision = reconcile(&HASH, &store, 1, Some(&decision.shadow), &journal);
            looks += 1;
        }
        apply(&mut journal, decision.edit.as_ref());
        assert_eq!(journal.tags, store.tags);

        let bare = Row::default();
        let mut decision = reconcile(&HASH, &bare, 2, Some(&settled(&store)), &journal);
        while decision.again {
            assert_eq!(decision.write, None);
            apply(&mut journal, decision.edit.as_ref());
            decision = reconcile(&HASH, &bare, 2, Some(&decision.shadow), &journal);
            looks += 1;
        }
        apply(&mut journal, decision.edit.as_ref());
        assert!(journal.tags.is_empty() && looks > 4, "{looks} looks");
    }

    #[test]
    fn texts_too_long_for_the_journal_stay_here_and_disturb_nothing() {
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        let tag = "t".repeat(SET_ELEM_BYTES_MAX + 1);
        let store = row(&long, false, &[&tag, "short"]);
        let decision = reconcile(&HASH, &store, 1, None, &JournalRow::default());
        let edit = decision.edit.unwrap();
        assert!(edit.set.is_empty());
        assert_eq!(edit.add.len(), 1);
        assert_eq!(decision.write, None);
    }

    #[test]
    fn texts_that_look_the_same_are_the_same_whoever_wrote_them() {
        let (composed, decomposed) = ("\u{e9}t\u{e9}", "e\u{301}te\u{301}");
        let store = row(decomposed, false, &[decomposed]);
        let first = reconcile(&HASH, &store, 1, None, &JournalRow::default());
        let edit = first.edit.unwrap();
        assert_eq!(edit.set[DESCRIPTION], Some(Value::Text(composed.into())));
        assert_eq!(edit.add.iter().map(|e| e.elem.as_str()).collect::<Vec<_>>(), [composed]);

        for (here, there) in [(composed, decomposed), (decomposed, composed)] {
            let (store, journal) = (row(here, false, &[here]), has(there, false, &[there]));
            for shadow in [None, Some(settled(&store)), Some(settled(&journal.row()))] {
                let decision = reconcile(&HASH, &store, 1, shadow.as_ref(), &journal);
                assert_eq!((decision.edit, decision.write), (None, None), "{here:?} {there:?}");
            }
            // Taking the tag out takes it out as it stands in the journal.
            let bare = row(here, false, &[]);
            let decision = reconcile(&HASH, &bare, 2, Some(&settled(&store)), &journal);
            let edit = decision.edit.unwrap();
            assert_eq!(edit.remove.iter().map(|e| e.elem.as_str()).collect::<Vec<_>>(), [there]);
        }
    }

    #[test]
    fn rows_are_compared_in_canonical_form() {
        let plain = row("a b", false, &["x"]);
        let padded = row(" a b \n", false, &["x ", " "]);
        assert_eq!(padded.canonical(), plain);
        let decision =
            reconcile(&HASH, &padded, 1, Some(&settled(&plain)), &has("a b", false, &["x"]));
        assert_eq!((decision.edit, decision.write), (None, None));
    }
}
