//! A group of real agents in one process, on loopback: real QUIC, real SQLite, and on request a
//! foreign store behind real HTTP. Their logs are kept and checked at the end.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use can_sync::agent::handle::Handle;
use can_sync::agent::{Agent, Config, NetOverrides, Tuning};
use can_sync::core::alerts::{Alert, Kind};
use can_sync::core::expiry::KeepPolicy;
use can_sync::core::forgetting::ForgottenRule;
use can_sync::core::ids::{Digest, Hash, HashAlgorithm, NodeId};
use can_sync::core::scrub::ScrubRate;
use can_sync::http::guard::Guard;
use can_sync::http::serve::serve;
use can_sync::http::store_api::{self, Features};
use can_sync::net::Relay;
use can_sync::net::ticket::Ticket;
use can_sync::replica::status::{PeerState, PeerStatus, Status};
use can_sync::state::home::{Home, Lock};
use can_sync::state::identity::Identity;
use can_sync::store::choice::StoreChoice;
use can_sync::store::embedded::{EmbeddedStore, Options};
use can_sync::store::http::Stated;
use can_sync::store::key::StoreKey;
use can_sync::store::{Metadata, NewAsset, SMALL_BYTES_MAX, Store, VerifiedFile};
use can_sync::wire::proto::store as proto;
use futures_util::future::select_all;
use parking_lot::Mutex;
use prost::Message as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::logs::{judge_logs, keep_logs, keep_secret};
use super::{content, digest};

/// Much longer than anything here takes, much shorter than a hang.
pub const SOON: Duration = Duration::from_secs(45);

/// Longer than two quiet devices wait before they compare again.
pub const A_WHILE: Duration = Duration::from_millis(1_600);

// ---- devices ---------------------------------------------------------------------------------

/// A device with a home of its own, which a test starts and stops.
pub struct Device {
    pub home: Home,
    pub node_id: NodeId,
    pub net: NetOverrides,
    pub tuning: Tuning,
    pub scrub_rate: ScrubRate,
    pub forgotten: ForgottenRule,
    pub keep: KeepPolicy,
    foreign: Option<(String, PathBuf)>,
    running: Option<(Agent, Lock)>,
    folder: TempDir,
}

impl Device {
    /// A running device with an embedded store.
    pub async fn start() -> Self {
        let mut device = Self::new();
        device.up().await;
        device
    }

    /// A running device that speaks only the plain protocol.
    pub async fn start_plain() -> Self {
        let mut device = Self::new();
        device.net.plain_only = true;
        device.up().await;
        device
    }

    /// A running device beside a foreign store.
    pub async fn beside(store: &Foreign) -> Self {
        let mut device = Self::new();
        device.foreign = Some((store.url(), store.key_file.clone()));
        device.up().await;
        device
    }

    /// A device that is not running yet.
    pub fn new() -> Self {
        keep_logs();
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(Some(folder.path().join("home"))).unwrap();
        let lock = home.lock().unwrap();
        let node_id = Identity::load_or_create(&home, &lock).unwrap().node_id;
        let key = std::fs::read(home.key_path()).unwrap();
        keep_secret(&key);
        Self::on(home, node_id, folder)
    }

    /// A device that is not running, with this home below `folder`.
    fn on(home: Home, node_id: NodeId, folder: TempDir) -> Self {
        let bind = Some("127.0.0.1:0".parse().unwrap());
        Self {
            home,
            node_id,
            net: NetOverrides { bind, ..NetOverrides::default() },
            tuning: Tuning::default(),
            scrub_rate: ScrubRate::Off,
            forgotten: ForgottenRule::default(),
            keep: KeepPolicy::default(),
            foreign: None,
            running: None,
            folder,
        }
    }

    /// A device on a copy of this one's home: the same key on another disk. This one must not be
    /// running.
    pub fn copied(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home");
        let from = self.folder.path().join("home");
        let copied = std::process::Command::new("cp").arg("-a").args([&from, &path]).status();
        assert!(copied.unwrap().success());
        let home = Home::open(Some(path)).unwrap();
        let mut copied = Self::on(home, self.node_id, folder);
        (copied.tuning, copied.scrub_rate) = (self.tuning.clone(), self.scrub_rate);
        copied
    }

