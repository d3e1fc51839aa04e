//! Calls the agent's API from the page: requests within the process, and their typed answers.

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::Service as _;

use crate::http::problem::{Problem, ProblemBody, problem};
use crate::http::target::path_and_query;

/// The longest answer that is read into memory: a page of assets with the longest descriptions.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The agent's routes.
#[derive(Clone)]
pub(super) struct Agent(Router);

impl Agent {
    pub(super) fn new(routes: Router) -> Self {
        Self(routes)
    }

    /// `GET`, answered in JSON.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Problem> {
        self.ask(Method::GET, path, query, None::<&()>).await
    }

    /// `POST` of JSON, answered in JSON.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::POST, path, &[], Some(body)).await
    }

    /// `PATCH` of JSON, answered in JSON.
    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::PATCH, path, &[], Some(body)).await
    }

    /// `DELETE`, answered in JSON.
    pub(super) async fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Problem> {
        self.ask(Method::DELETE, path, query, None::<&()>).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let answer = self.answer(method, path, query, body).await?;
        serde_json::from_slice(&answer).map_err(failed)
    }

    async fn answer(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, Problem> {
        let mut request = Request::builder().method(method).uri(path_and_query(path, query));
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(serde_json::to_vec(body).map_err(failed)?)
            }
            None => Body::empty(),
        };
        let response = self.pass(request.body(body).map_err(too_long)?).await;
        let status = response.status();
        let answer = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.map_err(failed)?;
        if status.is_success() {
            return Ok(answer);
        }
        let said = serde_json::from_slice(&answer).map(|said: ProblemBody| said.detail);
        Err(problem(status, said.unwrap_or_else(|_| format!("the agent answered {status}"))))
    }

    /// `POST` of JSON, answered with events; the data of each. Ends with the answer.
    pub(super) async fn events<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Vec<T>, Problem> {
        let answer = self.answer(Method::POST, path, &[], Some(body)).await?;
        let text = std::str::from_utf8(&answer).map_err(failed)?;
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        data.map(|data| serde_json::from_str(data).map_err(failed)).collect()
    }

    /// Passes on a request with its body, for contents and uploads.
    pub(super) async fn pass(&self, request: Request) -> Response {
        // A router is always ready, and its error cannot happen.
        self.0.clone().call(request).await.unwrap_or_else(|never| match never {})
    }
}

fn failed(error: impl std::fmt::Display) -> Problem {
    problem(StatusCode::INTERNAL_SERVER_ERROR, format!("reading the agent's answer: {error}"))
}

fn too_long(error: impl std::fmt::Display) -> Problem {
    problem(StatusCode::BAD_REQUEST, format!("what was given cannot be a request: {error}"))
}
