//! Serves an asset's content over HTTP: `Range`, ETag, and a stream that holds one piece at a time.
//!
//! A whole asset is hashed while it is sent, and its last piece is held back until the hash is
//! right: sending a damaged asset ends in a cut connection, never in a complete answer. For a part
//! of a large asset each piece is verified before it is sent, in the same buffer: by its hash pairs
//! if the store has them (BLAKE3, embedded), otherwise by its hash from a reading of the whole
//! asset just before, which was right. That reading delays the first byte, so of an asset over
//! [`PART_OF_BYTES_MAX`] the whole is sent instead. Damage is reported to the store.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::round_up_to_chunks_groups;
use bao_tree::io::sync::{ReadAt, valid_ranges};
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use bytes::Bytes;
use futures_util::stream;

use super::problem::{Problem, problem};
use crate::core::ids::{Digest, HashAlgorithm};
use crate::store::hasher::Hasher;
use crate::store::{
    BaoFiles, Condition, GROUP, READ_BYTES_MAX, SMALL_BYTES_MAX, Store, StoreError,
};

/// The size of a chunk group. Pieces begin and end at multiples of it.
const GROUP_BYTES: u64 = GROUP.bytes() as u64;

/// The largest asset that is read as a whole to prove a part of it: some seconds on a common disk.
const PART_OF_BYTES_MAX: u64 = 1 << 30;

/// Answers a GET or HEAD for the content `digest` with validators and length; the caller adds the
/// content type.
pub(crate) async fn answer(
    store: Arc<dyn Store>,
    digest: Digest,
    algorithm: HashAlgorithm,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let etag = format!("\"{}\"", digest.hash);
    if lists_etag(headers, header::IF_NONE_MATCH, &etag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        insert(response.headers_mut(), header::ETAG, &etag);
        return Ok(response);
    }
    let size_bytes = digest.size_bytes;
    // A range of another version is useless: an If-Range that does not name this hash disables it.
    let is_range_wanted =
        !headers.contains_key(header::IF_RANGE) || lists_etag(headers, header::IF_RANGE, &etag);
    let mut asked = match headers.get(header::RANGE) {
        Some(value) if is_range_wanted => parse_range(value.as_bytes(), size_bytes),
        _ => Asked::Whole,
    };
    let mut files = None;
    if matches!(asked, Asked::Part(_)) && size_bytes > SMALL_BYTES_MAX {
        files = store.bao_files(digest.hash).await?;
        if files.is_none() && size_bytes > PART_OF_BYTES_MAX {
            asked = Asked::Whole;
        }
    }
    let (status, range) = match asked {
        Asked::Whole => (StatusCode::OK, 0..size_bytes),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Unsatisfiable => {
            let mut response = problem(
                StatusCode::RANGE_NOT_SATISFIABLE,
                format!("the range lies outside of the {size_bytes} bytes"),
            )
            .into_response();
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size_bytes}"));
            return Ok(response);
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        body(store, digest, algorithm, range.clone(), files).await?
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    insert(headers, header::ETAG, &etag);
    insert(headers, header::ACCEPT_RANGES, "bytes");
    insert(headers, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        insert(
            headers,
            header::CONTENT_RANGE,
            &format!("bytes {}-{}/{size_bytes}", range.start, range.end - 1),
        );
    }
    Ok(response)
}

/// Sets a header whose value is printable.
pub(crate) fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether the header lists `etag` or `*`. Weak validators (`W/`) do not match, because ours are
/// strong.
pub(crate) fn lists_etag(headers: &HeaderMap, name: header::HeaderName, etag: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').map(str::trim).any(|one| one == etag || one == "*")
    })
}

/// What a `Range` header requests.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Also for a malformed header and for several ranges at once, as RFC 9110 14.2 allows.
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
}

