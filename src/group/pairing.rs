//! Tickets and pairing, on both sides.
//!
//! G1  A device is added here only after it has joined: the joiner checks everything, joins
//!     durably and reports it; only then is it added. See [`crate::net::pairing`].
//! G2  If either side requires that the digits are compared, each waits until its own user and the
//!     other side's user have confirmed them.
//! G3  A wrong proof uses up no ticket and writes nothing to disk: nobody guesses a secret of 128
//!     bits. It is logged, and [`crate::net`] counts it against its source.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::wall_ms;
use crate::core::close::CloseCode;
use crate::core::ids::{HashAlgorithm, NodeId};
use crate::core::joining::{PairAccept, PairOffer, PairRequest};
use crate::core::journal::device_events::LogEvent;
use crate::core::journal::session::Standing;
use crate::core::pairing::{TICKET_USES_MAX, shown_name, ticket_id, ticket_key};
use crate::core::units::counted;
use crate::net::pairing::{self, HostError, Hosting, JoinError, Joiner, Joining};
use crate::net::ticket::Ticket;
use crate::net::{Connection, Net};
use crate::state::journal::{Admitted, GroupState, JournalError, TokenError, verify};

use super::comparing::{Comparing, PairingEvent};
use super::follow::{group_state, note_addresses};
use super::introductions::verified;
use super::knocks::Knocks;
use super::{PairReply, RequestError, RevokeReply, TicketReply, TicketTerms, journal_error};
use crate::replica::events::EventLog;
use crate::replica::journal::{AskError, JournalHandle};
use crate::replica::status::{PairingState, PairingStatus};

/// The longest validity of a ticket: as long as devices are set up one after the other.
const TICKET_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes a ticket on these terms.
pub(crate) async fn make_ticket(
    journal: &JournalHandle,
    net: &Net,
    TicketTerms { ttl, verify, uses }: TicketTerms,
) -> Result<TicketReply, RequestError> {
    if ttl.is_zero() || ttl > TICKET_TTL_MAX {
        let days = TICKET_TTL_MAX.as_secs() / (24 * 3600);
        let text =
            format!("a ticket must be valid for longer than 0 seconds and at most {days} days");
        return Err(RequestError::Invalid(text));
    }
    if !(1..=TICKET_USES_MAX).contains(&uses) {
        let text = format!("a ticket lets in 1 to {TICKET_USES_MAX} devices, got {uses}");
        return Err(RequestError::Invalid(text));
    }
    let secret = rand::random();
    let key = ticket_key(&secret);
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let made = journal.run(move |journal, now_ms| {
        let expires_ms = now_ms.saturating_add(ttl_ms);
        journal.create_token_for(&key, verify, uses, now_ms, expires_ms)?;
        Ok(expires_ms)
    });
    let expires_ms = made.await.map_err(|error| journal_error("making the ticket", &error))?;
    let (inviter, addresses) = (net.node_id(), net.addresses());
    let ticket = Ticket { inviter, addresses, secret, expires_ms };
    Ok(TicketReply { id: ticket_id(&key), ticket: ticket.to_string(), expires_ms, uses })
}

/// Ends the ticket of this name before its time, or all tickets.
pub(crate) async fn revoke_tickets(
    journal: &JournalHandle,
    id: Option<String>,
) -> Result<RevokeReply, RequestError> {
    let named = id.clone();
    let revoked =
        journal.run(move |journal, now_ms| journal.revoke_tokens(named.as_deref(), now_ms));
    let revoked = revoked.await.map_err(|error| journal_error("revoking a ticket", &error))?;
    match id {
        Some(id) if revoked.is_empty() => Err(RequestError::Unknown(format!(
            "no ticket is called {id:?}: it was used up, has expired, or was made on another device"
        ))),
        _ => Ok(RevokeReply { revoked }),
    }
}

/// Sent to the other device when the user here did not confirm the digits.
const NOT_CONFIRMED: &str = "the digits were not confirmed on both devices";

/// The parts of the agent that the joiner's side of a pairing needs.
pub(crate) struct Redeemer<E> {
    pub(crate) compare: Compare<E>,
    pub(crate) journal: JournalHandle,
    pub(crate) net: Net,
    pub(crate) events: EventLog,
    pub(crate) algorithm: HashAlgorithm,
}

