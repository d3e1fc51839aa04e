//! The page: what the agent shows to people in a browser, on loopback.
//!
//! P1  The page is a client of the agent's API, as the command line is, but in the same process (see
//!     [`agent`]). It shows and does nothing that the API does not offer.
//! P2  HTML is written by `maud`, which escapes every text. Names and tags come from other devices:
//!     they are shown by [`words::name`], which also keeps them from acting on what stands beside.
//! P3  Every view works without the script. The script keeps views current: it replaces the parts marked
//!     `data-live` when [`live`] notifies it of a change.
//! P4  Every change is made by a form with the token of its session, and is answered with a redirect.
//! P5  Contents are served from `/file/`, in a sandbox, and as a download unless a browser shows
//!     them without running anything.
//!
//! [`crate::http::browser`] decides which requests are allowed.

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use self::form::Form;
pub use self::visit::Page;
use self::visit::Visit;
use crate::clock::wall_ms;
use crate::http::browser::{BrowserGuard, Door};
use crate::http::problem::problem;

mod activity;
mod agent;
mod asset;
mod browse;
mod devices;
mod files;
mod folder;
mod folders;
mod form;
mod health;
mod icons;
mod layout;
mod live;
mod names;
mod overview;
mod qr;
mod throughput;
mod visit;
mod words;

/// The paths that need no session: signing in, and the files of the page that asks for it.
const OPEN_PATHS: [&str; 4] = ["/open", layout::STYLE_PATH, layout::SCRIPT_PATH, layout::ICON_PATH];

/// The routes behind their guard. Requests for other paths are left to the caller.
pub fn router(mut page: Page, door: Door) -> Router {
    if let Door::Network(port) = door {
        page.sessions = page.sessions.with_tls(port);
    }
    let sessions = page.sessions.clone();
    let routes = Router::new()
        .route("/open", get(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/live", get(live::stream))
        .merge(layout::router())
        .merge(overview::router())
        .merge(devices::router())
        .merge(browse::router())
        .merge(asset::router())
        .merge(files::router())
        .merge(folders::router())
        .merge(folder::router())
        .merge(health::router())
        .merge(activity::router())
        .with_state(page)
        .layer(middleware::from_fn(layout::errors_as_pages));
    BrowserGuard::new(sessions, door, &OPEN_PATHS, layout::refused).layer(routes)
}

#[derive(Deserialize)]
struct SignIn {
    #[serde(default)]
    code: String,
}

/// Opens a session, and leads on from here: the cookie is `SameSite=Strict`, so a browser that came
/// from another program sends it only with a request that starts on a page of this server.
async fn sign_in(State(page): State<Page>, Query(SignIn { code }): Query<SignIn>) -> Response {
    let Some(cookie) = page.sessions.redeem(&code, wall_ms()) else {
        return layout::refused(problem(
            StatusCode::UNAUTHORIZED,
            "this link was used already, or is too old",
        ));
    };
    let mut response = layout::signed_in().into_response();
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

#[derive(Deserialize)]
struct Nothing {}

async fn sign_out(visit: Visit, Form(Nothing {}): Form<Nothing>) -> Response {
    let cookie = visit.page.sessions.end(&visit.session);
    let mut response = Redirect::to("/").into_response();
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}
