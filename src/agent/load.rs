//! Builds the engine from disk: at the start, and again when the store or the group changes.
//!
//! L1  At most one engine is being built at a time, and what the old engine saves meanwhile is not
//!     taken for the new one's.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::core::engine::{Belief, Engine, Identity, OwnCopies};
use crate::core::ids::{HashAlgorithm, NodeId, StoreId};
use crate::core::reconcile::Since;
use crate::state::index::Index;
use crate::state::journal::GroupState;

use super::fact::{Fact, Reload};
use super::parts::Parts;
use crate::replica::copies::Keeper;
use crate::replica::journal::JournalHandle;
use crate::replica::query;

/// The store's id before any store has answered.
pub(super) const NO_STORE: StoreId = StoreId([0; StoreId::LEN]);

/// What an engine is built from.
pub(super) struct Loading {
    node_id: NodeId,
    index: Index,
    journal: JournalHandle,
    keeper: Keeper,
}

impl Loading {
    pub(super) fn of(parts: &Parts) -> Self {
        let (index, journal) = (parts.ctx.index.clone(), parts.journal.clone());
        Self { node_id: parts.node_id, index, journal, keeper: parts.keeper.clone() }
    }

    pub(super) async fn load(self) -> Result<Engine> {
        let Self { node_id, index, journal, keeper } = self;
        let group = journal.read(move |reader| reader.group_state(&node_id)).await?;
        let group = group.context("this device is in no group")?;
        let chooses = keeper.chooses();
        spawn_blocking(move || Self::read(node_id, &index, group, chooses)).await?
    }

    fn read(node_id: NodeId, index: &Index, group: GroupState, chooses: bool) -> Result<Engine> {
        let GroupState { group: group_id, name: device_name, members } = group;
        let known = query::load(index, &group_id)?;
        let (store_id, algorithm) = index.bound()?.unwrap_or((NO_STORE, HashAlgorithm::default()));
        let mut cursors = BTreeMap::new();
        for member in &members.members {
            if let Some((epoch, seq)) = index.peer_cursor(&member.node_id)? {
                cursors.insert(member.node_id, Since { epoch, seq });
            }
        }
        let identity = Identity {
            node_id,
            group_id,
            device_name,
            store_id,
            algorithm,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let head = index.head();
        let own = OwnCopies { absent: head.absent, missing: head.missing, chooses };
        let mut beliefs = Vec::new();
        for member in &members.members {
            let (absent, is_confirmed) = index.belief(&member.node_id)?;
            beliefs.push((member.node_id, Belief { absent, is_confirmed }));
        }
        let engine = Engine::new(identity, known, members, cursors, rand::random());
        Ok(engine.with_copies(own, beliefs))
    }
}

/// Rebuilds the engine from disk; it arrives as [`Fact::Loaded`]. Until then the old engine keeps
/// working, and nothing that it saves is taken for the new one's (X5 of the index). `gate` is the
/// catalogue's.
pub(super) fn reload(parts: &mut Parts, gate: Arc<Mutex<()>>, reload: Reload) {
    tracing::info!(why = reload.why(), "rebuilding the engine");
    let (loading, facts) = (Loading::of(parts), parts.facts.clone());
    parts.tasks.spawn("load", async move {
        let _gate = gate.lock().await;
        let fact = match loading.load().await {
            Ok(engine) => Fact::Loaded { engine: Box::new(engine), reload },
            Err(error) => Fact::Fatal(error.context("reading the index and the group")),
        };
        facts.send(fact).await;
    });
}
