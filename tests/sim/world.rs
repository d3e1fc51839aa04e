//! A world of engines in virtual time: the real core and the real codec, with a simulated network,
//! stores and indexes that lose, delay, cut and crash according to a seed.
//!
//! Control messages are sent as encoded frames and arrive in order, as with QUIC; packet loss shows
//! as delay, or as a lost connection when it lasts. Batches break anywhere. After a crash a node
//! has only its store, the index up to some moment, and the saved cursors.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use can_sync::core::engine::{Effect, Engine, Identity, Input, KnownSet, PeerView};
use can_sync::core::fetches::FetchState;
use can_sync::core::ids::{Digest, GroupId, Hash, HashAlgorithm, NodeId, StoreId};
use can_sync::core::limits::SMALL_BYTES_MAX;
use can_sync::core::pairing::{Member, Members};
use can_sync::core::peers::ConnId;
use can_sync::core::reconcile::{Answer, Query, Since, shard_range};
use can_sync::core::sketch::{CodedCells, Sketch, SketchKey};
use can_sync::core::wants::BatchId;
use can_sync::wire::control::{decode_message, encode_message};
use can_sync::wire::frame::Kind;

mod batches;
mod choosing;

use batches::Batch;
use choosing::Chooser;

const GROUP: GroupId = GroupId([9; 32]);

/// QUIC's idle timeout.
const IDLE_MS: u64 = 30_000;

/// How long a stream may take that carries almost nothing.
const STREAM_MS_MAX: u64 = 15 * 60_000;

/// How soon a hostile offer is repeated if nothing in it was wanted.
const USURP_AGAIN_MS: u64 = 500;

/// Random numbers of one seed (SplitMix64, Steele et al. 2014).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The faults of a world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) delay_ms_max: u64,
    /// How many of a hundred batches break off.
    pub(crate) broken_batches: u64,
    /// Whether all nodes speak the plain protocol.
    pub(crate) plain: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self { delay_ms_max: 5, broken_batches: 0, plain: false };
}

enum Event {
    Wake { node: usize, life: u32 },
    Fact { node: usize, life: u32, input: Input },
    Frame { node: usize, life: u32, conn: ConnId, kind: Kind, payload: Vec<u8> },
    DialEnds { node: usize, life: u32, to: usize },
    LinkDies { link: usize },
    Feed { node: usize, life: u32 },
    Offer { batch: usize },
    Deliver { batch: usize },
    PlainMeets { link: usize },
    Usurp { batch: usize },
}

struct Timed {
    at_ms: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at_ms, self.order) == (other.at_ms, other.order)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.order).cmp(&(other.at_ms, other.order))
    }
}

/// A connection; each side has its own number for it.
struct Link {
    ends: [usize; 2],
    lives: [u32; 2],
    open: bool,
    /// When the last frame of each direction arrives: later frames arrive later.
    arrives_ms: [u64; 2],
    plain_ready: [bool; 2],
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    engine: Option<Engine>,
    life: u32,
    /// The store: durable, in the order of its feed.
    pub(crate) store: Vec<Digest>,
    held: BTreeSet<Hash>,
    /// How much of the feed the index has applied; durable too.
    indexed: usize,
    epoch: [u8; 16],
    cursors: BTreeMap<NodeId, Since>,
    wake_ms: Option<u64>,
    /// Whether it announces its assets but sends none when they are requested.
    pub(crate) withholds: bool,
    /// Of a node that may not want everything.
    chooser: Option<Chooser>,
}

/// The durable part of a node.
pub(crate) struct Backup {
    store: Vec<Digest>,
    held: BTreeSet<Hash>,
    indexed: usize,
    epoch: [u8; 16],
    cursors: BTreeMap<NodeId, Since>,
}

