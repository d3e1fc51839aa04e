//! Thumbnails: small pictures of assets, each made by a child process (see [`child`]) and cached on disk.
//!
//! T1  A child has one file to read and one to write, and nothing else. A hostile picture costs at most
//!     one child for [`CHILD_DEADLINE`], and is shown as a placeholder. It is tried again only after the
//!     cache has dropped that result.
//! T2  At most [`CHILDREN_MAX`] children work for this device, for which [`WAITING_MAX`] requests wait,
//!     and [`CHILDREN_FOR_PEERS`] for its peers (see [`peers`]). Neither waits for the other.
//! T3  The cache holds at most [`KEPT_MAX`] files of at most [`crate::core::limits::THUMBNAIL_BYTES_MAX`]; the oldest are
//!     removed first. The cache can be deleted at any time.
//! T4  A thumbnail is made of a whole content that was compared with its hash. One that a peer sent is
//!     made again here by a child, is kept apart, and is not passed on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use self::child::INPUT_BYTES_MAX;
use crate::core::ids::{Digest, Hash, NodeId};
use crate::core::thumbnail::Answer;
use crate::store::hasher::Hasher;
use crate::store::{READ_BYTES_MAX, Store};
use crate::transfer::turns::Turns;

pub mod child;
mod peers;

/// The media types of which thumbnails are made.
pub const TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/// How long a child may take, with reading: enough for 100 megapixels on a slow processor.
const CHILD_DEADLINE: Duration = Duration::from_secs(15);

/// The most children at a time: they must leave the processor to the agent.
const CHILDREN_MAX: usize = 2;

/// See [`CHILDREN_MAX`].
const CHILDREN_FOR_PEERS: usize = 1;

/// The most requests that wait for a child: a screen full of tiles.
const WAITING_MAX: usize = 120;

/// How often the parent checks whether a child has exited.
const LOOK_AT_CHILD_EVERY: Duration = Duration::from_millis(10);

/// The most files in the cache: about 500 MB.
const KEPT_MAX: usize = 20_000;

/// How many thumbnails are made between two looks at the size of the cache.
const LOOK_EVERY: usize = 1_000;

/// Marks the files of thumbnails that a peer sent.
const OF_PEER: &str = "peer";

/// The thumbnails of one agent. Clones share them.
#[derive(Clone)]
pub struct Thumbnails {
    dir: Arc<Path>,
    program: Arc<Path>,
    store: Arc<dyn Store>,
    children: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    for_peers: Arc<Semaphore>,
    turns: Arc<Turns>,
    asking: Arc<Semaphore>,
    /// The peers that are not asked before a time, because they did not answer or answered wrongly. At
    /// most as many as the group has members.
    resting: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
    /// Numbers the thumbnails that this process makes.
    made: Arc<AtomicUsize>,
}

