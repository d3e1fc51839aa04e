//! Shared folders and the directories of this device that are bound to them.
//!
//! A path within a folder is written in its text form: `/` between components, `\\` for a backslash,
//! `\xff` for a byte that is no UTF-8 or does not show. Absolute paths of this device are written in
//! the same way.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};

use super::requests::NoArguments;
use super::{Api, request};
use crate::folders::handle::FolderError;
use crate::folders::status::{
    BindRequest, Bound, FolderStatus, FolderView, FoldersPage, Located, PathHistory,
    RestoreRequest, Restored, UndoRequest, Undone, Why,
};
use crate::http::extract::{Path, Query};
use crate::http::problem::{Problem, problem};

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/folders", get(list).post(add))
        .route("/v1/folders/{folder}", get(status))
        .route("/v1/folders/{folder}/join", post(join))
        .route("/v1/folders/{folder}/binding", delete(remove))
        .route("/v1/folders/{folder}/pause", post(pause))
        .route("/v1/folders/{folder}/resume", post(resume))
        .route("/v1/folders/{folder}/confirm", post(confirm))
        .route("/v1/folders/{folder}/history", get(history))
        .route("/v1/folders/{folder}/restore", post(restore))
        .route("/v1/folders/{folder}/undo", post(undo))
        .route("/v1/folders/{folder}/why", get(why))
        .route("/v1/locate", get(locate))
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(
    list, add, status, join, remove, pause, resume, confirm, history, restore, undo, why, locate
))]
pub(super) struct Described;

impl From<FolderError> for Problem {
    fn from(error: FolderError) -> Self {
        let status = match &error {
            FolderError::Unknown(_) => StatusCode::NOT_FOUND,
            FolderError::Refused(_) => StatusCode::CONFLICT,
            FolderError::Invalid(_) => StatusCode::BAD_REQUEST,
            FolderError::Temporary(_) => StatusCode::SERVICE_UNAVAILABLE,
            FolderError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, error.to_string())
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PathQuery {
    /// The path, in its text form.
    path: String,
}

/// Lists the folders of the group
#[utoipa::path(
    get,
    path = "/v1/folders",
    operation_id = "folders",
    tag = "folders",
    responses((status = 200, description = "The folders, by name.", body = FoldersPage))
)]
async fn list(State(api): State<Api>) -> Result<Json<FoldersPage>, Problem> {
    Ok(Json(api.handle.folders().list().await?))
}

/// Makes a folder of a directory of this device
#[utoipa::path(
    post,
    path = "/v1/folders",
    operation_id = "addFolder",
    tag = "folders",
    request_body = BindRequest,
    responses(
        (status = 200, description = "What was bound, or would be.", body = Bound),
        (status = 409),
    )
)]
async fn add(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Bound>, Problem> {
    let request: BindRequest = request(&headers, body).await?;
    Ok(Json(api.handle.folders().add(request).await?))
}

/// Binds a directory of this device to an existing folder
#[utoipa::path(
    post,
    path = "/v1/folders/{folder}/join",
    operation_id = "joinFolder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    request_body = BindRequest,
    responses(
        (status = 200, description = "What was bound, or would be.", body = Bound),
        (status = 404),
        (status = 409),
    )
)]
async fn join(
    State(api): State<Api>,
    Path(folder): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Bound>, Problem> {
    let request: BindRequest = request(&headers, body).await?;
    Ok(Json(api.handle.folders().join(&folder, request).await?))
}

/// Tells how a folder stands on this device
#[utoipa::path(
    get,
    path = "/v1/folders/{folder}",
    operation_id = "folder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    responses(
        (status = 200, description = "The state of the folder.", body = FolderStatus),
        (status = 404),
    )
)]
async fn status(
    State(api): State<Api>,
    Path(folder): Path<String>,
) -> Result<Json<FolderStatus>, Problem> {
    Ok(Json(api.handle.folders().status(&folder).await?))
}

/// Unbinds the directory of this device; it stays as it is
#[utoipa::path(
    delete,
    path = "/v1/folders/{folder}/binding",
    operation_id = "unbindFolder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    responses(
        (status = 200, description = "Done.", body = FolderView),
        (status = 404),
    )
)]
async fn remove(
    State(api): State<Api>,
    Path(folder): Path<String>,
) -> Result<Json<FolderView>, Problem> {
    Ok(Json(api.handle.folders().remove(&folder).await?))
}

