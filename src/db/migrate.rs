//! Migrates the schema of a database file, and keeps a copy of the old file beside it.
//!
//! The version of a file's schema is in `PRAGMA user_version`. A file with data that exists nowhere
//! else is migrated; a cache is rebuilt by its owner instead.
//!
//! M1  Before the first step there is a consistent and durable copy of the file beside it:
//!     `NAME.v<version>-<YYYYMMDD-HHMMSS>.bak`, a readable database. The last two copies are kept.
//! M2  All steps and the new version are one transaction: a file has its old schema or the newest.
//! M3  A file that is refused (too new, not ours, no space for the copy, a step that fails) is left
//!     as it was, and no copy of it stays.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use thiserror::Error;

/// How many copies of one file are kept: the new one and the one before.
const COPIES_KEPT: usize = 2;

/// A step to the next schema version: `steps[i]` migrates version i + 1 to i + 2.
pub type Step = fn(&Transaction<'_>) -> anyhow::Result<()>;

/// The schema version that a list of steps ends at.
pub const fn newest(steps: &[Step]) -> i64 {
    steps.len() as i64 + 1
}

/// The result of [`migrate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The file has no tables: the caller creates them, at the newest version, in one transaction.
    Empty,
    /// The file has the newest schema already.
    Current,
    /// The file was migrated.
    Migrated {
        /// The version before.
        from: i64,
        /// The path of the old file's copy.
        copy: PathBuf,
    },
}

/// Why a file was not migrated. It is unchanged.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// A later version of this program wrote the file.
    #[error(
        "a newer can-sync wrote {} (schema version {found}, this one knows up to {known}): use that \
         version or a later one", .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The database's version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The file has tables but no version of ours.
    #[error("{} is a database of another program: move it away", .0.display())]
    Foreign(PathBuf),
    /// The disk cannot hold the copy.
    #[error(
        "no space for a copy of {} before its schema is changed: {needed_bytes} bytes are needed and \
         {free_bytes} are free; free some space on its disk and start again", .path.display()
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The bytes needed for the copy.
        needed_bytes: u64,
        /// The bytes free on the disk.
        free_bytes: u64,
    },
    /// The copy could not be written.
    #[error("cannot write a copy of {} to {}: {error}", .path.display(), .copy.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// The copy.
        copy: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A step failed.
    #[error("cannot change the schema of {} from version {from}: {error:#}", .path.display())]
    Step {
        /// The file.
        path: PathBuf,
        /// The version that the file keeps.
        from: i64,
        /// The cause.
        error: anyhow::Error,
    },
    /// The database could not be read or written.
    #[error("the database {}: {error}", .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: rusqlite::Error,
    },
}

/// Refuses a file of another program, and one of a newer version than this program supports. Writes
/// nothing. `application_id` is the one in the file's header, 0 for none.
pub(super) fn check(
    connection: &Connection,
    path: &Path,
    application_id: i64,
    steps: &[Step],
) -> Result<(), MigrateError> {
    let database = |error| MigrateError::Database { path: path.to_owned(), error };
    let pragma = |name: &str| -> Result<i64, MigrateError> {
        connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).map_err(database)
    };
    if has_tables(connection).map_err(database)? && pragma("application_id")? != application_id {
        return Err(MigrateError::Foreign(path.to_owned()));
    }
    found(connection, path, newest(steps)).map(|_| ())
}

/// The schema version of the file; `None` for an empty one.
fn found(connection: &Connection, path: &Path, known: i64) -> Result<Option<i64>, MigrateError> {
    let database = |error| MigrateError::Database { path: path.to_owned(), error };
    match version(connection).map_err(database)? {
        0 if !has_tables(connection).map_err(database)? => Ok(None),
        ..=0 => Err(MigrateError::Foreign(path.to_owned())),
        found if found > known => Err(MigrateError::Newer { path: path.to_owned(), found, known }),
        found => Ok(Some(found)),
    }
}

