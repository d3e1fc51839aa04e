//! The devices of the group as the agent sees them: ids, names and addresses. A device reports its
//! own name and addresses. Until it has, it has the name under which it was added and the addresses
//! at which this device reached it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::ids::{GroupId, NodeId};
use crate::core::journal::cell::ALIVE;
use crate::core::journal::device_events::{DEVICE_ID, DEVICE_MODEL, DeviceState};
use crate::core::journal::members::{FactKind, MemberFact, Verdicts};
use crate::core::journal::op::{Value, value_from_bytes};
use crate::core::journal::stamp::Hlc;
use crate::core::pairing::{Member, Members, addresses, device_name, shown_name};

use super::facts::{facts, member_rows};
use super::read::{cell_value, model_num, scope_num};
use super::schema::{key, meta, meta_array};
use super::{Journal, JournalError, JournalReader, Owner, Result};

/// Fields of a record by name; `None` is null.
type Fields = BTreeMap<String, Option<Value>>;

/// The current state of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    /// The group's id.
    pub group: GroupId,
    /// The name of this device.
    pub name: String,
    /// The members and the removed devices, by node ID.
    pub members: Members,
}

/// A device that was added to the group or removed from it, by the verdicts of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipRow {
    /// The device.
    pub device: NodeId,
    /// Its name.
    pub name: String,
    /// Whether the device is a member; false when it was removed.
    pub is_member: bool,
    /// The device that added it, or one that removed it.
    pub by: NodeId,
    /// The name of that device.
    pub by_name: String,
}

impl JournalReader {
    /// Every device that another one added or removed, with the device that did.
    pub fn memberships(&self) -> Result<Vec<MembershipRow>> {
        let tx = self.connection.unchecked_transaction()?;
        let facts = facts(&tx)?;
        let verdicts = Verdicts::of(&facts);
        let rows = member_rows(&tx, &verdicts)?;
        let remover = |device: &NodeId| {
            let removes = |fact: &&MemberFact| match &fact.what {
                FactKind::Remove(removal) => removal.device == *device,
                FactKind::Genesis | FactKind::Add(_) => false,
            };
            facts.iter().find(removes).map(|fact| fact.by)
        };
        // People know devices by the names that they have now.
        let name =
            |device: &NodeId| Ok::<_, JournalError>(shown_name(&name_of(&tx, device)?, device));
        let mut changed = Vec::new();
        for row in &rows {
            let by = match row.member {
                true => verdicts.introducer(&row.device).copied(),
                false => remover(&row.device),
            };
            let Some(by) = by.filter(|by| *by != row.device) else { continue };
            let (device, is_member) = (row.device, row.member);
            let (name, by_name) = (name(&device)?, name(&by)?);
            changed.push(MembershipRow { device, name, is_member, by, by_name });
        }
        Ok(changed)
    }

    /// The group of `me`, this device; `None` when it belongs to none.
    pub fn group_state(&self, me: &NodeId) -> Result<Option<GroupState>> {
        let tx = self.connection.unchecked_transaction()?;
        let Some(group) = meta_array(&tx, key::GROUP)?.map(GroupId) else { return Ok(None) };
        let verdicts = Verdicts::of(&facts(&tx)?);
        let removed: BTreeSet<NodeId> = verdicts.all_removed().copied().collect();
        let mut name = me.short();
        let mut members = Vec::new();
        for row in member_rows(&tx, &verdicts)? {
            let own = device_fields(&tx, &row.device)?;
            let own = own.as_ref().map(DeviceState::from_fields).unwrap_or_default();
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

    /// The fields of a device's [`DeviceState`], if it has reported one.
    pub fn device_fields(&self, device: &NodeId) -> Result<Option<Fields>> {
        let tx = self.connection.unchecked_transaction()?;
        device_fields(&tx, device)
    }

    /// The addresses of another device with the same key as `me`, this device: it has written them
    /// into this device's record, in another log. Anything written before `since_ms` is ignored: a
    /// restored backup leaves a log of the past.
    pub fn twin_addresses(&self, me: &NodeId, since_ms: u64) -> Result<Option<BTreeSet<String>>> {
        let tx = self.connection.unchecked_transaction()?;
        let model = model_num(&tx, DEVICE_MODEL)?;
        let scope = scope_num(&tx, Owner::Device(*me))?;
        let (Some(model), Some(scope)) = (model, scope) else { return Ok(None) };
        let written: Option<(i64, Vec<u8>)> = tx
            .prepare_cached(
                "SELECT hlc, log_id FROM cells
                 WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = 'addresses' AND elem = ''",
            )?
            .query_row(params![model, scope, DEVICE_ID], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((hlc, log_id)) = written else { return Ok(None) };
        let is_ours = meta(&tx, key::OPEN_LOG)?.is_some_and(|open_log| open_log == log_id);
        if is_ours || Hlc(hlc.cast_unsigned()).ms() <= since_ms {
            return Ok(None);
        }
        let fields = device_fields(&tx, me)?;
        Ok(fields.as_ref().map(|fields| DeviceState::from_fields(fields).addresses))
    }
}

impl Journal {
    /// Saves where a member was reached; ignored for other devices. This stays on this device.
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

/// The name of a device, for people and for names of conflict copies; empty before it has one.
pub(super) fn name_of(connection: &Connection, device: &NodeId) -> Result<String> {
    let fields = device_fields(connection, device)?;
    let told = fields.as_ref().map(|fields| DeviceState::from_fields(fields).name);
    if let Some(name) = told.filter(|name| !name.is_empty()) {
        return Ok(device_name(&name));
    }
    let added = connection
        .prepare_cached(
            "SELECT m.name FROM members m JOIN devices d ON d.dev = m.dev
             WHERE d.id = ?1 AND m.name != '' ORDER BY m.op, m.idx LIMIT 1",
        )?
        .query_row([device.0], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(device_name(&added.unwrap_or_default()))
}

/// See [`JournalReader::device_fields`]. A device can write anything into its record: only the
/// known fields are read.
pub(super) fn device_fields(connection: &Connection, device: &NodeId) -> Result<Option<Fields>> {
    let model = model_num(connection, DEVICE_MODEL)?;
    let scope = scope_num(connection, Owner::Device(*device))?;
    let (Some(model), Some(scope)) = (model, scope) else { return Ok(None) };
    let cell = |field, elem| cell_value(connection, (model, scope, DEVICE_ID), field, elem);
    if cell("", ALIVE)?.is_none() {
        return Ok(None);
    }
    let mut fields = Fields::new();
    for name in DeviceState::FIELDS {
        let Some(bytes) = cell(name, "")? else { continue };
        let damaged = || JournalError::Damaged(format!("the value of a field {name:?}"));
        fields.insert(name.to_owned(), value_from_bytes(&bytes).ok_or_else(damaged)?);
    }
    Ok(Some(fields))
}

fn reached(connection: &Connection, device: &NodeId) -> Result<Vec<String>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT addresses FROM reached WHERE device = ?1")?
        .query_row([device.0], |row| row.get(0))
        .optional()?;
    Ok(text.unwrap_or_default().lines().map(str::to_owned).collect())
}
