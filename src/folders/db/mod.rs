//! `folders.db`: the bindings of this device, and for each path of a binding the *base*: the version
//! that was last equal in the directory and in the journal, with what a stat showed then.
//!
//! F1  A base is recorded after the disk and the journal hold what it says, never before: one that is
//!     too new would look like an edit by the user. Before a path is written, here or there, that is
//!     noted in `under_way`, so that after a crash the base is known all the same.
//! F2  The cursor into the journal moves after it is recorded what became of the changes before it: a
//!     path is done, or it is in `pending`.
//! F3  A path that is absent in both has no row.
//! F4  A binding is written before the marker and the folder, as one that is begun. A start after a
//!     crash finishes it where the folder exists, and takes it back otherwise.
//! F5  A million paths are never in memory: whoever walks over them asks for pages.
//! F6  A commit outlives a killed process. What users decided outlives a power cut, too; bases need
//!     not: after a cut the newest may be too old, which costs a look at the file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rusqlite::types::Type;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::task::spawn_blocking;

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
mod under_way;

pub(crate) use under_way::UnderWay;

/// The readers: the drivers take turns, and the API reads beside them.
const READERS: usize = 2;

/// The page cache of each connection: the upper levels of the tree of a million paths.
const CACHE_KIB: i64 = 4 * 1024;

const STEPS: [Step; 3] = [add_rules_and_begun, add_under_way, add_held_since];

/// Version 2: the rules of what is ignored under which changes were taken up, and bindings that are
/// under way.
fn add_rules_and_begun(tx: &Transaction<'_>) -> Result<()> {
    Ok(tx.execute_batch(
        "ALTER TABLE bindings ADD COLUMN rules BLOB;
         ALTER TABLE bindings ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;",
    )?)
}

/// Version 3: the paths that are being written.
fn add_under_way(tx: &Transaction<'_>) -> Result<()> {
    Ok(tx.execute_batch(UNDER_WAY)?)
}

/// Version 4: since when changes are made that are held back.
fn add_held_since(tx: &Transaction<'_>) -> Result<()> {
    Ok(tx.execute_batch("ALTER TABLE bindings ADD COLUMN held_since_ms INTEGER;")?)
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
    begun INTEGER NOT NULL DEFAULT 0,
    held_since_ms INTEGER
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

const UNDER_WAY: &str = "
CREATE TABLE under_way (
    binding INTEGER NOT NULL,
    path BLOB NOT NULL,
    version BLOB NOT NULL,
    is_edit INTEGER NOT NULL,
    PRIMARY KEY (binding, path)
) STRICT, WITHOUT ROWID;
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
    /// Since when these changes were made; `None` if an earlier version of this program held them.
    pub(crate) held_since_ms: Option<u64>,
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

/// The outcome of synchronising one path.
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

/// Whether paths of a binding are pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pendings {
    /// At least one path is pending.
    pub(crate) any: bool,
    /// At least one path waits for something other than the arrival of an asset.
    pub(crate) to_retry: bool,
}

impl Pendings {
    /// What is pending now.
    pub(crate) async fn of(db: &FoldersDb, id: BindingId) -> Result<Self> {
        let db = db.clone();
        let read = spawn_blocking(move || db.pendings(id)).await;
        Ok(read.context("a background task of the folders did not finish")??)
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
pub(crate) struct FoldersDb {
    database: Arc<Database<Stateless>>,
    /// SQLite's write-ahead log.
    log: PathBuf,
}

impl FoldersDb {
    /// Opens the database at `path`, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = || {
            private_database_file(path)?;
            let (mut connection, outcome) = db::open(path, &SPEC, &STEPS, wall_ms())?;
            if outcome == Outcome::Empty {
                let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                tx.execute_batch(SCHEMA)?;
                tx.execute_batch(UNDER_WAY)?;
                tx.pragma_update(None, "application_id", SPEC.application_id)?;
                tx.pragma_update(None, "user_version", newest(&STEPS))?;
                tx.commit()?;
            }
            // See F6.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let database = Database::start(connection, path, &SPEC, READERS, Stateless, ())?;
            let mut log = path.as_os_str().to_owned();
            log.push("-wal");
            anyhow::Ok(Self { database: Arc::new(database), log: log.into() })
        };
        open().with_context(|| format!("opening {}", path.display()))
    }

    /// Closes it.
    pub(crate) fn close(&self) {
        self.database.close();
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> db::Result<T> {
        self.database.readers().read(read)
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> db::Result<T> {
        self.database.write(move |tx: &mut Txn<'_, Stateless>| Ok(work(tx.conn)?))
    }

    /// As [`Self::write`], and the commit outlives a power cut.
    fn write_durably<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let written = self.write(work)?;
        let log = File::open(&self.log).and_then(|log| log.sync_all());
        log.with_context(|| format!("writing {}", self.log.display()))?;
        Ok(written)
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
    use crate::core::folder::collide::Folding;
    use crate::core::folder::path::FolderPath;
    use crate::core::folder::version::{Content, Vector};
    use crate::core::ids::FolderId;
    use crate::folders::{Keep, Mode};

    #[test]
    fn what_users_decide_waits_for_the_disk_and_what_is_under_way_is_noted_until_it_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let db = FoldersDb::open(&dir.path().join("folders.db")).unwrap();
        let binding = Binding {
            folder: FolderId([7; 16]),
            dir: "/photos".into(),
            mode: Mode::TwoWay,
            keep: Keep::Copy,
            symlinks: false,
        };
        let id = db.begin(binding).unwrap().id;
        let folding = Folding::default();
        let version = |name: &str| Version {
            path: FolderPath::from_text(name).unwrap(),
            content: Content::Directory,
            vector: Vector::default(),
            device_name: String::new(),
        };
        let noted = |name: &str, is_edit| UnderWay { version: version(name), is_edit };
        db.note_under_way(id, vec![noted("a", true), noted("b", false), noted("c", true)]).unwrap();
        db.note_under_way(id, vec![noted("a", false)]).unwrap();
        assert_eq!(
            db.under_way(id, 2).unwrap(),
            [noted("a", false), noted("b", false)],
            "the newest of each path"
        );
        let path = |name: &str| FolderPath::from_text(name).unwrap();
        db.record(id, vec![(path("a"), Became::Pending(None))], folding).unwrap();
        db.settle(id, vec![(path("b"), Became::Equal(version("b"), Seen::UNKNOWN))], folding)
            .unwrap();
        assert_eq!(db.under_way(id, 9).unwrap(), [noted("c", true)]);
        assert_eq!(db.bases(id, &[path("b")]).unwrap()[0].as_ref().unwrap().version, version("b"));
        assert_eq!(db.to_retry(id, None, 9).unwrap(), [path("a"), path("b")], "it is looked at");
        db.remove(id).unwrap();
        assert!(db.under_way(id, 9).unwrap().is_empty());
    }

    #[test]
    fn a_database_of_the_first_version_keeps_its_bindings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folders.db");
        private_database_file(&path).unwrap();
        let old = SCHEMA.replace(
            ",\n    rules BLOB,\n    begun INTEGER NOT NULL DEFAULT 0,\n    held_since_ms INTEGER",
            "",
        );
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
        assert!(db.under_way(stored.id, 9).unwrap().is_empty());
        db.set_held(stored.id, Some((Source::Disk, 5))).unwrap();
        let held = db.bindings().unwrap().remove(0);
        assert_eq!((held.held, held.held_since_ms), (Some(Source::Disk), Some(5)));
    }
}
