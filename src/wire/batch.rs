//! The messages of a batch stream, between protobuf and core types. The plain protocol shares the
//! frames that carry contents; [`super::plain`] has what it alone uses.
//!
//! I1  What decodes here is within every bound that can be checked without knowing the batch:
//!     counts, sizes, indexes into the offer, alignment. The receiver checks what depends on
//!     earlier frames.
//! I2  The decoders accept everything that the encoders here write.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

use crate::core::foreign_text::visible;
use crate::core::ids::{Digest, Hash};
use crate::core::limits::{
    ASSET_BYTES_MAX, INLINE_BYTES_MAX, OFFER_ENTRIES_MAX, OFFER_LARGE_MAX, PIECE_ALIGN_BYTES,
    PIECE_BYTES_MAX, PIECE_PROOF_BYTES_MAX, REASON_CHARS_MAX,
};
use crate::wire::proto::peer;
use crate::wire::{WireError, bounded, parse};

/// The field number of `Piece.encoded`.
const PIECE_ENCODED_TAG: u32 = 4;

/// An asset of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferEntry {
    /// The asset.
    pub digest: Digest,
    /// Whether its content follows without waiting for the Want.
    pub inline: bool,
}

/// The assets of a batch; no hash occurs twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The entries, at most [`OFFER_ENTRIES_MAX`] with at most [`OFFER_LARGE_MAX`] large ones.
    pub entries: Vec<OfferEntry>,
    /// Whether the receiver solicited all of them.
    pub solicited: bool,
}

/// The entries of an offer that the receiver wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// The entries, each at most once.
    pub entries: Vec<WantEntry>,
    /// Whether another Want follows.
    pub more: bool,
}

/// A wanted entry that is not inline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantEntry {
    /// The index into the offer.
    pub index: usize,
    /// The wanted bytes: from a multiple of [`PIECE_ALIGN_BYTES`] to another one or to the asset's
    /// end.
    pub range: Range<u64>,
}

/// How the frames of a stream name assets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// By index into an offer with this many entries.
    Offered(usize),
    /// By hash, in the plain protocol.
    Plain,
}

/// The name of an asset in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// A checked index into the offer.
    Entry(usize),
    /// The asset itself.
    Named(Digest),
}

/// A whole small content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The asset.
    pub label: Label,
    /// The content, not verified yet.
    pub bytes: Bytes,
}

/// A range of a large content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The asset.
    pub label: Label,
    /// The start of the range, a multiple of [`PIECE_ALIGN_BYTES`].
    pub offset_bytes: u64,
    /// The content bytes, 1 to [`PIECE_BYTES_MAX`].
    pub length_bytes: u32,
    /// With BLAKE3 the bao encoding of the range, with SHA-256 the range itself.
    pub encoded: Bytes,
}

/// The outcome of an asset at its receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is new there and durable.
    Stored,
    /// It was held there already.
    AlreadyHeld,
    /// Another device is sending it.
    Elsewhere,
    /// It was not accepted now, for this reason.
    Later(String),
    /// It is never accepted, for this reason.
    Refused(String),
}

pub(super) fn malformed(what: &'static str, detail: impl Into<String>) -> WireError {
    WireError::Malformed { what, detail: detail.into() }
}

pub(super) fn hash(what: &'static str, bytes: &[u8]) -> Result<Hash, WireError> {
    Hash::from_slice(bytes)
        .ok_or_else(|| malformed(what, format!("a hash of {} bytes, expected 32", bytes.len())))
}

fn index(what: &'static str, index: u32, entries: usize) -> Result<usize, WireError> {
    let last = entries.checked_sub(1).ok_or_else(|| malformed(what, "nothing was offered"))?;
    bounded(what, index.into(), last as u64)?;
    Ok(index as usize)
}

fn wire_index(index: usize) -> u32 {
    u32::try_from(index).expect("an offer is far shorter than 2^32 entries")
}

impl OfferEntry {
    fn is_large(&self, small_bytes_max: u64) -> bool {
        self.digest.size_bytes > small_bytes_max
    }
}

