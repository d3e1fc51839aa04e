//! Decides which addresses announced by mDNS are dialled. Anybody in the local network can announce
//! any device at any address.
//!
//! A1  Only addresses in the local network are dialled, and only a few of each announcement.
//! A2  After a dial to an address where the device did not prove its key, the address is left alone
//!     for a pause that doubles each time.
//! A3  Memory is bounded: when it is full, further addresses are not dialled.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use iroh::EndpointId;
use tokio::time::Instant;

use super::address::{canonical, is_near};

use crate::core::limits::ADDRESSES_MAX;

/// The first pause; the announced device may only not be ready yet.
const PAUSE_MIN: Duration = Duration::from_secs(4);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5 * 60);

/// The most addresses remembered: all those of the largest group at once, and as many invented
/// ones.
const TRIED_MAX: usize = 2048;

/// The addresses that were dialled because of an announcement.
#[derive(Debug, Default)]
pub(super) struct Announced {
    tried: BTreeMap<SocketAddr, Tried>,
}

#[derive(Debug)]
struct Tried {
    device: EndpointId,
    until: Instant,
    pause: Duration,
}

impl Announced {
    /// The announced addresses to dial now, for a device with the addresses `own`.
    pub(super) fn worth_a_dial(
        &mut self,
        addresses: impl Iterator<Item = SocketAddr>,
        own: &[IpAddr],
    ) -> Vec<SocketAddr> {
        let now = Instant::now();
        if self.tried.len() >= TRIED_MAX {
            self.tried.retain(|_, tried| now < tried.until + tried.pause);
        }
        let rests = |address: &SocketAddr| match self.tried.get(address) {
            Some(tried) => now < tried.until,
            None => self.tried.len() >= TRIED_MAX,
        };
        let own_is_loopback = own.iter().all(IpAddr::is_loopback);
        addresses
            .map(canonical)
            .filter(|address| is_near(address.ip(), own) && address.port() != 0)
            .filter(|address| own_is_loopback || !address.ip().is_loopback())
            .filter(|address| !rests(address))
            .take(ADDRESSES_MAX)
            .collect()
    }

    /// Notes that these addresses are dialled now because `device` was announced there.
    pub(super) fn dialed(&mut self, device: EndpointId, addresses: &[SocketAddr]) {
        let now = Instant::now();
        for address in addresses {
            let known = self.tried.get(address).map(|tried| tried.pause);
            if known.is_none() && self.tried.len() >= TRIED_MAX {
                continue;
            }
            let pause = known.map_or(PAUSE_MIN, |pause| (pause * 2).min(PAUSE_MAX));
            self.tried.insert(*address, Tried { device, until: now + pause, pause });
        }
    }

    /// Notes that the device proved its key, so the announcement was true.
    pub(super) fn proved(&mut self, device: EndpointId) {
        self.tried.retain(|_, tried| tried.device != device);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn device(n: u8) -> EndpointId {
        iroh::SecretKey::from_bytes(&[n; 32]).public()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_where_nobody_proves_the_announced_key_is_dialled_ever_less_often() {
        let mut announced = Announced::default();
        let own = [IpAddr::from([192, 168, 1, 2])];
        let all = addresses(&["192.168.1.7:4433"]);
        let mut dials = 0;
        for _ in 0..3600 {
            let worth = announced.worth_a_dial(all.iter().copied(), &own);
            dials += worth.len();
            announced.dialed(device(1), &worth);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((10..=20).contains(&dials), "{dials} dials in an hour of announcements");
        announced.proved(device(2));
        assert!(announced.worth_a_dial(all.iter().copied(), &own).is_empty());
        announced.proved(device(1));
        assert_eq!(announced.worth_a_dial(all.iter().copied(), &own), all);
    }

    #[test]
    fn an_announcement_aims_no_dial_beyond_the_local_network() {
        let mut announced = Announced::default();
        let own = [IpAddr::from([192, 168, 1, 2]), IpAddr::from([198, 51, 100, 2])];
        let near = addresses(&["10.0.0.7:1", "198.51.100.7:9", "[fe80::7]:4433"]);
        let far =
            addresses(&["203.0.113.7:53", "[2001:db8::7]:4433", "127.0.0.1:22", "10.0.0.7:0"]);
        let all = far.iter().chain(&near).copied();
        assert_eq!(announced.worth_a_dial(all, &own), near);
        let many = (1..=500).map(|port| SocketAddr::new(near[0].ip(), port));
        assert_eq!(announced.worth_a_dial(many, &own).len(), ADDRESSES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_announcements_is_bounded() {
        let mut announced = Announced::default();
        for n in 0..2 * TRIED_MAX {
            let address = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1));
            announced.dialed(device(1), &[address]);
        }
        assert_eq!(announced.tried.len(), TRIED_MAX);
        let fresh = addresses(&["10.9.9.9:1"]);
        assert!(announced.worth_a_dial(fresh.iter().copied(), &[]).is_empty());
        tokio::time::advance(PAUSE_MAX).await;
        assert_eq!(announced.worth_a_dial(fresh.iter().copied(), &[]), fresh);
    }
}
