//! The statements that read and write the tables of [`super::schema`].
//!
//! Only a row that is really new or changed takes a cursor from the totals, inside the writer's
//! transaction. Rows are never deleted, so no cursor is given twice. A damaged asset keeps its row
//! and its metadata; once whole again, it gets a new position in the feed.

use std::collections::BTreeSet;

use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::db::{Txn, sql_error};
use crate::core::attributes::{Attribute, AttributeValue, Attributes};
use crate::core::ids::{Digest, Hash};
use crate::db::{int, row_u64};
use crate::store::{Asset, Cursor, Entry, Metadata, StoreError, Stored};

/// The totals of [`crate::store::StoreInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) newest_cursor: Cursor,
    pub(super) asset_count: u64,
    pub(super) asset_bytes: u64,
    /// Not included in the counts above; counted when the store is opened and kept current from
    /// there.
    pub(super) damaged_count: u64,
}

/// An asset to record.
pub(super) struct NewRow {
    pub(super) digest: Digest,
    pub(super) metadata: Metadata,
    pub(super) timestamp_ms: i64,
    /// `None`: the content is a file that is already in place and durable.
    pub(super) inline: Option<Bytes>,
}

/// Where a content is.
pub(super) enum Content {
    Inline(Bytes),
    File,
}

/// The record of an asset's content.
pub(super) struct Recorded {
    pub(super) cursor: Cursor,
    pub(super) size_bytes: u64,
    pub(super) is_damaged: bool,
    pub(super) is_evicted: bool,
    pub(super) content: Content,
}

impl Recorded {
    /// Whether the content is there as far as is known.
    pub(super) fn is_held(&self) -> bool {
        !self.is_damaged && !self.is_evicted
    }
}

/// An asset's columns, in the order in which [`asset`] reads them.
pub(super) const ASSET: &str = "
    cursor, hash, size_bytes, timestamp_ms, version, is_trashed, file_name, media_type, description,
    damaged, path, modified_ms, captured_ms, application, user,
    (SELECT json_group_array(tag ORDER BY tag) FROM tags WHERE tags.asset = assets.cursor), evicted";

pub(super) type Result<T> = std::result::Result<T, StoreError>;

pub(super) fn totals(conn: &Connection) -> rusqlite::Result<Totals> {
    conn.prepare_cached(
        "SELECT newest_cursor, asset_count, asset_bytes,
                (SELECT count(*) FROM assets WHERE damaged IS NOT NULL AND NOT evicted)
         FROM store",
    )?
    .query_row([], |row| {
        Ok(Totals {
            newest_cursor: row_u64(row, 0)?,
            asset_count: row_u64(row, 1)?,
            asset_bytes: row_u64(row, 2)?,
            damaged_count: row_u64(row, 3)?,
        })
    })
}

pub(super) fn save_totals(conn: &Connection, totals: &Totals) -> Result<()> {
    conn.prepare_cached("UPDATE store SET newest_cursor = ?1, asset_count = ?2, asset_bytes = ?3")
        .and_then(|mut statement| {
            statement.execute((
                int(totals.newest_cursor),
                int(totals.asset_count),
                int(totals.asset_bytes),
            ))
        })
        .map(|_| ())
        .map_err(sql_error)
}

/// Records that files of this hash may be in place before the asset is recorded.
pub(super) fn reserve(txn: &mut Txn<'_>, hash: Hash) -> Result<()> {
    txn.conn
        .prepare_cached("INSERT OR IGNORE INTO pending VALUES (?1)")
        .and_then(|mut pending| pending.execute([hash.as_bytes()]))
        .map(|_| ())
        .map_err(sql_error)
}

/// The hashes that an earlier run reserved but did not record.
pub(super) fn pending(conn: &Connection) -> rusqlite::Result<Vec<Hash>> {
    conn.prepare("SELECT hash FROM pending")?.query_map([], |row| Ok(Hash(row.get(0)?)))?.collect()
}

pub(super) fn forget_pending(txn: &mut Txn<'_>) -> Result<()> {
    txn.conn.execute_batch("DELETE FROM pending").map_err(sql_error)
}

pub(super) fn record(txn: &mut Txn<'_>, rows: &[NewRow]) -> Result<Vec<Stored>> {
    rows.iter().map(|row| record_one(txn, row).map_err(sql_error)).collect()
}

