//! Builds the [`Status`] from the engine, the connections, the store and the journal. A change that
//! people notice makes a new revision; figures that change all the time do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::core::alerts::{Alert, twin_text};
use crate::core::engine::{Engine, PeerView};
use crate::core::ids::NodeId;
use crate::core::limits::LOGS_PER_AUTHOR_MAX;
use crate::core::peers::ConnId;
use crate::core::units::counted;
use crate::net::{Net, Path, WireBytes};

use super::copies::{Awaited, Keeper};
use super::journal::JournalHandle;
use super::status::{
    DeviceStatus, JournalPeerState, JournalPeerStatus, JournalStatus, PairingStatus, PeerState,
    PeerStatus, RateLimitStatus, ScrubStatus, Status, StoreStatus,
};
use crate::store::Store;

/// The window over which rates are averaged.
const RATE_WINDOW_MS: f64 = 2_000.0;

/// Rates below this, in bytes per second, count as zero.
const RATE_BYTES_MIN: f64 = 1.0;

/// The bytes that moved on a connection, and their rates.
#[derive(Debug, Clone, Default)]
pub(crate) struct LinkFigures {
    at_ms: u64,
    sent_bytes: u64,
    received_bytes: u64,
    left_bytes: u64,
    send_rate: f64,
    receive_rate: f64,
}

/// What a connection has moved since it began, and what is left of the batches under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) left_bytes: u64,
}

/// A connection as the status shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LinkView {
    pub(crate) figures: LinkFigures,
    pub(crate) path: Option<Path>,
    pub(crate) wire_bytes: WireBytes,
    pub(crate) journal: Option<JournalPeerStatus>,
    /// Why the peer accepts no assets for now.
    pub(crate) put_off: Option<String>,
}

impl LinkFigures {
    /// Updates the rates from what has moved until `now_ms`.
    pub(crate) fn measure(&mut self, now_ms: u64, moved: Moved) {
        let Moved { sent_bytes, received_bytes, left_bytes } = moved;
        let elapsed_ms = now_ms.saturating_sub(self.at_ms) as f64;
        if elapsed_ms > 0.0 {
            // Exponential decay, so that readings may come at any interval.
            let keep = (-elapsed_ms / RATE_WINDOW_MS).exp();
            let average = |rate: f64, moved: u64| {
                let rate = rate * keep + moved as f64 * 1000.0 / elapsed_ms * (1.0 - keep);
                if rate < RATE_BYTES_MIN { 0.0 } else { rate }
            };
            self.send_rate = average(self.send_rate, sent_bytes - self.sent_bytes);
            self.receive_rate = average(self.receive_rate, received_bytes - self.received_bytes);
            self.at_ms = now_ms;
            (self.sent_bytes, self.received_bytes) = (sent_bytes, received_bytes);
        }
        self.left_bytes = left_bytes;
    }

    fn eta_s(&self) -> Option<f64> {
        let rate = self.send_rate + self.receive_rate;
        (self.left_bytes > 0 && rate > 0.0).then(|| self.left_bytes as f64 / rate)
    }
}

/// The store's state as the agent last saw it.
#[derive(Debug, Default)]
pub(crate) struct StoreView {
    pub(crate) up: bool,
    pub(crate) error: Option<String>,
    /// One sentence for each disk, of the store or of the journal, that is full.
    pub(crate) shortage: Vec<String>,
}

/// Parts of the status that other modules build.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) journal: JournalStatus,
    pub(crate) pairings: Vec<PairingStatus>,
    pub(crate) rate_limits: Option<RateLimitStatus>,
    pub(crate) alerts: Vec<Alert>,
    /// When each device that is not connected was last seen, ms since the Unix epoch.
    pub(crate) last_seen: BTreeMap<NodeId, u64>,
}

/// Where the status is read from, beside the engine.
pub(crate) struct Sources {
    pub(crate) node_id: NodeId,
    pub(crate) net: Net,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) store_location: String,
    pub(crate) journal: JournalHandle,
    pub(crate) keeper: Keeper,
    pub(crate) scrub: watch::Receiver<ScrubStatus>,
    /// The number of assets whose metadata is held back.
    pub(crate) frozen: watch::Receiver<usize>,
    /// The addresses of another device with this device's key, if there is one.
    pub(crate) twin: watch::Receiver<Option<BTreeSet<String>>>,
}

