//! Every bound that a peer, a store or a user can press against, with its reason, in one place.

/// The longest frame but content frames: 2,048 hashes are 70 KB, 1,024 cells 52 KB; a member list
/// of 1,024 devices with 16 addresses each is the longest message there is.
pub const CONTROL_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The longest content frame: one piece, or as many small contents as make one, and their headers.
pub const CONTENT_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// Assets in one batch: their offer is 50 KB, and one lost stream repeats little.
pub const BATCH_ENTRIES_MAX: usize = 1024;

/// Large assets in one batch. Each holds two open files at its receiver from Want to commit.
pub const BATCH_LARGE_ENTRIES_MAX: usize = 16;

/// Bytes of a batch that are sent without waiting to be wanted: the most a crossing offer wastes.
pub const INLINE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The largest asset of the protocol, so that no sum of offsets and lengths ever overflows.
pub const ASSET_BYTES_MAX: u64 = 1 << 48;

/// Content bytes in one piece of a large asset.
pub const PIECE_BYTES_MAX: u32 = 512 * 1024;

/// What a piece is a multiple of: a chunk group, the unit BLAKE3 content is verified in.
pub const PIECE_ALIGN_BYTES: u64 = 16 * 1024;

/// Hash pairs a piece may carry beside its content: those inside it, and twice the tree's height.
pub const PIECE_PROOF_BYTES_MAX: usize = 64 * (512 / 16 + 2 * 40);

/// Hashes in one page of a set.
pub const PAGE_HASHES_MAX: usize = 2048;

/// Characters of a reason given to people; a peer's text is cut to this.
pub const REASON_CHARS_MAX: usize = 200;
