//! What is sent: assets, parts of assets, and what has been prepared of them.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::core::ids::{Digest, Hash};
use crate::transfer::outcome::Outcome;
use crate::wire::batch::{Content, Label, Piece};

/// How many frames are read, verified and encoded while another one is written. Two keep a local
/// store's disk and a stream busy; the third is for a store that answers over HTTP.
pub(super) const PIECES_AHEAD: usize = 3;

/// An asset to send, or a part of a large one.
#[derive(Debug, Clone)]
pub(crate) struct Asset {
    pub(super) label: Label,
    pub(super) digest: Digest,
    pub(super) range: Range<u64>,
}

impl Asset {
    pub(super) fn entry(index: usize, digest: Digest) -> Self {
        Self { label: Label::Entry(index), digest, range: 0..digest.size_bytes }
    }

    /// An asset sent by its hash in the plain protocol.
    pub(crate) fn named(digest: Digest) -> Self {
        Self { label: Label::Named(digest), digest, range: 0..digest.size_bytes }
    }

    pub(crate) fn left_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub(super) fn lost(&self, outcome: Outcome) -> Lost {
        Lost { label: self.label, outcome }
    }
}

/// The proof of the large asset sent last: its next part needs it again.
#[derive(Debug, Default)]
pub(crate) struct LastProof(pub(super) Option<(Hash, Proof)>);

/// The files that the pieces of a large asset are made from.
#[derive(Debug, Clone)]
pub(super) struct Proof {
    pub(super) outboard: Arc<File>,
    /// `None`: the content is read from the store range by range.
    pub(super) content: Option<Arc<File>>,
}

/// An asset that cannot be sent, or not completely.
#[derive(Debug)]
pub(crate) struct Lost {
    /// The asset's name in the stream.
    pub(crate) label: Label,
    /// The outcome: Unavailable, Damaged or Later.
    pub(crate) outcome: Outcome,
}

/// What to write to the stream next.
pub(super) enum Prepared {
    Contents(Vec<Content>),
    Piece(Piece),
    Lost(Lost),
}

pub(super) type Queue = mpsc::Sender<Prepared>;

/// Ignores a closed queue: its reader has ended then, and this future is dropped too.
pub(super) async fn enqueue(queue: &Queue, prepared: Prepared) {
    let _ = queue.send(prepared).await;
}