    /// Starts it.
    pub async fn up(&mut self) {
        let lock = self.home.lock().unwrap();
        let agent = Agent::start(self.config(), &lock).await.unwrap();
        // When it comes back, other devices look for it at this address.
        let address = agent.handle().status().device.addresses.remove(0);
        self.net.bind = Some(address.parse().unwrap());
        self.running = Some((agent, lock));
    }

    pub fn config(&self) -> Config {
        let store = match &self.foreign {
            None => StoreChoice::Embedded,
            Some((url, key_file)) => StoreChoice::Foreign {
                url: url.clone(),
                key_file: key_file.clone(),
                stated: Stated::default(),
            },
        };
        Config {
            home: self.home.clone(),
            store,
            offline: true,
            relay: Relay::Off,
            tuning: self.tuning.clone(),
            thumbnailer: env!("CARGO_BIN_EXE_can-sync").into(),
            scrub_rate: self.scrub_rate,
            forgotten: self.forgotten,
            keep: self.keep,
            net: self.net.clone(),
        }
    }

    /// Stops the agent in order.
    pub async fn down(&mut self) {
        let (agent, lock) = self.running.take().unwrap();
        timeout(SOON, agent.stop()).await.expect("stopping hangs").unwrap();
        drop(lock);
    }

    pub fn handle(&self) -> Handle {
        self.running.as_ref().unwrap().0.handle()
    }

    pub fn status(&self) -> Status {
        self.handle().status()
    }

    /// This device's status of the other device.
    pub fn sees(&self, other: &Device) -> PeerStatus {
        self.sees_node(other.node_id)
    }

    pub fn sees_node(&self, node_id: NodeId) -> PeerStatus {
        let peers = self.status().peers;
        peers.into_iter().find(|peer| peer.node_id == node_id).expect("a member of the group")
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.handle().store()
    }

    /// Adds different contents of these sizes; returns their digests.
    pub async fn add(&self, sizes: impl IntoIterator<Item = usize>) -> Vec<Digest> {
        add(&*self.store(), HashAlgorithm::Blake3, self.folder.path(), sizes).await
    }

    /// The hashes that its store holds.
    pub async fn hashes(&self) -> BTreeSet<Hash> {
        hashes(&*self.store()).await
    }

    /// Checks that every content of its store has its hash.
    pub async fn verify(&self) {
        verify(&*self.store(), HashAlgorithm::Blake3).await;
    }

    /// The asset bytes received on the current connections.
    pub fn received_bytes(&self) -> u64 {
        self.status().peers.iter().map(|peer| peer.received_bytes).sum()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if let Some((agent, _lock)) = self.running.take() {
            let runtime = tokio::runtime::Handle::current();
            let stop = timeout(SOON, agent.stop());
            let stopped = tokio::task::block_in_place(|| runtime.block_on(stop));
            assert!(failed || matches!(stopped, Ok(Ok(()))), "stopping: {stopped:?}");
        }
        if !failed {
            judge_logs();
        }
    }
}

/// Contents differ within the whole process, so that no test gets an asset by accident.
static SEED: AtomicU64 = AtomicU64::new(1);

/// Adds contents of these sizes to a store.
pub async fn add(
    store: &dyn Store,
    algorithm: HashAlgorithm,
    scratch: &std::path::Path,
    sizes: impl IntoIterator<Item = usize>,
) -> Vec<Digest> {
    let mut digests = Vec::new();
    let mut small = Vec::new();
    for size in sizes {
        let content = content(SEED.fetch_add(1, Ordering::Relaxed), size);
        let digest = digest(algorithm, &content);
        digests.push(digest);
        if size as u64 <= SMALL_BYTES_MAX {
            small.push(NewAsset { digest, content, metadata: Metadata::default() });
            if small.len() == 100 {
                put(store, &mut small).await;
            }
            continue;
        }
        // A test's store adopts files from its own volume; both are temporary folders.
        let path = scratch.join(format!("{}.add", digest.hash));
        std::fs::write(&path, &content).unwrap();
        let metadata = Metadata::default();
        store
            .adopt(VerifiedFile { digest, path, outboard: None, metadata, guard: None })
            .await
            .unwrap();
    }
    put(store, &mut small).await;
    digests
}