impl<E: From<PairingEvent>> Redeemer<E> {
    /// Redeems a ticket; with `verify`, people must compare the digits.
    pub(crate) async fn redeem(&self, text: &str, verify: bool) -> Result<PairReply, RequestError> {
        let result = self.pair(text, verify).await;
        if result.is_err() {
            self.compare.failed().await;
        }
        result
    }

    async fn pair(&self, text: &str, verify: bool) -> Result<PairReply, RequestError> {
        let ticket: Ticket =
            text.trim().parse().map_err(|error| RequestError::Invalid(format!("{error}")))?;
        let own = group_state(&self.journal, self.net.node_id()).await?;
        self.may_join(&own, ticket.inviter)?;
        let joiner = Joiner {
            device_name: own.name,
            addresses: self.net.addresses(),
            hash_algorithm: self.algorithm,
            verify,
        };
        let mut joining =
            pairing::ask(&self.net, &ticket, joiner, wall_ms()).await.map_err(request_error)?;
        let pairing = PairingStatus {
            node_id: ticket.inviter,
            name: joining.offer().device_name.clone(),
            short_code: joining.short_code().to_owned(),
            state: PairingState::Compare,
        };
        if joining.offer().verify {
            let agree = tokio::select! {
                agree = self.compare.agree(pairing.clone()) => agree,
                error = joining.lost() => return Err(request_error(error)),
            };
            if !agree {
                joining.call_off(NOT_CONFIRMED);
                return Err(RequestError::Refused(format!("{NOT_CONFIRMED}: nothing was shared")));
            }
        }
        let accept = joining.confirm().await.map_err(request_error)?;
        if let Err(error) = self.join(&joining, accept, &ticket).await {
            joining.call_off("the joiner could not join");
            return Err(error);
        }
        let PairOffer { device_name: name, members, .. } = joining.offer().clone();
        let short_code = joining.short_code().to_owned();
        if !joining.joined().await {
            tracing::info!("the other device has not confirmed yet that this one is a member");
        }
        let inviter = ticket.inviter;
        self.events.tell(LogEvent::DevicePaired {
            device: inviter,
            name: name.clone(),
            short_code: Some(short_code.clone()),
        });
        self.compare.paired(pairing).await;
        Ok(PairReply { node_id: inviter, name, short_code, members: members as usize })
    }

    /// Whether this device may leave its group, `own`, for the inviter's.
    fn may_join(&self, own: &GroupState, inviter: NodeId) -> Result<(), RequestError> {
        let (me, members) = (self.net.node_id(), &own.members.members);
        let others = members.iter().filter(|member| member.node_id != me).count();
        let is_removed = own.members.removed.contains(&me);
        if others > 0 && !is_removed && !members.iter().any(|member| member.node_id == inviter) {
            let others = counted(others as u64, "other device", "other devices");
            return Err(RequestError::Refused(format!(
                "this device is already in a group with {others}; a device is in one \
                 group at a time: make the ticket on a device of this group and pair the new one, or \
                 leave the group here first with `can-sync leave`"
            )));
        }
        Ok(())
    }

    /// Joins the group durably.
    async fn join(
        &self,
        joining: &Joining,
        accept: PairAccept,
        ticket: &Ticket,
    ) -> Result<(), RequestError> {
        let group_id = joining.offer().group_id;
        let intro = verified(group_id, accept.intro).await?;
        let joined =
            self.journal.run(move |journal, now_ms| journal.join(group_id, &intro, now_ms));
        joined.await.map_err(|error| journal_error("joining the group", &error))?;
        // Written before the inviter learns of the join: if that message is lost, this device has
        // to find the inviter.
        note_addresses(&self.journal, ticket.inviter, ticket.addresses.clone()).await;
        Ok(())
    }
}

/// Shows a pairing to people, and collects their answer.
pub(crate) struct Compare<E> {
    /// The pairing's number, used for no other.
    pub(crate) id: u64,
    pub(crate) events: mpsc::Sender<E>,
}

impl<E: From<PairingEvent>> Compare<E> {
    /// After the end of the agent's loop nobody listens.
    async fn report(&self, event: PairingEvent) {
        let _ = self.events.send(event.into()).await;
    }

