//! Admitting a joiner: the tokens of outstanding tickets, and the op that adds the joiner.
//!
//! M1  A use of a token is used up before the op that adds its joiner leaves this device: a token
//!     admits as many joiners as it was made for, one unless said otherwise, and never more.
//! M2  That op is signed and handed to the joiner, but applied here only when the joiner has joined
//!     with it. So an interrupted pairing leaves no member. If this device does not learn that the
//!     joiner has joined, the joiner's introduction brings the op.
//! M3  Such ops have a log of their own, because the open log goes on meanwhile. A number of it
//!     that was signed but not confirmed is not signed again: the next pairing begins another log
//!     (J3).

use std::time::Instant;

use rusqlite::params;

use crate::clock::instant_now;
use crate::core::ids::{LogId, NodeId};
use crate::core::journal::op::MemberChange;
use crate::core::journal::stamp::Hlc;
use crate::core::limits::{
    AUTHORS_MAX, FACTS_PER_AUTHOR_MAX, FUTURE_MS_MAX, INTRO_OPS_MAX, INTRODUCTION_FRAME_BYTES_MAX,
    LOGS_PER_AUTHOR_MAX,
};
use crate::core::pairing::{proof_matches, ticket_id};

use super::roster::{TokenUses, set_token_uses, token_uses, tokens_to_verify};
use super::rows::ADD;
use super::scan::{OP_OVERHEAD_BYTES, chain_ops, intro};
use super::schema::{delete_meta, int, key, meta, set_meta};
use super::tx::Tx;
use super::verify::VerifiedOp;
use super::{Admitted, Journal, JournalError, Result, TokenError};

/// The most outstanding tokens; each is a way into the group.
const TOKENS_MAX: usize = 16;

/// The most bytes of the ops that add the inviter; the op that adds the joiner fits into the last
/// KiB of the frame.
const INTRO_BYTES_MAX: usize = INTRODUCTION_FRAME_BYTES_MAX as usize - 1024;

impl Journal {
    /// T5: creates a token with this key (see [`crate::core::pairing::ticket_key`]) for `uses` joiners,
    /// valid until `expires_ms`. The oldest tokens are dropped when there are too many. With `verify` its
    /// digits must be compared.
    pub fn create_token_for(
        &mut self,
        key: &[u8; 32],
        verify: bool,
        uses: u16,
        now_ms: u64,
        expires_ms: u64,
    ) -> Result<()> {
        self.create_token_at(key, verify, uses, now_ms, instant_now(), expires_ms)
    }

    pub(super) fn create_token_at(
        &mut self,
        key: &[u8; 32],
        verify: bool,
        uses: u16,
        now_ms: u64,
        now: Instant,
        expires_ms: u64,
    ) -> Result<()> {
        let mut tx = self.begin(now_ms)?;
        tx.now = now;
        tx.must_be_member()?;
        tx.rebase_while_alone()?;
        tx.db.execute(
            "DELETE FROM tokens WHERE expires_ms <= ?1 OR key NOT IN
                 (SELECT key FROM tokens ORDER BY created_ms DESC LIMIT ?2)",
            params![int(now_ms), int(TOKENS_MAX as u64 - 1)],
        )?;
        tx.db.execute(
            "INSERT INTO tokens (key, created_ms, expires_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
            params![key, int(now_ms), int(expires_ms)],
        )?;
        if verify {
            let mut to_verify = tokens_to_verify(&tx.db)?;
            to_verify.push(*key);
            set_meta(&tx.db, key::VERIFY_TOKENS, to_verify.as_flattened())?;
        }
        if uses > 1 {
            let mut all = token_uses(&tx.db)?;
            all.push(TokenUses { key: *key, uses, left: uses });
            set_token_uses(&tx.db, &all)?;
        }
        tx.roster_changed = true;
        tx.commit()
    }

