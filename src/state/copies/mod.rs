//! `copies.db`: what this device decided about copies: which assets it wants, which it is evicting or
//! has evicted, which leases it gave, and which wishes to forget it follows.
//!
//! What other devices hold is in the index instead: it is kept as a difference from the index's own
//! rows, and must go back in time together with them when a power cut or a backup takes them back.
//!
//! C1  Every change is durable when its call returns: what is wanted is written before anything
//!     acts on it.
//! C2  A file that is lost means: this device wants everything, and evicted nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use crate::clock::wall_ms;
use crate::core::expression::Expression;
use crate::core::want::Want;
use crate::db::migrate::{Outcome, Step, newest};
use crate::db::{self, Database, Spec, Stateless, Txn};
use crate::state::home::private_database_file;

mod expiry;
mod leases;
mod wishes;

pub use expiry::Expiring;

/// The reading connections: one for the API, one for the task that acts on the contents.
const READERS: usize = 2;

/// The page cache of each connection.
const CACHE_KIB: i64 = 2 * 1024;

/// The migration to each version from the one before it.
const STEPS: [Step; 1] = [
    // 2: since when nothing holds a content any more.
    |tx| Ok(expiry::create(tx, wall_ms())?),
];

const SPEC: Spec = Spec {
    name: "copies",
    application_id: 0x6373_6370,
    writer_cache_kib: CACHE_KIB,
    reader_cache_kib: CACHE_KIB,
    statements: 32,
    checkpoint_pages: 1024,
    log_bytes_kept: Some(4 << 20),
    has_incremental_vacuum: false,
};

/// The row of `want` is missing while everything is wanted.
const SCHEMA: &str = "
CREATE TABLE want (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    expression TEXT NOT NULL
) STRICT;
";

/// The open database. Clones share it. Every call blocks.
#[derive(Debug, Clone)]
pub struct Copies {
    database: Arc<Database<Stateless>>,
    /// See [`Copies::lets_go`].
    lets_go: Arc<AtomicBool>,
}

impl Copies {
    /// Opens the database at `path`, or makes it.
    ///
    /// # Errors
    /// The file is unusable; it is unchanged.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            private_database_file(path)?;
            let (mut connection, outcome) = db::open(path, &SPEC, &STEPS, wall_ms())?;
            if outcome == Outcome::Empty {
                let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                tx.execute_batch(SCHEMA)?;
                tx.execute_batch(leases::SCHEMA)?;
                tx.execute_batch(wishes::SCHEMA)?;
                expiry::create(&tx, wall_ms())?;
                tx.pragma_update(None, "application_id", SPEC.application_id)?;
                tx.pragma_update(None, "user_version", newest(&STEPS))?;
                tx.commit()?;
            }
            let lets_go = connection.prepare("SELECT 1 FROM let_go")?.exists([])?;
            let database = Database::start(connection, path, &SPEC, READERS, Stateless, ())?;
            let lets_go = Arc::new(AtomicBool::new(lets_go));
            anyhow::Ok(Self { database: Arc::new(database), lets_go })
        };
        open().with_context(|| format!("opening {}", path.display()))
    }

    /// Closes it.
    pub fn close(&self) {
        self.database.close();
    }

    /// What this device wants.
    ///
    /// # Errors
    /// The database cannot be read, or holds an expression of a later version: this version must not
    /// guess what was meant.
    pub fn want(&self) -> Result<Want> {
        let text = self.read(|connection| {
            let query = "SELECT expression FROM want";
            connection.query_row(query, [], |row| row.get::<_, String>(0)).optional()
        })?;
        let parse = |text: String| {
            Expression::parse(&text).with_context(|| format!("reading what is wanted here: {text}"))
        };
        Ok(Want { expression: text.map(parse).transpose()? })
    }

    /// Sets what this device wants.
    ///
    /// # Errors
    /// The database cannot be written; what was wanted before is still wanted.
    pub fn set_want(&self, want: &Want) -> db::Result<()> {
        let text = want.expression.as_ref().map(ToString::to_string);
        self.write(move |tx| {
            tx.conn.execute("DELETE FROM want", [])?;
            if let Some(text) = text {
                tx.conn.execute("INSERT INTO want (one, expression) VALUES (1, ?1)", [text])?;
            }
            Ok(())
        })
    }

    /// Whether this device may have let go of an asset: false only if it has not.
    pub fn lets_go(&self) -> bool {
        self.lets_go.load(Ordering::Relaxed)
    }

    fn note_letting_go(&self) {
        self.lets_go.store(true, Ordering::Relaxed);
    }

    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_, Stateless>) -> db::Result<T> + Send + 'static,
    ) -> db::Result<T> {
        self.database.write(work)
    }

    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> db::Result<T> {
        self.database.readers().read(read)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::core::ids::Hash;

    #[test]
    fn what_is_wanted_is_there_again_after_the_database_was_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copies.db");
        let copies = Copies::open(&path).unwrap();
        assert!(copies.want().unwrap().is_all(), "a new database wants everything");
        let expression = Expression::parse("type=image/* and age<365d").unwrap();
        let want = Want { expression: Some(expression) };
        copies.set_want(&want).unwrap();
        copies.close();
        let copies = Copies::open(&path).unwrap();
        assert_eq!(copies.want().unwrap(), want);
        copies.set_want(&Want::default()).unwrap();
        assert!(copies.want().unwrap().is_all());
    }

    /// The tables with their columns.
    fn columns(copies: &Copies) -> Vec<(String, String)> {
        let select = "SELECT m.name, coalesce(c.name, '') FROM sqlite_schema AS m
                      LEFT JOIN pragma_table_info(m.name) AS c ORDER BY 1, 2";
        let read = |connection: &Connection| {
            let mut query = connection.prepare(select)?;
            query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        copies.read(read).unwrap()
    }

    #[test]
    fn a_database_of_version_1_is_stepped_forward_and_copied_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copies.db");
        let copies = Copies::open(&path).unwrap();
        let new = columns(&copies);
        copies.set_want(&Want { expression: Some(Expression::parse("size>1G").unwrap()) }).unwrap();
        copies.begin_evictions(vec![Hash([1; 32])], 0, 5).unwrap();
        copies.close();
        let old = Connection::open(&path).unwrap();
        old.execute_batch("DROP TABLE expiring; DROP TABLE tells_since; PRAGMA user_version = 1;")
            .unwrap();
        drop(old);
        let before_ms = wall_ms();
        let copies = Copies::open(&path).unwrap();
        assert_eq!(columns(&copies), new);
        assert_eq!(copies.want().unwrap().expression.unwrap().to_string(), "size>1G");
        assert_eq!(copies.intents().unwrap(), [Hash([1; 32])]);
        assert!(copies.tells_since_ms().unwrap() >= before_ms, "what is older tells nothing");
        copies.close();
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let copies: Vec<_> =
            names.filter(|name| name.to_string_lossy().starts_with("copies.db.v1-")).collect();
        assert_eq!(copies.len(), 1, "the old file stays beside it");
    }

    #[test]
    fn an_expression_that_this_version_cannot_read_is_an_error_and_not_everything() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("copies.db")).unwrap();
        copies
            .write(|tx| {
                tx.conn.execute("INSERT INTO want VALUES (1, 'stars>3')", [])?;
                Ok(())
            })
            .unwrap();
        let error = format!("{:#}", copies.want().unwrap_err());
        assert!(error.contains("stars>3") && error.contains("expected"), "{error}");
    }
}
