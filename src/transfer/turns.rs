//! The turns of peers: one request of a peer is worked on at a time, and few wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::ids::NodeId;

/// The requests of one peer that wait for its turn.
const WAITING_MAX: usize = 4;

/// The peers that had a turn: at most as many as the group has members.
#[derive(Default)]
pub(crate) struct Turns(Mutex<BTreeMap<NodeId, Turn>>);

struct Turn {
    gate: Arc<Semaphore>,
    waiting: usize,
}

impl Turns {
    /// Waits for the peer's turn, which lasts until the permit is dropped; `None` if too many of its
    /// requests wait already.
    pub(crate) async fn take(&self, peer: NodeId) -> Option<OwnedSemaphorePermit> {
        let gate = {
            let mut turns = self.0.lock();
            let new = || Turn { gate: Arc::new(Semaphore::new(1)), waiting: 0 };
            let turn = turns.entry(peer).or_insert_with(new);
            if turn.waiting >= WAITING_MAX {
                return None;
            }
            turn.waiting += 1;
            turn.gate.clone()
        };
        let _waiting = Waiting { turns: self, peer };
        gate.acquire_owned().await.ok()
    }
}

/// Counts a request that waits, also when it is given up.
struct Waiting<'a> {
    turns: &'a Turns,
    peer: NodeId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turns.0.lock().get_mut(&self.peer) {
            turn.waiting -= 1;
        }
    }
}
