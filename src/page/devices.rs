//! The view of devices: pair a device, compare the digits, rename this device, remove a device.
//!
//! Pairing by this view always requires that people compare the twelve digits: nothing is shared before
//! they have confirmed them on both devices.

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::form::{Form, button, token};
use super::layout::{PageError, View};
use super::names::Names;
use super::overview::{Report, dot, reports, state, way};
use super::qr;
use super::visit::{Page, Visit};
use super::words::{ago, clean, count, counted, name, size};
use crate::agent::handle::{PairReply, RemoveReply, RenameReply, TicketReply};
use crate::api::page::{NetworkLink, PageLink};
use crate::api::requests::{
    ConfirmRequest, NoArguments, RedeemRequest, RenameRequest, TicketRequest,
};
use crate::clock::wall_ms;
use crate::http::extract::Path;
use crate::http::problem::problem;
use crate::http::sessions::Invitation;
use crate::replica::status::{PairingState, PairingStatus, PeerStatus};

/// How long a ticket made here is valid.
const TICKET_TTL_MS: u64 = 10 * 60 * 1000;

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new()
        .route("/devices", get(show))
        .route("/devices/invite", post(invite))
        .route("/devices/forget-ticket", post(forget_ticket))
        .route("/devices/join", post(join))
        .route("/devices/confirm", post(confirm))
        .route("/devices/rename", post(rename))
        .route("/devices/phone", post(phone))
        .route("/devices/{device}/remove", get(ask_to_remove).post(remove))
}

async fn show(visit: Visit) -> Result<Markup, PageError> {
    let status = &visit.status;
    let reports = reports(&visit).await?;
    let own = reports.get(&status.device.node_id);
    let names = Names::of(status);
    let content = html! {
        div #pairings data-live { (pairings(&visit)) }
        section aria-labelledby="pair" {
            h2 #pair { "Pair a device" }
            div.columns {
                div.card #invite data-live { (invitation(&visit)) }
                div.card {
                    h3 { "Join another device" }
                    p { "Make a ticket on the other device, and paste it here." }
                    form method="post" action="/devices/join" data-busy="Waiting for the other device. Compare the digits that appear above." {
                        (token(&visit.session))
                        label for="ticket" { "Ticket" }
                        textarea #ticket name="ticket" rows="3" required spellcheck="false" autocomplete="off" {}
                        button { "Join" }
                    }
                }
            }
        }
        section aria-labelledby="others" {
            h2 #others { "Other devices" }
            div #list data-live {
                @if status.peers.is_empty() {
                    (super::layout::empty("This device is alone", html! { "Make a ticket above to pair the first one." }))
                } @else {
                    ul.devices { @for peer in &status.peers { li.card { (row(peer, &names, reports.get(&peer.node_id))) } } }
                }
            }
        }
        @if visit.page.network.is_some() {
            section aria-labelledby="phone" {
                h2 #phone { "Open this page on a phone" }
                div.card {
                    p { "A phone of this network can open the page too. A link lets one browser in, within two minutes." }
                    (button(&visit.session, "/devices/phone", "plain", "Make a link"))
                }
            }
        }
        section aria-labelledby="this" {
            h2 #this { "This device" }
            div.card {
                form.line method="post" action="/devices/rename" {
                    (token(&visit.session))
                    label for="name" { "Name" }
                    input #name name="name" value=(clean(&status.device.name)) required maxlength="64" autocomplete="off";
                    button.plain { "Rename" }
                }
                (facts(own))
                p.id { "ID " code { (status.device.node_id) } }
            }
        }
    };
    Ok(visit.show(View::Devices, "Devices", content))
}

/// The pairings whose digits people must compare now, and the devices that joined recently.
fn pairings(visit: &Visit) -> Markup {
    let is_done = |pairing: &&PairingStatus| pairing.state == PairingState::Paired;
    let (done, open): (Vec<_>, Vec<_>) = visit.status.pairings.iter().rev().partition(is_done);
    let (newest, earlier) = done.split_at(done.len().min(1));
    html! {
        @for pairing in open { (pairing_view(visit, pairing)) }
        @for pairing in newest { (pairing_view(visit, pairing)) }
        @if !earlier.is_empty() {
            details.seen #earlier {
                summary { (counted(earlier.len() as u64, "other device was paired just now", "other devices were paired just now")) }
                @for pairing in earlier { (pairing_view(visit, pairing)) }
            }
        }
    }
}

