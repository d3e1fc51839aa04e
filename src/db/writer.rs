//! The writer's thread: groups waiting jobs, commits them, and answers.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle, Result as Caught};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::DbError;
use super::open::Spec;

/// The most jobs that wait for the writer; a full queue makes the next caller wait. As many as one
/// commit takes: while one group is committed, the next one forms.
const JOBS_MAX: usize = GROUP_JOBS_MAX;

/// The most jobs in one commit. So many delay the answer to the first by no more than milliseconds.
const GROUP_JOBS_MAX: usize = 64;

/// The owner of a database: the hooks that the writer's thread calls.
pub trait Owner: Send + 'static {
    /// A copy in memory of some content of the tables. Jobs change it together with the tables;
    /// when a job or a commit fails, the earlier state is restored.
    type State: Clone + Send + 'static;
    /// The owner's error of a failed job.
    type Error: Clone + Send + 'static;

    /// Converts an error of the database to the owner's.
    fn error_of(error: DbError) -> Self::Error;

    /// Writes the state to the tables, as the last part of a transaction.
    fn save(
        &self,
        conn: &Connection,
        before: &Self::State,
        now: &Self::State,
    ) -> Result<(), Self::Error> {
        let _ = (conn, before, now);
        Ok(())
    }

    /// Called after a commit, before the jobs of its group are answered.
    fn committed(&mut self, state: &mut Self::State);

    /// Whether this error of one job fails the commit of its whole group.
    fn is_fatal(error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// Called when a commit or a checkpoint failed. Returns whether the writer continues.
    fn failed(&mut self, error: &Self::Error) -> Next {
        let _ = error;
        Next::GoOn
    }
}

/// The owner of a database of which nothing is kept in memory.
pub struct Stateless;

impl Owner for Stateless {
    type State = ();
    type Error = DbError;

    fn error_of(error: DbError) -> DbError {
        error
    }

    fn committed(&mut self, (): &mut ()) {}
}

/// Whether the writer continues after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The writer runs the next jobs.
    GoOn,
    /// The writer ends; every later write fails.
    End,
}

/// A transaction, as a job sees it.
pub struct Txn<'a, O: Owner> {
    /// The writing connection.
    pub conn: &'a Connection,
    /// The owner's state. See [`Owner::State`].
    pub state: O::State,
    /// Set when the transaction as a whole can no longer be committed.
    broken: Option<O::Error>,
}

type Answer<O> = Box<dyn FnOnce(Result<(), <O as Owner>::Error>) + Send>;
type Job<O> = Box<dyn FnOnce(&mut Txn<'_, O>) -> Answer<O> + Send>;

/// A handle to the writer's thread.
pub(super) struct Writer<O: Owner> {
    jobs: Mutex<Option<SyncSender<Job<O>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<O: Owner> Writer<O> {
    pub(super) fn start(
        conn: Connection,
        spec: &Spec,
        owner: O,
        state: O::State,
    ) -> Result<Self, DbError> {
        // The thread runs the checkpoints itself, between groups, so that it sees a failure.
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let (name, checkpoint_pages) = (spec.name, spec.checkpoint_pages);
        let run = move || Run { conn, name, checkpoint_pages, owner, state }.until_closed(&queue);
        let thread = Builder::new().name(format!("{name}-writer")).spawn(run);
        let thread = thread.map_err(|_| DbError::Ended)?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_, O>) -> Result<T, O::Error> + Send + 'static,
    ) -> Result<T, O::Error> {
        let (job, answer) = job(work);
        let jobs = self.jobs.lock().clone().ok_or_else(|| O::error_of(DbError::Closed))?;
        jobs.send(job).map_err(|_| O::error_of(DbError::Ended))?;
        drop(jobs);
        // Every job is answered unless the thread ended.
        match answer.recv().map_err(|_| O::error_of(DbError::Ended))? {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }

    pub(super) fn close(&self) {
        self.jobs.lock().take();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a database's writer thread panicked");
        }
    }
}

/// Where the result of a job will be.
type Reply<O, T> = Receiver<Caught<Result<T, <O as Owner>::Error>>>;

/// Makes a job of `work`, and the receiver of its result.
fn job<O: Owner, T: Send + 'static>(
    work: impl FnOnce(&mut Txn<'_, O>) -> Result<T, O::Error> + Send + 'static,
) -> (Job<O>, Reply<O, T>) {
    let (reply, answer) = sync_channel(1);
    let job: Job<O> = Box::new(move |txn| {
        let done = txn.savepoint(work);
        Box::new(move |committed| {
            // The job is done even if its caller is gone.
            let _ = reply.send(done.map(|result| committed.and(result)));
        })
    });
    (job, answer)
}

impl<O: Owner> Txn<'_, O> {
    /// Runs one job so that its error or panic rolls back only this job. Returns a panic to the
    /// caller.
    fn savepoint<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, O::Error>,
    ) -> Caught<Result<T, O::Error>> {
        if let Some(broken) = &self.broken {
            return Ok(Err(broken.clone()));
        }
        let before = self.state.clone();
        if let Err(error) = batch::<O>(self.conn, "SAVEPOINT job") {
            self.broken = Some(error.clone());
            return Ok(Err(error));
        }
        // Restores the state and the tables, which a panic may have left inconsistent.
        let done: Caught<_> = catch_unwind(AssertUnwindSafe(|| {
            let value = work(self)?;
            batch::<O>(self.conn, "RELEASE job").map(|()| value)
        }));
        if matches!(done, Ok(Ok(_))) {
            return done;
        }
        let fault = done.as_ref().ok().and_then(|result| result.as_ref().err());
        self.state = before;
        // On some errors (disk full, I/O) SQLite rolls back the whole transaction by itself.
        let is_undone = fault.is_none_or(|error| !O::is_fatal(error))
            && !self.conn.is_autocommit()
            && batch::<O>(self.conn, "ROLLBACK TO job; RELEASE job").is_ok();
        if !is_undone {
            self.broken = Some(fault.cloned().unwrap_or_else(|| O::error_of(DbError::Panicked)));
        }
        done
    }
}