fn has_tables(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

/// Migrates the database at `path`, open as `connection`, to the newest version. The connection
/// must commit durably (`synchronous = FULL`), and nobody else may write the file meanwhile.
/// `now_ms`, the wall clock since the Unix epoch, names the copy. Blocks.
pub fn migrate(
    connection: &mut Connection,
    path: &Path,
    steps: &[Step],
    now_ms: u64,
) -> Result<Outcome, MigrateError> {
    let known = newest(steps);
    let found = match found(connection, path, known)? {
        None => return Ok(Outcome::Empty),
        Some(found) if found == known => return Ok(Outcome::Current),
        Some(found) => found,
    };
    let copy = copy_name(path, found, now_ms);
    tracing::info!(
        from = found, to = known, copy = %copy.display(),
        "changing the schema of {}; a copy of the old file is made first", path.display()
    );
    write_copy(connection, path, &copy)?;
    if let Err(error) = run_steps(connection, path, found, steps) {
        // The copy stays after a failed commit, because then the schema on the disk is not known.
        if matches!(error, MigrateError::Step { .. }) {
            remove_copy(&copy);
        }
        return Err(error);
    }
    drop_old_copies(path, &copy);
    Ok(Outcome::Migrated { from: found, copy })
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Runs the steps (M2). References between tables are checked once at the end, so that a step may
/// rebuild any table.
fn run_steps(
    connection: &mut Connection,
    path: &Path,
    from: i64,
    steps: &[Step],
) -> Result<(), MigrateError> {
    let database = |error| MigrateError::Database { path: path.to_owned(), error };
    let failed = |error| MigrateError::Step { path: path.to_owned(), from, error };
    let checks_references: bool =
        connection.query_row("PRAGMA foreign_keys", [], |row| row.get(0)).map_err(database)?;
    // This pragma has no effect inside a transaction.
    connection.pragma_update(None, "foreign_keys", false).map_err(database)?;
    let run = |connection: &mut Connection| {
        let tx = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| failed(error.into()))?;
        let done = usize::try_from(from).map_or(0, |from| from.saturating_sub(1));
        for step in &steps[done..] {
            step(&tx).map_err(failed)?;
        }
        check_references(&tx).map_err(failed)?;
        tx.pragma_update(None, "user_version", newest(steps))
            .map_err(|error| failed(error.into()))?;
        tx.commit().map_err(database)
    };
    let result = run(connection);
    connection.pragma_update(None, "foreign_keys", checks_references).map_err(database)?;
    result
}

fn check_references(tx: &Transaction<'_>) -> anyhow::Result<()> {
    let mut broken = tx.prepare("PRAGMA foreign_key_check")?;
    let mut rows = broken.query([])?;
    if let Some(row) = rows.next()? {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        anyhow::bail!("a row of {table} refers to a row of {parent} that is not there");
    }
    Ok(())
}

/// Writes the copy (M1).
fn write_copy(connection: &Connection, path: &Path, copy: &Path) -> Result<(), MigrateError> {
    let database = |error| MigrateError::Database { path: path.to_owned(), error };
    let failed = |error| MigrateError::Copy { path: path.to_owned(), copy: copy.to_owned(), error };
    let no_space = |needed_bytes, free_bytes| MigrateError::NoSpace {
        path: path.to_owned(),
        needed_bytes,
        free_bytes,
    };
    let pragma = |name: &str| -> Result<u64, MigrateError> {
        let value: i64 = connection
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
            .map_err(database)?;
        Ok(value.unsigned_abs())
    };
    let needed_bytes = pragma("page_count")?.saturating_mul(pragma("page_size")?);
    let folder = folder_of(path);
    let free_bytes = || -> io::Result<u64> {
        let disk = rustix::fs::statvfs(folder)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    };
    let free = free_bytes().map_err(failed)?;
    if free < needed_bytes {
        return Err(no_space(needed_bytes, free));
    }

    // It gets its final name only when it is complete and durable.
    let unfinished = beside(copy, ".unfinished");
    let write = || -> Result<(), MigrateError> {
        remove_if_there(&unfinished).map_err(failed)?;
        // Created here so that only its owner can read it; SQLite fills it.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed)?;
        // A path need not be UTF-8, but a text value for SQLite must be.
        let target = unfinished.as_os_str().as_bytes();
        connection.execute("VACUUM INTO CAST(?1 AS TEXT)", [target]).map_err(
            |error| match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => no_space(needed_bytes, free_bytes().unwrap_or(0)),
                _ => database(error),
            },
        )?;
        File::open(&unfinished).and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(&unfinished, copy).map_err(failed)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    };
    write().inspect_err(|_| remove_copy(&unfinished))
}

