//! Every bound that a peer, a store or a user can press against, with its reason, in one place.

/// The longest frame but content frames: 2,048 hashes are 70 KB, 1,024 cells 52 KB; a member list
/// of 1,024 devices with 16 addresses each is the longest message there is.
pub const CONTROL_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The longest content frame: one piece, or as many small contents as make one, and their headers.
pub const CONTENT_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// Hashes in one control frame.
pub const HASHES_PER_FRAME_MAX: usize = 2048;

/// Hashes a peer may have solicited from us and not yet got: what we queue for it, 40 bytes each.
pub const SOLICITED_PER_PEER_MAX: usize = 8192;

/// Hashes we solicit from one peer at a time; half of what a peer must bear, so that the next
/// frame is under way before the last one is served.
pub const SOLICIT_WINDOW: usize = SOLICITED_PER_PEER_MAX / 2;

/// Hashes we know to lack and to be held by one peer: all that coded cells can give at once, and a
/// page more. What does not fit is found by the next reconcile.
pub const WANTS_PER_PEER_MAX: usize = 16_384 + HASHES_PER_FRAME_MAX;

/// New assets waiting to be offered to one peer. More than these are found by reconcile instead.
pub const PENDING_PER_PEER_MAX: usize = 16_384;

/// Assets in one batch.
pub const BATCH_ASSETS_MAX: usize = 512;

/// Bytes of the assets in one batch, unless it is a single large one. A receiver holds the small ones
/// in memory before one commit.
pub const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Batches under way to one peer at a time: of new small assets, of large ones, and the same of
/// what it solicited. Apart, so that none holds up the others; together below the streams QUIC
/// allows.
pub const LIVE_LANES: usize = 2;

/// See [`LIVE_LANES`].
pub const LIVE_LARGE_LANES: usize = 2;

/// See [`LIVE_LANES`].
pub const SMALL_LANES: usize = 4;

/// See [`LIVE_LANES`].
pub const LARGE_LANES: usize = 2;

/// The same of what it wants at once: small assets, and large ones.
pub const NOW_LANES: usize = 1;

/// See [`NOW_LANES`].
pub const NOW_LARGE_LANES: usize = 1;

/// The slowest that contents may be told to move, bytes a second: at this rate a peer gets the
/// contents of all its streams before it takes the sender for dead.
pub const RATE_BYTES_MIN: u64 = 16 * 1024;

/// Assets that people and programs wait for at a time; they come on top of what is asked of a peer
/// otherwise, and fit into what it must bear.
pub const FETCHES_MAX: usize = 256;

/// Assets of our own store that are damaged and are left alone until their time has come; beyond, the
/// oldest is forgotten and may be tried once too early.
pub const RESTING_MAX: usize = 10_000;

/// Assets of one peer that failed or found no room and are left alone until their time has come.
/// Beyond, the one whose time comes first is forgotten and may be tried once too early.
pub const RESTING_PER_PEER_MAX: usize = 4_096;

/// The longest message of a pairing but the introduction: the proof, a name and 16 addresses. It comes
/// from a stranger.
pub const PAIR_FRAME_BYTES_MAX: u32 = 8 * 1024;

/// Contents up to this size travel whole, many to a frame; larger ones in pieces.
pub const SMALL_BYTES_MAX: u64 = 256 * 1024;

/// Coded cells of a sketch, and so the most that one answer to a peer can hold: they decode about
/// 11,800 differences. Twice as many would double what every device keeps for a rare case.
pub const SKETCH_CELLS: usize = 16_384;

/// Coded cells in one frame: 52 KB at most.
pub const CELLS_PER_FRAME_MAX: usize = 1024;

/// Requests for more cells of one set: each asks for a quarter more at least, so that these lead
/// from any first batch worth sending to a whole sketch.
pub const MORES_MAX: u32 = 8;

/// Rekeys of one reconcile: to shards, then to the plain list, which cannot fail.
pub const REKEYS_MAX: u32 = 2;

/// Shards of one reconcile, as a power of two: 4,096 shards hold 40 million differences. Beyond
/// that the plain list is sent.
pub const SHARD_BITS_MAX: u32 = 12;

/// Hashes a set may claim to have: what the arithmetic is tested with, far above any store.
pub const SET_COUNT_MAX: u64 = 1 << 40;

/// How long a peer waits that asked for a full scan too soon after the last one.
pub const SCAN_RETRY_MS: u64 = 10 * 60 * 1000;

/// Assets in one offer, and verdicts in one Ack; we send [`BATCH_ASSETS_MAX`].
pub const OFFER_ENTRIES_MAX: usize = 1024;

/// Large assets in one offer. Each holds two open files at its receiver from Want to commit.
pub const OFFER_LARGE_MAX: usize = 16;

/// Bytes of an offer that are sent without waiting to be wanted: the most a crossing offer wastes.
pub const INLINE_BYTES_MAX: u64 = 2 * BATCH_BYTES_MAX;

/// The largest asset of the protocol, so that no sum of offsets and lengths ever overflows.
pub const ASSET_BYTES_MAX: u64 = 1 << 48;

/// This much of a disk stays free, or one part in [`FREE_FLOOR_FRACTION`] of one too small for it.
pub const FREE_FLOOR_BYTES: u64 = 1 << 30;
/// See [`FREE_FLOOR_BYTES`].
pub const FREE_FLOOR_FRACTION: u64 = 100;

/// Content bytes in one piece of a large asset.
pub const PIECE_BYTES_MAX: u32 = 512 * 1024;

