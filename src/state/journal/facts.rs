//! The membership facts: rows of `members` index them, and their ops hold the content.
//!
//! The writer keeps all facts in memory with their verdicts (see
//! [`crate::core::journal::members`]), across transactions: a local write reads none of them from
//! disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use crate::core::ids::{NodeId, OpHash};
use crate::core::journal::members::{FactKind, Ledger, MemberFact, Verdicts};
use crate::core::journal::op::{Change, MemberChange};

use super::rows::{ADD, GENESIS, REMOVE, fact_kind, read_body};
use super::tx::Tx;
use super::{JournalError, JournalReader, MemberRow, Result};

const FACTS: &str = "SELECT b.id, m.kind, d.id, o.hash, m.idx,
         CASE m.kind WHEN 2 THEN o.body ELSE NULL END
     FROM members m JOIN ops o ON o.arr = m.op
     JOIN devices b ON b.dev = m.by_dev JOIN devices d ON d.dev = m.dev";

/// The effect that a removal of a device would have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovalPreview {
    /// The devices that would lose membership, the removed device among them.
    pub goes: Vec<Departure>,
    /// The number of members left.
    pub members_left: usize,
}

/// A member that would lose membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// The member.
    pub device: NodeId,
    /// The device's name.
    pub name: String,
    /// The device that introduced it, with its name; `None` for the founder.
    pub introducer: Option<(NodeId, String)>,
}

impl JournalReader {
    /// Works out the effect of [`super::Journal::remove`] or
    /// [`super::Journal::remove_with_introduced`] now. Writes nothing.
    pub fn preview_removal(
        &self,
        me: &NodeId,
        device: &NodeId,
        with_introduced: bool,
    ) -> Result<RemovalPreview> {
        let tx = self.connection.unchecked_transaction()?;
        let mut ledger = Ledger::of(&facts(&tx)?);
        let before = Arc::clone(ledger.verdicts());
        let what = FactKind::Remove(match with_introduced {
            true => ledger.removal_with_introduced(me, device),
            false => ledger.removal(device),
        });
        // No op has this hash.
        let _ =
            ledger.insert(&MemberFact { by: *me, op: OpHash([0; OpHash::LEN]), index: 0, what });
        ledger.settle();
        let after = ledger.verdicts();
        let rows = member_rows(&tx, &before)?.into_iter();
        let names: BTreeMap<NodeId, String> =
            rows.map(|MemberRow { device, name, .. }| (device, name)).collect();
        let name = |device: &NodeId| names.get(device).cloned().unwrap_or_default();
        let goes = before.members().filter(|member| !after.member(member)).map(|member| {
            let introducer = before.introducer(member).filter(|by| *by != member);
            Departure {
                device: *member,
                name: name(member),
                introducer: introducer.map(|by| (*by, name(by))),
            }
        });
        Ok(RemovalPreview { goes: goes.collect(), members_left: after.members().count() })
    }
}

impl Tx<'_> {
    /// The membership facts in this transaction.
    pub(super) fn ledger(&mut self) -> Result<&Ledger> {
        let ledger = self.ledger_mut()?;
        if !ledger.is_settled() {
            Arc::make_mut(ledger).settle();
        }
        Ok(ledger)
    }

    /// The verdicts over the facts in this transaction.
    pub(super) fn verdicts(&mut self) -> Result<&Verdicts> {
        Ok(self.ledger()?.verdicts())
    }

    /// Adds a fact to memory after its row was written.
    pub(super) fn tell_fact(&mut self, fact: &MemberFact) -> Result<()> {
        let Some(known) = &mut self.ledger else {
            self.facts_changed();
            return Ok(());
        };
        let ledger = Arc::make_mut(known);
        if ledger.insert(fact) {
            let again = removals_of(&self.db, &fact.by)?;
            again.iter().for_each(|removal| ledger.retell(removal));
        }
        self.facts_changed();
        Ok(())
    }

    /// Whether the fence of some removal of `author` names the op.
    pub(super) fn is_named(&self, author: &NodeId, op: &OpHash) -> Result<bool> {
        let names = |fact: &MemberFact| match &fact.what {
            FactKind::Remove(removal) => removal.fence.as_ref().is_some_and(|f| f.contains(op)),
            _ => false,
        };
        Ok(removals_of(&self.db, author)?.iter().any(names))
    }

    /// Drops the facts in memory because rows of facts were deleted.
    pub(super) fn facts_lost(&mut self) {
        self.ledger = None;
        self.facts_changed();
    }

    fn facts_changed(&mut self) {
        self.news.members = true;
        self.roster_changed = true;
    }

    fn ledger_mut(&mut self) -> Result<&mut Arc<Ledger>> {
        let ledger = match self.ledger.take() {
            Some(ledger) => ledger,
            None => Arc::new(Ledger::of(&facts(&self.db)?)),
        };
        Ok(self.ledger.insert(ledger))
    }
}

/// See [`JournalReader::members`].
pub(super) fn member_rows(connection: &Connection, verdicts: &Verdicts) -> Result<Vec<MemberRow>> {
    let mut query = connection.prepare_cached(
        "SELECT d.id, m.name FROM members m JOIN devices d USING (dev)
         WHERE m.kind != 2 ORDER BY d.id, m.op DESC, m.idx DESC",
    )?;
    let mut names: BTreeMap<NodeId, String> = BTreeMap::new();
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (device, name) = (NodeId(row.get(0)?), row.get(1)?);
        names.entry(device).or_insert(name);
    }
    let known = names.into_iter().filter(|(device, _)| verdicts.author_ok(device));
    let row = |(device, name)| MemberRow { device, name, member: verdicts.member(&device) };
    Ok(known.map(row).collect())
}

/// Reads all membership facts.
pub(super) fn facts(connection: &Connection) -> Result<Vec<MemberFact>> {
    let mut query = connection.prepare_cached(FACTS)?;
    let mut rows = query.query([])?;
    let mut facts = Vec::new();
    while let Some(row) = rows.next()? {
        facts.push(fact(row)?);
    }
    Ok(facts)
}

/// Reads the facts that remove a device.
fn removals_of(connection: &Connection, device: &NodeId) -> Result<Vec<MemberFact>> {
    let mut query =
        connection.prepare_cached(&format!("{FACTS} WHERE d.id = ?1 AND m.kind = ?2"))?;
    let mut rows = query.query(params![device.0, REMOVE])?;
    let mut facts = Vec::new();
    while let Some(row) = rows.next()? {
        facts.push(fact(row)?);
    }
    Ok(facts)
}

fn fact(row: &Row<'_>) -> Result<MemberFact> {
    let index: i64 = row.get(4)?;
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    let device = NodeId(row.get(2)?);
    let what = match row.get::<_, i64>(1)? {
        GENESIS => FactKind::Genesis,
        ADD => FactKind::Add(device),
        _ => {
            let body = read_body(&row.get::<_, Vec<u8>>(5)?)?;
            match body.changes.get(index) {
                Some(Change::Member(change @ MemberChange::Remove { .. })) => fact_kind(change),
                _ => return Err(JournalError::Damaged("an op lacks the removal it told".into())),
            }
        }
    };
    Ok(MemberFact { by: NodeId(row.get(0)?), op: OpHash(row.get(3)?), index, what })
}
