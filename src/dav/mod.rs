//! WebDAV: the group's folders and assets for every program that speaks it, below `/dav/`.
//!
//! D1  The library `dav-server` knows the protocol; [`files`] is the file system that it sees. It is
//!     given only what [`Dav::serve`] has checked.
//! D2  What changes something must name a path in a folder. The library would remove a directory with
//!     all that is in it for a `MOVE` onto it, so a source and its destination must not overlap.
//! D3  Contents are served by [`contents`]: checked against their hashes, as downloads that no
//!     browser runs.
//! D4  Nothing here waits for ever or grows with what a client sends: bodies that are no contents
//!     have at most [`XML_BYTES_MAX`] and [`XML_TAGS_MAX`], contents pass in constant memory, and
//!     directories are listed page by page.
//!
//! [`crate::http::basic`] decides who may ask.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use dav_server::davpath::DavPath;
use dav_server::{DavHandler, DavMethod, DavMethodSet};

use self::files::{Files, Told};
use self::index::Part;
pub use self::listing::{FileView, ListedFile, Listing};
use self::locks::Locks;
use self::place::Place;
use self::share::Share;
use crate::agent::handle::Handle;
use crate::core::ids::FolderId;
use crate::http::problem::{Problem, bad_request, problem};
use crate::http::upload::collect;

mod contents;
mod entry;
mod files;
mod index;
mod listing;
mod locks;
mod place;
mod properties;
mod share;
mod shelves;
mod upload;

/// Where WebDAV is served.
pub const PREFIX: &str = "/dav";

/// The largest body that is no content: a list of properties.
const XML_BYTES_MAX: u64 = 64 * 1024;

/// The most tags in such a body. The library reads nested elements by recursion.
const XML_TAGS_MAX: usize = 1000;

/// Names the user of a lock.
const PRINCIPAL: &str = "can-sync";

/// When an uploaded file was last modified, in seconds: many clients send it.
const MODIFIED_HEADER: &str = "x-oc-mtime";

/// WebDAV of one agent. Clones share it.
#[derive(Clone)]
pub struct Dav {
    files: Files,
    library: DavHandler<Told>,
}

impl Dav {
    /// The folders and assets of the agent behind `handle`.
    pub fn new(handle: Handle) -> Self {
        let files = Files(Share::new(handle));
        let mut methods = DavMethodSet::all();
        // A content is one whole with one hash: there is no writing of a part.
        methods.remove(DavMethod::Patch);
        let library = DavHandler::builder()
            .methods(methods)
            .filesystem(Box::new(files.clone()))
            .locksystem(Locks::new())
            .strip_prefix(PREFIX)
            .build_handler();
        Self { files, library }
    }

    /// The routes. They must be served behind a guard.
    pub fn router(self) -> Router {
        let serve = any(async move |request: Request| {
            let dav = self.clone();
            dav.serve(request).await.unwrap_or_else(|problem| problem.into_response())
        });
        Router::new()
            .route(PREFIX, serve.clone())
            .route("/dav/", serve.clone())
            .route("/dav/{*path}", serve)
    }

    /// The entries of a directory of a folder after a name, a page of them. Paths and names are in their
    /// text form; an empty path is the top of the folder.
    ///
    /// # Errors
    /// The path is none, or there is no answer now.
    pub async fn list(
        &self,
        folder: FolderId,
        path: &str,
        after: &str,
    ) -> Result<Listing, Problem> {
        self.caught_up(Part::Folders).await?;
        listing::page(&self.files.0, folder, path, after).await
    }

    async fn caught_up(&self, part: Part) -> Result<(), Problem> {
        let detail = "the directories are still being indexed: try again in a moment";
        let late = |_| problem(StatusCode::SERVICE_UNAVAILABLE, detail);
        self.files.0.index.catch_up(part).await.map_err(failed)?.map_err(late)
    }

