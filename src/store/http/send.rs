//! Writing contents to a foreign store: small ones in batches, large ones from files.

use prost::Message as _;
use reqwest::header::{self, HeaderName};
use reqwest::{Method, Response, StatusCode};

use super::connection::{Request, RequestBody, announced_bytes};
use super::{BATCH_BYTES_MAX, Inner, Profile, SHORT_BYTES_MAX, WHOLE_BYTES_MAX, contract};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::store::messages::{
    self, MESSAGE_ENTRIES_MAX, MESSAGE_REPEATED_MAX, METADATA_HEADER, REPAIR_HEADER,
    UPLOAD_OFFSET_HEADER,
};
use crate::store::{
    Condition, Metadata, NewAsset, SMALL_BYTES_MAX, StoreError, Stored, VerifiedFile, hasher,
};
use crate::wire::proto::store as proto;

impl Inner {
    /// Implements [`Store::put`](crate::store::Store::put).
    pub(super) async fn send_small(
        &self,
        assets: Vec<NewAsset>,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        let profile = self.profile().await?;
        let mut done: Vec<Option<Result<Stored, StoreError>>> = Vec::with_capacity(assets.len());
        for asset in &assets {
            done.push(match refusal(asset, profile.algorithm) {
                Some(error) => Some(Err(error)),
                None if self.may_repair(&asset.digest.hash, &profile) => {
                    let body = RequestBody::Bytes(asset.content.clone());
                    Some(self.repair(asset.digest, &asset.metadata, body).await)
                }
                None => None,
            });
        }
        let good: Vec<&NewAsset> = assets
            .iter()
            .zip(&done)
            .filter_map(|(asset, done)| done.is_none().then_some(asset))
            .collect();
        let mut sent = self.send_batches(&good, &profile).await?.into_iter();
        let short = || Err(contract("it answered for fewer assets than it was given"));
        Ok(done
            .into_iter()
            .map(|done| match done {
                Some(result) => result,
                None => sent.next().unwrap_or_else(short),
            })
            .collect())
    }

    /// Whether the store holds a damaged copy that it lets us replace.
    fn may_repair(&self, hash: &Hash, profile: &Profile) -> bool {
        profile.offers("repair") && self.is_damaged(hash)
    }

    /// Replaces the store's damaged copy of an asset.
    async fn repair(
        &self,
        digest: Digest,
        metadata: &Metadata,
        body: RequestBody,
    ) -> Result<Stored, StoreError> {
        let Digest { hash, size_bytes } = digest;
        match self.put_blob(digest, metadata, body, 0, true).await? {
            Put::Stored(Stored::New) => {
                tracing::info!(%hash, size_bytes, "the store has replaced a damaged asset");
                self.note(hash, 0, &Condition::Whole);
                Ok(Stored::New)
            }
            Put::Stored(Stored::Existed) => Err(contract(format!(
                "it says that its copy of asset {hash} is right, but what it sends is not"
            ))),
            Put::Mismatch => Err(contract(format!("it refuses to repair asset {hash}"))),
        }
    }

