//! Who comes in: every incoming connection is judged here, before any of its streams is read.
//!
//! I1  A device that is not a member gets one and the same close, whatever it says or asks for.
//! I2  Unauthenticated work is bounded in number and time, and stalled handshakes give way to new
//!     ones, so that nobody keeps a member out by hanging on.
//! I3  Strangers cost no disk and at most one log line a minute.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{Incoming, ServerConfig};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::core::close::CloseCode;
use crate::core::ids::NodeId;

use super::connection::{Connection, Protocol};
use super::endpoint::Net;

/// Handshakes at once. One takes milliseconds unless the other side stalls.
const HANDSHAKES_MAX: usize = 8;

/// From this many handshakes on, a caller must show that its address is its own (QUIC Retry).
const HANDSHAKES_UNVALIDATED_MAX: usize = 4;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a handshake is safe from giving way to a new one: three round trips of a slow path.
const HANDSHAKE_UNDISTURBED: Duration = Duration::from_secs(1);

/// How often refusals are logged.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What a device is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In the group.
    Member,
    /// Was in the group and has been removed; it is told so.
    Removed,
    /// Anyone else.
    Stranger,
}

/// Who may come in; asked for every connection, when its handshake is done.
pub struct Admission {
    /// Judges a device.
    pub verdict: Box<dyn Fn(NodeId) -> Verdict + Send + Sync>,
    /// Whether a ticket is outstanding.
    pub pairing_open: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

/// A connection that came in.
#[derive(Debug)]
pub enum Accepted {
    /// A member's, for a session.
    Session(Connection),
    /// Anyone's, to redeem a ticket with [`super::pairing::host`].
    Pairing(Connection),
}

/// The accept loop, from [`Net::acceptor`]. Dropped, nobody comes in any more.
#[derive(Debug)]
pub struct Acceptor {
    net: Net,
    admission: Arc<Admission>,
    pairing_config: Arc<ServerConfig>,
    handshakes: JoinSet<Outcome>,
    /// The handshakes, oldest first, with their beginnings.
    begun: Vec<(AbortHandle, Instant)>,
    refused: u64,
    refusals_logged: Option<Instant>,
}

#[derive(Debug)]
enum Outcome {
    Accepted(Accepted),
    Refused,
    Failed,
}

impl Net {
    /// Begins to accept. One acceptor at a time, and it must be asked for the next connection all
    /// the time: that is what answers or refuses everyone who knocks.
    pub fn acceptor(&self, admission: Admission) -> Acceptor {
        Acceptor {
            net: self.clone(),
            admission: Arc::new(admission),
            pairing_config: Arc::new(self.pairing_config()),
            handshakes: JoinSet::new(),
            begun: Vec::new(),
            refused: 0,
            refusals_logged: None,
        }
    }
}

impl Acceptor {
    /// The next connection that was let in; `None` when the endpoint is closed.
    ///
    /// # Cancel safety
    /// Safe: handshakes go on, and none is lost.
    pub async fn next(&mut self) -> Option<Accepted> {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Outcome::Accepted(accepted)) => return Some(accepted),
                    Ok(Outcome::Refused) => self.count_refusal(),
                    Ok(Outcome::Failed) | Err(_) => {}
                },
                incoming = self.net.endpoint().accept() => self.greet(incoming?),
            }
        }
    }

    /// Begins a handshake, or turns the caller away before any work is done for it.
    fn greet(&mut self, incoming: Incoming) {
        self.begun.retain(|(handshake, _)| !handshake.is_finished());
        if self.begun.len() >= HANDSHAKES_MAX {
            let (oldest, since) = &self.begun[0];
            if since.elapsed() < HANDSHAKE_UNDISTURBED {
                incoming.refuse();
                return;
            }
            oldest.abort();
            self.begun.remove(0);
        }
        if self.begun.len() >= HANDSHAKES_UNVALIDATED_MAX && !incoming.remote_addr_validated() {
            // It comes back with a token at once; an address that was made up does not.
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        let pairing_config = asks_to_pair(&incoming).then(|| self.pairing_config.clone());
        let handshake = receive(self.net.clone(), self.admission.clone(), incoming, pairing_config);
        self.begun.push((self.handshakes.spawn(handshake), Instant::now()));
    }

    fn count_refusal(&mut self) {
        self.refused += 1;
        if self.refusals_logged.is_some_and(|at| at.elapsed() < REFUSALS_LOGGED_EVERY) {
            return;
        }
        tracing::info!(refused = self.refused, "refused devices that are not members");
        self.refused = 0;
        self.refusals_logged = Some(Instant::now());
    }
}

/// Whether the first packet offers the pairing protocol. One that hides it is answered without that
/// protocol, so that nobody has a stranger's rights and a member's windows.
fn asks_to_pair(incoming: &Incoming) -> bool {
    let Some(mut alpns) = incoming.decrypt().and_then(|initial| initial.alpns()) else {
        return false;
    };
    alpns.any(|alpn| alpn.is_ok_and(|alpn| alpn == Protocol::Pairing.alpn()))
}

async fn receive(
    net: Net,
    admission: Arc<Admission>,
    incoming: Incoming,
    pairing_config: Option<Arc<ServerConfig>>,
) -> Outcome {
    let handshake = async {
        let connecting = match pairing_config {
            Some(config) => incoming.accept_with(config),
            None => incoming.accept(),
        }
        .map_err(|error| error.to_string())?;
        connecting.await.map_err(|error| error.to_string())
    };
    let quic = match timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => {
            tracing::debug!(error, "a handshake failed");
            return Outcome::Failed;
        }
        Err(_) => {
            tracing::debug!("a handshake took too long");
            return Outcome::Failed;
        }
    };
    let Some(protocol) = Protocol::from_alpn(quic.alpn()) else { return Outcome::Failed };
    let connection = Connection::new(quic, protocol);
    if let Some(code) = refusal(&admission, &connection) {
        connection.close(code, "");
        return Outcome::Refused;
    }
    if !net.admit(&connection) {
        let code = match protocol {
            // A joiner is a stranger still, and learns as little.
            Protocol::Pairing => CloseCode::NotMember,
            Protocol::Two | Protocol::Plain => CloseCode::Internal,
        };
        connection.close(code, "");
        return Outcome::Refused;
    }
    Outcome::Accepted(match protocol {
        Protocol::Pairing => Accepted::Pairing(connection),
        Protocol::Two | Protocol::Plain => Accepted::Session(connection),
    })
}

fn refusal(admission: &Admission, connection: &Connection) -> Option<CloseCode> {
    // Always asked, so that every refusal takes the same steps.
    let verdict = (admission.verdict)(connection.peer());
    match connection.protocol() {
        Protocol::Pairing if (admission.pairing_open)() => None,
        Protocol::Pairing => Some(CloseCode::NotMember),
        Protocol::Two | Protocol::Plain => match verdict {
            Verdict::Member => None,
            Verdict::Removed => Some(CloseCode::Removed),
            Verdict::Stranger => Some(CloseCode::NotMember),
        },
    }
}
