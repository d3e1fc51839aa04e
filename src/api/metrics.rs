//! `GET /metrics`: the agent in numbers, in the text format of Prometheus (version 0.0.4, which is
//! also OpenMetrics but for its end). `docs/metrics.md` lists them.
//!
//! The text is written here in a hundred lines rather than by a client library: everything is read
//! from the status and from the loop's counters at once, and nothing is registered, counted twice or
//! kept. The route needs the token like any other: what devices are called, and what they move, is
//! no business of other users of the machine.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::OpenApi;

use super::Api;
use crate::alerts::hooks::HookView;
use crate::core::alerts::{Alert, Kind};
use crate::core::foreign_text::visible;
use crate::core::ids::NodeId;
use crate::http::problem::Problem;
use crate::replica::status::{PeerState, PeerStatus, ScrubStatus, Status};
use crate::transfer::totals::PeerTotals;

/// The media type of Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The longest value of a label.
const LABEL_CHARS_MAX: usize = 100;

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/metrics", get(metrics))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(metrics))]
pub(super) struct Described;

/// The agent in numbers, for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "agent",
    responses((status = 200, description = "Done.", body = String, content_type = "text/plain"))
)]
async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let totals = api.handle.totals().await?;
    let page = page(&api.handle.status(), &totals, &api.handle.alerts().hooks().list());
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], page).into_response())
}

/// The labels of a sample that is the only one of its metric.
const NO_LABELS: [(&str, &str); 0] = [];

/// The kind of a metric.
#[derive(Debug, Clone, Copy)]
enum Type {
    /// Only rises, from the start of the agent on.
    Counter,
    /// Rises and falls.
    Gauge,
}

/// A page of metrics under construction.
struct Page(String);

impl Page {
    /// Writes a metric; without samples nothing.
    fn metric<'a, L: AsRef<[(&'a str, &'a str)]>>(
        &mut self,
        kind: Type,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            self.0.push_str(name);
            for (at, (label, text)) in labels.as_ref().iter().enumerate() {
                let open = if at == 0 { '{' } else { ',' };
                let _ = write!(self.0, "{open}{label}=\"{}\"", escaped(text));
            }
            let close = if labels.as_ref().is_empty() { "" } else { "}" };
            let _ = writeln!(self.0, "{close} {value}");
        }
    }

    /// Writes a metric with one sample.
    fn single(&mut self, kind: Type, name: &str, help: &str, value: f64) {
        self.metric(kind, name, help, [(NO_LABELS, value)]);
    }
}

