//! The guard of the page: decides which requests of a browser are allowed, before anything else is
//! read.
//!
//! B1  The request names this server by a literal loopback name, or on the network by an address (DNS
//!     rebinding uses a name).
//! B2  What changes something comes from a page of this server: its `Origin` is this server's, port
//!     included, and a browser that says where a request comes from says `same-origin`. Pages of
//!     other sites and of other ports may link here, and nothing else.
//! B3  Everything but the sign-in and the style needs a session. Its connection is the owner's from
//!     then on; others stay strangers' (see [`super::places`]).
//! B4  No answer can be framed, sniffed, kept by a cache or read by another origin, unless it says
//!     so itself; no script or style runs but this server's own files.
//!
//! A cookie goes to every port of its host. Another user's server on this machine sees it when this
//! user opens that server under the same name; `can-sync open --revoke` ends the session.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;

use super::guard::is_our_host;
use super::places::Place;
use super::problem::{Problem, problem};
use super::sessions::Sessions;
use crate::clock::wall_ms;

/// What a page may load and do.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

/// The headers of every answer that does not set them itself.
const HARDENED: [(HeaderName, &str); 8] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // With `no-referrer` browsers would send `Origin: null` with forms.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
];

/// How the page says what the guard refused.
pub type Refused = fn(Problem) -> Response;

/// Where the page is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// On loopback, on this port.
    Loopback(u16),
    /// To the network with TLS, on this port.
    Network(u16),
}

/// The guard of one server's page.
#[derive(Clone)]
pub struct BrowserGuard {
    sessions: Sessions,
    door: Door,
    /// The paths that need no session.
    open_paths: &'static [&'static str],
    refused: Refused,
}

impl BrowserGuard {
    /// Allows requests with a session, and to `open_paths` without one.
    pub fn new(
        sessions: Sessions,
        door: Door,
        open_paths: &'static [&'static str],
        refused: Refused,
    ) -> Self {
        Self { sessions, door, open_paths, refused }
    }

    /// The router behind this guard; the handlers find the session in the request's extensions.
    pub fn layer(self, router: Router) -> Router {
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let guard = self.clone();
            async move {
                let mut response = match guard.admit(request) {
                    Ok(request) => next.run(request).await,
                    Err(problem) => (guard.refused)(problem),
                };
                harden(response.headers_mut());
                response
            }
        }))
    }

    /// Lets a request pass, with its session.
    fn admit(&self, mut request: Request) -> Result<Request, Problem> {
        let place = request.extensions_mut().remove::<Arc<Place>>();
        if let Some(detail) = self.refuse(&request) {
            return Err(problem(StatusCode::FORBIDDEN, detail));
        }
        match self.sessions.find(request.headers(), wall_ms()) {
            Some(session) => {
                if !place.is_none_or(|place| place.let_in()) {
                    return Err(problem(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "too many requests are under way already: try again",
                    ));
                }
                request.extensions_mut().insert(session);
            }
            None if self.open_paths.contains(&request.uri().path()) => {}
            None => return Err(problem(StatusCode::UNAUTHORIZED, "nobody is signed in")),
        }
        Ok(request)
    }

    /// Why the request is refused, whoever sent it; `None` if it is not.
    fn refuse(&self, request: &Request) -> Option<&'static str> {
        let (uri, headers) = (request.uri(), request.headers());
        if uri.scheme().is_some() || uri.authority().is_some() {
            return Some("the request line must hold a path, not a URL");
        }
        match self.door {
            Door::Loopback(port) if !is_our_host(headers, port) => {
                return Some(
                    "open the page under 127.0.0.1, [::1] or localhost, and this agent's port",
                );
            }
            Door::Network(port) if !is_address(headers, port) => {
                return Some("open the page under an address of this machine, not under a name");
            }
            Door::Loopback(_) | Door::Network(_) => {}
        }
        let scheme = match self.door {
            Door::Loopback(_) => b"http://".as_slice(),
            Door::Network(_) => b"https://",
        };
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let origin = one(headers, &header::ORIGIN);
        let is_own_origin = origin.as_ref().is_ok_and(|origin| {
            let origin = origin.and_then(|origin| origin.strip_prefix(scheme));
            origin.is_some() && origin == headers.get(header::HOST).map(HeaderValue::as_bytes)
        });
        let is_without_origin = origin == Ok(None);
        if !is_own_origin && (!is_read || !is_without_origin) {
            return Some("the request comes from another page");
        }
        let site = one(headers, &HeaderName::from_static("sec-fetch-site"));
        let is_ours = match site {
            Ok(Some(b"same-origin")) | Ok(None) => true,
            // Typed, or opened from another program.
            Ok(Some(b"none")) => is_read,
            _ => is_read && is_visit(headers),
        };
        (!is_ours).then_some("the request comes from another page")
    }
}

/// Whether the request names the server by an IP address and its port: a page that is led here by
/// DNS rebinding has a name.
fn is_address(headers: &HeaderMap, port: u16) -> bool {
    let host = one(headers, &header::HOST).ok().flatten();
    let host = host.and_then(|host| std::str::from_utf8(host).ok());
    let address = host.and_then(|host| host.parse::<SocketAddr>().ok());
    address.is_some_and(|address| address.port() == port)
}

