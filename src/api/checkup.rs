//! What a running agent knows for `doctor`: its network, and its clock against those of its peers.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;

use super::Api;
use super::answers::Checkup;
use crate::core::doctor::{self, Check};
use crate::core::units::counted;
use crate::http::problem::Problem;
use crate::replica::status::{PeerState, Status};

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/checkup", get(checkup))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(checkup))]
pub(super) struct Described;

/// Checks the network, and this clock against those of the connected devices
///
/// Takes some seconds. Nothing that is measured leaves the machine.
#[utoipa::path(
    get,
    path = "/v1/checkup",
    operation_id = "checkUp",
    tag = "agent",
    responses((status = 200, description = "Done.", body = Checkup))
)]
async fn checkup(State(api): State<Api>) -> Result<Json<Checkup>, Problem> {
    let mut checks = doctor::network(&api.handle.measure().await?);
    checks.extend(clocks(&api.handle.status()));
    Ok(Json(Checkup { checks }))
}

/// This clock against those of the connected devices, which tell when theirs differ by too much.
fn clocks(status: &Status) -> Vec<Check> {
    let is_connected = |state| matches!(state, PeerState::Syncing | PeerState::Idle);
    let connected = status.peers.iter().filter(|peer| is_connected(peer.state)).count();
    if connected == 0 {
        return vec![Check::skipped("clock-peers", "no other device is connected")];
    }
    let named = |node_id| status.peers.iter().find(|peer| peer.node_id == node_id);
    let off: Vec<Check> = status
        .journal
        .peers
        .iter()
        .filter_map(|journal| {
            let whose = named(journal.node_id).map_or("another device", |peer| &peer.name);
            // The skew is that of the peer's clock.
            Some(doctor::clock("clock-peers", &format!("that of {whose}"), -journal.skew_ms?))
        })
        .collect();
    match off.is_empty() {
        true => vec![Check::ok(
            "clock-peers",
            format!("it agrees with {}", counted(connected as u64, "device", "devices")),
        )],
        false => off,
    }
}
