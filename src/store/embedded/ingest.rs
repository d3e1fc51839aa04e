//! How a content comes in: what is checked, and the order in which it reaches the disk.
//!
//! A small content goes into the database, in the commit that records it. A larger one is a file:
//!
//! 1. write it under a temporary name and sync it;
//! 2. reserve its hash (a commit of its own), so that a crash from here on leaves a note to sweep;
//! 3. give it its name, and sync the folders;
//! 4. record it (the commit that is answered), which also drops the reservation.
//!
//! Steps 2 to 4 are done by one caller at a time. So a hash that was not held in step 2 has no
//! file but ours, and a failed step 4 may take it away again.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use bao_tree::io::sync::OutboardMut;
use bao_tree::{BaoTree, BlockSize, TreeNode};
use blake3::hazmat;

use super::db::{Database, Txn, lock, sql_error};
use super::files::{Files, Move, Temp, failed, remove};
use super::rows::{self, NewRow};
use super::{Health, INLINE_BYTES_MAX};
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::store::{Metadata, NewAsset, SMALL_BYTES_MAX, StoreError, Stored, VerifiedFile};

/// The group of chunks an outboard's leaves stand for: 16 KiB.
pub(super) const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// What people wrote about one asset, all texts together: keeps a page of them in memory.
const METADATA_BYTES_MAX: usize = 64 * 1024;

/// How much of a file is read at once while it is hashed.
const HASH_BUFFER_BYTES: usize = 1 << 20;

type Result<T> = std::result::Result<T, StoreError>;

/// The taking in of contents. Every method blocks on the disk.
pub(super) struct Ingest<'a> {
    pub(super) database: &'a Database,
    pub(super) files: &'a Files,
    pub(super) health: &'a Health,
    pub(super) algorithm: HashAlgorithm,
    /// Held through steps 2 to 4.
    pub(super) placing: &'a Mutex<()>,
}

