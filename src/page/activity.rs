//! The view of device events: what happened on which device, the newest first, updated live.
//!
//! Events are read from the journal in the order in which they arrived here. A page shows a window of
//! [`WINDOW`] of them and links to the window before, so a page of a long journal costs no more than one
//! of a short journal.

use axum::Router;
use axum::extract::Query;
use axum::routing::get;
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{PageError, View, empty};
use super::names::Names;
use super::visit::{Page, Visit};
use super::words::{clean, count, name, prose, size, time_of};
use crate::api::answers::{Event, EventsPage};
use crate::core::journal::device_events::{DEVICE_STREAM, LogEvent};
use crate::http::problem::{Problem, bad_request};
use crate::state::journal::Cursor;

/// The writes of the journal read for one page. One write may have many events; where all together have
/// more than [`EVENTS`], fewer are read.
const WINDOW: u64 = 150;

/// The most events of a page.
const EVENTS: &str = "1000";

/// The events shown of a run of one kind on one device: a directory that was added fills no view.
const RUN_SHOWN: usize = 5;

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new().route("/activity", get(show))
}

#[derive(Deserialize)]
struct Place {
    /// Show the events that arrived before this one.
    before: Option<u64>,
}

async fn show(visit: Visit, Query(Place { before }): Query<Place>) -> Result<Markup, PageError> {
    let newest = visit.page.handle.journal().read(|journal| journal.cursor_now()).await;
    let newest = newest.map_err(Problem::from)?;
    let newest = newest.ok_or_else(|| bad_request("this device is in no group"))?;
    let end = before.unwrap_or(u64::MAX).min(newest.arr);
    let mut start = end.saturating_sub(WINDOW);
    let page = loop {
        let [after, until] = [start, end].map(|arr| Cursor { arr, ..newest }.to_string());
        let query = [("after", after.as_str()), ("until", &until), ("limit", EVENTS)];
        let path = ["v1", "events", DEVICE_STREAM];
        let page: EventsPage = visit.page.agent.get(&path, &query).await?;
        let is_whole = !page.more || page.next.arr > end;
        if is_whole || end - start <= 1 {
            break page;
        }
        start = end - (end - start) / 2;
    };
    let runs = page.events.chunk_by(|one, next| one.author == next.author && one.kind == next.kind);
    let names = Names::of(&visit.status);
    let content = html! {
        div #events data-live {
            @if page.events.is_empty() {
                (empty("Nothing happened here yet", html! { "What is added, received, changed and paired is listed here." }))
            } @else {
                ol.events { @for run in runs.rev() {
                    @for event in run.iter().rev().take(RUN_SHOWN) { li { (row(event, &names)) } }
                    @if run.len() > RUN_SHOWN { li { span {} span.quiet { "and " (count((run.len() - RUN_SHOWN) as u64)) " more like it" } } }
                } }
            }
        }
        div.buttons {
            @if before.is_some() { a.button.plain href="/activity" { "Newest" } }
            @if start > 0 { a.button.plain href=(format!("/activity?before={start}")) { "Older" } }
        }
    };
    Ok(visit.show(View::Activity, "Activity", content))
}

fn row(event: &Event, names: &Names) -> Markup {
    let author = names.get(&event.author);
    html! {
        span.when.number { (time_of(event.time_ms)) }
        span.what { (name(&author)) " " (what(event, names)) }
    }
}

/// The last part of a path; the asset's page shows the whole path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The event as a sentence without its subject, which is the device.
fn what(event: &Event, names: &Names) -> Markup {
    let tagged = serde_json::json!({ "type": event.kind, "data": event.data });
    let Ok(known) = serde_json::from_value::<LogEvent>(tagged) else {
        return html! { "reports " (name(&event.kind)) };
    };
    let asset = |hash: &crate::core::ids::Hash| {
        let text = event
            .asset_name
            .as_deref()
            .map(file_name)
            .map_or_else(|| format!("asset {}", hash.short()), str::to_owned);
        html! { a href=(format!("/asset/{hash}")) { (name(&text)) } }
    };
    html! {
        @match &known {
            LogEvent::AssetAdded { hash, size_bytes } => { "added " (asset(hash)) " " span.quiet { (size(*size_bytes)) } }
            LogEvent::AssetReceived { hash, size_bytes, from } => {
                "received " (asset(hash))
                @if let Some(from) = from { " from " (name(&names.get(from))) }
                " " span.quiet { (size(*size_bytes)) }
            }
            LogEvent::AssetTrashed { hash } => { "put " (asset(hash)) " into the trash" }
            LogEvent::AssetRestored { hash } => { "restored " (asset(hash)) }
            LogEvent::AssetChanged { hash, fields, .. } => {
                "changed " (asset(hash)) " "
                span.quiet { (clean(&fields.iter().cloned().collect::<Vec<_>>().join(", "))) }
            }
            LogEvent::DevicePaired { name: other, .. } => { "paired with " (name(other)) }
            LogEvent::DeviceRemoved { name: other, .. } => { "removed " (name(other)) " from the group" }
            LogEvent::DeviceConnected { name: other, .. } => { "connected with " (name(other)) }
            LogEvent::DeviceLost { name: other, reason, .. } => {
                "lost " (name(other))
                @if let Some(reason) = reason { " " span.quiet { (clean(reason)) } }
            }
            LogEvent::IntegrityAlarm { what, .. } => { span.problem { "warns: " (prose(what)) } }
            LogEvent::Alert { what, .. } => { span.problem { "alerts: " (prose(what)) } }
            LogEvent::AlertCleared { what, .. } => { "no longer alerts: " span.quiet { (prose(what)) } }
        }
    }
}
