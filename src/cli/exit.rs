//! How a command ends: the exit statuses, and the failures that lead to them.

use std::fmt;
use std::process::ExitCode;

use crate::core::lookup::LookupError;

/// The exit statuses of `can-sync`. Part of its interface: scripts tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Not done, for a reason that has no status of its own.
    Error = 1,
    /// The command line or the configuration is invalid. clap uses the same number.
    Usage = 2,
    /// No agent runs for this home.
    NotRunning = 3,
    /// No such device or asset, or more than one.
    Unknown = 4,
    /// May work later with nothing changed.
    Temporary = 5,
    /// Not in sync, and waiting does not help. `status` names the obstacle.
    NotInSync = 6,
    /// The asset's bytes are damaged on this device.
    Damaged = 7,
    /// The command's time limit ran out first.
    Timeout = 8,
    /// Another device, the agent or a rule refused it.
    Refused = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads what we print (`can-sync ls | head`): end quietly.
    OutputClosed,
    /// Say why, and end with this status.
    Report(Exit, anyhow::Error),
}

impl Failure {
    /// A failure with a message for people.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self::Report(exit, anyhow::anyhow!("{message}"))
    }
}

impl From<LookupError> for Failure {
    fn from(error: LookupError) -> Self {
        let exit = match error {
            LookupError::Malformed(_) => Exit::Usage,
            LookupError::Unknown(_) | LookupError::Ambiguous(_) => Exit::Unknown,
        };
        Self::new(exit, error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Report(Exit::Error, error)
    }
}
