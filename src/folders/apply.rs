//! Into the directory: versions of the journal, once their assets are here.
//!
//! A1  A content is compared with its hash before it gets its name. One that differs is verified by
//!     the store, which then counts it as missing, so that it comes again from another device.
//! A2  What is replaced is what the base said, or it is kept and taken in as an edit by the user.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::Keep;
use super::disk::{self, Displaced, Place, PlaceError, Placed, Placement, Root, Seen};
use super::ingest::digest;
use super::shared::{Shared, blocking};
use crate::core::folder::path::FolderPath;
use crate::core::folder::version::{Content, Version};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::store::hasher::Hasher;
use crate::store::{Condition, READ_BYTES_MAX, SMALL_BYTES_MAX, StoreError};

/// The bytes of small files that are in memory at once.
const BYTES_MAX: u64 = 8 << 20;

/// The large files that are open at once.
const LARGE_MAX: usize = 16;

/// A version that is to be in the directory.
#[derive(Debug, Clone)]
pub(crate) struct ToPlace {
    pub(crate) path: FolderPath,
    pub(crate) version: Version,
    /// The stat of the path now; `None` if nothing is there.
    pub(crate) expected: Option<Seen>,
}

/// The outcome of applying one version to the directory.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The version is there; `None` where nothing is to be there.
    Done(Option<Seen>),
    /// The version is there, and what the user wrote in that moment is kept under this path.
    Displaced(Option<Seen>, Displaced),
    /// The version's asset is not here.
    Missing(Hash),
    /// Something else than expected is there: look again.
    Changed,
    /// A file is where a directory is needed, or the other way round.
    Blocked,
    /// Why not, for people: try again later.
    Failed(String),
}

/// The content in the store is not what its hash says.
struct WrongContent;

/// Where a content comes from.
enum Source {
    Nothing,
    Bytes(Bytes),
    /// An open file of the store, and its path for a hard link.
    Stored(File, Option<PathBuf>),
    /// A file of ours, removed afterwards.
    Temp(Temp),
}

/// A file that is removed when this is dropped.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        // If the file cannot be removed now, the next start removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Brings versions into the directory, in this order; returns what became of each.
pub(crate) async fn place(
    shared: &Shared,
    root: &Arc<Root>,
    keep: Keep,
    items: Vec<ToPlace>,
) -> Result<Vec<(ToPlace, Ended)>> {
    let mut results = Vec::with_capacity(items.len());
    let mut chunk = Vec::new();
    let (mut bytes, mut large) = (0, 0);
    for item in items {
        match digest(&item.version.content) {
            Some(digest) if digest.size_bytes > SMALL_BYTES_MAX => large += 1,
            Some(digest) => bytes += digest.size_bytes,
            None => {}
        }
        chunk.push(item);
        if bytes >= BYTES_MAX || large >= LARGE_MAX {
            results.extend(place_chunk(shared, root, keep, std::mem::take(&mut chunk)).await?);
            (bytes, large) = (0, 0);
        }
    }
    results.extend(place_chunk(shared, root, keep, chunk).await?);
    Ok(results)
}

async fn place_chunk(
    shared: &Shared,
    root: &Arc<Root>,
    keep: Keep,
    items: Vec<ToPlace>,
) -> Result<Vec<(ToPlace, Ended)>> {
    let algorithm = shared.algorithm()?;
    let mut sources = fetch(shared, keep, &items).await?;
    let root = root.clone();
    let placed = blocking(move || {
        let mut ended: Vec<Option<Result<Ended, WrongContent>>> =
            items.iter().map(|_| None).collect();
        let mut ready: Vec<(usize, Opened)> = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let source = match sources.remove(&at).unwrap_or(Ok(Source::Nothing)) {
                Ok(source) => source,
                Err(end) => {
                    ended[at] = Some(Ok(end));
                    continue;
                }
            };
            match opened(source, &item.version.content, algorithm) {
                Ok(opened) => ready.push((at, opened)),
                Err(error) => ended[at] = Some(end_of(Err(PlaceError::Io(error)))),
            }
        }
        let of: Vec<usize> = ready.iter().map(|(at, _)| *at).collect();
        let placements = ready
            .iter_mut()
            .map(|(at, opened)| {
                let item = &items[*at];
                let what = what(&item.version.content, opened);
                Placement { path: &item.path, what, expected: item.expected }
            })
            .collect();
        for (at, placed) in of.into_iter().zip(root.place_all(placements)) {
            ended[at] = Some(end_of(placed));
        }
        let unknown = || Ok(Ended::Failed("it was not written".into()));
        let ended = ended.into_iter().map(|ended| ended.unwrap_or_else(unknown));
        Ok(items.into_iter().zip(ended).collect::<Vec<_>>())
    })
    .await?;
    let mut results = Vec::with_capacity(placed.len());
    for (item, ended) in placed {
        let ended = match ended {
            Ok(ended) => ended,
            Err(WrongContent) => verified_by_the_store(shared, &item.version.content).await,
        };
        results.push((item, ended));
    }
    Ok(results)
}

