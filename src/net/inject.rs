//! Panics inside the QUIC library, for tests: its congestion controller panics on demand where the
//! library writes a packet, which is where it once panicked by itself.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use iroh::endpoint::{Controller, ControllerFactory};

/// The first packets of a path that never panic, so that its handshake completes.
const UNHARMED_PACKETS: usize = 12;

/// The requested panics.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    due: AtomicUsize,
    done: AtomicUsize,
}

impl Panics {
    /// Makes this many of the next packets panic.
    pub(crate) fn demand(&self, count: usize) {
        self.due.fetch_add(count, Ordering::Relaxed);
    }

    /// The number of panics so far.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }
}

impl ControllerFactory for Panics {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Panicking { panics: self, sent_packets: 0 })
    }
}

/// A congestion controller that controls nothing and panics on demand.
#[derive(Debug, Clone)]
struct Panicking {
    panics: Arc<Panics>,
    sent_packets: usize,
}

impl Controller for Panicking {
    fn on_packet_sent(&mut self, _now: Instant, _bytes: u16, _number: u64) {
        self.sent_packets += 1;
        if self.sent_packets <= UNHARMED_PACKETS {
            return;
        }
        let due = &self.panics.due;
        let take_one = |due: usize| due.checked_sub(1);
        if due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one).is_ok() {
            self.panics.done.fetch_add(1, Ordering::Relaxed);
            panic!("injected");
        }
    }

    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: bool, _: u64, _: u64) {}

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        1 << 20
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
