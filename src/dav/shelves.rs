//! Assets by date and by tag: directories that nobody made.

use anyhow::Result;
use chrono::DateTime;
use rusqlite::{Connection, Row, params};

use super::index::{ENTRIES_PER_PAGE, Index};
use crate::core::attributes::Attribute;
use crate::core::export_name::{export_name, suffixed_name};
use crate::core::ids::Hash;
use crate::core::journal::asset::{TAGS, TRASHED};
use crate::core::journal::op::Value;
use crate::state::journal::Record;

/// The tables of assets.
pub(super) const SHELVES: &str = "
    CREATE TABLE assets (
        hash BLOB PRIMARY KEY,
        shown TEXT NOT NULL,
        year TEXT NOT NULL,
        month TEXT NOT NULL,
        modified_ms INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX assets_by_month ON assets (year, month, shown, hash);
    CREATE TABLE tags (
        tag TEXT NOT NULL,
        shown TEXT NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (tag, shown, hash)
    ) WITHOUT ROWID;
    CREATE INDEX tags_by_hash ON tags (hash);
";

/// A directory of assets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shelf {
    /// Those of a month; both are `undated` where no date is known.
    Month(String, String),
    /// Those with a tag.
    Tag(String),
}

/// An asset in a [`Shelf`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shelved {
    pub(super) name: String,
    pub(super) hash: Hash,
    pub(super) modified_ms: Option<i64>,
}

/// Where the next page of a shelf starts: the name and hash of the last row read.
pub(super) type ShelfPlace = (String, Hash);

impl Index {
    /// The years of which there are assets, or the months of one.
    pub(super) async fn dates(&self, year: Option<String>) -> Result<Vec<String>> {
        self.ask(move |connection| {
            let text = |row: &Row<'_>| row.get::<_, String>(0);
            let found = match &year {
                None => connection
                    .prepare_cached("SELECT DISTINCT year FROM assets ORDER BY year")?
                    .query_map([], text)?
                    .collect::<rusqlite::Result<_>>(),
                Some(year) => connection
                    .prepare_cached(
                        "SELECT DISTINCT month FROM assets WHERE year = ?1 ORDER BY month",
                    )?
                    .query_map([year], text)?
                    .collect(),
            };
            Ok(found?)
        })
        .await
    }

