//! QUIC: the endpoint, tickets, framed streams, pairing. Only this folder names the QUIC library,
//! except for the key type in `state::identity`; streams leave it as `AsyncRead` and `AsyncWrite`.
//!
//! Reading order: `endpoint` (bind, limits), `dial`, `accept` (which connections are admitted),
//! `connection` (streams and closes), `contain` (what a panic of the QUIC library costs), `frame`,
//! then `ticket`, `pairing` and `introduction`; `discovery`, `announced`, `address` and `link_local` serve them.
//! `checkup` measures the network for `doctor`.

mod accept;
mod address;
mod announced;
mod checkup;
mod connection;
mod contain;
mod dial;
mod discovery;
mod endpoint;
pub mod frame;
#[cfg(test)]
pub(crate) mod inject;
pub mod introduction;
mod link_local;
mod named;
pub mod pairing;
pub mod ticket;

pub use accept::{Accepted, Acceptor, Admission, Verdict};
pub use address::NamedAddress;
pub use connection::{
    Connection, Ended, Path, PathKind, Protocol, QuicStats, RecvStream, SendStream, WireBytes,
};
pub use contain::outlive_panics;
pub use dial::DialError;
pub use discovery::{NetEvent, NetEvents};
pub use endpoint::{Net, NetConfig, Relay};
pub use iroh::SecretKey;
pub(crate) use named::NamedPeers;

/// Directives for the log filter. Without a network or multicast these libraries repeat themselves
/// for ever; [`Net::warnings`] reports it once. And the receiver of relayed packets reports an error
/// whenever the endpoint is closed.
pub const LOG_DIRECTIVES: [&str; 10] = [
    "swarm_discovery=off",
    "iroh_mdns_address_lookup=error",
    "iroh=error",
    "iroh::socket::transports::relay=off",
    "iroh::socket::transports::relay::actor=error",
    "iroh_relay=error",
    "netwatch=error",
    "noq=error",
    "noq_udp=error",
    "portmapper=error",
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn of_the_relays_parts_only_the_one_that_reports_at_every_stop_is_silent() {
        let filter: EnvFilter = LOG_DIRECTIVES.join(",").parse().unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), || {
            use tracing::{Level, enabled};
            assert!(!enabled!(target: "iroh::socket::transports::relay", Level::ERROR));
            assert!(enabled!(target: "iroh::socket::transports::relay::actor", Level::ERROR));
            assert!(enabled!(target: "iroh::socket", Level::ERROR));
        });
    }
}
