//! The messages of two engines on the control stream. `proto/peer.proto` defines them; `wire`
//! encodes them and refuses what is out of bounds.

use crate::core::copies::{AbsentPage, AbsentSet};
use crate::core::ids::{GroupId, Hash, HashAlgorithm, StoreId};
use crate::core::reconcile::{ReconcileMessage, SetSummary};

/// A message of the control stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Introduces the sender; the first message, sent once.
    Hello(Hello),
    /// Summarises the sender's set; equal fingerprints mean in sync.
    Summary(Box<SetSummary>),
    /// A step of a reconcile.
    Reconcile(ReconcileMessage),
    /// Requests these assets.
    Solicit(Vec<Hash>),
    /// Requests these assets before all others.
    SolicitNow(Vec<Hash>),
    /// The sender cannot send these solicited assets.
    Lacking(Vec<Hash>),
    /// Summarises the hashes of the sender's set that it does not hold.
    Absent(AbsentSet),
    /// Requests the changes of the receiver's absent hashes after the position.
    AbsentPull {
        /// The log of the position.
        log: [u8; 16],
        /// The position.
        after_turn: u64,
    },
    /// Answers a pull.
    AbsentPage(Box<AbsentPage>),
    /// Requests the sizes of these hashes, which the receiver's set has.
    SizePull(Vec<Hash>),
    /// Answers a request for sizes, in its order; `None` for hashes that the sender does not hold.
    Sizes(Vec<Option<u64>>),
}

/// Introduces the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The group the sender belongs to.
    pub group_id: GroupId,
    /// The device's name for people; the receiver removes control characters.
    pub device_name: String,
    /// The sender's store.
    pub store_id: StoreId,
    /// The hash algorithm of the sender's store.
    pub algorithm: HashAlgorithm,
    /// Program version, for status and logs only.
    pub build: String,
    /// Whether the sender keeps a journal, so that the journal's stream may be opened.
    pub journal: bool,
    /// Whether the sender answers proof streams.
    pub proofs: bool,
    /// Whether the sender makes thumbnails for others.
    pub thumbnails: bool,
    /// Whether the sender tells which hashes it knows and does not hold.
    pub copies: bool,
    /// Whether the sender does not want everything: contents are not sent to it uninvited.
    pub chooses: bool,
    /// Whether the sender accepts metadata in the plain protocol.
    pub metadata: bool,
}