    async fn send_batches(
        &self,
        assets: &[&NewAsset],
        profile: &Profile,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        let mut results: Vec<Result<Stored, StoreError>> = Vec::with_capacity(assets.len());
        let mut rest = assets;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(batch_length(rest, profile.offers("batch")));
            let sent = match batch {
                [only] => match self.push(only, profile.algorithm).await {
                    Err(error) if error.is_temporary() => Err(error),
                    result => Ok(vec![result]),
                },
                _ => self.push_batch(batch, profile.algorithm).await,
            };
            match sent {
                Ok(sent) => results.extend(sent),
                Err(error) if results.is_empty() => return Err(error),
                // Some are stored; each of the others gets the error.
                Err(error) => {
                    results.extend(rest.iter().map(|_| Err(error.clone())));
                    return Ok(results);
                }
            }
            rest = after;
        }
        Ok(results)
    }

    /// Stores one content, for a store without batches.
    async fn push(&self, asset: &NewAsset, algorithm: HashAlgorithm) -> Result<Stored, StoreError> {
        let hash = asset.digest.hash;
        let answer = self.post("/sync/push", &bundle(asset)).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => {
                let said: proto::PushResponse =
                    self.message(answer, SHORT_BYTES_MAX, MESSAGE_REPEATED_MAX).await?;
                if messages::hash(&said.hash).map_err(contract)? != hash {
                    return Err(contract(format!("it stored asset {hash} under another hash")));
                }
                Ok(match said.already_existed {
                    true => Stored::Existed,
                    false => Stored::New,
                })
            }
            StatusCode::UNPROCESSABLE_ENTITY => Err(mismatch(asset, algorithm)),
            _ => Err(self.failure("POST /sync/push", answer).await),
        }
    }

    async fn push_batch(
        &self,
        assets: &[&NewAsset],
        algorithm: HashAlgorithm,
    ) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        let call = "POST /sync/push-batch";
        let request =
            proto::PushBatchRequest { bundles: assets.iter().map(|asset| bundle(asset)).collect() };
        let answer = self.post("/sync/push-batch", &request).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.failure(call, answer).await);
        }
        let limit_bytes = SHORT_BYTES_MAX + assets.len() as u64 * 1024;
        let said: proto::PushBatchResponse =
            self.message(answer, limit_bytes, MESSAGE_REPEATED_MAX).await?;
        if said.results.len() != assets.len() {
            return Err(contract(format!(
                "{call} was given {} bundles and answered for {}",
                assets.len(),
                said.results.len()
            )));
        }
        let results = assets.iter().zip(said.results);
        results
            .map(|(asset, result)| {
                let hash = asset.digest.hash;
                if messages::hash(&result.hash).map_err(contract)? != hash {
                    return Err(contract(format!("{call} answered out of order")));
                }
                let text = format!("{call} answered {} for {hash}", result.status);
                Ok(match result.status {
                    200 => Ok(Stored::New),
                    208 => Ok(Stored::Existed),
                    413 => Err(StoreError::TooLarge(text)),
                    422 => Err(mismatch(asset, algorithm)),
                    507 => Err(StoreError::Full(text)),
                    429 | 500..=599 => Err(StoreError::Unreachable(text)),
                    _ => Err(contract(text)),
                })
            })
            .collect()
    }

    /// Sends a file's content, continuing an interrupted attempt.
    pub(super) async fn send_file(&self, file: &VerifiedFile) -> Result<Stored, StoreError> {
        let profile = self.profile().await?;
        let Digest { hash, size_bytes } = file.digest;
        let length = tokio::fs::metadata(&file.path).await.map(|file| file.len());
        if length.is_ok_and(|length| length != size_bytes) {
            let got = file_hash(file, profile.algorithm).await?;
            return Err(StoreError::Mismatch { expected: hash, got });
        }
        if !profile.offers("blobs") {
            return self.upload_whole(file, profile.algorithm).await;
        }
        if self.may_repair(&hash, &profile) {
            let body = RequestBody::File(file.path.clone(), 0, size_bytes);
            return self.repair(file.digest, &file.metadata, body).await;
        }
        let path = format!("/sync/blobs/{hash}");
        let call = "HEAD /sync/blobs";
        let answer = self.connection.send(&Request::new(Method::HEAD, path)).await?;
        let offset = match answer.status() {
            StatusCode::OK => match announced_bytes(&answer) {
                Some(held) if held != size_bytes => {
                    return Err(contract(format!(
                        "it holds asset {hash} with {held} bytes instead of {size_bytes}"
                    )));
                }
                _ => return Ok(Stored::Existed),
            },
            StatusCode::NOT_FOUND => header_number(&answer, UPLOAD_OFFSET_HEADER)
                .filter(|offset| *offset < size_bytes)
                .unwrap_or(0),
            _ => return Err(self.failure(call, answer).await),
        };
        match self.put_file(file, offset).await? {
            Put::Stored(stored) => Ok(stored),
            // What the store kept of an earlier attempt was damaged: send everything once more.
            Put::Mismatch if offset > 0 => match self.put_file(file, 0).await? {
                Put::Stored(stored) => Ok(stored),
                Put::Mismatch => Err(file_mismatch(file, profile.algorithm).await),
            },
            Put::Mismatch => Err(file_mismatch(file, profile.algorithm).await),
        }
    }

    async fn put_file(&self, file: &VerifiedFile, offset: u64) -> Result<Put, StoreError> {
        let length = file.digest.size_bytes - offset;
        let body = RequestBody::File(file.path.clone(), offset, length);
        self.put_blob(file.digest, &file.metadata, body, offset, false).await
    }

    async fn put_blob(
        &self,
        digest: Digest,
        metadata: &Metadata,
        body: RequestBody,
        offset: u64,
        is_repair: bool,
    ) -> Result<Put, StoreError> {
        let call = "PUT /sync/blobs";
        let Digest { hash, size_bytes } = digest;
        let mut request = Request::new(Method::PUT, format!("/sync/blobs/{hash}"))
            .header(header::CONTENT_TYPE, "application/octet-stream")?
            .header(
                HeaderName::from_static(METADATA_HEADER),
                &messages::metadata_header(metadata),
            )?;
        if offset > 0 {
            let range = format!("bytes {offset}-{}/{size_bytes}", size_bytes - 1);
            request = request.header(header::CONTENT_RANGE, &range)?;
        }
        if is_repair {
            request = request.header(HeaderName::from_static(REPAIR_HEADER), "1")?;
        }
        request.body = body;
        let answer = self.connection.send(&request).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(Put::Stored(Stored::New)),
            StatusCode::OK => Ok(Put::Stored(Stored::Existed)),
            StatusCode::UNPROCESSABLE_ENTITY => Ok(Put::Mismatch),
            StatusCode::ACCEPTED | StatusCode::CONFLICT => Err(StoreError::Unreachable(format!(
                "{call} kept a part of {}: to be continued",
                hash
            ))),
            _ => Err(self.failure(call, answer).await),
        }
    }

    /// Sends a file's content as one message.
    async fn upload_whole(
        &self,
        file: &VerifiedFile,
        algorithm: HashAlgorithm,
    ) -> Result<Stored, StoreError> {
        let size_bytes = file.digest.size_bytes;
        if size_bytes > WHOLE_BYTES_MAX {
            return Err(StoreError::TooLarge(format!(
                "asset {} has {size_bytes} bytes, and a store without the feature \"blobs\" is \
                 given at most {WHOLE_BYTES_MAX}",
                file.digest.hash
            )));
        }
        let content = tokio::fs::read(&file.path).await.map_err(|error| {
            StoreError::Disk(format!("cannot read {}: {error}", file.path.display()))
        })?;
        let asset = NewAsset {
            digest: file.digest,
            content: content.into(),
            metadata: file.metadata.clone(),
        };
        self.push(&asset, algorithm).await
    }
}

