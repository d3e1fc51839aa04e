//! Answers why an asset is, or is not, on each device: [`lookup`] reads what the store and the
//! journal have of it, and [`crate::core::why`] decides from that and from the state of the engine.

use std::collections::BTreeMap;

use super::fact::Fact;
use super::handle::Reply;
use super::live::Live;
use super::parts::Parts;
use super::requests::meant_asset;
use crate::clock::wall_ms;
use crate::copies::lookup;
use crate::core::engine::Engine;
use crate::core::ids::Hash;
use crate::core::lookup::HashPrefix;
use crate::core::peers::ConnId;
use crate::core::why::{self, AssetWhy, Limits, Moment, PeerSeen, Seen};
use crate::replica::picture::StoreView;

/// Looks the asset up and sends [`Fact::Why`].
pub(super) fn look(parts: &mut Parts, engine: &Engine, hash: &HashPrefix, reply: Reply<AssetWhy>) {
    let hash = match meant_asset(engine, hash) {
        Ok(hash) => hash,
        Err(error) => {
            // The requester may have gone.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let (store, journal, facts) = (parts.store.clone(), parts.journal.clone(), parts.facts.clone());
    let keeper = parts.keeper.clone();
    parts.tasks.spawn("why", async move {
        match lookup::seen(&*store, &journal, &keeper, hash).await {
            Ok(seen) => facts.send(Fact::Why { hash, seen, reply }).await,
            Err(error) => {
                // The requester may have gone.
                let _ = reply.send(Err(error));
            }
        }
    });
}

/// The answer, as of now.
pub(super) fn explain(
    parts: &Parts,
    engine: &Engine,
    store: &StoreView,
    live: &BTreeMap<ConnId, Live>,
    hash: Hash,
    seen: Seen,
) -> AssetWhy {
    let moment = Moment { mono_ms: parts.clock.now_ms(), wall_ms: wall_ms() };
    let of_peer = |live: &Live| PeerSeen {
        put_off: live.put_off.clone(),
        refused: live.refused.get(&hash).cloned(),
        left_bytes: live.counters.left_to_receive_bytes(),
    };
    let in_force = parts.throttle.status().unwrap_or_default();
    let least = |all: Option<u64>, each: Option<u64>| all.into_iter().chain(each).min();
    let seen = Seen {
        shortage: store.shortage.clone(),
        store_error: seen.store_error.or_else(|| store.error.clone()),
        left_bytes: parts.ctx.partials.left_bytes(&hash),
        limits: Limits {
            up_bytes: least(in_force.up_bytes, in_force.up_per_peer_bytes),
            down_bytes: least(in_force.down_bytes, in_force.down_per_peer_bytes),
        },
        last_seen: parts.alerts.borrow().last_seen.clone(),
        peers: live.values().map(|live| (live.connection.peer(), of_peer(live))).collect(),
        added_by: seen.added_by.map(|(adder, name)| match adder == parts.node_id {
            true => (adder, "this device".to_owned()),
            false => (adder, name),
        }),
        ..seen
    };
    why::why(hash, moment, &engine.explain(moment.mono_ms, &hash), &seen)
}
