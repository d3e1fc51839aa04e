//! The journal in numbers, for people.

use crate::core::ids::{LogId, NodeId};
use crate::core::journal::stamp::Hlc;

use super::schema::{key, meta_array, row_u64};
use super::{JournalReader, Result};

/// One log in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStats {
    /// The log.
    pub log: LogId,
    /// Its author.
    pub author: NodeId,
    /// The clock.
    pub seq: u64,
    /// Ops held.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Two ops of one number are known.
    pub forked: bool,
    /// The log this device writes.
    pub open: bool,
}

/// The journal in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Every log.
    pub logs: Vec<LogStats>,
    /// Ops that hold something.
    pub live_ops: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Ops of kinds this version cannot read.
    pub opaque_ops: u64,
    /// Cells kept.
    pub cells: u64,
    /// Bytes of their values; much less than `live_bytes` means large ops with little alive.
    pub cell_bytes: u64,
    /// Events kept.
    pub events: u64,
    /// The greatest time given or admitted.
    pub hlc_max: Hlc,
}

impl JournalReader {
    /// The journal in numbers. Reads whole tables: not for every second.
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
