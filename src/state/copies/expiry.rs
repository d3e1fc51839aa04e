//! Contents that nothing holds any more: since when this device has seen that, and which of them it let
//! go of because of that. [`crate::core::expiry`] decides.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::Copies;
use crate::core::expiry::Waits;
use crate::core::ids::Hash;
use crate::db::{self, int, row_u64};

/// `expiring.walk`: the number of the last walk over all contents that saw it; `applied`: whether it is
/// in `let_go` because of this. `tells_since`: from when on what is added for itself tells that.
pub(super) const SCHEMA: &str = "
CREATE TABLE expiring (
    hash BLOB PRIMARY KEY,
    trash INTEGER NOT NULL,
    versions INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    walk INTEGER NOT NULL,
    applied INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE tells_since (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at_ms INTEGER NOT NULL
) STRICT;
";

/// Creates the tables.
pub(super) fn create(tx: &Transaction<'_>, now_ms: u64) -> rusqlite::Result<()> {
    tx.execute_batch(SCHEMA)?;
    tx.execute("INSERT INTO tells_since VALUES (1, ?1)", [int(now_ms)]).map(|_| ())
}

/// A content that nothing holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiring {
    /// The content.
    pub hash: Hash,
    /// What it waits for.
    pub waits: Waits,
    /// Since when.
    pub since_ms: u64,
}

