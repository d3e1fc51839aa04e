//! What waits to be sent to one peer, and what is being sent: queues of assets in lanes.
//!
//! I1  Lanes are separate: a large transfer never holds up a small one, and solicited assets never
//!     hold up new ones. One exception: while a large asset wanted at once is sent, only batches of
//!     new small assets begin. It takes all the bandwidth, and a stream that waits behind it would
//!     be given up.
//! I2  New assets wait here, not in channels: those that gather while the lane is taken share the
//!     next batch.

use std::collections::{BTreeSet, VecDeque};

use crate::core::ids::{Digest, Hash};
use crate::core::limits::{
    BATCH_ASSETS_MAX, BATCH_BYTES_MAX, HASHES_PER_FRAME_MAX, LARGE_LANES, LIVE_LANES,
    LIVE_LARGE_LANES, NOW_LANES, NOW_LARGE_LANES, OFFER_LARGE_MAX, PENDING_PER_PEER_MAX,
    SMALL_BYTES_MAX, SMALL_LANES,
};

/// What a batch stream carries, and with which priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Small assets that are new here.
    Live,
    /// Large assets that are new here.
    LiveLarge,
    /// Small assets the peer solicited.
    Small,
    /// Large assets the peer solicited.
    Large,
    /// Small assets the peer wants at once.
    Now,
    /// One large asset the peer wants at once.
    NowLarge,
}

impl Lane {
    /// Whether the peer solicited the assets of this lane.
    pub fn is_solicited(self) -> bool {
        match self {
            Self::Live | Self::LiveLarge => false,
            Self::Small | Self::Large | Self::Now | Self::NowLarge => true,
        }
    }
}

/// The next batch to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) lane: Lane,
    pub(crate) digests: Vec<Digest>,
    pub(crate) inline: bool,
}

#[derive(Debug)]
struct News {
    digest: Digest,
    /// Whether the asset was added on this device: then no other device can be sending it to the
    /// peer.
    local: bool,
}

/// The queues of assets for one peer, and the number of batches under way on each lane.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    news: VecDeque<News>,
    large_news: VecDeque<Digest>,
    /// Solicited hashes whose sizes must be looked up in the index.
    to_size: VecDeque<Hash>,
    /// Hashes wanted at once whose sizes must be looked up.
    now_to_size: VecDeque<Hash>,
    /// The number of hashes being looked up.
    sizing: usize,
    /// Whether those are wanted at once.
    sizing_now: bool,
    small: VecDeque<Digest>,
    large: VecDeque<Digest>,
    now: VecDeque<Digest>,
    now_large: VecDeque<Digest>,
    taken: [usize; 6],
}

impl Lanes {
    /// Queues a new asset to offer. Beyond the bound it is left to the next comparison.
    pub(crate) fn push_live(&mut self, digest: Digest, local: bool) {
        if self.news.len() + self.large_news.len() >= PENDING_PER_PEER_MAX {
            return;
        }
        if digest.size_bytes <= SMALL_BYTES_MAX {
            self.news.push_back(News { digest, local });
        } else {
            self.large_news.push_back(digest);
        }
    }

    /// Drops new assets from the queue because the peer turned out to hold them.
    pub(crate) fn forget_live(&mut self, hashes: &[Hash]) {
        let hashes: BTreeSet<&Hash> = hashes.iter().collect();
        self.news.retain(|news| !hashes.contains(&news.digest.hash));
        self.large_news.retain(|digest| !hashes.contains(&digest.hash));
    }

    pub(crate) fn push_to_size(&mut self, hashes: Vec<Hash>) {
        self.to_size.extend(hashes);
    }

    /// Queues hashes that the peer wants at once, and removes them from the other queues.
    pub(crate) fn push_now(&mut self, hashes: Vec<Hash>) {
        let asked: BTreeSet<&Hash> = hashes.iter().collect();
        self.to_size.retain(|hash| !asked.contains(hash));
        for queue in [&mut self.small, &mut self.large] {
            queue.retain(|digest| !asked.contains(&digest.hash));
        }
        self.now_to_size.extend(hashes);
    }

