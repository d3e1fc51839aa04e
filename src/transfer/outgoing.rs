//! Sends a batch to a peer: opens a stream of its own for it, with the priority of its lane, and
//! speaks the protocol of the connection.

use std::sync::Arc;

use super::context::Context;
use super::meter::Counters;
use super::outcome::{Outcome, TransferError};
use super::plain::send_plain_live;
use super::send::send_batch;
use super::throttle::LinkThrottle;
use crate::core::ids::Digest;
use crate::core::session::Lane;
use crate::net::{Connection, Protocol};

/// Sends a batch. `inline`: the contents of small assets follow without waiting for the Want.
/// Returns the outcome of each asset, in their order.
///
/// # Cancel safety
/// Dropping it ends the stream.
///
/// # Errors
/// [`TransferError`]: it is not known whether anything arrived.
pub(crate) async fn send(
    connection: &Connection,
    throttle: &LinkThrottle,
    ctx: &Context,
    digests: &[Digest],
    lane: Lane,
    inline: bool,
    counters: &Arc<Counters>,
) -> Result<Vec<Outcome>, TransferError> {
    let opened = connection.open_stream(priority(lane)).await;
    let (send, recv) = opened.map_err(|error| TransferError::Frame(error.into()))?;
    let send = throttle.up(send, Some(lane));
    let outcomes = match connection.protocol() {
        Protocol::Plain => send_plain_live(ctx, recv, send, digests, counters).await?,
        Protocol::Two | Protocol::Pairing | Protocol::Introduction => {
            let solicited = lane.is_solicited();
            send_batch(ctx, recv, send, digests, solicited, inline, counters).await?
        }
    };
    digests.iter().zip(&outcomes).for_each(|(digest, outcome)| log_sent(digest, outcome));
    Ok(outcomes)
}

/// The priority of a lane's streams, see `Connection::open_stream`: new assets and those wanted at
/// once go before all others. The rest share what is left, so that no lane waits for the end of
/// another.
fn priority(lane: Lane) -> i32 {
    match lane {
        Lane::Live => 20,
        Lane::Now => 18,
        Lane::NowLarge => 16,
        Lane::LiveLarge | Lane::Small | Lane::Large => 10,
    }
}

/// Logs the outcome of an asset that the user may have to know of.
fn log_sent(digest: &Digest, outcome: &Outcome) {
    let hash = digest.hash.short();
    match outcome {
        Outcome::Damaged => {
            tracing::warn!(hash, "cannot send an asset: its content is damaged here");
        }
        Outcome::Refused(reason) => tracing::warn!(hash, reason, "a peer refuses an asset"),
        Outcome::Later(reason) | Outcome::StoreDown(reason) => {
            tracing::info!(hash, reason, "a peer accepts an asset later")
        }
        Outcome::Stored
        | Outcome::AlreadyHeld
        | Outcome::Elsewhere
        | Outcome::Interrupted
        | Outcome::Unavailable => {}
    }
}
