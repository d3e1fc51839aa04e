//! The journal on disk: one database, one writer ([`Journal`]), any number of readers
//! ([`JournalReader`]). All of it blocks. `proto/journal.proto` tells what it is for.
//!
//! J1  The cells are at least the join of all ops up to the clock, in every log that is not forked.
//! J2  Every call is one transaction: clock, ops, cells, digest and the greatest time move together,
//!     and what a call returns is durable.
//! J3  No number of a log is signed twice: a number is read from the row it is written to, and a
//!     device that cannot prove that it remembers the end of its log begins another.
//! J4  Bodies and signatures are kept and passed on byte for byte.
//! J5  Only dead ops are dropped, and never the one at the clock: that is the target of jumps.
//! J6  Which ops are live depends on what is merged alone, not on the order of arrival.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::core::ids::{GroupId, Hash, LogId, NodeId};
use crate::core::journal::asset::Shadow;
use crate::core::journal::draft::{Draft, DraftError};
use crate::core::journal::message::ClockEntry;
use crate::core::journal::stamp::Stamp;
use crate::state::identity::Identity;

mod error;
mod read;
mod scan;
mod session;
mod verify;

pub use error::JournalError;
pub use read::{
    Change, ChangesPage, Cursor, EventRow, EventsPage, JournalReader, LogStats, MemberRow, Owner,
    Record, RecordsPage, Stats,
};
pub use scan::{LogState, Scan, ScanLimits};
pub use verify::{OpError, VerifiedOp, verify};

/// A call's outcome.
pub type Result<T> = std::result::Result<T, JournalError>;

/// The one writer. Owns the device's key for signing. Times are wall-clock milliseconds since the
/// Unix epoch.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    identity: Identity,
    connection: Connection,
    group: Option<GroupId>,
}

/// Which file a database is: a copy put back from a backup is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbIdent {
    /// The device of the file system.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
    /// When it was created, ns since the Unix epoch; 0 where the file system does not say.
    pub born_ns: u64,
}

/// What became of a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The op's stamp.
    pub stamp: Stamp,
    /// The op's number of arrival here.
    pub arr: u64,
    /// The number of each of its events, in the draft's order.
    pub event_seqs: Vec<u64>,
}

/// What [`Journal::receive`] did with a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Ops that were new.
    pub applied: usize,
    /// Ops that were held, or dead.
    pub known: usize,
    /// Ops not taken. While there are any in a session, no gap may be jumped in it.
    pub refused: Vec<Refused>,
    /// Logs found to be forked by this batch.
    pub forked: Vec<LogId>,
    /// Set when the batch proved that we had forgotten the end of our log: the log we write now.
    pub rotated: Option<LogId>,
    /// Whether the facts about members changed.
    pub members_changed: bool,
}

/// An op that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its log.
    pub log: LogId,
    /// Its author.
    pub author: NodeId,
    /// Its number.
    pub seq: u64,
    /// Why.
    pub why: RefusedWhy,
}

/// Why an op was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedWhy {
    /// Nobody we trust has added its author, as far as we know yet.
    UnknownAuthor,
    /// Stamped too far ahead of our clock.
    Future {
        /// The wall-clock time from which on it may be admitted.
        until_ms: u64,
    },
    /// Its author's space, or number of logs, is used up.
    Quota,
    /// The connection it came by is not one of a member.
    NotFromMember,
    /// Signed for another group than ours.
    OtherGroup,
}

/// What [`Journal::prune`] dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Dead ops.
    pub ops: usize,
    /// Events past their stream's days.
    pub events: usize,
    /// Whether the limit ended it and there may be more.
    pub more: bool,
}

/// What a joiner is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The group it is in.
    pub group: GroupId,
    /// The ops that make it a member, the founder's first.
    pub intro: Vec<crate::core::journal::op::SignedOp>,
}

/// Why a joiner was not let in. For the local log only: the joiner hears one and the same refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing to redeem: used, expired, tried too often, or never made.
    #[error("no ticket is outstanding")]
    NoToken,
    /// It fits no outstanding token; each of them has one try less.
    #[error("the proof fits none of the outstanding tickets")]
    WrongProof,
    /// The right proof, too late.
    #[error("the ticket has expired")]
    Expired,
    /// A device that was removed comes back only with a new key.
    #[error("the device was removed from the group")]
    JoinerRemoved,
    /// Its own token.
    #[error("a device cannot pair with itself")]
    Ourselves,
    /// As many devices as a group can have.
    #[error("the group is full")]
    GroupFull,
}

/// What [`Journal::rebase`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebased {
    /// No op of ours is too far in the future.
    Nothing,
    /// That many ops were written anew, into this log.
    Done {
        /// How many.
        ops: usize,
        /// The log we write now.
        log: LogId,
    },
    /// Others' ops are in the future as well, or acknowledged ours: our clock is what is wrong.
    OurClockIsSlow,
}

impl DbIdent {
    /// That of a file.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path)?;
        let born = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let born_ns = born.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        Ok(Self { device: meta.dev(), inode: meta.ino(), born_ns })
    }
}

impl Journal {
    /// Opens the journal at `path`, or makes one. A file that is not the one last written to (a
    /// restored backup, a copy) gets a new log. `seed` must be random and new at every call: the
    /// nonces of logs and groups come from it.
    pub fn open(path: &Path, identity: &Identity, seed: [u8; 32]) -> Result<Self> {
        Self::open_as(path, identity, seed, DbIdent { device: 0, inode: 0, born_ns: 0 })
    }

