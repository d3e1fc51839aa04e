//! can-sync: a peer-to-peer sync agent over QUIC.

pub mod core;
pub mod state;
pub mod store;
pub mod wire;