impl Ingest<'_> {
    /// See [`crate::store::Store::put`].
    pub(super) fn put(&self, assets: Vec<NewAsset>) -> Result<Vec<Result<Stored>>> {
        self.health.check()?;
        let total: u64 = assets.iter().map(|asset| asset.content.len() as u64).sum();
        self.files.check_space(total)?;
        let checked: Vec<Result<()>> = assets.iter().map(|asset| self.check(asset)).collect();
        let mut files = Vec::new();
        let mut rows = Vec::new();
        let timestamp_ms = now_ms();
        for (asset, _) in assets.into_iter().zip(&checked).filter(|(_, c)| c.is_ok()) {
            let digest = asset.digest;
            let is_file = asset.content.len() > INLINE_BYTES_MAX;
            if is_file && !self.is_held(digest.hash)? {
                let (temp, file) = self.files.write_temp(&asset.content)?;
                files.push((digest.hash, temp, file));
            }
            rows.push(NewRow {
                digest,
                metadata: asset.metadata,
                timestamp_ms,
                inline: (!is_file).then_some(asset.content),
            });
        }
        // All are written before the first is waited for: the disk can take them together.
        for (_, temp, file) in &files {
            self.files.sync(file, &temp.0)?;
        }
        let moves = files
            .iter()
            .map(|(hash, temp, _)| Move {
                hash: *hash,
                from: &temp.0,
                to: self.files.content(*hash),
            })
            .collect();
        let mut stored = self.place_and_record(moves, rows)?.into_iter();
        let results = checked
            .into_iter()
            .map(|checked| checked.map(|()| stored.next().expect("a result for each row")));
        Ok(results.collect())
    }

    /// See [`crate::store::Store::adopt`].
    pub(super) fn adopt(&self, file: VerifiedFile) -> Result<Stored> {
        let paths = [Some(file.path.clone()), file.outboard.clone()];
        let result = self.adopt_or_leave(file);
        if !matches!(&result, Err(error) if error.is_temporary()) {
            for path in paths.iter().flatten() {
                if let Err(error) = remove(path) {
                    tracing::warn!(%error, "a file that is no longer needed stays");
                }
            }
        }
        result
    }

    fn adopt_or_leave(&self, file: VerifiedFile) -> Result<Stored> {
        self.health.check()?;
        let digest = file.digest;
        if self.is_held(digest.hash)? {
            return Ok(Stored::Existed);
        }
        check_metadata(&file.metadata)?;
        let path = &file.path;
        let length = fs::metadata(path).map_err(|e| failed("read", path, &e))?.len();
        if length != digest.size_bytes {
            let got = hash_file(self.algorithm, path)?;
            return Err(mismatch(digest, got));
        }
        if length <= SMALL_BYTES_MAX {
            let content = fs::read(path).map_err(|e| failed("read", path, &e))?;
            let asset = NewAsset { digest, content: content.into(), metadata: file.metadata };
            return self.put(vec![asset])?.remove(0);
        }

        let copied: Option<Temp> = if self.files.can_move(path) {
            // It is on the disk already and takes no more of it.
            self.files.check_space(0)?;
            self.files.own(path)?;
            None
        } else {
            self.files.check_space(length)?;
            Some(self.files.copy_temp(path)?)
        };
        let content = copied.as_ref().map_or(path.as_path(), |temp| &temp.0);
        let outboard = match self.algorithm {
            HashAlgorithm::Sha256 => None,
            HashAlgorithm::Blake3 => Some(self.outboard_for(digest, content, file.outboard)?),
        };

        let mut moves = Vec::new();
        if let Some(outboard) = &outboard {
            moves.push(Move {
                hash: digest.hash,
                from: outboard.path(),
                to: self.files.outboard(digest.hash),
            });
        }
        moves.push(Move { hash: digest.hash, from: content, to: self.files.content(digest.hash) });
        let row = NewRow { digest, metadata: file.metadata, timestamp_ms: now_ms(), inline: None };
        Ok(self.place_and_record(moves, vec![row])?.remove(0))
    }

    /// Computes the outboard of a held asset that lacks it, and keeps it.
    pub(super) fn rebuild_outboard(&self, digest: Digest) -> Result<File> {
        let content = self.files.content(digest.hash);
        let temp = self.compute_outboard(digest, &content)?;
        let path = self.files.outboard(digest.hash);
        self.files.place(&[Move { hash: digest.hash, from: &temp.0, to: path.clone() }])?;
        File::open(&path).map_err(|e| failed("read", &path, &e))
    }

    /// Steps 2 to 4 of the module's head. A result for each row.
    fn place_and_record(&self, moves: Vec<Move<'_>>, rows: Vec<NewRow>) -> Result<Vec<Stored>> {
        let record = move |txn: &mut Txn<'_>| rows::record(txn, &rows);
        if moves.is_empty() {
            return self.database.write(record);
        }
        let _placing = lock(self.placing);
        let hashes: Vec<Hash> = moves.iter().map(|step| step.hash).collect();
        let reserve = move |txn: &mut Txn<'_>| rows::reserve(txn, &hashes);
        let held = self.database.write(reserve)?;
        let moves: Vec<Move<'_>> = moves
            .into_iter()
            .zip(held)
            .filter_map(|(step, held)| (!held).then_some(step))
            .collect();
        let recorded = self.files.place(&moves).and_then(|()| self.database.write(record));
        // After a failure of the disk it is not known whether the record was kept: the files then
        // stay, and the next start decides.
        if recorded.as_ref().is_err_and(StoreError::is_temporary) {
            self.files.unplace(&moves);
        }
        recorded
    }

    fn is_held(&self, hash: Hash) -> Result<bool> {
        let reader = self.database.reader()?;
        rows::is_held(reader.conn(), hash).map_err(sql_error)
    }

    fn check(&self, asset: &NewAsset) -> Result<()> {
        let length = asset.content.len() as u64;
        if length > SMALL_BYTES_MAX {
            return Err(StoreError::TooLarge(format!(
                "{length} bytes at once; contents over {SMALL_BYTES_MAX} bytes come as files"
            )));
        }
        check_metadata(&asset.metadata)?;
        let got = self.algorithm.hash(&asset.content);
        if got != asset.digest.hash || length != asset.digest.size_bytes {
            return Err(mismatch(asset.digest, got));
        }
        Ok(())
    }

    /// The outboard given, when it can be right, else a computed one; on the disk in any case.
    fn outboard_for(
        &self,
        digest: Digest,
        content: &Path,
        given: Option<PathBuf>,
    ) -> Result<Outboard> {
        if let Some(path) = given.filter(|path| fits(digest, path)) {
            if self.files.can_move(&path) {
                self.files.own(&path)?;
                return Ok(Outboard::Given(path));
            }
            return Ok(Outboard::Temp(self.files.copy_temp(&path)?));
        }
        Ok(Outboard::Temp(self.compute_outboard(digest, content)?))
    }

    fn compute_outboard(&self, digest: Digest, content: &Path) -> Result<Temp> {
        let tree = BaoTree::new(digest.size_bytes, GROUP);
        self.files.check_space(tree.outboard_size())?;
        let data = File::open(content).map_err(|e| failed("read", content, &e))?;
        let (temp, file) = self.files.temp()?;
        let pairs = Pairs { tree, file: &file };
        let root = bao_tree::io::sync::outboard(
            BufReader::with_capacity(HASH_BUFFER_BYTES, data),
            tree,
            pairs,
        )
        .map_err(|e| failed("hash", content, &e))?;
        let got = Hash(*root.as_bytes());
        if got != digest.hash {
            return Err(mismatch(digest, got));
        }
        self.files.sync(&file, &temp.0)?;
        Ok(temp)
    }
}