    async fn serve(&self, mut request: Request) -> Result<Response, Problem> {
        let method = request.method().clone();
        let path = parse(request.uri().path())?;
        let place = Place::of(path.as_bytes());
        let destination = destination(&request)?;
        if changes(&method) {
            check_change(&method, &place, destination.as_ref().map(|(_, place)| place))?;
        }
        for part in [Some(&place), destination.as_ref().map(|(_, place)| place)] {
            if let Some(part) = part.and_then(Place::part) {
                self.caught_up(part).await?;
            }
        }
        if matches!(method, Method::GET | Method::HEAD) {
            return contents::answer(&self.files, &place, &method, request.headers()).await;
        }
        if request.headers().get_all("if").iter().any(|value| !ends_whole(value.as_bytes())) {
            return Err(bad_request("the If header ends within a token"));
        }
        let told = Told { modified_ms: modified_ms(&request) };
        let headers = request.headers_mut();
        // It would let a client ask for all that is below a directory at once.
        headers.remove("x-litmus");
        if let Some((path, _)) = destination {
            let path = HeaderValue::from_str(&path.with_prefix().as_url_string());
            headers.insert("destination", path.map_err(|error| failed(error.into()))?);
        }
        let request = match method == Method::PUT {
            true => request,
            false => with_checked_body(request).await?,
        };
        let answer = self.library.handle_guarded(request, PRINCIPAL.into(), told).await;
        let mut answer = answer.map(Body::new);
        if told.modified_ms.is_some() && answer.status().is_success() && method == Method::PUT {
            answer.headers_mut().insert(MODIFIED_HEADER, HeaderValue::from_static("accepted"));
        }
        Ok(answer)
    }
}

/// The path below the prefix, its components decoded.
fn parse(path: &str) -> Result<DavPath, Problem> {
    let refused = |_| bad_request("the path is none of WebDAV");
    let mut path = DavPath::new(path).map_err(refused)?;
    path.set_prefix(PREFIX).map_err(refused)?;
    let rest = path.as_bytes();
    if !(rest.is_empty() || rest.starts_with(b"/")) {
        return Err(bad_request("the path is none of WebDAV"));
    }
    Ok(path)
}

/// Whether a method changes something, or locks it.
fn changes(method: &Method) -> bool {
    !matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "PROPFIND" | "UNLOCK")
}

