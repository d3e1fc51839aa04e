//! The journal's stream with one peer: performs the effects of the [`Session`], and reports the
//! results to it. Works on any byte stream; the session decides what is sent and what is accepted.
//!
//! P1  Reading, writing and the journal's work never wait for one another, nor one peer's stream
//!     for another's: a peer that does not read keeps one of our batches in memory and nothing
//!     more.
//! P2  In memory at a time: a frame read ahead, a batch being applied, a batch being sent.
//! P3  An op is applied only after its signature was verified over the received bytes, and any peer
//!     learns of it, by an acknowledgement or by the op itself, only after its commit.
//! P4  A peer that neither reads nor writes for long is given up; so is one that breaks the
//!     protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, sleep_until, timeout};

use crate::clock::{Clock, wall_ms};
use crate::core::ids::{GroupId, LogId, NodeId};
use crate::core::journal::message::{FEATURES, Hello, JournalMessage, Refuse, VERSION};
use crate::core::journal::op::SignedOp;
use crate::core::journal::session::{
    CLOCK_EVERY_MS, Compared, Effect, Input, NotTaken, Now, Repaired, Report, Session, Standing,
    Start, Why,
};
use crate::core::limits::{INTRO_OPS_MAX, OPS_FRAME_BYTES, OPS_PER_FRAME_MAX};
use crate::net::frame::{Frame, FrameError, FrameReader, FrameWriter};
use crate::replica::journal::{AskError, Commits, JournalHandle};
use crate::replica::status::{JournalPeerState, JournalPeerStatus, JournalRefusal};
use crate::state::journal::{VerifiedOp, verify};
use crate::wire::journal::{decode_message, encode_message};

mod ended;

pub use ended::Ended;

/// A peer that sends nothing for this long is given up: several of its clocks are overdue.
const READ_STALL: Duration = Duration::from_millis(3 * CLOCK_EVERY_MS);

/// A peer that accepts no byte of a frame for this long is given up. Longer than a peer with a slow
/// disk may need to apply the batches before it.
const WRITE_STALL: Duration = Duration::from_secs(120);

/// A refusal is sent if the stream accepts it within this time.
const LAST_WORD_WAIT: Duration = Duration::from_millis(500);

/// The fewest ops that a verifying thread gets: fewer are not worth a thread.
const VERIFY_OPS_MIN: usize = 64;

/// How often the journal is pruned.
const PRUNE_EVERY: Duration = Duration::from_secs(10 * 60);

/// How many rows one transaction prunes; other writers run between two transactions.
const PRUNE_ROWS: usize = 1_000;

/// The longest time between a commit and the search for forks.
const FORKS_EVERY: Duration = Duration::from_secs(10);

/// The most held-back logs that a status names.
const HELD_SHOWN_MAX: usize = 16;

/// The state that the streams of all peers share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Replication {
    journal: JournalHandle,
    device: NodeId,
    clock: Clock,
    threads: usize,
    /// What was last sent again to each peer. Only members get that far.
    repaired: Arc<Mutex<BTreeMap<NodeId, Repaired>>>,
    repairs: Arc<AtomicU64>,
}

