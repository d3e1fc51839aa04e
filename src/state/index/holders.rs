//! Who holds what. Of this device: which known hashes are absent, with a log of changes that peers
//! read. Of each peer: up to which number it held everything that is known here, and which numbers it
//! lacks. So a peer that holds everything costs one row.
//!
//! H1  A peer counts as a holder only of what it was known to hold ([`Index::confirm`]): later
//!     numbers are not claimed for it.
//! H2  What a peer is found to lack meanwhile is not claimed for it until the next confirmation.
//! H3  The sum of what a peer lacks is that of the rows in `lacks`; [`Index::believe`] starts over
//!     when the peer's digest is another.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{Epoch, Head, Index, Kept, Published, count, one_more, page};
use crate::core::copies::{Absence, AbsentPage, AbsentSet, MissingPlace, SizedHash};
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::journal::set_hash::{Element, SetHash};
use crate::core::limits::ABSENT_MAX;
use crate::db::{self, Txn, int, row_u64};

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

/// The holders that are claimed of the number `?1`.
const HOLDERS: &str = "SELECT h.num, h.node_id, h.confirmed_ms FROM holders h
    WHERE h.holds_to >= ?1
    AND NOT EXISTS (SELECT 1 FROM lacks l WHERE l.holder = h.num AND l.seq = ?1)
    AND NOT EXISTS (SELECT 1 FROM doubts d WHERE d.holder = h.num AND d.seq = ?1)";

type Tx<'a> = Txn<'a, Published>;

/// A peer that is known to hold an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The peer.
    pub node_id: NodeId,
    /// When that was last confirmed, ms since the Unix epoch.
    pub confirmed_ms: u64,
}

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

