//! Paths that wait until nothing has happened to them for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::core::folder::path::FolderPath;

/// How soon what could not be brought to the directory is tried again at first.
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Paths that wait until they are quiet.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    due: BTreeMap<FolderPath, Instant>,
    order: BTreeSet<(Instant, FolderPath)>,
}

impl Quiet {
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    pub(super) fn put(&mut self, path: FolderPath, at: Instant) {
        if let Some(before) = self.due.insert(path.clone(), at) {
            self.order.remove(&(before, path.clone()));
        }
        self.order.insert((at, path));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Vec<FolderPath> {
        let mut paths = Vec::new();
        while paths.len() < max
            && self.order.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, path)) = self.order.pop_first()
        {
            self.due.remove(&path);
            paths.push(path);
        }
        paths
    }
}
