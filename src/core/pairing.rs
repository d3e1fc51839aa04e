//! The proof that a joiner knows a ticket's secret, and what devices know about a member of their
//! group.

use std::collections::BTreeSet;

use crate::core::foreign_text::is_unshowable;
use crate::core::ids::NodeId;
use crate::core::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, NAME_CHARS_MAX};

/// The one-time secret of a ticket.
pub type TicketSecret = [u8; 16];

/// A member of the group as another device knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The device.
    pub node_id: NodeId,
    /// The device's name, fit for people; see [`shown_name`].
    pub name: String,
    /// The addresses at which it may be reachable, the likeliest first: socket addresses and relay
    /// URLs as text. Hints.
    pub addresses: Vec<String>,
}

/// The devices of a group and those removed from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// The members, including this device unless it was removed.
    pub members: Vec<Member>,
    /// The devices that were removed for ever.
    pub removed: Vec<NodeId>,
}

/// The most devices that one ticket lets in; a group has room for twice as many.
pub const TICKET_USES_MAX: u16 = 64;

/// The public name of a ticket, from its key. It tells nothing of the key, which lets a device in.
pub fn ticket_id(key: &[u8; 32]) -> String {
    let id = blake3::derive_key("can-sync 2026 public name of a ticket", key);
    id[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Derives a ticket's key: the inviter keeps it to check proofs, instead of the secret itself.
pub fn ticket_key(secret: &TicketSecret) -> [u8; 32] {
    blake3::derive_key("can-sync pair v1", secret)
}

/// The joiner's proof that it knows a ticket's secret. It is valid only for these two devices in
/// these roles; QUIC has authenticated both node IDs.
pub fn pair_proof(secret: &TicketSecret, inviter: &NodeId, joiner: &NodeId) -> [u8; 32] {
    *keyed_proof(&ticket_key(secret), inviter, joiner).as_bytes()
}

/// Whether `proof` was made with the secret behind `key`. Runs in constant time.
pub fn proof_matches(key: &[u8; 32], inviter: &NodeId, joiner: &NodeId, proof: &[u8; 32]) -> bool {
    // blake3::Hash compares in constant time.
    keyed_proof(key, inviter, joiner) == blake3::Hash::from_bytes(*proof)
}

fn keyed_proof(key: &[u8; 32], inviter: &NodeId, joiner: &NodeId) -> blake3::Hash {
    let mut roles = [0; 2 * NodeId::LEN];
    roles[..NodeId::LEN].copy_from_slice(inviter.as_bytes());
    roles[NodeId::LEN..].copy_from_slice(joiner.as_bytes());
    blake3::keyed_hash(key, &roles)
}

/// A device's name made fit to be shown: one line of at most [`NAME_CHARS_MAX`] characters, with no
/// control characters and none that change the writing direction. May be empty.
pub fn device_name(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .filter(|c| !is_unshowable(*c))
        .collect();
    let cut: String = shown.trim().chars().take(NAME_CHARS_MAX).collect();
    cut.trim_end().to_owned()
}

/// A device's name for people: [`device_name`], or the start of its node ID when that is empty.
pub fn shown_name(text: &str, node_id: &NodeId) -> String {
    let name = device_name(text);
    if name.is_empty() { node_id.short() } else { name }
}

/// The addresses to keep for a device, newest first. Only their form is checked; the dialer parses
/// them.
pub fn addresses(newest: &[String], older: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let is_address = |text: &String| {
        (1..=ADDRESS_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    let all = newest.iter().cloned().chain(older);
    let fit = all.filter(|address| is_address(address) && seen.insert(address.clone()));
    fit.take(ADDRESSES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId([1; 32]);
    const B: NodeId = NodeId([2; 32]);
    const SECRET: TicketSecret = [7; 16];

    #[test]
    fn a_proof_is_good_for_its_secret_and_roles_only() {
        let key = ticket_key(&SECRET);
        let proof = pair_proof(&SECRET, &A, &B);
        assert!(proof_matches(&key, &A, &B, &proof));
        assert!(!proof_matches(&key, &B, &A, &proof));
        assert!(!proof_matches(&key, &A, &NodeId([3; 32]), &proof));
        assert!(!proof_matches(&ticket_key(&[8; 16]), &A, &B, &proof));
    }

    #[test]
    fn the_proof_is_the_one_of_the_protocol_page() {
        let key = blake3::derive_key("can-sync pair v1", &SECRET);
        let roles = [A.0, B.0].concat();
        let expected = *blake3::keyed_hash(&key, &roles).as_bytes();
        assert_eq!(pair_proof(&SECRET, &A, &B), expected);
    }

    #[test]
    fn names_become_one_short_harmless_line() {
        for (given, shown) in [
            ("laptop", "laptop"),
            ("  Ann's\tPC\r\n ", "Ann's PC"),
            ("a\u{1b}[31mb\0", "a[31mb"),
            ("ab\u{202e}cd\u{200b}", "abcd"),
            ("Büro 🖥", "Büro 🖥"),
            ("\n", ""),
        ] {
            assert_eq!(device_name(given), shown, "{given:?}");
        }
        assert_eq!(device_name(&"ü".repeat(65)).chars().count(), 64);
    }
}
