//! What a request says, as types: its path, its query, its JSON body. What cannot be read is refused
//! here, once, with a problem document that says what was expected.

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use super::problem::{Problem, problem};
use super::upload::{check_announced, check_type, collect};

/// The parameters of the path.
pub(crate) struct Path<T>(pub(crate) T);

/// The parameters of the query; an unknown one is refused where `T` denies unknown fields.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = axum::extract::Path::from_request_parts(parts, state).await;
        let axum::extract::Path(value) =
            read.map_err(|refused| problem(refused.status(), refused.body_text()))?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = axum::extract::Query::from_request_parts(parts, state).await;
        let axum::extract::Query(value) =
            read.map_err(|refused| problem(refused.status(), refused.body_text()))?;
        Ok(Self(value))
    }
}

/// A body that is a JSON object.
pub(crate) async fn json_body<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: u64,
) -> Result<T, Problem> {
    let body = json_object(headers, body, limit_bytes).await?;
    serde_json::from_slice(&body).map_err(|error| {
        problem(StatusCode::BAD_REQUEST, format!("the body is not the JSON expected: {error}"))
    })
}

/// Like [`json_body`], but the error for a bad body quotes nothing of it.
pub(crate) async fn secret_json_body<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: u64,
) -> Result<T, Problem> {
    let body = json_object(headers, body, limit_bytes).await?;
    serde_json::from_slice(&body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        problem(StatusCode::BAD_REQUEST, format!("the body is not the JSON expected: {place}"))
    })
}

async fn json_object(headers: &HeaderMap, body: Body, limit_bytes: u64) -> Result<Bytes, Problem> {
    check_type(headers, "application/json")?;
    check_announced(headers, limit_bytes)?;
    let body = collect(body, limit_bytes).await?;
    // serde would also accept an array that lists the object's members in order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(problem(StatusCode::BAD_REQUEST, "the body is not a JSON object"));
    }
    Ok(body)
}
