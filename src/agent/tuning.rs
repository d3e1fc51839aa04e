//! What may change while the agent runs, and the addresses that a person named for members.

use std::collections::BTreeMap;

use crate::core::alerts::Thresholds;
use crate::core::hooks::Hook;
use crate::core::ids::NodeId;
use crate::core::rate::RateLimits;
use crate::net::NamedAddress;

/// The part of the configuration that may change while the agent runs; see
/// [`Handle::tune`](super::handle::Handle::tune).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// The limits of the transfer rates.
    pub rate_limits: RateLimits,
    /// Where members are looked for when the addresses known of them lead nowhere.
    pub named_peers: Vec<NamedAddress>,
    /// From when on the user is alerted.
    pub alerts: Thresholds,
    /// What is called with events.
    pub hooks: Vec<Hook>,
}

/// The addresses that a person named. Which member is at which of them is not known, so each dial
/// of a member tries the next one.
#[derive(Debug, Default)]
pub(super) struct NamedPeers {
    addresses: Vec<NamedAddress>,
    /// The number of addresses tried for each member since the addresses were set.
    tried: BTreeMap<NodeId, usize>,
}

impl NamedPeers {
    pub(super) fn new(addresses: Vec<NamedAddress>) -> Self {
        Self { addresses, tried: BTreeMap::new() }
    }

    /// Replaces the addresses.
    pub(super) fn set(&mut self, addresses: Vec<NamedAddress>) {
        *self = Self::new(addresses);
    }

    /// The address for the next dial of this member; `None` when none was named.
    pub(super) fn next_for(&mut self, member: NodeId) -> Option<NamedAddress> {
        if self.addresses.is_empty() {
            return None;
        }
        let tried = self.tried.entry(member).or_default();
        let address = self.addresses[*tried % self.addresses.len()].clone();
        *tried = tried.wrapping_add(1);
        Some(address)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_member_is_looked_for_at_each_named_address_in_turn() {
        let named = |text: &str| text.parse::<NamedAddress>().unwrap();
        let mut peers = NamedPeers::new(vec![named("a:1"), named("b:1")]);
        let (x, y) = (NodeId([1; 32]), NodeId([2; 32]));
        let tried = [x, y, x, y, x].map(|member| peers.next_for(member).unwrap().to_string());
        assert_eq!(tried, ["a:1", "a:1", "b:1", "b:1", "a:1"]);
        peers.set(Vec::new());
        assert_eq!(peers.next_for(x), None);
    }
}
