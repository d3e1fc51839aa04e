//! Requests to a foreign store: where they may go, how long they may take, and how large answers
//! may be.
//!
//! The address is a literal loopback one, and its listener belongs to this user or root; redirects
//! are not followed, proxies not used, content encodings not accepted. Every phase has a deadline
//! since the last sign of progress, so that slow work continues and a hang ends.

use std::io::SeekFrom;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt as _, stream};
use parking_lot::Mutex;
use reqwest::header::{self, HeaderName, HeaderValue};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::io::ReaderStream;
use tower::filter::AsyncFilterLayer;

use super::owner::OwnedBy;
use crate::core::foreign_text::visible;
use crate::store::StoreError;
use crate::store::key::{KeyError, StoreKey};

/// How long each phase of a request may take without progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For establishing the connection.
    pub connect: Duration,
    /// From the last byte of the request to the head of the answer.
    pub header: Duration,
    /// Between signs of progress of a body, in either direction, and between lines of an event
    /// stream (which has a comment every 15 s).
    pub body: Duration,
    /// The slowest rate at which a healthy store accepts an upload. The header deadline is extended
    /// by the time that bytes still on the way need at this rate.
    pub slowest_bytes_per_s: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            header: Duration::from_secs(30),
            body: Duration::from_secs(60),
            slowest_bytes_per_s: 10_000,
        }
    }
}

/// A body with fewer bytes than this within [`Deadlines::body`] counts as hanging; otherwise a
/// store could block us for ever with a byte per minute.
const PROGRESS_BYTES: usize = 4 * 1024;

/// The size of the pieces of an upload.
const UPLOAD_PIECE_BYTES: usize = 64 * 1024;

/// The most bytes of an upload that are still in socket buffers when the last byte was written.
const IN_FLIGHT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The slowest rate at which a store that has all bytes verifies and flushes them.
const VERIFY_BYTES_PER_S: u64 = 32 * 1024 * 1024;

/// Idle connections are dropped before common servers drop them (5 s), which avoids a race.
const IDLE_KEPT: Duration = Duration::from_secs(3);

/// How much of an error answer is read.
const PROBLEM_BYTES_MAX: u64 = 16 * 1024;

/// How much of the store's error text is shown.
const DETAIL_CHARS_MAX: usize = 300;

/// A request that can be sent repeatedly.
pub(super) struct Request {
    pub(super) method: Method,
    /// The path from the slash on, with the query.
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: RequestBody,
}

/// The body of a request.
pub(super) enum RequestBody {
    Empty,
    Bytes(Bytes),
    /// A file, an offset in it, and a length.
    File(PathBuf, u64, u64),
}

impl Request {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: RequestBody::Empty }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Result<Self, StoreError> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| StoreError::Contract(format!("{name} cannot hold {value:?}")))?;
        self.headers.push((name, value));
        Ok(self)
    }
}

/// Sends requests to a store.
pub(super) struct Connection {
    client: Client,
    url: String,
    key_file: PathBuf,
    /// The header that carries the key; `None`: `Authorization`, as a bearer key.
    key_header: Option<HeaderName>,
    key: Mutex<StoreKey>,
    pub(super) deadlines: Deadlines,
}

