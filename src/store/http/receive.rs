//! Reading contents and rows from a foreign store: by range, or as whole assets in bundles.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use reqwest::{Method, StatusCode, header};

use super::connection::{Request, announced_bytes};
use super::{BATCH_BYTES_MAX, BUNDLE_EXTRA_BYTES_MAX, Inner, WHOLE_BYTES_MAX, contract};
use crate::core::ids::{Digest, Hash};
use crate::store::messages::{self, MESSAGE_BYTES_MAX, MESSAGE_ENTRIES_MAX, MESSAGE_REPEATED_MAX};
use crate::store::{Asset, READ_BYTES_MAX, SMALL_BYTES_MAX, StoreError};
use crate::wire::proto::store as proto;

impl Inner {
    /// Requests bundles. Checks that the answer contains only requested assets, each with a digest.
    pub(super) async fn pull(
        &self,
        hashes: &BTreeSet<Hash>,
        metadata_only: bool,
        content_bytes: u64,
    ) -> Result<Pulled, StoreError> {
        let request = proto::PullRequest {
            hashes: hashes.iter().map(|hash| hash.as_bytes().to_vec().into()).collect(),
            metadata_only,
        };
        let answer = self.post("/sync/pull", &request).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.failure("POST /sync/pull", answer).await);
        }
        let limit_bytes = MESSAGE_BYTES_MAX.max(content_bytes) + BUNDLE_EXTRA_BYTES_MAX;
        let message: proto::PullResponse =
            self.message(answer, limit_bytes, MESSAGE_REPEATED_MAX).await?;
        let mut pulled = Pulled::default();
        let unasked = |hash| contract(format!("it sent asset {hash}, which was not asked for"));
        for bundle in message.bundles {
            let asset = messages::asset(&bundle).map_err(contract)?;
            let Digest { hash, size_bytes } = asset.entry.digest;
            if !hashes.contains(&hash) {
                return Err(unasked(hash));
            }
            let got = bundle.content.len() as u64;
            // A store that does not know `metadata_only` sends the content anyway.
            if got != size_bytes && !(metadata_only && got == 0) {
                return Err(contract(format!(
                    "it says asset {hash} has {size_bytes} bytes and sent {got}"
                )));
            }
            pulled.bundles.insert(hash, (asset, bundle.content));
        }
        for raw in &message.missing {
            let hash = messages::hash(raw).map_err(contract)?;
            if !hashes.contains(&hash) {
                return Err(unasked(hash));
            }
            pulled.missing.insert(hash);
        }
        Ok(pulled)
    }

    /// Reads a whole content from a store without "blobs".
    pub(super) async fn read_whole(&self, hash: Hash) -> Result<Option<Bytes>, StoreError> {
        let kept = {
            let whole = self.whole.lock();
            whole.clone().filter(|(kept, _)| *kept == hash)
        };
        if let Some((_, content)) = kept {
            return Ok(Some(content));
        }
        let mut pulled = self.pull(&BTreeSet::from([hash]), false, WHOLE_BYTES_MAX).await?;
        let Some((_, content)) = pulled.bundles.remove(&hash) else {
            return match pulled.missing.contains(&hash) {
                true => Ok(None),
                false => Err(contract(format!("it said nothing about asset {hash}"))),
            };
        };
        if content.len() as u64 > READ_BYTES_MAX {
            self.set_whole(Some((hash, content.clone())));
        }
        Ok(Some(content))
    }

    pub(super) async fn read_by_pull(
        &self,
        hash: Hash,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(content) = self.read_whole(hash).await? else {
            return Ok(None);
        };
        let size_bytes = content.len() as u64;
        if range.end > size_bytes {
            return Err(out_of_range(hash, &range, size_bytes));
        }
        if range.end == size_bytes {
            // The caller has read the content to its end and will not need the cached copy.
            self.set_whole(None);
        }
        Ok(Some(slice(&content, range)))
    }

    pub(super) async fn read_by_range(
        &self,
        hash: Hash,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StoreError> {
        let call = "GET /sync/blobs";
        let path = format!("/sync/blobs/{hash}");
        let length = range.end - range.start;
        let request = match length {
            // A range cannot be empty.
            0 => Request::new(Method::HEAD, path),
            _ => Request::new(Method::GET, path)
                .header(header::RANGE, &format!("bytes={}-{}", range.start, range.end - 1))?,
        };
        let answer = self.connection.send(&request).await?;
        match answer.status() {
            StatusCode::OK if length == 0 => {
                let size_bytes = announced_bytes(&answer)
                    .ok_or_else(|| contract(format!("{call} announced no length")))?;
                if range.end > size_bytes {
                    return Err(out_of_range(hash, &range, size_bytes));
                }
                Ok(Some(Bytes::new()))
            }
            StatusCode::PARTIAL_CONTENT => {
                let begin = format!("bytes {}-{}/", range.start, range.end - 1);
                let given = answer.headers().get(header::CONTENT_RANGE);
                let given = given.map(|value| value.as_bytes()).unwrap_or_default();
                if !given.starts_with(begin.as_bytes()) {
                    return Err(contract(format!(
                        "{call} was asked for {begin} and answered {:?}",
                        String::from_utf8_lossy(given)
                    )));
                }
                let content = self.connection.body(answer, length).await?;
                exactly(length, content).map(Some)
            }
            // The whole content: correct only if it was requested.
            StatusCode::OK if range.start == 0 => {
                let content = self.connection.body(answer, length).await?;
                exactly(length, content).map(Some)
            }
            StatusCode::OK => Err(contract(format!("{call} does not honour ranges"))),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::RANGE_NOT_SATISFIABLE => Err(StoreError::Unsupported(format!(
                "a read of {range:?} from {hash}, which is shorter"
            ))),
            _ => Err(self.failure(call, answer).await),
        }
    }

    /// Implements [`Store::read_small`](crate::store::Store::read_small).
    pub(super) async fn read_small(
        &self,
        digests: &[Digest],
    ) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut contents: BTreeMap<Hash, Option<Bytes>> = BTreeMap::new();
        let mut wanted: Vec<Digest> = digests.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(large) = wanted.iter().find(|one| one.size_bytes > SMALL_BYTES_MAX) {
            return Err(StoreError::TooLarge(format!(
                "asset {} has {} bytes, which is not small",
                large.hash, large.size_bytes
            )));
        }
        while !wanted.is_empty() {
            let mut asked = BTreeSet::new();
            let mut content_bytes = 0;
            for digest in &wanted {
                let is_full = content_bytes + digest.size_bytes > BATCH_BYTES_MAX
                    || asked.len() == MESSAGE_ENTRIES_MAX;
                if is_full {
                    break;
                }
                content_bytes += digest.size_bytes;
                asked.insert(digest.hash);
            }
            let mut pulled = self.pull(&asked, false, content_bytes).await?;
            let before = wanted.len();
            let mut refused = None;
            wanted.retain(|digest| {
                if let Some((asset, content)) = pulled.bundles.remove(&digest.hash) {
                    let got = asset.entry.digest.size_bytes;
                    if got != digest.size_bytes {
                        refused = Some(contract(format!(
                            "asset {} has {got} bytes instead of {}",
                            digest.hash, digest.size_bytes
                        )));
                    }
                    contents.insert(digest.hash, Some(content));
                    return false;
                }
                if pulled.missing.contains(&digest.hash) {
                    contents.insert(digest.hash, None);
                    return false;
                }
                true
            });
            if let Some(refused) = refused {
                return Err(refused);
            }
            // Assets in neither list did not fit into the answer and are requested again.
            if wanted.len() == before {
                return Err(contract("it was asked for small assets and sent nothing"));
            }
        }
        Ok(digests.iter().map(|digest| contents.get(&digest.hash).cloned().flatten()).collect())
    }
}

/// The answer to a pull.
#[derive(Default)]
pub(super) struct Pulled {
    pub(super) bundles: BTreeMap<Hash, (Asset, Bytes)>,
    pub(super) missing: BTreeSet<Hash>,
}

fn slice(content: &Bytes, range: Range<u64>) -> Bytes {
    // The caller has checked the range against the length, which fits a usize.
    content.slice(range.start as usize..range.end as usize)
}

fn exactly(length: u64, content: Bytes) -> Result<Bytes, StoreError> {
    let got = content.len() as u64;
    if got != length {
        return Err(contract(format!("it sent {got} bytes instead of {length}")));
    }
    Ok(content)
}

fn out_of_range(hash: Hash, range: &Range<u64>, size_bytes: u64) -> StoreError {
    StoreError::Unsupported(format!(
        "a read of {range:?} from {hash}, which has {size_bytes} bytes"
    ))
}
