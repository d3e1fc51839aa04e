//! `get` and `cat`: an asset's content, checked against its hash on its way out.
//!
//! F1  A file appears under its name whole, verified and durable, or not at all.
//! F2  A file is replaced only when `-o` names it, and then in one step, with the mode and owner it
//!     had; a symbolic link stays and its target is replaced. A name that the asset brings along
//!     never replaces anything and never leaves the folder.
//! F3  `cat` prints as it reads; a content that turns out wrong ends it with an error.
//! F4  Ctrl-C, SIGTERM and SIGHUP remove the unfinished file.
//! F5  A file that is written has the time at which the asset's file was last modified, if it is known.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use axum::body::Body;
use axum::http::Method;
use clap::Args;
use indicatif::ProgressBar;
use rustix::fs::{CWD, RenameFlags};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::assets::find;
use super::client::{Client, finish};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::text::{lossy_path, shown};
use super::tree;
use crate::core::export_name::{export_name, suffixed_name};
use crate::core::ids::{Hash, HashAlgorithm};
use crate::http::asset::AssetRow;
use crate::store::hasher::Hasher;

/// `can-sync cat`
pub(crate) async fn cat(client: &Client, text: &str, output: Output) -> Result<Exit, Failure> {
    let row = find(client, text).await?;
    let algorithm = algorithm(client).await?;
    copy_verified(client, &row, algorithm, |piece| output.bytes(piece)).await?;
    Ok(Exit::Ok)
}

/// The JSON output of `get`.
#[derive(Serialize)]
struct Written {
    hash: Hash,
    size: u64,
    #[serde(serialize_with = "lossy_path")]
    path: PathBuf,
}

/// The arguments of `can-sync get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The asset's name or hash, or the unique start of either
    #[arg(required_unless_present_any = ["all", "tag"], conflicts_with_all = ["all", "tag"])]
    asset: Option<String>,
    /// Every asset that is not in the trash
    #[arg(long, conflicts_with = "tag")]
    all: bool,
    /// Every asset with this tag
    #[arg(long)]
    tag: Option<String>,
    /// The file or folder to write to, `-` for standard output; of many assets the folder, in which
    /// they get the folders they came from [default: the asset's own name, in this folder]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `can-sync get`
pub(crate) async fn get(client: &Client, args: GetArgs, output: Output) -> Result<Exit, Failure> {
    let GetArgs { asset, tag, output: target, .. } = args;
    let Some(text) = asset else {
        let mut filters = vec![("trashed", "false".to_owned())];
        filters.extend(tag.map(|tag| ("tag", tag)));
        let target = target.unwrap_or_else(|| PathBuf::from("."));
        return tree::get(client, filters, &target, output).await;
    };
    if target.as_deref() == Some(Path::new("-")) {
        return cat(client, &text, output).await;
    }
    let row = find(client, &text).await?;
    let target = Target::choose(target, &row)?;
    // From here on a signal ends the command after it has cleaned up.
    let interrupted = interrupted()?;
    let progress = output.progress(row.size);
    let algorithm = algorithm(client).await?;
    let path = tokio::select! {
        written = write(client, &row, algorithm, &target, &progress) => written?,
        () = interrupted => return Err(anyhow!("interrupted: nothing was written").into()),
    };
    progress.finish_and_clear();
    let written = Written { hash: row.hash, size: row.size, path };
    output.value(&written, |written| shown(&written.path.to_string_lossy()))?;
    Ok(Exit::Ok)
}

/// Writes an asset to its target and returns the path. Dropping the future leaves nothing behind.
pub(super) async fn write(
    client: &Client,
    row: &AssetRow,
    algorithm: HashAlgorithm,
    target: &Target,
    progress: &ProgressBar,
) -> Result<PathBuf, Failure> {
    let mut temp = TempFile::create(target)?;
    let writing = || format!("writing to {}", target.shown());
    copy_verified(client, row, algorithm, |piece| {
        progress.inc(piece.len() as u64);
        temp.file.write_all(piece).with_context(writing)?;
        Ok(())
    })
    .await?;
    if let Some(time) = row.modified_ms.and_then(system_time) {
        temp.file.set_modified(time).with_context(writing)?;
    }
    temp.place(target)
}

fn system_time(ms: i64) -> Option<SystemTime> {
    let since = Duration::from_millis(ms.unsigned_abs());
    match ms < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(since),
        false => SystemTime::UNIX_EPOCH.checked_add(since),
    }
}

/// Waits for one of the signals that ask a command to end.
pub(super) fn interrupted() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).context("listening for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

/// Streams a content to `sink`. Fails at the end if the content does not have the requested hash.
async fn copy_verified(
    client: &Client,
    row: &AssetRow,
    algorithm: HashAlgorithm,
    mut sink: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let text = row.hash.to_string();
    let request = client.request(Method::GET, &["assets", &text], &[]);
    let mut answer = client.send_for_content(finish(request, Body::empty())?).await?;
    let mut hasher = Hasher::new(algorithm);
    loop {
        let piece = match answer.next_piece().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(broken) => return Err(why_cut_off(client, &text, broken).await),
        };
        hasher.update(&piece);
        sink(&piece)?;
    }
    let got: Hash = hasher.hash();
    if got != row.hash {
        return Err(damaged(&text));
    }
    Ok(())
}