fn batch<O: Owner>(conn: &Connection, sql: &str) -> Result<(), O::Error> {
    conn.execute_batch(sql).map_err(|error| O::error_of(error.into()))
}

/// The state of the writer's thread.
struct Run<O: Owner> {
    conn: Connection,
    name: &'static str,
    checkpoint_pages: i64,
    owner: O,
    state: O::State,
}

impl<O: Owner> Run<O> {
    fn until_closed(mut self, queue: &Receiver<Job<O>>) {
        while let Ok(first) = queue.recv() {
            let rest = queue.try_iter().take(GROUP_JOBS_MAX - 1);
            let group: Vec<Job<O>> = std::iter::once(first).chain(rest).collect();
            let (answers, committed) = self.commit(group);
            let next = committed.as_ref().err().map(|error| self.owner.failed(error));
            answers.into_iter().for_each(|answer| answer(committed.clone()));
            if next == Some(Next::End) || self.fold("PASSIVE", self.checkpoint_pages) == Next::End {
                return;
            }
        }
        self.fold("TRUNCATE", 0);
    }

    /// Runs the jobs in one transaction. On an error nothing of any job is kept.
    fn commit(&mut self, group: Vec<Job<O>>) -> (Vec<Answer<O>>, Result<(), O::Error>) {
        let conn = &self.conn;
        let broken = batch::<O>(conn, "BEGIN IMMEDIATE").err();
        let mut txn = Txn { conn, state: self.state.clone(), broken };
        let answers: Vec<Answer<O>> = group.into_iter().map(|job| job(&mut txn)).collect();
        let Txn { state, broken, .. } = txn;
        let committed = broken
            .map_or(Ok(()), Err)
            .and_then(|()| self.owner.save(conn, &self.state, &state))
            .and_then(|()| batch::<O>(conn, "COMMIT"));
        match &committed {
            Ok(()) => {
                self.state = state;
                self.owner.committed(&mut self.state);
            }
            Err(_) if conn.is_autocommit() => {}
            Err(_) => {
                // If the rollback fails too, the next BEGIN fails and reports it.
                let _ = batch::<O>(conn, "ROLLBACK");
            }
        }
        (answers, committed)
    }

