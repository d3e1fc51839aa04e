//! Routes about copies: which assets this device wants, which devices hold an asset, and how many copies the
//! group wants.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{Api, request};
use crate::agent::handle::RequestError;
use crate::core::copies::Absence;
use crate::core::expression::Expression;
use crate::core::ids::{Hash, NodeId};
use crate::core::journal::device_events::DeviceState;
use crate::core::journal::draft::{Draft, DraftChange, DraftPut};
use crate::core::journal::op::{Key, Value};
use crate::core::limits::SITE_CHARS_MAX;
use crate::core::pairing::device_name;
use crate::core::want::Want;
use crate::http::extract::Path;
use crate::http::problem::{Problem, bad_request};
use crate::replica::copies::{GOAL_COPIES, GOAL_ID, GOAL_MAX, GOAL_MODEL, GOAL_SITES, WantChange};

/// The routes.
pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/v1/want", get(want).post(set_want))
        .route("/v1/copies", post(set_goal))
        .route("/v1/site", post(set_site))
        .route("/v1/assets/{hash}/holders", get(holders))
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(want, set_want, set_goal, set_site, holders))]
pub(super) struct Described;

/// What this device wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WantView {
    /// The expression. Null: everything.
    #[schema(required)]
    pub expression: Option<String>,
}

/// The new want expression of this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WantRequest {
    /// The expression. Null: everything.
    pub expression: Option<String>,
    /// Change nothing, only report what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What this device wants now, or would want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WantReply {
    /// The expression as it was read. Null: everything.
    #[schema(required)]
    pub expression: Option<String>,
    /// What changes. Nothing is deleted: assets that are here stay until they are evicted.
    pub change: WantChange,
}

/// How many copies the group is to want; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GoalRequest {
    /// On how many devices each asset is to be.
    #[schema(minimum = 1, maximum = 64)]
    pub copies: Option<u64>,
    /// On how many sites each asset is to be.
    #[schema(minimum = 1, maximum = 64)]
    pub sites: Option<u64>,
}

/// How many copies the group wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoalReply {
    /// On how many devices each asset is to be.
    pub copies: u64,
    /// On how many sites each asset is to be.
    pub sites: u64,
}

/// The site of this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteRequest {
    /// The site's name; empty: the device counts as a site of its own.
    pub site: String,
}

/// The devices that hold an asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holders {
    /// The asset.
    pub hash: Hash,
    /// Whether this device holds it.
    pub here: bool,
    /// Whether the asset is not here because it is not wanted. False also for assets that are not known.
    pub unwanted: bool,
    /// The other devices that are known to hold it.
    pub holders: Vec<HolderView>,
    /// All copies, that of this device included.
    pub copies: u64,
    /// The different sites that they are on.
    pub sites: u64,
}

/// Another device that holds an asset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HolderView {
    /// The device.
    pub node_id: NodeId,
    /// The device's name.
    pub name: String,
    /// The device's site; empty when it has none.
    pub site: String,
    /// When it was last confirmed, milliseconds since the Unix epoch. Sets that did not change are not
    /// confirmed again.
    pub confirmed_ms: u64,
    /// Whether the device is connected and in sync, so that this holds now.
    pub now: bool,
}

/// What this device wants
#[utoipa::path(
    get,
    path = "/v1/want",
    operation_id = "want",
    tag = "agent",
    responses((status = 200, description = "Done.", body = WantView))
)]
async fn want(State(api): State<Api>) -> Json<WantView> {
    let want = api.handle.keeper().want();
    Json(WantView { expression: want.expression.map(|expression| expression.to_string()) })
}

