//! What people order, and what devices say of the group: tickets, pairing, removal, names. Each
//! runs as a task; its result comes back as a fact.
//!
//! I1  The group on disk is changed first; the loop then reads it again. So what the engine knows
//!     of the group has always been durable.
//! I2  A write that fails for good, not for want of space, stops the agent.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::{wall_ms, wall_ms_signed};
use crate::core::close::CloseCode;
use crate::core::engine::Input;
use crate::core::ids::{GroupId, HashAlgorithm, NodeId};
use crate::core::joining::{PairAccept, PairRequest, short_code};
use crate::core::message::Members;
use crate::core::peers::ConnId;
use crate::net::Connection;
use crate::net::pairing::{self, Joiner};
use crate::net::ticket::Ticket;
use crate::net::{Acceptor, Admission, Verdict};
use crate::state::group::{Group, JoinError, LookupError, RedeemError, TicketError, is_passing};

use super::fact::{Fact, Facts};
use super::handle::{PairReply, RemoveReply, Reply, Request, RequestError, TicketReply};
use super::run::{Loop, Parts};

/// How long a ticket may be good for.
const TICKET_TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long [`Request::Check`] waits for the store's feed to be taken in.
const CHECK_WAIT: Duration = Duration::from_secs(60);

/// The accept loop with this group's members let in.
pub(super) fn admission(parts: &Parts) -> Acceptor {
    let (members, tickets) = (parts.group.clone(), parts.group.clone());
    let verdict = move |node_id: NodeId| match members.is_member(&node_id) {
        Ok(true) => Verdict::Member,
        Ok(false) => match members.removed() {
            Ok(removed) if removed.contains(&node_id) => Verdict::Removed,
            Ok(_) | Err(_) => Verdict::Stranger,
        },
        Err(error) => {
            tracing::error!("reading the group: {error:#}");
            Verdict::Stranger
        }
    };
    let pairing_open = move || {
        tickets.outstanding_tickets(wall_ms_signed()).unwrap_or_else(|error| {
            tracing::error!("reading the tickets: {error:#}");
            false
        })
    };
    parts
        .net
        .acceptor(Admission { verdict: Box::new(verdict), pairing_open: Box::new(pairing_open) })
}

/// Sets about an order.
pub(super) fn on_request(this: &mut Loop, request: Request) {
    match request {
        Request::Ticket(ttl, reply) => ticket(this, ttl, reply),
        Request::Pair(text, reply) => pair(this, text, reply),
        Request::Remove(who, reply) => remove(this, who, reply),
        Request::Rename(name, reply) => rename(this, name, reply),
        Request::Check(reply) => check(this, reply),
    }
}

fn ticket(this: &mut Loop, ttl: Duration, reply: Reply<TicketReply>) {
    let (group, net) = (this.parts.group.clone(), this.parts.net.clone());
    let facts = this.facts.clone();
    this.spawn_blocking("make a ticket", move || {
        let result = make_ticket(&group, net.node_id(), net.addresses(), ttl, &facts);
        // Who asked may have gone.
        let _ = reply.send(result);
    });
}

fn make_ticket(
    group: &Group,
    inviter: NodeId,
    addresses: Vec<String>,
    ttl: Duration,
    facts: &Facts,
) -> Result<TicketReply, RequestError> {
    if ttl.is_zero() || ttl > TICKET_TTL_MAX {
        let hours = TICKET_TTL_MAX.as_secs() / 3600;
        let text = format!("a ticket is good for more than nothing and at most {hours} hours");
        return Err(RequestError::Invalid(text));
    }
    let now_ms = wall_ms();
    let ttl_ms = ttl.as_millis() as u64;
    let secret = rand::random();
    group.create_ticket(&secret, now_ms as i64, ttl_ms as i64).map_err(|error| match error {
        TicketError::TooMany | TicketError::WeAreRemoved | TicketError::GroupFull => {
            RequestError::Refused(error.to_string())
        }
        TicketError::Database(error) => {
            on_write_error(facts, &error);
            internal("making the ticket", &error)
        }
    })?;
    let expires_ms = now_ms + ttl_ms;
    let ticket = Ticket { inviter, addresses, secret, expires_ms };
    Ok(TicketReply { ticket: ticket.to_string(), expires_ms })
}

fn pair(this: &mut Loop, text: String, reply: Reply<PairReply>) {
    let (group, net) = (this.parts.group.clone(), this.parts.net.clone());
    let algorithm = this.parts.ctx.algorithm;
    let facts = this.facts.clone();
    this.spawn("pair", async move {
        let result = redeem_ticket(group, &net, algorithm, &text, facts.clone()).await;
        facts.send(Fact::Joined { result, reply }).await;
    });
}