impl Connection {
    pub(super) fn new(
        url: &str,
        key_file: &Path,
        key_header: Option<&str>,
        deadlines: Deadlines,
    ) -> Result<Self, StoreError> {
        let key_header = key_header.map(str::parse).transpose().map_err(|_| {
            StoreError::Unauthorized(format!(
                "store_key_header: expected the name of a header, got {key_header:?}"
            ))
        })?;
        let address = loopback_address(url)?;
        let key = load_key(key_file)?;
        // iroh disables reqwest's own crypto provider; without one no client can be built.
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that a crypto provider is installed already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(deadlines.connect)
            .pool_idle_timeout(IDLE_KEPT)
            .connector_layer(AsyncFilterLayer::new(OwnedBy(address)))
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self {
            client,
            url: format!("http://{address}"),
            key_file: key_file.to_owned(),
            key_header,
            key: Mutex::new(key),
            deadlines,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request and returns the head of the answer, whatever its status except 401. After a
    /// 401 the key file is read again, and a new key is tried once.
    pub(super) async fn send(&self, request: &Request) -> Result<Response, StoreError> {
        let key = self.key();
        let answer = self.send_once(request, &key).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let rotated = load_key(&self.key_file)?;
        if rotated == key {
            return Err(self.refused());
        }
        let answer = self.send_once(request, &rotated).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            return Err(self.refused());
        }
        *self.key.lock() = rotated;
        Ok(answer)
    }

    fn key(&self) -> StoreKey {
        let key = self.key.lock();
        key.clone()
    }

    fn refused(&self) -> StoreError {
        StoreError::Unauthorized(format!(
            "the store at {} does not take the key in {}: put its key there",
            self.url,
            self.key_file.display()
        ))
    }

    async fn send_once(&self, request: &Request, key: &StoreKey) -> Result<Response, StoreError> {
        let mut builder =
            self.client.request(request.method.clone(), format!("{}{}", self.url, request.path));
        builder = match &self.key_header {
            None => builder.bearer_auth(key.expose()),
            Some(name) => {
                // A key is visible ASCII.
                let mut value = HeaderValue::from_str(key.expose())
                    .map_err(|_| StoreError::Unauthorized("the key fits no header".into()))?;
                value.set_sensitive(true);
                builder.header(name, value)
            }
        };
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        let handed_over = Arc::new(AtomicU64::new(0));
        let (body, length) = open_body(&request.body, handed_over.clone()).await?;
        if let Some(body) = body {
            builder = builder.header(header::CONTENT_LENGTH, length).body(body);
        }
        let mut sending = std::pin::pin!(builder.send());
        let answer = loop {
            let before = handed_over.load(Ordering::Relaxed);
            let wait = if before < length {
                self.deadlines.connect.max(self.deadlines.body)
            } else {
                self.deadlines.header + self.settling(length)
            };
            match timeout(wait, &mut sending).await {
                Ok(answer) => break answer,
                Err(_) if handed_over.load(Ordering::Relaxed) > before => {}
                Err(_) => {
                    return Err(StoreError::Unreachable(format!(
                        "no answer from {} to {} {} within {} s",
                        self.url,
                        request.method,
                        request.path,
                        wait.as_secs_f32()
                    )));
                }
            }
        };
        let answer = answer.map_err(|error| failed(&error))?;
        if answer.headers().contains_key(header::CONTENT_ENCODING) {
            return Err(StoreError::Contract(
                "it sent a content encoding, which was not asked for".into(),
            ));
        }
        Ok(answer)
    }

    /// How long a healthy store may take for an upload of `length` bytes after the last byte was
    /// sent.
    fn settling(&self, length: u64) -> Duration {
        let on_the_way =
            length.min(IN_FLIGHT_BYTES_MAX) / self.deadlines.slowest_bytes_per_s.max(1);
        Duration::from_secs(on_the_way + length / VERIFY_BYTES_PER_S)
    }

    /// Reads the answer's whole body, at most `limit_bytes`.
    pub(super) async fn body(
        &self,
        mut answer: Response,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let too_long = || {
            StoreError::Contract(format!(
                "its answer is longer than the {limit_bytes} bytes it may have"
            ))
        };
        if announced_bytes(&answer).is_some_and(|bytes| bytes > limit_bytes) {
            return Err(too_long());
        }
        let mut whole = BytesMut::new();
        loop {
            let deadline = Instant::now() + self.deadlines.body;
            let aim = whole.len() + PROGRESS_BYTES;
            while whole.len() < aim {
                let chunk = timeout_at(deadline, answer.chunk()).await.map_err(|_| {
                    StoreError::Unreachable(format!(
                        "the answer of {} stopped coming after {} bytes",
                        self.url,
                        whole.len()
                    ))
                })?;
                match chunk.map_err(|error| failed(&error))? {
                    None => return Ok(whole.freeze()),
                    Some(chunk) if (whole.len() + chunk.len()) as u64 > limit_bytes => {
                        return Err(too_long());
                    }
                    Some(chunk) => whole.extend_from_slice(&chunk),
                }
            }
        }
    }

    /// Maps an unexpected status to an error. The caller must handle statuses with a special
    /// meaning first.
    pub(super) async fn failure(&self, call: &str, answer: Response) -> StoreError {
        let status = answer.status();
        if status.is_redirection() {
            return StoreError::Contract(format!(
                "it answered {call} with a redirect ({status}), and redirects are not followed"
            ));
        }
        let said = match self.body(answer, PROBLEM_BYTES_MAX).await {
            Ok(body) => detail(&body),
            Err(_) => String::new(),
        };
        let text = format!("{} answered {call} with {status}{said}", self.url);
        match status {
            StatusCode::FORBIDDEN => StoreError::Unauthorized(text),
            StatusCode::PAYLOAD_TOO_LARGE => StoreError::TooLarge(text),
            StatusCode::INSUFFICIENT_STORAGE => StoreError::Full(text),
            StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => StoreError::Unsupported(text),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                StoreError::Unreachable(text)
            }
            _ if status.is_server_error() => StoreError::Unreachable(text),
            _ => StoreError::Contract(text),
        }
    }
}

