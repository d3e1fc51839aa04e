//! The journal on disk: one database with one writer ([`Journal`]) and any number of readers
//! ([`JournalReader`]). All calls block. `proto/journal.proto` says what the journal is for.
//!
//! J1  In every log that is not forked, the cells are at least the join of all ops up to the clock.
//! J2  Every call is one transaction: clock, ops, cells, digest and the greatest time change
//!     together, and what a call returns is durable.
//! J3  No number of a log is signed twice: it is read from the row that it is written to, and a
//!     device that cannot prove that it remembers the end of its log begins another log with its
//!     next op.
//! J4  Bodies and signatures are stored and passed on byte for byte.
//! J5  Only dead ops are dropped, and never the one at the clock: it is the target of jumps.
//! J6  Which ops are live depends only on the set of merged ops, not on the order of arrival.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;

use crate::core::ids::{GroupId, LogId, NodeId};
use crate::core::journal::members::Ledger;
use crate::core::journal::op::SignedOp;
use crate::core::journal::stamp::Stamp;
use crate::core::limits::INTRO_OPS_MAX;
use crate::state::identity::Identity;

mod apply;
mod assets;
mod author;
mod branches;
mod budget;
mod devices;
mod digest;
mod error;
mod events;
mod facts;
mod folders;
mod fsck;
mod group;
mod open;
mod pairing;
mod prune;
mod read;
mod rebase;
mod receive;
mod roster;
mod rows;
mod scan;
mod schema;
mod session;
mod stats;
mod superseded;
mod told;
mod tx;
mod upgrade;
mod verify;

#[cfg(test)]
mod tests;

pub use crate::db::Readers;
pub use author::DraftResult;
pub use devices::{GroupState, MembershipRow};
pub use error::JournalError;
pub use facts::{Departure, RemovalPreview};
pub use folders::{
    FileChange, FileChangesPage, FileRow, HistoryEntry, HistoryPage, HistoryPlace, Stamping,
    VersionsPage,
};
pub use read::{
    Change, ChangesPage, Cursor, EventRow, EventsPage, JournalReader, MemberRow, Owner, Record,
    RecordsPage,
};
pub use roster::{OutstandingTicket, Roster};
pub use scan::{LogState, Scan, ScanLimits};
pub use stats::{LogStats, Stats};
pub use superseded::{HISTORY_WAIT_MS, Resolved};
pub use verify::{OpError, VerifiedOp, verify};

/// The result of a call.
pub type Result<T> = std::result::Result<T, JournalError>;

/// The only writer. It owns the device's key for signing. Times are wall-clock milliseconds since
/// the Unix epoch.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    identity: Identity,
    connection: Connection,
    nonces: tx::Nonces,
    roster: Roster,
    group: Option<GroupId>,
    news: News,
    /// The committed membership facts; `None` until they are read.
    ledger: Option<Arc<Ledger>>,
    /// Whether it was reported that there is no room for events of [`DEVICE_STREAM`].
    ///
    /// [`DEVICE_STREAM`]: crate::core::journal::device_events::DEVICE_STREAM
    is_log_full: bool,
}

/// What commits have changed since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct News {
    /// Ops arrived or a clock moved, so there is something to read and to send to peers.
    pub ops: bool,
    /// This device wrote an op.
    pub own: bool,
    /// Membership facts changed.
    pub members: bool,
    /// Something about devices changed: who is admitted, or where they are reached.
    pub devices: bool,
}

/// The identity of a database file: a copy restored from a backup is another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbIdent {
    /// The number of the file system's device, as it is mounted now.
    pub device: u64,
    /// The file's inode number.
    pub inode: u64,
    /// When the file was created, ns since the Unix epoch; 0 where the file system does not record
    /// it.
    pub born_ns: u64,
}