/// Has the store verify a content that was read wrong. A damaged one is not held from then on.
async fn verified_by_the_store(shared: &Shared, content: &Content) -> Ended {
    let Some(digest) = digest(content) else {
        return Ended::Failed("a content without a hash was read wrong".into());
    };
    match shared.store.verify(digest.hash).await {
        Ok(Condition::Whole) => {
            Ended::Failed("its content was read wrong, and is whole now".into())
        }
        Ok(_) => Ended::Missing(digest.hash),
        Err(error) => Ended::Failed(error.to_string()),
    }
}

fn end_of(placed: Result<Placed, PlaceError>) -> Result<Ended, WrongContent> {
    Ok(match placed {
        Ok(Placed::Done(seen)) => Ended::Done(seen),
        Ok(Placed::Displaced { seen, edit }) => Ended::Displaced(seen, edit),
        Err(PlaceError::Changed) => Ended::Changed,
        Err(PlaceError::ParentIsNoDirectory(_) | PlaceError::NotEmpty) => Ended::Blocked,
        Err(PlaceError::WrongSize { .. }) => return Err(WrongContent),
        Err(PlaceError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(WrongContent);
        }
        Err(error) => Ended::Failed(error.to_string()),
    })
}

/// A source that is open.
enum Opened {
    Nothing,
    Reader(Verified),
    File(File),
    Link(PathBuf),
}

/// Converts a version's content to what [`Root::place`] puts at the path.
fn what<'a>(content: &'a Content, opened: &'a mut Opened) -> Place<'a> {
    match content {
        Content::Absent | Content::Later(_) => Place::Nothing,
        Content::Directory => Place::Directory,
        Content::Symlink { target } => Place::Symlink { target },
        Content::File { size_bytes, modified_ms, is_executable, .. } => Place::File {
            source: match opened {
                Opened::Nothing => disk::Source::Link(Path::new("")),
                Opened::Reader(reader) => disk::Source::Reader(reader),
                Opened::File(file) => disk::Source::File(file),
                Opened::Link(path) => disk::Source::Link(path),
            },
            size_bytes: *size_bytes,
            modified_ms: *modified_ms,
            is_executable: *is_executable,
        },
    }
}

/// Opens a source for reading. What is not read through [`Verified`] is compared with its hash here.
fn opened(source: Source, content: &Content, algorithm: HashAlgorithm) -> io::Result<Opened> {
    let Some(digest) = digest(content) else { return Ok(Opened::Nothing) };
    let verified = |from: Box<dyn Read + Send>| Verified::new(from, digest, algorithm);
    Ok(match source {
        Source::Nothing => return Err(io::ErrorKind::NotFound.into()),
        Source::Bytes(bytes) => Opened::Reader(verified(Box::new(Cursor::new(bytes)))),
        Source::Temp(temp) => Opened::Reader(verified(Box::new(File::open(&temp.0)?))),
        Source::Stored(mut file, link) => {
            io::copy(&mut verified(Box::new(file.try_clone()?)), &mut io::sink())?;
            file.rewind()?;
            link.map_or(Opened::File(file), Opened::Link)
        }
    })
}

/// Reads a content, and fails at its end if it does not have its hash.
pub(crate) struct Verified {
    from: Box<dyn Read + Send>,
    hasher: Hasher,
    digest: Digest,
    read_bytes: u64,
}

impl Verified {
    fn new(from: Box<dyn Read + Send>, digest: Digest, algorithm: HashAlgorithm) -> Self {
        Self { from, hasher: Hasher::new(algorithm), digest, read_bytes: 0 }
    }
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.read_bytes += count as u64;
        let is_end = count == 0 && !buffer.is_empty();
        if is_end
            && (self.read_bytes != self.digest.size_bytes || self.hasher.hash() != self.digest.hash)
        {
            let text = "the content in the store does not have its hash";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(count)
    }
}