/// What is known of a peer after a page of its absent hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Believed {
    /// Its absent hashes as known here.
    pub belief: AbsentSet,
    /// Whether all has to be read from the start, because the digest was not as told.
    pub restarts: bool,
    /// Hashes that were not known here before.
    pub noted: Noted,
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

    /// The absent hashes of a peer as far as they are known, and whether it was ever confirmed.
    pub fn belief(&self, peer: &NodeId) -> db::Result<(AbsentSet, bool)> {
        self.read(|connection| {
            let holder = holder(connection, peer)?;
            Ok(holder.map(|it| (it.set(), it.holds_to > 0)).unwrap_or_default())
        })
    }

    /// Changes with what peers are known to hold.
    pub fn holders_changed(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Takes up a page of the absent hashes of `peer`. `why` says of each absent hash of the page, in
    /// their order, whether it is wanted here, in case it is not known here yet: then it is now.
    pub fn believe(
        &self,
        peer: &NodeId,
        page: &AbsentPage,
        why: &[Absence],
    ) -> db::Result<Believed> {
        let (peer, page, why) = (*peer, page.clone(), why.to_vec());
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.database.write(move |tx| {
            let mut holder = holder_or_new(tx.conn, &peer)?;
            if page.is_start {
                holder.reset(tx.conn)?;
            }
            let mut entries = Vec::new();
            for (sized, why) in page.absent.iter().zip(why) {
                let hash = &sized.0;
                entries.extend(note(tx, *sized, why)?.map(|seq| (seq, *hash)));
                let Some(row) = row_of(tx.conn, hash)? else { continue };
                let added = tx
                    .conn
                    .prepare_cached("INSERT INTO lacks VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
                    .execute(params![holder.num, int(row.seq)])?;
                if added == 1 {
                    holder.sum.add(&Element(hash.0));
                }
            }
            for hash in &page.held {
                let Some(row) = row_of(tx.conn, hash)? else { continue };
                let removed = tx
                    .conn
                    .prepare_cached("DELETE FROM lacks WHERE holder = ?1 AND seq = ?2")?
                    .execute(params![holder.num, int(row.seq)])?;
                if removed == 1 {
                    holder.sum.remove(&Element(hash.0));
                }
            }
            (holder.log, holder.turn) = (page.now.log, page.next);
            let restarts = !page.more && holder.sum.digest() != page.now.digest;
            if restarts {
                holder.reset(tx.conn)?;
            }
            holder.save(tx.conn)?;
            let noted = Noted { entries, head: tx.state.head };
            Ok(Believed { belief: holder.set(), restarts, noted })
        })
    }

    /// Records that `peer` holds everything up to the number `to_seq` but its absent hashes, whose
    /// digest is `absent`. Nothing is recorded if the index is of another epoch by now, or knows other
    /// absent hashes. Returns whether it was recorded.
    pub fn confirm(
        &self,
        own_epoch: &Epoch,
        peer: &NodeId,
        to_seq: u64,
        absent: &AbsentSet,
        now_ms: u64,
    ) -> db::Result<bool> {
        let (own_epoch, peer, absent) = (*own_epoch, *peer, *absent);
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.database.write(move |tx| {
            let mut holder = holder_or_new(tx.conn, &peer)?;
            if tx.state.head.epoch != own_epoch || holder.sum.digest() != absent.digest {
                return Ok(false);
            }
            (holder.holds_to, holder.confirmed_ms) = (to_seq, now_ms);
            tx.conn
                .prepare_cached("DELETE FROM doubts WHERE holder = ?1")?
                .execute([holder.num])?;
            holder.save(tx.conn)?;
            Ok(true)
        })
    }

    /// Records that `peer` lacks hashes that it was known to hold.
    pub fn doubt(&self, peer: &NodeId, hashes: &[Hash]) -> db::Result<()> {
        let (peer, hashes) = (*peer, hashes.to_vec());
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.database.write(move |tx| {
            let Some(holder) = holder(tx.conn, &peer)? else { return Ok(()) };
            for hash in hashes {
                let Some(row) = row_of(tx.conn, &hash)? else { continue };
                if row.seq <= holder.holds_to {
                    tx.conn
                        .prepare_cached(
                            "INSERT INTO doubts VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                        )?
                        .execute(params![holder.num, int(row.seq)])?;
                }
            }
            Ok(())
        })
    }

    /// The peers that are known to hold a hash. Devices that left the group may be among them.
    pub fn holders(&self, hash: &Hash) -> db::Result<Vec<Holder>> {
        self.read(|connection| {
            let Some(row) = row_of(connection, hash)? else { return Ok(Vec::new()) };
            let mut query = connection.prepare_cached(HOLDERS)?;
            let holders = query.query_map([int(row.seq)], |row| {
                Ok(Holder { node_id: NodeId(row.get(1)?), confirmed_ms: row_u64(row, 2)? })
            })?;
            holders.collect()
        })
    }

    /// The missing hashes that `peer` is known to hold, after a place, at most `limit`, the most
    /// endangered first; and the place where the next page starts, if there may be more.
    pub fn missing_at(
        &self,
        peer: &NodeId,
        after: MissingPlace,
        limit: usize,
    ) -> db::Result<(Vec<Hash>, Option<MissingPlace>)> {
        self.read(|connection| {
            let Some(holder) = holder(connection, peer)? else { return Ok((Vec::new(), None)) };
            let mut query = connection.prepare_cached(
                "SELECT copies, seq, hash FROM known k
                 WHERE state = 1 AND (copies, seq) > (?1, ?2) AND seq <= ?3
                 AND NOT EXISTS (SELECT 1 FROM lacks l WHERE l.holder = ?4 AND l.seq = k.seq)
                 AND NOT EXISTS (SELECT 1 FROM doubts d WHERE d.holder = ?4 AND d.seq = k.seq)
                 ORDER BY copies, seq LIMIT ?5",
            )?;
            let (copies, seq) = (int(after.copies), int(after.seq));
            let rows = params![copies, seq, int(holder.holds_to), holder.num, count(limit)];
            let mut rows = query.query(rows)?;
            let (mut hashes, mut last) = (Vec::new(), None);
            while let Some(row) = rows.next()? {
                last = Some(MissingPlace { copies: row_u64(row, 0)?, seq: row_u64(row, 1)? });
                hashes.push(Hash(row.get(2)?));
            }
            let is_full = hashes.len() == limit;
            Ok((hashes, last.filter(|_| is_full)))
        })
    }
}

/// The migration from the first version of the index.
pub(super) fn add_holders(tx: &Transaction<'_>) -> anyhow::Result<()> {
    Ok(tx.execute_batch(SCHEMA)?)
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

/// Adds an absent hash. Returns its number; `None` if it was known or there are too many.
fn note(
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
struct Row {
    seq: u64,
    why: Option<Absence>,
}

fn row_of(connection: &Connection, hash: &Hash) -> rusqlite::Result<Option<Row>> {
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

/// A row of `holders`.
pub(super) struct HolderRow {
    pub(super) num: i64,
    pub(super) holds_to: u64,
    confirmed_ms: u64,
    log: [u8; 16],
    turn: u64,
    sum: SetHash,
}

impl HolderRow {
    fn set(&self) -> AbsentSet {
        AbsentSet { log: self.log, turn: self.turn, digest: self.sum.digest() }
    }

    /// Forgets what is known of the peer, so that nothing is claimed for it.
    fn reset(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for table in ["lacks", "doubts"] {
            connection.execute(&format!("DELETE FROM {table} WHERE holder = ?1"), [self.num])?;
        }
        (self.holds_to, self.log, self.turn) = (0, [0; 16], 0);
        self.sum = SetHash::default();
        Ok(())
    }

    fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
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

fn holder_or_new(connection: &Connection, peer: &NodeId) -> rusqlite::Result<HolderRow> {
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

fn sum_of(bytes: Vec<u8>) -> rusqlite::Result<SetHash> {
    SetHash::from_bytes(&bytes).ok_or(rusqlite::Error::InvalidQuery)
}

#[cfg(test)]
mod tests;