pub(crate) struct World {
    pub(crate) now_ms: u64,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) nodes: Vec<Node>,
    /// The pairs of nodes that can reach each other.
    pub(crate) reachable: BTreeSet<(usize, usize)>,
    queue: BinaryHeap<Reverse<Timed>>,
    order: u64,
    links: Vec<Link>,
    batches: Vec<Batch>,
    /// The contents sent, by receiver; an asset counts each time.
    pub(crate) crossed: usize,
    /// All messages and batches ever sent.
    pub(crate) moves: usize,
    pub(crate) frame_bytes: usize,
    /// How long a batch with a large asset takes.
    pub(crate) large_ms: u64,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize, faults: Faults) -> Self {
        let mut world = Self {
            now_ms: 0,
            rng: Rng::new(seed),
            faults,
            nodes: Vec::new(),
            reachable: BTreeSet::new(),
            queue: BinaryHeap::new(),
            order: 0,
            links: Vec::new(),
            batches: Vec::new(),
            crossed: 0,
            moves: 0,
            frame_bytes: 0,
            large_ms: 0,
        };
        for n in 0..nodes {
            let mut id = [0; 32];
            // The order of node IDs must differ from the order of the nodes.
            id[0] = (world.rng.next() & 0xff) as u8;
            id[1] = n as u8;
            let epoch = [n as u8 + 1; 16];
            world.nodes.push(Node {
                id: NodeId(id),
                engine: None,
                life: 0,
                store: Vec::new(),
                held: BTreeSet::new(),
                indexed: 0,
                epoch,
                cursors: BTreeMap::new(),
                wake_ms: None,
                withholds: false,
                chooser: None,
            });
        }
        world
    }

    pub(crate) fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.join(a, b);
            }
        }
    }

    /// Lets two nodes reach each other.
    pub(crate) fn join(&mut self, a: usize, b: usize) {
        self.reachable.insert((a.min(b), a.max(b)));
    }

    /// Cuts two nodes apart; their connection ends by timeout.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.reachable.remove(&(a.min(b), a.max(b)));
        for link in 0..self.links.len() {
            let ends = self.links[link].ends;
            if self.links[link].open && (ends == [a, b] || ends == [b, a]) {
                self.at(IDLE_MS, Event::LinkDies { link });
            }
        }
    }

    fn can_reach(&self, a: usize, b: usize) -> bool {
        self.reachable.contains(&(a.min(b), a.max(b)))
    }

    /// Starts a node, or starts it again.
    pub(crate) fn start(&mut self, n: usize) {
        let members = self.nodes.iter().map(|node| Member {
            node_id: node.id,
            name: format!("node {}", node.id.short()),
            addresses: Vec::new(),
        });
        let members = Members { members: members.collect(), removed: Vec::new() };
        let seed = self.rng.next();
        let node = &mut self.nodes[n];
        let mut sketch = Sketch::new(SketchKey::derive(&GROUP));
        node.store[..node.indexed].iter().for_each(|digest| sketch.insert(&digest.hash));
        let mut known = KnownSet { sketch, epoch: node.epoch, head_seq: node.indexed as u64 };
        let mut copies = None;
        if let Some(chooser) = &mut node.chooser {
            let (set, own, beliefs) = chooser.load(&members);
            (known, copies) = (set, Some((own, beliefs)));
        }
        let identity = Identity {
            node_id: node.id,
            group_id: GROUP,
            device_name: format!("node {n}"),
            store_id: StoreId([n as u8; 16]),
            algorithm: HashAlgorithm::Blake3,
            build: "sim".to_owned(),
        };
        let mut seed_bytes = [0; 32];
        seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let engine = Engine::new(identity, known, members, node.cursors.clone(), seed_bytes);
        node.engine = Some(match copies {
            Some((own, beliefs)) => engine.with_copies(own, beliefs),
            None => engine,
        });
        node.life += 1;
        let life = node.life;
        self.at(0, Event::Fact { node: n, life, input: Input::Store { up: true } });
        self.at(1, Event::Feed { node: n, life });
    }

    /// Removes everything that was not durable. The index may fall back behind the store and starts
    /// a new epoch, as the real one does after an unclean stop.
    pub(crate) fn crash(&mut self, n: usize) {
        let lost = self.rng.below(5) as usize;
        let epoch = self.rng.next();
        let node = &mut self.nodes[n];
        node.engine = None;
        node.life += 1;
        node.wake_ms = None;
        if node.chooser.is_none() {
            node.indexed = node.indexed.saturating_sub(lost);
            node.epoch[..8].copy_from_slice(&epoch.to_le_bytes());
        }
        for link in 0..self.links.len() {
            if self.links[link].open && self.links[link].ends.contains(&n) {
                self.at(IDLE_MS, Event::LinkDies { link });
            }
        }
    }

    /// The content of a node's backup.
    pub(crate) fn back_up(&self, n: usize) -> Backup {
        let Node { store, held, indexed, epoch, cursors, .. } = &self.nodes[n];
        let (store, held, cursors) = (store.clone(), held.clone(), cursors.clone());
        Backup { store, held, indexed: *indexed, epoch: *epoch, cursors }
    }

    /// Stops a node and restores a backup including its epoch: nothing shows that it is older.
    pub(crate) fn put_back(&mut self, n: usize, backup: Backup) {
        self.crash(n);
        let Backup { store, held, indexed, epoch, cursors } = backup;
        self.nodes[n] = Node {
            store,
            held,
            indexed,
            epoch,
            cursors,
            engine: None,
            wake_ms: None,
            chooser: None,
            ..self.nodes[n]
        };
    }

    pub(crate) fn is_up(&self, n: usize) -> bool {
        self.nodes[n].engine.is_some()
    }

    /// A user adds an asset to a node's store.
    pub(crate) fn add(&mut self, n: usize, digest: Digest) {
        if self.nodes[n].held.insert(digest.hash) {
            self.nodes[n].store.push(digest);
            let life = self.nodes[n].life;
            self.at(1, Event::Feed { node: n, life });
        }
    }

    /// Somebody at a node waits for an asset. Returns the state of the fetch; `None`: the asset is
    /// held, or the node is down.
    pub(crate) fn fetch(&mut self, n: usize, hash: Hash, at_once: bool) -> Option<FetchState> {
        let node = &self.nodes[n];
        if node.store[..node.indexed].iter().any(|digest| digest.hash == hash) {
            return None;
        }
        self.tell(n, Input::Fetch { hashes: vec![hash], at_once });
        Some(self.nodes[n].engine.as_ref()?.fetching(self.now_ms, &hash))
    }

    pub(crate) fn set(&self, n: usize) -> BTreeSet<Hash> {
        self.nodes[n].held.clone()
    }

    /// Connected peers that some node does not see as in sync, by node.
    pub(crate) fn not_in_sync(&self) -> Vec<(usize, PeerView)> {
        let mut found = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let views = node.engine.as_ref().map(Engine::peer_views).unwrap_or_default();
            let views = views.into_iter().filter(|view| view.conn.is_some() && !view.in_sync);
            found.extend(views.map(|view| (n, view)));
        }
        found
    }

    /// Runs until virtual time `until_ms`.
    pub(crate) fn run(&mut self, until_ms: u64) {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at_ms > until_ms {
                break;
            }
            let Some(Reverse(timed)) = self.queue.pop() else { break };
            self.now_ms = timed.at_ms;
            self.happen(timed.event);
        }
        self.now_ms = until_ms;
    }

    fn at(&mut self, in_ms: u64, event: Event) {
        self.order += 1;
        let timed = Timed { at_ms: self.now_ms + in_ms, order: self.order, event };
        self.queue.push(Reverse(timed));
    }

    fn delay(&mut self) -> u64 {
        1 + self.rng.below(self.faults.delay_ms_max)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { node, life } => {
                if self.nodes[node].life == life {
                    self.nodes[node].wake_ms = None;
                    self.tell(node, Input::Tick);
                }
            }
            Event::Fact { node, life, input } => {
                if self.nodes[node].life == life {
                    self.tell(node, input);
                }
            }
            Event::Frame { node, life, conn, kind, payload } => {
                if self.nodes[node].life == life && self.links[conn.0 as usize / 2].open {
                    let message = decode_message(kind, payload.into())
                        .expect("what one core says, the codec of the other takes");
                    self.tell(node, Input::Message { conn, message });
                }
            }
            Event::DialEnds { node, life, to } => self.dial_ends(node, life, to),
            Event::LinkDies { link } => self.link_dies(link, "lost"),
            Event::Feed { node, life } => self.feed(node, life),
            Event::Offer { batch } => self.offer(batch),
            Event::Deliver { batch } => self.deliver(batch),
            Event::PlainMeets { link } => self.plain_meets(link),
            Event::Usurp { batch } => self.usurp_again(batch),
        }
    }

    fn tell(&mut self, n: usize, input: Input) {
        let now_ms = self.now_ms;
        let Some(engine) = &mut self.nodes[n].engine else { return };
        let mut effects = Vec::new();
        engine.handle(now_ms, input, &mut effects);
        let wake = engine.deadline_ms();
        for effect in effects {
            self.perform(n, effect);
        }
        let Some(wake_ms) = wake else { return };
        let node = &mut self.nodes[n];
        if node.wake_ms.is_none_or(|at| wake_ms < at) {
            node.wake_ms = Some(wake_ms);
            let life = node.life;
            self.at(wake_ms.saturating_sub(now_ms).max(1), Event::Wake { node: n, life });
        }
    }

    fn fact(&mut self, n: usize, in_ms: u64, input: Input) {
        let life = self.nodes[n].life;
        self.at(in_ms, Event::Fact { node: n, life, input });
    }

    /// The number of a connection's end is `2 * link + side`.
    fn side(&self, n: usize, conn: ConnId) -> (usize, usize) {
        let (link, side) = (conn.0 as usize / 2, conn.0 as usize % 2);
        assert_eq!(self.links[link].ends[side], n, "a connection of another node");
        (link, side)
    }

    fn perform(&mut self, n: usize, effect: Effect) {
        if self.nodes[n].chooser.is_some() && is_of_index(&effect) {
            return self.perform_choosing(n, effect);
        }
        match effect {
            Effect::Dial(to) => {
                let to = self.nodes.iter().position(|node| node.id == to).expect("a member");
                let life = self.nodes[n].life;
                let works = self.can_reach(n, to) && self.is_up(to);
                let wait = if works { self.delay() } else { 5_000 };
                self.at(wait, Event::DialEnds { node: n, life, to });
            }
            Effect::Close { conn, code, .. } => {
                let (link, _) = self.side(n, conn);
                self.link_dies(link, &code.to_string());
            }
            Effect::Send { conn, message } => {
                self.moves += 1;
                let (link, side) = self.side(n, conn);
                let (kind, payload) = encode_message(&message);
                self.frame_bytes += payload.len() + 5;
                let delay = self.delay();
                let far = 1 - side;
                let l = &mut self.links[link];
                l.arrives_ms[side] = l.arrives_ms[side].max(self.now_ms + delay);
                let (node, life) = (l.ends[far], l.lives[far]);
                let wait = l.arrives_ms[side] - self.now_ms;
                let conn = ConnId((2 * link + far) as u64);
                if l.open && self.can_reach(n, node) {
                    let payload = payload.to_vec();
                    self.at(wait, Event::Frame { node, life, conn, kind, payload });
                }
            }
            Effect::Ask { conn, round, query } => {
                let answer = self.answer(n, query);
                self.fact(n, 1, Input::Answer { conn, round, answer });
            }
            Effect::AskSizes { conn, hashes } => {
                let node = &self.nodes[n];
                let sizes: BTreeMap<Hash, Digest> =
                    node.store[..node.indexed].iter().map(|d| (d.hash, *d)).collect();
                let held = hashes.iter().filter_map(|hash| sizes.get(hash).copied()).collect();
                let missing = hashes.into_iter().filter(|hash| !sizes.contains_key(hash));
                let missing = missing.collect();
                self.fact(n, 1, Input::Sizes { conn, held, missing });
            }
            Effect::SendBatch { conn, batch, digests, lane, .. } => {
                self.send_batch(n, conn, batch, digests, lane.is_solicited());
            }
            Effect::Decide { batch, wanted } => {
                let index = batch.0 as usize;
                assert_eq!(wanted.len(), self.batches[index].unknown.len());
                let mut large = self.batches[index].unknown.iter().zip(&wanted);
                let is_large =
                    large.any(|(digest, wanted)| *wanted && digest.size_bytes > SMALL_BYTES_MAX);
                let is_wanted = wanted.contains(&true);
                self.batches[index].wanted = Some(wanted);
                if self.batches[index].is_usurping {
                    let pause_ms = if is_wanted { STREAM_MS_MAX } else { USURP_AGAIN_MS };
                    self.at(pause_ms, Event::Usurp { batch: index });
                    return;
                }
                let delay = self.delay() + if is_large { self.large_ms } else { 0 };
                self.at(delay, Event::Deliver { batch: index });
            }
            Effect::OpenJournal { .. } | Effect::Confirm { .. } | Effect::Doubt { .. } => {}
            Effect::ReadAbsent { .. }
            | Effect::ReadSizes { .. }
            | Effect::TakeAbsent { .. }
            | Effect::AskMissing { .. }
            | Effect::Judge { .. } => panic!("every device here wants everything"),
            Effect::RunPlain { conn } => {
                let (link, side) = self.side(n, conn);
                self.links[link].plain_ready[side] = true;
                if self.links[link].plain_ready == [true, true] {
                    let delay = self.delay();
                    self.at(delay, Event::PlainMeets { link });
                }
            }
            Effect::SaveCursor { peer, since } => {
                self.nodes[n].cursors.insert(peer, since);
            }
            Effect::Stopped => {}
            Effect::RebuildSketch => panic!("no index here differs from its sketch"),
        }
    }

    fn dial_ends(&mut self, node: usize, life: u32, to: usize) {
        if self.nodes[node].life != life {
            return;
        }
        if !self.can_reach(node, to) || !self.is_up(to) {
            let peer = self.nodes[to].id;
            self.tell(node, Input::DialFailed { peer, reason: "no answer".to_owned() });
            return;
        }
        let link = self.links.len();
        let lives = [life, self.nodes[to].life];
        self.links.push(Link {
            ends: [node, to],
            lives,
            open: true,
            arrives_ms: [0, 0],
            plain_ready: [false, false],
        });
        let plain = self.faults.plain;
        for (side, (n, peer)) in [(node, to), (to, node)].into_iter().enumerate() {
            let conn = ConnId((2 * link + side) as u64);
            let (peer, dialed) = (self.nodes[peer].id, side == 0);
            self.tell(n, Input::Connected { conn, peer, dialed, plain });
        }
    }

    fn link_dies(&mut self, link: usize, reason: &str) {
        if !std::mem::replace(&mut self.links[link].open, false) {
            return;
        }
        for side in 0..2 {
            let (node, life) = (self.links[link].ends[side], self.links[link].lives[side]);
            let conn = ConnId((2 * link + side) as u64);
            let reason = reason.to_owned();
            let input = Input::Disconnected { conn, reason, violation: false };
            self.at(1, Event::Fact { node, life, input });
        }
    }

    fn feed(&mut self, n: usize, life: u32) {
        let node = &mut self.nodes[n];
        if node.life != life || node.engine.is_none() {
            return;
        }
        if node.chooser.is_some() {
            return self.take_in(n);
        }
        let from = node.indexed;
        node.indexed = node.store.len();
        let entries = (from..node.indexed).map(|i| (i as u64 + 1, node.store[i])).collect();
        self.tell(n, Input::Indexed { entries, behind: false });
    }

    fn answer(&self, n: usize, query: Query) -> Answer {
        let node = &self.nodes[n];
        let rows = node.store[..node.indexed].iter().enumerate();
        let rows = rows.map(|(i, digest)| (i as u64 + 1, digest.hash));
        match query {
            Query::Since { after_seq, up_to_seq, limit } => {
                let mut items: Vec<_> =
                    rows.filter(|(seq, _)| *seq > after_seq && *seq <= up_to_seq).collect();
                let more = items.len() > limit;
                items.truncate(limit);
                Answer::Since { items, more }
            }
            Query::Above { after, up_to_seq, limit } => {
                let rows = rows.filter(|(seq, _)| *seq <= up_to_seq).map(|(_, hash)| hash);
                let mut hashes: Vec<_> =
                    rows.filter(|hash| after.is_none_or(|after| *hash > after)).collect();
                hashes.sort();
                let more = hashes.len() > limit;
                hashes.truncate(limit);
                Answer::Above { hashes, more }
            }
            Query::Known { hashes } => {
                let seqs: BTreeMap<Hash, u64> = rows.map(|(seq, hash)| (hash, seq)).collect();
                Answer::Known(hashes.iter().map(|hash| seqs.get(hash).copied()).collect())
            }
            Query::Shard { key, shard_bits, shard, up_to_seq } => {
                let range = shard_range(shard_bits, shard);
                let mut cells = CodedCells::new(key);
                for (_, hash) in
                    rows.filter(|(seq, hash)| *seq <= up_to_seq && range.contains(hash))
                {
                    cells.insert(&hash);
                }
                Answer::Shard(cells)
            }
        }
    }
}

/// Whether an effect reads or writes the index.
fn is_of_index(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Ask { .. }
            | Effect::AskSizes { .. }
            | Effect::ReadAbsent { .. }
            | Effect::ReadSizes { .. }
            | Effect::AskMissing { .. }
            | Effect::TakeAbsent { .. }
            | Effect::Judge { .. }
            | Effect::Confirm { .. }
            | Effect::Doubt { .. }
    )
}
