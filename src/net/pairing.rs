//! Pairing over the network: the joiner redeems a ticket, and the inviter hosts it.
//! `proto/peer.proto` describes the messages and their order.
//!
//! I1  A device that does not know the ticket's secret learns nothing: it gets the same code
//!     without words whether a ticket is used, expired or invented.
//! I2  Each step has a deadline and each message a bound.
//! I3  The inviter makes the joiner a member only when the joiner says that it has joined. So the
//!     joiner may call the pairing off, or be lost, at every step before.

use std::fmt::Display;
use std::time::Duration;

use prost::Message;
use thiserror::Error;
use tokio::time::timeout;

use crate::core::close::CloseCode;
use crate::core::ids::{HashAlgorithm, NodeId};
use crate::core::joining::{Handshake, PairAccept, PairNonce, PairOffer, PairRequest, commitment};
use crate::core::limits::FUTURE_MS_MAX;
use crate::core::pairing::pair_proof;
use crate::wire::frame::Kind;
use crate::wire::pairing::{
    pair_accept_from_wire, pair_accept_to_wire, pair_offer_from_wire, pair_offer_to_wire,
    pair_request_from_wire, pair_request_to_wire, pair_reveal_from_wire, pair_reveal_to_wire,
};
use crate::wire::proto::peer;

use super::connection::{Connection, Ended, Protocol, RecvStream, SendStream};
use super::dial::DialError;
use super::endpoint::Net;
use super::frame::{FrameReader, FrameWriter};
use super::ticket::Ticket;

/// How long a device waits for a step that needs no disk on the other side.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// How long a device waits for a step before which the other side writes to its disk.
const DISK_DEADLINE: Duration = Duration::from_secs(15);

/// How long to wait for a connection to report why its stream failed.
const ENDED_WAIT: Duration = Duration::from_secs(1);

/// How long people have to compare the digits.
pub const COMPARE_DEADLINE: Duration = Duration::from_secs(300);

/// What a joiner says about itself and requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joiner {
    /// Its name.
    pub device_name: String,
    /// The addresses at which it can be reached.
    pub addresses: Vec<String>,
    /// The hash algorithm of its store.
    pub hash_algorithm: HashAlgorithm,
    /// Whether people must compare the digits.
    pub verify: bool,
}

/// Why a ticket was not redeemed, for the joiner.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    /// This device made the ticket itself.
    #[error("this ticket was made by this device: use it on the other one")]
    OwnTicket,
    /// The ticket expired by this device's clock.
    #[error(
        "the ticket expired {} ago by this device's clock: make a new one, or set the clock",
        minutes(*.ago_ms)
    )]
    Expired {
        /// How long ago.
        ago_ms: u64,
    },
    /// The inviter cannot be reached.
    #[error(
        "the device that made the ticket ({}) cannot be reached: {reason}; is it on, with can-sync \
         running, and on this network or the internet?",
        .inviter.short()
    )]
    Unreachable {
        /// The device that made the ticket.
        inviter: NodeId,
        /// The reason.
        reason: DialError,
    },
    /// The inviter does not know the ticket, for whatever reason.
    #[error(
        "the other device does not accept the ticket: it has been used, has expired or was \
         withdrawn; make a new one there"
    )]
    Refused,
    /// The inviter knows the ticket, and states why it does not admit this device.
    #[error("the other device does not let this one in: {0}")]
    Declined(String),
    /// The inviter's group has removed this device.
    #[error(
        "that group has removed this device, which is final for its key: `can-sync leave --yes` \
         makes this a new device"
    )]
    Removed,
    /// The stores of the two devices use different hash algorithms.
    #[error(
        "this device's store names assets by {}, the other device's does not: stores of one group \
         must use the same hash algorithm",
        .own.name()
    )]
    HashAlgorithm {
        /// The hash algorithm of this device's store.
        own: HashAlgorithm,
    },
    /// The clocks of the two devices are too far apart.
    #[error(
        "this device's clock is {} {} the other device's: set the clock that is wrong, then pair \
         with the same ticket or a new one",
        minutes(.ahead_ms.unsigned_abs()),
        if *.ahead_ms > 0 { "ahead of" } else { "behind" }
    )]
    Clock {
        /// How far this device's clock is ahead.
        ahead_ms: i64,
    },
    /// The pairing broke off.
    #[error(
        "the other device broke off ({0}): try again, with a new ticket if this one is used up"
    )]
    Lost(String),
    /// The inviter's message is malformed.
    #[error("the other device's answer cannot be read: {0}")]
    Malformed(String),
}

