//! An asset's metadata stands in the store, where the user edits it, and in the journal. This
//! decides how the two become one, by three-way comparison with what was last seen (the shadow).
//!
//! A1  Decisions compare values, never where an event came from: so no edit is taken for its echo,
//!     and none of our own writes for an edit. Texts that look the same are the same: they are
//!     compared in [`canonical_text`], on both sides.
//! A2  `pending` is durable before a row goes to the store, so that a crash in between does not make
//!     another device's value look like an edit of this user.

use std::collections::{BTreeMap, BTreeSet};

use unicode_normalization::UnicodeNormalization;

use crate::core::ids::Hash;
use crate::core::journal::draft::DraftPut;
use crate::core::journal::op::{Elem, Key, Value};
use crate::core::limits::{SET_ELEM_BYTES_MAX, VALUE_BYTES_MAX};

/// The model under which assets' metadata is kept.
pub const ASSET_MODEL: &str = "asset";

/// The field of [`Row::description`].
pub const DESCRIPTION: &str = "description";

/// The field of [`Row::trashed`].
pub const TRASHED: &str = "trashed";

/// The field of [`Row::tags`].
pub const TAGS: &str = "tags";

/// What tags may take of one op, encoded: with the longest description it is still within bounds.
/// What does not fit is issued by the next look.
const TAGS_PER_EDIT_BYTES: usize = 40 * 1024;

/// What an element takes beside its text: the names of fields, a stamp.
const ELEM_BYTES: usize = 64;

/// The metadata of an asset. Rows are compared in canonical form only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Row {
    /// Free text.
    pub description: String,
    /// In the trash.
    pub trashed: bool,
    /// Tags.
    pub tags: BTreeSet<String>,
}

/// What the journal has of an asset: `None` where no cell was ever written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalRow {
    /// Whether the record is there.
    pub alive: bool,
    /// Free text.
    pub description: Option<String>,
    /// In the trash.
    pub trashed: Option<bool>,
    /// Tags.
    pub tags: BTreeSet<String>,
    /// Tags that were taken out, and stay out at a first sight.
    pub removed_tags: BTreeSet<String>,
    /// There are more tags than are ever read, and none of them is told here.
    pub is_too_large: bool,
}

/// What the agent remembers of an asset between two looks at the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shadow {
    /// The row last read, but for edits that are still to be issued.
    pub base: Row,
    /// The row about to be written to the store.
    pub pending: Option<Row>,
    /// What the journal had when it was last brought to the store.
    pub written: Option<Row>,
    /// The store's version of the row.
    pub version: u64,
}

/// [`Shadow::version`] while the asset was not seen in the store as that one is now.
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
    /// There were more edits than one op takes: look again at once.
    pub again: bool,
}

/// The form in which texts are compared and written: composed (Unicode NFC, UAX #15), as keyboards
/// and file systems give the same letter in several forms, and trimmed.
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
    /// The same with its texts canonical.
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

    /// The tags as they stand in the journal whose canonical form this is.
    pub fn spellings<'a>(&'a self, tag: &'a str) -> impl Iterator<Item = &'a String> {
        self.tags.iter().filter(move |spelling| canonical_text(spelling) == tag)
    }

    /// The row the journal would give a store.
    pub fn row(&self) -> Row {
        Row {
            description: self.description.clone().unwrap_or_default(),
            trashed: self.trashed.unwrap_or_default(),
            tags: self.tags.clone(),
        }
    }
}

impl Shadow {
    /// That of an asset about to be put into the store with this row. Until it is seen there, an
    /// empty row is no edit either: the asset may come by another way.
    pub fn expected(row: Row) -> Self {
        Self { base: Row::default(), pending: Some(row), written: None, version: UNSEEN }
    }

    /// Whether it is [`Shadow::expected`], and the asset was not seen since.
    pub fn is_expected(&self) -> bool {
        self.version == UNSEEN && self.pending.is_some()
    }

    /// Whether the asset was known, and its row in the store is to be looked at as for the first
    /// time.
    pub fn is_forgotten(&self) -> bool {
        self.version == UNSEEN && self.pending.is_none()
    }
}

/// Decides about an asset: `store` is the row just read and its version, `shadow` what is
/// remembered, `journal` what the journal has.
///
/// At first sight only what the journal never heard of is issued: a device that comes to a group
/// with assets of its own overwrites nothing. Texts too long for the journal stay as they are here.
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

    // What the journal has once the edits are in it, and what only this store can have.
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
        // An edit that is still to be issued must look like one the next time.
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
        // The store was given this and chose otherwise: it is not asked again.
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
    /// Tags put in or taken out for which there was no room.
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

/// The record of an asset's metadata.
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

    /// What an edit makes of the journal's row.
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
        // The crash lost the answer; the journal has moved on meanwhile.
        let newer = has("c", true, &["y", "z"]);
        let second = reconcile(&HASH, &pending, 2, Some(&first.shadow), &newer);
        assert_eq!(second.edit, None);
        assert_eq!(second.write, Some(row("c", true, &["y", "z"])));
        // Or the store never saw it.
        let third = reconcile(&HASH, &before, 1, Some(&first.shadow), &newer);
        assert_eq!(third.edit, None);
    }

    #[test]
    fn an_asset_put_with_the_journals_row_is_no_edit_whatever_becomes_of_it() {
        let put = row("theirs", false, &["x"]);
        let shadow = Shadow::expected(put.clone());
        assert!(shadow.is_expected() && !shadow.is_forgotten());
        let newer = has("newer", true, &[]);
        // It arrived; it came without its row; it was put in by the user with one of his own.
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
        // It kept something else, which is the user's for all we know, and is issued.
        let odd = row("B", false, &[]);
        let second = reconcile(&HASH, &odd, 2, Some(&shadow), &journal);
        assert!(second.edit.is_some());
        // It kept what it had: the same again and again, and that is left alone.
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