/// Stops syncing the directory of this device
#[utoipa::path(
    post,
    path = "/v1/folders/{folder}/pause",
    operation_id = "pauseFolder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    request_body = NoArguments,
    responses(
        (status = 200, description = "Done.", body = FolderView),
        (status = 404),
    )
)]
async fn pause(
    State(api): State<Api>,
    Path(folder): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FolderView>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(api.handle.folders().pause(&folder).await?))
}

/// Goes on after a pause
#[utoipa::path(
    post,
    path = "/v1/folders/{folder}/resume",
    operation_id = "resumeFolder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    request_body = NoArguments,
    responses(
        (status = 200, description = "Done.", body = FolderView),
        (status = 404),
    )
)]
async fn resume(
    State(api): State<Api>,
    Path(folder): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FolderView>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(api.handle.folders().resume(&folder).await?))
}

/// Lets changes pass that are held because they are very many
#[utoipa::path(
    post,
    path = "/v1/folders/{folder}/confirm",
    operation_id = "confirmFolder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    request_body = NoArguments,
    responses(
        (status = 200, description = "Done.", body = FolderView),
        (status = 404),
    )
)]
async fn confirm(
    State(api): State<Api>,
    Path(folder): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FolderView>, Problem> {
    let NoArguments {} = request(&headers, body).await?;
    Ok(Json(api.handle.folders().confirm(&folder).await?))
}

/// Lists the versions of a path, the newest first
#[utoipa::path(
    get,
    path = "/v1/folders/{folder}/history",
    operation_id = "pathHistory",
    tag = "folders",
    params(
        ("folder" = String, Path, description = "Its name, its id or the unique start of the id."),
        PathQuery,
    ),
    responses(
        (status = 200, description = "The versions.", body = PathHistory),
        (status = 404),
    )
)]
async fn history(
    State(api): State<Api>,
    Path(folder): Path<String>,
    Query(PathQuery { path }): Query<PathQuery>,
) -> Result<Json<PathHistory>, Problem> {
    Ok(Json(api.handle.folders().history(&folder, &path).await?))
}

/// Brings a version of a path back; without version and time, what was there before the last change
#[utoipa::path(
    post,
    path = "/v1/folders/{folder}/restore",
    operation_id = "restorePath",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    request_body = RestoreRequest,
    responses(
        (status = 200, description = "Done.", body = Restored),
        (status = 404),
    )
)]
async fn restore(
    State(api): State<Api>,
    Path(folder): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Restored>, Problem> {
    let request: RestoreRequest = request(&headers, body).await?;
    Ok(Json(api.handle.folders().restore(&folder, request).await?))
}

/// Puts a folder back to what it was at a time; itself a change that can be undone
#[utoipa::path(
    post,
    path = "/v1/folders/{folder}/undo",
    operation_id = "undoFolder",
    tag = "folders",
    params(("folder" = String, Path, description = "Its name, its id or the unique start of the id.")),
    request_body = UndoRequest,
    responses(
        (status = 200, description = "What was changed, or would be.", body = Undone),
        (status = 404),
        (status = 409),
    )
)]
async fn undo(
    State(api): State<Api>,
    Path(folder): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Undone>, Problem> {
    let request: UndoRequest = request(&headers, body).await?;
    Ok(Json(api.handle.folders().undo(&folder, request).await?))
}

/// Tells why a path is as it is on this device
#[utoipa::path(
    get,
    path = "/v1/folders/{folder}/why",
    operation_id = "whyPath",
    tag = "folders",
    params(
        ("folder" = String, Path, description = "Its name, its id or the unique start of the id."),
        PathQuery,
    ),
    responses(
        (status = 200, description = "Why.", body = Why),
        (status = 404),
    )
)]
async fn why(
    State(api): State<Api>,
    Path(folder): Path<String>,
    Query(PathQuery { path }): Query<PathQuery>,
) -> Result<Json<Why>, Problem> {
    Ok(Json(api.handle.folders().why(&folder, &path).await?))
}

/// Finds the folder that an absolute path of this device is in
#[utoipa::path(
    get,
    path = "/v1/locate",
    operation_id = "locatePath",
    tag = "folders",
    params(PathQuery),
    responses(
        (status = 200, description = "Where it is.", body = Located),
        (status = 404),
    )
)]
async fn locate(
    State(api): State<Api>,
    Query(PathQuery { path }): Query<PathQuery>,
) -> Result<Json<Located>, Problem> {
    Ok(Json(api.handle.folders().locate(&path).await?))
}
