//! The known hashes that this device does not hold: noted, judged, and held again; with a log of these
//! changes that peers read.

use rusqlite::{OptionalExtension as _, params};

use super::rows::{Head, Row, absence, code, load, note, row_of, set_state, size};
use super::{Index, one_more, page};
use crate::core::copies::{Absence, AbsentPage, SizedHash};
use crate::core::ids::Hash;
use crate::db::{self, int, row_u64};

/// A known hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownRow {
    /// The hash's sequence number.
    pub seq: u64,
    /// The hash.
    pub hash: Hash,
    /// The asset's size, if it is known.
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

    /// At most `limit` hashes that were absent and whose content arrived at a turn above `after_turn`,
    /// each with its turn; and whether there are more.
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