    /// Shows the digits, and waits for the answer whether the other device shows the same. No
    /// answer in time counts as no.
    async fn agree(&self, pairing: PairingStatus) -> bool {
        let (decided, decision) = oneshot::channel();
        self.report(PairingEvent::Compare { id: self.id, pairing, decided }).await;
        matches!(timeout(pairing::COMPARE_DEADLINE, decision).await, Ok(Ok(true)))
    }

    /// Shows that the devices are paired.
    async fn paired(&self, pairing: PairingStatus) {
        let paired = Some(PairingStatus { state: PairingState::Paired, ..pairing });
        self.report(PairingEvent::Ended { id: self.id, paired }).await;
    }

    /// Stops showing the digits, if they are shown.
    async fn failed(&self) {
        self.report(PairingEvent::Ended { id: self.id, paired: None }).await;
    }
}

/// Records the answer whether the device that is pairing with this one shows the same digits.
pub(crate) fn confirm(
    comparing: &mut Comparing,
    short_code: &str,
    same: bool,
) -> Result<PairingStatus, RequestError> {
    comparing.decide(short_code, same).ok_or_else(|| {
        RequestError::Unknown(
            "no pairing waits for these digits. If the other device shows them, somebody may stand \
             between the two: do not confirm, and pair anew where you can see both devices"
                .into(),
        )
    })
}

fn request_error(error: JoinError) -> RequestError {
    let text = error.to_string();
    match error {
        JoinError::OwnTicket | JoinError::Expired { .. } => RequestError::Invalid(text),
        JoinError::Refused
        | JoinError::Declined(_)
        | JoinError::Removed
        | JoinError::HashAlgorithm { .. }
        | JoinError::Clock { .. } => RequestError::Refused(text),
        JoinError::Unreachable { .. } | JoinError::Lost(_) => RequestError::Temporary(text),
        JoinError::Malformed(_) => RequestError::Internal(text),
    }
}

/// Logs that a device without a valid ticket tried to pair.
pub(crate) fn log_try(knocks: &mut Knocks, now_ms: u64, joiner: NodeId, source: &str, why: &str) {
    if let Some(tries) = knocks.note(now_ms, host_of(source)) {
        let peer = joiner.short();
        tracing::warn!(%peer, source, tries, why, "a device without a valid ticket tried to pair");
    }
}

/// The host of an address. Its port differs at every attempt.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// The parts of the agent that the inviter's side of a pairing needs.
pub(crate) struct Host<E> {
    pub(crate) compare: Compare<E>,
    pub(crate) journal: JournalHandle,
    pub(crate) events: EventLog,
    pub(crate) me: NodeId,
    pub(crate) algorithm: HashAlgorithm,
}

/// Why a joiner was not admitted, for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPaired {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("its store uses another hash algorithm")]
    HashAlgorithm,
    #[error("{0}")]
    Journal(#[from] AskError),
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("it was removed while it joined")]
    Removed,
    #[error("{NOT_CONFIRMED}")]
    NotConfirmed,
}

impl NotPaired {
    /// Whether any stranger can cause this error, as often as it likes.
    pub(crate) fn is_strangers(&self) -> bool {
        match self {
            Self::Host(HostError::Silent | HostError::Malformed(_))
            | Self::Token(TokenError::NoToken | TokenError::WrongProof | TokenError::Expired) => {
                true
            }
            Self::Host(
                HostError::OtherNonce | HostError::CalledOff(_) | HostError::Unconfirmed(_),
            )
            | Self::Token(_)
            | Self::HashAlgorithm
            | Self::Journal(_)
            | Self::Request(_)
            | Self::Removed
            | Self::NotConfirmed => false,
        }
    }

    /// What a joiner with a valid proof learns of the error.
    fn answer(&self) -> (CloseCode, String) {
        match self {
            Self::Token(TokenError::NoToken | TokenError::WrongProof | TokenError::Expired) => {
                (CloseCode::NotMember, String::new())
            }
            Self::Token(TokenError::JoinerRemoved) | Self::Removed => {
                (CloseCode::Removed, String::new())
            }
            Self::Token(error) => (CloseCode::NotMember, error.to_string()),
            Self::HashAlgorithm => (CloseCode::HashAlgorithm, String::new()),
            Self::NotConfirmed => (CloseCode::NotMember, NOT_CONFIRMED.to_owned()),
            Self::Journal(AskError::Journal(error)) => match **error {
                JournalError::Removed => (CloseCode::NotMember, String::new()),
                JournalError::UsedUp { .. } => (CloseCode::NotMember, error.to_string()),
                JournalError::DiskFull => (CloseCode::Full, String::new()),
                _ => (CloseCode::Internal, String::new()),
            },
            Self::Host(_) | Self::Journal(AskError::Closed) | Self::Request(_) => {
                (CloseCode::Internal, String::new())
            }
        }
    }
}

