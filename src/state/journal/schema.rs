//! The tables of `journal.db`.
//!
//! Devices and models are numbered to keep cells small; device 0 is the shared scope. An op is dead
//! when `refs`, the number of cells, events and facts that it holds, is 0 and it is not opaque.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::core::ids::NodeId;
use crate::core::journal::set_hash::SetHash;
use crate::db::migrate::{MigrateError, Outcome, Step, newest};
use crate::db::{Spec, open};
pub(super) use crate::db::{int, row_u64};

use super::{JournalError, Result};

/// The newest schema; [`super::upgrade`] upgrades older ones to it.
const SCHEMA: &str = "
CREATE TABLE meta (
    k TEXT PRIMARY KEY,
    v BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE devices (
    dev INTEGER PRIMARY KEY,
    id BLOB UNIQUE NOT NULL,
    quota_bytes INTEGER
) STRICT;
CREATE TABLE models (
    model INTEGER PRIMARY KEY,
    name TEXT UNIQUE NOT NULL
) STRICT;
CREATE TABLE logs (
    log INTEGER PRIMARY KEY,
    log_id BLOB UNIQUE NOT NULL,
    dev INTEGER NOT NULL REFERENCES devices,
    nonce BLOB NOT NULL,
    seq INTEGER NOT NULL,
    head BLOB,
    forked INTEGER NOT NULL,
    above BLOB NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX logs_of_device ON logs (dev);
CREATE TABLE ops (
    arr INTEGER PRIMARY KEY AUTOINCREMENT,
    log INTEGER NOT NULL REFERENCES logs,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    hlc INTEGER NOT NULL,
    refs INTEGER NOT NULL,
    opaque INTEGER NOT NULL,
    recv_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    sig BLOB NOT NULL,
    UNIQUE (log, seq, hash)
) STRICT;
CREATE INDEX ops_dead ON ops (log, seq) WHERE refs = 0 AND opaque = 0;
CREATE INDEX ops_opaque ON ops (arr) WHERE opaque = 1;
CREATE TABLE cells (
    model INTEGER NOT NULL REFERENCES models,
    scope INTEGER NOT NULL,
    id BLOB NOT NULL,
    field TEXT NOT NULL,
    elem TEXT NOT NULL,
    hlc INTEGER NOT NULL,
    log_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    removed INTEGER NOT NULL,
    value BLOB NOT NULL,
    op INTEGER NOT NULL,
    PRIMARY KEY (model, scope, id, field, elem)
) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    model INTEGER NOT NULL,
    scope INTEGER NOT NULL,
    id BLOB NOT NULL,
    arr INTEGER NOT NULL,
    alive INTEGER NOT NULL,
    PRIMARY KEY (model, scope, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX records_arr ON records (arr);
CREATE TABLE events (
    stream TEXT NOT NULL,
    log INTEGER NOT NULL,
    event_seq INTEGER NOT NULL,
    arr INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    type TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (stream, log, event_seq, arr, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_arr ON events (stream, arr, idx);
CREATE INDEX events_of_file ON events (stream, type, arr, idx)
    WHERE stream >= 'folder/' AND stream < 'folder0';
CREATE TABLE streams (
    stream TEXT NOT NULL,
    log INTEGER NOT NULL,
    next INTEGER NOT NULL,
    PRIMARY KEY (stream, log)
) STRICT, WITHOUT ROWID;
CREATE TABLE retention (
    stream TEXT PRIMARY KEY,
    keep_days INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE members (
    op INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    by_dev INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    dev INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (op, idx)
) STRICT, WITHOUT ROWID;
CREATE TABLE acks (
    dev INTEGER NOT NULL,
    log INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (dev, log)
) STRICT, WITHOUT ROWID;
CREATE TABLE reached (
    device BLOB PRIMARY KEY,
    addresses TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
    key BLOB PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE shadows (
    hash BLOB PRIMARY KEY,
    base BLOB NOT NULL,
    pending BLOB,
    written BLOB,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    epoch BLOB NOT NULL,
    arr INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE superseded (
    id BLOB NOT NULL,
    version BLOB NOT NULL,
    is_replaced INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    by_ms INTEGER NOT NULL,
    by_dev INTEGER NOT NULL,
    PRIMARY KEY (id, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX superseded_due ON superseded (due_ms);
";

/// All tables that belong to a group, children before parents.
pub(super) const GROUP_TABLES: [&str; 16] = [
    "superseded",
    "reached",
    "shadows",
    "cursors",
    "tokens",
    "acks",
    "members",
    "retention",
    "streams",
    "events",
    "records",
    "cells",
    "ops",
    "logs",
    "models",
    "devices",
];

/// The keys of `meta` that belong to a group.
pub(super) const GROUP_KEYS: [&str; 12] = [
    key::GROUP,
    key::OPEN_LOG,
    key::FEED_EPOCH,
    key::PAIRING_LOG,
    key::INVITED,
    key::VERIFY_TOKENS,
    key::TOKEN_USES,
    key::FOUNDED_ANEW,
    key::DIGEST,
    key::HLC_MAX,
    key::HLC_OTHERS,
    key::REMERGED,
];

/// The keys of `meta`.
pub(super) mod key {
    /// The node ID of this device.
    pub(in super::super) const DEVICE: &str = "device";
    /// The identity of the database file, see [`super::super::DbIdent`].
    pub(in super::super) const IDENT: &str = "db_ident";
    /// The kinds of changes that were known when opaque ops were last read.
    pub(in super::super) const KINDS: &str = "kinds";
    /// The group's id; absent without a group.
    pub(in super::super) const GROUP: &str = "group_id";
    /// The id of the log that this device writes; absent until it writes.
    pub(in super::super) const OPEN_LOG: &str = "open_log";
    /// The epoch of arrival numbers: replaced when numbers may have been lost and could repeat.
    pub(in super::super) const FEED_EPOCH: &str = "feed_epoch";
    /// The log for the next op that adds a joiner, with the feed epoch in which it was written.
    /// Absent while a number of it may have been signed but not applied.
    pub(in super::super) const PAIRING_LOG: &str = "pairing_log";
    /// Set once an op that adds a joiner was handed out: a stranger may be that joiner.
    pub(in super::super) const INVITED: &str = "invited";
    /// The keys of the tokens whose digits must be compared, 32 bytes each; keys of tokens that are
    /// no longer outstanding are ignored.
    pub(in super::super) const VERIFY_TOKENS: &str = "verify_tokens";
    /// The tokens that let in more than one device: the key, how many it may let in, and how many are
    /// left, 32, 2 and 2 bytes each. An earlier version ignores it and lets one device in. Entries of
    /// tokens that are no longer outstanding are ignored.
    pub(in super::super) const TOKEN_USES: &str = "token_uses";
    /// The sum over the state, see [`crate::core::journal::set_hash`].
    pub(in super::super) const DIGEST: &str = "digest";
    /// Set when this device founded the group while it had a key but no journal: it may be in
    /// another group.
    pub(in super::super) const FOUNDED_ANEW: &str = "founded_anew";
    /// The greatest time given out or admitted, eight bytes big-endian.
    pub(in super::super) const HLC_MAX: &str = "hlc_max";
    /// The greatest time of ops by other devices, eight bytes big-endian.
    pub(in super::super) const HLC_OTHERS: &str = "hlc_others";
    /// Set while ops are being merged again: the arrival number of the last one merged, eight bytes
    /// big-endian.
    pub(in super::super) const REMERGED: &str = "remerged";
}

/// The settings of the journal's database.
pub(super) const SPEC: Spec = Spec {
    name: "journal",
    application_id: 0,
    writer_cache_kib: 16_384,
    reader_cache_kib: 16_384,
    // More than the journal has statements.
    statements: 128,
    // SQLite's default.
    checkpoint_pages: 1000,
    log_bytes_kept: None,
    has_incremental_vacuum: true,
};

/// Opens the database at `path` for writing, creates the tables in a new file, upgrades those of an
/// old one, and checks that the file belongs to this device.
///
/// `synchronous = FULL`: a committed op may be at a peer at once, so it must not be lost.
pub(super) fn prepare(
    path: &Path,
    steps: &[Step],
    device: &NodeId,
    now_ms: u64,
) -> Result<Connection> {
    let (mut connection, outcome) = open(path, &SPEC, steps, now_ms).map_err(migrate_error)?;
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(JournalError::of_begin)?;
    if outcome == Outcome::Empty {
        tx.execute_batch(SCHEMA)?;
        tx.pragma_update(None, "user_version", newest(steps))?;
        set_meta(&tx, key::DEVICE, &device.0)?;
    }
    let owner = meta(&tx, key::DEVICE)?.unwrap_or_default();
    if owner != device.0 {
        let owner = NodeId::from_slice(&owner).map_or_else(|| "?".into(), |id| id.short());
        return Err(JournalError::OtherDevice(owner));
    }
    tx.commit()?;
    Ok(connection)
}

fn migrate_error(error: MigrateError) -> JournalError {
    match error {
        MigrateError::Newer { found, known, .. } => JournalError::Newer { found, known },
        MigrateError::Database { error, .. } => JournalError::of_begin(error),
        other => JournalError::Open(other.to_string()),
    }
}

pub(super) fn meta(connection: &Connection, key: &str) -> Result<Option<Vec<u8>>> {
    Ok(connection
        .prepare_cached("SELECT v FROM meta WHERE k = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?)
}

/// A value of `meta` with exactly `N` bytes.
pub(super) fn meta_array<const N: usize>(
    connection: &Connection,
    key: &str,
) -> Result<Option<[u8; N]>> {
    let Some(bytes) = meta(connection, key)? else {
        return Ok(None);
    };
    let damaged = || JournalError::Damaged(format!("{key} is not {N} bytes"));
    bytes.try_into().map(Some).map_err(|_| damaged())
}

/// A number of `meta`.
pub(super) fn meta_u64(connection: &Connection, key: &str) -> Result<Option<u64>> {
    Ok(meta_array(connection, key)?.map(u64::from_be_bytes))
}

/// A sum of `meta`.
pub(super) fn meta_set(connection: &Connection, key: &str) -> Result<Option<SetHash>> {
    let Some(bytes) = meta(connection, key)? else {
        return Ok(None);
    };
    let damaged = || JournalError::Damaged(format!("{key} is no sum of {} bytes", bytes.len()));
    SetHash::from_bytes(&bytes).map(Some).ok_or_else(damaged)
}

pub(super) fn delete_meta(tx: &Transaction<'_>, key: &str) -> Result<()> {
    tx.prepare_cached("DELETE FROM meta WHERE k = ?1")?.execute([key])?;
    Ok(())
}

pub(super) fn set_meta(tx: &Transaction<'_>, key: &str, value: &[u8]) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO meta (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
    )?
    .execute(params![key, value])?;
    Ok(())
}

/// The number of an op to look up; NULL, which no op has, for a number that does not fit.
pub(super) fn seq_key(seq: u64) -> Option<i64> {
    i64::try_from(seq).ok()
}

/// Reads a sum from a row.
pub(super) fn row_set(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<SetHash> {
    let bytes: Vec<u8> = row.get(column)?;
    SetHash::from_bytes(&bytes).ok_or_else(|| {
        let detail = format!("a sum of {} bytes", bytes.len());
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Blob,
            detail.into(),
        )
    })
}