/// Builds each status, and keeps the last one to number the changes.
pub(crate) struct Picture {
    sources: Sources,
    revision: u64,
    last: Option<Status>,
    published_ms: u64,
}

impl Picture {
    pub(crate) fn new(sources: Sources) -> Self {
        Self { sources, revision: 0, last: None, published_ms: 0 }
    }

    /// When the last status was built.
    pub(crate) fn published_ms(&self) -> u64 {
        self.published_ms
    }

    /// Builds the status of this moment. `link` returns a connection's state.
    pub(crate) fn draw(
        &mut self,
        now_ms: u64,
        engine: &Engine,
        store: &StoreView,
        told: Told,
        link: impl Fn(ConnId) -> Option<LinkView>,
    ) -> Status {
        self.published_ms = now_ms;
        let sources = &self.sources;
        let views = engine.peer_views();
        let connected_in_sync =
            views.iter().filter(|view| view.conn.is_some()).all(|view| view.in_sync);
        let ids = |views: &[PeerView], of: fn(&&PeerView) -> bool| -> BTreeSet<NodeId> {
            views.iter().filter(of).map(|view| view.node_id).collect()
        };
        sources.keeper.await_confirmations(Awaited {
            members: ids(&views, |_| true),
            confirming: ids(&views, |view| view.confirms),
        });
        let mut peers: Vec<PeerStatus> = views
            .into_iter()
            .map(|view| {
                let link = view.conn.and_then(&link).unwrap_or_default();
                let last_seen_ms = told.last_seen.get(&view.node_id).copied();
                let last_seen_ms = last_seen_ms.filter(|_| view.conn.is_none());
                PeerStatus { last_seen_ms, ..peer_status(now_ms, view, link) }
            })
            .collect();
        peers.sort_by(|a, b| (&a.name, &a.node_id).cmp(&(&b.name, &b.node_id)));
        let copies = sources.keeper.view();
        for peer in &mut peers {
            let told = |of: &BTreeMap<NodeId, String>| of.get(&peer.node_id).cloned();
            peer.site = told(&copies.sites).unwrap_or_default();
            peer.wants = told(&copies.wants).unwrap_or_default();
        }
        let identity = engine.identity();
        let damaged = sources.store.damages().borrow().count;
        let mut obstacles = store.shortage.clone();
        obstacles.extend(damage_obstacle(damaged, &peers));
        let scrub = sources.scrub.borrow().clone();
        obstacles.extend(scrub.stopped.as_ref().map(|reason| {
            format!(
                "the store is not checked for damage until the next start: {reason}. Check its disk"
            )
        }));
        let mut status = Status {
            alerts: told.alerts,
            device: DeviceStatus {
                node_id: identity.node_id,
                name: identity.device_name.clone(),
                group_id: identity.group_id,
                version: identity.build.clone(),
                addresses: sources.net.addresses(),
                removed: engine.is_removed(),
                warnings: warnings(sources),
                obstacles,
            },
            store: StoreStatus {
                location: sources.store_location.clone(),
                up: store.up,
                store_id: identity.store_id,
                hash_algorithm: identity.algorithm.name().to_owned(),
                assets: sources.keeper.held(),
                quarantined: engine.quarantined(now_ms) as u64,
                damaged,
                last_error: store.error.clone(),
            },
            in_sync: !engine.is_behind()
                && store.up
                && connected_in_sync
                && engine.missing() == 0
                && told.journal.ready,
            peers,
            journal: told.journal,
            pairings: told.pairings,
            rate_limits: told.rate_limits,
            scrub,
            copies: sources.keeper.status(engine.missing()),
            revision: self.revision,
        };
        let essence = essence(&status);
        if self.last.as_ref() != Some(&essence) {
            self.revision += 1;
            self.last = Some(essence);
        }
        status.revision = self.revision;
        status
    }
}

/// The warning for a device that has a key but had no journal.
pub(crate) fn founded_anew(device: &NodeId) -> String {
    format!(
        "this device has its key ({}) and had no journal.db, so it is alone in a new group: to have its \
         group and metadata back, stop the agent and put journal.db back from a backup, or pair with \
         a device of the old group again (`can-sync pair`)",
        device.short()
    )
}