    /// The solicited hashes whose sizes to look up now, answered by [`Self::push_solicited`]. One
    /// lookup at a time, however much the peer solicits.
    pub(crate) fn next_to_size(&mut self) -> Option<Vec<Hash>> {
        if self.sizing > 0 {
            return None;
        }
        self.sizing_now = !self.now_to_size.is_empty();
        let queue = if self.sizing_now { &mut self.now_to_size } else { &mut self.to_size };
        self.sizing = queue.len().min(HASHES_PER_FRAME_MAX);
        (self.sizing > 0).then(|| queue.drain(..self.sizing).collect())
    }

    /// Queues the solicited assets with their sizes; unknown ones are left out by the index. Assets
    /// that are already queued as new are not queued twice.
    pub(crate) fn push_solicited(&mut self, mut digests: Vec<Digest>) {
        self.sizing = 0;
        if !self.sizing_now {
            let news = self.news.iter().map(|news| news.digest.hash);
            let news: BTreeSet<Hash> =
                news.chain(self.large_news.iter().map(|digest| digest.hash)).collect();
            digests.retain(|digest| !news.contains(&digest.hash));
        }
        let (small, large) = match self.sizing_now {
            true => (&mut self.now, &mut self.now_large),
            false => (&mut self.small, &mut self.large),
        };
        for digest in digests {
            if digest.size_bytes <= SMALL_BYTES_MAX {
                small.push_back(digest);
            } else {
                large.push_back(digest);
            }
        }
    }

    /// The number of hashes that the peer solicited and that are not being sent yet.
    pub(crate) fn solicited(&self) -> usize {
        let to_size = self.now_to_size.len() + self.to_size.len() + self.sizing;
        let now = self.now.len() + self.now_large.len();
        to_size + now + self.small.len() + self.large.len()
    }