impl Offer {
    /// Reads an Offer. Contents above `small_bytes_max` are sent in pieces and are never inline.
    ///
    /// # Errors
    /// [`WireError`] when it is malformed, too long, too large or names an asset twice.
    pub fn decode(payload: Bytes, small_bytes_max: u64) -> Result<Self, WireError> {
        let offer: peer::Offer = parse("Offer", payload, OFFER_ENTRIES_MAX)?;
        bounded("Offer.entries", offer.entries.len() as u64, OFFER_ENTRIES_MAX as u64)?;
        let mut seen = BTreeSet::new();
        let mut entries = Vec::with_capacity(offer.entries.len());
        for entry in offer.entries {
            bounded("Offer.entries.size_bytes", entry.size_bytes, ASSET_BYTES_MAX)?;
            let hash = hash("Offer.entries.hash", &entry.hash)?;
            if !seen.insert(hash) {
                return Err(malformed("Offer.entries", format!("{hash} twice")));
            }
            let digest = Digest { hash, size_bytes: entry.size_bytes };
            entries.push(OfferEntry { digest, inline: entry.inline });
        }
        let large = entries.iter().filter(|e| e.is_large(small_bytes_max)).count();
        bounded("large assets of an Offer", large as u64, OFFER_LARGE_MAX as u64)?;
        if entries.iter().any(|e| e.inline && e.is_large(small_bytes_max)) {
            return Err(malformed("Offer.entries.inline", "a large asset marked inline"));
        }
        let inline_bytes = entries.iter().filter(|e| e.inline).map(|e| e.digest.size_bytes).sum();
        bounded("inline bytes of an Offer", inline_bytes, INLINE_BYTES_MAX)?;
        Ok(Self { entries, solicited: offer.solicited })
    }

    /// The message for this offer.
    pub fn encode(&self) -> peer::Offer {
        let entries = self.entries.iter().map(|e| peer::OfferEntry {
            hash: Bytes::copy_from_slice(e.digest.hash.as_bytes()),
            size_bytes: e.digest.size_bytes,
            inline: e.inline,
        });
        peer::Offer { entries: entries.collect(), solicited: self.solicited }
    }
}

impl Want {
    /// Reads a Want for entries of `offer`.
    ///
    /// # Errors
    /// [`WireError`] when it is malformed, or wants something that was not offered, is inline or is
    /// not a range of the asset.
    pub fn decode(payload: Bytes, offer: &Offer) -> Result<Self, WireError> {
        let want: peer::Want = parse("Want", payload, OFFER_ENTRIES_MAX)?;
        bounded("Want.entries", want.entries.len() as u64, offer.entries.len() as u64)?;
        let mut seen = BTreeSet::new();
        let mut entries = Vec::with_capacity(want.entries.len());
        for entry in want.entries {
            let index = index("Want.entries.index", entry.index, offer.entries.len())?;
            let offered = &offer.entries[index];
            if offered.inline || !seen.insert(index) {
                return Err(malformed("Want.entries.index", format!("{index} is inline or twice")));
            }
            let size_bytes = offered.digest.size_bytes;
            let (start, length_bytes) = (entry.offset_bytes, entry.length_bytes);
            let past_the_end = start > 0 && start >= size_bytes;
            if past_the_end || !start.is_multiple_of(PIECE_ALIGN_BYTES) {
                return Err(malformed("Want.entries.offset_bytes", start.to_string()));
            }
            let end = match length_bytes {
                0 => size_bytes,
                _ => start.saturating_add(length_bytes),
            };
            if end > size_bytes || end < size_bytes && !end.is_multiple_of(PIECE_ALIGN_BYTES) {
                return Err(malformed("Want.entries.length_bytes", length_bytes.to_string()));
            }
            entries.push(WantEntry { index, range: start..end });
        }
        Ok(Self { entries, more: want.more })
    }

    /// The message for this Want.
    pub fn encode(&self) -> peer::Want {
        let entries = self.entries.iter().map(|e| peer::WantEntry {
            index: wire_index(e.index),
            offset_bytes: e.range.start,
            length_bytes: e.range.end - e.range.start,
        });
        peer::Want { entries: entries.collect(), more: self.more }
    }
}

