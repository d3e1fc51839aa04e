//! Why a journal's stream ended, and what that means for the connection.

use thiserror::Error;

use crate::core::close::CloseCode;
use crate::core::journal::message::RefuseCode;
use crate::core::journal::session::End;
use crate::net::frame::FrameError;
use crate::replica::journal::AskError;
use crate::wire::WireError;

/// Why a stream ended.
#[derive(Debug, Error)]
pub enum Ended {
    /// The session ended it.
    #[error("the journal's stream: {}", .0)]
    Session(#[from] End),
    /// The stream failed.
    #[error("the journal's stream: {0}")]
    Frame(#[from] FrameError),
    /// The peer ended it, which the protocol does not allow.
    #[error("the journal's stream ended")]
    Finished,
    /// A frame is malformed, or a value in it is out of bounds.
    #[error("the journal's stream: {0}")]
    Wire(#[from] WireError),
    /// This device's journal failed.
    #[error("{0}")]
    Journal(#[from] AskError),
    /// This device is in no group, so there is nothing to replicate.
    #[error("this device is in no group")]
    NoGroup,
}

impl Ended {
    /// The code with which to close the connection.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Session(End::Refused(code) | End::RefusedByPeer(code)) => match code {
                RefuseCode::NotMember => CloseCode::NotMember,
                RefuseCode::Removed => CloseCode::Removed,
                RefuseCode::Group => CloseCode::WrongGroup,
                RefuseCode::Version => CloseCode::Version,
                RefuseCode::ClockSkew
                | RefuseCode::Future
                | RefuseCode::Quota
                | RefuseCode::Author
                | RefuseCode::Full
                | RefuseCode::Other(_) => CloseCode::Protocol,
            },
            Self::Session(End::Protocol(_)) | Self::Wire(_) | Self::Finished => CloseCode::Protocol,
            Self::Session(End::Silent) => CloseCode::Slow,
            Self::Session(End::LeftGroup) | Self::NoGroup => CloseCode::Ok,
            Self::Frame(error) => error.close_code(),
            Self::Journal(AskError::Closed) => CloseCode::Shutdown,
            Self::Journal(error) if error.is_disk_full() => CloseCode::Full,
            Self::Journal(AskError::Journal(_)) => CloseCode::Internal,
        }
    }

    /// What the peer may learn of the reason: nothing of this device's disk.
    pub fn close_detail(&self) -> String {
        match self {
            Self::Journal(_) => "the journal cannot be used now".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether it ends the connection too. Devices with different versions of the journal's
    /// protocol still sync their assets.
    pub fn is_connections(&self) -> bool {
        let version = RefuseCode::Version;
        !matches!(self, Self::Session(End::Refused(code) | End::RefusedByPeer(code)) if *code == version)
    }

    /// Whether the peer has refused us, and is about to close the connection with its reason.
    pub fn is_peers_to_close(&self) -> bool {
        matches!(self, Self::Session(End::RefusedByPeer(_)))
    }
}
