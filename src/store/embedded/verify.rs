//! Whether a stored content still has its hash, and which groups of it do not.
//!
//! V1  A finding is checked twice before the asset is marked, and the second look reads the disk
//!     again where the system lets it.
//! V2  Nothing is deleted because of a finding. The only file that is replaced here is an outboard,
//!     by one computed from a content that has the asset's hash.
//! V3  An asset is marked, and its mark taken away, under its claim: nobody replaces its content
//!     meanwhile.

use std::fs::File;

use super::ingest::Ingest;
use super::rows::{self, Content, NewRow, Recorded};
use crate::bao::{outboard_bytes, verified_ranges};
use crate::clock::wall_ms_signed;
use crate::core::ids::{Digest, Hash, HashAlgorithm};
use crate::core::ranges::Ranges;
use crate::store::hasher::hash_file;
use crate::store::reading::drop_cached;
use crate::store::{Condition, Metadata, SMALL_BYTES_MAX, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

impl Ingest<'_> {
    /// See [`crate::store::Store::verify`].
    pub(super) fn verify(&self, hash: Hash) -> Result<Condition> {
        let _claim = self.claims.claim(hash);
        let recorded = self.recorded(hash)?.filter(|recorded| !recorded.is_evicted);
        let Some(recorded) = recorded else { return Ok(Condition::Absent) };
        let digest = Digest { hash, size_bytes: recorded.size_bytes };
        let condition = self.examine(digest, &recorded)?;
        match &condition {
            Condition::Damaged(_) if !recorded.is_damaged => {
                self.mark_damaged(hash, recorded.cursor)?;
            }
            Condition::Whole if recorded.is_damaged => self.hold_again(digest, recorded.content)?,
            _ => {}
        }
        Ok(condition)
    }

    /// Like [`Self::verify`], for an asset whose content was just read and found wrong: if it is
    /// marked already, it is not read again.
    pub(super) fn confirm(&self, hash: Hash) -> Result<Condition> {
        match self.recorded(hash)? {
            Some(recorded) if recorded.is_damaged => Ok(all_of(recorded.size_bytes)),
            _ => self.verify(hash),
        }
    }

    /// Takes the mark away from an asset that is whole after all: the disk read it wrong before, or
    /// somebody put the file back.
    fn hold_again(&self, digest: Digest, content: Content) -> Result<()> {
        let inline = match content {
            Content::Inline(content) => Some(content),
            Content::File => {
                let paths = [self.files.content(digest.hash), self.files.outboard(digest.hash)];
                self.files.make_durable(&paths)?;
                None
            }
        };
        tracing::info!(hash = %digest.hash, "an asset that was damaged is whole again");
        let (metadata, timestamp_ms) = (Metadata::default(), wall_ms_signed());
        let row = NewRow { digest, metadata, timestamp_ms, inline };
        self.database.write(move |txn| rows::record(txn, &[row])).map(|_| ())
    }

    fn examine(&self, digest: Digest, recorded: &Recorded) -> Result<Condition> {
        let Content::Inline(content) = &recorded.content else {
            return self.examine_file(digest);
        };
        if self.algorithm.hash(content) == digest.hash {
            return Ok(Condition::Whole);
        }
        let again = self.recorded(digest.hash)?.map(|recorded| recorded.content);
        let is_whole = matches!(again, Some(Content::Inline(content))
            if self.algorithm.hash(&content) == digest.hash);
        Ok(if is_whole { Condition::Whole } else { all_of(digest.size_bytes) })
    }

    fn examine_file(&self, digest: Digest) -> Result<Condition> {
        let is_right_length = self.files.has_content(digest)?;
        let has_outboard =
            self.algorithm == HashAlgorithm::Blake3 && digest.size_bytes > SMALL_BYTES_MAX;
        let wrong = match has_outboard {
            true => self.wrong_groups(digest),
            false => Ranges::default().gaps(digest.size_bytes),
        };
        if is_right_length && has_outboard && wrong.is_empty() {
            return Ok(Condition::Whole);
        }
        if is_right_length && self.has_hash(digest, has_outboard)? {
            return Ok(Condition::Whole);
        }
        Ok(Condition::Damaged(wrong))
    }

    /// The groups of a content file that its outboard does not prove.
    fn wrong_groups(&self, digest: Digest) -> Ranges {
        let opened = File::open(self.files.content(digest.hash))
            .and_then(|content| Ok((content, File::open(self.files.outboard(digest.hash))?)));
        let right = match opened {
            Ok((content, outboard)) => {
                drop_cached(&content, &(0..digest.size_bytes));
                drop_cached(&outboard, &(0..outboard_bytes(digest.size_bytes)));
                verified_ranges(&digest, &content, &outboard)
            }
            Err(_) => Ranges::default(),
        };
        right.gaps(digest.size_bytes)
    }

    /// Reads a content file as a whole, from the disk. If the content is right, the outboard was
    /// wrong, and is computed anew.
    fn has_hash(&self, digest: Digest, has_outboard: bool) -> Result<bool> {
        let path = self.files.content(digest.hash);
        if let Ok(content) = File::open(&path) {
            drop_cached(&content, &(0..digest.size_bytes));
        }
        if has_outboard {
            match self.rebuild_outboard(digest) {
                Ok(_) => {
                    tracing::warn!(hash = %digest.hash, "the outboard of an asset was damaged and was computed again");
                    return Ok(true);
                }
                Err(StoreError::Mismatch { .. }) => return Ok(false),
                // The content, the outboard or the space for it failed: read the content alone to
                // find out.
                Err(error) => tracing::debug!(%error, "cannot rebuild an outboard"),
            }
        }
        match hash_file(&path, self.algorithm) {
            Ok(got) => Ok(got == digest.hash),
            Err(error) => match self.files.read_failed(digest.hash, &error) {
                StoreError::Damaged(_) => Ok(false),
                other => Err(other),
            },
        }
    }
}

fn all_of(size_bytes: u64) -> Condition {
    Condition::Damaged(Ranges::default().gaps(size_bytes))
}
