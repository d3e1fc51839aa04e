//! Batches of contents: what a stream brings, where it breaks, and hostile offers.

use can_sync::core::engine::Sent;
use can_sync::core::spans::is_shared;
use can_sync::core::wants::Arrival;

use super::*;

/// A stream of contents from one end of a connection to the other.
pub(super) struct Batch {
    pub(super) link: usize,
    pub(super) from: usize,
    pub(super) sent_id: BatchId,
    pub(super) received_id: BatchId,
    pub(super) digests: Vec<Digest>,
    pub(super) unknown: Vec<Digest>,
    pub(super) wanted: Option<Vec<bool>>,
    is_solicited: bool,
    /// Whether it is a hostile offer: wanted assets are never sent, and the offer is repeated for
    /// ever.
    pub(super) is_usurping: bool,
}

impl World {
    pub(super) fn send_batch(
        &mut self,
        n: usize,
        conn: ConnId,
        sent_id: BatchId,
        digests: Vec<Digest>,
        is_solicited: bool,
    ) {
        self.moves += 1;
        if self.nodes[n].withholds {
            return;
        }
        let (link, side) = self.side(n, conn);
        let index = self.batches.len();
        let received_id = BatchId(index as u64);
        self.batches.push(Batch {
            link,
            from: side,
            sent_id,
            received_id,
            digests,
            unknown: Vec::new(),
            wanted: None,
            is_solicited,
            is_usurping: false,
        });
        let delay = self.delay();
        self.at(delay, Event::Offer { batch: index });
        if self.faults.plain {
            return;
        }
        if self.rng.chance(self.faults.broken_batches) {
            // The stream breaks before anything is wanted; both sides notice it.
            let wait = delay + self.delay();
            self.fact_at_end(
                link,
                side,
                wait,
                Input::BatchFailed { conn, batch: sent_id, violation: false },
            );
        }
    }

    /// Makes node `n` offer assets to `to` unsolicited for ever: it lets the receiver wait for as
    /// long as a stream may take, breaks off and offers them again.
    pub(crate) fn usurp(&mut self, n: usize, to: usize, digests: Vec<Digest>) {
        let is_between = |link: &Link| link.open && (link.ends == [n, to] || link.ends == [to, n]);
        let link = self.links.iter().position(is_between).expect("a connection");
        let from = self.links[link].ends.iter().position(|end| *end == n).expect("an end of it");
        let index = self.batches.len();
        self.batches.push(Batch {
            link,
            from,
            sent_id: BatchId(u64::MAX),
            received_id: BatchId(index as u64),
            digests,
            unknown: Vec::new(),
            wanted: None,
            is_solicited: false,
            is_usurping: true,
        });
        self.at(1, Event::Offer { batch: index });
    }

    pub(super) fn usurp_again(&mut self, index: usize) {
        let Batch { link, from, received_id, ref digests, ref unknown, .. } = self.batches[index];
        let digests = digests.clone();
        if unknown.is_empty() || !self.links[link].open {
            return;
        }
        let [from, to] = [from, 1 - from];
        let conn = ConnId((2 * link + to) as u64);
        let (arrivals, store_failed, violation) = (Vec::new(), false, false);
        let batch = received_id;
        let ended = Input::Received { conn, batch, arrivals, store_failed, violation };
        self.fact_at_end(link, to, 0, ended);
        let ends = self.links[link].ends;
        self.usurp(ends[from], ends[to], digests);
    }

    /// A batch stream reaches its receiver, which queries its index for what it lacks.
    pub(super) fn offer(&mut self, index: usize) {
        let Batch { link, from, received_id, .. } = self.batches[index];
        let to = &self.nodes[self.links[link].ends[1 - from]];
        if !self.links[link].open || to.life != self.links[link].lives[1 - from] {
            return;
        }
        let known: BTreeSet<Hash> = to.store[..to.indexed].iter().map(|d| d.hash).collect();
        let digests = self.batches[index].digests.iter();
        let digests = digests.filter(|digest| !known.contains(&digest.hash));
        let mut digests: Vec<Digest> = digests.copied().collect();
        let conn = ConnId((2 * link + 1 - from) as u64);
        let node = self.links[link].ends[1 - from];
        if self.nodes[node].chooser.is_some() && !self.batches[index].is_solicited {
            digests = self.offered(node, conn, digests);
        }
        let batch = &mut self.batches[index];
        batch.unknown.clone_from(&digests);
        if self.faults.plain {
            batch.wanted = Some(vec![true; digests.len()]);
            let stream = Input::PlainStream { conn, batch: received_id };
            self.fact_at_end(link, 1 - from, 0, stream);
            let delay = self.delay();
            self.at(delay, Event::Deliver { batch: index });
        } else {
            let offered = Input::Offered { conn, batch: received_id, digests };
            self.fact_at_end(link, 1 - from, 1, offered);
        }
    }

