//! The digest of the state, computed from the tables: to check it or to rebuild it.

use rusqlite::Connection;

use crate::core::ids::{NodeId, OpHash};
use crate::core::journal::cell::{cell_digest, event_digest, fact_digest};
use crate::core::journal::set_hash::{Element, SetHash};

use super::Result;
use super::rows::row_cell;
use super::schema::row_u64;

/// The function that hashes an event or a fact into an element of the digest.
type Indexed = fn(&OpHash, usize) -> Element;

/// The sum over all cells, membership facts, and events of streams that are kept for ever.
pub(super) fn state_digest(connection: &Connection) -> Result<SetHash> {
    let mut sum = SetHash::default();
    let mut query = connection.prepare(
        "SELECT c.hlc, c.log_id, c.seq, c.removed, c.value, m.name, d.id, c.id, c.field, c.elem
         FROM cells c JOIN models m USING (model) LEFT JOIN devices d ON d.dev = c.scope",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let owner = row.get::<_, Option<[u8; 32]>>(6)?.map(NodeId);
        let (model, id): (String, Vec<u8>) = (row.get(5)?, row.get(7)?);
        let (field, elem): (String, String) = (row.get(8)?, row.get(9)?);
        let value = row_cell(row, 0)?;
        sum.add(&cell_digest(&model, owner.as_ref(), &id, &field, &elem, &value));
    }
    for (table, element) in [
        ("SELECT o.hash, m.idx FROM members m JOIN ops o ON o.arr = m.op", fact_digest as Indexed),
        (
            "SELECT o.hash, e.idx FROM events e JOIN ops o USING (arr)
             WHERE e.stream NOT IN (SELECT stream FROM retention)",
            event_digest as Indexed,
        ),
    ] {
        let mut query = connection.prepare(table)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let index = usize::try_from(row_u64(row, 1)?).unwrap_or(usize::MAX);
            sum.add(&element(&OpHash(row.get(0)?), index));
        }
    }
    Ok(sum)
}
