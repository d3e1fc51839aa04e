//! Signing in to the page: a program of this user asks for a link, or ends all sessions.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::request;
use super::requests::NoArguments;
use crate::clock::wall_ms;
use crate::http::problem::Problem;
use crate::http::sessions::Sessions;

/// A link that signs a browser in. Not `Debug`: it is a secret until it is used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PageLink {
    /// The link; good once.
    pub url: String,
    /// When it ends, milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// The same link for another device of the network, where `page_listen` lets it in. One of the two
    /// is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<NetworkLink>,
}

/// A link for another device of the network.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkLink {
    /// The link. Behind its `#`, which no browser sends, stands the fingerprint.
    pub url: String,
    /// The SHA-256 fingerprint of the certificate, to compare with what the browser shows.
    pub fingerprint: String,
}

/// Where the network reaches the page.
#[derive(Debug, Clone)]
pub struct NetworkPage {
    /// The address that listens.
    pub address: SocketAddr,
    /// The SHA-256 fingerprint of the certificate there.
    pub fingerprint: String,
}

impl NetworkPage {
    /// The link with a code.
    fn link(&self, code: &str) -> NetworkLink {
        let ip = match self.address.ip() {
            any if any.is_unspecified() => own_address().unwrap_or(any),
            ip => ip,
        };
        let address = SocketAddr::new(ip, self.address.port());
        let fingerprint = self.fingerprint.clone();
        let url = format!("https://{address}/open?code={code}#{}", fingerprint.replace(':', ""));
        NetworkLink { url, fingerprint }
    }
}

/// The address from which this machine would reach others; nothing is sent.
fn own_address() -> Option<IpAddr> {
    /// An address for documentation: nobody has it.
    const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The sessions that were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndedSessions {
    /// How many.
    pub sessions: usize,
}

#[derive(Clone)]
struct Doors {
    sessions: Sessions,
    /// The page's URL, without a path.
    base: String,
    network: Option<NetworkPage>,
}

/// The routes; `base` is the URL of the page's server on loopback.
pub fn router(sessions: Sessions, base: String, network: Option<NetworkPage>) -> Router {
    Router::new()
        .route("/v1/page/link", post(link))
        .route("/v1/page/revoke", post(revoke))
        .with_state(Doors { sessions, base, network })
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(link, revoke))]
pub(super) struct Described;

/// Makes a link that signs one browser in to the page
#[utoipa::path(
    post,
    path = "/v1/page/link",
    operation_id = "pageLink",
    tag = "agent",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = PageLink))
)]
async fn link(
    State(doors): State<Doors>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PageLink>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    let code = doors.sessions.make_code(wall_ms());
    let url = format!("{}/open?code={}", doors.base, code.text);
    let network = doors.network.map(|page| page.link(&code.text));
    Ok(Json(PageLink { url, expires_ms: code.expires_ms, network }))
}

/// Signs every browser out of the page, and makes links that were not used worthless
#[utoipa::path(
    post,
    path = "/v1/page/revoke",
    operation_id = "revokePage",
    tag = "agent",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = EndedSessions))
)]
async fn revoke(
    State(doors): State<Doors>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EndedSessions>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(EndedSessions { sessions: doors.sessions.revoke_all(wall_ms()) }))
}