/// Why a joiner was not admitted, for the inviter's log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostError {
    /// The joiner sent no request in time.
    #[error("the joiner sent no request")]
    Silent,
    /// The joiner's message is malformed.
    #[error("the joiner's message cannot be read: {0}")]
    Malformed(String),
    /// The joiner revealed another nonce than it had committed to: it tried to choose the digits.
    #[error("the joiner revealed another nonce than it had committed to")]
    OtherNonce,
    /// The joiner left before it was admitted.
    #[error("the joiner called the pairing off: {0}")]
    CalledOff(String),
    /// The joiner received the ops that make it a member, but did not confirm that it has joined.
    #[error("the joiner did not say that it has joined, and may yet come in: {0}")]
    Unconfirmed(String),
}

/// The stream of one pairing, on either side.
#[derive(Debug)]
struct Stream {
    connection: Connection,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
}

/// Why a step failed.
enum StepError {
    Lost(String),
    Malformed(String),
}

impl Stream {
    fn new(connection: Connection, (send, recv): (SendStream, RecvStream)) -> Self {
        let reader = FrameReader::new(recv, None);
        let writer = FrameWriter::new(send, STEP_DEADLINE);
        Self { connection, reader, writer }
    }

    async fn write(&mut self, kind: Kind, message: &impl Message) -> Result<(), StepError> {
        self.writer.write(kind, message).await.map_err(lost)?;
        self.writer.flush().await.map_err(lost)
    }

    /// Reads the next message, which must be of `kind`.
    async fn read<M: Message + Default>(
        &mut self,
        kind: Kind,
        deadline: Duration,
    ) -> Result<M, StepError> {
        let late = |_| StepError::Lost(format!("no answer within {} s", deadline.as_secs()));
        let frame = timeout(deadline, self.reader.read()).await.map_err(late)?.map_err(lost)?;
        let frame = frame.ok_or_else(|| StepError::Lost("it ended the stream".to_owned()))?;
        if frame.kind != kind {
            return Err(StepError::Malformed(format!("a {:?} frame, not {kind:?}", frame.kind)));
        }
        M::decode(frame.payload).map_err(malformed)
    }

    /// How the connection ended, if it has: a stream fails a moment before its connection reports
    /// the reason. A connection that has not ended is closed.
    async fn ended(&self) -> Option<Ended> {
        let ended = timeout(ENDED_WAIT, self.connection.closed()).await.ok();
        if ended.is_none() {
            self.connection.close(CloseCode::Slow, "");
        }
        ended
    }
}

// ---- the joiner --------------------------------------------------------------------------------

/// A pairing that the inviter accepted, before this device has joined. Dropping it calls the
/// pairing off.
#[derive(Debug)]
pub struct Joining {
    stream: Stream,
    offer: PairOffer,
    short_code: String,
    algorithm: HashAlgorithm,
}