impl Replication {
    /// Replication of this device's journal with any number of peers.
    pub fn new(journal: JournalHandle, device: NodeId, clock: Clock) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (repaired, repairs) = Default::default();
        Self { journal, device, clock, threads, repaired, repairs }
    }

    /// How often a whole journal was sent again because contents differed that should be equal.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Relaxed)
    }

    /// Replicates the journals of this device and `peer`, whose identity the connection has proved,
    /// until the stream ends. Shows its state in `view`, and returns why the stream ended.
    ///
    /// # Cancel safety
    /// Dropping it ends the stream; a write to the journal that has started still takes place.
    pub async fn run<R, W>(
        &self,
        peer: NodeId,
        recv: R,
        send: W,
        view: &watch::Sender<JournalPeerStatus>,
    ) -> Ended
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        // Watched before the start is read, so that no commit between the two is missed.
        let mut commits = self.journal.commits();
        let seen = *commits.borrow_and_update();
        let start = match self.start(peer).await {
            Ok(Some(start)) => start,
            Ok(None) => return Ended::NoGroup,
            Err(error) => return error.into(),
        };
        let group = start.hello.group;
        let mut effects = Vec::new();
        let session = Session::start(start, self.now(), &mut effects);
        let mut stream = Stream {
            shared: self,
            peer,
            group,
            session,
            effects,
            reader: Some(FrameReader::new(recv, Some(READ_STALL))),
            writer: Some(FrameWriter::new(send, WRITE_STALL)),
            arrived: None,
            work: FuturesUnordered::new(),
            is_applying: false,
            seen,
            notes: Notes::default(),
            view,
        };
        let ended = stream.run(commits).await;
        if stream.session.is_member() {
            stream.remember_repaired();
        }
        stream.take_in_rest().await;
        ended
    }

    /// Removes what nothing needs any more, at intervals, until the journal is closed. Writes
    /// nothing when there is nothing to remove.
    pub async fn prune(&self) {
        loop {
            sleep(PRUNE_EVERY).await;
            loop {
                match self.journal.run(|journal, now_ms| journal.prune(now_ms, PRUNE_ROWS)).await {
                    Ok(pruned) if pruned.more => {}
                    Ok(_) => break,
                    Err(AskError::Closed) => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot prune the journal");
                        break;
                    }
                }
            }
        }
    }

    /// Reports the forked logs, and again whenever another one is forked, until the journal is
    /// closed.
    pub async fn watch_forks(&self, forked: &watch::Sender<Vec<LogId>>) {
        let mut commits = self.journal.commits();
        loop {
            commits.borrow_and_update();
            match self.journal.read(|reader| reader.clock()).await {
                Ok(clock) => {
                    let logs = clock.entries.iter().filter(|entry| entry.forked);
                    let logs: Vec<_> = logs.map(|entry| entry.log).collect();
                    forked.send_if_modified(|told| {
                        let changed = *told != logs;
                        *told = logs;
                        changed
                    });
                }
                Err(AskError::Closed) => return,
                Err(error) => tracing::warn!(%error, "cannot read the journal's clock"),
            }
            sleep(FORKS_EVERY).await;
            if commits.changed().await.is_err() {
                return;
            }
        }
    }

    async fn start(&self, peer: NodeId) -> Result<Option<Start>, AskError> {
        let device = self.device;
        let read = self.journal.read(move |reader| {
            let Some(group) = reader.group()? else { return Ok(None) };
            let known = reader.standing(&peer)? == Standing::Member;
            Ok(Some((group, known, reader.intro(&device)?)))
        });
        let Some((group, known, intro)) = read.await? else { return Ok(None) };
        let now_ms = i64::try_from(wall_ms()).unwrap_or(i64::MAX);
        let intro = sendable(intro);
        let hello = Hello { version: VERSION, group, now_ms, intro, features: FEATURES };
        let repaired = self.repaired().get(&peer).cloned().unwrap_or_default();
        Ok(Some(Start { hello, known, repaired, jitter: rand::random() }))
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.clock.now_ms(), wall_ms: wall_ms() }
    }

    fn repaired(&self) -> MutexGuard<'_, BTreeMap<NodeId, Repaired>> {
        self.repaired.lock()
    }

    /// Verifies ops on as many threads as there are processors. The inner error describes the first
    /// op that its author did not sign.
    async fn verify(
        &self,
        group: GroupId,
        ops: Vec<SignedOp>,
    ) -> Result<Result<Vec<VerifiedOp>, String>, AskError> {
        let share = ops.len().div_ceil(self.threads).max(VERIFY_OPS_MIN);
        let mut ops = ops.into_iter();
        let mut shares = Vec::new();
        while ops.len() > 0 {
            let share: Vec<_> = ops.by_ref().take(share).collect();
            shares.push(spawn_blocking(move || {
                share.into_iter().map(|op| verify(&group, op)).collect::<Result<Vec<_>, _>>()
            }));
        }
        // A task fails only by a panic, or because the process ends.
        let shares = try_join_all(shares).await.map_err(|_| AskError::Closed)?;
        let verified: Result<Vec<_>, _> = shares.into_iter().collect();
        Ok(verified.map(|shares| shares.concat()).map_err(|error| error.to_string()))
    }
}

