//! Errors of the journal as a whole. A call that fails leaves the state as it was before.

use rusqlite::ErrorCode;
use thiserror::Error;

/// Why a call failed. It had no effect.
#[derive(Debug, Error)]
pub enum JournalError {
    /// There is no space for the write. It can be tried again when there is.
    #[error("the disk is full")]
    DiskFull,
    /// Another program holds the database's lock. The call can be tried again.
    #[error("another program holds the journal's database locked: let it end, and try again")]
    Busy,
    /// The call needs a group.
    #[error("this device is in no group: found one or join one")]
    NoGroup,
    /// The call requires that this device is in no group.
    #[error("this device is in a group already: leave it first")]
    InGroup,
    /// The group removed this device.
    #[error("this device was removed from its group")]
    Removed,
    /// The given facts do not make this device a member.
    #[error("what was given does not make this device a member of that group")]
    BadIntro,
    /// The group's ops are too far ahead of our clock.
    #[error(
        "the group has entries that are far ahead of this device's clock. If the clocks of both devices \
         are right, one was wrong earlier: run `can-sync journal rebase` on the device that made the \
         ticket, and make a new ticket there"
    )]
    ClockBehind,
    /// The wall clock of this device was never set.
    #[error("the clock of this device is not set")]
    ClockNotSet,
    /// The other members would accept nothing more from this device.
    #[error(
        "a group takes no more than {limit} {what} of one device: let another device do it, or pair \
         this one again under a new home"
    )]
    UsedUp {
        /// The thing used up.
        what: &'static str,
        /// The limit, which is reached.
        limit: usize,
    },
    /// Own ops must be rewritten but cannot be read.
    #[error(
        "a later version of can-sync wrote ops on this device that this one cannot write anew: \
         upgrade it first"
    )]
    Unreadable,
    /// The stored data contradicts itself.
    #[error(
        "the journal is damaged: {0}; restore it from a backup, or leave the group and pair again"
    )]
    Damaged(String),
    /// SQLite reports that its file is damaged. The agent must stop: any further write may make it
    /// worse.
    #[error(
        "the journal's database is damaged: {0}; restore it from a backup, or leave the group and \
         pair again"
    )]
    Corrupt(rusqlite::Error),
    /// A newer version wrote the file.
    #[error("a newer can-sync wrote the journal (version {found}, this one knows {known})")]
    Newer {
        /// The schema version of the file.
        found: i64,
        /// The schema version of this program.
        known: i64,
    },
    /// The file belongs to another device.
    #[error(
        "the journal belongs to another device, {0}: put key and state of the same device together"
    )]
    OtherDevice(String),
    /// A write failed, so the agent stops. See [`JournalError::Database`].
    #[error(
        "a write to the journal failed ({0}), and what is on its disk now is not known: see to the \
         disk, and start again; what was acknowledged is kept"
    )]
    Stopped(String),
    /// The file cannot be opened.
    #[error("opening the journal: {0}")]
    Open(String),
    /// The database failed. After an I/O error the agent must stop, because a failed fsync must not
    /// be tried again.
    #[error("the journal's database: {0}")]
    Database(rusqlite::Error),
}

impl JournalError {
    /// Converts an error at the begin of a transaction, when nothing was written yet.
    pub(super) fn of_begin(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => Self::Busy,
            _ => error.into(),
        }
    }
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(error),
            _ => Self::Database(error),
        }
    }
}
