//! Metadata of assets as devices of the plain protocol tell it: the values, each with the time of its
//! writing, without the ops that wrote them. What is adopted becomes an op of this device.
//!
//! M1  A value is adopted under the time that it came with, so that adopting is no edit: it wins against
//!     nothing that the value itself would not win against, and two devices that tell each other come
//!     to rest.
//! M2  Only later values are adopted. What is told twice, or comes back, changes nothing.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::core::attributes::Attribute;
use crate::core::ids::Hash;
use crate::core::journal::asset::{
    DESCRIPTION, TAGS, TRASHED, asset_key, attribute_of_value, attribute_value,
};
use crate::core::journal::draft::DraftPut;
use crate::core::journal::op::{Elem, Value, value_to_bytes};
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{
    ASSET_TAGS_BYTES_MAX, CELL_BYTES, META_ASSET_BYTES_MAX, META_TAGS_MAX, SET_ELEM_BYTES_MAX,
    VALUE_BYTES_MAX,
};

/// What a device tells of one asset.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The asset.
    pub hash: Hash,
    /// Its fields, by their names.
    pub fields: BTreeMap<String, ToldValue>,
    /// Its tags, those that were taken back included.
    pub tags: BTreeMap<String, ToldTag>,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub struct ToldValue {
    /// The value; `None`: cleared.
    pub value: Option<Value>,
    /// When it was written.
    pub at: Hlc,
}

/// The state of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToldTag {
    /// Whether it was taken back.
    pub removed: bool,
    /// When it was added; of a tag that was taken back, the add that was.
    pub at: Hlc,
}

/// What this device has of the asset.
#[derive(Debug, Clone, PartialEq)]
pub struct Own {
    /// The values.
    pub told: Told,
    /// Whether the record exists.
    pub alive: bool,
    /// When the record was last deleted: values up to then are gone for good.
    pub cleared: Option<Hlc>,
}

impl Told {
    /// Nothing of an asset.
    pub fn nothing(hash: Hash) -> Self {
        Self { hash, fields: BTreeMap::new(), tags: BTreeMap::new() }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.tags.is_empty()
    }

    /// Its size, for the bounds of a frame.
    pub fn size_bytes(&self) -> usize {
        let value = |told: &ToldValue| told.value.as_ref().map_or(0, Value::size_bytes);
        let fields = self.fields.iter().map(|(name, told)| name.len() + value(told) + CELL_BYTES);
        fields.sum::<usize>() + self.tags_bytes()
    }

    /// Whether it fits into a frame.
    pub fn fits(&self) -> bool {
        self.size_bytes() <= META_ASSET_BYTES_MAX && self.tags.len() <= META_TAGS_MAX
    }

    fn tags_bytes(&self) -> usize {
        self.tags.keys().map(|tag| tag.len() + CELL_BYTES).sum()
    }

    /// The latest time in it.
    pub fn latest(&self) -> Hlc {
        let fields = self.fields.values().map(|told| told.at);
        fields.chain(self.tags.values().map(|tag| tag.at)).max().unwrap_or_default()
    }
}

/// What to write of what was told: each with the time under which it is written, `None` for now.
pub fn adopt(told: &Told, own: &Own) -> Vec<(DraftPut, Option<Hlc>)> {
    let mut puts = BTreeMap::new();
    for (name, theirs) in &told.fields {
        if let Some((value, at)) = later_value(name, theirs, own) {
            put(&mut puts, told.hash, Some(at)).set.insert(name.clone(), value);
        }
    }
    let mut room_bytes = ASSET_TAGS_BYTES_MAX.saturating_sub(own.told.tags_bytes());
    for (tag, theirs) in &told.tags {
        let elem = Elem { field: TAGS.to_owned(), elem: tag.clone() };
        match later_tag(tag, *theirs, own) {
            Some(Write::Add { is_new }) => {
                let bytes = if is_new { tag.len() + CELL_BYTES } else { 0 };
                if let Some(left_bytes) = room_bytes.checked_sub(bytes) {
                    room_bytes = left_bytes;
                    put(&mut puts, told.hash, Some(theirs.at)).add.insert(elem);
                }
            }
            Some(Write::Remove) => {
                put(&mut puts, told.hash, None).remove.insert(elem);
            }
            None => {}
        }
    }
    // The earliest one makes the record; what is written now comes last, and removes what is there.
    let now = puts.remove(&None).map(|put| (put, None));
    let mut puts: Vec<_> = puts.into_iter().map(|(at, put)| (put, at)).chain(now).collect();
    if let (false, Some((first, _))) = (own.alive, puts.first_mut()) {
        first.create = true;
    }
    puts
}