/// Returns the introduction if it fits into a frame, else an empty one. Without an introduction
/// only devices that already know us accept us.
fn sendable(intro: Vec<SignedOp>) -> Vec<SignedOp> {
    let bytes: usize = intro.iter().map(|op| op.body.len()).sum();
    if intro.len() <= INTRO_OPS_MAX && bytes <= OPS_FRAME_BYTES {
        return intro;
    }
    tracing::warn!(
        ops = intro.len(),
        bytes,
        "our introduction to the group is too long to be sent"
    );
    Vec::new()
}

/// Work that has ended.
enum Done<R, W> {
    Read(FrameReader<R>, Result<Option<Frame>, FrameError>),
    Wrote(FrameWriter<W>, Result<(), FrameError>),
    Worked(Result<Input, AskError>),
}

struct Stream<'a, R, W> {
    shared: &'a Replication,
    peer: NodeId,
    group: GroupId,
    session: Session,
    effects: Vec<Effect>,
    /// `None` while it reads.
    reader: Option<FrameReader<R>>,
    /// `None` while it writes.
    writer: Option<FrameWriter<W>>,
    /// A frame that arrived before the session accepts another one.
    arrived: Option<Frame>,
    work: FuturesUnordered<BoxFuture<'static, Done<R, W>>>,
    is_applying: bool,
    seen: Commits,
    notes: Notes,
    view: &'a watch::Sender<JournalPeerStatus>,
}

/// Details for the status that the session does not keep.
#[derive(Default)]
struct Notes {
    skew_ms: Option<i64>,
    repairs: u64,
    held: BTreeMap<LogId, NotTaken>,
    refused: Option<JournalRefusal>,
    /// Texts that were logged: each is logged once.
    logged: BTreeSet<String>,
}

