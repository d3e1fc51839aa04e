//! Every bound that a peer, a store or a user can press against, with its reason, in one place.

/// The longest frame but content frames: 2,048 hashes are 70 KB, 1,024 cells 52 KB; a member list
/// of 1,024 devices with 16 addresses each is the longest message there is.
pub const CONTROL_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The longest content frame: one piece, or as many small contents as make one, and their headers.
pub const CONTENT_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The longest request to join: the proof, a name and 16 addresses. It comes from a stranger.
pub const PAIR_REQUEST_FRAME_BYTES_MAX: u32 = 8 * 1024;
