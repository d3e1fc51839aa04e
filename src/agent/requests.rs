//! Requests of people and programs: remove, rename, leave, fetch. `pairing` has tickets and
//! pairing. Each request runs as a task that answers it, by way of a fact if the loop has to act
//! first.
//!
//! I1  A change of the group is written to disk first, and the loop learns of it afterwards. So
//!     everything that the engine knows of the group is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::wall_ms;
use crate::core::engine::Engine;
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::device_events::{DeviceState, LogEvent};
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut};
use crate::core::journal::op::Value;
use crate::core::journal::session::Standing;
use crate::core::limits::FETCHES_MAX;
use crate::core::lookup::{self, HashPrefix, LookupError};
use crate::core::pairing::{Member, device_name, shown_name};
use crate::net::{Acceptor, Admission, Verdict};
use crate::state::home::Home;
use crate::state::identity::Identity;

use super::fact::{Fact, TakenIn};
use super::group::group_state;
use super::handle::{
    FetchReply, FetchRequest, FetchState, FetchView, LeaveReply, RemoveReply, RemoveRequest,
    RemovedToo, RenameReply, Reply, RequestError, internal, journal_error,
};
use super::parts::Parts;
use crate::replica::events::EventLog;
use crate::replica::journal::JournalHandle;
use crate::replica::status::{PeerStatus, Status};

/// How long a request that was carried out waits until the status shows it.
const SHOWN_WAIT: Duration = Duration::from_secs(2);

/// How long `Request::Check` waits until the store is listed.
const CHECK_WAIT: Duration = Duration::from_secs(60);

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