impl<R, W> Stream<'_, R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    async fn run(&mut self, mut commits: watch::Receiver<Commits>) -> Ended {
        loop {
            for effect in std::mem::take(&mut self.effects) {
                if let Effect::End { last, why } = effect {
                    self.say_last(last).await;
                    return why.into();
                }
                self.perform(effect);
            }
            if self.session.reads()
                && let Some(frame) = self.arrived.take()
            {
                match decode_message(frame.kind, frame.payload) {
                    Ok(message) => self.tell(Input::Received(message)),
                    Err(error) => return error.into(),
                }
                continue;
            }
            if self.arrived.is_none()
                && let Some(mut reader) = self.reader.take()
            {
                self.work.push(Box::pin(async move {
                    let frame = reader.read().await;
                    Done::Read(reader, frame)
                }));
            }
            self.show();
            let wake_ms = self.session.deadline_ms();
            let wake = sleep_until(self.shared.clock.instant(wake_ms.unwrap_or(u64::MAX)).into());
            tokio::select! {
                Some(done) = self.work.next() => match done {
                    Done::Read(reader, Ok(Some(frame))) => {
                        (self.reader, self.arrived) = (Some(reader), Some(frame));
                    }
                    Done::Read(_, Ok(None)) => return Ended::Finished,
                    Done::Wrote(writer, Ok(())) => {
                        self.writer = Some(writer);
                        self.tell(Input::Sent);
                    }
                    Done::Worked(Ok(input)) => self.tell(input),
                    Done::Read(_, Err(error)) | Done::Wrote(_, Err(error)) => return error.into(),
                    Done::Worked(Err(error)) => return error.into(),
                },
                changed = commits.changed() => {
                    if changed.is_err() {
                        return AskError::Closed.into();
                    }
                    let now = *commits.borrow_and_update();
                    let before = std::mem::replace(&mut self.seen, now);
                    self.tell(Input::Committed {
                        own: now.own != before.own,
                        members: now.members != before.members,
                    });
                }
                () = wake => self.tell(Input::Tick),
            }
        }
    }

    /// Waits until the current batch is applied. Otherwise a connection that breaks again and again
    /// would allow no progress.
    async fn take_in_rest(&mut self) {
        while self.is_applying {
            match self.work.next().await {
                Some(Done::Worked(Ok(Input::Applied(_) | Input::Forged) | Err(_))) | None => return,
                Some(_) => {}
            }
        }
    }

    fn tell(&mut self, input: Input) {
        if matches!(input, Input::Applied(_) | Input::Forged) {
            self.is_applying = false;
        }
        self.session.handle(self.shared.now(), input, &mut self.effects);
    }

    fn perform(&mut self, effect: Effect) {
        let (shared, peer, group) = (self.shared.clone(), self.peer, self.group);
        match effect {
            Effect::Send(message) => self.send(&message),
            Effect::ReadClock => self.work(async move {
                let clock = shared.journal.read(|reader| reader.clock()).await?;
                Ok(Input::ClockRead(clock))
            }),
            Effect::Scan { cursor, has } => self.work(async move {
                let scan = shared.journal.read(move |reader| reader.scan_for(cursor, &has));
                Ok(Input::Scanned(scan.await?))
            }),
            Effect::TakeClock { jump, ack, compare, whole } => self.work(async move {
                let mut unjumped = Vec::new();
                if !jump.is_empty() || !ack.is_empty() {
                    let jumps = jump.iter().map(|entry| entry.log).collect();
                    let take = move |journal: &mut crate::state::journal::Journal, _| {
                        journal.take_clock(&peer, &jump, &ack)
                    };
                    match shared.journal.run(take).await {
                        Err(error) if error.is_disk_full() => unjumped = jumps,
                        taken => taken?,
                    }
                }
                let mut compared = Compared::default();
                if !compare.is_empty() {
                    let compare = move |reader: &crate::state::journal::JournalReader| {
                        reader.compare(&compare, whole)
                    };
                    compared = shared.journal.read(compare).await?;
                }
                Ok(Input::Compared(Compared { unjumped, ..compared }))
            }),
            Effect::Judge { intro } => self.work(judge(shared, peer, group, intro)),
            Effect::Apply(ops) => {
                self.is_applying = true;
                self.work(apply(shared, peer, group, ops));
            }
            Effect::Report(report) => self.note(report),
            // Nothing to do here: the loop that called this one ends the stream.
            Effect::End { .. } => {}
        }
    }

    fn work(&self, work: impl Future<Output = Result<Input, AskError>> + Send + 'static) {
        self.work.push(Box::pin(async move { Done::Worked(work.await) }));
    }

    fn send(&mut self, message: &JournalMessage) {
        let Some(mut writer) = self.writer.take() else { return };
        let (kind, payload) = encode_message(message);
        tracing::trace!(?kind, bytes = payload.len(), "journal frame out");
        self.work.push(Box::pin(async move {
            let written = async {
                writer.write_payload(kind, &payload).await?;
                writer.flush().await
            };
            let written = written.await;
            Done::Wrote(writer, written)
        }));
    }

    async fn say_last(&mut self, last: Option<Refuse>) {
        let (Some(refuse), Some(mut writer)) = (last, self.writer.take()) else { return };
        let (kind, payload) = encode_message(&JournalMessage::Refuse(refuse));
        let said = async {
            writer.write_payload(kind, &payload).await?;
            writer.finish().await
        };
        // The connection is closed with the same reason.
        let _ = timeout(LAST_WORD_WAIT, said).await;
    }

    // ---- for people --------------------------------------------------------------------------

    fn note(&mut self, report: Report) {
        let peer = self.peer.short();
        match report {
            Report::Skewed(skew_ms) => {
                tracing::warn!(peer, skew_ms, "the clocks of this device and a peer are far apart");
                self.notes.skew_ms = Some(skew_ms);
            }
            Report::Repairing => {
                tracing::warn!(
                    peer,
                    "equal clocks with unequal contents: sending everything again"
                );
                self.notes.repairs += 1;
                self.shared.repairs.fetch_add(1, Ordering::Relaxed);
                self.remember_repaired();
            }
            Report::Matching => self.remember_repaired(),
            Report::Refused(Refuse { code, text, op }) => {
                let (log, seq) = op.unzip();
                let named = log.map(|log| log.to_string());
                if self.notes.is_news(format!("refused {code:?} {log:?}")) {
                    tracing::warn!(
                        peer,
                        ?code,
                        text,
                        log = named,
                        seq,
                        "a peer does not take something"
                    );
                }
                self.notes.refused = Some(JournalRefusal { reason: text, log, seq });
            }
            Report::Holding(held) => {
                let NotTaken { log, seq, why } = held;
                if self.notes.is_news(format!("holding {log} {}", reason(&why))) {
                    let why = reason(&why);
                    tracing::warn!(peer, %log, seq, why, "ops are not applied for now");
                }
                self.notes.held.insert(log, held);
            }
        }
    }

    fn remember_repaired(&self) {
        self.shared.repaired().insert(self.peer, self.session.repaired().clone());
    }

    fn show(&mut self) {
        let session = &self.session;
        self.notes.held.retain(|log, _| session.holds(log));
        let state = match (session.in_sync(), session.is_open()) {
            (true, _) => JournalPeerState::InSync,
            (false, true) => JournalPeerState::CatchingUp,
            (false, false) => JournalPeerState::Greeting,
        };
        let shown = self.notes.held.values().take(HELD_SHOWN_MAX);
        let status = JournalPeerStatus {
            node_id: self.peer,
            state,
            skew_ms: self.notes.skew_ms,
            repairs: self.notes.repairs,
            held_logs: self.notes.held.len() as u64,
            held: shown.map(refusal).collect(),
            refused: self.notes.refused.clone(),
        };
        self.view.send_if_modified(|view| {
            let changed = *view != status;
            *view = status;
            changed
        });
    }
}

