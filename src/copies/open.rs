//! One asset for which proofs are gathered: what each of the other devices has answered so far.

use std::collections::BTreeMap;

use crate::clock::wall_ms;
use crate::core::ids::{Digest, NodeId};
use crate::core::leases::{Gathering, Lack};

use super::gathered::GatherRequest;

/// One asset of a batch.
pub(super) struct Open {
    pub(super) digest: Digest,
    pub(super) gathering: Gathering,
    /// When each device proved it.
    pub(super) proven_at: BTreeMap<NodeId, u64>,
    pub(super) lacking: BTreeMap<NodeId, Lack>,
}

impl Open {
    pub(super) fn new(digest: Digest, request: &GatherRequest) -> Self {
        let gathering = Gathering::new(request.copies, request.sites);
        Self { digest, gathering, proven_at: BTreeMap::new(), lacking: BTreeMap::new() }
    }

    /// `lease_ms`: what was promised, if a promise was asked for.
    pub(super) fn proves(&mut self, device: NodeId, site: &str, lease_ms: Option<u64>) {
        self.lacking.remove(&device);
        match lease_ms {
            Some(0) => {
                self.gathering.lacking(device, Lack::CannotPromise);
                self.lacking.insert(device, Lack::CannotPromise);
            }
            Some(lease_ms) => self.gathering.proven(device, site, lease_ms),
            None => {}
        }
        self.proven_at.insert(device, wall_ms());
    }

    pub(super) fn lacks(&mut self, device: NodeId, lack: Lack) {
        self.gathering.lacking(device, lack);
        self.proven_at.remove(&device);
        self.lacking.insert(device, lack);
    }
}
