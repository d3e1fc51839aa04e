//! Cells: what the changes of an op write. There is one rule of merging: the greater value stays.
//!
//! C1  A cell's values are totally ordered, so merging is commutative, associative and idempotent.
//! C2  A clear register deletes every other cell of its record up to its stamp, also those that
//!     arrive later. It is never dropped itself: that makes it safe to forget ops.
//! C3  A remove names the add that its author saw. A concurrent add that the author did not see
//!     survives if its stamp is later than that of the named add. If it is earlier it goes too: its
//!     intent, "in the set", was seen.

use std::collections::BTreeMap;

use crate::core::ids::{LogId, NodeId};
use crate::core::journal::op::{Body, Change, Elem, Key, Put};
use crate::core::journal::set_hash::Element;
use crate::core::journal::stamp::Stamp;

/// The name of a cell, as the op's author sees it: an owned record belongs to the author.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CellKey {
    /// The record.
    pub record: Key,
    /// The field; empty for the record's own two registers.
    pub field: String,
    /// The element of a set; empty for a plain field.
    pub elem: String,
}

/// The value of a cell. The order of the fields is the order of merging.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CellValue {
    /// The stamp of the write; of a removal, the stamp of the add that it takes back.
    pub stamp: Stamp,
    /// Whether this is an element that was removed.
    pub removed: bool,
    /// The encoded value, see [`crate::core::journal::op::value_to_bytes`]; empty for elements and
    /// registers.
    pub bytes: Vec<u8>,
}

/// The element name, under the empty field, of the register that says that a record exists.
pub const ALIVE: &str = "a";

/// The element name, under the empty field, of the register that cleared a record.
pub const CLEAR: &str = "x";

impl CellKey {
    /// The register that says that a record exists.
    pub fn alive(record: &Key) -> Self {
        Self { record: record.clone(), field: String::new(), elem: ALIVE.into() }
    }

    /// The register that cleared a record.
    pub fn clear(record: &Key) -> Self {
        Self { record: record.clone(), field: String::new(), elem: CLEAR.into() }
    }

    /// Whether the cell is a register that cleared a record.
    pub fn is_clear(&self) -> bool {
        self.field.is_empty() && self.elem == CLEAR
    }
}

/// The cells that an op writes, each with the greatest value in the op. Events and membership facts
/// write no cells.
pub fn writes(body: &Body, log: LogId) -> BTreeMap<CellKey, CellValue> {
    let stamp = Stamp { hlc: body.hlc, log, seq: body.seq };
    let mut all = BTreeMap::new();
    for change in &body.changes {
        match change {
            Change::Put(put) => put_writes(put, stamp, &mut all),
            Change::Delete(key) => take(&mut all, CellKey::clear(key), at(stamp)),
            Change::Event(_) | Change::Member(_) | Change::Unknown => {}
        }
    }
    all
}

fn put_writes(put: &Put, stamp: Stamp, all: &mut BTreeMap<CellKey, CellValue>) {
    let cell = |field: &str, elem: &str| CellKey {
        record: put.key.clone(),
        field: field.to_owned(),
        elem: elem.to_owned(),
    };
    if put.create {
        take(all, CellKey::alive(&put.key), at(stamp));
    }
    for (field, value) in &put.set {
        let bytes = crate::core::journal::op::value_to_bytes(value.as_ref());
        take(all, cell(field, ""), CellValue { stamp, removed: false, bytes });
    }
    for Elem { field, elem } in &put.add {
        take(all, cell(field, elem), at(stamp));
    }
    for removal in &put.remove {
        let value = CellValue { stamp: removal.observed, removed: true, bytes: Vec::new() };
        take(all, cell(&removal.elem.field, &removal.elem.elem), value);
    }
}

fn at(stamp: Stamp) -> CellValue {
    CellValue { stamp, removed: false, bytes: Vec::new() }
}

fn take(all: &mut BTreeMap<CellKey, CellValue>, key: CellKey, value: CellValue) {
    let old = all.entry(key).or_insert_with(|| value.clone());
    if *old < value {
        *old = value;
    }
}

