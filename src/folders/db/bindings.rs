//! The bindings of this device, and how far each has come.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use anyhow::Result;
use rusqlite::{Row, params};

use super::{BindingId, FoldersDb, StoredBinding, bad};
use crate::core::folder::brake::Source;
use crate::core::ids::{FolderId, LogId, ParseIdError};
use crate::db::{self, int, row_u64};
use crate::folders::{Binding, Keep, Mode};
use crate::state::journal::Cursor;

/// The word in `held` for changes that were made in the directory; other texts are node IDs.
const DISK: &str = "disk";

impl FoldersDb {
    /// All bindings.
    pub(crate) fn bindings(&self) -> db::Result<Vec<StoredBinding>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, folder, dir, mode, keep, symlinks, paused, held, epoch, arr, rules,
                            begun, held_since_ms
                     FROM bindings ORDER BY id",
                )?
                .query_map([], stored_binding)?
                .collect()
        })
    }

    /// Adds a binding that is begun; durable on return. See F4.
    pub(crate) fn begin(&self, binding: Binding) -> Result<StoredBinding> {
        let stored = binding.clone();
        let id = self.write_durably(move |tx| {
            tx.prepare_cached(
                "INSERT INTO bindings (folder, dir, mode, keep, symlinks, paused, arr, begun)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, 1)",
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
        Ok(StoredBinding {
            id,
            binding: stored,
            is_paused: false,
            held: None,
            held_since_ms: None,
            cursor: None,
            rules: None,
            is_begun: true,
        })
    }

    /// Records that a binding is complete.
    pub(crate) fn finish(&self, id: BindingId) -> db::Result<()> {
        self.write(move |tx| {
            tx.execute("UPDATE bindings SET begun = 0 WHERE id = ?1", [int(id.0)]).map(|_| ())
        })
    }

    /// Records the rules of what is ignored. All changes of the journal are new then, because some
    /// were passed over under other rules.
    pub(crate) fn set_rules(&self, id: BindingId, digest: [u8; 32]) -> db::Result<()> {
        self.write(move |tx| {
            let sql = "UPDATE bindings SET rules = ?2, epoch = NULL, arr = 0 WHERE id = ?1";
            tx.execute(sql, params![int(id.0), digest]).map(|_| ())
        })
    }

    /// Removes a binding with all that is known of its paths; durable on return.
    pub(crate) fn remove(&self, id: BindingId) -> Result<()> {
        self.write_durably(move |tx| {
            for sql in [
                "DELETE FROM under_way WHERE binding = ?1",
                "DELETE FROM pending WHERE binding = ?1",
                "DELETE FROM base WHERE binding = ?1",
                "DELETE FROM bindings WHERE id = ?1",
            ] {
                tx.execute(sql, [int(id.0)])?;
            }
            Ok(())
        })
    }

    /// Records that the user paused the binding, or resumed it; durable on return.
    pub(crate) fn set_paused(&self, id: BindingId, is_paused: bool) -> Result<()> {
        self.write_durably(move |tx| {
            let sql = "UPDATE bindings SET paused = ?2 WHERE id = ?1";
            tx.execute(sql, params![int(id.0), is_paused]).map(|_| ())
        })
    }

    /// Records whose changes are held back, and since when they were made; `None`: none are. Durable
    /// on return.
    pub(crate) fn set_held(&self, id: BindingId, held: Option<(Source, u64)>) -> Result<()> {
        let since_ms = held.map(|(_, since_ms)| int(since_ms));
        let held = held.map(|(source, _)| match source {
            Source::Disk => DISK.to_owned(),
            Source::Device(device) => device.to_string(),
        });
        self.write_durably(move |tx| {
            let sql = "UPDATE bindings SET held = ?2, held_since_ms = ?3 WHERE id = ?1";
            tx.execute(sql, params![int(id.0), held, since_ms]).map(|_| ())
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
        held_since_ms: row.get::<_, Option<i64>>(12)?.and_then(|ms| u64::try_from(ms).ok()),
        cursor: epoch.map(|epoch| Cursor { epoch: LogId(epoch), arr }),
        rules: row.get(10)?,
        is_begun: row.get(11)?,
    })
}

/// Reads whose changes are held.
fn held_by(text: &str) -> rusqlite::Result<Source> {
    match text {
        DISK => Ok(Source::Disk),
        device => device.parse().map(Source::Device).map_err(|error: ParseIdError| bad(7, error)),
    }
}