impl<E: From<PairingEvent>> Host<E> {
    /// Pairs with a joiner that connected.
    pub(crate) async fn run(&self, connection: Connection) -> Result<(), NotPaired> {
        let result = self.pair(connection).await;
        if result.is_err() {
            self.compare.failed().await;
        }
        result
    }

    async fn pair(&self, connection: Connection) -> Result<(), NotPaired> {
        let mut hosting = pairing::receive(connection).await?;
        let admitted = match self.prepare(&mut hosting).await {
            Ok(admitted) => admitted,
            // The connection is closed already.
            Err(error @ NotPaired::Host(_)) => return Err(error),
            Err(error) => {
                let (code, words) = error.answer();
                hosting.refuse(code, &words);
                return Err(error);
            }
        };
        let (short_code, Admitted { group, intro, add }) = admitted;
        hosting.accept(&PairAccept { intro }).await?;
        let pairing = self.pairing(hosting.request(), &short_code);
        let PairRequest { joiner, device_name: name, addresses, .. } = hosting.request().clone();
        let admit = self.journal.run(move |journal, now_ms| {
            let add = verify(&group, add)
                .map_err(|error| JournalError::Damaged(format!("an op just signed: {error}")))?;
            journal.admit(&joiner, &add, now_ms)
        });
        match admit.await {
            Ok(true) => {}
            Ok(false) => {
                hosting.refuse(CloseCode::Removed, "");
                return Err(NotPaired::Removed);
            }
            Err(error) => {
                hosting.refuse(CloseCode::Internal, "");
                return Err(error.into());
            }
        }
        tracing::warn!(peer = %joiner.short(), device = name, code = short_code, "a device joined the group");
        let short_code = Some(short_code);
        self.events.tell(LogEvent::DevicePaired { device: joiner, name, short_code });
        note_addresses(&self.journal, joiner, addresses).await;
        self.compare.paired(pairing).await;
        hosting.done();
        Ok(())
    }

    fn pairing(&self, request: &PairRequest, short_code: &str) -> PairingStatus {
        PairingStatus {
            node_id: request.joiner,
            name: shown_name(&request.device_name, &request.joiner),
            short_code: short_code.to_owned(),
            state: PairingState::Compare,
        }
    }

    /// Does everything up to, but not including, the sending of the op that adds the joiner.
    /// Returns the digits, and the ops that make the joiner a member.
    async fn prepare(&self, hosting: &mut Hosting) -> Result<(String, Admitted), NotPaired> {
        let request = hosting.request().clone();
        let joiner = request.joiner;
        let roster = self.journal.roster();
        let Some(must_verify) = roster.fits(&self.me, &joiner, &request.proof, wall_ms()) else {
            return Err(TokenError::WrongProof.into());
        };
        if request.hash_algorithm != self.algorithm {
            return Err(NotPaired::HashAlgorithm);
        }
        let own = group_state(&self.journal, self.me).await?;
        let is_new = roster.standing(&joiner) != Standing::Member;
        let members = own.members.members.len() + usize::from(is_new);
        let offer = PairOffer {
            group_id: own.group,
            nonce: rand::random(),
            members: u32::try_from(members).unwrap_or(u32::MAX),
            device_name: own.name,
            now_ms: wall_ms(),
            verify: request.verify || must_verify,
        };
        let short_code = hosting.offer(self.me, &offer).await?;
        if offer.verify {
            let pairing = self.pairing(&request, &short_code);
            let here = async {
                let agree = self.compare.agree(pairing).await;
                agree.then_some(()).ok_or(NotPaired::NotConfirmed)
            };
            let there = async { hosting.confirmed(true).await.map_err(NotPaired::from) };
            tokio::try_join!(here, there)?;
        } else {
            hosting.confirmed(false).await?;
        }
        let redeem = self.journal.run(move |journal, now_ms| {
            journal.redeem(&joiner, &request.proof, &request.device_name, now_ms)
        });
        Ok((short_code, redeem.await??))
    }
}
