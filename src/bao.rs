//! Pieces of an asset that can be verified one by one: the bao encoding (BLAKE3 verified streaming,
//! after O'Connor's bao specification) over groups of 16 KiB, by the `bao-tree` crate.
//!
//! A piece is a range of the content with the hash pairs on the path from the root to it, in
//! pre-order. It can be verified with the asset's hash and size alone. All hash pairs of an asset
//! together are its outboard: 64 bytes for each group but one, in pre-order and without a size
//! prefix; an asset of one group has none.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{Outboard, outboard};
use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, TreeNode};
use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use thiserror::Error;

use crate::core::ids::{Digest, Hash};
use crate::core::limits::ASSET_BYTES_MAX;
use crate::core::ranges::Ranges;

/// The unit of verification. Pieces start at multiples of it and end at one or at the asset's end.
pub const GROUP_BYTES: u64 = 16 * 1024;

/// Why a piece could not be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The content or the outboard does not match the asset's hash: it has decayed, or was changed.
    #[error("the content does not match its hash at byte {offset_bytes}")]
    Damaged {
        /// The start of the wrong group.
        offset_bytes: u64,
    },
    /// There is no outboard; only an asset of one group needs none. See [`build_outboard`].
    #[error("an asset of {0} bytes cannot be encoded without its outboard")]
    NoOutboard(u64),
    /// The range is not one of whole groups of the asset.
    #[error("bytes {0:?} are no whole groups of the asset")]
    Misaligned(Range<u64>),
    /// The outboard could not be read.
    #[error("reading the outboard")]
    Io(#[source] io::Error),
    /// The content could not be read.
    #[error("reading the content")]
    Content(#[source] io::Error),
}

/// The verified part of a piece, from its start to the first wrong group.
#[derive(Debug, Default)]
pub struct Decoded<'a> {
    /// The verified content, group after group.
    pub groups: Vec<&'a [u8]>,
    /// The hash pairs that no earlier piece contains, to be written at `outboard_offset_bytes`.
    pub outboard: Vec<u8>,
    /// The position of these pairs in the outboard.
    pub outboard_offset_bytes: u64,
    /// The other hash pairs on the path from the root, each with its position in the outboard. A
    /// receiver that holds the group before this piece has them already.
    pub above: Vec<(u64, PairBytes)>,
    /// Whether the whole piece was verified.
    pub whole: bool,
}

impl Decoded<'_> {
    /// The number of content bytes verified.
    pub fn bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.len() as u64).sum()
    }
}

/// The bao encoding of `content`, the bytes of the asset from `offset_bytes` on. The content is
/// verified while it is encoded, so that decayed content is never sent.
pub fn encode_piece(
    digest: &Digest,
    offset_bytes: u64,
    content: &[u8],
    outboard: Option<&File>,
) -> Result<Vec<u8>, EncodeError> {
    let range = offset_bytes..offset_bytes.saturating_add(content.len() as u64);
    encode(digest, range, outboard, |group, encoded| {
        let start = (group.start - offset_bytes) as usize;
        encoded.extend_from_slice(&content[start..][..length(&group)]);
        Ok(())
    })
}

/// As [`encode_piece`], from a range of the asset's file. Each group is read directly into the
/// result.
pub fn encode_piece_of_file(
    digest: &Digest,
    range: Range<u64>,
    content: &File,
    outboard: Option<&File>,
) -> Result<Vec<u8>, EncodeError> {
    encode(digest, range, outboard, |group, encoded| {
        let before = encoded.len();
        encoded.resize(before + length(&group), 0);
        content.read_exact_at(&mut encoded[before..], group.start)
    })
}

fn length(group: &Range<u64>) -> usize {
    (group.end - group.start) as usize
}

/// Encodes `range` of the content with its proof. `append` adds the content of one chunk group to the
/// encoding.
fn encode(
    digest: &Digest,
    range: Range<u64>,
    outboard: Option<&File>,
    append: impl Fn(Range<u64>, &mut Vec<u8>) -> io::Result<()>,
) -> Result<Vec<u8>, EncodeError> {
    if !is_aligned(&range, digest.size_bytes) {
        return Err(EncodeError::Misaligned(range));
    }
    let tree = tree(digest.size_bytes);
    if outboard.is_none() && tree.blocks() > 1 {
        return Err(EncodeError::NoOutboard(digest.size_bytes));
    }
    let content_bytes = length(&range);
    let mut encoded = Vec::with_capacity(content_bytes + content_bytes / 128 + PATH_BYTES);
    let mut expected = vec![digest.hash.0];
    for item in tree.ranges_pre_order_chunks_iter_ref(&chunks(&range), 0) {
        let hash = expected.pop().expect("a parent comes before its children");
        match item {
            BaoChunk::Parent { node, is_root, left, right, .. } => {
                let pair = stored_pair(tree, node, outboard).map_err(EncodeError::Io)?;
                if pair_hash(&pair, is_root) != hash {
                    let offset_bytes = start(node).max(range.start);
                    return Err(EncodeError::Damaged { offset_bytes });
                }
                expected.extend(right.then_some(pair[1]));
                expected.extend(left.then_some(pair[0]));
                encoded.extend_from_slice(pair.as_flattened());
            }
            BaoChunk::Leaf { start_chunk, size, is_root, .. } => {
                let (offset_bytes, before) = (start_chunk.to_bytes(), encoded.len());
                let damaged = EncodeError::Damaged { offset_bytes };
                match append(offset_bytes..offset_bytes + size as u64, &mut encoded) {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged),
                    Err(e) => return Err(EncodeError::Content(e)),
                }
                if group_hash(offset_bytes, &encoded[before..], is_root) != hash {
                    return Err(damaged);
                }
            }
        }
    }
    Ok(encoded)
}

