//! The bytes of contents transferred in the last 24 hours, and a chart of them.
//!
//! The status counts the bytes of each connection. Every [`SAMPLE_EVERY`] the difference is added to a
//! ring of [`SLOTS`]. Bytes between the last sample and the end of a connection are not counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use maud::{Markup, html};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::words::size;
use crate::agent::handle::Handle;
use crate::clock::wall_ms;
use crate::core::ids::NodeId;
use crate::replica::status::Status;

const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// The length of a slot: 15 minutes.
const SLOT_MS: u64 = 15 * 60 * 1000;

/// The number of slots: 24 hours.
const SLOTS: usize = 96;

/// The bytes of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    received_bytes: u64,
    sent_bytes: u64,
}

/// The counts of the last 24 hours. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Throughput(Arc<Mutex<Past>>);

#[derive(Default)]
struct Past {
    /// The slots by their number since the Unix epoch.
    slots: BTreeMap<u64, Slot>,
    /// The bytes of each connection at the last sample.
    counted: BTreeMap<NodeId, Slot>,
}

impl Throughput {
    /// Takes samples while it is polled. Never returns.
    pub(super) async fn watch(&self, handle: &Handle) {
        loop {
            self.0.lock().add(&handle.status(), wall_ms());
            sleep(SAMPLE_EVERY).await;
        }
    }

    /// The chart, with its content in words.
    pub(super) fn picture(&self, now_ms: u64) -> Markup {
        picture(&self.0.lock().last_day(now_ms))
    }
}

impl Past {
    fn add(&mut self, status: &Status, now_ms: u64) {
        let number = now_ms / SLOT_MS;
        let oldest = (number + 1).saturating_sub(SLOTS as u64);
        // If the clock was set back, slots of the future are removed.
        self.slots.retain(|slot, _| (oldest..=number).contains(slot));
        let mut counted = BTreeMap::new();
        let slot = self.slots.entry(number).or_default();
        for peer in &status.peers {
            let now = Slot { received_bytes: peer.received_bytes, sent_bytes: peer.sent_bytes };
            let before = self.counted.get(&peer.node_id).copied().unwrap_or_default();
            // A new connection counts from zero.
            let news = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
            slot.received_bytes += news(now.received_bytes, before.received_bytes);
            slot.sent_bytes += news(now.sent_bytes, before.sent_bytes);
            counted.insert(peer.node_id, now);
        }
        self.counted = counted;
    }

    fn last_day(&self, now_ms: u64) -> Vec<Slot> {
        let number = now_ms / SLOT_MS;
        let oldest = (number + 1).saturating_sub(SLOTS as u64);
        (oldest..=number).map(|slot| self.slots.get(&slot).copied().unwrap_or_default()).collect()
    }
}

/// Received above the line, sent below it.
fn picture(slots: &[Slot]) -> Markup {
    const HALF: f64 = 46.0;
    const STEP: usize = 10;
    let most = slots.iter().map(|slot| slot.received_bytes.max(slot.sent_bytes)).max();
    let most = most.unwrap_or_default();
    let [mut received, mut sent] = [String::new(), String::new()];
    for (at, slot) in slots.iter().enumerate() {
        let x = at * STEP + 1;
        let height = |bytes: u64| match bytes {
            0 => 0.0,
            // A small count is still visible.
            _ => (bytes as f64 / most as f64 * HALF).max(1.5),
        };
        let (up, down) = (height(slot.received_bytes), height(slot.sent_bytes));
        // Writing to a string never fails.
        if up > 0.0 {
            let _ = write!(received, "M{x} 49v-{up:.1}h8v{up:.1}z");
        }
        if down > 0.0 {
            let _ = write!(sent, "M{x} 51v{down:.1}h8v-{down:.1}z");
        }
    }
    let total = |of: fn(&Slot) -> u64| size(slots.iter().map(of).sum());
    let (all_in, all_out) = (total(|slot| slot.received_bytes), total(|slot| slot.sent_bytes));
    let label = format!("In the last 24 hours {all_in} were received and {all_out} were sent.");
    html! {
        figure.throughput {
            figcaption {
                span.received { "Received " strong { (all_in) } }
                span.sent { "Sent " strong { (all_out) } }
            }
            svg viewBox=(format!("0 0 {} 100", slots.len() * STEP)) preserveAspectRatio="none" role="img" aria-label=(label) {
                path.received d=(received) {}
                path.axis d=(format!("M0 50h{}", slots.len() * STEP)) {}
                path.sent d=(sent) {}
            }
            div.scale aria-hidden="true" { span { "24 hours ago" } span { "12 hours ago" } span { "now" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::status::{PeerState, PeerStatus, samples};

    fn status(received_bytes: u64, sent_bytes: u64) -> Status {
        let peer = samples::peer("", 3, PeerState::Idle, true);
        samples::status(vec![PeerStatus { received_bytes, sent_bytes, ..peer }], true)
    }

    #[test]
    fn each_byte_counts_once_across_connections_and_for_a_day() {
        let mut past = Past::default();
        let start = 1_000_000 * SLOT_MS;
        past.add(&status(100, 1), start);
        past.add(&status(100, 1), start + 1);
        past.add(&status(150, 1), start + 2);
        // The connection is another one.
        past.add(&status(20, 0), start + SLOT_MS);
        let day = past.last_day(start + SLOT_MS);
        assert_eq!(day.len(), SLOTS);
        assert_eq!(day[SLOTS - 2], Slot { received_bytes: 150, sent_bytes: 1 });
        assert_eq!(day[SLOTS - 1], Slot { received_bytes: 20, sent_bytes: 0 });
        past.add(&status(20, 0), start + 500 * SLOT_MS);
        assert_eq!(past.slots.len(), 1);
    }
}