    /// How many assets, with how many bytes, are sent before `hash` on its lane; `None`: it is not
    /// queued. The bytes of those whose sizes are not looked up yet are not counted.
    pub(crate) fn ahead(&self, hash: &Hash) -> Option<(u64, u64)> {
        fn place<'a>(
            mut queue: impl Iterator<Item = &'a Digest> + Clone,
            hash: &Hash,
        ) -> Option<(u64, u64)> {
            let ahead = queue.clone();
            let at = queue.position(|digest| digest.hash == *hash)?;
            Some((at as u64, ahead.take(at).map(|digest| digest.size_bytes).sum()))
        }
        let news = self.news.iter().map(|news| &news.digest);
        let unsized_at = |queue: &VecDeque<Hash>| queue.iter().position(|queued| queued == hash);
        let sized = (self.small.len() + self.now.len()) as u64;
        place(news, hash)
            .or_else(|| place(self.large_news.iter(), hash))
            .or_else(|| place(self.now.iter(), hash))
            .or_else(|| place(self.now_large.iter(), hash))
            .or_else(|| place(self.small.iter(), hash))
            .or_else(|| place(self.large.iter(), hash))
            .or_else(|| unsized_at(&self.now_to_size).map(|at| (sized + at as u64, 0)))
            .or_else(|| unsized_at(&self.to_size).map(|at| (sized + at as u64, 0)))
    }

    /// The number of assets that are queued or being sent.
    pub(crate) fn unsent(&self) -> usize {
        let news = self.news.len() + self.large_news.len();
        self.solicited() + news + self.taken.iter().sum::<usize>()
    }

    /// Whether only large assets, which may take hours, are left to send.
    pub(crate) fn are_all_large(&self) -> bool {
        let queued = self.news.len() + self.small.len() + self.now.len();
        let to_size = self.now_to_size.len() + self.to_size.len() + self.sizing;
        let lanes = [Lane::Live, Lane::Small, Lane::Now];
        let sent: usize = lanes.into_iter().map(|lane| self.taken[lane as usize]).sum();
        queued + to_size + sent == 0
    }

    pub(crate) fn lane_freed(&mut self, lane: Lane) {
        let taken = &mut self.taken[lane as usize];
        *taken = taken.saturating_sub(1);
    }

    /// The next batch, if there is one whose lane has room.
    pub(crate) fn next_batch(&mut self) -> Option<Load> {
        let load = self.next_live().or_else(|| self.next_now()).or_else(|| {
            if self.taken[Lane::NowLarge as usize] > 0 {
                return None;
            }
            self.next_live_large().or_else(|| self.next_small()).or_else(|| self.next_large())
        })?;
        self.taken[load.lane as usize] += 1;
        Some(load)
    }

    fn next_live(&mut self) -> Option<Load> {
        if self.taken[Lane::Live as usize] >= LIVE_LANES {
            return None;
        }
        let mut digests = Vec::new();
        let mut bytes = 0;
        let mut batch_is_local = None;
        while let Some(News { digest, local }) = self.news.front() {
            let fits =
                digests.len() < BATCH_ASSETS_MAX && bytes + digest.size_bytes <= BATCH_BYTES_MAX;
            if !fits || *batch_is_local.get_or_insert(*local) != *local {
                break;
            }
            bytes += digest.size_bytes;
            digests.push(*digest);
            self.news.pop_front();
        }
        let inline = batch_is_local?;
        Some(Load { lane: Lane::Live, digests, inline })
    }

    fn next_live_large(&mut self) -> Option<Load> {
        if self.taken[Lane::LiveLarge as usize] >= LIVE_LARGE_LANES {
            return None;
        }
        let digests = next_large_batch(&mut self.large_news)?;
        Some(Load { lane: Lane::LiveLarge, digests, inline: false })
    }

    fn next_now(&mut self) -> Option<Load> {
        if self.taken[Lane::Now as usize] < NOW_LANES && !self.now.is_empty() {
            let digests = next_small_batch(&mut self.now);
            return Some(Load { lane: Lane::Now, digests, inline: true });
        }
        if self.taken[Lane::NowLarge as usize] >= NOW_LARGE_LANES {
            return None;
        }
        let digests = vec![self.now_large.pop_front()?];
        Some(Load { lane: Lane::NowLarge, digests, inline: false })
    }

    fn next_small(&mut self) -> Option<Load> {
        if self.taken[Lane::Small as usize] >= SMALL_LANES || self.small.is_empty() {
            return None;
        }
        let digests = next_small_batch(&mut self.small);
        Some(Load { lane: Lane::Small, digests, inline: true })
    }

    fn next_large(&mut self) -> Option<Load> {
        if self.taken[Lane::Large as usize] >= LARGE_LANES {
            return None;
        }
        let digests = next_large_batch(&mut self.large)?;
        Some(Load { lane: Lane::Large, digests, inline: false })
    }
}

/// The small assets at the front that fit into one batch.
fn next_small_batch(queue: &mut VecDeque<Digest>) -> Vec<Digest> {
    take_batch(queue, BATCH_ASSETS_MAX)
}

/// The large asset at the front, and those behind it that together are no larger than a batch of
/// small assets: the cost of each beside its bytes is then paid while the others move.
fn next_large_batch(queue: &mut VecDeque<Digest>) -> Option<Vec<Digest>> {
    (!queue.is_empty()).then(|| take_batch(queue, OFFER_LARGE_MAX))
}

