//! Drafts: a change that a local writer requests, before it gets its stamp, number and signature.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::core::journal::op::{Elem, Key, Value};
use crate::core::limits::{
    EVENT_DATA_BYTES_MAX, JOURNAL_NAME_BYTES_MAX, OP_CELLS_MAX, OP_CHANGES_MAX,
    RECORD_ID_BYTES_MAX, SET_ELEM_BYTES_MAX, VALUE_BYTES_MAX,
};

/// A requested change. It becomes one op as a whole or not at all; it writes each cell once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draft {
    /// The changes, at most [`crate::core::limits::OP_CHANGES_MAX`].
    pub changes: Vec<DraftChange>,
    /// Conditions that must hold when the op is written.
    pub expect: Vec<Expect>,
}

/// One change of a draft.
#[derive(Debug, Clone, PartialEq)]
pub enum DraftChange {
    /// Writes to a record.
    Put(DraftPut),
    /// Deletes a record.
    Delete(Key),
    /// Appends to an event stream.
    Event {
        /// The stream's name.
        stream: String,
        /// The event's type.
        kind: String,
        /// The event's data.
        data: Vec<u8>,
    },
}

/// Writes to one record. Removals of elements that are not there are dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftPut {
    /// The record.
    pub key: Key,
    /// Whether to create the record.
    pub create: bool,
    /// Fields and their values; `None` is null.
    pub set: BTreeMap<String, Option<Value>>,
    /// Elements to put into sets.
    pub add: BTreeSet<Elem>,
    /// Elements to take out of sets.
    pub remove: BTreeSet<Elem>,
}

/// A condition of a draft. Owned keys belong to the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The record exists.
    Alive(Key),
    /// The record does not exist.
    Absent(Key),
    /// The record exists and its last change has this arrival number. Its newest stamp would not
    /// do: a change that arrives late has an older one.
    Unchanged(Key, u64),
}

/// Why a draft is refused. Nothing of it is written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DraftError {
    /// A count or size beyond its bound.
    #[error("{what} is {got}, the limit is {limit}")]
    OutOfBounds {
        /// The part of the draft that is out of bounds.
        what: &'static str,
        /// Its count or size.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// A name is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A cell is written twice, or a record both written and deleted.
    #[error("{0} is written twice in one op")]
    Twice(String),
    /// The draft changes a record that does not exist.
    #[error("the record is not there")]
    Absent,
    /// The draft creates a record that exists already.
    #[error("the record is there already")]
    Alive,
    /// The record changed since the writer read it.
    #[error("the record {}", if now.is_some() { "has changed" } else { "is not there any more" })]
    Changed {
        /// The arrival number of its last change; `None` when it does not exist.
        now: Option<u64>,
    },
    /// This device belongs to no group, or was removed from it.
    #[error(
        "this device was removed from its group, or is in none: what it writes now would be lost; \
         start over as a new device with `can-sync leave`"
    )]
    NotMember,
    /// Our wall clock was never set.
    #[error("the clock of this device is not set")]
    ClockNotSet,
    /// This device has used up its space in the group's journal.
    #[error("the journal holds {got_bytes} bytes of this device, the limit is {limit_bytes}")]
    Quota {
        /// The bytes held.
        got_bytes: u64,
        /// The most bytes allowed.
        limit_bytes: u64,
    },
}

impl Draft {
    /// Checks everything that does not depend on the journal's state.
    ///
    /// # Errors
    /// [`DraftError`]: bounds, empty names, cells written twice.
    pub fn check(&self) -> Result<(), DraftError> {
        at_most("the number of changes", self.changes.len(), OP_CHANGES_MAX)?;
        let mut records = BTreeSet::new();
        let mut cells = 0;
        for change in &self.changes {
            match change {
                DraftChange::Put(put) => {
                    check_key(&put.key)?;
                    check_put(put)?;
                    cells += 1 + put.set.len() + put.add.len() + put.remove.len();
                    if !records.insert(&put.key) {
                        return Err(DraftError::Twice(shown(&put.key)));
                    }
                }
                DraftChange::Delete(key) => {
                    check_key(key)?;
                    cells += 1;
                    if !records.insert(key) {
                        return Err(DraftError::Twice(shown(key)));
                    }
                }
                DraftChange::Event { stream, kind, data } => {
                    name("a stream's name", stream)?;
                    name("an event's type", kind)?;
                    at_most("an event's data in bytes", data.len(), EVENT_DATA_BYTES_MAX)?;
                }
            }
        }
        at_most("the number of cells", cells, OP_CELLS_MAX)
    }
}

fn check_key(key: &Key) -> Result<(), DraftError> {
    name("a model's name", &key.model)?;
    at_most("an id in bytes", key.id.len(), RECORD_ID_BYTES_MAX)?;
    if key.id.is_empty() { Err(DraftError::Empty("an id")) } else { Ok(()) }
}

