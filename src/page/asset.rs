//! The view of one asset: shows or plays its content where a browser can, and has forms to describe it,
//! tag it, trash and restore it.

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::browse::{picture, tags, title};
use super::form::{Form, button, token};
use super::layout::{PageError, View};
use super::names::Names;
use super::visit::{Page, Visit};
use super::words::{ago, clean, clean_long, counted, kind, name, prose, size, time};
use crate::api::answers::Written;
use crate::api::copies::Holders;
use crate::api::proofs::{EvictRequest, SafeRequest};
use crate::clock::wall_ms;
use crate::copies::gathered::{GatherOutcome, Gathered};
use crate::core::fetches::{FetchReply, FetchRequest, FetchState};
use crate::core::ids::Hash;
use crate::core::why::AssetWhy;
use crate::http::asset::{AssetEdit, AssetRow, AssetsPage};
use crate::http::extract::Path;
use crate::http::problem::{Problem, problem};
use crate::thumbnails::TYPES;

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new()
        .route("/asset/{hash}", get(show))
        .route("/asset/{hash}/edit", post(edit))
        .route("/asset/{hash}/fetch", post(fetch))
        .route("/asset/{hash}/spare", post(spare))
        .route("/asset/{hash}/evict", post(evict))
}

async fn find(visit: &Visit, hash: Hash) -> Result<AssetRow, Problem> {
    let hash = hash.to_string();
    let query = [("hash", hash.as_str()), ("limit", "1")];
    let page: AssetsPage = visit.page.agent.get(&["v1", "assets"], &query).await?;
    let gone = || problem(axum::http::StatusCode::NOT_FOUND, "this asset is not on this device");
    page.assets.into_iter().next().ok_or_else(gone)
}

async fn show(visit: Visit, Path(hash): Path<Hash>) -> Result<Markup, PageError> {
    let asset = find(&visit, hash).await?;
    let copies = copies(&visit, hash).await?;
    let action = format!("/asset/{hash}/edit");
    let content = html! {
        div.asset {
            div.preview {
                @if asset.evicted { (elsewhere(&visit, &asset)) } @else { (preview(&asset)) }
            }
            div.about {
                div.buttons {
                    @if !asset.evicted { a.button href=(format!("/file/{hash}?save")) download { "Download" } }
                    form method="post" action=(action) {
                        (token(&visit.session))
                        input type="hidden" name="trashed" value=(!asset.trashed);
                        button.plain { (if asset.trashed { "Restore" } else { "Put into the trash" }) }
                    }
                }
                (facts(&visit, &asset))
                (edit_tags(&visit, &asset, &action))
                div.stack #copies data-live { (copies) }
                @if !asset.evicted && !asset.damaged { (may_go(&visit, hash)) }
                form.stack method="post" action=(action) {
                    (token(&visit.session))
                    label for="description" { "Description" }
                    textarea #description name="description" rows="4" { (asset.description) }
                    button.plain { "Save the description" }
                }
            }
        }
    };
    Ok(visit.show(View::Browse, &clean(title(&asset)), content))
}

/// The notice on an asset that was evicted here.
fn elsewhere(visit: &Visit, asset: &AssetRow) -> Markup {
    html! {
        div.nothing {
            (picture(asset))
            p { "Other devices keep it. Its bytes were deleted here to make room." }
            (button(&visit.session, &format!("/asset/{}/fetch", asset.hash), "", "Fetch it again"))
        }
    }
}

fn preview(asset: &AssetRow) -> Markup {
    let source = format!("/file/{}", asset.hash);
    let label = clean(title(asset));
    let family = asset.media_type.split('/').next().unwrap_or_default();
    if asset.damaged {
        return html! { p.empty { "Its bytes on this device are damaged. They come back from another device that has them." } };
    }
    match family {
        // An SVG can run scripts, so it is never shown.
        "image" if !asset.media_type.starts_with("image/svg") => {
            html! { a href=(source) { img src=(source) alt=(label); } }
        }
        "video" => html! { video controls preload="metadata" src=(source) aria-label=(label) {} },
        "audio" => html! { audio controls preload="metadata" src=(source) aria-label=(label) {} },
        _ => {
            html! { div.nothing { (picture(asset)) p.quiet { "A browser cannot show this safely. Download it to open it." } } }
        }
    }
}

