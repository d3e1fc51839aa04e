//! The guard of WebDAV: a password of its own, which programs of other makers keep.
//!
//! W1  Nothing is served until the user has made a password. It is random and long, so that it needs
//!     no slow hash and cannot be guessed; only its hash is kept, and compared in constant time.
//! W2  On loopback the request names this server by a literal loopback name (DNS rebinding uses
//!     another one).
//! W3  No page of any site gets through, though the browser may know the password: requests that a
//!     page makes are refused, and no answer can be framed, sniffed or run.
//! W4  A connection is the owner's from its first right password on; others stay strangers' (see
//!     [`super::places`]).

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse as _;
use parking_lot::RwLock;

use super::guard::is_our_host;
use super::places::Place;
use super::problem::{Problem, problem};

/// The name that clients give beside the password.
pub const USER: &str = "can-sync";

/// The random bytes of a password: 125 bits, which nobody can guess.
const PASSWORD_BYTES: usize = 16;

/// The longest header with a password that is looked at.
const CREDENTIALS_BYTES_MAX: usize = 1024;

const HARDENED: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox; frame-ancestors 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The password that is good now, as its hash. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Password(Arc<RwLock<Option<blake3::Hash>>>);

impl Password {
    /// The password with this hash; none: WebDAV is off.
    pub fn of_hash(hash: Option<&str>) -> Self {
        let hash = hash.and_then(|text| blake3::Hash::from_hex(text.trim()).ok());
        Self(Arc::new(RwLock::new(hash)))
    }

    /// A new password, in groups that people can type.
    pub fn random() -> String {
        let bytes = rand::random::<[u8; PASSWORD_BYTES]>();
        let text = data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase();
        let groups: Vec<&str> = (0..5).filter_map(|at| text.get(5 * at..5 * at + 5)).collect();
        groups.join("-")
    }

    /// The hash of a password, as it is kept.
    pub fn hash_of(password: &str) -> String {
        blake3::hash(password.as_bytes()).to_hex().to_string()
    }

    /// Makes the password with this hash the good one, or none.
    pub fn set(&self, hash: Option<&str>) {
        *self.0.write() = hash.and_then(|text| blake3::Hash::from_hex(text).ok());
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.read().is_some()
    }

    fn is(&self, given: &[u8]) -> bool {
        // Equality takes constant time.
        *self.0.read() == Some(blake3::hash(given))
    }
}

/// The guard of one server's WebDAV.
#[derive(Clone)]
pub struct BasicGuard {
    password: Password,
    /// The port of a server on loopback.
    loopback_port: Option<u16>,
}

impl BasicGuard {
    /// For a server on loopback, on a port, or for one that the network reaches.
    pub fn new(password: Password, loopback_port: Option<u16>) -> Self {
        Self { password, loopback_port }
    }

    /// The router behind this guard.
    pub fn layer(self, router: Router) -> Router {
        router.layer(middleware::from_fn(move |mut request: Request, next: Next| {
            let place = request.extensions_mut().remove::<Arc<Place>>();
            let refused = self.refuse(&request).or_else(|| {
                let is_full = place.is_some_and(|place| !place.let_in());
                let detail = "too many requests are under way already: try again";
                is_full.then(|| problem(StatusCode::SERVICE_UNAVAILABLE, detail))
            });
            async move {
                let mut response = match refused {
                    Some(problem) => problem.into_response(),
                    None => next.run(request).await,
                };
                let asks = HeaderValue::from_static("Basic realm=\"can-sync\", charset=\"UTF-8\"");
                if response.status() == StatusCode::UNAUTHORIZED {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, asks);
                    // Connections without the password are closed first when many come: the next
                    // request, with the password, must not be lost with this one.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                for (name, value) in HARDENED {
                    response.headers_mut().insert(name, HeaderValue::from_static(value));
                }
                response
            }
        }))
    }

    /// Why the request is refused; `None` if it is allowed.
    fn refuse(&self, request: &Request) -> Option<Problem> {
        let (uri, headers) = (request.uri(), request.headers());
        let forbidden = |detail: &str| Some(problem(StatusCode::FORBIDDEN, detail));
        if uri.scheme().is_some() || uri.authority().is_some() {
            return forbidden("the request line must hold a path, not a URL");
        }
        if self.loopback_port.is_some_and(|port| !is_our_host(headers, port)) {
            return forbidden("use 127.0.0.1, [::1] or localhost, and this agent's port");
        }
        if headers.contains_key(header::ORIGIN) || !is_no_page(headers) {
            return forbidden("requests from web pages are refused");
        }
        if !self.password.is_set() {
            let detail = "WebDAV is off: `can-sync dav password` turns it on";
            return Some(problem(StatusCode::NOT_FOUND, detail));
        }
        if !self.knows_password(headers) {
            return Some(problem(StatusCode::UNAUTHORIZED, "name and password are needed"));
        }
        None
    }

    fn knows_password(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let value = value.as_bytes();
        let Some((scheme, given)) = value.split_at_checked(6) else { return false };
        if !scheme.eq_ignore_ascii_case(b"Basic ") || given.len() > CREDENTIALS_BYTES_MAX {
            return false;
        }
        let Ok(given) = data_encoding::BASE64.decode(given.trim_ascii()) else { return false };
        let user = [USER.as_bytes(), b":"].concat();
        given.strip_prefix(user.as_slice()).is_some_and(|password| self.password.is(password))
    }
}

