//! Answers the effects of a [`crate::core::journal::session::Session`] from the journal.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::core::ids::{LogId, NodeId};
use crate::core::journal::message::{ClockEntry, Head};
use crate::core::journal::session::{Compared, Here, Need, NotTaken, Scanned, Standing, Why, need};
use crate::core::journal::set_hash::SetDigest;
use crate::core::limits::{
    AUTHOR_QUOTA_BYTES, OP_BODY_BYTES_MAX, OPS_FRAME_BYTES, OPS_PER_FRAME_MAX,
};

use super::schema::{int, row_u64};
use super::{JournalReader, LogState, Refused, RefusedWhy, Result, Scan, ScanLimits};

/// The rows that one scan reads: a few milliseconds of work.
const SCAN_ROWS: usize = 16 * OPS_PER_FRAME_MAX;

impl JournalReader {
    /// The membership of a device by the facts known.
    pub fn standing(&self, device: &NodeId) -> Result<Standing> {
        let verdicts = self.verdicts()?;
        Ok(match (verdicts.removed(device), verdicts.member(device)) {
            (true, _) => Standing::Removed,
            (false, true) => Standing::Member,
            (false, false) => Standing::Stranger,
        })
    }

    /// What a peer lacks by these entries of its clock. If they are its whole clock, also the
    /// position to scan from, which reads all ops above it.
    pub fn compare(&self, entries: &[ClockEntry], whole: bool) -> Result<Compared> {
        // Read first, so that ops that arrive later are above it and do not matter to `start`.
        let newest = "SELECT ifnull(max(arr), 0) FROM ops";
        let mark = self.connection.query_row(newest, [], |row| row_u64(row, 0))?;
        let logs: BTreeMap<LogId, _> =
            self.logs()?.into_iter().map(|state| (state.log, state)).collect();
        let mut compared = Compared::default();
        let mut covered = BTreeMap::new();
        for entry in entries {
            let Some(state) = logs.get(&entry.log) else {
                compared.has.push((entry.log, entry.seq));
                continue;
            };
            if entry.withheld && self.has_room_for(state)? {
                compared.welcome.push(entry.log);
            }
            let at = self.hashes_at(&entry.log, entry.seq)?;
            let here = Here {
                seq: state.seq,
                head: state.head,
                above: self.above_entry(entry, state)?,
                at: at.iter().map(|hash| Head::of(&hash.0)).collect(),
                forked: state.forked,
            };
            let (has, covers) = match need(entry, &here) {
                Need::Settled(seq) => (seq, state.top_seq.max(seq)),
                Need::Above(seq) => (seq, seq),
                Need::All => {
                    compared.all.push(entry.log);
                    (0, 0)
                }
            };
            compared.has.push((entry.log, has));
            covered.insert(entry.log, covers);
        }
        if whole {
            compared.start = self.scan_start(&covered)?.min(mark);
        }
        Ok(compared)
    }

    /// Whether the author of a log has room for any next op.
    fn has_room_for(&self, state: &LogState) -> Result<bool> {
        let mut query = self.connection.prepare_cached(
            "SELECT ifnull(d.quota_bytes, ?2), (SELECT sum(bytes) FROM logs l WHERE l.dev = d.dev)
             FROM devices d WHERE d.id = ?1",
        )?;
        let (quota, used) = query
            .query_row(params![state.author.0, int(AUTHOR_QUOTA_BYTES)], |row| {
                Ok((row_u64(row, 0)?, row_u64(row, 1)?))
            })?;
        Ok(used + OP_BODY_BYTES_MAX as u64 <= quota)
    }

    /// The digest for [`Here::above`]. It requires reading all ops above the entry, which is done
    /// only where the peer holds some.
    fn above_entry(&self, entry: &ClockEntry, state: &LogState) -> Result<Option<SetDigest>> {
        if entry.forked || state.forked {
            return Ok((entry.forked && state.forked).then_some(state.above));
        }
        if entry.seq == state.seq {
            return Ok(Some(state.above));
        }
        if entry.above.is_empty() {
            return Ok(None);
        }
        self.above(&entry.log, entry.seq).map(Some)
    }

    /// The next ops that the peer lacks, as many as one frame holds.
    pub fn scan_for(&self, cursor: Option<u64>, has: &BTreeMap<LogId, u64>) -> Result<Scanned> {
        let cursor = match cursor {
            Some(cursor) => cursor,
            None => self.scan_start(has)?,
        };
        let limits = ScanLimits { ops: OPS_PER_FRAME_MAX, bytes: OPS_FRAME_BYTES, rows: SCAN_ROWS };
        Ok(self.scan(cursor, has, limits)?.into())
    }
}

impl From<Scan> for Scanned {
    fn from(scan: Scan) -> Self {
        let ops = scan.ops.into_iter().map(|(log, _, op)| (log, op)).collect();
        Self { ops, cursor: scan.cursor, drained: scan.drained }
    }
}

impl From<&Refused> for NotTaken {
    fn from(refused: &Refused) -> Self {
        let why = match refused.why {
            RefusedWhy::UnknownAuthor => Why::Author,
            RefusedWhy::Future { until_ms } => Why::Future { until_ms },
            RefusedWhy::Quota => Why::Quota,
            RefusedWhy::Full => Why::Full,
            RefusedWhy::NotFromMember => Why::NotFromMember,
            RefusedWhy::FromRemoved => Why::FromRemoved,
            RefusedWhy::OtherGroup => Why::OtherGroup,
        };
        Self { log: refused.log, seq: refused.seq, why }
    }
}
