//! Changes of the group that a person requests: remove a device, rename this one, leave.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::spawn_blocking;

use super::follow::group_state;
use super::{
    LeaveReply, RemoveReply, RemoveRequest, RemovedToo, RequestError, internal, journal_error,
};
use crate::core::ids::NodeId;
use crate::core::journal::device_events::{DeviceState, LogEvent};
use crate::core::journal::draft::{Draft, DraftChange, DraftError, DraftPut};
use crate::core::journal::op::Value;
use crate::core::lookup;
use crate::core::pairing::{Member, device_name, shown_name};
use crate::replica::events::EventLog;
use crate::replica::journal::JournalHandle;
use crate::state::home::Home;
use crate::state::identity::Identity;

/// Removes a device, or reports what would happen.
pub(crate) async fn remove_device(
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

/// Makes this device leave its group. If the group had removed it, it becomes a new device at the
/// next start instead.
pub(crate) async fn leave_group(
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

/// Renames this device. The name is a field of the device's own record, so the journal replicates
/// it. Returns the name as it is shown.
pub(crate) async fn rename_device(
    journal: &JournalHandle,
    name: &str,
) -> Result<String, RequestError> {
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
