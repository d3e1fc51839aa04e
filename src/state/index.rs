//! The index: which hashes this device knows, in the order it learnt of them, and which devices hold
//! what. Most known hashes are held by the store. The others are *absent*: missing or not wanted.
//!
//! It is a cache for reconciling without querying the store, and can always be rebuilt from the
//! store's change feed. Hence `synchronous = NORMAL`: a power cut may lose the newest transactions.
//! The database then has an earlier state, with the store cursor of that state, so the feed brings
//! the rest again. But a sequence number must never mean two hashes to a peer, therefore:
//!
//! X1  Numbers are assigned in commit order and rise; within an epoch none is assigned twice.
//! X2  Every [`Index::open`] begins a new epoch, and so does forgetting hashes. A restored backup,
//!     a copied home or a file system snapshot may bring back an older file that looks like the
//!     last one in every respect. Only a new epoch is safe, and it costs little: the first
//!     comparison after a start finds differences by coded cells instead of by cursor.
//! X3  Hashes, their count and the store cursor change in one transaction.
//! X4  An index that cannot be used (damaged, of a newer version, not a file) is moved aside and
//!     begun anew. Because it is a cache, it never keeps the agent from starting.
//! X5  What belongs to one epoch (a peer's cursor, a sketch) is not saved in another.
//! X6  A number is never given to another hash, also in a later epoch: what other devices hold is
//!     kept by numbers ([`holders`]).

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};

use crate::core::copies::AbsentSet;
use crate::core::ids::{Digest, Hash, HashAlgorithm, NodeId, StoreId};
use crate::core::journal::set_hash::SetHash;
use crate::db::{self, Database, DbError, Txn, int, row_u64};
use crate::state::home::private_database_file;

pub use self::absent::{KnownRow, Noted};
pub use self::holders::{Believed, Holder};
use self::open::{READERS, SPEC, is_fault_of_the_file, move_aside, open_writer};
pub use self::rows::{Epoch, Head};
use self::rows::{Kept, Published, arrive};

mod absent;
mod census;
mod holders;
mod open;
mod peers;
mod rows;

/// The index. Clones share it.
#[derive(Debug, Clone)]
pub struct Index {
    database: Arc<Database<Published>>,
    head: Arc<Mutex<Head>>,
    /// Counts the changes of what peers hold.
    changes: Arc<AtomicU64>,
}

/// Why the index could not be read or written.
pub type IndexError = DbError;

/// The rows seen so far in a listing of the whole store: one bit per sequence number.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    seen: Vec<u64>,
    count: u64,
}

/// The result of [`Index::bind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// False when the index is new or belonged to another store; it is empty now.
    pub same: bool,
}

impl Index {
    /// Opens the index at `path`, or begins a new one there.
    pub fn open(path: &Path) -> Result<Self> {
        let index = match Self::try_open(path) {
            Err(error) if path.symlink_metadata().is_ok() && is_fault_of_the_file(&error) => {
                let aside = move_aside(path)?;
                tracing::warn!(
                    "the index {} cannot be used ({error:#}): it is kept as {} and rebuilt from the \
                     store",
                    path.display(),
                    aside.display()
                );
                Self::try_open(path)
            }
            opened => opened,
        };
        index.with_context(|| format!("opening {}", path.display()))
    }

    fn try_open(path: &Path) -> Result<Self> {
        private_database_file(path)?;
        let (writer, state) = open_writer(path)?;
        let head = Arc::new(Mutex::new(state.head));
        let owner = Published(head.clone());
        let database = Database::start(writer, path, &SPEC, READERS, owner, state)?;
        Ok(Self { database: Arc::new(database), head, changes: Arc::default() })
    }

    /// The store that the index belongs to and its hash algorithm, if there is one yet.
    pub fn bound(&self) -> db::Result<Option<(StoreId, HashAlgorithm)>> {
        self.read(bound)
    }