/// Verifies the encoding of `range` against the asset's hash and splits it without copying content.
/// `None` if the range is not one of whole groups.
pub fn decode_piece<'a>(
    digest: &Digest,
    range: Range<u64>,
    encoded: &'a [u8],
) -> Option<Decoded<'a>> {
    if !is_aligned(&range, digest.size_bytes) {
        return None;
    }
    let tree = tree(digest.size_bytes);
    let mut decoded = Decoded::default();
    let mut rest = encoded;
    let mut expected = vec![digest.hash.0];
    for item in tree.ranges_pre_order_chunks_iter_ref(&chunks(&range), 0) {
        let hash = expected.pop().expect("a parent comes before its children");
        match item {
            BaoChunk::Parent { node, is_root, left, right, .. } => {
                let Some((bytes, after)) = rest.split_first_chunk() else { return Some(decoded) };
                rest = after;
                let pair = pair(bytes);
                if pair_hash(&pair, is_root) != hash {
                    return Some(decoded);
                }
                expected.extend(right.then_some(pair[1]));
                expected.extend(left.then_some(pair[0]));
                let Some(position) = tree.pre_order_offset(node) else { continue };
                let offset_bytes = position * PAIR_BYTES;
                // In pre-order, pairs that begin in this piece or later follow one another; earlier
                // pieces do not contain them.
                if start(node) < range.start {
                    decoded.above.push((offset_bytes, *bytes));
                } else {
                    if decoded.outboard.is_empty() {
                        decoded.outboard_offset_bytes = offset_bytes;
                    }
                    decoded.outboard.extend_from_slice(bytes);
                }
            }
            BaoChunk::Leaf { start_chunk, size, is_root, .. } => {
                let Some((group, after)) = rest.split_at_checked(size) else {
                    return Some(decoded);
                };
                rest = after;
                if group_hash(start_chunk.to_bytes(), group, is_root) != hash {
                    return Some(decoded);
                }
                decoded.groups.push(group);
            }
        }
    }
    decoded.whole = rest.is_empty();
    Some(decoded)
}

/// The ranges of `content`, in whole groups, that match the hash pairs in `outboard`. Reads and
/// hashes everything that may match, and goes on after a place that cannot be read.
pub(crate) fn verified_ranges(digest: &Digest, content: &File, outboard: &File) -> Ranges {
    let tree = tree(digest.size_bytes);
    let mut verified = Ranges::default();
    let mut group = vec![0; GROUP_BYTES as usize];
    // `None`: a pair above is wrong, so nothing below can be verified.
    let mut expected = vec![Some(digest.hash.0)];
    for item in tree.ranges_pre_order_chunks_iter_ref(&ChunkRanges::all(), 0) {
        let hash = expected.pop().expect("a parent comes before its children");
        match item {
            BaoChunk::Parent { node, is_root, left, right, .. } => {
                let pair = hash.and_then(|hash| {
                    let pair = stored_pair(tree, node, Some(outboard)).ok()?;
                    (pair_hash(&pair, is_root) == hash).then_some(pair)
                });
                expected.extend(right.then_some(pair.map(|pair| pair[1])));
                expected.extend(left.then_some(pair.map(|pair| pair[0])));
            }
            BaoChunk::Leaf { start_chunk, size, is_root, .. } => {
                let (start, group) = (start_chunk.to_bytes(), &mut group[..size]);
                if let Some(hash) = hash
                    && content.read_exact_at(group, start).is_ok()
                    && group_hash(start, group, is_root) == hash
                {
                    verified.insert(start..start + size as u64);
                }
            }
        }
    }
    verified
}

/// Writes the outboard of a content to the empty file `to` and returns the content's hash, for
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
/// An upper bound for the hash pairs from the root to a group in the largest asset.
const PATH_BYTES: usize = 64 * PAIR_BYTES as usize;
/// Groups of 2^4 chunks of 1 KiB.
const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);

/// The hashes of a node's two halves.
type Pair = [[u8; 32]; 2];

/// A [`Pair`] as it is sent and stored.
pub type PairBytes = [u8; PAIR_BYTES as usize];

fn pair(bytes: &PairBytes) -> Pair {
    let mut pair = Pair::default();
    pair.as_flattened_mut().copy_from_slice(bytes);
    pair
}

fn pair_hash([left, right]: &Pair, is_root: bool) -> [u8; 32] {
    if is_root {
        return *merge_subtrees_root(left, right, Mode::Hash).as_bytes();
    }
    merge_subtrees_non_root(left, right, Mode::Hash)
}

fn stored_pair(tree: BaoTree, node: TreeNode, outboard: Option<&File>) -> io::Result<Pair> {
    let place = tree.pre_order_offset(node).zip(outboard);
    let (position, outboard) = place.ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = [0; PAIR_BYTES as usize];
    outboard.read_exact_at(&mut bytes, position * PAIR_BYTES)?;
    Ok(pair(&bytes))
}

fn group_hash(start_bytes: u64, group: &[u8], is_root: bool) -> [u8; 32] {
    if is_root {
        return *blake3::hash(group).as_bytes();
    }
    blake3::Hasher::new().set_input_offset(start_bytes).update(group).finalize_non_root()
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