enum Outboard {
    Given(PathBuf),
    Temp(Temp),
}

impl Outboard {
    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temp(temp) => &temp.0,
        }
    }
}

/// Hash pairs on their way into a pre-order outboard file.
struct Pairs<'a> {
    tree: BaoTree,
    file: &'a File,
}

impl OutboardMut for Pairs<'_> {
    fn save(
        &mut self,
        node: TreeNode,
        (left, right): &(blake3::Hash, blake3::Hash),
    ) -> io::Result<()> {
        let Some(place) = self.tree.pre_order_offset(node) else {
            return Ok(());
        };
        let mut pair = [0; 64];
        pair[..32].copy_from_slice(left.as_bytes());
        pair[32..].copy_from_slice(right.as_bytes());
        self.file.write_all_at(&pair, place * 64)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the file has the length of the asset's outboard and its top pair gives the hash.
pub(super) fn fits(digest: Digest, outboard: &Path) -> bool {
    let top = || -> io::Result<bool> {
        let file = File::open(outboard)?;
        let expected = BaoTree::new(digest.size_bytes, GROUP).outboard_size();
        if file.metadata()?.len() != expected {
            return Ok(false);
        }
        let (mut left, mut right) = ([0; 32], [0; 32]);
        file.read_exact_at(&mut left, 0)?;
        file.read_exact_at(&mut right, 32)?;
        let root = hazmat::merge_subtrees_root(&left, &right, hazmat::Mode::Hash);
        Ok(root.as_bytes() == digest.hash.as_bytes())
    };
    top().unwrap_or(false)
}

pub(super) fn check_metadata(metadata: &Metadata) -> Result<()> {
    let tags = metadata.tags.iter().map(String::len).sum::<usize>();
    let bytes =
        metadata.description.len() + metadata.file_name.len() + metadata.media_type.len() + tags;
    if bytes > METADATA_BYTES_MAX {
        return Err(StoreError::TooLarge(format!(
            "description, tags and names have {bytes} bytes, at most {METADATA_BYTES_MAX} are kept"
        )));
    }
    Ok(())
}

fn mismatch(digest: Digest, got: Hash) -> StoreError {
    StoreError::Mismatch { expected: digest.hash, got }
}

fn hash_file(algorithm: HashAlgorithm, path: &Path) -> Result<Hash> {
    let hash = || -> io::Result<Hash> {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        let mut blake3 = blake3::Hasher::new();
        let mut sha256 = <sha2::Sha256 as sha2::Digest>::new();
        loop {
            let length = file.read(&mut buffer)?;
            match algorithm {
                _ if length == 0 => break,
                HashAlgorithm::Blake3 => {
                    blake3.update(&buffer[..length]);
                }
                HashAlgorithm::Sha256 => sha2::Digest::update(&mut sha256, &buffer[..length]),
            }
        }
        Ok(match algorithm {
            HashAlgorithm::Blake3 => Hash(*blake3.finalize().as_bytes()),
            HashAlgorithm::Sha256 => Hash(sha2::Digest::finalize(sha256).into()),
        })
    };
    hash().map_err(|e| failed("read", path, &e))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
