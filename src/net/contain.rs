//! Contains panics of the QUIC library: they cost connections, never the process.
//!
//! The library keeps the state of a connection behind a lock. A panic poisons the lock. From then
//! on each use of the connection panics, even dropping it, while tasks that wait for it are never
//! woken. The library also passes such a panic on to its endpoint, which then accepts no more
//! connections (docs/upstream/noq-frame-without-room.md). So the unit that fails is the endpoint:
//! its connections are lost all at once, and it is bound again.
//!
//! P1  Handles of the library are used, awaited and dropped through [`Contained`] and [`run`],
//!     where a panic is caught. It marks the [`Fate`] of the endpoint, and all waiting tasks are
//!     woken.
//! P2  A live connection has two handles that are dropped last: with fewer, the library's own task
//!     would take the lock while a panic unwinds it.
//! P3  A further panic in a destructor during unwinding would abort the process. Instead its thread
//!     is parked for ever.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The message of the panic with which Rust aborts after a panicking destructor.
const PANIC_IN_CLEANUP: &str = "panic in a destructor during cleanup";

/// The most threads parked for ever; each keeps its stack. Beyond it the process aborts, and its
/// supervisor restarts it.
const THREADS_GIVEN_UP_MAX: usize = 64;

/// The number of panics in this process.
static PANICS: LazyLock<watch::Sender<u64>> = LazyLock::new(watch::Sender::default);

static THREADS_GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// The library has panicked, now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the QUIC library failed")]
pub(super) struct Panicked;

impl From<Panicked> for io::Error {
    fn from(panicked: Panicked) -> Self {
        Self::new(io::ErrorKind::ConnectionAborted, panicked)
    }
}

/// Whether the library has panicked in an endpoint or in one of its connections. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate(CancellationToken);

impl Fate {
    pub(super) fn is_lost(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Marks the endpoint as lost, which ends everything bound to it.
    pub(super) fn lose(&self) {
        self.0.cancel();
    }

    /// Waits until it is lost.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn lost(&self) {
        self.0.cancelled().await;
    }

    /// Calls the library and catches panics.
    pub(super) fn call<R>(&self, work: impl FnOnce() -> R) -> Result<R, Panicked> {
        if self.is_lost() {
            return Err(Panicked);
        }
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
            self.lose();
            Panicked
        })
    }
}

/// A handle of the library whose uses are contained.
#[derive(Debug)]
pub(super) struct Contained<T> {
    /// `None` only while it is dropped.
    handle: Option<T>,
    fate: Fate,
    lost: LostWaiter,
}

/// Created when something waits for the first time.
#[derive(Default)]
struct LostWaiter(Option<Pin<Box<WaitForCancellationFutureOwned>>>);

impl std::fmt::Debug for LostWaiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LostWaiter").finish_non_exhaustive()
    }
}

impl<T> Contained<T> {
    pub(super) fn new(handle: T, fate: Fate) -> Self {
        Self { handle: Some(handle), fate, lost: LostWaiter::default() }
    }

    pub(super) fn with<'a, R>(&'a self, work: impl FnOnce(&'a T) -> R) -> Result<R, Panicked> {
        let handle = self.handle.as_ref().ok_or(Panicked)?;
        self.fate.call(|| work(handle))
    }

    pub(super) fn with_mut<R>(&mut self, work: impl FnOnce(&mut T) -> R) -> Result<R, Panicked> {
        let handle = self.handle.as_mut().ok_or(Panicked)?;
        self.fate.call(|| work(handle))
    }