/// Dials the inviter, proves the ticket's secret and agrees on the digits. `now_ms` is the wall
/// clock's time.
///
/// # Cancel safety
/// Safe: the pairing is called off.
///
/// # Errors
/// [`JoinError`], with a message for people.
pub async fn ask(
    net: &Net,
    ticket: &Ticket,
    own: Joiner,
    now_ms: u64,
) -> Result<Joining, JoinError> {
    let (inviter, joiner) = (ticket.inviter, net.node_id());
    if inviter == joiner {
        return Err(JoinError::OwnTicket);
    }
    if now_ms >= ticket.expires_ms {
        return Err(JoinError::Expired { ago_ms: now_ms - ticket.expires_ms });
    }
    let connection = net
        .dial_for(&[Protocol::Pairing], inviter, &ticket.addresses)
        .await
        .map_err(|reason| JoinError::Unreachable { inviter, reason })?;
    let (algorithm, nonce) = (own.hash_algorithm, rand::random());
    let request = PairRequest {
        joiner,
        proof: pair_proof(&ticket.secret, &inviter, &joiner),
        device_name: own.device_name,
        addresses: own.addresses,
        hash_algorithm: algorithm,
        commitment: commitment(&nonce),
        verify: own.verify,
    };
    let streams = match timeout(STEP_DEADLINE, connection.open_stream(0)).await {
        Ok(Ok(streams)) => streams,
        // The inviter has closed the connection already, as when it has no open ticket.
        Ok(Err(_)) => return Err(join_error(&connection.closed().await, algorithm)),
        Err(_) => return Err(JoinError::Lost("it opens no stream".to_owned())),
    };
    let mut stream = Stream::new(connection, streams);
    match agree(&mut stream, &request, nonce, inviter, now_ms).await {
        Ok(Ok((offer, short_code))) => Ok(Joining { stream, offer, short_code, algorithm }),
        Ok(Err(error)) => {
            stream.connection.close(CloseCode::Ok, "the clocks are too far apart");
            Err(error)
        }
        Err(error) => Err(why(&stream, error, algorithm).await),
    }
}

/// Exchanges request, offer and reveal. The inner error is a reason to call the pairing off.
async fn agree(
    stream: &mut Stream,
    request: &PairRequest,
    nonce: PairNonce,
    inviter: NodeId,
    now_ms: u64,
) -> Result<Result<(PairOffer, String), JoinError>, StepError> {
    stream.write(Kind::PairRequest, &pair_request_to_wire(request)).await?;
    let offer: peer::PairOffer = stream.read(Kind::PairOffer, STEP_DEADLINE).await?;
    let offer = pair_offer_from_wire(&offer).map_err(malformed)?;
    if request.verify && !offer.verify {
        return Err(StepError::Malformed("it would let this device in unverified".to_owned()));
    }
    let ahead_ms = i64::try_from(now_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(offer.now_ms);
    if ahead_ms.unsigned_abs() > FUTURE_MS_MAX {
        return Ok(Err(JoinError::Clock { ahead_ms }));
    }
    stream.write(Kind::PairReveal, &pair_reveal_to_wire(&nonce)).await?;
    let handshake = Handshake {
        inviter,
        joiner: request.joiner,
        group_id: offer.group_id,
        inviter_nonce: offer.nonce,
        joiner_nonce: nonce,
        channel: stream.connection.channel_binding().map_err(lost)?,
    };
    Ok(Ok((offer, handshake.short_code())))
}

impl Joining {
    /// The inviter's offer.
    pub fn offer(&self) -> &PairOffer {
        &self.offer
    }

    /// The digits that the inviter shows too, unless an attacker is in between.
    pub fn short_code(&self) -> &str {
        &self.short_code
    }

    /// Tells the inviter that this device is ready to join, and waits for the ops that make it a
    /// member. The caller must join durably and then call [`Self::joined`].
    ///
    /// # Cancel safety
    /// Safe: the pairing is called off.
    ///
    /// # Errors
    /// [`JoinError`], with a message for people.
    pub async fn confirm(&mut self) -> Result<PairAccept, JoinError> {
        let deadline = if self.offer.verify { COMPARE_DEADLINE } else { DISK_DEADLINE };
        let stream = &mut self.stream;
        let accepted = async {
            stream.write(Kind::PairConfirm, &peer::PairConfirm {}).await?;
            let accept: peer::PairAccept = stream.read(Kind::PairAccept, deadline).await?;
            pair_accept_from_wire(&accept).map_err(malformed)
        };
        match accepted.await {
            Ok(accept) => Ok(accept),
            Err(error) => Err(why(&self.stream, error, self.algorithm).await),
        }
    }

    /// Returns the reason when the inviter is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> JoinError {
        let ended = self.stream.connection.closed().await;
        join_error(&ended, self.algorithm)
    }

    /// Tells the inviter that this device has joined. Returns whether the inviter confirmed it as a
    /// member; if not, this device introduces itself when it is refused.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn joined(mut self) -> bool {
        if self.stream.write(Kind::PairJoined, &peer::PairJoined {}).await.is_err() {
            return false;
        }
        let ended = timeout(DISK_DEADLINE, self.stream.connection.closed()).await;
        ended.is_ok_and(|ended| ended.by_peer && ended.code == Some(CloseCode::Ok))
    }

    /// Calls the pairing off.
    pub fn call_off(self, words: &str) {
        self.stream.connection.close(CloseCode::Ok, words);
    }
}

