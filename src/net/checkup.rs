//! Measures the network for `doctor`, through the endpoint that is bound.
//!
//! Offline nothing is sent beyond this machine. Else the router is asked whether it maps ports, and
//! the relay for its time; the probes of the relays are those that the QUIC library makes anyway.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use chrono::DateTime;
use iroh::unstable_net_report::NetReport;
use iroh::{RelayUrl, SecretKey, TransportAddr, Watcher as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use super::endpoint::{Net, NetConfig, Relay};
use crate::clock::wall_ms;
use crate::core::doctor::{NetworkFacts, PortMappingFacts, ProbeFacts};

/// How long the first probes of the relays may take after the endpoint was bound.
const PROBES_WAIT: Duration = Duration::from_secs(6);

/// The pause between two looks for them.
const PROBES_LOOK: Duration = Duration::from_millis(100);

/// How long the local network is listened to: devices announce themselves every few seconds.
const LISTEN_WAIT: Duration = Duration::from_secs(6);

/// How long a packet may take from this machine to itself.
const ECHO_WAIT: Duration = Duration::from_secs(1);

/// How long the router may take to answer.
const ROUTER_WAIT: Duration = Duration::from_secs(4);

/// How long the relay may take to tell its time.
const TIME_WAIT: Duration = Duration::from_secs(4);

/// The most bytes read of the relay's answer; its head is much shorter.
const TIME_BYTES_MAX: u64 = 4096;

/// A path that every relay answers over plain HTTP, for the detection of login pages.
const TIME_PATH: &str = "/generate_204";

impl Net {
    /// Binds an endpoint only to measure with, under a key that is used for nothing else.
    ///
    /// # Errors
    /// The relay's URL or the sockets are unusable.
    pub async fn bind_for_checkup(offline: bool, relay: Relay) -> anyhow::Result<Self> {
        let config = NetConfig::new(SecretKey::generate());
        Self::bind(NetConfig { offline, relay, ..config }).await
    }

    /// Measures the network when no agent listens to it: listens for a while first.
    pub async fn measure_alone(&self) -> NetworkFacts {
        let mut events = self.events().await;
        let listen = async {
            loop {
                events.next().await;
            }
        };
        // The end of the time is what is waited for.
        let _: Result<(), _> = timeout(LISTEN_WAIT, listen).await;
        self.measure().await
    }

    /// Measures the network now. Takes some seconds.
    pub async fn measure(&self) -> NetworkFacts {
        let (offline, has_relay) = (self.is_lan_only(), self.has_relay());
        let report = if has_relay { self.report().await } else { None };
        let relay = self.relay_status();
        let url = relay.as_ref().map(|(url, ..)| url.clone());
        let url = url.or_else(|| report.as_ref()?.preferred_relay.clone());
        let may_ask_router = !offline && self.lan().is_some();
        let (udp_error, relay_clock_ahead_ms, port_mapping) =
            tokio::join!(self.udp_error(), async { clock_ahead_ms(&url?).await }, async {
                if may_ask_router { port_mapping().await } else { None }
            },);
        let own = self.own_addresses();
        let count = |fits: fn(&IpAddr) -> bool| own.iter().filter(|ip| fits(ip)).count() as u64;
        let probes = report.map(|report| probe_facts(&report, &own));
        NetworkFacts {
            offline,
            has_relay,
            ipv4_addresses: count(IpAddr::is_ipv4),
            ipv6_addresses: count(IpAddr::is_ipv6),
            udp_error,
            probes,
            relay_connected: has_relay.then(|| relay.as_ref().is_some_and(|(_, up, _)| *up)),
            relay_error: relay.and_then(|(.., error)| error),
            relay_clock_ahead_ms,
            port_mapping,
            multicast_error: match self.lan() {
                Some(lan) => lan.failure(),
                None => Some("the endpoint is bound to the loopback address".into()),
            },
            announcements_heard: self.lan().map_or(0, super::discovery::Lan::heard),
        }
    }

    /// The latest report of the library's probes; waits for the first one.
    async fn report(&self) -> Option<NetReport> {
        let deadline = Instant::now() + PROBES_WAIT;
        loop {
            let report = self.bound().ask(|endpoint| endpoint.net_report().get()).flatten();
            if report.is_some() || Instant::now() >= deadline {
                return report;
            }
            sleep(PROBES_LOOK).await;
        }
    }

    /// The relay in use, whether it is connected, and why not.
    fn relay_status(&self) -> Option<(RelayUrl, bool, Option<String>)> {
        let relays = self.bound().ask(|endpoint| endpoint.home_relay_status().get())?;
        let relay = relays.into_iter().next()?;
        let error = relay.last_error().map(ToString::to_string);
        Some((relay.url().clone(), relay.is_connected(), error))
    }

    /// The addresses of this machine's interfaces, as far as the library lists them.
    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        let addresses = self.bound().ask(|endpoint| endpoint.addr().addrs).unwrap_or_default();
        let mut own: Vec<IpAddr> = addresses
            .iter()
            .filter_map(|address| match address {
                TransportAddr::Ip(socket) => Some(socket.ip().to_canonical()),
                _ => None,
            })
            .filter(|ip| !ip.is_loopback() && is_of_this_machine(*ip))
            .collect();
        own.sort_unstable();
        own.dedup();
        own
    }

    /// Sends a packet to each of this machine's own addresses until one arrives.
    async fn udp_error(&self) -> Option<String> {
        let mut last = "this machine has no address".to_owned();
        for ip in self.own_addresses() {
            match echo(SocketAddr::new(ip, 0)).await {
                Ok(()) => return None,
                Err(error) => last = error.to_string(),
            }
        }
        Some(last)
    }
}

