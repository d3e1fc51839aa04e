//! Coming into a group, letting others in, shutting them out.
//!
//! M1  A token is consumed in the transaction that adds its device: it lets in one, once.
//! M2  A removal names whom the remover stands by; what the removed device adds unseen falls with it.

use std::time::Instant;

use rusqlite::params;

use crate::clock::instant_now;
use crate::core::ids::{GroupId, NodeId};
use crate::core::journal::members::Removal;
use crate::core::journal::op::{Change, MemberChange, group_id};
use crate::core::limits::{AUTHORS_MAX, FACTS_PER_AUTHOR_MAX};
use crate::core::pairing::proof_matches;

use super::scan::intro;
use super::schema::{int, key, set_meta};
use super::tx::Tx;
use super::verify::VerifiedOp;
use super::{Admitted, Journal, JournalError, Refused, RefusedWhy, Result, TokenError, Written};

/// Wrong proofs until a token is void: enough for mistyping, too few for guessing.
const TOKEN_TRIES: i64 = 5;

/// Tokens outstanding; each is a way in.
const TOKENS_MAX: usize = 16;

impl Journal {
    /// Founds a group of this device alone.
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

    /// [`Journal::found`] by a device that has a key and no journal: it may be in another group, and
    /// [`super::Roster::is_founded_anew`] says so.
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