fn facts(visit: &Visit, asset: &AssetRow) -> Markup {
    let names = Names::of(&visit.status);
    let added_by = asset.added_by.map(|device| names.get(&device));
    html! {
        dl.rows {
            dt { "Kind" } dd { (kind(&asset.media_type)) @if !asset.media_type.is_empty() { " " span.quiet { (clean(&asset.media_type)) } } }
            dt { "Size" } dd.number { (size(asset.size)) }
            @if !asset.path.is_empty() { dt { "Folder" } dd { (name(&asset.path)) } }
            @if let Some(ms) = asset.captured_ms { dt { "Taken" } dd.number { (time(ms)) } }
            @if let Some(ms) = asset.modified_ms { dt { "Modified" } dd.number { (time(ms)) } }
            dt { "Stored here" } dd.number { (time(asset.timestamp)) }
            @if let Some(device) = added_by { dt { "Added on" } dd { (name(&device)) } }
            @if asset.trashed { dt { "State" } dd { "In the trash" } }
            dt { "Hash" } dd.id { code { (asset.hash) } }
        }
        @if !asset.description.is_empty() { p.description { bdi { (clean_long(&asset.description)) } } }
    }
}

/// The devices that have its bytes, and why it is here or not.
async fn copies(visit: &Visit, hash: Hash) -> Result<Markup, Problem> {
    let (agent, hash) = (&visit.page.agent, hash.to_string());
    let held: Holders = agent.get(&["v1", "assets", &hash, "holders"], &[]).await?;
    let why: AssetWhy = agent.get(&["v1", "assets", &hash, "why"], &[]).await?;
    let now_ms = wall_ms();
    Ok(html! {
        h2 { (counted(held.copies, "copy", "copies")) }
        ul.plain { @for holder in &held.holders {
            li { (name(&holder.name)) " "
                span.quiet {
                    @if holder.now { "has it now" }
                    @else { "had it " (ago(now_ms.saturating_sub(holder.confirmed_ms))) }
                    @if !holder.site.is_empty() { ", at " (name(&holder.site)) }
                }
            }
        } }
        (why_text(&why.text))
    })
}

/// Why it is here or not: the first sentence, and what is known of each device folded below it.
fn why_text(text: &str) -> Markup {
    let (first, rest) = text.split_once(". ").unwrap_or((text, ""));
    html! {
        p.quiet { (prose(first)) @if !rest.is_empty() { "." } }
        @if !rest.is_empty() {
            details.seen { summary { "What is known of each device" } p.quiet { (prose(rest)) } }
        }
    }
}

/// Asks whether the copy here can be spared.
fn may_go(visit: &Visit, hash: Hash) -> Markup {
    html! {
        form.stack method="post" action=(format!("/asset/{hash}/spare")) {
            (token(&visit.session))
            h2 { "May it be deleted here?" }
            p.quiet { "The other devices read their copies and prove that they have them." }
            button.plain { "Ask them" }
        }
    }
}

/// Shows which devices have proven that they hold an asset, and offers to delete the copy here.
async fn spare(
    visit: Visit,
    Path(hash): Path<Hash>,
    Form(Nothing {}): Form<Nothing>,
) -> Result<Markup, PageError> {
    let asset = find(&visit, hash).await?;
    let request = SafeRequest { hashes: vec![hash], copies: None, sites: None, within_ms: 0 };
    let gathered = gathered(visit.page.agent.events(&["v1", "safe"], &request).await?)?;
    let is_proven = gathered.outcome == GatherOutcome::Proven;
    let content = html! {
        div.card.narrow {
            p.strong {
                @if is_proven { "Yes. " (counted(gathered.proven.len() as u64, "other device has", "other devices have")) " proven a copy." }
                @else { "No: too few other devices have proven a copy." }
            }
            @if let Some(reason) = &gathered.reason { p { (clean_long(reason)) } }
            ul.plain {
                @for by in &gathered.proven { li { (name(&by.name)) " " span.quiet { "has it" } } }
                @for at in &gathered.lacking { li { (name(&at.name)) " " span.quiet { (clean_long(&at.why)) } } }
            }
            @if is_proven {
                p { "Its bytes are deleted on this device only. What is known of it stays, and it can be fetched again." }
                form method="post" action=(format!("/asset/{hash}/evict")) {
                    (token(&visit.session))
                    div.buttons {
                        button.danger { "Delete it here, " (size(asset.size)) }
                        a.button.plain href=(format!("/asset/{hash}")) { "Keep it" }
                    }
                }
            } @else { p { a.button.plain href=(format!("/asset/{hash}")) { "Back" } } }
        }
    };
    Ok(visit.show(View::Browse, &format!("May {} be deleted here?", clean(title(&asset))), content))
}

