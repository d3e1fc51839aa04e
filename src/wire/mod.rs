//! Bytes <-> protobuf <-> core types. Bad bytes are refused here, once.

use bytes::Bytes;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};
use thiserror::Error;

pub mod batch;
pub mod control;
pub mod frame;
pub mod journal;
pub mod pairing;
pub mod reconcile;

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
}

/// Why a payload is not a message of the protocol. Always the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// Not the protobuf message it should be.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// The message or field.
        what: &'static str,
        /// What was seen.
        detail: String,
    },
    /// A count, size or number beyond its bound.
    #[error("{what} is {got}, the limit is {limit}")]
    OutOfBounds {
        /// The field.
        what: &'static str,
        /// What was seen.
        got: u64,
        /// The bound.
        limit: u64,
    },
}

/// Fields a message may have beside its repeated one, those of later versions included.
const SCALAR_FIELDS_MAX: usize = 16;

/// Reads a message with one repeated field of at most `repeated_max` elements. They are counted
/// before they are decoded: an empty element is 2 bytes on the wire and 70 in memory.
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

fn bounded(what: &'static str, got: u64, limit: u64) -> Result<(), WireError> {
    if got > limit { Err(WireError::OutOfBounds { what, got, limit }) } else { Ok(()) }
}
