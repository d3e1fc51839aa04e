//! Reading request bodies: within bounds, and hashed while they are written to a private file.
//!
//! A [`TempFile`] is created with `O_EXCL` and mode 0600 under a random name, and removed when it
//! is dropped. After a crash the owner of the folder removes what is left.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::problem::{Problem, problem};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::store::hasher::Hasher;
use crate::store::{SMALL_BYTES_MAX, Store, StoreError};

/// How many bytes are written between two checks of the free space when no length was announced.
pub(crate) const SPACE_CHECK_BYTES: u64 = 64 * 1024 * 1024;

/// How long a whole message may take to arrive while others wait for their turn: the longest has 16
/// MiB, from a program on this device.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(60);

/// A file that is removed when this is dropped.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    /// Creates an empty file in `folder`.
    pub(crate) async fn create(folder: &Path) -> Result<(Self, File), Problem> {
        let name = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>());
        let path = folder.join(format!("{name}.part"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .await
            .map_err(|error| write_failed(&path, &error))?;
        Ok((Self(path), file))
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // Often it is gone already, because the store has taken the file over.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A received content.
pub(crate) enum Received {
    /// At most [`SMALL_BYTES_MAX`] bytes, in memory.
    Small(Digest, Bytes),
    /// More bytes, in a file.
    Large(Digest, TempFile),
}

impl Received {
    /// Refuses a content whose hash differs from the announced one.
    pub(crate) fn check(&self, expected: Hash) -> Result<(), StoreError> {
        let (Self::Small(digest, _) | Self::Large(digest, _)) = self;
        let got = digest.hash;
        if got != expected {
            return Err(StoreError::Mismatch { expected, got });
        }
        Ok(())
    }
}

/// Receives a content of any size in constant memory. Leaves nothing behind on an error.
pub(crate) async fn receive(
    body: Body,
    folder: &Path,
    algorithm: HashAlgorithm,
    store: &dyn Store,
    largest_bytes: Option<u64>,
) -> Result<Received, Problem> {
    let mut stream = body.into_data_stream();
    let mut receiving = Receiving::new(folder, algorithm, largest_bytes);
    while let Some(chunk) = next_chunk(&mut stream).await? {
        receiving.take(&chunk, store).await?;
    }
    receiving.finish().await
}

/// A content that is being received: in memory while it is small, then in a file. Leaves nothing
/// behind when it is dropped.
pub(crate) struct Receiving {
    hasher: Hasher,
    size_bytes: u64,
    largest_bytes: Option<u64>,
    folder: PathBuf,
    /// The bytes of a content that is small so far.
    start: BytesMut,
    large: Option<Large>,
}

struct Large {
    temp: TempFile,
    file: File,
    /// How much had come when the free space was last looked at.
    checked_bytes: u64,
}

impl Receiving {
    /// Nothing yet. Large contents pass through `folder`.
    pub(crate) fn new(folder: &Path, algorithm: HashAlgorithm, largest_bytes: Option<u64>) -> Self {
        Self {
            hasher: Hasher::new(algorithm),
            size_bytes: 0,
            largest_bytes,
            folder: folder.to_owned(),
            start: BytesMut::new(),
            large: None,
        }
    }

    /// How many bytes have come.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Takes the next bytes.
    pub(crate) async fn take(&mut self, chunk: &[u8], store: &dyn Store) -> Result<(), Problem> {
        self.size_bytes += chunk.len() as u64;
        check_largest(self.size_bytes, self.largest_bytes)?;
        self.hasher.update(chunk);
        if let Some(large) = &mut self.large {
            if self.size_bytes >= large.checked_bytes + SPACE_CHECK_BYTES {
                store.check_space(SPACE_CHECK_BYTES).await?;
                large.checked_bytes = self.size_bytes;
            }
            let written = large.file.write_all(chunk).await;
            return written.map_err(|error| write_failed(&self.folder, &error));
        }
        self.start.extend_from_slice(chunk);
        if self.size_bytes > SMALL_BYTES_MAX {
            let (temp, mut file) = TempFile::create(&self.folder).await?;
            let start = std::mem::take(&mut self.start);
            let written = file.write_all(&start).await;
            written.map_err(|error| write_failed(&self.folder, &error))?;
            self.large = Some(Large { temp, file, checked_bytes: 0 });
        }
        Ok(())
    }

    /// The whole content.
    pub(crate) async fn finish(self) -> Result<Received, Problem> {
        let digest = Digest { hash: self.hasher.hash(), size_bytes: self.size_bytes };
        let Some(Large { temp, mut file, .. }) = self.large else {
            return Ok(Received::Small(digest, self.start.freeze()));
        };
        // The last write to the file may still be under way in the background.
        file.flush().await.map_err(|error| write_failed(&self.folder, &error))?;
        Ok(Received::Large(digest, temp))
    }
}

/// Refuses a content larger than the store accepts.
pub(crate) fn check_largest(size_bytes: u64, largest_bytes: Option<u64>) -> Result<(), Problem> {
    match largest_bytes {
        Some(largest) if size_bytes > largest => Err(problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the content has {size_bytes} bytes or more, the store takes {largest}"),
        )),
        _ => Ok(()),
    }
}

/// Reads the next piece of a body.
pub(crate) async fn next_chunk(stream: &mut BodyDataStream) -> Result<Option<Bytes>, Problem> {
    stream.next().await.transpose().map_err(|error| {
        problem(StatusCode::BAD_REQUEST, format!("the body ended before it was whole: {error}"))
    })
}

/// Reads a whole body of at most `limit_bytes`.
pub(crate) async fn collect(body: Body, limit_bytes: u64) -> Result<Bytes, Problem> {
    let mut stream = body.into_data_stream();
    let mut whole = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut stream).await? {
        if (whole.len() + chunk.len()) as u64 > limit_bytes {
            return Err(too_long(limit_bytes));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// Like [`collect`], but with a deadline, because other requests wait for their turn.
pub(crate) async fn collect_in_turn(body: Body, limit_bytes: u64) -> Result<Bytes, Problem> {
    let late = || problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time: try again");
    timeout(MESSAGE_DEADLINE, collect(body, limit_bytes)).await.map_err(|_| late())?
}

/// Refuses a body by its announced length, before its first byte is requested.
pub(crate) fn check_announced(headers: &HeaderMap, limit_bytes: u64) -> Result<(), Problem> {
    match announced_bytes(headers) {
        Some(bytes) if bytes > limit_bytes => Err(too_long(limit_bytes)),
        _ => Ok(()),
    }
}

fn too_long(limit_bytes: u64) -> Problem {
    problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {limit_bytes} bytes"))
}

/// The body's length if the request announces it.
pub(crate) fn announced_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses a content type other than `expected`, ignoring case.
pub(crate) fn check_type(headers: &HeaderMap, expected: &str) -> Result<(), Problem> {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    match (given.next(), given.next()) {
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(expected.as_bytes()) => Ok(()),
        _ => Err(problem(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the content type must be {expected}"),
        )),
    }
}

/// The problem for a failed write to a file of ours: 507 when the disk is full.
pub(crate) fn write_failed(path: &Path, error: &io::Error) -> Problem {
    let status = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    problem(status, format!("cannot write {}: {error}", path.display()))
}
