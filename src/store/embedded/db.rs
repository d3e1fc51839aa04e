//! The store's database, by means of [`crate::db`]: what happens at a commit, and how errors of
//! SQLite map to errors of the store.
//!
//! D1  Nothing is answered or announced before its commit is durable (WAL, `synchronous=FULL`).
//! D2  A commit that fails on the disk is not retried: what the kernel still holds of it is not
//!     known (fsyncgate). The store then takes no more writes; a restart recovers.
//! D3  The totals of a store (newest cursor, count, bytes) change in the transaction that earns it.
//! D4  Closed in order it leaves one file: no log beside it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::watch;

use super::health::Health;
use super::rows::{self, Totals};
use super::schema::{SPEC, prepare};
use crate::clock::wall_ms;
use crate::core::ids::{Hash, HashAlgorithm, StoreId};
use crate::db::{self, DbError, Lent, Next, Owner};
use crate::store::{Cursor, Damages, StoreError};

/// Reading connections: enough to keep two cores and one disk busy.
pub(super) const READERS: usize = 4;

/// A transaction of the writer, as a job sees it.
pub(super) type Txn<'a> = db::Txn<'a, Announcer>;

/// The open database. Closing it (or dropping it) ends the writer after the jobs it has.
pub(super) struct Database {
    pub(super) store_id: StoreId,
    database: db::Database<Announcer>,
    newest: watch::Receiver<Cursor>,
    damages: watch::Receiver<Damages>,
    health: Arc<Health>,
}

impl Database {
    /// Opens or creates the database file. Its folder is private to this process (the lock).
    pub(super) fn open(
        path: &Path,
        algorithm: HashAlgorithm,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        // SQLite gives its other files the permissions of this one.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let (conn, store_id) = prepare(path, algorithm, wall_ms())
            .with_context(|| format!("cannot use the database {}", path.display()))?;
        let totals = rows::totals(&conn)?;
        let (newest_tx, newest) = watch::channel(totals.newest_cursor);
        let (damages_tx, damages) =
            watch::channel(Damages { count: totals.damaged_count, ..Damages::default() });
        let announcer =
            Announcer { newest: newest_tx, damages: damages_tx, health: health.clone() };
        let state = State { totals, found_damaged: Vec::new() };
        let database = db::Database::start(conn, path, &SPEC, READERS, announcer, state)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { store_id, database, newest, damages, health })
    }

    /// The newest cursor, as it moves on. Ends when the database is closed or has failed.
    pub(super) fn newest(&self) -> watch::Receiver<Cursor> {
        self.newest.clone()
    }

    /// The damaged assets, as they are found and made whole.
    pub(super) fn damages(&self) -> watch::Receiver<Damages> {
        self.damages.clone()
    }

    /// Does `work` in a transaction of the writer thread and returns when it is durable. An error
    /// of `work` undoes what it did. Blocks.
    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.health.check()?;
        self.database.write(work).map_err(|error| match error {
            // Also when the writer is gone: then it is unknown what was kept.
            StoreError::Disk(reason) => self.health.fail(&reason),
            other => other,
        })
    }

    /// Takes a reading connection out of the pool, waiting until one is there. Blocks.
    pub(super) fn reader(&self) -> Result<Lent, StoreError> {
        self.database.readers().lend().map_err(db_error)
    }

    /// Ends the writer after the jobs it has, and closes the connections. Blocks.
    pub(super) fn close(&self) {
        self.database.close();
    }
}

/// The writer's state: values derived from the tables.
#[derive(Clone)]
pub(super) struct State {
    pub(super) totals: Totals,
    /// Assets found damaged since the last commit.
    pub(super) found_damaged: Vec<Hash>,
}

/// Announces each commit to followers, and stops the writer after a disk failure.
pub(super) struct Announcer {
    newest: watch::Sender<Cursor>,
    damages: watch::Sender<Damages>,
    health: Arc<Health>,
}

impl Owner for Announcer {
    type State = State;
    type Error = StoreError;

    fn error_of(error: DbError) -> StoreError {
        db_error(error)
    }

    /// Writes the totals, see D3.
    fn save(&self, conn: &Connection, before: &State, now: &State) -> Result<(), StoreError> {
        match before.totals == now.totals {
            true => Ok(()),
            false => rows::save_totals(conn, &now.totals),
        }
    }

