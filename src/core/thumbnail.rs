//! The answer of a device that is asked for a thumbnail. `proto/peer.proto` defines the messages;
//! `wire::thumbnail` encodes them and refuses what is out of bounds.

use bytes::Bytes;

/// What a device answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The thumbnail, a JPEG of at most [`crate::core::limits::THUMBNAIL_BYTES_MAX`].
    Made(Bytes),
    /// None can be made of this content.
    Impossible,
    /// It does not hold the content.
    NotHeld,
    /// It makes too many already.
    Busy,
}