/// A label's value as the format has it, without what acts on a terminal.
fn escaped(text: &str) -> String {
    visible(text, LABEL_CHARS_MAX).replace('\\', r"\\").replace('"', r#"\""#)
}

/// Everything that `docs/metrics.md` lists.
fn page(status: &Status, totals: &BTreeMap<NodeId, PeerTotals>, hooks: &[HookView]) -> String {
    let mut page = Page(String::new());
    of_device(&mut page, status);
    of_alerts(&mut page, &status.alerts);
    of_peers(&mut page, &status.peers, status);
    of_transfers(&mut page, &status.peers, totals);
    of_hooks(&mut page, hooks);
    page.0
}

fn of_device(page: &mut Page, status: &Status) {
    let version = [("version", status.device.version.as_str())];
    let help = "The version of the agent; always 1.";
    page.metric(Type::Gauge, "can_sync_build_info", help, [(version, 1.0)]);
    let store = &status.store;
    for (name, help, value) in [
        ("can_sync_assets", "Assets of this device's store, trashed ones included.", store.assets),
        ("can_sync_assets_damaged", "Assets whose content is lost or wrong here.", store.damaged),
        (
            "can_sync_assets_quarantined",
            "Assets that are not taken in for now: refused, or sent with wrong content.",
            store.quarantined,
        ),
        ("can_sync_store_up", "Whether the store answers.", store.up.into()),
        (
            "can_sync_in_sync",
            "Whether every connected device holds the same assets and edits.",
            status.in_sync.into(),
        ),
        (
            "can_sync_journal_forked_logs",
            "Logs that hold two ops of one number, because a device was copied.",
            status.journal.forked_logs.len() as u64,
        ),
    ] {
        page.single(Type::Gauge, name, help, value as f64);
    }
    let help = "How often a whole journal was sent again because contents differed.";
    let repairs = status.journal.repairs as f64;
    page.single(Type::Counter, "can_sync_journal_repairs_total", help, repairs);
    let ScrubStatus { done_permille, finished_ms, .. } = status.scrub;
    let help = "How much of the store was read again in this cycle.";
    page.single(Type::Gauge, "can_sync_scrub_done_ratio", help, done_permille as f64 / 1000.0);
    let help = "When the whole store was last read again.";
    let finished = finished_ms.map(|at_ms| (NO_LABELS, seconds(at_ms)));
    page.metric(Type::Gauge, "can_sync_scrub_finished_timestamp_seconds", help, finished);
}

fn of_alerts(page: &mut Page, alerts: &[Alert]) {
    let of = |kind: Kind, is_acked: bool| {
        let fits = |alert: &&Alert| alert.kind == kind && alert.acked_ms.is_some() == is_acked;
        let count = alerts.iter().filter(fits).count();
        let acked = if is_acked { "true" } else { "false" };
        ([("acknowledged", acked), ("kind", kind.name())], count as f64)
    };
    let all = Kind::ALL.into_iter().flat_map(|kind| [of(kind, false), of(kind, true)]);
    page.metric(Type::Gauge, "can_sync_alerts", "Alerts that stand.", all);
}

/// The labels that name a peer: its name for people, and its node ID, which is unique.
struct Labels {
    device: String,
    peer: String,
}

impl Labels {
    fn of(peer: &PeerStatus) -> Self {
        Self { device: peer.node_id.short(), peer: peer.name.clone() }
    }

    fn plain(&self) -> [(&str, &str); 2] {
        [("device", &self.device), ("peer", &self.peer)]
    }

    fn with<'a>(&'a self, label: &'a str, value: &'a str) -> [(&'a str, &'a str); 3] {
        [("device", &self.device), (label, value), ("peer", &self.peer)]
    }
}

fn of_peers(page: &mut Page, peers: &[PeerStatus], status: &Status) {
    let labels: Vec<Labels> = peers.iter().map(Labels::of).collect();
    type Value = fn(&Status, &PeerStatus) -> Option<f64>;
    let metrics: [(&str, &str, Value); 6] = [
        ("can_sync_peer_connected", "Whether the device is connected.", |_, peer| {
            Some(matches!(peer.state, PeerState::Syncing | PeerState::Idle).into())
        }),
        (
            "can_sync_peer_in_sync",
            "Whether the device holds the same assets and edits as this one, as far as is known.",
            |status, peer| Some((peer.in_sync && status.has_same_edits(peer)).into()),
        ),
        (
            "can_sync_peer_missing_here",
            "Assets that the device has and this one lacks, as far as is known.",
            |_, peer| Some(peer.missing_here as f64),
        ),
        (
            "can_sync_peer_missing_there",
            "Assets that this device has and the other one lacks, as far as is known.",
            |_, peer| Some(peer.missing_there as f64),
        ),
        (
            "can_sync_peer_last_seen_timestamp_seconds",
            "When a device that is not connected was last seen.",
            |_, peer| peer.last_seen_ms.map(seconds),
        ),
        (
            "can_sync_peer_round_trip_seconds",
            "How long a packet to the device and back takes.",
            |_, peer| peer.rtt_ms.map(|rtt_ms| rtt_ms / 1000.0),
        ),
    ];
    for (name, help, value) in metrics {
        let samples = peers.iter().zip(&labels);
        let samples =
            samples.filter_map(|(peer, labels)| Some((labels.plain(), value(status, peer)?)));
        page.metric(Type::Gauge, name, help, samples);
    }
    let paths = peers
        .iter()
        .zip(&labels)
        .filter_map(|(peer, labels)| Some((labels.with("path", peer.path.as_deref()?), 1.0)));
    let help = "The path to a connected device: lan, direct or relay; always 1.";
    page.metric(Type::Gauge, "can_sync_peer_path_info", help, paths);
}

