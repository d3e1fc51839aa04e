//! What needs the user's attention: listed, and acknowledged.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::requests::NoArguments;
use super::{Api, request};
use crate::alerts::AckError;
use crate::core::alerts::Alert;
use crate::http::extract::Path;
use crate::http::problem::{Problem, problem};

/// The alerts that stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertsPage {
    /// The alerts, the most pressing first, acknowledged ones last.
    pub alerts: Vec<Alert>,
}

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new().route("/v1/alerts", get(list)).route("/v1/alerts/{alert}/ack", post(ack))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(list, ack))]
pub(super) struct Described;

impl From<AckError> for Problem {
    fn from(error: AckError) -> Self {
        let status = match &error {
            AckError::Unknown(_) => StatusCode::NOT_FOUND,
            AckError::Temporary(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        problem(status, error.to_string())
    }
}

/// What needs the user's attention
///
/// An alert stands until its cause is gone; then it ends by itself.
#[utoipa::path(
    get,
    path = "/v1/alerts",
    operation_id = "listAlerts",
    tag = "agent",
    responses((status = 200, description = "Done.", body = AlertsPage))
)]
async fn list(State(api): State<Api>) -> Json<AlertsPage> {
    Json(AlertsPage { alerts: api.handle.alerts().standing() })
}

/// Acknowledges an alert: it stands on, below the others
#[utoipa::path(
    post,
    path = "/v1/alerts/{alert}/ack",
    operation_id = "ackAlert",
    tag = "agent",
    params(("alert" = String, Path, description = "Its id or the unique start of it.")),
    request_body = NoArguments,
    responses(
        (status = 200, description = "Done.", body = Alert),
        (status = 404),
    )
)]
async fn ack(
    State(api): State<Api>,
    Path(alert): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Alert>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(api.handle.alerts().ack(&alert).await?))
}
