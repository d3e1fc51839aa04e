//! Devices that do not want everything, over the real index: what the agent's tasks do about known, absent
//! and wanted assets, in the order in which these do it.

use can_sync::core::copies::{Absence, SizedHash};
use can_sync::core::engine::{Belief, OwnCopies};
use can_sync::state::index::{Head, Index};
use tempfile::TempDir;

use super::*;

/// The absent hashes in a page: few, so that there are many pages.
const PAGE: usize = 23;

/// What a device wants, and its index.
pub(crate) struct Chooser {
    pub(crate) index: Index,
    /// It wants the assets whose hash begins with less than this.
    wants_below: u16,
    /// The most that it ever wanted, and what was added to it.
    most_below: u16,
    added: BTreeSet<Hash>,
    evicted: BTreeSet<Hash>,
    _folder: TempDir,
}

impl Chooser {
    fn new(n: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::open(&folder.path().join("index.db")).expect("an index");
        index.bind(&StoreId([n as u8; 16]), HashAlgorithm::Blake3).expect("it is bound");
        let (added, evicted) = (BTreeSet::new(), BTreeSet::new());
        Self { index, wants_below: 256, most_below: 0, added, evicted, _folder: folder }
    }

    pub(crate) fn wants(&self, hash: &Hash) -> bool {
        u16::from(hash.as_bytes()[0]) < self.wants_below && !self.evicted.contains(hash)
    }

    fn why(&self, hash: &Hash) -> Absence {
        if self.wants(hash) { Absence::Missing } else { Absence::Unwanted }
    }

    /// Whether it ever wanted an asset, or somebody added it there.
    fn may_hold(&self, hash: &Hash) -> bool {
        u16::from(hash.as_bytes()[0]) < self.most_below || self.added.contains(hash)
    }

    /// What the engine starts with.
    pub(super) fn load(
        &mut self,
        members: &Members,
    ) -> (KnownSet, OwnCopies, Vec<(NodeId, Belief)>) {
        self.most_below = self.most_below.max(self.wants_below);
        let head = self.index.head();
        let mut sketch = Sketch::new(SketchKey::derive(&GROUP));
        let (rows, more) = self.index.since(0, u64::MAX, usize::MAX / 2).expect("the rows");
        assert!(!more);
        rows.iter().for_each(|(_, hash)| sketch.insert(hash));
        let head_seq = rows.last().map_or(0, |(seq, _)| *seq);
        let known = KnownSet { sketch, epoch: head.epoch, head_seq };
        let chooses = self.wants_below < 256 || !self.evicted.is_empty();
        let own = OwnCopies { absent: head.absent, missing: head.missing, chooses };
        let beliefs = members.members.iter().map(|member| {
            let (absent, is_confirmed) = self.index.belief(&member.node_id).expect("a belief");
            (member.node_id, Belief { absent, is_confirmed })
        });
        (known, own, beliefs.collect())
    }
}

impl World {
    /// Gives every node an index, so that it can choose. Before they are started.
    pub(crate) fn let_choose(&mut self) {
        for n in 0..self.nodes.len() {
            self.nodes[n].chooser = Some(Chooser::new(n));
        }
    }

    pub(crate) fn chooser(&self, n: usize) -> &Chooser {
        self.nodes[n].chooser.as_ref().expect("it chooses")
    }

    fn chooser_mut(&mut self, n: usize) -> &mut Chooser {
        self.nodes[n].chooser.as_mut().expect("it chooses")
    }

    /// A user of a node wants other assets: the absent ones are judged again, and the engine is built anew.
    pub(crate) fn want(&mut self, n: usize, wants_below: u16) {
        let chooser = self.chooser_mut(n);
        chooser.wants_below = wants_below;
        let (rows, _) = chooser.index.rows(true, 0, usize::MAX / 2).expect("the rows");
        let verdicts = rows.iter().map(|row| (row.hash, chooser.why(&row.hash), 0));
        let verdicts: Vec<_> = verdicts.collect();
        chooser.index.judge(&verdicts).expect("it is written");
        if self.is_up(n) {
            self.crash(n);
            self.start(n);
        }
    }

