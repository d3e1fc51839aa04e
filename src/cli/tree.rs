//! `get --all` and `get --tag`: many assets into one folder, in the folders they came from.
//!
//! Paths and names come from other devices and are wishes only.
//!
//! T1  Nothing is written outside the folder: each component of a path is made harmless, and one that
//!     is a symbolic link is not followed.
//! T2  Nothing is replaced. A file that has the content already is left alone, so the command can be
//!     given again; any other file with the name makes the asset's hash part of the name.
//! T3  An asset that cannot be written is reported, and the others are written.

use std::fs::{self, DirBuilder};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use indicatif::ProgressBar;
use serde::Serialize;

use super::assets::Pages;
use super::client::Client;
use super::content::{Target, algorithm, interrupted, write};
use super::exit::{Exit, Failure};
use super::output::{Output, Results};
use super::text::{causes, lossy_path, shown};
use crate::core::export_name::{export_name, suffixed_name};
use crate::core::ids::{Hash, HashAlgorithm};
use crate::http::asset::AssetRow;
use crate::store::hasher::hash_file;

/// The result for one asset: its file, written now or before.
#[derive(Serialize)]
struct Exported {
    hash: Hash,
    size: u64,
    #[serde(serialize_with = "lossy_path")]
    path: PathBuf,
    existed: bool,
}

/// Writes the assets that meet the conditions below `top`.
pub(super) async fn get(
    client: &Client,
    filters: Vec<(&'static str, String)>,
    top: &Path,
    output: Output,
) -> Result<Exit, Failure> {
    if top == Path::new("-") {
        let message = "many assets go into a folder, not to standard output: name one with -o";
        return Err(Failure::new(Exit::Usage, message));
    }
    let making = || format!("making the folder {}", top.display());
    fs::create_dir_all(top).with_context(making)?;
    let interrupted = interrupted()?;
    let progress = output.progress(0);
    let algorithm = algorithm(client).await?;
    let writing = async {
        let mut pages = Pages::new(client, filters);
        let mut results = Results::new(output);
        let mut exit = Exit::Ok;
        while let Some(rows) = pages.next().await? {
            progress.inc_length(rows.iter().map(|row| row.size).sum());
            for row in &rows {
                match export(client, row, algorithm, top, &progress).await {
                    Ok(exported) => progress.suspend(|| results.value(&exported, line))?,
                    Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
                    Err(failure @ Failure::Report(Exit::NotRunning | Exit::Temporary, _)) => {
                        return Err(failure);
                    }
                    Err(Failure::Report(status, error)) => {
                        let (asset, error) = (row.full_name(), causes(&error));
                        let hash = row.hash.short();
                        progress.suspend(|| output.error(format_args!("{hash} {asset}: {error}")));
                        exit = if exit == Exit::Ok { status } else { exit };
                    }
                }
            }
        }
        Ok(exit)
    };
    let exit = tokio::select! {
        written = writing => written,
        () = interrupted => Err(anyhow!("interrupted: not every asset was written").into()),
    };
    progress.finish_and_clear();
    exit
}

fn line(exported: &Exported) -> String {
    let known = if exported.existed { "  (here already)" } else { "" };
    format!("{}{known}", shown(&exported.path.to_string_lossy()))
}

async fn export(
    client: &Client,
    row: &AssetRow,
    algorithm: HashAlgorithm,
    top: &Path,
    progress: &ProgressBar,
) -> Result<Exported, Failure> {
    let (hash, size) = (row.hash, row.size);
    let folder = folder(top, &row.path)?;
    let name = export_name(&row.name).unwrap_or_else(|| hash.to_string());
    let other = suffixed_name(&name, &hash);
    for name in [&name, &other] {
        let path = folder.join(name);
        if has_content(&path, row, algorithm)? {
            progress.inc(size);
            return Ok(Exported { hash, size, path, existed: true });
        }
    }
    let target = Target::FirstFree(folder, [name, other]);
    let path = write(client, row, algorithm, &target, progress).await?;
    Ok(Exported { hash, size, path, existed: false })
}

/// Makes the folder of an asset below `top`. A component whose name is taken by something else gets
/// an underscore appended.
fn folder(top: &Path, path: &str) -> Result<PathBuf, Failure> {
    let mut folder = top.to_owned();
    for name in path.split('/').filter_map(export_name) {
        let names = [name.clone(), format!("{name}_")];
        let mut made = None;
        for name in names {
            let path = folder.join(name);
            let made_or_there = match DirBuilder::new().create(&path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir())
                }
                Err(error) => {
                    let making = format!("making the folder {}", path.display());
                    return Err(anyhow::Error::new(error).context(making).into());
                }
            };
            if made_or_there {
                made = Some(path);
                break;
            }
        }
        folder = made.ok_or_else(|| {
            let path = folder.join(&name);
            anyhow!("{} is no folder: move it away, or name another with -o", path.display())
        })?;
    }
    Ok(folder)
}

/// Whether there is a file at `path` with the content of the asset.
fn has_content(path: &Path, row: &AssetRow, algorithm: HashAlgorithm) -> Result<bool, Failure> {
    let is_like = |found: fs::Metadata| found.is_file() && found.len() == row.size;
    if !fs::symlink_metadata(path).is_ok_and(is_like) {
        return Ok(false);
    }
    let hash = hash_file(path, algorithm);
    let hash = hash.with_context(|| format!("reading {}", path.display()))?;
    Ok(hash == row.hash)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_another_device_never_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        fs::create_dir(&top).unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        fs::write(top.join("file"), "mine").unwrap();
        for (path, made) in [
            ("", "top"),
            ("a/b", "top/a/b"),
            ("../../outside", "top/outside"),
            ("/outside", "top/outside"),
            ("link/x", "top/link_/x"),
            ("file", "top/file_"),
            (".ssh", "top/_ssh"),
            ("a\u{1b}[2J/..\\b", "top/a_[2J/b"),
        ] {
            assert_eq!(folder(&top, path).unwrap(), dir.path().join(made), "{path:?}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read(top.join("file")).unwrap(), b"mine");
        fs::write(top.join("link_/y"), "").unwrap();
        fs::write(top.join("link_/y_"), "").unwrap();
        assert!(folder(&top, "link/y/z").is_err());
    }
}