/// Finds out why a download ended too early. The agent ends the response body when it reads damaged
/// bytes, and answers the next request for the asset with an error that says so.
async fn why_cut_off(client: &Client, hash: &str, broken: Failure) -> Failure {
    match find(client, hash).await {
        Ok(row) if row.damaged => damaged(hash),
        _ => broken,
    }
}

fn damaged(hash: &str) -> Failure {
    let detail = format!(
        "the bytes of asset {hash} are damaged on this device: it comes back from another device \
         that has it, or when the file is added again"
    );
    Failure::new(Exit::Damaged, detail)
}

pub(super) async fn algorithm(client: &Client) -> Result<HashAlgorithm, Failure> {
    let name = client.status().await?.store.hash_algorithm;
    [HashAlgorithm::Blake3, HashAlgorithm::Sha256]
        .into_iter()
        .find(|algorithm| algorithm.name() == name)
        .ok_or_else(|| {
            Failure::new(Exit::Temporary, "the store has not reported its hash algorithm yet")
        })
}

/// Where `get` writes the content.
pub(super) enum Target {
    /// A new file of this name.
    New(PathBuf),
    /// An existing file, which is replaced: the path to show, and the real path if that is a link.
    Existing { shown: PathBuf, real: PathBuf },
    /// The first of these names that is free in the folder.
    FirstFree(PathBuf, [String; 2]),
}

impl Target {
    fn choose(given: Option<PathBuf>, row: &AssetRow) -> Result<Self, Failure> {
        let folder = match given {
            None => PathBuf::from("."),
            Some(path) => match fs::metadata(&path) {
                Ok(found) if found.is_dir() => path,
                Ok(found) if !found.is_file() => {
                    let shown = path.display();
                    return Err(anyhow!("{shown} is no regular file: use `can-sync cat`").into());
                }
                Ok(_) => {
                    let real = path.canonicalize();
                    let real = real.with_context(|| format!("looking up {}", path.display()))?;
                    return Ok(Self::Existing { shown: path, real });
                }
                Err(_) if path.is_symlink() => {
                    let shown = path.display();
                    return Err(anyhow!("{shown} is a link to nothing: remove it first").into());
                }
                Err(_) if path.file_name().is_none() => {
                    return Err(anyhow!("{} names no file", path.display()).into());
                }
                Err(_) => return Ok(Self::New(path)),
            },
        };
        let name = export_name(&row.name).unwrap_or_else(|| row.hash.to_string());
        let other = suffixed_name(&name, &row.hash);
        Ok(Self::FirstFree(folder, [name, other]))
    }

    /// The folder of the unfinished file. It is on the target's file system, because a rename
    /// cannot cross to another one.
    fn folder(&self) -> &Path {
        let parent = match self {
            Self::FirstFree(folder, _) => return folder,
            Self::New(path) => path.parent(),
            Self::Existing { real, .. } => real.parent(),
        };
        parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The name to show.
    fn shown(&self) -> std::path::Display<'_> {
        match self {
            Self::New(path) | Self::Existing { shown: path, .. } => path.display(),
            Self::FirstFree(folder, _) => folder.display(),
        }
    }
}

/// An unfinished file is for its owner alone: the file that it replaces may be private.
const UNFINISHED_MODE: u32 = 0o600;

/// A temporary file in the target's folder; removed when dropped.
struct TempFile {
    file: File,
    path: PathBuf,
}

impl TempFile {
    fn create(target: &Target) -> Result<Self, Failure> {
        let random = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 8]>());
        let path = target.folder().join(format!(".can-sync-{random}.part"));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        if matches!(target, Target::Existing { .. }) {
            options.mode(UNFINISHED_MODE);
        }
        let file = options.open(&path);
        let file = file.with_context(|| format!("creating a file beside {}", target.shown()))?;
        Ok(Self { file, path })
    }

    /// Gives the complete file its name, durably.
    fn place(self, target: &Target) -> Result<PathBuf, Failure> {
        let writing = || format!("writing to {}", target.shown());
        if let Target::Existing { real, .. } = target {
            self.take_over_access(real).with_context(writing)?;
        }
        self.file.sync_all().with_context(writing)?;
        let path = match target {
            Target::New(path) => {
                fs::rename(&self.path, path).with_context(writing)?;
                path.clone()
            }
            Target::Existing { shown, real } => {
                fs::rename(&self.path, real).with_context(writing)?;
                shown.clone()
            }
            Target::FirstFree(folder, names) => self.take_free_name(folder, names)?,
        };
        let folder = target.folder();
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("writing the folder {}", folder.display()))?;
        Ok(path)
    }

    /// The owner and mode of the file that this one replaces.
    fn take_over_access(&self, replaced: &Path) -> io::Result<()> {
        let before = fs::metadata(replaced)?;
        // Only root can change a file's owner; for others the new file is their own.
        let _ = fchown(&self.file, Some(before.uid()), Some(before.gid()));
        self.file.set_permissions(Permissions::from_mode(before.mode() & 0o777))
    }

    fn take_free_name(&self, folder: &Path, names: &[String]) -> Result<PathBuf, Failure> {
        for name in names {
            let path = if folder == Path::new(".") { name.into() } else { folder.join(name) };
            match rename_to_free(&self.path, &path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    return Err(error.context(format!("writing {}", path.display())).into());
                }
            }
        }
        let names = names.join(" and ");
        Err(anyhow!("{names} are there already: name another file with -o").into())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// Renames a file unless the new name is taken, even if it is taken at the same instant.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some network file systems cannot do this. A hard link does not replace a file either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}
