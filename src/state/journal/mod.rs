//! The journal on disk: one database, one writer ([`Journal`]), any number of readers
//! ([`JournalReader`]). All of it blocks. `proto/journal.proto` tells what it is for.
//!
//! J1  The cells are at least the join of all ops up to the clock, in every log that is not forked.
//! J2  Every call is one transaction: clock, ops, cells, digest and the greatest time move together,
//!     and what a call returns is durable.
//! J3  No number of a log is signed twice: a number is read from the row it is written to, and a
//!     device that cannot prove that it remembers the end of its log begins another with its next op.
//! J4  Bodies and signatures are kept and passed on byte for byte.
//! J5  Only dead ops are dropped, and never the one at the clock: that is the target of jumps.
//! J6  Which ops are live depends on what is merged alone, not on the order of arrival.

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
mod fsck;
mod group;
mod open;
mod pairing;
mod prune;
mod read;
mod rebase;
mod receive;
mod roster;
mod scan;
mod schema;
mod session;
mod stats;
mod tx;
mod upgrade;
mod verify;

#[cfg(test)]
mod tests;

pub use author::DraftResult;
pub use devices::GroupState;
pub use error::JournalError;
pub use facts::{Departure, RemovalPreview};
pub use read::{
    Change, ChangesPage, Cursor, EventRow, EventsPage, JournalReader, MemberRow, Owner, Record,
    RecordsPage,
};
pub use roster::Roster;
pub use scan::{LogState, Scan, ScanLimits};
pub use stats::{LogStats, Stats};
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
    nonces: tx::Nonces,
    roster: Roster,
    group: Option<GroupId>,
    news: News,
    /// The facts about members, as they are committed; `None` until they are read.
    ledger: Option<Arc<Ledger>>,
    /// It was said that there is no room for the events of [`DEVICE_STREAM`].
    ///
    /// [`DEVICE_STREAM`]: crate::core::journal::log::DEVICE_STREAM
    is_log_full: bool,
}

/// What commits have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct News {
    /// Ops came, or a clock moved: there is something to read, and to tell peers.
    pub ops: bool,
    /// This device wrote an op.
    pub own: bool,
    /// Facts about members changed.
    pub members: bool,
    /// What is known of devices changed: who may come in, where they are reached.
    pub devices: bool,
}

/// Which file a database is: a copy put back from a backup is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbIdent {
    /// The device of the file system, as it is mounted now.
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
    /// What the op's number of arrival is a number of: see [`Cursor`].
    pub epoch: LogId,
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
    /// The batch proved that we had forgotten the end of our log: we write to another from now on.
    pub rotated: bool,
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
    /// The reason it was refused.
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
    /// The space of its author, of those its introducer brought in or of the group is used up, or its
    /// author's number of logs.
    Quota,
    /// The disk is nearly full.
    Full,
    /// The connection it came by is not one of a member.
    NotFromMember,
    /// The connection it came by is one of a device that the group has removed.
    FromRemoved,
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
    /// Ops merged again, as others that had replaced what they wrote are gone.
    pub merged: usize,
    /// Whether the limit ended it and there may be more.
    pub more: bool,
}

/// What a joiner is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The group it is in.
    pub group: GroupId,
    /// The ops that make it a member, the founder's first, and removals.
    pub intro: Vec<SignedOp>,
    /// The one of them that adds it.
    pub add: SignedOp,
}

/// Why a joiner was not let in. A joiner whose proof is wrong or late is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing to redeem: used, expired, or never made.
    #[error("no ticket is outstanding")]
    NoToken,
    /// It fits no outstanding token.
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
    /// As many devices as a group can have, or as one device can add.
    #[error("the group is full")]
    GroupFull,
    /// The joiner would be too many introductions away from the founder.
    #[error(
        "the device that made the ticket is {INTRO_OPS_MAX} introductions away from the group's first \
         device, which is the most there can be: make the ticket on another device of the group"
    )]
    ChainTooLong,
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

impl Journal {
    /// What was committed since the last call.
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