/// Where `COPY` and `MOVE` lead. It must be on this server.
fn destination(request: &Request) -> Result<Option<(DavPath, Place)>, Problem> {
    let mut values = request.headers().get_all("destination").iter();
    let (value, None) = (values.next(), values.next()) else {
        return Err(bad_request("there are several Destination headers"));
    };
    let Some(value) = value else { return Ok(None) };
    let text = value.to_str().map_err(|_| bad_request("the Destination is no URL"))?;
    let path = match text.split_once("://") {
        None => text,
        Some((_, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let own = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
            if own != Some(host.as_bytes()) {
                let detail = "the Destination is on another server";
                return Err(problem(StatusCode::BAD_GATEWAY, detail));
            }
            path
        }
    };
    let path = parse(path)?;
    let place = Place::of(path.as_bytes());
    Ok(Some((path, place)))
}

/// Refuses changes outside of folders, and those of D2.
fn check_change(
    method: &Method,
    place: &Place,
    destination: Option<&Place>,
) -> Result<(), Problem> {
    let is_copy = method.as_str() == "COPY";
    // Anything may be copied into a folder.
    if !is_copy && place.writable().is_none()
        || destination.is_some_and(|to| to.writable().is_none())
    {
        let detail = "only what is in a folder can be changed, and not its root";
        return Err(problem(StatusCode::FORBIDDEN, detail));
    }
    match destination {
        Some(to) if place.overlaps(to) => {
            let detail = "the source and the destination are the same, or one is within the other";
            Err(problem(StatusCode::FORBIDDEN, detail))
        }
        None if is_copy || method.as_str() == "MOVE" => {
            Err(bad_request("there is no Destination header"))
        }
        _ => Ok(()),
    }
}

/// Whether each `<` and `[` of an `If` header has its end. The library panics where one has none.
fn ends_whole(mut header: &[u8]) -> bool {
    while let Some(at) = header.iter().position(|byte| b"<[".contains(byte)) {
        let close = if header[at] == b'<' { b'>' } else { b']' };
        header = &header[at + 1..];
        let mut is_quoted = false;
        let end = header.iter().position(|byte| {
            is_quoted ^= *byte == b'"';
            !is_quoted && *byte == close
        });
        let Some(end) = end else { return false };
        header = &header[end + 1..];
    }
    true
}

/// Reads a body that is no content. See D4.
async fn with_checked_body(request: Request) -> Result<Request, Problem> {
    let (parts, body) = request.into_parts();
    let body = collect(body, XML_BYTES_MAX).await?;
    if body.iter().filter(|byte| **byte == b'<').count() > XML_TAGS_MAX {
        return Err(bad_request(format!("the body has more than {XML_TAGS_MAX} tags")));
    }
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn modified_ms(request: &Request) -> Option<i64> {
    let text = request.headers().get(MODIFIED_HEADER)?.to_str().ok()?;
    // Some clients send a fraction.
    let seconds: i64 = text.split('.').next()?.parse().ok()?;
    seconds.checked_mul(1000)
}

fn failed(error: anyhow::Error) -> Problem {
    problem(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn judge(method: &str, from: &str, to: Option<&str>) -> u16 {
        let mut request = Request::builder().method(method).uri(from).header("host", "h:1");
        if let Some(to) = to {
            request = request.header("destination", to);
        }
        let request = request.body(Body::empty()).unwrap();
        let judged = parse(from).and_then(|path| {
            let to = destination(&request)?.map(|(_, place)| place);
            check_change(request.method(), &Place::of(path.as_bytes()), to.as_ref())
        });
        judged.map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn nothing_moves_onto_what_it_is_in_or_into_itself_or_out_of_the_folders() {
        let a = "/dav/folders/f/a/b";
        for (to, status) in [
            ("/dav/folders/f/c", 200),
            ("http://h:1/dav/folders/f/c", 200),
            ("https://h:1/dav/folders/g/c", 200),
            ("/dav/folders/f/a", 403),
            ("/dav/folders/f/a/b", 403),
            ("/dav/folders/f/a/b/c", 403),
            ("/dav/folders/f/x/../a/", 403),
            ("/dav/folders/f/%61", 403),
            ("/dav/folders/f", 403),
            ("/dav/folders/f/", 403),
            ("/dav/folders", 403),
            ("/dav/", 403),
            ("/dav/by-tag/x/y", 403),
            ("/dav/folders/f/.can-sync-folder", 403),
            ("/davfolders/f/c", 400),
            ("/dav/../x", 400),
            ("/dav/folders/f/%00", 400),
            ("/dav/folders/f/a%2fb", 400),
            ("http://evil/dav/folders/f/c", 502),
            ("http://h:1", 400),
            ("", 400),
        ] {
            assert_eq!(judge("MOVE", a, Some(to)), status, "{to}");
            assert_eq!(judge("COPY", a, Some(to)), status, "{to}");
        }
        assert_eq!(judge("MOVE", a, None), 400);
        assert_eq!(judge("COPY", "/dav/by-date/2024/05/a.jpg", Some("/dav/folders/f/a")), 200);
        assert_eq!(judge("MOVE", "/dav/by-date/2024/05/a.jpg", Some("/dav/folders/f/a")), 403);
    }

    #[test]
    fn the_roots_and_what_is_outside_of_folders_cannot_be_changed() {
        for path in ["/dav/", "/dav/folders", "/dav/folders/f", "/dav/folders/f/", "/dav/by-tag/x"]
        {
            for method in ["DELETE", "PUT", "MKCOL", "PROPPATCH", "LOCK", "PATCH", "X"] {
                assert_eq!(judge(method, path, None), 403, "{method} {path}");
            }
        }
        assert_eq!(judge("DELETE", "/dav/folders/f/a", None), 200);
    }
}
