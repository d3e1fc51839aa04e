//! The journal as a whole: members, numbers, checks. Also which status an error of the journal is.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Api, NoArguments, order};
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

async fn members(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let members = api.handle.journal().read(|journal| journal.members()).await?;
    let row = |row: &crate::state::journal::MemberRow| json!({ "device": row.device.to_string(), "name": row.name, "member": row.member });
    Ok(Json(json!({ "members": members.iter().map(row).collect::<Vec<_>>() })))
}

async fn stats(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let stats = api.handle.journal().read(|journal| journal.stats()).await?;
    let logs = stats.logs.iter().map(|log| {
        json!({
            "log": log.log.to_string(),
            "author": log.author.to_string(),
            "seq": log.seq,
            "ops": log.ops,
            "bytes": log.bytes,
            "forked": log.forked,
            "open": log.open,
        })
    });
    let logs: Vec<_> = logs.collect();
    Ok(Json(json!({
        "logs": logs,
        "live_ops": stats.live_ops,
        "live_bytes": stats.live_bytes,
        "opaque_ops": stats.opaque_ops,
        "cells": stats.cells,
        "cell_bytes": stats.cell_bytes,
        "events": stats.events,
        "newest_ms": stats.hlc_max.ms(),
        "ahead_ms": stats.hlc_max.ms().saturating_sub(wall_ms()),
    })))
}

async fn fsck(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let NoArguments {} = order(&headers, body).await?;
    let journal = api.handle.journal();
    let findings = journal.fsck().await?;
    Ok(Json(json!({ "findings": findings })))
}

async fn rebase(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let NoArguments {} = order(&headers, body).await?;
    let rebased = api.handle.journal().run(|journal, now_ms| journal.rebase(now_ms)).await?;
    Ok(Json(match rebased {
        Rebased::Nothing => json!({ "ops": 0 }),
        Rebased::Done { ops, log } => json!({ "ops": ops, "log": log.to_string() }),
        Rebased::OurClockIsSlow => {
            let detail = "others' ops are in the future as well, or they have ours already: it is \
                          this device's clock that is slow; set it";
            return Err(problem(StatusCode::CONFLICT, detail));
        }
    }))
}
