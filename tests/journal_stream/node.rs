//! Devices that have only a journal, the pipes between them, and peers played by hand.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use can_sync::clock::{Clock, wall_ms};
use can_sync::core::ids::{GroupId, LogId, NodeId};
use can_sync::core::journal::draft::{Draft, DraftChange, DraftPut};
use can_sync::core::journal::message::{self, Hello, JournalMessage, VERSION};
use can_sync::core::journal::op::{Key, SignedOp, Value};
use can_sync::net::frame::{FrameReader, FrameWriter};
use can_sync::replica::journal::{AskError, JournalHandle, share};
use can_sync::replica::replicate::{Ended, Replication};
use can_sync::replica::status::{JournalPeerState, JournalPeerStatus};
use can_sync::state::home::Home;
use can_sync::state::identity::Identity;
use can_sync::state::journal::{Journal, Owner, verify};
use can_sync::wire::journal::{decode_message, encode_message};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

/// Much longer than anything here takes, much shorter than a hang.
pub(crate) const SOON: Duration = Duration::from_secs(45);

/// The capacity of a pipe.
pub(crate) const PIPE_BYTES: usize = 64 * 1024;

const MODEL: &str = "note";

/// A change of one record of about this many bytes.
pub(crate) fn draft(n: u64, bytes: usize) -> Draft {
    let key = Key { model: MODEL.into(), id: n.to_be_bytes().to_vec(), owned: false };
    let set = BTreeMap::from([("text".into(), Some(Value::Text("x".repeat(bytes))))]);
    let put =
        DraftPut { key, create: true, set, add: Default::default(), remove: Default::default() };
    Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() }
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(SOON, wait).await.is_ok(), "not within {SOON:?}: {what}");
}

/// Waits until all journals are equal.
pub(crate) async fn equal(nodes: &[&Node]) {
    until("equal journals", async || {
        let mut states = Vec::new();
        for node in nodes {
            let clock = node.clock().await;
            let entries = clock.entries.into_iter().filter(|entry| entry.seq > 0);
            let places = entries.map(|entry| (entry.log, entry.seq)).collect::<BTreeMap<_, _>>();
            states.push((places, clock.digest));
        }
        states.windows(2).all(|pair| pair[0] == pair[1])
    })
    .await;
}

// ---- devices ---------------------------------------------------------------------------------

/// A device whose journal is open.
pub(crate) struct Node {
    pub(crate) journal: JournalHandle,
    replication: Replication,
    writer: std::thread::JoinHandle<Result<(), AskError>>,
    asleep: Asleep,
}

/// A device whose journal is closed.
pub(crate) struct Asleep {
    home: Home,
    identity: Identity,
    folder: Arc<TempDir>,
}

impl Asleep {
    fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let home = Home::open(Some(folder.path().join("home"))).unwrap();
        let identity = Identity::load_or_create(&home, &home.lock().unwrap()).unwrap();
        Self { home, identity, folder }
    }

    fn open(&self) -> Journal {
        Journal::open(&self.home.journal_db_path(), &self.identity, rand::random()).unwrap()
    }

    fn run(self, journal: Journal) -> Node {
        let (handle, writer) = share(journal).unwrap();
        let writer = std::thread::spawn(|| writer.serve());
        let replication = Replication::new(handle.clone(), self.identity.node_id, Clock::start());
        Node { journal: handle, replication, writer, asleep: self }
    }

    pub(crate) fn wake(self) -> Node {
        let journal = self.open();
        self.run(journal)
    }

    /// Overwrites its database with an older one, in the same file.
    pub(crate) fn put_back(self, backup: &[u8]) -> Node {
        let path = self.home.journal_db_path();
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        std::fs::write(path, backup).unwrap();
        self.wake()
    }

    /// The size of the database.
    #[allow(dead_code, reason = "only the benchmark asks")]
    pub(crate) fn database_bytes(&self) -> u64 {
        std::fs::metadata(self.home.journal_db_path()).unwrap().len()
    }

    /// Starts another process that replicates with `peer` until it is killed; returns it and the
    /// stream to it.
    pub(crate) async fn lend(&self, peer: NodeId) -> (Child, UnixStream) {
        let socket = self.folder.path().join("socket");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact"])
            .env(CHILD_HOME, self.folder.path().join("home"))
            .env(CHILD_SOCKET, &socket)
            .env(CHILD_PEER, peer.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        (child, stream)
    }
}

