//! What people order, and what devices say of the group: tickets, pairing, removal, names. Each
//! runs as a task; its result comes back as a fact.
//!
//! I1  The group on disk is changed first; the loop is told of it afterwards. So what the engine
//!     knows of the group has always been durable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::wall_ms;
use crate::core::close::CloseCode;
use crate::core::engine::Input;
use crate::core::ids::{GroupId, Hash, HashAlgorithm, NodeId};
use crate::core::joining::{Introduction, PairAccept, PairRequest, short_code};
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut};
use crate::core::journal::log::{DeviceState, LogEvent};
use crate::core::journal::op::{SignedOp, Value};
use crate::core::journal::session::Standing;
use crate::core::limits::FETCHES_MAX;
use crate::core::lookup::{self, HashPrefix, LookupError};
use crate::core::pairing::{Member, device_name, shown_name, ticket_key};
use crate::net::Connection;
use crate::net::introduction;
use crate::net::pairing::{self, Joiner};
use crate::net::ticket::Ticket;
use crate::net::{Acceptor, Admission, Net, Verdict};
use crate::state::home::Home;
use crate::state::identity::Identity;
use crate::state::journal::{Admitted, GroupState, JournalError, VerifiedOp, verify};

use super::fact::Fact;
use super::handle::{
    FetchOrder, FetchReply, FetchState, FetchView, LeaveReply, PairReply, RemoveOrder, RemoveReply,
    RemovedToo, RenameReply, Reply, Request, RequestError, TicketReply,
};
use super::run::{Loop, Parts};
use crate::replica::events::EventLog;
use crate::replica::journal::{AskError, JournalHandle};
use crate::replica::status::{PeerStatus, Status};

/// How long a ticket may be good for.
const TICKET_TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long an order that was carried out waits until the status shows it.
const SHOWN_WAIT: Duration = Duration::from_secs(2);

/// How long [`Request::Check`] waits for the store's feed to be taken in.
const CHECK_WAIT: Duration = Duration::from_secs(60);

/// The accept loop with this group's members let in.
pub(super) fn admission(parts: &Parts) -> Acceptor {
    let roster = parts.journal.roster();
    let (members, tokens, others) = (roster.clone(), roster.clone(), roster.clone());
    let verdict = move |node_id: NodeId| match members.standing(&node_id) {
        Standing::Member => Verdict::Member,
        Standing::Removed => Verdict::Removed,
        Standing::Stranger => Verdict::Stranger,
    };
    let pairing_open = move || tokens.is_pairing_open(wall_ms());
    let introductions_open = move || others.author_count() > 1;
    parts.net.acceptor(Admission {
        verdict: Box::new(verdict),
        pairing_open: Box::new(pairing_open),
        introductions_open: Box::new(introductions_open),
    })
}

/// Sets about an order.
pub(super) fn on_request(this: &mut Loop, request: Request) {
    match request {
        Request::Ticket(ttl, reply) => ticket(this, ttl, reply),
        Request::Pair(text, reply) => pair(this, text, reply),
        Request::Remove(order, reply) => remove(this, order, reply),
        Request::Rename(name, reply) => rename(this, name, reply),
        Request::Leave(reply) => leave(this, reply),
        Request::Fetch(order, reply) => fetch(this, order, reply),
        Request::Check(reply) => check(this, reply),
    }
}

fn ticket(this: &mut Loop, ttl: Duration, reply: Reply<TicketReply>) {
    let (journal, net) = (this.parts.journal.clone(), this.parts.net.clone());
    this.spawn("make a ticket", async move {
        // Who asked may have gone.
        let _ = reply.send(make_ticket(&journal, &net, ttl).await);
    });
}

async fn make_ticket(
    journal: &JournalHandle,
    net: &Net,
    ttl: Duration,
) -> Result<TicketReply, RequestError> {
    if ttl.is_zero() || ttl > TICKET_TTL_MAX {
        let hours = TICKET_TTL_MAX.as_secs() / 3600;
        let text = format!("a ticket is good for more than nothing and at most {hours} hours");
        return Err(RequestError::Invalid(text));
    }
    let secret = rand::random();
    let key = ticket_key(&secret);
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let made = journal.run(move |journal, now_ms| {
        let expires_ms = now_ms.saturating_add(ttl_ms);
        journal.create_token(&key, now_ms, expires_ms)?;
        Ok(expires_ms)
    });
    let expires_ms = made.await.map_err(|error| asked("making the ticket", &error))?;
    let (inviter, addresses) = (net.node_id(), net.addresses());
    let ticket = Ticket { inviter, addresses, secret, expires_ms };
    Ok(TicketReply { ticket: ticket.to_string(), expires_ms })
}