fn record_one(txn: &mut Txn<'_>, new: &NewRow) -> rusqlite::Result<Stored> {
    let cursor = int(txn.state.totals.newest_cursor + 1);
    let metadata = &new.metadata;
    let attributes = &metadata.attributes;
    let inserted = txn
        .conn
        .prepare_cached(
            "INSERT INTO assets (cursor, hash, size_bytes, timestamp_ms, version, is_file,
                                 is_trashed, description, file_name, media_type, path,
                                 modified_ms, captured_ms, application, user)
             VALUES (?1, ?2, ?3, ?4, ?1, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (hash) DO NOTHING",
        )?
        .execute(params![
            cursor,
            new.digest.hash.as_bytes(),
            int(new.digest.size_bytes),
            new.timestamp_ms,
            new.inline.is_none(),
            metadata.trashed,
            &metadata.description,
            attributes.name(),
            attributes.media_type(),
            attributes.path(),
            attributes.time_ms(Attribute::ModifiedMs),
            attributes.time_ms(Attribute::CapturedMs),
            attributes.text(Attribute::Application),
            attributes.text(Attribute::User),
        ])?;
    if new.inline.is_none() {
        txn.conn
            .prepare_cached("DELETE FROM pending WHERE hash = ?1")?
            .execute([new.digest.hash.as_bytes()])?;
    }
    if inserted == 0 {
        return make_whole(txn, new);
    }
    insert_content(txn.conn, cursor, new.inline.as_ref())?;
    insert_tags(txn.conn, cursor, &metadata.tags)?;
    txn.state.totals.newest_cursor += 1;
    txn.state.totals.asset_count += 1;
    txn.state.totals.asset_bytes += new.digest.size_bytes;
    Ok(Stored::New)
}

fn insert_content(conn: &Connection, cursor: i64, content: Option<&Bytes>) -> rusqlite::Result<()> {
    if let Some(content) = content {
        conn.prepare_cached("INSERT INTO contents VALUES (?1, ?2)")?
            .execute((cursor, content.as_ref()))?;
    }
    Ok(())
}

/// Stores a content whose asset has a row already. If the old content is damaged, the new one
/// replaces it, and the row moves to the end of the feed.
fn make_whole(txn: &mut Txn<'_>, new: &NewRow) -> rusqlite::Result<Stored> {
    let hash = new.digest.hash;
    let Some(recorded) = recorded(txn.conn, hash)? else {
        return Ok(Stored::Existed);
    };
    let is_whole = match (&recorded.content, &new.inline) {
        _ if !recorded.is_held() => false,
        (Content::Inline(content), Some(whole)) => content == whole,
        // The caller has checked whether a file is whole.
        _ => true,
    };
    if is_whole {
        return Ok(Stored::Existed);
    }
    let (old, cursor) = (int(recorded.cursor), int(txn.state.totals.newest_cursor + 1));
    // Foreign keys are checked at the commit: by then the tags and the content have the row's new key.
    txn.conn.execute_batch("PRAGMA defer_foreign_keys = ON")?;
    txn.conn
        .prepare_cached(
            "UPDATE assets SET cursor = ?2, version = ?2, damaged = NULL, evicted = 0,
                               timestamp_ms = ?3, is_file = ?4
             WHERE cursor = ?1",
        )?
        .execute((old, cursor, new.timestamp_ms, new.inline.is_none()))?;
    txn.conn
        .prepare_cached("UPDATE tags SET asset = ?2 WHERE asset = ?1")?
        .execute((old, cursor))?;
    txn.conn.prepare_cached("DELETE FROM contents WHERE asset = ?1")?.execute([old])?;
    insert_content(txn.conn, cursor, new.inline.as_ref())?;
    txn.state.totals.newest_cursor += 1;
    if recorded.is_held() {
        txn.state.found_damaged.push(hash);
    } else {
        txn.state.totals.asset_count += 1;
        txn.state.totals.asset_bytes += recorded.size_bytes;
        txn.state.totals.damaged_count -= u64::from(recorded.is_damaged);
    }
    Ok(Stored::New)
}

