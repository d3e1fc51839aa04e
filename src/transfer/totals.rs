//! What moved between this device and each member since the start, over all connections: counters
//! that only rise, for metrics.

use std::collections::BTreeMap;

use super::Counters;
use crate::core::ids::NodeId;
use crate::net::{Connection, QuicStats};

/// The counters of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// The connections so far.
    pub connections: u64,
    /// Asset bytes sent.
    pub sent_bytes: u64,
    /// Asset bytes received.
    pub received_bytes: u64,
    /// QUIC's own counters.
    pub quic: QuicStats,
}

/// The counters of all members over connections that have ended.
#[derive(Debug, Default)]
pub(crate) struct Totals(BTreeMap<NodeId, PeerTotals>);

impl PeerTotals {
    fn add(&mut self, connection: &Connection, counters: &Counters) {
        self.connections += 1;
        self.sent_bytes += counters.sent_bytes();
        self.received_bytes += counters.received_bytes();
        self.quic.add(&connection.quic_stats());
    }
}

impl Totals {
    /// Adds a connection that has ended. The counters of devices that are no members any more are
    /// dropped, so that there are never more than members.
    pub(crate) fn ended(
        &mut self,
        connection: &Connection,
        counters: &Counters,
        is_member: impl Fn(&NodeId) -> bool,
    ) {
        self.0.retain(|device, _| is_member(device));
        let peer = connection.peer();
        if is_member(&peer) {
            self.0.entry(peer).or_default().add(connection, counters);
        }
    }

    /// The counters of all members that were ever connected, those of `live` connections included.
    pub(crate) fn now<'a>(
        &self,
        live: impl Iterator<Item = (&'a Connection, &'a Counters)>,
    ) -> BTreeMap<NodeId, PeerTotals> {
        let mut all = self.0.clone();
        for (connection, counters) in live {
            all.entry(connection.peer()).or_default().add(connection, counters);
        }
        all
    }
}
