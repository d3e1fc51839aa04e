//! Watches the free space on the disks of the journal and of the store.
//!
//! D1  This task only reports a full disk, and its end. It stops nothing: each writer delays or
//!     refuses its own writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::journal::JournalHandle;
use crate::core::limits::{FREE_FLOOR_BYTES, FREE_FLOOR_FRACTION, JOURNAL_FLOOR_FRACTION};
use crate::store::{Store, StoreError};

/// How often the free space is read: two system calls.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The deadline of the store's answer. Without an answer the store counts as having space.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// With less than this free on its disk, the journal's next writes fail.
const FREE_BYTES_MIN: u64 = 1024 * 1024;

pub(crate) struct DiskWatch {
    pub(crate) journal: JournalHandle,
    pub(crate) folder: PathBuf,
    pub(crate) store: Arc<dyn Store>,
    /// One sentence for each disk that is full now; empty when there is space.
    pub(crate) shortage: watch::Sender<Vec<String>>,
    /// Makes the catalogue list the store at once.
    pub(crate) nudge: Arc<Notify>,
}

/// A sentence for people about the disk of the journal and about that of the store, if it is full.
#[derive(Debug, Default)]
struct Shortage {
    journal: Option<String>,
    store: Option<String>,
}

impl DiskWatch {
    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let mut told = Shortage::default();
        loop {
            let found = Shortage { journal: self.journal(), store: self.store().await };
            // The texts contain figures that change all the time, so only a change of which disk is
            // short counts.
            if !found.is_of(&told) {
                for text in found.texts() {
                    tracing::warn!("{text}");
                }
                if found.texts().next().is_none() {
                    tracing::info!("the disk has space again");
                    self.nudge.notify_one();
                }
                self.shortage.send_replace(found.texts().cloned().collect());
                told = found;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn journal(&self) -> Option<String> {
        (is_low(&self.folder) || self.journal.is_full()).then(|| {
            format!(
                "the disk of {} is full: edits are not taken in, from people or other devices, \
                 until there is room; what is here can still be read and sent",
                self.folder.display()
            )
        })
    }

    async fn store(&self) -> Option<String> {
        match timeout(STORE_WAIT, self.store.check_space(0)).await {
            Ok(Err(StoreError::Full(text))) => {
                Some(format!("no assets are taken in until there is room: {text}"))
            }
            _ => None,
        }
    }
}

impl Shortage {
    fn texts(&self) -> impl Iterator<Item = &String> {
        [&self.journal, &self.store].into_iter().flatten()
    }

    fn is_of(&self, other: &Self) -> bool {
        self.journal.is_some() == other.journal.is_some()
            && self.store.is_some() == other.store.is_some()
    }
}

/// Whether a disk is so full that the journal's next writes fail.
pub(crate) fn is_full(folder: &Path) -> bool {
    rustix::fs::statvfs(folder)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_BYTES_MIN)
}

/// The error of an agent that cannot start because the disk is full.
pub(crate) fn no_room_to_start(folder: &Path) -> String {
    format!(
        "there is no room on the disk of {}: free some space and start again, what is stored is kept",
        folder.display()
    )
}

/// Whether the free space is so low that the journal refuses ops of other devices, or would fail to
/// write ops of this one.
fn is_low(folder: &Path) -> bool {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return false };
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let store_floor_bytes = FREE_FLOOR_BYTES.min(bytes(disk.f_blocks) / FREE_FLOOR_FRACTION);
    bytes(disk.f_bavail) < FREE_BYTES_MIN.max(store_floor_bytes / JOURNAL_FLOOR_FRACTION)
}
