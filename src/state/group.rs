//! Who belongs to the group: members, removed devices, and the tickets that let one in.
//!
//! G1  A ticket admits one device, once: it is deleted in the transaction that adds the member.
//! G2  Members and removals only grow, and a removal outweighs any addition; so devices that have
//!     heard the same facts, in whatever order and how often, agree.
//! G3  What is returned is durable. An error of a write leaves the state before the call; unless it
//!     [passes](is_passing), the caller stops the agent: a failed fsync must not be tried again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use thiserror::Error;

use crate::clock::instant_now;
use crate::core::ids::{GroupId, NodeId};
use crate::core::message::Members;
use crate::core::pairing::{
    GROUP_ENTRIES_MAX, Member, TicketSecret, device_name, meant, proof_matches, ticket_key,
};
use crate::state::home::private_database_file;

mod rows;

use rows::{
    Ticket, delete_ticket, entry_count, group_id, is_removed, member, members, prepare,
    put_addresses, put_member, put_removed, removed, tickets, with_addresses,
};

/// This device's group. Times are wall-clock milliseconds since the Unix epoch.
#[derive(Debug)]
pub struct Group {
    node_id: NodeId,
    db: Mutex<Db>,
}

/// What a joiner is told of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeemed {
    /// The group it is now in.
    pub group_id: GroupId,
    /// Its members, the joiner and this device included.
    pub members: Vec<Member>,
    /// Those locked out.
    pub removed: Vec<NodeId>,
}

/// What [`Group::merge`] learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// New members.
    pub added: Vec<Member>,
    /// Devices now locked out; this one is among them when the group removed it.
    pub removed: Vec<NodeId>,
    /// Members with a new name.
    pub renamed: Vec<Member>,
    /// Entries there was no room for.
    pub ignored: usize,
}

/// Why no ticket was made.
#[derive(Debug, Error)]
pub enum TicketError {
    /// Each outstanding ticket is a way in.
    #[error("{TICKETS_MAX} tickets are outstanding: use one, or wait until they expire")]
    TooMany,
    /// A removed device lets nobody in.
    #[error("this device was removed from its group, it cannot invite others")]
    WeAreRemoved,
    /// See [`GROUP_ENTRIES_MAX`].
    #[error("the group knows {GROUP_ENTRIES_MAX} devices, the most there can be")]
    GroupFull,
    /// The disk failed.
    #[error("writing the group's state")]
    Database(#[from] rusqlite::Error),
}

/// Why a joiner was not let in. For the local log only: the joiner hears one and the same refusal.
#[derive(Debug, Error)]
pub enum RedeemError {
    /// Nothing to redeem: used, expired, tried too often, or never made.
    #[error("no ticket is outstanding")]
    NoTicket,
    /// The proof fits no outstanding ticket; each of them has one try less.
    #[error("the proof fits none of the outstanding tickets")]
    WrongProof,
    /// The right proof, too late.
    #[error("the ticket has expired")]
    Expired,
    /// A device that was removed comes back only with a new key.
    #[error("the device was removed from the group")]
    JoinerRemoved,
    /// Its own ticket.
    #[error("a device cannot pair with itself")]
    Ourselves,
    /// A removed device lets nobody in.
    #[error("this device was removed from its group")]
    WeAreRemoved,
    /// See [`GROUP_ENTRIES_MAX`].
    #[error("the group knows {GROUP_ENTRIES_MAX} devices, the most there can be")]
    GroupFull,
    /// The disk failed.
    #[error("writing the group's state")]
    Database(#[from] rusqlite::Error),
}

/// Why this device did not join another group.
#[derive(Debug, Error)]
pub enum JoinError {
    /// Its own group would be torn apart.
    #[error(
        "this device is already in a group with {n} other device(s): make the ticket there, or \
         start over as a new device (see the README)"
    )]
    AlreadyInGroup {
        /// How many others.
        n: usize,
    },
    /// The group joined has removed this device.
    #[error("that group has removed this device; it can come back only as a new one")]
    RemovedThere,
    /// See [`GROUP_ENTRIES_MAX`].
    #[error("that group knows more than {GROUP_ENTRIES_MAX} devices")]
    TooLarge,
    /// The disk failed.
    #[error("writing the group's state")]
    Database(#[from] rusqlite::Error),
}

/// Why a text names no single member.
#[derive(Debug, Error)]
pub enum LookupError {
    /// Nobody.
    #[error("no device of the group is called {0:?} or has a node ID that starts so")]
    Unknown(String),
    /// Several.
    #[error("{text:?} could be any of: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// Name and node ID of each.
        candidates: Vec<String>,
    },
    /// The device itself was named where another is needed.
    #[error(
        "that is this device itself: remove it on another one, or start over here as a new device \
         (see the README)"
    )]
    Ourselves,
    /// The disk failed.
    #[error("reading the group's state")]
    Database(#[from] rusqlite::Error),
}

