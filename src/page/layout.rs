//! What all views share: the frame around them, the style sheet and the script, and the page that shows an
//! error.

use std::sync::LazyLock;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{DOCTYPE, Markup, html};

use super::form::token;
use super::icons;
use super::words::{name, prose};
use crate::http::problem::{Problem, ProblemBody, problem};
use crate::http::sessions::Session;

/// The path of the style sheet.
pub(super) const STYLE_PATH: &str = "/page.css";

/// The path of the script.
pub(super) const SCRIPT_PATH: &str = "/page.js";

/// The path of the icon in a browser's tab.
pub(super) const ICON_PATH: &str = "/icon.svg";

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const ICON: &str = include_str!("icon.svg");

/// How long browsers may cache them: their URLs change with their content.
const KEEP: &str = "private, max-age=31536000, immutable";

/// The longest problem document: a sentence, which may quote a name.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// Part of the URLs of the style sheet and the script, so that browsers fetch a new version.
static EDITION: LazyLock<String> = LazyLock::new(|| {
    let files = [STYLE, SCRIPT, ICON].concat();
    blake3::hash(files.as_bytes()).to_hex()[..12].to_owned()
});

/// A view, as it stands in the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Overview,
    Devices,
    Browse,
    Folders,
    Health,
    Activity,
}

impl View {
    const ALL: [Self; 6] =
        [Self::Overview, Self::Devices, Self::Browse, Self::Folders, Self::Health, Self::Activity];

    /// Its name, its path and its icon.
    fn place(self) -> (&'static str, &'static str, Markup) {
        match self {
            Self::Overview => ("Overview", "/", icons::overview()),
            Self::Devices => ("Devices", "/devices", icons::devices()),
            Self::Browse => ("Browse", "/browse", icons::browse()),
            Self::Folders => ("Folders", "/folders", icons::folders()),
            Self::Health => ("Health", "/health", icons::health()),
            Self::Activity => ("Activity", "/activity", icons::activity()),
        }
    }
}

/// The routes of the files that all views use.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |content_type: &'static str, content: &'static str| {
        get(async move || {
            ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, KEEP)], content)
        })
    };
    Router::new()
        .route(STYLE_PATH, file("text/css; charset=utf-8", STYLE))
        .route(SCRIPT_PATH, file("text/javascript; charset=utf-8", SCRIPT))
        .route(ICON_PATH, file("image/svg+xml", ICON))
}

/// A whole page.
pub(super) fn whole(
    device: &str,
    session: &Session,
    view: View,
    title: &str,
    note: Option<&str>,
    content: Markup,
) -> Markup {
    let frame = html! {
        header.top {
            a.brand href="/" { img src=(versioned(ICON_PATH)) alt="" width="28" height="28"; span { (name(device)) } }
            nav aria-label="Views" {
                @for other in View::ALL {
                    @let (text, path, drawing) = other.place();
                    a href=(path) aria-current=[(other == view).then_some("page")] {
                        (drawing) span { (text) }
                    }
                }
            }
            form.leave method="post" action="/sign-out" {
                (token(session))
                button.plain { "Sign out" }
            }
        }
        main #main tabindex="-1" {
            h1 { (title) }
            @if let Some(note) = note { p.note role="status" { (super::words::clean_long(note)) } }
            (content)
        }
    };
    document(&format!("{title} · {}", super::words::clean(device)), Some(&session.csrf), frame)
}

fn document(title: &str, csrf: Option<&str>, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(csrf) = csrf { meta name="csrf" content=(csrf); }
                title { (title) }
                link rel="icon" href=(versioned(ICON_PATH)) type="image/svg+xml";
                link rel="stylesheet" href=(versioned(STYLE_PATH));
                script src=(versioned(SCRIPT_PATH)) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                (body)
            }
        }
    }
}

fn versioned(path: &str) -> String {
    format!("{path}?v={}", *EDITION)
}

/// The page after signing in, which goes on to the next page at once.
pub(super) fn signed_in() -> impl IntoResponse {
    let body = html! {
        main.alone #main tabindex="-1" {
            h1 { "Signed in" }
            p { a href="/" { "Go to the page" } }
        }
    };
    (
        [(HeaderName::from_static("refresh"), "0;url=/")],
        document("Signed in · can-sync", None, body),
    )
}

/// An error as a page: what happened, and what to do.
pub(super) fn refused(problem: Problem) -> Response {
    let (title, remedy) = match problem.status {
        StatusCode::UNAUTHORIZED => (
            "Sign in",
            "Run `can-sync open` in a terminal on this machine, and open the link that it prints. \
             A link is good once.",
        ),
        StatusCode::FORBIDDEN => ("Refused", "Open the page with the link of `can-sync open`."),
        StatusCode::NOT_FOUND => ("Not found", "It may have been renamed or removed meanwhile."),
        StatusCode::SERVICE_UNAVAILABLE => ("Not now", "Load the page again in a moment."),
        StatusCode::INSUFFICIENT_STORAGE => ("No space", "Make space on the disk, and repeat it."),
        StatusCode::BAD_REQUEST => ("Not understood", "Go back, and correct what you gave."),
        StatusCode::CONFLICT => ("Not possible", "Go back, and see what stands in the way."),
        _ => ("That did not work", "Go back, and try again."),
    };
    let body = html! {
        main.alone #main tabindex="-1" {
            h1 { (title) }
            p { (sentence(&problem.detail)) }
            p.quiet { (prose(remedy)) }
            p { a.button href="/" { "To the overview" } }
        }
    };
    (problem.status, document(&format!("{title} · can-sync"), None, body)).into_response()
}

/// Shows the problems that the API or the framework answered as pages, where a browser shows the answer.
pub(super) async fn errors_as_pages(request: Request, next: Next) -> Response {
    let is_shown = request.method() == Method::GET;
    let response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_document =
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    if !is_shown || !is_document {
        return response;
    }
    let status = response.status();
    let body = to_bytes(response.into_body(), PROBLEM_BYTES_MAX).await.unwrap_or_default();
    let said = serde_json::from_slice(&body).map(|said: ProblemBody| said.detail);
    refused(problem(status, said.unwrap_or_else(|_| format!("the agent answered {status}"))))
}

/// A problem's detail as a sentence.
fn sentence(detail: &str) -> String {
    let detail = super::words::clean_long(detail);
    let mut letters = detail.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if detail.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// A problem that is answered with a page.
#[derive(Debug)]
pub(super) struct PageError(pub(super) Problem);

impl From<Problem> for PageError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        refused(self.0)
    }
}

/// A line that says that there is nothing, and what to do.
pub(super) fn empty(title: &str, what_to_do: Markup) -> Markup {
    html! { div.empty { p.strong { (title) } p { (what_to_do) } } }
}
