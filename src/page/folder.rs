//! The view of one folder: its state, each conflict copy beside the file that won, the history of a file,
//! and undo.

use axum::Router;
use axum::extract::Query;
use axum::response::Response;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::folders::{bind, said, state};
use super::form::{Form, button, token};
use super::layout::{PageError, View};
use super::names::Names;
use super::visit::{Page, Visit};
use super::words::{clean, clean_long, count, counted, name, size, time, time_of};
use crate::api::requests::NoArguments;
use crate::clock::wall_ms;
use crate::dav::ListedFile;
use crate::folders::status::{
    BindRequest, BindingState, Bound, ContentView, FolderStatus, FolderView, PathHistory,
    RestoreRequest, Restored, UndoRequest, Undone,
};
use crate::http::extract::Path;
use crate::http::problem::{Problem, bad_request};
use crate::http::target::path_and_query;

/// The choices of how far back to undo, each with its label.
const UNDO: [(&str, u64); 4] = [
    ("the last hour", 3_600),
    ("the last day", 86_400),
    ("the last week", 604_800),
    ("the last 30 days", 2_592_000),
];

/// The routes.
pub(super) fn router() -> Router<Page> {
    Router::new()
        .route("/folders/{folder}", get(show))
        .route("/folders/{folder}/history", get(history))
        .route("/folders/{folder}/files", get(files))
        .route("/folders/{folder}/bind", post(join))
        .route("/folders/{folder}/do/{command}", post(command))
        .route("/folders/{folder}/restore", post(restore))
        .route("/folders/{folder}/undo", post(undo))
}

async fn show(visit: Visit, Path(folder): Path<String>) -> Result<Markup, PageError> {
    let status: FolderStatus = visit.page.agent.get(&["v1", "folders", &folder], &[]).await?;
    let id = status.folder.id.to_string();
    let base = format!("/folders/{id}");
    let content = html! {
        @match &status.folder.binding {
            Some(binding) => {
                div #state data-live {
                    div.peer.wide { div.who { span.strong { (name(&binding.dir)) } } (state(binding)) }
                    @for problem in &binding.problems { p.problem { (clean_long(problem)) } }
                    (figures(&status))
                }
                div.buttons {
                    @if binding.state == BindingState::Held { (button(&visit.session, &format!("{base}/do/confirm"), "", "Let the changes pass")) }
                    @if binding.state == BindingState::Paused { (button(&visit.session, &format!("{base}/do/resume"), "", "Go on")) }
                    @else { (button(&visit.session, &format!("{base}/do/pause"), "plain", "Pause")) }
                    (button(&visit.session, &format!("{base}/do/unbind"), "plain danger", "Stop sharing on this device"))
                }
                p { a.button href=(format!("{base}/files")) { "Look at its files" } }
                (conflicts(&visit, &status).await)
                (look_back(&visit, &base))
                (left_out(&status))
            }
            None => {
                (bind_form(&visit, &base))
                p { a.button.plain href=(format!("{base}/files")) { "Look at its files" } }
            }
        }
    };
    Ok(visit.show(View::Folders, &clean(&status.folder.name), content))
}

fn figures(status: &FolderStatus) -> Markup {
    html! {
        dl.figures {
            div { dt { "Files" } dd { (count(status.files)) } }
            div { dt { "Size" } dd { (size(status.bytes)) } }
            div { dt { "Still to come" } dd { (count(status.missing)) } }
            div { dt { "Waiting" } dd { (count(status.waiting)) } }
            div { dt { "Conflicts" } dd { (count(status.conflicts)) } }
        }
    }
}

fn bind_form(visit: &Visit, base: &str) -> Markup {
    html! {
        p { "This folder is not on this device yet. Give it a directory, and its files come here." }
        form.card.narrow.stack method="post" action=(format!("{base}/bind")) {
            (token(&visit.session))
            label for="dir" { "Directory on this device" }
            input #dir name="dir" required placeholder="/home/you/Documents" autocomplete="off" spellcheck="false";
            button { "Keep it here" }
        }
    }
}

