//! Bodies of ops: only their author encodes them, and everybody decodes them.
//!
//! A body is refused if it is out of bounds or ambiguous. A kind of change or value that this
//! version does not know makes its change [`Change::Unknown`], which is no error; the other changes
//! are checked nevertheless. A version that knows more kinds must not refuse bodies that were
//! stored unread: for a kind added later there is no error but [`Change::Unknown`].

use bytes::Bytes;
use prost::Message as _;

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::journal::op::{Body, Change, Elem, Event, Key, MemberChange, Put, Removal, Value};
use crate::core::journal::stamp::{Hlc, Stamp};
use crate::core::limits::{
    DEVICE_NAME_BYTES_MAX, EVENT_DATA_BYTES_MAX, FACTS_PER_AUTHOR_MAX, GROUP_ENTRIES_MAX,
    JOURNAL_NAME_BYTES_MAX, OP_BODY_BYTES_MAX, OP_CELLS_MAX, OP_CHANGES_MAX, OP_SEQ_MAX,
    RECORD_ID_BYTES_MAX, SET_ELEM_BYTES_MAX, VALUE_BYTES_MAX,
};
use crate::core::pairing::device_name;
use crate::wire::proto::journal as proto;
use crate::wire::{Repeated, WireError, parse_counted};

use super::{at_most, malformed};

const BODY: [Repeated; 5] = [
    Repeated { path: &[4], max: OP_CHANGES_MAX },
    Repeated { path: &[4, 1, 3], max: OP_CELLS_MAX },
    Repeated { path: &[4, 1, 4], max: OP_CELLS_MAX },
    Repeated { path: &[4, 1, 5], max: OP_CELLS_MAX },
    Repeated { path: &[4, 4, 3, 2], max: OP_CHANGES_MAX * GROUP_ENTRIES_MAX },
];

/// Encodes the body of a new op. For its author only: received bodies are kept as they are.
///
/// # Errors
/// [`WireError`] when it is out of bounds, or contains a [`Change::Unknown`].
pub fn encode_body(body: &Body) -> Result<Bytes, WireError> {
    let changes = body.changes.iter().map(change_to_wire).collect::<Result<Vec<_>, _>>()?;
    let wire = proto::OpBody {
        seq: body.seq,
        hlc: body.hlc.0,
        prev: body.prev.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(&hash.0)),
        changes,
    };
    let bytes: Bytes = wire.encode_to_vec().into();
    // Other devices refuse what this one would refuse, so nothing else may be signed.
    decode_body(&bytes)?;
    Ok(bytes)
}

/// Decodes a body and checks every bound that does not depend on the journal's state.
///
/// # Errors
/// [`WireError`].
pub fn decode_body(bytes: &[u8]) -> Result<Body, WireError> {
    at_most("an op's body in bytes", bytes.len(), OP_BODY_BYTES_MAX)?;
    let wire: proto::OpBody = parse_counted("OpBody", Bytes::copy_from_slice(bytes), &BODY)?;
    op_seq("OpBody.seq", wire.seq)?;
    number("OpBody.hlc", wire.hlc)?;
    let prev = match (wire.seq, wire.prev.len()) {
        (0, _) => return Err(malformed("OpBody.seq", "0: numbers begin at 1")),
        (1, 0) => None,
        (1, _) => return Err(malformed("OpBody.prev", "there, in the first op of a log")),
        _ => Some(
            OpHash::from_slice(&wire.prev)
                .ok_or_else(|| malformed("OpBody.prev", "not 32 bytes"))?,
        ),
    };
    at_most("OpBody.changes", wire.changes.len(), OP_CHANGES_MAX)?;
    if wire.changes.is_empty() {
        return Err(malformed("OpBody.changes", "none"));
    }
    let hlc = Hlc(wire.hlc);
    let mut cells = 0;
    let changes = wire
        .changes
        .into_iter()
        .map(|change| change_from_wire(change, hlc, &mut cells))
        .collect::<Result<Vec<_>, _>>()?;
    at_most("the number of cells of an op", cells, OP_CELLS_MAX)?;
    Ok(Body { seq: wire.seq, hlc, prev, changes })
}

