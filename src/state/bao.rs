//! Pieces of an asset that prove themselves: the bao encoding (BLAKE3 verified streaming, after
//! O'Connor's bao specification) over groups of 16 KiB, by the `bao-tree` crate.
//!
//! A piece is a range of the content with the hash pairs on the way to it from the root, in
//! pre-order. Whoever knows the asset's hash and size can check it alone. All hash pairs of an
//! asset together are its outboard: 64 bytes for each group but one, in pre-order and without a
//! size prefix; an asset of one group has none.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{
    DecodeResponseIter, Outboard, ReadAt, encode_ranges_validated, outboard, valid_ranges,
};
use bao_tree::io::{BaoContentItem, EncodeError as BaoError};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, TreeNode};
use thiserror::Error;

use crate::core::ids::{Digest, Hash};
use crate::core::limits::ASSET_BYTES_MAX;

/// The unit of verification. Pieces start at multiples of it and end at one or at the asset's end.
pub const GROUP_BYTES: u64 = 16 * 1024;

/// Why a piece could not be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// Content or outboard are not those of the asset: it has rotted, or was changed.
    #[error("the content does not match its hash at byte {offset_bytes}")]
    Damaged {
        /// The group that is wrong.
        offset_bytes: u64,
    },
    /// Only an asset of one group has none; see [`build_outboard`].
    #[error("an asset of {0} bytes cannot be encoded without its outboard")]
    NoOutboard(u64),
    /// Not a range of the asset in whole groups.
    #[error("bytes {0:?} are no whole groups of the asset")]
    Misaligned(Range<u64>),
    /// The outboard could not be read.
    #[error("reading the outboard")]
    Io(#[source] io::Error),
}

/// What was found good in a piece, from its start up to the first wrong group.
#[derive(Debug)]
pub struct Decoded {
    /// The verified content, whole groups.
    pub content: Vec<u8>,
    /// The hash pairs first met in this piece, to be written at `outboard_offset_bytes`.
    pub outboard: Vec<u8>,
    /// Where in the outboard they belong.
    pub outboard_offset_bytes: u64,
    /// The whole piece was good.
    pub whole: bool,
}

/// The bao encoding of `content`, the bytes of the asset from `offset_bytes` on. The content is
/// checked against the hash on the way, so that what has rotted here is never sent.
pub fn encode_piece(
    digest: &Digest,
    offset_bytes: u64,
    content: &[u8],
    outboard: Option<&File>,
) -> Result<Vec<u8>, EncodeError> {
    let range = offset_bytes..offset_bytes.saturating_add(content.len() as u64);
    if !is_aligned(&range, digest.size_bytes) {
        return Err(EncodeError::Misaligned(range));
    }
    let tree = tree(digest.size_bytes);
    let mut encoded = Vec::with_capacity(content.len() + content.len() / 128 + PATH_BYTES);
    let window = Window { offset_bytes, content };
    let root = blake3::Hash::from_bytes(digest.hash.0);
    let ranges = chunks(&range);
    let encode = match outboard {
        Some(file) => {
            let data = file;
            let stored = PreOrderOutboard { root, tree, data };
            encode_ranges_validated(window, stored, &ranges, &mut encoded)
        }
        None if tree.blocks() == 1 => {
            let data: &[u8] = &[];
            let stored = PreOrderOutboard { root, tree, data };
            encode_ranges_validated(window, stored, &ranges, &mut encoded)
        }
        None => return Err(EncodeError::NoOutboard(digest.size_bytes)),
    };
    match encode {
        Ok(()) => Ok(encoded),
        Err(BaoError::LeafHashMismatch(chunk)) => {
            Err(EncodeError::Damaged { offset_bytes: chunk.to_bytes() })
        }
        Err(BaoError::ParentHashMismatch(node)) => {
            Err(EncodeError::Damaged { offset_bytes: start(node).max(offset_bytes) })
        }
        Err(other) => Err(EncodeError::Io(other.into())),
    }
}

