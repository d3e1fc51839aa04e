//! Founding, joining and leaving a group, and removing devices. `pairing` adds joiners.
//!
//! M1  A removal names the devices that the remover keeps. Devices that the removed one added
//!     without the remover's knowledge lose membership with it.

use crate::core::ids::{GroupId, NodeId};
use crate::core::journal::members::Removal;
use crate::core::journal::op::{Change, MemberChange, group_id};
use crate::core::limits::FACTS_PER_AUTHOR_MAX;

use super::schema::{key, set_meta};
use super::tx::Tx;
use super::verify::VerifiedOp;
use super::{Journal, JournalError, Refused, RefusedWhy, Result, Written};

impl Journal {
    /// Founds a group with this device as its only member.
    pub fn found(&mut self, name: &str, now_ms: u64) -> Result<GroupId> {
        let mut tx = self.begin(now_ms)?;
        if tx.group.is_some() {
            return Err(JournalError::InGroup);
        }
        let group = tx.found(name)?;
        tx.commit()?;
        self.group = Some(group);
        Ok(group)
    }

    /// As [`Journal::found`], for a device that has a key but no journal. It may be a member of
    /// another group, and [`super::Roster::is_founded_anew`] reports that.
    pub fn found_anew(&mut self, name: &str, now_ms: u64) -> Result<GroupId> {
        let mut tx = self.begin(now_ms)?;
        if tx.group.is_some() {
            return Err(JournalError::InGroup);
        }
        let group = tx.found(name)?;
        set_meta(&tx.db, key::FOUNDED_ANEW, &[])?;
        tx.commit()?;
        self.group = Some(group);
        Ok(group)
    }

    /// Joins the group in which `intro` makes this device a member. It leaves its current group for
    /// it if there are no other members in that, or if that group removed this device.
    pub fn join(&mut self, group: GroupId, intro: &[VerifiedOp], now_ms: u64) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        let me = tx.me();
        if tx.group == Some(group) {
            tx.receive(intro, Tx::why_no_introduction)?;
            if !tx.verdicts()?.member(&me) {
                return Err(JournalError::Removed);
            }
            return tx.commit();
        }
        if tx.group.is_some() {
            let alone = tx.verdicts()?.members().all(|member| *member == me);
            if !alone && !tx.verdicts()?.removed(&me) {
                return Err(JournalError::InGroup);
            }
            tx.forget_group()?;
        }
        tx.enter(group);
        let received = tx.receive(intro, |_, _| Ok(None))?;
        if !tx.verdicts()?.member(&me) {
            let future = |refused: &Refused| matches!(refused.why, RefusedWhy::Future { .. });
            let ahead = received.refused.iter().any(future);
            return Err(if ahead { JournalError::ClockBehind } else { JournalError::BadIntro });
        }
        tx.commit()?;
        self.group = Some(group);
        Ok(())
    }

    /// Forgets the group and everything in the journal, and founds a new group. Arrival numbers are
    /// not reused.
    pub fn start_over(&mut self, name: &str, now_ms: u64) -> Result<GroupId> {
        let mut tx = self.begin(now_ms)?;
        tx.forget_group()?;
        let group = tx.found(name)?;
        tx.commit()?;
        self.group = Some(group);
        Ok(group)
    }

    /// T5: adds a device without a token. `None` when it is a member already.
    pub fn add(&mut self, device: &NodeId, name: &str, now_ms: u64) -> Result<Option<Written>> {
        let mut tx = self.begin(now_ms)?;
        if tx.verdicts()?.member(device) {
            return Ok(None);
        }
        let add = MemberChange::Add { device: *device, name: name.to_owned() };
        let written = tx.write_facts(vec![add])?;
        tx.commit()?;
        Ok(Some(written))
    }

    /// T5: removes a device for good, and with it the devices that it added and that we do not
    /// know. `None` when this device removed it before. A removal written by version 0.1.0 gets its
    /// fence this way.
    pub fn remove(&mut self, device: &NodeId, now_ms: u64) -> Result<Option<Written>> {
        let mut tx = self.begin(now_ms)?;
        let me = tx.me();
        let ledger = tx.ledger()?;
        if ledger.has_fenced(&me, device) {
            return Ok(None);
        }
        let removal = ledger.removal(device);
        tx.write_removal(removal).map(Some)
    }

    /// T5: removes a device for good, and all devices that it added except those through which this
    /// device is a member, even if [`Journal::remove`] kept them before.
    pub fn remove_with_introduced(&mut self, device: &NodeId, now_ms: u64) -> Result<Written> {
        let mut tx = self.begin(now_ms)?;
        let me = tx.me();
        let removal = tx.ledger()?.removal_with_introduced(&me, device);
        tx.write_removal(removal)
    }
}

impl Tx<'_> {
    fn write_removal(mut self, removal: Removal) -> Result<Written> {
        let Removal { device, keep, fence } = removal;
        let keep = keep.into_iter().collect();
        let fence = fence.map(|fence| fence.into_iter().collect());
        let written = self.write_facts(vec![MemberChange::Remove { device, keep, fence }])?;
        self.commit()?;
        Ok(written)
    }

    /// Writes an op with membership facts. The first fact of a founder makes it the founder.
    pub(super) fn write_facts(&mut self, facts: Vec<MemberChange>) -> Result<Written> {
        let me = self.me();
        let founds = matches!(facts.first(), Some(MemberChange::Genesis { .. }));
        if self.now_ms < crate::core::journal::stamp::CLOCK_FLOOR_MS {
            return Err(JournalError::ClockNotSet);
        }
        self.group()?;
        if !founds && !self.verdicts()?.member(&me) {
            return Err(JournalError::Removed);
        }
        if self.facts_told(&me)? + facts.len() > FACTS_PER_AUTHOR_MAX {
            let (what, limit) = ("facts about members", FACTS_PER_AUTHOR_MAX);
            return Err(JournalError::UsedUp { what, limit });
        }
        self.author(facts.into_iter().map(Change::Member).collect(), None)?
            .map_err(|error| JournalError::Damaged(format!("a fact about members: {error}")))
    }

    fn found(&mut self, name: &str) -> Result<GroupId> {
        let nonce = self.draw_nonce();
        let group = group_id(&self.me(), &nonce);
        self.enter(group);
        let genesis = MemberChange::Genesis { nonce, name: name.to_owned() };
        self.write_facts(vec![genesis])?;
        Ok(group)
    }

    pub(super) fn must_be_member(&mut self) -> Result<()> {
        self.group()?;
        let me = self.me();
        if !self.verdicts()?.member(&me) {
            return Err(JournalError::Removed);
        }
        Ok(())
    }
}
