//! The bounds on what others can make this device hold or do, with their reasons: every bound of the
//! protocols between devices, and every bound that more than one file applies.
//!
//! A bound stands in the file that applies it when no other file needs it and it follows from that
//! file alone: the queue between two tasks, a deadline or a pause, the size of one answer of a store
//! or of the API. Its name ends in `_MAX`, or in `_DEADLINE` or `_WAIT` for a time, so that a search
//! finds it. The bounds of paths and versions in shared folders stand in [`crate::core::folder`].

/// The longest frame except content frames: 2,048 hashes are 70 KB, 1,024 cells 52 KB; the longest
/// message is a list of 1,024 members with 16 addresses each.
pub const CONTROL_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The longest content frame: one piece, or small contents of about that size together, and
/// headers.
pub const CONTENT_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The most hashes in one control frame.
pub const HASHES_PER_FRAME_MAX: usize = 2048;

/// The most hashes that a peer may have solicited and not yet received: our queue for it, 40 bytes
/// each.
pub const SOLICITED_PER_PEER_MAX: usize = 8192;

/// The most hashes that we solicit from one peer at a time: half of what a peer must accept, so
/// that the next frame is under way before the last one is served.
pub const SOLICIT_WINDOW: usize = SOLICITED_PER_PEER_MAX / 2;

/// The most hashes known to be missing here and held by one peer: all that coded cells can find at
/// once, and one page more. The next reconcile finds the rest.
pub const WANTS_PER_PEER_MAX: usize = 16_384 + HASHES_PER_FRAME_MAX;

/// The most new assets waiting to be offered to one peer. Reconcile finds the others.
pub const PENDING_PER_PEER_MAX: usize = 16_384;

/// The most assets in one batch.
pub const BATCH_ASSETS_MAX: usize = 512;

/// The most bytes in one batch, unless it is a single large asset. A receiver holds small assets in
/// memory before one commit.
pub const BATCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The most batches under way to one peer at a time, per lane: new small assets, new large assets,
/// solicited small assets, solicited large assets. Separate, so that no lane holds up another;
/// together fewer than the streams that QUIC allows.
pub const LIVE_LANES: usize = 2;

/// See [`LIVE_LANES`].
pub const LIVE_LARGE_LANES: usize = 2;

/// See [`LIVE_LANES`].
pub const SMALL_LANES: usize = 4;

/// See [`LIVE_LANES`].
pub const LARGE_LANES: usize = 2;

/// The most batches under way of small assets that the peer wants at once.
pub const NOW_LANES: usize = 1;

/// The most batches under way of large assets that the peer wants at once.
pub const NOW_LARGE_LANES: usize = 1;

/// The slowest rate that a user can set, bytes per second: at this rate a peer receives contents on
/// all its streams before it takes the sender for dead.
pub const RATE_BYTES_MIN: u64 = 16 * 1024;

/// The most assets that people and programs wait for at a time. They are requested beyond
/// [`SOLICIT_WINDOW`] and fit into what a peer must accept.
pub const FETCHES_MAX: usize = 256;

/// The most damaged assets of our own store that rest before they are tried again. Beyond, the
/// oldest is forgotten and may be tried too early once.
pub const RESTING_MAX: usize = 10_000;

/// The most assets of one peer that rest because they failed or found no room. Beyond, the one that
/// is due first is forgotten and may be tried too early once.
pub const RESTING_PER_PEER_MAX: usize = 4_096;

/// The longest pairing message except the introduction: the proof, a name and 16 addresses. A
/// stranger can send it.
pub const PAIR_FRAME_BYTES_MAX: u32 = 8 * 1024;

/// The largest content that is sent whole, many to a frame; larger ones are sent in pieces.
pub const SMALL_BYTES_MAX: u64 = 256 * 1024;

/// The coded cells of a sketch, and so the most in one answer to a peer: they decode about 11,800
/// differences. Twice as many would double the memory of every device for a rare case.
pub const SKETCH_CELLS: usize = 16_384;

/// The most coded cells in one frame: 52 KB.
pub const CELLS_PER_FRAME_MAX: usize = 1024;

/// The most requests for more cells of one set. Each requests at least a quarter more, so this many
/// lead from any sensible first batch to a whole sketch.
pub const MORES_MAX: u32 = 8;