fn pairing_view(visit: &Visit, pairing: &PairingStatus) -> Markup {
    match pairing.state {
        PairingState::Compare => compare(visit, pairing),
        PairingState::Confirmed => html! {
            div.pairing role="status" {
                p.strong { "Confirmed here. Confirm it on " (name(&pairing.name)) " too." }
                p.digits { (pairing.short_code) }
            }
        },
        PairingState::Paired => {
            let peers = &visit.status.peers;
            let peer = peers.iter().find(|peer| peer.node_id == pairing.node_id);
            html! {
                p.note role="status" {
                    (name(peer.map_or(&pairing.name, |peer| &peer.name))) " is paired with this device. Both showed "
                    span.number { (pairing.short_code) } "."
                }
            }
        }
    }
}

fn compare(visit: &Visit, pairing: &PairingStatus) -> Markup {
    let answer = |same: &str, class: &str, text: &str| {
        html! {
            form method="post" action="/devices/confirm" {
                (token(&visit.session))
                input type="hidden" name="short_code" value=(pairing.short_code);
                input type="hidden" name="same" value=(same);
                button class=(class) { (text) }
            }
        }
    };
    html! {
        div.pairing role="alert" {
            p.strong { (name(&pairing.name)) " wants to pair. Does it show the same digits?" }
            p.digits { (pairing.short_code) }
            div.buttons {
                (answer("true", "", "Yes, they are the same"))
                (answer("false", "plain danger", "No, they differ"))
            }
            p.quiet { "If they differ, somebody else stands between the two devices." }
        }
    }
}

fn invitation(visit: &Visit) -> Markup {
    let now_ms = wall_ms();
    let is_open = |invitation: &Invitation| {
        let is_new = |pairing: &PairingStatus| !invitation.earlier.contains(&pairing.short_code);
        now_ms < invitation.expires_ms && !visit.status.pairings.iter().any(is_new)
    };
    let invitation = visit.page.sessions.invitation(&visit.session).filter(is_open);
    let Some(Invitation { ticket, expires_ms, .. }) = invitation else {
        return html! {
            h3 { "Invite a device" }
            p { "A ticket lets one device join, once, within ten minutes." }
            (button(&visit.session, "/devices/invite", "", "Make a ticket"))
        };
    };
    let left_s = expires_ms.saturating_sub(now_ms) / 1000;
    html! {
        h3 { "Invite a device" }
        p { "Scan it or paste it on the other device. Good once, for "
            span.number data-countdown=(expires_ms) { (format!("{}:{:02}", left_s / 60, left_s % 60)) } "." }
        @if let Some(code) = qr::svg(&ticket.to_uppercase(), "The ticket as a QR code") { (code) }
        label for="invitation" { "Ticket" }
        textarea #invitation readonly rows="3" spellcheck="false" { (ticket) }
        div.buttons {
            button.plain type="button" data-copy="invitation" hidden { "Copy" }
            (button(&visit.session, "/devices/forget-ticket", "plain", "Hide it"))
        }
    }
}

fn row(peer: &PeerStatus, names: &Names, report: Option<&Report>) -> Markup {
    let shown = names.get(&peer.node_id);
    html! {
        div.peer {
            span.dot .(dot(peer)) {}
            div.who {
                span.strong { (name(&shown)) }
                span.quiet { (state(peer, report)) @if let Some(path) = &peer.path { ", " (way(path)) } }
            }
            a.button.plain.danger href=(format!("/devices/{}/remove", peer.node_id)) { "Remove" span.hidden { " " (shown) } }
        }
        @if let Some(error) = &peer.last_error { p.quiet { "Last error: " (super::words::clean_long(error)) } }
        @for obstacle in &peer.obstacles { p.quiet { (super::words::clean_long(obstacle)) } }
        (facts(report))
        p.id { "ID " code { (peer.node_id) } }
    }
}

fn facts(report: Option<&Report>) -> Markup {
    let Some(report) = report else { return html! {} };
    html! {
        dl.figures.small {
            @if let Some(assets) = report.store_assets { div { dt { "Assets" } dd { (count(assets)) } } }
            @if let Some(bytes) = report.store_bytes { div { dt { "Their size" } dd { (size(bytes)) } } }
            @if let Some(bytes) = report.free_bytes { div { dt { "Free" } dd { (size(bytes)) } } }
            @if !report.platform.is_empty() { div { dt { "System" } dd { (clean(&report.platform)) } } }
            @if !report.version.is_empty() { div { dt { "Version" } dd { (clean(&report.version)) } } }
            div { dt { "Reported" } dd { (ago(wall_ms().saturating_sub(report.at_ms))) } }
        }
    }
}

#[derive(Deserialize)]
struct Nothing {}

