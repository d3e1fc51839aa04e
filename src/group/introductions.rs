//! How other members learn of a device that one member added, and how a removed device learns of
//! its removal.

use tokio::task::spawn_blocking;

use crate::core::ids::{GroupId, NodeId};
use crate::core::joining::{Introduced, Introduction};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::op::{Change, MemberChange, SignedOp};
use crate::core::journal::session::Standing;
use crate::net::{Connection, Net, introduction};
use crate::state::journal::{VerifiedOp, verify};

use super::{RequestError, internal, journal_error};
use crate::replica::events::EventLog;
use crate::replica::journal::JournalHandle;

/// Verifies the signatures of an introduction's ops.
pub(crate) async fn verified(
    group: GroupId,
    ops: Vec<SignedOp>,
) -> Result<Vec<VerifiedOp>, RequestError> {
    let verify = move || ops.into_iter().map(|op| verify(&group, op)).collect::<Result<_, _>>();
    let verified = spawn_blocking(verify).await.map_err(|error| internal("verifying", &error))?;
    verified
        .map_err(|error| internal("the other device's introduction has a bad signature", &error))
}

/// Introduces this device to a member that refused it. The member may not yet know that another
/// member added this device. If the group has removed this device instead, the member proves it by
/// a removal that counts. Returns whether the member knows this device now.
pub(crate) async fn introduce(
    journal: &JournalHandle,
    net: &Net,
    member: NodeId,
    addresses: &[String],
) -> bool {
    let me = net.node_id();
    let read = journal.read(move |reader| Ok((reader.group()?, reader.intro(&me)?)));
    let (group_id, intro) = match read.await {
        Ok((Some(group_id), intro)) => (group_id, intro),
        Ok((None, _)) => return false,
        Err(error) => {
            tracing::warn!("reading our introduction: {error:#}");
            return false;
        }
    };
    let introduction = Introduction { group_id, intro };
    match introduction::introduce(net, member, addresses, &introduction).await {
        Introduced::LetIn => true,
        Introduced::Refused => false,
        Introduced::Removed(ops) => {
            take_removal(journal, me, member, group_id, ops).await;
            false
        }
    }
}

/// Applies the removals of this device that a member sends.
async fn take_removal(
    journal: &JournalHandle,
    me: NodeId,
    member: NodeId,
    group: GroupId,
    ops: Vec<SignedOp>,
) {
    let by = member.short();
    let ops = match verified(group, ops).await {
        Ok(ops) => ops,
        Err(error) => {
            return tracing::warn!(%by, "a removal of this device has a bad signature: {error}");
        }
    };
    let taken = journal.run(move |journal, now_ms| journal.take_removal(&member, &ops, now_ms));
    if let Err(error) = taken.await {
        tracing::warn!(%by, "taking in a removal of this device: {error:#}");
    } else if journal.roster().standing(&me) == Standing::Removed {
        tracing::warn!(%by, "this device was removed from its group");
    } else {
        tracing::warn!(%by, "a member reports that this device was removed, but proves no removal that counts");
    }
}

/// Answers the introduction of a device that this one does not know, or that was removed.
pub(crate) async fn be_introduced(
    journal: &JournalHandle,
    events: &EventLog,
    me: NodeId,
    connection: Connection,
) {
    let newcomer = connection.peer();
    introduction::host(connection, |introduction| async move {
        let judged = judge(journal, events, me, newcomer, introduction).await;
        judged.unwrap_or_else(|error| {
            tracing::info!(peer = %newcomer.short(), "cannot apply an introduction: {error}");
            Introduced::Refused
        })
    })
    .await;
}

/// Judges an introduced device by the roster and by its introduction.
async fn judge(
    journal: &JournalHandle,
    events: &EventLog,
    me: NodeId,
    newcomer: NodeId,
    introduction: Introduction,
) -> Result<Introduced, RequestError> {
    let Introduction { group_id, intro } = introduction;
    let group = journal.read(|reader| reader.group()).await;
    let ours = group.map_err(|error| journal_error("reading the group", &error))?;
    // A stranger does not know the group's ID, so it causes no signature check.
    if ours != Some(group_id) {
        return Ok(Introduced::Refused);
    }
    // A removed device is heard too: it may hold a removal of its remover that is unknown here.
    if journal.roster().standing(&newcomer) != Standing::Member {
        let intro = verified(group_id, intro).await?;
        let by_us = intro.iter().any(|op| op.signed().log.author == me && adds(op, &newcomer));
        let introduced =
            journal.run(move |journal, now_ms| journal.introduce(&newcomer, &intro, now_ms));
        introduced.await.map_err(|error| journal_error("taking in an introduction", &error))?;
        if by_us && journal.roster().standing(&newcomer) == Standing::Member {
            // The device had paired with this one, which did not receive its confirmation.
            tracing::warn!(peer = %newcomer.short(), "a device that this one admitted had already joined the group");
            let (name, short_code) = (newcomer.short(), None);
            events.tell(LogEvent::DevicePaired { device: newcomer, name, short_code });
        }
    }
    match journal.roster().standing(&newcomer) {
        Standing::Member => Ok(Introduced::LetIn),
        Standing::Stranger => Ok(Introduced::Refused),
        Standing::Removed => {
            let removal = journal.read(move |reader| reader.removal(&newcomer)).await;
            Ok(Introduced::Removed(
                removal.map_err(|error| journal_error("reading a removal", &error))?,
            ))
        }
    }
}

/// Whether an op adds a device.
fn adds(op: &VerifiedOp, added: &NodeId) -> bool {
    let is_it = |change: &Change| matches!(change, Change::Member(MemberChange::Add { device, .. }) if device == added);
    op.body().changes.iter().any(is_it)
}
