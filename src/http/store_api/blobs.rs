//! Streamed contents: `GET`, `HEAD` and `PUT /sync/blobs/{hash}`.
//!
//! An upload is written to a file that survives a broken connection, and is resumed by offset. Its
//! content is hashed while it arrives (that of earlier attempts is read again), and when the hash
//! is right it becomes an asset in one step.

use std::any::Any;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Server, held};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::http::content;
use crate::http::describe::Binary;
use crate::http::extract::Path;
use crate::http::problem::{Problem, bad_request, problem};
use crate::http::upload::{
    SPACE_CHECK_BYTES, announced_bytes, check_largest, check_type, next_chunk, write_failed,
};
use crate::store::embedded::EmbeddedStore;
use crate::store::hasher::Hasher;
use crate::store::messages::{self, METADATA_HEADER, REPAIR_HEADER, UPLOAD_OFFSET_HEADER};
use crate::store::{Metadata, Store, StoreError, Stored, VerifiedFile};

/// The most unfinished uploads kept for resuming: more than any agent has under way.
const UNFINISHED_UPLOADS_MAX: usize = 64;

/// How long an upload waits for another one of the same content: less than clients wait.
const UPLOAD_TURN_DEADLINE: Duration = Duration::from_secs(20);

/// How long an unfinished upload is kept after its last write.
const UNFINISHED_UPLOAD_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// An asset's bytes
#[utoipa::path(
    get,
    path = "/sync/blobs/{hash}",
    operation_id = "fetchBlob",
    tag = "store",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("Range" = Option<String>, Header, description = "A part of it."),
    ),
    responses(
        (status = 200, description = "All of it.", body = Binary, content_type = "application/octet-stream"),
        (status = 206, description = "A part.", body = Binary, content_type = "application/octet-stream"),
        (status = 404),
        (status = 416),
    )
)]
pub(super) async fn fetch(
    State(server): State<Server>,
    Path(hash): Path<Hash>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(asset) = held(&server.store, hash).await? else {
        let mut response = Problem::from(StoreError::NotFound(hash)).into_response();
        if let Ok(status) = fs::symlink_metadata(server.uploads.path(hash)).await {
            set_offset(&mut response, status.len());
        }
        return Ok(response);
    };
    let algorithm = server.store.info().await?.hash_algorithm;
    let store: Arc<dyn Store> = Arc::new(server.store);
    let digest = asset.entry.digest;
    let answer = content::answer(store, digest, algorithm, &method, &headers).await;
    let mut response = answer.map_err(|refusal| match refusal.status {
        // A damaged asset is not held.
        StatusCode::GONE => StoreError::NotFound(hash).into(),
        _ => refusal,
    })?;
    if response.status().is_success() {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    }
    Ok(response)
}

fn set_offset(response: &mut Response, offset: u64) {
    response.headers_mut().insert(UPLOAD_OFFSET_HEADER, HeaderValue::from(offset));
}

/// The part of a content that a `PUT` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    first: u64,
    /// The part's length. `None`: the part ends with the body.
    length: Option<u64>,
    /// The whole content's length. `None`: the content ends with the body.
    whole: Option<u64>,
}

impl Part {
    fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let announced = announced_bytes(headers);
        let Some(value) = headers.get(header::CONTENT_RANGE) else {
            return Ok(Self { first: 0, length: announced, whole: announced });
        };
        let part = parse_content_range(value.as_bytes()).ok_or_else(|| {
            bad_request("Content-Range must be `bytes FIRST-LAST/SIZE` within the size")
        })?;
        if announced.is_some() && announced != part.length {
            return Err(bad_request("Content-Range and Content-Length disagree"));
        }
        Ok(part)
    }
}

fn parse_content_range(value: &[u8]) -> Option<Part> {
    let text = std::str::from_utf8(value).ok()?.strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let [first, last, whole] = [first, last, whole].map(|number| {
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| number.parse::<u64>().ok()).flatten()
    });
    let (first, last, whole) = (first?, last?, whole?);
    if first > last || last >= whole {
        return None;
    }
    Some(Part { first, length: Some(last - first + 1), whole: Some(whole) })
}

