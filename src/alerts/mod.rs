//! Tells the user what needs attention, without being asked. [`watch`] gathers the facts and keeps
//! the alerts of [`crate::core::alerts`]; the loop shows them in the status. [`hooks`] calls programs
//! and URLs with the events of this device, alerts among them.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::time::timeout;

use crate::core::alerts::Alert;
use crate::core::ids::NodeId;
use crate::core::lookup::LookupError;

mod facts;
mod file;
pub mod hooks;
mod post;
mod program;
pub(crate) mod watch;

pub(crate) use file::MemoryFile;

use hooks::Hooks;

/// The most acknowledgements that wait. People give them one by one.
const ACKS_MAX: usize = 16;

/// The deadline of an acknowledgement: a few small writes.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// The report of the watcher to the rest of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The alerts that stand, the most pressing first, acknowledged ones last.
    pub alerts: Vec<Alert>,
    /// When each device that is not connected was last seen, ms since the Unix epoch.
    pub last_seen: BTreeMap<NodeId, u64>,
}

/// A handle to the alerts. Cheap to clone.
#[derive(Clone)]
pub struct Alerts {
    told: channel::Receiver<Told>,
    acks: mpsc::Sender<Ack>,
    hooks: Hooks,
}

/// An acknowledgement.
#[derive(Debug)]
pub(crate) struct Ack {
    id: String,
    reply: oneshot::Sender<Result<Alert, AckError>>,
}

/// Why an alert was not acknowledged; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AckError {
    /// No such alert stands, or several have ids that start so.
    #[error("{0}")]
    Unknown(String),
    /// The same request may succeed later.
    #[error("{0}")]
    Temporary(String),
}

impl From<LookupError> for AckError {
    fn from(error: LookupError) -> Self {
        Self::Unknown(error.to_string())
    }
}

/// The ends of the channels that the watcher holds.
pub(crate) struct WatcherEnds {
    pub(crate) told: channel::Sender<Told>,
    pub(crate) acks: mpsc::Receiver<Ack>,
}

impl Alerts {
    /// Makes a handle and the watcher's ends of its channels.
    pub(crate) fn channel(hooks: Hooks) -> (Self, WatcherEnds) {
        let (told, watched) = channel::channel(Told::default());
        let (acks, to_ack) = mpsc::channel(ACKS_MAX);
        (Self { told: watched, acks, hooks }, WatcherEnds { told, acks: to_ack })
    }

    /// The alerts that stand.
    pub fn standing(&self) -> Vec<Alert> {
        self.told.borrow().alerts.clone()
    }

    /// The hooks, which are called with events.
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// A receiver of what the watcher tells.
    pub(crate) fn told(&self) -> channel::Receiver<Told> {
        self.told.clone()
    }

    /// Acknowledges the alert with this id, or with an id that starts so. Durable on return.
    ///
    /// # Errors
    /// There is no such alert, or the agent is stopping.
    pub async fn ack(&self, id: &str) -> Result<Alert, AckError> {
        let (reply, answer) = oneshot::channel();
        let ack = Ack { id: id.to_owned(), reply };
        let stopping = || AckError::Temporary("the agent is stopping".into());
        let acked = async {
            self.acks.send(ack).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        };
        let late = |_| {
            let seconds = ACK_WAIT.as_secs();
            AckError::Temporary(format!("it was not acknowledged within {seconds} s: try again"))
        };
        timeout(ACK_WAIT, acked).await.map_err(late)?
    }
}
