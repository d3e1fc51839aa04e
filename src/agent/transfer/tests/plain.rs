//! The plain protocol.
