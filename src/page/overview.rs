//! The first view: whether every device has everything, the alerts, the devices, and the bytes transferred
//! in the last 24 hours.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::form::{Form, token};
use super::icons;
use super::layout::{PageError, View};
use super::names::Names;
use super::visit::{Page, Visit};
use super::words::{ago, clean, count, counted, name, prose, size, span, time_of};
use crate::api::answers::{Record, RecordsPage};
use crate::api::requests::NoArguments;
use crate::api::sentence::{answer, is_connected, waiting_folder};
use crate::clock::wall_ms;
use crate::core::alerts::Alert;
use crate::core::ids::NodeId;
use crate::core::journal::device_events::DEVICE_MODEL;
use crate::folders::status::FoldersPage;
use crate::http::problem::Problem;
use crate::replica::status::{PeerState, PeerStatus, Status};

/// Records asked for at once; a group has fewer devices.
const PAGE_RECORDS: &str = "1000";

/// What a device reports about itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) platform: String,
    pub(super) version: String,
    pub(super) store_assets: Option<u64>,
    pub(super) store_bytes: Option<u64>,
    pub(super) free_bytes: Option<u64>,
    /// When it was written, by its clock.
    #[serde(skip)]
    pub(super) at_ms: u64,
}

/// What each device last reported about itself.
pub(super) async fn reports(visit: &Visit) -> Result<BTreeMap<NodeId, Report>, Problem> {
    let query = [("owner", "any"), ("limit", PAGE_RECORDS)];
    let page: RecordsPage = visit.page.agent.get(&["v1", "own", DEVICE_MODEL], &query).await?;
    let read = |Record { owner, fields, changed_ms, .. }: Record| {
        // A record of another version that this one cannot read is skipped.
        let fields = serde_json::Value::Object(fields.into_iter().collect());
        let report = serde_json::from_value(fields).unwrap_or_default();
        Some((owner?, Report { at_ms: changed_ms, ..report }))
    };
    Ok(page.records.into_iter().filter_map(read).collect())
}

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new().route("/", get(show)).route("/alerts/seen", post(seen))
}

async fn show(visit: Visit) -> Result<Markup, PageError> {
    let status = &visit.status;
    let folders: FoldersPage = visit.page.agent.get(&["v1", "folders"], &[]).await?;
    let waiting: Vec<_> = folders.folders.iter().filter_map(waiting_folder).collect();
    let reports = reports(&visit).await?;
    // A store that does not answer has a warning of its own.
    let store = visit.page.handle.store().info().await.ok();
    let own = reports.get(&status.device.node_id);
    let content = html! {
        (hero(status, &waiting))
        (attention(&visit))
        section aria-labelledby="devices" {
            div.head { h2 #devices { "Devices" } a href="/devices" { "Manage devices" } }
            (devices(status, &reports))
        }
        section aria-labelledby="figures" {
            div.head { h2 #figures { "This device" } }
            (figures(status, store.map(|store| store.asset_bytes), own))
        }
        section aria-labelledby="traffic" {
            div.head { h2 #traffic { "Last 24 hours" } }
            div #throughput data-live { (visit.page.throughput.picture(wall_ms())) }
        }
    };
    Ok(visit.show(View::Overview, "Overview", content))
}

/// Whether every device has everything, in one sentence.
fn hero(status: &Status, waiting: &[String]) -> Markup {
    let (is_well, sentence) = answer(status, waiting);
    let moves = status.peers.iter().any(|peer| peer.state == PeerState::Syncing);
    let (class, icon) = match (is_well, moves) {
        (true, _) if status.peers.is_empty() => ("alone", icons::devices()),
        (true, _) => ("well", icons::well()),
        (false, true) => ("moving", icons::moving()),
        (false, false) => ("attention", icons::attention()),
    };
    html! {
        div #answer .answer .(class) data-live role="status" {
            (icon)
            p { (prose(&sentence)) }
        }
    }
}

/// What needs somebody: alerts, each with a button to say that it was seen, and below them what the
/// agent warns of besides. Alerts that were acknowledged stand folded.
fn attention(visit: &Visit) -> Markup {
    let status = &visit.status;
    let (seen, open): (Vec<&Alert>, Vec<&Alert>) =
        status.alerts.iter().partition(|alert| alert.acked_ms.is_some());
    let warnings = status.device.warnings.iter().chain(&status.device.obstacles);
    // An alert says the same, and what to do.
    let warnings = warnings.filter(|warning| !open.iter().any(|alert| says(alert, warning)));
    let error = status.store.last_error.as_ref().map(|error| format!("The store: {error}"));
    let warnings: Vec<_> = warnings.cloned().chain(error).collect();
    html! {
        div #warnings data-live {
            @if !open.is_empty() || !warnings.is_empty() {
                ul.warnings aria-label="Needs attention" {
                    @for alert in open { li {
                        (icons::attention())
                        div.said { (prose(&alert.text)) " " span.quiet { "Since " (time_of(alert.since_ms)) "." } }
                        form method="post" action="/alerts/seen" {
                            (token(&visit.session))
                            input type="hidden" name="id" value=(alert.id);
                            button.plain aria-label=(format!("Seen: {}", clean(&alert.text))) { "Seen" }
                        }
                    } }
                    @for warning in &warnings { li { (icons::attention()) span { (prose(warning)) } } }
                }
            }
            @if !seen.is_empty() {
                details.seen {
                    summary { (counted(seen.len() as u64, "alert was seen and still stands", "alerts were seen and still stand")) }
                    ul.plain { @for alert in seen { li { (prose(&alert.text)) } } }
                }
            }
        }
    }
}

/// Whether an alert begins with what a warning says: as much as is no chance.
fn says(alert: &Alert, warning: &str) -> bool {
    const ENOUGH_CHARS: usize = 80;
    // The sentence begins with a capital.
    let start: String = warning.chars().skip(1).take(ENOUGH_CHARS).collect();
    alert.text.contains(&start)
}

#[derive(Deserialize)]
struct Seen {
    id: String,
}

async fn seen(visit: Visit, Form(Seen { id }): Form<Seen>) -> Result<Response, PageError> {
    let _: Alert = visit.page.agent.post(&["v1", "alerts", &id, "ack"], &NoArguments {}).await?;
    Ok(visit.done("It is noted. The alert goes when what it says is mended.", "/"))
}

fn devices(status: &Status, reports: &BTreeMap<NodeId, Report>) -> Markup {
    let mut peers: Vec<_> = status.peers.iter().collect();
    peers.sort_by_key(|peer| !is_connected(peer));
    let names = Names::of(status);
    html! {
        div #peers data-live {
            @if peers.is_empty() {
                (super::layout::empty("No other device yet", html! {
                    "Pair a phone, a laptop or a server, and everything here is kept on it too. "
                    a href="/devices" { "Pair a device" }
                }))
            } @else {
                ul.peers { @for peer in peers { li { (device(status, peer, reports, &names)) } } }
            }
        }
    }
}

