//! What peers hold: for each peer, up to which number it held everything that is known here, and which
//! numbers it lacks. So a peer that holds everything costs one row.
//!
//! H1  A peer counts as a holder only of what it was known to hold ([`Index::confirm`]): later
//!     numbers are not claimed for it.
//! H2  What a peer is found to lack meanwhile is not claimed for it until the next confirmation.
//! H3  The sum of what a peer lacks is that of the rows in `lacks`; [`Index::believe`] starts over
//!     when the peer's digest is another.

use std::sync::atomic::Ordering;

use rusqlite::params;

use super::absent::Noted;
use super::peers::{holder, holder_or_new};
use super::rows::{note, row_of};
use super::{Epoch, Index, count};
use crate::core::copies::{Absence, AbsentPage, AbsentSet, MissingPlace};
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::set_hash::Element;
use crate::db::{self, int, row_u64};

/// The holders that are claimed of the number `?1`.
const HOLDERS: &str = "SELECT h.num, h.node_id, h.confirmed_ms FROM holders h
    WHERE h.holds_to >= ?1
    AND NOT EXISTS (SELECT 1 FROM lacks l WHERE l.holder = h.num AND l.seq = ?1)
    AND NOT EXISTS (SELECT 1 FROM doubts d WHERE d.holder = h.num AND d.seq = ?1)";

/// A peer that is known to hold an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The peer.
    pub node_id: NodeId,
    /// When that was last confirmed, ms since the Unix epoch.
    pub confirmed_ms: u64,
}

/// What is known of a peer after a page of its absent hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Believed {
    /// The peer's absent hashes, as this device knows them.
    pub belief: AbsentSet,
    /// Whether the peer's absent hashes must be requested again from the start, because their digest
    /// differs from the reported one.
    pub restarts: bool,
    /// Hashes that were not known here before.
    pub noted: Noted,
}

impl Index {
    /// The absent hashes of a peer as far as they are known, and whether it was ever confirmed.
    pub fn belief(&self, peer: &NodeId) -> db::Result<(AbsentSet, bool)> {
        self.read(|connection| {
            let holder = holder(connection, peer)?;
            Ok(holder.map(|it| (it.set(), it.holds_to > 0)).unwrap_or_default())
        })
    }

    /// A number that changes whenever the known holders of an asset change.
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

#[cfg(test)]
mod tests;