async fn redeem_ticket(
    group: Arc<Group>,
    net: &crate::net::Net,
    algorithm: HashAlgorithm,
    text: &str,
    facts: Facts,
) -> Result<PairReply, RequestError> {
    let ticket: Ticket =
        text.trim().parse().map_err(|error| RequestError::Invalid(format!("{error}")))?;
    let (before, inviter) = (group.clone(), ticket.inviter);
    let (name, others) = on_disk(move || {
        let members = before.members()?;
        let same_group = members.iter().any(|member| member.node_id == inviter);
        let alone = before.we_are_removed()? || same_group;
        let others = if alone { 0 } else { members.len().saturating_sub(1) };
        Ok((before.name()?, others))
    })
    .await?;
    if others > 0 {
        return Err(RequestError::Refused(format!(
            "this device is already in a group with {others} other device(s); a device is in one \
             group at a time: make the ticket on a device of this group and pair the new one, or \
             start over here as a new device (see the README)"
        )));
    }
    let own = Joiner { device_name: name, addresses: net.addresses(), hash_algorithm: algorithm };
    let accept =
        pairing::join(net, &ticket, own, wall_ms()).await.map_err(|error| match error {
            pairing::JoinError::OwnTicket | pairing::JoinError::Expired { .. } => {
                RequestError::Invalid(error.to_string())
            }
            pairing::JoinError::Refused | pairing::JoinError::HashAlgorithm { .. } => {
                RequestError::Refused(error.to_string())
            }
            pairing::JoinError::Unreachable { .. } | pairing::JoinError::Lost(_) => {
                RequestError::Temporary(error.to_string())
            }
            pairing::JoinError::Malformed(_) => RequestError::Internal(error.to_string()),
        })?;
    let joined = on_disk(move || {
        let PairAccept { group_id, members, removed, device_name } = accept;
        match group.join(&group_id, &members, &removed, wall_ms_signed()) {
            Ok(_) => Ok(Ok((device_name, group.members()?.len()))),
            Err(JoinError::Database(error)) => {
                on_write_error(&facts, &error);
                Err(error.into())
            }
            Err(refused) => Ok(Err(RequestError::Refused(refused.to_string()))),
        }
    });
    let (name, members) = joined.await??;
    let short_code = short_code(net.node_id(), inviter);
    Ok(PairReply { node_id: inviter.to_string(), name, short_code, members })
}

/// A joiner came in.
pub(super) fn host(this: &mut Loop, connection: Connection) {
    let (group, facts) = (this.parts.group.clone(), this.facts.clone());
    let algorithm = this.parts.ctx.algorithm;
    let (node_id, joiner) = (this.parts.node_id, connection.peer());
    this.spawn("pairing", async move {
        let told = facts.clone();
        let redeem = |request: PairRequest| async move {
            let redeemed = spawn_blocking(move || {
                let accept = redeem(&group, algorithm, &request, &told)?;
                // Before the joiner can do anything more: whether it confirms is up to it.
                let code = short_code(node_id, joiner);
                let device = request.device_name;
                tracing::warn!(peer = %joiner.short(), device, code, "a device joined the group");
                told.blocking_send(Fact::GroupChanged);
                Ok(accept)
            });
            redeemed.await.unwrap_or(Err(CloseCode::Internal))
        };
        if let Err(error) = pairing::host(connection, redeem).await {
            tracing::info!(peer = %joiner.short(), %error, "pairing did not end well");
        }
    });
}

fn redeem(
    group: &Group,
    algorithm: HashAlgorithm,
    request: &PairRequest,
    facts: &Facts,
) -> Result<PairAccept, CloseCode> {
    if request.hash_algorithm != algorithm {
        return Err(CloseCode::HashAlgorithm);
    }
    let PairRequest { joiner, proof, device_name, addresses, .. } = request;
    let redeemed =
        group.redeem(wall_ms_signed(), joiner, proof, device_name, addresses).map_err(|error| {
            tracing::info!(peer = %joiner.short(), %error, "a joiner was refused");
            match error {
                RedeemError::Database(error) => {
                    on_write_error(facts, &error);
                    CloseCode::Internal
                }
                RedeemError::NoTicket
                | RedeemError::WrongProof
                | RedeemError::Expired
                | RedeemError::JoinerRemoved
                | RedeemError::Ourselves
                | RedeemError::WeAreRemoved
                | RedeemError::GroupFull => CloseCode::NotMember,
            }
        })?;
    let device_name = group.name().map_err(|_| CloseCode::Internal)?;
    Ok(PairAccept {
        group_id: redeemed.group_id,
        members: redeemed.members,
        removed: redeemed.removed,
        device_name,
    })
}

fn remove(this: &mut Loop, who: String, reply: Reply<RemoveReply>) {
    let (group, facts) = (this.parts.group.clone(), this.facts.clone());
    this.spawn("remove a device", async move {
        let told = facts.clone();
        let remove = move || {
            let removed = group.remove(&who, wall_ms_signed());
            if let Err(LookupError::Database(error)) = &removed {
                on_write_error(&told, error);
            }
            removed
        };
        let result = match spawn_blocking(remove).await {
            Ok(Ok(member)) => {
                facts.send(Fact::GroupChanged).await;
                Ok(RemoveReply { node_id: member.node_id.to_string(), name: member.name })
            }
            Ok(Err(error)) => Err(match error {
                LookupError::Unknown(_) | LookupError::Ambiguous { .. } => {
                    RequestError::Unknown(error.to_string())
                }
                LookupError::Ourselves => RequestError::Invalid(error.to_string()),
                LookupError::Database(error) => internal("removing the device", &error),
            }),
            Err(error) => Err(internal("removing the device", &error)),
        };
        // Who asked may have gone.
        let _ = reply.send(result);
    });
}