fn device(
    status: &Status,
    peer: &PeerStatus,
    reports: &BTreeMap<NodeId, Report>,
    names: &Names,
) -> Markup {
    let report = reports.get(&peer.node_id);
    html! {
        div.peer {
            span.dot .(dot(peer)) {}
            div.who {
                span.strong { (name(&names.get(&peer.node_id))) }
                span.quiet { (state(peer, report)) }
            }
            div.facts {
                @if let Some(path) = &peer.path { span { (way(path)) } }
                @if let Some(rtt_ms) = peer.rtt_ms { span.number { (format!("{rtt_ms:.0} ms")) } }
            }
            div.sync { (transfer(status, peer)) }
        }
    }
}

/// The colour of a device's dot.
pub(super) fn dot(peer: &PeerStatus) -> &'static str {
    match peer.state {
        PeerState::Idle => "on",
        PeerState::Syncing => "busy",
        PeerState::Connecting => "trying",
        PeerState::Offline => "off",
    }
}

/// How a device is connected, in words.
pub(super) fn way(path: &str) -> &'static str {
    match path {
        "lan" => "local network",
        "relay" => "through a relay",
        _ => "direct",
    }
}

/// The state of a device, in words.
pub(super) fn state(peer: &PeerStatus, report: Option<&Report>) -> String {
    let heard = report.map(|report| ago(wall_ms().saturating_sub(report.at_ms)));
    match peer.state {
        PeerState::Idle => "Connected".into(),
        PeerState::Syncing => "Syncing".into(),
        PeerState::Connecting => "Connecting".into(),
        PeerState::Offline => match heard {
            Some(heard) => format!("Away, last heard of {heard}"),
            None => "Away".into(),
        },
    }
}

/// The assets still to be transferred, and the rates.
fn transfer(status: &Status, peer: &PeerStatus) -> Markup {
    if peer.in_sync && status.has_same_edits(peer) {
        return html! { span.quiet { "Has everything" } };
    }
    let here = status.store.assets;
    let (missing, total, text) = match (peer.missing_here, peer.missing_there) {
        (0, 0) if !is_connected(peer) => return html! { span.quiet { "Unknown until it is back" } },
        (0, 0) if peer.in_sync => return html! { span.quiet { "Exchanging edits" } },
        (0, 0) => return html! { span.quiet { "Comparing" } },
        (0, there) => (there, here, format!("{} to send", count(there))),
        (missing, 0) => (missing, here + missing, format!("{} to receive", count(missing))),
        (missing, there) => {
            let text = format!("{} to receive, {} to send", count(missing), count(there));
            (missing + there, here + missing, text)
        }
    };
    let rate = (peer.receive_rate_bytes + peer.send_rate_bytes) as u64;
    let eta = peer.eta_s.and_then(|left| Duration::try_from_secs_f64(left).ok());
    html! {
        @if is_connected(peer) {
            progress max=(total.max(1)) value=(total.saturating_sub(missing))
                aria-label=(format!("Synced with {}", super::words::clean(&peer.name))) {}
        }
        span.number { (text) }
        @if rate > 0 { span.number.quiet { (size(rate)) "/s" } }
        @if let Some(eta) = eta { span.quiet { "about " (span(eta.as_secs().max(1))) " left" } }
    }
}

fn figures(status: &Status, bytes: Option<u64>, report: Option<&Report>) -> Markup {
    html! {
        dl #own .figures data-live {
            div { dt { "Assets" } dd { (count(status.store.assets)) } }
            @if let Some(bytes) = bytes {
                div { dt { "Their size" } dd { (size(bytes)) } }
            }
            @if let Some(bytes) = report.and_then(|report| report.free_bytes) {
                div { dt { "Free on the disk" } dd { (size(bytes)) } }
            }
            div { dt { "Damaged" } dd {
                @if status.store.damaged == 0 { "None" } @else { (count(status.store.damaged)) }
            } }
        }
    }
}