fn of_transfers(page: &mut Page, peers: &[PeerStatus], totals: &BTreeMap<NodeId, PeerTotals>) {
    let known: Vec<(Labels, &PeerTotals)> = peers
        .iter()
        .filter_map(|peer| Some((Labels::of(peer), totals.get(&peer.node_id)?)))
        .collect();
    type Both = fn(&PeerTotals) -> [u64; 2];
    let both: [(&str, &str, Both); 3] = [
        ("can_sync_transfer_bytes_total", "Bytes of assets that moved, by direction.", |totals| {
            [totals.received_bytes, totals.sent_bytes]
        }),
        ("can_sync_quic_bytes_total", "Bytes of all datagrams of QUIC, by direction.", |totals| {
            [totals.quic.received_bytes, totals.quic.sent_bytes]
        }),
        ("can_sync_quic_datagrams_total", "Datagrams of QUIC, by direction.", |totals| {
            [totals.quic.received_datagrams, totals.quic.sent_datagrams]
        }),
    ];
    for (name, help, values) in both {
        let samples = known.iter().flat_map(|(labels, totals)| {
            let [received, sent] = values(totals);
            let sample =
                |direction, bytes: u64| (labels.with("direction", direction), bytes as f64);
            [sample("received", received), sample("sent", sent)]
        });
        page.metric(Type::Counter, name, help, samples);
    }
    type One = fn(&PeerTotals) -> u64;
    let single: [(&str, &str, One); 4] = [
        ("can_sync_connections_total", "Connections with the device.", |totals| totals.connections),
        ("can_sync_quic_packets_sent_total", "Packets of QUIC sent.", |totals| {
            totals.quic.sent_packets
        }),
        (
            "can_sync_quic_packets_lost_total",
            "Packets of QUIC that were sent and lost.",
            |totals| totals.quic.lost_packets,
        ),
        ("can_sync_quic_lost_bytes_total", "Bytes in packets that were sent and lost.", |totals| {
            totals.quic.lost_bytes
        }),
    ];
    for (name, help, value) in single {
        let samples = known.iter().map(|(labels, totals)| (labels.plain(), value(totals) as f64));
        page.metric(Type::Counter, name, help, samples);
    }
}

