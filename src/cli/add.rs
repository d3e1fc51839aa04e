//! `add`: files, folders and standard input into the store.
//!
//! A walker thread cuts what it finds into [`Unit`]s; several units are uploaded at once; results
//! come out in the order of the walk, each when its content is durable. Small files travel many to a
//! request, large ones are streamed: memory is bounded by [`UPLOADS_MAX`] batches whatever is added.
//!
//! A1  A file that cannot be read or taken is named, the others go on, and the exit status tells.
//! A2  Symbolic links inside folders are not followed, and nothing but regular files is read there.
//! A3  The agent's own folders (its key is there) are never added.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use prost::Message as _;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Method};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;
use walkdir::{DirEntryExt as _, WalkDir};

use super::assets::Hex;
use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{lossy_path, shown};
use crate::api::ingest::INGEST_ASSETS_MAX;
use crate::core::ids::Hash;
use crate::state::home::Home;
use crate::store::SMALL_BYTES_MAX;
use crate::store::messages::PROTOBUF_TYPE;
use crate::wire::proto::store::{
    Bundle, Metadata, PushBatchRequest, PushBatchResponse, PushResult,
};

/// Units uploaded at once: enough to hash and read the next while one commits.
const UPLOADS_MAX: usize = 4;

/// A batch is sent when it holds this many bytes; below the API's bound by one small file at least.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// Units that the walker is ahead.
const WALK_AHEAD: usize = 2 * UPLOADS_MAX;

/// A large file is read in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;

/// What `can-sync add` takes.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Files, folders, and `-` for standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Give the new assets this tag; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Give the new assets this description
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Give the new assets this media type
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    media_type: String,
}

/// What is uploaded with one request.
enum Unit {
    /// Files that were small when they were seen.
    Small(Vec<PathBuf>),
    /// A file to stream.
    Large(PathBuf),
    Stdin,
    /// Something that was to be added and cannot be.
    Unreadable(PathBuf, anyhow::Error),
    /// Something in a folder that is left out on purpose.
    Skipped(PathBuf, &'static str),
}

/// What became of one path.
enum Outcome {
    Added(Added),
    Failed(PathBuf, Failure),
    Skipped(PathBuf, &'static str),
}

#[derive(Serialize)]
struct Added {
    hash: Hex,
    #[serde(serialize_with = "lossy_path")]
    path: PathBuf,
    size: u64,
    existed: bool,
}

/// The API's answer to an upload.
#[derive(Deserialize)]
struct Uploaded {
    hash: Hex,
    size: u64,
    existed: bool,
}

/// `can-sync add`
pub(crate) async fn add(client: &Client, args: AddArgs, output: Output) -> Result<Exit, Failure> {
    let own_folders = OwnFolders::of(client.home());
    let progress = output.progress(0);
    let counter = (!progress.is_hidden()).then(|| {
        let (paths, progress) = (args.paths.clone(), progress.clone());
        tokio::task::spawn_blocking(move || count_bytes(&paths, &progress))
    });
    let (sender, units) = mpsc::channel(WALK_AHEAD);
    let paths = args.paths.clone();
    let walker = tokio::task::spawn_blocking(move || walk(&paths, &own_folders, &sender));

    let uploader = Uploader { client, args: &args, progress: &progress };
    let units = stream::unfold(units, async |mut units| Some((units.recv().await?, units)));
    let outcomes = units.map(|unit| uploader.upload(unit)).buffered(UPLOADS_MAX);
    let exit = report(outcomes, &progress, output).await;
    progress.finish_and_clear();
    if let Some(counter) = counter {
        counter.await.context("counting what to add")?;
    }
    let exit = exit?;
    walker.await.context("walking the folders")?;
    Ok(exit)
}

/// Prints what became of each path; stops at a failure that the next path would share.
async fn report(
    outcomes: impl stream::Stream<Item = Vec<Outcome>>,
    progress: &ProgressBar,
    output: Output,
) -> Result<Exit, Failure> {
    let mut outcomes = std::pin::pin!(outcomes);
    let mut exit = Exit::Ok;
    while let Some(unit) = outcomes.next().await {
        let mut shared = None;
        for outcome in unit {
            match outcome {
                Outcome::Added(added) => progress.suspend(|| output.value(&added, line))?,
                Outcome::Skipped(path, why) => {
                    let path = shown(&path.to_string_lossy());
                    progress.suspend(|| output.note(format_args!("skipped {path}: {why}")));
                }
                Outcome::Failed(path, Failure::Report(Exit::Error | Exit::Usage, error)) => {
                    let path = path.display();
                    progress.suspend(|| output.error(format_args!("{path}: {error:#}")));
                    exit = Exit::Error;
                }
                Outcome::Failed(path, Failure::Report(exit, error)) => {
                    let error = error.context(path.display().to_string());
                    shared = shared.or(Some(Failure::Report(exit, error)));
                }
                Outcome::Failed(_, Failure::OutputClosed) => return Err(Failure::OutputClosed),
            }
        }
        if let Some(failure) = shared {
            return Err(failure);
        }
    }
    Ok(exit)
}

fn line(added: &Added) -> String {
    format!("{}  {}", added.hash.0, shown(&added.path.to_string_lossy()))
}

/// The folders that hold the agent's key and store.
struct OwnFolders(Vec<(u64, u64, PathBuf)>);

impl OwnFolders {
    fn of(home: &Home) -> Self {
        let folders = [home.key_path(), home.store_dir()];
        let identify = |inside: PathBuf| {
            let folder = inside.parent()?.canonicalize().ok()?;
            let found = folder.metadata().ok()?;
            Some((found.dev(), found.ino(), folder))
        };
        Self(folders.into_iter().filter_map(identify).collect())
    }

