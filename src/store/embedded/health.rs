//! Whether the disk can still be trusted with writes. After a failure only a restart helps.

use tokio::sync::watch;

use crate::store::StoreError;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Health(watch::Sender<Option<String>>);

impl Health {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &*self.0.borrow() {
            Some(reason) => Err(StoreError::Disk(reason.clone())),
            None => Ok(()),
        }
    }

    /// Records the first failure for good, and returns the error.
    pub(super) fn fail(&self, reason: &str) -> StoreError {
        self.0.send_if_modified(|first| {
            if first.is_some() {
                return false;
            }
            tracing::error!(reason, "the store's disk failed: no more writes until a restart");
            *first =
                Some(format!("{reason}; nothing is written any more: check the disk and restart"));
            true
        });
        StoreError::Disk(self.0.borrow().clone().unwrap_or_default())
    }

    /// Returns once the disk has failed.
    pub(super) async fn failed(&self) -> StoreError {
        let mut failure = self.0.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        // Never an error: `self` holds the sender.
        StoreError::Disk(failed.ok().and_then(|reason| reason.clone()).unwrap_or_default())
    }
}