/// Sets what this device wants, or says what would change
///
/// Names, tags and history come in any case; contents come where they are wanted. Nothing is deleted.
#[utoipa::path(
    post,
    path = "/v1/want",
    operation_id = "setWant",
    tag = "agent",
    request_body = WantRequest,
    responses((status = 200, description = "Done.", body = WantReply))
)]
async fn set_want(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WantReply>, Problem> {
    let WantRequest { expression, dry_run } = request(&headers, body).await?;
    let parse = |text: String| {
        Expression::parse(&text).map_err(|error| bad_request(format!("the expression: {error}")))
    };
    let want = Want { expression: expression.map(parse).transpose()? };
    let keeper = api.handle.keeper();
    let failed = |error: anyhow::Error| RequestError::Internal(format!("{error:#}"));
    let change = keeper.dry_run(&want).await.map_err(failed)?;
    if !dry_run {
        api.handle.set_want(want.clone()).await?;
    }
    let expression = want.expression.map(|expression| expression.to_string());
    Ok(Json(WantReply { expression, change }))
}

/// Sets how many copies of each asset the group wants, and on how many sites
#[utoipa::path(
    post,
    path = "/v1/copies",
    operation_id = "setCopies",
    tag = "agent",
    request_body = GoalRequest,
    responses((status = 200, description = "Done.", body = GoalReply))
)]
async fn set_goal(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<GoalReply>, Problem> {
    let GoalRequest { copies, sites } = request(&headers, body).await?;
    let mut set = BTreeMap::new();
    for (name, number) in [(GOAL_COPIES, copies), (GOAL_SITES, sites)] {
        let Some(number) = number else { continue };
        if !(1..=GOAL_MAX).contains(&number) {
            return Err(bad_request(format!("{name} must be 1 to {GOAL_MAX}, got {number}")));
        }
        set.insert(name.to_owned(), Some(Value::Int(number.cast_signed())));
    }
    if !set.is_empty() {
        let key = Key { model: GOAL_MODEL.into(), id: GOAL_ID.to_vec(), owned: false };
        put(&api, key, set).await?;
    }
    let keeper = api.handle.keeper();
    keeper.read_group().await.map_err(|error| RequestError::Internal(format!("{error:#}")))?;
    let goal = keeper.view().goal;
    Ok(Json(GoalReply { copies: goal.copies, sites: goal.sites }))
}

/// Sets the site of this device
#[utoipa::path(
    post,
    path = "/v1/site",
    operation_id = "setSite",
    tag = "agent",
    request_body = SiteRequest,
    responses((status = 200, description = "Done.", body = SiteRequest))
)]
async fn set_site(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SiteRequest>, Problem> {
    let SiteRequest { site } = request(&headers, body).await?;
    let cleaned = device_name(&site);
    if cleaned.is_empty() != site.trim().is_empty() || cleaned.chars().count() > SITE_CHARS_MAX {
        let detail = format!("a site has at most {SITE_CHARS_MAX} characters that can be shown");
        return Err(bad_request(detail));
    }
    let set = BTreeMap::from([("site".to_owned(), Some(Value::Text(cleaned.clone())))]);
    put(&api, DeviceState::key(), set).await?;
    let keeper = api.handle.keeper();
    keeper.read_group().await.map_err(|error| RequestError::Internal(format!("{error:#}")))?;
    Ok(Json(SiteRequest { site: cleaned }))
}

async fn put(api: &Api, key: Key, set: BTreeMap<String, Option<Value>>) -> Result<(), Problem> {
    let (add, remove) = (BTreeSet::new(), BTreeSet::new());
    let put = DraftPut { key, create: true, set, add, remove };
    let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
    let written = api.handle.journal().write(draft).await?;
    written.map_err(|error| RequestError::Refused(error.to_string()))?;
    Ok(())
}

/// The devices that hold an asset
///
/// Only confirmed holders are listed, so there may be more copies than this shows.
#[utoipa::path(
    get,
    path = "/v1/assets/{hash}/holders",
    operation_id = "holders",
    tag = "assets",
    params(("hash" = Hash, Path, description = "The asset.")),
    responses((status = 200, description = "Done.", body = Holders))
)]
async fn holders(State(api): State<Api>, Path(hash): Path<Hash>) -> Result<Json<Holders>, Problem> {
    let keeper = api.handle.keeper();
    let failed = |error: anyhow::Error| RequestError::Internal(format!("{error:#}"));
    let (why, holders) = keeper.holders(hash).await.map_err(failed)?;
    let (status, view) = (api.handle.status(), keeper.view());
    let mut found = Vec::new();
    for holder in holders {
        // Devices that left the group do not count.
        let Some(peer) = status.peers.iter().find(|peer| peer.node_id == holder.node_id) else {
            continue;
        };
        let site = view.sites.get(&holder.node_id).cloned().unwrap_or_default();
        let (node_id, name) = (holder.node_id, peer.name.clone());
        let now = peer.in_sync;
        found.push(HolderView { node_id, name, site, confirmed_ms: holder.confirmed_ms, now });
    }
    let here = why == Some(None);
    let mut sites = BTreeSet::new();
    let mut alone = 0;
    let own_site = view.sites.get(&status.device.node_id).cloned().unwrap_or_default();
    let all = found.iter().map(|holder| &holder.site).chain(here.then_some(&own_site));
    for site in all {
        match site.is_empty() {
            true => alone += 1,
            false => {
                sites.insert(site.clone());
            }
        }
    }
    Ok(Json(Holders {
        hash,
        here,
        unwanted: why == Some(Some(Absence::Unwanted)),
        copies: found.len() as u64 + u64::from(here),
        sites: sites.len() as u64 + alone,
        holders: found,
    }))
}
