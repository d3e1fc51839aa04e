//! Bytes <-> protobuf <-> core types. Bad bytes are refused here, once.

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
}
