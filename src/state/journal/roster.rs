//! The roster: what is looked up about the group at every connection, in memory.
//!
//! B1  It changes with the commit that changes the journal, before the call returns: no device is
//!     admitted by something that is not durable, nor after a durable removal.
//! B2  A token expires by the wall clock, which a restart cannot fool, and by the monotonic clock,
//!     which nobody can set back. The monotonic time of a token first seen after a restart counts
//!     from then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use rusqlite::{Connection, Transaction};

use crate::clock::instant_now;
use crate::core::ids::NodeId;
use crate::core::journal::members::Verdicts;
use crate::core::journal::session::Standing;
use crate::core::pairing::{proof_matches, ticket_id};

use super::Result;
use super::schema::{key, meta, row_u64, set_meta};
use super::tx::Tx;

/// The devices that may connect, and the tokens with which others may pair. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<RwLock<State>>);

#[derive(Debug, Default)]
struct State {
    version: u64,
    verdicts: Arc<Verdicts>,
    tokens: BTreeMap<[u8; 32], Token>,
    is_founded_anew: bool,
    has_invited: bool,
    is_out_of_logs: bool,
}

/// An outstanding token.
#[derive(Debug, Clone, Copy)]
struct Token {
    created_ms: u64,
    expires_ms: u64,
    deadline: Instant,
    verify: bool,
    uses: u16,
    left: u16,
}

/// An outstanding ticket, for people. Tells nothing that lets a device in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutstandingTicket {
    /// The ticket's public name, see [`ticket_id`].
    pub id: String,
    /// When it was made, ms since the Unix epoch.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// How many devices the ticket was made for.
    pub uses: u16,
    /// How many more devices the ticket may admit.
    pub left: u16,
    /// Whether the digits must be compared.
    pub verify: bool,
}

/// A token that lets in more than one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenUses {
    pub(super) key: [u8; 32],
    pub(super) uses: u16,
    pub(super) left: u16,
}

/// The bytes of a [`TokenUses`] in the database.
const TOKEN_USES_BYTES: usize = 36;

/// The content of the roster after a transaction is committed.
pub(super) struct Next {
    verdicts: Arc<Verdicts>,
    /// Key, creation and expiry of each token.
    tokens: Vec<([u8; 32], u64, u64)>,
    /// The keys of those tokens whose digits must be compared.
    to_verify: Vec<[u8; 32]>,
    /// Those of them that let in more than one device.
    uses: Vec<TokenUses>,
    is_founded_anew: bool,
    has_invited: bool,
    is_out_of_logs: bool,
    now_ms: u64,
    now: Instant,
}

impl Roster {
    /// The membership of a device.
    pub fn standing(&self, device: &NodeId) -> Standing {
        let state = self.read();
        match (state.verdicts.removed(device), state.verdicts.member(device)) {
            (true, _) => Standing::Removed,
            (false, true) => Standing::Member,
            (false, false) => Standing::Stranger,
        }
    }

    /// Whether any token is outstanding.
    pub fn is_pairing_open(&self, now_ms: u64) -> bool {
        let now = instant_now();
        self.read().tokens.values().any(|token| token.is_live(now_ms, now))
    }

    /// Whether a proof to `inviter`, this device, matches an outstanding token; if so, whether its
    /// digits must be compared. Uses nothing up.
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
        // Checks every token, so that the time taken does not reveal which one matches.
        live.filter(|(key, _)| proof_matches(key, inviter, joiner, proof))
            .fold(None, |_, (_, token)| Some(token.verify))
    }

    /// The tickets that still let somebody in, the oldest first.
    pub fn tickets(&self, now_ms: u64) -> Vec<OutstandingTicket> {
        let now = instant_now();
        let state = self.read();
        let live = state.tokens.iter().filter(|(_, token)| token.is_live(now_ms, now));
        let mut tickets: Vec<_> = live
            .map(|(key, token)| OutstandingTicket {
                id: ticket_id(key),
                created_ms: token.created_ms,
                expires_ms: token.expires_ms,
                uses: token.uses,
                left: token.left,
                verify: token.verify,
            })
            .collect();
        tickets.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        tickets
    }

    /// Whether a stranger could have a valid introduction: there is another member that may have
    /// added it, or this device signed an op that adds it and has not heard from the joiner since.
    pub fn may_be_introduced_to(&self) -> bool {
        let state = self.read();
        state.has_invited || state.verdicts.author_count() > 1
    }

    /// The number of members, this device included.
    pub fn member_count(&self) -> usize {
        self.read().verdicts.members().count()
    }

    /// Whether this device lost its journal and is alone in the group that it founded afterwards.
    pub fn is_founded_anew(&self) -> bool {
        let state = self.read();
        state.is_founded_anew && state.verdicts.members().count() <= 1
    }

    /// Whether this device can no longer write: it needs a new log, and has reached the limit.
    pub fn is_out_of_logs(&self) -> bool {
        self.read().is_out_of_logs
    }

    /// Increases with every change.
    pub fn version(&self) -> u64 {
        self.read().version
    }

    pub(super) fn set(&self, next: Next) {
        // The state behind a poisoned lock is whole: it is only ever replaced below.
        let mut state = self.0.write();
        let Next {
            verdicts,
            tokens,
            to_verify,
            uses,
            is_founded_anew,
            has_invited,
            is_out_of_logs,
            now_ms,
            now,
        } = next;
        let tokens = tokens.into_iter().map(|(key, created_ms, expires_ms)| {
            let left_ms = expires_ms.saturating_sub(now_ms.max(created_ms));
            let fresh = now + Duration::from_millis(left_ms);
            let deadline = state.tokens.get(&key).map_or(fresh, |known| known.deadline);
            let verify = to_verify.contains(&key);
            let entry = uses.iter().find(|entry| entry.key == key);
            let (uses, left) = entry.map_or((1, 1), |entry| (entry.uses, entry.left));
            (key, Token { created_ms, expires_ms, deadline, verify, uses, left })
        });
        let tokens = tokens.collect();
        let version = state.version + 1;
        *state = State { version, verdicts, tokens, is_founded_anew, has_invited, is_out_of_logs };
    }

    /// Whether a token has not expired.
    pub(super) fn is_live(&self, key: &[u8; 32], now_ms: u64, now: Instant) -> bool {
        self.read().tokens.get(key).is_some_and(|token| token.is_live(now_ms, now))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read()
    }
}

