//! A fixed number of reading connections, each lent to one caller at a time.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::open::{Spec, open_reader};
use super::{DbError, Result};

/// The longest wait for a connection. Longer than any query may take, so that only a stuck reader
/// causes the error, not busy ones.
const READER_WAIT: Duration = Duration::from_secs(60);

/// The reading connections; clones share them. `R` is a connection, or a wrapper whose methods are
/// the queries.
#[derive(Debug)]
pub struct Readers<R = Connection>(Arc<Shared<R>>);

#[derive(Debug)]
struct Shared<R> {
    /// The connections that are not lent; `None` once closed.
    idle: Mutex<Option<Vec<R>>>,
    returned: Condvar,
}

/// A lent connection. Dropping it returns it.
#[derive(Debug)]
pub struct Lent<R = Connection> {
    /// `None` only while it is being returned.
    reader: Option<R>,
    readers: Arc<Shared<R>>,
}

impl Readers {
    /// Opens `count` connections to the database at `path`.
    pub fn open(path: &Path, spec: &Spec, count: usize) -> rusqlite::Result<Self> {
        let readers = (0..count).map(|_| open_reader(path, spec)).collect::<rusqlite::Result<_>>();
        Ok(Self::new(readers?))
    }

    /// Reads in one transaction: everything that `read` sees is one snapshot. Blocks.
    pub fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let connection = self.lend()?;
        let snapshot = connection.unchecked_transaction()?;
        let found = read(&snapshot)?;
        snapshot.commit()?;
        Ok(found)
    }
}

impl<R> Readers<R> {
    /// Makes a pool of these connections.
    pub fn new(readers: Vec<R>) -> Self {
        let idle = Mutex::new(Some(readers));
        Self(Arc::new(Shared { idle, returned: Condvar::new() }))
    }

    /// Lends an idle connection. Waits for one, at most [`READER_WAIT`]. Blocks.
    pub fn lend(&self) -> Result<Lent<R>> {
        self.lend_within(READER_WAIT)
    }

    fn lend_within(&self, wait: Duration) -> Result<Lent<R>> {
        let is_none_idle = |idle: &mut Option<Vec<R>>| idle.as_ref().is_some_and(Vec::is_empty);
        let mut idle = self.0.idle.lock();
        self.0.returned.wait_while_for(&mut idle, is_none_idle, wait);
        let reader = idle.as_mut().ok_or(DbError::Closed)?.pop().ok_or(DbError::NoReader)?;
        Ok(Lent { reader: Some(reader), readers: self.0.clone() })
    }

    /// Closes the idle connections now, and the lent ones when they are returned. Later calls fail.
    pub fn close(&self) {
        self.0.idle.lock().take();
        self.0.returned.notify_all();
    }
}

impl<R> Clone for Readers<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R> Deref for Lent<R> {
    type Target = R;

    fn deref(&self) -> &R {
        self.reader.as_ref().expect("taken only by drop")
    }
}

impl<R> Drop for Lent<R> {
    fn drop(&mut self) {
        if let (Some(reader), Some(idle)) = (self.reader.take(), self.readers.idle.lock().as_mut())
        {
            idle.push(reader);
            self.readers.returned.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::db::tests::{fixture, insert};

    #[test]
    fn a_reader_comes_back_also_from_a_panic_and_waiting_for_one_has_an_end() {
        let readers = Readers::new(vec!["the only one"]);
        let lent = readers.lend().unwrap();
        let late = readers.lend_within(Duration::from_millis(1));
        assert!(matches!(late, Err(DbError::NoReader)), "{late:?}");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _lent = lent;
            panic!("in a query");
        }));
        assert!(panicked.is_err());
        assert_eq!(*readers.lend_within(Duration::ZERO).unwrap(), "the only one");
    }

    #[test]
    fn who_waits_for_a_reader_gets_the_next_that_comes_back_or_hears_that_all_are_closed() {
        let readers = Readers::new(vec![1]);
        let lent = readers.lend().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| readers.lend().map(|lent| *lent));
            drop(lent);
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
        });
        let lent = readers.lend().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| readers.lend().map(|lent| *lent));
            readers.close();
            assert!(matches!(waiting.join().unwrap(), Err(DbError::Closed)));
        });
        drop(lent);
        assert!(matches!(readers.lend(), Err(DbError::Closed)));
    }

    #[test]
    fn a_reader_sees_one_moment_and_holds_up_no_write() {
        let fixture = fixture();
        let database = &fixture.database;
        database.write(|txn| insert(txn, 1)).unwrap();
        let counts = database
            .readers()
            .read(|conn| {
                let count = || conn.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0));
                let before: i64 = count()?;
                database.write(|txn| insert(txn, 2)).unwrap();
                Ok((before, count()?))
            })
            .unwrap();
        assert_eq!(counts, (1, 1));
    }
}