fn warnings(sources: &Sources) -> Vec<String> {
    let mut warnings = sources.net.warnings();
    if let Some(addresses) = &*sources.twin.borrow() {
        let addresses: Vec<String> = addresses.iter().cloned().collect();
        warnings.push(twin_text(&addresses));
    }
    if sources.journal.roster().is_founded_anew() {
        warnings.push(founded_anew(&sources.node_id));
    }
    if sources.journal.roster().is_out_of_logs() {
        warnings.push(format!(
            "nothing can be edited on this device any more: its journal was copied or put back from a \
             backup {LOGS_PER_AUTHOR_MAX} times, and the group takes no more logs of one device. Edit \
             on another device, or start this one over as a new device by moving `key` and \
             `journal.db` with its -wal and -shm away"
        ));
    }
    let frozen = *sources.frozen.borrow();
    if frozen > 0 {
        warnings.push(format!(
            "the metadata of {} changes again and again, and is not written to the store for a \
             while: does another program, or the store itself, undo what it is given?",
            counted(frozen as u64, "asset", "assets")
        ));
    }
    warnings
}

/// The part of a status whose change makes a new revision.
fn essence(status: &Status) -> Status {
    let mut essence = status.clone();
    essence.revision = 0;
    // Their texts tell how long ago something was.
    essence.alerts.iter_mut().for_each(|alert| alert.text.clear());
    let ScrubStatus { done_permille, read_bytes, assets, .. } = &mut essence.scrub;
    (*done_permille, *read_bytes, *assets) = (0, 0, 0);
    for peer in &mut essence.peers {
        peer.rtt_ms = None;
        peer.eta_s = None;
        peer.next_retry_ms = None;
        (peer.received_bytes, peer.sent_bytes) = (0, 0);
        (peer.wire_received_bytes, peer.wire_sent_bytes) = (0, 0);
        (peer.receive_rate_bytes, peer.send_rate_bytes) = (0.0, 0.0);
    }
    essence
}

fn peer_status(now_ms: u64, view: PeerView, link: LinkView) -> PeerStatus {
    let state = match (view.conn, view.ready) {
        (Some(_), true) if view.active || !view.in_sync => PeerState::Syncing,
        (Some(_), true) => PeerState::Idle,
        (Some(_), false) => PeerState::Connecting,
        (None, _) if view.dialing => PeerState::Connecting,
        (None, _) => PeerState::Offline,
    };
    let obstacles = obstacles(view.in_sync, &link);
    let LinkView { figures, path, wire_bytes, .. } = link;
    let name = if view.name.is_empty() { view.node_id.short() } else { view.name };
    PeerStatus {
        node_id: view.node_id,
        name,
        state,
        last_seen_ms: None,
        path: path.map(|path| path.kind.name().to_owned()),
        rtt_ms: path.map(|path| path.rtt_ms),
        in_sync: view.in_sync,
        missing_here: view.missing_here,
        missing_there: view.missing_there,
        received_bytes: figures.received_bytes,
        sent_bytes: figures.sent_bytes,
        wire_received_bytes: wire_bytes.received,
        wire_sent_bytes: wire_bytes.sent,
        receive_rate_bytes: figures.receive_rate,
        send_rate_bytes: figures.send_rate,
        eta_s: figures.eta_s(),
        last_error: view.last_error,
        obstacles,
        next_retry_ms: view.retry_at_ms.map(|at| at.saturating_sub(now_ms)),
        site: String::new(),
        wants: String::new(),
    }
}

/// Reasons why this device and a peer differ that do not go away by waiting.
fn obstacles(same_assets: bool, link: &LinkView) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Some(reason) = link.put_off.as_ref().filter(|_| !same_assets) {
        obstacles.push(format!("it takes no assets for now: {reason}"));
    }
    let Some(journal) = &link.journal else { return obstacles };
    if let Some(skew_ms) = journal.skew_ms {
        let side = if skew_ms > 0 { "ahead of" } else { "behind" };
        let apart = apart(skew_ms.unsigned_abs());
        obstacles.push(format!(
            "its clock is {apart} {side} this device's: edits from the future are held back until \
             the wrong clock is set right"
        ));
    }
    if journal.state == JournalPeerState::InSync {
        return obstacles;
    }
    let mut reasons: Vec<_> = journal.held.iter().map(|held| held.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    obstacles.extend(
        reasons.into_iter().map(|reason| format!("edits from it are held back here: {reason}")),
    );
    if let Some(refused) = &journal.refused {
        obstacles.push(format!("it holds edits from here back: {}", refused.reason));
    }
    obstacles
}

