//! The tasks of requests about the group, and of pairing and introduction. The work itself is in
//! [`crate::group`]; here each result is answered or becomes a fact.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::fact::Fact;
use super::handle::{
    LeaveReply, PairReply, RemoveReply, RemoveRequest, RenameReply, Reply, RevokeReply,
    TicketReply, TicketTerms,
};
use super::parts::Parts;
use crate::clock::wall_ms;
use crate::core::engine::Input;
use crate::core::ids::NodeId;
use crate::core::journal::session::Standing;
use crate::group::pairing::{Compare, Host, Redeemer, make_ticket, revoke_tickets};
use crate::group::{changes, follow, introductions};
use crate::net::{Acceptor, Admission, Connection, Verdict};
use crate::replica::status::{PeerStatus, Status};

/// How long a request that was carried out waits until the status shows it.
const SHOWN_WAIT: Duration = Duration::from_secs(2);

/// Makes the acceptor, which admits the members of this group.
pub(super) fn admission(parts: &Parts) -> Acceptor {
    let roster = parts.journal.roster();
    let (members, tokens, others) = (roster.clone(), roster.clone(), roster.clone());
    let verdict = move |node_id: NodeId| match members.standing(&node_id) {
        Standing::Member => Verdict::Member,
        Standing::Removed => Verdict::Removed,
        Standing::Stranger => Verdict::Stranger,
    };
    let pairing_open = move || tokens.is_pairing_open(wall_ms());
    let introductions_open = move || others.may_be_introduced_to();
    parts.net.acceptor(Admission {
        verdict: Box::new(verdict),
        pairing_open: Box::new(pairing_open),
        introductions_open: Box::new(introductions_open),
    })
}

/// Removes a device from the group.
pub(super) fn remove(parts: &mut Parts, request: RemoveRequest, reply: Reply<RemoveReply>) {
    let (journal, me) = (parts.journal.clone(), parts.node_id);
    let (events, status) = (parts.events.clone(), parts.status.subscribe());
    parts.tasks.spawn("remove a device", async move {
        let result = changes::remove_device(&journal, &events, me, &request).await;
        if let Ok(removed) = &result
            && !request.dry_run
        {
            let is_gone = |peer: &PeerStatus| peer.node_id != removed.node_id;
            until_shown(status, |status| status.peers.iter().all(is_gone)).await;
        }
        // The requester may have gone.
        let _ = reply.send(result);
    });
}

/// Leaves the group.
pub(super) fn leave(parts: &mut Parts, reply: Reply<LeaveReply>) {
    let (journal, home) = (parts.journal.clone(), parts.home.clone());
    let (me, facts) = (parts.node_id, parts.facts.clone());
    parts.tasks.spawn("leave the group", async move {
        let left = changes::leave_group(&journal, home, me).await;
        let fact = match left {
            Ok(LeaveReply { new_device: false }) => Fact::Left { reply },
            ended => {
                let stop = ended.is_ok();
                // The requester may have gone.
                let _ = reply.send(ended);
                if !stop {
                    return;
                }
                Fact::StartOver
            }
        };
        facts.send(fact).await;
    });
}

/// Gives this device another name.
pub(super) fn rename(parts: &mut Parts, name: String, reply: Reply<RenameReply>) {
    let journal = parts.journal.clone();
    let status = parts.status.subscribe();
    parts.tasks.spawn("rename", async move {
        let result = changes::rename_device(&journal, &name).await;
        if let Ok(name) = &result {
            until_shown(status, |status| status.device.name == *name).await;
        }
        // The requester may have gone.
        let _ = reply.send(result.map(|name| RenameReply { name }));
    });
}

/// Waits until the status shows what a request did, so that a status read after the answer includes
/// it. Gives up on a loop that is very busy or stopping: the request was carried out in any case.
async fn until_shown(mut status: watch::Receiver<Status>, shows: impl FnMut(&Status) -> bool) {
    let _ = timeout(SHOWN_WAIT, status.wait_for(shows)).await;
}

/// Makes a ticket.
pub(super) fn ticket(parts: &mut Parts, terms: TicketTerms, reply: Reply<TicketReply>) {
    let (journal, net) = (parts.journal.clone(), parts.net.clone());
    parts.tasks.spawn("make a ticket", async move {
        // The requester may have gone.
        let _ = reply.send(make_ticket(&journal, &net, terms).await);
    });
}

/// Ends tickets before their time.
pub(super) fn revoke(parts: &mut Parts, id: Option<String>, reply: Reply<RevokeReply>) {
    let journal = parts.journal.clone();
    parts.tasks.spawn("revoke tickets", async move {
        // The requester may have gone.
        let _ = reply.send(revoke_tickets(&journal, id).await);
    });
}

/// Redeems a ticket.
pub(super) fn pair(parts: &mut Parts, text: String, verify: bool, reply: Reply<PairReply>) {
    let joiner = Redeemer {
        compare: compare(parts),
        journal: parts.journal.clone(),
        net: parts.net.clone(),
        events: parts.events.clone(),
        algorithm: parts.ctx.algorithm,
    };
    let facts = parts.facts.clone();
    parts.tasks.spawn("pair", async move {
        let result = joiner.redeem(&text, verify).await;
        facts.send(Fact::Joined { result, reply }).await;
    });
}

/// Runs the inviter's side of a pairing with a joiner that connected.
pub(super) fn host(parts: &mut Parts, connection: Connection) {
    let host = Host {
        compare: compare(parts),
        journal: parts.journal.clone(),
        events: parts.events.clone(),
        me: parts.node_id,
        algorithm: parts.ctx.algorithm,
    };
    let facts = parts.facts.clone();
    parts.tasks.spawn("pairing", async move {
        let joiner = connection.peer();
        let source = connection.remote_addresses().into_iter().next().unwrap_or_default();
        let Err(error) = host.run(connection).await else { return };
        if error.is_strangers() {
            let why = error.to_string();
            facts.send(Fact::NotPaired { joiner, source, why }).await;
        } else {
            tracing::warn!(peer = %joiner.short(), source, %error, "a device was not paired");
        }
    });
}

fn compare(parts: &mut Parts) -> Compare<Fact> {
    Compare { id: parts.ids.next(), events: parts.facts.sender() }
}

/// Introduces this device to a member that refused it.
pub(super) fn introduce(parts: &mut Parts, member: NodeId, addresses: Vec<String>) {
    let (journal, net, facts) = (parts.journal.clone(), parts.net.clone(), parts.facts.clone());
    parts.tasks.spawn("introduce this device", async move {
        if introductions::introduce(&journal, &net, member, &addresses).await {
            facts.send(Fact::Input(Input::Seen(member))).await;
        }
    });
}

/// Answers the introduction of a device that this one does not know, or that was removed.
pub(super) fn be_introduced(parts: &mut Parts, connection: Connection) {
    let (journal, events, me) = (parts.journal.clone(), parts.events.clone(), parts.node_id);
    parts.tasks.spawn("introduction", async move {
        introductions::be_introduced(&journal, &events, me, connection).await;
    });
}

/// Writes at which addresses a member was reached.
pub(super) fn record_addresses(parts: &mut Parts, peer: NodeId, addresses: Vec<String>) {
    let journal = parts.journal.clone();
    parts.tasks.spawn("record addresses", async move {
        follow::note_addresses(&journal, peer, addresses).await;
    });
}
