//! IPv6 link-local addresses: a network without a router or DHCP has no others. The QUIC library does
//! not list them, and forgets on which interface an address is; so a socket of its own is bound to each
//! of them, and the system sends what leaves it on its interface. That is done only where there is no
//! other address: interfaces of containers come and go.
//!
//! L1  They are told to others only where a device has no other address.
//! L2  With several interfaces, other devices are dialled on the first of them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The most interfaces whose addresses are bound: a laptop's, and some of containers.
const INTERFACES_MAX: usize = 4;

/// Where Linux lists its IPv6 addresses.
const LISTED: &str = "/proc/net/if_inet6";

/// The kernel's number for the scope of link-local addresses.
const LINK_SCOPE: &str = "20";

/// Flags of an address that is not usable: `IFA_F_DADFAILED` and `IFA_F_TENTATIVE`.
const UNUSABLE: u8 = 0x08 | 0x40;

/// This device's link-local addresses with their interfaces, and port 0; empty on systems that do not
/// list them.
pub(super) fn own() -> Vec<SocketAddrV6> {
    parse(&std::fs::read_to_string(LISTED).unwrap_or_default())
}

fn parse(listed: &str) -> Vec<SocketAddrV6> {
    let mut own = Vec::new();
    for line in listed.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, interface, _, LINK_SCOPE, flags, _] = fields[..] else { continue };
        let Ok(bits) = u128::from_str_radix(address, 16) else { continue };
        let Ok(interface) = u32::from_str_radix(interface, 16) else { continue };
        let is_usable = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & UNUSABLE == 0);
        if is_usable && own.len() < INTERFACES_MAX {
            own.push(SocketAddrV6::new(Ipv6Addr::from_bits(bits), 0, 0, interface));
        }
    }
    own
}

/// Whether an address is valid on one interface alone.
pub(super) fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The link-local ones of these sockets' addresses, without their interfaces, which mean nothing to
/// others.
pub(super) fn told(bound: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let link_local = bound.into_iter().filter(|address| is_link_local(&address.ip()));
    link_local.map(|address| SocketAddr::new(address.ip(), address.port())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LISTED: &str = "\
fe80000000000000505f02fffe000001 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
fd000000000000000000000000000007 02 40 00 80     eth0
fe80000000000000505f02fffe000002 0a 40 20 c0    wlan0
fe80000000000000505f02fffe000003 0b 40 20 80    wlan1
nonsense
";

    #[test]
    fn own_link_local_addresses_are_those_that_can_be_used() {
        let own: Vec<String> = parse(LISTED).iter().map(ToString::to_string).collect();
        assert_eq!(own, ["[fe80::505f:2ff:fe00:1%2]:0", "[fe80::505f:2ff:fe00:3%11]:0"]);
        assert_eq!(parse(""), []);
        let many = (1..100).map(|n| format!("fe8{n:029x} {n:02x} 40 20 80 eth{n}\n"));
        assert_eq!(parse(&many.collect::<String>()).len(), INTERFACES_MAX);
    }

    #[test]
    fn others_are_told_no_interface() {
        let bound = ["0.0.0.0:5", "[::]:6", "[fe80::7%2]:8"];
        let told = told(bound.map(|text| text.parse::<SocketAddr>().unwrap()));
        assert_eq!(told, ["[fe80::7]:8".parse().unwrap()]);
    }
}