fn of_hooks(page: &mut Page, hooks: &[HookView]) {
    let delivered =
        hooks.iter().map(|hook| ([("hook", hook.name.as_str())], hook.delivered as f64));
    let help = "Events that a hook was called with, since it was set up.";
    page.metric(Type::Counter, "can_sync_hook_events_delivered_total", help, delivered);
    let given_up = hooks.iter().map(|hook| ([("hook", hook.name.as_str())], hook.given_up as f64));
    let help = "Events that a hook was not called with, because that failed for three days.";
    page.metric(Type::Counter, "can_sync_hook_events_given_up_total", help, given_up);
    let failing = hooks.iter().map(|hook| {
        ([("hook", hook.name.as_str())], f64::from(u8::from(hook.failing_since_ms.is_some())))
    });
    page.metric(Type::Gauge, "can_sync_hook_failing", "Whether the last call failed.", failing);
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::clock::instant_now;
    use crate::core::ids::GroupId;
    use crate::net::QuicStats;

    fn sample(peers: u8) -> (Status, BTreeMap<NodeId, PeerTotals>, Vec<HookView>) {
        let mut status = Status::starting(NodeId([0xff; 32]), GroupId([1; 32]));
        status.device.version = "0.1.0".into();
        let mut totals = BTreeMap::new();
        for n in 0..peers {
            let node_id = NodeId([n; 32]);
            let json = serde_json::json!({
                "node_id": node_id, "name": "ph\"o\\n\ne\u{1b}[2J", "state": "idle", "path": "lan",
                "rtt_ms": 1.5, "in_sync": true, "missing_here": 1, "missing_there": 2,
                "received_bytes": 0, "sent_bytes": 0, "wire_received_bytes": 0,
                "wire_sent_bytes": 0, "receive_rate_bytes": 0.0, "send_rate_bytes": 0.0,
                "eta_s": null, "last_error": null, "next_retry_ms": null, "last_seen_ms": 1500,
            });
            status.peers.push(serde_json::from_value(json).unwrap());
            let quic = QuicStats { sent_bytes: u64::from(n) + 1, ..QuicStats::default() };
            let of_peer =
                PeerTotals { connections: 2, sent_bytes: 10_000_000_000, received_bytes: 7, quic };
            totals.insert(node_id, of_peer);
        }
        let hook = HookView {
            name: "mail".into(),
            on: vec!["alert".into()],
            target: crate::core::hooks::Target::Url("https://example.org/".into()),
            delivered: 3,
            given_up: 0,
            failing_since_ms: Some(7),
            last_error: None,
        };
        (status, totals, vec![hook])
    }

    /// The name, the labels and the value of a sample.
    fn parsed(line: &str) -> (String, String, f64) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        (name.to_owned(), labels.to_owned(), value.parse().unwrap())
    }

    #[test]
    fn the_page_is_in_the_format_of_prometheus() {
        let (status, totals, hooks) = sample(3);
        let page = page(&status, &totals, &hooks);
        assert!(page.ends_with('\n'));
        let (mut current, mut counts) = (String::new(), false);
        let (mut names, mut series) = (BTreeSet::new(), BTreeSet::new());
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(names.insert(name.to_owned()), "{name} comes twice");
                assert!(help.ends_with('.'), "{line}");
                current = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, current);
                counts = kind == "counter";
                assert!(counts || kind == "gauge", "{line}");
                assert_eq!(counts, name.ends_with("_total"), "{line}");
            } else {
                let (name, labels, value) = parsed(line);
                assert_eq!(name, current, "{line}");
                assert!(series.insert((name, labels)), "{line} comes twice");
                assert!(value.is_finite() && (!counts || value >= 0.0), "{line}");
            }
        }
        assert!(names.len() > 20, "{names:?}");
        let name = r#"peer="ph\"o\\ne[2J""#;
        let expected = format!(
            "can_sync_transfer_bytes_total{{device=\"0000000000\",direction=\"sent\",{name}}} \
             10000000000\n"
        );
        assert!(page.contains(&expected), "{page}");
        assert!(page.contains("can_sync_alerts{acknowledged=\"false\",kind=\"damaged\"} 0\n"));
        let docs = include_str!("../../docs/metrics.md");
        for name in &names {
            assert!(docs.contains(&format!("| `{name}` |")), "docs/metrics.md lacks {name}");
        }
        let listed = docs.lines().filter(|line| line.starts_with("| `can_sync_")).count();
        // The scrub has not finished a cycle.
        let left_out = 1;
        assert_eq!(listed, names.len() + left_out, "a metric is listed and never written");
    }

    /// The value of `key`, wherever it is in a document.
    fn texts<'a>(document: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
        match document {
            serde_json::Value::Object(members) => {
                found.extend(members.get(key).and_then(|text| text.as_str()));
                members.values().for_each(|member| texts(member, key, found));
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|item| texts(item, key, found))
            }
            _ => {}
        }
    }

    #[test]
    fn the_dashboard_asks_for_metrics_and_labels_that_there_are() {
        let (mut status, totals, hooks) = sample(2);
        status.scrub.finished_ms = Some(1);
        let page = page(&status, &totals, &hooks);
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (name, of_sample, _) = parsed(line);
            let names = of_sample.split("\",").filter_map(|label| Some(label.split_once('=')?.0));
            labels.entry(name).or_default().extend(names.map(str::to_owned));
        }
        let dashboard = include_str!("../../packaging/grafana/can-sync.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let mut expressions = Vec::new();
        texts(&dashboard, "expr", &mut expressions);
        assert!(expressions.len() > 10, "{expressions:?}");
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for expression in expressions {
            let mut rest = expression;
            let mut asked = 0;
            while let Some(at) = rest.find("can_sync_") {
                rest = &rest[at..];
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                let known = labels.get(name);
                let known = known.unwrap_or_else(|| panic!("{expression}: there is no {name}"));
                let matchers = after.strip_prefix('{').and_then(|after| after.split_once('}'));
                for matcher in matchers.map_or("", |(matchers, _)| matchers).split(',') {
                    let label = matcher.split(|c| !is_word(c)).next().unwrap_or_default();
                    // Prometheus adds the instance.
                    let is_there = ["", "instance"].contains(&label) || known.contains(label);
                    assert!(is_there, "{expression}: {name} has no label {label}");
                }
                (rest, asked) = (after, asked + 1);
            }
            assert!(asked > 0, "{expression}");
        }
    }

    #[test]
    fn a_page_about_twenty_peers_is_written_in_milliseconds() {
        let (status, totals, hooks) = sample(20);
        let begun = instant_now();
        let page = page(&status, &totals, &hooks);
        let took = instant_now().duration_since(begun);
        assert!(page.lines().count() > 300);
        // Without optimisation, on a busy machine: a release build takes a tenth of it.
        assert!(took.as_millis() < 50, "{took:?}");
    }
}