/// Takes at least one asset, unless the queue is empty.
fn take_batch(queue: &mut VecDeque<Digest>, assets_max: usize) -> Vec<Digest> {
    let mut digests = Vec::new();
    let mut bytes = 0;
    while let Some(digest) = queue.front() {
        let is_full = digests.len() >= assets_max || bytes + digest.size_bytes > BATCH_BYTES_MAX;
        if is_full && !digests.is_empty() {
            break;
        }
        bytes += digest.size_bytes;
        digests.push(*digest);
        queue.pop_front();
    }
    digests
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(n: u32, size_bytes: u64) -> Digest {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        Digest { hash: Hash(bytes), size_bytes }
    }

    #[test]
    fn news_that_gathers_while_the_lane_is_taken_shares_one_batch() {
        let mut lanes = Lanes::default();
        for n in 0..LIVE_LANES as u32 {
            lanes.push_live(digest(n, 10), true);
            assert_eq!(lanes.next_batch().unwrap().digests.len(), 1);
        }
        for n in 10..60 {
            lanes.push_live(digest(n, 10), true);
        }
        assert_eq!(lanes.next_batch(), None);
        lanes.lane_freed(Lane::Live);
        assert_eq!(lanes.next_batch().unwrap().digests.len(), 50);
    }

    #[test]
    fn a_large_asset_holds_up_neither_small_ones_nor_news() {
        let mut lanes = Lanes::default();
        lanes.push_solicited((0..10).map(|n| digest(n, SMALL_BYTES_MAX + 1)).collect());
        while lanes.next_batch().is_some() {}
        lanes.push_solicited(vec![digest(20, 1)]);
        lanes.push_live(digest(21, 1), true);
        assert_eq!(lanes.next_batch().unwrap().lane, Lane::Live);
        assert_eq!(lanes.next_batch().unwrap().lane, Lane::Small);
        assert_eq!(lanes.next_batch(), None);
    }

    #[test]
    fn what_is_wanted_at_once_goes_before_all_that_is_queued_although_every_lane_is_taken() {
        let mut lanes = Lanes::default();
        let sizes = [1, SMALL_BYTES_MAX + 1];
        lanes.push_solicited((0..9_000).map(|n| digest(n, sizes[n as usize % 2])).collect());
        while lanes.next_batch().is_some() {}
        let queued = lanes.solicited();
        let (small, large) = (digest(8_998, sizes[0]), digest(8_999, sizes[1]));
        lanes.push_now(vec![large.hash, small.hash]);
        assert_eq!(lanes.next_to_size().unwrap(), [large.hash, small.hash]);
        lanes.push_solicited(vec![large, small]);
        assert_eq!(lanes.solicited(), queued, "each stands in one queue");
        for (lane, asset) in [(Lane::Now, small), (Lane::NowLarge, large)] {
            let load = lanes.next_batch().unwrap();
            assert_eq!((load.lane, load.digests), (lane, vec![asset]));
        }
        assert_eq!(lanes.next_batch(), None);
    }

    #[test]
    fn behind_a_large_asset_that_is_wanted_at_once_only_news_begins() {
        let mut lanes = Lanes::default();
        let large = digest(1, SMALL_BYTES_MAX + 1);
        lanes.push_now(vec![large.hash]);
        lanes.next_to_size();
        lanes.push_solicited(vec![large]);
        assert_eq!(lanes.next_batch().unwrap().lane, Lane::NowLarge);
        let others = vec![digest(2, 1), digest(3, SMALL_BYTES_MAX + 1)];
        lanes.push_to_size(others.iter().map(|other| other.hash).collect());
        lanes.next_to_size();
        lanes.push_solicited(others);
        lanes.push_live(digest(4, SMALL_BYTES_MAX + 1), true);
        lanes.push_live(digest(5, 1), true);
        assert_eq!(lanes.next_batch().unwrap().lane, Lane::Live);
        assert_eq!(lanes.next_batch(), None);
        lanes.lane_freed(Lane::NowLarge);
        let sent = std::iter::from_fn(|| lanes.next_batch().map(|load| load.lane));
        assert_eq!(sent.collect::<Vec<_>>(), [Lane::LiveLarge, Lane::Small, Lane::Large]);
    }

    #[test]
    fn sizes_of_what_is_wanted_at_once_are_asked_for_first() {
        let mut lanes = Lanes::default();
        lanes.push_to_size((0..3_000).map(|n| digest(n, 1).hash).collect());
        assert_eq!(lanes.next_to_size().unwrap().len(), HASHES_PER_FRAME_MAX);
        lanes.push_now(vec![digest(2_999, 1).hash]);
        lanes.push_solicited(Vec::new());
        assert_eq!(lanes.next_to_size().unwrap(), [digest(2_999, 1).hash]);
        lanes.push_solicited(Vec::new());
        assert_eq!(lanes.next_to_size().unwrap().len(), 3_000 - HASHES_PER_FRAME_MAX - 1);
    }

    #[test]
    fn what_is_to_be_offered_as_news_is_not_sent_twice_because_it_is_solicited() {
        let mut lanes = Lanes::default();
        let news = [digest(1, 1), digest(2, SMALL_BYTES_MAX + 1)];
        news.iter().for_each(|digest| lanes.push_live(*digest, true));
        lanes.push_solicited([&news[..], &[digest(3, 1)]].concat());
        let mut sent = Vec::new();
        while let Some(load) = lanes.next_batch() {
            sent.push((load.lane, load.digests[0]));
        }
        let small = (Lane::Small, digest(3, 1));
        assert_eq!(sent, [(Lane::Live, news[0]), (Lane::LiveLarge, news[1]), small]);
    }

    #[test]
    fn only_what_was_added_here_is_sent_unasked() {
        let mut lanes = Lanes::default();
        lanes.push_live(digest(1, 1), true);
        lanes.push_live(digest(2, 1), false);
        assert!(lanes.next_batch().unwrap().inline);
        assert!(!lanes.next_batch().unwrap().inline);
    }

    #[test]
    fn a_batch_is_bounded_in_assets_and_bytes() {
        let mut lanes = Lanes::default();
        lanes.push_solicited((0..2000).map(|n| digest(n, 1)).collect());
        assert_eq!(lanes.next_batch().unwrap().digests.len(), BATCH_ASSETS_MAX);
        let mut lanes = Lanes::default();
        lanes.push_solicited((0..100).map(|n| digest(n, SMALL_BYTES_MAX)).collect());
        let bytes: u64 = lanes.next_batch().unwrap().digests.iter().map(|d| d.size_bytes).sum();
        assert_eq!(bytes, BATCH_BYTES_MAX);
    }

    #[test]
    fn large_assets_share_a_batch_as_far_as_its_bytes_go_and_the_largest_have_one_alone() {
        let mut lanes = Lanes::default();
        let sizes = [BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX / 2, SMALL_BYTES_MAX + 1, 1 << 40];
        let digests: Vec<_> = (0..4).map(|n| digest(n, sizes[n as usize])).collect();
        lanes.push_solicited(digests.clone());
        assert_eq!(lanes.next_batch().unwrap().digests, digests[..2]);
        assert_eq!(lanes.next_batch().unwrap().digests, digests[2..3]);
        lanes.lane_freed(Lane::Large);
        assert_eq!(lanes.next_batch().unwrap().digests, digests[3..]);
    }

    #[test]
    fn news_beyond_the_bound_is_left_to_the_next_comparison() {
        let mut lanes = Lanes::default();
        for n in 0..PENDING_PER_PEER_MAX as u32 + 5 {
            lanes.push_live(digest(n, u64::from(n % 2) * 2 * SMALL_BYTES_MAX), true);
        }
        assert_eq!(lanes.unsent(), PENDING_PER_PEER_MAX);
        while lanes.next_batch().is_some() {}
        assert_eq!(lanes.solicited(), 0, "what the peer asked for is counted apart");
    }

    #[test]
    fn a_photo_added_during_a_backlog_goes_ahead_of_it() {
        let mut lanes = Lanes::default();
        lanes.push_solicited((0..500).map(|n| digest(n, SMALL_BYTES_MAX + 1)).collect());
        while lanes.next_batch().is_some() {}
        let photo = digest(1000, SMALL_BYTES_MAX + 1);
        lanes.push_live(photo, true);
        assert_eq!(lanes.next_batch().map(|load| load.digests), Some(vec![photo]));
    }
}
