//! Builds the engine from what is on disk: the group, the index and the saved sketch.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use tokio::task::spawn_blocking;

use super::copies::Keeper;
use super::journal::JournalHandle;
use super::query;
use crate::core::engine::{Belief, Engine, Identity, OwnCopies};
use crate::core::ids::{HashAlgorithm, NodeId, StoreId};
use crate::core::reconcile::Since;
use crate::state::index::Index;
use crate::state::journal::GroupState;

/// The store's id before any store has answered.
pub(crate) const NO_STORE: StoreId = StoreId([0; StoreId::LEN]);

/// What an engine is built from.
pub(crate) struct Loading {
    pub(crate) node_id: NodeId,
    pub(crate) index: Index,
    pub(crate) journal: JournalHandle,
    pub(crate) keeper: Keeper,
}

impl Loading {
    /// Reads the group and the index.
    ///
    /// # Errors
    /// One of them cannot be read, or this device is in no group.
    pub(crate) async fn load(self) -> Result<Engine> {
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