/// Whether no page makes the request: it comes from another program, or from a person who typed the
/// address.
fn is_no_page(headers: &HeaderMap) -> bool {
    let site = headers.get_all(HeaderName::from_static("sec-fetch-site"));
    site.iter().all(|site| site == "none")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;

    use super::*;

    const HOST: (&str, &str) = ("host", "127.0.0.1:4242");

    fn judge(password: &Password, port: Option<u16>, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().uri("/dav/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let guard = BasicGuard::new(password.clone(), port);
        let refused = guard.refuse(&request.body(Body::empty()).unwrap());
        refused.map_or(200, |problem| problem.status.as_u16())
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", data_encoding::BASE64.encode(text.as_bytes()))
    }

    #[test]
    fn only_the_password_of_now_opens_and_none_before_there_is_one() {
        let text = Password::random();
        assert_eq!(text.len(), 29, "{text}");
        assert_ne!(text, Password::random());
        let password = Password::default();
        let right = basic(&format!("{USER}:{text}"));
        let judge = |given: &str| judge(&password, Some(4242), &[HOST, ("authorization", given)]);
        assert_eq!(judge(&right), 404, "it is off");
        password.set(Some(&Password::hash_of(&text)));
        assert_eq!(judge(&right), 200);
        assert_eq!(judge(&right.replace("Basic", "basic")), 200);
        for wrong in [
            "",
            "Basic",
            "Basic ",
            "Basic !!!",
            &basic(""),
            &basic(USER),
            &basic(&format!("{USER}:")),
            &basic(&format!("{USER}:{text}x")),
            &basic(&format!("other:{text}")),
            &basic(&text),
            &format!("Bearer {text}"),
            &format!("{right}, {right}"),
        ] {
            assert_eq!(judge(wrong), 401, "{wrong}");
        }
        password.set(Some(&Password::hash_of("another")));
        assert_eq!(judge(&right), 401);
        password.set(None);
        assert_eq!(judge(&right), 404);
    }

    #[test]
    fn pages_of_browsers_and_other_hosts_are_refused_even_with_the_password() {
        let password = Password::of_hash(Some(&Password::hash_of("x")));
        let right = basic("can-sync:x");
        let right = ("authorization", right.as_str());
        assert_eq!(judge(&password, Some(4242), &[HOST, right]), 200);
        assert_eq!(judge(&password, Some(4242), &[HOST, right, ("sec-fetch-site", "none")]), 200);
        for page in [
            ("origin", "http://127.0.0.1:4242"),
            ("origin", "null"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert_eq!(judge(&password, Some(4242), &[HOST, right, page]), 403, "{page:?}");
            assert_eq!(judge(&password, None, &[HOST, right, page]), 403, "{page:?}");
        }
        let evil = ("host", "evil.example");
        assert_eq!(judge(&password, Some(4242), &[evil, right]), 403);
        // From the network it is found under any name; a page that is led here knows no password.
        assert_eq!(judge(&password, None, &[evil, right]), 200);
        assert_eq!(judge(&password, None, &[evil]), 401);
    }
}
