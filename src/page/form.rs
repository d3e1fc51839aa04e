//! Forms: their fields as a browser sends them, with the token of the session.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode};
use maud::{Markup, html};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::layout::PageError;
use crate::http::problem::{Problem, problem};
use crate::http::sessions::Session;
use crate::http::upload::collect;

/// The longest form: a description, with every byte percent-encoded.
const FORM_BYTES_MAX: u64 = 64 * 1024;

/// The header that carries the token in requests of the script.
pub(super) const TOKEN_HEADER: &str = "x-csrf";

/// The fields of a form that a page of this session made.
pub(super) struct Form<T>(pub(super) T);

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    csrf: String,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Form<T> {
    type Rejection = PageError;

    async fn from_request(request: Request, state: &S) -> Result<Self, PageError> {
        let (parts, body) = request.into_parts();
        let body = collect(body, FORM_BYTES_MAX).await?;
        let again = || Request::from_parts(parts.clone(), Body::from(body.clone()));
        let Token { csrf } = read(again(), state).await?;
        let session = parts.extensions.get::<Session>();
        if !session.is_some_and(|session| session.made(&csrf)) {
            return Err(not_ours().into());
        }
        Ok(Self(read(again(), state).await?))
    }
}

async fn read<T: DeserializeOwned, S: Send + Sync>(
    request: Request,
    state: &S,
) -> Result<T, Problem> {
    let form = axum::Form::from_request(request, state).await;
    form.map(|axum::Form(fields)| fields)
        .map_err(|refused| problem(refused.status(), refused.body_text()))
}

/// Checks the token of a request by the script.
pub(super) fn check_token(session: &Session, headers: &HeaderMap) -> Result<(), Problem> {
    let token = headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok());
    if token.is_some_and(|token| session.made(token)) { Ok(()) } else { Err(not_ours()) }
}

fn not_ours() -> Problem {
    let detail = "the form is of an earlier session: go back, load the page again and repeat it";
    problem(StatusCode::FORBIDDEN, detail)
}

/// The field that every form carries.
pub(super) fn token(session: &Session) -> Markup {
    html! { input type="hidden" name="csrf" value=(session.csrf); }
}

/// A form with one button.
pub(super) fn button(session: &Session, action: &str, class: &str, text: &str) -> Markup {
    html! {
        form method="post" action=(action) {
            (token(session))
            button class=(class) { (text) }
        }
    }
}
