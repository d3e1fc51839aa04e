//! The routes of contents: shown or downloaded in a sandbox, uploaded by the script, and thumbnails.

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::form::check_token;
use super::layout::PageError;
use super::visit::{Page, Visit};
use crate::core::ids::Hash;
use crate::core::thumbnail::Answer;
use crate::http::extract::Path;
use crate::http::problem::bad_request;
use crate::http::sessions::Session;
use crate::http::target::path_and_query;

/// The policy of answers with a content, which may come from anybody: nothing in it runs, whatever type
/// a browser takes it for.
const SANDBOX: &str = "sandbox; script-src 'none'; object-src 'none'; frame-ancestors 'none'";

/// The families of media types that are shown in place, of those that the API calls harmless.
const SHOWN: [&[u8]; 3] = [b"image/", b"video/", b"audio/"];

/// The query of a request for a content.
const PASSED: [HeaderName; 3] = [header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH];

/// How long a browser may cache a content, whose asset may be found damaged meanwhile; and a thumbnail,
/// which stays right.
const KEEP_CONTENT: &str = "private, max-age=600";
const KEEP_THUMBNAIL: &str = "private, max-age=604800, immutable";

/// The answer when a thumbnail cannot be made, or not now.
const PLACEHOLDER: &str = include_str!("placeholder.svg");

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new()
        .route("/file/{hash}", get(content))
        .route("/thumbnail/{hash}", get(thumbnail))
        .route("/add", post(add))
}

async fn content(
    visit: Visit,
    Path(hash): Path<Hash>,
    RawQuery(query): RawQuery,
    method: Method,
    request: Request,
) -> Result<Response, PageError> {
    let is_saved = query.as_deref() == Some("save");
    let target = path_and_query(&["assets", &hash.to_string()], &[("inline", "true")]);
    let mut inner = Request::builder().method(method).uri(target);
    for name in PASSED {
        if let Some(value) = request.headers().get(&name) {
            inner = inner.header(name, value);
        }
    }
    let inner = inner.body(Body::empty()).map_err(|error| bad_request(error.to_string()))?;
    let mut response = visit.page.agent.pass(inner).await;
    let headers = response.headers_mut();
    let shows = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| SHOWN.iter().any(|family| kind.as_bytes().starts_with(family)));
    if is_saved || !shows {
        let disposition = headers.get(header::CONTENT_DISPOSITION);
        let disposition = disposition.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let rest = disposition.strip_prefix("inline").unwrap_or_default();
        let disposition = format!("attachment{rest}");
        // A part of a valid header is valid too, so this does not fail.
        if let Ok(disposition) = HeaderValue::from_str(&disposition) {
            headers.insert(header::CONTENT_DISPOSITION, disposition);
        }
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(KEEP_CONTENT));
    Ok(response)
}

async fn thumbnail(visit: Visit, Path(hash): Path<Hash>) -> Response {
    let (kind, keep, body) = match visit.page.handle.thumbnail(hash).await {
        Ok(Answer::Made(picture)) => ("image/jpeg", KEEP_THUMBNAIL, Body::from(picture)),
        Ok(Answer::Impossible) => ("image/svg+xml", KEEP_CONTENT, Body::from(PLACEHOLDER)),
        Ok(Answer::NotHeld | Answer::Busy) | Err(_) => {
            ("image/svg+xml", "no-store", Body::from(PLACEHOLDER))
        }
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, keep),
        (header::CONTENT_SECURITY_POLICY, SANDBOX),
    ];
    (headers, body).into_response()
}

/// Stores a file that the script uploads: the body is its content, the query its attributes.
async fn add(
    State(page): State<Page>,
    session: axum::Extension<Session>,
    request: Request,
) -> Result<Response, PageError> {
    check_token(&session, request.headers())?;
    let (mut parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let target = format!("/assets?{query}&application=page");
    let wrong = |error: axum::http::uri::InvalidUri| bad_request(error.to_string());
    parts.uri = target.parse().map_err(wrong)?;
    parts.extensions.clear();
    Ok(page.agent.pass(Request::from_parts(parts, body)).await)
}
