//! The session with one connected peer: the assets that wait to be sent ([`lanes`]), the comparison
//! of sets ([`compare`]), and the state of the plain protocol ([`plain`]). Decides which assets share
//! a batch, and when nothing is under way.

mod compare;
mod lanes;
mod plain;

use std::collections::BTreeSet;

use crate::core::close::CloseCode;
use crate::core::message::Hello;
use crate::core::peers::ConnId;
use crate::core::wants::BatchId;

use self::compare::Compare;
pub use self::lanes::Lane;
use self::lanes::Lanes;
pub(crate) use self::plain::Plain;

/// The session on one connection.
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    pub(crate) dialed: bool,
    pub(crate) since_ms: u64,
    /// Set when we are closing the connection, with the close code.
    pub(crate) closing: Option<CloseCode>,
    pub(crate) hello: Option<Hello>,
    /// When the peer last gave a sign of life.
    pub(crate) heard_ms: u64,
    /// The batches that the peer is sending to us. A batch that ends without an `Offered` was never
    /// in this map: all its assets were known, or its stream broke first.
    pub(crate) receiving: BTreeSet<BatchId>,
    pub(crate) lanes: Lanes,
    pub(crate) compare: Compare,
    /// `None` on a connection that speaks `can-sync/2`.
    pub(crate) plain: Option<Plain>,
}

impl Session {
    pub(crate) fn new(now_ms: u64, conn: ConnId, dialed: bool, plain: bool) -> Self {
        Self {
            conn,
            dialed,
            since_ms: now_ms,
            closing: None,
            hello: None,
            heard_ms: now_ms,
            receiving: BTreeSet::new(),
            lanes: Lanes::default(),
            compare: Compare::default(),
            plain: plain.then(Plain::default),
        }
    }

    /// Notes that a message of the peer arrived.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    /// The number of assets still to be sent to the peer, as far as known.
    pub(crate) fn missing_there(&self) -> usize {
        self.lanes.unsent()
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.compare.reconciler.is_none() && self.receiving.is_empty() && self.missing_there() == 0
    }

    /// Whether something is under way but only large assets, which may take hours, are left to
    /// send.
    pub(crate) fn waits_for_large(&self) -> bool {
        let moves = !self.receiving.is_empty() || self.missing_there() > 0;
        self.compare.reconciler.is_none() && self.lanes.are_all_large() && moves
    }
}
