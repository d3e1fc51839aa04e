//! The database: who may touch it, and when a write is answered.
//!
//! One thread owns the only writing connection. Jobs that wait together are done in one
//! transaction, each in its own savepoint, so that a bad one leaves the others alone; each is
//! answered after the commit has reached the disk (group commit). Readers are a fixed pool.
//!
//! D1  Nothing is answered or announced before its commit is durable (WAL, `synchronous=FULL`).
//! D2  A commit that fails on the disk is not retried: what the kernel still holds of it is not
//!     known (fsyncgate). The store then takes no more writes; a restart recovers.
//! D3  The totals of a store (newest cursor, count, bytes) change in the transaction that earns it.
//! D4  Closed in order it leaves one file: no log beside it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags};
use tokio::sync::watch;

use super::Health;
use super::rows::{self, Totals};
use super::schema::prepare;
use crate::clock::wall_ms;
use crate::core::ids::{Hash, HashAlgorithm, StoreId};
use crate::store::{Cursor, Damages, StoreError};

/// Reading connections: enough to keep two cores and one disk busy.
pub(super) const READERS: usize = 4;

/// Jobs that may wait for the writer. Callers wait in [`super`] before they come here; this is
/// only the bound behind that bound.
const JOBS_MAX: usize = 64;

/// Jobs in one commit: what they add to the wait of the first stays in the milliseconds.
const GROUP_JOBS_MAX: usize = 64;

/// The log is copied into the database when it has grown by this much: seldom enough to be cheap,
/// often enough that opening after a crash has little to read.
const CHECKPOINT_PAGES: i64 = 4096;

/// How long to wait for another program (a backup, a person with a SQL shell) to let go.
const BUSY_WAIT: Duration = Duration::from_secs(10);

/// One transaction of the writer, as a job sees it.
pub(super) struct Txn<'a> {
    pub(super) conn: &'a Connection,
    pub(super) totals: Totals,
    /// Assets found damaged.
    pub(super) found_damaged: Vec<Hash>,
    /// Set when the transaction as a whole cannot be committed any more.
    broken: Option<StoreError>,
}

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(&mut Txn<'_>) -> Answer + Send>;

/// The open database. Closing it (or dropping it) ends the writer after the jobs it has.
pub(super) struct Database {
    pub(super) store_id: StoreId,
    jobs: Mutex<Option<SyncSender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: Arc<Readers>,
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
        let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let store_id = prepare(&mut conn, path, algorithm, wall_ms())
            .with_context(|| format!("cannot use the database {}", path.display()))?;
        let totals = rows::totals(&conn)?;

        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let reader = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            reader.execute_batch("PRAGMA cache_size = -2000;")?;
            readers.push(reader);
        }

        let (jobs, queue) = sync_channel(JOBS_MAX);
        let (newest_tx, newest) = watch::channel(totals.newest_cursor);
        let (damages_tx, damages) =
            watch::channel(Damages { count: totals.damaged_count, ..Damages::default() });
        let told = Told { newest: newest_tx, damages: damages_tx };
        let writer_health = health.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_jobs(&conn, &queue, totals, &told, &writer_health))
            .context("cannot start the store's writer thread")?;
        Ok(Self {
            store_id,
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(writer)),
            readers: Arc::new(Readers {
                idle: Mutex::new(Some(readers)),
                returned: Condvar::new(),
            }),
            newest,
            damages,
            health,
        })
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
        let (reply, answer) = sync_channel(1);
        let job: Job = Box::new(move |txn| {
            let result = savepoint(txn, work);
            Box::new(move |committed| {
                // The receiver below outlives the job; there is nothing to do if it did not.
                let _ = reply.send(committed.and(result));
            })
        });
        let jobs = lock(&self.jobs).clone().ok_or_else(closed)?;
        // Every job is answered, unless the writer failed: then it is not known what was kept.
        let lost = || self.health.fail("the writer thread ended");
        jobs.send(job).map_err(|_| lost())?;
        drop(jobs);
        answer.recv().map_err(|_| lost())?
    }

    /// Takes a reading connection out of the pool, waiting until one is there. Blocks.
    pub(super) fn reader(&self) -> Result<Reader, StoreError> {
        let mut idle = lock(&self.readers.idle);
        loop {
            if let Some(conn) = idle.as_mut().ok_or_else(closed)?.pop() {
                let pool = self.readers.clone();
                return Ok(Reader { conn: Some(conn), pool });
            }
            let waited = self.readers.returned.wait(idle);
            idle = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the writer after the jobs it has, and closes the connections. Blocks.
    pub(super) fn close(&self) {
        // First: the last connection to go folds the log in and removes it, which a reader cannot.
        lock(&self.readers.idle).take();
        self.readers.returned.notify_all();
        lock(&self.jobs).take();
        let writer = lock(&self.writer).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.close();
    }
}

/// The reading connections nobody uses just now; `None` once closed.
struct Readers {
    idle: Mutex<Option<Vec<Connection>>>,
    returned: Condvar,
}

/// A connection on loan from the pool.
pub(super) struct Reader {
    conn: Option<Connection>,
    pool: Arc<Readers>,
}

impl Reader {
    /// The connection.
    pub(super) fn conn(&self) -> &Connection {
        self.conn.as_ref().expect("taken only by drop")
    }

    /// Stops what the connection is doing, from another thread.
    pub(super) fn interrupt_handle(&self) -> InterruptHandle {
        self.conn().get_interrupt_handle()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let (Some(conn), Some(idle)) = (self.conn.take(), lock(&self.pool.idle).as_mut()) {
            idle.push(conn);
            self.pool.returned.notify_one();
        }
    }
}

/// What an error of SQLite means to a caller.
pub(super) fn sql_error(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            StoreError::Full("the database cannot grow: free some space on its disk".into())
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Unreachable(
            "another program holds the store's database: end it, or wait for it".into(),
        ),
        Some(ErrorCode::OperationInterrupted) => {
            StoreError::Unreachable("the query took too long and was stopped".into())
        }
        _ => StoreError::Disk(format!("the store's database: {error}")),
    }
}

