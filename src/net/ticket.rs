//! A ticket: a one-time invitation, as text to paste or as a QR code.
//!
//! I1  A typo is recognised: the text carries a checksum, which the library's tickets lack.
//! I2  The secret appears in the ticket's text only, never in `Debug`.
//!
//! The text is `cansync` followed by, in base32 without padding (RFC 4648), in either case:
//! `version u8 | node ID 32 | secret 16 | expires ms u64 | addresses | checksum 4`. Numbers are
//! big-endian; each address is `4, IPv4, port`, `6, IPv6, port` or `0, length u8, URL`. The
//! checksum is the start of the BLAKE3 hash of everything before it, in every version, so that a
//! typo in the version is recognised too.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use thiserror::Error;

use crate::core::ids::NodeId;
use crate::core::limits::ADDRESSES_MAX;
use crate::core::pairing::TicketSecret;

const PREFIX: &str = "cansync";

/// What a link to a ticket begins with, in lower case.
const LINK: &str = "can-sync://pair/";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// Version, node ID, secret, expiry and checksum: a ticket without addresses.
const BYTES_MIN: usize = 1 + NodeId::LEN + 16 + 8 + CHECKSUM_BYTES;

/// The longest text parsed: 16 addresses with the longest URLs are 6,700 characters.
const TEXT_BYTES_MAX: usize = 8 * 1024;

const TAG_IPV4: u8 = 4;
const TAG_IPV6: u8 = 6;
const TAG_URL: u8 = 0;

/// An invitation to the group of `inviter`.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The device that invites.
    pub inviter: NodeId,
    /// The addresses of the inviter. Those that are neither a socket address nor a URL, and those
    /// beyond 16, are left out of the text.
    pub addresses: Vec<String>,
    /// The secret that allows one device to join once.
    pub secret: TicketSecret,
    /// The end of the ticket's validity, ms since the Unix epoch.
    pub expires_ms: u64,
}

/// Why a text is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TicketError {
    /// The text is something else.
    #[error("not a ticket: a ticket begins with \"{PREFIX}\"")]
    NotATicket,
    /// The beginning or the end is missing.
    #[error("the ticket is cut off: it has {chars} characters, the shortest has {}", chars_min())]
    TooShort {
        /// The number of characters.
        chars: usize,
    },
    /// The text is too long: something was pasted along with it.
    #[error("the ticket is too long: {bytes} bytes, the limit is {TEXT_BYTES_MAX}")]
    TooLong {
        /// The number of bytes.
        bytes: usize,
    },
    /// The text contains a character that no ticket has.
    #[error("the ticket is garbled: {character:?} at position {position} cannot be part of it")]
    Garbled {
        /// The character.
        character: char,
        /// Its position, from 1.
        position: usize,
    },
    /// The checksum does not match: a typo.
    #[error("the ticket is garbled: a character is wrong, missing or too many; copy it once more")]
    Checksum,
    /// A newer program made the ticket.
    #[error("the ticket has version {seen}, this program knows version {VERSION}: update it")]
    Version {
        /// The version found.
        seen: u8,
    },
    /// The checksum is right but the content is not: a broken program made the ticket.
    #[error("the ticket was made wrongly: {0}")]
    Malformed(&'static str),
}

impl Ticket {
    /// The ticket as a link, which a system may hand to this program.
    pub fn link(&self) -> String {
        format!("{LINK}{self}")
    }

    /// The ticket as a QR code for a dark terminal, in half blocks. `None` when it is too long,
    /// which takes more relay URLs than a device has.
    pub fn qr(&self) -> Option<String> {
        // In upper case, which a QR code stores in little more than half the space.
        let text = self.to_string().to_uppercase();
        let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
        let (dark, light) = (Dense1x2::Light, Dense1x2::Dark);
        Some(code.render::<Dense1x2>().dark_color(dark).light_color(light).build())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.inviter.as_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.expires_ms.to_be_bytes());
        let addresses = self.addresses.iter().filter_map(|text| encode_address(text));
        bytes.extend(addresses.take(ADDRESSES_MAX).flatten());
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let (content, seen) =
            bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TicketError::Checksum)?;
        if checksum(content) != *seen {
            return Err(TicketError::Checksum);
        }
        let mut content = Reader(content);
        let [version] = content.take()?;
        if version != VERSION {
            return Err(TicketError::Version { seen: version });
        }
        let inviter = NodeId(content.take()?);
        let secret = content.take()?;
        let expires_ms = u64::from_be_bytes(content.take()?);
        let mut addresses = Vec::new();
        while !content.0.is_empty() {
            if addresses.len() == ADDRESSES_MAX {
                return Err(TicketError::Malformed("too many addresses"));
            }
            addresses.push(content.take_address()?);
        }
        Ok(Self { inviter, addresses, secret, expires_ms })
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("inviter", &self.inviter)
            .field("addresses", &self.addresses)
            .field("secret", &"hidden")
            .field("expires_ms", &self.expires_ms)
            .finish()
    }
}

