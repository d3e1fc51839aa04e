//! The view of the store's health: whether contents are whole, and whether the disks have space.

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::form::{Form, button};
use super::icons;
use super::layout::{PageError, View};
use super::names::Names;
use super::overview::{Report, reports};
use super::visit::{Page, Visit};
use super::words::{clean_long, count, counted, name, size, time_of};
use crate::api::answers::Findings;
use crate::api::requests::NoArguments;
use crate::replica::status::{CopiesStatus, ScrubState, ScrubStatus, Status};

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new().route("/health", get(show)).route("/health/journal", post(check_journal))
}

async fn show(visit: Visit) -> Result<Markup, PageError> {
    let status = &visit.status;
    let reports = reports(&visit).await?;
    let names = Names::of(status);
    let devices = std::iter::once(status.device.node_id)
        .chain(status.peers.iter().map(|peer| peer.node_id))
        .filter_map(|node_id| Some((names.get(&node_id), reports.get(&node_id)?)));
    let content = html! {
        div #damage data-live { (damage(status)) }
        section aria-labelledby="copies" {
            h2 #copies { "Copies" }
            div.card #copies-of data-live { (copies(&status.copies)) }
        }
        section aria-labelledby="reading" {
            h2 #reading { "Reading everything again" }
            div.card #scrub data-live { (scrub(&status.scrub)) }
        }
        section aria-labelledby="space" {
            h2 #space { "Space" }
            div #space-of data-live { (space(devices)) }
        }
        section aria-labelledby="journal" {
            h2 #journal { "The journal" }
            div.card {
                p { "The journal holds names, tags, folders and who belongs to the group. A check reads all of it, which may take a minute." }
                (button(&visit.session, "/health/journal", "plain", "Check the journal"))
            }
        }
    };
    Ok(visit.show(View::Health, "Health", content))
}

fn damage(status: &Status) -> Markup {
    let store = &status.store;
    html! {
        @if store.damaged == 0 && store.quarantined == 0 {
            div.answer.well role="status" { (icons::well()) p { "No damage is known." } }
        } @else {
            div.answer.attention role="status" {
                (icons::attention())
                div {
                    @if store.damaged > 0 {
                        p { (counted(store.damaged, "asset is damaged", "assets are damaged")) " on this device." }
                        p.quiet { "Each is fetched again from another device that has it. If none has it, add the file again." }
                    }
                    @if store.quarantined > 0 {
                        p { (counted(store.quarantined, "asset", "assets")) " arrived wrong or could not be stored, and will be tried again." }
                    }
                }
            }
        }
    }
}

/// How many copies there are, as far as the devices have told, and what this one wants.
fn copies(copies: &CopiesStatus) -> Markup {
    let goal = match copies.goal_sites {
        0 | 1 => counted(copies.goal_copies, "copy", "copies"),
        sites => format!(
            "{} on {}",
            counted(copies.goal_copies, "copy", "copies"),
            counted(sites, "site", "sites")
        ),
    };
    html! {
        @match &copies.census {
            None => p.quiet { "The copies are being counted." },
            Some(census) => {
                p { @if census.below_goal == 0 { "Every asset has " (goal) " or more." }
                    @else { "The group wants " (goal) " of each asset. " strong { (counted(census.below_goal, "asset has", "assets have")) " fewer." } } }
                dl.figures.small {
                    div { dt { "Known" } dd { (count(census.known)) } }
                    div { dt { "With one copy" } dd { (count(census.one_copy)) } }
                    div { dt { "On no known device" } dd { (count(census.nowhere)) } }
                    div { dt { "Below the goal" } dd { (count(census.below_goal)) } }
                }
            }
        }
        @if copies.wants.is_empty() { p.quiet { "This device wants everything." } }
        @else {
            p { "This device wants what fits " code { (clean_long(&copies.wants)) } "." }
        }
        @if copies.missing + copies.unwanted > 0 {
            dl.figures.small {
                div { dt { "Wanted, not here yet" } dd { (count(copies.missing)) } }
                div { dt { "Not wanted here" } dd { (count(copies.unwanted)) } }
            }
        }
        @if !copies.site.is_empty() { p.quiet { "It stands at " (name(&copies.site)) "." } }
    }
}

fn scrub(scrub: &ScrubStatus) -> Markup {
    let text = match scrub.state {
        ScrubState::Off => {
            "It reads nothing now. It begins some minutes after the start, unless it is turned off."
        }
        ScrubState::Running => "Every asset is read again, to find what has gone bad on the disk.",
        ScrubState::Waiting => "It waits for the store.",
        ScrubState::Resting => "Everything was read. The next round begins by itself.",
        ScrubState::Stopped => "It gave up until the next start.",
    };
    html! {
        p { (text) }
        @if let Some(reason) = &scrub.stopped { p.problem { (clean_long(reason)) } }
        @if scrub.state == ScrubState::Running {
            div.line {
                progress max="1000" value=(scrub.done_permille) aria-label="Read of this round" {}
                span.number { (scrub.done_permille / 10) " %" }
            }
        }
        @if scrub.begun_ms.is_some() { dl.figures.small {
            div { dt { "Read" } dd { (size(scrub.read_bytes)) } }
            div { dt { "Assets" } dd { (count(scrub.assets)) } }
            div { dt { "Found damaged" } dd { (count(scrub.damaged)) } }
            div { dt { "Files of no asset" } dd { (count(scrub.strays)) } }
            @if let Some(ms) = scrub.finished_ms { div { dt { "Last round ended" } dd { (time_of(ms)) } } }
        } }
    }
}

fn space<'a>(devices: impl Iterator<Item = (String, &'a Report)>) -> Markup {
    html! {
        div.scroll role="region" aria-label="Space of each device" tabindex="0" { table.list {
            thead { tr { th scope="col" { "Device" } th.number scope="col" { "Assets" } th.number scope="col" { "Their size" } th.number scope="col" { "Free" } } }
            tbody { @for (device, report) in devices { tr {
                td { (name(&device)) }
                td.number { @if let Some(assets) = report.store_assets { (count(assets)) } }
                td.number { @if let Some(bytes) = report.store_bytes { (size(bytes)) } }
                td.number { @if let Some(bytes) = report.free_bytes { (size(bytes)) } }
            } } }
        } }
    }
}

#[derive(Deserialize)]
struct Nothing {}

async fn check_journal(
    visit: Visit,
    Form(Nothing {}): Form<Nothing>,
) -> Result<Response, PageError> {
    let found: Findings =
        visit.page.agent.post(&["v1", "journal", "fsck"], &NoArguments {}).await?;
    let note = match found.findings.is_empty() {
        true => "The journal is in order.".to_owned(),
        false => found.findings.join("\n"),
    };
    Ok(visit.done(note, "/health"))
}
