//! The incremental hash of a content, under either algorithm.

use std::io;
use std::path::Path;

use crate::core::ids::{Hash, HashAlgorithm};

/// An incremental hash.
pub(crate) enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Sha256(sha2::Sha256),
}

impl Hasher {
    pub(crate) fn new(algorithm: HashAlgorithm) -> Self {
        match algorithm {
            HashAlgorithm::Blake3 => Self::Blake3(Box::default()),
            HashAlgorithm::Sha256 => Self::Sha256(sha2::Sha256::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
            Self::Sha256(hasher) => sha2::Digest::update(hasher, bytes),
        }
    }

    /// Hashes `from` to its end. Blocks.
    pub(crate) fn update_from(&mut self, mut from: impl io::Read) -> io::Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.update(&buffer[..count]),
            }
        }
    }

    /// The hash of all bytes so far.
    pub(crate) fn hash(&self) -> Hash {
        match self {
            Self::Blake3(hasher) => Hash(*hasher.finalize().as_bytes()),
            Self::Sha256(hasher) => Hash(sha2::Digest::finalize(hasher.clone()).into()),
        }
    }
}

/// The hash of a file. Blocks.
pub(crate) fn hash_file(path: &Path, algorithm: HashAlgorithm) -> io::Result<Hash> {
    let mut hasher = Hasher::new(algorithm);
    hasher.update_from(std::fs::File::open(path)?)?;
    Ok(hasher.hash())
}
