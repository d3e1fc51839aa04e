//! Copies the contents of a bound directory's files to the store.
//!
//! N1  A version is written to the journal only when its content is in the store.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read, Seek};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;

use super::disk::{ReadError, Root, Seen};
use super::shared::{Shared, blocking};
use crate::core::attributes::{Attribute, Attributes};
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::Content;
use crate::core::ids::{Digest, Hash};
use crate::store::hasher::hash_file;
use crate::store::{Metadata, NewAsset, StoreError, VerifiedFile, sniff};

/// A file of a bound directory whose content must be added to the store.
#[derive(Debug, Clone)]
pub(crate) struct ToStore {
    pub(crate) path: FolderPath,
    pub(crate) seen: Option<Seen>,
    pub(crate) content: Content,
    /// The bytes of a small file.
    pub(crate) bytes: Option<Bytes>,
}

/// Why a content is not in the store.
#[derive(Debug, Clone)]
pub(crate) enum NotStored {
    /// It changes while it is read: try again soon.
    Unstable,
    /// Why, for people: try again later.
    Why(String),
}

/// Stores contents; returns for each whether the store holds it.
pub(crate) async fn store(
    shared: &Shared,
    root: &Arc<Root>,
    contents: &[ToStore],
) -> Result<Vec<std::result::Result<(), NotStored>>> {
    let mut results: Vec<_> = contents.iter().map(|_| Ok(())).collect();
    let mut small = BTreeMap::new();
    for (at, item) in contents.iter().enumerate() {
        let Some((digest, bytes)) = digest(&item.content).map(|d| (d, item.bytes.clone())) else {
            continue;
        };
        match bytes {
            Some(content) => {
                let metadata = metadata(item, &mut Cursor::new(&content));
                small.insert(at, NewAsset { digest, content, metadata });
            }
            None => results[at] = large(shared, root, item, digest).await?,
        }
    }
    let (places, assets): (Vec<usize>, Vec<NewAsset>) = small.into_iter().unzip();
    if assets.is_empty() {
        return Ok(results);
    }
    match shared.store.put(assets).await {
        Ok(stored) => {
            for (at, stored) in places.into_iter().zip(stored) {
                results[at] = stored.map(|_| ()).map_err(why);
            }
        }
        Err(error) => places.into_iter().for_each(|at| results[at] = Err(why(error.clone()))),
    }
    Ok(results)
}

async fn large(
    shared: &Shared,
    root: &Arc<Root>,
    item: &ToStore,
    digest: Digest,
) -> Result<std::result::Result<(), NotStored>> {
    let Some(seen) = item.seen else { return Ok(Err(NotStored::Unstable)) };
    if let Err(error) = shared.store.hold(digest.hash).await {
        return Ok(Err(why(error)));
    }
    match shared.store.lookup(digest.hash).await {
        Ok(Some(asset)) if asset.is_held() => return Ok(Ok(())),
        Ok(_) => {}
        Err(error) => return Ok(Err(why(error))),
    }
    if let Err(error) = shared.store.check_space(digest.size_bytes).await {
        return Ok(Err(why(error)));
    }
    let algorithm = shared.algorithm()?;
    let name = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>());
    let copy = shared.staging_dir.join(format!("{name}.part"));
    let (root, path, to) = (root.clone(), item.path.clone(), copy.clone());
    let copied = blocking(move || {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to);
        let copied = made.map_err(ReadError::Io).and_then(|into| {
            root.read_stable(&path, &seen, &into)?;
            Ok(hash_file(&to, algorithm)?)
        });
        Ok(copied.map_err(|error| {
            // The copy may not exist yet.
            let _ = std::fs::remove_file(&to);
            match error {
                ReadError::Changed => NotStored::Unstable,
                ReadError::Io(error) => NotStored::Why(error.to_string()),
            }
        }))
    });
    match copied.await? {
        Ok(hash) if hash == digest.hash => {}
        Ok(_) => {
            let _ = std::fs::remove_file(&copy);
            return Ok(Err(NotStored::Unstable));
        }
        Err(not) => return Ok(Err(not)),
    }
    let described = item.clone();
    let content = copy.clone();
    let metadata = blocking(move || Ok(metadata(&described, &mut File::open(content)?))).await?;
    let file = VerifiedFile { digest, path: copy.clone(), outboard: None, metadata, guard: None };
    let adopted = shared.store.adopt(file).await;
    if adopted.is_err() {
        let _ = std::fs::remove_file(&copy);
    }
    Ok(adopted.map(|_| ()).map_err(why))
}

/// The asset of a content.
pub(crate) fn digest(content: &Content) -> Option<Digest> {
    match content {
        Content::File { hash, size_bytes, .. } => {
            Some(Digest { hash: *hash, size_bytes: *size_bytes })
        }
        Content::Absent | Content::Symlink { .. } | Content::Directory | Content::Later(_) => None,
    }
}

/// The hash of a content.
pub(crate) fn hash(content: &Content) -> Option<Hash> {
    digest(content).map(|digest| digest.hash)
}

/// The metadata of the asset that a file of a folder becomes.
fn metadata(item: &ToStore, content: &mut (impl Read + Seek)) -> Metadata {
    let name = String::from_utf8_lossy(item.path.name());
    let parent = item.path.parent().map(|parent| parent.to_string()).unwrap_or_default();
    let modified_ms = item.seen.map(|seen| seen.modified_ms());
    let mut attributes = Attributes::named(&name)
        .with_text(Attribute::Path, &parent)
        .with_time(Attribute::ModifiedMs, modified_ms);
    sniff::fill_in(&mut attributes, content);
    Metadata { attributes, ..Metadata::default() }
}

fn why(error: StoreError) -> NotStored {
    NotStored::Why(error.to_string())
}
