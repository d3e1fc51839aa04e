//! How a content is stored: what is checked, and the order in which it reaches the disk.
//!
//! A content of up to [`SMALL_BYTES_MAX`] goes into the database, in the commit that records it.
//! A larger one is a file:
//!
//! 1. sync the caller's file and its outboard;
//! 2. reserve its hash in a commit of its own, so that a later start finds files that a crash left;
//! 3. give the files their names, and sync the folder;
//! 4. record the asset and drop the reservation, in the commit after which the call returns.
//!
//! At most one caller does this for a hash at a time ([`Claims`]). So the only file of a hash that
//! is not held is ours, or a damaged one that ours replaces, and a failed step 4 may remove it
//! again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bao_tree::io::sync::OutboardMut;
use bao_tree::{BaoTree, TreeNode};
use blake3::hazmat;
use parking_lot::{Condvar, Mutex};

use super::again::Again;
use super::db::{Database, Txn, sql_error};
use super::files::{Files, Move, Temp, failed, remove};
use super::health::Health;
use super::rows::{self, Content, NewRow, Recorded};
use crate::clock::wall_ms_signed;
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::core::limits::METADATA_BYTES_MAX;
use crate::store::hasher::hash_file;
use crate::store::{
    Cursor, GROUP, Metadata, NewAsset, Permit, SMALL_BYTES_MAX, StoreError, Stored, VerifiedFile,
};

/// The size of a read while a file is hashed.
const HASH_BUFFER_BYTES: usize = 1 << 20;

type Result<T> = std::result::Result<T, StoreError>;

/// Stores contents. Every method blocks on the disk.
pub(super) struct Ingest<'a> {
    pub(super) database: &'a Database,
    pub(super) files: &'a Files,
    pub(super) health: &'a Health,
    pub(super) algorithm: HashAlgorithm,
    pub(super) claims: &'a Claims,
    pub(super) again: &'a Arc<Again>,
}

