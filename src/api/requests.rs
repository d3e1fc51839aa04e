//! The requests that the agent's routes accept, written by the command line and read by the server.
//! Requests about records: [`super::json`]; about assets: [`crate::http::asset`],
//! [`crate::agent::handle`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request without arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoArguments {}

/// A ticket to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketRequest {
    /// How long it is valid, in milliseconds; ten minutes when left out.
    pub ttl_ms: Option<u64>,
    /// People must compare the digits on both devices before anything is shared; see `pairings` in
    /// the status.
    #[serde(default)]
    pub verify: bool,
    /// How many devices the ticket lets in; one when left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 64)]
    pub uses: Option<u16>,
}

/// A ticket to redeem. Not `Debug`: a ticket is a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedeemRequest {
    /// The ticket.
    pub ticket: String,
    /// People must compare the digits on both devices before anything is shared; see `pairings` in
    /// the status.
    #[serde(default)]
    pub verify: bool,
}

/// The user's answer after comparing the digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// The digits shown here.
    pub short_code: String,
    /// The other device shows the same.
    pub same: bool,
}

/// Another name for this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// The name.
    pub name: String,
}