    /// Whether this entry of a folder is one of them.
    fn are(&self, entry: &walkdir::DirEntry) -> bool {
        entry.file_type().is_dir()
            && self.0.iter().any(|(dev, ino, _)| {
                // The inode comes with the listing; the device takes a call.
                entry.ino() == *ino && entry.metadata().is_ok_and(|found| found.dev() == *dev)
            })
    }

    /// Whether this path is in one of them.
    fn contain(&self, path: &Path) -> bool {
        let real = path.canonicalize();
        real.is_ok_and(|real| self.0.iter().any(|(.., folder)| real.starts_with(folder)))
    }
}

/// Adds up the bytes to come, for the bar; ends early when the bar does.
fn count_bytes(paths: &[PathBuf], progress: &ProgressBar) {
    for path in paths.iter().filter(|path| path.as_os_str() != "-") {
        for entry in WalkDir::new(path).into_iter().filter_map(Result::ok) {
            if progress.is_finished() {
                return;
            }
            if entry.file_type().is_file() {
                progress.inc_length(entry.metadata().map_or(0, |found| found.len()));
            }
        }
    }
}

/// Cuts what is under `paths` into units. Returns early when nobody takes them any more.
fn walk(paths: &[PathBuf], own_folders: &OwnFolders, units: &mpsc::Sender<Unit>) {
    let mut walk = Walk { batch: Vec::new(), batch_bytes: 0, units };
    for path in paths {
        if walk.path(path, own_folders).is_err() {
            return;
        }
    }
    // The receiver being gone means that nothing more is wanted.
    let _ = walk.flush();
}

struct Walk<'a> {
    batch: Vec<PathBuf>,
    batch_bytes: u64,
    units: &'a mpsc::Sender<Unit>,
}

/// Nobody takes units any more.
struct Unwanted;

impl Walk<'_> {
    fn path(&mut self, path: &Path, own_folders: &OwnFolders) -> Result<(), Unwanted> {
        if path.as_os_str() == "-" {
            return self.send(Unit::Stdin);
        }
        if own_folders.contain(path) {
            let error = anyhow!("the agent's own folder is never added");
            return self.send(Unit::Unreadable(path.to_owned(), error));
        }
        let found = match path.metadata() {
            Ok(found) => found,
            Err(error) => return self.send(Unit::Unreadable(path.to_owned(), error.into())),
        };
        if found.is_dir() {
            return self.folder(path, own_folders);
        }
        if found.is_file() {
            return self.file(path.to_owned(), found.len());
        }
        // A pipe or device that is named outright is meant.
        self.send(Unit::Large(path.to_owned()))
    }

