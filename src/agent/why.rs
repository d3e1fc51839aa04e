//! Answers why an asset is, or is not, on each device: looks the asset up in the store and in the
//! journal, and lets [`crate::core::why`] decide from that and from the state of the engine.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::fact::Fact;
use super::handle::{Reply, RequestError};
use super::live::Live;
use super::parts::Parts;
use super::requests::meant_asset;
use crate::clock::wall_ms;
use crate::core::copies::Absence;
use crate::core::engine::Engine;
use crate::core::ids::{Hash, NodeId};
use crate::core::lookup::HashPrefix;
use crate::core::pairing::shown_name;
use crate::core::peers::ConnId;
use crate::core::why::{self, AssetWhy, Here, Limits, Moment, PeerSeen, Seen, Unwanted};
use crate::group::{internal, journal_error};
use crate::replica::journal::JournalHandle;
use crate::replica::picture::StoreView;
use crate::store::Store;

/// The deadline of the store's answer. A store that does not answer is one of the reasons.
const STORE_WAIT: Duration = Duration::from_secs(5);

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
        match added_by(&journal, hash).await {
            Ok(added_by) => {
                let (here, is_evicted, store_error) = here(&*store, hash).await;
                let (absence, holders) = match keeper.holders(hash).await {
                    Ok(found) => found,
                    Err(error) => {
                        // The requester may have gone.
                        let _ = reply.send(Err(internal("reading who holds the asset", &error)));
                        return;
                    }
                };
                let unwanted = match absence {
                    _ if is_evicted => Some(Unwanted::Evicted),
                    Some(Some(Absence::Unwanted)) => Some(Unwanted::Expression),
                    Some(Some(Absence::Missing) | None) | None => None,
                };
                let holders =
                    holders.iter().map(|peer| (peer.node_id, peer.confirmed_ms)).collect();
                let seen =
                    Seen { here, unwanted, holders, store_error, added_by, ..Seen::default() };
                facts.send(Fact::Why { hash, seen, reply }).await;
            }
            Err(error) => {
                // The requester may have gone.
                let _ = reply.send(Err(error));
            }
        }
    });
}

/// What the store has of the asset, whether its copy was deleted on purpose, and why the store does not
/// answer, if so.
async fn here(store: &dyn Store, hash: Hash) -> (Here, bool, Option<String>) {
    match timeout(STORE_WAIT, store.lookup(hash)).await {
        Ok(Ok(Some(asset))) if asset.is_evicted => (Here::Absent, true, None),
        Ok(Ok(Some(asset))) if asset.is_damaged => (Here::Damaged, false, None),
        Ok(Ok(Some(_))) => (Here::Whole, false, None),
        Ok(Ok(None)) => (Here::Absent, false, None),
        Ok(Err(error)) => (Here::Absent, false, Some(error.to_string())),
        Err(_) => {
            let seconds = STORE_WAIT.as_secs();
            (Here::Absent, false, Some(format!("it did not answer within {seconds} s")))
        }
    }
}

/// The device that added the asset, with its name.
async fn added_by(
    journal: &JournalHandle,
    hash: Hash,
) -> Result<Option<(NodeId, String)>, RequestError> {
    let found = journal.read(move |reader| {
        let Some(adder) = reader.adders(&[hash])?.into_iter().next().flatten() else {
            return Ok(None);
        };
        let member = reader.members()?.into_iter().find(|member| member.device == adder);
        let name = member.map_or_else(String::new, |member| member.name);
        Ok(Some((adder, shown_name(&name, &adder))))
    });
    found.await.map_err(|error| journal_error("reading who added the asset", &error))
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
        peers: live.values().map(|live| (live.connection.peer(), of_peer(live))).collect(),
        ..seen
    };
    why::why(hash, moment, &engine.explain(moment.mono_ms, &hash), &seen)
}