/// Records that the content of an asset is deleted on purpose: it is not held from now on. Returns
/// false if it was not held before. Content in the database goes with it; files are reserved, so that
/// a later start deletes what a crash leaves.
pub(super) fn evict(txn: &mut Txn<'_>, hash: Hash) -> Result<bool> {
    let evict = |txn: &mut Txn<'_>| {
        let evicted = txn
            .conn
            .prepare_cached(
                "UPDATE assets SET damaged = ?2, evicted = 1
                 WHERE hash = ?1 AND damaged IS NULL RETURNING cursor, size_bytes",
            )?
            .query_row((hash.as_bytes(), int(txn.state.totals.newest_cursor + 1)), |row| {
                Ok((row_u64(row, 0)?, row_u64(row, 1)?))
            })
            .optional()?;
        let Some((cursor, size_bytes)) = evicted else { return Ok(false) };
        txn.conn.prepare_cached("DELETE FROM contents WHERE asset = ?1")?.execute([int(cursor)])?;
        txn.state.totals.newest_cursor += 1;
        txn.state.totals.asset_count -= 1;
        txn.state.totals.asset_bytes -= size_bytes;
        Ok(true)
    };
    let was_held = evict(txn).map_err(sql_error)?;
    if was_held {
        reserve(txn, hash)?;
    }
    Ok(was_held)
}

/// Records that no files of an asset are left that is not held.
pub(super) fn release(txn: &mut Txn<'_>, hash: Hash) -> Result<()> {
    txn.conn
        .prepare_cached("DELETE FROM pending WHERE hash = ?1")
        .and_then(|mut pending| pending.execute([hash.as_bytes()]))
        .map(|_| ())
        .map_err(sql_error)
}

/// Marks the content of an asset as damaged: the asset is not held from now on. Does nothing if the
/// asset was stored again, under another cursor, since it was read.
pub(super) fn mark_damaged(txn: &mut Txn<'_>, hash: Hash, seen: Cursor) -> Result<()> {
    let mark = || {
        txn.conn
            .prepare_cached(
                "UPDATE assets SET damaged = ?3
                 WHERE hash = ?1 AND cursor = ?2 AND damaged IS NULL RETURNING size_bytes",
            )?
            .query_row(
                (hash.as_bytes(), int(seen), int(txn.state.totals.newest_cursor + 1)),
                |row| row_u64(row, 0),
            )
            .optional()
    };
    if let Some(size_bytes) = mark().map_err(sql_error)? {
        txn.state.totals.newest_cursor += 1;
        txn.state.totals.asset_count -= 1;
        txn.state.totals.asset_bytes -= size_bytes;
        txn.state.totals.damaged_count += 1;
        txn.state.found_damaged.push(hash);
    }
    Ok(())
}

/// Replaces the metadata. An edit that changes nothing takes no cursor.
pub(super) fn edit(
    txn: &mut Txn<'_>,
    hash: Hash,
    metadata: &Metadata,
    expected_version: Option<u64>,
) -> Result<Metadata> {
    let Some(asset) = lookup(txn.conn, hash)? else {
        return Err(StoreError::NotFound(hash));
    };
    let current = asset.metadata;
    if expected_version.is_some_and(|version| version != current.version) {
        return Err(StoreError::Conflict(Box::new(current)));
    }
    let edited = Metadata {
        description: metadata.description.clone(),
        tags: sorted(&metadata.tags).map(str::to_owned).collect(),
        trashed: metadata.trashed,
        attributes: metadata.attributes.clone(),
        version: current.version,
    };
    if edited == current {
        return Ok(current);
    }
    let version = txn.state.totals.newest_cursor + 1;
    let asset = int(asset.entry.cursor);
    let write = || {
        txn.conn
            .prepare_cached(
                "UPDATE assets SET version = ?2, is_trashed = ?3, description = ?4, file_name = ?5,
                     media_type = ?6, path = ?7, modified_ms = ?8, captured_ms = ?9,
                     application = ?10, user = ?11
                 WHERE cursor = ?1",
            )?
            .execute(params![
                asset,
                int(version),
                edited.trashed,
                &edited.description,
                edited.attributes.name(),
                edited.attributes.media_type(),
                edited.attributes.path(),
                edited.attributes.time_ms(Attribute::ModifiedMs),
                edited.attributes.time_ms(Attribute::CapturedMs),
                edited.attributes.text(Attribute::Application),
                edited.attributes.text(Attribute::User),
            ])?;
        txn.conn.prepare_cached("DELETE FROM tags WHERE asset = ?1")?.execute([asset])?;
        insert_tags(txn.conn, asset, &edited.tags)
    };
    write().map_err(sql_error)?;
    txn.state.totals.newest_cursor = version;
    Ok(Metadata { version, ..edited })
}

