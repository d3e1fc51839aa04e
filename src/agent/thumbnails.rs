//! Asks peers for the thumbnail of an asset that is not here: those first that were confirmed to hold it.

use std::collections::{BTreeMap, BTreeSet};

use super::handle::Reply;
use super::live::Live;
use super::parts::Parts;
use crate::core::engine::Engine;
use crate::core::ids::{Hash, NodeId};
use crate::core::peers::ConnId;
use crate::core::thumbnail::Answer;
use crate::net::Connection;

/// Starts a task that asks, and replies.
pub(super) fn ask(
    parts: &mut Parts,
    engine: &Engine,
    live: &BTreeMap<ConnId, Live>,
    hash: Hash,
    reply: Reply<Answer>,
) {
    let able = engine.greeted().filter(|(_, _, hello)| hello.thumbnails);
    let connections = able.filter_map(|(_, conn, _)| Some(live.get(&conn)?.connection.clone()));
    let mut peers: Vec<Connection> = connections.collect();
    let (thumbnails, keeper) = (parts.thumbnails.clone(), parts.keeper.clone());
    parts.tasks.spawn("ask for a thumbnail", async move {
        let holders: BTreeSet<NodeId> = match keeper.holders(hash).await {
            Ok((_, holders)) => holders.into_iter().map(|holder| holder.node_id).collect(),
            Err(error) => {
                tracing::debug!("looking up the holders of an asset: {error:#}");
                BTreeSet::new()
            }
        };
        peers.sort_by_key(|peer| !holders.contains(&peer.peer()));
        // The requester may have gone.
        let _ = reply.send(Ok(thumbnails.ask(hash, peers).await));
    });
}
