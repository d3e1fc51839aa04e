//! Builds the engine anew when the store, the group or what is wanted changes.
//!
//! L1  At most one engine is being built at a time, and what the old engine saves meanwhile is not
//!     taken for the new one's.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::fact::{Fact, Reload};
use super::parts::Parts;

/// Rebuilds the engine from disk; it arrives as [`Fact::Loaded`]. Until then the old engine keeps
/// working, and nothing that it saves is taken for the new one's (X5 of the index). `gate` is the
/// catalogue's.
pub(super) fn reload(parts: &mut Parts, gate: Arc<Mutex<()>>, reload: Reload) {
    tracing::debug!(why = reload.why(), "rebuilding the engine");
    let (loading, facts) = (parts.loading(), parts.facts.clone());
    parts.tasks.spawn("load", async move {
        let _gate = gate.lock().await;
        let fact = match loading.load().await {
            Ok(engine) => Fact::Loaded { engine: Box::new(engine), reload },
            Err(error) => Fact::Fatal(error.context("reading the index and the group")),
        };
        facts.send(fact).await;
    });
}