impl Ingest<'_> {
    /// See [`crate::store::Store::put`].
    pub(super) fn put(&self, assets: Vec<NewAsset>) -> Result<Vec<Result<Stored>>> {
        self.health.check()?;
        let total: u64 = assets.iter().map(|asset| asset.content.len() as u64).sum();
        self.files.check_space(total)?;
        let timestamp_ms = wall_ms_signed();
        let mut rows = Vec::with_capacity(assets.len());
        let mut checked = Vec::with_capacity(assets.len());
        for asset in assets {
            let result = self.check(&asset);
            if result.is_ok() {
                rows.push(NewRow {
                    digest: asset.digest,
                    metadata: asset.metadata,
                    timestamp_ms,
                    inline: Some(asset.content),
                });
            }
            checked.push(result);
        }
        let again = self.again.clone();
        let record = move |txn: &mut Txn<'_>| {
            let stored = rows::record(txn, &rows)?;
            // Noted here, so that no deletion comes between.
            let existed =
                rows.iter().zip(&stored).filter(|(_, stored)| **stored == Stored::Existed);
            existed.for_each(|(row, _)| again.note(row.digest.hash));
            Ok(stored)
        };
        let mut stored = self.database.write(record)?.into_iter();
        let results = checked
            .into_iter()
            .map(|checked| checked.map(|()| stored.next().expect("a result for each row")));
        Ok(results.collect())
    }

    /// See [`crate::store::Store::adopt`].
    pub(super) fn adopt(&self, mut file: VerifiedFile) -> Result<Stored> {
        let _guard = file.guard.take();
        let paths = [Some(file.path.clone()), file.outboard.clone()];
        let result = self.adopt_or_leave(file);
        if !matches!(&result, Err(error) if error.is_temporary()) {
            for path in paths.iter().flatten() {
                if let Err(error) = remove(path) {
                    tracing::warn!(%error, "cannot remove a file that is no longer needed");
                }
            }
        }
        result
    }

    fn adopt_or_leave(&self, file: VerifiedFile) -> Result<Stored> {
        self.health.check()?;
        let digest = file.digest;
        let _claim = self.claims.claim(digest.hash);
        if let Some(recorded) = self.recorded(digest.hash)?
            && recorded.is_held()
        {
            if self.looks_whole(digest, &recorded)? {
                self.again.note(digest.hash);
                return Ok(Stored::Existed);
            }
            self.mark_damaged(digest.hash, recorded.cursor)?;
        }
        check_metadata(&file.metadata)?;
        let path = &file.path;
        let found = fs::symlink_metadata(path).map_err(|e| failed("read", path, &e))?;
        if !found.is_file() {
            let text = format!("cannot take in {}: it is not a file", path.display());
            return Err(StoreError::Disk(text));
        }
        let length = found.len();
        if length != digest.size_bytes {
            let got = hash_file(path, self.algorithm).map_err(|e| failed("read", path, &e))?;
            return Err(mismatch(digest, got));
        }
        if length <= SMALL_BYTES_MAX {
            let content = fs::read(path).map_err(|e| failed("read", path, &e))?;
            let asset = NewAsset { digest, content: content.into(), metadata: file.metadata };
            return self.put(vec![asset])?.remove(0);
        }

        let copied: Option<Temp> = if self.files.can_move(path) {
            // It is already on this disk and takes no more space.
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

        let hash = digest.hash;
        let mut moves = vec![Move::new(content, self.files.content(hash))];
        if let Some(outboard) = &outboard {
            moves.push(Move::new(outboard.path(), self.files.outboard(hash)));
        }
        let row = NewRow {
            digest,
            metadata: file.metadata,
            timestamp_ms: wall_ms_signed(),
            inline: None,
        };
        self.place_and_record(&moves, row)
    }

    /// See [`crate::store::Store::hold`]. Waits for a deletion that is under way.
    pub(super) fn hold(&self, hash: Hash) -> Result<()> {
        let _claim = self.claims.claim(hash);
        self.again.note(hash);
        Ok(())
    }

    /// See [`crate::store::Store::evict`]. First the rows, so that nothing counts as held whose
    /// files are being removed; then the files, which are reserved until they are gone.
    pub(super) fn evict(&self, hashes: &BTreeSet<Hash>, permit: Permit) -> Result<Vec<Hash>> {
        self.health.check()?;
        // In ascending order, so that two calls never wait for each other.
        let _claims: Vec<_> = hashes.iter().map(|hash| self.claims.claim(*hash)).collect();
        let hashes: Vec<Hash> = hashes.iter().copied().collect();
        let evicted = self.database.write(move |txn| {
            // Here, because the writer may have been busy for long.
            if !permit() {
                return Ok(Vec::new());
            }
            let mut evicted = Vec::new();
            for hash in hashes {
                if rows::evict(txn, hash)? {
                    evicted.push(hash);
                }
            }
            Ok(evicted)
        })?;
        self.files.delete(&evicted)?;
        let gone = evicted.clone();
        self.database
            .write(move |txn| gone.into_iter().try_for_each(|hash| rows::release(txn, hash)))?;
        Ok(evicted)
    }

    /// Computes the outboard of a held asset that has none, and keeps it.
    pub(super) fn rebuild_outboard(&self, digest: Digest) -> Result<File> {
        let content = self.files.content(digest.hash);
        let temp = self.compute_outboard(digest, &content)?;
        let path = self.files.outboard(digest.hash);
        self.files.place(&[Move::new(&temp.0, path.clone())])?;
        File::open(&path).map_err(|e| failed("read", &path, &e))
    }

    /// Steps 2 to 4 of the module's head, for a claimed hash that is not held.
    fn place_and_record(&self, moves: &[Move<'_>], row: NewRow) -> Result<Stored> {
        let hash = row.digest.hash;
        self.database.write(move |txn| rows::reserve(txn, hash))?;
        let recorded = self
            .files
            .place(moves)
            .and_then(|()| self.database.write(move |txn| rows::record(txn, &[row])));
        // After a disk failure it is unknown whether the record was kept: then the files stay, and
        // the next start decides.
        if recorded.as_ref().is_err_and(StoreError::is_temporary) {
            self.files.unplace(moves);
        }
        Ok(recorded?.remove(0))
    }

    /// Compares only the length.
    pub(super) fn looks_whole(&self, digest: Digest, recorded: &Recorded) -> Result<bool> {
        match &recorded.content {
            Content::Inline(content) => Ok(content.len() as u64 == digest.size_bytes),
            Content::File => self.files.has_content(digest),
        }
    }

    pub(super) fn mark_damaged(&self, hash: Hash, seen: Cursor) -> Result<()> {
        tracing::warn!(%hash, "the bytes of a stored asset are damaged or gone");
        self.database.write(move |txn| rows::mark_damaged(txn, hash, seen))
    }

    pub(super) fn recorded(&self, hash: Hash) -> Result<Option<Recorded>> {
        let reader = self.database.reader()?;
        rows::recorded(&reader, hash).map_err(sql_error)
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

    /// Uses the given outboard if it can be right, else computes one; durable in any case.
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

/// The hashes whose files are being stored. There are at most as many as concurrent calls.
#[derive(Default)]
pub(super) struct Claims {
    taken: Mutex<BTreeSet<Hash>>,
    freed: Condvar,
}

impl Claims {
    /// Waits until no other caller works on the hash, and keeps others from it.
    pub(super) fn claim(&self, hash: Hash) -> Claim<'_> {
        let mut taken = self.taken.lock();
        while !taken.insert(hash) {
            self.freed.wait(&mut taken);
        }
        Claim { claims: self, hash }
    }
}

pub(super) struct Claim<'a> {
    claims: &'a Claims,
    hash: Hash,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.taken.lock().remove(&self.hash);
        self.claims.freed.notify_all();
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

/// Receives hash pairs, and writes them into a pre-order outboard file.
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

/// Whether the file has the length of the asset's outboard and its top pair yields the hash.
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
    let bytes = metadata.description.len() + metadata.attributes.text_bytes() + tags;
    if bytes > METADATA_BYTES_MAX {
        return Err(StoreError::TooLarge(format!(
            "description, tags and attributes have {bytes} bytes, at most {METADATA_BYTES_MAX} are kept"
        )));
    }
    Ok(())
}

fn mismatch(digest: Digest, got: Hash) -> StoreError {
    StoreError::Mismatch { expected: digest.hash, got }
}