/// Streams an asset in, whole or in parts
#[utoipa::path(
    put,
    path = "/sync/blobs/{hash}",
    operation_id = "putBlob",
    tag = "store",
    params(
        ("hash" = Hash, Path, description = "The asset's hash."),
        ("Content-Range" = Option<String>, Header, description = "Which part this is: `bytes FIRST-LAST/SIZE`."),
        ("Asset-Repair" = Option<String>, Header, description = "`1`: verify what is held, and replace it if it is damaged."),
        ("Asset-Metadata" = Option<String>, Header, description = "Metadata of `proto/store.proto` in unpadded base64url."),
    ),
    request_body(content = Binary, content_type = "application/octet-stream", description = "The content, or the part."),
    responses(
        (status = 200, description = "It is held already."),
        (status = 201, description = "Stored."),
        (status = 202, description = "This part is taken."),
        (status = 409),
        (status = 422),
        (status = 507),
    )
)]
pub(super) async fn upload(
    State(server): State<Server>,
    Path(hash): Path<Hash>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    check_type(&headers, "application/octet-stream")?;
    let part = Part::from_headers(&headers)?;
    let metadata = match headers.get(METADATA_HEADER) {
        Some(value) => messages::metadata_from_header(value.as_bytes()).map_err(bad_request)?,
        None => Metadata::default(),
    };
    let uploading = server.uploads.begin(hash).await?;
    if headers.contains_key(REPAIR_HEADER) {
        server.store.verify(hash).await?;
    }
    if held(&server.store, hash).await?.is_some() {
        return Ok(StatusCode::OK.into_response());
    }
    let info = server.store.info().await?;
    if let Some(whole) = part.whole {
        check_largest(whole, info.largest_asset_bytes)?;
        server.store.check_space(whole - part.first).await?;
    }
    let path = server.uploads.path(hash);
    let held = fs::symlink_metadata(&path).await.map_or(0, |status| status.len());
    let is_restart = !headers.contains_key(header::CONTENT_RANGE);
    if !is_restart && part.first != held {
        let detail = format!("{held} bytes are kept: go on there");
        let mut response = problem(StatusCode::CONFLICT, detail).into_response();
        set_offset(&mut response, held);
        return Ok(response);
    }
    let mut file = server.uploads.open(&path, part.first).await?;
    let mut hasher = hash_start(&path, part.first, info.hash_algorithm).await?;
    let largest = info.largest_asset_bytes;
    let came = append(&mut file, &mut hasher, body, part, largest, &server.store).await;
    // The bytes received are kept even if the connection broke, so that the upload can be resumed.
    let flushed = file.flush().await.map_err(Refusal::Write);
    drop(file);
    let size_bytes = match came.and_then(|bytes| flushed.map(|()| bytes)) {
        Ok(bytes) => part.first + bytes,
        Err(Refusal::Write(error)) => return Err(write_failed(&path, &error)),
        Err(Refusal::Said(problem)) => return Err(problem),
    };
    if part.whole.is_some_and(|whole| size_bytes < whole) {
        let mut response = StatusCode::ACCEPTED.into_response();
        set_offset(&mut response, size_bytes);
        return Ok(response);
    }
    let got = hasher.hash();
    if got != hash {
        remove_file(&path).await;
        let expected = hash;
        return Err(StoreError::Mismatch { expected, got }.into());
    }
    let digest = Digest { hash, size_bytes };
    let guard: Option<Box<dyn Any + Send + Sync>> = Some(Box::new(uploading));
    let file = VerifiedFile { digest, path, outboard: None, metadata, guard };
    Ok(match server.store.adopt(file).await? {
        Stored::New => StatusCode::CREATED.into_response(),
        Stored::Existed => StatusCode::OK.into_response(),
    })
}

/// Why an upload failed.
enum Refusal {
    Said(Problem),
    Write(std::io::Error),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Said(problem)
    }
}

/// Appends the body to the file; returns how many bytes it had.
async fn append(
    file: &mut File,
    hasher: &mut Hasher,
    body: Body,
    part: Part,
    largest: Option<u64>,
    store: &EmbeddedStore,
) -> Result<u64, Refusal> {
    let mut stream = body.into_data_stream();
    let mut written = 0;
    let mut checked = 0;
    while let Some(chunk) = next_chunk(&mut stream).await? {
        written += chunk.len() as u64;
        if part.length.is_some_and(|length| written > length) {
            return Err(bad_request("the body is longer than announced").into());
        }
        check_largest(part.first + written, largest)?;
        if part.whole.is_none() && written >= checked + SPACE_CHECK_BYTES {
            let space = store.check_space(SPACE_CHECK_BYTES).await;
            space.map_err(Problem::from)?;
            checked = written;
        }
        hasher.update(&chunk);
        file.write_all(&chunk).await.map_err(Refusal::Write)?;
    }
    Ok(written)
}