/// The obstacle for damaged assets that no connected peer can send again; `None` when there are
/// none.
fn damage_obstacle(damaged: u64, peers: &[PeerStatus]) -> Option<String> {
    let connected: Vec<_> = peers
        .iter()
        .filter(|peer| matches!(peer.state, PeerState::Syncing | PeerState::Idle))
        .collect();
    let is_compared =
        |peer: &&PeerStatus| peer.in_sync || peer.missing_here + peer.missing_there > 0;
    if !connected.iter().all(is_compared) {
        return None;
    }
    // Whichever assets the peers still owe may be the damaged ones, so this counts too few at most.
    let to_come = connected.iter().map(|peer| peer.missing_here).sum();
    let lost = damaged.saturating_sub(to_come);
    (lost > 0).then(|| {
        format!(
            "{} damaged, and no connected device holds a good copy: add the files again, or connect \
             a device that has them",
            counted(lost, "asset of the store is", "assets of the store are")
        )
    })
}

/// The difference of two clocks in the unit that fits.
fn apart(ms: u64) -> String {
    let minutes = ms / 60_000;
    match minutes {
        0..120 => format!("{minutes} minutes"),
        120..2_880 => format!("{} hours", minutes / 60),
        _ => format!("{} days", minutes / 1_440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::status::JournalRefusal;

    fn link(state: JournalPeerState, skew_ms: Option<i64>) -> LinkView {
        let refusal = |reason: &str| JournalRefusal { reason: reason.into(), log: None, seq: None };
        let journal = JournalPeerStatus {
            state,
            skew_ms,
            held_logs: 2,
            held: vec![refusal("from the future"), refusal("from the future")],
            refused: Some(refusal("my disk is full")),
            ..JournalPeerStatus::begun(NodeId([1; 32]))
        };
        let (journal, put_off) = (Some(journal), Some("no room".into()));
        LinkView { journal, put_off, ..LinkView::default() }
    }

    #[test]
    fn whatever_keeps_two_devices_apart_is_said_once_each() {
        let days_ms = -3 * 86_400_000;
        let said = obstacles(false, &link(JournalPeerState::CatchingUp, Some(days_ms)));
        let expected = [
            "it takes no assets for now: no room",
            "its clock is 3 days behind this device's: edits from the future are held back until \
             the wrong clock is set right",
            "edits from it are held back here: from the future",
            "it holds edits from here back: my disk is full",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_damaged_asset_is_an_obstacle_once_no_connected_peer_can_send_it() {
        let peer = |conn, in_sync, missing_here| {
            let view = PeerView {
                node_id: NodeId([1; 32]),
                name: String::new(),
                conn,
                ready: true,
                dialing: false,
                in_sync,
                confirms: false,
                active: false,
                missing_here,
                missing_there: 0,
                last_error: None,
                retry_at_ms: None,
            };
            peer_status(0, view, LinkView::default())
        };
        let conn = Some(ConnId(1));
        assert_eq!(damage_obstacle(0, &[peer(conn, true, 0)]), None);
        for nobody_has_it in [vec![], vec![peer(conn, true, 0)], vec![peer(None, false, 1)]] {
            let said = damage_obstacle(1, &nobody_has_it).unwrap_or_default();
            assert!(said.starts_with("1 asset of the store is damaged"), "{said}");
        }
        let still_comparing = peer(conn, false, 0);
        for may_come in [peer(conn, false, 1), still_comparing] {
            assert_eq!(damage_obstacle(1, &[peer(conn, true, 0), may_come]), None);
        }
        let said = damage_obstacle(3, &[peer(conn, false, 1)]).unwrap_or_default();
        assert!(said.starts_with("2 assets"), "{said}");
    }

    #[test]
    fn what_was_refused_before_is_no_obstacle_once_both_have_the_same() {
        assert!(obstacles(true, &link(JournalPeerState::InSync, None)).is_empty());
    }
}
