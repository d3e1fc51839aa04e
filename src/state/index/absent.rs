//! The known hashes that this device does not hold: noted, judged, and held again; with a log of these
//! changes that peers read.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Head, Index, Kept, Published, one_more, page};
use crate::core::copies::{Absence, AbsentPage, AbsentSet, SizedHash};
use crate::core::ids::{Digest, Hash};
use crate::core::journal::set_hash::{Element, SetHash};
use crate::core::limits::ABSENT_MAX;
use crate::db::{self, Txn, int, row_u64};

pub(super) type Tx<'a> = Txn<'a, Published>;

/// A known hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownRow {
    /// Its sequence number.
    pub seq: u64,
    /// The hash.
    pub hash: Hash,
    /// Its size, if it is known.
    pub size_bytes: Option<u64>,
    /// Why it is not held; `None`: it is.
    pub why: Option<Absence>,
}

/// New known hashes, and the absent ones after that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The hashes that were not known before, with their sequence numbers.
    pub entries: Vec<(u64, Hash)>,
    /// The state of the index after it.
    pub head: Head,
}

impl Index {
    /// Adds hashes that are known and not held. Those that are known already stay as they are.
    pub fn note(&self, hashes: &[(SizedHash, Absence)]) -> db::Result<Noted> {
        let hashes = hashes.to_vec();
        self.database.write(move |tx| {
            let mut entries = Vec::new();
            for (sized, why) in hashes {
                entries.extend(note(tx, sized, why)?.map(|seq| (seq, sized.0)));
            }
            Ok(Noted { entries, head: tx.state.head })
        })
    }

    /// Says anew of absent hashes whether they are wanted, and how many other devices hold them.
    /// Returns the state of the index after it.
    pub fn judge(&self, verdicts: &[(Hash, Absence, u64)]) -> db::Result<Head> {
        let verdicts = verdicts.to_vec();
        self.database.write(move |tx| {
            for (hash, why, copies) in verdicts {
                let Some(row) = row_of(tx.conn, &hash)? else { continue };
                let Some(before) = row.why else { continue };
                tx.conn
                    .prepare_cached("UPDATE known SET state = ?2, copies = ?3 WHERE seq = ?1")?
                    .execute(params![int(row.seq), code(why), int(copies)])?;
                tx.state.head.missing -= u64::from(before == Absence::Missing);
                tx.state.head.missing += u64::from(why == Absence::Missing);
            }
            Ok(tx.state.head)
        })
    }

    /// Takes held hashes for absent and not wanted: they were evicted. Returns the state of the index
    /// after it.
    pub fn release(&self, hashes: &[Hash]) -> db::Result<Head> {
        let hashes = hashes.to_vec();
        self.database.write(move |tx| {
            for hash in hashes {
                let Some(Row { seq, why: None }) = row_of(tx.conn, &hash)? else { continue };
                set_state(tx, seq, &hash, Some(Absence::Unwanted))?;
            }
            Ok(tx.state.head)
        })
    }

    /// The known hashes numbered above `after_seq`, at most `limit`, and whether there are more; with
    /// `is_absent` only absent ones.
    pub fn rows(
        &self,
        is_absent: bool,
        after_seq: u64,
        limit: usize,
    ) -> db::Result<(Vec<KnownRow>, bool)> {
        let condition = if is_absent { "state > 0 AND" } else { "" };
        self.read(|connection| {
            let rows = connection
                .prepare_cached(&format!(
                    "SELECT seq, hash, state, size FROM known WHERE {condition} seq > ?1
                     ORDER BY seq LIMIT ?2"
                ))?
                .query_map(params![int(after_seq), one_more(limit)], |row| {
                    Ok(KnownRow {
                        seq: row_u64(row, 0)?,
                        hash: Hash(row.get(1)?),
                        size_bytes: size(row, 3)?,
                        why: absence(row.get(2)?),
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(page(rows, limit))
        })
    }

    /// Why a hash is not held: `None` when it is not known, `Some(None)` when it is held.
    pub fn why(&self, hash: &Hash) -> db::Result<Option<Option<Absence>>> {
        self.read(|connection| Ok(row_of(connection, hash)?.map(|row| row.why)))
    }

    /// Of those of the hashes that are known and absent, the rows.
    pub fn absent_rows(&self, hashes: &[Hash]) -> db::Result<Vec<KnownRow>> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT seq, state, size FROM known WHERE hash = ?1 AND state > 0",
            )?;
            let mut rows = Vec::new();
            for hash in hashes {
                let row = query.query_row([hash.0], |row| {
                    Ok(KnownRow {
                        seq: row_u64(row, 0)?,
                        hash: *hash,
                        size_bytes: size(row, 2)?,
                        why: absence(row.get(1)?),
                    })
                });
                rows.extend(row.optional()?);
            }
            Ok(rows)
        })
    }

    /// The hashes that were absent and are held since a turn above `after_turn`, at most `limit`, each
    /// with its turn; and whether there are more.
    pub fn arrived(&self, after_turn: u64, limit: usize) -> db::Result<(Vec<(u64, Hash)>, bool)> {
        self.read(|connection| {
            let rows = connection
                .prepare_cached(
                    "SELECT turn, hash FROM known WHERE turn > ?1 AND turn > 0 AND state = 0
                     ORDER BY turn LIMIT ?2",
                )?
                .query_map(params![int(after_turn), one_more(limit)], |row| {
                    Ok((row_u64(row, 0)?, Hash(row.get(1)?)))
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(page(rows, limit))
        })
    }

    /// The changes of the absent hashes after a position, for a peer.
    pub fn absent_page(
        &self,
        log: [u8; 16],
        after_turn: u64,
        limit: usize,
    ) -> db::Result<AbsentPage> {
        self.read(|connection| {
            let now = load(connection)?.head.absent;
            let is_start = log != now.log || after_turn > now.turn;
            let after = if is_start { 0 } else { after_turn };
            let rows: Vec<(u64, SizedHash, i64)> = connection
                .prepare_cached(
                    "SELECT turn, hash, state, size FROM known WHERE turn > ?1 AND turn > 0
                     ORDER BY turn LIMIT ?2",
                )?
                .query_map(params![int(after), one_more(limit)], |row| {
                    let sized = (Hash(row.get(1)?), size(row, 3)?);
                    Ok((row_u64(row, 0)?, sized, row.get(2)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            let (rows, more) = page(rows, limit);
            let next = if more { rows.last().map_or(now.turn, |row| row.0) } else { now.turn };
            let (mut absent, mut held) = (Vec::new(), Vec::new());
            for (_, sized, state) in rows {
                match state {
                    0 => held.push(sized.0),
                    _ => absent.push(sized),
                }
            }
            let is_start = is_start || after == 0;
            Ok(AbsentPage { now, is_start, absent, held, next, more })
        })
    }
}

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
fn set_state(tx: &mut Tx<'_>, seq: u64, hash: &Hash, why: Option<Absence>) -> rusqlite::Result<()> {
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

fn size(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).ok())
}

const fn code(why: Absence) -> i64 {
    match why {
        Absence::Missing => 1,
        Absence::Unwanted => 2,
    }
}

const fn absence(code: i64) -> Option<Absence> {
    match code {
        0 => None,
        2 => Some(Absence::Unwanted),
        _ => Some(Absence::Missing),
    }
}

pub(super) fn sum_of(bytes: Vec<u8>) -> rusqlite::Result<SetHash> {
    SetHash::from_bytes(&bytes).ok_or(rusqlite::Error::InvalidQuery)
}
