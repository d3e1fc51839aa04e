//! Addresses of devices as text: `192.0.2.7:4433`, `[fd00::7]:4433`, or the URL of a relay.
//!
//! I1  Text from others is a hint: what cannot be an address of another device is dropped silently,
//!     and no list is longer than [`ADDRESSES_MAX`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use iroh::TransportAddr;

use crate::core::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX};

/// An address that a person gave: `host:port`, where the host is a name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAddress(String);

impl NamedAddress {
    /// The address as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NamedAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for NamedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected host:port, such as nas.example.org:5758 or [fd00::7]:5758, got {text:?}"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        // An IPv6 address without brackets would lose its last part to the port.
        let is_ip = text.parse::<SocketAddr>().is_ok();
        let is_name = !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        let is_short = text.len() <= ADDRESS_BYTES_MAX;
        (is_port && (is_ip || is_name) && is_short)
            .then(|| Self(text.to_owned()))
            .ok_or_else(expected)
    }
}

/// The addresses that a device may use by its own configuration.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// The device's own addresses. If all are loopback, its peers are on the same machine.
    pub(super) own: Vec<IpAddr>,
    /// Whether nothing may leave the local network.
    pub(super) lan_only: bool,
    /// Whether relays may be used.
    pub(super) relay: bool,
}

impl Reach {
    fn admits(&self, address: &TransportAddr) -> bool {
        match address {
            TransportAddr::Relay(_) => self.relay,
            TransportAddr::Ip(socket) => {
                let ip = socket.ip().to_canonical();
                let nowhere = match ip {
                    IpAddr::V4(v4) => v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
                    IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
                };
                socket.port() != 0
                    && !nowhere
                    && (!ip.is_loopback() || self.own.iter().all(IpAddr::is_loopback))
                    && (!self.lan_only || is_near(ip, &self.own))
            }
            _ => false,
        }
    }
}

/// The usable addresses in `texts` without duplicates, at most [`ADDRESSES_MAX`].
pub(super) fn parse_addresses(texts: &[String], reach: &Reach) -> Vec<TransportAddr> {
    let mut addresses = Vec::new();
    for address in texts.iter().filter_map(|text| parse_address(text)) {
        if addresses.len() == ADDRESSES_MAX {
            break;
        }
        if reach.admits(&address) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

fn parse_address(text: &str) -> Option<TransportAddr> {
    if text.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(TransportAddr::Ip(canonical(socket)));
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        return text.parse().ok().map(TransportAddr::Relay);
    }
    None
}

/// Normalises an IPv4 address in IPv6 notation.
pub(super) fn canonical(socket: SocketAddr) -> SocketAddr {
    let canonical = SocketAddr::new(socket.ip().to_canonical(), socket.port());
    // An IPv6 scope is part of the address; canonical IPv4 has none.
    if canonical.is_ipv4() { canonical } else { socket }
}

/// An address as text, for others: without a scope, which is a number of this machine. `None` for a kind
/// that this program does not use.
pub(super) fn address_text(address: &TransportAddr) -> Option<String> {
    match address {
        TransportAddr::Ip(socket) => Some(SocketAddr::new(socket.ip(), socket.port()).to_string()),
        TransportAddr::Relay(url) => Some(url.to_string()),
        _ => None,
    }
}

/// Whether it is an IPv6 link-local address.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether packets to `ip` stay in the local network of a device with the addresses `own`: by the
/// kind of address, or because it shares the first 24 bits (IPv4) or the subnet prefix of 64 bits
/// (IPv6) with one of them, as public addresses in one network do.
pub(super) fn is_near(ip: IpAddr, own: &[IpAddr]) -> bool {
    let near_one = |own: &IpAddr| match (ip.to_canonical(), own.to_canonical()) {
        (IpAddr::V4(ip), IpAddr::V4(own)) => ip.octets()[..3] == own.octets()[..3],
        (IpAddr::V6(ip), IpAddr::V6(own)) => ip.octets()[..8] == own.octets()[..8],
        _ => false,
    };
    let near_by_kind = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local(),
    };
    near_by_kind || own.iter().any(near_one)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ANYWHERE: Reach = Reach { own: Vec::new(), lan_only: false, relay: true };

    fn usable(texts: &[&str], reach: &Reach) -> Vec<String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        parse_addresses(&texts, reach).iter().map(|a| address_text(a).unwrap()).collect()
    }

    #[test]
    fn a_named_address_is_a_host_and_a_port() {
        for text in ["nas.example.org:5758", "nas:1", "192.0.2.7:4433", "[fd00::7]:65535"] {
            assert_eq!(text.parse::<NamedAddress>().unwrap().as_str(), text);
        }
        for text in
            ["", "nas", "nas:", ":1", "nas:0", "nas:65536", "fd00::7:1", "a b:1", "http://a:1"]
        {
            assert!(text.parse::<NamedAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_come_back_as_they_were_written() {
        let texts = ["192.0.2.7:4433", "[fd00::7]:1", "https://relay.example/", "10.0.0.1:9"];
        assert_eq!(usable(&texts, &ANYWHERE), texts);
    }

    #[test]
    fn what_cannot_be_another_device_is_dropped() {
        let bogus = [
            "",
            "nonsense",
            "10.0.0.1",
            "10.0.0.1:0",
            "0.0.0.0:9",
            "224.0.0.251:5353",
            "255.255.255.255:9",
            "[::]:9",
            "[ff02::fb]:9",
            "ftp://relay.example",
            "https://",
            "[::ffff:224.0.0.1]:9",
            "10.0.0.1:99999",
        ];
        assert_eq!(usable(&bogus, &ANYWHERE), [""; 0]);
        let long = format!("https://{}.example", "a".repeat(ADDRESS_BYTES_MAX));
        assert_eq!(usable(&[&long], &ANYWHERE), [""; 0]);
    }

    #[test]
    fn loopback_relay_and_the_internet_are_used_only_where_they_may_be() {
        let texts = [
            "127.0.0.1:1",
            "[::1]:1",
            "10.0.0.1:1",
            "192.0.2.7:1",
            "[2001:db8::7]:1",
            "198.51.100.7:1",
            "[2001:db8:1::7]:1",
            "https://r.example/",
        ];
        let own = ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap()).to_vec();
        let lan = Reach { own, lan_only: true, relay: false };
        assert_eq!(usable(&texts, &lan), ["10.0.0.1:1", "192.0.2.7:1", "[2001:db8::7]:1"]);
        let online = Reach { lan_only: false, ..lan.clone() };
        assert_eq!(usable(&texts, &online), texts[2..7]);
        assert_eq!(usable(&texts, &Reach { relay: true, ..online }), texts[2..]);
        let alone = Reach { own: vec!["127.0.0.1".parse().unwrap()], ..lan };
        assert_eq!(usable(&texts, &alone), texts[..3]);
    }

    #[test]
    fn a_poisoned_list_is_cut_and_repeats_count_once() {
        let mut texts: Vec<String> = (1..1000).map(|port| format!("10.0.0.1:{port}")).collect();
        texts.insert(0, "[::ffff:10.0.0.1]:1".to_owned());
        let parsed = parse_addresses(&texts, &ANYWHERE);
        assert_eq!(parsed.len(), ADDRESSES_MAX);
        assert_eq!(parsed.iter().filter(|a| address_text(a).unwrap() == "10.0.0.1:1").count(), 1);
    }
}