/// The result of an upload.
enum Put {
    Stored(Stored),
    Mismatch,
}

fn header_number(answer: &Response, name: &str) -> Option<u64> {
    answer.headers().get(name)?.to_str().ok()?.parse().ok()
}

fn bundle(asset: &NewAsset) -> proto::Bundle {
    proto::Bundle {
        digest: Some(proto::Digest {
            hash: asset.digest.hash.as_bytes().to_vec().into(),
            size_bytes: asset.digest.size_bytes,
            ..proto::Digest::default()
        }),
        content: asset.content.clone(),
        metadata: Some(messages::metadata_message(&asset.metadata)),
    }
}

/// The reason to refuse an asset without sending it.
fn refusal(asset: &NewAsset, algorithm: HashAlgorithm) -> Option<StoreError> {
    let length = asset.content.len() as u64;
    if length > SMALL_BYTES_MAX {
        return Some(StoreError::TooLarge(format!(
            "{length} bytes at once; contents over {SMALL_BYTES_MAX} bytes come as files"
        )));
    }
    (length != asset.digest.size_bytes).then(|| StoreError::Mismatch {
        expected: asset.digest.hash,
        got: algorithm.hash(&asset.content),
    })
}

/// The error after the store claimed that a content does not match its hash, which may be false.
fn mismatch(asset: &NewAsset, algorithm: HashAlgorithm) -> StoreError {
    judge_mismatch(asset.digest.hash, algorithm.hash(&asset.content))
}

async fn file_mismatch(file: &VerifiedFile, algorithm: HashAlgorithm) -> StoreError {
    match file_hash(file, algorithm).await {
        Ok(got) => judge_mismatch(file.digest.hash, got),
        Err(error) => error,
    }
}

async fn file_hash(file: &VerifiedFile, algorithm: HashAlgorithm) -> Result<Hash, StoreError> {
    let path = file.path.clone();
    tokio::task::spawn_blocking(move || hasher::hash_file(&path, algorithm))
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| StoreError::Disk(format!("cannot read {}: {error}", file.path.display())))
}

fn judge_mismatch(expected: Hash, got: Hash) -> StoreError {
    if got == expected {
        return contract(format!(
            "it says that asset {expected} does not match its hash, but it does"
        ));
    }
    StoreError::Mismatch { expected, got }
}

/// How many of `assets` fit into one request.
fn batch_length(assets: &[&NewAsset], has_batches: bool) -> usize {
    if !has_batches {
        return 1;
    }
    let mut bytes = 0;
    let fits = |asset: &&&NewAsset| {
        bytes += bundle(asset).encoded_len() as u64;
        bytes <= BATCH_BYTES_MAX
    };
    let count = assets.iter().take(MESSAGE_ENTRIES_MAX).take_while(fits).count();
    count.max(1)
}