async fn evict(
    visit: Visit,
    Path(hash): Path<Hash>,
    Form(Nothing {}): Form<Nothing>,
) -> Result<Response, PageError> {
    let kind = find(&visit, hash).await?.media_type;
    if TYPES.iter().any(|known| kind.starts_with(known)) {
        // It stays when the picture goes. Without one, one of a peer is shown.
        let _ = visit.page.handle.thumbnail(hash).await;
    }
    let request = EvictRequest { hashes: vec![hash], copies: None, sites: None, dry_run: false };
    let gathered = gathered(visit.page.agent.events(&["v1", "evict"], &request).await?)?;
    let note = match (gathered.outcome, gathered.reason) {
        (GatherOutcome::Evicted, _) => {
            "Its bytes are deleted on this device. Others keep it.".into()
        }
        (_, Some(reason)) => format!("It stays: {}", clean_long(&reason)),
        (_, None) => "It stays: too few other devices have promised to keep it.".into(),
    };
    Ok(visit.done(note, &format!("/asset/{hash}")))
}

fn gathered(all: Vec<Gathered>) -> Result<Gathered, Problem> {
    let none = || {
        let detail = "the other devices did not answer: try again";
        problem(axum::http::StatusCode::SERVICE_UNAVAILABLE, detail)
    };
    all.into_iter().next().ok_or_else(none)
}

fn edit_tags(visit: &Visit, asset: &AssetRow, action: &str) -> Markup {
    html! {
        div.stack {
            h2 { "Tags" }
            @if !asset.tags.is_empty() { (tags(asset)) }
            form.line method="post" action=(action) {
                (token(&visit.session))
                label.hidden for="add" { "Another tag" }
                input #add name="add" placeholder="Another tag" required maxlength="128" autocomplete="off";
                button.plain { "Add" }
            }
            @if !asset.tags.is_empty() {
                form.line method="post" action=(action) {
                    (token(&visit.session))
                    label.hidden for="remove" { "A tag to take off" }
                    select #remove name="remove" { @for tag in &asset.tags { option value=(tag) { (clean(tag)) } } }
                    button.plain { "Take off" }
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Nothing {}

async fn fetch(
    visit: Visit,
    Path(hash): Path<Hash>,
    Form(Nothing {}): Form<Nothing>,
) -> Result<Response, PageError> {
    let request = FetchRequest { hashes: vec![hash.into()], now: true };
    let reply: FetchReply = visit.page.agent.post(&["v1", "fetch"], &request).await?;
    let note = match reply.assets.first().map(|asset| asset.state) {
        Some(FetchState::Here) => "It is here again.",
        Some(FetchState::Nowhere | FetchState::NoPeer) => {
            "No device that has it is connected. Try again when one is."
        }
        Some(FetchState::Resting) => {
            "It arrived wrong or there is no space: it is tried again later."
        }
        _ => "It is on its way. Load the page again in a moment.",
    };
    Ok(visit.done(note, &format!("/asset/{hash}")))
}

/// The change that a form requests: one field at a time.
#[derive(Deserialize)]
struct Edit {
    description: Option<String>,
    add: Option<String>,
    remove: Option<String>,
    trashed: Option<bool>,
}

async fn edit(
    visit: Visit,
    Path(hash): Path<Hash>,
    Form(edit): Form<Edit>,
) -> Result<Response, PageError> {
    let Edit { description, add, remove, trashed } = edit;
    let note = match (&add, &remove, trashed) {
        (Some(tag), _, _) => format!("Tagged “{}”.", clean(tag.trim())),
        (_, Some(tag), _) => format!("Took off “{}”.", clean(tag)),
        (_, _, Some(true)) => "It is in the trash.".into(),
        (_, _, Some(false)) => "It is restored.".into(),
        _ => "The description is saved.".into(),
    };
    // Browsers send line ends as CR LF.
    let description = description.map(|text| text.replace("\r\n", "\n"));
    let edit = AssetEdit {
        description,
        add: add.into_iter().collect(),
        remove: remove.into_iter().collect(),
        trashed,
        ..AssetEdit::default()
    };
    let hash = hash.to_string();
    let _: Written = visit.page.agent.patch(&["v1", "assets", &hash, "meta"], &edit).await?;
    Ok(visit.done(note, &format!("/asset/{hash}")))
}
