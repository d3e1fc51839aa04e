//! The file in which the alerts remember. It is a few KiB, and lost only costs what it remembers:
//! then alerts are raised again.

use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;

use crate::core::alerts::Memory;
use crate::state::home::Home;

/// The file `alerts` of a home. Clones share it. Every call blocks.
#[derive(Debug, Clone)]
pub(crate) struct MemoryFile(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    home: Home,
    /// The run has ended in order: what a late writer still holds is older.
    has_ended: bool,
}

impl MemoryFile {
    /// The file of this home.
    pub(crate) fn new(home: Home) -> Self {
        Self(Arc::new(Mutex::new(State { home, has_ended: false })))
    }

    /// Loads the state that the last run saved.
    pub(crate) fn load(&self) -> Memory {
        let Some(json) = self.0.lock().home.alerts() else { return Memory::default() };
        serde_json::from_slice(&json).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the saved alerts: starting without them");
            Memory::default()
        })
    }

    /// Writes what is remembered; durable on return.
    pub(crate) fn save(&self, memory: &Memory) -> anyhow::Result<()> {
        let state = self.0.lock();
        if state.has_ended {
            return Ok(());
        }
        let json = serde_json::to_vec(memory).context("writing the file of alerts")?;
        state.home.write_alerts(&json)
    }

    /// Writes that the run has ended in order.
    pub(crate) fn end(&self, now_ms: u64) -> anyhow::Result<()> {
        self.save(&self.load().ended(now_ms))?;
        self.0.lock().has_ended = true;
        Ok(())
    }
}