pub(super) fn lookup(conn: &Connection, hash: Hash) -> Result<Option<Asset>> {
    conn.prepare_cached(&format!("SELECT {ASSET} FROM assets WHERE hash = ?1"))
        .and_then(|mut statement| statement.query_row([hash.as_bytes()], asset).optional())
        .map_err(sql_error)
}

/// Whether there is a row whose content was not evicted, damaged or not.
pub(super) fn is_recorded(conn: &Connection, hash: Hash) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM assets WHERE hash = ?1 AND NOT evicted")?
        .exists([hash.as_bytes()])
}

/// Whether files of the hash have a reason to be there: a row whose content is a file, or one about
/// to be written.
pub(super) fn has_files(conn: &Connection, hash: Hash) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT 1 FROM assets WHERE hash = ?1 AND is_file AND NOT evicted
         UNION ALL SELECT 1 FROM pending WHERE hash = ?1",
    )?
    .exists([hash.as_bytes()])
}

/// The assets that are marked as damaged, by the time of the mark, at most `limit`; with the cursor
/// of each mark.
pub(super) fn marked(
    conn: &Connection,
    after: Cursor,
    limit: usize,
) -> rusqlite::Result<Vec<(Cursor, Digest)>> {
    conn.prepare_cached(
        "SELECT damaged, hash, size_bytes FROM assets WHERE damaged > ?1 AND NOT evicted
         ORDER BY damaged LIMIT ?2",
    )?
    .query_map((int(after), int(limit as u64)), |row| {
        Ok((row_u64(row, 0)?, Digest { hash: Hash(row.get(1)?), size_bytes: row_u64(row, 2)? }))
    })?
    .collect()
}

/// The record of an asset's content, with the content if it is in the database.
pub(super) fn recorded(conn: &Connection, hash: Hash) -> rusqlite::Result<Option<Recorded>> {
    conn.prepare_cached(
        "SELECT cursor, size_bytes, damaged IS NOT NULL AND NOT evicted, is_file, content, evicted
         FROM assets
         LEFT JOIN contents ON contents.asset = assets.cursor WHERE hash = ?1",
    )?
    .query_row([hash.as_bytes()], |row| {
        let content = match row.get(3)? {
            true => Content::File,
            // A missing content counts like a truncated one.
            false => Content::Inline(row.get::<_, Option<Vec<u8>>>(4)?.unwrap_or_default().into()),
        };
        Ok(Recorded {
            cursor: row_u64(row, 0)?,
            size_bytes: row_u64(row, 1)?,
            is_damaged: row.get(2)?,
            is_evicted: row.get(5)?,
            content,
        })
    })
    .optional()
}

fn insert_tags(conn: &Connection, asset: i64, tags: &[String]) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached("INSERT INTO tags VALUES (?1, ?2)")?;
    for tag in sorted(tags) {
        insert.execute((asset, tag))?;
    }
    Ok(())
}

fn sorted(tags: &[String]) -> impl Iterator<Item = &str> {
    let tags: BTreeSet<&str> = tags.iter().map(String::as_str).collect();
    tags.into_iter()
}

pub(super) fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        cursor: row_u64(row, 0)?,
        digest: Digest { hash: Hash(row.get(1)?), size_bytes: row_u64(row, 2)? },
        timestamp_ms: row.get(3)?,
    })
}

pub(super) fn asset(row: &Row<'_>) -> rusqlite::Result<Asset> {
    let tags: String = row.get(15)?;
    let text = |attribute, column| -> rusqlite::Result<_> {
        Ok((attribute, AttributeValue::Text(row.get(column)?)))
    };
    let texts = [
        text(Attribute::Name, 6)?,
        text(Attribute::MediaType, 7)?,
        text(Attribute::Path, 10)?,
        text(Attribute::Application, 13)?,
        text(Attribute::User, 14)?,
    ];
    let attributes = Attributes::from_iter(texts)
        .with_time(Attribute::ModifiedMs, row.get(11)?)
        .with_time(Attribute::CapturedMs, row.get(12)?);
    Ok(Asset {
        entry: entry(row)?,
        is_damaged: row.get::<_, Option<i64>>(9)?.is_some() && !row.get::<_, bool>(16)?,
        is_evicted: row.get(16)?,
        metadata: Metadata {
            version: row_u64(row, 4)?,
            trashed: row.get(5)?,
            attributes,
            description: row.get(8)?,
            tags: serde_json::from_str(&tags).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(15, Type::Text, error.into())
            })?,
        },
    })
}
