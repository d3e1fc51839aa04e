//! The configuration of the running agent: shown with where each value comes from, changed in its
//! file, and applied where that needs no restart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use utoipa::{OpenApi, ToSchema};

use super::request;
use crate::agent::Tuning;
use crate::agent::handle::{Handle, RequestError};
use crate::config::{ConfigError, Configuration, KEYS, Settings, Source, Value};
use crate::http::problem::{Problem, problem};

/// The configuration of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigReply {
    /// The file; it may be missing.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Every setting.
    pub settings: Vec<SettingView>,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettingView {
    /// The setting's name in the file.
    pub key: String,
    /// The value in force. Null: the default, which `text` tells.
    #[schema(required)]
    pub value: Option<Value>,
    /// The value in force, for people.
    pub text: String,
    /// Where it comes from.
    pub source: SourceName,
    /// The line in the file that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub line: Option<usize>,
    /// Whether a change takes effect without a restart.
    pub is_live: bool,
    /// Whether the file says something else, which takes effect at the next start.
    pub waits_for_restart: bool,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceName {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// The file.
    File,
    /// Nobody set it.
    Default,
}

impl ConfigReply {
    /// The values of `now`, and where those of `next` differ, which apply after a restart.
    pub fn of(now: &Configuration, next: &Configuration) -> Self {
        let views = KEYS.iter().map(|key| {
            let in_force = if key.is_live { next } else { now };
            let given = in_force.given(key.name);
            let value = given.map(|given| given.value.clone());
            let next_value = next.given(key.name).map(|given| &given.value);
            let (source, line) = match given.map_or(Source::Default, |given| given.source) {
                Source::Flag => (SourceName::Flag, None),
                Source::Variable => (SourceName::Variable, None),
                Source::File(line) => (SourceName::File, Some(line)),
                Source::Default => (SourceName::Default, None),
            };
            SettingView {
                key: key.name.to_owned(),
                text: value.as_ref().map_or(key.default.to_owned(), Value::to_string),
                waits_for_restart: !key.is_live && value.as_ref() != next_value,
                value,
                source,
                line,
                is_live: key.is_live,
            }
        });
        Self { file: next.path().to_owned(), settings: views.collect() }
    }
}

/// The part of the configuration that may change while the agent runs.
pub fn tuning(settings: &Settings) -> Tuning {
    Tuning {
        rate_limits: settings.rate_limits(),
        named_peers: settings.peers.clone(),
        alerts: settings.alerts,
        hooks: settings.hooks.clone(),
    }
}

/// The configuration of a running agent. Clones share it.
#[derive(Clone)]
pub struct LiveConfig {
    /// Held while a change is applied, so that the last one written is the last one applied.
    configurations: Arc<Mutex<Configurations>>,
    handle: Handle,
}

struct Configurations {
    /// The configuration that the agent was started with.
    started: Configuration,
    /// The newest configuration, which is in force as far as it needs no restart.
    latest: Configuration,
}

/// Why a configuration was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent did not accept the configuration.
    #[error(transparent)]
    Agent(#[from] RequestError),
}

impl LiveConfig {
    /// The configuration that the agent was started with.
    pub fn new(started: Configuration, handle: Handle) -> Self {
        let configurations = Configurations { latest: started.clone(), started };
        Self { configurations: Arc::new(Mutex::new(configurations)), handle }
    }

    /// Reads the file again, and applies what may change now.
    ///
    /// # Errors
    /// The agent then keeps its old values.
    pub async fn reload(&self) -> Result<ConfigReply, ChangeError> {
        self.replace(Configuration::reloaded).await
    }

    /// Writes these values into the file, and applies what may change now.
    async fn change(
        &self,
        changes: BTreeMap<String, Option<Value>>,
    ) -> Result<ConfigReply, ChangeError> {
        self.replace(move |latest| latest.change(&changes)).await
    }

    async fn replace(
        &self,
        next: impl FnOnce(&Configuration) -> Result<Configuration, ConfigError> + Send + 'static,
    ) -> Result<ConfigReply, ChangeError> {
        let mut configurations = self.configurations.lock().await;
        let latest = configurations.latest.clone();
        let next = spawn_blocking(move || next(&latest)).await;
        let next = next.map_err(|error| RequestError::Internal(error.to_string()))??;
        self.handle.tune(tuning(next.settings())).await?;
        configurations.latest = next;
        Ok(configurations.view())
    }
}

impl Configurations {
    fn view(&self) -> ConfigReply {
        ConfigReply::of(&self.started, &self.latest)
    }
}

/// The routes.
pub fn router(config: LiveConfig) -> Router {
    Router::new().route("/v1/config", get(show).patch(change)).with_state(config)
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(show, change))]
pub(super) struct Described;

/// The configuration, and where each value comes from
#[utoipa::path(
    get,
    path = "/v1/config",
    operation_id = "config",
    tag = "agent",
    responses((status = 200, description = "Done.", body = ConfigReply))
)]
async fn show(State(config): State<LiveConfig>) -> Json<ConfigReply> {
    Json(config.configurations.lock().await.view())
}

/// Changes values in the configuration's file
///
/// `null` takes one out. All are taken or none. What `is_live` takes effect at once, the rest at the
/// next start.
#[utoipa::path(
    patch,
    path = "/v1/config",
    operation_id = "changeConfig",
    tag = "agent",
    request_body = BTreeMap<String, Option<Value>>,
    responses(
        (status = 200, description = "Done.", body = ConfigReply),
        (status = 409),
    )
)]
async fn change(
    State(config): State<LiveConfig>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ConfigReply>, Problem> {
    let changes = request(&headers, body).await?;
    Ok(Json(config.change(changes).await?))
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let status = match error {
            ChangeError::Agent(error) => return error.into(),
            ChangeError::Config(ConfigError::Invalid(_)) => StatusCode::BAD_REQUEST,
            ChangeError::Config(ConfigError::Overridden(_)) => StatusCode::CONFLICT,
            ChangeError::Config(ConfigError::File(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, error.to_string())
    }
}