    /// Assigns the index to a store. An index of another store is emptied and gets a new epoch.
    pub fn bind(&self, store_id: &StoreId, algorithm: HashAlgorithm) -> db::Result<Bound> {
        let store_id = *store_id;
        self.database.write(move |tx| {
            if bound(tx.conn)? == Some((store_id, algorithm)) {
                return Ok(Bound { same: true });
            }
            let epoch: Epoch = rand::random();
            for table in ["known", "sketch", "peers", "holders", "lacks", "doubts"] {
                tx.conn.execute(&format!("DELETE FROM {table}"), [])?;
            }
            tx.conn.execute(
                "UPDATE state
                 SET store_id = ?1, algorithm = ?2, epoch = ?3, count = 0, store_cursor = 0",
                params![store_id.0, algorithm.name(), epoch],
            )?;
            let absent = AbsentSet { log: rand::random(), ..AbsentSet::default() };
            let (seq, count, held, missing, store_cursor) = (0, 0, 0, 0, 0);
            let head = Head { epoch, seq, count, held, missing, absent, store_cursor };
            tx.state = Kept { head, sum: SetHash::default() };
            Ok(Bound { same: false })
        })
    }

    /// The state of the index. Does not read the disk.
    pub fn head(&self) -> Head {
        *self.head.lock()
    }