/// A cell's element in the state digest. `owner` is the owner of an owned record.
pub fn cell_digest(
    model: &str,
    owner: Option<&NodeId>,
    id: &[u8],
    field: &str,
    elem: &str,
    value: &CellValue,
) -> Element {
    let mut hasher = blake3::Hasher::new();
    let owner = owner.map_or(&[][..], |owner| &owner.0);
    for part in [b"cell", model.as_bytes(), owner, id, field.as_bytes(), elem.as_bytes()] {
        add_part(&mut hasher, part);
    }
    hasher.update(&value.stamp.hlc.0.to_be_bytes());
    hasher.update(&value.stamp.log.0);
    hasher.update(&value.stamp.seq.to_be_bytes());
    hasher.update(&[u8::from(value.removed)]);
    add_part(&mut hasher, &value.bytes);
    Element(*hasher.finalize().as_bytes())
}

/// An event's element in the state digest. Its index among the op's changes tells equal events
/// apart.
pub fn event_digest(op: &crate::core::ids::OpHash, index: usize) -> Element {
    indexed_digest(b"event", op, index)
}

/// A membership fact's element in the state digest.
pub fn fact_digest(op: &crate::core::ids::OpHash, index: usize) -> Element {
    indexed_digest(b"fact", op, index)
}

fn indexed_digest(what: &[u8], op: &crate::core::ids::OpHash, index: usize) -> Element {
    let mut hasher = blake3::Hasher::new();
    add_part(&mut hasher, what);
    hasher.update(&op.0).update(&(index as u64).to_be_bytes());
    Element(*hasher.finalize().as_bytes())
}

/// Adds a part with its length, so that two different lists of parts never hash the same bytes.
fn add_part(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::core::journal::op::{Removal, Value};
    use crate::core::journal::stamp::Hlc;

    const LOG: LogId = LogId([7; 16]);

    fn key() -> Key {
        Key { model: "m".into(), id: b"1".to_vec(), owned: false }
    }

    fn body(changes: Vec<Change>) -> Body {
        Body { seq: 3, hlc: Hlc(900), prev: None, changes }
    }

    fn put(set: Vec<(String, Option<Value>)>, add: Vec<Elem>, remove: Vec<Removal>) -> Change {
        Change::Put(Put { key: key(), create: true, set, add, remove })
    }

    #[test]
    fn an_add_and_a_remove_of_one_element_in_one_op_leave_it_in() {
        let tag = Elem { field: "tags".into(), elem: "red".into() };
        let observed = Stamp { hlc: Hlc(5), log: LOG, seq: 1 };
        let op = body(vec![put(
            vec![],
            vec![tag.clone()],
            vec![Removal { elem: tag.clone(), observed }],
        )]);
        let cell = CellKey { record: key(), field: tag.field, elem: tag.elem };
        assert!(!writes(&op, LOG)[&cell].removed);
    }

    #[test]
    fn a_field_set_twice_in_one_op_has_the_greater_value() {
        let op = body(vec![put(
            vec![("f".into(), Some(Value::Int(1))), ("f".into(), None)],
            vec![],
            vec![],
        )]);
        let cell = CellKey { record: key(), field: "f".into(), elem: String::new() };
        let bytes = crate::core::journal::op::value_to_bytes(Some(&Value::Int(1)));
        assert_eq!(writes(&op, LOG)[&cell].bytes, bytes);
        assert!(writes(&op, LOG).contains_key(&CellKey::alive(&key())));
    }

    #[test]
    fn digests_tell_cells_apart_that_read_the_same_when_joined() {
        let value = at(Stamp { hlc: Hlc(1), log: LOG, seq: 1 });
        let a = cell_digest("ab", None, b"c", "d", "e", &value);
        let b = cell_digest("a", None, b"bc", "d", "e", &value);
        let owned = cell_digest("ab", Some(&NodeId([0; 32])), b"c", "d", "e", &value);
        assert!(a != b && a != owned && b != owned);
    }
}