fn pair(this: &mut Loop, text: String, reply: Reply<PairReply>) {
    let (journal, net) = (this.parts.journal.clone(), this.parts.net.clone());
    let algorithm = this.parts.ctx.algorithm;
    let facts = this.facts.clone();
    this.spawn("pair", async move {
        let result = redeem_ticket(&journal, &net, algorithm, &text).await;
        facts.send(Fact::Joined { result, reply }).await;
    });
}

async fn redeem_ticket(
    journal: &JournalHandle,
    net: &Net,
    algorithm: HashAlgorithm,
    text: &str,
) -> Result<PairReply, RequestError> {
    let ticket: Ticket =
        text.trim().parse().map_err(|error| RequestError::Invalid(format!("{error}")))?;
    let (me, inviter) = (net.node_id(), ticket.inviter);
    let own = group_state(journal, me).await?;
    let members = &own.members.members;
    let others = members.iter().filter(|member| member.node_id != me).count();
    let is_removed = own.members.removed.contains(&me);
    if others > 0 && !is_removed && !members.iter().any(|member| member.node_id == inviter) {
        return Err(RequestError::Refused(format!(
            "this device is already in a group with {others} other device(s); a device is in one \
             group at a time: make the ticket on a device of this group and pair the new one, or \
             leave the group here first with `can-sync leave`"
        )));
    }
    let addresses = net.addresses();
    let joiner = Joiner { device_name: own.name, addresses, hash_algorithm: algorithm };
    let accept =
        pairing::join(net, &ticket, joiner, wall_ms()).await.map_err(|error| match error {
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
    let PairAccept { group_id, intro, members, device_name: name } = accept;
    let intro = verified(group_id, intro).await?;
    let joined = journal.run(move |journal, now_ms| journal.join(group_id, &intro, now_ms));
    joined.await.map_err(|error| asked("joining the group", &error))?;
    note_addresses(journal, inviter, ticket.addresses).await;
    let short_code = short_code(me, inviter);
    let members = members as usize;
    Ok(PairReply { node_id: inviter.to_string(), name, short_code, members })
}

/// The ops of an introduction, if each is what its author signed.
async fn verified(group: GroupId, ops: Vec<SignedOp>) -> Result<Vec<VerifiedOp>, RequestError> {
    let verify = move || ops.into_iter().map(|op| verify(&group, op)).collect::<Result<_, _>>();
    let verified = spawn_blocking(verify).await.map_err(|error| internal("verifying", &error))?;
    verified.map_err(|error| internal("the other device's introduction is not genuine", &error))
}

/// A joiner came in.
pub(super) fn host(this: &mut Loop, connection: Connection) {
    let (journal, events) = (this.parts.journal.clone(), this.parts.events.clone());
    let algorithm = this.parts.ctx.algorithm;
    let (node_id, joiner) = (this.parts.node_id, connection.peer());
    this.spawn("pairing", async move {
        let redeem = |request: PairRequest| async move {
            let device = request.device_name.clone();
            let accept = redeem(&journal, node_id, algorithm, request).await?;
            // Before the joiner can do anything more: whether it confirms is up to it.
            let code = short_code(node_id, joiner);
            tracing::warn!(peer = %joiner.short(), device, code, "a device joined the group");
            events.tell(LogEvent::DevicePaired { device: joiner, name: device });
            Ok(accept)
        };
        if let Err(error) = pairing::host(connection, redeem).await {
            tracing::info!(peer = %joiner.short(), %error, "pairing did not end well");
        }
    });
}

async fn redeem(
    journal: &JournalHandle,
    me: NodeId,
    algorithm: HashAlgorithm,
    request: PairRequest,
) -> Result<PairAccept, CloseCode> {
    let PairRequest { joiner, proof, device_name, addresses, hash_algorithm } = request;
    if hash_algorithm != algorithm && journal.roster().fits(&me, &joiner, &proof, wall_ms()) {
        return Err(CloseCode::HashAlgorithm);
    }
    let redeemed =
        journal.run(move |journal, now_ms| journal.redeem(&joiner, &proof, &device_name, now_ms));
    let Admitted { group, intro } = match redeemed.await {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(error)) => {
            tracing::info!(peer = %joiner.short(), %error, "a joiner was refused");
            return Err(CloseCode::NotMember);
        }
        Err(error) => {
            tracing::warn!(peer = %joiner.short(), %error, "a joiner could not be let in");
            return Err(match error {
                AskError::Journal(error) if matches!(*error, JournalError::Removed) => {
                    CloseCode::NotMember
                }
                error if error.is_disk_full() => CloseCode::Full,
                AskError::Journal(_) | AskError::Closed => CloseCode::Internal,
            });
        }
    };
    note_addresses(journal, joiner, addresses).await;
    let own = group_state(journal, me).await.map_err(|_| CloseCode::Internal)?;
    let members = u32::try_from(own.members.members.len()).unwrap_or(u32::MAX);
    Ok(PairAccept { group_id: group, intro, members, device_name: own.name })
}

/// A member has refused this device: it may not have heard yet that another has added it.
pub(super) fn introduce(this: &mut Loop, member: NodeId, addresses: Vec<String>) {
    let (journal, net) = (this.parts.journal.clone(), this.parts.net.clone());
    let (me, facts) = (this.parts.node_id, this.facts.clone());
    this.spawn("introduce this device", async move {
        let read = journal.read(move |reader| Ok((reader.group()?, reader.intro(&me)?)));
        let (group_id, intro) = match read.await {
            Ok((Some(group_id), intro)) => (group_id, intro),
            Ok((None, _)) => return,
            Err(error) => return tracing::warn!("reading our introduction: {error:#}"),
        };
        let introduction = Introduction { group_id, intro };
        if introduction::introduce(&net, member, &addresses, &introduction).await {
            facts.send(Fact::Input(Input::Seen(member))).await;
        }
    });
}

/// A newcomer came in.
pub(super) fn be_introduced(this: &mut Loop, connection: Connection) {
    let (journal, newcomer) = (this.parts.journal.clone(), connection.peer());
    this.spawn("introduction", async move {
        introduction::host(connection, |introduction| async move {
            let taken_in = take_in(&journal, newcomer, introduction).await;
            taken_in.unwrap_or_else(|error| {
                tracing::info!(peer = %newcomer.short(), "an introduction was not taken in: {error}");
                false
            })
        })
        .await;
    });
}

/// Whether the newcomer is a member by its introduction.
async fn take_in(
    journal: &JournalHandle,
    newcomer: NodeId,
    introduction: Introduction,
) -> Result<bool, RequestError> {
    let Introduction { group_id, intro } = introduction;
    let group = journal.read(|reader| reader.group()).await;
    let ours = group.map_err(|error| asked("reading the group", &error))?;
    // A stranger does not know it, and costs no signature's check.
    if ours != Some(group_id) {
        return Ok(false);
    }
    let intro = verified(group_id, intro).await?;
    let introduced =
        journal.run(move |journal, now_ms| journal.introduce(&newcomer, &intro, now_ms));
    introduced.await.map_err(|error| asked("taking in an introduction", &error))?;
    Ok(journal.roster().standing(&newcomer) == Standing::Member)
}

fn remove(this: &mut Loop, order: RemoveOrder, reply: Reply<RemoveReply>) {
    let (journal, me) = (this.parts.journal.clone(), this.parts.node_id);
    let (events, status) = (this.parts.events.clone(), this.parts.status.subscribe());
    this.spawn("remove a device", async move {
        let result = remove_device(&journal, &events, me, &order).await;
        if let Ok(removed) = &result
            && !order.dry_run
        {
            let is_gone = |peer: &PeerStatus| peer.node_id != removed.node_id;
            until_shown(status, |status| status.peers.iter().all(is_gone)).await;
        }
        // Who asked may have gone.
        let _ = reply.send(result);
    });
}

async fn remove_device(
    journal: &JournalHandle,
    events: &EventLog,
    me: NodeId,
    order: &RemoveOrder,
) -> Result<RemoveReply, RequestError> {
    let group = group_state(journal, me).await?;
    let (who, members) = (&order.device, &group.members.members);
    let found = lookup::device(who, members, |member| (member.node_id.to_string(), &member.name));
    let Member { node_id, name, .. } = found?.clone();
    if node_id == me {
        return Err(RequestError::Invalid(
            "that is this device itself: remove it on another one, or leave the group here with \
             `can-sync leave`"
                .into(),
        ));
    }
    let with_introduced = order.with_introduced;
    let preview =
        journal.read(move |reader| reader.preview_removal(&me, &node_id, with_introduced)).await;
    let preview = preview.map_err(|error| asked("reading the group", &error))?;
    if !order.dry_run {
        let removed = journal.run(move |journal, now_ms| match with_introduced {
            true => journal.remove_with_introduced(&node_id, now_ms).map(Some),
            false => journal.remove(&node_id, now_ms),
        });
        removed.await.map_err(|error| asked("removing the device", &error))?;
        events.tell(LogEvent::DeviceRemoved { device: node_id, name: name.clone() });
    }
    let also = preview.goes.into_iter().filter(|gone| gone.device != node_id);
    let also = also.map(|gone| RemovedToo {
        node_id: gone.device.to_string(),
        name: shown_name(&gone.name, &gone.device),
        introducer: gone.introducer.map_or(String::new(), |(id, name)| shown_name(&name, &id)),
    });
    let members = preview.members_left;
    Ok(RemoveReply { node_id: node_id.to_string(), name, also: also.collect(), members })
}

fn leave(this: &mut Loop, reply: Reply<LeaveReply>) {
    let (journal, home) = (this.parts.journal.clone(), this.parts.home.clone());
    let (me, facts) = (this.parts.node_id, this.facts.clone());
    this.spawn("leave the group", async move {
        let left = leave_group(&journal, home, me).await;
        let fact = match left {
            Ok(LeaveReply { new_device: false }) => Fact::Left { reply },
            ended => {
                let stop = ended.is_ok();
                // Who asked may have gone.
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

async fn leave_group(
    journal: &JournalHandle,
    home: Home,
    me: NodeId,
) -> Result<LeaveReply, RequestError> {
    let own = group_state(journal, me).await?;
    if own.members.removed.contains(&me) {
        let asked = spawn_blocking(move || Identity::ask_to_start_over(&home)).await;
        let asked = asked.map_err(|error| internal("leaving the group", &error))?;
        asked.map_err(|error| internal("leaving the group", &error))?;
        return Ok(LeaveReply { new_device: true });
    }
    let left = journal.run(move |journal, now_ms| journal.start_over(&own.name, now_ms));
    left.await.map_err(|error| asked("leaving the group", &error))?;
    Ok(LeaveReply { new_device: false })
}

fn rename(this: &mut Loop, name: String, reply: Reply<RenameReply>) {
    let journal = this.parts.journal.clone();
    let status = this.parts.status.subscribe();
    this.spawn("rename", async move {
        let result = rename_device(&journal, &name).await;
        if let Ok(name) = &result {
            until_shown(status, |status| status.device.name == *name).await;
        }
        // Who asked may have gone.
        let _ = reply.send(result.map(|name| RenameReply { name }));
    });
}

/// Who asks for the status after an order was answered sees what the order did. It is done in any
/// case, and only a loop that is very busy or stopping is not waited for.
async fn until_shown(mut status: watch::Receiver<Status>, shows: impl FnMut(&Status) -> bool) {
    let _ = timeout(SHOWN_WAIT, status.wait_for(shows)).await;
}

/// The name is a field of this device's own record, so it goes wherever the journal goes. Returns it
/// as it is shown.
async fn rename_device(journal: &JournalHandle, name: &str) -> Result<String, RequestError> {
    let cleaned = device_name(name);
    if cleaned.is_empty() {
        let text = format!("{name:?} has no character that can be shown");
        return Err(RequestError::Invalid(text));
    }
    let put = DraftPut {
        key: DeviceState::key(),
        create: true,
        set: BTreeMap::from([("name".to_owned(), Some(Value::Text(cleaned.clone())))]),
        add: BTreeSet::new(),
        remove: BTreeSet::new(),
    };
    let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
    match journal.write(draft).await.map_err(|error| asked("renaming this device", &error))? {
        Ok(_) => Ok(cleaned),
        Err(DraftError::NotMember) => {
            Err(RequestError::Refused("this device was removed from its group".into()))
        }
        Err(error) => Err(RequestError::Temporary(error.to_string())),
    }
}

fn fetch(this: &mut Loop, order: FetchOrder, reply: Reply<FetchReply>) {
    let hashes = match meant_assets(this, &order.hashes) {
        Ok(hashes) => hashes,
        Err(error) => {
            // Who asked may have gone.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let (index, facts) = (this.parts.ctx.index.clone(), this.facts.clone());
    this.spawn_blocking("fetch", move || match index.known(&hashes) {
        Ok(known) => {
            let assets = hashes.into_iter().zip(known).collect();
            facts.blocking_send(Fact::Fetch { assets, now: order.now, reply });
        }
        Err(error) => {
            // Who asked may have gone.
            let _ = reply.send(Err(internal("reading the index", &error)));
        }
    });
}

fn meant_assets(this: &Loop, texts: &[String]) -> Result<Vec<Hash>, RequestError> {
    if texts.len() > FETCHES_MAX {
        let text = format!("{} assets are too many at once: at most {FETCHES_MAX}", texts.len());
        return Err(RequestError::Invalid(text));
    }
    texts.iter().map(|text| meant_asset(this, text)).collect()
}

/// The asset of a hash, or the one known to be missing whose hash starts so.
fn meant_asset(this: &Loop, text: &str) -> Result<Hash, RequestError> {
    let prefix = HashPrefix::parse(text)?;
    if let Some(hash) = prefix.whole() {
        return Ok(hash);
    }
    let found = prefix.only(this.engine.lacked(prefix.as_str()), |hash| *hash);
    found.map_err(|error| match error {
        LookupError::Unknown(_) => RequestError::Unknown(format!(
            "no asset that is here or known to be missing has a hash that starts with {}: give \
             the whole hash",
            prefix.as_str()
        )),
        error => error.into(),
    })
}

/// Goes on with [`Request::Fetch`] when the index has told which of the assets it knows.
pub(super) fn fetch_lacking(
    this: &mut Loop,
    assets: Vec<(Hash, bool)>,
    now: bool,
    reply: Reply<FetchReply>,
) {
    let lacking = assets.iter().filter(|(_, known)| !known).map(|(hash, _)| *hash);
    this.handle(Input::Fetch { hashes: lacking.collect(), at_once: now });
    let now_ms = this.clock.now_ms();
    let view = |(hash, known): (Hash, bool)| FetchView {
        hash: hash.to_string(),
        state: match known {
            true => FetchState::Here,
            false => this.engine.fetching(now_ms, &hash).into(),
        },
        left_bytes: this.parts.ctx.partials.left_bytes(&hash),
    };
    let assets = assets.into_iter().map(view).collect();
    // Who asked may have gone.
    let _ = reply.send(Ok(FetchReply { assets }));
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

/// A member closed a connection because the group, `of`, has removed this device.
pub(super) fn note_own_removal(this: &mut Loop, of: GroupId, by: NodeId) {
    let journal = this.parts.journal.clone();
    this.spawn("note own removal", async move {
        match journal.run(move |journal, _| journal.told_removed(&of)).await {
            Ok(()) => tracing::warn!(by = %by.short(), "this device was removed from its group"),
            Err(error) => tracing::warn!("noting that this device was removed: {error:#}"),
        }
    });
}

/// Notes where a member was reached.
pub(super) fn record_addresses(this: &mut Loop, peer: NodeId, addresses: Vec<String>) {
    let journal = this.parts.journal.clone();
    this.spawn("record addresses", async move {
        note_addresses(&journal, peer, addresses).await;
    });
}

/// They are hints: an error is no more than logged.
async fn note_addresses(journal: &JournalHandle, device: NodeId, addresses: Vec<String>) {
    let noted = journal.run(move |journal, _| journal.reached(&device, &addresses));
    if let Err(error) = noted.await {
        tracing::warn!("writing a member's addresses: {error:#}");
    }
}

async fn group_state(journal: &JournalHandle, me: NodeId) -> Result<GroupState, RequestError> {
    let state = journal.read(move |reader| reader.group_state(&me)).await;
    let state = state.map_err(|error| asked("reading the group", &error))?;
    state.context("this device is in no group").map_err(|error| internal("reading", &error))
}

/// What the journal's answer means to who gave the order.
fn asked(tried: &str, error: &AskError) -> RequestError {
    let AskError::Journal(journal) = error else {
        return RequestError::Temporary(error.to_string());
    };
    match **journal {
        JournalError::InGroup
        | JournalError::Removed
        | JournalError::BadIntro
        | JournalError::ClockBehind
        | JournalError::ClockNotSet
        | JournalError::UsedUp { .. }
        | JournalError::Unreadable => RequestError::Refused(journal.to_string()),
        JournalError::DiskFull | JournalError::Busy => {
            RequestError::Temporary(format!("{tried}: {journal}"))
        }
        JournalError::NoGroup
        | JournalError::Damaged(_)
        | JournalError::Corrupt(_)
        | JournalError::Newer { .. }
        | JournalError::OtherDevice(_)
        | JournalError::Open(_)
        | JournalError::Database(_) => internal(tried, journal),
    }
}

fn internal(tried: &str, error: &dyn std::fmt::Display) -> RequestError {
    RequestError::Internal(format!("{tried}: {error:#}"))
}
