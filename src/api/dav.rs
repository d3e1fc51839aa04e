//! WebDAV's password: a program of this user makes one, or takes it away.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::{OpenApi, ToSchema};

use super::request;
use super::requests::NoArguments;
use crate::http::basic::{Password, USER};
use crate::http::problem::{Problem, problem};
use crate::state::home::Home;

/// How WebDAV is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DavView {
    /// Whether WebDAV is on: it is when there is a password.
    pub is_on: bool,
    /// The WebDAV server's URL on this machine.
    pub url: String,
    /// The name that clients give beside the password.
    pub user: String,
    /// The address that `dav_listen` opened to the network, with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub listens: Option<SocketAddr>,
    /// The SHA-256 fingerprint of the certificate there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub fingerprint: Option<String>,
}

/// A new password. Not `Debug`: it is a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DavPassword {
    /// The password. It is not kept and cannot be shown again.
    pub password: String,
    /// The addresses at which the password is valid.
    #[serde(flatten)]
    pub view: DavView,
}

/// The parts of the agent that these routes need.
#[derive(Clone)]
pub struct DavDoor {
    /// The password that is valid now.
    pub password: Password,
    /// Where its hash is kept.
    pub home: Home,
    /// The URL on this machine.
    pub url: String,
    /// What listens on the network, with its fingerprint.
    pub listens: Option<(SocketAddr, String)>,
}

/// The routes.
pub fn router(door: DavDoor) -> Router {
    Router::new()
        .route("/v1/dav", get(show).delete(turn_off))
        .route("/v1/dav/password", post(make))
        .with_state(door)
}

/// The description of these routes in the API's OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(show, turn_off, make))]
pub(super) struct Described;

impl DavDoor {
    fn view(&self) -> DavView {
        DavView {
            is_on: self.password.is_set(),
            url: self.url.clone(),
            user: USER.to_owned(),
            listens: self.listens.as_ref().map(|(address, _)| *address),
            fingerprint: self.listens.as_ref().map(|(_, fingerprint)| fingerprint.clone()),
        }
    }

    /// Keeps the hash of a password, or removes it; then it is in force.
    async fn keep(&self, hash: Option<String>) -> Result<(), Problem> {
        let (home, kept) = (self.home.clone(), hash.clone());
        let written = spawn_blocking(move || home.write_dav_password(kept.as_deref())).await;
        let failed = |error: anyhow::Error| {
            problem(StatusCode::INTERNAL_SERVER_ERROR, format!("keeping the password: {error:#}"))
        };
        written.map_err(|error| failed(error.into()))?.map_err(failed)?;
        self.password.set(hash.as_deref());
        Ok(())
    }
}

/// Whether WebDAV is on, and where
#[utoipa::path(
    get,
    path = "/v1/dav",
    operation_id = "dav",
    tag = "agent",
    responses((status = 200, description = "Done.", body = DavView))
)]
async fn show(State(door): State<DavDoor>) -> Json<DavView> {
    Json(door.view())
}

/// Turns WebDAV on with a new password, which replaces an earlier one
#[utoipa::path(
    post,
    path = "/v1/dav/password",
    operation_id = "makeDavPassword",
    tag = "agent",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = DavPassword))
)]
async fn make(
    State(door): State<DavDoor>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DavPassword>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    let password = Password::random();
    door.keep(Some(Password::hash_of(&password))).await?;
    Ok(Json(DavPassword { password, view: door.view() }))
}

/// Turns WebDAV off, and makes its password worthless
#[utoipa::path(
    delete,
    path = "/v1/dav",
    operation_id = "turnOffDav",
    tag = "agent",
    responses((status = 200, description = "Done.", body = DavView))
)]
async fn turn_off(State(door): State<DavDoor>) -> Result<Json<DavView>, Problem> {
    door.keep(None).await?;
    Ok(Json(door.view()))
}