const CHILD_HOME: &str = "CAN_SYNC_TEST_CHILD_HOME";
const CHILD_SOCKET: &str = "CAN_SYNC_TEST_CHILD_SOCKET";
const CHILD_PEER: &str = "CAN_SYNC_TEST_CHILD_PEER";

/// The main function of the other process; returns at once in any other.
pub(crate) async fn child_main() {
    let Ok(home) = std::env::var(CHILD_HOME) else { return };
    let home = Home::open(Some(PathBuf::from(home))).unwrap();
    let identity = Identity::load_or_create(&home, &home.lock().unwrap()).unwrap();
    let asleep = Asleep { home, identity, folder: Arc::new(tempfile::tempdir().unwrap()) };
    let node = asleep.wake();
    let stream = UnixStream::connect(std::env::var(CHILD_SOCKET).unwrap()).await.unwrap();
    let (recv, send) = stream.into_split();
    let peer: NodeId = std::env::var(CHILD_PEER).unwrap().parse().unwrap();
    let (view, _) = watch::channel(JournalPeerStatus::begun(peer));
    node.replication.run(peer, recv, send, &view).await;
}

impl Node {
    /// Sets how many bytes of ops this device keeps by an author; `None` for the default.
    pub(crate) fn set_quota(&self, author: &NodeId, bytes: Option<i64>) {
        let set = "UPDATE devices SET quota_bytes = ?2 WHERE id = ?1";
        let database = self.asleep.home.journal_db_path();
        let connection = rusqlite::Connection::open(database).unwrap();
        let changed = connection.execute(set, rusqlite::params![author.0, bytes]).unwrap();
        assert_eq!(changed, 1, "the author is known");
    }

    /// The first device of a group.
    pub(crate) fn founder() -> Self {
        let asleep = Asleep::new();
        let mut journal = asleep.open();
        journal.found("founder", wall_ms()).unwrap();
        asleep.run(journal)
    }

    /// Adds another device to this one's group.
    pub(crate) async fn welcome(&self) -> Self {
        let asleep = Asleep::new();
        let id = asleep.identity.node_id;
        let add = self.journal.run(move |journal, now_ms| journal.add(&id, "device", now_ms));
        add.await.unwrap().unwrap();
        let group = self.group().await;
        let intro = self.journal.read(move |reader| reader.intro(&id)).await.unwrap();
        let intro: Vec<_> = intro.into_iter().map(|op| verify(&group, op).unwrap()).collect();
        let mut journal = asleep.open();
        journal.join(group, &intro, wall_ms()).unwrap();
        asleep.run(journal)
    }

    pub(crate) fn id(&self) -> NodeId {
        self.asleep.identity.node_id
    }

    pub(crate) fn replication(&self) -> &Replication {
        &self.replication
    }

    pub(crate) async fn group(&self) -> GroupId {
        self.journal.read(|reader| reader.group()).await.unwrap().unwrap()
    }

    pub(crate) async fn write(&self, draft: Draft) {
        self.journal.write(draft).await.unwrap().unwrap();
    }

    /// Writes one op for each record.
    pub(crate) async fn write_many(&self, records: std::ops::Range<u64>, bytes: usize) {
        let drafts: Vec<_> = records.map(|n| draft(n, bytes)).collect();
        for drafts in drafts.chunks(256) {
            let drafts = drafts.to_vec();
            let write = self.journal.run(move |journal, now_ms| journal.write(&drafts, now_ms));
            assert!(write.await.unwrap().iter().all(Result::is_ok));
        }
    }

    pub(crate) async fn has(&self, n: u64) -> bool {
        let id = n.to_be_bytes();
        let read = self.journal.read(move |reader| reader.record(MODEL, Owner::Shared, &id));
        read.await.unwrap().is_some()
    }

    pub(crate) async fn clock(&self) -> message::Clock {
        self.journal.read(|reader| reader.clock()).await.unwrap()
    }

