//! What the agent remembers about the store: the shadows of assets, and cursors of local consumers.

use std::borrow::Cow;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::core::ids::{Hash, LogId};
use crate::core::journal::asset::{
    ASSET_MODEL, DESCRIPTION, JournalRow, Row, Shadow, TAGS, TRASHED, UNSEEN,
};
use crate::core::journal::cell::ALIVE;
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::journal::draft::{Draft, DraftChange};
use crate::core::journal::op::{Value, value_from_bytes};
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{ASSET_TAGS_BYTES_MAX, CELL_BYTES};

use super::author::DraftResult;
use super::read::{cell_value, model_num};
use super::schema::{int, row_u64};
use super::tx::Tx;
use super::{Cursor, Journal, JournalError, JournalReader, Result};

/// The scope of shared records.
const SHARED: i64 = 0;

impl Journal {
    /// T6: writes drafts and new shadows of assets in one transaction. If a draft fails, nothing is
    /// written, and the results say why. `fills` are metadata that this device brings into a group:
    /// they are stamped [`Hlc::DAWN`], so that they overwrite nothing, not even values that arrive
    /// later. Events of [`DEVICE_STREAM`] are left out while there is no room for them.
    pub fn write_with_shadows(
        &mut self,
        fills: &[Draft],
        drafts: &[Draft],
        shadows: &[(Hash, Shadow)],
        now_ms: u64,
    ) -> Result<Vec<DraftResult>> {
        let mut tx = self.begin(now_ms)?;
        let mut results = Vec::with_capacity(fills.len() + drafts.len());
        let mut is_full = false;
        for fill in fills {
            results.push(tx.write(fill, Some(Hlc::DAWN))?);
        }
        for draft in drafts {
            let may_log = tx.may_log()?;
            let told = if may_log { Cow::Borrowed(draft) } else { Cow::Owned(unlogged(draft)) };
            is_full |= !may_log;
            results.push(tx.write(&told, None)?);
        }
        if results.iter().any(std::result::Result::is_err) {
            return Ok(results);
        }
        for (hash, shadow) in shadows {
            put_shadow(&tx.db, hash, shadow)?;
        }
        tx.commit()?;
        if is_full && !std::mem::replace(&mut self.is_log_full, is_full) {
            tracing::warn!(
                "events of this device are no longer logged: they fill their share of the space; \
                 `keep_days` of the stream `{DEVICE_STREAM}` makes room"
            );
        }
        Ok(results)
    }

    /// The journal's state of an asset, as the writer sees it: nothing changes between this and the
    /// next call on the writer.
    pub fn asset(&self, hash: &Hash) -> Result<JournalRow> {
        asset(&self.connection, hash)
    }

    /// The shadow of an asset, as the writer sees it.
    pub fn shadow(&self, hash: &Hash) -> Result<Option<Shadow>> {
        shadow(&self.connection, hash)
    }

    /// Marks every shadow as that of an asset not yet seen in the store. To be called for another
    /// store or one restored from a backup, whose rows are not edits of the earlier ones.
    pub fn forget_shadows(&mut self) -> Result<()> {
        let tx = self.begin(0)?;
        tx.forget_shadows()?;
        tx.commit()
    }

    /// Saves how far a local consumer has read [`JournalReader::changes`].
    pub fn set_cursor(&mut self, name: &str, cursor: &Cursor) -> Result<()> {
        let tx = self.begin(0)?;
        tx.db
            .prepare_cached(
                "INSERT INTO cursors (name, epoch, arr) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET epoch = excluded.epoch, arr = excluded.arr",
            )?
            .execute(params![name, cursor.epoch.0, int(cursor.arr)])?;
        tx.commit()
    }
}

impl Tx<'_> {
    /// See [`Journal::forget_shadows`].
    pub(super) fn forget_shadows(&self) -> Result<()> {
        self.db
            .prepare_cached(
                "UPDATE shadows SET base = ?1, pending = NULL, written = NULL, version = ?2",
            )?
            .execute(params![row_to_bytes(&Row::default()), UNSEEN.cast_signed()])?;
        Ok(())
    }
}

impl JournalReader {
    /// The journal's state of an asset.
    pub fn asset(&self, hash: &Hash) -> Result<JournalRow> {
        asset(&self.connection, hash)
    }

    /// The shadow of an asset.
    pub fn shadow(&self, hash: &Hash) -> Result<Option<Shadow>> {
        shadow(&self.connection, hash)
    }

