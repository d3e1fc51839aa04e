//! Reads for a session with a peer: the clock, and ops in the order of their arrival here.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::journal::members::Verdicts;
use crate::core::journal::message::{Clock, ClockEntry, Head, StateDigest};
use crate::core::journal::op::{KINDS, LogInfo, SignedOp};
use crate::core::journal::set_hash::SetDigest;
use crate::core::limits::{INTRO_OPS_MAX, INTRODUCTION_FRAME_BYTES_MAX};

use super::rows::{ADD, GENESIS, REMOVE, live_above};
use super::schema::{int, key, meta_set, row_set, row_u64, seq_key};
use super::{JournalReader, Result};

/// How much one [`JournalReader::scan`] returns and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanLimits {
    /// The most ops.
    pub ops: usize,
    /// The most bytes of bodies; at least one op is returned whatever its size.
    pub bytes: usize,
    /// The most rows read, including ops that the peer has.
    pub rows: usize,
}

/// A part of the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// The ops in order of arrival, each with its log's id and its number.
    pub ops: Vec<(LogId, u64, SignedOp)>,
    /// The position to continue from.
    pub cursor: u64,
    /// Set when nothing is left and no op is returned: the whole clock of the same snapshot, with
    /// `drained` set.
    pub drained: Option<Clock>,
}

/// Our progress in one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// The log.
    pub log: LogId,
    /// The log's author.
    pub author: NodeId,
    /// The number up to which the effects of all ops are known here.
    pub seq: u64,
    /// The start of the hash of the op at `seq`; zero when `seq` is 0, and in a forked log.
    pub head: Head,
    /// The highest number stored.
    pub top_seq: u64,
    /// The digest [`crate::core::journal::message::ClockEntry::above`].
    pub above: SetDigest,
    /// Whether two ops with one number are known.
    pub forked: bool,
}

impl JournalReader {
    /// The whole clock, with `drained` and `restart` unset. An empty log is left out, so that equal
    /// states have equal clocks. In a forked log the head is zero, because devices received its
    /// branches in different orders, and `above` covers all of them.
    pub fn clock(&self) -> Result<Clock> {
        let tx = self.connection.unchecked_transaction()?;
        clock(&tx)
    }

