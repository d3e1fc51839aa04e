//! The tables with the assets that each peer holds or lacks.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::rows::{Tx, sum_of};
use crate::core::copies::AbsentSet;
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::set_hash::{Element, SetHash};
use crate::db::{int, row_u64};

/// `known.size`: -1 while it is not known. `known.state`: 0 held, and otherwise why it is absent. `known.turn`: the last change of that, 0
/// for hashes that were never absent. `known.copies`: of missing ones, on other devices.
const SCHEMA: &str = "
ALTER TABLE state ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN missing INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN log BLOB NOT NULL DEFAULT x'';
ALTER TABLE state ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN absent BLOB NOT NULL DEFAULT x'';
ALTER TABLE known ADD COLUMN state INTEGER NOT NULL DEFAULT 0;
ALTER TABLE known ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE known ADD COLUMN copies INTEGER NOT NULL DEFAULT 0;
CREATE INDEX known_turn ON known (turn) WHERE turn > 0;
CREATE INDEX known_absent ON known (seq) WHERE state > 0;
CREATE INDEX known_missing ON known (copies, seq) WHERE state = 1;
UPDATE state SET log = randomblob(16), held = count,
    seq = (SELECT coalesce(max(seq), 0) FROM known);
CREATE TABLE holders (
    num INTEGER PRIMARY KEY,
    node_id BLOB NOT NULL UNIQUE,
    holds_to INTEGER NOT NULL DEFAULT 0,
    confirmed_ms INTEGER NOT NULL DEFAULT 0,
    log BLOB NOT NULL DEFAULT x'00000000000000000000000000000000',
    turn INTEGER NOT NULL DEFAULT 0,
    sum BLOB NOT NULL DEFAULT x''
) STRICT;
CREATE TABLE lacks (
    holder INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (holder, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE doubts (
    holder INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (holder, seq)
) STRICT, WITHOUT ROWID;
";

/// The migration from the first version of the index.
pub(super) fn add_holders(tx: &Transaction<'_>) -> anyhow::Result<()> {
    Ok(tx.execute_batch(SCHEMA)?)
}

/// The number is about to be deleted: nobody lacks it any more.
pub(super) fn forget(tx: &Tx<'_>, seq: u64) -> rusqlite::Result<()> {
    let lacking: Vec<i64> = tx
        .conn
        .prepare_cached(
            "SELECT num FROM holders h
             WHERE EXISTS (SELECT 1 FROM lacks l WHERE l.holder = h.num AND l.seq = ?1)",
        )?
        .query_map([int(seq)], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut hash = tx.conn.prepare_cached("SELECT hash FROM known WHERE seq = ?1")?;
    for num in lacking {
        let hash = Hash(hash.query_row([int(seq)], |row| row.get(0))?);
        let Some(mut holder) = holder_where(tx.conn, "num = ?1", params![num])? else { continue };
        // The peer's own digest is another then, and its absent hashes are read anew.
        holder.sum.remove(&Element(hash.0));
        holder.save(tx.conn)?;
        tx.conn
            .prepare_cached("DELETE FROM lacks WHERE holder = ?1 AND seq = ?2")?
            .execute(params![num, int(seq)])?;
    }
    Ok(())
}

/// A row of `holders`.
pub(super) struct HolderRow {
    pub(super) num: i64,
    pub(super) holds_to: u64,
    pub(super) confirmed_ms: u64,
    pub(super) log: [u8; 16],
    pub(super) turn: u64,
    pub(super) sum: SetHash,
}

impl HolderRow {
    /// The absent hashes of the peer, as far as they are known.
    pub(super) fn set(&self) -> AbsentSet {
        AbsentSet { log: self.log, turn: self.turn, digest: self.sum.digest() }
    }

    /// Forgets what is known of the peer, so that nothing is claimed for it.
    pub(super) fn reset(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for table in ["lacks", "doubts"] {
            connection.execute(&format!("DELETE FROM {table} WHERE holder = ?1"), [self.num])?;
        }
        (self.holds_to, self.log, self.turn) = (0, [0; 16], 0);
        self.sum = SetHash::default();
        Ok(())
    }

    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "UPDATE holders SET holds_to = ?2, confirmed_ms = ?3, log = ?4, turn = ?5, sum = ?6
                 WHERE num = ?1",
            )?
            .execute(params![
                self.num,
                int(self.holds_to),
                int(self.confirmed_ms),
                self.log,
                int(self.turn),
                self.sum.to_bytes()
            ])?;
        Ok(())
    }
}

pub(super) fn holder(
    connection: &Connection,
    peer: &NodeId,
) -> rusqlite::Result<Option<HolderRow>> {
    holder_where(connection, "node_id = ?1", params![peer.0])
}

pub(super) fn holder_or_new(connection: &Connection, peer: &NodeId) -> rusqlite::Result<HolderRow> {
    connection
        .prepare_cached("INSERT INTO holders (node_id) VALUES (?1) ON CONFLICT DO NOTHING")?
        .execute([peer.0])?;
    holder(connection, peer)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

fn holder_where(
    connection: &Connection,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<Option<HolderRow>> {
    connection
        .prepare_cached(&format!(
            "SELECT num, holds_to, confirmed_ms, log, turn, sum FROM holders WHERE {condition}"
        ))?
        .query_row(values, |row| {
            Ok(HolderRow {
                num: row.get(0)?,
                holds_to: row_u64(row, 1)?,
                confirmed_ms: row_u64(row, 2)?,
                log: row.get(3)?,
                turn: row_u64(row, 4)?,
                sum: sum_of(row.get(5)?)?,
            })
        })
        .optional()
}
