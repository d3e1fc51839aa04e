//! Access to the journal: one thread writes in groups, and a few connections read.
//!
//! W1  A write is answered, and [`JournalHandle::commits`] changes, only after the commit.
//! W2  Drafts that wait together are committed together, in the order of arrival.
//! W3  A database that failed is not written again: the thread ends with the error, and the agent
//!     has to stop.
//! W4  After an orderly end the main file alone holds the journal.
//!
//! The journal is opened and read like every database (`db/`), but has its own writer. The writer
//! of `db/` rolls back a single job by a savepoint. A transaction of the journal keeps rows, sums
//! and facts in memory until its end, and a savepoint would not restore those. It needs none
//! either: a wrong draft is refused before it changes anything, and each call that is not a draft
//! is a transaction of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::clock::{instant_now, wall_ms};
use crate::core::journal::draft::{Draft, DraftError};
use crate::state::journal::{
    self, Journal, JournalError, JournalReader, News, Readers, Roster, Written,
};

/// The most jobs that wait for the writer; a full queue makes the next caller wait. It holds
/// several groups of drafts.
const JOBS_MAX: usize = 1024;

/// The most drafts in one transaction: enough to share its fsync, few enough to end soon.
const GROUP_DRAFTS_MAX: usize = 256;

/// The reading connections. A read takes milliseconds; each connection has a cache of its own.
const READERS: usize = 4;

/// How long after a write that failed for lack of space the disk counts as full. Refused ops are
/// retried every 30 s.
const FULL_FOR: Duration = Duration::from_secs(60);

/// The result of a draft; `None` when there was nothing to write.
pub type DraftResult = Result<Option<Written>, DraftError>;

/// Why the journal did not carry out a call.
#[derive(Debug, Clone, Error)]
pub enum AskError {
    /// The journal refused or failed.
    #[error(transparent)]
    Journal(Arc<JournalError>),
    /// The agent is stopping, or the journal's database failed.
    #[error("the journal is closed: the agent is stopping")]
    Closed,
}

impl AskError {
    /// Whether nothing was written for lack of space. Everything else still works.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Journal(error) if matches!(**error, JournalError::DiskFull))
    }
}

impl From<JournalError> for AskError {
    fn from(error: JournalError) -> Self {
        Self::Journal(Arc::new(error))
    }
}

/// A handle to the journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct JournalHandle {
    jobs: mpsc::Sender<Job>,
    commits: watch::Receiver<Commits>,
    roster: Roster,
    readers: Readers<JournalReader>,
    /// Admits as many reads as there are readers. Other reads wait here, without a thread each.
    reads: Arc<Semaphore>,
    full: Arc<Full>,
}

/// When the last write failed for lack of space, if none has succeeded since.
#[derive(Debug, Default)]
struct Full(Mutex<Option<Instant>>);

/// Counts the changes of the journal by kind. Compare with an earlier value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Commits {
    /// Commits with anything new to read.
    pub all: u64,
    /// Commits with ops of this device.
    pub own: u64,
    /// Commits with facts about members.
    pub members: u64,
}

/// The writer before its thread runs.
#[derive(Debug)]
pub struct JournalWriter {
    journal: Journal,
    jobs: mpsc::Receiver<Job>,
    commits: watch::Sender<Commits>,
    full: Arc<Full>,
}

type Task = Box<dyn FnOnce(&mut Journal, u64) -> Fate + Send>;

enum Job {
    Write(Draft, oneshot::Sender<Result<DraftResult, AskError>>),
    Run(Task),
    Stop,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write(..) => "Write",
            Self::Run(_) => "Run",
            Self::Stop => "Stop",
        })
    }
}

/// Whether the database can still be written after a job.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Committed,
    Refused,
    /// There was no space. Nothing was written.
    Full,
    /// The database failed; what failed, for the log.
    Failed(String),
}

