//! `folders.db`: the bindings of this device, and for each path of a binding the *base*: the version
//! that was last equal in the directory and in the journal, with what a stat showed then.
//!
//! F1  A base is recorded after the disk and the journal hold what it says, never before. A base that
//!     is too old costs a look at the file; one that is too new would look like an edit by the user.
//! F2  The cursor into the journal moves after it is recorded what became of the changes before it: a
//!     path is done, or it is in `pending`.
//! F3  A path that is absent in both has no row.
//! F4  A million paths are never in memory: whoever walks over them asks for pages.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};

use super::disk::{Seen, SeenKind};
use super::{Binding, Keep, Mode};
use crate::clock::wall_ms;
use crate::core::folder::brake::Source;
use crate::core::folder::collide::Folding;
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::{Content, Version};
use crate::core::ids::{FolderId, Hash, LogId, ParseIdError};
use crate::db::migrate::{Outcome, Step, newest};
use crate::db::{self, Database, DbError, Owner, Spec, Txn, int, row_u64};
use crate::state::home::private_database_file;
use crate::state::journal::Cursor;
use crate::wire::folder::{version_from_bytes, version_to_bytes};

/// The readers: the drivers take turns, and the API reads beside them.
const READERS: usize = 2;

/// The page cache of each connection: the upper levels of the tree of a million paths.
const CACHE_KIB: i64 = 4 * 1024;

const STEPS: [Step; 0] = [];

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

/// The word in `held` for changes that were made in the directory; other texts are node IDs.
const DISK: &str = "disk";

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
    arr INTEGER NOT NULL
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
    /// Anything.
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
pub(crate) struct FoldersDb(Arc<Database<Nobody>>);

struct Nobody;

impl Owner for Nobody {
    type State = ();
    type Error = DbError;

    fn error_of(error: DbError) -> DbError {
        error
    }