impl fmt::Display for Ticket {
    /// Writes the whole ticket including its secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&self.encode()).to_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Parses a ticket or a link to one, in either case; skips white space, which mail programs insert.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TicketError::TooLong { bytes: text.len() });
        }
        let text: String = text.split_whitespace().collect::<String>().to_ascii_uppercase();
        let text = text.strip_prefix(&LINK.to_uppercase()).unwrap_or(&text);
        let base32 = text.strip_prefix(&PREFIX.to_uppercase()).ok_or(TicketError::NotATicket)?;
        if let Some((at, character)) =
            base32.chars().enumerate().find(|(_, c)| !matches!(c, 'A'..='Z' | '2'..='7'))
        {
            let character = character.to_ascii_lowercase();
            return Err(TicketError::Garbled { character, position: PREFIX.len() + at + 1 });
        }
        let chars = text.len();
        if chars < chars_min() {
            return Err(TicketError::TooShort { chars });
        }
        // All characters are valid, so only their number or the bits of the last can be wrong.
        let bytes = BASE32_NOPAD.decode(base32.as_bytes()).map_err(|_| TicketError::Checksum)?;
        Self::decode(&bytes)
    }
}

fn chars_min() -> usize {
    PREFIX.len() + BASE32_NOPAD.encode_len(BYTES_MIN)
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("can-sync ticket checksum");
    hasher.update(content);
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    [a, b, c, d]
}

