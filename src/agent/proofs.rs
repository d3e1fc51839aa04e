//! Starts the tasks of `safe` and `evict`: gives [`crate::copies`] the connected devices of the
//! group, and what it works with.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::live::Live;
use super::parts::Parts;
use super::start::Wakers;
use crate::copies::asking::{Asker, Other};
use crate::copies::gathered::{GatherRequest, Gathered};
use crate::copies::gatherer::Gatherer;
use crate::core::engine::Engine;
use crate::core::ids::NodeId;
use crate::core::pairing::shown_name;
use crate::core::peers::ConnId;

/// Starts a task that gathers proofs for a request.
pub(super) fn start(
    parts: &mut Parts,
    engine: &Engine,
    live: &BTreeMap<ConnId, Live>,
    wakers: &Wakers,
    request: GatherRequest,
    tell: mpsc::Sender<Gathered>,
) {
    let provers: BTreeMap<NodeId, (ConnId, bool)> =
        engine.greeted().map(|(node_id, conn, hello)| (node_id, (conn, hello.proofs))).collect();
    let sites = parts.keeper.view().sites;
    let members = engine.members().members.iter();
    let others = members.filter(|member| member.node_id != parts.node_id).map(|member| {
        let session = provers.get(&member.node_id);
        let live = session.and_then(|(conn, _)| live.get(conn));
        Other {
            node_id: member.node_id,
            name: shown_name(&member.name, &member.node_id),
            site: sites.get(&member.node_id).cloned().unwrap_or(member.node_id.to_string()),
            connection: live.map(|live| live.connection.clone()),
            proves: session.is_some_and(|(_, proves)| *proves),
        }
    });
    let asker = Asker {
        me: parts.node_id,
        store: parts.store.clone(),
        copies: parts.copies.clone(),
        algorithm: engine.identity().algorithm,
        others: others.collect(),
        wrong_proofs: parts.wrong_proofs.clone(),
        events: parts.events.clone(),
    };
    let gatherer =
        Gatherer { asker, evictor: parts.evictor(wakers.gate.clone(), wakers.nudge.clone()) };
    parts.tasks.spawn("gather proofs", gatherer.run(request, tell));
}