    fn folder(&mut self, folder: &Path, own_folders: &OwnFolders) -> Result<(), Unwanted> {
        let mut entries = WalkDir::new(folder).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(folder).to_owned();
                    self.send(Unit::Unreadable(path, error.into()))?;
                    continue;
                }
            };
            let kind = entry.file_type();
            if own_folders.are(&entry) {
                entries.skip_current_dir();
                self.skip(entry.into_path(), "the agent's own folder")?;
            } else if kind.is_file() {
                match entry.metadata() {
                    Ok(found) => self.file(entry.into_path(), found.len())?,
                    Err(error) => self.send(Unit::Unreadable(entry.into_path(), error.into()))?,
                }
            } else if kind.is_symlink() {
                self.skip(entry.into_path(), "a symbolic link")?;
            } else if !kind.is_dir() {
                self.skip(entry.into_path(), "no regular file")?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, size_bytes: u64) -> Result<(), Unwanted> {
        if size_bytes > SMALL_BYTES_MAX {
            return self.send(Unit::Large(path));
        }
        self.batch.push(path);
        self.batch_bytes += size_bytes;
        if self.batch.len() >= INGEST_ASSETS_MAX || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn skip(&mut self, path: PathBuf, why: &'static str) -> Result<(), Unwanted> {
        self.send(Unit::Skipped(path, why))
    }

    /// Sends `unit` after what was found before it.
    fn send(&mut self, unit: Unit) -> Result<(), Unwanted> {
        self.flush()?;
        self.units.blocking_send(unit).map_err(|_| Unwanted)
    }

    fn flush(&mut self) -> Result<(), Unwanted> {
        self.batch_bytes = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.units.blocking_send(Unit::Small(batch)).map_err(|_| Unwanted)
    }
}

struct Uploader<'a> {
    client: &'a Client,
    args: &'a AddArgs,
    progress: &'a ProgressBar,
}

/// A small file that was read, or one that turned out not to be small.
enum Content {
    Whole(Bytes),
    Grown,
}