/// Checks that a database can hold the number.
fn number(what: &'static str, got: u64) -> Result<(), WireError> {
    up_to(what, got, Hlc::MAX.0)
}

/// Checks the number of an op.
pub(super) fn op_seq(what: &'static str, got: u64) -> Result<(), WireError> {
    up_to(what, got, OP_SEQ_MAX)
}

fn up_to(what: &'static str, got: u64, limit: u64) -> Result<(), WireError> {
    if got > limit { Err(WireError::OutOfBounds { what, got, limit }) } else { Ok(()) }
}

fn change_to_wire(change: &Change) -> Result<proto::Change, WireError> {
    use proto::change::Kind;
    let kind = match change {
        Change::Put(put) => Kind::Put(put_to_wire(put)),
        Change::Delete(key) => Kind::Delete(proto::Delete { key: Some(key_to_wire(key)) }),
        Change::Event(event) => Kind::Event(proto::Event {
            stream: event.stream.clone(),
            event_seq: event.event_seq,
            r#type: event.kind.clone(),
            data: event.data.clone().into(),
        }),
        Change::Member(member) => Kind::Member(member_to_wire(member)),
        Change::Unknown => return Err(malformed("Change", "of a kind nobody can write")),
    };
    Ok(proto::Change { kind: Some(kind) })
}