    /// The tags after one, at most [`ENTRIES_PER_PAGE`].
    pub(super) async fn tags(&self, after: String) -> Result<Vec<String>> {
        self.ask(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT DISTINCT tag FROM tags WHERE tag > ?1 ORDER BY tag LIMIT ?2",
            )?;
            let limit = ENTRIES_PER_PAGE as i64;
            let rows = query.query_map(params![after, limit], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Whether there are assets in a shelf.
    pub(super) async fn is_shelf(&self, shelf: Shelf) -> Result<bool> {
        self.ask(move |connection| match &shelf {
            Shelf::Month(year, month) => Ok(connection
                .prepare_cached("SELECT 1 FROM assets WHERE year = ?1 AND month = ?2")?
                .exists([year, month])?),
            Shelf::Tag(tag) => {
                Ok(connection.prepare_cached("SELECT 1 FROM tags WHERE tag = ?1")?.exists([tag])?)
            }
        })
        .await
    }

    /// The assets in a shelf after a place. A name that several have is shown with the start of the
    /// hash in it.
    pub(super) async fn shelved(
        &self,
        shelf: Shelf,
        after: Option<ShelfPlace>,
    ) -> Result<(Vec<Shelved>, Option<ShelfPlace>)> {
        self.ask(move |connection| {
            let (last_name, last_hash) = match &after {
                Some((name, hash)) => (name.as_str(), hash.0.as_slice()),
                None => ("", [].as_slice()),
            };
            // One more than is shown: whether the last has its name alone.
            let limit = ENTRIES_PER_PAGE as i64 + 1;
            let place = params![last_name, last_hash, limit];
            let mut rows: Vec<Shelved> = match &shelf {
                Shelf::Month(year, month) => connection
                    .prepare_cached(
                        "SELECT shown, hash, modified_ms FROM assets
                         WHERE year = ?1 AND month = ?2 AND (shown, hash) > (?3, ?4)
                         ORDER BY shown, hash LIMIT ?5",
                    )?
                    .query_map(params![year, month, place[0], place[1], place[2]], shelved)?
                    .collect::<rusqlite::Result<_>>()?,
                Shelf::Tag(tag) => connection
                    .prepare_cached(
                        "SELECT t.shown, t.hash, a.modified_ms FROM tags t JOIN assets a USING (hash)
                         WHERE t.tag = ?1 AND (t.shown, t.hash) > (?2, ?3)
                         ORDER BY t.shown, t.hash LIMIT ?4",
                    )?
                    .query_map(params![tag, place[0], place[1], place[2]], shelved)?
                    .collect::<rusqlite::Result<_>>()?,
            };
            let names: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
            let has_more = rows.len() > ENTRIES_PER_PAGE;
            rows.truncate(ENTRIES_PER_PAGE);
            let next = rows.last().filter(|_| has_more).map(|row| (row.name.clone(), row.hash));
            for (at, row) in rows.iter_mut().enumerate() {
                let before = match at {
                    0 => after.as_ref().map(|(name, _)| name),
                    _ => names.get(at - 1),
                };
                if before == Some(&names[at]) || names.get(at + 1) == Some(&names[at]) {
                    row.name = suffixed_name(&row.name, &row.hash);
                }
            }
            Ok((rows, next))
        })
        .await
    }

    /// The asset of this name in a shelf.
    pub(super) async fn find_shelved(&self, shelf: Shelf, name: String) -> Result<Option<Shelved>> {
        self.ask(move |connection| {
            let plain = find_shown(connection, &shelf, "shown = ?1", params![name])?;
            if let [only] = plain.as_slice() {
                return Ok(Some(only.clone()));
            }
            // The name of one of several: `NAME-HASH.EXT`.
            let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
            let short = [stem, name.as_str()].into_iter().find_map(|text| {
                let short = text.rsplit_once('-')?.1;
                data_encoding::HEXLOWER
                    .decode(short.as_bytes())
                    .ok()
                    .filter(|short| short.len() == 5)
            });
            let Some(first) = short else { return Ok(plain.into_iter().next()) };
            let last = [first.as_slice(), &[0xff; Hash::LEN]].concat();
            let found =
                find_shown(connection, &shelf, "hash >= ?1 AND hash <= ?2", params![first, last])?;
            let is_it = |row: &Shelved| suffixed_name(&row.name, &row.hash) == name;
            Ok(found.into_iter().find(is_it).map(|row| Shelved { name, ..row }))
        })
        .await
    }
}

/// Takes up what the journal holds about an asset now.
pub(super) fn set_asset(db: &Connection, hash: Hash, record: Option<&Record>) -> Result<()> {
    db.prepare_cached("DELETE FROM assets WHERE hash = ?1")?.execute([hash.0])?;
    db.prepare_cached("DELETE FROM tags WHERE hash = ?1")?.execute([hash.0])?;
    let Some(record) = record else { return Ok(()) };
    let field = |name: &str| record.fields.get(name).and_then(Option::as_ref);
    if matches!(field(TRASHED), Some(Value::Bool(true))) {
        return Ok(());
    }
    let time = |attribute: Attribute| match field(attribute.field()) {
        Some(Value::Int(ms)) => Some(*ms),
        _ => None,
    };
    let name = match field(Attribute::Name.field()) {
        Some(Value::Text(name)) => export_name(name),
        _ => None,
    };
    let shown = name.unwrap_or_else(|| hash.to_string());
    let modified_ms = time(Attribute::ModifiedMs);
    let taken_ms = time(Attribute::CapturedMs).or(modified_ms);
    let taken = taken_ms.and_then(DateTime::from_timestamp_millis);
    let (year, month) = match taken {
        Some(taken) => (taken.format("%Y").to_string(), taken.format("%m").to_string()),
        None => ("undated".to_owned(), "undated".to_owned()),
    };
    db.prepare_cached(
        "INSERT INTO assets (hash, shown, year, month, modified_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![hash.0, shown, year, month, modified_ms.or(taken_ms)])?;
    for tag in record.sets.get(TAGS).into_iter().flatten() {
        let Some(tag) = export_name(&tag.replace(['/', '\\'], "-")) else { continue };
        db.prepare_cached("INSERT OR IGNORE INTO tags (tag, shown, hash) VALUES (?1, ?2, ?3)")?
            .execute(params![tag, shown, hash.0])?;
    }
    Ok(())
}

fn shelved(row: &Row<'_>) -> rusqlite::Result<Shelved> {
    Ok(Shelved { name: row.get(0)?, hash: Hash(row.get(1)?), modified_ms: row.get(2)? })
}

/// The first two assets of a shelf that satisfy a condition on `shown` and `hash`.
fn find_shown(
    db: &Connection,
    shelf: &Shelf,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<Shelved>> {
    let of_shelf = match shelf {
        Shelf::Month(..) => "assets WHERE year = ?8 AND month = ?9",
        Shelf::Tag(_) => {
            "(SELECT t.tag, t.shown, hash, a.modified_ms FROM tags t JOIN assets a USING (hash))
            WHERE tag = ?8"
        }
    };
    let mut query = db.prepare_cached(&format!(
        "SELECT shown, hash, modified_ms FROM {of_shelf} AND {condition} ORDER BY hash LIMIT 2"
    ))?;
    for (at, value) in values.iter().enumerate() {
        query.raw_bind_parameter(at + 1, value)?;
    }
    match shelf {
        Shelf::Month(year, month) => {
            query.raw_bind_parameter(8, year)?;
            query.raw_bind_parameter(9, month)?;
        }
        Shelf::Tag(tag) => query.raw_bind_parameter(8, tag)?,
    }
    let mut rows = query.raw_query();
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(shelved(row)?);
    }
    Ok(found)
}
