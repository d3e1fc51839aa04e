//! The addresses that a person named for members of the group.

use std::collections::BTreeMap;

use super::address::NamedAddress;
use crate::core::ids::NodeId;

/// The addresses that a person named. Which member is at which of them is not known, so each dial
/// of a member tries the next one.
#[derive(Debug, Default)]
pub(crate) struct NamedPeers {
    addresses: Vec<NamedAddress>,
    /// The number of addresses tried for each member since the addresses were set.
    tried: BTreeMap<NodeId, usize>,
}

impl NamedPeers {
    /// All members are looked for at each of these.
    pub(crate) fn new(addresses: Vec<NamedAddress>) -> Self {
        Self { addresses, tried: BTreeMap::new() }
    }

    /// Replaces the addresses.
    pub(crate) fn set(&mut self, addresses: Vec<NamedAddress>) {
        *self = Self::new(addresses);
    }

    /// The address for the next dial of this member; `None` when none was named.
    pub(crate) fn next_for(&mut self, member: NodeId) -> Option<NamedAddress> {
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