fn put(puts: &mut BTreeMap<Option<Hlc>, DraftPut>, hash: Hash, at: Option<Hlc>) -> &mut DraftPut {
    puts.entry(at).or_insert_with(|| DraftPut {
        key: asset_key(&hash),
        create: false,
        set: BTreeMap::new(),
        add: BTreeSet::new(),
        remove: BTreeSet::new(),
    })
}

/// The value to write, if theirs is later than ours, and the time of it.
fn later_value(name: &str, theirs: &ToldValue, own: &Own) -> Option<(Option<Value>, Hlc)> {
    let value = match &theirs.value {
        Some(value) => Some(fit(name, value.clone())?),
        None => is_known(name).then_some(None)?,
    };
    if own.cleared.is_some_and(|cleared| theirs.at <= cleared) {
        return None;
    }
    let Some(ours) = own.told.fields.get(name) else { return Some((value, theirs.at)) };
    let bytes = |value: &Option<Value>| value_to_bytes(value.as_ref());
    match theirs.at.cmp(&ours.at) {
        Ordering::Greater => Some((value, theirs.at)),
        // Under its own time it would not surely win here.
        Ordering::Equal if bytes(&value) > bytes(&ours.value) => {
            Some((value, Hlc(theirs.at.0.saturating_add(1))))
        }
        Ordering::Equal | Ordering::Less => None,
    }
}

fn is_known(name: &str) -> bool {
    matches!(name, DESCRIPTION | TRASHED) || Attribute::of_field(name).is_some()
}

/// The value as the journal takes it; `None` if it is of the wrong kind, out of bounds or of a field
/// that means nothing here.
fn fit(name: &str, value: Value) -> Option<Value> {
    match (name, &value) {
        (DESCRIPTION, Value::Text(text)) => (text.len() <= VALUE_BYTES_MAX).then_some(value),
        (TRASHED, Value::Bool(_)) => Some(value),
        _ => {
            let attribute = Attribute::of_field(name)?;
            Some(attribute_value(&attribute_of_value(attribute, Some(value))?))
        }
    }
}

enum Write {
    /// Add the tag; `is_new`: there was never one here.
    Add {
        is_new: bool,
    },
    Remove,
}

