//! The migrations of `journal.db`'s schema from one version to the next.
//!
//! A migration leaves what [`super::schema`] would have made of the same content: derived values are
//! computed again, nothing else changes.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::core::ids::NodeId;
use crate::db::migrate::Step;

use super::digest::state_digest;
use super::rows::live_above;
use super::schema::{key, meta, set_meta};

/// The migrations for [`crate::db::migrate::migrate`].
pub(super) const STEPS: [Step; 3] = [one_to_two, two_to_three, three_to_four];

/// To version 2: sums for which nobody can find a collision instead of XORs, branches of a log by
/// their hash, an epoch of its own instead of the log that this device writes, and no unused
/// columns.
fn one_to_two(tx: &Transaction<'_>) -> anyhow::Result<()> {
    rebuild_ops(tx)?;
    tx.execute_batch(
        "ALTER TABLE streams DROP COLUMN digest;
         ALTER TABLE members DROP COLUMN keep;
         ALTER TABLE tokens DROP COLUMN tries;",
    )?;
    let logs: Vec<(i64, i64, bool)> = {
        let mut query = tx.prepare("SELECT log, seq, forked FROM logs")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    for (log, seq, forked) in logs {
        let from = if forked { 0 } else { u64::try_from(seq).unwrap_or(0) };
        let above = live_above(tx, log, from)?.to_bytes();
        tx.execute("UPDATE logs SET above = ?2 WHERE log = ?1", params![log, above])?;
    }
    if meta(tx, key::DIGEST)?.is_some() {
        set_meta(tx, key::DIGEST, &state_digest(tx)?.to_bytes())?;
    }
    // Cursors that readers hold stay valid.
    if let Some(open) = meta(tx, key::OPEN_LOG)? {
        set_meta(tx, key::FEED_EPOCH, &open)?;
    }
    let owner = meta(tx, key::DEVICE)?.and_then(|id| NodeId::from_slice(&id));
    let newest: Option<i64> = tx
        .query_row(
            "SELECT max(o.hlc) FROM ops o JOIN logs USING (log) JOIN devices d USING (dev)
             WHERE d.id != ?1",
            [owner.map_or([0; 32], |owner| owner.0)],
            |row| row.get(0),
        )
        .optional()?
        .flatten();
    if let Some(newest) = newest {
        set_meta(tx, key::HLC_OTHERS, &newest.to_be_bytes())?;
    }
    Ok(())
}

/// To version 4: the rows of shadows include attributes. Those of an earlier version stay as they are
/// and tell that they have none, see [`super::assets`]. All assets are looked at again once, so that
/// attributes given before reach the journal.
fn three_to_four(tx: &Transaction<'_>) -> anyhow::Result<()> {
    tx.execute("UPDATE cursors SET arr = 0 WHERE name = 'metadata-store'", [])?;
    Ok(())
}

/// Keeps arrival numbers; those of deleted ops are not reused.
fn rebuild_ops(tx: &Transaction<'_>) -> anyhow::Result<()> {
    tx.execute_batch(
        "CREATE TABLE ops_2 (
             arr INTEGER PRIMARY KEY AUTOINCREMENT,
             log INTEGER NOT NULL REFERENCES logs,
             seq INTEGER NOT NULL,
             hash BLOB NOT NULL,
             hlc INTEGER NOT NULL,
             refs INTEGER NOT NULL,
             opaque INTEGER NOT NULL,
             recv_ms INTEGER NOT NULL,
             body BLOB NOT NULL,
             sig BLOB NOT NULL,
             UNIQUE (log, seq, hash)
         ) STRICT;
         INSERT INTO ops_2
             SELECT arr, log, seq, hash, hlc, refs, opaque, recv_ms, body, sig FROM ops;
         DELETE FROM sqlite_sequence WHERE name = 'ops_2';
         INSERT INTO sqlite_sequence (name, seq)
             SELECT 'ops_2', seq FROM sqlite_sequence WHERE name = 'ops';
         DROP TABLE ops;
         ALTER TABLE ops_2 RENAME TO ops;
         CREATE INDEX ops_dead ON ops (log, seq) WHERE refs = 0 AND opaque = 0;
         CREATE INDEX ops_opaque ON ops (arr) WHERE opaque = 1;",
    )?;
    Ok(())
}

/// To version 3: versions of paths that lost their cells and are still to be looked at, and the
/// history of each path.
fn two_to_three(tx: &Transaction<'_>) -> anyhow::Result<()> {
    tx.execute_batch(
        "CREATE TABLE superseded (
             id BLOB NOT NULL,
             version BLOB NOT NULL,
             is_replaced INTEGER NOT NULL,
             due_ms INTEGER NOT NULL,
             by_ms INTEGER NOT NULL,
             by_dev INTEGER NOT NULL,
             PRIMARY KEY (id, version)
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX superseded_due ON superseded (due_ms);
         CREATE INDEX events_of_file ON events (stream, type, arr, idx)
             WHERE stream >= 'folder/' AND stream < 'folder0';",
    )?;
    Ok(())
}
