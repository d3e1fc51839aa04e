//! The view of shared folders: the state of each on this device; share a directory, bind a directory.

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::form::{Form, token};
use super::icons;
use super::layout::{PageError, View, empty};
use super::visit::{Page, Visit};
use super::words::{clean, counted, name, size};
use crate::folders::status::{
    BindRequest, BindingState, BindingView, Bound, FolderView, FoldersPage,
};

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new().route("/folders", get(show)).route("/folders/share", post(share))
}

async fn show(visit: Visit) -> Result<Markup, PageError> {
    let page: FoldersPage = visit.page.agent.get(&["v1", "folders"], &[]).await?;
    let content = html! {
        div #folders data-live {
            @if page.folders.is_empty() {
                (empty("No folder is shared yet", html! {
                    "Share a directory of this device: it is kept equal on every device that wants it, with every version of every file."
                }))
            } @else {
                ul.devices { @for folder in &page.folders { li.card { (row(folder)) } } }
            }
        }
        section aria-labelledby="share" {
            h2 #share { "Share a directory" }
            form.card.narrow.stack method="post" action="/folders/share" {
                (token(&visit.session))
                label for="dir" { "Directory on this device" }
                input #dir name="dir" required placeholder="/home/you/Documents" autocomplete="off" spellcheck="false";
                label for="folder-name" { "Name on all devices" }
                input #folder-name name="name" placeholder="The directory’s own name" autocomplete="off";
                div.buttons {
                    button name="dry_run" value="false" { "Share it" }
                    button.plain name="dry_run" value="true" { "See what it would take" }
                }
            }
        }
    };
    Ok(visit.show(View::Folders, "Folders", content))
}

fn row(folder: &FolderView) -> Markup {
    html! {
        div.peer {
            span.picture.small { (icons::folders()) }
            div.who {
                a.strong href=(format!("/folders/{}", folder.id)) { (name(&folder.name)) }
                @match &folder.binding {
                    Some(binding) => span.quiet { (name(&binding.dir)) },
                    None => span.quiet { "Not on this device" },
                }
            }
            @if let Some(binding) = &folder.binding { (state(binding)) }
        }
        @if let Some(binding) = &folder.binding {
            @for problem in &binding.problems { p.problem { (super::words::clean_long(problem)) } }
        }
    }
}

/// The state of a bound directory, in a word.
pub(super) fn state(binding: &BindingView) -> Markup {
    let (class, text) = match binding.state {
        BindingState::Scanning => ("busy", "Reading the directory"),
        BindingState::Syncing => ("busy", "Syncing"),
        BindingState::UpToDate => ("on", "Up to date"),
        BindingState::Paused => ("off", "Paused"),
        BindingState::Held => ("trying", "Waits for you"),
        BindingState::Stopped => ("trying", "Stopped"),
    };
    html! { span.badge { span.dot .(class) {} (text) } }
}

#[derive(Deserialize)]
struct Share {
    dir: String,
    #[serde(default)]
    name: String,
    dry_run: bool,
}

async fn share(visit: Visit, Form(share): Form<Share>) -> Result<Response, PageError> {
    let Share { dir, name, dry_run } = share;
    let name = (!name.trim().is_empty()).then(|| name.trim().to_owned());
    let request = BindRequest { name, dry_run, ..bind(dir) };
    let bound: Bound = visit.page.agent.post(&["v1", "folders"], &request).await?;
    let target = match bound.id {
        Some(id) => format!("/folders/{id}"),
        None => "/folders".into(),
    };
    Ok(visit.done(said(&bound, dry_run), &target))
}

/// A request to bind a directory and to sync it in both directions.
pub(super) fn bind(dir: String) -> BindRequest {
    BindRequest {
        dir: dir.trim().to_owned(),
        name: None,
        mode: Default::default(),
        keep: Default::default(),
        symlinks: false,
        dry_run: false,
    }
}

/// The result of binding a directory, or of a dry run.
pub(super) fn said(bound: &Bound, is_trial: bool) -> String {
    let files = counted(bound.files, "file", "files");
    let left_out: u64 = bound.skipped.iter().map(|skipped| skipped.count).sum();
    let left_out = match left_out {
        0 => String::new(),
        count => format!(" {} would be left out.", counted(count, "path", "paths")),
    };
    let verb = if is_trial { "would be shared as" } else { "is shared as" };
    format!(
        "{} with {files} ({}) {verb} {}. The store needs {} for it.{left_out}",
        clean(&bound.dir),
        size(bound.bytes),
        clean(&bound.name),
        size(bound.needed_bytes)
    )
}
