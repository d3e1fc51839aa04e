//! An asset's bytes as an HTTP answer: `Range`, ETag, and a stream that holds one piece at a time.
//!
//! A whole answer is hashed while it is sent, and its last piece is held back until the hash is
//! right: a damaged asset ends in a cut connection, never in a complete answer. A part of a large
//! asset is checked piece by piece where the store has the hash pairs for it: with BLAKE3, and if it
//! offers them at all.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::round_up_to_chunks_groups;
use bao_tree::io::sync::valid_ranges;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use bytes::Bytes;
use futures_util::stream;

use super::problem::{Problem, problem};
use crate::core::ids::{Digest, HashAlgorithm};
use crate::store::hasher::Hasher;
use crate::store::{BaoFiles, GROUP, READ_BYTES_MAX, SMALL_BYTES_MAX, Store, StoreError};

/// Answers a GET or HEAD for the content `digest`, with validators and length; the caller adds what
/// kind of bytes they are.
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
    // A range of another version is of no use: If-Range that does not name this hash voids it.
    let is_range_wanted =
        !headers.contains_key(header::IF_RANGE) || lists_etag(headers, header::IF_RANGE, &etag);
    let asked = match headers.get(header::RANGE) {
        Some(value) if is_range_wanted => parse_range(value.as_bytes(), size_bytes),
        _ => Asked::Whole,
    };
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
        body(store, digest, algorithm, range.clone()).await?
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

/// Sets a header whose value is known to be printable.
pub(crate) fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether the header lists `etag` or `*`. Weak validators (`W/`) do not match: ours are strong.
pub(crate) fn lists_etag(headers: &HeaderMap, name: header::HeaderName, etag: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').map(str::trim).any(|one| one == etag || one == "*")
    })
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Also for what is not understood, and for several ranges at once: RFC 9110 14.2 allows it.
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
        // More digits than fit are past every end.
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

/// The bytes of `range`, piece by piece. The first piece is read before the answer begins, so that
/// a store in trouble still gives an error answer.
async fn body(
    store: Arc<dyn Store>,
    digest: Digest,
    algorithm: HashAlgorithm,
    range: Range<u64>,
) -> Result<Body, Problem> {
    let is_whole = range == (0..digest.size_bytes);
    if !is_whole && digest.size_bytes <= SMALL_BYTES_MAX {
        let mut whole = Pieces::whole(store, digest, algorithm);
        let bytes = whole.next().await?.unwrap_or_default();
        // Both lie within the content, which is small.
        let (start, end) = (range.start as usize, range.end as usize);
        return Ok(Body::from(bytes.slice(start..end)));
    }
    let mut pieces = match is_whole {
        true => Pieces::whole(store, digest, algorithm),
        false => Pieces::part(store, digest, range).await?,
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
    /// What is still to be read.
    range: Range<u64>,
    proof: Proof,
}

/// How what was read is checked.
enum Proof {
    /// All of it together, at its end.
    Whole(Hasher),
    /// Each piece, by its hash pairs.
    Groups(Arc<BaoFiles>),
    None,
}

impl Pieces {
    fn whole(store: Arc<dyn Store>, digest: Digest, algorithm: HashAlgorithm) -> Self {
        let proof = Proof::Whole(Hasher::new(algorithm));
        Self { store, digest, range: 0..digest.size_bytes, proof }
    }

    async fn part(
        store: Arc<dyn Store>,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<Self, StoreError> {
        let files = store.bao_files(digest.hash).await?;
        let proof = files.map_or(Proof::None, |files| Proof::Groups(Arc::new(files)));
        Ok(Self { store, digest, range, proof })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let hash = self.digest.hash;
        let start = self.range.start;
        let end = self.range.end.min((start / READ_BYTES_MAX + 1) * READ_BYTES_MAX);
        let piece = self.store.read(hash, start..end).await?.ok_or(StoreError::NotFound(hash))?;
        self.range.start = end;
        let is_last = self.range.is_empty();
        let is_sound = match &mut self.proof {
            Proof::Whole(hasher) => {
                hasher.update(&piece);
                !is_last || hasher.hash() == hash
            }
            Proof::Groups(files) => {
                let (files, digest) = (files.clone(), self.digest);
                let check = move || is_sound(&files, &digest, start..end);
                let checked = tokio::task::spawn_blocking(check).await;
                checked.is_ok_and(|checked| checked.is_ok_and(|is_sound| is_sound))
            }
            Proof::None => true,
        };
        if is_sound {
            return Ok(Some(piece));
        }
        tracing::error!(%hash, "a stored asset is damaged");
        Err(StoreError::Disk(format!(
            "asset {hash} is damaged: its bytes are not those of its hash"
        )))
    }
}

/// Whether the chunk groups that hold `range` are those of the asset. Blocks on the disk.
fn is_sound(files: &BaoFiles, digest: &Digest, range: Range<u64>) -> io::Result<bool> {
    let outboard = PreOrderOutboard {
        root: blake3::Hash::from_bytes(digest.hash.0),
        tree: BaoTree::new(digest.size_bytes, GROUP),
        data: &files.outboard,
    };
    let chunks = ChunkNum::full_chunks(range.start)..ChunkNum::chunks(range.end);
    let groups = round_up_to_chunks_groups(ChunkRanges::from(chunks), GROUP);
    let mut sound_to = range.start;
    for sound in valid_ranges(outboard, &files.content, &groups) {
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
