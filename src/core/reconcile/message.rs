//! The messages of a round, and the summary of a set that they are about.

use super::cost::Way;
use crate::core::ids::Hash;
use crate::core::sketch::{COUNTERS, Cell, Sketch};

/// A position in a device's numbering of its hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// The numbering. A new one makes all positions in the old one invalid.
    pub epoch: [u8; 16],
    /// The sequence number.
    pub seq: u64,
}

/// A device's description of its set at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSummary {
    /// The numbering of `head_seq`.
    pub epoch: [u8; 16],
    /// The newest sequence number.
    pub head_seq: u64,
    /// The number of hashes.
    pub count: u64,
    /// [`Sketch::fingerprint`].
    pub fingerprint: [u8; 32],
    /// [`Sketch::counters`]. Only in Compare.
    pub counters: Option<Box<[i32; COUNTERS]>>,
    /// How far this device knows the other device's set.
    pub since: Option<Since>,
    /// Whether more will follow soon because this device is still indexing its own store.
    pub busy: bool,
}

impl SetSummary {
    /// The summary without the counters, as it is announced when there is nothing to compare.
    pub fn announced(&self) -> Self {
        Self { counters: None, ..self.clone() }
    }

    /// How many sequence numbers follow `since`; `None` if that is not a position in this
    /// numbering.
    pub(super) fn added_since(&self, since: Option<Since>) -> Option<u64> {
        let since = since.filter(|since| since.epoch == self.epoch)?;
        self.head_seq.checked_sub(since.seq)
    }
}

/// A device's set at one moment, which a round compares.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The sketch of all hashes up to the summary's `head_seq`.
    pub sketch: Sketch,
    /// The set's summary, with counters.
    pub summary: SetSummary,
}

impl Snapshot {
    /// Summarises `sketch`, which holds all hashes of `epoch` up to `head_seq` and no others.
    pub fn new(
        sketch: Sketch,
        epoch: [u8; 16],
        head_seq: u64,
        since: Option<Since>,
        busy: bool,
    ) -> Self {
        let summary = SetSummary {
            epoch,
            head_seq,
            count: sketch.count(),
            fingerprint: sketch.fingerprint(),
            counters: Some(sketch.counters()),
            since,
            busy,
        };
        Self { sketch, summary }
    }
}

/// A message of a round, types 4 to 12 of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReconcileMessage {
    Compare {
        round: u64,
        summary: SetSummary,
    },
    Plan {
        round: u64,
        way: Way,
        summary: SetSummary,
        retry_ms: u64,
        /// Set with [`Way::Shards`] after a Rekey.
        nonce: Option<[u8; 16]>,
        estimate: u64,
    },
    Cells {
        round: u64,
        shard: u32,
        first: u32,
        /// With the expected counts subtracted; see `proto/peer.proto`.
        cells: Vec<Cell>,
    },
    More {
        round: u64,
        shard: u32,
        first: u32,
        n: u32,
    },
    Decoded {
        round: u64,
        lacking: Vec<Hash>,
    },
    Rekey {
        round: u64,
        nonce: [u8; 16],
        shard_bits: u32,
    },
    Pull {
        round: u64,
        from: Cursor,
    },
    Page {
        round: u64,
        hashes: Vec<Hash>,
        more: bool,
        next_seq: u64,
    },
    Done {
        round: u64,
        incomplete: bool,
    },
}

impl ReconcileMessage {
    /// The round that the message belongs to.
    pub fn round(&self) -> u64 {
        match self {
            Self::Compare { round, .. }
            | Self::Plan { round, .. }
            | Self::Cells { round, .. }
            | Self::More { round, .. }
            | Self::Decoded { round, .. }
            | Self::Rekey { round, .. }
            | Self::Pull { round, .. }
            | Self::Page { round, .. }
            | Self::Done { round, .. } => *round,
        }
    }
}

/// The position where a page of hashes starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Above this sequence number, in sequence order.
    Seq(u64),
    /// Above this hash (`None`: from the first), in ascending order.
    Hash(Option<Hash>),
}
