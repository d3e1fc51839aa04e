//! Whether everything is on every device, in one sentence. The command line and the page say the same.
//!
//! The texts hold names that other devices gave: whoever shows them makes them harmless first.

use crate::clock::wall_ms;
use crate::core::alerts::ago;
use crate::folders::status::{BindingState, FolderView};
use crate::replica::status::{PeerState, PeerStatus, Status};

/// Why a folder of this device waits for its user; `None`: it does not.
pub fn waiting_folder(folder: &FolderView) -> Option<String> {
    let state = match folder.binding.as_ref()?.state {
        BindingState::Held => "is held back, because very many files were changed at once",
        BindingState::Stopped => "is stopped",
        BindingState::Scanning
        | BindingState::Syncing
        | BindingState::UpToDate
        | BindingState::Paused => return None,
    };
    Some(format!("folder {} {state}: see `can-sync folder status`", folder.name))
}

/// Whether a session with the peer stands.
pub fn is_connected(peer: &PeerStatus) -> bool {
    match peer.state {
        PeerState::Offline | PeerState::Connecting => false,
        PeerState::Syncing | PeerState::Idle => true,
    }
}

/// What keeps this device and these peers from becoming the same, and waiting does not change.
pub fn obstacles<'a>(
    status: &Status,
    peers: impl IntoIterator<Item = &'a PeerStatus>,
) -> Vec<String> {
    let of_peers = peers.into_iter().flat_map(|peer| {
        peer.obstacles.iter().map(|obstacle| format!("{}: {obstacle}", peer.name))
    });
    let quarantined = status.store.quarantined;
    let of_store = format!("{quarantined} asset(s) are damaged or refused");
    let of_device = status.device.obstacles.iter().cloned();
    of_device.chain((quarantined > 0).then_some(of_store)).chain(of_peers).collect()
}

/// Whether every device has everything, and a sentence that says so or names what is missing. `folders`: what
/// [`waiting_folder`] says.
pub fn answer(status: &Status, folders: &[String]) -> (bool, String) {
    if status.device.removed {
        return (false, "This device was removed from its group and syncs with nobody.".into());
    }
    if !status.store.up {
        return (false, "The store does not answer.".into());
    }
    let mut missing: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| !(peer.in_sync && status.has_same_edits(peer)))
        .map(|peer| format!("{}: {}", peer.name, sync_text(status, peer)))
        .collect();
    missing.extend(obstacles(status, &status.peers));
    missing.extend(folders.iter().cloned());
    match (missing.is_empty(), status.peers.len()) {
        (true, 0) => {
            let name = &status.device.name;
            let text = "what it holds is nowhere else. Pair another with `can-sync ticket`.";
            (true, format!("Device {name} is alone in its group: {text}"))
        }
        (true, others) => {
            let devices = others + 1;
            let is_chosen = status.peers.iter().any(|peer| !peer.wants.is_empty());
            let sentence = match is_chosen || !status.copies.wants.is_empty() {
                true => format!("Everything that is wanted is on {devices} of {devices} devices."),
                false => format!("Everything is on {devices} of {devices} devices."),
            };
            (true, sentence)
        }
        (false, _) => {
            (false, format!("Not everything is on every device: {}.", missing.join("; ")))
        }
    }
}

/// How a peer's assets and edits compare with this device's.
pub fn sync_text(status: &Status, peer: &PeerStatus) -> String {
    match (peer.missing_here, peer.missing_there) {
        _ if peer.in_sync && status.has_same_edits(peer) => "in sync".into(),
        _ if peer.in_sync => "assets in sync, edits not".into(),
        (0, 0) if !is_connected(peer) => match peer.last_seen_ms {
            Some(seen_ms) => format!("last seen {}", ago(wall_ms(), seen_ms)),
            None => "not connected".into(),
        },
        (0, 0) => "comparing".into(),
        (here, 0) => format!("{here} missing here"),
        (0, there) => format!("{there} missing there"),
        (here, there) => format!("{here} missing here, {there} missing there"),
    }
}