/// Whether the same write may succeed later: the disk is full, or another program has the database.
/// After any other error only a restart tells what is on the disk.
pub fn is_passing(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    matches!(error.sqlite_error_code(), Some(DiskFull | DatabaseBusy | DatabaseLocked))
}

impl Changes {
    /// Nothing others would want to hear of.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.renamed.is_empty()
    }
}

impl Group {
    /// Opens the state at `path`; at the first start founds a group of this device alone.
    pub fn open(path: &Path, node_id: NodeId, default_name: &str, now_ms: i64) -> Result<Self> {
        let shown = path.display();
        private_database_file(path)?;
        let mut connection = Connection::open(path).with_context(|| format!("opening {shown}"))?;
        let prepared = prepare(&mut connection, &node_id, default_name, now_ms);
        let stored = prepared.with_context(|| {
            format!("{shown} cannot be used: restore it from a backup, or pair this device again")
        })?;
        ensure!(
            stored == node_id.0,
            "{shown} belongs to the device {}, the key is that of {}: put key and state of the \
             same device together",
            NodeId::from_slice(&stored).map_or_else(|| "?".into(), |id| id.short()),
            node_id.short()
        );
        Ok(Self { node_id, db: Mutex::new(Db { connection, deadlines: BTreeMap::new() }) })
    }

    /// The group's id.
    pub fn group_id(&self) -> rusqlite::Result<GroupId> {
        group_id(&self.db().connection)
    }

    /// This device's name.
    pub fn name(&self) -> rusqlite::Result<String> {
        let db = self.db();
        let own = member(&db.connection, &self.node_id)?;
        Ok(own.map_or_else(|| self.node_id.short(), |own| own.name))
    }

    /// Names this device. Returns the name as cleaned by [`device_name`].
    pub fn rename(&self, name: &str, now_ms: i64) -> rusqlite::Result<String> {
        let name = shown_name(name, &self.node_id);
        self.write(|tx| {
            tx.execute(
                "UPDATE members SET name = ?2, named_ms = max(?3, named_ms + 1) WHERE node_id = ?1",
                params![self.node_id.0, name, now_ms],
            )
        })?;
        Ok(name)
    }

    /// The members and those locked out.
    pub fn all(&self) -> rusqlite::Result<Members> {
        let db = self.db();
        Ok(Members { members: members(&db.connection)?, removed: removed(&db.connection)? })
    }

    /// The members, this device included unless it was removed.
    pub fn members(&self) -> rusqlite::Result<Vec<Member>> {
        members(&self.db().connection)
    }

    /// Those locked out, for good.
    pub fn removed(&self) -> rusqlite::Result<Vec<NodeId>> {
        removed(&self.db().connection)
    }