/// Why the joiner's step failed. The reason of the connection takes precedence.
async fn why(stream: &Stream, error: StepError, algorithm: HashAlgorithm) -> JoinError {
    match error {
        StepError::Malformed(detail) => {
            stream.connection.close(CloseCode::Protocol, "");
            JoinError::Malformed(detail)
        }
        StepError::Lost(detail) => match stream.ended().await {
            Some(ended) => join_error(&ended, algorithm),
            None => JoinError::Lost(detail),
        },
    }
}

fn join_error(ended: &Ended, own: HashAlgorithm) -> JoinError {
    match ended.code {
        Some(CloseCode::NotMember) if ended.words.is_empty() => JoinError::Refused,
        Some(CloseCode::NotMember) => JoinError::Declined(ended.words.clone()),
        Some(CloseCode::Removed) => JoinError::Removed,
        Some(CloseCode::HashAlgorithm) => JoinError::HashAlgorithm { own },
        _ => JoinError::Lost(ended.text.clone()),
    }
}

// ---- the inviter -------------------------------------------------------------------------------

/// A joiner's request. Dropping it calls the pairing off.
#[derive(Debug)]
pub struct Hosting {
    stream: Stream,
    request: PairRequest,
}

/// Reads a joiner's request.
///
/// # Cancel safety
/// Safe: the connection is closed.
///
/// # Errors
/// [`HostError`]; a stranger gets the same close whatever is wrong.
pub async fn receive(connection: Connection) -> Result<Hosting, HostError> {
    let received = async {
        let opened = timeout(STEP_DEADLINE, connection.accept_stream(0)).await;
        let streams = opened.map_err(|_| HostError::Silent)?.map_err(|_| HostError::Silent)?;
        let mut stream = Stream::new(connection.clone(), streams);
        let request: peer::PairRequest =
            stream.read(Kind::PairRequest, STEP_DEADLINE).await.map_err(|error| match error {
                StepError::Lost(_) => HostError::Silent,
                StepError::Malformed(detail) => HostError::Malformed(detail),
            })?;
        let request = pair_request_from_wire(connection.peer(), &request)
            .map_err(|error| HostError::Malformed(error.to_string()))?;
        Ok(Hosting { stream, request })
    };
    received.await.inspect_err(|_| connection.close(CloseCode::NotMember, ""))
}

impl Hosting {
    /// The joiner's request. The caller must check its proof.
    pub fn request(&self) -> &PairRequest {
        &self.request
    }