impl Token {
    fn is_live(&self, now_ms: u64, now: Instant) -> bool {
        (self.created_ms..self.expires_ms).contains(&now_ms) && now < self.deadline
    }
}

impl Tx<'_> {
    /// The roster's content after this transaction is committed.
    pub(super) fn next_roster(&mut self) -> Result<Next> {
        let verdicts = Arc::clone(self.ledger()?.verdicts());
        let mut query = self.db.prepare_cached("SELECT key, created_ms, expires_ms FROM tokens")?;
        let tokens =
            query.query_map([], |row| Ok((row.get(0)?, row_u64(row, 1)?, row_u64(row, 2)?)))?;
        let tokens = tokens.collect::<rusqlite::Result<_>>()?;
        let to_verify = tokens_to_verify(&self.db)?;
        let uses = token_uses(&self.db)?;
        let is_founded_anew = meta(&self.db, key::FOUNDED_ANEW)?.is_some();
        let has_invited = meta(&self.db, key::INVITED)?.is_some();
        let is_out_of_logs = self.is_out_of_logs()?;
        let (now_ms, now) = (self.now_ms, self.now);
        Ok(Next {
            verdicts,
            tokens,
            to_verify,
            uses,
            is_founded_anew,
            has_invited,
            is_out_of_logs,
            now_ms,
            now,
        })
    }
}

/// The keys of the outstanding tokens whose digits must be compared.
pub(super) fn tokens_to_verify(connection: &Connection) -> Result<Vec<[u8; 32]>> {
    let listed = meta(connection, key::VERIFY_TOKENS)?.unwrap_or_default();
    let mut query = connection.prepare_cached("SELECT 1 FROM tokens WHERE key = ?1")?;
    let mut outstanding = Vec::new();
    for key in listed.as_chunks::<32>().0 {
        if query.exists([key])? {
            outstanding.push(*key);
        }
    }
    Ok(outstanding)
}

/// The outstanding tokens that let in more than one device.
pub(super) fn token_uses(connection: &Connection) -> Result<Vec<TokenUses>> {
    let listed = meta(connection, key::TOKEN_USES)?.unwrap_or_default();
    let mut query = connection.prepare_cached("SELECT 1 FROM tokens WHERE key = ?1")?;
    let mut outstanding = Vec::new();
    for entry in listed.as_chunks::<TOKEN_USES_BYTES>().0 {
        let (key, numbers) = entry.split_at(32);
        let (Ok(key), [uses_high, uses_low, left_high, left_low]) = (key.try_into(), numbers)
        else {
            continue;
        };
        let uses = u16::from_be_bytes([*uses_high, *uses_low]);
        let left = u16::from_be_bytes([*left_high, *left_low]);
        if query.exists([key])? {
            outstanding.push(TokenUses { key, uses, left });
        }
    }
    Ok(outstanding)
}

/// Replaces the list of tokens that let in more than one device.
pub(super) fn set_token_uses(tx: &Transaction<'_>, all: &[TokenUses]) -> Result<()> {
    let entry = |entry: &TokenUses| {
        [&entry.key[..], &entry.uses.to_be_bytes(), &entry.left.to_be_bytes()].concat()
    };
    set_meta(tx, key::TOKEN_USES, &all.iter().flat_map(entry).collect::<Vec<u8>>())
}