    /// A node evicts an asset that it holds.
    pub(crate) fn evict(&mut self, n: usize, hash: Hash) {
        let chooser = self.chooser_mut(n);
        chooser.evicted.insert(hash);
        let head = chooser.index.release(&[hash]).expect("it is written");
        let node = &mut self.nodes[n];
        node.held.remove(&hash);
        let at = node.store.iter().position(|digest| digest.hash == hash).expect("it holds it");
        node.store.remove(at);
        node.indexed -= usize::from(at < node.indexed);
        self.fact(n, 1, Input::Released { hashes: vec![hash] });
        self.noted(n, Vec::new(), head);
    }

    /// What a user adds stays, wanted or not.
    pub(crate) fn add_own(&mut self, n: usize, digest: Digest) {
        self.chooser_mut(n).added.insert(digest.hash);
        self.add(n, digest);
    }

    /// The engine hears of numbers in their order: all of it goes the same way.
    fn noted(&mut self, n: usize, entries: Vec<(u64, Hash)>, head: Head) {
        let Head { absent, missing, .. } = head;
        self.fact(n, 1, Input::Noted { entries, absent, missing });
    }

    /// Notes assets that are not wanted, and returns the others.
    fn split(&mut self, n: usize, assets: Vec<SizedHash>) -> Vec<Hash> {
        let chooser = self.chooser(n);
        let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
        for asset in assets {
            match chooser.why(&asset.0) {
                Absence::Missing => wanted.push(asset.0),
                Absence::Unwanted => unwanted.push((asset, Absence::Unwanted)),
            }
        }
        if !unwanted.is_empty() {
            let noted = chooser.index.note(&unwanted).expect("it is written");
            self.noted(n, noted.entries, noted.head);
        }
        wanted
    }

    /// Which of the digests that a stream offers are taken to the engine.
    pub(super) fn offered(&mut self, n: usize, conn: ConnId, digests: Vec<Digest>) -> Vec<Digest> {
        let is_choosing = self.nodes[n].engine.as_ref().is_some_and(Engine::chooses);
        if !is_choosing {
            return digests;
        }
        let sized = digests.iter().map(|digest| (digest.hash, Some(digest.size_bytes))).collect();
        let wanted: BTreeSet<Hash> = self.split(n, sized).into_iter().collect();
        let (wanted, unwanted): (Vec<Digest>, Vec<Digest>) =
            digests.into_iter().partition(|digest| wanted.contains(&digest.hash));
        if !unwanted.is_empty() {
            let hashes = unwanted.iter().map(|digest| digest.hash).collect();
            self.fact(n, 1, Input::Unwanted { conn, hashes });
        }
        wanted
    }

    /// The index takes up what is new in the store.
    pub(super) fn take_in(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(chooser) = &mut node.chooser else { return };
        let new = &node.store[node.indexed..];
        node.indexed = node.store.len();
        new.iter().for_each(|digest| {
            chooser.evicted.remove(&digest.hash);
        });
        let entries = chooser.index.insert(new, node.indexed as u64).expect("it is written");
        let head = chooser.index.head();
        self.noted(n, Vec::new(), head);
        self.fact(n, 1, Input::Indexed { entries, behind: false });
    }

