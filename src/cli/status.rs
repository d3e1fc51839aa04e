//! `status` and `wait`: what goes on, and until when.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::alerts;
use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::pairing::state_name;
use super::text::{bytes, duration, shown};
use crate::api::answers::Done;
use crate::api::requests::NoArguments;
use crate::api::sentence::{self, answer, is_connected, sync_text, waiting_folder};
use crate::core::alerts::Alert;
use crate::core::lookup;
use crate::folders::status::FoldersPage;
use crate::replica::status::{
    CopiesStatus, PeerStatus, RateLimitStatus, ScrubState, ScrubStatus, Status,
};

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

/// The whole status for people.
fn picture(status: &Status, folders: &[String]) -> String {
    let device = &status.device;
    let (acked, open): (Vec<_>, Vec<_>) =
        status.alerts.iter().partition(|alert| alert.acked_ms.is_some());
    let mut lines: Vec<_> = open
        .iter()
        .map(|alert| format!("ALERT   {}  [{}]", alerts::text(alert), shown(&alert.id)))
        .collect();
    lines.extend([
        shown(&answer(status, folders).1),
        format!("device  {}  {}", shown(&device.name), device.node_id),
        format!("store   {}", store_text(status)),
    ]);
    if !acked.is_empty() {
        lines.push(format!("alerts  {} acknowledged: `can-sync alerts`", acked.len()));
    }
    if device.removed {
        lines.push(
            "        removed from its group: start over as a new device with `can-sync leave`"
                .into(),
        );
    }
    let warnings = device.obstacles.iter().chain(&device.warnings);
    let warnings = warnings.filter(|warning| !open.iter().any(|alert| says(alert, warning)));
    lines.extend(warnings.map(|warning| format!("warning {}", shown(warning))));
    lines.extend(
        status.rate_limits.as_ref().map(|limits| format!("limit   {}", limit_text(limits))),
    );
    lines.extend(wants_text(&status.copies).map(|text| format!("want    {text}")));
    lines.extend(copies_text(status).map(|text| format!("copies  {text}")));
    lines.extend(scrub_text(&status.scrub).map(|text| format!("scrub   {text}")));
    if status.peers.is_empty() {
        lines.push("peers   none yet: `can-sync ticket` makes an invitation".into());
    }
    for peer in &status.peers {
        lines.push(format!("peer    {}", peer_text(status, peer)));
        let obstacles = peer.obstacles.iter();
        lines.extend(obstacles.map(|obstacle| format!("          {}", shown(obstacle))));
        if let Some(error) = &peer.last_error {
            lines.push(format!("          last error: {}", shown(error)));
        }
    }
    lines.join("\n")
}

/// Whether an alert says the same as a warning, as a sentence of its own.
fn says(alert: &Alert, warning: &str) -> bool {
    const ENOUGH_CHARS: usize = 80;
    // The sentence begins with a capital.
    let start: String = warning.chars().skip(1).take(ENOUGH_CHARS).collect();
    alert.text.contains(&start)
}

fn store_text(status: &Status) -> String {
    let store = &status.store;
    let mut text = format!("{}  {} assets", shown(&store.location), store.assets);
    if store.quarantined > 0 {
        text.push_str(&format!(", {} sent wrong or refused", store.quarantined));
    }
    if store.damaged > 0 {
        text.push_str(&format!(
            ", {} DAMAGED (asked of the other devices; else add the files again)",
            store.damaged
        ));
    }
    if !store.up {
        text.push_str("  NOT ANSWERING");
    }
    if let Some(error) = &store.last_error {
        text.push_str(&format!(": {}", shown(error)));
    }
    text
}

/// What this device wants, unless that is everything and all of it is here.
fn wants_text(copies: &CopiesStatus) -> Option<String> {
    let mut parts = vec![match copies.wants.as_str() {
        "" => "all".to_owned(),
        wants => shown(wants),
    }];
    if copies.missing > 0 {
        parts.push(format!("{} known assets are missing", copies.missing));
    }
    if copies.unwanted > 0 {
        parts.push(format!("{} known assets are not wanted here", copies.unwanted));
    }
    let is_usual = copies.wants.is_empty() && parts.len() == 1;
    (!is_usual).then(|| parts.join(", "))
}

