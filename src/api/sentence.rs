//! Whether everything is on every device, in one sentence. The command line and the page say the same.
//!
//! The texts contain names that other devices chose: a caller that shows them must escape them first.

use crate::clock::wall_ms;
use crate::core::alerts::ago;
use crate::core::units::counted;
use crate::folders::status::{BindingState, FolderView};
use crate::replica::status::{PeerState, PeerStatus, Status};

/// The most devices and obstacles that the sentence names. The table beside it has every device.
const NAMED_MAX: usize = 4;

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
    let of_store = format!("{} damaged or refused", counted(quarantined, "asset is", "assets are"));
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
    // What people have to mend comes first.
    let mut missing = obstacles(status, &status.peers);
    missing.extend(folders.iter().cloned());
    let behind = status
        .peers
        .iter()
        .filter(|peer| !(peer.in_sync && status.has_same_edits(peer)))
        .map(|peer| format!("{}: {}", peer.name, sync_text(status, peer)));
    missing.extend(behind);
    let one_copy = status.copies.census.as_ref().map_or(0, |census| census.one_copy);
    if !missing.is_empty() && one_copy > 0 {
        missing.insert(
            0,
            format!("{} on one device alone", counted(one_copy, "asset is", "assets are")),
        );
    }
    if missing.len() > NAMED_MAX + 1 {
        let more = missing.len() - NAMED_MAX;
        missing.truncate(NAMED_MAX);
        missing.push(format!("and {more} more"));
    }
    match (missing.is_empty(), status.peers.len()) {
        (true, 0) => {
            let name = &status.device.name;
            let text =
                "no other device has a copy of its assets. Pair another with `can-sync ticket`.";
            (true, format!("Device {name} is alone in its group: {text}"))
        }
        (true, others) => {
            let devices = others + 1;
            let is_chosen = status.peers.iter().any(|peer| !peer.wants.is_empty());
            let is_chosen_here = !status.copies.wants.is_empty() || status.copies.unwanted > 0;
            let sentence = match is_chosen || is_chosen_here {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::status::CensusStatus;
    use crate::replica::status::samples::{peer, status};

    #[test]
    fn the_answer_is_one_sentence_that_names_what_is_missing_where() {
        let of = |peers: Vec<PeerStatus>| answer(&status(peers, true), &[]);
        let said = |is_well: bool, sentence: &str| (is_well, sentence.to_owned());
        let (is_well, sentence) = of(Vec::new());
        assert!(is_well && sentence.starts_with("Device desk is alone in its group"), "{sentence}");
        let nas = || peer("nas", 0xbb, PeerState::Idle, true);
        assert_eq!(of(vec![nas()]), said(true, "Everything is on 2 of 2 devices."));
        let mut phone = peer("phone", 0xaa, PeerState::Offline, false);
        let sentence = "Not everything is on every device: phone: not connected.";
        assert_eq!(of(vec![phone.clone(), nas()]), said(false, sentence));
        phone.missing_there = 12;
        let sentence = "Not everything is on every device: phone: 12 missing there.";
        assert_eq!(of(vec![phone, nas()]), said(false, sentence));
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let many = names.iter().zip(1..);
        let many = many.map(|(name, id)| peer(name, id, PeerState::Offline, false)).collect();
        let (_, sentence) = of(many);
        assert!(sentence.ends_with("d: not connected; and 3 more."), "{sentence}");
        let mut down = status(vec![nas()], true);
        down.store.up = false;
        assert_eq!(answer(&down, &[]), said(false, "The store does not answer."));
        let mut full = status(vec![nas()], true);
        full.device.obstacles = vec!["the disk is full".into()];
        let sentence = "Not everything is on every device: the disk is full.";
        assert_eq!(answer(&full, &[]), said(false, sentence));
    }

    #[test]
    fn a_folder_that_waits_for_its_user_is_named_before_all_else() {
        let folder = |state: BindingState| FolderView {
            elsewhere: Vec::new(),
            id: crate::core::ids::FolderId([1; 16]),
            name: "papers".into(),
            created_by: None,
            binding: Some(crate::folders::status::BindingView {
                dir: "/home/ann/papers".into(),
                mode: crate::core::folder::three_way::Mode::TwoWay,
                keep: crate::folders::Keep::Copy,
                symlinks: false,
                state,
                problems: Vec::new(),
            }),
        };
        assert_eq!(waiting_folder(&folder(BindingState::UpToDate)), None);
        let held: Vec<_> = waiting_folder(&folder(BindingState::Held)).into_iter().collect();
        let (is_well, sentence) = answer(&status(Vec::new(), true), &held);
        assert!(!is_well && sentence.contains("folder papers is held back"), "{sentence}");
    }

    #[test]
    fn a_device_that_is_away_is_shown_with_its_age() {
        let mut phone = peer("phone", 0xaa, PeerState::Offline, false);
        phone.last_seen_ms = Some(wall_ms() - 9 * 86_400_000);
        let (_, sentence) = answer(&status(vec![phone.clone()], false), &[]);
        assert_eq!(sentence, "Not everything is on every device: phone: last seen 9 days ago.");
        let mut counted = status(vec![phone], false);
        counted.copies.census = Some(CensusStatus { one_copy: 12, ..CensusStatus::default() });
        let (_, sentence) = answer(&counted, &[]);
        let expected = "12 assets are on one device alone; phone: last seen 9 days ago.";
        assert_eq!(sentence, format!("Not everything is on every device: {expected}"));
    }
}
