//! The frames that every stream consists of: `type u8 | length u32 big-endian | payload`.
//!
//! I1  A header is checked before anything is allocated for its payload.
//! I2  Unknown types up to [`KIND_MANDATORY_MAX`] are an error; the caller skips higher ones.

use thiserror::Error;

use crate::core::limits::{
    CONTENT_FRAME_BYTES_MAX, CONTROL_FRAME_BYTES_MAX, INTRODUCTION_FRAME_BYTES_MAX,
    PAIR_FRAME_BYTES_MAX,
};

/// The bytes before the payload.
pub const HEADER_BYTES: usize = 5;

/// Frame types up to this one must be known; higher ones are extensions, skipped when unknown.
pub const KIND_MANDATORY_MAX: u8 = 127;

/// The kind of a frame. The numbers are those of `proto/peer.proto` and `proto/journal.proto`,
/// which do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Hello,
    SetSummary,
    Compare,
    Plan,
    Cells,
    More,
    Decoded,
    Rekey,
    Pull,
    Page,
    ReconcileDone,
    Solicit,
    Lacking,
    Absent,
    AbsentPull,
    AbsentPage,
    SizePull,
    Sizes,
    Offer,
    Want,
    Contents,
    Piece,
    Drop,
    Done,
    Ack,
    Prove,
    Proving,
    Proofs,
    ProofGroup,
    MetaUpdate,
    ThumbnailRequest,
    Thumbnail,
    JournalHello,
    JournalClock,
    JournalOps,
    JournalRefuse,
    PairRequest,
    PairAccept,
    Introduction,
    PairOffer,
    PairReveal,
    PairConfirm,
    PairJoined,
    Removal,
    /// An extension that this version does not know: read it and skip it.
    Extension(u8),
}

const KINDS: [(u8, Kind); 44] = [
    (1, Kind::Hello),
    (3, Kind::SetSummary),
    (4, Kind::Compare),
    (5, Kind::Plan),
    (6, Kind::Cells),
    (7, Kind::More),
    (8, Kind::Decoded),
    (9, Kind::Rekey),
    (10, Kind::Pull),
    (11, Kind::Page),
    (12, Kind::ReconcileDone),
    (13, Kind::Solicit),
    (14, Kind::Lacking),
    (15, Kind::Absent),
    (16, Kind::AbsentPull),
    (17, Kind::AbsentPage),
    (18, Kind::SizePull),
    (19, Kind::Sizes),
    (32, Kind::Offer),
    (33, Kind::Want),
    (34, Kind::Contents),
    (35, Kind::Piece),
    (36, Kind::Drop),
    (37, Kind::Done),
    (38, Kind::Ack),
    (40, Kind::Prove),
    (41, Kind::Proving),
    (42, Kind::Proofs),
    (43, Kind::ProofGroup),
    (44, Kind::MetaUpdate),
    (45, Kind::ThumbnailRequest),
    (46, Kind::Thumbnail),
    (48, Kind::JournalHello),
    (49, Kind::JournalClock),
    (50, Kind::JournalOps),
    (51, Kind::JournalRefuse),
    (64, Kind::PairRequest),
    (65, Kind::PairAccept),
    (66, Kind::Introduction),
    (67, Kind::PairOffer),
    (68, Kind::PairReveal),
    (69, Kind::PairConfirm),
    (70, Kind::PairJoined),
    (71, Kind::Removal),
];

/// A checked header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of payload.
    pub kind: Kind,
    /// The payload's length.
    pub length: usize,
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// A type that must be known is unknown.
    #[error("frame type {0} is unknown and not skippable")]
    UnknownKind(u8),
    /// The payload is longer than its type allows.
    #[error("a {kind:?} frame of {length} bytes, the limit is {limit}")]
    TooLong {
        /// The frame's type.
        kind: Kind,
        /// The length it announced.
        length: u32,
        /// The limit.
        limit: u32,
    },
}

impl Kind {
    /// The number of the type.
    pub fn number(self) -> u8 {
        if let Self::Extension(number) = self {
            return number;
        }
        KINDS
            .iter()
            .find(|(_, kind)| *kind == self)
            .map(|(number, _)| *number)
            .expect("every kind but Extension stands in KINDS")
    }

    fn from_number(number: u8) -> Result<Self, HeaderError> {
        match KINDS.iter().find(|(n, _)| *n == number) {
            Some((_, kind)) => Ok(*kind),
            None if number > KIND_MANDATORY_MAX => Ok(Self::Extension(number)),
            None => Err(HeaderError::UnknownKind(number)),
        }
    }

    fn length_max(self) -> u32 {
        match self {
            Self::Contents | Self::Piece => CONTENT_FRAME_BYTES_MAX,
            Self::PairRequest
            | Self::PairOffer
            | Self::PairReveal
            | Self::PairConfirm
            | Self::PairJoined => PAIR_FRAME_BYTES_MAX,
            Self::PairAccept | Self::Introduction | Self::Removal => INTRODUCTION_FRAME_BYTES_MAX,
            _ => CONTROL_FRAME_BYTES_MAX,
        }
    }
}

impl Header {
    /// Writes the header for a payload of `length` bytes.
    pub fn encode(kind: Kind, length: u32) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = length.to_be_bytes();
        [kind.number(), a, b, c, d]
    }

    /// Checks and decodes a header.
    ///
    /// # Errors
    /// [`HeaderError`], each a reason to close the connection.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let [number, a, b, c, d] = bytes;
        let kind = Kind::from_number(number)?;
        let (length, limit) = (u32::from_be_bytes([a, b, c, d]), kind.length_max());
        if length > limit {
            return Err(HeaderError::TooLong { kind, length, limit });
        }
        Ok(Self { kind, length: length as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_as_itself() {
        for (number, kind) in KINDS {
            assert_eq!(kind.number(), number);
            let header = Header::decode(Header::encode(kind, 17));
            assert_eq!(header, Ok(Header { kind, length: 17 }));
        }
    }

    #[test]
    fn a_frame_longer_than_its_limit_is_refused_and_one_at_the_limit_is_not() {
        for (_, kind) in KINDS {
            let limit = kind.length_max();
            assert!(Header::decode(Header::encode(kind, limit)).is_ok());
            for length in [limit + 1, 0x7fff_ffff, 0xffff_ffff] {
                let refused = Header::decode(Header::encode(kind, length));
                assert_eq!(refused, Err(HeaderError::TooLong { kind, length, limit }));
            }
        }
    }

    #[test]
    fn unknown_mandatory_types_are_refused_and_extensions_are_passed_on() {
        assert_eq!(Header::decode([100, 0, 0, 0, 1]), Err(HeaderError::UnknownKind(100)));
        let header = Header::decode([200, 0, 0, 0, 1]);
        assert_eq!(header, Ok(Header { kind: Kind::Extension(200), length: 1 }));
    }
}