/// Each conflict copy beside the file that it lost to.
async fn conflicts(visit: &Visit, status: &FolderStatus) -> Markup {
    if status.conflicts == 0 {
        return html! {};
    }
    let id = status.folder.id.to_string();
    let mut pairs = Vec::new();
    for copy in &status.conflict_examples {
        let kept = copy_of(copy);
        let found = [history_of(visit, &id, &kept).await, history_of(visit, &id, copy).await];
        pairs.push((copy, kept, found));
    }
    html! {
        section aria-labelledby="conflicts" {
            h2 #conflicts { (counted(status.conflicts, "conflict", "conflicts")) }
            p.quiet { "Two devices changed the same file at once. Both versions are kept: look at them, and delete the one you do not want in the directory." }
            ul.devices { @for (copy, kept, [kept_history, copy_history]) in &pairs {
                li.card.columns {
                    (side("In its place", kept, kept_history, &id))
                    (side("Kept beside it", copy, copy_history, &id))
                }
            } }
        }
    }
}

fn side(title: &str, path: &str, history: &Result<PathHistory, Problem>, id: &str) -> Markup {
    html! {
        div.stack {
            h3 { (title) }
            p.strong { (name(path)) }
            @match history.as_ref().ok().and_then(|history| history.versions.first()) {
                Some(version) => (content(&version.content)),
                None => p.quiet { "Nothing is known of it." },
            }
            a href=(path_and_query(&["folders", id, "history"], &[("path", path)])) { "History" }
        }
    }
}

/// A directory of a folder, and the name after which its page begins.
#[derive(Deserialize)]
struct Directory {
    #[serde(default)]
    path: String,
    #[serde(default)]
    after: String,
}

/// The files of a directory of a folder, a page at a time. Paths are in their text form.
async fn files(
    visit: Visit,
    Path(folder): Path<String>,
    Query(Directory { path, after }): Query<Directory>,
) -> Result<Markup, PageError> {
    let found: FolderStatus = visit.page.agent.get(&["v1", "folders", &folder], &[]).await?;
    let id = found.folder.id.to_string();
    let listing = visit.page.dav.list(found.folder.id, &path, &after).await?;
    let link = |path: &str| path_and_query(&["folders", &id, "files"], &[("path", path)]);
    let steps: Vec<(&str, &str)> = path
        .match_indices('/')
        .map(|(at, _)| at)
        .chain((!path.is_empty()).then_some(path.len()))
        .map(|end| (path[..end].rsplit('/').next().unwrap_or_default(), &path[..end]))
        .collect();
    let content = html! {
        div.steps role="navigation" aria-label="Directories" {
            a href=(format!("/folders/{id}")) { "The folder" }
            " / " a href=(link("")) aria-current=[path.is_empty().then_some("page")] { "Its files" }
            @for (text, at) in &steps { " / " a href=(link(at)) aria-current=[(*at == path).then_some("page")] { (name(text)) } }
        }
        @if listing.entries.is_empty() && after.is_empty() {
            (super::layout::empty("Nothing is in it", html! { "What is put into this directory on any device shows here." }))
        } @else {
            div.scroll role="region" aria-label="Files" tabindex="0" { table.list {
                thead { tr { th scope="col" { "Name" } th.number scope="col" { "Size" } th scope="col" { "Modified" } th scope="col" { span.hidden { "More" } } } }
                tbody { @for entry in &listing.entries { (file_row(&id, entry, &link(&entry.path))) } }
            } }
        }
        @if let Some(next) = &listing.next {
            a.more.button.plain rel="next" href=(path_and_query(&["folders", &id, "files"], &[("path", &path), ("after", next)])) { "More" }
        }
    };
    Ok(visit.show(View::Folders, &clean(&found.folder.name), content))
}

fn file_row(id: &str, entry: &ListedFile, directory: &str) -> Markup {
    html! {
        tr {
            @match &entry.file {
                None => { td { a href=(directory) { (name(&entry.name)) "/" } } td {} td {} td {} }
                Some(file) => {
                    td { @if file.is_here { a href=(format!("/asset/{}", file.hash)) { (name(&entry.name)) } } @else { (name(&entry.name)) } }
                    td.number { (size(file.size_bytes)) }
                    td { (time(file.modified_ms)) }
                    td {
                        @if !file.is_here { span.quiet { "Not on this device " } }
                        a href=(path_and_query(&["folders", id, "history"], &[("path", &entry.path)])) { "History" span.hidden { " of " (clean(&entry.name)) } }
                    }
                }
            }
        }
    }
}

async fn history_of(visit: &Visit, id: &str, path: &str) -> Result<PathHistory, Problem> {
    visit.page.agent.get(&["v1", "folders", id, "history"], &[("path", path)]).await
}

