//! The tables of `state.db`. No decisions here but the bounds on addresses.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::shown_name;
use crate::core::ids::{GroupId, NodeId};
use crate::core::pairing::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, Member};

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE this_device (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node_id BLOB NOT NULL,
    group_id BLOB NOT NULL
) STRICT;
CREATE TABLE members (
    node_id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    named_ms INTEGER NOT NULL,
    addresses TEXT NOT NULL,
    added_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE removed (
    node_id BLOB PRIMARY KEY,
    removed_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tickets (
    key BLOB PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    tries_left INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

pub(super) struct Ticket {
    pub(super) key: [u8; 32],
    pub(super) created_ms: i64,
    pub(super) expires_ms: i64,
}

/// Returns the node ID the state belongs to.
pub(super) fn prepare(
    connection: &mut Connection,
    node_id: &NodeId,
    default_name: &str,
    now_ms: i64,
) -> Result<[u8; 32]> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "fullfsync", "ON")?;
    connection.pragma_update(None, "checkpoint_fullfsync", "ON")?;
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    ensure!(check == "ok", "it is damaged ({check})");

    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    ensure!(
        version <= SCHEMA_VERSION,
        "a newer can-sync wrote it (version {version}, this one knows {SCHEMA_VERSION})"
    );
    if version == 0 {
        tx.execute_batch(SCHEMA)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tx.execute(
            "INSERT INTO this_device (one, node_id, group_id) VALUES (1, ?1, ?2)",
            params![node_id.0, rand::random::<[u8; 32]>()],
        )?;
        let own = Member {
            node_id: *node_id,
            name: shown_name(default_name, node_id),
            named_ms: now_ms,
            addresses: vec![],
        };
        put_member(&tx, &own, now_ms)?;
    }
    let stored = tx.query_row("SELECT node_id FROM this_device", [], |row| row.get(0))?;
    tx.commit()?;
    Ok(stored)
}

pub(super) fn group_id(connection: &Connection) -> rusqlite::Result<GroupId> {
    connection
        .prepare_cached("SELECT group_id FROM this_device")?
        .query_row([], |row| row.get(0).map(GroupId))
}

pub(super) fn members(connection: &Connection) -> rusqlite::Result<Vec<Member>> {
    connection
        .prepare_cached(
            "SELECT node_id, name, named_ms, addresses FROM members
             WHERE node_id NOT IN (SELECT node_id FROM removed) ORDER BY node_id",
        )?
        .query_map([], member_of_row)?
        .collect()
}

/// The row of a device, removed or not.
pub(super) fn member(
    connection: &Connection,
    node_id: &NodeId,
) -> rusqlite::Result<Option<Member>> {
    connection
        .prepare_cached(
            "SELECT node_id, name, named_ms, addresses FROM members WHERE node_id = ?1",
        )?
        .query_row([node_id.0], member_of_row)
        .optional()
}

fn member_of_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Member> {
    let addresses: String = row.get(3)?;
    Ok(Member {
        node_id: NodeId(row.get(0)?),
        name: row.get(1)?,
        named_ms: row.get(2)?,
        addresses: addresses.lines().map(str::to_owned).collect(),
    })
}

pub(super) fn removed(connection: &Connection) -> rusqlite::Result<Vec<NodeId>> {
    connection
        .prepare_cached("SELECT node_id FROM removed ORDER BY node_id")?
        .query_map([], |row| row.get(0).map(NodeId))?
        .collect()
}

pub(super) fn is_removed(connection: &Connection, node_id: &NodeId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM removed WHERE node_id = ?1)")?
        .query_row([node_id.0], |row| row.get(0))
}

pub(super) fn entry_count(connection: &Connection) -> rusqlite::Result<usize> {
    let count: i64 = connection
        .prepare_cached(
            "SELECT count(*) FROM (SELECT node_id FROM members UNION SELECT node_id FROM removed)",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

pub(super) fn put_member(tx: &Transaction, member: &Member, now_ms: i64) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO members (node_id, name, named_ms, addresses, added_ms)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            member.node_id.0,
            member.name,
            member.named_ms,
            member.addresses.join("\n"),
            now_ms
        ],
    )?;
    Ok(())
}

/// Puts `newest` before the addresses known. Writes nothing when it holds nothing new, so that
/// gossip that repeats itself leaves the disk alone.
pub(super) fn put_addresses(
    tx: &Transaction,
    known: &Member,
    newest: &[String],
) -> rusqlite::Result<()> {
    let before: BTreeSet<&String> = known.addresses.iter().collect();
    if newest.iter().all(|address| before.contains(address)) {
        return Ok(());
    }
    let addresses = with_addresses(newest, known.addresses.clone());
    tx.execute(
        "UPDATE members SET addresses = ?2 WHERE node_id = ?1",
        params![known.node_id.0, addresses.join("\n")],
    )?;
    Ok(())
}

pub(super) fn with_addresses(newest: &[String], older: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    newest
        .iter()
        .cloned()
        .chain(older)
        .filter(|address| is_address(address) && seen.insert(address.clone()))
        .take(ADDRESSES_MAX)
        .collect()
}

/// Only the form is looked at; what it means is for the one who dials.
fn is_address(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= ADDRESS_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic())
}

pub(super) fn put_removed(tx: &Transaction, node_id: &NodeId, now_ms: i64) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO removed (node_id, removed_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![node_id.0, now_ms],
    )?;
    Ok(())
}

pub(super) fn tickets(connection: &Connection) -> rusqlite::Result<Vec<Ticket>> {
    connection
        .prepare_cached("SELECT key, created_ms, expires_ms FROM tickets")?
        .query_map([], |row| {
            Ok(Ticket { key: row.get(0)?, created_ms: row.get(1)?, expires_ms: row.get(2)? })
        })?
        .collect()
}

pub(super) fn delete_ticket(tx: &Transaction, key: &[u8; 32]) -> rusqlite::Result<usize> {
    tx.execute("DELETE FROM tickets WHERE key = ?1", [key])
}
