//! can-sync: a peer-to-peer sync agent over QUIC.

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod core;
pub mod net;
pub mod state;
pub mod store;
pub mod wire;
