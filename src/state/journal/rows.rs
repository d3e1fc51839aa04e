//! What rows of the journal hold: ops, cells, and the kinds of facts.

use rusqlite::{Connection, params};

use crate::core::ids::LogId;
use crate::core::journal::cell::CellValue;
use crate::core::journal::members::{FactKind, Removal};
use crate::core::journal::op::{Body, Change, MemberChange};
use crate::core::journal::set_hash::{Element, SetHash};
use crate::core::journal::stamp::{Hlc, Stamp};
use crate::wire::journal::decode_body;

use super::schema::{int, row_u64};
use super::verify::VerifiedOp;
use super::{JournalError, Result};

/// The kinds of facts in `members`.
pub(super) const GENESIS: i64 = 0;
pub(super) const ADD: i64 = 1;
pub(super) const REMOVE: i64 = 2;

/// Converts a member change into the content of a fact.
pub(super) fn fact_kind(change: &MemberChange) -> FactKind {
    match change {
        MemberChange::Genesis { .. } => FactKind::Genesis,
        MemberChange::Add { device, .. } => FactKind::Add(*device),
        MemberChange::Remove { device, keep, fence } => FactKind::Remove(Removal {
            device: *device,
            keep: keep.iter().copied().collect(),
            fence: fence.as_ref().map(|fence| fence.iter().copied().collect()),
        }),
    }
}

/// Whether an op contains membership facts.
pub(super) fn tells_facts(op: &VerifiedOp) -> bool {
    op.body().changes.iter().any(|change| matches!(change, Change::Member(_)))
}

/// Decodes a stored body, which was checked before it was stored.
pub(super) fn read_body(bytes: &[u8]) -> Result<Body> {
    decode_body(bytes).map_err(|error| JournalError::Damaged(format!("a stored op: {error}")))
}

/// Reads a cell's value from five columns: hlc, log_id, seq, removed, value.
pub(super) fn row_cell(row: &rusqlite::Row<'_>, from: usize) -> rusqlite::Result<CellValue> {
    Ok(CellValue {
        stamp: Stamp {
            hlc: Hlc(row_u64(row, from)?),
            log: LogId(row.get(from + 1)?),
            seq: row_u64(row, from + 2)?,
        },
        removed: row.get(from + 3)?,
        bytes: row.get(from + 4)?,
    })
}

/// The sum over the live ops of a log above a number.
pub(super) fn live_above(connection: &Connection, log: i64, seq: u64) -> Result<SetHash> {
    let mut query = connection.prepare_cached(
        "SELECT hash FROM ops WHERE log = ?1 AND seq > ?2 AND (refs > 0 OR opaque = 1)",
    )?;
    let mut rows = query.query(params![log, int(seq)])?;
    let mut above = SetHash::default();
    while let Some(row) = rows.next()? {
        above.add(&Element(row.get(0)?));
    }
    Ok(above)
}
