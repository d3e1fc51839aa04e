//! The control messages on a connection's stream, and the faults of a peer that close the connection.

use tokio::io::AsyncWrite;

use crate::core::close::CloseCode;
use crate::core::message::Message;
use crate::net::frame::{FrameError, FrameWriter};
use crate::wire::WireError;
use crate::wire::control::encode_message;

/// Why a connection is closed from this side.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) code: CloseCode,
    pub(super) detail: String,
}

/// Writes a control message; does not flush.
pub(super) async fn write_message(
    writer: &mut FrameWriter<impl AsyncWrite + Unpin>,
    message: &Message,
) -> Result<(), FrameError> {
    let (kind, payload) = encode_message(message);
    writer.write_payload(kind, &payload).await
}

/// A fault that the caller describes.
pub(super) fn fault(code: CloseCode, detail: &str) -> Fault {
    Fault { code, detail: detail.to_owned() }
}

/// Maps bytes that cannot be decoded to the fault that they are.
pub(super) fn wire_fault(error: WireError) -> Fault {
    let code = match error {
        WireError::UnknownAlgorithm(_) => CloseCode::HashAlgorithm,
        WireError::Malformed { .. } | WireError::OutOfBounds { .. } => CloseCode::Protocol,
    };
    fault(code, &error.to_string())
}

/// Maps a stream that broke or stalled to the fault that it is.
pub(super) fn frame_fault(error: FrameError) -> Fault {
    fault(error.close_code(), &error.to_string())
}
