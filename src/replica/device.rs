//! Publishes the state of this device in its own journal record, for the other devices to show.
//!
//! D1  Nothing is written unless something worth publishing changed: an idle device leaves its disk
//!     alone.
//! D2  A change of name, group or addresses is published at once; figures at most every
//!     [`PACE_MS`].
//! D3  The record keeps its name and its site: only people change them.
//! D4  Another device that publishes under the same key, because a home was copied, is noticed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use crate::clock::{Clock, wall_ms};
use crate::core::ids::{GroupId, NodeId};
use crate::core::journal::device_events::DeviceState;
use crate::core::journal::draft::{Draft, DraftChange, Expect};
use crate::store::Store;

use super::journal::{AskError, JournalHandle};
use super::status::{PeerState, Status};

/// The shortest time between two writes of figures.
const PACE_MS: u64 = 3 * 60 * 1000;

/// How long a change waits for others, to be written together.
const GATHER_MS: u64 = 2 * 1000;

/// How often the disk's free space is read.
const LOOK_MS: u64 = 10 * 60 * 1000;

/// A change of the free space is published if it exceeds this fraction of the published value ...
const FREE_CHANGE: u64 = 10;

/// ... and by this many bytes.
const FREE_CHANGE_BYTES: u64 = 1 << 30;

/// A twin that has written nothing for so long is gone: one that runs writes about every
/// [`LOOK_MS`], because this device's addresses are not its own.
const TWIN_GONE_MS: u64 = 3 * LOOK_MS;

/// The deadline of the store's answer.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// The task that publishes this device's state.
pub(crate) struct Publisher {
    pub(crate) node_id: NodeId,
    pub(crate) journal: JournalHandle,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) status: watch::Receiver<Status>,
    /// A folder on the store's disk.
    pub(crate) folder: PathBuf,
    /// Receives the addresses of another device with the same key.
    pub(crate) twin: watch::Sender<Option<BTreeSet<String>>>,
    /// When it was last seen to have written.
    pub(crate) twin_seen_ms: Option<u64>,
}

/// The part of the status that describes this device. When it changes, the task looks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    who: Who,
    assets: u64,
    contact_ms: Option<u64>,
}

/// What other devices need to identify and to reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Who {
    group_id: GroupId,
    name: String,
    addresses: BTreeSet<String>,
    wants: String,
}

impl Publisher {
    /// Runs until dropped, or until the journal is closed.
    pub(crate) async fn run(mut self) {
        let clock = Clock::start();
        let begun_ms = wall_ms();
        let mut commits = self.journal.commits();
        let mut twin_at_ms = None;
        let mut contact = Contact::default();
        // Before the agent's first status there is nothing to publish.
        if self.status.wait_for(|status| status.revision > 0).await.is_err() {
            return;
        }
        let mut looked: Option<Shown> = None;
        // When to look next, and from when on figures may be published again.
        let (mut look_at_ms, mut figures_at_ms) = (clock.now_ms() + LOOK_MS, 0);
        loop {
            let shown = {
                let status = self.status.borrow_and_update();
                contact.see(&status);
                Shown {
                    who: Who {
                        group_id: status.device.group_id,
                        name: status.device.name.clone(),
                        addresses: status.device.addresses.iter().cloned().collect(),
                        wants: status.copies.wants.clone(),
                    },
                    assets: status.store.assets,
                    contact_ms: contact.last_ms,
                }
            };
            let now_ms = clock.now_ms();
            if looked.as_ref().is_none_or(|looked| shown.who != looked.who) {
                look_at_ms = now_ms;
            } else if looked.as_ref() != Some(&shown) {
                look_at_ms = look_at_ms.min(figures_at_ms.max(now_ms + GATHER_MS));
            }
            if look_at_ms <= now_ms {
                let wrote = match self.publish(&shown).await {
                    Ok(wrote) => wrote,
                    Err(AskError::Closed) => return,
                    Err(error) => {
                        tracing::debug!(%error, "cannot publish this device's state now");
                        false
                    }
                };
                if wrote {
                    figures_at_ms = now_ms + PACE_MS;
                }
                (looked, look_at_ms) = (Some(shown), now_ms + LOOK_MS);
            }
            if twin_at_ms.take_if(|at_ms| *at_ms <= now_ms).is_some() {
                self.look_for_twin(begun_ms).await;
            }
            if self.twin.borrow().is_some() {
                // Also while nobody writes anything.
                twin_at_ms = twin_at_ms.or(Some(now_ms + LOOK_MS));
            }
            let wake_ms = look_at_ms.min(twin_at_ms.unwrap_or(look_at_ms));
            tokio::select! {
                changed = self.status.changed() => if changed.is_err() { return },
                changed = commits.changed(), if twin_at_ms.is_none() => {
                    if changed.is_err() { return }
                    twin_at_ms = Some(now_ms + GATHER_MS);
                }
                () = sleep_until(clock.instant(wake_ms).into()) => {}
            }
        }
    }

