//! What the agents are held against: one raw QUIC stream of either library, rsync, and plain files.

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, TransportAddr};
use quinn::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use crate::device::{Running, Usage, first_line};

const ALPN: &[u8] = b"can-sync/bench";

/// Bytes written at once.
const PIECE_BYTES: usize = 256 * 1024;

/// An endpoint with the windows of an agent's.
async fn bind() -> Endpoint {
    let transport = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(1024 * 1024))
        .receive_window(VarInt::from_u32(8 * 1024 * 1024))
        .send_window(8 * 1024 * 1024)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Duration::from_secs(5))
        .build();
    Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .alpns(vec![ALPN.to_vec()])
        .transport_config(transport)
        .bind()
        .await
        .unwrap()
}

/// Whose QUIC carries a raw exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport {
    Iroh,
    Quinn,
}

impl Transport {
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "iroh" => Self::Iroh,
            "quinn" => Self::Quinn,
            _ => panic!("unknown transport {name:?}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Iroh => "iroh",
            Self::Quinn => "quinn",
        }
    }
}

/// The other process of a raw exchange: for each stream it sends as many bytes as the first eight
/// ask for, takes what comes, and then says so with one byte.
pub(crate) fn serve_raw(transport: Transport) {
    Runtime::new().unwrap().block_on(async {
        match transport {
            Transport::Iroh => {
                let endpoint = bind().await;
                println!("{} {}", endpoint.id(), endpoint.bound_sockets()[0]);
                let connection = endpoint.accept().await.unwrap().await.unwrap();
                while let Ok((send, recv)) = connection.accept_bi().await {
                    answer(send, recv).await;
                }
            }
            Transport::Quinn => {
                let (endpoint, certificate) = quinn_server();
                let certificate = data_encoding::HEXLOWER.encode(&certificate);
                println!("{certificate} {}", endpoint.local_addr().unwrap());
                let connection = endpoint.accept().await.unwrap().await.unwrap();
                while let Ok((send, recv)) = connection.accept_bi().await {
                    answer(send, recv).await;
                }
            }
        }
    });
}

async fn answer(mut send: impl AsyncWrite + Unpin, mut recv: impl AsyncRead + Unpin) {
    let asked = recv.read_u64().await.unwrap();
    tokio::join!(write(&mut send, asked as usize), read(&mut recv));
    send.write_all(&[1]).await.unwrap();
    send.shutdown().await.unwrap();
}

/// The name in the certificate.
const SERVER_NAME: &str = "bench";

fn quinn_transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(quinn::VarInt::from_u32(1024 * 1024))
        .receive_window(quinn::VarInt::from_u32(8 * 1024 * 1024))
        .send_window(8 * 1024 * 1024)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(Duration::from_secs(5)));
    Arc::new(transport)
}

fn quinn_server() -> (quinn::Endpoint, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let certificate = made.cert.der().clone();
    let mut config =
        quinn::ServerConfig::with_single_cert(vec![certificate.clone()], key.into()).unwrap();
    config.transport_config(quinn_transport());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    (quinn::Endpoint::server(config, any).unwrap(), certificate.to_vec())
}

async fn quinn_client(
    certificate: &str,
    address: SocketAddr,
) -> (quinn::Endpoint, quinn::Connection) {
    let certificate = data_encoding::HEXLOWER.decode(certificate.as_bytes()).unwrap();
    let mut roots = quinn::rustls::RootCertStore::empty();
    roots.add(certificate.into()).unwrap();
    let mut config = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    config.transport_config(quinn_transport());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = quinn::Endpoint::client(any).unwrap();
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).unwrap();
    (endpoint, connecting.await.unwrap())
}

async fn write(send: &mut (impl AsyncWrite + Unpin), mut bytes: usize) {
    let piece = vec![0x5a; PIECE_BYTES];
    while bytes > 0 {
        let now = bytes.min(PIECE_BYTES);
        send.write_all(&piece[..now]).await.unwrap();
        bytes -= now;
    }
}

async fn read(recv: &mut (impl AsyncRead + Unpin)) -> usize {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        match recv.read(&mut buffer).await.unwrap() {
            0 => return bytes,
            now => bytes += now,
        }
    }
}

/// A connection to a process that runs [`serve_raw`].
pub(crate) struct RawPeer {
    child: Running,
    runtime: Runtime,
    link: Link,
}

/// A connection, and its endpoint, which must live as long.
enum Link {
    Iroh { connection: Connection, _endpoint: Endpoint },
    Quinn { connection: quinn::Connection, _endpoint: quinn::Endpoint },
}

