//! Statistics of the journal, for people.

use crate::core::ids::{LogId, NodeId};
use crate::core::journal::stamp::Hlc;

use super::schema::{key, meta_array, row_u64};
use super::{JournalReader, Result};

/// Statistics of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStats {
    /// The log.
    pub log: LogId,
    /// The log's author.
    pub author: NodeId,
    /// The number up to which the effects of all ops are known here.
    pub seq: u64,
    /// The number of ops stored.
    pub ops: u64,
    /// The bytes of those ops.
    pub bytes: u64,
    /// Whether two ops with one number are known.
    pub forked: bool,
    /// Whether this device writes to it.
    pub open: bool,
}

/// Statistics of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Every log.
    pub logs: Vec<LogStats>,
    /// The number of ops that hold a cell, an event or a fact.
    pub live_ops: u64,
    /// The bytes of those ops.
    pub live_bytes: u64,
    /// The number of ops that this version cannot read.
    pub opaque_ops: u64,
    /// The number of cells stored.
    pub cells: u64,
    /// The bytes of the cells' values; much less than `live_bytes` means large ops of which little
    /// is live.
    pub cell_bytes: u64,
    /// The number of events stored.
    pub events: u64,
    /// The greatest time given out or admitted.
    pub hlc_max: Hlc,
}

impl JournalReader {
    /// Computes the statistics. Reads whole tables, so not to be called every second.
    pub fn stats(&self) -> Result<Stats> {
        let tx = self.connection.unchecked_transaction()?;
        let number = |sql: &str| tx.query_row(sql, [], |row| row_u64(row, 0));
        let open: Option<[u8; 16]> = meta_array(&tx, key::OPEN_LOG)?;
        let mut query = tx.prepare(
            "SELECT l.log_id, d.id, l.seq, l.bytes, l.forked,
                 (SELECT count(*) FROM ops o WHERE o.log = l.log)
             FROM logs l JOIN devices d USING (dev) ORDER BY l.log_id",
        )?;
        let logs = query.query_map([], |row| {
            let log: [u8; 16] = row.get(0)?;
            Ok(LogStats {
                log: LogId(log),
                author: NodeId(row.get(1)?),
                seq: row_u64(row, 2)?,
                ops: row_u64(row, 5)?,
                bytes: row_u64(row, 3)?,
                forked: row.get(4)?,
                open: open == Some(log),
            })
        })?;
        Ok(Stats {
            logs: logs.collect::<rusqlite::Result<_>>()?,
            live_ops: number("SELECT count(*) FROM ops WHERE refs > 0 OR opaque = 1")?,
            live_bytes: number(
                "SELECT ifnull(sum(length(body) + length(sig)), 0) FROM ops
                 WHERE refs > 0 OR opaque = 1",
            )?,
            opaque_ops: number("SELECT count(*) FROM ops WHERE opaque = 1")?,
            cells: number("SELECT count(*) FROM cells")?,
            cell_bytes: number("SELECT ifnull(sum(length(value)), 0) FROM cells")?,
            events: number("SELECT count(*) FROM events")?,
            hlc_max: Hlc(meta_array(&tx, key::HLC_MAX)?.map_or(0, u64::from_be_bytes)),
        })
    }
}