/// An op written from a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The op's stamp.
    pub stamp: Stamp,
    /// The epoch of the arrival number: see [`Cursor`].
    pub epoch: LogId,
    /// The op's arrival number on this device.
    pub arr: u64,
    /// The numbers of its events, in the draft's order.
    pub event_seqs: Vec<u64>,
}

/// The result of [`Journal::receive`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// The number of ops that were new.
    pub applied: usize,
    /// The number of ops that were stored already, or dead.
    pub known: usize,
    /// The ops refused. A session with a refused op must not jump a gap.
    pub refused: Vec<Refused>,
    /// The logs that this batch showed to be forked.
    pub forked: Vec<LogId>,
    /// Whether the batch proved that this device forgot the end of its log. It writes another one
    /// from now on.
    pub rotated: bool,
    /// Whether membership facts changed.
    pub members_changed: bool,
}

/// An op that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The op's log.
    pub log: LogId,
    /// The op's author.
    pub author: NodeId,
    /// The op's number.
    pub seq: u64,
    /// The reason it was refused.
    pub why: RefusedWhy,
}

/// Why an op was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedWhy {
    /// No trusted device has added its author, as far as is known yet.
    UnknownAuthor,
    /// The op's stamp is too far ahead of our clock.
    Future {
        /// The wall-clock time from which it may be admitted.
        until_ms: u64,
    },
    /// A budget is used up: the bytes of its author, of its introducer's subtree or of the group,
    /// or the number of logs of its author.
    Quota,
    /// The disk is nearly full.
    Full,
    /// The connection that it came by is not one of a member.
    NotFromMember,
    /// The group has removed the device at the other end of the connection that it came by.
    FromRemoved,
    /// The op was signed for another group.
    OtherGroup,
}

/// What [`Journal::prune`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// The number of dead ops dropped.
    pub ops: usize,
    /// The number of events dropped past their stream's retention.
    pub events: usize,
    /// The number of ops merged again because ops that had replaced their writes are gone.
    pub merged: usize,
    /// Whether the limit ended the run, so that more may be left.
    pub more: bool,
}

/// What a joiner receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The group.
    pub group: GroupId,
    /// The ops that make the joiner a member, the founder's first, and removals.
    pub intro: Vec<SignedOp>,
    /// The op among them that adds the joiner.
    pub add: SignedOp,
}

/// Why a joiner is refused. A joiner with a wrong or late proof does not learn the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no valid token: it was used, has expired, or was never made.
    #[error("no ticket is outstanding")]
    NoToken,
    /// The proof matches no outstanding token.
    #[error("the proof fits none of the outstanding tickets")]
    WrongProof,
    /// The proof is right but the token has expired.
    #[error("the ticket has expired")]
    Expired,
    /// The joiner was removed: it can come back only with a new key.
    #[error("the device was removed from the group")]
    JoinerRemoved,
    /// The device tries to redeem its own token.
    #[error("a device cannot pair with itself")]
    Ourselves,
    /// The group has as many devices as allowed, or this device has added as many as one may.
    #[error("the group is full")]
    GroupFull,
    /// The joiner would be too many introductions away from the founder.
    #[error(
        "the device that made the ticket is {INTRO_OPS_MAX} introductions away from the group's first \
         device, which is the most there can be: make the ticket on another device of the group"
    )]
    ChainTooLong,
}

/// The result of [`Journal::rebase`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebased {
    /// No own op is too far in the future.
    Nothing,
    /// Ops were rewritten into a new log.
    Done {
        /// The number of ops.
        ops: usize,
        /// The log that this device writes now.
        log: LogId,
    },
    /// Other devices' ops are in the future too, or others acknowledged ours: our clock is slow.
    OurClockIsSlow,
}

impl Journal {
    /// Returns what was committed since the last call.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }
}

impl News {
    fn add(&mut self, other: Self) {
        self.ops |= other.ops;
        self.own |= other.own;
        self.members |= other.members;
        self.devices |= other.devices;
    }
}
