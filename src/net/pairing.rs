//! Pairing over the network: the joiner redeems a ticket, the inviter hosts it.
//!
//! One stream, opened by the joiner: `PairRequest ->`, `<- PairAccept`; then the joiner closes with
//! OK. The inviter adds the joiner durably before it accepts. A joiner that loses the connection
//! after its request may have been added without knowing: it takes a new ticket.
//!
//! I1  A refusal tells a stranger nothing: one code, whether a ticket is used, expired or made up.
//! I2  Each step has a deadline and each message a bound.

use std::time::Duration;

use prost::Message;
use thiserror::Error;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::ids::{HashAlgorithm, NodeId};
use crate::core::joining::{PairAccept, PairRequest};
use crate::core::pairing::pair_proof;
use crate::wire::frame::Kind;
use crate::wire::pairing::{
    pair_accept_from_wire, pair_accept_to_wire, pair_request_from_wire, pair_request_to_wire,
};
use crate::wire::proto::peer;

use super::connection::{Connection, Ended, Protocol};
use super::dial::DialError;
use super::endpoint::Net;
use super::frame::{FrameReader, FrameWriter};
use super::ticket::Ticket;

/// How long the inviter waits for the request, and for the joiner to close.
const JOINER_DEADLINE: Duration = Duration::from_secs(5);

/// How long the joiner waits for the answer: the inviter writes to its disk first.
const INVITER_DEADLINE: Duration = Duration::from_secs(15);

/// What a joiner tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joiner {
    /// Its name.
    pub device_name: String,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// How its store names assets.
    pub hash_algorithm: HashAlgorithm,
}

/// Why a ticket was not redeemed, as the joiner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    /// It was made on this very device.
    #[error("this ticket was made by this device: use it on the other one")]
    OwnTicket,
    /// By this device's clock.
    #[error(
        "the ticket expired {} ago by this device's clock: make a new one, or set the clock",
        minutes(*.ago_ms)
    )]
    Expired {
        /// Since when.
        ago_ms: u64,
    },
    /// The inviter does not answer.
    #[error(
        "the device that made the ticket ({}) cannot be reached: {reason}; is it on, with can-sync \
         running, and on this network or the internet?",
        .inviter.short()
    )]
    Unreachable {
        /// Who made the ticket.
        inviter: NodeId,
        /// What happened.
        reason: DialError,
    },
    /// The inviter does not know the ticket, for whatever reason.
    #[error(
        "the other device does not accept the ticket: it has been used, has expired or was \
         withdrawn; make a new one there"
    )]
    Refused,
    /// The stores of the two devices cannot be synced.
    #[error(
        "this device's store names assets by {}, the other device's does not: stores of one group \
         must use the same hash algorithm",
        .own.name()
    )]
    HashAlgorithm {
        /// What this device's store uses.
        own: HashAlgorithm,
    },
    /// It broke off in between.
    #[error("the other device broke off ({0}); make a new ticket there and try again")]
    Lost(String),
    /// What the inviter said makes no sense.
    #[error("the other device's answer cannot be read: {0}")]
    Malformed(String),
}

/// Why a joiner was not let in, as the inviter sees it. For the log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// It sent no request in time.
    #[error("the joiner sent no request")]
    Silent,
    /// Its request made no sense.
    #[error("the joiner's request cannot be read: {0}")]
    Malformed(String),
    /// It was refused with this code.
    #[error("the joiner was refused: {0}")]
    Refused(CloseCode),
    /// It has been added, and perhaps does not know.
    #[error("the joiner was added, and left before it confirmed: {0}")]
    Unconfirmed(String),
}

/// Redeems a ticket: dials the inviter and proves the ticket's secret. `now_ms` is the wall clock's.
/// What comes back must be made durable by the caller.
///
/// # Cancel safety
/// Not safe: the inviter may have added this device already.
///
/// # Errors
/// [`JoinError`], each fit for people.
pub async fn join(
    net: &Net,
    ticket: &Ticket,
    own: Joiner,
    now_ms: u64,
) -> Result<PairAccept, JoinError> {
    if ticket.inviter == net.node_id() {
        return Err(JoinError::OwnTicket);
    }
    if now_ms >= ticket.expires_ms {
        return Err(JoinError::Expired { ago_ms: now_ms - ticket.expires_ms });
    }
    let inviter = ticket.inviter;
    let connection = net
        .dial_for(&[Protocol::Pairing], inviter, &ticket.addresses)
        .await
        .map_err(|reason| JoinError::Unreachable { inviter, reason })?;
    let hash_algorithm = own.hash_algorithm;
    let request = PairRequest {
        joiner: net.node_id(),
        proof: pair_proof(&ticket.secret, &inviter, &net.node_id()),
        device_name: own.device_name,
        addresses: own.addresses,
        hash_algorithm,
    };
    let answer = timeout(INVITER_DEADLINE, ask(&connection, &request)).await;
    match answer {
        Ok(Ok(accept)) => {
            connection.close(CloseCode::Ok, "");
            Ok(accept)
        }
        Ok(Err(JoinError::Lost(detail))) => {
            // A stream fails a moment before the connection says why.
            let ended = timeout(JOINER_DEADLINE, connection.closed()).await.ok();
            Err(match ended.as_ref().and_then(|ended| ended.code) {
                Some(CloseCode::NotMember) => JoinError::Refused,
                Some(CloseCode::HashAlgorithm) => JoinError::HashAlgorithm { own: hash_algorithm },
                _ => JoinError::Lost(ended.map_or(detail, |ended: Ended| ended.text)),
            })
        }
        Ok(Err(error)) => {
            connection.close(CloseCode::Protocol, "");
            Err(error)
        }
        Err(_) => {
            connection.close(CloseCode::Slow, "");
            Err(JoinError::Lost(format!("no answer within {} s", INVITER_DEADLINE.as_secs())))
        }
    }
}