/// The most rekeys of one reconcile: to shards, then to the plain list, which cannot fail.
pub const REKEYS_MAX: u32 = 2;

/// The most shards of one reconcile, as a power of two: 4,096 shards hold 40 million differences.
/// Beyond that the plain list is sent.
pub const SHARD_BITS_MAX: u32 = 12;

/// The most hashes that a peer may claim to hold: the arithmetic is tested up to it, far above any
/// store.
pub const SET_COUNT_MAX: u64 = 1 << 40;

/// How long a peer waits that requested a full scan too soon after the last one.
pub const SCAN_RETRY_MS: u64 = 10 * 60 * 1000;

/// The most assets in one offer and verdicts in one Ack; we send [`BATCH_ASSETS_MAX`].
pub const OFFER_ENTRIES_MAX: usize = 1024;

/// The most large assets in one offer. The receiver keeps two files open for each, from Want to
/// commit.
pub const OFFER_LARGE_MAX: usize = 16;

/// The most bytes of an offer sent before the peer wants them: what crossing offers can waste.
pub const INLINE_BYTES_MAX: u64 = 2 * BATCH_BYTES_MAX;

/// The largest asset of the protocol, so that no sum of offsets and lengths ever overflows.
pub const ASSET_BYTES_MAX: u64 = 1 << 48;

/// The space that stays free on a disk; on a small disk one part in [`FREE_FLOOR_FRACTION`].
pub const FREE_FLOOR_BYTES: u64 = 1 << 30;
/// See [`FREE_FLOOR_BYTES`].
pub const FREE_FLOOR_FRACTION: u64 = 100;

/// The most content bytes in one piece of a large asset.
pub const PIECE_BYTES_MAX: u32 = 512 * 1024;

/// The smallest asset that is requested from several peers at once. Below, another offer costs more
/// than it saves.
pub const SHARED_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// The most peers that send one asset at a time. Each is a stream, and a piece in memory; more do
/// not make a disk or a radio faster.
pub const SOURCES_MAX: usize = 8;

/// Pieces start at multiples of this: a chunk group, the unit in which BLAKE3 content is verified.
pub const PIECE_ALIGN_BYTES: u64 = 16 * 1024;

/// The most hash pairs that a piece carries beside its content: those inside it, and twice the
/// tree's height.
pub const PIECE_PROOF_BYTES_MAX: usize = 64 * (512 / 16 + 2 * 40);

/// The most characters of a reason shown to people; a peer's text is cut to this.
pub const REASON_CHARS_MAX: usize = 200;

/// The longest body of an op of the journal. Anything larger is an asset whose hash a record holds.
pub const OP_BODY_BYTES_MAX: usize = 64 * 1024;

/// The most changes of one op. An op is kept while one of its cells lives, so this bounds the space
/// that a single cell can hold.
pub const OP_CHANGES_MAX: usize = 64;

/// The most cells that one op may write, a backstop: no body of [`OP_BODY_BYTES_MAX`] needs more.
pub const OP_CELLS_MAX: usize = 4096;

/// The longest value of a field.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

/// The longest data of an event.
pub const EVENT_DATA_BYTES_MAX: usize = 32 * 1024;

/// The longest id of a record.
pub const RECORD_ID_BYTES_MAX: usize = 128;

/// The longest name of a model, a field, a stream or an event's type.
pub const JOURNAL_NAME_BYTES_MAX: usize = 64;

/// The longest element of a set.
pub const SET_ELEM_BYTES_MAX: usize = 256;

/// What a cell counts beside its texts and value, where the size of a record that is read is
/// bounded.
pub const CELL_BYTES: usize = 64;

/// The most that is read of the tags of one asset, removed ones included: several times what a
/// store accepts, so that tags merged from many devices can still be edited down. Ops add up, and a
/// record has no bound of its own.
pub const ASSET_TAGS_BYTES_MAX: usize = 1024 * 1024;

/// The most that is read of one record: more than any program should keep in one.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// The size at which a page of records ends: a few of the largest.
pub const RECORDS_PAGE_BYTES: usize = 4 * RECORD_BYTES_MAX;

/// The most ops in one frame, and in one transaction that applies them.
pub const OPS_PER_FRAME_MAX: usize = 512;

/// The bytes of ops after which a sender ends a frame; with the longest body it still fits a frame.
pub const OPS_FRAME_BYTES: usize = 512 * 1024;

