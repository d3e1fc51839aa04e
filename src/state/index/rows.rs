//! The rows of known hashes, and the state of the index that the writer keeps in memory beside them.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::core::copies::{Absence, AbsentSet, SizedHash};
use crate::core::ids::{Digest, Hash};
use crate::core::journal::set_hash::{Element, SetHash};
use crate::core::limits::ABSENT_MAX;
use crate::db::{self, DbError, Owner, Txn, int, row_u64};

/// Random; see X2.
pub type Epoch = [u8; 16];

/// The state of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The epoch: sequence numbers of another epoch have no meaning here.
    pub epoch: Epoch,
    /// The newest sequence number; 0 when there is none.
    pub seq: u64,
    /// The number of known hashes.
    pub count: u64,
    /// How many of them the store holds.
    pub held: u64,
    /// How many of the hashes that the store does not hold are wanted.
    pub missing: u64,
    /// The hashes that are known and not held.
    pub absent: AbsentSet,
    /// The position in the store's change feed up to which it was applied.
    pub store_cursor: u64,
}

/// Publishes the state of the index after each commit.
pub(super) struct Published(pub(super) Arc<Mutex<Head>>);

/// What the writer keeps in memory.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) head: Head,
    /// The sum over the absent hashes.
    pub(super) sum: SetHash,
}

impl Owner for Published {
    type State = Kept;
    type Error = DbError;

    fn error_of(error: DbError) -> DbError {
        error
    }

    fn save(&self, conn: &Connection, before: &Kept, now: &Kept) -> db::Result<()> {
        save(conn, before, now)
    }

    fn committed(&mut self, kept: &mut Kept) {
        *self.0.lock() = kept.head;
    }
}

pub(super) type Tx<'a> = Txn<'a, Published>;

/// Reads what the writer keeps in memory.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Kept> {
    connection
        .prepare_cached(
            "SELECT epoch, seq, count, held, missing, store_cursor, log, turn, absent FROM state",
        )?
        .query_row([], |row| {
            let sum = sum_of(row.get(8)?)?;
            let (log, turn, digest) = (row.get(6)?, row_u64(row, 7)?, sum.digest());
            let head = Head {
                epoch: row.get(0)?,
                seq: row_u64(row, 1)?,
                count: row_u64(row, 2)?,
                held: row_u64(row, 3)?,
                missing: row_u64(row, 4)?,
                absent: AbsentSet { log, turn, digest },
                store_cursor: row_u64(row, 5)?,
            };
            Ok(Kept { head, sum })
        })
}

/// Writes what changed of it. The epoch, the count and the store's cursor are written by those who
/// change them.
pub(super) fn save(connection: &Connection, before: &Kept, now: &Kept) -> db::Result<()> {
    let (old, new) = (&before.head, &now.head);
    if (old.seq, old.count, old.held, old.missing) != (new.seq, new.count, new.held, new.missing) {
        connection
            .prepare_cached("UPDATE state SET seq = ?1, count = ?2, held = ?3, missing = ?4")?
            .execute(params![int(new.seq), int(new.count), int(new.held), int(new.missing)])?;
    }
    if old.absent != new.absent {
        connection
            .prepare_cached("UPDATE state SET log = ?1, turn = ?2, absent = ?3")?
            .execute(params![new.absent.log, int(new.absent.turn), now.sum.to_bytes()])?;
    }
    Ok(())
}

/// The store holds a hash that was absent. Returns its number; `None` if it was held before.
pub(super) fn arrive(tx: &mut Tx<'_>, digest: &Digest) -> rusqlite::Result<Option<u64>> {
    let Some(Row { seq, why: Some(_) }) = row_of(tx.conn, &digest.hash)? else { return Ok(None) };
    set_state(tx, seq, &digest.hash, None)?;
    tx.conn
        .prepare_cached("UPDATE known SET size = ?2 WHERE seq = ?1")?
        .execute(params![int(seq), int(digest.size_bytes)])?;
    Ok(Some(seq))
}

/// Adds an absent hash. Returns its number; `None` if it was known or there are too many.
pub(super) fn note(
    tx: &mut Tx<'_>,
    (hash, size_bytes): SizedHash,
    why: Absence,
) -> rusqlite::Result<Option<u64>> {
    let head = &mut tx.state.head;
    if head.count - head.held >= ABSENT_MAX {
        return Ok(None);
    }
    let (seq, turn) = (head.seq + 1, head.absent.turn + 1);
    let added = tx
        .conn
        .prepare_cached(
            "INSERT INTO known (seq, hash, size, state, turn) VALUES (?1, ?2, ?5, ?3, ?4)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![int(seq), hash.0, code(why), int(turn), size_bytes.map_or(-1, int)])?;
    if added == 0 {
        return Ok(None);
    }
    (head.seq, head.absent.turn) = (seq, turn);
    head.count += 1;
    head.missing += u64::from(why == Absence::Missing);
    tx.state.sum.add(&Element(hash.0));
    tx.state.head.absent.digest = tx.state.sum.digest();
    Ok(Some(seq))
}

/// Changes a held hash to an absent one or back, and logs that.
pub(super) fn set_state(
    tx: &mut Tx<'_>,
    seq: u64,
    hash: &Hash,
    why: Option<Absence>,
) -> rusqlite::Result<()> {
    let before = row_of(tx.conn, hash)?.and_then(|row| row.why);
    let Kept { head, sum } = &mut tx.state;
    head.absent.turn += 1;
    head.missing -= u64::from(before == Some(Absence::Missing));
    head.missing += u64::from(why == Some(Absence::Missing));
    match (before, why) {
        (None, Some(_)) => {
            head.held -= 1;
            sum.add(&Element(hash.0));
        }
        (Some(_), None) => {
            head.held += 1;
            sum.remove(&Element(hash.0));
        }
        (None, None) | (Some(_), Some(_)) => {}
    }
    head.absent.digest = sum.digest();
    tx.conn
        .prepare_cached("UPDATE known SET state = ?2, turn = ?3, copies = 0 WHERE seq = ?1")?
        .execute(params![int(seq), why.map_or(0, code), int(head.absent.turn)])?;
    Ok(())
}

/// A row of `known`.
pub(super) struct Row {
    pub(super) seq: u64,
    pub(super) why: Option<Absence>,
}

pub(super) fn row_of(connection: &Connection, hash: &Hash) -> rusqlite::Result<Option<Row>> {
    connection
        .prepare_cached("SELECT seq, state FROM known WHERE hash = ?1")?
        .query_row([hash.0], |row| Ok(Row { seq: row_u64(row, 0)?, why: absence(row.get(1)?) }))
        .optional()
}

pub(super) fn size(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).ok())
}

pub(super) const fn code(why: Absence) -> i64 {
    match why {
        Absence::Missing => 1,
        Absence::Unwanted => 2,
    }
}

pub(super) const fn absence(code: i64) -> Option<Absence> {
    match code {
        0 => None,
        2 => Some(Absence::Unwanted),
        _ => Some(Absence::Missing),
    }
}

pub(super) fn sum_of(bytes: Vec<u8>) -> rusqlite::Result<SetHash> {
    SetHash::from_bytes(&bytes).ok_or(rusqlite::Error::InvalidQuery)
}