    /// Enters the group in which `intro` makes this device a member. A group of its own is left for
    /// it, unless there are other members in that; one that has removed it is left in any case.
    pub fn join(&mut self, group: GroupId, intro: &[VerifiedOp], now_ms: u64) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        let me = tx.me();
        if tx.group == Some(group) {
            tx.receive(intro, Tx::why_no_introduction)?;
            if !tx.verdicts()?.member(&me) {
                return Err(JournalError::Removed);
            }
            tx.forget_told_removed()?;
            return tx.commit();
        }
        if tx.group.is_some() {
            let alone = tx.verdicts()?.members().all(|member| *member == me);
            if !alone && !tx.we_are_removed()? {
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

    /// Forgets the group and everything in the journal. Numbers of arrival are not used again.
    pub fn leave(&mut self) -> Result<()> {
        let mut tx = self.begin(0)?;
        tx.forget_group()?;
        tx.commit()?;
        self.group = None;
        Ok(())
    }

    /// [`Journal::leave`] and [`Journal::found`] in one.
    pub fn start_over(&mut self, name: &str, now_ms: u64) -> Result<GroupId> {
        let mut tx = self.begin(now_ms)?;
        tx.forget_group()?;
        let group = tx.found(name)?;
        tx.commit()?;
        self.group = Some(group);
        Ok(group)
    }

    /// Takes a member's word that `group` has removed this device, unless it is in another by now.
    pub fn told_removed(&mut self, group: &GroupId) -> Result<()> {
        let mut tx = self.begin(0)?;
        if tx.group == Some(*group) {
            set_meta(&tx.db, key::TOLD_REMOVED, &[])?;
            tx.news.devices = true;
        }
        tx.commit()
    }

    /// T5: makes the token with this key (see [`crate::core::pairing::ticket_key`]) good until then.
    /// The oldest make room when there are too many.
    pub fn create_token(&mut self, key: &[u8; 32], now_ms: u64, expires_ms: u64) -> Result<()> {
        self.create_token_at(key, now_ms, instant_now(), expires_ms)
    }

    pub(super) fn create_token_at(
        &mut self,
        key: &[u8; 32],
        now_ms: u64,
        now: Instant,
        expires_ms: u64,
    ) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        tx.now = now;
        tx.must_be_member()?;
        tx.db.execute(
            "DELETE FROM tokens WHERE expires_ms <= ?1 OR key NOT IN
                 (SELECT key FROM tokens ORDER BY created_ms DESC LIMIT ?2)",
            params![int(now_ms), int(TOKENS_MAX as u64 - 1)],
        )?;
        tx.db.execute(
            "INSERT INTO tokens (key, created_ms, expires_ms, tries) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO NOTHING",
            params![key, int(now_ms), int(expires_ms), TOKEN_TRIES],
        )?;
        tx.roster_changed = true;
        tx.commit()
    }

    /// T5: consumes the token that the proof fits and adds the joiner, in one transaction.
    pub fn redeem(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
        name: &str,
        now_ms: u64,
    ) -> Result<std::result::Result<Admitted, TokenError>> {
        self.redeem_at(joiner, proof, name, now_ms, instant_now())
    }

    pub(super) fn redeem_at(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
        name: &str,
        now_ms: u64,
        now: Instant,
    ) -> Result<std::result::Result<Admitted, TokenError>> {
        let mut tx = self.begin(now_ms)?;
        tx.now = now;
        let (group, me) = (tx.group()?, tx.me());
        if *joiner == me {
            return Ok(Err(TokenError::Ourselves));
        }
        tx.must_be_member()?;
        let token = match tx.token(joiner, proof)? {
            Ok(token) => token,
            Err(error) => {
                tx.commit()?;
                return Ok(Err(error));
            }
        };
        let verdicts = tx.verdicts()?;
        if verdicts.removed(joiner) {
            return Ok(Err(TokenError::JoinerRemoved));
        }
        let members = verdicts.members().count();
        let is_member = verdicts.member(joiner);
        let facts_left = FACTS_PER_AUTHOR_MAX.saturating_sub(tx.facts_told(&me)?);
        let is_full = members >= AUTHORS_MAX || !tx.has_log_room(joiner)?;
        if !is_member && (is_full || facts_left == 0) {
            return Ok(Err(TokenError::GroupFull));
        }
        tx.drop_token(&token)?;
        if !is_member {
            let add = MemberChange::Add { device: *joiner, name: name.to_owned() };
            tx.write_facts(vec![add])?;
        }
        let verdicts = tx.verdicts()?.clone();
        let intro = intro(&tx.db, &verdicts, joiner)?;
        tx.commit()?;
        Ok(Ok(Admitted { group, intro }))
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

    /// T5: removes a device for good, and those it added that we do not know of. `None` when this
    /// device has removed it before. A removal that version 0.1.0 wrote is completed by its fence.
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

    /// T5: removes a device for good, and all that it added but those through which this device is a
    /// member. Also where [`Journal::remove`] kept them before.
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

    /// Writes an op with facts about members. Of a founder the first fact makes it one.
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

    /// Whoever lets this device in anew knows better than the member that said it was removed.
    fn forget_told_removed(&mut self) -> Result<()> {
        let forgot = self.db.execute("DELETE FROM meta WHERE k = ?1", [key::TOLD_REMOVED])?;
        self.news.devices |= forgot > 0;
        Ok(())
    }

    fn must_be_member(&mut self) -> Result<()> {
        self.group()?;
        let me = self.me();
        if !self.verdicts()?.member(&me) || self.we_are_removed()? {
            return Err(JournalError::Removed);
        }
        Ok(())
    }

    /// The outstanding token that a proof fits. One that is past its time is used up, and a wrong
    /// proof costs each of them a try.
    fn token(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
    ) -> Result<std::result::Result<[u8; 32], TokenError>> {
        let me = self.me();
        let keys: Vec<[u8; 32]> = {
            let mut query = self.db.prepare_cached("SELECT key FROM tokens")?;
            let rows = query.query_map([], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        if keys.is_empty() {
            return Ok(Err(TokenError::NoToken));
        }
        // Every one is looked at, so that the time taken does not tell which fits.
        let fits = keys.into_iter().filter(|key| proof_matches(key, &me, joiner, proof));
        let fits = fits.fold(None, |_, key| Some(key));
        let Some(key) = fits else {
            self.db.execute("UPDATE tokens SET tries = tries - 1", [])?;
            self.db.execute("DELETE FROM tokens WHERE tries <= 0", [])?;
            self.roster_changed = true;
            return Ok(Err(TokenError::WrongProof));
        };
        if !self.roster.is_live(&key, self.now_ms, self.now) {
            self.drop_token(&key)?;
            return Ok(Err(TokenError::Expired));
        }
        Ok(Ok(key))
    }

    fn drop_token(&mut self, key: &[u8; 32]) -> Result<()> {
        self.db.execute("DELETE FROM tokens WHERE key = ?1", [key])?;
        self.roster_changed = true;
        Ok(())
    }
}
