//! `add`: files, folders and standard input into the store.
//!
//! [`walk`] cuts what it finds into [`Unit`]s; several units are uploaded at once; results come out
//! in the order of the walk, each when its content is durable. Small files travel many to a request,
//! large ones are streamed: memory is bounded by [`UPLOADS_MAX`] batches whatever is added.
//!
//! A file that cannot be read or stored is reported, the others are added, and the exit status is 1.
//! Adding goes on when nobody reads standard output any more (`can-sync add DIR | head -1`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use axum::body::Body;
use axum::http::Method;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use prost::Message as _;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::client::{Client, finish};
use super::exit::{Exit, Failure};
use super::output::{Output, Results};
use super::source::{ReadError, Small, Source, TRIES_MAX, Why, read_small};
use super::text::{causes, lossy_path, shown};
use super::walk::{Found, Homes, Unit, count_bytes, walk};
use crate::api::answers::Written;
use crate::api::ingest::INGEST_BYTES_MAX;
use crate::core::attributes::canonical_text;
use crate::core::ids::Hash;
use crate::http::asset::{AddedAsset, AssetEdit, AssetRow};
use crate::store::SMALL_BYTES_MAX;
use crate::store::messages::PROTOBUF_TYPE;
use crate::wire::proto::store::{
    Bundle, Metadata, PushBatchRequest, PushBatchResponse, PushResult,
};

/// Units uploaded at once: enough to hash and read the next while one commits.
const UPLOADS_MAX: usize = 4;

/// Bytes around each bundle in a request: a field number and a length.
const BUNDLE_FRAMING_BYTES: usize = 16;

/// How many units the walk may be ahead of the uploads.
const WALK_AHEAD: usize = 2 * UPLOADS_MAX;

/// A pipe is read in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;

/// The arguments of `can-sync add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Files, folders, and `-` for standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Give the assets this tag; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Give the assets this description; an asset that has one already keeps it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Give the assets this media type; an asset that is stored already keeps its own
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    media_type: String,
}