/// What to do with a tag.
fn later_tag(tag: &str, theirs: ToldTag, own: &Own) -> Option<Write> {
    if !(1..=SET_ELEM_BYTES_MAX).contains(&tag.len()) {
        return None;
    }
    let ours = own.told.tags.get(tag);
    if theirs.removed {
        return ours
            .is_some_and(|ours| !ours.removed && ours.at <= theirs.at)
            .then_some(Write::Remove);
    }
    let is_gone = own.cleared.is_some_and(|cleared| theirs.at <= cleared);
    let is_later = ours.is_none_or(|ours| theirs.at > ours.at);
    (is_later && !is_gone).then_some(Write::Add { is_new: ours.is_none() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HASH: Hash = Hash([3; 32]);

    fn text(text: &str, at: u64) -> ToldValue {
        ToldValue { value: Some(Value::Text(text.into())), at: Hlc(at) }
    }

    fn described(value: &str, at: u64) -> Told {
        let fields = BTreeMap::from([(DESCRIPTION.to_owned(), text(value, at))]);
        Told { fields, ..Told::nothing(HASH) }
    }

    fn tagged(removed: bool, at: u64) -> Told {
        let tags = BTreeMap::from([("t".to_owned(), ToldTag { removed, at: Hlc(at) })]);
        Told { tags, ..Told::nothing(HASH) }
    }

    fn own(told: Told) -> Own {
        Own { told, alive: true, cleared: None }
    }

    #[test]
    fn the_later_value_stays_whoever_tells_it() {
        let adopted = adopt(&described("new", 20), &own(described("old", 10)));
        let [(put, at)] = &adopted[..] else { panic!("{adopted:?}") };
        assert_eq!(*at, Some(Hlc(20)), "adopting is no edit");
        assert_eq!(put.set[DESCRIPTION], Some(Value::Text("new".into())));
        assert!(!put.create);
        assert!(adopt(&described("old", 10), &own(described("new", 20))).is_empty());
        assert!(adopt(&described("same", 10), &own(described("same", 10))).is_empty());
    }

    #[test]
    fn of_two_values_of_one_moment_both_sides_keep_the_greater_one() {
        let (a, b) = (described("a", 10), described("b", 10));
        assert!(adopt(&a, &own(b.clone())).is_empty());
        let adopted = adopt(&b, &own(a));
        assert_eq!(adopted[0].1, Some(Hlc(11)));
        // What comes back to the other side is the same value, later, and then there is rest.
        let back = adopt(&described("b", 11), &own(b));
        assert_eq!(back[0].1, Some(Hlc(11)));
        assert!(adopt(&described("b", 11), &own(described("b", 11))).is_empty());
    }

    #[test]
    fn a_tag_is_taken_back_with_all_adds_up_to_the_one_that_was_seen() {
        let adopted = adopt(&tagged(true, 10), &own(tagged(false, 10)));
        assert_eq!((adopted[0].0.remove.len(), adopted[0].1), (1, None));
        assert!(adopt(&tagged(true, 10), &own(tagged(false, 11))).is_empty(), "added again since");
        assert!(adopt(&tagged(false, 10), &own(tagged(true, 10))).is_empty());
        assert_eq!(adopt(&tagged(false, 11), &own(tagged(true, 10)))[0].1, Some(Hlc(11)));
        assert!(adopt(&tagged(true, 10), &own(Told::nothing(HASH))).is_empty());
    }

    #[test]
    fn a_later_add_of_a_tag_is_noted_so_that_taking_it_back_names_it() {
        assert_eq!(adopt(&tagged(false, 20), &own(tagged(false, 10)))[0].1, Some(Hlc(20)));
    }

    #[test]
    fn what_was_deleted_does_not_come_back_by_what_was_written_before() {
        let deleted = Own { told: Told::nothing(HASH), alive: false, cleared: Some(Hlc(15)) };
        assert!(adopt(&described("old", 15), &deleted).is_empty());
        assert!(adopt(&tagged(false, 15), &deleted).is_empty());
        assert!(adopt(&described("new", 16), &deleted)[0].0.create);
    }

    #[test]
    fn what_means_nothing_here_or_is_out_of_bounds_is_left_alone() {
        let mut told = Told::nothing(HASH);
        told.fields.insert("color".into(), text("red", 10));
        told.fields.insert(TRASHED.into(), text("yes", 10));
        told.fields.insert("modified_ms".into(), text("today", 10));
        told.fields.insert(DESCRIPTION.into(), text(&"x".repeat(VALUE_BYTES_MAX + 1), 10));
        told.tags
            .insert("y".repeat(SET_ELEM_BYTES_MAX + 1), ToldTag { removed: false, at: Hlc(10) });
        assert!(adopt(&told, &own(Told::nothing(HASH))).is_empty());
    }

    #[test]
    fn tags_beyond_what_the_journal_reads_of_an_asset_are_not_adopted() {
        let tag = |n: usize| (format!("{n:0>250}"), ToldTag { removed: false, at: Hlc(10) });
        let full = Told { tags: (0..5000).map(tag).collect(), ..Told::nothing(HASH) };
        let adopted = adopt(&full, &own(Told::nothing(HASH)));
        let bytes: usize = adopted[0].0.add.iter().map(|elem| elem.elem.len() + CELL_BYTES).sum();
        assert!(bytes <= ASSET_TAGS_BYTES_MAX && adopted[0].0.add.len() < 5000);
    }
}