impl Copies {
    /// From when on what is added for itself tells that, ms since the Unix epoch.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn tells_since_ms(&self) -> db::Result<u64> {
        self.read(|connection| {
            connection.query_row("SELECT at_ms FROM tells_since", [], |row| row_u64(row, 0))
        })
    }

    /// Notes contents that are here and that nothing holds, as walk number `walk` has seen them. Of those
    /// that were noted before, the time goes on if they still wait for the same.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn note_expiring(
        &self,
        seen: Vec<(Hash, Waits)>,
        walk: u64,
        now_ms: u64,
    ) -> db::Result<()> {
        self.write(move |tx| {
            let mut note = tx.conn.prepare_cached(
                "INSERT INTO expiring VALUES (?1, ?2, ?3, ?5, ?4, 0)
                 ON CONFLICT (hash) DO UPDATE SET
                     since_ms = CASE WHEN applied OR (trash, versions) != (?2, ?3)
                                     THEN ?5 ELSE since_ms END,
                     trash = ?2, versions = ?3, walk = ?4, applied = 0",
            )?;
            for (hash, Waits { trash, versions }) in seen {
                note.execute(params![hash.as_bytes(), trash, versions, int(walk), int(now_ms)])?;
            }
            Ok(())
        })
    }

    /// Forgets the contents that are still here and that walk number `walk` has not seen: something holds
    /// them again.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget_unseen(&self, walk: u64) -> db::Result<()> {
        self.write(move |tx| {
            let delete = "DELETE FROM expiring WHERE applied = 0 AND walk != ?1";
            tx.conn.prepare_cached(delete)?.execute([int(walk)])?;
            Ok(())
        })
    }

    /// The contents above `after` that nothing holds, in ascending order, at most `limit`: those that this
    /// device let go of, or the others.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn expiring(
        &self,
        is_applied: bool,
        after: Option<Hash>,
        limit: usize,
    ) -> db::Result<Vec<Expiring>> {
        let after = after.as_ref().map_or(&[][..], |hash| hash.as_bytes());
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT hash, trash, versions, since_ms FROM expiring
                     WHERE hash > ?1 AND applied = ?2 ORDER BY hash LIMIT ?3",
                )?
                .query_map(params![after, is_applied, int(limit as u64)], |row| {
                    Ok(Expiring {
                        hash: Hash(row.get(0)?),
                        waits: Waits { trash: row.get(1)?, versions: row.get(2)? },
                        since_ms: row_u64(row, 3)?,
                    })
                })?
                .collect()
        })
    }

    /// Notes whether this device lets go of contents because nothing holds them; durable before it deletes
    /// them. They are not wanted until something does.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn apply_expiry(&self, hashes: Vec<Hash>, is_applied: bool) -> db::Result<()> {
        self.write(move |tx| {
            let update = "UPDATE expiring SET applied = ?2 WHERE hash = ?1";
            let mut update = tx.conn.prepare_cached(update)?;
            for hash in hashes {
                update.execute(params![hash.as_bytes(), is_applied])?;
            }
            Ok(())
        })
    }

    /// Those of the contents that were noted as held by nothing, with what each waits for.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn are_expiring(&self, hashes: &[Hash]) -> db::Result<Vec<(Hash, Waits)>> {
        self.read(|connection| {
            let query = "SELECT trash, versions FROM expiring WHERE hash = ?1";
            let mut query = connection.prepare_cached(query)?;
            let mut noted = Vec::new();
            for hash in hashes {
                let waits = query.query_row([hash.as_bytes()], |row| {
                    Ok(Waits { trash: row.get(0)?, versions: row.get(1)? })
                });
                noted.extend(waits.optional()?.map(|waits| (*hash, waits)));
            }
            Ok(noted)
        })
    }

    /// Takes up that something holds contents again. Returns those that are wanted again because of it;
    /// not those that a wish to forget is about.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn revive(&self, hashes: Vec<Hash>) -> db::Result<Vec<Hash>> {
        self.write(move |tx| {
            let delete = "DELETE FROM expiring WHERE hash = ?1 RETURNING applied";
            let mut delete = tx.conn.prepare_cached(delete)?;
            let mut want = tx.conn.prepare_cached(
                "DELETE FROM let_go WHERE hash = ?1 AND keeping = 2
                 AND hash NOT IN (SELECT hash FROM wishes WHERE applied = 1)",
            )?;
            let mut revived = Vec::new();
            for hash in hashes {
                let was = delete.query_map([hash.as_bytes()], |row| row.get::<_, bool>(0))?;
                let was: Vec<bool> = was.collect::<rusqlite::Result<_>>()?;
                if was == [true] && want.execute([hash.as_bytes()])? == 1 {
                    revived.push(hash);
                }
            }
            Ok(revived)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TRASH: Waits = Waits { trash: true, versions: false };
    const BOTH: Waits = Waits { trash: true, versions: true };
    const ONE: Hash = Hash([1; 32]);
    const TWO: Hash = Hash([2; 32]);

    fn since(copies: &Copies, is_applied: bool) -> Vec<(Hash, u64)> {
        let expiring = copies.expiring(is_applied, None, 9).unwrap();
        expiring.into_iter().map(|one| (one.hash, one.since_ms)).collect()
    }

    /// Lets go of contents, in the order in which that is done.
    fn let_go(copies: &Copies, hashes: &[Hash]) {
        copies.begin_evictions(hashes.to_vec(), 1, 200).unwrap();
        copies.apply_expiry(hashes.to_vec(), true).unwrap();
        let gone = hashes.iter().map(|hash| (*hash, false)).collect();
        copies.end_evictions(gone, 200).unwrap();
    }

    #[test]
    fn time_goes_on_while_a_content_waits_for_the_same_and_begins_anew_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("copies.db")).unwrap();
        copies.note_expiring(vec![(ONE, TRASH), (TWO, TRASH)], 1, 100).unwrap();
        copies.note_expiring(vec![(ONE, TRASH), (TWO, BOTH)], 2, 200).unwrap();
        assert_eq!(since(&copies, false), [(ONE, 100), (TWO, 200)]);
        copies.note_expiring(vec![(TWO, BOTH)], 3, 300).unwrap();
        copies.forget_unseen(3).unwrap();
        copies.note_expiring(vec![(ONE, TRASH)], 4, 400).unwrap();
        assert_eq!(since(&copies, false), [(ONE, 400), (TWO, 200)], "it was held meanwhile");
    }

    #[test]
    fn what_was_let_go_of_is_wanted_again_once_something_holds_it_unless_it_is_to_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("copies.db")).unwrap();
        copies.note_expiring(vec![(ONE, TRASH), (TWO, TRASH)], 1, 100).unwrap();
        let_go(&copies, &[ONE, TWO]);
        copies.forget_unseen(2).unwrap();
        assert_eq!(copies.are_expiring(&[ONE, Hash([3; 32])]).unwrap(), [(ONE, TRASH)]);
        assert_eq!(copies.are_evicted(&[ONE, TWO]).unwrap(), [true, true]);
        copies.note_wishes([TWO].into(), 1).unwrap();
        copies.apply_wish(TWO, 2).unwrap();
        assert_eq!(copies.revive(vec![ONE, TWO, Hash([3; 32])]).unwrap(), [ONE]);
        assert_eq!(copies.are_evicted(&[ONE, TWO]).unwrap(), [false, true]);
        assert_eq!(since(&copies, true), []);
    }

    #[test]
    fn the_time_of_what_could_not_be_deleted_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("copies.db")).unwrap();
        copies.note_expiring(vec![(ONE, TRASH)], 1, 100).unwrap();
        copies.apply_expiry(vec![ONE], true).unwrap();
        copies.apply_expiry(vec![ONE], false).unwrap();
        copies.note_expiring(vec![(ONE, TRASH)], 2, 200).unwrap();
        assert_eq!(since(&copies, false), [(ONE, 100)]);
    }

    #[test]
    fn what_was_fetched_back_waits_anew() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("copies.db")).unwrap();
        copies.note_expiring(vec![(ONE, TRASH)], 1, 100).unwrap();
        let_go(&copies, &[ONE]);
        copies.take_back(vec![ONE]).unwrap();
        copies.note_expiring(vec![(ONE, TRASH)], 2, 300).unwrap();
        assert_eq!(since(&copies, false), [(ONE, 300)]);
    }
}
