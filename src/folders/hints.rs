//! Takes hints from the watch. A file that was closed or renamed is looked at now, any other path once
//! it is quiet; a new directory and lost hints are followed by a scan.

use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::disk::rules::IGNORE_FILE;
use super::disk::{Hint, Hints, Rules};
use super::driver::Driver;
use super::reconcile::ROUND_PATHS;
use super::shared::blocking;
use crate::core::folder::path::FolderPath;

/// How long a path must be quiet after a hint that is not final.
const QUIET: Duration = Duration::from_secs(1);

/// The most paths that wait to be quiet; beyond, a scan finds them.
const QUIET_PATHS_MAX: usize = 10_000;

/// The pause between two scans, however often hints are lost.
const SCAN_PAUSE: Duration = Duration::from_secs(2);

impl Driver {
    pub(super) async fn hinted(
        &mut self,
        first: Option<Hint>,
        hints: &mut Option<Hints>,
    ) -> Result<()> {
        let mut now = Vec::new();
        let mut next = first;
        let mut is_new_rules = false;
        for _ in 0..ROUND_PATHS {
            match next {
                Some(Hint::Path { path, is_final }) => {
                    is_new_rules |= path.as_bytes() == IGNORE_FILE.as_bytes();
                    if is_final {
                        now.push(path);
                    } else {
                        self.look_again(path);
                    }
                }
                Some(Hint::Below(dir)) => {
                    self.look_again(dir.clone());
                    if self.below.len() < QUIET_PATHS_MAX {
                        self.below.push_back(dir);
                    } else {
                        self.scan_soon();
                    }
                }
                Some(Hint::Overflow) => {
                    // The directory itself may have gone.
                    self.check_at = Instant::now();
                    self.scan_soon();
                }
                Some(Hint::Failed(why)) => self.unwatched(why),
                None => {
                    *hints = None;
                    self.unwatched("the directory is no longer watched".into());
                    break;
                }
            }
            let waiting = hints.as_mut().and_then(|hints| hints.next().now_or_never());
            let Some(hint) = waiting else { break };
            next = hint;
        }
        if is_new_rules && let Some(root) = self.root.clone() {
            let rules = blocking(move || Ok(Rules::load(&root)?)).await?;
            self.adopt_rules(rules).await?;
        }
        now.sort_unstable();
        now.dedup();
        self.reconcile(now).await
    }

    /// Requests a scan of the whole directory, no sooner than the shortest interval allows.
    pub(super) fn scan_soon(&mut self) {
        self.scan_at = self.scan_at.min(Instant::now() + SCAN_PAUSE);
    }

    /// Looks at a path once it is quiet.
    pub(super) fn look_again(&mut self, path: FolderPath) {
        if self.quiet.len() >= QUIET_PATHS_MAX {
            return self.scan_soon();
        }
        self.quiet.put(path, Instant::now() + QUIET);
    }
}