/// The body's length as announced in the answer's head.
pub(super) fn announced_bytes(answer: &Response) -> Option<u64> {
    let value = answer.headers().get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

fn load_key(path: &Path) -> Result<StoreKey, StoreError> {
    StoreKey::load(path).map_err(|error| {
        let remedy = match error {
            KeyError::Io { .. } => ": --store-key-file must name the file with the store's key",
            _ => "",
        };
        StoreError::Unauthorized(format!("{error}{remedy}"))
    })
}

/// Parses a store's URL. Host names are refused, because they can be redirected.
fn loopback_address(text: &str) -> Result<SocketAddr, StoreError> {
    let refuse = |why: &str| {
        StoreError::Unsupported(format!(
            "the store's address must look like http://127.0.0.1:PORT or http://[::1]:PORT, and \
             {text:?} {why}"
        ))
    };
    let url = Url::parse(text).map_err(|_| refuse("is no URL"))?;
    if url.scheme() != "http" {
        return Err(refuse("does not begin with http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("holds a user name or password"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("has more text after the port"));
    }
    let host = url.host_str().unwrap_or_default();
    let ip: IpAddr = host
        .trim_matches(['[', ']'])
        .parse()
        .map_err(|_| refuse("names a host instead of a loopback address"))?;
    if !ip.is_loopback() {
        return Err(refuse("is not a loopback address"));
    }
    let port = url.port_or_known_default().unwrap_or(80);
    Ok(SocketAddr::new(ip, port))
}

/// The body as a stream that counts the bytes handed over, and its length.
async fn open_body(
    body: &RequestBody,
    handed_over: Arc<AtomicU64>,
) -> Result<(Option<Body>, u64), StoreError> {
    let count = move |piece: &Bytes| {
        handed_over.fetch_add(piece.len() as u64, Ordering::Relaxed);
    };
    match body {
        RequestBody::Empty => Ok((None, 0)),
        RequestBody::Bytes(bytes) => {
            let length = bytes.len() as u64;
            let pieces = stream::unfold(bytes.clone(), async |mut rest: Bytes| {
                let piece = rest.split_to(rest.len().min(UPLOAD_PIECE_BYTES));
                (!piece.is_empty()).then_some((Ok::<_, std::io::Error>(piece), rest))
            });
            Ok((Some(Body::wrap_stream(pieces.inspect_ok(count))), length))
        }
        RequestBody::File(path, offset, length) => {
            let failed =
                |error| StoreError::Disk(format!("cannot read {}: {error}", path.display()));
            let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
            file.seek(SeekFrom::Start(*offset)).await.map_err(failed)?;
            let pieces = ReaderStream::with_capacity(file.take(*length), UPLOAD_PIECE_BYTES);
            Ok((Some(Body::wrap_stream(pieces.inspect_ok(count))), *length))
        }
    }
}

/// The `detail` of a problem document, made safe to print; empty if there is none.
fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        detail: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else {
        return String::new();
    };
    format!(": {}", visible(&document.detail, DETAIL_CHARS_MAX))
}

/// Maps a failed request to an error: one of our own layers, or a network error with its causes on
/// one line.
pub(super) fn failed(error: &reqwest::Error) -> StoreError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(ours) = cause.downcast_ref::<StoreError>() {
            return ours.clone();
        }
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    StoreError::Unreachable(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_literal_loopback_urls_are_taken() {
        for (url, address) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
            ("http://127.1.2.3", "127.1.2.3:80"),
            ("http://[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(loopback_address(url).unwrap().to_string(), address);
        }
        for url in [
            "",
            "127.0.0.1:8080",
            "http://localhost:8080",
            "http://localhost.evil:8080",
            "http://127.0.0.1.evil.com",
            "https://127.0.0.1:8080",
            "ftp://127.0.0.1",
            "http://10.0.0.1:8080",
            "http://0.0.0.0:8080",
            "http://[::]:8080",
            "http://[::ffff:10.0.0.1]:8080",
            "http://user@127.0.0.1:8080",
            "http://127.0.0.1:8080@evil.com/",
            "http://127.0.0.1:8080/base",
            "http://127.0.0.1:8080/?x",
            "http://127.0.0.1:8080/#x",
        ] {
            let error = loopback_address(url).unwrap_err();
            assert!(matches!(error, StoreError::Unsupported(_)), "{url}");
        }
    }

    #[test]
    fn the_stores_words_are_made_safe_to_print() {
        assert_eq!(detail(b"{\"detail\":\"no\\u001b[31m space\\n\"}"), ": no[31m space");
        assert_eq!(detail(b"<html>"), "");
        let long = format!("{{\"detail\":{:?}}}", "x".repeat(5000));
        assert_eq!(detail(long.as_bytes()).len(), 2 + DETAIL_CHARS_MAX);
    }
}