/// The outcome of one path.
enum Outcome {
    Added(Added),
    Failed(PathBuf, Failure),
    /// Neither this path nor those after it in its unit could be uploaded.
    Stopped(Failure),
    Skipped(PathBuf, &'static str),
}

#[derive(Serialize)]
struct Added {
    hash: Hash,
    #[serde(serialize_with = "lossy_path")]
    path: PathBuf,
    size: u64,
    existed: bool,
    /// Names the metadata of this command that was not applied, because the asset was stored
    /// before.
    #[serde(skip)]
    kept: Option<String>,
}

/// `can-sync add`
pub(crate) async fn add(client: &Client, args: AddArgs, output: Output) -> Result<Exit, Failure> {
    let homes = Arc::new(Homes::of(client.home()));
    let progress = output.progress(0);
    let counter = (!progress.is_hidden()).then(|| {
        let (paths, progress) = (args.paths.clone(), progress.clone());
        tokio::task::spawn_blocking(move || count_bytes(&paths, &progress))
    });
    let (sender, units) = mpsc::channel(WALK_AHEAD);
    let (paths, walked) = (args.paths.clone(), Arc::clone(&homes));
    let walker = tokio::task::spawn_blocking(move || walk(&paths, &walked, &sender));

    let uploader = Uploader { client, args: &args, homes: &homes, progress: &progress };
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

/// Prints the result for each path. Stops at a failure that would hit the next path too.
async fn report(
    outcomes: impl Stream<Item = Vec<Outcome>>,
    progress: &ProgressBar,
    output: Output,
) -> Result<Exit, Failure> {
    let mut outcomes = std::pin::pin!(outcomes);
    let mut results = Results::new(output);
    let mut exit = Exit::Ok;
    while let Some(unit) = outcomes.next().await {
        let mut shared = None;
        for outcome in unit {
            match outcome {
                Outcome::Added(added) => {
                    progress.suspend(|| results.value(&added, line))?;
                    if let Some(kept) = &added.kept {
                        let path = added.path.display();
                        progress.suspend(|| output.error(format_args!("{path}: {kept}")));
                        exit = Exit::Error;
                    }
                }
                Outcome::Skipped(path, why) => {
                    let path = shown(&path.to_string_lossy());
                    progress.suspend(|| output.note(format_args!("skipped {path}: {why}")));
                }
                Outcome::Failed(path, Failure::Report(status, error)) if is_shared(status) => {
                    let error = error.context(path.display().to_string());
                    shared = shared.or(Some(Failure::Report(status, error)));
                }
                Outcome::Failed(path, Failure::Report(_, error)) => {
                    let (path, error) = (path.display(), causes(&error));
                    progress.suspend(|| output.error(format_args!("{path}: {error}")));
                    exit = Exit::Error;
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

/// Whether the next file would fail for the same reason.
fn is_shared(status: Exit) -> bool {
    matches!(status, Exit::NotRunning | Exit::Temporary)
}

fn line(added: &Added) -> String {
    let known = if added.existed { "  (here already)" } else { "" };
    format!("{}  {}{known}", added.hash, shown(&added.path.to_string_lossy()))
}

struct Uploader<'a> {
    client: &'a Client,
    args: &'a AddArgs,
    homes: &'a Arc<Homes>,
    progress: &'a ProgressBar,
}

impl Uploader<'_> {
    async fn upload(&self, unit: Unit) -> Vec<Outcome> {
        match unit {
            Unit::Small(files) => self.small(files).await,
            Unit::Large(file) => vec![self.large(file).await],
            Unit::Stdin => vec![self.outcome("-".into(), self.stdin().await).await],
            Unit::Unreadable(path, error) => vec![Outcome::Failed(path, error.into())],
            Unit::Skipped(path, why) => vec![Outcome::Skipped(path, why)],
        }
    }

    async fn small(&self, files: Vec<Found>) -> Vec<Outcome> {
        let homes = Arc::clone(self.homes);
        let read = tokio::task::spawn_blocking(move || {
            files.into_iter().map(|file| (read_small(&file.path, &homes), file)).collect::<Vec<_>>()
        });
        let read = match read.await {
            Ok(read) => read,
            Err(error) => {
                let error = anyhow::Error::new(error).context("reading files");
                return vec![Outcome::Stopped(error.into())];
            }
        };
        let contents = read.iter().filter_map(|(content, file)| match content {
            Ok(Small::Whole(content, modified_ms)) => {
                Some(self.bundle(file, *modified_ms, content.clone()))
            }
            _ => None,
        });
        let mut results = self.ingest(contents.collect()).await.map(Vec::into_iter);
        let mut outcomes = Vec::with_capacity(read.len());
        for (content, file) in read {
            outcomes.push(match (content, &mut results) {
                (Err(error), _) => Outcome::Failed(file.path, unreadable(error)),
                (Ok(Small::Grown), _) => self.large(file).await,
                (Ok(Small::Whole(content, _)), Ok(results)) => {
                    let size = content.len() as u64;
                    self.progress.inc(size);
                    let added = results.next().map_or_else(cut_off, |result| judge(&result, size));
                    self.outcome(file.path, added).await
                }
                (Ok(Small::Whole(..)), Err(failure)) => {
                    let failure = std::mem::replace(failure, Failure::OutputClosed);
                    outcomes.push(Outcome::Stopped(failure));
                    return outcomes;
                }
            });
        }
        outcomes
    }

    fn bundle(&self, file: &Found, modified_ms: i64, content: Bytes) -> Bundle {
        let metadata = Metadata {
            description: self.args.description.clone(),
            tags: self.args.tags.clone(),
            is_trashed: false,
            version: 0,
            file_name: file_name(&file.path),
            path: file.folder.clone(),
            media_type: self.args.media_type.clone(),
            modified_ms: Some(modified_ms),
            ..Metadata::default()
        };
        Bundle { digest: None, content, metadata: Some(metadata) }
    }

    /// Sends one request, or several when files grew or their metadata is long.
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
        let request = self.client.request(Method::POST, &["v1", "ingest"], &[]);
        let body = PushBatchRequest { bundles }.encode_to_vec();
        let request = finish(request.header(CONTENT_TYPE, PROTOBUF_TYPE), body.into())?;
        let body = self.client.send(request).await?.bytes().await?;
        let answer = PushBatchResponse::decode(body).context("reading the agent's answer")?;
        Ok(answer.results)
    }

    async fn large(&self, file: Found) -> Outcome {
        let mut added = Err(unreadable(ReadError::Changed));
        for _ in 0..TRIES_MAX {
            added = match self.large_once(&file).await {
                Ok(Err(ReadError::Changed)) => continue,
                Ok(Err(error)) => Err(unreadable(error)),
                Ok(Ok(uploaded)) => Ok(uploaded),
                Err(failure) => Err(failure),
            };
            break;
        }
        self.outcome(file.path, added).await
    }

    /// Uploads a file. The inner error is about the file, the outer one about the agent.
    async fn large_once(&self, found: &Found) -> Result<Result<AddedAsset, ReadError>, Failure> {
        let (wanted, homes) = (found.path.clone(), Arc::clone(self.homes));
        let opened = tokio::task::spawn_blocking(move || {
            let source = Source::open(&wanted, &homes)?;
            let size_bytes = source.size_bytes()?;
            Ok((source, size_bytes))
        });
        let (source, size_bytes) = match opened.await.context("opening a file")? {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        let why = Why::default();
        let modified_ms = size_bytes.map(|_| source.modified_ms().to_string());
        let mut about = vec![("name", file_name(&found.path)), ("path", found.folder.clone())];
        about.extend(modified_ms.map(|ms| ("modified_ms", ms)));
        let before = self.progress.position();
        let sent = match size_bytes {
            Some(size) => self.send(source.pieces(size, why.clone()), size_bytes, &about).await,
            None => {
                self.send(unsized_pieces(source.into_stream(), why.clone()), None, &about).await
            }
        };
        match why.take() {
            Some(error) => {
                self.progress.set_position(before);
                Ok(Err(error))
            }
            None => sent.map(Ok),
        }
    }

    async fn stdin(&self) -> Result<AddedAsset, Failure> {
        // Content that fits in memory is read to its end first, so a pipe that fails early sends
        // nothing.
        let mut start = Vec::new();
        let mut stdin = tokio::io::stdin();
        let mut first = (&mut stdin).take(SMALL_BYTES_MAX);
        first.read_to_end(&mut start).await.map_err(|error| unreadable(error.into()))?;
        let content = tokio::io::AsyncReadExt::chain(io::Cursor::new(start), stdin);
        let why = Why::default();
        let sent = self.send(unsized_pieces(content, why.clone()), None, &[]).await;
        why.take().map_or(sent, |error| Err(unreadable(error)))
    }

    /// Uploads a content. `about` holds its attributes as parameters of the request.
    async fn send(
        &self,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        size_bytes: Option<u64>,
        about: &[(&str, String)],
    ) -> Result<AddedAsset, Failure> {
        let mut query = vec![("description", self.args.description.as_str())];
        query.extend(about.iter().map(|(name, value)| (*name, value.as_str())));
        query.push(("type", self.args.media_type.as_str()));
        query.extend(self.args.tags.iter().map(|tag| ("tag", tag.as_str())));
        query.retain(|(_, value)| !value.is_empty());
        let progress = self.progress.clone();
        let pieces = pieces.inspect_ok(move |piece| progress.inc(piece.len() as u64));
        let mut request = self
            .client
            .request(Method::POST, &["assets"], &query)
            .header(CONTENT_TYPE, "application/octet-stream");
        if let Some(size_bytes) = size_bytes {
            request = request.header(CONTENT_LENGTH, size_bytes);
        }
        self.client.send(finish(request, Body::from_stream(pieces))?).await?.json().await
    }

    async fn outcome(&self, path: PathBuf, added: Result<AddedAsset, Failure>) -> Outcome {
        let settled = async {
            let AddedAsset { hash, size, existed } = added?;
            let kept = if existed { self.describe(hash).await? } else { None };
            Ok((hash, size, existed, kept))
        };
        match settled.await {
            Ok((hash, size, existed, kept)) => {
                Outcome::Added(Added { hash, path, size, existed, kept })
            }
            Err(failure) => Outcome::Failed(path, failure),
        }
    }

    /// Gives an asset that was here already the tags of this command, and its description if the
    /// asset has none. Returns a message when something was not applied.
    async fn describe(&self, hash: Hash) -> Result<Option<String>, Failure> {
        let AddArgs { tags, description, media_type, .. } = self.args;
        let description = canonical_text(description);
        if tags.is_empty() && description.is_empty() && media_type.is_empty() {
            return Ok(None);
        }
        let hash = hash.to_string();
        let row: AssetRow = self.client.get(&["assets", &hash, "meta"], &[]).await?;
        let lacks_description = !description.is_empty() && row.description.is_empty();
        let edit = AssetEdit {
            description: lacks_description.then(|| description.clone()),
            add: tags.clone(),
            ..AssetEdit::default()
        };
        if edit != AssetEdit::default() {
            let _: Written = self.client.patch(&["v1", "assets", &hash, "meta"], &edit).await?;
        }
        let has_other = |given: &str, has: &str| !given.is_empty() && given != has;
        Ok(if !row.description.is_empty() && has_other(&description, &row.description) {
            Some(format!(
                "it is here already and keeps its description: `can-sync describe {hash} TEXT` \
                 gives it another"
            ))
        } else if has_other(media_type, &row.media_type) {
            Some(format!("it is here already and keeps its type, {:?}", row.media_type))
        } else {
            None
        })
    }
}

/// The content of a pipe, whose size is not known beforehand.
fn unsized_pieces(
    content: impl AsyncRead + Send + 'static,
    why: Why,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    ReaderStream::with_capacity(content, PIECE_BYTES).map_err(move |error| why.tell(error.into()))
}

/// A failure of the user's file or pipe, not of the agent.
fn unreadable(error: ReadError) -> Failure {
    anyhow::Error::new(error).into()
}

/// The name an asset is known by: the last part of its path.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn cut_off() -> Result<AddedAsset, Failure> {
    Err(anyhow!("the agent's answer is cut off").into())
}

/// Converts the result of one file of a batch. Its status is an HTTP status.
fn judge(result: &PushResult, size: u64) -> Result<AddedAsset, Failure> {
    let hash = || {
        Hash::from_slice(&result.hash).context("reading the agent's answer").map_err(Failure::from)
    };
    match result.status {
        200 => Ok(AddedAsset { hash: hash()?, size, existed: false }),
        208 => Ok(AddedAsset { hash: hash()?, size, existed: true }),
        503 | 507 => Err(Failure::new(Exit::Temporary, &result.detail)),
        _ => Err(Failure::new(Exit::Error, &result.detail)),
    }
}