    /// How far a local consumer has read.
    pub fn cursor(&self, name: &str) -> Result<Option<Cursor>> {
        let mut query =
            self.connection.prepare_cached("SELECT epoch, arr FROM cursors WHERE name = ?1")?;
        let cursor = query.query_row([name], |row| {
            Ok(Cursor { epoch: LogId(row.get(0)?), arr: row_u64(row, 1)? })
        });
        Ok(cursor.optional()?)
    }
}

/// The draft without the events that the device logs by itself.
fn unlogged(draft: &Draft) -> Draft {
    let mut draft = draft.clone();
    draft.changes.retain(
        |change| !matches!(change, DraftChange::Event { stream, .. } if stream == DEVICE_STREAM),
    );
    draft
}

fn shadow(connection: &Connection, hash: &Hash) -> Result<Option<Shadow>> {
    let mut query = connection
        .prepare_cached("SELECT base, pending, written, version FROM shadows WHERE hash = ?1")?;
    let row = query
        .query_row([hash.0], |row| {
            let bytes: [Option<Vec<u8>>; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            // The store's version is any 64 bits; the database holds them as a signed integer.
            Ok((bytes, row.get::<_, i64>(3)?.cast_unsigned()))
        })
        .optional()?;
    let Some(([base, pending, written], version)) = row else {
        return Ok(None);
    };
    let damaged = || JournalError::Damaged(format!("the shadow of {}", hash.short()));
    let read = |bytes: Option<Vec<u8>>| {
        bytes.map(|bytes| row_from_bytes(&bytes).ok_or_else(damaged)).transpose()
    };
    let base = read(base)?.ok_or_else(damaged)?;
    let (pending, written) = (read(pending)?, read(written)?);
    Ok(Some(Shadow { base, pending, written, version }))
}

fn put_shadow(tx: &Transaction<'_>, hash: &Hash, shadow: &Shadow) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO shadows (hash, base, pending, written, version) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET base = excluded.base, pending = excluded.pending,
             written = excluded.written, version = excluded.version",
    )?
    .execute(params![
        hash.0,
        row_to_bytes(&shadow.base),
        shadow.pending.as_ref().map(row_to_bytes),
        shadow.written.as_ref().map(row_to_bytes),
        shadow.version.cast_signed()
    ])?;
    Ok(())
}

fn asset(connection: &Connection, hash: &Hash) -> Result<JournalRow> {
    let Some(model) = model_num(connection, ASSET_MODEL)? else {
        return Ok(JournalRow::default());
    };
    let cell = |field, elem| -> Result<Option<Option<Value>>> {
        let bytes = cell_value(connection, (model, SHARED, &hash.0), field, elem)?;
        Ok(bytes.map(|bytes| value_from_bytes(&bytes).flatten()))
    };
    // A value of another type is nothing that the store can show.
    let text = |value| match value {
        Some(Value::Text(text)) => text,
        _ => String::new(),
    };
    let mut found = JournalRow {
        alive: cell("", ALIVE)?.is_some(),
        description: cell(DESCRIPTION, "")?.map(text),
        trashed: cell(TRASHED, "")?.map(|value| value == Some(Value::Bool(true))),
        ..JournalRow::default()
    };
    let mut query = connection.prepare_cached(
        "SELECT elem, removed FROM cells
         WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem > ''",
    )?;
    let mut rows = query.query(params![model, SHARED, hash.0, TAGS])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let (tag, removed): (String, bool) = (row.get(0)?, row.get(1)?);
        bytes += tag.len() + CELL_BYTES;
        if bytes > ASSET_TAGS_BYTES_MAX {
            (found.tags, found.removed_tags) = Default::default();
            found.is_too_large = true;
            break;
        }
        if removed { &mut found.removed_tags } else { &mut found.tags }.insert(tag);
    }
    Ok(found)
}

/// Encodes the row of a shadow: the trashed flag, then each text preceded by its length.
fn row_to_bytes(row: &Row) -> Vec<u8> {
    let mut bytes = vec![u8::from(row.trashed)];
    for text in std::iter::once(&row.description).chain(&row.tags) {
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn row_from_bytes(bytes: &[u8]) -> Option<Row> {
    let (flag, mut rest) = bytes.split_first()?;
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
        let (text, after) = after.split_at_checked(length)?;
        texts.push(String::from_utf8(text.to_vec()).ok()?);
        rest = after;
    }
    let mut texts = texts.into_iter();
    Some(Row { description: texts.next()?, trashed: *flag == 1, tags: texts.collect() })
}
