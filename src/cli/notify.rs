//! Reports the agent's state to the service manager, by sd_notify. Without a service manager nothing
//! is sent.
//!
//! N1  WATCHDOG=1 is sent only when the agent's loop has answered since the last one. A loop that
//!     hangs is not reported alive, and the service manager restarts the agent.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::sleep;

use crate::agent::handle::Handle;
use crate::core::units::counted;
use crate::replica::status::{PeerState, Status};

/// How often the loop is checked and the status text renewed, unless the watchdog needs it more
/// often.
const BEAT: Duration = Duration::from_secs(10);

/// Checks within the watchdog's time, so that two may be late.
const BEATS_PER_WATCHDOG: u32 = 3;

/// Whether a service manager started this process and listens.
pub(super) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The agent serves.
pub(super) fn ready(status: &Status) {
    send(&[NotifyState::Ready, NotifyState::Status(&sentence(status))]);
}

/// The agent reads its configuration anew; [`ready`] follows.
pub(super) fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    send(&[&[NotifyState::Reloading][..], &now.ok().into_iter().collect::<Vec<_>>()].concat());
}

/// The agent stops.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Reports to the service manager while the loop answers. Never returns.
pub(super) async fn keep_alive(handle: &Handle) {
    if !is_managed() {
        return std::future::pending().await;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let beat = watchdog.map_or(BEAT, |time| BEAT.min(time / BEATS_PER_WATCHDOG));
    let ask = async || handle.ping().await.is_ok();
    let mut told = String::new();
    beat_on(beat, ask, || {
        let now = sentence(&handle.status());
        if now != told {
            send(&[NotifyState::Status(&now)]);
            told = now;
        }
        send(&[NotifyState::Watchdog]);
    })
    .await;
}

/// Calls `tell` at each beat at which `ask` was answered. Never returns.
async fn beat_on(beat: Duration, ask: impl AsyncFn() -> bool, mut tell: impl FnMut()) {
    loop {
        if ask().await {
            tell();
        }
        sleep(beat).await;
    }
}

/// The agent's state in one line.
fn sentence(status: &Status) -> String {
    let connected = status
        .peers
        .iter()
        .filter(|peer| matches!(peer.state, PeerState::Syncing | PeerState::Idle));
    let sync = if status.in_sync { "in sync" } else { "not in sync" };
    let (assets, peers) = (counted(status.store.assets, "asset", "assets"), status.peers.len());
    let connected = connected.count();
    let alerts = status.alerts.iter().filter(|alert| alert.acked_ms.is_none()).count();
    let alerts = match alerts {
        0 => String::new(),
        1 => "; 1 alert".to_owned(),
        _ => format!("; {alerts} alerts"),
    };
    format!("{assets}; {connected} of {peers} other devices connected; {sync}{alerts}")
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_not_reported_alive() {
        let (beat, beats) = (Duration::from_secs(1), Cell::new(0));
        let tell = || beats.set(beats.get() + 1);
        let turns = beat_on(beat, async || true, tell);
        timeout(Duration::from_millis(4_500), turns).await.unwrap_err();
        assert_eq!(beats.replace(0), 5);
        let hangs = beat_on(beat, async || std::future::pending().await, tell);
        timeout(Duration::from_secs(100), hangs).await.unwrap_err();
        let refuses = beat_on(beat, async || false, tell);
        timeout(Duration::from_secs(100), refuses).await.unwrap_err();
        assert_eq!(beats.get(), 0);
    }
}