/// Where the contents of the items come from, by their place among them.
async fn fetch(
    shared: &Shared,
    keep: Keep,
    items: &[ToPlace],
) -> Result<BTreeMap<usize, Result<Source, Ended>>> {
    let wanted: Vec<(usize, Digest)> = items
        .iter()
        .enumerate()
        .filter_map(|(at, item)| Some((at, digest(&item.version.content)?)))
        .collect();
    let hashes: Vec<Hash> = wanted.iter().map(|(_, digest)| digest.hash).collect();
    let index = shared.index.clone();
    let known = blocking(move || index.held(&hashes).context("reading the index")).await?;
    let mut sources = BTreeMap::new();
    let mut small = Vec::new();
    for ((at, digest), is_known) in wanted.into_iter().zip(known) {
        if !is_known && !is_held(shared, digest.hash).await {
            sources.insert(at, Err(Ended::Missing(digest.hash)));
        } else if digest.size_bytes <= SMALL_BYTES_MAX {
            small.push((at, digest));
        } else {
            sources.insert(at, large(shared, keep, digest).await);
        }
    }
    let digests: Vec<Digest> = small.iter().map(|(_, digest)| *digest).collect();
    if digests.is_empty() {
        return Ok(sources);
    }
    match shared.store.read_small(&digests).await {
        Ok(read) => {
            for ((at, digest), bytes) in small.into_iter().zip(read) {
                let source = bytes.map(Source::Bytes).ok_or(Ended::Missing(digest.hash));
                sources.insert(at, source);
            }
        }
        Err(error) => {
            for (at, _) in small {
                sources.insert(at, Err(Ended::Failed(error.to_string())));
            }
        }
    }
    Ok(sources)
}

/// Asks the store itself about an asset that the index does not know yet.
async fn is_held(shared: &Shared, hash: Hash) -> bool {
    let found = shared.store.lookup(hash).await;
    found.is_ok_and(|asset| asset.is_some_and(|asset| asset.is_held()))
}

async fn large(shared: &Shared, keep: Keep, digest: Digest) -> Result<Source, Ended> {
    let failed = |error: &dyn std::fmt::Display| Ended::Failed(error.to_string());
    match shared.store.bao_files(digest.hash).await {
        Ok(Some(files)) => {
            let link = match (keep, &shared.embedded) {
                (Keep::Link, Some(store)) => Some(store.content_path(digest.hash)),
                _ => None,
            };
            return Ok(Source::Stored(files.content, link));
        }
        Ok(None) => {}
        Err(StoreError::Damaged(hash) | StoreError::NotFound(hash)) => {
            return Err(Ended::Missing(hash));
        }
        Err(error) => return Err(failed(&error)),
    }
    let (temp, mut file) = temp(&shared.staging_dir).map_err(|error| failed(&error))?;
    let mut at = 0;
    while at < digest.size_bytes {
        let end = (at + READ_BYTES_MAX).min(digest.size_bytes);
        match shared.store.read(digest.hash, at..end).await {
            Ok(Some(bytes)) => {
                let written = blocking(move || Ok(file.write_all(&bytes).map(|()| file)));
                let written = written.await.map_err(|error| failed(&error))?;
                file = written.map_err(|error| failed(&error))?;
            }
            Ok(None) => return Err(Ended::Missing(digest.hash)),
            Err(error) => return Err(failed(&error)),
        }
        at = end;
    }
    Ok(Source::Temp(temp))
}

/// The path of what is set aside: beside its own, with the time in its name. `None`: it is too long.
pub(crate) fn aside(path: &FolderPath, now_ms: u64) -> Option<FolderPath> {
    let time = i64::try_from(now_ms).ok().and_then(DateTime::from_timestamp_millis);
    let time = time.unwrap_or(DateTime::<Utc>::MAX_UTC).format("%Y-%m-%d %H-%M-%S");
    let name = path.name();
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let name = [stem, format!(" (local, {time})").as_bytes(), extension].concat();
    match path.parent() {
        Some(parent) => parent.join(&name).ok(),
        None => FolderPath::from_bytes(&name).ok(),
    }
}

fn temp(folder: &Path) -> io::Result<(Temp, File)> {
    let name = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>());
    let path = folder.join(format!("{name}.part"));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((Temp(path), file))
}