impl RawPeer {
    pub(crate) fn start(transport: Transport) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--raw-peer", transport.name()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let (id, address) = line.trim().split_once(' ').unwrap();
        let address: SocketAddr = address.parse().unwrap();
        let runtime = Runtime::new().unwrap();
        let link = runtime.block_on(async {
            match transport {
                Transport::Iroh => {
                    let endpoint = bind().await;
                    let id: EndpointId = id.parse().unwrap();
                    let address = EndpointAddr::from_parts(id, [TransportAddr::Ip(address)]);
                    let connection = endpoint.connect(address, ALPN).await.unwrap();
                    Link::Iroh { connection, _endpoint: endpoint }
                }
                Transport::Quinn => {
                    let (endpoint, connection) = quinn_client(id, address).await;
                    Link::Quinn { connection, _endpoint: endpoint }
                }
            }
        });
        Self { child: Running(child), runtime, link }
    }

    /// Sends and asks for so many bytes at once on one stream, until both are through.
    pub(crate) fn exchange(&self, send_bytes: usize, receive_bytes: usize) -> Duration {
        let start = Instant::now();
        self.runtime.block_on(async {
            match &self.link {
                Link::Iroh { connection, .. } => {
                    let (send, recv) = connection.open_bi().await.unwrap();
                    ask(send, recv, send_bytes, receive_bytes).await;
                }
                Link::Quinn { connection, .. } => {
                    let (send, recv) = connection.open_bi().await.unwrap();
                    ask(send, recv, send_bytes, receive_bytes).await;
                }
            }
        });
        start.elapsed()
    }

    /// Of both processes together.
    pub(crate) fn usage(&self) -> Usage {
        let [here, there] = ["self", &self.child.0.id().to_string()].map(Usage::of);
        Usage { cpu_s: here.cpu_s + there.cpu_s, ..Usage::default() }
    }
}

async fn ask(
    mut send: impl AsyncWrite + Unpin,
    mut recv: impl AsyncRead + Unpin,
    send_bytes: usize,
    receive_bytes: usize,
) {
    let sent = async {
        send.write_u64(receive_bytes as u64).await.unwrap();
        write(&mut send, send_bytes).await;
        send.shutdown().await.unwrap();
    };
    let ((), received) = tokio::join!(sent, read(&mut recv));
    assert_eq!(received, receive_bytes + 1);
}

/// Fetches every folder from an rsync daemon, one after the other, as files that are not synced;
/// `None` where rsync is not installed.
pub(crate) fn rsync(folders: &[&Path]) -> Option<Duration> {
    let scratch = super::folder();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let modules = folders
        .iter()
        .enumerate()
        .map(|(n, folder)| format!("[m{n}]\npath = {}\nuse chroot = no\n", folder.display()));
    let config = scratch.path().join("rsyncd.conf");
    std::fs::write(&config, modules.collect::<String>()).unwrap();
    let daemon = Command::new("rsync")
        .args(["--daemon", "--no-detach", "--address=127.0.0.1"])
        .args([format!("--port={port}"), format!("--config={}", config.display())])
        .stderr(Stdio::null())
        .spawn();
    let _daemon = Running(daemon.ok()?);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::yield_now();
    }
    let start = Instant::now();
    for n in 0..folders.len() {
        let from = format!("rsync://127.0.0.1:{port}/m{n}/");
        let to = scratch.path().join(n.to_string());
        let status = Command::new("rsync").args(["-a", &from]).arg(to).status().unwrap();
        assert!(status.success());
    }
    Some(start.elapsed())
}

/// Copies every file of the folders, and syncs each.
pub(crate) fn copy_with_fsync(folders: &[&Path]) -> Duration {
    let target = super::folder();
    let start = Instant::now();
    for (number, folder) in folders.iter().enumerate() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{number}-{}", entry.file_name().to_string_lossy());
            let mut copy = File::create(target.path().join(name)).unwrap();
            std::io::copy(&mut File::open(entry.path()).unwrap(), &mut copy).unwrap();
            copy.sync_all().unwrap();
        }
    }
    start.elapsed()
}

/// Appends 4 KiB to a file that exists, and syncs.
pub(crate) fn fsync_4k(folder: &Path) -> Duration {
    let mut file = File::options().create(true).append(true).open(folder.join("appended")).unwrap();
    let start = Instant::now();
    file.write_all(&[0x5a; 4096]).unwrap();
    file.sync_data().unwrap();
    start.elapsed()
}
