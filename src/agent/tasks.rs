//! The tasks of an agent. Each has a name, for the log, and is in one [`JoinSet`]: no task outlives
//! the loop.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// The tasks that run.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// A task that panicked.
#[derive(Debug, thiserror::Error)]
#[error("the task {name:?} failed: {error}")]
pub(super) struct TaskPanic {
    name: &'static str,
    error: tokio::task::JoinError,
}

impl Tasks {
    /// Starts a task.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Starts a task that blocks its thread. Once it runs it cannot be aborted.
    pub(super) fn spawn_blocking(
        &mut self,
        name: &'static str,
        task: impl FnOnce() + Send + 'static,
    ) {
        let id = self.set.spawn_blocking(task).id();
        self.names.insert(id, name);
    }

    /// Waits for the next task to end. Returns `None` when none is left.
    ///
    /// # Cancel safety
    /// Safe: no end is lost.
    ///
    /// # Errors
    /// The task panicked. One that was aborted has ended like any other.
    pub(super) async fn join_next(&mut self) -> Option<Result<(), TaskPanic>> {
        let ended = self.set.join_next_with_id().await?;
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let name = self.names.remove(&id).unwrap_or("unnamed");
        Some(match ended {
            Err(error) if error.is_panic() => Err(TaskPanic { name, error }),
            _ => Ok(()),
        })
    }

    /// Aborts all tasks. Each ends at its next await.
    pub(super) fn abort_all(&mut self) {
        self.set.abort_all();
    }

    /// The names of the tasks that have not been joined.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.names.values().copied().collect()
    }
}