/// Splits a journal into its handle and the writer that serves it.
///
/// # Errors
/// A reading connection cannot be opened.
pub fn share(journal: Journal) -> journal::Result<(JournalHandle, JournalWriter)> {
    let readers = journal.readers(READERS)?;
    let reads = Arc::new(Semaphore::new(READERS));
    let (sender, jobs) = mpsc::channel(JOBS_MAX);
    let (commits, watched) = watch::channel(Commits::default());
    let roster = journal.roster();
    let full = Arc::<Full>::default();
    let full_since = full.clone();
    let handle =
        JournalHandle { jobs: sender, commits: watched, roster, readers, reads, full: full_since };
    Ok((handle, JournalWriter { journal, jobs, commits, full }))
}

impl JournalHandle {
    /// Writes one op, or returns why not; durable on return. `None`: there was nothing to write.
    ///
    /// # Cancel safety
    /// A dropped call may still write the draft.
    ///
    /// # Errors
    /// The journal cannot write anything now; a draft that is wrong is in the `Ok`.
    pub async fn write(&self, draft: Draft) -> Result<DraftResult, AskError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Write(draft, reply)).await.map_err(|_| AskError::Closed)?;
        answer.await.map_err(|_| AskError::Closed)?
    }

    /// Runs `work` on the writer's thread with the wall clock's milliseconds.
    ///
    /// # Cancel safety
    /// A dropped call may still do the work.
    ///
    /// # Errors
    /// The error of `work`, or the journal is closed.
    pub async fn run<T, F>(&self, work: F) -> Result<T, AskError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Journal, u64) -> journal::Result<T> + Send + 'static,
    {
        let (job, answer) = task(work);
        self.jobs.send(job).await.map_err(|_| AskError::Closed)?;
        answer.await.map_err(|_| AskError::Closed)?
    }

    /// Reads the committed journal.
    ///
    /// # Cancel safety
    /// Safe; a read that has started runs to its end.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn read<T, F>(&self, read: F) -> Result<T, AskError>
    where
        T: Send + 'static,
        F: FnOnce(&JournalReader) -> journal::Result<T> + Send + 'static,
    {
        let readers = self.readers.clone();
        // The semaphore is never closed.
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| AskError::Closed)?;
        let result = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let reader = readers.lend().map_err(|_| AskError::Closed)?;
            Ok(read(&reader)?)
        })
        .await;
        result.map_err(|_| AskError::Closed)?
    }

    /// Checks the journal's consistency and all signatures. Returns its findings, none for a sound
    /// journal. Uses its own connection, so that neither writers nor readers wait, however large
    /// the journal is.
    ///
    /// # Cancel safety
    /// Safe; a check that has started runs to its end.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn fsck(&self) -> Result<Vec<String>, AskError> {
        let reader = self.read(JournalReader::another).await?;
        let check = move || {
            let mut findings = reader.fsck()?;
            findings.extend(reader.check_signatures()?);
            Ok::<_, JournalError>(findings)
        };
        // A task fails only by a panic, or because the process ends.
        Ok(tokio::task::spawn_blocking(check).await.map_err(|_| AskError::Closed)??)
    }

    /// Changes with every commit that changed something, local or received.
    pub fn commits(&self) -> watch::Receiver<Commits> {
        self.commits.clone()
    }

    /// The roster, which every new connection is checked against.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Whether a write failed for lack of space in the last [`FULL_FOR`]. Everything that waits for
    /// space retries more often than that.
    pub fn is_full(&self) -> bool {
        let failed = *self.full.0.lock();
        failed.is_some_and(|at| instant_now().duration_since(at) < FULL_FOR)
    }

    /// Ends the writer after the jobs that are queued.
    pub async fn close(&self) {
        // A writer that has ended needs no job.
        let _ = self.jobs.send(Job::Stop).await;
    }
}

