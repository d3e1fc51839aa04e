//! What users of a small world write: few records and names, so that writers meet.

use std::collections::{BTreeMap, BTreeSet};

use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Elem, Key, Value};

use crate::world::Rng;

/// One to three changes, of different records.
pub(crate) fn draft(rng: &mut Rng) -> Draft {
    let mut keys = BTreeSet::new();
    let mut changes = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let key = key(rng);
        if rng.chance(15) {
            changes.push(event(rng));
        } else if keys.insert(key.clone()) {
            changes.push(match rng.chance(12) {
                true => DraftChange::Delete(key),
                false => DraftChange::Put(put(rng, key)),
            });
        }
    }
    Draft { changes, expect: Vec::new() }
}

/// Writes the same field every time: the op before is dead.
pub(crate) fn overwrite(rng: &mut Rng) -> Draft {
    let key = Key { model: "asset".into(), id: vec![0], owned: false };
    let set = BTreeMap::from([("f0".to_owned(), Some(Value::Int(rng.below(99) as i64)))]);
    let put = DraftPut { key, create: false, set, add: BTreeSet::new(), remove: BTreeSet::new() };
    Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }
}

fn key(rng: &mut Rng) -> Key {
    let model = if rng.chance(50) { "asset" } else { "note" };
    Key { model: model.into(), id: vec![rng.below(4) as u8], owned: rng.chance(20) }
}

fn event(rng: &mut Rng) -> DraftChange {
    let stream = if rng.chance(50) { "log" } else { "audit" };
    DraftChange::Event {
        stream: stream.into(),
        kind: "seen".into(),
        data: vec![rng.below(9) as u8],
    }
}

fn put(rng: &mut Rng, key: Key) -> DraftPut {
    let mut set = BTreeMap::new();
    for _ in 0..rng.below(3) {
        let value = match rng.below(6) {
            0 => None,
            1 => Some(Value::Bool(rng.chance(50))),
            2 => Some(Value::Int(rng.below(5) as i64 - 2)),
            3 => Some(Value::Double(rng.below(5) as f64 / 2.0)),
            4 => Some(Value::Text(format!("text {}", rng.below(5)))),
            _ => Some(Value::Bytes(vec![rng.below(5) as u8])),
        };
        set.insert(format!("f{}", rng.below(2)), value);
    }
    let mut elems = BTreeSet::new();
    let mut some = |rng: &mut Rng| {
        let mut some = BTreeSet::new();
        for _ in 0..rng.below(3) {
            let elem = Elem { field: "tags".into(), elem: format!("t{}", rng.below(4)) };
            if elems.insert(elem.clone()) {
                some.insert(elem);
            }
        }
        some
    };
    let (add, remove) = (some(rng), some(rng));
    DraftPut { key, create: rng.chance(50), set, add, remove }
}