    /// All ops that it holds.
    pub(crate) async fn ops(&self) -> Vec<SignedOp> {
        let scan = self.journal.read(|reader| reader.scan_for(None, &BTreeMap::new()));
        scan.await.unwrap().ops.into_iter().map(|(_, op)| op).collect()
    }

    /// The numbers that another device has acknowledged, by log.
    pub(crate) fn acks_of(&self, other: NodeId) -> BTreeMap<LogId, u64> {
        let db = rusqlite::Connection::open(self.asleep.home.journal_db_path()).unwrap();
        let mut query = db
            .prepare(
                "SELECT l.log_id, a.seq FROM acks a JOIN logs l USING (log)
                 JOIN devices d ON d.dev = a.dev WHERE d.id = ?1 AND a.seq > 0",
            )
            .unwrap();
        let rows = query.query_map([other.0], |row| {
            Ok((LogId(row.get(0)?), u64::try_from(row.get::<_, i64>(1)?).unwrap()))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// Waits until the other device has acknowledged everything.
    pub(crate) async fn acked_by(&self, other: &Node) {
        until("acknowledgements", async || {
            let clock = self.clock().await;
            let places = clock.entries.iter().filter(|entry| entry.seq > 0);
            let places: BTreeMap<_, _> = places.map(|entry| (entry.log, entry.seq)).collect();
            self.acks_of(other.id()) == places
        })
        .await;
    }

    /// Checks that the journal is consistent.
    pub(crate) async fn check(&self) {
        let findings = self.journal.read(|reader| reader.fsck()).await.unwrap();
        assert_eq!(findings, Vec::<String>::new());
    }

    /// A copy of the database as it is now.
    pub(crate) fn copy(&self) -> Vec<u8> {
        let path = self.asleep.folder.path().join("copy.db");
        let db = rusqlite::Connection::open(self.asleep.home.journal_db_path()).unwrap();
        db.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
        std::fs::read(path).unwrap()
    }

    /// Hashes of its files on the disk.
    pub(crate) fn on_disk(&self) -> Vec<blake3::Hash> {
        let path = self.asleep.home.journal_db_path();
        let files = ["", "-wal"].map(|suffix| format!("{}{suffix}", path.display()));
        let bytes = files.map(|file| std::fs::read(file).unwrap_or_default());
        bytes.iter().map(|bytes| blake3::hash(bytes)).collect()
    }

    /// Closes the journal. The streams must have ended.
    pub(crate) async fn sleep(self) -> Asleep {
        let Self { journal, replication, writer, asleep } = self;
        journal.close().await;
        drop((journal, replication));
        spawn_blocking(|| writer.join()).await.unwrap().unwrap().unwrap();
        asleep
    }
}

// ---- pipes -----------------------------------------------------------------------------------

/// One end of a pipe that counts the bytes written to it and breaks at one of them.
struct Pipe {
    stream: DuplexStream,
    written: Arc<AtomicUsize>,
    breaks_at: usize,
}

impl Pipe {
    /// Both ends; they share the count.
    fn pair(breaks_at: usize) -> (Self, Self, Arc<AtomicUsize>) {
        let (a, b) = duplex(PIPE_BYTES);
        let written = Arc::new(AtomicUsize::new(0));
        let end = |stream| Self { stream, written: Arc::clone(&written), breaks_at };
        let (a, b) = (end(a), end(b));
        (a, b, written)
    }

    fn is_broken(&self) -> bool {
        self.written.load(Ordering::Relaxed) >= self.breaks_at
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_broken() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_broken() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(wrote)) = &wrote {
            self.written.fetch_add(*wrote, Ordering::Relaxed);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One side of a stream at work.
struct Side {
    task: JoinHandle<Ended>,
    view: watch::Receiver<JournalPeerStatus>,
}

impl Side {
    fn start<R, W>(node: &Node, peer: NodeId, recv: R, send: W) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (view, watched) = watch::channel(JournalPeerStatus::begun(peer));
        let replication = node.replication.clone();
        let task = tokio::spawn(async move { replication.run(peer, recv, send, &view).await });
        Self { task, view: watched }
    }

    async fn end(self) -> Ended {
        timeout(SOON, self.task).await.expect("the stream goes on").unwrap()
    }
}

/// A stream between two devices.
pub(crate) struct Link {
    a: Side,
    b: Side,
    written: Arc<AtomicUsize>,
}

impl Link {
    pub(crate) fn between(a: &Node, b: &Node) -> Self {
        Self::cut_after(a, b, usize::MAX)
    }

    /// A stream that breaks after this many bytes of both directions.
    pub(crate) fn cut_after(a: &Node, b: &Node, bytes: usize) -> Self {
        let (here, there, written) = Pipe::pair(bytes);
        let ((recv_a, send_a), (recv_b, send_b)) = (split(here), split(there));
        let (a_id, b_id) = (a.id(), b.id());
        let a = Side::start(a, b_id, recv_a, send_a);
        let b = Side::start(b, a_id, recv_b, send_b);
        Self { a, b, written }
    }

    pub(crate) fn views(&self) -> (JournalPeerStatus, JournalPeerStatus) {
        (self.a.view.borrow().clone(), self.b.view.borrow().clone())
    }

    /// Waits until both sides report that they are in sync.
    pub(crate) async fn in_sync(&self) {
        until("in sync", async || {
            let (a, b) = self.views();
            a.state == JournalPeerState::InSync && b.state == JournalPeerState::InSync
        })
        .await;
    }

    /// The bytes of both directions.
    pub(crate) fn bytes(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until both sides have ended.
    pub(crate) async fn ended(&self) {
        until("the end", async || self.a.task.is_finished() && self.b.task.is_finished()).await;
    }

    /// How the stream ended on both sides.
    pub(crate) async fn ends(self) -> (Ended, Ended) {
        let Self { a, b, .. } = self;
        tokio::join!(a.end(), b.end())
    }

    /// Breaks the stream.
    pub(crate) async fn close(self) {
        for side in [self.a, self.b] {
            side.task.abort();
            let _ = side.task.await;
        }
    }
}

/// The stream to a device in another process.
pub(crate) struct Tie(Side);

impl Tie {
    pub(crate) fn to(node: &Node, peer: NodeId, stream: UnixStream) -> Self {
        let (recv, send) = stream.into_split();
        Self(Side::start(node, peer, recv, send))
    }

    pub(crate) async fn end(self) -> Ended {
        self.0.end().await
    }
}

/// A peer played by hand, with the key of a device.
pub(crate) struct Puppet {
    side: Side,
    reader: FrameReader<ReadHalf<Pipe>>,
    writer: FrameWriter<WriteHalf<Pipe>>,
    hello: Hello,
    written: Arc<AtomicUsize>,
    said: usize,
}

impl Puppet {
    /// Connects to `node` as if it were `played`.
    pub(crate) async fn beside(node: &Node, played: &Node) -> Self {
        let (here, there, written) = Pipe::pair(usize::MAX);
        let ((recv, send), (reader, writer)) = (split(here), split(there));
        let side = Side::start(node, played.id(), recv, send);
        let group = played.group().await;
        let hello = Hello {
            version: VERSION,
            group,
            now_ms: wall_ms() as i64,
            intro: Vec::new(),
            features: 0,
        };
        let reader = FrameReader::new(reader, Some(SOON));
        let writer = FrameWriter::new(writer, SOON);
        Self { side, reader, writer, hello, written, said: 0 }
    }

    /// Exchanges Hello.
    pub(crate) async fn greet(&mut self) {
        let JournalMessage::Hello(_) = self.hear().await else { panic!("no Hello") };
        self.say(JournalMessage::Hello(self.hello.clone())).await;
    }

    pub(crate) async fn say(&mut self, message: JournalMessage) {
        let (kind, payload) = encode_message(&message);
        self.said += payload.len() + can_sync::wire::frame::HEADER_BYTES;
        self.writer.write_payload(kind, &payload).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> JournalMessage {
        let frame = timeout(SOON, self.reader.read()).await.unwrap().unwrap().unwrap();
        decode_message(frame.kind, frame.payload).unwrap()
    }

    /// The bytes that the device has written and the pipe has taken.
    pub(crate) fn taken_bytes(&self) -> usize {
        self.written.load(Ordering::Relaxed) - self.said
    }

    pub(crate) fn view(&self) -> JournalPeerStatus {
        self.side.view.borrow().clone()
    }

    pub(crate) async fn ended(self) -> Ended {
        self.side.end().await
    }
}