impl Notes {
    fn is_news(&mut self, what: String) -> bool {
        if self.logged.len() >= OPS_PER_FRAME_MAX {
            return false;
        }
        self.logged.insert(what)
    }
}

/// See [`Effect::Judge`].
async fn judge(
    shared: Replication,
    peer: NodeId,
    group: GroupId,
    intro: Vec<SignedOp>,
) -> Result<Input, AskError> {
    let standing = shared.journal.read(move |reader| reader.standing(&peer)).await?;
    if standing == Standing::Member || intro.is_empty() {
        return Ok(Input::Judged(standing));
    }
    let intro = match shared.verify(group, intro).await? {
        Ok(intro) => intro,
        Err(error) => return Ok(forged(&peer, &error)),
    };
    let introduce =
        shared.journal.run(move |journal, now_ms| journal.introduce(&peer, &intro, now_ms));
    introduce.await?;
    let standing = shared.journal.read(move |reader| reader.standing(&peer)).await?;
    Ok(Input::Judged(standing))
}

/// Writes the ops of a peer to the journal; performs [`Effect::Apply`].
async fn apply(
    shared: Replication,
    peer: NodeId,
    group: GroupId,
    ops: Vec<SignedOp>,
) -> Result<Input, AskError> {
    let ops = match shared.verify(group, ops).await? {
        Ok(ops) => ops,
        Err(error) => return Ok(forged(&peer, &error)),
    };
    let places: BTreeMap<LogId, u64> =
        ops.iter().map(|op| (op.log(), op.body().seq)).rev().collect();
    let receive = shared.journal.run(move |journal, now_ms| journal.receive(&peer, &ops, now_ms));
    let received = match receive.await {
        Err(error) if error.is_disk_full() => {
            let not_taken = |(log, seq)| NotTaken { log, seq, why: Why::Full };
            return Ok(Input::Applied(places.into_iter().map(not_taken).collect()));
        }
        received => received?,
    };
    tracing::trace!(applied = received.applied, known = received.known, "ops applied");
    Ok(Input::Applied(received.refused.iter().map(NotTaken::from).collect()))
}

fn forged(peer: &NodeId, error: &str) -> Input {
    tracing::warn!(peer = %peer.short(), error, "a peer sent an invalid op");
    Input::Forged
}

fn reason(why: &Why) -> &'static str {
    match why {
        Why::Future { .. } => "stamped too far in the future: a clock is wrong, or this one is",
        Why::Author => "no known member has added its author to the group",
        Why::Quota => "the space or the number of logs of its author is used up",
        Why::Full => "the disk of this device is full",
        Why::NotFromMember => "the peer is no member",
        Why::FromRemoved => "the peer was removed",
        Why::OtherGroup => "it is of another group",
    }
}

fn refusal(held: &NotTaken) -> JournalRefusal {
    let reason = reason(&held.why).to_owned();
    JournalRefusal { reason, log: Some(held.log), seq: Some(held.seq) }
}