/// Assets of at least this size are asked of several peers at once. Below, another offer costs more
/// than what it saves.
pub const SHARED_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Peers that one asset is asked of at a time. Each is a stream, and a piece in memory; more do not
/// make a disk or a radio faster.
pub const SOURCES_MAX: usize = 8;

/// What a piece is a multiple of: a chunk group, the unit BLAKE3 content is verified in.
pub const PIECE_ALIGN_BYTES: u64 = 16 * 1024;

/// Hash pairs a piece may carry beside its content: those inside it, and twice the tree's height.
pub const PIECE_PROOF_BYTES_MAX: usize = 64 * (512 / 16 + 2 * 40);

/// Characters of a reason given to people; a peer's text is cut to this.
pub const REASON_CHARS_MAX: usize = 200;

/// The body of an op of the journal. Whatever is larger is an asset, and a record holds its hash.
pub const OP_BODY_BYTES_MAX: usize = 64 * 1024;

/// Changes of one op. An op is kept while one of its cells lives, so this bounds the space that a
/// single cell can hold.
pub const OP_CHANGES_MAX: usize = 64;

/// Cells one op may write, a backstop: no body of [`OP_BODY_BYTES_MAX`] needs more.
pub const OP_CELLS_MAX: usize = 4096;

/// A field's value.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

/// An event's data.
pub const EVENT_DATA_BYTES_MAX: usize = 32 * 1024;

/// A record's id.
pub const RECORD_ID_BYTES_MAX: usize = 128;

/// The name of a model, a field, a stream or an event's type.
pub const JOURNAL_NAME_BYTES_MAX: usize = 64;

/// An element of a set.
pub const SET_ELEM_BYTES_MAX: usize = 256;

/// What a cell takes beside its texts and value, where what is read of a record is counted.
pub const CELL_BYTES: usize = 64;

/// What is read of the tags of one asset, those taken out included: several times what a store
/// takes, so that what devices brought together can still be edited down. Ops add up, and a record
/// has no bound of its own.
pub const ASSET_TAGS_BYTES_MAX: usize = 1024 * 1024;

/// What is read of one record: more than any program should keep in one.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// A page of records is closed when it has this much: a few of the largest.
pub const RECORDS_PAGE_BYTES: usize = 4 * RECORD_BYTES_MAX;

/// Ops in one frame, and in one transaction that takes them in.
pub const OPS_PER_FRAME_MAX: usize = 512;

/// Bytes of ops after which a sender closes a frame; with the longest body it is still a frame.
pub const OPS_FRAME_BYTES: usize = 512 * 1024;

/// An introduction, which a stranger may send: ops that add devices, which are short, and a few that
/// remove some.
pub const INTRODUCTION_FRAME_BYTES_MAX: u32 = 64 * 1024;

/// Ops of an introduction: a chain of members, each added by the one before, and removals.
pub const INTRO_OPS_MAX: usize = 64;

/// Logs of one author: one per restored backup. More is a mistake or an attack.
pub const LOGS_PER_AUTHOR_MAX: usize = 64;

/// Ops of one number that are kept in a forked log: a backup that was put back unnoticed makes two,
/// more are an attack. Those with the least hashes stay, so that all devices keep the same.
pub const BRANCHES_MAX: usize = 16;

/// Members of a group that write: many times the devices of a person. Those who were removed, or fell
/// with the device that introduced them, do not count. Whoever has a log already is not among those
/// that there is no room for.
pub const AUTHORS_MAX: usize = 128;

/// Logs of a group: each author has all of its own, whatever others do. Their clock entries fit one
/// frame.
pub const LOGS_MAX: usize = AUTHORS_MAX * LOGS_PER_AUTHOR_MAX;

/// The number of an op in its log: more than anyone writes, and far enough below 2^63 that databases
/// keep every number next to it.
pub const OP_SEQ_MAX: u64 = 1 << 62;

/// How far ahead of our wall clock an op may be stamped.
pub const FUTURE_MS_MAX: u64 = 10 * 60 * 1000;

/// After this an op that nothing needs is dropped even if some member has not acknowledged it.
pub const DEAD_OP_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Bytes of ops kept per author unless the user allows more. See [`crate::core::journal::budget`].
pub const AUTHOR_QUOTA_BYTES: u64 = 1024 * 1024 * 1024;

/// Bytes of ops of an author and of all whom it brought in, each through any number of others; not of
/// the founder. Twice the quota: devices that somebody invents give it one more device's space.
pub const SUBTREE_BYTES_MAX: u64 = 2 * AUTHOR_QUOTA_BYTES;

/// Bytes of ops of a group. More than any group of people writes, and no disk's whole.
pub const GROUP_BYTES_MAX: u64 = 8 * AUTHOR_QUOTA_BYTES;

/// Bytes of ops that an author has whatever others wrote: tens of thousands of edits.
pub const AUTHOR_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Of what the store leaves free of a disk, the journal leaves one part in so many: content that fills
/// a disk must not keep metadata from being the same everywhere.
pub const JOURNAL_FLOOR_FRACTION: u64 = 4;

/// Of its quota this device fills at most one part in so many with what it logs by itself: each asset
/// that arrives is an event, kept for ever unless users say otherwise, and millions of them must not
/// take the space of what users write.
pub const LOGGED_QUOTA_FRACTION: u64 = 2;

/// The longest change that says how long a stream is kept. One such may be written where nothing else
/// may: it is what makes room.
pub const RETENTION_CHANGE_BYTES_MAX: usize = 512;

/// Facts about members that one author may tell, and still be listened to: many times the devices of
/// a person, each added and removed. Every verdict reads them all.
pub const FACTS_PER_AUTHOR_MAX: usize = 256;
