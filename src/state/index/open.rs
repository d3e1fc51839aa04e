//! Opening the database of the index: its schema, and what becomes of a file that cannot be used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::peers::add_holders;
use super::rows::{Epoch, Kept, load};
use crate::clock::wall_ms;
use crate::db::migrate::{MigrateError, Outcome, Step, newest};
use crate::db::{self, DbError, Spec};

/// Enough for the cores of a small device; each connection has a page cache of its own.
pub(super) const READERS: usize = 3;
/// The page cache per connection: the upper levels of the hash tree of a million rows fit.
const CACHE_KIB: i64 = 8 * 1024;

/// A cache could be rebuilt, but reading a whole store again takes long.
const STEPS: [Step; 1] = [add_holders];

pub(super) const SPEC: Spec = Spec {
    name: "index",
    application_id: 0,
    writer_cache_kib: CACHE_KIB,
    reader_cache_kib: CACHE_KIB,
    statements: 16,
    // Each new hash changes another page, so with SQLite's default every thousand hashes would cost
    // a checkpoint with its two fsyncs.
    checkpoint_pages: 8192,
    log_bytes_kept: Some(32 << 20),
    has_incremental_vacuum: false,
};

pub(super) const SCHEMA: &str = "
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    store_id BLOB,
    algorithm TEXT,
    epoch BLOB NOT NULL,
    count INTEGER NOT NULL,
    store_cursor INTEGER NOT NULL,
    clean INTEGER NOT NULL
) STRICT;
CREATE TABLE known (
    seq INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL
) STRICT;
CREATE TABLE sketch (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    bytes BLOB NOT NULL,
    seq INTEGER NOT NULL
) STRICT;
CREATE TABLE peers (
    node_id BLOB PRIMARY KEY,
    epoch BLOB NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

pub(super) fn open_writer(path: &Path) -> Result<(Connection, Kept)> {
    let (mut connection, outcome) = db::open(path, &SPEC, &STEPS, wall_ms())?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if outcome == Outcome::Empty {
        tx.execute_batch(SCHEMA)?;
        tx.pragma_update(None, "user_version", newest(&STEPS))?;
        tx.execute(
            "INSERT INTO state (one, epoch, count, store_cursor, clean) VALUES (1, ?1, 0, 0, 1)",
            [rand::random::<Epoch>()],
        )?;
        add_holders(&tx)?;
    }
    let clean: bool = tx.query_row("SELECT clean FROM state", [], |row| row.get(0))?;
    if !clean {
        let check: String = tx.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        ensure!(check == "ok", "{check}");
    }
    tx.execute("UPDATE state SET epoch = ?1, clean = 0", [rand::random::<Epoch>()])?;
    let kept = load(&tx)?;
    tx.commit()?;
    // The mark that the index is open must be durable, as `open` has it; later writes need not be.
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA fullfsync = OFF; PRAGMA checkpoint_fullfsync = OFF",
    )?;
    Ok((connection, kept))
}

/// Whether replacing the file would help. It would not if the disk is full or read-only, or if
/// another process has the file open.
pub(super) fn is_fault_of_the_file(error: &anyhow::Error) -> bool {
    let code = match error.downcast_ref() {
        Some(MigrateError::Database { error, .. }) => error.sqlite_error_code(),
        Some(_) => None,
        None => match error.downcast_ref::<DbError>() {
            Some(error) => error.sqlite_code(),
            None => error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code),
        },
    };
    !matches!(
        code,
        Some(
            ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::OutOfMemory
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
        )
    )
}

pub(super) fn move_aside(path: &Path) -> Result<PathBuf> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = beside(".aside");
    fs::rename(path, &aside).with_context(|| format!("renaming {}", path.display()))?;
    for suffix in ["-wal", "-shm"] {
        match fs::remove_file(beside(suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("removing {}", beside(suffix).display()));
            }
            _ => {}
        }
    }
    Ok(aside)
}