fn encode_address(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match text.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(v4)) => {
            bytes.push(TAG_IPV4);
            bytes.extend_from_slice(&v4.ip().octets());
            bytes.extend_from_slice(&v4.port().to_be_bytes());
        }
        Ok(SocketAddr::V6(v6)) => {
            bytes.push(TAG_IPV6);
            bytes.extend_from_slice(&v6.ip().octets());
            bytes.extend_from_slice(&v6.port().to_be_bytes());
        }
        Err(_) if text.contains("://") => {
            bytes.extend_from_slice(&[TAG_URL, u8::try_from(text.len()).ok()?]);
            bytes.extend_from_slice(text.as_bytes());
        }
        Err(_) => return None,
    }
    Some(bytes)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TicketError> {
        let (taken, rest) =
            self.0.split_first_chunk::<N>().ok_or(TicketError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn take_address(&mut self) -> Result<String, TicketError> {
        let [tag] = self.take()?;
        let ip: IpAddr = match tag {
            TAG_IPV4 => Ipv4Addr::from(self.take::<4>()?).into(),
            TAG_IPV6 => Ipv6Addr::from(self.take::<16>()?).into(),
            TAG_URL => return self.take_url(),
            _ => return Err(TicketError::Malformed("an address of an unknown kind")),
        };
        let port = u16::from_be_bytes(self.take()?);
        Ok(SocketAddr::new(ip, port).to_string())
    }

    fn take_url(&mut self) -> Result<String, TicketError> {
        let [length] = self.take()?;
        let (url, rest) = self
            .0
            .split_at_checked(usize::from(length))
            .ok_or(TicketError::Malformed("it ends too early"))?;
        self.0 = rest;
        let url = str::from_utf8(url).map_err(|_| TicketError::Malformed("a URL is not text"))?;
        if !url.contains("://") {
            return Err(TicketError::Malformed("a URL is none"));
        }
        Ok(url.to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ticket() -> Ticket {
        Ticket {
            inviter: NodeId([0xab; 32]),
            addresses: ["192.168.1.7:4433", "[fd00::7]:4433", "https://relay.example.org/"]
                .map(str::to_owned)
                .to_vec(),
            secret: [0x5e; 16],
            expires_ms: 1_800_000_000_000,
        }
    }

    #[test]
    fn a_ticket_comes_back_from_its_text_in_either_case_and_wrapped() {
        let text = ticket().to_string();
        assert!(text.starts_with("cansync"));
        let wrapped = format!("  {}\n{}\t\r\n", &text[..50], &text[50..]);
        for text in [text.clone(), text.to_uppercase(), wrapped] {
            assert_eq!(text.parse(), Ok(ticket()));
        }
    }

    #[test]
    fn a_typo_at_any_character_is_noticed_and_named() {
        let text = ticket().to_string();
        for at in 0..text.len() {
            for typo in "abz7".chars().filter(|c| !text[at..].starts_with(*c)) {
                let mut bent = text.clone();
                bent.replace_range(at..at + 1, &typo.to_string());
                let expected =
                    if at < PREFIX.len() { TicketError::NotATicket } else { TicketError::Checksum };
                assert_eq!(bent.parse::<Ticket>(), Err(expected), "{typo} at {at}");
            }
            let mut missing = text.clone();
            missing.remove(at);
            assert!(missing.parse::<Ticket>().is_err(), "without the character at {at}");
            let mut doubled = text.clone();
            doubled.insert(at, 'c');
            assert!(doubled.parse::<Ticket>().is_err(), "one more at {at}");
            assert!(text[..at].parse::<Ticket>().is_err(), "cut at {at}");
        }
    }

    #[test]
    fn swapped_neighbours_are_noticed() {
        let text = ticket().to_string();
        for at in PREFIX.len()..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes.swap(at, at + 1);
            let swapped = String::from_utf8(bytes).unwrap();
            assert_eq!(swapped.parse::<Ticket>().is_ok(), swapped == text, "at {at}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let parse = |text: &str| text.parse::<Ticket>().unwrap_err();
        let text = ticket().to_string();
        assert_eq!(parse("hello"), TicketError::NotATicket);
        assert_eq!(parse(""), TicketError::NotATicket);
        assert_eq!(parse("cansyncabc"), TicketError::TooShort { chars: 10 });
        assert_eq!(
            parse(&text.replacen(&text[20..21], "!", 1).replace("cans!nc", "cansync")),
            TicketError::Garbled {
                character: '!',
                position: text.find(&text[20..21]).unwrap() + 1
            }
        );
        assert!(matches!(parse(&"a".repeat(TEXT_BYTES_MAX + 1)), TicketError::TooLong { .. }));
        let sealed = |mut content: Vec<u8>| {
            let sum = checksum(&content);
            content.extend_from_slice(&sum);
            parse(&format!("{PREFIX}{}", BASE32_NOPAD.encode(&content)))
        };
        let mut newer = ticket().encode();
        newer.truncate(newer.len() - CHECKSUM_BYTES);
        newer[0] = 2;
        assert_eq!(sealed(newer.clone()), TicketError::Version { seen: 2 });
        newer[0] = VERSION;
        newer.push(9);
        assert!(matches!(sealed(newer.clone()), TicketError::Malformed(_)));
        newer.pop();
        newer.extend([TAG_IPV4, 1, 2, 3, 4, 0, 1].repeat(ADDRESSES_MAX));
        assert!(matches!(sealed(newer), TicketError::Malformed(_)));
    }

    #[test]
    fn a_link_is_a_ticket_in_either_case() {
        let link = ticket().link();
        assert!(link.starts_with("can-sync://pair/cansync"), "{link}");
        for text in [link.clone(), link.to_uppercase(), format!(" {link}\n")] {
            assert_eq!(text.parse(), Ok(ticket()));
        }
        let other = link.replace("pair", "open");
        assert_eq!(other.parse::<Ticket>(), Err(TicketError::NotATicket));
    }

    #[test]
    fn the_secret_does_not_show_in_debug_output() {
        let shown = format!("{:?} {:#?}", ticket(), ticket());
        assert!(shown.contains("hidden") && !shown.contains("94") && !shown.contains("5e"));
    }

    #[test]
    fn the_qr_code_holds_a_ticket_with_the_most_addresses_and_fits_a_terminal() {
        let many = (0..ADDRESSES_MAX - 1).map(|i| format!("[fd00::{i}]:4433"));
        let ticket = Ticket {
            addresses: many.chain(["https://euw-1.relay.n0.iroh.link./".to_owned()]).collect(),
            ..ticket()
        };
        let qr = ticket.qr().unwrap();
        let lines: Vec<_> = qr.lines().collect();
        assert!(lines.len() <= 60, "{} lines", lines.len());
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()));
        assert!(self::ticket().qr().unwrap().lines().count() <= 32);
        let longest = Ticket {
            addresses: vec![format!("https://{}", "a".repeat(240)); ADDRESSES_MAX],
            ..ticket
        };
        assert_eq!(longest.qr(), None);
        assert_eq!(longest.to_string().parse(), Ok(longest));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC*", sealed in any::<Vec<u8>>()) {
            let _ = text.parse::<Ticket>();
            let _ = format!("cansync{text}").parse::<Ticket>();
            let mut content = sealed;
            let sum = checksum(&content);
            content.extend_from_slice(&sum);
            let _ = format!("cansync{}", BASE32_NOPAD.encode(&content)).parse::<Ticket>();
        }

        #[test]
        fn every_ticket_comes_back(
            inviter: [u8; 32], secret: [u8; 16], expires_ms: u64,
            v4 in proptest::collection::vec(any::<std::net::SocketAddrV4>(), 0..8),
            v6 in proptest::collection::vec(any::<(Ipv6Addr, u16)>(), 0..8),
        ) {
            let v6 = v6.into_iter().map(|(ip, port)| SocketAddr::new(ip.into(), port).to_string());
            let addresses = v4.iter().map(ToString::to_string).chain(v6).collect();
            let ticket = Ticket { inviter: NodeId(inviter), addresses, secret, expires_ms };
            prop_assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }
    }
}
