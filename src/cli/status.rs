//! `status` and `wait`: what goes on, and until when.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::picture::picture;
use super::text::{duration, shown};
use crate::api::answers::Done;
use crate::api::requests::NoArguments;
use crate::api::sentence::{self, answer, is_connected, sync_text, waiting_folder};
use crate::core::lookup;
use crate::folders::status::FoldersPage;
use crate::replica::status::{PeerStatus, Status};

/// Rates and times move without a new revision: repaint this often.
const REPAINT: Duration = Duration::from_secs(1);

/// How often `wait` requests the status again at least.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The pause before the next try when the store could not be listed.
const CHECK_AGAIN: Duration = Duration::from_millis(500);

/// Even `wait --timeout 0` takes one look at everything, and that takes a moment.
const FIRST_LOOK_MIN: Duration = Duration::from_secs(2);

/// `can-sync status`
pub(crate) async fn status(
    client: &Client,
    watch: bool,
    check: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let mut status = client.status().await?;
    let mut folders = waiting_folders(client).await?;
    if check {
        let (is_well, sentence) = answer(&status, &folders);
        let view = serde_json::json!({ "in_sync": is_well, "sentence": sentence });
        output.value(&view, |_| shown(&sentence))?;
        return Ok(if is_well { Exit::Ok } else { Exit::NotInSync });
    }
    if !watch {
        output.value(&status, |status| picture(status, &folders))?;
        return Ok(Exit::Ok);
    }
    loop {
        if output.json {
            output.json(&status)?;
        } else {
            output.picture(&picture(&status, &folders))?;
        }
        status = newer(client, status.revision, REPAINT).await?;
        folders = waiting_folders(client).await?;
    }
}

/// The folders of this device that wait for its user, for people: held or stopped ones.
async fn waiting_folders(client: &Client) -> Result<Vec<String>, Failure> {
    let page: FoldersPage = client.get(&["v1", "folders"], &[]).await?;
    Ok(page.folders.iter().filter_map(waiting_folder).collect())
}

/// The status once it is newer than `revision`, at the latest after `pause`.
async fn newer(client: &Client, revision: u64, pause: Duration) -> Result<Status, Failure> {
    let (revision, pause_ms) = (revision.to_string(), pause.as_millis().to_string());
    client.get(&["v1", "status"], &[("revision", &revision), ("timeout_ms", &pause_ms)]).await
}

/// `can-sync wait`
pub(crate) async fn wait(
    client: &Client,
    timeout: Duration,
    peer: Option<String>,
    output: Output,
) -> Result<Exit, Failure> {
    let start = Instant::now();
    let deadline = start + timeout.max(FIRST_LOOK_MIN);
    let mut last = None;
    match timeout_at(deadline, settle(client, timeout, start, peer.as_deref(), &mut last)).await {
        Ok(Ok(Some(status))) => {
            if status.peers.is_empty() {
                output.note("There is no other device to wait for.");
            }
            for obstacle in obstacles(&status, peer.as_deref()) {
                output.note(obstacle);
            }
            if output.json {
                output.json(&status)?;
            }
            Ok(Exit::Ok)
        }
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(None)) | Err(_) => {
            let waited = duration(timeout);
            let message = format!("not in sync after {waited}{}", what_is_missing(last.as_ref()));
            let obstacles = last.as_ref().map(|last| obstacles(last, peer.as_deref()));
            Err(match obstacles {
                Some(obstacles) if !obstacles.is_empty() => {
                    Failure::new(Exit::NotInSync, format!("{message}: {}", obstacles.join("; ")))
                }
                _ => Failure::new(Exit::Timeout, message),
            })
        }
    }
}

/// Returns the status that shows everything in sync, or `None` after `timeout`. It covers what the
/// store held at the start, because the agent has listed the store since.
async fn settle(
    client: &Client,
    timeout: Duration,
    start: Instant,
    peer: Option<&str>,
    last: &mut Option<Status>,
) -> Result<Option<Status>, Failure> {
    let mut checked = false;
    loop {
        if !checked {
            let answer: Result<Done, Failure> =
                client.post(&["v1", "check"], &NoArguments {}).await;
            checked = match answer {
                Ok(_) => true,
                Err(Failure::Report(Exit::Temporary, _)) => false,
                Err(failure) => return Err(failure),
            };
        }
        let pause = if checked { LOOK_AGAIN } else { CHECK_AGAIN };
        let status = match &*last {
            None => client.status().await?,
            Some(status) => {
                let left = timeout.saturating_sub(start.elapsed());
                newer(client, status.revision, pause.min(left)).await?
            }
        };
        if checked && is_settled(&status, peer)? {
            return Ok(Some(status));
        }
        *last = Some(status);
        if start.elapsed() >= timeout {
            return Ok(None);
        }
    }
}