/// The longest introduction, which a stranger may send: ops that add devices, which are short, and
/// a few that remove some.
pub const INTRODUCTION_FRAME_BYTES_MAX: u32 = 64 * 1024;

/// The most ops of an introduction: a chain of members, each added by the one before, and removals.
pub const INTRO_OPS_MAX: usize = 64;

/// The most logs of one author: one per restored backup. More is a mistake or an attack.
pub const LOGS_PER_AUTHOR_MAX: usize = 64;

/// The most ops with one number that are kept in a forked log: an unnoticed restore from a backup
/// makes two, more are an attack. Those with the smallest hashes stay, so that all devices keep the
/// same.
pub const BRANCHES_MAX: usize = 16;

/// The most members of a group that write: many times the devices of a person. Devices that were
/// removed, or that lost membership with the device that introduced them, do not count. An author
/// with a log is never refused for this.
pub const AUTHORS_MAX: usize = 128;

/// The most logs of a group: each author has all of its own, whatever others do. Their clock
/// entries fit one frame.
pub const LOGS_MAX: usize = AUTHORS_MAX * LOGS_PER_AUTHOR_MAX;

/// The highest number of an op in its log: more than anyone writes, and far enough below 2^63 that
/// databases can also hold the numbers next to it.
pub const OP_SEQ_MAX: u64 = 1 << 62;

/// How far ahead of our wall clock the stamp of an op may be.
pub const FUTURE_MS_MAX: u64 = 10 * 60 * 1000;

/// The age at which an op that nothing needs is dropped even if some member has not acknowledged
/// it.
pub const DEAD_OP_KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// The most bytes of ops kept per author unless the user allows more. See
/// [`crate::core::journal::budget`].
pub const AUTHOR_QUOTA_BYTES: u64 = 1024 * 1024 * 1024;

/// The most bytes of ops of an author and all devices that it added, directly or through others;
/// the founder is exempt. Twice the quota: invented devices win their inventor the space of one
/// more device.
pub const SUBTREE_BYTES_MAX: u64 = 2 * AUTHOR_QUOTA_BYTES;

/// The most bytes of ops of a group. More than any group of people writes, and less than a disk.
pub const GROUP_BYTES_MAX: u64 = 8 * AUTHOR_QUOTA_BYTES;

/// The bytes of ops that each author has, whatever others wrote: tens of thousands of edits.
pub const AUTHOR_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// The journal leaves this fraction (4: a quarter) of the disk space free that the store leaves free.
/// Content that fills a disk must not stop metadata from being synchronised.
pub const JOURNAL_FLOOR_FRACTION: u64 = 4;

/// This device fills at most this fraction of its journal quota (2: half) with events that it logs
/// without a user's request.
/// Each asset that arrives is an event, kept for ever unless users say otherwise, and millions of
/// them must not take the space of what users write.
pub const LOGGED_QUOTA_FRACTION: u64 = 2;

/// The longest change that sets how long a stream is kept. One of these may be written where
/// nothing else may, because it makes room.
pub const RETENTION_CHANGE_BYTES_MAX: usize = 512;

/// The most membership facts by one author; with more it is removed. Many times the devices of a
/// person, each added and removed. Every verdict reads all facts.
pub const FACTS_PER_AUTHOR_MAX: usize = 256;

/// The longest name of an asset: what the common file systems allow, times four for UTF-8.
pub const ASSET_NAME_BYTES_MAX: usize = 1020;

/// The longest path of an asset: `PATH_MAX` of Linux and macOS's is shorter.
pub const ASSET_PATH_BYTES_MAX: usize = 4096;

/// The longest media type, by RFC 6838 4.2: twice 127 and a slash.
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// The longest name of an application or a user that an asset comes from.
pub const AGENT_TEXT_BYTES_MAX: usize = 255;

/// The earliest and the latest time of a file, ms since the Unix epoch: the years 1 to 9999, which
/// RFC 3339 can write.
pub const TIME_MS_MIN: i64 = -62_135_596_800_000;
/// See [`TIME_MS_MIN`].
pub const TIME_MS_MAX: i64 = 253_402_300_799_999;

/// The longest expression over assets: people write them by hand, and every look at an asset
/// evaluates them.
pub const EXPRESSION_BYTES_MAX: usize = 4 * 1024;

