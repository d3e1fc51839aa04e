//! Why a connection is closed: the one table of close codes, as numbers on the wire and as words
//! for people. A number this version does not know is kept and printed as a number.

use std::fmt;

/// The reason one side gives for closing a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseCode {
    /// The work is done, nothing is wrong.
    Ok,
    /// The two devices have another connection, which stays.
    Duplicate,
    /// The closed device is not a member of the closer's group. Reveals nothing else.
    NotMember,
    /// The closed device was a member and has been removed.
    Removed,
    /// The devices belong to different groups.
    WrongGroup,
    /// The devices have no protocol in common.
    Version,
    /// The devices' stores use different hash algorithms.
    HashAlgorithm,
    /// The closed device broke the protocol.
    Protocol,
    /// A frame, list or number was beyond its bound.
    TooLarge,
    /// The other device made no progress before a deadline.
    Slow,
    /// The closer is stopping.
    Shutdown,
    /// The closer failed or is at one of its limits. The closed device is not at fault.
    Internal,
    /// The closer's disk is full, so it cannot do what was requested.
    Full,
    /// A close code that only a newer version of can-sync knows.
    Unknown(u64),
}

/// Number, name and sentence of each code except [`CloseCode::Unknown`]. Numbers are never reused.
/// [`CloseCode::Ok`] is 0 because QUIC closes with 0 when no reason is given.
const CODES: [(u64, CloseCode, &str, &str); 13] = [
    (0, CloseCode::Ok, "OK", "closed as agreed"),
    (1, CloseCode::Duplicate, "DUPLICATE", "another connection between the two devices stays"),
    (2, CloseCode::NotMember, "NOT_MEMBER", "not a member of that device's group"),
    (3, CloseCode::Removed, "REMOVED", "removed from that device's group"),
    (4, CloseCode::WrongGroup, "WRONG_GROUP", "the devices belong to different groups"),
    (5, CloseCode::Version, "VERSION", "the devices have no protocol version in common"),
    (6, CloseCode::HashAlgorithm, "HASH_ALGORITHM", "the stores use different hash algorithms"),
    (7, CloseCode::Protocol, "PROTOCOL", "the protocol was broken"),
    (8, CloseCode::TooLarge, "TOO_LARGE", "a message was larger than allowed"),
    (9, CloseCode::Slow, "SLOW", "no progress in time"),
    (10, CloseCode::Shutdown, "SHUTDOWN", "the device is stopping"),
    (11, CloseCode::Internal, "INTERNAL", "the device cannot go on"),
    (12, CloseCode::Full, "FULL", "the disk of that device is full"),
];

impl CloseCode {
    /// Every code this version knows, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        CODES.iter().map(|(_, code, ..)| *code)
    }

    /// The number on the wire.
    pub fn number(self) -> u64 {
        match self {
            Self::Unknown(number) => number,
            known => known.row().0,
        }
    }

    /// The code for a number received from the network.
    pub fn from_number(number: u64) -> Self {
        CODES
            .iter()
            .find(|(n, ..)| *n == number)
            .map_or(Self::Unknown(number), |(_, code, ..)| *code)
    }

    /// Whether one side broke the protocol or is refused. A new connection dialled soon would end
    /// the same way.
    pub fn is_violation(self) -> bool {
        match self {
            Self::NotMember
            | Self::Removed
            | Self::WrongGroup
            | Self::Version
            | Self::HashAlgorithm
            | Self::Protocol
            | Self::TooLarge => true,
            Self::Ok
            | Self::Duplicate
            | Self::Slow
            | Self::Shutdown
            | Self::Internal
            | Self::Full
            | Self::Unknown(_) => false,
        }
    }

    /// The meaning, as a clause for people.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Unknown(_) => "a reason this version does not know",
            known => known.row().3,
        }
    }

    fn row(self) -> &'static (u64, Self, &'static str, &'static str) {
        CODES
            .iter()
            .find(|(_, code, ..)| *code == self)
            .expect("every code but Unknown stands in CODES")
    }
}

impl fmt::Display for CloseCode {
    /// The name; a number this version does not know prints as a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "{number}"),
            known => f.write_str(known.row().2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_comes_back_from_its_number_and_has_words_of_its_own() {
        let mut words = BTreeSet::new();
        for code in CloseCode::all() {
            assert_eq!(CloseCode::from_number(code.number()), code);
            assert!(words.insert(code.to_string()) && words.insert(code.sentence().to_owned()));
        }
    }

    #[test]
    fn an_unknown_number_is_kept_and_printed() {
        for number in [13, 1000, u64::MAX] {
            let code = CloseCode::from_number(number);
            assert_eq!(code, CloseCode::Unknown(number));
            assert_eq!((code.number(), code.to_string()), (number, number.to_string()));
        }
    }
}
