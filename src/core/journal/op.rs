//! An op: what it says once it was read. Its bytes are `wire::journal`'s business.

use crate::core::ids::{GroupId, LogId, NodeId, OpHash};
use crate::core::journal::stamp::{Hlc, Stamp};

/// What the signatures of ops are over, before the log's id and the body.
pub const SIGNED_PREFIX: &[u8] = b"can-sync/journal/op/1\0";

/// The kinds of changes and values this version can read, as a number. With a new kind this becomes
/// the next: devices of different numbers make different states of the same ops.
pub const KINDS: u32 = 1;

/// The model whose records, named like event streams, say how long those are kept.
pub const STREAM_MODEL: &str = "sys.stream";

/// The field of a [`STREAM_MODEL`] record: days, an integer; events older than that may go.
pub const KEEP_DAYS: &str = "keep_days";

/// What a log's id is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogInfo {
    /// Who writes it.
    pub author: NodeId,
    /// Random, so that a device may start over.
    pub nonce: [u8; 16],
}

/// An op as it travels and is kept: byte for byte as its author made it.
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
    /// Number in its log, from 1.
    pub seq: u64,
    /// When it was written.
    pub hlc: Hlc,
    /// The hash of the op before; `None` for the first.
    pub prev: Option<OpHash>,
    /// What it does, at least one thing.
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
    /// Says who belongs to the group.
    Member(MemberChange),
    /// Of a kind this version does not know.
    Unknown,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub model: String,
    /// Its name among its kind.
    pub id: Vec<u8>,
    /// The author's own, rather than everybody's.
    pub owned: bool,
}

/// Writes to one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Put {
    /// Which record.
    pub key: Key,
    /// Whether the record is there from now on.
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
    /// The add that is taken back; later ones stay.
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
    /// Which stream.
    pub stream: String,
    /// Per stream and log, contiguous from 0.
    pub event_seq: u64,
    /// What happened.
    pub kind: String,
    /// With what.
    pub data: Vec<u8>,
}

/// A fact about the group, said by the op's author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// The author founds the group.
    Genesis {
        /// See [`group_id`].
        nonce: [u8; 16],
        /// The founder's name.
        name: String,
    },
    /// Adds a device.
    Add {
        /// The device.
        device: NodeId,
        /// Its name.
        name: String,
    },
    /// Removes a device for good.
    Remove {
        /// The device.
        device: NodeId,
        /// Those it added and who stay.
        keep: Vec<NodeId>,
        /// Its ops with facts that count, all that the remover held; without it all of them do. See
        /// [`crate::core::journal::members`].
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

/// What names an op.
pub fn op_hash(log: &LogId, body: &[u8]) -> OpHash {
    OpHash(*blake3::Hasher::new().update(&log.0).update(body).finalize().as_bytes())
}

/// What an author signs.
pub fn signed_bytes(log: &LogId, body: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, &log.0, body].concat()
}

/// A value as cells keep it, in the order of merging: nothing for null, else the number of its kind
/// and its bytes.
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
    /// How large it is, for [`crate::core::limits::VALUE_BYTES_MAX`].
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
