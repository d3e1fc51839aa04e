//! What the agents are held against: one raw QUIC stream, and plain files.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, QuicTransportConfig, RecvStream, SendStream, VarInt, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, TransportAddr};
use tokio::runtime::Runtime;

use crate::device::{Usage, first_line};

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

/// The other process of a raw exchange: for each stream it sends as many bytes as the first eight
/// ask for, takes what comes, and then says so with one byte.
pub(crate) fn serve_raw() {
    Runtime::new().unwrap().block_on(async {
        let endpoint = bind().await;
        println!("{} {}", endpoint.id(), endpoint.bound_sockets()[0]);
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let mut asked = [0; 8];
            recv.read_exact(&mut asked).await.unwrap();
            tokio::join!(write(&mut send, u64::from_le_bytes(asked) as usize), read(&mut recv));
            send.write_all(&[1]).await.unwrap();
            send.finish().unwrap();
        }
    });
}

async fn write(send: &mut SendStream, mut bytes: usize) {
    let piece = vec![0x5a; PIECE_BYTES];
    while bytes > 0 {
        let now = bytes.min(PIECE_BYTES);
        send.write_all(&piece[..now]).await.unwrap();
        bytes -= now;
    }
}

async fn read(recv: &mut RecvStream) -> usize {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    while let Some(now) = recv.read(&mut buffer).await.unwrap() {
        bytes += now;
    }
    bytes
}

/// A connection to a process that runs [`serve_raw`].
pub(crate) struct RawPeer {
    child: Child,
    runtime: Runtime,
    /// Lives as long as the connection.
    _endpoint: Endpoint,
    connection: Connection,
}

impl RawPeer {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--raw-peer")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let (id, address) = line.trim().split_once(' ').unwrap();
        let id: EndpointId = id.parse().unwrap();
        let address: SocketAddr = address.parse().unwrap();
        let runtime = Runtime::new().unwrap();
        let (endpoint, connection) = runtime.block_on(async {
            let endpoint = bind().await;
            let address = EndpointAddr::from_parts(id, [TransportAddr::Ip(address)]);
            let connection = endpoint.connect(address, ALPN).await.unwrap();
            (endpoint, connection)
        });
        Self { child, runtime, _endpoint: endpoint, connection }
    }

    /// Sends and asks for so many bytes at once on one stream, until both are through.
    pub(crate) fn exchange(&self, send_bytes: usize, receive_bytes: usize) -> Duration {
        let start = Instant::now();
        self.runtime.block_on(async {
            let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
            let sent = async {
                send.write_all(&(receive_bytes as u64).to_le_bytes()).await.unwrap();
                write(&mut send, send_bytes).await;
                send.finish().unwrap();
            };
            let ((), received) = tokio::join!(sent, read(&mut recv));
            assert_eq!(received, receive_bytes + 1);
        });
        start.elapsed()
    }

    /// Of both processes together.
    pub(crate) fn usage(&self) -> Usage {
        let [here, there] = ["self", &self.child.id().to_string()].map(Usage::of);
        Usage { cpu_s: here.cpu_s + there.cpu_s, ..Usage::default() }
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
