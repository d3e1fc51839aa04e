//! What this device promised others about its copies, what it let go of, and who proved what to it.
//! [`crate::core::leases`] decides; each decision is read, taken and written in one transaction.
//!
//! K1  A lease is durable before [`Copies::grant`] returns, and an intent before
//!     [`Copies::begin_evictions`] does.
//! K2  While there is an intent or a running lease for an asset, the other is refused, whatever
//!     happens at the same time: there is one writer.
//! K3  After a restart leases run anew, and an intent becomes what the store says: evicted or kept
//!     ([`Copies::restart_leases`]).

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Copies;
use crate::core::ids::{Hash, NodeId};
use crate::core::leases::{Keeping, LEASE_MS, NoLease, Promised, Standing};
use crate::db::{self, Stateless, Txn, int, row_u64};

/// `let_go.keeping`: 1 while it is being evicted, 2 once it was. `leases.until_ms` is on the clock
/// that counts sleep, all other times on the wall clock.
pub(super) const SCHEMA: &str = "
CREATE TABLE let_go (
    hash BLOB PRIMARY KEY,
    keeping INTEGER NOT NULL CHECK (keeping IN (1, 2)),
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX let_go_intents ON let_go (hash) WHERE keeping = 1;
CREATE TABLE leases (
    hash BLOB NOT NULL,
    device BLOB NOT NULL,
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (hash, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_until ON leases (until_ms);
CREATE TABLE proofs (
    hash BLOB NOT NULL,
    device BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (hash, device)
) STRICT, WITHOUT ROWID;
";

impl Copies {
    /// Gives a device leases, for each asset or not.
    ///
    /// # Errors
    /// The database cannot be written: no lease was given.
    pub fn grant(
        &self,
        hashes: Vec<Hash>,
        device: NodeId,
        now_ms: u64,
    ) -> db::Result<Vec<Result<(), NoLease>>> {
        self.write(move |tx| {
            tx.conn
                .prepare_cached("DELETE FROM leases WHERE until_ms <= ?1")?
                .execute([int(now_ms)])?;
            let grant = |hash: &Hash| {
                let mut standing = load(tx.conn, hash)?;
                let granted = standing.grant(now_ms, device);
                if granted.is_ok() {
                    save_lease(tx.conn, hash, &device, standing.leases[&device])?;
                }
                Ok(granted)
            };
            hashes.iter().map(grant).collect()
        })
    }

    /// Writes down that assets are being evicted, those of which no lease runs. `at_ms` is the wall
    /// clock.
    ///
    /// # Errors
    /// The database cannot be written: no eviction began.
    pub fn begin_evictions(
        &self,
        hashes: Vec<Hash>,
        now_ms: u64,
        at_ms: u64,
    ) -> db::Result<Vec<Result<(), Promised>>> {
        self.note_letting_go();
        self.write(move |tx| {
            let begin = |hash: &Hash| {
                let mut standing = load(tx.conn, hash)?;
                let begun = standing.begin(now_ms);
                if begun.is_ok() {
                    save_keeping(tx.conn, hash, standing.keeping, at_ms)?;
                }
                Ok(begun)
            };
            hashes.iter().map(begin).collect()
        })
    }

    /// The answer that [`Copies::begin_evictions`] would give, without writing anything.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn could_begin(
        &self,
        hashes: &[Hash],
        now_ms: u64,
    ) -> db::Result<Vec<Result<(), Promised>>> {
        let standings = self.read(|connection| {
            let load = |hash: &Hash| load(connection, hash);
            Ok(hashes.iter().map(load).collect::<db::Result<Vec<Standing>>>())
        })??;
        Ok(standings.into_iter().map(|mut standing| standing.begin(now_ms)).collect())
    }

    /// Ends evictions, each with whether the store still holds the asset.
    ///
    /// # Errors
    /// The database cannot be written: the next start ends them.
    pub fn end_evictions(&self, ended: Vec<(Hash, bool)>, at_ms: u64) -> db::Result<()> {
        self.write(move |tx| end(tx, &ended, at_ms))
    }

    /// The assets whose eviction was under way when the agent stopped.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn intents(&self) -> db::Result<Vec<Hash>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT hash FROM let_go WHERE keeping = 1")?
                .query_map([], |row| row.get(0).map(Hash))?
                .collect()
        })
    }

    /// To be called once at the start, with each of [`Copies::intents`] and whether the store holds
    /// it, before anything is granted or evicted.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn restart_leases(
        &self,
        intents: Vec<(Hash, bool)>,
        now_ms: u64,
        at_ms: u64,
    ) -> db::Result<()> {
        self.write(move |tx| {
            tx.conn.execute("UPDATE leases SET until_ms = ?1", [int(now_ms + LEASE_MS)])?;
            end(tx, &intents, at_ms)
        })
    }

    /// Wants evicted assets back. Returns which of them were evicted.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn take_back(&self, hashes: Vec<Hash>) -> db::Result<Vec<Hash>> {
        self.write(move |tx| {
            let mut taken = Vec::new();
            for hash in hashes {
                let mut standing = load(tx.conn, &hash)?;
                if standing.keeping == Keeping::Evicted {
                    standing.take_back();
                    save_keeping(tx.conn, &hash, standing.keeping, 0)?;
                    taken.push(hash);
                }
            }
            Ok(taken)
        })
    }

    /// Which of the assets were evicted, or are about to be.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn are_evicted(&self, hashes: &[Hash]) -> db::Result<Vec<bool>> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT 1 FROM let_go WHERE hash = ?1")?;
            hashes.iter().map(|hash| query.exists([hash.as_bytes()])).collect()
        })
    }

    /// At most `limit` evicted assets above `after`, in ascending order.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn evicted(&self, after: Option<Hash>, limit: usize) -> db::Result<Vec<Hash>> {
        let after = after.as_ref().map_or(&[][..], |hash| hash.as_bytes());
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT hash FROM let_go WHERE hash > ?1 AND keeping = 2
                     ORDER BY hash LIMIT ?2",
                )?
                .query_map(params![after, int(limit as u64)], |row| row.get(0).map(Hash))?
                .collect()
        })
    }

    /// Keeps who proved what, and forgets what turned out otherwise: each with whether it was
    /// proven.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn note_proofs(&self, proofs: Vec<(Hash, NodeId, bool)>, at_ms: u64) -> db::Result<()> {
        self.write(move |tx| {
            for (hash, device, is_proven) in proofs {
                if is_proven {
                    let insert = "INSERT OR REPLACE INTO proofs VALUES (?1, ?2, ?3)";
                    let mut insert = tx.conn.prepare_cached(insert)?;
                    insert.execute(params![hash.as_bytes(), device.0, int(at_ms)])?;
                } else {
                    let delete = "DELETE FROM proofs WHERE hash = ?1 AND device = ?2";
                    let mut delete = tx.conn.prepare_cached(delete)?;
                    delete.execute(params![hash.as_bytes(), device.0])?;
                }
            }
            Ok(())
        })
    }

    /// The proofs of an asset since a time, with the time of each.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn proofs(&self, hash: &Hash, since_ms: u64) -> db::Result<Vec<(NodeId, u64)>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT device, at_ms FROM proofs WHERE hash = ?1 AND at_ms >= ?2")?
                .query_map(params![hash.as_bytes(), int(since_ms)], |row| {
                    Ok((NodeId(row.get(0)?), row_u64(row, 1)?))
                })?
                .collect()
        })
    }
}

