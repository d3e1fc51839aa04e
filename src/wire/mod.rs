//! Encoding: bytes <-> protobuf <-> core types. Malformed bytes are refused here, once.

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};
use thiserror::Error;

pub mod batch;
pub mod control;
pub(crate) mod event_stream;
pub mod folder;
pub mod frame;
pub mod journal;
pub mod pairing;
pub mod plain;
pub mod proof;
pub mod reconcile;
pub mod thumbnail;

/// The generated messages of `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    /// The store API.
    pub mod store {
        include!(concat!(env!("OUT_DIR"), "/cansync.store.v1.rs"));
    }
    /// The peer protocol.
    pub mod peer {
        include!(concat!(env!("OUT_DIR"), "/cansync.peer.v1.rs"));
    }
    /// The journal.
    pub mod journal {
        include!(concat!(env!("OUT_DIR"), "/cansync.journal.v1.rs"));
    }
    /// Shared folders.
    pub mod folders {
        include!(concat!(env!("OUT_DIR"), "/cansync.folders.v1.rs"));
    }
}

/// Why a payload is refused. The sender is always at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// It is not the expected protobuf message.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// The message or field.
        what: &'static str,
        /// A description of what was found.
        detail: String,
    },
    /// The peer's store uses a hash algorithm that this version does not know.
    #[error("the peer's store uses the hash algorithm {0:?}, which this version does not know")]
    UnknownAlgorithm(String),
    /// A count, size or number is out of bounds.
    #[error("{what} is {got}, the limit is {limit}")]
    OutOfBounds {
        /// The field.
        what: &'static str,
        /// The value found.
        got: u64,
        /// The limit.
        limit: u64,
    },
}

/// The most fields that a message may have beside its repeated one, including those of later
/// versions.
const SCALAR_FIELDS_MAX: usize = 16;

/// Decodes a message with one repeated field of at most `repeated_max` elements. They are counted
/// before they are decoded: an empty element takes 2 bytes encoded and 70 in memory.
pub(crate) fn parse<M: Message + Default>(
    what: &'static str,
    payload: Bytes,
    repeated_max: usize,
) -> Result<M, WireError> {
    let undecodable = |error: DecodeError| WireError::Malformed { what, detail: error.to_string() };
    let mut rest = payload.clone();
    let mut fields = 0;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(undecodable)?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(undecodable)?;
        fields += 1;
    }
    bounded(what, fields, (repeated_max + SCALAR_FIELDS_MAX) as u64)?;
    M::decode(payload).map_err(undecodable)
}

/// A bound on how often a field may occur in a message, including all messages inside it.
pub(crate) struct Repeated {
    /// The field numbers that lead to the field, its own last.
    pub(crate) path: &'static [u32],
    /// The most occurrences.
    pub(crate) max: usize,
}

/// Decodes a message with several repeated fields, some nested. They are counted before they are
/// decoded: an element of 2 bytes takes up to 200 in memory.
pub(crate) fn parse_counted<M: Message + Default>(
    what: &'static str,
    payload: Bytes,
    fields: &[Repeated],
) -> Result<M, WireError> {
    let mut counts = vec![0; fields.len()];
    count(what, payload.clone(), fields, &mut Vec::new(), &mut counts)?;
    M::decode(payload).map_err(|error| WireError::Malformed { what, detail: error.to_string() })
}

/// Counts the fields below `path`. The recursion is at most as deep as the longest path.
fn count(
    what: &'static str,
    mut message: Bytes,
    fields: &[Repeated],
    path: &mut Vec<u32>,
    counts: &mut [usize],
) -> Result<(), WireError> {
    let undecodable = |error: DecodeError| WireError::Malformed { what, detail: error.to_string() };
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).map_err(undecodable)?;
        path.push(tag);
        for (field, count) in fields.iter().zip(&mut *counts) {
            if field.path == path.as_slice() {
                *count += 1;
                bounded(what, *count as u64, field.max as u64)?;
            }
        }
        let is_inside =
            |field: &Repeated| field.path.len() > path.len() && field.path.starts_with(path);
        if wire_type == WireType::LengthDelimited && fields.iter().any(is_inside) {
            let length = decode_varint(&mut message).map_err(undecodable)?;
            if length > message.len() as u64 {
                let detail = "a field is longer than its message".to_owned();
                return Err(WireError::Malformed { what, detail });
            }
            let inside = message.split_to(usize::try_from(length).unwrap_or(usize::MAX));
            count(what, inside, fields, path, counts)?;
        } else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())
                .map_err(undecodable)?;
        }
        path.pop();
    }
    Ok(())
}

fn bounded(what: &'static str, got: u64, limit: u64) -> Result<(), WireError> {
    if got > limit { Err(WireError::OutOfBounds { what, got, limit }) } else { Ok(()) }
}