/// The path of the file that a conflict copy belongs to: `a.txt` for `a (conflict, laptop, 2026-…).txt`.
fn copy_of(copy: &str) -> String {
    let parts = copy.rfind(" (conflict, ").and_then(|start| {
        let end = start + copy[start..].find(')')? + 1;
        Some(format!("{}{}", &copy[..start], &copy[end..]))
    });
    parts.unwrap_or_else(|| copy.to_owned())
}

fn look_back(visit: &Visit, base: &str) -> Markup {
    html! {
        section.columns aria-label="Earlier versions" {
            form.card.stack action=(format!("{base}/history")) {
                h2 { "History of a file" }
                label for="path" { "Path in the folder" }
                input #path name="path" required placeholder="letters/2026.odt" autocomplete="off" spellcheck="false";
                button.plain { "Show its versions" }
            }
            form.card.stack method="post" action=(format!("{base}/undo")) {
                (token(&visit.session))
                h2 { "Undo" }
                label for="since" { "Undo all changes of" }
                select #since name="since_s" { @for (text, seconds) in UNDO { option value=(seconds) { (text) } } }
                input type="hidden" name="dry_run" value="true";
                button.plain { "See what would change" }
            }
        }
    }
}

fn left_out(status: &FolderStatus) -> Markup {
    html! {
        @if !status.skipped.is_empty() {
            section aria-labelledby="skipped" {
                h2 #skipped { "Left out" }
                ul.plain { @for skipped in &status.skipped {
                    li { (clean_long(&skipped.reason)) ": " (counted(skipped.count, "path", "paths"))
                        @for path in &skipped.examples { br; span.quiet { (name(path)) } } }
                } }
            }
        }
    }
}

/// One version of a path.
fn content(content: &ContentView) -> Markup {
    html! {
        @match content {
            ContentView::Absent => span.quiet { "Deleted" },
            ContentView::File { hash, size_bytes, modified_ms, here, .. } => {
                span.number { (size(*size_bytes)) } ", modified " span.number { (time(*modified_ms)) } " "
                @if *here { a href=(format!("/file/{hash}?save")) { "Download" } }
                @else { span.quiet { "(not on this device)" } }
            }
            ContentView::Symlink { target } => { "A link to " (name(target)) }
            ContentView::Directory => "An empty directory",
            ContentView::Unknown => "Something that a later version of can-sync made",
        }
    }
}

#[derive(Deserialize)]
struct AtPath {
    path: String,
}

async fn history(
    visit: Visit,
    Path(folder): Path<String>,
    Query(AtPath { path }): Query<AtPath>,
) -> Result<Markup, PageError> {
    let history = history_of(&visit, &folder, &path).await?;
    let action = format!("/folders/{folder}/restore");
    let names = Names::of(&visit.status);
    let page = html! {
        p { a href=(format!("/folders/{folder}")) { "Back to the folder" } }
        @if history.versions.is_empty() { p { "There was never anything at this path." } }
        div.scroll role="region" aria-label="Versions" tabindex="0" { table.list {
            thead { tr { th scope="col" { "Version" } th scope="col" { "Until" } th scope="col" { "By" } th scope="col" { "What" } th scope="col" { span.hidden { "Bring back" } } } }
            tbody { @for version in &history.versions { tr {
                td.number { @if version.number == 0 { "Now" } @else { (version.number) " before" } }
                td { @if let Some(ms) = version.until_ms { (time_of(ms)) } }
                td { (name(&names.get(&version.device))) }
                td { (content(&version.content)) }
                td { @if version.number > 0 {
                    form method="post" action=(action) {
                        (token(&visit.session))
                        input type="hidden" name="path" value=(history.path);
                        input type="hidden" name="version" value=(version.number);
                        button.plain { "Bring back" }
                    }
                } }
            } } }
        } }
        @if history.more { p.quiet { "There are older versions: " code { "can-sync history" } " shows them all." } }
    };
    Ok(visit.show(View::Folders, &clean(&history.path), page))
}

#[derive(Deserialize)]
struct Bind {
    dir: String,
}

async fn join(
    visit: Visit,
    Path(folder): Path<String>,
    Form(Bind { dir }): Form<Bind>,
) -> Result<Response, PageError> {
    let request: BindRequest = bind(dir);
    let bound: Bound = visit.page.agent.post(&["v1", "folders", &folder, "join"], &request).await?;
    Ok(visit.done(said(&bound, false), &format!("/folders/{folder}")))
}

#[derive(Deserialize)]
struct Nothing {}

