//! The guard of a loopback server: decides which requests are allowed, before anything else is
//! read.
//!
//! Loopback is no boundary: web pages reach it (by forms, `fetch`, rebound names), and so do other
//! users of the machine. So before routing the guard checks, in this order: the request names the
//! server by a literal loopback name (DNS rebinding uses another one), carries no `Origin` or
//! `Referer` (which only browsers send), and holds the key. No CORS header is ever sent. Modelled
//! on Tailscale's LocalAPI.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;

use super::places::{CONNECTIONS_MAX, Place};
use super::problem::{Problem, problem, uniform};
use crate::store::key::StoreKey;

/// The names by which a request may call the server, with its port or without.
const HOST_NAMES: [&str; 3] = ["127.0.0.1", "[::1]", "localhost"];

/// The one path that takes the key as `?key=`: browsers' EventSource cannot set headers.
const KEY_IN_QUERY_PATH: &str = "/sync/events";

/// The only paths that need no key: they say that the server is alive, and that it can work.
const KEYLESS_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// A router for connections known to be this user's, which need no key. It also gives the router's
/// bare errors a problem document.
pub fn own_user(router: Router) -> Router {
    Router::new().fallback_service(router).layer(middleware::from_fn(
        |mut request: Request, next: Next| async move {
            match request.extensions_mut().remove::<Arc<Place>>() {
                Some(place) if !place.let_in() => all_busy().into_response(),
                _ => uniform(next.run(request).await),
            }
        },
    ))
}

/// What a request must present to be allowed.
#[derive(Debug, Clone)]
pub struct Guard {
    key: Arc<StoreKey>,
    port: u16,
}

impl Guard {
    /// Allows requests that hold `key` and name the server on `port`.
    pub fn new(key: StoreKey, port: u16) -> Self {
        Self { key: Arc::new(key), port }
    }

    /// The router behind this guard. It also gives the router's bare errors a problem document.
    pub fn layer(self, router: Router) -> Router {
        // The inner router is a fallback service, so that it runs, with its routing, only after the
        // check.
        Router::new().fallback_service(router).layer(middleware::from_fn(
            move |mut request: Request, next: Next| {
                let place = request.extensions_mut().remove::<Arc<Place>>();
                let refused = self
                    .refuse(request.method(), request.uri(), request.headers())
                    .or_else(|| self.occupy(&request, place.as_deref()));
                async move {
                    let mut response = match refused {
                        Some(problem) => problem.into_response(),
                        None => uniform(next.run(request).await),
                    };
                    harden(response.headers_mut());
                    response
                }
            },
        ))
    }

    /// Why the request is refused; `None` if it is allowed.
    fn refuse(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Problem> {
        if uri.scheme().is_some() || uri.authority().is_some() {
            return Some(forbidden("the request line must hold a path, not a URL"));
        }
        if !is_our_host(headers, self.port) {
            return Some(forbidden(
                "exactly one Host header is expected, and it must be 127.0.0.1, [::1] or \
                 localhost, with this server's port or none",
            ));
        }
        if headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) {
            return Some(forbidden("requests from web pages are refused"));
        }
        if !KEYLESS_PATHS.contains(&uri.path()) && !self.holds_key(method, uri, headers) {
            // The same text for a missing, a malformed and a wrong key.
            return Some(problem(StatusCode::UNAUTHORIZED, "a valid key is needed"));
        }
        None
    }

    /// Makes the connection the owner's; returns why not. A request without the key changes
    /// nothing: the connection stays a stranger's.
    fn occupy(&self, request: &Request, place: Option<&Place>) -> Option<Problem> {
        let holds_key = self.holds_key(request.method(), request.uri(), request.headers());
        if !holds_key || place.is_none_or(Place::let_in) {
            return None;
        }
        Some(all_busy())
    }

    fn holds_key(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value
                .as_bytes()
                .strip_prefix(b"Bearer ")
                .is_some_and(|given| self.key.matches(given)),
            (None, None) if method == Method::GET && uri.path() == KEY_IN_QUERY_PATH => uri
                .query()
                .unwrap_or_default()
                .split('&')
                .filter_map(|pair| pair.strip_prefix("key="))
                .any(|given| self.key.matches(given.as_bytes())),
            _ => false,
        }
    }
}

/// Whether the request names this server, by one literal loopback name.
pub(super) fn is_our_host(headers: &HeaderMap, port: u16) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let port = format!(":{port}");
    HOST_NAMES.iter().any(|name| {
        let rest = host.as_bytes().strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest == port.as_bytes())
    })
}

fn all_busy() -> Problem {
    let detail = format!("{CONNECTIONS_MAX} requests are under way already: try again");
    problem(StatusCode::SERVICE_UNAVAILABLE, detail)
}

fn forbidden(detail: &str) -> Problem {
    problem(StatusCode::FORBIDDEN, detail)
}

