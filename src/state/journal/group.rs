//! Coming into a group, letting others in, shutting them out.
//!
//! M1  A token is consumed in the transaction that adds its device: it lets in one, once.
//! M2  A removal names whom the remover stands by; what the removed device adds unseen falls with it.

use rusqlite::params;

use crate::core::ids::{GroupId, NodeId};
use crate::core::journal::members::FactKind;
use crate::core::journal::op::{Change, MemberChange, group_id};
use crate::core::pairing::{GROUP_ENTRIES_MAX, proof_matches};

use super::scan::intro;
use super::schema::{GROUP_TABLES, int, key, row_u64};
use super::tx::{Tx, facts};
use super::verify::VerifiedOp;
use super::{Admitted, Journal, JournalError, Result, TokenError, Written};

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
        let nonce = tx.draw_nonce();
        let group = group_id(&tx.me(), &nonce);
        tx.group = Some(group);
        tx.begin_log()?;
        let genesis = MemberChange::Genesis { nonce, name: name.to_owned() };
        tx.write_facts(vec![genesis])?;
        tx.commit()?;
        self.group = Some(group);
        Ok(group)
    }

    /// Enters the group in which `intro` makes this device a member.
    pub fn join(&mut self, group: GroupId, intro: &[VerifiedOp], now_ms: u64) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        if tx.group.is_some() {
            return Err(JournalError::InGroup);
        }
        let me = tx.me();
        tx.group = Some(group);
        tx.begin_log()?;
        tx.receive(intro, |_, _| Ok(true))?;
        if !tx.verdicts()?.member(&me) {
            return Err(JournalError::BadIntro);
        }
        tx.commit()?;
        self.group = Some(group);
        Ok(())
    }

    /// Forgets the group and everything in the journal. Numbers of arrival are not used again.
    pub fn leave(&mut self) -> Result<()> {
        let mut tx = self.begin(0)?;
        for table in GROUP_TABLES {
            tx.db.execute(&format!("DELETE FROM {table}"), [])?;
        }
        for key in [key::GROUP, key::OPEN_LOG, key::DIGEST, key::HLC_MAX] {
            tx.db.execute("DELETE FROM meta WHERE k = ?1", [key])?;
        }
        tx.group = None;
        tx.news.ops = true;
        tx.facts_changed();
        tx.commit()?;
        self.group = None;
        Ok(())
    }

    /// T5: makes the token with this key (see [`crate::core::pairing::ticket_key`]) good until then.
    /// The oldest make room when there are too many.
    pub fn create_token(&mut self, key: &[u8; 32], now_ms: u64, expires_ms: u64) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        let me = tx.me();
        if !tx.verdicts()?.member(&me) {
            return Err(if tx.group.is_some() {
                JournalError::Removed
            } else {
                JournalError::NoGroup
            });
        }
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
        let mut tx = self.begin(now_ms)?;
        let (group, me) = (tx.group()?, tx.me());
        if *joiner == me {
            return Ok(Err(TokenError::Ourselves));
        }
        let (token, good) = match tx.token(joiner, proof)? {
            Ok(found) => found,
            Err(error) => {
                tx.commit()?;
                return Ok(Err(error));
            }
        };
        if !good {
            tx.db.execute("DELETE FROM tokens WHERE key = ?1", [token])?;
            tx.commit()?;
            return Ok(Err(TokenError::Expired));
        }
        let verdicts = tx.verdicts()?;
        if verdicts.removed(joiner) {
            return Ok(Err(TokenError::JoinerRemoved));
        }
        let entries = verdicts.members().count() + verdicts.all_removed().count();
        let is_member = verdicts.member(joiner);
        if !is_member && entries >= GROUP_ENTRIES_MAX {
            return Ok(Err(TokenError::GroupFull));
        }
        tx.db.execute("DELETE FROM tokens WHERE key = ?1", [token])?;
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
    /// device has removed it before.
    pub fn remove(&mut self, device: &NodeId, now_ms: u64) -> Result<Option<Written>> {
        let mut tx = self.begin(now_ms)?;
        let me = tx.me();
        let facts = facts(&tx.db)?;
        let before = |kind: &FactKind| matches!(kind, FactKind::Remove(of, _) if of == device);
        if facts.iter().any(|fact| fact.by == me && before(&fact.what)) {
            return Ok(None);
        }
        let added = facts.iter().filter(|fact| fact.by == *device);
        let keep = added.filter_map(|fact| match fact.what {
            FactKind::Add(added) if added != *device => Some(added),
            _ => None,
        });
        let mut keep: Vec<NodeId> = keep.collect();
        keep.sort_unstable();
        keep.dedup();
        keep.truncate(GROUP_ENTRIES_MAX);
        let written = tx.write_facts(vec![MemberChange::Remove { device: *device, keep }])?;
        tx.commit()?;
        Ok(Some(written))
    }
}

impl Tx<'_> {
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
        self.author(facts.into_iter().map(Change::Member).collect())?
            .map_err(|error| JournalError::Damaged(format!("a fact about members: {error}")))
    }

    /// The outstanding token that a proof fits and whether it is in time; a wrong proof costs each
    /// of them a try.
    fn token(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
    ) -> Result<std::result::Result<([u8; 32], bool), TokenError>> {
        let me = self.me();
        let tokens: Vec<([u8; 32], u64, u64)> = {
            let mut query = self.db.prepare("SELECT key, created_ms, expires_ms FROM tokens")?;
            let rows =
                query.query_map([], |row| Ok((row.get(0)?, row_u64(row, 1)?, row_u64(row, 2)?)))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        if tokens.is_empty() {
            return Ok(Err(TokenError::NoToken));
        }
        let fits = tokens.iter().find(|(key, ..)| proof_matches(key, &me, joiner, proof));
        let Some((key, created_ms, expires_ms)) = fits else {
            self.db.execute("UPDATE tokens SET tries = tries - 1", [])?;
            self.db.execute("DELETE FROM tokens WHERE tries <= 0", [])?;
            return Ok(Err(TokenError::WrongProof));
        };
        // A clock that was set back does not make a token good for longer.
        Ok(Ok((*key, (*created_ms..*expires_ms).contains(&self.now_ms))))
    }
}
