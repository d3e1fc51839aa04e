//! The wishes to forget assets, as this device has seen them: since when, and whether they took effect
//! here. [`crate::core::forgetting`] decides.

use std::collections::BTreeSet;

use rusqlite::params;

use super::Copies;
use crate::core::ids::Hash;
use crate::db::{self, int, row_u64};

/// `wishes.applied`: whether the asset is in `let_go` because of the wish.
pub(super) const SCHEMA: &str = "
CREATE TABLE wishes (
    hash BLOB PRIMARY KEY,
    seen_ms INTEGER NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
";

impl Copies {
    /// Takes up all wishes that there are now: new ones are seen now, and those that were taken back
    /// have no effect any more. Returns the assets of those that had one.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn note_wishes(&self, wished: BTreeSet<Hash>, now_ms: u64) -> db::Result<Vec<Hash>> {
        self.write(move |tx| {
            let known: Vec<(Hash, bool)> = tx
                .conn
                .prepare_cached("SELECT hash, applied FROM wishes")?
                .query_map([], |row| Ok((Hash(row.get(0)?), row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut wanted_again = Vec::new();
            for (hash, is_applied) in known.iter().filter(|(hash, _)| !wished.contains(hash)) {
                wanted_again.extend(is_applied.then_some(*hash));
                let hash = [hash.as_bytes()];
                if *is_applied {
                    let delete = "DELETE FROM let_go WHERE hash = ?1 AND keeping = 2";
                    tx.conn.prepare_cached(delete)?.execute(hash)?;
                }
                tx.conn.prepare_cached("DELETE FROM wishes WHERE hash = ?1")?.execute(hash)?;
            }
            let insert = "INSERT OR IGNORE INTO wishes (hash, seen_ms) VALUES (?1, ?2)";
            let mut insert = tx.conn.prepare_cached(insert)?;
            for hash in &wished {
                insert.execute(params![hash.as_bytes(), int(now_ms)])?;
            }
            Ok(wanted_again)
        })
    }

    /// The wishes that have no effect yet, each with when it was first seen.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_wishes(&self) -> db::Result<Vec<(Hash, u64)>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT hash, seen_ms FROM wishes WHERE applied = 0")?
                .query_map([], |row| Ok((Hash(row.get(0)?), row_u64(row, 1)?)))?
                .collect()
        })
    }

    /// Does not want an asset any more that is not here, because of a wish.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn apply_wish(&self, hash: Hash, now_ms: u64) -> db::Result<()> {
        self.note_letting_go();
        self.write(move |tx| {
            let insert = "INSERT OR IGNORE INTO let_go VALUES (?1, 2, ?2)";
            tx.conn.prepare_cached(insert)?.execute(params![hash.as_bytes(), int(now_ms)])?;
            let update = "UPDATE wishes SET applied = 1 WHERE hash = ?1";
            tx.conn.prepare_cached(update)?.execute([hash.as_bytes()])?;
            Ok(())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_seen_once_and_what_it_did_ends_when_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("copies.db")).unwrap();
        let (one, two) = (Hash([1; 32]), Hash([2; 32]));
        copies.note_wishes([one].into(), 100).unwrap();
        copies.note_wishes([one, two].into(), 200).unwrap();
        assert_eq!(copies.open_wishes().unwrap(), [(one, 100), (two, 200)]);
        copies.apply_wish(one, 300).unwrap();
        assert_eq!(copies.open_wishes().unwrap(), [(two, 200)]);
        assert_eq!(copies.are_evicted(&[one, two]).unwrap(), [true, false]);
        copies.note_wishes([two].into(), 400).unwrap();
        assert_eq!(copies.are_evicted(&[one, two]).unwrap(), [false, false]);
        copies.note_wishes([one, two].into(), 500).unwrap();
        assert_eq!(copies.open_wishes().unwrap(), [(one, 500), (two, 200)], "it begins anew");
    }
}