    /// Adds the digests that were not held yet, and moves the store cursor. Returns them with their
    /// sequence numbers; those that were known before have an old one.
    pub fn insert(&self, digests: &[Digest], store_cursor: u64) -> db::Result<Vec<(u64, Digest)>> {
        let digests = digests.to_vec();
        self.database.write(move |tx| {
            let mut added = Vec::new();
            let mut insert = tx.conn.prepare_cached(
                "INSERT INTO known (seq, hash, size) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            )?;
            for digest in digests {
                let head = &mut tx.state.head;
                let seq = head.seq + 1;
                let row = params![int(seq), digest.hash.0, int(digest.size_bytes)];
                if insert.execute(row)? == 1 {
                    head.seq = seq;
                    head.count += 1;
                    head.held += 1;
                    added.push((seq, digest));
                } else if head.count > head.held
                    && let Some(seq) = arrive(tx, &digest)?
                {
                    added.push((seq, digest));
                }
            }
            let head = &mut tx.state.head;
            head.store_cursor = store_cursor;
            tx.conn
                .prepare_cached("UPDATE state SET count = ?1, store_cursor = ?2")?
                .execute(params![int(head.count), int(store_cursor)])?;
            Ok(added)
        })
    }

    /// Adds a page of a listing of the whole store. Unlike [`insert`](Self::insert) it does not
    /// move the store cursor: an interrupted listing must not look like a complete one.
    pub fn insert_listed(
        &self,
        listing: &mut Listing,
        digests: &[Digest],
    ) -> db::Result<Vec<(u64, Digest)>> {
        let added = self.insert(digests, self.head().store_cursor)?;
        let hashes: Vec<Hash> = digests.iter().map(|digest| digest.hash).collect();
        self.seqs(&hashes)?.into_iter().flatten().for_each(|seq| listing.mark(seq));
        Ok(added)
    }

    /// Ends a listing: forgets the hashes that it did not show, and moves the store cursor to its
    /// end. Returns how many were forgotten; if any, a new epoch begins and all peers' cursors are
    /// lost.
    pub fn finish_listing(&self, listing: &Listing, store_cursor: u64) -> db::Result<u64> {
        let listing = listing.clone();
        self.database.write(move |tx| {
            let is_complete = listing.count == tx.state.head.held;
            let lost = if is_complete { Vec::new() } else { listing.not_seen(tx.conn)? };
            tx.state.head.store_cursor = store_cursor;
            Ok(forget_rows(tx, &lost)?)
        })
    }

    /// Forgets hashes that the store no longer holds. Returns how many of them were known; if any,
    /// a new epoch begins as after [`finish_listing`](Self::finish_listing).
    pub fn forget(&self, hashes: &[Hash]) -> db::Result<u64> {
        let hashes = hashes.to_vec();
        self.database.write(move |tx| {
            let mut lost = Vec::new();
            let mut query =
                tx.conn.prepare_cached("SELECT seq FROM known WHERE hash = ?1 AND state = 0")?;
            for hash in hashes {
                lost.extend(query.query_row([hash.0], |row| row_u64(row, 0)).optional()?);
            }
            Ok(forget_rows(tx, &lost)?)
        })
    }

    /// Whether the store holds each of the hashes, in their order.
    pub fn held(&self, hashes: &[Hash]) -> db::Result<Vec<bool>> {
        self.read(|connection| {
            let mut query =
                connection.prepare_cached("SELECT 1 FROM known WHERE hash = ?1 AND state = 0")?;
            hashes.iter().map(|hash| query.exists([hash.0])).collect()
        })
    }

    /// The sizes in bytes of the hashes, in their order; `None` for those that the store does not
    /// hold.
    pub fn sizes(&self, hashes: &[Hash]) -> db::Result<Vec<Option<u64>>> {
        self.read(|connection| {
            let mut query = connection
                .prepare_cached("SELECT size FROM known WHERE hash = ?1 AND state = 0")?;
            hashes
                .iter()
                .map(|hash| query.query_row([hash.0], |row| row_u64(row, 0)).optional())
                .collect()
        })
    }

    /// The sequence numbers of the hashes, in their order; `None` for unknown ones.
    pub fn seqs(&self, hashes: &[Hash]) -> db::Result<Vec<Option<u64>>> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT seq FROM known WHERE hash = ?1")?;
            hashes
                .iter()
                .map(|hash| query.query_row([hash.0], |row| row_u64(row, 0)).optional())
                .collect()
        })
    }

    /// At most `limit` hashes numbered above `after_seq` and up to `up_to_seq`, in sequence order,
    /// and whether there are more.
    pub fn since(
        &self,
        after_seq: u64,
        up_to_seq: u64,
        limit: usize,
    ) -> db::Result<(Vec<(u64, Hash)>, bool)> {
        self.read(|connection| {
            let rows = connection
                .prepare_cached(
                    "SELECT seq, hash FROM known WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
                )?
                .query_map(params![int(after_seq), int(up_to_seq), one_more(limit)], |row| {
                    Ok((row_u64(row, 0)?, Hash(row.get(1)?)))
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(page(rows, limit))
        })
    }

    /// At most `limit` hashes above `after` that are numbered up to `up_to_seq`, in ascending
    /// order, and whether there are more.
    pub fn above(
        &self,
        after: Option<Hash>,
        up_to_seq: u64,
        limit: usize,
    ) -> db::Result<(Vec<Hash>, bool)> {
        // The empty blob is below all 32 bytes.
        let after = after.as_ref().map_or(&[][..], |hash| hash.as_bytes());
        self.read(|connection| {
            let rows = connection
                .prepare_cached(
                    "SELECT hash FROM known WHERE hash > ?1 AND seq <= ?2 ORDER BY hash LIMIT ?3",
                )?
                .query_map(params![after, int(up_to_seq), one_more(limit)], |row| {
                    row.get(0).map(Hash)
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(page(rows, limit))
        })
    }

    /// At most `limit` hashes above `after` that the store holds, in ascending order, and whether
    /// there are more.
    pub fn held_above(&self, after: Option<Hash>, limit: usize) -> db::Result<(Vec<Hash>, bool)> {
        let after = after.as_ref().map_or(&[][..], |hash| hash.as_bytes());
        self.read(|connection| {
            let rows = connection
                .prepare_cached(
                    "SELECT hash FROM known WHERE hash > ?1 AND state = 0 ORDER BY hash LIMIT ?2",
                )?
                .query_map(params![after, one_more(limit)], |row| row.get(0).map(Hash))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(page(rows, limit))
        })
    }

    /// Visits every hash within `range` that is numbered up to `up_to_seq`, ascending, in one
    /// snapshot.
    pub fn for_each_in(
        &self,
        range: RangeInclusive<Hash>,
        up_to_seq: u64,
        mut visit: impl FnMut(Hash),
    ) -> db::Result<()> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT hash FROM known WHERE hash BETWEEN ?1 AND ?2 AND seq <= ?3 ORDER BY hash",
            )?;
            let mut rows = query.query(params![range.start().0, range.end().0, int(up_to_seq)])?;
            while let Some(row) = rows.next()? {
                visit(Hash(row.get(0)?));
            }
            Ok(())
        })
    }

    /// How far this device has taken in a peer's set: the peer's epoch and sequence number.
    pub fn peer_cursor(&self, peer: &NodeId) -> db::Result<Option<(Epoch, u64)>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT epoch, seq FROM peers WHERE node_id = ?1")?
                .query_row([peer.0], |row| Ok((row.get(0)?, row_u64(row, 1)?)))
                .optional()
        })
    }

    /// Saves the cursor of a peer, unless this index's epoch is no longer `own_epoch`. Call it only
    /// when everything up to `seq` is in this device's store.
    pub fn set_peer_cursor(
        &self,
        own_epoch: &Epoch,
        peer: &NodeId,
        epoch: &Epoch,
        seq: u64,
    ) -> db::Result<()> {
        let (own_epoch, peer, epoch) = (*own_epoch, *peer, *epoch);
        self.database.write(move |tx| {
            tx.conn
                .prepare_cached(
                    "INSERT INTO peers (node_id, epoch, seq) SELECT ?1, ?2, ?3 FROM state
                     WHERE state.epoch = ?4
                     ON CONFLICT (node_id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq",
                )?
                .execute(params![peer.0, epoch, int(seq), own_epoch])?;
            Ok(())
        })
    }

    /// The sketch saved last and the sequence number that it covers; later hashes must be added to
    /// it.
    pub fn load_sketch(&self) -> db::Result<Option<(Vec<u8>, u64)>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT bytes, seq FROM sketch")?
                .query_row([], |row| Ok((row.get(0)?, row_u64(row, 1)?)))
                .optional()
        })
    }

    /// Saves the sketch of all hashes up to `seq`, unless the epoch is no longer `own_epoch`.
    pub fn save_sketch(&self, own_epoch: &Epoch, bytes: &[u8], seq: u64) -> db::Result<()> {
        let (own_epoch, bytes) = (*own_epoch, bytes.to_vec());
        self.database.write(move |tx| {
            tx.conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO sketch (one, bytes, seq)
                     SELECT 1, ?1, ?2 FROM state WHERE epoch = ?3",
                )?
                .execute(params![bytes, int(seq), own_epoch])?;
            Ok(())
        })
    }

    /// Syncs everything to disk, so that the next [`open`](Self::open) need not check the file.
    /// Every later call fails.
    pub fn close(&self) -> db::Result<()> {
        // Reaches the database when the writer ends and copies the log: so the mark is durable only
        // together with all writes before it.
        self.database.write(|tx| Ok(tx.conn.execute("UPDATE state SET clean = 1", [])?))?;
        self.database.close();
        Ok(())
    }

    /// Reads within one transaction, so that everything read is of one snapshot.
    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> db::Result<T> {
        self.database.readers().read(read)
    }
}