/// Headers for every answer, for a browser that reaches the server nevertheless.
fn harden(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PORT: u16 = 4242;

    fn guard() -> Guard {
        Guard::new(StoreKey::parse("right-key").unwrap(), PORT)
    }

    /// The status of the refusal, or 200.
    fn judge(method: Method, uri: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                name.parse::<header::HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        guard()
            .refuse(&method, &uri.parse().unwrap(), &map)
            .map_or(200, |problem| problem.status.as_u16())
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:4242");
    const KEY: (&str, &str) = ("authorization", "Bearer right-key");

    #[test]
    fn only_literal_loopback_hosts_with_our_port_are_served() {
        for host in
            ["127.0.0.1", "127.0.0.1:4242", "[::1]", "[::1]:4242", "localhost", "localhost:4242"]
        {
            assert_eq!(judge(Method::GET, "/x", &[("host", host), KEY]), 200, "{host}");
        }
        for host in [
            "",
            "evil.com",
            "evil.com:4242",
            "127.0.0.1.evil.com",
            "127.0.0.1.evil.com:4242",
            "localhost.evil",
            "localhost.",
            "LOCALHOST",
            "127.1",
            "127.0.0.2",
            "0.0.0.0",
            "::1",
            "[::1",
            "[::]",
            "127.0.0.1:4243",
            "127.0.0.1:",
            "127.0.0.1:04242",
            "127.0.0.1:4242:4242",
            "user@127.0.0.1:4242",
            "127.0.0.1:4242, evil.com",
            "127.0.0.1 ",
        ] {
            assert_eq!(judge(Method::GET, "/x", &[("host", host), KEY]), 403, "{host}");
        }
        assert_eq!(judge(Method::GET, "/x", &[KEY]), 403);
        assert_eq!(judge(Method::GET, "/x", &[HOST, HOST, KEY]), 403);
        assert_eq!(judge(Method::GET, "/x", &[HOST, ("host", "evil.com"), KEY]), 403);
        for uri in ["http://127.0.0.1:4242/x", "http://evil.com/x", "https://localhost/x"] {
            assert_eq!(judge(Method::GET, uri, &[HOST, KEY]), 403, "{uri}");
        }
        assert_eq!(judge(Method::CONNECT, "evil.com:443", &[HOST, KEY]), 403);
    }

    #[test]
    fn requests_of_web_pages_are_refused_before_the_key_is_looked_at() {
        for value in ["null", "", "http://127.0.0.1:4242", "https://evil.com"] {
            for name in ["origin", "referer"] {
                assert_eq!(judge(Method::GET, "/x", &[HOST, (name, value)]), 403);
                assert_eq!(judge(Method::GET, "/x", &[HOST, (name, value), KEY]), 403);
                assert_eq!(judge(Method::OPTIONS, "/x", &[HOST, (name, value)]), 403);
            }
        }
    }

    #[test]
    fn every_way_not_to_hold_the_key_looks_the_same() {
        let cases: [&[(&str, &str)]; 10] = [
            &[HOST],
            &[HOST, ("authorization", "")],
            &[HOST, ("authorization", "Bearer")],
            &[HOST, ("authorization", "Bearer ")],
            &[HOST, ("authorization", "Bearer right-ke")],
            &[HOST, ("authorization", "Bearer right-key2")],
            &[HOST, ("authorization", "right-key")],
            &[HOST, ("authorization", "Basic right-key")],
            &[HOST, ("cookie", "key=right-key")],
            &[HOST, KEY, KEY],
        ];
        for headers in cases {
            assert_eq!(judge(Method::GET, "/x", headers), 401, "{headers:?}");
        }
    }

    #[test]
    fn the_paths_without_a_key_are_guarded_against_web_pages_all_the_same() {
        assert_eq!(judge(Method::GET, "/healthz", &[HOST]), 200);
        assert_eq!(judge(Method::GET, "/readyz", &[HOST]), 200);
        assert_eq!(judge(Method::GET, "/readyz", &[("host", "evil.com")]), 403);
        assert_eq!(judge(Method::GET, "/metrics", &[HOST]), 401);
        assert_eq!(judge(Method::GET, "/healthz", &[("host", "evil.com")]), 403);
        assert_eq!(judge(Method::GET, "/healthz", &[HOST, ("origin", "null")]), 403);
        assert_eq!(judge(Method::GET, "/healthz/", &[HOST]), 401);
        assert_eq!(judge(Method::GET, "/sync/../healthz", &[HOST]), 401);
    }

    #[test]
    fn the_key_in_the_query_opens_the_event_stream_alone() {
        assert_eq!(judge(Method::GET, "/sync/events?key=right-key", &[HOST]), 200);
        assert_eq!(judge(Method::GET, "/sync/events?a=b&key=right-key", &[HOST]), 200);
        assert_eq!(judge(Method::GET, "/sync/events?key=wrong", &[HOST]), 401);
        assert_eq!(judge(Method::GET, "/sync/events?xkey=right-key", &[HOST]), 401);
        assert_eq!(judge(Method::POST, "/sync/events?key=right-key", &[HOST]), 401);
        assert_eq!(judge(Method::GET, "/sync/info?key=right-key", &[HOST]), 401);
        assert_eq!(judge(Method::GET, "/sync/events/?key=right-key", &[HOST]), 401);
        // A key in the query does not make up for a wrong header.
        let wrong = ("authorization", "Bearer wrong");
        assert_eq!(judge(Method::GET, "/sync/events?key=right-key", &[HOST, wrong]), 401);
    }
}
