//! Thumbnails: each is made by a child process (see [`super::thumbnail`]) and cached on disk.
//!
//! T1  A child has one file to read and one to write, and nothing else. A hostile picture costs at most
//!     one child for [`CHILD_DEADLINE`], and is shown as a placeholder. It is tried again only after the
//!     cache has dropped that result.
//! T2  At most [`CHILDREN_MAX`] children run, and [`WAITING_MAX`] requests wait for one.
//! T3  The cache holds at most [`KEPT_MAX`] files of at most [`super::thumbnail::OUTPUT_BYTES_MAX`]; the oldest are
//!     removed first. The cache can be deleted at any time.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::agent::Agent;
use super::thumbnail::INPUT_BYTES_MAX;
use crate::core::ids::Hash;
use crate::http::target::path_and_query;

/// The media types of which thumbnails are made.
pub(super) const TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/// How long a child may take, with reading: enough for 100 megapixels on a slow processor.
const CHILD_DEADLINE: Duration = Duration::from_secs(15);

/// The most children at a time: they must leave the processor to the agent.
const CHILDREN_MAX: usize = 2;

/// The most requests that wait for a child: a screen full of tiles.
const WAITING_MAX: usize = 120;

/// How often the parent checks whether a child has exited.
const LOOK_AT_CHILD_EVERY: Duration = Duration::from_millis(10);

/// The most files in the cache: about 500 MB.
const KEPT_MAX: usize = 20_000;

/// How many thumbnails are made between two looks at the size of the cache.
const LOOK_EVERY: usize = 1_000;

/// A thumbnail, or none.
pub(super) enum Thumbnail {
    /// A JPEG.
    Made(Bytes),
    /// None can be made of this content.
    None,
    /// Too many are being made, or the content cannot be read now.
    NotNow,
}

/// The thumbnails of one agent. Clones share them.
#[derive(Clone)]
pub(super) struct Thumbnails {
    dir: Arc<Path>,
    children: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Numbers the thumbnails that this process makes.
    made: Arc<AtomicUsize>,
}

impl Thumbnails {
    /// Kept in `dir`, which may be missing.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir: dir.into(),
            children: Arc::new(Semaphore::new(CHILDREN_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            made: Arc::default(),
        }
    }

    /// The thumbnail of an asset.
    pub(super) async fn get(&self, agent: &Agent, hash: Hash) -> Thumbnail {
        if let Some(kept) = self.kept(hash).await {
            return kept;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return Thumbnail::NotNow };
        let Ok(_child) = self.children.acquire().await else { return Thumbnail::NotNow };
        // Another request may have made it meanwhile.
        if let Some(kept) = self.kept(hash).await {
            return kept;
        }
        match self.make(agent, hash).await {
            Ok(made) => made,
            Err(error) => {
                tracing::debug!(hash = hash.short(), %error, "thumbnails cannot be kept");
                Thumbnail::NotNow
            }
        }
    }

    async fn make(&self, agent: &Agent, hash: Hash) -> anyhow::Result<Thumbnail> {
        let path = self.path(hash);
        let parent = path.parent().unwrap_or(&self.dir).to_owned();
        spawn_blocking(move || fs::create_dir_all(parent)).await??;
        // Two requests for one asset may be here at once.
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let [picture, part] =
            ["picture", "part"].map(|what| path.with_extension(format!("{number}.{what}")));
        let _remove = [Scratch(&picture), Scratch(&part)];
        let Some(copied_bytes) = copy(agent, hash, &picture).await else {
            return Ok(Thumbnail::NotNow);
        };
        let made = match copied_bytes {
            ..=INPUT_BYTES_MAX => make(&picture, &part).await,
            _ => Err(anyhow::anyhow!("it has more than {INPUT_BYTES_MAX} bytes")),
        };
        let made = match made {
            Ok(()) => tokio::fs::read(&part).await?,
            Err(error) => {
                tracing::debug!(hash = hash.short(), %error, "no thumbnail can be made");
                Vec::new()
            }
        };
        if made.is_empty() {
            tokio::fs::write(&part, []).await?;
        }
        // Renaming puts the whole file under its name, or nothing.
        tokio::fs::rename(&part, &path).await?;
        if number.is_multiple_of(LOOK_EVERY) {
            let dir = self.dir.clone();
            spawn_blocking(move || make_room(&dir, KEPT_MAX)).await??;
        }
        Ok(if made.is_empty() { Thumbnail::None } else { Thumbnail::Made(made.into()) })
    }