/// Checks the encoding of `range` against the asset's hash and takes it apart. Allocates no more
/// than was received. `None`: not a range in whole groups.
pub fn decode_piece(digest: &Digest, range: Range<u64>, encoded: &[u8]) -> Option<Decoded> {
    if !is_aligned(&range, digest.size_bytes) {
        return None;
    }
    let tree = tree(digest.size_bytes);
    let mut decoded = Decoded {
        content: Vec::with_capacity(encoded.len().min((range.end - range.start) as usize)),
        outboard: Vec::new(),
        outboard_offset_bytes: 0,
        whole: false,
    };
    let ranges = chunks(&range);
    let mut rest = encoded;
    let root = blake3::Hash::from_bytes(digest.hash.0);
    for item in DecodeResponseIter::new(root, tree, &mut rest, &ranges) {
        let Ok(item) = item else {
            return Some(decoded);
        };
        match item {
            BaoContentItem::Leaf(leaf) => decoded.content.extend_from_slice(&leaf.data),
            // Pre-order is the order in which a walk from left to right meets the pairs: those that
            // begin here or later were not met before, and lie one after another.
            BaoContentItem::Parent(parent) if start(parent.node) >= range.start => {
                if let Some(position) = tree.pre_order_offset(parent.node) {
                    if decoded.outboard.is_empty() {
                        decoded.outboard_offset_bytes = position * PAIR_BYTES;
                    }
                    decoded.outboard.extend_from_slice(parent.pair.0.as_bytes());
                    decoded.outboard.extend_from_slice(parent.pair.1.as_bytes());
                }
            }
            BaoContentItem::Parent(_) => {}
        }
    }
    decoded.whole = rest.is_empty();
    Some(decoded)
}

/// How many bytes from the start of `content` are good by the hash pairs in `outboard`. Reads and
/// hashes them all.
pub(super) fn verified_prefix_bytes(
    digest: &Digest,
    content: &File,
    outboard: &File,
) -> io::Result<u64> {
    let stored = PreOrderOutboard {
        root: blake3::Hash::from_bytes(digest.hash.0),
        tree: tree(digest.size_bytes),
        data: outboard,
    };
    let mut prefix_bytes = 0;
    for range in valid_ranges(stored, content, &ChunkRanges::all()) {
        let range = range?;
        if range.start.to_bytes() != prefix_bytes {
            break;
        }
        prefix_bytes = range.end.to_bytes().min(digest.size_bytes);
    }
    Ok(prefix_bytes)
}

/// Writes the outboard of a content to the empty file `to` and returns the content's hash; for
/// stores that keep no outboards. Reads the content once, in constant memory.
pub fn build_outboard(mut content: impl Read, size_bytes: u64, to: &mut File) -> io::Result<Hash> {
    let mut stored = PreOrderOutboard { root: blake3::hash(&[]), tree: tree(size_bytes), data: to };
    let root = outboard(&mut content, stored.tree(), &mut stored)?;
    if content.read(&mut [0])? != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the content is longer than {size_bytes} bytes"),
        ));
    }
    Ok(Hash(*root.as_bytes()))
}

/// The length of an asset's outboard.
pub fn outboard_bytes(size_bytes: u64) -> u64 {
    tree(size_bytes).outboard_size()
}

const PAIR_BYTES: u64 = 64;
/// The hash pairs from the root to a group in the largest asset, an upper bound.
const PATH_BYTES: usize = 64 * PAIR_BYTES as usize;
/// 2^4 chunks of 1 KiB.
const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);

/// A piece of a content that answers reads by their place in the whole.
struct Window<'a> {
    offset_bytes: u64,
    content: &'a [u8],
}

impl ReadAt for Window<'_> {
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let within = position.checked_sub(self.offset_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        self.content.read_at(within, buffer)
    }
}

fn tree(size_bytes: u64) -> BaoTree {
    BaoTree::new(size_bytes, BLOCK_SIZE)
}

fn chunks(range: &Range<u64>) -> ChunkRanges {
    ChunkRanges::from(ChunkNum::full_chunks(range.start)..ChunkNum::chunks(range.end))
}

fn start(node: TreeNode) -> u64 {
    node.chunk_range().start.to_bytes()
}

fn is_aligned(range: &Range<u64>, size_bytes: u64) -> bool {
    size_bytes <= ASSET_BYTES_MAX
        && range.start < range.end
        && range.end <= size_bytes
        && range.start.is_multiple_of(GROUP_BYTES)
        && (range.end.is_multiple_of(GROUP_BYTES) || range.end == size_bytes)
}
