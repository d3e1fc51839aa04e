//! Routes about the whole journal: members, statistics, checks. Also maps errors of the journal to
//! statuses.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use utoipa::OpenApi;

use super::answers::{Findings, JournalStats, Member, Members, RebasedOps};
use super::requests::NoArguments;
use super::{Api, request};
use crate::clock::wall_ms;
use crate::core::journal::draft::DraftError;
use crate::http::problem::{Problem, problem};
use crate::replica::journal::AskError;
use crate::state::journal::{JournalError, Rebased};

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/members", get(members))
        .route("/v1/journal/stats", get(stats))
        .route("/v1/journal/fsck", post(fsck))
        .route("/v1/journal/rebase", post(rebase))
}

/// The description of these routes.
#[derive(OpenApi)]
#[openapi(paths(members, stats, fsck, rebase))]
pub(super) struct Described;

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let status = match &error {
            AskError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            AskError::Journal(error) => match **error {
                JournalError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
                JournalError::ClockNotSet | JournalError::Busy => StatusCode::SERVICE_UNAVAILABLE,
                JournalError::NoGroup
                | JournalError::InGroup
                | JournalError::Removed
                | JournalError::BadIntro
                | JournalError::ClockBehind
                | JournalError::UsedUp { .. }
                | JournalError::Unreadable => StatusCode::CONFLICT,
                JournalError::Damaged(_)
                | JournalError::Corrupt(_)
                | JournalError::Newer { .. }
                | JournalError::OtherDevice(_)
                | JournalError::Stopped(_)
                | JournalError::Open(_)
                | JournalError::Database(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        };
        problem(status, error.to_string())
    }
}

impl From<DraftError> for Problem {
    fn from(error: DraftError) -> Self {
        let status = match &error {
            DraftError::OutOfBounds { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            DraftError::Empty(_) | DraftError::Twice(_) => StatusCode::BAD_REQUEST,
            DraftError::Absent => StatusCode::NOT_FOUND,
            DraftError::Alive | DraftError::Changed { .. } => StatusCode::PRECONDITION_FAILED,
            DraftError::NotMember => StatusCode::CONFLICT,
            DraftError::ClockNotSet => StatusCode::SERVICE_UNAVAILABLE,
            DraftError::Quota { .. } => StatusCode::INSUFFICIENT_STORAGE,
        };
        problem(status, error.to_string())
    }
}

/// Lists all devices that are or were members
#[utoipa::path(
    get,
    path = "/v1/members",
    operation_id = "members",
    tag = "agent",
    responses((status = 200, description = "Done.", body = Members), (status = 409))
)]
async fn members(State(api): State<Api>) -> Result<Json<Members>, Problem> {
    let members = api.handle.journal().read(|journal| journal.members()).await?;
    Ok(Json(Members { members: members.into_iter().map(Member::from).collect() }))
}

/// Statistics of the journal
#[utoipa::path(
    get,
    path = "/v1/journal/stats",
    operation_id = "journalStats",
    tag = "journal",
    responses((status = 200, description = "Done.", body = JournalStats), (status = 409))
)]
async fn stats(State(api): State<Api>) -> Result<Json<JournalStats>, Problem> {
    let stats = api.handle.journal().read(|journal| journal.stats()).await?;
    Ok(Json(JournalStats::new(stats, wall_ms())))
}

/// Checks the journal's consistency and all signatures
///
/// Reads the whole journal, which may take minutes.
#[utoipa::path(
    post,
    path = "/v1/journal/fsck",
    operation_id = "journalFsck",
    tag = "journal",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = Findings), (status = 409))
)]
async fn fsck(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Findings>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    let findings = api.handle.journal().fsck().await?;
    Ok(Json(Findings { findings }))
}

/// Writes again what this device wrote while its clock was ahead
#[utoipa::path(
    post,
    path = "/v1/journal/rebase",
    operation_id = "journalRebase",
    tag = "journal",
    request_body = NoArguments,
    responses((status = 200, description = "Done.", body = RebasedOps), (status = 409), (status = 507))
)]
async fn rebase(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RebasedOps>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    let rebased = api.handle.journal().run(|journal, now_ms| journal.rebase(now_ms)).await?;
    Ok(Json(match rebased {
        Rebased::Nothing => RebasedOps { ops: 0, log: None },
        Rebased::Done { ops, log } => RebasedOps { ops: ops as u64, log: Some(log) },
        Rebased::OurClockIsSlow => {
            let detail = "others' ops are in the future as well, or they have ours already: it is \
                          this device's clock that is slow; set it";
            return Err(problem(StatusCode::CONFLICT, detail));
        }
    }))
}