fn probe_facts(report: &NetReport, own: &[IpAddr]) -> ProbeFacts {
    let latency = report.preferred_relay.as_ref().and_then(|url| {
        let latencies = report.relay_latency.iter().filter(|(_, of, _)| *of == url);
        latencies.map(|(.., latency)| latency).min()
    });
    ProbeFacts {
        udp_v4: report.udp_v4,
        udp_v6: report.udp_v6,
        nat_varies: report.mapping_varies_by_dest(),
        has_public_v4: report.global_v4.map(|public| own.contains(&IpAddr::V4(*public.ip()))),
        relay_latency_ms: latency.map(|latency| latency.as_secs_f64() * 1000.0),
        captive_portal: report.captive_portal,
    }
}

/// Whether an interface of this machine has the address: only then can a socket be bound to it.
fn is_of_this_machine(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

async fn echo(address: SocketAddr) -> std::io::Result<()> {
    const PACKET: &[u8] = b"can-sync doctor";
    let (to, from) = (UdpSocket::bind(address).await?, UdpSocket::bind(address).await?);
    from.send_to(PACKET, to.local_addr()?).await?;
    let mut received = [0; PACKET.len() + 1];
    let arrived = timeout(ECHO_WAIT, to.recv_from(&mut received)).await;
    let (length, _) = arrived.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    match &received[..length] == PACKET {
        true => Ok(()),
        false => Err(std::io::Error::other("another packet arrived")),
    }
}

async fn port_mapping() -> Option<PortMappingFacts> {
    let client = portmapper::Client::default();
    let found = timeout(ROUTER_WAIT, client.probe()).await.ok()?.ok()?.ok()?;
    Some(PortMappingFacts { upnp: found.upnp, pcp: found.pcp, nat_pmp: found.nat_pmp })
}

/// How far this clock is ahead of the relay's, which every relay tells over plain HTTP.
async fn clock_ahead_ms(relay: &RelayUrl) -> Option<i64> {
    let host = relay.host_str()?;
    let port = if relay.scheme() == "http" { relay.port().unwrap_or(80) } else { 80 };
    let head = timeout(TIME_WAIT, http_head(host, port)).await.ok()?.ok()?;
    let told_ms = date_ms(&head)?;
    let now_ms = i64::try_from(wall_ms()).ok()?;
    Some(now_ms - told_ms)
}

async fn http_head(host: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let request = format!("GET {TIME_PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(TIME_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The time in the head of an HTTP answer, in milliseconds since the Unix epoch.
fn date_ms(head: &str) -> Option<i64> {
    let lines = head.lines().take_while(|line| !line.is_empty());
    let date = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned())
    })?;
    Some(DateTime::parse_from_rfc2822(&date).ok()?.timestamp_millis())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_time_is_read_from_the_head_alone() {
        let head =
            "HTTP/1.1 204 No Content\r\nServer: x\r\nDATE: Sat, 21 Nov 2026 15:12:04 GMT\r\n\r\n";
        assert_eq!(date_ms(head), Some(1_795_273_924_000));
        for head in ["", "HTTP/1.1 204\r\n\r\nDate: Sat, 21 Nov 2026 15:12:04 GMT", "Date: soon"] {
            assert_eq!(date_ms(head), None, "{head}");
        }
    }

    #[tokio::test]
    async fn a_packet_to_this_machine_itself_arrives() {
        echo("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(echo("192.0.2.1:0".parse().unwrap()).await.is_err(), "not an own address");
    }
}