    /// Copies the log into the database once it has `pages` pages. Pages that cannot be copied now
    /// stay in the log until after the next group, or until the next start.
    fn fold(&mut self, mode: &str, pages: i64) -> Next {
        let fold = || -> rusqlite::Result<()> {
            // A NOOP checkpoint copies nothing and answers (busy, pages in the log, pages copied).
            let noop = "PRAGMA wal_checkpoint(NOOP)";
            let log_pages: i64 = self.conn.query_row(noop, [], |row| row.get(1))?;
            if log_pages < pages {
                return Ok(());
            }
            self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
        };
        let Err(error) = fold() else { return Next::GoOn };
        tracing::warn!(%error, "the log of the {} is not copied into its database", self.name);
        self.owner.failed(&O::error_of(error.into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::tests::{Fixture, Numbers, fixture, insert, numbers, sql};

    /// Runs jobs as one group: they wait while another one holds the writer.
    fn together<T: Send + 'static>(
        fixture: &Fixture,
        count: u64,
        work: impl Fn(u64, &mut Txn<'_, Numbers>) -> Result<T, DbError> + Clone + Send + 'static,
    ) -> Vec<Caught<Result<T, DbError>>> {
        let (start, started) = sync_channel(1);
        let (release, released) = sync_channel::<()>(1);
        let queue = fixture.database.writer.jobs.lock().clone().unwrap();
        let (holds, held) = job(move |_| {
            start.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        });
        queue.send(holds).unwrap();
        started.recv().unwrap();
        let answers: Vec<_> = (0..count)
            .map(|number| {
                let work = work.clone();
                let (job, answer) = job(move |txn| work(number, txn));
                queue.send(job).unwrap();
                answer
            })
            .collect();
        release.send(()).unwrap();
        held.recv().unwrap().unwrap().unwrap();
        answers.into_iter().map(|answer| answer.recv().unwrap()).collect()
    }

    #[test]
    fn jobs_that_wait_together_are_one_commit() {
        let fixture = fixture();
        let results = together(&fixture, 20, |number, txn| insert(txn, number));
        assert!(results.into_iter().all(|result| result.unwrap().is_ok()));
        assert_eq!(numbers(&fixture.database), (0..20).collect::<Vec<_>>());
        let commits = fixture.told.lock().unwrap().commits;
        assert_eq!(commits, 2, "one of the job that they waited for, and one of them");
    }

    #[test]
    fn a_job_that_fails_or_panics_leaves_the_others_of_its_group_alone() {
        let fixture = fixture();
        let results = together(&fixture, 6, |number, txn| {
            insert(txn, number)?;
            match number % 3 {
                0 => Ok(()),
                1 => Err(DbError::NoReader),
                _ => panic!("a job's fault"),
            }
        });
        for (number, result) in results.into_iter().enumerate() {
            match (number % 3, result) {
                (0, Ok(Ok(()))) | (1, Ok(Err(DbError::NoReader))) | (2, Err(_)) => {}
                (_, other) => panic!("{number}: {other:?}"),
            }
        }
        assert_eq!(numbers(&fixture.database), [0, 3]);
        assert_eq!(fixture.told.lock().unwrap().sum, 3, "the state of those that were kept");
        fixture.database.write(|txn| insert(txn, 7)).expect("the writer goes on");
    }

    #[test]
    fn a_panic_of_a_job_is_one_of_its_caller() {
        let fixture = fixture();
        let caller = std::panic::AssertUnwindSafe(|| {
            fixture.database.write(|_| -> Result<(), DbError> { panic!("a job's fault") })
        });
        let panic = catch_unwind(caller).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"a job's fault"));
    }

    #[test]
    fn a_write_that_does_not_fit_is_refused_whole_and_a_later_one_goes_on() {
        let fixture = fixture();
        let database = &fixture.database;
        database.write(|txn| sql(txn, "PRAGMA max_page_count = 40")).unwrap();
        let too_much = database.write(|txn| {
            insert(txn, 1)?;
            sql(txn, "INSERT INTO numbers VALUES (2, zeroblob(1000000))")
        });
        let code = too_much.unwrap_err().sqlite_code();
        assert_eq!(code, Some(rusqlite::ErrorCode::DiskFull));
        database.write(|txn| insert(txn, 3)).unwrap();
        assert_eq!(numbers(database), [3]);
        assert_eq!(fixture.told.lock().unwrap().sum, 3);
    }

    #[test]
    fn a_commit_that_fails_is_heard_by_all_of_its_group_and_kept_by_none() {
        let fixture = fixture();
        fixture.database.write(|txn| insert(txn, 1)).unwrap();
        // A failed disk too ends a transaction before its commit.
        let results = together(&fixture, 4, |number, txn| {
            insert(txn, number + 10)?;
            if number == 3 { sql(txn, "ROLLBACK") } else { Ok(()) }
        });
        assert!(results.into_iter().all(|result| result.unwrap().is_err()));
        assert_eq!(numbers(&fixture.database), [1]);
        assert_eq!(fixture.told.lock().unwrap().sum, 1);
        fixture.database.write(|txn| insert(txn, 2)).expect("its owner lets it go on");
    }

    #[test]
    fn a_writer_that_its_owner_ends_refuses_and_reads_go_on() {
        let fixture = fixture();
        fixture.database.write(|txn| insert(txn, 1)).unwrap();
        fixture.told.lock().unwrap().ends = true;
        assert!(fixture.database.write(|txn| sql(txn, "ROLLBACK")).is_err());
        let later = fixture.database.write(|txn| insert(txn, 3));
        assert!(matches!(later, Err(DbError::Ended)), "{later:?}");
        assert_eq!(numbers(&fixture.database), [1]);
    }

    #[test]
    fn a_closed_database_is_one_file_refuses_and_does_not_hang() {
        let Fixture { dir, database, .. } = fixture();
        database.write(|txn| insert(txn, 1)).unwrap();
        assert_eq!(numbers(&database), [1]);
        assert!(dir.path().join("numbers.db-wal").exists(), "it was written to");
        database.close();
        let files: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(files, ["numbers.db"]);
        assert!(matches!(database.write(|txn| insert(txn, 1)), Err(DbError::Closed)));
        assert!(matches!(database.readers().lend(), Err(DbError::Closed)));
    }
}