/// The hash of the bytes left by earlier uploads.
async fn hash_start(
    path: &FilePath,
    length: u64,
    algorithm: HashAlgorithm,
) -> Result<Hasher, Problem> {
    let mut hasher = Hasher::new(algorithm);
    if length == 0 {
        return Ok(hasher);
    }
    let path = path.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        hasher.update_from(std::fs::File::open(&path)?.take(length))?;
        Ok(hasher)
    });
    let failed = |error: std::io::Error| {
        problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot read what was uploaded before: {error}"),
        )
    };
    task.await.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)
}

async fn remove_file(path: &FilePath) {
    if let Err(error) = fs::remove_file(path).await {
        tracing::warn!(path = %path.display(), %error, "cannot remove an upload");
    }
}

/// An upload under way. While this exists, no other upload of the content can begin.
struct Uploading {
    hash: Hash,
    uploads: Uploads,
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.uploads.under_way.lock().remove(&self.hash);
        self.uploads.ended.notify_waiters();
    }
}

/// Unfinished uploads, each in a file named by its hash.
#[derive(Clone)]
pub(super) struct Uploads {
    folder: PathBuf,
    under_way: Arc<Mutex<BTreeSet<Hash>>>,
    /// Notified whenever an upload under way ends.
    ended: Arc<Notify>,
}

impl Uploads {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, under_way: Arc::default(), ended: Arc::default() }
    }

    fn path(&self, hash: Hash) -> PathBuf {
        self.folder.join(hash.to_string())
    }

    /// Waits until no other upload of this content is under way.
    async fn begin(&self, hash: Hash) -> Result<Uploading, Problem> {
        let deadline = Instant::now() + UPLOAD_TURN_DEADLINE;
        loop {
            // Created before the check, so that an end in between is not missed.
            let ended = self.ended.notified();
            if self.under_way.lock().insert(hash) {
                return Ok(Uploading { hash, uploads: self.clone() });
            }
            timeout_at(deadline, ended).await.map_err(|_| {
                problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "another upload of this content is under way",
                )
            })?;
        }
    }

    /// The upload's file, truncated to `length` and open for appending.
    async fn open(&self, path: &FilePath, length: u64) -> Result<File, Problem> {
        let failed = |error| write_failed(path, &error);
        if length == 0 {
            self.sweep().await.map_err(failed)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .await
            .map_err(failed)?;
        file.set_len(length).await.map_err(failed)?;
        Ok(file)
    }

    /// Creates the folder and makes room in it: drops uploads that were abandoned, and the oldest
    /// beyond the bound.
    async fn sweep(&self) -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).await?;
        let mut kept = Vec::new();
        let mut folder = fs::read_dir(&self.folder).await?;
        while let Some(entry) = folder.next_entry().await? {
            let touched = entry.metadata().await.and_then(|status| status.modified());
            let name = entry.file_name().to_string_lossy().parse::<Hash>().ok();
            if !name.is_some_and(|hash| self.under_way.lock().contains(&hash)) {
                kept.push((touched.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
            }
        }
        kept.sort();
        let surplus = (kept.len() + 1).saturating_sub(UNFINISHED_UPLOADS_MAX);
        for (index, (touched, path)) in kept.iter().enumerate() {
            let age = touched.elapsed().unwrap_or_default();
            if index < surplus || age > UNFINISHED_UPLOAD_KEPT {
                remove_file(path).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_must_name_a_part_within_the_size() {
        let part =
            |first, length, whole| Some(Part { first, length: Some(length), whole: Some(whole) });
        for (text, expected) in [
            ("bytes 0-9/10", part(0, 10, 10)),
            ("bytes 3-5/10", part(3, 3, 10)),
            ("bytes 9-9/10", part(9, 1, 10)),
            ("bytes 0-10/10", None),
            ("bytes 5-3/10", None),
            ("bytes 0-9/*", None),
            ("bytes */10", None),
            ("bytes +0-9/10", None),
            ("bytes 0-9", None),
            ("items 0-9/10", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("bytes 0-99999999999999999999/10", None),
        ] {
            assert_eq!(parse_content_range(text.as_bytes()), expected, "{text}");
        }
    }
}