    /// Whether connections with this device are allowed.
    pub fn is_member(&self, node_id: &NodeId) -> rusqlite::Result<bool> {
        self.db()
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM members WHERE node_id = ?1)
                    AND NOT EXISTS (SELECT 1 FROM removed WHERE node_id = ?1)",
            )?
            .query_row([node_id.0], |row| row.get(0))
    }

    /// Whether the group has locked this device out.
    pub fn we_are_removed(&self) -> rusqlite::Result<bool> {
        is_removed(&self.db().connection, &self.node_id)
    }

    /// Makes the ticket with this secret good for `ttl_ms`.
    pub fn create_ticket(
        &self,
        secret: &TicketSecret,
        now_ms: i64,
        ttl_ms: i64,
    ) -> Result<(), TicketError> {
        self.create_ticket_at(secret, now_ms, instant_now(), ttl_ms)
    }

    fn create_ticket_at(
        &self,
        secret: &TicketSecret,
        now_ms: i64,
        now: Instant,
        ttl_ms: i64,
    ) -> Result<(), TicketError> {
        let mut db = self.db();
        let Db { connection, deadlines } = &mut *db;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if is_removed(&tx, &self.node_id)? {
            return Err(TicketError::WeAreRemoved);
        }
        if entry_count(&tx)? >= GROUP_ENTRIES_MAX {
            return Err(TicketError::GroupFull);
        }
        let mut outstanding = 0;
        for ticket in tickets(&tx)? {
            if ticket.is_live(deadlines, now_ms, now) {
                outstanding += 1;
            } else {
                delete_ticket(&tx, &ticket.key)?;
            }
        }
        if outstanding >= TICKETS_MAX {
            return Err(TicketError::TooMany);
        }
        let ticket = Ticket {
            key: ticket_key(secret),
            created_ms: now_ms,
            expires_ms: now_ms.saturating_add(ttl_ms),
        };
        tx.execute(
            "INSERT INTO tickets (key, created_ms, expires_ms, tries_left) VALUES (?1, ?2, ?3, ?4)",
            params![ticket.key, ticket.created_ms, ticket.expires_ms, TICKET_TRIES],
        )?;
        tx.commit()?;
        deadlines.retain(|_, deadline| *deadline > now);
        ticket.is_live(deadlines, now_ms, now);
        Ok(())
    }

    /// Whether the door to pairing has to be open.
    pub fn outstanding_tickets(&self, now_ms: i64) -> rusqlite::Result<bool> {
        let now = instant_now();
        let mut db = self.db();
        let mut any = false;
        // Each is looked at: the monotonic time of a ticket runs from its first sight.
        for ticket in tickets(&db.connection)? {
            any |= ticket.is_live(&mut db.deadlines, now_ms, now);
        }
        Ok(any)
    }

    /// Lets `joiner` in if `proof` shows that it knows the secret of an outstanding ticket of this
    /// device. See [`pair_proof`](crate::core::pairing::pair_proof).
    pub fn redeem(
        &self,
        now_ms: i64,
        joiner: &NodeId,
        proof: &[u8; 32],
        name: &str,
        addresses: &[String],
    ) -> Result<Redeemed, RedeemError> {
        self.redeem_at(now_ms, instant_now(), joiner, proof, name, addresses)
    }

    fn redeem_at(
        &self,
        now_ms: i64,
        now: Instant,
        joiner: &NodeId,
        proof: &[u8; 32],
        name: &str,
        addresses: &[String],
    ) -> Result<Redeemed, RedeemError> {
        if *joiner == self.node_id {
            return Err(RedeemError::Ourselves);
        }
        let mut db = self.db();
        let Db { connection, deadlines } = &mut *db;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if is_removed(&tx, &self.node_id)? {
            return Err(RedeemError::WeAreRemoved);
        }
        if is_removed(&tx, joiner)? {
            return Err(RedeemError::JoinerRemoved);
        }
        let known = member(&tx, joiner)?;
        if known.is_none() && entry_count(&tx)? >= GROUP_ENTRIES_MAX {
            return Err(RedeemError::GroupFull);
        }

        // Every ticket is looked at, so that the time taken does not tell which one fits.
        let (mut live, mut fitting, mut fits_expired) = (0, None, false);
        for ticket in tickets(&tx)? {
            let is_live = ticket.is_live(deadlines, now_ms, now);
            let fits = proof_matches(&ticket.key, &self.node_id, joiner, proof);
            if !is_live {
                fits_expired |= fits;
                delete_ticket(&tx, &ticket.key)?;
                continue;
            }
            live += 1;
            if fits {
                fitting = Some(ticket.key);
            }
        }
        let Some(key) = fitting else {
            tx.execute("UPDATE tickets SET tries_left = tries_left - 1", [])?;
            tx.execute("DELETE FROM tickets WHERE tries_left <= 0", [])?;
            tx.commit()?;
            return Err(match (fits_expired, live) {
                (true, _) => RedeemError::Expired,
                (false, 0) => RedeemError::NoTicket,
                (false, _) => RedeemError::WrongProof,
            });
        };
        delete_ticket(&tx, &key)?;
        match known {
            Some(known) => put_addresses(&tx, &known, addresses)?,
            None => {
                let joined = Member {
                    node_id: *joiner,
                    name: shown_name(name, joiner),
                    named_ms: 0,
                    addresses: with_addresses(addresses, vec![]),
                };
                put_member(&tx, &joined, now_ms)?;
            }
        }
        let redeemed =
            Redeemed { group_id: group_id(&tx)?, members: members(&tx)?, removed: removed(&tx)? };
        tx.commit()?;
        deadlines.remove(&key);
        Ok(redeemed)
    }

    /// Enters the group that a ticket opened. Only a device alone in its own group can; entering
    /// the group it is in already is a [`merge`](Self::merge).
    pub fn join(
        &self,
        group: &GroupId,
        members: &[Member],
        removed: &[NodeId],
        now_ms: i64,
    ) -> Result<Changes, JoinError> {
        self.write(|tx| {
            if group_id(tx)? == *group {
                return Ok(self.merge_in(tx, members, removed, now_ms)?);
            }
            let others = self.others(tx)?;
            if others > 0 && !is_removed(tx, &self.node_id)? {
                return Err(JoinError::AlreadyInGroup { n: others });
            }
            if removed.contains(&self.node_id) {
                return Err(JoinError::RemovedThere);
            }
            self.forget_group(tx, group)?;
            let changes = self.merge_in(tx, members, removed, now_ms)?;
            if changes.ignored > 0 {
                return Err(JoinError::TooLarge);
            }
            Ok(changes)
        })
    }

    /// Takes in what another device knows of the group. Of what is said about this device only its
    /// removal counts, and it keeps its state then; see [`we_are_removed`](Self::we_are_removed).
    pub fn merge(
        &self,
        members: &[Member],
        removed: &[NodeId],
        now_ms: i64,
    ) -> rusqlite::Result<Changes> {
        self.write(|tx| self.merge_in(tx, members, removed, now_ms))
    }

    /// Locks a member out for good. `who`: its name, or the start of its node ID.
    pub fn remove(&self, who: &str, now_ms: i64) -> Result<Member, LookupError> {
        self.write(|tx| {
            let found = lookup(tx, who)?;
            if found.node_id == self.node_id {
                return Err(LookupError::Ourselves);
            }
            put_removed(tx, &found.node_id, now_ms)?;
            Ok(found)
        })
    }

    /// Takes a member's word that the group `of` has removed this device, unless it is in another by
    /// now.
    pub fn we_were_removed(&self, of: &GroupId, now_ms: i64) -> rusqlite::Result<()> {
        self.write(|tx| {
            if group_id(tx)? == *of {
                put_removed(tx, &self.node_id, now_ms)?;
            }
            Ok(())
        })
    }

    /// Notes where a member was reached; ignored for others.
    pub fn record_addresses(&self, node_id: &NodeId, addresses: &[String]) -> rusqlite::Result<()> {
        self.write(|tx| {
            let Some(known) = member(tx, node_id)? else {
                return Ok(());
            };
            put_addresses(tx, &known, addresses)
        })
    }

    fn merge_in(
        &self,
        tx: &Transaction,
        told: &[Member],
        told_removed: &[NodeId],
        now_ms: i64,
    ) -> rusqlite::Result<Changes> {
        let mut changes = Changes::default();
        let mut room = GROUP_ENTRIES_MAX.saturating_sub(entry_count(tx)?);
        for node_id in told_removed {
            if is_removed(tx, node_id)? {
                continue;
            }
            if member(tx, node_id)?.is_none() {
                if room == 0 {
                    changes.ignored += 1;
                    continue;
                }
                room -= 1;
            }
            put_removed(tx, node_id, now_ms)?;
            changes.removed.push(*node_id);
        }
        for told in told.iter().filter(|told| told.node_id != self.node_id) {
            let locked_out = is_removed(tx, &told.node_id)?;
            // A stamp from the far future could never be outdone by an honest one.
            let plausible = told.named_ms <= now_ms.saturating_add(CLOCK_AHEAD_MS_MAX);
            let heard = Member {
                node_id: told.node_id,
                name: shown_name(&told.name, &told.node_id),
                named_ms: if plausible { told.named_ms.max(0) } else { 0 },
                addresses: with_addresses(&told.addresses, vec![]),
            };
            let Some(known) = member(tx, &told.node_id)? else {
                if !locked_out {
                    if room == 0 {
                        changes.ignored += 1;
                        continue;
                    }
                    room -= 1;
                    changes.added.push(heard.clone());
                }
                put_member(tx, &heard, now_ms)?;
                continue;
            };
            put_addresses(tx, &known, &heard.addresses)?;
            if (heard.named_ms, &heard.name) > (known.named_ms, &known.name) {
                tx.execute(
                    "UPDATE members SET name = ?2, named_ms = ?3 WHERE node_id = ?1",
                    params![heard.node_id.0, heard.name, heard.named_ms],
                )?;
                if heard.name != known.name && !locked_out {
                    changes.renamed.push(heard);
                }
            }
        }
        Ok(changes)
    }

    fn others(&self, connection: &Connection) -> rusqlite::Result<usize> {
        let members = members(connection)?;
        Ok(members.iter().filter(|m| m.node_id != self.node_id).count())
    }

    fn forget_group(&self, tx: &Transaction, next: &GroupId) -> rusqlite::Result<()> {
        tx.execute("DELETE FROM members WHERE node_id != ?1", [self.node_id.0])?;
        tx.execute("DELETE FROM removed", [])?;
        tx.execute("DELETE FROM tickets", [])?;
        tx.execute("UPDATE this_device SET group_id = ?1", [next.0])?;
        Ok(())
    }

    fn write<T, E: From<rusqlite::Error>>(
        &self,
        change: impl FnOnce(&Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut db = self.db();
        let tx = db.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = change(&tx)?;
        tx.commit()?;
        Ok(done)
    }

    /// A panic elsewhere rolled its transaction back, so the state behind a poisoned lock is whole.
    fn db(&self) -> MutexGuard<'_, Db> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each outstanding ticket is a way in that somebody may find.
pub const TICKETS_MAX: usize = 16;
/// Wrong proofs after which the outstanding tickets are void.
const TICKET_TRIES: i64 = 5;
/// A day: further ahead no honest clock is by accident of a time zone.
const CLOCK_AHEAD_MS_MAX: i64 = 24 * 60 * 60 * 1000;

#[derive(Debug)]
struct Db {
    connection: Connection,
    /// When each ticket ends by the monotonic clock, which nobody can set back.
    deadlines: BTreeMap<[u8; 32], Instant>,
}

impl Ticket {
    /// Live by the wall clock, which a restart cannot fool, and by the monotonic clock, which a
    /// changed wall clock cannot. A ticket first seen after a restart counts from then.
    fn is_live(
        &self,
        deadlines: &mut BTreeMap<[u8; 32], Instant>,
        now_ms: i64,
        now: Instant,
    ) -> bool {
        if now_ms < self.created_ms || now_ms >= self.expires_ms {
            return false;
        }
        let left_ms = u64::try_from(self.expires_ms - now_ms).unwrap_or(0);
        let deadline = deadlines.entry(self.key).or_insert(now + Duration::from_millis(left_ms));
        now < *deadline
    }
}

fn lookup(connection: &Connection, who: &str) -> Result<Member, LookupError> {
    let members = members(connection)?;
    let found = meant(who, &members, |member| (member.node_id.to_string(), &member.name));
    match found[..] {
        [member] => Ok(member.clone()),
        [] => Err(LookupError::Unknown(who.to_owned())),
        _ => {
            let shown = |member: &&Member| format!("{} ({})", member.name, member.node_id.short());
            let candidates = found.iter().map(shown).collect();
            Err(LookupError::Ambiguous { text: who.to_owned(), candidates })
        }
    }
}

fn shown_name(name: &str, node_id: &NodeId) -> String {
    let name = device_name(name);
    if name.is_empty() {
        return node_id.short();
    }
    name
}

#[cfg(test)]
mod tests;