    /// T5: drops the outstanding token with this public name (see
    /// [`crate::core::pairing::ticket_id`]), or all. Returns the names of those dropped. A pairing
    /// that has used a token up already is not stopped.
    pub fn revoke_tokens(&mut self, id: Option<&str>, now_ms: u64) -> Result<Vec<String>> {
        let mut tx = self.begin(now_ms)?;
        let keys = tx.token_keys()?;
        let named = keys.iter().map(|key| (key, ticket_id(key)));
        let meant: Vec<_> = named.filter(|(_, of)| id.is_none_or(|id| id == of)).collect();
        for (key, _) in &meant {
            tx.drop_token(key)?;
        }
        tx.commit()?;
        Ok(meant.into_iter().map(|(_, id)| id).collect())
    }

    /// T5: uses up the token that the proof matches, and returns the ops with which the joiner can
    /// join. The op that adds it is not applied yet: see M2 and [`Self::admit`].
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
        let log = match self.use_token(joiner, proof, now_ms, now)? {
            Ok(log) => log,
            Err(error) => return Ok(Err(error)),
        };
        // This transaction is never committed: see M2.
        let mut tx = self.begin(now_ms)?;
        let group = tx.group()?;
        if !tx.verdicts()?.member(joiner) {
            // If there is no log, a new one is begun.
            tx.open_log = log;
            let add = MemberChange::Add { device: *joiner, name: name.to_owned() };
            tx.write_facts(vec![add])?;
        }
        let verdicts = tx.verdicts()?.clone();
        let Some(add) = chain_ops(&tx.db, &verdicts.chain(joiner))?.pop() else {
            return Err(JournalError::Removed);
        };
        let intro = intro(&tx.db, &verdicts, joiner)?;
        Ok(Ok(Admitted { group, intro, add }))
    }

    /// T5: applies the op `add` of [`Self::redeem`] after the joiner has joined. Returns whether
    /// the joiner is a member: it may have been removed meanwhile.
    pub fn admit(&mut self, joiner: &NodeId, add: &VerifiedOp, now_ms: u64) -> Result<bool> {
        let mut tx = self.begin(now_ms)?;
        tx.must_be_member()?;
        let received = tx.receive(std::slice::from_ref(add), |_, _| Ok(None))?;
        if received.applied > 0 && received.forked.is_empty() {
            // The number was confirmed: the next pairing continues this log.
            set_meta(&tx.db, key::PAIRING_LOG, &tx.pairing_mark(add.log()))?;
            tx.news.own = true;
        }
        let is_member = tx.verdicts()?.member(joiner);
        tx.commit()?;
        Ok(is_member)
    }

    /// Uses up the token that the proof matches, if its joiner can be added. Returns the log for
    /// the op; `None`: a new one must be begun.
    fn use_token(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
        now_ms: u64,
        now: Instant,
    ) -> Result<std::result::Result<Option<LogId>, TokenError>> {
        let mut tx = self.begin(now_ms)?;
        tx.now = now;
        let me = tx.me();
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
        tx.rebase_while_alone()?;
        let log = tx.pairing_log()?;
        if let Some(error) = tx.why_not_added(joiner, log.is_some())? {
            return Ok(Err(error));
        }
        tx.use_once(&token)?;
        set_meta(&tx.db, key::INVITED, &[])?;
        delete_meta(&tx.db, key::PAIRING_LOG)?;
        tx.commit()?;
        Ok(Ok(log))
    }
}

