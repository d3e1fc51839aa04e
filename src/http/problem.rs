//! Errors over HTTP: RFC 9457 problem documents, and the status of each store error.
//!
//! Every error answer of this process has one shape, also those that the router makes by itself (no
//! such path, no such method): see [`uniform`].

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::StoreError;

/// The media type of an error answer.
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// An error answer, which says in a sentence what went wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// The text for people; holds no secret.
    pub detail: String,
}

/// What an error answer says (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// `about:blank`: the status says it all.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name of the HTTP status.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// For people: what was seen, what was expected, what to do.
    pub detail: String,
}

/// Makes a problem. Nothing else does.
pub fn problem(status: StatusCode, detail: impl Into<String>) -> Problem {
    Problem { status, detail: detail.into() }
}

/// The request makes no sense.
pub(crate) fn bad_request(detail: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, detail)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            StoreError::Mismatch { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            StoreError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            StoreError::NotFound(_) => StatusCode::NOT_FOUND,
            StoreError::Damaged(_) => StatusCode::GONE,
            StoreError::Conflict(_) => StatusCode::CONFLICT,
            StoreError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            StoreError::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
            // The foreign store behind us failed, not the caller.
            StoreError::Unauthorized(_) | StoreError::Contract(_) => StatusCode::BAD_GATEWAY,
        };
        problem(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            kind: "about:blank".into(),
            title: self.status.canonical_reason().unwrap_or("Error").into(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        // Texts and a number: this cannot fail.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Gives the router's bare errors (404, 405, a malformed query) the common shape; other answers
/// pass unchanged.
pub fn uniform(response: Response) -> Response {
    let status = response.status();
    let is_bare = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !(status.is_client_error() || status.is_server_error()) || !is_bare {
        return response;
    }
    let detail = match status {
        StatusCode::NOT_FOUND => "there is nothing under this path",
        StatusCode::METHOD_NOT_ALLOWED => "this path does not take this method",
        _ => "the request was refused",
    };
    let (parts, _) = response.into_parts();
    let mut answer = problem(status, detail).into_response();
    for (name, value) in &parts.headers {
        if !matches!(*name, header::CONTENT_TYPE | header::CONTENT_LENGTH) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}