fn check_put(put: &DraftPut) -> Result<(), DraftError> {
    for (field, value) in &put.set {
        name("a field's name", field)?;
        at_most("a value in bytes", value.as_ref().map_or(0, Value::size_bytes), VALUE_BYTES_MAX)?;
    }
    for elem in put.add.iter().chain(&put.remove) {
        name("a field's name", &elem.field)?;
        at_most("an element in bytes", elem.elem.len(), SET_ELEM_BYTES_MAX)?;
        if elem.elem.is_empty() {
            return Err(DraftError::Empty("an element"));
        }
    }
    match put.add.intersection(&put.remove).next() {
        Some(elem) => Err(DraftError::Twice(format!("{}: {}", elem.field, elem.elem))),
        None => Ok(()),
    }
}

fn name(what: &'static str, text: &str) -> Result<(), DraftError> {
    at_most(what, text.len(), JOURNAL_NAME_BYTES_MAX)?;
    if text.is_empty() { Err(DraftError::Empty(what)) } else { Ok(()) }
}

fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), DraftError> {
    if got > limit { Err(DraftError::OutOfBounds { what, got, limit }) } else { Ok(()) }
}

fn shown(key: &Key) -> String {
    format!("{}/{}", key.model, String::from_utf8_lossy(&key.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(id: &[u8]) -> DraftPut {
        DraftPut {
            key: Key { model: "m".into(), id: id.to_vec(), owned: false },
            create: true,
            set: BTreeMap::new(),
            add: BTreeSet::new(),
            remove: BTreeSet::new(),
        }
    }

    fn check(changes: Vec<DraftChange>) -> Result<(), DraftError> {
        Draft { changes, expect: vec![] }.check()
    }

    fn tag(elem: &str) -> Elem {
        Elem { field: "tags".into(), elem: elem.into() }
    }

    #[test]
    fn every_bound_of_a_draft_is_at_its_limit_and_not_beyond() {
        type Make = fn(usize) -> DraftChange;
        let cases: [(usize, Make); 7] = [
            (RECORD_ID_BYTES_MAX, |n| DraftChange::Delete(put(&vec![1; n]).key)),
            (JOURNAL_NAME_BYTES_MAX, |n| {
                let mut put = put(b"1");
                put.key.model = "m".repeat(n);
                DraftChange::Put(put)
            }),
            (JOURNAL_NAME_BYTES_MAX, |n| {
                let mut put = put(b"1");
                put.set.insert("f".repeat(n), None);
                DraftChange::Put(put)
            }),
            (VALUE_BYTES_MAX, |n| {
                let mut put = put(b"1");
                put.set.insert("f".into(), Some(Value::Bytes(vec![0; n])));
                DraftChange::Put(put)
            }),
            (SET_ELEM_BYTES_MAX, |n| {
                let mut put = put(b"1");
                put.add.insert(tag(&"t".repeat(n)));
                DraftChange::Put(put)
            }),
            (EVENT_DATA_BYTES_MAX, |n| DraftChange::Event {
                stream: "s".into(),
                kind: "k".into(),
                data: vec![0; n],
            }),
            (JOURNAL_NAME_BYTES_MAX, |n| DraftChange::Event {
                stream: "s".repeat(n),
                kind: "k".into(),
                data: vec![],
            }),
        ];
        for (case, (limit, make)) in cases.into_iter().enumerate() {
            assert_eq!(check(vec![make(limit)]), Ok(()), "case {case}");
            let refused = check(vec![make(limit + 1)]);
            assert!(matches!(refused, Err(DraftError::OutOfBounds { .. })), "case {case}");
        }
        let many = |n: usize| {
            check((0..n).map(|i| DraftChange::Put(put(&[1, i as u8]))).collect::<Vec<_>>())
        };
        assert_eq!(many(OP_CHANGES_MAX), Ok(()));
        assert!(many(OP_CHANGES_MAX + 1).is_err());
    }

    #[test]
    fn a_cell_is_written_once_and_names_are_not_empty() {
        let mut both = put(b"1");
        both.add.insert(tag("red"));
        both.remove.insert(tag("red"));
        assert!(matches!(check(vec![DraftChange::Put(both)]), Err(DraftError::Twice(_))));
        let twice = vec![DraftChange::Put(put(b"1")), DraftChange::Delete(put(b"1").key)];
        assert!(matches!(check(twice), Err(DraftError::Twice(_))));
        assert!(matches!(
            check(vec![DraftChange::Delete(put(b"").key)]),
            Err(DraftError::Empty(_))
        ));
        let mut unnamed = put(b"1");
        unnamed.add.insert(tag(""));
        assert!(matches!(check(vec![DraftChange::Put(unnamed)]), Err(DraftError::Empty(_))));
    }
}
