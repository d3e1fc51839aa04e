//! `add`: files, folders and standard input into the store.
//!
//! [`walk`] cuts what it finds into [`Unit`]s; several units are uploaded at once; results come out
//! in the order of the walk, each when its content is durable. Small files travel many to a request,
//! large ones are streamed: memory is bounded by [`UPLOADS_MAX`] batches whatever is added.
//!
//! A file that cannot be read or taken is named, the others go on, and the exit status tells.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, anyhow};
use axum::body::Body;
use axum::http::Method;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::assets::Hex;
use super::client::{Client, finish};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{lossy_path, shown};
use super::walk::{OwnFolders, Unit, count_bytes, walk};
use crate::api::ingest::INGEST_BYTES_MAX;
use crate::core::ids::Hash;
use crate::store::SMALL_BYTES_MAX;
use crate::store::messages::PROTOBUF_TYPE;
use crate::wire::proto::store::{
    Bundle, Metadata, PushBatchRequest, PushBatchResponse, PushResult,
};

/// Units uploaded at once: enough to hash and read the next while one commits.
const UPLOADS_MAX: usize = 4;

/// Around each bundle in a request: a field number and a length.
const BUNDLE_FRAMING_BYTES: usize = 16;

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

/// What became of one path.
enum Outcome {
    Added(Added),
    Failed(PathBuf, Failure),
    /// Neither this path nor those after it in its unit could be taken.
    Stopped(Failure),
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
                Outcome::Stopped(failure) => shared = shared.or(Some(failure)),
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
                return vec![Outcome::Stopped(error.into())];
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
                    let failure = std::mem::replace(failure, Failure::OutputClosed);
                    outcomes.push(Outcome::Stopped(failure));
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

    /// One request, or several when files grew or much is said about each.
    async fn ingest(&self, bundles: Vec<Bundle>) -> Result<Vec<PushResult>, Failure> {
        let mut results = Vec::with_capacity(bundles.len());
        let mut request = Vec::new();
        let mut request_bytes = 0;
        for bundle in bundles {
            let bytes = (bundle.encoded_len() + BUNDLE_FRAMING_BYTES) as u64;
            if request_bytes + bytes > INGEST_BYTES_MAX {
                results.extend(self.send_batch(std::mem::take(&mut request)).await?);
                request_bytes = 0;
            }
            request_bytes += bytes;
            request.push(bundle);
        }
        results.extend(self.send_batch(request).await?);
        Ok(results)
    }

    async fn send_batch(&self, bundles: Vec<Bundle>) -> Result<Vec<PushResult>, Failure> {
        if bundles.is_empty() {
            return Ok(Vec::new());
        }
        let request = self
            .client
            .request(Method::POST, &["v1", "ingest"], &[])
            .header(CONTENT_TYPE, PROTOBUF_TYPE);
        let body = PushBatchRequest { bundles }.encode_to_vec();
        let answer = self.client.send(finish(request, body.into())?).await?;
        let body = answer.bytes().await?;
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
            .header(CONTENT_TYPE, "application/octet-stream");
        if let Some(size_bytes) = size_bytes {
            request = request.header(CONTENT_LENGTH, size_bytes);
        }
        let sent = self.client.send(finish(request, Body::from_stream(pieces))?).await;
        if let Some(error) = read_error.get() {
            return Err(anyhow!("{error}").into());
        }
        sent?.json().await
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
