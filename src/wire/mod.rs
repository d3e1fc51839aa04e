//! Bytes <-> protobuf <-> core types. Bad bytes are refused here, once.

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
