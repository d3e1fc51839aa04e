//! The writes of users in a small world: few records and names, so that writers collide.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use can_sync::core::ids::OpHash;
use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::op::{Body, Change, Elem, KEEP_DAYS, Key, Put, STREAM_MODEL, Value};
use can_sync::core::journal::stamp::Hlc;
use can_sync::wire::journal::encode_body;

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

/// Writes the same field of a record every time, so that the op before is dead.
pub(crate) fn overwrite(rng: &mut Rng, id: u8) -> Draft {
    let key = Key { model: "asset".into(), id: vec![id], owned: false };
    let set = BTreeMap::from([("f0".to_owned(), Some(Value::Int(rng.below(99) as i64)))]);
    let put = DraftPut { key, create: false, set, add: BTreeSet::new(), remove: BTreeSet::new() };
    Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }
}

/// Sets the retention of a stream in days, or for ever. It is longer than a world lasts, so that
/// only prunes that look ahead drop events.
pub(crate) fn keep_days(rng: &mut Rng) -> Draft {
    let stream = if rng.chance(70) { "log" } else { "audit" };
    let key = Key { model: STREAM_MODEL.into(), id: stream.into(), owned: false };
    if rng.chance(20) {
        return Draft { changes: vec![DraftChange::Delete(key)], expect: Vec::new() };
    }
    let days = [Some(Value::Int(4 + rng.below(4) as i64)), Some(Value::Int(0)), None];
    let set = BTreeMap::from([(
        KEEP_DAYS.to_owned(),
        days[rng.below(6).saturating_sub(3) as usize].clone(),
    )]);
    let put = DraftPut { key, create: true, set, add: BTreeSet::new(), remove: BTreeSet::new() };
    Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }
}

/// The body of an op with one readable change and one of a later version.
pub(crate) fn later_kind(rng: &mut Rng, seq: u64, hlc: Hlc, prev: Option<OpHash>) -> Bytes {
    let key = Key { model: "note".into(), id: vec![rng.below(4) as u8], owned: false };
    let set = vec![("f0".to_owned(), Some(Value::Int(rng.below(99) as i64)))];
    let put = Put { key, create: rng.chance(50), set, add: Vec::new(), remove: Vec::new() };
    let read = encode_body(&Body { seq, hlc, prev, changes: vec![Change::Put(put)] }).unwrap();
    // Field 77 of a Change, which no version has yet.
    [&read[..], &[0x22, 4, 0xea, 4, 1, 0]].concat().into()
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