async fn ask(connection: &Connection, request: &PairRequest) -> Result<PairAccept, JoinError> {
    let lost = |error: &dyn std::fmt::Display| JoinError::Lost(error.to_string());
    let (send, recv) = connection.open_stream(0).await.map_err(|e| lost(&e))?;
    let mut writer = FrameWriter::new(send, JOINER_DEADLINE);
    let request = pair_request_to_wire(request);
    writer.write(Kind::PairRequest, &request).await.map_err(|e| lost(&e))?;
    writer.finish().await.map_err(|e| lost(&e))?;
    let mut reader = FrameReader::new(recv, None);
    let frame = reader.read().await.map_err(|e| lost(&e))?;
    let frame = frame.ok_or_else(|| JoinError::Lost("it ended the stream".to_owned()))?;
    if frame.kind != Kind::PairAccept {
        return Err(JoinError::Malformed(format!("a {:?} frame", frame.kind)));
    }
    let accept = peer::PairAccept::decode(frame.payload)
        .map_err(|error| JoinError::Malformed(error.to_string()))?;
    pair_accept_from_wire(&accept).map_err(|error| JoinError::Malformed(error.to_string()))
}

/// Answers a joiner. `redeem` checks the proof, adds the joiner durably and says what to tell it,
/// or the code to refuse it with: [`CloseCode::NotMember`] whatever is wrong with the ticket,
/// [`CloseCode::HashAlgorithm`] only once the proof is right.
///
/// # Errors
/// [`HostError`]; only after [`HostError::Unconfirmed`] has the joiner been added.
pub async fn host<Redeem, Redeeming>(
    connection: Connection,
    redeem: Redeem,
) -> Result<(), HostError>
where
    Redeem: FnOnce(PairRequest) -> Redeeming,
    Redeeming: Future<Output = Result<PairAccept, CloseCode>>,
{
    let request = async {
        let (send, recv) = connection.accept_stream(0).await.map_err(|_| HostError::Silent)?;
        let mut reader = FrameReader::new(recv, None);
        let frame = reader.read().await.map_err(|e| HostError::Malformed(e.to_string()))?;
        let frame = frame.ok_or(HostError::Silent)?;
        if frame.kind != Kind::PairRequest {
            return Err(HostError::Malformed(format!("a {:?} frame", frame.kind)));
        }
        let request = peer::PairRequest::decode(frame.payload)
            .map_err(|error| HostError::Malformed(error.to_string()))?;
        let request = pair_request_from_wire(connection.peer(), &request)
            .map_err(|error| HostError::Malformed(error.to_string()))?;
        Ok((send, request))
    };
    let request = timeout(JOINER_DEADLINE, request).await.unwrap_or(Err(HostError::Silent));
    // Whatever a stranger does wrong, it hears the same.
    let (send, request) = request.inspect_err(|_| connection.close(CloseCode::NotMember, ""))?;
    let accept = redeem(request).await.map_err(|code| {
        connection.close(code, "");
        HostError::Refused(code)
    })?;
    let unconfirmed = |error: &dyn std::fmt::Display| HostError::Unconfirmed(error.to_string());
    let mut writer = FrameWriter::new(send, JOINER_DEADLINE);
    let accept = pair_accept_to_wire(&accept);
    writer.write(Kind::PairAccept, &accept).await.map_err(|e| unconfirmed(&e))?;
    writer.finish().await.map_err(|e| unconfirmed(&e))?;
    // The joiner closes, because it knows when it has everything.
    match timeout(JOINER_DEADLINE, connection.closed()).await {
        Ok(Ended { code: Some(CloseCode::Ok), .. }) => Ok(()),
        Ok(ended) => Err(unconfirmed(&ended)),
        Err(_) => {
            connection.close(CloseCode::Slow, "");
            Err(unconfirmed(&"it did not close the connection"))
        }
    }
}

fn minutes(ms: u64) -> String {
    match ms / 60_000 {
        0 => "less than a minute".to_owned(),
        1 => "a minute".to_owned(),
        n @ 2..=119 => format!("{n} minutes"),
        n => format!("{} hours", n / 60),
    }
}