/// The name of a copy made now.
fn copy_name(path: &Path, version: i64, now_ms: u64) -> PathBuf {
    let now = i64::try_from(now_ms).ok().and_then(DateTime::from_timestamp_millis);
    let stamp = now.unwrap_or_default().format("%Y%m%d-%H%M%S");
    beside(path, &format!(".v{version}-{stamp}.bak"))
}

/// Keeps the new copy and the newest of the older ones.
fn drop_old_copies(path: &Path, made: &Path) {
    let folder = folder_of(path);
    let prefix = path.file_name().map_or_else(OsString::new, |name| {
        let mut prefix = name.to_owned();
        prefix.push(".v");
        prefix
    });
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, "cannot look for old copies in {}", folder.display());
            return;
        }
    };
    let mut others: Vec<(Vec<u8>, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let rest = name.as_bytes().strip_prefix(prefix.as_bytes())?;
            let stamp = rest.strip_suffix(b".bak")?.rsplitn(3, |byte| *byte == b'-');
            // Sorted by date and time, not by version.
            let mut parts: Vec<&[u8]> = stamp.collect();
            parts.reverse();
            let [_, date, time] = parts[..] else { return None };
            (Some(name.as_os_str()) != made.file_name())
                .then(|| ([date, time].concat(), entry.path()))
        })
        .collect();
    others.sort();
    let surplus = others.len().saturating_sub(COPIES_KEPT - 1);
    for (_, old) in &others[..surplus] {
        remove_copy(old);
    }
}

