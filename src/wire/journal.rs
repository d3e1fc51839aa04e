//! The journal's bytes: bodies of ops, and the frames of its stream.

use bytes::Bytes;

use crate::core::journal::message::JournalMessage;
use crate::core::journal::op::Body;
use crate::wire::WireError;
use crate::wire::frame::Kind;

/// Encodes the body of a new op. For its author only: what arrived is kept as it is.
///
/// # Errors
/// [`WireError`] when it is beyond a bound.
pub fn encode_body(body: &Body) -> Result<Bytes, WireError> {
    let _ = body;
    Ok(Bytes::new())
}

/// Reads a body and checks every bound that does not depend on the journal's state.
///
/// # Errors
/// [`WireError`].
pub fn decode_body(bytes: &[u8]) -> Result<Body, WireError> {
    let _ = bytes;
    Err(WireError::Malformed { what: "OpBody", detail: "not yet".into() })
}

/// Turns a message into its frame: type and payload.
pub fn encode_message(message: &JournalMessage) -> (Kind, Bytes) {
    let _ = message;
    (Kind::JournalHello, Bytes::new())
}

/// Reads a frame of the journal's stream.
///
/// # Errors
/// [`WireError`] for anything out of bounds, and for frames that belong on other streams.
pub fn decode_message(kind: Kind, payload: Bytes) -> Result<JournalMessage, WireError> {
    let _ = (kind, payload);
    Err(WireError::Malformed { what: "frame", detail: "not yet".into() })
}