pub(super) fn remove(parts: &mut Parts, request: RemoveRequest, reply: Reply<RemoveReply>) {
    let (journal, me) = (parts.journal.clone(), parts.node_id);
    let (events, status) = (parts.events.clone(), parts.status.subscribe());
    parts.tasks.spawn("remove a device", async move {
        let result = remove_device(&journal, &events, me, &request).await;
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

async fn remove_device(
    journal: &JournalHandle,
    events: &EventLog,
    me: NodeId,
    request: &RemoveRequest,
) -> Result<RemoveReply, RequestError> {
    let group = group_state(journal, me).await?;
    let (who, members) = (&request.device, &group.members.members);
    let found = lookup::device(who, members, |member| (member.node_id, &member.name));
    let Member { node_id, name, .. } = found?.clone();
    if node_id == me {
        return Err(RequestError::Invalid(
            "that is this device itself: remove it on another one, or leave the group here with \
             `can-sync leave`"
                .into(),
        ));
    }
    let with_introduced = request.with_introduced;
    let preview =
        journal.read(move |reader| reader.preview_removal(&me, &node_id, with_introduced)).await;
    let preview = preview.map_err(|error| journal_error("reading the group", &error))?;
    if !request.dry_run {
        let removed = journal.run(move |journal, now_ms| match with_introduced {
            true => journal.remove_with_introduced(&node_id, now_ms).map(Some),
            false => journal.remove(&node_id, now_ms),
        });
        removed.await.map_err(|error| journal_error("removing the device", &error))?;
        events.tell(LogEvent::DeviceRemoved { device: node_id, name: name.clone() });
    }
    let also = preview.goes.into_iter().filter(|gone| gone.device != node_id);
    let also = also.map(|gone| RemovedToo {
        node_id: gone.device,
        name: shown_name(&gone.name, &gone.device),
        introducer: gone.introducer.map_or(String::new(), |(id, name)| shown_name(&name, &id)),
    });
    let members = preview.members_left;
    Ok(RemoveReply { node_id, name, also: also.collect(), members })
}

pub(super) fn leave(parts: &mut Parts, reply: Reply<LeaveReply>) {
    let (journal, home) = (parts.journal.clone(), parts.home.clone());
    let (me, facts) = (parts.node_id, parts.facts.clone());
    parts.tasks.spawn("leave the group", async move {
        let left = leave_group(&journal, home, me).await;
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
    left.await.map_err(|error| journal_error("leaving the group", &error))?;
    Ok(LeaveReply { new_device: false })
}

pub(super) fn rename(parts: &mut Parts, name: String, reply: Reply<RenameReply>) {
    let journal = parts.journal.clone();
    let status = parts.status.subscribe();
    parts.tasks.spawn("rename", async move {
        let result = rename_device(&journal, &name).await;
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

/// Renames this device. The name is a field of the device's own record, so the journal replicates
/// it. Returns the name as it is shown.
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
    match journal
        .write(draft)
        .await
        .map_err(|error| journal_error("renaming this device", &error))?
    {
        Ok(_) => Ok(cleaned),
        Err(DraftError::NotMember) => {
            Err(RequestError::Refused("this device was removed from its group".into()))
        }
        Err(error) => Err(RequestError::Temporary(error.to_string())),
    }
}

pub(super) fn fetch(
    parts: &mut Parts,
    engine: &Engine,
    request: FetchRequest,
    reply: Reply<FetchReply>,
) {
    let hashes = match meant_assets(engine, &request.hashes) {
        Ok(hashes) => hashes,
        Err(error) => {
            // The requester may have gone.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let (index, facts) = (parts.ctx.index.clone(), parts.facts.clone());
    parts.tasks.spawn_blocking("fetch", move || match index.known(&hashes) {
        Ok(known) => {
            let assets = hashes.into_iter().zip(known).collect();
            facts.blocking_send(Fact::Fetch { assets, now: request.now, reply });
        }
        Err(error) => {
            // The requester may have gone.
            let _ = reply.send(Err(internal("reading the index", &error)));
        }
    });
}

fn meant_assets(engine: &Engine, prefixes: &[HashPrefix]) -> Result<Vec<Hash>, RequestError> {
    if prefixes.len() > FETCHES_MAX {
        let count = prefixes.len();
        let text = format!("{count} assets are too many at once: at most {FETCHES_MAX}");
        return Err(RequestError::Invalid(text));
    }
    prefixes.iter().map(|prefix| meant_asset(engine, prefix)).collect()
}

/// Finds an asset by its whole hash, or by the start of the hash of an asset known to be missing.
fn meant_asset(engine: &Engine, prefix: &HashPrefix) -> Result<Hash, RequestError> {
    if let Some(hash) = prefix.whole() {
        return Ok(hash);
    }
    let found = prefix.only(engine.lacked(prefix.as_str()), |hash| *hash);
    found.map_err(|error| match error {
        LookupError::Unknown(_) => RequestError::Unknown(format!(
            "no asset that is here or known to be missing has a hash that starts with {}: give \
             the whole hash",
            prefix.as_str()
        )),
        error => error.into(),
    })
}

/// Builds the reply to a fetch; each hash comes with whether the index holds it.
pub(super) fn fetch_views(parts: &Parts, engine: &Engine, assets: Vec<(Hash, bool)>) -> FetchReply {
    let now_ms = parts.clock.now_ms();
    let view = |(hash, known): (Hash, bool)| FetchView {
        hash,
        state: match known {
            true => FetchState::Here,
            false => engine.fetching(now_ms, &hash).into(),
        },
        left_bytes: parts.ctx.partials.left_bytes(&hash),
    };
    FetchReply { assets: assets.into_iter().map(view).collect() }
}

/// Answers once the store is listed up to what it holds now.
pub(super) fn check(
    parts: &mut Parts,
    nudge: Arc<Notify>,
    mut taken_in: watch::Receiver<TakenIn>,
    reply: Reply<()>,
) {
    let store = parts.store.clone();
    parts.tasks.spawn("check", async move {
        let checked = timeout(CHECK_WAIT, async {
            let newest = store.info().await?.newest_cursor;
            let passes = taken_in.borrow().passes;
            loop {
                let now = *taken_in.borrow_and_update();
                // A store that does not report its newest cursor is listed twice: the first listing
                // may have begun before the request.
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
        // The requester may have gone.
        let _ = reply.send(result);
    });
}