fn end(tx: &mut Txn<'_, Stateless>, ended: &[(Hash, bool)], at_ms: u64) -> db::Result<()> {
    for (hash, is_held) in ended {
        let mut standing = load(tx.conn, hash)?;
        standing.end(*is_held);
        save_keeping(tx.conn, hash, standing.keeping, at_ms)?;
    }
    Ok(())
}

fn load(connection: &Connection, hash: &Hash) -> db::Result<Standing> {
    let leases = connection
        .prepare_cached("SELECT device, until_ms FROM leases WHERE hash = ?1")?
        .query_map([hash.as_bytes()], |row| Ok((NodeId(row.get(0)?), row_u64(row, 1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let keeping: Option<i64> = connection
        .prepare_cached("SELECT keeping FROM let_go WHERE hash = ?1")?
        .query_row([hash.as_bytes()], |row| row.get(0))
        .optional()?;
    let keeping = match keeping {
        None => Keeping::Kept,
        Some(1) => Keeping::Evicting,
        Some(_) => Keeping::Evicted,
    };
    Ok(Standing { leases, keeping })
}

fn save_lease(
    connection: &Connection,
    hash: &Hash,
    device: &NodeId,
    until_ms: u64,
) -> db::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3)")?
        .execute(params![hash.as_bytes(), device.0, int(until_ms)])?;
    Ok(())
}

fn save_keeping(
    connection: &Connection,
    hash: &Hash,
    keeping: Keeping,
    at_ms: u64,
) -> db::Result<()> {
    let keeping = match keeping {
        Keeping::Kept => {
            connection
                .prepare_cached("DELETE FROM let_go WHERE hash = ?1")?
                .execute([hash.as_bytes()])?;
            return Ok(());
        }
        Keeping::Evicting => 1,
        Keeping::Evicted => 2,
    };
    connection
        .prepare_cached(
            "INSERT INTO let_go VALUES (?1, ?2, ?3)
             ON CONFLICT (hash) DO UPDATE SET keeping = ?2, at_ms = ?3 WHERE keeping <> ?2",
        )?
        .execute(params![hash.as_bytes(), keeping, int(at_ms)])?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    const A: NodeId = NodeId([1; 32]);
    const B: NodeId = NodeId([2; 32]);
    const ONE: Hash = Hash([1; 32]);
    const TWO: Hash = Hash([2; 32]);

    fn open(dir: &Path) -> Copies {
        Copies::open(&dir.join("copies.db")).unwrap()
    }

    /// The database as a crash at this moment leaves it.
    fn crashed(dir: &Path) -> (tempfile::TempDir, Copies) {
        let copy = tempfile::tempdir().unwrap();
        for name in ["copies.db", "copies.db-wal"] {
            if dir.join(name).exists() {
                std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
            }
        }
        let copies = open(copy.path());
        (copy, copies)
    }

    #[test]
    fn a_lease_and_an_intent_exclude_each_other_for_each_asset() {
        let dir = tempfile::tempdir().unwrap();
        let copies = open(dir.path());
        assert_eq!(copies.grant(vec![ONE], A, 5).unwrap(), [Ok(())]);
        let promised = Promised { device: A, until_ms: 5 + LEASE_MS };
        let begun = copies.begin_evictions(vec![ONE, TWO], 6, 1).unwrap();
        assert_eq!(begun, [Err(promised), Ok(())]);
        let granted = copies.grant(vec![ONE, TWO], B, 7).unwrap();
        assert_eq!(granted, [Ok(()), Err(NoLease::Evicting)]);
        copies.end_evictions(vec![(TWO, false)], 1).unwrap();
        assert_eq!(copies.grant(vec![TWO], B, 8).unwrap(), [Err(NoLease::Evicted)]);
        assert_eq!(copies.evicted(None, 9).unwrap(), [TWO]);
        assert_eq!(copies.are_evicted(&[ONE, TWO]).unwrap(), [false, true]);
        assert_eq!(copies.take_back(vec![ONE, TWO]).unwrap(), [TWO]);
        assert_eq!(copies.grant(vec![TWO], B, 9).unwrap(), [Ok(())]);
        assert_eq!(copies.begin_evictions(vec![ONE], 7 + LEASE_MS, 1).unwrap(), [Ok(())]);
    }

    #[test]
    fn what_was_promised_or_begun_is_there_after_a_crash_at_any_step() {
        let dir = tempfile::tempdir().unwrap();
        let copies = open(dir.path());
        copies.grant(vec![ONE], A, 1_000_000).unwrap();
        {
            let (_dir, after) = crashed(dir.path());
            after.restart_leases(Vec::new(), 10, 1).unwrap();
            let until_ms = 10 + LEASE_MS;
            let begun = after.begin_evictions(vec![ONE], until_ms - 1, 1).unwrap();
            assert_eq!(begun, [Err(Promised { device: A, until_ms })], "it runs anew");
        }
        copies.begin_evictions(vec![TWO], 1_000_000, 1).unwrap();
        for is_held in [true, false] {
            let (_dir, after) = crashed(dir.path());
            assert_eq!(after.intents().unwrap(), [TWO]);
            assert_eq!(after.are_evicted(&[TWO]).unwrap(), [true], "sync leaves it alone");
            after.restart_leases(vec![(TWO, is_held)], 10, 1).unwrap();
            assert_eq!(after.intents().unwrap(), []);
            assert_eq!(after.evicted(None, 9).unwrap().is_empty(), is_held);
        }
        copies.end_evictions(vec![(TWO, false)], 1).unwrap();
        let (_dir, after) = crashed(dir.path());
        assert_eq!(
            (after.intents().unwrap(), after.evicted(None, 9).unwrap()),
            (vec![], vec![TWO])
        );
    }

    #[test]
    fn proofs_are_kept_with_their_time_until_they_turn_out_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let copies = open(dir.path());
        copies.note_proofs(vec![(ONE, A, true), (ONE, B, true)], 100).unwrap();
        copies.note_proofs(vec![(ONE, B, true)], 200).unwrap();
        assert_eq!(copies.proofs(&ONE, 100).unwrap(), [(A, 100), (B, 200)]);
        assert_eq!(copies.proofs(&ONE, 101).unwrap(), [(B, 200)]);
        copies.note_proofs(vec![(ONE, B, false)], 300).unwrap();
        assert_eq!(copies.proofs(&ONE, 0).unwrap(), [(A, 100)]);
    }

    #[test]
    fn leases_that_have_ended_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let copies = open(dir.path());
        for at in 0..10 {
            let hash = Hash([at as u8; 32]);
            copies.grant(vec![hash], A, at * 2 * LEASE_MS).unwrap();
        }
        let count = |connection: &Connection| {
            connection.query_row("SELECT count(*) FROM leases", [], |row| row_u64(row, 0))
        };
        assert_eq!(copies.read(count).unwrap(), 1);
    }
}