    fn fact_at_end(&mut self, link: usize, side: usize, in_ms: u64, input: Input) {
        let (node, life) = (self.links[link].ends[side], self.links[link].lives[side]);
        self.at(in_ms, Event::Fact { node, life, input });
    }

    pub(super) fn deliver(&mut self, index: usize) {
        let breaks = self.rng.chance(self.faults.broken_batches);
        let batch = &self.batches[index];
        let (link, from, sent_id, received_id) =
            (batch.link, batch.from, batch.sent_id, batch.received_id);
        let to = self.links[link].ends[1 - from];
        let alive = self.links[link].open
            && self.nodes[to].life == self.links[link].lives[1 - from]
            && self.can_reach(to, self.links[link].ends[from]);
        if !alive {
            return;
        }
        let wanted: Vec<Digest> = batch
            .unknown
            .iter()
            .zip(batch.wanted.clone().unwrap_or_default())
            .filter(|(_, wanted)| *wanted)
            .map(|(digest, _)| *digest)
            .collect();
        let all: Vec<Hash> = batch.digests.iter().map(|digest| digest.hash).collect();
        let whole =
            if breaks { self.rng.below(wanted.len() as u64 + 1) as usize } else { wanted.len() };
        // What is not wanted here is neither unknown nor held.
        let (unknown, held) = (&batch.unknown, &self.nodes[to].held);
        let known = batch.digests.iter().filter(|digest| !unknown.contains(digest));
        let known = known.filter(|digest| held.contains(&digest.hash));
        let mut arrivals: Vec<_> = known.map(|digest| (digest.hash, Arrival::Held)).collect();
        for digest in &wanted[..whole] {
            // Each source sends a part of a shared asset, and all end when it is complete.
            let is_whole = is_shared(digest, HashAlgorithm::Blake3)
                && self.nodes[to].held.contains(&digest.hash);
            self.crossed += usize::from(!is_whole);
            self.add(to, *digest);
            arrivals.push((digest.hash, Arrival::Stored));
        }
        let conn = ConnId((2 * link + 1 - from) as u64);
        let received = Input::Received {
            conn,
            batch: received_id,
            arrivals,
            store_failed: false,
            violation: false,
        };
        // The feed may show an asset before or after its batch is reported.
        let wait = self.rng.below(3);
        self.fact_at_end(link, 1 - from, wait, received);
        let delay = self.delay();
        let conn = ConnId((2 * link + from) as u64);
        let answer = if breaks {
            Input::BatchFailed { conn, batch: sent_id, violation: false }
        } else {
            let held = &self.nodes[to].held;
            let outcome =
                |hash: &Hash| if held.contains(hash) { Sent::Held } else { Sent::Elsewhere };
            let outcomes = all.iter().map(|hash| (*hash, outcome(hash))).collect();
            Input::BatchSent { conn, batch: sent_id, outcomes }
        };
        self.fact_at_end(link, from, delay, answer);
    }

    pub(super) fn plain_meets(&mut self, link: usize) {
        let l = &self.links[link];
        let [a, b] = l.ends;
        let alive = l.open
            && self.nodes[a].life == l.lives[0]
            && self.nodes[b].life == l.lives[1]
            && self.can_reach(a, b);
        if !alive {
            return;
        }
        let mut crossed = [Vec::new(), Vec::new()];
        for (side, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
            for digest in self.nodes[from].store.clone() {
                if !self.nodes[to].held.contains(&digest.hash) {
                    self.crossed += 1;
                    crossed[side].push(digest.hash);
                    self.add(to, digest);
                }
            }
        }
        for side in 0..2 {
            let conn = ConnId((2 * link + side) as u64);
            let (held_there, stored_here) = (crossed[side].clone(), crossed[1 - side].clone());
            let (failed, more) = (false, false);
            let done = Input::PlainDone { conn, held_there, stored_here, failed, more };
            self.fact_at_end(link, side, 1, done);
        }
    }
}