    fn committed(&mut self, (): &mut ()) {}
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
                tx.pragma_update(None, "application_id", SPEC.application_id)?;
                tx.pragma_update(None, "user_version", newest(&STEPS))?;
                tx.commit()?;
            }
            let database = Database::start(connection, path, &SPEC, READERS, Nobody, ())?;
            anyhow::Ok(Self(Arc::new(database)))
        };
        open().with_context(|| format!("opening {}", path.display()))
    }

    /// Closes it.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    // ---- bindings --------------------------------------------------------------------------------

    /// All bindings.
    pub(crate) fn bindings(&self) -> db::Result<Vec<StoredBinding>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, folder, dir, mode, keep, symlinks, paused, held, epoch, arr
                     FROM bindings ORDER BY id",
                )?
                .query_map([], stored_binding)?
                .collect()
        })
    }

    /// Adds a binding; durable on return.
    pub(crate) fn add(&self, binding: Binding) -> db::Result<StoredBinding> {
        let stored = binding.clone();
        let id = self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO bindings (folder, dir, mode, keep, symlinks, paused, arr)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, 0)",
            )?
            .execute(params![
                binding.folder.0,
                binding.dir.as_os_str().as_bytes(),
                binding.mode.name(),
                binding.keep.name(),
                binding.symlinks,
            ])?;
            Ok(BindingId(u64::try_from(tx.last_insert_rowid()).unwrap_or_default()))
        })?;
        Ok(StoredBinding { id, binding: stored, is_paused: false, held: None, cursor: None })
    }

    /// Removes a binding with all that is known of its paths.
    pub(crate) fn remove(&self, id: BindingId) -> db::Result<()> {
        self.write(move |tx| {
            for sql in [
                "DELETE FROM pending WHERE binding = ?1",
                "DELETE FROM base WHERE binding = ?1",
                "DELETE FROM bindings WHERE id = ?1",
            ] {
                tx.execute(sql, [int(id.0)])?;
            }
            Ok(())
        })
    }

    /// Records that the user paused the binding, or resumed it.
    pub(crate) fn set_paused(&self, id: BindingId, is_paused: bool) -> db::Result<()> {
        self.write(move |tx| {
            let sql = "UPDATE bindings SET paused = ?2 WHERE id = ?1";
            tx.execute(sql, params![int(id.0), is_paused]).map(|_| ())
        })
    }

    /// Records whose changes are held back; `None`: none are.
    pub(crate) fn set_held(&self, id: BindingId, held: Option<Source>) -> db::Result<()> {
        let held = held.map(|source| match source {
            Source::Disk => DISK.to_owned(),
            Source::Device(device) => device.to_string(),
        });
        self.write(move |tx| {
            let sql = "UPDATE bindings SET held = ?2 WHERE id = ?1";
            tx.execute(sql, params![int(id.0), held]).map(|_| ())
        })
    }

    // ---- paths -----------------------------------------------------------------------------------

    /// The bases of these paths, in their order.
    pub(crate) fn bases(
        &self,
        id: BindingId,
        paths: &[FolderPath],
    ) -> db::Result<Vec<Option<Base>>> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(&select("binding = ?1 AND path = ?2"))?;
            let base = |path: &FolderPath| {
                query.query_row(params![int(id.0), path.as_bytes()], base).optional()
            };
            paths.iter().map(base).collect()
        })
    }

    /// At most `limit` bases after the row `after`, in the order of rows.
    pub(crate) fn page(&self, id: BindingId, after: u64, limit: usize) -> db::Result<Vec<Base>> {
        self.read(|connection| {
            let sql = select("binding = ?1 AND id > ?2 ORDER BY id LIMIT ?3");
            connection
                .prepare_cached(&sql)?
                .query_map(params![int(id.0), int(after), int(limit as u64)], base)?
                .collect()
        })
    }

    /// At most `limit` bases of paths below `dir` after `after`, in the order of paths.
    pub(crate) fn below(
        &self,
        id: BindingId,
        dir: &FolderPath,
        after: Option<&FolderPath>,
        limit: usize,
    ) -> db::Result<Vec<Base>> {
        // `/` is followed by `0`.
        let (first, end) = ([dir.as_bytes(), b"/"].concat(), [dir.as_bytes(), b"0"].concat());
        let after = after.map_or(first, |path| path.as_bytes().to_vec());
        self.read(|connection| {
            let sql = select("binding = ?1 AND path > ?2 AND path < ?3 ORDER BY path LIMIT ?4");
            connection
                .prepare_cached(&sql)?
                .query_map(params![int(id.0), after, end, int(limit as u64)], base)?
                .collect()
        })
    }

    /// The bases of files with this inode number; hard links share one.
    pub(crate) fn with_inode(&self, id: BindingId, inode: u64) -> db::Result<Vec<Base>> {
        self.read(|connection| {
            connection
                .prepare_cached(&select("inode = ?2 AND binding = ?1 LIMIT 16"))?
                .query_map(params![int(id.0), signed(inode)], base)?
                .collect()
        })
    }

    /// The path that has the place of this one in a file system that cannot tell the two apart.
    pub(crate) fn twin(
        &self,
        id: BindingId,
        path: &FolderPath,
        folding: Folding,
    ) -> db::Result<Option<FolderPath>> {
        let Some(form) = form(path, folding) else { return Ok(None) };
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path FROM base WHERE binding = ?1 AND form = ?2 AND path != ?3",
                )?
                .query_row(params![int(id.0), form, path.as_bytes()], |row| self::path(row, 0))
                .optional()
        })
    }

    /// Records how far the journal's changes are taken up.
    pub(crate) fn move_to(&self, id: BindingId, cursor: Cursor) -> db::Result<()> {
        self.write(move |tx| {
            tx.prepare_cached("UPDATE bindings SET epoch = ?2, arr = ?3 WHERE id = ?1")?
                .execute(params![int(id.0), cursor.epoch.0, int(cursor.arr)])
                .map(|_| ())
        })
    }

    /// Records what became of paths. `folding`: which names the directory cannot tell apart.
    pub(crate) fn record(
        &self,
        id: BindingId,
        outcomes: Vec<(FolderPath, Became)>,
        folding: Folding,
    ) -> db::Result<()> {
        self.write(move |tx| {
            let binding = int(id.0);
            for (path, outcome) in outcomes {
                let path = path.as_bytes();
                match &outcome {
                    Became::Equal(version, seen) => {
                        put_base(tx, binding, form(&version.path, folding), version, seen)?;
                    }
                    Became::Gone => {
                        tx.prepare_cached("DELETE FROM base WHERE binding = ?1 AND path = ?2")?
                            .execute(params![binding, path])?;
                    }
                    Became::Pending(_) | Became::Left => {}
                }
                match outcome {
                    Became::Pending(hash) => tx
                        .prepare_cached(
                            "INSERT INTO pending (binding, path, hash) VALUES (?1, ?2, ?3)
                             ON CONFLICT DO UPDATE SET hash = excluded.hash",
                        )?
                        .execute(params![binding, path, hash.map(|hash| hash.0)])?,
                    Became::Equal(..) | Became::Gone | Became::Left => tx
                        .prepare_cached("DELETE FROM pending WHERE binding = ?1 AND path = ?2")?
                        .execute(params![binding, path])?,
                };
            }
            Ok(())
        })
    }

    /// The paths that wait for one of these assets, at most `limit`.
    pub(crate) fn waiting_for(
        &self,
        id: BindingId,
        hashes: &[Hash],
        limit: usize,
    ) -> db::Result<Vec<FolderPath>> {
        self.read(|connection| {
            let mut query = connection
                .prepare_cached("SELECT path FROM pending WHERE hash = ?2 AND binding = ?1")?;
            let mut paths = Vec::new();
            for hash in hashes {
                for path in query.query_map(params![int(id.0), hash.0], |row| path(row, 0))? {
                    paths.push(path?);
                    if paths.len() == limit {
                        return Ok(paths);
                    }
                }
            }
            Ok(paths)
        })
    }

    /// At most `limit` pending paths after `after`, each with the asset that it waits for.
    pub(crate) fn pending(
        &self,
        id: BindingId,
        after: Option<&FolderPath>,
        limit: usize,
    ) -> db::Result<Vec<(FolderPath, Option<Hash>)>> {
        let after = after.map_or(&[][..], FolderPath::as_bytes);
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path, hash FROM pending WHERE binding = ?1 AND path > ?2
                     ORDER BY path LIMIT ?3",
                )?
                .query_map(params![int(id.0), after, int(limit as u64)], |row| {
                    let hash: Option<[u8; 32]> = row.get(1)?;
                    Ok((path(row, 0)?, hash.map(Hash)))
                })?
                .collect()
        })
    }

    /// At most `limit` paths after `after` that wait for something other than an asset.
    pub(crate) fn to_retry(
        &self,
        id: BindingId,
        after: Option<&FolderPath>,
        limit: usize,
    ) -> db::Result<Vec<FolderPath>> {
        let after = after.map_or(&[][..], FolderPath::as_bytes);
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path FROM pending WHERE binding = ?1 AND path > ?2 AND hash IS NULL
                     ORDER BY path LIMIT ?3",
                )?
                .query_map(params![int(id.0), after, int(limit as u64)], |row| path(row, 0))?
                .collect()
        })
    }

    /// Whether anything is pending.
    pub(crate) fn pendings(&self, id: BindingId) -> db::Result<Pendings> {
        self.read(|connection| {
            let exists = |sql: &str| connection.prepare_cached(sql)?.exists([int(id.0)]);
            Ok(Pendings {
                any: exists("SELECT 1 FROM pending WHERE binding = ?1")?,
                to_retry: exists("SELECT 1 FROM pending WHERE binding = ?1 AND hash IS NULL")?,
            })
        })
    }

    /// The figures of a binding. Reads all its rows.
    pub(crate) fn figures(&self, id: BindingId) -> db::Result<Figures> {
        self.read(|connection| {
            let (paths, bytes) = connection.query_row(
                "SELECT count(*), coalesce(sum(size), 0) FROM base WHERE binding = ?1",
                [int(id.0)],
                |row| Ok((row_u64(row, 0)?, row_u64(row, 1)?)),
            )?;
            let (missing, all) = connection.query_row(
                "SELECT count(hash), count(*) FROM pending WHERE binding = ?1",
                [int(id.0)],
                |row| Ok((row_u64(row, 0)?, row_u64(row, 1)?)),
            )?;
            Ok(Figures { paths, bytes, missing, waiting: all.saturating_sub(missing) })
        })
    }

    /// The number of paths of a binding that have a base.
    pub(crate) fn count(&self, id: BindingId) -> db::Result<u64> {
        self.read(|connection| {
            let sql = "SELECT count(*) FROM base WHERE binding = ?1";
            connection.prepare_cached(sql)?.query_row([int(id.0)], |row| row_u64(row, 0))
        })
    }

    /// At most `limit` paths of a binding that contain these bytes.
    pub(crate) fn containing(
        &self,
        id: BindingId,
        part: &[u8],
        limit: usize,
    ) -> db::Result<Vec<FolderPath>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT path FROM base WHERE binding = ?1 AND instr(path, ?2) > 0
                     ORDER BY path LIMIT ?3",
                )?
                .query_map(params![int(id.0), part, int(limit as u64)], |row| path(row, 0))?
                .collect()
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> db::Result<T> {
        self.0.readers().read(read)
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> db::Result<T> {
        self.0.write(move |tx: &mut Txn<'_, Nobody>| Ok(work(tx.conn)?))
    }
}

/// The form of a path in which names are compared that the directory cannot tell apart.
fn form(path: &FolderPath, folding: Folding) -> Option<Vec<u8>> {
    (folding != Folding::default()).then(|| folding.form(path.as_bytes()))
}

fn put_base(
    tx: &Connection,
    binding: i64,
    form: Option<Vec<u8>>,
    version: &Version,
    seen: &Seen,
) -> rusqlite::Result<()> {
    let size_bytes = match version.content {
        Content::File { size_bytes, .. } => size_bytes,
        Content::Absent | Content::Symlink { .. } | Content::Directory | Content::Later(_) => 0,
    };
    tx.prepare_cached(
        "INSERT INTO base
             (binding, path, version, size, kind, seen_size, mtime_secs, mtime_nanos, ctime_secs,
              ctime_nanos, inode, mode, form)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (binding, path) DO UPDATE SET
             version = excluded.version, size = excluded.size, kind = excluded.kind,
             seen_size = excluded.seen_size, mtime_secs = excluded.mtime_secs,
             mtime_nanos = excluded.mtime_nanos, ctime_secs = excluded.ctime_secs,
             ctime_nanos = excluded.ctime_nanos, inode = excluded.inode, mode = excluded.mode,
             form = excluded.form",
    )?
    .execute(params![
        binding,
        version.path.as_bytes(),
        version_to_bytes(version),
        int(size_bytes),
        kind_number(seen.kind),
        int(seen.size_bytes),
        seen.mtime_secs,
        seen.mtime_nanos,
        seen.ctime_secs,
        seen.ctime_nanos,
        signed(seen.inode),
        seen.mode,
        form,
    ])?;
    Ok(())
}

fn select(which: &str) -> String {
    format!(
        "SELECT id, version, kind, seen_size, mtime_secs, mtime_nanos, ctime_secs, ctime_nanos, inode,
                mode
         FROM base WHERE {which}"
    )
}

fn base(row: &Row<'_>) -> rusqlite::Result<Base> {
    let bytes = row.get_ref(1)?.as_blob().map_err(|error| bad(1, error))?;
    let version = version_from_bytes(bytes).map_err(|error| bad(1, error))?;
    let inode: i64 = row.get(8)?;
    let seen = Seen {
        kind: kind_of(row.get(2)?),
        size_bytes: row_u64(row, 3)?,
        mtime_secs: row.get(4)?,
        mtime_nanos: row.get(5)?,
        ctime_secs: row.get(6)?,
        ctime_nanos: row.get(7)?,
        inode: inode.cast_unsigned(),
        mode: row.get(9)?,
    };
    Ok(Base { row: row_u64(row, 0)?, version, seen })
}

fn stored_binding(row: &Row<'_>) -> rusqlite::Result<StoredBinding> {
    let dir: Vec<u8> = row.get(2)?;
    let (mode, keep): (String, String) = (row.get(3)?, row.get(4)?);
    let unknown = |column, text: &str| bad(column, format!("unknown word {text:?}"));
    let epoch: Option<[u8; 16]> = row.get(8)?;
    let held: Option<String> = row.get(7)?;
    let arr = row_u64(row, 9)?;
    Ok(StoredBinding {
        id: BindingId(row_u64(row, 0)?),
        binding: Binding {
            folder: FolderId(row.get(1)?),
            dir: PathBuf::from(OsString::from_vec(dir)),
            mode: Mode::from_name(&mode).ok_or_else(|| unknown(3, &mode))?,
            keep: Keep::from_name(&keep).ok_or_else(|| unknown(4, &keep))?,
            symlinks: row.get(5)?,
        },
        is_paused: row.get(6)?,
        held: held.map(|text| held_by(&text)).transpose()?,
        cursor: epoch.map(|epoch| Cursor { epoch: LogId(epoch), arr }),
    })
}

/// Reads whose changes are held.
fn held_by(text: &str) -> rusqlite::Result<Source> {
    match text {
        DISK => Ok(Source::Disk),
        device => device.parse().map(Source::Device).map_err(|error: ParseIdError| bad(7, error)),
    }
}

fn path(row: &Row<'_>, column: usize) -> rusqlite::Result<FolderPath> {
    let bytes = row.get_ref(column)?.as_blob().map_err(|error| bad(column, error))?;
    FolderPath::from_bytes(bytes).map_err(|error| bad(column, error))
}

fn bad(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into())
}

/// Inode numbers use all 64 bits on some file systems.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

fn kind_number(kind: SeenKind) -> u8 {
    match kind {
        SeenKind::File => 0,
        SeenKind::Symlink => 1,
        SeenKind::Directory => 2,
        SeenKind::Other => 3,
    }
}

fn kind_of(number: u8) -> SeenKind {
    match number {
        0 => SeenKind::File,
        1 => SeenKind::Symlink,
        2 => SeenKind::Directory,
        _ => SeenKind::Other,
    }
}
