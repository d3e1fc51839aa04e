//! What a session reads: the clock, and ops in their order of arrival.

use std::collections::BTreeMap;

use crate::core::ids::{LogId, NodeId, OpHash};
use crate::core::journal::message::{Clock, Xor16};
use crate::core::journal::op::SignedOp;

use super::{JournalReader, Result};

/// How much one [`JournalReader::scan`] returns and looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanLimits {
    /// Ops.
    pub ops: usize,
    /// Bytes of bodies; at least one op is returned whatever its size.
    pub bytes: usize,
    /// Rows looked at, those the peer has included.
    pub rows: usize,
}

/// A stretch of the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// In order of arrival, each with its log's id and its number.
    pub ops: Vec<(LogId, u64, SignedOp)>,
    /// Scan on from here.
    pub cursor: u64,
    /// Set when nothing is left: the whole clock, with `drained` set, of the same snapshot.
    pub drained: Option<Clock>,
}

/// Where we stand in one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Which.
    pub log: LogId,
    /// Its author.
    pub author: NodeId,
    /// The clock.
    pub seq: u64,
    /// The hash of the op at `seq`, zero for 0.
    pub head: Xor16,
    /// The highest number held.
    pub top_seq: u64,
    /// See [`crate::core::journal::message::ClockEntry::above`].
    pub above: Xor16,
    /// Two ops of one number are known.
    pub forked: bool,
}

impl JournalReader {
    /// The whole clock, `drained` and `restart` unset.
    pub fn clock(&self) -> Result<Clock> {
        Ok(Clock::default())
    }

    /// Where we stand in every log.
    pub fn logs(&self) -> Result<Vec<LogState>> {
        Ok(Vec::new())
    }

    /// The XOR over our live ops of a log above `seq`: equal to a peer's `above` when it holds them.
    pub fn above(&self, log: &LogId, seq: u64) -> Result<Xor16> {
        let _ = (log, seq);
        Ok(Xor16::default())
    }

    /// The hashes of the ops held at that place; more than one in a forked log.
    pub fn hashes_at(&self, log: &LogId, seq: u64) -> Result<Vec<OpHash>> {
        let _ = (log, seq);
        Ok(Vec::new())
    }

    /// Where to start scanning for a peer that has that much of each log: everything before is
    /// covered by it.
    pub fn scan_start(&self, has: &BTreeMap<LogId, u64>) -> Result<u64> {
        let _ = has;
        Ok(0)
    }

    /// The ops after `cursor` whose number is above what the peer has of their log, in one
    /// snapshot. May return none and not be drained: then scan on.
    pub fn scan(
        &self,
        cursor: u64,
        has: &BTreeMap<LogId, u64>,
        limits: ScanLimits,
    ) -> Result<Scan> {
        let _ = (cursor, has, limits);
        Ok(Scan { ops: Vec::new(), cursor: 0, drained: None })
    }

    /// The ops that make a device a member, the founder's first; empty when it is none.
    pub fn intro(&self, device: &NodeId) -> Result<Vec<SignedOp>> {
        let _ = device;
        Ok(Vec::new())
    }
}
