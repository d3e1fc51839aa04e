//! Why a request failed, in words for people.

use thiserror::Error;

use crate::core::lookup::LookupError;
use crate::replica::journal::AskError;
use crate::state::journal::JournalError;

/// Why a request failed; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No such device.
    #[error("{0}")]
    Unknown(String),
    /// Another device or a rule refused it; repeating it does not help.
    #[error("{0}")]
    Refused(String),
    /// The same request may succeed later.
    #[error("{0}")]
    Temporary(String),
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The agent failed.
    #[error("{0}")]
    Internal(String),
}

impl From<LookupError> for RequestError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Malformed(text) => Self::Invalid(text),
            LookupError::Unknown(text) | LookupError::Ambiguous(text) => Self::Unknown(text),
        }
    }
}

/// Maps a journal error to a request error; `tried` names what failed.
pub(crate) fn journal_error(tried: &str, error: &AskError) -> RequestError {
    let AskError::Journal(journal) = error else {
        return RequestError::Temporary(error.to_string());
    };
    match **journal {
        JournalError::InGroup
        | JournalError::Removed
        | JournalError::BadIntro
        | JournalError::ClockBehind
        | JournalError::ClockNotSet
        | JournalError::UsedUp { .. }
        | JournalError::Unreadable => RequestError::Refused(journal.to_string()),
        JournalError::DiskFull | JournalError::Busy => {
            RequestError::Temporary(format!("{tried}: {journal}"))
        }
        JournalError::NoGroup
        | JournalError::Damaged(_)
        | JournalError::Corrupt(_)
        | JournalError::Newer { .. }
        | JournalError::OtherDevice(_)
        | JournalError::Stopped(_)
        | JournalError::Open(_)
        | JournalError::Database(_) => internal(tried, journal),
    }
}

/// Maps any other error to a request error; `tried` names what failed.
pub(crate) fn internal(tried: &str, error: &dyn std::fmt::Display) -> RequestError {
    RequestError::Internal(format!("{tried}: {error:#}"))
}