/// Reads a Contents frame.
///
/// # Errors
/// [`WireError`] when it is malformed or names something that was not offered.
pub fn decode_contents(payload: Bytes, naming: Naming) -> Result<Vec<Content>, WireError> {
    let message: peer::Contents = parse("Contents", payload, OFFER_ENTRIES_MAX)?;
    bounded("Contents.contents", message.contents.len() as u64, OFFER_ENTRIES_MAX as u64)?;
    let contents = message.contents.into_iter().map(|content| {
        let label = match naming {
            Naming::Offered(n) => Label::Entry(index("Content.index", content.index, n)?),
            Naming::Plain => Label::Named(Digest {
                hash: hash("Content.hash", &content.hash)?,
                size_bytes: content.bytes.len() as u64,
            }),
        };
        Ok(Content { label, bytes: content.bytes })
    });
    contents.collect()
}

/// The message with `contents`.
pub fn encode_contents(contents: Vec<Content>) -> peer::Contents {
    let contents = contents.into_iter().map(|content| {
        let (index, hash) = match content.label {
            Label::Entry(index) => (wire_index(index), Bytes::new()),
            Label::Named(digest) => (0, Bytes::copy_from_slice(digest.hash.as_bytes())),
        };
        peer::Content { index, bytes: content.bytes, hash }
    });
    peer::Contents { contents: contents.collect() }
}

impl Piece {
    /// Reads a Piece frame.
    ///
    /// # Errors
    /// [`WireError`] when it is malformed, out of bounds or names something that was not offered.
    pub fn decode(payload: Bytes, naming: Naming) -> Result<Self, WireError> {
        Self::checked(parse("Piece", payload, 0)?, naming)
    }

    /// Reads the beginning of a Piece frame written by [`Self::encode`], with the part of `encoded`
    /// that has arrived. `None` if that is too little, or another kind of frame.
    pub fn decode_cut_off(payload: Bytes, naming: Naming) -> Option<Self> {
        let mut rest = payload.clone();
        loop {
            let before_bytes = payload.len() - rest.len();
            let (tag, wire_type) = decode_key(&mut rest).ok()?;
            if (tag, wire_type) == (PIECE_ENCODED_TAG, WireType::LengthDelimited) {
                let length_bytes = decode_varint(&mut rest).ok()?;
                rest.truncate(usize::try_from(length_bytes).ok()?);
                let before = peer::Piece::decode(payload.slice(..before_bytes)).ok()?;
                return Self::checked(peer::Piece { encoded: rest, ..before }, naming).ok();
            }
            skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
        }
    }

    fn checked(piece: peer::Piece, naming: Naming) -> Result<Self, WireError> {
        bounded("Piece.offset_bytes", piece.offset_bytes, ASSET_BYTES_MAX)?;
        bounded("Piece.length_bytes", piece.length_bytes.into(), PIECE_BYTES_MAX.into())?;
        if piece.length_bytes == 0 || !piece.offset_bytes.is_multiple_of(PIECE_ALIGN_BYTES) {
            let detail = format!("{} bytes at {}", piece.length_bytes, piece.offset_bytes);
            return Err(malformed("Piece", detail));
        }
        let encoded_max = piece.length_bytes as usize + PIECE_PROOF_BYTES_MAX;
        bounded("Piece.encoded", piece.encoded.len() as u64, encoded_max as u64)?;
        let label = match naming {
            Naming::Offered(n) => Label::Entry(index("Piece.index", piece.index, n)?),
            Naming::Plain => {
                bounded("Piece.size_bytes", piece.size_bytes, ASSET_BYTES_MAX)?;
                let hash = hash("Piece.hash", &piece.hash)?;
                Label::Named(Digest { hash, size_bytes: piece.size_bytes })
            }
        };
        Ok(Self {
            label,
            offset_bytes: piece.offset_bytes,
            length_bytes: piece.length_bytes,
            encoded: piece.encoded,
        })
    }