async fn invite(visit: Visit, Form(Nothing {}): Form<Nothing>) -> Result<Response, PageError> {
    let request = TicketRequest { ttl_ms: Some(TICKET_TTL_MS), verify: true, uses: None };
    let reply: TicketReply = visit.page.agent.post(&["v1", "ticket"], &request).await?;
    let earlier = visit.status.pairings.iter().map(|pairing| pairing.short_code.clone()).collect();
    let invitation = Invitation { ticket: reply.ticket, expires_ms: reply.expires_ms, earlier };
    visit.page.sessions.set_invitation(&visit.session, Some(invitation));
    Ok(Redirect::to("/devices").into_response())
}

async fn forget_ticket(visit: Visit, Form(Nothing {}): Form<Nothing>) -> Response {
    visit.page.sessions.set_invitation(&visit.session, None);
    visit.done("The ticket is hidden. It stays good until it is used or too old.", "/devices")
}

#[derive(Deserialize)]
struct Join {
    ticket: String,
}

async fn join(visit: Visit, Form(Join { ticket }): Form<Join>) -> Result<Response, PageError> {
    let request = RedeemRequest { ticket: ticket.trim().to_owned(), verify: true };
    let reply: PairReply = visit.page.agent.post(&["v1", "pair"], &request).await?;
    let note =
        format!("Paired with {}. Devices in the group: {}.", clean(&reply.name), reply.members);
    Ok(visit.done(note, "/devices"))
}

/// A link for a browser of the network, as a QR code. It is shown once: it is a secret.
async fn phone(visit: Visit, Form(Nothing {}): Form<Nothing>) -> Result<Markup, PageError> {
    let link: PageLink = visit.page.agent.post(&["v1", "page", "link"], &NoArguments {}).await?;
    let gone = || problem(StatusCode::NOT_FOUND, "the page is not open to the network");
    let NetworkLink { url, fingerprint } = link.network.ok_or_else(gone)?;
    let content = html! {
        div.card.narrow {
            p { "Scan it with the phone. It is good once, within two minutes." }
            @if let Some(code) = qr::svg(&url, "The link as a QR code") { (code) }
            p.id { code { (url) } }
            p { "Nobody has signed this device’s certificate, so the browser warns. Go on when the SHA-256 fingerprint that it shows is this one, which is at the end of the link too:" }
            p.id { code { (fingerprint) } }
            p { a.button.plain href="/devices" { "Back" } }
        }
    };
    Ok(visit.show(View::Devices, "Open this page on a phone", content))
}

#[derive(Deserialize)]
struct Confirm {
    short_code: String,
    same: bool,
}

async fn confirm(
    visit: Visit,
    Form(Confirm { short_code, same }): Form<Confirm>,
) -> Result<Response, PageError> {
    let request = ConfirmRequest { short_code, same };
    let _: PairingStatus = visit.page.agent.post(&["v1", "pair", "confirm"], &request).await?;
    Ok(match same {
        true => Redirect::to("/devices").into_response(),
        false => visit.done("The pairing was refused, and nothing was shared.", "/devices"),
    })
}

#[derive(Deserialize)]
struct Rename {
    name: String,
}

async fn rename(visit: Visit, Form(Rename { name }): Form<Rename>) -> Result<Response, PageError> {
    let request = RenameRequest { name };
    let reply: RenameReply = visit.page.agent.post(&["v1", "rename"], &request).await?;
    Ok(visit.done(format!("This device is now called {}.", clean(&reply.name)), "/devices"))
}

async fn ask_to_remove(visit: Visit, Path(device): Path<String>) -> Result<Markup, PageError> {
    let query = [("dry_run", "true")];
    let reply: RemoveReply = visit.page.agent.delete(&["v1", "peers", &device], &query).await?;
    let content = html! {
        div.card.narrow {
            p { "Nothing is synced with it any more, and it cannot come back without a new ticket. "
                "What it already has stays on it." }
            p { "Devices in the group afterwards: " span.number { (reply.members) } "." }
            form method="post" {
                (token(&visit.session))
                div.buttons {
                    button.danger { "Remove " (clean(&reply.name)) }
                    a.button.plain href="/devices" { "Keep it" }
                }
            }
        }
    };
    Ok(visit.show(View::Devices, &format!("Remove {}?", clean(&reply.name)), content))
}

async fn remove(
    visit: Visit,
    Path(device): Path<String>,
    Form(Nothing {}): Form<Nothing>,
) -> Result<Response, PageError> {
    let reply: RemoveReply = visit.page.agent.delete(&["v1", "peers", &device], &[]).await?;
    Ok(visit.done(format!("{} was removed.", clean(&reply.name)), "/devices"))
}