    /// Performs an effect about copies, or one that reads the index.
    pub(super) fn perform_choosing(&mut self, n: usize, effect: Effect) {
        let index = self.chooser(n).index.clone();
        match effect {
            Effect::Ask { conn, round, query } => {
                let answer = answer(&index, query);
                self.fact(n, 1, Input::Answer { conn, round, answer });
            }
            Effect::AskSizes { conn, hashes } => {
                let sizes = index.sizes(&hashes).expect("the sizes");
                let (mut held, mut missing) = (Vec::new(), Vec::new());
                for (hash, size) in hashes.into_iter().zip(sizes) {
                    match size {
                        Some(size_bytes) => held.push(Digest { hash, size_bytes }),
                        None => missing.push(hash),
                    }
                }
                self.fact(n, 1, Input::Sizes { conn, held, missing });
            }
            Effect::ReadAbsent { conn, log, after_turn } => {
                let page = index.absent_page(log, after_turn, PAGE).expect("a page");
                self.fact(n, 1, Input::AbsentRead { conn, page: Some(page) });
            }
            Effect::ReadSizes { conn, hashes } => {
                let sizes = index.sizes(&hashes).expect("the sizes");
                self.fact(n, 1, Input::SizesRead { conn, sizes });
            }
            Effect::AskMissing { conn, peer, after } => {
                let (hashes, next) = index.missing_at(&peer, after, PAGE).expect("a page");
                self.fact(n, 1, Input::Missing { conn, hashes, next });
            }
            Effect::TakeAbsent { conn, peer, page } => {
                let chooser = self.chooser(n);
                let why: Vec<Absence> =
                    page.absent.iter().map(|(hash, _)| chooser.why(hash)).collect();
                let believed = index.believe(&peer, &page, &why).expect("it is written");
                self.noted(n, believed.noted.entries, believed.noted.head);
                let (belief, restarts) = (Some(believed.belief), believed.restarts);
                self.fact(n, 1, Input::Believed { conn, peer, belief, restarts });
            }
            Effect::Judge { conn, hashes } => {
                let wanted = self.split(n, hashes);
                self.fact(n, 1, Input::Judged { conn, wanted });
            }
            Effect::Confirm { peer, to_seq, absent } => {
                let epoch = index.head().epoch;
                let now_ms = self.now_ms;
                if index.confirm(&epoch, &peer, to_seq, &absent, now_ms).expect("it is written") {
                    self.fact(n, 1, Input::Confirmed { peer });
                }
            }
            Effect::Doubt { peer, hashes } => index.doubt(&peer, &hashes).expect("it is written"),
            _ => unreachable!("it is about nothing in the index"),
        }
    }

    /// The fault that a choosing world has now that nothing moves; `all` were added.
    pub(crate) fn wrong_copies(&self, all: &BTreeSet<Hash>) -> Option<String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let chooser = self.chooser(n);
            let head = chooser.index.head();
            if head.count != all.len() as u64 {
                return Some(format!("node {n} knows {} of {}", head.count, all.len()));
            }
            if let Some(hash) = all.iter().find(|h| chooser.wants(h) && !node.held.contains(h)) {
                return Some(format!("node {n} wants {hash} and lacks it"));
            }
            if let Some(hash) = node.held.iter().find(|hash| !chooser.may_hold(hash)) {
                return Some(format!("node {n} never wanted {hash} and holds it"));
            }
            for hash in all {
                let claimed = chooser.index.holders(hash).expect("the holders");
                let claimed: BTreeSet<NodeId> = claimed.iter().map(|one| one.node_id).collect();
                let others = self.nodes.iter().filter(|other| other.id != node.id);
                let holding = others.filter(|other| other.held.contains(hash));
                let holding: BTreeSet<NodeId> = holding.map(|other| other.id).collect();
                if claimed != holding {
                    return Some(format!("node {n}: {hash} is on {holding:?}, not {claimed:?}"));
                }
            }
        }
        None
    }
}

fn answer(index: &Index, query: Query) -> Answer {
    match query {
        Query::Since { after_seq, up_to_seq, limit } => {
            let (items, more) = index.since(after_seq, up_to_seq, limit).expect("a page");
            Answer::Since { items, more }
        }
        Query::Above { after, up_to_seq, limit } => {
            let (hashes, more) = index.above(after, up_to_seq, limit).expect("a page");
            Answer::Above { hashes, more }
        }
        Query::Known { hashes } => Answer::Known(index.seqs(&hashes).expect("the numbers")),
        Query::Shard { key, shard_bits, shard, up_to_seq } => {
            let mut cells = CodedCells::new(key);
            let range = shard_range(shard_bits, shard);
            let insert = |hash| {
                cells.insert(&hash);
            };
            index.for_each_in(range, up_to_seq, insert).expect("the shard");
            Answer::Shard(cells)
        }
    }
}