/// Whether a person follows a link, as opposed to a page that loads something.
fn is_visit(headers: &HeaderMap) -> bool {
    let is = |name, value: &[u8]| one(headers, &HeaderName::from_static(name)) == Ok(Some(value));
    is("sec-fetch-mode", b"navigate") && is("sec-fetch-dest", b"document")
}

/// The value of a header that stands at most once; an error when there are several.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, ()> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let value = values.next();
    if values.next().is_some() { Err(()) } else { Ok(value) }
}

fn harden(headers: &mut HeaderMap) {
    for (name, value) in HARDENED {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse;

    use super::*;

    const HOST: (&str, &str) = ("host", "127.0.0.1:4242");
    const ORIGIN: (&str, &str) = ("origin", "http://127.0.0.1:4242");
    const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");

    /// The status of the refusal; 401 when only the session is missing.
    fn judge(method: Method, uri: &str, headers: &[(&str, &str)]) -> u16 {
        judge_at(Door::Loopback(4242), method, uri, headers)
    }

    fn judge_at(door: Door, method: Method, uri: &str, headers: &[(&str, &str)]) -> u16 {
        let guard =
            BrowserGuard::new(Sessions::new(4242), door, &["/open"], IntoResponse::into_response);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match guard.admit(request.body(Body::empty()).unwrap()) {
            Ok(_) => 200,
            Err(problem) => problem.status.as_u16(),
        }
    }

    #[test]
    fn another_host_reaches_nothing() {
        for host in ["evil.com", "evil.com:4242", "127.0.0.1:4243", "127.0.0.1.evil.com:4242", ""] {
            assert_eq!(judge(Method::GET, "/open", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(judge(Method::GET, "/open", &[]), 403);
        assert_eq!(judge(Method::GET, "/open", &[HOST, HOST]), 403);
        assert_eq!(judge(Method::GET, "http://127.0.0.1:4242/open", &[HOST]), 403);
        assert_eq!(judge(Method::GET, "/open", &[HOST]), 200);
        assert_eq!(judge(Method::GET, "/open", &[("host", "localhost:4242")]), 200);
    }

    #[test]
    fn the_network_reaches_the_page_under_an_address_and_from_its_own_origin_alone() {
        let judge = |headers: &[(&str, &str)]| {
            judge_at(Door::Network(4242), Method::POST, "/open", headers)
        };
        for (host, origin, status) in [
            ("192.168.1.5:4242", "https://192.168.1.5:4242", 200),
            ("[fe80::1]:4242", "https://[fe80::1]:4242", 200),
            ("192.168.1.5:4242", "http://192.168.1.5:4242", 403),
            ("192.168.1.5:4242", "https://192.168.1.6:4242", 403),
            ("192.168.1.5:4243", "https://192.168.1.5:4243", 403),
            ("192.168.1.5", "https://192.168.1.5", 403),
            ("evil.example:4242", "https://evil.example:4242", 403),
            ("localhost:4242", "https://localhost:4242", 403),
        ] {
            assert_eq!(judge(&[("host", host), ("origin", origin)]), status, "{host} {origin}");
        }
    }

    #[test]
    fn only_a_page_of_this_server_changes_something() {
        assert_eq!(judge(Method::POST, "/x", &[HOST, ORIGIN, SAME]), 401);
        assert_eq!(judge(Method::POST, "/x", &[HOST, ORIGIN]), 401, "an old browser");
        assert_eq!(judge(Method::POST, "/x", &[HOST]), 403, "no origin");
        for origin in [
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:4243",
            "https://127.0.0.1:4242",
            "http://localhost:4242",
            "http://evil.com",
        ] {
            for method in [Method::POST, Method::GET, Method::PUT, Method::DELETE] {
                assert_eq!(judge(method, "/x", &[HOST, ("origin", origin), SAME]), 403, "{origin}");
            }
        }
        assert_eq!(judge(Method::POST, "/x", &[HOST, ORIGIN, ORIGIN, SAME]), 403);
        for site in ["cross-site", "same-site", "none", "x"] {
            let headers = [HOST, ORIGIN, ("sec-fetch-site", site)];
            assert_eq!(judge(Method::POST, "/x", &headers), 403, "{site}");
        }
    }

    #[test]
    fn other_pages_may_link_here_and_load_nothing() {
        let visit = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        for site in ["cross-site", "same-site"] {
            let site = ("sec-fetch-site", site);
            assert_eq!(judge(Method::GET, "/x", &[HOST, site, visit[0], visit[1]]), 401);
            assert_eq!(judge(Method::GET, "/x", &[HOST, site]), 403);
            let frame = ("sec-fetch-dest", "iframe");
            assert_eq!(judge(Method::GET, "/x", &[HOST, site, visit[0], frame]), 403);
            let picture = [("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
            assert_eq!(judge(Method::GET, "/x", &[HOST, site, picture[0], picture[1]]), 403);
        }
        assert_eq!(judge(Method::GET, "/x", &[HOST, ("sec-fetch-site", "none")]), 401);
    }
}
