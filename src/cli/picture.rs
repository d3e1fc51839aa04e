//! The status as `can-sync status` shows it to people.

use std::time::Duration;

use super::alerts;
use super::pairing::state_name;
use super::text::{bytes, counted, duration, shown};
use crate::api::sentence::{answer, sync_text};
use crate::core::alerts::Alert;
use crate::replica::status::{
    CopiesStatus, PeerStatus, RateLimitStatus, ScrubState, ScrubStatus, Status,
};

/// The whole status for people.
pub(super) fn picture(status: &Status, folders: &[String]) -> String {
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
    let mut text =
        format!("{}  {}", shown(&store.location), counted(store.assets, "asset", "assets"));
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
        let missing = counted(copies.missing, "known asset is", "known assets are");
        parts.push(format!("{missing} missing"));
    }
    if copies.unwanted > 0 {
        let unwanted = counted(copies.unwanted, "known asset is", "known assets are");
        parts.push(format!("{unwanted} not wanted here"));
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
        parts.push(format!(
            "{} on no known device",
            counted(census.nowhere, "asset is", "assets are")
        ));
    }
    if census.one_copy > 0 {
        parts.push(format!(
            "{} only one copy",
            counted(census.one_copy, "asset has", "assets have")
        ));
    }
    if census.below_goal > census.one_copy + census.nowhere {
        let sites = match copies.goal_sites {
            1 => String::new(),
            sites => format!(" on {sites} sites"),
        };
        let goal = copies.goal_copies;
        let below = counted(census.below_goal, "asset has", "assets have");
        parts.push(format!("{below} fewer than {goal} copies{sites}"));
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
        parts.push(format!("{} found", counted(scrub.damaged, "damaged asset", "damaged assets")));
    }
    if scrub.strays > 0 {
        let strays = counted(scrub.strays, "file", "files");
        parts.push(format!("{strays} of no asset in the store's folder"));
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
mod tests {
    use super::*;
    use crate::replica::status::samples::{peer, status};
    use crate::replica::status::{CensusStatus, PeerState};

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
            "copies  412 assets have only one copy\n",
            "want    type=image/*, 300 known assets are not wanted here",
            "in sync  site home",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let census = CensusStatus { one_copy: 1, below_goal: 1, ..census };
        status.copies.census = Some(census);
        assert!(picture(&status, &[]).contains("copies  1 asset has only one copy\n"));
        status.copies.census = Some(CensusStatus { below_goal: 9, ..census });
        let line = "copies  1 asset has only one copy, 9 assets have fewer than 2 copies";
        assert!(picture(&status, &[]).contains(line), "{}", picture(&status, &[]));
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
