//! Networks with IPv6 link-local addresses (`fe80::`) alone: a cable between two devices. The QUIC library
//! lists no such address, and its socket for all of IPv6 cannot send to one. So a socket is bound to each.
//!
//! L1  Only where this machine has no other address: elsewhere such an address leads nowhere, and it is
//!     neither bound nor told.

use std::net::{IpAddr, SocketAddrV6};
use std::time::Duration;

use netwatch::interfaces::{IpNet, State};

/// How often to look for them while there are no other addresses. The library tells of no such address;
/// it comes a second or two after the link.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(3);

/// The link-local addresses of a machine that has no others, each with the number of its interface; without
/// a port.
pub(super) async fn alone() -> Vec<SocketAddrV6> {
    let state = State::new().await;
    let up = state.interfaces.values().filter(|interface| interface.is_up());
    alone_among(up.flat_map(|interface| interface.addrs()))
}

fn alone_among(addresses: impl Iterator<Item = IpNet>) -> Vec<SocketAddrV6> {
    let mut alone = Vec::new();
    for address in addresses.filter(|address| !address.addr().is_loopback()) {
        match (&address, address.addr()) {
            (IpNet::V6 { scope_id, flags, .. }, IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                if !flags.tentative && !flags.duplicated {
                    alone.push(SocketAddrV6::new(ip, 0, 0, *scope_id));
                }
            }
            _ => return Vec::new(),
        }
    }
    alone.sort_unstable();
    alone
}
