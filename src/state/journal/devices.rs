//! The devices of the group as the agent works with them: who they are, what they are called, where
//! they may be reached. Names and addresses are a device's own word; until it has spoken it has the
//! name it was added under, and the addresses at which it was reached from here.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::ids::{GroupId, NodeId};
use crate::core::journal::log::{DEVICE_ID, DEVICE_MODEL, DeviceState};
use crate::core::pairing::{Member, Members, addresses, shown_name};

use super::read::{member_rows, record_at};
use super::schema::{key, meta, meta_array};
use super::tx::facts;
use super::{Journal, JournalReader, Owner, Result};
use crate::core::journal::members::Verdicts;

/// The group as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    /// Which group.
    pub group: GroupId,
    /// What this device is called.
    pub name: String,
    /// Its members and those who were removed, by node ID.
    pub members: Members,
}

impl JournalReader {
    /// The group of `me`, this device; `None` when it is in none.
    pub fn group_state(&self, me: &NodeId) -> Result<Option<GroupState>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(group) = meta_array(&tx, key::GROUP)?.map(GroupId) else { return Ok(None) };
        let verdicts = Verdicts::of(&facts(&tx)?);
        let mut removed: BTreeSet<NodeId> = verdicts.all_removed().copied().collect();
        if meta(&tx, key::TOLD_REMOVED)?.is_some() {
            removed.insert(*me);
        }
        let mut name = me.short();
        let mut members = Vec::new();
        for row in member_rows(&tx, &verdicts)? {
            let own = record_at(&tx, DEVICE_MODEL, Owner::Device(row.device), DEVICE_ID)?;
            let own = own.map(|record| DeviceState::from_fields(&record.fields));
            let own = own.unwrap_or_default();
            let called = if own.name.is_empty() { &row.name } else { &own.name };
            let called = shown_name(called, &row.device);
            if row.device == *me {
                name.clone_from(&called);
            }
            if !row.member || removed.contains(&row.device) {
                continue;
            }
            let told: Vec<String> = own.addresses.into_iter().collect();
            let addresses = addresses(&reached(&tx, &row.device)?, told);
            members.push(Member { node_id: row.device, name: called, addresses });
        }
        let removed = removed.into_iter().collect();
        Ok(Some(GroupState { group, name, members: Members { members, removed } }))
    }
}

impl Journal {
    /// Notes where a member was reached; ignored for others. Stays on this device.
    pub fn reached(&mut self, device: &NodeId, newest: &[String]) -> Result<()> {
        let known = reached(&self.connection, device)?;
        if newest.iter().all(|address| known.contains(address)) {
            return Ok(());
        }
        let mut tx = self.begin(0)?;
        if !tx.verdicts()?.member(device) {
            return Ok(());
        }
        tx.db.execute(
            "INSERT INTO reached (device, addresses) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET addresses = excluded.addresses",
            params![device.0, addresses(newest, known).join("\n")],
        )?;
        tx.news.devices = true;
        tx.commit()
    }
}

fn reached(connection: &Connection, device: &NodeId) -> Result<Vec<String>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT addresses FROM reached WHERE device = ?1")?
        .query_row([device.0], |row| row.get(0))
        .optional()?;
    Ok(text.unwrap_or_default().lines().map(str::to_owned).collect())
}