/// Makes a job of `work`, and the receiver of its result.
fn task<T, F>(work: F) -> (Job, oneshot::Receiver<Result<T, AskError>>)
where
    T: Send + 'static,
    F: FnOnce(&mut Journal, u64) -> journal::Result<T> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let job = Job::Run(Box::new(move |journal, now_ms| {
        let result = work(journal, now_ms);
        let fate = Fate::of(&result);
        // The job is done even if its caller is gone.
        let _ = reply.send(result.map_err(AskError::from));
        fate
    }));
    (job, answer)
}

impl Fate {
    fn of<T>(result: &journal::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Committed,
            Err(JournalError::Database(error) | JournalError::Corrupt(error)) => {
                Self::Failed(error.to_string())
            }
            Err(JournalError::DiskFull) => Self::Full,
            Err(_) => Self::Refused,
        }
    }
}

impl JournalWriter {
    /// Serves the handles until [`JournalHandle::close`], or until all handles are dropped. Blocks.
    ///
    /// # Errors
    /// The database failed; the agent must stop.
    pub fn serve(mut self) -> Result<(), AskError> {
        let mut next = None;
        loop {
            let Some(job) = next.take().or_else(|| self.jobs.blocking_recv()) else {
                return self.end();
            };
            let fate = match job {
                Job::Write(draft, reply) => {
                    let mut group = vec![(draft, reply)];
                    while group.len() < GROUP_DRAFTS_MAX {
                        match self.jobs.try_recv() {
                            Ok(Job::Write(draft, reply)) => group.push((draft, reply)),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.write(group)
                }
                Job::Run(work) => work(&mut self.journal, wall_ms()),
                Job::Stop => return self.end(),
            };
            if fate != Fate::Refused {
                let mut full = self.full.0.lock();
                *full = (fate == Fate::Full).then(instant_now);
            }
            match fate {
                Fate::Committed | Fate::Refused | Fate::Full => self.tell(),
                Fate::Failed(why) => return Err(JournalError::Stopped(why).into()),
            }
        }
    }

    fn end(self) -> Result<(), AskError> {
        Ok(self.journal.close()?)
    }

    fn tell(&mut self) {
        let news = self.journal.take_news();
        if news != News::default() {
            self.commits.send_modify(|commits| {
                commits.all += 1;
                commits.own += u64::from(news.own);
                commits.members += u64::from(news.members);
            });
        }
    }

    fn write(
        &mut self,
        group: Vec<(Draft, oneshot::Sender<Result<DraftResult, AskError>>)>,
    ) -> Fate {
        let (drafts, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let result = self.journal.write(&drafts, wall_ms());
        let fate = Fate::of(&result);
        match result {
            Ok(results) => {
                for (reply, result) in replies.into_iter().zip(results) {
                    // The draft is written even if its caller is gone.
                    let _ = reply.send(Ok(result));
                }
            }
            Err(error) => {
                let error = AskError::from(error);
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
        fate
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rusqlite::ffi;

    use super::*;
    use crate::state::identity::Identity;

    #[tokio::test]
    async fn the_writer_goes_on_when_it_was_locked_out_and_ends_when_its_database_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::from_bytes(&[1; 32]);
        let path = dir.path().join("journal.db");
        let (handle, writer) = share(Journal::open(&path, &identity, [1; 32]).unwrap()).unwrap();
        let writer = std::thread::spawn(move || writer.serve());
        let locked = handle.run(|_, _| journal::Result::<()>::Err(JournalError::Busy)).await;
        assert!(matches!(locked, Err(AskError::Journal(_))));
        handle.run(|journal, now_ms| journal.found("one", now_ms)).await.unwrap();
        let damage = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None);
        let damaged = handle.run(|_, _| journal::Result::<()>::Err(damage.into())).await;
        assert!(matches!(damaged, Err(AskError::Journal(_))));
        drop(handle);
        assert!(writer.join().unwrap().is_err(), "what is damaged is not written to");
    }
}
