//! How a device that one member added comes to be known to the others, and how a removed device
//! learns of its removal. Each runs as a task.

use tokio::task::spawn_blocking;

use crate::core::engine::Input;
use crate::core::ids::{GroupId, NodeId};
use crate::core::joining::Introduction;
use crate::core::journal::op::SignedOp;
use crate::core::journal::session::Standing;
use crate::net::Connection;
use crate::net::introduction;
use crate::state::journal::{VerifiedOp, verify};

use super::fact::Fact;
use super::handle::RequestError;
use super::orders::{asked, internal};
use super::run::Loop;
use crate::replica::journal::JournalHandle;

/// The ops of an introduction, if each is what its author signed.
pub(super) async fn verified(
    group: GroupId,
    ops: Vec<SignedOp>,
) -> Result<Vec<VerifiedOp>, RequestError> {
    let verify = move || ops.into_iter().map(|op| verify(&group, op)).collect::<Result<_, _>>();
    let verified = spawn_blocking(verify).await.map_err(|error| internal("verifying", &error))?;
    verified.map_err(|error| internal("the other device's introduction is not genuine", &error))
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