    /// A cached thumbnail. An empty file means that none can be made.
    async fn kept(&self, hash: Hash) -> Option<Thumbnail> {
        let bytes = tokio::fs::read(self.path(hash)).await.ok()?;
        Some(if bytes.is_empty() { Thumbnail::None } else { Thumbnail::Made(bytes.into()) })
    }

    fn path(&self, hash: Hash) -> PathBuf {
        let hash = hash.to_string();
        self.dir.join(&hash[..2]).join(&hash[2..])
    }
}

/// A file that is removed when this is dropped.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // It may have been renamed already.
        let _ = fs::remove_file(self.0);
    }
}

/// Removes the oldest files if there are more than `most`, and then a tenth more.
fn make_room(dir: &Path, most: usize) -> std::io::Result<()> {
    let mut files = Vec::new();
    for shelf in fs::read_dir(dir)? {
        let shelf = shelf?;
        if !shelf.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(shelf.path())? {
            let file = file?;
            let modified = file.metadata().and_then(|file| file.modified());
            files.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), file.path()));
        }
    }
    if files.len() <= most {
        return Ok(());
    }
    files.sort();
    let surplus = files.len() - (most - most / 10);
    files.into_iter().take(surplus).try_for_each(|(_, file)| fs::remove_file(file))
}

/// Copies the content of an asset into a file, or little more than [`INPUT_BYTES_MAX`] of it. Returns
/// how many bytes; `None` when it cannot be read now.
async fn copy(agent: &Agent, hash: Hash, path: &Path) -> Option<u64> {
    let target = path_and_query(&["assets", &hash.to_string()], &[]);
    let response = agent.pass(Request::get(target).body(Body::empty()).ok()?).await;
    if !response.status().is_success() {
        return None;
    }
    let mut content = response.into_body().into_data_stream();
    let mut file = tokio::fs::File::create(path).await.ok()?;
    let mut copied_bytes = 0;
    while let Some(piece) = content.next().await {
        let piece = piece.ok()?;
        copied_bytes += piece.len() as u64;
        file.write_all(&piece).await.ok()?;
        if copied_bytes > INPUT_BYTES_MAX {
            break;
        }
    }
    file.flush().await.ok()?;
    Some(copied_bytes)
}

/// Has a child make a thumbnail of the picture in one file and write it to another.
async fn make(picture: &Path, thumbnail: &Path) -> anyhow::Result<()> {
    let child = Command::new(std::env::current_exe()?)
        .arg("thumbnail")
        .env_clear()
        .stdin(fs::File::open(picture)?)
        .stdout(fs::File::create(thumbnail)?)
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let mut child = Running(child);
    let ended = async {
        loop {
            if let Some(ended) = child.0.try_wait()? {
                return anyhow::Ok(ended);
            }
            sleep(LOOK_AT_CHILD_EVERY).await;
        }
    };
    let ended = timeout(CHILD_DEADLINE, ended).await??;
    anyhow::ensure!(ended.success(), "the child ended with {ended}");
    Ok(())
}

/// A child, killed with its process group when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // The child leads its own process group.
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_forgets_the_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        for at in 0..20_u64 {
            let shelf = dir.path().join(format!("{:02x}", at % 3));
            fs::create_dir_all(&shelf).unwrap();
            let file = shelf.join(at.to_string());
            fs::write(&file, "x").unwrap();
            let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
            fs::File::options().write(true).open(file).unwrap().set_modified(modified).unwrap();
        }
        make_room(dir.path(), 20).unwrap();
        let count = || {
            walkdir::WalkDir::new(dir.path())
                .into_iter()
                .flatten()
                .filter(|e| e.file_type().is_file())
                .count()
        };
        assert_eq!(count(), 20);
        make_room(dir.path(), 10).unwrap();
        assert_eq!(count(), 9);
        assert!(!dir.path().join("00/0").exists());
        assert!(dir.path().join("01/19").exists());
    }
}