/// The most levels of an expression: reading and evaluating it are recursive.
pub const EXPRESSION_DEPTH_MAX: usize = 32;

/// The most devices of a group, removed ones included.
pub const GROUP_ENTRIES_MAX: usize = 1024;

/// The most addresses kept for a member; more would only slow the dial down.
pub const ADDRESSES_MAX: usize = 16;

/// The longest address kept, in bytes; relay URLs are the longest there are.
pub const ADDRESS_BYTES_MAX: usize = 256;

/// The longest device name, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// The longest device name, encoded: at most four bytes for each character.
pub const DEVICE_NAME_BYTES_MAX: usize = 4 * NAME_CHARS_MAX;

/// The most features that a peer may list, including those of later versions.
pub const FEATURES_MAX: usize = 64;

/// The most streams that a peer may have open: the control stream, the journal's, and batches. The
/// QUIC library replaces ended streams in eighths of this, so plan with two fewer.
pub const STREAMS_MAX: u32 = 16;

/// The most live connections; together with the windows this bounds memory. The largest group that
/// should be connected all to all has 20 devices.
pub const CONNECTIONS_MAX: usize = 64;

/// The most live connections with one peer: two when both dial at once. Connections that strangers
/// may have too, such as for pairing, count separately.
pub const CONNECTIONS_PER_PEER_MAX: usize = 2;

/// The most live connections of each protocol for strangers.
pub const STRANGER_CONNECTIONS_MAX: usize = 4;

/// The most assets that one side sends on one plain stream: it bounds what both remember. The rest
/// is sent over the next connection.
pub const PLAIN_ASSETS_MAX: usize = 64 * 1024;

/// The most assets in one MetaUpdate of the plain protocol: as many rows as the agent looks at in one go.
pub const META_ASSETS_MAX: usize = 512;

/// The most fields of an asset in a MetaUpdate: those that are known, and some of later versions.
pub const META_FIELDS_MAX: usize = 16;

/// The most tags in one MetaUpdate, those that were taken back included: twice what a store accepts for
/// one asset.
pub const META_TAGS_MAX: usize = 8192;

/// A MetaUpdate is complete at this size.
pub const META_FRAME_BYTES: usize = 512 * 1024;

/// The most bytes of fields and tags that are told of one asset, so that any fits into a frame.
pub const META_ASSET_BYTES_MAX: usize = META_FRAME_BYTES;

/// The most bytes of an asset's description, attributes and tags together: keeps a page of them in
/// memory.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;

/// The longest JSON document of an edit of an asset: the longest description and many tags, every byte
/// escaped.
pub const EDIT_JSON_BYTES_MAX: u64 = 512 * 1024;

/// The most rows in one page of an answer to a program: with the longest descriptions it stays below
/// 64 MiB.
pub const PAGE_ROWS_MAX: usize = 1000;

/// The most rows read for one page. With a filter that few rows match, a page may end early.
pub const PAGE_READS_MAX: usize = 20_000;

/// How often an edit is tried again after another one came first.
pub const EDIT_TRIES_MAX: usize = 8;

/// The most assets of one request for proofs: small ones together, so that one commit keeps all their
/// leases.
pub const PROVE_HASHES_MAX: usize = 64;

/// The most groups that a device without the bytes checks: of a copy that lacks a quarter of its bytes,
/// one in a hundred escapes.
pub const PROOF_GROUPS_MAX: usize = 16;

/// The largest thumbnail: three times what a detailed picture of its size takes.
pub const THUMBNAIL_BYTES_MAX: u64 = 128 * 1024;

/// The most hashes that the index keeps without their contents. Members report them, so a faulty
/// member could fill the disk: 100 bytes each, a gigabyte in all. Hashes beyond the limit are dropped,
/// and reported again at each comparison.
pub const ABSENT_MAX: u64 = 10_000_000;

/// The longest label of a site.
pub const SITE_CHARS_MAX: usize = 32;

/// The most requests for sizes of one peer that are answered at a time.
pub const SIZE_PULLS_MAX: usize = 4;

/// How often in one connection a peer's absent hashes are read from the start because their digest
/// was not as told. Then the peer counts as a holder of nothing new.
pub const ABSENT_RESTARTS_MAX: u32 = 3;
