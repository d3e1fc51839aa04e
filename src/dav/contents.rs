//! Serves the content of a file: checked against its hash, in parts where a client asks for them, and
//! never so that a browser runs it.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use dav_server::fs::FsError;

use super::entry::short_etag;
use super::files::Files;
use super::index::{EntryKind, FileFacts};
use super::place::Place;
use crate::core::fetches::FetchRequest;
use crate::core::ids::Digest;
use crate::http::content::{self, insert};
use crate::http::problem::{Problem, problem};
use crate::http::served::{content_disposition, served_type};

/// Answers a `GET` or `HEAD`. A content that is not on this device is requested from others.
pub(super) async fn answer(
    files: &Files,
    place: &Place,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (file, name) = match files.look(place).await {
        Ok(EntryKind::File(file)) => (file, place.name()),
        Ok(EntryKind::Directory) => {
            let detail = "this is a directory: open it with a program that speaks WebDAV";
            return Err(problem(StatusCode::METHOD_NOT_ALLOWED, detail));
        }
        Err(FsError::NotFound) => {
            return Err(problem(StatusCode::NOT_FOUND, "there is no such file"));
        }
        Err(_) => return Err(problem(StatusCode::SERVICE_UNAVAILABLE, "try again in a moment")),
    };
    let FileFacts { hash, size_bytes, modified_ms, .. } = file;
    let store = files.0.store.clone();
    let is_held = store.lookup(hash).await?.is_some_and(|asset| asset.is_held());
    if !is_held {
        let hashes = vec![hash.into()];
        // Whatever comes of it, the client is to come again.
        let _ = files.0.handle.fetch(FetchRequest { hashes, now: true }).await;
        let detail = "the file is not on this device yet, and was asked for: try again later";
        return Err(problem(StatusCode::SERVICE_UNAVAILABLE, detail));
    }
    let algorithm = store.info().await?.hash_algorithm;
    let (short, whole) = (format!("\"{}\"", short_etag(hash)), format!("\"{hash}\""));
    let mut headers = headers.clone();
    for name in [header::IF_NONE_MATCH, header::IF_RANGE] {
        let known = headers.get(&name).and_then(|value| value.to_str().ok());
        if let Some(known) = known.map(|known| known.replace(&short, &whole)) {
            insert(&mut headers, name, &known);
        }
    }
    let digest = Digest { hash, size_bytes };
    let mut response = content::answer(store, digest, algorithm, method, &headers).await?;
    let guessed = mime_guess::from_path(&name).first_raw().unwrap_or_default();
    let modified = chrono::DateTime::from_timestamp_millis(modified_ms.max(0)).unwrap_or_default();
    let headers = response.headers_mut();
    let modified = modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    insert(headers, header::ETAG, &short);
    insert(headers, header::LAST_MODIFIED, &modified);
    insert(headers, header::CONTENT_DISPOSITION, &content_disposition("attachment", &name));
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(served_type(guessed).content_type));
    Ok(response)
}
