//! What may change while the agent runs.

use crate::core::alerts::Thresholds;
use crate::core::hooks::Hook;
use crate::core::rate::RateLimits;
use crate::net::NamedAddress;

/// The part of the configuration that may change while the agent runs; see
/// [`Handle::tune`](super::handle::Handle::tune).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// The limits of the transfer rates.
    pub rate_limits: RateLimits,
    /// Where members are looked for when the addresses known of them lead nowhere.
    pub named_peers: Vec<NamedAddress>,
    /// From when on the user is alerted.
    pub alerts: Thresholds,
    /// What is called with events.
    pub hooks: Vec<Hook>,
}