async fn put(store: &dyn Store, assets: &mut Vec<NewAsset>) {
    if !assets.is_empty() {
        for result in store.put(std::mem::take(assets)).await.unwrap() {
            result.unwrap();
        }
    }
}

pub async fn hashes(store: &dyn Store) -> BTreeSet<Hash> {
    let (mut hashes, mut after) = (BTreeSet::new(), 0);
    loop {
        let page = store.changes(after, 10_000).await.unwrap();
        hashes.extend(page.entries.iter().map(|entry| entry.digest.hash));
        after = page.next;
        if !page.has_more {
            return hashes;
        }
    }
}

async fn verify(store: &dyn Store, algorithm: HashAlgorithm) {
    let page = store.changes(0, 10_000).await.unwrap();
    for Digest { hash, size_bytes } in page.entries.iter().map(|entry| entry.digest) {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size_bytes {
            let start = bytes.len() as u64;
            let end = (start + (1 << 20)).min(size_bytes);
            let part = store.read(hash, start..end).await.unwrap().expect("it is held");
            bytes.extend_from_slice(&part);
        }
        assert_eq!(algorithm.hash(&bytes), hash, "{size_bytes} bytes came back changed");
    }
}

pub fn bytes_of(digests: &[Digest]) -> u64 {
    digests.iter().map(|digest| digest.size_bytes).sum()
}

pub fn hashes_of<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> BTreeSet<Hash> {
    digests.into_iter().map(|digest| digest.hash).collect()
}

/// `joiner` redeems a ticket of `inviter`.
pub async fn pair(inviter: &Device, joiner: &Device) {
    let ticket = inviter.handle().ticket(Duration::from_secs(60)).await.unwrap().ticket;
    keep_ticket_secret(&ticket);
    let reply = joiner.handle().pair(ticket).await.unwrap();
    assert_eq!(reply.node_id, inviter.node_id);
    let names = |device: &Device, other: &Device| {
        device.status().peers.iter().any(|peer| peer.node_id == other.node_id)
    };
    let both = async || names(inviter, joiner) && names(joiner, inviter);
    until("each names the other in its status", &[inviter, joiner], both).await;
}

fn keep_ticket_secret(text: &str) {
    keep_secret(text.as_bytes());
    let ticket: Ticket = text.parse().unwrap();
    keep_secret(data_encoding::HEXLOWER.encode(&ticket.secret).as_bytes());
}

// ---- waiting ---------------------------------------------------------------------------------

/// Returns once the condition holds; checks it whenever the status of one of the devices changes.
pub async fn until(what: &str, devices: &[&Device], mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    loop {
        let handles: Vec<Handle> = devices.iter().map(|device| device.handle()).collect();
        let revisions: Vec<u64> = handles.iter().map(|h| h.status().revision).collect();
        if holds().await {
            return;
        }
        assert!(Instant::now() < deadline, "not in time: {what}\n{}", tell(devices));
        let changes = handles.iter().zip(revisions).map(|(h, rev)| Box::pin(h.changed(rev)));
        // Counters alone do not change the revision.
        let _ = timeout(Duration::from_millis(100), select_all(changes)).await;
    }
}

/// Returns once every device reports that it is in sync with `peers` others and has indexed its own
/// store; then all hold the same assets.
pub async fn all_in_sync(devices: &[&Device], peers: usize) {
    for device in devices {
        device.handle().check().await.unwrap();
    }
    until("all in sync", devices, async || {
        let count = devices[0].status().store.assets;
        devices.iter().all(|device| {
            let status = device.status();
            let idle =
                status.peers.iter().filter(|peer| peer.state == PeerState::Idle && peer.in_sync);
            status.in_sync && status.store.assets == count && idle.count() == peers
        })
    })
    .await;
    let expected = devices[0].hashes().await;
    for device in &devices[1..] {
        assert!(device.hashes().await == expected, "in sync, and not equal:\n{}", tell(devices));
    }
}

/// As [`all_in_sync`], for devices of which some do not want everything: what they hold may differ.
pub async fn all_in_sync_as_wanted(devices: &[&Device], peers: usize) {
    for device in devices {
        device.handle().check().await.unwrap();
    }
    until("all in sync", devices, async || {
        devices.iter().all(|device| {
            let status = device.status();
            let is_idle = |peer: &&PeerStatus| peer.state == PeerState::Idle && peer.in_sync;
            status.in_sync && status.peers.iter().filter(is_idle).count() == peers
        })
    })
    .await;
}