pub(super) fn closed() -> StoreError {
    StoreError::Unreachable("the store is closed".into())
}

/// A lock on state that a panic elsewhere cannot leave half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(path: &Path, access: OpenFlags) -> anyhow::Result<Connection> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_WAIT)?;
        conn.set_prepared_statement_cache_capacity(64);
        Ok(conn)
    };
    open().map_err(|error: rusqlite::Error| {
        anyhow::Error::new(error).context(format!("cannot open {}", path.display()))
    })
}

/// What the writer tells of after each commit.
struct Told {
    newest: watch::Sender<Cursor>,
    damages: watch::Sender<Damages>,
}

/// The writer thread: groups, commits, answers.
fn write_jobs(
    conn: &Connection,
    queue: &Receiver<Job>,
    mut totals: Totals,
    told: &Told,
    health: &Health,
) {
    while let Ok(first) = queue.recv() {
        let rest = queue.try_iter().take(GROUP_JOBS_MAX - 1);
        let group: Vec<Job> = std::iter::once(first).chain(rest).collect();
        let (answers, committed) = commit(conn, group, &mut totals, &told.damages);
        if let Err(StoreError::Disk(reason)) = &committed {
            health.fail(reason);
        }
        told.newest.send_if_modified(|seen| std::mem::replace(seen, totals.newest_cursor) != *seen);
        for answer in answers {
            answer(committed.clone());
        }
        if health.check().is_err() {
            return;
        }
        match checkpoint(conn, "PASSIVE", CHECKPOINT_PAGES).map_err(sql_error) {
            Ok(()) => {}
            Err(StoreError::Disk(reason)) => {
                health.fail(&format!("a checkpoint failed: {reason}"));
                return;
            }
            // The log keeps what could not be copied; the next group tries again.
            Err(error) => tracing::warn!(%error, "the store's log grows"),
        }
    }
    if let Err(error) = checkpoint(conn, "TRUNCATE", 0) {
        tracing::warn!(%error, "the store's log could not be folded in; the next start does it");
    }
}

/// Does the jobs in one transaction. On an error nothing of any of them is kept.
fn commit(
    conn: &Connection,
    group: Vec<Job>,
    totals: &mut Totals,
    damages: &watch::Sender<Damages>,
) -> (Vec<Answer>, Result<(), StoreError>) {
    let mut txn = Txn {
        conn,
        totals: *totals,
        found_damaged: Vec::new(),
        broken: conn.execute_batch("BEGIN IMMEDIATE").err().map(sql_error),
    };
    let answers: Vec<Answer> = group.into_iter().map(|job| job(&mut txn)).collect();
    let Txn { totals: earned, found_damaged, broken, .. } = txn;
    let committed = broken.map_or(Ok(()), Err).and_then(|()| {
        if earned != *totals {
            rows::save_totals(conn, &earned)?;
        }
        conn.execute_batch("COMMIT").map_err(sql_error)
    });
    match &committed {
        Ok(()) => {
            *totals = earned;
            damages.send_if_modified(|known| known.set(earned.damaged_count, &found_damaged));
        }
        Err(_) if conn.is_autocommit() => {}
        Err(_) => {
            // Nothing more can be done about a rollback that fails: the next BEGIN tells.
            let _ = conn.execute_batch("ROLLBACK");
        }
    }
    (answers, committed)
}