impl Thumbnails {
    /// Kept in `dir`, which may be missing. `program` makes one when it is run with the argument
    /// `thumbnail`.
    pub fn new(dir: PathBuf, program: PathBuf, store: Arc<dyn Store>) -> Self {
        Self {
            dir: dir.into(),
            program: program.into(),
            store,
            children: Arc::new(Semaphore::new(CHILDREN_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            for_peers: Arc::new(Semaphore::new(CHILDREN_FOR_PEERS)),
            turns: Arc::default(),
            asking: Arc::new(Semaphore::new(peers::ASKING_MAX)),
            resting: Arc::default(),
            made: Arc::default(),
        }
    }

    /// The thumbnail of an asset, made here or sent by a peer before.
    pub async fn get(&self, hash: Hash) -> Answer {
        let own = match self.kept(&self.path(hash)).await {
            Some(kept) => kept,
            None => {
                let Ok(_waiting) = self.waiting.try_acquire() else { return Answer::Busy };
                self.make_once(hash, &self.children).await
            }
        };
        match own {
            Answer::NotHeld => self.kept_of_peer(hash).await.unwrap_or(Answer::NotHeld),
            own => own,
        }
    }

    /// Makes the thumbnail of a content that is held here, unless it was made meanwhile.
    async fn make_once(&self, hash: Hash, children: &Semaphore) -> Answer {
        let Ok(_child) = children.acquire().await else { return Answer::Busy };
        if let Some(kept) = self.kept(&self.path(hash)).await {
            return kept;
        }
        self.make(hash).await.unwrap_or_else(|error| {
            tracing::debug!(hash = hash.short(), %error, "no thumbnail can be made now");
            Answer::Busy
        })
    }

    async fn make(&self, hash: Hash) -> anyhow::Result<Answer> {
        let held = self.store.lookup(hash).await?.filter(|asset| asset.is_held());
        let Some(digest) = held.map(|asset| asset.entry.digest) else {
            return Ok(Answer::NotHeld);
        };
        let scratch = self.scratch(hash).await?;
        let made = match digest.size_bytes {
            ..=INPUT_BYTES_MAX => match self.copy(digest, &scratch.picture).await? {
                true => run(&self.program, &scratch).await,
                false => return Ok(Answer::NotHeld),
            },
            _ => Err(anyhow::anyhow!("it has more than {INPUT_BYTES_MAX} bytes")),
        };
        if let Err(error) = made {
            tracing::debug!(hash = hash.short(), %error, "no thumbnail can be made");
            tokio::fs::write(&scratch.part, []).await?;
        }
        self.keep(&scratch, &self.path(hash)).await
    }

    /// Copies the content of an asset into a file. Returns false when it is not held, or damaged.
    async fn copy(&self, digest: Digest, path: &Path) -> anyhow::Result<bool> {
        let Digest { hash, size_bytes } = digest;
        let mut hasher = Hasher::new(self.store.info().await?.hash_algorithm);
        let mut file = tokio::fs::File::create(path).await?;
        for start in (0..size_bytes).step_by(READ_BYTES_MAX as usize) {
            let range = start..size_bytes.min(start + READ_BYTES_MAX);
            let Some(piece) = self.store.read(hash, range).await? else { return Ok(false) };
            hasher.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        if hasher.hash() != hash {
            // It looks a second time, and marks it.
            self.store.verify(hash).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Makes a thumbnail of the one that a peer sent, and keeps it.
    async fn take_in(&self, hash: Hash, sent: &[u8]) -> anyhow::Result<Answer> {
        let _child = self.children.acquire().await?;
        let scratch = self.scratch(hash).await?;
        tokio::fs::write(&scratch.picture, sent).await?;
        run(&self.program, &scratch).await?;
        self.keep(&scratch, &self.path(hash).with_extension(OF_PEER)).await
    }

    /// Files for one child.
    async fn scratch(&self, hash: Hash) -> anyhow::Result<Scratch> {
        let path = self.path(hash);
        let parent = path.parent().unwrap_or(&self.dir).to_owned();
        spawn_blocking(move || fs::create_dir_all(parent)).await??;
        // Two requests for one asset may be here at once.
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(LOOK_EVERY) {
            let dir = self.dir.clone();
            spawn_blocking(move || make_room(&dir, KEPT_MAX)).await??;
        }
        let [picture, part] =
            ["picture", "part"].map(|what| path.with_extension(format!("{number}.{what}")));
        Ok(Scratch { picture, part })
    }

    /// Puts what a child has made into the cache: the whole file under its name, or nothing.
    async fn keep(&self, scratch: &Scratch, path: &Path) -> anyhow::Result<Answer> {
        tokio::fs::rename(&scratch.part, path).await?;
        Ok(self.kept(path).await.unwrap_or(Answer::Busy))
    }

    async fn kept_of_peer(&self, hash: Hash) -> Option<Answer> {
        self.kept(&self.path(hash).with_extension(OF_PEER)).await
    }

    /// A cached thumbnail. An empty file means that none can be made.
    async fn kept(&self, path: &Path) -> Option<Answer> {
        let bytes = tokio::fs::read(path).await.ok()?;
        Some(if bytes.is_empty() { Answer::Impossible } else { Answer::Made(bytes.into()) })
    }

    fn path(&self, hash: Hash) -> PathBuf {
        let hash = hash.to_string();
        self.dir.join(&hash[..2]).join(&hash[2..])
    }
}

/// The files of one child. Both are removed when this is dropped.
struct Scratch {
    picture: PathBuf,
    part: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for file in [&self.picture, &self.part] {
            // It may have been renamed already, or never made.
            let _ = fs::remove_file(file);
        }
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

/// Has a child make a thumbnail of the picture in one file and write it to the other.
async fn run(program: &Path, Scratch { picture, part }: &Scratch) -> anyhow::Result<()> {
    let child = Command::new(program)
        .arg("thumbnail")
        .env_clear()
        .stdin(fs::File::open(picture)?)
        .stdout(fs::File::create(part)?)
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
