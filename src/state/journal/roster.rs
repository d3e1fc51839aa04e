//! What is asked of the group at every connection, in memory.
//!
//! B1  It moves with the commit that changes it, before the call returns that made it: nobody comes
//!     in by what is not durable, nor after a removal that is.
//! B2  A token ends by the wall clock, which a restart cannot fool, and by the monotonic clock, which
//!     nobody can set back. One first seen after a restart counts from then.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::clock::instant_now;
use crate::core::ids::NodeId;
use crate::core::journal::members::Verdicts;
use crate::core::journal::session::Standing;
use crate::core::pairing::proof_matches;

use super::Result;
use super::pairing::tokens_to_verify;
use super::schema::{key, meta, row_u64};
use super::tx::Tx;

/// Who may connect, and whether anyone may pair. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<RwLock<State>>);

#[derive(Debug, Default)]
struct State {
    version: u64,
    verdicts: Arc<Verdicts>,
    tokens: BTreeMap<[u8; 32], Token>,
    is_founded_anew: bool,
    has_invited: bool,
}

/// An outstanding token.
#[derive(Debug, Clone, Copy)]
struct Token {
    created_ms: u64,
    expires_ms: u64,
    deadline: Instant,
    verify: bool,
}

/// What a transaction leaves behind when it is committed.
pub(super) struct Next {
    verdicts: Arc<Verdicts>,
    /// Key, creation, expiry.
    tokens: Vec<([u8; 32], u64, u64)>,
    /// Of these, the keys of those whose digits must be compared.
    to_verify: Vec<[u8; 32]>,
    is_founded_anew: bool,
    has_invited: bool,
    now_ms: u64,
    now: Instant,
}

impl Roster {
    /// How a device stands.
    pub fn standing(&self, device: &NodeId) -> Standing {
        let state = self.read();
        match (state.verdicts.removed(device), state.verdicts.member(device)) {
            (true, _) => Standing::Removed,
            (false, true) => Standing::Member,
            (false, false) => Standing::Stranger,
        }
    }

    /// Whether a token is outstanding.
    pub fn is_pairing_open(&self, now_ms: u64) -> bool {
        let now = instant_now();
        self.read().tokens.values().any(|token| token.is_live(now_ms, now))
    }

    /// Whether a proof to `inviter`, this device, fits an outstanding token: if so, whether its digits
    /// must be compared. Uses nothing up.
    pub fn fits(
        &self,
        inviter: &NodeId,
        joiner: &NodeId,
        proof: &[u8; 32],
        now_ms: u64,
    ) -> Option<bool> {
        let now = instant_now();
        let state = self.read();
        let live = state.tokens.iter().filter(|(_, token)| token.is_live(now_ms, now));
        // Every one is looked at, so that the time taken does not tell which fits.
        live.filter(|(key, _)| proof_matches(key, inviter, joiner, proof))
            .fold(None, |_, (_, token)| Some(token.verify))
    }

    /// Whether a stranger may have an introduction that counts: there is somebody who may have added it,
    /// or this device signed the op that does and has not heard of the joiner since.
    pub fn may_be_introduced_to(&self) -> bool {
        let state = self.read();
        state.has_invited || state.verdicts.author_count() > 1
    }

    /// How many members there are, this device included.
    pub fn member_count(&self) -> usize {
        self.read().verdicts.members().count()
    }

    /// Whether this device lost its journal, and is alone in the group that it founded then.
    pub fn is_founded_anew(&self) -> bool {
        let state = self.read();
        state.is_founded_anew && state.verdicts.members().count() <= 1
    }

    /// Rises with every change.
    pub fn version(&self) -> u64 {
        self.read().version
    }

    pub(super) fn set(&self, next: Next) {
        // A panic elsewhere left a whole state: it is only ever replaced below.
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Next { verdicts, tokens, to_verify, is_founded_anew, has_invited, now_ms, now } = next;
        let tokens = tokens.into_iter().map(|(key, created_ms, expires_ms)| {
            let left_ms = expires_ms.saturating_sub(now_ms.max(created_ms));
            let fresh = now + Duration::from_millis(left_ms);
            let deadline = state.tokens.get(&key).map_or(fresh, |known| known.deadline);
            let verify = to_verify.contains(&key);
            (key, Token { created_ms, expires_ms, deadline, verify })
        });
        let tokens = tokens.collect();
        let version = state.version + 1;
        *state = State { version, verdicts, tokens, is_founded_anew, has_invited };
    }

    /// Whether an outstanding token is in time.
    pub(super) fn is_live(&self, key: &[u8; 32], now_ms: u64, now: Instant) -> bool {
        self.read().tokens.get(key).is_some_and(|token| token.is_live(now_ms, now))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    fn is_live(&self, now_ms: u64, now: Instant) -> bool {
        (self.created_ms..self.expires_ms).contains(&now_ms) && now < self.deadline
    }
}

impl Tx<'_> {
    /// What the roster is to be once this transaction is committed.
    pub(super) fn next_roster(&mut self) -> Result<Next> {
        let verdicts = Arc::clone(self.ledger()?.verdicts());
        let mut query = self.db.prepare_cached("SELECT key, created_ms, expires_ms FROM tokens")?;
        let tokens =
            query.query_map([], |row| Ok((row.get(0)?, row_u64(row, 1)?, row_u64(row, 2)?)))?;
        let tokens = tokens.collect::<rusqlite::Result<_>>()?;
        let to_verify = tokens_to_verify(&self.db)?;
        let is_founded_anew = meta(&self.db, key::FOUNDED_ANEW)?.is_some();
        let has_invited = meta(&self.db, key::INVITED)?.is_some();
        let (now_ms, now) = (self.now_ms, self.now);
        Ok(Next { verdicts, tokens, to_verify, is_founded_anew, has_invited, now_ms, now })
    }
}