fn parse_range(value: &[u8], size_bytes: u64) -> Asked {
    let Some((first, last)) = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.strip_prefix("bytes="))
        .filter(|ranges| !ranges.contains(','))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Asked::Whole;
    };
    let number = |text: &str| -> Option<u64> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number that does not fit is beyond every end.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let range = match (first, number(first), last, number(last)) {
        ("", _, _, Some(suffix)) => size_bytes.saturating_sub(suffix)..size_bytes,
        (_, Some(first), "", _) => first..size_bytes,
        (_, Some(first), _, Some(last)) if first <= last => {
            first..last.saturating_add(1).min(size_bytes)
        }
        _ => return Asked::Whole,
    };
    if range.start >= range.end {
        return Asked::Unsatisfiable;
    }
    Asked::Part(range)
}

/// The content of `range`, piece by piece. The first piece is read before the answer begins, so
/// that a failing store still causes an error answer.
async fn body(
    store: Arc<dyn Store>,
    digest: Digest,
    algorithm: HashAlgorithm,
    range: Range<u64>,
    files: Option<BaoFiles>,
) -> Result<Body, Problem> {
    let is_whole = range == (0..digest.size_bytes);
    if !is_whole && digest.size_bytes <= SMALL_BYTES_MAX {
        let mut whole = Pieces::whole(store, digest, algorithm);
        let bytes = whole.next().await?.unwrap_or_default();
        // Both are within the content, which is small.
        let (start, end) = (range.start as usize, range.end as usize);
        return Ok(Body::from(bytes.slice(start..end)));
    }
    let mut pieces = match is_whole {
        true => Pieces::whole(store, digest, algorithm),
        false => Pieces::part(store, digest, algorithm, range, files).await?,
    };
    let Some(first) = pieces.next().await? else {
        return Ok(Body::empty());
    };
    let rest = stream::try_unfold(pieces, async |mut pieces| {
        Ok::<_, StoreError>(pieces.next().await?.map(|piece| (piece, pieces)))
    });
    let first = stream::once(async { Ok(first) });
    Ok(Body::from_stream(futures_util::StreamExt::chain(first, rest)))
}

struct Pieces {
    store: Arc<dyn Store>,
    digest: Digest,
    /// The range that is still to be read.
    range: Range<u64>,
    proof: Proof,
}

/// How content is verified after it was read.
enum Proof {
    /// The whole at its end.
    Whole(Hasher),
    /// Each chunk group by its hash pairs.
    Groups(Arc<BaoFiles>),
    /// Each piece by its hash, computed when the whole asset was read and found right.
    Pieces(Vec<blake3::Hash>),
}

impl Pieces {
    fn whole(store: Arc<dyn Store>, digest: Digest, algorithm: HashAlgorithm) -> Self {
        let proof = Proof::Whole(Hasher::new(algorithm));
        Self { store, digest, range: 0..digest.size_bytes, proof }
    }

    async fn part(
        store: Arc<dyn Store>,
        digest: Digest,
        algorithm: HashAlgorithm,
        range: Range<u64>,
        files: Option<BaoFiles>,
    ) -> Result<Self, StoreError> {
        let proof = match files {
            Some(files) => Proof::Groups(Arc::new(files)),
            None => {
                let mut whole = Self::whole(store.clone(), digest, algorithm);
                let mut hashes = Vec::new();
                while let Some(piece) = whole.next().await? {
                    hashes.push(blake3::hash(&piece));
                }
                Proof::Pieces(hashes)
            }
        };
        Ok(Self { store, digest, range, proof })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let Digest { hash, size_bytes } = self.digest;
        let start = self.range.start;
        let piece_start = start - start % READ_BYTES_MAX;
        let end = self.range.end.min(piece_start + READ_BYTES_MAX);
        let read = match &self.proof {
            Proof::Whole(_) => start..end,
            // Proofs cover whole groups, or a whole piece.
            Proof::Groups(_) => {
                start - start % GROUP_BYTES..end.next_multiple_of(GROUP_BYTES).min(size_bytes)
            }
            Proof::Pieces(_) => piece_start..size_bytes.min(piece_start + READ_BYTES_MAX),
        };
        let bytes = self.store.read(hash, read.clone()).await?;
        let bytes = bytes.ok_or(StoreError::NotFound(hash))?;
        self.range.start = end;
        let mut is_sound = self.check(&bytes, read.start).await;
        if !is_sound
            && matches!(self.proof, Proof::Groups(_))
            && self.store.verify(hash).await? == Condition::Whole
            && let Some(files) = self.store.bao_files(hash).await?
        {
            // The hash pairs were wrong, and the store has rebuilt them.
            self.proof = Proof::Groups(Arc::new(files));
            is_sound = self.check(&bytes, read.start).await;
        }
        if !is_sound {
            return Err(self.damage().await);
        }
        // Both are within what was read, which is a piece at most.
        let part = (start - read.start) as usize..(end - read.start) as usize;
        Ok(Some(bytes.slice(part)))
    }

