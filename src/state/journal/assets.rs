//! What the agent remembers about the store: the shadows of assets, and cursors of local consumers.

use std::borrow::Cow;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::core::attributes::{Attribute, AttributeValue, Attributes};
use crate::core::ids::{Hash, LogId, NodeId};
use crate::core::journal::asset::{
    ASSET_MODEL, DESCRIPTION, JournalRow, Row, Shadow, TAGS, TRASHED, UNSEEN, attribute_of_value,
};
use crate::core::journal::cell::ALIVE;
use crate::core::journal::device_events::DEVICE_STREAM;
use crate::core::journal::draft::{Draft, DraftChange};
use crate::core::journal::op::{Value, value_from_bytes};
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{ASSET_TAGS_BYTES_MAX, CELL_BYTES};
use crate::core::lookup::{AssetCandidate, AssetTier};

use super::author::DraftResult;
use super::read::model_num;
use super::schema::{int, row_u64};
use super::tx::Tx;
use super::{Cursor, Journal, JournalError, JournalReader, Result};

/// The scope of shared records.
const SHARED: i64 = 0;

/// The cells of an asset's record that mean something to a store. Other programs may have written
/// more, of any size.
const ASSET_CELLS: &str = "SELECT field, elem, removed, value FROM cells
     WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field IN
         ('', 'description', 'trashed', 'tags', 'name', 'path', 'media_type', 'modified_ms',
          'captured_ms', 'application', 'user')";

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

    /// The devices that added these assets, in their order; `None` where it is not known.
    pub fn adders(&self, hashes: &[Hash]) -> Result<Vec<Option<NodeId>>> {
        let Some(model) = model_num(&self.connection, ASSET_MODEL)? else {
            return Ok(vec![None; hashes.len()]);
        };
        let adder = |hash| Ok(origin(&self.connection, model, hash)?.map(|(device, _)| device));
        hashes.iter().map(adder).collect()
    }

    /// The devices that added these assets, and when, ms since the Unix epoch by their clocks; in
    /// their order, `None` where it is not known.
    pub fn origins(&self, hashes: &[Hash]) -> Result<Vec<Option<(NodeId, u64)>>> {
        let Some(model) = model_num(&self.connection, ASSET_MODEL)? else {
            return Ok(vec![None; hashes.len()]);
        };
        hashes.iter().map(|hash| origin(&self.connection, model, hash)).collect()
    }

    /// The path and the name of an asset, as far as they are known.
    pub fn path_and_name(&self, hash: &Hash) -> Result<(String, String)> {
        let Some(model) = model_num(&self.connection, ASSET_MODEL)? else {
            return Ok(Default::default());
        };
        let mut query = self.connection.prepare_cached(
            "SELECT field, value FROM cells WHERE model = ?1 AND scope = ?2 AND id = ?3
             AND field IN ('name', 'path') AND elem = ''",
        )?;
        let mut attributes = Attributes::default();
        let mut rows = query.query(params![model, SHARED, hash.0])?;
        while let Some(row) = rows.next()? {
            set_attribute(&mut attributes, &row.get::<_, String>(0)?, &row.get::<_, Vec<u8>>(1)?);
        }
        Ok((attributes.path().to_owned(), attributes.name().to_owned()))
    }

    /// Assets that a text may name, at most `limit`, whether this device holds them or not. Reads the
    /// names of all assets.
    pub fn assets_called(&self, tier: &AssetTier, limit: usize) -> Result<Vec<AssetCandidate>> {
        let Some(model) = model_num(&self.connection, ASSET_MODEL)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        if let Some(prefix) = &tier.hash {
            let (first, last) = prefix.range();
            let mut query = self.connection.prepare_cached(
                "SELECT id FROM records WHERE model = ?1 AND scope = ?2 AND id BETWEEN ?3 AND ?4
                 AND length(id) = 32 LIMIT ?5",
            )?;
            let limit = int(limit as u64);
            let ids = query.query_map(params![model, SHARED, first.0, last.0, limit], |row| {
                Ok(Hash(row.get(0)?))
            })?;
            for hash in ids {
                let hash = hash?;
                let (path, name) = self.path_and_name(&hash)?;
                found.push(AssetCandidate { hash, path, name });
            }
        }
        let mut query = self.connection.prepare_cached(
            "SELECT id, field, value FROM cells WHERE model = ?1 AND scope = ?2
             AND field IN ('name', 'path') AND elem = '' AND length(id) = 32 ORDER BY id",
        )?;
        let mut rows = query.query(params![model, SHARED])?;
        let mut at: Option<(Hash, Attributes)> = None;
        while found.len() < limit {
            let row = rows.next()?;
            let next = row.map(|row| row.get(0)).transpose()?.map(Hash);
            if let Some((hash, attributes)) = at.take_if(|(hash, _)| Some(*hash) != next)
                && tier.name.fits(attributes.path(), attributes.name())
            {
                let (path, name) = (attributes.path().to_owned(), attributes.name().to_owned());
                found.push(AssetCandidate { hash, path, name });
            }
            let (Some(row), Some(hash)) = (row, next) else { break };
            let (_, attributes) = at.get_or_insert_with(|| (hash, Attributes::default()));
            set_attribute(attributes, &row.get::<_, String>(1)?, &row.get::<_, Vec<u8>>(2)?);
        }
        Ok(found)
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
    let (base, knows_attributes) = read(base)?.ok_or_else(damaged)?;
    let row = |read: Option<(Row, bool)>| read.map(|(row, _)| row);
    let (pending, written) = (row(read(pending)?), row(read(written)?));
    Ok(Some(Shadow { base, pending, written, version, knows_attributes }))
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
    // A value of another type is nothing that the store can show.
    let text = |value| match value {
        Some(Value::Text(text)) => text,
        _ => String::new(),
    };
    let mut found = JournalRow::default();
    let mut query = connection.prepare_cached(ASSET_CELLS)?;
    let mut rows = query.query(params![model, SHARED, hash.0])?;
    let mut tags_bytes = 0;
    while let Some(row) = rows.next()? {
        let (field, elem): (String, String) = (row.get(0)?, row.get(1)?);
        if field == TAGS {
            let removed = row.get(2)?;
            tags_bytes += elem.len() + CELL_BYTES;
            if tags_bytes > ASSET_TAGS_BYTES_MAX {
                (found.tags, found.removed_tags) = Default::default();
                found.is_too_large = true;
                break;
            }
            if !elem.is_empty() {
                if removed { &mut found.removed_tags } else { &mut found.tags }.insert(elem);
            }
            continue;
        }
        let value = value_from_bytes(&row.get::<_, Vec<u8>>(3)?).flatten();
        match (field.as_str(), elem.as_str()) {
            ("", ALIVE) => found.alive = true,
            (DESCRIPTION, "") => found.description = Some(text(value)),
            (TRASHED, "") => found.trashed = Some(value == Some(Value::Bool(true))),
            (field, "") => {
                if let Some(attribute) = Attribute::of_field(field) {
                    found.attributes.insert(attribute, attribute_of_value(attribute, value));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Sets the attribute of a field from its cell.
fn set_attribute(attributes: &mut Attributes, field: &str, value: &[u8]) {
    if let Some(attribute) = Attribute::of_field(field) {
        let value = value_from_bytes(value).flatten();
        attributes.set(attribute, attribute_of_value(attribute, value));
    }
}

/// The device that created an asset's record, which is the one that added the asset, and when.
fn origin(connection: &Connection, model: i64, hash: &Hash) -> Result<Option<(NodeId, u64)>> {
    let mut query = connection.prepare_cached(
        "SELECT d.id, c.hlc FROM cells c JOIN logs l USING (log_id) JOIN devices d USING (dev)
         WHERE c.model = ?1 AND c.scope = ?2 AND c.id = ?3 AND c.field = '' AND c.elem = ?4",
    )?;
    let origin = query.query_row(params![model, SHARED, hash.0, ALIVE], |row| {
        Ok((NodeId(row.get(0)?), Hlc(row.get::<_, i64>(1)?.cast_unsigned()).ms()))
    });
    Ok(origin.optional()?)
}

/// The flags in the first byte of an encoded row.
const IS_TRASHED: u8 = 1;
/// Attributes follow the first byte.
const HAS_ATTRIBUTES: u8 = 2;

/// Encodes the row of a shadow: flags; the number of attributes and each with its code and its value;
/// the description and the tags. Each value and text is preceded by its length.
fn row_to_bytes(row: &Row) -> Vec<u8> {
    let mut bytes = vec![(u8::from(row.trashed) * IS_TRASHED) | HAS_ATTRIBUTES, 0];
    let push = |bytes: &mut Vec<u8>, part: &[u8]| {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part);
    };
    for (attribute, value) in row.attributes.iter() {
        bytes[1] += 1;
        bytes.push(code(attribute));
        match value {
            AttributeValue::Text(text) => push(&mut bytes, text.as_bytes()),
            AttributeValue::TimeMs(ms) => push(&mut bytes, &ms.to_be_bytes()),
        }
    }
    for text in std::iter::once(&row.description).chain(&row.tags) {
        push(&mut bytes, text.as_bytes());
    }
    bytes
}

/// The number of an attribute in an encoded row. Numbers are never used again.
const fn code(attribute: Attribute) -> u8 {
    match attribute {
        Attribute::Name => 1,
        Attribute::Path => 2,
        Attribute::MediaType => 3,
        Attribute::ModifiedMs => 4,
        Attribute::CapturedMs => 5,
        Attribute::Application => 6,
        Attribute::User => 7,
    }
}

/// Decodes a row, and whether it includes attributes: those of earlier versions do not.
fn row_from_bytes(bytes: &[u8]) -> Option<(Row, bool)> {
    let (flags, mut rest) = bytes.split_first()?;
    let has_attributes = flags & HAS_ATTRIBUTES != 0;
    let mut attributes = Attributes::default();
    if has_attributes {
        let (count, after) = rest.split_first()?;
        rest = after;
        for _ in 0..*count {
            let (number, after) = rest.split_first()?;
            let (value, after) = part_of(after)?;
            let attribute = Attribute::ALL.into_iter().find(|a| code(*a) == *number)?;
            let value = match attribute.is_time() {
                true => AttributeValue::TimeMs(i64::from_be_bytes(value.try_into().ok()?)),
                false => AttributeValue::Text(String::from_utf8(value.to_vec()).ok()?),
            };
            attributes.set(attribute, Some(value));
            rest = after;
        }
    }
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let (text, after) = part_of(rest)?;
        texts.push(String::from_utf8(text.to_vec()).ok()?);
        rest = after;
    }
    let mut texts = texts.into_iter();
    let (description, trashed) = (texts.next()?, flags & IS_TRASHED != 0);
    Some((Row { description, trashed, tags: texts.collect(), attributes }, has_attributes))
}

/// Splits off a part that is preceded by its length.
fn part_of(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = bytes.split_first_chunk::<8>()?;
    after.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_and_one_of_an_earlier_version_has_no_attributes() {
        let mut row = Row { description: "d".into(), trashed: true, ..Row::default() };
        row.tags.extend(["a".to_owned(), String::new()]);
        let old = [&[1_u8][..], &1_u64.to_be_bytes(), b"d", &0_u64.to_be_bytes()].concat();
        let plain = Row { tags: [String::new()].into(), ..row.clone() };
        assert_eq!(row_from_bytes(&old), Some((plain, false)));
        for attribute in Attribute::ALL {
            let value = match attribute.is_time() {
                true => AttributeValue::TimeMs(-1),
                false => AttributeValue::Text("x".into()),
            };
            row.attributes.set(attribute, Some(value));
            let bytes = row_to_bytes(&row);
            assert_eq!(row_from_bytes(&bytes), Some((row.clone(), true)));
            assert_eq!(row_from_bytes(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn every_field_that_a_store_shows_is_read() {
        let fields = Attribute::ALL.map(Attribute::field);
        for field in fields.into_iter().chain([DESCRIPTION, TRASHED, TAGS]) {
            assert!(ASSET_CELLS.contains(&format!("'{field}'")), "{field}");
        }
    }
}
