//! What two engines say to each other on the control stream. The words are `proto/peer.proto`'s;
//! `wire` turns them into bytes and refuses what is out of bounds.

use crate::core::ids::{GroupId, Hash, HashAlgorithm, StoreId};
use crate::core::reconcile::{ReconcileMessage, SetSummary};

/// A message of the control stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Who speaks; first, once.
    Hello(Hello),
    /// The sender's set; equal fingerprints mean in sync.
    Summary(Box<SetSummary>),
    /// A step of finding the difference.
    Reconcile(ReconcileMessage),
    /// "Send me these."
    Solicit(Vec<Hash>),
    /// "Send me these, before all else."
    SolicitNow(Vec<Hash>),
    /// Solicited and not to be had.
    Lacking(Vec<Hash>),
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The group the sender belongs to.
    pub group_id: GroupId,
    /// For people; control characters removed by the receiver.
    pub device_name: String,
    /// The sender's store.
    pub store_id: StoreId,
    /// How it names assets.
    pub algorithm: HashAlgorithm,
    /// Program version, for status and logs only.
    pub build: String,
    /// The sender keeps a journal, and its stream may be opened.
    pub journal: bool,
}