/// Does one job so that its error undoes it alone.
fn savepoint<T>(
    txn: &mut Txn<'_>,
    work: impl FnOnce(&mut Txn<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    if let Some(broken) = &txn.broken {
        return Err(broken.clone());
    }
    let before = (txn.totals, txn.found_damaged.len());
    let batch = |txn: &Txn<'_>, sql| txn.conn.execute_batch(sql).map_err(sql_error);
    let result = batch(txn, "SAVEPOINT job")
        .and_then(|()| work(txn))
        .and_then(|value| batch(txn, "RELEASE job").map(|()| value));
    let Err(error) = &result else {
        return result;
    };
    txn.totals = before.0;
    txn.found_damaged.truncate(before.1);
    // SQLite undoes the whole transaction by itself on some errors (disk full, I/O).
    if matches!(error, StoreError::Disk(_))
        || txn.conn.is_autocommit()
        || batch(txn, "ROLLBACK TO job; RELEASE job").is_err()
    {
        txn.broken = Some(error.clone());
    }
    result
}

/// Copies the log into the database once it has `pages` pages.
fn checkpoint(conn: &Connection, mode: &str, pages: i64) -> rusqlite::Result<()> {
    let log: i64 = wal_pages(conn)?;
    if log < pages {
        return Ok(());
    }
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
}

/// Pages in the log.
fn wal_pages(conn: &Connection) -> rusqlite::Result<i64> {
    // A NOOP checkpoint copies nothing and answers (busy, pages in the log, pages copied).
    conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let database = Database::open(&path, HashAlgorithm::Blake3, Arc::default()).unwrap();
        database
            .write(|txn| sql(txn, "CREATE TABLE numbers (number INTEGER, filling BLOB)"))
            .unwrap();
        (dir, database)
    }

    fn sql(txn: &mut Txn<'_>, statement: &str) -> Result<(), StoreError> {
        txn.conn.execute_batch(statement).map_err(sql_error)
    }

    fn insert(txn: &mut Txn<'_>, number: u64) -> Result<(), StoreError> {
        txn.totals.newest_cursor += 1;
        sql(txn, &format!("INSERT INTO numbers VALUES ({number}, NULL)"))
    }

    fn numbers(database: &Database) -> Vec<u64> {
        let reader = database.reader().unwrap();
        let mut select = reader.conn().prepare("SELECT number FROM numbers ORDER BY 1").unwrap();
        let rows = select.query_map([], |row| row.get::<_, i64>(0)).unwrap();
        rows.map(|row| row.unwrap().unsigned_abs()).collect()
    }

    #[test]
    fn a_job_that_fails_leaves_the_others_of_its_group_alone() {
        let (_dir, database) = database();
        let full = Barrier::new(2);
        let full: &'static Barrier = Box::leak(Box::new(full));
        std::thread::scope(|scope| {
            // Holds the writer until the others wait behind it.
            scope.spawn(|| {
                database.write(move |_| {
                    full.wait();
                    Ok(())
                })
            });
            let jobs: Vec<_> = (0..6)
                .map(|number| {
                    let database = &database;
                    scope.spawn(move || {
                        database.write(move |txn| {
                            insert(txn, number)?;
                            match number % 2 {
                                0 => Ok(()),
                                _ => Err(StoreError::NotFound(crate::core::ids::Hash([0; 32]))),
                            }
                        })
                    })
                })
                .collect();
            full.wait();
            for (number, job) in jobs.into_iter().enumerate() {
                assert_eq!(job.join().unwrap().is_ok(), number % 2 == 0);
            }
        });
        assert_eq!(numbers(&database), [0, 2, 4]);
        // Only those that were kept took a cursor.
        assert_eq!(*database.newest().borrow(), 3);
    }

    #[test]
    fn a_write_that_does_not_fit_is_refused_whole_and_a_later_one_goes_on() {
        let (_dir, database) = database();
        database.write(|txn| sql(txn, "PRAGMA max_page_count = 40")).unwrap();
        let too_much = database.write(|txn| {
            insert(txn, 1)?;
            sql(txn, "INSERT INTO numbers VALUES (2, zeroblob(1000000))")
        });
        assert!(matches!(too_much, Err(StoreError::Full(_))), "{too_much:?}");
        database.write(|txn| insert(txn, 3)).unwrap();
        assert_eq!(numbers(&database), [3]);
        assert_eq!(*database.newest().borrow(), 1);
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
        assert_eq!(numbers(&database), [1]);
        assert_eq!(*database.newest().borrow(), 1);
    }

    #[test]
    fn a_closed_database_is_one_file_refuses_and_does_not_hang() {
        let (dir, database) = database();
        database.write(|txn| insert(txn, 1)).unwrap();
        database.reader().unwrap().conn().execute_batch("SELECT * FROM numbers").unwrap();
        assert!(dir.path().join("store.db-wal").exists(), "it was written to");
        database.close();
        let files: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(files, ["store.db"]);
        let write = database.write(|txn| insert(txn, 1));
        assert!(matches!(write, Err(StoreError::Unreachable(_))));
        assert!(database.reader().is_err());
    }
}
