//! Opens a SQLite file: refuses a foreign file before it writes anything, configures the
//! connection, and upgrades the schema to the newest version.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::migrate::{MigrateError, Outcome, Step, check, migrate};

/// How long to wait for a lock that another program holds (a backup, a person with a SQL shell).
const BUSY_WAIT: Duration = Duration::from_secs(10);

/// The settings in which databases differ. Everything else is the same for all.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The name for messages and for the writer's thread.
    pub name: &'static str,
    /// The application ID in the file's header; 0 for a file without one.
    pub application_id: i64,
    /// The page cache of the writing connection.
    pub writer_cache_kib: i64,
    /// The page cache of each reading connection.
    pub reader_cache_kib: i64,
    /// The number of prepared statements that each connection caches.
    pub statements: usize,
    /// The number of pages in the log at which it is copied into the database.
    pub checkpoint_pages: i64,
    /// The size to which the log's file is truncated after a burst; `None` keeps its size.
    pub log_bytes_kept: Option<i64>,
    /// Whether free pages can be returned to the file system. Takes effect only in a new file.
    pub has_incremental_vacuum: bool,
}

/// Opens the database at `path` for writing, with the newest version of its schema. The caller
/// creates the tables of an empty database. Every commit is durable (`synchronous = FULL`). For
/// `steps` and `now_ms`, see [`migrate`].
///
/// The files that SQLite makes beside this one get its permissions. So this file should exist
/// already, readable only for its owner.
///
/// # Errors
/// The file is unusable; it is unchanged.
pub fn open(
    path: &Path,
    spec: &Spec,
    steps: &[Step],
    now_ms: u64,
) -> Result<(Connection, Outcome), MigrateError> {
    let database = |error| MigrateError::Database { path: path.to_owned(), error };
    let access = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = connect(path, access, spec, spec.writer_cache_kib).map_err(database)?;
    check(&connection, path, spec.application_id, steps)?;
    set_up(&connection, spec).map_err(database)?;
    let outcome = migrate(&mut connection, path, steps, now_ms)?;
    Ok((connection, outcome))
}

/// Opens the database at `path` for reading.
pub fn open_reader(path: &Path, spec: &Spec) -> rusqlite::Result<Connection> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, spec, spec.reader_cache_kib)
}

fn connect(
    path: &Path,
    access: OpenFlags,
    spec: &Spec,
    cache_kib: i64,
) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(spec.statements);
    // A negative size is in KiB, a positive one in pages.
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    Ok(connection)
}

fn set_up(connection: &Connection, spec: &Spec) -> rusqlite::Result<()> {
    if spec.has_incremental_vacuum {
        // Must precede the first page, which the change to a write-ahead log writes.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", spec.checkpoint_pages)?;
    if let Some(bytes) = spec.log_bytes_kept {
        connection.pragma_update(None, "journal_size_limit", bytes)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::tests::{Fixture, NUMBERS, fixture};

    #[test]
    fn a_file_that_is_refused_is_not_written_to() {
        let refuse = |sql: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("numbers.db");
            Connection::open(&path).unwrap().execute_batch(sql).unwrap();
            let before = std::fs::read(&path).unwrap();
            let error = open(&path, &NUMBERS, &[], 0).unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), before, "{sql}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{sql}");
            error
        };
        let newer = refuse("CREATE TABLE x (y); PRAGMA user_version = 9");
        assert!(matches!(newer, MigrateError::Newer { found: 9, known: 1, .. }), "{newer}");
        let unversioned = refuse("CREATE TABLE x (y)");
        assert!(matches!(unversioned, MigrateError::Foreign(_)), "{unversioned}");
        let marked =
            refuse("CREATE TABLE x (y); PRAGMA user_version = 1; PRAGMA application_id = 5");
        assert!(matches!(marked, MigrateError::Foreign(_)), "{marked}");
    }

    #[test]
    fn a_commit_waits_for_the_disk_and_a_reader_cannot_write() {
        let Fixture { dir, database, .. } = fixture();
        let level = |connection: &Connection| -> i64 {
            connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap()
        };
        let writer = database.write(move |txn| Ok(level(txn.conn))).unwrap();
        assert_eq!(writer, 2, "FULL");
        let reader = open_reader(&dir.path().join("numbers.db"), &NUMBERS).unwrap();
        assert!(reader.execute("INSERT INTO numbers VALUES (1, NULL)", []).is_err());
    }
}