    /// The message for this piece.
    pub fn encode(self) -> peer::Piece {
        let (index, hash, size_bytes) = match self.label {
            Label::Entry(index) => (wire_index(index), Bytes::new(), 0),
            Label::Named(digest) => {
                (0, Bytes::copy_from_slice(digest.hash.as_bytes()), digest.size_bytes)
            }
        };
        peer::Piece {
            index,
            offset_bytes: self.offset_bytes,
            length_bytes: self.length_bytes,
            encoded: self.encoded,
            hash,
            size_bytes,
        }
    }

    /// The encoded message in two consecutive parts: the second is the encoded range, uncopied.
    pub fn encode_apart(self) -> (Vec<u8>, Bytes) {
        let mut message = self.encode();
        let encoded = std::mem::take(&mut message.encoded);
        // Fields may be in any order, so the longest can be the last.
        let mut head = message.encode_to_vec();
        encode_key(PIECE_ENCODED_TAG, WireType::LengthDelimited, &mut head);
        encode_varint(encoded.len() as u64, &mut head);
        (head, encoded)
    }

    /// The offset after the last byte.
    pub fn end_bytes(&self) -> u64 {
        self.offset_bytes + u64::from(self.length_bytes)
    }
}

/// Reads a Drop: the entry of an offer of `entries` that will not be sent.
///
/// # Errors
/// [`WireError`] when it is malformed or names something that was not offered.
pub fn decode_drop(payload: Bytes, entries: usize) -> Result<usize, WireError> {
    let drop: peer::Drop = parse("Drop", payload, 0)?;
    index("Drop.index", drop.index, entries)
}

/// The message that says that entry `index` will not be sent.
pub fn encode_drop(index: usize) -> peer::Drop {
    peer::Drop { index: wire_index(index) }
}

/// Reads the Ack of a batch: one verdict for each of `entries`, in order.
///
/// # Errors
/// [`WireError`] when it is malformed or has another number of verdicts.
pub fn decode_ack(payload: Bytes, entries: usize) -> Result<Vec<Verdict>, WireError> {
    let ack: peer::Ack = parse("Ack", payload, OFFER_ENTRIES_MAX)?;
    if ack.entries.len() != entries {
        let detail = format!("{} verdicts for {entries} assets", ack.entries.len());
        return Err(malformed("Ack", detail));
    }
    ack.entries.into_iter().map(decode_verdict).collect()
}

/// The message for `verdicts`, each with its hash in the plain protocol.
pub fn encode_ack<'a>(
    verdicts: impl IntoIterator<Item = (Option<Hash>, &'a Verdict)>,
) -> peer::Ack {
    let entries = verdicts.into_iter().map(|(hash, verdict)| {
        let (outcome, reason) = match verdict {
            Verdict::Stored => (peer::ack::Outcome::Stored, ""),
            Verdict::AlreadyHeld => (peer::ack::Outcome::AlreadyHeld, ""),
            Verdict::Elsewhere => (peer::ack::Outcome::Elsewhere, ""),
            Verdict::Later(reason) => (peer::ack::Outcome::Later, reason.as_str()),
            Verdict::Refused(reason) => (peer::ack::Outcome::Refused, reason.as_str()),
        };
        let hash = hash.map(|h| Bytes::copy_from_slice(h.as_bytes())).unwrap_or_default();
        peer::AckEntry { outcome: outcome.into(), reason: for_people(reason), hash }
    });
    peer::Ack { entries: entries.collect() }
}

pub(super) fn decode_verdict(entry: peer::AckEntry) -> Result<Verdict, WireError> {
    match entry.outcome() {
        peer::ack::Outcome::Stored => Ok(Verdict::Stored),
        peer::ack::Outcome::AlreadyHeld => Ok(Verdict::AlreadyHeld),
        peer::ack::Outcome::Elsewhere => Ok(Verdict::Elsewhere),
        peer::ack::Outcome::Later => Ok(Verdict::Later(for_people(&entry.reason))),
        peer::ack::Outcome::Refused => Ok(Verdict::Refused(for_people(&entry.reason))),
        peer::ack::Outcome::Unspecified => {
            Err(malformed("Ack.entries.outcome", entry.outcome.to_string()))
        }
    }
}

fn for_people(reason: &str) -> String {
    visible(reason, REASON_CHARS_MAX)
}

#[cfg(test)]
mod tests;
