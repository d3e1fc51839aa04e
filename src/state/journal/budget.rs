//! Whether there is room for ops: within the budgets of [`crate::core::journal::budget`], and on
//! the disk.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::NodeId;
pub(super) use crate::core::journal::budget::Budget;
use crate::core::limits::{
    AUTHOR_BYTES_MIN, AUTHOR_QUOTA_BYTES, FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION,
    JOURNAL_FLOOR_FRACTION,
};

use super::rows::{ADD, GENESIS};
use super::schema::row_u64;
use super::tx::Tx;
use super::{Journal, Result};

impl Journal {
    /// Whether the disk has too little space for ops by peers. If the disk cannot be measured, it
    /// has enough.
    pub(super) fn is_disk_low(&self) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.path) else { return false };
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        is_low(bytes(disk.f_bavail), bytes(disk.f_blocks))
    }
}

fn is_low(free_bytes: u64, total_bytes: u64) -> bool {
    let store_floor_bytes = FREE_FLOOR_BYTES.min(total_bytes / FREE_FLOOR_FRACTION);
    free_bytes < store_floor_bytes / JOURNAL_FLOOR_FRACTION
}

impl Tx<'_> {
    /// Whether an author has room for this many bytes; drops its dead ops first if need be.
    pub(super) fn has_room(&mut self, author: &NodeId, bytes: u64) -> Result<bool> {
        let dev = self.device(author)?;
        if self.fits(dev, bytes)? {
            return Ok(true);
        }
        self.drop_dead_of(dev)?;
        self.fits(dev, bytes)
    }

    fn fits(&mut self, dev: i64, bytes: u64) -> Result<bool> {
        let own_bytes = self.device_bytes(dev)?.saturating_add(bytes);
        if own_bytes > self.quota(dev)? {
            return Ok(false);
        }
        if own_bytes <= AUTHOR_BYTES_MIN {
            return Ok(true);
        }
        if self.budget.is_none() {
            self.budget = Some(self.make_budget()?);
        }
        Ok(self.budget.as_ref().is_none_or(|budget| budget.has_room(dev, bytes)))
    }

    pub(super) fn quota(&self, dev: i64) -> Result<u64> {
        let mut query = self.db.prepare_cached("SELECT quota_bytes FROM devices WHERE dev = ?1")?;
        let set: Option<i64> = query.query_row([dev], |row| row.get(0))?;
        Ok(set.map_or(AUTHOR_QUOTA_BYTES, |bytes| u64::try_from(bytes).unwrap_or(0)))
    }

    fn make_budget(&self) -> Result<Budget> {
        let mut used: BTreeMap<i64, u64> = BTreeMap::new();
        let mut query = self.db.prepare_cached("SELECT dev, sum(bytes) FROM logs GROUP BY dev")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            used.insert(row.get(0)?, row_u64(row, 1)?);
        }
        for (now, table) in self.logs.values() {
            let bytes = used.entry(now.dev).or_default();
            *bytes = bytes.saturating_add(now.bytes).saturating_sub(table.bytes);
        }
        let mut founders = BTreeSet::new();
        let mut adds = Vec::new();
        let mut query = self
            .db
            .prepare_cached("SELECT kind, by_dev, dev FROM members WHERE kind IN (?1, ?2)")?;
        let mut rows = query.query([GENESIS, ADD])?;
        while let Some(row) = rows.next()? {
            let (kind, by, device): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if kind == GENESIS {
                founders.insert(by);
            } else {
                adds.push((by, device));
            }
        }
        let devices = used.into_iter().map(|(dev, used)| Ok((dev, self.quota(dev)?, used)));
        let devices = devices.collect::<Result<Vec<_>>>()?;
        Ok(Budget::new(&founders, &adds, devices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_takes_ops_when_the_store_takes_no_content_and_stops_before_the_disk_is_full() {
        const GIB: u64 = 1 << 30;
        for (free, total, low) in [
            (GIB / 2, 1000 * GIB, false),
            (GIB / 4 - 1, 1000 * GIB, true),
            (GIB / 4, 1000 * GIB, false),
            (GIB / 400, GIB, false),
            (GIB / 401, GIB, true),
            (0, 0, false),
        ] {
            assert_eq!(is_low(free, total), low, "{free} of {total}");
        }
    }
}