    /// Writes what changed if it is worth a write. Returns whether it wrote.
    async fn publish(&self, shown: &Shown) -> Result<bool, AskError> {
        let device = self.node_id;
        let fields = self.journal.read(move |reader| reader.device_fields(&device)).await?;
        let told = fields.as_ref().map(DeviceState::from_fields);
        let info = timeout(STORE_WAIT, self.store.info()).await.ok().and_then(Result::ok);
        let told_bytes = told.as_ref().map_or(0, |told| told.store_bytes);
        let told_name = told.as_ref().map(|told| told.name.clone());
        let now = DeviceState {
            name: told_name.filter(|name| !name.is_empty()).unwrap_or(shown.who.name.clone()),
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_assets: shown.assets,
            store_bytes: info.map_or(told_bytes, |info| info.asset_bytes),
            free_bytes: self.free_bytes().await,
            contact_ms: shown.contact_ms.or(told.as_ref().and_then(|told| told.contact_ms)),
            addresses: shown.who.addresses.clone(),
            site: told.as_ref().map_or_else(String::new, |told| told.site.clone()),
            wants: shown.who.wants.clone(),
        };
        if told.is_some_and(|told| !is_worth_telling(&told, &now)) {
            return Ok(false);
        }
        let Some(put) = now.put_over(fields.as_ref()) else { return Ok(false) };
        // Somebody may have named this device since the fields were read.
        let expect = match fields {
            None => vec![Expect::Absent(DeviceState::key())],
            Some(_) => Vec::new(),
        };
        let draft = Draft { changes: vec![DraftChange::Put(put)], expect };
        if let Err(error) = self.journal.write(draft).await? {
            tracing::debug!(%error, "cannot publish this device's state now");
            return Ok(false);
        }
        Ok(true)
    }

    async fn look_for_twin(&mut self, begun_ms: u64) {
        let device = self.node_id;
        match self.journal.read(move |reader| reader.twin_addresses(&device, begun_ms)).await {
            Ok(None) => {
                let is_gone = self
                    .twin_seen_ms
                    .is_some_and(|seen_ms| wall_ms().saturating_sub(seen_ms) >= TWIN_GONE_MS);
                if is_gone {
                    (self.twin_seen_ms, _) = (None, self.twin.send_replace(None));
                }
            }
            Ok(Some(addresses)) => {
                self.twin_seen_ms = Some(wall_ms());
                let is_new = self.twin.send_if_modified(|twin| {
                    twin.replace(addresses.clone()).as_ref() != Some(&addresses)
                });
                if is_new {
                    tracing::warn!(?addresses, "another device has the key of this one");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot look for another device with this key now")
            }
        }
    }

    async fn free_bytes(&self) -> Option<u64> {
        let folder = self.folder.clone();
        // A panic of the worker counts like a disk that does not report its free space.
        let disk = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&folder)).await.ok()?;
        disk.ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// Whether another device is connected, and when that last changed.
#[derive(Debug, Default)]
struct Contact {
    connected: bool,
    last_ms: Option<u64>,
}

impl Contact {
    fn see(&mut self, status: &Status) {
        let is_here = |state| matches!(state, PeerState::Syncing | PeerState::Idle);
        let connected = status.peers.iter().any(|peer| is_here(peer.state));
        if connected != self.connected {
            (self.connected, self.last_ms) = (connected, Some(wall_ms()));
        }
    }
}

fn is_worth_telling(told: &DeviceState, now: &DeviceState) -> bool {
    let free_bytes = match (told.free_bytes, now.free_bytes) {
        (Some(told), Some(now)) => {
            let change = told.abs_diff(now);
            change >= told / FREE_CHANGE && change >= FREE_CHANGE_BYTES
        }
        (told, now) => told != now,
    };
    // Any other change is published at once.
    let rest = DeviceState { free_bytes: told.free_bytes, ..now.clone() };
    free_bytes || rest != *told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_of_free_space_are_not_worth_a_write() {
        const GIB: u64 = 1 << 30;
        let state = |free_bytes| DeviceState { free_bytes, ..DeviceState::default() };
        let told = state(Some(100 * GIB));
        for (free_bytes, worth) in [
            (Some(100 * GIB), false),
            (Some(91 * GIB), false),
            (Some(90 * GIB), true),
            (Some(110 * GIB), true),
            (None, true),
        ] {
            assert_eq!(is_worth_telling(&told, &state(free_bytes)), worth, "{free_bytes:?}");
        }
        // Less than `FREE_CHANGE_BYTES`, so not published although it is half of the space.
        assert!(!is_worth_telling(&state(Some(GIB)), &state(Some(GIB / 2))));
        let other = DeviceState { store_assets: 1, ..told.clone() };
        assert!(is_worth_telling(&told, &other));
    }
}
