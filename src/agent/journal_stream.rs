//! The journal's stream of each connection: which side opens it, how the loop recognises it among
//! the peer's streams, and what its end means.
//!
//! The dialer opens one stream right after Hello if the peer supports journals. When the stream
//! ends the connection is closed too, because without it neither side learns what the other lacks;
//! except when the two have different versions of the journal's protocol.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::peers::ConnId;
use crate::net::frame::Peeked;
use crate::net::{Connection, RecvStream, SendStream};

use super::fact::{Fact, Facts};
use super::live::Live;
use super::parts::Parts;
use crate::replica::replicate::Replication;
use crate::replica::status::JournalPeerStatus;

/// After control messages and before assets: ops are small, and they describe the assets.
const JOURNAL_PRIORITY: i32 = 50;

/// How long a peer that refused this device has to close the connection before this device does.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Starts the tasks that prune the journal and look for forks while the agent runs.
pub(super) fn look_after(parts: &mut Parts, replication: &Replication) {
    let pruning = replication.clone();
    parts.tasks.spawn("journal pruning", async move { pruning.prune().await });
    let (replication, facts) = (replication.clone(), parts.facts.clone());
    parts.tasks.spawn("journal forks", async move {
        let (forked, watched) = watch::channel(Vec::new());
        tokio::select! {
            () = replication.watch_forks(&forked) => {}
            () = facts.pass_on(watched, Fact::Forked) => {}
        }
    });
}

/// Opens the stream of a connection that this device dialled.
pub(super) fn open(parts: &mut Parts, replication: &Replication, conn: ConnId, live: &mut Live) {
    let (connection, task) = begin(parts, replication, conn, live);
    parts.tasks.spawn("journal", async move {
        // A connection that is gone needs no closing.
        if let Ok((send, recv)) = connection.open_stream(JOURNAL_PRIORITY).await {
            task.run(connection, recv, send).await;
        }
    });
}

/// Accepts the stream that a peer opened.
pub(super) fn accept(
    parts: &mut Parts,
    replication: &Replication,
    conn: ConnId,
    live: &mut Live,
    (recv, send): (Peeked<RecvStream>, SendStream),
) {
    if live.connection.dialed() || live.journal.is_some() {
        live.connection.close(CloseCode::Protocol, "a journal's stream too many");
        return;
    }
    let (connection, task) = begin(parts, replication, conn, live);
    send.set_priority(JOURNAL_PRIORITY);
    parts.tasks.spawn("journal", task.run(connection, recv, send));
}

fn begin(
    parts: &Parts,
    replication: &Replication,
    conn: ConnId,
    live: &mut Live,
) -> (Connection, Task) {
    live.journal = Some(JournalPeerStatus::begun(live.connection.peer()));
    let (replication, facts) = (replication.clone(), parts.facts.clone());
    (live.connection.clone(), Task { conn, replication, facts })
}

struct Task {
    conn: ConnId,
    replication: Replication,
    facts: Facts,
}

impl Task {
    async fn run<R, W>(self, connection: Connection, recv: R, send: W)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let Self { conn, replication, facts } = self;
        let peer = connection.peer();
        let (view, watched) = watch::channel(JournalPeerStatus::begun(peer));
        let show = facts.pass_on(watched, |status| Fact::Journal { conn, status });
        let ended = tokio::select! {
            ended = replication.run(peer, recv, send, &view) => ended,
            () = show => return,
        };
        if !ended.is_connections() {
            tracing::warn!(
                peer = %peer.short(),
                "this device and the peer have different versions of the journal's protocol: assets \
                 are synced, metadata, records and members are not; upgrade the older device"
            );
            let status = view.borrow().clone().version_differs();
            return facts.send(Fact::Journal { conn, status }).await;
        }
        if ended.is_peers_to_close() {
            // The peer's reason says more than ours; ours is used when the peer gives none.
            let _ = timeout(CLOSE_WAIT, connection.closed()).await;
        }
        if connection.ended().is_some() {
            return;
        }
        let code = ended.close_code();
        tracing::warn!(peer = %peer.short(), %code, detail = %ended, "closing");
        connection.close(code, &ended.close_detail());
    }
}