async fn command(
    visit: Visit,
    Path((folder, command)): Path<(String, String)>,
    Form(Nothing {}): Form<Nothing>,
) -> Result<Response, PageError> {
    let agent = &visit.page.agent;
    let note = match command.as_str() {
        "pause" => "The folder is paused.",
        "resume" => "The folder goes on.",
        "confirm" => "The changes pass.",
        "unbind" => {
            let path = ["v1", "folders", &folder, "binding"];
            let _: FolderView = agent.delete(&path, &[]).await?;
            let note = "The directory stays as it is, and is not synced any more.";
            return Ok(visit.done(note, &format!("/folders/{folder}")));
        }
        _ => return Err(bad_request(format!("a folder has no command {command:?}")).into()),
    };
    let path = ["v1", "folders", &folder, &command];
    let _: FolderView = agent.post(&path, &NoArguments {}).await?;
    Ok(visit.done(note, &format!("/folders/{folder}")))
}

#[derive(Deserialize)]
struct Restore {
    path: String,
    version: u64,
}

async fn restore(
    visit: Visit,
    Path(folder): Path<String>,
    Form(Restore { path, version }): Form<Restore>,
) -> Result<Response, PageError> {
    let request = RestoreRequest { path, version: Some(version), at_ms: None };
    let done: Restored =
        visit.page.agent.post(&["v1", "folders", &folder, "restore"], &request).await?;
    let note = if done.changed { "It is brought back." } else { "It was like that already." };
    let target = path_and_query(&["folders", &folder, "history"], &[("path", &done.path)]);
    Ok(visit.done(note, &target))
}

#[derive(Deserialize)]
struct Undo {
    /// How far back, when it is looked at first.
    since_s: Option<u64>,
    /// The moment that was looked at, when it is done.
    since_ms: Option<u64>,
    dry_run: bool,
}

async fn undo(
    visit: Visit,
    Path(folder): Path<String>,
    Form(Undo { since_s, since_ms, dry_run }): Form<Undo>,
) -> Result<Response, PageError> {
    let ago_ms = since_s.unwrap_or_default().saturating_mul(1000);
    let since_ms = since_ms.unwrap_or_else(|| wall_ms().saturating_sub(ago_ms));
    let request = UndoRequest { since_ms: Some(since_ms), device: None, dry_run };
    let undone: Undone =
        visit.page.agent.post(&["v1", "folders", &folder, "undo"], &request).await?;
    let Undone { brought_back, removed, missing, nowhere, held, .. } = undone;
    if !dry_run {
        let note = format!(
            "{} brought back, {} removed. This can be undone too.",
            counted(brought_back, "path was", "paths were"),
            count(removed)
        );
        return Ok(visit.done(note, &format!("/folders/{folder}")));
    }
    let content = html! {
        p { "The folder would be as it was at " (time_of(since_ms)) ": "
            (counted(brought_back, "path", "paths")) " would be brought back, " (counted(removed, "path", "paths")) " removed." }
        @if nowhere > 0 {
            p { (counted(nowhere, "path stays", "paths stay")) " as is: no device is known to have the earlier content any more." }
        }
        @if missing > 0 { p { (counted(missing, "path", "paths")) " would come back once another device sends the content." } }
        @if held { p { "Changes in the directory that are held back are taken in first." } }
        @if !undone.examples.is_empty() {
            div.scroll role="region" aria-label="Changes" tabindex="0" { table.list {
                thead { tr { th scope="col" { "Path" } th scope="col" { "Now" } th scope="col" { "Then" } } }
                tbody { @for step in &undone.examples { tr {
                    td { (name(&step.path)) } td { (content(&step.from)) } td { (content(&step.to)) }
                } } }
            } }
        }
        form method="post" {
            (token(&visit.session))
            input type="hidden" name="since_ms" value=(since_ms);
            input type="hidden" name="dry_run" value="false";
            div.buttons {
                @if brought_back + removed > 0 { button { "Undo these changes" } }
                a.button.plain href=(format!("/folders/{folder}")) { "Leave it as it is" }
            }
        }
    };
    let page = visit.show(View::Folders, "Undo changes", content);
    Ok(axum::response::IntoResponse::into_response(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_copy_names_its_file() {
        let copy = "a/b (conflict, laptop, 2026-11-30 12-00-00).txt";
        assert_eq!(copy_of(copy), "a/b.txt");
        assert_eq!(copy_of("plain.txt"), "plain.txt");
    }
}