fn rename(this: &mut Loop, name: String, reply: Reply<()>) {
    let (group, facts) = (this.parts.group.clone(), this.facts.clone());
    this.spawn("rename", async move {
        if crate::core::pairing::device_name(&name).is_empty() {
            let text = format!("{name:?} has no character that can be shown");
            let _ = reply.send(Err(RequestError::Invalid(text)));
            return;
        }
        let told = facts.clone();
        let rename = move || {
            let renamed = group.rename(&name, wall_ms_signed());
            Ok(renamed.inspect_err(|error| on_write_error(&told, error))?)
        };
        let result = on_disk(rename).await;
        facts.send(Fact::GroupChanged).await;
        // Who asked may have gone.
        let _ = reply.send(result.map(|_| ()));
    });
}

/// Answers once the store's feed has been taken in up to what it holds now.
fn check(this: &mut Loop, reply: Reply<()>) {
    let store = this.parts.store.clone();
    let nudge = this.nudge.clone();
    let mut taken_in = this.taken_in.subscribe();
    this.spawn("check", async move {
        let checked = timeout(CHECK_WAIT, async {
            let newest = store.info().await?.newest_cursor;
            let passes = taken_in.borrow().passes;
            loop {
                let now = *taken_in.borrow_and_update();
                // A store that does not tell its newest cursor is listed twice: the first listing
                // may have begun before the question.
                let done = if newest > 0 { now.cursor >= newest } else { now.passes >= passes + 2 };
                if done {
                    return anyhow::Ok(());
                }
                nudge.notify_one();
                taken_in.changed().await?;
            }
        });
        let result = match checked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(RequestError::Temporary(format!("{error:#}"))),
            Err(_) => {
                let seconds = CHECK_WAIT.as_secs();
                Err(RequestError::Temporary(format!(
                    "the store was not taken in within {seconds} s"
                )))
            }
        };
        // Who asked may have gone.
        let _ = reply.send(result);
    });
}

/// Takes in what a peer knows of the group.
pub(super) fn merge(this: &mut Loop, conn: ConnId, peer: NodeId, members: Members) {
    let (group, facts) = (this.parts.group.clone(), this.facts.clone());
    this.spawn_blocking("merge the group", move || {
        match group.merge(&members.members, &members.removed, wall_ms_signed()) {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => {
                for member in &changes.added {
                    tracing::info!(device = %member.node_id.short(), from = %peer.short(), "a device was added");
                }
                for node_id in &changes.removed {
                    tracing::info!(device = %node_id.short(), from = %peer.short(), "a device was removed");
                }
                facts.blocking_send(Fact::GroupChanged);
            }
            Err(error) => {
                on_write_error(&facts, &error);
                tracing::warn!("writing the group: {error:#}");
            }
        }
        facts.blocking_send(Fact::Input(Input::Merged { conn }));
    });
}

/// A member closed a connection because the group, `of`, has removed this device.
pub(super) fn note_own_removal(this: &mut Loop, of: GroupId, by: NodeId) {
    let (group, facts) = (this.parts.group.clone(), this.facts.clone());
    this.spawn_blocking("note own removal", move || {
        match group.we_were_removed(&of, wall_ms_signed()) {
            Ok(()) => {
                tracing::warn!(by = %by.short(), "this device was removed from its group");
                facts.blocking_send(Fact::GroupChanged);
            }
            Err(error) => {
                on_write_error(&facts, &error);
                tracing::warn!("writing the group: {error:#}");
            }
        }
    });
}

/// Notes where a member was reached.
pub(super) fn record_addresses(this: &mut Loop, peer: NodeId, addresses: Vec<String>) {
    let (group, facts) = (this.parts.group.clone(), this.facts.clone());
    this.spawn_blocking("record addresses", move || {
        if let Err(error) = group.record_addresses(&peer, &addresses) {
            on_write_error(&facts, &error);
            tracing::warn!("writing a member's addresses: {error:#}");
        }
    });
}

/// See I2. Blocking.
fn on_write_error(facts: &Facts, error: &rusqlite::Error) {
    if !is_passing(error) {
        let reason =
            anyhow::anyhow!("the group cannot be written, restart to see it as it is: {error}");
        facts.blocking_send(Fact::Fatal(reason));
    }
}

/// Runs disk work on a blocking thread.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, RequestError> {
    match spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(internal("reading or writing the group", &error)),
        Err(error) => Err(internal("reading or writing the group", &error)),
    }
}

fn internal(tried: &str, error: &dyn std::fmt::Display) -> RequestError {
    RequestError::Internal(format!("{tried}: {error:#}"))
}
