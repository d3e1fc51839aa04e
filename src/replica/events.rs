//! Writes the device's own events into the journal: those that tasks report, and devices that
//! connect or are lost. (`metadata` writes the events of assets together with their cause.)
//!
//! N1  The journal numbers the events: contiguously per device, across restarts.
//! N2  An event that cannot be written now waits, and so do those after it. The queue is bounded;
//!     events that find it full are counted and reported. When the events have used up their share
//!     of the space, further ones are dropped.
//! N3  A connection that breaks and soon comes back causes no event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};

use crate::clock::Clock;
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::draft::{Draft, DraftChange, DraftError};
use crate::core::limits::OP_CHANGES_MAX;
use crate::core::peers::Backoff;

use super::journal::{AskError, JournalHandle};
use super::status::{PeerState, PeerStatus, Status};
use crate::store::Damages;

/// The most events that wait to be written. People cause them, or alarms, each of which is reported
/// once; so many wait only while nothing can be written.
const TOLD_MAX: usize = 1024;

/// A device counts as lost after it was away for this long.
const LOST_AFTER_MS: u64 = 60 * 1000;

/// The most different alarms in the agent's life; otherwise a rotten disk would fill the journal.
const ALARMS_MAX: usize = 1000;

/// The queue to which tasks report events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EventLog(mpsc::Sender<LogEvent>);

/// Makes the queue of device events. [`record`] reads the receiver.
pub(crate) fn channel() -> (EventLog, mpsc::Receiver<LogEvent>) {
    let (sender, told) = mpsc::channel(TOLD_MAX);
    (EventLog(sender), told)
}

impl EventLog {
    /// Queues an event without waiting. If the queue is full the event is dropped, and the loss is
    /// logged.
    pub(crate) fn tell(&self, event: LogEvent) {
        match self.0.try_send(event) {
            // Closed: the agent is stopping.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(event)) => {
                tracing::warn!(kind = event.kind(), "an event is not logged: {TOLD_MAX} wait");
            }
        }
    }
}

/// Reports damage as the store finds it, until the store is closed.
pub(crate) async fn tell_damages(mut damages: watch::Receiver<Damages>, events: EventLog) {
    let mut seen = 0;
    loop {
        let known = damages.borrow_and_update().clone();
        for hash in known.since(seen) {
            let what = "the bytes of an asset in the store are damaged or gone".into();
            events.tell(LogEvent::IntegrityAlarm { what, hash: Some(*hash), device: None });
        }
        seen = known.found;
        if damages.changed().await.is_err() {
            return;
        }
    }
}

/// Writes events until dropped, or until the journal is closed.
pub(crate) async fn record(
    journal: JournalHandle,
    mut told: mpsc::Receiver<LogEvent>,
    mut status: watch::Receiver<Status>,
) {
    let clock = Clock::start();
    let mut presence = Presence::default();
    let mut alarms = Alarms::default();
    loop {
        let mut events = Vec::new();
        let wake_ms = presence.deadline_ms();
        let wake = async {
            match wake_ms {
                Some(wake_ms) => sleep_until(clock.instant(wake_ms).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            count = told.recv_many(&mut events, OP_CHANGES_MAX) => if count == 0 { return },
            changed = status.changed() => if changed.is_err() { return },
            () = wake => {}
        }
        events.retain(|event| alarms.is_new(event));
        events.extend(presence.see(clock.now_ms(), &status.borrow_and_update().peers));
        for events in events.chunks(OP_CHANGES_MAX) {
            if write(&journal, events).await.is_err() {
                return;
            }
        }
    }
}

/// Writes one op; retries until it is written. An error means that the journal is closed.
async fn write(journal: &JournalHandle, events: &[LogEvent]) -> Result<(), AskError> {
    let changes: Vec<DraftChange> = events.iter().map(LogEvent::to_change).collect();
    let mut backoff = Backoff::default();
    loop {
        let draft = Draft { changes: changes.clone(), expect: Vec::new() };
        let why = match journal.write(draft).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error @ DraftError::Quota { .. })) => {
                tracing::warn!(events = events.len(), %error, "events are not logged");
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(AskError::Closed) => return Err(AskError::Closed),
            Err(error) => error.to_string(),
        };
        tracing::debug!(why, "cannot write events now");
        sleep(Duration::from_millis(backoff.next_ms(rand::random()))).await;
    }
}

/// Passes each alarm once.
#[derive(Debug, Default)]
struct Alarms(BTreeSet<(String, Option<Hash>, Option<NodeId>)>);

impl Alarms {
    fn is_new(&mut self, event: &LogEvent) -> bool {
        let LogEvent::IntegrityAlarm { what, hash, device } = event else { return true };
        self.0.len() < ALARMS_MAX && self.0.insert((what.clone(), *hash, *device))
    }
}

/// The devices that are connected, or were until a moment ago.
#[derive(Debug, Default)]
struct Presence(BTreeMap<NodeId, Seen>);