/// Whether there is nothing to wait for.
///
/// # Errors
/// [`Exit::NotInSync`] when waiting cannot help, [`Exit::Unknown`] when `peer` is not one device.
fn is_settled(status: &Status, peer: Option<&str>) -> Result<bool, Failure> {
    if status.device.removed {
        let message = "this device was removed from its group and syncs with nobody: start over as a \
                       new device with `can-sync leave`";
        return Err(Failure::new(Exit::NotInSync, message));
    }
    if let Some(name) = peer {
        let peer = find_peer(&status.peers, name)?;
        return Ok(is_connected(peer) && peer.in_sync && status.has_same_edits(peer));
    }
    let reachable = status.peers.is_empty() || status.peers.iter().any(is_connected);
    Ok(reachable && status.in_sync)
}

fn find_peer<'a>(peers: &'a [PeerStatus], name: &str) -> Result<&'a PeerStatus, Failure> {
    Ok(lookup::device(name, peers, |peer| (peer.node_id, &peer.name))?)
}

fn what_is_missing(last: Option<&Status>) -> String {
    let Some(status) = last else { return String::new() };
    if !status.store.up {
        return ": the store does not answer".into();
    }
    let is_behind =
        |peer: &&PeerStatus| !is_connected(peer) || !peer.in_sync || !status.has_same_edits(peer);
    let behind = status.peers.iter().filter(is_behind);
    let behind: Vec<_> =
        behind.map(|peer| format!("{} ({})", peer.name, sync_text(status, peer))).collect();
    if behind.is_empty() { String::new() } else { format!(": {}", behind.join(", ")) }
}

/// The obstacles that waiting does not remove, each with its peer.
fn obstacles(status: &Status, peer: Option<&str>) -> Vec<String> {
    let only = peer.and_then(|name| find_peer(&status.peers, name).ok());
    let is_meant = |peer: &&PeerStatus| only.is_none_or(|only| only == *peer);
    sentence::obstacles(status, status.peers.iter().filter(is_meant))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::ids::NodeId;
    use crate::replica::status::samples::{peer, status};
    use crate::replica::status::{JournalPeerStatus, PeerState};

    fn exit_of(failure: Failure) -> Exit {
        match failure {
            Failure::Report(exit, _) => exit,
            Failure::OutputClosed => Exit::Ok,
        }
    }

    #[test]
    fn a_device_without_peers_waits_for_nobody() {
        assert!(is_settled(&status(Vec::new(), true), None).unwrap());
    }

    #[test]
    fn peers_that_are_all_away_are_waited_for() {
        let away = vec![peer("phone", 0xaa, PeerState::Offline, true)];
        assert!(!is_settled(&status(away, true), None).unwrap());
    }

    #[test]
    fn one_peer_away_does_not_hold_up_the_others_unless_it_is_the_one_asked_for() {
        let peers = vec![
            peer("phone", 0xaa, PeerState::Offline, false),
            peer("nas", 0xbb, PeerState::Idle, true),
        ];
        let status = status(peers, true);
        assert!(is_settled(&status, None).unwrap());
        assert!(is_settled(&status, Some("nas")).unwrap());
        assert!(is_settled(&status, Some("BBBB")).unwrap());
        assert!(!is_settled(&status, Some("phone")).unwrap());
        assert_eq!(exit_of(is_settled(&status, Some("tv")).unwrap_err()), Exit::Unknown);
        for (too_little, exit) in [("", Exit::Usage), ("bbb", Exit::Unknown)] {
            let failure = is_settled(&status, Some(too_little)).unwrap_err();
            assert_eq!(exit_of(failure), exit);
        }
    }

    #[test]
    fn a_peer_with_other_edits_is_not_in_sync_and_what_holds_them_back_is_said() {
        let mut desk = peer("desk", 0xaa, PeerState::Idle, true);
        desk.obstacles = vec!["its clock is 2 days ahead".into()];
        let mut status = status(vec![desk, peer("nas", 0xbb, PeerState::Idle, true)], false);
        let with_desk = JournalPeerStatus::begun(NodeId([0xaa; 32]));
        status.journal.peers = vec![with_desk];
        status.device.obstacles = vec!["the disk is full".into()];
        assert!(!is_settled(&status, None).unwrap());
        assert!(!is_settled(&status, Some("desk")).unwrap());
        assert!(is_settled(&status, Some("nas")).unwrap());
        let text = picture(&status, &[]);
        for line in [
            "warning the disk is full",
            "peer    desk  connected  assets in sync, edits not\n          its clock is 2 days ahead",
            "peer    nas  connected  in sync",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let of_desk = "desk: its clock is 2 days ahead";
        assert_eq!(obstacles(&status, None), ["the disk is full", of_desk]);
        assert_eq!(obstacles(&status, Some("nas")), ["the disk is full"]);
    }

    #[test]
    fn a_removed_device_does_not_wait() {
        let mut status = status(Vec::new(), true);
        status.device.removed = true;
        assert_eq!(exit_of(is_settled(&status, None).unwrap_err()), Exit::NotInSync);
    }
}
