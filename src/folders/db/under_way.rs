//! The paths that are being written, to the journal or to the directory: noted before, until it is
//! recorded what became of them. What a crash leaves here is settled at the next start.

use rusqlite::params;

use super::paths::{delete_base, form, put_base};
use super::{Became, BindingId, FoldersDb, bad};
use crate::core::folder::collide::Folding;
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::Version;
use crate::db::{self, int};
use crate::wire::folder::{version_from_bytes, version_to_bytes};

/// A path that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnderWay {
    /// For an edit: the content, and the versions that it knows. Else the version that is brought to
    /// the directory.
    pub(crate) version: Version,
    /// An edit in the directory is written to the journal.
    pub(crate) is_edit: bool,
}

impl FoldersDb {
    /// Notes paths that are about to be written.
    pub(crate) fn note_under_way(&self, id: BindingId, paths: Vec<UnderWay>) -> db::Result<()> {
        self.write(move |tx| {
            let mut note = tx.prepare_cached(
                "INSERT INTO under_way (binding, path, version, is_edit) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET version = excluded.version, is_edit = excluded.is_edit",
            )?;
            for UnderWay { version, is_edit } in paths {
                let (path, bytes) = (version.path.as_bytes(), version_to_bytes(&version));
                note.execute(params![int(id.0), path, bytes, is_edit])?;
            }
            Ok(())
        })
    }

    /// At most `limit` of the paths that are being written, in the order of paths.
    pub(crate) fn under_way(&self, id: BindingId, limit: usize) -> db::Result<Vec<UnderWay>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT version, is_edit FROM under_way WHERE binding = ?1
                     ORDER BY path LIMIT ?2",
                )?
                .query_map(params![int(id.0), int(limit as u64)], |row| {
                    let bytes = row.get_ref(0)?.as_blob().map_err(|error| bad(0, error))?;
                    let version = version_from_bytes(bytes).map_err(|error| bad(0, error))?;
                    Ok(UnderWay { version, is_edit: row.get(1)? })
                })?
                .collect()
        })
    }

    /// Records the bases of paths that a crash left under way. Each path is looked at again.
    pub(crate) fn settle(
        &self,
        id: BindingId,
        paths: Vec<(FolderPath, Became)>,
        folding: Folding,
    ) -> db::Result<()> {
        self.write(move |tx| {
            let binding = int(id.0);
            for (path, became) in paths {
                match &became {
                    Became::Equal(version, seen) => {
                        put_base(tx, binding, form(&path, folding), version, seen)?;
                    }
                    Became::Gone => delete_base(tx, binding, &path)?,
                    Became::Pending(_) | Became::Left => {}
                }
                tx.prepare_cached(
                    "INSERT INTO pending (binding, path) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )?
                .execute(params![binding, path.as_bytes()])?;
                tx.prepare_cached("DELETE FROM under_way WHERE binding = ?1 AND path = ?2")?
                    .execute(params![binding, path.as_bytes()])?;
            }
            Ok(())
        })
    }
}