fn change_from_wire(
    change: proto::Change,
    hlc: Hlc,
    cells: &mut usize,
) -> Result<Change, WireError> {
    use proto::change::Kind;
    match change.kind {
        None => Ok(Change::Unknown),
        Some(Kind::Put(put)) => {
            *cells += 1 + put.set.len() + put.add.len() + put.remove.len();
            put_from_wire(put, hlc)
        }
        Some(Kind::Delete(delete)) => {
            *cells += 1;
            Ok(Change::Delete(key_from_wire(delete.key)?))
        }
        Some(Kind::Event(event)) => {
            at_most("Event.data in bytes", event.data.len(), EVENT_DATA_BYTES_MAX)?;
            number("Event.event_seq", event.event_seq)?;
            Ok(Change::Event(Event {
                stream: name("Event.stream", event.stream)?,
                event_seq: event.event_seq,
                kind: name("Event.type", event.r#type)?,
                data: event.data.into(),
            }))
        }
        Some(Kind::Member(member)) => member_from_wire(member),
    }
}

fn key_to_wire(key: &Key) -> proto::Key {
    proto::Key { model: key.model.clone(), id: key.id.clone().into(), owned: key.owned }
}

fn key_from_wire(key: Option<proto::Key>) -> Result<Key, WireError> {
    let key = key.ok_or_else(|| malformed("Key", "none"))?;
    at_most("Key.id in bytes", key.id.len(), RECORD_ID_BYTES_MAX)?;
    if key.id.is_empty() {
        return Err(malformed("Key.id", "empty"));
    }
    Ok(Key { model: name("Key.model", key.model)?, id: key.id.into(), owned: key.owned })
}

fn put_to_wire(put: &Put) -> proto::Put {
    let elem = |elem: &Elem, observed: Option<Stamp>| proto::Elem {
        field: elem.field.clone(),
        elem: elem.elem.clone(),
        observed: observed.map(|stamp| proto::Stamp {
            hlc: stamp.hlc.0,
            log_id: Bytes::copy_from_slice(&stamp.log.0),
            seq: stamp.seq,
        }),
    };
    let field = |(name, value): &(String, Option<Value>)| proto::Field {
        name: name.clone(),
        value: value.as_ref().map(value_to_wire),
    };
    proto::Put {
        key: Some(key_to_wire(&put.key)),
        create: put.create,
        set: put.set.iter().map(field).collect(),
        add: put.add.iter().map(|added| elem(added, None)).collect(),
        remove: put.remove.iter().map(|r| elem(&r.elem, Some(r.observed))).collect(),
    }
}

fn put_from_wire(put: proto::Put, hlc: Hlc) -> Result<Change, WireError> {
    let key = key_from_wire(put.key)?;
    let mut set = Vec::with_capacity(put.set.len());
    let mut is_known = true;
    for field in put.set {
        let value = match field.value {
            None => None,
            Some(proto::Value { v: None }) => {
                is_known = false;
                None
            }
            Some(proto::Value { v: Some(value) }) => Some(value_from_wire(value)?),
        };
        set.push((name("Field.name", field.name)?, value));
    }
    let add = put.add.into_iter().map(elem_from_wire).collect::<Result<Vec<_>, _>>()?;
    let remove = put.remove.into_iter().map(|mut elem| {
        let observed = elem.observed.take().ok_or_else(|| malformed("Elem.observed", "none"))?;
        let observed = stamp_from_wire(&observed)?;
        if observed.hlc >= hlc {
            // An author that has seen a stamp writes a later one. This removal would remove future
            // adds.
            return Err(malformed("Elem.observed", "not before the op itself"));
        }
        Ok(Removal { elem: elem_from_wire(elem)?, observed })
    });
    let remove = remove.collect::<Result<Vec<_>, _>>()?;
    if !is_known {
        return Ok(Change::Unknown);
    }
    Ok(Change::Put(Put { key, create: put.create, set, add, remove }))
}

fn elem_from_wire(elem: proto::Elem) -> Result<Elem, WireError> {
    at_most("Elem.elem in bytes", elem.elem.len(), SET_ELEM_BYTES_MAX)?;
    if elem.elem.is_empty() {
        return Err(malformed("Elem.elem", "empty"));
    }
    Ok(Elem { field: name("Elem.field", elem.field)?, elem: elem.elem })
}

fn stamp_from_wire(stamp: &proto::Stamp) -> Result<Stamp, WireError> {
    number("Stamp.hlc", stamp.hlc)?;
    op_seq("Stamp.seq", stamp.seq)?;
    Ok(Stamp {
        hlc: Hlc(stamp.hlc),
        log: LogId::from_slice(&stamp.log_id)
            .ok_or_else(|| malformed("Stamp.log_id", "not 16 bytes"))?,
        seq: stamp.seq,
    })
}

fn value_to_wire(value: &Value) -> proto::Value {
    use proto::value::V;
    let v = match value {
        Value::Bool(b) => V::B(*b),
        Value::Int(i) => V::I(*i),
        Value::Double(d) => V::D(*d),
        Value::Text(text) => V::S(text.clone()),
        Value::Bytes(bytes) => V::Y(bytes.clone().into()),
    };
    proto::Value { v: Some(v) }
}

fn value_from_wire(value: proto::value::V) -> Result<Value, WireError> {
    use proto::value::V;
    let value = match value {
        V::B(b) => Value::Bool(b),
        V::I(i) => Value::Int(i),
        V::D(d) => Value::Double(d),
        V::S(text) => Value::Text(text),
        V::Y(bytes) => Value::Bytes(bytes.into()),
    };
    at_most("a value in bytes", value.size_bytes(), VALUE_BYTES_MAX)?;
    Ok(value)
}

fn member_to_wire(member: &MemberChange) -> proto::Member {
    use proto::member::What;
    let device = |device: &NodeId| Bytes::copy_from_slice(&device.0);
    let what = match member {
        MemberChange::Genesis { nonce, name } => What::Genesis(proto::Genesis {
            nonce: Bytes::copy_from_slice(nonce),
            name: device_name(name),
        }),
        MemberChange::Add { device: added, name } => {
            What::Add(proto::AddMember { device: device(added), name: device_name(name) })
        }
        MemberChange::Remove { device: removed, keep, fence } => {
            let ops = |fence: &Vec<OpHash>| proto::Fence {
                ops: fence.iter().map(|op| Bytes::copy_from_slice(&op.0)).collect(),
            };
            What::Remove(proto::RemoveMember {
                device: device(removed),
                keep: keep.iter().map(device).collect(),
                fence: fence.as_ref().map(ops),
            })
        }
    };
    proto::Member { what: Some(what) }
}

fn member_from_wire(member: proto::Member) -> Result<Change, WireError> {
    use proto::member::What;
    let device = |bytes: &Bytes| {
        NodeId::from_slice(bytes).ok_or_else(|| malformed("a device of Member", "not 32 bytes"))
    };
    let shown = |name: &str| {
        at_most("a device's name in bytes", name.len(), DEVICE_NAME_BYTES_MAX)?;
        Ok(device_name(name))
    };
    Ok(Change::Member(match member.what {
        None => return Ok(Change::Unknown),
        Some(What::Genesis(genesis)) => MemberChange::Genesis {
            nonce: <[u8; 16]>::try_from(&genesis.nonce[..])
                .map_err(|_| malformed("Genesis.nonce", "not 16 bytes"))?,
            name: shown(&genesis.name)?,
        },
        Some(What::Add(add)) => {
            MemberChange::Add { device: device(&add.device)?, name: shown(&add.name)? }
        }
        Some(What::Remove(remove)) => {
            at_most("RemoveMember.keep", remove.keep.len(), GROUP_ENTRIES_MAX)?;
            MemberChange::Remove {
                device: device(&remove.device)?,
                keep: remove.keep.iter().map(device).collect::<Result<_, _>>()?,
                fence: remove.fence.as_ref().map(fence_from_wire).transpose()?,
            }
        }
    }))
}

fn fence_from_wire(fence: &proto::Fence) -> Result<Vec<OpHash>, WireError> {
    at_most("Fence.ops", fence.ops.len(), FACTS_PER_AUTHOR_MAX)?;
    let op = |bytes: &Bytes| {
        OpHash::from_slice(bytes).ok_or_else(|| malformed("an op of Fence", "not 32 bytes"))
    };
    fence.ops.iter().map(op).collect()
}

fn name(what: &'static str, text: String) -> Result<String, WireError> {
    at_most(what, text.len(), JOURNAL_NAME_BYTES_MAX)?;
    if text.is_empty() { Err(malformed(what, "empty")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn body(changes: Vec<Change>) -> Body {
        Body { seq: 2, hlc: Hlc(77), prev: Some(OpHash([5; 32])), changes }
    }

    fn key() -> Key {
        Key { model: "m".into(), id: vec![0, 255], owned: true }
    }

    fn put() -> Put {
        Put { key: key(), create: true, set: vec![], add: vec![], remove: vec![] }
    }

    fn stamp(hlc: u64) -> Stamp {
        Stamp { hlc: Hlc(hlc), log: LogId([4; 16]), seq: 9 }
    }

    fn tag(elem: &str) -> Elem {
        Elem { field: "tags".into(), elem: elem.into() }
    }

    fn wire(body: &Body) -> proto::OpBody {
        proto::OpBody::decode(encode_body(body).unwrap()).unwrap()
    }

    fn read(wire: &proto::OpBody) -> Result<Body, WireError> {
        decode_body(&wire.encode_to_vec())
    }

    #[test]
    fn a_body_of_every_kind_comes_back_as_it_was() {
        let values = [
            None,
            Some(Value::Bool(false)),
            Some(Value::Int(i64::MIN)),
            Some(Value::Double(1.5)),
            Some(Value::Text(String::new())),
            Some(Value::Bytes(vec![1])),
        ];
        let set = values.into_iter().enumerate().map(|(n, value)| (format!("f{n}"), value));
        let device = NodeId([8; 32]);
        let op = body(vec![
            Change::Put(Put {
                set: set.collect(),
                add: vec![tag("a")],
                remove: vec![Removal { elem: tag("b"), observed: stamp(76) }],
                ..put()
            }),
            Change::Delete(key()),
            Change::Event(Event {
                stream: "s".into(),
                event_seq: 3,
                kind: "k".into(),
                data: vec![0; 5],
            }),
            Change::Member(MemberChange::Genesis { nonce: [1; 16], name: "one".into() }),
            Change::Member(MemberChange::Add { device, name: "two".into() }),
            Change::Member(MemberChange::Remove {
                device,
                keep: vec![NodeId([9; 32])],
                fence: Some(vec![OpHash([6; 32])]),
            }),
            Change::Member(MemberChange::Remove { device, keep: vec![], fence: Some(vec![]) }),
            Change::Member(MemberChange::Remove { device, keep: vec![], fence: None }),
        ]);
        assert_eq!(decode_body(&encode_body(&op).unwrap()).unwrap(), op);
        let first = Body { seq: 1, prev: None, ..op };
        assert_eq!(decode_body(&encode_body(&first).unwrap()).unwrap(), first);
    }

    #[test]
    fn every_bound_of_a_body_holds() {
        let long = |n: usize| "x".repeat(n);
        let set = |value| Change::Put(Put { set: vec![("f".into(), Some(value))], ..put() });
        let with_key = |key| Change::Put(Put { key, ..put() });
        let event = |stream: String, kind: String, data: usize| {
            Change::Event(Event { stream, event_seq: 0, kind, data: vec![0; data] })
        };
        type Make<'a> = Box<dyn Fn(usize) -> Change + 'a>;
        let cases: Vec<(usize, Make<'_>)> = vec![
            (VALUE_BYTES_MAX, Box::new(|n| set(Value::Bytes(vec![0; n])))),
            (VALUE_BYTES_MAX, Box::new(|n| set(Value::Text(long(n))))),
            (EVENT_DATA_BYTES_MAX, Box::new(|n| event("s".into(), "k".into(), n))),
            (JOURNAL_NAME_BYTES_MAX, Box::new(|n| event(long(n), "k".into(), 0))),
            (JOURNAL_NAME_BYTES_MAX, Box::new(|n| event("s".into(), long(n), 0))),
            (RECORD_ID_BYTES_MAX, Box::new(|n| with_key(Key { id: vec![1; n], ..key() }))),
            (JOURNAL_NAME_BYTES_MAX, Box::new(|n| with_key(Key { model: long(n), ..key() }))),
            (
                JOURNAL_NAME_BYTES_MAX,
                Box::new(|n| Change::Put(Put { set: vec![(long(n), None)], ..put() })),
            ),
            (
                SET_ELEM_BYTES_MAX,
                Box::new(|n| Change::Put(Put { add: vec![tag(&long(n))], ..put() })),
            ),
        ];
        for (case, (limit, make)) in cases.iter().enumerate() {
            assert!(encode_body(&body(vec![make(*limit)])).is_ok(), "case {case}");
            let refused = encode_body(&body(vec![make(limit + 1)]));
            assert!(matches!(refused, Err(WireError::OutOfBounds { .. })), "case {case}");
        }
        let fence = |n: usize| {
            let (device, fence) = (NodeId([8; 32]), Some(vec![OpHash([6; 32]); n]));
            body(vec![Change::Member(MemberChange::Remove { device, keep: vec![], fence })])
        };
        assert!(encode_body(&fence(FACTS_PER_AUTHOR_MAX)).is_ok());
        assert!(encode_body(&fence(FACTS_PER_AUTHOR_MAX + 1)).is_err());
        let many = |n| body(vec![Change::Delete(key()); n]);
        assert!(encode_body(&many(OP_CHANGES_MAX)).is_ok());
        assert!(encode_body(&many(OP_CHANGES_MAX + 1)).is_err());
        assert!(encode_body(&many(0)).is_err());
        let large = set(Value::Bytes(vec![0; VALUE_BYTES_MAX]));
        assert!(encode_body(&body(vec![large; 5])).is_err(), "more than a body takes");
        assert!(encode_body(&body(vec![Change::Unknown])).is_err());
    }

    #[test]
    fn numbers_and_hashes_that_cannot_be_are_refused() {
        let good = wire(&body(vec![Change::Delete(key())]));
        assert!(read(&good).is_ok());
        assert!(read(&proto::OpBody { seq: OP_SEQ_MAX, ..good.clone() }).is_ok());
        for bad in [
            proto::OpBody { seq: 0, ..good.clone() },
            proto::OpBody { seq: 0, prev: Bytes::new(), ..good.clone() },
            proto::OpBody { seq: OP_SEQ_MAX + 1, ..good.clone() },
            proto::OpBody { seq: u64::MAX, ..good.clone() },
            proto::OpBody { hlc: 1 << 63, ..good.clone() },
            proto::OpBody { seq: 1, ..good.clone() },
            proto::OpBody { prev: Bytes::new(), ..good.clone() },
            proto::OpBody { prev: vec![1; 31].into(), ..good.clone() },
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_and_ids_are_not_empty() {
        let nameless = [
            Change::Put(Put { set: vec![(String::new(), None)], ..put() }),
            Change::Put(Put { add: vec![tag("")], ..put() }),
            Change::Put(Put {
                add: vec![Elem { field: String::new(), elem: "a".into() }],
                ..put()
            }),
            Change::Delete(Key { id: vec![], ..key() }),
            Change::Delete(Key { model: String::new(), ..key() }),
        ];
        for change in nameless {
            assert!(encode_body(&body(vec![change.clone()])).is_err(), "{change:?}");
        }
    }

    #[test]
    fn a_removal_names_an_add_before_itself() {
        let remove = |hlc| {
            let removal = Removal { elem: tag("a"), observed: stamp(hlc) };
            encode_body(&body(vec![Change::Put(Put { remove: vec![removal], ..put() })]))
        };
        assert!(remove(76).is_ok());
        assert!(remove(77).is_err());
        assert!(remove(1 << 62).is_err());
    }

    #[test]
    fn kinds_of_a_later_version_are_unknown_and_no_error() {
        let mut op = wire(&body(vec![Change::Put(put()), Change::Delete(key())]));
        op.changes[0].kind = None;
        assert_eq!(read(&op).unwrap().changes, [Change::Unknown, Change::Delete(key())]);
        let mut op = wire(&body(vec![Change::Put(Put {
            set: vec![("f".into(), Some(Value::Bool(true)))],
            ..put()
        })]));
        if let Some(proto::change::Kind::Put(put)) = &mut op.changes[0].kind {
            put.set[0].value = Some(proto::Value { v: None });
        }
        assert_eq!(read(&op).unwrap().changes, [Change::Unknown]);
        if let Some(proto::change::Kind::Put(put)) = &mut op.changes[0].kind {
            put.set[0].name = String::new();
        }
        assert!(read(&op).is_err(), "what stands beside it is checked all the same");
        // Field 77 of Change, which no version has yet: [77 << 3 | 2, 1 byte].
        let raw = [&[0x08, 1, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, 0x22, 4, 0xea, 4, 1, 0][..]].concat();
        assert_eq!(decode_body(&raw).unwrap().changes, [Change::Unknown]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_body(&bytes);
        }

        #[test]
        fn a_flipped_byte_is_read_or_refused_and_no_more(at in any::<prop::sample::Index>(), to: u8) {
            let op = body(vec![Change::Put(Put {
                set: vec![("f".into(), Some(Value::Text("t".into())))],
                add: vec![tag("a")],
                remove: vec![Removal { elem: tag("b"), observed: stamp(1) }],
                ..put()
            })]);
            let mut bytes = encode_body(&op).unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(read) = decode_body(&bytes)
                && !read.changes.contains(&Change::Unknown)
            {
                prop_assert_eq!(decode_body(&encode_body(&read).unwrap()).unwrap(), read);
            }
        }
    }
}