impl Tx<'_> {
    /// The reason against adding a device that has a right proof, if any.
    fn why_not_added(&mut self, joiner: &NodeId, has_log: bool) -> Result<Option<TokenError>> {
        let me = self.me();
        let verdicts = self.verdicts()?;
        if verdicts.removed(joiner) {
            return Ok(Some(TokenError::JoinerRemoved));
        }
        if verdicts.member(joiner) {
            return Ok(None);
        }
        let members = verdicts.members().count();
        let chain = verdicts.chain(&me);
        let facts_left = FACTS_PER_AUTHOR_MAX.saturating_sub(self.facts_told(&me)?);
        // The joiner must present these: the ops that add this device, and the op that adds the
        // joiner.
        let chain = chain_ops(&self.db, &chain)?;
        let bytes: usize = chain.iter().map(|op| op.body.len() + OP_OVERHEAD_BYTES).sum();
        if chain.len() >= INTRO_OPS_MAX || bytes > INTRO_BYTES_MAX {
            return Ok(Some(TokenError::ChainTooLong));
        }
        if members >= AUTHORS_MAX || !self.has_log_room(joiner)? || facts_left == 0 {
            return Ok(Some(TokenError::GroupFull));
        }
        if !has_log && !self.has_log_room(&me)? {
            return Err(JournalError::UsedUp { what: "logs", limit: LOGS_PER_AUTHOR_MAX });
        }
        Ok(None)
    }

    /// The log for the next op that adds a joiner; `None`: a new one must be begun.
    fn pairing_log(&mut self) -> Result<Option<LogId>> {
        let Some(mark) = meta(&self.db, key::PAIRING_LOG)? else { return Ok(None) };
        let Some(log) = mark.first_chunk().map(|id| LogId(*id)) else { return Ok(None) };
        // If this device may have forgotten the end of its open log, it may have forgotten that of
        // this one.
        if mark != self.pairing_mark(log) {
            return Ok(None);
        }
        let Some(num) = self.log_num(&log)? else { return Ok(None) };
        Ok((!self.log(num)?.forked).then_some(log))
    }

    /// The record of the pairing log, with the epoch in which it may be continued.
    fn pairing_mark(&self, log: LogId) -> Vec<u8> {
        let epoch = self.feed_epoch.map_or([0; LogId::LEN], |epoch| epoch.0);
        [log.0, epoch].concat()
    }

    /// Rewrites ops stamped by a fast clock while no other device can have them: no device was ever
    /// added and none has written. Joiners would refuse such ops for hours, and believe that their
    /// own clock is wrong.
    fn rebase_while_alone(&mut self) -> Result<()> {
        let bound = Hlc::from_ms(self.now_ms.saturating_add(FUTURE_MS_MAX + 1));
        if self.hlc_max < bound || !self.was_always_alone()? {
            return Ok(());
        }
        self.rebase()?;
        Ok(())
    }

    fn was_always_alone(&mut self) -> Result<bool> {
        let dev = self.device(&self.me())?;
        Ok(self.db.query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM logs WHERE dev != ?1)
                 AND NOT EXISTS (SELECT 1 FROM members WHERE kind = ?2)",
            params![dev, ADD],
            |row| row.get(0),
        )?)
    }

    /// The outstanding token that a proof matches. An expired one is used up.
    fn token(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
    ) -> Result<std::result::Result<[u8; 32], TokenError>> {
        let me = self.me();
        let keys = self.token_keys()?;
        if keys.is_empty() {
            return Ok(Err(TokenError::NoToken));
        }
        // Checks every token, so that the time taken does not reveal which one matches.
        let fits = keys.into_iter().filter(|key| proof_matches(key, &me, joiner, proof));
        let fits = fits.fold(None, |_, key| Some(key));
        let Some(key) = fits else { return Ok(Err(TokenError::WrongProof)) };
        if !self.roster.is_live(&key, self.now_ms, self.now) {
            self.drop_token(&key)?;
            return Ok(Err(TokenError::Expired));
        }
        Ok(Ok(key))
    }

    /// The keys of the outstanding tokens, expired ones included.
    fn token_keys(&self) -> Result<Vec<[u8; 32]>> {
        let mut query = self.db.prepare_cached("SELECT key FROM tokens")?;
        let rows = query.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Uses a token once; drops it after its last use.
    fn use_once(&mut self, key: &[u8; 32]) -> Result<()> {
        let mut all = token_uses(&self.db)?;
        let Some(entry) = all.iter_mut().find(|entry| entry.key == *key && entry.left > 1) else {
            return self.drop_token(key);
        };
        entry.left -= 1;
        set_token_uses(&self.db, &all)?;
        self.roster_changed = true;
        Ok(())
    }

    fn drop_token(&mut self, key: &[u8; 32]) -> Result<()> {
        self.db.execute("DELETE FROM tokens WHERE key = ?1", [key])?;
        self.roster_changed = true;
        Ok(())
    }
}