/// Which assets have too few copies. A device alone cannot have more than one.
fn copies_text(status: &Status) -> Option<String> {
    let copies = &status.copies;
    let census = copies.census.filter(|_| !status.peers.is_empty())?;
    let mut parts = Vec::new();
    if census.nowhere > 0 {
        parts.push(format!("{} assets are on no known device", census.nowhere));
    }
    if census.one_copy > 0 {
        parts.push(format!("{} assets have only one copy", census.one_copy));
    }
    if census.below_goal > census.one_copy + census.nowhere || !parts.is_empty() {
        let sites = match copies.goal_sites {
            1 => String::new(),
            sites => format!(" on {sites} sites"),
        };
        let goal = copies.goal_copies;
        parts.push(format!("{} have fewer than {goal} copies{sites}", census.below_goal));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Describes the scrub while it reads, or after it has found something.
fn scrub_text(scrub: &ScrubStatus) -> Option<String> {
    let mut parts = match scrub.state {
        ScrubState::Running => vec![format!(
            "{} % of the store read again, at {}/s",
            scrub.done_permille / 10,
            bytes(scrub.rate_bytes)
        )],
        ScrubState::Waiting => vec!["waits for the store".to_owned()],
        ScrubState::Off | ScrubState::Resting | ScrubState::Stopped => Vec::new(),
    };
    if scrub.damaged > 0 {
        parts.push(format!("{} damaged asset(s) found", scrub.damaged));
    }
    if scrub.strays > 0 {
        parts.push(format!("{} file(s) of no asset in the store's folder", scrub.strays));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn limit_text(limits: &RateLimitStatus) -> String {
    let rates = [
        ("up", limits.up_bytes),
        ("down", limits.down_bytes),
        ("up per peer", limits.up_per_peer_bytes),
        ("down per peer", limits.down_per_peer_bytes),
    ];
    let in_force = rates.iter().filter_map(|(way, rate)| Some((way, (*rate)?)));
    let mut parts: Vec<_> =
        in_force.map(|(way, rate)| format!("{way} {}/s", bytes(rate))).collect();
    if parts.is_empty() {
        parts.push("none at this time".into());
    } else if limits.lan_exempt {
        parts.push("not within the local network".into());
    }
    parts.join("  ")
}

fn peer_text(status: &Status, peer: &PeerStatus) -> String {
    let mut parts = vec![shown(&peer.name), state_name(peer.state).to_owned()];
    parts.extend(peer.path.as_deref().map(shown));
    parts.extend(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms")));
    parts.push(sync_text(status, peer));
    if !peer.site.is_empty() {
        parts.push(format!("site {}", shown(&peer.site)));
    }
    if !peer.wants.is_empty() {
        parts.push(format!("wants {}", shown(&peer.wants)));
    }
    let rates = [("in", peer.receive_rate_bytes), ("out", peer.send_rate_bytes)];
    let moving = rates.iter().filter(|(_, rate)| *rate >= 1.0);
    parts.extend(moving.map(|(way, rate)| format!("{way} {}/s", bytes(*rate as u64))));
    let eta = peer.eta_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    parts.extend(eta.map(|eta| format!("{} left", duration(eta))));
    let retry = peer.next_retry_ms.map(Duration::from_millis);
    parts.extend(retry.map(|time| format!("next try in {}", duration(time))));
    parts.join("  ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::clock::wall_ms;
    use crate::core::ids::{GroupId, NodeId, StoreId};
    use crate::folders::status::{BindingState, FolderView};
    use crate::replica::status::{
        CensusStatus, DeviceStatus, JournalPeerStatus, PeerState, StoreStatus,
    };

    fn peer(name: &str, node_id: u8, state: PeerState, in_sync: bool) -> PeerStatus {
        PeerStatus {
            node_id: NodeId([node_id; 32]),
            name: name.into(),
            state,
            last_seen_ms: None,
            path: None,
            rtt_ms: None,
            in_sync,
            missing_here: 0,
            missing_there: 0,
            received_bytes: 0,
            sent_bytes: 0,
            wire_received_bytes: 0,
            wire_sent_bytes: 0,
            receive_rate_bytes: 0.0,
            send_rate_bytes: 0.0,
            eta_s: None,
            last_error: None,
            obstacles: Vec::new(),
            next_retry_ms: None,
            site: String::new(),
            wants: String::new(),
        }
    }

    fn status(peers: Vec<PeerStatus>, in_sync: bool) -> Status {
        Status {
            alerts: Vec::new(),
            device: DeviceStatus {
                node_id: NodeId([0xab; 32]),
                name: "desk".into(),
                group_id: GroupId([0xcd; 32]),
                version: "0.1.0".into(),
                addresses: Vec::new(),
                removed: false,
                warnings: Vec::new(),
                obstacles: Vec::new(),
            },
            store: StoreStatus {
                location: "embedded".into(),
                up: true,
                store_id: StoreId([0xef; 16]),
                hash_algorithm: "blake3".into(),
                assets: 3,
                quarantined: 0,
                damaged: 0,
                last_error: None,
            },
            peers,
            journal: Default::default(),
            pairings: Vec::new(),
            rate_limits: None,
            scrub: ScrubStatus::default(),
            copies: CopiesStatus::default(),
            in_sync,
            revision: 1,
        }
    }

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
    fn the_picture_says_how_many_assets_have_only_one_copy_and_what_is_not_wanted() {
        let mut status = status(vec![peer("nas", 0xbb, PeerState::Idle, true)], true);
        let text = picture(&status, &[]);
        assert!(!text.contains("copies") && !text.contains("want "), "{text}");
        let census =
            CensusStatus { known: 900, one_copy: 412, below_goal: 412, ..Default::default() };
        (status.copies.census, status.copies.goal_copies) = (Some(census), 2);
        (status.copies.wants, status.copies.unwanted) = ("type=image/*".into(), 300);
        status.peers[0].site = "home".into();
        let text = picture(&status, &[]);
        for line in [
            "Everything that is wanted is on 2 of 2 devices.",
            "copies  412 assets have only one copy, 412 have fewer than 2 copies",
            "want    type=image/*, 300 known assets are not wanted here",
            "in sync  site home",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn alerts_come_first_and_what_they_say_is_said_once() {
        let alert = |id: &str, text: &str, acked_ms| Alert {
            id: id.into(),
            kind: crate::core::alerts::Kind::LowSpace,
            text: text.into(),
            device: None,
            since_ms: 0,
            raised_ms: 0,
            acked_ms,
        };
        let mut status = status(Vec::new(), true);
        status.device.obstacles = vec!["no assets are taken in: the disk is full".into()];
        let full = "No assets are taken in: the disk is full. Free some space there.";
        status.alerts = vec![
            alert("low-space", full, None),
            alert("folder-paused-1d6a0bc55d", "The folder \u{1b}[31m is paused.", Some(7)),
        ];
        let text = picture(&status, &[]);
        let first = format!("ALERT   {full}  [low-space]\n");
        assert!(text.starts_with(&first), "{text}");
        assert!(text.contains("alerts  1 acknowledged: `can-sync alerts`"), "{text}");
        assert!(!text.contains("warning") && !text.contains('\u{1b}'), "{text}");
        status.alerts.clear();
        assert!(picture(&status, &[]).contains("warning no assets are taken in"));
    }

    #[test]
    fn a_device_that_is_away_is_shown_with_its_age() {
        let mut phone = peer("phone", 0xaa, PeerState::Offline, false);
        phone.last_seen_ms = Some(wall_ms() - 9 * 86_400_000);
        let (_, sentence) = answer(&status(vec![phone], false), &[]);
        assert_eq!(sentence, "Not everything is on every device: phone: last seen 9 days ago.");
    }

    #[test]
    fn a_removed_device_does_not_wait() {
        let mut status = status(Vec::new(), true);
        status.device.removed = true;
        assert_eq!(exit_of(is_settled(&status, None).unwrap_err()), Exit::NotInSync);
    }

    #[test]
    fn the_picture_shows_the_limits_in_force() {
        let mut status = status(Vec::new(), true);
        assert!(!picture(&status, &[]).contains("limit"));
        let mut limits = RateLimitStatus::default();
        status.rate_limits = Some(limits.clone());
        assert!(picture(&status, &[]).contains("limit   none at this time"));
        (limits.up_bytes, limits.down_per_peer_bytes) = (Some(2 << 20), Some(512 << 10));
        limits.lan_exempt = true;
        status.rate_limits = Some(limits);
        let expected =
            "limit   up 2.0 MiB/s  down per peer 512.0 KiB/s  not within the local network";
        assert!(picture(&status, &[]).contains(expected), "{}", picture(&status, &[]));
    }

    #[test]
    fn the_picture_shows_what_a_peer_lacks_and_no_escape_codes_of_its_name() {
        let mut phone = peer("ph\u{1b}[31mone", 0xaa, PeerState::Syncing, false);
        phone.missing_there = 7;
        phone.path = Some("relay".into());
        phone.rtt_ms = Some(12.34);
        phone.send_rate_bytes = 2048.0;
        phone.eta_s = Some(65.0);
        let text = picture(&status(vec![phone], false), &[]);
        let expected = "syncing  relay  12.3 ms  7 missing there  out 2.0 KiB/s  1m 05s left";
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
