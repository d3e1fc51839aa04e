//! `folders.db`: the bindings of this device, and for each path of a binding the *base*: the version
//! that was last equal in the directory and in the journal, with what a stat showed then.
//!
//! F1  A base is recorded after the disk and the journal hold what it says, never before. A base that
//!     is too old costs a look at the file; one that is too new would look like an edit by the user.
//! F2  The cursor into the journal moves after it is recorded what became of the changes before it: a
//!     path is done, or it is in `pending`.
//! F3  A path that is absent in both has no row.
//! F4  A binding is written before the marker and the folder, as one that is begun. A start after a
//!     crash finishes it where the folder exists, and takes it back otherwise.
//! F5  A million paths are never in memory: whoever walks over them asks for pages.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rusqlite::types::Type;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::Binding;
use super::disk::Seen;
use crate::clock::wall_ms;
use crate::core::folder::brake::Source;
use crate::core::folder::version::Version;
use crate::core::ids::Hash;
use crate::db::migrate::{Outcome, Step, newest};
use crate::db::{self, Database, Spec, Stateless, Txn};
use crate::state::home::private_database_file;
use crate::state::journal::Cursor;

mod bindings;
mod paths;

/// The readers: the drivers take turns, and the API reads beside them.
const READERS: usize = 2;

/// The page cache of each connection: the upper levels of the tree of a million paths.
const CACHE_KIB: i64 = 4 * 1024;

const STEPS: [Step; 1] = [add_rules_and_begun];

/// Version 2: the rules of what is ignored under which changes were taken up, and bindings that are
/// under way.
fn add_rules_and_begun(tx: &Transaction<'_>) -> Result<()> {
    Ok(tx.execute_batch(
        "ALTER TABLE bindings ADD COLUMN rules BLOB;
         ALTER TABLE bindings ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;",
    )?)
}

const SPEC: Spec = Spec {
    name: "folders",
    application_id: 0x6373_6664,
    writer_cache_kib: CACHE_KIB,
    reader_cache_kib: CACHE_KIB,
    statements: 32,
    checkpoint_pages: 4096,
    log_bytes_kept: Some(16 << 20),
    has_incremental_vacuum: false,
};

const SCHEMA: &str = "
CREATE TABLE bindings (
    id INTEGER PRIMARY KEY,
    folder BLOB NOT NULL UNIQUE,
    dir BLOB NOT NULL,
    mode TEXT NOT NULL,
    keep TEXT NOT NULL,
    symlinks INTEGER NOT NULL,
    paused INTEGER NOT NULL,
    held TEXT,
    epoch BLOB,
    arr INTEGER NOT NULL,
    rules BLOB,
    begun INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE base (
    id INTEGER PRIMARY KEY,
    binding INTEGER NOT NULL,
    path BLOB NOT NULL,
    version BLOB NOT NULL,
    size INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    seen_size INTEGER NOT NULL,
    mtime_secs INTEGER NOT NULL,
    mtime_nanos INTEGER NOT NULL,
    ctime_secs INTEGER NOT NULL,
    ctime_nanos INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    form BLOB,
    UNIQUE (binding, path)
) STRICT;
CREATE INDEX base_form ON base (binding, form) WHERE form IS NOT NULL;
CREATE INDEX base_inode ON base (inode);
CREATE TABLE pending (
    binding INTEGER NOT NULL,
    path BLOB NOT NULL,
    hash BLOB,
    PRIMARY KEY (binding, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending_hash ON pending (hash) WHERE hash IS NOT NULL;
CREATE INDEX pending_retry ON pending (binding, path) WHERE hash IS NULL;
";

/// The number of a binding's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BindingId(u64);

/// A binding as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredBinding {
    pub(crate) id: BindingId,
    pub(crate) binding: Binding,
    pub(crate) is_paused: bool,
    /// Whose changes are held back, if any are.
    pub(crate) held: Option<Source>,
    /// How far the journal's changes were taken up.
    pub(crate) cursor: Option<Cursor>,
    /// The digest of the rules of what is ignored under which that was done.
    pub(crate) rules: Option<[u8; 32]>,
    /// The directory is about to be bound: the marker or the folder may be missing.
    pub(crate) is_begun: bool,
}

/// What was last equal in the directory and in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) row: u64,
    pub(crate) version: Version,
    pub(crate) seen: Seen,
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Became {
    /// Directory and journal hold this version.
    Equal(Version, Seen),
    /// Neither holds anything.
    Gone,
    /// It cannot be brought to the directory yet. With a hash: this asset is not here.
    Pending(Option<Hash>),
    /// Nothing is to be recorded, and nothing is pending.
    Left,
}

/// What is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pendings {
    /// At least one path is pending.
    pub(crate) any: bool,
    /// Something that waits for something other than an asset.
    pub(crate) to_retry: bool,
}

impl Pendings {
    /// What is pending now.
    pub(crate) async fn of(db: &FoldersDb, id: BindingId) -> Result<Self> {
        let db = db.clone();
        super::shared::blocking(move || Ok(db.pendings(id)?)).await
    }
}

/// The figures of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    /// Paths that are equal in the directory and in the journal.
    pub(crate) paths: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Paths that wait for their asset.
    pub(crate) missing: u64,
    /// Paths that wait for something else.
    pub(crate) waiting: u64,
}

/// The open database. Clones share it. Every call blocks.
#[derive(Debug, Clone)]
pub(crate) struct FoldersDb(Arc<Database<Stateless>>);

impl FoldersDb {
    /// Opens the database at `path`, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = || {
            private_database_file(path)?;
            let (mut connection, outcome) = db::open(path, &SPEC, &STEPS, wall_ms())?;
            if outcome == Outcome::Empty {
                let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                tx.execute_batch(SCHEMA)?;
                tx.pragma_update(None, "application_id", SPEC.application_id)?;
                tx.pragma_update(None, "user_version", newest(&STEPS))?;
                tx.commit()?;
            }
            let database = Database::start(connection, path, &SPEC, READERS, Stateless, ())?;
            anyhow::Ok(Self(Arc::new(database)))
        };
        open().with_context(|| format!("opening {}", path.display()))
    }

    /// Closes it.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> db::Result<T> {
        self.0.readers().read(read)
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> db::Result<T> {
        self.0.write(move |tx: &mut Txn<'_, Stateless>| Ok(work(tx.conn)?))
    }
}

fn bad(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::ids::FolderId;
    use crate::folders::{Keep, Mode};

    #[test]
    fn a_database_of_the_first_version_keeps_its_bindings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folders.db");
        private_database_file(&path).unwrap();
        let old = SCHEMA.replace(",\n    rules BLOB,\n    begun INTEGER NOT NULL DEFAULT 0", "");
        assert_ne!(old, SCHEMA);
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(&old).unwrap();
        connection.pragma_update(None, "application_id", SPEC.application_id).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection
            .execute(
                "INSERT INTO bindings (folder, dir, mode, keep, symlinks, paused, arr)
                 VALUES (?1, CAST('/photos' AS BLOB), 'in', 'link', 1, 1, 7)",
                [[7_u8; 16]],
            )
            .unwrap();
        drop(connection);
        let db = FoldersDb::open(&path).unwrap();
        let bindings = db.bindings().unwrap();
        let [stored] = bindings.as_slice() else { panic!("{bindings:?}") };
        let (folder, dir) = (FolderId([7; 16]), "/photos".into());
        let expected = Binding { folder, dir, mode: Mode::In, keep: Keep::Link, symlinks: true };
        assert_eq!(stored.binding, expected);
        assert!(stored.is_paused && !stored.is_begun && stored.rules.is_none());
    }
}