/// Returns once nothing happens any more: no status changes, no byte moves.
pub async fn quiet(devices: &[&Device]) {
    let figures = || -> Vec<(u64, u64, u64)> {
        let figure = |device: &&Device| {
            let status = device.status();
            let sent = status.peers.iter().map(|peer| peer.sent_bytes).sum();
            (status.revision, device.received_bytes(), sent)
        };
        devices.iter().map(figure).collect()
    };
    let deadline = Instant::now() + SOON;
    loop {
        let before = figures();
        let revisions: Vec<u64> = before.iter().map(|(revision, ..)| *revision).collect();
        let handles: Vec<Handle> = devices.iter().map(|device| device.handle()).collect();
        let changes = handles.iter().zip(revisions).map(|(h, rev)| Box::pin(h.changed(rev)));
        if timeout(A_WHILE, select_all(changes)).await.is_err() && figures() == before {
            return;
        }
        assert!(Instant::now() < deadline, "never quiet:\n{}", tell(devices));
    }
}

/// The alert of this kind that stands on a device.
pub fn alert(device: &Device, kind: Kind) -> Option<Alert> {
    device.status().alerts.into_iter().find(|alert| alert.kind == kind)
}

/// The status of the devices, for the message of a failure.
pub fn tell(devices: &[&Device]) -> String {
    devices.iter().fold(String::new(), |mut text, device| {
        let _ = writeln!(text, "{:#?}", device.status());
        text
    })
}

// ---- a foreign store -------------------------------------------------------------------------

/// A store of another process as its agent sees it: an HTTP server that keeps its address, is
/// started and stopped, and misbehaves on request.
pub struct Foreign {
    pub key_file: PathBuf,
    pub faults: Arc<Faults>,
    pub algorithm: HashAlgorithm,
    key: StoreKey,
    address: SocketAddr,
    stores: u64,
    store: Option<EmbeddedStore>,
    serving: Option<(CancellationToken, JoinHandle<std::io::Result<()>>)>,
    dir: TempDir,
}

/// The faults of a foreign store, and counts of the requests to it.
#[derive(Default)]
pub struct Faults {
    /// Whether to answer every write with 507.
    pub full: std::sync::atomic::AtomicBool,
    /// The number of writes refused for that.
    pub refused: AtomicU64,
    /// The assets for which to answer wrong content.
    pub wrong: Mutex<BTreeSet<Hash>>,
    /// How often wrong content was sent.
    pub lied: AtomicU64,
    /// The number of writes that began.
    pub writes: AtomicU64,
    /// Whether to write metadata and then report a failure.
    pub loses_meta: std::sync::atomic::AtomicBool,
    /// The number of answers lost like this.
    pub lost_meta: AtomicU64,
    /// The number of listings from the start.
    pub listed_anew: AtomicU64,
    /// How often its event stream was requested.
    pub event_streams: AtomicU64,
    /// The number of repairs that it was asked for. The asset then rots on its disk, too, and is
    /// answered right from then on.
    pub repairs: AtomicU64,
    /// The folder of the store.
    pub folder: Mutex<PathBuf>,
}

impl Foreign {
    /// A store that is not running yet.
    pub fn new(algorithm: HashAlgorithm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("key");
        let key = StoreKey::create(&key_file).unwrap();
        keep_secret(key.expose().as_bytes());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        Self {
            key_file,
            faults: Arc::default(),
            algorithm,
            key,
            address,
            stores: 0,
            store: None,
            serving: None,
            dir,
        }
    }

