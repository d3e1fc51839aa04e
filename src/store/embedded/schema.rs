//! The tables of `store.db`: created in a new file, migrated in an old one.

use std::path::Path;

use anyhow::bail;
use rusqlite::{Connection, OptionalExtension as _};

use crate::core::ids::{HashAlgorithm, StoreId};
use crate::db::migrate::{Outcome, Step, newest};
use crate::db::{Spec, open};

/// The settings of the store's database.
pub(super) const SPEC: Spec = Spec {
    name: "store",
    // The bytes "CAN1".
    application_id: 0x4341_4e31,
    writer_cache_kib: 16_000,
    reader_cache_kib: 2000,
    statements: 64,
    // Rare enough to be cheap, frequent enough that the start after a crash has little to read.
    checkpoint_pages: 4096,
    log_bytes_kept: Some(64 << 20),
    has_incremental_vacuum: false,
};

/// The migration to each version from the one before it.
const STEPS: [Step; 3] = [
    // 2: damage is recorded, see `assets.damaged` below.
    |tx| {
        Ok(tx.execute_batch(
            "ALTER TABLE assets ADD COLUMN damaged INTEGER;
             CREATE INDEX damages ON assets (damaged) WHERE damaged IS NOT NULL;",
        )?)
    },
    // 3: all attributes of assets are kept, and assets are found by their names.
    |tx| {
        Ok(tx.execute_batch(
            "ALTER TABLE assets ADD COLUMN path TEXT NOT NULL DEFAULT '';
             ALTER TABLE assets ADD COLUMN modified_ms INTEGER;
             ALTER TABLE assets ADD COLUMN captured_ms INTEGER;
             ALTER TABLE assets ADD COLUMN application TEXT NOT NULL DEFAULT '';
             ALTER TABLE assets ADD COLUMN user TEXT NOT NULL DEFAULT '';
             CREATE INDEX names ON assets (file_name);",
        )?)
    },
    // 4: a column that distinguishes evicted contents from damaged ones.
    |tx| Ok(tx.execute_batch("ALTER TABLE assets ADD COLUMN evicted INTEGER NOT NULL DEFAULT 0;")?),
];

