//! The paths of a binding: their bases, and which of them are pending.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Base, Became, BindingId, Figures, FoldersDb, Pendings, bad};
use crate::core::folder::collide::Folding;
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::{Content, Version};
use crate::core::ids::Hash;
use crate::db::{self, int, row_u64};
use crate::folders::disk::{Seen, SeenKind};
use crate::wire::folder::{version_from_bytes, version_to_bytes};

impl FoldersDb {
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
                match &outcome {
                    Became::Equal(version, seen) => {
                        put_base(tx, binding, form(&version.path, folding), version, seen)?;
                    }
                    Became::Gone => delete_base(tx, binding, &path)?,
                    Became::Pending(_) | Became::Left => {}
                }
                let path = path.as_bytes();
                tx.prepare_cached("DELETE FROM under_way WHERE binding = ?1 AND path = ?2")?
                    .execute(params![binding, path])?;
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

    /// Whether a path of any binding waits for each of these assets, in their order.
    pub(crate) fn are_waited_for(&self, hashes: &[Hash]) -> db::Result<Vec<bool>> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT 1 FROM pending WHERE hash = ?1")?;
            hashes.iter().map(|hash| query.exists([hash.0])).collect()
        })
    }

    /// The assets above `after` that paths wait for, ascending, at most `limit`.
    pub(crate) fn waited_for(&self, after: Option<Hash>, limit: usize) -> db::Result<Vec<Hash>> {
        // The empty blob is below all hashes.
        let after = after.as_ref().map_or(&[][..], |hash| hash.as_bytes());
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT DISTINCT hash FROM pending WHERE hash > ?1 ORDER BY hash LIMIT ?2",
                )?
                .query_map(params![after, int(limit as u64)], |row| row.get(0).map(Hash))?
                .collect()
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

    /// Which of these assets are at a path of a bound directory, or about to be, each with one such
    /// path. Reads all rows.
    pub(crate) fn uses(&self, hashes: &BTreeSet<Hash>) -> db::Result<BTreeMap<Hash, FolderPath>> {
        self.read(|connection| {
            let mut uses = BTreeMap::new();
            let mut query = connection.prepare_cached("SELECT path, version FROM base")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let bytes = row.get_ref(1)?.as_blob().map_err(|error| bad(1, error))?;
                let version = version_from_bytes(bytes).map_err(|error| bad(1, error))?;
                if let Content::File { hash, .. } = version.content
                    && hashes.contains(&hash)
                {
                    uses.insert(hash, path(row, 0)?);
                }
            }
            let mut query =
                connection.prepare_cached("SELECT path FROM pending WHERE hash = ?1")?;
            for hash in hashes {
                let pending = query.query_row([hash.0], |row| path(row, 0)).optional()?;
                uses.extend(pending.map(|path| (*hash, path)));
            }
            Ok(uses)
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
}

/// The form of a path in which names are compared that the directory cannot tell apart.
pub(super) fn form(path: &FolderPath, folding: Folding) -> Option<Vec<u8>> {
    (folding != Folding::default()).then(|| folding.form(path.as_bytes()))
}

pub(super) fn delete_base(
    tx: &Connection,
    binding: i64,
    path: &FolderPath,
) -> rusqlite::Result<()> {
    tx.prepare_cached("DELETE FROM base WHERE binding = ?1 AND path = ?2")?
        .execute(params![binding, path.as_bytes()])?;
    Ok(())
}

pub(super) fn put_base(
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

fn path(row: &Row<'_>, column: usize) -> rusqlite::Result<FolderPath> {
    let bytes = row.get_ref(column)?.as_blob().map_err(|error| bad(column, error))?;
    FolderPath::from_bytes(bytes).map_err(|error| bad(column, error))
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