    /// Our progress in every log.
    pub fn logs(&self) -> Result<Vec<LogState>> {
        let mut query = self.connection.prepare_cached(
            "SELECT l.log_id, d.id, l.seq, l.head, l.above, l.forked,
                 (SELECT ifnull(max(seq), 0) FROM ops o WHERE o.log = l.log)
             FROM logs l JOIN devices d USING (dev) ORDER BY l.log_id",
        )?;
        let rows = query.query_map([], |row| {
            let entry = row_entry(row, [0, 2, 3, 4, 5])?;
            Ok(LogState {
                log: entry.log,
                author: NodeId(row.get(1)?),
                seq: entry.seq,
                head: entry.head,
                top_seq: row_u64(row, 6)?,
                above: entry.above,
                forked: entry.forked,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The digest of our live ops of a log above `seq`: equal to a peer's `above` if the peer
    /// stores the same. Reads all of them.
    pub fn above(&self, log: &LogId, seq: u64) -> Result<SetDigest> {
        let tx = self.connection.unchecked_transaction()?;
        let num: Option<i64> = tx
            .prepare_cached("SELECT log FROM logs WHERE log_id = ?1")?
            .query_row([log.0], |row| row.get(0))
            .optional()?;
        let Some(num) = num else { return Ok(SetDigest::default()) };
        Ok(live_above(&tx, num, seq)?.digest())
    }

    /// The hashes of the stored ops with that number; more than one in a forked log.
    pub fn hashes_at(&self, log: &LogId, seq: u64) -> Result<Vec<OpHash>> {
        let mut query = self.connection.prepare_cached(
            "SELECT o.hash FROM ops o JOIN logs l USING (log)
             WHERE l.log_id = ?1 AND o.seq = ?2 ORDER BY o.hash",
        )?;
        let rows = query.query_map(params![log.0, seq_key(seq)], |row| row.get(0).map(OpHash))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The arrival number from which to scan for a peer with this progress: the peer has every op
    /// that arrived here earlier.
    /// Reads all ops above the peer's progress, because arrival numbers only nearly rise along a
    /// log.
    pub fn scan_start(&self, has: &BTreeMap<LogId, u64>) -> Result<u64> {
        let tx = self.connection.unchecked_transaction()?;
        let newest =
            tx.query_row("SELECT ifnull(max(arr), 0) FROM ops", [], |row| row_u64(row, 0))?;
        let mut start = newest;
        for (log, info) in log_infos(&tx)? {
            let after = info.covered(has);
            let first: Option<i64> = tx
                .prepare_cached("SELECT min(arr) FROM ops WHERE log = ?1 AND seq > ?2")?
                .query_row(params![log, int(after)], |row| row.get(0))?;
            if let Some(first) = first {
                start = start.min(u64::try_from(first - 1).unwrap_or(0));
            }
        }
        Ok(start)
    }

    /// The ops after `cursor` that the peer lacks by `has`, in one snapshot. The result may be
    /// empty without being drained: then continue.
    pub fn scan(
        &self,
        cursor: u64,
        has: &BTreeMap<LogId, u64>,
        limits: ScanLimits,
    ) -> Result<Scan> {
        let tx = self.connection.unchecked_transaction()?;
        let logs = log_infos(&tx)?;
        let mut scan = Scan { ops: Vec::new(), cursor, drained: None };
        let mut query = tx.prepare_cached(
            "SELECT arr, log, seq, body, sig FROM ops WHERE arr > ?1 ORDER BY arr LIMIT ?2",
        )?;
        let mut rows = query.query(params![int(cursor), int(limits.rows as u64)])?;
        let (mut seen, mut bytes) = (0, 0);
        while let Some(row) = rows.next()? {
            let log = logs.get(&row.get(1)?).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            let (arr, seq) = (row_u64(row, 0)?, row_u64(row, 2)?);
            if seq > log.covered(has) {
                let body: Vec<u8> = row.get(3)?;
                if scan.ops.len() >= limits.ops
                    || (!scan.ops.is_empty() && bytes + body.len() > limits.bytes)
                {
                    return Ok(scan);
                }
                bytes += body.len();
                let op = SignedOp { log: log.info, body: body.into(), sig: row.get(4)? };
                scan.ops.push((log.id, seq, op));
            }
            scan.cursor = arr;
            seen += 1;
        }
        if seen < limits.rows && scan.ops.is_empty() {
            scan.drained = Some(Clock { drained: true, ..clock(&tx)? });
        }
        Ok(scan)
    }

    /// The ops that make a device a member, the founder's first; empty when it is not one.
    pub fn intro(&self, device: &NodeId) -> Result<Vec<SignedOp>> {
        let tx = self.connection.unchecked_transaction()?;
        let verdicts = Verdicts::of(&super::facts::facts(&tx)?);
        intro(&tx, &verdicts, device)
    }

    /// The ops that remove a device, to be presented to it: each after those that add its author.
    pub fn removal(&self, device: &NodeId) -> Result<Vec<SignedOp>> {
        let tx = self.connection.unchecked_transaction()?;
        let verdicts = Verdicts::of(&super::facts::facts(&tx)?);
        removal(&tx, &verdicts, device)
    }
}

/// A log as needed to send its ops.
struct Known {
    id: LogId,
    info: LogInfo,
}

impl Known {
    /// The peer's progress in this log.
    fn covered(&self, has: &BTreeMap<LogId, u64>) -> u64 {
        has.get(&self.id).copied().unwrap_or(0)
    }
}

fn log_infos(connection: &Connection) -> Result<BTreeMap<i64, Known>> {
    let mut query = connection.prepare_cached(
        "SELECT l.log, l.log_id, d.id, l.nonce FROM logs l JOIN devices d USING (dev)",
    )?;
    let rows = query.query_map([], |row| {
        let info = LogInfo { author: NodeId(row.get(2)?), nonce: row.get(3)? };
        Ok((row.get(0)?, Known { id: LogId(row.get(1)?), info }))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn clock(connection: &Connection) -> Result<Clock> {
    let mut query = connection
        .prepare_cached("SELECT log_id, seq, head, above, forked FROM logs ORDER BY log_id")?;
    let entries = query.query_map([], |row| row_entry(row, [0, 1, 2, 3, 4]))?;
    let mut entries: Vec<ClockEntry> = entries.collect::<rusqlite::Result<_>>()?;
    entries.retain(|entry| entry.seq > 0 || !entry.above.is_empty());
    let sum = meta_set(connection, key::DIGEST)?.map(|sum| sum.digest());
    let digest = sum.map(|sum| StateDigest { kinds: KINDS, sum });
    Ok(Clock { entries, drained: false, restart: false, digest })
}

/// Reads a clock entry from the columns log_id, seq, head, above, forked.
fn row_entry(row: &rusqlite::Row<'_>, at: [usize; 5]) -> rusqlite::Result<ClockEntry> {
    let [log, seq, head, above, forked] = at;
    let forked: bool = row.get(forked)?;
    let hash: Option<[u8; 32]> = row.get(head)?;
    let head = hash.filter(|_| !forked).map(|hash| Head::of(&hash)).unwrap_or_default();
    let above = row_set(row, above)?.digest();
    let (log, seq) = (LogId(row.get(log)?), row_u64(row, seq)?);
    Ok(ClockEntry { log, seq, head, above, forked, withheld: false })
}

/// The ops with the facts that make a device a member: those that add it, the founder's first, then
/// the [`removals`].
pub(super) fn intro(
    connection: &Connection,
    verdicts: &Verdicts,
    device: &NodeId,
) -> Result<Vec<SignedOp>> {
    let ops = chain_ops(connection, &verdicts.chain(device))?;
    match ops.is_empty() {
        true => Ok(ops),
        false => removals(connection, verdicts, None, ops),
    }
}

/// The ops that remove a device, to be presented to it, then all other [`removals`].
fn removal(connection: &Connection, verdicts: &Verdicts, device: &NodeId) -> Result<Vec<SignedOp>> {
    let ops = removals(connection, verdicts, Some(device), Vec::new())?;
    match ops.is_empty() {
        true => Ok(ops),
        false => removals(connection, verdicts, None, ops),
    }
}

/// Adds to `ops` the removals that stand, of one device or of all, as many as fit into a frame,
/// each after the ops that add its author. They show a receiver that learned of facts by a removed
/// device first that those are void.
fn removals(
    connection: &Connection,
    verdicts: &Verdicts,
    of: Option<&NodeId>,
    mut ops: Vec<SignedOp>,
) -> Result<Vec<SignedOp>> {
    let mut query = connection.prepare_cached(
        "SELECT a.id, l.nonce, o.body, o.sig, o.hash, d.id FROM members m
         JOIN ops o ON o.arr = m.op JOIN logs l ON l.log = o.log JOIN devices a ON a.dev = l.dev
         JOIN devices d ON d.dev = m.dev WHERE m.kind = ?1 AND (?2 IS NULL OR d.id = ?2)
         ORDER BY o.arr DESC",
    )?;
    let mut rows = query.query(params![REMOVE, of.map(|device| device.0)])?;
    while let Some(row) = rows.next()? {
        let (author, hash) = (NodeId(row.get(0)?), OpHash(row.get(4)?));
        // Only a device that was in the group has facts that a removal voids. The removed device
        // itself also gets a void removal: by the facts that it knows it may count.
        if (of.is_none() && verdicts.is_void(&hash)) || !verdicts.author_ok(&NodeId(row.get(5)?)) {
            continue;
        }
        let mut more = ops.clone();
        for op in chain_ops(connection, &verdicts.chain(&author))?.into_iter().chain([row_op(row)?])
        {
            if !more.contains(&op) {
                more.push(op);
            }
        }
        let bytes: usize = more.iter().map(|op| op.body.len() + OP_OVERHEAD_BYTES).sum();
        if more.len() > INTRO_OPS_MAX || bytes > INTRODUCTION_FRAME_BYTES_MAX as usize {
            break;
        }
        ops = more;
    }
    Ok(ops)
}

/// An upper bound for what an op takes beside its body: signature, log and frame.
pub(super) const OP_OVERHEAD_BYTES: usize = 256;

fn row_op(row: &rusqlite::Row<'_>) -> rusqlite::Result<SignedOp> {
    Ok(SignedOp {
        log: LogInfo { author: NodeId(row.get(0)?), nonce: row.get(1)? },
        body: row.get::<_, Vec<u8>>(2)?.into(),
        sig: row.get(3)?,
    })
}

/// The ops of a chain of introductions.
pub(super) fn chain_ops(connection: &Connection, chain: &[NodeId]) -> Result<Vec<SignedOp>> {
    let mut query = connection.prepare_cached(
        "SELECT a.id, l.nonce, o.body, o.sig FROM members m
         JOIN devices b ON b.dev = m.by_dev JOIN devices d ON d.dev = m.dev
         JOIN ops o ON o.arr = m.op JOIN logs l ON l.log = o.log JOIN devices a ON a.dev = l.dev
         WHERE b.id = ?1 AND d.id = ?2 AND m.kind = ?3 ORDER BY o.arr LIMIT 1",
    )?;
    let mut ops: Vec<SignedOp> = Vec::new();
    for (at, device) in chain.iter().enumerate() {
        let (by, kind) = match at.checked_sub(1) {
            None => (device, GENESIS),
            Some(before) => (&chain[before], ADD),
        };
        let op = query.query_row(params![by.0, device.0, kind], row_op)?;
        if !ops.contains(&op) {
            ops.push(op);
        }
    }
    Ok(ops)
}