    pub async fn start(algorithm: HashAlgorithm) -> Self {
        let mut foreign = Self::new(algorithm);
        foreign.up().await;
        foreign
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Opens and serves the store.
    pub async fn up(&mut self) {
        let options = Options { hash_algorithm: self.algorithm, free_floor_bytes: Some(0) };
        let dir = self.dir.path().join(format!("store{}", self.stores));
        let store = EmbeddedStore::open(&dir, options).unwrap();
        let faults = self.faults.clone();
        *faults.folder.lock() = dir;
        let router = store_api::router(store.clone(), Features::default());
        let router: Router = router.layer(middleware::from_fn(move |request, next| {
            let faults = faults.clone();
            async move { faults.pass(request, next).await }
        }));
        let router = Guard::new(self.key.clone(), self.address.port()).layer(router);
        let listener = TcpListener::bind(self.address).await.unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, router, stop.clone()));
        self.serving = Some((stop, serving));
        self.store = Some(store);
    }

    /// Stops the server in order.
    pub async fn down(&mut self) {
        let (stop, serving) = self.serving.take().unwrap();
        stop.cancel();
        serving.await.unwrap().unwrap();
        self.store.take().unwrap().close().await;
    }

    /// Cuts every connection at once.
    pub async fn kill(&mut self) {
        let (_, serving) = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
        self.store.take().unwrap().close().await;
    }

    /// Replaces it by another, empty store at the next start.
    pub fn replace(&mut self) {
        self.stores += 1;
    }

    pub fn store(&self) -> &EmbeddedStore {
        self.store.as_ref().unwrap()
    }

    /// Adds contents behind the agent's back.
    pub async fn add(&self, sizes: impl IntoIterator<Item = usize>) -> Vec<Digest> {
        // Files to adopt must be on the store's volume.
        add(self.store(), self.algorithm, self.dir.path(), sizes).await
    }

    pub async fn hashes(&self) -> BTreeSet<Hash> {
        hashes(self.store()).await
    }
}

impl Faults {
    async fn pass(&self, request: Request, next: Next) -> Response {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let writes = path.starts_with("/sync/push") || method == axum::http::Method::PUT;
        if path == "/sync/hashes" && query.contains("after=0") {
            self.listed_anew.fetch_add(1, Ordering::Relaxed);
        }
        if path == "/sync/events" {
            self.event_streams.fetch_add(1, Ordering::Relaxed);
        }
        if writes {
            self.writes.fetch_add(1, Ordering::Relaxed);
            if self.full.load(Ordering::Relaxed) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return StatusCode::INSUFFICIENT_STORAGE.into_response();
            }
        }
        if request.headers().contains_key("asset-repair") {
            self.repairs.fetch_add(1, Ordering::Relaxed);
            self.rot(path.trim_start_matches("/sync/blobs/"));
        }
        let answer = next.run(request).await;
        if path == "/sync/meta" && self.loses_meta.load(Ordering::Relaxed) {
            self.lost_meta.fetch_add(1, Ordering::Relaxed);
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let wrong = self.wrong.lock().clone();
        if wrong.is_empty() || !answer.status().is_success() {
            return answer;
        }
        let is_wrong_blob = wrong.iter().any(|hash| path == format!("/sync/blobs/{hash}"));
        if path != "/sync/pull" && !(is_wrong_blob && method == axum::http::Method::GET) {
            return answer;
        }
        let (mut parts, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = match is_wrong_blob {
            true => self.spoil(&body),
            false => {
                let mut pull = proto::PullResponse::decode(body).unwrap();
                for bundle in &mut pull.bundles {
                    let hash = bundle.digest.as_ref().map(|digest| &digest.hash[..]);
                    if wrong.iter().any(|wrong| hash == Some(wrong.as_bytes())) {
                        bundle.content = self.spoil(&bundle.content);
                    }
                }
                pull.encode_to_vec().into()
            }
        };
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        Response::from_parts(parts, Body::from(body))
    }

    fn rot(&self, hex: &str) {
        self.wrong.lock().retain(|wrong| wrong.to_string() != hex);
        let folder = self.folder.lock().clone();
        let file = folder.join("content").join(&hex[..2]).join(hex);
        if file.exists() {
            std::fs::write(file, "rot").unwrap();
            return;
        }
        let rows = rusqlite::Connection::open(folder.join("store.db")).unwrap();
        let hash: Hash = hex.parse().unwrap();
        let rot = "UPDATE contents SET content = zeroblob(length(content)) WHERE asset =
                   (SELECT cursor FROM assets WHERE hash = ?1)";
        assert_eq!(rows.execute(rot, [hash.as_bytes()]).unwrap(), 1);
    }

    fn spoil(&self, bytes: &Bytes) -> Bytes {
        self.lied.fetch_add(1, Ordering::Relaxed);
        let mut bytes = bytes.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        bytes.into()
    }
}
