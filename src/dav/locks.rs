//! Locks of WebDAV clients: in memory, bounded in number and time. They keep two clients of this
//! agent apart, and nobody else: other devices, and programs that write to a bound directory, go by
//! the rules of shared folders.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dav_server::davpath::DavPath;
use dav_server::ls::{DavLock, DavLockSystem, LsFuture};
use dav_server::memls::MemLs;
use parking_lot::Mutex;
use xmltree::Element;

use crate::clock::wall_now;

/// The most locks. An editor holds one for each open document.
const LOCKS_MAX: usize = 256;

/// The most elements in the owner of a lock, as its client describes it.
const OWNER_ELEMENTS_MAX: usize = 16;

/// The longest lock without a refresh.
const LOCK_MAX: Duration = Duration::from_secs(10 * 60);

/// The locks. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Locks {
    locks: Box<MemLs>,
    /// Those that were given, to end them in time.
    given: Arc<Mutex<Vec<Given>>>,
}

#[derive(Debug)]
struct Given {
    path: DavPath,
    token: String,
    ends: SystemTime,
}

impl Locks {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { locks: MemLs::new(), given: Arc::default() })
    }

    /// Ends the locks that are too old. The library keeps them until they are unlocked.
    async fn end_old(&self) {
        let now = wall_now();
        let old: Vec<Given> = self.given.lock().extract_if(.., |lock| lock.ends <= now).collect();
        for lock in old {
            // It may be unlocked already.
            let _ = self.locks.unlock(&lock.path, &lock.token).await;
        }
    }
}

impl DavLockSystem for Locks {
    fn lock(
        &'_ self,
        path: &DavPath,
        principal: Option<&str>,
        owner: Option<&Element>,
        timeout: Option<Duration>,
        shared: bool,
        deep: bool,
    ) -> LsFuture<'_, Result<DavLock, DavLock>> {
        let timeout = timeout.unwrap_or(LOCK_MAX).min(LOCK_MAX);
        let owner = owner.filter(|owner| owner.children.len() <= OWNER_ELEMENTS_MAX).cloned();
        let (path, principal) = (path.clone(), principal.map(str::to_owned));
        Box::pin(async move {
            self.end_old().await;
            if self.given.lock().len() >= LOCKS_MAX {
                return Err(refused(&path));
            }
            let principal = principal.as_deref();
            let lock = self
                .locks
                .lock(&path, principal, owner.as_ref(), Some(timeout), shared, deep)
                .await?;
            let (token, ends) = (lock.token.clone(), wall_now() + timeout);
            self.given.lock().push(Given { path, token, ends });
            Ok(lock)
        })
    }

    fn unlock(&'_ self, path: &DavPath, token: &str) -> LsFuture<'_, Result<(), ()>> {
        self.given.lock().retain(|lock| lock.token != token);
        self.locks.unlock(path, token)
    }

    fn refresh(
        &'_ self,
        path: &DavPath,
        token: &str,
        timeout: Option<Duration>,
    ) -> LsFuture<'_, Result<DavLock, ()>> {
        let timeout = timeout.unwrap_or(LOCK_MAX).min(LOCK_MAX);
        if let Some(lock) = self.given.lock().iter_mut().find(|lock| lock.token == token) {
            lock.ends = wall_now() + timeout;
        }
        self.locks.refresh(path, token, Some(timeout))
    }

    fn check(
        &'_ self,
        path: &DavPath,
        principal: Option<&str>,
        ignore_principal: bool,
        deep: bool,
        submitted_tokens: &[String],
    ) -> LsFuture<'_, Result<(), DavLock>> {
        let (path, tokens) = (path.clone(), submitted_tokens.to_vec());
        let principal = principal.map(str::to_owned);
        Box::pin(async move {
            self.end_old().await;
            let principal = principal.as_deref();
            self.locks.check(&path, principal, ignore_principal, deep, &tokens).await
        })
    }

    fn discover(&'_ self, path: &DavPath) -> LsFuture<'_, Vec<DavLock>> {
        self.locks.discover(path)
    }

    fn delete(&'_ self, path: &DavPath) -> LsFuture<'_, Result<(), ()>> {
        let is_below = |lock: &Given| {
            let rest = lock.path.as_bytes().strip_prefix(path.as_bytes());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.given.lock().retain(|lock| !is_below(lock));
        self.locks.delete(path)
    }
}

/// A lock that says that none is given.
fn refused(path: &DavPath) -> DavLock {
    DavLock {
        token: String::new(),
        path: Box::new(path.clone()),
        principal: None,
        owner: None,
        timeout_at: None,
        timeout: None,
        shared: false,
        deep: false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn locks_are_bounded_and_end_by_themselves() {
        let locks = Locks::new();
        let path = |at: usize| DavPath::new(&format!("/folders/f/{at}")).unwrap();
        let lock = async |at: usize, time: Option<Duration>| {
            locks.lock(&path(at), Some("x"), None, time, false, false).await
        };
        for at in 0..LOCKS_MAX {
            let given = lock(at, None).await.unwrap();
            assert!(given.timeout.unwrap() <= LOCK_MAX);
        }
        lock(LOCKS_MAX, None).await.unwrap_err();
        locks.given.lock()[7].ends = SystemTime::UNIX_EPOCH;
        assert!(lock(7, None).await.is_ok(), "it has ended, and another takes its place");
        lock(8, None).await.unwrap_err();
        let token = locks.given.lock()[3].token.clone();
        let at = locks.given.lock()[3].path.clone();
        locks.unlock(&at, &token).await.unwrap();
        assert!(lock(LOCKS_MAX, Some(Duration::MAX)).await.is_ok());
    }
}
