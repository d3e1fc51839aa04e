//! The access to one SQLite file of can-sync: opening it ([`open()`]), writing
//! ([`Database::write`]), reading ([`Readers`]), and upgrading its schema ([`migrate`]). Its owner
//! defines the tables.
//!
//! One thread has the only writing connection. Jobs that wait together run in one transaction, each
//! in its own savepoint, and each is answered after the commit (group commit).
//!
//! S1  Nothing is answered or announced before its commit.
//! S2  A job that fails or panics is rolled back alone; its caller receives the error or the panic.
//! S3  An owner's state in memory changes together with its tables ([`Owner::State`]).
//! S4  A closed database is one file, without a write-ahead log beside it.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};
use thiserror::Error;

pub mod migrate;
mod open;
mod readers;
mod rows;
mod writer;

pub use open::{Spec, open, open_reader};
pub use readers::{Lent, Readers};
pub use rows::{int, row_u64};
pub use writer::{Next, Owner, Stateless, Txn};

/// Why a call to a database failed.
#[derive(Debug, Clone, Error)]
pub enum DbError {
    /// SQLite refused or failed.
    #[error("{0}")]
    Sqlite(Arc<rusqlite::Error>),
    /// The database was closed before the call.
    #[error("the database is closed")]
    Closed,
    /// The writer's thread ended: it is unknown whether it wrote.
    #[error("the writer of the database ended")]
    Ended,
    /// Every reading connection was in use for too long.
    #[error("all readers of the database are busy: try again")]
    NoReader,
    /// A job panicked, and its writes could not be rolled back alone.
    #[error("a write to the database panicked")]
    Panicked,
}

/// The result of a call to a database.
pub type Result<T> = std::result::Result<T, DbError>;

impl DbError {
    /// SQLite's code of the error, if it is an error of SQLite.
    pub fn sqlite_code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code(),
            _ => None,
        }
    }

    /// Whether nothing was written because the disk is full.
    pub fn is_disk_full(&self) -> bool {
        self.sqlite_code() == Some(ErrorCode::DiskFull)
    }
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(error))
    }
}

/// A database with its writer and its readers. Dropping it closes it.
pub struct Database<O: Owner> {
    writer: writer::Writer<O>,
    readers: Readers,
}

impl<O: Owner> Database<O> {
    /// Starts the writer's thread on `connection`, which [`open()`] opened for the file at `path`,
    /// and opens `readers` reading connections. `state` is the owner's state as read from the
    /// tables.
    pub fn start(
        connection: Connection,
        path: &Path,
        spec: &Spec,
        readers: usize,
        owner: O,
        state: O::State,
    ) -> Result<Self> {
        let readers = Readers::open(path, spec, readers)?;
        Ok(Self { writer: writer::Writer::start(connection, spec, owner, state)?, readers })
    }

    /// Runs `work` in a transaction on the writer's thread and returns after the commit. If `work`
    /// fails, its writes are rolled back. Blocks.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_, O>) -> std::result::Result<T, O::Error> + Send + 'static,
    ) -> std::result::Result<T, O::Error> {
        self.writer.write(work)
    }

    /// The reading connections.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Ends the writer after the queued jobs, and closes all connections. Blocks.
    pub fn close(&self) {
        // Readers first: the last connection to close copies the log into the database and removes
        // it, which a reading connection cannot do.
        self.readers.close();
        self.writer.close();
    }
}

impl<O: Owner> Drop for Database<O> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<O: Owner> std::fmt::Debug for Database<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    pub(super) const NUMBERS: Spec = Spec {
        name: "numbers",
        application_id: 0,
        writer_cache_kib: 1000,
        reader_cache_kib: 1000,
        statements: 16,
        checkpoint_pages: 1000,
        log_bytes_kept: None,
        has_incremental_vacuum: false,
    };

    /// The state of a test's owner: the sum of a table of numbers, and the number of commits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct Told {
        pub(super) commits: u64,
        pub(super) sum: u64,
        pub(super) ends: bool,
    }

    pub(super) struct Numbers(Arc<Mutex<Told>>);

    impl Owner for Numbers {
        type State = u64;
        type Error = DbError;

        fn error_of(error: DbError) -> DbError {
            error
        }

        fn committed(&mut self, state: &mut u64) {
            let mut told = self.0.lock().unwrap();
            told.commits += 1;
            told.sum = *state;
        }

        fn failed(&mut self, _: &DbError) -> Next {
            if self.0.lock().unwrap().ends { Next::End } else { Next::GoOn }
        }
    }

    pub(super) struct Fixture {
        pub(super) dir: tempfile::TempDir,
        pub(super) database: Database<Numbers>,
        pub(super) told: Arc<Mutex<Told>>,
    }

    pub(super) fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers.db");
        let (connection, outcome) = open(&path, &NUMBERS, &[], 0).unwrap();
        assert_eq!(outcome, migrate::Outcome::Empty);
        connection
            .execute_batch(
                "CREATE TABLE numbers (number INTEGER, filling BLOB); PRAGMA user_version = 1",
            )
            .unwrap();
        let told = Arc::<Mutex<Told>>::default();
        let owner = Numbers(told.clone());
        let database = Database::start(connection, &path, &NUMBERS, 2, owner, 0).unwrap();
        Fixture { dir, database, told }
    }

    pub(super) fn sql(txn: &mut Txn<'_, Numbers>, statement: &str) -> Result<()> {
        Ok(txn.conn.execute_batch(statement)?)
    }

    pub(super) fn insert(txn: &mut Txn<'_, Numbers>, number: u64) -> Result<()> {
        txn.state += number;
        sql(txn, &format!("INSERT INTO numbers VALUES ({number}, NULL)"))
    }

    pub(super) fn numbers(database: &Database<Numbers>) -> Vec<u64> {
        let read = |conn: &Connection| {
            conn.prepare("SELECT number FROM numbers ORDER BY 1")?
                .query_map([], |row| row_u64(row, 0))?
                .collect()
        };
        database.readers().read(read).unwrap()
    }
}