/// The tables of the newest version.
const SCHEMA: &str = "
    CREATE TABLE store (
        id             INTEGER PRIMARY KEY CHECK (id = 1),
        store_id       BLOB    NOT NULL CHECK (length(store_id) = 16),
        hash_algorithm TEXT    NOT NULL,
        newest_cursor  INTEGER NOT NULL,
        asset_count    INTEGER NOT NULL,
        asset_bytes    INTEGER NOT NULL
    ) STRICT;

    -- The key is the asset's place in the feed, so that listing the feed is reading the table.
    -- `version` is the cursor of the last metadata change, or `cursor` when there was none: the
    -- second half of the feed is the index over it. `damaged` is the cursor at which the content was
    -- found to be damaged or was evicted, and NULL while the asset is held: the third part of the
    -- feed. `evicted` is 1 if the content was evicted.
    CREATE TABLE assets (
        cursor       INTEGER PRIMARY KEY,
        hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
        size_bytes   INTEGER NOT NULL,
        timestamp_ms INTEGER NOT NULL,
        version      INTEGER NOT NULL,
        is_file      INTEGER NOT NULL,
        is_trashed   INTEGER NOT NULL,
        file_name    TEXT    NOT NULL,
        media_type   TEXT    NOT NULL,
        description  TEXT    NOT NULL,
        damaged      INTEGER,
        path         TEXT    NOT NULL DEFAULT '',
        modified_ms  INTEGER,
        captured_ms  INTEGER,
        application  TEXT    NOT NULL DEFAULT '',
        user         TEXT    NOT NULL DEFAULT '',
        evicted      INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX edits ON assets (version) WHERE version > cursor;
    CREATE INDEX damages ON assets (damaged) WHERE damaged IS NOT NULL;
    CREATE INDEX names ON assets (file_name);

    CREATE TABLE tags (
        asset INTEGER NOT NULL REFERENCES assets (cursor),
        tag   TEXT    NOT NULL,
        PRIMARY KEY (asset, tag)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tagged ON tags (tag, asset);

    -- Apart from `assets`, so that listings do not wade through contents.
    CREATE TABLE contents (
        asset   INTEGER PRIMARY KEY REFERENCES assets (cursor),
        content BLOB    NOT NULL
    ) STRICT;

    -- Hashes whose files may be in place although their assets are not recorded yet, or no longer
    -- held.
    CREATE TABLE pending (
        hash BLOB PRIMARY KEY
    ) STRICT, WITHOUT ROWID;
";

/// Opens the writing connection, creates the tables in a new file or upgrades those of an old one,
/// and checks that the file is a can-sync store. `now_ms` is the wall clock.
pub(super) fn prepare(
    path: &Path,
    algorithm: HashAlgorithm,
    now_ms: u64,
) -> anyhow::Result<(Connection, StoreId)> {
    let (conn, outcome) = open(path, &SPEC, &STEPS, now_ms)?;
    let mode: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "wal" {
        bail!("its disk cannot keep a write-ahead log (got {mode:?}): use a local disk");
    }
    if outcome == Outcome::Empty {
        let id: [u8; StoreId::LEN] = rand::random();
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.pragma_update(None, "application_id", SPEC.application_id)?;
        conn.pragma_update(None, "user_version", newest(&STEPS))?;
        conn.execute_batch(SCHEMA)?;
        conn.execute("INSERT INTO store VALUES (1, ?1, ?2, 0, 0, 0)", (id, algorithm.name()))?;
        conn.execute_batch("COMMIT")?;
    }
    let row: Option<([u8; StoreId::LEN], String)> = conn
        .query_row("SELECT store_id, hash_algorithm FROM store", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((id, name)) = row else {
        bail!("it has lost its identity: restore it from a backup");
    };
    if name != algorithm.name() {
        bail!(
            "the store in {} names its assets by {name} and was opened for {}: \
             a store keeps its algorithm for life, so open it with {name} or use another folder",
            path.parent().unwrap_or(path).display(),
            algorithm.name()
        );
    }
    Ok((conn, StoreId(id)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_796_007_906_000;

    fn open(path: &Path) -> (Connection, StoreId) {
        prepare(path, HashAlgorithm::Blake3, NOW_MS).unwrap()
    }

    const TO_VERSION_1: &str = "
        ALTER TABLE assets DROP COLUMN evicted;
        DROP INDEX names; ALTER TABLE assets DROP COLUMN path;
        ALTER TABLE assets DROP COLUMN modified_ms; ALTER TABLE assets DROP COLUMN captured_ms;
        ALTER TABLE assets DROP COLUMN application; ALTER TABLE assets DROP COLUMN user;
        DROP INDEX damages; ALTER TABLE assets DROP COLUMN damaged; PRAGMA user_version = 1;";

    fn columns_and_indexes(conn: &Connection) -> Vec<(String, String)> {
        let mut select = conn
            .prepare(
                "SELECT m.name, coalesce(c.name, '') FROM sqlite_schema AS m
                 LEFT JOIN pragma_table_info(m.name) AS c ORDER BY 1, 2",
            )
            .unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn a_store_of_version_1_is_stepped_forward_and_copied_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let (conn, id) = open(&path);
        let new = columns_and_indexes(&conn);
        conn.execute_batch(TO_VERSION_1).unwrap();
        conn.execute_batch(
            "INSERT INTO assets VALUES (1, zeroblob(32), 3, 4, 1, 0, 0, 'name', '', '');
             INSERT INTO contents VALUES (1, x'616263'); INSERT INTO tags VALUES (1, 'kept');",
        )
        .unwrap();
        drop(conn);
        for older in ["20240101-000000", "20250101-000000"] {
            std::fs::write(dir.path().join(format!("store.db.v1-{older}.bak")), "x").unwrap();
        }

        let (conn, same_id) = open(&path);
        assert_eq!(same_id, id);
        assert_eq!(columns_and_indexes(&conn), new);
        let kept: (Vec<u8>, String, Option<i64>) = conn
            .query_row(
                "SELECT content, tag, damaged FROM assets
                 JOIN contents ON contents.asset = cursor JOIN tags ON tags.asset = cursor",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .unwrap();
        assert_eq!(kept, (b"abc".to_vec(), "kept".to_owned(), None));
        let copies = ["store.db.v1-20250101-000000.bak", "store.db.v1-20261130-030506.bak"];
        drop(conn);
        assert_eq!(names(dir.path()), ["store.db", copies[0], copies[1]], "the last two are kept");
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_store_whose_copy_does_not_fit_is_refused_with_the_bytes_needed_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let (conn, _) = open(&path);
        conn.execute_batch(TO_VERSION_1).unwrap();
        drop(conn);
        let bytes = crate::db::migrate::tests::make_huge(&path);
        let error = prepare(&path, HashAlgorithm::Blake3, NOW_MS).unwrap_err().to_string();
        assert!(error.contains(&format!("{bytes} bytes are needed")), "{error}");
        let conn = Connection::open(&path).unwrap();
        let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 1);
        drop(conn);
        assert_eq!(names(dir.path()), ["store.db"]);
    }
}