    /// Offers the group to a joiner with a right proof, and returns the digits.
    ///
    /// # Cancel safety
    /// Safe: the pairing is called off.
    ///
    /// # Errors
    /// [`HostError`]; the connection is closed.
    pub async fn offer(&mut self, inviter: NodeId, offer: &PairOffer) -> Result<String, HostError> {
        let revealed = async {
            self.stream.write(Kind::PairOffer, &pair_offer_to_wire(offer)).await?;
            let reveal: peer::PairReveal =
                self.stream.read(Kind::PairReveal, STEP_DEADLINE).await?;
            let nonce = pair_reveal_from_wire(&reveal).map_err(malformed)?;
            Ok((nonce, self.stream.connection.channel_binding().map_err(lost)?))
        };
        let (joiner_nonce, channel) = match revealed.await {
            Ok(revealed) => revealed,
            Err(error) => return Err(self.called_off(error).await),
        };
        if commitment(&joiner_nonce) != self.request.commitment {
            self.stream.connection.close(CloseCode::Protocol, "that is not the nonce committed to");
            return Err(HostError::OtherNonce);
        }
        let handshake = Handshake {
            inviter,
            joiner: self.request.joiner,
            group_id: offer.group_id,
            inviter_nonce: offer.nonce,
            joiner_nonce,
            channel,
        };
        Ok(handshake.short_code())
    }

    /// Waits until the joiner is ready to join; with `verify` until its user has compared the
    /// digits.
    ///
    /// # Cancel safety
    /// Safe: it can be called again.
    ///
    /// # Errors
    /// [`HostError`]; the connection is closed.
    pub async fn confirmed(&mut self, verify: bool) -> Result<(), HostError> {
        let deadline = if verify { COMPARE_DEADLINE } else { STEP_DEADLINE };
        match self.stream.read::<peer::PairConfirm>(Kind::PairConfirm, deadline).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.called_off(error).await),
        }
    }

    /// Sends the joiner the ops that make it a member, and waits until it has joined. The caller
    /// must make it a member durably and then call [`Self::done`].
    ///
    /// # Cancel safety
    /// Not safe: the joiner may have joined.
    ///
    /// # Errors
    /// [`HostError::Unconfirmed`]: it is not known whether the joiner has joined. If so, it
    /// introduces itself.
    pub async fn accept(&mut self, accept: &PairAccept) -> Result<(), HostError> {
        let joined = async {
            self.stream.write(Kind::PairAccept, &pair_accept_to_wire(accept)).await?;
            self.stream.read::<peer::PairJoined>(Kind::PairJoined, DISK_DEADLINE).await
        };
        match joined.await {
            Ok(_) => Ok(()),
            Err(StepError::Malformed(detail)) => {
                self.stream.connection.close(CloseCode::Protocol, "");
                Err(HostError::Unconfirmed(detail))
            }
            Err(StepError::Lost(detail)) => {
                let ended = self.stream.ended().await;
                Err(HostError::Unconfirmed(ended.map_or(detail, |ended| ended.text)))
            }
        }
    }

    /// Tells the joiner that this device has made it a member too.
    pub fn done(self) {
        self.stream.connection.close(CloseCode::Ok, "");
    }

    /// Refuses the joiner. `words` must be empty unless its proof is right.
    pub fn refuse(self, code: CloseCode, words: &str) {
        self.stream.connection.close(code, words);
    }

    async fn called_off(&self, error: StepError) -> HostError {
        match error {
            StepError::Malformed(detail) => {
                self.stream.connection.close(CloseCode::Protocol, "");
                HostError::Malformed(detail)
            }
            StepError::Lost(detail) => {
                let ended = self.stream.ended().await;
                HostError::CalledOff(ended.map_or(detail, |ended| ended.text))
            }
        }
    }
}

fn lost(error: impl Display) -> StepError {
    StepError::Lost(error.to_string())
}

fn malformed(error: impl Display) -> StepError {
    StepError::Malformed(error.to_string())
}

fn minutes(ms: u64) -> String {
    match ms / 60_000 {
        0 => "less than a minute".to_owned(),
        1 => "a minute".to_owned(),
        n @ 2..=119 => format!("{n} minutes"),
        n => format!("{} hours", n / 60),
    }
}
