//! The statements that list assets: the feed after a cursor, and what fits a filter.

use data_encoding::HEXLOWER_PERMISSIVE;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::db::sql_error;
use super::rows::{ASSET, Result, asset, entry, totals};
use crate::core::ids::{Digest, Hash};
use crate::core::names::NamePattern;
use crate::db::{int, row_u64};
use crate::store::{Asset, Changes, Cursor, Entry, Filter};

/// A line of the feed with all its details, for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedLine {
    /// The asset's position in the feed.
    pub cursor: Cursor,
    /// The change.
    pub kind: FeedKind,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedKind {
    /// An asset was stored.
    Asset {
        /// The asset.
        digest: Digest,
        /// When it was stored, ms since the Unix epoch.
        timestamp_ms: i64,
    },
    /// An asset's metadata was changed. Only the last change of an asset is in the feed.
    Meta {
        /// The asset.
        hash: Hash,
        /// The metadata's version since then.
        version: u64,
    },
    /// An asset is no longer held: its content was found damaged.
    Gone {
        /// The asset.
        hash: Hash,
    },
}

enum Listed {
    Held(Entry),
    Gone(Hash),
}

/// Reads a consistent page of the feed.
pub(super) fn changes(conn: &Connection, after: Cursor, limit: usize) -> Result<Changes> {
    let read = || {
        // One statement is one snapshot; so are two in a transaction.
        let txn = conn.unchecked_transaction()?;
        let newest = totals(&txn)?.newest_cursor;
        let mut lines: Vec<(Cursor, Listed)> = txn
            .prepare_cached(
                "SELECT cursor AS place, hash, size_bytes, timestamp_ms FROM assets
                 WHERE cursor > ?1 AND damaged IS NULL
                 UNION ALL
                 SELECT damaged, hash, NULL, NULL FROM assets WHERE damaged > ?1
                 ORDER BY place LIMIT ?2",
            )?
            .query_map((int(after), int(limit as u64 + 1)), |row| {
                let size: Option<i64> = row.get(2)?;
                let listed = match size {
                    Some(_) => Listed::Held(entry(row)?),
                    None => Listed::Gone(Hash(row.get(1)?)),
                };
                Ok((row_u64(row, 0)?, listed))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let has_more = lines.len() > limit;
        lines.truncate(limit);
        let next = match lines.last() {
            Some((last, _)) if has_more => *last,
            None if has_more => after,
            _ => newest,
        };
        let mut changes = Changes { next, has_more, ..Changes::default() };
        for (_, listed) in lines {
            match listed {
                Listed::Held(entry) => changes.entries.push(entry),
                Listed::Gone(hash) => changes.gone.push(hash),
            }
        }
        Ok(changes)
    };
    read().map_err(sql_error)
}

/// Assets, metadata changes and damage after a cursor, merged in cursor order.
pub(super) fn feed(conn: &Connection, after: Cursor, limit: usize) -> Result<Vec<FeedLine>> {
    let read = || {
        conn.prepare_cached(
            "SELECT cursor AS place, hash, size_bytes, timestamp_ms, FALSE FROM assets
             WHERE cursor > ?1 AND damaged IS NULL
             UNION ALL
             SELECT version, hash, NULL, NULL, FALSE FROM assets
             WHERE version > cursor AND version > ?1
             UNION ALL
             SELECT damaged, hash, NULL, NULL, TRUE FROM assets WHERE damaged > ?1
             ORDER BY place LIMIT ?2",
        )?
        .query_map((int(after), int(limit as u64)), |row| {
            let cursor = row_u64(row, 0)?;
            let hash = Hash(row.get(1)?);
            let size: Option<i64> = row.get(2)?;
            let kind = match size {
                Some(_) => FeedKind::Asset {
                    digest: Digest { hash, size_bytes: row_u64(row, 2)? },
                    timestamp_ms: row.get(3)?,
                },
                None if row.get(4)? => FeedKind::Gone { hash },
                None => FeedKind::Meta { hash, version: cursor },
            };
            Ok(FeedLine { cursor, kind })
        })?
        .collect::<rusqlite::Result<_>>()
    };
    read().map_err(sql_error)
}

pub(super) fn list(
    conn: &Connection,
    filter: &Filter,
    after: Cursor,
    limit: usize,
) -> Result<Vec<Asset>> {
    let Filter {
        tag,
        media_type,
        query,
        trashed,
        hash_prefix,
        name,
        since_ms,
        until_ms,
        newest_first,
    } = filter;
    let start = name.as_ref().map_or("", NamePattern::name_start);
    // Left to itself, SQLite would rather read all rows in their order than sort the few that fit.
    let index = if start.is_empty() { "" } else { "INDEXED BY names" };
    let (beyond, order, start_at) = match (newest_first, after) {
        (false, after) => ("cursor > ?", "cursor", int(after)),
        (true, 0) => ("cursor <= ?", "cursor DESC", i64::MAX),
        (true, before) => ("cursor < ?", "cursor DESC", int(before)),
    };
    let mut sql = format!("SELECT {ASSET} FROM assets {index} WHERE {beyond}");
    let mut values: Vec<Value> = vec![start_at.into()];
    if !start.is_empty() {
        sql += " AND file_name >= ? AND file_name < ?";
        values.push(start.to_owned().into());
        // No text has a character beyond this one.
        values.push(format!("{start}{}", char::MAX).into());
    }
    for (condition, time_ms) in
        [(" AND timestamp_ms >= ?", since_ms), (" AND timestamp_ms < ?", until_ms)]
    {
        if let Some(time_ms) = time_ms {
            sql += condition;
            values.push((*time_ms).into());
        }
    }
    if let Some(tag) = tag {
        sql += " AND cursor IN (SELECT asset FROM tags WHERE tag = ?)";
        values.push(tag.clone().into());
    }
    if let Some(media_type) = media_type {
        if media_type.ends_with('/') {
            sql += " AND substr(media_type, 1, length(?)) = ?";
            values.push(media_type.clone().into());
        } else {
            sql += " AND media_type = ?";
        }
        values.push(media_type.clone().into());
    }
    if let Some(query) = query {
        // SQLite's lower() changes ASCII only, which is what the filter promises.
        sql += " AND (instr(lower(file_name), ?) > 0 OR instr(lower(description), ?) > 0)";
        let query = query.to_ascii_lowercase();
        values.push(query.clone().into());
        values.push(query.into());
    }
    if let Some(trashed) = trashed {
        sql += " AND is_trashed = ?";
        values.push((*trashed).into());
    }
    if let Some(prefix) = hash_prefix {
        let Some((first, last)) = hash_range(prefix) else {
            return Ok(Vec::new());
        };
        sql += " AND hash BETWEEN ? AND ?";
        values.push(first.as_bytes().to_vec().into());
        values.push(last.as_bytes().to_vec().into());
    }
    sql += &format!(" ORDER BY {order}");
    let fits = |row: &rusqlite::Result<Asset>| match (row, name) {
        (Ok(asset), Some(name)) => {
            let attributes = &asset.metadata.attributes;
            name.fits(attributes.path(), attributes.name())
        }
        _ => true,
    };
    let read = || {
        let mut statement = conn.prepare_cached(&sql)?;
        let rows = statement.query_map(rusqlite::params_from_iter(values), asset)?;
        rows.filter(fits).take(limit).collect::<rusqlite::Result<_>>()
    };
    read().map_err(sql_error)
}

/// The first and last hash whose hex starts with `prefix`; `None` if there is no such hash.
fn hash_range(prefix: &str) -> Option<(Hash, Hash)> {
    let fill = |digit: char| {
        let rest = (2 * Hash::LEN).checked_sub(prefix.len())?;
        let hex: String = prefix.chars().chain((0..rest).map(|_| digit)).collect();
        Hash::from_slice(&HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()?)
    };
    Some((fill('0')?, fill('f')?))
}
