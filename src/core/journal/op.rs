//! An op: its content once it was read and checked. `wire::journal` encodes it.

use crate::core::ids::{GroupId, LogId, NodeId, OpHash};
use crate::core::journal::stamp::{Hlc, Stamp};

/// The prefix of the bytes that an author signs; the log's id and the body follow.
pub const SIGNED_PREFIX: &[u8] = b"can-sync/journal/op/1\0";

/// The set of change and value kinds that this version can read, as a number. It is increased with
/// each new kind: devices with different numbers make different states of the same ops.
pub const KINDS: u32 = 1;

/// The model of the records that say how long an event stream is kept. Each is named like its
/// stream.
pub const STREAM_MODEL: &str = "sys.stream";

/// The field of a [`STREAM_MODEL`] record: an integer; events older than this many days may be
/// dropped.
pub const KEEP_DAYS: &str = "keep_days";

/// What a log's id is derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogInfo {
    /// The author of the log.
    pub author: NodeId,
    /// Random, so that a device can start a second log.
    pub nonce: [u8; 16],
}

/// An op as it is sent and stored: byte for byte as its author made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedOp {
    /// The log it belongs to.
    pub log: LogInfo,
    /// An encoded `OpBody`.
    pub body: bytes::Bytes,
    /// The author's signature.
    pub sig: [u8; 64],
}

/// A body that was read and found within all bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// The op's number in its log, from 1.
    pub seq: u64,
    /// The time of writing.
    pub hlc: Hlc,
    /// The hash of the op before it in the log; `None` for the first.
    pub prev: Option<OpHash>,
    /// The changes, at least one.
    pub changes: Vec<Change>,
}

/// One change of an op.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Writes to a record.
    Put(Put),
    /// Deletes a record.
    Delete(Key),
    /// Appends to an event stream.
    Event(Event),
    /// States who belongs to the group.
    Member(MemberChange),
    /// A change of a kind that this version does not know.
    Unknown,
}

/// The name of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The kind of record.
    pub model: String,
    /// The record's name within its model.
    pub id: Vec<u8>,
    /// Whether the record belongs to the author alone.
    pub owned: bool,
}

/// Writes to one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Put {
    /// The record.
    pub key: Key,
    /// Whether the op creates the record.
    pub create: bool,
    /// Fields and their values; `None` is null.
    pub set: Vec<(String, Option<Value>)>,
    /// Elements put into sets.
    pub add: Vec<Elem>,
    /// Elements taken out of sets.
    pub remove: Vec<Removal>,
}

/// An element of a set of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elem {
    /// The set's field.
    pub field: String,
    /// The element.
    pub elem: String,
}

/// An element taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The element.
    pub elem: Elem,
    /// The add that the removal takes back; later adds stay.
    pub observed: Stamp,
}

/// A field's value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
}

/// An entry of an event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The stream's name.
    pub stream: String,
    /// The event's number in its stream and log, contiguous from 0.
    pub event_seq: u64,
    /// The event's type.
    pub kind: String,
    /// The event's data.
    pub data: Vec<u8>,
}

/// A fact about the group, stated by the op's author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// The author founds the group.
    Genesis {
        /// The nonce from which [`group_id`] makes the id.
        nonce: [u8; 16],
        /// The founder's name.
        name: String,
    },
    /// Adds a device.
    Add {
        /// The device.
        device: NodeId,
        /// The device's name.
        name: String,
    },
    /// Removes a device for good.
    Remove {
        /// The device.
        device: NodeId,
        /// The devices added by it that stay members.
        keep: Vec<NodeId>,
        /// The ops with facts by it that count: all that the remover held. `None`: all ops count.
        /// See [`crate::core::journal::members`].
        fence: Option<Vec<OpHash>>,
    },
}

impl LogInfo {
    /// The log's id in a group.
    pub fn id(&self, group: &GroupId) -> LogId {
        let parts = [&group.0[..], &self.author.0, &self.nonce].concat();
        let long = blake3::derive_key("can-sync journal log v1", &parts);
        LogId::from_slice(&long[..LogId::LEN]).expect("16 of 32 bytes")
    }
}

/// The id of the group that `founder` founds with `nonce`.
pub fn group_id(founder: &NodeId, nonce: &[u8; 16]) -> GroupId {
    GroupId(blake3::derive_key("can-sync group v1", &[&founder.0[..], nonce].concat()))
}

/// The hash that names an op.
pub fn op_hash(log: &LogId, body: &[u8]) -> OpHash {
    OpHash(*blake3::Hasher::new().update(&log.0).update(body).finalize().as_bytes())
}

/// The bytes that an author signs.
pub fn signed_bytes(log: &LogId, body: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, &log.0, body].concat()
}

/// A value as cells hold it. The order of the bytes is the order of merging: nothing for null,
/// otherwise the number of its kind and then its bytes.
pub fn value_to_bytes(value: Option<&Value>) -> Vec<u8> {
    let (kind, bytes): (u8, &[u8]) = match value {
        None => return Vec::new(),
        Some(Value::Bool(b)) => (1, &[u8::from(*b)]),
        Some(Value::Int(i)) => (2, &i.to_be_bytes()),
        Some(Value::Double(d)) => (3, &d.to_bits().to_be_bytes()),
        Some(Value::Text(text)) => (4, text.as_bytes()),
        Some(Value::Bytes(bytes)) => (5, bytes),
    };
    [&[kind], bytes].concat()
}

/// Reads what [`value_to_bytes`] wrote: the value or null. `None` for anything else.
pub fn value_from_bytes(bytes: &[u8]) -> Option<Option<Value>> {
    let Some((kind, rest)) = bytes.split_first() else {
        return Some(None);
    };
    let value = match kind {
        1 => Value::Bool(*rest.first().filter(|_| rest.len() == 1)? != 0),
        2 => Value::Int(i64::from_be_bytes(rest.try_into().ok()?)),
        3 => Value::Double(f64::from_bits(u64::from_be_bytes(rest.try_into().ok()?))),
        4 => Value::Text(String::from_utf8(rest.to_vec()).ok()?),
        5 => Value::Bytes(rest.to_vec()),
        _ => return None,
    };
    Some(Some(value))
}

impl Value {
    /// The value's size, for [`crate::core::limits::VALUE_BYTES_MAX`].
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Double(_) => 8,
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn values_come_back_from_their_cells() {
        for value in [
            None,
            Some(Value::Bool(true)),
            Some(Value::Int(-3)),
            Some(Value::Double(-0.5)),
            Some(Value::Text("ü".into())),
            Some(Value::Bytes(vec![0, 255])),
        ] {
            assert_eq!(value_from_bytes(&value_to_bytes(value.as_ref())).unwrap(), value);
        }
        for bad in [&[9][..], &[1], &[2, 0], &[4, 255]] {
            assert_eq!(value_from_bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_log_belongs_to_its_group_and_author() {
        let log = LogInfo { author: NodeId([1; 32]), nonce: [2; 16] };
        let other = LogInfo { author: NodeId([3; 32]), ..log };
        let group = GroupId([4; 32]);
        assert_ne!(log.id(&group), log.id(&GroupId([5; 32])));
        assert_ne!(log.id(&group), other.id(&group));
        assert_eq!(log.id(&group), log.id(&group));
    }
}
