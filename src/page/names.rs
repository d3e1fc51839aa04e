//! The names of the group's devices, told apart: where two are called the same, each is shown with the
//! start of its ID.

use std::collections::BTreeMap;

use super::words::clean;
use crate::core::ids::NodeId;
use crate::replica::status::Status;

/// The names of all devices of a status.
pub(super) struct Names(BTreeMap<NodeId, String>);

impl Names {
    /// The names as they are now.
    pub(super) fn of(status: &Status) -> Self {
        let own = (status.device.node_id, clean(&status.device.name));
        let peers = status.peers.iter().map(|peer| (peer.node_id, clean(&peer.name)));
        let names: BTreeMap<NodeId, String> = std::iter::once(own).chain(peers).collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for name in names.values() {
            *counts.entry(name).or_default() += 1;
        }
        let shown = |(id, name): (&NodeId, &String)| match counts.get(name.as_str()) {
            Some(2..) => (*id, format!("{name} ({})", id.short())),
            _ => (*id, name.clone()),
        };
        Self(names.iter().map(shown).collect())
    }

    /// The name of a device; the start of its ID if it is not in the group.
    pub(super) fn get(&self, device: &NodeId) -> String {
        self.0.get(device).cloned().unwrap_or_else(|| device.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::status::{PeerState, samples};

    #[test]
    fn devices_of_one_name_are_told_apart_and_others_are_not_cluttered() {
        let peer = |name, id| samples::peer(name, id, PeerState::Idle, true);
        let status =
            samples::status(vec![peer("laptop", 1), peer("laptop", 2), peer("nas", 3)], true);
        let names = Names::of(&status);
        let [one, two, nas] = [1, 2, 3].map(|at| names.get(&status.peers[at - 1].node_id));
        assert!(one.starts_with("laptop (") && two.starts_with("laptop (") && one != two);
        assert_eq!(nas, "nas");
        assert_eq!(names.get(&NodeId([9; 32])), NodeId([9; 32]).short());
    }
}