    /// Polls the handle. A pending task is woken when the endpoint is lost.
    pub(super) fn poll<R>(
        &mut self,
        cx: &mut Context<'_>,
        work: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<Result<R, Panicked>> {
        match self.with_mut(|handle| work(handle, cx)) {
            Err(panicked) => Poll::Ready(Err(panicked)),
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Ok(Poll::Pending) => {
                let fate = &self.fate;
                let waiter = || Box::pin(fate.0.clone().cancelled_owned());
                let lost = self.lost.0.get_or_insert_with(waiter);
                lost.as_mut().poll(cx).map(|()| Err(Panicked))
            }
        }
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        // The handle of a lost connection is dropped too, to free its memory.
        let handle = self.handle.take();
        if catch_unwind(AssertUnwindSafe(move || drop(handle))).is_err() {
            self.fate.lose();
        }
    }
}

/// Awaits a future of the library.
///
/// # Cancel safety
/// As that of the future.
pub(super) async fn run<F: Future>(fate: &Fate, future: F) -> Result<F::Output, Panicked> {
    let mut future = Contained::new(Box::pin(future), fate.clone());
    std::future::poll_fn(|cx| future.poll(cx, |future, cx| future.as_mut().poll(cx))).await
}

/// Changes with each panic of the process from now on.
pub(super) fn panics() -> watch::Receiver<u64> {
    PANICS.subscribe()
}

/// Lets the process survive panics in destructors during unwinding, and lets endpoints notice
/// panics at once. Call it once, at the start.
pub fn outlive_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let ends_process = panic.payload_as_str() == Some(PANIC_IN_CLEANUP);
        let given_up =
            if ends_process { THREADS_GIVEN_UP.fetch_add(1, Ordering::Relaxed) } else { 0 };
        PANICS.send_modify(|count| *count += 1);
        if ends_process && given_up < THREADS_GIVEN_UP_MAX {
            give_up_thread();
        }
    }));
}

fn give_up_thread() -> ! {
    let sleep_for_ever = || {
        loop {
            std::thread::park();
        }
    };
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        // Another thread takes over the tasks of this one.
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(sleep_for_ever),
        _ => sleep_for_ever(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("injected");
        }
    }

    #[test]
    fn a_panic_of_a_use_or_of_a_drop_loses_the_endpoint_and_nothing_else() {
        for panics in [
            |fate: &Fate| Contained::new(1, fate.clone()).with(|_| panic!("injected")).is_err(),
            |fate: &Fate| {
                drop(Contained::new(PanicsWhenDropped, fate.clone()));
                true
            },
        ] {
            let (fate, other) = (Fate::default(), Fate::default());
            assert!(panics(&fate));
            assert!(fate.is_lost() && !other.is_lost());
            assert_eq!(Contained::new(1, fate).with(|n| *n), Err(Panicked));
            assert_eq!(Contained::new(1, other).with(|n| *n), Ok(1));
        }
    }

    #[tokio::test]
    async fn all_who_wait_are_woken_when_the_endpoint_is_lost() {
        let fate = Fate::default();
        let waiting = tokio::spawn({
            let fate = fate.clone();
            async move { run(&fate, std::future::pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(run(&fate, async { panic!("injected") }).await, Err::<(), _>(Panicked));
        assert_eq!(
            timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap(),
            Err(Panicked)
        );
    }

    /// Runs in a process of its own: the parked thread keeps the panic hook, which the test program
    /// needs at its end.
    #[test]
    fn a_panic_in_a_destructor_during_unwinding_does_not_abort() {
        let child = "net::contain::tests::child_that_panics_while_it_unwinds";
        let mut program = Command::new(std::env::current_exe().unwrap());
        let output = program.args(["--ignored", "--exact", child]).output().unwrap();
        assert_eq!(output.status.code(), Some(OUTLIVED), "{output:?}");
    }

    /// The exit status of a child that survived its panic.
    const OUTLIVED: i32 = 71;

    #[test]
    #[ignore = "run by a_panic_in_a_destructor_during_unwinding_does_not_abort"]
    fn child_that_panics_while_it_unwinds() {
        outlive_panics();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut panics = panics();
            tokio::spawn(async {
                let _dropped = PanicsWhenDropped;
                panic!("injected");
            });
            while THREADS_GIVEN_UP.load(Ordering::Relaxed) == 0 {
                timeout(Duration::from_secs(20), panics.changed()).await.unwrap().unwrap();
            }
            // The only worker thread is parked, and another one has taken over.
            let other = tokio::spawn(async { 7 });
            assert_eq!(timeout(Duration::from_secs(20), other).await.unwrap().unwrap(), 7);
        });
        std::process::exit(OUTLIVED);
    }
}