impl Uploader<'_> {
    async fn upload(&self, unit: Unit) -> Vec<Outcome> {
        match unit {
            Unit::Small(paths) => self.small(paths).await,
            Unit::Large(path) => vec![self.large(path).await],
            Unit::Stdin => vec![outcome("-".into(), self.stdin().await)],
            Unit::Unreadable(path, error) => vec![Outcome::Failed(path, error.into())],
            Unit::Skipped(path, why) => vec![Outcome::Skipped(path, why)],
        }
    }

    async fn small(&self, paths: Vec<PathBuf>) -> Vec<Outcome> {
        let read = tokio::task::spawn_blocking(move || {
            paths.into_iter().map(|path| (read_small(&path), path)).collect::<Vec<_>>()
        });
        let read = match read.await {
            Ok(read) => read,
            Err(error) => {
                let error = anyhow::Error::new(error).context("reading files");
                return vec![Outcome::Failed(PathBuf::new(), error.into())];
            }
        };
        let contents = read.iter().filter_map(|(content, path)| match content {
            Ok(Content::Whole(content)) => Some(self.bundle(path, content.clone())),
            _ => None,
        });
        let mut results = self.ingest(contents.collect()).await.map(Vec::into_iter);
        let mut outcomes = Vec::with_capacity(read.len());
        for (content, path) in read {
            outcomes.push(match (content, &mut results) {
                (Err(error), _) => Outcome::Failed(path, anyhow::Error::new(error).into()),
                (Ok(Content::Grown), _) => self.large(path).await,
                (Ok(Content::Whole(content)), Ok(results)) => {
                    let size = content.len() as u64;
                    self.progress.inc(size);
                    let added = results.next().map_or_else(cut_off, |result| judge(&result, size));
                    outcome(path, added)
                }
                (Ok(Content::Whole(_)), Err(failure)) => {
                    // The request failed for all of them alike.
                    let failure = std::mem::replace(failure, Failure::OutputClosed);
                    outcomes.push(Outcome::Failed(path, failure));
                    return outcomes;
                }
            });
        }
        outcomes
    }

    fn bundle(&self, path: &Path, content: Bytes) -> Bundle {
        let metadata = Metadata {
            description: self.args.description.clone(),
            tags: self.args.tags.clone(),
            is_trashed: false,
            version: 0,
            file_name: file_name(path),
            media_type: self.args.media_type.clone(),
        };
        Bundle { digest: None, content, metadata: Some(metadata) }
    }

    async fn ingest(&self, bundles: Vec<Bundle>) -> Result<Vec<PushResult>, Failure> {
        if bundles.is_empty() {
            return Ok(Vec::new());
        }
        let request = self
            .client
            .request(Method::POST, &["v1", "ingest"], &[])
            .header(CONTENT_TYPE, PROTOBUF_TYPE)
            .body(PushBatchRequest { bundles }.encode_to_vec());
        let answer = self.client.send(request).await?;
        let body = answer.bytes().await.context("reading the agent's answer")?;
        let answer = PushBatchResponse::decode(body).context("reading the agent's answer")?;
        Ok(answer.results)
    }

    async fn large(&self, path: PathBuf) -> Outcome {
        let opened = async {
            let file = tokio::fs::File::open(&path).await?;
            let found = file.metadata().await?;
            Ok::<_, io::Error>((file, found))
        };
        let (file, found) = match opened.await {
            Ok(opened) => opened,
            Err(error) => return Outcome::Failed(path, anyhow::Error::new(error).into()),
        };
        // What is appended while we read comes with the next add.
        let size_bytes = found.is_file().then_some(found.len());
        let name = file_name(&path);
        let added = self.stream(file.take(size_bytes.unwrap_or(u64::MAX)), size_bytes, &name).await;
        outcome(path, added)
    }

    async fn stdin(&self) -> Result<Uploaded, Failure> {
        // What fits in memory is read to its end first: a pipe that fails early then sends nothing.
        let mut start = Vec::new();
        let mut stdin = tokio::io::stdin();
        let mut first = (&mut stdin).take(SMALL_BYTES_MAX);
        first.read_to_end(&mut start).await.context("reading standard input")?;
        let content = tokio::io::AsyncReadExt::chain(io::Cursor::new(start), stdin);
        self.stream(content, None, "").await
    }

    /// Uploads what `content` gives, up to its end.
    async fn stream(
        &self,
        content: impl AsyncRead + Send + 'static,
        size_bytes: Option<u64>,
        name: &str,
    ) -> Result<Uploaded, Failure> {
        let mut query = vec![("name", name), ("description", self.args.description.as_str())];
        query.push(("type", self.args.media_type.as_str()));
        query.extend(self.args.tags.iter().map(|tag| ("tag", tag.as_str())));
        query.retain(|(_, value)| !value.is_empty());
        // A failed read reaches us as a failed request: here is which it was.
        let read_error = Arc::new(OnceLock::new());
        let (progress, noted) = (self.progress.clone(), Arc::clone(&read_error));
        let pieces = ReaderStream::with_capacity(content, PIECE_BYTES)
            .inspect_ok(move |piece| progress.inc(piece.len() as u64))
            .inspect_err(move |error| {
                let _ = noted.set(error.to_string());
            });
        let mut request = self
            .client
            .request(Method::POST, &["assets"], &query)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Body::wrap_stream(pieces));
        if let Some(size_bytes) = size_bytes {
            request = request.header(CONTENT_LENGTH, size_bytes);
        }
        let sent = self.client.send(request).await;
        if let Some(error) = read_error.get() {
            return Err(anyhow!("{error}").into());
        }
        self.client.json(sent?).await
    }
}

fn read_small(path: &Path) -> io::Result<Content> {
    let mut content = Vec::new();
    File::open(path)?.take(SMALL_BYTES_MAX + 1).read_to_end(&mut content)?;
    let is_small = content.len() as u64 <= SMALL_BYTES_MAX;
    Ok(if is_small { Content::Whole(content.into()) } else { Content::Grown })
}

/// The name an asset is known by: the last part of its path.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn outcome(path: PathBuf, added: Result<Uploaded, Failure>) -> Outcome {
    match added {
        Ok(Uploaded { hash, size, existed }) => Outcome::Added(Added { hash, path, size, existed }),
        Err(failure) => Outcome::Failed(path, failure),
    }
}

fn cut_off() -> Result<Uploaded, Failure> {
    Err(anyhow!("the agent's answer is cut off").into())
}

/// One file's result within a batch; its numbers are HTTP's.
fn judge(result: &PushResult, size: u64) -> Result<Uploaded, Failure> {
    let hash = || {
        let hash = Hash::from_slice(&result.hash).context("reading the agent's answer")?;
        Ok::<_, Failure>(Hex(hash))
    };
    match result.status {
        200 => Ok(Uploaded { hash: hash()?, size, existed: false }),
        208 => Ok(Uploaded { hash: hash()?, size, existed: true }),
        503 | 507 => Err(Failure::new(Exit::Temporary, &result.detail)),
        _ => Err(Failure::new(Exit::Error, &result.detail)),
    }
}