    fn committed(&mut self, state: &mut State) {
        let found = std::mem::take(&mut state.found_damaged);
        self.damages.send_if_modified(|known| known.set(state.totals.damaged_count, &found));
        let newest = state.totals.newest_cursor;
        self.newest.send_if_modified(|seen| std::mem::replace(seen, newest) != newest);
    }

    fn is_fatal(error: &StoreError) -> bool {
        matches!(error, StoreError::Disk(_))
    }

    /// Stops all writes after a disk failure, see D2.
    fn failed(&mut self, error: &StoreError) -> Next {
        if let StoreError::Disk(reason) = error {
            self.health.fail(reason);
        }
        match self.health.check() {
            Ok(()) => Next::GoOn,
            Err(_) => Next::End,
        }
    }
}

/// Maps an error of the database to one of the store.
fn db_error(error: DbError) -> StoreError {
    match (error.sqlite_code(), &error) {
        (Some(ErrorCode::DiskFull), _) => {
            StoreError::Full("the database cannot grow: free some space on its disk".into())
        }
        (Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked), _) => StoreError::Unreachable(
            "another program holds the store's database: end it, or wait for it".into(),
        ),
        (Some(ErrorCode::OperationInterrupted), _) => {
            StoreError::Unreachable("the query took too long and was stopped".into())
        }
        (_, DbError::Closed) => closed(),
        (_, DbError::NoReader) => StoreError::Unreachable(error.to_string()),
        (_, DbError::Sqlite(_) | DbError::Ended | DbError::Panicked) => {
            StoreError::Disk(format!("the store's database: {error}"))
        }
    }
}

/// Maps an error of SQLite to one of the store.
pub(super) fn sql_error(error: rusqlite::Error) -> StoreError {
    db_error(error.into())
}

pub(super) fn closed() -> StoreError {
    StoreError::Unreachable("the store is closed".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let database = Database::open(&path, HashAlgorithm::Blake3, Arc::default()).unwrap();
        database.write(|txn| sql(txn, "CREATE TABLE numbers (number, filling)")).unwrap();
        (dir, database)
    }

    fn sql(txn: &mut Txn<'_>, statement: &str) -> Result<(), StoreError> {
        txn.conn.execute_batch(statement).map_err(sql_error)
    }

    fn insert(txn: &mut Txn<'_>, number: u64) -> Result<(), StoreError> {
        txn.state.totals.newest_cursor += 1;
        sql(txn, &format!("INSERT INTO numbers VALUES ({number}, NULL)"))
    }

    fn count(database: &Database) -> i64 {
        let reader = database.reader().unwrap();
        reader.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn only_what_is_kept_takes_a_cursor() {
        let (_dir, database) = database();
        database.write(|txn| sql(txn, "PRAGMA max_page_count = 60")).unwrap();
        let refused = database.write(|txn| {
            insert(txn, 1)?;
            Err::<(), _>(StoreError::NotFound(Hash([0; 32])))
        });
        assert!(matches!(refused, Err(StoreError::NotFound(_))), "{refused:?}");
        let too_much = database.write(|txn| {
            insert(txn, 2)?;
            sql(txn, "INSERT INTO numbers VALUES (3, zeroblob(1000000))")
        });
        assert!(matches!(too_much, Err(StoreError::Full(_))), "{too_much:?}");
        database.write(|txn| insert(txn, 4)).unwrap();
        assert_eq!((count(&database), *database.newest().borrow()), (1, 1));
    }

    #[test]
    fn after_a_failed_commit_nothing_is_written_and_reads_go_on() {
        let (_dir, database) = database();
        database.write(|txn| insert(txn, 1)).unwrap();
        // A transaction that is gone before its commit is what a failed disk looks like.
        let lost = database.write(|txn| {
            insert(txn, 2)?;
            sql(txn, "ROLLBACK")
        });
        assert!(matches!(lost, Err(StoreError::Disk(_))), "{lost:?}");
        let later = database.write(|txn| insert(txn, 3));
        assert!(matches!(later, Err(StoreError::Disk(_))), "{later:?}");
        assert_eq!((count(&database), *database.newest().borrow()), (1, 1));
    }

    #[test]
    fn a_closed_database_says_so() {
        let (_dir, database) = database();
        database.close();
        let write = database.write(|txn| insert(txn, 1));
        assert!(matches!(write, Err(StoreError::Unreachable(_))), "{write:?}");
        assert!(matches!(database.reader(), Err(StoreError::Unreachable(_))));
    }
}