#[derive(Debug)]
struct Seen {
    name: String,
    reason: Option<String>,
    /// Since when it is away; `None` while it is connected.
    away_ms: Option<u64>,
}

impl Presence {
    /// The next time at which a device may count as lost.
    fn deadline_ms(&self) -> Option<u64> {
        self.0.values().filter_map(|seen| seen.away_ms).min().map(|away| away + LOST_AFTER_MS)
    }

    /// Takes the peers' current states and returns the events that follow. A device that was
    /// removed from the group is forgotten without an event.
    fn see(&mut self, now_ms: u64, peers: &[PeerStatus]) -> Vec<LogEvent> {
        let mut events = Vec::new();
        let mut members = BTreeSet::new();
        for peer in peers {
            let device = peer.node_id;
            members.insert(device);
            let name = peer.name.clone();
            let here = match peer.state {
                PeerState::Syncing | PeerState::Idle => true,
                PeerState::Offline | PeerState::Connecting => false,
            };
            match (self.0.get_mut(&device), here) {
                (None, false) => {}
                (None, true) => {
                    let seen = Seen { name: name.clone(), reason: None, away_ms: None };
                    self.0.insert(device, seen);
                    events.push(LogEvent::DeviceConnected { device, name });
                }
                (Some(seen), true) => *seen = Seen { name, reason: None, away_ms: None },
                (Some(seen), false) => {
                    let away_ms = Some(seen.away_ms.unwrap_or(now_ms));
                    *seen = Seen { name, reason: peer.last_error.clone(), away_ms };
                }
            }
        }
        self.0.retain(|device, seen| {
            let lost = seen.away_ms.is_some_and(|away| away + LOST_AFTER_MS <= now_ms);
            if lost && members.contains(device) {
                let (name, reason) = (seen.name.clone(), seen.reason.clone());
                events.push(LogEvent::DeviceLost { device: *device, name, reason });
            }
            !lost && members.contains(device)
        });
        events
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::replica::status::samples;

    fn peer(n: u8, state: PeerState) -> PeerStatus {
        let peer = samples::peer(&format!("peer {n}"), n, state, false);
        PeerStatus { last_error: Some("timed out".into()), ..peer }
    }

    fn kinds(events: &[LogEvent]) -> Vec<&str> {
        events.iter().map(LogEvent::kind).collect()
    }

    #[test]
    fn a_device_is_connected_once_and_lost_when_it_stays_away() {
        let mut presence = Presence::default();
        let (away, here) = (PeerState::Offline, PeerState::Idle);
        assert!(presence.see(0, &[peer(1, away)]).is_empty());
        assert!(presence.see(0, &[peer(1, PeerState::Connecting)]).is_empty());
        assert_eq!(kinds(&presence.see(5, &[peer(1, here)])), ["device-connected"]);
        assert!(presence.see(6, &[peer(1, PeerState::Syncing)]).is_empty());
        assert_eq!(presence.deadline_ms(), None);

        // A short absence causes no event.
        assert!(presence.see(10, &[peer(1, away)]).is_empty());
        assert!(presence.see(10 + LOST_AFTER_MS - 1, &[peer(1, here)]).is_empty());
        assert!(presence.see(100_000, &[peer(1, away)]).is_empty());
        assert_eq!(presence.deadline_ms(), Some(100_000 + LOST_AFTER_MS));
        let lost = presence.see(100_000 + LOST_AFTER_MS, &[peer(1, PeerState::Connecting)]);
        let expected = LogEvent::DeviceLost {
            device: NodeId([1; 32]),
            name: "peer 1".into(),
            reason: Some("timed out".into()),
        };
        assert_eq!(lost, [expected]);
        assert!(presence.see(1_000_000, &[peer(1, away)]).is_empty());
        assert_eq!(kinds(&presence.see(2_000_000, &[peer(1, here)])), ["device-connected"]);
    }

    #[test]
    fn who_was_put_out_of_the_group_is_not_lost() {
        let mut presence = Presence::default();
        presence.see(0, &[peer(1, PeerState::Idle), peer(2, PeerState::Idle)]);
        assert!(presence.see(1, &[peer(2, PeerState::Idle)]).is_empty());
        assert_eq!(presence.deadline_ms(), None);
        assert!(presence.see(2 * LOST_AFTER_MS, &[peer(2, PeerState::Idle)]).is_empty());
    }

    #[test]
    fn an_alarm_is_told_once_and_alarms_are_bounded() {
        let mut alarms = Alarms::default();
        let alarm =
            |n: usize| LogEvent::IntegrityAlarm { what: n.to_string(), hash: None, device: None };
        assert!(alarms.is_new(&alarm(0)) && !alarms.is_new(&alarm(0)));
        assert_eq!(
            (0..2 * ALARMS_MAX).filter(|n| alarms.is_new(&alarm(*n))).count(),
            ALARMS_MAX - 1
        );
        let paired = LogEvent::DevicePaired {
            device: NodeId([1; 32]),
            name: String::new(),
            short_code: None,
        };
        assert!(alarms.is_new(&paired) && alarms.is_new(&paired));
    }
}
