//! Gathers the facts for the alerts: from the status, and every few seconds from the journal, the
//! folders and the disks.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tokio::task::spawn_blocking;

use crate::core::alerts::{
    DeviceFacts, DiskFacts, Facts, FolderFacts, FolderTrouble, HookTrouble, MemberChange,
};
use crate::core::ids::{LogId, NodeId};
use crate::core::limits::{FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION};
use crate::folders::handle::Folders;
use crate::folders::status::{BindingState, FolderView};
use crate::replica::journal::JournalHandle;
use crate::replica::status::{CensusStatus, PeerState, PeerStatus, Status};
use crate::state::journal::MembershipRow;

/// The facts that are read now and then.
#[derive(Debug, Default)]
pub(super) struct Read {
    changes: Vec<MemberChange>,
    /// The version of the roster at which `changes` were read.
    roster: Option<u64>,
    forked: Vec<(LogId, NodeId)>,
    folders: Option<Vec<FolderFacts>>,
    disks: Vec<DiskFacts>,
}

/// Where facts are read.
pub(super) struct Sources {
    pub(super) journal: JournalHandle,
    pub(super) folders: Folders,
    /// A folder on each disk that the agent writes to.
    pub(super) disks: Vec<PathBuf>,
}

impl Read {
    /// Reads what has changed. What cannot be read now stays as it was.
    pub(super) async fn refresh(&mut self, sources: &Sources, status: &Status) {
        let version = sources.journal.roster().version();
        if self.roster != Some(version)
            && let Ok(rows) = sources.journal.read(|reader| reader.memberships()).await
        {
            (self.changes, self.roster) = (rows.into_iter().map(change).collect(), Some(version));
        }
        let is_known = |log: &LogId| self.forked.iter().any(|(known, _)| known == log);
        let forked = &status.journal.forked_logs;
        if self.forked.len() != forked.len() || !forked.iter().all(is_known) {
            let forked = forked.clone();
            let read = sources.journal.read(|reader| reader.logs()).await;
            if let Ok(logs) = read {
                let logs = logs.into_iter().filter(|state| forked.contains(&state.log));
                self.forked = logs.map(|state| (state.log, state.author)).collect();
            }
        }
        if let Ok(page) = sources.folders.list().await {
            self.folders = Some(page.folders.iter().filter_map(folder).collect());
        }
        let folders = sources.disks.clone();
        let disks = spawn_blocking(move || folders.iter().filter_map(disk).collect()).await;
        self.disks = disks.unwrap_or_default();
    }

    /// All facts of this moment.
    pub(super) fn facts(
        &self,
        status: &Status,
        shortage: Vec<String>,
        twin: Option<BTreeSet<String>>,
        hooks: Vec<HookTrouble>,
    ) -> Facts {
        Facts {
            is_removed: status.device.removed,
            devices: status.peers.iter().map(|peer| device(status, peer)).collect(),
            changes: self.changes.clone(),
            disks: self.disks.clone(),
            shortage,
            is_store_up: status.store.up,
            store_error: status.store.last_error.clone(),
            damaged: status.store.damaged,
            quarantined: status.store.quarantined,
            one_copy: status.copies.census.and_then(one_copy),
            few_copies: status.copies.census.and_then(few_copies),
            twin: twin.map(|addresses| addresses.into_iter().collect()),
            forked: self.forked.clone(),
            folders: self.folders.clone(),
            hooks,
            ..Facts::quiet(status.device.node_id, status.device.group_id)
        }
    }
}

fn device(status: &Status, peer: &PeerStatus) -> DeviceFacts {
    let is_connected = matches!(peer.state, PeerState::Syncing | PeerState::Idle);
    let journal = status.journal.peers.iter().find(|journal| journal.node_id == peer.node_id);
    let has_same_edits = status.has_same_edits(peer);
    DeviceFacts {
        id: peer.node_id,
        name: peer.name.clone(),
        is_connected,
        is_in_sync: peer.in_sync && has_same_edits,
        // Without a stream of the journal nothing was compared.
        has_same_edits: is_connected && journal.is_some() && has_same_edits,
        missing_here: peer.missing_here,
        missing_there: peer.missing_there,
        skew_ms: journal.and_then(|journal| journal.skew_ms),
    }
}

/// The assets with one copy; `None` while none is known and that may change.
fn one_copy(census: CensusStatus) -> Option<u64> {
    (census.one_copy > 0 || census.unconfirmed == 0).then_some(census.one_copy)
}

/// The assets with more than one copy, but fewer than the group wants; `None` as with [`one_copy`].
fn few_copies(census: CensusStatus) -> Option<u64> {
    let few = census.below_goal.saturating_sub(census.one_copy + census.nowhere);
    (few > 0 || census.unconfirmed == 0).then_some(few)
}

fn change(row: MembershipRow) -> MemberChange {
    let MembershipRow { device, name, is_member, by, by_name } = row;
    MemberChange { device, name, is_added: is_member, by, by_name }
}

fn folder(view: &FolderView) -> Option<FolderFacts> {
    let binding = view.binding.as_ref()?;
    let trouble = match binding.state {
        BindingState::Paused => Some(FolderTrouble::Paused),
        BindingState::Held => Some(FolderTrouble::Held),
        BindingState::Stopped => Some(FolderTrouble::Stopped(binding.problems.join("; "))),
        BindingState::Scanning | BindingState::Syncing | BindingState::UpToDate => None,
    };
    Some(FolderFacts {
        short_id: view.id.short(),
        name: view.name.clone(),
        trouble,
        is_unknown: binding.state == BindingState::Scanning,
    })
}

fn disk(folder: &PathBuf) -> Option<DiskFacts> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Some(DiskFacts {
        folder: folder.display().to_string(),
        free_bytes: bytes(disk.f_bavail),
        floor_bytes: FREE_FLOOR_BYTES.min(bytes(disk.f_blocks) / FREE_FLOOR_FRACTION),
    })
}