    /// [`Journal::open`] for a file said to be `ident`; for simulations of restores.
    pub fn open_as(
        path: &Path,
        identity: &Identity,
        seed: [u8; 32],
        ident: DbIdent,
    ) -> Result<Self> {
        let _ = (seed, ident);
        let connection = Connection::open(path)?;
        Ok(Self { path: path.to_owned(), identity: identity.clone(), connection, group: None })
    }

    /// A reader of the same journal.
    pub fn reader(&self) -> Result<JournalReader> {
        JournalReader::open(&self.path)
    }

    /// The group, if this device is in one.
    pub fn group(&self) -> Option<GroupId> {
        self.group
    }

    /// This device.
    pub fn device(&self) -> NodeId {
        self.identity.node_id
    }

    /// Founds a group of this device alone.
    pub fn found(&mut self, name: &str, now_ms: u64) -> Result<GroupId> {
        let _ = (name, now_ms, &mut self.connection);
        Err(JournalError::InGroup)
    }

    /// Enters the group in which `intro` makes this device a member.
    pub fn join(&mut self, group: GroupId, intro: &[VerifiedOp], now_ms: u64) -> Result<()> {
        let _ = (group, intro, now_ms);
        Err(JournalError::BadIntro)
    }

    /// Forgets the group and everything in the journal.
    pub fn leave(&mut self) -> Result<()> {
        Ok(())
    }

    /// Begins a new log, because the user says that this is a restored backup.
    pub fn restored(&mut self) -> Result<LogId> {
        Err(JournalError::NoGroup)
    }

    /// T1: writes drafts, all in one transaction, each by itself an op or an error. `None` for a
    /// draft with nothing to do.
    pub fn write(
        &mut self,
        drafts: &[Draft],
        now_ms: u64,
    ) -> Result<Vec<std::result::Result<Option<Written>, DraftError>>> {
        let _ = (drafts, now_ms);
        Err(JournalError::NoGroup)
    }

    /// T2: takes in a batch that came over a connection with `from`.
    pub fn receive(&mut self, from: &NodeId, ops: &[VerifiedOp], now_ms: u64) -> Result<Received> {
        let _ = (from, ops, now_ms);
        Err(JournalError::NoGroup)
    }

    /// Takes in a stranger's introduction: of its ops, facts said by devices that are members by
    /// what we know. Whether the stranger is one now, [`JournalReader::verdicts`] tells.
    pub fn introduce(&mut self, intro: &[VerifiedOp], now_ms: u64) -> Result<Received> {
        let _ = (intro, now_ms);
        Err(JournalError::NoGroup)
    }

    /// T3: takes over what a drained peer claims, up to ops we hold. Returns the logs whose clock
    /// moved. Never after an op was refused in the session.
    pub fn jump(&mut self, entries: &[ClockEntry]) -> Result<Vec<LogId>> {
        let _ = entries;
        Err(JournalError::NoGroup)
    }

    /// Notes how far a peer says it is. For pruning only.
    pub fn ack(&mut self, peer: &NodeId, entries: &[ClockEntry]) -> Result<()> {
        let _ = (peer, entries);
        Ok(())
    }

    /// T4: drops at most `limit` rows that nothing needs.
    pub fn prune(&mut self, now_ms: u64, limit: usize) -> Result<Pruned> {
        let _ = (now_ms, limit);
        Ok(Pruned::default())
    }

    /// T5: makes the token with this key (see [`crate::core::pairing::ticket_key`]) good until then.
    pub fn create_token(&mut self, key: &[u8; 32], now_ms: u64, expires_ms: u64) -> Result<()> {
        let _ = (key, now_ms, expires_ms);
        Ok(())
    }

    /// T5: consumes the token that the proof fits and adds the joiner, in one transaction.
    pub fn redeem(
        &mut self,
        joiner: &NodeId,
        proof: &[u8; 32],
        name: &str,
        now_ms: u64,
    ) -> Result<std::result::Result<Admitted, TokenError>> {
        let _ = (joiner, proof, name, now_ms);
        Err(JournalError::NoGroup)
    }

    /// T5: adds a device without a token. `None` when it was added before.
    pub fn add(&mut self, device: &NodeId, name: &str, now_ms: u64) -> Result<Option<Written>> {
        let _ = (device, name, now_ms);
        Err(JournalError::NoGroup)
    }

    /// T5: removes a device for good, and those it added that we do not know of.
    pub fn remove(&mut self, device: &NodeId, now_ms: u64) -> Result<Option<Written>> {
        let _ = (device, now_ms);
        Err(JournalError::NoGroup)
    }

    /// Allows an author that many bytes; `None` for the usual.
    pub fn set_quota(&mut self, author: &NodeId, bytes: Option<u64>) -> Result<()> {
        let _ = (author, bytes);
        Ok(())
    }

    /// Writes own ops that are too far in the future anew, with stamps of now, into a new log.
    pub fn rebase(&mut self, now_ms: u64) -> Result<Rebased> {
        let _ = now_ms;
        Ok(Rebased::Nothing)
    }

    /// T6: [`Journal::write`] of one draft and the new shadow of an asset, in one transaction.
    pub fn write_with_shadows(
        &mut self,
        draft: &Draft,
        shadows: &[(Hash, Shadow)],
        now_ms: u64,
    ) -> Result<std::result::Result<Option<Written>, DraftError>> {
        let _ = (draft, shadows, now_ms);
        Err(JournalError::NoGroup)
    }

    /// Notes how far a local consumer has come in [`JournalReader::changes`].
    pub fn set_cursor(&mut self, name: &str, cursor: &Cursor) -> Result<()> {
        let _ = (name, cursor);
        Ok(())
    }

    /// Recomputes from the tables everything that is kept twice. Empty when all is well; at most a
    /// hundred findings. Reads everything: takes a while on a large journal.
    pub fn fsck(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