    /// Whether the bytes read from `start` on are right, as far as this can be known yet.
    async fn check(&mut self, bytes: &Bytes, start: u64) -> bool {
        match &mut self.proof {
            Proof::Whole(hasher) => {
                hasher.update(bytes);
                !self.range.is_empty() || hasher.hash() == self.digest.hash
            }
            Proof::Groups(files) => {
                let (files, digest) = (files.clone(), self.digest);
                let part = Part { start, bytes: bytes.clone() };
                let check = move || is_sound(&files.outboard, &digest, part);
                let checked = tokio::task::spawn_blocking(check).await;
                checked.is_ok_and(|checked| checked.is_ok_and(|is_sound| is_sound))
            }
            Proof::Pieces(hashes) => {
                // The number of hashes fits into memory.
                hashes.get((start / READ_BYTES_MAX) as usize) == Some(&blake3::hash(bytes))
            }
        }
    }

    /// Makes the store read the asset again and mark it if it is damaged.
    async fn damage(&self) -> StoreError {
        let hash = self.digest.hash;
        match self.store.verify(hash).await {
            Ok(Condition::Whole) => StoreError::Unreachable(format!(
                "asset {hash} was read wrong once and right the next time: try again"
            )),
            Ok(Condition::Absent) => StoreError::NotFound(hash),
            Ok(Condition::Damaged(_)) | Err(_) => StoreError::Damaged(hash),
        }
    }
}

/// Content of an asset from an offset on.
struct Part {
    start: u64,
    bytes: Bytes,
}

impl Part {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }
}

impl ReadAt for Part {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let at = at.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let rest = at.and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// Whether the content, which is whole chunk groups, is right. Blocks on the disk.
fn is_sound(outboard: &File, digest: &Digest, part: Part) -> io::Result<bool> {
    let outboard = PreOrderOutboard {
        root: blake3::Hash::from_bytes(digest.hash.0),
        tree: BaoTree::new(digest.size_bytes, GROUP),
        data: outboard,
    };
    let range = part.range();
    let chunks = ChunkNum::full_chunks(range.start)..ChunkNum::chunks(range.end);
    let groups = round_up_to_chunks_groups(ChunkRanges::from(chunks), GROUP);
    let mut sound_to = range.start;
    for sound in valid_ranges(outboard, part, &groups) {
        let sound = sound?;
        if sound.start.to_bytes() > sound_to {
            return Ok(false);
        }
        sound_to = sound_to.max(sound.end.to_bytes());
    }
    Ok(sound_to >= range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let part = |range| Asked::Part(range);
        for (text, expected) in [
            ("bytes=0-0", part(0..1)),
            ("bytes=0-9", part(0..10)),
            ("bytes=3-", part(3..10)),
            ("bytes=3-99", part(3..10)),
            ("bytes=-4", part(6..10)),
            ("bytes=-99", part(0..10)),
            ("bytes=9-18446744073709551615", part(9..10)),
            ("bytes=9-99999999999999999999999", part(9..10)),
            ("bytes=10-", Asked::Unsatisfiable),
            ("bytes=10-12", Asked::Unsatisfiable),
            ("bytes=99999999999999999999999-", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=5-3", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("items=0-1", Asked::Whole),
        ] {
            assert_eq!(parse_range(text.as_bytes(), 10), expected, "{text}");
        }
        assert_eq!(parse_range(b"bytes=0-", 0), Asked::Unsatisfiable);
        assert_eq!(parse_range(&[0xff], 10), Asked::Whole);
    }
}
