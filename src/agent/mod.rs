//! The shell around the engine: one loop that carries facts in and effects out.

pub mod status;
pub mod transfer;
