//! Checks who listens on the store's port.
//!
//! While the store is down, any user of the machine can take its port and collect the key and all
//! requests. So before each new connection the kernel's table of sockets must show this user or
//! root as the owner of the listening socket. Requests on an established connection need no further
//! check, because it stays with the process that accepted it (a check takes milliseconds where the
//! kernel's tables are large).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::BoxError;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tower::filter::AsyncPredicate;

use crate::store::StoreError;

/// Wraps a connector and allows only connections to a listener of this user or root. The
/// [`StoreError`] for a refusal is among the causes of the client's error.
#[derive(Clone, Copy)]
pub(super) struct OwnedBy(pub(super) SocketAddr);

impl<Request: Send + 'static> AsyncPredicate<Request> for OwnedBy {
    type Future = BoxFuture<'static, Result<Request, BoxError>>;
    type Request = Request;

    fn check(&mut self, request: Request) -> Self::Future {
        let address = self.0;
        async move {
            check(address).await?;
            Ok(request)
        }
        .boxed()
    }
}

/// Fails if another user listens on the address. Sends nothing to it.
#[cfg(target_os = "linux")]
async fn check(address: SocketAddr) -> Result<(), StoreError> {
    // The kernel too prefers a listener of the same family; an IPv6 one may also take IPv4. Read
    // below `self`, because a sandboxed service may not see the rest of /proc.
    let tables: &[&str] = match address {
        SocketAddr::V4(_) => &["/proc/self/net/tcp", "/proc/self/net/tcp6"],
        SocketAddr::V6(_) => &["/proc/self/net/tcp6"],
    };
    let our_uid = rustix::process::geteuid().as_raw();
    for path in tables {
        let listeners = match tokio::fs::read_to_string(path).await {
            Ok(table) => parse(&table),
            // A system without IPv6 does not have this table.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.ends_with('6') => {
                continue;
            }
            Err(error) => {
                return Err(StoreError::Unauthorized(format!(
                    "the key was not sent, because {path} cannot be read to see who listens on \
                     {address}: {error}"
                )));
            }
        };
        if let Some(verdict) = judge(address, &listeners, our_uid) {
            return verdict;
        }
    }
    Err(StoreError::Unreachable(format!("nothing listens on {address}: is the store running?")))
}

/// On other systems the owner cannot be determined.
#[cfg(not(target_os = "linux"))]
#[allow(clippy::unused_async)]
async fn check(_address: SocketAddr) -> Result<(), StoreError> {
    Ok(())
}

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    uid: u32,
}

/// Whether every listener that could get the connection is trusted; `None` when there is none.
fn judge(
    address: SocketAddr,
    listeners: &[Listener],
    our_uid: u32,
) -> Option<Result<(), StoreError>> {
    let mut takers =
        listeners.iter().filter(|listener| takes(listener.address, address)).peekable();
    takers.peek()?;
    let is_stranger = |listener: &&Listener| listener.uid != our_uid && listener.uid != 0;
    Some(match takers.find(is_stranger) {
        None => Ok(()),
        Some(stranger) => Err(StoreError::Unauthorized(format!(
            "the key was not sent, because port {} belongs to a program of user {} and not to us \
             (user {our_uid}) or root: end that program, or correct the store's address",
            address.port(),
            stranger.uid
        ))),
    })
}

/// Whether a socket that listens on `listener` could get a connection to `target`.
fn takes(listener: SocketAddr, target: SocketAddr) -> bool {
    let ip = listener.ip().to_canonical();
    // `::` may accept IPv4 as well; the table does not show it.
    let is_any = ip.is_unspecified() && (target.is_ipv4() || listener.is_ipv6());
    listener.port() == target.port() && (is_any || ip == target.ip())
}

/// Parses the listening sockets in a `/proc/net/tcp` or `tcp6` table; other lines are skipped.
fn parse(table: &str) -> Vec<Listener> {
    const LISTENING: &str = "0A";
    let line = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let local = columns.nth(1)?;
        let state = columns.nth(1)?;
        let uid = columns.nth(3)?.parse().ok()?;
        let address = parse_address(local)?;
        (state == LISTENING).then_some(Listener { address, uid })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Parses `0100007F:1F90`: the words of the address in the machine's byte order, and the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_tables_are_read() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                  uid  timeout inode\n   \
                  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  \
                  0 8241 1 0000000000000000 100 0 0 10 0\n   \
                  1: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000  \
                  0 8242 1 0000000000000000 20 4 30 10 -1\n   torn line\n";
        assert_eq!(parse(v4), [Listener { address: "127.0.0.1:8080".parse().unwrap(), uid: 1000 }]);
        let v6 = "header\n   0: 00000000000000000000000001000000:0050 \
                  00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                  65534 0 9 1 0 100 0 0 10 0\n";
        assert_eq!(parse(v6), [Listener { address: "[::1]:80".parse().unwrap(), uid: 65534 }]);
    }

    #[test]
    fn only_our_own_and_roots_listeners_are_trusted() {
        let judge = |target: &str, listeners: &[(&str, u32)]| {
            let listeners: Vec<_> = listeners
                .iter()
                .map(|(address, uid)| Listener { address: address.parse().unwrap(), uid: *uid })
                .collect();
            match judge(target.parse().unwrap(), &listeners, 1000) {
                None => "nobody",
                Some(Ok(())) => "trusted",
                Some(Err(StoreError::Unauthorized(_))) => "stranger",
                Some(Err(other)) => panic!("{other}"),
            }
        };
        let v4 = "127.0.0.1:80";
        assert_eq!(judge(v4, &[(v4, 1000)]), "trusted");
        assert_eq!(judge(v4, &[(v4, 0)]), "trusted");
        assert_eq!(judge(v4, &[(v4, 1001)]), "stranger");
        assert_eq!(judge(v4, &[]), "nobody");
        assert_eq!(judge(v4, &[("127.0.0.1:81", 1000)]), "nobody");
        assert_eq!(judge(v4, &[("127.0.0.2:80", 1001)]), "nobody");
        assert_eq!(judge(v4, &[("0.0.0.0:80", 1001)]), "stranger");
        assert_eq!(judge(v4, &[("[::]:80", 1001)]), "stranger");
        assert_eq!(judge(v4, &[("[::ffff:127.0.0.1]:80", 1001)]), "stranger");
        assert_eq!(judge(v4, &[("[::1]:80", 1001)]), "nobody");
        assert_eq!(judge(v4, &[(v4, 1000), ("0.0.0.0:80", 1001)]), "stranger");
        let v6 = "[::1]:80";
        assert_eq!(judge(v6, &[(v6, 1000)]), "trusted");
        assert_eq!(judge(v6, &[("[::]:80", 1001)]), "stranger");
        assert_eq!(judge(v6, &[("0.0.0.0:80", 1001)]), "nobody");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_of_ours_is_found_in_the_table() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(check(address).await.is_ok());
        drop(listener);
        assert!(matches!(check(address).await, Err(StoreError::Unreachable(_))));
    }
}