impl Listing {
    fn mark(&mut self, seq: u64) {
        let (word, bit) = ((seq / 64) as usize, 1 << (seq % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        self.count += u64::from(self.seen[word] & bit == 0);
        self.seen[word] |= bit;
    }

    fn shows(&self, seq: u64) -> bool {
        self.seen.get((seq / 64) as usize).is_some_and(|word| word & (1 << (seq % 64)) != 0)
    }

    fn not_seen(&self, connection: &Connection) -> rusqlite::Result<Vec<u64>> {
        let mut query = connection.prepare("SELECT seq FROM known WHERE state = 0")?;
        let mut rows = query.query([])?;
        let mut not_seen = Vec::new();
        while let Some(row) = rows.next()? {
            let seq = row_u64(row, 0)?;
            if !self.shows(seq) {
                not_seen.push(seq);
            }
        }
        Ok(not_seen)
    }
}

fn bound(connection: &Connection) -> rusqlite::Result<Option<(StoreId, HashAlgorithm)>> {
    connection.query_row("SELECT store_id, algorithm FROM state", [], |row| {
        let (store_id, algorithm): (Option<[u8; 16]>, Option<String>) = (row.get(0)?, row.get(1)?);
        let algorithm = algorithm.as_deref().and_then(HashAlgorithm::from_name);
        Ok(store_id.map(StoreId).zip(algorithm))
    })
}

/// Deletes rows of held hashes by their sequence numbers; if there are any, also the sketch and all
/// peers' cursors. Returns how many there were.
fn forget_rows(tx: &mut Txn<'_, Published>, lost: &[u64]) -> rusqlite::Result<u64> {
    if !lost.is_empty() {
        for seq in lost {
            peers::forget(tx, *seq)?;
            tx.conn.prepare_cached("DELETE FROM known WHERE seq = ?1")?.execute([int(*seq)])?;
        }
        tx.conn.execute("DELETE FROM sketch", [])?;
        tx.conn.execute("DELETE FROM peers", [])?;
        let head = &mut tx.state.head;
        head.epoch = rand::random();
        head.count -= lost.len() as u64;
        head.held -= lost.len() as u64;
    }
    let head = &tx.state.head;
    tx.conn.execute(
        "UPDATE state SET epoch = ?1, count = ?2, store_cursor = ?3",
        params![head.epoch, int(head.count), int(head.store_cursor)],
    )?;
    Ok(lost.len() as u64)
}

fn page<T>(mut rows: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = rows.len() > limit;
    rows.truncate(limit);
    (rows, more)
}

fn one_more(limit: usize) -> i64 {
    count(limit).saturating_add(1)
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