fn remove_copy(copy: &Path) {
    if let Err(error) = remove_if_there(copy) {
        tracing::warn!(%error, "cannot remove the copy {}: remove it by hand", copy.display());
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;

    /// 2026-11-30 03:05:06 UTC.
    const NOW_MS: u64 = 1_796_007_906_000;

    const STEPS: [Step; 2] = [
        |tx| Ok(tx.execute_batch("ALTER TABLE notes ADD COLUMN tag TEXT NOT NULL DEFAULT 'none'")?),
        |tx| Ok(tx.execute_batch("CREATE INDEX tagged ON notes (tag)")?),
    ];

    /// A file of version 1 with one note, open as its owner opens it.
    fn old_file(dir: &Path) -> (PathBuf, Connection) {
        let path = dir.join("notes.db");
        let connection = open(&path);
        connection
            .execute_batch(
                "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
                 INSERT INTO notes VALUES (7, 'kept');
                 PRAGMA user_version = 1;",
            )
            .unwrap();
        (path, connection)
    }

    fn open(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "foreign_keys", true).unwrap();
        connection
    }

    fn texts(connection: &Connection) -> Vec<(i64, String)> {
        let mut select = connection.prepare("SELECT id, text FROM notes ORDER BY id").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Makes a closed database look far larger than any disk; returns its new size.
    pub(crate) fn make_huge(path: &Path) -> u64 {
        const HUGE_BYTES: u64 = 8 << 40;
        // Without the mark that SQLite's own page count is valid, the file's length counts. The
        // file has holes and takes no space.
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xff; 4], 92).unwrap();
        file.set_len(HUGE_BYTES).unwrap();
        HUGE_BYTES
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_old_file_is_stepped_to_the_newest_version_and_copied_beside_first() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut connection) = old_file(dir.path());

        let outcome = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap();
        let copy = dir.path().join("notes.db.v1-20261130-030506.bak");
        assert_eq!(outcome, Outcome::Migrated { from: 1, copy: copy.clone() });
        assert_eq!(version(&connection).unwrap(), 3);
        let tag: String =
            connection.query_row("SELECT tag FROM notes", [], |row| row.get(0)).unwrap();
        assert_eq!(tag, "none");
        assert_eq!(texts(&connection), [(7, "kept".to_owned())]);

        let old = Connection::open(&copy).unwrap();
        assert_eq!(version(&old).unwrap(), 1);
        assert_eq!(texts(&old), [(7, "kept".to_owned())], "what was only in the log is copied too");
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["notes.db", "notes.db.v1-20261130-030506.bak"]);

        let again = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap();
        assert_eq!(again, Outcome::Current);
        let on: bool = connection.query_row("PRAGMA foreign_keys", [], |row| row.get(0)).unwrap();
        assert!(on, "the connection checks references as before");
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was_and_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut connection) = old_file(dir.path());
        let steps: [Step; 2] = [STEPS[0], |_| anyhow::bail!("not today")];

        let error = migrate(&mut connection, &path, &steps, NOW_MS).unwrap_err();
        assert!(matches!(error, MigrateError::Step { from: 1, .. }), "{error}");
        assert!(error.to_string().contains("not today"), "{error}");
        assert_eq!(version(&connection).unwrap(), 1);
        let column: i64 = connection
            .query_row("SELECT count(*) FROM pragma_table_info('notes')", [], |row| row.get(0))
            .unwrap();
        assert_eq!(column, 2, "the first step is undone");
        assert_eq!(names(dir.path()), ["notes.db"]);

        migrate(&mut connection, &path, &STEPS, NOW_MS).expect("the next try is free");
    }

    #[test]
    fn a_step_that_breaks_a_reference_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut connection) = old_file(dir.path());
        let steps: [Step; 1] = [|tx| {
            Ok(tx.execute_batch(
                "CREATE TABLE lines (note INTEGER REFERENCES notes (id)) STRICT;
                 INSERT INTO lines VALUES (8)",
            )?)
        }];
        let error = migrate(&mut connection, &path, &steps, NOW_MS).unwrap_err();
        assert!(error.to_string().contains("a row of lines refers to a row of notes"), "{error}");
        assert_eq!(version(&connection).unwrap(), 1);
    }

    #[test]
    fn a_newer_file_and_one_of_another_program_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut connection) = old_file(dir.path());
        connection.pragma_update(None, "user_version", 9).unwrap();
        let error = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap_err();
        assert!(matches!(error, MigrateError::Newer { found: 9, known: 3, .. }), "{error}");

        connection.pragma_update(None, "user_version", 0).unwrap();
        let error = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap_err();
        assert!(matches!(error, MigrateError::Foreign(_)), "{error}");
        assert_eq!(texts(&connection), [(7, "kept".to_owned())]);
        assert_eq!(names(dir.path()), ["notes.db"]);
    }

    #[test]
    fn an_empty_file_is_left_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.db");
        let mut connection = open(&path);
        let outcome = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap();
        assert_eq!(outcome, Outcome::Empty);
        assert_eq!(names(dir.path()), ["notes.db"]);
    }

    #[test]
    fn the_last_two_copies_are_kept_and_files_of_other_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut connection) = old_file(dir.path());
        let others = [
            "notes.db.v1-20240101-000000.bak",
            "notes.db.v1-20250101-000000.bak",
            "notes.db.v2-20230101-000000.bak",
            "notes.db.very-old.bak",
            "other.db.v1-20220101-000000.bak",
        ];
        others.iter().for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap();
        assert_eq!(
            names(dir.path()),
            [
                "notes.db",
                "notes.db.v1-20250101-000000.bak",
                "notes.db.v1-20261130-030506.bak",
                "notes.db.very-old.bak",
                "other.db.v1-20220101-000000.bak",
            ]
        );
    }

    #[test]
    fn a_copy_that_does_not_fit_is_refused_with_the_bytes_needed_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size = 65536;
                 CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
                 INSERT INTO notes VALUES (7, 'kept');
                 PRAGMA user_version = 1;",
            )
            .unwrap();
        drop(connection);
        let huge_bytes = make_huge(&path);
        let mut connection = Connection::open(&path).unwrap();

        let error = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap_err();
        let MigrateError::NoSpace { needed_bytes, free_bytes, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(needed_bytes, huge_bytes);
        assert!(free_bytes < huge_bytes);
        assert_eq!(version(&connection).unwrap(), 1);
        assert_eq!(texts(&connection), [(7, "kept".to_owned())]);
        assert_eq!(names(dir.path()), ["notes.db"]);
    }

    #[test]
    fn a_copy_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut connection) = old_file(dir.path());
        fs::create_dir(dir.path().join("notes.db.v1-20261130-030506.bak.unfinished")).unwrap();
        let error = migrate(&mut connection, &path, &STEPS, NOW_MS).unwrap_err();
        assert!(matches!(error, MigrateError::Copy { .. }), "{error}");
        assert_eq!(version(&connection).unwrap(), 1);
        assert_eq!(texts(&connection), [(7, "kept".to_owned())]);
    }
}
